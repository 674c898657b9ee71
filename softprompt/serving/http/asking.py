"""From a request's inputs to the engine's: the texts and ids that each prompt was trained with.

Nothing here makes a text or an id of its own. The task casts a record, `models.text` encodes, `candidates_of`
gives the labels' ids and `vote` counts: the very code of training and evaluation, told what to do by the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from softprompt.answering import Decoding, candidates_of, form_of, shared_scoring, shared_task, vote
from softprompt.models import FrozenLM, Rendered, Row, TextFormat, default_format, encode_examples
from softprompt.prompts import Card
from softprompt.serving import Part, PromptTable, Registered, Request
from softprompt.tasks import Example, Task, examples_of, file_task

CACHED = 4_096  # prompts whose task and text format are remembered; ours
BARE_TASK = file_task(inputs="{inputs}", targets="{targets}", name="unknown")


@dataclass(frozen=True)
class Worn:
    """A prompt as requests wear it; the bare model where `sha256` is None."""

    sha256: str | None
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
    worn: tuple[Worn, ...]
    rows: tuple[Row, ...]

    @property
    def was_cut(self) -> bool:
        """Whether a length limit cut its input."""
        return any(row.was_cut for row in self.rows)

    @property
    def num_input_tokens(self) -> int:
        """Tokens of the input, prompts not counted: those of the longest where formats differ."""
        return max(len(row.ids) for row in self.rows)


class Asker:
    """Makes the engine's requests for one model."""

    def __init__(self, lm: FrozenLM, table: PromptTable):
        self.lm, self.table = lm, table
        self.describe = lru_cache(CACHED)(self._describe)

    def worn(self, prompts: Sequence[str | None], *, is_text: bool = True) -> tuple[Worn, ...]:
        """The prompts' tasks and text formats. is_text: the bare model continues a text, rather than answers it.

        ValueError for prompts of different tasks, which cannot vote.
        """
        if None in prompts:
            return (self._bare(is_text),)
        hashes = [sha256 for sha256 in prompts if sha256 is not None]
        made = tuple(self.describe(self.table.get(sha256)) for sha256 in hashes)
        if len(made) > 1:
            shared_task([one.card for one in made if one.card], [Path(sha256[:12]) for sha256 in hashes])
        return made

    def questions(self, worn: Sequence[Worn], items: Sequence[str | dict[str, Any]]) -> list[Question]:
        """The examples of finished inputs and of records, in order. ValueError names the input that is at fault.

        Control tokens in a prompt's inputs are text; in what the bare model continues they are meant.
        """
        made = []
        for number, item in enumerate(items):
            if worn[0].sha256 is None and isinstance(item, str):
                item = Rendered(item)
            try:
                examples = examples_of(worn[0].task, item)
                rows = {one.form: self._rows(examples, one.form) for one in worn}
            except ValueError as error:
                raise ValueError(f"input {number}: {error}" if len(items) > 1 else str(error)) from error
            for place, example in enumerate(examples):
                made.append(Question(number, example, tuple(worn), tuple(rows[one.form][place] for one in worn)))
        return made

    def turns(self, worn: Sequence[Worn], messages: Sequence[dict[str, str]]) -> Question:
        """A conversation as one question. A prompt takes one message of the user's: what it was trained on."""
        if worn[0].sha256 is None:
            if not self.lm.tokenizer.has_chat_template:
                raise ValueError(f"{self.lm.name} has no chat template; ask for a completion instead")
            text = self.lm.tokenizer.conversation(messages)
            form = replace(worn[0].form, starts_with_bos=False)
            return self.questions([replace(worn[0], form=form)], [text])[0]
        if [message["role"] for message in messages] != ["user"]:
            raise ValueError(
                f"{len(messages)} messages, but a prompt takes one, of role user: its input, as in training"
            )
        return self.questions(worn, [messages[0]["content"]])[0]

    def completion(self, question: Question, decoding: Decoding, timeout: float) -> Request:
        """Asks for text."""
        return Request(
            parts=tuple(
                Part(ids=row.ids, prompt=one.sha256, answer_of=partial(answer_of, one.form))
                for one, row in zip(question.worn, question.rows, strict=True)
            ),
            decoding=decoding,
            vote=partial(vote, question.worn[0].task, question.example),
            timeout=timeout,
        )

    def classification(self, question: Question, labels: Sequence[str] | None, timeout: float) -> Request:
        """Asks for the log-probabilities of labels: those given, or the example's own. ValueError without any."""
        task, example = question.worn[0].task, question.example
        if labels:
            example, task = replace(example, choices=tuple(labels)), replace_labels(task, labels)
        elif not (example.choices or task.labels):
            raise ValueError("there are no labels to score: this prompt writes free text; give labels, or complete")
        scored = [candidates_of(task, example, one.form, self.lm.tokenizer, {}) for one in question.worn]
        return Request(
            parts=tuple(
                Part(ids=row.ids, prompt=one.sha256, candidates=tuple(map(tuple, ids)))
                for one, row, (_, ids) in zip(question.worn, question.rows, scored, strict=True)
            ),
            labels=tuple(scored[0][0]),
            vote=partial(vote, task, example),
            timeout=timeout,
        )

    def _rows(self, examples: Sequence[Example], form: TextFormat) -> list[Row]:
        return encode_examples(examples, form, self.lm.tokenizer, with_targets=False)

    def _describe(self, prompt: Registered) -> Worn:
        sha256, card = prompt.sha256, prompt.card
        place = [Path(sha256[:12])]
        task = shared_task([card], place)
        return Worn(sha256, task, form_of(card, place[0], task, self.lm), shared_scoring([card], place, task), card)

    def _bare(self, is_text: bool) -> Worn:
        longest = self.lm.max_length or 4_096  # where a model states no limit; ours
        changes: dict[str, Any] = {"max_input_length": longest}
        if is_text and not self.lm.is_encoder_decoder:
            changes |= {"separator": "", "leading_space": False}
        return Worn(None, BARE_TASK, default_format(self.lm, **changes), "generate")


def answer_of(form: TextFormat, text: str) -> str:
    """A part's answer as votes count it."""
    return form.answer_of(text.strip())


def shown(form: TextFormat, text: str) -> str:
    """Generated text as a client gets it: without what the text format puts in front of every target."""
    text = form.answer_of(text.strip()) if form.sentinel != "none" else text
    return text.lstrip() if form.leading_space else text


def replace_labels(task: Task, labels: Sequence[str]) -> Task:
    """The task with other legal answers."""
    return file_task(inputs="{inputs}", targets="{targets}", labels=tuple(labels), name=task.name)
