"""Saved prompts put to use: scored on a split, alone and as an ensemble, or asked about records and files.

saved = open_prompts(["runs/a", "runs/b"])
evaluate_prompts(saved, data=folder, ensemble=True).evaluations
predict_file(saved, "reviews.csv", "answers.jsonl")
"""

from __future__ import annotations

import itertools
import json
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from softprompt.answering.engine import Engine, Prediction, mean_probabilities
from softprompt.answering.evaluation import Evaluation, check_scoring, ensemble, judge, predict, vote
from softprompt.answering.rows import Result, surroundings
from softprompt.base.watch import Progress, Watch
from softprompt.models import (
    FrozenLM,
    Row,
    TextFormat,
    check_length,
    default_format,
    encode_examples,
    load,
    target_lengths,
)
from softprompt.prompts import Card, SoftPrompt, check_fits, load_prompt
from softprompt.tasks import Example, Task, file_task, get_task, read_split
from softprompt.tasks.own_file import Template
from softprompt.tasks.reading import Data
from softprompt.tasks.records import (
    COMPRESSIONS,
    READERS,
    decoded,
    open_bytes,
    plain_suffix,
    read_object,
    read_rows,
)
from softprompt.tasks.task import text_column

CHUNK = 256  # ours: rows answered together; enough to fill batches of equal length, and few enough to lose
NUM_DIGITS = 6  # ours: digits after the point of log-probabilities and probabilities in a prediction's line
ANSWER_COLUMNS = {"prediction", "predictions", "log_prob", "truncated", "probabilities", "error", "line"}
KEPT_AS = "input_"  # what the name of a record's own column begins with in the answer, where it is one of those

Item = str | dict[str, Any] | ValueError
"""What a line holds: a finished input, a record, or what is wrong with it."""


@dataclass
class SavedPrompts:
    """Saved prompts of one task and the frozen model that wears them."""

    lm: FrozenLM
    folders: list[Path]
    prompts: list[SoftPrompt]
    task: Task
    forms: list[TextFormat]
    """Each prompt's text format."""
    scoring: str
    """generate or rank."""

    def __post_init__(self) -> None:
        self.engine = Engine(self.lm, [prompt.values for prompt in self.prompts])
        self.groups: dict[TextFormat, list[int]] = {}
        for place, form in enumerate(self.forms):
            self.groups.setdefault(form, []).append(place)

    def encode(self, examples: Sequence[Example]) -> list[list[Row]]:
        """The examples' rows, once for each text format among the prompts.

        ValueError for an empty input, or one that the model cannot take together with prompt and answer.
        """
        encoded = []
        length = max(prompt.length for prompt in self.prompts)
        for form in self.groups:
            rows = encode_examples(examples, form, self.lm.tokenizer, with_targets=False)
            room = (self.lm.tokenizer.eos_id,) * form.max_target_length
            check_length([replace(row, target=room) for row in rows], length, self.lm)
            encoded.append(rows)
        return encoded

    def answers(
        self, examples: Sequence[Example], encoded: Sequence[Sequence[Row]], progress: Progress | None = None
    ) -> list[list[Prediction]]:
        """Each prompt's answers; prompts of one text format share their batches. `encoded` is `encode`'s."""
        answers: list[list[Prediction]] = [[] for _ in self.prompts]
        for (form, places), rows in zip(self.groups.items(), encoded, strict=True):
            mixed = predict(
                self.engine,
                self.task,
                [example for example in examples for _ in places],
                [row for row in rows for _ in places],
                places * len(rows),
                form,
                scoring=self.scoring,
                progress=progress,
            )
            for i, place in enumerate(places):
                answers[place] = mixed[i :: len(places)]
        return answers


