"""What a prompt has to beat, on the same rows: the majority class, words, frozen states and plain wordings.

    python benchmarks/baselines.py --task superglue/rte superglue/cb --data DIR

Each method is fitted on the rows that a run trains on, chooses on the rows that a run chooses on, and answers the
official dev set once (where there is none, what `softprompt compare` takes for one). Every task and method is one row
of results/baselines.jsonl; a row that stands there with the same settings is not made again, so an interrupted command
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from softprompt.answering.engine import MAX_TOKENS, Prediction
from softprompt.answering.evaluation import Evaluation, best, evaluate, judge, right_answers
from softprompt.answering.rows import Result, append_rows, model_of_row, read_rows, surroundings
from softprompt.base.files import write_whole
from softprompt.base.watch import Progress, Watch
from softprompt.models import FrozenLM
from softprompt.models.loading import SMOLLM2, load
from softprompt.models.text import TextFormat, collate, encode_examples, encode_target, micro_batches
from softprompt.study.comparison import with_dev
from softprompt.study.prompt_design import WORDINGS, Wording, worded
from softprompt.tasks import Data, Example, Task, get_task, has_split, read_split, without_overlap
from softprompt.training.plan import TaskData, prepare
from softprompt.training.settings import RunConfig

METHODS = ("majority", "tfidf", "probe", "zero-shot")
POLARITY = "classification/sentence_polarity"
POLARITY_FOLDER = Path("runs/sentence_polarity")

# All ours. Inverse penalties of the logistic regression: words want a weak penalty, a few hundred standardised
# features a strong one.
TFIDF_C = (0.1, 1.0, 10.0, 100.0)
PROBE_C = (0.001, 0.01, 0.1, 1.0)
NGRAMS = (1, 2)
MAX_ITERATIONS = 2_000
NUM_SELECTION = 200
SUBSET_SEED = 0


@dataclass(frozen=True)
class Answered:
    """What a method says about the dev set, and how it got there."""

    evaluation: Evaluation
    selection: str
    """What chose its setting: held-out, cross-validation, or none."""
    seconds: float
    """Seconds of fitting and choosing, the dev set not included."""
    notes: dict[str, Any] = field(default_factory=dict)


def majority(data: TaskData) -> Answered:
    """The commonest label of the training rows for every example; of equals, the first of the task's labels."""
    counts = Counter(example.targets for example in data.train)
    assert data.task.labels
    label = max(data.task.labels, key=lambda name: counts[name])
    share = counts[label] / len(data.train)
    answers = [Prediction(label, math.log(share))] * len(data.dev)
    return Answered(judge(data.task, data.dev, answers), "none", 0.0, {"label": label, "share_of_train": share})


