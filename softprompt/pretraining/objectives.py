"""Pre-training objectives: ids of plain text in, ids of inputs and targets out. NumPy only, no model.

Span corruption, and LM adaptation as a prefix LM (Raffel et al. 2020; paper, section 3.2). Shapes: n ids of plain
text, b rows, t input tokens, l target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from softprompt.pretraining.settings import MEAN_SPAN_LENGTH, NOISE_DENSITY

NUM_SENTINELS = 100  # paper's T5 1.1: extra_ids of its vocabulary


class Corrupted(NamedTuple):
    """One text as inputs and targets, both without an end of sequence."""

    inputs: list[int]
    targets: list[int]


class SpanLengths(NamedTuple):
    """How much text span corruption takes, and what it makes of it."""

    text: int
    """Tokens of plain text."""
    inputs: int
    """Tokens of the inputs, the end of sequence included."""
    targets: int
    """Tokens of the targets, the end of sequence included."""
    noise: int
    """Tokens of the text that are masked."""
    spans: int
    """Masked spans, each with a sentinel of its own."""


def span_lengths(
    inputs_length: int, *, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> SpanLengths:
    """The longest text whose corrupted inputs, with their end, fit `inputs_length`: 512 gives targets of 114.

    Raises ValueError for settings that leave nothing to mask or to keep, or need more than the 100 sentinels.
    """
    if not 0 < noise_density < 1 or mean_span_length < 1:
        raise ValueError(
            f"noise density {noise_density} and mean span {mean_span_length}: wanted a density between 0 and 1 and "
            "spans of 1 token or more"
        )
    found = None
    for text in range(2, 4 * inputs_length):
        noise = min(max(round(text * noise_density), 1), text - 1)
        spans = max(round(noise / mean_span_length), 1)
        lengths = SpanLengths(text, text - noise + spans + 1, noise + spans + 1, noise, spans)
        if lengths.inputs > inputs_length:
            break
        found = lengths
    if found is None or found.text - found.noise < found.spans:
        raise ValueError(f"inputs of {inputs_length} tokens are too short for spans; give more")
    if found.spans > NUM_SENTINELS:
        raise ValueError(
            f"inputs of {inputs_length} tokens need {found.spans} sentinels, but there are {NUM_SENTINELS}; "
            "give fewer tokens or longer spans"
        )
    return found


def noise_mask(lengths: SpanLengths, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """Which tokens to mask: `spans` spans of `noise` tokens in all, kept text in front of each, at random."""
    kept = _parts(lengths.text - lengths.noise, lengths.spans, rng)
    masked = _parts(lengths.noise, lengths.spans, rng)
    runs = np.stack([kept, masked], 1).reshape(-1)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs)


def _parts(total: int, count: int, rng: np.random.Generator) -> Int[np.ndarray, " count"]:
    """`total` cut at random into `count` parts of at least one; every way is equally likely."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(cuts, prepend=0, append=total)


def corrupt_spans(
    ids: Sequence[int] | Int[np.ndarray, " n"], mask: Sequence[bool] | Bool[np.ndarray, " n"], first_sentinel: int
) -> Corrupted:
    """Each masked span becomes one sentinel of the inputs, and follows that sentinel in the targets.

    Sentinels count down from `first_sentinel` (T5's <extra_id_0> is the last id of its vocabulary). A final sentinel
    ends the targets where text follows the last span, as in the paper's example ("<Z>").
    """
    inputs, targets = [], []
    sentinel = first_sentinel + 1
    in_span = False
    for id, is_noise in zip(np.asarray(ids).tolist(), np.asarray(mask).tolist(), strict=True):
        if is_noise and not in_span:
            sentinel -= 1
            inputs.append(sentinel)
            targets.append(sentinel)
        (targets if is_noise else inputs).append(id)
        in_span = is_noise
    if targets and not in_span:
        targets.append(sentinel - 1)
    return Corrupted(inputs, targets)


def span_corruption(
    texts: Int[np.ndarray, "b n"], lengths: SpanLengths, first_sentinel: int, eos_id: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, "b l"]]:
    """Inputs and targets of each text, with their end of sequence; every row has the same two lengths."""
    pairs = [corrupt_spans(text, noise_mask(lengths, rng), first_sentinel) for text in texts]
    return _with_end([pair.inputs for pair in pairs], eos_id), _with_end([pair.targets for pair in pairs], eos_id)


def prefix_lm(
    texts: Int[np.ndarray, "b n"], split: int, eos_id: int
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, "b l"]]:
    """The first `split` ids of each text as inputs and the rest as targets, each with an end of sequence.

    T5's prefix LM (c4_v220_prefix_lm) draws the split anew for every text; `draw_split` gives one, and texts that are
    computed together share it, so that none is padded.
    """
    return _with_end(texts[:, :split].tolist(), eos_id), _with_end(texts[:, split:].tolist(), eos_id)


def draw_split(length: int, rng: np.random.Generator, shortest: int = 1) -> int:
    """Where to cut a text of `length` tokens: uniform from the `shortest` inputs wanted to length - 1.

    T5's random_prefix_noise_mask, whose shortest is 1.
    """
    return int(rng.integers(shortest, length))


def _with_end(rows: Sequence[Sequence[int]], eos_id: int) -> Int[np.ndarray, "b t"]:
    return np.array([[*row, eos_id] for row in rows], dtype=np.int64)
