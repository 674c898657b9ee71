"""Pre-training a T5: our step beside the plain training loop of transformers' documentation.

    python benchmarks/pretrain_speed.py --corpus DIR --vocabulary DIR      # about 10 minutes on 2 cores
    python benchmarks/pretrain_speed.py --corpus DIR --vocabulary DIR --sizes micro --rounds 2

All train the same weights on the same texts, in processes of their own and in turn: our step in one process, our step
as `torchrun --nproc-per-node N` runs it on N threads, a process on each, and the plain loop. That is the one of the
documentation's "Train in native PyTorch": float32, eager, batches of 8, AdamW, `loss.backward()`; here it accumulates
gradients over the batches of a step, so that all move the weights as often. Before anything is timed all must give
the same loss on the same step. Tokens are those of inputs and targets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sides import matmul_peak

from softprompt.answering.rows import surroundings
from softprompt.base.watch import Watch
from softprompt.cluster import world_of_torchrun
from softprompt.models.loading import choose_dtype, keep_freed_memory
from softprompt.models.shapes import SIZES, Shape
from softprompt.models.tokenizer import load_tokenizer
from softprompt.pretraining.corpus import TokenStream, corpus_files, tokenized
from softprompt.pretraining.loop import Machine, Pretraining
from softprompt.pretraining.new_t5 import new_model
from softprompt.pretraining.objectives import span_lengths
from softprompt.pretraining.settings import PretrainConfig

DOCUMENTED_BATCH = 8  # rows: the documentation's own
NEEDED = 2.0
TOLERANCE = 1e-4  # of losses in float32, relative


class Ours:
    """A step of `softprompt.pretraining.loop`."""

    def __init__(self, size: str, vocabulary: str, config: PretrainConfig, bfloat16: bool, joined: ExitStack):
        keep_freed_memory()
        world = joined.enter_context(world_of_torchrun("cpu"))
        tokenizer = load_tokenizer(vocabulary)
        nothing = TokenStream(np.zeros(100_000, dtype=np.uint16), 0)
        self.losses: list[float] = []
        self.run = Pretraining(
            new_model(SIZES[size], tokenizer, seed=0),
            tokenizer,
            nothing,
            nothing,
            config,
            Path(),
            size,
            Machine(compile=True, bfloat16=bfloat16, world=world),
            Watch(step=lambda step, loss, tokens: self.losses.append(loss)),
        )

    def step(self, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """One step on these micro-batches; the loss of a target token, which the first process alone is told."""
        self.run.batches = lambda _: iter(batches)  # the texts of the step, drawn by the parent for all sides
        self.run.train_step()
        return self.losses[-1] if self.losses else float("nan")


class Plain:
    """The documentation's loop on the same model."""

    def __init__(self, size: str, vocabulary: str, config: PretrainConfig, bfloat16: bool, joined: ExitStack):
        self.model = new_model(SIZES[size], load_tokenizer(vocabulary), seed=0)
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=config.learning_rate)

    def step(self, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
        """One step on the same texts, in batches of 8."""
        inputs, targets = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*batches, strict=True))
        pairs = list(zip(inputs.split(DOCUMENTED_BATCH), targets.split(DOCUMENTED_BATCH), strict=True))
        total = 0.0
        for ids, labels in pairs:
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
            loss = self.model(**batch).loss / len(pairs)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total


SIDES = {"ours": Ours, "ours, a process a thread": Ours, "plain": Plain}


