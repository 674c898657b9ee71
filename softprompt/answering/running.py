"""The running batch: rows that begin, get a token each step, and leave.

Shapes: b rows, p prompt tokens, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.answering.decoding import alternatives
from softprompt.models import NO_PROMPT, Embedded, FrozenLM, Layout, PromptStates, RowStates, begin_rows, pad, step_rows
from softprompt.prompts import prepend, stack

ROOM = 32  # ours: columns that a group's buffer has after its end; moving a group costs less than a step
SPARE = 8  # ours: rows a small group has room for, so that rows that come one by one share a buffer
SIMILAR = 1.5  # ours: rows of one group read each other's columns as padding, so their lengths are no further apart
MAX_GROUPS = 8  # ours: above this many, groups that rows have left are joined
READ_AT_ONCE = 64  # ours: logits of an input's tokens in memory; 150,000 ids of 64 tokens are 38 MB


@dataclass(frozen=True, kw_only=True)
class Start:
    """A row about to begin."""

    ids: tuple[int, ...]
    """Its input."""
    prompt_length: int = 0
    worn: Tensor | PromptStates | None = None
    """Its prompt: values [p d] for an encoder-decoder, keys and values for a decoder-only model."""
    num_rows: int = 1
    """Rows it will be: one for each beam."""
    max_tokens: int
    """New tokens at most."""
    alternatives: int | None = None
    """How many of the most probable tokens to tell beside each of the input's own; None: its tokens are not scored."""

    @property
    def length(self) -> int:
        """Tokens of prompt and input."""
        return self.prompt_length + len(self.ids)


@dataclass(eq=False)
class Slot:
    """A row of the running batch."""

    group: Group
    row: int
    token: int
    """Its last token, which the next step reads."""
    final: int
    """Columns it will have at most."""
    num_rows: int
    """Rows it is going to be."""
    read: list[dict[int, float]] = field(default_factory=list)
    """log p of each token of the input but the first, and of its alternatives, where it is scored (decoder-only)."""


@dataclass(eq=False)
class Group:
    """Rows that share a buffer."""

    states: RowStates
    slots: list[Slot] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        """Rows in use or promised."""
        return sum(slot.num_rows for slot in self.slots)

    @property
    def final(self) -> int:
        """Columns that its longest row will have at most."""
        return max((slot.final for slot in self.slots), default=0)

    @property
    def length(self) -> int:
        """Columns of its longest row."""
        return self.states.end - self.states.first


class Projection(NamedTuple):
    """Bytes that buffers will take at most, however long the answers get, summed as rows are added."""

    layout: Layout
    num_rows: int = 0
    """Rows of the one buffer of an encoder-decoder."""
    columns: int = 0
    """Columns of it."""
    encoder_columns: int = 0
    """Encoder tokens of it."""
    others: int = 0
    """Bytes of a decoder-only model's buffers, in which each row counts for itself."""

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.others + self.layout.num_bytes(self.num_rows, self.columns + ROOM, self.encoder_columns)

    def with_row(self, start: Start) -> Projection:
        """The same with a row, or the rows of its beams, that is about to begin."""
        if not self.layout.encoder_width:
            columns = start.length + start.max_tokens + ROOM
            return self._replace(others=self.others + self.layout.num_bytes(start.num_rows, columns))
        return self._replace(
            num_rows=self.num_rows + start.num_rows,
            columns=max(self.columns, start.max_tokens),
            encoder_columns=max(self.encoder_columns, start.length),
        )


