"""Figure 3b: how prompts begin."""

from softprompt.experiments.point import Point

TITLE = "Prompt initialisation (figure 3b)"
POINTS = tuple(Point(init, {"init": init}) for init in ("uniform", "vocab", "class-labels"))
