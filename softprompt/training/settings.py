"""What a run is asked to do: every setting with its default, its limits and what `--help` says of it. No torch."""

from __future__ import annotations

import os
from dataclasses import MISSING, dataclass
from pathlib import Path

from softprompt.base.files import CHECKPOINT
from softprompt.base.names import hub_place
from softprompt.base.setting import check, setting, size
from softprompt.tasks import Data

OF_PRESET = "the preset's"
SETS_LENGTH = ("demonstrations", "special")  # ways to start that decide a prompt's length themselves
PROMPT_FILE = "adapter_config.json"  # in every folder that holds a prompt


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a model, one or more tasks, one or more seeds and settings, trained together.

    Each field is a flag of `softprompt train` and a line of its recipe. What is None is the preset's, or none.
    """

    model: str = setting(
        "hub id, local folder, GGUF file, smollm2-135m or bundled/t5-mini", MISSING, title="what to train", metavar="M"
    )
    task: tuple[str, ...] = setting(
        "a task of `softprompt tasks`; repeat it, or put commas, to train several", (), metavar="T"
    )
    data: Data = setting(
        "folder of the official files, or train=FILE[,FILE] dev=FILE test=FILE",
        form="a folder, or files under train, dev and test",
        shown="the hub",
        metavar="DIR|SPLIT=FILE",
    )
    out: Path = setting("folder for prompts, result rows, checkpoint and logs", Path("runs/prompt"), metavar="DIR")
    method: str | None = setting(
        "prompt: rows in front of the embedded input. kv: keys and values in front of every layer's own, decoder-only "
        "models",
        shown="prompt",
        choices=("prompt", "kv"),
    )
    prompt_length: tuple[int, ...] | None = setting("prompt tokens; of several the selection chooses", shown=OF_PRESET)
    budget: int | None = setting(
        "bytes of the numbers on disk (adapter_model.safetensors), which choose length and method",
        kind=size,
        form="bytes such as 80KB or 2M",
        metavar="SIZE",
    )
    init: str | None = setting(
        "class-labels, vocab, uniform, demonstrations (training examples with their answers), special (the model's own "
        "begin, end and separator), text:WORDS, or the folder of a prompt",
        shown=f"{OF_PRESET}; vocab without labels",
    )
    shots: int | None = setting(
        "training examples that --init demonstrations writes; they set the prompt's length",
        shown="two of each label, 4 to 16 in all",
        at_least=1,
    )
    seeds: tuple[int, ...] = setting("one prompt for each seed, all trained together", (0,))

    inputs: str | None = setting("template of the input, such as 'question: {question}'", title="your own files")
    targets: str | None = setting("template of the answer, such as '{label}'")
    labels: tuple[str, ...] | None = setting("the legal answers, if they are a fixed set", metavar="A,B,…")
    metric: str | None = setting(
        "how answers are scored",
        shown="accuracy with labels, em without",
        choices=("accuracy", "f1", "em", "rouge", "pearson"),
    )
    group_by: str | None = setting(
        "column whose rows em scores together, all on one side of the held-out split", metavar="COLUMN"
    )

    preset: str = setting(
        "where all other numbers come from", "fast", title="how to train", choices=("paper", "google-code", "fast")
    )
    steps: int | None = setting("optimizer steps", shown=OF_PRESET, at_least=1)
    minutes: float | None = setting("stop training, selection included, after this time", above=0)
    batch_size: int | None = setting("examples a step, for each prompt", shown=OF_PRESET, at_least=1)
    optimizer: str | None = setting("the paper's Adafactor, or AdamW", shown=OF_PRESET, choices=("adafactor", "adamw"))
    learning_rate: tuple[float, ...] | None = setting("of several the selection chooses", shown=OF_PRESET)
    dropout: float | None = setting("dropout in the frozen model, encoder-decoders only", shown=OF_PRESET)
    max_train: int | None = setting("use only so many training examples, drawn by seed", shown="all", above=0)
    keep_overlap: bool | None = setting(
        "train on rows that stand in dev or test, too", shown="no; yes with --preset paper and google-code"
    )
    max_dev: int | None = setting("score only so many dev examples", shown="all", above=0)
    resume: bool = setting("go on from the checkpoint in --out", False)

    select: str = setting(
        "what chooses step and setting: held-out training rows, their cross-validation, or the dev set",
        "auto",
        title="what is kept",
        shown="auto: cross-validation under 500 examples, else held-out",
        choices=("auto", "held-out", "cross-validation", "dev"),
    )
    scoring: str | None = setting(
        "write the answer, or rank the labels",
        shown=f"{OF_PRESET}; generate for free text",
        choices=("generate", "rank"),
    )
    evaluate_every: int | None = setting("steps between scores", shown=OF_PRESET, at_least=1)
    num_selection: int | None = setting("selection rows scored each time, at most", shown=OF_PRESET, at_least=1)
    patience: int | None = setting(
        "stop a prompt after so many scores without a better one; 0: never",
        shown="never; 5 with --preset fast",
        at_least=0,
    )

    max_input_length: int = setting("tokens of an input, where longer ones are cut", 512, title="text")
    truncate: str | None = setting("which end of a longer input is cut off", shown="end", choices=("end", "start"))
    separator: str | None = setting(
        "text between input and answer, decoder-only models", shown="a new line and 'answer:'"
    )
    sentinel: str = setting(
        "where a span-corruption T5 gets its first sentinel",
        "none",
        choices=("none", "targets", "inputs-and-targets"),
    )
    chat: bool = setting("set inputs into the model's chat template", False)

    device: str = setting("auto, cpu, cuda, cuda:N or mps", "auto", title="machine", metavar="D")
    dtype: str = setting(
        "of the frozen model",
        "auto",
        shown="auto: bfloat16 where it is fast",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantize: str | None = setting("keep the frozen weights in 8 or 4 bits", shown="no", choices=("8bit", "4bit"))
    checkpoint_activations: bool = setting("less memory, more time", False)
    compile: bool = setting("slower to start, faster over hundreds of steps", False)
    deterministic: bool = setting("the same bits each time on a GPU too, somewhat slower", False)

    def __post_init__(self) -> None:
        """Refuse what is no setting, and settings that contradict one another."""
        check(self)
        if bool(self.task) == bool(self.inputs):
            raise ValueError("give either task names, or templates for inputs and targets of your own files")
        if bool(self.inputs) != bool(self.targets):
            raise ValueError("a task of your own needs both inputs and targets templates")
        for name in ("labels", "metric", "group_by"):
            if self.task and getattr(self, name) is not None:
                raise ValueError(f"{name} is for files of your own, but the task is {self.task[0]}; leave {name} out")
        if self.shots is not None and self.init != "demonstrations":
            raise ValueError("shots are for --init demonstrations; give that too, or leave shots out")
        if self.prompt_length is not None and self.init in SETS_LENGTH:
            way = "--shots" if self.init == "demonstrations" else "the model's tokens"
            raise ValueError(f"with --init {self.init} {way} set the length; leave prompt_length out")
        if self.budget is not None:
            if self.prompt_length is not None:
                raise ValueError("budget chooses the length; leave prompt_length out")
            init = self.init or ""
            if init in SETS_LENGTH or hub_place(init) or os.path.exists(f"{init}/{PROMPT_FILE}"):
                raise ValueError(f"a prompt that starts from {init} has a length of its own; leave budget out")
        if not self.seeds:
            raise ValueError("give at least one seed")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {', '.join(map(str, self.seeds))} repeat; give different ones")
        if self.dtype == "float16":
            raise ValueError(
                "dtype is float16, in which small gradients become 0; train in bfloat16 or float32, and answer in any"
            )
        for seed in self.seeds:
            if not 0 <= seed < 2**63:
                raise ValueError(f"seed is {seed}, but must be 0 or more and below 2 to the 63rd")


def check_out(config: RunConfig, *, overwrite: bool = False) -> None:
    """Earlier results are not trained over by accident: ValueError for a folder that holds a prompt, or an unfinished
    run that this one does not go on with.
    """
    has_checkpoint = (config.out / CHECKPOINT).exists()
    if overwrite or (config.resume and has_checkpoint):
        return
    if any(config.out.glob(f"*/{PROMPT_FILE}")) or (config.out / PROMPT_FILE).exists():
        raise ValueError(f"{config.out} holds a prompt already; give another --out, or --overwrite")
    if has_checkpoint:
        raise ValueError(f"{config.out} holds an unfinished run; --resume goes on with it, --overwrite starts again")
