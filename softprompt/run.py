"""The main path, top to bottom: a configuration in, trained prompts and result rows out.

    train(RunConfig(model="smollm2-135m", task=("glue/sst2",), data=folder, out=Path("runs/sst2")))

loads the frozen model, reads the task, holds part of the training file out, starts one prompt for each seed (and
setting), trains them together, keeps each at its best step, chooses the setting, scores the official dev set
once, and saves prompts and rows.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from softprompt.backbone import FrozenLM
from softprompt.data import Row, TextFormat, check_length, default_format, encode_examples, target_lengths
from softprompt.evaluation import (
    Evaluation,
    Result,
    can_rank,
    check_can_rank,
    check_scoring,
    judge,
    predict,
    read_rows,
    surroundings,
    write_rows,
)
from softprompt.files import write_whole
from softprompt.inference import Engine, Progress
from softprompt.loading import SMOLLM2, load
from softprompt.optimizers import Adafactor, AdamW, Optimizer, kind_of
from softprompt.prompt import Card, SoftPrompt, initial_prompt, save_prompt
from softprompt.tasks import (
    Example,
    Task,
    file_task,
    folds,
    get_task,
    has_split,
    hold_out,
    read_split,
    without_overlap,
)
from softprompt.tasks.task import nearest
from softprompt.training import Fitted, Member, TrainConfig, fit

SELECTIONS = ("auto", "held-out", "cross-validation", "dev")

Data = str | Path | Mapping[str, Sequence[str | Path]] | None

MODELS = {SMOLLM2: "SmolLM2-135M-Instruct, Q4_1 dequantised"}  # what rows call a model whose name says too little
ROWS = "results.jsonl"  # in a run's folder: one row for each prompt
SPLIT_SEED = 0  # ours: the held-out part is the same for every seed of the prompts, so that seeds compare
SMALL = 500  # ours, docs/design.md: below this many examples the held-out part is cross-validation folds
MOST_TARGET_TOKENS = 512  # ours: as many as of an input; greedy decoding writes up to the longest target's length
NUM_FOLDS = 3  # ours: members of the same run, so each costs as much as one more seed


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named way to train."""

    prompt_length: int
    init: str
    uniform_low: float
    train: TrainConfig


