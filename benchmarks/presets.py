"""Which start, length, rate and method learn most in the minutes there are: from 24 settings to the fast preset.

    python benchmarks/presets.py --round 1 --data DIR                       # 24 settings, four tasks, one seed
    python benchmarks/presets.py --round 2 --data DIR                       # the best six of it, six tasks, two seeds
    python benchmarks/presets.py --round 3 --data DIR                       # the best of these and today's, on dev
    python benchmarks/presets.py --round 1 --tasks customer_messages --data DIR
    python benchmarks/presets.py --table                                    # from the rows, no run

A budget is a number of tokens that the model reads in training, the prompt's own included, from which the steps follow;
what it took in minutes stands in the row. In rounds 1 and 2 the settings of a task and seed train together, and part of
the training file is kept apart and scored once, after the last step; nobody looks at dev. Round 3 trains as `softprompt
train` does and scores dev. Settings rank by the mean over tasks and seeds of their score less the task's mean over all
settings of the round. Runs that have a row already are not made again, and the same command goes on with what was
interrupted. Rows: results/presets.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from baselines import bars, data_folder, right_answers

from softprompt.answering.rows import Result, append_rows, model_of_row, read_rows, surroundings
from softprompt.models import FrozenLM
from softprompt.models.loading import SMOLLM2
from softprompt.tasks import hold_out
from softprompt.training.loop import fit
from softprompt.training.plan import TaskData, members_of, plan_prompts, prepare, tasks_of
from softprompt.training.run import load_model, train
from softprompt.training.settings import RunConfig

EXPERIMENT = "presets"
MESSAGES = Path(__file__).parents[1] / "examples" / "customer_messages"
TOKENS_A_MINUTE = 20_000
"""Ours: what SmolLM2-135M reads a minute in training on the two cores the budgets are meant for."""
BATCH = 8
APART = 500  # rows kept apart in rounds 1 and 2, and at most 3 in 10
NUM_DEV = 1_000

TASKS: dict[str, dict[str, Any]] = {
    "customer_messages": {
        "inputs": "message: {message}",
        "targets": "{intent}",
        "labels": ("billing", "cancel", "delivery", "login", "praise", "refund", "sales question", "technical"),
    },
    "ag_news": {"task": ("classification/ag_news",)},
    "sst2": {"task": ("glue/sst2",)},
    "mrpc": {"task": ("glue/mrpc",)},
    "subjectivity": {"task": ("classification/subjectivity",)},
    "sentence_polarity": {"task": ("classification/sentence_polarity",)},
}


@dataclass(frozen=True)
class Setting:
    """A start, what is trained, and the rate."""

    rate: float
    method: str = "prompt"
    length: int | None = None
    """Tokens of a prompt that starts from the labels."""
    shots: int | None = None
    """Training examples that a prompt starts from."""

    @property
    def name(self) -> str:
        """'kv, 16 examples, lr 0.003'."""
        start = f"{self.shots} examples" if self.shots else f"labels p{self.length}" if self.length else "special rows"
        return f"{self.method}, {start}, lr {self.rate:g}"


SETTINGS = (
    *(Setting(rate, "prompt", length) for length in (20, 50, 110) for rate in (0.01, 0.03)),
    *(Setting(rate, "prompt", shots=shots) for shots, rate in ((4, 0.01), (4, 0.003), (8, 0.01), (8, 0.003))),
    *(Setting(rate, "prompt", shots=16) for rate in (0.003, 0.001)),
    *(Setting(rate, "prompt") for rate in (0.03, 0.1)),
    *(Setting(rate, "kv", 10) for rate in (0.003, 0.01, 0.03)),
    *(Setting(rate, "kv", length) for length, rate in ((20, 0.01), (50, 0.01), (50, 0.003))),
    *(Setting(rate, "kv", shots=shots) for shots in (4, 16) for rate in (0.001, 0.003)),
)
TODAY = Setting(0.03, "prompt", 20)


@dataclass(frozen=True)
class Round:
    """How many settings are tried how."""

    settings: int
    """The best so many of the round before."""
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float


ROUNDS = {
    1: Round(len(SETTINGS), tuple(TASKS)[:4], (10,), 2),
    2: Round(6, tuple(TASKS), (20, 21), 5),
    3: Round(1, tuple(TASKS), (0, 1, 2), 5),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--round", type=int, choices=ROUNDS, default=1)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="only these of the round's")
    parser.add_argument("--settings", type=int, nargs="+", metavar="N", help="only these of the 24, from 0; any round")
    parser.add_argument("--minutes", type=float, help="another budget than the round's")
    parser.add_argument("--seeds", type=int, nargs="+", help="others than the round's")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--data", type=Path, help="folder of official files (default: $SOFTPROMPT_DATA)")
    parser.add_argument("--out", type=Path, default=Path("runs/presets"))
    parser.add_argument("--rows", type=Path, default=Path("results/presets.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    given = parser.parse_args()
    try:
        if not given.table:
            measure(given)
    except ValueError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on with the next run")
    print(table(read_rows(given.rows)))


def measure(given: argparse.Namespace) -> None:
    """The runs of a round that have no row yet."""
    data, this = data_folder(given.data), ROUNDS[given.round]
    settings = [SETTINGS[number] for number in given.settings or ()] or entering(given.round, read_rows(given.rows))
    lm = None
    for name in given.tasks or this.tasks:
        for seed in given.seeds or this.seeds:
            configs = {}
            for setting in settings:
                key = {"round": given.round, "setting": asdict(setting), "minutes": given.minutes or this.minutes}
                if not any(_key(row) == (key, name, seed) for row in read_rows(given.rows)):
                    configs[setting] = (config_of(name, setting, given.model, data, seed, given.out), key)
            if not configs:
                continue
            lm = lm or load_model(next(iter(configs.values()))[0])
            if given.round == 3:
                for config, key in configs.values():
                    append_rows(given.rows, [on_dev(config, lm, key, name)])
            else:
                append_rows(given.rows, on_rows_apart(list(configs.values()), lm, name))


def entering(number: int, rows: Sequence[Result]) -> list[Setting]:
    """The settings of a round: all, or the best of the round before, and in the last today's too. ValueError where the
    round before has no rows.
    """
    if number == 1:
        return list(SETTINGS)
    best = list(ranked(number - 1, rows))[: ROUNDS[number].settings]
    if not best:
        raise ValueError(f"round {number} takes the best of round {number - 1}, which has no rows; run that first")
    return best if number == 2 or TODAY in best else [*best, TODAY]


def config_of(name: str, setting: Setting, model: str, data: Path, seed: int, out: Path) -> RunConfig:
    """A run of one task with one setting; its steps are not set yet."""
    init = "demonstrations" if setting.shots else "class-labels" if setting.length else "special"
    files = {part: [MESSAGES / f"{part}.jsonl"] for part in ("train", "dev")}
    return RunConfig(
        model=model,
        **TASKS[name],
        data=files if "inputs" in TASKS[name] else data,
        out=out,
        method=setting.method,
        init=init,
        prompt_length=(setting.length,) if setting.length else None,
        shots=setting.shots,
        learning_rate=(setting.rate,),
        seeds=(seed,),
        batch_size=BATCH,
        max_dev=NUM_DEV,
        select="held-out",
        scoring="rank",
    )


def steps_within(minutes: float, data: TaskData, length: int, lm: FrozenLM, method: str) -> int:
    """The steps in which the model reads the budget's tokens. length: of the prompt, which is run once a step."""
    rows, _ = data.encoded(lm)
    a_step = BATCH * fmean(row.num_tokens for row in rows) + (length if method == "prompt" else 0)
    return round(minutes * TOKENS_A_MINUTE / a_step)


