"""What is put into a frozen model's own modules: shared dropout, cheaper attention, compiled and checkpointed blocks.

Shapes: b rows, l targets, s encoder tokens, h heads, e head width, d width, w features of a mask.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.models.states import RowGroups, RowStates


class SharedDropout(nn.Module):
    """Dropout whose mask is drawn outside, once a sequence, and shared over its positions.

    T5X does the same (flaxformer's t5_architecture, `broadcast_dims=(-2,)`); the module is the identity until
    `FrozenLM.dropout` gives it a mask [b 1 w].
    """

    def __init__(self) -> None:
        super().__init__()
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
    """The value projection of an attention, with whole values dropped for all queries."""

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
    """T5's attention to the encoder, made for targets that are few beside the inputs.

    The keys' and values' weights go to the few queries instead of to every input: (W_q q)·(W_k x) is
    (W_kᵀ W_q q)·x, and a weighted sum of W_v x is W_v of the weighted sum. The same numbers but for rounding, for
    less work while the queries are fewer than a head is wide. A cache without a place for the encoder's keys and
    values (RowStates) gets none.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        key_value_states: Tensor | None = None,
        position_bias: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """What T5Attention returns: output, position bias, no weights."""
        cache = past_key_values if hasattr(past_key_values, "cross_attention_cache") else None
        if self._folds(hidden_states, cache) and key_value_states is not None:
            return self._folded(hidden_states, mask, key_value_states), position_bias, None
        return self.attention(
            hidden_states,
            mask=mask,
            key_value_states=key_value_states,
            position_bias=position_bias,
            past_key_values=cache,
            **kwargs,
        )

    def _folds(self, hidden_states: Tensor, cache: Any) -> bool:
        # Weights that are quantised, or that PEFT adds to, cannot be moved to the other side of a product.
        plain: Any = self.attention
        is_linear = type(plain.k) is nn.Linear and type(getattr(plain.v, "projection", plain.v)) is nn.Linear
        return is_linear and cache is None and hidden_states.shape[1] < plain.key_value_proj_dim

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


class UMT5CrossAttention(CrossAttention):
    """The same for umT5, which calls its attention by other names."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """What UMT5Attention returns: output, no weights."""
        cache = past_key_values if hasattr(past_key_values, "cross_attention_cache") else None
        if self._folds(hidden_states, cache) and encoder_hidden_states is not None:
            return self._folded(hidden_states, attention_mask, encoder_hidden_states), None
        return self.attention(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            past_key_values=cache,
            attention_mask=attention_mask,
            **kwargs,
        )


def plain_attention(attention: Any) -> Any:
    """The model's own attention behind a `CrossAttention`."""
    return attention.attention if isinstance(attention, CrossAttention) else attention


def row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, *, rows: RowGroups, **options: Any
) -> tuple[Tensor, None]:
    """Attention of one new token a row to its own group, as transformers calls it: the model's own, group by group."""
    from transformers import AttentionInterface

    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attention = AttentionInterface().get_interface(rows.implementation, eager)
    return rows.attend(attention, module, query, attention_mask, **options), None


def use_row_attention() -> str:
    """Let transformers find `row_attention`, and return the name it goes by."""
    from transformers import AttentionInterface

    AttentionInterface.register("softprompt_rows", row_attention)
    return "softprompt_rows"


class _OneLayer:
    """One layer of a cache, for a compiled block.

    transformers' own cache finds the layer by its number, which would compile every block anew.
    """

    def __init__(self, layer: Any):
        self.keys: Tensor | None = layer.keys
        self.values: Tensor | None = layer.values

    def update(self, keys: Tensor, values: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys if self.keys is None else torch.cat([self.keys, keys], -2)
        self.values = values if self.values is None else torch.cat([self.values, values], -2)
        return self.keys, self.values


class _WrittenOut(torch.autograd.Function):
    """softmax(q kᵀ · scale + bias) v, q [b h l e], k and v [b h s e], whose weights [b h l s] are kept.

    Scores are in float32, which products of bfloat16 would round too far: T5 does not scale them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
        weights = ((q.float() @ k.float().mT) * scale + bias).softmax(-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, bias, weights)
        ctx.scale = scale
        return weights @ v

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, bias, weights = ctx.saved_tensors
        (gradient,) = gradients
        change = weights * (gradient @ v.mT).float()
        scores = change - weights * change.sum(-1, keepdim=True)
        of_bias = scores.sum_to_size(bias.shape).to(bias.dtype) if ctx.needs_input_grad[3] else None
        scores = (scores * ctx.scale).to(q.dtype)
        return scores @ k, scores.mT @ q, weights.mT @ gradient, of_bias, None


def _with_mask(bias: Tensor, mask: Tensor | None) -> Tensor:
    """The bias of an attention with its mask in it, whether that is of True and False or to be added."""
    if mask is None:
        return bias
    return torch.where(mask, bias, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def written_out_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it, for compiled blocks on a processor: they make one loop of all that comes
    between its products, and so are faster than the fused attention that PyTorch has there, whose backward pass
    computes the weights again. No dropout, and a mask wherever not every token may be read.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    bias = query.new_zeros(()) if position_bias is None else position_bias
    bias = _with_mask(bias, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _WrittenOut.apply(query, key, value, bias, scale).transpose(1, 2).contiguous(), None


def use_written_out_attention() -> str:
    """Let transformers find `written_out_attention`, and return the name it goes by."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("softprompt_written_out", written_out_attention)
    AttentionMaskInterface.register("softprompt_written_out", sdpa_mask)
    return "softprompt_written_out"


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
        return (output, _with_mask(shared, mask).contiguous(), *rest)

    return run


def compiled(forward: Any, number: int) -> Any:
    """A block's forward, compiled; an encoder-decoder's single decoding steps are too small to gain by it."""
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import DynamicLayer

    faster = torch.compile(forward, dynamic=True)

    def run(*args: Any, **kwargs: Any) -> Any:
        caches = (DynamicCache, EncoderDecoderCache, RowStates, RowGroups)
        cache: Any = next((value for value in (*args, *kwargs.values()) if isinstance(value, caches)), None)
        if cache is None:
            return faster(*args, **kwargs)
        if isinstance(cache, EncoderDecoderCache | RowStates | RowGroups):
            return forward(*args, **kwargs)
        own = _OneLayer(cache.layers[number] if number < len(cache.layers) else DynamicLayer())
        kwargs = {name: own if value is cache else value for name, value in kwargs.items()}
        output = faster(*[own if value is cache else value for value in args], **kwargs)
        if number == len(cache.layers):
            cache.update(own.keys, own.values, number)
        else:
            cache.layers[number].keys, cache.layers[number].values = own.keys, own.values
        return output

    return run


def checkpointed(forward: Any) -> Any:
    """A block's forward that keeps no states for the backward pass, but computes them again."""
    from torch.utils.checkpoint import checkpoint

    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
