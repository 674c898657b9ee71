"""The paper's figures and tables as lists of configurations, one file each; `softprompt.study.study` runs them.

A file has TITLE, SEEDS, which are run unless others are asked for, and POINTS: what is drawn, each a name and what it
changes in the run that all of them share. Where points differ in the frozen model, it is a folder inside the one that
is asked about: what `softprompt pretrain` and `adapt` wrote side by side, as `span`, `span+`, `lm` and `lm/steps/N`.
"""

from softprompt.study.experiments import figure_1, figure_3a, figure_3b, figure_3c, figure_3d, table_1, table_2, table_3

EXPERIMENTS = {
    "figure-1": figure_1,
    "figure-3a": figure_3a,
    "figure-3b": figure_3b,
    "figure-3c": figure_3c,
    "figure-3d": figure_3d,
    "table-1": table_1,
    "table-2": table_2,
    "table-3": table_3,
}
