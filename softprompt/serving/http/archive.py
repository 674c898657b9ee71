"""A prompt folder that came as a zip or tar archive: read with care, since anybody may have made it."""

from __future__ import annotations

import io
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
MAX_MEMBERS = 100  # ours: a prompt folder has four files, a run's folder a few dozen

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
        members = _zip_members(data) if data[:4] == b"PK\x03\x04" else _tar_members(data)
        for count, (name, size, file) in enumerate(members, 1):
            if count > MAX_MEMBERS:
                raise ValueError(f"the archive holds more than {MAX_MEMBERS} files; send one prompt folder")
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
                raise ValueError(f"the archive unpacks to more than {max_bytes:,} bytes, which is all that is allowed")
            files[place.name] = content
            left -= len(content)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
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


def _zip_members(data: bytes) -> Iterator[Member]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise ValueError(f"the archive holds a link, {info.filename!r}; send files only")
            with archive.open(info) as file:
                yield info.filename, info.file_size, file  # type: ignore[misc]  # ZipExtFile is buffered


def _tar_members(data: bytes) -> Iterator[Member]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        for info in archive:
            if info.isdir():
                continue
            if not info.isreg():
                raise ValueError(f"the archive holds {info.name!r}, which is a link or a device; send files only")
            file = archive.extractfile(info)
            assert file is not None
            yield info.name, info.size, file  # type: ignore[misc]  # ExFileObject is buffered
