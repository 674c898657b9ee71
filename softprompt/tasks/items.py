"""What is asked of a prompt: records of its task, or plain texts, from files and from lines.

A record fills the task's template, a plain text the only field of it. A finished input, which is read without the
template, must be asked for.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from softprompt.tasks.own_file import ASKED
from softprompt.tasks.records import (
    COMPRESSIONS,
    READERS,
    Blank,
    check_finite,
    check_kind,
    decoded,
    open_bytes,
    plain_suffix,
    read_object,
    read_rows,
)
from softprompt.tasks.task import UNLABELLED, Example, Task, text_column

Item = str | dict[str, Any] | ValueError
"""What a line holds: a text, a record, or what is wrong with it."""


def read_lines(lines: Iterable[bytes], *, finished: bool = False) -> Iterator[tuple[int, Item]]:
    """Each line as an item: an object in braces is a record, anything else a text; a blank line is an error.

    finished: every line is a text.
    """
    for number, raw in enumerate(lines, 1):
        try:
            line = decoded(raw)
            if not line.strip():
                raise Blank
            yield number, line if finished or not line.lstrip().startswith("{") else _finite(read_object(line))
        except ValueError as error:
            yield number, error


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    check_finite(record)
    return record


def read_items(path: str | Path, *, finished: bool = False) -> Iterator[tuple[int, Item]]:
    """The items of a file: .jsonl, .csv, .tsv, .json, .parquet, or lines of text under any other name.

    Each may be compressed, with .gz or .xz behind. A bad row, and a blank line of JSONL or of text, is an item that
    holds its error, and so is a record with a number that is not finite; ValueError for a file
    that is missing or not of its format, and for one of records where finished inputs are asked for.
    """
    path = Path(path)
    check_kind(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; name a file of records or of lines")
    if plain_suffix(path) in READERS:
        if finished:
            raise ValueError(f"{path} holds records; name the column of their finished inputs with --inputs-column")
        for number, row in read_rows(path):
            try:
                yield number, row if isinstance(row, ValueError) else _finite(row)
            except ValueError as error:
                yield number, error
        return
    with open_bytes(path) as file:
        yield from read_lines(file, finished=finished)


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


def examples_of(task: Task, item: Item, inputs_column: str | None = None, *, finished: bool = False) -> list[Example]:
    """The examples to answer: of a text one, of a record as many as the task casts it to.

    A text fills the task's only field, unless it is `finished`: then it is the input as it stands. inputs_column: the
    column of a record's finished input, whatever its others. ValueError for what is no record of the task, and for a
    text where the task has several fields.
    """
    if isinstance(item, ValueError):
        raise item
    if inputs_column is not None and isinstance(item, dict):
        item, finished = text_column(item, inputs_column), True
    if isinstance(item, str) and finished:
        return [Example(inputs=item, targets=UNLABELLED, id="", references=())]
    if isinstance(item, str):
        item = _record_of(task, item)
    try:
        return task.cast(item, "test" if task.template is None else ASKED)
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"not a record of {task.name} ({type(error).__name__}: {error})") from error


def examples_of_each(tasks: Sequence[Task], read: Callable[[Task], Sequence[Example]]) -> list[Sequence[Example]]:
    """What `read` gives for each of the tasks of prompts that vote, whose templates may put it into unlike words.

    ValueError unless all are the same examples.
    """
    by_template: dict[tuple[str, str] | None, Sequence[Example]] = {}
    for task in tasks:
        if task.template not in by_template:
            by_template[task.template] = read(task)
    first, *others = by_template.values()
    for other in others:
        if [(example.id, example.targets) for example in other] != [(example.id, example.targets) for example in first]:
            raise ValueError(
                f"the prompts' templates make {len(first)} and {len(other)} examples, which are not the same, so they "
                "cannot vote: each leaves out what repeats itself in its own words; take one file, or one prompt"
            )
    return [by_template[task.template] for task in tasks]


def _record_of(task: Task, text: str) -> dict[str, Any]:
    needed = [name for name in task.fields if not name.endswith("?")] or task.fields
    if len(needed) != 1:
        names, record = " and ".join(needed), json.dumps(dict.fromkeys(needed, "..."), ensure_ascii=False)
        raise ValueError(
            f"a plain text fills a task's only field, and {task.name} has {names or 'none that it names'}; "
            f'give them as a record, {record}, or ask for a finished input (--finished, "finished": true)'
        )
    return {needed[0].removesuffix("?"): text}
