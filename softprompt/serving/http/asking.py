"""From a request's inputs to the engine's: the texts and ids that each prompt was trained with.

Nothing here makes a text or an id of its own. The task casts a record, `models.text` encodes, `candidates_of`
gives the labels' ids and `vote` counts: the very code of training and evaluation, told what to do by the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import FiniteFloat

from softprompt.answering import Decoding, candidates_of, form_of, shared_scoring, shared_tasks, vote
from softprompt.base.checked import checked
from softprompt.models import (
    FrozenLM,
    Rendered,
    Row,
    TextFormat,
    check_length,
    default_format,
    encode_examples,
    room_for,
    target_lengths,
)
from softprompt.prompts import Card
from softprompt.serving import MAX_INPUT, MAX_LABEL, MAX_LABELS, MAX_NEW, Part, PromptTable, Registered, Request
from softprompt.tasks import Example, Task, examples_of, examples_of_each, file_task

CACHED = 4_096  # prompts whose task and text format are remembered; ours
MAX_AROUND = 20_000  # characters of a text that stands around each input; ours
MAX_COLUMNS = 16  # places in a template, each of which may be filled with as much as a request may hold; ours
BARE_TASK = file_task(inputs="{inputs}", targets="{targets}", name="unknown")


@dataclass(frozen=True)
class Worn:
    """A prompt as requests wear it; the bare model where `identity` is None."""

    identity: str | None
    task: Task
    form: TextFormat
    scoring: str
    card: Card | None = None


@dataclass(frozen=True)
class Question:
    """One example, and its ids in the text format of each prompt that answers."""

    item: int
    """Which of the request's inputs it came from."""
    example: Example
    worn: Sequence[Worn]
    rows: tuple[Row, ...]
    is_one_of_several: bool
    """Whether that input is several examples."""


class Asker:
    """Makes the engine's requests for one model."""

    def __init__(self, lm: FrozenLM, table: PromptTable):
        self.lm, self.table = lm, table
        self.describe = lru_cache(CACHED)(self._describe)
        """A registered prompt as requests wear it."""

    def worn(self, prompts: Sequence[str | None], *, is_text: bool = True) -> tuple[Worn, ...]:
        """The prompts' tasks and text formats. is_text: the bare model continues a text, rather than answers it.

        ValueError for prompts of different tasks, which cannot vote.
        """
        if None in prompts:
            changes: dict[str, Any] = {"max_input_length": self.lm.max_length or MAX_INPUT}
            if is_text and not self.lm.is_encoder_decoder:
                changes |= {"separator": "", "leading_space": False}
            return (Worn(None, BARE_TASK, default_format(self.lm, **changes), "generate"),)
        worn = tuple(self.describe(self.table.get(identity)) for identity in prompts if identity is not None)
        if len(worn) == 1:
            return worn
        tasks = shared_tasks([one.card for one in worn if one.card], [str(one.identity)[:12] for one in worn])
        return tuple(replace(one, task=task) for one, task in zip(worn, tasks, strict=True))

    def questions(
        self, worn: Sequence[Worn], items: Sequence[str | dict[str, Any]], *, finished: bool = False
    ) -> list[Question]:
        """The examples of texts and of records, in order, as `examples_of` has them.

        The bare model has no template: its texts are finished, and control tokens in what it continues are meant, where
        in a prompt's inputs they are text. ValueError names the input that is at fault.
        """
        questions = []
        for number, item in enumerate(items):
            if worn[0].identity is None and isinstance(item, str):
                item, finished = Rendered(item), True
            try:
                asked = examples_of_each([one.task for one in worn], partial(examples_of, item=item, finished=finished))
                encoded: dict[TextFormat, list[Row]] = {}
                for one, examples in zip(worn, asked, strict=True):
                    if one.form not in encoded:
                        encoded[one.form] = encode_examples(examples, one.form, self.lm.tokenizer, with_targets=False)
            except ValueError as error:
                raise ValueError(f"input {number}: {error}" if len(items) > 1 else str(error)) from error
            for place, example in enumerate(asked[0]):
                rows = tuple(encoded[one.form][place] for one in worn)
                questions.append(Question(number, example, worn, rows, len(asked[0]) > 1))
        return questions

    def as_they_stand(self, worn: Sequence[Worn], items: Sequence[str | list[int]]) -> list[Question]:
        """Token ids, and texts of which nothing but their own ids is read: no template, separator, begin or end.

        So tools that score texts count tokens as they read them. ValueError for one that is too long to be read.
        """
        questions = []
        for number, item in enumerate(items):
            ids = tuple(self.lm.tokenizer.encode(item) if isinstance(item, str) else item)
            if self.lm.max_length is None and len(ids) > MAX_INPUT:
                raise ValueError(f"input {number} has {len(ids)} tokens, but {MAX_INPUT} are read; give fewer")
            text = item if isinstance(item, str) else ""
            example = Example(inputs=text, targets="", id=str(number), references=())
            rows = tuple(Row(ids, (), False, number) for _ in worn)
            questions.append(Question(number, example, worn, rows, False))
        return questions

    def turns(self, worn: Sequence[Worn], messages: Sequence[dict[str, str]], *, finished: bool = False) -> Question:
        """A conversation as one question. A prompt takes one message of the user's: what it was trained on."""
        if worn[0].identity is None:
            if not self.lm.tokenizer.has_chat_template:
                raise ValueError(f"{self.lm.name} has no chat template; ask for a completion instead")
            text = self.lm.tokenizer.conversation(messages)
            form = replace(worn[0].form, starts_with_bos=False)
            return self.questions([replace(worn[0], form=form)], [text])[0]
        template = worn[0].task.template
        if template is not None and "{messages}" in template[0]:  # it was trained on chats
            return self.questions(worn, [{"messages": list(messages)}])[0]
        if [message["role"] for message in messages] != ["user"]:
            raise ValueError(
                f"{len(messages)} messages, but a prompt takes one, of role user: its input, as in training"
            )
        return self.questions(worn, [messages[0]["content"]], finished=finished)[0]

    def completion(self, question: Question, decoding: Decoding) -> Request:
        """Asks for text."""
        parts = []
        for worn, row in zip(question.worn, question.rows, strict=True):
            answer_of = partial(_answer_of, worn.form)
            parts.append(Part(ids=row.ids, prompt=worn.identity, answer_of=answer_of))
        return Request(
            parts=tuple(parts), decoding=decoding, vote=partial(vote, question.worn[0].task, question.example)
        )

    def classification(self, question: Question, labels: Sequence[str] | None) -> Request:
        """Asks for the log-probabilities of labels: those given, or the example's own. ValueError without any,
        and for some that the model cannot tell apart.
        """
        task, example = question.worn[0].task, question.example
        if labels:
            example = replace(example, choices=tuple(labels))
            task = file_task(inputs="{inputs}", targets="{targets}", labels=tuple(labels), name=task.name)
        elif not (example.choices or task.labels):
            raise ValueError("there are no labels to score: this prompt writes free text; give labels, or complete")
        texts, parts = (), []
        for worn, row in zip(question.worn, question.rows, strict=True):
            form = room_for(labels or (), worn.form, self.lm.tokenizer)
            texts, candidates = candidates_of(task, example, form, self.lm.tokenizer, {})
            parts.append(Part(ids=row.ids, prompt=worn.identity, candidates=tuple(map(tuple, candidates))))
        return Request(parts=tuple(parts), labels=tuple(texts), vote=partial(vote, task, example))

    def _describe(self, prompt: Registered) -> Worn:
        return worn_by(prompt.card, prompt.identity, prompt.length, self.lm)


