"""Saved prompts asked about records and files: records in, answer lines out.

predict_file(open_prompts("runs/a"), "reviews.csv", "answers.jsonl")
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.answering.answer_file import ANSWER_COLUMNS, INPUT_TEXT, NUM_DIGITS, AnswerFile, Written, columns_of
from softprompt.answering.engine import mean_probabilities
from softprompt.answering.evaluation import vote
from softprompt.answering.saved import NamedPrompts, SavedPrompts
from softprompt.base.files import held
from softprompt.base.watch import Progress
from softprompt.models import Row, read_text
from softprompt.tasks import Example, Item, Task, examples_of, read_items, read_lines

NO_NUMBERS = "the model gives no finite numbers for this input; load it with --dtype float32, or use another prompt"
CHUNK = 256  # ours: rows answered together; enough to fill batches of equal length, and few enough to lose


@dataclass(frozen=True)
class _Question:
    """A line of input, and what became of it."""

    number: int
    columns: dict[str, Any]
    examples: list[Example]
    """As the first prompt's task has them."""
    encoded: list[list[Row]]
    """The examples' rows, once for each text format of the prompts."""
    worn: SavedPrompts | None = None
    """The prompts that are asked; None where there is an error."""
    error: str | None = None


def predict_records(
    saved: SavedPrompts | NamedPrompts,
    items: Iterable[tuple[int, Item]],
    *,
    with_probabilities: bool = False,
    inputs_column: str | None = None,
    finished: bool = False,
    show_input: bool = False,
    strict: bool = False,
    chunk: int = CHUNK,
) -> Iterator[dict[str, Any]]:
    """One answer for each item, in order: its columns, and prediction, log_prob and truncated.

    A record's own column of a name in `ANSWER_COLUMNS` is kept as input_NAME, with a warning.
    items: (line number, item), as `examples_of` takes them with `inputs_column` and `finished`. A record of several
    examples gets a list `predictions`. Several prompts vote. show_input: `input_text` too, what the model read; a list
    where prompts that vote read different texts. An item that cannot be answered gets `error` and `line` instead, and
    stops everything if `strict`, by ValueError; so do probabilities of generated text.
    """
    if with_probabilities and saved.scoring != "rank":
        raise ValueError("probabilities come from label scoring; use --scoring rank, or leave --scores out")
    items = iter(items)
    reserved = ANSWER_COLUMNS | {INPUT_TEXT} if show_input else ANSWER_COLUMNS
    read = partial(examples_of, inputs_column=inputs_column, finished=finished)
    while taken := list(itertools.islice(items, chunk)):
        questions = [_question(saved, number, item, columns_of(item, reserved), read) for number, item in taken]
        bad = next((i for i, question in enumerate(questions) if question.error), None) if strict else None
        until = None if bad is None else bad + 1
        for answer in _answered(saved, questions[:until], with_probabilities, show_input):
            if strict and "error" in answer:
                raise ValueError(f"line {answer['line']}: {answer['error']}")
            yield answer


def _question(
    saved: SavedPrompts | NamedPrompts,
    number: int,
    item: Item,
    columns: dict[str, Any],
    read: Callable[[Task, Item], list[Example]],
) -> _Question:
    for name, kept in zip(item if isinstance(item, dict) else (), columns, strict=False):
        if name != kept:
            warnings.warn(
                f"the input's column {name!r} is kept as {kept!r}: the answer has one of its own", stacklevel=2
            )
    try:
        worn = saved.worn_by(item)
        read_by_each = worn.read(lambda task: read(task, item))
        examples = list(read_by_each[0])
        if not examples:
            raise ValueError(f"the record has nothing in it to answer for {worn.task.name}; leave it out")
        for example in examples:
            if worn.scoring == "rank" and not (example.choices or worn.task.labels):
                raise ValueError(f"{worn.task.name} has no labels to rank for this input; use --scoring generate")
        return _Question(number, columns, examples, worn.encode(read_by_each), worn)
    except ValueError as error:
        return _Question(number, columns, [], [], error=str(error))


def _answered(
    saved: SavedPrompts | NamedPrompts, questions: Sequence[_Question], with_probabilities: bool, show_input: bool
) -> Iterator[dict[str, Any]]:
    """The answer to each question, from one pass over all their examples."""
    examples = [example for question in questions for example in question.examples]
    asked = [question for question in questions if question.encoded]
    encoded = [list(itertools.chain(*(q.encoded[i] for q in asked))) for i in range(len(saved.groups))]
    worn = [question.worn for question in asked if question.worn for _ in question.examples]
    answers = zip(*saved.answers(examples, encoded, worn=worn), strict=True) if examples else iter(())
    read = zip(*encoded, strict=True)  # each example's row in every text format
    for question in questions:
        if question.error or not question.worn:
            yield {**question.columns, "error": question.error, "line": question.number}
            continue
        lines, numbers = [], []
        for example in question.examples:
            votes, rows = list(next(answers)), next(read)
            numbers += [number for one in votes for number in (one.log_prob, *(one.scores or {}).values())]
            best = votes[0] if len(votes) == 1 else vote(question.worn.task, example, votes)
            was_cut = any(row.was_cut for row in rows)
            line = {"prediction": best.text, "log_prob": round(best.log_prob, NUM_DIGITS), "truncated": was_cut}
            if show_input:
                line[INPUT_TEXT] = read_text(rows, saved.lm.tokenizer)
            if with_probabilities:
                mean = mean_probabilities(votes)
                line["probabilities"] = {text: round(share, NUM_DIGITS) for text, share in mean.items()}
            lines.append(line)
        if not all(map(math.isfinite, numbers)):
            yield {**question.columns, "error": NO_NUMBERS, "line": question.number}
            continue
        several = [{"id": e.id, **line} for e, line in zip(question.examples, lines, strict=True)]
        yield {**question.columns, **(lines[0] if len(lines) == 1 else {"predictions": several})}


