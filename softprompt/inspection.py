"""What a trained prompt looks like: the vocabulary's nearest tokens to each of its rows (paper, section 7).

Shapes: p prompt tokens, v vocabulary, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.backbone import FrozenLM

NUM_NEAREST = 5  # paper, section 7: the top 5


@dataclass(frozen=True)
class Neighbours:
    """The tokens nearest to one row of a prompt."""

    position: int
    """The row, from 0."""
    norm: float
    tokens: tuple[str, ...]
    """Nearest first."""
    ids: tuple[int, ...]
    cosines: tuple[float, ...]


def nearest_tokens(values: Float[Tensor, "p d"], lm: FrozenLM, count: int = NUM_NEAREST) -> list[Neighbours]:
    """The ordinary tokens of the vocabulary nearest to each row by cosine; trained rows' norms make distances useless.

    ValueError for a prompt of another width, or a count below 1.
    """
    if values.shape[1] != lm.width:
        raise ValueError(f"the prompt has width {values.shape[1]}, and {lm.name} has {lm.width}; take its own model")
    if count < 1:
        raise ValueError(f"count is {count}, but must be 1 or more")
    ids = torch.tensor(lm.tokenizer.ordinary_ids())
    table = lm.embeddings.detach()[ids.to(lm.device)].to("cpu", torch.float32)
    cosines = torch.nn.functional.normalize(values, dim=1) @ torch.nn.functional.normalize(table, dim=1).T
    best = cosines.topk(min(count, len(ids)), dim=1)
    norms = values.norm(dim=1).tolist()
    found = []
    for position, (near, places) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        own = tuple(int(ids[place]) for place in places)
        pieces = tuple(lm.tokenizer.piece(id) for id in own)
        found.append(Neighbours(position, norms[position], pieces, own, tuple(near)))
    return found