def worn_by(card: Card, identity: str, length: int, lm: FrozenLM) -> Worn:
    """A prompt of so many tokens as requests wear it: the task with its labels, the text format and the scoring.

    ValueError for a card by which no request could be answered, and for one that cannot be listed.
    """
    place = [Path(identity[:12])]
    (task,) = shared_tasks([card], place)
    form = form_of(card, place[0], task, lm)
    checked(dict[str, FiniteFloat], card.dev_metrics, "the card: dev_metrics")
    _check_bounds(form, task, lm)
    shortest = encode_examples(
        [Example(inputs="a", targets="", id="", references=())], form, lm.tokenizer, with_targets=False
    )
    check_length(shortest, length, lm, answer_length=form.max_target_length)
    return Worn(identity, task, form, shared_scoring([card], place, task), card)


def _check_bounds(form: TextFormat, task: Task, lm: FrozenLM) -> None:
    """ValueError for a card whose every request would be refused, or which makes much of a short text."""
    template = form.inputs_template or ""
    for name, text in (("inputs_template", template), ("separator", form.separator)):
        if len(text) > MAX_AROUND:
            raise ValueError(
                f"the card's {name} has {len(text):,} characters, but may have {MAX_AROUND:,} to be served"
            )
    columns = sum(name is not None for _, name, _, _ in Formatter().parse(template))
    if columns > MAX_COLUMNS:
        raise ValueError(f"the card's inputs_template has {columns:,} places, but may have {MAX_COLUMNS} to be served")
    labels = task.labels or ()
    if len(labels) > MAX_LABELS:
        raise ValueError(f"the card has {len(labels):,} labels, but may have {MAX_LABELS:,} to be served")
    if (longest := max(target_lengths(labels, form, lm.tokenizer), default=0)) > MAX_LABEL:
        raise ValueError(f"a label of the card has {longest:,} tokens, but may have {MAX_LABEL} to be served")
    if lm.max_length is None and form.max_target_length > MAX_NEW:
        raise ValueError(
            f"the card's max_target_length is {form.max_target_length}, but {lm.name} writes {MAX_NEW} at most"
        )


def _answer_of(form: TextFormat, text: str) -> str:
    """A part's answer as votes count it."""
    return form.answer_of(text.strip())


def shown(form: TextFormat, text: str) -> str:
    """Generated text as a client gets it: without what the text format puts in front of every target."""
    text = _answer_of(form, text) if form.sentinel != "none" else text
    return text.lstrip() if form.leading_space else text
