"""Table 1: trained on SQuAD, scored on the other domains of MRQA as they are.

A set whose data is missing is told and noted in the rows: TextbookQA's is not to be had.
"""

from softprompt.study.experiments.point import Point

TITLE = "From SQuAD to other domains (table 1)"
SEEDS = (0, 1, 2)  # ours: model tuning's trainings come one after another
ELSEWHERE = {
    f"mrqa/{name}": {} for name in ("textbookqa", "bioasq", "race", "relation_extraction", "duorc", "drop")
}  # paper, table 1
POINTS = (
    Point("prompt tuning", {"task": ("mrqa/squad",)}, method="prompt-tuning", also=ELSEWHERE),
    Point("model tuning", {"task": ("mrqa/squad",)}, method="model-tuning", also=ELSEWHERE),
)
