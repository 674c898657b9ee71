"""Methods side by side on one task: one loop, one evaluation, as many trials for each.

    compare(RunConfig(model="bundled/t5-mini", task=("glue/sst2",), data=folder), ["prompt-tuning", "lora"], rows=path)

Every method that trains gets the same rows, batches and steps, and four learning rates on the first seed; the selection
chooses the rate and every run's best step, and the official dev set is scored once for each seed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from softprompt.answering import (
    Evaluation,
    Result,
    append_rows,
    judge,
    model_of_row,
    read_rows,
    right_answers,
    surroundings,
)
from softprompt.base.files import write_tensors
from softprompt.base.memory import peak_bytes, reset_peak
from softprompt.base.names import nearest
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE, World
from softprompt.models import FrozenLM, TextFormat, encode_examples
from softprompt.study.prompt_design import (
    SHOTS,
    Design,
    ask,
    designs,
    examples_in_front,
    how_scored,
    num_rows,
    shots_name,
)
from softprompt.study.transfer import Other, digest, observer
from softprompt.study.weights import PREFIX_TUNING, TUNERS, PerWeight, Tuning, make_tuning
from softprompt.tasks import (
    Example,
    Task,
    get_task,
    has_split,
    hold_out,
    in_whole_groups,
    mixed,
    mixture,
    without_overlap,
)
from softprompt.training import (
    Adafactor,
    AdamW,
    Fitted,
    PromptTuning,
    RunConfig,
    TaskData,
    TrainConfig,
    at_most,
    check_plans,
    dev_examples,
    fit,
    format_of,
    keeps_overlap,
    load_model,
    members_of,
    plan_prompts,
    prepare,
    tasks_of,
)

PROMPT_TUNING, MODEL_TUNING, PROMPT_DESIGN = PromptTuning.name, "model-tuning", "prompt-design"
MULTI_TASK = "multi-task-model-tuning"
METHODS = (PROMPT_TUNING, *TUNERS, PROMPT_DESIGN)
EXPERIMENT = "compare"
VALUES = "values.safetensors"  # in the folder of a trial
NUM_RATES = 4  # learning rates that each method tries, in PROMPT_RATES and TUNERS

# Learning rates to try for prompts: about the paper's 0.3 (section 3) with Adafactor, and about the fast preset's 0.03
# with AdamW.
PROMPT_RATES: dict[type, tuple[float, ...]] = {Adafactor: (0.03, 0.1, 0.3, 1.0), AdamW: (0.003, 0.01, 0.03, 0.1)}
PAPER_RATE = 0.001  # the paper's model tuning of T5, section 3.1

# Tokens of examples in front, at most: what T5 was trained on (Raffel et al. 2020, section 3.1.1), and ours, so that a
# processor gets through them.
CONTEXT_LENGTH = {True: 512, False: 2_048}


DEV_SEED = 1  # ours: which rows are a dev set where there is none

Also = Mapping[str, Mapping[str, str]]
"""Other tasks to score on, each with what a label of the trained task is called there."""


@dataclass(frozen=True)
class Trial:
    """One training run of one method."""

    rate: float
    seed: int
    config: TrainConfig
    fitted: Fitted
    prompt_length: int
    num_trained: int
    peak: int
    """Bytes, the model's included."""
    values: Path
    """Where what was trained lies, so that no more than one model's weights are in memory."""

    @property
    def score(self) -> float:
        """On the selection rows, at the best step."""
        return float("-inf") if self.fitted.score is None else self.fitted.score

    @property
    def is_lost(self) -> bool:
        """Whether it stopped, of a loss that is no number, before anything was scored."""
        return self.fitted.stopped is not None and self.fitted.score is None


def check_methods(names: Sequence[str]) -> None:
    """ValueError for a method that there is not (the nearest is offered), or for none."""
    known = (PROMPT_TUNING, *TUNERS, PROMPT_DESIGN)
    if not names:
        raise ValueError(f"no method was given; there are {', '.join(known)}")
    for name in names:
        if name not in known:
            raise ValueError(f"no method named {name!r}{nearest(name, known)}; there are {', '.join(known)}")


