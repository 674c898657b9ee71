"""The answer to whatever is wrong with a request: a status and a reason in JSON."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from softprompt.base.names import nearest
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
        409: "it does not go with what there is",
        413: "the body is too long",
        429: "too many requests; try again after Retry-After seconds",
        500: "our fault",
        503: "not ready, or being stopped",
        504: "no answer before the deadline",
        507: "the disk is full",
    }.items()
}


def error_of(error: Exception, request_id: str) -> tuple[int, api.ErrorBody]:
    """The status and the reason that a client gets for an error."""
    status, kind, param, message = 500, "server_error", None, "something went wrong here; the log says what"
    match error:
        case Refused():
            status, kind = error.status, "rate_limit" if error.status == 429 else "authentication_error"
        case UnknownName():
            status, kind, param = 404, "invalid_request_error", "model"
        case Conflict():
            status, kind = 409, "conflict"
        case RequestValidationError():
            status, kind = 400, "invalid_request_error"
            param, message = _of_validation(error)
        case QueueFull():
            status, kind = 429, "overloaded"
        case NotServing():
            status, kind = 503, "not_serving"
        case DeadlineExceeded():
            status, kind = 504, "timeout"
        case Cancelled():
            status, kind = CLIENT_GONE, "client_gone"
        case HTTPException():
            status, kind = error.status_code, "invalid_request_error"
            message = str(error.detail)
        case ValueError():
            status, kind = 400, "invalid_request_error"
        case OSError():
            status, kind, message = 507, "disk_error", f"could not be kept: {error.strerror or error}"
    if not isinstance(error, RequestValidationError | HTTPException | OSError) and status != 500:
        message = " ".join(str(error).split())
    code = {404: "not_found", 429: "rate_limit_exceeded"}.get(status)
    readable = message.encode("utf-8", "replace").decode()
    return status, api.ErrorBody(message=readable, type=kind, param=param, code=code, request_id=request_id)


def _of_validation(error: RequestValidationError) -> tuple[str | None, str]:
    """The field at fault, and what is wrong with it, of the first of pydantic's errors."""
    first = error.errors()[0]
    place = [str(step) for step in first["loc"] if step not in ("body", "path", "query")]
    name = ".".join(place) or None
    if first["type"] == "json_invalid":
        return None, f"the body is not JSON ({first.get('ctx', {}).get('error', 'damaged')})"
    if first["type"] == "extra_forbidden":
        known = {field for model in (api.CompletionRequest, api.ChatRequest, api.ClassifyRequest) for field in
                 model.model_fields}  # fmt: skip
        return name, f"unknown field {name!r}{nearest(str(name), known)}"
    if first["type"] == "missing" and name is None:
        return None, "the body is empty; send JSON with Content-Type: application/json"
    given = "" if first["type"] == "missing" else f", got {json.dumps(first.get('input'), default=str)[:80]}"
    return name, f"{name or 'body'}: {first['msg'][:1].lower()}{first['msg'][1:]}{given}"


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that ended with an error."""
    request_id = request.scope.get(REQUEST_ID, "")
    status, body = error_of(error, request_id)
    if status in (500, 507):
        log.error("%s: %s", request_id, body.message, exc_info=error)
    wait = getattr(error, "retry_after", None)
    headers = {"retry-after": str(max(1, round(wait)))} if wait is not None else None
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse({"error": body.model_dump()}, status, headers)
