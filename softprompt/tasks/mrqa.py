"""MRQA 2019: SQuAD and the other sets to train on, and the six to be tried on without training; SQuAD 1.1 itself.

Text as T5's squad preprocessor has it, scores as T5's squad metric (t5/data/preprocessors.py,
t5/evaluation/qa_utils.py). Counts are those of the shared task's release. Records may be MRQA's, the hub's
(flat) or SQuAD 1.1's (articles of paragraphs).
"""

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from softprompt.tasks.metrics import squad_answer, squad_metrics
from softprompt.tasks.task import UNLABELLED, Example, Hub, Task, column, own_id, text_column

Record = Mapping[str, Any]

_PUNCTUATION = re.compile(f"([{re.escape(string.punctuation)}])")
_SPACES = re.compile("[ \t\n\f\r]+")

MASK_SUFFIX = " [MASK]."
"""What Splinter's few-shot files append to every question; no part of the question."""


def pad_punctuation(text: str) -> str:
    """The text with a space on both sides of every ASCII punctuation mark and single spaces throughout.

    T5 keeps a space at either end, which its tokenizer then drops; here it is dropped at once.
    """
    return _SPACES.sub(" ", _PUNCTUATION.sub(r" \1 ", text)).strip(" ")


def cast_qa(record: Record, split: str) -> list[Example]:
    """One example for each question of the record; none for MRQA's header line."""
    if "header" in record:
        return []
    return [_example(question, split) for question in _questions(record)]


def _questions(record: Record) -> Iterator[Record]:
    """Flat questions that carry their context, from an article, a context with questions, or one question."""
    if "paragraphs" in record:
        for paragraph in record["paragraphs"]:
            yield from _questions(paragraph)
    elif "qas" in record:
        for question in record["qas"]:
            yield {**question, "context": column(record, "context")}
    else:
        yield record


def _example(question: Record, split: str) -> Example:
    context = text_column(question, "context")
    asked = text_column(question, "question").removesuffix(MASK_SUFFIX)
    if not context.strip() or not asked.strip():
        raise ValueError(f"the input is empty: no text in {'question' if context.strip() else 'context'}")
    references = tuple(dict.fromkeys(pad_punctuation(answer) for answer in _answers(question, split)))
    if not references and split != "test":
        raise ValueError("a question has no answers")
    if "" in references:
        raise ValueError("the target is empty: an answer without text")
    return Example(
        inputs=f"question: {pad_punctuation(asked)} context: {pad_punctuation(context)}",
        targets=references[0] if references else UNLABELLED,
        id=own_id(question),
        references=references,
        source=context,
    )


def _answers(question: Record, split: str) -> list[str]:
    """The accepted answers' texts; where a record only has spans of the context, what they span."""
    if "answers" in question or ("detected_answers" not in question and split != "test"):
        answers = column(question, "answers")
        if isinstance(answers, Mapping):
            return list(column(answers, "text"))
        return [answer["text"] if isinstance(answer, Mapping) else answer for answer in answers or ()]
    context = question["context"]
    # Both ends of a char_span are inside it (MRQA shared task's README).
    spans = [answer["char_spans"][0] for answer in question.get("detected_answers") or ()]
    return [context[start : end + 1] for start, end in spans]


def _task(name: str, folder: str, subset: str, counts: Mapping[str, int]) -> Task:
    trained = "train" in counts
    files = {"dev": ("dev.jsonl", "dev.jsonl.gz")}
    hub = {"dev": "validation" if trained else "test"}
    # The Stanford robustqa files of a set without training data are parts of its official dev set.
    parts = {"dev": ("robustqa_train.json", "robustqa_val.json")}
    if trained:
        files |= {"train": ("train.jsonl", "train.jsonl.gz")}
        parts = {"train": ("train_*", "train_*/*")}
        hub |= {"train": "train"}
    return Task(
        name=f"mrqa/{name}",
        labels=None,
        cast=cast_qa,
        metrics=squad_metrics,
        answer=squad_answer,
        fields=("question", "context"),
        folder=f"mrqa/{folder}",
        files=files,
        parts=parts,
        hub=Hub(id="mrqa-workshop/mrqa", config="plain_text", splits=hub, subset=subset),
        counts=counts,
        unique_ids=True,
    )


SQUAD = _task("squad", "SQuAD", "SQuAD", {"train": 86588, "dev": 10507})
# As it was released, which the paper trains on and chooses by F1 (section 5): MRQA's is less by the questions whose
# answers its tokenizer did not find again.
SQUAD_V1_1 = replace(
    SQUAD,
    name="squad/v1.1",
    folder="squad",
    files={"train": ("train-v1.1.json",), "dev": ("dev-v1.1.json",)},
    parts={},
    hub=Hub(id="rajpurkar/squad", config="plain_text", splits={"train": "train", "dev": "validation"}),
    counts={"train": 87599, "dev": 10570},
    chosen_by="f1",
)
NEWSQA = _task("newsqa", "NewsQA", "NewsQA", {"train": 74160, "dev": 4212})
TRIVIAQA = _task("triviaqa", "TriviaQA-web", "TriviaQA-web", {"train": 61688, "dev": 7785})
SEARCHQA = _task("searchqa", "SearchQA", "SearchQA", {"train": 117384, "dev": 16980})
HOTPOTQA = _task("hotpotqa", "HotpotQA", "HotpotQA", {"train": 72928, "dev": 5901})
NATURAL_QUESTIONS = _task(
    "natural_questions", "NaturalQuestionsShort", "NaturalQuestionsShort", {"train": 104071, "dev": 12836}
)

BIOASQ = _task("bioasq", "BioASQ", "BioASQ", {"dev": 1504})
DROP = _task("drop", "DROP", "DROP", {"dev": 1503})
DUORC = _task("duorc", "DuoRC.ParaphraseRC", "DuoRC.ParaphraseRC", {"dev": 1501})
RACE = _task("race", "RACE", "RACE", {"dev": 674})
RELATION_EXTRACTION = _task("relation_extraction", "RelationExtraction", "RelationExtraction", {"dev": 2948})
TEXTBOOKQA = _task("textbookqa", "TextbookQA", "TextbookQA", {"dev": 1503})
