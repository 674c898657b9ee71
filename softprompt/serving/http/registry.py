"""Names for served prompts: versions, ensembles and aliases, kept on disk.

All names share one space. A *prompt* is a name with versions, of which the last is current; `name@hash` means one of
them, by the first digits of its content hash. An *ensemble* is a name for several prompts that vote. An *alias* sends
each request to one of its targets, by their shares.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from softprompt.base.files import write_whole
from softprompt.base.names import nearest
from softprompt.prompts import CONFIG, SoftPrompt, check_fits, save_prompt
from softprompt.serving import PromptTable

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SHORT_HASH = 12  # digits shown; ours
MIN_HASH = 8  # digits that a request must give; ours
MAX_MEMBERS = 32  # prompts of an ensemble; ours
STATE = "registry.json"
FORMAT = 1
_Value = TypeVar("_Value")


class UnknownName(ValueError):
    """No prompt, ensemble or alias has this name."""


class Conflict(ValueError):
    """What is asked does not go with what there is."""


@dataclass(frozen=True)
class Version:
    """One content of a prompt name."""

    sha256: str
    folder: Path
    is_upload: bool
    """Whether its folder is the registry's own, to be deleted with it."""


@dataclass(frozen=True)
class Resolved:
    """What a request's `model` stands for, at one moment."""

    name: str
    """The name asked for, without a version."""
    target: str
    """What an alias led to; the name itself otherwise."""
    prompts: tuple[str | None, ...]
    """Content hashes, one for each prompt that answers; None is the bare model."""


