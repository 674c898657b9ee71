"""Answer texts and records with a saved prompt, or by the vote of several. A line in braces is a JSON record, which
fills the prompt's template; any other line is a text, which fills it where it has one field. One JSON line comes out
for each, in order, with the record's own columns; a row that cannot be answered, as a blank one, gets a line with its
error. An input's own column named prediction, predictions, log_prob, truncated, probabilities, error or line comes out
as input_NAME.

examples:
  echo 'a warm and funny film' | softprompt predict --prompt runs/sst2 --scores --show-input
  echo '{"premise": "It rained.", "hypothesis": "It was wet."}' | softprompt predict --prompt runs/rte
  softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl
  softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl --resume
"""

import argparse
import os
import stat
import sys
from io import FileIO
from pathlib import Path
from typing import Any

from softprompt.base.files import write_all
from softprompt.base.terminal import counted, say, writing
from softprompt.cli.options import add_prompt, opened
from softprompt.tasks import check_kind


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt predict."""
    add_prompt(command)
    command.add_argument(
        "--input", metavar="F", help=".jsonl, .json, .csv, .tsv, .parquet, or lines; .gz or .xz too (default: stdin)"
    )
    command.add_argument("--output", metavar="F", help="JSONL file to write (default: stdout)")
    command.add_argument("--finished", action="store_true", help="lines are read as they stand, without the template")
    command.add_argument(
        "--inputs-column", metavar="C", help="the same for records: the column of their finished input"
    )
    command.add_argument("--show-input", action="store_true", help="add input_text: what the model read")
    command.add_argument("--scores", action="store_true", help="add every label's probability; ranks the labels")
    command.add_argument("--strict", action="store_true", help="stop at the first bad row")
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped, with --output")
    command.add_argument("--overwrite", action="store_true", help="replace an --output that is there already")


def run(args: argparse.Namespace) -> int:
    """Answer what comes in, a line for each, and say how many."""
    if args.resume and not args.output:
        raise ValueError("--resume goes on with a file, so it needs --output")
    if args.input:
        check_kind(Path(args.input))
    if args.input and not Path(args.input).is_file():
        raise ValueError(f"no file {args.input}; name a file of records or of lines, or leave --input for stdin")
    saved = opened(args, args.scoring or ("rank" if args.scores else None))
    from tqdm import tqdm

    from softprompt.answering import predict_file
    from softprompt.tasks import count_items

    options = {
        "with_probabilities": args.scores,
        "inputs_column": args.inputs_column,
        "finished": args.finished,
        "show_input": args.show_input,
        "strict": args.strict,
    }
    total = count_items(args.input) if args.input else None
    quiet = None if args.output and args.input else True
    with tqdm(total=total, desc="predict", unit="row", disable=quiet, dynamic_ncols=True) as bar:
        if not args.output:
            written = _to_stdout(saved, args.input, options)
        else:
            try:
                written = predict_file(
                    saved,
                    args.input or sys.stdin.buffer,
                    args.output,
                    **options,
                    resume=args.resume,
                    overwrite=args.overwrite,
                    progress=bar.update,
                )
            except KeyboardInterrupt:
                told = f"stopped; the same command with --resume goes on with {args.output}"
                raise KeyboardInterrupt(told) from None
    answered = counted(written.num_rows - written.num_errors, "row")
    where = f", in {args.output}" if args.output else ""
    errors = f", {written.num_errors:,} not (their lines hold an error)" if written.num_errors else ""
    say(f"{answered} answered{errors}{where}")
    return 0


def _to_stdout(saved: Any, source: str | None, options: dict[str, Any]) -> Any:
    from softprompt.answering import CHUNK, Written, predict_records, to_line
    from softprompt.tasks import read_items, read_lines

    finished = options["finished"]
    items = read_items(source, finished=finished) if source else read_lines(sys.stdin.buffer, finished=finished)
    chunk = 1 if not source and sys.stdin.isatty() else CHUNK  # a person at the keyboard wants each answer at once
    written, file = Written(), _stdout_file()
    for answer in predict_records(saved, items, chunk=chunk, **options):
        with writing(f"standard output, behind {counted(written.num_rows, 'whole row')}"):
            if file:
                write_all(file, to_line(answer).encode())
            else:
                sys.stdout.write(to_line(answer))
                sys.stdout.flush()
        written.count(answer)
    return written


def _stdout_file() -> FileIO | None:
    """Standard output where it is a file, which can be cut back to its last whole row; of a pipe or a terminal none."""
    try:
        descriptor = sys.stdout.fileno()
        sys.stdout.flush()
    except OSError:  # of Python's own making
        return None
    is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
    return FileIO(descriptor, "a", closefd=False) if is_file else None
