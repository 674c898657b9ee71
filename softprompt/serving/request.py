"""What a serving engine is asked, and what it answers."""

from __future__ import annotations

import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from softprompt.answering import Decoding, Prediction

Vote = Callable[[Sequence[Prediction]], Prediction]
Meter = Callable[[int, int], None]
"""Called in the engine's thread with the input tokens just read and the tokens just written; it must return at once."""


class QueueFull(RuntimeError):
    """As many requests wait as may; try again after `retry_after` seconds (an estimate from the last ones)."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = retry_after


class NotServing(RuntimeError):
    """The engine is draining or closed and takes no request."""


class Cancelled(RuntimeError):
    """The request was cancelled before it was done."""


class DeadlineExceeded(RuntimeError):
    """The request was not done in the time it gave."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One input and the prompt it wears."""

    ids: tuple[int, ...]
    """The input, as `softprompt.models.text.encode_inputs` makes it for this prompt's text format."""
    prompt: str | None = None
    """The hash (`SoftPrompt.identity`) of the prompt it wears; None for the bare model."""
    candidates: tuple[tuple[int, ...], ...] = ()
    """For label scoring: the ids of each candidate as `encode_target` makes them, in the order of the request's
    labels."""
    answer_of: Callable[[str], str] = str.strip
    """Makes the part's prediction of its text: `lambda text: form.answer_of(text.strip())` for a prompt with
    sentinels."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked: text, unless `labels` are given to score."""

    parts: tuple[Part, ...]
    """One for each prompt that answers; more than one is an ensemble, whose answer is voted."""
    decoding: Decoding = field(default_factory=Decoding)
    """How text is chosen; part i of a sampled ensemble draws from (seed, i)."""
    labels: tuple[str, ...] = ()
    """The candidates' texts, for label scoring; each part has their ids."""
    num_alternatives: int = 0
    """How many of the most probable tokens to tell beside each one that was chosen; not with beams."""
    echo: bool = False
    """Whether the input's own tokens are scored too, with as many alternatives (decoder-only models)."""
    vote: Vote | None = None
    """The ensemble's rule: `partial(evaluation.vote, task, example)`; None: the majority of equal texts, ties to
    the higher summed log-probability."""
    timeout: float | None = None
    """Seconds from submission until the request is given up, or ends with the text that one part without beams has."""
    meter: Meter | None = None
    """Is told of tokens as they are read and written, whether the request comes to its end or not."""

    @property
    def prompts(self) -> list[str]:
        """The prompts that its parts wear."""
        return [part.prompt for part in self.parts if part.prompt is not None]


@dataclass(frozen=True)
class Piece:
    """Text that is final: the pieces of a part joined are its text."""

    part: int
    text: str


@dataclass(frozen=True, kw_only=True)
class PartAnswer:
    """What one part got."""

    prediction: Prediction
    """Its answer, as votes count it; with label scoring, the best label and all scores."""
    text: str
    """The generated text as it is, cut at a stop string; the best label with label scoring."""
    ids: tuple[int, ...]
    """The tokens generated, without the end of sequence; with a stop string, to the token that completed it."""
    log_probs: tuple[float, ...]
    """log p of each token chosen, at temperature 1; one more than `ids` where the end of sequence came."""
    alternatives: tuple[dict[int, float], ...] = ()
    """For each of `log_probs` the log p of the most probable tokens and of the chosen one, where they were wanted."""
    read: tuple[dict[int, float], ...] = ()
    """The same for the input's tokens from the second on, with `echo`."""
    end: int | None = None
    """The end of sequence that came."""
    finish_reason: str
    """stop (end of sequence or stop string; with label scoring) or length (`max_tokens`, or no more time)."""
    prompt: str | None
    """The hash of the prompt it wore."""
    num_input_tokens: int = 0
    """Tokens of the input, without the prompt."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request got."""

    prediction: Prediction
    """The answer: the only part's, or the vote."""
    parts: tuple[PartAnswer, ...]
    """In the order asked."""
    seed: int | None
    """The seed that was drawn from, also where none was given; None unless sampled."""
    waited: float
    """Seconds in the queue."""
    seconds: float
    """Seconds from submission to the end."""


