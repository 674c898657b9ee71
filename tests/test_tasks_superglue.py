"""Casts of SuperGLUE records to text, on records invented here in the official and the hub's format."""

import pytest

from softprompt.tasks import Example, get_task, mixed
from softprompt.tasks.superglue import mark_pronoun


def cast(name, record, split="dev"):
    return get_task(name).cast(record, split)


def one(name, record, split="dev"):
    (example,) = cast(name, record, split)
    return example


BOOLQ = {"question": "is tin a metal", "passage": "Tin -- Tin is a metal.", "idx": 5, "label": True}


def test_boolq():
    assert one("boolq", BOOLQ) == Example(
        inputs="passage: Tin -- Tin is a metal. question: is tin a metal",
        targets="True",
        id="5",
        references=("True",),
        source="Tin -- Tin is a metal.",
    )
    assert one("boolq", BOOLQ | {"label": 0}).targets == "False"


def test_boolq_original_release_joins_title_and_passage():
    record = {"question": "is tin a metal", "title": "Tin", "passage": "Tin is a metal.", "answer": False, "idx": 3}
    example = one("boolq", record, "train")
    assert example.inputs == "passage: Tin -- Tin is a metal. question: is tin a metal"
    assert (example.targets, example.id) == ("False", "")
    unanswered = {key: value for key, value in record.items() if key != "answer"}
    assert one("boolq", unanswered, "test").inputs == example.inputs, "what is asked reads as what was trained on"
    assert one("boolq", unanswered, "test").targets == "<unk>"


def test_test_records_without_a_label_are_unlabelled():
    record = {key: value for key, value in BOOLQ.items() if key != "label"}
    example = one("boolq", record, "test")
    assert (example.targets, example.references) == ("<unk>", ())
    assert one("boolq", record | {"label": -1}, "test").targets == "<unk>"
    with pytest.raises(ValueError, match="no column 'label'; the columns are question, passage, idx"):
        one("boolq", record, "train")
    with pytest.raises(ValueError, match="unknown label -1; the labels are False, True"):
        one("boolq", record | {"label": -1}, "dev")


CB = {"premise": "Ida swam.", "hypothesis": "Ida got wet", "label": "entailment", "idx": 1}


def test_cb_puts_the_hypothesis_first():
    example = one("cb", CB)
    assert example.inputs == "hypothesis: Ida got wet premise: Ida swam."
    assert (example.targets, example.source) == ("entailment", "Ida swam.")
    assert [one("cb", CB | {"label": n}).targets for n in range(3)] == ["entailment", "contradiction", "neutral"]


def test_copa():
    record = {
        "premise": "The lamp went out.",
        "choice1": "The oil ran dry.",
        "choice2": "The room was warm.",
        "question": "cause",
        "label": 0,
        "idx": 9,
    }
    example = one("copa", record)
    assert example.inputs == (
        "choice1: The oil ran dry. choice2: The room was warm. premise: The lamp went out. question: cause"
    )
    assert (example.targets, example.id) == ("choice1", "9")


PASSAGE = {
    "text": "<b>Sent 1: </b>Ola sold fish.<br><b>Sent 2: </b>Per bought one.",
    "questions": [
        {
            "question": "Who sold fish?",
            "answers": [{"text": "Ola", "idx": 4, "label": 1}, {"text": "Per", "idx": 5, "label": 0}],
            "idx": 2,
        }
    ],
}


def test_multirc_makes_an_example_of_each_answer_and_drops_markup():
    first, second = cast("multirc", {"idx": 1, "passage": PASSAGE})
    assert first.inputs == (
        "question: Who sold fish? answer: Ola paragraph: Sent 1: Ola sold fish. Sent 2: Per bought one."
    )
    assert (first.targets, first.id, first.group) == ("True", "1-2-4", "1-2")
    assert (second.targets, second.id, second.group) == ("False", "1-2-5", "1-2")
    assert first.source == second.source == PASSAGE["text"]


def test_multirc_of_the_hub_is_flat():
    record = {
        "paragraph": PASSAGE["text"],
        "question": "Who sold fish?",
        "answer": "Ola",
        "idx": {"paragraph": 1, "question": 2, "answer": 4},
        "label": 1,
    }
    assert one("multirc", record) == cast("multirc", {"idx": 1, "passage": PASSAGE})[0]


