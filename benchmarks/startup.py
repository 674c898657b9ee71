"""How long the command line takes to start: `softprompt --help`, and one line answered by a prompt.

    python benchmarks/startup.py            # under a minute
    python benchmarks/startup.py --quick    # once each, no rows: does it run?

Each command is a process of its own, timed from outside until it has ended, and run once before that is not counted, so
that files are in memory and SmolLM2 (or --model) is dequantised. The prompt is of random vocabulary: its numbers do not
change the time. Rows: results/startup.jsonl.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sides import SMOLLM2
from train_speed import append

from softprompt.answering.rows import surroundings
from softprompt.models.loading import load
from softprompt.models.text import default_format
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.prompts.initial import from_vocabulary

ROOT = Path(__file__).parent.parent
NEEDED = {"help": 0.5, "predict": 5.0}  # seconds: the project's own bars for a person who waits
LENGTH = 20
LINE = "sentence: a warm and funny film\n"


def timed(words: Sequence[str], line: str = "") -> float:
    """Seconds of one run of the command line of this folder. RuntimeError, with its last line, if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "softprompt", *words],
        input=line,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"softprompt {shlex.join(words)} failed: {done.stderr.strip().splitlines()[-1]}")
    return seconds


def measure(name: str, words: Sequence[str], line: str, count: int) -> dict[str, Any]:
    """The row of a command: its median over `count` runs, after one that is not counted."""
    timed(words, line)
    samples = [timed(words, line) for _ in range(count)]
    median = statistics.median(samples)
    return {
        "experiment": "startup",
        "measure": name,
        "seconds": round(median, 3),
        "samples": [round(seconds, 3) for seconds in samples],
        "needed": NEEDED[name],
        "reached": median <= NEEDED[name],
    }


def write_prompt(model: str, folder: Path) -> dict[str, Any]:
    """A prompt of random vocabulary for the model, and what its rows say of where it runs."""
    lm = load(model)
    values, _ = from_vocabulary(lm.embeddings, lm.tokenizer, LENGTH, generator=torch.Generator().manual_seed(0))
    card = Card(
        model_name=lm.name,
        model_fingerprint=lm.fingerprint,
        is_encoder_decoder=lm.is_encoder_decoder,
        width=lm.width,
        task="glue/sst2",
        labels=("negative", "positive"),
        text=default_format(lm, max_target_length=8).to_json(),
    )
    save_prompt(SoftPrompt(values, card), folder)
    return {"model": lm.name, "prompt_length": LENGTH, **surroundings(lm.device, lm.dtype)}


def main(words: Sequence[str] | None = None) -> None:
    """Run, print, and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="once each; no rows")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--count", type=int, default=5, help="runs of each command")
    parser.add_argument("--results", type=Path, default=Path("results/startup.jsonl"))
    options = parser.parse_args(words)
    command = shlex.join(["python", "benchmarks/startup.py", *(sys.argv[1:] if words is None else words)])
    with tempfile.TemporaryDirectory() as folder:
        where = write_prompt(options.model, Path(folder) / "prompt")
        commands = {"help": (["--help"], ""), "predict": (["predict", "--prompt", f"{folder}/prompt"], LINE)}
        for name, (flags, line) in commands.items():
            row = measure(name, flags, line, 1 if options.quick else options.count) | where | {"command": command}
            print(f"{name:8} {row['seconds']:6.2f} s, wanted {row['needed']:g}{'' if row['reached'] else '  NO'}")
            if not options.quick:
                append(options.results, [row])


if __name__ == "__main__":
    main()
