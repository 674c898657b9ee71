"""Tasks: records in, text out, and scores for the text that comes back. No torch."""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.tasks.catalog import TASKS, get_task
    from softprompt.tasks.mixture import mixed, mixture
    from softprompt.tasks.own_file import file_task
    from softprompt.tasks.reading import Reading, has_split, read_examples, read_split
    from softprompt.tasks.records import read_records
    from softprompt.tasks.selection import folds, hold_out, without_overlap
    from softprompt.tasks.task import SPLITS, UNLABELLED, Example, Hub, Task, headline, illegal_rate, with_task_name

__getattr__, __all__ = face(
    __name__,
    {
        "catalog": ("TASKS", "get_task"),
        "mixture": ("mixed", "mixture"),
        "own_file": ("file_task",),
        "reading": ("Reading", "has_split", "read_examples", "read_split"),
        "records": ("read_records",),
        "selection": ("folds", "hold_out", "without_overlap"),
        "task": ("Example", "Hub", "SPLITS", "Task", "UNLABELLED", "headline", "illegal_rate", "with_task_name"),
    },
)
