"""Saved prompts opened on their model, ready to answer.

saved = open_prompts(["runs/a", "runs/b"])
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from softprompt.answering.engine import Engine, Prediction
from softprompt.answering.evaluation import check_scoring, predict_all, predict_each
from softprompt.base.names import hub_place, nearest
from softprompt.base.watch import Progress
from softprompt.models import (
    FrozenLM,
    Row,
    TextFormat,
    check_length,
    default_format,
    encode_examples,
    load,
    room_for,
)
from softprompt.prompts import Card, SoftPrompt, check_fits, check_runs, load_prompt
from softprompt.tasks import Example, Item, Task, all_fields, examples_of_each, file_task, get_task


@dataclass
class SavedPrompts:
    """Saved prompts of one task, each with its own words around the input, and the frozen model that wears them."""

    lm: FrozenLM
    folders: list[str | Path]
    prompts: list[SoftPrompt]
    tasks: list[Task]
    """Each prompt's, as `shared_tasks` has them."""
    forms: list[TextFormat]
    """Each prompt's text format."""
    scoring: str
    """generate or rank."""

    def __post_init__(self) -> None:
        self.groups: dict[TextFormat, list[int]] = {}
        for place, form in enumerate(self.forms):
            self.groups.setdefault(form, []).append(place)

    @cached_property
    def engine(self) -> Engine:
        """What answers."""
        return Engine(self.lm, [prompt.values for prompt in self.prompts])

    @property
    def task(self) -> Task:
        """The task by which votes are counted and answers scored."""
        return self.tasks[0]

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a file of their answers to be gone on with."""
        return {
            "prompts": [prompt.sha256 for prompt in self.prompts],
            "model": self.lm.fingerprint,
            "dtype": str(self.lm.dtype),
            "quantize": self.lm.quantization,
            "task": self.task.name,
            "templates": [text for both in dict.fromkeys(task.template for task in self.tasks) for text in both or ()],
            "labels": list(self.task.labels or ()),
            "scoring": self.scoring,
            "prompt hashes": [prompt.identity for prompt in self.prompts],  # in no file of 0.2 and before
        }

    def worn_by(self, item: Item) -> SavedPrompts:
        """The prompts that an item is asked of."""
        return self

    def read(self, read: Callable[[Task], Sequence[Example]]) -> list[Sequence[Example]]:
        """Each prompt's examples, as `read` gives them for its task. ValueError unless all are the same ones."""
        return examples_of_each(self.tasks, read)

    def encode(self, examples: Sequence[Sequence[Example]]) -> list[list[Row]]:
        """The rows of each prompt's examples, once for each text format among the prompts.

        ValueError for an empty input, or one that the model cannot take together with prompt and answer.
        """
        encoded = []
        length = max(prompt.length for prompt in self.prompts)
        for form, places in self.groups.items():
            rows = encode_examples(examples[places[0]], form, self.lm.tokenizer, with_targets=False)
            room = (self.lm.tokenizer.eos_id,) * form.max_target_length
            check_length([replace(row, target=room) for row in rows], length, self.lm)
            encoded.append(rows)
        return encoded

    def answers(
        self,
        examples: Sequence[Example],
        encoded: Sequence[Sequence[Row]],
        progress: Progress | None = None,
        *,
        worn: Sequence[SavedPrompts] = (),
    ) -> list[list[Prediction]]:
        """Each prompt's answers; prompts of one text format share their batches. `encoded` is `encode`'s.

        worn: what `worn_by` gave for each example, which here is always all of them.
        """
        answers: list[list[Prediction]] = [[] for _ in self.prompts]
        for (form, places), rows in zip(self.groups.items(), encoded, strict=True):
            given = predict_all(
                self.engine, self.task, examples, rows, places, form, scoring=self.scoring, progress=progress
            )
            for place, predictions in zip(places, given, strict=True):
                answers[place] = predictions
        return answers


