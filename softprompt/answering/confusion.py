"""Where the answers of a task with labels are wrong: which label was taken for which, and how good each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from softprompt.tasks import Example, Task

Confusion = dict[str, dict[str, int]]
"""How often each label was answered where each was right: {right: {answered: count}}, with every label of the task in
its order; what is no label is answered as ''. Empty for a task without labels."""


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """How good the answers of one label are."""

    precision: float | None
    """The share of its answers that are right; None where it was never answered."""
    recall: float | None
    """The share of its examples that were answered with it; None where there are none."""
    count: int
    """Its examples."""


def confusion_of(task: Task, examples: Sequence[Example], texts: Sequence[str]) -> Confusion:
    """The confusion of answers; examples whose right answer is no label of the task are left out."""
    counts: dict[str, Counter[str]] = {label: Counter() for label in task.labels or ()}
    for example, text in zip(examples, texts, strict=True):
        right = example.references[0] if example.references else None
        if right in counts:
            counts[right][task.answer(text, example) or ""] += 1
    return {right: dict(answers) for right, answers in counts.items()}


def added(confusions: Iterable[Confusion]) -> Confusion:
    """The sum of several prompts' confusions."""
    total: dict[str, Counter[str]] = {}
    for confusion in confusions:
        for right, answers in confusion.items():
            total.setdefault(right, Counter()).update(answers)
    return {right: dict(answers) for right, answers in total.items()}


def by_label(confusion: Confusion) -> dict[str, LabelScore]:
    """Each label's scores."""
    answered = sum(map(Counter, confusion.values()), Counter[str]())
    scores = {}
    for label, answers in confusion.items():
        hits, count = answers.get(label, 0), sum(answers.values())
        scores[label] = LabelScore(
            precision=hits / answered[label] if answered[label] else None,
            recall=hits / count if count else None,
            count=count,
        )
    return scores


def commonest(confusion: Confusion, most: int = 5) -> list[tuple[str, str, int]]:
    """What is most often taken for another: (right, answered, count), the commonest first."""
    wrong = Counter[tuple[str, str]]()
    for right, answers in confusion.items():
        wrong.update({(right, answer): count for answer, count in answers.items() if answer != right})
    return [(right, answer, count) for (right, answer), count in wrong.most_common(most)]
