"""What the endpoints of a server share."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from anyio.to_thread import run_sync
from fastapi import Depends, Request

from softprompt.answering import Decoding
from softprompt.serving import Scheduler
from softprompt.serving.http.access import Access, Key
from softprompt.serving.http.asking import Asker
from softprompt.serving.http.registry import Registry
from softprompt.serving.http.telemetry import Telemetry
from softprompt.serving.http.wire import Limits

log = logging.getLogger("softprompt.serving.http")


@dataclass(eq=False)
class Server:
    """The engine, the names it answers to, and who may ask what: all that `make_app` needs.

        lm = load("bundled/t5-mini")
        engine = Scheduler(lm)                                 # bounds memory and the queue; not started
        registry = Registry(engine.table, lm.name)             # lm.name: what requests call the bare model
        registry.add("sst2", "runs/sst2")                      # a prompt's folder, checked against the model
        uvicorn.run(make_app(Server(engine, registry)))

    access: API keys; without any, everybody may do everything who calls it localhost (`Access(allowed_hosts=...)`).
    limits: bytes, inputs and seconds of a request.
    """

    engine: Scheduler
    registry: Registry
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.asker = Asker(self.engine.lm, self.engine.table)
        self.telemetry = Telemetry(self.engine.stats)
        self.is_ready = False
        self.started = int(time.time())

    def warm_up(self) -> None:
        """Answer one question of each kind with the bare model and with a prompt, then be ready."""
        self._warm_up(None)
        for prompt in self.engine.table.hashes()[-1:]:
            try:
                self._warm_up(prompt)
            except ValueError as error:  # nobody may wear it, as its requests are told; the others are served
                log.warning("the warm-up with a prompt failed: %s", error)
        self.is_ready = True

    def _warm_up(self, prompt: str | None) -> None:
        described = self.asker.worn((prompt,))
        (question,) = self.asker.questions(described, ["warm up"], finished=True)
        self.engine.submit(self.asker.completion(question, Decoding(max_tokens=2))).result()
        self.engine.submit(self.asker.classification(question, ("yes", "no"))).result()

    def guard(self, scope: str) -> Any:
        """A dependency of endpoints: the key of a request that may do this, counted against its limits.

        From then on what other replicas have changed is known.
        """

        async def key_of(request: Request) -> Key:
            if (key := request.scope.get("caller")) is None:  # asked before the body is read, and by FastAPI after it
                key = self.access.key_of(request.headers.get("authorization"), scope)
                request.scope["key"] = key.name
                self.access.admit(key)
                request.scope["caller"] = key
                if self.registry.is_behind:
                    await run_sync(self.registry.catch_up)
            return key

        return Depends(key_of)