def compare(
    config: RunConfig,
    methods: Sequence[str],
    *,
    rows: Path,
    watch: Watch | None = None,
    load: Callable[[RunConfig], FrozenLM] = load_model,
) -> list[str]:
    """Run the methods that have no rows yet, and append theirs; what failed, a line each.

    config: one task, and the steps, batch and seeds of every method; each model, task and settings have a folder of
    their own in `config.out`. ValueError for an unknown method, before anything runs. A method that fails leaves the
    others to go on.
    """
    check_methods(methods)
    (task,) = tasks_of(config)
    config = replace(config, out=config.out / folder_of(config.model, task.name, config))
    watch = watch or Watch()
    failures = []
    for name in methods:
        if rows_of(rows, config, name):
            watch.message(f"{name}: its rows are in {rows}")
            continue
        try:
            append_rows(rows, run_method(config, name, watch=watch, load=load))
        except (ValueError, RuntimeError, OSError) as error:
            failures.append(f"{name}: {' '.join(str(error).split())}")
            watch.message(f"{name} failed; the others go on")
    return failures


def rows_of(path: Path, config: RunConfig, name: str) -> list[Result]:
    """The rows that stand there for this method with these settings."""
    (task,) = tasks_of(config)
    wanted = (name, task.name, config.model)
    return [
        row
        for row in read_rows(path)
        if row.experiment == EXPERIMENT
        and (row.config["method"], row.task, row.config["frozen"]) == wanted
        and settings_of_row(row) == settings_of(config)
    ]


PLACES = ("model", "task", "data", "out", "resume")  # fields of RunConfig that are no settings


def settings_of(config: RunConfig) -> dict[str, Any]:
    """The settings that were given, as rows keep them."""
    later = {"keep_overlap": keeps_overlap(config), "deterministic": config.deterministic}  # older rows are without
    settings = asdict(config) | {name: value or None for name, value in later.items()}
    given = {name: value for name, value in settings.items() if name not in PLACES and value is not None}
    return json.loads(json.dumps(given))


def settings_of_row(row: Result) -> dict[str, Any]:
    """A row's settings, as `settings_of` has them; older rows also keep those that were not given."""
    return {name: value for name, value in row.config.get("settings", {}).items() if value is not None}


def folder_of(place: str, name: str, config: RunConfig) -> str:
    """A folder's name of a frozen model, what is run with it, and the settings."""
    settings = {key: repr(value) for key, value in asdict(config).items() if key not in ("out", "resume", "minutes")}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    model, what = (re.sub(r"[^A-Za-z0-9.+*(), -]+", "-", text).strip("-") for text in (place, name))
    return f"{model}-{what}-{digest}"


def run_method(
    config: RunConfig,
    name: str,
    *,
    also: Also | None = None,
    only: str | None = None,
    as_paper: bool = False,
    watch: Watch | None = None,
    load: Callable[[RunConfig], FrozenLM] = load_model,
    world: World = ALONE,
) -> list[Result]:
    """The rows of one method on one task: one for each seed, or for each number of shots of prompt design.

    also: other tasks that what was trained is scored on, as it is, each with the labels there for the labels here; a
    row for each that has data, with the scores along training. Training examples that stand in their sets are left
    out, unless the run keeps such. only: the one task of all these that is scored, at the end alone. as_paper: one
    rate where none is given, the preset's for prompts and the paper's for model tuning of a T5. A task without a dev
    set has a tenth of its training file for one. Small sets are held out, too: a model whose own weights train cannot
    have folds in one run. An interrupted call goes on from its checkpoints in `config.out`. world: the processes that
    train and score together; the first one writes, and alone runs prompt design.
    """
    check_methods([name])
    watch = watch or Watch()
    if name == PROMPT_DESIGN:
        if not world.is_first:
            return []
        lm = load(config)
        made = _designed(config, prepared(config, tasks_of(config)[0], lm), lm, watch)
    else:
        made = _entry(config, name, also or {}, only, watch, load, as_paper=as_paper, world=world).run()
    return [replace(row, config=row.config | {"also": list(also or {})}) for row in made]