class Registry:
    """The names that a server knows, and the prompt table behind them. Any thread may call any method.

    base: the name of the bare model. folder: where uploads, ensembles and aliases are kept (NAME/HASH/ and
    registry.json), and where prompt folders (NAME/) are served from; None: nothing can be uploaded.
    """

    def __init__(self, table: PromptTable, base: str, folder: Path | None = None):
        self.table, self.base, self.folder = table, base, folder
        self._lock = threading.RLock()
        self._versions: dict[str, list[Version]] = {}
        self._ensembles: dict[str, tuple[str, ...]] = {}
        self._aliases: dict[str, dict[str, float]] = {}

    def add(self, name: str, folder: str | Path) -> Version:
        """Serve a prompt folder where it lies. ValueError for a bad name, no prompt there, or another model's."""
        with self._lock:
            self._check_new(name, self._versions)
            try:
                version = Version(self.table.add(folder), Path(folder), is_upload=False)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            self._versions = self._with(name, version)
            return version

    def upload(self, name: str, prompt: SoftPrompt) -> Version:
        """Keep a prompt on disk as the newest version of a name, then serve it.

        ValueError for a bad name or another model's prompt, Conflict without a folder to keep it in or where the name
        is an ensemble's or an alias's, OSError where it cannot be written; then nothing has changed.
        """
        with self._lock:
            self._check_new(name, self._versions)
            if self.folder is None:
                raise Conflict("this server keeps no prompts; start it with --prompts-dir DIR to upload some")
            lm = self.table.lm
            check_fits(prompt, model_name=lm.name, fingerprint=lm.fingerprint, width=lm.width)
            folder = self.folder / name / prompt.sha256
            save_prompt(prompt, folder)
            version = Version(self.table.add(folder), folder, is_upload=True)
            try:
                self._change(versions=self._with(name, version))
            except OSError:
                known = {old.sha256 for old in self._versions.get(name, [])}
                self._forget([] if version.sha256 in known else [version])
                raise
            return version

    def remove(self, wanted: str) -> list[str]:
        """Take out a prompt with all its versions, one version, an ensemble or an alias; the hashes that went.

        UnknownName for what is not there, Conflict for what an ensemble or an alias still needs, OSError where that
        cannot be written; then nothing has changed. Requests that wear a prompt go on with it to their end.
        """
        with self._lock:
            name, _, digits = wanted.partition("@")
            going = [self._version(name, digits)] if digits else self._versions.get(name, [])
            self._check_known(name)
            self._check_unused(name, going, is_whole=len(going) == len(self._versions.get(name, [])))
            kept = [version for version in self._versions.get(name, []) if version not in going]
            versions = _without(self._versions, name) | ({name: kept} if kept else {})
            self._change(versions, _without(self._ensembles, name), _without(self._aliases, name))
            self._forget(going)
            return [version.sha256 for version in going]

    def set_ensemble(self, name: str, members: Sequence[str]) -> None:
        """Name several prompts that vote.

        ValueError for fewer than two, for unknown ones, or a name in use; OSError where it cannot be written.
        """
        with self._lock:
            self._check_new(name, self._ensembles)
            if not 2 <= len(members) <= MAX_MEMBERS:
                raise ValueError(f"an ensemble takes 2 to {MAX_MEMBERS} prompts, and this one has {len(members)}")
            for member in members:
                self._check_is(member, "an ensemble's member", self._versions)
            self._change(ensembles={**self._ensembles, name: tuple(members)})

    def set_alias(self, name: str, shares: Mapping[str, float]) -> None:
        """Send a name's requests to its targets, by their shares in percent; in one step.

        ValueError for no target, shares that do not sum to 100, unknown targets, or a name in use; OSError where it
        cannot be written.
        """
        with self._lock:
            self._check_new(name, self._aliases)
            if not shares or abs(sum(shares.values()) - 100) > 1e-6 or min(shares.values()) <= 0:
                raise ValueError(f"the shares are {dict(shares)}; give positive ones that sum to 100 percent")
            for target in shares:
                self._check_is(target, "an alias's target", {**self._versions, **self._ensembles})
            self._change(aliases={**self._aliases, name: dict(shares)})

    def resolve(self, wanted: str, point: float) -> Resolved:
        """What a name stands for now. point: from 0 up to 1, which of an alias's targets is taken.

        UnknownName, with the nearest known name, for what is not there.
        """
        with self._lock:
            name = target = wanted
            if wanted in self._aliases:
                target = _target(self._aliases[wanted], 100 * point)
            if target == self.base:
                return Resolved(name, target, (None,))
            members = self._ensembles.get(target, (target,))
            try:
                prompts = tuple(self._current(member) for member in members)
            except UnknownName as error:
                if members == (wanted,):
                    raise
                raise UnknownName(f"{wanted} leads to what is gone: {error}") from error
            return Resolved(name.partition("@")[0], target, prompts)

    def hold(self, wanted: str, point: float) -> Resolved:
        """As `resolve`, and its prompts stay usable until `release`, whatever is replaced or removed meanwhile."""
        with self._lock:
            resolved = self.resolve(wanted, point)
            self.table.pin(_worn(resolved))
            return resolved

    def release(self, resolved: Resolved) -> None:
        """Undo `hold`."""
        self.table.unpin(_worn(resolved))

    def versions(self) -> dict[str, list[Version]]:
        """Every prompt name's versions, the last one current."""
        with self._lock:
            return {name: list(versions) for name, versions in self._versions.items()}

    def ensembles(self) -> dict[str, tuple[str, ...]]:
        """Every ensemble's members."""
        with self._lock:
            return dict(self._ensembles)

    def aliases(self) -> dict[str, dict[str, float]]:
        """Every alias's targets and their shares in percent."""
        with self._lock:
            return {name: dict(shares) for name, shares in self._aliases.items()}

    def names(self) -> list[str]:
        """All names, the bare model's first."""
        with self._lock:
            return [self.base, *self._versions, *self._ensembles, *self._aliases]

    def open(self) -> None:
        """Serve what the folder holds: prompt folders put there by hand, and what was uploaded and named before.

        A prompt that cannot be served (another model's, a damaged one) is left out with a warning that says why.
        ValueError for a registry.json that is not ours.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in sorted(self.folder.iterdir()):
            if (place / CONFIG).is_file() and re.fullmatch(NAME, place.name):
                self._serve(place.name, lambda place=place: self.add(place.name, place))
        state = self._read_state()
        for name, hashes in state["versions"].items():
            for sha256 in hashes:
                folder = self.folder / name / sha256
                self._serve(f"{name}@{sha256[:SHORT_HASH]}", lambda n=name, f=folder: self._add_upload(n, f))
        self._ensembles = {name: tuple(members) for name, members in state["ensembles"].items()}
        self._aliases = dict(state["aliases"])

    def _add_upload(self, name: str, folder: Path) -> None:
        self._versions = self._with(name, Version(self.table.add(folder), folder, is_upload=True))

    def _serve(self, what: str, add: Any) -> None:
        try:
            add()
        except ValueError as error:
            warnings.warn(f"{what} in {self.folder} is not served: {error}", stacklevel=3)

    def _read_state(self) -> dict[str, Any]:
        assert self.folder is not None
        path = self.folder / STATE
        if not path.exists():
            return {"versions": {}, "ensembles": {}, "aliases": {}}
        try:
            state = json.loads(path.read_text())
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, and this version reads {FORMAT}")
            return {name: dict(state[name]) for name in ("versions", "ensembles", "aliases")}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a registry of softprompt serve ({error}); move it away") from error

    def _change(
        self,
        versions: dict[str, list[Version]] | None = None,
        ensembles: dict[str, tuple[str, ...]] | None = None,
        aliases: dict[str, dict[str, float]] | None = None,
    ) -> None:
        """Write what the names are to be, then let them be that: where the disk is full, nothing has changed."""
        versions = self._versions if versions is None else versions
        ensembles = self._ensembles if ensembles is None else ensembles
        aliases = self._aliases if aliases is None else aliases
        if self.folder is not None:
            uploads = {name: [one.sha256 for one in own if one.is_upload] for name, own in versions.items()}
            state = {
                "format": FORMAT,
                "versions": {name: hashes for name, hashes in uploads.items() if hashes},
                "ensembles": ensembles,
                "aliases": aliases,
            }
            write_whole(self.folder / STATE, json.dumps(state, indent=1) + "\n")
        self._versions, self._ensembles, self._aliases = versions, ensembles, aliases

    def _with(self, name: str, version: Version) -> dict[str, list[Version]]:
        """All versions, with this one as the name's current."""
        before = [old for old in self._versions.get(name, []) if old.sha256 != version.sha256]
        return {**self._versions, name: [*before, version]}

    def _forget(self, going: Sequence[Version]) -> None:
        """Take contents out of the table that no name has any more, and delete uploads' folders."""
        left = {version.sha256: version for versions in self._versions.values() for version in versions}
        for version in going:
            if version.sha256 in left:
                self.table.add(left[version.sha256].folder)
            elif version.sha256 in self.table:
                self.table.remove(version.sha256)
            if version.is_upload:
                shutil.rmtree(version.folder, ignore_errors=True)
                if version.folder.parent.is_dir() and not any(version.folder.parent.iterdir()):
                    version.folder.parent.rmdir()

    def _current(self, wanted: str) -> str:
        name, _, digits = wanted.partition("@")
        return self._version(name, digits).sha256

    def _version(self, name: str, digits: str) -> Version:
        versions = self._versions.get(name)
        if versions is None:
            raise UnknownName(f"no prompt named {name!r}{nearest(name, self.names())}")
        if not digits:
            return versions[-1]
        if not re.fullmatch(f"[0-9a-f]{{{MIN_HASH},64}}", digits):
            raise ValueError(f"{digits!r} is no version; give {MIN_HASH} to 64 hexadecimal digits of the prompt's hash")
        found = [version for version in versions if version.sha256.startswith(digits)]
        if len(found) != 1:
            known = ", ".join(version.sha256[:SHORT_HASH] for version in versions)
            raise UnknownName(f"{name} has {len(found)} versions that begin with {digits}; it has {known}")
        return found[0]

    def _check_known(self, name: str) -> None:
        if not any(name in names for names in (self._versions, self._ensembles, self._aliases)):
            raise UnknownName(f"nothing is named {name!r}{nearest(name, self.names())}")

    def _check_new(self, name: str, own: Mapping[str, Any]) -> None:
        if not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r} is no name; give 1 to 100 letters, digits, dots, dashes and underscores, the first a letter "
                "or a digit"
            )
        if name in self.names() and name not in own:
            raise Conflict(f"{name!r} is already the name of something else; choose another, or delete it first")

    def _check_is(self, wanted: str, role: str, known: Mapping[str, Any]) -> None:
        name, _, digits = wanted.partition("@")
        if name not in known:
            raise UnknownName(f"{role} is {wanted!r}, which is not served{nearest(name, known)}")
        if digits:
            self._version(name, digits)

    def _check_unused(self, name: str, going: Sequence[Version], *, is_whole: bool) -> None:
        """Conflict if an ensemble or an alias names what is to go."""
        for owner, targets in [*self._ensembles.items(), *self._aliases.items()]:
            for target in targets:
                own, _, digits = target.partition("@")
                if own == name and (is_whole or (digits and self._version(own, digits) in going)):
                    raise Conflict(f"{owner} still leads to {target}; change or delete {owner} first")


def _without(names: Mapping[str, _Value], name: str) -> dict[str, _Value]:
    return {other: value for other, value in names.items() if other != name}


def _worn(resolved: Resolved) -> list[str]:
    return [sha256 for sha256 in resolved.prompts if sha256 is not None]


def _target(shares: Mapping[str, float], percent: float) -> str:
    passed, targets = 0.0, list(shares)
    for target in targets[:-1]:
        passed += shares[target]
        if percent < passed:
            return target
    return targets[-1]
