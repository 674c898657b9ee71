"""What a pre-training is asked to do: every setting with its default, its limits and what `--help` says of it."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass
from typing import Any

from softprompt.base.setting import check, setting

NOISE_DENSITY = 0.15  # t5/data/preprocessors.py, span_corruption
MEAN_SPAN_LENGTH = 3.0  # the same

# T5's batch of 2^20 tokens (the paper's footnote has it for its multi-task baseline; no source says what the LM
# adaptation took) in texts of T5's 512; Adafactor bounds updates itself, and T5 no gradients (t5x/adafactor.py).
_T5 = {"input_length": 512, "batch_size": 2_048, "optimizer": "adafactor", "clip_norm": math.inf}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Ours, for small models and budgets (docs/log.md, 2026-11-25).
    "fast": {
        "span": {"learning_rate": 2e-2, "schedule": "cosine", "warmup_steps": 200},
        # Constant, so that models kept at different steps compare.
        "prefix-lm": {"learning_rate": 5e-3, "schedule": "constant", "warmup_steps": 20},
    },
    # Steps: paper, section 2.2 (100,000 are 10 % of the pre-training).
    "paper": {
        # 1/sqrt(step), 0.01 in the first 10,000 steps (t5x/configs/runs/pretrain.gin): PyTorch's Adafactor takes the
        # less of its rate and 1/sqrt(step).
        "span": {**_T5, "steps": 1_000_000, "learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
        # What that schedule has come to after a million steps, and T5's rate of fine-tuning (paper, section 3.1).
        "prefix-lm": {**_T5, "steps": 100_000, "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0},
    },
}
"""What a named way to train changes of `PretrainConfig`'s own numbers, for each objective."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How a T5's weights are trained. Each field but objective and z_loss is a flag."""

    objective: str = setting(
        "span: span corruption. prefix-lm: LM adaptation (paper, section 3.2)", "span", choices=("span", "prefix-lm")
    )
    steps: int = setting("optimizer steps; must be given", MISSING, at_least=1, title="how to train")
    # Ours, for small budgets: T5's own was 2,048 texts of 512.
    batch_size: int = setting("texts a step", 64, at_least=1)
    # Those of a prefix LM share their split.
    micro_batch_size: int = setting("texts computed together", 8, at_least=1)
    input_length: int = setting("tokens of an input (pretrain), of a whole text (adapt)", 256)
    prefix_share: float = setting(
        "share of micro-batches that are a prefix LM's, of the same text (pretrain)", 0.0, at_least=0
    )
    target_length: int | None = None
    """Tokens of a prefix LM's targets without their end, at most; None: any split of the text."""
    noise_density: float = NOISE_DENSITY
    """The share of a text that span corruption masks."""
    mean_span_length: float = MEAN_SPAN_LENGTH
    """Tokens of a masked span, on average."""
    optimizer: str = setting("both with T5's scaling", "adamw", choices=("adamw", "adafactor"))
    # nanoT5's; the same was best on our micro (docs/log.md, 2026-11-25).
    learning_rate: float = setting("after the warm-up, a share of each weight's size", 2e-2, above=0)
    schedule: str = setting("how the rate goes on", "cosine", choices=("constant", "linear", "cosine", "rsqrt"))
    warmup_steps: int = setting("steps in which the rate rises", 100)
    clip_norm: float = setting("bound on the gradient's norm", 1.0)
    weight_decay: float = setting("of AdamW", 0.0)
    z_loss: float = 1e-4
    """Weight of log² Z in the loss (T5X's pre-training configuration)."""
    seed: int = setting("draws weights, order and spans", 0)
    evaluate_every: int = setting("steps between held-out losses", 250, at_least=1)
    num_heldout: int = setting("held-out texts scored each time", 256, at_least=1)
    keep: tuple[int, ...] = setting("steps whose models are kept, 0 for the start", (), shown="none but the last")

    def __post_init__(self) -> None:
        """Refuse what is no setting, and settings that contradict one another."""
        from softprompt.training import rate_multiplier  # brings torch, which --help has no use for

        check(self)
        if self.prefix_share > 1:
            raise ValueError(f"prefix_share is {self.prefix_share}, but must be from 0 to 1")
        if self.target_length is not None and not 0 < self.target_length < self.input_length:
            raise ValueError(
                f"target_length is {self.target_length}, but must be from 1 to below input_length {self.input_length}"
            )
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size}; make it one"
            )
        if beyond := [step for step in self.keep if not 0 <= step <= self.steps]:
            raise ValueError(f"keep names step {beyond[0]}, but the run has steps 0 to {self.steps}")
        rate_multiplier(self.schedule, self.warmup_steps, self.warmup_steps, self.steps)  # refuses what cannot be
