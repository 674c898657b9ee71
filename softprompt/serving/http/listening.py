"""uvicorn with limits: on connections at once, and on the time that a request's head and taking an answer may take.

The limits on a body are `wire`'s, which knows what is asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # ours
STUCK_SECONDS = 30.0  # ours
MOST_CONNECTIONS = 10_000  # whatever the limit on descriptors is; ours
PAUSE = 0.1  # seconds until a connection is tried again
TOLD_EVERY = 60.0  # seconds
log = logging.getLogger("softprompt.serving.http")


def connections_allowed() -> int:
    """Three quarters of the files that this process may have open; the rest is for prompts and uploads."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows, whose limit is another
        return 512
    files = getrlimit(RLIMIT_NOFILE)[0]
    return MOST_CONNECTIONS if files == RLIM_INFINITY else min(MOST_CONNECTIONS, files * 3 // 4)


class Protocol(H11Protocol):
    """A connection whose heads are there in time, or it ends: with a 408 where one has begun, else without a word.

    It ends too where nothing of an answer is taken between two looks, `stuck_seconds` apart.
    """

    def __init__(self, *arguments: Any, head_seconds: float, stuck_seconds: float, **named: Any):
        super().__init__(*arguments, **named)
        self.head_seconds, self.stuck_seconds = head_seconds, stuck_seconds
        self._head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """As asyncio calls it."""
        super().connection_made(transport)
        self._head_due = self.loop.call_later(self.head_seconds, self._too_slow)
        self._next_look = self.loop.call_later(self.stuck_seconds, self._look, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio calls it."""
        self._forget_head()
        self._next_look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_due is None:
            self._head_due = self.loop.call_later(self.head_seconds, self._too_slow)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._end(HTTPStatus.BAD_REQUEST, "what came is no request of HTTP/1.1, or its head is too long")

    def _forget_head(self) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
            self._head_due = None

    def _too_slow(self) -> None:
        if self.conn.trailing_data[0]:
            self._end(HTTPStatus.REQUEST_TIMEOUT, f"the head of a request must come in {self.head_seconds:g} seconds")
        else:
            self.transport.close()

    def _look(self, unsent_before: int) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == unsent_before:
            self.transport.abort()
        else:
            self._next_look = self.loop.call_later(self.stuck_seconds, self._look, unsent)

    def _end(self, status: HTTPStatus, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
            error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, "request_id": ""}
            body = json.dumps({"error": error})
            self.transport.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
            )
        self.transport.close()


class Listener(uvicorn.Server):
    """uvicorn's server on sockets that are bound: `Listener(uvicorn.Config(make_app(server))).run(sockets=[bound])`.

    Beyond so many connections (None: what the process's files allow) new ones wait until one ends.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        max_connections: int | None = None,
        head_seconds: float = HEAD_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
    ):
        super().__init__(config)
        self.max_connections = max_connections or connections_allowed()
        self.head_seconds, self.stuck_seconds = head_seconds, stuck_seconds
        self._accepting: list[asyncio.Task[None]] = []
        self._told = -TOLD_EVERY

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn calls it; asyncio's own listening has no limits, and beyond the system's writes tracebacks."""
        await super().startup(sockets=[])
        for bound in sockets or ():
            bound.listen(self.config.backlog)
            bound.setblocking(False)
            self._accepting.append(asyncio.create_task(self._accept(bound)))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn calls it."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if len(self.server_state.connections) >= self.max_connections:
                await self._pause(f"{self.max_connections} connections are open, which are all that are taken")
                continue
            try:
                connection, _ = await loop.sock_accept(bound)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                await self._pause(f"no connection can be taken ({error.strerror})")
                continue
            try:
                await loop.connect_accepted_socket(self._protocol, connection)
            except OSError:
                connection.close()

    def _protocol(self) -> Protocol:
        return Protocol(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            head_seconds=self.head_seconds,
            stuck_seconds=self.stuck_seconds,
        )

    async def _pause(self, why: str) -> None:
        if (now := time.monotonic()) - self._told >= TOLD_EVERY:
            self._told = now
            log.warning("%s; new ones wait, and this is said once a minute at most", why)
        await asyncio.sleep(PAUSE)
