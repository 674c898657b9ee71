"""Who may do what, and how often: API keys with scopes and limits."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from softprompt.base.files import read_yaml
from softprompt.base.names import nearest

SCOPES = ("use", "administer")
MINUTE = 60.0


class Refused(Exception):
    """The caller may not do this: status 401, 403 or 429."""

    def __init__(self, status: int, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True, kw_only=True)
class Key:
    """One API key; only its hash is kept in memory."""

    name: str
    """What logs call it."""
    sha256: str
    scopes: frozenset[str] = frozenset({"use"})
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Input and output tokens together."""


LOCAL = Key(name="local", sha256="", scopes=frozenset(SCOPES))
"""Whoever calls a server without keys, which listens on this machine only."""


@dataclass
class _Bucket:
    """An allowance that fills up at an even rate to one minute's worth."""

    per_minute: float
    left: float
    filled: float

    def wait(self, now: float) -> float:
        """Seconds until something is left; 0 if there is."""
        self.left = min(self.per_minute, self.left + (now - self.filled) * self.per_minute / MINUTE)
        self.filled = now
        return max(0.0, (1 - self.left) * MINUTE / self.per_minute)


@dataclass
class Access:
    """The keys of a server, and what each has used. Without keys everybody is `LOCAL`."""

    keys: tuple[Key, ...] = ()
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def key_of(self, header: str | None, scope: str) -> Key:
        """Whose request this is. header: the Authorization header. Refused: no such key (401), not its scope (403)."""
        if not self.keys:
            return LOCAL
        word, _, secret = (header or "").partition(" ")
        if word.lower() != "bearer" or not secret:
            raise Refused(401, "no API key; send the header Authorization: Bearer KEY")
        digest = hashlib.sha256(secret.strip().encode()).hexdigest()  # equal time for every key: hashes are compared
        for key in self.keys:
            if key.sha256 == digest:
                if scope not in key.scopes:
                    raise Refused(403, f"the key {key.name} may {' and '.join(sorted(key.scopes))}, not {scope}")
                return key
        raise Refused(401, "unknown API key")

    def admit(self, key: Key) -> None:
        """Count a request. Refused (429) if the key has used up its minute, of requests or of tokens."""
        with self._lock:
            kinds = ("requests", "tokens")
            for kind in kinds:
                if (bucket := self._bucket(key, kind)) and (wait := bucket.wait(self.clock())) > 0:
                    raise Refused(429, f"the key {key.name} has used its {kind} of this minute; try later", wait)
            if bucket := self._bucket(key, "requests"):
                bucket.left -= 1

    def charge(self, key: Key, num_tokens: int) -> None:
        """Count tokens that were read or written; the key's next requests wait until they are made up for."""
        with self._lock:
            if bucket := self._bucket(key, "tokens"):
                bucket.wait(self.clock())
                bucket.left -= num_tokens

    def _bucket(self, key: Key, kind: str) -> _Bucket | None:
        limit = getattr(key, f"{kind}_per_minute")
        if limit is None:
            return None
        return self._buckets.setdefault((key.name, kind), _Bucket(limit, limit, self.clock()))


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """The keys of a YAML file: a list of name, key (or sha256 of it), scopes, requests_per_minute, tokens_per_minute.

    Raises ValueError for a file that is missing, is no such list, or is empty.
    """
    listed = read_yaml(path, "the key file")
    if not isinstance(listed, list) or not listed or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{path} holds no list of keys; write '- name: ...' and 'key: ...' for each")
    keys = tuple(_key(entry, f"{path}, key {number}") for number, entry in enumerate(listed, 1))
    for what in ("name", "sha256"):
        values = [getattr(key, what) for key in keys]
        if len(set(values)) < len(values):
            raise ValueError(f"{path} has two keys of one {'name' if what == 'name' else 'secret'}; make them differ")
    return keys


def _key(entry: Mapping[str, Any], where: str) -> Key:
    known = {*(f.name for f in fields(Key)), "key"}
    for name in entry:
        if name not in known:
            raise ValueError(f"{where}: unknown entry {name!r}{nearest(str(name), known)}")
    if not isinstance(entry.get("name"), str) or ("key" in entry) == ("sha256" in entry):
        raise ValueError(f"{where}: give a name, and either key or sha256")
    secret = entry.get("key", entry.get("sha256"))
    if not isinstance(secret, str) or len(secret) < 16:
        raise ValueError(f"{where}: a key is text of 16 characters or more")
    scopes = entry.get("scopes", ["use"])
    if not isinstance(scopes, list) or not scopes or not set(scopes) <= set(SCOPES):
        raise ValueError(f"{where}: scopes is {scopes!r}; give a list of {' and '.join(SCOPES)}")
    for name in ("requests_per_minute", "tokens_per_minute"):
        limit = entry.get(name)
        if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or limit < 1):
            raise ValueError(f"{where}: {name} is {limit!r}; give a number of 1 or more")
    digest = entry["sha256"].lower() if "sha256" in entry else hashlib.sha256(secret.encode()).hexdigest()
    return Key(
        name=entry["name"],
        sha256=digest,
        scopes=frozenset(scopes),
        requests_per_minute=entry.get("requests_per_minute"),
        tokens_per_minute=entry.get("tokens_per_minute"),
    )
