"""What the study's commands share: a run's settings that all of it has, seeds, and where its rows are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
