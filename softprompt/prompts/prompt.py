"""A soft prompt: rows of numbers to put in front of embedded text, and the card that keeps them usable.

Shapes, in every file: b rows, k prompts, p prompt tokens, t input tokens, l target tokens,
c candidates, d width, v vocabulary. In a mask True means attend.

A prompt on disk is a PEFT adapter folder, so PEFT loads it with no export step.
"""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, get_origin, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from softprompt.base.files import write_whole
from softprompt.base.names import nearest
from softprompt.models import is_hub_id

FORMAT_VERSION = 1  # of softprompt.json; raised when a reader of the old one would go wrong
MAX_LENGTH = 500  # ours: more than three times the longest prompt of the paper (section 3.2: 150)
NUM_COMMON = 5_000  # paper, section 3.2; prompt_tuning/prompts.py, from_sample_of_embeddings
PEFT_VERSION = "0.21.2"  # the PEFT whose keys adapter_config.json has

WEIGHTS, CONFIG, CARD, README = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "softprompt.json",
    "README.md",
)
KEY = "prompt_embeddings"
TASK_TYPES = {True: "SEQ_2_SEQ_LM", False: "CAUSAL_LM"}  # PEFT's words for "is an encoder-decoder"
STAGING, JOURNAL = ".softprompt-saving-", ".softprompt-saved"

Drawn = list[dict[str, Any]]  # for each row of a new prompt: the ids and pieces it was made of


@runtime_checkable
class HasPieces(Protocol):
    """What the initialisers ask of a model's tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The text's ids, with no special token added."""
        ...

    def piece(self, id: int) -> str:
        """One token as text for people."""
        ...

    def ordinary_ids(self) -> list[int]:
        """Ids of ordinary text, most frequent first: no specials, sentinels, bytes or unused rows."""
        ...


def _installed_version() -> str:
    try:
        return metadata.version("softprompt")
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything beside the numbers that makes a prompt usable for ever.

    `model_fingerprint` is None for a prompt that came from elsewhere without a card: then only its
    width can be checked. `text` is the text format (template, separator, leading space, end of
    sequence, lengths, truncation); `init` says how the prompt began (kind, seed, and for every row
    the tokens it was made of); `recipe` is the preset and its numbers; `parent` the sha256 of the
    prompt it started from.
    """

    model_name: str | None
    model_fingerprint: str | None
    is_encoder_decoder: bool
    width: int
    task: str | None = None
    task_version: str | None = None
    labels: tuple[str, ...] = ()
    text: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    selection: str | None = None
    dev_metrics: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    seed: int | None = None
    parent: str | None = None
    softprompt_version: str = field(default_factory=_installed_version)
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The card as JSON text that `from_json` reads back to an equal card."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> "Card":
        """The card that `to_json` wrote.

        Raises:
            ValueError: not JSON, a newer format, a key this version does not know, a missing key,
                or a value of the wrong type.
        """
        record = _parse_json(text, "a prompt's card")
        version = record.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"the card has format {version} (softprompt {record.get('softprompt_version')}) and this "
                f"softprompt reads formats up to {FORMAT_VERSION}; upgrade softprompt"
            )
        labels = record.get("labels")
        if isinstance(labels, list) and all(isinstance(label, str) for label in labels):
            record["labels"] = tuple(labels)
        _check_card_record(record)
        return Card(**record)


def _check_card_record(record: dict[str, Any]) -> None:
    known = {f.name: f for f in fields(Card)}
    for name, value in record.items():
        if name not in known:
            raise ValueError(f"the card has the unknown key {name!r}{nearest(name, known)}")
        origin: Any = get_origin(known[name].type)
        kind: Any = origin if origin in (dict, tuple) else known[name].type
        if not isinstance(value, kind):
            raise ValueError(f"the card's {name} is {value!r}; wanted {getattr(kind, '__name__', kind)}")
    for name, f in known.items():
        if name not in record and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"the card lacks the key {name!r}")


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """One soft prompt: `values` [p d], kept as a contiguous float32 copy on the CPU, and its card.

    Raises:
        ValueError: no row, a NaN or an infinity among the values, or a card of another width.
    """

    values: Float[Tensor, "p d"]
    card: Card

    def __post_init__(self) -> None:
        """Make the values our own and check them."""
        values = self.values.detach().to("cpu", torch.float32, copy=True).contiguous()
        object.__setattr__(self, "values", values)
        if self.length < 1:
            raise ValueError("a prompt needs at least one row, and this one has none")
        if not torch.isfinite(values).all():
            num_bad = int((~torch.isfinite(values)).sum())
            raise ValueError(
                f"{num_bad} of the prompt's {values.numel()} values are NaN or infinite (it diverged, or its "
                "file is damaged); use an earlier step, or train with a lower learning rate"
            )
        if self.card.width != self.width:
            raise ValueError(
                f"the card says width {self.card.width} and the values have width {self.width}; "
                "they do not belong together"
            )

    @property
    def length(self) -> int:
        """Number of rows p: prompt tokens."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Width d of the model it belongs to."""
        return self.values.shape[1]

    @property
    def sha256(self) -> str:
        """Hash (hex) of the shape and the float32 bytes: the same numbers have the same one."""
        content = self.values.numpy().astype("<f4", copy=False).tobytes()
        return hashlib.sha256(f"{self.length}x{self.width}:".encode() + content).hexdigest()


