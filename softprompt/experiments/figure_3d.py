"""Figure 3d: how long the frozen model was LM-adapted."""

from softprompt.experiments.point import Point

TITLE = "Steps of LM adaptation (figure 3d)"
POINTS = (Point("0", inside="span"), Point("*", inside="lm/steps/*"))
