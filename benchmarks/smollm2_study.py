"""SmolLM2-135M on seven tasks: soft prompts of three seeds beside what they have to beat.

    python benchmarks/baselines.py --task superglue/rte superglue/cb ... --data DIR
    python benchmarks/smollm2_study.py --minutes 40 --data DIR

The seeds of a task train together, at most --minutes. The held-out part of the training file chooses step and
setting, and the official dev set is scored once. A row for each seed goes to results/smollm2_tasks.jsonl, and the
table made from it and results/baselines.jsonl is printed (benchmarks/tables.py puts it into README). A task whose rows
stand there with the same settings is not trained again; --resume goes on from the checkpoint of a run that was
interrupted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from baselines import (
    POLARITY_FOLDER,
    bars,
    data_folder,
    data_of,
    right_answers,
)

from softprompt.answering.engine import Prediction
from softprompt.answering.rows import Result, append_rows, model_of_row, read_rows
from softprompt.base.files import write_whole
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.models.loading import SMOLLM2
from softprompt.study.comparison import settings_of, settings_of_row
from softprompt.tasks import get_task, read_split
from softprompt.training.run import Trained, load_model, train
from softprompt.training.settings import RunConfig

EXPERIMENT = "smollm2_tasks"
TASKS = (
    "superglue/rte",
    "superglue/cb",
    "superglue/boolq",
    "superglue/wic",
    "superglue/copa",
    "glue/mrpc",
    "classification/sentence_polarity",
)
PREDICTIONS = "predictions.dev.json"


def in_own_folder(config: RunConfig, runs: Path) -> RunConfig:
    """The run with a folder that its model, task and settings name, so that a later call finds its checkpoint."""
    identity = json.dumps([config.model, config.task, settings_of(config)])
    name = f"{config.task[0].replace('/', '-')}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return replace(config, out=runs / name)


def rows_of(config: RunConfig, experiment: str, lm: FrozenLM, rows: Path) -> list[Result]:
    """The model's dev rows that stand in the file with these settings, one a seed; none unless every seed has one."""
    settings = settings_of(config)
    found = {
        row.seed: row
        for row in read_rows(rows)
        if (row.experiment, row.model, row.task, row.split)
        == (experiment, model_of_row(lm.name), config.task[0], "dev")
        and row.config.get("fingerprint", lm.fingerprint) == lm.fingerprint
        and settings_of_row(row) == settings
    }
    return [found[seed] for seed in config.seeds] if set(config.seeds) <= set(found) else []


def train_rows(
    config: RunConfig,
    experiment: str,
    rows: Path,
    lm: FrozenLM,
    *,
    notes: dict[str, Any] | None = None,
    watch: Watch | None = None,
) -> list[Result]:
    """Train one task's prompts and append a dev row for each seed; rows that stand there already come back as they are.

    A row's notes hold the curve (history), every setting tried (tried), the prompt's folder (prompt) and which dev
    examples were right (right). Raises ValueError as `train` does.
    """
    watch = watch or Watch()
    model = model_of_row(lm.name)
    if there := rows_of(config, experiment, lm, rows):
        watch.message(f"{config.task[0]}: all rows are in {rows}")
        return there
    trained = {item.prompt.card.seed: item for item in train(config, lm=lm, watch=watch)}
    written = {row.seed: row for row in read_rows(config.out / "results.jsonl")}  # the last of each seed
    made = []
    for seed in config.seeds:
        row = written[seed]
        kept = {**row.config, "out": str(config.out), "settings": settings_of(config)}
        own = {**row.notes, **(notes or {}), **_notes_of(config, trained[seed])}
        made.append(replace(row, experiment=experiment, model=model, config=kept, notes=own))
    append_rows(rows, made)
    return made


