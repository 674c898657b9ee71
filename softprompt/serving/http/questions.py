"""The endpoints that ask the model: completions, chat and labels, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from softprompt.answering import Decoding, mean_probabilities
from softprompt.models import Tokenizer, read_text
from softprompt.serving import Answer, Cancelled, PartAnswer, Piece, Ticket
from softprompt.serving import Request as Asked
from softprompt.serving.http import api
from softprompt.serving.http.access import Key
from softprompt.serving.http.asking import Question, Worn, shown
from softprompt.serving.http.errors import error_of
from softprompt.serving.http.logprobs import columns, entries, tokens_of
from softprompt.serving.http.state import Server
from softprompt.serving.http.wire import REQUEST_ID
from softprompt.tasks import check_finite

log = logging.getLogger("softprompt.serving.http")


def add_questions(app: FastAPI, server: Server) -> None:
    """Let the application answer questions."""
    use: Any = server.guard("use")
    asker = server.asker

    @app.post("/v1/completions", response_model=api.Completion, tags=["ask"])
    async def complete(body: api.CompletionRequest, request: Request, key: Key = use) -> Any:
        """Text for each input. OpenAI's endpoint: `model` is a prompt's name, `prompt` fills its template."""
        items = items_of(body, body.prompt, "prompt", server.limits.max_inputs)
        call = Call(server, request, key, body)
        ask = partial(asker.questions, items=items, finished=body.finished)
        if body.echo and body.prompt is None:
            raise ValueError("echo takes an input as it stands; give prompt, not fields")
        if body.echo or isinstance(items[0], list):
            ask = partial(asker.as_they_stand, items=items)
        return await written(call, body, ask, body.max_tokens)

    @app.post("/v1/chat/completions", response_model=api.ChatCompletion, tags=["ask"])
    async def chat(body: api.ChatRequest, request: Request, key: Key = use) -> Any:
        """OpenAI's endpoint: a user's message fills a prompt's template; the bare model takes a conversation."""
        messages = []
        for message in body.messages:  # developer is the newer word for system, which chat templates know
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": message.text})
        call = Call(server, request, key, body)
        if body.top_logprobs and not body.logprobs:
            raise ValueError("top_logprobs stand beside logprobs; give logprobs true, or leave top_logprobs out")
        max_tokens = body.max_completion_tokens if body.max_tokens is None else body.max_tokens
        return await written(call, body, lambda worn: [asker.turns(worn, messages, finished=body.finished)], max_tokens)

    @app.post("/v1/classify", response_model=api.Classification, tags=["ask"])
    async def classify(body: api.ClassifyRequest, request: Request, key: Key = use) -> Any:
        """The label of each input, with probabilities; an ensemble's votes too."""
        items = items_of(body, body.input, "input", server.limits.max_inputs)
        if body.labels and len(set(body.labels)) < len(body.labels):
            raise ValueError("labels repeat; give different ones")
        call = Call(server, request, key, body)
        await call.submit(
            partial(asker.questions, items=items, finished=body.finished),
            lambda question, _: asker.classification(question, body.labels),
            is_text=False,
        )
        return call.answered("results", await call.answers(), result_of)


