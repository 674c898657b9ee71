from collections import Counter
from dataclasses import replace

import pytest

from softprompt.tasks import Example, file_task, folds, get_task, hold_out, in_whole_groups, without_overlap

LABELLED = file_task(inputs="{text}", targets="{label}", labels=["a", "b", "c"])
SST2 = get_task("sst2")


def examples(*rows):
    return [
        Example(inputs=text, targets=label, id=str(number), references=(label,), source=source)
        for number, (text, label, source) in enumerate(rows)
    ]


def labelled(**counts):
    return examples(*[(f"{label} {n}", label, None) for label, count in counts.items() for n in range(count)])


def phrases(*texts):
    return [
        Example(inputs=f"sentence: {text}", targets=label, id=str(n), references=(label,), source=text)
        for n, (text, label) in enumerate(texts)
    ]


def ids(some):
    return [example.id for example in some]


def test_labels_keep_their_shares_in_the_held_out_part():
    # 10 % of 119, 115 and 16 is 11.9, 11.5 and 1.6: largest remainders to a sum of 25.
    train, held = hold_out(labelled(a=119, b=115, c=16), LABELLED, seed=3)
    assert Counter(e.targets for e in held) == {"a": 12, "b": 11, "c": 2}
    assert len(train) == 225
    assert sorted(ids(train) + ids(held), key=int) == [str(n) for n in range(250)]


def test_the_seed_alone_decides_what_is_held_out():
    rows = labelled(a=50, b=50)
    assert hold_out(rows, LABELLED, seed=1) == hold_out(rows, LABELLED, seed=1)
    assert ids(hold_out(rows, LABELLED, seed=1)[1]) != ids(hold_out(rows, LABELLED, seed=2)[1])
    assert ids(hold_out(rows, LABELLED, seed=1)[0]) == sorted(ids(hold_out(rows, LABELLED, seed=1)[0]), key=int)


def test_examples_of_one_source_stay_together():
    rows = examples(*[(f"question {n}", "ab"[n % 2], f"passage {n // 4}") for n in range(80)])
    train, held = hold_out(rows, LABELLED, fraction=0.2, seed=0)
    assert len(held) == 16
    assert {e.source for e in train}.isdisjoint(e.source for e in held)


def test_no_question_of_qqp_stands_on_both_sides():
    pairs = [(n, n + 1) for n in range(0, 60, 3)] + [(n + 1, n + 2) for n in range(0, 60, 3)] + [(90, 91), (0, 90)]
    rows = examples(*[(f"q{a} q{b}", "a", f"q{a}\nq{b}") for a, b in pairs])
    train, held = hold_out(rows, replace(LABELLED, joined_sources=True), fraction=0.2, seed=0)
    questions = [{line for example in side for line in example.source.split("\n")} for side in (train, held)]
    assert questions[0].isdisjoint(questions[1]) and len(held) == 8
    linked = {f"q{n}" for n in (0, 1, 2, 90, 91)}
    assert linked <= questions[0] or linked <= questions[1]
    # Nor one that differs in case and punctuation only.
    alike = examples(*[(f"q{n}", "a", f"q{n // 2}{'?' * (n % 2)}\n{'Qq'[n % 2]}x{n}") for n in range(40)])
    train, held = hold_out(alike, replace(LABELLED, joined_sources=True), fraction=0.2, seed=0)
    first = [{example.source.split("\n")[0].rstrip("?") for example in side} for side in (train, held)]
    assert first[0].isdisjoint(first[1])


def test_equal_inputs_without_a_source_stay_together():
    rows = examples(*[(f"text {n // 2}", "a", None) for n in range(40)])
    train, held = hold_out(rows, LABELLED, seed=0)
    assert len(held) == 4
    assert {e.inputs for e in train}.isdisjoint(e.inputs for e in held)


def test_inputs_that_differ_in_case_and_punctuation_only_stay_together():
    rows = examples(*[(f"{'Tt'[n % 2]}ext {n // 2}{'!' * (n % 2)}", "a", None) for n in range(40)])
    for train, held in [hold_out(rows, LABELLED, seed=0), *folds(rows, LABELLED, seed=0)]:
        assert {e.inputs.lower().rstrip("!") for e in train}.isdisjoint(e.inputs.lower().rstrip("!") for e in held)
    of_sources = [replace(example, source=example.inputs) for example in rows]
    train, held = hold_out(of_sources, LABELLED, seed=0)
    assert {e.inputs.lower().rstrip("!") for e in train} & {e.inputs.lower().rstrip("!") for e in held}


def test_inputs_without_twins_are_split_as_sources_of_their_own_are():
    rows = labelled(a=119, b=115, c=16)
    of_sources = [replace(example, source=example.inputs) for example in rows]
    assert ids(hold_out(rows, LABELLED, seed=3)[1]) == ids(hold_out(of_sources, LABELLED, seed=3)[1])
    assert [ids(held) for _, held in folds(rows, LABELLED, seed=3)] == [
        ids(held) for _, held in folds(of_sources, LABELLED, seed=3)
    ]


