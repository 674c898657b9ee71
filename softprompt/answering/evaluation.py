"""How good a prompt is: predictions, metrics, ensembles, and the rows that keep results.

Two ways to answer: `generate` (greedy decoding; an answer that is no legal label is wrong; the paper's way) and
`rank` (the candidate with the highest summed log-probability).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from softprompt.answering.confusion import Confusion, confusion_of
from softprompt.answering.engine import Engine, Prediction
from softprompt.base.watch import Progress, Watch
from softprompt.cluster import ALONE, World
from softprompt.models import FrozenLM, Row, TextFormat, encode_examples, encode_target
from softprompt.tasks import Example, Task, headline

SCORINGS = ("generate", "rank")


@dataclass(frozen=True)
class Evaluation:
    """The answers of one prompt to one split, and what they are worth."""

    predictions: list[Prediction]
    metrics: dict[str, float]
    """Metric values in 0..1."""
    illegal_rate: float
    """The share of answers that the task's labels do not contain (or that are empty, for free text)."""
    confusion: Confusion = field(default_factory=dict)
    """Which label was taken for which."""

    @property
    def headline(self) -> float:
        """The mean of the metrics (paper, section 3)."""
        return headline(self.metrics)


def candidates_of(
    task: Task, example: Example, form: TextFormat, tokenizer: Any, known: dict[str, list[int]]
) -> tuple[tuple[str, ...], list[list[int]]]:
    """The candidates of an example, as text and as ids. ValueError for a task that has none."""
    check_can_rank(task, [example])
    texts = example.choices or task.labels or ()
    for text in texts:
        if text not in known:
            known[text] = encode_target(text, form, tokenizer)
    return texts, [known[text] for text in texts]


def can_rank(task: Task, examples: Sequence[Example]) -> bool:
    """Whether every example has candidates: the task's labels, or choices of its own."""
    return bool(task.labels) or all(example.choices for example in examples)


def check_can_rank(task: Task, examples: Sequence[Example]) -> None:
    """ValueError unless every example has candidates."""
    if not can_rank(task, examples):
        raise ValueError(f"{task.name} has free-text targets, nothing to rank; use --scoring generate")


def predict(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    rows: Sequence[Row],
    member: Sequence[int],
    form: TextFormat,
    *,
    scoring: str,
    progress: Progress | None = None,
    world: World = ALONE,
) -> list[Prediction]:
    """The answer to each row, which wears the prompt `member` names. ValueError for an unknown scoring.

    world: the processes that each answer a share of the rows, and get all answers.
    """
    check_scoring(scoring)
    if world.size > 1:
        shares = (world.share(items) for items in (examples, rows, member))
        return world.merged(predict(engine, task, *shares, form, scoring=scoring, progress=progress))
    tasks, forms = [task] * len(rows), [form] * len(rows)
    return predict_each(engine, tasks, examples, rows, member, forms, scoring=scoring, progress=progress)


def predict_each(
    engine: Engine,
    tasks: Sequence[Task],
    examples: Sequence[Example],
    rows: Sequence[Row],
    member: Sequence[int],
    forms: Sequence[TextFormat],
    *,
    scoring: str,
    progress: Progress | None = None,
) -> list[Prediction]:
    """As `predict`, of rows that have a task and a text format each; generated, with one length of answers."""
    if scoring == "generate":
        answers = engine.generate(rows, member, max_target_length=forms[0].max_target_length, progress=progress)
        return [replace(answer, text=form.answer_of(answer.text)) for form, answer in zip(forms, answers, strict=True)]
    known: dict[TextFormat, dict[str, list[int]]] = {form: {} for form in forms}
    choices = []
    for task, example, form in zip(tasks, examples, forms, strict=True):
        choices.append(candidates_of(task, example, form, engine.lm.tokenizer, known[form]))
    scored = engine.label_scores(rows, member, [ids for _, ids in choices], progress=progress)
    return [best(dict(zip(texts, values, strict=True))) for (texts, _), values in zip(choices, scored, strict=True)]


