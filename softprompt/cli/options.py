"""Flags that several commands share: a run's settings, the data, the prompts, the machine."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompt.base.terminal import say

METRICS = ("accuracy", "f1", "em", "rouge", "pearson")


@dataclass(frozen=True)
class Flag:
    """A field of RunConfig as a flag."""

    kind: type
    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    is_list: bool = False
    metavar: str | None = None

    def parse(self, text: str) -> Any:
        """The flag's value, of a word on the command line."""
        words = [word.strip() for word in text.split(",")] if self.is_list else [text]
        try:
            values = tuple(self.kind(word) for word in words)
        except ValueError:
            what = {int: "whole number", float: "number"}[self.kind]
            raise argparse.ArgumentTypeError(
                f"wanted {f'{what}s with commas between' if self.is_list else f'a {what}'}, got {text!r}"
            ) from None
        return values if self.is_list else values[0]

    def of_recipe(self, name: str, value: Any) -> Any:
        """The flag's value, of a recipe's entry. ValueError if it is of another kind."""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, but must be true or false")
            return value
        try:
            parsed = (
                tuple(map(self.kind, value)) if isinstance(value, list) and self.is_list else self.parse(str(value))
            )
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            raise ValueError(f"{name} is {value!r}: {error}") from None
        if self.choices and parsed not in self.choices:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(self.choices)}")
        return parsed

    def add(self, group: Any, name: str) -> None:
        """Add the flag to a parser's group. Without it on the command line, its name is not set."""
        text = self.help + (f" (default: {self.default})" if self.default else "")
        flag, chosen = f"--{name.replace('_', '-')}", {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if self.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **chosen)
        elif name == "task":
            group.add_argument(flag, action="extend", type=split_names, metavar="T", **chosen)
        elif self.choices:
            group.add_argument(flag, choices=self.choices, **chosen)
        else:
            usual = {int: "N", float: "X", str: "TEXT", Path: "PATH"}[self.kind]
            metavar = self.metavar or (f"{usual},…" if self.is_list else usual)
            group.add_argument(flag, type=self.parse, metavar=metavar, **chosen)