PRESETS: dict[str, Preset] = {
    # Paper, section 3 and 3.2; dropout and z-loss from the authors' gin files (features.md 2.1).
    "paper": Preset(
        prompt_length=100,
        init="class-labels",
        uniform_low=-0.5,
        train=TrainConfig(
            preset="paper",
            steps=30_000,
            batch_size=32,
            optimizer=Adafactor(learning_rate=0.3),
            dropout=0.1,
            z_loss=1e-4,
            evaluate_every=1_000,
            scoring="generate",
        ),
    ),
    # What the released code does where it differs: features.md 2.1 to 2.3.
    "google-code": Preset(
        prompt_length=100,
        init="uniform",
        uniform_low=0.0,
        train=TrainConfig(
            preset="google-code",
            steps=50_000,
            batch_size=128,
            optimizer=Adafactor(learning_rate=0.3, step_offset=1_100_000),
            dropout=0.1,
            z_loss=1e-4,
            evaluate_every=1_000,
            scoring="generate",
        ),
    ),
    # Ours, for a budget of minutes on two cores: the settings of the first row of results/sst2.jsonl; the rate and the
    # steps from docs/log.md, 2026-11-22 and 2026-11-23.
    "fast": Preset(
        prompt_length=20,
        init="class-labels",
        uniform_low=-0.5,
        train=TrainConfig(
            preset="fast",
            steps=600,
            batch_size=16,
            optimizer=AdamW(learning_rate=0.03, schedule="linear", warmup_steps=10),
            evaluate_every=100,
            num_selection=256,
            scoring="rank",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a model, one or more tasks, one or more seeds and settings, trained together."""

    model: str
    """Hub id, local folder, GGUF file, or smollm2-135m."""
    task: tuple[str, ...] = ()
    """Task names; or none, with `inputs` and `targets` for files of your own."""
    data: Data = None
    """A folder of official files, or files by split; None: the hub."""
    out: Path = Path("runs/prompt")
    """Where prompts, rows, checkpoint and logs go."""
    preset: str = "fast"
    """paper, google-code or fast."""
    inputs: str | None = None
    """Template of the input, for your own files: 'question: {question}'."""
    targets: str | None = None
    """Template of the target: '{label}'."""
    labels: tuple[str, ...] | None = None
    """The legal answers of your own task, if it has a fixed set."""
    metric: str | None = None
    """accuracy, f1, em, rouge or pearson, for your own task."""
    group_by: str | None = None
    """A column whose rows are kept on one side of the held-out split and scored together."""
    prompt_length: tuple[int, ...] | None = None
    """Prompt tokens; several are tried together and the selection rows choose."""
    init: str | None = None
    """class-labels, vocab, uniform, text:WORDS, or the folder of a prompt; the preset's unless given (vocab for a task
    without labels)."""
    optimizer: str | None = None
    """adafactor or adamw; the preset's unless given."""
    learning_rate: tuple[float, ...] | None = None
    """The preset's unless given; several are tried together and the selection rows choose."""
    steps: int | None = None
    """Optimizer steps; the preset's unless given."""
    batch_size: int | None = None
    """Examples a step and prompt; the preset's unless given."""
    evaluate_every: int | None = None
    """Steps between scores; the preset's unless given."""
    patience: int | None = None
    """Scores without a better one before a prompt stops."""
    dropout: float | None = None
    """Dropout in the frozen model (encoder-decoders)."""
    seeds: tuple[int, ...] = (0,)
    """One prompt for each."""
    select: str = "auto"
    """What chooses step and setting: held-out (part of the training file), cross-validation, or dev (the paper's
    way); auto is cross-validation for sets under 500 examples and held-out for the others."""
    scoring: str | None = None
    """generate or rank; the preset's unless given (generate, where targets are free text)."""
    num_selection: int | None = None
    """Selection rows scored each time, at most; the preset's unless given."""
    minutes: float | None = None
    """Bound on training and selection together."""
    max_input_length: int = 512
    """Tokens of an input, its end included."""
    separator: str | None = None
    """Text between input and target, for decoder-only models."""
    sentinel: str = "none"
    """Put a span-corruption model's first sentinel in front of targets: none, targets or inputs-and-targets."""
    chat: bool = False
    """Set the input into the model's chat template."""
    max_train: int | None = None
    """Training examples used, the first after a seeded shuffle."""
    max_dev: int | None = None
    """Dev examples scored, the first after a fixed shuffle of the groups that are scored together."""
    device: str = "auto"
    dtype: str = "auto"
    quantize: str | None = None
    checkpoint_activations: bool = False
    compile: bool = False
    """Compile the model's blocks: slower to start, faster over hundreds of steps."""
    resume: bool = False
    """Go on from the checkpoint in `out`."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(
                f"no preset named {self.preset!r}{nearest(self.preset, PRESETS)}; there are {', '.join(PRESETS)}"
            )
        if self.select not in SELECTIONS:
            near = nearest(self.select, SELECTIONS)
            raise ValueError(f"no selection named {self.select!r}{near}; there are {', '.join(SELECTIONS)}")
        if bool(self.task) == bool(self.inputs):
            raise ValueError("give either task names, or templates for inputs and targets of your own files")
        if bool(self.inputs) != bool(self.targets):
            raise ValueError("a task of your own needs both inputs and targets templates")
        if self.scoring is not None:
            check_scoring(self.scoring)
        if not self.seeds:
            raise ValueError("give at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))} repeat; give different ones")
        for name in ("minutes", "max_train", "max_dev"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, but must be above 0")


@dataclass(frozen=True)
class Trained:
    """One delivered prompt."""

    prompt: SoftPrompt
    folder: Path
    fitted: Fitted
    dev: Evaluation | None
    """Its score on the official dev set, made once, after everything was chosen."""


@dataclass
class Watch:
    """What a run tells while it goes; the command line draws its bars with these."""

    message: Callable[[str], None] = lambda message: None
    phase: Callable[[str, int], Progress] = lambda name, total: lambda done: None
    """phase(name, rows) begins a stage and returns what to call with finished rows."""
    step: Callable[[int, float, int], None] = lambda step, loss, tokens: None
    score: Callable[[int, str, float, float | None], None] = lambda step, name, loss, score: None
    begin: Callable[[int, int], None] = lambda steps, rows: None
    """begin(steps, rows a step) before training."""


@dataclass
class Split:
    """One task's data, ready to train on."""

    task: Task
    form: TextFormat
    train: list[Example]
    selection: list[Example]
    folds: list[tuple[list[Example], list[Example]]]
    dev: list[Example]
    selected_on: str
    notes: dict[str, Any] = field(default_factory=dict)
    _rows: tuple[list[Row], list[Row]] | None = field(default=None, init=False, repr=False)

    def encoded(self, lm: FrozenLM) -> tuple[list[Row], list[Row]]:
        """The rows to train on and those that choose, encoded once for all runs of the data."""
        if self._rows is None:
            train = encode_examples(self.train, self.form, lm.tokenizer)
            self._rows = train, encode_examples(self.selection, self.form, lm.tokenizer)
            self.notes["train_used"] = len(train)
            self.notes["train_cut"] = sum(row.was_cut for row in train)
        return self._rows


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
    known: dict[Any, Split] = {}
    splits, plans = [], []
    for config in configs:
        try:
            splits.append([_prepared(config, task, lm, known, watch) for task in tasks_of(config)])
            plans.append([plan for split in splits[-1] for plan in plan_prompts(config, split, lm)])
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
    for split in known.values():
        _tell_cut(split, watch)
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
    )
    by_name = {(member.run, member.name): result for member, result in zip(members, fitted, strict=True)}
    delivered = [
        _deliver(config, lm, own_splits, [(plan, by_name[plan.run, plan.name]) for plan in own], watch)
        for config, own_splits, own in zip(configs, splits, plans, strict=True)
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


def _prepared(config: RunConfig, task: Task, lm: FrozenLM, known: dict[Any, Split], watch: Watch) -> Split:
    """A task's data; runs that see it alike share it."""
    fields = (
        "inputs", "targets", "select", "max_train", "max_dev", "max_input_length", "separator", "sentinel", "chat",
    )  # fmt: skip
    key = (task.name, repr(config.data), *(getattr(config, name) for name in fields))
    if key not in known:
        known[key] = prepare(config, task, lm)
        _tell_split(known[key], watch)
    return known[key]


def _deliver(
    config: RunConfig, lm: FrozenLM, splits: Sequence[Split], trained: Sequence[tuple[Plan, Fitted]], watch: Watch
) -> list[Trained]:
    """Choose each task's setting, save its prompts, and score them once. What stopped before a score is not saved."""
    several = len(splits) > 1 or len(config.seeds) > 1
    config.out.mkdir(parents=True, exist_ok=True)
    delivered = []
    for split in splits:
        own = [(plan, fitted) for plan, fitted in trained if plan.split is split]
        chosen = _choose(own)
        left = [(plan, fitted) for plan, fitted in own if plan.setting == chosen and not _is_lost(fitted)]
        kept = [_keep(config, lm, plan, fitted, several) for plan, fitted in left]
        _write_settings(config.out, own, chosen)
        scored = split.dev and kept
        delivered += _score_once(config, lm, split, kept, watch) if scored else [trained for _, trained in kept]
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


def tasks_of(config: RunConfig) -> list[Task]:
    """The tasks by name, or the one that the templates describe."""
    if config.task:
        return [get_task(name) for name in config.task]
    assert config.inputs and config.targets
    own = file_task(
        inputs=config.inputs,
        targets=config.targets,
        labels=config.labels,
        metric=config.metric,
        group_by=config.group_by,
    )
    return [own]


def format_of(config: RunConfig, task: Task, lm: FrozenLM, texts: Sequence[str]) -> TextFormat:
    """How a run's text becomes ids; the target length is that of the longest label or training target, up to 512."""
    changes: dict[str, Any] = {"max_input_length": config.max_input_length}
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


def prepare(config: RunConfig, task: Task, lm: FrozenLM) -> Split:
    """Training, selection and dev examples; what overlaps dev or test has left the training part."""
    reading = read_split(task, "train", config.data)
    examples = reading.examples
    notes: dict[str, Any] = {"train": reading.note, "share_of_official": reading.share}
    scored: dict[str, list[Example]] = {}
    for part in ("dev", "test"):
        scored[part] = read_split(task, part, config.data).examples if has_split(task, part, config.data) else []
        examples, notes[f"overlap_with_{part}"] = without_overlap(examples, scored[part])
    dev = _at_most(scored["dev"], config.max_dev)
    if config.max_train is not None:
        order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        examples = [examples[i] for i in order[: config.max_train]]
    if not examples:
        raise ValueError(f"{task.name} has no training examples left; give more data")
    labels = task.labels or tuple(dict.fromkeys(example.targets for example in examples))
    form = format_of(config, task, lm, labels)
    notes["targets_cut"] = _cut_targets(task, examples, form, lm)
    if config.select == "dev":
        if not dev:
            raise ValueError(f"--select dev, but {task.name} has no dev file; give dev=FILE or use held-out")
        return Split(task, form, examples, _shuffled_groups(dev), [], dev, "dev", notes)
    if config.select == "cross-validation" or (config.select == "auto" and len(examples) < SMALL):
        parts = [
            (kept, _shuffled_groups(held)) for kept, held in folds(examples, task, num_folds=NUM_FOLDS, seed=SPLIT_SEED)
        ]
        return Split(task, form, examples, [], parts, dev, "cross-validation", notes)
    kept, held = hold_out(examples, task, fraction=0.1, seed=SPLIT_SEED)
    return Split(task, form, kept, _shuffled_groups(held), [], dev, "held-out", notes)


def _cut_targets(task: Task, examples: Sequence[Example], form: TextFormat, lm: FrozenLM) -> int:
    """How many targets are longer than the format's; warns of them."""
    texts = list(dict.fromkeys(example.targets for example in examples))
    lengths = dict(zip(texts, target_lengths(texts, form, lm.tokenizer), strict=True))
    num_cut = sum(lengths[example.targets] > form.max_target_length for example in examples)
    if num_cut:
        warnings.warn(
            f"{num_cut:,} of {len(examples):,} training targets of {task.name} are longer than "
            f"{form.max_target_length} tokens and are cut; make them shorter, or leave those examples out",
            stacklevel=2,
        )
    return num_cut


def dev_examples(config: RunConfig, task: Task, part: str = "dev") -> list[Example]:
    """What a run scores of a task's dev file, or of another part. ValueError where there is none."""
    return _at_most(read_split(task, part, config.data).examples, config.max_dev)


def _at_most(examples: list[Example], count: int | None) -> list[Example]:
    return examples if count is None else _shuffled_groups(examples)[:count]


def _shuffled_groups(examples: Sequence[Example]) -> list[Example]:
    """The examples in an order of their own, those that are scored together side by side."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group or example.id, []).append(example)
    order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    in_groups = list(groups.values())
    return [example for i in order for example in in_groups[i]]


# Members --------------------------------------------------------------------------------------------------------


@dataclass
class Plan:
    """One prompt to train, and where it came from."""

    name: str
    split: Split
    setting: tuple[int, float]
    seed: int
    train: TrainConfig
    values: Tensor
    init: dict[str, Any]
    run: str = ""
    """Which of the runs that train together it belongs to; '' for one alone."""


def plan_prompts(config: RunConfig, split: Split, lm: FrozenLM) -> list[Plan]:
    """One plan for each setting and seed. ValueError for settings that the task or the model cannot have."""
    preset = PRESETS[config.preset]
    base = _train_config(config, split, lm)
    lengths = config.prompt_length or (preset.prompt_length,)
    rates = config.learning_rate or (base.optimizer.learning_rate,)
    plans = []
    for length, rate, seed in itertools.product(lengths, rates, config.seeds):
        values, init = initial_prompt(
            config.init or _usual_init(preset, split),
            embeddings=lm.embeddings,
            tokenizer=lm.tokenizer,
            length=length,
            labels=_initial_texts(split),
            generator=torch.Generator().manual_seed(seed),
            low=preset.uniform_low,
            model_name=lm.name,
            fingerprint=lm.fingerprint,
        )
        name = f"{split.task.name} p{length} lr{rate:g} seed{seed}"
        trained = replace(base, optimizer=replace(base.optimizer, learning_rate=rate))
        plans.append(Plan(name, split, (length, rate), seed, trained, values, init))
    return plans


def _train_config(config: RunConfig, split: Split, lm: FrozenLM) -> TrainConfig:
    preset = PRESETS[config.preset].train
    given = {
        name: getattr(config, name)
        for name in ("steps", "batch_size", "evaluate_every", "patience", "num_selection", "scoring", "dropout")
        if getattr(config, name) is not None
    }
    if not lm.is_encoder_decoder:
        given.setdefault("dropout", 0.0)  # docs/design.md: the paper preset's dropout is for encoder-decoders
    if split.selected_on == "dev":
        given.setdefault("num_selection", len(split.dev))
    scored = [*split.train, *split.selection, *split.dev]
    if config.scoring == "rank":
        check_can_rank(split.task, scored)
    elif not can_rank(split.task, scored):
        given["scoring"] = "generate"
    changed = replace(preset, optimizer=_optimizer(config, lm.is_encoder_decoder), **given)
    return replace(changed, evaluate_every=min(changed.evaluate_every, changed.steps))


def _optimizer(config: RunConfig, is_encoder_decoder: bool) -> Optimizer:
    """The preset's with all its settings; if it is of another kind than asked for, the preset's that is of that kind.

    The fast preset's AdamW rate was chosen on a decoder-only model; T5's embeddings are larger, so there it is the
    paper's Adafactor.
    """
    paper, fast = (PRESETS[name].train.optimizer for name in ("paper", "fast"))
    usual = paper if config.preset == "fast" and is_encoder_decoder else PRESETS[config.preset].train.optimizer
    wanted = type(usual) if config.optimizer is None else kind_of(config.optimizer)
    return next(one for one in (usual, paper, fast) if isinstance(one, wanted))


def _usual_init(preset: Preset, split: Split) -> str:
    """The preset's, or sampled vocabulary where it is class labels and the task has none."""
    return "vocab" if preset.init == "class-labels" and not _initial_texts(split) else preset.init


def _initial_texts(split: Split) -> list[str]:
    """Texts for class-label initialisation, as the model will read them."""
    texts = split.task.initial_texts or split.task.labels or ()
    return [(" " if split.form.leading_space else "") + text for text in texts]


def members_of(plans: Sequence[Plan], lm: FrozenLM) -> list[Member]:
    """The plans as members, each after the folds (if any) that choose its step.

    The folds of a setting belong to its run's first seed and serve the others too.
    """
    members: list[Member] = []
    fold_places: dict[tuple[int, str, Any], tuple[int, ...]] = {}
    for plan in plans:
        group = (id(plan.split), plan.run, plan.setting)
        if plan.split.folds and group not in fold_places:
            first = len(members)
            members.extend(_fold_members(plan, lm))
            fold_places[group] = tuple(range(first, len(members)))
        rows, selection_rows = plan.split.encoded(lm)
        members.append(_member(plan, plan.name, rows, plan.split.selection, selection_rows, fold_places.get(group, ())))
    return members


def check_plans(plans: Sequence[Plan], lm: FrozenLM) -> None:
    """Refuse before training what the last scoring would refuse after it: ValueError for rows that the model cannot
    take, with the longest prompt and answer, whether they are trained on or scored.
    """
    for split in {id(plan.split): plan.split for plan in plans}.values():
        prompt_length = max(len(plan.values) for plan in plans if plan.split is split)
        rows, selection_rows = split.encoded(lm)
        check_length(rows, prompt_length, lm)
        answer_length = split.form.max_target_length
        if lm.max_length is None or prompt_length + split.form.max_input_length + answer_length <= lm.max_length:
            continue
        dev = encode_examples(split.dev, split.form, lm.tokenizer, with_targets=False)
        for scored in (rows if split.folds else selection_rows, dev):
            check_length(scored, prompt_length, lm, answer_length=answer_length)


def _fold_members(plan: Plan, lm: FrozenLM) -> list[Member]:
    made = []
    for number, (kept, held) in enumerate(plan.split.folds):
        rows = encode_examples(kept, plan.split.form, lm.tokenizer)
        held_rows = encode_examples(held, plan.split.form, lm.tokenizer)
        made.append(_member(plan, f"{plan.name} fold{number}", rows, held, held_rows, ()))
    return made


def _member(
    plan: Plan,
    name: str,
    rows: list[Row],
    selection: list[Example],
    selection_rows: list[Row],
    fold_places: tuple[int, ...],
) -> Member:
    return Member(
        name=name,
        task=plan.split.task,
        form=plan.split.form,
        config=plan.train,
        seed=plan.seed,
        values=plan.values,
        rows=rows,
        selection=selection,
        selection_rows=selection_rows,
        folds=fold_places,
        run=plan.run,
    )


# After training -------------------------------------------------------------------------------------------------


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
            "task": plan.split.task.name,
            "prompt_length": plan.setting[0],
            "learning_rate": plan.setting[1],
            "seed": plan.seed,
            "chosen": plan.setting == chosen,
            "selection": plan.split.selected_on,
            "score": result.score,
            "step": result.step,
            "steps_run": result.steps_run,
            "stopped": result.stopped,
            "history": result.history,
        }
        lines.append(json.dumps(record))
    path = out / f"{trained[0][0].split.task.name.replace('/', '-')}.settings.jsonl"
    write_whole(path, "\n".join(lines) + "\n")


def _keep(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, several: bool) -> tuple[Plan, Trained]:
    """Save a chosen prompt at once, so that nothing later can lose it."""
    prompt = SoftPrompt(fitted.values, _card(config, lm, plan, fitted, None))
    name = f"{plan.split.task.name.replace('/', '-')}-seed-{plan.seed}" if several else ""
    save_prompt(prompt, config.out / name)
    return plan, Trained(prompt, config.out / name, fitted, None)


def _score_once(
    config: RunConfig, lm: FrozenLM, split: Split, kept: Sequence[tuple[Plan, Trained]], watch: Watch
) -> list[Trained]:
    """Score the dev set once, all the split's prompts in one pass, and write it into cards and rows."""
    values = [trained.prompt.values for _, trained in kept]
    scoring = kept[0][0].train.scoring
    scores = evaluate(lm, values, split.task, split.dev, split.form, scoring=scoring, watch=watch)
    delivered, rows = [], []
    for (plan, trained), dev in zip(kept, scores, strict=True):
        prompt = SoftPrompt(trained.prompt.values, _card(config, lm, plan, trained.fitted, dev))
        save_prompt(prompt, trained.folder)
        delivered.append(replace(trained, prompt=prompt, dev=dev))
        rows.append(_result(config, lm, plan, trained.fitted, dev))
    others = [row for row in read_rows(config.out / ROWS) if row.task != split.task.name]
    write_rows(config.out / ROWS, [*others, *rows])
    return delivered


def evaluate(
    lm: FrozenLM,
    prompts: Sequence[Tensor],
    task: Task,
    examples: Sequence[Example],
    form: TextFormat,
    *,
    scoring: str = "rank",
    watch: Watch | None = None,
) -> list[Evaluation]:
    """What each prompt scores on the examples, all prompts in mixed batches of one pass.

    An empty list of prompts scores the bare model.
    """
    rows = encode_examples(examples, form, lm.tokenizer)
    worn = list(range(len(prompts))) or [-1]
    progress = (watch or Watch()).phase(f"score {task.name}", len(rows) * len(worn))
    engine = Engine(lm, prompts)
    answers = predict(
        engine,
        task,
        [example for example in examples for _ in worn],
        [row for row in rows for _ in worn],
        worn * len(rows),
        form,
        scoring=scoring,
        progress=progress,
    )
    return [judge(task, examples, answers[place :: len(worn)]) for place in range(len(worn))]


def _card(config: RunConfig, lm: FrozenLM, plan: Plan, fitted: Fitted, dev: Evaluation | None) -> Card:
    task = plan.split.task
    recipe = {**asdict(plan.train), "metric": config.metric, "group_by": config.group_by, "quantize": lm.quantization}
    return Card(
        model_name=lm.name,
        model_fingerprint=lm.fingerprint,
        is_encoder_decoder=lm.is_encoder_decoder,
        width=lm.width,
        task=task.name,
        task_version=task.version,
        labels=task.labels or (),
        text=plan.split.form.to_json(),
        init=plan.init,
        recipe=json.loads(json.dumps({**recipe, "selection_score": fitted.score})),
        selection=plan.split.selected_on,
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
        task=plan.split.task.name,
        split="dev",
        selection=plan.split.selected_on,
        scoring=plan.train.scoring,
        metrics=dev.metrics,
        value=dev.headline,
        illegal_rate=dev.illegal_rate,
        num_examples=len(dev.predictions),
        step=fitted.step,
        steps_run=fitted.steps_run,
        seconds=fitted.history[-1]["seconds"] if fitted.history else 0.0,
        seed=plan.seed,
        notes={**plan.split.notes, "history": fitted.history},
        **surroundings(lm.device, lm.dtype),
    )


def model_of_row(name: str) -> str:
    """What rows call a model."""
    return MODELS.get(name, name)


def _tell_split(split: Split, watch: Watch) -> None:
    held = (
        (f"{len(split.selection)} held out" if split.selection else f"{len(split.folds)} folds")
        if split.selected_on != "dev"
        else "dev chooses the step"
    )
    watch.message(f"{split.task.name}: {split.notes['train']}")
    overlaps = {part: split.notes[f"overlap_with_{part}"] for part in ("dev", "test")}
    removed = "".join(f", {count} left out that stand in {part}" for part, count in overlaps.items() if count)
    watch.message(f"{split.task.name}: {len(split.train)} training examples, {held}, {len(split.dev)} dev{removed}")


def _tell_cut(split: Split, watch: Watch) -> None:
    if num_cut := split.notes["train_cut"]:
        used, limit = split.notes["train_used"], split.form.max_input_length
        watch.message(
            f"{split.task.name}: {num_cut:,} of {used:,} training inputs are cut to {limit} tokens; "
            "--max-input-length takes more of them"
        )
