"""How good a prompt is: predictions, metrics, ensembles, and the rows that keep results.

Two ways to answer: `generate` (greedy decoding; an answer that is no legal label is wrong; the paper's way) and
`rank` (the candidate with the highest summed log-probability).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import metadata
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

from softprompt.data import Row, TextFormat, encode_target
from softprompt.files import append_whole, locked, write_whole
from softprompt.inference import Engine, Prediction, Progress
from softprompt.tasks import Example, Task, headline

SCORINGS = ("generate", "rank")


@dataclass(frozen=True)
class Evaluation:
    """The answers of one prompt to one split, and what they are worth."""

    predictions: list[Prediction]
    metrics: dict[str, float]
    """Metric values in 0..1."""
    illegal_rate: float
    """The share of answers that the task's labels do not contain (or that are empty, for free text)."""

    @property
    def headline(self) -> float:
        """The mean of the metrics (paper, section 3)."""
        return headline(self.metrics)


def candidates_of(
    task: Task, example: Example, form: TextFormat, tokenizer: Any, known: dict[str, list[int]]
) -> tuple[tuple[str, ...], list[list[int]]]:
    """The candidates of an example, as text and as ids. ValueError for a task that has none."""
    check_can_rank(task, [example])
    texts = example.choices or task.labels or ()
    for text in texts:
        if text not in known:
            known[text] = encode_target(text, form, tokenizer)
    return texts, [known[text] for text in texts]


def can_rank(task: Task, examples: Sequence[Example]) -> bool:
    """Whether every example has candidates: the task's labels, or choices of its own."""
    return bool(task.labels) or all(example.choices for example in examples)


def check_can_rank(task: Task, examples: Sequence[Example]) -> None:
    """ValueError unless every example has candidates."""
    if not can_rank(task, examples):
        raise ValueError(f"{task.name} has free-text targets, nothing to rank; use --scoring generate")


def predict(
    engine: Engine,
    task: Task,
    examples: Sequence[Example],
    rows: Sequence[Row],
    member: Sequence[int],
    form: TextFormat,
    *,
    scoring: str,
    progress: Progress | None = None,
) -> list[Prediction]:
    """The answer to each row, which wears the prompt `member` names. ValueError for an unknown scoring."""
    check_scoring(scoring)
    if scoring == "generate":
        answers = engine.generate(rows, member, max_target_length=form.max_target_length, progress=progress)
        return [replace(answer, text=form.answer_of(answer.text)) for answer in answers]
    known: dict[str, list[int]] = {}
    choices = [candidates_of(task, example, form, engine.lm.tokenizer, known) for example in examples]
    scored = engine.label_scores(rows, member, [ids for _, ids in choices], progress=progress)
    return [best(dict(zip(texts, values, strict=True))) for (texts, _), values in zip(choices, scored, strict=True)]


def check_scoring(scoring: str) -> None:
    """ValueError unless `scoring` is one of SCORINGS."""
    if scoring not in SCORINGS:
        raise ValueError(f"no scoring named {scoring!r}; choose {' or '.join(SCORINGS)}")


