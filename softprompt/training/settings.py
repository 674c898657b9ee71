"""What a run is asked to do: its configuration, and the presets that the numbers not given come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from softprompt.answering import check_scoring
from softprompt.base.names import nearest
from softprompt.tasks.reading import Data
from softprompt.training.loop import TrainConfig
from softprompt.training.optimizers import Adafactor, AdamW

SELECTIONS = ("auto", "held-out", "cross-validation", "dev")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named way to train."""

    prompt_length: int
    init: str
    uniform_low: float
    train: TrainConfig


PRESETS: dict[str, Preset] = {
    # Paper, section 3 and 3.2; dropout and z-loss from the authors' gin files (t5x's finetune.gin and
    # google-research/prompt-tuning's t5_1_1_prompt.gin).
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
    # What google-research/prompt-tuning does where it differs: prompt_finetune.gin, finetune.gin, prompts.py.
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
        for name in ("task", "labels", "prompt_length", "learning_rate", "seeds"):
            _check_tuple(name, getattr(self, name))
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
        for name in ("labels", "metric", "group_by"):
            if self.task and getattr(self, name) is not None:
                raise ValueError(f"{name} is for files of your own, but the task is {self.task[0]}; leave {name} out")
        if self.scoring is not None:
            check_scoring(self.scoring)
        if not self.seeds:
            raise ValueError("give at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))} repeat; give different ones")
        for seed in self.seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed is {seed}, but must be 0 or more and below 2 to the 63rd")
        for name in ("minutes", "max_train", "max_dev"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, but must be above 0")


def _check_tuple(name: str, value: object) -> None:
    if value is None or isinstance(value, tuple):
        return
    wanted = tuple(value) if isinstance(value, list) else (value,)
    raise ValueError(f"{name} is {value!r}, but must be a tuple; give {wanted!r}")
