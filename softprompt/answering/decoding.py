"""How the tokens of an answer are chosen, and how they become text while they come.

Shapes: b rows, n beams, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.base.devices import sent
from softprompt.models import Tokenizer

MAX_BEAMS = 32  # ours: each beam is a row of the running batch
MAX_STOPS = 16  # ours: every new piece of text is searched for each
NUCLEUS = 256  # ours: tokens sorted at first to find a nucleus; all are sorted where it is larger
_HALF_A_CHARACTER = "\ufffd"  # what a tokenizer decodes the first bytes of a character to


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is chosen: greedy unless told otherwise. ValueError for settings that make no sense."""

    max_tokens: int = 64
    """New tokens at most, the end of sequence included; 0 reads the input and writes nothing."""
    temperature: float = 0.0
    """0 is greedy; otherwise logits are divided by it and a token is drawn."""
    top_p: float = 1.0
    """Drawn from the fewest, most probable tokens that together have this much."""
    seed: int | None = None
    """Of the draws; None: a new one each time (the answer names it)."""
    num_beams: int = 1
    """Beams; their text comes at the end, in one piece. Not with a temperature."""
    length_penalty: float = 1.0
    """Beams are compared by log p / length ** length_penalty, as transformers has it."""
    stop: tuple[str, ...] = ()
    """Strings at which an answer ends; they are not part of it."""

    def __post_init__(self) -> None:
        _check(self.max_tokens >= 0, "max_tokens", self.max_tokens, "0 or more")
        _check(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.seed is None or 0 <= self.seed < 2**64, "seed", self.seed, "from 0 to 2**64 - 1")
        _check(1 <= self.num_beams <= MAX_BEAMS, "num_beams", self.num_beams, f"from 1 to {MAX_BEAMS}")
        _check(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "a number")
        _check(len(self.stop) <= MAX_STOPS, "stop", f"{len(self.stop)} strings", f"at most {MAX_STOPS}")
        _check(all(self.stop), "stop", "an empty string", "text")
        if self.num_beams > 1 and self.temperature > 0:
            raise ValueError(f"num_beams {self.num_beams} with temperature {self.temperature}; give one of the two")

    @property
    def is_sampled(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0


def _check(is_right: bool, name: str, value: object, wanted: str) -> None:
    if not is_right:
        raise ValueError(f"{name} is {value}, but must be {wanted}")


class Draw(NamedTuple):
    """What decides a row's next token besides its logits."""

    temperature: float
    top_p: float
    uniform: float
    """From its own generator, 0 up to 1."""


def uniforms(seed: int, part: int, count: int) -> list[float]:
    """The numbers that a part's tokens are drawn with, one a token."""
    return np.random.default_rng([seed, part]).random(count).tolist()


def choose(logits: Float[Tensor, "b v"], draws: Sequence[Draw | None]) -> tuple[Int[Tensor, " b"], Float[Tensor, " b"]]:
    """Every row's next token, the most probable where there is no draw, and its log p (at temperature 1)."""
    tokens = logits.argmax(-1)
    drawn = [row for row, draw in enumerate(draws) if draw is not None]
    if drawn:
        taken = [draw for draw in draws if draw is not None]
        rows = sent(drawn, logits.device)
        tokens[rows] = sample(logits[rows], *(list(column) for column in zip(*taken, strict=True)))
    return tokens, -nn.functional.cross_entropy(logits, tokens, reduction="none")


def alternatives(logits: Float[Tensor, "b v"], tokens: Sequence[int], count: int) -> list[dict[int, float]]:
    """log p of each row's `count` most probable tokens, the first in front, and of its own token."""
    log_probs = logits.log_softmax(-1)
    top, ids = log_probs.topk(min(count, logits.shape[1]))
    own = log_probs.gather(-1, sent(tokens, logits.device)[:, None])[:, 0]
    told = []
    for token, log_prob, row_ids, row in zip(tokens, own.tolist(), ids.tolist(), top.tolist(), strict=True):
        told.append(dict(zip(row_ids, row, strict=True)) | {token: log_prob})
    return told


def sample(
    logits: Float[Tensor, "b v"], temperature: list[float], top_p: list[float], uniform: list[float]
) -> Int[Tensor, " b"]:
    """Each row's token where its own cumulative probability passes its uniform number."""
    exact = _float64(logits)
    columns = torch.tensor([temperature, top_p, uniform], dtype=torch.float64)[:, :, None]
    divisor, mass, point = sent(columns, exact.device)
    highest = exact.amax(-1, keepdim=True)  # taken off before dividing, which else ends beyond float64
    probabilities = ((exact - highest) / divisor).softmax(-1)
    if min(top_p) == 1.0:
        return _at(probabilities, point).to(logits.device)
    for width in (min(NUCLEUS, logits.shape[1]), logits.shape[1]):
        sorted_, ids = probabilities.topk(width)
        if bool(((sorted_.sum(-1, keepdim=True) >= mass) | (mass == 1.0)).all()):
            break
    outside = sorted_.cumsum(-1) - sorted_ >= mass
    in_order = ids.gather(-1, _at(sorted_.masked_fill(outside, 0.0), point)[:, None])[:, 0]
    return torch.where(mass[:, 0] == 1.0, _at(probabilities, point), in_order).to(logits.device)


def _float64(values: Tensor) -> Tensor:
    """The values in float64, on the processor where the device has none, as Apple's GPUs."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def _at(probabilities: Tensor, point: Tensor) -> Tensor:
    """Where the running sum passes the point's share of the whole; never where the probability is 0."""
    running = probabilities.cumsum(-1)
    passed = torch.searchsorted(running, point * running[:, -1:], right=True)[:, 0]
    last = probabilities.shape[1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum(passed, last)


class Hypothesis(NamedTuple):
    """A way to write the answer."""

    score: float
    ids: list[int]
    log_probs: list[float]


class Beams:
    """Beam search as transformers has it (generation/utils.py, _beam_search, early_stopping=False).

    Of the 2n best continuations (n more for each end of sequence after the first), those that end go to a pool of the
    n best by log p / length ** length_penalty, if they are among the first n; the n best others live on. The search is
    over when none lives, or when the pool is full and the best living one, at its present length, is no better than the
    worst of the pool.
    """

    def __init__(self, decoding: Decoding, end_ids: Collection[int]):
        self.size = decoding.num_beams
        self.tokens: list[int] = []
        """The last token of each living beam."""
        self._decoding = decoding
        self._end_ids = end_ids
        self._living = [Hypothesis(0.0, [], [])]
        self._pool: list[Hypothesis] = []

    def advance(self, log_probs: Float[Tensor, "n v"]) -> list[int]:
        """Go on by one token; which beam each living one came from. Empty: the search is over.

        log_probs: of the next token after each living beam (at first there is one, of no token).
        """
        exact = _float64(log_probs)
        before = sent(torch.tensor([beam.score for beam in self._living], dtype=torch.float64), exact.device)
        totals = (exact + before[:, None]).flatten()
        best, places = totals.topk(min((1 + len(self._end_ids)) * self.size, len(totals)))
        gained = exact.flatten()[places]
        length = self.length + 1
        living, parents = [], []
        ranked = zip(best.tolist(), places.tolist(), gained.tolist(), strict=True)
        for rank, (total, place, log_prob) in enumerate(ranked):
            parent, token = divmod(place, log_probs.shape[1])
            came = self._living[parent]
            beam = Hypothesis(total, [*came.ids, token], [*came.log_probs, log_prob])
            if token in self._end_ids or length == self._decoding.max_tokens:
                if rank < self.size:
                    self._pool.append(beam._replace(score=self._penalised(total, length)))
            elif len(living) < self.size:
                living.append(beam)
                parents.append(parent)
        self._pool = sorted(self._pool, key=lambda beam: -beam.score)[: self.size]
        is_full = len(self._pool) == self.size
        if not living or (is_full and self._penalised(living[0].score, length) <= self._pool[-1].score):
            return []
        self._living, self.tokens = living, [beam.ids[-1] for beam in living]
        return parents

    @property
    def length(self) -> int:
        """Tokens of each living beam."""
        return len(self._living[0].ids)

    @property
    def best(self) -> Hypothesis:
        """The best answer when the search is over; its ids with the end of sequence, where it came to that."""
        return self._pool[0]

    def _penalised(self, total: float, length: int) -> float:
        return total / length**self._decoding.length_penalty


class TextStream:
    """Tokens in, text out as soon as it is final.

    Not final: the first bytes of a character, and what may be the beginning of a stop string. The pieces joined are
    the text of all tokens, up to the first stop string. (But where bytes come that are no text, tokenizers with
    single-byte tokens give up the characters in front of them too; here what was said stays said.)
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._first, self._read = 0, 0  # the tokens between are decoded again, as what spaces the next ones need
        self._held = ""

    def push(self, id: int) -> str:
        """The text that this token makes final."""
        self._ids.append(id)
        before, now = self._window()
        if len(now) <= len(before) or now.endswith(_HALF_A_CHARACTER):
            return ""
        self._first, self._read = self._read, len(self._ids)
        return self._release(now[len(before) :])

    def end(self) -> str:
        """The rest, when no token comes any more."""
        if self.is_stopped:
            return ""
        before, now = self._window()
        text = self._release(now[len(before) :])
        rest, self._held = self._held, ""
        return text + rest

    def _window(self) -> tuple[str, str]:
        """The text of the last tokens without and with those that have given none yet."""
        ids = self._ids[self._first :]
        return self._tokenizer.decode(ids[: self._read - self._first]), self._tokenizer.decode(ids)

    def _release(self, text: str) -> str:
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return released


def _overlap(text: str, stop: str) -> int:
    """How many of the text's last characters are the stop string's first, the whole of it left out."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Writer:
    """One answer while it is written, token by token."""

    tokenizer: Tokenizer
    decoding: Decoding
    stream: TextStream | None
    """Where text is wanted as it comes, or must be looked at for stop strings."""
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    alternatives: list[dict[int, float]] = field(default_factory=list)
    """Those of each token in `log_probs`, where they are wanted."""
    end: int | None = None
    """The end of sequence, where it came."""
    text: str = ""
    """As far as it is final."""
    finish_reason: str | None = None
    """stop or length; None while it goes on."""

    def take(self, token: int, log_prob: float) -> str:
        """The next token; the text that it makes final."""
        self.log_probs.append(log_prob)
        piece = ""
        if token in self.tokenizer.end_ids:
            self.finish_reason, self.end = "stop", token
        else:
            self.ids.append(token)
            piece = self.stream.push(token) if self.stream else ""
            if self.stream and self.stream.is_stopped:
                self.finish_reason = "stop"
            elif len(self.log_probs) == self.decoding.max_tokens:
                self.finish_reason = "length"
        self.text += piece
        return piece + self.finish(self.finish_reason) if self.finish_reason else piece

    def finish(self, reason: str) -> str:
        """End with the tokens there are; the text that this makes final."""
        self.finish_reason = reason
        piece = self.stream.end() if self.stream else self.tokenizer.decode(self.ids)
        self.text += piece
        return piece

    def take_all(self, answer: Hypothesis) -> str:
        """A whole answer at once; all its text."""
        for token, log_prob in zip(answer.ids, answer.log_probs, strict=True):
            if self.finish_reason is None:
                self.take(token, log_prob)
        return self.text