class Call:
    """One request on its way: whose it is, what it asks, and the engine's tickets."""

    def __init__(self, server: Server, request: Request, key: Key, body: api.Question):
        self.server, self.request, self.key, self.body = server, request, key, body
        self.id: str = request.scope[REQUEST_ID]
        self.created = int(time.time())
        self.events: asyncio.Queue[tuple[int, Piece | Answer | Exception]] = asyncio.Queue()
        """Which ticket, and what is new of it."""
        self.tickets: list[Ticket] = []
        self.questions: list[Question] = []
        """The one of each ticket."""

    async def submit(
        self,
        ask: Callable[[Sequence[Worn]], list[Question]],
        make: Callable[[Question, int], Asked],
        *,
        count: int = 1,
        is_text: bool = True,
        stream: bool = False,
    ) -> None:
        """Resolve the name, make the questions and the engine's requests, and hand them over.

        make: a question and which of its `count` answers, to an engine request. is_text: as `Asker.worn` takes it.
        """
        server, body = self.server, self.body
        point = random.Random(self.id if body.user is None else body.user).random()
        with server.registry.hold(body.model, point) as held:
            self.request.scope["prompt"] = held.name
            read = server.telemetry.input_tokens.labels(held.name)
            written = server.telemetry.output_tokens.labels(held.name)
            timeout = min(body.timeout or server.limits.timeout, server.limits.timeout)

            def meter(num_read: int, num_written: int) -> None:
                read.inc(num_read)
                written.inc(num_written)
                server.access.charge(self.key, num_read + num_written)

            def prepare() -> list[Asked]:
                requests = []
                for question in ask(server.asker.worn(held.prompts, is_text=is_text)):
                    for choice in range(count):
                        self.questions.append(question)
                        requests.append(replace(make(question, choice), timeout=timeout, meter=meter))
                return requests

            asked = []
            for index, request in enumerate(await run_sync(prepare)):
                tell = partial(self._tell, asyncio.get_running_loop(), index)
                asked.append((request, tell))
            self.tickets = server.engine.submit_all(asked, stream=stream, are_worn=True)

    async def answers(self) -> list[Answer]:
        """All answers, in order; if one fails, or the client goes, the others are given up."""
        answers: dict[int, Answer] = {}
        watch = asyncio.create_task(self._watch())
        try:
            while len(answers) < len(self.tickets):
                index, outcome = await self.events.get()
                if isinstance(outcome, Exception):
                    raise outcome
                if isinstance(outcome, Answer):
                    answers[index] = outcome
                    self.note_wait(outcome)
        finally:
            watch.cancel()
            self.cancel()
        return [answers[index] for index in range(len(answers))]

    def _tell(self, loop: asyncio.AbstractEventLoop, index: int, event: Piece | Answer | Exception) -> None:
        """Bring what is new of a ticket from the engine's thread."""
        loop.call_soon_threadsafe(self.events.put_nowait, (index, event))

    async def _watch(self) -> None:
        """End the waiting when the client goes."""
        while (await self.request.receive())["type"] != "http.disconnect":
            pass
        self.events.put_nowait((0, Cancelled("the client has gone")))

    def note_wait(self, answer: Answer) -> None:
        """Count how long an answer's request stood in the queue."""
        self.server.telemetry.queue_seconds.labels(self.request.scope["prompt"]).observe(answer.waited)

    def cancel(self) -> None:
        """Stop work on whatever is not done."""
        for ticket in self.tickets:
            if not ticket.is_done:
                ticket.cancel()

    def told(self, question: Question, answer: Answer) -> dict[str, Any]:
        """What every answer says of its input."""
        shown = read_text(question.rows, self.server.asker.lm.tokenizer) if self.body.show_input else None
        return {
            "input_tokens": max(len(row.ids) for row in question.rows),  # they differ where formats do
            "truncated": any(row.was_cut for row in question.rows),
            "prompt_hash": answer.parts[0].prompt if len(answer.parts) == 1 else None,
            "input": question.item,
            "example": question.example.id if question.is_one_of_several else None,
            "seed": answer.seed,
            "input_text": shown,
        }

    def answered(
        self, what: str, answers: Sequence[Answer], of: Callable[[Question, Answer], dict[str, Any]]
    ) -> dict[str, Any]:
        """The finished answer: `of` gives the `what` of each."""
        each = []
        for index, (question, answer) in enumerate(zip(self.questions, answers, strict=True)):
            each.append({"index": index, **self.told(question, answer), **of(question, answer)})
        return {
            "id": self.id,
            "created": self.created,
            "model": self.body.model,
            what: each,
            "usage": usage_of(answers),
        }