def predict_file(
    saved: SavedPrompts | NamedPrompts,
    source: str | Path | Iterable[bytes],
    output: str | Path,
    *,
    with_probabilities: bool = False,
    inputs_column: str | None = None,
    finished: bool = False,
    show_input: bool = False,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Answer a file (or the lines of an open one) into a JSONL file, one line for each item, in order.

    Lines go to OUTPUT.partial, which takes OUTPUT's name at the end; resume goes on behind what stands there already,
    to the same bytes, and leaves a whole OUTPUT as it is. The counts include those lines. A file's settings stand
    beside it, in FILE.settings. Raises ValueError if either file is there and neither `resume` nor `overwrite` is
    given, for one to resume that was made with other settings or of other items, and, if `strict`, for the first bad
    item.
    """
    is_file = isinstance(source, str | Path)
    settings = saved.settings | {
        "scores": with_probabilities,
        "inputs-column": inputs_column,
        "finished": finished,
        "show-input": show_input,
        "input": str(source) if is_file else "lines",
    }
    items = read_items(source, finished=finished) if is_file else read_lines(source, finished=finished)
    file = AnswerFile(Path(output), settings)
    with held(file.output, is_file=True):
        if resume and file.is_whole:
            return file.finished(items)
        taken: deque[tuple[int, Item]] = deque(maxlen=CHUNK)
        written = file.begin(_noted(items, taken), resume=resume, overwrite=overwrite)
        # Of a chunk that is begun all rows are answered again: in other batches sums would round otherwise.
        num_begun = written.num_rows % CHUNK
        begun = list(taken)[len(taken) - num_begun :]
        if progress and written.num_rows:
            progress(written.num_rows)
        answers = predict_records(
            saved,
            itertools.chain(begun, items),
            with_probabilities=with_probabilities,
            inputs_column=inputs_column,
            finished=finished,
            show_input=show_input,
            strict=strict,
            chunk=CHUNK,
        )
        file.append(itertools.islice(answers, num_begun, None), written, progress)
    return written


def read_parts(path: str | Path, begin: int = 0, *, finished: bool = False) -> Iterator[list[tuple[int, Item]]]:
    """A file's items behind the first `begin`, `CHUNK` at a time, and behind the last an empty list. They are pickled
    well; otherwise as `read_items` has them.
    """
    items = itertools.islice(read_items(path, finished=finished), begin, None)
    part = None
    while part != []:
        part = []
        for number, item in itertools.islice(items, CHUNK):
            part.append((number, ValueError(str(item)) if isinstance(item, ValueError) else item))
        yield part


def predict_files(
    paths: Sequence[Path],
    folder: Path,
    answer: Callable[[list[tuple[Path, int]]], Generator[list[dict[str, Any]], None, None]],
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Answer each file into one of its name in a folder, as `predict_file` does one, wherever the answers are made.

    answer: is given the files that are not whole, each with the number of its items to pass over, and gives the answers
    to each part that `read_parts` has of them, in order. settings: what these depend on. ValueError for inputs whose
    outputs would be one file, or an input.
    """
    finished = bool(settings.get("finished"))
    with held(folder):
        files = {path: AnswerFile(place, {**settings, "input": str(path)}) for place, path in _places(paths, folder)}
        for file in files.values():  # all are looked at before one is begun
            file.check(resume=resume, overwrite=overwrite)
        begun, written = [], []
        for path, file in files.items():
            items = read_items(path, finished=finished)
            if resume and file.is_whole:
                written.append(file.finished(items))
            else:
                written.append(file.begin(items, resume=resume, overwrite=overwrite))
                begun.append((path, file, written[-1]))
        if progress:
            progress(sum(own.num_rows for own in written))
        with closing(answer([(path, own.num_rows - own.num_rows % CHUNK) for path, _, own in begun])) as parts:
            for _, file, own in begun:
                file.append(itertools.islice(_of_one(parts), own.num_rows % CHUNK, None), own, progress)
    return Written(sum(own.num_rows for own in written), sum(own.num_errors for own in written))


def _of_one(parts: Iterator[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The answers to one file, whose last part is empty."""
    while part := next(parts):
        yield from part


def _places(paths: Sequence[Path], folder: Path) -> list[tuple[Path, Path]]:
    """Each output with its input, whose place under what all inputs lie in it has."""
    root = os.path.commonpath([path.parent.absolute() for path in paths])
    inputs = {path.resolve() for path in paths}
    known: dict[Path, Path] = {}
    for path in paths:
        place = folder / path.parent.absolute().relative_to(root) / f"{path.stem}.jsonl"
        if other := known.get(place):
            raise ValueError(f"the answers to {other} and {path} would both be {place}; name one of them otherwise")
        if place.resolve() in inputs:
            raise ValueError(f"the answers to {path} would be {place}, which is an input; give another --output")
        known[place] = path
    return list(known.items())


def _noted(items: Iterable[tuple[int, Item]], taken: deque[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    """The items, the last of them in `taken`, too."""
    for item in items:
        taken.append(item)
        yield item
