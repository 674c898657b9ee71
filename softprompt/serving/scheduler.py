"""The serving engine: requests from any thread, one frozen model, one running batch that they join and leave.

    engine = Scheduler(lm, max_memory=4 << 30)
    sha256 = engine.table.add("runs/sst2")
    engine.start()
    ticket = engine.submit(Request(parts=(Part(ids=ids, prompt=sha256),), decoding=Decoding(max_tokens=20)))
    ticket.result().prediction.text

A request is one or more parts, each one input and the prompt it wears; several parts are an ensemble. It asks for
text (greedy, beams or sampling) or for the log-probabilities of given candidates. What a request gets does not
depend on what it is batched with.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil
import torch
from torch import Tensor

from softprompt.answering import (
    MAX_TOKENS,
    Beams,
    Decoding,
    Draw,
    Prediction,
    RunningBatch,
    Slot,
    Start,
    TextStream,
    Writer,
    choose,
    encoder_inputs,
    uniforms,
    vote,
)
from softprompt.models import Embedded, FrozenLM, PromptStates, micro_batches, pad_candidates
from softprompt.serving.prompt_table import PromptTable
from softprompt.serving.request import (
    Answer,
    Cancelled,
    DeadlineExceeded,
    Listener,
    NotServing,
    Part,
    PartAnswer,
    Piece,
    QueueFull,
    Request,
    Stats,
    Ticket,
    Vote,
)
from softprompt.tasks import Example, file_task

__all__ = [
    "Answer",
    "Cancelled",
    "DeadlineExceeded",
    "Decoding",
    "Listener",
    "NotServing",
    "Part",
    "PartAnswer",
    "Piece",
    "QueueFull",
    "Request",
    "Scheduler",
    "Stats",
    "Ticket",
    "Vote",
]

COUNTS = (
    "num_steps",
    "num_input_tokens",
    "num_output_tokens",
    "num_answers",
    "num_errors",
    "num_cancelled",
    "num_deadlines",
)  # those of Stats that only grow
# Tokens of one pass at most. Ours: on a processor half of training's, since those who write wait for it.
MAX_PASS_TOKENS = MAX_TOKENS | {"cpu": 1_024}
MAX_READS = 8.0  # ours: 1.2 times the throughput of one read a step when 96 requests wait (docs/log.md, 2026-11-25)
MAX_OVERTAKEN = 64  # ours: requests that may go before one that memory lacks for; then all wait for it


@dataclass(eq=False)
class _Job:
    """One part of a request, waiting or running."""

    ticket: Ticket
    index: int
    part: Part
    writer: Writer | None
    """None with label scoring."""
    draws: list[float]
    """The uniform numbers of its tokens, where they are drawn."""
    beams: Beams | None
    prompt_length: int
    num_overtaken: int = 0
    """Times that others went first while memory lacked for it."""
    slots: list[Slot] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens of the input and of all candidates."""
        return len(self.part.ids) + sum(map(len, self.part.candidates))

    def start(self, values: Tensor | None = None, states: PromptStates | None = None) -> Start:
        """How it begins in the running batch; for a part that scores labels, what it takes meanwhile."""
        longest = self.ticket.request.decoding.max_tokens if self.writer else self.num_tokens - len(self.part.ids)
        return Start(
            ids=self.part.ids,
            prompt_length=self.prompt_length,
            values=values,
            states=states,
            num_rows=self.ticket.request.decoding.num_beams if self.writer else 1,
            max_tokens=longest,
        )

    def draw(self) -> Draw | None:
        """What its next token is drawn with; None for the most probable."""
        if not self.draws or self.writer is None:
            return None
        decoding = self.writer.decoding
        return Draw(decoding.temperature, decoding.top_p, self.draws[len(self.writer.log_probs)])