def split_names(text: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


OF_PRESET = "the preset's"
TRAIN_FLAGS: dict[str, dict[str, Flag]] = {
    "what to train": {
        "model": Flag(str, "hub id, local folder, GGUF file, smollm2-135m or bundled/t5-mini", metavar="M"),
        "task": Flag(str, "a task of `softprompt tasks`; repeat it, or put commas, to train several", is_list=True),
        "out": Flag(Path, "folder for prompts, result rows, checkpoint and logs", "runs/prompt", metavar="DIR"),
        "prompt_length": Flag(int, "prompt tokens; of several the selection chooses", OF_PRESET, is_list=True),
        "init": Flag(
            str,
            "class-labels, vocab, uniform, text:WORDS, or the folder of a prompt",
            f"{OF_PRESET}; vocab without labels",
        ),
        "seeds": Flag(int, "one prompt for each seed, all trained together", "0", is_list=True),
    },
    "your own files": {
        "inputs": Flag(str, "template of the input, such as 'question: {question}'"),
        "targets": Flag(str, "template of the answer, such as '{label}'"),
        "labels": Flag(str, "the legal answers, if they are a fixed set", is_list=True, metavar="A,B,…"),
        "metric": Flag(str, "how answers are scored", "accuracy with labels, em without", METRICS),
        "group_by": Flag(
            str, "column whose rows em scores together, all on one side of the held-out split", metavar="COLUMN"
        ),
    },
    "how to train": {
        "preset": Flag(str, "where all other numbers come from", "fast", ("paper", "google-code", "fast")),
        "steps": Flag(int, "optimizer steps", OF_PRESET),
        "minutes": Flag(float, "stop training, selection included, after this time"),
        "batch_size": Flag(int, "examples a step, for each prompt", OF_PRESET),
        "optimizer": Flag(str, "the paper's Adafactor, or AdamW", OF_PRESET, ("adafactor", "adamw")),
        "learning_rate": Flag(float, "of several the selection chooses", OF_PRESET, is_list=True),
        "dropout": Flag(float, "dropout in the frozen model, encoder-decoders only", OF_PRESET),
        "max_train": Flag(int, "use only so many training examples, drawn by seed", "all"),
        "max_dev": Flag(int, "score only so many dev examples", "all"),
        "resume": Flag(bool, "go on from the checkpoint in --out", "no"),
    },
    "what is kept": {
        "select": Flag(
            str,
            "what chooses step and setting: held-out training rows, their cross-validation, or the dev set",
            "auto: cross-validation under 500 examples, else held-out",
            ("auto", "held-out", "cross-validation", "dev"),
        ),
        "scoring": Flag(
            str, "write the answer, or rank the labels", f"{OF_PRESET}; generate for free text", ("generate", "rank")
        ),
        "evaluate_every": Flag(int, "steps between scores", OF_PRESET),
        "num_selection": Flag(int, "selection rows scored each time, at most", OF_PRESET),
        "patience": Flag(int, "stop a prompt after so many scores without a better one", "never"),
    },
    "text": {
        "max_input_length": Flag(int, "tokens of an input, where longer ones are cut", "512"),
        "separator": Flag(str, "text between input and answer, decoder-only models", r"a new line and 'answer:'"),
        "sentinel": Flag(
            str, "where a span-corruption T5 gets its first sentinel", "none", ("none", "targets", "inputs-and-targets")
        ),
        "chat": Flag(bool, "set inputs into the model's chat template", "no"),
    },
    "machine": {
        "device": Flag(str, "auto, cpu, cuda, cuda:N or mps", "auto", metavar="D"),
        "dtype": Flag(
            str, "of the frozen model", "auto: bfloat16 where it is fast", ("auto", "float32", "bfloat16", "float16")
        ),
        "quantize": Flag(str, "keep the frozen weights in 8 or 4 bits", "no", ("8bit", "4bit")),
        "checkpoint_activations": Flag(bool, "less memory, more time", "no"),
        "compile": Flag(bool, "slower to start, faster over hundreds of steps", "no"),
    },
}
"""Every field of RunConfig but `data`, which is read by `read_data`."""
STUDY_ROWS = Path("results/study.jsonl")  # where experiments add theirs, and the report reads them
MACHINE = ("device", "dtype", "quantize")
"""Those that say how a model is loaded to be used."""


QUICK = {"steps": 20, "batch_size": 4, "evaluate_every": 10, "num_selection": 32, "max_train": 500, "max_dev": 100}


def add_shared(
    command: argparse.ArgumentParser, title: str, names: Sequence[str], own: Mapping[str, Mapping[str, Any]] = {}
) -> None:
    """Add a group with the flags of these settings of a run. own: fields of the flags that are otherwise here."""
    group = command.add_argument_group(title)
    flags = {name: flag for section in TRAIN_FLAGS.values() for name, flag in section.items()}
    for name in names:
        replace(flags[name], **own.get(name, {})).add(group, name)


def shared_settings(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Those of them that were given, or that `--quick` stands for."""
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return QUICK | given if args.quick else given


def read_seeds(text: str) -> tuple[int, ...]:
    """What `--seeds` says. ValueError for what are no whole numbers."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds is {text!r}; give whole numbers with commas between") from None


def read_data(words: Sequence[str] | None, *, split: str, dev: str | None = None) -> Any:
    """What `--data` says: None, a folder, or files by split. A lone file is taken for `split`."""
    named: dict[str, list[str]] = {}
    bare = [word for word in words or () if "=" not in word or Path(word).exists()]
    for word in words or ():
        if word not in bare:
            name, files = word.split("=", 1)
            named.setdefault(name, []).extend(split_names(files))
    if bare and (named or len(bare) > 1):
        raise ValueError("--data takes one folder, or files by split: --data train=FILE[,FILE] dev=FILE")
    if bare and not Path(bare[0]).is_file():
        if dev is not None:
            raise ValueError("--dev goes with --data train=FILE; the official files in a folder have their own dev set")
        return bare[0]
    if bare:
        named[split] = bare
    if dev is not None:
        named["dev"] = split_names(dev)
    return named or None


def add_data(group: Any) -> None:
    """Add --data."""
    group.add_argument(
        "--data",
        nargs="+",
        metavar="DIR|SPLIT=FILE",
        help="folder of the official files, or train=FILE[,FILE] dev=FILE test=FILE (default: the hub)",
    )


def add_own_task(command: argparse.ArgumentParser) -> None:
    """Add the flags that describe a task in files of one's own."""
    group = command.add_argument_group("your own files")
    for name, flag in TRAIN_FLAGS["your own files"].items():
        flag.add(group, name)


def add_prompt(command: argparse.ArgumentParser) -> None:
    """Add the flags of a command that uses saved prompts."""
    command.add_argument("--prompt", nargs="+", required=True, metavar="DIR", help="folders that train wrote")
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument("--task", metavar="T", help="a task of `softprompt tasks` (default: the prompt's own)")
    command.add_argument("--scoring", choices=("generate", "rank"), help="default: the one of the prompt's training")
    add_own_task(command)
    group = command.add_argument_group("machine")
    for name in MACHINE:
        TRAIN_FLAGS["machine"][name].add(group, name)
    add_threads(group)


def named_folders(sources: Sequence[str]) -> dict[str, str]:
    """Prompts' places by name: what stands in front of '=', or else the last part of the path."""
    named: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or Path(source).exists():
            name, path = Path(source).resolve().name, source
        if name in named:
            raise ValueError(
                f"two prompts are named {name!r}: {named[name]} and {path}; name one otherwise: NAME={path}"
            )
        named[name] = path
    return named


def add_threads(group: Any) -> None:
    """Add --threads."""
    group.add_argument("--threads", type=int, metavar="N", help="processor threads (default: one for each core)")


def own_task(args: argparse.Namespace) -> Any:
    """The task of the templates on the command line, or the name given with --task, or None."""
    given = {name: getattr(args, name) for name in TRAIN_FLAGS["your own files"] if hasattr(args, name)}
    if not given:
        return args.task
    from softprompt.tasks import file_task

    if args.task is not None or not {"inputs", "targets"} <= set(given):
        raise ValueError("your own files need both --inputs and --targets, and no task name")
    return file_task(**given)


def set_threads(args: argparse.Namespace) -> None:
    """Use as many processor threads as --threads says. ValueError for fewer than one."""
    if args.threads is not None:
        import torch

        if args.threads < 1:
            raise ValueError(f"--threads is {args.threads}, but must be 1 or more")
        torch.set_num_threads(args.threads)


def say_if_slow(source: str | None) -> None:
    """A GGUF file is dequantised when it is first read; that takes half a minute and deserves a word."""
    from softprompt.models import SMOLLM2, dequantised_folder, resolve

    if source != SMOLLM2 and not (str(source).endswith(".gguf") and Path(str(source)).is_file()):
        return
    try:
        folder = dequantised_folder(Path(resolve(str(source))[0]))
    except ValueError:  # SmolLM2 without its package: who loads it says so
        return
    if not (folder / "config.json").is_file():
        say(f"dequantising {source} for the first time; about half a minute, then it is kept in {folder.parent.parent}")


def opened(args: argparse.Namespace, scoring: str | None) -> Any:
    """The saved prompts that the flags name, on their model."""
    set_threads(args)
    from softprompt.answering import open_prompts
    from softprompt.prompts import load_prompt

    task = own_task(args)
    say_if_slow(args.model or load_prompt(args.prompt[0]).card.model_name)
    machine = {name: getattr(args, name) for name in MACHINE if hasattr(args, name)}
    return open_prompts(args.prompt, model=args.model, task=task, scoring=scoring, **machine)
