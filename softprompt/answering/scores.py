"""What saved prompts score on a split, each alone and all together.

evaluate_prompts(open_prompts(["runs/a", "runs/b"]), data=folder, ensemble=True).evaluations
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from softprompt.answering.answer_file import NUM_DIGITS
from softprompt.answering.evaluation import Evaluation, judge, right_answers
from softprompt.answering.evaluation import ensemble as vote_all
from softprompt.answering.rows import Result, surroundings
from softprompt.answering.saved import SavedPrompts
from softprompt.base.watch import Watch
from softprompt.tasks import Data, Example, Task, read_split


@dataclass(frozen=True, kw_only=True)
class PromptScores:
    """What saved prompts score on one split, each alone and all together."""

    saved: SavedPrompts
    split: str
    note: str
    """Where the examples came from, in one line."""
    asked: list[Sequence[Example]]
    """Each prompt's examples: the same ones, in its own words."""
    evaluations: list[Evaluation]
    """One for each prompt."""
    ensemble: Evaluation | None
    num_cut: int
    """Inputs that the length limit cut."""
    seconds: float
    selection_scores: list[float | None] = field(default_factory=list)
    """What chose each prompt's step in training, if its card says so."""

    @property
    def examples(self) -> Sequence[Example]:
        """As the first prompt has them."""
        return self.asked[0]

    @property
    def average(self) -> dict[str, float]:
        """The mean of each metric over the prompts."""
        names = self.evaluations[0].metrics
        return {name: fmean(evaluation.metrics[name] for evaluation in self.evaluations) for name in names}

    @property
    def best(self) -> int:
        """The prompt that is best on this very split (the paper's way, section 6)."""
        values = [evaluation.headline for evaluation in self.evaluations]
        return values.index(max(values))

    @property
    def chosen(self) -> int | None:
        """The prompt that the selection rows would choose; None where a card lacks its selection score."""
        scores = [score for score in self.selection_scores if score is not None]
        if not scores or len(scores) < len(self.evaluations):
            return None
        return scores.index(max(scores))

    def errors(self) -> list[dict[str, Any]]:
        """The examples that a prompt, or the ensemble, answers wrongly, and its answers.

        The inputs of an ensemble are a list where its prompts have unlike ones.
        """
        folders = [str(folder) for folder in self.saved.folders]
        scored = list(zip(folders, self.evaluations, [[asked] for asked in self.asked], strict=True))
        if self.ensemble is not None:
            scored.append(("ensemble", self.ensemble, self.asked))
        errors = []
        for prompt, evaluation, asked in scored:
            right = right_answers(self.saved.task, self.examples, evaluation.predictions)
            for place, (example, prediction) in enumerate(zip(self.examples, evaluation.predictions, strict=True)):
                if right[place] == "0":
                    inputs = list(dict.fromkeys(examples[place].inputs for examples in asked))
                    shown = inputs[0] if len(inputs) == 1 else inputs
                    own = {"id": example.id, "inputs": shown, "targets": example.targets}
                    answer = {"prediction": prediction.text, "log_prob": round(prediction.log_prob, NUM_DIGITS)}
                    errors.append({"prompt": prompt, **own, **answer})
        return errors

    def rows(self) -> list[Result]:
        """Result rows: one for each prompt, and one for the ensemble."""
        scored = [(evaluation, [place]) for place, evaluation in enumerate(self.evaluations)]
        if self.ensemble is not None:
            scored.append((self.ensemble, list(range(len(self.evaluations)))))
        rows = []
        for evaluation, places in scored:
            prompts = [self.saved.prompts[place] for place in places]
            card = prompts[0].card
            rows.append(
                Result(
                    experiment="eval" if len(places) == 1 else "ensemble",
                    config={
                        "prompts": [str(self.saved.folders[place]) for place in places],
                        "prompt_hashes": [prompt.identity for prompt in prompts],
                        "values_hashes": [prompt.sha256 for prompt in prompts],
                        "seeds": [prompt.card.seed for prompt in prompts],
                        "quantize": self.saved.lm.quantization,
                    },
                    model=self.saved.lm.name,
                    task=self.saved.task.name,
                    split=self.split,
                    selection=card.selection or "unknown",
                    scoring=self.saved.scoring,
                    metrics=evaluation.metrics,
                    value=evaluation.headline,
                    illegal_rate=evaluation.illegal_rate,
                    num_examples=len(evaluation.predictions),
                    step=card.step or 0,
                    steps_run=card.recipe.get("steps", 0),
                    seconds=0.0,
                    seed=card.seed or 0,
                    notes={
                        "source": self.note,
                        "num_cut": self.num_cut,
                        "evaluation_s": round(self.seconds, 2),
                        **({"confusion": evaluation.confusion} if evaluation.confusion else {}),
                    },
                    **surroundings(self.saved.lm.device, self.saved.lm.dtype),
                )
            )
        return rows


def evaluate_prompts(
    saved: SavedPrompts,
    *,
    data: Data = None,
    split: str = "dev",
    ensemble: bool = False,
    limit: int | None = None,
    watch: Watch | None = None,
) -> PromptScores:
    """What each prompt scores on a split, and their vote, from one pass over mixed batches.

    data: a folder of official files, or files by split; None: the hub. limit: only the first examples. Raises
    ValueError for a prompt without a task, for examples without labels, for an ensemble of one, and for prompts whose
    templates make unlike examples of the data.
    """
    started = time.monotonic()
    if saved.task.name == "unknown":
        raise ValueError("the prompt does not record its task; name it with --task, or give --inputs and --targets")
    if ensemble and len(saved.prompts) < 2:
        raise ValueError("an ensemble needs at least two prompts; name them all after --prompt")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but must be 1 or more")
    notes = []

    def read(task: Task) -> list[Example]:
        reading = read_split(task, split, data)
        notes.append(reading.note)
        return reading.examples

    asked = [examples[:limit] for examples in saved.read(read)]
    examples = asked[0]
    for example in examples:
        if not example.references:
            raise ValueError(
                f"example {example.id!r} of {saved.task.name} {split} has no label, so nothing can be scored; "
                "`softprompt predict` answers it all the same"
            )
    encoded = saved.encode(asked)
    progress = (watch or Watch()).phase(f"score {saved.task.name} {split}", len(examples) * len(saved.prompts))
    answers = saved.answers(examples, encoded, progress)
    together = judge(saved.task, examples, vote_all(saved.task, examples, answers)) if ensemble else None
    return PromptScores(
        saved=saved,
        split=split,
        note=notes[0],
        asked=asked,
        evaluations=[judge(saved.task, examples, predictions) for predictions in answers],
        ensemble=together,
        num_cut=sum(any(row.was_cut for row in rows) for rows in zip(*encoded, strict=True)),
        seconds=time.monotonic() - started,
        selection_scores=[prompt.card.recipe.get("selection_score") for prompt in saved.prompts],
    )
