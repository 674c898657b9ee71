r"""Train soft prompts for a frozen model. Part of the training file is held out and chooses the best step (and the
setting, where several are given); the official dev set is scored once, at the end. Several seeds, tasks and settings
train together over one copy of the model.

examples:
  softprompt train --model smollm2-135m --task glue/sst2 --data DATA --out runs/sst2 --minutes 20
  softprompt train --model google/t5-base-lm-adapt --task superglue/boolq --preset paper --out runs/boolq
  softprompt train --model smollm2-135m --task cb,wic --data DATA --seeds 0,1,2 --out runs/two
  softprompt train --model smollm2-135m --data train=a.jsonl dev=b.jsonl --inputs 'message: {text}' \
      --targets '{label}' --labels question,complaint --out runs/mine
  softprompt train --config recipe.yaml --estimate
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompt.base.files import CHECKPOINT, held, read_yaml
from softprompt.base.names import hub_place, nearest
from softprompt.base.terminal import Display, counted, duration, number, say, table, type_of, writing
from softprompt.cli.options import (
    FLAGS,
    RUN,
    add_settings,
    config_of,
    flags_of,
    read_data,
    say_if_slow,
    set_up,
    split_names,
)
from softprompt.cluster import World, device_of_torchrun, world_of_torchrun
from softprompt.training import RunConfig, check_out


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt train."""
    add_settings(command, FLAGS)
    command.add_argument("--config", metavar="FILE", help="recipe in YAML, a line for each flag; flags override it")
    command.add_argument("--estimate", action="store_true", help="print memory and time first, and stop")
    command.add_argument("--overwrite", action="store_true", help="train into a folder that holds a prompt already")


def run(args: argparse.Namespace) -> int:
    """Train prompts, or estimate what it takes, and print a table."""
    config = run_config(args)
    if args.estimate:
        lm = _loaded(config, args)
        from softprompt.training import estimate

        with Display() as display:
            cost = estimate(config, lm=lm, watch=display.watch())
        print(_estimate_table(cost, lm))
        return 0
    config = replace(config, device=device_of_torchrun(config.device))
    with world_of_torchrun(config.device) as world:
        if world.is_first:
            return _train(config, args, world)
        set_up(args.threads)
        from softprompt.training import train

        train(config, overwrite=args.overwrite, world=world)
    return 0


def _train(config: RunConfig, args: argparse.Namespace, world: World) -> int:
    """Train, and tell how it goes: the first process, or the only one."""
    out = config.out
    with held(out):
        check_out(config, overwrite=args.overwrite)
        if args.push:
            _check_pushes(config, args)
        if config.resume and not (out / CHECKPOINT).exists():
            say(f"{out} holds no checkpoint to go on from; starting at step 1")
        display = Display(out / "logs", args.log_to)
        lm = _loaded(config, args)
        from softprompt.training import train

        with display, writing(out):
            try:
                delivered = train(config, lm=lm, watch=display.watch(), overwrite=args.overwrite, world=world)
            except KeyboardInterrupt:
                if not display.steps:
                    told = f"stopped before training began; {out} is as it was"
                elif not (out / CHECKPOINT).exists():
                    told = "stopped before the first checkpoint; nothing was kept"
                else:
                    at = f"stopped at step {display.at} of {display.steps}"
                    told = f"{at}; the same command with --resume goes on from there"
                raise KeyboardInterrupt(told) from None
    tables = [_prompts_table(delivered)]
    cards = [(one.prompt.card, one.dev.metrics) for one in delivered if one.dev]
    scores = [(str(card.task), card.seed or 0, metrics) for card, metrics in cards]
    if len(scores) > 1:
        from softprompt.tasks import over_seeds

        tables.append(table(over_seeds(scores)))
    print("\n\n".join([*tables, f"next: {_next_command(delivered, config)}"]))
    if args.push:
        _push(delivered, args, out)
    return 0


def _check_pushes(config: RunConfig, args: argparse.Namespace) -> None:
    from softprompt.prompts import check_push
    from softprompt.training import folder_of, tasks_of

    for task in tasks_of(config):
        for seed in config.seeds:
            place = _place_on_hub(args.push, folder_of(config, task, seed), config.out)
            check_push(place, overwrite=args.overwrite)