def open_prompts(
    folders: str | Path | Sequence[str | Path],
    *,
    model: str | FrozenLM | None = None,
    task: str | Task | None = None,
    scoring: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
) -> SavedPrompts:
    """Prompts of one task, from their folders, ready to answer.

    model: where the frozen model is, or the model itself; None: the one the first card names. That it is the
    right one is seen from its fingerprint. task: None takes the cards' own. scoring: None takes the one the
    prompts were trained with. quantize: 8bit or 4bit weights; where a prompt was trained on others, it warns.
    Raises ValueError for prompts of different tasks, for a prompt of another model, and for what the cards do not
    say and was not given.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not paths:
        raise ValueError("no prompt was given; name at least one folder that `softprompt train` wrote")
    prompts = [load_prompt(path) for path in paths]
    cards = [prompt.card for prompt in prompts]
    chosen = _given_task(task) if task is not None else shared_task(cards, paths)
    machine = {"device": device, "dtype": dtype, "quantize": quantize}
    lm = model if isinstance(model, FrozenLM) else load_for(prompts[0], model, **machine)
    for prompt, path in zip(prompts, paths, strict=True):
        check_fits(prompt, model_name=lm.name, fingerprint=lm.fingerprint, width=lm.width)
        tell_quantization(prompt.card, path, lm)
    forms = [form_of(card, path, chosen, lm) for card, path in zip(cards, paths, strict=True)]
    return SavedPrompts(lm, paths, prompts, chosen, forms, shared_scoring(cards, paths, chosen, scoring))


def load_for(prompt: SoftPrompt, model: str | None = None, **machine: Any) -> FrozenLM:
    """The frozen model at `model`, or else the one that the prompt's card names. machine: as `load` has it."""
    if model is not None:
        return load(model, **machine)
    name = prompt.card.model_name
    if name is None:
        raise ValueError("the prompt does not record its model; give it with --model")
    try:
        return load(name, **machine)
    except ValueError as error:
        raise ValueError(f"{error}; the prompt names that model: if it lies elsewhere, give --model") from error


def tell_quantization(card: Card, path: str | Path, lm: FrozenLM) -> None:
    """Warn if the prompt was trained on weights that were packed otherwise, as far as its card says."""
    trained = card.recipe.get("quantize", lm.quantization)
    if trained != lm.quantization:
        advice = f"give --quantize {trained}" if trained else "leave --quantize out"
        warnings.warn(
            f"{path} was trained on {trained or 'unpacked'} weights, and {lm.name} has {lm.quantization or 'unpacked'} "
            f"ones here, so it may score otherwise; for the same, {advice}",
            stacklevel=2,
        )


def task_of(card: Card) -> Task | None:
    """The task a prompt was trained for; of a task from your own file, rebuilt from the card. None: not recorded."""
    inputs, targets = card.text.get("inputs_template"), card.text.get("targets_template")
    if inputs and targets:
        return file_task(
            inputs=inputs,
            targets=targets,
            labels=card.labels or None,
            metric=card.recipe.get("metric") or _metric_of(card.dev_metrics),
            group_by=card.recipe.get("group_by"),
            name=card.task,
        )
    if card.task is None:
        return None
    task = get_task(card.task)
    if card.task_version not in (None, task.version):
        warnings.warn(
            f"the prompt was trained on version {card.task_version} of {task.name}, and this is version "
            f"{task.version}: its texts or scores may differ",
            stacklevel=2,
        )
    return task


def _metric_of(metrics: Mapping[str, Any]) -> str | None:
    """The metric's name for `file_task`, from the names of its values."""
    name = next(iter(metrics), None)
    return {"macro_f1": "f1", "rouge1": "rouge"}.get(name, name) if name else None


def _given_task(task: str | Task) -> Task:
    return get_task(task) if isinstance(task, str) else task


def shared_task(cards: Sequence[Card], paths: Sequence[Path]) -> Task:
    """The cards' task; for prompts that record none, any text with any answer (or the card's labels)."""

    def identity(card: Card) -> tuple[Any, ...]:
        return (card.task, card.labels, card.text.get("inputs_template"), card.text.get("targets_template"))

    for card, path in zip(cards, paths, strict=True):
        if identity(card) != identity(cards[0]):
            raise ValueError(
                f"{paths[0]} is a prompt for {cards[0].task} and {path} for {card.task}; "
                "use prompts of one task, or name the task with --task"
            )
    labels = cards[0].labels or None
    return task_of(cards[0]) or file_task(inputs="{inputs}", targets="{targets}", labels=labels, name="unknown")