async def written(
    call: Call, body: api.Writing, ask: Callable[[Sequence[Worn]], list[Question]], max_tokens: int | None
) -> Any:
    """Text in OpenAI's form, whole or as a stream. max_tokens: None for the longest target of the prompts' training.

    ValueError for settings that do not go together.
    """
    asker, tokenizer = call.server.asker, call.server.asker.lm.tokenizer
    echo, count = is_echoed(body), num_alternatives(body)

    def make(question: Question, choice: int) -> Asked:
        if body.n > 1 and body.temperature == 0:
            raise ValueError(
                f"n is {body.n} with temperature 0, which gives {body.n} equal answers; give a temperature"
            )
        if len(question.worn) > 1 and (echo or count is not None):
            raise ValueError("logprobs and echo are of one prompt's tokens, but an ensemble has several; ask a member")
        longest = max(worn.form.max_target_length for worn in question.worn)
        decoding = Decoding(
            max_tokens=longest if max_tokens is None else max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            seed=None if body.seed is None else (body.seed + choice) % 2**63,
            num_beams=body.num_beams,
            length_penalty=body.length_penalty,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        )
        asked = asker.completion(question, decoding)
        return replace(asked, echo=echo, num_alternatives=count or 0)

    def choice_of(question: Question, answer: Answer) -> dict[str, Any]:
        part, members = answer.parts[0], None
        text = text_of(body, tokenizer, question, answer)
        if len(answer.parts) > 1:
            votes = [(part.prompt, part.prediction) for part in answer.parts]
            members = [{"prompt_hash": worn, "text": own.text, "log_prob": own.log_prob} for worn, own in votes]
        log_probs = log_probs_of(body, tokenizer, question, part, text)
        choice: dict[str, Any] = {"finish_reason": part.finish_reason, "members": members, "logprobs": log_probs}
        return choice | ({"message": {"content": text}} if isinstance(body, api.ChatRequest) else {"text": text})

    await call.submit(ask, make, count=body.n, stream=bool(body.stream))
    if body.stream:
        return StreamingResponse(stream(call, body), media_type="text/event-stream")
    return call.answered("choices", await call.answers(), choice_of)


