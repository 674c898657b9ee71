"""What a thousand registered prompts take in memory, and throughput inside and beyond the memory limit.

    SOFTPROMPT_DATA=... python benchmarks/serve_memory.py --t5 DIR           # about 15 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/serve_memory.py --t5 DIR --quick   # a few minutes, to see that it runs

    registered   the growth of this process while 1,000 prompts of 100 tokens are registered, by the prompts' bytes
    limit        requests over as many prompts as `--max-memory` holds with their keys and values, then over twice as
                 many, so that each is run again, or read from its folder again: requests a second

Rows: results/serve_memory.jsonl.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from serving_sides import (
    MAX_TOKENS,
    PROMPT_LENGTH,
    Ask,
    Side,
    frozen,
    make_prompts,
    parse,
    parser_of,
    pool_of,
    run_each,
)
from tqdm import tqdm

from softprompt.answering import Decoding
from softprompt.answering.rows import surroundings
from softprompt.models.loading import keep_freed_memory
from softprompt.models.text import default_format
from softprompt.serving import Part, Request, Scheduler

WANTED_OVERHEAD = 0.05
IN_FLIGHT = 16
ROOM = 1.3  # of what the rows were promised in a first round: the next may be batched otherwise


def resident() -> int:
    """Bytes of this process that are in memory, after giving back what is free."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss


def registered(engine: Scheduler, folders: Sequence[str]) -> dict[str, Any]:
    """Register prompts one by one; what they take."""
    own = len(folders) * PROMPT_LENGTH * engine.lm.width * 4
    engine.table.add(folders[0])  # imports and caches of the first are not the others'
    before = resident()
    for folder in tqdm(folders[1:], desc="register", unit="prompt"):
        engine.table.add(folder)
    grown = resident() - before
    return {
        "measure": "registered",
        "num_prompts": len(folders),
        "prompt_bytes": own,
        "grown_bytes": grown,
        "counted_bytes": engine.stats().values_bytes,
        "overhead": round(grown / (own * (len(folders) - 1) / len(folders)) - 1, 4),
        "wanted": WANTED_OVERHEAD,
    }


class Served(NamedTuple):
    """A round of requests."""

    seconds: float
    promised: int
    """The most bytes that the rows in flight might have grown to."""
    highest: int
    """The most bytes that prompts, their keys and values, and the rows took at one time."""


def serve(engine: Scheduler, asks: Sequence[Ask], hashes: Sequence[str]) -> Served:
    """These requests, `IN_FLIGHT` at a time."""
    started, promised, highest = time.perf_counter(), 0, 0
    for first in range(0, len(asks), IN_FLIGHT):
        tickets = [
            engine.submit(Request(parts=(Part(ids=a.ids, prompt=hashes[a.prompt]),), decoding=Decoding(max_tokens=8)))
            for a in asks[first : first + IN_FLIGHT]
        ]
        while engine.step():
            stats = engine.stats()
            promised = max(promised, stats.promised_bytes)
            highest = max(highest, stats.values_bytes + stats.states_bytes + stats.cache_bytes)
        for ticket in tickets:
            ticket.result()
    return Served(time.perf_counter() - started, promised, highest)


def limited(lm: Any, pool: Sequence[tuple[int, ...]], folders: Sequence[str], options: Any) -> dict[str, Any]:
    """Round after round over as many prompts as fit, and over twice as many."""
    fits = len(folders) // 2
    engine = Scheduler(lm)
    hashes = [engine.table.add(folder) for folder in folders]
    worn = [engine.table.num_bytes(sha256) for sha256 in hashes]
    promised = serve(engine, [Ask(0, ids) for ids in pool[: options.requests]], hashes).promised
    engine = Scheduler(lm, max_memory=sum(worn[:fits]) + int(ROOM * promised))
    for folder in folders:
        engine.table.add(folder)
    sets = {
        kind: [Ask(i % count, pool[i % len(pool)]) for i in range(options.requests)]
        for kind, count in (("inside", fits), ("twice", 2 * fits))
    }
    rates: dict[str, list[float]] = {kind: [] for kind in sets}
    highest, ran = 0, {}
    for _ in tqdm(range(options.rounds), desc="limit", unit="round"):
        for kind, asks in sets.items():
            serve(engine, asks, hashes)  # the set before has left its prompts there
            before = engine.stats()
            served = serve(engine, asks, hashes)
            after = engine.stats()
            rates[kind].append(len(asks) / served.seconds)
            highest = max(highest, served.highest)
            ran[kind] = {
                "run": after.num_prompts_run - before.num_prompts_run,
                "loaded": after.num_prompts_loaded - before.num_prompts_loaded,
            }
    return {
        "measure": "limit",
        "max_memory": engine.max_memory,
        "highest_bytes": highest,
        "num_inside": fits,
        "num_twice": 2 * fits,
        "inside_per_second": round(statistics.median(rates["inside"]), 2),
        "twice_per_second": round(statistics.median(rates["twice"]), 2),
        "inside_again": ran["inside"],
        "twice_again": ran["twice"],
        "ratio": round(statistics.median(rates["twice"]) / statistics.median(rates["inside"]), 3),
    }


def run(model: str, source: str, folder: Path, options: Any) -> list[dict[str, Any]]:
    """Both measures of one model."""
    lm = frozen(Side(name="ours", model=model, source=source, prompts=(), max_tokens=MAX_TOKENS))
    folders = make_prompts(lm, folder, options.prompts, PROMPT_LENGTH)
    pool = pool_of(options.data, default_format(lm, max_input_length=256), lm.tokenizer)
    made = [registered(Scheduler(lm), folders)]
    keep_freed_memory()
    made.append(limited(lm, pool, folders[: 2 * options.inside], options))
    rows = []
    for values in made:
        row = {"experiment": "serve_memory", "model": model, **values, "prompt_length": PROMPT_LENGTH}
        row |= {"max_tokens": MAX_TOKENS, "mean_input_tokens": round(statistics.fmean(map(len, pool)), 1)}
        row |= {"command": "python " + shlex.join(sys.argv), **surroundings(torch.device("cpu"), torch.float32)}
        rows.append(row)
        tqdm.write(line_of(row))
    return rows


def line_of(row: dict[str, Any]) -> str:
    """A row for reading."""
    if row["measure"] == "registered":
        return (
            f"{row['model']}: {row['num_prompts']} prompts of {row['prompt_bytes'] / 2**20:.0f} MiB add "
            f"{row['grown_bytes'] / 2**20:.0f} MiB, {row['overhead']:+.1%} (wanted {row['wanted']:+.0%} at most)"
        )
    again = f"read or run again {row['inside_again']} and {row['twice_again']}"
    return (
        f"{row['model']}: {row['num_inside']} prompts inside {row['max_memory'] / 2**20:.0f} MiB answer "
        f"{row['inside_per_second']} a second, {row['num_twice']} prompts {row['twice_per_second']} "
        f"({row['ratio']:.2f} of it; {again}); highest {row['highest_bytes'] / 2**20:.0f} MiB"
    )


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's flags."""
    parser = parser_of(__doc__, "results/serve_memory.jsonl")
    parser.add_argument("--prompts", type=int, default=1_000)
    parser.add_argument("--inside", type=int, default=32, help="prompts that the limit holds")
    parser.add_argument("--requests", type=int, default=128, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    return parse(parser, words, prompts=100, inside=8, requests=32, rounds=1)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    run_each(options_of(words), run)


if __name__ == "__main__":
    main()
