"""Running the paper's experiments: every point that has no rows yet, those of one frozen model together.

    run_experiment("figure-3a", ["bundled/t5-mini"], RunConfig(...), rows=Path("results/study.jsonl"), out=Path("runs"))

A row is kept for each point, task, seed and scoring. What stands in the file with the same settings is not run again,
whichever experiment it was made for, so an interrupted command goes on, and figures share their points. Files only
grow: of several rows for one thing the newest counts (`rows.newest`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
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
from softprompt.cluster import ALONE, World
from softprompt.models import FrozenLM, TextFormat
from softprompt.study.comparison import (
    METHODS,
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
from softprompt.study.experiments import BEFORE, EXPERIMENTS, Experiment, Point
from softprompt.study.prompt_design import shots_name
from softprompt.study.rows import VOTE, trained_on
from softprompt.tasks import Data, Example, Task, get_task, has_split
from softprompt.training import (
    ROWS,
    SETS_LENGTH,
    CannotStart,
    RunConfig,
    Trained,
    dev_examples,
    load_model,
    prepare,
    tasks_of,
    train_together,
)

OTHER = {"generate": "rank", "rank": "generate"}
OF_WEIGHTS = (MODEL_TUNING, MULTI_TASK)
WEIGHTS_COST = 1.5  # ours: a layer's step is three products where weights are trained, and two where they are frozen

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
    def runs(self) -> list[tuple[str, ...]]:
        """The tasks of each run of a method with its own trials: one task each, all together for multi-task tuning."""
        if self.point.method is None:
            return []
        return [self.config.task] if self.point.method == MULTI_TASK else [(task,) for task in self.config.task]

    @property
    def num_runs(self) -> float:
        """About how many trainings of one prompt on one task it takes as long as."""
        tasks = 1 if self.point.method == MULTI_TASK else len(self.config.task)
        if self.point.method == PROMPT_DESIGN:
            return 2.0 * tasks  # ours: passes over the selection rows in some 50 designs
        is_tried = self.point.method is not None and not self.has_papers_rate
        rates = len(self.config.learning_rate or ()) or NUM_RATES if is_tried else 1
        times = WEIGHTS_COST if self.point.method in OF_WEIGHTS else 1.0
        return times * tasks * (rates - 1 + len(self.config.seeds))

    @property
    def has_papers_rate(self) -> bool:
        """Whether a method has the rate that the paper gives it, and tries no others."""
        return self.config.preset != "fast" and not self.config.learning_rate

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that its rows have; prompt design draws its examples with all of them, and has one row."""
        return self.config.seeds[:1] if self.point.method == PROMPT_DESIGN else self.config.seeds

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings as rows keep them."""
        return {name: v for name, v in settings_of(self.config).items() if name not in ("seeds", "minutes")}

    def wanted(self) -> set[tuple[str, int]]:
        """The tasks and seeds that its rows have: its own tasks, and other tasks whose files are there."""
        data = self.config.data
        tasks = [
            *self.config.task,
            *(name for name in self.point.also if _has("dev", name, data) or _has("train", name, data)),
        ]
        return {(task, seed) for task in tasks for seed in self.seeds}

    def name_of(self, row: Result) -> str:
        """What the row's point is called; each number of shots is a point of its own."""
        shots = row.config.get("shots")
        return self.point.name if shots is None else f"{self.point.name}, {shots_name(shots)}"


