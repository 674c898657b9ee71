from functools import partial

import pytest

from softprompt.tasks import Example, get_task, headline
from softprompt.tasks import metrics as m


def example(targets, *, id="0", group=None, references=None):
    return Example(inputs="x", targets=targets, id=id, references=references or (targets,), group=group, source=None)


def test_accuracy_counts_illegal_answers_as_wrong():
    assert m.accuracy(["a", "b", None, "a"], ["a", "a", "a", "a"]) == 0.5


def test_f1_with_invalid_counts_an_illegal_answer_as_the_wrong_class():
    f1 = partial(m.f1_with_invalid, positive="yes")
    assert f1(["yes", "yes", "no", "no"], ["yes", "no", "yes", "no"]) == 0.5
    # Illegal on a 'no' is a false alarm, illegal on a 'yes' a miss: 2*1 / (2*1 + 1 + 1).
    assert f1(["yes", None, None], ["yes", "no", "yes"]) == 0.5
    assert f1(["no"], ["no"]) == 0.0


def test_macro_f1_is_the_mean_over_all_labels():
    # a: 2*1/(1+2) = 2/3; b: 2*1/(2+1) = 2/3; c: seen nowhere, 0.
    value = m.macro_f1(["a", "b", "b"], ["a", "a", "b"], labels=("a", "b", "c"))
    assert value == pytest.approx(4 / 9)
    # An illegal answer is a miss for its label only: a: 2*1/(1+2); b: 1.
    assert m.macro_f1(["a", None, "b"], ["a", "a", "b"], labels=("a", "b")) == pytest.approx(5 / 6)


def test_matthews_correlation_of_a_small_table():
    answers = ["1", "1", "1", "0", "0", "0"]
    right = ["1", "1", "0", "0", "0", "1"]
    # (2*2 - 1*1) / sqrt(3*3*3*3)
    assert m.matthews(answers, right) == pytest.approx(1 / 3)
    assert m.matthews(["1", "0"], ["0", "1"]) == -1.0
    assert m.matthews(["1", "1"], ["0", "1"]) == 0.0


def test_matthews_takes_illegal_answers_as_a_class_of_their_own():
    # hits 2 of 4; calls 1,1,2(None); real 2,2: (2*4 - 4) / sqrt((16-6)*(16-8)) = 4/sqrt(80)
    value = m.matthews(["1", "0", None, None], ["1", "0", "1", "0"])
    assert value == pytest.approx(4 / 80**0.5)


def test_pearson_and_spearman_of_hand_computed_numbers():
    # Deviations -1,0,1 and -4/3,-1/3,5/3: 3 / sqrt(2 * 42/9)
    assert m.pearson(["1", "2", "3"], ["1", "2", "4"]) == pytest.approx(3 / (2 * 42 / 9) ** 0.5)
    assert m.spearman(["1", "2", "9"], ["1", "2", "4"]) == pytest.approx(1.0)
    # Ranks 1,2.5,2.5,4 against 1,2,3,4: 4.5 / sqrt(4.5 * 5)
    assert m.spearman(["1", "2", "2", "3"], ["1", "2", "3", "4"]) == pytest.approx(4.5 / 22.5**0.5)


def test_correlation_is_zero_where_nothing_varies_and_text_counts_as_minus_one():
    assert m.pearson(["3", "3"], ["1", "2"]) == 0.0
    assert m.spearman(["3", "3"], ["1", "2"]) == 0.0
    assert [m.number_of(text) for text in ("2.5", "much", None, "nan", "inf")] == [2.5, -1, -1, -1, -1]


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  U.S. Army!", "us army"), ("an apple a day", "apple day"), ("Theatre", "theatre"), ("the", "")],
)
def test_squad_normalisation(text, normal):
    assert m.normalize_squad(text) == normal


