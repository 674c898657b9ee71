"""Requests a second with many prompts on one model: our engine beside PEFT, which switches adapters.

    SOFTPROMPT_DATA=... python benchmarks/serve_throughput.py --t5 DIR         # about 40 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/serve_throughput.py --t5 DIR --quick # a few minutes, to see that it runs

`--t5` is a folder with T5's `spiece.model`. Each side is a process of its own with the same prompt folders of 100
tokens, and answers the same requests (real inputs of four tasks, prompts drawn uniformly) greedily, in alternation:

    switching   PEFT as documented: `set_adapter`, then `generate`, request by request; float32 and bfloat16
    grouped     PEFT, the queue grouped by prompt, batches of up to 16; in bfloat16, and in float32 where that is faster

Ours runs in what `--dtype auto` takes, bfloat16 where the processor multiplies in it, with compiled blocks. Before the
first round each prompt has answered once on our side, so its keys and values are there. A ratio is the median over
rounds of the seconds of PEFT for a request by ours. PEFT answers padded batches of a decoder-only model otherwise than
its rows alone, and bfloat16 rounds otherwise than float32, so the share of equal answers stands beside each ratio.
Rows: results/serve_throughput.jsonl.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from serving_sides import (
    MAX_TOKENS,
    PROMPT_LENGTH,
    T5,
    Ask,
    Side,
    Worker,
    draw,
    frozen,
    make_prompts,
    parse,
    parser_of,
    pool_of,
    run_each,
)
from sides import SMOLLM2
from tqdm import tqdm

from softprompt.answering.rows import surroundings
from softprompt.models.loading import choose_dtype
from softprompt.models.text import default_format


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
OURS = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


class Timed(NamedTuple):
    """One round of one side."""

    seconds: float
    """A request."""
    answers: list[list[int]]


def rounds_of(
    ours: Worker, theirs: Worker, pool: list[tuple[int, ...]], num_prompts: int, options: Any
) -> tuple[list[tuple[Timed, Timed]], list[Ask]]:
    """Both sides on the same requests; the slower answers the first of them only."""
    pairs, asked = [], []
    for number in range(options.rounds):
        asks = draw(pool, num_prompts, options.requests, seed=number)
        share = asks if theirs.side.name == "grouped" else asks[: options.requests // options.switching_share]
        sides = [(ours, asks), (theirs, share)]
        timed = {}
        for worker, own in sides if number % 2 else sides[::-1]:
            seconds, answers = worker.answer(own)
            timed[worker.side.name] = Timed(seconds / len(own), answers)
        pairs.append((timed["ours"], timed[theirs.side.name]))
        asked += asks
    return pairs, asked


def row_of(model: str, rival: Rival, pairs: list[tuple[Timed, Timed]], asks: list[Ask], options: Any) -> dict[str, Any]:
    """What is committed."""
    ratios = [theirs.seconds / ours.seconds for ours, theirs in pairs]
    compared = [(a, b) for ours, theirs in pairs for a, b in zip(ours.answers, theirs.answers, strict=False)]
    answers = [ids for ours, _ in pairs for ids in ours.answers]
    return {
        "experiment": "serve_throughput",
        "model": model,
        "rival": rival.name,
        "rival_dtype": rival.dtype,
        "ours_compiled": True,
        "num_prompts": rival.num_prompts,
        "prompt_length": PROMPT_LENGTH,
        "mean_input_tokens": round(statistics.fmean(len(ask.ids) for ask in asks), 1),
        "mean_output_tokens": round(statistics.fmean(map(len, answers)), 2),
        "max_tokens": MAX_TOKENS,
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "wanted": rival.wanted.get(model),
        "ours_per_second": round(1 / statistics.median(ours.seconds for ours, _ in pairs), 2),
        "theirs_per_second": round(1 / statistics.median(theirs.seconds for _, theirs in pairs), 2),
        "equal_answers": round(sum(a == b for a, b in compared) / len(compared), 4),
        "command": "python " + shlex.join(sys.argv),
        **surroundings(torch.device("cpu"), getattr(torch, OURS)),
        "threads": options.threads,
    }


def run(model: str, source: str, folder: Path, options: Any) -> list[dict[str, Any]]:
    """All rivals of one model."""
    bare = Side(name="ours", model=model, source=source, prompts=(), max_tokens=MAX_TOKENS)
    lm = frozen(bare)
    prompts = make_prompts(lm, folder, max(rival.num_prompts for rival in RIVALS), PROMPT_LENGTH)
    pool = pool_of(options.data, default_format(lm, max_input_length=256), lm.tokenizer)
    del lm
    rows = []
    for rival in tqdm(options.rivals, desc=model, unit="rival"):
        own = prompts[: rival.num_prompts]
        sides = [
            Side(name=name, model=model, source=source, prompts=own, max_tokens=MAX_TOKENS, dtype=dtype)
            for name, dtype in (("ours", OURS), (rival.name, rival.dtype))
        ]
        ours, theirs = (Worker(side, options.threads) for side in sides)
        theirs.answer(draw(pool, rival.num_prompts, 8, seed=-1))
        ours.answer([Ask(prompt, pool[0]) for prompt in range(rival.num_prompts)])
        ours.answer(draw(pool, rival.num_prompts, options.requests, seed=-1))  # compiles for their lengths
        rows.append(row_of(model, rival, *rounds_of(ours, theirs, pool, rival.num_prompts, options), options))
        for worker in (ours, theirs):
            worker.stop()
        tqdm.write(line_of(rows[-1]))
    return rows


def line_of(row: dict[str, Any]) -> str:
    """A row for reading."""
    who = f"{row['model']:13} {row['rival']:9} {row['rival_dtype']:8} {row['num_prompts']:3} prompts"
    wanted = f"wanted {row['wanted']}" if row["wanted"] else ""
    return (
        f"{who}: {row['ratio']:6.2f}x "
        f"({row['ours_per_second']} against {row['theirs_per_second']} a second; {row['mean_input_tokens']} tokens in, "
        f"{row['mean_output_tokens']} out; {row['equal_answers']:.1%} equal) {wanted}"
    )


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's flags."""
    parser = parser_of(__doc__, "results/serve_throughput.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=128, help="of a round")
    parser.add_argument("--switching-share", type=int, default=4, help="PEFT, request by request, gets 1 of so many")
    parser.set_defaults(rivals=RIVALS if OURS == "float32" else [rival for rival in RIVALS if rival.wanted])
    return parse(parser, words, rounds=2, requests=32, rivals=(RIVALS[0], RIVALS[-1]))


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    run_each(options_of(words), run)


if __name__ == "__main__":
    main()
