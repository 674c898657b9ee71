"""Records from files: JSONL, JSON, CSV, TSV and Parquet, plain or compressed, each with its line number."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record]]

COMPRESSIONS: dict[str, Callable[[Any], Any]] = {".gz": lambda raw: gzip.GzipFile(fileobj=raw), ".xz": lzma.LZMAFile}


def read_records(path: str | Path) -> Numbered:
    """Pairs of line number (from 1) and record of one file, read by its suffix; `.gz` or `.xz` may follow it.

    JSONL is one object a line. JSON is a list of objects, an object whose "data" is such a list (SQuAD,
    ReCoRD), an object whose values are all objects, one object, or JSONL under another name; there and in
    Parquet the number counts records. CSV is quoted as `csv` has it, TSV (and `.txt`) is not quoted at all;
    both begin with a line of column names. Text is UTF-8, with or without a byte order mark.

    Raises ValueError for a missing, empty, undecodable or malformed file, with the line where there is one.
    """
    return opened(path, READERS.get(file_format(path)))


def read_tsv(path: str | Path, *, columns: Sequence[str] = (), known: Sequence[str] = ()) -> Numbered:
    """As `read_records`, for an official file that may come without a line of column names.

    The first line is taken for column names only if `columns` and `known` hold all of them; otherwise the
    columns are `columns`. Files of other formats are read as they are.
    """
    if file_format(path) != ".tsv":
        return read_records(path)
    return opened(path, lambda file: _separated(file, _tab_rows(file), columns=columns, known=known))


def opened(path: str | Path, reader: Callable[[Path], Numbered] | None) -> Numbered:
    """What `reader` yields for the file, once it is known to be there, of a known format and not empty."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(_missing(path))
    if reader is None:
        raise ValueError(f"{path} is of no known format; known are {', '.join(READERS)}, each also with .gz or .xz")
    return _not_empty(path, reader(path))


def file_format(path: str | Path) -> str:
    """The suffix that names the format, without `.gz` and `.xz`: '.jsonl' for 'dev.jsonl.gz', '.tsv' for 'a.txt'."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in COMPRESSIONS]
    suffix = suffixes[-1] if suffixes else ""
    return ".tsv" if suffix == ".txt" else suffix


def place(path: str | Path, number: int) -> str:
    """'FILE, line 3', or 'FILE, record 3' where the format has no lines."""
    return f"{path}, {'record' if file_format(path) in ('.json', '.parquet') else 'line'} {number}"


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as text whose lines end in \\n only; what cannot be decoded or unzipped is a ValueError."""
    try:
        with open(path, "rb") as raw:
            plain = COMPRESSIONS.get(path.suffix.lower(), lambda raw: raw)(raw)
            with io.TextIOWrapper(plain, encoding="utf-8-sig", newline="\n") as file:
                yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x})") from error
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = path.suffix.lower().removeprefix(".").replace("gz", "gzip")
        raise ValueError(f"{path} is not a whole {kind} file ({error})") from error


def _missing(path: Path) -> str:
    names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
    near = get_close_matches(path.name, names, n=1)
    return f"no file {path}" + (f"; did you mean '{near[0]}'?" if near else "")


def _not_empty(path: Path, records: Numbered) -> Numbered:
    empty = True
    for record in records:
        empty = False
        yield record
    if empty:
        raise ValueError(f"{path} is empty: it holds no records")


def read_object(line: str) -> Record:
    """The object that a line of JSON is. ValueError, without file and line, for what is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_why(error)})") from error
    return checked_object(value)


def checked_object(value: Any) -> Record:
    """The value, if it is an object and all of it is text that can be written. Else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"wanted an object, got {json.dumps(value)[:40]}")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(
            f"{half} is half of a character, which is no text; take it out, or write both halves"
        ) from error
    return value


def _why(error: Exception) -> str:
    """In a few words, why `json.loads` refused a text."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "brackets too deep in one another" if isinstance(error, RecursionError) else "a number of too many digits"


def _jsonl(path: Path) -> Numbered:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, _placed(path, number, read_object, line)


def _placed(path: Path, number: int, read: Callable[[Any], Record], value: Any) -> Record:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"{place(path, number)}: {error}") from error


def _json(path: Path) -> Numbered:
    with open_text(path) as file:
        text = file.read()
    try:
        whole = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _jsonl(path)
            return
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({_why(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({_why(error)})") from error
    for number, value in enumerate(_members(whole), 1):
        yield number, _placed(path, number, checked_object, value)


def _members(whole: Any) -> Iterable[Any]:
    if not isinstance(whole, dict):
        return whole if isinstance(whole, list) else [whole]
    if isinstance(whole.get("data"), list):
        return whole["data"]
    if whole and all(isinstance(value, dict) for value in whole.values()):
        return whole.values()
    return [whole]


def _csv(path: Path) -> Numbered:
    return _separated(path, _quoted_rows(path))


def _tsv(path: Path) -> Numbered:
    return _separated(path, _tab_rows(path))


def _quoted_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        rows = csv.reader(file, strict=True)
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {rows.line_num}: not CSV ({error})") from error


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n")
            yield number, line.split("\t") if line else []


def _separated(
    path: Path,
    rows: Iterator[tuple[int, list[str]]],
    *,
    columns: Sequence[str] = (),
    known: Sequence[str] = (),
) -> Numbered:
    names: Sequence[str] = ()
    for number, row in rows:
        if not row:
            continue
        if not names:
            headed = not columns or set(row) <= {*columns, *known}
            names = row if headed else columns
            if headed:
                continue
        if len(row) != len(names):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, but there are {len(names)} columns")
        yield number, dict(zip(names, row, strict=True))


def _parquet(path: Path) -> Numbered:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with open(path, "rb") as raw:
            batches = ParquetFile(raw).iter_batches()
            yield from enumerate((record for batch in batches for record in batch.to_pylist()), 1)
    except ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from error


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
}
