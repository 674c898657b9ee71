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
  softprompt predict --prompt en=runs/en de=runs/de --prompt-column language --input messages.csv --output answers.jsonl
  softprompt predict --prompt runs/mine --input 'messages/*.parquet' --output answers --ray --resume
"""

import argparse
import os
import stat
import sys
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from glob import glob
from io import FileIO
from pathlib import Path
from typing import Any

from softprompt.base.files import write_all
from softprompt.base.setting import Setting
from softprompt.base.terminal import counted, say, writing
from softprompt.cli.options import (
    ADDRESS,
    MACHINE,
    OWN_FILES,
    add_prompt,
    add_settings,
    from_anywhere,
    named_folders,
    opened,
)
from softprompt.tasks import check_kind

SEVERAL = {
    "ray": Setting(help="answer by workers in a Ray cluster", kind=bool, title="several machines"),
    "workers": Setting(
        help="how many", kind=int, shown="one for each GPU, or --threads cores", title="several machines"
    ),
    "address": ADDRESS,
}


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt predict."""
    add_prompt(command)
    command.add_argument(
        "--input", metavar="F", help=".jsonl, .json, .csv, .tsv, .parquet, or lines; .gz or .xz too (default: stdin)"
    )
    command.add_argument("--output", metavar="F", help="JSONL file to write (default: stdout); with --ray, a folder")
    command.add_argument(
        "--prompt-column", metavar="C", help="a record's column that names its prompt, of those in --prompt NAME=DIR"
    )
    command.add_argument("--finished", action="store_true", help="lines are read as they stand, without the template")
    command.add_argument(
        "--inputs-column", metavar="C", help="the same for records: the column of their finished input"
    )
    command.add_argument("--show-input", action="store_true", help="add input_text: what the model read")
    command.add_argument("--scores", action="store_true", help="add every label's probability; ranks the labels")
    command.add_argument("--strict", action="store_true", help="stop at the first bad row")
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped, with --output")
    command.add_argument("--overwrite", action="store_true", help="replace an --output that is there already")
    add_settings(command, SEVERAL)


def run(args: argparse.Namespace) -> int:
    """Answer what comes in, a line for each, and say how many."""
    if args.resume and not args.output:
        raise ValueError("--resume goes on with a file, so it needs --output")
    options = {
        "with_probabilities": args.scores,
        "inputs_column": args.inputs_column,
        "finished": args.finished,
        "show_input": args.show_input,
        "strict": args.strict,
    }
    if args.ray:
        return _predict_on_ray(args, options)
    for name in ("workers", "address"):
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} is for workers of Ray; give --ray, too, or leave it out")
    if args.input:
        check_kind(Path(args.input))
    if args.input and not Path(args.input).is_file():
        raise ValueError(f"no file {args.input}; name a file of records or of lines, or leave --input for stdin")
    saved = _opened(args)
    from tqdm import tqdm

    from softprompt.answering import predict_file
    from softprompt.tasks import count_items

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
    _say_how_many(written, args.output)
    return 0


def _say_how_many(written: Any, output: str | None) -> None:
    answered = counted(written.num_rows - written.num_errors, "row")
    where = f", in {output}" if output else ""
    errors = f", {written.num_errors:,} not (their lines hold an error)" if written.num_errors else ""
    say(f"{answered} answered{errors}{where}")


def _opened(args: argparse.Namespace) -> Any:
    """The prompts that answer."""
    scoring = args.scoring or ("rank" if args.scores else None)
    return opened(args, scoring, column=args.prompt_column)


def _predict_on_ray(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Answer files into a folder by workers that Ray places, who see inputs and prompts where this process does."""
    if not args.input or not args.output:
        raise ValueError("--ray answers files into a folder; give --input 'FILES*' and --output DIR")
    paths = [Path(found).absolute() for found in sorted(glob(args.input, recursive=True)) if Path(found).is_file()]
    if not paths:
        raise ValueError(f"no file matches {args.input!r}; give a file, or a pattern in quotes, such as 'x/*.parquet'")
    for path in paths:
        check_kind(path)
    if args.workers is not None and args.workers < 1:
        raise ValueError(f"--workers is {args.workers}, but must be 1 or more")
    from tqdm import tqdm

    from softprompt.answering import predict_files
    from softprompt.prompts import load_prompt
    from softprompt.tasks import count_items

    named = named_folders(args.prompt) if args.prompt_column else {place: place for place in args.prompt}
    prompts = [load_prompt(place) for place in named.values()]
    asked = ("model", "task", "scoring", "prompt_column", *OWN_FILES, *MACHINE)
    settings = {
        "prompts": [prompt.sha256 for prompt in prompts],
        "prompt hashes": [prompt.identity for prompt in prompts],
        "names and flags": [*named, *(str(getattr(args, name)) for name in asked)],
        "scores": args.scores,
        "inputs-column": args.inputs_column,
        "finished": args.finished,
        "show-input": args.show_input,
    }
    counts = [count_items(path) for path in paths]
    total = None if None in counts else sum(count or 0 for count in counts)
    with tqdm(total=total, desc="predict", unit="row", disable=None, dynamic_ncols=True) as bar:
        try:
            written = predict_files(
                paths,
                Path(args.output),
                partial(_answers, args, named, args.model or prompts[0].card.model_name, options),
                settings,
                resume=args.resume,
                overwrite=args.overwrite,
                progress=bar.update,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; the same command with --resume goes on with {args.output}") from None
    _say_how_many(written, args.output)
    return 0


def _answers(
    args: argparse.Namespace,
    named: dict[str, str],
    model: str | None,
    options: dict[str, Any],
    sources: Sequence[tuple[Path, int]],
) -> Generator[Any, None, None]:
    """The answers to files, each from an item on, part by part, by workers that are there as long."""
    from softprompt.cluster import ray_cluster

    threads = args.threads or 1
    of_worker = {"threads": threads, "model": model and from_anywhere(model)}
    if args.prompt_column:
        of_worker["prompt"] = [f"{name}={from_anywhere(place)}" for name, place in named.items()]
    else:
        of_worker["prompt"] = [from_anywhere(place) for place in named.values()]
    with ray_cluster(args.address, processors=args.workers and args.workers * threads):
        from softprompt.cluster import answered_by_ray

        yield from answered_by_ray(
            sources,
            partial(_read, finished=args.finished),
            partial(_worker, argparse.Namespace(**{**vars(args), **of_worker}), options),
            workers=args.workers,
            threads=threads,
            device=args.device or "auto",
        )


def _read(source: tuple[Path, int], finished: bool) -> Iterator[Any]:
    from softprompt.answering import read_parts

    path, begin = source
    return read_parts(path, begin, finished=finished)


def _worker(args: argparse.Namespace, options: dict[str, Any]) -> Any:
    """What answers a part of a file, in a worker, which has the model."""
    from softprompt.answering import predict_records

    saved = _opened(args)
    return lambda part: list(predict_records(saved, part, **options))


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
