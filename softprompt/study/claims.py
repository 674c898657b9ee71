"""The paper's claims that rows decide: for each the difference that must be above zero, and its verdict.

The tests are those of docs/findings.md, written before their runs. Rows of a task that model tuning does not learn are
left out, and a claim without the rows it needs is not testable. Scores are right answers, example by example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from softprompt.answering import Result
from softprompt.study import paper
from softprompt.study.comparison import MODEL_TUNING, PROMPT_DESIGN, PROMPT_TUNING, score_within
from softprompt.study.params import FIGURE_LENGTHS, counts, t5
from softprompt.study.rows import VOTE, family_of, newest, size_of, trained_on
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


@dataclass(frozen=True)
class Claim:
    """One claim of the paper, by its number in docs/findings.md."""

    number: int
    text: str
    experiments: tuple[str, ...]
    """Whose rows decide it."""
    find: Callable[[list[Result]], Found | None]
    """The difference in these rows; None where what it needs is not among them."""
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
    rows = sorted((row for row in newest(rows) if "right" in row.notes), key=_place)
    dull = _unlearnable(rows, majority)
    rows = [row for row in rows if (size_of(row), trained_on(row)) not in dull]
    found = [claim.find([row for row in rows if row.experiment in claim.experiments]) for claim in CLAIMS]
    words = verdicts([one and one.difference for one in found])
    for place, claim in enumerate(CLAIMS):
        if claim.holds is not None:
            words[place] = SEEN if claim.holds() else NOT_SEEN
    return [
        Verdict(claim, one and one.difference, word, one.tasks if one else ())
        for claim, one, word in zip(CLAIMS, found, words, strict=True)
    ]


def _place(row: Result) -> str:
    """What rows are sorted by, so that draws and ties are the same whatever the order of lines."""
    about = (row.config.get(name) for name in ("asked", "frozen", "point", "shots"))
    return repr((row.experiment, *about, trained_on(row), row.task, row.scoring, row.seed))


def as_table(found: Sequence[Verdict]) -> list[list[str]]:
    """Cells: claim, difference in points with its interval, p, verdict, and the tasks pooled; counted claims say so."""
    lines = [["", "claim", "difference", "95 % interval", "p", "verdict", "tasks"]]
    for verdict in found:
        one, word = verdict.difference, verdict.word
        cells = ["counted" if verdict.claim.holds else "-", "-", "-"]
        if one is not None:
            low, high = (f"{100 * value:+.1f}" for value in (one.interval.low, one.interval.high))
            bounds = f"{low} to {high}" if math.isfinite(one.interval.low) else "-"
            cells = [f"{100 * one.interval.mean:+.1f}", bounds, f"{one.p:.3f}" if one.p >= 0.001 else "<0.001"]
        tasks = ", ".join(name.split("/")[-1] for name in verdict.tasks) or "-"
        lines.append([str(verdict.claim.number), verdict.claim.text, *cells, word, tasks])
    return lines


def _unlearnable(rows: Sequence[Result], majority: Sequence[Result]) -> set[tuple[Path, str]]:
    """Places and tasks where model tuning itself hardly beats the majority class.

    Runs of other experiments, or of other numbers of examples, are judged one by one; one that learned the task is
    enough. A model that was not tuned on a task is taken for like those that were, if none of these learned it.
    """
    known = {(row.task, len(row.notes["right"])): _right([row]) for row in majority}
    tuned = [row for row in rows if row.config.get("method") == MODEL_TUNING and trained_on(row) == row.task]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for row in tuned:
        key = (row.config["frozen"], row.task, row.experiment, str(len(row.notes["right"])))
        groups.setdefault(key, []).append(row)
    judged: dict[tuple[Path, str], list[bool]] = {}
    for own in groups.values():
        commonest = known.get((own[0].task, len(own[0].notes["right"])))
        one = [] if commonest is None else [learnable(_right(own), commonest)]
        judged.setdefault((size_of(own[0]), own[0].task), []).extend(one)
    learned = {key: any(found) or not found for key, found in judged.items()}
    hopeless = {task for _, task in learned} - {task for (_, task), can in learned.items() if can}
    untuned = {(size_of(row), trained_on(row)) for row in rows} - set(learned)
    return {key for key, can in learned.items() if not can} | {key for key in untuned if key[1] in hopeless}


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


def _trainings(term: Term) -> _Trainings:
    assert isinstance(term.seeds, _Trainings)
    return term.seeds


def _is_paired(part: Sequence[Term]) -> bool:
    """Whether whatever is of one task was scored on the same examples."""
    examples = {term.examples for term in part if isinstance(term.examples, _Examples)}
    return len(examples) == len({one.task for one in examples})


def _of(rows: Sequence[Result], point: str, asked: str, task: str, scoring: str | None = None) -> list[Result]:
    """A point's rows on a model that was asked about, and a task."""
    return [
        row
        for row in _on(rows, asked, task)
        if row.config["point"] == point and scoring in (None, row.scoring) and row.seed != VOTE
    ]


