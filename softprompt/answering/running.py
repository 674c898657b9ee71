"""The running batch: rows that begin, get a token each step, and leave.

Shapes: b rows, p prompt tokens, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from softprompt.models import NO_PROMPT, FrozenLM, Layout, PromptStates, RowStates, pad
from softprompt.prompts import prepend, stack

ROOM = 32  # ours: columns that a group's buffer has after its end; moving a group costs less than a step
SPARE = 8  # ours: rows a small group has room for, so that rows that come one by one share a buffer
SIMILAR = 1.5  # ours: rows of one group read each other's columns as padding, so their lengths are no further apart
MAX_GROUPS = 8  # ours: above this many, groups that rows have left are joined


@dataclass(frozen=True, kw_only=True)
class Start:
    """A row about to begin."""

    ids: tuple[int, ...]
    """Its input."""
    prompt_length: int = 0
    values: Tensor | None = None
    """Its prompt [p d], for an encoder-decoder."""
    states: PromptStates | None = None
    """Its prompt's keys and values, for a decoder-only model."""
    num_rows: int = 1
    """Rows it will be: one for each beam."""
    max_tokens: int
    """New tokens at most."""

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
    """

    def __init__(self, lm: FrozenLM, layout: Layout):
        self.lm = lm
        self.layout = layout
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
            return nothing._replace(others=sum(self._reserved(group) for group in self.groups))
        return nothing._replace(
            num_rows=self.num_rows,
            columns=max((group.final for group in self.groups), default=0),
            encoder_columns=max((group.states.encoded.shape[1] for group in self.groups), default=0),
        )

    def _reserved(self, group: Group) -> int:
        rows = max(group.states.capacity, group.num_rows)
        return self.layout.num_bytes(rows, group.final + ROOM, group.states.encoded.shape[1])

    def read(self, starts: Sequence[Start], max_bytes: int) -> tuple[list[Slot], Float[Tensor, "b v"] | None]:
        """Begin rows: read their inputs in one pass. Their slots, and the logits of their first tokens.

        An encoder-decoder gives no logits: its first tokens come with the next step. `max_bytes`: what all buffers
        may take; room is left for more rows only within that.
        """
        if self.lm.is_encoder_decoder:
            return self._place(self._read_encoder(starts)), None
        group, logits = self._read_text(starts, max_bytes)
        return self._place(group), logits

    def decode(self) -> Float[Tensor, "b v"]:
        """The logits after every row's last token, in the order of `slots`."""
        self._consolidate()
        for group in self.groups:
            if group.states.end == group.states.columns:
                self._make_room(group)
        tokens = torch.tensor([slot.token for slot in self.slots], device=self.layout.device)
        return self.lm.decode(tokens, [group.states for group in self.groups])

    def decode_alone(self, slot: Slot) -> Float[Tensor, "1 v"]:
        """The same for one row, which must have been isolated."""
        assert len(slot.group.slots) == 1
        if slot.group.states.end == slot.group.states.columns:
            self._make_room(slot.group)
        return self.lm.decode(torch.tensor([slot.token], device=self.layout.device), [slot.group.states])

    def isolate(self) -> None:
        """Give every row a group of its own, to see which of them a step fails for."""
        alone = []
        for slot in self.slots:
            group = Group(slot.group.states.lone(slot.row), [slot])
            alone.append((slot, group))
        for slot, group in alone:
            slot.group, slot.row = group, 0
        self.groups = [group for _, group in alone]

    def fan_out(self, slot: Slot) -> list[Slot]:
        """As many copies of a row as it was promised, itself the first."""
        group, count = slot.group, slot.num_rows
        if group.states.num_rows + count - 1 > group.states.capacity:
            right = max(group.states.columns - group.states.end, 1)
            capacity = max(group.states.num_rows + count - 1, group.num_rows)
            group.states.resize(capacity, group.length, right, group.states.encoded.shape[1])
        slot.num_rows = 1
        copies = [slot]
        for _ in range(count - 1):
            group.states.append_copy(slot.row)
            copies.append(Slot(group, len(group.slots), slot.token, slot.final, 1))
            group.slots.append(copies[-1])
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

    def _read_encoder(self, starts: Sequence[Start]) -> Group:
        x, mask = encoder_inputs(self.lm, starts)
        encoded = self.lm.encode(x, mask)
        states = RowStates(self.layout, len(starts), 1, encoder_columns=x.shape[1])
        states.encoded[:, : x.shape[1]] = encoded
        states.encoded_lengths = [start.length for start in starts]
        states.starts = [0] * len(starts)
        return self._group(states, starts, self.lm.config.decoder_start_token_id)

    def _read_text(self, starts: Sequence[Start], max_bytes: int) -> tuple[Group, Tensor]:
        widest, longest = max(start.length for start in starts), max(len(start.ids) for start in starts)
        rows = sum(start.num_rows for start in starts)
        room = min(max(start.max_tokens for start in starts), ROOM)
        states = RowStates(self.layout, self._capacity(starts, rows, max_bytes), widest + room)
        states.starts = [widest - start.length for start in starts]
        states.encoded_lengths = [0] * len(starts)
        states.end = widest - longest
        states.prompts = [(row, _flat(start.states)) for row, start in enumerate(starts) if start.states is not None]
        pad_id = self.lm.tokenizer.pad_id
        ids = [[pad_id] * (longest - len(start.ids)) + list(start.ids) for start in starts]
        logits = self.lm.read(self.lm.embed(torch.tensor(ids, device=self.layout.device)), states)
        states.prompts = []
        return self._group(states, starts, 0), logits

    def _capacity(self, starts: Sequence[Start], rows: int, max_bytes: int) -> int:
        """Rows of a new group: a few more than it has, if nothing else will take it in and memory allows."""
        final = max(_final(self.lm, start) for start in starts)
        if rows >= SPARE or self._host(max(start.length for start in starts), rows, final) is not None:
            return rows
        with_spare = self.projection().num_bytes + self.layout.num_bytes(SPARE, final + ROOM)
        return SPARE if with_spare <= max_bytes else rows

    def _group(self, states: RowStates, starts: Sequence[Start], token: int) -> Group:
        group = Group(states)
        for row, start in enumerate(starts):
            group.slots.append(Slot(group, row, token, _final(self.lm, start), start.num_rows))
        return group

    def _place(self, group: Group) -> list[Slot]:
        """Let a new group join the batch."""
        slots = list(group.slots)
        host = self._host(group.length, group.num_rows, group.final)
        if host is None:
            self.groups.append(group)
        else:
            self._join(host, group)
        return slots

    def _host(self, length: int, rows: int, final: int, but: Group | None = None) -> Group | None:
        """The group that takes such rows in: the one of an encoder-decoder, or one of like length with room."""
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
            states.resize(rows, max(host.length, group.length), right, wide)
        states.take_in(group.states)
        for slot in group.slots:
            slot.group, slot.row = host, len(host.slots)
            host.slots.append(slot)

    def _consolidate(self) -> None:
        """Join groups: all of an encoder-decoder's, and a small one of many that another can take in."""
        most = 1 if self.lm.is_encoder_decoder else MAX_GROUPS
        while len(self.groups) > most:
            for group in sorted(self.groups, key=lambda group: group.num_rows):
                host = self._host(group.length, group.num_rows, group.final, but=group)
                if host is not None:
                    break
            else:
                return
            self.groups.remove(group)
            self._join(host, group)

    def _make_room(self, group: Group) -> None:
        states = group.states
        left = max(slot.final - (states.end - states.starts[slot.row]) for slot in group.slots)
        rows = group.num_rows
        capacity = min(states.capacity, max(2 * rows, SPARE))
        states.resize(max(capacity, rows), group.length, max(min(left, ROOM), 1), max(states.encoded_lengths))


def encoder_inputs(lm: FrozenLM, starts: Sequence[Start]) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
    """The embedded inputs, behind the prompts' values where rows have them; padding at the right."""
    ids, mask = pad([start.ids for start in starts], lm.tokenizer.pad_id, lm.device)
    x = lm.embed(ids)
    worn = [start.values for start in starts if start.values is not None]
    if not worn:
        return x, mask
    prompts, lengths = stack([values.to(x.device) for values in worn])
    places = iter(range(len(worn)))
    member = [NO_PROMPT if start.values is None else next(places) for start in starts]
    return prepend(prompts, lengths, torch.tensor(member, device=x.device), x, mask)


def _final(lm: FrozenLM, start: Start) -> int:
    """Columns that a row will have at most."""
    return start.max_tokens if lm.is_encoder_decoder else start.length + start.max_tokens


def _flat(states: PromptStates) -> list[Tensor]:
    """Keys and values [h p e] as RowStates has them."""
    return [state[0] for pair in zip(states.keys, states.values, strict=True) for state in pair]
