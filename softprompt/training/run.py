"""The main path, top to bottom: a configuration in, trained prompts and result rows out.

    train(RunConfig(model="smollm2-135m", task=("glue/sst2",), data=folder, out=Path("runs/sst2")))

loads the frozen model, reads the task, holds part of the training file out, starts one prompt for each seed (and
setting), trains them together, keeps each at its best step, chooses the setting, scores the official dev set
once, and saves prompts and rows.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from softprompt.answering import Evaluation, Result, evaluate, model_of_row, read_rows, surroundings, write_rows
from softprompt.base.files import held, write_whole
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE, World
from softprompt.models import FrozenLM, encode_examples, load, lost_part
from softprompt.prompts import CARD, CONFIG, README, WEIGHTS, Card, SoftPrompt, load_prompt, save_prompt
from softprompt.tasks import Task
from softprompt.training.budget import within_budget
from softprompt.training.loop import FIXED_WORKSPACE, Fitted, fit
from softprompt.training.plan import (
    Plan,
    TaskData,
    check_plans,
    keeps_overlap,
    members_of,
    plan_prompts,
    prepare,
    tasks_of,
)
from softprompt.training.settings import RunConfig, check_out

ROWS = "results.jsonl"  # in a run's folder: one row for each prompt


@dataclass(frozen=True)
class Trained:
    """One delivered prompt."""

    prompt: SoftPrompt
    folder: Path
    fitted: Fitted
    dev: Evaluation | None
    """Its score on the official dev set, made once, after everything was chosen."""


def train(
    config: RunConfig,
    *,
    lm: FrozenLM | None = None,
    watch: Watch | None = None,
    overwrite: bool = False,
    world: World = ALONE,
) -> list[Trained]:
    """Train, choose, score once, save. The delivered prompts: one for each task and seed.

    lm: a model that is loaded already. overwrite: train into a folder that holds a prompt or an unfinished run, whose
    prompts go at the end. world: the processes that train together; each calls this, and the first one writes. Raises
    ValueError for such a folder without it, one that another process trains into, and for anything else the user must
    mend; OSError where the folder cannot be written.
    """
    watch = watch or Watch()
    with held(config.out) if world.is_first else nullcontext():
        if world.is_first:
            check_out(config, overwrite=overwrite)
        (delivered,) = train_together([config], folder=config.out, lm=lm, watch=watch, world=world)
        if overwrite and world.is_first:
            _remove_earlier(config.out, delivered, watch)
    return delivered


class CannotStart(ValueError):
    """Why one of several runs that train together cannot start, and the folder it would write into."""

    def __init__(self, reason: str, out: Path):
        super().__init__(reason)
        self.out = out


def train_together(
    configs: Sequence[RunConfig],
    *,
    folder: Path,
    lm: FrozenLM | None = None,
    watch: Watch | None = None,
    world: World = ALONE,
) -> list[list[Trained]]:
    """Train the prompts of several runs over one copy of the model, such as the points of an ablation.

    Each run chooses and delivers as it would alone, into its own `out`, over what an earlier run left there. folder:
    for the checkpoint they share. world: as `train` has it. The first run's `minutes` and `resume` hold for all. A
    prompt that stopped before its first score is not delivered. Raises ValueError as `train` does (of several runs
    `CannotStart`, which says whose), for runs of different models or machines, or with one `out`, and if no prompt is
    left.
    """
    _check_together(configs)
    with ExitStack() as stack:
        for config in configs if world.is_first else ():
            stack.enter_context(held(config.out))
        return _train_together(configs, folder, lm, watch if watch and world.is_first else Watch(), world)


def _train_together(
    configs: Sequence[RunConfig], folder: Path, lm: FrozenLM | None, watch: Watch, world: World
) -> list[list[Trained]]:
    first = configs[0]
    lm = lm or load_model(first)
    known: dict[Any, TaskData] = {}
    plans: list[list[Plan]] = []
    configs = list(configs)
    for place, config in enumerate(configs):
        try:
            read_rows(config.out / ROWS)  # refuses now, before hours of training, what new rows cannot be added to
            config = configs[place] = within_budget(config, lm, watch)
            sets = [_prepared(config, task, lm, known, watch) for task in tasks_of(config)]
            plans.append([plan for data in sets for plan in plan_prompts(config, data, lm)])
            check_plans(plans[-1], lm)
        except ValueError as error:
            if len(configs) == 1:
                raise
            raise CannotStart(str(error), config.out) from error
        if len(configs) > 1:
            for plan in plans[-1]:
                plan.run = config.out.name
    members = members_of([plan for own in plans for plan in own], lm)
    for plan in itertools.chain(*plans):
        if plan.demonstrated:
            watch.message(
                f"{plan.name}: starts from {len(plan.demonstrated)} of {len(plan.data.train):,} training examples and "
                f"is trained on {len(plan.rows(lm)):,}"
            )
    for data in known.values():
        if num_cut := data.notes["train_cut"]:
            cut = next(row.index for row in data.encoded(lm)[0] if row.was_cut)
            lost = lost_part(data.train[cut].inputs, data.form, lm.tokenizer)
            watch.message(
                f"{data.task.name}: {num_cut:,} of {data.notes['train_used']:,} training inputs are cut to "
                f"{data.form.max_input_length} tokens; --max-input-length takes more of them; of the first is lost, at "
                f"the {data.form.truncation_side} (--truncate): {lost}"
            )
    watch.begin(max(member.config.steps for member in members), sum(member.config.batch_size for member in members))
    fitted = fit(
        lm,
        members,
        folder=folder,
        resume=first.resume,
        minutes=first.minutes,
        deterministic=first.deterministic,
        watch=watch,
        world=world,
    )
    by_name = {(member.run, member.name): result for member, result in zip(members, fitted, strict=True)}
    trained = [[(plan, by_name[plan.run, plan.name]) for plan in own] for own in plans]
    delivered = [_deliver(config, lm, own, watch, world) for config, own in zip(configs, trained, strict=True)]
    if not any(delivered):
        count, why = sum(map(len, trained)), trained[0][0][1].stopped
        raise ValueError(
            f"no prompt is left to save: {count} of {count} stopped before a first score ({why}); "
            "try a lower --learning-rate"
        )
    return delivered


def load_model(config: RunConfig) -> FrozenLM:
    """The frozen model a run asks for."""
    if config.deterministic:
        os.environ.setdefault(*FIXED_WORKSPACE)  # is read at a GPU's first product, which comes before `fit`
    lm = load(
        config.model,
        device=config.device,
        dtype=config.dtype,
        quantize=config.quantize,
        checkpoint_activations=config.checkpoint_activations,
    )
    if config.compile:
        lm.compile()
    return lm


SHARED = (
    "model", "device", "dtype", "quantize", "checkpoint_activations", "compile", "deterministic", "minutes", "resume",
)  # fmt: skip
"""What runs that train together must have in common."""


def _check_together(configs: Sequence[RunConfig]) -> None:
    if not configs:
        raise ValueError("no run was given; give one configuration at least")
    for config in configs[1:]:
        for name in SHARED:
            if getattr(config, name) != getattr(configs[0], name):
                raise ValueError(
                    f"runs that train together share their {name}, but {configs[0].out} has "
                    f"{getattr(configs[0], name)!r} and {config.out} has {getattr(config, name)!r}"
                )
    names = [config.out.name for config in configs]  # messages and members go by these, too
    if len(set(names)) < len(names):
        raise ValueError(f"two runs write to {max(names, key=names.count)}; give each a folder of its own name")


def _prepared(config: RunConfig, task: Task, lm: FrozenLM, known: dict[Any, TaskData], watch: Watch) -> TaskData:
    """A task's data; runs that see it alike share it. What there is of it is told."""
    fields = (
        "inputs", "targets", "labels", "metric", "group_by", "select", "max_train", "max_dev", "max_input_length",
        "truncate", "separator", "sentinel", "chat",
    )  # fmt: skip
    key = (task.name, repr(config.data), keeps_overlap(config), *(getattr(config, name) for name in fields))
    if key in known:
        return known[key]
    data = known[key] = prepare(config, task, lm)
    held = f"{len(data.selection)} held out" if data.selection else f"{len(data.folds)} folds"
    if data.selected_on == "dev":
        held = "dev chooses the step"
    elif count := data.notes["chosen_by_omitted"]:
        held += f" with {count} rows that the task does not train on"
    overlap = ""
    for part in ("dev", "test"):
        if count := data.notes[f"overlap_with_{part}"]:
            overlap += f", {count} {data.notes['overlap']} that stand in {part}"
    watch.message(f"{task.name}: {data.notes['train']}")
    watch.message(f"{task.name}: {len(data.train)} training examples, {held}, {len(data.dev)} dev{overlap}")
    return data


