"""Running the paper's experiments: every point that has no rows yet, those of one frozen model together.

    run_experiment("figure-3a", ["bundled/t5-mini"], RunConfig(...), rows=Path("results/study.jsonl"), out=Path("runs"))

A row is kept for each point, task, seed and scoring. What stands in the file with the same settings is not run again,
whichever experiment it was made for, so an interrupted command goes on, and figures share their points. Files only
grow: of several rows for one thing the newest counts (`newest`).
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from softprompt.answering import (
    Evaluation,
    Result,
    append_rows,
    can_rank,
    ensemble,
    evaluate,
    judge,
    neighbourhood,
    read_rows,
    right_answers,
)
from softprompt.base.names import nearest
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM, TextFormat
from softprompt.study.comparison import (
    MODEL_TUNING,
    MULTI_TASK,
    NUM_RATES,
    PROMPT_DESIGN,
    folder_of,
    prepared,
    run_method,
    run_multi_task,
    settings_of,
    settings_of_row,
)
from softprompt.study.experiments import EXPERIMENTS, Experiment, Point
from softprompt.study.prompt_design import shots_name
from softprompt.tasks import Example, Task, get_task, has_split
from softprompt.tasks.reading import Data
from softprompt.training import (
    ROWS,
    CannotStart,
    RunConfig,
    Trained,
    dev_examples,
    load_model,
    prepare,
    tasks_of,
    train,
    train_together,
)

OTHER = {"generate": "rank", "rank": "generate"}
VOTE = -1  # the seed of an ensemble's row
WEIGHTS_COST = 1.5  # ours: a layer's step is three products where weights are trained, and two where they are frozen
# As in t5-small-lm-adapt, gemma-3-270m, SmolLM2-1.7B.
SIZE_IN_NAME = re.compile(r"[-_](mini|small|base|large|xl|xxl|\d+(\.\d+)?[mb])(?=[-_]|$)", re.IGNORECASE)


Load = Callable[[RunConfig], FrozenLM]


@dataclass(frozen=True)
class Planned:
    """A point on one of the models asked about."""

    point: Point
    asked: str
    """The model asked about."""
    config: RunConfig
    """Its run, with the frozen model's own place."""
    fingerprint: str | None = None
    """Of the frozen model that is there now, where it may have changed since rows were made."""

    @property
    def num_runs(self) -> float:
        """About how many trainings of one prompt on one task it takes as long as."""
        tasks = 1 if self.point.method == MULTI_TASK else len(self.config.task)
        if self.point.method == PROMPT_DESIGN:
            return 2.0 * tasks  # ours: passes over the selection rows in some 50 designs
        rates = 1 if self.point.method is None else len(self.config.learning_rate or ()) or NUM_RATES
        times = WEIGHTS_COST if self.point.method in (MODEL_TUNING, MULTI_TASK) else 1.0
        return times * tasks * (rates - 1 + len(self.config.seeds))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that its rows have; prompt design draws its examples with all of them, and has one row."""
        return self.config.seeds[:1] if self.point.method == PROMPT_DESIGN else self.config.seeds

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings as rows keep them."""
        return {name: v for name, v in settings_of(self.config).items() if name not in ("seeds", "minutes")}