class Scheduler:
    """One frozen model, its prompt table, the queue and the running batch.

    max_memory: bytes that prompts in memory, their keys and values, and the running batch's cache may take together;
    None: half of what the machine has free. max_waiting: parts in the queue at most. max_rows: rows of the running
    batch at most. max_prefill_tokens: input tokens read between two decoding steps at most (one input is always
    allowed), so that those who are writing do not wait long for those who come; None: what one pass takes. Where more
    wait than write, up to `MAX_READS` times as many.
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        max_memory: int | None = None,
        max_waiting: int = 1_024,
        max_rows: int = 256,
        max_prefill_tokens: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.lm = lm
        self.max_memory = _half_of_what_is_free(lm.device) if max_memory is None else max_memory
        self.max_waiting, self.max_rows = max_waiting, max_rows
        self.max_pass_tokens = MAX_PASS_TOKENS[lm.device.type]
        self.max_prefill_tokens = max_prefill_tokens or self.max_pass_tokens
        self.table = PromptTable(lm, max_bytes=self.max_memory)
        self._owed = 0  # bytes that the rows and prompts of this turn take
        self._clock = clock
        self._batch = RunningBatch(lm, self.table.layout)
        self._waiting: deque[_Job] = deque()
        self._running: dict[Slot, _Job] = {}
        self._in_flight: set[Ticket] = set()
        self._changed = threading.Condition()
        self._stepping = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_draining = self._is_closed = False
        self._counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self._seconds_per_part = 0.0
        self._last_end = 0.0

    def submit(self, request: Request, listener: Listener | None = None, *, stream: bool = False) -> Ticket:
        """Put a request into the queue; any thread may.

        Its prompts are pinned from here to its end: replacing or removing one changes nothing for it. Raises
        ValueError for what can never be answered (an unknown prompt or id, an empty input or candidate, too long for
        the model or for max_memory), QueueFull, and NotServing while draining.
        """
        return self.submit_all([(request, listener)], stream=stream)[0]

    def submit_all(self, asked: Sequence[tuple[Request, Listener | None]], *, stream: bool = False) -> list[Ticket]:
        """Put these requests into the queue, or none of them; raises as `submit` does."""
        tickets: list[Ticket] = []
        jobs: list[_Job] = []
        pinned: list[str] = []
        try:
            for request, listener in asked:
                self._check(request)
                worn = [part.prompt for part in request.parts if part.prompt is not None]
                self.table.pin(worn)
                pinned += worn
                tickets.append(Ticket(request, listener, self._wake, streams=stream, submitted=self._clock()))
                jobs += self._jobs(tickets[-1])
            for job in jobs:
                self._check_size(job)
            with self._changed:
                self._check_queue(len(jobs))
                self._waiting.extend(jobs)
                self._in_flight.update(tickets)
                self._changed.notify_all()
        except BaseException:
            self.table.unpin(pinned)
            raise
        return tickets

    def start(self) -> None:
        """Run in a thread of its own."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._run, name="softprompt-engine", daemon=True)
        self._thread.start()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, finish those there are, stop the thread. False if some were cut off by `timeout`
        (seconds); these end with NotServing.
        """
        until = None if timeout is None else self._clock() + timeout
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()
        self._wait_for_the_last(until)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._stepping:
            left = list(self._in_flight)
            for ticket in left:
                self._fail(ticket, NotServing("the engine was stopped before this request was done"))
        return not left

    def stats(self) -> Stats:
        """Counts and sizes now; any thread may ask."""
        table = self.table
        running = list(self._running.values())
        return Stats(
            **self._counts,
            num_waiting=len(self._waiting),
            num_running=len({id(job) for job in running}),
            num_rows=len(running),
            num_prompts_run=table.counts.num_run,
            num_states_reused=table.counts.num_reused,
            num_prompts_loaded=table.counts.num_loaded,
            values_bytes=table.values_bytes,
            states_bytes=table.states_bytes,
            cache_bytes=self._batch.num_bytes,
            promised_bytes=self._batch.projected(),
            max_memory=self.max_memory,
        )

    @torch.no_grad()
    def step(self) -> bool:
        """One turn by hand, for tests and for callers without a thread: drop what was given up, admit, read inputs,
        decode one token of every row. False if there was nothing to do.
        """
        with self._stepping:
            self._drop_given_up()
            admitted = self._admit()
            self._read(admitted)
            had_rows = bool(self._running)
            if had_rows:
                self._decode()
            return bool(admitted) or had_rows

    def _check(self, request: Request) -> None:
        """ValueError for a request that no model could answer."""
        if not request.parts:
            raise ValueError("a request has no parts; give one input for each prompt")
        if len(set(request.labels)) != len(request.labels):
            raise ValueError("labels repeat; give different ones")
        if request.timeout is not None and not request.timeout > 0:
            raise ValueError(f"timeout is {request.timeout}, but must be above 0 seconds")
        size = self.lm.num_ids
        for part in request.parts:
            if not part.ids:
                raise ValueError("an input is empty; every input needs some tokens")
            if len(part.candidates) != len(request.labels):
                raise ValueError(f"{len(request.labels)} labels, but ids of {len(part.candidates)} candidates")
            if not all(part.candidates):
                raise ValueError("a candidate is empty; every candidate needs some tokens")
            for ids in (part.ids, *part.candidates):
                if not 0 <= min(ids) <= max(ids) < size:
                    raise ValueError(f"an id is not one of {self.lm.name}'s {size}: {min(ids)} to {max(ids)}")

    def _jobs(self, ticket: Ticket) -> list[_Job]:
        request = ticket.request
        decoding, tokenizer = request.decoding, self.lm.tokenizer
        ticket.seed = _seed(decoding) if decoding.is_sampled and not request.labels else None
        jobs = []
        for index, part in enumerate(request.parts):
            length = 0 if part.prompt is None else self.table.length(part.prompt)
            draws, beams, writer = [], None, None
            if not request.labels:
                looks = ticket.streams or bool(decoding.stop)
                writer = Writer(tokenizer, decoding, TextStream(tokenizer, decoding.stop) if looks else None)
                draws = [] if ticket.seed is None else uniforms(ticket.seed, index, decoding.max_tokens)
                beams = Beams(decoding, tokenizer.eos_id) if decoding.num_beams > 1 else None
            jobs.append(_Job(ticket, index, part, writer, draws, beams, length))
        return jobs

    def _check_size(self, job: _Job) -> None:
        """ValueError for a part that the model or the memory can never take."""
        longest = max(map(len, job.part.candidates), default=0)
        new = job.start().max_tokens if job.writer else longest
        total, limit = job.prompt_length + len(job.part.ids) + new, self.lm.max_length
        if limit is not None and total > limit:
            raise ValueError(
                f"prompt {job.prompt_length} + input {len(job.part.ids)} + answer {new} tokens, but {self.lm.name} "
                f"takes {limit}; give a shorter input or a smaller max_tokens"
            )
        if job.start().num_rows > self.max_rows:
            raise ValueError(f"{job.start().num_rows} beams, but the batch has {self.max_rows} rows; give fewer")
        alone = RunningBatch(self.lm, self.table.layout).projected([job.start()])
        worn = 0 if job.part.prompt is None else self.table.num_bytes(job.part.prompt)
        if alone + worn > self.max_memory:
            raise ValueError(
                f"this request alone takes {alone + worn:,} bytes of cache, more than max_memory "
                f"{self.max_memory:,}; give a shorter input or a smaller max_tokens"
            )

    def _check_queue(self, num_parts: int) -> None:
        if self._is_draining:
            raise NotServing("the engine is being stopped and takes no more requests")
        if num_parts > self.max_waiting:
            raise ValueError(f"{num_parts} parts at once, but the queue takes {self.max_waiting}; give fewer")
        num_waiting = sum(not job.ticket.is_cancelled for job in self._waiting)  # the others go at the next step
        if num_waiting + num_parts > self.max_waiting:
            retry_after = max(1.0, num_waiting * self._seconds_per_part)
            raise QueueFull(f"the queue is full ({num_waiting} of {self.max_waiting}); try later", retry_after)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._in_flight or self._is_closed)
                if self._is_closed:
                    return
            try:
                is_busy = self.step()
            except Exception as error:  # it belongs to no request that can be named, so none is kept
                self._start_over(error)
                is_busy = True
            if not is_busy:
                with self._changed:
                    self._changed.wait(timeout=0.01)

    def _start_over(self, error: Exception) -> None:
        with self._stepping:
            self._batch = RunningBatch(self.lm, self.table.layout)
            self._running.clear()
            for ticket in list(self._in_flight):
                self._fail(ticket, error)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait_for_the_last(self, until: float | None) -> None:
        """Return when nothing is in flight, or at the time given; without a thread, do the work here."""
        while self._in_flight and (until is None or self._clock() < until):
            if self._thread is None:
                self.step()
                continue
            with self._changed:
                left = None if until is None else max(until - self._clock(), 0.0)
                self._changed.wait_for(lambda: not self._in_flight, timeout=left)

    def _drop_given_up(self) -> None:
        now = self._clock()
        for ticket in list(self._in_flight):
            timeout = ticket.request.timeout
            if ticket.is_cancelled:
                self._fail(ticket, Cancelled("the request was cancelled"))
            elif timeout is not None and now - ticket.submitted >= timeout:
                self._fail(ticket, DeadlineExceeded(f"no answer within {timeout} seconds"))

    def _admit(self) -> list[_Job]:
        """The waiting parts whose turn it is: in order, as many as tokens, rows and memory allow."""
        turn = _Turn(self._batch.num_rows)
        with self._changed:
            most = self.max_prefill_tokens * min(max(len(self._waiting) / max(turn.rows, 1), 1.0), MAX_READS)
            for job in list(self._waiting):
                start, cost = job.start(), self._cost(job)
                rows = start.num_rows if job.writer else 0
                if (turn.jobs and turn.tokens + cost > most) or turn.rows + rows > self.max_rows:
                    break
                worn = turn.worn if job.part.prompt is None else turn.worn | {job.part.prompt}
                if self._bytes([*turn.starts, start], worn) > self.max_memory:
                    job.num_overtaken += 1
                    if job.num_overtaken > MAX_OVERTAKEN or not (turn.jobs or self._running):
                        break
                    continue
                turn.take(job, start, worn, cost, rows)
            for job in turn.jobs:
                self._waiting.remove(job)
                if job.ticket.started is None:
                    job.ticket.started = self._clock()
            stuck = self._waiting[0] if self._waiting and not (turn.jobs or self._running) else None
        if stuck is not None:  # nothing will be given back that could make room
            held = self.table.fixed_bytes()
            self._fail(stuck.ticket, ValueError(f"max_memory has no room for it beside {held:,} bytes of prompts"))
        if turn.jobs:
            self._owed = self._bytes(turn.starts, turn.worn) - self._batch.projected()
        self.table.limit(self.max_memory - self._batch.projected(turn.starts), turn.worn)
        return turn.jobs

    def _cost(self, job: _Job) -> int:
        """Tokens that reading a part takes, those of its prompt too if they must be read."""
        prompt = job.part.prompt
        is_read = prompt is not None and (self.lm.is_encoder_decoder or not self.table.has_states(prompt))
        return job.num_tokens + (job.prompt_length if is_read else 0)

    def _bytes(self, starts: Sequence[Start], worn: set[str]) -> int:
        """What the batch with these rows too, and the prompts they wear, take at most."""
        prompts = sum(self.table.num_bytes(sha256) for sha256 in worn)
        return self._batch.projected(starts) + prompts + self.table.fixed_bytes()

    def _read(self, jobs: list[_Job]) -> None:
        """Read the inputs, in passes of like length; label sets of one shape together."""
        shapes: dict[tuple[int, int], list[_Job]] = {}
        for job in jobs:
            longest = max(map(len, job.part.candidates), default=0)
            shapes.setdefault((len(job.part.candidates), longest), []).append(job)
        for (num_labels, _), group in shapes.items():
            inside = self.lm.is_encoder_decoder
            lengths = [job.num_tokens + (job.prompt_length if inside else 0) for job in group]
            for places in micro_batches(lengths, self.max_pass_tokens):
                self._read_pass([group[i] for i in places], self._score if num_labels else self._begin)

    def _read_pass(self, jobs: list[_Job], read: Callable[[list[_Job]], None]) -> None:
        """One pass; where it fails, row by row, so that an error stays with the request it belongs to."""
        jobs = [job for job in jobs if not job.ticket.is_done]
        if not jobs:
            return
        try:
            read(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0].ticket, error)
                return
            for job in jobs:
                self._read_pass([job], read)

    def _begin(self, jobs: list[_Job]) -> None:
        """Let parts that write text join the running batch."""
        starts = self._starts(jobs)
        promised = self._batch.projected(starts)
        slots, logits = self._batch.read(starts, self.max_memory - self._owed)
        # A new group is as wide as its longest row, and has room for rows to come: prompts give way to that, too.
        self.table.give(self._batch.projected() - promised)
        for job, slot in zip(jobs, slots, strict=True):
            job.slots = [slot]
            self._running[slot] = job
        self._counts["num_input_tokens"] += sum(len(job.part.ids) for job in jobs)
        if logits is not None:
            self._take(slots, logits)

    def _starts(self, jobs: list[_Job]) -> list[Start]:
        if self.lm.is_encoder_decoder:
            worn = [job.part.prompt for job in jobs]
            return [
                job.start(values=None if prompt is None else self.table.wanted_values(prompt))
                for job, prompt in zip(jobs, worn, strict=True)
            ]
        states = self.table.states({job.part.prompt for job in jobs if job.part.prompt is not None})
        return [job.start(states=None if job.part.prompt is None else states[job.part.prompt]) for job in jobs]

    def _score(self, jobs: list[_Job]) -> None:
        """Score the labels of parts in one pass, and answer them."""
        starts, pad_id = self._starts(jobs), self.lm.tokenizer.pad_id
        x, mask = encoder_inputs(self.lm, starts)
        candidates, real = pad_candidates([job.part.candidates for job in jobs], pad_id, self.lm.device)
        states, member = (
            (None, None) if self.lm.is_encoder_decoder else PromptStates.of_rows([s.states for s in starts])
        )
        scored = self.lm.score(Embedded(x, mask, states, member), candidates, real)
        self._counts["num_input_tokens"] += sum(len(job.part.ids) for job in jobs)
        for job, scores in zip(jobs, scored.tolist(), strict=True):
            if not all(map(math.isfinite, scores)):
                self._fail(job.ticket, _no_numbers(job))
                continue
            labels = job.ticket.request.labels
            best = max(range(len(labels)), key=scores.__getitem__)
            prediction = Prediction(labels[best], scores[best], dict(zip(labels, scores, strict=True)))
            self._answer(job, prediction, labels[best], (), (), "stop")

    def _decode(self) -> None:
        """One token more of every row."""
        self._counts["num_steps"] += 1
        try:
            logits = self._batch.decode()
        except Exception:
            self._decode_one_by_one()
            return
        self._take(self._batch.slots, logits)

    def _decode_one_by_one(self) -> None:
        """After a step that failed: each row alone, so that only those end that it fails for."""
        self._batch.isolate()
        for slot in self._batch.slots:
            job = self._running.get(slot)
            if job is None:
                continue
            try:
                logits = self._batch.decode_alone(slot)
            except Exception as error:
                self._fail(job.ticket, error)
                continue
            self._take([slot], logits)

    def _take(self, slots: Sequence[Slot], logits: Tensor) -> None:
        """Choose the rows' next tokens; what goes wrong with one of them ends its request only."""
        jobs = [self._running[slot] for slot in slots]
        try:
            tokens, log_probs = choose(logits, [job.draw() for job in jobs])
            chosen = zip(slots, jobs, tokens.tolist(), log_probs.tolist(), strict=True)
        except Exception as error:
            if len(slots) == 1:
                self._fail(jobs[0].ticket, error)
                return
            for row, slot in enumerate(slots):
                if slot in self._running:
                    self._take([slot], logits[row : row + 1])
            return
        place = {slot: row for row, slot in enumerate(slots)}
        for slot, job, token, log_prob in chosen:
            if slot not in self._running:  # another part of its request has failed
                continue
            try:
                if job.beams is None:
                    self._take_token(job, slot, token, log_prob)
                elif slot is job.slots[0]:
                    rows = [place[beam] for beam in job.slots]
                    self._take_beams(job, logits[rows].log_softmax(-1))
            except Exception as error:
                self._fail(job.ticket, error)

    def _take_token(self, job: _Job, slot: Slot, token: int, log_prob: float) -> None:
        assert job.writer is not None
        if not math.isfinite(log_prob):
            raise _no_numbers(job)
        slot.token = token
        self._counts["num_output_tokens"] += 1
        self._tell(job, job.writer.take(token, log_prob))

    def _take_beams(self, job: _Job, log_probs: Tensor) -> None:
        assert job.writer is not None and job.beams is not None
        if not math.isfinite(float(log_probs.max())):
            raise _no_numbers(job)
        parents = job.beams.advance(log_probs)
        self._counts["num_output_tokens"] += 1
        if not parents:
            self._tell(job, job.writer.take_all(job.beams.best))
            return
        if len(job.slots) == 1:
            job.slots = self._batch.fan_out(job.slots[0])
            self._running |= dict.fromkeys(job.slots, job)
        else:
            self._batch.reorder(job.slots, parents, job.beams.length - 1)
        for slot, token in zip(job.slots, job.beams.tokens, strict=True):
            slot.token = token

    def _tell(self, job: _Job, text: str) -> None:
        """Pass new text on; with the last of it, the part is answered."""
        writer = job.writer
        assert writer is not None
        job.ticket.tell(Piece(job.index, text))
        if writer.finish_reason is None:
            return
        self._leave(job)
        prediction = Prediction(job.part.answer_of(writer.text), sum(writer.log_probs))
        self._answer(job, prediction, writer.text, writer.ids, writer.log_probs, writer.finish_reason)

    def _answer(
        self,
        job: _Job,
        prediction: Prediction,
        text: str,
        ids: Sequence[int],
        log_probs: Sequence[float],
        finish_reason: str,
    ) -> None:
        ticket = job.ticket
        ticket.parts[job.index] = PartAnswer(
            prediction=prediction,
            text=text,
            ids=tuple(ids),
            log_probs=tuple(log_probs),
            finish_reason=finish_reason,
            prompt=job.part.prompt,
            num_input_tokens=len(job.part.ids),
        )
        parts = tuple(part for part in ticket.parts if part is not None)
        if len(parts) < len(ticket.parts):
            return
        votes = [part.prediction for part in parts]
        elected = votes[0] if len(votes) == 1 else (ticket.request.vote or _majority(ticket.request))(votes)
        now, started = self._clock(), ticket.submitted if ticket.started is None else ticket.started
        self._counts["num_answers"] += 1
        self._note_pace(now, started, len(parts))
        waited, seconds = started - ticket.submitted, now - ticket.submitted
        self._close(ticket, Answer(prediction=elected, parts=parts, seed=ticket.seed, waited=waited, seconds=seconds))

    def _note_pace(self, now: float, started: float, num_parts: int) -> None:
        """Keep the seconds that pass from one part's end to the next, averaged over about the last ten."""
        seconds = (now - max(started, self._last_end)) / num_parts
        self._seconds_per_part += 0.1 * (seconds - self._seconds_per_part)
        self._last_end = now

    def _leave(self, job: _Job) -> None:
        """Take a part's rows out of the running batch."""
        for slot in job.slots:
            if self._running.pop(slot, None) is not None:
                self._batch.drop(slot)
        job.slots = []

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        """End a request with an error, and all work on it."""
        if ticket.is_done:
            return
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.ticket is not ticket)
        for job in {id(job): job for job in self._running.values() if job.ticket is ticket}.values():
            self._leave(job)
        kinds = {Cancelled: "num_cancelled", DeadlineExceeded: "num_deadlines"}
        self._counts[kinds.get(type(error), "num_errors")] += 1
        self._close(ticket, error)

    def _close(self, ticket: Ticket, outcome: Answer | Exception) -> None:
        self.table.unpin(part.prompt for part in ticket.request.parts if part.prompt is not None)
        with self._changed:
            self._in_flight.discard(ticket)
            self._changed.notify_all()
        ticket.end(outcome)


@dataclass
class _Turn:
    """What one turn admits."""

    rows: int
    tokens: int = 0
    jobs: list[_Job] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    worn: set[str] = field(default_factory=set)

    def take(self, job: _Job, start: Start, worn: set[str], tokens: int, rows: int) -> None:
        """One more."""
        self.jobs.append(job)
        self.starts.append(start)
        self.worn = worn
        self.tokens += tokens
        self.rows += rows


def _majority(request: Request) -> Vote:
    """The paper's vote, on texts as they are."""
    task = file_task(inputs="{inputs}", targets="{targets}", labels=request.labels or None, metric="accuracy")
    return partial(vote, task, Example(inputs="", targets="", id="", references=()))


def _seed(decoding: Decoding) -> int:
    return secrets.randbits(32) if decoding.seed is None else decoding.seed


def _no_numbers(job: _Job) -> ValueError:
    worn = "no prompt" if job.part.prompt is None else f"prompt {job.part.prompt[:12]}"
    return ValueError(f"the model gives no finite numbers for this input with {worn}; its values may be too large")


def _half_of_what_is_free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return psutil.virtual_memory().available // 2
