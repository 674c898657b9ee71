"""SuperGLUE's eight tasks and its two diagnostic sets, in T5's text without the task's name.

Text, targets and scoring follow t5/data/preprocessors.py, glue_utils.py and postprocessors.py. Counts are the
paper's table 7 (after casting: WSC trains on the 259 examples with label 1, ReCoRD on one per gold answer).
Records may be the official files', nested as released, or the hub's, which are flat.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from softprompt.tasks.metrics import (
    accuracy,
    check_labelled,
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
    Example,
    Hub,
    Task,
    column,
    fields_cast,
    label_answer,
    label_of,
    labelled,
    named,
    text_column,
)

Record = Mapping[str, Any]

BOOLEAN = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
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

_FILES = {"train": ("train.jsonl",), "dev": ("val.jsonl", "dev.jsonl"), "test": ("test.jsonl",)}
_PARTS = {"train": ("train_*",), "dev": ("val_*", "dev_*"), "test": ("test_*",)}


def _hub(config: str, *splits: str) -> Hub:
    names = {"train": "train", "dev": "validation", "test": "test"}
    return Hub(id="aps/super_glue", config=config, splits={split: names[split] for split in splits or names})


def _counts(train: int, dev: int, test: int) -> dict[str, int]:
    return {"train": train, "dev": dev, "test": test}


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
    return [_multirc_example(option, split) for option in _multirc_options(record)]


def _multirc_options(record: Record) -> Iterator[Record]:
    if "passage" not in record:
        yield record
        return
    passage = record["passage"]
    for question in column(passage, "questions"):
        for answer in column(question, "answers"):
            indices = {"paragraph": record.get("idx"), "question": question["idx"], "answer": answer["idx"]}
            texts = {"paragraph": passage["text"], "question": question["question"], "answer": answer["text"]}
            yield texts | {"idx": indices} | ({"label": answer["label"]} if "label" in answer else {})


def _multirc_example(option: Record, split: str) -> Example:
    joined = named({name: text_column(option, name) for name in ("question", "answer", "paragraph")})
    index = column(option, "idx")
    targets = label_of(option, split, BOOLEAN)
    return Example(
        inputs=re.sub("</?b>", "", joined.replace("<br>", " ")),
        targets=targets,
        id=f"{index['paragraph']}-{index['question']}-{index['answer']}",
        references=labelled(targets),
        group=f"{index['paragraph']}-{index['question']}",
        source=option["paragraph"],
    )


def multirc_metrics(predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """{"em", "f1"}: questions all of whose options are judged right, and F1 of 'True' over all options."""
    check_labelled(predictions, examples)
    answer = label_answer(BOOLEAN)
    answers = [answer(*pair) for pair in zip(predictions, examples, strict=True)]
    right = [example.targets for example in examples]
    return {"em": group_em(answers, examples), "f1": f1_with_invalid(answers, right, positive="True")}


def cast_record(record: Record, split: str) -> list[Example]:
    """Training: one example for each gold answer of each query. Otherwise one for each query."""
    return [example for query in _record_queries(record) for example in _record_examples(query, split)]


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


def _record_examples(query: Record, split: str) -> list[Example]:
    entities, answers = tuple(column(query, "entities")), tuple(query.get("answers") or ())
    if split != "test" and not answers:
        raise ValueError("a query has no answers")
    index = column(query, "idx")
    id = f"{index['passage']}-{index['query']}"
    example = Example(
        inputs=_record_inputs(query, entities),
        targets=answers[0] if answers else UNLABELLED,
        id=id,
        references=answers,
        group=id,
        source=query["passage"],
        choices=entities,
    )
    if split != "train":
        return [example]
    return [_with_target(example, number) for number in range(len(answers))]


def _record_inputs(query: Record, entities: Sequence[str]) -> str:
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", text_column(query, "passage"))
    query_text = text_column(query, "query")
    highlights_joined = passage.replace("\n@highlight\n", ". ")
    return named({"query": query_text, "entities": ", ".join(entities), "passage": highlights_joined})


def _with_target(example: Example, number: int) -> Example:
    first = example.references[number]
    others = tuple(answer for answer in example.references if answer != first)
    return Example(
        inputs=example.inputs,
        targets=first,
        id=f"{example.id}-{number}",
        references=(first, *others),
        group=example.group,
        source=example.source,
        choices=example.choices,
    )


def cast_wsc(record: Record, split: str) -> list[Example]:
    """The text with its pronoun as *pronoun*, the referent as targets; in training only where it is right."""
    spans = record.get("target", record)
    label = label_of(record, split, BOOLEAN)
    if split == "train" and label == "False":
        return []
    text = text_column(record, "text")
    if not text.strip():
        raise ValueError("the input is empty: no text in text")
    example = Example(
        inputs=mark_pronoun(text, column(spans, "span2_text"), int(column(spans, "span2_index"))),
        targets=_referent(text, column(spans, "span1_text"), int(column(spans, "span1_index"))),
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
    return {word: None for word in text.lower().split() if word not in DETERMINERS}


def _rte_like(name: str, premise: str, hypothesis: str, **fields: Any) -> Task:
    return Task(
        name=f"superglue/{name}",
        labels=ENTAILMENT,
        cast=fields_cast({"hypothesis": (hypothesis,), "premise": (premise,)}, ENTAILMENT, source="premise"),
        answer=label_answer(ENTAILMENT),
        initial_texts=ENTAILMENT,
        prefix="rte",
        **fields,
    )


_boolean, _cb = label_answer(BOOLEAN), label_answer(CB_LABELS)
_choices, _entailment = label_answer(CHOICES), label_answer(ENTAILMENT)

BOOLQ = Task(
    name="superglue/boolq",
    labels=BOOLEAN,
    cast=cast_boolq,
    metrics=scored(_boolean, accuracy=accuracy),
    answer=_boolean,
    initial_texts=BOOLEAN,
    prefix="boolq",
    folder="superglue/BoolQ",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("boolq"),
    counts=_counts(9427, 3270, 3245),
)

CB = Task(
    name="superglue/cb",
    labels=CB_LABELS,
    cast=fields_cast({"hypothesis": ("hypothesis",), "premise": ("premise",)}, CB_LABELS, source="premise"),
    metrics=scored(_cb, accuracy=accuracy, macro_f1=partial(macro_f1, labels=CB_LABELS)),
    answer=_cb,
    initial_texts=CB_LABELS,
    prefix="cb",
    folder="superglue/CB",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("cb"),
    counts=_counts(250, 56, 250),
)

COPA = Task(
    name="superglue/copa",
    labels=CHOICES,
    cast=fields_cast(
        {name: (name,) for name in ("choice1", "choice2", "premise", "question")}, CHOICES, source="premise"
    ),
    metrics=scored(_choices, accuracy=accuracy),
    answer=_choices,
    initial_texts=CHOICES,
    prefix="copa",
    folder="superglue/COPA",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("copa"),
    counts=_counts(400, 100, 500),
)

MULTIRC = Task(
    name="superglue/multirc",
    labels=BOOLEAN,
    cast=cast_multirc,
    metrics=multirc_metrics,
    answer=_boolean,
    initial_texts=BOOLEAN,
    prefix="multirc",
    folder="superglue/MultiRC",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("multirc"),
    counts=_counts(27243, 4848, 9693),
)

RECORD = Task(
    name="superglue/record",
    labels=None,
    cast=cast_record,
    metrics=squad_metrics_by_group,
    answer=squad_answer,
    initial_texts=("commonsense", "reasoning", "reading", "comprehension"),
    prefix="record",
    folder="superglue/ReCoRD",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("record"),
    counts=_counts(138854, 10000, 10000),
)

RTE = _rte_like(
    "rte",
    "premise",
    "hypothesis",
    metrics=scored(_entailment, accuracy=accuracy),
    folder="superglue/RTE",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("rte"),
    counts=_counts(2490, 277, 3000),
)

WIC = Task(
    name="superglue/wic",
    labels=BOOLEAN,
    cast=fields_cast({name: (name,) for name in ("sentence1", "sentence2", "word")}, BOOLEAN),
    metrics=scored(_boolean, accuracy=accuracy),
    answer=_boolean,
    initial_texts=BOOLEAN,
    prefix="wic",
    folder="superglue/WiC",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("wic"),
    counts=_counts(5428, 638, 1400),
)

WSC = Task(
    name="superglue/wsc",
    labels=None,
    cast=cast_wsc,
    metrics=scored(wsc_answer, accuracy=accuracy),
    answer=wsc_answer,
    initial_texts=("commonsense", "pronoun", "resolution"),
    prefix="wsc:",
    folder="superglue/WSC",
    files=_FILES,
    parts=_PARTS,
    hub=_hub("wsc.fixed"),
    counts=_counts(259, 104, 146),
)

# The diagnostic sets are cast as RTE and are only ever scored. AX-b is reported by Matthews correlation
# (Wang et al. 2019, SuperGLUE, section 3.3).
AXB = _rte_like(
    "axb",
    "sentence1",
    "sentence2",
    metrics=scored(_entailment, matthews=matthews),
    folder="superglue/AX-b",
    files={"test": ("AX-b.jsonl", "test.jsonl")},
    hub=_hub("axb", "test"),
    counts={"test": 1104},
)

AXG = _rte_like(
    "axg",
    "premise",
    "hypothesis",
    metrics=scored(_entailment, accuracy=accuracy),
    folder="superglue/AX-g",
    files={"test": ("AX-g.jsonl", "test.jsonl")},
    hub=_hub("axg", "test"),
    counts={"test": 356},
)
