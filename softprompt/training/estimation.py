"""Before training: how long a task's texts are, and what a run will cost in memory and time."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from softprompt.base.memory import peak_bytes
from softprompt.base.watch import Progress, Watch
from softprompt.models import FrozenLM, default_format, encode_all_inputs, lost_part, target_lengths
from softprompt.tasks import UNLABELLED, Example
from softprompt.training.budget import within_budget
from softprompt.training.loop import Member, fit
from softprompt.training.plan import check_plans, members_of, plan_prompts, prepare, tasks_of
from softprompt.training.run import load_model
from softprompt.training.settings import RunConfig

NUM_TIMED = 2  # ours: steps timed after the first, which warms caches up and compiles
NUM_SHOWN = 3  # ours: cut inputs of which a preview shows what is lost
NUM_SCORED = 32  # ours: selection rows scored, of all members together, to know the time of the others


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of texts in tokens."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True, kw_only=True)
class TokenLengths:
    """How long a task's texts are for one model, uncut, with separator and end of sequence."""

    inputs: Lengths
    targets: Lengths | None
    """None where no example is labelled."""
    max_input_length: int
    num_cut: int
    """Inputs longer than `max_input_length`."""
    lost: dict[str, str]
    """What of the first of them is cut off, by the example's id."""


def token_lengths(
    examples: Sequence[Example], lm: FrozenLM, *, max_input_length: int = 512, truncate: str = "end"
) -> TokenLengths:
    """How long the examples are in the model's tokens, how many a length limit cuts at which end, and what is lost.

    Raises ValueError for an empty input, and if there are no examples.
    """
    if not examples:
        raise ValueError("there are no examples to measure")
    form = default_format(lm, max_input_length=sys.maxsize)
    encoded = encode_all_inputs([example.inputs for example in examples], form, lm.tokenizer)
    inputs = [len(text.ids) for text in encoded]
    texts = list({example.targets: None for example in examples if example.targets != UNLABELLED})
    by_text = dict(zip(texts, target_lengths(texts, form, lm.tokenizer), strict=True))
    targets = [by_text[example.targets] for example in examples if example.targets in by_text]
    cut = [example for example, length in zip(examples, inputs, strict=True) if length > max_input_length]
    used = replace(form, max_input_length=max_input_length, truncation_side=truncate)
    return TokenLengths(
        inputs=_lengths(inputs),
        targets=_lengths(targets) if targets else None,
        max_input_length=max_input_length,
        num_cut=len(cut),
        lost={example.id: lost_part(example.inputs, used, lm.tokenizer) for example in cut[:NUM_SHOWN]},
    )


def _lengths(values: Sequence[int]) -> Lengths:
    median, p95 = np.quantile(values, (0.5, 0.95), method="inverted_cdf")
    return Lengths(min=min(values), median=int(median), p95=int(p95), max=max(values))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run will cost, from real steps on the real model and data."""

    model_bytes: int
    """The frozen weights."""
    peak_bytes: int
    """The most memory taken: by this process, or on the GPU."""
    num_prompts: int
    """Prompts trained together, the folds of a cross-validation included."""
    num_rows: int
    """Examples a step, of all prompts."""
    num_steps: int
    step_s: float
    num_evaluations: int
    num_scored: int
    """Rows scored each time, of all prompts."""
    evaluation_s: float
    dev_s: float
    """Scoring the dev set once, at the end."""
    minutes: float | None
    """The bound the run was given."""

    @property
    def training_s(self) -> float:
        """Steps and evaluations, to the end or to the bound."""
        whole = self.num_steps * self.step_s + self.num_evaluations * self.evaluation_s
        return whole if self.minutes is None else min(whole, self.minutes * 60)

    @property
    def total_s(self) -> float:
        """Everything but loading the model."""
        return self.training_s + self.dev_s


def estimate(config: RunConfig, *, lm: FrozenLM | None = None, watch: Watch | None = None) -> Estimate:
    """The memory and time of a run: real steps and a real scoring are made, and nothing is written.

    watch: told of the rows that are done, as one phase. Raises ValueError for whatever the run itself would refuse.
    """
    lm = lm or load_model(config)
    watch = watch or Watch()
    config = within_budget(config, lm, watch)
    sets = [prepare(config, task, lm) for task in tasks_of(config)]
    plans = [plan for data in sets for plan in plan_prompts(config, data, lm)]
    check_plans(plans, lm)
    members = members_of(plans, lm)
    num_rows = sum(member.config.batch_size for member in members)
    scored_of_each = -(-NUM_SCORED // len(members))
    rows = [member.num_scored for member in members]
    timed_rows = sum(min(count, scored_of_each) for count in rows)
    warming_rows = sum(min(count, 1) for count in rows)
    done = watch.phase("estimate", (1 + NUM_TIMED) * num_rows + warming_rows + timed_rows)
    warming, timed = [], []
    for member in members:
        longest = sorted(member.rows, key=lambda row: row.num_tokens, reverse=True)[: member.config.batch_size]
        warming.append(_shortened(replace(member, rows=longest), steps=1, num_scored=1))  # what takes the most memory
        timed.append(_shortened(member, steps=NUM_TIMED, num_scored=scored_of_each))
    _timed(lm, warming, num_rows, done)
    step_s, scoring_s = _timed(lm, timed, num_rows, done)
    row_s = scoring_s / timed_rows if timed_rows else step_s / num_rows
    num_steps = max(member.config.steps for member in members)
    return Estimate(
        model_bytes=sum(weight.numel() * weight.element_size() for weight in lm.model.parameters()),
        peak_bytes=peak_bytes(lm.device),
        num_prompts=len(members),
        num_rows=num_rows,
        num_steps=num_steps,
        step_s=step_s,
        num_evaluations=-(-num_steps // min(member.config.evaluate_every for member in members)),
        num_scored=sum(rows),
        evaluation_s=row_s * sum(rows),
        dev_s=row_s * sum(len(data.dev) for data in sets) * len(config.seeds),
        minutes=config.minutes,
    )


def _shortened(member: Member, *, steps: int, num_scored: int) -> Member:
    count = min(num_scored, member.config.num_selection)
    return replace(member, config=replace(member.config, steps=steps, evaluate_every=steps, num_selection=count))


def _timed(lm: FrozenLM, members: Sequence[Member], num_rows: int, done: Progress) -> tuple[float, float]:
    """Seconds of one step of `num_rows`, and of scoring the members' selection rows once."""
    marks = [time.monotonic()]

    def mark(*_: Any) -> None:
        marks.append(time.monotonic())
        done(num_rows)

    fit(lm, members, watch=Watch(step=mark, phase=lambda name, total: done))
    steps_end = marks[-1]
    return (steps_end - marks[0]) / (len(marks) - 1), time.monotonic() - steps_end
