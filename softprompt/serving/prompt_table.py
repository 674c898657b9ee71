"""The prompts an engine serves: thousands registered, as many in memory as the limit allows."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softprompt.models import FrozenLM, Layout, PromptStates
from softprompt.prompts import Card, SoftPrompt, check_fits, check_passed, check_runs, load_prompt

VALUES, STATES, KEPT = "values", "states", "kept"


@dataclass(frozen=True, slots=True)
class Registered:
    """A prompt of the table."""

    sha256: str
    """Its content hash, by which requests name it."""
    length: int
    """Prompt tokens."""
    width: int
    """Numbers of each."""
    folder: Path | None
    """Where it is read from; None for one that is kept in memory."""
    card_json: str
    """Its card as JSON, without `init`, which is as long as the prompt."""

    @property
    def card(self) -> Card:
        """Its card, without `init`."""
        return Card.from_json(self.card_json)


@dataclass(slots=True)
class _Entry:
    registered: Registered
    num_pins: int = 0
    is_removed: bool = False
    kept: SoftPrompt | None = None
    """The prompt itself where it cannot be read from a folder again."""
    is_sound: bool = False
    """Whether its own pass through an encoder was seen to be finite."""
    refusal: str | None = None
    """Why nobody may wear it: its own pass is not finite."""


@dataclass(slots=True)
class Counts:
    """What the table has done since the start."""

    num_loaded: int = 0
    """Prompts read from their folder because a request needed them."""
    num_run: int = 0
    """Prompts run through the model."""
    num_reused: int = 0
    """Times that a prompt's keys and values were wanted and there."""


