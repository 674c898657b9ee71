"""T5 1.1 shapes, from those that train on a laptop to the paper's, and new models of them.

Shapes: v vocabulary, d width, n ids, w width of another model.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.base.names import first_line
from softprompt.models import T5_TYPES, FrozenLM, Shape, Tokenizer, load_tokenizer, quiet, resolve


def new_model(shape: Shape, tokenizer: Tokenizer, *, seed: int, tables_from: FrozenLM | None = None) -> Any:
    """A T5 1.1 of this shape with random weights, float32, for the ids of this tokenizer.

    Weights are drawn as transformers draws T5's, but the output layer with a standard deviation of d^-0.5, as T5X
    does (its own initialiser of the logits' weights): at 1, a new model's loss is many times that of guessing.
    Attention starts where it is useful, which T5's own random start takes tens of millions of tokens to reach:
    `attend_to_the_same` and `attend_nearby`; and layers add little to begin with (`add_little`).

    tables_from: a wider model, whose embeddings take the place of both tables' random rows, for the pieces that are
    ordinary text. ValueError for one that is no wider.
    """
    from transformers import T5Config, T5ForConditionalGeneration

    settings: dict[str, Any] = dict(
        **asdict(shape),
        vocab_size=tokenizer.size,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=tokenizer.pad_id,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
    )
    config = T5Config(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        # transformers 5 ties the two tables of every new T5; T5 1.1's are two.
        model.lm_head.weight = nn.Parameter(torch.randn(tokenizer.size, shape.d_model) * shape.d_model**-0.5)
    attend_to_the_same(model)
    attend_nearby(model)
    add_little(model)
    if tables_from is not None:
        ids, rows = projected_embeddings(tables_from, tokenizer, shape.d_model, seed=seed)
        with torch.no_grad():
            model.shared.weight[ids] = rows
            model.lm_head.weight[ids] = rows * shape.d_model**-0.5
    return model.float()


@torch.no_grad()
def attend_to_the_same(model: Any) -> None:
    """Let the decoder of a new T5 read, of its inputs, what stands at the token that it has just written.

    The keys' weights of its cross-attention become those of the queries, at their own size: a token's query meets its
    own key with a score of d_kv^0.5, and others' with scores of about 1. So a sentinel finds its place in the inputs.
    """
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.k.weight.copy_(attention.q.weight * attention.key_value_proj_dim**0.5)


NEARBY = 8  # distances that a bucket of T5's has to itself, on each side
NEAREST_BIAS, BIAS_STEP = 4.0, 0.7  # ours: half of a head's attention on about three tokens (docs/log.md, 2026-11-25)


@torch.no_grad()
def attend_nearby(model: Any) -> None:
    """Let the encoder of a new T5 read a token's neighbours: even heads those before it, odd heads those after it."""
    biases = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # [32 buckets, heads]
    before, after = biases[: len(biases) // 2], biases[len(biases) // 2 :]
    near = NEAREST_BIAS - BIAS_STEP * torch.arange(NEARBY)
    biases.zero_()
    before[:NEARBY, 0::2] = near[:, None]
    after[:NEARBY, 1::2] = near[:, None]


@torch.no_grad()
def add_little(model: Any) -> None:
    """Let the layers of a new T5 add to its states no more together than one would: 1/sqrt(n) each, of n in a stack.

    GPT-2's start of residual layers (Radford et al. 2019, section 2.3). Without it the states of a deep encoder hardly
    tell which token they are of, and the decoder does not find what `attend_to_the_same` looks for (docs/log.md,
    2026-11-26).
    """
    for stack in (model.encoder, model.decoder):
        layers = [layer for block in stack.block for layer in block.layer]
        for layer in layers:
            kinds = (getattr(layer, name, None) for name in ("SelfAttention", "EncDecAttention", "DenseReluDense"))
            inner = next(kind for kind in kinds if kind is not None)
            last = inner.wo if hasattr(inner, "wo") else inner.o
            last.weight.mul_(len(layers) ** -0.5)


def projected_embeddings(
    lm: FrozenLM, tokenizer: Tokenizer, width: int, *, seed: int
) -> tuple[Int[Tensor, " n"], Float[Tensor, "n d"]]:
    """This tokenizer's ordinary pieces, and what `lm` has for them, brought to `width` with a deviation of 1.

    A piece's row [w] is the mean over the pieces that `lm` cuts its text into. The first `width` principal components
    of the rows are kept and turned at random, so that no coordinate is larger than the others.
    Raises ValueError where `lm` is no wider than `width`.
    """
    if lm.width <= width:
        raise ValueError(f"{lm.name} has width {lm.width}, but tables of width {width} need a wider model")
    ids = torch.tensor([id for id in tokenizer.ordinary_ids() if lm.tokenizer.encode(tokenizer.piece(id))])
    cut = lm.tokenizer.encode_all([tokenizer.piece(id) for id in ids.tolist()])
    table = lm.embeddings.cpu()
    rows = torch.stack([table[pieces].float().mean(0) for pieces in cut])
    rows = rows - rows.mean(0)
    components = torch.linalg.svd(rows, full_matrices=False).Vh[:width]
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    rows = rows @ components.T @ turn
    return ids, rows / rows.std()


def read_model(source: str | Path) -> tuple[Any, Tokenizer]:
    """A T5-shaped model of a folder or a hub id, in float32 for training, and its tokenizer.

    Raises ValueError for a source that is no model, or one of another kind.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    place, _ = resolve(str(source))
    tokenizer = load_tokenizer(place)
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in T5_TYPES:
            raise ValueError(f"it is of type {config.model_type!r}, and wanted is one of {', '.join(T5_TYPES)}")
        with quiet():
            model = AutoModelForSeq2SeqLM.from_pretrained(place, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot train the model {str(source)!r}: {first_line(error)}") from None
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.size > rows:
        raise ValueError(f"{source} has {rows:,} embeddings, but its tokenizer has {tokenizer.size:,} ids")
    return model, tokenizer
