"""Keys and values: of prompts that were run once, and of rows that are being written.

Shapes: b rows, k prompts, p prompt tokens, q new tokens of each row, s columns read, t input tokens, h heads, e head
width, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass
class PromptStates:
    """Keys and values of k prompts in every layer of a decoder-only model, each prompt run once.

    keys, values: one [k h p e] per layer (h key heads, e head width); lengths: [k] prompt tokens in use.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Int[Tensor, " k"]

    def leaves(self) -> PromptStates:
        """Detached float32 copies that collect gradients over any number of micro-batches."""

        def leaf(states: Tensor) -> Tensor:
            return states.detach().float().requires_grad_()

        return PromptStates([leaf(s) for s in self.keys], [leaf(s) for s in self.values], self.lengths)

    def backward(self, leaves: PromptStates) -> None:
        """Send the gradients that `leaves` collected back into the prompts, in one pass."""
        states, collected = self.keys + self.values, leaves.keys + leaves.values
        pairs = [(s, c.grad.to(s.dtype)) for s, c in zip(states, collected, strict=True) if c.grad is not None]
        torch.autograd.backward([s for s, _ in pairs], [g for _, g in pairs])

    def row_lengths(self, member: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Prompt tokens in front of each row; 0 where it wears none."""
        if len(self.lengths) == 0:
            return torch.zeros_like(member)
        return torch.where(member >= 0, self.lengths[member.clamp(min=0)], 0)

    @staticmethod
    def of_rows(worn: Sequence[PromptStates | None]) -> tuple[PromptStates | None, Int[Tensor, " b"] | None]:
        """One prompt or none for each row, as the states and the member of a batch; None where all have none."""
        distinct = {id(states): states for states in worn if states is not None}
        if not distinct:
            return None, None
        first = next(iter(distinct.values()))
        if len(distinct) == 1:
            member = [-1 if states is None else 0 for states in worn]
            return first, torch.tensor(member, device=first.lengths.device)
        lengths = [0 if states is None else int(states.lengths) for states in worn]

        def rows(kind: str, layer: int) -> Tensor:
            like: Tensor = getattr(first, kind)[layer]
            padded = like.new_zeros(len(worn), like.shape[1], max(lengths), like.shape[3])
            for row, (states, length) in enumerate(zip(worn, lengths, strict=True)):
                if states is not None:
                    padded[row, :, :length] = getattr(states, kind)[layer][0]
            return padded

        layers = range(len(first.keys))
        together = PromptStates(
            [rows("keys", i) for i in layers],
            [rows("values", i) for i in layers],
            torch.tensor(lengths, device=first.lengths.device),
        )
        member = [-1 if states is None else row for row, states in enumerate(worn)]
        return together, torch.tensor(member, device=first.lengths.device)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Rows as they enter the model."""

    x: Float[Tensor, "b t d"]
    """The embedded input, with each row's prompt in front of it unless that comes as states."""
    mask: Bool[Tensor, "b t"]
    """True where x holds a token of the row; padding may be on either side."""
    states: PromptStates | None = None
    """Keys and values of k prompts: in front of the input in a decoder-only model, and in an encoder-decoder in front
    of what the decoder writes (PEFT's prefix tuning)."""
    member: Int[Tensor, " b"] | None = None
    """With states: which of the k prompts each row reads; NO_PROMPT (-1) for none, in a decoder-only model."""

    def __post_init__(self) -> None:
        assert (self.states is None) or self.member is not None, "states without member"


@dataclass(frozen=True)
class Layout:
    """What one token of one row takes in a model's cache."""

    shapes: tuple[tuple[int, int], ...]
    """Heads and head width of each layer's keys and then its values, layer after layer."""
    encoder_width: int
    """Width of the encoder's states; 0 for a decoder-only model."""
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return sum(heads * width for heads, width in self.shapes) * self.dtype.itemsize

    def num_bytes(self, rows: int, columns: int, encoder_columns: int = 0) -> int:
        """Bytes of a buffer."""
        encoded = encoder_columns * self.encoder_width * self.dtype.itemsize
        return rows * (columns * self.token_bytes + encoded)


class RowStates:
    """Keys and values of rows that end together: every row's last token stands in the column before `end`.

    A row of n tokens begins n columns before the end, and nothing further left is its own. So a token more of each row
    is one column more, the distance of two tokens is that of their columns, and a row is moved by copying a slice.
    transformers takes it for a cache: `update` is called once a layer, and `end` moves when all layers are done, so a
    pass that fails may be run again.
    """

    def __init__(self, layout: Layout, capacity: int, columns: int, *, encoder_columns: int = 0):
        self.layout = layout
        self.end = 0
        self.starts: list[int] = []
        self.prompts: list[tuple[int, Sequence[Tensor]]] = []
        """(row, its prompt's keys and values [h p e], as in `Layout.shapes`) that `update` is to put in place."""
        self.encoded_lengths: list[int] = []
        self._allocate(capacity, columns, encoder_columns)

    def _allocate(self, capacity: int, columns: int, encoder_columns: int) -> None:
        # Zeros, because what is masked is multiplied by 0, and 0 times what memory happens to hold may be NaN.
        like: dict[str, Any] = {"dtype": self.layout.dtype, "device": self.layout.device}
        states = [torch.zeros(capacity, heads, columns, width, **like) for heads, width in self.layout.shapes]
        self.encoded = torch.zeros(capacity, encoder_columns, self.layout.encoder_width, **like)
        self.states = states

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self.starts)

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return self.encoded.shape[0]

    @property
    def columns(self) -> int:
        """Columns there is room for."""
        return self.states[0].shape[2]

    @property
    def first(self) -> int:
        """The first column of the longest row."""
        return min(self.starts, default=self.end)

    @property
    def num_bytes(self) -> int:
        """Bytes of the buffers."""
        return self.layout.num_bytes(self.capacity, self.columns, self.encoded.shape[1])

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [b h q e], and return all from the first column on [b h s e]."""
        until = self.end + keys.shape[2]
        for place, new in ((2 * layer, keys), (2 * layer + 1, values)):
            state = self.states[place]
            state[: self.num_rows, :, self.end : until] = new
            for row, prompt in self.prompts:
                start = self.starts[row]
                state[row, :, start : start + prompt[place].shape[1]] = prompt[place]
        return self.view(layer, self.first, until)

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns in front of the new ones; T5 counts its relative positions from it."""
        return self.end - self.first

    def view(self, layer: int, first: int, until: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values in these columns."""
        keys, values = self.states[2 * layer], self.states[2 * layer + 1]
        return keys[: self.num_rows, :, first:until], values[: self.num_rows, :, first:until]

    def real(self, first: int, until: int) -> Bool[Tensor, "b s"]:
        """Which of these columns are a row's own."""
        columns = torch.arange(first, until, device=self.layout.device)
        return columns >= torch.tensor(self.starts, device=self.layout.device)[:, None]

    def all_encoded(self) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """The encoder's states and their mask, as wide as the longest row's."""
        widest = max(self.encoded_lengths)
        columns = torch.arange(widest, device=self.layout.device)
        lengths = torch.tensor(self.encoded_lengths, device=self.layout.device)
        return self.encoded[: self.num_rows, :widest], columns < lengths[:, None]

    def append_copy(self, row: int) -> None:
        """One row more, the same as `row`."""
        assert self.num_rows < self.capacity
        self._copy(row, self.num_rows, self.starts[row])
        self.starts.append(self.starts[row])
        self.encoded_lengths.append(self.encoded_lengths[row])

    def remove(self, row: int) -> None:
        """Take a row out; the last one takes its place."""
        last = self.num_rows - 1
        if row != last:
            self._copy(last, row, self.starts[last])
            self.starts[row], self.encoded_lengths[row] = self.starts[last], self.encoded_lengths[last]
        self.starts.pop()
        self.encoded_lengths.pop()

    def reorder(self, rows: Sequence[int], sources: Sequence[int], num_tokens: int) -> None:
        """Give each of `rows` the last `num_tokens` columns of the row named in `sources`."""
        moved = [(to, source) for to, source in zip(rows, sources, strict=True) if to != source]
        if not moved:
            return
        to, source = torch.tensor(moved, device=self.layout.device).T
        columns = slice(self.end - num_tokens, self.end)
        for state in self.states:
            state[to, :, columns] = state[source, :, columns]

    def take_in(self, other: RowStates) -> None:
        """Add the rows of another, which must fit."""
        n, m = self.num_rows, other.num_rows
        length = other.end - other.first
        assert n + m <= self.capacity and length <= self.end
        for mine, theirs in zip(self.states, other.states, strict=True):
            mine[n : n + m, :, self.end - length : self.end] = theirs[:m, :, other.first : other.end]
        wide = max(other.encoded_lengths, default=0)
        self.encoded[n : n + m, :wide] = other.encoded[:m, :wide]
        self.starts += [self.end - (other.end - start) for start in other.starts]
        self.encoded_lengths += other.encoded_lengths

    def resize(self, capacity: int, left: int, right: int, encoder_columns: int) -> None:
        """Lay the rows out anew: room for `capacity` rows, `left` columns before the end and `right` after it."""
        length, n = self.end - self.first, self.num_rows
        assert n <= capacity and length <= left
        before, encoded, wide = self.states, self.encoded, max(self.encoded_lengths, default=0)
        own = slice(self.first, self.end)
        self._allocate(capacity, left + right, encoder_columns)
        for state, old in zip(self.states, before, strict=True):
            state[:n, :, left - length : left] = old[:n, :, own]
        self.encoded[:n, :wide] = encoded[:n, :wide]
        self.starts = [start - self.end + left for start in self.starts]
        self.end = left

    def lone(self, row: int) -> RowStates:
        """A copy of one row, by itself."""
        start, length = self.starts[row], self.end - self.starts[row]
        alone = RowStates(self.layout, 1, length + 1, encoder_columns=self.encoded_lengths[row])
        for mine, theirs in zip(alone.states, self.states, strict=True):
            mine[0, :, :length] = theirs[row, :, start : self.end]
        alone.encoded[0] = self.encoded[row, : self.encoded_lengths[row]]
        alone.starts, alone.encoded_lengths, alone.end = [0], [self.encoded_lengths[row]], length
        return alone

    def _copy(self, row: int, to: int, start: int) -> None:
        for state in self.states:
            state[to, :, start : self.end] = state[row, :, start : self.end]
        length = self.encoded_lengths[row]
        self.encoded[to, :length] = self.encoded[row, :length]


class RowGroups:
    """Several RowStates as the one cache of a decoding step: each new token attends within its own group.

    So rows of unlike lengths share the model's products, while attention reads no row's columns but for its group's.
    """

    def __init__(
        self,
        groups: Sequence[RowStates],
        implementation: str,
        window: int | None,
        as_the_model_reads: Callable[[Tensor], Tensor],
    ):
        self.groups = groups
        self.implementation = implementation
        self.full = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=groups[0].layout.device)
        """Stands for the mask in layers without a window: `layers.row_attention` has its own."""
        self.near = self.full if window is None else self.full.clone()
        """Stands for it in layers with one."""
        self._parts = _slices(groups)
        self._read = {id(self.full): [self._columns(group, group.first, as_the_model_reads) for group in groups]}
        if window is not None:
            firsts = [max(group.first, group.end + 1 - window) for group in groups]
            pairs = zip(groups, firsts, strict=True)
            self._read[id(self.near)] = [self._columns(group, first, as_the_model_reads) for group, first in pairs]

    @staticmethod
    def _columns(
        group: RowStates, first: int, as_the_model_reads: Callable[[Tensor], Tensor]
    ) -> tuple[int, Tensor | None]:
        """The first column that is read, and the mask from there on; None where all rows have all of it."""
        if max(group.starts) <= first:
            return first, None
        return first, as_the_model_reads(group.real(first, group.end + 1)[:, None, None])

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [b h 1 e]. `layers.row_attention` reads the others."""
        for group, part in zip(self.groups, self._parts, strict=True):
            group.update(keys[part], values[part], layer)
        return keys, values

    def attend(self, attention: Callable[..., Any], module: Any, query: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """The model's own attention, group by group [b 1 h e]."""
        outputs = []
        for group, part, (first, real) in zip(self.groups, self._parts, self._read[id(mask)], strict=True):
            keys, values = group.view(module.layer_idx, first, group.end + 1)
            outputs.append(attention(module, query[part], keys, values, real, **options)[0])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _slices(groups: Sequence[RowStates]) -> list[slice]:
    slices, begin = [], 0
    for group in groups:
        slices.append(slice(begin, begin + group.num_rows))
        begin += group.num_rows
    return slices