def _on(rows: Sequence[Result], asked: str, task: str) -> list[Result]:
    return [row for row in rows if (row.config["asked"], row.task) == (asked, task)]


def _models(rows: Sequence[Result]) -> list[str]:
    """The models that were asked about, the smallest first."""
    sizes = {row.config["asked"]: row.config["num_parameters"] for row in rows}
    return sorted(sizes, key=lambda asked: sizes[asked])


def _pooled(rows: Sequence[Result], terms: Callable[[str, str], Sequence[Term | None]]) -> list[list[Term]]:
    """The terms of every model and task that has all of them."""
    places = dict.fromkeys((row.config["asked"], row.task) for row in rows)
    made = [terms(*place) for place in places]
    return [[term for term in own if term is not None] for own in made if None not in own]


def _found(parts: Sequence[Sequence[Term]]) -> Found | None:
    """The pooled difference of the parts that are paired; None for none of these, or but tasks that are too small."""
    parts = [part for part in parts if _is_paired(part)]
    tasks = tuple(dict.fromkeys(_trainings(term).task for part in parts for term in part))
    difference = None if set(tasks) <= TOO_SMALL else contrast(parts)
    return Found(difference, tasks) if difference else None


def _points(
    *weights: tuple[float, str], scoring: str | None = None, by_size: bool = False
) -> Callable[[list[Result]], Found | None]:
    """A weighted sum of points, models and tasks pooled; by_size: at the smallest model minus at the largest."""

    def terms_at(rows: list[Result], asked: str, task: str, sign: float) -> list[Term | None]:
        return [_term(sign * weight, _of(rows, point, asked, task, scoring)) for weight, point in weights]

    def find(rows: list[Result]) -> Found | None:
        if not by_size:
            return _found(_pooled(rows, lambda asked, task: terms_at(rows, asked, task, 1.0)))
        rows = _of_one_family(rows)
        models = _models(rows)
        if len(models) < 2:
            return None

        def both(asked: str, task: str) -> list[Term | None]:
            return [*terms_at(rows, models[0], task, 1.0), *terms_at(rows, models[-1], task, -1.0)]

        return _found(_pooled(_on_model(rows, models[0]), both))

    return find


def _of_one_family(rows: Sequence[Result]) -> list[Result]:
    """Those of the family with the most sizes."""
    families: dict[str, list[Result]] = {}
    for row in rows:
        families.setdefault(family_of(row), []).append(row)
    return max(families.values(), key=lambda own: len(_models(own)), default=[])


def _on_model(rows: Sequence[Result], asked: str) -> list[Result]:
    return [row for row in rows if row.config["asked"] == asked]


def _beats_design(rows: list[Result]) -> Found | None:
    """Prompt tuning minus the text prompt, of any number of shots, that the selection rows choose."""

    def terms(asked: str, task: str) -> list[Term | None]:
        texts = _best(-1.0, _designs(_on(rows, asked, task)), lambda row: row.notes.get("selection_score"))
        return [_term(1.0, _of(rows, "prompt tuning", asked, task)), *texts]

    return _found(_pooled(rows, terms))


