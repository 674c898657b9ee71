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
from torch import Tensor, nn

from softprompt.base.devices import sent


@dataclass
class PromptStates:
    """Keys and values of k prompts in every layer of a decoder-only model, each prompt run once.

    keys, values: one [k h p e] per layer (h key heads, e head width); lengths: [k] prompt tokens in use, on the host.
    """

    keys: list[Tensor]
    values: list[Tensor]
    lengths: Int[Tensor, " k"]

    @staticmethod
    def of_values(values: Float[Tensor, "p layers h e"]) -> PromptStates:
        """Those of one prompt that is keys and values: each layer's keys and then its values, layer after layer."""
        layers = values.transpose(0, 1).transpose(1, 2)[:, None]  # [2l 1 h p e]
        return PromptStates(list(layers[0::2]), list(layers[1::2]), torch.tensor([len(values)]))

    def to(self, dtype: torch.dtype, *, copy: bool = False) -> PromptStates:
        """The same in another type."""
        keys, values = ([layer.to(dtype, copy=copy) for layer in layers] for layers in (self.keys, self.values))
        return PromptStates(keys, values, self.lengths)

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

    def by_layer(self) -> list[Tensor]:
        """Each layer's keys [k h p e] and then its values, layer after layer."""
        return [states for pair in zip(self.keys, self.values, strict=True) for states in pair]

    def fill(self, cache: Any, member: Int[Tensor, " b"], dtype: torch.dtype) -> Any:
        """transformers' cache with the keys and values of the prompts that rows wear, laid out for the rows.

        A row that wears none gets those of any prompt; the mask hides them.
        """

        worn_by = sent(member.clamp(min=0), self.keys[0].device)

        def worn(layer: Tensor) -> Tensor:
            if len(layer) == 1:
                return layer.to(dtype).expand(len(member), -1, -1, -1)
            # index_select: its gradient is summed in one order, that of plain indexing in any.
            return layer.to(dtype).index_select(0, worn_by)

        for number, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(worn(keys), worn(values), number)
        return cache

    def row_lengths(self, member: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Prompt tokens in front of each row; 0 where it wears none."""
        if len(self.lengths) == 0:
            return torch.zeros_like(member)
        return torch.where(member >= 0, self.lengths[member.clamp(min=0)], 0)

    def prompt(self, place: int) -> PromptStates:
        """Those of one of the k prompts, as long as it is."""
        kept, length = slice(place, place + 1), int(self.lengths[place])
        keys, values = ([layer[kept, :, :length] for layer in layers] for layers in (self.keys, self.values))
        return PromptStates(keys, values, self.lengths[kept])

    def to_values(self) -> Float[Tensor, "p layers h e"]:
        """The first prompt as what `of_values` reads: float32, on the CPU."""
        return torch.stack([layer[0] for layer in self.by_layer()]).permute(2, 0, 1, 3).to("cpu", torch.float32)

    @staticmethod
    def of_rows(worn: Sequence[PromptStates | None]) -> tuple[PromptStates | None, Int[Tensor, " b"] | None]:
        """One prompt or none for each row, as the states and the member of a batch; None where all have none."""
        distinct = {id(states): states for states in worn if states is not None}
        if not distinct:
            return None, None
        prompts = list(distinct.values())
        place_of = {key: place for place, key in enumerate(distinct)}
        member = torch.tensor([-1 if states is None else place_of[id(states)] for states in worn])
        if len(prompts) == 1:
            return prompts[0], member
        lengths = torch.cat([states.lengths for states in prompts])
        longest = int(lengths.max())

        def together(layers: Sequence[Tensor]) -> Tensor:
            return torch.cat([nn.functional.pad(layer, (0, 0, 0, longest - layer.shape[2])) for layer in layers])

        keys = [together(layers) for layers in zip(*(states.keys for states in prompts), strict=True)]
        values = [together(layers) for layers in zip(*(states.values for states in prompts), strict=True)]
        return PromptStates(keys, values, lengths), member


@dataclass(frozen=True, eq=False)
class Embedded:
    """Rows as they enter the model: x on its device, mask and member on the host, where nothing waits for it."""

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
        self.prompts: Sequence[tuple[int, Sequence[Tensor]]] = []
        """(row, its prompt's keys and values [h p e], as in `Layout.shapes`) that `update` is to put in place."""
        self.encoded_lengths: list[int] = []
        self.is_closed = False
        """Whether no row will join: then keys and values of the encoder's states are made once and kept."""
        self._cross: Any = None
        # Zeros, because what is masked is multiplied by 0, and 0 times what memory happens to hold may be NaN.
        like: dict[str, Any] = {"dtype": layout.dtype, "device": layout.device}
        self.states = [torch.zeros(capacity, heads, columns, width, **like) for heads, width in layout.shapes]
        self.encoded = torch.zeros(capacity, encoder_columns, layout.encoder_width, **like)

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
        """Which of these columns are a row's own, on the host."""
        return torch.arange(first, until) >= torch.tensor(self.starts)[:, None]

    def all_encoded(self) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """The encoder's states and their mask, on the host, as wide as the longest row's."""
        widest = max(self.encoded_lengths)
        real = torch.arange(widest) < torch.tensor(self.encoded_lengths)[:, None]
        return self.encoded[: self.num_rows, :widest], real

    def cross_attention(self) -> Any:
        """transformers' own cache for keys and values of the encoder's states; empty after rows have come."""
        from transformers import DynamicCache, EncoderDecoderCache

        if self._cross is None:
            self._cross = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return self._cross

    def take_in(self, other: RowStates, rows: Sequence[int]) -> None:
        """Add copies of these rows of another, or of its own, which must fit; they follow one another there.

        What rows that have left had in their places becomes 0.
        """
        new, taken = slice(self.num_rows, self.num_rows + len(rows)), slice(rows[0], rows[-1] + 1)
        starts = other.starts[taken]
        length = other.end - min(starts)
        assert new.stop <= self.capacity and length <= self.end
        for mine, theirs in zip(self.states, other.states, strict=True):
            mine[new, :, : self.end - length] = 0
            mine[new, :, self.end - length : self.end] = theirs[taken, :, other.end - length : other.end]
        encoded_lengths = other.encoded_lengths[taken]
        wide = max(encoded_lengths)
        self.encoded[new, :wide] = other.encoded[taken, :wide]
        self.encoded[new, wide:] = 0
        self.starts += [self.end - other.end + start for start in starts]
        self.encoded_lengths += encoded_lengths
        self._cross = None

    def remove(self, row: int) -> None:
        """Take a row out; the last one takes its place.

        What it had and the other has not becomes 0: what is masked is multiplied by 0, which is no number where the row
        that left was none.
        """
        left, last = self.starts[row], self.num_rows - 1
        start, encoded_length = self.starts.pop(), self.encoded_lengths.pop()
        if row != last:
            for state in self.states:
                state[row, :, left:start] = 0
                state[row, :, start : self.end] = state[last, :, start : self.end]
            self.encoded[row, :encoded_length] = self.encoded[last, :encoded_length]
            self.encoded[row, encoded_length:] = 0
            self.starts[row], self.encoded_lengths[row] = start, encoded_length
        widest = max(self.encoded_lengths, default=0)
        for layer in () if self._cross is None else self._cross.cross_attention_cache.layers:
            for states in (layer.keys, layer.values):
                states[row] = states[last]
            layer.keys, layer.values = layer.keys[:last, :, :widest], layer.values[:last, :, :widest]

    def reorder(self, rows: Sequence[int], sources: Sequence[int], num_tokens: int) -> None:
        """Give each of `rows` the last `num_tokens` columns of the row named in `sources`."""
        moved = [(to, source) for to, source in zip(rows, sources, strict=True) if to != source]
        if not moved:
            return
        to, source = sent(moved, self.layout.device).T
        columns = slice(self.end - num_tokens, self.end)
        for state in self.states:
            state[to, :, columns] = state[source, :, columns]

    def moved(self, rows: Sequence[int], capacity: int, left: int, right: int, encoder_columns: int) -> RowStates:
        """These rows, which follow one another, in a buffer of their own: room for `capacity` rows, `left` columns
        before the end and `right` after it.
        """
        new = RowStates(self.layout, capacity, left + right, encoder_columns=encoder_columns)
        new.end, new.is_closed = left, self.is_closed
        new.take_in(self, rows)
        if len(rows) == self.num_rows:
            new._cross = self._cross
        return new


class RowGroups:
    """Several RowStates as the one cache of a decoding step: each new token attends within its own group.

    So rows of unlike lengths share the model's products, while attention reads no row's columns but for its group's.
    """

    def __init__(
        self,
        groups: Sequence[RowStates],
        window: int | None,
        as_the_model_reads: Callable[[Tensor], Tensor],
    ):
        self.groups = groups
        self.full = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=groups[0].layout.device)
        """Stands for the mask in layers without a window: `attend` has its own."""
        self.near = self.full if window is None else self.full.clone()
        """Stands for it in layers with one."""
        self._parts, begin = [], 0
        for group in groups:
            self._parts.append(slice(begin, begin + group.num_rows))
            begin += group.num_rows

        def columns(group: RowStates, first: int) -> tuple[int, Tensor | None]:
            """The first column that is read, and the mask from there on; None where all rows have all of it."""
            if max(group.starts) <= first:
                return first, None
            return first, as_the_model_reads(group.real(first, group.end + 1)[:, None, None])

        self._read_full = self._read_near = [columns(group, group.first) for group in groups]
        if window is not None:
            self._read_near = [columns(group, max(group.first, group.end + 1 - window)) for group in groups]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values [b h 1 e]. `attend` reads the others."""
        for group, part in zip(self.groups, self._parts, strict=True):
            group.update(keys[part], values[part], layer)
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        """Columns in front of the new ones, of the longest row."""
        return max(group.get_seq_length() for group in self.groups)

    def attend(self, attention: Callable[..., Any], module: Any, query: Tensor, mask: Tensor, **options: Any) -> Tensor:
        """The model's own attention, group by group [b 1 h e]."""
        outputs = []
        read = self._read_full if mask is self.full else self._read_near
        for group, part, (first, real) in zip(self.groups, self._parts, read, strict=True):
            keys, values = group.view(module.layer_idx, first, group.end + 1)
            outputs.append(attention(module, query[part], keys, values, real, **options)[0])
        if self._parts[-1].stop < len(query):  # rows of no group
            outputs.append(outputs[0].new_zeros(len(query) - self._parts[-1].stop, *outputs[0].shape[1:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def with_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """The bias of an attention with its mask in it, whether that is of True and False or to be added."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask
