"""The endpoints that ask the model: completions, chat and labels, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from softprompt.answering import Decoding, mean_probabilities
from softprompt.serving import Answer, Cancelled, PartAnswer, Piece, Ticket
from softprompt.serving import Request as Asked
from softprompt.serving.http import api
from softprompt.serving.http.access import Key
from softprompt.serving.http.asking import Question, Worn, shown
from softprompt.serving.http.errors import error_of
from softprompt.serving.http.state import Server
from softprompt.serving.http.wire import REQUEST_ID, Limits

BARE_MAX_TOKENS = 64  # ours: what the bare model writes unless told otherwise
log = logging.getLogger("softprompt.serving.http")


def add_questions(app: FastAPI, server: Server) -> None:
    """Let the application answer questions."""
    use: Any = server.guard("use")

    @app.post("/v1/completions", response_model=api.Completion, tags=["ask"])
    async def complete(body: api.CompletionRequest, request: Request, key: Key = use) -> Any:
        """Text for each input. OpenAI's endpoint: `model` is a prompt's name, `prompt` is its finished input."""
        items = items_of(body.prompt, body.fields, "prompt", server.limits)
        call = Call(server, request, key, body)
        return await _written(
            _CompletionShape(call, body),
            lambda prompts: server.asker.questions(server.asker.worn(prompts), items),
            body.max_tokens,
        )

    @app.post("/v1/chat/completions", response_model=api.ChatCompletion, tags=["ask"])
    async def chat(body: api.ChatRequest, request: Request, key: Key = use) -> Any:
        """OpenAI's endpoint: one message of the user's is a prompt's input; the bare model takes a conversation."""
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        longest = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        call = Call(server, request, key, body)
        return await _written(
            _ChatShape(call, body),
            lambda prompts: [server.asker.turns(server.asker.worn(prompts), messages)],
            longest,
        )

    @app.post("/v1/classify", response_model=api.Classification, tags=["ask"])
    async def classify(body: api.ClassifyRequest, request: Request, key: Key = use) -> Any:
        """The label of each input, with probabilities; an ensemble's votes too."""
        items = items_of(body.input, body.fields, "input", server.limits)
        if body.labels and len(set(body.labels)) < len(body.labels):
            raise ValueError("labels repeat; give different ones")
        call = Call(server, request, key, body)
        await call.submit(
            lambda prompts: server.asker.questions(server.asker.worn(prompts, is_text=False), items),
            lambda question, _: server.asker.classification(question, body.labels, call.timeout),
        )
        answers = await call.answers()
        several = inputs_of_several(call.questions)
        pairs = zip(call.questions, answers, strict=True)
        return api.Classification(
            id=call.id,
            created=int(time.time()),
            model=body.model,
            results=[result_of(i, question, answer, several) for i, (question, answer) in enumerate(pairs)],
            usage=usage_of(answers),
        )


async def _written(shape: _Shape, ask: Any, longest: int | None) -> Any:
    """Text in OpenAI's form, whole or as a stream. ask, longest: as `Call.submit` and `longest_of` take them."""
    call, body = shape.call, shape.body
    await call.submit(
        ask,
        lambda q, choice: call.server.asker.completion(
            q, decoding_of(body, longest_of(q.worn, longest), choice), call.timeout
        ),
        count=body.n,
        stream=bool(body.stream),
    )
    if body.stream:
        return StreamingResponse(shape.stream(), media_type="text/event-stream")
    return shape.whole(await call.answers())


