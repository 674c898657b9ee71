"""Examples to ids, and ids to batches: the one place that knows how a text becomes tokens.

Training, evaluation, prediction and serving all call `encode_inputs` and `encode_target`, so a prompt meets in
use exactly the ids it was trained on. Shapes: b rows, t input tokens, c candidates, l target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from softprompt.base.checked import checked
from softprompt.models.backbone import PASS_TOKENS, Backbone
from softprompt.models.tokenizer import SENTINEL, Tokenizer
from softprompt.tasks import Example

SEPARATOR = "\nanswer:"  # ours, docs/design.md: between the input and the target of a decoder-only model
SENTINELS = ("none", "targets", "inputs-and-targets")
_PLACE = "softprompt-input"  # stands for the input while a chat template is cut at it


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """How text becomes ids for one prompt. The card keeps it, so that it never changes in use."""

    separator: str = ""
    """Text between input and target; tokenised apart. Decoder-only models need one."""
    leading_space: bool = False
    """Whether a target begins with a space (decoder-only)."""
    starts_with_bos: bool = False
    """Whether the tokenizer's begin-of-sequence stands in front of the input (after the prompt, as in PEFT)."""
    inputs_end_with_eos: bool = False
    """Whether the input ends with the end of sequence (encoder-decoders)."""
    chat: bool = False
    """Whether the input is set into the model's chat template."""
    max_input_length: int = 512
    """Tokens of an input with its end, the prompt not counted (512 in the authors' demo scripts)."""
    max_target_length: int = 64
    """Tokens of a target with its end of sequence, and of a generated answer. A longer target is cut before its end
    of sequence, as T5's is (seqio's append_eos_after_trim)."""
    truncation_side: str = "end"
    """Where a long input is cut. Never cut are its separator, its end and the chat template around it."""
    sentinel: str = "none"
    """targets: the first sentinel stands in front of every target, as in a span-corruption model's own, and is
    stripped from answers (paper, section 3.2, "Span Corruption + Sentinel"). inputs-and-targets: at the end of every
    input too (T5's older add_task_with_sentinels)."""
    inputs_template: str | None = None
    """The template of a task from the user's own file."""
    targets_template: str | None = None
    """The same for the target."""

    def __post_init__(self) -> None:
        if self.max_input_length < 8:
            raise ValueError(f"max_input_length is {self.max_input_length}, but must be 8 or more")
        if self.max_target_length < 1:
            raise ValueError(f"max_target_length is {self.max_target_length}, but must be 1 or more")
        if self.sentinel not in SENTINELS:
            raise ValueError(f"sentinel is {self.sentinel!r}, but must be one of {', '.join(SENTINELS)}")
        if self.truncation_side not in ("end", "start"):
            raise ValueError(f"truncation_side is {self.truncation_side!r}, but must be 'end' or 'start'")

    def answer_of(self, text: str) -> str:
        """A generated text without the sentinel that its targets begin with."""
        return text if self.sentinel == "none" else text.removeprefix(SENTINEL).lstrip()

    def to_json(self) -> dict[str, Any]:
        """The fields, for the card."""
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> TextFormat:
        """The format a card holds. ValueError for fields this version does not know, and for values of another type."""
        unknown = sorted(set(values) - {field.name for field in fields(TextFormat)})
        if unknown:
            raise ValueError(f"the card's text format has unknown fields {', '.join(unknown)}; update softprompt")
        return checked(TextFormat, values, "the card's text format")


def default_format(lm: Backbone, *, max_target_length: int = 64, **changes: Any) -> TextFormat:
    """The format a model gets unless told otherwise: T5's for encoder-decoders, a separator for the others."""
    if lm.is_encoder_decoder:
        chosen = TextFormat(inputs_end_with_eos=True, max_target_length=max_target_length)
    else:
        chosen = TextFormat(
            separator=SEPARATOR,
            leading_space=True,
            starts_with_bos=lm.tokenizer.bos_id is not None,
            max_target_length=max_target_length,
        )
    return replace(chosen, **changes)


class Encoded(NamedTuple):
    """One input as ids."""

    ids: list[int]
    was_cut: bool
    lost: list[int]
    """What was cut off."""


def encode_inputs(text: str, form: TextFormat, tokenizer: Tokenizer) -> Encoded:
    """The ids in front of which a prompt stands: [BOS] input [separator | end of sequence], cut to length."""
    return encode_all_inputs([text], form, tokenizer)[0]


