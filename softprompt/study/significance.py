"""Whether a difference is more than chance: intervals, paired comparisons, verdicts. NumPy only.

A method's answers are a table of scores: one row a seed, one column an example, such as 1 for right and 0 for wrong.
Two things vary from one study to the next, which seeds and which examples; every draw here takes both anew, with
replacement. Whatever was scored on the same examples has the same columns in a draw, whichever method, model or size it
is of; and what the same trainings scored on several sets has the same rows. A draw of s seeds varies less than s seeds
do, by (s - 1) / s, so what it differs from the mean of all is made larger to match.
Shapes: s seeds, n examples, t draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

NUM_DRAWS = 10_000  # ours: Holm's correction asks of a dozen claims for a p-value of 0.004, whose error is then 0.0009
DRAWS_AT_ONCE = 1_000  # ours: of ten thousand examples they take 80 MB
LEVEL = 0.95
SIGNIFICANT = 0.05
LEARNABLE = (
    5.0  # points above the majority class that model tuning must have, or a task tests nothing (docs/findings.md)
)
SEEN, NOT_SEEN, NOISE, UNTESTABLE = "seen", "not seen", "within noise", "not testable here"


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with a probability of `LEVEL`; anywhere where nothing bounds it."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much better the first method is, over all tasks pooled."""

    interval: Interval
    p: float
    """Two-sided: how often draws lie on the other side of zero, doubled; or how often flips go as far either way."""


class Term(NamedTuple):
    """The scores of some trainings on some examples, in a weighted sum."""

    weight: float
    table: Float[np.ndarray, "s n"]
    seeds: Any
    """Which trainings, by anything that can be hashed: terms of the same ones are drawn alike."""
    examples: Any
    """Which examples, likewise."""


def contrast(parts: Sequence[Sequence[Term]], *, seed: int = 0, draws: int = NUM_DRAWS) -> Difference | None:
    """The mean over parts, such as tasks or models, of a weighted sum of scores in each.

    None for no parts; ValueError for tables of the same examples that have other numbers of them.
    """
    if not parts:
        return None
    rng = np.random.default_rng(seed)
    terms = [term._replace(table=_checked(term.table)) for part in parts for term in part]
    starts = range(0, draws, DRAWS_AT_ONCE)
    total = np.concatenate([_totals(terms, rng, min(DRAWS_AT_ONCE, draws - start)) for start in starts])
    mean = sum(term.weight * float(term.table.mean()) for term in terms)
    return _difference(mean / len(parts), total / len(parts))


def _totals(terms: Sequence[Term], rng: np.random.Generator, draws: int) -> Float[np.ndarray, " t"]:
    """The weighted sum of all terms in each draw."""
    rows: dict[Any, np.ndarray] = {}
    columns: dict[Any, np.ndarray] = {}
    total = np.zeros(draws)
    for weight, table, seeds, examples in terms:
        s, n = table.shape
        if (seeds, s) not in rows:
            # Seeds drawn weigh so that they vary as much as the seeds themselves do; one alone cannot.
            rows[seeds, s] = 1 + (_drawn(s, rng, draws) - 1) * np.sqrt(s / max(s - 1, 1))
        if examples not in columns:
            columns[examples] = _drawn(n, rng, draws)
        if columns[examples].shape[1] != n:
            raise ValueError(f"{columns[examples].shape[1]} and {n} examples; compare methods on the same examples")
        total += weight * (
            ((rows[seeds, s] @ table) * columns[examples]).sum(1) / table.size
        )  # each drawn table's mean
    return total


def deviations(
    first: Sequence[Float[np.ndarray, " _"]],
    second: Sequence[Float[np.ndarray, " _"]],
    *,
    seed: int = 0,
    draws: int = NUM_DRAWS,
) -> Difference | None:
    """How much more one kind of score varies than another: the mean over tasks of the difference of their deviations.

    By permutation, since a few scores drawn with replacement vary less than they did: what differs from its kind's mean
    is dealt out anew to both kinds, and the interval is the difference minus what that gives. None for no tasks;
    ValueError for a kind with fewer than two scores.
    """
    if not first:
        return None
    rng = np.random.default_rng(seed)
    chance = np.zeros(draws)
    mean = 0.0
    for one, other in zip(first, second, strict=True):
        pool = np.concatenate([_residuals(one), _residuals(other)])
        dealt = pool[rng.permuted(np.tile(np.arange(len(pool)), (draws, 1)), axis=1)]
        chance += dealt[:, : len(one)].std(1, ddof=1) - dealt[:, len(one) :].std(1, ddof=1)
        mean += float(one.std(ddof=1) - other.std(ddof=1))
    return _difference(mean / len(first), (mean - chance) / len(first))


def sign_flips(differences: Sequence[float], *, seed: int = 0, draws: int = NUM_DRAWS) -> Difference | None:
    """Whether the sum of a few differences, one of each pair, is more than chance: how often it is as large when any of
    them change their sign.

    Of all changes, or of so many drawn ones where there are more. Three differences give 0.25 at least, and bound
    nothing. None for no differences.
    """
    if not differences:
        return None
    values = np.array(differences)
    if 2 ** len(values) <= draws:
        signs = np.array(list(product((1, -1), repeat=len(values))))
    else:
        drawn = np.random.default_rng(seed).choice((1, -1), size=(draws, len(values)))
        signs = np.concatenate([np.ones((1, len(values))), drawn])
    total = float(values.sum())
    as_far = np.abs(signs @ values) >= abs(total) * (1 - 1e-9)
    return Difference(Interval(total, -inf, inf), float(as_far.mean()))


def _residuals(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """What differs from the mean, with the variance that n scores estimate."""
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} score has no deviation; give two or more")
    return (scores - scores.mean()) * np.sqrt(len(scores) / (len(scores) - 1))


def _difference(mean: float, drawn: np.ndarray) -> Difference:
    beyond = min(np.mean(drawn <= 0), np.mean(drawn >= 0))
    # Never zero: as many draws again might hold one.
    p = min(1.0, 2 * (float(beyond) * len(drawn) + 1) / (len(drawn) + 1))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Difference(Interval(mean, float(low), float(high)), p)


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
    difference = contrast([[Term(1.0, tuned, "tuned", 0), Term(-1.0, majority, "majority", 0)]], seed=seed)
    assert difference is not None
    found = difference.interval
    error = (found.high - found.low) / (2 * 1.96)
    return 100 * found.mean >= LEARNABLE and found.mean > 2 * error


def _checked(scores: Float[np.ndarray, "s n"]) -> Float[np.ndarray, "s n"]:
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores of shape {table.shape}; wanted one row a seed and one column an example")
    return table


def _drawn(count: int, rng: np.random.Generator, draws: int) -> Float[np.ndarray, "t _"]:
    """How often each of so many is in each draw of as many, with replacement."""
    chosen = rng.integers(count, size=(draws, count)) + count * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * count).reshape(draws, count).astype(float)
