"""The small T5 family: three sizes, span corruption, LM adaptation, and the controls of the ablation.

    python benchmarks/family.py --corpus DIR --heldout DIR --out runs/family              # everything, many hours
    python benchmarks/family.py --corpus DIR --heldout DIR --out runs/family --sizes mini --runs span
    python benchmarks/family.py --corpus DIR --heldout DIR --out runs/family --table      # from the rows, no run

Runs, each within 2.5 hours alone on 2 cores, each resumed where it was left:

    span    span corruption from scratch, both vocabulary tables started from SmolLM2-135M's by PCA
    lm      that model LM-adapted at a constant rate for 10 % of its steps; 1 %, 5 % and 10 % are kept
    span+   the control: span corruption continued for the same steps at the same rate and batch
    half    a stage more behind lm: half of the micro-batches a prefix LM, 1,400 steps of 16 texts, a new optimizer
    half-lm that LM-adapted for a tenth of its steps, with a warm-up and a rate that falls to zero

Beside them stand two models that nothing trained, `random` and `tables` (random weights behind the two tables), so
that `softprompt experiment figure-3c --models runs/family/SIZE` has all its points. A run that is done gets a row in
results/t5_family.jsonl, with its curve.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from softprompt.answering.rows import surroundings
from softprompt.base.watch import Watch
from softprompt.models.loading import choose_dtype, keep_freed_memory, load
from softprompt.models.shapes import SIZES
from softprompt.models.tokenizer import Tokenizer, load_tokenizer
from softprompt.pretraining.corpus import TokenStream, corpus_files, read_documents, tokenized
from softprompt.pretraining.loop import CURVE, Machine, pretrain, save_model
from softprompt.pretraining.new_t5 import new_model, read_model
from softprompt.pretraining.settings import PretrainConfig
from softprompt.pretraining.vocabulary import train_vocabulary

DEVICE = torch.device("cpu")
VOCABULARY = 8_192
TABLES_FROM = "smollm2-135m"
# Chosen on micro, at 3.3 million tokens (docs/log.md, 2026-11-23): 8 texts a step, AdamW, tables from a wider model.
SPAN_STEPS = 5_000  # 12.6 million tokens, the same for each size: what mini reads in 75 minutes on one core
BATCH_SIZE = 8
RATES = {"micro": 2e-2, "tiny": 1.5e-2, "mini": 1e-2}  # of 0.01, 0.02 and 0.04 on micro (docs/log.md, 2026-11-25)
RUNS = ("span", "lm", "span+")
STAGES = ("half", "half-lm")
BEGINS_WITH = {"lm": "span", "span+": "span", "half": "lm", "half-lm": "half"}
STAGE_STEPS = 1_400  # what mini reads in about two hours of one core in float32, beside other work
ADAPT_RATE = 5e-3  # constant, so that 1 %, 5 % and 10 % of the steps compare


def config_of(size: str, run: str) -> PretrainConfig:
    """The settings of one run of one size."""
    if run == "span":
        return PretrainConfig(
            steps=SPAN_STEPS,
            batch_size=BATCH_SIZE,
            learning_rate=RATES[size],
            schedule="cosine",
            warmup_steps=SPAN_STEPS // 20,
            evaluate_every=SPAN_STEPS // 36,
        )
    if run in STAGES:
        is_lm = run == "half-lm"
        steps = STAGE_STEPS // 10 if is_lm else STAGE_STEPS
        return PretrainConfig(
            objective="prefix-lm" if is_lm else "span",
            prefix_share=0.0 if is_lm else 0.5,
            steps=steps,
            batch_size=16,
            micro_batch_size=8,
            learning_rate=ADAPT_RATE if is_lm else RATES[size],
            schedule="cosine",
            warmup_steps=steps // 7 if is_lm else steps // 14,
            evaluate_every=steps // 2 if is_lm else steps // 7,
            num_heldout=128,
        )
    more = SPAN_STEPS // 10
    return PretrainConfig(
        objective="prefix-lm" if run == "lm" else "span",
        steps=more,
        batch_size=BATCH_SIZE,
        learning_rate=ADAPT_RATE,
        schedule="constant",
        warmup_steps=max(more // 50, 1),
        evaluate_every=max(more // 10, 1),
        keep=(SPAN_STEPS // 100, SPAN_STEPS // 20, more) if run == "lm" else (),
    )


def vocabulary_of(corpus: list[str], out: Path) -> Tokenizer:
    """The family's vocabulary, learned once."""
    folder = out / "vocabulary"
    if not (folder / "tokenizer.json").exists():
        Tokenizer(train_vocabulary(read_documents(corpus_files(corpus)), size=VOCABULARY)).save(folder)
    return load_tokenizer(folder)


def write_untrained(size: str, tokenizer: Tokenizer, out: Path) -> None:
    """The two controls that take no training."""
    for name in ("random", "tables"):
        if not (out / size / name / "config.json").is_file():
            wider = load(TABLES_FROM, dtype="float32") if name == "tables" else None
            save_model(new_model(SIZES[size], tokenizer, seed=1, tables_from=wider), tokenizer, out / size / name)


