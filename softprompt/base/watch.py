"""What long work tells while it goes; the command line draws its bars with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    losses: Callable[[int, float, float], None] = lambda step, loss, heldout: None
    """The same of a pre-training, with the loss on held-out text."""
    threads: Callable[[int], object] | None = None
    """threads(number) where a run that is resumed began with other processor threads; unless given, a message."""
    begin: Callable[[int, int], None] = lambda steps, rows: None
    """begin(steps, rows a step) before training."""
