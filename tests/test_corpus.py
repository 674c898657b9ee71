"""Text for pre-training: what is read from which files, how it is cut and shuffled, and what is refused."""

import gzip
import json
import lzma
import resource
import tracemalloc

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from conftest import make_tokenizer
from texts import documents
from transformers import ByT5Tokenizer

from softprompt.models.loading import BUNDLED_FOLDER
from softprompt.models.tokenizer import Tokenizer, load_tokenizer
from softprompt.pretraining.corpus import TokenStream, corpus_files, read_documents, tokenized

LINES = ["the sea is warm", "", "  a story about a town  ", "it rained"]
WANTED = ["the sea is warm", "a story about a town", "it rained"]


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return Tokenizer(make_tokenizer())


def test_documents_of_every_format_are_the_same(tmp_path):
    text = "\n".join(LINES) + "\n"
    records = [{"text": line, "source": "here"} for line in LINES]
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.txt.xz").write_bytes(lzma.compress(text.encode()))
    (tmp_path / "d.jsonl.xz").write_bytes(lzma.compress("\n".join(map(json.dumps, records)).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "e.parquet")
    (tmp_path / "manifest.tsv").write_text("no\ttext\n")
    (tmp_path / "heldout").mkdir()
    (tmp_path / "heldout" / "f.txt").write_text("not this\n")
    files = corpus_files([tmp_path])
    assert [file.name for file in files] == ["a.txt", "b.txt.gz", "c.txt.xz", "d.jsonl.xz", "e.parquet"]
    assert list(read_documents(files)) == WANTED * 5


def test_documents_are_joined_with_an_end_between_them(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the sea\nit rained\n")
    stream = tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    wanted = [*tokenizer.encode("the sea"), tokenizer.eos_id, *tokenizer.encode("it rained"), tokenizer.eos_id]
    assert stream.ids.tolist() == wanted
    assert stream.ids.dtype == np.uint16
    assert stream.num_documents == 2


TOKENIZERS = {
    "bytes in pieces": lambda: Tokenizer(make_tokenizer()),
    "sentencepiece": lambda: load_tokenizer(BUNDLED_FOLDER / "t5-mini"),
    "bytes": lambda: Tokenizer(ByT5Tokenizer()),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_names_of_control_tokens_are_text_like_any_other(kind, tokenizer, tmp_path):
    own = TOKENIZERS[kind]()
    odd = "a </s> b <extra_id_0>, x</s> <pad> and \uff1c/s\uff1e"  # which T5's normaliser turns into </s>
    (tmp_path / "a.txt").write_text("\n".join([odd, *documents(3)]))
    stream = tokenized(corpus_files([tmp_path / "a.txt"]), own)
    ends = np.flatnonzero(stream.ids == own.eos_id)
    assert stream.num_documents == len(ends) == 4
    first, others = stream.ids[: ends[0]].tolist(), stream.ids[ends[0] + 1 :].tolist()
    assert not {own.pad_id, own.id_of("<extra_id_0>"), own.id_of("<unk>")} & set(first)
    assert own.decode(first) == (odd if kind != "sentencepiece" else odd.replace("\uff1c/s\uff1e", "</s>"))
    assert others == [id for ids in own.encode_all(documents(3)) for id in (*ids, own.eos_id)]


def test_a_corpus_is_tokenised_once(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(documents(40)))
    told = []
    first = tokenized(corpus_files([tmp_path]), tokenizer, progress=told.append)
    assert sum(told) == len((tmp_path / "a.txt").read_bytes()) - 39
    again = tokenized(corpus_files([tmp_path]), tokenizer, progress=lambda _: pytest.fail("tokenised again"))
    assert again.ids.tolist() == first.ids.tolist()
    (tmp_path / "a.txt").write_text("\n".join(documents(41)))
    assert len(tokenized(corpus_files([tmp_path]), tokenizer).ids) > len(first.ids)


def test_a_corpus_is_never_in_memory_as_a_whole(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(documents(4_000)))
    monkeypatch.setattr("softprompt.pretraining.corpus.CHUNK", 2_000)
    monkeypatch.setattr("softprompt.pretraining.corpus.PART", 10_000)
    tokenized(corpus_files([tmp_path / "a.txt"]), Tokenizer(make_tokenizer(bos=True)))  # imports what is needed
    tracemalloc.start()
    stream = tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stream.num_documents == 4_000
    assert peak < stream.ids.nbytes / 2


def test_what_a_killed_run_left_in_the_cache_is_removed(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("the sea\n")
    tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    (cached,) = (tmp_path / "cache" / "tokens").glob("*.ids")
    cached.rename(cached.with_name(f".{cached.name}.77"))
    tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    assert sorted(path.name for path in cached.parent.iterdir()) == [cached.name, f"{cached.name}.lock"]


def test_a_cache_that_cannot_be_written_is_said_and_work_goes_on(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("\n".join(documents(40)))
    wanted = tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"the cache .*file cannot be written \(Not a directory\).*SOFTPROMPT_CACHE"):
        stream = tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    assert stream.ids.tolist() == wanted.ids.tolist()


def test_a_disk_that_fills_while_tokenising_is_said_and_work_goes_on(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(documents(40)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"cannot be written \(File too large\), so .* held in memory; set SOFT"):
            stream = tokenized(corpus_files([tmp_path / "a.txt"]), tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert stream.num_documents == 40
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]


def test_an_epoch_holds_every_text_once_and_the_next_is_cut_anew():
    stream = TokenStream(np.arange(1_000, dtype=np.uint16), 1)
    count = stream.num_texts(30)
    assert count == 32
    first = stream.texts(range(count), 30, seed=5)
    assert (np.diff(first, axis=1) == 1).all()
    starts = np.sort(first[:, 0])
    assert (np.diff(starts) == 30).all()
    second = stream.texts(range(count, 2 * count), 30, seed=5)
    assert second[0, 0] % 30 != first[0, 0] % 30
    assert (stream.texts([3, 40], 30, seed=5) == np.stack([first[3], second[8]])).all()
    assert (stream.texts(range(count), 30, seed=6) != first).any()


def test_the_last_part_can_be_held_out():
    kept, held = TokenStream(np.arange(100, dtype=np.uint16), 1).split(10)
    assert (len(kept.ids), held.ids.tolist()) == (90, list(range(90, 100)))


def test_what_is_no_corpus(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no file or folder .*nowhere; name the text to train on"):
        corpus_files([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no text; wanted files in .txt, .jsonl, .parquet, plain, .gz or"):
        corpus_files([tmp_path / "empty"])
    (tmp_path / "a.pdf").write_text("")
    with pytest.raises(ValueError, match=r"a.pdf is of no known format; wanted .txt, .jsonl, .parquet"):
        corpus_files([tmp_path / "a.pdf"])
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"the corpus is empty: .*blank.txt and the others hold no text"):
        tokenized(corpus_files([tmp_path / "blank.txt"]), tokenizer)
    with pytest.raises(ValueError, match="the corpus is empty: it has no files"):
        tokenized([], tokenizer)
    (tmp_path / "latin.txt").write_bytes("caf\xe9 au lait".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8 text \(byte 0xe9\)"):
        tokenized(corpus_files([tmp_path / "latin.txt"]), tokenizer)
    (tmp_path / "cut.txt.xz").write_bytes(lzma.compress(b"the sea " * 1000)[:50])
    with pytest.raises(ValueError, match=r"cut.txt.xz is not a whole xz file"):
        tokenized(corpus_files([tmp_path / "cut.txt.xz"]), tokenizer)
    (tmp_path / "other.jsonl").write_text('{"body": "the sea"}\n')
    with pytest.raises(ValueError, match=r"other.jsonl, record 1: no text in a column named 'text'"):
        tokenized(corpus_files([tmp_path / "other.jsonl"]), tokenizer)
    with pytest.raises(ValueError, match="the corpus has 5 tokens, too few for one text of 30; give more"):
        TokenStream(np.arange(5, dtype=np.uint16), 1).texts([0], 30, 0)
