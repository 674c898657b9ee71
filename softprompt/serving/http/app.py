"""The web application: endpoints over the engine.

    server = Server(scheduler, registry)
    uvicorn.run(make_app(server))

Everything that can be wrong with a request is found before any work, and answered with 4xx and a reason in JSON.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from softprompt.serving import NotServing
from softprompt.serving.http.access import Key, Refused
from softprompt.serving.http.errors import ERRORS, refuse
from softprompt.serving.http.prompts import add_prompts
from softprompt.serving.http.questions import add_questions
from softprompt.serving.http.reading import KeyFirst
from softprompt.serving.http.state import Server
from softprompt.serving.http.telemetry import CONTENT_TYPE
from softprompt.serving.http.tokenizing import add_tokenizer
from softprompt.serving.http.wire import Wire

__all__ = ["Server", "make_app"]

PLAYGROUND = Path(__file__).parent / "page"
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
log = logging.getLogger("softprompt.serving.http")


def make_app(server: Server) -> FastAPI:
    """The ASGI application of a server: OpenAI's endpoints, labels, names and uploads, metrics, and the page.

    The engine is started and warmed up with the application, and drained when that is shut down: `lifespan` must run,
    as uvicorn does; mounted in an application of your own, run it in yours
    (`async with app.router.lifespan_context(app)`). The engine must not have been started, nor be used by another.
    """

    async def warm_up() -> None:
        try:
            await run_sync(server.warm_up)
            log.info("ready")
        except NotServing:
            pass
        except Exception:
            log.exception("the warm-up failed; the server stays not ready")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.engine.start()
        warming = asyncio.create_task(warm_up())
        yield
        warming.cancel()
        server.is_ready = False
        if not await run_sync(server.engine.drain, server.limits.drain_seconds):
            log.warning("some requests were cut off after %g seconds of draining", server.limits.drain_seconds)

    app = FastAPI(
        title="softprompt",
        description=f"{server.engine.lm.name} and the soft prompts it wears.",
        lifespan=lifespan,
        responses=ERRORS,
        docs_url=None,  # its page loads scripts from elsewhere; ours is in page/
        redoc_url=None,
    )
    app.state.server = server
    app.state.reading = CapacityLimiter(1)
    app.router.route_class = KeyFirst
    for kind in (ValueError, RuntimeError, OSError, Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, refuse)
    add_questions(app, server)
    add_prompts(app, server)
    add_tokenizer(app, server)
    _add_machine(app, server)
    make_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        """The document, without FastAPI's 422, which is a 400 here."""
        document = make_openapi()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi
    if server.access.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=server.access.cors_origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Wire, access=server.access, limits=server.limits, telemetry=server.telemetry, refuse=refuse)
    return app


def _add_machine(app: FastAPI, server: Server) -> None:
    @app.get("/health", include_in_schema=False)
    @app.get("/healthz", tags=["machine"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["machine"])
    async def readyz() -> dict[str, str]:
        """Whether the model is warm and requests are taken."""
        if not server.is_ready or server.engine.lost:
            raise NotServing(server.engine.lost or "warming up, or being stopped")
        return {"status": "ready"}

    use: Any = server.guard("use")

    @app.get("/metrics", tags=["machine"], response_class=Response)
    async def metrics(key: Key = use) -> Response:
        """Counters and histograms for Prometheus."""
        return Response(server.telemetry.scrape(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return _page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return _page("docs.html")

    @app.get("/playground/{file}", include_in_schema=False)
    async def part(file: str) -> FileResponse:
        if file not in ("playground.js", "playground.css", "docs.js"):
            raise HTTPException(404, "no such file")
        return _page(file)


def _page(file: str) -> FileResponse:
    headers = {"content-security-policy": PAGE_POLICY, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
    return FileResponse(PLAYGROUND / file, headers=headers)
