"""softprompt eval"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.terminal import Display, counted, number, table, writing
from softprompt.cli.options import add_flags, add_prompt, opened, read_data


def _add_eval(command: argparse.ArgumentParser) -> None:
    add_prompt(command)
    add_flags(command, ["data"], title="")
    command.add_argument("--split", default="dev", metavar="S", help="train, dev or test (default: dev)")
    command.add_argument("--ensemble", action="store_true", help="the prompts' vote too, in the same pass")
    command.add_argument("--limit", type=int, metavar="N", help="score only the first N examples (default: all)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    command.add_argument("--rows", metavar="FILE", help="append result rows to this JSONL file")


def _eval(args: argparse.Namespace) -> int:
    data = read_data(args.data, split=args.split)
    saved = opened(args, args.scoring)
    from softprompt.answering import append_rows, evaluate_prompts

    display = Display()
    try:
        scores = evaluate_prompts(
            saved,
            data=data,
            split=args.split,
            ensemble=args.ensemble,
            limit=args.limit,
            watch=display.watch(),
        )
    finally:
        display.close()
    print(json.dumps(_eval_json(scores), ensure_ascii=False) if args.json else _eval_table(scores))
    if args.rows:
        with writing(args.rows):
            append_rows(Path(args.rows), scores.rows())
    return 0


def _eval_json(scores: Any) -> dict[str, Any]:
    def entry(evaluation: Any) -> dict[str, Any]:
        return {"metrics": evaluation.metrics, "value": evaluation.headline, "illegal_rate": evaluation.illegal_rate}

    folders = [str(folder) for folder in scores.saved.folders]
    return {
        "task": scores.saved.task.name,
        "split": scores.split,
        "scoring": scores.saved.scoring,
        "num_examples": len(scores.examples),
        "num_cut": scores.num_cut,
        "prompts": [{"prompt": f, **entry(e)} for f, e in zip(folders, scores.evaluations, strict=True)],
        "average": scores.average,
        "best": folders[scores.best],
        "chosen": None if scores.chosen is None else folders[scores.chosen],
        "ensemble": None if scores.ensemble is None else entry(scores.ensemble),
    }


def _eval_table(scores: Any) -> str:
    names = list(scores.evaluations[0].metrics)

    def cells(title: str, metrics: Mapping[str, float], illegal_rate: float | None) -> list[str]:
        mean = [number(sum(metrics.values()) / len(metrics))] if len(names) > 1 else []
        return [title, *(number(metrics[name]) for name in names), *mean, number(illegal_rate)]

    def of(place: int, title: str) -> list[str]:
        evaluation = scores.evaluations[place]
        return cells(title, evaluation.metrics, evaluation.illegal_rate)

    folders = scores.saved.folders
    rows = [["prompt", *names, *(["mean"] if len(names) > 1 else []), "illegal"]]
    rows += [of(place, str(folder)) for place, folder in enumerate(folders)]
    if len(folders) > 1:
        rates = [evaluation.illegal_rate for evaluation in scores.evaluations]
        rows.append(cells("average", scores.average, sum(rates) / len(rates)))
        rows.append(of(scores.best, f"best on {scores.split}: {folders[scores.best]}"))
        if scores.chosen is not None:
            rows.append(of(scores.chosen, f"chosen by selection: {folders[scores.chosen]}"))
    if scores.ensemble is not None:
        rows.append(cells("ensemble", scores.ensemble.metrics, scores.ensemble.illegal_rate))
    how = {"rank": "labels ranked", "generate": "answers generated"}[scores.saved.scoring]
    scored = f"{counted(len(scores.examples), 'example')} scored"
    cut = f", {scores.num_cut:,} inputs cut" if scores.num_cut else ""
    return f"{scores.saved.task.name} {scores.split}: {scores.note}; {scored}, {how}{cut}\n{table(rows)}"


COMMAND = Command(
    add_flags=_add_eval,
    run=_eval,
    text=(
        "Score saved prompts, each alone and, with --ensemble, by their vote, all in one pass over the frozen model. "
        "The model is checked by its fingerprint, not by its name."
    ),
    examples=(
        "softprompt eval --prompt runs/sst2 --data DATA",
        "softprompt eval --prompt runs/sst2/* --ensemble --data DATA --rows results.jsonl",
        "softprompt eval --prompt runs/rte --task superglue/axg --split test --data DATA",
    ),
)
