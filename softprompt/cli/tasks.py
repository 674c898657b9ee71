"""List the tasks there are; or show a task's examples as the model will read them, how many of the official examples
were found and, with --model, their lengths in tokens and how many the length limit cuts.

examples:
  softprompt tasks
  softprompt tasks superglue/boolq --data DATA --model smollm2-135m
  softprompt tasks --inputs '{question}' --targets '{answer}' --data train=mine.csv
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from softprompt.base.terminal import counted, table
from softprompt.cli.options import OWN_FILES, add_shared, flags_of, own_task, read_data, say_if_slow


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt tasks."""
    command.add_argument("task", nargs="?", metavar="T", help="a task to look into (default: list them all)")
    add_shared(command, ["data"], title="")
    command.add_argument("--split", default="train", metavar="S", help="train, dev or test (default: train)")
    command.add_argument("--limit", type=int, default=3, metavar="N", help="examples shown (default: 3)")
    command.add_argument("--model", metavar="M", help="also measure lengths in this model's tokens")
    add_shared(command, ["max_input_length", "truncate"], title="")
    add_shared(command, OWN_FILES)


def run(args: argparse.Namespace) -> int:
    """Print the list of tasks, or one task's examples and their lengths."""
    task, data = own_task(args), read_data(args.data, split=args.split)
    from softprompt.tasks import TASKS, chat_templates, file_task, get_task, read_split

    if task is None and (templates := chat_templates(data)):
        task = file_task(**templates)
    if task is None:
        rows = [["task", "labels", "metrics"]]
        for name, known in TASKS.items():
            labels = ", ".join(known.labels) if known.labels else "free text"
            if len(labels) > 48:
                labels = f"{len(known.labels or ())} labels"
            rows.append([name, labels, _metrics_of(known)])
        print(f"{table(rows)}\n\nsoftprompt tasks T --data DIR shows a task's examples as the model will read them")
        return 0
    task = get_task(task) if isinstance(task, str) else task
    reading = read_split(task, args.split, data)
    share = f" ({reading.share:.1%} of them)" if reading.share not in (None, 1) else ""
    print(f"{task.name} {args.split}: {reading.note}{share}\nmetrics: {_metrics_of(task)}")
    if task.labels:
        counts = Counter(example.targets for example in reading.examples)
        print("labels: " + ", ".join(f"{label} ({counts[label]:,})" for label in task.labels))
    for example in reading.examples[: max(args.limit, 0)]:
        print(f"\nid:      {example.id}\ninputs:  {example.inputs}\ntargets: {example.targets}")
        if example.choices:
            print(f"choices: {', '.join(example.choices)}")
    if args.model:
        print(f"\n{_length_table(args, reading.examples)}")
    return 0


def _metrics_of(task: Any) -> str:
    """The names of a task's metrics, seen from scoring one right answer."""
    from softprompt.tasks import Example

    answer = task.labels[0] if task.labels else "0"
    return ", ".join(task.metrics([answer], [Example(inputs="-", targets=answer, id="0", references=(answer,))]))


def _length_table(args: argparse.Namespace, examples: Sequence[Any]) -> str:
    from softprompt.models import load
    from softprompt.training import token_lengths

    say_if_slow(args.model)
    found = token_lengths(examples, load(args.model), **flags_of(args, ["max_input_length", "truncate"]))
    rows = [["tokens", "min", "median", "95 %", "max"]]
    for name, lengths in (("inputs", found.inputs), ("targets", found.targets)):
        if lengths is not None:
            rows.append([name, *(f"{n:,}" for n in (lengths.min, lengths.median, lengths.p95, lengths.max))])
    count = counted(len(examples), "input")
    cut = f"{found.num_cut:,} of {count} longer than {found.max_input_length:,} tokens, and so cut"
    if found.lost:
        cut += f" at the {args.truncate or 'end'} (--truncate); lost are, of the first:"
    return "\n".join([table(rows), cut, *(f"  {id}: {lost}" for id, lost in found.lost.items())])
