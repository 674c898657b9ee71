"""Names for served prompts: versions, ensembles and aliases, kept on disk.

All names share one space. A *prompt* is a name with versions, of which the last is current; `name@hash` means one of
them, by the first digits of its identity. An *ensemble* is a name for several prompts that vote. An *alias* sends
each request to one of its targets, by their shares.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from softprompt.answering import shared_tasks
from softprompt.base.checked import checked
from softprompt.base.files import check_file, held, locked, remove_leftovers, write_whole
from softprompt.base.names import nearest
from softprompt.prompts import (
    CONFIG,
    STAGING,
    SoftPrompt,
    check_fits,
    check_runs,
    load_prompt,
    local_folder,
    save_prompt,
)
from softprompt.serving import PromptTable, Registered
from softprompt.serving.http.asking import worn_by

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
SHORT_HASH = 12  # digits shown; ours
MIN_HASH = 8  # digits that a request must give; ours
MAX_MEMBERS = 32  # prompts of an ensemble; ours
STATE = "registry.json"
RESERVED = (STATE,)  # names of files in the folder; those that begin with a dot are no names
BALLAST = f".{STATE}.ballast"  # what a DELETE on a full disk gives up, to write which names are left
MIN_BALLAST = 1 << 16  # bytes; ours
TURN = f".{STATE}.turn"  # locked by the replica that changes the names, of several that share the folder
T = TypeVar("T")


class UnknownName(ValueError):
    """No prompt, ensemble or alias has this name."""


class Conflict(ValueError):
    """What is asked does not go with what there is."""


@dataclass(frozen=True)
class Version:
    """One content of a prompt name."""

    prompt: Registered
    folder: Path
    is_upload: bool
    """Whether its folder is the registry's own, to be deleted with it."""

    @property
    def identity(self) -> str:
        """Its hash, of everything that changes an answer."""
        return self.prompt.identity


@dataclass(frozen=True)
class Resolved:
    """What a request's `model` stands for, at one moment."""

    name: str
    """The name asked for, without a version."""
    prompts: tuple[str | None, ...]
    """Identities, one for each prompt that answers; None is the bare model."""


@dataclass(frozen=True, kw_only=True)
class State:
    """What registry.json holds. Format 1 knew a prompt by the hash of its values, format 2 by its identity."""

    format: Literal[1, 2]
    versions: dict[str, list[str]]
    """The hashes that were uploaded under each name, the last one current."""
    ensembles: dict[str, list[str]]
    aliases: dict[str, dict[str, float]]
    deleted: dict[str, list[str]] = field(default_factory=dict)
    """The hashes that were deleted of each name whose folder was put there by hand, and lies there still; of values,
    where they were deleted in format 1."""
    values: dict[str, str] = field(default_factory=dict)
    """Each upload's hash of values, by its identity."""
    meant: dict[str, dict[str, str]] = field(default_factory=dict)
    """What a hash of values meant under each name when format 1 was read: an identity, which may have gone since."""


NOTHING = State(format=2, versions={}, ensembles={}, aliases={})