def _notes_of(config: RunConfig, trained: Trained) -> dict[str, Any]:
    """What a row says besides `train`'s own, and the dev predictions kept beside the prompt."""
    task = get_task(config.task[0])
    assert trained.dev
    predictions = trained.dev.predictions
    write_whole(trained.folder / PREDICTIONS, json.dumps([asdict(p) for p in predictions]))
    dev = read_split(task, "dev", config.data).examples
    return {
        "prompt": str(trained.folder),
        "tried": tried_settings(config.out / f"{task.name.replace('/', '-')}.settings.jsonl"),
        "right": right_answers(task, dev, predictions),
    }


def kept_predictions(folder: Path) -> list[Prediction]:
    """The dev predictions of a prompt. ValueError if its folder is gone."""
    path = folder / PREDICTIONS
    if not path.is_file():
        raise ValueError(f"no file {path}; take this prompt's rows out of the results to train it again")
    return [Prediction(**values) for values in json.loads(path.read_text())]


def tried_settings(path: Path) -> list[dict[str, Any]]:
    """Every setting of a run with its selection score, without the curves."""
    names = ("prompt_length", "learning_rate", "seed", "score", "step", "steps_run", "stopped", "chosen")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: record[name] for name in names} for record in records]


def study(
    tasks: Sequence[str],
    config: RunConfig,
    lm: FrozenLM,
    *,
    data: Path,
    rows: Path,
    runs: Path = Path("runs") / EXPERIMENT,
    polarity_folder: Path = POLARITY_FOLDER,
    watch: Watch | None = None,
) -> list[Result]:
    """Train each task and return its rows. config: the settings, the same for all tasks."""
    made: list[Result] = []
    for name in tasks:
        task = get_task(name)
        source, notes = data_of(task, data, polarity_folder)
        own = in_own_folder(replace(config, task=(task.name,), data=source), runs)
        made += train_rows(own, EXPERIMENT, rows, lm, notes=notes, watch=watch)
    return made


def table(rows: Path, baselines: Path) -> str:
    """The markdown table of the study: a line for each task and settings, in the order of the rows."""
    groups: dict[str, list[Result]] = {}
    for row in read_rows(rows):
        if row.experiment == EXPERIMENT:
            groups.setdefault(json.dumps([row.task, row.model, row.config["settings"]], sort_keys=True), []).append(row)
    if not groups:
        raise ValueError(f"no rows of {EXPERIMENT} in {rows}; run the study first")
    first = next(iter(groups.values()))[0]
    others = {
        (row.task, row.config["method"]): row
        for row in read_rows(baselines)
        if row.config["limit"] is None and row.model in ("none", first.model)
    }
    lines = [
        f"Soft prompts on {first.model}: mean ± standard deviation over seeds, in percent (the mean of the task's "
        "metrics), step and setting chosen on held-out training rows.",
        "",
        "| task | n of dev | majority | TF-IDF | linear probe | zero-shot | soft prompt | seeds | setting | minutes "
        "| above the majority class? |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|--:|---|",
        *(_line(group, others) for group in groups.values()),
        "",
        "The last column is the difference of accuracy to the majority class ± its standard error, in points; yes "
        "means above two of them. The standard error joins that of the paired differences over the dev examples "
        "and that of the mean over seeds. Minutes are those of all seeds together, selection included.",
        "",
        _verdict(list(groups.values()), others),
    ]
    return "\n".join(lines) + "\n"


def _line(group: Sequence[Result], others: dict[tuple[str, str], Result]) -> str:
    first = group[0]
    values = [row.value for row in group]
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    beside = [others.get((first.task, method)) for method in ("majority", "tfidf", "probe", "zero-shot")]
    cells = [
        first.task,
        f"{first.num_examples:,}",
        *(f"{100 * row.value:.1f}" if row else "-" for row in beside),
        f"{100 * fmean(values):.1f}{spread}",
        str(len(group)),
        f"p{first.config['prompt_length']} lr {first.config['train']['optimizer']['learning_rate']:g}",
        f"{max(row.seconds for row in group) / 60:.1f}",
        _above(group, beside[0]),
    ]
    return f"| {' | '.join(cells)} |"


