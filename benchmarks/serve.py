"""Many prompts on one model, measured five ways.

    SOFTPROMPT_DATA=... python benchmarks/serve.py throughput --t5 DIR    # about 40 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/serve.py mixed --t5 DIR         # about 25 minutes
    SOFTPROMPT_DATA=... python benchmarks/serve.py load --t5 DIR          # about 25 minutes
    SOFTPROMPT_DATA=... python benchmarks/serve.py memory --t5 DIR        # about 15 minutes
    SOFTPROMPT_DATA=... python benchmarks/serve.py invariant --t5 DIR     # about 25 minutes

`--t5` is a folder with T5's `spiece.model`; `--quick` takes a few minutes, to see that it runs, and keeps no rows.
Inputs are real ones of four tasks, prompts have 100 tokens. Rows: results/serve_MEASURE.jsonl.

throughput: requests a second beside PEFT, which switches adapters. Each side is a process of its own with the same
prompt folders, and answers the same requests (prompts drawn uniformly) greedily, in alternation:

    switching   PEFT as documented: `set_adapter`, then `generate`, request by request; float32 and bfloat16
    grouped     PEFT, the queue grouped by prompt, batches of up to 16; in bfloat16, and in float32 where that is faster

Ours runs in what `--dtype auto` takes, bfloat16 where the processor multiplies in it, with compiled blocks. Before the
first round each prompt has answered once on our side, so its keys and values are there. A ratio is the median over
rounds of the seconds of PEFT for a request by ours. PEFT answers padded batches of a decoder-only model otherwise than
its rows alone, and bfloat16 rounds otherwise than float32, so the share of equal answers stands beside each ratio.

mixed: what it costs that rows of a batch wear different prompts, on one engine in this process, in alternation:

    prompts     256 requests in flight with 256 different prompts, beside 256 that wear one: share of its throughput
    generate    requests of an ensemble of five prompts beside the same inputs with one prompt: times its seconds
    score       the same for the log-probabilities of two labels

The votes of the ensemble are compared with those of its members asked one by one.

load: requests that arrive at 70 % of what the engine can do, while prompts are added and replaced. Capacity is measured
first, with everything submitted at once. Then requests arrive for five minutes as a Poisson process, whether or not
earlier ones are done: 1 to 24 new tokens, one prompt of many, and every few seconds a name gets a new prompt and its
old one is removed, which requests in flight still wear. Afterwards every request is asked again alone, of an engine
that nothing else runs on, and the answers are compared token by token. Latency is from arrival to the last token.

memory: what registered prompts take, and throughput inside and beyond the memory limit:

    registered   the growth of this process while 1,000 prompts of 100 tokens are registered, by the prompts' bytes
    limit        requests over as many prompts as `--max-memory` holds with their keys and values, then over twice as
                 many, so that each is run again, or read from its folder again: requests a second

invariant: what `--batch-invariant` costs, two engines over one model in alternation: requests that write and requests
that have labels scored, all in flight at once, each with one of many prompts: times the seconds without it. Each answer
is compared with what an engine of its kind gives it alone: texts, log-probabilities and scores, bit for bit.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from serving_sides import MAX_TOKENS, PROMPT_LENGTH, T5, Ask, Side, Worker, draw, frozen, make_prompts, pool_of
from sides import SMOLLM2
from tqdm import tqdm
from train_speed import append

from softprompt.answering import Decoding, surroundings
from softprompt.models import choose_dtype, default_format, encode_target, keep_freed_memory
from softprompt.serving import Answer, Part, Request, Scheduler, Ticket

CPU = torch.device("cpu")

Row = dict[str, Any]
Pool = Sequence[tuple[int, ...]]


class Bench:
    """One model in this process, its prompts' folders, and inputs."""

    def __init__(self, model: str, source: str, folder: Path, num_prompts: int, data: Path):
        self.model, self.source = model, source
        self.lm = frozen(Side(name="ours", model=model, source=source, prompts=(), max_tokens=MAX_TOKENS))
        self.form = default_format(self.lm, max_input_length=256)
        self.pool = pool_of(data, self.form, self.lm.tokenizer)
        self.folders = make_prompts(self.lm, folder, num_prompts, PROMPT_LENGTH)


