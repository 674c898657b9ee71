"""What surrounds every request: an id, whose browser it is, limits on its body, a line in the log, and its count."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
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
log = logging.getLogger("softprompt.access")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may take. All defaults are ours."""

    max_body: int = 4 << 20
    """Bytes of a request."""
    max_upload: int = 64 << 20
    """Bytes of an uploaded archive, packed and unpacked: a prompt of 500 tokens of width 8,192 is 16 MB."""
    max_inputs: int = 256
    """Inputs of a request."""
    timeout: float = 120.0
    """Seconds for a request, its time in the queue included."""
    drain_seconds: float = 30.0
    """Seconds that requests in flight get when the server is told to stop."""


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

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", own.encode())]
            elif asked == "HEAD":
                message = message | {"body": b""}
            await send(message)

        try:
            self.access.let_in(said.get("host", ""), said.get("origin"))
            await self.app(scope, self._limited(scope, receive, said), answer)
        except Exception as error:
            if status:  # the answer has begun; all that can be done is to break it off
                raise
            response = await self.refuse(Request(scope), error)
            await response(scope, receive, answer)
        finally:
            self._note(scope, asked, status, time.monotonic() - started)

    def _limited(self, scope: dict[str, Any], receive: Any, said: Headers) -> Any:
        """`receive`, which refuses a body that is too long as soon as that is seen."""
        is_upload = scope["method"] == "PUT" and UPLOADS.fullmatch(scope["path"])
        limit = self.limits.max_upload if is_upload else self.limits.max_body
        length, taken = said.get("content-length", ""), 0
        too_long = HTTPException(413, f"the body is longer than {limit:,} bytes, which is all that is allowed")

        async def limited() -> dict[str, Any]:
            nonlocal taken
            if length.isdecimal() and int(length) > limit:
                raise too_long
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise too_long
            return message

        return limited

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
