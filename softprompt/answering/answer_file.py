"""A file of answers, one JSON line for each item, which a run that was killed can go on with.

Lines go to OUTPUT.partial, which takes OUTPUT's name at the end. What the answers were made with stands beside each of
the two, in FILE.settings.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompt.base.files import refusals, remove_leftovers, write_all, write_whole
from softprompt.base.watch import Progress
from softprompt.tasks import Item, read_lines, read_object

ANSWER_COLUMNS = {"prediction", "predictions", "log_prob", "truncated", "probabilities", "error", "line"}
NUM_DIGITS = 6  # ours: digits after the point of log-probabilities and probabilities
KEPT_AS = "input_"  # what the name of a record's own column begins with in the answer, where it is one of those

INPUT_TEXT = "input_text"  # one more where it is asked for


def to_line(answer: Mapping[str, Any]) -> str:
    """An answer as a line of JSON."""
    return json.dumps(answer, ensure_ascii=False, default=str) + "\n"


def columns_of(item: Item, reserved: Collection[str] = ANSWER_COLUMNS) -> dict[str, Any]:
    """What an item's answer begins with: its columns, of which none has the name of one of the answer's."""
    if not isinstance(item, dict):
        return {"inputs": item} if isinstance(item, str) else {}
    columns = {}
    for name, value in item.items():
        kept = name
        while kept in reserved or (kept != name and kept in item):
            kept = f"{KEPT_AS}{kept}"
        columns[kept] = value
    return columns


@dataclass
class Written:
    """How many answers a file or a stream was given."""

    num_rows: int = 0
    num_errors: int = 0

    def count(self, answer: Mapping[str, Any]) -> None:
        """Count an answer in."""
        self.num_rows += 1
        self.num_errors += "error" in answer


class AnswerFile:
    """The answers to some items, and where they are written. settings: what they are made with, as JSON has it."""

    def __init__(self, output: Path, settings: Mapping[str, Any]):
        self.output, self.settings = output, settings
        self.reserved = ANSWER_COLUMNS | ({INPUT_TEXT} if settings.get("show-input") else set())
        self.partial = output.with_name(f"{output.name}.partial")

    @property
    def is_whole(self) -> bool:
        """Whether the answers are all there, as far as names tell."""
        return self.output.exists() and not self.partial.exists()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """ValueError where something is in the file's place that was not said to be gone on with, or replaced."""
        if self.output.is_dir():
            raise ValueError(f"{self.output} is a folder; give a file's name in it")
        if not resume and not overwrite:
            if self.partial.exists():
                raise ValueError(
                    f"{self.partial} holds part of an earlier run; --resume goes on from it, --overwrite starts again"
                )
            if self.output.exists():
                raise ValueError(f"{self.output} is there already; --overwrite replaces it, or give another name")

    def begin(self, items: Iterator[tuple[int, Item]], *, resume: bool, overwrite: bool) -> Written:
        """Make the file, or go on with it: takes from the items those that are answered, and says how many.

        ValueError as `predict_file` has it.
        """
        self.check(resume=resume, overwrite=overwrite)
        for path in (self.partial, self.output):
            remove_leftovers(_settings_of(path))
        if resume and self.partial.exists():
            self._check_settings(self.partial)
            with open(self.partial, "r+b") as file:  # a kill may have left the last line torn
                file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))
            return self._count(self.partial, items)
        self.partial.unlink(missing_ok=True)
        write_whole(_settings_of(self.partial), json.dumps(self.settings))
        return Written()

    def finished(self, items: Iterator[tuple[int, Item]]) -> Written:
        """What stands in OUTPUT, which must answer all items with these settings. Else ValueError."""
        self._check_settings(self.output)
        written = self._count(self.output, items)
        if next(items, None) is not None:
            raise ValueError(
                f"{self.output} answers {written.num_rows} rows and the input has more; start again with --overwrite"
            )
        _settings_of(self.partial).unlink(missing_ok=True)
        return written

    def append(self, answers: Iterable[dict[str, Any]], written: Written, progress: Progress | None) -> None:
        """Add answers as they come, and give the file its name. OSError, in one line, where it cannot be written."""
        with open(self.partial, "ab", buffering=0) as file:
            for answer in answers:
                with self._refusals(self.partial, written):
                    write_all(file, to_line(answer).encode())
                written.count(answer)
                if progress:
                    progress(1)
            with self._refusals(self.partial, written):
                os.fsync(file)
        with self._refusals(self.output, written):
            # In this order, so that at no moment a whole OUTPUT stands without its settings.
            write_whole(_settings_of(self.output), json.dumps(self.settings))
            os.replace(self.partial, self.output)
        _settings_of(self.partial).unlink()

    def _refusals(self, path: Path, written: Written) -> AbstractContextManager[None]:
        left = f"{written.num_rows:,} whole rows are in {self.partial.name}; free some space and go on with --resume"
        return refusals(path, left)

    def _check_settings(self, path: Path) -> None:
        kept_in = _settings_of(path)
        if not kept_in.is_file():
            raise ValueError(f"{path} has no {kept_in.name} beside it, so it cannot be gone on with; use --overwrite")
        try:
            kept = read_object(kept_in.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{kept_in}: {error}; start again with --overwrite") from error
        for name, value in self.settings.items():
            if kept.get(name, value) != value:
                raise ValueError(
                    f"{path} was begun with {name} {kept[name]}, and now it is {value}; "
                    "give the same settings, or start again with --overwrite"
                )

    def _count(self, path: Path, items: Iterator[tuple[int, Item]]) -> Written:
        """The lines of a file of answers, which must be those of the items to come; these are taken."""
        written = Written()
        with open(path, "rb") as file:
            for number, answer in read_lines(file):
                asked = next(items, None)
                own = answer if isinstance(answer, dict) else {}
                columns = {name: value for name, value in own.items() if name not in self.reserved}
                if not own or asked is None or to_line(columns) != to_line(columns_of(asked[1], self.reserved)):
                    raise ValueError(
                        f"line {number} of {path} does not answer that row of the input; "
                        "give the input that it was made of, or start again with --overwrite"
                    )
                written.count(own)
        return written


def _settings_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings")
