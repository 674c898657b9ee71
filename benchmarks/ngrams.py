"""An n-gram language model with interpolated modified Kneser-Ney smoothing, as KenLM estimates it.

Chen and Goodman 1998, section 3.5; Heafield et al. 2013. Counts are arrays, one entry an n-gram: an n-gram is its
prefix's number times the vocabulary plus its last id, so sorting finds equals without any table of strings.
Shapes: n ids of a text, m different n-grams of one order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass
class _Order:
    """The n-grams of one order, sorted by key."""

    keys: Int[np.ndarray, " m"]
    """Number of the prefix, times the vocabulary, plus the last id."""
    probabilities: Float[np.ndarray, " m"]
    """Discounted probability of the last id after the prefix, without what lower orders add."""
    backoff: Float[np.ndarray, " c"]
    """For each prefix, the weight of the lower order."""


class NGrams:
    """A model of order `order` over ids below `vocabulary`, estimated from one text.

    ValueError for a text shorter than the order.
    """

    def __init__(self, ids: Int[np.ndarray, " n"], vocabulary: int, order: int = 5):
        if len(ids) < order:
            raise ValueError(f"a text of {len(ids)} ids is too short for {order}-grams")
        self.vocabulary, self.order = vocabulary, order
        self.levels: list[np.ndarray] = []
        numbers = _number_levels(ids.astype(np.int64), vocabulary, order, self.levels)
        self.orders = [self._estimate(numbers, n) for n in range(1, order + 1)]

    def log_probs(self, ids: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Natural log p of each id after those before it; only what stands in the text is a context."""
        ids = ids.astype(np.int64)
        probability = np.full(len(ids), 1.0 / self.vocabulary)
        context = np.zeros(len(ids), dtype=np.int64)  # the number of the context that ends before each id
        for n in range(1, self.order + 1):
            if n > 1:
                context = self._contexts(ids, n - 1)
            known = context >= 0
            estimate = self.orders[n - 1]
            weight = np.where(known, estimate.backoff[np.maximum(context, 0)], 1.0)
            place, found = _find(estimate.keys, np.maximum(context, 0) * self.vocabulary + ids)
            direct = np.where(found & known, estimate.probabilities[place], 0.0)
            probability = direct + weight * probability
        return np.log(probability)

    def _contexts(self, ids: Int[np.ndarray, " n"], length: int) -> Int[np.ndarray, " n"]:
        """The number of the `length` ids before each place; -1 where they were never seen, or there are fewer."""
        number = np.zeros(len(ids), dtype=np.int64)
        for back in range(length, 0, -1):
            shifted = np.concatenate([np.full(back, -1), ids[:-back]])
            place, found = _find(self.levels[length - back], np.maximum(number, 0) * self.vocabulary + shifted)
            number = np.where(found & (number >= 0) & (shifted >= 0), place, -1)
        return number

    def _estimate(self, numbers: list[np.ndarray], n: int) -> _Order:
        """Modified Kneser-Ney for one order: raw counts at the top, counts of different left neighbours below."""
        keys = self.levels[n - 1]
        if n == self.order:
            counts = np.bincount(numbers[n - 1], minlength=len(keys))
        else:
            # An (n+1)-gram counts once for the n-gram that is its end.
            starts = np.unique(numbers[n], return_index=True)[1]
            counts = np.bincount(numbers[n - 1][starts + 1], minlength=len(keys))
        contexts = keys // self.vocabulary
        size = len(self.levels[n - 2]) if n > 1 else 1
        total = np.bincount(contexts, weights=counts, minlength=size)
        discounts = _discounts(counts)
        taken = discounts[np.minimum(counts, 3)]
        safe = np.maximum(total, 1e-300)
        backoff = np.where(total > 0, np.bincount(contexts, weights=taken, minlength=size) / safe, 1.0)
        return _Order(keys, (counts - taken) / safe[contexts], backoff)


def _number_levels(
    ids: Int[np.ndarray, " n"], vocabulary: int, order: int, levels: list[np.ndarray]
) -> list[np.ndarray]:
    """For each order, the number of the n-gram that begins at each place; `levels` gets the sorted keys."""
    number = np.zeros(len(ids), dtype=np.int64)
    numbers = []
    for n in range(order):
        keys = number[: len(ids) - n] * vocabulary + ids[n:]
        found, number = np.unique(keys, return_inverse=True)
        levels.append(found)
        numbers.append(number)
    return numbers


def _find(keys: Int[np.ndarray, " m"], wanted: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, keys[place] == wanted


def _discounts(counts: Int[np.ndarray, " m"]) -> Float[np.ndarray, " 4"]:
    """What is taken from counts of 0, 1, 2, and 3 or more (Chen and Goodman 1998, equation 26)."""
    n = np.bincount(np.minimum(counts, 5), minlength=5).astype(float)
    if min(n[1:5]) == 0:
        return np.array([0.0, 0.5, 0.5, 0.5])  # too little text to estimate them
    y = n[1] / (n[1] + 2 * n[2])
    return np.array([0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))]).clip(0.0)
