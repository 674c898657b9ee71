"""A task made of a file of your own and two templates."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

from softprompt.base.names import known_as, nearest, normal
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
    Cast,
    Example,
    Metrics,
    Task,
    column,
    label_answer,
    labelled,
    unknown_label,
)
from softprompt.tasks.template import Template

ASKED = "asked"
"""The split of records whose targets are not read: they need not be there, nor be legal."""


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

    `inputs` and `targets` are templates: "question: {question}" puts the column's text in place, "{input?}" nothing
    where it is missing, "{data.text}" and "{messages[0][content]}" a part of a column; a brace itself is doubled.
    With `labels` any other target is an error, and any other prediction illegal. `metric` is accuracy, f1, em, rouge
    or pearson; by default accuracy with labels, em without. `group_by` names a column whose equal values are scored
    together by em (all right or wrong) and kept on one side of a held-out split.

    Raises ValueError for a template without a column or with anything but column names in its braces, for
    an unknown metric, and for labels that repeat or look the same.
    """
    legal = None if labels is None else tuple(labels)
    if legal is not None and (len(set(legal)) < max(len(legal), 1) or "" in legal):
        raise ValueError(f"labels must be one or more, all different and not empty, not {list(legal)}")
    seen: dict[str, str] = {}
    for label in legal or ():
        if (other := seen.setdefault(normal(label), label)) != label:
            raise ValueError(f"the labels {other!a} and {label!a} look the same; write one of them otherwise")
    metric = metric or ("accuracy" if legal else "em")
    if metric not in METRICS:
        raise ValueError(f"no metric named '{metric}'; there are {', '.join(METRICS)}{nearest(metric, METRICS)}")
    if legal:
        answer = label_answer(legal)
    elif metric in ("accuracy", "pearson"):
        answer = stripped
    else:
        answer = squad_or_own
    endings = [f"{suffix}{zipped}" for suffix in READERS for zipped in ("", *COMPRESSIONS)]
    stems = {"train": ("train",), "dev": ("dev", "val"), "test": ("test",)}
    template = Template(inputs, "inputs")
    return Task(
        name=name or "own",
        labels=legal,
        cast=_cast(template, Template(targets, "targets"), legal, group_by),
        metrics=METRICS[metric](answer, legal),
        answer=answer,
        fields=tuple(name if is_needed else f"{name}?" for name, is_needed in template.columns.items()),
        initial_texts=legal or (),
        template=(inputs, targets),
        files={split: tuple(f"{stem}{end}" for stem in stems[split] for end in endings) for split in stems},
    )


def _cast(inputs: Template, targets: Template, labels: tuple[str, ...] | None, group_by: str | None) -> Cast:
    def cast(record: Mapping[str, Any], split: str) -> list[Example]:
        unlabelled = split == ASKED or (split == "test" and _lacks_targets(record, targets))
        wanted = UNLABELLED if unlabelled else targets.fill(record).strip()
        if labels is not None and not unlabelled:
            label = known_as(wanted, labels)
            if label is None:
                raise unknown_label(wanted, labels)
            wanted = label
        group = None
        if group_by is not None:  # what is only answered may lack the column, and an empty one is no group
            value = record.get(group_by) if unlabelled else column(record, group_by)
            group = None if value in (None, "") else str(value)
        text, right = inputs.fill(record), wanted if labels else normal(wanted)
        return [Example(inputs=text, targets=wanted, id="", references=labelled(right), group=group, source=group)]

    return cast


def _lacks_targets(record: Mapping[str, Any], targets: Template) -> bool:
    try:
        return not all(targets.texts(record).values())
    except ValueError:
        return True


def stripped(prediction: str, example: Example) -> str | None:
    """The prediction without spaces at its ends, in the form that looks the same; None if nothing is left."""
    return normal(prediction) or None


def squad_or_own(prediction: str, example: Example) -> str | None:
    """The prediction as SQuAD compares it, or in lower case where nothing would be left of it: "A", "the", "+"."""
    text = normal(prediction)
    return normalize_squad(text) or text.lower() or None


def f1(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    """Of the second of two labels, the mean over more, and of words without labels."""
    if labels is None:
        return scored(answer, f1=words_f1)
    if len(labels) == 2:
        return scored(answer, f1=partial(f1_with_invalid, positive=labels[1]))
    return scored(answer, macro_f1=partial(macro_f1, labels=labels))


def words_f1(answers: Sequence[str | None], right: Sequence[str]) -> float:
    """The mean F1 of the words."""
    wanted = [normalize_squad(text) or text.strip().lower() for text in right]
    return fmean(token_f1(answer or "", text) for answer, text in zip(answers, wanted, strict=True))


def em(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    """The share of groups (of examples, without) all of whose answers are right."""

    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        check_labelled(predictions, examples)
        answers = [answer(*pair) for pair in zip(predictions, examples, strict=True)]
        if labels is None:
            examples = [replace(e, references=(squad_or_own(e.references[0], e) or "",)) for e in examples]
        return {"em": group_em(answers, examples)}

    return metrics


def rouge_of_text(answer: Answer, labels: tuple[str, ...] | None) -> Metrics:
    """ROUGE of the predictions as they are."""

    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        check_labelled(predictions, examples)
        return rouge(predictions, [example.references[0] for example in examples])

    return metrics


METRICS: dict[str, Callable[[Answer, tuple[str, ...] | None], Metrics]] = {
    "accuracy": lambda answer, labels: scored(answer, accuracy=accuracy),
    "f1": f1,
    "em": em,
    "rouge": rouge_of_text,
    "pearson": lambda answer, labels: scored(answer, pearson=pearson),
}
