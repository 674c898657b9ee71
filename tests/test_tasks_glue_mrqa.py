"""Casts of GLUE, MRQA and sentence_polarity records to text, on records invented here."""

import pytest

from softprompt.tasks import Example, get_task
from softprompt.tasks.glue import SIMILARITY
from softprompt.tasks.mrqa import pad_punctuation


def one(name, record, split="dev"):
    (example,) = get_task(name).cast(record, split)
    return example


def test_squad_1_1_is_read_as_it_was_released_and_as_the_hub_has_it():
    question = {"id": "57", "question": "Who ran?"}
    answers = [{"text": "Ann", "answer_start": 0}, {"text": "Ann B.", "answer_start": 0}]
    article = {"title": "A", "paragraphs": [{"context": "Ann B. ran.", "qas": [question | {"answers": answers}]}]}
    columns = {"text": ["Ann", "Ann B."], "answer_start": [0, 0]}
    wanted = Example(
        inputs="question: Who ran ? context: Ann B . ran .",
        targets="Ann", id="57", references=("Ann", "Ann B ."), source="Ann B. ran.",
    )  # fmt: skip
    assert one("squad/v1.1", article) == wanted
    assert one("squad/v1.1", question | {"title": "A", "context": "Ann B. ran.", "answers": columns}) == wanted
    task = get_task("squad/v1.1")
    assert (task.counts, task.chosen_by) == ({"train": 87_599, "dev": 10_570}, "f1")  # the paper's table 7
    assert get_task("squad").name == "mrqa/squad"


