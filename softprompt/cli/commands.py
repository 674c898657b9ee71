"""Every command: where it is, and what the list of commands says of it.

Places are text, so that `--help` imports none of them, and the product none of the study's or the pre-training's.
"""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("softprompt.cli.train:COMMAND", "train prompts on a task"),
    "eval": ("softprompt.cli.eval:COMMAND", "score prompts on a split"),
    "predict": ("softprompt.cli.predict:COMMAND", "answer lines or records"),
    "serve": ("softprompt.cli.serve:COMMAND", "serve many prompts over HTTP from one model"),
    "convert": ("softprompt.cli.convert:COMMAND", "read and write other programs' prompts"),
    "compare": (
        "softprompt.study.commands.compare:COMMAND",
        "prompt tuning beside model tuning, LoRA and others, and prompt design, on one task",
    ),
    "experiment": (
        "softprompt.study.commands.experiment:COMMAND",
        "run a figure or a table of the paper on your models",
    ),
    "report": (
        "softprompt.study.commands.report:COMMAND",
        "rows to one page: the paper's figures and tables, ours beside them",
    ),
    "rerun": ("softprompt.study.commands.rerun:COMMAND", "train the prompt of a result row once more"),
    "inspect": ("softprompt.cli.inspect:COMMAND", "what a prompt looks like: nearest tokens, norms, drift, labels"),
    "tasks": ("softprompt.cli.tasks:COMMAND", "list tasks, or show one's examples"),
    "params": ("softprompt.study.commands.params:COMMAND", "parameters that a task takes, by method and model size"),
    "vocabulary": ("softprompt.pretraining.commands.vocabulary:COMMAND", "learn a vocabulary from text"),
    "pretrain": ("softprompt.pretraining.commands.pretrain:COMMAND", "train a T5 on text, by span corruption"),
    "adapt": ("softprompt.pretraining.commands.adapt:COMMAND", "LM-adapt a T5: continue text instead of filling spans"),
}
"""A command's name: module and variable of its `Command`, and a few words."""