def check_fits(prompt: SoftPrompt, *, model_name: str, fingerprint: str, width: int) -> None:
    """Refuse a prompt that was trained for another model. The fingerprint decides, not the name.

    A prompt without a recorded fingerprint is checked for its width only, with a warning.

    Raises:
        ValueError: the prompt belongs to another model, or has another width.
    """
    card = prompt.card
    theirs = card.model_name or "an unnamed model"
    if card.model_fingerprint == fingerprint and prompt.width == width:
        return
    if card.model_fingerprint is not None or prompt.width != width:
        raise ValueError(
            f"the prompt was trained for {_described(theirs, card.model_fingerprint, prompt.width)}, but "
            f"{_described(model_name, fingerprint, width)} is loaded; load {theirs}, or train a new prompt "
            f"for {model_name}"
        )
    warnings.warn(
        f"the prompt (for {theirs}) records no model fingerprint, so only its width ({width}) was checked "
        f"against {model_name}",
        stacklevel=2,
    )


def _described(name: str, fingerprint: str | None, width: int) -> str:
    known = f"fingerprint {fingerprint[:8]}, " if fingerprint else ""
    return f"{name} ({known}width {width})"


def save_prompt(prompt: SoftPrompt, folder: str | Path) -> None:
    """Write the prompt as a PEFT adapter folder with our card and a README for the hub.

    A kill or a full disk at any moment leaves what `load_prompt` reads from the folder as it was
    before or as it is now, whole. Other files in the folder are not touched.

    Raises:
        ValueError: `folder` is a file.
        OSError: it cannot be written (one line that says why).
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; a prompt is saved as a folder, so give another name")
    content = {
        WEIGHTS: to_safetensors({KEY: prompt.values}, metadata={"format": "pt"}),
        CONFIG: (json.dumps(_adapter_config(prompt), indent=2) + "\n").encode(),
        CARD: prompt.card.to_json().encode(),
        README: _readme(prompt, folder.name).encode(),
    }
    try:
        _replace_files(folder, content)
    except OSError as error:
        raise OSError(
            f"could not save the prompt to {folder} ({error.strerror or error}); what it held before is "
            "whole; free some space or choose another folder"
        ) from error


def load_prompt(folder: str | Path) -> SoftPrompt:
    """The prompt in a folder that `save_prompt` or PEFT wrote.

    PEFT gives an encoder-decoder 2p rows and uses the first p; the other rows are dropped, with a
    warning. A folder without our card gets one that says only what PEFT's configuration says.

    Raises:
        ValueError: no prompt there, another kind of adapter, a pickle, or a damaged file.
    """
    folder = Path(folder)
    config = _read_adapter_config(folder)
    values = _read_weights(_find(folder, WEIGHTS), folder)
    length = config.get("num_virtual_tokens")
    if length is not None:
        values = _live_rows(values, length, folder)
    path = _find(folder, CARD)
    if path is None:
        return SoftPrompt(values, _card_from_peft(config, values.shape[1]))
    try:
        return SoftPrompt(values, Card.from_json(_read_text(path)))
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _replace_files(folder: Path, content: dict[str, bytes]) -> None:
    """Put all files in place, or none.

    The files are written to a folder inside `folder`, and renaming that folder to `JOURNAL` is the
    one step that counts: until then readers see the old files, afterwards the journal's.
    """
    folder.mkdir(parents=True, exist_ok=True)
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


def _sync(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _find(folder: Path, name: str) -> Path | None:
    for path in (folder / JOURNAL / name, folder / name):
        if path.is_file():
            return path
    return None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error


def _parse_json(text: str, what: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{what} is a JSON {type(record).__name__}; wanted an object")
    return record


def _read_adapter_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ValueError(f"there is no prompt folder {folder}; give the folder that `softprompt train` wrote")
    path = _find(folder, CONFIG)
    if path is None:
        raise ValueError(f"{folder} holds no {CONFIG}, so it is not a prompt folder")
    config = _parse_json(_read_text(path), str(path))
    kind, task_type = config.get("peft_type"), config.get("task_type")
    if kind != "PROMPT_TUNING":
        raise ValueError(f"{folder} holds a PEFT adapter of type {kind}; wanted PROMPT_TUNING")
    if task_type not in TASK_TYPES.values():
        wanted = " or ".join(TASK_TYPES.values())
        raise ValueError(f"{folder} holds a prompt for the PEFT task type {task_type}; wanted {wanted}")
    length = config.get("num_virtual_tokens")
    if length is not None and (type(length) is not int or length < 1):
        raise ValueError(f"{path} says num_virtual_tokens is {length!r}; wanted a whole number from 1")
    return config


def _read_weights(path: Path | None, folder: Path) -> Float[Tensor, "p d"]:
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


def _live_rows(values: Float[Tensor, "rows d"], length: int, folder: Path) -> Float[Tensor, "p d"]:
    if values.shape[0] == length:
        return values
    if values.shape[0] != 2 * length:
        raise ValueError(f"{folder} holds {values.shape[0]} rows and its {CONFIG} says {length}; copy the folder again")
    warnings.warn(
        f"{folder} holds {2 * length} rows, as PEFT gives an encoder-decoder; only the first {length} are "
        "ever used, so the second half was dropped",
        stacklevel=3,
    )
    return values[:length]


def _card_from_peft(config: dict[str, Any], width: int) -> Card:
    name = config.get("base_model_name_or_path")
    return Card(
        model_name=name if isinstance(name, str) and name else None,
        model_fingerprint=None,
        is_encoder_decoder=config["task_type"] == TASK_TYPES[True],
        width=width,
    )


def _adapter_config(prompt: SoftPrompt) -> dict[str, Any]:
    """PEFT's own keys. One submodule: an encoder-decoder otherwise gets 2p rows, half of them dead."""
    return {
        "auto_mapping": None,
        "base_model_name_or_path": prompt.card.model_name,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": None,
        "num_layers": None,
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


def _readme(prompt: SoftPrompt, name: str) -> str:
    """The hub's model card: what the prompt is, what it scores, how to load it."""
    card = prompt.card
    model = card.model_name or "an unnamed model"
    lines = [*_front_matter(card), "", f"# {name}", ""]
    lines += [
        f"A soft prompt of {prompt.length} tokens (width {prompt.width}) for the frozen model `{model}`"
        + (f", trained on `{card.task}`." if card.task else "."),
        "The method is prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv 2104.08691).",
    ]
    if card.dev_metrics:
        lines += ["", "| metric | dev |", "|---|--:|"]
        lines += [f"| {metric} | {value} |" for metric, value in card.dev_metrics.items()]
        if card.selection:
            lines += ["", f"What chose its step and setting: {card.selection}."]
    if card.model_name:
        lines += ["", *_how_to_load(card, model, name)]
    if card.text:
        lines += ["", "How a text must look:", "", "```json"]
        lines += [json.dumps(card.text, indent=2, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"


def _front_matter(card: Card) -> list[str]:
    tags = ["softprompt", "prompt-tuning", *([card.task] if card.task else [])]
    lines = ["---", "library_name: peft"]
    if card.model_name and is_hub_id(card.model_name):
        lines.append(f"base_model: {json.dumps(card.model_name)}")
    lines.append(f"tags: {json.dumps(tags)}")
    if card.dev_metrics:
        lines.append(f"metrics: {json.dumps(list(card.dev_metrics))}")
    return [*lines, "---"]


def _how_to_load(card: Card, model: str, name: str) -> list[str]:
    auto = "AutoModelForSeq2SeqLM" if card.is_encoder_decoder else "AutoModelForCausalLM"
    if is_hub_id(model):
        given = [f"from transformers import {auto}", "", f"model = {auto}.from_pretrained({json.dumps(model)})"]
    else:
        given = ["", f"model = ...  # {model} as a model of transformers ({auto})"]
    return [
        "With softprompt, which formats the text as in training and checks that the model is the right one:",
        "",
        "```",
        f"softprompt predict --model {model} --prompt {name}",
        "```",
        "",
        "With PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        *given,
        f"model = PeftModel.from_pretrained(model, {json.dumps(name)})",
        "```",
    ]


def from_vocabulary(
    embeddings: Float[Tensor, "v d"], tokenizer: HasPieces, length: int, *, generator: torch.Generator
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """Rows of `length` distinct tokens drawn from the 5,000 most frequent (paper, section 3.2).

    Only ids of ordinary text are drawn; the authors' code takes ids 0 to 4,999, pad and end of
    sequence among them. Fewer such ids than rows (ByT5): drawn with replacement, with a warning.

    Raises:
        ValueError: a length outside 1 to 500, or no ordinary ids.
    """
    _check_length(length)
    common = tokenizer.ordinary_ids()[:NUM_COMMON]
    if not common:
        raise ValueError("the tokenizer has no ids of ordinary text to draw from; start from uniform")
    if length <= len(common):
        picks = torch.randperm(len(common), generator=generator)[:length]
    else:
        warnings.warn(
            f"the prompt has {length} rows and the vocabulary {len(common)} ids of ordinary text; "
            "they were drawn with replacement",
            stacklevel=2,
        )
        picks = torch.randint(len(common), (length,), generator=generator)
    ids = [common[pick] for pick in picks.tolist()]
    return _rows(embeddings, ids), [_described_row(tokenizer, [id]) for id in ids]


def from_class_labels(
    embeddings: Float[Tensor, "v d"],
    tokenizer: HasPieces,
    length: int,
    *,
    labels: Sequence[str],
    generator: torch.Generator,
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """One row for each label, in order: the mean of its pieces. The other rows are sampled vocabulary.

    Paper, section 3.2; prompt_tuning/prompts.py, from_embedded_list. The sampled rows are those of
    `from_vocabulary` with the same generator. Decoder-only models take labels with a leading space.

    Raises:
        ValueError: a length outside 1 to 500, no labels, or a label without pieces.
    """
    values, drawn = from_vocabulary(embeddings, tokenizer, length, generator=generator)
    if not labels:
        raise ValueError("the task has no labels to start from; start from vocab instead")
    if len(labels) > length:
        warnings.warn(
            f"{len(labels)} labels for {length} prompt rows: the last {len(labels) - length} were skipped",
            stacklevel=2,
        )
    for row, label in enumerate(labels[:length]):
        ids = tokenizer.encode(label)
        if not ids:
            raise ValueError(f"the label {label!r} has no tokens; start from vocab instead")
        values[row] = _rows(embeddings, ids).mean(dim=0)
        drawn[row] = {"label": label, **_described_row(tokenizer, ids)}
    return values, drawn


def from_uniform(
    embeddings: Float[Tensor, "v d"], length: int, *, generator: torch.Generator, low: float = -0.5
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """Numbers drawn uniformly from `low` to 0.5.

    The paper has -0.5 (section 3.2); the authors' code has 0 (flax's uniform(scale=0.5)).

    Raises:
        ValueError: a length outside 1 to 500, or `low` not below 0.5.
    """
    _check_length(length)
    if not low < 0.5:
        raise ValueError(f"uniform from {low} to 0.5 is empty; give a lower bound below 0.5")
    unit = torch.rand(length, embeddings.shape[1], generator=generator)
    return low + (0.5 - low) * unit, []


def from_text(
    embeddings: Float[Tensor, "v d"],
    tokenizer: HasPieces,
    length: int,
    *,
    text: str,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """One row for each token of the text; the other rows are sampled vocabulary.

    prompt_tuning/prompts.py, from_embedded_string. A longer text is cut at its end, with a warning.

    Raises:
        ValueError: a length outside 1 to 500, or a text without tokens.
    """
    values, drawn = from_vocabulary(embeddings, tokenizer, length, generator=generator)
    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError(f"the text {text!r} has no tokens to start from; write it after 'text:'")
    if len(ids) > length:
        warnings.warn(f"the text has {len(ids)} tokens and the prompt {length}: its end was cut", stacklevel=2)
    ids = ids[:length]
    values[: len(ids)] = _rows(embeddings, ids)
    drawn[: len(ids)] = [_described_row(tokenizer, [id]) for id in ids]
    return values, drawn


def from_prompt(
    embeddings: Float[Tensor, "v d"], length: int, *, source: SoftPrompt
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """A copy of another prompt's rows (transfer).

    Raises:
        ValueError: another length or width.
    """
    _check_length(length)
    width = embeddings.shape[1]
    if (source.length, source.width) != (length, width):
        raise ValueError(
            f"the prompt to start from has {source.length} tokens of width {source.width}; wanted {length} "
            f"of width {width}: set the length to {source.length}, and use the model it was trained for"
        )
    return source.values.clone(), []


def initial_prompt(
    init: str,
    *,
    embeddings: Float[Tensor, "v d"],
    tokenizer: HasPieces,
    length: int,
    generator: torch.Generator,
    labels: Sequence[str] = (),
    low: float = -0.5,
    model_name: str | None = None,
    fingerprint: str | None = None,
) -> tuple[Float[Tensor, "p d"], dict[str, Any]]:
    """The values [p d] that `init` asks for, float32 on the CPU, and the card's `init` entry.

    `init` is class-labels, vocab, uniform (from `low` to 0.5), text:WORDS, or the folder of a prompt. The
    entry has kind, seed and tokens (one item a row, empty where no tokens were drawn); from a prompt
    also its parent's sha256. With `model_name` and `fingerprint` given, a prompt to start from must
    belong to that model.

    Raises:
        ValueError: an unknown `init` (the nearest name is offered), or whatever the initialiser refuses.
    """
    entry: dict[str, Any] = {"kind": init, "seed": generator.initial_seed()}
    if init == "vocab":
        values, drawn = from_vocabulary(embeddings, tokenizer, length, generator=generator)
    elif init == "class-labels":
        values, drawn = from_class_labels(embeddings, tokenizer, length, labels=labels, generator=generator)
    elif init == "uniform":
        values, drawn = from_uniform(embeddings, length, low=low, generator=generator)
        entry["low"] = low
    elif init.startswith("text:"):
        text = init.removeprefix("text:")
        values, drawn = from_text(embeddings, tokenizer, length, text=text, generator=generator)
        entry |= {"kind": "text", "text": text}
    else:
        source = _source_prompt(init)
        if model_name is not None and fingerprint is not None:
            check_fits(source, model_name=model_name, fingerprint=fingerprint, width=embeddings.shape[1])
        values, drawn = from_prompt(embeddings, length, source=source)
        entry |= {"kind": "prompt", "parent": source.sha256}
    return values, entry | {"tokens": drawn}


def _source_prompt(init: str) -> SoftPrompt:
    if not os.path.exists(init):
        names = ["class-labels", "vocab", "uniform", "text:"]
        raise ValueError(
            f"no way to start a prompt is named {init!r}, and no prompt folder is{nearest(init, names)}; "
            "there are class-labels, vocab, uniform, text:WORDS, or a prompt folder"
        )
    return load_prompt(init)


def _check_length(length: int) -> None:
    if not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"a prompt length of {length} was asked for; wanted 1 to {MAX_LENGTH}")


def _rows(embeddings: Float[Tensor, "v d"], ids: list[int]) -> Float[Tensor, "n d"]:
    return embeddings.detach()[torch.tensor(ids, device=embeddings.device)].to("cpu", torch.float32)


def _described_row(tokenizer: HasPieces, ids: list[int]) -> dict[str, Any]:
    return {"ids": ids, "pieces": [tokenizer.piece(id) for id in ids]}


def stack(
    prompts: Sequence[Float[Tensor, "_ d"]],
) -> tuple[Float[Tensor, "k p d"], Int[Tensor, " k"]]:
    """Prompts of different lengths as one array, zeros after the short ones, and their lengths.

    Gradients flow back to each prompt.
    """
    assert prompts, "stack needs at least one prompt"
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=prompts[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True), lengths


def prepend(
    prompts: Float[Tensor, "k p d"],
    lengths: Int[Tensor, " k"],
    member: Int[Tensor, " b"],
    x: Float[Tensor, "b t d"],
    mask: Bool[Tensor, "b t"],
    *,
    side: Literal["right", "left"] = "right",
) -> tuple[Float[Tensor, "b total d"], Bool[Tensor, "b total"]]:
    """Each row's own prompt in front of its embedded input (paper, section 2), and the mask of both.

    Row i wears the first `lengths[member[i]]` rows of `prompts[member[i]]`; -1 means no prompt. The
    input's mask is True up to each row's end. Prompt and input are adjacent in every row; padding is
    zeros, all on one `side`; `total` is the longest row's. The result has x's dtype, and gradients
    flow back to `prompts`, on a CPU always summed in the same order.
    """
    none = lengths.new_zeros(1)  # member -1 finds it at the end
    prompt_lengths = torch.cat([lengths, none])[member]  # [b]
    ends = prompt_lengths + mask.sum(dim=1)
    total = int(ends.max()) if len(ends) else 0
    worn = _worn(prompts, member).to(x.dtype)
    p, t = worn.shape[1], x.shape[1]
    if side == "right" and bool((prompt_lengths == p).all()):  # the commonest case needs no moving about
        both = torch.cat([worn, torch.where(mask[:, :, None], x, 0)], dim=1)[:, :total]
        return both, torch.arange(total, device=x.device) < ends[:, None]

    starts = total - ends if side == "left" else torch.zeros_like(ends)
    position = torch.arange(total, device=x.device) - starts[:, None]  # [b total], 0 where a row begins
    seen = (position >= 0) & (position < ends[:, None])
    unused = (p - prompt_lengths)[:, None]  # prompt rows to leave out in front of the input
    source = torch.where(seen, position + torch.where(position < prompt_lengths[:, None], 0, unused), 0)
    source += torch.arange(len(x), device=x.device)[:, None] * (p + t)
    both = torch.cat([worn, x], dim=1).flatten(0, 1).index_select(0, source.flatten())
    return torch.where(seen[:, :, None], both.unflatten(0, source.shape), 0), seen


def _worn(prompts: Float[Tensor, "k p d"], member: Int[Tensor, " b"]) -> Float[Tensor, "b _ d"]:
    """Each row's prompt, any of them where it has none.

    index_select, because the gradient of plain indexing is summed by several threads in any order.
    """
    assert not len(member) or -1 <= int(member.min()) <= int(member.max()) < len(prompts)
    if len(prompts) == 0:
        return prompts.new_zeros(len(member), 0, prompts.shape[2])
    return prompts.index_select(0, member.clamp(min=0))
