"""The paper's claims that rows decide: for each the difference that must be above zero, and its verdict.

The tests are those of docs/findings.md, written before their runs. A claim whose rows are missing, or whose tasks no
model tuning learns either, is not testable. Scores are right answers, example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from softprompt.comparison import MODEL_TUNING, PROMPT_DESIGN, PROMPT_TUNING, score_within
from softprompt.evaluation import Result
from softprompt.significance import Difference, contrast, deviations, learnable, verdicts
from softprompt.study import VOTE, family_of

MAJORITY = "majority"  # the method of rows of benchmarks/baselines.py that answer the commonest label

Table = np.ndarray
Terms = list[tuple[float, Table]]
"""Weighted tables of one task: one row a seed, one column an example."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, by its number in docs/findings.md."""

    number: int
    text: str
    experiments: tuple[str, ...]
    """Whose rows decide it."""
    difference: Callable[[list[Result]], Difference | None]
    """Of these rows; None where what it needs is not among them."""


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim."""

    claim: Claim
    difference: Difference | None
    word: str
    tasks: tuple[str, ...]


def decide(rows: Sequence[Result], majority: Sequence[Result] = ()) -> list[Verdict]:
    """Every claim's verdict; those that were tested share Holm's correction.

    majority: rows of the majority class, which say what model tuning has to beat for a task to test anything. Tasks
    without such a row count as learnable, and so do those without model tuning.
    """
    rows = [row for row in rows if "right" in row.notes]
    dull = _unlearnable(rows, majority)
    found, used = [], []
    for claim in CLAIMS:
        own = [row for row in rows if row.experiment in claim.experiments]
        tasks = tuple(dict.fromkeys(row.config.get("trained_on", row.task) for row in own))
        can_tell = any((row.config["frozen"], row.task) not in dull for row in own)
        found.append(claim.difference(own) if can_tell else None)
        used.append(tasks)
    words = verdicts(found)
    return [Verdict(*of) for of in zip(CLAIMS, found, words, used, strict=True)]


def as_table(found: Sequence[Verdict]) -> list[list[str]]:
    """Cells: claim, difference in points with its interval, p, verdict, and the tasks pooled."""
    lines = [["", "claim", "difference", "95 % interval", "p", "verdict", "tasks"]]
    for verdict in found:
        one, word = verdict.difference, verdict.word
        cells = ["-", "-", "-"]
        if one is not None:
            low, high = (f"{100 * value:+.1f}" for value in (one.interval.low, one.interval.high))
            cells = [f"{100 * one.interval.mean:+.1f}", f"{low} to {high}", f"{one.p:.3f}"]
        tasks = ", ".join(name.split("/")[-1] for name in verdict.tasks) if one is not None else "-"
        lines.append([str(verdict.claim.number), verdict.claim.text, *cells, word, tasks])
    return lines


def _unlearnable(rows: Sequence[Result], majority: Sequence[Result]) -> set[tuple[str, str]]:
    """Frozen models and tasks where model tuning itself hardly beats the majority class."""
    found = set()
    known = {row.task: _right([row]) for row in majority}
    tuned = [row for row in rows if row.config.get("method") == MODEL_TUNING and row.config["trained_on"] == row.task]
    for frozen, task in dict.fromkeys((row.config["frozen"], row.task) for row in tuned):
        own = _right([row for row in tuned if (row.config["frozen"], row.task) == (frozen, task)])
        if task in known and known[task].shape[1] == own.shape[1] and not learnable(own, known[task]):
            found.add((frozen, task))
    return found


# Rows to tables ----------------------------------------------------------------------------------------------------


def _right(rows: Sequence[Result]) -> Table:
    """Right answers, one row a seed, in the order of the seeds."""
    ordered = sorted(rows, key=lambda row: row.seed)
    return np.array([[float(answer) for answer in row.notes["right"]] for row in ordered])


def _of(rows: Sequence[Result], point: str, asked: str, task: str, scoring: str | None = None) -> Table | None:
    """A point's table on a model that was asked about, and a task; None where there are no such rows."""
    own = [
        row
        for row in _on(rows, asked, task)
        if row.config["point"] == point and scoring in (None, row.scoring) and row.seed != VOTE
    ]
    return _right(own) if own else None


