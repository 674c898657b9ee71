"""GLUE's tasks in T5's text without the task's name (t5/data/preprocessors.py, glue; glue_utils.py).

T5 writes a record's fields in the order of their names. Counts are the paper's table 7 for MRPC and QQP and
T5's mixture weights or GLUE's own for the rest. Official files are tab-separated without quoting.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.tasks.labelled import ENTAILMENT, SENTIMENT, fields_task
from softprompt.tasks.metrics import accuracy, f1_with_invalid, matthews, number_of, pearson, scored, spearman
from softprompt.tasks.records import Numbered, read_tsv
from softprompt.tasks.task import UNLABELLED, Example, Hub, Task, column, labelled, named, own_id, text_column

EQUIVALENCE = ("not_equivalent", "equivalent")
DUPLICATION = ("not_duplicate", "duplicate")
ACCEPTABILITY = ("unacceptable", "acceptable")
INFERENCE = ("entailment", "neutral", "contradiction")
WINOGRAD = ("not_entailment", "entailment")
SIMILARITY = tuple(f"{step / 5:.1f}" for step in range(26))
"""'0.0', '0.2' ... '5.0': what STS-B's scores are rounded to (t5/data/preprocessors.py, stsb)."""

COLA_COLUMNS = ("source", "label", "judgement", "sentence")
QQP_COLUMNS = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")


def read_cola(path: Path) -> Numbered:
    """CoLA's records; its train and dev files have no line of column names, its test file has."""
    return read_tsv(path, columns=COLA_COLUMNS, known=("index",))


def read_qqp(path: Path) -> Numbered:
    """QQP's records, with or without column names, a space in the last tab's place mended."""
    return read_tsv(path, columns=QQP_COLUMNS, known=("test_id",), mend=_with_last_tab)


def _with_last_tab(fields: list[str]) -> list[str]:
    if len(fields) != len(QQP_COLUMNS) - 1:
        return fields
    text, space, label = fields[-1].rpartition(" ")
    return [*fields[:-1], text, label] if space and label in ("0", "1") else fields


def cast_stsb(record: Mapping[str, Any], split: str) -> list[Example]:
    """One example whose targets are the score rounded to the nearest 0.2, as '3.4'."""
    texts = {name: text_column(record, name) for name in ("sentence1", "sentence2")}
    score = record.get("score", record.get("label")) if split == "test" else column(record, "score", "label")
    targets = UNLABELLED
    if split != "test" or score not in (None, "", -1, -1.0, "-1"):
        try:
            targets = f"{round(float(score) * 5) / 5:.1f}"
        except (TypeError, ValueError):
            targets = ""
        if targets not in SIMILARITY:
            raise ValueError(f"unknown score {score!r}; wanted a number from 0 to 5")
    return [Example(inputs=named(texts), targets=targets, id=own_id(record), references=labelled(targets))]


def stsb_answer(prediction: str, example: Example) -> str | None:
    """The number predicted, as '3.4'; None if it is no number from 0 to 5."""
    number = number_of(prediction.strip())
    return f"{number:.1f}" if 0 <= number <= 5 else None


def about(name: str, folder: str, train: int, dev: int, test: int) -> dict[str, Any]:
    """What a task of GLUE is called and where it lies; how many examples each split has."""
    return {
        "name": f"glue/{name}",
        "prefix": name,
        "folder": f"glue/{folder}",
        "files": {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)},
        "parts": {"train": ("train_*",)},
        "hub": Hub(id="nyu-mll/glue", config=name),
        "counts": {"train": train, "dev": dev, "test": test},
    }


def mnli(name: str, kind: str, num_dev: int, num_test: int) -> Task:
    """MNLI, whose two dev sets share one training file."""
    fields = {"hypothesis": ("hypothesis", "sentence2"), "premise": ("premise", "sentence1")}
    return replace(
        fields_task(
            INFERENCE,
            fields,
            label=("label", "gold_label"),
            source=("premise",),
            **about("mnli", "MNLI", 392702, num_dev, num_test),
        ),
        name=f"glue/{name}",
        files={"train": ("train.tsv",), "dev": (f"dev_{kind}.tsv",), "test": (f"test_{kind}.tsv",)},
        hub=Hub(
            id="nyu-mll/glue",
            config="mnli",
            splits={"train": "train", "dev": f"validation_{kind}", "test": f"test_{kind}"},
        ),
    )


MRPC = fields_task(
    EQUIVALENCE,
    {"sentence1": ("sentence1", "#1 String"), "sentence2": ("sentence2", "#2 String")},
    {"f1": partial(f1_with_invalid, positive="equivalent"), "accuracy": accuracy},
    label=("label", "Quality"),
    **about("mrpc", "MRPC", 3668, 408, 1725),
)

QQP = replace(
    fields_task(
        DUPLICATION,
        {"question1": ("question1", "text_a"), "question2": ("question2", "text_b")},
        {"f1": partial(f1_with_invalid, positive="duplicate"), "accuracy": accuracy},
        label=("label", "is_duplicate"),
        source=("question1", "question2"),
        **about("qqp", "QQP", 363849, 40430, 390965),
    ),
    read=read_qqp,
    joined_sources=True,
    parts={"train": ("train_*", "sample10k/*.json")},
)

SST2 = fields_task(
    SENTIMENT,
    ("sentence",),
    source=("sentence",),
    nested_sources=True,
    **about("sst2", "SST-2", 67349, 872, 1821),
)

RTE = fields_task(
    ENTAILMENT,
    ("sentence1", "sentence2"),
    source=("sentence1",),
    **about("rte", "RTE", 2490, 277, 3000),
)

COLA = fields_task(
    ACCEPTABILITY,
    ("sentence",),
    {"matthews": matthews},
    read=read_cola,
    **about("cola", "CoLA", 8551, 1043, 1063),
)

STSB = Task(
    labels=SIMILARITY,
    cast=cast_stsb,
    metrics=scored(lambda prediction, example: prediction.strip(), pearson=pearson, spearman=spearman),
    answer=stsb_answer,
    fields=("sentence1", "sentence2"),
    initial_texts=SIMILARITY,
    **about("stsb", "STS-B", 5749, 1500, 1379),
)

QNLI = fields_task(
    ENTAILMENT,
    ("question", "sentence"),
    source=("sentence",),
    **about("qnli", "QNLI", 104743, 5463, 5463),
)

MNLI = mnli("mnli", "matched", 9815, 9796)
MNLI_MISMATCHED = mnli("mnli_mismatched", "mismatched", 9832, 9847)

WNLI = fields_task(
    WINOGRAD,
    ("sentence1", "sentence2"),
    source=("sentence1",),
    **about("wnli", "WNLI", 635, 71, 146),
)
