"""What it costs that rows of a batch wear different prompts, and what an ensemble of five costs.

    SOFTPROMPT_DATA=... python benchmarks/serve_mixed.py --t5 DIR            # about 25 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/serve_mixed.py --t5 DIR --quick    # a few minutes, to see that it runs

Everything runs in this process on one engine, in alternation, with real inputs of four tasks and prompts of 100:

    prompts     256 requests in flight with 256 different prompts, beside 256 that wear one: share of its throughput
    generate    requests of an ensemble of five prompts beside the same inputs with one prompt: times its seconds
    score       the same for the log-probabilities of two labels

The votes of the ensemble are compared with those of its members asked one by one. Rows: results/serve_mixed.jsonl.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from serving_sides import (
    MAX_TOKENS,
    PROMPT_LENGTH,
    Ask,
    Side,
    draw,
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
from softprompt.models.text import TextFormat, default_format, encode_target
from softprompt.serving import Answer, Part, Request, Scheduler

NUM_MEMBERS = 5
LABELS = ("negative", "positive")
WANTED = {"prompts": 0.9, "generate": 5.2, "score": 5.2}


class Bench:
    """One engine, its prompts, and inputs."""

    def __init__(self, model: str, source: str, folder: Path, options: Any):
        keep_freed_memory()
        self.lm = frozen(Side(name="ours", model=model, source=source, prompts=(), max_tokens=MAX_TOKENS))
        self.engine = Scheduler(self.lm, max_waiting=4_096, max_rows=256)
        folders = make_prompts(self.lm, folder, options.in_flight, PROMPT_LENGTH)
        self.hashes = [self.engine.table.add(path) for path in folders]
        self.form: TextFormat = default_format(self.lm, max_input_length=256)
        self.pool = pool_of(options.data, self.form, self.lm.tokenizer)
        self.candidates = tuple(tuple(encode_target(text, self.form, self.lm.tokenizer)) for text in LABELS)

    def request(self, ids: tuple[int, ...], prompts: Sequence[int], scores: bool = False) -> Request:
        """An ensemble of these prompts, or one of them."""
        given: dict[str, Any] = {"candidates": self.candidates} if scores else {}
        parts = tuple(Part(ids=ids, prompt=self.hashes[prompt], **given) for prompt in prompts)
        return Request(parts=parts, decoding=Decoding(max_tokens=MAX_TOKENS), labels=LABELS if scores else ())

    def answer(self, requests: Sequence[Request]) -> tuple[float, list[Answer]]:
        """Seconds until all are answered, and the answers."""
        started = time.perf_counter()
        tickets = [self.engine.submit(request) for request in requests]
        while self.engine.step():
            pass
        return time.perf_counter() - started, [ticket.result() for ticket in tickets]


def mixed(bench: Bench, asks: Sequence[Ask], number: int) -> tuple[float, float, bool]:
    """Seconds with one prompt and with as many as requests; nothing to compare."""
    kinds = [[0] * len(asks), list(range(len(asks)))]
    seconds = [0.0, 0.0]
    for kind in (0, 1) if number % 2 else (1, 0):
        requests = [bench.request(ask.ids, [prompt]) for ask, prompt in zip(asks, kinds[kind], strict=True)]
        seconds[kind], _ = bench.answer(requests)
    return seconds[0], seconds[1], True


def ensemble(bench: Bench, asks: Sequence[Ask], number: int, *, scores: bool) -> tuple[float, float, bool]:
    """Seconds with one prompt and with five, and whether every member answered as it does alone."""
    five = range(NUM_MEMBERS)
    one = [bench.request(ask.ids, [0], scores) for ask in asks]
    together = [bench.request(ask.ids, five, scores) for ask in asks]
    answers: dict[int, tuple[float, list[Answer]]] = {}
    for kind in (1, 5) if number % 2 else (5, 1):
        answers[kind] = bench.answer(one if kind == 1 else together)
    equal = True
    for member in five:
        _, alone = bench.answer([bench.request(ask.ids, [member], scores) for ask in asks])
        pairs = zip(alone, answers[5][1], strict=True)
        equal &= all(a.parts[0].text == b.parts[member].text for a, b in pairs)
    return answers[1][0], answers[5][0], equal


def measures() -> dict[str, Callable[[Bench, Sequence[Ask], int], tuple[float, float, bool]]]:
    """Each thing measured, by name."""
    return {
        "prompts": mixed,
        "generate": lambda bench, asks, number: ensemble(bench, asks, number, scores=False),
        "score": lambda bench, asks, number: ensemble(bench, asks, number, scores=True),
    }


def run(model: str, source: str, folder: Path, options: Any) -> list[dict[str, Any]]:
    """Every measure of one model."""
    bench = Bench(model, source, folder, options)
    # Each prompt answers once, so that a decoder-only model's keys and values of it are there.
    bench.answer([bench.request(bench.pool[0], [prompt]) for prompt in range(options.in_flight)])
    rows = []
    for name, measure in measures().items():
        count = options.in_flight if name == "prompts" else options.inputs
        timed = []
        for number in tqdm(range(options.rounds), desc=f"{model} {name}", unit="round"):
            timed.append(measure(bench, draw(bench.pool, 1, count, seed=number), number))
        rows.append(row_of(model, name, count, timed, bench))
        tqdm.write(line_of(rows[-1]))
    return rows


def row_of(
    model: str, name: str, count: int, timed: Sequence[tuple[float, float, bool]], bench: Bench
) -> dict[str, Any]:
    """What is committed."""
    ratios = [one / many if name == "prompts" else many / one for one, many, _ in timed]
    return {
        "experiment": "serve_mixed",
        "model": model,
        "measure": name,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "wanted": WANTED[name],
        "equal": all(equal for *_, equal in timed),
        "inputs": count,
        "prompt_length": PROMPT_LENGTH,
        "max_tokens": MAX_TOKENS,
        "mean_input_tokens": round(statistics.fmean(map(len, bench.pool)), 1),
        "one_prompt_per_second": round(statistics.median(count / one for one, *_ in timed), 2),
        "command": "python " + shlex.join(sys.argv),
        **surroundings(torch.device("cpu"), torch.float32),
    }


def line_of(row: dict[str, Any]) -> str:
    """A row for reading."""
    text = {
        "prompts": f"{row['inputs']} prompts have {row['ratio']:.2f} of one's throughput",
        "generate": f"an ensemble of five costs {row['ratio']:.2f}x one",
        "score": f"an ensemble of five costs {row['ratio']:.2f}x one, scoring labels",
    }[row["measure"]]
    same = "" if row["equal"] else "; ANSWERS DIFFER"
    return f"{row['model']}: {text} (wanted {row['wanted']}; {row['one_prompt_per_second']} a second with one){same}"


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's flags."""
    parser = parser_of(__doc__, "results/serve_mixed.jsonl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=256, help="requests and prompts at once")
    parser.add_argument("--inputs", type=int, default=64, help="of a round of the ensemble")
    return parse(parser, words, rounds=2, in_flight=32, inputs=8)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    run_each(options_of(words), run)


if __name__ == "__main__":
    main()
