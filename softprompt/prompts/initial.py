"""What a prompt begins as: rows of the model's vocabulary, random numbers, words, or another prompt.

Each way gives the values [p d], float32 on the CPU, and for each row the ids and pieces it was made of.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.base.names import hub_place, nearest
from softprompt.models import FrozenLM
from softprompt.prompts.folder import load_prompt
from softprompt.prompts.prompt import SoftPrompt, check_fits

MAX_LENGTH = 500  # ours: more than three times the longest prompt of the paper (section 3.2: 150)
NUM_COMMON = 5_000  # paper, section 3.2; prompt_tuning/prompts.py, from_sample_of_embeddings

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


def from_ids(
    embeddings: Float[Tensor, "v d"], tokenizer: HasPieces, ids: Sequence[int]
) -> tuple[Float[Tensor, "p d"], Drawn]:
    """One row for each id. ValueError for none, or more than 500."""
    _check_length(len(ids))
    return _rows(embeddings, list(ids)), [_described_row(tokenizer, [id]) for id in ids]


def from_prompt(embeddings: Float[Tensor, "v d"], length: int, *, source: SoftPrompt) -> tuple[Tensor, Drawn]:
    """A copy of another prompt's rows (transfer): of a soft prompt, or of one that is keys and values.

    Raises:
        ValueError: another length or width.
    """
    _check_length(length)
    width = source.width if source.is_kv else embeddings.shape[1]
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
    lm: FrozenLM | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The values [p d] that `init` asks for, float32 on the CPU, and the card's `init` entry; [p 2l h e] from a prompt
    that is keys and values.

    `init` is class-labels, vocab, uniform (from `low` to 0.5), text:WORDS, or a prompt as `load_prompt` takes it. The
    entry has kind, seed and tokens (one item a row, empty where no tokens were drawn); from a prompt
    also its parent's sha256. With `lm` given, a prompt to start from must belong to that model.

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
    elif hub_place(init) or os.path.exists(init):
        source = load_prompt(init)
        if lm is not None:
            check_fits(source, lm)
        values, drawn = from_prompt(embeddings, length, source=source)
        entry |= {"kind": "prompt", "parent": source.sha256}
    else:
        names = ["class-labels", "vocab", "uniform", "text:"]
        raise ValueError(
            f"no way to start a prompt is named {init!r}, and no prompt folder is{nearest(init, names)}; "
            "there are class-labels, vocab, uniform, text:WORDS, or a prompt folder"
        )
    return values, entry | {"tokens": drawn}


def _check_length(length: int) -> None:
    if not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"a prompt length of {length} was asked for; wanted 1 to {MAX_LENGTH}")


def _rows(embeddings: Float[Tensor, "v d"], ids: list[int]) -> Float[Tensor, "n d"]:
    return embeddings.detach()[torch.tensor(ids, device=embeddings.device)].to("cpu", torch.float32)


def _described_row(tokenizer: HasPieces, ids: list[int]) -> dict[str, Any]:
    return {"ids": ids, "pieces": [tokenizer.piece(id) for id in ids]}
