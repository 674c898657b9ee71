"""Every command: its module, and what the list of commands says of it.

A command's module has a docstring, which is its `--help` and ends with examples; `add_flags(parser)`; and `run(args)`,
which does the work, prints, and gives the exit code. Modules are named by text, so that `--help` imports none of them,
and the product none of the study's or the pre-training's.
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("softprompt.cli.train", "train prompts on a task"),
    "eval": ("softprompt.cli.eval", "score prompts on a split"),
    "predict": ("softprompt.cli.predict", "answer lines or records"),
    "serve": ("softprompt.cli.serve", "serve many prompts over HTTP from one model"),
    "convert": ("softprompt.cli.convert", "read and write other programs' prompts"),
    "compare": (
        "softprompt.study.commands.compare",
        "prompt tuning beside model tuning, LoRA and others, and prompt design, on one task",
    ),
    "experiment": (
        "softprompt.study.commands.experiment",
        "run a figure or a table of the paper on your models",
    ),
    "report": (
        "softprompt.study.commands.report",
        "rows to one page: the paper's figures and tables, ours beside them",
    ),
    "rerun": ("softprompt.study.commands.rerun", "train the prompt of a result row once more"),
    "inspect": ("softprompt.cli.inspect", "what a prompt looks like: nearest tokens, norms, drift, labels"),
    "tasks": ("softprompt.cli.tasks", "list tasks, or show one's examples"),
    "params": ("softprompt.study.commands.params", "parameters that a task takes, by method and model size"),
    "vocabulary": ("softprompt.pretraining.commands.vocabulary", "learn a vocabulary from text"),
    "pretrain": ("softprompt.pretraining.commands.pretrain", "train a T5 on text, by span corruption"),
    "adapt": ("softprompt.pretraining.commands.adapt", "LM-adapt a T5: continue text instead of filling spans"),
}
