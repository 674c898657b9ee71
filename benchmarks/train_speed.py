"""Seconds of our training step beside PEFT's, in one run, one side after the other.

    SOFTPROMPT_DATA=... python benchmarks/train_speed.py            # about 15 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/train_speed.py --quick    # about a minute, to see that it runs
    SOFTPROMPT_DATA=... python benchmarks/train_speed.py --sweep    # which micro-batches are best

What each side does, and why, is in benchmarks/README.md. Every line of the table is also a row of
results/train_speed.jsonl (`--results`), with all samples.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shlex
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sides import DOCUMENTED_BATCH, SHAPES, SMOLLM2, Layout, Side, Worker, count_flops, matmul_peak, t5_tokenizer

from softprompt.answering.engine import MAX_TOKENS
from softprompt.answering.rows import surroundings
from softprompt.base.files import append_whole
from softprompt.models import FrozenLM
from softprompt.models.loading import load
from softprompt.models.text import Row, TextFormat, default_format, encode_examples
from softprompt.models.tokenizer import Tokenizer
from softprompt.tasks import get_task, read_examples

SETS = {"sst2": "glue/sst2", "rte": "superglue/rte", "boolq": "superglue/boolq", "multirc": "superglue/multirc"}
# What PEFT pads to. 128: its notebook examples/conditional_generation/peft_prompt_tuning_seq2seq.ipynb. The longer
# sets get the smallest power of two that cuts at most one input in twenty, or 512, the longest that T5 was trained on.
MAX_LENGTH = {"sst2": 128, "rte": 256, "boolq": 512, "multirc": 512}
MAX_LENGTH_CAUSAL = 64  # inputs and target together: PEFT's guide docs/source/task_guides/clm-prompt-tuning.mdx

BATCH_SIZE = 32
RIVALS = ["documented", "bfloat16", "best"]
NEEDED = {"documented": 2.5, "best": 1.0}
NEEDED_LONG = 4.0  # of PEFT as documented, on BoolQ and MultiRC
NEEDED_BEST_WITH_DROPOUT = 1.4
NEEDED_SMOLLM2 = {"documented": 6.0, "best": 3.0}  # on SST-2, 100 prompt tokens

# Gradients in float32, of the largest value, and losses relative; ours: the two add in another order.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


class Case(NamedTuple):
    """One set on one model."""

    model: str
    set: str
    part: int
    """One row in so many of a step is timed."""


# Every set on the small shape, a short and a long one on base: with PEFT as documented a base step takes minutes, so
# a fraction of its rows stands for the whole. Never with SmolLM2: we run the prompt once a step, however many rows.
DEFAULT = [
    *(Case("t5-1.1-small", name, 1 if name == "sst2" else 4) for name in SETS),
    *(Case("t5-1.1-base", name, 4) for name in ("sst2", "boolq")),
    Case(SMOLLM2, "sst2", 1),
]
QUICK = [Case("t5-1.1-small", "sst2", 4), Case(SMOLLM2, "sst2", 1)]


@dataclass
class Timed:
    """A side at one dropout rate, in one case."""

    side: Side
    dropout: float
    layout: Layout
    rows_timed: int
    seconds: list[float] = field(default_factory=list)
    """Of a whole step, one a round."""
    flops: list[float] = field(default_factory=list)
    tokens_computed: int = 0
    tokens_real: int = 0
    peak_mb: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of a step."""
        return statistics.median(self.seconds)

    def gflops(self) -> float:
        """Median rate over the rounds, padding included."""
        return statistics.median(f / s / 1e9 for f, s in zip(self.flops, self.seconds, strict=True))

    def padding(self) -> str:
        """In words."""
        if self.side.name == "ours":
            return f"to the longest of a micro-batch of {self.layout.max_tokens} tokens, rows sorted by length"
        size = self.layout.device_batch
        if self.side.name == "best":
            return f"to the longest of {size} rows, rows sorted by length"
        return f"to {self.layout.max_length} tokens, {size} rows at once"


