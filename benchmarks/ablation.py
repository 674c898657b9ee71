"""The paper's figure 3 c and d in miniature: pre-training objective and adaptation steps of the frozen model.

    python benchmarks/ablation.py --family runs/family --size mini --data DIR       # about an hour on 2 cores
    python benchmarks/ablation.py --size mini --table                               # from the rows, no run

Points, each the same shape, tasks, seeds and settings of prompt tuning:

    random           untrained weights
    tables           the same, with the two tables that the family's pre-training starts from
    span             span corruption
    span+sentinel    the same model, a sentinel in front of every target
    span+            span corruption for as many steps more as the adaptation takes, at its rate and batch
    lm@N             LM-adapted for N steps: 1 %, 5 % and 10 % of the pre-training

The three seeds of all tasks train together. Greedy generation is the headline and chooses the step, as in the paper;
the same prompts are then scored by ranking the labels (with the sentinel in front of each, where targets have it).
Every prompt, point and scoring is a row of results/t5_ablation.jsonl; a point whose rows stand there is not made again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from baselines import bars, data_folder
from family import TABLES_FROM

from softprompt.backbone import FrozenLM
from softprompt.data import TextFormat
from softprompt.evaluation import Result, append_rows, read_rows
from softprompt.loading import load
from softprompt.pretraining import save_model
from softprompt.run import RunConfig, Trained, Watch, evaluate, load_model, train
from softprompt.shapes import SIZES, new_model
from softprompt.tasks import get_task, read_split
from softprompt.tokenizer import load_tokenizer

EXPERIMENT = "t5_ablation"
TASKS = ("glue/sst2", "glue/mrpc", "superglue/rte", "superglue/wic")
OTHER = {"generate": "rank", "rank": "generate"}


class Point(NamedTuple):
    """One frozen model, and how its targets begin."""

    name: str
    folder: Path
    sentinel: str = "none"


def points_of(family: Path, size: str) -> list[Point]:
    """Every point of a size, in the order of the figure. ValueError where a model is missing."""
    folder = family / size
    adapted = sorted((folder / "lm" / "steps").glob("*"), key=lambda path: int(path.name))
    points = [
        Point("random", folder / "random"),
        Point("tables", folder / "tables"),
        Point("span", folder / "span"),
        Point("span+sentinel", folder / "span", "targets"),
        Point("span+", folder / "span+"),
        *(Point(f"lm@{path.name}", path) for path in adapted),
    ]
    missing = [point.folder for point in points[2:] if not (point.folder / "config.json").is_file()]
    if missing or not adapted:
        raise ValueError(f"no model in {(missing or [folder / 'lm' / 'steps'])[0]}; python benchmarks/family.py first")
    return points


def write_untrained(points: Sequence[Point], size: str) -> None:
    """The first two points, which nothing trains: the shape's own random weights, with the family's vocabulary."""
    tokenizer = load_tokenizer(points[2].folder)
    for point in points[:2]:
        if not (point.folder / "config.json").is_file():
            wider = load(TABLES_FROM, dtype="float32") if point.name == "tables" else None
            save_model(new_model(SIZES[size], tokenizer, seed=1, tables_from=wider), tokenizer, point.folder)


def measure(point: Point, size: str, config: RunConfig, rows: Path, watch: Watch) -> None:
    """Train a point's prompts and append its rows, by both scorings."""
    wanted = {(task, seed, scoring) for task in config.task for seed in config.seeds for scoring in OTHER}
    there = {(row.task, row.seed, row.scoring) for row in rows_of(rows, size) if row.config["point"] == point.name}
    if wanted <= there:
        watch.message(f"{size} {point.name}: all rows are in {rows}")
        return
    own = replace(config, model=str(point.folder), sentinel=point.sentinel, out=config.out / size / point.name)
    lm = load_model(own)
    delivered = train(own, lm=lm, watch=watch)
    written = {(row.task, row.seed): row for row in read_rows(own.out / "results.jsonl")}
    made = []
    for task in config.task:
        of_task = [one for one in delivered if one.prompt.card.task == task]
        made += _rows_of_task(task, of_task, written, lm, own, watch)
    for row in made:
        kept = {**row.config, "point": point.name, "size": size, "sentinel": point.sentinel}
        row = replace(row, experiment=EXPERIMENT, model=f"t5-{size} {point.name}", config=kept)
        append_rows(rows, [row])


def _rows_of_task(
    task: str, delivered: Sequence[Trained], written: Any, lm: FrozenLM, config: RunConfig, watch: Watch
) -> list[Result]:
    """The rows of one task's prompts: those that training wrote, and those of the other scoring."""
    examples = read_split(get_task(task), "dev", config.data).examples
    form = TextFormat.from_json(delivered[0].prompt.card.text)
    made = []
    first = written[task, delivered[0].prompt.card.seed]
    values = [one.prompt.values for one in delivered]
    scored = evaluate(lm, values, get_task(task), examples, form, scoring=OTHER[first.scoring], watch=watch)
    for one, evaluation in zip(delivered, scored, strict=True):
        row = written[task, one.prompt.card.seed]
        other = replace(
            row,
            scoring=OTHER[row.scoring],
            metrics=evaluation.metrics,
            value=evaluation.headline,
            illegal_rate=evaluation.illegal_rate,
        )
        made += [row, other]
    return made


def rows_of(rows: Path, size: str) -> list[Result]:
    """The rows of a size."""
    return [row for row in read_rows(rows) if row.experiment == EXPERIMENT and row.config["size"] == size]


def table(rows: Sequence[Result]) -> str:
    """Mean and deviation over seeds of each task, and the mean over tasks, by point and scoring, in percent."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    lines = [
        f"| frozen model | scoring | {' | '.join(tasks)} | mean | illegal |",
        f"|---|---|{'--:|' * (len(tasks) + 2)}",
    ]
    for point in dict.fromkeys(row.config["point"] for row in rows):
        for scoring in OTHER:
            own = [row for row in rows if row.config["point"] == point and row.scoring == scoring]
            cells = []
            for task in tasks:
                values = [100 * row.value for row in own if row.task == task]
                cells.append(f"{fmean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else "-")
            mean = 100 * fmean(row.value for row in own)
            illegal = fmean(row.illegal_rate for row in own)
            lines.append(f"| {point} | {scoring} | {' | '.join(cells)} | {mean:.1f} | {illegal:.0%} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("runs/family"), help="what benchmarks/family.py wrote")
    parser.add_argument("--size", default="mini", choices=("micro", "tiny", "mini"))
    parser.add_argument("--data", type=Path, help="folder of official files (default: $SOFTPROMPT_DATA)")
    parser.add_argument("--task", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=20, help="bound on one point (default: %(default)g)")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--rows", type=Path, default=Path("results/t5_ablation.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    given = parser.parse_args(words)
    try:
        if not given.table:
            config = RunConfig(
                model="-",
                task=tuple(given.task),
                data=data_folder(given.data),
                out=given.out,
                seeds=tuple(given.seeds),
                steps=given.steps,
                minutes=given.minutes,
                scoring="generate",
                max_input_length=256,
                select="held-out",
                dtype="float32",
            )
            points = points_of(given.family, given.size)
            write_untrained(points, given.size)
            for point in points:
                measure(point, given.size, config, given.rows, bars(given.minutes))
        found = rows_of(given.rows, given.size)
        print(table(found) if found else f"no rows of {given.size} in {given.rows}")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