TEXT = "Kim Berg met Liv in Bergen.\n@highlight\nThey spoke\n@highlight\nLiv left"
RECORD = {
    "source": "Example news",
    "idx": 3,
    "passage": {
        "text": TEXT,
        "entities": [
            {"start": 0, "end": 7},
            {"start": 13, "end": 15},
            {"start": 20, "end": 25},
            {"start": 61, "end": 63},
        ],
    },
    "qas": [
        {
            "query": "@placeholder went home by train",
            "answers": [
                {"start": 13, "end": 15, "text": "Liv"},
                {"start": 61, "end": 63, "text": "Liv"},
                {"start": 0, "end": 7, "text": "Kim Berg"},
            ],
            "idx": 8,
        }
    ],
}
RECORD_INPUTS = (
    "query: @placeholder went home by train entities: Bergen, Kim Berg, Liv "
    "passage: Kim Berg met Liv in Bergen. They spoke. Liv left"
)


def test_record_trains_on_an_example_of_each_gold_answer():
    first, second = cast("record", RECORD, "train")
    assert first.inputs == second.inputs == RECORD_INPUTS
    assert (first.targets, first.id, first.references) == ("Kim Berg", "3-8-0", ("Kim Berg", "Liv"))
    assert (second.targets, second.id, second.references) == ("Liv", "3-8-1", ("Liv", "Kim Berg"))
    assert first.choices == ("Bergen", "Kim Berg", "Liv")
    assert first.group == second.group == "3-8"


def test_record_is_scored_once_a_query():
    example = one("record", RECORD, "dev")
    assert (example.id, example.references) == ("3-8", ("Kim Berg", "Liv"))


def test_record_reads_its_own_format_and_the_hubs():
    own = RECORD | {"id": "p", "qas": [RECORD["qas"][0] | {"id": "p-q"}]}
    del own["idx"], own["qas"][0]["idx"]
    assert one("record", own).id == "p-p-q"
    flat = {
        "passage": TEXT,
        "query": "@placeholder went home by train",
        "entities": ["Bergen", "Kim Berg", "Liv"],
        "answers": ["Kim Berg", "Liv"],
        "idx": {"passage": 3, "query": 8},
    }
    assert one("record", flat) == one("record", RECORD)


def test_record_without_answers_is_for_the_test_split_only():
    bare = RECORD | {"qas": [{"query": "@placeholder went", "idx": 8}]}
    assert one("record", bare, "test").targets == "<unk>"
    with pytest.raises(ValueError, match="a query has no answers"):
        cast("record", bare, "train")


def test_rte_and_its_diagnostic_sets_read_alike():
    rte = {"premise": "It rained.", "hypothesis": "It was wet.", "label": "not_entailment", "idx": 0}
    assert one("superglue/rte", rte).inputs == "hypothesis: It was wet. premise: It rained."
    assert one("superglue/rte", rte).targets == "not_entailment"
    axb = {"sentence1": "It rained.", "sentence2": "It was wet.", "label": "entailment", "logic": "", "idx": 0}
    assert one("axb", axb, "test").inputs == "hypothesis: It was wet. premise: It rained."
    assert one("axg", rte | {"pair_id": 2}, "test").inputs == one("superglue/rte", rte).inputs


def test_wic_ignores_the_word_places():
    record = {"word": "bank", "sentence1": "A river bank.", "sentence2": "A bank loan.", "label": False, "idx": 2}
    record |= {"start1": 8, "end1": 12, "start2": 2, "end2": 6, "version": 1.1}
    example = one("wic", record)
    assert example.inputs == "sentence1: A river bank. sentence2: A bank loan. word: bank"
    assert example.targets == "False"


def wsc(text, pronoun, index, referent, referent_index, label):
    target = {"span1_text": referent, "span1_index": referent_index, "span2_text": pronoun, "span2_index": index}
    return {"text": text, "target": target, "label": label, "idx": 6}


GOAT = "The goat ate the hat because it was hungry."


def test_wsc_marks_the_pronoun_and_asks_for_the_referent():
    example = one("wsc", wsc(GOAT, "it", 6, "The goat", 0, True))
    assert example.inputs == "The goat ate the hat because *it* was hungry."
    assert (example.targets, example.references, example.id) == ("The goat", ("True",), "6")
    first = wsc("He saw Tor .", "He", 0, "Tor", 2, False)
    assert one("wsc", first).inputs == "*He* saw Tor ."


