"""Mixed-prompt batches: rows in, label scores or text out, each row with a prompt of its own.

Shapes: b rows, k prompts, p prompt tokens, d width. Rows come back in the order they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from softprompt.answering.running import generate
from softprompt.base.watch import Progress
from softprompt.models import NO_PROMPT, Embedded, FrozenLM, PromptStates, Row, collate, micro_batches, pad_candidates
from softprompt.prompts import prepend, stack

# Tokens of a micro-batch at most, padding and prompts in front included. Ours: on a processor 2,048 are as fast as
# 1,024 or up to 9 % faster (docs/log.md, 2026-11-26). In training a GPU's memory decides (`most_tokens`).
MAX_TOKENS = {"cpu": 2_048, "cuda": 32_768, "mps": 8_192}
FREE_SHARE = 0.7  # ours: of a GPU's free memory for what a micro-batch keeps; the rest is for what comes and goes
MOST_TOKENS = 1 << 18  # ours: no more is gained by larger ones


@dataclass(frozen=True)
class Prediction:
    """What the model answers to one input."""

    text: str
    """The answer, as text."""
    log_prob: float
    """Its summed log-probability."""
    scores: dict[str, float] | None = None
    """With label scoring: the summed log-probability of every candidate."""

    def probabilities(self) -> dict[str, float] | None:
        """The candidates' probabilities among themselves."""
        if self.scores is None:
            return None
        shares = torch.tensor(list(self.scores.values()), dtype=torch.float64).softmax(0).tolist()
        return dict(zip(self.scores, shares, strict=True))


def mean_probabilities(predictions: Sequence[Prediction]) -> dict[str, float]:
    """What prompts that scored the same candidates give each of them, on average; nothing if none was scored."""
    shares = [prediction.probabilities() for prediction in predictions]
    scored = [probabilities for probabilities in shares if probabilities is not None]
    return {text: fmean(probabilities[text] for probabilities in scored) for text in scored[0]} if scored else {}