Listener = Callable[["Piece | Answer | Exception"], None]
"""Called in the engine's thread with every Piece (if `submit` was told to stream) and last with the Answer or the
exception. It must return at once: `lambda event: loop.call_soon_threadsafe(queue.put_nowait, event)`."""


class Ticket:
    """A submitted request."""

    def __init__(
        self,
        request: Request,
        listener: Listener | None,
        on_cancel: Callable[[Ticket], None],
        *,
        streams: bool,
        submitted: float,
    ):
        self.request = request
        self.is_cancelled = False
        self.streams = streams
        self.submitted = submitted
        self.started: float | None = None
        """When its first part left the queue."""
        self.parts: list[PartAnswer | None] = [None] * len(request.parts)
        self.seed: int | None = None
        """What its tokens are drawn from; None unless they are."""
        if request.decoding.is_sampled and not request.labels:
            self.seed = secrets.randbits(32) if request.decoding.seed is None else request.decoding.seed
        self._listener = listener
        self._on_cancel = on_cancel
        self._events: queue.SimpleQueue[Piece | Answer | Exception] = queue.SimpleQueue()
        self._outcome: Answer | Exception | None = None
        self._done = threading.Event()

    def cancel(self) -> None:
        """Give the request up; work on it stops at the next token. It ends with `Cancelled`. Any thread may call."""
        self.is_cancelled = True
        self._on_cancel(self)

    @property
    def is_done(self) -> bool:
        """Whether it has an answer or an error."""
        return self._done.is_set()

    def result(self, timeout: float | None = None) -> Answer:
        """The answer, waited for. Raises what the request ended with; TimeoutError after `timeout` seconds."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"no answer after {timeout} seconds; it is still being worked on")
        assert self._outcome is not None
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def pieces(self, timeout: float | None = None) -> Iterator[Piece]:
        """The pieces as they come, of a request submitted to stream without a listener; raises as `result` does.

        timeout: seconds to wait for each.
        """
        while True:
            try:
                event = self._events.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"no text for {timeout} seconds; it is still being worked on") from None
            if isinstance(event, Exception):
                raise event
            if isinstance(event, Answer):
                return
            yield event

    def tell(self, event: Piece | Answer | Exception) -> None:
        """Hand an event on. A listener that fails has nobody behind it: its request is cancelled."""
        if isinstance(event, Piece) and not (self.streams and event.text):
            return
        try:
            (self._listener or self._events.put)(event)
        except Exception:
            self.cancel()

    def end(self, outcome: Answer | Exception) -> None:
        """The answer or the error, once."""
        self._outcome = outcome
        self.tell(outcome)
        self._done.set()


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Counts since the start, and what is in flight."""

    num_waiting: int
    """Parts in the queue."""
    num_running: int
    """Parts in the running batch."""
    num_rows: int
    """Rows of the running batch: a part with beams has one for each."""
    num_steps: int = 0
    """Decoding steps of the batch."""
    num_input_tokens: int = 0
    """Tokens read: of inputs and of labels, not of prompts."""
    num_output_tokens: int = 0
    """Tokens generated."""
    num_answers: int = 0
    """Requests answered."""
    num_errors: int = 0
    """Requests that ended with an error other than a cancellation or a deadline."""
    num_cancelled: int = 0
    num_deadlines: int = 0
    num_prompts_run: int
    """Prompts run through the model because their keys and values were not there (decoder-only)."""
    num_states_reused: int
    """Parts that found their prompt's keys and values there."""
    num_prompts_loaded: int
    """Prompts read from their folder again."""
    values_bytes: int
    """Prompts' values in memory."""
    states_bytes: int
    """Prompts' keys and values in memory."""
    cache_bytes: int
    """The running batch's key-value cache (and encoder states)."""
    promised_bytes: int
    """What that may grow to before the answers in it are done; prompts give way to it."""
    max_memory: int
    """What prompts, their keys and values, and the running batch may take together."""