class RunningBatch:
    """The rows in flight over one model.

    A decoder-only model's rows stand in groups of like length, which share the model's products but not their buffers.
    An encoder-decoder's are one group: its decoder's cache is short, and the inputs are padded to the longest.

    rows_at_once: what `batch_invariant_rows` found. Then each answer has a group of its own, and is stepped beside
    others in passes of just so many rows; answers of several rows, and all of an encoder-decoder, by themselves. So no
    shape of what is computed for a row depends on the others.
    """

    def __init__(self, lm: FrozenLM, layout: Layout, *, rows_at_once: int | None = None):
        self.lm = lm
        self.layout = layout
        self.rows_at_once = rows_at_once
        self.groups: list[Group] = []

    @property
    def slots(self) -> list[Slot]:
        """Every row, in the order of `decode`."""
        return [slot for group in self.groups for slot in group.slots]

    @property
    def num_rows(self) -> int:
        """Rows in use or promised."""
        return sum(group.num_rows for group in self.groups)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(group.states.num_bytes for group in self.groups)

    def projection(self) -> Projection:
        """Bytes that the buffers will take at most, however long the answers get."""
        nothing = Projection(self.layout)
        if not self.lm.is_encoder_decoder:
            others = 0
            for group in self.groups:
                rows = max(group.states.capacity, group.num_rows)
                others += self.layout.num_bytes(rows, group.final + ROOM)
            return nothing._replace(others=others)
        return nothing._replace(
            num_rows=self.num_rows,
            columns=max((group.final for group in self.groups), default=0),
            encoder_columns=max((group.states.encoded.shape[1] for group in self.groups), default=0),
        )

    def read(self, starts: Sequence[Start], max_bytes: int) -> tuple[list[Slot], Float[Tensor, "b v"] | None]:
        """Begin rows: read their inputs in one pass. Their slots, and the logits of their first tokens.

        An encoder-decoder gives no logits: its first tokens come with the next step. `max_bytes`: what all buffers
        may take; room is left for more rows only within that.
        """
        return self.begin(embedded(self.lm, starts), starts, max_bytes)

    def begin(
        self, rows: Embedded, starts: Sequence[Start], max_bytes: int = 0
    ) -> tuple[list[Slot], Float[Tensor, "b v"] | None]:
        """The same for rows that are embedded already."""
        tokens = [start.max_tokens for start in starts]
        lengths = [start.length for start in starts]
        promised = sum(start.num_rows for start in starts)
        capacity = len(starts) if self.lm.is_encoder_decoder else self._capacity(starts, promised, max_bytes)
        room = 1 if self.lm.is_encoder_decoder else min(max(tokens), ROOM)
        states, hidden = begin_rows(self.lm, self.layout, rows, lengths, capacity=capacity, room=room)
        group = Group(states)
        first = self.lm.config.decoder_start_token_id if self.lm.is_encoder_decoder else 0
        for row, start in enumerate(starts):
            final = states.end - states.starts[row] + start.max_tokens
            slot = Slot(group, row, first, final, start.num_rows)
            group.slots.append(slot)
            if hidden is not None and start.alternatives is not None:
                slot.read = self._scored(hidden[row], start.ids, start.alternatives)
        slots = list(group.slots)
        host = self._host(group.length, group.num_rows, group.final)
        if host is None:
            self.groups.append(group)
        else:
            self._join(host, group)
        return slots, None if hidden is None else self.lm.logits(hidden[:, -1])

    def decode(self) -> Float[Tensor, "b v"]:
        """The logits after every row's last token, in the order of `slots`."""
        if self.rows_at_once is not None:
            return self._decode_apart(self.rows_at_once)
        most = 1 if self.lm.is_encoder_decoder else MAX_GROUPS
        while len(self.groups) > most:  # all of an encoder-decoder's join; else a small one that another can take in
            for group in sorted(self.groups, key=lambda group: group.num_rows):
                host = self._host(group.length, group.num_rows, group.final, but=group)
                if host is not None:
                    self.groups.remove(group)
                    self._join(host, group)
                    break
            else:
                break
        return self._step(self.groups)

    def _decode_apart(self, rows_at_once: int) -> Float[Tensor, "b v"]:
        """`decode` in several passes, none of whose shapes depends on how many rows there are."""
        self.groups.sort(key=lambda group: len(group.slots) > 1)
        num_single = sum(len(group.slots) == 1 for group in self.groups)
        begins = [*range(0, num_single, rows_at_once), *range(num_single, len(self.groups)), len(self.groups)]
        passes = [self.groups[begin:end] for begin, end in pairwise(begins)]
        logits: list[Tensor] = []
        try:
            for groups in passes:
                logits.append(self._step(groups))
        except Exception:  # the whole step may be taken again
            for groups in passes[: len(logits)]:
                for group in groups:
                    group.states.end -= 1
            raise
        return torch.cat(logits)

    def decode_alone(self, slots: Sequence[Slot]) -> Float[Tensor, "_ v"]:
        """The same for the rows of one answer, which must have been isolated."""
        return self._step([slots[0].group])

    def isolate(self, answers: Sequence[Sequence[Slot]]) -> None:
        """Give the rows of each answer a group of their own, to see which of them a step fails for."""
        self.groups = []
        for slots in answers:
            states, first = slots[0].group.states, slots[0].row  # beams are as long as one another
            length, wide = states.end - states.starts[first], states.encoded_lengths[first]
            group = Group(states.moved([first], len(slots), length, 1, wide), list(slots))
            for row, slot in enumerate(slots):
                if row:
                    group.states.take_in(states, [slot.row])
                slot.group, slot.row = group, row
            self.groups.append(group)

    def fan_out(self, slot: Slot) -> list[Slot]:
        """As many copies of a row as it was promised, itself the first."""
        group, states = slot.group, slot.group.states
        needed = states.num_rows + slot.num_rows - 1
        if needed > states.capacity:
            self._resize(group, max(needed, group.num_rows), group.length, max(states.columns - states.end, 1))
        copies = [slot]
        for _ in range(slot.num_rows - 1):
            group.states.take_in(group.states, [slot.row])
            copies.append(Slot(group, len(group.slots), slot.token, slot.final, 1))
            group.slots.append(copies[-1])
        slot.num_rows = 1
        return copies

    def reorder(self, slots: Sequence[Slot], parents: Sequence[int], num_tokens: int) -> None:
        """Let each row go on from its parent's last `num_tokens`; all stand in one group, and are else the same."""
        rows = [slot.row for slot in slots]
        slots[0].group.states.reorder(rows, [rows[parent] for parent in parents], num_tokens)

    def drop(self, slot: Slot) -> None:
        """Take a row out."""
        group = slot.group
        group.states.remove(slot.row)
        last = group.slots.pop()
        if last is not slot:
            group.slots[slot.row] = last
            last.row = slot.row
        if not group.slots:
            self.groups.remove(group)

    def _scored(self, hidden: Float[Tensor, "q d"], ids: Sequence[int], count: int) -> list[dict[int, float]]:
        """log p of the ids from the second on, by the states that end with theirs, and of `count` alternatives."""
        scored = []
        for first in range(1, len(ids), READ_AT_ONCE):
            some = ids[first : first + READ_AT_ONCE]
            begin = len(hidden) - len(ids) + first - 1
            scored += alternatives(self.lm.logits(hidden[begin : begin + len(some)]), some, count)
        return scored

    def _capacity(self, starts: Sequence[Start], rows: int, max_bytes: int) -> int:
        """Rows of a new group: a few more than it has, if nothing else will take it in and memory allows."""
        final = max(start.length + start.max_tokens for start in starts)
        if (
            self.rows_at_once is not None
            or rows >= SPARE
            or self._host(max(start.length for start in starts), rows, final) is not None
        ):
            return rows
        with_spare = self.projection().num_bytes + self.layout.num_bytes(SPARE, final + ROOM)
        return SPARE if with_spare <= max_bytes else rows

    def _host(self, length: int, rows: int, final: int, but: Group | None = None) -> Group | None:
        """The group that takes such rows in: the one of an encoder-decoder, or one of like length with room."""
        if self.rows_at_once is not None:
            return None
        for group in self.groups:
            if group is but:
                continue
            if self.lm.is_encoder_decoder:
                return group
            states = group.states
            fits = group.num_rows + rows <= states.capacity and length <= states.end
            shorter, longer = sorted((length, group.length))
            more = states.capacity * max(final - group.final, 0)
            if fits and longer <= SIMILAR * shorter and more <= rows * final:
                return group
        return None

    def _join(self, host: Group, group: Group) -> None:
        states, rows = host.states, host.num_rows + group.num_rows
        wide = max([*states.encoded_lengths, *group.states.encoded_lengths])
        if rows > states.capacity or wide > states.encoded.shape[1] or group.length > states.end:
            right = max(states.columns - states.end, 1)
            self._resize(host, rows, max(host.length, group.length), right, wide)
        host.states.take_in(group.states, range(group.states.num_rows))
        for slot in group.slots:
            slot.group, slot.row = host, len(host.slots)
            host.slots.append(slot)

    def _step(self, groups: Sequence[Group]) -> Tensor:
        """The next logits of these groups' rows; where a buffer is full it is moved to one with room."""
        for group in groups:
            states = group.states
            if states.end == states.columns:
                left = max(slot.final - (states.end - states.starts[slot.row]) for slot in group.slots)
                capacity = max(min(states.capacity, max(2 * group.num_rows, SPARE)), group.num_rows)
                self._resize(group, capacity, group.length, max(min(left, ROOM), 1), max(states.encoded_lengths))
        slots = [slot for group in groups for slot in group.slots]
        tokens = torch.tensor([slot.token for slot in slots])
        num_rows = 0 if self.rows_at_once is None or len(groups[0].slots) > 1 else self.rows_at_once
        return step_rows(self.lm, tokens, [group.states for group in groups], num_rows=num_rows)

    def _resize(self, group: Group, capacity: int, left: int, right: int, wide: int | None = None) -> None:
        states = group.states
        wide = states.encoded.shape[1] if wide is None else wide
        group.states = states.moved(range(states.num_rows), capacity, left, right, wide)


