"""The paper's claims that rows decide: for each the difference that must be above zero, and its verdict.

The tests are those of docs/findings.md, written before their runs. Rows of a task that model tuning does not learn are
left out, and a claim without the rows it needs is not testable. Scores are right answers, example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softprompt.answering import Result
from softprompt.study import paper
from softprompt.study.comparison import MODEL_TUNING, PROMPT_DESIGN, PROMPT_TUNING, score_within
from softprompt.study.params import FIGURE_LENGTHS, counts, t5
from softprompt.study.rows import VOTE, family_of, grouped, newest, point_of, size_of, trained_on, where
from softprompt.study.significance import (
    NOT_SEEN,
    SEEN,
    Difference,
    Term,
    contrast,
    deviations,
    learnable,
    sign_flips,
    verdicts,
)

MAJORITY = "majority"  # the method of rows of benchmarks/baselines.py that answer the commonest label
TOO_SMALL = {"superglue/cb", "superglue/copa", "superglue/wsc"}  # of which no verdict comes (docs/findings.md)

Table = np.ndarray
"""Scores, [seeds, examples]."""


class _Trainings(NamedTuple):
    """What a table's seeds are trainings of."""

    asked: str
    point: str
    task: str
    is_vote: bool


class _Examples(NamedTuple):
    """What a table's columns are: two runs with other --max-dev have scored other examples of a task."""

    task: str
    num: int


class Found(NamedTuple):
    """A difference, and the tasks that it pools."""

    difference: Difference
    tasks: tuple[str, ...]


Find = Callable[[list[Result]], Found | None]
"""The difference in the rows of a claim's experiments; None where what it needs is not among them."""
Terms = Callable[[list[Result]], Sequence[Term | None]]
"""The terms of a weighted sum in the rows of one model and task; None for one that is not to be had."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, by its number in docs/findings.md."""

    number: int
    text: str
    experiments: tuple[str, ...]
    """Whose rows decide it."""
    find: Find | None
    holds: Callable[[], bool] | None = None
    """Of a claim that is counted, not tested."""


@dataclass(frozen=True)
class Verdict:
    """What was found of a claim."""

    claim: Claim
    difference: Difference | None
    word: str
    tasks: tuple[str, ...]


def decide(rows: Sequence[Result], majority: Sequence[Result] = ()) -> list[Verdict]:
    """Every claim's verdict; those that were tested share Holm's correction.

    rows: of several for the same point, the newest count; else their order does not matter. majority: rows of the
    majority class, which say what model tuning has to beat for a task to test anything. Tasks without such a row of as
    many examples count as learnable, and so do those that no model was tuned on.
    """

    # Sorted, so that draws and ties are the same whatever the order of lines.
    rows = [row for row in newest(rows) if "right" in row.notes]
    rows.sort(key=lambda row: repr((*point_of(row), row.seed)))
    dull = _unlearnable(rows, majority)
    rows = [row for row in rows if (size_of(row), trained_on(row)) not in dull]
    found = []
    for claim in CLAIMS:
        own = [row for row in rows if row.experiment in claim.experiments]
        found.append(claim.find(own) if claim.find else None)
    words = verdicts([one and one.difference for one in found])
    made = []
    for claim, one, word in zip(CLAIMS, found, words, strict=True):
        if claim.holds is not None:
            word = SEEN if claim.holds() else NOT_SEEN
        made.append(Verdict(claim, one and one.difference, word, one.tasks if one else ()))
    return made


def as_table(found: Sequence[Verdict]) -> list[list[str]]:
    """Cells: claim, difference in points with its interval, p, verdict, and the tasks pooled; counted claims say so."""
    lines = [["", "claim", "difference", "95 % interval", "p", "verdict", "tasks"]]
    for verdict in found:
        cells = ["counted" if verdict.claim.holds else "-", "-", "-"]
        if verdict.difference is not None:
            interval, p = verdict.difference.interval, verdict.difference.p
            bounds = f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}" if math.isfinite(interval.low) else "-"
            cells = [f"{100 * interval.mean:+.1f}", bounds, f"{p:.3f}" if p >= 0.001 else "<0.001"]
        tasks = ", ".join(name.split("/")[-1] for name in verdict.tasks) or "-"
        lines.append([str(verdict.claim.number), verdict.claim.text, *cells, verdict.word, tasks])
    return lines