def _above(group: Sequence[Result], majority: Result | None) -> str:
    if majority is None:
        return "-"
    difference, error = paired_difference([row.notes["right"] for row in group], majority.notes["right"])
    word = "yes" if difference > 2 * error else "no"
    return f"{word}, {100 * difference:+.1f} ± {100 * error:.1f}"


def paired_difference(seeds: Sequence[str], other: str) -> tuple[float, float]:
    """The difference of accuracy between prompts of several seeds and another method, and its standard error.

    Each argument is '1' and '0' for each example, right or wrong; the error is that of the paired differences
    (of the seeds' mean) over examples and that of the seeds' mean, added in squares. ValueError for another length.
    """
    if any(len(right) != len(other) for right in seeds):
        raise ValueError("the rows were scored on different dev sets; make the baselines again")
    n = len(other)
    differences = [fmean(int(right[i]) for right in seeds) - int(other[i]) for i in range(n)]
    of_examples = stdev(differences) ** 2 / n if n > 1 else 0.0
    accuracies = [right.count("1") / n for right in seeds]
    of_seeds = stdev(accuracies) ** 2 / len(seeds) if len(seeds) > 1 else 0.0
    return fmean(differences), math.sqrt(of_examples + of_seeds)


def _verdict(groups: Sequence[Sequence[Result]], others: dict[tuple[str, str], Result]) -> str:
    """A task is learned if any of its lines is above the majority class."""
    learned: dict[str, bool] = {}
    for group in groups:
        majority = others.get((group[0].task, "majority"))
        if majority:
            above = _above(group, majority).startswith("yes")
            learned[group[0].task] = learned.get(group[0].task, False) or above
    missed = [task for task, is_learned in learned.items() if not is_learned]
    if not learned:
        return "There are no rows of the majority class to compare with."
    return f"Not learned this way, as far as these rows show: {', '.join(missed) or 'none'}."


def add_settings(parser: argparse.ArgumentParser, *, minutes: float) -> None:
    """The options of a run that this command and benchmarks/sst2.py share."""
    parser.add_argument("--data", type=Path, help="folder of official files (default: $SOFTPROMPT_DATA)")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=minutes, help="bound on one run (default: %(default)g)")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--init", help="how prompts start; the preset's unless given")
    parser.add_argument("--prompt-length", nargs="+", type=int, help="several are tried, the selection rows choose")
    parser.add_argument("--learning-rate", nargs="+", type=float, help="several are tried, the selection rows choose")
    for name in ("steps", "batch-size", "evaluate-every", "patience", "num-selection"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--max-input-length", type=int, default=512)
    parser.add_argument("--compile", action="store_true", help="compile the model's blocks")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint of the same settings")


def config_of(given: argparse.Namespace) -> RunConfig:
    """The settings of the options. The task stands for none: each run puts its own."""
    same = ("model", "minutes", "preset", "init", "steps", "batch_size", "evaluate_every", "patience")
    several = {name: tuple(getattr(given, name) or ()) or None for name in ("prompt_length", "learning_rate")}
    return RunConfig(
        task=(TASKS[0],),
        scoring="rank",
        seeds=tuple(given.seeds),
        num_selection=given.num_selection,
        max_input_length=given.max_input_length,
        compile=given.compile,
        resume=given.resume,
        **several,
        **{name: getattr(given, name) for name in same},
    )


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser, minutes=10)
    parser.add_argument("--task", nargs="+", default=TASKS, help="task names (default: all seven)")
    parser.add_argument("--rows", type=Path, default=Path("results/smollm2_tasks.jsonl"))
    parser.add_argument("--baselines", type=Path, default=Path("results/baselines.jsonl"))
    parser.add_argument("--table", action="store_true", help="only make the table from the rows")
    given = parser.parse_args(words)
    try:
        if not given.table:
            config = config_of(given)
            study(
                given.task,
                config,
                load_model(config),
                data=data_folder(given.data),
                rows=given.rows,
                watch=bars(given.minutes),
            )
        made = table(given.rows, given.baselines)
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with --resume goes on")
    print(made)


if __name__ == "__main__":
    main()
