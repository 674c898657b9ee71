"""softprompt compare"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.terminal import Display, say, table
from softprompt.cli import RUN, add_flags, read_data, set_threads, split_names
from softprompt.study.commands.shared import read_seeds, shared_settings

NOT_SHARED = (
    "model", "data", "out", "seeds", "optimizer", "resume", "patience", "sentinel", "chat", "quantize",
    "checkpoint_activations", "compile",
)  # fmt: skip
SHARED = [name for name in RUN if name not in NOT_SHARED]
"""The settings of a run that all methods share."""
CHANGES: dict[str, dict[str, Any]] = {
    "task": {"help": "a task of `softprompt tasks`, one"},
    "prompt_length": {"help": "prompt tokens, one length"},
    "learning_rate": {"help": "what every method tries; the selection chooses", "shown": "four of each method's own"},
    "minutes": {"help": "bound on all trainings of a method together"},
    "select": {
        "help": "what chooses step and rate: held-out training rows, or the dev set",
        "shown": "auto: held-out",
        "choices": ("auto", "held-out", "dev"),
    },
}
"""What the help of a setting says otherwise here."""


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="M", help="hub id, local folder, smollm2-135m, …")
    command.add_argument("--methods", metavar="A,B,…", help="(default: all of them)")
    add_flags(command, ["data"], title="")
    command.add_argument("--seeds", metavar="N,…", help="(default: 0,1,2; with --quick 0)")
    command.add_argument(
        "--out", type=Path, default=Path("runs/compare"), metavar="DIR", help="(default: runs/compare)"
    )
    command.add_argument(
        "--rows",
        type=Path,
        default=Path("results/compare.jsonl"),
        metavar="FILE",
        help="(default: results/compare.jsonl)",
    )
    command.add_argument("--quick", action="store_true", help="a few steps of a few rows: does it run?")
    add_flags(command, SHARED, "what all methods share", CHANGES)
    add_flags(command, ["threads"], title="")


def _compare(args: argparse.Namespace) -> int:
    set_threads(args.threads)
    from softprompt.study import METHODS, check_methods, compare, rows_of

    methods = METHODS if args.methods is None else tuple(split_names(args.methods))
    check_methods(methods)
    config = _config(args)
    display = Display(args.out / "logs")
    try:
        failures = compare(config, methods, rows=args.rows, watch=display.watch())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped; the same command goes on") from None
    finally:
        display.close()
    found = [row for name in methods for row in rows_of(args.rows, config, name)]
    if found:
        print(_table(found))
    for failure in failures:
        say(f"failed: {failure}")
    return 1 if failures else 0


def _config(args: argparse.Namespace) -> Any:
    from softprompt.training import RunConfig

    given = shared_settings(args, SHARED)
    given["task"] = tuple(given.get("task", ()))
    if len(given["task"]) > 1:
        raise ValueError(f"methods are compared on one task at a time, not on {', '.join(given['task'])}")
    seeds = read_seeds(args.seeds or ("0" if args.quick else "0,1,2"))
    return RunConfig(model=args.model, seeds=seeds, data=read_data(args.data, split="train"), out=args.out, **given)


def _table(rows: list[Any]) -> str:
    from softprompt.study import equal_seconds, score_within, spread, title_of

    by_method: dict[str, list[Any]] = {}
    for row in rows:
        by_method.setdefault(title_of(row), []).append(row)
    seconds = equal_seconds(rows)
    within = "" if seconds is None else f"selection at {seconds:.0f} s"
    lines = [["method", "dev", "selection", within, "trained", "stored", "seconds", "peak MB", "rate or text"]]
    for title, own in by_method.items():
        first = own[0]
        early = [score_within(row, seconds) for row in own] if seconds is not None and first.steps_run else []
        chosen = first.config.get("chosen") or f"{first.config['learning_rate']:g}"
        peak = first.config["peak_bytes"]
        lines.append(
            [
                title,
                spread([100 * row.value for row in own]),
                spread([100 * row.notes["selection_score"] for row in own if row.notes["selection_score"] is not None]),
                spread([100 * score for score in early if score is not None]),
                f"{first.config['trained_parameters']:,}",
                _size(first.config["stored_bytes"]),
                spread([row.seconds for row in own]),
                "-" if peak is None else f"{peak / 2**20:,.0f}",
                chosen,
            ]
        )
    return table(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.1f} KB"


COMMAND = Command(
    add_flags=_add_compare,
    run=_compare,
    text=(
        "Train each method on the same rows, batches and steps, score the official dev set once for each seed, and "
        "print a table: the metric's mean and deviation over seeds, the selection score when the fastest was done, "
        "trained parameters, stored bytes, seconds and peak memory. Each method that trains tries four learning rates "
        "on the first seed. Rows that stand in --rows are not made again; interrupted, the same command goes on. The "
        "methods: prompt-tuning, model-tuning, lora, ia3, prefix-tuning, p-tuning (the last four of the peft library: "
        "pip install 'softprompt[peft]'), prompt-design (the bare model in six wordings with 0, 4, 16 and as many "
        "examples as fit, calibrated and not)."
    ),
    examples=(
        "softprompt compare --model smollm2-135m --task glue/sst2 --data DATA",
        "softprompt compare --model bundled/t5-mini --task glue/mrpc --data DATA --methods prompt-tuning,lora",
        "softprompt compare --model smollm2-135m --task glue/sst2 --data DATA --quick",
    ),
)
