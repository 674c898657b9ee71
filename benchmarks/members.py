"""Prompts trained together beside as many trainings one after another: time and peak memory.

    SOFTPROMPT_DATA=... python benchmarks/members.py            # about 8 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/members.py --quick    # about a minute, to see that it runs
    SOFTPROMPT_DATA=... python benchmarks/members.py --members 36 --batch-sizes 8 --prompt-lengths 20  # an ablation

SmolLM2-135M (or --model) on SST-2: a step of five members with 4, 8 and 32 rows each, 20 and 100 prompt tokens,
against a step of each member alone, alternating. 36 members are an ablation of twelve settings and three seeds. Both
run in this process, on one model. Rows: results/members.jsonl.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sides import CPU, SMOLLM2
from torch import Tensor
from train_speed import append

from softprompt.answering.engine import MAX_TOKENS
from softprompt.answering.rows import model_of_row, surroundings
from softprompt.base.memory import peak_bytes, reset_peak
from softprompt.models import FrozenLM
from softprompt.models.loading import keep_freed_memory, load
from softprompt.models.text import Row, default_format, encode_examples
from softprompt.tasks import get_task, read_examples
from softprompt.training.methods import gradients
from softprompt.training.optimizers import AdamW

TOLERANCE = 1e-3  # ours: of the largest gradient; the two ways add in another order


class Members:
    """Prompts, their optimizer states, and a step of all of them in either way."""

    def __init__(self, lm: FrozenLM, count: int, prompt_length: int, max_tokens: int):
        self.lm, self.max_tokens = lm, max_tokens
        table = lm.embeddings.float()
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randperm(5_000, generator=generator)[:prompt_length] for _ in range(count)]
        self.prompts = [table[ids].clone() for ids in drawn]
        self.optimizer = AdamW(learning_rate=1e-3)
        self.states = [self.optimizer.init(prompt) for prompt in self.prompts]

    def together(self, rows: Sequence[Sequence[Row]]) -> list[Tensor]:
        """One step of all members in one batch; the gradients."""
        flat = [row for own in rows for row in own]
        member = [i for i, own in enumerate(rows) for _ in own]
        found, _, _ = gradients(self.lm, self.prompts, flat, member, max_tokens=self.max_tokens)
        self._update(found)
        return found

    def in_turn(self, rows: Sequence[Sequence[Row]]) -> list[Tensor]:
        """One step of each member alone; the gradients."""
        found = []
        for prompt, own in zip(self.prompts, rows, strict=True):
            found += gradients(self.lm, [prompt], own, [0] * len(own), max_tokens=self.max_tokens)[0]
        self._update(found)
        return found

    def _update(self, found: Sequence[Tensor]) -> None:
        for prompt, gradient, state in zip(self.prompts, found, self.states, strict=True):
            self.optimizer.update(prompt, gradient, state)


def draw(pool: Sequence[Row], count: int, batch_size: int, seed: int) -> list[list[Row]]:
    """Each member's own rows of one step."""
    chooser = random.Random(seed)
    return [chooser.sample(pool, batch_size) for _ in range(count)]


def seconds_of(step: Callable[[Sequence[Sequence[Row]]], Any], rows: Sequence[Sequence[Row]]) -> float:
    """Seconds of one step."""
    started = time.perf_counter()
    step(rows)
    return time.perf_counter() - started


def peak_of(step: Callable[[Sequence[Sequence[Row]]], Any], rows: Sequence[Sequence[Row]]) -> float:
    """Peak memory of one step in MB, the model's included."""
    reset_peak(CPU)
    step(rows)
    return peak_bytes(CPU) / 2**20


def check_equal(lm: FrozenLM, prompt_length: int, max_tokens: int, rows: Sequence[Sequence[Row]]) -> None:
    """AssertionError unless both ways give each member the same gradient."""
    once, again = (Members(lm, len(rows), prompt_length, max_tokens) for _ in range(2))
    for together, alone in zip(once.together(rows), again.in_turn(rows), strict=True):
        apart = float((together - alone).abs().max() / alone.abs().max())
        assert lm.dtype != torch.float32 or apart < TOLERANCE, f"gradients are {apart} apart"


def compare(
    lm: FrozenLM, pool: Sequence[Row], prompt_length: int, batch_size: int, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: the two ways in alternation."""
    check_equal(lm, prompt_length, options.max_tokens, draw(pool, options.members, 2, 0))
    members = Members(lm, options.members, prompt_length, options.max_tokens)
    together, in_turn = [], []
    for number in range(options.alternations):
        rows = draw(pool, options.members, batch_size, number + 1)
        together.append(seconds_of(members.together, rows))
        in_turn.append(seconds_of(members.in_turn, rows))
    rows = draw(pool, options.members, batch_size, 1)
    ratios = [alone / joint for alone, joint in zip(in_turn, together, strict=True)]
    return {
        "experiment": "members",
        "model": model_of_row(lm.name),
        "task": "glue/sst2",
        "members": options.members,
        "batch_size": batch_size,
        "prompt_length": prompt_length,
        "dropout": 0.0,
        "max_tokens": options.max_tokens,
        "compiled": options.compile,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "together_s": [round(s, 4) for s in together],
        "one_after_another_s": [round(s, 4) for s in in_turn],
        "together_peak_mb": round(peak_of(members.together, rows)),
        "one_after_another_peak_mb": round(peak_of(members.in_turn, rows)),
        **surroundings(lm.device, lm.dtype),
    }


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batch 4, 20 prompt tokens, two rounds; no rows")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4, 8, 32])
    parser.add_argument("--prompt-lengths", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS["cpu"], help="tokens of a micro-batch")
    parser.add_argument("--compile", action="store_true", help="compile the model's blocks")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=Path, default=Path("results/members.jsonl"))
    options = parser.parse_args(words)
    if options.quick:
        options.batch_sizes, options.prompt_lengths, options.alternations = [4], [20], 2
    return options


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and append rows."""
    options = parse(words)
    torch.set_num_threads(options.threads)
    command = shlex.join(["python", "benchmarks/members.py", *(sys.argv[1:] if words is None else words)])
    keep_freed_memory()
    lm = load(options.model)
    if options.compile:
        lm.compile()
    examples = read_examples(get_task("glue/sst2"), "train", Path(os.environ["SOFTPROMPT_DATA"]))
    drawn = random.Random(0).sample(examples, 1_000)
    pool = encode_examples(drawn, default_format(lm), lm.tokenizer)
    print(f"{'prompt':>6} {'batch':>5} {'in turn s':>9} {'together s':>10} {'ratio':>6} {'MB in turn/together':>20}")
    for prompt_length in options.prompt_lengths:
        for batch_size in options.batch_sizes:
            row = compare(lm, pool, prompt_length, batch_size, options) | {"command": command}
            alone, joint = (statistics.median(row[f"{way}_s"]) for way in ("one_after_another", "together"))
            memory = f"{row['one_after_another_peak_mb']:,}/{row['together_peak_mb']:,}"
            print(
                f"{prompt_length:6} {batch_size:5} {alone:9.2f} {joint:10.2f} {row['ratio']:6.2f} {memory:>20}",
                flush=True,
            )
            if not options.quick:
                append(options.results, [row])


if __name__ == "__main__":
    main()
