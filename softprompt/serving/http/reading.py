"""The order in which a request is read: its key and rate, then its body, within bounds and off the event loop."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

LARGE = 1 << 16  # bytes of a body from which on it is read in a thread; ours
MAX_BRACKETS = 200_000  # lists and objects of a body; ours: read in 70 ms
MAX_DEPTH = 100  # of them in one another; ours


class KeyFirst(APIRoute):
    """A route that asks what its endpoint depends on (the key, its rate) first; FastAPI reads the body before that."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """What FastAPI calls with a request."""
        handle = super().get_route_handler()
        guards: list[Any] = [found.call for found in self.dependant.dependencies]
        kind: Any = self.body_field and self.body_field.field_info.annotation

        async def in_order(request: Request) -> Any:
            for guard in guards:
                await guard(request)
            if kind is not None:
                request = _Bounded(request.scope, request.receive)
                request.kind = kind
                await request.body()  # here a client that leaves meanwhile is one, and no wrong body
            return await handle(request)

        return in_order


class _Bounded(Request):
    """A request as FastAPI reads it, but for its JSON."""

    kind: type[BaseModel]

    async def json(self) -> Any:
        """What the endpoint takes. The plain values where they are not that: FastAPI then says what is wrong."""
        data = await self.body()
        if len(data) < LARGE:
            return _read(data, self.kind)
        # One at a time: reading holds the interpreter, and between two of them the others have their turn.
        return await run_sync(_read, data, self.kind, limiter=self.app.state.reading)


def _read(data: bytes, kind: type[BaseModel]) -> Any:
    if (count := data.count(b"[") + data.count(b"{")) > MAX_BRACKETS:
        raise HTTPException(
            400, f"the body has {count:,} brackets, but may have {MAX_BRACKETS:,}; ask for less at once"
        )
    value, too_deep, is_collecting = None, True, gc.isenabled()
    gc.disable()  # there are no cycles in it, and looking for some takes ten times as long as reading
    try:
        value = json.loads(data)
        too_deep = count > MAX_DEPTH and _is_deeper(value)
    except RecursionError:
        pass
    finally:
        if is_collecting:
            gc.enable()
    if too_deep:
        raise HTTPException(
            400, f"the body is nested too deeply; {MAX_DEPTH} lists and objects in one another are read"
        )
    with suppress(ValidationError):
        value = kind.model_validate(value)
    return value


def _is_deeper(value: Any) -> bool:
    """Whether lists and objects are in one another more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        level = inner
    return bool(level)
