"""Open-loop load: requests arrive at 70 % of what the engine can do, while prompts are added and replaced.

    SOFTPROMPT_DATA=... python benchmarks/serve_load.py --t5 DIR           # about 25 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/serve_load.py --t5 DIR --quick   # two minutes, to see that it runs

Capacity is measured first, with everything submitted at once. Then requests arrive for five minutes as a Poisson
process, whether or not earlier ones are done: inputs of four tasks, 1 to 24 new tokens, one prompt of many, and every
few seconds a name gets a new prompt and its old one is removed, which requests in flight still wear. Afterwards every
request is asked again alone, of an engine that nothing else runs on, and the answers are compared token by token.
Latency is from arrival to the last token. Rows: results/serve_load.jsonl.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from serving_sides import PROMPT_LENGTH, Side, frozen, make_prompts, parse, parser_of, pool_of, run_each
from tqdm import tqdm

from softprompt.answering import Decoding
from softprompt.answering.rows import surroundings
from softprompt.models.loading import keep_freed_memory
from softprompt.models.text import default_format
from softprompt.serving import Part, Request, Scheduler, Ticket

SHARE = 0.7
NUM_NAMES = 16
MAX_TOKENS = 24
REPLACE_EVERY = 3.0  # seconds


@dataclass
class Load:
    """What was asked, and what became of it."""

    asked: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)
    """The prompt's folder, the input, new tokens at most."""
    tickets: list[Ticket] = field(default_factory=list)
    num_replaced: int = 0
    seconds: float = 0.0


class Names:
    """Names and the prompt that each has now; a new one takes the place of the oldest."""

    def __init__(self, engine: Scheduler, folders: Sequence[str]):
        self.engine = engine
        self.fresh = iter(folders)
        self.now = [(folder, engine.table.add(folder)) for folder in self._take(NUM_NAMES)]
        self.next = 0

    def replace(self) -> bool:
        """Add a prompt, let a name have it, remove what the name had. False if there are no more."""
        folder = next(self.fresh, None)
        if folder is None:
            return False
        sha256 = self.engine.table.add(folder)
        (_, before), self.now[self.next] = self.now[self.next], (folder, sha256)
        self.engine.table.remove(before)
        self.next = (self.next + 1) % NUM_NAMES
        return True

    def _take(self, count: int) -> Iterator[str]:
        return (next(self.fresh) for _ in range(count))


def submit(
    engine: Scheduler, load: Load, names: Names, pool: Sequence[tuple[int, ...]], chooser: random.Random
) -> None:
    """One more request."""
    folder, sha256 = chooser.choice(names.now)
    ids, longest = chooser.choice(pool), chooser.randint(1, MAX_TOKENS)
    request = Request(parts=(Part(ids=ids, prompt=sha256),), decoding=Decoding(max_tokens=longest))
    load.tickets.append(engine.submit(request))
    load.asked.append((folder, ids, longest))


def capacity(engine: Scheduler, names: Names, pool: Sequence[tuple[int, ...]], count: int) -> float:
    """Requests a second when all are there at once."""
    load, chooser = Load(), random.Random(-1)
    started = time.perf_counter()
    for _ in range(count):
        submit(engine, load, names, pool, chooser)
    for ticket in load.tickets:
        ticket.result()
    return count / (time.perf_counter() - started)


def run_load(engine: Scheduler, names: Names, pool: Sequence[tuple[int, ...]], rate: float, seconds: float) -> Load:
    """Arrivals at `rate` a second for so long; returns when the last is answered."""
    load, chooser = Load(), random.Random(0)
    started = time.perf_counter()
    arrival, replaced = 0.0, 0.0
    with tqdm(total=round(seconds), unit="s", desc=f"{rate:.1f} a second") as bar:
        while arrival < seconds:
            now = time.perf_counter() - started
            if now - replaced > REPLACE_EVERY:
                load.num_replaced += names.replace()
                replaced = now
            if now < arrival:
                time.sleep(min(arrival - now, 0.05))
                continue
            submit(engine, load, names, pool, chooser)
            arrival += chooser.expovariate(rate)
            bar.update(min(round(now), bar.total) - bar.n)
    for ticket in load.tickets:
        ticket.result()
    load.seconds = time.perf_counter() - started
    return load


def count_wrong(lm: Any, load: Load) -> int:
    """Answers that differ from those of the same request alone."""
    engine = Scheduler(lm)
    wrong = 0
    for (folder, ids, longest), ticket in tqdm(
        zip(load.asked, load.tickets, strict=True), total=len(load.asked), desc="alone", unit="request"
    ):
        part = Part(ids=ids, prompt=engine.table.add(folder))
        alone = engine.submit(Request(parts=(part,), decoding=Decoding(max_tokens=longest)))
        while engine.step():
            pass
        wrong += alone.result().parts[0].ids != ticket.result().parts[0].ids
    return wrong


def run(model: str, source: str, folder: Path, options: Any) -> list[dict[str, Any]]:
    """One model's row."""
    keep_freed_memory()
    lm = frozen(Side(name="ours", model=model, source=source, prompts=(), max_tokens=MAX_TOKENS))
    count = NUM_NAMES + int(options.seconds / REPLACE_EVERY) + 1
    folders = make_prompts(lm, folder, count, PROMPT_LENGTH)
    pool = pool_of(options.data, default_format(lm, max_input_length=256), lm.tokenizer)
    engine = Scheduler(lm, max_rows=128)
    names = Names(engine, folders)
    engine.start()
    capacity(engine, names, pool, NUM_NAMES)  # warm
    most = capacity(engine, names, pool, options.requests)
    load = run_load(engine, names, pool, SHARE * most, options.seconds)
    stats = engine.stats()
    engine.drain()
    latencies = np.array([ticket.result().seconds for ticket in load.tickets])
    waits = np.array([ticket.result().waited for ticket in load.tickets])
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    row = {
        "experiment": "serve_load",
        "model": model,
        "capacity_per_second": round(most, 2),
        "arrivals_per_second": round(len(load.tickets) / options.seconds, 2),
        "seconds": options.seconds,
        "num_requests": len(load.tickets),
        "num_replaced": load.num_replaced,
        "num_errors": stats.num_errors,
        "num_wrong": count_wrong(lm, load),
        "p50": round(float(p50), 3),
        "p90": round(float(p90), 3),
        "p99": round(float(p99), 3),
        "p50_waited": round(float(np.median(waits)), 3),
        "prompt_length": PROMPT_LENGTH,
        "mean_input_tokens": round(float(np.mean([len(ids) for _, ids, _ in load.asked])), 1),
        "mean_max_tokens": round(float(np.mean([longest for *_, longest in load.asked])), 1),
        "command": "python " + shlex.join(sys.argv),
        **surroundings(torch.device("cpu"), torch.float32),
    }
    print(line_of(row))
    return [row]


def line_of(row: dict[str, Any]) -> str:
    """A row for reading."""
    return (
        f"{row['model']}: {row['num_requests']} requests in {row['seconds']:.0f} s ({row['arrivals_per_second']} of "
        f"{row['capacity_per_second']} a second), {row['num_replaced']} prompts replaced: {row['num_errors']} errors, "
        f"{row['num_wrong']} wrong; p50 {row['p50']} s, p90 {row['p90']} s, p99 {row['p99']} s"
    )


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's flags."""
    parser = parser_of(__doc__, "results/serve_load.jsonl")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--requests", type=int, default=256, help="that capacity is measured with")
    return parse(parser, words, seconds=20.0, requests=48)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    run_each(options_of(words), run)


if __name__ == "__main__":
    main()