def judge(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Evaluation:
    """What predictions are worth."""
    texts = [prediction.text for prediction in predictions]
    illegal = sum(task.answer(t, e) is None for t, e in zip(texts, examples, strict=True))
    return Evaluation(list(predictions), task.metrics(texts, examples), illegal / max(len(texts), 1))


def right_answers(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> str:
    """'1' for each right answer and '0' for each wrong one, in the order of the examples, for paired comparisons."""

    def is_right(text: str, example: Example) -> bool:
        alone = {} if task.labels else task.metrics([text], [example])
        return alone["em"] == 1 if "em" in alone else task.answer(text, example) in example.references

    return "".join("1" if is_right(p.text, e) else "0" for e, p in zip(examples, predictions, strict=True))


def example_scores(task: Task, examples: Sequence[Example], predictions: Sequence[Prediction]) -> list[float]:
    """Each answer's own score, 0..1: the F1 of its words where the task counts those, else 1 if it is right."""
    if task.labels or "f1" not in task.metrics([""], examples[:1]):
        return [float(right) for right in right_answers(task, examples, predictions)]
    return [task.metrics([p.text], [e])["f1"] for e, p in zip(examples, predictions, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Other:
    """Examples of another task than the trained one, answered with its prompt and judged as their own."""

    task: Task
    part: str
    """The split they are of."""
    examples: list[Example]
    rows: list[Row]
    """Their inputs, in the text of the trained task."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """What a label of the trained task is called there."""

    def spread(self, most: int) -> Other:
        """At most so many of them, evenly over the set, since files keep together what is about one text."""
        count = min(most, len(self.examples))
        places = [i * len(self.examples) // count for i in range(count)]
        return replace(self, examples=[self.examples[i] for i in places], rows=[self.rows[i] for i in places])

    def answers(
        self,
        engine: Engine,
        prompt: int,
        trained: Task,
        form: TextFormat,
        *,
        scoring: str,
        progress: Progress | None = None,
    ) -> list[Prediction]:
        """The answers to them with one of the engine's prompts. `form` is the trained task's."""
        worn = [prompt] * len(self.rows)
        found = predict(engine, trained, self.examples, self.rows, worn, form, scoring=scoring, progress=progress)
        return [replace(answer, text=self.labels.get(answer.text, answer.text)) for answer in found]


def vote(task: Task, example: Example, predictions: Sequence[Prediction]) -> Prediction:
    """The ensemble's answer (paper, section 6): the majority of the members' post-processed answers (`Task.answer`).

    An illegal answer votes for nothing. Ties, on which the paper is silent, go to the answer with the higher
    summed log-probability. The text is that of the winning answer's most confident member.
    """
    answers = [(task.answer(prediction.text, example), prediction) for prediction in predictions]
    legal = [answer for answer, _ in answers if answer is not None]
    if not legal:
        return max(predictions, key=lambda prediction: prediction.log_prob)
    counts = {answer: legal.count(answer) for answer in dict.fromkeys(legal)}
    most = max(counts.values())
    tied = [answer for answer, count in counts.items() if count == most]
    winner = tied[0] if len(tied) == 1 else max(tied, key=lambda a: _support(a, answers))
    return max((p for a, p in answers if a == winner), key=lambda prediction: prediction.log_prob)


def ensemble(task: Task, examples: Sequence[Example], members: Sequence[Sequence[Prediction]]) -> list[Prediction]:
    """The vote on every example; members: each prompt's predictions, in the examples' order."""
    return [vote(task, example, votes) for example, votes in zip(examples, zip(*members, strict=True), strict=True)]


def _support(answer: str, answers: Sequence[tuple[str | None, Prediction]]) -> float:
    """Summed log-probability of an answer over the members: all of them if they scored it, else its voters."""
    texts = {prediction.text for a, prediction in answers if a == answer}
    if all(p.scores is not None and texts & set(p.scores) for _, p in answers):
        return sum(max(p.scores[t] for t in texts if t in p.scores) for _, p in answers if p.scores is not None)
    return sum(prediction.log_prob for a, prediction in answers if a == answer)


def best(scores: dict[str, float]) -> Prediction:
    """The candidate with the highest score; of equals, the first."""
    text = max(scores, key=scores.__getitem__)
    return Prediction(text, scores[text], scores)


@dataclass(frozen=True, kw_only=True)
class Result:
    """One JSON row: everything needed to read a number, and to make it again."""

    experiment: str
    """What the run was for; rows of one table share it."""
    config: dict[str, Any]
    """The run's whole configuration."""
    model: str
    """The model as it is, e.g. 'SmolLM2-135M-Instruct, Q4_1 dequantised'."""
    task: str
    split: str
    """What was scored: train, dev or test."""
    selection: str
    """What chose step and settings: held-out, cross-validation, dev, or none where there was nothing to choose."""
    scoring: str
    metrics: dict[str, float]
    value: float
    """The mean of the metrics, 0..1."""
    illegal_rate: float
    num_examples: int
    step: int
    """The step whose prompt was scored."""
    steps_run: int
    seconds: float
    """Seconds of training, selection included, across resumes."""
    seed: int
    notes: dict[str, Any] = field(default_factory=dict)
    """Counts that explain the number: cut inputs, overlap removed, share of the official training data."""
    device: str = ""
    dtype: str = ""
    threads: int = 0
    commit: str = ""
    dirty: bool = False
    versions: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The row as one line."""
        return json.dumps(asdict(self), ensure_ascii=False, sort_keys=False)


def surroundings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The fields of a Result that say where and with what it was made."""
    packages = ("softprompt", "torch", "transformers")
    commit, dirty = _commit()
    return {
        "device": _device_name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "commit": commit,
        "dirty": dirty,
        "versions": {name: metadata.version(name) for name in packages},
    }


def read_rows(path: Path) -> list[Result]:
    """The rows of a JSONL file; none where there is no file. ValueError, with its line, for what is no row of ours."""
    if not path.exists():
        return []
    with path.open("rb") as file, locked(file, shared=True):  # a row that is just being added is read whole
        return _rows_in(file, path)


def _rows_in(file: BinaryIO | FileIO, path: Path) -> list[Result]:
    text = file.read().decode()
    lines = text.removesuffix("\n").split("\n") if text else []
    return [_read_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _read_row(line: str, where: str) -> Result:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"wanted an object, got {line[:40]}")
    except ValueError as error:
        raise ValueError(f"{where}: half a row, or none ({error}); take the line out") from None
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(Result)}
    needed = {name for name, is_needed in known.items() if is_needed}
    if strange := sorted((set(record) - set(known)) | (needed - set(record))):
        raise ValueError(
            f"{where}: a row of another version (it differs in {', '.join(strange)}); read it with the softprompt that "
            "wrote it"
        )
    return Result(**record)


def append_rows(path: Path, rows: Sequence[Result]) -> None:
    """Add rows to a JSONL file, all of them or none, beside others that do so at the same time.

    ValueError as `read_rows` has it; raises OSError where it cannot be written.
    """
    added = "".join(row.to_json() + "\n" for row in rows)
    append_whole(path, added, check=lambda file: _rows_in(file, path))  # refuses a file that is not ours


def write_rows(path: Path, rows: Sequence[Result]) -> None:
    """Make a JSONL file of rows; what stood there stays whole if this is interrupted."""
    write_whole(path, "".join(row.to_json() + "\n" for row in rows))


def _commit() -> tuple[str, bool]:
    """The commit of the working tree this package runs from, and whether it has changes; '' outside one."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short", "HEAD"), bool(git("status", "--porcelain", "--", "."))
    except OSError:
        return "", False


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        for line in _lines_of("/proc/cpuinfo"):
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({torch.get_num_threads()} threads)"
    return str(device)


def _lines_of(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
