"""A vocabulary of one's own: SentencePiece's unigram model, with T5's specials and 100 sentinels.

Ids are T5's: 0 pad, 1 end of sequence, 2 unknown, then 256 raw bytes (nothing is ever unknown), the pieces from
frequent to rare, and <extra_id_99> to <extra_id_0>, which is the last.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from softprompt.base.names import first_line
from softprompt.models import Tokenizer, of_backend
from softprompt.pretraining.objectives import NUM_SENTINELS

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
NUM_BYTES = 256
CHARACTER_COVERAGE = 0.9995  # SentencePiece's own default; what is not covered is spelled in bytes
MAX_LINE_BYTES = 4_192  # SentencePiece's own default: it leaves longer lines out, so documents are cut


def train_vocabulary(
    documents: Iterable[str], *, size: int, max_megabytes: float = 30.0, seed: int = 0, threads: int | None = None
) -> Any:
    """A T5-like tokenizer of transformers with `size` ids in all, learned from at most so much text.

    max_megabytes: of text, drawn evenly from all documents by seed. Raises ValueError for a size that leaves no room
    for pieces, or text that does not have that many.
    """
    import sentencepiece

    num_pieces = size - NUM_SENTINELS
    if num_pieces <= NUM_BYTES + 3:
        raise ValueError(
            f"a vocabulary of {size} has no room for pieces beside {NUM_SENTINELS} sentinels and {NUM_BYTES} bytes; "
            "give 1,000 or more"
        )
    lines = _sample(documents, int(max_megabytes * 1e6), seed)
    if not lines:
        raise ValueError("the corpus is empty: there is no text to learn a vocabulary from")
    with tempfile.TemporaryDirectory() as folder:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_prefix=str(Path(folder) / "vocabulary"),
                model_type="unigram",
                vocab_size=num_pieces,
                character_coverage=CHARACTER_COVERAGE,
                byte_fallback=True,
                pad_id=0,
                eos_id=1,
                unk_id=2,
                bos_id=-1,
                pad_piece=PAD,
                num_threads=threads or os.cpu_count() or 1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"no vocabulary of {size} can be learned from this text: {first_line(error)}") from None
        return _as_t5(Path(folder) / "vocabulary.model")


def check_sentinels(tokenizer: Tokenizer, name: str) -> int:
    """The id of <extra_id_0>, from which sentinels count down. ValueError for a vocabulary without 100 of them."""
    ids = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(NUM_SENTINELS)]
    first = ids[0]
    if first is None or ids != list(range(first, first - NUM_SENTINELS, -1)):
        raise ValueError(
            f"the vocabulary of {name} has no sentinels <extra_id_0> to <extra_id_{NUM_SENTINELS - 1}>, which span "
            "corruption needs; make one with softprompt vocabulary"
        )
    return first


def _sample(documents: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """Lines of the documents, at most `max_bytes` in all and drawn by seed; no more than those are in memory."""
    rng = np.random.default_rng(seed)
    kept: list[tuple[float, int, str]] = []  # a heap: the line that goes next is first
    used = 0
    number = 0
    for text in documents:
        for line in _lines(text):
            heapq.heappush(kept, (rng.random(), number, line))
            number += 1
            used += len(line.encode())
            while used > max_bytes and len(kept) > 1:
                used -= len(heapq.heappop(kept)[2].encode())
    kept.sort(key=lambda entry: entry[1])
    return [line for _, _, line in kept]


def _lines(text: str) -> Iterator[str]:
    """A document in parts of at most `MAX_LINE_BYTES`, cut at spaces."""
    words: list[str] = []
    used = 0
    for word in text.split():
        size = len(word.encode()) + 1
        if words and used + size > MAX_LINE_BYTES:
            yield " ".join(words)
            words, used = [], 0
        words.append(word)
        used += size
    if words:
        yield " ".join(words)


def _as_t5(path: Path) -> Any:
    """A SentencePiece model as a tokenizer of transformers, sentinels added at the end."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    protocol: Any = import_module("sentencepiece.sentencepiece_model_pb2")
    model = protocol.ModelProto()
    model.ParseFromString(path.read_bytes())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    backend = Backend(Unigram(pieces, unk_id=2, byte_fallback=True))
    backend.normalizer = normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return of_backend(
        backend, pad=PAD, eos=EOS, unknown=UNKNOWN, extra=[f"<extra_id_{i}>" for i in reversed(range(NUM_SENTINELS))]
    )
