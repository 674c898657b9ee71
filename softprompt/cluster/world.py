"""A world of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # a world of one, which every command has, needs no torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that work together, seen from one of them. Each must call the same methods in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files, tells how it goes, and decides."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """Those of the items that are this process's: each size-th."""
        return list(items[self.rank :: self.size])

    def total(self, summand: Tensor) -> Tensor:
        """The sum of every process's tensor, added in the order of ranks: the same bits for all, and each time."""
        if self.size == 1:
            return summand
        import torch

        parts = [torch.empty_like(summand) for _ in range(self.size)]
        torch.distributed.all_gather(parts, summand)
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def gathered(self, value: T) -> list[T]:
        """What each process has here, by rank."""
        if self.size == 1:
            return [value]
        import torch

        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def decided(self, find: Callable[[], T]) -> T:
        """What the first process finds, which alone looks for it."""
        if self.size == 1:
            return find()
        import torch

        values = [find() if self.is_first else None]
        torch.distributed.broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def merged(self, done: list[T]) -> list[T]:
        """What has become of all items, in their order, after each process has done its share."""
        every = self.gathered(done)
        return [every[place % self.size][place // self.size] for place in range(sum(map(len, every)))]


ALONE = World()


def size_of_torchrun() -> int:
    """How many processes `torchrun` has started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_of_torchrun(device: str) -> str:
    """The name of this process's own GPU where GPUs are meant and `torchrun` started it; else the name given."""
    if "LOCAL_RANK" not in os.environ or device not in ("auto", "cuda"):
        return device
    import torch

    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" or torch.cuda.is_available() else device


@contextmanager
def world_of_torchrun(device: str) -> Iterator[World]:
    """The world that `torchrun` started this process for, which it joins inside and leaves after; alone without it.

    device: as `device_of_torchrun` names it.
    """
    if size_of_torchrun() == 1:
        yield ALONE
        return
    import torch

    if is_gpu := device.startswith("cuda"):
        torch.cuda.set_device(device)
    # Its functions keep, as a default, the group there is when they are imported, past the group's end; the threads
    # of that group then abort some processes at exit (2 of 24). So it is imported, by whomever, before the group.
    import_module("torch.distributed.nn")
    torch.distributed.init_process_group("nccl" if is_gpu else "gloo")
    try:
        yield World(torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
