"""Train a T5-shaped model on as a prefix language model, the paper's LM adaptation: a text is cut at a random place,
its first part is the input and its rest the target. Models can be kept on the way, for an ablation of the steps.
Takes text and runs under torchrun as softprompt pretrain does.

examples:
  softprompt adapt --model runs/mini-span --corpus corpus --steps 1000 --keep 0,100,500 --out runs/mini-lm
  softprompt adapt --model google/t5-v1_1-small --corpus corpus --preset paper --out runs/small-lm
"""

import argparse

from softprompt.pretraining.commands.pretrain import add_training_flags, starting, train_model

OBJECTIVE = "prefix-lm"


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt adapt."""
    command.add_argument("--model", required=True, metavar="M", help="folder or hub id of a T5-shaped model")
    add_training_flags(command, OBJECTIVE)


def run(args: argparse.Namespace) -> int:
    """Read the model, and train it on."""
    with starting(args, OBJECTIVE):
        from softprompt.pretraining import read_model

        return train_model(args, *read_model(args.model), OBJECTIVE, args.model)