def named(name: str) -> Experiment:
    """The experiment of a name. ValueError for one that there is not; the nearest is offered."""
    if name not in EXPERIMENTS:
        raise ValueError(
            f"no experiment named {name!r}{nearest(name, EXPERIMENTS)}; there are {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]


def plan_experiment(
    name: str, models: Sequence[str], base: RunConfig, out: Path, points: Sequence[str] = ()
) -> list[Planned]:
    """Every point on every model, or those of the given names.

    ValueError for an experiment or a point that there is not (the nearest is offered), or a model without a point's
    folder.
    """
    known = {point.name: point for point in named(name).points}
    for task in base.task:
        get_task(task)  # refuses what there is not
    if unknown := [point for point in points if point not in known]:
        raise ValueError(
            f"{name} has no point {unknown[0]!r}{nearest(unknown[0], known)}; it has {', '.join(map(repr, known))}"
        )
    planned = []
    for model in models:
        for point in [known[own] for own in points or known]:
            for own, place in _places(point, model):
                config = replace(base, model=place, **own.changes)
                planned.append(Planned(own, model, replace(config, out=out / folder_of(place, own.name, config))))
    return planned


def _places(point: Point, model: str) -> list[tuple[Point, str]]:
    """A point's frozen models; each of several gives the point its own name."""
    if not point.inside:
        return [(point, model)]
    inside = Path(os.path.normpath(Path(model) / point.inside))  # rows name it as it was asked for, not resolved
    folders = _steps(Path(model), point.inside) if "*" in point.inside else [inside]
    folders = [folder for folder in folders if (folder / "config.json").is_file()]
    if not folders and point.is_optional:
        return []
    if not folders:
        raise ValueError(
            f"{model} holds no model {point.inside}, which the point {point.name!r} needs; give a folder that "
            "softprompt pretrain and adapt wrote into, or see docs/pretraining.md"
        )
    return [(replace(point, name=point.name.replace("*", folder.name)), str(folder)) for folder in folders]


def _steps(model: Path, inside: str) -> list[Path]:
    """The folders of kept steps, in their order; step 0 is the model before, which has a point of its own."""
    found = {int(folder.name): folder for folder in model.glob(inside) if folder.name.isdigit()}
    return [found[step] for step in sorted(found) if step]


def run_experiment(
    name: str,
    models: Sequence[str],
    base: RunConfig,
    *,
    rows: Path,
    out: Path,
    points: Sequence[str] = (),
    watch: Watch | None = None,
    load: Load = load_model,
) -> list[str]:
    """Run what has no rows, and append its rows; what failed, a line each.

    base: the settings of all points, and `minutes`, which bound the points of one frozen model together. points: the
    names of those to run (none: all). A run that fails leaves the others to go on. ValueError as `plan_experiment` has
    it, before anything runs.
    """
    watch = watch or Watch()
    failures: list[str] = []

    def attempt(title: str, run: Callable[[], None]) -> None:
        try:
            run()
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(f"{title}: {' '.join(str(error).split())}")
            watch.message(f"{title} failed; the others go on")

    for group in _by_model(plan_experiment(name, models, base, out, points), load):
        place = group[0].config.model
        without = [planned for planned in group if not _reuse(name, planned, rows, watch)]
        if together := _with_data([planned for planned in without if planned.point.method is None], failures):
            run = functools.partial(_train_together, name, together, base, rows, out, watch, load, failures)
            attempt(place, run)
        for planned in without:
            for tasks in _alone(planned):
                run = functools.partial(_run_method, name, planned, tasks, rows, watch, load)
                attempt(f"{place}, {planned.point.name}, {', '.join(tasks)}", run)
    return failures


def _sharing_minutes(group: list[Planned]) -> list[Planned]:
    """The points of one frozen model with their shares of the minutes: all that train together have one."""
    if group[0].config.minutes is None:
        return group
    together = any(planned.point.method is None for planned in group)
    alone = sum(len(_alone(planned)) for planned in group if planned.point.method != PROMPT_DESIGN)
    share = group[0].config.minutes / max(together + alone, 1)
    return [replace(planned, config=replace(planned.config, minutes=share)) for planned in group]


def _by_model(planned: Sequence[Planned], load: Load) -> Iterator[list[Planned]]:
    """The points of each frozen model, each with its share of the minutes, as `_on_what_is_there` has them."""
    groups: dict[str, list[Planned]] = {}
    for one in planned:
        groups.setdefault(one.config.model, []).append(one)
    for group in groups.values():
        yield _on_what_is_there(_sharing_minutes(group), load)


def _on_what_is_there(group: list[Planned], load: Load) -> list[Planned]:
    """The points of one frozen model, knowing which model that is if it is in a folder or a file.

    One that was trained anew in the same place has no rows yet, and cannot go on from the other's checkpoints. What
    has a name is taken to be the same for ever, and is not read only to see that it has its rows.
    """
    config = group[0].config
    if not Path(config.model).exists():
        return group
    try:
        fingerprint = load(config).fingerprint
    except (ValueError, OSError):  # each run will say it
        return group
    return [
        replace(one, fingerprint=fingerprint, config=replace(one.config, out=_of_model(one.config.out, fingerprint)))
        for one in group
    ]


def _of_model(folder: Path, fingerprint: str | None) -> Path:
    return folder if fingerprint is None else folder.with_name(f"{folder.name}-{fingerprint[:8]}")


def _train_together(
    name: str,
    group: list[Planned],
    base: RunConfig,
    rows: Path,
    out: Path,
    watch: Watch,
    load: Load,
    failures: list[str],
) -> None:
    """Prompts of all points of one frozen model, and their rows; points that cannot start are added to the failures."""
    lm = load(group[0].config)
    place = group[0].config.model
    while True:
        folder = out / "together" / folder_of(place, "+".join(p.point.name for p in group), base)
        folder = _of_model(folder, group[0].fingerprint)
        try:
            trained = train_together([planned.config for planned in group], folder=folder, lm=lm, watch=watch)
            break
        except CannotStart as error:
            (first,) = [planned for planned in group if planned.config.out == error.out]
            group = [planned for planned in group if planned is not first]
            failures.append(f"{place}, {first.point.name}: {' '.join(str(error).split())}")
            watch.message(f"{place}, {first.point.name} cannot start; the others do")
    for planned, delivered in zip(group, trained, strict=True):
        append_rows(rows, _rows(name, planned, delivered, lm, watch))


def _with_data(group: Sequence[Planned], failures: list[str]) -> list[Planned]:
    """The points, each with the tasks that have files for training and dev; the others are added to the failures."""
    missing = {task: why for planned in group for task in planned.config.task if (why := _missing_file(planned, task))}
    place = group[0].config.model if group else ""
    failures += [f"{place}, {task}: {why}" for task, why in missing.items()]
    kept = [tuple(task for task in planned.config.task if task not in missing) for planned in group]
    pairs = zip(group, kept, strict=True)
    return [replace(planned, config=replace(planned.config, task=tasks)) for planned, tasks in pairs if tasks]


def _missing_file(planned: Planned, task: str) -> str | None:
    """Why a task cannot be run and scored, before anything is trained; None where it can."""
    for part in ("train", "dev"):
        if not has_split(get_task(task), part, planned.config.data):
            return f"no {part} file in {planned.config.data or 'the hub'}, and a point needs one to be scored"
    return None


def _alone(planned: Planned) -> list[tuple[str, ...]]:
    """The tasks of each run of a method with its own trials: one at a time, or all together for multi-task tuning."""
    if planned.point.method is None:
        return []
    return [planned.config.task] if planned.point.method == MULTI_TASK else [(task,) for task in planned.config.task]


def _run_method(name: str, planned: Planned, tasks: tuple[str, ...], rows: Path, watch: Watch, load: Load) -> None:
    """A method with its own trials, and its rows. Further seeds take the rate that was chosen for those there are."""
    assert planned.point.method is not None
    own = [r for r in _rows_there(planned, rows) if r.experiment == name and r.config["trained_on"] in tasks]
    there = {(row.task, row.seed) for row in own}
    wanted = _wanted(replace(planned, config=replace(planned.config, task=tasks)))
    seeds = tuple(seed for seed in planned.seeds if not {pair for pair in wanted if pair[1] == seed} <= there)
    if not seeds:
        return
    config = replace(planned.config, task=tasks, out=planned.config.out / "+".join(tasks).replace("/", "-"))
    about: dict[str, Any] = {"asked": planned.asked, "settings": planned.settings}
    if own and planned.point.method != PROMPT_DESIGN:
        config = replace(config, seeds=seeds, learning_rate=(own[0].config["learning_rate"],))
        about["tried"] = own[0].config["tried"]
    if planned.point.method == MULTI_TASK:
        made = run_multi_task(config, watch=watch, load=load)
    else:
        made = run_method(config, planned.point.method, also=planned.point.also, watch=watch, load=load)
    append_rows(
        rows, [replace(r, experiment=name, config=r.config | about | {"point": _point_of(planned, r)}) for r in made]
    )


def _point_of(planned: Planned, row: Result) -> str:
    """The point's name; each number of shots is a point of its own."""
    shots = row.config.get("shots")
    return planned.point.name if shots is None else f"{planned.point.name}, {shots_name(shots)}"


def missing(
    name: str,
    models: Sequence[str],
    base: RunConfig,
    *,
    rows: Path,
    out: Path,
    points: Sequence[str] = (),
    load: Load = load_model,
) -> list[Planned]:
    """The points that have no rows yet, under this or another experiment's name. ValueError as `plan_experiment`."""
    groups = _by_model(plan_experiment(name, models, base, out, points), load)
    planned = [one for group in groups for one in group]
    return [one for one in planned if not _wanted(one) <= {(row.task, row.seed) for row in _rows_there(one, rows)}]


def _wanted(planned: Planned) -> set[tuple[str, int]]:
    """The tasks and seeds that a point's rows have: its own, and those of other tasks whose files are there."""
    others = [name for name in planned.point.also if _has_scored(name, planned.config.data)]
    return {(task, seed) for task in (*planned.config.task, *others) for seed in planned.seeds}


def _has_scored(name: str, data: Data | None) -> bool:
    return any(has_split(get_task(name), part, data) for part in ("dev", "train"))


def _reuse(name: str, planned: Planned, rows: Path, watch: Watch) -> bool:
    """Whether a point's rows are there; those made for another experiment are copied."""
    wanted = _wanted(planned)
    found = _rows_there(planned, rows)
    own = [row for row in found if (row.experiment, row.config["point"]) == (name, _point_of(planned, row))]
    if wanted <= {(row.task, row.seed) for row in own}:
        watch.message(f"{name} {planned.point.name}: its rows are in {rows}")
        return True
    if not wanted <= {(row.task, row.seed) for row in found}:
        return False
    copies = {(row.task, row.seed, row.scoring, row.config.get("shots")): row for row in found}
    append_rows(
        rows,
        [
            replace(r, experiment=name, config=r.config | {"point": _point_of(planned, r), "asked": planned.asked})
            for r in copies.values()
        ],
    )
    return True


def _rows_there(planned: Planned, rows: Path) -> list[Result]:
    """The rows of the same frozen model, method, tasks, seeds and settings, whichever experiment they were made for."""
    config = planned.config
    return [
        row
        for row in read_rows(rows)
        if row.config.get("frozen") == config.model
        and planned.fingerprint in (None, row.config.get("fingerprint", planned.fingerprint))
        and row.config.get("method") == planned.point.method
        and settings_of_row(row) == planned.settings
        and row.config.get("trained_on", row.task) in config.task
        and row.config.get("also", []) == list(planned.point.also)
        and row.seed in (*config.seeds, VOTE)
        and _of_same_trainings(row, planned)
        and _is_as_long(row, config.minutes)
    ]


def _of_same_trainings(row: Result, planned: Planned) -> bool:
    """Whether the row's run had this point's tasks, where they train together, and its seeds, where they all draw."""
    if planned.point.method == MULTI_TASK:
        return row.config["task"] == list(planned.config.task)
    return planned.point.method != PROMPT_DESIGN or row.config["seeds"] == list(planned.config.seeds)


def _is_as_long(row: Result, minutes: float | None) -> bool:
    """Whether the row's run came to its end, or was bounded by as many minutes as this one."""
    bound, train = row.config.get("minutes"), row.config.get("train")
    if bound is None or train is None or row.steps_run >= train["steps"]:
        return True
    return minutes is not None and minutes <= bound


def _rows(name: str, planned: Planned, delivered: Sequence[Trained], lm: FrozenLM, watch: Watch) -> list[Result]:
    """A row for each prompt by each scoring, and one for the vote of a task's prompts."""
    config = planned.config
    written: dict[tuple[str, int | None], Result] = {(row.task, row.seed): row for row in read_rows(config.out / ROWS)}
    about = {
        "point": planned.point.name,
        "asked": planned.asked,
        "frozen": config.model,
        "num_parameters": lm.num_parameters,
        "settings": planned.settings,
    }
    made = []
    for task_name in config.task:
        own = [one for one in delivered if one.prompt.card.task == task_name]
        if not own:  # all its prompts stopped before a first score, which was told
            continue
        task = get_task(task_name)
        examples = dev_examples(config, task)
        first = written[task_name, own[0].prompt.card.seed]
        evaluations = {first.scoring: [one.dev for one in own if one.dev]}
        if can_rank(task, examples):
            evaluations[OTHER[first.scoring]] = _scored(own, task, examples, lm, OTHER[first.scoring], watch)
        near = [neighbourhood(one.prompt, lm) for one in own]
        for scoring, found in evaluations.items():
            for one, evaluation, numbers in zip(own, found, near, strict=True):
                row = written[task_name, one.prompt.card.seed]
                row = _row(row, name, about, task, examples, evaluation, scoring)
                made.append(replace(row, notes=row.notes | {"neighbourhood": numbers}))
            if len(own) > 1:
                votes = ensemble(task, examples, [evaluation.predictions for evaluation in found])
                row = _row(first, name, about, task, examples, judge(task, examples, votes), scoring)
                made.append(replace(row, seed=VOTE))
    return made


def _scored(
    own: Sequence[Trained], task: Task, examples: Sequence[Example], lm: FrozenLM, scoring: str, watch: Watch
) -> list[Evaluation]:
    form = TextFormat.from_json(own[0].prompt.card.text)
    values = [one.prompt.values for one in own]
    return evaluate(lm, values, task, examples, form, scoring=scoring, watch=watch)


def _row(
    row: Result,
    name: str,
    about: Mapping[str, Any],
    task: Task,
    examples: Sequence[Example],
    evaluation: Evaluation,
    scoring: str,
) -> Result:
    return replace(
        row,
        experiment=name,
        config={**row.config, **about},
        scoring=scoring,
        metrics=evaluation.metrics,
        value=evaluation.headline,
        illegal_rate=evaluation.illegal_rate,
        notes={**row.notes, "right": right_answers(task, examples, evaluation.predictions)},
    )


def config_of_row(row: Result, *, data: Data, out: Path) -> RunConfig:
    """The run that made a row, without the bound in minutes, which no two machines reach at one step.

    data: where the task's files are now, which rows do not say.
    ValueError for a row that no single run made: a vote, or a benchmark's.
    """
    if row.seed == VOTE or not ("train" in row.config or row.config.get("method") == PROMPT_DESIGN):
        what = "a vote of several prompts" if row.seed == VOTE else f"of {row.experiment!r}, which trains no prompt"
        raise ValueError(f"this row is {what}; give the row of a prompt")
    known = {f.name for f in fields(RunConfig)}
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in row.config.items() if name in known
    }
    chosen: dict[str, Any] = {"task": given["task"] if given.get("inputs") else (trained_on(row),)}
    if "train" in row.config:
        rate = row.config.get("learning_rate")
        if not isinstance(rate, float):  # a list of what was tried, or nothing
            rate = row.config["train"]["optimizer"]["learning_rate"]
        chosen |= {"prompt_length": (row.config["prompt_length"],), "learning_rate": (rate,), "seeds": (row.seed,)}
    return RunConfig(**given | chosen | {"data": data, "out": out, "resume": False, "minutes": None})


