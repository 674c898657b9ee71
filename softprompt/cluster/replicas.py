"""A web application in several processes behind one address: Ray Serve."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from starlette.middleware import Middleware

from softprompt.cluster.connection import gpus_each

NAME = "softprompt"
TRIES = 3  # of a request, where one replica after another dies of it, or with it; ours
PAUSE_S = 0.5  # before another try, where there is no replica; ours
LOOK_EVERY_S = 2.0  # whether each replica lives; Serve's own is 10
ONGOING = 16  # requests of a replica that Serve's autoscaling aims at; ours
MOST_KEPT = 128 << 20  # bytes of a request that is asked again; ours
REPLICA = b"x-replica"
REQUEST_ID = b"x-request-id"
Message = dict[str, Any]


@contextmanager
def replicas_by_ray(
    build: Callable[[], Any],
    *,
    host: str,
    port: int,
    replicas: tuple[int, int],
    threads: int,
    device: str,
    max_ongoing: int,
    drain_seconds: float,
) -> Iterator[None]:
    """Serve an ASGI application, which each replica builds for itself, until the block ends.

    replicas: at least and at most; between them Serve's autoscaling decides. threads, device: of each, which has a GPU
    where it may be one. max_ongoing: requests that a replica has at once. drain_seconds: for requests in flight at the
    end. What a replica that dies leaves without an answer is asked of another, but for a DELETE. ValueError where the
    cluster serves something already, and where the application cannot be built, with the reason.
    """
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        raise ValueError(
            "this Ray cluster serves something already; shut that down (serve shutdown), or use another one"
        )
    except ValueError as error:
        if "already" in str(error):
            raise

    def built() -> Any:
        return _Named(build())

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": port},
        logging_config=quiet | {"log_level": "CRITICAL"},  # what it has to say comes out below, in a line
    )
    least, most = replicas
    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        bounds = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": ONGOING}
        scaling = {"autoscaling_config": bounds}
    deployment: Any = serve.deployment(serve.ingress(built)(), name=NAME)
    deployment = deployment.options(
        **scaling,
        max_ongoing_requests=max_ongoing,
        graceful_shutdown_timeout_s=drain_seconds,
        health_check_period_s=LOOK_EVERY_S,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": threads, "num_gpus": gpus_each(device)},
        logging_config=quiet,
    )
    try:
        try:
            serve.run(deployment.bind(), name=NAME, route_prefix="/")
        except RuntimeError as error:
            raise ValueError(_reason(serve.status().applications[NAME].deployments[NAME].message)) from error
        yield
    finally:
        serve.delete(NAME)  # what is in flight comes to its end first
        serve.shutdown()


def _reason(told: str) -> str:
    """What is wrong, of what Serve tells of an application that could not be built."""
    found = re.findall(r"^(?:[\w.]*(?:Error|Exception)): (.+)$", told, re.M)
    return found[-1] if found else " ".join(told.split())


class _Named:
    """ASGI middleware in a replica: its answers say whose they are, by which others are told from Serve's own."""

    def __init__(self, app: Any):
        self.app, self.name = app, serve.get_replica_context().replica_id.unique_id.encode()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (REPLICA, self.name)]}
            await send(message)

        await self.app(scope, receive, named)


def in_front() -> list[Middleware]:
    """What Serve's HTTP proxies put in front of their routes, as they ask for it by this function's name."""
    return [Middleware(TryAgain)]


class TryAgain:
    """ASGI middleware in front of all replicas: what one leaves without an answer, as it died, is asked of another.

    An answer that has begun cannot be taken back: it breaks off. A DELETE might find that it was done.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_answered, kept = False, _Kept(receive)

        async def answer(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                headers = {name.lower(): value for name, value in message["headers"]}  # Serve gives an id once more
                is_answered = REPLICA in headers or message["status"] < 400
                message = {**message, "headers": list(headers.items())}
            if is_answered:  # what Serve says where no replica does is said below
                await send(message)

        for left in reversed(range(TRIES)):
            await self.app(dict(scope), kept.from_the_first(), answer)
            if is_answered or not kept.is_whole or scope["method"] == "DELETE":
                break
            if left:
                await asyncio.sleep(PAUSE_S)
        if not is_answered:
            await _say_unavailable(scope, send)


class _Kept:
    """A request's messages, which can be taken again from the first on, unless there are too many bytes."""

    def __init__(self, receive: Any):
        self._receive, self._messages, self._bytes = receive, [], 0
        self.is_whole = True
        """Whether all can be taken again, and the client waits."""

    def from_the_first(self) -> Any:
        """What gives them one by one, as ASGI has it."""
        given = 0

        async def next_message() -> Message:
            nonlocal given
            given += 1
            if given <= len(self._messages):
                return self._messages[given - 1]
            message = await self._receive()
            self._bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or self._bytes > MOST_KEPT:
                self.is_whole = False
                self._messages.clear()
            else:
                self._messages.append(message)
            return message

        return next_message


async def _say_unavailable(scope: Message, send: Any) -> None:
    given = dict(scope["headers"]).get(REQUEST_ID, b"").decode("latin-1")
    told = "the replica that had this request died, and no other answered; try again"
    error = {"message": told, "type": "not_serving", "param": None, "code": None, "request_id": given}
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", b"1"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


logging.getLogger("ray.serve").setLevel(logging.WARNING)