def on_rows_apart(asked: Sequence[tuple[RunConfig, dict[str, Any]]], lm: FrozenLM, name: str) -> list[Result]:
    """Train on part of the training rows, all settings together, and score the others with what the last step left.

    A setting's seconds are its share of all, by the tokens read.
    """
    first = asked[0][0]
    whole = prepare(first, tasks_of(first)[0], lm)
    examples = [*whole.train, *whole.selection]
    kept, apart = hold_out(examples, whole.task, fraction=min(0.3, APART / len(examples)), seed=0)
    data = TaskData(whole.task, whole.form, kept, apart, [], [], "none", {"train": whole.notes["train"]})
    plans = []
    for config, key in asked:
        (plan,) = plan_prompts(config, data, lm)
        steps = steps_within(key["minutes"], data, len(plan.values), lm, config.method or "prompt")
        plan.train = replace(plan.train, steps=steps, evaluate_every=steps, num_selection=len(apart))
        plan.run = Setting(**key["setting"]).name
        plans.append(plan)
    started, watch = time.monotonic(), bars()
    watch.begin(max(plan.train.steps for plan in plans), BATCH * len(plans))
    folder = first.out / f"{asked[0][1]['round']}-{name}-{first.seeds[0]}"
    fitted = fit(lm, members_of(plans, lm), folder=folder, resume=True, watch=watch)
    budgets = [key["minutes"] for _, key in asked]
    seconds = (time.monotonic() - started) / sum(budgets)
    return [
        Result(
            experiment=EXPERIMENT,
            config={**key, "task": name, "train": json.loads(json.dumps(asdict(plan.train)))},
            model=model_of_row(lm.name),
            task=whole.task.name,
            split="train",
            selection="none",
            scoring="rank",
            metrics={},
            value=result.score or 0.0,
            illegal_rate=0.0,
            num_examples=len(apart),
            step=plan.train.steps,
            steps_run=result.steps_run,
            seconds=seconds * key["minutes"],
            seed=plan.seed,
            notes={
                "numbers": plan.values.numel(),
                "train_used": len(kept),
                "stopped": result.stopped,
                "together": len(plans),
            },
            **surroundings(lm.device, lm.dtype),
        )
        for (_, key), plan, result in zip(asked, plans, fitted, strict=True)
    ]


