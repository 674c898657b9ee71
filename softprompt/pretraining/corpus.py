"""Plain text for pre-training: files of documents, read once into one long array of ids, a file in the cache.

Documents follow one another with an end of sequence between them, and the array is cut into texts of one length:
a text may hold the end of one document and the start of the next, and attention crosses that border, as it does in
T5 (reduce_concat_tokens, split_tokens). Shapes: n ids of a text, b texts.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import filelock
import numpy as np
from jaxtyping import Int, UInt

from softprompt.base.files import remove_leftovers, whole_file
from softprompt.models import Tokenizer, cache_folder
from softprompt.tasks import open_text, plain_suffix, read_records

TEXT_COLUMN = "text"  # of JSONL and Parquet, as in most published corpora
SUFFIXES = (".txt", ".jsonl", ".parquet")
CHUNK = 4_000_000  # ours: characters tokenised together; their ids take ten times as many bytes for a moment
PART = 1 << 24  # ours: ids looked through together
SHORT_IDS = 65_536  # vocabularies up to this size fit 16 bits

Progress = Callable[[int], object]
"""Called with the bytes of text just read."""


@dataclass(frozen=True)
class TokenStream:
    """All documents of a corpus as ids, one after another, each with an end of sequence behind it."""

    ids: UInt[np.ndarray, " n"]
    num_documents: int

    def num_texts(self, length: int) -> int:
        """How many whole texts of `length` an epoch has at least."""
        return max((len(self.ids) - length + 1) // length, 0)

    def texts(self, places: Sequence[int], length: int, seed: int) -> Int[np.ndarray, "b n"]:
        """The texts at these places of an endless stream: every epoch is cut anew and shuffled anew, by seed.

        A pure function of its arguments, so a resumed run goes on where it was. ValueError for a corpus shorter than
        one text.
        """
        per_epoch = self.num_texts(length)
        if not per_epoch:
            raise ValueError(f"the corpus has {len(self.ids):,} tokens, too few for one text of {length}; give more")
        rows = []
        for place in places:
            epoch, offset = divmod(place, per_epoch)
            order, start = _epoch(per_epoch, length, seed, epoch)
            at = start + int(order[offset]) * length
            rows.append(self.ids[at : at + length].astype(np.int64))
        return np.stack(rows)

    def split(self, num_tokens: int) -> tuple[TokenStream, TokenStream]:
        """All but the last `num_tokens`, and those."""
        cut = max(len(self.ids) - num_tokens, 0)
        return TokenStream(self.ids[:cut], self.num_documents), TokenStream(self.ids[cut:], self.num_documents)


@lru_cache(maxsize=8)
def _epoch(num_texts: int, length: int, seed: int, epoch: int) -> tuple[np.ndarray, int]:
    """The order of an epoch's texts, and the place of the first one."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(np.arange(num_texts, dtype=np.uint32)), int(rng.integers(length))


def corpus_files(places: Sequence[str | Path]) -> list[Path]:
    """The files of text at these places: files as given, and in a folder all of its own (not those of its folders).

    Raises ValueError for a place that is not there, or a folder that holds no text.
    """
    files: list[Path] = []
    for place in map(Path, places):
        if place.is_dir():
            found = sorted(file for file in place.iterdir() if file.is_file() and plain_suffix(file) in SUFFIXES)
            if not found:
                raise ValueError(f"{place} holds no text; wanted files in {', '.join(SUFFIXES)}, plain, .gz or .xz")
            files += found
        elif place.is_file():
            if plain_suffix(place) not in SUFFIXES:
                raise ValueError(f"{place} is of no known format; wanted {', '.join(SUFFIXES)}, plain, .gz or .xz")
            files.append(place)
        else:
            raise ValueError(f"no file or folder {place}; name the text to train on")
    return files


def read_documents(files: Iterable[Path]) -> Iterator[str]:
    """The documents of the files, in order: the lines of a .txt that are not empty, or the column "text" of records.

    Raises ValueError for text that is not UTF-8, a damaged file, or a record without that column.
    """
    for file in files:
        if plain_suffix(file) == ".txt":
            with open_text(file) as lines:
                yield from (line.strip() for line in lines if line.strip())
            continue
        for number, record in read_records(file):
            text = record.get(TEXT_COLUMN)
            if not isinstance(text, str):
                raise ValueError(f"{file}, record {number}: no text in a column named {TEXT_COLUMN!r}")
            if text.strip():
                yield text.strip()


def tokenized(files: Sequence[Path], tokenizer: Tokenizer, *, progress: Progress | None = None) -> TokenStream:
    """The files as one stream of ids, which stays on disk in the cache; made there unless this tokenizer has before.

    Raises ValueError for a corpus without documents, and as `read_documents` does. Warns where the cache cannot be
    written, and goes on in memory.
    """
    if not files:
        raise ValueError("the corpus is empty: it has no files; name the text to train on")
    number = np.uint16 if tokenizer.size <= SHORT_IDS else np.uint32
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = json.dumps([stats, tokenizer.digest().hex(), TEXT_COLUMN, "plain"])
    path = cache_folder() / "tokens" / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.ids"  # no header
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.is_file():
                remove_leftovers(path)
                with whole_file(path) as file:
                    file.writelines(_tokenize(files, tokenizer, number, progress))
        ids = np.memmap(path, number, mode="r")
    except OSError as error:
        warnings.warn(
            f"the cache {cache_folder()} cannot be written ({error.strerror or error}), so the corpus is tokenised "
            "again each time, and held in memory; set SOFTPROMPT_CACHE to a folder that can",
            stacklevel=2,
        )
        memory = io.BytesIO()
        memory.writelines(_tokenize(files, tokenizer, number, progress))
        ids = np.frombuffer(memory.getbuffer(), number)
    # A mask over all ids at once would be half as large as they are.
    ends = sum(np.count_nonzero(ids[at : at + PART] == tokenizer.eos_id) for at in range(0, len(ids), PART))
    return TokenStream(ids, int(ends))


def _tokenize(
    files: Sequence[Path], tokenizer: Tokenizer, number: type[np.unsignedinteger], progress: Progress | None
) -> Iterator[bytes]:
    """The ids of one document after the other, as they lie in memory."""
    documents = read_documents(files)
    is_empty = True
    while True:
        chunk: list[str] = []
        size = 0
        for text in documents:
            chunk.append(text)
            size += len(text)
            if size >= CHUNK:
                break
        if not chunk:
            break
        is_empty = False
        for ids in tokenizer.encode_plain(chunk):
            yield np.array([*ids, tokenizer.eos_id], number).tobytes()
        if progress:
            progress(sum(len(text.encode()) for text in chunk))
    if is_empty:
        raise ValueError(f"the corpus is empty: {files[0]} and the others hold no text")