def test_squad_takes_the_best_reference():
    right = [example("red dog", references=("red dog", "A red fox")), example("black cat")]
    scores = m.squad_metrics(["the red fox", "cat"], right)
    # Second: precision 1, recall 1/2.
    assert scores == {"em": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_token_f1_counts_repeated_words_once_each():
    assert m.token_f1("fox fox fox", "fox fox hen") == pytest.approx(2 / 3)
    assert m.token_f1("", "fox") == 0.0


def test_rouge_of_a_shared_word_order():
    scores = m.rouge(["red fox"], ["red fox ran"])
    # Unigrams 2 of 2 and 2 of 3; bigrams 1 of 1 and 1 of 2; longest common run 2.
    assert scores == {
        "rouge1": pytest.approx(0.8),
        "rouge2": pytest.approx(2 / 3),
        "rougeLsum": pytest.approx(0.8),
    }


def test_rouge_lsum_compares_sentence_by_sentence():
    assert m.rouge(["b c . a x"], ["a x . b c"])["rougeLsum"] == pytest.approx(1.0)


def test_boolq_wants_the_exact_label():
    task = get_task("boolq")
    answered = task.metrics([" True", "true", "yes"], [example("True")] * 3)
    assert answered == {"accuracy": pytest.approx(1 / 3)}
    legal = [task.answer(text, example("True")) for text in ("True", "False", "true", "")]
    assert legal == ["True", "False", None, None]


def test_cb_reports_accuracy_and_the_mean_f1_of_its_three_labels():
    right = [example(label) for label in ("entailment", "contradiction", "neutral", "neutral")]
    scores = get_task("cb").metrics(["entailment", "contradiction", "neutral", "?"], right)
    assert scores == {"accuracy": 0.75, "macro_f1": pytest.approx((1 + 1 + 2 / 3) / 3)}
    assert headline(scores) == pytest.approx((0.75 + 8 / 9) / 2)


def test_multirc_em_wants_every_option_of_a_question():
    right = [
        example("True", id="0-0-0", group="0-0"),
        example("False", id="0-0-1", group="0-0"),
        example("True", id="0-1-2", group="0-1"),
        example("False", id="0-1-3", group="0-1"),
    ]
    # F1 of 'True': 2 hits, the illegal answer on a 'False' a false alarm.
    scores = get_task("multirc").metrics(["True", "False", "True", "maybe"], right)
    assert scores == {"em": 0.5, "f1": pytest.approx(0.8)}


def test_record_scores_each_query_once_against_all_its_answers():
    right = [
        example("Ann Lee", id="0-0-0", group="0-0", references=("Ann Lee", "Lee")),
        example("Lee", id="0-0-1", group="0-0", references=("Lee", "Ann Lee")),
        example("Oslo", id="0-1-0", group="0-1"),
    ]
    assert get_task("record").metrics(["lee", "wrong", "Oslo now"], right) == {
        "em": 0.5,
        "f1": pytest.approx((1 + 2 / 3) / 2),
    }


@pytest.mark.parametrize(
    ("prediction", "referent", "answer"),
    [
        ("The lake", "lake", "True"),
        ("fuzzy bunny", "the bunny", "True"),
        ("bunny", "fuzzy bunny", "True"),
        ("Bob", "Bob's hat", "False"),
        ("Bob's hat", "Bob's", "True"),
        ("hare", "bunny", "False"),
        ("the", "bunny", None),
        ("", "bunny", None),
    ],
)
def test_wsc_answers_whether_the_referent_is_named(prediction, referent, answer):
    task = get_task("wsc")
    assert task.answer(prediction, example(referent)) == answer


def test_wsc_scores_the_judgement_not_the_name():
    right = [example("bunny", references=(label,)) for label in ("True", "False", "False")]
    assert get_task("wsc").metrics(["bunny", "bunny", ""], right) == {"accuracy": pytest.approx(1 / 3)}
    nothing = Example(inputs="", targets="", id="", references=())
    assert [get_task("wsc").answer(text, nothing) for text in ("bunny", "the", "")] == ["bunny", None, None]


def test_mrpc_and_qqp_report_f1_with_invalid_and_accuracy():
    right = [example("equivalent"), example("not_equivalent"), example("equivalent")]
    scores = get_task("mrpc").metrics(["equivalent", "duplicate", "not_equivalent"], right)
    assert scores == {"f1": 0.5, "accuracy": pytest.approx(1 / 3)}
    right = [example("duplicate"), example("not_duplicate")]
    assert get_task("qqp").metrics(["duplicate", "not_duplicate"], right) == {"f1": 1.0, "accuracy": 1.0}


def test_stsb_correlates_numbers_and_calls_other_text_illegal():
    task = get_task("stsb")
    scores = task.metrics(["1.0", "2.0", "3.0"], [example("1.0"), example("2.0"), example("4.0")])
    assert scores == {"pearson": pytest.approx(0.9819805), "spearman": pytest.approx(1.0)}
    assert task.metrics(["-1", "2.0"], [example("1.0"), example("2.0")]) == task.metrics(
        ["high", "2.0"], [example("1.0"), example("2.0")]
    )
    assert [task.answer(text, example("1.0")) for text in ("3", "3.25", "high", "7", "nan")] == [
        "3.0",
        "3.2",
        None,
        None,
        None,
    ]


def test_cola_is_scored_by_matthews_and_axb_too():
    right = [example("acceptable"), example("unacceptable")]
    assert get_task("cola").metrics(["acceptable", "unacceptable"], right) == {"matthews": 1.0}
    right = [example("entailment"), example("not_entailment")]
    assert get_task("axb").metrics(["not_entailment", "entailment"], right) == {"matthews": -1.0}


def test_squad_answer_is_the_normalised_text():
    task = get_task("mrqa/squad")
    assert task.answer("The U . S .", example("x")) == "u s"
    assert task.answer("the", example("x")) is None


def test_scoring_refuses_what_cannot_be_scored():
    task = get_task("boolq")
    with pytest.raises(ValueError, match="2 predictions cannot be scored against 1 examples"):
        task.metrics(["True", "True"], [example("True")])
    with pytest.raises(ValueError, match="there are no examples to score"):
        task.metrics([], [])
    unlabelled = Example(inputs="x", targets="<unk>", id="7", references=())
    with pytest.raises(ValueError, match="example '7' has no label to score against"):
        task.metrics(["True"], [unlabelled])
    with pytest.raises(ValueError, match="there are no metrics to take the mean of"):
        headline({})
