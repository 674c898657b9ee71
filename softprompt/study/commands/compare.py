"""Train each method on the same rows, batches and steps, score the official dev set once for each seed, and print a
table: the metric's mean and deviation over seeds, the selection score when the fastest was done, trained parameters,
stored bytes, seconds and peak memory. Each method that trains tries four learning rates on the first seed. Rows that
stand in --rows are not made again; interrupted, the same command goes on. The methods: prompt-tuning, model-tuning,
lora, ia3, prefix-tuning, p-tuning (the last four of the peft library: pip install 'softprompt[peft]'), prompt-design
(the bare model in six wordings with 0, 4, 16 and as many examples as fit, calibrated and not).

examples:
  softprompt compare --model smollm2-135m --task glue/sst2 --data DATA
  softprompt compare --model bundled/t5-mini --task glue/mrpc --data DATA --methods prompt-tuning,lora
  softprompt compare --model smollm2-135m --task glue/sst2 --data DATA --quick
"""

import argparse
from pathlib import Path
from typing import Any

from softprompt.base.files import held
from softprompt.base.terminal import Display, table
from softprompt.cli import RUN, add_shared, read_data, set_up, split_names
from softprompt.study.commands.shared import going_on, read_seeds, say_failures, shared_settings
from softprompt.training import RunConfig

NOT_SHARED = (
    "model", "data", "out", "method", "budget", "seeds", "optimizer", "resume", "patience", "sentinel", "chat",
    "quantize", "checkpoint_activations", "compile",
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


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt compare."""
    command.add_argument("--model", required=True, metavar="M", help="hub id, local folder, smollm2-135m, …")
    command.add_argument("--methods", metavar="A,B,…", help="(default: all of them)")
    add_shared(command, ["data"], title="")
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
    add_shared(command, SHARED, "what all methods share", CHANGES)
    add_shared(command, ["threads"], title="")


def run(args: argparse.Namespace) -> int:
    """Train and score each method, and print a table of their rows; 1 where some failed."""
    set_up(args.threads)
    from softprompt.study import METHODS, check_methods, compare, rows_of

    methods = METHODS if args.methods is None else tuple(split_names(args.methods))
    check_methods(methods)
    settings = shared_settings(args, SHARED)
    task = tuple(settings.pop("task", ()))
    if len(task) > 1:
        raise ValueError(f"methods are compared on one task at a time, not on {', '.join(task)}")
    config = RunConfig(
        model=args.model,
        task=task,
        seeds=read_seeds(args.seeds or ("0" if args.quick else "0,1,2")),
        data=read_data(args.data, split="train"),
        out=args.out,
        **settings,
    )
    with held(args.out), Display(args.out / "logs") as display, going_on():
        failures = compare(config, methods, rows=args.rows, watch=display.watch())
    found = [row for name in methods for row in rows_of(args.rows, config, name)]
    if found:
        print(_table(found))
    return say_failures(failures)


def _table(rows: list[Any]) -> str:
    from softprompt.study import equal_seconds, grouped, score_within, title_of
    from softprompt.tasks import spread

    seconds = equal_seconds(rows)
    within = "" if seconds is None else f"selection at {seconds:.0f} s"
    lines = [["method", "dev", "selection", within, "trained", "stored", "seconds", "peak MB", "rate or text"]]
    for title, of_method in grouped(rows, title_of).items():
        config = of_method[0].config
        selected = [row.notes["selection_score"] for row in of_method]
        early: list[Any] = []
        if seconds is not None and of_method[0].steps_run:
            early = [score_within(row, seconds) for row in of_method]
        peak = config["peak_bytes"]
        lines.append(
            [
                title,
                spread([100 * row.value for row in of_method]),
                spread([100 * score for score in selected if score is not None]),
                spread([100 * score for score in early if score is not None]),
                f"{config['trained_parameters']:,}",
                _size(config["stored_bytes"]),
                spread([row.seconds for row in of_method]),
                "-" if peak is None else f"{peak / 2**20:,.0f}",
                config.get("chosen") or f"{config['learning_rate']:g}",
            ]
        )
    return table(lines)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:,.1f} KB"
