"""SuperGLUE's eight tasks and its two diagnostic sets, in T5's text without the task's name.

Text, targets and scoring follow t5/data/preprocessors.py, glue_utils.py and postprocessors.py. Counts are the
paper's table 7 (after casting: WSC trains on the 259 examples with label 1, ReCoRD on one per gold answer).
Records may be the official files', nested as released, or the hub's, which are flat.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from softprompt.tasks.labelled import ENTAILMENT, fields_task, labelled_task
from softprompt.tasks.metrics import (
    accuracy,
    f1_with_invalid,
    group_em,
    macro_f1,
    matthews,
    scored,
    squad_answer,
    squad_metrics_by_group,
)
from softprompt.tasks.task import (
    UNLABELLED,
    Answer,
    Example,
    Hub,
    Metrics,
    Task,
    column,
    label_answer,
    label_of,
    labelled,
    named,
    text_column,
)

Record = Mapping[str, Any]

BOOLEAN = ("False", "True")
CB_LABELS = ("entailment", "contradiction", "neutral")
CHOICES = ("choice1", "choice2")

# Dropped before WSC's words are compared (t5/data/postprocessors.py, wsc_simple).
DETERMINERS = {
    *("a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some", "that", "the"),
    *("their", "these", "this", "those", "which", "whose", "your"),
}

# Texts whose span2_index does not point at the pronoun: how each starts, the words around the pronoun, and
# the same words with the pronoun marked (t5/data/preprocessors.py, wsc_simple).
WSC_MISPLACED = (
    ("The boy continued to whip the pony", '"Good for him,"', '"Good for *him* ,"'),
    ("When they had eventually calmed down a bit", "want to use it ,", "want to use *it* ,"),
)

FILES = {"train": ("train.jsonl",), "dev": ("val.jsonl", "dev.jsonl"), "test": ("test.jsonl",)}
PARTS = {"train": ("train_*",), "dev": ("val_*", "dev_*"), "test": ("test_*",)}


def about(name: str, folder: str, train: int, dev: int, test: int, *, config: str | None = None) -> dict[str, Any]:
    """What a task of SuperGLUE is called and where it lies; how many examples each split has."""
    return {
        "name": f"superglue/{name}",
        "prefix": name,
        "folder": f"superglue/{folder}",
        "files": FILES,
        "parts": PARTS,
        "hub": Hub(id="aps/super_glue", config=config or name),
        "counts": {"train": train, "dev": dev, "test": test},
    }


def cast_boolq(record: Record, split: str) -> list[Example]:
    """One example; the original release's title, and its 'answer', are put as SuperGLUE has them."""
    passage = text_column(record, "passage")
    original = "title" in record
    if original:
        passage = f"{text_column(record, 'title')} -- {passage}"
    targets = label_of(record, split, BOOLEAN, *(("answer", "label") if original else ("label",)))
    example = Example(
        inputs=named({"passage": passage, "question": text_column(record, "question")}),
        targets=targets,
        # The original release has no ids; an 'idx' added to it elsewhere numbers passages.
        id="" if original else str(record.get("idx", "")),
        references=labelled(targets),
        source=passage,
    )
    return [example]


def cast_multirc(record: Record, split: str) -> list[Example]:
    """One example for each answer option; `group` is the question."""
    if "passage" not in record:
        return [_multirc_example(record, split)]
    passage = record["passage"]
    examples = []
    for question in column(passage, "questions"):
        for answer in column(question, "answers"):
            option = {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": record.get("idx"), "question": question["idx"], "answer": answer["idx"]},
            }
            if "label" in answer:
                option["label"] = answer["label"]
            examples.append(_multirc_example(option, split))
    return examples


def _multirc_example(option: Record, split: str) -> Example:
    joined = named({name: text_column(option, name) for name in ("question", "answer", "paragraph")})
    index = _index(option, split)
    targets = label_of(option, split, BOOLEAN)
    group = f"{index['paragraph']}-{index['question']}" if index else None
    return Example(
        inputs=re.sub("</?b>", "", joined.replace("<br>", " ")),
        targets=targets,
        id=f"{group}-{index['answer']}" if index else "",
        references=labelled(targets),
        group=group,
        source=option["paragraph"],
    )


