"""Who may run: what can never be answered is refused, and the rest begins as tokens, rows and memory allow."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from softprompt.answering import Projection, RunningBatch, Start
from softprompt.models import FrozenLM
from softprompt.serving.prompt_table import PromptTable
from softprompt.serving.queue import Job
from softprompt.serving.request import Part, Request

MAX_READS = 8.0  # ours: 1.2 times the throughput of one read a step when 96 requests wait (docs/log.md, 2026-11-25)
MAX_INPUT = MAX_NEW = 4_096  # ours: tokens of an input and of an answer where a model states no limit
MAX_LABEL, MAX_LABELS = 512, 4_096  # ours: tokens of a label, as of a target in training; labels of a request
MAX_OVERTAKEN = 64  # ours: parts that may go before one that memory lacks for; then all wait for it


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the running batch may take."""

    max_memory: int
    """Bytes of prompts in memory, their keys and values, and the batch's cache together."""
    max_rows: int
    max_prefill_tokens: int
    """Tokens read between two decoding steps, where no more parts wait than write."""
    max_label_tokens: int
    """Tokens of labels that a part has scored at a turn; one label is always allowed."""


def check(request: Request, lm: FrozenLM) -> None:
    """ValueError for a request that no prompt and no memory could answer."""
    if not request.parts:
        raise ValueError("a request has no parts; give one input for each prompt")
    if len(set(request.labels)) != len(request.labels):
        raise ValueError("labels repeat; give different ones")
    if request.timeout is not None and not request.timeout > 0:
        raise ValueError(f"timeout is {request.timeout}, but must be above 0 seconds")
    if request.echo and lm.is_encoder_decoder:
        raise ValueError(
            f"echo: {lm.name} is an encoder-decoder, which reads an input without predicting it; leave echo out"
        )
    if request.num_alternatives and request.decoding.num_beams > 1:
        raise ValueError("the most probable tokens are not kept in a beam search; give num_beams 1, or ask for 0")
    if len(request.labels) > MAX_LABELS:
        raise ValueError(f"{len(request.labels):,} labels, but a request may have {MAX_LABELS:,}; give fewer")
    for part in request.parts:
        if not part.ids:
            raise ValueError("an input is empty; every input needs some tokens")
        if len(part.candidates) != len(request.labels):
            raise ValueError(f"{len(request.labels)} labels, but ids of {len(part.candidates)} candidates")
        if not all(part.candidates):
            raise ValueError("a candidate is empty; every candidate needs some tokens")
        if (longest := max(map(len, part.candidates), default=0)) > MAX_LABEL:
            raise ValueError(f"a label has {longest:,} tokens, but may have {MAX_LABEL}; give shorter labels")
        for ids in (part.ids, *part.candidates):
            if not 0 <= min(ids) <= max(ids) < lm.num_ids:
                raise ValueError(f"an id is not one of {lm.name}'s {lm.num_ids}: {min(ids)} to {max(ids)}")


def start_of(request: Request, part: Part, table: PromptTable, room: Room) -> Start:
    """How a part with a pinned prompt begins. ValueError for one that the model or the memory can never take."""
    lm, decoding = table.lm, request.decoding
    longest = max(map(len, part.candidates), default=0)
    start = Start(
        ids=part.ids,
        prompt_length=0 if part.prompt is None else table.get(part.prompt).length,
        num_rows=1 if part.candidates else decoding.num_beams,
        max_tokens=max(longest, min(sum(map(len, part.candidates)), room.max_label_tokens)) or decoding.max_tokens,
        alternatives=request.num_alternatives if request.echo else None,
    )
    new = longest or decoding.max_tokens
    if lm.max_length is None and len(part.ids) > MAX_INPUT:
        raise ValueError(f"the input has {len(part.ids):,} tokens, but {MAX_INPUT:,} are read; give a shorter one")
    if lm.max_length is None and new > MAX_NEW:
        raise ValueError(f"max_tokens is {new}, but {lm.name} writes {MAX_NEW} at most; give a smaller max_tokens")
    if lm.max_length is not None and start.length + new > lm.max_length:
        raise ValueError(
            f"prompt {start.prompt_length} + input {len(part.ids)} + answer {new} tokens, but {lm.name} "
            f"takes {lm.max_length}; give a shorter input or a smaller max_tokens"
        )
    if start.num_rows > room.max_rows:
        raise ValueError(f"{start.num_rows} beams, but the batch has {room.max_rows} rows; give fewer")
    alone = Projection(table.layout).with_row(start).num_bytes
    alone += 0 if part.prompt is None else table.num_bytes(part.prompt)
    if alone > room.max_memory:
        raise ValueError(
            f"this request alone takes {alone:,} bytes of cache, more than max_memory "
            f"{room.max_memory:,}; give a shorter input or a smaller max_tokens"
        )
    return start


class Admission:
    """The parts that begin in one turn, and what they take: summed as each comes, so that a turn looks once at each."""

    def __init__(self, batch: RunningBatch, table: PromptTable, room: Room):
        self.jobs: list[Job] = []
        self.prompts: set[str] = set()
        """Those the parts wear."""
        self.projection = batch.projection()
        """The batch with them."""
        self.prompt_bytes = table.fixed_bytes()
        """Their prompts, and what the table cannot give up."""
        self._num_tokens, self._num_rows = 0, batch.num_rows
        self._is_idle = not batch.groups
        self._table, self._room = table, room

    @property
    def num_bytes(self) -> int:
        """All that the batch and its prompts take at most."""
        return self.projection.num_bytes + self.prompt_bytes

    def choose(self, waiting: Collection[Job]) -> None:
        """Take the parts whose turn it is: in order, but for those that memory lacks for, which some may overtake.

        Where more wait than write, up to `MAX_READS` times the tokens are read.
        """
        room, table = self._room, self._table
        share = len(waiting) / max(self._num_rows, 1)
        max_tokens = room.max_prefill_tokens * min(max(share, 1.0), MAX_READS)
        overtaken: list[Job] = []  # the first of them has been overtaken most often
        for job in waiting:
            if overtaken and overtaken[0].num_overtaken >= MAX_OVERTAKEN:
                return
            prompt, start, is_scored = job.part.prompt, job.start, bool(job.part.candidates)
            num_tokens = len(start.ids) + (start.max_tokens if is_scored else 0)
            if prompt is not None and (table.lm.is_encoder_decoder or not table.has_states(prompt)):
                num_tokens += start.prompt_length
            num_rows = 0 if is_scored else start.num_rows
            if self.jobs and self._num_tokens + num_tokens > max_tokens:
                return
            if self._num_rows + num_rows > room.max_rows:
                return
            projection, prompt_bytes = self.projection.with_row(start), self.prompt_bytes
            if prompt is not None and prompt not in self.prompts:
                prompt_bytes += table.num_bytes(prompt)
            if projection.num_bytes + prompt_bytes > room.max_memory:
                if self._is_idle and not self.jobs:
                    return  # nothing will be given back that could make room
                overtaken.append(job)
                continue
            for other in overtaken:
                other.num_overtaken += 1
            self.jobs.append(job)
            self.projection, self.prompt_bytes = projection, prompt_bytes
            self._num_tokens += num_tokens
            self._num_rows += num_rows
            if prompt is not None:
                self.prompts.add(prompt)
