"""Prompt tuning with the T5 that ships with the package, beside words alone and beside the same shape untrained.

    python benchmarks/baselines.py --task glue/sst2 classification/sentence_polarity --methods majority tfidf
    python benchmarks/bundled.py                     # about 40 minutes on 2 cores
    python benchmarks/bundled.py --table             # from the rows, no run

SST-2, and sentence_polarity without SST-2's sentences; seeds 0 to 2 and every rate train together, at most --minutes
a task and model. The held-out part of the training file chooses step and rate, the official dev set is scored once.
`untrained` has the shape and vocabulary of the bundled model and random weights. Rows: results/t5_mini_tasks.jsonl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from baselines import bars, data_folder
from smollm2_study import add_settings, config_of, study

from softprompt.answering.rows import Result, read_rows
from softprompt.models.loading import BUNDLED_FOLDER
from softprompt.models.shapes import SIZES
from softprompt.models.tokenizer import load_tokenizer
from softprompt.pretraining.loop import save_model
from softprompt.pretraining.new_t5 import new_model
from softprompt.tasks import spread
from softprompt.training.run import load_model

BUNDLED = "bundled/t5-mini"
UNTRAINED = Path("runs/t5_mini/untrained")
TASKS = ("glue/sst2", "classification/sentence_polarity")
RATES = (0.03, 0.1, 0.3)  # Adafactor's; 0.3 is the paper's, for embeddings ten times as long as these


def write_untrained(folder: Path) -> None:
    """The control: the bundled model's shape with random weights."""
    if not (folder / "config.json").is_file():
        tokenizer = load_tokenizer(BUNDLED_FOLDER / Path(BUNDLED).name)
        save_model(new_model(SIZES["mini"], tokenizer, seed=1), tokenizer, folder)


def table(rows: Sequence[Result], others: Sequence[Result]) -> str:
    """A line a task: majority, words, untrained, bundled, and what both took."""
    baselines = {(row.task, row.config["method"]): row for row in others}
    lines = [
        "| task | n of dev | majority | TF-IDF | untrained t5-mini | bundled t5-mini | minutes | beats TF-IDF? |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        bundled, untrained = ([r for r in of_task if r.model == name] for name in (BUNDLED, str(UNTRAINED)))
        tfidf = baselines.get((task, "tfidf"))
        answer = "-"
        if bundled and tfidf:
            points = 100 * (fmean(row.value for row in bundled) - tfidf.value)
            answer = f"{'yes' if points > 0 else 'no'}, {points:+.1f}"
        cells = [
            task,
            f"{of_task[0].num_examples:,}",
            *(_percent([row] if (row := baselines.get((task, method))) else []) for method in ("majority", "tfidf")),
            _percent(untrained),
            _percent(bundled),
            f"{max((row.seconds for row in bundled), default=0) / 60:.1f}",
            answer,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(rows: Sequence[Result]) -> str:
    return spread([100 * row.value for row in rows])


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_settings(parser, minutes=10)
    parser.add_argument("--task", nargs="+", default=TASKS)
    parser.add_argument("--rows", type=Path, default=Path("results/t5_mini_tasks.jsonl"))
    parser.add_argument("--baselines", type=Path, default=Path("results/baselines.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    parser.set_defaults(learning_rate=list(RATES))
    given = parser.parse_args(words)
    try:
        if not given.table:
            write_untrained(UNTRAINED)
            for model in (BUNDLED, str(UNTRAINED)):
                config = replace(config_of(given), model=model)
                lm, data = load_model(config), data_folder(given.data)
                study(given.task, config, lm, data=data, rows=given.rows, watch=bars(given.minutes))
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command with --resume goes on")
    print(table(read_rows(given.rows), read_rows(given.baselines)))


if __name__ == "__main__":
    main()
