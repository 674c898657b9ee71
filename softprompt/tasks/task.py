"""What a task and an example are, and the pieces that casts are made of."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softprompt.base.names import known_as, nearest, normal
from softprompt.tasks.records import Numbered, read_records

SPLITS = ("train", "dev", "test")

UNLABELLED = "<unk>"
"""The targets of an example without a label, as T5's casts have it (t5/data/preprocessors.py, glue)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One text to give to the model and the text wanted back."""

    inputs: str
    """The text given to the model, without the task's name."""
    targets: str
    """The text wanted; '<unk>' where the record carries no label (WSC's test file names the referent all the
    same, and it stands here)."""
    id: str
    """Unique in its split and stable: the record's own idx or qid, or its line number."""
    references: tuple[str, ...]
    """Every right answer, the targets first; empty when unlabelled. WSC: 'True' or 'False', because what is
    scored is whether the named referent is the right one."""
    group: str | None = None
    """Examples scored together: MultiRC (paragraph, question), ReCoRD (passage, query)."""
    source: str | None = None
    """Examples that must stay on one side of a held-out split: the passage, or the sentence."""
    choices: tuple[str, ...] | None = None
    """Candidates for rank scoring where they vary by example: ReCoRD's entities."""


Cast = Callable[[Mapping[str, Any], str], list[Example]]
Metrics = Callable[[Sequence[str], Sequence[Example]], dict[str, float]]
Answer = Callable[[str, Example], str | None]


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Where a task's records lie on the Hugging Face hub."""

    id: str
    """The data set's id, or a local folder of the same layout."""
    config: str | None = None
    """The data set's configuration."""
    splits: Mapping[str, str] = field(default_factory=lambda: {"train": "train", "dev": "validation", "test": "test"})
    """Our split to the hub's."""
    subset: str | None = None
    """Only records whose column 'subset' holds this (MRQA)."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One benchmark: how its records become examples, and how answers are scored."""

    name: str
    """'superglue/boolq'."""
    version: str = "1"
    """Grows whenever the text or the score of any example changes."""
    labels: tuple[str, ...] | None
    """Every legal answer; None where the answer is free text."""
    cast: Cast
    """(record, split) -> its examples, often one; for an id of '' the reader puts the line number."""
    metrics: Metrics
    """(predictions as decoded, examples) -> metric to value, 1 the best."""
    answer: Answer
    """(prediction, example) -> the answer an ensemble votes on; None if illegal."""
    fields: tuple[str, ...] = ()
    """The columns that a record has to be answered, with ? behind one that may be missing. A text fills the only one
    that must be there.
    """
    initial_texts: tuple[str, ...] = ()
    """Texts for class-label initialisation (paper, section 3.2, footnote 7)."""
    prefix: str = ""
    """What T5 puts before the inputs: the task's name."""
    template: tuple[str, str] | None = None
    """Templates of inputs and targets, for a file of your own."""
    folder: str = ""
    """The official folder, 'superglue/BoolQ'."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split to official file names; the first that exists is read."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Split to file patterns that are all read where no official file is."""
    read: Callable[[Path], Numbered] = read_records
    """The reader of one official file."""
    hub: Hub | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    """Split to the official number of examples, after casting."""
    unique_ids: bool = False
    """Ids name a question in all files and splits (MRQA's qid), so files can be compared by them."""
    distinct: bool = False
    """Repeated examples of one file are dropped; those of several files always are."""
    nested_sources: bool = False
    """A source may be part of another: SST-2's train file holds phrases of its sentences."""
    chosen_by: str = ""
    """The metric that chooses the step and the setting; '' for the mean of all."""
    omits: bool = False
    """Its cast leaves out rows of the training file that are not trained on, and may choose the step: WSC's wrong
    referents."""
    joined_sources: bool = False
    """A source is several lines, and examples that share one are of one source: QQP's two questions."""


