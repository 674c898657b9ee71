"""From a configuration and a model to what trains: a task's data, prompts to start from, members of the loop."""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from softprompt.answering import can_rank, check_can_rank
from softprompt.models import (
    FrozenLM,
    Row,
    TextFormat,
    check_labels,
    check_length,
    default_format,
    encode_examples,
    encode_target,
    target_lengths,
)
from softprompt.prompts import from_ids, initial_prompt
from softprompt.tasks import (
    Example,
    Task,
    file_task,
    folds,
    get_task,
    has_split,
    hold_out,
    in_whole_groups,
    read_omitted,
    read_split,
    without_overlap,
)
from softprompt.training.demonstrations import choose_demonstrations
from softprompt.training.loop import Member, TrainConfig
from softprompt.training.optimizers import kind_of
from softprompt.training.presets import KV_RATE, PRESETS
from softprompt.training.settings import RunConfig

Sides = tuple[list[Example], list[Example]]
SPLIT_SEED = 0  # ours: the held-out part is the same for every seed of the prompts, so that seeds compare
SMALL = 500  # ours, docs/design.md: below this many examples the held-out part is cross-validation folds
MOST_TARGET_TOKENS = 512  # ours: as many as of an input; greedy decoding writes up to the longest target's length
MOST_TRIED = 2_000  # ours: different targets that are written and read back before training, in under a second
NUM_FOLDS = 3  # ours: members of the same run, so each costs as much as one more seed


