"""A run's curve: JSON lines that grow by each step while it goes, beside its checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.base.files import write_all
from softprompt.base.watch import Watch

CURVE = "curve.jsonl"


class Curve:
    """The lines of a run's steps, on disk and told to a watch.

    What a full disk does not take is told once, kept, and written with a later step, or at the end.
    """

    def __init__(self, path: Path | None, step: int, watch: Watch):
        """Go on after `step`, the checkpoint's: what a killed run wrote of later ones is cut off. None: nowhere."""
        self.path, self.watch = path, watch
        self.last = 0
        """The step of the last line."""
        self.waiting = b""
        if path is None or not path.exists():
            return
        with open(path, "r+b") as file:
            end = 0
            for line in file:
                try:
                    at = json.loads(line)["step"]
                except (ValueError, KeyError, TypeError):  # half a line, of a machine that went down
                    break
                if at > step or not line.endswith(b"\n"):
                    break
                self.last, end = at, end + len(line)
            file.truncate(end)

    def add(self, step: int, entries: Sequence[Mapping[str, Any]]) -> None:
        """Add the lines of a step, unless they are there already."""
        if step <= self.last:
            return
        self.last = step
        self._write("".join(json.dumps(entry) + "\n" for entry in entries).encode())
        for entry in entries:
            self.watch.log(entry)

    def end(self) -> None:
        """Write what still waits."""
        if self.waiting:
            self._write(b"")

    def _write(self, added: bytes) -> None:
        lines = self.waiting + added
        try:
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "ab", buffering=0) as file:
                    write_all(file, lines)
        except OSError as error:
            if not self.waiting:
                self.watch.message(
                    f"{self.path} waits from step {self.last} on until there is room ({error.strerror or error})"
                )
            self.waiting = lines
        else:
            self.waiting = b""