def train(size: str, run: str, tokenizer: Tokenizer, text: tuple[TokenStream, TokenStream], options: Any) -> None:
    """One run, or what is left of it, and its row."""
    folder = options.out / size / run
    config = config_of(size, run)
    if not (folder / "config.json").exists():
        if run == "span":
            wider = load(TABLES_FROM, dtype="float32")
            model = new_model(SIZES[size], tokenizer, seed=config.seed, tables_from=wider)
            del wider
        else:
            model, _ = read_model(options.out / size / BEGINS_WITH[run])
        with tqdm(total=config.steps, desc=f"{size} {run}", unit="step") as bar:
            watch = Watch(
                step=lambda step, loss, tokens: bar.update(step - bar.n),
                log=lambda entry: bar.set_postfix_str(f"loss {entry['loss']:.3f}, held-out {entry['heldout']:.3f}"),
                message=tqdm.write,
            )
            machine = Machine(compile=options.compile, bfloat16=choose_dtype("auto", DEVICE) is torch.bfloat16)
            pretrain(
                model, tokenizer, *text, config, folder=folder, name=size, resume=True, machine=machine, watch=watch
            )
    write_row(size, run, config, folder, options)


def write_row(size: str, run: str, config: PretrainConfig, folder: Path, options: Any) -> None:
    """The row of a finished run, unless it stands there."""
    curve = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
    if any((row["size"], row["run"], row["curve"]) == (size, run, curve) for row in read(options.rows)):
        return
    row = {
        "experiment": "t5_family",
        "size": size,
        "run": run,
        "shape": asdict(SIZES[size]),
        "parameters": SIZES[size].num_parameters,
        "tables_from": TABLES_FROM,
        "vocabulary": VOCABULARY,
        "config": json_of(config),
        "tokens": curve[-1]["tokens"],
        "heldout": curve[-1]["heldout"],
        "seconds": curve[-1]["seconds"],
        "curve": curve,
        "command": f"python benchmarks/family.py --corpus DIR --heldout DIR --sizes {size} --runs {run}",
        **surroundings(DEVICE, choose_dtype("auto", DEVICE)),
    }
    with options.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")


def json_of(config: PretrainConfig) -> dict[str, Any]:
    """The settings as a row keeps them."""
    return json.loads(json.dumps(asdict(config)))


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def current(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each run in today's settings, in the order of sizes and runs; others stay in the file."""
    later = json_of(PretrainConfig(steps=SPAN_STEPS))  # settings that came after a row have their defaults in it
    found = {
        (row["size"], row["run"]): row
        for row in rows
        if later | row["config"] == json_of(config_of(row["size"], row["run"]))
    }
    order = [(size, run) for size in RATES for run in (*RUNS, *STAGES)]
    return [found[key] for key in order if key in found]


def heldout_by_tokens(rows: list[dict[str, Any]]) -> str:
    """Span corruption's held-out loss after a tenth, a quarter, half and all of the tokens, a line a size."""
    spans = [row for row in current(rows) if row["run"] == "span"]
    shares = (0.1, 0.25, 0.5, 1.0)
    heads = [f"{share * max(row['tokens'] for row in spans) / 1e6:.1f} M tokens" for share in shares]
    lines = [f"| size | {' | '.join(heads)} |", f"|---|{'--:|' * len(shares)}"]
    for row in spans:
        reached = [next(at for at in row["curve"] if at["tokens"] >= share * row["tokens"]) for share in shares]
        losses = " | ".join(f"{at['heldout']:.3f}" for at in reached)
        lines.append(f"| {row['size']} | {losses} |")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """What the budget bought, a line a run."""
    lines = [
        "| size | weights besides the tables | run | steps | million tokens | hours | threads | tokens/s | held-out |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in current(rows):
        lines.append(
            f"| {row['size']} | {row['parameters'] / 1e6:.2f} M | {row['run']} | {row['config']['steps']:,} "
            f"| {row['tokens'] / 1e6:.1f} | {row['seconds'] / 3600:.2f} | {row['threads']} "
            f"| {row['tokens'] / row['seconds']:,.0f} | {row['heldout']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+", required=True)
    parser.add_argument("--heldout", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/family"))
    parser.add_argument("--sizes", nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=(*RUNS, *STAGES))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rows", type=Path, default=Path("results/t5_family.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    options = parser.parse_args()
    if not options.table:
        keep_freed_memory()
        tokenizer = vocabulary_of(options.corpus, options.out)
        with tqdm(desc="tokenise", unit="B", unit_scale=True) as bar:
            text = tuple(
                tokenized(corpus_files(places), tokenizer, progress=bar.update)
                for places in (options.corpus, options.heldout)
            )
        for size in options.sizes:
            write_untrained(size, tokenizer, options.out)
            for run in options.runs:
                train(size, run, tokenizer, (text[0], text[1]), options)
    print(table(read(options.rows)))


if __name__ == "__main__":
    main()