def form_of(card: Card, path: Path, task: Task, lm: FrozenLM) -> TextFormat:
    """A card's text format, with room for the longest label (a prompt may be asked about another task)."""
    labels = task.labels or ()
    if not card.text:
        warnings.warn(f"{path} does not record its text format; {lm.name}'s usual one is taken", stacklevel=3)
        form = default_format(lm, max_target_length=4 if labels else 64)
    else:
        try:
            form = TextFormat.from_json(card.text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    longest = max(target_lengths(labels, form, lm.tokenizer), default=4)
    return replace(form, max_target_length=max(form.max_target_length, longest))


def shared_scoring(cards: Sequence[Card], paths: Sequence[Path], task: Task, given: str | None = None) -> str:
    """How the prompts answer: as given, or as the cards say they were trained. ValueError if these differ."""
    if given is not None:
        check_scoring(given)
        return given
    usual = "rank" if task.labels else "generate"
    trained = [card.recipe.get("scoring", usual) for card in cards]
    for scoring, path in zip(trained, paths, strict=True):
        if scoring != trained[0]:
            raise ValueError(
                f"{paths[0]} was trained with scoring {trained[0]} and {path} with {scoring}; give --scoring"
            )
    return trained[0]


@dataclass(frozen=True, kw_only=True)
class PromptScores:
    """What saved prompts score on one split, each alone and all together."""

    saved: SavedPrompts
    split: str
    note: str
    """Where the examples came from, in one line."""
    examples: list[Example]
    evaluations: list[Evaluation]
    """One for each prompt."""
    ensemble: Evaluation | None
    num_cut: int
    """Inputs that the length limit cut."""
    seconds: float
    selection_scores: list[float | None] = field(default_factory=list)
    """What chose each prompt's step in training, if its card says so."""

    @property
    def average(self) -> dict[str, float]:
        """The mean of each metric over the prompts."""
        names = self.evaluations[0].metrics
        return {name: fmean(evaluation.metrics[name] for evaluation in self.evaluations) for name in names}

    @property
    def best(self) -> int:
        """The prompt that is best on this very split (the paper's way, section 6)."""
        values = [evaluation.headline for evaluation in self.evaluations]
        return values.index(max(values))

    @property
    def chosen(self) -> int | None:
        """The prompt that the selection rows would choose; None where a card lacks its selection score."""
        scores = [score for score in self.selection_scores if score is not None]
        if not scores or len(scores) < len(self.evaluations):
            return None
        return scores.index(max(scores))

    def rows(self) -> list[Result]:
        """Result rows: one for each prompt, and one for the ensemble."""
        rows = [self._row(evaluation, [place]) for place, evaluation in enumerate(self.evaluations)]
        if self.ensemble is not None:
            rows.append(self._row(self.ensemble, list(range(len(self.evaluations)))))
        return rows

    def _row(self, evaluation: Evaluation, places: Sequence[int]) -> Result:
        cards = [self.saved.prompts[place].card for place in places]
        prompts = [str(self.saved.folders[place]) for place in places]
        hashes = [self.saved.prompts[place].sha256 for place in places]
        notes = {"source": self.note, "num_cut": self.num_cut, "evaluation_s": round(self.seconds, 2)}
        return Result(
            experiment="eval" if len(places) == 1 else "ensemble",
            config={
                "prompts": prompts,
                "sha256": hashes,
                "seeds": [card.seed for card in cards],
                "quantize": self.saved.lm.quantization,
            },
            model=self.saved.lm.name,
            task=self.saved.task.name,
            split=self.split,
            selection=cards[0].selection or "unknown",
            scoring=self.saved.scoring,
            metrics=evaluation.metrics,
            value=evaluation.headline,
            illegal_rate=evaluation.illegal_rate,
            num_examples=len(evaluation.predictions),
            step=cards[0].step or 0,
            steps_run=cards[0].recipe.get("steps", 0),
            seconds=0.0,
            seed=cards[0].seed or 0,
            notes=notes,
            **surroundings(self.saved.lm.device, self.saved.lm.dtype),
        )


def evaluate_prompts(
    saved: SavedPrompts,
    *,
    data: Data = None,
    split: str = "dev",
    ensemble: bool = False,
    limit: int | None = None,
    watch: Watch | None = None,
) -> PromptScores:
    """What each prompt scores on a split, and their vote, from one pass over mixed batches.

    data: a folder of official files, or files by split; None: the hub. limit: only the first examples. Raises
    ValueError for a prompt without a task, for examples without labels, and for an ensemble of one.
    """
    started = time.monotonic()
    if saved.task.name == "unknown":
        raise ValueError("the prompt does not record its task; name it with --task, or give --inputs and --targets")
    if ensemble and len(saved.prompts) < 2:
        raise ValueError("an ensemble needs at least two prompts; name them all after --prompt")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, but must be 1 or more")
    reading = read_split(saved.task, split, data)
    examples = reading.examples[:limit]
    _check_labels(saved.task, split, examples)
    encoded = saved.encode(examples)
    total = len(examples) * len(saved.prompts)
    progress = (watch or Watch()).phase(f"score {saved.task.name} {split}", total)
    answers = saved.answers(examples, encoded, progress)
    return PromptScores(
        saved=saved,
        split=split,
        note=reading.note,
        examples=examples,
        evaluations=[judge(saved.task, examples, own) for own in answers],
        ensemble=_vote(saved.task, examples, answers) if ensemble else None,
        num_cut=sum(any(row.was_cut for row in rows) for rows in zip(*encoded, strict=True)),
        seconds=time.monotonic() - started,
        selection_scores=[prompt.card.recipe.get("selection_score") for prompt in saved.prompts],
    )


def _vote(task: Task, examples: Sequence[Example], answers: Sequence[Sequence[Prediction]]) -> Evaluation:
    return judge(task, examples, ensemble(task, examples, answers))


def _check_labels(task: Task, split: str, examples: Sequence[Example]) -> None:
    for example in examples:
        if not example.references:
            raise ValueError(
                f"example {example.id!r} of {task.name} {split} has no label, so nothing can be scored; "
                "`softprompt predict` answers it all the same"
            )


@dataclass(frozen=True)
class _Question:
    """A line of input, and what became of it."""

    number: int
    columns: dict[str, Any]
    examples: list[Example]
    encoded: list[list[Row]]
    error: str | None = None


def predict_records(
    saved: SavedPrompts,
    items: Iterable[tuple[int, Item]],
    *,
    with_probabilities: bool = False,
    inputs_column: str | None = None,
    strict: bool = False,
    chunk: int = CHUNK,
) -> Iterator[dict[str, Any]]:
    """One answer for each item, in order: its columns, and prediction, log_prob and truncated.

    A record's own column of a name in `ANSWER_COLUMNS` is kept as input_NAME, with a warning.
    items: (line number, item); a record is cast by the task, unless `inputs_column` names the column of its
    finished input. A record of several examples gets a list `predictions`. Several prompts vote. An item that
    cannot be answered gets `error` and `line` instead, and stops everything if `strict`, by ValueError; so do
    probabilities of generated text.
    """
    if with_probabilities and saved.scoring != "rank":
        raise ValueError("probabilities come from label scoring; use --scoring rank, or leave --scores out")
    items = iter(items)
    while taken := list(itertools.islice(items, chunk)):
        questions = [_question(saved, number, item, inputs_column) for number, item in taken]
        bad = next((i for i, question in enumerate(questions) if question.error), None) if strict else None
        yield from _answered(saved, questions[:bad], with_probabilities)
        if bad is not None:
            raise ValueError(f"line {questions[bad].number}: {questions[bad].error}")


def _question(saved: SavedPrompts, number: int, item: Item, inputs_column: str | None) -> _Question:
    columns = _columns(item)
    for name, kept in zip(item if isinstance(item, dict) else (), columns, strict=False):
        if name != kept:
            warnings.warn(
                f"the input's column {name!r} is kept as {kept!r}: the answer has one of its own", stacklevel=2
            )
    try:
        examples = examples_of(saved.task, item, inputs_column)
        if not examples:
            raise ValueError(f"the record has nothing in it to answer for {saved.task.name}; leave it out")
        for example in examples:
            if saved.scoring == "rank" and not (example.choices or saved.task.labels):
                raise ValueError(f"{saved.task.name} has no labels to rank for this input; use --scoring generate")
        return _Question(number, columns, examples, saved.encode(examples))
    except ValueError as error:
        return _Question(number, columns, [], [], str(error))


def _columns(item: Item) -> dict[str, Any]:
    """What an item's answer begins with: its columns, of which none has the name of one of the answer's."""
    if not isinstance(item, dict):
        return {"inputs": item} if isinstance(item, str) else {}
    names = {name: name for name in item}
    for name in names.keys() & ANSWER_COLUMNS:
        names[name] = f"{KEPT_AS}{name}"
        while names[name] in item:
            names[name] = f"{KEPT_AS}{names[name]}"
    return {names[name]: value for name, value in item.items()}


def examples_of(task: Task, item: Item, inputs_column: str | None = None) -> list[Example]:
    """The examples to answer: of a finished input one; of a record as many as the task casts it to, unless a column
    with the finished input is named. ValueError for what is no record of the task.
    """
    if isinstance(item, ValueError):
        raise item
    if isinstance(item, str):
        return [_finished(item)]
    if inputs_column is not None:
        return [_finished(text_column(item, inputs_column))]
    try:
        return task.cast(_without_targets(task, item), "test")
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(f"not a record of {task.name} ({type(error).__name__}: {error})") from error


def _finished(text: str) -> Example:
    return Example(inputs=text, targets="<unk>", id="", references=())


def _without_targets(task: Task, record: dict[str, Any]) -> dict[str, Any]:
    """A record of your own file without its answer, which need not be there and need not be a legal one."""
    if task.template is None:
        return record
    inputs, targets = (Template(text, role) for text, role in zip(task.template, ("inputs", "targets"), strict=True))
    answer = set(targets.columns) - set(inputs.columns)
    return {name: value for name, value in record.items() if name not in answer}


def _answered(
    saved: SavedPrompts, questions: Sequence[_Question], with_probabilities: bool
) -> Iterator[dict[str, Any]]:
    examples = [example for question in questions for example in question.examples]
    asked = [question for question in questions if question.encoded]
    encoded = [list(itertools.chain(*(q.encoded[i] for q in asked))) for i in range(len(saved.groups))]
    answers = zip(*saved.answers(examples, encoded), strict=True) if examples else iter(())
    cut = (any(row.was_cut for row in rows) for rows in zip(*encoded, strict=True))
    for question in questions:
        if question.error:
            yield {**question.columns, "error": question.error, "line": question.number}
            continue
        given = []
        for example in question.examples:
            votes = list(next(answers))
            given.append(_line(saved.task, example, votes, next(cut), with_probabilities))
        several = [{"id": e.id, **line} for e, line in zip(question.examples, given, strict=True)]
        yield {**question.columns, **(given[0] if len(given) == 1 else {"predictions": several})}


def _line(
    task: Task, example: Example, votes: Sequence[Prediction], was_cut: bool, with_probabilities: bool
) -> dict[str, Any]:
    best = votes[0] if len(votes) == 1 else vote(task, example, votes)
    line = {"prediction": best.text, "log_prob": round(best.log_prob, NUM_DIGITS), "truncated": was_cut}
    if not with_probabilities:
        return line
    mean = mean_probabilities(votes)
    return {**line, "probabilities": {text: round(share, NUM_DIGITS) for text, share in mean.items()}}


def read_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Item]]:
    """Each line as an item: an object in braces is a record, anything else a finished input (or an error)."""
    for number, raw in enumerate(lines, 1):
        yield number, _item(raw)