def rerun(
    row: Result, *, data: Data, out: Path, lm: FrozenLM | None = None, watch: Watch | None = None
) -> dict[str, float]:
    """Run what made a row once more, and score it as the row was: the metrics. The new prompt is in `out`.

    The same on the same machine and threads, but for the rounding of what it was batched with.
    ValueError as `config_of_row` and `train` have it, for data without a dev set or that is split into other examples
    now, and for another model than the row's under the same name.
    """
    config = config_of_row(row, data=data, out=out)
    lm = _checked(row, lm or load_model(config))
    _check_examples(row, config, lm)

    def load(config: RunConfig) -> FrozenLM:
        return _checked(row, load_model(config))

    if method := row.config.get("method"):
        del lm  # every trial loads its own
        if method == MULTI_TASK:
            config = replace(config, task=tuple(row.config["task"]))
            return next(one.metrics for one in run_multi_task(config, watch=watch, load=load) if one.task == row.task)
        made = run_method(config, method, also=_others_of(row), only=row.task, watch=watch, load=load)
        return next(one.metrics for one in made if one.config.get("shots") == row.config.get("shots"))
    (delivered,) = train(config, lm=lm, watch=watch)
    if delivered.dev is None:
        raise ValueError("there is no dev set to score on; give one with the data")
    if row.scoring == delivered.prompt.card.recipe["scoring"]:
        return delivered.dev.metrics
    (task,) = tasks_of(config)
    examples = dev_examples(config, task)
    return _scored([delivered], task, examples, lm, row.scoring, watch or Watch())[0].metrics


