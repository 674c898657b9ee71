"""Parameters that a task takes, by method and model size: the paper's table 4 and figure 4, from configurations alone.

Letters: p prompt tokens, d width, L layers of encoder and decoder together, N parameters of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from softprompt.models import SIZES, Architecture
from softprompt.study.paper import FIGURE_4, MISPRINTS, NAMES, TABLE_4_LENGTHS
from softprompt.study.paper import SIZES as PAPER_SIZES

T5_VOCABULARY = 32_128  # rows of T5's tables: 32,000 pieces, 100 sentinels, and what fills the last 128
FIGURE_LENGTHS = range(1, 101)  # paper, figure 4: the mean over these prompt lengths
PREFIX_HIDDEN = 512  # of prefix tuning's reparametrisation while it trains; fits the paper's figure 4 at all sizes
WARP_CLASSES = 25.5  # class vectors in the paper's figure 4: the mean of 1 to 50 [our reading of its lines]
SMALL_LAYERS = 12  # the paper's prefix tuning on Small counts 6 + 6; T5 1.1 Small has 8 + 8 (released_checkpoints.md)


def t5(size: str) -> Architecture:
    """T5 1.1 of one of the paper's sizes."""
    return Architecture.of_shape(NAMES[size], SIZES[size], T5_VOCABULARY)


METHODS: dict[str, Callable[[Architecture, int], float]] = {
    "model tuning": lambda a, p: a.num_parameters,
    "prefix tuning, training": lambda a, p: p * a.width + PREFIX_HIDDEN * a.width * (a.num_layers + 1),
    "prefix tuning, inference": lambda a, p: p * a.width * (a.num_layers + 1),
    "WARP": lambda a, p: (p + WARP_CLASSES) * a.width,
    "prompt tuning": lambda a, p: p * a.width,
    "prompt design": lambda a, p: p,
}
"""Numbers that a task needs of its own, of a model and a prompt length: as the paper's figure 4 counts them."""
PAPERS = {name: f"{name} (the paper's count)" for name in METHODS if name.startswith("prefix tuning")}
"""What these are called where other models are counted, whose prefixes are PEFT's."""


@dataclass(frozen=True)
class Count:
    """A row of table 4."""

    size: str
    length: int
    trainable: int
    total: int
    """The model's and the prompt's."""
    misprints: tuple[str, ...]
    """What the paper prints otherwise."""

    @property
    def percent(self) -> float:
        """Trainable of total."""
        return 100 * self.trainable / self.total


def table_4() -> list[Count]:
    """Every row of the paper's table 4, counted anew."""
    rows = []
    for size in PAPER_SIZES:
        architecture = t5(size)
        for length in TABLE_4_LENGTHS:
            trainable = length * architecture.width
            total = architecture.num_parameters + trainable
            rows.append(Count(size, length, trainable, total, MISPRINTS.get((size, length), ())))
    return rows


@dataclass(frozen=True)
class Line:
    """A method of figure 4 at one size."""

    method: str
    size: str
    counted: float
    """With the layers of the real module."""
    paper: float
    reason: str = ""
    """Why the two differ, where they do."""


def figure_4() -> list[Line]:
    """The paper's figure 4, counted anew: the mean over prompt lengths 1 to 100."""
    lines = []
    for method, printed in FIGURE_4.items():
        for size, paper in zip(PAPER_SIZES, printed, strict=True):
            counted = _mean(method, t5(size))
            reason = ""
            if abs(counted - paper) > 2e-3 * paper:
                as_printed = Architecture(size, t5(size).width, SMALL_LAYERS, 0)
                assert size == "small" and abs(_mean(method, as_printed) - paper) < 2e-3 * paper
                reason = "the paper counts 6 + 6 layers, and T5 1.1 Small has 8 + 8"
            lines.append(Line(method, size, counted, paper, reason))
    return lines


def figure_4_cells(lines: Sequence[Line]) -> list[list[str]]:
    """The counted lines as a table: a row a method, a column a size."""
    rows: dict[str, list[str]] = {}
    for line in lines:
        rows.setdefault(line.method, [line.method]).append(f"{line.counted:.4g}")
    return [["method", *NAMES.values()], *rows.values()]


def _mean(method: str, architecture: Architecture) -> float:
    return fmean(METHODS[method](architecture, length) for length in FIGURE_LENGTHS)


def counts(architecture: Architecture, lengths: Sequence[int]) -> list[tuple[str, list[float]]]:
    """Every method's numbers for one model, a column for each prompt length. ValueError for a length below 1.

    Prefix tuning is named as the paper's, and beside it, of a real model, is what this package's has: PEFT's module.
    """
    if wrong := [length for length in lengths if length < 1]:
        raise ValueError(f"a prompt of {wrong[0]} tokens cannot be; give lengths of 1 or more")
    rows = [
        (PAPERS.get(method, method), [float(count(architecture, length)) for length in lengths])
        for method, count in METHODS.items()
    ]
    if architecture.states is not None:
        ours = [float(prefix_numbers(length, *architecture.states)) for length in lengths]
        rows.insert(1, ("prefix tuning (softprompt compare's)", ours))
    return rows


def prefix_numbers(length: int, num_layers: int, key_heads: int, head_width: int) -> int:
    """What this package's prefix tuning trains and stores: keys and values of `length` tokens in every layer.

    num_layers: of the decoder, in an encoder-decoder. key_heads: those of keys and values, which may be fewer than the
    queries'.
    """
    return 2 * length * num_layers * key_heads * head_width
