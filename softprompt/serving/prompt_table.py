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
from torch import Tensor

from softprompt.models import FrozenLM, Layout, PromptStates
from softprompt.prompts import Card, SoftPrompt, check_fits, check_passed, check_runs, load_prompt, local_folder

VALUES, STATES, KEPT = "values", "states", "kept"


@dataclass(frozen=True, slots=True)
class Registered:
    """A prompt of the table."""

    identity: str
    """Its hash, by which requests name it: of everything that changes an answer (`SoftPrompt.identity`)."""
    values_sha256: str
    """The hash of its numbers, which others may have, too."""
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


@dataclass(slots=True, eq=False)
class _Numbers:
    """What prompts of the same values share."""

    key: tuple[str, bool]
    """Their hash, and whether they are keys and values."""
    length: int
    width: int
    num_prompts: int = 0
    kept: Tensor | None = None
    """The values themselves where one of the prompts cannot be read from a folder again."""
    num_keepers: int = 0
    """Those prompts."""
    is_sound: bool = False
    """Whether their own pass through an encoder was seen to be finite."""
    refusal: str | None = None
    """Why nobody may wear them: their own pass is not finite."""


@dataclass(slots=True, eq=False)
class _Entry:
    registered: Registered
    numbers: _Numbers
    num_pins: int = 0
    is_removed: bool = False
    is_keeper: bool = False
    """Whether it cannot be read from a folder again."""


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
    """Prompts by identity, for one model. Any thread may call any method; names are the server's business.

    Values in memory, and the keys and values of prompts run through a decoder-only model, together take at most
    `max_bytes`, the least recently used out first; values are read from their folder again when a request needs them.
    What a folder cannot give back stays: prompts added from memory, and removed ones that requests still wear. Prompts
    that differ in their cards only share all that. No method waits for another that reads a folder or runs the model.
    runs_singly: no two prompts are run together, so that their keys and values are the same bits each time.
    """

    def __init__(self, lm: FrozenLM, *, max_bytes: int, runs_singly: bool = False):
        self.lm = lm
        self.runs_singly = runs_singly
        self.counts = Counts()
        self.layout: Layout = lm.layout()
        self._lock = threading.Lock()  # never held while a file is read or the model runs
        self._entries: dict[str, _Entry] = {}
        self._numbers: dict[tuple[str, bool], _Numbers] = {}
        self._recent: OrderedDict[tuple[_Numbers, str], Any] = OrderedDict()
        self._max_bytes = self._limit = max_bytes
        self._bytes: Counter[str] = Counter()

    def add(self, prompt: str | Path | SoftPrompt, folder: Path | None = None) -> str:
        """Register a prompt folder, of the hub too (or a prompt in memory, which stays there) and return its identity.

        folder: where a prompt in memory can be read again. The same prompt again is no error; its folder is then the
        newer one. ValueError for a folder that holds no prompt, for one of another model, and for one in memory where
        there is no room for it.
        """
        if isinstance(prompt, SoftPrompt):
            loaded = prompt
        else:
            loaded, folder = load_prompt(prompt), local_folder(prompt)
        check_fits(loaded, self.lm)
        identity, key = loaded.identity, _key(loaded)
        card = replace(loaded.card, init={})  # which is as long as the prompt
        registered = Registered(identity, key[0], loaded.length, loaded.width, folder, card.to_json())
        with self._lock:
            numbers = self._numbers.get(key) or _Numbers(key, loaded.length, loaded.width)
            entry = self._entries.get(identity) or _Entry(registered, numbers)
            if folder is None and entry.registered.folder is None and not entry.is_keeper:
                if numbers.kept is None and self._bytes[KEPT] + self._size(numbers, KEPT) > self._max_bytes:
                    raise ValueError(
                        f"no room to keep this prompt in memory ({self._max_bytes:,} bytes for all); "
                        "save it and add its folder"
                    )
                self._keep(entry, loaded.values)
            if identity not in self._entries:
                self._entries[identity], self._numbers[key] = entry, numbers
                numbers.num_prompts += 1
            entry.is_removed = False
            if folder is not None:
                entry.registered = registered
                self._release(entry)
                self._remember(numbers, VALUES, loaded.values)
            self._evict()
        return identity

    def moved(self, identity: str, folder: Path) -> None:
        """Read a registered prompt from another folder from now on. ValueError for an unknown one."""
        with self._lock:
            entry = self._entry(identity)
            entry.registered = replace(entry.registered, folder=folder)

    def remove(self, identity: str) -> None:
        """Take a prompt out: no new request may wear it, those that do go on unchanged.

        When this returns the folder may be deleted: values that pinned requests still need are held in memory.
        ValueError for an unknown hash.
        """
        with self._lock:
            entry = self._entry(identity)
            entry.is_removed = True
            self._drop_unused(entry)
            is_worn = entry.num_pins > 0
        if is_worn:
            with contextlib.suppress(ValueError):  # whoever wears it is told when its turn comes
                values = self._values(entry)
                with self._lock:
                    if entry.num_pins and entry.is_removed and not entry.is_keeper:
                        self._keep(entry, values)

    def get(self, identity: str) -> Registered:
        """What is registered under a hash, or still worn. ValueError for an unknown one."""
        with self._lock:
            return self._entry(identity, is_worn=True).registered

    def values(self, identity: str) -> Tensor:
        """The values of a prompt that is registered or still worn, from memory or its folder.

        ValueError for an unknown hash, and if the folder has gone or holds other numbers by now.
        """
        with self._lock:
            entry = self._entry(identity, is_worn=True)
        return self._values(entry)

    def __contains__(self, identity: str) -> bool:
        return identity in self.hashes()

    def __len__(self) -> int:
        return len(self.hashes())

    def hashes(self) -> list[str]:
        """The identities registered, the oldest first."""
        with self._lock:
            return [identity for identity, entry in self._entries.items() if not entry.is_removed]

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

    def pin(self, prompts: Iterable[str], *, is_worn: bool = False) -> None:
        """Keep these usable until `unpin`, even if they are removed; is_worn: also those that were, and are pinned.

        ValueError for an unknown one, and for one whose own pass was seen to be no number; then none is.
        """
        with self._lock:
            entries = [self._entry(identity, is_worn=is_worn) for identity in prompts]
            self._refuse(prompts)
            for entry in entries:
                entry.num_pins += 1

    def unpin(self, prompts: Iterable[str]) -> None:
        """Undo `pin`."""
        with self._lock:
            for identity in prompts:
                entry = self._entries[identity]
                entry.num_pins -= 1
                self._drop_unused(entry)

    def num_bytes(self, identity: str) -> int:
        """What a pinned prompt takes while it is in use: its values, and keys and values if it is run."""
        numbers = self._entries[identity].numbers
        return self._size(numbers, VALUES) + (0 if self.lm.is_encoder_decoder else self._size(numbers, STATES))

    def has_states(self, identity: str) -> bool:
        """Whether a pinned prompt's keys and values are there."""
        return (self._entries[identity].numbers, STATES) in self._recent

    def limit(self, max_bytes: int, needed: Collection[str] = ()) -> None:
        """Take at most so much from now on, giving up what was not used lately, but nothing of `needed`."""
        with self._lock:
            self._limit = max_bytes
            self._evict({self._entries[identity].numbers for identity in needed})

    def give(self, num_bytes: int) -> None:
        """Take so much less, if it is above 0, until `limit` is told again."""
        self.limit(self._limit - max(num_bytes, 0))

    def sound_values(self, identity: str) -> Tensor:
        """As `values`, of a pinned prompt that an encoder was seen to read as numbers; else ValueError."""
        values, numbers = self.values(identity), self._entries[identity].numbers
        if not (numbers.is_sound or numbers.refusal):
            with _noting_refusal(numbers):
                check_runs(values, self.lm)
                numbers.is_sound = True
        self._refuse([identity])
        return values

    def states(self, prompts: Collection[str]) -> dict[str, PromptStates]:
        """Keys and values of pinned prompts whose values are readable, each run once and then remembered.

        ValueError for a prompt whose own pass is not finite; the others are remembered all the same.
        """
        self._refuse(prompts)
        found: dict[_Numbers, PromptStates] = {}
        with self._lock:
            worn = {identity: self._entries[identity] for identity in prompts}
            for entry in worn.values():
                if (key := (entry.numbers, STATES)) in self._recent:
                    self._recent.move_to_end(key)
                    self.counts.num_reused += 1
                    found[entry.numbers] = self._recent[key]
        missing = {entry.numbers: entry for entry in worn.values() if entry.numbers not in found}
        if missing:
            values = [self._values(entry) for entry in missing.values()]
            together = [[value] for value in values] if self.runs_singly else [values]
            run = [states for some in together for states in self._run(some)]
            with self._lock:
                self.counts.num_run += len(missing)
                for numbers, states in zip(missing, run, strict=True):
                    with _noting_refusal(numbers):
                        check_passed(states.by_layer(), self.lm)
                        self._remember(numbers, STATES, states)
                        found[numbers] = states
                self._evict({entry.numbers for entry in worn.values()})
            self._refuse(prompts)
        return {identity: found[entry.numbers] for identity, entry in worn.items()}

    def _refuse(self, prompts: Iterable[str]) -> None:
        for identity in prompts:
            if refusal := self._entries[identity].numbers.refusal:
                raise ValueError(f"prompt {identity[:12]} is not served: {refusal}")

    @torch.no_grad()
    def _run(self, values: list[Tensor]) -> list[PromptStates]:
        run = self.lm.prompt_states([value.to(self.lm.device) for value in values])
        # Copies: a slice would keep all prompts that were run with it.
        return [run.prompt(place).to(self.lm.dtype, copy=True) for place in range(len(values))]

    def _entry(self, identity: str, *, is_worn: bool = False) -> _Entry:
        """What stands under a hash; is_worn: also where it was removed, and stays for those who wear it."""
        entry = self._entries.get(identity)
        if entry is None or (entry.is_removed and not is_worn):
            raise ValueError(f"no prompt with the content hash {identity} is registered; add its folder first")
        return entry

    def _values(self, entry: _Entry) -> Tensor:
        numbers = entry.numbers
        while True:
            with self._lock:
                if numbers.kept is not None:
                    return numbers.kept
                if (numbers, VALUES) in self._recent:
                    self._recent.move_to_end((numbers, VALUES))
                    return self._recent[numbers, VALUES]
                folder = entry.registered.folder
            assert folder is not None
            try:
                loaded = load_prompt(folder)
                if _key(loaded) != numbers.key:
                    raise ValueError(
                        f"{folder} holds another prompt than when it was registered (values' hash {loaded.sha256[:12]}"
                        f", wanted {numbers.key[0][:12]}); register it again, and give each version a folder of its own"
                    )
            except ValueError:
                if numbers.kept is None and entry.registered.folder == folder:
                    raise
                continue  # it was removed, and is kept, or has moved
            with self._lock:
                self.counts.num_loaded += 1
                self._remember(numbers, VALUES, loaded.values)
                self._evict({numbers})
            return loaded.values

    def _keep(self, entry: _Entry, values: Tensor) -> None:
        """Hold a prompt's values in memory for good."""
        numbers, entry.is_keeper = entry.numbers, True
        numbers.num_keepers += 1
        if numbers.kept is None:
            self._forget((numbers, VALUES))
            numbers.kept = values
            self._bytes[KEPT] += self._size(numbers, KEPT)
            self._evict()

    def _release(self, entry: _Entry) -> None:
        numbers = entry.numbers
        if entry.is_keeper:
            entry.is_keeper = False
            numbers.num_keepers -= 1
            if not numbers.num_keepers:
                numbers.kept = None
                self._bytes[KEPT] -= self._size(numbers, KEPT)

    def _drop_unused(self, entry: _Entry) -> None:
        if entry.is_removed and not entry.num_pins:
            self._release(entry)
            del self._entries[entry.registered.identity]
            numbers = entry.numbers
            numbers.num_prompts -= 1
            if not numbers.num_prompts:
                for kind in (VALUES, STATES):
                    self._forget((numbers, kind))
                del self._numbers[numbers.key]

    def _remember(self, numbers: _Numbers, kind: str, what: Any) -> None:
        """Hold values or states in memory, as what was used last, unless they are kept or nobody has them any more."""
        if numbers.num_prompts and not (kind == VALUES and numbers.kept is not None):
            self._forget((numbers, kind))
            self._recent[numbers, kind] = what
            self._bytes[kind] += self._size(numbers, kind)

    def _forget(self, key: tuple[_Numbers, str]) -> None:
        if self._recent.pop(key, None) is not None:
            self._bytes[key[1]] -= self._size(*key)

    def _evict(self, needed: Collection[_Numbers] = ()) -> None:
        if self._bytes.total() > self._limit:
            for key in list(self._recent):
                if key[0] not in needed:
                    self._forget(key)
                    if self._bytes.total() <= self._limit:
                        return

    def _size(self, numbers: _Numbers, kind: str) -> int:
        """Bytes of float32 values, or of their keys and values."""
        return numbers.length * (self.layout.token_bytes if kind == STATES else 4 * numbers.width)


def _key(prompt: SoftPrompt) -> tuple[str, bool]:
    return prompt.sha256, prompt.is_kv


@contextlib.contextmanager
def _noting_refusal(numbers: _Numbers) -> Iterator[None]:
    """Note what is wrong with a prompt's own pass: from then on nobody may wear its values."""
    try:
        yield
    except ValueError as error:
        numbers.refusal = str(error)
