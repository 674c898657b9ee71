"""Figure 3a: prompt length."""

from softprompt.study.experiments.point import Point

TITLE = "Prompt length (figure 3a)"
SEEDS = (0, 1, 2, 3, 4)  # ours: of prompts, which train together
POINTS = tuple(Point(str(length), {"prompt_length": (length,)}) for length in (1, 5, 20, 100, 150))
