"""Score saved prompts, each alone and, with --ensemble, by their vote, all in one pass over the frozen model. The
model is checked by its fingerprint, not by its name. Of a task with labels it tells where the answers are wrong:
precision, recall and count of each label, and what is most often taken for what.

examples:
  softprompt eval --prompt runs/sst2 --data DATA
  softprompt eval --prompt runs/sst2/* --ensemble --data DATA --rows results.jsonl
  softprompt eval --prompt runs/mine --data test=test.csv --split test --errors wrong.jsonl
  softprompt eval --prompt runs/rte --task superglue/axg --split test --data DATA
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softprompt.base.files import held, write_whole
from softprompt.base.terminal import Display, counted, number, table, writing
from softprompt.cli.options import add_prompt, add_shared, opened, read_data


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt eval."""
    add_prompt(command)
    add_shared(command, ["data"], title="")
    command.add_argument("--split", default="dev", metavar="S", help="train, dev or test (default: dev)")
    command.add_argument("--ensemble", action="store_true", help="the prompts' vote too, in the same pass")
    command.add_argument("--limit", type=int, metavar="N", help="score only the first N examples (default: all)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    command.add_argument("--errors", metavar="FILE", help="write what was answered wrongly to this JSONL file")
    command.add_argument("--rows", metavar="FILE", help="append result rows to this JSONL file")


def run(args: argparse.Namespace) -> int:
    """Score the prompts, print a table or JSON, and append rows."""
    data = read_data(args.data, split=args.split)
    saved = opened(args, args.scoring)
    from softprompt.answering import append_rows, evaluate_prompts, to_line

    with Display() as display:
        scores = evaluate_prompts(
            saved, data=data, split=args.split, ensemble=args.ensemble, limit=args.limit, watch=display.watch()
        )
    print(json.dumps(_scores_json(scores), ensure_ascii=False) if args.json else _scores_text(scores))
    if args.errors:
        errors = Path(args.errors)
        with writing(errors), held(errors, is_file=True):
            write_whole(errors, "".join(map(to_line, scores.errors())))
    if args.rows:
        with writing(args.rows):
            append_rows(Path(args.rows), scores.rows())
    return 0


def _scores_json(scores: Any) -> dict[str, Any]:
    from softprompt.answering import by_label

    def entry(evaluation: Any) -> dict[str, Any]:
        return {
            "metrics": evaluation.metrics,
            "value": evaluation.headline,
            "illegal_rate": evaluation.illegal_rate,
            "labels": {label: asdict(score) for label, score in by_label(evaluation.confusion).items()},
            "confusion": evaluation.confusion,
        }

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


def _scores_text(scores: Any) -> str:
    folders, evaluations = scores.saved.folders, scores.evaluations
    names = list(evaluations[0].metrics)
    rows = [["prompt", *names, *(["mean"] if len(names) > 1 else []), "illegal"]]

    def add(title: str, metrics: Mapping[str, float], illegal_rate: float | None) -> None:
        values = [metrics[name] for name in names]
        mean = [sum(values) / len(values)] if len(names) > 1 else []
        rows.append([title, *map(number, [*values, *mean, illegal_rate])])

    for folder, evaluation in zip(folders, evaluations, strict=True):
        add(str(folder), evaluation.metrics, evaluation.illegal_rate)
    if len(folders) > 1:
        rates = [evaluation.illegal_rate for evaluation in evaluations]
        add("average", scores.average, sum(rates) / len(rates))
        best = evaluations[scores.best]
        add(f"best on {scores.split}: {folders[scores.best]}", best.metrics, best.illegal_rate)
        if scores.chosen is not None:
            chosen = evaluations[scores.chosen]
            add(f"chosen by selection: {folders[scores.chosen]}", chosen.metrics, chosen.illegal_rate)
    if scores.ensemble is not None:
        add("ensemble", scores.ensemble.metrics, scores.ensemble.illegal_rate)
    how = {"rank": "labels ranked", "generate": "answers generated"}[scores.saved.scoring]
    scored = f"{counted(len(scores.examples), 'example')} scored"
    cut = f", {scores.num_cut:,} inputs cut" if scores.num_cut else ""
    parts = [f"{scores.saved.task.name} {scores.split}: {scores.note}; {scored}, {how}{cut}\n{table(rows)}"]
    for folder, evaluation in zip(folders, evaluations, strict=True):
        parts.append(_where_wrong(str(folder), evaluation.confusion))
    if scores.ensemble is not None:
        parts.append(_where_wrong("ensemble", scores.ensemble.confusion))
    return "\n\n".join(filter(None, parts))


def _where_wrong(title: str, confusion: Any) -> str:
    """Each label's scores, and the commonest confusions; nothing for a task without labels."""
    from softprompt.answering import by_label, commonest

    if not confusion:
        return ""
    rows = [[title, "precision", "recall", "count"]]
    for label, score in by_label(confusion).items():
        rows.append([label, number(score.precision), number(score.recall), f"{score.count:,}"])
    wrong = []
    for right, answer, count in commonest(confusion):
        wrong.append(f"{right} as {answer or 'no label'} ({count:,})")
    return table(rows) + (f"\nmost often wrong: {', '.join(wrong)}" if wrong else "")