def read_rows(case: Case, tokenizer: Tokenizer, form: TextFormat, count: int, data: Path) -> list[Row]:
    """A seeded sample of a training file, as both sides get it."""
    task = get_task(SETS[case.set])
    examples = read_examples(task, "train", data)
    drawn = random.Random(f"{case.set} 0").sample(examples, min(count, len(examples)))
    return encode_examples(drawn, form, tokenizer)


def part_of(rows: Sequence[Row], part: int, offset: int) -> list[Row]:
    """One row in `part`, every length alike: sorted by length, every part-th from `offset`."""
    ordered = sorted(rows, key=lambda row: row.num_tokens)
    return ordered[offset % part :: part]


@dataclass
class Source:
    """What the parent knows of a model: its tokenizer, and where the processes load it from."""

    tokenizer: Tokenizer
    path: str
    form: TextFormat

    @staticmethod
    def of(model: str, data: Path) -> Source:
        """The T5 vocabulary beside the data, or SmolLM2 from its package."""
        if model in SHAPES:
            folder = data.parent / "t5"
            return Source(Tokenizer(t5_tokenizer(str(folder))), str(folder), TextFormat(inputs_end_with_eos=True))
        lm: FrozenLM = load(model, dtype="float32")
        return Source(lm.tokenizer, lm.config._name_or_path, default_format(lm))

    def form_for(self, case: Case) -> tuple[TextFormat, int]:
        """The text format, cut where PEFT cuts, and what PEFT pads to."""
        if case.model in SHAPES:
            length = MAX_LENGTH[case.set]
            return replace(self.form, max_input_length=length), length
        longest_target = 4  # "positive" and "negative" are 2 ids with the end of sequence
        return replace(self.form, max_input_length=MAX_LENGTH_CAUSAL - longest_target), MAX_LENGTH_CAUSAL


def rates(model: str) -> list[float]:
    """Dropout rates at which a model is timed: decoder-only models have none."""
    return [0.0, 0.1] if model in SHAPES else [0.0]


def sides_of(model: str, source: Source, options: argparse.Namespace, native: str) -> list[Side]:
    """Every side of a model; `native` is the type this machine multiplies fastest."""
    common: dict[str, Any] = {"model": model, "source": source.path, "prompt_length": options.prompt_length}
    sides = [
        Side(name="ours", dtype=native, compiled=options.compile, **common),
        Side(name="documented", **common),
        Side(name="best", dtype=native, compiled=options.compile, **common),
    ]
    if native == "bfloat16":
        sides.append(Side(name="bfloat16", dtype=native, **common))
    return [side for side in sides if side.name in ("ours", *options.rivals)]