def _on(rows: Sequence[Result], asked: str, task: str) -> list[Result]:
    return [row for row in rows if (row.config["asked"], row.task) == (asked, task)]


def _models(rows: Sequence[Result]) -> list[str]:
    """The models that were asked about, the smallest first."""
    sizes = {row.config["asked"]: row.config["num_parameters"] for row in rows}
    return sorted(sizes, key=lambda asked: sizes[asked])


def _pooled(rows: Sequence[Result], terms: Callable[[str, str], Sequence[tuple[float, Table | None]]]) -> list[Terms]:
    """The terms of every model and task that has all of them."""
    places = dict.fromkeys((row.config["asked"], row.task) for row in rows)
    made = [terms(*place) for place in places]
    return [[(w, t) for w, t in own if t is not None] for own in made if all(t is not None for _, t in own)]


def _points(
    *weights: tuple[float, str], scoring: str | None = None, by_size: bool = False
) -> Callable[[list[Result]], Difference | None]:
    """A weighted sum of points, models and tasks pooled; by_size: at the smallest model minus at the largest."""

    def terms_at(rows: list[Result], asked: str, task: str, sign: float) -> list[tuple[float, Table | None]]:
        return [(sign * weight, _of(rows, point, asked, task, scoring)) for weight, point in weights]

    def difference(rows: list[Result]) -> Difference | None:
        if not by_size:
            return contrast(_pooled(rows, lambda asked, task: terms_at(rows, asked, task, 1.0)))
        rows = _of_one_family(rows)
        models = _models(rows)
        if len(models) < 2:
            return None

        def both(asked: str, task: str) -> list[tuple[float, Table | None]]:
            return [*terms_at(rows, models[0], task, 1.0), *terms_at(rows, models[-1], task, -1.0)]

        return contrast(_pooled(_on_model(rows, models[0]), both))

    return difference


def _of_one_family(rows: Sequence[Result]) -> list[Result]:
    """Those of the family with the most sizes."""
    families: dict[str, list[Result]] = {}
    for row in rows:
        families.setdefault(family_of(row), []).append(row)
    return max(families.values(), key=lambda own: len(_models(own)), default=[])


def _on_model(rows: Sequence[Result], asked: str) -> list[Result]:
    return [row for row in rows if row.config["asked"] == asked]


# The claims --------------------------------------------------------------------------------------------------------


def _beats_design(rows: list[Result]) -> Difference | None:
    """Prompt tuning minus the text prompt, of any number of shots, that the selection rows choose."""

    def terms(asked: str, task: str) -> list[tuple[float, Table | None]]:
        texts = _designs(_on(rows, asked, task))
        best = max(texts, key=lambda row: row.notes["selection_score"], default=None)
        return [(1.0, _of(rows, "prompt tuning", asked, task)), (-1.0, None if best is None else _right([best]))]

    return contrast(_pooled(rows, terms))


def _varies_with_wording(rows: list[Result]) -> Difference | None:
    """Deviation of the selection score over wordings and draws, uncalibrated, minus that over prompts' seeds."""
    first, second = [], []
    for asked, task in dict.fromkeys((row.config["asked"], row.task) for row in rows):
        own = _on(rows, asked, task)
        tried = [one for row in _designs(own) for one in row.config["tried"] if "calibrated" not in one["design"]]
        prompts = [row.notes["selection_score"] for row in own if row.config["point"] == "prompt tuning"]
        if len(tried) > 1 and len(prompts) > 1:
            first.append(np.array([one["score"] for one in tried]))
            second.append(np.array(prompts))
    return deviations(first, second)


def _designs(rows: Sequence[Result]) -> list[Result]:
    return [row for row in rows if row.config.get("method") == PROMPT_DESIGN]


