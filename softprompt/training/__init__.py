"""Training of prompts, many at once: settings and presets, the plan, the loop, the method's protocol, optimizers,
and what a run will take.

`run.py` is where a reader starts: a configuration in, prompts and rows out.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.training.checkpoint import read_checkpoint, uninterrupted, write_checkpoint
    from softprompt.training.estimation import Estimate, estimate, token_lengths
    from softprompt.training.loop import Fitted, Member, Observer, TrainConfig, fit
    from softprompt.training.methods import Gradients, Method, PromptTuning, gradients, gradients_of_rows
    from softprompt.training.optimizers import Adafactor, AdamW, Optimizer, rate_multiplier
    from softprompt.training.plan import (
        TaskData,
        at_most,
        check_plans,
        dev_examples,
        format_of,
        keeps_overlap,
        members_of,
        plan_prompts,
        prepare,
        tasks_of,
    )
    from softprompt.training.run import ROWS, CannotStart, Trained, folder_of, load_model, train, train_together
    from softprompt.training.settings import PROMPT_FILE, SETS_LENGTH, RunConfig, check_out
    from softprompt.training.starts import Starts, nearest_starts, prompts_in

__getattr__, __all__ = face(__name__)
