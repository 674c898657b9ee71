"""The queue: parts that wait in the order they came, and the tickets in flight."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from softprompt.answering import Beams, Draw, Slot, Start, Writer, uniforms
from softprompt.serving.request import Answer, Cancelled, DeadlineExceeded, NotServing, Part, QueueFull, Ticket


@dataclass(eq=False)
class Job:
    """One part of a request, waiting or running."""

    ticket: Ticket
    index: int
    """Which of the request's parts it is."""
    start: Start
    """How it begins in the running batch; with label scoring, what it takes meanwhile."""
    writer: Writer
    beams: Beams | None
    num_overtaken: int = 0
    """Parts that went first while memory lacked for it."""
    slots: list[Slot] = field(default_factory=list)
    """Its rows of the running batch, one for each beam."""
    scores: list[float] = field(default_factory=list)
    """log p of its candidates, as far as they are scored."""
    read: list[dict[int, float]] = field(default_factory=list)
    """Its input's tokens with their log p, as `PartAnswer` has them."""
    uniforms: list[float] = field(default_factory=list)
    """What its tokens are drawn with, as far as it has come."""

    @property
    def part(self) -> Part:
        """What is asked."""
        return self.ticket.request.parts[self.index]

    def next_candidates(self, max_tokens: int) -> tuple[tuple[int, ...], ...]:
        """The candidates to score in one pass: of those without a score as many as have so many tokens when each is as
        long as the longest, one at least.
        """
        chosen, longest = self.part.candidates[len(self.scores) :], 0
        for count, candidate in enumerate(chosen):
            longest = max(longest, len(candidate))
            if count and longest * (count + 1) > max_tokens:
                return chosen[:count]
        return chosen

    def draw(self) -> Draw | None:
        """What its next token is drawn with; None for the most probable."""
        if self.ticket.seed is None:
            return None
        decoding, place = self.writer.decoding, len(self.writer.log_probs)
        if place >= len(self.uniforms):
            self.uniforms = uniforms(self.ticket.seed, self.index, 2 * place + 16)
        return Draw(decoding.temperature, decoding.top_p, self.uniforms[place])


class Queue:
    """What was submitted and is not done. Any thread may call any method; none does more than move references.

    max_waiting: parts that wait at most.
    """

    def __init__(self, max_waiting: int):
        self.max_waiting = max_waiting
        self.changed = threading.Condition()
        """Held to read or change what is here; notified of every change."""
        self.waiting: dict[Job, None] = {}
        """The parts that wait, the first in front; a dictionary, because any of them may leave."""
        self.in_flight: dict[Ticket, list[Job]] = {}
        self.is_draining = self.is_closed = False
        self.seconds_per_part = 0.0
        """From one part's end to the next, averaged over about the last ten."""
        self._last_end = 0.0

    def put(self, jobs: Mapping[Ticket, list[Job]]) -> None:
        """Let all of these wait, or none. Raises NotServing while draining, and QueueFull."""
        with self.changed:
            if self.is_draining:
                raise NotServing("the engine is being stopped and takes no more requests")
            num_waiting = len(self.waiting)
            if num_waiting + sum(map(len, jobs.values())) > self.max_waiting:
                retry_after = max(1.0, num_waiting * self.seconds_per_part)
                raise QueueFull(f"the queue is full ({num_waiting} of {self.max_waiting}); try later", retry_after)
            self.in_flight.update(jobs)
            for parts in jobs.values():
                self.waiting.update(dict.fromkeys(parts))
            self.changed.notify_all()

    def wait_again(self, job: Job) -> None:
        """Put a part that has had its turn, and is not done, behind all others."""
        with self.changed:
            if job.ticket in self.in_flight:
                self.waiting[job] = None

    def stop_waiting(self, ticket: Ticket) -> None:
        """Take out the parts of a ticket that wait, since nobody waits for them; it stays in flight."""
        with self.changed:
            for job in self.in_flight.get(ticket, ()):
                self.waiting.pop(job, None)
            self.changed.notify_all()

    def given_up(self, now: float) -> list[tuple[Ticket, Exception]]:
        """The tickets that were cancelled or whose time is over, and what they end with."""
        ended: list[tuple[Ticket, Exception]] = []
        for ticket in list(self.in_flight):
            timeout = ticket.request.timeout
            if ticket.is_cancelled:
                ended.append((ticket, Cancelled("the request was cancelled")))
            elif timeout is not None and now - ticket.submitted >= timeout:
                ended.append((ticket, DeadlineExceeded(f"no answer within {timeout} seconds")))
        return ended

    def end(self, ticket: Ticket, outcome: Answer | Exception) -> None:
        """Take a ticket out and tell whoever holds it."""
        with self.changed:
            self.stop_waiting(ticket)
            self.in_flight.pop(ticket, None)
        ticket.end(outcome)

    def note_pace(self, now: float, started: float, num_parts: int) -> None:
        """Note that so many parts, the first of which started then, have their answers."""
        seconds = (now - max(started, self._last_end)) / num_parts
        self.seconds_per_part += 0.1 * (seconds - self.seconds_per_part)
        self._last_end = now
