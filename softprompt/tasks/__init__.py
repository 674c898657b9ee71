"""Tasks: records in, text out, and scores for the text that comes back. No torch."""

from softprompt.tasks.catalog import TASKS, get_task
from softprompt.tasks.mixture import mixed, mixture
from softprompt.tasks.own_file import file_task
from softprompt.tasks.reading import Reading, has_split, read_examples, read_split
from softprompt.tasks.records import read_records
from softprompt.tasks.selection import folds, hold_out, without_overlap
from softprompt.tasks.task import SPLITS, UNLABELLED, Example, Hub, Task, headline, illegal_rate, with_task_name

__all__ = [
    "SPLITS",
    "TASKS",
    "UNLABELLED",
    "Example",
    "Hub",
    "Reading",
    "Task",
    "file_task",
    "folds",
    "get_task",
    "has_split",
    "headline",
    "hold_out",
    "illegal_rate",
    "mixed",
    "mixture",
    "read_examples",
    "read_records",
    "read_split",
    "with_task_name",
    "without_overlap",
]
