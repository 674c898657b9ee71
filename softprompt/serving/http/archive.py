"""A prompt folder that came as a zip or tar archive: read with care, since anybody may have made it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from softprompt.base.files import write_whole
from softprompt.prompts import CARD, CONFIG, README, STAGING, WEIGHTS, SoftPrompt, load_prompt

FILES = (WEIGHTS, CONFIG, CARD, README)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
COMPRESSIONS = ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7zXZ", lzma))
MAX_MEMBERS = 100  # ours: a prompt folder has four files, a run's folder a few dozen
MAX_HEADERS = 4 * MAX_MEMBERS  # with those of folders and of long names
HEADERS_ROOM = 1 << 20  # bytes of a tar that are not its files'; ours
LONGEST_NAME = 1 << 16  # bytes of what holds one; ours
BLOCK = 512  # of a tar
TOO_MANY = f"the archive holds more than {MAX_MEMBERS} files; send one prompt folder"

Member = tuple[str, int, io.BufferedIOBase]
"""A file's name in the archive, its size as the archive says, and its bytes."""


def read_archive(data: bytes, *, max_bytes: int, folder: Path | None = None) -> SoftPrompt:
    """The prompt in a zip or tar archive of its folder (or of the files alone).

    max_bytes: what its files may take together, unpacked. folder: where they lie meanwhile; None: among the system's
    temporary files. Files that do not belong to a prompt are passed over.
    Raises ValueError for what is no archive, holds no prompt, or is not safe: a path out of the folder, a link, a
    pickle, more bytes than allowed.
    """
    files: dict[str, bytes] = {}
    left = max_bytes
    try:
        is_zip = data[:4] == b"PK\x03\x04"
        members = _zip_members(data) if is_zip else _tar_members(_unpacked(data, max_bytes))
        for count, (name, size, file) in enumerate(members, 1):
            if count > MAX_MEMBERS:
                raise ValueError(TOO_MANY)
            place = PurePosixPath(name.replace("\\", "/"))
            if place.is_absolute() or ".." in place.parts or ":" in name:
                raise ValueError(
                    f"the archive holds a path out of its folder, {name!r}; send a prompt's folder as it is"
                )
            if place.suffix.lower() in PICKLES:
                raise ValueError(
                    f"the archive holds {name!r}; pickles can run any code when they are read, so only safetensors is "
                    "taken: save the prompt again with PEFT's save_pretrained(safe_serialization=True)"
                )
            if place.name not in FILES:
                continue
            if place.name in files:
                raise ValueError(f"the archive holds {place.name} twice; send one prompt folder")
            content = file.read(left + 1) if size <= left else b""
            if size > left or len(content) > left:
                raise ValueError(_too_much(max_bytes))
            files[place.name] = content
            left -= len(content)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise ValueError("not a whole zip or tar archive; send a prompt's folder as one") from error
    except NotImplementedError as error:
        raise ValueError("the zip is packed in a way that is not read here; send a plain one, or a tar") from error
    except RuntimeError as error:  # what zipfile raises for an encrypted member
        raise ValueError("the zip wants a password; send one without") from error
    if WEIGHTS not in files:
        raise ValueError(f"the archive holds no {WEIGHTS}; send the folder that `softprompt train` wrote")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=folder) as place:
        for name, content in files.items():
            write_whole(Path(place) / name, content)
        try:
            return load_prompt(place)
        except ValueError as error:
            raise ValueError(str(error).replace(f"{place}/", "").replace(place, "the archive")) from error


def _too_much(max_bytes: int) -> str:
    return f"the archive unpacks to more than {max_bytes:,} bytes, which is all that is allowed"


def _zip_members(data: bytes) -> Iterator[Member]:
    if data.count(b"PK\x01\x02") > MAX_HEADERS:  # before there is an object for each
        raise ValueError(TOO_MANY)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, archive.open(info)) for info in archive.infolist() if not info.is_dir()]
    except ValueError as error:  # of a place before its beginning, or a name that is no text
        raise zipfile.BadZipFile from error
    for info, file in members:
        if (info.external_attr >> 16) & 0o170000 == 0o120000:
            raise ValueError(f"the archive holds a link, {info.filename!r}; send files only")
        yield info.filename, info.file_size, file  # type: ignore[misc]  # ZipExtFile is buffered


def _unpacked(data: bytes, max_bytes: int) -> bytes:
    """A tar as it is without compression. ValueError where all of it is more than its files may take."""
    most = max_bytes + HEADERS_ROOM
    for magic, kind in COMPRESSIONS:
        if data.startswith(magic):
            with kind.open(io.BytesIO(data)) as file:
                data = file.read(most + 1)
            break
    if len(data) > most:
        raise ValueError(_too_much(max_bytes))
    return data


def _tar_members(data: bytes) -> Iterator[Member]:
    """The files of a plain tar. Its headers are walked here: tarfile reads as much for one as it says (in 3.11 for
    ever where it says less than nothing), and searches a long name's for as long as the square of that takes.
    """
    at, long_name = 0, ""
    for _ in range(MAX_HEADERS):
        if not any(data[at : at + BLOCK]):
            return
        info = tarfile.TarInfo.frombuf(data[at : at + BLOCK], "utf-8", "surrogateescape")
        begin, at = at + BLOCK, at + BLOCK + -(-info.size // BLOCK) * BLOCK
        if not begin <= at <= len(data):
            raise tarfile.ReadError
        content = data[begin : begin + info.size]
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE) and info.size > LONGEST_NAME:
            raise tarfile.ReadError
        if info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _text(content.rstrip(b"\0"))
        elif info.type == tarfile.XHDTYPE:
            long_name = _pax_path(content) or long_name
        elif info.type != tarfile.XGLTYPE:  # what all files have
            name, long_name = long_name or info.name, ""
            if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield name, info.size, io.BytesIO(content)  # type: ignore[misc]  # it is buffered
            elif info.type != tarfile.DIRTYPE:
                raise ValueError(f"the archive holds {name!r}, which is a link or a device; send files only")
    raise ValueError(TOO_MANY)


def _pax_path(records: bytes) -> str:
    """The path among a pax header's records, each "LENGTH KEY=VALUE" and the end of a line; "" for none."""
    path, at = b"", 0
    while at < len(records):
        digits = records[at : at + 8].partition(b" ")[0]
        end = at + int(digits) if digits.isdigit() else at
        key, _, value = records[at + len(digits) + 1 : end - 1].partition(b"=")
        if not key:
            raise tarfile.ReadError
        path, at = value if key == b"path" else path, end
    return _text(path)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
