"""What the study's commands share: a run's settings that all of it has, seeds, and where its rows are."""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softprompt.base.terminal import say
from softprompt.cli import flags_of

STUDY_ROWS = Path("results/study.jsonl")  # where experiments add theirs, and the report reads them
QUICK = {"steps": 20, "batch_size": 4, "evaluate_every": 10, "num_selection": 32, "max_train": 500, "max_dev": 100}


def shared_settings(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of them that were given, or that `--quick` stands for."""
    return (QUICK if args.quick else {}) | flags_of(args, names)


def read_seeds(text: str) -> tuple[int, ...]:
    """What `--seeds` says. ValueError for what are no whole numbers."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds is {text!r}; give whole numbers with commas between") from None


@contextmanager
def going_on() -> Iterator[None]:
    """What Ctrl-C says of a command that keeps every row it has."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on") from None


def say_failures(failures: Sequence[str]) -> int:
    """Name the runs that failed; the exit code, 1 where there are some."""
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0
