"""What a prompt of a given stored size is: its method and its length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from softprompt.base.terminal import counted
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.prompts import MAX_LENGTH
from softprompt.training.settings import RunConfig

HEAD = 144  # bytes at most before the numbers in adapter_model.safetensors: the name, type and shape of one array
FLOAT32 = 4  # bytes; a folder's numbers are of this type


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is trained with a budget."""

    from_bytes: int
    """The least budget it is for."""
    method: str
    length: int | None = None
    """Tokens at most; None: the longest that fits."""
    row: str | None = None
    """The row of results/presets.jsonl that chose it; None: no row has yet."""


CHOICES = (Choice(from_bytes=0, method="prompt"),)
"""By budget; the last that a budget reaches is taken. For the rows of benchmarks/presets.py to fill."""


def within_budget(config: RunConfig, lm: FrozenLM, watch: Watch) -> RunConfig:
    """The run with the method and length that its budget buys, which are told; one without a budget as it is.

    The size is that of adapter_model.safetensors. A method that is given stays. ValueError where not one token fits.
    """
    if config.budget is None:
        return config
    choice = next(choice for choice in reversed(CHOICES) if choice.from_bytes <= config.budget)
    method = config.method or choice.method
    a_token = FLOAT32 * (math.prod(lm.kv_shape) if method == "kv" else lm.width)
    fitting = (config.budget - HEAD) // a_token
    kind = " of keys and values" if method == "kv" else ""
    if fitting < 1:
        raise ValueError(
            f"a budget of {config.budget:,} bytes is too small, since one token{kind} of {lm.name} takes "
            f"{HEAD + a_token:,}; give --budget {HEAD + a_token} or more"
        )
    length = min(fitting, choice.length or MAX_LENGTH, MAX_LENGTH)
    why = f"as the row {choice.row} has it"
    if choice.row is None:
        longest = "the longest that fits" if length == fitting else "the longest there is"
        why = f"{longest}, since no row of a sweep has chosen a length yet"
    size = f"{counted(length, 'token')}{kind} in at most {HEAD + length * a_token:,}"
    watch.message(f"a budget of {config.budget:,} bytes: {size}, {why}")
    return replace(config, budget=None, method=method, prompt_length=(length,))
