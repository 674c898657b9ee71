"""Run one of the paper's figures or tables on frozen models of yours: every point that has no rows yet. Interrupted,
the same command goes on; a run that fails is named at the end, and the others go on. In figures 3a to 3d and table 3
all points and seeds of one frozen model train together, and each prompt is scored by generating and by ranking the
labels, the vote of a point's prompts beside them. In figure 1 and tables 1 and 2 methods run one after another, as in
softprompt compare: four learning rates each, scored one way; with --preset paper the paper's rates alone, 0.3 for
prompts and 0.001 for model tuning of a T5.

examples:
  softprompt experiment
  softprompt experiment figure-3a --models bundled/t5-mini smollm2-135m --data DATA --minutes 30
  softprompt experiment figure-1 --models runs/family/micro/lm runs/family/tiny/lm --data DATA
  softprompt experiment figure-1 --models smollm2-135m --data DATA --points "prompt tuning" "prompt design"
  softprompt experiment figure-3c --models runs/family/tiny --data DATA --scoring generate
  softprompt experiment table-3 --models smollm2-135m --tasks glue/sst2 --data DATA --quick
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.base.files import held
from softprompt.base.terminal import Display, counted, duration, say
from softprompt.cli import RUN, add_settings, add_shared, set_up, split_names
from softprompt.cluster import device_of_torchrun, world_of_torchrun
from softprompt.study.commands.shared import STUDY_ROWS, going_on, read_seeds, say_failures, shared_settings
from softprompt.training import RunConfig

TASKS = "glue/sst2,glue/mrpc,superglue/wic"  # ours: small enough for a laptop, each of another kind
NOT_SHARED = (
    "model", "task", "data", "out", "method", "seeds", "inputs", "targets", "labels", "metric", "group_by", "minutes",
    "resume", "patience", "budget", "separator", "sentinel", "chat",
)  # fmt: skip
SHARED = [name for name in RUN if name not in NOT_SHARED]
"""The settings of a run that all points share, unless a point changes them."""
OF_PROMPTS = {"learning_rate": {"help": "of prompts; of several the selection chooses"}}


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt experiment."""
    command.add_argument("name", nargs="?", metavar="NAME", help="an experiment (default: list them)")
    command.add_argument(
        "--models", nargs="+", metavar="M", help="frozen models; figures 3c and 3d: the folder that holds their steps"
    )
    command.add_argument("--tasks", default=TASKS, metavar="T,…", help=f"(default: {TASKS})")
    command.add_argument(
        "--points", nargs="+", default=(), metavar="P", help="only these points, by name (default: all)"
    )
    command.add_argument(
        "--span-model", nargs="+", default=(), metavar="M",
        help="figure 1: the models before LM adaptation, one for each of --models, which the paper's model tuning "
        "starts from (default: span beside a folder lm)",
    )  # fmt: skip
    command.add_argument(
        "--seeds",
        metavar="N,…",
        help="(default: 0,1,2; 0 to 4 in figure 3, where prompts train together; table 3 has 0 to 4)",
    )
    command.add_argument("--data", metavar="DIR", help="folder of the official files (default: the hub)")
    command.add_argument("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="(default: runs/study)")
    command.add_argument(
        "--rows", type=Path, metavar="FILE",
        help=f"(default: {STUDY_ROWS}; with --quick a file in --out, since its scores mean nothing)",
    )  # fmt: skip
    command.add_argument("--minutes", type=float, metavar="X", help="bound on the points of one frozen model together")
    command.add_argument("--quick", action="store_true", help="a few steps of a few rows: does it run?")
    command.add_argument("--table", action="store_true", help="only print the table of the rows")
    add_shared(command, SHARED, "what all points share, unless a point changes it", OF_PROMPTS)
    of_models = {
        "help": "of model tuning; of several the selection chooses",
        "shown": "four of its own; 0.001 with --preset paper and a T5",
    }
    add_settings(command, {"model_learning_rate": replace(RUN["learning_rate"], **of_models)}, title="")
    add_shared(command, ["threads"], title="")


def run(args: argparse.Namespace) -> int:
    """Run the points that have no rows, and print the table of all; 1 where some failed."""
    from softprompt.study.experiments import EXPERIMENTS

    if args.name is None:
        print("\n".join(f"{name:<10}  {experiment.title}" for name, experiment in EXPERIMENTS.items()))
        return 0
    rows_file = args.rows or (args.out / "quick.jsonl" if args.quick else STUDY_ROWS)
    set_up(args.threads)
    from softprompt.answering import read_rows
    from softprompt.study import named, run_experiment, table

    failures: list[str] = []
    if not args.table:
        if not args.models:
            raise ValueError("which frozen models? give --models M …")
        # A run that was interrupted goes on from its checkpoint: that of other settings is refused, in another folder.
        base = RunConfig(
            model="-",
            task=tuple(split_names(args.tasks)),
            seeds=read_seeds(args.seeds) if args.seeds else named(args.name).seeds,
            data=args.data,
            minutes=args.minutes,
            resume=True,
            **shared_settings(args, SHARED),
        )
        asked: dict[str, Any] = {
            "rows": rows_file,
            "out": args.out,
            "points": args.points,
            "before": _before(args.models, args.span_model),
            "model_rates": args.model_learning_rate,
        }
        base = replace(base, device=device_of_torchrun(base.device))
        with world_of_torchrun(base.device) as world:
            if not world.is_first:
                run_experiment(args.name, args.models, base, **asked, world=world)
                return 0
            with held(args.out):
                if not args.quick:
                    _say_how_long(args.name, args.models, base, asked)
                with Display(args.out / "logs") as display, going_on():
                    told = display.watch()
                    failures = run_experiment(args.name, args.models, base, **asked, watch=told, world=world)
    rows = [row for row in read_rows(rows_file) if row.experiment == args.name]
    print(table(rows) if rows else f"no rows of {args.name} in {rows_file}")
    return say_failures(failures)


def _before(models: Sequence[str], before: Sequence[str]) -> dict[str, str]:
    """By model the one before LM adaptation. ValueError where not each has one."""
    if before and len(before) != len(models):
        raise ValueError(f"--span-model names {len(before)} for {counted(len(models), 'model')}; give one for each")
    return dict(zip(models, before, strict=False))


def _say_how_long(name: str, models: Sequence[str], base: RunConfig, asked: dict[str, Any]) -> None:
    """About how long what has no rows will take, from a few real steps on each frozen model."""
    from softprompt.study import missing
    from softprompt.study.transfer import seconds_with
    from softprompt.training import estimate

    load = _keep_last()
    planned = missing(name, models, base, **asked, load=load)
    seconds = 0.0
    costs: dict[Any, Any] = {}
    for point in planned:
        config = point.config
        key = (config.model, config.prompt_length)
        if key not in costs:
            if config.model not in [model for model, _ in costs]:
                say(f"{config.model}: a few steps, to see how long it will take")
            try:
                with Display() as display:
                    costs[key] = estimate(replace(config, minutes=None), lm=load(config), watch=display.watch())
            except (ValueError, OSError) as error:  # the run will say it again, and the others go on
                say(f"no estimate: {error}")
                return
        whole = seconds_with(costs[key], len(point.point.also))
        seconds += point.num_runs * whole / (len(config.task) * len(config.seeds))
    if base.minutes is not None:
        seconds = min(seconds, 60 * base.minutes * len({model for model, _ in costs}))
    if planned:
        say(f"{counted(len(planned), 'point')} without rows: about {duration(seconds)}, scoring included")


def _keep_last() -> Callable[[Any], Any]:
    """Loads a frozen model, and has it ready for as long as no other is asked for. For what changes none of them."""
    from softprompt.training import load_model

    held: dict[str, Any] = {}

    def load(config: Any) -> Any:
        if config.model not in held:
            held.clear()
            held[config.model] = load_model(config)
        return held[config.model]

    return load