def trained_on(row: Result) -> str:
    """The task of a row's training rows: another than its own for what was scored away from home."""
    return row.config.get("trained_on", row.task)


def _others_of(row: Result) -> dict[str, Mapping[str, str]]:
    """The other tasks that the row's run was scored on, and what its labels are called there, as its experiment has
    it."""
    points = EXPERIMENTS[row.experiment].points if row.experiment in EXPERIMENTS else ()
    labels = next((point.also for point in points if point.name == row.config["point"]), {})
    others = dict.fromkeys([*row.config.get("also", []), row.task])
    return {name: labels.get(name, {}) for name in others if name != trained_on(row)}


def _checked(row: Result, lm: FrozenLM) -> FrozenLM:
    """The model. ValueError for another than the row's; older rows do not tell."""
    wanted = row.config.get("fingerprint", lm.fingerprint)
    if lm.fingerprint != wanted:
        raise ValueError(
            f"{lm.name} is not the model that the row was made with: its fingerprint is {lm.fingerprint}, and the row "
            f"has {wanted}; put that model there"
        )
    return lm


def _check_examples(row: Result, config: RunConfig, lm: FrozenLM) -> None:
    """ValueError where the data is split into other examples now than in the row's run, as far as the row tells."""
    if row.config.get("method") == MULTI_TASK:
        return  # of a mixture
    (task,) = tasks_of(config)
    data = (prepared if "method" in row.config else prepare)(config, task, lm)
    known = {"examples": data.notes["examples"]}
    if not row.config.get("also"):  # or less what stands in other sets
        known["train_used"] = len(data.train)
    for name, found in known.items():
        if row.notes.get(name, found) != found:
            raise ValueError(
                f"the row's run had other examples of {task.name} than there are now ({name} is {found}, and in the "
                f"row {row.notes[name]}); give the same files, and softprompt at the row's commit {row.commit[:7]}"
            )