@dataclass(frozen=True)
class Names:
    """All names at one moment; a change makes others."""

    base: str
    """The bare model's."""
    versions: dict[str, list[Version]] = field(default_factory=dict)
    """Of each prompt name; the last one is current."""
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    """Their members."""
    aliases: dict[str, dict[str, float]] = field(default_factory=dict)
    """Their targets and shares in percent."""
    deleted: dict[str, list[str]] = field(default_factory=dict)
    """What must not come back by itself, as in `State`."""
    meant: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of old hashes, as in `State`."""

    def __iter__(self) -> Iterator[str]:
        yield from (self.base, *self.versions, *self.ensembles, *self.aliases)

    def kind(self, name: str) -> str:
        """What a name that is known stands for: base, prompt, ensemble or alias."""
        if name == self.base:
            return "base"
        if name.partition("@")[0] in self.versions:
            return "prompt"
        return "ensemble" if name in self.ensembles else "alias"

    def resolve(self, wanted: str, point: float) -> Resolved:
        """What a name stands for. point: from 0 up to 1, which of an alias's targets is taken.

        UnknownName, with the nearest known name, for what is not there; otherwise as `version`.
        """
        target, passed = wanted, 0.0
        for choice, share in self.aliases.get(wanted, {}).items():
            target, passed = choice, passed + share
            if 100 * point < passed:
                break
        if target == self.base:
            return Resolved(wanted, (None,))
        members = self.ensembles.get(target, (target,))
        try:
            prompts = tuple(self.version(member).identity for member in members)
        except UnknownName as error:
            if target == wanted and wanted not in self.ensembles:
                raise
            raise UnknownName(f"{wanted} leads to what is gone: {error}") from error
        return Resolved(wanted.partition("@")[0], prompts)

    def version(self, wanted: str) -> Version:
        """The version that `name` or `name@digits` means: the first digits of its identity, else those of an old hash.

        That is of values only: it means what it meant when names were read in their old form, or the one version with
        these values. UnknownName for none, Conflict for several, ValueError for bad digits.
        """
        name, _, digits = wanted.partition("@")
        versions = self.versions.get(name)
        if versions is None:
            raise UnknownName(f"no prompt named {name!r}{nearest(name, self)}")
        if not digits:
            return versions[-1]
        if not re.fullmatch(f"[0-9a-f]{{{MIN_HASH},64}}", digits):
            raise ValueError(f"{digits!r} is no version; give {MIN_HASH} to 64 hexadecimal digits of the prompt's hash")
        meant = self.meant.get(name, {})
        wanted_now = {version.identity for version in versions if version.identity.startswith(digits)}
        wanted_now |= {meant[values] for values in meant if values.startswith(digits)}
        matching = [version for version in versions if version.identity in wanted_now]
        if not wanted_now:
            matching = [version for version in versions if version.prompt.values_sha256.startswith(digits)]
        known = ", ".join(version.identity[:SHORT_HASH] for version in matching or versions)
        if not matching:
            raise UnknownName(f"{name} has no version {digits}; it has {known}")
        if len(matching) > 1:
            raise Conflict(f"{name}@{digits} may be {len(matching)} versions, {known}; give more digits of one of them")
        return matching[0]

    def exact(self, target: str) -> str:
        """A target that `version` knows, with digits of the identity in place of an old hash's."""
        name, _, digits = target.partition("@")
        identity = self.version(target).identity
        return f"{name}@{identity[:SHORT_HASH]}" if digits and not identity.startswith(digits) else target

    def with_version(self, name: str, version: Version) -> Names:
        """The same with this version as a name's current one."""
        before = [old for old in self.versions.get(name, ()) if old.identity != version.identity]
        return replace(self, versions={**self.versions, name: [*before, version]})


@dataclass(frozen=True)
class Shared:
    """That several replicas of a server have one folder. Each reads what the others changed before it answers."""

    by_hand: tuple[str, ...]
    """The prompt folders in it that the first replica found, which one that starts later serves, too, and no others."""
    seconds: float
    """That the folder of a deleted upload stays: a request may wear it, in another replica."""