def encode_all_inputs(texts: Sequence[str], form: TextFormat, tokenizer: Tokenizer) -> list[Encoded]:
    """`encode_inputs` of each text; several times faster than one at a time."""
    if not all(text.strip() for text in texts):
        raise ValueError("an input is empty; every input needs some text")
    before, after = "", form.separator
    if form.chat:
        before, found, after = tokenizer.chat(_PLACE).partition(_PLACE)
        assert found, "the chat template leaves the user's text out"
        texts = [text.strip() for text in texts]
    head, tail = tokenizer.encode_all([before, after])
    if form.starts_with_bos and tokenizer.bos_id is not None and head[:1] != [tokenizer.bos_id]:
        head = [tokenizer.bos_id, *head]
    if form.sentinel == "inputs-and-targets":
        tail = [*tail, _sentinel(tokenizer)]
    if form.inputs_end_with_eos:
        tail = [*tail, tokenizer.eos_id]

    room = form.max_input_length - len(head) - len(tail)
    if room < 1:
        raise ValueError(f"max_input_length {form.max_input_length} leaves no room for the input; make it longer")
    encoded = []
    for ids in tokenizer.encode_text(texts):
        kept, lost = ids[:room], ids[room:]
        if form.truncation_side == "start":
            kept, lost = ids[-room:], ids[:-room]
        encoded.append(Encoded(head + kept + tail, len(ids) > room, lost))
    return encoded


def lost_part(text: str, form: TextFormat, tokenizer: Tokenizer) -> str:
    """What the length limit cuts off an input, in one line, without its middle if it is long; '' for nothing."""
    lost = " ".join(tokenizer.decode(encode_inputs(text, form, tokenizer).lost).split())
    return lost if len(lost) <= 100 else f"{lost[:40]} … {lost[-50:]}"


def read_text(rows: Sequence[Row], tokenizer: Tokenizer) -> str | list[str]:
    """What a model reads of one example, template, separator and ends included: a list where its rows differ."""
    texts = list(dict.fromkeys(tokenizer.text_of(row.ids) for row in rows))
    return texts[0] if len(texts) == 1 else texts


def encode_target(text: str, form: TextFormat, tokenizer: Tokenizer) -> list[int]:
    """The ids a model should write for `text`, with the end of sequence: labels, candidates and targets alike."""
    return _encode_targets([text], form, tokenizer)[0]


def target_lengths(texts: Sequence[str], form: TextFormat, tokenizer: Tokenizer) -> list[int]:
    """How many ids each text is as a target, its end of sequence included, before `max_target_length` cuts it.

    Raises ValueError for an empty text, and for a sentinel that the vocabulary lacks.
    """
    return [len(ids) for ids in _encode_targets(texts, form, tokenizer, is_cut=False)]


def room_for(labels: Sequence[str], form: TextFormat, tokenizer: Tokenizer) -> TextFormat:
    """The format, with room for the longest of these labels. ValueError as `check_labels` has it."""
    longest = max(target_lengths(labels, form, tokenizer), default=4)
    form = replace(form, max_target_length=max(form.max_target_length, longest))
    check_labels(labels, form, tokenizer)
    return form


def check_labels(labels: Sequence[str], form: TextFormat, tokenizer: Tokenizer) -> None:
    """ValueError for two labels that are one to the model: their ids are equal, as the tokenizer makes '1' of '①' or
    has neither's letters, or as they are cut.
    """
    read: dict[tuple[int, ...], str] = {}
    for label, ids in zip(labels, _encode_targets(labels, form, tokenizer), strict=True):
        other = read.setdefault(tuple(ids), label)
        if other != label:
            seen = form.answer_of(tokenizer.decode(ids).strip())
            raise ValueError(
                f"the model cannot tell the labels {other[:80]!a} and {label[:80]!a} apart: it reads both as "
                f"{seen[:80]!a}; write one of them otherwise"
            )


def _encode_targets(
    texts: Sequence[str], form: TextFormat, tokenizer: Tokenizer, *, is_cut: bool = True
) -> list[list[int]]:
    if not all(texts):
        raise ValueError("a target is empty; every target needs some text")
    head = [] if form.sentinel == "none" else [_sentinel(tokenizer)]
    space = " " if form.leading_space else ""
    end = form.max_target_length - 1 if is_cut else None
    return [[*[*head, *ids][:end], tokenizer.eos_id] for ids in tokenizer.encode_text([space + text for text in texts])]


def _sentinel(tokenizer: Tokenizer) -> int:
    first = tokenizer.id_of(SENTINEL)
    if first is None:
        raise ValueError(f"the model's vocabulary has no {SENTINEL}; set sentinel to none, or take a T5")
    return first


