"""Which saved prompts start a task best: by the loss on its training rows before any training.

Transfer from the nearest task is SPoT (Vu et al. 2022, arXiv 2110.07904), which finds it by the prompts' cosine; the
loss asks what the start is for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from softprompt.answering import Engine
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.prompts import SoftPrompt, check_fits, check_runs, load_prompt
from softprompt.training.plan import SPLIT_SEED, plan_prompts, prepare, tasks_of
from softprompt.training.settings import PROMPT_FILE, RunConfig

NUM_ROWS = 32  # ours


@dataclass(frozen=True, kw_only=True)
class Starts:
    """How well a task begins from each of several prompts. Losses are an example's mean, summed over its answer."""

    num_rows: int
    losses: dict[Path, float]
    """By the prompt's folder, the lowest first."""
    own: tuple[str, float]
    """What a run of these settings starts from, and its loss."""


def prompts_in(folder: Path, watch: Watch) -> dict[Path, SoftPrompt]:
    """The prompts saved in a folder, at any depth, by their own folders; one that cannot be read is told and skipped.

    ValueError where there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; --nearest takes a number of tokens, or a folder of prompts")
    prompts = {}
    for path in sorted(path.parent for path in folder.rglob(PROMPT_FILE)):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue  # what a save leaves
        try:
            prompts[path] = load_prompt(path)
        except (ValueError, OSError) as error:
            watch.message(f"{path} is skipped: {error}")
    if not prompts:
        raise ValueError(f"{folder} holds no prompt that can be read; give a folder that `softprompt train` wrote into")
    return prompts


def nearest_starts(
    prompts: Mapping[Path, SoftPrompt], config: RunConfig, lm: FrozenLM, watch: Watch | None = None
) -> Starts:
    """The loss that each prompt starts the run's task with, on training rows drawn by seed.

    watch: told of each prompt that the model or its length does not allow, which is skipped. Raises ValueError where
    none is left, for several tasks, and for what the run itself would refuse.
    """
    watch = watch or Watch()
    task, *others = tasks_of(config)
    if others:
        raise ValueError(f"prompts are ordered for one task, not {len(others) + 1}; name one")
    data = prepare(config, task, lm)
    own = plan_prompts(config, data, lm)[0]
    rows, _ = data.encoded(lm)
    rows = random.Random(SPLIT_SEED).sample(rows, min(NUM_ROWS, len(rows)))
    done = watch.phase(f"start {task.name}", len(rows) * (len(prompts) + 1))

    def loss(values: Tensor) -> float:
        targets = [[row.target] for row in rows]
        scores = Engine(lm, [values]).label_scores(rows, [0] * len(rows), targets, progress=done)
        return -fmean(score for (score,) in scores)

    losses = {}
    for path, prompt in prompts.items():
        try:
            check_fits(prompt, lm)
            check_runs(prompt.values, lm)
            losses[path] = loss(prompt.values)
        except ValueError as error:
            watch.message(f"{path} is skipped: {error}")
    if not losses:
        raise ValueError(f"none of {len(prompts)} prompts can start {task.name} on {lm.name}; give others, or --model")
    ordered = dict(sorted(losses.items(), key=lambda item: item[1]))
    return Starts(num_rows=len(rows), losses=ordered, own=(own.init["kind"], loss(own.values)))