def _deliver(
    config: RunConfig, lm: FrozenLM, trained: Sequence[tuple[Plan, Fitted]], watch: Watch, world: World
) -> list[Trained]:
    """Choose each task's setting, save its prompts, and score them once. What stopped before a score is not saved."""
    delivered = []
    for data in {id(plan.data): plan.data for plan, _ in trained}.values():
        tried = [(plan, fitted) for plan, fitted in trained if plan.data is data]
        chosen = _choose(tried)
        kept = []
        for plan, fitted in tried:
            is_lost = fitted.stopped is not None and fitted.step == 0
            if plan.setting != chosen or is_lost:
                continue
            folder = folder_of(config, data.task, plan.seed)
            prompt = SoftPrompt(fitted.values, _card(config, lm, plan, fitted, None))
            if world.is_first:
                save_prompt(prompt, folder)  # at once, so that nothing later can lose it
            kept.append((plan, Trained(prompt, folder, fitted, None)))
        if world.is_first:
            _write_settings(config.out, tried, chosen)
        if data.dev and kept:
            delivered += _score_once(config, lm, data, kept, watch, world)
        else:
            delivered += [prompt for _, prompt in kept]
    return delivered


def _choose(trained: Sequence[tuple[Plan, Fitted]]) -> tuple[int, float]:
    """The setting with the best mean selection score over its seeds; one that lost a seed comes after all others."""
    scores: dict[tuple[int, float], list[float]] = {}
    for plan, fitted in trained:
        scores.setdefault(plan.setting, []).append(float("-inf") if fitted.score is None else fitted.score)
    return max(scores, key=lambda setting: (fmean(scores[setting]), max(scores[setting])))