class Call:
    """One request on its way: whose it is, what it asks, and the engine's tickets."""

    def __init__(self, server: Server, request: Request, key: Key, asked: api._Asked):
        self.server, self.request, self.key, self.asked = server, request, key, asked
        self.id: str = request.scope[REQUEST_ID]
        self.events: asyncio.Queue[tuple[int, Piece | Answer | Exception]] = asyncio.Queue()
        self.tickets: list[Ticket] = []
        self.questions: list[Question] = []
        limit = server.limits.timeout
        self.timeout = limit if asked.timeout is None else min(asked.timeout, limit)

    async def submit(self, ask: Any, make: Any, *, count: int = 1, stream: bool = False) -> None:
        """Resolve the name, make the questions and the engine's requests, and hand them over.

        ask: worn prompts to questions; make: a question and which of its `count` answers, to an engine request.
        """
        server = self.server
        point = random.Random(self.asked.user if self.asked.user is not None else self.id).random()
        with server.registry.hold(self.asked.model, point) as held:
            self.request.scope["prompt"] = held.name
            telemetry = server.telemetry
            self._tokens_read = telemetry.input_tokens.labels(held.name)
            self._tokens_written = telemetry.output_tokens.labels(held.name)
            self._waited = telemetry.queue_seconds.labels(held.name)
            self.questions, made = await run_sync(partial(self._prepare, held.prompts, ask, make, count))
            loop = asyncio.get_running_loop()
            asked = [
                (replace(request, meter=self.meter), partial(_hand_over, loop, self.events, index))
                for index, request in enumerate(made)
            ]
            self.tickets = server.engine.submit_all(asked, stream=stream)

    def _prepare(
        self, prompts: Sequence[str | None], ask: Any, make: Any, count: int
    ) -> tuple[list[Question], list[Asked]]:
        questions = ask(prompts)
        return questions, [make(question, choice) for question in questions for choice in range(count)]

    async def answers(self) -> list[Answer]:
        """All answers, in order; if one fails, or the client goes, the others are given up."""
        found: list[Answer | None] = [None] * len(self.tickets)
        gone = asyncio.create_task(_gone(self.request))
        try:
            while None in found:
                event = asyncio.ensure_future(self.events.get())
                await asyncio.wait({event, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not event.done():
                    event.cancel()
                    raise Cancelled("the client has gone")
                index, outcome = event.result()
                if isinstance(outcome, Exception):
                    raise outcome
                if isinstance(outcome, Answer):
                    found[index] = outcome
                    self._waited.observe(outcome.waited)
        finally:
            gone.cancel()
            self.cancel()
        return [answer for answer in found if answer is not None]

    def meter(self, num_read: int, num_written: int) -> None:
        """Count tokens for the key and the prompt when the engine has read or written them."""
        self._tokens_read.inc(num_read)
        self._tokens_written.inc(num_written)
        self.server.access.charge(self.key, num_read + num_written)

    def cancel(self) -> None:
        """Stop work on whatever is not done."""
        for ticket in self.tickets:
            if not ticket.is_done:
                ticket.cancel()


def _hand_over(loop: asyncio.AbstractEventLoop, events: asyncio.Queue[Any], index: int, event: Any) -> None:
    loop.call_soon_threadsafe(events.put_nowait, (index, event))


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def num_read(answer: Answer) -> int:
    """Input tokens of all parts."""
    return sum(part.num_input_tokens for part in answer.parts)


def num_written(answer: Answer) -> int:
    """Tokens generated by all parts, ends of sequence included."""
    return sum(len(part.log_probs) for part in answer.parts)


def usage_of(answers: Sequence[Answer]) -> api.Usage:
    """Tokens read and written."""
    read, written = sum(map(num_read, answers)), sum(map(num_written, answers))
    return api.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def told(question: Question, answer: Answer, several: set[int]) -> dict[str, Any]:
    """What every answer says of its input."""
    alone = len(answer.parts) == 1
    return {
        "input_tokens": question.num_input_tokens,
        "truncated": question.was_cut,
        "prompt_hash": answer.parts[0].prompt if alone else None,
        "input": question.item,
        "example": question.example.id if question.item in several else None,
        "seed": answer.seed,
    }


def inputs_of_several(questions: Sequence[Question]) -> set[int]:
    """The inputs that are several examples each."""
    counts = Counter(question.item for question in questions)
    return {item for item, count in counts.items() if count > 1}


def text_of(question: Question, answer: Answer) -> str:
    """The answer's text: the only prompt's as it wrote it, or the vote's."""
    alone = len(answer.parts) == 1
    return shown(question.worn[0].form, answer.parts[0].text) if alone else answer.prediction.text


def members_of(answer: Answer) -> list[api.Member] | None:
    """What the prompts of an ensemble wrote."""
    if len(answer.parts) == 1:
        return None
    return [
        api.Member(prompt_hash=part.prompt, text=part.prediction.text, log_prob=part.prediction.log_prob)
        for part in answer.parts
    ]


def result_of(index: int, question: Question, answer: Answer, several: set[int]) -> api.ClassifyResult:
    """A label with its probabilities."""
    votes = [
        api.Vote(
            prompt_hash=part.prompt,
            label=part.prediction.text,
            probabilities=part.prediction.probabilities() or {},
        )
        for part in answer.parts
    ]
    return api.ClassifyResult(
        index=index,
        label=answer.prediction.text,
        probabilities=mean_probabilities([part.prediction for part in answer.parts]),
        log_probs=answer.prediction.scores if len(votes) == 1 else None,
        votes=votes if len(votes) > 1 else None,
        **told(question, answer, several),
    )


def log_probs_of(tokenizer: Any, part: PartAnswer) -> api.LogProbs:
    """The chosen tokens' log-probabilities; the end of sequence is the last where there is one more."""
    tokens = [tokenizer.piece(id) for id in part.ids]
    tokens += ["</s>"] * (len(part.log_probs) - len(tokens))
    offsets, place = [], 0
    for token in tokens:
        offsets.append(place)
        place += len(token)
    return api.LogProbs(tokens=tokens, token_logprobs=list(part.log_probs), text_offset=offsets)


def items_of(texts: str | list[str] | None, records: Any, name: str, limits: Limits) -> list[Any]:
    """The inputs of a request: finished texts or records. ValueError unless exactly one kind is given."""
    if (texts is None) == (records is None):
        raise ValueError(f"give either {name} (finished text) or fields (a record of the prompt's task)")
    given = texts if texts is not None else records
    items = given if isinstance(given, list) else [given]
    if len(items) > limits.max_inputs:
        raise ValueError(f"{len(items)} inputs, but a request takes {limits.max_inputs}; send more requests")
    for number, item in enumerate(items):
        _check_unicode(item, f"input {number}")
    return items


def _check_unicode(value: Any, where: str) -> None:
    """ValueError for half of a surrogate pair, which is no text."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise ValueError(f"{where} is no text: {type(error).__name__}") from None


def decoding_of(body: Any, max_tokens: int, choice: int) -> Decoding:
    """How answer number `choice` of an input is written. ValueError for settings that do not go together."""
    if body.n > 1 and body.temperature == 0:
        raise ValueError(f"n is {body.n} with temperature 0, which gives {body.n} equal answers; give a temperature")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Decoding(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=None if body.seed is None else (body.seed + choice) % 2**63,
        num_beams=body.num_beams,
        length_penalty=body.length_penalty,
        stop=stop,
    )


def longest_of(worn: Sequence[Worn], wanted: int | None) -> int:
    """Tokens to write at most: as asked, or the longest target of the prompts' training."""
    if wanted is not None:
        return wanted
    if worn[0].sha256 is None:
        return BARE_MAX_TOKENS
    return max(one.form.max_target_length for one in worn)


class _Shape:
    """OpenAI's form of generated text, whole or in pieces."""

    def __init__(self, call: Call, body: Any):
        self.call, self.body = call, body
        self.created = int(time.time())

    def whole(self, answers: Sequence[Answer]) -> BaseModel:
        """The finished answer."""
        several = inputs_of_several(self.call.questions)
        choices = [
            self.choice(index, self.question(index), answer, told(self.question(index), answer, several))
            for index, answer in enumerate(answers)
        ]
        return self.answer(
            id=self.call.id, created=self.created, model=self.body.model, choices=choices, usage=usage_of(answers)
        )

    async def stream(self) -> AsyncIterator[str]:
        """Server-sent events: pieces as they are written, each choice's end, the usage if asked for, and [DONE]."""
        call, left, answers = self.call, len(self.call.tickets), []
        begun, several = [False] * left, inputs_of_several(call.questions)
        try:
            for index in range(left):
                if opening := self.opening(index):
                    yield self.event([opening])
            while left:
                index, outcome = await call.events.get()
                if isinstance(outcome, Exception):
                    yield self.failure(outcome)
                    return
                question = self.question(index)
                if isinstance(outcome, Piece):
                    if self.in_one_piece(question):
                        continue
                    text = outcome.text
                    if question.worn[0].form.leading_space and not begun[index]:
                        text = text.lstrip()
                    if text:
                        begun[index] = True
                        yield self.event([self.piece(index, text)])
                    continue
                left -= 1
                answers.append(outcome)
                call._waited.observe(outcome.waited)
                if self.in_one_piece(question) and (text := text_of(question, outcome)):
                    yield self.event([self.piece(index, text)])
                yield self.event([self.closing(index, outcome) | told(question, outcome, several)])
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield self.event([], usage_of(answers))
            yield "data: [DONE]\n\n"
        finally:
            call.cancel()

    def question(self, index: int) -> Question:
        """The question that choice `index` answers."""
        return self.call.questions[index // self.body.n]

    def in_one_piece(self, question: Question) -> bool:
        """Whether its text is known at its end only: a vote, or an answer with a sentinel to strip."""
        return len(question.worn) != 1 or question.worn[0].form.sentinel != "none"

    def event(self, choices: list[dict[str, Any]], usage: api.Usage | None = None) -> str:
        """One server-sent event."""
        content = {
            "id": self.call.id,
            "object": self.chunk,
            "created": self.created,
            "model": self.body.model,
            "choices": choices,
            "usage": usage.model_dump() if usage else None,
        }
        return f"data: {json.dumps(content)}\n\n"

    def failure(self, error: Exception) -> str:
        """An error after the answer has begun."""
        status, body = error_of(error, self.call.id)
        log.warning("%s: %s after the stream began: %s", self.call.id, status, body.message)
        return f"data: {json.dumps({'error': body.model_dump()})}\n\n"

    answer: type[BaseModel]
    """What a whole answer is."""
    chunk: str
    """What a piece of it is called."""

    def choice(self, index: int, question: Question, answer: Answer, about: dict[str, Any]) -> BaseModel:
        """One finished choice."""
        raise NotImplementedError

    def opening(self, index: int) -> dict[str, Any] | None:
        """What comes before a choice's text."""
        return None

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """A choice's new text."""
        raise NotImplementedError

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        """A choice's end."""
        raise NotImplementedError


class _CompletionShape(_Shape):
    answer = api.Completion
    chunk = "text_completion"

    def choice(self, index: int, question: Question, answer: Answer, about: dict[str, Any]) -> BaseModel:
        alone = self.body.logprobs is not None and len(answer.parts) == 1
        tokenizer = self.call.server.engine.lm.tokenizer
        return api.CompletionChoice(
            index=index,
            text=text_of(question, answer),
            finish_reason=answer.parts[0].finish_reason,  # type: ignore[arg-type]
            logprobs=log_probs_of(tokenizer, answer.parts[0]) if alone else None,
            members=members_of(answer),
            **about,
        )

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": None, "logprobs": None}

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        reason = answer.parts[0].finish_reason
        return {"index": index, "text": "", "finish_reason": reason, "logprobs": None}


class _ChatShape(_Shape):
    answer = api.ChatCompletion
    chunk = "chat.completion.chunk"

    def choice(self, index: int, question: Question, answer: Answer, about: dict[str, Any]) -> BaseModel:
        return api.ChatChoice(
            index=index,
            message=api.AssistantMessage(content=text_of(question, answer)),
            finish_reason=answer.parts[0].finish_reason,  # type: ignore[arg-type]
            members=members_of(answer),
            **about,
        )

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._delta(index, {"content": text})

    def closing(self, index: int, answer: Answer) -> dict[str, Any]:
        return self._delta(index, {}) | {"finish_reason": answer.parts[0].finish_reason}

    def _delta(self, index: int, delta: dict[str, str]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}