def one_part(ids: tuple[int, ...], prompt: str, max_tokens: int) -> Request:
    """A request of one prompt, greedy."""
    return Request(parts=(Part(ids=ids, prompt=prompt),), decoding=Decoding(max_tokens=max_tokens))


def answer(engine: Scheduler, requests: Sequence[Request]) -> tuple[float, list[Answer]]:
    """Seconds until all are answered in this thread, and the answers."""
    started = time.perf_counter()
    tickets = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return time.perf_counter() - started, [ticket.result() for ticket in tickets]


def end_of_row(dtype: torch.dtype = torch.float32) -> Row:
    """What every row says last."""
    return {"command": "python " + shlex.join(sys.argv), **surroundings(CPU, dtype)}


class Rival(NamedTuple):
    """How PEFT is run, with how many prompts, and the ratio that is wanted at least."""

    name: str
    dtype: str
    num_prompts: int
    wanted: dict[str, float | None]


RIVALS = (
    Rival("switching", "float32", 64, {T5: 4.0, SMOLLM2: 8.0}),
    Rival("switching", "bfloat16", 64, {T5: 2.0, SMOLLM2: 4.0}),
    Rival("grouped", "bfloat16", 4, {T5: 1.2, SMOLLM2: 3.0}),
    Rival("grouped", "bfloat16", 64, {T5: 2.0, SMOLLM2: 4.0}),
    Rival("grouped", "float32", 4, {}),
    Rival("grouped", "float32", 64, {}),
)
OURS = str(choose_dtype("auto", CPU)).removeprefix("torch.")


class Timed(NamedTuple):
    """One round of one side."""

    seconds: float
    """A request."""
    answers: list[list[int]]


