"""The main path, top to bottom: a configuration in, trained prompts and result rows out.

    train(RunConfig(model="smollm2-135m", task=("glue/sst2",), data=folder, out=Path("runs/sst2")))

loads the frozen model, reads the task, holds part of the training file out, starts one prompt for each seed (and
setting), trains them together, keeps each at its best step, chooses the setting, scores the official dev set
once, and saves prompts and rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from softprompt.answering import Evaluation, Result, evaluate, model_of_row, read_rows, surroundings, write_rows
from softprompt.base.files import write_whole
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM, encode_examples, load
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.tasks import Task
from softprompt.training.loop import Fitted, fit
from softprompt.training.plan import Plan, TaskData, check_plans, members_of, plan_prompts, prepare, tasks_of
from softprompt.training.settings import RunConfig

ROWS = "results.jsonl"  # in a run's folder: one row for each prompt


@dataclass(frozen=True)
class Trained:
    """One delivered prompt."""

    prompt: SoftPrompt
    folder: Path
    fitted: Fitted
    dev: Evaluation | None
    """Its score on the official dev set, made once, after everything was chosen."""


def train(config: RunConfig, *, lm: FrozenLM | None = None, watch: Watch | None = None) -> list[Trained]:
    """Train, choose, score once, save. The delivered prompts: one for each task and seed.

    lm: a model that is loaded already. Raises ValueError for anything the user must mend.
    """
    return train_together([config], folder=config.out, lm=lm, watch=watch)[0]


class CannotStart(ValueError):
    """Why one of several runs that train together cannot start, and the folder it would write into."""

    def __init__(self, reason: str, out: Path):
        super().__init__(reason)
        self.out = out


def train_together(
    configs: Sequence[RunConfig], *, folder: Path, lm: FrozenLM | None = None, watch: Watch | None = None
) -> list[list[Trained]]:
    """Train the prompts of several runs over one copy of the model, such as the points of an ablation.

    Each run chooses and delivers as it would alone, into its own `out`. folder: for the checkpoint they share.
    The first run's `minutes` and `resume` hold for all. A prompt that stopped before its first score is not delivered.
    Raises ValueError as `train` does (of several runs `CannotStart`, which says whose), for runs of different models or
    machines, or with one `out`, and if no prompt is left.
    """
    _check_together(configs)
    watch = watch or Watch()
    first = configs[0]
    lm = lm or load_model(first)
    known: dict[Any, TaskData] = {}
    sets, plans = [], []
    for config in configs:
        try:
            read_rows(config.out / ROWS)  # refuses now, before hours of training, what new rows cannot be added to
            sets.append([_prepared(config, task, lm, known, watch) for task in tasks_of(config)])
            plans.append([plan for data in sets[-1] for plan in plan_prompts(config, data, lm)])
            check_plans(plans[-1], lm)
        except ValueError as error:
            if len(configs) == 1:
                raise
            raise CannotStart(str(error), config.out) from error
    if len(configs) > 1:
        for config, own in zip(configs, plans, strict=True):
            for plan in own:
                plan.run = config.out.name
    members = members_of([plan for own in plans for plan in own], lm)
    for data in known.values():
        _tell_cut(data, watch)
    watch.begin(max(member.config.steps for member in members), sum(member.config.batch_size for member in members))
    folder.mkdir(parents=True, exist_ok=True)
    fitted = fit(
        lm,
        members,
        folder=folder,
        resume=first.resume,
        minutes=first.minutes,
        on_step=watch.step,
        on_score=lambda step, i, loss, score: watch.score(step, members[i].title, loss, score),
        on_message=watch.message,
        on_phase=watch.phase,
        on_threads=watch.threads,
    )
    by_name = {(member.run, member.name): result for member, result in zip(members, fitted, strict=True)}
    delivered = [
        _deliver(config, lm, own_sets, [(plan, by_name[plan.run, plan.name]) for plan in own], watch)
        for config, own_sets, own in zip(configs, sets, plans, strict=True)
    ]
    if not any(delivered):
        raise ValueError(_nothing_left([by_name[plan.run, plan.name] for own in plans for plan in own]))
    return delivered


SHARED = ("model", "device", "dtype", "quantize", "checkpoint_activations", "compile", "minutes", "resume")
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
    """A task's data; runs that see it alike share it."""
    fields = (
        "inputs", "targets", "labels", "metric", "group_by", "select", "max_train", "max_dev", "max_input_length",
        "separator", "sentinel", "chat",
    )  # fmt: skip
    key = (task.name, repr(config.data), *(getattr(config, name) for name in fields))
    if key not in known:
        known[key] = prepare(config, task, lm)
        _tell_data(known[key], watch)
    return known[key]


def _deliver(
    config: RunConfig, lm: FrozenLM, sets: Sequence[TaskData], trained: Sequence[tuple[Plan, Fitted]], watch: Watch
) -> list[Trained]:
    """Choose each task's setting, save its prompts, and score them once. What stopped before a score is not saved."""
    several = len(sets) > 1 or len(config.seeds) > 1
    config.out.mkdir(parents=True, exist_ok=True)
    delivered = []
    for data in sets:
        own = [(plan, fitted) for plan, fitted in trained if plan.data is data]
        chosen = _choose(own)
        left = [(plan, fitted) for plan, fitted in own if plan.setting == chosen and not _is_lost(fitted)]
        kept = [_keep(config, lm, plan, fitted, several) for plan, fitted in left]
        _write_settings(config.out, own, chosen)
        scored = data.dev and kept
        delivered += _score_once(config, lm, data, kept, watch) if scored else [trained for _, trained in kept]
    return delivered


