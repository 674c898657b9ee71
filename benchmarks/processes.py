"""A side of a benchmark in a process of its own, idle while another is timed."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch

Respond = Callable[..., Any]
"""What a side answers: respond(what, …)."""


class Worker:
    """The process. serve(side) builds the side there and returns what answers it; both must be picklable."""

    def __init__(self, serve: Callable[[Any], Respond], side: Any, threads: int):
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, side, threads, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Return when the side is built."""
        self._answer()

    def ask(self, what: str, *given: Any) -> Any:
        """The side's answer. RuntimeError with its traceback if it fails, or if its process died."""
        with contextlib.suppress(BrokenPipeError):  # the process died since it last answered, as _answer finds
            self._pipe.send((what, given))
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError(f"the process of {self.side.name} ({self.side.model}) died, of memory perhaps") from None
        if kind == "error":
            raise RuntimeError(f"{self.side.name} ({self.side.model}) failed:\n{value}")
        return value


def _run(serve: Callable[[Any], Respond], side: Any, threads: int, pipe: Any) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.simplefilter("ignore")  # of the libraries, about themselves
    torch.set_num_threads(threads)
    # Blocks share one code object, and dynamo stops compiling it after 8 variants.
    torch._dynamo.config.recompile_limit = 256
    try:
        respond = serve(side)
        pipe.send(("ready", None))
        while True:
            what, given = pipe.recv()
            pipe.send(("value", respond(what, *given)))
    except EOFError:
        return  # the parent is gone
    except Exception:
        pipe.send(("error", traceback.format_exc(limit=-6)))
