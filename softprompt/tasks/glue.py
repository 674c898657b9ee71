"""GLUE's tasks in T5's text without the task's name (t5/data/preprocessors.py, glue; glue_utils.py).

T5 writes a record's fields in the order of their names. Counts are the paper's table 7 for MRPC and QQP and
T5's mixture weights or GLUE's own for the rest. Official files are tab-separated without quoting.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.tasks.metrics import accuracy, f1_with_invalid, matthews, number_of, pearson, scored, spearman
from softprompt.tasks.records import Numbered, file_format, open_text, opened, read_records, read_tsv
from softprompt.tasks.task import (
    UNLABELLED,
    Answer,
    Example,
    Hub,
    Metrics,
    Task,
    column,
    fields_cast,
    label_answer,
    labelled,
    named,
    own_id,
    text_column,
)

EQUIVALENCE = ("not_equivalent", "equivalent")
DUPLICATION = ("not_duplicate", "duplicate")
SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "not_entailment")
ACCEPTABILITY = ("unacceptable", "acceptable")
INFERENCE = ("entailment", "neutral", "contradiction")
WINOGRAD = ("not_entailment", "entailment")
SIMILARITY = tuple(f"{step / 5:.1f}" for step in range(26))
"""'0.0', '0.2' ... '5.0': what STS-B's scores are rounded to (t5/data/preprocessors.py, stsb)."""

COLA_COLUMNS = ("source", "label", "judgement", "sentence")
QQP_COLUMNS = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")

_FILES = {"train": ("train.tsv",), "dev": ("dev.tsv",), "test": ("test.tsv",)}
_PARTS = {"train": ("train_*",)}


def _field(name: str, *others: str) -> dict[str, tuple[str, ...]]:
    return {name: (name, *others)}


def read_cola(path: Path) -> Numbered:
    """CoLA's records; its train and dev files have no line of column names, its test file has."""
    return read_tsv(path, columns=COLA_COLUMNS, known=("index",))


def read_qqp(path: Path) -> Numbered:
    """QQP's records, with or without column names, a space in the last tab's place mended."""
    if file_format(path) != ".tsv":
        return read_records(path)
    return opened(path, _qqp_records)


def _qqp_records(path: Path) -> Numbered:
    with open_text(path) as file:
        names: Sequence[str] = ()
        for number, line in enumerate(file, 1):
            row = line.rstrip("\r\n").split("\t")
            if not names:
                headed = row[0] in ("id", "test_id")
                names = row if headed else QQP_COLUMNS
                if headed:
                    continue
            row = _mended(row, names)
            if len(row) != len(names):
                raise ValueError(f"{path}, line {number}: {len(row)} fields, but there are {len(names)} columns")
            yield number, dict(zip(names, row, strict=True))


def _mended(row: list[str], names: Sequence[str]) -> list[str]:
    text, space, label = row[-1].rpartition(" ")
    if len(row) == len(names) - 1 and space and label in ("0", "1"):
        return [*row[:-1], text, label]
    return row


def cast_stsb(record: Mapping[str, Any], split: str) -> list[Example]:
    """One example whose targets are the score rounded to the nearest 0.2, as '3.4'."""
    texts = {name: text_column(record, name) for name in ("sentence1", "sentence2")}
    value = record.get("score", record.get("label")) if split == "test" else column(record, "score", "label")
    unlabelled = split == "test" and value in (None, "", -1, -1.0, "-1")
    targets = UNLABELLED if unlabelled else _rounded(value)
    example = Example(inputs=named(texts), targets=targets, id=own_id(record), references=labelled(targets))
    return [example]


def _rounded(score: Any) -> str:
    try:
        targets = f"{round(float(score) * 5) / 5:.1f}"
    except (TypeError, ValueError):
        targets = ""
    if targets not in SIMILARITY:
        raise ValueError(f"unknown score {score!r}; wanted a number from 0 to 5")
    return targets


def stsb_answer(prediction: str, example: Example) -> str | None:
    """The number predicted, as '3.4'; None if it is no number from 0 to 5."""
    number = number_of(prediction.strip())
    return f"{number:.1f}" if 0 <= number <= 5 else None


