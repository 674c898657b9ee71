"""The serving engine: requests from any thread, one frozen model, one running batch that they join and leave.

    engine = Scheduler(lm, max_memory=4 << 30)
    prompt = engine.table.add("runs/sst2")
    engine.start()
    ticket = engine.submit(Request(parts=(Part(ids=ids, prompt=prompt),), decoding=Decoding(max_tokens=20)))
    ticket.result().prediction.text

A request is one or more parts, each one input and the prompt it wears; several parts are an ensemble. It asks for
text (greedy, beams or sampling) or for the log-probabilities of given candidates. What a request gets does not
depend on what it is batched with.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import psutil
import torch

from softprompt.answering import Beams, TextStream, Writer, batch_invariant_rows
from softprompt.base.names import first_line
from softprompt.models import FrozenLM
from softprompt.serving.admission import Admission, Room, check, start_of
from softprompt.serving.prompt_table import PromptTable
from softprompt.serving.queue import Job, Queue
from softprompt.serving.request import Listener, NotServing, Request, Stats, Ticket
from softprompt.serving.stepping import Stepper


class Scheduler:
    """One frozen model, its prompt table, the queue and the running batch.

    max_memory: bytes that prompts in memory, their keys and values, and the running batch's cache may take together;
    None: half of what the machine has free. max_waiting: parts in the queue at most. max_rows: rows of the running
    batch at most. max_prefill_tokens: input tokens read between two decoding steps at most (one input is always
    allowed), so that those who are writing do not wait long for those who come; None: what one pass takes. Where more
    wait than write, up to `MAX_READS` times as many. is_batch_invariant: what a request gets is the same bits whatever
    it is batched with, as long as threads and processor are the same; slower.
    """

    def __init__(
        self,
        lm: FrozenLM,
        *,
        max_memory: int | None = None,
        max_waiting: int = 1_024,
        max_rows: int = 256,
        max_prefill_tokens: int | None = None,
        is_batch_invariant: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        if max_memory is None:
            is_cuda = lm.device.type == "cuda"
            free = torch.cuda.mem_get_info(lm.device)[0] if is_cuda else psutil.virtual_memory().available
            max_memory = free // 2
        self.lm, self.max_memory, self.is_batch_invariant = lm, max_memory, is_batch_invariant
        self.table = PromptTable(lm, max_bytes=max_memory, runs_singly=is_batch_invariant)
        self.queue = Queue(max_waiting)
        rows_at_once = batch_invariant_rows(lm) if is_batch_invariant else None
        self.stepper = Stepper(self.table, self.queue, clock, max_bytes=max_memory, rows_at_once=rows_at_once)
        self._room = Room(
            max_memory=max_memory,
            max_rows=max_rows,
            max_prefill_tokens=max_prefill_tokens or self.stepper.max_pass_tokens,
            max_label_tokens=self.stepper.max_label_tokens,
        )
        self.lost: str | None = None
        """Why the device computes nothing any more, so that the thread has ended; None while it does."""
        self.when_lost: Callable[[], object] = lambda: None
        """Called then."""
        self._clock = clock
        self._stepping = threading.Lock()
        self._thread: threading.Thread | None = None

    def submit(self, request: Request, listener: Listener | None = None, *, stream: bool = False) -> Ticket:
        """Put a request into the queue; any thread may.

        Its prompts are pinned from here to its end: replacing or removing one changes nothing for it. Raises
        ValueError for what can never be answered (an unknown prompt or id, an empty input or candidate, too long for
        the model or for max_memory), QueueFull, and NotServing while draining.
        """
        return self.submit_all([(request, listener)], stream=stream)[0]

    def submit_all(
        self, asked: Sequence[tuple[Request, Listener | None]], *, stream: bool = False, are_worn: bool = False
    ) -> list[Ticket]:
        """Put these requests into the queue, or none of them; raises as `submit` does.

        are_worn: the caller has pinned their prompts, so that it is no matter whether one was removed meanwhile.
        """
        num_parts = sum(len(request.parts) for request, _ in asked)
        if num_parts > self.queue.max_waiting:
            raise ValueError(f"{num_parts} parts at once, but the queue takes {self.queue.max_waiting}; give fewer")
        jobs: dict[Ticket, list[Job]] = {}
        pinned: list[str] = []
        try:
            for request, listener in asked:
                check(request, self.lm)
                self.table.pin(request.prompts, is_worn=are_worn)
                pinned += request.prompts
                starts = [start_of(request, part, self.table, self._room) for part in request.parts]
                now = self._clock()
                ticket = Ticket(request, listener, self.queue.stop_waiting, streams=stream, submitted=now)
                jobs[ticket] = [
                    Job(ticket, index, start, *self._writing(request, streams=stream))
                    for index, start in enumerate(starts)
                ]
            self.queue.put(jobs)
        except BaseException:
            self.table.unpin(pinned)
            raise
        return list(jobs)

    def start(self) -> None:
        """Run in a thread of its own."""
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._run, name="softprompt-engine", daemon=True)
        self._thread.start()

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests, finish those there are, stop the thread. False if some were cut off by `timeout`
        (seconds); these end with NotServing.
        """
        queue, left = self.queue, timeout
        until = None if timeout is None else self._clock() + timeout
        with queue.changed:
            queue.is_draining = True
        while queue.in_flight and (left is None or left > 0):
            if self._thread is None:  # the work is done here
                self.step()
            else:
                with queue.changed:
                    queue.changed.wait_for(lambda: not queue.in_flight, timeout=left)
            left = None if until is None else until - self._clock()
        with queue.changed:
            queue.is_closed = True
            queue.changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._stepping:
            cut_off = list(queue.in_flight)
            for ticket in cut_off:
                self.stepper.fail(ticket, NotServing("the engine was stopped before this request was done"))
        return not cut_off

    def stats(self) -> Stats:
        """Counts and sizes now; any thread may ask."""
        table, batch = self.table, self.stepper.batch
        running = list(self.stepper.running.values())
        return Stats(
            **self.stepper.counts,
            num_waiting=len(self.queue.waiting),
            num_running=len(set(running)),
            num_rows=len(running),
            num_prompts_run=table.counts.num_run,
            num_states_reused=table.counts.num_reused,
            num_prompts_loaded=table.counts.num_loaded,
            values_bytes=table.values_bytes,
            states_bytes=table.states_bytes,
            cache_bytes=batch.num_bytes,
            promised_bytes=batch.projection().num_bytes,
            max_memory=self.max_memory,
        )

    @torch.no_grad()
    def step(self) -> bool:
        """One turn by hand, for tests and for callers without a thread: drop what was given up, admit, read inputs,
        decode one token of every row. False if there was nothing to do.
        """
        with self._stepping:
            for ticket, error in self.queue.given_up(self._clock()):
                self.stepper.give_up(ticket, error)
            admitted = self._admit()
            self.stepper.read(admitted)
            had_rows = bool(self.stepper.running)
            self.stepper.decode()
            return bool(admitted.jobs) or had_rows

    def _admit(self) -> Admission:
        """Let in the waiting parts whose turn it is."""
        admitted = Admission(self.stepper.batch, self.table, self._room)
        waiting = list(self.queue.waiting)
        admitted.choose(waiting)
        now = self._clock()
        with self.queue.changed:
            for job in admitted.jobs:
                self.queue.waiting.pop(job, None)
                if job.ticket.started is None:
                    job.ticket.started = now
        if waiting and not (admitted.jobs or self.stepper.running):  # nothing will be given back that could make room
            held = self.table.fixed_bytes()
            error = ValueError(f"max_memory has no room for it beside {held:,} bytes of prompts")
            self.stepper.fail(waiting[0].ticket, error)
        return admitted

    def _writing(self, request: Request, *, streams: bool) -> tuple[Writer, Beams | None]:
        """What takes the tokens of one of a request's parts."""
        decoding, tokenizer = request.decoding, self.lm.tokenizer
        stream = TextStream(tokenizer, decoding.stop) if streams or decoding.stop else None
        beams = Beams(decoding, tokenizer.end_ids) if decoding.num_beams > 1 else None
        return Writer(tokenizer, decoding, stream), beams

    def _run(self) -> None:
        queue = self.queue
        while True:
            with queue.changed:
                queue.changed.wait_for(lambda: queue.in_flight or queue.is_closed)
                if queue.is_closed:
                    return
            num_errors = self.stepper.counts["num_errors"]
            try:
                is_busy = self.step()
            except Exception as error:
                is_busy = True
                with self._stepping:
                    self.stepper.start_over(error)
            if self.stepper.counts["num_errors"] > num_errors:
                self.lost = why_lost(self.lm.device)
            if self.lost is not None:
                with queue.changed:
                    queue.is_draining = True
                with self._stepping:
                    self.stepper.start_over(NotServing(self.lost))
                self.when_lost()
                return
            if not is_busy:
                with queue.changed:
                    queue.changed.wait(timeout=0.01)


def why_lost(device: torch.device) -> str | None:
    """Why a GPU computes nothing any more in this process, as after an assertion that failed on it; None if it does."""
    if device.type != "cuda":
        return None
    try:
        torch.ones(1, device=device).item()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        return (
            f"{device} computes nothing any more in this process ({first_line(error)}); start it again, with "
            "CUDA_LAUNCH_BLOCKING=1 to learn where it failed"
        )
    return None