def multirc_metrics(answer: Answer) -> Metrics:
    """{"em", "f1"}: questions all of whose options are judged right, and F1 of 'True' over all options."""
    f1 = scored(answer, f1=partial(f1_with_invalid, positive="True"))

    def metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        over_options = f1(predictions, examples)
        answers = [answer(*pair) for pair in zip(predictions, examples, strict=True)]
        return {"em": group_em(answers, examples), **over_options}

    return metrics


def _index(record: Record, split: str) -> Any:
    """The record's place in its file; None for one that is only asked about and has none."""
    return record.get("idx") if split == "test" else column(record, "idx")


def cast_record(record: Record, split: str) -> list[Example]:
    """Training: one example for each gold answer of each query. Otherwise one for each query.

    `entities` are a list, or a text with one on each line.
    """
    examples = []
    for query in _record_queries(record):
        entities, answers = column(query, "entities"), tuple(query.get("answers") or ())
        entities = tuple(entities.splitlines() if isinstance(entities, str) else entities)
        if split != "test" and not answers:
            raise ValueError("a query has no answers")
        index = _index(query, split)
        id = f"{index['passage']}-{index['query']}" if index else ""
        passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text_column(query, "passage"))
        question = text_column(query, "query")
        highlights_joined = passage.replace("\n@highlight\n", ". ")
        example = Example(
            inputs=named({"query": question, "entities": ", ".join(entities), "passage": highlights_joined}),
            targets=answers[0] if answers else UNLABELLED,
            id=id,
            references=answers,
            group=id or None,
            source=query["passage"],
            choices=entities,
        )
        if split != "train":
            examples.append(example)
            continue
        for number, first in enumerate(answers):
            references = (first, *(answer for answer in answers if answer != first))
            examples.append(replace(example, targets=first, id=f"{id}-{number}", references=references))
    return examples


def _record_queries(record: Record) -> Iterator[Record]:
    if "qas" not in record:
        yield record
        return
    passage = column(record, "passage")
    text = passage["text"]
    # Both ends of a span are inside it. TFDS and the hub sort the distinct strings.
    entities = sorted({text[span["start"] : span["end"] + 1] for span in passage["entities"]})
    for query in record["qas"]:
        yield {
            "passage": text,
            "query": column(query, "query"),
            "entities": entities,
            "answers": sorted({answer["text"] for answer in query.get("answers") or ()}),
            "idx": {"passage": column(record, "idx", "id"), "query": column(query, "idx", "id")},
        }


def cast_wsc(record: Record, split: str) -> list[Example]:
    """The text with its pronoun as *pronoun*, the referent as targets; in training only where it is right.

    A record that is only asked about may lack the referent.
    """
    spans = record.get("target", record)
    label = label_of(record, split, BOOLEAN)
    if split == "train" and label == "False":
        return []
    text = text_column(record, "text")
    if not text.strip():
        raise ValueError("the input is empty: no text in text")
    marked, targets = mark_pronoun(text, column(spans, "span2_text"), int(column(spans, "span2_index"))), UNLABELLED
    if split != "test" or "span1_text" in spans:
        targets = _referent(text, column(spans, "span1_text"), int(column(spans, "span1_index")))
    example = Example(
        inputs=marked,
        targets=targets,
        id=str(record.get("idx", "")),
        references=labelled(label),
        source=text,
    )
    return [example]


def mark_pronoun(text: str, pronoun: str, index: int) -> str:
    """The text with the word at `index`, counted over single spaces, as *pronoun*.

    Raises ValueError if another word stands there, but for the two texts known to be so.
    """
    for start, words, marked in WSC_MISPLACED:
        if text.startswith(start) and words in text:
            return text.replace(words, marked).strip()
    words = text.split(" ")
    found = words[index] if 0 <= index < len(words) else ""
    if found != pronoun:
        raise ValueError(f"word {index} of the text is '{found}', but span2_text is '{pronoun}'")
    return " ".join([*words[:index], f"*{pronoun}*", *words[index + 1 :]]).strip()


