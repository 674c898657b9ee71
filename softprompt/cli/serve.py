"""softprompt serve"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.files import read_yaml
from softprompt.base.terminal import counted, say, type_of
from softprompt.cli.options import MACHINE, TRAIN_FLAGS, add_threads, named_folders, say_if_slow, set_threads

LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
DEFAULTS = {"host": "127.0.0.1", "port": 8000, "max_waiting": 1_024, "timeout": 120.0, "drain": 30.0}


def _size(text: str) -> int:
    """'4G' in bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:iB|B)?", text.strip())
    if not found or (size := int(float(found[1]) * UNITS[found[2]])) < 1:
        raise argparse.ArgumentTypeError(f"wanted bytes such as 4G or 500M, got {text!r}")
    return size


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"wanted a number above 0, got {text!r}")
    return value


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"wanted a port from 0 to 65535 (0: any free one), got {text!r}")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number of 1 or more, got {text!r}")
    return int(text)


KINDS = {
    "port": _port,
    "max_memory": _size,
    "max_body": _size,
    "max_upload": _size,
    "max_waiting": _count,
    "timeout": _positive,
    "drain": _positive,
}
TEXTS = ("model", "prompts_dir", "api_key_file", "host", *MACHINE, "threads", "compile")


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the first prompt names)")
    command.add_argument("--prompt", nargs="+", action="extend", metavar="NAME=DIR", help="prompts and their names")
    command.add_argument("--prompts-dir", metavar="DIR", help="where uploads are kept; prompt folders in it are served")
    command.add_argument("--config", metavar="F", help="YAML file of these flags; flags override it")
    group = command.add_argument_group("network")
    group.add_argument("--host", metavar="H", help=f"address to listen on (default: {DEFAULTS['host']})")
    group.add_argument("--port", type=_port, metavar="N", help=f"0: any free one (default: {DEFAULTS['port']})")
    group.add_argument("--api-key-file", metavar="F", help="YAML file of keys; without it, this machine only")
    group = command.add_argument_group("limits")
    group.add_argument(
        "--max-memory", type=_size, metavar="SIZE", help="for prompts, their keys and values, and the running batch"
        " (default: half of what is free)",
    )  # fmt: skip
    group.add_argument("--max-waiting", type=_count, metavar="N", help="inputs in the queue (default: 1024)")
    group.add_argument("--max-body", type=_size, metavar="SIZE", help="bytes of a request (default: 4M)")
    group.add_argument("--max-upload", type=_size, metavar="SIZE", help="bytes of an uploaded prompt (default: 64M)")
    group.add_argument("--timeout", type=_positive, metavar="S", help="seconds for a request at most (default: 120)")
    group.add_argument("--drain", type=_positive, metavar="S", help="seconds to finish when told to stop (default: 30)")
    group = command.add_argument_group("machine")
    for name in MACHINE:
        TRAIN_FLAGS["machine"][name].add(group, name)
    group.add_argument(
        "--compile", action="store_true", default=None, help="compile the model's blocks: ready later, then faster"
    )
    add_threads(group)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The flags over the configuration file over the defaults. ValueError for an entry that is no flag, or wrong."""
    given = _from_file(args.config) if args.config else {}
    flags = {name: getattr(args, name, None) for name in ("prompt", *KINDS, *TEXTS)}
    return DEFAULTS | given | {name: value for name, value in flags.items() if value is not None}


def _from_file(path: str) -> dict[str, Any]:
    from softprompt.base.names import nearest

    entries = read_yaml(path, "the settings")
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} holds no entries; write lines such as 'port: 8000'")
    known, settings = ("prompt", *KINDS, *TEXTS), {}
    for entry, value in entries.items():
        name = str(entry).replace("-", "_")
        if name not in known:
            raise ValueError(f"{path}: no setting {entry!r}{nearest(name, known)}")
        try:
            settings[name] = _value(name, value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{path}: {entry}: {error}") from None
    return settings


def _value(name: str, value: Any) -> Any:
    if name == "prompt":
        if not isinstance(value, Mapping):
            raise argparse.ArgumentTypeError("wanted names and folders, such as 'sst2: runs/sst2'")
        return [f"{key}={place}" for key, place in value.items()]
    if name == "compile":
        if not isinstance(value, bool):
            raise argparse.ArgumentTypeError(f"wanted true or false, got {value!r}")
        return value
    if name == "threads":
        return _count(str(value))
    return KINDS[name](str(value)) if name in KINDS else str(value)


def _serve(args: argparse.Namespace) -> int:
    settings = _settings(args)
    named = named_folders(settings.get("prompt", []))
    has_keys = settings.get("api_key_file") is not None
    if settings["host"] not in LOOPBACK and not has_keys:
        raise ValueError(
            f"--host {settings['host']} is open to other machines; give --api-key-file, or stay on 127.0.0.1"
        )
    try:
        import uvicorn

        from softprompt.serving.http import Access, Limits, Server, make_app, read_keys
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs {error.name}; pip install 'softprompt[serve]'") from error
    keys = read_keys(settings["api_key_file"]) if has_keys else ()
    args.threads = settings.get("threads")
    set_threads(args)
    engine, registry = _engine(settings, named)
    sizes = {name: settings[name] for name in ("max_body", "max_upload") if name in settings}
    limits = Limits(timeout=settings["timeout"], drain_seconds=settings["drain"], **sizes)
    _log_to_stderr()
    app = make_app(Server(engine, registry, Access(keys), limits))
    _say_what(engine, registry, settings, has_keys)
    uvicorn.run(
        app,
        host=settings["host"],
        port=settings["port"],
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings["drain"]) + 1,
    )
    return 0


def _engine(settings: dict[str, Any], named: dict[str, str]) -> tuple[Any, Any]:
    """The engine and the names it knows, every prompt checked against the model."""
    from softprompt.answering import load_for, tell_quantization
    from softprompt.models import load
    from softprompt.prompts import load_prompt
    from softprompt.serving import Scheduler
    from softprompt.serving.http import Registry

    machine = {name: settings[name] for name in MACHINE if name in settings}
    model = settings.get("model")
    if model is None and not named:
        raise ValueError("nothing to serve; give --model, or --prompt NAME=DIR")
    first = load_prompt(next(iter(named.values()))) if named else None
    say_if_slow(model or (first.card.model_name if first else None))
    lm = load_for(first, model, **machine) if first else load(str(model), **machine)
    if settings.get("compile"):
        lm.compile()
    engine = Scheduler(lm, max_memory=settings.get("max_memory"), max_waiting=settings["max_waiting"])
    folder = settings.get("prompts_dir")
    registry = Registry(engine.table, _base_name(model or lm.name), Path(folder) if folder else None)
    for name, place in named.items():
        registry.add(name, place)
        tell_quantization(load_prompt(place).card, place, lm)
    registry.open()
    return engine, registry


def _base_name(model: str) -> str:
    """What requests call the bare model: its hub id or bundled name, or the last part of its path."""
    is_path = Path(model).exists() or model.startswith((".", "/", "~"))
    return Path(model).resolve().name if is_path else model


def _say_what(engine: Any, registry: Any, settings: dict[str, Any], has_keys: bool) -> None:
    count = counted(len(registry.versions()), "prompt")
    host = f"[{settings['host']}]" if ":" in settings["host"] else settings["host"]
    who = "with API keys" if has_keys else "this machine only: no --api-key-file was given"
    say(f"{registry.base} ({type_of(engine.lm)}) with {count}, {engine.max_memory / (1 << 30):.1f} GiB for them")
    say(f"http://{host}:{settings['port']} ({who}); Ctrl-C stops")


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    for noisy in ("uvicorn.error", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


COMMAND = Command(
    add_flags=_add_serve,
    run=_serve,
    text=(
        "Serve saved prompts from one copy of their model: OpenAI's completions and chat with the prompt's name as "
        "model, /v1/classify for labels, /v1/prompts to add, replace, remove and alias prompts while it runs, and a "
        "page at / to try them. Requests with different prompts share batches."
    ),
    examples=(
        "softprompt serve --prompt sst2=runs/sst2 boolq=runs/boolq",
        "softprompt serve --model smollm2-135m --prompts-dir prompts --port 8080",
        "softprompt serve --config serve.yaml --host 0.0.0.0 --api-key-file keys.yaml",
    ),
)
