"""Train the prompt of one result row again, from what the row says, and print both scores. Where the data lies is not
in the row: give --data, or leave it to the hub. On the same machine and threads the scores are equal but for the
rounding of what the prompt was batched with.

examples:
  softprompt rerun results/study.jsonl:12 --data DATA --out runs/again
"""

import argparse
from pathlib import Path

from softprompt.base.files import held
from softprompt.base.terminal import Display, counted, number
from softprompt.cli import add_shared, read_data, set_up
from softprompt.training import PROMPT_FILE


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt rerun."""
    command.add_argument("row", metavar="FILE:N", help="the row in line N of a file of rows")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the new prompt")
    add_shared(command, ["data", "threads"], title="")


def run(args: argparse.Namespace) -> int:
    """Train the row's prompt again, and print both scores."""
    set_up(args.threads)
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
    row = rows[int(line) - 1]
    with held(args.out), Display(args.out / "logs") as display:
        if (args.out / PROMPT_FILE).exists():
            raise ValueError(f"{args.out} holds a prompt already; give another --out")
        found = rerun(row, data=read_data(args.data, split="train"), out=args.out, watch=display.watch())
    print(f"{row.task}, seed {row.seed}, {row.scoring}: {number(headline(found))} now, {number(row.value)} in the row")
    return 0