def all_fields(tasks: Iterable[Task]) -> tuple[str, ...]:
    """The fields that these tasks have together, each once; one that may be missing is so for all of them."""
    is_needed: dict[str, bool] = {}
    for task in tasks:
        for told in task.fields:
            name = told.removesuffix("?")
            is_needed[name] = is_needed.get(name, False) or name == told
    return tuple(name if needed else f"{name}?" for name, needed in is_needed.items())


def headline(metrics: Mapping[str, float]) -> float:
    """The one number of a task: the mean of its metrics (paper, section 3)."""
    if not metrics:
        raise ValueError("there are no metrics to take the mean of")
    return sum(metrics.values()) / len(metrics)


def column(record: Mapping[str, Any], *names: str) -> Any:
    """The value of the first of these columns that the record has, under a name that looks the same at least.

    Raises ValueError naming the column wanted and the columns there are.
    """
    for name in names:
        if (own := known_as(name, record)) is not None:
            return record[own]
    there = [str(name) for name in record]
    near = nearest(names[0], there)
    hint = near if "\\" in near else ""  # what is listed is seen, unless its letters only look the same
    raise ValueError(f"no column '{names[0]}'; the columns are {', '.join(there) or 'none'}{hint}")


def text_column(record: Mapping[str, Any], *names: str) -> str:
    """As `column`, for text; a finite number becomes text. Raises ValueError for None, a list or an object too."""
    return text_of(column(record, *names), names[0])


def text_of(value: Any, name: str) -> str:
    """A column's value as text. Raises ValueError as `text_column` does."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and math.isfinite(value):
        return str(value)
    raise ValueError(f"column '{name}' holds no text but {value if isinstance(value, float) else type(value).__name__}")


def label_of(record: Mapping[str, Any], split: str, labels: Sequence[str], *names: str) -> str:
    """The label's text, from its text, its number (also as text), or true and false for the second and first.

    A test record may lack it, or have -1: '<unk>'. Elsewhere that is a ValueError, as is any other value.
    """
    names = names or ("label",)
    if split == "test" and not any(name in record for name in names):
        return UNLABELLED
    value = column(record, *names)
    if split == "test" and value in (None, "", -1, "-1"):
        return UNLABELLED
    if value in (None, ""):
        raise ValueError(f"column '{names[0]}' is empty")
    if isinstance(value, str) and (label := known_as(value, labels)) is not None:
        return label
    number = int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdecimal()) else -1
    if not 0 <= number < len(labels):
        raise unknown_label(value, labels)
    return labels[number]


def unknown_label(value: Any, labels: Sequence[str]) -> ValueError:
    """What is wrong with a label that is none of these."""
    more = f" and {len(labels) - 8} more" if len(labels) > 8 else ""
    return ValueError(
        f"unknown label {value!r}; the labels are {', '.join(labels[:8])}{more}{nearest(str(value), labels)}"
    )


def own_id(record: Mapping[str, Any]) -> str:
    """The record's idx, index, id or qid as text; '' if it has none."""
    ids = (record.get(name) for name in ("qid", "idx", "index", "id"))
    return next((str(id) for id in ids if id not in (None, "")), "")


def labelled(targets: str) -> tuple[str, ...]:
    """The references of an example with one right answer: the targets, or none if unlabelled."""
    return () if targets == UNLABELLED else (targets,)


def named(texts: Mapping[str, str]) -> str:
    """'premise: Rain fell. question: cause', without spaces at the end, which T5's tokenizer drops.

    Raises ValueError if there is no text in any of them.
    """
    if not any(text.strip() for text in texts.values()):
        raise ValueError(f"the input is empty: no text in {', '.join(texts)}")
    return " ".join(f"{name}: {text}" for name, text in texts.items()).rstrip()


def label_answer(labels: Iterable[str]) -> Answer:
    """An answer that is the label that the prediction is, or looks the same as, else None."""
    legal = {normal(label): label for label in labels}

    def answer(prediction: str, example: Example) -> str | None:
        return legal.get(normal(prediction))

    return answer
