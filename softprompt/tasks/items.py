"""What is asked of a prompt: records of its task, or inputs finished already, from files and from lines."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from softprompt.tasks.own_file import ASKED
from softprompt.tasks.records import (
    COMPRESSIONS,
    READERS,
    check_kind,
    decoded,
    open_bytes,
    plain_suffix,
    read_object,
    read_rows,
)
from softprompt.tasks.task import UNLABELLED, Example, Task, text_column

Item = str | dict[str, Any] | ValueError
"""What a line holds: a finished input, a record, or what is wrong with it."""


def read_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Item]]:
    """Each line as an item: an object in braces is a record, anything else a finished input (or an error)."""
    for number, raw in enumerate(lines, 1):
        try:
            line = decoded(raw)
            yield number, read_object(line) if line.lstrip().startswith("{") else line
        except ValueError as error:
            yield number, error


def read_items(path: str | Path) -> Iterator[tuple[int, Item]]:
    """The items of a file: .jsonl, .csv, .tsv, .json, .parquet, or lines of text under any other name.

    Each may be compressed, with .gz or .xz behind. A bad row is an item that holds its error; ValueError for a file
    that is missing or not of its format.
    """
    path = Path(path)
    check_kind(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; name a file of records or of lines")
    if plain_suffix(path) in READERS:
        yield from read_rows(path)
        return
    with open_bytes(path) as file:
        yield from read_lines(file)


def count_items(path: str | Path) -> int | None:
    """About how many items a file holds, for a progress bar; None where counting means reading all of it."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path).metadata.num_rows
    if suffix in (".json", *COMPRESSIONS):
        return None
    with open(path, "rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return lines - (suffix in (".csv", ".tsv"))


def examples_of(task: Task, item: Item, inputs_column: str | None = None) -> list[Example]:
    """The examples to answer: of a finished input one; of a record as many as the task casts it to, unless a column
    with the finished input is named. ValueError for what is no record of the task.
    """
    if isinstance(item, ValueError):
        raise item
    if isinstance(item, str) or inputs_column is not None:
        text = item if isinstance(item, str) else text_column(item, str(inputs_column))
        return [Example(inputs=text, targets=UNLABELLED, id="", references=())]
    try:
        return task.cast(item, "test" if task.template is None else ASKED)
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"not a record of {task.name} ({type(error).__name__}: {error})") from error
