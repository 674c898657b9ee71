"""The endpoints of names: models, prompts and their versions, ensembles, aliases."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter

from softprompt.answering import NUM_NEAREST, nearest_tokens
from softprompt.serving.http import api
from softprompt.serving.http.access import Key
from softprompt.serving.http.archive import read_archive
from softprompt.serving.http.registry import MIN_HASH, NAME, Names, Version
from softprompt.serving.http.state import Server
from softprompt.serving.http.wire import REQUEST_ID
from softprompt.tasks import all_fields

ARCHIVE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Name = Annotated[str, PathParameter(pattern=f"^{NAME}$")]
Wanted = Annotated[str, PathParameter(pattern=f"^{NAME}(@[0-9a-f]{{{MIN_HASH},64}})?$")]
log = logging.getLogger("softprompt.serving.http")


def add_prompts(app: FastAPI, server: Server) -> None:
    """Let the application tell and change what it serves."""
    use: Any = server.guard("use")
    administer: Any = server.guard("administer")
    registry = server.registry

    @app.get("/v1/models", response_model=api.Models, tags=["prompts"])
    def models(key: Key = use) -> Any:
        """Every name that a request may give as `model`. OpenAI's endpoint."""
        names = registry.now
        return {
            "data": [_model(server, names, name) for name in names],
            "dtype": str(server.engine.lm.dtype).removeprefix("torch."),
            "batch_invariant": server.engine.is_batch_invariant,
        }

    @app.get("/v1/models/{name:path}", response_model=api.Model, tags=["prompts"])
    def model(name: str, key: Key = use) -> Any:
        """One of them. OpenAI's endpoint."""
        names = registry.now
        names.resolve(name, 0.0)
        return _model(server, names, name)

    @app.get("/v1/prompts", response_model=api.Prompts, tags=["prompts"])
    def prompts(key: Key = use) -> Any:
        """Prompts with their versions, ensembles and aliases."""
        names = registry.now
        return {
            "base": names.base,
            "prompts": [_info(server, name, versions) for name, versions in names.versions.items()],
            "ensembles": [_ensemble(server, names, name, members) for name, members in names.ensembles.items()],
            "aliases": [{"name": name, "targets": targets} for name, targets in names.aliases.items()],
        }

    @app.put("/v1/prompts/{name}", response_model=api.PromptInfo, tags=["prompts"], openapi_extra=ARCHIVE)
    async def upload(name: Name, request: Request, key: Key = administer) -> Any:
        """Keep a prompt folder, sent as a zip or tar archive, as the newest version of a name."""
        data = await request.body()
        if not data:
            raise ValueError("the body is empty; send a prompt's folder as a zip or tar archive")
        read = partial(read_archive, data, max_bytes=server.limits.max_upload, folder=registry.folder)
        prompt = await run_sync(read)
        versions = await run_sync(registry.upload, name, prompt)
        log.info("%s: %s uploaded %s, %s", request.scope[REQUEST_ID], key.name, name, prompt.identity[:12])
        return _info(server, name, versions)

    @app.delete("/v1/prompts/{name}", response_model=api.Deleted, tags=["prompts"])
    async def delete(name: Wanted, request: Request, key: Key = administer) -> Any:
        """Take out a prompt, one version (NAME@HASH), an ensemble or an alias."""
        gone = await run_sync(registry.remove, name)
        log.info("%s: %s deleted %s", request.scope[REQUEST_ID], key.name, name)
        return {"name": name, "prompt_hashes": gone}

    @app.get("/v1/prompts/{name}/nearest", response_model=api.Nearest, tags=["prompts"])
    def near(
        name: Wanted,
        count: Annotated[int, Query(ge=1, le=50)] = NUM_NEAREST,
        key: Key = use,
    ) -> Any:
        """The vocabulary's nearest tokens to each row of a prompt, by cosine (paper, section 7)."""
        with registry.hold(name, 0.0) as held:
            identity = held.prompts[0] if len(held.prompts) == 1 else None
            if identity is None:
                raise ValueError(f"{name} is not one prompt; name one of its own")
            values = server.engine.table.values(identity)
            return {"name": name, "prompt_hash": identity, "rows": nearest_tokens(values, server.engine.lm, count)}

    @app.put("/v1/ensembles/{name}", response_model=api.EnsembleInfo, tags=["prompts"])
    def ensemble(name: Name, body: api.EnsembleRequest, key: Key = administer) -> Any:
        """Name several prompts of one task that vote."""
        return _ensemble(server, registry.now, name, registry.set_ensemble(name, body.members))

    @app.put("/v1/aliases/{name}", response_model=api.AliasInfo, tags=["prompts"])
    def alias(name: Name, body: api.AliasRequest, key: Key = administer) -> Any:
        """Send a name's requests to prompts, versions or ensembles by shares: promote, roll back, split."""
        return {"name": name, "targets": registry.set_alias(name, body.targets)}


def _model(server: Server, names: Names, name: str) -> dict[str, Any]:
    return {"id": name, "created": server.started, "kind": names.kind(name)}


def _ensemble(server: Server, names: Names, name: str, members: Sequence[str]) -> dict[str, Any]:
    try:
        versions = [names.version(member) for member in members]
    except ValueError:  # one is gone, or its old hash is of several
        versions = []
    fields = all_fields(server.asker.describe(version.prompt).task for version in versions)
    return {"name": name, "members": members, "fields": fields}


def _info(server: Server, name: str, versions: Sequence[Version]) -> dict[str, Any]:
    described = []
    for version in versions:
        worn = server.asker.describe(version.prompt)
        assert worn.card is not None
        described.append(
            {
                "prompt_hash": version.identity,
                "values_hash": version.prompt.values_sha256,
                "length": version.prompt.length,
                "task": worn.card.task,
                "fields": worn.task.fields,
                "labels": worn.task.labels or (),
                "dev_metrics": worn.card.dev_metrics,
                "scoring": worn.scoring,
            }
        )
    return {"name": name, "versions": described}
