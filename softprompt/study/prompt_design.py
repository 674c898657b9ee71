"""Prompt design: the bare model asked in words, with and without examples in front, as the paper compares with.

Examples in front are the embeddings of their ids, worn as a prompt is worn: a decoder-only model runs them once.
Shapes: p tokens of the examples, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from softprompt.answering import Engine, Evaluation, Prediction, best, can_rank, judge, predict
from softprompt.base.watch import Progress
from softprompt.models import NO_PROMPT, SEPARATOR, FrozenLM, TextFormat, encode_examples
from softprompt.tasks import Example, Task


@dataclass(frozen=True)
class Wording:
    """One way to ask the bare model. '{labels}' becomes 'this, that or another'."""

    name: str
    before: str
    after: str
    chat: bool = False
    """Whether the text is a user's turn in the model's chat template."""

    def __str__(self) -> str:
        text = f"{self.before}{{inputs}}{self.after}"
        return f"chat template: {text}" if self.chat else text


# Ours. The first is what prompts are trained on; an encoder-decoder has no separator there.
WORDINGS = (
    Wording("separator", "", SEPARATOR),
    Wording("options", "", "\nOptions: {labels}\nThe right option is"),
    Wording("question", "", "\nQuestion: which is it, {labels}?\nAnswer:"),
    Wording("instruction", "Choose the answer that fits the text: {labels}.\n\nText: ", "\n\nChosen answer:"),
    Wording("label", "Text: ", "\nLabel:"),
    Wording("chat", "Answer with one of these: {labels}.\n\n", "", chat=True),
)
# Ours, for tasks without labels: the answer is a text, written or chosen among the example's own candidates.
FREE_WORDINGS = (
    WORDINGS[0],
    Wording("answer", "", "\nAnswer:"),
    Wording("few words", "", "\nThe answer, in a few words:"),
    Wording("instruction", "Read the text and answer it.\n\nText: ", "\n\nAnswer:"),
    Wording("is", "Text: ", "\nThe right answer is"),
    Wording("chat", "Answer in as few words as you can.\n\n", "", chat=True),
)
SHOTS = (0, 4, 16, -1)  # paper, section 3.1, compares with GPT-3's few-shot; -1: as many as the context holds
BETWEEN = "\n\n"  # ours: between two examples
# Content-free inputs of contextual calibration (Zhao et al. 2021, section 5): what the model answers to nothing.
CONTENT_FREE = ("N/A", "[MASK]", "nothing")


def shots_name(shots: int) -> str:
    """'4 shots', or 'full shots' for as many as the context holds."""
    return f"{'full' if shots < 0 else shots} shots"


@dataclass(frozen=True)
class Design:
    """A text prompt: how the model is asked, and which examples stand in front."""

    wording: Wording
    shots: int
    """Examples in front; -1: as many as the context holds."""
    draw: int
    """Seeds which training examples they are."""
    calibrated: bool
    """Whether each label's score is taken against its score for inputs without content."""

    @property
    def name(self) -> str:
        """For rows and tables."""
        draw = f" (draw {self.draw})" if self.shots else ""
        calibrated = ", calibrated" if self.calibrated else ""
        return f"{self.wording.name}, {shots_name(self.shots)}{draw}{calibrated}"


def designs(
    lm: FrozenLM, task: Task, *, shots: Sequence[int] = SHOTS, draws: Sequence[int] = (0, 1, 2)
) -> list[Design]:
    """Every wording with every number of examples and draw; in a chat template without examples.

    Where the task has labels, each calibrated and not.
    """
    found = []
    for wording in WORDINGS if task.labels else FREE_WORDINGS:
        if wording.chat and not lm.tokenizer.has_chat_template:
            continue
        for number in shots if not wording.chat else [0]:
            for draw in draws if number else [0]:
                both = (False, True) if task.labels else (False,)
                found += [Design(wording, number, draw, calibrated) for calibrated in both]
    return found