def folder_of(config: RunConfig, task: Task, seed: int) -> Path:
    """Where a run keeps the prompt of a task and a seed: its own folder, or one in it where it trains several."""
    several = len(config.task) > 1 or len(config.seeds) > 1
    return config.out / (f"{_file_name(task.name)}-seed-{seed}" if several else "")


def _file_name(task: str) -> str:
    return task.replace("/", "-")


def _write_settings(out: Path, trained: Sequence[tuple[Plan, Fitted]], chosen: tuple[int, float]) -> None:
    """Every setting tried and its curve, as JSON lines beside the prompts."""
    lines = []
    for plan, fitted in trained:
        record = {
            "name": plan.name,
            "task": plan.data.task.name,
            "prompt_length": len(plan.values),
            "learning_rate": plan.setting[1],
            "seed": plan.seed,
            "chosen": plan.setting == chosen,
            "selection": plan.data.selected_on,
            "score": fitted.score,
            "step": fitted.step,
            "steps_run": fitted.steps_run,
            "stopped": fitted.stopped,
            "history": fitted.history,
        }
        lines.append(json.dumps(record) + "\n")
    write_whole(out / f"{_file_name(trained[0][0].data.task.name)}.settings.jsonl", "".join(lines))


def _score_once(
    config: RunConfig, lm: FrozenLM, data: TaskData, kept: Sequence[tuple[Plan, Trained]], watch: Watch, world: World
) -> list[Trained]:
    """Score the dev set once, all the task's prompts in one pass, and write it into cards and rows."""
    values = [trained.prompt.values for _, trained in kept]
    scoring = kept[0][0].train.scoring
    scores = evaluate(lm, values, data.task, data.dev, data.form, scoring=scoring, watch=watch, world=world)
    inputs = encode_examples(data.dev, data.form, lm.tokenizer, with_targets=False)
    data.notes["scored_cut"] = sum(row.was_cut for row in inputs)
    delivered, rows = [], []
    for (plan, trained), dev in zip(kept, scores, strict=True):
        prompt = SoftPrompt(trained.prompt.values, _card(config, lm, plan, trained.fitted, dev))
        if world.is_first:
            save_prompt(prompt, trained.folder)
        delivered.append(replace(trained, prompt=prompt, dev=dev))
        rows.append(_result(config, lm, plan, trained.fitted, dev))
    if world.is_first:
        others = [row for row in read_rows(config.out / ROWS) if row.task != data.task.name]
        write_rows(config.out / ROWS, [*others, *rows])
    return delivered