def named(name: str) -> Experiment:
    """The experiment of a name. ValueError for one that there is not; the nearest is offered."""
    if name not in EXPERIMENTS:
        raise ValueError(
            f"no experiment named {name!r}{nearest(name, EXPERIMENTS)}; there are {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]


def plan_experiment(
    name: str,
    models: Sequence[str],
    base: RunConfig,
    out: Path,
    points: Sequence[str] = (),
    *,
    before: Mapping[str, str] | None = None,
    model_rates: tuple[float, ...] | None = None,
) -> list[Planned]:
    """Every point on every model, or those of the given names.

    before: by model the one before LM adaptation, where it is not `span` beside it. model_rates: learning rates of what
    trains the model's weights; base has those of prompts. ValueError for an experiment or a point that there is not
    (the nearest is offered), a model without a point's folder, or `before` or `model_rates` that no point has use for.
    """
    known = {point.name: point for point in named(name).points}
    for task in base.task:
        get_task(task)  # refuses what there is not
    for point in points:
        if point not in known:
            raise ValueError(
                f"{name} has no point {point!r}{nearest(point, known)}; it has {', '.join(map(repr, known))}"
            )
    asked = [known[wanted] for wanted in points or known]
    if before and not any(point.inside == BEFORE for point in asked):
        raise ValueError(
            f"no point of {name} that is asked for trains the model before LM adaptation; leave --span-model out"
        )
    if model_rates and not any(point.method in OF_WEIGHTS for point in asked):
        raise ValueError(
            f"no point of {name} that is asked for trains the model's weights; leave --model-learning-rate out"
        )
    planned = []
    for model in models:
        for wanted in asked:
            for point, place in _places(wanted, model, (before or {}).get(model)):
                config = replace(base, model=place, **point.changes)
                if point.instead and not any(_has("train", task, config.data) for task in config.task):
                    config = replace(config, **point.instead)
                if point.method in OF_WEIGHTS:
                    config = replace(config, learning_rate=model_rates)
                config = replace(config, out=out / folder_of(place, point.name, config))
                planned.append(Planned(point, model, config))
    return planned


def _places(point: Point, model: str, before: str | None) -> list[tuple[Point, str]]:
    """A point's frozen models; each of several gives the point its own name."""
    if not point.inside:
        return [(point, model)]
    if point.inside == BEFORE and before is not None:
        return [(point, before)]
    if "*" in point.inside:  # kept steps; step 0 is the model before, which has a point of its own
        steps = [folder for folder in Path(model).glob(point.inside) if folder.name.isdigit() and int(folder.name)]
        folders = sorted(steps, key=lambda folder: int(folder.name))
    else:
        folders = [Path(os.path.normpath(Path(model) / point.inside))]  # as it was asked for, not resolved
    folders = [folder for folder in folders if (folder / "config.json").is_file()]
    if not folders and not point.is_optional:
        raise ValueError(
            f"{model} holds no model {point.inside}, which the point {point.name!r} needs; give a folder that "
            "softprompt pretrain and adapt wrote into, or see docs/pretraining.md"
        )
    return [(replace(point, name=point.name.replace("*", folder.name)), str(folder)) for folder in folders]


def _by_model(planned: Sequence[Planned], load: Load) -> Iterator[list[Planned]]:
    """The points of each frozen model, with their shares of the minutes, and which model it is where it may change.

    One that was trained anew in the same place has no rows yet, and cannot go on from the other's checkpoints. What
    has a name is taken to be the same for ever, and is not read only to see that it has its rows.
    """
    groups: dict[str, list[Planned]] = {}
    for one in planned:
        groups.setdefault(one.config.model, []).append(one)
    for place, group in groups.items():
        minutes = group[0].config.minutes
        if minutes is not None:  # whatever trains together has one share
            together = any(one.point.method is None for one in group)
            alone = sum(len(one.runs) for one in group if one.point.method != PROMPT_DESIGN)
            minutes /= max(together + alone, 1)
        fingerprint = None
        if Path(place).exists():
            with contextlib.suppress(ValueError, OSError):  # each run will say it
                fingerprint = load(group[0].config).fingerprint
        yield [
            replace(
                one,
                fingerprint=fingerprint,
                config=replace(one.config, minutes=minutes, out=_of_model(one.config.out, fingerprint)),
            )
            for one in group
        ]


def _of_model(folder: Path, fingerprint: str | None) -> Path:
    return folder if fingerprint is None else folder.with_name(f"{folder.name}-{fingerprint[:8]}")


def _has(part: str, task: str, data: Data | None) -> bool:
    return has_split(get_task(task), part, data)


def missing(
    name: str,
    models: Sequence[str],
    base: RunConfig,
    *,
    rows: Path,
    out: Path,
    points: Sequence[str] = (),
    before: Mapping[str, str] | None = None,
    model_rates: tuple[float, ...] | None = None,
    load: Load = load_model,
) -> list[Planned]:
    """The points that have no rows yet, under this or another experiment's name. ValueError as `plan_experiment`."""
    without = []
    planned = plan_experiment(name, models, base, out, points, before=before, model_rates=model_rates)
    for group in _by_model(planned, load):
        for planned in group:
            there = {(row.task, row.seed) for row in _rows_there(planned, rows)}
            if not planned.wanted() <= there:
                without.append(planned)
    return without


def run_experiment(
    name: str,
    models: Sequence[str],
    base: RunConfig,
    *,
    rows: Path,
    out: Path,
    points: Sequence[str] = (),
    before: Mapping[str, str] | None = None,
    model_rates: tuple[float, ...] | None = None,
    watch: Watch | None = None,
    load: Load = load_model,
    world: World = ALONE,
) -> list[str]:
    """Run what has no rows, and append its rows; what failed, a line each.

    base: the settings of all points, and `minutes`, which bound the points of one frozen model together. points: the
    names of those to run (none: all). before, model_rates: as in `plan_experiment`. A run that fails leaves the others
    to go on. world: the processes that train and score together; each calls this, and the first one reads and writes.
    ValueError as `plan_experiment` has it, before anything runs.
    """
    study = _Study(name, base, rows, out, watch if watch and world.is_first else Watch(), load, world)
    planned = plan_experiment(name, models, base, out, points, before=before, model_rates=model_rates)
    for group in _by_model(planned, load):
        place = group[0].config.model
        without = [planned for planned in group if not world.decided(partial(study.reuse, planned))]
        with study.attempt(place):
            study.train_together([planned for planned in without if planned.point.method is None])
        for planned in without:
            for tasks in planned.runs:
                with study.attempt(f"{place}, {planned.point.name}, {', '.join(tasks)}"):
                    study.run_method(planned, tasks)
    return study.failures


@dataclass(frozen=True)
class _Study:
    """One call of `run_experiment`."""

    name: str
    base: RunConfig
    rows: Path
    out: Path
    watch: Watch
    load: Load
    world: World
    failures: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def attempt(self, title: str) -> Iterator[None]:
        """What fails inside is told and named, and the others go on; of several processes, where it fails in all."""
        try:
            yield
        except (ValueError, RuntimeError, OSError) as error:
            if self.world.size > 1 and not isinstance(error, ValueError):
                raise
            self.fail(title, error)
            self.watch.message(f"{title} failed; the others go on")

    def fail(self, title: str, why: object) -> None:
        """Add a line to the failures."""
        self.failures.append(f"{title}: {' '.join(str(why).split())}")

    def reuse(self, planned: Planned) -> bool:
        """Whether a point's rows are there; those made for another experiment are copied."""
        wanted = planned.wanted()
        there = _rows_there(planned, self.rows)
        own = [row for row in there if (row.experiment, row.config["point"]) == (self.name, planned.name_of(row))]
        if wanted <= {(row.task, row.seed) for row in own}:
            self.watch.message(f"{self.name} {planned.point.name}: its rows are in {self.rows}")
            return True
        if not wanted <= {(row.task, row.seed) for row in there}:
            return False
        last = {(row.task, row.seed, row.scoring, row.config.get("shots")): row for row in there}
        self.append(planned, last.values(), {"asked": planned.asked})
        return True

    def train_together(self, group: Sequence[Planned]) -> None:
        """Train the prompts of all points of one frozen model, and append their rows.

        Tasks without the files that a point needs, and points that cannot start, are added to the failures.
        """
        together = []
        without: dict[str, str] = {}
        for planned in group:
            for task in planned.config.task:
                for part in ("train", "dev"):
                    if task not in without and not _has(part, task, planned.config.data):
                        where = planned.config.data or "the hub"
                        without[task] = f"no {part} file in {where}, and a point needs one to be scored"
            if tasks := tuple(task for task in planned.config.task if task not in without):
                together.append(replace(planned, config=replace(planned.config, task=tasks)))
        for task, why in without.items():
            self.failures.append(f"{group[0].config.model}, {task}: {why}")
        if not together:
            return
        place, lm = together[0].config.model, self.load(together[0].config)
        while True:
            names = "+".join(planned.point.name for planned in together)
            folder = _of_model(self.out / "together" / folder_of(place, names, self.base), together[0].fingerprint)
            try:
                runs = [replace(planned.config, patience=0) for planned in together]  # all for as many steps
                trained = train_together(runs, folder=folder, lm=lm, watch=self.watch, world=self.world)
                break
            except CannotStart as error:
                (first,) = [planned for planned in together if planned.config.out == error.out]
                together = [planned for planned in together if planned is not first]
                self.fail(f"{place}, {first.point.name}", error)
                self.watch.message(f"{place}, {first.point.name} cannot start; the others do")
        for planned, delivered in zip(together, trained, strict=True):
            made = []
            for task in planned.config.task:
                # Those of a task that all stopped before a first score were told.
                if prompts := [one for one in delivered if one.prompt.card.task == task]:
                    made += self._rows(planned, task, prompts, lm)
            if self.world.is_first:
                append_rows(self.rows, made)

    def _rows(self, planned: Planned, name: str, prompts: Sequence[Trained], lm: FrozenLM) -> list[Result]:
        """A row for each prompt of one task by each scoring, and one for their vote."""
        task = get_task(name)
        examples = dev_examples(planned.config, task)
        first = prompts[0].prompt.card.recipe["scoring"]
        evaluations = {first: [prompt.dev for prompt in prompts if prompt.dev]}
        if can_rank(task, examples):
            evaluations[OTHER[first]] = _scored(prompts, task, examples, lm, OTHER[first], self.watch, self.world)
        if not self.world.is_first:
            return []
        there = read_rows(planned.config.out / ROWS)
        written: dict[int | None, Result] = {row.seed: row for row in there if row.task == name}
        about = {
            "point": planned.point.name,
            "asked": planned.asked,
            "frozen": planned.config.model,
            "num_parameters": lm.num_parameters,
            "settings": planned.settings,
        }

        def row_of(prompt: Trained, evaluation: Evaluation, scoring: str) -> Result:
            row = written[prompt.prompt.card.seed]
            return replace(
                row,
                experiment=self.name,
                config=row.config | about,
                scoring=scoring,
                metrics=evaluation.metrics,
                value=evaluation.headline,
                illegal_rate=evaluation.illegal_rate,
                notes=row.notes | {"right": right_answers(task, examples, evaluation.predictions)},
            )

        near = [neighbourhood(prompt.prompt, lm) for prompt in prompts]
        made = []
        for scoring, found in evaluations.items():
            for prompt, evaluation, numbers in zip(prompts, found, near, strict=True):
                row = row_of(prompt, evaluation, scoring)
                row.notes["neighbourhood"] = numbers
                made.append(row)
            if len(prompts) > 1:
                votes = ensemble(task, examples, [evaluation.predictions for evaluation in found])
                made.append(replace(row_of(prompts[0], judge(task, examples, votes), scoring), seed=VOTE))
        return made

    def run_method(self, planned: Planned, tasks: tuple[str, ...]) -> None:
        """Run a method with its own trials, and append its rows.

        Further seeds take the rate that was chosen for those there are.
        """
        method = planned.point.method
        assert method is not None
        of_point = self.world.decided(lambda: _rows_there(planned, self.rows))
        there = [row for row in of_point if row.experiment == self.name and row.config["trained_on"] in tasks]
        have = {(row.task, row.seed) for row in there}
        lacking = replace(planned, config=replace(planned.config, task=tasks)).wanted() - have
        seeds = tuple(seed for seed in planned.seeds if any(seed == other for _, other in lacking))
        if not seeds:
            return
        config = replace(planned.config, task=tasks, out=planned.config.out / "+".join(tasks).replace("/", "-"))
        about: dict[str, Any] = {"asked": planned.asked, "settings": planned.settings}
        if there and method != PROMPT_DESIGN:
            config = replace(config, seeds=seeds, learning_rate=(there[0].config["learning_rate"],))
            about["tried"] = there[0].config["tried"]
        shared: dict[str, Any] = {"watch": self.watch, "load": self.load, "world": self.world}
        shared["as_paper"] = planned.has_papers_rate
        if method == MULTI_TASK:
            made = run_multi_task(config, **shared)
        else:
            made = run_method(config, method, also=planned.point.also, **shared)
        if self.world.is_first:
            self.append(planned, made, about)

    def append(self, planned: Planned, rows: Iterable[Result], about: Mapping[str, Any]) -> None:
        """Append rows as this experiment's."""
        made = []
        for row in rows:
            config = {**row.config, **about, "point": planned.name_of(row)}
            made.append(replace(row, experiment=self.name, config=config))
        append_rows(self.rows, made)


def _rows_there(planned: Planned, rows: Path) -> list[Result]:
    """The rows of the same frozen model, method, tasks, seeds and settings, whichever experiment they were made for."""
    config, method = planned.config, planned.point.method
    there = []
    for row in read_rows(rows):
        about, train = row.config, row.config.get("train")
        fingerprint = about.get("fingerprint", planned.fingerprint)
        is_model = about.get("frozen") == config.model and planned.fingerprint in (None, fingerprint)
        is_point = (
            about.get("method") == method
            and settings_of_row(row) == planned.settings
            and trained_on(row) in config.task
            and about.get("also", []) == list(planned.point.also)
            and row.seed in (*config.seeds, VOTE)
        )
        # Multi-task tuning trains on all its tasks together, and prompt design draws examples with all its seeds.
        is_training = (method != MULTI_TASK or about.get("task") == list(config.task)) and (
            method != PROMPT_DESIGN or about.get("seeds") == list(config.seeds)
        )
        # It came to its end, or was bounded by as many minutes as this one.
        bound = about.get("minutes")
        is_whole = bound is None or train is None or row.steps_run >= train["steps"]
        is_as_long = is_whole or (config.minutes is not None and config.minutes <= (bound or 0.0))
        if is_model and is_point and is_training and is_as_long:
            there.append(row)
    return there


def _scored(
    prompts: Sequence[Trained],
    task: Task,
    examples: Sequence[Example],
    lm: FrozenLM,
    scoring: str,
    watch: Watch,
    world: World = ALONE,
) -> list[Evaluation]:
    form = TextFormat.from_json(prompts[0].prompt.card.text)
    values = [one.prompt.values for one in prompts]
    return evaluate(lm, values, task, examples, form, scoring=scoring, watch=watch, world=world)


def config_of_row(row: Result, *, data: Data, out: Path) -> RunConfig:
    """The run that made a row, without the bound in minutes, which no two machines reach at one step.

    data: where the task's files are now, which rows do not say.
    ValueError for a row that no single run made: a vote, or a benchmark's.
    """
    if row.seed == VOTE or not ("train" in row.config or row.config.get("method") == PROMPT_DESIGN):
        what = "a vote of several prompts" if row.seed == VOTE else f"of {row.experiment!r}, which trains no prompt"
        raise ValueError(f"this row is {what}; give the row of a prompt")
    known = {setting.name for setting in fields(RunConfig)}
    given: dict[str, Any] = {}
    for name, value in row.config.items():
        if name in known:
            given[name] = tuple(value) if isinstance(value, list) else value
    if not given.get("inputs"):
        given["task"] = (trained_on(row),)
    if "train" in row.config:
        rate = row.config.get("learning_rate")
        if not isinstance(rate, float):  # a list of what was tried, or nothing
            rate = row.config["train"]["optimizer"]["learning_rate"]
        given |= {"prompt_length": (row.config["prompt_length"],), "learning_rate": (rate,), "seeds": (row.seed,)}
    given.setdefault("keep_overlap", False)  # older rows kept none, whatever the preset
    if given.get("patience") is None:
        given["patience"] = row.config.get("train", {}).get("patience") or 0  # older rows of fast had none
    if given.get("init") in SETS_LENGTH:
        given["prompt_length"] = None
    if given.get("init") != "demonstrations":
        given.pop("shots", None)  # prompt design's own
    if _compared_method(row):
        del given["method"]
    return RunConfig(**given | {"data": data, "out": out, "resume": False, "minutes": None})


def rerun(
    row: Result, *, data: Data, out: Path, lm: FrozenLM | None = None, watch: Watch | None = None
) -> dict[str, float]:
    """Run what made a row once more, and score it as the row was: the metrics. The new prompt is in `out`.

    The same on the same machine and threads, but for the rounding of what it was batched with.
    ValueError as `config_of_row` and `train` have it, for data without a dev set or that is split into other examples
    now, and for another model than the row's under the same name.
    """
    config = config_of_row(row, data=data, out=out)

    def checked(lm: FrozenLM) -> FrozenLM:
        wanted = row.config.get("fingerprint", lm.fingerprint)  # older rows do not tell
        if lm.fingerprint != wanted:
            raise ValueError(
                f"{lm.name} is not the model that the row was made with: its fingerprint is {lm.fingerprint}, and the "
                f"row has {wanted}; put that model there"
            )
        return lm

    def load(config: RunConfig) -> FrozenLM:
        return checked(load_model(config))

    lm = load(config) if lm is None else checked(lm)
    _check_examples(row, config, lm)
    if method := _compared_method(row):
        del lm  # every trial loads its own
        if method == MULTI_TASK:
            config = replace(config, task=tuple(row.config["task"]))
            return next(one.metrics for one in run_multi_task(config, watch=watch, load=load) if one.task == row.task)
        made = run_method(config, method, also=_others_of(row), only=row.task, watch=watch, load=load)
        return next(one.metrics for one in made if one.config.get("shots") == row.config.get("shots"))
    ((delivered,),) = train_together([config], folder=out, lm=lm, watch=watch)
    if delivered.dev is None:
        raise ValueError("there is no dev set to score on; give one with the data")
    if row.scoring == delivered.prompt.card.recipe["scoring"]:
        return delivered.dev.metrics
    (task,) = tasks_of(config)
    examples = dev_examples(config, task)
    return _scored([delivered], task, examples, lm, row.scoring, watch or Watch())[0].metrics


def _compared_method(row: Result) -> str | None:
    """The method of a comparison's row. Other rows have there how the prompt was trained: None, prompt or kv."""
    method = row.config.get("method")
    return method if method in (*METHODS, MULTI_TASK) else None


def _others_of(row: Result) -> dict[str, Mapping[str, str]]:
    """The other tasks that the row's run was scored on, and what its labels are called there, as its experiment has
    it."""
    labels: Mapping[str, Mapping[str, str]] = {}
    if row.experiment in EXPERIMENTS:
        for point in EXPERIMENTS[row.experiment].points:
            if point.name == row.config["point"]:
                labels = point.also
    others = dict.fromkeys([*row.config.get("also", []), row.task])
    return {name: labels.get(name, {}) for name in others if name != trained_on(row)}


def _check_examples(row: Result, config: RunConfig, lm: FrozenLM) -> None:
    """ValueError where the data is split into other examples now than in the row's run, as far as the row tells."""
    if row.config.get("method") == MULTI_TASK:
        return  # of a mixture
    (task,) = tasks_of(config)
    data = (prepared if _compared_method(row) else prepare)(config, task, lm)
    known = {"examples": data.notes["examples"]}
    if not row.config.get("also"):  # or less what stands in other sets
        known["train_used"] = len(data.train)
    for name, value in known.items():
        if row.notes.get(name, value) != value:
            raise ValueError(
                f"the row's run had other examples of {task.name} than there are now ({name} is {value}, and in the "
                f"row {row.notes[name]}); give the same files, and softprompt at the row's commit {row.commit[:7]}"
            )