def _is_lost(fitted: Fitted) -> bool:
    """Whether a prompt stopped before its first score, so that what there is of it is untrained."""
    return fitted.stopped is not None and fitted.step == 0


def _nothing_left(fitted: Sequence[Fitted]) -> str:
    return (
        f"no prompt is left to save: {len(fitted)} of {len(fitted)} stopped before a first score "
        f"({fitted[0].stopped}); try a lower --learning-rate"
    )


def load_model(config: RunConfig) -> FrozenLM:
    """The frozen model a run asks for."""
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


def _choose(trained: Sequence[tuple[Plan, Fitted]]) -> tuple[int, float]:
    """The setting with the best mean selection score over its seeds; one that lost a seed comes after all others."""
    scores: dict[tuple[int, float], list[float]] = {}
    for plan, fitted in trained:
        scores.setdefault(plan.setting, []).append(float("-inf") if fitted.score is None else fitted.score)
    return max(scores, key=lambda setting: (fmean(scores[setting]), max(scores[setting])))


def _write_settings(out: Path, trained: Sequence[tuple[Plan, Fitted]], chosen: tuple[int, float]) -> None:
    """Every setting tried and its curve, as JSON lines beside the prompts."""
    lines = []
    for plan, result in trained:
        record = {
            "name": plan.name,
            "task": plan.data.task.name,
            "prompt_length": plan.setting[0],
            "learning_rate": plan.setting[1],
            "seed": plan.seed,
            "chosen": plan.setting == chosen,
            "selection": plan.data.selected_on,
            "score": result.score,
            "step": result.step,
            "steps_run": result.steps_run,
            "stopped": result.stopped,
            "history": result.history,
        }
        lines.append(json.dumps(record))
    path = out / f"{trained[0][0].data.task.name.replace('/', '-')}.settings.jsonl"
    write_whole(path, "\n".join(lines) + "\n")


def _keep(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, several: bool) -> tuple[Plan, Trained]:
    """Save a chosen prompt at once, so that nothing later can lose it."""
    prompt = SoftPrompt(fitted.values, _card(config, lm, plan, fitted, None))
    name = f"{plan.data.task.name.replace('/', '-')}-seed-{plan.seed}" if several else ""
    save_prompt(prompt, config.out / name)
    return plan, Trained(prompt, config.out / name, fitted, None)


def _score_once(
    config: RunConfig, lm: FrozenLM, data: TaskData, kept: Sequence[tuple[Plan, Trained]], watch: Watch
) -> list[Trained]:
    """Score the dev set once, all the task's prompts in one pass, and write it into cards and rows."""
    values = [trained.prompt.values for _, trained in kept]
    scoring = kept[0][0].train.scoring
    scores = evaluate(lm, values, data.task, data.dev, data.form, scoring=scoring, watch=watch)
    inputs = encode_examples(data.dev, data.form, lm.tokenizer, with_targets=False)
    data.notes["scored_cut"] = sum(row.was_cut for row in inputs)
    delivered, rows = [], []
    for (plan, trained), dev in zip(kept, scores, strict=True):
        prompt = SoftPrompt(trained.prompt.values, _card(config, lm, plan, trained.fitted, dev))
        save_prompt(prompt, trained.folder)
        delivered.append(replace(trained, prompt=prompt, dev=dev))
        rows.append(_result(config, lm, plan, trained.fitted, dev))
    others = [row for row in read_rows(config.out / ROWS) if row.task != data.task.name]
    write_rows(config.out / ROWS, [*others, *rows])
    return delivered


def _card(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, dev: Evaluation | None) -> Card:
    task = plan.data.task
    recipe = {**asdict(plan.train), "metric": config.metric, "group_by": config.group_by, "quantize": lm.quantization}
    return Card(
        model_name=lm.name,
        model_fingerprint=lm.fingerprint,
        is_encoder_decoder=lm.is_encoder_decoder,
        width=lm.width,
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
        config={**own, "train": json.loads(json.dumps(asdict(plan.train))), "prompt_length": plan.setting[0]},
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
        notes={**plan.data.notes, "history": fitted.history},
        **surroundings(lm.device, lm.dtype),
    )


def _tell_data(data: TaskData, watch: Watch) -> None:
    held = (
        (f"{len(data.selection)} held out" if data.selection else f"{len(data.folds)} folds")
        if data.selected_on != "dev"
        else "dev chooses the step"
    )
    watch.message(f"{data.task.name}: {data.notes['train']}")
    overlaps = {part: data.notes[f"overlap_with_{part}"] for part in ("dev", "test")}
    removed = "".join(f", {count} left out that stand in {part}" for part, count in overlaps.items() if count)
    watch.message(f"{data.task.name}: {len(data.train)} training examples, {held}, {len(data.dev)} dev{removed}")


def _tell_cut(data: TaskData, watch: Watch) -> None:
    if num_cut := data.notes["train_cut"]:
        used, limit = data.notes["train_used"], data.form.max_input_length
        watch.message(
            f"{data.task.name}: {num_cut:,} of {used:,} training inputs are cut to {limit} tokens; "
            "--max-input-length takes more of them"
        )