class Registry:
    """The names that a server knows, and the prompt table behind them. Any thread may call any method.

    base: the name of the bare model. folder: where uploads, ensembles and aliases are kept (NAME/IDENTITY/ and
    registry.json), and where prompt folders (NAME/) are served from; None: nothing can be uploaded. shared: where it
    has others that change the names, too.
    """

    def __init__(self, table: PromptTable, base: str, folder: Path | None = None, *, shared: Shared | None = None):
        self.table, self.base, self.folder, self.shared = table, base, folder, shared
        self.now = Names(base)
        """The names as they are; whoever reads them waits for nobody."""
        self._changing = threading.RLock()  # held by who changes names, over the disk too
        self._seen: tuple[int, int] | None = None
        """The registry.json that the names are of, as `_mark` has it; of a shared folder only."""

    def names(self) -> list[str]:
        """All names, the bare model's first."""
        return list(self.now)

    def versions(self) -> dict[str, list[Version]]:
        """Every prompt name's versions, the last one current."""
        return self.now.versions

    def add(self, name: str, folder: str | Path) -> Version:
        """Serve a prompt folder where it lies, or one of the hub.

        ValueError for a bad name, no prompt there, another model's, or one that no request could be answered by.
        """
        with self._changing:
            version = self._version(self.now, name, folder)
            self.now = self.now.with_version(name, version)
            return version

    def upload(self, name: str, prompt: SoftPrompt) -> list[Version]:
        """Keep a prompt on disk as the newest version of a name, then serve it. The name's versions then, it the last.

        ValueError for a bad name, for another model's prompt, and for one that no request could be answered by
        (everything is looked at before anything is kept), Conflict without a folder to keep it in or where the name
        is an ensemble's or an alias's, OSError where it cannot be written; then nothing has changed.
        """
        with self._turn():
            self._check_new(name, self.now.versions)
            if self.folder is None:
                raise Conflict("this server keeps no prompts; start it with --prompts-dir DIR to upload some")
            lm = self.table.lm
            check_fits(prompt, lm)
            check_runs(prompt.values, lm)
            worn_by(prompt.card, prompt.identity, prompt.length, lm)
            folder, is_new = self.folder / name / prompt.identity, True
            for old in self.now.versions.get(name, ()):
                if old.is_upload and old.identity == prompt.identity:
                    folder, is_new = old.folder, False
            deleted = dict(self.now.deleted)
            if name in deleted:
                deleted[name] = [old for old in deleted[name] if old not in (prompt.identity, prompt.sha256)]
            try:
                save_prompt(prompt, folder)
                version = Version(self.table.get(self.table.add(prompt, folder)), folder, is_upload=True)
                self._change(replace(self.now.with_version(name, version), deleted=deleted))
            except BaseException:
                if is_new:
                    self._drop(prompt.identity, folder)
                raise
            return self.now.versions[name]

    def remove(self, wanted: str) -> list[str]:
        """Take out a prompt with all its versions, one version, an ensemble or an alias; the identities that went.

        UnknownName for what is not there, Conflict for what an ensemble or an alias still needs, OSError where that
        cannot be written; then nothing has changed. Requests that wear a prompt go on with it to their end.
        """
        with self._turn():
            names, (name, _, digits) = self.now, wanted.partition("@")
            versions = names.versions.get(name, [])
            going = [names.version(wanted)] if digits else versions
            if name == self.base or name not in names:
                raise UnknownName(f"nothing is named {name!r}{nearest(name, names)}")
            for owner, targets in [*names.ensembles.items(), *names.aliases.items()]:
                for target in targets:
                    led_to, _, exactly = target.partition("@")
                    if led_to != name:
                        continue
                    is_going = exactly and any(version.identity.startswith(exactly) for version in going)
                    if len(going) == len(versions) or is_going:
                        raise Conflict(f"{owner} still leads to {target}; change or delete {owner} first")
            for version in going:
                if self.shared and not (version.is_upload or self._is_by_hand(name, version.folder)):
                    raise Conflict(f"{name} was named when the server was started, for all replicas; start without it")
            kept = [version for version in versions if version not in going]
            deleted = dict(names.deleted)
            if self.folder is not None and (self.folder / name / CONFIG).is_file():
                deleted[name] = [*deleted.get(name, ()), *(version.identity for version in going)]
            names = replace(
                names,
                versions=_without(names.versions, name) | ({name: kept} if kept else {}),
                ensembles=_without(names.ensembles, name),
                aliases=_without(names.aliases, name),
                deleted=deleted,
            )
            try:
                self._change(names, deletes=True)
            except OSError:
                if self.shared or not any(version.is_upload for version in going):
                    raise
                # Where the ballast was not enough, what goes makes room. An upload without its folder is gone, whatever
                # the registry says.
                self.now = names
                self._forget(going)
                try:
                    self._change(names)
                except OSError:
                    if any(version.folder.exists() for version in going):
                        raise
            else:
                self._forget(going)
            return [version.identity for version in going]

    def set_ensemble(self, name: str, members: Sequence[str]) -> list[str]:
        """Name several prompts that vote; the members, by what they are known.

        ValueError for fewer than two, for one twice, for those of different tasks, for unknown ones, or a name in use;
        OSError where it cannot be written.
        """
        with self._turn():
            names = self.now
            self._check_new(name, names.ensembles)
            if not 2 <= len(members) <= MAX_MEMBERS:
                raise ValueError(f"an ensemble takes 2 to {MAX_MEMBERS} prompts, and this one has {len(members)}")
            known = self._served(members, "an ensemble's member", names.versions)
            versions = [names.version(member) for member in members]
            identities = [version.identity for version in versions]
            for place, identity in enumerate(identities):
                if (first := identities.index(identity)) < place:
                    raise ValueError(f"{members[first]} and {members[place]} are one prompt, and each votes once")
            shared_tasks([version.prompt.card for version in versions], members)
            self._change(replace(names, ensembles={**names.ensembles, name: known}))
            return known

    def set_alias(self, name: str, shares: Mapping[str, float]) -> dict[str, float]:
        """Send a name's requests to its targets by their shares in percent, in one step; these, by what they are known.

        ValueError for no target, shares that do not sum to 100, unknown targets, or a name in use; OSError where it
        cannot be written.
        """
        with self._turn():
            names = self.now
            self._check_new(name, names.aliases)
            if not shares or abs(sum(shares.values()) - 100) > 1e-6 or min(shares.values()) <= 0:
                raise ValueError(f"the shares are {dict(shares)}; give positive ones that sum to 100 percent")
            known: dict[str, float] = {}
            targets = self._served(shares, "an alias's target", {**names.versions, **names.ensembles})
            for target, share in zip(targets, shares.values(), strict=True):
                known[target] = known.get(target, 0) + share  # two may be one, by its hash and by an old one
            self._change(replace(names, aliases={**names.aliases, name: known}))
            return known

    @contextmanager
    def hold(self, wanted: str, point: float) -> Iterator[Resolved]:
        """What a name stands for now, as `Names.resolve`; its prompts stay usable meanwhile, whatever is changed."""
        while True:
            names = self.now
            resolved = names.resolve(wanted, point)
            worn = [identity for identity in resolved.prompts if identity is not None]
            try:
                self.table.pin(worn)
                break
            except ValueError:
                if names is self.now:
                    raise  # otherwise it was removed in this moment
        try:
            yield resolved
        finally:
            self.table.unpin(worn)

    def open(self) -> None:
        """Serve what the folder holds: prompt folders put there by hand, and what was uploaded and named before.

        A prompt that cannot be served (another model's, a damaged one) is left out with a warning that says why. What
        killed writers left is removed, unless it is shared. ValueError for a registry.json that is not ours, and where
        another server is at work there.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.shared is None:
            clean_up(self.folder)
        else:
            self._seen = _mark(self.folder)
        state = read_state(self.folder) or NOTHING
        self.now = replace(self.now, deleted=state.deleted)
        for name in by_hand(self.folder) if self.shared is None else self.shared.by_hand:
            if version := self._try_version(self.now, name, name, self.folder / name):
                self.now = self.now.with_version(name, version)
        self.now = self._named(state, self.folder)
        if any(self.folder.glob("[!.]*")):
            self._keep_ballast(self.folder)

    @property
    def is_behind(self) -> bool:
        """Whether another replica has changed the names since they were read here: one look at one file.

        Where the storage is away, what is known goes on.
        """
        if self.shared is None or self.folder is None:
            return False
        return _mark(self.folder) not in (self._seen, None)

    def catch_up(self) -> None:
        """Let the names be what other replicas have made of them. Requests that wear what is gone go on with it."""
        with self._changing:
            if self.folder is None or not self.is_behind:
                return
            seen = _mark(self.folder)  # before it is read: what replaces it meanwhile is seen the next time
            try:
                state = read_state(self.folder)
            except OSError:
                return
            except ValueError as error:
                state = None
                warnings.warn(f"{error}; until then the names stay as they are", stacklevel=2)
            self._seen = seen
            if state is None:
                return
            before = self.now
            self.now = self._named(state, self.folder)
            for name, versions in before.versions.items():
                for version in versions:
                    if version not in self.now.versions.get(name, ()):
                        self._drop(version.identity, None)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Be the only one who changes the names, of this server's threads and of all replicas; with what those did.

        Conflict for replicas without a folder, OSError where theirs is away.
        """
        with self._changing:
            if self.shared is None:
                yield
                return
            if self.folder is None:
                raise Conflict("replicas keep what changes in a folder; start the server with --prompts-dir DIR")
            with open(self.folder / TURN, "ab") as file, locked(file):
                if self._seen and _mark(self.folder) is None:  # the folder is where a disk was, and nothing in it
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.folder / STATE))
                self.catch_up()
                yield

    def _named(self, state: State, folder: Path) -> Names:
        """The names that a registry gives, beside what was given to this server and not deleted since."""
        uploaded, names = {}, replace(self.now, versions={}, deleted=state.deleted, meant=state.meant)
        for name, versions in self.now.versions.items():
            for version in versions:
                if version.is_upload:
                    uploaded[version.folder] = version
                elif not (self.shared and self._is_deleted(names, name, version.folder, {version.identity})):
                    names = names.with_version(name, version)
        for place, (name, sha256) in _uploads(folder, state).items():
            what = f"{name}@{sha256[:SHORT_HASH]}"
            version = uploaded.get(place) or self._try_version(names, what, name, place, upload=sha256)
            if version:
                names = names.with_version(name, version)
        ensembles, aliases = state.ensembles, state.aliases
        if state.format == 1:
            meant = {}
            for name, versions in names.versions.items():
                meant[name] = {version.prompt.values_sha256: version.identity for version in versions}
            names = replace(names, meant=meant)
            ensembles = {name: [_turned(names, member) for member in members] for name, members in ensembles.items()}
            for name, targets in aliases.items():
                aliases[name] = {_turned(names, target): share for target, share in targets.items()}
        return replace(names, ensembles=ensembles, aliases=aliases)

    def _version(self, names: Names, name: str, folder: str | Path, *, upload: str | None = None) -> Version:
        """A prompt folder as the newest version of one of these names. upload: the hash that it was kept under, where
        it is this registry's own and goes with the name. ValueError as `add` has it.
        """
        self._check_new(name, names.versions, names)
        try:
            prompt, folder = load_prompt(folder), local_folder(folder)
            if self._is_deleted(names, name, folder, {prompt.identity, prompt.sha256}):
                raise ValueError("it was deleted here; upload it to have it back, or remove its folder")
            if upload and upload not in (prompt.identity, prompt.sha256):
                raise ValueError("its folder holds another prompt than was uploaded; upload it again")
            worn_by(prompt.card, prompt.identity, prompt.length, self.table.lm)
            identity = self.table.add(prompt, folder)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        return Version(self.table.get(identity), folder, is_upload=upload is not None)

    def _try_version(
        self, names: Names, what: str, name: str, folder: Path, *, upload: str | None = None
    ) -> Version | None:
        try:
            return self._version(names, name, folder, upload=upload)
        except (ValueError, OSError) as error:
            warnings.warn(f"{what} in {self.folder} is not served: {error}", stacklevel=4)
            return None

    def _change(self, names: Names, *, deletes: bool = False) -> None:
        """Write what the names are to be, then let them be that: where the disk is full, nothing has changed.

        deletes: it must go on a full disk, too, and may have the ballast.
        """
        if self.folder is not None:
            uploads: dict[str, list[str]] = {}
            values = {}
            for name, versions in names.versions.items():
                for version in versions:
                    if version.is_upload:
                        uploads.setdefault(name, []).append(version.identity)
                        values[version.identity] = version.prompt.values_sha256
            state = State(
                format=2,
                versions=uploads,
                ensembles=names.ensembles,
                aliases=names.aliases,
                deleted={name: hashes for name, hashes in names.deleted.items() if hashes},
                values=values,
                meant=names.meant,
            )
            content = json.dumps(asdict(state), indent=1) + "\n"
            try:
                write_whole(self.folder / STATE, content)
            except OSError:
                if not deletes:
                    raise
                (self.folder / BALLAST).unlink(missing_ok=True)
                write_whole(self.folder / STATE, content)
            if self.shared:
                self._stamp(self.folder)
            self._keep_ballast(self.folder)
        self.now = names

    def _stamp(self, folder: Path) -> None:
        """Give the registry a later time than the last one's: two changes may be in one tick, and clocks go back."""
        found = os.stat(folder / STATE)
        if self._seen and found.st_mtime_ns <= self._seen[1]:
            os.utime(folder / STATE, ns=(found.st_atime_ns, self._seen[1] + 1))
        self._seen = _mark(folder)

    def _keep_ballast(self, folder: Path) -> None:
        """Have a file there that takes as much room as the names, if there is so much."""
        with suppress(OSError):
            ballast, size = folder / BALLAST, MIN_BALLAST
            if (folder / STATE).exists():
                size = max(size, (folder / STATE).stat().st_size)
            if not ballast.exists() or ballast.stat().st_size < size:
                write_whole(ballast, os.urandom(2 * size))  # zeros may take no room

    def _forget(self, going: Sequence[Version]) -> None:
        for version in going:
            self._drop(version.identity, version.folder if version.is_upload else None)

    def _drop(self, identity: str, upload: Path | None) -> None:
        """Take a prompt out of the table unless some name still has it, and delete an upload's folder."""
        left = {version.identity: version for versions in self.now.versions.values() for version in versions}
        if identity in left:
            self.table.moved(identity, left[identity].folder)
        elif identity in self.table:
            self.table.remove(identity)
        if upload is None:
            return
        if self.shared is None:
            _remove_upload(upload)
        else:
            later = threading.Timer(self.shared.seconds, self._remove_unnamed, [upload])
            later.daemon = True
            later.start()

    def _remove_unnamed(self, upload: Path) -> None:
        """Delete the folder of what was deleted some time ago, unless it was uploaded again."""
        with suppress(OSError), self._turn():
            if all(version.folder != upload for versions in self.now.versions.values() for version in versions):
                _remove_upload(upload)

    def _is_by_hand(self, name: str, folder: str | Path) -> bool:
        """Whether a folder is the one of that name in ours, which only hands put there."""
        return self.folder is not None and Path(folder) == self.folder / name

    def _is_deleted(self, names: Names, name: str, folder: Path, hashes: set[str]) -> bool:
        """Whether a prompt that was put there by hand has been deleted since."""
        return self._is_by_hand(name, folder) and not hashes.isdisjoint(names.deleted.get(name, ()))

    def _check_new(self, name: str, same_kind: Mapping[str, Any], names: Names | None = None) -> None:
        if not re.fullmatch(NAME, name):
            raise ValueError(
                f"{name!r} is no name; give 1 to 100 letters, digits, dots, dashes and underscores, the first a letter "
                "or a digit"
            )
        if name.casefold() in RESERVED:
            raise ValueError(f"{name!r} is a file of the server's own; choose another name")
        if name in (names or self.now) and name not in same_kind:
            raise Conflict(f"{name!r} is already the name of something else; choose another, or delete it first")

    def _served(self, targets: Iterable[str], role: str, known: Mapping[str, Any]) -> list[str]:
        """The targets, by what they are known. UnknownName for one that is not."""
        served = []
        for target in targets:
            name, _, digits = target.partition("@")
            if name not in known:
                raise UnknownName(f"{role} is {target!r}, which is not served{nearest(name, known)}")
            served.append(self.now.exact(target) if digits else target)
        return served


