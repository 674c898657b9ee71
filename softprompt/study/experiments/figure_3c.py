"""Figure 3c: what the frozen model was pre-trained on, and three controls of ours where there are such models.

`random` has the shape untrained, `tables` the vocabulary's tables that pre-training starts from and else random
weights, `span+` span corruption for as many steps more as the adaptation takes.
"""

from softprompt.study.experiments.point import Point

TITLE = "Pre-training objective (figure 3c)"
SEEDS = (0, 1, 2, 3, 4)  # ours: of prompts, which train together
POINTS = (
    Point("random", inside="random", is_optional=True),
    Point("tables", inside="tables", is_optional=True),
    Point("span", inside="span"),
    Point("span+sentinel", {"sentinel": "targets"}, inside="span"),
    Point("span+", inside="span+", is_optional=True),
    Point("lm", inside="lm"),
)
