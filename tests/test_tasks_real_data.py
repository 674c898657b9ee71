"""The official files: counts and label shares of the paper's tables 7 to 16, and the traps of partial files."""

import os
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from softprompt.tasks import get_task, hold_out, read_omitted, read_split, without_overlap

FOLDER = os.environ.get("SOFTPROMPT_DATA")

pytestmark = pytest.mark.skipif(not FOLDER, reason="SOFTPROMPT_DATA does not name a folder of official files")


@cache
def official(name, split):
    return read_split(get_task(name), split, FOLDER)


def reading(name, split, *files):
    task = get_task(name)
    if not files:
        return official(task.name, split)
    return read_split(task, split, {split: [Path(FOLDER) / task.folder / file for file in files]})


def examples(name, split, *files):
    return reading(name, split, *files).examples


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("superglue/cb", 250, 56, 250),
        ("superglue/copa", 400, 100, 500),
        ("superglue/multirc", 27243, 4848, 9693),
        ("superglue/rte", 2490, 277, 3000),
        ("superglue/wic", 5428, 638, 1400),
        ("superglue/wsc", 259, 104, 146),
        ("glue/rte", 2490, 277, 3000),
        ("glue/sst2", 67349, 872, 1821),
    ],
)
def test_whole_sets_have_the_official_counts(name, train, dev, test):
    for split, count in (("train", train), ("dev", dev), ("test", test)):
        assert len(examples(name, split)) == count
        assert reading(name, split).share == 1
        assert all(e.references for e in examples(name, split)) == (split != "test")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("boolq", "dev", 3270),
        ("boolq", "test", 3245),
        ("boolq", "train", 1933),
        ("mrpc", "train", 3667),
        ("mrpc", "dev", 408),
        ("mrpc", "test", 1725),
        ("record", "dev", 2),
        ("record", "test", 1),
        ("squad", "dev", 10507),
        ("squad", "train", 5010),
        ("bioasq", "dev", 1504),
        ("drop", "dev", 1503),
        ("duorc", "dev", 1501),
        ("relation_extraction", "dev", 2948),
        ("race", "dev", 255),
        ("sentence_polarity", "train", 9558),
        ("sentence_polarity", "dev", 1104),
        ("subjectivity", "train", 8963),
        ("subjectivity", "dev", 1037),
        ("ag_news", "train", 10001),
        ("ag_news", "dev", 7600),
    ],
)
def test_other_sets_have_the_counts_known(name, split, count):
    assert len(examples(name, split)) == count


def test_record_parts_hold_73_training_queries():
    assert len({e.group for e in examples("record", "train")}) == 73
    assert all(e.targets in (e.choices or ()) for e in examples("record", "train"))


@pytest.mark.parametrize(
    ("name", "split", "shares"),
    [
        ("boolq", "dev", {"False": 37.8, "True": 62.2}),
        ("cb", "train", {"contradiction": 47.6, "entailment": 46.0, "neutral": 6.4}),
        ("cb", "dev", {"contradiction": 50.0, "entailment": 41.1, "neutral": 8.9}),
        ("copa", "train", {"choice1": 48.8, "choice2": 51.2}),
        ("copa", "dev", {"choice1": 55.0, "choice2": 45.0}),
        ("multirc", "train", {"False": 55.9, "True": 44.1}),
        ("multirc", "dev", {"False": 57.2, "True": 42.8}),
        ("superglue/rte", "dev", {"entailment": 52.7, "not_entailment": 47.3}),
        ("wic", "train", {"False": 50.0, "True": 50.0}),
        ("wic", "dev", {"False": 50.0, "True": 50.0}),
        ("wsc", "train", {"True": 100.0}),
        ("wsc", "dev", {"False": 63.5, "True": 36.5}),
        ("mrpc", "train", {"equivalent": 67.4, "not_equivalent": 32.6}),
        ("mrpc", "dev", {"equivalent": 68.4, "not_equivalent": 31.6}),
    ],
)
def test_label_shares_are_the_papers(name, split, shares):
    counts = Counter(e.references[0] for e in examples(name, split))
    total = sum(counts.values())
    # The paper rounds the first label and gives the other the rest.
    assert {label: 100 * n / total for label, n in counts.items()} == pytest.approx(shares, abs=0.1)


def test_every_label_of_every_task_is_legal_and_scores_one():
    for name in ("boolq", "cb", "multirc", "wic", "mrpc", "sst2", "squad"):
        dev = examples(name, "dev")
        task = get_task(name)
        assert set(task.metrics([e.targets for e in dev], dev).values()) == {1.0}


def test_naming_the_referent_always_scores_the_majority_share_on_wsc():
    dev = examples("wsc", "dev")
    assert get_task("wsc").metrics([e.targets for e in dev], dev)["accuracy"] == pytest.approx(38 / 104)
    assert all(e.inputs.count("*") == 2 for e in dev)
    omitted = read_omitted(get_task("wsc"), FOLDER)
    assert {e.references for e in omitted} == {("False",)} and len(omitted) == 554 - 259


def test_qqp_parts_are_read_without_their_repeats():
    whole = reading("qqp", "train")
    assert len(whole.examples) + whole.num_repeated == 23497 + 8999 + 1000
    (first,) = (e for e in whole.examples if e.id == "train_subset_noheader:133273")
    assert (first.targets, first.inputs[-6:]) == ("not_duplicate", "jlpt5?")


def test_few_shot_questions_carry_no_mask():
    assert not any("[ MASK ]" in e.inputs for e in examples("squad", "train"))


def test_labelled_sst2_test_sentences_are_those_of_the_official_test_file():
    labelled = examples("sst2", "test", "test-labeled.tsv")
    assert Counter(e.targets for e in labelled).keys() == {"negative", "positive"}
    official = examples("sst2", "test")
    assert [e.inputs for e in labelled] == [e.inputs for e in official]


@pytest.mark.parametrize("name", ["duorc", "relation_extraction"])
@pytest.mark.parametrize("part", ["robustqa_train.json", "robustqa_val.json"])
def test_robustqa_parts_never_train_what_the_dev_file_scores(name, part):
    with pytest.raises(ValueError, match=f"of {part} are also in dev.jsonl, which is scored"):
        reading(name, "train", part)


def test_sst2_holds_out_whole_sentences_in_a_few_seconds():
    rows, task = examples("sst2", "train"), get_task("sst2")
    start = time.perf_counter()
    train, held = hold_out(rows, task, seed=0)
    assert time.perf_counter() - start < 10
    assert 600 < len(held) < 800
    # The official dev set's sentences have 19.5 tokens on average; training phrases 9.4.
    assert 17 < sum(len(e.source.split()) for e in held) / len(held) < 22
    every = "\n".join(f" {' '.join(e.source.split())} " for e in held)
    # One phrase in twenty: the search itself is slow.
    assert not any(f" {' '.join(e.source.split())} " in every for e in train[::20])
    assert Counter(e.targets for e in held)["positive"] / len(held) == pytest.approx(0.52, abs=0.03)


def test_sentence_polarity_overlaps_sst2():
    polarity = [*examples("sentence_polarity", "train"), *examples("sentence_polarity", "dev")]
    dev = examples("sst2", "dev")
    assert len({e.inputs for e in dev} & {e.inputs for e in polarity}) == 394
    kept, num_dropped = without_overlap(polarity, dev)
    assert num_dropped > 394
    assert without_overlap(kept, dev)[1] == 0
