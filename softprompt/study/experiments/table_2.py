"""Table 2: trained on QQP and scored on MRPC, and the other way round, one's labels taken for the other's."""

from softprompt.study.experiments.point import Point

TITLE = "Between QQP and MRPC (table 2)"
SEEDS = (0, 1, 2)  # ours: model tuning's trainings come one after another
TO_MRPC = {"duplicate": "equivalent", "not_duplicate": "not_equivalent"}
TO_QQP = {there: here for here, there in TO_MRPC.items()}
WAYS = {"glue/qqp": {"glue/mrpc": TO_MRPC}, "glue/mrpc": {"glue/qqp": TO_QQP}}
POINTS = tuple(
    Point(f"{method.replace('-', ' ')}, {task}", {"task": (task,)}, method=method, also=also)
    for task, also in WAYS.items()
    for method in ("prompt-tuning", "model-tuning")
)
