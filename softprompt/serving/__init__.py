"""Serving of hundreds of prompts from one copy of the model: the scheduler, the table of prompts, what is asked and
answered. HTTP is the folder `http`.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.serving.admission import MAX_INPUT, MAX_LABEL, MAX_LABELS, MAX_NEW
    from softprompt.serving.prompt_table import PromptTable, Registered
    from softprompt.serving.request import (
        Answer,
        Cancelled,
        DeadlineExceeded,
        NotServing,
        Part,
        PartAnswer,
        Piece,
        QueueFull,
        Request,
        Stats,
        Ticket,
    )
    from softprompt.serving.scheduler import Scheduler

__getattr__, __all__ = face(__name__)
