"""What surrounds every request: an id, whose browser it is, limits on its body, a line in the log, and its count."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request

from softprompt.serving.http.access import Access
from softprompt.serving.http.telemetry import Telemetry

REQUEST_ID = "request_id"
CLIENT_GONE = 499  # nginx's code for it; nobody reads it but the log
GIVEN_ID = re.compile("[A-Za-z0-9._-]{1,64}")
UPLOADS = re.compile(r"/v1/prompts/[^/]+")
MOST_SKIPPED = 1 << 20  # bytes of a body that nobody wanted; ours
SKIPPING_SECONDS = 1.0
SLOWEST = 1 << 16  # bytes of a body in a second, once its time is up; ours
log = logging.getLogger("softprompt.access")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may take. All defaults are ours."""

    max_body: int = 4 << 20
    """Bytes of a request."""
    max_upload: int = 64 << 20
    """Bytes of an uploaded archive, packed and unpacked: a prompt of 500 tokens of width 8,192 is 16 MB."""
    body_seconds: float = 60.0
    """Seconds for a body to come, and one more for each 64 KiB of it."""
    max_inputs: int = 256
    """Inputs of a request."""
    timeout: float = 120.0
    """Seconds for a request, its time in the queue included."""
    drain_seconds: float = 30.0
    """Seconds that requests in flight get when the server is told to stop."""


class _Body:
    """A request's body as it comes: how much there may be, and until when."""

    def __init__(self, receive: Any, said: Headers, limit: int, limits: Limits):
        self._receive, self.limit, self.seconds = receive, limit, limits.body_seconds
        length = said.get("content-length", "")
        self.length = int(length) if length.isdecimal() else 0
        self.is_read = not (self.length or "transfer-encoding" in said)
        self.is_held_back = "expect" in said  # the client waits until it is asked for
        self.taken, self.began = 0, time.monotonic()

    async def receive(self) -> dict[str, Any]:
        """The next part; HTTPException as soon as it is seen that there are too many bytes (413) or seconds (408)."""
        too_long = HTTPException(413, f"the body is longer than {self.limit:,} bytes, which is all that is allowed")
        if self.length > self.limit:
            raise too_long
        seconds = self.seconds + self.taken / SLOWEST
        try:
            # From its end on, what comes is that the client has left.
            async with asyncio.timeout(None if self.is_read else self.began + seconds - time.monotonic()):
                message = await self._receive()
        except TimeoutError:
            told = f"{self.taken:,} bytes of the body came in {seconds:.3g} seconds, and no more are waited for"
            raise HTTPException(408, told) from None
        self.is_read = self.is_read or not message.get("more_body", False)
        self.taken += len(message.get("body", b""))
        if self.taken > self.limit:
            raise too_long
        return message

    async def skip(self) -> None:
        """Read what is left of it where that is little, for the client to see the answer and go on."""
        if (self.is_held_back and not self.taken) or self.length > MOST_SKIPPED:
            return
        with suppress(HTTPException, TimeoutError):
            async with asyncio.timeout(SKIPPING_SECONDS):
                while not self.is_read and self.taken <= MOST_SKIPPED:
                    await self.receive()


class Wire:
    """ASGI middleware. Pure, so that streams stay streams and a client's leaving is seen."""

    def __init__(self, app: Any, access: Access, limits: Limits, telemetry: Telemetry, refuse: Any):
        self.app, self.access, self.limits, self.telemetry, self.refuse = app, access, limits, telemetry, refuse

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, said = time.monotonic(), 0, Headers(scope=scope)
        given = said.get("x-request-id", "")
        own = given if GIVEN_ID.fullmatch(given) else f"req-{secrets.token_hex(12)}"
        asked = scope["method"]
        # HEAD is GET without the body, of which the answer keeps the length.
        scope = scope | {REQUEST_ID: own, "method": "GET" if asked == "HEAD" else asked}

        is_upload = scope["method"] == "PUT" and UPLOADS.fullmatch(scope["path"])
        body = _Body(receive, said, self.limits.max_upload if is_upload else self.limits.max_body, self.limits)

        async def read() -> dict[str, Any]:
            try:
                return await body.receive()
            except HTTPException:
                if not status:
                    raise
                return await receive()  # the answer has begun; who sends it waits for the client to leave

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", own.encode())]
                await body.skip()
                if not body.is_read:
                    message["headers"].append((b"connection", b"close"))
            elif asked == "HEAD":
                message = message | {"body": b""}
            await send(message)

        try:
            self.access.let_in(said.get("host", ""), said.get("origin"))
            await self.app(scope, read, answer)
        except Exception as error:
            if status:  # the answer has begun; all that can be done is to break it off
                raise
            response = await self.refuse(Request(scope), error)
            await response(scope, receive, answer)
        finally:
            self._note(scope, asked, status, time.monotonic() - started)

    def _note(self, scope: dict[str, Any], method: str, status: int, seconds: float) -> None:
        route = scope.get("route")
        endpoint = getattr(route, "path_format", "unknown")
        prompt = scope.get("prompt", "")
        self.telemetry.requests.labels(endpoint, prompt, status or CLIENT_GONE).inc()
        if prompt:
            self.telemetry.seconds.labels(endpoint, prompt).observe(seconds)
        line = {
            REQUEST_ID: scope[REQUEST_ID],
            "method": method,
            "path": scope["path"][:200],
            "status": status or CLIENT_GONE,
            "ms": round(1_000 * seconds, 1),
            "prompt": prompt,
            "key": scope.get("key", ""),
        }
        log.info(json.dumps({name: value for name, value in line.items() if value != ""}))
