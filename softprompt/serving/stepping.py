"""The running batch at work: inputs are read, and every row gets a token a step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softprompt.answering import (
    MAX_TOKENS,
    Beams,
    Draw,
    Prediction,
    RunningBatch,
    Slot,
    Start,
    alternatives,
    best,
    choose,
    embedded,
    vote,
)
from softprompt.models import micro_batches, pad_candidates
from softprompt.serving.admission import Admission
from softprompt.serving.prompt_table import PromptTable
from softprompt.serving.queue import Job, Queue
from softprompt.serving.request import Answer, Cancelled, DeadlineExceeded, PartAnswer, Piece, Ticket
from softprompt.tasks import Example, file_task

# Tokens of one pass at most. Ours: on a processor half of training's, since those who write wait for it.
MAX_PASS_TOKENS = MAX_TOKENS | {"cpu": 1_024}
LABEL_PASSES = 4  # ours: a part's labels take such a part of a pass at a turn, then it is the others' turn


class Stepper:
    """The rows that run, from the reading of their inputs to their answers. One thread at a time may call.

    max_bytes: what prompts, their keys and values, and the batch's cache may take together. An error ends the request
    it belongs to and no other. rows_at_once: as `RunningBatch` has it; then inputs are read and labels are scored one
    part at a time, too.
    """

    def __init__(
        self,
        table: PromptTable,
        queue: Queue,
        clock: Callable[[], float],
        *,
        max_bytes: int,
        rows_at_once: int | None = None,
    ):
        self.lm, self.table, self.queue = table.lm, table, queue
        self.batch = RunningBatch(table.lm, table.layout, rows_at_once=rows_at_once)
        self.running: dict[Slot, Job] = {}
        self.counts: Counter[str] = Counter()
        """Those of `Stats` that only grow, by their names there."""
        self.max_pass_tokens = MAX_PASS_TOKENS[table.lm.device.type]
        self.max_label_tokens = self.max_pass_tokens // LABEL_PASSES
        self._clock, self._max_bytes = clock, max_bytes

    def read(self, admitted: Admission) -> None:
        """Read the inputs of parts that were let in, in passes of like length; label sets of one shape together."""
        self.table.limit(self._max_bytes - admitted.projection.num_bytes, admitted.prompts)
        for_prompts = admitted.num_bytes - self.batch.projection().num_bytes
        shapes: dict[tuple[int, int], list[Job]] = {}
        for job in admitted.jobs:
            candidates = job.next_candidates(self.max_label_tokens)
            shapes.setdefault((len(candidates), max(map(len, candidates), default=0)), []).append(job)
        for (num_labels, longest), group in shapes.items():
            read = self._score if num_labels else partial(self._begin, max_bytes=self._max_bytes - for_prompts)
            lengths = []
            for job in group:
                length = len(job.start.ids) + num_labels * longest
                lengths.append(length + (job.start.prompt_length if self.lm.is_encoder_decoder else 0))
            most = self.max_pass_tokens if self.batch.rows_at_once is None else 1  # 1: each alone, as any may be
            for places in micro_batches(lengths, most, pass_tokens=self.lm.pass_tokens):
                self._read_pass([group[place] for place in places], read)

    def decode(self) -> None:
        """One token more of every row; where that fails, of each part alone, so that only what fails alone ends."""
        if not self.running:
            return
        self.counts["num_steps"] += 1
        try:
            logits = self.batch.decode()
        except Exception:
            jobs = list(dict.fromkeys(self.running.values()))
            self.batch.isolate([job.slots for job in jobs])
            for job in jobs:
                if not job.slots:  # its request has ended with another of its parts
                    continue
                try:
                    alone = self.batch.decode_alone(job.slots)
                except Exception as error:
                    self.fail(job.ticket, error)
                else:
                    self._take(job.slots, alone)
            return
        self._take(self.batch.slots, logits)

    def give_up(self, ticket: Ticket, error: Exception) -> None:
        """End a request whose time is over with the text there is, where it is one that is being written; else fail."""
        jobs = self.queue.in_flight.get(ticket, ())
        if isinstance(error, DeadlineExceeded) and len(jobs) == 1 and jobs[0].writer.ids and not jobs[0].beams:
            self.counts["num_deadlines"] += 1
            try:
                self._tell(jobs[0], jobs[0].writer.finish("length"))
                return
            except Exception as failure:
                error = failure
        self.fail(ticket, error)

    def fail(self, ticket: Ticket, error: Exception) -> None:
        """End a request with an error, and all work on it."""
        if ticket.is_done:
            return
        for job in self.queue.in_flight.get(ticket, ()):
            self._leave(job)
        kinds = {Cancelled: "num_cancelled", DeadlineExceeded: "num_deadlines"}
        self.counts[kinds.get(type(error), "num_errors")] += 1
        self._end(ticket, error)

    def start_over(self, error: Exception) -> None:
        """End everything after an error that belongs to no request that can be named."""
        self.batch = RunningBatch(self.lm, self.table.layout, rows_at_once=self.batch.rows_at_once)
        self.running.clear()
        for ticket in list(self.queue.in_flight):
            self.fail(ticket, error)

    def _read_pass(self, jobs: list[Job], read: Callable[[list[Job], list[Start]], None]) -> None:
        """One pass; where it fails, part by part."""
        jobs = [job for job in jobs if not job.ticket.is_done]
        if not jobs:
            return
        try:
            read(jobs, self._worn(jobs))
        except Exception as error:
            if len(jobs) == 1:
                self.fail(jobs[0].ticket, error)
                return
            for job in jobs:
                self._read_pass([job], read)

    def _worn(self, jobs: list[Job]) -> list[Start]:
        """How the parts begin, each with its prompt's values, or with its keys and values."""
        prompts = {job.part.prompt for job in jobs if job.part.prompt is not None}
        worn: dict[str | None, Any] = {None: None}
        if self.lm.is_encoder_decoder:
            worn |= {prompt: self.table.sound_values(prompt) for prompt in prompts}
        else:
            worn |= self.table.states(prompts)
        return [replace(job.start, worn=worn[job.part.prompt]) for job in jobs]

    def _begin(self, jobs: list[Job], starts: list[Start], *, max_bytes: int) -> None:
        """Let parts that write text join the running batch."""
        promised = self.batch.projection()
        for start in starts:
            promised = promised.with_row(start)
        slots, logits = self.batch.read(starts, max_bytes)
        # A new group is as wide as its longest row, and has room for rows to come: prompts give way to that, too.
        self.table.give(self.batch.projection().num_bytes - promised.num_bytes)
        for job, slot in zip(jobs, slots, strict=True):
            job.slots, job.read = [slot], slot.read
            self.running[slot] = job
            self._count(job, num_read=len(job.part.ids))
        if logits is not None:
            self._take(slots, logits)

    def _score(self, jobs: list[Job], starts: list[Start]) -> None:
        """Score the next labels of parts in one pass, and answer the parts that have no more."""
        turn = [job.next_candidates(self.max_label_tokens) for job in jobs]
        candidates, real = pad_candidates(turn, self.lm.tokenizer.pad_id)
        scored = self.lm.score(embedded(self.lm, starts), candidates, real)
        for job, labels, scores in zip(jobs, turn, scored.tolist(), strict=True):
            self._count(job, num_read=sum(map(len, labels)) + (0 if job.scores else len(job.part.ids)))
            if not all(map(math.isfinite, scores)):
                self.fail(job.ticket, _no_numbers(job))
                continue
            job.scores += scores
            if len(job.scores) < len(job.part.candidates):
                self.queue.wait_again(job)
                continue
            prediction = best(dict(zip(job.ticket.request.labels, job.scores, strict=True)))
            job.writer.text, job.writer.finish_reason = prediction.text, "stop"
            self._answer(job, prediction)

    def _take(self, slots: Sequence[Slot], logits: Tensor) -> None:
        """Choose the rows' next tokens."""
        jobs = [self.running[slot] for slot in slots]
        row_of = {slot: row for row, slot in enumerate(slots)}
        try:
            tokens, log_probs = self._choose(logits, [job.draw() for job in jobs])
        except Exception as error:
            if len(set(jobs)) == 1:
                self.fail(jobs[0].ticket, error)
                return
            for job in dict.fromkeys(jobs):
                if job.slots:
                    self._take(job.slots, logits[[row_of[slot] for slot in job.slots]])
            return
        for slot, job, token, log_prob in zip(slots, jobs, tokens.tolist(), log_probs.tolist(), strict=True):
            if slot not in self.running or slot is not job.slots[0]:  # it has failed; or the first beam takes for all
                continue
            try:
                numbers = [log_prob]
                if not job.writer.log_probs:  # the first token: with it comes what the input's own were worth
                    numbers += [read for told in job.read for read in told.values()]
                if not (job.beams or all(map(math.isfinite, numbers))):
                    raise _no_numbers(job)
                if not job.writer.decoding.max_tokens:  # the input was all that was to be read
                    job.writer.finish_reason = "length"
                    self._tell(job, "")
                    continue
                if job.beams is None:
                    slot.token = token
                    if count := job.ticket.request.num_alternatives:
                        told = alternatives(logits[[row_of[slot]]], [token], count)
                        log_prob = told[0][token]  # the very number that stands among them
                        job.writer.alternatives += told
                    text = job.writer.take(token, log_prob)
                else:
                    text = self._advance(job, job.beams, logits[[row_of[beam] for beam in job.slots]].log_softmax(-1))
                self._count(job, num_written=1)
                self._tell(job, text)
            except Exception as error:
                self.fail(job.ticket, error)

    def _choose(self, logits: Tensor, draws: Sequence[Draw | None]) -> tuple[Tensor, Tensor]:
        """The next tokens and their log p: row by row, where a row must not see how many others there are."""
        if self.batch.rows_at_once is None:
            return choose(logits, draws)
        chosen = [choose(row, [draw]) for row, draw in zip(logits.split(1), draws, strict=True)]
        tokens, log_probs = zip(*chosen, strict=True)
        return torch.cat(tokens), torch.cat(log_probs)

    def _advance(self, job: Job, beams: Beams, log_probs: Tensor) -> str:
        """Let a part's beams go on by a token; its text, once they are done."""
        if not math.isfinite(float(log_probs.max())):
            raise _no_numbers(job)
        parents = beams.advance(log_probs)
        if not parents:
            return job.writer.take_all(beams.best)
        if len(job.slots) == 1:
            job.slots = self.batch.fan_out(job.slots[0])
            self.running |= dict.fromkeys(job.slots, job)
        else:
            self.batch.reorder(job.slots, parents, beams.length - 1)
        for slot, token in zip(job.slots, beams.tokens, strict=True):
            slot.token = token
        return ""

    def _count(self, job: Job, *, num_read: int = 0, num_written: int = 0) -> None:
        """Note tokens of a part as they are read and written."""
        self.counts["num_input_tokens"] += num_read
        self.counts["num_output_tokens"] += num_written
        if job.ticket.request.meter is not None:
            job.ticket.request.meter(num_read, num_written)

    def _tell(self, job: Job, text: str) -> None:
        """Pass new text on; with the last of it, the part is answered."""
        job.ticket.tell(Piece(job.index, text))
        if job.writer.finish_reason is not None:
            self._leave(job)
            self._answer(job, Prediction(job.part.answer_of(job.writer.text), sum(job.writer.log_probs, 0.0)))

    def _answer(self, job: Job, prediction: Prediction) -> None:
        """Keep a part's answer; with the last one, the request has its own."""
        ticket, writer = job.ticket, job.writer
        ticket.parts[job.index] = PartAnswer(
            prediction=prediction,
            text=writer.text,
            ids=tuple(writer.ids),
            log_probs=tuple(writer.log_probs),
            alternatives=tuple(writer.alternatives),
            read=tuple(job.read),
            end=writer.end,
            finish_reason=str(writer.finish_reason),
            prompt=job.part.prompt,
            num_input_tokens=len(job.part.ids),
        )
        parts = tuple(part for part in ticket.parts if part is not None)
        if len(parts) < len(ticket.parts):
            return
        elected = prediction
        if len(parts) > 1:
            elected = (ticket.request.vote or _majority)([part.prediction for part in parts])
        assert ticket.started is not None
        now, waited = self._clock(), ticket.started - ticket.submitted
        self.counts["num_answers"] += 1
        self.queue.note_pace(now, ticket.started, len(parts))
        seconds = now - ticket.submitted
        self._end(ticket, Answer(prediction=elected, parts=parts, seed=ticket.seed, waited=waited, seconds=seconds))

    def _leave(self, job: Job) -> None:
        """Take a part's rows out of the running batch."""
        for slot in job.slots:
            if self.running.pop(slot, None) is not None:
                self.batch.drop(slot)
        job.slots = []

    def _end(self, ticket: Ticket, outcome: Answer | Exception) -> None:
        self.table.unpin(ticket.request.prompts)
        self.queue.end(ticket, outcome)


def _majority(predictions: Sequence[Prediction]) -> Prediction:
    """The paper's vote, on texts as they are."""
    task = file_task(inputs="{inputs}", targets="{targets}", metric="accuracy")
    return vote(task, Example(inputs="", targets="", id="", references=()), predictions)


def _no_numbers(job: Job) -> ValueError:
    worn = "no prompt" if job.part.prompt is None else f"prompt {job.part.prompt[:12]}"
    return ValueError(f"the model gives no finite numbers for this input with {worn}; its values may be too large")
