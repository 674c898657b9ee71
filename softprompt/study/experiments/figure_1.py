"""Figure 1: quality by model size, of prompt tuning, model tuning and prompt design.

Ask about the LM-adapted models of a family, such as `FAMILY/micro/lm`: the paper's model tuning is of the model before
adaptation, which is `span` beside it. Multi-task tuning takes all the tasks that are asked about, without T5's DPR.
"""

from softprompt.study.experiments.point import Point

TITLE = "Quality by model size (figure 1)"
SEEDS = (0, 1, 2)  # ours: model tuning's trainings come one after another
POINTS = (
    Point("prompt tuning", method="prompt-tuning"),
    Point("model tuning", method="model-tuning"),
    Point("model tuning from span", method="model-tuning", inside="../span", is_optional=True),
    Point("model tuning (multi-task)", method="multi-task-model-tuning"),
    Point("prompt design", method="prompt-design"),
)