def _item(raw: bytes) -> Item:
    try:
        line = decoded(raw)
        return read_object(line) if line.lstrip().startswith("{") else line
    except ValueError as error:
        return error


def read_items(path: str | Path) -> Iterator[tuple[int, Item]]:
    """The items of a file: .jsonl, .csv, .tsv, .json, .parquet, or lines of text under any other name.

    Each may be compressed, with .gz or .xz behind. A bad row is an item that holds its error; ValueError for a file
    that is missing or not of its format.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}; name a file of records or of lines")
    if plain_suffix(path) in READERS:
        yield from read_rows(path)
        return
    with open_bytes(path) as file:
        yield from read_lines(file)


def count_items(path: str | Path) -> int | None:
    """About how many items a file holds, for a progress bar; None where counting means reading all of it."""
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        from pyarrow.parquet import ParquetFile

        return ParquetFile(path).metadata.num_rows
    if path.suffix.lower() in (".json", *COMPRESSIONS):
        return None
    with open(path, "rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return lines - (path.suffix.lower() in (".csv", ".tsv"))


@dataclass
class Written:
    """What `predict_file` wrote."""

    num_rows: int = 0
    num_errors: int = 0


def predict_file(
    saved: SavedPrompts,
    source: str | Path | Iterable[bytes],
    output: str | Path,
    *,
    with_probabilities: bool = False,
    inputs_column: str | None = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Answer a file (or the lines of an open one) into a JSONL file, one line for each item, in order.

    Lines go to OUTPUT.partial, which takes OUTPUT's name at the end; resume skips what stands there already, and
    leaves a whole OUTPUT as it is. The counts include those lines. A file's settings stand beside it, in
    FILE.settings. Raises ValueError if either file is there and neither `resume` nor `overwrite` is given, for
    one to resume that was made with other settings or of other items, and, if `strict`, for the first bad item.
    """
    output = Path(output)
    partial = output.with_name(f"{output.name}.partial")
    if not overwrite and not resume:
        _refuse_existing(output, partial)
    settings, items = _settings(saved, source, with_probabilities, inputs_column), _items_of(source)
    if resume and output.exists() and not partial.exists():
        return _finished_before(output, settings, items)
    written = Written()
    if resume and partial.exists():
        _check_settings(partial, settings)
        _cut_torn_line(partial)
        written = _count(partial, items)
    else:
        partial.unlink(missing_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        _settings_file(partial).write_text(json.dumps(settings))
    if progress and written.num_rows:
        progress(written.num_rows)
    answers = predict_records(
        saved, items, with_probabilities=with_probabilities, inputs_column=inputs_column, strict=strict
    )
    _append(partial, answers, written, progress)
    os.replace(partial, output)
    os.replace(_settings_file(partial), _settings_file(output))
    return written


def _items_of(source: str | Path | Iterable[bytes]) -> Iterator[tuple[int, Item]]:
    return read_items(source) if isinstance(source, str | Path) else read_lines(source)


def _refuse_existing(output: Path, partial: Path) -> None:
    if partial.exists():
        raise ValueError(f"{partial} holds part of an earlier run; --resume goes on from it, --overwrite starts again")
    if output.exists():
        raise ValueError(f"{output} is there already; --overwrite replaces it, or give another name")


def _settings(saved: SavedPrompts, source: Any, with_probabilities: bool, inputs_column: str | None) -> dict[str, Any]:
    """What must be the same for a file of answers to be gone on with."""
    return {
        "prompts": [prompt.sha256 for prompt in saved.prompts],
        "model": saved.lm.fingerprint,
        "dtype": str(saved.lm.dtype),
        "quantize": saved.lm.quantization,
        "task": saved.task.name,
        "templates": list(saved.task.template or ()),
        "labels": list(saved.task.labels or ()),
        "scoring": saved.scoring,
        "scores": with_probabilities,
        "inputs-column": inputs_column,
        "input": str(source) if isinstance(source, str | Path) else "lines",
    }


def _settings_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.settings")


def _check_settings(path: Path, wanted: Mapping[str, Any]) -> None:
    if not _settings_file(path).is_file():
        raise ValueError(
            f"{path} has no {_settings_file(path).name} beside it, so it cannot be gone on with; use --overwrite"
        )
    kept = json.loads(_settings_file(path).read_text())
    for name, value in wanted.items():
        if kept.get(name, value) != value:
            raise ValueError(
                f"{path} was begun with {name} {kept[name]}, and now it is {value}; "
                "give the same settings, or start again with --overwrite"
            )


def _finished_before(output: Path, settings: Mapping[str, Any], items: Iterator[tuple[int, Item]]) -> Written:
    _check_settings(output, settings)
    written = _count(output, items)
    if next(items, None) is not None:
        raise ValueError(
            f"{output} answers {written.num_rows} rows and the input has more; start again with --overwrite"
        )
    return written


def _cut_torn_line(partial: Path) -> None:
    """Cut off a last line that a kill left torn."""
    with open(partial, "r+b") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _count(path: Path, items: Iterator[tuple[int, Item]]) -> Written:
    """The lines of a file of answers, which must be those of the items to come; these are taken."""
    written = Written()
    with open(path, "rb") as file:
        for line in file:
            answer, asked = _item(line), next(items, None)
            if not isinstance(answer, dict) or asked is None or not _is_of(answer, asked[1]):
                raise ValueError(
                    f"line {written.num_rows + 1} of {path} does not answer that row of the input; "
                    "give the input that it was made of, or start again with --overwrite"
                )
            written.num_rows += 1
            written.num_errors += "error" in answer
    return written


def _is_of(answer: Mapping[str, Any], item: Item) -> bool:
    own = {name: value for name, value in answer.items() if name not in ANSWER_COLUMNS}
    return to_line(own) == to_line(_columns(item))


def _append(partial: Path, answers: Iterable[dict[str, Any]], written: Written, progress: Progress | None) -> None:
    with open(partial, "ab", buffering=0) as file:
        for answer in answers:
            line = to_line(answer).encode()
            try:
                file.write(line)
            except OSError as error:
                raise OSError(
                    f"could not write {partial} ({error.strerror or error}); the {written.num_rows} rows there are "
                    "whole: free some space and go on with --resume"
                ) from error
            written.num_rows += 1
            written.num_errors += "error" in answer
            if progress:
                progress(1)


def to_line(answer: Mapping[str, Any]) -> str:
    """An answer as a line of JSON."""
    return json.dumps(answer, ensure_ascii=False, default=str) + "\n"