def tfidf(data: TaskData) -> Answered:
    """Logistic regression on the TF-IDF of words and pairs of words of the cast inputs."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    def texts(examples: Sequence[Example]) -> list[str]:
        return [example.inputs for example in examples]

    return classify(data, texts, TfidfVectorizer(ngram_range=NGRAMS, sublinear_tf=True), TFIDF_C)


def classify(
    data: TaskData, features: Callable[[Sequence[Example]], Any], first: Any, penalties: Sequence[float]
) -> Answered:
    """Logistic regression on `features`, through the scikit-learn transformer `first`.

    The inverse penalty C is the one with the best mean score on the selection rows, or over the folds.
    """
    started = time.monotonic()
    parts = data.folds or [(data.train, data.selection)]

    def fitted(c: float, examples: Sequence[Example]) -> Any:
        return fit_logistic(features(examples), [example.targets for example in examples], first, c)

    def score(c: float) -> float:
        answers = [(held, most_likely(fitted(c, kept), features(held))) for kept, held in parts]
        return fmean(judge(data.task, held, predictions).headline for held, predictions in answers)

    scores = {c: score(c) for c in penalties}
    best = max(penalties, key=scores.__getitem__)
    model = fitted(best, data.train)
    seconds = time.monotonic() - started
    evaluation = judge(data.task, data.dev, most_likely(model, features(data.dev)))
    notes = {"C": best, "selection_scores": {f"{c:g}": value for c, value in scores.items()}}
    return Answered(evaluation, data.selected_on, seconds, notes)


def fit_logistic(features: Any, labels: Sequence[str], first: Any, c: float) -> Any:
    """A fitted scikit-learn pipeline: a fresh copy of `first`, then logistic regression with inverse penalty `c`."""
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(clone(first), LogisticRegression(C=c, max_iter=MAX_ITERATIONS)).fit(features, list(labels))


def most_likely(model: Any, features: Any) -> list[Prediction]:
    """The likeliest label of each row, with the log-probabilities of all."""
    labels = [str(label) for label in model.classes_]
    return [best(dict(zip(labels, row, strict=True))) for row in model.predict_log_proba(features).tolist()]


def probe(lm: FrozenLM, data: TaskData, *, max_train: int, watch: Watch) -> Answered:
    """Logistic regression on the frozen model's mean state of the cast input, without the separator.

    Of more than `max_train` training rows a fixed random part of that size is used; selection rows likewise.
    """
    from sklearn.preprocessing import StandardScaler

    part = replace(data, train=_subset(data.train, max_train), selection=_subset(data.selection, max_train))
    form = replace(data.form, separator="")
    known: dict[str, np.ndarray] = {}

    def states(examples: Sequence[Example]) -> np.ndarray:
        fresh = list({example.inputs: example for example in examples if example.inputs not in known}.values())
        if fresh:
            progress = watch.phase(f"states {data.task.name}", len(fresh))
            known.update(zip((e.inputs for e in fresh), mean_states(lm, fresh, form, progress), strict=True))
        return np.stack([known[example.inputs] for example in examples])

    answered = classify(part, states, StandardScaler(), PROBE_C)
    counts = {"probe_train": len(part.train), "probe_train_of": len(data.train)}
    return replace(answered, notes={**answered.notes, **counts})


@torch.no_grad()
def mean_states(
    lm: FrozenLM, examples: Sequence[Example], form: TextFormat, progress: Progress | None = None
) -> np.ndarray:
    """The mean over tokens of each input's last hidden states (the encoder's, if there is one): float32, [b d]."""
    rows = encode_examples(examples, form, lm.tokenizer, with_targets=False)
    states = np.zeros((len(rows), lm.width), dtype=np.float32)
    for places in micro_batches([len(row.ids) for row in rows], MAX_TOKENS[lm.device.type]):
        batch = collate([rows[i] for i in places], [-1] * len(places), lm.tokenizer.pad_id)
        hidden = lm.last_states(lm.embed(batch.ids), batch.mask)
        weights = batch.mask[..., None].to(hidden)
        states[places] = ((hidden * weights).sum(1) / weights.sum(1)).float().cpu().numpy()
        if progress:
            progress(len(places))
    return states


def zero_shot(lm: FrozenLM, data: TaskData, *, num_selection: int = NUM_SELECTION, watch: Watch) -> Answered:
    """The bare model with the wording that does best on at most `num_selection` selection rows.

    Label scores are sums over tokens; what the mean per token would give is noted beside. Where folds choose, any
    training rows may: none of them trains anything here.
    """
    started = time.monotonic()
    rows = (data.selection or _subset(data.train, num_selection))[:num_selection]
    tried: dict[str, dict[str, Any]] = {}
    for wording in WORDINGS:
        if wording.chat and not lm.tokenizer.has_chat_template:
            continue
        evaluation, by_mean = ask(lm, data, rows, wording, watch)
        tried[wording.name] = {"sum": evaluation.headline, "mean_per_token": by_mean.headline, "text": str(wording)}
    chosen = max(tried, key=lambda name: tried[name]["sum"])
    seconds = time.monotonic() - started
    wording = next(wording for wording in WORDINGS if wording.name == chosen)
    evaluation, by_mean = ask(lm, data, data.dev, wording, watch)
    notes = {"chosen": chosen, "tried": tried, "num_selection": len(rows), "mean_per_token": by_mean.metrics}
    return Answered(evaluation, "held-out", seconds, notes)


def ask(
    lm: FrozenLM, data: TaskData, examples: Sequence[Example], wording: Wording, watch: Watch
) -> tuple[Evaluation, Evaluation]:
    """The bare model's answers in one wording: by the sum over a label's tokens, and by the mean."""
    assert data.task.labels
    asked, form = worded(examples, data.form, wording, data.task.labels)
    evaluation = evaluate(lm, [], data.task, asked, form, scoring="rank", watch=watch)[0]
    lengths = {label: len(encode_target(label, form, lm.tokenizer)) for label in data.task.labels}
    return evaluation, judge(data.task, examples, by_mean_per_token(evaluation.predictions, lengths))


def by_mean_per_token(predictions: Sequence[Prediction], lengths: dict[str, int]) -> list[Prediction]:
    """The answers by mean log-probability of a label's tokens (its end of sequence included), not their sum."""
    means = [{text: value / lengths[text] for text, value in (p.scores or {}).items()} for p in predictions]
    return [best(scores) for scores in means]