class Side:
    """A side in a process of its own, or in as many as it has threads."""

    def __init__(self, side: str, *given: Any, threads: int):
        world = threads if side == "ours, a process a thread" else 1
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        port = free_port()
        for rank in range(world):
            pipe, theirs = context.Pipe()
            arguments = (side, given, threads // world, rank, world, port, theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self.pipes.append(pipe)
            self.processes.append(process)

    def step(self, batches: Any) -> tuple[float, float]:
        """Seconds and loss of one step."""
        for pipe in self.pipes:
            pipe.send(batches)
        answers = [pipe.recv() for pipe in self.pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(answer)
        return max(seconds for seconds, _ in answers), answers[0][1]

    def stop(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(10)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _serve(side: str, given: tuple[Any, ...], threads: int, rank: int, world: int, port: int, pipe: Any) -> None:
    torch.set_num_threads(threads)
    if world > 1:  # what torchrun tells each of its processes
        os.environ |= {
            "RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)
        }  # fmt: skip
    try:
        with ExitStack() as joined:
            computes = SIDES[side](*given, joined)
            while (batches := pipe.recv()) is not None:
                started = time.perf_counter()
                loss = computes.step(batches)
                pipe.send((time.perf_counter() - started, loss))
    except Exception:
        pipe.send(traceback.format_exc(limit=-6))


def flops(shape: Shape, batches: Sequence[tuple[np.ndarray, np.ndarray]], vocabulary: int) -> float:
    """Operations of matrix products in one step, from shapes: 6 a weight and token, attention 12 * q * k * width."""
    d, inner = shape.d_model, shape.num_heads * shape.d_kv
    total = 0.0
    for inputs, targets in batches:
        (b, t), (_, n) = inputs.shape, targets.shape
        blocks = shape.num_layers * (4 * d * inner + 3 * d * shape.d_ff) * b * t
        blocks += shape.num_decoder_layers * ((6 * d * inner + 3 * d * shape.d_ff) * b * n + 2 * d * inner * b * t)
        attention = b * inner * (shape.num_layers * t * t + shape.num_decoder_layers * (n * n + n * t))
        total += 6 * (blocks + b * n * d * vocabulary) + 12 * attention
    return total


def measure(size: str, stream: TokenStream, options: argparse.Namespace, peak: float) -> dict[str, Any]:
    """The row of one size."""
    config = PretrainConfig(
        steps=10_000, batch_size=options.batch_size, micro_batch_size=options.micro_batch_size, learning_rate=1e-4
    )
    tokenizer = load_tokenizer(options.vocabulary)
    given = (size, options.vocabulary, config, options.bfloat16)
    sides = {side: Side(side, *given, threads=options.threads) for side in SIDES}
    source = Pretraining(
        new_model(SIZES["micro"], tokenizer, seed=0),
        tokenizer,
        stream,
        stream,
        config,
        Path(),
        size,
        Machine(),
        Watch(),
    )
    steps = [list(source.batches(step)) for step in range(options.rounds + 1)]
    first = {name: side.step(steps[0])[1] for name, side in sides.items()}  # compiles, too
    apart = max(first.values()) - min(first.values())
    if apart > TOLERANCE * first["plain"] and not options.bfloat16:
        sys.exit(f"{size}: the sides differ in the loss of one step: {first}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for batches in steps[1:]:
        for name, side in sides.items():
            seconds[name].append(side.step(batches)[0])
    for side in sides.values():
        side.stop()
    tokens = sum(inputs.size + targets.size for inputs, targets in steps[0])
    rates = {name: round(tokens / statistics.median(values), 1) for name, values in seconds.items()}
    ratios = {
        name: round(statistics.median(p / o for o, p in zip(seconds[name], seconds["plain"], strict=True)), 3)
        for name in sides
        if name != "plain"
    }
    operations = flops(SIZES[size], steps[0], tokenizer.size)
    return {
        "experiment": "pretrain_speed",
        "size": size,
        "shape": asdict(SIZES[size]),
        "parameters": SIZES[size].num_parameters,
        "vocabulary": tokenizer.size,
        "batch_size": config.batch_size,
        "micro_batch_size": config.micro_batch_size,
        "lengths": asdict_of(span_lengths(config.input_length)),
        "tokens_per_s": rates,
        "ratio": ratios,
        "needed": NEEDED,
        "share_of_peak": {name: round(operations / tokens * rates[name] / 1e9 / peak, 3) for name in ratios},
        "peak_gflops": round(peak, 1),
        "seconds": seconds,
        "losses": first,
        "command": f"python benchmarks/pretrain_speed.py --corpus DIR --vocabulary DIR --rounds {options.rounds}",
        **surroundings(torch.device("cpu"), torch.bfloat16 if options.bfloat16 else torch.float32),
    }


def asdict_of(values: Any) -> dict[str, Any]:
    """A named tuple as a dictionary."""
    return values._asdict()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--sizes", nargs="+", default=["micro", "tiny", "mini"], choices=SIZES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rows", type=Path, default=Path("results/pretrain_speed.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.bfloat16 = choose_dtype("auto", torch.device("cpu")) == torch.bfloat16
    peak = matmul_peak(torch.bfloat16 if options.bfloat16 else torch.float32, 2048)
    stream = tokenized(corpus_files(options.corpus), load_tokenizer(options.vocabulary))
    print("| size | side | tokens/s | ratio to plain | share of the matmul peak |\n|---|---|--:|--:|--:|")
    for size in options.sizes:
        row = measure(size, stream, options, peak)
        with options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for side, ratio in row["ratio"].items():
            rate, share = row["tokens_per_s"][side], row["share_of_peak"][side]
            print(f"| {size} | {side} | {rate:,.0f} | {ratio:.2f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
