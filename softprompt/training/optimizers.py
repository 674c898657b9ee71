"""Optimizers with one state per member: Adafactor as T5X has it, and AdamW.

An optimizer here is its settings. `init(values)` gives a state, a dictionary of tensors that goes into a
checkpoint as it is, and `update(values, gradient, state)` changes values and state in place. The values are a prompt
[p d], or a weight of any shape. Nothing else is remembered, so a resumed run goes on exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.base.names import nearest

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")

State = dict[str, Tensor]
"""What an optimizer remembers of a member: "step", int64 [], updates made; the rest float32."""


@runtime_checkable
class Optimizer(Protocol):
    """Settings, a dataclass, that move values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def learning_rate(self) -> float:
        """The rate before its schedule."""
        ...

    def rate(self, step: int, total_steps: int | None) -> float:
        """The learning rate of a step, from 0."""
        ...

    def init(self, values: Float[Tensor, "*shape"]) -> State:
        """The state before the first step."""
        ...

    def update(
        self,
        values: Float[Tensor, "*shape"],
        gradient: Float[Tensor, "*shape"],
        state: State,
        *,
        total_steps: int | None = None,
    ) -> None:
        """One step, in place. `total_steps` is the run's length, for a schedule that ends."""
        ...


@dataclass(frozen=True, kw_only=True)
class Adafactor:
    """Adafactor (Shazeer and Stern 2018) as T5X has it (t5x/adafactor.py), with the paper's settings.

    Where T5X differs from other implementations: the second moment is kept whole unless both
    dimensions reach `min_dim_size_to_factor`; weight decay shrinks the prompt by its own rate and not
    by rate times learning rate; there is no parameter scaling unless asked for, no momentum, no cap on the rate.
    `step_offset` counts the checkpoint's own steps in, as the released code did with 1,100,000
    (T5X's field of that name has the opposite sign).
    """

    learning_rate: float = 0.3  # paper, section 3; prompt_finetune.gin
    decay_rate: float = 0.8  # paper, section 3; prompt_finetune.gin
    weight_decay: float = 1e-5  # paper, section 3; prompt_finetune.gin
    clip: float = 1.0  # clipping_threshold in t5x/adafactor.py
    epsilon: float = 1e-30  # epsilon1 in t5x/adafactor.py
    step_offset: int = 0
    min_dim_size_to_factor: int = 128  # t5x/adafactor.py
    scale_by_weights: bool = False
    """The rate times the weights' root mean square, as T5 tunes a whole model (multiply_by_parameter_scale)."""
    min_scale: float = 1e-3  # epsilon2 in t5x/adafactor.py: the least that the rate is multiplied by
    schedule: str = "constant"  # paper, section 3
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        positive = ("learning_rate", "decay_rate", "clip", "epsilon", "min_scale")
        _check(self, positive, ("weight_decay", "step_offset", "warmup_steps"))

    def rate(self, step: int, total_steps: int | None) -> float:
        """The learning rate of a step, from 0."""
        return self.learning_rate * rate_multiplier(self.schedule, step, self.warmup_steps, total_steps)

    def init(self, values: Float[Tensor, "*shape"]) -> State:
        """The state before the first step: `v` [p d], or `v_row` [p] and `v_column` [d] if factored."""
        step = torch.zeros((), dtype=torch.int64)
        if values.ndim != 2 or min(values.shape) < self.min_dim_size_to_factor:
            return {"step": step, "v": torch.zeros_like(values, dtype=torch.float32)}
        row, column = (torch.zeros(n, device=values.device) for n in values.shape)
        return {"step": step, "v_row": row, "v_column": column}

    @torch.no_grad()
    def update(
        self,
        values: Float[Tensor, "*shape"],
        gradient: Float[Tensor, "*shape"],
        state: State,
        *,
        total_steps: int | None = None,
    ) -> None:
        """One step, in place. `total_steps` is the run's length, for a schedule that ends.

        The values are one member's: the update is clipped by its root mean square over all of it.
        """
        step = int(state["step"])
        rate = self.rate(step, total_steps)
        new_share = (step + 1 + self.step_offset) ** -self.decay_rate  # 1 - beta2 at this step
        square = gradient.square() + self.epsilon
        if "v" in state:
            scale = state["v"].mul_(1.0 - new_share).add_(square, alpha=new_share).rsqrt()
        else:
            row = state["v_row"].mul_(1.0 - new_share).add_(square.mean(dim=1), alpha=new_share)
            column = state["v_column"].mul_(1.0 - new_share).add_(square.mean(dim=0), alpha=new_share)
            scale = (row / row.mean()).rsqrt()[:, None] * column.rsqrt()[None, :]
        direction = gradient * scale
        rms = direction.square().mean().sqrt()
        direction /= (rms / self.clip).clamp(min=1.0)
        if self.scale_by_weights:
            rate *= max(float(values.square().mean().sqrt()), self.min_scale)
        values.mul_(1.0 - self.weight_decay).sub_(direction, alpha=rate)
        state["step"] += 1


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """AdamW (Loshchilov and Hutter 2019): bias-corrected, weight decay times the rate, as in PyTorch.

    `clip_norm` bounds the gradient's Euclidean norm over all values first; None: no bound.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)  # Kingma and Ba 2015
    epsilon: float = 1e-8  # Kingma and Ba 2015
    weight_decay: float = 0.0
    clip_norm: float | None = None
    schedule: str = "constant"
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        bound = () if self.clip_norm is None else ("clip_norm",)
        _check(self, ("learning_rate", "epsilon", *bound), ("weight_decay", "warmup_steps"))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; wanted two numbers from 0 to below 1")

    def rate(self, step: int, total_steps: int | None) -> float:
        """The learning rate of a step, from 0."""
        return self.learning_rate * rate_multiplier(self.schedule, step, self.warmup_steps, total_steps)

    def init(self, values: Float[Tensor, "*shape"]) -> State:
        """The state before the first step: first and second moment, each [p d]."""
        return {
            "step": torch.zeros((), dtype=torch.int64),
            "first": torch.zeros_like(values, dtype=torch.float32),
            "second": torch.zeros_like(values, dtype=torch.float32),
        }

    @torch.no_grad()
    def update(
        self,
        values: Float[Tensor, "*shape"],
        gradient: Float[Tensor, "*shape"],
        state: State,
        *,
        total_steps: int | None = None,
    ) -> None:
        """One step, in place. `total_steps` is the run's length, for a schedule that ends."""
        step = int(state["step"])
        rate = self.rate(step, total_steps)
        if self.clip_norm is not None:
            gradient = gradient * (self.clip_norm / gradient.norm()).clamp(max=1.0)
        beta1, beta2 = self.betas
        first = state["first"].mul_(beta1).add_(gradient, alpha=1 - beta1)
        second = state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (second / (1 - beta2 ** (step + 1))).sqrt_().add_(self.epsilon)
        values.mul_(1.0 - rate * self.weight_decay)
        values.addcdiv_(first, spread, value=-rate / (1 - beta1 ** (step + 1)))
        state["step"] += 1