def run_multi_task(
    config: RunConfig,
    *,
    as_paper: bool = False,
    watch: Watch | None = None,
    load: Callable[[RunConfig], FrozenLM] = load_model,
    world: World = ALONE,
) -> list[Result]:
    """Model tuning on all tasks of the run at once (paper, section 3.1): a row for each task and seed.

    The tasks' names stand in front of their inputs, and every set is drawn from in proportion to its size, as T5 does
    where none is larger than its limit (Raffel et al. 2020, section 3.5.2: 2^19 examples). The mean over the tasks'
    selection rows chooses the rate and the step; `as_paper` and `world` as in `run_method`.
    """
    made = _multi_task_entry(config, watch or Watch(), load, as_paper=as_paper, world=world).run()
    for row in made:
        if "superglue/wsc" in config.task:
            row.notes["not_run"] = {"dpr": "T5's mixture has it beside WSC, and softprompt does not read it"}
    return [replace(row, config=row.config | {"method": MULTI_TASK, "trained_on": row.task}) for row in made]


def prepared(config: RunConfig, task: Task, lm: FrozenLM) -> TaskData:
    """A task's data as methods are compared on it: with a dev set and without folds.

    ValueError for what a comparison cannot have: cross-validation, or several prompt lengths.
    """
    data = prepare(replace(config, select="held-out") if config.select == "auto" else config, task, lm)
    if data.folds:
        raise ValueError("methods cannot be compared by cross-validation; give --select held-out or dev")
    if config.prompt_length and len(config.prompt_length) > 1:
        lengths = ", ".join(map(str, config.prompt_length))
        raise ValueError(f"methods are compared at one prompt length, not at {lengths}; give one")
    return with_dev(data, config.max_dev)


def with_dev(data: TaskData, max_dev: int | None) -> TaskData:
    """A task's data as methods are compared on it, which has a dev set.

    Where there is none it is a tenth of the training rows, `max_dev` at most, whole sources on one side: of QQP, no
    question on both.
    """
    if data.dev:
        return data
    train, dev = hold_out(data.train, data.task, fraction=0.1, seed=DEV_SEED)
    dev = at_most(dev, max_dev)
    return replace(data, train=train, dev=dev, notes=data.notes | {"dev": f"{len(dev)} rows of the training file"})


def _other(
    task: Task, part: str, examples: list[Example], form: TextFormat, lm: FrozenLM, labels: Mapping[str, str]
) -> Other:
    rows = encode_examples(examples, form, lm.tokenizer, with_targets=False)
    return Other(task=task, part=part, examples=examples, rows=rows, labels=labels)


