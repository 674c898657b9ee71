"""How an ensemble votes, as literal votes and the answer they must give."""

import pytest

from softprompt.answering.confusion import LabelScore, added, by_label, commonest
from softprompt.answering.engine import Prediction
from softprompt.answering.evaluation import ensemble, judge, vote
from softprompt.models.text import Row
from softprompt.study.transfer import Other
from softprompt.tasks import UNLABELLED, Example, get_task


def example(targets=UNLABELLED, id="1", **changes):
    references = () if targets == UNLABELLED else (targets,)
    return Example(**{"inputs": "text", "targets": targets, "id": id, "references": references} | changes)


def written(*votes):
    """Answers as (text, log-probability)."""
    return [Prediction(text, float(log_prob)) for text, log_prob in votes]


def ranked(*scores):
    """Answers that scored every label."""
    return [Prediction(max(one, key=one.get), max(one.values()), one) for one in scores]


@pytest.mark.parametrize(
    ("task", "votes", "text", "log_prob"),
    [
        # The majority, with the text and log-probability of its most confident member.
        ("glue/sst2", written(("positive", -9), ("negative", -0.1), ("positive", -8)), "positive", -8),
        ("glue/sst2", written(("positive ", -7), ("negative", -0.1), ("positive", -8)), "positive ", -7),
        # What is no label votes for nothing, however often and however sure.
        ("glue/sst2", written(("good", -0.1), ("good", -0.1), ("negative", -5)), "negative", -5),
        ("glue/sst2", written(("Positive", -0.1), ("", -0.1), ("negative", -5)), "negative", -5),
        # Where nothing is legal, the most confident.
        ("glue/sst2", written(("good", -3), ("bad", -2), ("", -4)), "bad", -2),
        # A tie goes to the higher sum over its voters, not to the first or the surest.
        (
            "glue/sst2",
            written(("positive", -0.1), ("negative", -1), ("negative", -1), ("positive", -4)),
            "negative",
            -1,
        ),
        ("superglue/cb", written(("neutral", -3), ("entailment", -2), ("contradiction", -2.5)), "entailment", -2),
        # Where every member scored every label, over all members: -1 - 3 is less than -1.1 - 1.2.
        (
            "glue/sst2",
            ranked({"positive": -1.0, "negative": -1.1}, {"positive": -3.0, "negative": -1.2}),
            "negative",
            -1.2,
        ),
        # ReCoRD and SQuAD: the texts as SQuAD compares them; nothing left is no vote.
        ("superglue/record", written(("The Sea.", -2), ("lake", -0.1), ("sea", -3)), "The Sea.", -2),
        ("mrqa/squad", written(("The Sea.", -2), ("lake", -0.1), ("sea", -3)), "The Sea.", -2),
        ("mrqa/squad", written(("the", -0.1), ("...", -0.1), ("lake", -6)), "lake", -6),
        # WSC without its referent: the words, without determiners and capitals.
        ("superglue/wsc", written(("the cat", -2), ("Cat", -1), ("the dog", -0.1)), "Cat", -1),
        ("superglue/wsc", written(("big dog", -2), ("the big dog", -3), ("dog big", -0.1)), "big dog", -2),
        ("superglue/wsc", written(("the", -0.1), ("", -0.1), ("the dog", -5)), "the dog", -5),
    ],
)
def test_the_votes_give_the_answer(task, votes, text, log_prob):
    answer = vote(get_task(task), example(), votes)
    assert (answer.text, answer.log_prob) == (text, log_prob)


@pytest.mark.parametrize(
    ("votes", "text", "right"),
    [
        # Two that name the referent, in words of their own; and two that do not, by different names.
        (written(("the dog", -3), ("big dog", -2), ("the cat", -0.1)), "big dog", True),
        (written(("the cat", -2), ("a bird", -3), ("the big dog", -0.1)), "the cat", False),
    ],
)
def test_wsc_votes_on_whether_the_referent_is_named(votes, text, right):
    task, asked = get_task("superglue/wsc"), example("the big dog", references=("True",))
    answer = vote(task, asked, votes)
    assert answer.text == text
    assert judge(task, [asked], [answer]).metrics == {"accuracy": float(right)}


def test_multirc_votes_on_each_answer_and_is_then_scored_by_question():
    task = get_task("superglue/multirc")
    options = [example("True", f"0-0-{n}", group="0-0") for n in range(3)]
    members = [written(*((str(n != wrong), -1) for n in range(3))) for wrong in range(3)]
    alone = [judge(task, options, answers).metrics["em"] for answers in members]
    together = ensemble(task, options, members)
    assert [answer.text for answer in together] == ["True"] * 3
    assert (alone, judge(task, options, together).metrics["em"]) == ([0.0] * 3, 1.0)


@pytest.mark.parametrize(("most", "kept"), [(4, [0, 2, 5, 7]), (10, range(10)), (50, range(10)), (1, [0])])
def test_what_is_followed_along_training_is_spread_over_the_set(most, kept):
    examples = [Example(inputs=str(n), targets="a", id=str(n), references=("a",)) for n in range(10)]
    rows = [Row(ids=(n,), target=(), was_cut=False, index=n) for n in range(10)]
    few = Other(task=get_task("glue/sst2"), part="dev", examples=examples, rows=rows).spread(most)
    assert [int(example.id) for example in few.examples] == [row.ids[0] for row in few.rows] == list(kept)


def test_what_is_followed_along_training_keeps_together_what_is_scored_together():
    examples = [Example(inputs="", targets="a", id=str(n), references=("a",), group=f"q{n // 3}") for n in range(12)]
    rows = [Row(ids=(n,), target=(), was_cut=False, index=n) for n in range(12)]
    other = Other(task=get_task("superglue/multirc"), part="dev", examples=examples, rows=rows)
    for most, kept in ((7, [0, 1, 2, 6, 7, 8]), (1, [0, 1, 2]), (12, [*range(12)])):
        assert [row.ids[0] for row in other.spread(most).rows] == kept


def test_each_label_has_its_precision_recall_and_count():
    task = get_task("superglue/cb")
    pairs = [
        ("entailment", "entailment"), ("entailment", "neutral"), ("entailment", "neutral"), ("neutral", "entailment"),
        ("contradiction", "gibberish"),
    ]  # fmt: skip
    examples = [example(right, str(i)) for i, (right, _) in enumerate(pairs)]
    confusion = judge(task, examples, written(*((answer, 0) for _, answer in pairs))).confusion
    assert confusion == {
        "entailment": {"entailment": 1, "neutral": 2}, "contradiction": {"": 1}, "neutral": {"entailment": 1},
    }  # fmt: skip
    scores = by_label(confusion)
    assert scores["entailment"] == LabelScore(precision=0.5, recall=1 / 3, count=3)
    assert scores["contradiction"] == LabelScore(precision=None, recall=0.0, count=1)
    assert commonest(confusion, 1) == [("entailment", "neutral", 2)]
    assert by_label({"a": {}})["a"] == LabelScore(precision=None, recall=None, count=0)
    assert added([confusion, {"neutral": {"entailment": 2}}])["neutral"] == {"entailment": 3}
    free = judge(get_task("mrqa/squad"), [example("sea")], written(("sea", 0)))
    assert free.confusion == {}
