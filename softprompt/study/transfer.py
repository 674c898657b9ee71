"""Examples of other tasks, answered with what was trained on one: at the end, and along training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from softprompt.answering import Engine, Prediction, predict, right_answers
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE, World
from softprompt.models import Row, TextFormat
from softprompt.tasks import Example, Task
from softprompt.training import Estimate, Member, Method, Observer


@dataclass(frozen=True, kw_only=True)
class Other:
    """Examples of another task than the trained one, answered with its prompt and judged as their own."""

    task: Task
    part: str
    """The split they are of."""
    examples: list[Example]
    rows: list[Row]
    """Their inputs, in the text of the trained task."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a label of the trained task is called there."""

    def spread(self, most: int) -> Other:
        """About so many of them, evenly over the set, since files keep together what is about one text; what is scored
        together stays together.
        """
        groups: dict[str, list[int]] = {}
        for place, example in enumerate(self.examples):
            groups.setdefault(example.group or example.id, []).append(place)
        in_order = list(groups.values())
        count = min(most * len(in_order) // len(self.examples), len(in_order)) or 1
        places = [place for i in range(count) for place in in_order[i * len(in_order) // count]]
        return replace(self, examples=[self.examples[i] for i in places], rows=[self.rows[i] for i in places])

    def answers(
        self,
        engine: Engine,
        prompt: int,
        trained: Task,
        form: TextFormat,
        **options: Any,
    ) -> list[Prediction]:
        """The answers to them with one of the engine's prompts. `form`: the trained task's. options: of `predict`."""
        worn = [prompt] * len(self.rows)
        found = predict(engine, trained, self.examples, self.rows, worn, form, **options)
        return [replace(answer, text=self.labels.get(answer.text, answer.text)) for answer in found]


def example_scores(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[float]:
    """Each answer's own score, 0..1: the F1 of its words where the task counts those, else 1 if it is right."""
    if task.labels or "f1" not in task.metrics([""], examples[:1]):
        return [float(right) for right in right_answers(task, examples, predictions)]
    return [task.metrics([p.text], [e])["f1"] for e, p in zip(examples, predictions, strict=True)]


def digest(others: Sequence[Other]) -> dict[str, str]:
    """By task, what changes with any of its rows."""
    return {
        other.task.name: hashlib.sha256(repr([row.ids for row in other.rows]).encode()).hexdigest() for other in others
    }


def seconds_with(cost: Estimate, num_others: int) -> float:
    """How long a run takes by its estimate that scores so many other sets, and then its dev set with them: along
    training and at the end, each as long as its own.
    """
    if not num_others:
        return cost.total_s
    along = cost.num_evaluations * cost.evaluation_s * (1 + num_others)
    return cost.total_s + along + cost.dev_s * num_others


def observer(others: Sequence[Other], method: Method, member: Member, watch: Watch, world: World = ALONE) -> Observer:
    """Scores of other examples along the training of one member, about `num_selection` of each task.

    They choose nothing. In the member's history they are `others`: by task, the scores of the examples.
    """
    few = [other.spread(member.config.num_selection) for other in others]

    def observe(i: int, values: Tensor) -> dict[str, Any]:
        engine, (worn,) = method.engine([values])
        scores = {}
        for other in few:
            told = watch.phase(f"score {other.task.name}, along training", len(other.rows) // world.size)
            options: dict[str, Any] = {"scoring": member.config.scoring, "progress": told, "world": world}
            answers = other.answers(engine, worn, member.task, member.form, **options)
            of_examples = example_scores(other.task, other.examples, answers)
            scores[other.task.name] = [round(score, 3) for score in of_examples]
        return {"others": scores}

    return observe
