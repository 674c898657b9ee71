"""Teach one frozen language model many tasks by prompt tuning.

The names below are imported on first use, so that `import softprompt` alone costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompt.backbone import FrozenLM
    from softprompt.config import RunConfig
    from softprompt.data import TextFormat
    from softprompt.evaluation import Evaluation, Result
    from softprompt.formats import convert
    from softprompt.inference import Engine
    from softprompt.loading import load
    from softprompt.prediction import evaluate_prompts, open_prompts, predict_file, predict_records
    from softprompt.preview import estimate, token_lengths
    from softprompt.prompt import Card, SoftPrompt, load_prompt, save_prompt
    from softprompt.run import Watch, evaluate, train
    from softprompt.tasks import Task, file_task, get_task

__all__ = [
    "Card",
    "Engine",
    "Evaluation",
    "FrozenLM",
    "Result",
    "RunConfig",
    "SoftPrompt",
    "Task",
    "TextFormat",
    "Watch",
    "convert",
    "estimate",
    "evaluate",
    "evaluate_prompts",
    "file_task",
    "get_task",
    "load",
    "load_prompt",
    "open_prompts",
    "predict_file",
    "predict_records",
    "save_prompt",
    "token_lengths",
    "train",
]

_MODULES = {
    "backbone": ("FrozenLM",),
    "data": ("TextFormat",),
    "evaluation": ("Evaluation", "Result"),
    "formats": ("convert",),
    "inference": ("Engine",),
    "loading": ("load",),
    "prediction": ("evaluate_prompts", "open_prompts", "predict_file", "predict_records"),
    "preview": ("estimate", "token_lengths"),
    "prompt": ("Card", "SoftPrompt", "load_prompt", "save_prompt"),
    "run": ("RunConfig", "Watch", "evaluate", "train"),
    "tasks": ("Task", "file_task", "get_task"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'softprompt' has no attribute {name!r}")
    value = getattr(import_module(f"softprompt.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
