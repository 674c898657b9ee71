"""What stands in a T5 in place of its own modules: shared dropout, cheaper attention to the encoder, one bias a stack.

Shapes: b rows, l targets, s encoder tokens, h heads, e head width, d width, w features of a mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from softprompt.base.devices import sent
from softprompt.models.states import RowStates, with_mask

DRAWN = 1 << 16  # numbers that a mask's are drawn among, so that a rate is right to 8e-6
STREAM_BITS = 40  # places of a stream


class SharedDropout(nn.Module):
    """Dropout whose mask is drawn outside, once a sequence, and shared over its positions.

    T5X does the same (flaxformer's t5_architecture, `broadcast_dims=(-2,)`); the module is the identity until
    `T5Layers.dropout` gives it a mask [b 1 w].
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` with whole features of a sequence dropped."""
        return x if self.mask is None else x * self.mask.to(x.dtype)


class StackDropout(nn.Module):
    """The one dropout that a T5 stack calls twice: on its embedded input, then on its last state."""

    def __init__(self, once: SharedDropout, again: SharedDropout) -> None:
        super().__init__()
        self.turns = nn.ModuleList([once, again])
        self.turn = 0

    def forward(self, x: Tensor) -> Tensor:
        """`x` through the one, and the next time through the other."""
        dropped = self.turns[self.turn](x)
        self.turn = 1 - self.turn
        return dropped


class DroppedValues(nn.Module):
    """The value projection of an attention, with whole values dropped for all queries.

    T5X shares an attention mask over queries (t5x/examples/t5/layers.py, dot_product_attention: dropout_shape with a 1
    for the query axis), so dropping a weight for all queries is dropping its value: fused attention runs with
    dropout 0.
    """

    def __init__(self, projection: nn.Module, num_heads: int):
        super().__init__()
        self.projection = projection
        self.num_heads = num_heads
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The values of `x`, masked."""
        values = self.projection(x)
        if self.mask is None:
            return values
        by_head = values.unflatten(-1, (self.num_heads, -1))
        return (by_head * self.mask[..., None].to(values.dtype)).flatten(-2)


class CrossAttention(nn.Module):
    """The attention of T5's and umT5's decoder to the encoder, made for targets that are few beside the inputs.

    The keys' and values' weights go to the few queries instead of to every input: (W_q q)·(W_k x) is
    (W_kᵀ W_q q)·x, and a weighted sum of W_v x is W_v of the weighted sum. The same numbers but for rounding, for
    less work while the queries are fewer than a head is wide.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states: Tensor, **given: Any) -> tuple[Any, ...]:
        """What T5Attention returns (output, position bias, no weights) or UMT5Attention (output, no weights)."""
        plain: Any = self.attention
        is_t5, cache = "key_value_states" in given, given["past_key_values"]
        x = given["key_value_states" if is_t5 else "encoder_hidden_states"]
        mask = given["mask" if is_t5 else "attention_mask"]
        # Weights that are quantised, or that PEFT adds to, cannot be moved to the other side of a product.
        is_plain = type(plain.k) is nn.Linear and type(plain.v.projection) is nn.Linear
        are_few = hidden_states.shape[1] < plain.key_value_proj_dim
        if is_plain and are_few and (cache is None or (isinstance(cache, RowStates) and not cache.is_closed)):
            output = self._folded(hidden_states, mask, x)
            return (output, given["position_bias"], None) if is_t5 else (output, None)
        if isinstance(cache, RowStates):
            given["past_key_values"] = cache.cross_attention()
        return plain(hidden_states, **given)

    def _folded(self, hidden_states: Tensor, mask: Tensor | None, x: Tensor) -> Tensor:
        plain: Any = self.attention
        heads, width = plain.n_heads, plain.key_value_proj_dim
        queries = plain.q(hidden_states).unflatten(-1, (heads, width))  # [b l h e]
        # As einsum, one product a head: `@` would write out a copy of the weights for every row.
        queries = torch.einsum("blhe,hed->bhld", queries, plain.k.weight.unflatten(0, (heads, width)))
        scores = (queries.flatten(1, 2) @ x.mT).unflatten(1, (heads, -1)).float()  # [b h l s]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        shares = scores.softmax(-1)
        if plain.v.mask is not None:
            shares = shares * plain.v.mask.transpose(1, 2)[:, :, None]
        read = (shares.to(x.dtype).flatten(1, 2) @ x).unflatten(1, (heads, -1))  # [b h l d]
        values = torch.einsum("bhld,hed->blhe", read, plain.v.projection.weight.unflatten(0, (heads, width)))
        return plain.o(values.flatten(2))


def with_bias_of_first(forward: Any) -> Any:
    """A T5 encoder block's forward, which puts the mask into the position bias once, for all layers.

    The first block returns the bias [b h s s] (b is 1 without padding) with the mask in it, as attention reads it, and
    the others take it in place of a mask. transformers makes both into one anew in every layer, and keeps each for the
    backward pass.
    """

    def run(x: Tensor, mask: Tensor | None, bias: Tensor | None, *others: Any, **kwargs: Any) -> Any:
        if bias is not None:
            return forward(x, None, bias, *others, **kwargs)
        output, shared, *rest = forward(x, mask, None, *others, **kwargs)
        return (output, with_mask(shared, mask).contiguous(), *rest)

    return run


class T5Layers:
    """The modules put into one T5, mT5 or umT5, and the masks they wear while dropout is on.

    Raises ValueError for a model that has them already: it is another FrozenLM's.
    """

    def __init__(self, model: Any, name: str):
        self.stacks = (model.encoder, model.decoder)
        self.dropouts: list[SharedDropout] = []
        self.attentions: list[DroppedValues] = []
        """Every attention's values, in the model's order."""
        if isinstance(model.encoder.dropout, StackDropout):
            raise ValueError(f"{name} is another FrozenLM's model; use that one, or give a copy of the model")
        for module in list(model.modules()):
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.Dropout):
                    self._share(module, child_name, model.config)
            if hasattr(module, "v") and hasattr(module, "n_heads"):
                module.v = DroppedValues(module.v, module.n_heads)
                self.attentions.append(module.v)
        self._over_inputs = [block.layer[0].SelfAttention.v for block in model.encoder.block]
        self._over_targets = [block.layer[0].SelfAttention.v for block in model.decoder.block]
        for block in model.decoder.block:
            self._over_inputs.append(block.layer[1].EncDecAttention.v)
            block.layer[1].EncDecAttention = CrossAttention(block.layer[1].EncDecAttention)
        if model.config.model_type != "umt5":  # every layer of umT5 has a position bias of its own
            for block in model.encoder.block:
                block.forward = with_bias_of_first(block.forward)

    def _share(self, module: Any, name: str, config: Any) -> None:
        """Put `SharedDropout` where a module has dropout; the one of a stack is two."""
        once = SharedDropout(config.d_ff if hasattr(module, "wo") else config.d_model)
        self.dropouts.append(once)
        if module in self.stacks:
            self.dropouts.append(SharedDropout(config.d_model))
            setattr(module, name, StackDropout(once, self.dropouts[-1]))
        else:
            setattr(module, name, once)

    @contextlib.contextmanager
    def dropout(self, rate: float, seeds: Sequence[int], width: int, targets: int) -> Iterator[None]:
        """As `FrozenLM.dropout`, at a rate above 0."""
        try:
            self._draw_masks(rate, seeds, width, targets)
            yield
        finally:
            for module in [*self.dropouts, *self.attentions]:
                module.mask = None
            for stack in self.stacks:
                stack.dropout.turn = 0  # an error may have come between the two

    def _draw_masks(self, rate: float, seeds: Sequence[int], width: int, targets: int) -> None:
        heads, weight = self.attentions[0].num_heads, self.stacks[0].final_layer_norm.weight
        drawn_for = sent(torch.tensor(seeds), weight.device)
        kept = min(max(round((1 - rate) * DRAWN), 1), DRAWN)  # of as many numbers

        def masks(stream: int, count: int) -> Tensor:
            return (drawn(drawn_for, stream, count) < kept - DRAWN // 2).float() * (DRAWN / kept)

        widths = [module.width for module in self.dropouts]
        for module, mask in zip(self.dropouts, masks(0, sum(widths)).split(widths, 1), strict=True):
            module.mask = mask[:, None]
        for stream, values, length in ((1, self._over_targets, targets), (2, self._over_inputs, width)):
            # Positions first: a row's masks must not depend on how far it was padded.
            by_position = masks(stream, length * len(values) * heads).unflatten(1, (length, len(values), heads))
            for module, mask in zip(values, by_position.unbind(2), strict=True):
                module.mask = mask


def drawn(seeds: Int[Tensor, " b"], stream: int, count: int) -> Int[Tensor, "b n"]:
    """int16 numbers, all as probable: functions of a row's seed, the stream and their place alone, so that they are
    the same on every device and whatever is beside them.

    SplitMix64 (Steele, Lea and Flood 2014), whose state is a counter: four numbers of each of its outputs.
    """
    places = torch.arange(1, -(-count // 4) + 1, device=seeds.device) + (stream << STREAM_BITS)
    z = seeds[:, None] + places * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return (z ^ _shifted(z, 31)).view(torch.int16)[:, :count]


def _shifted(z: Tensor, bits: int) -> Tensor:
    """The 64 bits shifted down, zeros above; torch's shift repeats the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The number of 64 bits as int64 has it."""
    return number - (1 << 64) if number >> 63 else number
