"""A frozen model with prompts as extra tokens: an ordinary transformers folder, which any engine can serve.

Each row of a prompt becomes the embedding of a token of its own, and a text wears the prompt with those tokens in
front of it. The new ids are read and never written. An output layer without a bias cannot forbid an id: if its row is
not a mean of the others, some state makes its logit the greatest. So the output layer gets weights of its own, in
which a new id has the mean of all rows: its logit is the mean of all logits, never the greatest, and its probability
their geometric mean. generation_config.json forbids the new ids outright to the engines that read it, and `MANIFEST`
names them for the engines that take such a list with a request.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from re import fullmatch
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.base.files import held, whole_folder
from softprompt.base.names import nearest
from softprompt.models import FrozenLM, TextFormat, default_format, encode_inputs, read_checkpoint, write_checkpoint
from softprompt.prompts.prompt import SoftPrompt, check_fits

MANIFEST = "softprompt_prompts.json"
FORMAT_VERSION = 1  # of the manifest; raised when a reader of the old one would go wrong
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NEVER = -1e4  # ours: a bias whose exp is 0 in every type, and that every type holds
# Ours: texts for which one string must give the ids that its parts give.
PROBES = ("warm", "The film is warm, and funny.", "question: is it so? passage: 3 of them did")


@dataclass(frozen=True, kw_only=True)
class Wearing:
    """How a text wears a prompt: as ids, which is exact, and as one string, where a string gives the same ids."""

    prompt_ids: list[int]
    """The prompt's tokens."""
    ids_before: list[int]
    """Ids between the prompt and the text: the begin of sequence, or the start of a chat template."""
    ids_after: list[int]
    """Ids behind the text: the separator, or the end of sequence."""
    prefix: str | None
    """What to put in front of a text; None where no string gives exactly these ids."""
    suffix: str | None
    """What to put behind it."""
    add_special_tokens: bool
    """Whether the tokenizer is to add its special tokens to prefix, text and suffix."""


def export_vocabulary(
    prompts: Mapping[str, SoftPrompt], folder: str | Path, *, model: str | Path | None = None, dtype: str = "auto"
) -> dict[str, Wearing]:
    """Write a model and its tokenizer with prompts as extra tokens; returns how to wear each prompt, by name.

    prompts: by the name in their tokens, `<NAME:0>`, `<NAME:1>`, … model: where it is; None: the one that a card
    names. dtype: float32, bfloat16 or float16; auto: the checkpoint's own, which leaves its weights as they are to the
    bit. The folder gets the model, the tokenizer, `MANIFEST` and a README, or is not made at all.

    Raises:
        ValueError: no prompts, a prompt of another model, a name that will not do, numbers that the type cannot
            hold, a quantised model, or a folder that holds something already.
        OSError: it cannot be written (one line that says why).
    """
    folder = Path(folder)
    base = read_base(checked_source(prompts, model, folder, dtype))
    lm = base.lm
    number = lm.dtype if dtype == "auto" else DTYPES[dtype]
    kind = str(number).removeprefix("torch.")
    worn, manifest = add_tokens(base, prompts, kind)
    new_ids = range(base.num_ids, manifest["never_written"]["last"] + 1)
    config = copy.deepcopy(lm.model.config)
    for part in (config, config.get_text_config()):
        part.vocab_size = new_ids.stop
        part.tie_word_embeddings = False
        if hasattr(part, "scale_decoder_outputs"):
            part.scale_decoder_outputs = False
    weights = _weights(base, prompts, number)
    with held(Path(folder), is_file=True), whole_folder(folder) as staging:
        write_checkpoint(
            staging, type(lm.model), config, weights, base.tokenizer, generation_config=base.generation_config
        )
        path = staging / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        settings.pop("_from_model_config", None)  # so marked, they are made again from the model's by transformers 4
        settings["suppress_tokens"] = sorted({*(settings.get("suppress_tokens") or ()), *new_ids})
        path.write_text(_as_json(settings), encoding="utf-8")
        rounded = f"The prompts were trained in float32 and are rounded to {kind}, as softprompt rounds them in use."
        write_papers(
            staging,
            manifest,
            IN_TRANSFORMERS,
            IN_TRANSFORMERS_NOTES
            + ("All numbers are float32, as they were in training." if number == torch.float32 else rounded),
            name=folder.resolve().name,
            library="transformers",
            place=json.dumps(folder.resolve().name),
            auto="AutoModelForSeq2SeqLM" if lm.is_encoder_decoder else "AutoModelForCausalLM",
            answer="[0]" if lm.is_encoder_decoder else "[0, inputs.input_ids.shape[1] :]",
        )
    return worn


