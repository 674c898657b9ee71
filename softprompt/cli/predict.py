"""softprompt predict"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.terminal import counted, say
from softprompt.cli.options import add_prompt, opened


def _add_predict(command: argparse.ArgumentParser) -> None:
    add_prompt(command)
    command.add_argument(
        "--input", metavar="F", help=".jsonl, .json, .csv, .tsv, .parquet, or lines; .gz or .xz too (default: stdin)"
    )
    command.add_argument("--output", metavar="F", help="JSONL file to write (default: stdout)")
    command.add_argument("--inputs-column", metavar="C", help="column of finished inputs; the task casts no record")
    command.add_argument("--scores", action="store_true", help="add every label's probability; ranks the labels")
    command.add_argument("--strict", action="store_true", help="stop at the first bad row")
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped, with --output")
    command.add_argument("--overwrite", action="store_true", help="replace an --output that is there already")


def _predict(args: argparse.Namespace) -> int:
    if args.resume and not args.output:
        raise ValueError("--resume goes on with a file, so it needs --output")
    if args.input and not Path(args.input).is_file():
        raise ValueError(f"no file {args.input}; name a file of records or of lines, or leave --input for stdin")
    saved = opened(args, args.scoring or ("rank" if args.scores else None))
    options = {"with_probabilities": args.scores, "inputs_column": args.inputs_column, "strict": args.strict}
    with contextlib.closing(_predict_bar(args)) as bar:
        written = (_predict_to_file if args.output else _predict_to_stdout)(saved, args, options, bar)
    answered = counted(written.num_rows - written.num_errors, "row")
    where = f", in {args.output}" if args.output else ""
    errors = f", {written.num_errors:,} not (their lines hold an error)" if written.num_errors else ""
    say(f"{answered} answered{errors}{where}")
    return 0


def _predict_bar(args: argparse.Namespace) -> Any:
    from tqdm import tqdm

    from softprompt.tasks import count_items

    total = count_items(args.input) if args.input else None
    quiet = None if args.output and args.input else True
    return tqdm(total=total, desc="predict", unit="row", disable=quiet, dynamic_ncols=True)


def _predict_to_file(saved: Any, args: argparse.Namespace, options: dict[str, Any], bar: Any) -> Any:
    from softprompt.answering import predict_file

    try:
        return predict_file(
            saved,
            args.input or sys.stdin.buffer,
            args.output,
            **options,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=bar.update,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command with --resume goes on with {args.output}") from None


def _predict_to_stdout(saved: Any, args: argparse.Namespace, options: dict[str, Any], bar: Any) -> Any:
    from softprompt.answering import CHUNK, Written, predict_records, to_line
    from softprompt.tasks import read_items, read_lines

    items = read_items(args.input) if args.input else read_lines(sys.stdin.buffer)
    chunk = 1 if not args.input and sys.stdin.isatty() else CHUNK  # a person at the keyboard wants each answer at once
    written = Written()
    for answer in predict_records(saved, items, chunk=chunk, **options):
        sys.stdout.write(to_line(answer))
        sys.stdout.flush()
        written.count(answer)
    return written


COMMAND = Command(
    add_flags=_add_predict,
    run=_predict,
    text=(
        "Answer inputs with a saved prompt, or by the vote of several. A line in braces is a JSON record, cast by the "
        "prompt's task; any other line is a finished input. One JSON line comes out for each, in order, with the "
        "record's own columns; a row that cannot be answered gets a line with its error. An input's own column named "
        "prediction, predictions, log_prob, truncated, probabilities, error or line comes out as input_NAME."
    ),
    examples=(
        "echo 'sentence: a warm and funny film' | softprompt predict --prompt runs/sst2 --scores",
        "softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl",
        "softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl --resume",
    ),
)