def ask(
    lm: FrozenLM,
    task: Task,
    designs: Sequence[Design],
    train: Sequence[Example],
    examples: Sequence[Example],
    form: TextFormat,
    *,
    context_length: int,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """What each design scores on the examples: by the summed log-probability of the labels, or of an example's own
    candidates, and by greedy generation where there is neither.

    train: where examples in front come from. context_length: tokens of examples in front at most. Designs that differ
    in calibration only are one pass.
    """
    empty = [Example(inputs=text, targets="", id=text, references=()) for text in _without_content(designs)]
    scoring = how_scored(task, examples)
    passes: dict[tuple[Wording, int, int], tuple[list[Prediction], dict[str, float]]] = {}
    for key in dict.fromkeys(map(_pass_of, designs)):
        ids, _ = examples_in_front(lm, task, train, form, *key, context_length=context_length)
        front = [lm.embed(torch.tensor([ids], device=lm.device))[0].float()] if ids else []
        asked, asked_form = worded([*empty, *examples], form, key[0], task.labels or ())
        rows = encode_examples(asked, asked_form, lm.tokenizer, with_targets=False)
        worn = [0 if front else NO_PROMPT] * len(rows)
        answers = predict(Engine(lm, front), task, asked, rows, worn, asked_form, scoring=scoring, progress=progress)
        passes[key] = answers[len(empty) :], _mean_scores(answers[: len(empty)])
    evaluations = []
    for design in designs:
        answers, nothing = passes[_pass_of(design)]
        evaluations.append(judge(task, examples, calibrated(answers, nothing) if design.calibrated else answers))
    return evaluations


def how_scored(task: Task, examples: Sequence[Example]) -> str:
    """How answers to text prompts are found: `rank` where there are candidates, else `generate`."""
    return "rank" if can_rank(task, examples) else "generate"


def num_rows(designs: Sequence[Design], num_examples: int) -> int:
    """What `ask` tells `progress` of in all: inputs without content included."""
    return len(set(map(_pass_of, designs))) * (num_examples + len(_without_content(designs)))


def _without_content(designs: Sequence[Design]) -> Sequence[str]:
    return CONTENT_FREE if any(design.calibrated for design in designs) else ()


def _pass_of(design: Design) -> tuple[Wording, int, int]:
    return design.wording, design.shots, design.draw


def examples_in_front(
    lm: FrozenLM,
    task: Task,
    train: Sequence[Example],
    form: TextFormat,
    wording: Wording,
    shots: int,
    draw: int,
    *,
    context_length: int,
) -> tuple[list[int], int]:
    """The ids of the examples in front, each input with its target, and how many examples they are.

    Drawn without replacement; one that no longer fits is left out, and with -1 shots that ends them.
    """
    if not shots:
        return [], 0
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(draw)).tolist()
    pool = [train[i] for i in order[: 8 * shots if shots > 0 else context_length]]
    asked, form = worded(pool, form, wording, task.labels or ())
    form = replace(form, starts_with_bos=False, inputs_end_with_eos=False)
    between = lm.tokenizer.encode(BETWEEN)
    ids: list[int] = []
    taken = 0
    for row in encode_examples(asked, form, lm.tokenizer):
        added = [*row.ids, *row.target[:-1], *between]
        fits = len(ids) + len(added) <= context_length
        if fits:
            ids, taken = ids + added, taken + 1
        if taken == shots or (shots < 0 and not fits):
            break
    return ids, taken


def calibrated(predictions: Sequence[Prediction], nothing: dict[str, float]) -> list[Prediction]:
    """The answers after each label's score for inputs without content is taken off (Zhao et al. 2021)."""
    answers = []
    for prediction in predictions:
        scores = (prediction.scores or {}).items()
        answers.append(best({text: value - nothing.get(text, 0.0) for text, value in scores}))
    return answers


def _mean_scores(predictions: Sequence[Prediction]) -> dict[str, float]:
    """The log of each label's mean share over inputs without content."""
    shares = [prediction.probabilities() or {} for prediction in predictions]
    scores = {}
    for text in shares[0] if shares else ():
        mean = sum(share[text] for share in shares) / len(shares)
        scores[text] = float(torch.tensor(mean, dtype=torch.float64).clamp(min=1e-12).log())
    return scores


def worded(
    examples: Sequence[Example], form: TextFormat, wording: Wording, labels: Sequence[str]
) -> tuple[list[Example], TextFormat]:
    """The examples and their format in one wording; what follows the input is a separator, so it is never cut."""
    before, after = (text.replace("{labels}", listed(labels)) for text in (wording.before, wording.after))
    if wording.chat:
        form = replace(form, chat=True, separator="", leading_space=False)
    elif after != SEPARATOR:
        form = replace(form, separator=after)
    return [replace(example, inputs=before + example.inputs) for example in examples], form


def listed(labels: Sequence[str]) -> str:
    """'this, that or another'."""
    return " or ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else "".join(labels)