@dataclass
class TaskData:
    """One task's data, ready to train on."""

    task: Task
    form: TextFormat
    train: list[Example]
    selection: list[Example]
    folds: list[tuple[list[Example], list[Example]]]
    dev: list[Example]
    selected_on: str
    notes: dict[str, Any] = field(default_factory=dict)
    """What a row says of the data; `examples` is a digest of them all, so that a later run knows them again."""
    _rows: tuple[list[Row], list[Row]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for part in (self.train, self.selection, *itertools.chain(*self.folds), self.dev):
            digest.update(f"{len(part)}\n".encode())
            for example in part:
                digest.update(f"{example.id}\t{example.inputs}\t{example.targets}\n".encode())
        self.notes.setdefault("examples", digest.hexdigest()[:8])

    def encoded(self, lm: FrozenLM) -> tuple[list[Row], list[Row]]:
        """The rows to train on and those that choose, encoded once for all runs of the data."""
        if self._rows is None:
            train = encode_examples(self.train, self.form, lm.tokenizer)
            self._rows = train, encode_examples(self.selection, self.form, lm.tokenizer)
            self.notes["train_used"] = len(train)
            self.notes["train_cut"] = sum(row.was_cut for row in train)
        return self._rows


def tasks_of(config: RunConfig) -> list[Task]:
    """The tasks by name, or the one that the templates describe. ValueError for a task named twice."""
    if config.task:
        tasks = {}
        for name in config.task:
            task = get_task(name)
            if task.name in tasks:
                raise ValueError(f"the task {task.name} is named twice; name it once")
            tasks[task.name] = task
        return list(tasks.values())
    assert config.inputs and config.targets
    own = file_task(
        inputs=config.inputs,
        targets=config.targets,
        labels=config.labels,
        metric=config.metric,
        group_by=config.group_by,
    )
    return [own]


def format_of(config: RunConfig, lm: FrozenLM, texts: Sequence[str]) -> TextFormat:
    """How a run's text becomes ids; the target length is that of the longest label or training target, up to 512."""
    changes: dict[str, Any] = {
        "max_input_length": config.max_input_length,
        "truncation_side": config.truncate or "end",
    }
    if config.sentinel != "none":
        changes["sentinel"] = config.sentinel
    if config.separator is not None:
        changes["separator"] = config.separator
    if config.chat:
        changes |= {"chat": True, "separator": "", "leading_space": False}
    if config.inputs:
        changes |= {"inputs_template": config.inputs, "targets_template": config.targets}
    form = default_format(lm, **changes)
    longest = max(target_lengths(texts, form, lm.tokenizer), default=32)
    return replace(form, max_target_length=min(max(longest, 4), MOST_TARGET_TOKENS))


def prepare(config: RunConfig, task: Task, lm: FrozenLM) -> TaskData:
    """Training, selection and dev examples; what overlaps dev or test has left the training part, unless it is kept."""
    reading = read_split(task, "train", config.data)
    examples = reading.examples
    notes: dict[str, Any] = {"train": reading.note, "share_of_official": reading.share}
    notes["overlap"] = "kept" if keeps_overlap(config) else "left out"
    scored: dict[str, list[Example]] = {}
    for part in ("dev", "test"):
        scored[part] = read_split(task, part, config.data).examples if has_split(task, part, config.data) else []
        apart, notes[f"overlap_with_{part}"] = without_overlap(examples, scored[part])
        if not keeps_overlap(config):
            examples = apart
    dev = at_most(scored["dev"], config.max_dev)
    if config.max_train is not None:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        examples = [examples[i] for i in order[: config.max_train]]
    if not examples:
        raise ValueError(f"{task.name} has no training examples left; give more data")
    counts = Counter(example.targets for example in examples)
    if config.inputs:
        _warn_of_classes(task, counts)
    labels = task.labels or tuple(counts)
    form = format_of(config, lm, labels)
    check_labels(task.labels or (), form, lm.tokenizer)
    scoring = config.scoring or PRESETS[config.preset].train.scoring
    are_written = scoring == "generate" or not can_rank(task, examples)
    notes["targets_cut"] = _check_targets(task, examples, form, lm, are_written=are_written)
    if config.select == "dev":
        if not dev:
            raise ValueError(f"--select dev, but {task.name} has no dev file; give dev=FILE or use held-out")
        return TaskData(task, form, examples, _shuffled_groups(dev), [], dev, "dev", notes)
    omitted = read_omitted(task, config.data)
    if not keeps_overlap(config):
        omitted, _ = without_overlap(omitted, [*scored["dev"], *scored["test"]])
    rows = [*examples, *at_most(omitted, config.max_train)]
    trained = {example.id for example in examples}

    def sides(kept: list[Example], held: list[Example]) -> Sides:
        """What is trained on, and what chooses: also of the rows that are not trained on, which are counted."""
        notes["chosen_by_omitted"] = notes.get("chosen_by_omitted", 0) + sum(e.id not in trained for e in held)
        return [example for example in kept if example.id in trained], _shuffled_groups(held)

    if config.select == "cross-validation" or (config.select == "auto" and len(examples) < SMALL):
        parts = [sides(*part) for part in folds(rows, task, num_folds=NUM_FOLDS, seed=SPLIT_SEED)]
        return TaskData(task, form, examples, [], parts, dev, "cross-validation", notes)
    kept, held = sides(*hold_out(rows, task, fraction=0.1, seed=SPLIT_SEED))
    return TaskData(task, form, kept, held, [], dev, "held-out", notes)


def keeps_overlap(config: RunConfig) -> bool:
    """Whether a run trains on rows that stand in dev or test."""
    return PRESETS[config.preset].keep_overlap if config.keep_overlap is None else config.keep_overlap


def _warn_of_classes(task: Task, counts: Counter[str]) -> None:
    """Warn of what a file of one's own teaches nothing about. counts: how many training examples have each target."""
    if len(counts) == 1 and counts.total() > 1:
        warnings.warn(
            f"all {counts.total():,} training examples have the target {next(iter(counts))!r}, and so will every "
            "answer; give examples of others",
            stacklevel=3,
        )
    elif missing := [label for label in task.labels or () if not counts[label]]:
        warnings.warn(
            f"no training example has the label {', '.join(map(repr, missing))}; give some, or leave it out",
            stacklevel=3,
        )


def _check_targets(
    task: Task, examples: Sequence[Example], form: TextFormat, lm: FrozenLM, *, are_written: bool
) -> int:
    """How many targets are longer than the format's, of which it warns; and where they are written, of those that the
    tokenizer does not give back as the same answer, as one that drops accents.
    """
    different: dict[str, Example] = {}
    for example in examples:
        different.setdefault(example.targets, example)
    lengths = dict(zip(different, target_lengths(list(different), form, lm.tokenizer), strict=True))
    num_cut = sum(lengths[example.targets] > form.max_target_length for example in examples)
    if num_cut:
        warnings.warn(
            f"{num_cut:,} of {len(examples):,} training targets of {task.name} are longer than "
            f"{form.max_target_length} tokens and are cut; make them shorter, or leave those examples out",
            stacklevel=3,
        )
    tried = list(different.items())[:MOST_TRIED] if are_written else []
    lost = {}
    for text, example in tried:
        written = form.answer_of(lm.tokenizer.decode(encode_target(text, form, lm.tokenizer)).strip())
        is_whole = lengths[text] <= form.max_target_length
        if is_whole and task.answer(written, example) != task.answer(text, example):
            lost[text] = written
    if lost:
        text, written = next(iter(lost.items()))
        warnings.warn(
            f"{len(lost):,} of {len(tried):,} different training targets of {task.name} do not come back from the "
            f"tokenizer of {lm.name}: {text!a} comes back as {written!a}, which is never right; write them otherwise",
            stacklevel=3,
        )
    return num_cut


def dev_examples(config: RunConfig, task: Task, part: str = "dev") -> list[Example]:
    """What a run scores of a task's dev file, or of another part. ValueError where there is none."""
    return at_most(read_split(task, part, config.data).examples, config.max_dev)


def at_most(examples: list[Example], count: int | None) -> list[Example]:
    """At most so many of them, in an order of their own; those that are scored together stay together."""
    if count is None:
        return examples
    shuffled = _shuffled_groups(examples)
    return shuffled[: in_whole_groups(shuffled, count)]


def _shuffled_groups(examples: Sequence[Example]) -> list[Example]:
    """The examples in an order of their own, those that are scored together side by side."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group or example.id, []).append(example)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    in_groups = list(groups.values())
    return [example for i in order for example in in_groups[i]]


@dataclass
class Plan:
    """One prompt to train, and where it came from."""

    name: str
    data: TaskData
    setting: tuple[int, float]
    seed: int
    train: TrainConfig
    values: Tensor
    init: dict[str, Any]
    demonstrated: tuple[int, ...] = ()
    """Places of the training examples that the prompt starts from; it is not trained on them."""
    of_folds: tuple[tuple[Tensor, tuple[int, ...]], ...] = ()
    """The same two of each fold, whose demonstrations are its own."""
    run: str = ""
    """Which of the runs that train together it belongs to; '' for one alone."""
    judging: dict[str, Any] = field(default_factory=dict)
    """The metric and group_by of a task of one's own."""

    def rows(self, lm: FrozenLM) -> list[Row]:
        """What it is trained on: the training rows but for those that it starts from."""
        return _without(self.data.encoded(lm)[0], self.demonstrated)


def plan_prompts(config: RunConfig, data: TaskData, lm: FrozenLM) -> list[Plan]:
    """One plan for each setting and seed. ValueError for settings that the task or the model cannot have."""
    preset = PRESETS[config.preset]
    base = _train_config(config, data, lm)
    lengths = config.prompt_length or (preset.prompt_length,)
    rates = config.learning_rate or (base.optimizer.learning_rate,)
    judging = {"metric": config.metric, "group_by": config.group_by}
    space = " " if data.form.leading_space else ""
    texts = [space + text for text in data.task.initial_texts or data.task.labels or ()]  # as the model will read them
    init = config.init or ("vocab" if preset.init == "class-labels" and not texts else preset.init)
    plans = []
    for length, rate, seed in itertools.product(lengths, rates, config.seeds):
        more: dict[str, Any] = {}
        if init == "demonstrations":
            rows, _ = data.encoded(lm)
            values, start, more["demonstrated"] = _from_demonstrations(config, data, data.train, rows, lm, seed)
            folds = []
            for kept, _ in data.folds:
                kept_rows = encode_examples(kept, data.form, lm.tokenizer)
                of_fold, _, places = _from_demonstrations(config, data, kept, kept_rows, lm, seed)
                folds.append((_as_method(config, of_fold, lm), places))
            more["of_folds"] = tuple(folds)
        elif init == "special":
            values, drawn = from_ids(lm.embeddings, lm.tokenizer, _special_ids(data.form, lm))
            start = {"kind": init, "seed": seed, "tokens": drawn}
        else:
            values, start = initial_prompt(
                init,
                embeddings=lm.embeddings,
                tokenizer=lm.tokenizer,
                length=length,
                labels=texts,
                generator=torch.Generator().manual_seed(seed),
                low=preset.uniform_low,
                lm=lm,
            )
        values = _as_method(config, values, lm)
        # The number of shots is the same for all seeds, the number of tokens is not.
        size = config.shots or 0 if init == "demonstrations" else len(values)
        name = f"{data.task.name} p{len(values)} lr{rate:g} seed{seed}"
        trained = replace(base, optimizer=replace(base.optimizer, learning_rate=rate))
        plans.append(Plan(name, data, (size, rate), seed, trained, values, start, judging=judging, **more))
    return plans


def _from_demonstrations(
    config: RunConfig, data: TaskData, examples: Sequence[Example], rows: Sequence[Row], lm: FrozenLM, seed: int
) -> tuple[Tensor, dict[str, Any], tuple[int, ...]]:
    """Values that are training examples with their answers, the card's `init` entry, and the examples' places."""
    has_labels = data.task.labels is not None
    places = choose_demonstrations(examples, rows, shots=config.shots, has_labels=has_labels, seed=seed)
    ids = [id for place in places for id in (*rows[place].ids, *rows[place].target)]
    values, _ = from_ids(lm.embeddings, lm.tokenizer, ids)
    digest = hashlib.sha256(repr(ids).encode()).hexdigest()
    # The card does not say which tokens: they are the user's training text.
    start = {"kind": "demonstrations", "seed": seed, "shots": len(places), "sha256": digest, "tokens": []}
    return values, start, tuple(places)


def _special_ids(form: TextFormat, lm: FrozenLM) -> list[int]:
    """The model's begin and end of sequence and the end of the separator, as far as there are such, each once."""
    ids = [lm.tokenizer.bos_id, lm.tokenizer.eos_id, *lm.tokenizer.encode(form.separator)[-2:]]
    return list(dict.fromkeys(id for id in ids if id is not None))


@torch.no_grad()
def _as_method(config: RunConfig, values: Tensor, lm: FrozenLM) -> Tensor:
    """Where the method is kv, the keys and values [p 2l h e] that the model makes of rows [p d]."""
    if config.method == "kv":
        if lm.is_checkpointed:
            raise ValueError(
                "--method kv reads keys and values from a cache, which checkpointed activations cannot; leave "
                "--checkpoint-activations out"
            )
        shape = lm.kv_shape  # refuses models without
        if values.ndim == 2:
            return lm.prompt_states([values.to(lm.device)]).to_values()
        assert tuple(values.shape[1:]) == shape
    elif values.ndim == 4:
        raise ValueError(f"{config.init} holds keys and values; go on from it with --method kv")
    return values


def _train_config(config: RunConfig, data: TaskData, lm: FrozenLM) -> TrainConfig:
    """The preset's numbers under those that are given."""
    preset = PRESETS[config.preset].train
    given: dict[str, Any] = {}
    for name in ("steps", "batch_size", "evaluate_every", "patience", "num_selection", "scoring", "dropout"):
        if getattr(config, name) is not None:
            given[name] = getattr(config, name)
    if config.patience == 0:
        given["patience"] = None
    if not lm.is_encoder_decoder:
        given.setdefault("dropout", 0.0)  # docs/design.md: the paper preset's dropout is for encoder-decoders
    if data.selected_on == "dev":
        given.setdefault("num_selection", len(data.selection))  # a mixture has its dev rows there alone
    scored = [*data.train, *data.selection, *data.dev]
    if config.scoring == "rank":
        check_can_rank(data.task, scored)
    elif not can_rank(data.task, scored):
        given["scoring"] = "generate"
    # The preset's optimizer with all its settings; of another kind than asked for, the preset's that is of that kind.
    # The fast preset's AdamW rate was chosen on a decoder-only model; T5's embeddings are larger, so there it is the
    # paper's Adafactor.
    paper, fast = (PRESETS[name].train.optimizer for name in ("paper", "fast"))
    usual = paper if config.preset == "fast" and lm.is_encoder_decoder else preset.optimizer
    wanted = type(usual) if config.optimizer is None else kind_of(config.optimizer)
    optimizer = next(one for one in (usual, paper, fast) if isinstance(one, wanted))
    if config.method == "kv" and optimizer is fast:
        optimizer = replace(fast, learning_rate=KV_RATE)
    changed = replace(preset, optimizer=optimizer, **given)
    return replace(changed, evaluate_every=min(changed.evaluate_every, changed.steps))


def members_of(plans: Sequence[Plan], lm: FrozenLM) -> list[Member]:
    """The plans as members, each after the folds (if any) that choose its step.

    The folds of a setting belong to its run's first seed and serve the others too.
    """
    members: list[Member] = []
    folds_of: dict[tuple[int, str, tuple[int, float]], tuple[int, ...]] = {}
    for plan in plans:
        data, setting = plan.data, (id(plan.data), plan.run, plan.setting)
        _, selection_rows = data.encoded(lm)
        member = Member(
            name=plan.name,
            task=data.task,
            form=data.form,
            config=plan.train,
            seed=plan.seed,
            values=plan.values,
            rows=plan.rows(lm),
            selection=data.selection,
            selection_rows=selection_rows,
            run=plan.run,
            judging=plan.judging,
        )
        if data.folds and setting not in folds_of:
            folds_of[setting] = tuple(range(len(members), len(members) + len(data.folds)))
            for number, (kept, held) in enumerate(data.folds):
                kept_rows, held_rows = (encode_examples(part, data.form, lm.tokenizer) for part in (kept, held))
                values, demonstrated = plan.of_folds[number] if plan.of_folds else (plan.values, ())
                members.append(
                    replace(
                        member,
                        name=f"{plan.name} fold{number}",
                        values=values,
                        rows=_without(kept_rows, demonstrated),
                        selection=held,
                        selection_rows=held_rows,
                    )
                )
        members.append(replace(member, folds=folds_of.get(setting, ())))
    return members


def _without(rows: list[Row], places: Sequence[int]) -> list[Row]:
    """The rows but for those at these places and their like; all of them where none would be left."""
    left_out = {rows[place].ids for place in places}
    return [row for row in rows if row.ids not in left_out] or rows if places else rows


def check_plans(plans: Sequence[Plan], lm: FrozenLM) -> None:
    """Refuse before training what the last scoring would refuse after it: ValueError for rows that the model cannot
    take, with the longest prompt and answer, whether they are trained on or scored.
    """
    for data in {id(plan.data): plan.data for plan in plans}.values():
        prompt_length = max(len(plan.values) for plan in plans if plan.data is data)
        rows, selection_rows = data.encoded(lm)
        check_length(rows, prompt_length, lm)
        answer_length = data.form.max_target_length
        if lm.max_length is None or prompt_length + data.form.max_input_length + answer_length <= lm.max_length:
            continue
        dev = encode_examples(data.dev, data.form, lm.tokenizer, with_targets=False)
        for scored in (rows if data.folds else selection_rows, dev):
            check_length(scored, prompt_length, lm, answer_length=answer_length)