def _more_adaptation(rows: list[Result]) -> Difference | None:
    """The last step of adaptation minus the first after none, by generation."""

    def terms(asked: str, task: str) -> list[tuple[float, Table | None]]:
        steps = sorted({row.config["point"] for row in _on(rows, asked, task)}, key=int)
        pairs = ((1.0, steps[-1]), (-1.0, steps[1])) if len(steps) > 2 else ((1.0, ""),)
        return [(weight, _of(rows, step, asked, task, "generate")) for weight, step in pairs]

    return contrast(_pooled(rows, terms))


def _better_at_the_other(rows: list[Result]) -> Difference | None:
    """Prompt tuning minus model tuning on the task that was not trained on."""
    away = [row for row in rows if row.config["trained_on"] != row.task]

    def terms(asked: str, task: str) -> list[tuple[float, Table | None]]:
        own = {row.config["method"]: row.config["point"] for row in _on(away, asked, task)}
        pairs = ((1.0, PROMPT_TUNING), (-1.0, MODEL_TUNING))
        return [(weight, _of(away, own.get(method, ""), asked, task)) for weight, method in pairs]

    return contrast(_pooled(away, terms))


def _vote_minus(best: bool) -> Callable[[list[Result]], Difference | None]:
    """The vote of a point's prompts minus their mean, or minus the one that the selection rows choose."""

    def difference(rows: list[Result]) -> Difference | None:
        def terms(asked: str, task: str) -> list[tuple[float, Table | None]]:
            own = [row for row in _on(rows, asked, task) if row.scoring == "rank"]
            prompts = sorted((row for row in own if row.seed != VOTE), key=_selection_score)
            votes, prompts = [row for row in own if row.seed == VOTE], prompts[-1:] if best else prompts
            return [(1.0, _right(votes) if votes else None), (-1.0, _right(prompts) if prompts else None)]

        return contrast(_pooled(rows, terms))

    return difference


def _selection_score(row: Result) -> float:
    return score_within(row, math.inf) or 0.0


def _carries_over(*, at_largest_shift: bool) -> Callable[[list[Result]], Difference | None]:
    """Prompt tuning minus model tuning out of domain, where both are equally good in domain.

    Minus the same in domain, which is nearly nothing then; or, at the largest shift, that of the set with the lowest F1
    minus the mean of the others.
    """

    def difference(rows: list[Result]) -> Difference | None:
        parts: list[Terms] = []
        for asked in _models(rows):
            parts += _matched(_on_model(rows, asked), at_largest_shift)
        return contrast(parts)

    return difference


def _matched(rows: list[Result], at_largest_shift: bool) -> list[Terms]:
    """One model's sets at the steps with matched scores in domain, weighted so that their mean is the difference."""
    home, away = [], []
    for method in (PROMPT_TUNING, MODEL_TUNING):
        own = [row for row in rows if row.config["method"] == method]
        home.append(along_training([row for row in own if row.task == row.config["trained_on"]]))
        away.append(along_training([row for row in own if row.task != row.config["trained_on"]]))
    if not all(home + away):
        return []
    at_home = [next(iter(tables.values())) for tables in home]
    steps = _nearest_steps(*at_home)

    def apart(first: dict[int, Table], second: dict[int, Table], weight: float) -> Terms:
        return [(weight, first[steps[0]]), (-weight, second[steps[1]])]

    tasks = [task for task in away[0] if task in away[1]]
    num = len(tasks)
    if at_largest_shift:
        if num < 2:
            return []
        means = {
            task: sum(float(table.mean()) for _, table in apart(away[0][task], away[1][task], 1.0)) for task in tasks
        }
        lowest = min(tasks, key=means.__getitem__)
        weights = {task: float(num) if task == lowest else -num / (num - 1) for task in tasks}
        return [apart(away[0][task], away[1][task], weights[task]) for task in tasks]
    out = [apart(away[0][task], away[1][task], (num + 1) / num) for task in tasks]
    return [*out, apart(at_home[0], at_home[1], -(num + 1.0))]


def along_training(rows: Sequence[Result]) -> dict[str, dict[int, Table]]:
    """By task and step, the examples' scores along training, one row a seed; steps that every seed has."""
    found: dict[str, dict[int, Table]] = {}
    for task in dict.fromkeys(row.task for row in rows):
        own = sorted((row for row in rows if row.task == task), key=lambda row: row.seed)
        of_seeds = [{one["step"]: one["scores"] for one in row.notes.get("along", [])} for row in own]
        steps = set.intersection(*map(set, of_seeds))
        if steps:
            found[task] = {step: np.array([scores[step] for scores in of_seeds]) for step in sorted(steps)}
    return found