def _referent(text: str, referent: str, index: int) -> str:
    """As the text spells it, where span1_text does not: TFDS's super_glue/wsc.fixed, which T5 uses."""
    if not referent:
        raise ValueError("the target is empty: no text in span1_text")
    words = text.split()
    if referent in text or index >= len(words):
        return referent
    first = referent[0].lower() if words[index][0].islower() else referent[0].upper()
    fixed = (first + referent[1:]).rstrip(".").replace("\n", " ")
    return fixed if fixed in text else referent


def wsc_answer(prediction: str, example: Example) -> str | None:
    """'True' if the prediction names the example's referent, else 'False'; None if it says nothing.

    It does if the words of one are among the words of the other, without determiners and capitals; never if
    just one of them has an apostrophe ("Bob" is not "Bob's hat"). Where the referent is unknown, as in a finished
    line, the answer is the prediction's own words.
    """
    words, wanted = _wsc_words(prediction), _wsc_words(example.targets)
    if not words:
        return None
    if example.targets in ("", UNLABELLED):
        return " ".join(words)
    if ("'" in prediction) != ("'" in example.targets):
        return "False"
    return str(words.keys() <= wanted.keys() or wanted.keys() <= words.keys())


def _wsc_words(text: str) -> dict[str, None]:
    """The text's words, each once and in their order, without determiners and capitals."""
    return dict.fromkeys(word for word in text.lower().split() if word not in DETERMINERS)


BOOLQ = labelled_task(BOOLEAN, cast_boolq, fields=("question", "passage"), **about("boolq", "BoolQ", 9427, 3270, 3245))

CB = fields_task(
    CB_LABELS,
    ("hypothesis", "premise"),
    {"accuracy": accuracy, "macro_f1": partial(macro_f1, labels=CB_LABELS)},
    source=("premise",),
    **about("cb", "CB", 250, 56, 250),
)

COPA = fields_task(
    CHOICES,
    ("choice1", "choice2", "premise", "question"),
    source=("premise",),
    **about("copa", "COPA", 400, 100, 500),
)

MULTIRC = replace(
    labelled_task(
        BOOLEAN,
        cast_multirc,
        fields=("paragraph", "question", "answer"),
        **about("multirc", "MultiRC", 27243, 4848, 9693),
    ),
    metrics=multirc_metrics(label_answer(BOOLEAN)),
)

RECORD = Task(
    labels=None,
    cast=cast_record,
    metrics=squad_metrics_by_group,
    answer=squad_answer,
    fields=("passage", "query", "entities"),
    initial_texts=("commonsense", "reasoning", "reading", "comprehension"),
    **about("record", "ReCoRD", 138854, 10000, 10000),
)

RTE = fields_task(
    ENTAILMENT,
    ("hypothesis", "premise"),
    source=("premise",),
    **about("rte", "RTE", 2490, 277, 3000),
)

WIC = fields_task(BOOLEAN, ("sentence1", "sentence2", "word"), **about("wic", "WiC", 5428, 638, 1400))

WSC = Task(
    labels=None,
    cast=cast_wsc,
    metrics=scored(wsc_answer, accuracy=accuracy),
    answer=wsc_answer,
    fields=("text", "span2_text", "span2_index"),
    initial_texts=("commonsense", "pronoun", "resolution"),
    omits=True,
    **{**about("wsc", "WSC", 259, 104, 146, config="wsc.fixed"), "prefix": "wsc:"},
)

# The diagnostic sets are cast as RTE and are only ever scored. AX-b is reported by Matthews correlation
# (Wang et al. 2019, SuperGLUE, section 3.3).
AXB = fields_task(
    ENTAILMENT,
    {"hypothesis": ("sentence2",), "premise": ("sentence1",)},
    {"matthews": matthews},
    source=("premise",),
    name="superglue/axb",
    prefix=RTE.prefix,
    folder="superglue/AX-b",
    files={"test": ("AX-b.jsonl", "test.jsonl")},
    hub=Hub(id="aps/super_glue", config="axb", splits={"test": "test"}),
    counts={"test": 1104},
)

AXG = replace(
    RTE,
    name="superglue/axg",
    folder="superglue/AX-g",
    files={"test": ("AX-g.jsonl", "test.jsonl")},
    parts={},
    hub=Hub(id="aps/super_glue", config="axg", splits={"test": "test"}),
    counts={"test": 356},
)