@dataclass(frozen=True)
class Row:
    """One example as ids, ready for a batch."""

    ids: tuple[int, ...]
    """The input."""
    target: tuple[int, ...]
    """The target, end of sequence included; empty where there is none."""
    was_cut: bool
    """Whether the length limit cut the input."""
    index: int
    """The example's place in its set: dropout masks are drawn from it."""

    @property
    def num_tokens(self) -> int:
        """Tokens of input and target."""
        return len(self.ids) + len(self.target)


def encode_examples(
    examples: Sequence[Example], form: TextFormat, tokenizer: Tokenizer, *, with_targets: bool = True
) -> list[Row]:
    """All examples as rows, in order."""
    encoded = encode_all_inputs([example.inputs for example in examples], form, tokenizer)
    distinct = list({example.targets: None for example in examples}) if with_targets else []
    ids_of = dict(zip(distinct, map(tuple, _encode_targets(distinct, form, tokenizer)), strict=True))
    rows = []
    for index, (example, read) in enumerate(zip(examples, encoded, strict=True)):
        rows.append(Row(tuple(read.ids), ids_of.get(example.targets, ()), read.was_cut, index))
    return rows


def check_length(rows: Sequence[Row], prompt_length: int, lm: Backbone, *, answer_length: int = 0) -> None:
    """Raise ValueError where prompt, input and target together are longer than the model can take.

    answer_length: the most tokens that may be written after any input, where that is more than its target.
    """
    if lm.max_length is None or not rows:
        return
    longest = max(len(row.ids) + max(len(row.target), answer_length) for row in rows)
    if prompt_length + longest > lm.max_length:
        raise ValueError(
            f"prompt {prompt_length} + input and target {longest} tokens, but {lm.name} takes {lm.max_length}; "
            "use a shorter prompt or --max-input-length"
        )


def shared_start(rows: Sequence[Row]) -> tuple[int, ...]:
    """The ids that every row begins with (a template's first words); each row keeps at least one of its own."""
    least, most = min(row.ids for row in rows), max(row.ids for row in rows)
    longest = min(len(row.ids) for row in rows) - 1
    same = 0
    while same < longest and least[same] == most[same]:
        same += 1
    return least[:same]


class Batch(NamedTuple):
    """Rows as tensors on the host, where what is asked of them waits for no device; padding at the right."""

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]
    targets: Int[Tensor, "b l"]
    targets_mask: Bool[Tensor, "b l"]
    member: Int[Tensor, " b"]
    """Which prompt each row wears; -1 for none."""


def collate(rows: Sequence[Row], member: Sequence[int], pad_id: int) -> Batch:
    """One batch of rows and the prompts they wear."""
    ids, mask = pad([row.ids for row in rows], pad_id)
    targets, targets_mask = pad([row.target for row in rows], pad_id)
    return Batch(ids, mask, targets, targets_mask, torch.tensor(list(member)))


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """Lists of ids as one tensor padded at the right, and its mask. The mask comes from lengths, never from ids."""
    lengths = [len(row) for row in rows]
    width = max(lengths, default=0)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    mask = np.arange(width)[None] < np.array(lengths)[:, None]
    return torch.from_numpy(ids), torch.from_numpy(mask)


def pad_candidates(
    candidates: Sequence[Sequence[Sequence[int]]], pad_id: int
) -> tuple[Int[Tensor, "b c l"], Bool[Tensor, "b c l"]]:
    """Every row's candidates as one tensor; rows with fewer, and shorter ones, are masked."""
    count = max(len(row) for row in candidates)
    flat = [list(row[j]) if j < len(row) else [] for row in candidates for j in range(count)]
    ids, mask = pad(flat, pad_id)
    return ids.unflatten(0, (-1, count)), mask.unflatten(0, (-1, count))


def micro_batches(
    lengths: Sequence[int], max_tokens: int, *, extra: int = 0, pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """Places of the rows of each micro-batch: sorted from long to short, each at most `max_tokens` with padding.

    The cuts are those that cost least: a pass costs its padded tokens and a fixed part (`Backbone.pass_tokens`). extra:
    tokens each row has besides its own (a prompt in front). One row is always allowed.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    least = np.zeros(len(order) + 1, dtype=np.int64)  # the cost of the rows from here on
    cuts = [0] * len(order)  # where the pass that begins here ends
    for first in reversed(range(len(order))):
        width = lengths[order[first]] + extra
        taken = np.arange(1, min(max(max_tokens // max(width, 1), 1), len(order) - first) + 1)
        costs = taken * width + least[first + taken]
        best = int(costs.argmin())
        cuts[first], least[first] = first + best + 1, costs[best] + pass_tokens
    batches, first = [], 0
    while first < len(order):
        batches.append(order[first : cuts[first]])
        first = cuts[first]
    return batches