def checked_source(prompts: Mapping[str, SoftPrompt], model: str | Path | None, folder: Path, dtype: str) -> str | Path:
    """Where the model is, if what was asked makes sense."""
    if not prompts:
        raise ValueError("no prompt was given; name at least one")
    for name in prompts:
        if not fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(
                f"{name!r} cannot be the name of tokens; give one of letters, digits, '.', '_' and '-': NAME=DIR"
            )
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"no dtype named {dtype!r}{nearest(dtype, DTYPES)}; there are auto, {', '.join(DTYPES)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; a model with prompts needs a new folder")
    source = model or next((p.card.model_name for p in prompts.values() if p.card.model_name), None)
    if source is None:
        raise ValueError("the prompts do not record their model; give it with --model")
    return source


@dataclass(frozen=True)
class Base:
    """The model to export, as its checkpoint has it."""

    lm: FrozenLM
    tokenizer: Any
    weights: dict[str, Tensor]
    generation_config: Any

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table, of which the tokenizer may use fewer."""
        return len(self.table)

    @property
    def table(self) -> Float[Tensor, "v d"]:
        """The embedding table."""
        return self.lm.model.get_input_embeddings().weight


def read_base(source: str | Path) -> Base:
    """The model at `source`. ValueError for one that is quantised, or none."""
    model, tokenizer, name = read_checkpoint(source)
    if getattr(model.config, "quantization_config", None) is not None:
        raise ValueError(f"the weights of {name} are quantised; export from the model as it was before")
    weights = model.state_dict()  # taken first: a FrozenLM puts modules of its own into a T5
    return Base(FrozenLM(model, tokenizer, name=name), tokenizer, weights, model.generation_config)


def _form_of(name: str, prompt: SoftPrompt, lm: FrozenLM) -> TextFormat:
    """The text format of a prompt, which must be one of this model's."""
    card = prompt.card
    try:
        check_fits(prompt, lm)
        if prompt.is_kv:
            raise ValueError("it is keys and values of every layer, which no token of a vocabulary can stand for")
        form = TextFormat.from_json(card.text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if card.is_encoder_decoder != lm.is_encoder_decoder:
        kinds = {True: "an encoder-decoder", False: "a decoder-only model"}
        theirs, ours = kinds[card.is_encoder_decoder], kinds[lm.is_encoder_decoder]
        raise ValueError(f"{name}: the prompt is for {theirs}, and {lm.name} is {ours}; give its own model")
    if card.text:
        return form
    warnings.warn(f"{name} does not record its text format; {lm.name}'s usual one is taken", stacklevel=3)
    return default_format(lm)


def embedding_rows(base: Base, prompts: Mapping[str, SoftPrompt], number: torch.dtype) -> Float[Tensor, "n d"]:
    """The prompts' rows, one after another, as the embedding table has them in the type `number`."""
    embedding = base.lm.model.get_input_embeddings()
    scale = torch.as_tensor(getattr(embedding, "embed_scale", 1.0))  # Gemma's
    first = embedding.weight[:8]
    if not torch.equal(embedding(torch.arange(len(first))), first * scale.to(base.lm.dtype)):
        raise ValueError(
            f"{base.lm.name} embeds its tokens in a way that no new row can stand for; serve it with softprompt"
        )
    rows = []
    for name, prompt in prompts.items():
        rows.append((prompt.values / scale.to(number).float()).to(number))
        if not torch.isfinite(rows[-1]).all():
            kind = str(number).removeprefix("torch.")
            raise ValueError(f"{name}: the prompt has numbers too large for {kind}; give --dtype float32 or bfloat16")
    return torch.cat(rows)


def _weights(base: Base, prompts: Mapping[str, SoftPrompt], number: torch.dtype) -> dict[str, Tensor]:
    """All weights in the type `number`, with a row for each new id in the embedding table and the output layer."""
    lm, model = base.lm, base.lm.model
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    table = torch.cat([embedding.weight.to(number), embedding_rows(base, prompts, number)])
    num_new = len(table) - base.num_ids
    weights = {}
    for name, weight in base.weights.items():
        tied = weight.data_ptr() == embedding.weight.data_ptr()
        weights[name] = table if tied else weight.to(number) if weight.is_floating_point() else weight
    head = next(name for name, module in model.named_modules() if module is output)
    # T5 1.0 scales its decoder's states; where the output layer is not tied, engines do not.
    output_scale = lm.width**-0.5 if getattr(model.config, "scale_decoder_outputs", False) else 1.0
    scaled = output.weight.float() * output_scale
    weights[f"{head}.weight"] = torch.cat([scaled, scaled.mean(0, keepdim=True).expand(num_new, -1)]).to(number)
    if output.bias is not None:
        weights[f"{head}.bias"] = torch.cat([output.bias, output.bias.new_full((num_new,), NEVER)]).to(number)
    return weights


def add_tokens(base: Base, prompts: Mapping[str, SoftPrompt], dtype: str) -> tuple[dict[str, Wearing], dict[str, Any]]:
    """Give the tokenizer the prompts' tokens; returns how to wear each, by name, and the manifest.

    dtype: what the manifest calls the type that the prompts are rounded to.
    """
    forms = {name: _form_of(name, prompt, base.lm) for name, prompt in prompts.items()}
    tokens = _new_tokens(base, prompts)
    worn = {name: _wearing(tokens[name], form, base) for name, form in forms.items()}
    last = base.num_ids + sum(map(len, tokens.values())) - 1
    return worn, _manifest(base, prompts, worn, last, dtype)


def _new_tokens(base: Base, prompts: Mapping[str, SoftPrompt]) -> dict[str, list[str]]:
    """Give the tokenizer a token for each prompt row, after all rows of the embedding table; returns them by name.

    Rows without a token get one too, since a tokenizer numbers new tokens without a gap.
    """
    tokens = {name: [f"<{name}:{row}>" for row in range(prompt.length)] for name, prompt in prompts.items()}
    known = base.tokenizer.get_vocab()
    added = [f"<|unused:{id}|>" for id in range(len(base.tokenizer), base.num_ids)]
    first = base.num_ids - len(added)
    for name, rows in tokens.items():
        for token in rows:
            if token in known:
                raise ValueError(
                    f"{base.lm.name} has a token {token} already; name the prompt {name} otherwise: NAME=DIR"
                )
        added += rows
    base.tokenizer.add_tokens(added, special_tokens=True)
    ids = base.tokenizer.convert_tokens_to_ids(added)
    if ids != list(range(first, first + len(added))):
        raise ValueError(
            f"{base.lm.name} embeds {base.num_ids} ids, but its tokenizer gives a new token the id {ids[0]}; "
            "give a model and a tokenizer that belong together"
        )
    return tokens


def _wearing(tokens: list[str], form: TextFormat, base: Base) -> Wearing:
    """How a text wears the prompt of these tokens. Which strings give the right ids depends on the tokenizer: one puts
    a begin of sequence in front of the prompt, another a space behind an added token."""
    tokenizer = base.lm.tokenizer
    form = replace(form, max_input_length=max(form.max_input_length, 512))
    prompt_ids = base.tokenizer.convert_tokens_to_ids(tokens)
    encoded = [encode_inputs(text, form, tokenizer).ids for text in PROBES]
    ids, body = encoded[-1], tokenizer.encode(PROBES[-1])
    start = next(i for i in range(len(ids)) if ids[i : i + len(body)] == body)

    worn, head, tail = "".join(tokens), "", form.separator
    if form.chat:
        head, _, tail = tokenizer.chat(PROBES[0]).partition(PROBES[0])
    bos = base.tokenizer.bos_token if form.starts_with_bos else ""
    eos = base.tokenizer.convert_ids_to_tokens(tokenizer.eos_id) if form.inputs_end_with_eos else ""
    prefix, suffix, add_special_tokens = None, None, False
    for before, after, is_added in (
        (f"{worn}{head}", tail, True),
        (f"{worn}{bos}{head}", f"{tail}{eos}", False),
        (f"{worn}{head} ", tail, True),
        (f"{worn}{bos}{head} ", f"{tail}{eos}", False),
    ):
        joined = [base.tokenizer(before + text + after, add_special_tokens=is_added).input_ids for text in PROBES]
        if joined == [[*prompt_ids, *ids] for ids in encoded]:
            prefix, suffix, add_special_tokens = before, after, is_added
            break
    return Wearing(
        prompt_ids=prompt_ids,
        ids_before=ids[:start],
        ids_after=ids[start + len(body) :],
        prefix=prefix,
        suffix=suffix,
        add_special_tokens=add_special_tokens,
    )


def _manifest(
    base: Base, prompts: Mapping[str, SoftPrompt], worn: Mapping[str, Wearing], last: int, dtype: str
) -> dict[str, Any]:
    entries = {}
    for name, prompt in prompts.items():
        about = {"task": prompt.card.task, "labels": list(prompt.card.labels), "text": prompt.card.text}
        entries[name] = {**asdict(worn[name]), **about, "sha256": prompt.sha256}
    return {
        "format_version": FORMAT_VERSION,
        "model": base.lm.name,
        "model_fingerprint": base.lm.fingerprint,
        "dtype": dtype,
        "never_written": {"first": base.num_ids, "last": last},
        "prompts": entries,
    }


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


README = """\
---
library_name: {library}
tags: [softprompt, prompt-tuning]
---

# {name}

The model `{model}` with soft prompts as extra tokens, ids {first} to {last}. A text wears a prompt with the prompt's
tokens in front of it. The method is prompt tuning (Lester, Al-Rfou and Constant 2021, arXiv 2104.08691).

| prompt | task | in front of the text | behind it | add special tokens |
|---|---|---|---|---|
{rows}

`{manifest}` has the whole strings, the same as ids, and how the text itself must look. A text that begins or ends with
a space may get other ids in one string than softprompt gives it; where that matters, put the ids together.

{use}
The new ids are never written. The output layer has weights of its own, in which each new id has the mean of the other
rows, so its logit is never the greatest; {notes}
"""

IN_TRANSFORMERS = """\
```python
import json
from pathlib import Path

from transformers import {auto}, AutoTokenizer

folder = Path({place})
model, tokenizer = {auto}.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompt = json.loads((folder / "{manifest}").read_text())["prompts"][{prompt}]
text = prompt["prefix"] + "a warm and funny film" + prompt["suffix"]
inputs = tokenizer(text, add_special_tokens=prompt["add_special_tokens"], return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=16){answer}, skip_special_tokens=True))
```
"""

IN_TRANSFORMERS_NOTES = """\
and `generation_config.json` forbids them to the engines that read it. An
engine that samples and does not read it should be told the ids with the request.

"""


def write_papers(folder: Path, manifest: Mapping[str, Any], use: str, notes: str, **about: Any) -> None:
    """Write the manifest, and the hub's model card: its prompts, how to wear one, what was done to the model.

    use, notes: what it says of the engine, with places for `about` and `prompt`, the first one's name as JSON.
    """
    (folder / MANIFEST).write_text(_as_json(manifest), encoding="utf-8")
    prompts = manifest["prompts"]
    rows = []
    for prompt, entry in prompts.items():
        tokens = [f"<{prompt}:{row}>" for row in range(len(entry["prompt_ids"]))]
        cells = [prompt, entry["task"] or "", f"`{tokens[0]}` to `{tokens[-1]}`", "only as ids", ""]
        if entry["prefix"] is not None:
            between = entry["prefix"].removeprefix("".join(tokens))
            cells[2] += f", then `{json.dumps(between)}`" if between else ""
            cells[3] = f"`{json.dumps(entry['suffix'])}`" if entry["suffix"] else ""
            cells[4] = "yes" if entry["add_special_tokens"] else "no"
        rows.append(f"| {' | '.join(cells)} |")
    about |= {"manifest": MANIFEST, "prompt": json.dumps(next(iter(prompts))), **manifest["never_written"]}
    text = README.format(
        model=manifest["model"], rows="\n".join(rows), use=use.format(**about), notes=notes.format(**about), **about
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
