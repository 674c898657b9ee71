"""The model's tokenizer from afar, as vLLM has it at the root: what tools count and cut inputs with."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from softprompt.serving import MAX_INPUT
from softprompt.serving.http import api
from softprompt.serving.http.access import Key
from softprompt.serving.http.state import Server


def add_tokenizer(app: FastAPI, server: Server) -> None:
    """Let the application turn text into ids and back."""
    use: Any = server.guard("use")
    lm = server.engine.lm

    @app.post("/tokenize", response_model=api.Tokenized, tags=["tokenizer"])
    def tokenize(body: api.TokenizeRequest, key: Key = use) -> Any:
        """The ids of a text as it stands, and what the tokenizer adds around it unless told otherwise."""
        tokenizer = lm.tokenizer
        ids = tokenizer.encode_with_added(body.prompt) if body.add_special_tokens else tokenizer.encode(body.prompt)
        return {
            "count": len(ids),
            "max_model_len": lm.max_length or MAX_INPUT,
            "tokens": ids,
            "token_strs": [tokenizer.name(id) for id in ids] if body.return_token_strs else None,
        }

    @app.post("/detokenize", response_model=api.Detokenized, tags=["tokenizer"])
    def detokenize(body: api.DetokenizeRequest, key: Key = use) -> Any:
        """The text of ids, special tokens by their names."""
        if unknown := [id for id in body.tokens if id >= lm.tokenizer.size]:
            raise ValueError(f"tokens: {unknown[0]} is no id; {lm.name} has {lm.tokenizer.size}, from 0 on")
        return {"prompt": lm.tokenizer.text_of(body.tokens)}

    @app.get("/tokenizer_info", tags=["tokenizer"])
    def tokenizer_info(key: Key = use) -> dict[str, Any]:
        """The tokenizer's special tokens, its class, and the model's chat template."""
        return lm.tokenizer.facts()
