"""A checkpoint: one file with all of a run's state, so that there is no moment between two files.

It says which run it is of, and only that run goes on from it.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.answering import device_name, versions
from softprompt.base.files import write_tensors
from softprompt.base.watch import Watch

KEY = "checkpoint"  # in the file's metadata
KEYS_OF_0_1_0 = {"training", "pretraining"}


def write_checkpoint(
    path: Path,
    identity: Mapping[str, Any],
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    device: torch.device,
) -> None:
    """Write a run's state and tensors. Raises OSError where they cannot be written.

    identity: what a checkpoint must share with the run that goes on from it. Both are written as JSON, beside the names
    of the device and the versions of the libraries that compute.
    """
    content = {"identity": identity, "threads": torch.get_num_threads(), "where": _where(device), "state": state}
    apart: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():  # safetensors takes none that share memory, as a best one may with the last
        storage = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    write_tensors(path, apart, {KEY: json.dumps(content)})


def read_checkpoint(
    path: Path,
    identity: Mapping[str, Any],
    *,
    device: torch.device,
    of: str = "softprompt",
    is_exact: bool = False,
    watch: Watch,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state and the tensors to go on from.

    watch: told where the run began with other processor threads than there are now, on another device or with other
    versions. Raises ValueError, in one line, for a file that is damaged (and no checkpoint `of` what is trained), of
    softprompt 0.1.0, or of another run, with the first thing in which they differ; and for another device or version
    where the run is to end with the bits of one that never stopped (is_exact).
    """
    metadata: dict[str, str] = {}
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content = json.loads(metadata[KEY])
        saved, threads, state = content["identity"], content["threads"], content["state"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if metadata.keys() & KEYS_OF_0_1_0:
            raise ValueError(
                f"{path} is a checkpoint of softprompt 0.1.0, from which later versions do not go on; end that run "
                "with softprompt 0.1.0, or remove it to start again"
            ) from None
        raise ValueError(
            f"{path} is no checkpoint of {of}, or a damaged one ({error}); remove it to start again"
        ) from None
    for name, was, now in _differences(saved, json.loads(json.dumps(identity)), ""):
        raise ValueError(
            f"{path} is of another run: {name} was {was!r}, and is {now!r}; give the same settings, or remove it to "
            "start again"
        )
    was_where, is_where = content.get("where", {}), _where(device)  # which versions up to 0.3.0 do not say
    changed = [f"{name} was {was}, and is {is_where[name]}" for name, was in was_where.items() if is_where[name] != was]
    if changed and is_exact:
        raise ValueError(
            f"{path} is of another machine, where sums round otherwise: {'; '.join(changed)}; go on without "
            "--deterministic, or there"
        )
    if changed:
        watch.message(f"this run began elsewhere, so sums may round otherwise: {'; '.join(changed)}")
    now = torch.get_num_threads()
    if threads != now and watch.threads:
        watch.threads(threads)
    elif threads != now:
        watch.message(
            f"processor threads were {threads} when this run began, and are {now}, so sums may round otherwise"
        )
    return state, tensors


def _where(device: torch.device) -> dict[str, str]:
    return {"device": device_name(device), **{name: of for name, of in versions().items() if name != "softprompt"}}


def _differences(saved: Any, wanted: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in wanted | saved:  # in the order of the identity: causes before what follows from them
            yield from _differences(saved.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        for place, (was, now) in enumerate(zip(saved, wanted, strict=True)):
            yield from _differences(was, now, f"{name}[{place}]")
    elif saved != wanted:
        yield name, saved, wanted


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C, or a SIGTERM, back until the block is done, so that no state is left half changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if held:
        signal.raise_signal(held[0])
