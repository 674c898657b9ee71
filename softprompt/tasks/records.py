"""Records from files: JSONL, JSON, CSV, TSV and Parquet, plain or compressed, each with its line number."""

import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from softprompt.base.names import nearest

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record]]
Rows = Iterator[tuple[int, Record | ValueError]]
"""Line numbers with records, or with what is wrong there."""


class Blank(ValueError):
    """A line with nothing on it. Files of examples pass over it; what is asked gets an answer for each line."""

    def __init__(self) -> None:
        super().__init__("the line is blank")


COMPRESSIONS: dict[str, Callable[[Any], Any]] = {".gz": lambda raw: gzip.GzipFile(fileobj=raw), ".xz": lzma.LZMAFile}
FIELD_LIMIT = 1 << 26  # ours: characters of a CSV field; only a quote that is never closed makes a longer one


def read_records(path: str | Path) -> Numbered:
    """Pairs of line number (from 1) and record of one file, read by its suffix; `.gz` or `.xz` may follow it.

    JSONL is one object a line. JSON is a list of objects, an object whose "data" is such a list (SQuAD,
    ReCoRD), an object whose values are all objects, one object, or JSONL under another name; there and in
    Parquet the number counts records. CSV is quoted as `csv` has it, TSV (and `.txt`) is not quoted at all;
    both begin with a line of column names. Text is UTF-8, with or without a byte order mark.

    Raises ValueError for a missing, empty, undecodable or malformed file, with the line where there is one.
    """
    return opened(path, READERS.get(file_format(path)))


def read_rows(path: str | Path) -> Rows:
    """As `read_records`, but a row that is at fault comes as its error, and the rows behind it follow.

    Raises ValueError where there is nothing to go on with: a Parquet or JSON file that cannot be parsed, a broken
    line of column names, or a file that is not wholly compressed.
    """
    return READERS[file_format(path)](Path(path))


def read_tsv(
    path: str | Path,
    *,
    columns: Sequence[str] = (),
    known: Sequence[str] = (),
    mend: Callable[[list[str]], list[str]] = list,
) -> Numbered:
    """As `read_records`, for an official file that may come without a line of column names.

    The first line is taken for column names only if `columns` and `known` hold all of them; otherwise the
    columns are `columns`. mend: makes of a line's fields what they are to be. Files of other formats are read as they
    are.
    """
    if file_format(path) != ".tsv":
        return read_records(path)

    def rows(path: Path) -> Rows:
        fields = ((number, row if isinstance(row, ValueError) else mend(row)) for number, row in _tab_fields(path))
        return _separated(path, fields, columns=columns, known=known)

    return opened(path, rows)


def opened(path: str | Path, reader: Callable[[Path], Rows] | None) -> Numbered:
    """What `reader` yields for the file, once it is known to be there, of a known format, sound and not empty."""
    path = Path(path)
    check_kind(path)
    if not path.is_file():
        names = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"no file {path}{nearest(path.name, names)}")
    if reader is None:
        raise ValueError(f"{path} is of no known format; known are {', '.join(READERS)}, each also with .gz or .xz")

    def records() -> Numbered:
        empty = True
        for number, row in reader(path):
            if isinstance(row, Blank):
                continue
            if isinstance(row, ValueError):
                raise ValueError(f"{place(path, number)}: {row}") from row
            empty = False
            yield number, row
        if empty:
            raise ValueError(f"{path} is empty: it holds no records")

    return records()


def check_kind(path: Path) -> None:
    """ValueError, with the line that makes one of our files of it, for a spreadsheet or a folder of texts."""
    if path.is_file() and path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise ValueError(
            f"{path} is a spreadsheet; save it as CSV where it was made, or: pip install pandas openpyxl && python -c "
            f"\"import pandas; pandas.read_excel('{path}').to_csv('{path.with_suffix('.csv')}', index=False)\""
        )
    if path.is_dir() and next(path.rglob("*.txt"), None):
        record = "{'text': p.read_text(), 'label': p.parent.name}"
        raise ValueError(
            f'{path} is a folder of texts; make one file of them, their folders the labels: python -c "import json, '
            f"pathlib; [print(json.dumps({record})) for p in sorted(pathlib.Path('{path}').rglob('*.txt'))]\" > "
            f"{path.with_suffix('.jsonl')}"
        )


def file_format(path: str | Path) -> str:
    """The suffix that names the format, without `.gz` and `.xz`: '.jsonl' for 'dev.jsonl.gz', '.tsv' for 'a.txt'."""
    suffix = plain_suffix(path)
    return ".tsv" if suffix == ".txt" else suffix


def plain_suffix(path: str | Path) -> str:
    """The last suffix but `.gz` and `.xz`: '.txt' for 'a.txt.xz', '' where there is none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() not in COMPRESSIONS]
    return suffixes[-1] if suffixes else ""


def place(path: str | Path, number: int) -> str:
    """'FILE, line 3', or 'FILE, record 3' where the format has no lines."""
    return f"{path}, {'record' if file_format(path) in ('.json', '.parquet') else 'line'} {number}"


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as text whose lines end in \\n only; what cannot be decoded or unzipped is a ValueError."""
    try:
        with open_bytes(path) as plain, io.TextIOWrapper(plain, encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x})") from error