def _unlearnable(rows: Sequence[Result], majority: Sequence[Result]) -> set[tuple[Path, str]]:
    """Places and tasks where model tuning itself hardly beats the majority class.

    Runs of other experiments, or of other numbers of examples, are judged one by one; one that learned the task is
    enough. A model that was not tuned on a task is taken for like those that were, if none of these learned it.
    """

    def examples_of(row: Result) -> tuple[str, int]:
        return row.task, len(row.notes["right"])

    commonest = {examples_of(row): _right([row]) for row in majority}
    tuned = [row for row in where(rows, method=MODEL_TUNING) if trained_on(row) == row.task]
    judged: dict[tuple[Path, str], list[bool]] = {}
    for run in grouped(tuned, "frozen", "experiment", examples_of).values():
        words = judged.setdefault((size_of(run[0]), run[0].task), [])
        if examples_of(run[0]) in commonest:
            words.append(learnable(_right(run), commonest[examples_of(run[0])]))
    dull = {place for place, words in judged.items() if words and not any(words)}
    learned = {task for _, task in set(judged) - dull}
    hopeless = {task for _, task in dull} - learned
    for row in rows:
        place = (size_of(row), trained_on(row))
        if place not in judged and place[1] in hopeless:
            dull.add(place)
    return dull


def _right(rows: Sequence[Result]) -> Table:
    """Right answers, one row a seed, in the order of the seeds."""
    ordered = sorted(rows, key=lambda row: row.seed)
    return np.array([[float(answer) for answer in row.notes["right"]] for row in ordered])


def _term(weight: float, rows: Sequence[Result], table: Table | None = None) -> Term | None:
    """One point's scores on one task, of all seeds: the right answers, or a table of these rows.

    None for no rows, and for seeds scored on other numbers of examples.
    """
    if not rows or (table is None and len({len(row.notes["right"]) for row in rows}) > 1):
        return None
    row = rows[0]
    runs = _Trainings(row.config["asked"], row.config["point"], trained_on(row), row.seed == VOTE)
    table = _right(rows) if table is None else table
    return Term(weight, table, runs, _Examples(row.task, table.shape[1]))


def _of(rows: Sequence[Result], point: str, scoring: str | None = None) -> list[Result]:
    """A point's rows, without votes."""
    return [r for r in rows if r.config["point"] == point and scoring in (None, r.scoring) and r.seed != VOTE]


def _models(rows: Sequence[Result]) -> list[list[Result]]:
    """The rows of each model that was asked about, the smallest first."""
    models = grouped(rows, "asked").values()
    return sorted(models, key=lambda own: own[-1].config["num_parameters"])


def _pooled(groups: Iterable[list[Result]], terms: Terms) -> Found | None:
    """The pooled difference of groups of rows, as `_found`; groups that have not all of the terms are left out."""
    parts = []
    for rows in groups:
        own = terms(rows)
        if None not in own:
            parts.append([term for term in own if term is not None])
    return _found(parts)


def _found(parts: Sequence[Sequence[Term]]) -> Found | None:
    """The pooled difference of the parts that are paired; None for none of these, or but tasks that are too small."""
    paired = []
    for part in parts:
        examples = {term.examples for term in part}
        if len(examples) == len({one.task for one in examples}):  # whatever is of one task has the same examples
            paired.append(part)
    return _of_tasks((term.seeds.task for part in paired for term in part), contrast(paired))


def _of_tasks(tasks: Iterable[str], difference: Difference | None) -> Found | None:
    """A difference that pools these tasks; None for none, or where all of them are too small."""
    distinct = tuple(dict.fromkeys(tasks))
    return None if difference is None or set(distinct) <= TOO_SMALL else Found(difference, distinct)


def _points(*weights: tuple[float, str], scoring: str | None = None, by_size: bool = False) -> Find:
    """A weighted sum of points, models and tasks pooled; by_size: at the smallest model minus at the largest."""

    def terms(rows: list[Result], sign: float = 1.0) -> list[Term | None]:
        return [_term(sign * weight, _of(rows, point, scoring)) for weight, point in weights]

    def find(rows: list[Result]) -> Found | None:
        if not by_size:
            return _pooled(grouped(rows, "asked", "task").values(), terms)
        families = grouped(rows, family_of).values()
        models = _models(max(families, key=lambda own: len(_models(own)), default=[]))  # the one with the most sizes
        if len(models) < 2:
            return None
        small, large = (grouped(models[place], "task") for place in (0, -1))
        parts = [[*terms(own), *terms(large.get(task, []), -1.0)] for task, own in small.items()]
        return _found([[term for term in part if term] for part in parts if None not in part])

    return find