def predict_all(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    rows: Sequence[Row],
    members: Sequence[int],
    form: TextFormat,
    *,
    scoring: str,
    **options: Any,
) -> list[list[Prediction]]:
    """Each member's answers to all examples, in mixed batches of one pass; otherwise as `predict`."""
    mixed = predict(
        engine,
        task,
        [example for example in examples for _ in members],
        [row for row in rows for _ in members],
        [*members] * len(rows),
        form,
        scoring=scoring,
        **options,
    )
    return [mixed[place :: len(members)] for place in range(len(members))]


def check_scoring(scoring: str) -> None:
    """ValueError unless `scoring` is one of SCORINGS."""
    if scoring not in SCORINGS:
        raise ValueError(f"no scoring named {scoring!r}; choose {' or '.join(SCORINGS)}")


def judge(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Evaluation:
    """What predictions are worth."""
    texts = [prediction.text for prediction in predictions]
    illegal = sum(task.answer(t, e) is None for t, e in zip(texts, examples, strict=True))
    return Evaluation(
        list(predictions),
        task.metrics(texts, examples),
        illegal / max(len(texts), 1),
        confusion_of(task, examples, texts),
    )


def right_answers(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> str:
    """'1' for each right answer and '0' for each wrong one, in the order of the examples, for paired comparisons."""

    def is_right(text: str, example: Example) -> bool:
        alone = {} if task.labels else task.metrics([text], [example])
        return alone["em"] == 1 if "em" in alone else task.answer(text, example) in example.references

    return "".join("1" if is_right(p.text, e) else "0" for e, p in zip(examples, predictions, strict=True))


def vote(task: Task, example: Example, predictions: Sequence[Prediction]) -> Prediction:
    """The ensemble's answer (paper, section 6): the majority of the members' post-processed answers (`Task.answer`).

    An illegal answer votes for nothing. Ties, on which the paper is silent, go to the answer with the higher
    summed log-probability. The text is that of the winning answer's most confident member.
    """
    answers = [(task.answer(prediction.text, example), prediction) for prediction in predictions]
    counts = Counter(answer for answer, _ in answers if answer is not None)
    if not counts:
        return max(predictions, key=lambda prediction: prediction.log_prob)

    def support(answer: str) -> float:
        """Summed log-probability of an answer over the members: all of them if they scored it, else its voters."""
        voters = [prediction for given, prediction in answers if given == answer]
        texts = {prediction.text for prediction in voters}
        everyone = [[p.scores[text] for text in texts if text in p.scores] if p.scores else [] for p in predictions]
        if all(everyone):
            return sum(max(scores) for scores in everyone)
        return sum(prediction.log_prob for prediction in voters)

    most = max(counts.values())
    winner = max((answer for answer, count in counts.items() if count == most), key=support)
    return max((p for answer, p in answers if answer == winner), key=lambda prediction: prediction.log_prob)


def ensemble(task: Task, examples: Sequence[Example], members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """The vote on every example; members: each prompt's predictions, in the examples' order."""
    return [vote(task, example, votes) for example, votes in zip(examples, zip(*members, strict=True), strict=True)]


def best(scores: dict[str, float]) -> Prediction:
    """The candidate with the highest score; of equals, the first."""
    text = max(scores, key=scores.__getitem__)
    return Prediction(text, scores[text], scores)


def evaluate(
    lm: FrozenLM,
    prompts: Sequence[Tensor],
    task: Task,
    examples: Sequence[Example],
    form: TextFormat,
    *,
    scoring: str = "rank",
    watch: Watch | None = None,
    world: World = ALONE,
) -> list[Evaluation]:
    """What each prompt scores on the examples, all prompts in mixed batches of one pass.

    An empty list of prompts scores the bare model. world: the processes that each answer a share.
    """
    rows = encode_examples(examples, form, lm.tokenizer)
    worn = list(range(len(prompts))) or [-1]
    progress = (watch or Watch()).phase(f"score {task.name}", len(rows) * len(worn) // world.size)
    engine = Engine(lm, prompts)
    answers = predict_all(engine, task, examples, rows, worn, form, scoring=scoring, progress=progress, world=world)
    return [judge(task, examples, predictions) for predictions in answers]
