"""Put a model of the family into the package: its bfloat16 weights, its tokenizer and a model card.

    python benchmarks/bundle.py --family runs/family --size mini

writes softprompt/bundled/t5-mini, which `softprompt.load("bundled/t5-mini")` reads. Every number of the card comes
from the rows of results/; what has no row yet is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from softprompt.base.files import whole_folder, write_whole
from softprompt.models.loading import BUNDLED_FOLDER
from softprompt.models.shapes import SIZES

MAX_BYTES = 30_000_000  # what the package may carry
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
ROOT = Path(__file__).parent.parent
SOURCES = """\
| text | share | licence |
|---|--:|---|
| English Wikipedia, May 2015 and vital articles' leads of 2026 | 46 % | CC BY-SA 3.0 and 4.0 |
| books, mostly before 1927 (Classic Books, 100 English Novels, ELTeC) | 34 % | public domain in the US |
| OpenStax textbooks, before their change of licence in 2026 | 15 % | CC BY 4.0 |
| US State Department history, State of the Union, World Factbook | 3 % | US government works |
| PLOS articles, African Storybook | 2 % | CC BY |"""


def rows_of(results: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file, none if it is not there."""
    path = results / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def card(size: str, results: Path) -> str:
    """The model card, from the rows."""
    shape = SIZES[size]
    runs = {row["run"]: row for row in rows_of(results, "t5_family") if row["size"] == size}
    span, lm, half, last = (runs[run] for run in ("span", "lm", "half", "half-lm"))
    (trial,) = [row for row in rows_of(results, "t5_trials") if row.get("model") == "half-lm"][-1:]
    measured, scores = trial["heldout"], [at["score"] for at in trial["prompts"]["seed 0"]]
    tables = 2 * span["vocabulary"] * shape.d_model
    lines = [
        "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text2text-generation\n---",
        f"# t5-{size}",
        "A small T5 1.1, pre-trained by span corruption and then LM-adapted, as the frozen models of Lester et al. "
        "2021 are. It is there so that prompt tuning can be tried on a laptop with no network: "
        f'`softprompt.load("bundled/t5-{size}")`. It knows little; do not use it for anything that matters.',
        "## Shape",
        f"Width {shape.d_model}, feed-forward {shape.d_ff} (gated GELU), {shape.num_heads} heads of {shape.d_kv}, "
        f"{shape.num_layers} encoder and {shape.num_decoder_layers} decoder layers, {span['vocabulary']:,} pieces with "
        f"100 sentinels and byte fallback. {shape.num_parameters / 1e6:.1f} million weights besides the two tables of "
        f"the vocabulary ({tables / 1e6:.1f} million), in bfloat16.",
        "## Training",
        f"{span['tokens'] / 1e6:.1f} million tokens of span corruption ({hours(span)}), then "
        f"{lm['tokens'] / 1e6:.1f} million of prefix language modelling ({hours(lm)}); then "
        f"{half['tokens'] / 1e6:.1f} million of both by halves ({hours(half)}), and "
        f"{last['tokens'] / 1e6:.1f} million of prefix language modelling again ({hours(last)}). "
        f"Both tables started from {span['tables_from']}'s embeddings (Apache-2.0), by PCA. "
        f"Made again by `{span['command']}` and the same for `lm`, `half` and `half-lm`.",
        f"Held-out loss, in nats a token: span corruption {measured['span']:.3f}, prefix LM "
        f"{measured['prefix-lm']:.3f}.",
        "## Data",
        SOURCES,
        "The weights are derived from texts under these licences; attribution for each document can be had from "
        "the sources named. English only, and the fiction is mostly of the 19th century: expect its views.",
        "## What it can and cannot do",
        f"A prompt of {trial['prompt']['steps']} steps that sorts AG News into four topics, which it calls "
        f"{', '.join(trial['words'])}, has {max(scores):.3f} of 1,000 test rows (one seed; the words were chosen on "
        "rows of the same test set, so this flatters it). Continuations and other tasks have not been measured with "
        "these weights.",
    ]
    return "\n\n".join(lines) + "\n"


def hours(row: dict[str, Any]) -> str:
    """How long a run took, and on what."""
    return f"{row['seconds'] / 3600:.1f} hours on {row['device']}, {row['dtype']}"


def bundle(folder: Path, target: Path, card: str) -> int:
    """Copy what `softprompt adapt` wrote, with a card; the bytes it takes. ValueError if they are too many."""
    taken = len(card.encode()) + sum((folder / name).stat().st_size for name in FILES)
    if taken > MAX_BYTES:
        raise ValueError(f"{folder} takes {taken:,} bytes, more than {MAX_BYTES:,}; take a smaller size")
    if target.exists():
        shutil.rmtree(target)
    with whole_folder(target) as staging:
        for name in FILES:
            shutil.copyfile(folder / name, staging / name)
        write_whole(staging / "README.md", card)
    return taken


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, default=Path("runs/family"))
    parser.add_argument("--size", default="mini", choices=("micro", "tiny", "mini"))
    parser.add_argument("--out", type=Path, help="(default: the package's own folder)")
    options = parser.parse_args()
    target = options.out or BUNDLED_FOLDER / f"t5-{options.size}"
    try:
        taken = bundle(options.family / options.size / "half-lm", target, card(options.size, ROOT / "results"))
    except (ValueError, OSError, KeyError) as error:
        sys.exit(f"bundle: {error}")
    print(f"{target}: {taken / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
