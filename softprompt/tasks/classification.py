"""Classification sets outside the benchmarks."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.tasks.labelled import SENTIMENT, labelled_task
from softprompt.tasks.records import Numbered, opened
from softprompt.tasks.task import Example, Hub, label_of, labelled, named, own_id, text_column

POLARITY_DEV_SHARE = 10
"""One sentence in ten is dev; ours, because the source has no split."""


def read_polarity(path: Path) -> Numbered:
    """The sentences of rt-polarity.neg and of rt-polarity.pos beside it, one a line.

    Some copies are in UTF-8, some in Latin-1, so each line is read as whichever it is. Raises ValueError if
    either file is missing.
    """
    return opened(path, _polarity_records)


def _polarity_records(path: Path) -> Numbered:
    for label, suffix in zip(SENTIMENT, (".neg", ".pos"), strict=True):
        half = path.with_suffix(suffix)
        if not half.is_file():
            raise ValueError(f"no file {half}; sentence_polarity is two files, rt-polarity.neg and rt-polarity.pos")
        for number, line in enumerate(half.read_bytes().splitlines(), 1):
            try:
                text = line.decode()
            except UnicodeDecodeError:
                text = line.decode("latin-1")
            yield number, {"text": text.strip(), "label": label, "id": f"{suffix[1:]}-{number}"}


def cast_polarity(record: Mapping[str, Any], split: str) -> list[Example]:
    """One example if the sentence falls in the split, else none; any sentence is test, to be answered. Text as SST-2's.

    A sentence's split follows from its letters alone, so repetitions fall together, in whatever order and
    from whatever source they are read.
    """
    sentence = text_column(record, "text", "sentence").strip()
    targets = label_of(record, split, SENTIMENT)
    inputs = named({"sentence": sentence})
    letters = "".join(filter(str.isalnum, sentence.casefold())) or sentence
    is_dev = int(hashlib.sha256(letters.encode()).hexdigest(), 16) % POLARITY_DEV_SHARE == 0
    if split != "test" and is_dev != (split == "dev"):
        return []
    return [Example(inputs=inputs, targets=targets, id=own_id(record), references=labelled(targets), source=sentence)]


SENTENCE_POLARITY = labelled_task(
    SENTIMENT,
    cast_polarity,
    fields=("text",),
    name="classification/sentence_polarity",
    folder="classification/sentence_polarity",
    files={"train": ("rt-polarity.neg",), "dev": ("rt-polarity.neg",)},
    read=read_polarity,
    # The hub's copy has a split of its own; all of it is read, and split as the files are.
    hub=Hub(
        id="cornell-movie-review-data/rotten_tomatoes",
        splits={"train": "train+validation+test", "dev": "train+validation+test"},
    ),
    counts={"train": 9558, "dev": 1104},
    distinct=True,
)
