"""softprompt rerun"""

from __future__ import annotations

import argparse
from pathlib import Path

from softprompt.base.command import Command
from softprompt.base.terminal import Display, counted, number
from softprompt.cli import add_flags, read_data, set_threads
from softprompt.training import PROMPT_FILE


def _add_rerun(command: argparse.ArgumentParser) -> None:
    command.add_argument("row", metavar="FILE:N", help="the row in line N of a file of rows")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new prompt")
    add_flags(command, ["data", "threads"], title="")


def _rerun(args: argparse.Namespace) -> int:
    set_threads(args.threads)
    from softprompt.answering import read_rows
    from softprompt.study import rerun
    from softprompt.tasks import headline

    file, _, line = args.row.rpartition(":")
    if not file or not line.isdigit():
        raise ValueError(f"{args.row!r} names no row; give a file and a line, such as results/study.jsonl:12")
    if not Path(file).is_file():
        raise ValueError(f"no file {file}; give a file of rows")
    rows = read_rows(Path(file))
    if not 1 <= int(line) <= len(rows):
        raise ValueError(f"{file} has {counted(len(rows), 'row')}, and no line {line}")
    if (args.out / PROMPT_FILE).exists():
        raise ValueError(f"{args.out} holds a prompt already; give another --out")
    row = rows[int(line) - 1]
    display = Display(args.out / "logs")
    try:
        found = rerun(row, data=read_data(args.data, split="train"), out=args.out, watch=display.watch())
    finally:
        display.close()
    print(f"{row.task}, seed {row.seed}, {row.scoring}: {number(headline(found))} now, {number(row.value)} in the row")
    return 0


COMMAND = Command(
    add_flags=_add_rerun,
    run=_rerun,
    text=(
        "Train the prompt of one result row again, from what the row says, and print both scores. Where the data lies "
        "is not in the row: give --data, or leave it to the hub. On the same machine and threads the scores are equal "
        "but for the rounding of what the prompt was batched with."
    ),
    examples=("softprompt rerun results/study.jsonl:12 --data DATA --out runs/again",),
)