def on_dev(config: RunConfig, lm: FrozenLM, key: dict[str, Any], name: str) -> Result:
    """Train as users do and score dev once."""
    data = prepare(config, tasks_of(config)[0], lm)
    (plan,) = plan_prompts(config, data, lm)
    steps = steps_within(key["minutes"], data, len(plan.values), lm, config.method or "prompt")
    config = replace(config, steps=steps, evaluate_every=-(-steps // 4), out=config.out / "dev")
    (trained,) = train(config, lm=lm, watch=bars(key["minutes"]), overwrite=True)
    (row,) = [row for row in read_rows(config.out / "results.jsonl") if row.task == data.task.name]
    assert trained.dev
    right = right_answers(data.task, data.dev, trained.dev.predictions)
    notes = {"numbers": plan.values.numel(), "train_used": len(data.train), "right": right}
    return replace(row, experiment=EXPERIMENT, config={**key, "task": name, **row.config}, notes=notes)


def _key(row: Result) -> tuple[dict[str, Any], str, int]:
    return {name: row.config[name] for name in ("round", "setting", "minutes")}, row.config["task"], row.seed


def ranked(number: int, rows: Sequence[Result]) -> dict[Setting, float]:
    """The settings of a round, the best first: how far each is above the mean of all, over its tasks and seeds."""
    own = [row for row in rows if row.config["round"] == number]
    means = {
        name: fmean(row.value for row in own if row.config["task"] == name)
        for name in {row.config["task"] for row in own}
    }
    above: dict[Setting, list[float]] = {}
    for row in own:
        above.setdefault(Setting(**row.config["setting"]), []).append(row.value - means[row.config["task"]])
    return dict(sorted(((setting, fmean(values)) for setting, values in above.items()), key=lambda item: -item[1]))


def table(rows: Sequence[Result]) -> str:
    """Each round's settings, the best first, with their score on each task (percent, mean over seeds) and minutes."""
    lines = []
    for number in sorted({row.config["round"] for row in rows}):
        own = [row for row in rows if row.config["round"] == number]
        names = [name for name in TASKS if any(row.config["task"] == name for row in own)]
        lines += [f"Round {number}", "", f"| setting | numbers | {' | '.join(names)} | above the mean | minutes |"]
        lines.append("|---|--:|" + "--:|" * (len(names) + 2))
        for setting, above in ranked(number, rows).items():
            of_setting = [row for row in own if Setting(**row.config["setting"]) == setting]
            cells = [setting.name, f"{round(fmean(row.notes['numbers'] for row in of_setting)):,}"]
            for name in names:
                values = [row.value for row in of_setting if row.config["task"] == name]
                cells.append(f"{100 * fmean(values):.1f}" if values else "-")
            minutes = fmean(row.seconds for row in of_setting) / 60
            lines.append(f"| {' | '.join([*cells, f'{100 * above:+.1f}', f'{minutes:.1f}'])} |")
        lines.append("")
    return "\n".join(lines) or "no rows yet; run round 1 first"


if __name__ == "__main__":
    main()