@contextmanager
def open_bytes(path: Path) -> Iterator[Any]:
    """The file's bytes, line by line; what cannot be unzipped is a ValueError."""
    try:
        with open(path, "rb") as raw:
            yield COMPRESSIONS.get(path.suffix.lower(), lambda raw: raw)(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        kind = path.suffix.lower().removeprefix(".").replace("gz", "gzip")
        raise ValueError(f"{path} is not a whole {kind} file ({error})") from error


def decoded(line: bytes) -> str:
    """A line as text, without its end and a byte order mark. ValueError for what is not UTF-8."""
    try:
        return line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(_not_utf8(error.object[error.start])) from error


def _not_utf8(byte: int) -> str:
    return f"not UTF-8 text (byte {byte:#04x})"


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


def check_finite(record: Record) -> None:
    """ValueError for a record with a number that no line of JSON can hold again."""
    for name, value in record.items():
        try:
            json.dumps(value, allow_nan=False, default=str)
        except ValueError:
            raise ValueError(
                f"column '{name}' holds a number that is not finite (NaN, Infinity, 1e999), which JSON has not; write "
                "null, or a text"
            ) from None


def _why(error: Exception) -> str:
    """In a few words, why `json.loads` refused a text."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, column {error.colno}"
    return "brackets too deep in one another" if isinstance(error, RecursionError) else "a number of too many digits"


def jsonl_rows(path: Path) -> Rows:
    """The rows of a file with an object on each line."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield number, read_object(decoded(line)) if line.strip() else Blank()
            except ValueError as error:
                yield number, error


def json_rows(path: Path) -> Rows:
    """The rows of a file that is one JSON value, or JSONL under another name."""
    with open_text(path) as file:
        text = file.read()
    try:
        values = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from jsonl_rows(path)
            return
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({_why(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({_why(error)})") from error
    if isinstance(values, dict):
        if isinstance(values.get("data"), list):
            values = values["data"]
        elif values and all(isinstance(value, dict) for value in values.values()):
            values = list(values.values())
    for number, value in enumerate(values if isinstance(values, list) else [values], 1):
        try:
            yield number, checked_object(value)
        except ValueError as error:
            yield number, error


Fields = Iterator[tuple[int, list[str] | ValueError]]


class _Lines:
    """A file's lines as text, which can be gone back to: a quote that is never closed takes in all lines behind it."""

    def __init__(self, file: Iterable[bytes]):
        self._file = iter(file)
        self._taken: list[str] = []
        self._again: list[str] = []
        self.number = 0
        """Lines taken so far."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._file).decode("utf-8-sig", "surrogateescape")
        self._taken.append(line)
        self.number += 1
        return line

    def begin(self) -> None:
        """A row begins here."""
        self._taken.clear()

    def go_back(self) -> None:
        """To the line behind the one that the row began with."""
        again = self._taken[1:]
        self._again += reversed(again)
        self.number -= len(again)


def csv_rows(path: Path) -> Rows:
    """The rows of a file whose fields stand between commas, quoted where need be."""
    return _separated(path, _quoted_fields(path))


def _quoted_fields(path: Path) -> Fields:
    csv.field_size_limit(FIELD_LIMIT)
    with open_bytes(path) as file:
        lines = _Lines(file)
        rows = csv.reader(lines, strict=True)
        while True:
            lines.begin()
            try:
                row = next(rows, None)
                if row is None:
                    return
                "".join(row).encode()
            except csv.Error as error:
                lines.go_back()
                yield lines.number, ValueError(f"not CSV ({error})")
            except UnicodeEncodeError as error:  # Python keeps a byte that it cannot decode as 0xDC00 and the byte
                yield lines.number, ValueError(_not_utf8(ord(error.object[error.start]) - 0xDC00))
            else:
                yield lines.number, row


def tsv_rows(path: Path) -> Rows:
    """The rows of a file whose fields stand between tabs, not quoted."""
    return _separated(path, _tab_fields(path))


def _tab_fields(path: Path) -> Fields:
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            try:
                text = decoded(line)
            except ValueError as error:
                yield number, error
            else:
                yield number, text.split("\t") if text else []


def _separated(path: Path, rows: Fields, *, columns: Sequence[str] = (), known: Sequence[str] = ()) -> Rows:
    names: Sequence[str] = ()
    for number, row in rows:
        if not row:
            continue
        if isinstance(row, ValueError):
            if not names:
                raise ValueError(f"{path}, line {number}: {row}") from row
            yield number, row
            continue
        if not names:
            headed = not columns or set(row) <= {*columns, *known}
            names = row if headed else columns
            if headed:
                _check_separator(path, names)
                continue
        if len(row) == len(names):
            yield number, dict(zip(names, row, strict=True))
        else:
            yield number, ValueError(f"{len(row)} fields, but there are {len(names)} columns")


def _check_separator(path: Path, names: Sequence[str]) -> None:
    """ValueError for a lone column whose name has another separator in it."""
    kind = file_format(path)
    for separator, what in {";": "semicolons", ",": "commas", "\t": "tabs"}.items():
        if len(names) == 1 and separator in names[0]:
            wanted = {
                ".csv": "commas (a name that ends in .tsv has tabs)",
                ".tsv": "tabs (one that ends in .csv has commas)",
            }
            raise ValueError(f"{path} has {what} between its columns, but should have {wanted[kind]}; save it so")


def parquet_rows(path: Path) -> Rows:
    """The rows of a Parquet file."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with open(path, "rb") as raw:
            batches = ParquetFile(raw).iter_batches()
            yield from enumerate((record for batch in batches for record in batch.to_pylist()), 1)
    except ArrowException as error:
        raise ValueError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": jsonl_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".parquet": parquet_rows,
}