def test_mrpc_from_its_own_columns_and_the_hubs():
    official = {"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "A hen .", "#2 String": "One hen ."}
    example = one("mrpc", official)
    assert example.inputs == "sentence1: A hen . sentence2: One hen ."
    assert (example.targets, example.id) == ("equivalent", "")
    hub = {"sentence1": "A hen .", "sentence2": "One hen .", "label": 0, "idx": 4}
    assert (one("mrpc", hub).targets, one("mrpc", hub).id) == ("not_equivalent", "4")


def test_qqp_from_its_own_columns_and_from_a_sample():
    official = {"id": "3", "question1": "Is tin soft?", "question2": "Is tin hard?", "is_duplicate": "0"}
    example = one("qqp", official)
    assert example.inputs == "question1: Is tin soft? question2: Is tin hard?"
    assert (example.targets, example.id) == ("not_duplicate", "3")
    assert example.source == "Is tin soft?\nIs tin hard?"
    sample = {"text_a": "Is tin soft?", "text_b": "Is tin hard?", "label": "1"}
    assert one("qqp", sample).targets == "duplicate"


def test_sst2_and_sentence_polarity_share_their_text():
    example = one("sst2", {"sentence": "a fine film . ", "label": "1"})
    assert (example.inputs, example.targets) == ("sentence: a fine film .", "positive")
    polarity = {"text": "a fine film .", "label": "positive"}
    (other,) = [e for split in ("train", "dev") for e in get_task("sentence_polarity").cast(polarity, split)]
    assert (other.inputs, other.targets) == (example.inputs, example.targets)
    assert get_task("sentence_polarity").labels == get_task("sst2").labels == ("negative", "positive")


def test_sentence_polarity_answers_every_sentence_whether_it_is_train_or_dev():
    cast = get_task("sentence_polarity").cast
    records = [{"text": f"dull plot {number} ."} for number in range(60)]
    labelled = [record | {"label": "negative"} for record in records]
    assert {len(cast(record, "dev")) for record in labelled} == {0, 1}
    assert [e.inputs for record in records for e in cast(record, "test")] == [
        f"sentence: {record['text']}" for record in records
    ]


def test_glue_rte_keeps_sentence1_first():
    example = one("glue/rte", {"index": "4", "sentence1": "It rained.", "sentence2": "Wet.", "label": "entailment"})
    assert example.inputs == "sentence1: It rained. sentence2: Wet."
    assert (example.targets, example.id) == ("entailment", "4")


def test_cola_qnli_mnli_and_wnli_have_t5s_text_and_labels():
    assert one("cola", {"source": "x1", "label": "0", "judgement": "*", "sentence": "He sleep."}) == Example(
        inputs="sentence: He sleep.", targets="unacceptable", id="", references=("unacceptable",)
    )
    qnli = {"index": "1", "question": "Who?", "sentence": "Ida did.", "label": "entailment"}
    assert one("qnli", qnli).inputs == "question: Who? sentence: Ida did."
    mnli = {"index": "0", "sentence1": "It rained.", "sentence2": "It was wet.", "gold_label": "neutral"}
    assert one("mnli", mnli).inputs == "hypothesis: It was wet. premise: It rained."
    hub = {"premise": "It rained.", "hypothesis": "It was wet.", "label": 2, "idx": 0}
    assert one("mnli_mismatched", hub).inputs == one("mnli", mnli).inputs
    assert one("mnli_mismatched", hub).targets == "contradiction"
    wnli = {"index": "0", "sentence1": "Tor saw Per.", "sentence2": "Tor saw.", "label": "1"}
    assert one("wnli", wnli).targets == "entailment"


@pytest.mark.parametrize(
    ("score", "targets"), [("3.25", "3.2"), ("3.31", "3.4"), ("3.1", "3.2"), (5, "5.0"), ("0", "0.0")]
)
def test_stsb_rounds_to_a_fifth(score, targets):
    record = {"index": "2", "sentence1": "A hen.", "sentence2": "A cock.", "score": score}
    example = one("stsb", record)
    assert (example.inputs, example.targets) == ("sentence1: A hen. sentence2: A cock.", targets)


def test_stsb_labels_are_the_26_steps_and_other_scores_are_errors():
    assert (len(SIMILARITY), SIMILARITY[:2], SIMILARITY[-1]) == (26, ("0.0", "0.2"), "5.0")
    record = {"sentence1": "A hen.", "sentence2": "A cock.", "score": "6"}
    with pytest.raises(ValueError, match="unknown score '6'; wanted a number from 0 to 5"):
        one("stsb", record)
    assert one("stsb", record | {"score": -1.0}, "test").targets == "<unk>"
    del record["score"]
    assert one("stsb", record, "test").targets == "<unk>"


def test_punctuation_is_padded_and_spaces_collapse():
    assert pad_punctuation("Ida's U.S. trip\n(2019)  £  fun!") == "Ida ' s U . S . trip ( 2019 ) £ fun !"


QUESTION = {"qid": "q1", "question": "Who sold fish?", "answers": ["Ola B.", "Ola", "Ola B."]}
QA_INPUTS = "question: Who sold fish ? context: Ola B . sold fish ."


def test_mrqa_records_give_an_example_for_each_question():
    record = {"context": "Ola B. sold fish.", "qas": [QUESTION, QUESTION | {"qid": "q2", "answers": ["Per"]}]}
    first, second = get_task("squad").cast(record, "dev")
    assert first == Example(
        inputs=QA_INPUTS,
        targets="Ola B .",
        id="q1",
        references=("Ola B .", "Ola"),
        source="Ola B. sold fish.",
    )
    assert (second.id, second.targets) == ("q2", "Per")
    assert get_task("squad").cast({"header": {"dataset": "SQuAD", "split": "dev"}}, "dev") == []


def test_the_mask_at_the_end_of_few_shot_questions_is_stripped():
    record = {"context": "Ola B. sold fish.", "qas": [QUESTION | {"question": "Who sold fish? [MASK]."}]}
    assert one("squad", record).inputs == QA_INPUTS


def test_squad_articles_and_hub_questions_read_alike():
    article = {
        "title": "Fish",
        "paragraphs": [
            {
                "context": "Ola B. sold fish.",
                "qas": [{"id": "q1", "question": "Who sold fish?", "answers": [{"text": "Ola B.", "answer_start": 0}]}],
            }
        ],
    }
    assert one("squad", article).inputs == QA_INPUTS
    hub = {"subset": "SQuAD", "context": "Ola B. sold fish.", "qid": "q1"}
    hub |= {"question": "Who sold fish?", "answers": ["Ola B."]}
    assert one("squad", hub) == one("squad", article)
    squad = hub | {"answers": {"text": ["Ola B."], "answer_start": [0]}}
    assert one("squad", squad) == one("squad", article)


def test_answers_given_only_as_spans_include_both_ends():
    spans = [{"text": "ola b", "char_spans": [[0, 5]], "token_spans": [[0, 1]]}]
    record = {"context": "Ola B. sold fish.", "qas": [{"qid": "q1", "question": "Who?", "detected_answers": spans}]}
    assert one("drop", record).targets == "Ola B ."


def test_questions_without_text_or_answers_are_errors():
    record = {"context": "Ola B. sold fish.", "qas": [QUESTION]}
    with pytest.raises(ValueError, match="a question has no answers"):
        one("squad", {**record, "qas": [QUESTION | {"answers": []}]})
    assert one("squad", {**record, "qas": [QUESTION | {"answers": []}]}, "test").targets == "<unk>"
    with pytest.raises(ValueError, match="the target is empty: an answer without text"):
        one("squad", {**record, "qas": [QUESTION | {"answers": [" "]}]})
    with pytest.raises(ValueError, match="the input is empty: no text in context"):
        one("squad", {**record, "context": " "})
    with pytest.raises(ValueError, match="the input is empty: no text in question"):
        one("squad", {**record, "qas": [QUESTION | {"question": ""}]})
    with pytest.raises(ValueError, match="no column 'answers'; the columns are qid, question, context"):
        one("squad", {**record, "qas": [{"qid": "1", "question": "Who?"}]})