OPTIMIZERS: dict[str, type[Adafactor] | type[AdamW]] = {"adafactor": Adafactor, "adamw": AdamW}


def kind_of(name: str) -> type[Adafactor] | type[AdamW]:
    """The optimizer of that name, adafactor or adamw. ValueError for an unknown name, with the nearest."""
    if name not in OPTIMIZERS:
        raise ValueError(
            f"no optimizer is named {name!r}{nearest(name, OPTIMIZERS)}; there are {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def rate_multiplier(schedule: str, step: int, warmup_steps: int, total_steps: int | None) -> float:
    """What the learning rate is multiplied by at `step` (from 0): a number from 0 to 1.

    The rate rises in a straight line over `warmup_steps` (the first step already moves), then stays, or
    falls to 0 at `total_steps` in a straight line or half a cosine and stays 0 afterwards, or falls without end
    with the reciprocal square root of the step, 1 at the end of the warm-up (T5's, with 10,000 warm-up steps).

    Raises:
        ValueError: an unknown schedule, or one that ends without a `total_steps` beyond the warm-up.
    """
    _check_schedule(schedule)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "rsqrt":
        return ((step + 1) / max(warmup_steps, 1)) ** -0.5
    if total_steps is None or total_steps <= warmup_steps:
        raise ValueError(
            f"a {schedule} schedule needs more steps in all ({total_steps}) than for its warm-up "
            f"({warmup_steps}); give more steps, or use the constant schedule"
        )
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def _check(optimizer: Adafactor | AdamW, positive: Sequence[str], not_negative: Sequence[str]) -> None:
    """ValueError for a setting that is not what it is said to be, or a schedule that there is not."""
    for name in (*positive, *not_negative):
        value = getattr(optimizer, name)
        if not 0 <= value < math.inf or (value == 0 and name in positive):
            raise ValueError(f"{name} is {value}; wanted {'a number above 0' if name in positive else '0 or more'}")
    _check_schedule(optimizer.schedule)


def _check_schedule(schedule: str) -> None:
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"no schedule is named {schedule!r}{nearest(schedule, SCHEDULES)}; there are {known}")
