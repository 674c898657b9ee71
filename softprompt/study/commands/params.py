"""Count what a task takes by prompt tuning, prefix tuning, WARP, prompt design and model tuning: the paper's table 4
and figure 4 for T5 1.1 small to XXL, or any model's with --model. From configurations alone; no weights are read.

examples:
  softprompt params
  softprompt params --model bundled/t5-mini
  softprompt params --model google/t5-base-lm-adapt --prompt-length 20,100
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

from softprompt.base.terminal import table
from softprompt.cli import add_shared, say_if_slow
from softprompt.study import TABLE_4_LENGTHS

PREFIXES = (
    "The paper's count of prefix tuning is of its own T5: p x width x (layers + 1). What softprompt compare trains is "
    "PEFT's:\n2 x p x layers x heads of keys x their width, in an encoder-decoder those of the decoder alone."
)


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt params."""
    command.add_argument("--model", metavar="M", help="count for this model (default: the paper's five T5 1.1)")
    of_table = {"help": "prompt tokens, with --model", "shown": ",".join(map(str, TABLE_4_LENGTHS))}
    add_shared(command, ["prompt_length"], "", {"prompt_length": of_table})
    command.add_argument("--json", action="store_true", help="one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the paper's table 4 and figure 4, or what the methods train of one model."""
    from softprompt.models import read_architecture
    from softprompt.study import params

    if args.model is None:
        if args.prompt_length is not None:
            raise ValueError("--prompt-length goes with --model; without it the lengths are those of the paper's table")
        rows, lines = params.table_4(), params.figure_4()
        if args.json:
            print(json.dumps({"table_4": list(map(asdict, rows)), "figure_4": list(map(asdict, lines))}))
        else:
            print(_paper_text(rows, lines))
        return 0
    say_if_slow(args.model)
    lengths = args.prompt_length or TABLE_4_LENGTHS
    found = read_architecture(args.model)
    counts = params.counts(found, lengths)
    if args.json:
        print(json.dumps({**asdict(found), "prompt_lengths": lengths, "methods": dict(counts)}))
        return 0
    print(f"{found.name}: {found.num_parameters:,} parameters, width {found.width}, {found.num_layers} layers\n")
    cells = [["a task's parameters", *(f"p = {length}" for length in lengths), f"share at {lengths[-1]}"]]
    for method, numbers in counts:
        texts = [f"{value:,.0f}" if value == int(value) else f"{value:,.1f}" for value in numbers]
        cells.append([method, *texts, f"{100 * numbers[-1] / found.num_parameters:.4g} %"])
    print(f"{table(cells)}\n\n{PREFIXES}")
    return 0


def _paper_text(rows: list[Any], lines: list[Any]) -> str:
    from softprompt.study import NAMES, figure_4_cells

    cells = [["size", "prompt", "trained", "in all", "share", ""]]
    for row in rows:
        note = f"* {', '.join(row.misprints)}" if row.misprints else ""
        share = f"{row.percent:.5f} %"
        cells.append([NAMES[row.size], str(row.length), f"{row.trainable:,}", f"{row.total:,}", share, note])
    parts = [
        "Table 4: trained parameters, T5 1.1 (* the paper prints otherwise)\n",
        table(cells),
        "\nFigure 4: a task's parameters, mean over prompts of 1 to 100 tokens\n",
        table(figure_4_cells(lines)),
        "\nThe paper's lines are the same but for:",
    ]
    for line in lines:
        if line.reason:
            parts.append(f"{line.method} on {NAMES[line.size]}: {line.reason} (it has {line.paper:.4g})")
    return "\n".join(parts)
