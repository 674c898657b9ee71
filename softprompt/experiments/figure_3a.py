"""Figure 3a: prompt length."""

from softprompt.experiments.point import Point

TITLE = "Prompt length (figure 3a)"
POINTS = tuple(Point(str(length), {"prompt_length": (length,)}) for length in (1, 5, 20, 100, 150))
