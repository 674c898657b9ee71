"""softprompt convert"""

from __future__ import annotations

import argparse

from softprompt.commands.options import Command
from softprompt.commands.terminal import counted, writing


def _add_convert(command: argparse.ArgumentParser) -> None:
    kinds = ("t5x", "peft", "tgis")
    command.add_argument("source", metavar="SRC", help="file or folder of the prompt")
    command.add_argument("--from", dest="from_kind", choices=kinds, help="default: seen from the files")
    command.add_argument("--to", dest="to_kind", choices=kinds, required=True)
    command.add_argument("--out", required=True, metavar="DST", help="a file for t5x, else a folder")
    command.add_argument("--model", metavar="NAME", help="the prompt's model, where the source does not record it")


def _convert(args: argparse.Namespace) -> int:
    from softprompt.formats import convert

    with writing(args.out):
        prompt = convert(args.source, args.out, to_kind=args.to_kind, from_kind=args.from_kind, model_name=args.model)
    print(f"{args.out}: {counted(prompt.length, 'prompt token')} of width {prompt.width}, {args.to_kind}")
    return 0


COMMAND = Command(
    add_flags=_add_convert,
    run=_convert,
    summary="read and write other programs' prompts",
    text=(
        "Convert a prompt between T5X (.npy), PEFT (a folder, this program's own form) and TGIS (a folder), bit for "
        "bit. Only PEFT's form keeps the card with task, labels and text format."
    ),
    examples=(
        "softprompt convert prompt.npy --from t5x --to peft --model google/t5-base-lm-adapt --out prompts/sst2",
        "softprompt convert runs/sst2 --to tgis --out tgis/sst2",
    ),
)
