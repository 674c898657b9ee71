"""A model's tokenizer, with what is needed of it and nothing added behind one's back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from softprompt.base.names import first_line

SENTINEL = "<extra_id_0>"  # T5's first sentinel, the last id of its vocabulary
BYTE_TOKEN = re.compile("<0x([0-9A-F]{2})>")  # how vocabularies of pieces write a byte that no piece has


class Rendered(str):
    """A text that a chat template made: its control tokens are meant."""


class Tokenizer:
    """Text to ids and back. No special token is added by `encode`: where they go is `softprompt.models.text`'s rule.

    model_ends: the ids that end a text by the model's configurations. ValueError where neither they nor the tokenizer
    name one.
    """

    def __init__(self, tokenizer: Any, model_ends: Sequence[int] = ()):
        self._tokenizer = tokenizer
        with_specials = tokenizer("a").input_ids
        first = with_specials[0] if with_specials else None
        self.bos_id: int | None = first if first is not None and first == tokenizer.bos_token_id else None
        self.size: int = len(tokenizer)
        ends = [id for id in (tokenizer.eos_token_id, *model_ends) if id is not None]
        # A class of configurations may have an end by default that this vocabulary has no room for.
        known = [id for id in ends if id < self.size]
        if not known:
            raise ValueError(
                "the tokenizer has no end of sequence, nor has the model's configuration; set eos_token in "
                "tokenizer_config.json, or eos_token_id in config.json"
            )
        self.eos_id: int = known[0]
        """What a target ends with: the tokenizer's own where it has one."""
        self.end_ids = frozenset(ends)
        """Whatever ends an answer."""
        self.pad_id: int = self.eos_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.has_chat_template: bool = tokenizer.chat_template is not None
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        special[self.eos_id] = tokenizer.convert_ids_to_tokens(self.eos_id)
        self._special_ids = {id for id, token in special.items() if not token.startswith("<extra_id_")}
        # What ends, begins or pads a text or a turn: special, but no sentinel, nor what unknown characters get.
        self._control_ids = {id for id, token in (added | special).items() if not token.startswith("<extra_id_")}
        if tokenizer.unk_token_id not in (tokenizer.bos_token_id, self.eos_id, tokenizer.pad_token_id):
            self._control_ids.discard(tokenizer.unk_token_id)
        self._ordinary_ids: list[int] | None = None
        self._plain: Any = None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, nothing added."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, nothing added; several times faster than one at a time."""
        if not texts:
            return []
        return self._tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids

    def encode_text(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that people wrote: as `encode_all`, but a `</s>` or `<|im_end|>` in one is spelled out.

        Sentinels are not, unless there is one of those beside them: T5's users write them where words are left out.
        """
        encoded = self.encode_all(texts)
        for i, ids in enumerate(encoded):
            if not self._control_ids.isdisjoint(ids) and not isinstance(texts[i], Rendered):
                (encoded[i],) = self.encode_plain([texts[i]])
        return encoded

    def encode_plain(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text with nothing but text in it: `</s>` or `<extra_id_0>` is spelled in ordinary pieces."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
            return [self._tokenizer(text, **options).input_ids for text in texts]
        if self._plain is None:
            self._plain = _without_control(backend, {*self._tokenizer.all_special_ids, self.eos_id})
        return [encoding.ids for encoding in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out. Sentinels stay: an answer that holds one is not legal."""
        left_out = self._special_ids
        return self.text_of([id for id in ids if id not in left_out])

    def text_of(self, ids: Sequence[int]) -> str:
        """All that ids stand for, special tokens too: what a model reads."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def encode_with_added(self, text: str) -> list[int]:
        """The ids of a text with what the tokenizer itself puts around it, such as a begin of sequence."""
        return self._tokenizer(text, verbose=False).input_ids

    def bytes_of(self, id: int) -> bytes | None:
        """What a token adds to the text in UTF-8, half a character too; None where `decode` leaves it out."""
        token = self._tokenizer.convert_ids_to_tokens(int(id)) if id < self.size else None
        if token is None or id in self._special_ids:
            return None
        backend, added, byte_of = self._spelling
        if id in added:
            return token.encode()
        if backend is None:  # of those without one, ByT5 has a token for each byte
            return self._tokenizer.decode([id]).encode() or token.encode("latin-1", "replace")
        if "ByteLevel(" in backend and all(character in byte_of for character in token):
            return bytes(byte_of[character] for character in token)
        if "ByteFallback(" in backend and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(byte[1])
        return token.replace("▁", " ").encode()

    def name(self, id: int) -> str:
        """One token in OpenAI's writing: its text, `bytes:\\xf0` for half a character, a special one's own name."""
        text = self.bytes_of(id)
        if text is None:
            return self._tokenizer.convert_ids_to_tokens(int(id)) if id < self.size else f"token_id:{id}"
        try:
            return text.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)

    @cached_property
    def _spelling(self) -> tuple[str | None, frozenset[int], dict[str, int]]:
        """How its backend puts tokens together, the ids added to its vocabulary, and the byte of each letter where a
        vocabulary spells bytes in letters.
        """
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        added = frozenset(self._tokenizer.get_added_vocab().values())
        return backend and repr(backend.decoder), added, {letter: byte for byte, letter in bytes_to_unicode().items()}

    def facts(self) -> dict[str, Any]:
        """What tools ask of a tokenizer from afar: its special tokens by name, its chat template, its class."""
        told = {f"{kind}_token": getattr(self._tokenizer, f"{kind}_token") for kind in ("bos", "eos", "pad", "unk")}
        told["eos_token"] = self._tokenizer.convert_ids_to_tokens(self.eos_id)
        return told | {
            "chat_template": self._tokenizer.chat_template,
            "tokenizer_class": type(self._tokenizer).__name__,
        }

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, None if it has no such token."""
        return self._tokenizer.get_vocab().get(token)

    def save(self, folder: str | Path) -> None:
        """Write its files, beside a model's."""
        self._tokenizer.save_pretrained(folder)

    def piece(self, id: int) -> str:
        """One token for people to read: `▁` and `Ġ` are shown as the space they stand for."""
        text = self._tokenizer.convert_ids_to_tokens(int(id))
        return text.replace("▁", " ").replace("Ġ", " ") if isinstance(text, str) else repr(text)

    def ordinary_ids(self) -> list[int]:
        """The ids that are ordinary text, most frequent first.

        Left out: special and added tokens, sentinels, raw bytes and pieces that are not whole characters. Both
        SentencePiece and byte-pair vocabularies number their pieces from frequent to rare.
        """
        if self._ordinary_ids is None:
            left_out = set(self._tokenizer.all_special_ids) | set(self._tokenizer.get_added_vocab().values())
            self._ordinary_ids = []
            for id in range(self.size):
                token = self._tokenizer.convert_ids_to_tokens(id)
                if id in left_out or not isinstance(token, str) or (token.startswith("<0x") and token.endswith(">")):
                    continue
                text = self._tokenizer.decode([id])
                if text.strip() and "\ufffd" not in text and text.isprintable():
                    self._ordinary_ids.append(id)
        return list(self._ordinary_ids)

    def chat(self, text: str) -> str:
        """The text as a user's turn in the model's own chat template, ready for the answer."""
        return self.conversation([{"role": "user", "content": text}])

    def conversation(self, messages: Sequence[dict[str, str]]) -> str:
        """Turns of `role` and `content` in the model's own chat template, ready for the answer.

        ValueError for an order of roles that the template refuses.
        """
        from jinja2 import TemplateError

        try:
            made = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses these messages: {error}") from error
        return Rendered(made)

    def digest(self) -> bytes:
        """What the fingerprint takes from the tokenizer."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        vocabulary = sorted(self._tokenizer.get_vocab().items())
        rules = "" if backend is None else backend.normalizer.__repr__() + backend.pre_tokenizer.__repr__()
        return hashlib.sha256(json.dumps([vocabulary, rules]).encode()).digest()


def _without_control(backend: Any, special_ids: set[int]) -> Any:
    """A tokenizer of the `tokenizers` library that gives the same ids, but none of these.

    It can be told to leave special tokens alone, but a unigram model has some among its pieces, at the best of scores,
    and finds them in ordinary text. So they get names that cannot be read: no text has a space when pieces are sought.
    """
    spec = json.loads(backend.to_str())
    for token in spec["added_tokens"]:
        token["special"] |= token["id"] in special_ids
    if spec["model"]["type"] == "Unigram":
        pieces = spec["model"]["vocab"]
        renamed = {id for id in special_ids if id < len(pieces)}
        for id in renamed:
            pieces[id][0] = f" {id} "
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] not in renamed]
    plain = type(backend).from_str(json.dumps(spec))
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return plain


def of_backend(backend: Any, *, pad: str, eos: str, unknown: str, extra: Sequence[str] = ()) -> Any:
    """A tokenizer of the `tokenizers` library as one of transformers; `extra` tokens get the ids after all others."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, eos_token=eos, unk_token=unknown, extra_special_tokens=list(extra)
    )


def load_tokenizer(source: str | Path) -> Tokenizer:
    """The tokenizer of a folder or a hub id. ValueError where there is none."""
    from transformers import AutoTokenizer

    if str(source).startswith((".", "/", "~")) and not Path(source).is_dir():
        raise ValueError(f"no folder {source}; give a folder that softprompt vocabulary wrote, or a model's")
    try:
        return Tokenizer(AutoTokenizer.from_pretrained(source))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load a tokenizer from {str(source)!r}: {first_line(error)}") from None
