"""What long work tells while it goes; the command line draws its bars with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Progress = Callable[[int], object]
"""Called with the number of rows just finished."""


@dataclass
class Watch:
    """What a run tells while it goes; the command line draws its bars with these."""

    message: Callable[[str], None] = lambda message: None
    phase: Callable[[str, int], Progress] = lambda name, total: lambda done: None
    """phase(name, rows) begins a stage and returns what to call with finished rows."""
    step: Callable[[int, float, int], None] = lambda step, loss, tokens: None
    """step(number, loss, tokens computed) after a step."""
    score: Callable[[int, str, float, float | None], None] = lambda step, name, loss, score: None
    """score(step, whose, mean loss since the last, score) after an evaluation."""
    log: Callable[[Mapping[str, Any]], object] = lambda entry: None
    """log(entry) for each line of the run's `curve.jsonl`: one for each step and prompt, with step, name, loss,
    learning_rate and seconds, and the score where it was scored; of a pre-training, one for each evaluation."""
    threads: Callable[[int], object] | None = None
    """threads(number) where a run that is resumed began with other processor threads; unless given, a message."""
    begin: Callable[[int, int], None] = lambda steps, rows: None
    """begin(steps, rows a step) before training."""