def newest(rows: Sequence[Result]) -> list[Result]:
    """Of several rows for one point, model, task, scoring and seed, the last; and of rows of one point with other
    settings, or of another model under the same name, those like the last.
    """

    def point_of(row: Result) -> tuple[Any, ...]:
        about = (row.config.get(name) for name in ("asked", "frozen", "point", "shots"))
        return (row.experiment, *about, trained_on(row), row.task, row.scoring)

    def made_with(row: Result) -> tuple[Any, ...]:
        together = row.config["task"] if row.config.get("method") == MULTI_TASK else None
        return settings_of_row(row), row.config.get("fingerprint"), together

    last = {point_of(row): made_with(row) for row in rows}
    kept = {(point_of(row), row.seed): row for row in rows if made_with(row) == last[point_of(row)]}
    return list(kept.values())


def short_name(model: str) -> str:
    """A model as tables name it, without what is this machine's: of a family's checkpoints the size, too (mini/lm)."""
    return "/".join(Path(model).parts[-2:])


def table(rows: Sequence[Result]) -> str:
    """Rows of one experiment as a table: each point by each scoring, the tasks' means and deviations over seeds.

    What pools tasks (the mean, the rate of illegal answers, the vote) is over those that every line has.
    """
    rows = newest(rows)
    tasks = list(dict.fromkeys(row.task for row in rows))
    lines = [
        f"| frozen model | point | scoring | {' | '.join(tasks)} | mean | illegal | vote |",
        f"|---|---|---|{'--:|' * (len(tasks) + 3)}",
    ]
    models = list(dict.fromkeys(row.config["asked"] for row in rows))
    kinds = dict.fromkeys(map(_line_of, rows))
    common = set.intersection(*({r.task for r in rows if _line_of(r) == kind} for kind in kinds))
    for asked, point, scoring in sorted(kinds, key=lambda kind: models.index(kind[0])):
        own = [row for row in rows if _line_of(row) == (asked, point, scoring)]
        prompts = [row for row in own if row.seed != VOTE]
        pooled = [row for row in own if row.task in common]
        cells = [
            short_name(asked),
            point,
            scoring,
            *(spread([100 * row.value for row in prompts if row.task == task]) for task in tasks),
            _mean([100 * row.value for row in pooled if row.seed != VOTE], ".1f"),
            _mean([row.illegal_rate for row in pooled if row.seed != VOTE], ".0%"),
            _mean([100 * row.value for row in pooled if row.seed == VOTE], ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _line_of(row: Result) -> tuple[str, str, str]:
    return row.config["asked"], row.config["point"], row.scoring


def _mean(values: Sequence[float], form: str) -> str:
    return f"{fmean(values):{form}}" if values else "-"


def size_of(row: Result) -> Path:
    """The model of a size that was asked about: the folder of its checkpoints, whichever of them it was, or itself."""
    place = Path(row.config["asked"])
    return place.parent if place.name in ("lm", "span") else place


def family_of(row: Result) -> str:
    """What the sizes of one line have in common: the folder that holds them, or the name but for the size in it."""
    asked, place = Path(row.config["asked"]), size_of(row)
    if asked == place and len(place.parts) <= 2:  # a hub id, or a name
        return SIZE_IN_NAME.sub("", str(place))
    return str(place.parent) if place.parent.name else place.name


def spread(values: Sequence[float]) -> str:
    """Percentages as a cell of a table: their mean, and their deviation where there are several."""
    if not values:
        return "-"
    return f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{fmean(values):.1f}"
