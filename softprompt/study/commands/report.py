"""Make one HTML page, with nothing loaded from elsewhere, and a PNG for each figure, of the rows that softprompt
experiment wrote: each figure and table of the paper with ours beside it, what was run, and what was not; or of those of
a run or of eval --rows: what the prompts score, and which label they take for which.

examples:
  softprompt report --out report
  softprompt report results/study.jsonl more.jsonl --out report
  softprompt report runs/mine/results.jsonl --out runs/mine/page
"""

import argparse
from pathlib import Path

from softprompt.base.files import held
from softprompt.base.terminal import counted, writing
from softprompt.study.commands.shared import STUDY_ROWS

BASELINES = Path("results/baselines.jsonl")


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt report."""
    command.add_argument(
        "rows", nargs="*", type=Path, metavar="ROWS",
        help=f"(default: {STUDY_ROWS}, and where there are {BASELINES} the majority class's, which claims are held "
        "against)",
    )  # fmt: skip
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the page and its pictures")


def run(args: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from softprompt.answering import read_rows
    from softprompt.study import write_report

    paths = args.rows or [STUDY_ROWS, *([BASELINES] if BASELINES.is_file() else [])]
    for path in paths:
        if not path.is_file():
            raise ValueError(f"no file {path}; name the rows that softprompt experiment, train or eval --rows wrote")
    rows = [row for path in paths for row in read_rows(path)]
    with held(args.out), writing(args.out):
        page = write_report(rows, args.out)
    pictures = counted(len(list(args.out.glob("*.png"))), "picture")
    print(f"{page}: {counted(len(rows), 'row')}, {pictures} beside it")
    return 0