def _card(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, dev: Evaluation | None) -> Card:
    task = plan.data.task
    recipe = {
        **asdict(plan.train),
        "method": config.method or "prompt",
        "metric": config.metric,
        "group_by": config.group_by,
        "quantize": lm.quantization,
    }
    return Card(
        model_name=lm.name,
        model_fingerprint=lm.fingerprint,
        is_encoder_decoder=lm.is_encoder_decoder,
        width=fitted.values[0].numel(),
        num_layers=lm.num_layers,
        num_heads=lm.num_heads,
        task=task.name,
        task_version=task.version,
        labels=task.labels or (),
        text=plan.data.form.to_json(),
        init=plan.init,
        recipe=json.loads(json.dumps({**recipe, "selection_score": fitted.score})),
        selection=plan.data.selected_on,
        dev_metrics=dict(dev.metrics) if dev else {},
        step=fitted.step,
        seed=plan.seed,
        parent=plan.init.get("parent"),
    )


def _result(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, dev: Evaluation) -> Result:
    own = {**asdict(config), "out": str(config.out), "data": None if config.data is None else "given"}
    own |= {"fingerprint": lm.fingerprint}
    return Result(
        experiment="train",
        config={**own, "train": json.loads(json.dumps(asdict(plan.train))), "prompt_length": len(plan.values)},
        model=model_of_row(lm.name),
        task=plan.data.task.name,
        split="dev",
        selection=plan.data.selected_on,
        scoring=plan.train.scoring,
        metrics=dev.metrics,
        value=dev.headline,
        illegal_rate=dev.illegal_rate,
        num_examples=len(dev.predictions),
        step=fitted.step,
        steps_run=fitted.steps_run,
        seconds=fitted.history[-1]["seconds"] if fitted.history else 0.0,
        seed=plan.seed,
        notes={
            **plan.data.notes,
            "history": fitted.history,
            **({"demonstrated": len(plan.demonstrated)} if plan.demonstrated else {}),
            **({"confusion": dev.confusion} if dev.confusion else {}),
        },
        **surroundings(lm.device, lm.dtype),
    )


def _remove_earlier(out: Path, delivered: Sequence[Trained], watch: Watch) -> None:
    """Remove the prompts of an earlier run in `out`: folders TASK-seed-N that hold such a prompt and nothing else."""
    kept = {trained.folder for trained in delivered}
    for folder in sorted(out.glob("*-seed-*")):
        if folder in kept or folder.is_symlink() or not folder.is_dir():
            continue
        files = list(folder.iterdir())
        if {file.name for file in files} != {CARD, CONFIG, README, WEIGHTS}:
            continue
        try:
            card = load_prompt(folder).card
        except ValueError:
            continue
        if card.task and folder.name == f"{_file_name(card.task)}-seed-{card.seed}":
            for file in files:
                file.unlink()
            folder.rmdir()
            watch.message(f"removed {folder}, a prompt of an earlier run")