class Generated(NamedTuple):
    """Answers to rows, in their order."""

    ids: list[list[int]]
    """New tokens, without the end of sequence."""
    log_probs: list[float]
    """Sum of log p over the tokens chosen, the end of sequence included where it came."""


@torch.no_grad()
def generate(lm: FrozenLM, rows: Embedded, *, max_tokens: int) -> Generated:
    """Greedy decoding, to the end of sequence or `max_tokens` new tokens; a row that is done leaves the batch."""
    lengths = rows.mask.sum(1)
    if rows.states is not None and rows.member is not None and not lm.is_encoder_decoder:
        lengths += rows.states.row_lengths(rows.member)
    batch = RunningBatch(lm, lm.layout())
    starts = [Start(ids=(), prompt_length=length, max_tokens=max_tokens) for length in lengths.tolist()]
    slots, logits = batch.begin(rows, starts)
    batch.groups[0].states.is_closed = True
    row_of = {slot: row for row, slot in enumerate(slots)}
    answers = Generated([[] for _ in slots], [0.0] * len(slots))
    for _ in range(max_tokens):
        logits = batch.decode() if logits is None else logits
        log_probs, tokens = logits.log_softmax(-1).max(-1)
        logits = None
        # From the last row on, so that a row that leaves need not be filled with another.
        for slot, token, log_prob in zip(
            reversed(batch.slots), reversed(tokens.tolist()), reversed(log_probs.tolist()), strict=True
        ):
            answers.log_probs[row_of[slot]] += log_prob
            slot.token = token
            if token in lm.tokenizer.end_ids:
                batch.drop(slot)
            else:
                answers.ids[row_of[slot]].append(token)
        if not batch.slots:
            break
    return answers


def embedded(lm: FrozenLM, starts: Sequence[Start]) -> Embedded:
    """The rows as they enter the model, each with its prompt; padding at the right."""
    ids, mask = pad([start.ids for start in starts], lm.tokenizer.pad_id)
    x = lm.embed(ids)
    if not lm.is_encoder_decoder:
        states = [start.worn if isinstance(start.worn, PromptStates) else None for start in starts]
        return Embedded(x, mask, *PromptStates.of_rows(states))
    values = [start.worn.to(x.device) for start in starts if isinstance(start.worn, Tensor)]
    if not values:
        return Embedded(x, mask)
    places = iter(range(len(values)))
    member = [NO_PROMPT if start.worn is None else next(places) for start in starts]
    member = torch.tensor(member)
    x, mask = prepend(*stack(values), member, x, mask)
    return Embedded(x, mask)
