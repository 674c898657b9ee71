"""Metrics as T5's evaluation has them (t5/evaluation/metrics.py, qa_utils.py), but in 0..1, not percent.

A prediction that is no legal answer is None here and never counts as right.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from softprompt.tasks.task import Answer, Example, Metrics

Answers = Sequence[str | None]
Measure = Callable[[Answers, Sequence[str]], float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scored(answer: Answer, **measures: Measure) -> Metrics:
    """Metrics that post-process each prediction by `answer` and give each measure's value under its name."""

    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        check_labelled(predictions, examples)
        answers = [answer(*pair) for pair in zip(predictions, examples, strict=True)]
        right = [example.references[0] for example in examples]
        return {name: measure(answers, right) for name, measure in measures.items()}

    return metrics


def check_labelled(predictions: Sequence[str], examples: Sequence[Example]) -> None:
    """Raises ValueError unless there is one prediction for each example, and every example has an answer."""
    if len(predictions) != len(examples):
        raise ValueError(f"{len(predictions)} predictions cannot be scored against {len(examples)} examples")
    if not examples:
        raise ValueError("there are no examples to score")
    for example in examples:
        if not example.references:
            raise ValueError(f"example {example.id!r} has no label to score against (a test file without labels?)")


def accuracy(answers: Answers, right: Sequence[str]) -> float:
    """The share of answers that are the right one."""
    return float(np.mean([a == r for a, r in zip(answers, right, strict=True)]))


def f1_with_invalid(answers: Answers, right: Sequence[str], *, positive: str) -> float:
    """F1 of the positive class; an illegal answer counts as the wrong one of the two classes.

    T5's f1_score_with_invalid. 0 where nothing is or is called positive.
    """
    pairs = list(zip(answers, right, strict=True))
    hits = sum(a == r == positive for a, r in pairs)
    misses = sum(r == positive and a != positive for a, r in pairs)
    false_alarms = sum(r != positive and a != r for a, r in pairs)
    return 2 * hits / max(2 * hits + misses + false_alarms, 1)


def macro_f1(answers: Answers, right: Sequence[str], *, labels: Sequence[str]) -> float:
    """The mean over the labels of each one's F1 (T5's mean_multiclass_f1); 0 for a label unseen."""
    pairs = list(zip(answers, right, strict=True))
    hits = Counter(r for a, r in pairs if a == r)
    called, real = Counter(a for a, _ in pairs), Counter(r for _, r in pairs)
    return float(np.mean([2 * hits[label] / max(called[label] + real[label], 1) for label in labels]))


def matthews(answers: Answers, right: Sequence[str]) -> float:
    """Matthews correlation over all classes, -1 to 1; illegal answers are a class of their own.

    0 where either side never varies.
    """
    num = len(right)
    hits = sum(a == r for a, r in zip(answers, right, strict=True))
    called, real = Counter(answers), Counter(right)
    expected = sum(called[label] * real[label] for label in real)
    spread = (num**2 - sum(n**2 for n in called.values())) * (num**2 - sum(n**2 for n in real.values()))
    return (hits * num - expected) / spread**0.5 if spread else 0.0


def number_of(answer: str | None) -> float:
    """The number an answer spells, or -1 (T5's string_to_float)."""
    try:
        number = float(answer) if answer else -1.0
    except ValueError:
        return -1.0
    return number if np.isfinite(number) else -1.0


def pearson(answers: Answers, right: Sequence[str]) -> float:
    """Pearson correlation of the numbers spelled, -1 to 1; 0 (ours, not NaN) where a side never varies."""
    return _correlation(*_numbers(answers, right))


def spearman(answers: Answers, right: Sequence[str]) -> float:
    """Spearman rank correlation, ties sharing their mean rank, -1 to 1; 0 where either side never varies."""
    ranks = []
    for numbers in _numbers(answers, right):
        _, places, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    return _correlation(*ranks)


def _numbers(answers: Answers, right: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([number_of(a) for a in answers]), np.array([number_of(r) for r in right])


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def normalize_squad(text: str) -> str:
    """The text as SQuAD compares it: lower case, no punctuation, no articles, single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the words two normalised texts share (T5's _f1_score)."""
    words, wanted = prediction.split(), reference.split()
    shared = sum((Counter(words) & Counter(wanted)).values())
    return 2 * shared / (len(words) + len(wanted)) if shared else 0.0


def squad_answer(prediction: str, example: Example) -> str | None:
    """The prediction as SQuAD compares it; None if nothing is left."""
    return normalize_squad(prediction) or None


def squad_metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """{"em", "f1"}: means over predictions of the best match with any of its references, SQuAD-normalised."""
    check_labelled(predictions, examples)
    exact, overlap = [], []
    for prediction, example in zip(predictions, examples, strict=True):
        given, wanted = normalize_squad(prediction), [normalize_squad(text) for text in example.references]
        exact.append(given in wanted)
        overlap.append(max(token_f1(given, text) for text in wanted))
    return {"em": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def squad_metrics_by_group(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """`squad_metrics` over the first example of each group (ReCoRD; T5's deduplicate_metric)."""
    check_labelled(predictions, examples)
    first: dict[str, int] = {}
    for place, example in enumerate(examples):
        first.setdefault(example.group or example.id, place)
    return squad_metrics([predictions[i] for i in first.values()], [examples[i] for i in first.values()])


def group_em(answers: Answers, examples: Sequence[Example]) -> float:
    """The share of groups all of whose answers are right (T5's mean_group_metric of all_match)."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for answer, example in zip(answers, examples, strict=True):
        groups[example.group or example.id].append(answer == example.references[0])
    return float(np.mean([all(hits) for hits in groups.values()]))


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"rouge1", "rouge2", "rougeLsum"}: mean F-measures; sentences end at ' . ' for rougeLsum, as in T5.

    Plain means; T5 takes the middle of a bootstrap, which differs by its resampling noise.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeLsum"]
    scorer = RougeScorer(names)
    scores = [
        scorer.score(target=reference.replace(" . ", " .\n"), prediction=prediction.replace(" . ", " .\n"))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in names}