def by_hand(folder: Path) -> tuple[str, ...]:
    """The names of the prompt folders that hands put into a server's folder."""
    names = []
    for place in sorted(folder.iterdir()):
        try:
            is_prompt = (place / CONFIG).is_file()
        except OSError:  # whoever reads it is told why
            is_prompt = True
        if is_prompt and re.fullmatch(NAME, place.name):
            names.append(place.name)
    return tuple(names)


def read_state(folder: Path) -> State | None:
    """What a server's folder says of its names; None where it says nothing. ValueError for what is not ours."""
    path = folder / STATE
    try:
        check_file(path)
        return checked(State, json.loads(path.read_text()), "its content")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is not a registry of softprompt serve ({error}); move it away") from error


def clean_up(folder: Path) -> None:
    """Remove what writers that were killed left in a server's folder, and tell of whole uploads that no name has.

    ValueError for a registry.json that is not ours, and where another server is at work there.
    """
    uploads = _uploads(folder, read_state(folder) or NOTHING)
    with held(folder):
        remove_leftovers(folder / STATE)
        remove_leftovers(folder / BALLAST)
        for inside in ("", "*/", "*/*/"):
            for staging in folder.glob(f"{inside}{STAGING}*"):
                shutil.rmtree(staging, ignore_errors=True)
        for place in folder.glob(f"*/{'[0-9a-f]' * 64}"):
            if place in uploads:
                continue
            if any(place.iterdir()):
                warnings.warn(
                    f"{place} is an upload that no name has: it did not come to its end, or was deleted as the disk "
                    "failed; upload it again, or remove it",
                    stacklevel=3,
                )
            else:
                _remove_upload(place)


def _uploads(folder: Path, state: State) -> dict[Path, tuple[str, str]]:
    """The folders of uploads, with the name and hash of each."""
    uploads = {}
    for name, hashes in state.versions.items():
        for sha256 in hashes:
            place = folder / name / sha256
            if sha256 in state.values and not place.is_dir():
                place = place.with_name(state.values[sha256])  # where format 1 kept it
            uploads[place] = (name, sha256)
    return uploads


def _mark(folder: Path) -> tuple[int, int] | None:
    """What tells a folder's registry from an earlier one: its number and its time. None where it cannot be looked at:
    there is none yet, or the storage is away.
    """
    try:
        found = os.stat(folder / STATE)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _turned(names: Names, target: str) -> str:
    """A target of format 1, by what it is known now; as it was where it leads to what is gone."""
    with suppress(ValueError):
        return names.exact(target)
    return target


def _remove_upload(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    name = folder.parent
    if name.is_dir() and not any(name.iterdir()):
        name.rmdir()


def _without(known: Mapping[str, T], name: str) -> dict[str, T]:
    return {other: value for other, value in known.items() if other != name}
