"""Result rows: everything needed to read a number and to make it again, one JSON line each."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from softprompt.base.checked import checked
from softprompt.base.files import append_whole, locked, write_whole
from softprompt.models import SMOLLM2

MODELS = {SMOLLM2: "SmolLM2-135M-Instruct, Q4_1 dequantised"}  # what rows call a model whose name says too little


def model_of_row(name: str) -> str:
    """What rows call a model."""
    return MODELS.get(name, name)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One JSON row: everything needed to read a number, and to make it again."""

    experiment: str
    """What the run was for; rows of one table share it."""
    config: dict[str, Any]
    """The run's whole configuration."""
    model: str
    """The model as it is, e.g. 'SmolLM2-135M-Instruct, Q4_1 dequantised'."""
    task: str
    split: str
    """What was scored: train, dev or test."""
    selection: str
    """What chose step and settings: held-out, cross-validation, dev, or none where there was nothing to choose."""
    scoring: str
    metrics: dict[str, float]
    value: float
    """The mean of the metrics, 0..1."""
    illegal_rate: float
    num_examples: int
    step: int
    """The step whose prompt was scored."""
    steps_run: int
    seconds: float
    """Seconds of training, selection included, across resumes."""
    seed: int
    notes: dict[str, Any] = field(default_factory=dict)
    """Counts that explain the number: cut inputs, overlap removed, share of the official training data."""
    device: str = ""
    dtype: str = ""
    threads: int = 0
    commit: str = ""
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The row as one line."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=False)


def surroundings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a Result that say where and with what it was made."""
    commit, is_dirty = _code()
    name = device_name(device)
    return {
        "device": f"{name} ({torch.get_num_threads()} threads)" if device.type == "cpu" else name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": is_dirty,
        "versions": versions(),
    }


@cache
def _code() -> tuple[str, bool]:
    """The commit of this process's code, and whether files differ from it: looked at once, as what is committed later
    is not what runs.
    """
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    commit, changes = "", ""  # outside a working tree
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], stderr=subprocess.DEVNULL, text=True)
        changes = subprocess.check_output([*git, "status", "--porcelain", "--", "."], stderr=subprocess.DEVNULL)
    return commit.strip(), bool(changes)


def versions() -> dict[str, str]:
    """Those of what decides how numbers are rounded, and ours."""
    return {name: metadata.version(name) for name in ("softprompt", "torch", "transformers")}


def read_rows(path: Path) -> list[Result]:
    """The rows of a JSONL file; none where there is no file. ValueError, with its line, for what is no row of ours."""
    if not path.exists():
        return []
    with path.open("rb") as file, locked(file, shared=True):  # a row that is just being added is read whole
        return _rows_in(file, path)


def _rows_in(file: BinaryIO | FileIO, path: Path) -> list[Result]:
    known = {f.name for f in fields(Result)}
    needed = {f.name for f in fields(Result) if f.default is MISSING and f.default_factory is MISSING}
    text = file.read().decode()
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), 1):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"wanted an object, got {line[:40]}")
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: half a row, or none ({error}); take the line out") from None
        if strange := sorted((set(record) - known) | (needed - set(record))):
            raise ValueError(
                f"{where}: a row of another version (it differs in {', '.join(strange)}); read it with the softprompt "
                "that wrote it"
            )
        rows.append(checked(Result, record, where))
    return rows


def append_rows(path: Path, rows: Sequence[Result]) -> None:
    """Add rows to a JSONL file, all of them or none, beside others that do so at the same time.

    ValueError as `read_rows` has it; raises OSError where it cannot be written.
    """
    added = "".join(row.to_json() + "\n" for row in rows)
    append_whole(path, added, check=lambda file: _rows_in(file, path))  # refuses a file that is not ours


def write_rows(path: Path, rows: Sequence[Result]) -> None:
    """Make a JSONL file of rows; what stood there stays whole if this is interrupted."""
    write_whole(path, "".join(row.to_json() + "\n" for row in rows))


def device_name(device: torch.device) -> str:
    """What the maker calls a GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return str(device)