class Engine:
    """One frozen model and the prompts it wears.

    prompts: float32, soft prompts [p d] or, for a decoder-only model, keys and values [p 2l h e]; lengths may differ. A
    decoder-only model runs each once, here. states: keys and values in their place; in an encoder-decoder they stand in
    front of the decoder's (PEFT's prefix tuning).
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: FrozenLM,
        prompts: Sequence[Tensor],
        *,
        max_tokens: int | None = None,
        run_once: bool = True,
        states: PromptStates | None = None,
    ):
        self.lm = lm
        self.max_tokens = max_tokens or MAX_TOKENS[lm.device.type]
        values = [prompt.detach().to(lm.device) for prompt in prompts] or [torch.zeros(1, lm.width, device=lm.device)]
        self.states = states
        if states is None and run_once and not lm.is_encoder_decoder:
            self.states = lm.prompt_states(values)
        if self.states is not None:
            self.lengths = self.states.lengths
        else:
            self.prompts, self.lengths = stack(values)

    @torch.no_grad()
    def label_scores(
        self,
        rows: Sequence[Row],
        member: Sequence[int],
        candidates: Sequence[Sequence[Sequence[int]]],
        *,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """log p of each candidate of each row. candidates: for each row, the ids of each, end of sequence included.

        Raises ValueError for rows longer than the model can take.
        """
        pairs = list(zip(rows, candidates, strict=True))
        self._check_length(len(row.ids) + max(map(len, choices)) for row, choices in pairs)
        scores: list[list[float]] = [[] for _ in rows]

        def score(places: list[int]) -> None:
            entering = self.inputs([rows[i] for i in places], [member[i] for i in places])
            ids, real = pad_candidates([candidates[i] for i in places], self.lm.tokenizer.pad_id)
            summed = self.lm.score(entering, ids, real).tolist()
            for i, values in zip(places, summed, strict=True):
                scores[i] = values[: len(candidates[i])]

        self._in_micro_batches([len(row.ids) + sum(map(len, choices)) for row, choices in pairs], score, progress)
        return scores

    @torch.no_grad()
    def generate(
        self,
        rows: Sequence[Row],
        member: Sequence[int],
        *,
        max_target_length: int,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """The greedy answer to each row, at most `max_target_length` tokens long.

        Raises ValueError for rows longer than the model can take.
        """
        lengths = [len(row.ids) + max_target_length for row in rows]
        self._check_length(lengths)
        answers: list[Prediction] = [Prediction("", 0.0)] * len(rows)

        def write(places: list[int]) -> None:
            entering = self.inputs([rows[i] for i in places], [member[i] for i in places])
            written = generate(self.lm, entering, max_tokens=max_target_length)
            for i, ids, log_prob in zip(places, written.ids, written.log_probs, strict=True):
                answers[i] = Prediction(self.lm.tokenizer.decode(ids).strip(), log_prob)

        self._in_micro_batches(lengths, write, progress)
        return answers

    def inputs(self, rows: Sequence[Row], member: Sequence[int]) -> Embedded:
        """The rows as they enter the model, with the prompts that `member` names."""
        batch = collate(rows, member, self.lm.tokenizer.pad_id)
        x, mask = self.lm.embed(batch.ids), batch.mask
        if self.states is None and any(m != NO_PROMPT for m in member):
            x, mask = prepend(self.prompts, self.lengths, batch.member, x, mask)
        return Embedded(x, mask, self.states, batch.member)

    def _in_micro_batches(
        self, lengths: Sequence[int], compute: Callable[[list[int]], None], progress: Progress | None
    ) -> None:
        """Call `compute` with the places of each micro-batch, of half the size from where memory runs out."""
        in_front = 0 if self.states is not None else int(self.lengths.max())
        waiting = micro_batches(lengths, self.max_tokens, extra=in_front, pass_tokens=self.lm.pass_tokens)
        while waiting:
            places = waiting[0]
            try:
                compute(places)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(places) == 1:
                    raise lacking_memory(self.lm) from None
                half = (len(places) + 1) // 2
                waiting = [part for w in waiting for part in (w[:half], w[half:]) if part]
                continue
            waiting.pop(0)
            if progress:
                progress(len(places))

    def _check_length(self, lengths: Iterable[int]) -> None:
        in_front, limit = int(self.lengths.max()), self.lm.max_length
        longest = max(lengths, default=0)
        if limit is not None and in_front + longest > limit:
            raise ValueError(
                f"prompt {in_front} + input and answer {longest} tokens, but {self.lm.name} takes {limit}; "
                "use a shorter prompt or --max-input-length"
            )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out, on a GPU or in PyTorch's own allocator on a processor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def most_tokens(lm: FrozenLM) -> int:
    """Tokens of a micro-batch in training at most: on a GPU as many as its memory holds, by reckoning; should that be
    too many, they are halved. A power of 2, so that a little more or less memory changes no bits.
    """
    if lm.device.type != "cuda":
        return MAX_TOKENS[lm.device.type]
    unused = torch.cuda.memory_reserved(lm.device) - torch.cuda.memory_allocated(lm.device)
    free = torch.cuda.mem_get_info(lm.device)[0] + unused
    fitting = int(FREE_SHARE * free / lm.kept_bytes)
    return min(1 << max(fitting.bit_length() - 1, 9), MOST_TOKENS)


def lacking_memory(lm: FrozenLM) -> ValueError:
    """The error where memory does not suffice for one row: how much of it there is, and what would take less."""
    taken = ""
    if lm.device.type == "cuda":
        total = torch.cuda.mem_get_info(lm.device)[1]
        taken = f" ({lm.model.get_memory_footprint() / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} are the model's)"
    ways = ["a shorter --max-input-length", "fewer prompts at once"]
    if not lm.is_checkpointed:
        ways.append("--checkpoint-activations in training")
    if lm.quantization is None:
        ways.append("--quantize 8bit or 4bit")
    return ValueError(f"out of memory even with one row at a time{taken}; use {', '.join(ways)}, or a smaller model")