def _subset(examples: Sequence[Example], size: int) -> list[Example]:
    """At most `size` of the examples, the same ones every time, in a random order."""
    order = np.random.default_rng(SUBSET_SEED).permutation(len(examples))[:size]
    return [examples[i] for i in order]


def data_of(task: Task, data: Path, folder: Path = POLARITY_FOLDER) -> tuple[Data, dict[str, Any]]:
    """Where a task is read from, and what to note: sentence_polarity from files without SST-2's sentences."""
    if task.name != POLARITY:
        return data, {}
    return folder, {"overlap_with_sst2": write_polarity_without_sst2(data, folder)}


def write_polarity_without_sst2(data: Path, folder: Path) -> dict[str, int]:
    """Write sentence_polarity's two files without the sentences that stand in SST-2, and count what was dropped."""
    polarity, sst2 = get_task(POLARITY), get_task("glue/sst2")
    others = [example for split in ("train", "dev", "test") for example in read_split(sst2, split, data).examples]
    sentences: dict[str, list[str]] = {"negative": [], "positive": []}
    dropped = {}
    for split in ("train", "dev"):
        kept, dropped[split] = without_overlap(read_split(polarity, split, data).examples, others)
        for example in kept:
            assert example.source
            sentences[example.targets].append(example.source)
    for label, suffix in (("negative", "neg"), ("positive", "pos")):
        text = "".join(f"{sentence}\n" for sentence in sentences[label])
        write_whole(folder / f"rt-polarity.{suffix}", text.encode("latin-1"))
    return dropped


def limited(data: TaskData, limit: int) -> TaskData:
    """A fixed random part of every set, `limit` rows at most, to try a command quickly."""
    parts = [(_subset(kept, limit), _subset(held, limit)) for kept, held in data.folds]
    names = ("train", "selection", "dev")
    return replace(data, folds=parts, **{name: _subset(getattr(data, name), limit) for name in names})


def settings_of(method: str, *, max_train: int, max_dev: int | None, limit: int | None) -> dict[str, Any]:
    """What decides a row besides task and model."""
    own: dict[str, dict[str, Any]] = {
        "majority": {},
        "tfidf": {"ngrams": list(NGRAMS), "C": list(TFIDF_C)},
        "probe": {"max_train": max_train, "C": list(PROBE_C)},
        "zero-shot": {"wordings": [str(wording) for wording in WORDINGS], "max_selection": NUM_SELECTION},
    }
    bound = {} if max_dev is None else {"max_dev": max_dev}
    return {"method": method, **own[method], **bound, "limit": limit}


def answer(method: str, lm: FrozenLM, data: TaskData, max_train: int, watch: Watch) -> Answered:
    """What one method says about the dev set."""
    if method == "majority":
        return majority(data)
    if method == "tfidf":
        return tfidf(data)
    if method == "probe":
        return probe(lm, data, max_train=max_train, watch=watch)
    return zero_shot(lm, data, watch=watch)


def row_of(answered: Answered, lm: FrozenLM, data: TaskData, settings: dict[str, Any], notes: dict[str, Any]) -> Result:
    """The row of one method and task."""
    evaluation = answered.evaluation
    where = surroundings(lm.device, lm.dtype)
    where["versions"]["scikit-learn"] = metadata.version("scikit-learn")
    right = right_answers(data.task, data.dev, evaluation.predictions)
    return Result(
        experiment="baselines",
        config=settings,
        model=_model_of_method(settings["method"], lm),
        task=data.task.name,
        split="dev",
        selection=answered.selection,
        scoring="rank",
        metrics=evaluation.metrics,
        value=evaluation.headline,
        illegal_rate=evaluation.illegal_rate,
        num_examples=len(data.dev),
        step=0,
        steps_run=0,
        seconds=round(answered.seconds, 2),
        seed=0,
        notes={**data.notes, "train_used": len(data.train), **notes, **answered.notes, "right": right},
        **where,
    )


