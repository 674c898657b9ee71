"""Figure 3d: how long the frozen model was LM-adapted."""

from softprompt.study.experiments.point import Point

TITLE = "Steps of LM adaptation (figure 3d)"
SEEDS = (0, 1, 2, 3, 4)  # ours: of prompts, which train together
POINTS = (Point("0", inside="span"), Point("*", inside="lm/steps/*"))