def _nearest_steps(first: dict[int, Table], second: dict[int, Table]) -> tuple[int, int]:
    """The steps where two methods are equally good: the best of the one that gets less far, and the other's nearest."""
    means = [{step: float(table.mean()) for step, table in own.items()} for own in (first, second)]
    tops = [max(own.values()) for own in means]
    goal = min(tops)
    a, b = (min(own, key=lambda step: (abs(own[step] - goal), step)) for own in means)
    return a, b


def _of_neighbours(first: str, second: str) -> Callable[[list[Result]], Difference | None]:
    """One number of a prompt's neighbourhood minus another; prompts of one point, model and task are its seeds."""

    def difference(rows: list[Result]) -> Difference | None:
        groups: dict[tuple[str, ...], dict[int, dict[str, float]]] = {}
        for row in rows:
            numbers = row.notes.get("neighbourhood", {})
            if first in numbers and second in numbers:
                key = (row.config["asked"], row.config["point"], row.task)
                groups.setdefault(key, {})[row.seed] = numbers
        tables = [
            [(w, np.array([[own[seed][name]] for seed in sorted(own)])) for w, name in ((1.0, first), (-1.0, second))]
            for own in groups.values()
        ]
        return contrast(tables)

    return difference


CLAIMS = (
    Claim(1, "The gap to model tuning shrinks with size", ("figure-1",),
          _points((1.0, "model tuning"), (-1.0, "prompt tuning"), by_size=True)),
    Claim(2, "Prompt tuning beats prompt design", ("figure-1",), _beats_design),
    Claim(3, "The quality of text prompts varies with their wording", ("figure-1",), _varies_with_wording),
    Claim(4, "Longer prompts help", ("figure-3a",), _points((1.0, "20"), (-1.0, "1"), scoring="rank")),
    Claim(5, "Past 20 tokens there is little to gain", ("figure-3a",),
          _points((2.0, "20"), (-1.0, "1"), (-1.0, "100"), scoring="rank")),
    Claim(6, "Large models need less length", ("figure-3a",),
          _points((1.0, "20"), (-1.0, "1"), scoring="rank", by_size=True)),
    Claim(7, "Class labels and sampled vocabulary beat random starts", ("figure-3b",),
          _points((0.5, "class-labels"), (0.5, "vocab"), (-1.0, "uniform"), scoring="rank")),
    Claim(8, "... and less so with size", ("figure-3b",),
          _points((0.5, "class-labels"), (0.5, "vocab"), (-1.0, "uniform"), scoring="rank", by_size=True)),
    Claim(9, "Span corruption makes a bad frozen model", ("figure-3c",),
          _points((1.0, "lm"), (-1.0, "span"), scoring="generate")),
    Claim(10, "A sentinel before the target does not mend it", ("figure-3c",),
          _points((1.0, "lm"), (-1.0, "span+sentinel"), scoring="generate")),
    Claim(11, "Longer adaptation is better", ("figure-3d",), _more_adaptation),
    Claim(13, "Prompts carry over better to other domains", ("table-1",), _carries_over(at_largest_shift=False)),
    Claim(14, "... most at the largest shift", ("table-1",), _carries_over(at_largest_shift=True)),
    Claim(15, "Prompts carry over better between QQP and MRPC", ("table-2",), _better_at_the_other),
    Claim(16, "An ensemble beats the mean of its prompts", ("table-3",), _vote_minus(best=False)),
    Claim(17, "... and their best", ("table-3",), _vote_minus(best=True)),
    Claim(18, "Neighbours of a prompt's rows form clusters", ("figure-3b",),
          _of_neighbours("cosine", "cosine_of_random")),
    Claim(19, "Class labels persist where they began", ("figure-3b",),
          _of_neighbours("labels_near_labels", "labels_near_sampled")),
)  # fmt: skip