def measure(
    name: str,
    lm: FrozenLM,
    data: Path,
    rows: Path,
    *,
    methods: Sequence[str] = METHODS,
    max_train: int = 4_000,
    max_dev: int | None = None,
    limit: int | None = None,
    polarity_folder: Path = POLARITY_FOLDER,
    watch: Watch | None = None,
) -> list[Result]:
    """Answer one task's dev set by each method whose row is missing, and append those rows.

    data: a folder of official files. Raises ValueError for a task without labels.
    """
    watch = watch or Watch()
    task = get_task(name)
    if not task.labels:
        raise ValueError(f"{task.name} has free-text targets; the baselines are for tasks with labels")
    bounds = {"max_train": max_train, "max_dev": max_dev, "limit": limit}
    settings = {method: settings_of(method, **bounds) for method in methods}
    there = [(row.task, row.model, row.config) for row in read_rows(rows)]
    missing = [m for m in methods if (task.name, _model_of_method(m, lm), settings[m]) not in there]
    if not missing:
        watch.message(f"{task.name}: all rows are in {rows}")
        return []
    source, notes = data_of(task, data, polarity_folder)
    select = "auto" if has_split(task, "dev", source) else "held-out"  # as `softprompt compare` needs it
    config = RunConfig(model=lm.name, task=(task.name,), data=source, select=select, max_dev=max_dev)
    own = with_dev(prepare(config, task, lm), max_dev)
    own = limited(own, limit) if limit else own
    made = []
    for method in missing:
        watch.message(f"{task.name}: {method}, {len(own.train)} training rows, {len(own.dev)} dev")
        row = row_of(answer(method, lm, own, max_train, watch), lm, own, settings[method], notes)
        append_rows(rows, [row])
        made.append(row)
        watch.message(f"{task.name}: {method} {row.value:.3f} {json.dumps(row.metrics)}")
    return made


def _model_of_method(method: str, lm: FrozenLM) -> str:
    return model_of_row(lm.name) if method in ("probe", "zero-shot") else "none"


def bars(minutes: float | None = None) -> Watch:
    """A run's progress as bars on standard error; `minutes` is the bound on training, for the time left."""
    training: list[tqdm[Any]] = []

    def phase(name: str, total: int) -> Progress:
        bar = tqdm(total=total, desc=name, unit="row", leave=False)

        def progress(done: int) -> None:
            bar.update(done)
            if bar.n >= total:
                bar.close()

        return progress

    def begin(steps: int, rows: int) -> None:
        for bar in training:
            bar.close()
        training.append(tqdm(total=steps, desc=f"train, {rows} rows a step", unit="step"))

    def step(number: int, loss: float, tokens: int) -> None:
        bar = training[-1]
        if bar.n == 0:
            bar.initial = number - 1  # a resumed run begins further on
        left = "" if minutes is None else f", at most {max(minutes - bar.format_dict['elapsed'] / 60, 0):.1f} min left"
        bar.set_postfix_str(f"loss {loss:.3f}, {tokens} tokens{left}", refresh=False)
        bar.update(number - bar.n)
        if number >= (bar.total or 0):
            bar.close()

    def score(number: int, name: str, loss: float, value: float | None) -> None:
        tqdm.write(f"step {number} {name}: loss {loss:.3f}, selection {'-' if value is None else f'{value:.3f}'}")

    return Watch(message=tqdm.write, phase=phase, begin=begin, step=step, score=score)


def data_folder(given: Path | None) -> Path:
    """The folder of official files: --data, else the environment's SOFTPROMPT_DATA. ValueError if there is neither."""
    folder = given or Path(os.environ.get("SOFTPROMPT_DATA", ""))
    if folder == Path("") or not folder.is_dir():
        raise ValueError("no folder of official files; give --data DIR or set SOFTPROMPT_DATA")
    return folder


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", required=True, help="task names")
    parser.add_argument("--data", type=Path, help="folder of official files (default: $SOFTPROMPT_DATA)")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--max-train", type=int, default=4_000, help="training rows of the linear probe, at most")
    parser.add_argument("--max-dev", type=int, help="dev examples, at most, as an experiment's --max-dev takes them")
    parser.add_argument("--limit", type=int, help="rows of every part, to try the command; the row says so")
    parser.add_argument("--rows", type=Path, default=Path("results/baselines.jsonl"))
    given = parser.parse_args(words)
    try:
        data, lm = data_folder(given.data), load(given.model)
        for name in given.task:
            measure(
                name,
                lm,
                data,
                given.rows,
                methods=given.methods,
                max_train=given.max_train,
                max_dev=given.max_dev,
                limit=given.limit,
                watch=bars(),
            )
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
