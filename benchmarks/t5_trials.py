"""Which short pre-training makes a small frozen T5 hear its prompt: recipes at equal cost, judged by prompts.

    python benchmarks/t5_trials.py --corpus DIR --heldout DIR --news DIR --size micro --minutes 2.5 --trials t5 prefix
    python benchmarks/t5_trials.py --corpus DIR --heldout DIR --news DIR --size mini --minutes 0 --trials bundled
    python benchmarks/t5_trials.py --table                                             # from the rows, no run

Every recipe trains a new model for the same processor time of one thread; its number of steps is measured before it
starts and kept beside it. Then a linear probe tells what is in it without a prompt, and prompts of 20 tokens are
tuned on the frozen model with AG News (Adafactor 0.3, 32 rows a step, inputs of 48 tokens, topics called by words of
a piece), their seeds together, and scored by rank on 1,000 rows of the official test set, which choose nothing. DIR
of --news holds train_10k.tsv and test.tsv. Runs go on where they were left. Rows: results/t5_trials.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from softprompt.answering.rows import surroundings
from softprompt.base.watch import Watch
from softprompt.models import NO_PROMPT, FrozenLM
from softprompt.models.loading import BUNDLED_FOLDER, keep_freed_memory, load
from softprompt.models.shapes import SIZES, Shape
from softprompt.models.text import Row, TextFormat, collate, default_format, encode_examples, encode_target
from softprompt.models.tokenizer import Tokenizer, load_tokenizer
from softprompt.pretraining.corpus import TokenStream, corpus_files, tokenized
from softprompt.pretraining.loop import Machine, PretrainConfig, Pretraining, pretrain, save_model
from softprompt.pretraining.new_t5 import new_model, read_model
from softprompt.pretraining.objectives import prefix_lm
from softprompt.prompts.initial import initial_prompt
from softprompt.tasks import Example, Task, file_task
from softprompt.training.loop import Member, TrainConfig, fit
from softprompt.training.optimizers import SCHEDULES, Adafactor

CPU = torch.device("cpu")
VOCABULARY = BUNDLED_FOLDER / "t5-mini"  # the family's own
TABLES_FROM = "smollm2-135m"
RATES = {"micro": 2e-2, "tiny": 1.5e-2, "mini": 1e-2}  # the family's (benchmarks/family.py)
ADAPT_RATE = 5e-3

LABELS = ("World", "Sports", "Business", "Sci/Tech")  # 1, 3, 1 and 6 pieces of the family's vocabulary
NAMES = ("world", "sport", "business", "science")  # the same in a piece each
WORDS = ("war", "game", "market", "computer")  # words that such texts hold: what prompts are to write, unless told
NUM_DEV = 1_000
NUM_PROBED = 2_000  # training rows of a linear probe, at most
PROMPT = TrainConfig(
    steps=300,
    batch_size=32,
    optimizer=Adafactor(learning_rate=0.3),
    evaluate_every=100,
    num_selection=NUM_DEV,
    scoring="rank",
)


@dataclass(frozen=True)
class Stage:
    """A part of a recipe's time, and what differs there from the family's settings."""

    share: float
    changes: dict[str, Any]


SPAN: dict[str, Any] = {"objective": "span"}
LM: dict[str, Any] = {"objective": "prefix-lm"}
SHORT = {**LM, "input_length": 64, "batch_size": 32, "micro_batch_size": 32}
ADAPTED = {"schedule": "constant", "warmup_steps": 10}

TRIALS: dict[str, tuple[Stage, ...]] = {
    "tables": (),  # random weights behind the two tables: what prompts make of no training
    "t5": (Stage(0.9, SPAN), Stage(0.1, LM | ADAPTED)),
    "adapt-30": (Stage(0.7, SPAN), Stage(0.3, LM | ADAPTED)),
    "prefix": (Stage(1.0, LM),),
    "half-prefix": (Stage(1.0, {**SPAN, "prefix_share": 0.5}),),
    "long-spans": (Stage(0.9, {**SPAN, "noise_density": 0.4, "mean_span_length": 8.0}), Stage(0.1, LM | ADAPTED)),
    # Every text of a prefix LM teaches one first token, which is where an answer stands: so more and shorter texts.
    "short-prefix": (Stage(1.0, SHORT),),
    "short-targets": (Stage(1.0, {**SHORT, "target_length": 16}),),
    "t5-short": (Stage(0.7, SPAN), Stage(0.3, SHORT | ADAPTED)),
    # Of size mini alone: the model that ships, and what it becomes with more of one thing.
    "bundled": (),
    "bundled-prefix": (Stage(1.0, LM | ADAPTED),),
    "bundled-short-targets": (Stage(1.0, SHORT | ADAPTED | {"target_length": 16}),),
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", nargs="+")
    parser.add_argument("--heldout", nargs="+")
    parser.add_argument("--news", type=Path, help="folder of AG News: train_10k.tsv and test.tsv")
    parser.add_argument("--model", type=Path, default=VOCABULARY, help="what the trials named bundled begin with")
    parser.add_argument("--size", default="micro", choices=RATES)
    parser.add_argument("--shape", default="", help="changes of the shape, as in num_layers=4,num_decoder_layers=1")
    parser.add_argument("--minutes", type=float, default=2.5, help="of pre-training, for each recipe")
    parser.add_argument("--rate", type=float, help="learning rate of all stages but adaptation (default: the family's)")
    parser.add_argument("--words", nargs=4, default=list(WORDS), metavar="WORD", help="what topics are called")
    parser.add_argument("--steps", type=int, default=PROMPT.steps, help="of prompt tuning")
    parser.add_argument("--schedule", default="constant", choices=SCHEDULES, help="of the prompts' rate")
    parser.add_argument("--seeds", type=int, default=2, help="prompts on each model")
    parser.add_argument(
        "--trials", nargs="+", default=[name for name in TRIALS if not name.startswith("bundled")], choices=TRIALS
    )
    parser.add_argument("--out", type=Path, default=Path("runs/t5_trials"))
    parser.add_argument("--rows", type=Path, default=Path("results/t5_trials.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the rows")
    options = parser.parse_args()
    if not options.table:
        keep_freed_memory()
        tokenizer = load_tokenizer(VOCABULARY)
        text = tuple(tokenized(corpus_files(places), tokenizer) for places in (options.corpus, options.heldout))
        for name in options.trials:
            run(name, tokenizer, (text[0], text[1]), options)
    print(table(read(options.rows)))


def run(name: str, tokenizer: Tokenizer, text: tuple[TokenStream, TokenStream], options: Any) -> None:
    """One recipe, or what is left of it, and its row."""
    changed = {key: int(value) for key, value in (part.split("=") for part in options.shape.split(",") if part)}
    shape = replace(SIZES[options.size], **changed)
    rate = options.rate or RATES[options.size]
    key = {
        "trial": name,
        "size": options.size,
        "shape": asdict(shape),
        "minutes": options.minutes,
        "rate": rate,
        "words": options.words,
        "seeds": options.seeds,
        "model": options.model.name,
    }
    tuned = replace(PROMPT, steps=options.steps, optimizer=replace(PROMPT.optimizer, schedule=options.schedule))
    key["prompt"] = json.loads(json.dumps(asdict(tuned)))
    of_earlier = key | {"model": VOCABULARY.name}  # what rows had before there was such a setting
    for row in read(options.rows):
        known = of_earlier | row
        if all(known[part] == value for part, value in key.items()):
            return
    folder = options.out / "-".join([options.size, name, f"{options.minutes:g}", f"{rate:g}", options.shape]).strip("-")
    if options.model != VOCABULARY:
        folder = folder.with_name(f"{folder.name}-{options.model.name}")
    model = read_model(options.model)[0] if name.startswith("bundled") else start(shape, tokenizer)
    configs, curves = [], []
    for number, stage in enumerate(TRIALS[name]):
        at = folder / str(number)
        settings = {"batch_size": 8, "warmup_steps": 100, "learning_rate": rate} | stage.changes
        if settings.get("schedule") == "constant":
            settings["learning_rate"] = ADAPT_RATE
        config = config_in(at, settings, 60 * options.minutes * stage.share, model, tokenizer, text)
        if (at / "config.json").exists():  # as the next stage has it after a kill: rounded to bfloat16
            model, _ = read_model(at)
        else:
            told = Watch(log=lambda of: print(name, of["step"], f"{of['loss']:.3f} {of['heldout']:.3f}", flush=True))
            pretrain(
                model, tokenizer, *text, config, folder=at, name=name, resume=True, watch=told, clock=time.process_time
            )
        configs.append(asdict(config))
        curves.append([json.loads(line) for line in (at / "curve.jsonl").read_text().splitlines()])
    last = folder / str(max(len(configs) - 1, 0))
    if not configs:
        save_model(model, tokenizer, last)
    losses = heldout_losses(model, tokenizer, text)
    lm = load(str(last), dtype="float32")
    news = News.of(lm, options.news, options.words)
    knows = heard(lm, news)
    print(name, losses, knows, flush=True)
    row = {
        "experiment": "t5_trials",
        **key,
        "parameters": shape.num_parameters,
        "configs": json.loads(json.dumps(configs)),
        "curves": curves,
        "tokens": sum(curve[-1]["tokens"] for curve in curves),
        "seconds": sum(curve[-1]["seconds"] for curve in curves),
        "heldout": losses,
        "without_prompt": knows,
        **prompts(lm, news, options.seeds, tuned),
        "command": f"python benchmarks/t5_trials.py --corpus DIR --heldout DIR --news DIR --size {options.size} "
        f"--minutes {options.minutes:g} --trials {name}"
        + (f" --rate {options.rate:g}" if options.rate else "")
        + (f" --shape {options.shape}" if options.shape else "")
        + (f" --words {' '.join(options.words)}" if options.words != list(WORDS) else "")
        + (f" --schedule {options.schedule}" if options.schedule != "constant" else "")
        + f" --steps {options.steps} --seeds {options.seeds}",
        **surroundings(CPU, torch.float32),
    }
    with options.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(table([row]), flush=True)


@lru_cache(maxsize=1)
def _start(shape: Shape, tokenizer: Tokenizer) -> Any:
    return new_model(shape, tokenizer, seed=0, tables_from=load(TABLES_FROM, dtype="float32"))


def start(shape: Shape, tokenizer: Tokenizer) -> Any:
    """The model that every recipe begins with: the same weights for a shape."""
    return deepcopy(_start(shape, tokenizer))


def config_in(
    folder: Path,
    settings: dict[str, Any],
    seconds: float,
    model: Any,
    tokenizer: Tokenizer,
    text: tuple[TokenStream, TokenStream],
) -> PretrainConfig:
    """The stage's settings with as many steps as fit its time: measured at the first call, then read again."""
    path = folder / "steps.json"
    if not path.exists():
        tried = PretrainConfig(**settings | {"schedule": "constant", "steps": 24})
        trial = Pretraining(deepcopy(model), tokenizer, *text, tried, folder, "speed", Machine(), Watch())
        for _ in range(4):  # the first are slower
            trial.train_step()
        began = time.process_time()
        for _ in range(tried.steps - 4):
            trial.train_step()
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(str(max(round(seconds * (tried.steps - 4) / (time.process_time() - began)), 20)))
    steps = int(path.read_text())
    return PretrainConfig(**settings, steps=steps, evaluate_every=max(steps // 4, 1), num_heldout=64)


@torch.no_grad()
def heldout_losses(model: Any, tokenizer: Tokenizer, text: tuple[TokenStream, TokenStream]) -> dict[str, float]:
    """Nats a held-out token: of spans, of a prefix LM, and of what follows 48 tokens, read or those of another text."""
    losses = {}
    for name, changes in (("span", SPAN), ("prefix-lm", LM)):
        config = PretrainConfig(**changes, steps=1, warmup_steps=0, num_heldout=128)
        scored = Pretraining(model, tokenizer, *text, config, Path(), name, Machine(), Watch())
        scored.evaluate()
        losses[name] = scored.state.curve[-1]["heldout"]
    texts = text[1].texts(range(512), 64, 0)
    inputs, targets = prefix_lm(texts, 48, tokenizer.eos_id)
    for name, given in (("own", inputs), ("other", np.roll(inputs, 1, 0))):
        nll = scored.losses(given, targets)[0].view(len(texts), -1)
        losses |= {f"first, {name}": float(nll[:, 0].mean()), f"rest, {name}": float(nll[:, 1:-1].mean())}
    return {name: round(value, 4) for name, value in losses.items()}


@dataclass(frozen=True)
class News:
    """AG News as a frozen model reads it."""

    words: Sequence[str]
    task: Task
    form: TextFormat
    train: tuple[list[Example], list[Row]]
    dev: tuple[list[Example], list[Row]]

    @classmethod
    def of(cls, lm: FrozenLM, folder: Path, words: Sequence[str]) -> News:
        """The training rows, and every so many of the test rows."""
        task = file_task(inputs="{text}", targets="{label}", labels=words, name="ag_news")
        form = default_format(lm, max_input_length=48, max_target_length=8)
        train, test = (examples(folder / name, words) for name in ("train_10k.tsv", "test.tsv"))
        dev = [test[i * len(test) // NUM_DEV] for i in range(NUM_DEV)]
        encoded = [(part, encode_examples(part, form, lm.tokenizer)) for part in (train, dev)]
        return cls(words, task, form, *encoded)


@torch.no_grad()
def heard(lm: FrozenLM, news: News) -> dict[str, float]:
    """What is known of a topic without a prompt, as shares of dev that are right.

    A linear probe (ridge) on mean embeddings, on mean encoder states, and on the decoder's first state, where an
    answer begins; and the scores of four words at that place, each less its mean over dev: the topics' names, the words
    that prompts are to write, and the pieces that tell topics apart best on training rows.
    """
    parts = {name: _states(lm, rows) for name, (_, rows) in (("train", news.train), ("dev", news.dev))}
    wanted = {
        name: torch.tensor([news.words.index(example.targets) for example in part[:NUM_PROBED]])
        for name, (part, _) in (("train", news.train), ("dev", news.dev))
    }
    found = {}
    one_hot = F.one_hot(wanted["train"], len(LABELS)).double()
    for place in ("embeddings", "encoder", "decoder"):
        train, dev = parts["train"][place].double(), parts["dev"][place].double()
        mean, deviation = train.mean(0), train.std(0) + 1e-9
        train, dev = ((part - mean) / deviation for part in (train, dev))
        square = train.T @ train + 0.01 * len(train) * torch.eye(train.shape[1], dtype=torch.float64)
        answers = (dev @ torch.linalg.solve(square, train.T @ (one_hot - one_hot.mean(0)))).argmax(1)
        found[place] = float((answers == wanted["dev"]).double().mean())
    train, dev = ((parts[name]["decoder"] @ lm.model.lm_head.weight.T).log_softmax(-1).double() for name in parts)
    of_topic = one_hot.T @ train / one_hot.sum(0)[:, None]
    others = (1 - one_hot).T @ train / (1 - one_hot).sum(0)[:, None]
    for name, pieces in (
        ("names", [encode_target(word, news.form, lm.tokenizer)[0] for word in NAMES]),
        ("words", [encode_target(word, news.form, lm.tokenizer)[0] for word in news.words]),
        ("pieces", ((of_topic - others) / train.std(0)).argmax(1)),
    ):
        scores = (dev - dev.mean(0))[:, pieces]
        found[name] = float((scores.argmax(1) == wanted["dev"]).double().mean())
    return {name: round(value, 4) for name, value in found.items()}


def _states(lm: FrozenLM, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Means of embeddings and encoder states, and the decoder's first state, of the first rows."""
    found: dict[str, list[Tensor]] = {"embeddings": [], "encoder": [], "decoder": []}
    for at in range(0, min(len(rows), NUM_PROBED), 50):
        batch = collate(rows[at : at + 50], [NO_PROMPT] * 50, lm.tokenizer.pad_id)
        mask = batch.mask[..., None].to(lm.device, torch.float32)
        encoded = lm.model.encoder(input_ids=batch.ids, attention_mask=batch.mask).last_hidden_state
        start = torch.full((len(batch.ids), 1), lm.model.config.decoder_start_token_id)
        hidden = lm.model.decoder(
            input_ids=start, encoder_hidden_states=encoded, encoder_attention_mask=batch.mask, use_cache=False
        ).last_hidden_state
        found["embeddings"].append((lm.embed(batch.ids) * mask).sum(1) / mask.sum(1))
        found["encoder"].append((encoded * mask).sum(1) / mask.sum(1))
        found["decoder"].append(hidden[:, 0])
    return {name: torch.cat(parts) for name, parts in found.items()}


def prompts(lm: FrozenLM, news: News, seeds: int, config: TrainConfig) -> dict[str, Any]:
    """What prompts make of it: each one's losses and scores by step, and what all took."""
    members = []
    for seed in range(seeds):
        values, _ = initial_prompt(
            "class-labels",
            embeddings=lm.embeddings,
            tokenizer=lm.tokenizer,
            length=20,
            labels=list(news.words),
            generator=torch.Generator().manual_seed(seed),
            low=-0.5,
            lm=lm,
        )
        member = Member(
            name=f"seed {seed}",
            task=news.task,
            form=news.form,
            config=config,
            seed=seed,
            values=values,
            rows=news.train[1],
            selection=news.dev[0],
            selection_rows=news.dev[1],
        )
        members.append(member)
    told = lambda step, i, loss, score: print(f"  prompt {i}, {step}: {loss:.3f} {score:.3f}", flush=True)  # noqa: E731
    if not members:
        return {"prompts": {}}
    fitted = fit(lm, members, clock=time.process_time, watch=Watch(score=told))
    found = {
        member.name: [{key: round(entry[key], 4) for key in ("step", "loss", "score")} for entry in result.history]
        for member, result in zip(members, fitted, strict=True)
    }
    seconds = fitted[0].history[-1]["seconds"]
    return {"prompts": found, "prompt_seconds": seconds}


def examples(path: Path, words: Sequence[str]) -> list[Example]:
    """The rows of an AG News file: a text, a tab, a label, which is called by a word here."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        text, _, label = line.rpartition("\t")
        text = text.strip('"').replace('""', '"').replace("\\", " ").strip()
        if text and label in LABELS:
            wanted = words[LABELS.index(label)]
            found.append(Example(inputs=text, targets=wanted, references=(wanted,), id=str(number)))
    return found


def read(rows: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line a run; prompts' accuracies are means of the seeds."""
    lines = [
        "| size | recipe | minutes | million tokens | span | prefix LM | first token, own / other inputs "
        "| probe: encoder, decoder; names, words, pieces | prompts by step |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        losses, knows = row["heldout"], row["without_prompt"]
        by_step = [fmean(at["score"] for at in seeds) for seeds in zip(*row["prompts"].values(), strict=True)]
        cells = [
            row["size"],
            row["trial"],
            f"{row['seconds'] / 60:.1f}",
            f"{row['tokens'] / 1e6:.1f}",
            f"{losses['span']:.3f}",
            f"{losses['prefix-lm']:.3f}",
            f"{losses['first, own']:.3f} / {losses['first, other']:.3f}",
            ", ".join(f"{100 * knows[place]:.1f}" for place in ("encoder", "decoder", "names", "words", "pieces")),
            ", ".join(f"{100 * score:.1f}" for score in by_step),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