def _beats_design(rows: list[Result]) -> Found | None:
    """Prompt tuning minus the text prompt, of any number of shots, that the selection rows choose."""

    def terms(own: list[Result]) -> list[Term | None]:
        texts = _best(-1.0, where(own, method=PROMPT_DESIGN), lambda row: row.notes.get("selection_score"))
        return [_term(1.0, _of(own, "prompt tuning")), *texts]

    return _pooled(grouped(rows, "asked", "task").values(), terms)


def _varies_with_wording(rows: list[Result]) -> Found | None:
    """Deviation of the selection score over wordings and draws, uncalibrated, minus that over prompts' seeds."""
    first, second, tasks = [], [], []
    for (_, task), own in grouped(rows, "asked", "task").items():
        tried = [
            one
            for row in where(own, method=PROMPT_DESIGN)
            for one in row.config["tried"]
            if "calibrated" not in one["design"]
        ]
        scores = [row.notes.get("selection_score") for row in where(own, point="prompt tuning")]
        prompts = [score for score in scores if score is not None]
        if len(tried) > 1 and len(prompts) > 1:
            first.append(np.array([one["score"] for one in tried]))
            second.append(np.array(prompts))
            tasks.append(task)
    return _of_tasks(tasks, deviations(first, second))


def _more_adaptation(rows: list[Result]) -> Found | None:
    """The last step of adaptation minus the first after none, by generation.

    Where there are rows of span corruption continued for as many steps, the difference must be above what that gains,
    too: the p-value is the larger of both.
    """
    adapted = grouped(where(rows, experiment="figure-3d"), "asked", "task")
    objectives = grouped(where(rows, experiment="figure-3c"), "asked", "task")

    def gain(own: list[Result]) -> list[Term | None]:
        steps = sorted({row.config["point"] for row in own}, key=int)
        if len(steps) < 3:
            return [None]
        last, first = _of(own, steps[-1], "generate"), _of(own, steps[1], "generate")
        return [_term(1.0, last), _term(-1.0, first)]

    def beyond_control(own: list[Result]) -> list[Term | None]:
        there = objectives.get((own[0].config["asked"], own[0].task), [])
        longer, span = _of(there, "span+", "generate"), _of(there, "span", "generate")
        return [*gain(own), _term(-1.0, longer), _term(1.0, span)]

    found, controlled = (_pooled(adapted.values(), terms) for terms in (gain, beyond_control))
    if found is None or controlled is None:
        return found
    p = controlled.difference.p if controlled.difference.interval.mean > 0 else 1.0
    return found._replace(difference=replace(found.difference, p=max(found.difference.p, p)))


def _better_at_the_other(rows: list[Result]) -> Found | None:
    """Prompt tuning minus model tuning on the task that was not trained on."""

    def terms(own: list[Result]) -> list[Term | None]:
        points = {row.config["method"]: row.config["point"] for row in own}
        prompts, model = (_of(own, points.get(method, "")) for method in (PROMPT_TUNING, MODEL_TUNING))
        return [_term(1.0, prompts), _term(-1.0, model)]

    return _pooled(grouped((row for row in rows if trained_on(row) != row.task), "asked", "task").values(), terms)


def _vote_minus(best: bool) -> Find:
    """The vote of a point's prompts minus their mean, or minus the one that the selection rows choose."""

    def terms(own: list[Result]) -> list[Term | None]:
        votes = where(own, seed=VOTE)
        prompts = [row for row in own if row.seed != VOTE]
        others = _best(-1.0, prompts, lambda row: score_within(row, math.inf)) if best else [_term(-1.0, prompts)]
        return [_term(1.0, votes), *others]

    return lambda rows: _pooled(grouped(where(rows, scoring="rank"), "asked", "task").values(), terms)


def _best(weight: float, rows: Sequence[Result], score: Callable[[Result], float | None]) -> list[Term | None]:
    """The row with the best score, of those that have one. Where several tie for it, their mean: those of one point are
    drawn as its seeds.
    """
    scores = [(one, row) for row in rows if (one := score(row)) is not None]
    most = max((one for one, _ in scores), default=None)
    tied = [row for one, row in scores if one == most]
    points = grouped(tied, "point").values()
    return [_term(weight * len(own) / len(tied), own) for own in points] or [None]