def _push(delivered: Sequence[Any], args: argparse.Namespace, out: Path) -> None:
    from softprompt.prompts import save_prompt

    places = {trained.folder: _place_on_hub(args.push, trained.folder, out) for trained in delivered}
    for trained in delivered:
        try:
            save_prompt(trained.prompt, places[trained.folder])
        except (ValueError, OSError, KeyboardInterrupt) as error:
            again = [
                shlex.join(["softprompt", "convert", str(folder), "--to", "peft", "--out", place])
                + (" --overwrite" if args.overwrite else "")
                for folder, place in places.items()
            ]
            told = f"nothing of {out} is lost, and this pushes it again: {' && '.join(again)}"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"stopped; {told}") from None
            raise OSError(f"{error}; {told}") from error
        say(f"{trained.folder} is at {places.pop(trained.folder)}")


def _place_on_hub(wanted: str, folder: Path, out: Path) -> str:
    """Where a prompt goes; each of several to a repository of its own, with its folder's name at the end."""
    place = hub_place(wanted) or f"hf://{wanted}"
    return place if folder == out else f"{place}-{folder.name}"


def _loaded(config: RunConfig, args: argparse.Namespace) -> Any:
    """The frozen model, told; the tasks' names are checked before."""
    set_up(args.threads)
    from softprompt.training import load_model, tasks_of

    tasks_of(config)
    say_if_slow(config.model)
    lm = load_model(config)
    say(f"{lm.name}: {lm.num_parameters / 1e6:,.1f} million frozen parameters, {type_of(lm)}")
    return lm


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
    return config_of(settings)


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
            if name != "data":
                settings[name] = RUN[name].read(value)
            elif isinstance(value, str):
                settings[name] = read_data([value], split="train")
            elif isinstance(value, dict) and all(isinstance(files, str | list) for files in value.values()):
                settings[name] = {split: [files] if isinstance(files, str) else files for split, files in value.items()}
            else:
                raise ValueError
        except ValueError as error:
            is_said = name == "data" or RUN[name].choices or RUN[name].kind is bool
            text = f", but must be {RUN[name].wanted}" if is_said else f": {error}"
            raise ValueError(f"{path}: {key} is {value!r}{text}") from error
    return settings


def _prompts_table(delivered: Sequence[Any]) -> str:
    names = list(dict.fromkeys(name for trained in delivered if trained.dev for name in trained.dev.metrics))
    rows = [["prompt", "best step", "selection score", *(f"dev {name}" for name in names)]]
    for trained in delivered:
        metrics = trained.dev.metrics if trained.dev else {}
        scores = [number(score) for score in (trained.fitted.score, *map(metrics.get, names))]
        rows.append([str(trained.folder), str(trained.fitted.step), *scores])
    return table(rows)


def _next_command(delivered: Sequence[Any], config: RunConfig) -> str:
    """What to do with the prompts: an ensemble of those of one task, or answers by the first."""
    folders = [str(trained.folder) for trained in delivered]
    model = ["--model", config.model] if Path(config.model).exists() else []
    if len(folders) == 1 or len({trained.prompt.card.task for trained in delivered}) > 1:
        return shlex.join(["softprompt", "predict", *model, "--prompt", folders[0]])
    words, data = [], config.data
    if isinstance(data, Mapping):
        for split, files in data.items():
            words.append(f"{split}={files if isinstance(files, str | Path) else ','.join(map(str, files))}")
    elif data is not None:
        words = [str(data)]
    data_flag = ["--data", *words] if words else []
    return shlex.join(["softprompt", "eval", "--ensemble", *model, *data_flag, "--prompt", *folders])


def _estimate_table(cost: Any, lm: Any) -> str:
    scoring_s = cost.num_evaluations * cost.evaluation_s
    scored = f"{cost.num_evaluations:,} of {cost.num_scored:,} rows, {duration(cost.evaluation_s)} each"
    rows = [
        ["frozen model", f"{cost.model_bytes / 1e6:,.0f} MB, {type_of(lm)}"],
        ["peak memory", f"{cost.peak_bytes / 1e6:,.0f} MB"],
        ["one step", f"{cost.step_s:.2f} s: {cost.num_rows} rows of {counted(cost.num_prompts, 'prompt')}"],
        ["steps", f"{cost.num_steps:,}: {duration(cost.num_steps * cost.step_s)}"],
        ["evaluations", f"{scored}: {duration(scoring_s)}"],
        ["dev set", f"once: {duration(cost.dev_s)}"],
        ["total", f"about {duration(cost.total_s)}"],
    ]
    if cost.minutes is not None:
        rows.insert(-1, ["--minutes", f"training ends after {duration(cost.minutes * 60)} at the latest"])
    return table(rows)