def throughput(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """All rivals of one model, each beside ours in rounds on the same requests."""
    del bench.lm  # the sides have their own
    rows = []
    for rival in tqdm(options.rivals, desc=bench.model, unit="rival"):
        prompts = bench.folders[: rival.num_prompts]
        ours, theirs = (
            Worker(
                Side(
                    name=name,
                    model=bench.model,
                    source=bench.source,
                    prompts=prompts,
                    max_tokens=MAX_TOKENS,
                    dtype=dtype,
                ),
                options.threads,
            )
            for name, dtype in (("ours", OURS), (rival.name, rival.dtype))
        )
        theirs.answer(draw(bench.pool, rival.num_prompts, 8, seed=-1))
        ours.answer([Ask(prompt, bench.pool[0]) for prompt in range(rival.num_prompts)])
        ours.answer(draw(bench.pool, rival.num_prompts, options.requests, seed=-1))  # compiles for their lengths
        rounds, asked = [], []
        for number in range(options.rounds):
            asks = draw(bench.pool, rival.num_prompts, options.requests, seed=number)
            asked += asks
            # The slower side answers the first of them only.
            share = asks if rival.name == "grouped" else asks[: options.requests // options.switching_share]
            timed = {}
            for worker, own in ((theirs, share), (ours, asks))[:: -1 if number % 2 else 1]:
                seconds, answers = worker.answer(own)
                timed[worker.side.name] = Timed(seconds / len(own), answers)
            rounds.append((timed["ours"], timed[rival.name]))
        ours.stop()
        theirs.stop()
        rows.append(row_of_rival(bench.model, rival, rounds, asked, options.threads))
        row = rows[-1]
        wanted = f"wanted {row['wanted']}" if row["wanted"] else ""
        tqdm.write(
            f"{bench.model:13} {rival.name:9} {rival.dtype:8} {rival.num_prompts:3} prompts: {row['ratio']:6.2f}x "
            f"({row['ours_per_second']} against {row['theirs_per_second']} a second; {row['mean_input_tokens']} tokens "
            f"in, {row['mean_output_tokens']} out; {row['equal_answers']:.1%} equal) {wanted}"
        )
    return rows


def row_of_rival(
    model: str, rival: Rival, rounds: Sequence[tuple[Timed, Timed]], asked: Sequence[Ask], threads: int
) -> Row:
    """What is committed of a rival. rounds: ours and theirs."""
    ratios = [theirs.seconds / ours.seconds for ours, theirs in rounds]
    compared = [a == b for ours, theirs in rounds for a, b in zip(ours.answers, theirs.answers, strict=False)]
    return {
        "experiment": "serve_throughput",
        "model": model,
        "rival": rival.name,
        "rival_dtype": rival.dtype,
        "ours_compiled": True,
        "num_prompts": rival.num_prompts,
        "prompt_length": PROMPT_LENGTH,
        "mean_input_tokens": round(fmean(len(ask.ids) for ask in asked), 1),
        "mean_output_tokens": round(fmean(len(ids) for ours, _ in rounds for ids in ours.answers), 2),
        "max_tokens": MAX_TOKENS,
        "ratio": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "wanted": rival.wanted.get(model),
        "ours_per_second": round(1 / median(ours.seconds for ours, _ in rounds), 2),
        "theirs_per_second": round(1 / median(theirs.seconds for _, theirs in rounds), 2),
        "equal_answers": round(sum(compared) / len(compared), 4),
        **end_of_row(getattr(torch, OURS)),
        "threads": threads,
    }


NUM_MEMBERS = 5
LABELS = ("negative", "positive")
WANTED = {"prompts": 0.9, "generate": 5.2, "score": 5.2}


def mixed(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Different prompts in one batch beside one prompt, and an ensemble beside one prompt."""
    keep_freed_memory()
    engine = Scheduler(bench.lm, max_waiting=4_096, max_rows=256)
    hashes = [engine.table.add(folder) for folder in bench.folders]
    candidates = tuple(tuple(encode_target(text, bench.form, bench.lm.tokenizer)) for text in LABELS)

    def request(ids: tuple[int, ...], prompts: Sequence[int], scores: bool = False) -> Request:
        """An ensemble of these prompts, or one of them."""
        given: dict[str, Any] = {"candidates": candidates} if scores else {}
        parts = tuple(Part(ids=ids, prompt=hashes[prompt], **given) for prompt in prompts)
        return Request(parts=parts, decoding=Decoding(max_tokens=MAX_TOKENS), labels=LABELS if scores else ())

    # Each prompt answers once, so that a decoder-only model's keys and values of it are there.
    answer(engine, [request(bench.pool[0], [prompt]) for prompt in range(options.in_flight)])
    rows = []
    for name, wanted in WANTED.items():
        count, scores = options.in_flight if name == "prompts" else options.inputs, name == "score"
        ones, ratios, equal = [], [], True
        for number in tqdm(range(options.rounds), desc=f"{bench.model} {name}", unit="round"):
            asks = draw(bench.pool, 1, count, seed=number)
            sets = {"one": [request(ask.ids, [0], scores) for ask in asks]}
            if name == "prompts":
                sets["many"] = [request(ask.ids, [prompt]) for prompt, ask in enumerate(asks)]
            else:
                sets["many"] = [request(ask.ids, range(NUM_MEMBERS), scores) for ask in asks]
            # On odd rounds one prompt comes first.
            found = {kind: answer(engine, sets[kind]) for kind in (("many", "one"), ("one", "many"))[number % 2]}
            one, many = found["one"][0], found["many"][0]
            ones.append(one)
            ratios.append(one / many if name == "prompts" else many / one)
            for member in range(NUM_MEMBERS if name != "prompts" else 0):  # what a member says alone and among five
                _, alone = answer(engine, [request(ask.ids, [member], scores) for ask in asks])
                pairs = zip(alone, found["many"][1], strict=True)
                equal &= all(a.parts[0].text == b.parts[member].text for a, b in pairs)
        row = {
            "experiment": "serve_mixed",
            "model": bench.model,
            "measure": name,
            "ratio": round(median(ratios), 3),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "wanted": wanted,
            "equal": equal,
            "inputs": count,
            "prompt_length": PROMPT_LENGTH,
            "max_tokens": MAX_TOKENS,
            "mean_input_tokens": round(fmean(map(len, bench.pool)), 1),
            "one_prompt_per_second": round(median(count / one for one in ones), 2),
            **end_of_row(),
        }
        rows.append(row)
        text = {
            "prompts": f"{count} prompts have {row['ratio']:.2f} of one's throughput",
            "generate": f"an ensemble of five costs {row['ratio']:.2f}x one",
            "score": f"an ensemble of five costs {row['ratio']:.2f}x one, scoring labels",
        }[name]
        same = "" if equal else "; ANSWERS DIFFER"
        tqdm.write(f"{bench.model}: {text} (wanted {wanted}; {row['one_prompt_per_second']} a second with one){same}")
    return rows


SHARE = 0.7
NUM_NAMES = 16
MOST_TOKENS = 24
REPLACE_EVERY = 3.0  # seconds


@dataclass
class Load:
    """A running engine, the names of its prompts, what was asked and what became of it."""

    engine: Scheduler
    pool: Pool
    named: list[tuple[str, str]]
    """The folder and the hash that each name has now."""
    fresh: list[str]
    """Folders of prompts that no name has had."""
    chooser: random.Random
    asked: list[tuple[str, tuple[int, ...], int]] = field(default_factory=list)
    """The prompt's folder, the input, new tokens at most."""
    tickets: list[Ticket] = field(default_factory=list)
    num_replaced: int = 0

    def submit(self) -> None:
        """One more request."""
        folder, sha256 = self.chooser.choice(self.named)
        ids, longest = self.chooser.choice(self.pool), self.chooser.randint(1, MOST_TOKENS)
        self.tickets.append(self.engine.submit(one_part(ids, sha256, longest)))
        self.asked.append((folder, ids, longest))

    def replace(self) -> None:
        """Add a prompt, let the name whose turn it is have it, remove what that had; nothing if there are no more."""
        if not self.fresh:
            return
        folder = self.fresh.pop(0)
        place = self.num_replaced % NUM_NAMES
        _, before = self.named[place]
        self.named[place] = (folder, self.engine.table.add(folder))
        self.engine.table.remove(before)
        self.num_replaced += 1

    def arrive(self, rate: float, seconds: float) -> None:
        """Arrivals at `rate` a second for so long; returns when the last is answered."""
        started = time.perf_counter()
        arrival, replaced = 0.0, 0.0
        with tqdm(total=round(seconds), unit="s", desc=f"{rate:.1f} a second") as bar:
            while arrival < seconds:
                now = time.perf_counter() - started
                if now - replaced > REPLACE_EVERY:
                    self.replace()
                    replaced = now
                if now < arrival:
                    time.sleep(min(arrival - now, 0.05))
                    continue
                self.submit()
                arrival += self.chooser.expovariate(rate)
                bar.update(min(round(now), bar.total) - bar.n)
        for ticket in self.tickets:
            ticket.result()

    def num_wrong(self, lm: Any) -> int:
        """Answers that differ from those of the same request alone."""
        engine = Scheduler(lm)
        wrong = 0
        asked = tqdm(zip(self.asked, self.tickets, strict=True), total=len(self.asked), desc="alone", unit="request")
        for (folder, ids, longest), ticket in asked:
            _, (alone,) = answer(engine, [one_part(ids, engine.table.add(folder), longest)])
            wrong += alone.parts[0].ids != ticket.result().parts[0].ids
        return wrong


def load(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Requests that arrive whether or not earlier ones are done."""
    keep_freed_memory()
    engine = Scheduler(bench.lm, max_rows=128)
    folders = list(bench.folders)
    named = [(folder, engine.table.add(folder)) for folder in folders[:NUM_NAMES]]
    engine.start()

    def capacity(count: int) -> float:
        """Requests a second when all are there at once."""
        at_once = Load(engine, bench.pool, named, [], random.Random(-1))
        started = time.perf_counter()
        for _ in range(count):
            at_once.submit()
        for ticket in at_once.tickets:
            ticket.result()
        return count / (time.perf_counter() - started)

    capacity(NUM_NAMES)  # warm
    most = capacity(options.requests)
    run = Load(engine, bench.pool, named, folders[NUM_NAMES:], random.Random(0))
    run.arrive(SHARE * most, options.seconds)
    stats = engine.stats()
    engine.drain()
    p50, p90, p99 = np.percentile([ticket.result().seconds for ticket in run.tickets], [50, 90, 99])
    row = {
        "experiment": "serve_load",
        "model": bench.model,
        "capacity_per_second": round(most, 2),
        "arrivals_per_second": round(len(run.tickets) / options.seconds, 2),
        "seconds": options.seconds,
        "num_requests": len(run.tickets),
        "num_replaced": run.num_replaced,
        "num_errors": stats.num_errors,
        "num_wrong": run.num_wrong(bench.lm),
        "p50": round(float(p50), 3),
        "p90": round(float(p90), 3),
        "p99": round(float(p99), 3),
        "p50_waited": round(median(ticket.result().waited for ticket in run.tickets), 3),
        "prompt_length": PROMPT_LENGTH,
        "mean_input_tokens": round(fmean(len(ids) for _, ids, _ in run.asked), 1),
        "mean_max_tokens": round(fmean(longest for *_, longest in run.asked), 1),
        **end_of_row(),
    }
    tqdm.write(
        f"{bench.model}: {row['num_requests']} requests in {row['seconds']:.0f} s ({row['arrivals_per_second']} of "
        f"{row['capacity_per_second']} a second), {row['num_replaced']} prompts replaced: {row['num_errors']} errors, "
        f"{row['num_wrong']} wrong; p50 {row['p50']} s, p90 {row['p90']} s, p99 {row['p99']} s"
    )
    return [row]


WANTED_OVERHEAD = 0.05
IN_FLIGHT = 16
ROOM = 1.3  # of what the rows were promised in a first round: the next may be batched otherwise


def memory(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """What registered prompts take, then requests inside and beyond the limit."""
    rows = []
    made = [registered(Scheduler(bench.lm), bench.folders)]
    keep_freed_memory()
    made.append(limited(bench.lm, bench.pool, bench.folders[: 2 * options.inside], options))
    for values in made:
        row = {"experiment": "serve_memory", "model": bench.model, **values, "prompt_length": PROMPT_LENGTH}
        row |= {"max_tokens": MAX_TOKENS, "mean_input_tokens": round(fmean(map(len, bench.pool)), 1)}
        rows.append(row | end_of_row())
    added, limit = rows
    tqdm.write(
        f"{bench.model}: {added['num_prompts']} prompts of {added['prompt_bytes'] / 2**20:.0f} MiB add "
        f"{added['grown_bytes'] / 2**20:.0f} MiB, {added['overhead']:+.1%} (wanted {added['wanted']:+.0%} at most)"
    )
    tqdm.write(
        f"{bench.model}: {limit['num_inside']} prompts inside {limit['max_memory'] / 2**20:.0f} MiB answer "
        f"{limit['inside_per_second']} a second, {limit['num_twice']} prompts {limit['twice_per_second']} "
        f"({limit['ratio']:.2f} of it; read or run again {limit['inside_again']} and {limit['twice_again']}); highest "
        f"{limit['highest_bytes'] / 2**20:.0f} MiB"
    )
    return rows


def registered(engine: Scheduler, folders: Sequence[str]) -> Row:
    """Register prompts one by one; what they take."""

    def resident() -> int:
        """Bytes of this process that are in memory, after giving back what is free."""
        gc.collect()
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)
        return psutil.Process().memory_info().rss

    num_bytes = len(folders) * PROMPT_LENGTH * engine.lm.width * 4
    engine.table.add(folders[0])  # imports and caches of the first are not the others'
    before = resident()
    for folder in tqdm(folders[1:], desc="register", unit="prompt"):
        engine.table.add(folder)
    grown = resident() - before
    return {
        "measure": "registered",
        "num_prompts": len(folders),
        "prompt_bytes": num_bytes,
        "grown_bytes": grown,
        "counted_bytes": engine.stats().values_bytes,
        "overhead": round(grown / (num_bytes * (len(folders) - 1) / len(folders)) - 1, 4),
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
        some = asks[first : first + IN_FLIGHT]
        tickets = [engine.submit(one_part(ask.ids, hashes[ask.prompt], MAX_TOKENS)) for ask in some]
        while engine.step():
            stats = engine.stats()
            promised = max(promised, stats.promised_bytes)
            highest = max(highest, stats.values_bytes + stats.states_bytes + stats.cache_bytes)
        for ticket in tickets:
            ticket.result()
    return Served(time.perf_counter() - started, promised, highest)


def limited(lm: Any, pool: Pool, folders: Sequence[str], options: argparse.Namespace) -> Row:
    """Round after round over as many prompts as fit, and over twice as many."""
    fits = len(folders) // 2
    engine = Scheduler(lm)
    hashes = [engine.table.add(folder) for folder in folders]
    worn = [engine.table.num_bytes(sha256) for sha256 in hashes]
    promised = serve(engine, [Ask(0, ids) for ids in pool[: options.requests]], hashes).promised
    engine = Scheduler(lm, max_memory=sum(worn[:fits]) + int(ROOM * promised))
    for folder in folders:
        engine.table.add(folder)
    counts = {"inside": fits, "twice": 2 * fits}
    rates: dict[str, list[float]] = {"inside": [], "twice": []}
    again: dict[str, dict[str, int]] = {}
    highest = 0
    for _ in tqdm(range(options.rounds), desc="limit", unit="round"):
        for kind, count in counts.items():
            asks = [Ask(i % count, pool[i % len(pool)]) for i in range(options.requests)]
            serve(engine, asks, hashes)  # the set before has left its prompts there
            before = engine.stats()
            served = serve(engine, asks, hashes)
            after = engine.stats()
            rates[kind].append(len(asks) / served.seconds)
            highest = max(highest, served.highest)
            again[kind] = {
                "run": after.num_prompts_run - before.num_prompts_run,
                "loaded": after.num_prompts_loaded - before.num_prompts_loaded,
            }
    inside, twice = median(rates["inside"]), median(rates["twice"])
    return {
        "measure": "limit",
        "max_memory": engine.max_memory,
        "highest_bytes": highest,
        "num_inside": fits,
        "num_twice": 2 * fits,
        "inside_per_second": round(inside, 2),
        "twice_per_second": round(twice, 2),
        "inside_again": again["inside"],
        "twice_again": again["twice"],
        "ratio": round(twice / inside, 3),
    }


def invariant(bench: Bench, options: argparse.Namespace) -> list[Row]:
    """Requests of many prompts at once, with batch invariance and without."""
    keep_freed_memory()
    engines = [Scheduler(bench.lm, max_waiting=4_096, is_batch_invariant=given) for given in (False, True)]
    hashes = [engines[0].table.add(folder) for folder in bench.folders]
    for folder in bench.folders:
        engines[1].table.add(folder)
    candidates = tuple(tuple(encode_target(text, bench.form, bench.lm.tokenizer)) for text in LABELS)
    rows = []
    for name in ("generate", "score"):
        scored: dict[str, Any] = {"candidates": candidates} if name == "score" else {}
        ratios, num_unlike = [], [0, 0]
        for number in tqdm(range(options.rounds), desc=f"{bench.model} {name}", unit="round"):
            requests = [
                Request(
                    parts=(Part(ids=ask.ids, prompt=hashes[ask.prompt], **scored),),
                    decoding=Decoding(max_tokens=MAX_TOKENS),
                    labels=LABELS if scored else (),
                )
                for ask in draw(bench.pool, len(hashes), options.in_flight, seed=number)
            ]
            seconds = [0.0, 0.0]
            for place in (0, 1)[:: -1 if number % 2 else 1]:
                answer(engines[place], requests)  # all prompts' keys and values are there
                seconds[place], together = answer(engines[place], requests)
                if number == 0:
                    singly = [answer(engines[place], [request])[1][0] for request in requests]
                    pairs = zip(singly, together, strict=True)
                    num_unlike[place] = sum((a.prediction, a.parts) != (b.prediction, b.parts) for a, b in pairs)
            ratios.append(seconds[1] / seconds[0])
        row = {
            "experiment": "serve_invariant",
            "model": bench.model,
            "measure": name,
            "ratio": round(median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
            "wanted": 3.0,
            "num_requests": options.in_flight,
            "num_unlike": num_unlike[1],
            "num_unlike_without": num_unlike[0],
            "rows_at_once": engines[1].stepper.batch.rows_at_once,
            "prompt_length": PROMPT_LENGTH,
            "max_tokens": MAX_TOKENS,
            **end_of_row(bench.lm.dtype),
        }
        rows.append(row)
        tqdm.write(
            f"{bench.model}: {name}: {row['ratio']:.2f}x the seconds (wanted at most 3); other bits than alone: "
            f"{num_unlike[1]} of {options.in_flight}, without it {num_unlike[0]}"
        )
    return rows


class Measure(NamedTuple):
    """One of the five."""

    run: Callable[[Bench, argparse.Namespace], list[Row]]
    num_prompts: Callable[[argparse.Namespace], int]
    options: dict[str, tuple[float, float, str]]
    """Each with its value, its value with --quick, and its help."""


MEASURES = {
    "throughput": Measure(
        throughput,
        lambda options: max(rival.num_prompts for rival in options.rivals),
        {
            "rounds": (5, 2, ""),
            "requests": (128, 32, "of a round"),
            "switching-share": (4, 4, "PEFT, request by request, gets 1 of so many"),
        },
    ),
    "mixed": Measure(
        mixed,
        lambda options: options.in_flight,
        {
            "rounds": (5, 2, ""),
            "in-flight": (256, 32, "requests and prompts at once"),
            "inputs": (64, 8, "of a round of the ensemble"),
        },
    ),
    "load": Measure(
        load,
        lambda options: NUM_NAMES + int(options.seconds / REPLACE_EVERY) + 1,
        {
            "seconds": (300.0, 20.0, "that requests arrive for"),
            "requests": (256, 48, "that capacity is measured with"),
        },
    ),
    "invariant": Measure(
        invariant,
        lambda options: 16,
        {"rounds": (5, 1, ""), "in-flight": (64, 16, "requests at once")},
    ),
    "memory": Measure(
        memory,
        lambda options: options.prompts,
        {
            "prompts": (1_000, 100, ""),
            "inside": (32, 8, "prompts that the limit holds"),
            "requests": (128, 32, "of a round"),
            "rounds": (3, 1, ""),
        },
    ),
}


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measures = parser.add_subparsers(dest="measure", required=True, metavar="{" + ",".join(MEASURES) + "}")
    for name, measure in MEASURES.items():
        command = measures.add_parser(name)
        command.add_argument("--t5", metavar="DIR", help="folder with spiece.model; without it only other models run")
        command.add_argument("--models", nargs="+", help="models besides the T5 shape (default: smollm2-135m)")
        command.add_argument("--data", type=Path, default=os.environ.get("SOFTPROMPT_DATA"))
        command.add_argument("--threads", type=int, default=torch.get_num_threads())
        command.add_argument("--quick", action="store_true", help="small and short; no rows")
        command.add_argument("--rows", type=Path, default=Path(f"results/serve_{name}.jsonl"))
        for option, (value, _, text) in measure.options.items():
            command.add_argument(f"--{option}", type=type(value), default=value, help=text)
    options = parser.parse_args(words)
    if options.data is None:
        parser.error("where is the tasks' data? set SOFTPROMPT_DATA or give --data")
    options.rivals = RIVALS if OURS == "float32" else [rival for rival in RIVALS if rival.wanted]
    if options.quick:
        options.rivals = (RIVALS[0], RIVALS[-1])
        for option, (_, quick, _) in MEASURES[options.measure].options.items():
            setattr(options, option.replace("-", "_"), quick)
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Measure each model, and add its rows to the file, but with --quick."""
    options = options_of(words)
    torch.set_num_threads(options.threads)
    measure = MEASURES[options.measure]
    models = {T5: options.t5} if options.t5 else {}
    models |= {name: name for name in options.models or [SMOLLM2]}
    for model, source in models.items():
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(model, source, Path(folder), measure.num_prompts(options), options.data)
            rows = measure.run(bench, options)
        if not options.quick:
            append(options.rows, rows)


if __name__ == "__main__":
    main()
