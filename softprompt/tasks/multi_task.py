"""Several tasks as one, as T5 mixes them for multi-task training: the task's name in front of every input."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.tasks.task import Example, Task, headline


def mixture(tasks: Sequence[Task]) -> Task:
    """A task of the tasks' `mixed` examples; its metrics are their headlines."""
    by_name = {task.name: task for task in tasks}

    def of(example: Example) -> Task:
        return by_name[example.id.split(" ", 1)[0]]

    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        answered: dict[str, list[tuple[str, Example]]] = {}
        for prediction, example in zip(predictions, examples, strict=True):
            answered.setdefault(of(example).name, []).append((prediction, example))
        return {name: headline(by_name[name].metrics(*zip(*pairs, strict=True))) for name, pairs in answered.items()}

    def cast(record: Mapping[str, Any], split: str) -> list[Example]:
        raise ValueError("a mixture has no records of its own; read those of its tasks")

    return Task(
        name=" + ".join(by_name),
        labels=None,
        cast=cast,
        metrics=metrics,
        answer=lambda prediction, example: of(example).answer(prediction, example),
    )


def mixed(task: Task, example: Example) -> Example:
    """An example as a mixture has it: the task's name in front of its inputs and its id, its labels to choose from."""
    inputs = f"{task.prefix} {example.inputs}" if task.prefix else example.inputs  # SQuAD-like tasks have none
    choices = example.choices or task.labels
    return replace(example, inputs=inputs, id=f"{task.name} {example.id}", choices=choices)
