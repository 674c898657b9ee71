"""Log-probabilities of tokens in OpenAI's two forms: columns for completions, entries for chat."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any, NamedTuple

from softprompt.models import Tokenizer
from softprompt.serving import PartAnswer

LEAST = -9999.0  # what OpenAI writes for a token that cannot come; JSON has no infinity


class Told(NamedTuple):
    """One token, and what was probable in its place."""

    id: int
    log_prob: float | None
    """None for the first token of an input, before which nothing stands."""
    alternatives: dict[int, float]
    """log p of the most probable ids, the first in front, and of its own."""
    text: bytes
    """What it is in the text, half a character too."""


def tokens_of(part: PartAnswer, tokenizer: Tokenizer, read: Sequence[int] = ()) -> list[Told]:
    """The tokens that a part wrote, its end of sequence last. read: those of its input, to stand in front of them."""
    tokens = []
    for id, alternatives in zip(read, [{}, *part.read], strict=True) if read else ():
        text = tokenizer.bytes_of(id)
        tokens.append(
            Told(id, alternatives.get(id), alternatives, tokenizer.name(id).encode() if text is None else text)
        )
    written = part.ids if part.end is None else (*part.ids, part.end)
    chosen = part.alternatives or [{id: log_prob} for id, log_prob in zip(written, part.log_probs, strict=True)]
    for id, alternatives in zip(written, chosen, strict=True):
        shown = b"" if id == part.end else tokenizer.bytes_of(id) or b""
        tokens.append(Told(id, alternatives[id], alternatives, shown))
    return tokens


def columns(tokens: Sequence[Told], text: str, tokenizer: Tokenizer) -> dict[str, Any]:
    """As completions have it. text: what the tokens became, in whose characters the offsets are."""
    decoder, whole, offsets = getincrementaldecoder("utf-8")(errors="replace"), "", []
    for token in tokens:
        offsets.append(len(whole))
        whole += decoder.decode(token.text)
    hidden = max((whole + decoder.decode(b"", final=True)).find(text), 0)  # such as a space in front
    return {
        "tokens": [tokenizer.name(token.id) for token in tokens],
        "token_logprobs": [None if token.log_prob is None else max(token.log_prob, LEAST) for token in tokens],
        "top_logprobs": [_by_name(token, tokenizer) or None for token in tokens],
        "text_offset": [min(max(offset - hidden, 0), len(text)) for offset in offsets],
    }


def entries(tokens: Sequence[Told], count: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """As chat has it, with the `count` most probable tokens in each place; an end of sequence has no bytes."""

    def entry(id: int, log_prob: float) -> dict[str, Any]:
        text = tokenizer.bytes_of(id)
        return {
            "token": tokenizer.name(id),
            "logprob": max(log_prob, LEAST),
            "bytes": None if text is None else list(text),
        }

    content = []
    for token in tokens:
        top = [entry(id, log_prob) for id, log_prob in list(token.alternatives.items())[:count]]
        content.append(entry(token.id, token.alternatives[token.id]) | {"top_logprobs": top})
    return {"content": content}


def _by_name(token: Told, tokenizer: Tokenizer) -> dict[str, float]:
    """The alternatives by their text; where several are written alike, by their ids, but for the token itself."""
    named = {}
    for id, log_prob in token.alternatives.items():
        name = tokenizer.name(id)
        if id != token.id and (name == tokenizer.name(token.id) or name in named):
            name = f"token_id:{id}"
        named[name] = max(log_prob, LEAST)
    return named
