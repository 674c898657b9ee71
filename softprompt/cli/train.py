"""softprompt train"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.files import CHECKPOINT, read_yaml
from softprompt.base.names import nearest
from softprompt.base.terminal import Display, counted, duration, number, say, table, type_of, writing
from softprompt.cli.options import (
    FLAGS,
    RUN,
    add_settings,
    flags_of,
    read_data,
    say_if_slow,
    set_threads,
    split_names,
)
from softprompt.training import RunConfig, check_out


def _add_train(command: argparse.ArgumentParser) -> None:
    add_settings(command, FLAGS)
    command.add_argument("--config", metavar="FILE", help="recipe in YAML, a line for each flag; flags override it")
    command.add_argument("--estimate", action="store_true", help="print memory and time first, and stop")
    command.add_argument("--overwrite", action="store_true", help="train into a folder that holds a prompt already")


def _train(args: argparse.Namespace) -> int:
    config = run_config(args)
    if not args.estimate:
        check_out(config, overwrite=args.overwrite)
    if config.resume and not (config.out / CHECKPOINT).exists():
        say(f"{config.out} holds no checkpoint to go on from; starting at step 1")
    set_threads(args.threads)
    from softprompt.training import load_model, tasks_of, train

    tasks_of(config)
    say_if_slow(config.model)
    lm = load_model(config)
    say(f"{lm.name}: {lm.num_parameters / 1e6:,.1f} million frozen parameters, {type_of(lm)}")
    if args.estimate:
        from softprompt.training import estimate

        display = Display()
        try:
            cost = estimate(config, lm=lm, watch=display.watch())
        finally:
            display.close()
        print(_estimate_table(cost, lm))
        return 0
    display = Display(config.out / "logs")
    try:
        with writing(config.out):
            delivered = train(config, lm=lm, watch=display.watch(), overwrite=args.overwrite)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(display, config)) from None
    finally:
        display.close()
    print(_train_table(delivered, config))
    return 0


def run_config(args: argparse.Namespace) -> RunConfig:
    """The recipe, and over it the flags."""
    settings = _recipe(args.config) if args.config else {}
    settings |= flags_of(args, RUN)
    data = settings.get("data")
    if args.data:
        settings["data"] = read_data(args.data, split="train", dev=args.dev)
    elif args.dev and isinstance(data, str):
        settings["data"] = read_data([data], split="train", dev=args.dev)
    elif args.dev:
        settings["data"] = {**(data or {}), "dev": split_names(args.dev)}
    if "model" not in settings:
        raise ValueError(
            "which model? give --model with a hub id, a local folder, a GGUF file, smollm2-135m or bundled/t5-mini"
        )
    if not settings.get("task") and not settings.get("inputs"):
        raise ValueError("which task? give --task (see `softprompt tasks`), or --inputs and --targets for your files")
    if settings.get("inputs") and settings.get("data") is None:
        raise ValueError("where are your files? give --data train=FILE[,FILE] dev=FILE")
    settings["task"] = tuple(settings.get("task", ()))
    return RunConfig(**settings)


def _recipe(path: str) -> dict[str, Any]:
    """The settings of a YAML file, named as the flags are, with - or _."""
    content = read_yaml(path, "the recipe")
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings; write a line for each, such as 'steps: 500'")
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in RUN:
            raise ValueError(f"{path}: no setting named {key!r}{nearest(name, RUN)}")
        if value is None:
            continue
        try:
            settings[name] = _recipe_data(value) if name == "data" else RUN[name].read(value)
        except ValueError as error:
            is_said = name == "data" or RUN[name].choices or RUN[name].kind is bool
            text = f", but must be {RUN[name].wanted}" if is_said else f": {error}"
            raise ValueError(f"{path}: {key} is {value!r}{text}") from error
    return settings


def _recipe_data(value: Any) -> Any:
    if isinstance(value, str):
        return read_data([value], split="train")
    if not isinstance(value, dict):
        raise ValueError
    return {split: [files] if isinstance(files, str) else list(files) for split, files in value.items()}


def _stopped(display: Display, config: Any) -> str:
    if not display.steps:
        return f"stopped before training began; {config.out} is as it was"
    if not (config.out / CHECKPOINT).exists():
        return "stopped before the first checkpoint; nothing was kept"
    done = f"stopped at step {display.at} of {display.steps}"
    return f"{done}; the same command with --resume goes on from there"


def _train_table(delivered: Sequence[Any], config: Any) -> str:
    names = list(dict.fromkeys(name for one in delivered if one.dev for name in one.dev.metrics))
    rows = [["prompt", "best step", "selection score", *(f"dev {name}" for name in names)]]
    for one in delivered:
        metrics = one.dev.metrics if one.dev else {}
        rows.append(
            [
                str(one.folder),
                str(one.fitted.step),
                number(one.fitted.score),
                *(number(metrics.get(n)) for n in names),
            ]
        )
    folders = [shlex.quote(str(one.folder)) for one in delivered]
    model = f" --model {shlex.quote(config.model)}" if Path(config.model).exists() else ""
    tasks = {one.prompt.card.task for one in delivered}
    if len(folders) > 1 and len(tasks) == 1:
        text = _data_words(config.data)
        command = f"softprompt eval --ensemble{model}{text} --prompt {' '.join(folders)}"
    else:
        command = f"softprompt predict{model} --prompt {folders[0]}"
    return f"{table(rows)}\n\nnext: {command}"


def _data_words(data: Any) -> str:
    """`data` as it is written after --data."""
    if data is None:
        return ""
    if isinstance(data, Mapping):
        named = [f"{split}={','.join(map(str, files))}" for split, files in data.items()]
        return f" --data {shlex.join(named)}"
    return f" --data {shlex.quote(str(data))}"


def _estimate_table(cost: Any, lm: Any) -> str:
    rows = [
        ["frozen model", f"{cost.model_bytes / 1e6:,.0f} MB, {type_of(lm)}"],
        ["peak memory", f"{cost.peak_bytes / 1e6:,.0f} MB"],
        ["one step", f"{cost.step_s:.2f} s: {cost.num_rows} rows of {counted(cost.num_prompts, 'prompt')}"],
        ["steps", f"{cost.num_steps:,}: {duration(cost.num_steps * cost.step_s)}"],
        [
            "evaluations",
            f"{cost.num_evaluations:,} of {cost.num_scored:,} rows, {duration(cost.evaluation_s)} each: "
            f"{duration(cost.num_evaluations * cost.evaluation_s)}",
        ],
        ["dev set", f"once: {duration(cost.dev_s)}"],
        ["total", f"about {duration(cost.total_s)}"],
    ]
    if cost.minutes is not None:
        rows.insert(-1, ["--minutes", f"training ends after {duration(cost.minutes * 60)} at the latest"])
    return table(rows)


COMMAND = Command(
    add_flags=_add_train,
    run=_train,
    text=(
        "Train soft prompts for a frozen model. Part of the training file is held out and chooses the best step (and "
        "the setting, where several are given); the official dev set is scored once, at the end. Several seeds, tasks "
        "and settings train together over one copy of the model."
    ),
    examples=(
        "softprompt train --model smollm2-135m --task glue/sst2 --data DATA --out runs/sst2 --minutes 20",
        "softprompt train --model google/t5-base-lm-adapt --task superglue/boolq --preset paper --out runs/boolq",
        "softprompt train --model smollm2-135m --task cb,wic --data DATA --seeds 0,1,2 --out runs/two",
        "softprompt train --model smollm2-135m --data train=a.jsonl dev=b.jsonl --inputs 'message: {text}' \\",
        "    --targets '{label}' --labels question,complaint --out runs/mine",
        "softprompt train --config recipe.yaml --estimate",
    ),
)
