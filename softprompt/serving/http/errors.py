"""The answer to whatever is wrong with a request: a status and a reason in JSON."""

from __future__ import annotations

import json
import logging
from itertools import islice
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from softprompt.base.checked import MAX_SHOWN, path_of, wanted_at
from softprompt.serving import Cancelled, DeadlineExceeded, NotServing, QueueFull
from softprompt.serving.http import api
from softprompt.serving.http.access import Refused
from softprompt.serving.http.registry import Conflict, UnknownName
from softprompt.serving.http.wire import CLIENT_GONE, REQUEST_ID

log = logging.getLogger("softprompt.serving.http")

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": api.Error, "description": text}
    for status, text in {
        400: "what was asked makes no sense; the reason says why",
        401: "no API key, or an unknown one",
        403: "the key may not do this",
        404: "no such name",
        408: "the body took too long",
        409: "it does not go with what there is",
        413: "the body is too long",
        429: "too many requests; try again after Retry-After seconds",
        500: "our fault",
        503: "not ready, or being stopped",
        504: "no answer before the deadline",
        507: "the disk is full",
    }.items()
}


MAX_MESSAGE = 1_000  # characters; ours

# What the web library says in its own words, in ours.
FRAMEWORKS_OWN = {
    "There was an error parsing the body": (
        "the body cannot be read: it is no text in UTF-8, or has a number of thousands of digits"
    ),
    "Not Found": "there is nothing at this path; /docs has those there are",
    "Method Not Allowed": "this path does not take this method; /docs has those it takes",
}

# The status and the type of each error; the first that fits.
KINDS: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownName, 404, "invalid_request_error"),
    (Conflict, 409, "conflict"),
    (RequestValidationError, 400, "invalid_request_error"),
    (QueueFull, 429, "overloaded"),
    (NotServing, 503, "not_serving"),
    (DeadlineExceeded, 504, "timeout"),
    (Cancelled, CLIENT_GONE, "client_gone"),
    (ClientDisconnect, CLIENT_GONE, "client_gone"),
    (ValueError, 400, "invalid_request_error"),
    (OSError, 507, "disk_error"),
    (Exception, 500, "server_error"),
)


def error_of(error: Exception, request_id: str) -> tuple[int, api.ErrorBody]:
    """The status and the reason that a client gets for an error."""
    status, kind = next((status, kind) for fits, status, kind in KINDS if isinstance(error, fits))
    param, message = None, " ".join(str(error).split())
    match error:
        case Refused():
            status, kind = error.status, "rate_limit" if error.status == 429 else "authentication_error"
        case UnknownName():
            param = "model"
        case RequestValidationError():
            param, message = _of_validation(error)
        case HTTPException():
            status, kind = error.status_code, "invalid_request_error"
            message = FRAMEWORKS_OWN.get(str(error.detail), str(error.detail))
        case OSError():
            message = f"could not be kept: {error.strerror or error}"
        case _ if status == 500:
            message = "something went wrong here; the log says what"
    code = {404: "not_found", 429: "rate_limit_exceeded"}.get(status)
    told = _sendable(message)
    return status, api.ErrorBody(
        message=told, type=kind, param=None if param is None else _sendable(param), code=code, request_id=request_id
    )


def _sendable(text: str) -> str:
    """A text without halves of characters, which JSON may have brought, and without the middle if it is long."""
    short = text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE // 2]} … {text[-MAX_MESSAGE // 2 :]}"
    return short.encode("utf-8", "replace").decode()


def _of_validation(error: RequestValidationError) -> tuple[str | None, str]:
    """The field at fault, and what is wrong with it: the first of pydantic's errors that lie deepest."""
    wrong = [{**one, "loc": [s for s in one["loc"] if s not in ("body", "path", "query")]} for one in error.errors()]
    if wrong[0]["type"] == "json_invalid":
        return None, f"the body is not JSON ({wrong[0].get('ctx', {}).get('error', 'damaged')})"
    if isinstance(error.body, bytes):
        return None, "the body is not said to be JSON; send it with Content-Type: application/json"
    is_body = error.errors()[0]["loc"][0] == "body"
    data = error.body if is_body else {one["loc"][0]: one["input"] for one in wrong if one["loc"]}
    first = max(wrong, key=lambda one: path_of(one["loc"], data).count("[") + path_of(one["loc"], data).count("."))
    path = path_of(first["loc"], data)
    told = first.get("ctx", {})
    match first["type"]:
        case "unknown_field" | "not_had" as kind:
            name = f"{path}.{told['name']}".removeprefix(".")
            if kind == "unknown_field":
                return name, f"unknown field {name!r}{told['hint']}"
            value = _shown(told["value"])
            return name, f"{name} is {value}, which this server cannot do; leave it out, or give {told['taken']}"
        case "missing":
            if not first["loc"]:
                return None, "the body is empty; send JSON with Content-Type: application/json"
            name = f"{path_of(first['loc'][:-1], data)}.{first['loc'][-1]}".removeprefix(".")
            return name, f"{name}: field required"
    value = _shown(first.get("input"))
    return path or None, f"{path or 'the body'} is {value}, but must be {wanted_at(path, wrong, data)}"


def _shown(value: Any) -> str:
    """The beginning of a value as JSON; no more of it is written, however large it is."""
    pieces = json.JSONEncoder(default=str, ensure_ascii=False).iterencode(value)
    return "".join(islice(pieces, MAX_SHOWN))[:MAX_SHOWN]


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that ended with an error."""
    request_id = request.scope.get(REQUEST_ID, "")
    status, body = error_of(error, request_id)
    if status in (500, 507):
        log.error("%s: %s", request_id, body.message, exc_info=error if status == 500 else None)
    wait = getattr(error, "retry_after", None)
    headers = {"retry-after": str(max(1, round(wait)))} if wait is not None else None
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse({"error": body.model_dump()}, status, headers)
