"""Files and folders that are whole, or not there; and settings people write by hand."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

from softprompt.base.names import hub_place

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHECKPOINT = "checkpoint.safetensors"  # of a run that is not at its end, in its folder
LOCK = ".softprompt.lock"  # in a folder that is written into


class _Own(threading.local):
    """What this thread holds."""

    def __init__(self) -> None:
        self.locks: set[Path] = set()


_own = _Own()


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Make a file of bytes, or of text as UTF-8, and the folders it lies in; otherwise as `whole_file`."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write bytes into; otherwise as `whole_path`."""
    with whole_path(path) as temporary, open(temporary, "wb") as file:
        yield file


@contextmanager
def whole_path(path: str | Path) -> Iterator[Path]:
    """Where to write a file, which takes the name `path` at the end, or is removed if anything goes wrong.

    What stood there is replaced in one step: a kill or a full disk at any moment leaves the old file or the new one.
    Makes the folders it lies in; in a folder that is `held`, what killed writers left of it is removed. Raises OSError,
    with `path` as its file, where it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if any(folder / LOCK in _own.locks for folder in path.resolve().parents):
        remove_leftovers(path)
    temporary = _beside(path)
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary), temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Make a safetensors file, as `whole_path`, of tensors that share no memory, written from where they lie."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with whole_path(path) as temporary:
            # In a folder that `remove_leftovers` knows, since a killed safetensors leaves a file with its own name.
            folder = temporary.with_name(f"{temporary.name}0")
            folder.mkdir()
            try:
                save_file(dict(tensors), folder / "file", metadata=dict(metadata) if metadata else None)
                os.replace(folder / "file", temporary)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except SafetensorError as error:
        if not (number := _os_error(error)):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def locked(file: Any, *, shared: bool = False) -> Iterator[None]:
    """Hold an open file while it is added to, or, shared, while it is read; wait for those that hold it.

    Windows and some network file systems have no such lock, and there nothing is held.
    """
    _lock(file, shared=shared)
    try:
        yield
    finally:
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def held(place: Path, *, is_file: bool = False) -> Iterator[None]:
    """Be the only one who writes into a folder, or makes a file, until the block ends; within it, hold it again.

    What says who that is stays: the folder's `LOCK`, or `.NAME.lock` beside the file, whose earlier
    writers' leftovers are removed. Makes the folder and those above it, and removes of these what is empty at the end.
    Raises ValueError, at once, where another process or thread holds it, where a file has the folder's name, and for a
    place on the hub; OSError where it cannot be written. Nothing is held where `locked` holds nothing.
    """
    if on_hub := hub_place(place):
        raise ValueError(
            f"{on_hub} is on the hub, and this is written on this machine; give another place (prompts alone are put "
            "there, by `train --push` and `convert --to peft`)"
        )
    if not is_file and place.exists() and not place.is_dir():
        raise ValueError(f"{place} is a file, and what comes there is a folder; give another name")
    whole = place.absolute()
    lock = (whole.with_name(f".{whole.name}.lock") if is_file else whole / LOCK).resolve()
    if lock in _own.locks:
        yield
        return
    made = [folder for folder in lock.parents if not folder.exists()]  # the innermost first
    try:
        with _locked_file(lock, place) as file:
            _own.locks.add(lock)
            try:
                with refusals(place, "nothing was begun"):
                    file.truncate(0)
                    write_all(file, f"process {os.getpid()} ({shlex.join(sys.argv)})\n".encode())
                if is_file:
                    remove_leftovers(whole)
                yield
            finally:
                _own.locks.discard(lock)
                if made and os.listdir(lock.parent) == [lock.name]:
                    lock.unlink()
    finally:
        with suppress(OSError):  # of one that is not empty
            for folder in made:
                folder.rmdir()


def _locked_file(lock: Path, place: Path) -> FileIO:
    """The file of a lock, open and locked; once more where its last holder removed it meanwhile."""
    with refusals(place, "nothing was begun"):
        while True:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(lock, "a+")
            try:
                _lock(file, waits=False)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().decode(errors="replace").strip() or "another process"
                file.close()
                told = f"{place} is being written by {holder}; wait for its end, or give another place"
                raise ValueError(told) from None
            if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
            file.close()


def write_all(file: BinaryIO | FileIO, content: bytes, *, sync: bool = False) -> None:
    """Add bytes to the end of an unbuffered file, all of them or none. Raises OSError where it cannot be written.

    sync: wait until they are on the disk.
    """
    end = file.seek(0, os.SEEK_END)
    try:
        while content:  # a disk that is nearly full takes a part, and the next write says why not the rest
            content = content[file.write(content) :]
        if sync:
            os.fsync(file)
    except BaseException:
        file.truncate(end)
        file.seek(end)
        raise


def append_whole(path: Path, added: str, *, check: Callable[[BinaryIO], object] = lambda file: None) -> None:
    """Add text to a file's end, all of it or none, beside others that do so at the same time.

    check: is given the file from its beginning, and raises to leave it as it is. Raises OSError where it cannot be
    written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file, locked(file), refusals(path, "what it held before is whole"):
        file.seek(0)
        check(file)
        write_all(file, added.encode(), sync=True)


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` that were killed left beside it. No other may be at work (`held`)."""
    start = f".{path.name}."
    for place in path.parent.glob(f"{escape(start)}*"):
        if place.name.removeprefix(start).isdigit():
            shutil.rmtree(place) if place.is_dir() else place.unlink()


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` at the end, or is removed if anything goes wrong.

    `path` may be an empty folder. Raises OSError as `refusals` does.
    """
    path = Path(path).resolve()
    staging = _beside(path)
    try:
        with refusals(path, "nothing was kept there"):
            staging.mkdir(parents=True)
            yield staging
            if path.is_dir():
                path.rmdir()
            os.replace(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_files(folder: Path, *, last: str) -> Iterator[Path]:
    """A folder to write into, whose files take their places in `folder` at the end: `last`, which goes first, is there
    only beside all the others. If anything goes wrong all files are as they were. No other may be at work there
    (`held`), and killed writers' leftovers are removed.
    """
    remove_leftovers(folder / "saving")
    staging = _beside(folder / "saving")
    staging.mkdir(parents=True)
    try:
        yield staging
        names = sorted(os.listdir(staging), key=lambda name: name == last)
        replaced = staging / "replaced"
        replaced.mkdir()
        moves = [(folder / name, replaced / name) for name in reversed(names) if (folder / name).exists()]
        moves += [(staging / name, folder / name) for name in names]
        done = []
        try:
            for source, target in moves:
                os.replace(source, target)
                done.append((source, target))
        except BaseException:
            for source, target in reversed(done):
                os.replace(target, source)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def refusals(path: Path, left: str) -> Iterator[None]:
    """Raise OSError, in one line that ends with what is left, for whatever the operating system refuses at `path`.

    Also to the libraries in Rust, which have exceptions of their own for it.
    """
    try:
        yield
    except Exception as error:
        if why := _refusal(error):
            raise OSError(f"could not write {path} ({why}); {left}") from error
        raise


def check_file(path: Path) -> None:
    """ValueError for what is there and is no file; to read a pipe or a device might never end."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device; give a file, or copy the folder it lies in again")


def read_yaml(path: str | Path, what: str) -> Any:
    """What a YAML file holds. ValueError, naming it as `what`, for one that is missing, or with the line at fault."""
    import yaml  # only who reads settings waits for it

    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {what} {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML ({error.problem})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def _lock(file: Any, *, shared: bool = False, waits: bool = True) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")


def _refusal(error: Exception) -> str | None:
    """Why the operating system refused, if it did."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    number = _os_error(error)
    return os.strerror(number) if number else None


def _os_error(error: Exception) -> int | None:
    """The operating system's number in an error of a library in Rust."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None
