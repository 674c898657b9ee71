"""Table 3: five prompts of one task, their mean, their best and their vote."""

from softprompt.study.experiments.point import Point

TITLE = "Ensembles (table 3)"
SEEDS = (0, 1, 2, 3, 4)
POINTS = (Point("five prompts", {"seeds": SEEDS}),)
