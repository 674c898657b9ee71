"""The order of a run: which rows of a set each step takes."""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def order_of_step(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Which rows of a set step `step` (from 0) takes: a fresh shuffle every epoch, cut into batches across epochs.

    A pure function of its arguments, so that a resumed run goes on exactly where it was.
    """
    taken = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, offset = divmod(place, num_rows)
        taken.append(int(_shuffle(num_rows, seed, epoch)[offset]))
    return taken


@lru_cache(maxsize=32)
def _shuffle(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The epoch's order; the last few are remembered, since every step asks for one."""
    return np.random.default_rng([seed, epoch]).permutation(np.arange(num_rows, dtype=np.uint32))
