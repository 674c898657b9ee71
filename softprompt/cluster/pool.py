"""Work in parts, by workers that each hold something heavy: Ray Data."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray
import ray.data

from softprompt.cluster.connection import gpus_each

S = TypeVar("S")
T = TypeVar("T")
A = TypeVar("A")
Row = dict[str, Any]

READERS = 2  # sources that are read at once; ours


def answered_by_ray(
    sources: Sequence[S],
    read: Callable[[S], Iterator[T]],
    make: Callable[[], Callable[[T], A]],
    *,
    workers: int | None,
    threads: int,
    device: str,
) -> Iterator[A]:
    """What is made of each part of each source, in order, by workers that Ray places, and places again where they die.

    read: a source's parts, in a process of its own. make: gives what makes something of a part, once in each worker.
    Parts and what is made of them are pickled. workers: None: as many as there is room for, each of so many threads and
    a GPU where `device` may be one. ValueError and OSError of `read`, `make` and what it gives come out as they are.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # byte: each part is a block, and goes to whoever is free
    gpus = gpus_each(device)
    if workers is None:
        room = ray.cluster_resources()
        workers = int(room["GPU"] if gpus else room.get("CPU", 1) // threads)

    class Worker(_Worker):  # without arguments, which Ray would have to keep for one that takes its place
        def __init__(self) -> None:
            super().__init__(make)

    def parts(batch: Any) -> Iterator[Any]:
        (source,) = batch["source"]
        for part in _with_refusal(lambda: read(pickle.loads(source))):
            yield {"part": [pickle.dumps(part)]}

    rows = ray.data.from_items([{"source": pickle.dumps(source)} for source in sources])
    read_rows = rows.map_batches(
        parts, batch_size=1, num_cpus=0, compute=ray.data.TaskPoolStrategy(min(READERS, len(sources)))
    )
    made = read_rows.map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=max(workers, 1)),
        num_cpus=threads,
        num_gpus=gpus,
    )
    for row in made.iter_rows():
        what = pickle.loads(row["made"])
        if isinstance(what, _Refusal):
            raise what.error
        yield what


class _Refusal:
    """An error that is told as it is; Ray would wrap it in several of its own."""

    def __init__(self, error: ValueError | OSError):
        self.error = error


class _Worker:
    def __init__(self, make: Callable[[], Callable[[Any], Any]]):
        self.refusal: _Refusal | None = None
        try:
            self.answer = make()
        except (ValueError, OSError) as error:
            self.refusal = _Refusal(error)

    def __call__(self, batch: Row) -> Row:
        (content,) = batch["part"]
        part = self.refusal or pickle.loads(content)
        if not isinstance(part, _Refusal):
            (part,) = _with_refusal(lambda: iter([self.answer(part)]))
        return {"made": [pickle.dumps(part)]}


def _with_refusal(make: Callable[[], Iterator[T]]) -> Iterator[T | _Refusal]:
    """What an iterator gives, and the error that ends it."""
    try:
        yield from make()
    except (ValueError, OSError) as error:
        yield _Refusal(error)