class PromptTable:
    """Prompts by content hash, for one model. Any thread may call any method; names are the server's business.

    Values in memory, and the keys and values of prompts run through a decoder-only model, together take at most
    `max_bytes`, the least recently used out first; values are read from their folder again when a request needs them.
    What a folder cannot give back stays: prompts added from memory, and removed ones that requests still wear.
    No method waits for another that reads a folder or runs the model. runs_singly: no two prompts are run together, so
    that their keys and values are the same bits each time.
    """

    def __init__(self, lm: FrozenLM, *, max_bytes: int, runs_singly: bool = False):
        self.lm = lm
        self.runs_singly = runs_singly
        self.counts = Counts()
        self.layout: Layout = lm.layout()
        self._lock = threading.Lock()  # never held while a file is read or the model runs
        self._entries: dict[str, _Entry] = {}
        self._recent: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._max_bytes = self._limit = max_bytes
        self._bytes: Counter[str] = Counter()

    def add(self, prompt: str | Path | SoftPrompt, folder: Path | None = None) -> str:
        """Register a prompt folder (or a prompt in memory, which stays there) and return its content hash.

        folder: where a prompt in memory can be read again. The same content again is no error; its folder is then the
        newer one. ValueError for a folder that holds no prompt, for one of another model, and for one in memory where
        there is no room for it.
        """
        if isinstance(prompt, SoftPrompt):
            loaded = prompt
        else:
            loaded, folder = load_prompt(prompt), Path(prompt)
        check_fits(loaded, self.lm)
        sha256, slim = loaded.sha256, _slim(loaded)
        registered = Registered(sha256, loaded.length, loaded.width, folder, slim.card.to_json())
        with self._lock:
            entry = self._entries.get(sha256) or _Entry(registered)
            if folder is None and entry.registered.folder is None and entry.kept is None:
                if self._bytes[KEPT] + self._size(entry, KEPT) > self._max_bytes:
                    raise ValueError(
                        f"no room to keep this prompt in memory ({self._max_bytes:,} bytes for all); "
                        "save it and add its folder"
                    )
                self._keep(entry, slim)
            self._entries[sha256] = entry
            entry.is_removed = False
            if folder is not None:
                entry.registered = registered
                self._release(entry)
                self._remember(entry, VALUES, slim)
            self._evict()
        return sha256

    def remove(self, sha256: str) -> None:
        """Take a prompt out: no new request may wear it, those that do go on unchanged.

        When this returns the folder may be deleted: values that pinned requests still need are held in memory.
        ValueError for an unknown hash.
        """
        with self._lock:
            entry = self._entry(sha256)
            entry.is_removed = True
            self._drop_unused(entry)
            is_worn = entry.num_pins > 0
        if is_worn:
            with contextlib.suppress(ValueError):  # whoever wears it is told when its turn comes
                prompt = self._values(entry)
                with self._lock:
                    if entry.num_pins and entry.is_removed and entry.kept is None:
                        self._keep(entry, prompt)

    def get(self, sha256: str) -> Registered:
        """What is registered under a hash, or still worn. ValueError for an unknown one."""
        with self._lock:
            return self._entry(sha256, is_worn=True).registered

    def values(self, sha256: str) -> SoftPrompt:
        """A prompt that is registered or still worn, from memory or its folder; its card is without `init`.

        ValueError for an unknown hash, and if the folder has gone or holds another prompt by now.
        """
        with self._lock:
            entry = self._entry(sha256, is_worn=True)
        return self._values(entry)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self.hashes()

    def __len__(self) -> int:
        return len(self.hashes())

    def hashes(self) -> list[str]:
        """The content hashes registered, the oldest first."""
        with self._lock:
            return [sha256 for sha256, entry in self._entries.items() if not entry.is_removed]

    @property
    def values_bytes(self) -> int:
        """Bytes of the prompts in memory."""
        return self._bytes[VALUES] + self._bytes[KEPT]

    @property
    def states_bytes(self) -> int:
        """Bytes of the prompts' keys and values in memory."""
        return self._bytes[STATES]

    def fixed_bytes(self) -> int:
        """Bytes that cannot be given up."""
        return self._bytes[KEPT]

    def pin(self, prompts: Iterable[str]) -> None:
        """Keep these usable until `unpin`, even if they are removed.

        ValueError for an unknown one, and for one whose own pass was seen to be no number; then none is.
        """
        with self._lock:
            entries = [self._entry(sha256) for sha256 in prompts]
            self._refuse(prompts)
            for entry in entries:
                entry.num_pins += 1

    def unpin(self, prompts: Iterable[str]) -> None:
        """Undo `pin`."""
        with self._lock:
            for sha256 in prompts:
                entry = self._entries[sha256]
                entry.num_pins -= 1
                self._drop_unused(entry)

    def num_bytes(self, sha256: str) -> int:
        """What a pinned prompt takes while it is in use: its values, and keys and values if it is run."""
        entry = self._entries[sha256]
        return self._size(entry, VALUES) + (0 if self.lm.is_encoder_decoder else self._size(entry, STATES))

    def has_states(self, sha256: str) -> bool:
        """Whether a prompt's keys and values are there."""
        return (sha256, STATES) in self._recent

    def limit(self, max_bytes: int, needed: Collection[str] = ()) -> None:
        """Take at most so much from now on, giving up what was not used lately, but nothing of `needed`."""
        with self._lock:
            self._limit = max_bytes
            self._evict(needed)

    def give(self, num_bytes: int) -> None:
        """Take so much less, if it is above 0, until `limit` is told again."""
        self.limit(self._limit - max(num_bytes, 0))

    def sound_values(self, sha256: str) -> SoftPrompt:
        """As `values`, of a pinned prompt that an encoder was seen to read as numbers; else ValueError."""
        self._refuse([sha256])
        prompt, entry = self.values(sha256), self._entries[sha256]
        if not entry.is_sound:
            with self._refusing(entry):
                check_runs(prompt, self.lm)
            entry.is_sound = True
        return prompt

    def states(self, prompts: Collection[str]) -> dict[str, PromptStates]:
        """Keys and values of pinned prompts whose values are readable, each run once and then remembered.

        ValueError for a prompt whose own pass is not finite; the others are remembered all the same.
        """
        self._refuse(prompts)
        with self._lock:
            found = {sha256: self._recent[sha256, STATES] for sha256 in prompts if (sha256, STATES) in self._recent}
            for sha256 in found:
                self._recent.move_to_end((sha256, STATES))
            self.counts.num_reused += len(found)
        missing = [sha256 for sha256 in prompts if sha256 not in found]
        if missing:
            values = [self.values(sha256).values for sha256 in missing]
            together = [[value] for value in values] if self.runs_singly else [values]
            run = [states for some in together for states in self._run(some)]
            with self._lock:
                self.counts.num_run += len(missing)
                for sha256, states in zip(missing, run, strict=True):
                    with contextlib.suppress(ValueError), self._refusing(self._entries[sha256]):
                        check_passed(states.by_layer(), self.lm)
                        self._remember(self._entries[sha256], STATES, states)
                        found[sha256] = states
                self._evict(prompts)
            self._refuse(prompts)
        return found

    def _refuse(self, prompts: Iterable[str]) -> None:
        for sha256 in prompts:
            if refusal := self._entries[sha256].refusal:
                raise ValueError(refusal)

    @contextlib.contextmanager
    def _refusing(self, entry: _Entry) -> Iterator[None]:
        """Note what is wrong with a prompt's own pass: from then on nobody may wear it."""
        try:
            yield
        except ValueError as error:
            entry.refusal = f"prompt {entry.registered.sha256[:12]} is not served: {error}"
            raise ValueError(entry.refusal) from error

    @torch.no_grad()
    def _run(self, values: list[torch.Tensor]) -> list[PromptStates]:
        run = self.lm.prompt_states([value.to(self.lm.device) for value in values])
        # Copies: a slice would keep all prompts that were run with it.
        return [run.prompt(place).to(self.lm.dtype, copy=True) for place in range(len(values))]

    def _entry(self, sha256: str, *, is_worn: bool = False) -> _Entry:
        """What stands under a hash; is_worn: also where it was removed, and stays for those who wear it."""
        entry = self._entries.get(sha256)
        if entry is None or (entry.is_removed and not is_worn):
            raise ValueError(f"no prompt with the content hash {sha256} is registered; add its folder first")
        return entry

    def _values(self, entry: _Entry) -> SoftPrompt:
        sha256 = entry.registered.sha256
        while True:
            with self._lock:
                if entry.kept is not None:
                    return entry.kept
                if (sha256, VALUES) in self._recent:
                    self._recent.move_to_end((sha256, VALUES))
                    return self._recent[sha256, VALUES]
                folder = entry.registered.folder
            assert folder is not None
            try:
                loaded = load_prompt(folder)
                if loaded.sha256 != sha256:
                    raise ValueError(
                        f"{folder} holds another prompt than when it was registered (hash {loaded.sha256[:12]}, wanted "
                        f"{sha256[:12]}); register it again, and give each version a folder of its own"
                    )
            except ValueError:
                if entry.kept is None and entry.registered.folder == folder:
                    raise
                continue  # it was removed, and is kept, or has moved
            slim = _slim(loaded)
            with self._lock:
                self.counts.num_loaded += 1
                self._remember(entry, VALUES, slim)
                self._evict({sha256})
            return slim

    def _keep(self, entry: _Entry, prompt: SoftPrompt) -> None:
        """Hold a prompt in memory for good."""
        self._forget((entry.registered.sha256, VALUES))
        entry.kept = prompt
        self._bytes[KEPT] += self._size(entry, KEPT)
        self._evict()

    def _release(self, entry: _Entry) -> None:
        if entry.kept is not None:
            self._bytes[KEPT] -= self._size(entry, KEPT)
            entry.kept = None

    def _drop_unused(self, entry: _Entry) -> None:
        if entry.is_removed and not entry.num_pins:
            self._release(entry)
            for kind in (VALUES, STATES):
                self._forget((entry.registered.sha256, kind))
            self._entries.pop(entry.registered.sha256, None)

    def _remember(self, entry: _Entry, kind: str, what: Any) -> None:
        """Hold an entry's values or states in memory, as what was used last, unless it has gone meanwhile."""
        sha256 = entry.registered.sha256
        if self._entries.get(sha256) is entry:
            self._forget((sha256, kind))
            self._recent[sha256, kind] = what
            self._bytes[kind] += self._size(entry, kind)

    def _forget(self, key: tuple[str, str]) -> None:
        if self._recent.pop(key, None) is not None:
            self._bytes[key[1]] -= self._size(self._entries[key[0]], key[1])

    def _evict(self, needed: Collection[str] = ()) -> None:
        if self._bytes.total() > self._limit:
            for key in list(self._recent):
                if key[0] not in needed:
                    self._forget(key)
                    if self._bytes.total() <= self._limit:
                        return

    def _size(self, entry: _Entry, kind: str) -> int:
        """Bytes of an entry's float32 values, or of its keys and values."""
        return entry.registered.length * (self.layout.token_bytes if kind == STATES else 4 * entry.registered.width)


def _slim(prompt: SoftPrompt) -> SoftPrompt:
    """The prompt without the tokens that each of its rows was made of."""
    return SoftPrompt(prompt.values, replace(prompt.card, init={}))
