"""Tasks whose answer is one of a few labels, and the labels that several suites share."""

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.tasks.metrics import Measure, accuracy, scored
from softprompt.tasks.task import Cast, Example, Task, label_answer, label_of, labelled, named, own_id, text_column

SENTIMENT = ("negative", "positive")
ENTAILMENT = ("entailment", "not_entailment")


def labelled_task(
    labels: tuple[str, ...], cast: Cast, measures: Mapping[str, Measure] | None = None, **about: Any
) -> Task:
    """A task that writes one of the labels; its measures, accuracy alone unless given, count any other answer wrong."""
    answer = label_answer(labels)
    return Task(
        labels=labels,
        cast=cast,
        metrics=scored(answer, **(measures or {"accuracy": accuracy})),
        answer=answer,
        initial_texts=labels,
        **about,
    )


def fields_task(
    labels: tuple[str, ...],
    fields: Sequence[str] | Mapping[str, Sequence[str]],
    measures: Mapping[str, Measure] | None = None,
    *,
    label: Sequence[str] = ("label",),
    source: Sequence[str] = (),
    **about: Any,
) -> Task:
    """A labelled task whose cast names each field and gives its text: 'premise: ... question: ...'.

    fields: the names in the order of the text, or to each the columns it may stand in. label: the columns the label may
    stand in. source: the fields whose texts are the example's source, a line each (`Task.joined_sources`).
    """
    columns = fields if isinstance(fields, Mapping) else {name: (name,) for name in fields}

    def cast(record: Mapping[str, Any], split: str) -> list[Example]:
        texts = {name: text_column(record, *names) for name, names in columns.items()}
        targets = label_of(record, split, labels, *label)
        example = Example(
            inputs=named(texts),
            targets=targets,
            id=own_id(record),
            references=labelled(targets),
            source="\n".join(texts[name] for name in source) or None,
        )
        return [example]

    return labelled_task(labels, cast, measures, fields=tuple(names[0] for names in columns.values()), **about)
