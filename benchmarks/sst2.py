"""SmolLM2-135M on SST-2: one prompt a seed, and the three together.

    python benchmarks/sst2.py --minutes 20 --data DIR

Each seed is a run of its own of at most --minutes; with --together the seeds share one run and its minutes. The
held-out part of the training file chooses step and setting, the 872 dev sentences are scored once, and then the
delivered prompts score `test-labeled.tsv` once. Rows, with the curve in their notes, go to results/sst2.jsonl: dev and
test for each seed, and for the majority vote of all. Rows that stand there with the same settings are not made
again; --resume goes on from the checkpoint of a run that was interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from baselines import bars, data_folder, right_answers
from smollm2_study import add_settings, config_of, in_own_folder, kept_predictions, train_rows

from softprompt.answering.evaluation import Evaluation, ensemble, evaluate, judge
from softprompt.answering.rows import Result, append_rows, read_rows
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.models.text import TextFormat
from softprompt.prompts import load_prompt
from softprompt.tasks import Example, get_task, read_split
from softprompt.training.run import load_model
from softprompt.training.settings import RunConfig

EXPERIMENT = "sst2"
TASK = "glue/sst2"
TEST = "test-labeled.tsv"


def measure(
    config: RunConfig,
    lm: FrozenLM,
    *,
    data: Path,
    rows: Path,
    together: bool = False,
    runs: Path = Path("runs") / EXPERIMENT,
    watch: Watch | None = None,
) -> list[Result]:
    """All rows of SST-2 under these settings: each seed on dev, each on test, the vote on dev and on test."""
    watch = watch or Watch()
    config = replace(config, task=(TASK,), data=data)
    parts = [config.seeds] if together else [(seed,) for seed in config.seeds]
    own = [in_own_folder(replace(config, seeds=seeds), runs) for seeds in parts]
    on_dev = [row for part in own for row in train_rows(part, EXPERIMENT, rows, lm, watch=watch)]
    for row in on_dev:
        watch.message(f"{TASK}: seed {row.seed}, dev {row.value:.4f} at step {row.step}, {row.seconds / 60:.1f} min")
    wanted = _keys_of(on_dev)
    there = _by_key(rows)
    if not set(wanted) <= set(there):
        made = score_prompts(on_dev, lm, data, watch)
        append_rows(rows, [row for row in made if _key(row) not in there])
        there = _by_key(rows)
    others = [there[key] for key in wanted]
    for row in others:
        watch.message(f"{TASK}: {row.config['method']}, {row.split} {row.value:.4f} {json.dumps(row.notes['summary'])}")
    return on_dev + others


def score_prompts(on_dev: Sequence[Result], lm: FrozenLM, data: Path, watch: Watch) -> list[Result]:
    """Score the labelled test file with the delivered prompts in one pass; rows of each on test, and of the votes.

    The vote on dev is that of the answers each prompt gave when dev was scored.
    """
    task = get_task(TASK)
    dev = read_split(task, "dev", data).examples
    test = read_split(task, "test", {"test": test_file(data)}).examples
    folders = [Path(row.notes["prompt"]) for row in on_dev]
    answers = [kept_predictions(folder) for folder in folders]
    prompts = [load_prompt(folder) for folder in folders]
    form = TextFormat.from_json(prompts[0].card.text)
    scored = evaluate(lm, [prompt.values for prompt in prompts], task, test, form, scoring="rank", watch=watch)
    on_test = [_test_row(row, test, evaluation) for row, evaluation in zip(on_dev, scored, strict=True)]
    if len(on_dev) == 1:
        return on_test
    votes = ensemble(task, test, [evaluation.predictions for evaluation in scored])
    return [
        *on_test,
        _vote_row(on_dev, on_dev, dev, judge(task, dev, ensemble(task, dev, answers))),
        _vote_row(on_test, on_dev, test, judge(task, test, votes)),
    ]


def test_file(data: Path) -> Path:
    """The labelled test file below a folder of official files. ValueError if there is none."""
    places = [data / get_task(TASK).folder / TEST, data / "SST-2" / TEST, data / TEST]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"no file {places[0]}; it holds SST-2's test sentences with labels")


Key = tuple[str, tuple[str, ...]]
"""A row of this command besides the dev rows: its split, and the folders of its prompts."""


def _key(row: Result) -> Key:
    return row.split, tuple(row.config.get("prompts", ()))


def _keys_of(on_dev: Sequence[Result]) -> list[Key]:
    prompts = tuple(row.notes["prompt"] for row in on_dev)
    votes: list[Key] = [("dev", prompts), ("test", prompts)]
    return [("test", (prompt,)) for prompt in prompts] + (votes if len(prompts) > 1 else [])


def _by_key(rows: Path) -> dict[Key, Result]:
    return {_key(row): row for row in read_rows(rows) if "prompts" in row.config}


def _test_row(on_dev: Result, test: Sequence[Example], evaluation: Evaluation) -> Result:
    """The same prompt's row on the test file."""
    prompt = on_dev.notes["prompt"]
    settings = on_dev.config["settings"]
    row = replace(on_dev, config={"method": "prompt", "prompts": [prompt], "settings": settings}, split="test")
    return _scored(row, test, evaluation, {"seed": on_dev.seed, "dev": on_dev.value})


def _vote_row(
    each: Sequence[Result], on_dev: Sequence[Result], examples: Sequence[Example], evaluation: Evaluation
) -> Result:
    """The majority vote's row on the split of `each`, which holds the prompts' own rows there.

    `seed` is -1, for it has several; `step` and `steps_run` are 0.
    """
    values = [row.value for row in each]
    prompts = [row.notes["prompt"] for row in on_dev]
    chosen = max(range(len(on_dev)), key=lambda i: _selection_score(on_dev[i]))
    settings = {name: value for name, value in on_dev[0].config["settings"].items() if name != "seeds"}
    seconds = [row.seconds for row in on_dev]
    together = len(on_dev[0].config["settings"]["seeds"]) > 1
    row = replace(
        each[0],
        config={"method": "ensemble", "prompts": prompts, "settings": settings},
        seed=-1,
        step=0,
        steps_run=0,
        seconds=max(seconds) if together else sum(seconds),
    )
    summary = {
        "seeds": [row.seed for row in on_dev],
        "average": fmean(values),
        "best": max(values),
        "best_by_selection": values[chosen],
    }
    return _scored(row, examples, evaluation, summary)


def _scored(row: Result, examples: Sequence[Example], evaluation: Evaluation, summary: dict[str, Any]) -> Result:
    right = right_answers(get_task(TASK), examples, evaluation.predictions)
    return replace(
        row,
        metrics=evaluation.metrics,
        value=evaluation.headline,
        illegal_rate=evaluation.illegal_rate,
        num_examples=len(examples),
        notes={"summary": summary, "right": right},
    )


def _selection_score(row: Result) -> float:
    """The score that chose a prompt's step; below all others where there was none."""
    scores = [t["score"] for t in row.notes["tried"] if t["chosen"] and t["seed"] == row.seed]
    return max((score for score in scores if score is not None), default=float("-inf"))


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser, minutes=20)
    parser.add_argument("--together", action="store_true", help="train the seeds in one run that shares --minutes")
    parser.add_argument("--rows", type=Path, default=Path("results/sst2.jsonl"))
    given = parser.parse_args(words)
    try:
        data, config = data_folder(given.data), config_of(given)
        lm = load_model(config)
        measure(config, lm, data=data, rows=given.rows, together=given.together, watch=bars(given.minutes))
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with --resume goes on")


if __name__ == "__main__":
    main()
