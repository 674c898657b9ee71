"""How well a model continues held-out text, beside a 5-gram model of the same training text.

    python benchmarks/continuation.py --corpus DIR --heldout DIR --models runs/family/mini/lm runs/family/mini/span

Every held-out text of 256 tokens is cut in the middle. The T5 reads the first half and is scored on the second, token
by token; the 5-gram model (interpolated modified Kneser-Ney, as KenLM estimates it) scores the same tokens after the
same text. Loss is in nats a token, without the end of sequence; perplexity is its exponential.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ngrams import NGrams
from tqdm import tqdm

from softprompt.answering.rows import surroundings
from softprompt.models.loading import load
from softprompt.models.states import Embedded
from softprompt.pretraining.corpus import TokenStream, corpus_files, tokenized
from softprompt.study.rows import short_name

LENGTH = 256
ORDER = 5
ROWS_AT_ONCE = 8


def texts_of(stream: TokenStream, count: int) -> np.ndarray:
    """At most `count` texts, spread evenly over the held-out files: int64 [b, 256]."""
    count = min(count, len(stream.ids) // LENGTH)
    step = len(stream.ids) // count
    return np.stack([stream.ids[i * step : i * step + LENGTH].astype(np.int64) for i in range(count)])


@torch.no_grad()
def losses_of_model(folder: str, texts: np.ndarray) -> tuple[Any, np.ndarray]:
    """The model, and its loss of every token of the second halves: [b, 128]."""
    lm = load(folder, dtype="float32")
    half = LENGTH // 2
    losses = []
    for first in tqdm(range(0, len(texts), ROWS_AT_ONCE), desc=folder, unit="batch"):
        rows = torch.from_numpy(texts[first : first + ROWS_AT_ONCE])
        end = torch.full_like(rows[:, :1], lm.tokenizer.eos_id)
        inputs = torch.cat([rows[:, :half], end], 1)
        targets = rows[:, half:]
        entering = Embedded(lm.embed(inputs), torch.ones_like(inputs, dtype=torch.bool))
        nll = lm.loss(entering, targets, torch.ones_like(targets).bool())
        losses.append(nll.numpy())
    return lm, np.concatenate(losses)


def losses_of_ngrams(model: NGrams, texts: np.ndarray) -> np.ndarray:
    """The n-gram model's loss of the same tokens."""
    return np.stack([-model.log_probs(text)[LENGTH // 2 :] for text in texts])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--heldout", nargs="+", required=True)
    parser.add_argument("--models", nargs="+", required=True, help="folders of models of one vocabulary")
    parser.add_argument("--num-texts", type=int, default=512)
    parser.add_argument("--rows", type=Path, default=Path("results/continuation.jsonl"))
    options = parser.parse_args()
    tokenizer = load(options.models[0], dtype="float32").tokenizer
    corpus, heldout = (tokenized(corpus_files(places), tokenizer) for places in (options.corpus, options.heldout))
    texts = texts_of(heldout, options.num_texts)
    print(f"estimating {ORDER}-grams of {len(corpus.ids) / 1e6:,.1f} million tokens", file=sys.stderr)
    found = {f"{ORDER}-gram": losses_of_ngrams(NGrams(corpus.ids, tokenizer.size, ORDER), texts)}
    for folder in options.models:
        found[folder] = losses_of_model(folder, texts)[1]
    print("| model | nats a token | perplexity | of them the first 16 tokens | the last 16 |\n|---|--:|--:|--:|--:|")
    for name, losses in found.items():
        mean = float(losses.mean())
        row = {
            "experiment": "continuation",
            "model": short_name(name),
            "vocabulary": tokenizer.size,
            "nats_per_token": mean,
            "perplexity": math.exp(mean),
            "first_16": float(losses[:, :16].mean()),
            "last_16": float(losses[:, -16:].mean()),
            "num_tokens": losses.size,
            "training_tokens": len(corpus.ids),
            "command": "python benchmarks/continuation.py --corpus DIR --heldout DIR --models "
            + " ".join(map(short, options.models)),
            **surroundings(torch.device("cpu"), torch.float32),
        }
        with options.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"| {name} | {mean:.3f} | {row['perplexity']:.1f} | {row['first_16']:.3f} | {row['last_16']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
