"""What a turn of the serving engine costs before the model is asked: who of those that wait may run.

    python benchmarks/admission.py            # a minute or two
    python benchmarks/admission.py --quick    # once each, no rows: does it run?

250 to 4,000 label requests that wear 64 prompts wait, and a turn either lets in all of them, or none, because memory
lacks for each beside a part that writes. Seconds are the processor's, for the turn without its passes through the
model; per part they are to be the same however many wait. Rows: results/admission.jsonl.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sides import SMOLLM2
from train_speed import append

from softprompt.answering import Decoding, Projection, Start
from softprompt.answering.rows import surroundings
from softprompt.models import FrozenLM, load
from softprompt.prompts import Card, SoftPrompt
from softprompt.serving import Part, Request, Scheduler

WAITING = (250, 500, 1_000, 2_000, 4_000)
MOST = 1.5  # ours: times the seconds per part of the fewest that the most may take
NUM_PROMPTS = 64
PROMPT_LENGTH = 20
IDS = tuple(range(5, 45))
LABELS = ("yes", "no")
CANDIDATES = ((7, 8, 9, 1), (10, 11, 12, 1))


def prompts_for(lm: FrozenLM, count: int) -> list[SoftPrompt]:
    """Prompts of random numbers."""
    card = Card(
        model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=lm.is_encoder_decoder, width=lm.width
    )
    generator = torch.Generator().manual_seed(0)
    return [SoftPrompt(torch.randn(PROMPT_LENGTH, lm.width, generator=generator), card) for _ in range(count)]


def engine_with(lm: FrozenLM, prompts: Sequence[SoftPrompt], num_waiting: int, *, is_admitted: bool) -> Scheduler:
    """An engine that reads nothing and has so many label requests, all of which its next turn lets in, or none."""
    num_new = sum(map(len, CANDIDATES))
    row = Start(ids=IDS, prompt_length=PROMPT_LENGTH, max_tokens=num_new)
    held = sum(prompt.values.numel() * 4 for prompt in prompts)
    two_rows = Projection(lm.layout()).with_row(row).with_row(row).num_bytes + held
    engine = Scheduler(
        lm,
        max_memory=1 << 40 if is_admitted else two_rows,
        max_waiting=num_waiting + 1,
        max_prefill_tokens=1 << 40,
    )
    hashes = [engine.table.add(prompt) for prompt in prompts]
    if not is_admitted:
        writes = Part(ids=(*IDS, *IDS[:PROMPT_LENGTH]))
        engine.submit(Request(parts=(writes,), decoding=Decoding(max_tokens=num_new)))
        engine.step()
    for number in range(num_waiting):
        part = Part(ids=IDS, prompt=hashes[number % len(hashes)], candidates=CANDIDATES)
        engine.submit(Request(parts=(part,), labels=LABELS))
    return engine


def measure(lm: FrozenLM, num_waiting: int, *, is_admitted: bool, rounds: int) -> dict[str, Any]:
    """The row of so many waiting parts: the median over rounds."""
    prompts, samples = prompts_for(lm, NUM_PROMPTS), []
    for _ in range(rounds):
        engine = engine_with(lm, prompts, num_waiting, is_admitted=is_admitted)
        started = time.thread_time()
        engine._admit()
        samples.append(time.thread_time() - started)
        assert engine.stats().num_waiting == (0 if is_admitted else num_waiting)
    seconds = statistics.median(samples)
    return {
        "experiment": "admission",
        "model": lm.name,
        "is_admitted": is_admitted,
        "num_waiting": num_waiting,
        "seconds": round(seconds, 6),
        "samples": [round(sample, 6) for sample in samples],
        "microseconds_per_part": round(1e6 * seconds / num_waiting, 2),
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once each; no rows")
    parser.add_argument("--models", nargs="+", default=["bundled/t5-mini", SMOLLM2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path("results/admission.jsonl"))
    options = parser.parse_args(words)
    command = shlex.join(["python", "benchmarks/admission.py", *(sys.argv[1:] if words is None else words)])
    for model in options.models:
        lm = load(model, device="cpu", dtype="float32")
        where = {**surroundings(lm.device, lm.dtype), "command": command}
        for is_admitted in (True, False):
            rows = []
            for num_waiting in WAITING:
                row = measure(lm, num_waiting, is_admitted=is_admitted, rounds=1 if options.quick else options.rounds)
                rows.append(row | where)
                what = "let in" if is_admitted else "passed over"
                print(f"{lm.name:16} {num_waiting:5} {what:11} {1e3 * row['seconds']:8.2f} ms a turn, "
                      f"{row['microseconds_per_part']:6.2f} us a part")  # fmt: skip
            is_flat = rows[-1]["microseconds_per_part"] <= MOST * rows[0]["microseconds_per_part"]
            print(f"{'flat' if is_flat else 'NOT flat'} per part to {WAITING[-1]:,}")
            if not options.quick:
                append(options.results, rows)


if __name__ == "__main__":
    main()