def _varies_with_wording(rows: list[Result]) -> Found | None:
    """Deviation of the selection score over wordings and draws, uncalibrated, minus that over prompts' seeds."""
    first, second, tasks = [], [], []
    for asked, task in dict.fromkeys((row.config["asked"], row.task) for row in rows):
        own = _on(rows, asked, task)
        tried = [one for row in _designs(own) for one in row.config["tried"] if "calibrated" not in one["design"]]
        scores = [row.notes.get("selection_score") for row in own if row.config["point"] == "prompt tuning"]
        prompts = [score for score in scores if score is not None]
        if len(tried) > 1 and len(prompts) > 1:
            first.append(np.array([one["score"] for one in tried]))
            second.append(np.array(prompts))
            tasks.append(task)
    difference = None if set(tasks) <= TOO_SMALL else deviations(first, second)
    return Found(difference, tuple(dict.fromkeys(tasks))) if difference else None


def _designs(rows: Sequence[Result]) -> list[Result]:
    return [row for row in rows if row.config.get("method") == PROMPT_DESIGN]


def _more_adaptation(rows: list[Result]) -> Found | None:
    """The last step of adaptation minus the first after none, by generation.

    Where there are rows of span corruption continued for as many steps, the difference must be above what that gains,
    too: the p-value is the larger of both.
    """
    adapted, objectives = ([row for row in rows if row.experiment == f"figure-3{letter}"] for letter in "dc")

    def gain(asked: str, task: str) -> list[Term | None]:
        steps = sorted({row.config["point"] for row in _on(adapted, asked, task)}, key=int)
        pairs = ((1.0, steps[-1]), (-1.0, steps[1])) if len(steps) > 2 else ((1.0, ""),)
        return [_term(weight, _of(adapted, step, asked, task, "generate")) for weight, step in pairs]

    def beyond_control(asked: str, task: str) -> list[Term | None]:
        pairs = ((-1.0, "span+"), (1.0, "span"))
        control = [_term(weight, _of(objectives, point, asked, task, "generate")) for weight, point in pairs]
        return [*gain(asked, task), *control]

    found, controlled = (_found(_pooled(adapted, terms)) for terms in (gain, beyond_control))
    if found is None or controlled is None:
        return found
    p = controlled.difference.p if controlled.difference.interval.mean > 0 else 1.0
    return found._replace(difference=replace(found.difference, p=max(found.difference.p, p)))


def _better_at_the_other(rows: list[Result]) -> Found | None:
    """Prompt tuning minus model tuning on the task that was not trained on."""
    away = [row for row in rows if trained_on(row) != row.task]

    def terms(asked: str, task: str) -> list[Term | None]:
        own = {row.config["method"]: row.config["point"] for row in _on(away, asked, task)}
        pairs = ((1.0, PROMPT_TUNING), (-1.0, MODEL_TUNING))
        return [_term(weight, _of(away, own.get(method, ""), asked, task)) for weight, method in pairs]

    return _found(_pooled(away, terms))


def _vote_minus(best: bool) -> Callable[[list[Result]], Found | None]:
    """The vote of a point's prompts minus their mean, or minus the one that the selection rows choose."""

    def find(rows: list[Result]) -> Found | None:
        def terms(asked: str, task: str) -> list[Term | None]:
            own = [row for row in _on(rows, asked, task) if row.scoring == "rank"]
            votes, prompts = ([row for row in own if (row.seed == VOTE) == is_vote] for is_vote in (True, False))
            others = _best(-1.0, prompts, _selection_score) if best else [_term(-1.0, prompts)]
            return [_term(1.0, votes), *others]

        return _found(_pooled(rows, terms))

    return find


def _selection_score(row: Result) -> float | None:
    return score_within(row, math.inf)


def _best(weight: float, rows: Sequence[Result], score: Callable[[Result], float | None]) -> list[Term | None]:
    """The row with the best score, of those that have one. Where several tie for it, their mean: those of one point are
    drawn as its seeds.
    """
    scores = [one for one in map(score, rows) if one is not None]
    tied: dict[str, list[Result]] = {}
    for row in rows:
        if scores and score(row) == max(scores):
            tied.setdefault(row.config["point"], []).append(row)
    num_tied = sum(map(len, tied.values()))
    return [_term(weight * len(own) / num_tied, own) for own in tied.values()] or [None]


