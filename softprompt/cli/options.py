"""Flags that several commands share: a run's settings, the data, the prompts, the machine."""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

from softprompt.base.names import hub_place
from softprompt.base.setting import Setting, settings_of
from softprompt.base.terminal import LOG_TO, say
from softprompt.tasks import chat_templates
from softprompt.training import RunConfig

RUN = settings_of(RunConfig)
FLAGS = RUN | {
    "push": Setting(
        help="put the prompts on the hub at the end, into a repository that is made private, or is yours",
        metavar="ORG/NAME",
        title="what is kept",
    ),
    "dev": Setting(help="dev set of your own, with --data train=FILE", metavar="FILE[,FILE]", title="what to train"),
    "threads": Setting(help="processor threads", kind=int, shown="one for each core", title="machine"),
    "log_to": Setting(
        help="where losses, scores and rates go, besides curve.jsonl in --out",
        default="tensorboard",
        choices=LOG_TO,
        title="what is kept",
    ),
}
"""A run's settings, and what a command line says besides."""
ADDRESS = Setting(
    help="a Ray cluster that runs: HOST:PORT, or auto", shown="Ray starts on this machine", metavar="A",
    title="several machines",
)  # fmt: skip
OWN_FILES = [name for name, setting in RUN.items() if setting.title == "your own files"]
"""The settings that describe a task in files of one's own."""
MACHINE = ("device", "dtype", "quantize")
"""Those that say how a model is loaded to be used."""
PROMPT_HELP = "what train wrote: a folder, or a place on the hub, hf://ORG/NAME@revision"


def add_settings(command: argparse.ArgumentParser, settings: Mapping[str, Setting], title: str | None = None) -> None:
    """Add a flag for each setting, under its own title or the one given. What the command line leaves out is None."""
    groups: dict[str, Any] = {"": command}
    for name, setting in settings.items():
        heading = setting.title if title is None else title
        if heading not in groups:
            groups[heading] = command.add_argument_group(heading)
        default = setting.shown or _text_of(setting.default)
        options: dict[str, Any] = {"help": setting.help + (f" (default: {default})" if default else "")}
        if setting.kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        elif setting.choices:
            options["choices"] = setting.choices
        else:
            usual = {int: "N", float: "X", Path: "PATH"}.get(setting.kind, "TEXT")  # pyright: ignore
            options["metavar"] = setting.metavar or (f"{usual},…" if setting.is_list else usual)
            options["type"] = _reader_of(setting)
        if name == "task":  # may be repeated
            options |= {"action": "extend", "type": split_names}
        if name == "data":  # is read by `read_data`
            options["nargs"] = "+"
        place = groups[heading]
        if name == "labels":  # or one at a time, as those with commas in them must be
            place = place.add_mutually_exclusive_group()
            one = {"metavar": "A", "action": "append", "type": str.strip, "help": "one of them; repeat it"}
            place.add_argument("--label", dest="labels", **one)
        place.add_argument(f"--{name.replace('_', '-')}", **options)


def _text_of(default: Any) -> str:
    """A default as the help has it; nothing where there is none."""
    if default in (None, MISSING, ()):
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _reader_of(setting: Setting) -> Callable[[str], Any]:
    """What argparse reads the flag's word with; of a ValueError it would show its own words."""

    def read(text: str) -> Any:
        try:
            return setting.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def add_shared(
    command: argparse.ArgumentParser,
    names: Iterable[str],
    title: str | None = None,
    changes: Mapping[str, Mapping[str, Any]] = {},
) -> None:
    """Add these of `FLAGS`. changes: fields of a setting that are otherwise in this command."""
    add_settings(command, {name: replace(FLAGS[name], **changes.get(name, {})) for name in names}, title)


