"""The paper's own numbers (Lester, Al-Rfou and Constant 2021, arXiv 2104.08691v2), for tables that stand beside ours.

Scores are percent. Figures were read from the paper's vector graphics, to about 0.02 points. A `Point` is a mean with
the half width of its band, the standard deviation of three runs. Sizes are T5 1.1's.
"""

from __future__ import annotations

from typing import NamedTuple

SIZES = ("small", "base", "large", "xl", "xxl")
NAMES = {"small": "Small", "base": "Base", "large": "Large", "xl": "XL", "xxl": "XXL"}


class Point(NamedTuple):
    """A mean, and the standard deviation of three runs where the paper gives one."""

    mean: float
    deviation: float | None = None

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.deviation:.1f}"


class Transfer(NamedTuple):
    """A row of table 1 or 2: trained on one set and scored on another, in percent."""

    source: str
    task: str
    metric: str
    model_tuning: Point
    prompt_tuning: Point


def _points(*pairs: tuple[float, ...]) -> dict[str, Point]:
    return {size: Point(*pair) for size, pair in zip(SIZES, pairs, strict=True)}


# Figure 1: SuperGLUE dev by model size.
FIGURE_1 = {
    "prompt tuning": _points((58.54, 1.19), (63.75, 1.22), (75.82, 0.39), (80.32, 3.32), (89.98, 0.25)),
    "model tuning": _points((62.84, 1.03), (73.74, 0.74), (81.28, 0.70), (83.06, 0.29), (89.94, 0.26)),
    "model tuning (multi-task)": _points((63.40, 0.27), (77.29, 0.21), (85.36, 0.13), (87.96, 0.65), (90.10, 0.23)),
}
# GPT-3, few-shot: million weights to score.
FIGURE_1_PROMPT_DESIGN = {
    125: 50.2, 350: 56.2, 760: 56.8, 1_300: 60.0, 2_700: 64.3, 6_700: 63.6, 13_000: 66.9, 175_000: 73.2,
}  # fmt: skip

# Figure 3: ablations on SuperGLUE dev.
FIGURE_3A = {  # prompt length
    1: _points((46.60, 0.31), (48.03, 0.30), (46.13, 0.25), (61.70, 1.79), (82.53, 0.94)),
    5: _points((50.65, 0.61), (54.95, 1.64), (60.77, 1.88), (76.63, 1.29), (89.02, 1.05)),
    20: _points((57.05, 0.62), (61.38, 0.88), (72.31, 0.81), (83.59, 1.48), (89.12, 0.19)),
    100: _points((58.54, 1.19), (63.75, 1.22), (75.82, 0.39), (80.32, 3.32), (89.82, 0.26)),
    150: _points((58.83, 0.61), (64.45, 0.70), (73.86, 2.09), (76.98, 1.99), (85.79, 2.99)),
}
FIGURE_3B = {  # initialisation
    "uniform": _points((56.21, 1.77), (47.06, 2.26), (67.06, 2.71), (60.12, 1.29), (89.77, 0.16)),
    "vocab": _points((59.32, 0.69), (64.21, 0.32), (74.09, 1.29), (82.45, 4.93), (87.49, 3.19)),
    "class-labels": _points((58.54, 1.19), (63.75, 1.22), (75.82, 0.39), (80.32, 3.32), (89.48, 0.24)),
}
FIGURE_3C = {  # pre-training objective
    "span": _points((51.39, 1.06), (7.97, 0.00), (8.21, 0.01), (7.95, 0.01), (82.70, 6.29)),
    "span+sentinel": _points((48.69, 3.09), (7.97, 0.00), (37.19, 2.24), (16.47, 3.70), (75.73, 2.06)),
    "lm": _points((58.54, 1.19), (63.75, 1.22), (75.82, 0.39), (80.32, 3.32), (89.69, 0.41)),
}
FIGURE_3D = {  # steps of LM adaptation; the bands are not symmetric, so none is given
    "0K": _points((51.39,), (7.97,), (8.21,), (7.95,), (82.70,)),
    "10K": _points((52.80,), (58.10,), (41.95,), (55.41,), (82.08,)),
    "50K": _points((57.27,), (60.55,), (74.37,), (73.14,), (86.38,)),
    "100K": _points((58.54,), (63.75,), (75.82,), (80.32,), (89.82,)),
}

