"""A task made of a file of your own and two templates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from string import Formatter
from typing import Any

from softprompt.base.names import nearest
from softprompt.tasks.metrics import (
    accuracy,
    check_labelled,
    f1_with_invalid,
    group_em,
    macro_f1,
    normalize_squad,
    pearson,
    rouge,
    scored,
    token_f1,
)
from softprompt.tasks.records import COMPRESSIONS, READERS
from softprompt.tasks.task import (
    UNLABELLED,
    Answer,
    Example,
    Metrics,
    Task,
    column,
    label_answer,
    labelled,
    text_column,
)

_SUFFIXES = tuple(f"{suffix}{zipped}" for suffix in READERS for zipped in ("", *COMPRESSIONS))


def file_task(
    *,
    inputs: str,
    targets: str,
    labels: Sequence[str] | None = None,
    metric: str | None = None,
    group_by: str | None = None,
    name: str | None = None,
) -> Task:
    """The task of a file with a line for each example.

    `inputs` and `targets` are templates: "question: {question}" puts the column's text in place; a brace
    itself is doubled. With `labels` any other target is an error, and any other prediction illegal. `metric`
    is accuracy, f1, em, rouge or pearson; by default accuracy with labels, em without. `group_by` names a
    column whose equal values are scored together by em (all right or wrong) and kept on one side of a
    held-out split.

    Raises ValueError for a template without a column or with anything but column names in its braces, for
    an unknown metric, and for labels that repeat.
    """
    legal = None if labels is None else tuple(labels)
    if legal is not None and (len(set(legal)) < max(len(legal), 1) or "" in legal):
        raise ValueError(f"labels must be one or more, all different and not empty, not {list(legal)}")
    answer = label_answer(legal) if legal else _squad_or_own
    metric = metric or ("accuracy" if legal else "em")
    if metric not in METRICS:
        raise ValueError(f"no metric named '{metric}'; there are {', '.join(METRICS)}{nearest(metric, METRICS)}")
    if metric in ("accuracy", "pearson"):
        answer = answer if legal else _stripped
    return Task(
        name=name or "own",
        labels=legal,
        cast=_cast(Template(inputs, "inputs"), Template(targets, "targets"), legal, group_by),
        metrics=METRICS[metric](answer, legal),
        answer=answer,
        initial_texts=legal or (),
        template=(inputs, targets),
        files={
            split: tuple(f"{stem}{suffix}" for stem in stems for suffix in _SUFFIXES)
            for split, stems in {"train": ("train",), "dev": ("dev", "val"), "test": ("test",)}.items()
        },
    )


class Template:
    """Text with columns' names in braces."""

    def __init__(self, text: str, role: str) -> None:
        """Raises ValueError, with `role` in it, for a template without columns or not of this form."""
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"the {role} template '{text}' has unmatched braces (double one to mean it)") from error
        if any(format_spec or conversion for _, _, format_spec, conversion in pieces):
            raise ValueError(f"the {role} template '{text}' may hold only {{column}} in its braces")
        self.pieces = [(literal, name) for literal, name, _, _ in pieces]
        self.columns = [name for _, name in self.pieces if name is not None]
        self.role = role
        if not any(self.columns) or "" in self.columns:
            raise ValueError(f"the {role} template '{text}' names no column; write one as {{column}}")

    def fill(self, record: Mapping[str, Any]) -> str:
        """The text with the record's values. Raises ValueError if a column is missing, or all are empty."""
        texts = {name: _text(record, name) for name in self.columns}
        if not any(text.strip() for text in texts.values()):
            raise ValueError(f"the {self.role.removesuffix('s')} is empty: no text in {', '.join(texts)}")
        return "".join(literal + (texts[name] if name is not None else "") for literal, name in self.pieces)


def _text(record: Mapping[str, Any], name: str) -> str:
    return "" if column(record, name) is None else text_column(record, name)


def _cast(
    inputs: Template, targets: Template, labels: tuple[str, ...] | None, group_by: str | None
) -> Callable[[Mapping[str, Any], str], list[Example]]:
    def cast(record: Mapping[str, Any], split: str) -> list[Example]:
        unlabelled = split == "test" and not all(record.get(name) not in (None, "") for name in targets.columns)
        wanted = UNLABELLED if unlabelled else targets.fill(record).strip()
        if labels is not None and not unlabelled and wanted not in labels:
            shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
            raise ValueError(f"unknown label {wanted!r}; the labels are {shown}{nearest(wanted, labels)}")
        group = None if group_by is None else _group(record, group_by, needs_one=not unlabelled)
        return [
            Example(
                inputs=inputs.fill(record),
                targets=wanted,
                id="",
                references=labelled(wanted),
                group=group,
                source=group,
            )
        ]

    return cast


def _group(record: Mapping[str, Any], name: str, *, needs_one: bool) -> str | None:
    """What the record stands together with; what is only answered may lack the column, and an empty one is no group."""
    value = column(record, name) if needs_one else record.get(name)
    return None if value in (None, "") else str(value)


def _stripped(prediction: str, example: Example) -> str | None:
    return prediction.strip() or None


def _squad_or_own(prediction: str, example: Example) -> str | None:
    return _words(prediction) or None


def _words(text: str) -> str:
    """The text as SQuAD compares it, or in lower case where nothing would be left of it: "A", "the", "+"."""
    return normalize_squad(text) or text.strip().lower()


def _accuracy(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    return scored(answer, accuracy=accuracy)


def _f1(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    """Of the second of two labels, the mean over more, and of words without labels."""
    if labels is None:
        return scored(answer, f1=_words_f1)
    if len(labels) == 2:
        return scored(answer, f1=partial(f1_with_invalid, positive=labels[1]))
    return scored(answer, macro_f1=partial(macro_f1, labels=labels))


def _words_f1(answers: Sequence[str | None], right: Sequence[str]) -> float:
    return fmean(token_f1(a or "", _words(r)) for a, r in zip(answers, right, strict=True))


def _em(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        check_labelled(predictions, examples)
        answers = [answer(*pair) for pair in zip(predictions, examples, strict=True)]
        if labels is None:
            examples = [replace(e, references=(_words(e.references[0]),)) for e in examples]
        return {"em": group_em(answers, examples)}

    return metrics


def _rouge(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        check_labelled(predictions, examples)
        return rouge(predictions, [example.references[0] for example in examples])

    return metrics


def _pearson(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    return scored(answer, pearson=pearson)


METRICS: dict[str, Callable[[Answer, tuple[str, ...] | None], Metrics]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "em": _em,
    "rouge": _rouge,
    "pearson": _pearson,
}