def flags_of(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of these flags that stand on the command line."""
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def split_names(text: str) -> list[str]:
    """The names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_data(words: Sequence[str] | None, *, split: str, dev: str | None = None) -> Any:
    """What `--data` says: None, a folder, or files by split. A lone file is taken for `split`."""
    named: dict[str, list[str]] = {}
    bare = [word for word in words or () if "=" not in word or Path(word).exists()]
    for word in words or ():
        if word not in bare:
            name, files = word.split("=", 1)
            named.setdefault(name, []).extend(split_names(files))
    if bare and (named or len(bare) > 1):
        raise ValueError("--data takes one folder, or files by split: --data train=FILE[,FILE] dev=FILE")
    if bare and not Path(bare[0]).is_file():
        if dev is not None:
            raise ValueError("--dev goes with --data train=FILE; the official files in a folder have their own dev set")
        return bare[0]
    if bare:
        named[split] = bare
    if dev is not None:
        named["dev"] = split_names(dev)
    return named or None


def config_of(settings: dict[str, Any]) -> RunConfig:
    """The run of these settings; files of chats need no templates. ValueError where no task or no file is named."""
    if not settings.get("task") and not settings.get("inputs") and not settings.get("targets"):
        settings |= chat_templates(settings.get("data"))
    if not settings.get("task") and not settings.get("inputs"):
        raise ValueError("which task? give --task (see `softprompt tasks`), or --inputs and --targets for your files")
    if settings.get("inputs") and settings.get("data") is None:
        raise ValueError("where are your files? give --data train=FILE[,FILE] dev=FILE")
    return RunConfig(**{**settings, "task": tuple(settings.get("task", ()))})


def add_prompt(command: argparse.ArgumentParser) -> None:
    """Add the flags of a command that uses saved prompts."""
    command.add_argument("--prompt", nargs="+", required=True, metavar="DIR", help=PROMPT_HELP)
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument("--task", metavar="T", help="a task of `softprompt tasks` (default: the prompt's own)")
    command.add_argument("--scoring", choices=("generate", "rank"), help="default: the one of the prompt's training")
    add_shared(command, [*OWN_FILES, *MACHINE, "threads"])


def opened(args: argparse.Namespace, scoring: str | None, *, column: str | None = None) -> Any:
    """The saved prompts that the flags name, on their model. column: a record's, which names its prompt."""
    set_up(args.threads)
    from softprompt.answering import open_named, open_prompts
    from softprompt.prompts import load_prompt

    task, named = own_task(args), named_folders(args.prompt) if column else {}
    first = next(iter(named.values()), args.prompt[0])
    say_if_slow(args.model or load_prompt(first).card.model_name)
    options = {"model": args.model, "task": task, "scoring": scoring, **flags_of(args, MACHINE)}
    return open_named(named, column, **options) if column else open_prompts(args.prompt, **options)


def own_task(args: argparse.Namespace) -> Any:
    """The task of the templates on the command line, or the name given with --task, or None."""
    described = flags_of(args, OWN_FILES)
    if not described:
        return args.task
    from softprompt.tasks import file_task

    if args.task is not None or not {"inputs", "targets"} <= set(described):
        raise ValueError("your own files need both --inputs and --targets, and no task name")
    return file_task(**described)


def from_anywhere(place: str) -> str:
    """A place as a process of Ray finds it, which may begin in another folder, and later: on the hub one commit."""
    if on_hub := hub_place(place):
        from softprompt.prompts import local_folder

        return f"{on_hub.partition('@')[0]}@{local_folder(on_hub).name}"
    return str(Path(place).absolute()) if Path(place).exists() or place.startswith((".", "/", "~")) else place


def named_folders(sources: Sequence[str]) -> dict[str, str]:
    """Prompts' places by name: what stands in front of '=', or else the last part of the path."""
    named: dict[str, str] = {}
    for source in sources:
        name, equals, path = source.partition("=")
        if not equals or Path(source).exists():
            repository = (hub_place(source) or "").partition("@")[0]
            name, path = Path(repository or source).resolve().name, source
        if name in named:
            raise ValueError(
                f"two prompts are named {name!r}: {named[name]} and {path}; name one otherwise: NAME={path}"
            )
        named[name] = path
    return named


def set_up(threads: int | None) -> None:
    """Make this process ready to compute: so many processor threads, and freed memory kept for what comes next.

    ValueError for fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"--threads is {threads}, but must be 1 or more")
    import torch

    from softprompt.models import keep_freed_memory

    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()


def say_if_slow(source: str | None) -> None:
    """A GGUF file is dequantised when it is first read; that takes half a minute and deserves a word."""
    from softprompt.models import SMOLLM2, dequantised_folder, resolve

    if source != SMOLLM2 and not (str(source).endswith(".gguf") and Path(str(source)).is_file()):
        return
    try:
        folder = dequantised_folder(Path(resolve(str(source))[0]))
    except ValueError:  # SmolLM2 without its package: who loads it says so
        return
    if not (folder / "config.json").is_file():
        say(f"dequantising {source} for the first time; about half a minute, then it is kept in {folder.parent.parent}")
