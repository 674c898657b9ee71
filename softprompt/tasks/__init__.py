"""Tasks: records in, text out, and scores for the text that comes back. No torch.

Benchmarks by name, tasks of one's own from two templates, their files in any format, and which examples are held out.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.tasks.catalog import TASKS, get_task
    from softprompt.tasks.multi_task import mixed, mixture
    from softprompt.tasks.own_file import Template, file_task
    from softprompt.tasks.reading import Data, Reading, has_split, read_examples, read_split
    from softprompt.tasks.records import (
        COMPRESSIONS,
        READERS,
        decoded,
        open_bytes,
        open_text,
        plain_suffix,
        read_object,
        read_records,
        read_rows,
    )
    from softprompt.tasks.selection import folds, hold_out, without_overlap
    from softprompt.tasks.task import SPLITS, UNLABELLED, Example, Hub, Task, headline, text_column

__getattr__, __all__ = face(
    __name__,
    {
        "catalog": ("TASKS", "get_task"),
        "multi_task": ("mixed", "mixture"),
        "own_file": ("Template", "file_task"),
        "reading": ("Data", "Reading", "has_split", "read_examples", "read_split"),
        "records": (
            "COMPRESSIONS",
            "READERS",
            "decoded",
            "open_bytes",
            "open_text",
            "plain_suffix",
            "read_object",
            "read_records",
            "read_rows",
        ),
        "selection": ("folds", "hold_out", "without_overlap"),
        "task": ("Example", "Hub", "SPLITS", "Task", "UNLABELLED", "headline", "text_column"),
    },
)
