"""Teach one frozen language model many tasks by prompt tuning.

The names below are imported on first use, so that `import softprompt` alone costs nothing.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.answering import (
        Engine,
        Evaluation,
        Result,
        evaluate,
        evaluate_prompts,
        open_prompts,
        predict_file,
        predict_records,
    )
    from softprompt.base.watch import Watch
    from softprompt.models import FrozenLM, TextFormat, load
    from softprompt.prompts import Card, SoftPrompt, convert, load_prompt, save_prompt
    from softprompt.tasks import Task, file_task, get_task
    from softprompt.training import RunConfig, estimate, token_lengths, train

__getattr__, __all__ = face(__name__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