def _carries_over(*, at_largest_shift: bool) -> Find:
    """Prompt tuning minus model tuning out of domain, where both are equally good in domain.

    Minus the same in domain, which is nearly nothing then; or, at the largest shift, that of the set with the lowest F1
    minus the mean of the others.
    """

    def find(rows: list[Result]) -> Found | None:
        parts = []
        for own in _models(rows):
            pairs = _at_matched_steps(own)
            away = {task: pair for task, pair in pairs.items() if task != pair[0].seeds.task}
            if len(away) < (2 if at_largest_shift else 1):
                continue
            weights = {task: (1 / len(away) if task in away else -1.0) for task in pairs}
            if at_largest_shift:
                lowest = min(away, key=lambda task: sum(float(term.table.mean()) for term in away[task]))
                weights = {task: (1.0 if task == lowest else -1 / (len(away) - 1)) for task in away}
            parts.append([t._replace(weight=weights[task] * t.weight) for task in weights for t in pairs[task]])
        return _found(parts)

    return find


def _at_matched_steps(rows: Sequence[Result]) -> dict[str, tuple[Term, Term]]:
    """One model's sets, each with prompt tuning, and minus model tuning, at the steps where they are equally good in
    domain: the best of the one that gets less far, and the other's nearest. Nothing without scores along training.
    """
    methods = (PROMPT_TUNING, MODEL_TUNING)
    rows_of = [where(rows, method=method) for method in methods]
    along = [along_training(own) for own in rows_of]

    def num_scored(scores: dict[int, Table]) -> int:
        return next(iter(scores.values())).shape[1]

    both = [task for task in along[0] if task in along[1] and len({num_scored(own[task]) for own in along}) == 1]
    homes = [task for task in both if any(trained_on(row) == task for row in rows)]
    if not homes:
        return {}
    at_home = [{step: float(table.mean()) for step, table in own[homes[0]].items()} for own in along]
    goal = min(max(means.values()) for means in at_home)
    steps = [min(means, key=lambda step: (abs(means[step] - goal), step)) for means in at_home]
    found = {}
    for task in both:
        first, second = (
            _term(sign, where(own, task=task), scores[task][step])
            for sign, own, scores, step in zip((1.0, -1.0), rows_of, along, steps, strict=True)
        )
        if first and second:
            found[task] = (first, second)
    return found


def matched_differences(rows: Sequence[Result]) -> dict[str, float]:
    """By task, prompt tuning minus model tuning in points, on the examples scored along training and at the steps where
    both are equally good on the task trained on; rows of one model and one such task.
    """
    pairs = _at_matched_steps(rows)
    return {task: 100 * sum(t.weight * float(t.table.mean()) for t in pair) for task, pair in pairs.items()}


def along_training(rows: Sequence[Result]) -> dict[str, dict[int, Table]]:
    """By task and step, the examples' scores along training, one row a seed; steps that every seed has, of as many
    examples.
    """
    found: dict[str, dict[int, Table]] = {}
    for task, own in grouped(rows, "task").items():
        own.sort(key=lambda row: row.seed)
        of_seeds = [{one["step"]: one["scores"] for one in row.notes.get("along", [])} for row in own]
        for step in sorted(set.intersection(*map(set, of_seeds))):
            scores = [of_seed[step] for of_seed in of_seeds]
            if len(set(map(len, scores))) == 1:
                found.setdefault(task, {})[step] = np.array(scores)
    return found


def _of_neighbours(first: str, second: str) -> Find:
    """One number of a prompt's neighbourhood minus another: the mean over prompts, then over points, models and tasks.

    Prompts of one seed on a model have the same random directions, so they change their sign together.
    """

    def find(rows: list[Result]) -> Found | None:
        groups: dict[tuple[str, ...], dict[int, float]] = {}
        for row in rows:
            numbers = row.notes.get("neighbourhood", {})
            if first in numbers and second in numbers:
                key = (row.task, row.config["asked"], row.config["point"])
                groups.setdefault(key, {})[row.seed] = numbers[first] - numbers[second]
        shares: dict[tuple[str, int], float] = {}
        for (_, asked, _), own in groups.items():
            for seed, difference in own.items():
                shares[asked, seed] = shares.get((asked, seed), 0.0) + difference / len(own) / len(groups)
        return _of_tasks((task for task, *_ in groups), sign_flips(list(shares.values())))

    return find


def _fewest_parameters() -> bool:
    """Whether prompt tuning takes less than every other trained method, at each of the paper's sizes and lengths."""
    for size in paper.SIZES:
        table = dict(counts(t5(size), FIGURE_LENGTHS))
        prompts = table.pop("prompt tuning")
        del table["prompt design"]  # which trains nothing
        for others in table.values():
            if not all(own < other for own, other in zip(prompts, others, strict=True)):
                return False
    return True


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
    Claim(11, "Longer adaptation is better", ("figure-3d", "figure-3c"), _more_adaptation),
    Claim(12, "Prompt tuning needs the fewest parameters of the trained methods", (), None, _fewest_parameters),
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
