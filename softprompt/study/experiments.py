"""The paper's figures and tables as data: for each its title, its seeds and its points.

Where points differ in the frozen model, it is a folder inside the one that is asked about: what `softprompt pretrain`
and `adapt` wrote side by side, as `span`, `span+`, `lm` and `lm/steps/N`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """One thing that is measured: a point of a figure, or a column of a table."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of RunConfig in which it differs from the run that all points share."""
    instead: Mapping[str, Any] = field(default_factory=dict)
    """Fields to differ in where the data has no training file of the task in `changes`."""
    inside: str = ""
    """The frozen model's folder inside the one asked about; '' for that one itself. A * takes each folder there is."""
    is_optional: bool = False
    """Whether a model without that folder goes without the point."""
    also: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Other tasks to score on, each with what the labels are called there; with a method."""
    method: str | None = None
    """A method of `softprompt compare`, with its own trials; None: prompts, all points and seeds together."""


@dataclass(frozen=True)
class Experiment:
    """One figure or table."""

    title: str
    seeds: tuple[int, ...]
    """Run unless others are asked for."""
    points: tuple[Point, ...]


BEFORE = "../span"  # of an LM-adapted model the one before adaptation, which the paper's model tuning starts from

# Both ours: model tuning's trainings come one after another, prompts train together.
THREE_SEEDS, FIVE_SEEDS = (0, 1, 2), (0, 1, 2, 3, 4)
PROMPT_TUNING, MODEL_TUNING = "prompt-tuning", "model-tuning"

# Paper, table 1: SQuAD 1.1, which is on the hub, or MRQA's part of it. A set whose data is missing is told and noted in
# the rows.
SQUAD, MRQA_SQUAD = {"task": ("squad/v1.1",)}, {"task": ("mrqa/squad",)}
OTHER_DOMAINS = ("textbookqa", "bioasq", "race", "relation_extraction", "duorc", "drop")
ELSEWHERE = {f"mrqa/{name}": {} for name in OTHER_DOMAINS}

# Table 2: one task's labels are taken for the other's.
QQP, MRPC = {"task": ("glue/qqp",)}, {"task": ("glue/mrpc",)}
TO_MRPC = {"glue/mrpc": {"duplicate": "equivalent", "not_duplicate": "not_equivalent"}}
TO_QQP = {"glue/qqp": {"equivalent": "duplicate", "not_equivalent": "not_duplicate"}}

EXPERIMENTS = {
    # Ask about the LM-adapted models of a family, such as FAMILY/micro/lm: the paper's model tuning is of the model
    # before adaptation, which is `span` beside it, or named with --span-model. Multi-task tuning takes all the tasks
    # that are asked about, without T5's DPR.
    "figure-1": Experiment(
        "Quality by model size (figure 1)",
        THREE_SEEDS,
        (
            Point("prompt tuning", method=PROMPT_TUNING),
            Point("model tuning", method=MODEL_TUNING),
            Point("model tuning from span", method=MODEL_TUNING, inside=BEFORE, is_optional=True),
            Point("model tuning (multi-task)", method="multi-task-model-tuning"),
            Point("prompt design", method="prompt-design"),
        ),
    ),
    "figure-3a": Experiment(
        "Prompt length (figure 3a)",
        FIVE_SEEDS,
        tuple(Point(str(length), {"prompt_length": (length,)}) for length in (1, 5, 20, 100, 150)),
    ),
    "figure-3b": Experiment(
        "Prompt initialisation (figure 3b)",
        FIVE_SEEDS,
        tuple(Point(init, {"init": init}) for init in ("uniform", "vocab", "class-labels")),
    ),
    # Three controls are ours: `random` has the shape untrained, `tables` the vocabulary's tables that pre-training
    # starts from and else random weights, `span+` span corruption for as many steps more as the adaptation takes.
    "figure-3c": Experiment(
        "Pre-training objective (figure 3c)",
        FIVE_SEEDS,
        (
            Point("random", inside="random", is_optional=True),
            Point("tables", inside="tables", is_optional=True),
            Point("span", inside="span"),
            Point("span+sentinel", {"sentinel": "targets"}, inside="span"),
            Point("span+", inside="span+", is_optional=True),
            Point("lm", inside="lm"),
        ),
    ),
    "figure-3d": Experiment(
        "Steps of LM adaptation (figure 3d)",
        FIVE_SEEDS,
        (Point("0", inside="span"), Point("*", inside="lm/steps/*")),
    ),
    "table-1": Experiment(
        "From SQuAD to other domains (table 1)",
        THREE_SEEDS,
        (
            Point("prompt tuning", SQUAD, MRQA_SQUAD, method=PROMPT_TUNING, also=ELSEWHERE),
            Point("model tuning", SQUAD, MRQA_SQUAD, method=MODEL_TUNING, also=ELSEWHERE),
        ),
    ),
    "table-2": Experiment(
        "Between QQP and MRPC (table 2)",
        THREE_SEEDS,
        (
            Point("prompt tuning, glue/qqp", QQP, method=PROMPT_TUNING, also=TO_MRPC),
            Point("model tuning, glue/qqp", QQP, method=MODEL_TUNING, also=TO_MRPC),
            Point("prompt tuning, glue/mrpc", MRPC, method=PROMPT_TUNING, also=TO_QQP),
            Point("model tuning, glue/mrpc", MRPC, method=MODEL_TUNING, also=TO_QQP),
        ),
    ),
    # Five prompts of one task: their mean, their best and their vote.
    "table-3": Experiment("Ensembles (table 3)", FIVE_SEEDS, (Point("five prompts", {"seeds": FIVE_SEEDS}),)),
}
