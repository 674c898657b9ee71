"""Figure 3b: how prompts begin."""

from softprompt.study.experiments.point import Point

TITLE = "Prompt initialisation (figure 3b)"
SEEDS = (0, 1, 2, 3, 4)  # ours: of prompts, which train together
POINTS = tuple(Point(init, {"init": init}) for init in ("uniform", "vocab", "class-labels"))
