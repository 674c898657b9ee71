"""A prompt on disk: a PEFT adapter folder, so that PEFT loads it with no export step, with our card beside it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from softprompt.base.files import check_file, locked, write_whole
from softprompt.base.names import hub_place
from softprompt.models import is_hub_id
from softprompt.prompts.card import CARD, CONFIG, FORMAT_VERSION, README, WEIGHTS, Card, parse_object
from softprompt.prompts.hub import local_folder, push
from softprompt.prompts.prompt import SoftPrompt

PEFT_VERSION = "0.21.2"  # the PEFT whose keys adapter_config.json has

KEY = "prompt_embeddings"
KV_TYPES = ("CARTRIDGE", "PREFIX_TUNING")  # PEFT's names for keys and values of every layer; both are laid out alike
# Of P-tuning PEFT saves what its encoder made, which is a prompt.
PEFT_TYPES = ("PROMPT_TUNING", "P_TUNING", *KV_TYPES)
TASK_TYPES = {True: "SEQ_2_SEQ_LM", False: "CAUSAL_LM"}  # PEFT's words for "is an encoder-decoder"
STAGING, JOURNAL = ".softprompt-saving-", ".softprompt-saved"


def save_prompt(prompt: SoftPrompt, folder: str | Path) -> None:
    """Write the prompt as a PEFT adapter folder with our card and a README, or as a commit to the hub: hf://ORG/NAME.

    A kill or a full disk at any moment leaves what `load_prompt` reads from the folder as it was
    before or as it is now, whole. Other files in the folder are not touched. A repository that the
    hub does not have is made there, a private one.

    Raises:
        ValueError: `folder` is a file, or no place on the hub that you may write to.
        OSError: it cannot be written (one line that says why).
    """
    if place := hub_place(folder):
        name = prompt.card.model_name
        if name and Path(name).exists():
            told = f"{place} names its model by a place on this machine, {name}; elsewhere it needs --model"
            warnings.warn(told, stacklevel=2)
        push(_content(prompt, place), place)
        return
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a prompt is saved as a folder, so give another name")
    try:
        _replace_files(folder, _content(prompt, folder.name))
    except OSError as error:
        left = f"it is in {JOURNAL} there" if (folder / JOURNAL).is_dir() else "what it held before is whole"
        raise OSError(
            f"could not save the prompt to {folder} ({error.strerror or error}); {left}; free some space or choose "
            "another folder"
        ) from error


def load_prompt(folder: str | Path) -> SoftPrompt:
    """The prompt in a folder that `save_prompt` or PEFT wrote, or on the hub: hf://ORG/NAME@revision.

    PEFT gives an encoder-decoder 2p rows and uses the first p; the other rows are dropped, with a
    warning. A folder without our card gets one that says only what PEFT's configuration says. What
    is wrong is read once more, since a save may have come between two files.

    Raises:
        ValueError: no prompt there, another kind of adapter, a pickle, a damaged file, or other
            numbers than those its card was saved with (one that says; PEFT's folders do not).
        OSError: the hub cannot be reached, or refuses.
    """
    here = local_folder(folder)
    try:
        try:
            return _load(here)
        except (ValueError, OSError):
            return _load(here)
    except ValueError as error:
        if on_hub := hub_place(folder):
            raise ValueError(str(error).replace(str(here), on_hub)) from error
        raise


def _load(folder: Path) -> SoftPrompt:
    config = _read_adapter_config(folder)
    values = _read_weights(folder)
    length = config.get("num_virtual_tokens") or len(values)
    is_kv = config["peft_type"] in KV_TYPES
    if len(values) == 2 * length and not is_kv:
        warnings.warn(
            f"{folder} holds {2 * length} rows, as PEFT gives an encoder-decoder; only the first {length} are "
            "ever used, so the second half was dropped",
            stacklevel=3,
        )
        values = values[:length]
    if len(values) != length:
        raise ValueError(f"{folder} holds {len(values)} rows and its {CONFIG} says {length}; copy the folder again")
    width = values.shape[1]
    if is_kv:
        values = _as_kv(values, config, folder)
    path, name = _find(folder, CARD), config.get("base_model_name_or_path")
    try:
        if path:
            prompt = SoftPrompt(values, Card.from_json(_read_text(path)))
            if prompt.card.values_sha256 not in (None, prompt.sha256):
                raise ValueError(
                    f"the numbers are not those that were saved with {CARD} (sha256 {prompt.sha256[:12]}, wanted "
                    f"{prompt.card.values_sha256[:12]}): the file is damaged, or another's; copy the folder again"
                )
            return prompt
        card = Card(
            model_name=name if isinstance(name, str) and name else None,
            model_fingerprint=None,
            is_encoder_decoder=config["task_type"] == TASK_TYPES[True],
            width=width,
            num_layers=config.get("num_layers"),
            num_heads=config.get("num_attention_heads"),
        )
        return SoftPrompt(values, card)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _content(prompt: SoftPrompt, place: str) -> dict[str, bytes]:
    """A prompt's files by name. place: what commands will call it."""
    card = replace(prompt.card, values_sha256=prompt.sha256, format_version=FORMAT_VERSION)
    return {
        WEIGHTS: to_safetensors({KEY: prompt.values.flatten(1)}, metadata={"format": "pt"}),
        CONFIG: (json.dumps(_adapter_config(prompt), indent=2) + "\n").encode(),
        CARD: card.to_json().encode(),
        README: _readme(prompt, place).encode(),
    }


def _replace_files(folder: Path, content: dict[str, bytes]) -> None:
    """Put all files in place, or none.

    The files are written to a folder inside `folder`, and renaming that folder to `JOURNAL` is the
    one step that counts: until then readers see the old files, afterwards the journal's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder) as opened, locked(opened):
        _empty_journal(folder)
        for left_over in folder.glob(STAGING + "*"):
            shutil.rmtree(left_over, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
        try:
            for name, data in content.items():
                write_whole(staging / name, data)
            _sync(staging)
            os.rename(staging, folder / JOURNAL)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        _sync(folder)
        _empty_journal(folder)
    _sync(folder.parent)


def _empty_journal(folder: Path) -> None:
    journal = folder / JOURNAL
    if not journal.is_dir():
        return
    for name in (WEIGHTS, CONFIG, CARD, README):
        if (journal / name).exists():
            os.replace(journal / name, folder / name)
    _sync(folder)
    os.rmdir(journal)


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """The folder itself, to be locked or synced; None on Windows, which cannot open one."""
    if os.name == "nt":
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    with _opened(folder) as opened:
        if opened is not None:
            os.fsync(opened)


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / JOURNAL / name, folder / name):
        check_file(path)
        if path.is_file():
            return path
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(
            f"there is no prompt folder {folder}; give one that `softprompt train` wrote, or hf://ORG/NAME"
        )
    path = _find(folder, CONFIG)
    if path is None:
        raise ValueError(f"{folder} holds no {CONFIG}, so it is not a prompt folder")
    config = parse_object(_read_text(path), str(path))
    kind, task_type = config.get("peft_type"), config.get("task_type")
    if kind is None:
        raise ValueError(
            f"{path} names no peft_type, so it is not an adapter of PEFT's; wanted one of {', '.join(PEFT_TYPES)}"
        )
    if kind not in PEFT_TYPES:
        raise ValueError(
            f"{folder} holds a PEFT adapter of type {kind}, which is no prompt; wanted one of {', '.join(PEFT_TYPES)}"
        )
    if task_type not in TASK_TYPES.values():
        wanted = " or ".join(TASK_TYPES.values())
        raise ValueError(f"{folder} holds a prompt for the PEFT task type {task_type}; wanted {wanted}")
    if kind in KV_TYPES and task_type == TASK_TYPES[True]:
        raise ValueError(
            f"{folder} holds keys and values for an encoder-decoder ({kind}); only decoder-only models take them"
        )
    for name in ("num_virtual_tokens", "num_layers", "num_attention_heads"):
        count = config.get(name)
        if count is not None and (type(count) is not int or count < 1):
            raise ValueError(f"{path} says {name} is {count!r}; wanted a whole number from 1")
    return config


def _as_kv(values: Float[Tensor, "p n"], config: dict[str, Any], folder: Path) -> Float[Tensor, "p layers h e"]:
    """PEFT's rows, which hold each layer's keys and then its values, layer after layer.

    It writes what a projection made rather than the projection, so that there is nothing to fold.
    """
    counts: list[Any] = [config.get(name) for name in ("num_layers", "num_attention_heads", "token_dim")]
    if all(type(count) is int and count > 0 for count in counts):
        layers, heads, width = counts
        if width % heads == 0 and values.shape[1] == 2 * layers * width:
            return values.unflatten(1, (2 * layers, heads, width // heads))
    raise ValueError(
        f"{folder} holds rows of {values.shape[1]} numbers, but its {CONFIG} says num_layers {counts[0]}, "
        f"num_attention_heads {counts[1]} and token_dim {counts[2]}, whose keys and values they are not; copy it again"
    )


def _read_weights(folder: Path) -> Float[Tensor, "rows d"]:
    path = _find(folder, WEIGHTS)
    if path is None and (folder / "adapter_model.bin").exists():
        raise ValueError(
            f"{folder}/adapter_model.bin is a pickle, which can run any code when it is read; save "
            "the prompt again with PEFT's save_pretrained(safe_serialization=True)"
        )
    if path is None:
        raise ValueError(f"{folder} holds no {WEIGHTS}, so its numbers are missing; copy the folder again")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if names != [KEY]:
                raise ValueError(f"{path} holds the tensors {names[:5]}; wanted just {KEY!r}")
            part = file.get_slice(KEY)
            shape, dtype = part.get_shape(), part.get_dtype()
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"{path} holds an array of shape {shape}; wanted [prompt tokens, width]")
            if dtype not in ("F32", "BF16", "F16"):  # these become float32 without loss
                raise ValueError(f"{path} holds numbers of type {dtype}; wanted F32, BF16 or F16")
            return file.get_tensor(KEY).to(torch.float32)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy it again") from error


def _adapter_config(prompt: SoftPrompt) -> dict[str, Any]:
    """PEFT's own keys. One submodule: an encoder-decoder otherwise gets 2p rows, half of them dead.

    Layers and heads play no part in a prompt, but where they are null PEFT looks for them in the model's configuration,
    and refuses models that name them otherwise. So 1 stands for a number that is not known.
    """
    config = {
        "auto_mapping": None,
        "base_model_name_or_path": prompt.card.model_name,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": prompt.card.num_heads or 1,
        "num_layers": prompt.card.num_layers or 1,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": prompt.length,
        "peft_type": "PROMPT_TUNING",
        "peft_version": PEFT_VERSION,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": TASK_TYPES[prompt.card.is_encoder_decoder],
        "token_dim": prompt.width,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    if prompt.is_kv:
        layers, heads, width = prompt.values.shape[1:]
        config = {name: value for name, value in config.items() if not name.startswith(("prompt_", "tokenizer_"))}
        config |= {"peft_type": KV_TYPES[0], "num_frozen_tokens": 0}  # PEFT's default is 1
        config |= {"num_layers": layers // 2, "num_attention_heads": heads, "token_dim": heads * width}
    return config


def _readme(prompt: SoftPrompt, place: str) -> str:
    """The hub's model card: what the prompt is, what it scores, how to load it."""
    card = prompt.card
    model = card.model_name or "an unnamed model"
    auto = "AutoModelForSeq2SeqLM" if card.is_encoder_decoder else "AutoModelForCausalLM"
    on_hub = card.model_name is not None and is_hub_id(card.model_name)
    lines = ["---", "library_name: peft", "pipeline_tag: text-generation"]
    if on_hub:
        lines += [f"base_model: {json.dumps(model)}", "base_model_relation: adapter"]
    tags = ["softprompt", "prompt-tuning"] + ([card.task] if card.task else [])
    lines.append(f"tags: {json.dumps(tags)}")
    if card.dev_metrics:
        lines.append(f"metrics: {json.dumps(list(card.dev_metrics))}")
    what = f"A soft prompt of {prompt.length} tokens (width {prompt.width})"
    method = "The method is prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv 2104.08691)"
    if prompt.is_kv:
        what = f"Trained keys and values of {prompt.length} tokens, in each of {prompt.values.shape[1] // 2} layers,"
        method = "They stand in front of those of a text, as in prefix tuning (Li and Liang 2021, arXiv 2101.00190)"
    trained = f", trained on `{card.task}`" if card.task else ""
    lines.append(f"""---

# {place.rpartition("/")[2]}

{what} for the frozen model `{model}`{trained}.
{method}.""")
    if card.dev_metrics:
        lines += ["", "| metric | dev |", "|---|--:|"]
        lines += [f"| {metric} | {value} |" for metric, value in card.dev_metrics.items()]
        if card.selection:
            lines += ["", f"What chose its step and setting: {card.selection}."]
    if card.model_name:
        imported = f"from transformers import {auto}\n" if on_hub else ""
        loaded = (
            f"{auto}.from_pretrained({json.dumps(model)})"
            if on_hub
            else f"...  # {model} as a model of transformers ({auto})"
        )
        lines.append(f"""
With softprompt, which formats the text as in training and checks that the model is the right one:

```
softprompt predict --model {model} --prompt {place}
```

With PEFT:

```python
from peft import PeftModel
{imported}
model = {loaded}
model = PeftModel.from_pretrained(model, {json.dumps(place.removeprefix("hf://"))})
```""")
    if card.text:
        lines += ["", "How a text must look:", "", "```json"]
        lines += [json.dumps(card.text, indent=2, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"