def _carries_over(*, at_largest_shift: bool) -> Callable[[list[Result]], Found | None]:
    """Prompt tuning minus model tuning out of domain, where both are equally good in domain.

    Minus the same in domain, which is nearly nothing then; or, at the largest shift, that of the set with the lowest F1
    minus the mean of the others.
    """

    def find(rows: list[Result]) -> Found | None:
        models = (_at_matched_steps(_on_model(rows, asked)) for asked in _models(rows))
        parts = [_carried(own, at_largest_shift) for own in models]
        return _found([part for part in parts if part])

    return find


def _carried(pairs: dict[str, tuple[Term, Term]], at_largest_shift: bool) -> list[Term]:
    """One model's sets, weighted so that their sum is the difference; nothing for too few sets."""
    away = {task: pair for task, pair in pairs.items() if task != _trainings(pair[0]).task}
    if len(away) < (2 if at_largest_shift else 1):
        return []
    weights = {task: (1 / len(away) if task in away else -1.0) for task in pairs}
    if at_largest_shift:
        lowest = min(away, key=lambda task: sum(float(term.table.mean()) for term in away[task]))
        weights = {task: (1.0 if task == lowest else -1 / (len(away) - 1)) for task in away}
    return [term._replace(weight=weights[task] * term.weight) for task in weights for term in pairs[task]]


def _at_matched_steps(rows: Sequence[Result]) -> dict[str, tuple[Term, Term]]:
    """One model's sets, each with prompt tuning, and minus model tuning, at the steps where they are equally good in
    domain; nothing without scores along training.
    """
    methods = (PROMPT_TUNING, MODEL_TUNING)
    rows_of = [[row for row in rows if row.config["method"] == method] for method in methods]
    first, second = (along_training(own) for own in rows_of)
    both = [task for task in first if task in second and _num_scored(first[task]) == _num_scored(second[task])]
    homes = [task for task in both if any(trained_on(row) == task for row in rows)]
    if not homes:
        return {}
    steps = _nearest_steps(first[homes[0]], second[homes[0]])
    found = {}
    for task in both:
        made = [
            _term(sign, [row for row in own if row.task == task], along[task][step])
            for sign, own, along, step in zip((1.0, -1.0), rows_of, (first, second), steps, strict=True)
        ]
        if made[0] and made[1]:
            found[task] = (made[0], made[1])
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
    for task in dict.fromkeys(row.task for row in rows):
        own = sorted((row for row in rows if row.task == task), key=lambda row: row.seed)
        of_seeds = [{one["step"]: one["scores"] for one in row.notes.get("along", [])} for row in own]
        steps = sorted(set.intersection(*map(set, of_seeds)))
        steps = [step for step in steps if len({len(scores[step]) for scores in of_seeds}) == 1]
        if steps:
            found[task] = {step: np.array([scores[step] for scores in of_seeds]) for step in steps}
    return found


def _num_scored(along: dict[int, Table]) -> int:
    return next(iter(along.values())).shape[1]


def _nearest_steps(first: dict[int, Table], second: dict[int, Table]) -> tuple[int, int]:
    """The steps where two methods are equally good: the best of the one that gets less far, and the other's nearest."""
    means = [{step: float(table.mean()) for step, table in own.items()} for own in (first, second)]
    tops = [max(own.values()) for own in means]
    goal = min(tops)
    a, b = (min(own, key=lambda step: (abs(own[step] - goal), step)) for own in means)
    return a, b


def _of_neighbours(first: str, second: str) -> Callable[[list[Result]], Found | None]:
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
        tasks = tuple(dict.fromkeys(task for task, *_ in groups))
        difference = None if set(tasks) <= TOO_SMALL else sign_flips(list(shares.values()))
        return Found(difference, tasks) if difference else None

    return find


def _fewest_parameters() -> bool:
    """Whether prompt tuning takes less than every other trained method, at each of the paper's sizes and lengths."""
    tables = [dict(counts(t5(size), FIGURE_LENGTHS)) for size in paper.SIZES]
    return all(
        own < other
        for table in tables
        for method in set(table) - {"prompt tuning", "prompt design"}  # the latter trains nothing
        for own, other in zip(table["prompt tuning"], table[method], strict=True)
    )


def _not_tested(rows: list[Result]) -> None:
    """What is counted has no difference."""


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
    Claim(12, "Prompt tuning needs the fewest parameters of the trained methods", (), _not_tested, _fewest_parameters),
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
