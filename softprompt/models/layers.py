"""What is changed in a model's blocks, whatever its type: how they attend; compiled and checkpointed ones.

Shapes: b rows, l queries, s keys, h heads, e head width.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.models.states import RowGroups, RowStates, with_mask


def use_row_attention(blocks: Sequence[nn.Module]) -> None:
    """Let the attention of these blocks take the rows of a decoding step as an argument, `rows`.

    transformers has no argument for which attention to use, only a field of a configuration that all modules and all
    threads share. So each attention module gets a copy of it, which names `attention` for good; that looks up what the
    shared one says.
    """
    from transformers import AttentionInterface
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Any,
        *,
        rows: RowGroups | None = None,
        **options: Any,
    ) -> Any:
        implementation = module.config.shared._attn_implementation
        eager: Any = None
        if implementation == "eager":  # each model of transformers has its own
            eager = sys.modules[type(module).__module__].eager_attention_forward
        plain: Any = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
        if rows is not None:
            return rows.attend(plain, module, query, attention_mask, **options), None
        return plain(module, query, key, value, attention_mask, **options)

    AttentionInterface.register("softprompt_rows", attention)
    copies: dict[int, Any] = {}
    for module in (module for block in blocks for module in block.modules()):
        shared: Any = getattr(module, "config", None)
        if shared is None or hasattr(shared, "shared"):
            continue
        if id(shared) not in copies:
            copies[id(shared)] = copy.copy(shared)
            copies[id(shared)].shared = shared
            copies[id(shared)]._attn_implementation = "softprompt_rows"
        module.config = copies[id(shared)]


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
    bias = with_mask(bias, attention_mask)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _WrittenOut.apply(query, key, value, bias, scale).transpose(1, 2).contiguous(), None


def use_written_out_attention() -> str:
    """Let transformers find `written_out_attention`, and return the name it goes by."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("softprompt_written_out", written_out_attention)
    AttentionMaskInterface.register("softprompt_written_out", sdpa_mask)
    return "softprompt_written_out"


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
        device = args[0].device
        if device.type == "cuda" and not torch.compiler.is_compiling():  # which chooses an attention once
            kwargs["context_fn"] = lambda: (nullcontext(), attending(device))
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def attending(device: torch.device) -> AbstractContextManager[Any]:
    """What a model's pass runs in: on a GPU without cuDNN's attention, which PyTorch 2.11 and later take first on some.

    It plans 20 to 40 ms for each shape it has not seen, and ours change with every micro-batch and every token.
    """
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