def _spelled(prediction: str, example: Example) -> str | None:
    return prediction.strip()


def _paraphrase(answer: Answer, positive: str) -> Metrics:
    return scored(answer, f1=partial(f1_with_invalid, positive=positive), accuracy=accuracy)


def _task(
    name: str,
    folder: str,
    fields: Mapping[str, tuple[str, ...]],
    labels: tuple[str, ...],
    counts: tuple[int, int, int],
    **options: Any,
) -> Task:
    """A task of labelled fields; `options` replace what follows from the labels."""
    answer = label_answer(labels)
    label, source = options.pop("label", ("label",)), options.pop("source", None)
    config = options.pop("config", name)
    return Task(
        **{
            "name": f"glue/{name}",
            "labels": labels,
            "cast": fields_cast(fields, labels, label=label, source=source),
            "metrics": scored(answer, accuracy=accuracy),
            "answer": answer,
            "initial_texts": labels,
            "prefix": config,
            "folder": f"glue/{folder}",
            "files": _FILES,
            "parts": _PARTS,
            "hub": Hub(id="nyu-mll/glue", config=config),
            "counts": dict(zip(("train", "dev", "test"), counts, strict=True)),
            **options,
        }
    )


def _mnli(name: str, kind: str, num_dev: int, num_test: int) -> Task:
    """MNLI, whose two dev sets share one training file."""
    return _task(
        name,
        "MNLI",
        {"hypothesis": ("hypothesis", "sentence2"), "premise": ("premise", "sentence1")},
        INFERENCE,
        (392702, num_dev, num_test),
        label=("label", "gold_label"),
        source="premise",
        config="mnli",
        files={"train": ("train.tsv",), "dev": (f"dev_{kind}.tsv",), "test": (f"test_{kind}.tsv",)},
        hub=Hub(
            id="nyu-mll/glue",
            config="mnli",
            splits={"train": "train", "dev": f"validation_{kind}", "test": f"test_{kind}"},
        ),
    )


MRPC = _task(
    "mrpc",
    "MRPC",
    _field("sentence1", "#1 String") | _field("sentence2", "#2 String"),
    EQUIVALENCE,
    (3668, 408, 1725),
    label=("label", "Quality"),
    metrics=_paraphrase(label_answer(EQUIVALENCE), "equivalent"),
)

QQP = _task(
    "qqp",
    "QQP",
    _field("question1", "text_a") | _field("question2", "text_b"),
    DUPLICATION,
    (363849, 40430, 390965),
    label=("label", "is_duplicate"),
    metrics=_paraphrase(label_answer(DUPLICATION), "duplicate"),
    read=read_qqp,
    source=("question1", "question2"),
    joined_sources=True,
    parts={"train": ("train_*", "sample10k/*.json")},
)

SST2 = _task("sst2", "SST-2", _field("sentence"), SENTIMENT, (67349, 872, 1821), source="sentence", nested_sources=True)

RTE = _task(
    "rte",
    "RTE",
    _field("sentence1") | _field("sentence2"),
    ENTAILMENT,
    (2490, 277, 3000),
    source="sentence1",
)

COLA = _task(
    "cola",
    "CoLA",
    _field("sentence"),
    ACCEPTABILITY,
    (8551, 1043, 1063),
    metrics=scored(label_answer(ACCEPTABILITY), matthews=matthews),
    read=read_cola,
)

STSB = _task(
    "stsb",
    "STS-B",
    {},
    SIMILARITY,
    (5749, 1500, 1379),
    cast=cast_stsb,
    metrics=scored(_spelled, pearson=pearson, spearman=spearman),
    answer=stsb_answer,
)

QNLI = _task(
    "qnli",
    "QNLI",
    _field("question") | _field("sentence"),
    ENTAILMENT,
    (104743, 5463, 5463),
    source="sentence",
)

MNLI = _mnli("mnli", "matched", 9815, 9796)
MNLI_MISMATCHED = _mnli("mnli_mismatched", "mismatched", 9832, 9847)

WNLI = _task(
    "wnli",
    "WNLI",
    _field("sentence1") | _field("sentence2"),
    WINOGRAD,
    (635, 71, 146),
    source="sentence1",
)