async def stream(call: Call, body: api.Writing) -> AsyncIterator[str]:
    """Server-sent events: pieces as they are written, each choice's end, the usage if asked for, and [DONE]."""
    is_chat, echo, tokenizer = isinstance(body, api.ChatRequest), is_echoed(body), call.server.asker.lm.tokenizer
    kind = "chat.completion.chunk" if is_chat else "text_completion"
    head = {"id": call.id, "object": kind, "created": call.created, "model": body.model}

    def event(*choices: dict[str, Any], usage: api.Usage | None = None) -> str:
        content = head | {"choices": choices, "usage": usage.model_dump() if usage else None}
        return f"data: {json.dumps(content)}\n\n"

    def choice(index: int, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        text = {"delta": delta} if is_chat else {"text": delta.get("content", "")}
        return {"index": index, **text, "finish_reason": finish_reason, "logprobs": None}

    answers: list[Answer] = []
    begun: set[int] = set()
    try:
        if is_chat:
            for index in range(len(call.tickets)):
                yield event(choice(index, {"role": "assistant", "content": ""}))
        elif echo:
            for index, question in enumerate(call.questions):
                yield event(choice(index, {"content": echoed(tokenizer, question)}))
        while len(answers) < len(call.tickets):
            index, outcome = await call.events.get()
            question = call.questions[index]
            form = question.worn[0].form
            # Known at its end only: a vote, or an answer with a sentinel to strip.
            comes_whole = len(question.worn) > 1 or (form.sentinel != "none" and not echo)
            if isinstance(outcome, Exception):
                status, error = error_of(outcome, call.id)
                log.warning("%s: %s after the stream began: %s", call.id, status, error.message)
                yield f"data: {json.dumps({'error': error.model_dump()})}\n\n"
                return
            text = ""
            if isinstance(outcome, Piece) and not comes_whole:
                is_first = form.leading_space and not echo and index not in begun
                text = outcome.text.lstrip() if is_first else outcome.text
            elif isinstance(outcome, Answer) and comes_whole:
                text = text_of(body, tokenizer, question, outcome)
            if text:
                begun.add(index)
                yield event(choice(index, {"content": text}))
            if isinstance(outcome, Answer):
                answers.append(outcome)
                call.note_wait(outcome)
                part, whole = outcome.parts[0], text_of(body, tokenizer, question, outcome)
                end = choice(index, {}, part.finish_reason) | call.told(question, outcome)
                yield event(end | {"logprobs": log_probs_of(body, tokenizer, question, part, whole)})
        if body.stream_options and body.stream_options.include_usage:
            yield event(usage=usage_of(answers))
        yield "data: [DONE]\n\n"
    finally:
        call.cancel()


def usage_of(answers: Sequence[Answer]) -> api.Usage:
    """Tokens read, and tokens generated with ends of sequence, by all parts."""
    parts = [part for answer in answers for part in answer.parts]
    read, written = sum(part.num_input_tokens for part in parts), sum(len(part.log_probs) for part in parts)
    return api.Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def text_of(body: api.Writing, tokenizer: Tokenizer, question: Question, answer: Answer) -> str:
    """The answer's text: the only prompt's, as it wrote it behind its input with echo, or the vote's."""
    text = answer.parts[0].text
    if is_echoed(body):
        return echoed(tokenizer, question) + text
    return shown(question.worn[0].form, text) if len(answer.parts) == 1 else answer.prediction.text


def result_of(_: Question, answer: Answer) -> dict[str, Any]:
    """A label with its probabilities."""
    predictions = [part.prediction for part in answer.parts]
    votes = [
        {"prompt_hash": part.prompt, "label": part.prediction.text, "probabilities": part.prediction.probabilities()}
        for part in answer.parts
    ]
    return {
        "label": answer.prediction.text,
        "probabilities": mean_probabilities(predictions),
        "log_probs": answer.prediction.scores if len(votes) == 1 else None,
        "votes": votes if len(votes) > 1 else None,
    }


def is_echoed(body: api.Writing) -> bool:
    """Whether the input stands in front of the answer."""
    return isinstance(body, api.CompletionRequest) and bool(body.echo)


def num_alternatives(body: api.Writing) -> int | None:
    """How many of the most probable tokens are wanted in each place; None: no log-probabilities are."""
    if isinstance(body, api.ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs if isinstance(body, api.CompletionRequest) else None


def echoed(tokenizer: Tokenizer, question: Question) -> str:
    """The text of an input that was read as it stands."""
    return question.example.inputs or tokenizer.text_of(question.rows[0].ids)


def log_probs_of(
    body: api.Writing, tokenizer: Tokenizer, question: Question, part: PartAnswer, text: str
) -> dict[str, Any] | None:
    """Those of the tokens of an answer's text, in the endpoint's form; None unless asked for."""
    count = num_alternatives(body)
    if count is None:
        return None
    if isinstance(body, api.ChatRequest):
        return entries(tokens_of(part, tokenizer), count, tokenizer)
    read = question.rows[0].ids if is_echoed(body) else ()
    return columns(tokens_of(part, tokenizer, read), text, tokenizer)


def items_of(
    body: api.CompletionRequest | api.ClassifyRequest, texts: str | list[Any] | None, name: str, max_inputs: int
) -> list[Any]:
    """The inputs of a request: texts, token ids, or the body's records. ValueError unless exactly one kind is given."""
    records = body.fields
    if (texts is None) == (records is None):
        raise ValueError(f"give either {name} (a text) or fields (a record of the prompt's task)")
    if body.finished and texts is None:
        raise ValueError(f"finished is said of a text, and fields are a record; give {name}, or leave finished out")
    given = records if texts is None else texts
    items = given if isinstance(given, list) and not isinstance(given[0], int) else [given]  # ids are one input
    if len(items) > max_inputs:
        raise ValueError(f"{len(items)} inputs, but a request takes {max_inputs}; send more requests")
    for number, item in enumerate(items):
        try:
            json.dumps(item, ensure_ascii=False).encode()
            if isinstance(item, dict):
                check_finite(item)
        except UnicodeEncodeError:  # half of a surrogate pair is no text
            raise ValueError(f"input {number} holds half a character; send whole ones") from None
        except RecursionError:
            raise ValueError(f"input {number} is nested too deeply") from None
    return items
