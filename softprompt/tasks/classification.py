"""Classification sets outside the benchmarks."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.tasks.labelled import SENTIMENT, fields_task, labelled_task
from softprompt.tasks.records import Numbered, opened, read_tsv
from softprompt.tasks.task import Example, Hub, Task, label_of, labelled, named, own_id, text_column

DEV_SHARE = 10
"""One sentence in ten is dev where the source has no split; ours."""

NEWS = ("World", "Sports", "Business", "Sci/Tech")  # in the order of their numbers on the hub, 0 to 3


def _sentence_task(name: str, labels: tuple[str, ...], files: tuple[str, ...], **about: Any) -> Task:
    """A task of single sentences whose source has no split. Text as SST-2's.

    files: one of each label, a sentence a line, side by side.
    """

    def cast(record: Mapping[str, Any], split: str) -> list[Example]:
        """One example if the sentence falls in the split, else none; any sentence is test, to be answered.

        A sentence's split follows from its letters alone, so repetitions fall together, in whatever order and
        from whatever source they are read.
        """
        sentence = text_column(record, "text", "sentence").strip()
        targets = label_of(record, split, labels)
        inputs = named({"sentence": sentence})
        letters = "".join(filter(str.isalnum, sentence.casefold())) or sentence
        is_dev = int(hashlib.sha256(letters.encode()).hexdigest(), 16) % DEV_SHARE == 0
        if split != "test" and is_dev != (split == "dev"):
            return []
        return [
            Example(inputs=inputs, targets=targets, id=own_id(record), references=labelled(targets), source=sentence)
        ]

    def records(path: Path) -> Numbered:
        """The sentences of all files, those beside the one that is named too; ValueError where one is missing.

        Some copies are in UTF-8, some in Latin-1, so each line is read as whichever it is.
        """
        for label, file in zip(labels, files, strict=True):
            half = path.with_suffix(Path(file).suffix)
            if not half.is_file():
                both = " and ".join(path.with_suffix(Path(each).suffix).name for each in files)
                raise ValueError(f"no file {half}; {name} is two files, {both}")
            for number, line in enumerate(half.read_bytes().splitlines(), 1):
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    text = line.decode("latin-1")
                yield number, {"text": text.strip(), "label": label, "id": f"{half.suffix[1:]}-{number}"}

    return labelled_task(
        labels,
        cast,
        name=f"classification/{name}",
        folder=f"classification/{name}",
        fields=("text",),
        files={"train": files[:1], "dev": files[:1]},
        read=lambda path: opened(path, records),
        distinct=True,
        **about,
    )


SENTENCE_POLARITY = _sentence_task(
    "sentence_polarity",
    SENTIMENT,
    ("rt-polarity.neg", "rt-polarity.pos"),
    # The hub's copy has a split of its own; all of it is read, and split as the files are.
    hub=Hub(
        id="cornell-movie-review-data/rotten_tomatoes",
        splits={"train": "train+validation+test", "dev": "train+validation+test"},
    ),
    counts={"train": 9558, "dev": 1104},
)

SUBJECTIVITY = _sentence_task(
    "subjectivity",
    ("objective", "subjective"),
    ("subj.objective", "subj.subjective"),
    hub=Hub(id="SetFit/subj", splits={"train": "train+test", "dev": "train+test"}),
    counts={"train": 8963, "dev": 1037},
)


AG_NEWS = fields_task(
    NEWS,
    ("text",),
    name="classification/ag_news",
    folder="classification/ag_news",
    # The source has no dev part; its test part is scored, and nothing is chosen by it.
    files={"train": ("train.tsv",), "dev": ("test.tsv",)},
    parts={"train": ("train_*.tsv",)},
    read=partial(read_tsv, columns=("text", "label")),
    hub=Hub(id="fancyzhx/ag_news", splits={"train": "train", "dev": "test"}),
    counts={"train": 120_000, "dev": 7_600},
)
