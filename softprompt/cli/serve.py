"""Serve saved prompts from one copy of their model: OpenAI's completions and chat with the prompt's name as model,
/v1/classify for labels, /v1/prompts to add, replace, remove and alias prompts while it runs, and a page at / to try
them. Requests with different prompts share batches.

examples:
  softprompt serve --prompt sst2=runs/sst2 boolq=runs/boolq
  softprompt serve --model smollm2-135m --prompts-dir prompts --port 8080
  softprompt serve --config serve.yaml --host 0.0.0.0 --api-key-file keys.yaml
  softprompt serve --prompt sst2=runs/sst2 --prompts-dir /shared/prompts --ray --replicas 4 --address 10.0.0.1:6379
"""

import argparse
import contextlib
import logging
import socket
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.base.files import held, read_yaml
from softprompt.base.names import nearest
from softprompt.base.setting import Setting, size
from softprompt.base.terminal import counted, say, type_of
from softprompt.cli.options import (
    ADDRESS,
    FLAGS,
    MACHINE,
    add_settings,
    flags_of,
    from_anywhere,
    named_folders,
    say_if_slow,
    set_up,
)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _seconds(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise ValueError
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError
    return int(text)


def _replicas(text: str) -> tuple[int, int]:
    """'2', or '1-4' for what Serve's autoscaling decides."""
    least, dash, most = text.partition("-")
    bounds = (_count(least), _count(most if dash else least))
    if bounds[0] > bounds[1]:
        raise ValueError
    return bounds


SIZE: dict[str, Any] = {"kind": size, "form": "bytes such as 4G or 500M", "metavar": "SIZE"}
SECONDS: dict[str, Any] = {"kind": _seconds, "form": "a number above 0", "metavar": "S"}
SETTINGS = {
    "model": Setting(help="the frozen model", shown="the one the first prompt names", metavar="M"),
    "prompts_dir": Setting(help="where uploads are kept; prompt folders in it are served", metavar="DIR"),
    "host": Setting(help="address to listen on", default="127.0.0.1", metavar="H", title="network"),
    "port": Setting(
        help="0: any free one", default=8000, kind=_port, form="a port from 0 to 65535 (0: any free one)", metavar="N",
        title="network",
    ),
    "api_key_file": Setting(
        help="YAML file of keys; without it, this machine only", metavar="F", title="network"
    ),
    "allowed_host": Setting(
        help="names besides localhost that a server without keys is called by", is_list=True, metavar="H,…",
        title="network",
    ),
    "cors_origin": Setting(
        help="web pages that may ask, by origin: https://app.example.com", is_list=True, metavar="O,…", title="network"
    ),
    "max_memory": Setting(
        help="for prompts, their keys and values, and the running batch", shown="half of what is free", title="limits",
        **SIZE,
    ),
    "max_waiting": Setting(
        help="inputs in the queue", default=1_024, kind=_count, form="a whole number of 1 or more", metavar="N",
        title="limits",
    ),
    "max_body": Setting(help="bytes of a request", shown="4M", title="limits", **SIZE),
    "max_upload": Setting(help="bytes of an uploaded prompt", shown="64M", title="limits", **SIZE),
    "timeout": Setting(help="seconds for a request at most", default=120.0, title="limits", **SECONDS),
    "drain": Setting(help="seconds to finish when told to stop", default=30.0, title="limits", **SECONDS),
    **{name: FLAGS[name] for name in MACHINE},
    "batch_invariant": Setting(
        help="the same bits whatever else is asked meanwhile, at up to three times the cost", kind=bool, title="machine"
    ),
    "compile": Setting(help="compile the model's blocks: ready later, then faster", kind=bool, title="machine"),
    "threads": FLAGS["threads"],
    "ray": Setting(help="serve by replicas in a Ray cluster", kind=bool, title="several machines"),
    "replicas": Setting(
        help="how many; 1-4: as many of these as the load wants", shown="1", kind=_replicas,
        form="a number of 1 or more, or two such as 1-4", metavar="N", title="several machines",
    ),
    "address": ADDRESS,
}  # fmt: skip
DEFAULTS = {name: setting.default for name, setting in SETTINGS.items() if setting.default is not None}


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt serve."""
    command.add_argument(
        "--prompt", nargs="+", action="extend", metavar="NAME=DIR", help="prompts and their names; also hf://ORG/NAME"
    )
    add_settings(command, SETTINGS)
    command.add_argument("--config", metavar="F", help="YAML file of these flags; flags override it")


def _from_file(path: str) -> dict[str, Any]:
    entries = read_yaml(path, "the settings")
    if not isinstance(entries, Mapping):
        raise ValueError(f"{path} holds no entries; write lines such as 'port: 8000'")
    settings: dict[str, Any] = {}
    for entry, value in entries.items():
        name = str(entry).replace("-", "_")
        if name == "prompt":
            if not isinstance(value, Mapping):
                raise ValueError(f"{path}: prompt: wanted names and folders, such as 'sst2: runs/sst2'")
            settings[name] = [f"{key}={folder}" for key, folder in value.items()]
            continue
        if name not in SETTINGS:
            raise ValueError(f"{path}: no setting {entry!r}{nearest(name, ['prompt', *SETTINGS])}")
        try:
            settings[name] = SETTINGS[name].read(value)
        except ValueError as error:
            raise ValueError(f"{path}: {entry}: {error}") from None
    return settings


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    settings = DEFAULTS | (_from_file(args.config) if args.config else {}) | flags_of(args, ["prompt", *SETTINGS])
    named = named_folders(settings.get("prompt", []))
    host, port, key_file = settings["host"], settings["port"], settings.get("api_key_file")
    if host not in LOOPBACK and key_file is None:
        raise ValueError(f"--host {host} is open to other machines; give --api-key-file, or stay on 127.0.0.1")
    try:
        import uvicorn

        from softprompt.serving.http import Access, Listener, make_app, read_keys
    except ModuleNotFoundError as error:
        raise ValueError(f"serving needs {error.name}; pip install 'softprompt[serve]'") from error
    keys = read_keys(key_file) if key_file is not None else ()
    settings["access"] = (keys, settings.get("allowed_host", ()), settings.get("cors_origin", ()))
    Access(*settings["access"])
    folder = settings.get("prompts_dir")
    if settings.get("compile") and settings.get("batch_invariant"):
        raise ValueError(
            "--compile makes code for the lengths that come first, so --batch-invariant could not promise the same "
            "bits; leave one out"
        )
    who = "with API keys" if key_file is not None else "this machine only: no --api-key-file was given"
    with _bound(host, port) as bound, held(Path(folder)) if folder else contextlib.nullcontext():
        settings["port"] = bound.getsockname()[1]
        at = f"http://{f'[{host}]' if ':' in host else host}:{settings['port']} ({who}); Ctrl-C stops"
        if settings.get("ray"):
            return _serve_on_ray(settings, named, bound, at)
        for name in ("replicas", "address"):
            if name in settings:
                raise ValueError(f"--{name} is for replicas in a Ray cluster; give --ray, too, or leave it out")
        server = _server(settings, named)
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns at every request that is none
        engine, registry = server.engine, server.registry
        count = counted(len(registry.versions()), "prompt")
        say(f"{registry.base} ({type_of(engine.lm)}) with {count}, {engine.max_memory / (1 << 30):.1f} GiB for them")
        say(at)
        config = uvicorn.Config(
            make_app(server),
            log_config=None,
            access_log=False,
            ws="none",
            loop="asyncio",  # not uvloop, which comes with Ray Serve
            server_header=False,
            timeout_graceful_shutdown=round(settings["drain"]) + 1,
        )
        listener = Listener(config)
        engine.when_lost = lambda: setattr(listener, "should_exit", True)
        listener.run(sockets=[bound])
        if engine.lost:
            say(f"softprompt serve: {engine.lost}")
        return 0 if listener.started and not engine.lost else 1


def _serve_on_ray(settings: dict[str, Any], named: dict[str, str], bound: socket.socket, at: str) -> int:
    """Serve by replicas until told to stop. What they need of this machine's files lies in the folders named."""
    from softprompt.cluster import ray_cluster
    from softprompt.prompts import load_prompt
    from softprompt.serving.http import Shared, by_hand, clean_up

    settings = {**settings, "replicas": settings.get("replicas", (1, 1))}
    named = {name: from_anywhere(place) for name, place in named.items()}
    cards = [load_prompt(place).card for place in named.values()]
    if "model" not in settings and cards and cards[0].model_name:
        settings["model"] = cards[0].model_name
    for name in ("model", "prompts_dir"):
        if name in settings:
            settings[name] = from_anywhere(settings[name])
    folder, hands = settings.get("prompts_dir"), ()
    if folder:
        clean_up(Path(folder))
        hands = by_hand(Path(folder))
    shared = Shared(hands, seconds=settings["timeout"] + settings["drain"])
    replicas, threads = settings["replicas"], settings.get("threads") or 1
    with ray_cluster(settings.get("address"), processors=replicas[1] * threads):
        from softprompt.cluster import replicas_by_ray

        bound.close()  # for Serve to have it
        with replicas_by_ray(
            partial(_replica, settings, named, shared),
            host=settings["host"],
            port=settings["port"],
            replicas=replicas,
            threads=threads,
            device=settings.get("device", "auto"),
            max_ongoing=settings["max_waiting"],
            drain_seconds=settings["drain"],
        ):
            many = "-".join(map(str, dict.fromkeys(replicas)))
            say(f"{many} replica{'' if many == '1' else 's'}, {counted(threads, 'thread')} each")
            say(at)
            threading.Event().wait()  # until a signal raises KeyboardInterrupt
    return 0


def _replica(settings: dict[str, Any], named: dict[str, str], shared: Any) -> Any:
    """The application of one replica of several."""
    import psutil

    from softprompt.serving.http import make_app

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if "max_memory" not in settings:  # the others may be on this machine
        free = psutil.virtual_memory().available
        settings = {**settings, "max_memory": free // (2 * settings["replicas"][1])}
    return make_app(_server(settings, named, shared))


def _server(settings: dict[str, Any], named: dict[str, str], shared: Any = None) -> Any:
    """The server of these settings, every prompt checked against the model."""
    from softprompt.serving.http import Access, Limits, Server

    set_up(settings.get("threads"))
    engine, registry = _engine(settings, named, shared)
    sizes = {name: settings[name] for name in ("max_body", "max_upload") if name in settings}
    limits = Limits(timeout=settings["timeout"], drain_seconds=settings["drain"], **sizes)
    return Server(engine, registry, Access(*settings["access"]), limits)


def _bound(host: str, port: int) -> socket.socket:
    """A socket with that address, which nobody can connect to yet. ValueError where it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ValueError(
            f"cannot listen on {host}, port {port} ({error.strerror}); give another --port (0: any free one) or --host"
        ) from error
    return bound


def _engine(settings: dict[str, Any], named: dict[str, str], shared: Any = None) -> tuple[Any, Any]:
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
    engine = Scheduler(
        lm,
        max_memory=settings.get("max_memory"),
        max_waiting=settings["max_waiting"],
        is_batch_invariant=settings.get("batch_invariant", False),
    )
    base = model or lm.name
    if Path(base).exists() or base.startswith((".", "/", "~")):
        base = Path(base).resolve().name  # what requests call the bare model; else its hub id or bundled name
    folder = settings.get("prompts_dir")
    registry = Registry(engine.table, base, Path(folder) if folder else None, shared=shared)
    for name, place in named.items():
        version = registry.add(name, place)
        tell_quantization(version.prompt.card, place, lm)
    registry.open()
    return engine, registry