def test_wsc_trains_on_right_referents_only_and_is_scored_on_all():
    wrong = wsc(GOAT, "it", 6, "The hat", 3, False)
    assert cast("wsc", wrong, "train") == []
    assert one("wsc", wrong, "dev").references == ("False",)
    assert len(cast("wsc", wsc(GOAT, "it", 6, "The goat", 0, True), "train")) == 1


def test_wsc_referents_are_spelled_as_in_the_text():
    assert one("wsc", wsc(GOAT, "it", 6, "The hat", 3, False)).targets == "the hat"
    assert one("wsc", wsc(GOAT, "it", 6, "the goat.", 0, True)).targets == "The goat"
    assert one("wsc", wsc(GOAT, "it", 6, "Both of them", 0, True)).targets == "Both of them"


def test_wsc_test_records_keep_the_referent_without_a_judgement():
    record = wsc(GOAT, "it", 6, "The goat", 0, True)
    del record["label"]
    example = one("wsc", record, "test")
    assert (example.targets, example.references) == ("The goat", ())


def test_wsc_of_the_hub_is_flat():
    record = wsc(GOAT, "it", 6, "The goat", 0, True)
    flat = {"text": GOAT, **record["target"], "idx": 6, "label": 1}
    assert one("wsc", flat) == one("wsc", record)


def test_wsc_texts_whose_index_is_known_to_be_wrong():
    pony = 'The boy continued to whip the pony , and fell. "Good for him," they said. '
    assert mark_pronoun(pony, "him", 12) == (
        'The boy continued to whip the pony , and fell. "Good for *him* ," they said.'
    )
    pebble = "When they had eventually calmed down a bit , they might want to use it , but not yet."
    assert mark_pronoun(pebble, "it", 13) == pebble.replace(" it ", " *it* ")
    served = 'The boy continued to whip the pony , and fell. "Served him right".'
    assert mark_pronoun(served, "him", 11) == served.replace(" him ", " *him* ")


def test_wsc_with_another_word_at_the_index_is_an_error():
    with pytest.raises(ValueError, match="word 5 of the text is 'because', but span2_text is 'it'"):
        mark_pronoun(GOAT, "it", 5)
    with pytest.raises(ValueError, match="word 99 of the text is '', but span2_text is 'it'"):
        mark_pronoun(GOAT, "it", 99)
    with pytest.raises(ValueError, match="the input is empty: no text in text"):
        one("wsc", wsc(" ", "it", 0, "goat", 0, True))
    with pytest.raises(ValueError, match="the target is empty: no text in span1_text"):
        one("wsc", wsc(GOAT, "it", 6, "", 0, True))


def test_labels_come_as_text_numbers_or_booleans_and_nothing_else():
    assert one("cb", CB | {"label": "2"}).targets == "neutral"
    with pytest.raises(ValueError, match=r"unknown label 'entailmen'; the labels are .*; did you mean 'entailment'"):
        one("cb", CB | {"label": "entailmen"})
    with pytest.raises(ValueError, match="unknown label 3; the labels are entailment, contradiction, neutral"):
        one("cb", CB | {"label": 3})
    with pytest.raises(ValueError, match="column 'label' is empty"):
        one("cb", CB | {"label": ""})


def test_missing_and_empty_columns_are_named():
    with pytest.raises(ValueError, match="no column 'hypothesis'; the columns are premise, label, idx"):
        one("cb", {key: value for key, value in CB.items() if key != "hypothesis"})
    with pytest.raises(ValueError, match="the input is empty: no text in hypothesis, premise"):
        one("cb", CB | {"premise": " ", "hypothesis": ""})
    with pytest.raises(ValueError, match="column 'premise' holds no text but list"):
        one("cb", CB | {"premise": ["Ida"]})


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("boolq", "boolq passage: "),
        ("record", "record query: "),
        ("wsc", "wsc: The"),
        ("axb", "rte hypothesis: "),
        ("mnli_mismatched", "mnli hypothesis: "),
        ("squad", "question: "),
    ],
)
def test_the_older_form_has_the_task_name_in_front(name, start):
    task = get_task(name)
    inputs = start.removeprefix(f"{task.prefix} ") + "text"
    example = Example(inputs=inputs, targets="x", id="0", references=("x",))
    assert mixed(task, example).inputs == f"{start}text"


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("boolq", ("False", "True")),
        ("record", ("commonsense", "reasoning", "reading", "comprehension")),
        ("wsc", ("commonsense", "pronoun", "resolution")),
        ("squad", ()),
    ],
)
def test_class_label_initialisation_texts(name, texts):
    assert get_task(name).initial_texts == texts