@dataclass(frozen=True)
class _Entry:
    """A method that trains, on one task."""

    name: str
    config: RunConfig
    data: TaskData
    scored: list[Other]
    """What every seed is scored on."""
    follow: bool
    """Whether that is scored along training, too."""
    rates: tuple[float, ...]
    watch: Watch
    load: Callable[[RunConfig], FrozenLM]
    world: World

    def run(self) -> list[Result]:
        """Every rate on the first seed, the best of them on the others; each seed's rows."""
        first, *seeds = self.config.seeds
        trials = [self.train(rate, first) for rate in self.rates]
        tried = [{"learning_rate": t.rate, "score": t.fitted.score, "stopped": t.fitted.stopped} for t in trials]
        best = max(trials, key=lambda trial: trial.score)
        if best.is_lost:
            raise ValueError(f"{self.name} stopped before its first score at every rate: {best.fitted.stopped}")
        made = self.finish(best, tried)
        for seed in seeds:
            trial = self.train(best.rate, seed)
            if trial.is_lost:
                self.watch.message(f"{self.name}, seed {seed} has no row: {trial.fitted.stopped}")
            else:
                made += self.finish(trial, tried)
        if self.world.is_first:  # checkpoints of what is done
            shutil.rmtree(self.config.out / "trials" / self.name, ignore_errors=True)
        return made

    @property
    def minutes(self) -> float | None:
        """The bound on one trial: all of them have the run's together."""
        num_trials = len(self.rates) + len(self.config.seeds) - 1
        return None if self.config.minutes is None else self.config.minutes / num_trials

    def train(self, rate: float, seed: int) -> Trial:
        """One run on a model of its own, since a method may change it."""
        lm = self.load(self.config)
        plan = plan_prompts(replace(self.config, learning_rate=(rate,), seeds=(seed,)), self.data, lm)[0]
        train = replace(plan.train, patience=None)  # all for as many steps
        method, values, config = _ready(self.name, lm, plan.values, train, rate, seed)
        check_plans([plan], lm)
        (member,) = members_of([plan], lm)
        name, others = f"{self.name} lr{rate:g} seed{seed}", self.scored if self.follow else []
        judging = member.judging | {"other rows": digest(others)}
        member = replace(member, name=name, config=config, values=values, judging=judging)
        folder = self.config.out / "trials" / self.name / f"{rate:g}-{seed}"
        if self.world.is_first:
            folder.mkdir(parents=True, exist_ok=True)
        self.watch.message(f"{self.data.task.name}: {self.name}, learning rate {rate:g}, seed {seed}")
        self.watch.begin(config.steps, config.batch_size)
        reset_peak(lm.device)
        (fitted,) = fit(
            lm,
            [member],
            method=method,
            folder=folder,
            resume=True,
            minutes=self.minutes,
            watch=self.watch,
            observe=observer(others, method, member, self.watch, self.world) if others else None,
            world=self.world,
        )
        peak = peak_bytes(lm.device)
        if self.world.is_first:
            write_tensors(folder / VALUES, {"values": fitted.values.contiguous()})
        light = replace(fitted, values=torch.empty(0))
        return Trial(rate, seed, config, light, len(plan.values), values.numel(), peak, folder / VALUES)

    def finish(self, trial: Trial, tried: Sequence[dict[str, Any]]) -> list[Result]:
        """Store what a trial trained, score it, and make the rows."""
        lm = self.load(self.config)
        unused = torch.zeros(trial.prompt_length, lm.width)  # of the prompt only the length matters from here on
        method, _, _ = _ready(self.name, lm, unused, trial.config, trial.rate, trial.seed)
        values = self.world.decided(lambda: load_file(trial.values)["values"])
        stored = self.config.out / f"{self.name}-seed-{trial.seed}.safetensors"
        kept = {"prompt_embeddings": values} if isinstance(method, PromptTuning) else method.in_use(values)
        if self.world.is_first:
            write_tensors(stored, kept)
        engine, (worn,) = method.engine([values])
        fitted, train = trial.fitted, trial.config
        if isinstance(train.optimizer, PerWeight):  # rows go without the shapes of every weight
            train = replace(train, optimizer=train.optimizer.optimizer)
        about = {
            "train": json.loads(json.dumps(asdict(train))),
            "learning_rate": trial.rate,
            "prompt_length": trial.prompt_length,
            "tried": tried,
            "trained_on": self.data.task.name,
            "trained_parameters": trial.num_trained,
            "stored_bytes": self.world.decided(lambda: stored.stat().st_size),
            "peak_bytes": trial.peak,
        }
        made = []
        for other in self.scored:
            told = self.watch.phase(f"score {other.task.name}", len(other.rows) // self.world.size)
            options: dict[str, Any] = {"scoring": train.scoring, "progress": told, "world": self.world}
            answers = other.answers(engine, worn, self.data.task, self.data.form, **options)
            row = _row(
                self.config,
                self.name,
                lm,
                self.data,
                other,
                judge(other.task, other.examples, answers),
                about,
                scoring=train.scoring,
                step=fitted.step,
                steps_run=fitted.steps_run,
                seconds=fitted.history[-1]["seconds"] if fitted.history else 0.0,
                seed=trial.seed,
            )
            row.notes["history"] = history = []
            row.notes["selection_score"] = fitted.score
            for entry in fitted.history:
                history.append({name: value for name, value in entry.items() if name != "others"})
                if other.task.name in entry.get("others", {}):
                    scores = entry["others"][other.task.name]
                    row.notes.setdefault("along", []).append({"step": entry["step"], "scores": scores})
            made.append(row)
        return made


def _entry(
    config: RunConfig,
    name: str,
    also: Also,
    only: str | None,
    watch: Watch,
    load: Callable[[RunConfig], FrozenLM],
    *,
    as_paper: bool = False,
    world: World = ALONE,
) -> _Entry:
    """A method on its task. The model that is loaded here is let go: every trial has one of its own.

    Scored are the task's own dev set, and the dev sets of other tasks, or training files where that is all there is.
    What cannot be read is told. Training examples that stand in other tasks' sets are counted, and left out or kept as
    those of the task's own dev set are.
    """
    (task,) = tasks_of(config)
    lm = load(config)
    data = prepared(config, task, lm)
    scored = [_other(task, "dev", data.dev, data.form, lm, {})]
    train, overlap = data.train, {}
    for other, labels in also.items():
        there = get_task(other)
        part = "train" if has_split(there, "train", config.data) and not has_split(there, "dev", config.data) else "dev"
        try:
            examples = dev_examples(config, there, part)
        except ValueError as error:
            data.notes.setdefault("not_run", {})[other] = str(error).replace(str(config.data), "DATA")  # rows travel
            watch.message(f"{other} is not run: {error}")
            continue
        scored.append(_other(there, part, examples, data.form, lm, labels))
        apart, overlap[other] = without_overlap(train, examples)
        if not keeps_overlap(config):
            train = apart
    if overlap:
        data = replace(data, train=train, notes=data.notes | {"overlap_with": overlap})
    if only:
        scored = [other for other in scored if other.task.name == only]
    rates = _rates(config, name, data, lm, as_paper=as_paper)
    return _Entry(name, config, data, scored, bool(also) and not only, rates, watch, load, world)


def _multi_task_entry(
    config: RunConfig, watch: Watch, load: Callable[[RunConfig], FrozenLM], *, as_paper: bool, world: World
) -> _Entry:
    """Model tuning on a mixture, as `_entry`: the tasks' training rows together, their selection rows in turn."""
    lm = load(config)
    sets = [prepared(config, task, lm) for task in tasks_of(config)]
    train, selections, targets = [], [], {}
    for data in sets:
        train += [mixed(data.task, example) for example in data.train]
        selections.append([mixed(data.task, example) for example in data.selection])
    for example in train:
        targets |= dict.fromkeys([*(example.choices or ()), example.targets])
    in_turn = [example for row in zip_longest(*selections) for example in row if example is not None]
    notes = {
        "train": "; ".join(f"{data.task.name}: {data.notes['train']}" for data in sets),
        "share_of_official": min(data.notes.get("share_of_official") or 1.0 for data in sets),
        "overlap": sets[0].notes["overlap"],
        **{
            name: sum(data.notes[name] for data in sets)
            for name in ("overlap_with_dev", "overlap_with_test", "targets_cut")
        },
    }
    form = format_of(config, lm, list(targets))
    task = mixture([data.task for data in sets])
    whole = TaskData(task, form, train, in_turn, [], [], sets[0].selected_on, notes)
    scored = []
    for data in sets:
        dev = [mixed(data.task, example) for example in data.dev]
        scored.append(_other(data.task, "dev", dev, form, lm, {}))
    config = replace(config, init="vocab")  # of a prompt, which is not trained
    rates = _rates(config, MODEL_TUNING, whole, lm, as_paper=as_paper)
    return _Entry(MODEL_TUNING, config, whole, scored, False, rates, watch, load, world)


def _rates(config: RunConfig, name: str, data: TaskData, lm: FrozenLM, *, as_paper: bool) -> tuple[float, ...]:
    if config.learning_rate:
        return config.learning_rate
    if name == PROMPT_TUNING:
        (plan,) = plan_prompts(replace(config, seeds=config.seeds[:1]), data, lm)
        usual = plan.train.optimizer
        return (usual.learning_rate,) if as_paper else PROMPT_RATES[type(usual)]
    tuner = TUNERS[name]
    if not (lm.is_encoder_decoder and tuner.rates_of_t5):
        return tuner.rates
    return (PAPER_RATE,) if as_paper else tuner.rates_of_t5


def _ready(
    name: str, lm: FrozenLM, prompt: Tensor, train: TrainConfig, rate: float, seed: int
) -> tuple[PromptTuning | Tuning, Tensor, TrainConfig]:
    """A method on a model, what it starts from, and how it is trained."""
    if name == PROMPT_TUNING:
        return PromptTuning(lm), prompt, train
    method = make_tuning(name, lm, prompt_length=len(prompt), seed=seed)
    return method, method.start, replace(train, optimizer=TUNERS[name].optimizer(method, rate))


def _row(
    config: RunConfig,
    name: str,
    lm: FrozenLM,
    data: TaskData,
    other: Other,
    found: Evaluation,
    about: Mapping[str, Any],
    **measured: Any,
) -> Result:
    """A row of a method: found is how it answered `other`, measured the fields that say how it came to be."""
    return Result(
        experiment=EXPERIMENT,
        config={
            **asdict(config),
            "out": str(config.out),
            "data": "given",
            "method": name,
            "frozen": config.model,
            "fingerprint": lm.fingerprint,
            "num_parameters": lm.num_parameters,
            "settings": settings_of(config),
            # PEFT's prefixes of a T5 stand before the decoder alone, the paper's before the encoder, too.
            "is_variant": name == PREFIX_TUNING and lm.is_encoder_decoder,
            **about,
        },
        model=model_of_row(lm.name),
        task=other.task.name,
        split=other.part,
        selection=data.selected_on,
        metrics=found.metrics,
        value=found.headline,
        illegal_rate=found.illegal_rate,
        num_examples=len(found.predictions),
        notes={
            **data.notes,
            "scored_cut": sum(row.was_cut for row in other.rows),
            "right": right_answers(other.task, other.examples, found.predictions),
        },
        **surroundings(lm.device, lm.dtype),
        **measured,
    )


def _designed(config: RunConfig, data: TaskData, lm: FrozenLM, watch: Watch) -> list[Result]:
    """A row for each number of shots: of its wordings, draws and calibrations the one that selection rows choose."""
    task, form = data.task, data.form
    plan = plan_prompts(replace(config, learning_rate=None, seeds=config.seeds[:1]), data, lm)[0]
    selection = data.selection[: in_whole_groups(data.selection, plan.train.num_selection)]
    length = CONTEXT_LENGTH[lm.is_encoder_decoder]
    if lm.max_length is not None:
        length = max(min(length, lm.max_length - config.max_input_length - form.max_target_length), 0)
    scored = _other(task, "dev", data.dev, form, lm, {})

    def asked(title: str, tried: Sequence[Design], examples: Sequence[Example]) -> list[Evaluation]:
        told = watch.phase(title, num_rows(tried, len(examples)))
        return ask(lm, task, tried, data.train, examples, form, context_length=length, progress=told)

    made = []
    for shots in SHOTS:
        started = time.monotonic()
        tried = [design for design in designs(lm, task, shots=[shots], draws=config.seeds) if design.shots == shots]
        scores = [found.headline for found in asked(f"{PROMPT_DESIGN}, {shots_name(shots)}", tried, selection)]
        best = tried[scores.index(max(scores))]
        seconds = time.monotonic() - started
        (dev,) = asked(f"score {task.name}", [best], data.dev)
        _, taken = examples_in_front(lm, task, data.train, form, best.wording, shots, best.draw, context_length=length)
        about = {
            "shots": shots,
            "shots_that_fit": taken,
            "trained_on": task.name,
            "chosen": best.name,
            "context_length": length,
            "tried": [{"design": design.name, "score": score} for design, score in zip(tried, scores, strict=True)],
            "trained_parameters": 0,
            "stored_bytes": 0,  # a text
            "peak_bytes": None,
        }
        measured = {"step": 0, "steps_run": 0, "seconds": round(seconds, 2), "seed": config.seeds[0]}
        scoring = how_scored(task, data.dev)
        row = _row(config, PROMPT_DESIGN, lm, data, scored, dev, about, scoring=scoring, **measured)
        row.notes["selection_score"] = max(scores)
        made.append(row)
    return made


def title_of(row: Result) -> str:
    """What a table calls the method of a row."""
    if row.config["method"] != PROMPT_DESIGN:
        return row.config["method"] + (" (PEFT's variant)" if row.config.get("is_variant") else "")
    return f"{PROMPT_DESIGN}, {shots_name(row.config['shots'])}"


def equal_seconds(rows: Sequence[Result]) -> float | None:
    """The mean seconds of the method that was done first, of those that train; None where none does."""
    trained = [row for row in rows if row.steps_run]
    names = {row.config["method"] for row in trained}
    means = [fmean(row.seconds for row in trained if row.config["method"] == name) for name in names]
    return min(means, default=None)


def score_within(row: Result, seconds: float) -> float | None:
    """The best selection score that a run had after so many seconds; None if it had none yet."""
    scores = [e["score"] for e in row.notes.get("history", []) if "score" in e and e["seconds"] <= seconds]
    return max(scores, default=None)
