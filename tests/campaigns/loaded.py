"""One process that has everything imported, and runs command lines in forked children of its own.

Requests come in as lines of JSON, and each is answered with one (`Request` and the answer's keys below). The library of
disk.c is preloaded where there is a compiler: its path stands in DISK_LIBRARY.
"""

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass, field

MODES = ("off", "count", "full once", "full", "kill before", "kill after")  # disk.c's, in its order
PIPE_BYTES = 1 << 20  # the system's most for a pipe: what a command prints must fit


@dataclass
class Request:
    """What to run, where, and what is to happen to it."""

    folder: str
    words: list[str]
    """A command line; or `serve` and requests to the server, which are in `asked`."""
    mode: str = "count"
    at: int = 0
    """The moment, counted from 1, of `mode`."""
    kill_after_s: float | None = None
    limit: int | None = None
    """The most bytes a file may get."""
    environment: dict[str, str] = field(default_factory=dict)
    stdout: str = ""
    """The file that standard output goes to, if to any."""
    asked: list[list[str]] = field(default_factory=list)
    """Method, path and content (a file for an upload, else JSON, or empty) of each request to a server."""


def main():
    """Answer requests until there are no more."""
    library = ctypes.CDLL(os.environ["DISK_LIBRARY"]) if os.environ.get("DISK_LIBRARY") else None
    if library:
        library.disk_failed.restype = ctypes.c_char_p
        library.disk_calls.restype = ctypes.c_long
    os.environ.pop("LD_PRELOAD", None)  # not for git
    known = set()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answer = in_a_child(Request(**json.loads(line)), library)
        for name in answer.pop("modules", ()):  # in their order; the next child has them from here
            if name in known:
                continue
            known.add(name)
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def in_a_child(request, library):
    """Fork, run, and tell: code (None where it was killed, or ended with a traceback), out, err, and by a child that
    was not killed calls (moments), failed (the one that was refused), seconds and modules.
    """
    pipes = {name: os.pipe() for name in ("out", "err", "told")}
    for _, there in pipes.values():
        fcntl.fcntl(there, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(pipes["out"][1], 1)
            os.dup2(pipes["err"][1], 2)
            told = run(request, library)
        except BaseException:
            traceback.print_exc()
            told = {"code": None}
        with os.fdopen(pipes["told"][1], "w") as file:
            json.dump(told, file)
        os._exit(0)
    for _, there in pipes.values():
        os.close(there)
    if request.kill_after_s is not None:
        time.sleep(request.kill_after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    read = {}
    for name, (here, _) in pipes.items():
        with os.fdopen(here) as file:
            read[name] = file.read()
    answer = json.loads(read.pop("told") or '{"code": null}')
    return answer | read | {"seconds": time.monotonic() - started}


def run(request, library):
    """In the child: the command, with the disk as it is asked for."""
    os.chdir(request.folder)
    os.environ.update(request.environment)
    if request.stdout:
        os.dup2(os.open(request.stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    import torch

    torch.set_num_threads(1)
    from softprompt.cli.command_line import main as command

    if request.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if library:
        library.disk_begin(os.path.realpath(request.folder).encode(), request.at, MODES.index(request.mode))
    told = {}
    if request.asked:
        told["code"], told["answers"] = served(request, command)
    else:
        told["code"] = command(request.words)
    if library:
        told |= {"calls": library.disk_calls(), "failed": library.disk_failed().decode()}
        library.disk_begin(b"", 0, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    return told | {"modules": list(sys.modules)}


def served(request, command):
    """The exit code of the command line that starts a server, and the status and JSON of each request to it."""
    import uvicorn
    from fastapi.testclient import TestClient

    apps = []

    def serving(server, sockets):
        server.started = True
        apps.append(server.config.app)
        with TestClient(server.config.app, "http://localhost") as client:
            while client.get("/readyz").status_code != 200:
                time.sleep(0.01)
            for method, path, content in request.asked:
                asked = {}
                if content.endswith(".tar"):
                    with open(content, "rb") as file:
                        asked["content"] = file.read()
                elif content:
                    asked["json"] = json.loads(content)
                answer = client.request(method, path, **asked)
                answers.append([answer.status_code, answer.json() if answer.content else None])

    answers = []
    uvicorn.Server.run = serving
    return command(request.words), answers


if __name__ == "__main__":
    main()
