"""Who may do what, and how often: API keys with scopes and limits; without keys, this machine's own names."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from softprompt.base.checked import MAX_SHOWN, checked
from softprompt.base.files import read_yaml

SCOPES = ("use", "administer")
MINUTE = 60.0
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
ORIGIN = re.compile(rf"([a-z][a-z0-9+.-]*)://({HOST.pattern})")


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


@dataclass
class Access:
    """The keys of a server, and what each has used. Without keys everybody is `LOCAL` who calls it by a name it has.

    allowed_hosts: names it has besides this machine's own. cors_origins: pages of other servers that may ask, with keys
    and without. ValueError for what is no name or origin, and for names with keys, which make every name good.
    """

    keys: tuple[Key, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    clock: Callable[[], float] = time.monotonic
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if _named(host) != host.lower():
                raise ValueError(f"allowed_host is {host!r}, but must be a name without a port, such as gpu-box.lan")
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"cors_origin is {origin!r}, but must be an origin such as https://app.example.com")
        if self.keys and self.allowed_hosts:
            raise ValueError(
                "allowed_host is for a server without keys; leave it out, as with keys every name is taken"
            )
        self._names = LOOPBACK.union(host.lower() for host in self.allowed_hosts)

    def let_in(self, host: str, origin: str | None) -> None:
        """Whatever has a key; without keys, what calls by a name of this server. host, origin: headers of a request.

        Any page of the web can make a browser call this machine, by a name of its own that leads here too (DNS
        rebinding), but cannot change what the browser says of it in these two. Refused (403) where one is not ours.
        """
        if self.keys:
            return
        if _named(host) not in self._names:
            raise Refused(
                403,
                f"this server has no keys and is not called {host[:MAX_SHOWN]!r}; ask localhost, or start it with "
                "--allowed-host NAME or with --api-key-file",
            )
        if origin is None or origin in self.cors_origins:
            return
        found = ORIGIN.fullmatch(origin)
        if not found or found[1] not in ("http", "https") or _named(found[2]) not in self._names:
            raise Refused(
                403,
                f"this server has no keys and takes nothing from pages of {origin[:MAX_SHOWN]!r}; start it with "
                "--cors-origin ORIGIN, or with --api-key-file",
            )

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
            requests, tokens = self._bucket(key, "requests"), self._bucket(key, "tokens")
            for kind, bucket in (("requests", requests), ("tokens", tokens)):
                if bucket is not None and bucket.left < 1:
                    wait = (1 - bucket.left) * MINUTE / bucket.per_minute
                    raise Refused(429, f"the key {key.name} has used its {kind} of this minute; try later", wait)
            if requests is not None:
                requests.left -= 1

    def charge(self, key: Key, num_tokens: int) -> None:
        """Count tokens that were read or written; the key's next requests wait until they are made up for."""
        with self._lock:
            if (bucket := self._bucket(key, "tokens")) is not None:
                bucket.left -= num_tokens

    def _bucket(self, key: Key, kind: str) -> _Bucket | None:
        """What a key has left of its requests or tokens now; None without a limit."""
        limit, now = getattr(key, f"{kind}_per_minute"), self.clock()
        if limit is None:
            return None
        bucket = self._buckets.setdefault((key.name, kind), _Bucket(limit, limit, now))
        bucket.left = min(limit, bucket.left + (now - bucket.filled) * limit / MINUTE)
        bucket.filled = now
        return bucket


def _named(host: str) -> str:
    """A host without its port, in small letters; empty for what is none."""
    found = HOST.fullmatch(host.lower())
    return found[1] if found else ""


Limit = Annotated[float, Field(ge=1, allow_inf_nan=False)] | None


@dataclass(frozen=True, kw_only=True)
class KeyEntry:
    """One entry of a key file, as people write it."""

    name: str
    key: Any = None
    """The key itself, unless its hash is given."""
    sha256: Any = None
    scopes: Any = ("use",)
    requests_per_minute: Limit = None
    tokens_per_minute: Limit = None

    def __post_init__(self) -> None:
        # Checked here, so that no message shows a secret, and each says all that is wanted.
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("give a name, and either key or sha256")
        if self.sha256 is None and (not isinstance(self.key, str) or len(self.key) < 16):
            raise ValueError("a key is text of 16 characters or more")
        if self.key is None and not re.fullmatch("[0-9a-fA-F]{64}", str(self.sha256)):
            raise ValueError("sha256 is no hash; give its 64 hexadecimal digits")
        if not isinstance(self.scopes, list | tuple) or not self.scopes or any(s not in SCOPES for s in self.scopes):
            raise ValueError(f"scopes is {self.scopes!r}; give a list of {' and '.join(SCOPES)}")


def read_keys(path: str | Path) -> tuple[Key, ...]:
    """The keys of a YAML file: a list of name, key (or sha256 of it), scopes, requests_per_minute, tokens_per_minute.

    Raises ValueError for a file that is missing, is no such list, or is empty.
    """
    listed = read_yaml(path, "the key file")
    if not isinstance(listed, list) or not listed or not all(isinstance(given, dict) for given in listed):
        raise ValueError(f"{path} holds no list of keys; write '- name: ...' and 'key: ...' for each")
    keys: list[Key] = []
    for number, given in enumerate(listed, 1):
        entry = checked(KeyEntry, given, f"{path}, key {number}", noun="entry")
        secret = str(entry.sha256).lower() if entry.sha256 else hashlib.sha256(entry.key.encode()).hexdigest()
        for other in keys:
            if entry.name == other.name or secret == other.sha256:
                what = "name" if entry.name == other.name else "secret"
                raise ValueError(f"{path} has two keys of one {what}; make them differ")
        keys.append(
            Key(
                name=entry.name,
                sha256=secret,
                scopes=frozenset(entry.scopes),
                requests_per_minute=entry.requests_per_minute,
                tokens_per_minute=entry.tokens_per_minute,
            )
        )
    return tuple(keys)
