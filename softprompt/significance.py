"""Whether a difference is more than chance: intervals, paired comparisons, verdicts. NumPy only.

A method's answers are a table of scores: one row a seed, one column an example, such as 1 for right and 0 for wrong.
Two things vary from one study to the next, which seeds and which examples; every draw here takes both anew, with
replacement. Two methods are compared on the same examples, so a draw takes the same columns of both, and rows of each.
Shapes: s seeds, n examples, t draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

NUM_DRAWS = 2_000  # ours: the error of a p-value near 0.05 is then 0.005
LEVEL = 0.95
SIGNIFICANT = 0.05
LEARNABLE = (
    5.0  # points above the majority class that model tuning must have, or a task tests nothing (docs/findings.md)
)
SEEN, NOT_SEEN, NOISE, UNTESTABLE = "seen", "not seen", "within noise", "not testable here"


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with a probability of `LEVEL`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the first method is, over all tasks pooled."""

    interval: Interval
    p: float
    """Two-sided: how often draws lie on the other side of zero, doubled."""


def interval(scores: Float[np.ndarray, "s n"], *, seed: int = 0, draws: int = NUM_DRAWS) -> Interval:
    """The mean score of a method with its interval. ValueError for a table with nothing in it."""
    table = _checked(scores)
    means = _means(table, *_chosen(table, np.random.default_rng(seed), draws))
    return _interval(float(table.mean()), means)


def compare(
    first: Sequence[Float[np.ndarray, "_ _"]],
    second: Sequence[Float[np.ndarray, "_ _"]],
    *,
    seed: int = 0,
    draws: int = NUM_DRAWS,
) -> Difference:
    """Two methods on the same tasks, a table each: the mean over tasks of the difference of their means.

    Numbers of seeds may differ, examples may not. ValueError for other numbers of tasks or examples.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} tasks; compare methods on the same tasks, one at least")
    found = contrast([[(1.0, a), (-1.0, b)] for a, b in zip(first, second, strict=True)], seed=seed, draws=draws)
    assert found is not None
    return found


def contrast(
    tasks: Sequence[Sequence[tuple[float, Float[np.ndarray, "_ _"]]]], *, seed: int = 0, draws: int = NUM_DRAWS
) -> Difference | None:
    """A weighted sum of methods on each task, such as a difference of two differences, and its mean over tasks.

    tasks: for each the weights and tables. None for no tasks; ValueError for other numbers of examples in one task.
    """
    if not tasks:
        return None
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    mean = 0.0
    for terms in tasks:
        tables = [_checked(table) for _, table in terms]
        if len({table.shape[1] for table in tables}) > 1:
            counts = " and ".join(str(table.shape[1]) for table in tables)
            raise ValueError(f"{counts} examples; compare methods on the same examples")
        rows, columns = _chosen(tables[0], rng, draws)
        for place, ((weight, _), table) in enumerate(zip(terms, tables, strict=True)):
            chosen = rows if place == 0 else rng.integers(len(table), size=(draws, len(table)))
            total += weight * _means(table, chosen, columns)
            mean += weight * float(table.mean())
    return _difference(mean / len(tasks), total / len(tasks))


def deviations(
    first: Sequence[Float[np.ndarray, " _"]],
    second: Sequence[Float[np.ndarray, " _"]],
    *,
    seed: int = 0,
    draws: int = NUM_DRAWS,
) -> Difference | None:
    """How much more one kind of score varies than another: the mean over tasks of the difference of their deviations.

    A draw takes the scores of both kinds anew. None for no tasks; ValueError for a kind with fewer than two scores.
    """
    if not first:
        return None
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    mean = 0.0
    for one, other in zip(first, second, strict=True):
        for sign, scores in ((1.0, one), (-1.0, other)):
            if len(scores) < 2:
                raise ValueError(f"{len(scores)} score has no deviation; give two or more")
            total += sign * scores[rng.integers(len(scores), size=(draws, len(scores)))].std(1, ddof=1)
            mean += sign * float(scores.std(ddof=1))
    return _difference(mean / len(first), total / len(first))


def _difference(mean: float, drawn: np.ndarray) -> Difference:
    beyond = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    # Never zero: as many draws again might hold one.
    p = min(1.0, 2 * (float(beyond) * len(drawn) + 1) / (len(drawn) + 1))
    return Difference(_interval(mean, drawn), p)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values of several claims, corrected so that one false verdict among them has the stated chance (Holm 1979)."""
    order = sorted(range(len(ps)), key=ps.__getitem__)
    corrected, most = [0.0] * len(ps), 0.0
    for rank, place in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = most
    return corrected


def verdicts(differences: Sequence[Difference | None]) -> list[str]:
    """One word for each claim, of the difference that it says is above zero; None: it could not be tested.

    The claims that were tested share the correction.
    """
    tested = [found for found in differences if found is not None]
    corrected = iter(holm([found.p for found in tested]))
    words = []
    for found in differences:
        if found is None:
            words.append(UNTESTABLE)
        elif next(corrected) >= SIGNIFICANT:
            words.append(NOISE)
        else:
            words.append(SEEN if found.interval.mean > 0 else NOT_SEEN)
    return words


def learnable(tuned: Float[np.ndarray, "s n"], majority: Float[np.ndarray, "_ n"], *, seed: int = 0) -> bool:
    """Whether a task can tell methods apart here: model tuning beats the majority class by 5 points and by two
    standard errors.
    """
    found = compare([tuned], [majority], seed=seed).interval
    error = (found.high - found.low) / (2 * 1.96)
    return 100 * found.mean >= LEARNABLE and found.mean > 2 * error


def _checked(scores: Float[np.ndarray, "s n"]) -> Float[np.ndarray, "s n"]:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores of shape {table.shape}; wanted one row a seed and one column an example")
    return table


def _chosen(table: np.ndarray, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [t s] and columns [t n] of each draw."""
    s, n = table.shape
    return rng.integers(s, size=(draws, s)), rng.integers(n, size=(draws, n))


def _means(table: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, " t"]:
    # The mean of a drawn table is the sum over examples of how often each was drawn times its mean over drawn seeds.
    return np.array([table[own].mean(0)[picked].mean() for own, picked in zip(rows, columns, strict=True)])


def _interval(mean: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high))
