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
from softprompt.serving import Answer, Cancelled, PartAnswer, Piece, Ticket
from softprompt.serving import Request as Asked
from softprompt.serving.http import api
from softprompt.serving.http.access import Key
from softprompt.serving.http.asking import Question, Worn, shown
from softprompt.serving.http.errors import error_of
from softprompt.serving.http.state import Server
from softprompt.serving.http.wire import REQUEST_ID

log = logging.getLogger("softprompt.serving.http")


def add_questions(app: FastAPI, server: Server) -> None:
    """Let the application answer questions."""
    use: Any = server.guard("use")
    asker = server.asker

    @app.post("/v1/completions", response_model=api.Completion, tags=["ask"])
    async def complete(body: api.CompletionRequest, request: Request, key: Key = use) -> Any:
        """Text for each input. OpenAI's endpoint: `model` is a prompt's name, `prompt` is its finished input."""
        items = items_of(body.prompt, body.fields, "prompt", server.limits.max_inputs)
        call = Call(server, request, key, body)
        return await written(call, body, lambda worn: asker.questions(worn, items), body.max_tokens)

    @app.post("/v1/chat/completions", response_model=api.ChatCompletion, tags=["ask"])
    async def chat(body: api.ChatRequest, request: Request, key: Key = use) -> Any:
        """OpenAI's endpoint: one message of the user's is a prompt's input; the bare model takes a conversation."""
        messages = [{"role": message.role, "content": message.text} for message in body.messages]
        call = Call(server, request, key, body)
        max_tokens = body.max_tokens or body.max_completion_tokens
        return await written(call, body, lambda worn: [asker.turns(worn, messages)], max_tokens)

    @app.post("/v1/classify", response_model=api.Classification, tags=["ask"])
    async def classify(body: api.ClassifyRequest, request: Request, key: Key = use) -> Any:
        """The label of each input, with probabilities; an ensemble's votes too."""
        items = items_of(body.input, body.fields, "input", server.limits.max_inputs)
        if body.labels and len(set(body.labels)) < len(body.labels):
            raise ValueError("labels repeat; give different ones")
        call = Call(server, request, key, body)
        await call.submit(
            lambda worn: asker.questions(worn, items),
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
            self.tickets = server.engine.submit_all(asked, stream=stream)

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

    def answered(
        self, what: str, answers: Sequence[Answer], of: Callable[[Question, Answer], dict[str, Any]]
    ) -> dict[str, Any]:
        """The finished answer: `of` gives the `what` of each."""
        each = []
        for index, (question, answer) in enumerate(zip(self.questions, answers, strict=True)):
            each.append({"index": index, **told(question, answer), **of(question, answer)})
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
    asker = call.server.asker

    def make(question: Question, choice: int) -> Asked:
        if body.n > 1 and body.temperature == 0:
            raise ValueError(
                f"n is {body.n} with temperature 0, which gives {body.n} equal answers; give a temperature"
            )
        decoding = Decoding(
            max_tokens=max_tokens or max(worn.form.max_target_length for worn in question.worn),
            temperature=body.temperature,
            top_p=body.top_p,
            seed=None if body.seed is None else (body.seed + choice) % 2**63,
            num_beams=body.num_beams,
            length_penalty=body.length_penalty,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        )
        return asker.completion(question, decoding)

    def choice_of(question: Question, answer: Answer) -> dict[str, Any]:
        part, text, members = answer.parts[0], text_of(question, answer), None
        if len(answer.parts) > 1:
            votes = [(part.prompt, part.prediction) for part in answer.parts]
            members = [{"prompt_hash": worn, "text": own.text, "log_prob": own.log_prob} for worn, own in votes]
        choice: dict[str, Any] = {"finish_reason": part.finish_reason, "members": members}
        if isinstance(body, api.ChatRequest):
            return choice | {"message": {"content": text}}
        has_log_probs = isinstance(body, api.CompletionRequest) and body.logprobs is not None and not members
        return choice | {"text": text, "logprobs": log_probs_of(asker.lm.tokenizer, part) if has_log_probs else None}

    await call.submit(ask, make, count=body.n, stream=bool(body.stream))
    if body.stream:
        return StreamingResponse(stream(call, body), media_type="text/event-stream")
    return call.answered("choices", await call.answers(), choice_of)


async def stream(call: Call, body: api.Writing) -> AsyncIterator[str]:
    """Server-sent events: pieces as they are written, each choice's end, the usage if asked for, and [DONE]."""
    is_chat = isinstance(body, api.ChatRequest)
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
        while len(answers) < len(call.tickets):
            index, outcome = await call.events.get()
            question = call.questions[index]
            form = question.worn[0].form
            # Known at its end only: a vote, or an answer with a sentinel to strip.
            comes_whole = len(question.worn) > 1 or form.sentinel != "none"
            if isinstance(outcome, Exception):
                status, error = error_of(outcome, call.id)
                log.warning("%s: %s after the stream began: %s", call.id, status, error.message)
                yield f"data: {json.dumps({'error': error.model_dump()})}\n\n"
                return
            text = ""
            if isinstance(outcome, Piece) and not comes_whole:
                is_first = form.leading_space and index not in begun
                text = outcome.text.lstrip() if is_first else outcome.text
            elif isinstance(outcome, Answer) and comes_whole:
                text = text_of(question, outcome)
            if text:
                begun.add(index)
                yield event(choice(index, {"content": text}))
            if isinstance(outcome, Answer):
                answers.append(outcome)
                call.note_wait(outcome)
                yield event(choice(index, {}, outcome.parts[0].finish_reason) | told(question, outcome))
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


def told(question: Question, answer: Answer) -> dict[str, Any]:
    """What every answer says of its input."""
    return {
        "input_tokens": max(len(row.ids) for row in question.rows),  # they differ where formats do
        "truncated": any(row.was_cut for row in question.rows),
        "prompt_hash": answer.parts[0].prompt if len(answer.parts) == 1 else None,
        "input": question.item,
        "example": question.example.id if question.is_one_of_several else None,
        "seed": answer.seed,
    }


def text_of(question: Question, answer: Answer) -> str:
    """The answer's text: the only prompt's as it wrote it, or the vote's."""
    return shown(question.worn[0].form, answer.parts[0].text) if len(answer.parts) == 1 else answer.prediction.text


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


def log_probs_of(tokenizer: Any, part: PartAnswer) -> dict[str, Any]:
    """The chosen tokens' log-probabilities; the end of sequence is the last where there is one more."""
    tokens = [tokenizer.piece(id) for id in part.ids]
    tokens += ["</s>"] * (len(part.log_probs) - len(tokens))
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    return {"tokens": tokens, "token_logprobs": list(part.log_probs), "text_offset": offsets[:-1]}


def items_of(texts: str | list[str] | None, records: Any, name: str, max_inputs: int) -> list[Any]:
    """The inputs of a request: finished texts or records. ValueError unless exactly one kind is given."""
    if (texts is None) == (records is None):
        raise ValueError(f"give either {name} (finished text) or fields (a record of the prompt's task)")
    given = records if texts is None else texts
    items = given if isinstance(given, list) else [given]
    if len(items) > max_inputs:
        raise ValueError(f"{len(items)} inputs, but a request takes {max_inputs}; send more requests")
    for number, item in enumerate(items):
        try:
            json.dumps(item, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError) as error:  # half of a surrogate pair is no text
            raise ValueError(f"input {number} is no text: {type(error).__name__}") from None
    return items