def timed_in(case: Case, sides: Sequence[Side], layout: Layout) -> list[Timed]:
    """What a round of a case times. PEFT as documented has T5's dropout of 0.1; only PEFT at its best sheds it."""
    timed = []
    for side in sides:
        for rate in rates(case.model):
            if side.pads_to_max_length:
                if rate == rates(case.model)[-1]:
                    own = layout._replace(device_batch=DOCUMENTED_BATCH)
                    timed.append(Timed(side, rate, own, DOCUMENTED_BATCH))
                continue
            own = layout._replace(device_batch=max(1, layout.device_batch // case.part))
            timed.append(Timed(side, rate, own, BATCH_SIZE // case.part))
    return timed


def prepare(case: Case, source: Source, options: argparse.Namespace, data: Path) -> tuple[list[Row], Layout]:
    """The rows of all rounds, and how they are cut into passes."""
    form, max_length = source.form_for(case)
    rows = read_rows(case, source.tokenizer, form, BATCH_SIZE * options.alternations, data)
    return rows, Layout(options.max_tokens, max_length, options.device_batch)


def run_case(
    case: Case, workers: dict[str, Worker], rows: Sequence[Row], layout: Layout, num_rounds: int
) -> list[Timed]:
    """Time every side of a case in turn, round after round, each round on the next step's rows."""
    timed = timed_in(case, [worker.side for worker in workers.values()], layout)
    steps = [rows[number * BATCH_SIZE :][:BATCH_SIZE] for number in range(num_rounds)]
    for t in timed:  # untimed: first calls allocate, and compiled blocks must have met every kind of shape
        parts = (
            [part_of(step, case.part, number) for number, step in enumerate(steps)] if t.side.compiled else [rows[:4]]
        )
        for some in parts:
            workers[t.side.name].time(some, t.dropout, t.layout)
    for worker in workers.values():
        worker.reset_peak()
    for number, step in enumerate(steps):
        for t in timed:
            time_once(t, case, workers[t.side.name], step, number)
    for t in timed:
        t.peak_mb = workers[t.side.name].peak_mb()
    return timed


def time_once(t: Timed, case: Case, worker: Worker, step: Sequence[Row], number: int) -> None:
    """One sample. Where all passes of a step have one shape, one pass is timed for all."""
    taken = list(step[: t.rows_timed]) if t.side.pads_to_max_length else part_of(step, case.part, number)
    share = BATCH_SIZE / len(taken)
    t.seconds.append(worker.time(taken, t.dropout, t.layout) * share)
    passes = worker.passes(taken, t.layout)
    t.flops.append(count_flops(worker.side, passes) * share)
    t.tokens_computed += sum(p.rows * (p.tokens + p.targets) for p in passes)
    t.tokens_real += sum(row.num_tokens for row in taken)


def check_equal(
    cases: dict[Case, tuple[list[Row], Layout]], model: str, source: Source, options: argparse.Namespace
) -> None:
    """AssertionError unless all sides give one loss and one gradient on the same rows, in float32, without dropout.

    In processes that end here, uncompiled: what is timed is in the type that the machine multiplies fastest.
    """
    sides = [replace(side, compiled=False) for side in sides_of(model, source, options, "float32")]
    workers = start(sides, options.threads)
    try:
        for case, (rows, layout) in cases.items():
            compare(case, workers, rows[:4], layout)
    finally:
        stop(workers)


def compare(case: Case, workers: dict[str, Worker], rows: Sequence[Row], layout: Layout) -> None:
    """AssertionError where a side is further from the first than addition in another order explains."""
    prompt = workers["ours"].first_vectors()
    found = {name: worker.loss_and_gradient(rows, prompt, layout) for name, worker in workers.items()}
    (first, (loss, gradient)), *others = found.items()
    for name, (other_loss, other_gradient) in others:
        off = abs(other_loss - loss) / abs(loss)
        apart = float((other_gradient - gradient).abs().max() / gradient.abs().max())
        print(
            f"{case.model}, {case.set}, float32: same loss ({off:.0e} apart) and gradient ({apart:.0e} of its largest "
            f"value): {first}, {name}",
            flush=True,
        )
        assert off < LOSS_TOLERANCE, f"{case}: loss {loss} of {first}, {other_loss} of {name}"
        assert apart < GRADIENT_TOLERANCE, f"{case}: gradients of {first} and {name} are {apart} apart"


def start(sides: Sequence[Side], threads: int) -> dict[str, Worker]:
    """One process for each side, ready."""
    workers = {side.name: Worker(side, threads) for side in sides}
    for worker in workers.values():
        worker.wait_until_ready()
    return workers


def stop(workers: dict[str, Worker]) -> None:
    """End the processes."""
    for worker in workers.values():
        worker.stop()


def pairs(timed: Sequence[Timed]) -> Iterator[tuple[Timed, Timed]]:
    """Ours and each rival at the same dropout rate."""
    ours = {t.dropout: t for t in timed if t.side.name == "ours"}
    for t in timed:
        if t.side.name != "ours":
            yield ours[t.dropout], t


def needed(case: Case, rival: Timed) -> float | None:
    """The ratio this project promises; None where it promises none."""
    if case.model == SMOLLM2:
        return NEEDED_SMOLLM2.get(rival.side.name) if rival.side.prompt_length == 100 else None
    if rival.side.name == "documented" and case.set in ("boolq", "multirc"):
        return NEEDED_LONG
    if rival.side.name == "best" and rival.dropout:
        return NEEDED_BEST_WITH_DROPOUT
    return NEEDED.get(rival.side.name)


def row_of(case: Case, ours: Timed, rival: Timed, peak: dict[str, float], command: str) -> dict[str, Any]:
    """One line of results/train_speed.jsonl."""
    ratios = [theirs / own for theirs, own in zip(rival.seconds, ours.seconds, strict=True)]
    wanted = needed(case, rival)
    ratio = statistics.median(ratios)
    return {
        "experiment": "train_speed",
        "command": command,
        "model": case.model if case.model == SMOLLM2 else f"{case.model} shape, random weights",
        "task": SETS[case.set],
        "rival": f"peft {rival.side.name}",
        "ratio": round(ratio, 3),
        "ratios": [round(r, 3) for r in ratios],
        "needed": wanted,
        "reached": None if wanted is None else ratio >= wanted,
        "batch_size": BATCH_SIZE,
        "prompt_length": ours.side.prompt_length,
        "dropout": ours.dropout,
        "ours": describe(ours, peak),
        "theirs": describe(rival, peak),
        "matmul_peak_gflops": peak,
        **surroundings(torch.device("cpu"), getattr(torch, ours.side.dtype)),
        "peft": metadata.version("peft"),
    }


def describe(t: Timed, peak: dict[str, float]) -> dict[str, Any]:
    """One side of a row."""
    return {
        "seconds": round(t.median, 4),
        "samples": [round(s, 4) for s in t.seconds],
        "rows_timed": t.rows_timed,
        "padding": t.padding(),
        "max_length": t.layout.max_length,
        "dropout": "shared over positions" if t.side.name == "ours" and t.dropout else "per element or none",
        "dtype": t.side.dtype,
        "compiled": t.side.compiled,
        "tokens_computed_per_input_token": round(t.tokens_computed / t.tokens_real, 3),
        "gflops": round(t.gflops(), 1),
        "share_of_matmul_peak": round(t.gflops() / peak[t.side.dtype], 3),
        "peak_memory_mb": round(t.peak_mb),
    }


HEAD = (
    f"{'model':13} {'set':8} {'rival':11} {'drop':>4} {'theirs s':>9} {'ours s':>8} {'ratio':>6} {'needed':>6} "
    f"{'peak % t/o':>10} {'MB t/o':>13}  padding of theirs / of ours"
)


def line_of(case: Case, ours: Timed, rival: Timed, row: dict[str, Any]) -> str:
    """One line of the table."""
    wanted = "-" if row["needed"] is None else f"{row['needed']:.1f}{'' if row['reached'] else ' (missed)'}"
    shares = f"{row['theirs']['share_of_matmul_peak']:.0%}/{row['ours']['share_of_matmul_peak']:.0%}"
    memory = f"{rival.peak_mb:,.0f}/{ours.peak_mb:,.0f}"
    return (
        f"{case.model:13} {case.set:8} {rival.side.name:11} {ours.dropout:4} {rival.median:9.2f} {ours.median:8.2f} "
        f"{row['ratio']:6.2f} {wanted:>6} {shares:>10} {memory:>13}  {rival.padding()} / {ours.padding()}"
    )


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a JSONL file, beside others that do so at the same time."""
    append_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def sweep(model: str, workers: dict[str, Worker], source: Source, options: argparse.Namespace, data: Path) -> None:
    """Print seconds of our step by micro-batch and of PEFT's best by rows of a pass, alternating, per set."""
    ours = [("ours", tokens) for tokens in (256, 512, 1024, 2048, 4096)]
    best = [("best", rows) for rows in (4, 8, 16, 32)]
    for name in [case.set for case in chosen_cases(options) if case.model == model]:
        case = Case(model, name, 1)
        form, max_length = source.form_for(case)
        rows = read_rows(case, source.tokenizer, form, BATCH_SIZE, data)
        rows = part_of(rows, 1 if name == "sst2" else 2, 0)
        samples: dict[tuple[str, int], list[float]] = {key: [] for key in [*ours, *best]}
        for side in ("ours", "best"):
            workers[side].time(rows, 0.0, Layout(512, max_length))
        for _ in range(options.alternations):
            for (side, value), seconds in samples.items():
                layout = Layout(value, max_length) if side == "ours" else Layout(0, max_length, value)
                seconds.append(workers[side].time(rows, 0.0, layout))
        for (side, value), seconds in samples.items():
            unit = "tokens" if side == "ours" else "rows"
            print(f"{model:13} {name:8} {side:5} {value:5} {unit:6} {statistics.median(seconds):8.2f} s", flush=True)


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that --quick, --models, --sets and --whole leave."""
    cases = QUICK if options.quick else DEFAULT
    if options.models or options.sets:
        known = {(case.model, case.set): case for case in DEFAULT}
        models = options.models or [*SHAPES, SMOLLM2]
        wanted = [(m, s) for m in models for s in (options.sets or SETS) if m in SHAPES or s == "sst2"]
        cases = [known.get(key, Case(*key, 4)) for key in wanted]
    if options.quick:
        cases = [case._replace(part=4 if case.model in SHAPES else 1) for case in cases]
    return [case._replace(part=1) for case in cases] if options.whole else cases


def measure_peaks(threads: int) -> dict[str, float]:
    """GFLOP/s of matrix products by type. bfloat16 is tried on a small one first: without units it takes minutes."""
    torch.set_num_threads(threads)
    peak = {"float32": matmul_peak(torch.float32, 2048)}
    small = matmul_peak(torch.bfloat16, 256, seconds=0.2)
    peak["bfloat16"] = matmul_peak(torch.bfloat16, 2048) if small > peak["float32"] / 10 else small
    return {name: round(value, 1) for name, value in peak.items()}


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one set, two rounds, nothing compiled; no rows")
    parser.add_argument("--sweep", action="store_true", help="try sizes of micro-batches instead; no rows")
    parser.add_argument("--models", nargs="+", choices=[*SHAPES, SMOLLM2])
    parser.add_argument("--sets", nargs="+", choices=list(SETS))
    parser.add_argument(
        "--rivals", nargs="+", choices=RIVALS, default=RIVALS, help="whose process to run (default: all)"
    )
    parser.add_argument("--whole", action="store_true", help="time every row, never one in four (over an hour)")
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--prompt-length", type=int, default=100)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS["cpu"], help="ours: tokens of a micro-batch")
    parser.add_argument("--device-batch", type=int, default=8, help="PEFT's: rows of a forward pass")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compile the blocks, in ours and in PEFT at its best (default; --no-compile saves minutes)",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("results/train_speed.jsonl"))
    options = parser.parse_args(words)
    if options.quick:
        options.alternations = min(options.alternations, 2)
        options.compile = False
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and append rows."""
    options = parse(words)
    logging.getLogger("softprompt").setLevel(logging.ERROR)
    data = Path(os.environ["SOFTPROMPT_DATA"])
    command = shlex.join(["python", "benchmarks/train_speed.py", *(sys.argv[1:] if words is None else words)])
    peak = measure_peaks(options.threads)
    native = max(peak, key=peak.__getitem__)
    print(f"matmul peak, {options.threads} threads: {peak['float32']} GFLOP/s float32, {peak['bfloat16']} bfloat16")
    if native == "float32":
        print("bfloat16 is slower than float32 on this processor, so no side uses it: PEFT in bfloat16 is left out")
    cases = chosen_cases(options)
    table = [HEAD]
    for model in dict.fromkeys(case.model for case in cases):
        source = Source.of(model, data)
        of_model = {}
        if not options.sweep:
            of_model = {case: prepare(case, source, options, data) for case in cases if case.model == model}
            check_equal(of_model, model, source, options)
        workers = start(sides_of(model, source, options, native), options.threads)
        try:
            if options.sweep:
                sweep(model, workers, source, options, data)
                continue
            for case, (rows, layout) in of_model.items():
                print(f"{case.model}, {case.set}", flush=True)
                timed = run_case(case, workers, rows, layout, options.alternations)
                results = [row_of(case, ours, rival, peak, command) for ours, rival in pairs(timed)]
                lines = [line_of(case, *pair, row) for pair, row in zip(pairs(timed), results, strict=True)]
                table += lines
                print("\n".join([HEAD, *lines]), flush=True)
                if not options.quick:
                    append(options.results, results)
        finally:
            stop(workers)
    if not options.sweep:
        print(f"\nbatch {BATCH_SIZE}, prompt {options.prompt_length} tokens, {options.alternations} rounds\n")
        print("\n".join(table))


if __name__ == "__main__":
    main()
