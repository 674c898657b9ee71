"""The order of a run: which rows of a set each step takes."""

from __future__ import annotations

import numpy as np


def order_of_step(
    num_rows: int, batch_size: int, step: int, seed: int, *, shuffles: dict[int, np.ndarray] | None = None
) -> list[int]:
    """Which rows of a set step `step` (from 0) takes: a fresh shuffle every epoch, cut into batches across epochs.

    A pure function of its arguments, so that a resumed run goes on exactly where it was. shuffles: what a member keeps
    from step to step, by epoch, so that each epoch is shuffled once.
    """
    shuffles = {} if shuffles is None else shuffles
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = range(places[0] // num_rows, places[-1] // num_rows + 1)
    for epoch in shuffles.keys() - set(epochs):
        del shuffles[epoch]
    for epoch in epochs:
        if epoch not in shuffles:
            rows = np.arange(num_rows, dtype=np.uint32)
            shuffles[epoch] = np.random.default_rng([seed, epoch]).permutation(rows)
    return [int(shuffles[place // num_rows][place % num_rows]) for place in places]