def test_large_sources_still_leave_something_held_out():
    rows = examples(*[(f"question {n}", "a", f"passage {min(n // 4, 2)}") for n in range(20)])
    train, held = hold_out(rows, LABELLED, seed=0)
    assert (len(train), len(held)) == (16, 4)


def test_held_out_parts_that_cannot_be_made_are_errors():
    with pytest.raises(ValueError, match=r"fraction is 1.5, but must be between 0 and 1"):
        hold_out(labelled(a=9), LABELLED, fraction=1.5, seed=0)
    one_source = examples(*[(f"question {n}", "a", "passage") for n in range(9)])
    with pytest.raises(ValueError, match="9 examples of one source cannot be split into two parts"):
        hold_out(one_source, LABELLED, seed=0)


def test_folds_are_disjoint_and_together_everything():
    rows = labelled(a=119, b=115, c=16)
    made = folds(rows, LABELLED, num_folds=5, seed=4)
    assert sorted((i for _, held in made for i in ids(held)), key=int) == ids(rows)
    for train, held in made:
        assert set(ids(train)) == set(ids(rows)) - set(ids(held))
        counts = Counter(e.targets for e in held)
        assert counts["a"] in (23, 24) and counts["b"] == 23 and counts["c"] in (3, 4)
    assert made == folds(rows, LABELLED, num_folds=5, seed=4)


def test_folds_keep_sources_together():
    rows = examples(*[(f"question {n}", "ab"[n % 2], f"passage {n // 3}") for n in range(60)])
    for train, held in folds(rows, LABELLED, num_folds=4, seed=0):
        assert len(held) == 15
        assert {e.source for e in train}.isdisjoint(e.source for e in held)


def test_folds_that_cannot_be_made_are_errors():
    with pytest.raises(ValueError, match="num_folds is 1, but must be 2 or more"):
        folds(labelled(a=9), LABELLED, num_folds=1, seed=0)
    with pytest.raises(ValueError, match="3 examples of 3 sources cannot make 5 folds"):
        folds(labelled(a=3), LABELLED, seed=0)


def test_phrases_leave_training_with_the_held_out_sentence_they_are_part_of():
    rows = phrases(
        ("the plot is thin and dull .", "negative"),
        ("thin and dull", "negative"),
        ("dull .", "negative"),
        ("a bright and funny film", "positive"),
        ("bright and funny", "positive"),
        ("and", "positive"),
    )
    for seed in range(6):
        train, held = hold_out(rows, SST2, fraction=0.5, seed=seed)
        (sentence,) = held
        # 'and' is a phrase of both sentences and never stays.
        assert (ids(held), ids(train)) in ((["0"], ["3", "4"]), (["3"], ["0", "1", "2"])), sentence


def test_a_phrase_is_a_run_of_whole_tokens():
    rows = phrases(
        ("an unfunny film", "negative"),
        ("funny film", "negative"),
        ("unfunny bad film", "negative"),
        ("unfunny film", "negative"),
        ("an film", "negative"),
    )
    held = {i for seed in range(30) for i in ids(hold_out(rows, SST2, fraction=0.3, seed=seed)[1])}
    # Only 'unfunny film' is a run of another: of 'an unfunny film'.
    assert held == {"0", "1", "2", "4"}


def test_repeated_sentences_are_held_out_together():
    rows = phrases(("a fine film", "positive"), ("a fine film", "positive"), ("a dull film", "negative"))
    for seed in range(8):
        train, held = hold_out(rows, SST2, fraction=0.4, seed=seed)
        assert {e.source for e in train}.isdisjoint(e.source for e in held)


def test_folds_of_nested_sources_hold_whole_sentences_and_train_on_none_of_their_phrases():
    rows = phrases(
        *[(f"film {n} is fine", "positive") for n in range(10)], *[(f"{n} is", "positive") for n in range(10)]
    )
    for train, held in folds(rows, SST2, num_folds=5, seed=0):
        assert [e.source.split()[0] for e in held] == ["film", "film"]
        numbers = {e.source.split()[1] for e in held}
        assert len(train) == 16
        assert all(numbers.isdisjoint(e.source.split()) for e in train)


def test_overlap_is_found_after_folding_case_spaces_and_punctuation():
    rows = examples(("It 's fine .", "a", None), ("Other", "a", None), ("...", "a", None))
    others = examples(("it's  FINE", "b", None), ("?!", "b", None))
    kept, num_dropped = without_overlap(rows, others)
    assert ([e.inputs for e in kept], num_dropped) == (["Other", "..."], 1)


def test_what_is_scored_together_is_not_parted_by_a_limit():
    grouped = [replace(e, group=e.targets) for e in labelled(a=3, b=2, c=4)]
    counts = [in_whole_groups(grouped, count) for count in range(1, 12)]
    assert counts == [3, 3, 3, 3, 5, 5, 5, 5, 9, 9, 9]
    assert in_whole_groups(labelled(a=4), 3) == 3