# Figure 4: task parameters, the mean over prompt lengths 1 to 100.
FIGURE_4 = {
    "model tuning": (7.696e7, 2.476e8, 7.832e8, 2.850e9, 1.114e10),
    "prefix tuning, training": (3.434e6, 9.869e6, 2.574e7, 5.148e7, 1.030e8),
    "prefix tuning, inference": (3.361e5, 9.696e5, 2.534e6, 5.068e6, 1.014e7),
    "WARP": (3.891e4, 5.837e4, 7.782e4, 1.556e5, 3.113e5),
    "prompt tuning": (2.586e4, 3.878e4, 5.171e4, 1.034e5, 2.068e5),
    "prompt design": (50.5, 50.5, 50.5, 50.5, 50.5),
}

# Table 1: F1 after training on SQuAD only.
TABLE_1 = (
    Transfer("squad", "squad", "f1", Point(94.9, 0.2), Point(94.8, 0.1)),
    Transfer("squad", "textbookqa", "f1", Point(54.3, 3.7), Point(66.8, 2.9)),
    Transfer("squad", "bioasq", "f1", Point(77.9, 0.4), Point(79.1, 0.3)),
    Transfer("squad", "race", "f1", Point(59.8, 0.6), Point(60.7, 0.5)),
    Transfer("squad", "re", "f1", Point(88.4, 0.1), Point(88.8, 0.2)),
    Transfer("squad", "duorc", "f1", Point(68.9, 0.7), Point(67.7, 1.1)),
    Transfer("squad", "drop", "f1", Point(68.9, 1.7), Point(67.1, 1.9)),
)

# Table 2: accuracy and F1, trained on one and evaluated on the other.
TABLE_2 = (
    Transfer("qqp", "mrpc", "accuracy", Point(73.1, 0.9), Point(76.3, 0.1)),
    Transfer("qqp", "mrpc", "f1", Point(81.2, 2.1), Point(84.3, 0.3)),
    Transfer("mrpc", "qqp", "accuracy", Point(74.9, 1.3), Point(75.4, 0.8)),
    Transfer("mrpc", "qqp", "f1", Point(70.9, 1.2), Point(69.7, 0.3)),
)

# Table 3: five prompts, XXL, SuperGLUE dev: average, best, ensemble; two metrics where the task has two.
TABLE_3 = {
    "boolq": ((91.1,), (91.3,), (91.7,)),
    "cb": ((99.3, 99.0), (100.0, 100.0), (100.0, 100.0)),
    "copa": ((98.8,), (100.0,), (100.0,)),
    "multirc": ((65.7, 88.7), (66.3, 89.0), (67.1, 89.4)),
    "record": ((92.7, 93.4), (92.9, 93.5), (93.2, 93.9)),
    "rte": ((92.6,), (93.5,), (93.5,)),
    "wic": ((76.2,), (76.6,), (77.4,)),
    "wsc": ((95.8,), (96.2,), (96.2,)),
}
TABLE_3_SUPERGLUE = (90.5, 91.0, 91.3)  # its last row: the mean over tasks, each one's metrics averaged first

# Table 4: every size at these lengths. It is what arithmetic gives but for these, by size and length.
TABLE_4_LENGTHS = (1, 5, 20, 50, 100, 150)
MISPRINTS = {
    ("small", 20): ("prints 10,420 trainable", "prints 76,971,572 in all"),
    ("large", 100): ("prints 0.01907 %",),
    ("xxl", 50): ("prints 11,137,380,352 in all",),
}

# What the authors' released prompts score (README of google-research/prompt-tuning), T5 1.1 Base LM-adapted, percent.
RELEASED = {
    "glue/sst2": {"accuracy": 95.07},
    "glue/mrpc": {"f1": 89.7, "accuracy": 85.3},
    "glue/rte": {"accuracy": 68.6},
}