@dataclass
class NamedPrompts:
    """Saved prompts of any tasks on one model. Each record is asked of the one that it names, all in mixed batches."""

    column: str
    """A record's column that holds the name."""
    by_name: dict[str, SavedPrompts]
    """Of one prompt each."""

    def __post_init__(self) -> None:
        self.lm = next(iter(self.by_name.values())).lm
        self.engine = Engine(self.lm, [saved.prompts[0].values for saved in self.by_name.values()])
        self.groups = [0]  # rows are encoded once, each for its own prompt

    @property
    def scoring(self) -> str:
        """generate, unless all rank."""
        scorings = {saved.scoring for saved in self.by_name.values()}
        return "rank" if scorings == {"rank"} else "generate"

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a file of their answers to be gone on with."""
        named = {name: saved.settings for name, saved in self.by_name.items()}
        return {"prompt-column": self.column, "prompts by name": named}

    def worn_by(self, item: Item) -> SavedPrompts:
        """The prompt that a record names. ValueError where it names none that is there."""
        if not isinstance(item, dict) or self.column not in item:
            if isinstance(item, ValueError):
                raise item
            raise ValueError(f"there is no column {self.column!r} to name a prompt; give a record that has it")
        name = str(item[self.column])
        if name not in self.by_name:
            raise ValueError(f"no prompt is named {name!r}{nearest(name, self.by_name)}")
        return self.by_name[name]

    def answers(
        self,
        examples: Sequence[Example],
        encoded: Sequence[Sequence[Row]],
        progress: Progress | None = None,
        *,
        worn: Sequence[SavedPrompts],
    ) -> list[list[Prediction]]:
        """One list: the answer to each example by the prompt that it wears."""
        (rows,), places = encoded, {id(saved): place for place, saved in enumerate(self.by_name.values())}
        together: dict[tuple[str, int], list[int]] = {}  # by how they answer, and with generated text how long
        for index, saved in enumerate(worn):
            length = saved.forms[0].max_target_length if saved.scoring == "generate" else 0
            together.setdefault((saved.scoring, length), []).append(index)
        answers: dict[int, Prediction] = {}
        for (scoring, _), indices in together.items():
            given = predict_each(
                self.engine,
                [worn[index].task for index in indices],
                [examples[index] for index in indices],
                [rows[index] for index in indices],
                [places[id(worn[index])] for index in indices],
                [worn[index].forms[0] for index in indices],
                scoring=scoring,
                progress=progress,
            )
            answers.update(zip(indices, given, strict=True))
        return [[answers[index] for index in range(len(worn))]]


def open_named(
    named: Mapping[str, str | Path], column: str, *, model: str | FrozenLM | None = None, **options: Any
) -> NamedPrompts:
    """Prompts of any tasks, from their places by name, for records that name theirs in a column.

    options: as `open_prompts` has them, and its errors.
    """
    by_name: dict[str, SavedPrompts] = {}
    for name, place in named.items():
        by_name[name] = open_prompts(place, model=model, **options)
        model = by_name[name].lm
    return NamedPrompts(column, by_name)


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
    """Prompts of one task, from their folders or the hub (hf://ORG/NAME@revision), ready to answer.

    model: where the frozen model is, or the model itself; None: the one the first card names. That it is the
    right one is seen from its fingerprint. task: None takes the cards' own. scoring: None takes the one the
    prompts were trained with. quantize: 8bit or 4bit weights; where a prompt was trained on others, it warns.
    Raises ValueError for prompts of different tasks, for a prompt of another model, for one that the model's type
    cannot hold or that leaves it in its own pass, and for what the cards do not say and was not given.
    """
    given = [folders] if isinstance(folders, str | Path) else folders
    paths = [hub_place(folder) or Path(folder) for folder in given]
    if not paths:
        raise ValueError("no prompt was given; name at least one folder that `softprompt train` wrote")
    prompts = [load_prompt(path) for path in paths]
    cards = [prompt.card for prompt in prompts]
    if task is None:
        tasks = shared_tasks(cards, paths, advice="use prompts of one task, or name the task with --task")
    else:
        tasks = [get_task(task) if isinstance(task, str) else task] * len(cards)
    lm = model
    if not isinstance(lm, FrozenLM):
        lm = load_for(prompts[0], lm, device=device, dtype=dtype, quantize=quantize)
    for prompt, path in zip(prompts, paths, strict=True):
        check_fits(prompt, lm)
        check_runs(prompt.values, lm)
        tell_quantization(prompt.card, path, lm)
    forms = [form_of(card, path, tasks[0], lm) for card, path in zip(cards, paths, strict=True)]
    return SavedPrompts(lm, paths, prompts, tasks, forms, shared_scoring(cards, paths, tasks[0], scoring))


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
    """The task a prompt was trained for; of a task from your own file, rebuilt from the card. None: not recorded.

    ValueError for a task of the catalogue whose labels are not the card's.
    """
    inputs, targets = card.text.get("inputs_template"), card.text.get("targets_template")
    if inputs and targets:
        return file_task(
            inputs=inputs,
            targets=targets,
            labels=card.labels or None,
            metric=card.metric,
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
    if card.labels and set(card.labels) != set(task.labels or ()):
        recorded, known = (", ".join(map(repr, labels or ("none",))) for labels in (card.labels, task.labels))
        raise ValueError(
            f"the card has the labels {recorded}, and {task.name} has {known}; correct the card, or give it the "
            "templates of a task of its own"
        )
    return task


def shared_tasks(
    cards: Sequence[Card], names: Sequence[Path | str], advice: str = "use prompts of one task"
) -> list[Task]:
    """Each card's task, for prompts that vote: of one name, labels and targets. Their inputs may be put into unlike
    words, so a record has the fields of all. What records no task takes any text with any answer (or its labels).

    ValueError, with the names and the advice, for prompts of different tasks.
    """
    tasks: dict[str | None, Task] = {}
    for card, name in zip(cards, names, strict=True):
        for own, first in zip(_answers_of(card), _answers_of(cards[0]), strict=True):
            if own != first:
                raise ValueError(f"{names[0]} is a prompt for {first} and {name} for {own}; {advice}")
        template = card.text.get("inputs_template")
        if template not in tasks:
            labels = card.labels or None
            any_text = file_task(inputs="{inputs}", targets="{targets}", labels=labels, name="unknown")
            tasks[template] = task_of(card) or any_text
    fields = all_fields(tasks.values())
    return [replace(tasks[card.text.get("inputs_template")], fields=fields) for card in cards]


def _answers_of(card: Card) -> tuple[str, ...]:
    """What must be the same for answers to be counted together, in words."""
    labels = ", ".join(map(repr, card.labels))
    targets = card.text.get("targets_template")
    return (
        card.task or "no task that it names",
        f"the labels {labels}" if labels else "free text",
        f"the targets {targets!r}",
    )


def form_of(card: Card, path: str | Path, task: Task, lm: FrozenLM) -> TextFormat:
    """A card's text format, with room for the longest label (a prompt may be asked about another task).

    ValueError for labels that the model cannot tell apart.
    """
    labels = task.labels or ()
    if not card.text:
        warnings.warn(f"{path} does not record its text format; {lm.name}'s usual one is taken", stacklevel=3)
        form = default_format(lm, max_target_length=4 if labels else 64)
    else:
        form = TextFormat.from_json(card.text)
    return room_for(labels, form, lm.tokenizer)


def shared_scoring(cards: Sequence[Card], paths: Sequence[str | Path], task: Task, given: str | None = None) -> str:
    """How the prompts answer: as given, or as the cards say they were trained. ValueError if these differ."""
    if given is not None:
        check_scoring(given)
        return given
    usual = "rank" if task.labels else "generate"
    trained = [card.recipe.get("scoring") or usual for card in cards]
    for scoring, path in zip(trained, paths, strict=True):
        check_scoring(scoring)
        if scoring != trained[0]:
            raise ValueError(
                f"{paths[0]} was trained with scoring {trained[0]} and {path} with {scoring}; give --scoring"
            )
    return trained[0]
