"""The commands, one file each: their flags, the call they make, and what they print."""

from softprompt.commands import (
    compare,
    convert,
    eval,
    experiment,
    inspect,
    params,
    predict,
    pretrain,
    report,
    rerun,
    serve,
    tasks,
    train,
    vocabulary,
)
from softprompt.commands.options import Command

COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "eval": eval.COMMAND,
    "predict": predict.COMMAND,
    "serve": serve.COMMAND,
    "convert": convert.COMMAND,
    "compare": compare.COMMAND,
    "experiment": experiment.COMMAND,
    "report": report.COMMAND,
    "rerun": rerun.COMMAND,
    "inspect": inspect.COMMAND,
    "tasks": tasks.COMMAND,
    "params": params.COMMAND,
    "vocabulary": vocabulary.COMMAND,
    "pretrain": pretrain.COMMAND,
    "adapt": pretrain.ADAPT_COMMAND,
}
