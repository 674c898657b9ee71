"""Learn a SentencePiece unigram vocabulary with T5's special tokens, 256 raw bytes for what is rare, and 100
sentinels for span corruption. Text is .txt (one document a line), .jsonl or .parquet (column text), plain, .gz or
.xz.

examples:
  softprompt vocabulary --corpus corpus --size 8192 --out runs/vocabulary
"""

import argparse
from pathlib import Path

from softprompt.base.files import held, refusals, whole_files
from softprompt.base.terminal import say
from softprompt.cli import add_shared


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt vocabulary."""
    command.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="files or folders of text")
    command.add_argument("--size", type=int, default=8_192, metavar="N", help="ids in all (default: 8192)")
    command.add_argument("--out", required=True, metavar="DIR", help="folder for the tokenizer")
    command.add_argument(
        "--megabytes", type=float, default=30.0, metavar="X", help="text to learn from, at most (default: 30)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="draws the text (default: 0)")
    add_shared(command, ["threads"], title="")


def run(args: argparse.Namespace) -> int:
    """Learn the vocabulary, and say what it has."""
    out = Path(args.out)
    from softprompt.models import Tokenizer
    from softprompt.pretraining import corpus_files, read_documents, train_vocabulary

    with held(out):
        if (out / "tokenizer.json").exists():
            raise ValueError(f"{out} holds a vocabulary already; give another --out")
        files = corpus_files(args.corpus)
        say(f"learning {args.size:,} ids from {len(files)} files; about a minute for 30 MB of text")
        made = train_vocabulary(
            read_documents(files), size=args.size, max_megabytes=args.megabytes, seed=args.seed, threads=args.threads
        )
        tokenizer = Tokenizer(made)
        with refusals(out, "no vocabulary is there"), whole_files(out, last="tokenizer.json") as staging:
            tokenizer.save(staging)
    common = ", ".join(repr(tokenizer.piece(id)) for id in tokenizer.ordinary_ids()[:8])
    print(f"{out}: {tokenizer.size:,} ids; the commonest pieces are {common}")
    return 0
