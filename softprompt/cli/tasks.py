"""softprompt tasks"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from softprompt.base.command import Command
from softprompt.base.terminal import counted, table
from softprompt.cli.options import OWN_FILES, RUN, add_flags, own_task, read_data, say_if_slow


def _add_tasks(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", nargs="?", metavar="T", help="a task to look into (default: list them all)")
    add_flags(command, ["data"], title="")
    command.add_argument("--split", default="train", metavar="S", help="train, dev or test (default: train)")
    command.add_argument("--limit", type=int, default=3, metavar="N", help="examples shown (default: 3)")
    command.add_argument("--model", metavar="M", help="also measure lengths in this model's tokens")
    add_flags(command, ["max_input_length"], title="")
    add_flags(command, OWN_FILES)


def _tasks(args: argparse.Namespace) -> int:
    task = own_task(args)
    if task is None:
        print(_task_list())
        return 0
    from softprompt.tasks import get_task, read_split

    task = get_task(task) if isinstance(task, str) else task
    reading = read_split(task, args.split, read_data(args.data, split=args.split))
    print(_task_head(task, args.split, reading))
    for example in reading.examples[: max(args.limit, 0)]:
        print(f"\nid:      {example.id}\ninputs:  {example.inputs}\ntargets: {example.targets}")
        if example.choices:
            print(f"choices: {', '.join(example.choices)}")
    if args.model:
        print(f"\n{_length_table(args, reading.examples)}")
    return 0


def _task_list() -> str:
    from softprompt.tasks import TASKS

    rows = [["task", "labels", "metrics"]]
    for name, task in TASKS.items():
        labels = ", ".join(task.labels) if task.labels else "free text"
        rows.append(
            [name, labels if len(labels) <= 48 else f"{len(task.labels or ())} labels", ", ".join(_metrics_of(task))]
        )
    return f"{table(rows)}\n\nsoftprompt tasks T --data DIR shows a task's examples as the model will read them"


def _metrics_of(task: Any) -> list[str]:
    """The names of a task's metrics, seen from scoring one right answer."""
    from softprompt.tasks import Example

    answer = task.labels[0] if task.labels else "0"
    example = Example(inputs="-", targets=answer, id="0", references=(answer,))
    return list(task.metrics([answer], [example]))


def _task_head(task: Any, split: str, reading: Any) -> str:
    from collections import Counter

    share = f" ({reading.share:.1%} of them)" if reading.share not in (None, 1) else ""
    lines = [f"{task.name} {split}: {reading.note}{share}", f"metrics: {', '.join(_metrics_of(task))}"]
    if task.labels:
        counts = Counter(example.targets for example in reading.examples)
        lines.append("labels: " + ", ".join(f"{label} ({counts[label]:,})" for label in task.labels))
    return "\n".join(lines)


def _length_table(args: argparse.Namespace, examples: Sequence[Any]) -> str:
    from softprompt.models import load
    from softprompt.training import token_lengths

    say_if_slow(args.model)
    lm = load(args.model)
    limit = RUN["max_input_length"].default if args.max_input_length is None else args.max_input_length
    found = token_lengths(examples, lm, max_input_length=limit)
    rows = [["tokens", "min", "median", "95 %", "max"]]
    for name, lengths in (("inputs", found.inputs), ("targets", found.targets)):
        if lengths is not None:
            rows.append([name, *(f"{n:,}" for n in (lengths.min, lengths.median, lengths.p95, lengths.max))])
    cut = f"{found.num_cut:,} of {counted(len(examples), 'input')} longer than {limit:,} tokens, and so cut"
    return f"{table(rows)}\n{cut}"


COMMAND = Command(
    add_flags=_add_tasks,
    run=_tasks,
    text=(
        "List the tasks there are; or show a task's examples as the model will read them, how many of the official "
        "examples were found and, with --model, their lengths in tokens and how many the length limit cuts."
    ),
    examples=(
        "softprompt tasks",
        "softprompt tasks superglue/boolq --data DATA --model smollm2-135m",
        "softprompt tasks --inputs '{question}' --targets '{answer}' --data train=mine.csv",
    ),
)
