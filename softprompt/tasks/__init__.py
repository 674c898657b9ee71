"""Tasks: records in, text out, and scores for the text that comes back. No torch.

Benchmarks by name, tasks of one's own from two templates, their files in any format, which examples are held out, and
what is asked of a prompt: records of its task, or inputs finished already.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.tasks.catalog import TASKS, get_task
    from softprompt.tasks.items import Item, count_items, examples_of, examples_of_each, read_items, read_lines
    from softprompt.tasks.means import mean_name, over_seeds, seed_means, spread
    from softprompt.tasks.multi_task import mixed, mixture
    from softprompt.tasks.own_file import file_task
    from softprompt.tasks.reading import Data, chat_templates, has_split, read_examples, read_omitted, read_split
    from softprompt.tasks.records import check_finite, check_kind, open_text, plain_suffix, read_object, read_records
    from softprompt.tasks.selection import folds, hold_out, in_whole_groups, without_overlap
    from softprompt.tasks.task import UNLABELLED, Example, Task, all_fields, headline

__getattr__, __all__ = face(__name__)
