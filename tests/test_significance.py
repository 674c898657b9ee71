"""Intervals, paired comparisons and verdicts, against what is known of them."""

import numpy as np
import pytest

from softprompt.study.significance import (
    NOISE,
    NOT_SEEN,
    SEEN,
    UNTESTABLE,
    Difference,
    Interval,
    Term,
    contrast,
    deviations,
    holm,
    learnable,
    sign_flips,
    verdicts,
)


def drawn(rate, seeds, examples, seed=0):
    return (np.random.default_rng(seed).random((seeds, examples)) < rate).astype(float)


def compare(first, second, **options):
    """Two methods on the same tasks, a table of each for every task."""
    pairs = enumerate(zip(first, second, strict=True))
    return contrast(
        [[Term(1.0, a, ("first", i), i), Term(-1.0, b, ("second", i), i)] for i, (a, b) in pairs], **options
    )


def interval(scores, seed=0):
    return contrast([[Term(1.0, scores, "seeds", "examples")]], seed=seed).interval


def test_the_interval_of_one_seed_is_the_binomial_one():
    scores = drawn(0.7, 1, 900)
    found = interval(scores)
    error = np.sqrt(scores.mean() * (1 - scores.mean()) / 900)
    assert found.mean == scores.mean()
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_seeds_that_differ_widen_the_interval():
    same = np.repeat(drawn(0.7, 1, 400), 3, axis=0)
    apart = np.stack([drawn(rate, 1, 400, seed)[0] for seed, rate in enumerate((0.5, 0.7, 0.9))])
    width = {name: (i := interval(table)).high - i.low for name, table in (("same", same), ("apart", apart))}
    assert width["apart"] > 1.5 * width["same"]


def test_pairing_sees_what_two_intervals_do_not():
    first = drawn(0.6, 1, 500).repeat(3, 0)
    second = first.copy()
    second[:, :25] = 0  # the same answers but for a few examples
    found = compare([first], [second])
    assert found.p < 0.01 and found.interval.low > 0
    assert interval(first).low < interval(second).high


def test_a_method_does_not_differ_from_itself():
    scores = [drawn(0.6, 3, 300), drawn(0.8, 3, 100)]
    found = compare(scores, scores)
    assert found.interval.mean == 0 and found.p > 0.5


def test_chance_alone_is_significant_about_one_time_in_twenty():
    ps = [compare([drawn(0.6, 1, 200, 2 * i)], [drawn(0.6, 1, 200, 2 * i + 1)], draws=300).p for i in range(200)]
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.10


def seeds_that_differ(study):
    """Two methods that do not differ: three seeds each, rates that vary by 3.5 points, as many examples as SST-2."""
    rng = np.random.default_rng(study)
    rates = rng.normal(0.8, 0.035, (2, 3, 1))
    first, second = (rng.random((2, 3, 872)) < rates).astype(float)
    return compare([first], [second], draws=300).p


def test_three_seeds_that_differ_make_no_verdict_by_chance():
    assert np.mean([seeds_that_differ(study) < 0.05 for study in range(300)]) <= 0.08


def test_draws_of_seeds_vary_as_much_as_the_seeds_do():
    rates = np.array([0.4, 0.5, 0.6])
    found = interval(np.repeat(rates[:, None], 50, axis=1))
    error = rates.std(ddof=1) / np.sqrt(3)
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_a_small_p_hangs_little_on_the_seed_of_its_draws():
    # About the p-value that Holm's correction asks of a dozen claims: 64 examples won and 36 lost, 2.8 standard errors.
    first, second = np.zeros((2, 1, 872))
    first[0, :64] = second[0, 64:100] = 1
    ps = [compare([first], [second], seed=seed).p for seed in range(8)]
    assert np.mean(ps) == pytest.approx(0.005, abs=0.001) and np.ptp(ps) < 0.004


def test_tasks_count_alike_whatever_their_size():
    large, small = np.ones((1, 1000)), np.zeros((1, 10))
    assert compare([large, small], [1 - large, small]).interval.mean == 0.5


def test_the_same_seed_gives_the_same_numbers():
    scores = drawn(0.6, 3, 50)
    assert interval(scores) == interval(scores) != interval(scores, seed=1)


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_verdicts():
    up, down = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05)
    found = [Difference(up, 0.001), None, Difference(down, 0.001), Difference(up, 0.03)]
    assert verdicts(found) == [SEEN, UNTESTABLE, NOT_SEEN, SEEN]
    # The correction: 0.03 beside another of 0.04 is no more below 0.05.
    assert verdicts([Difference(up, 0.03), Difference(up, 0.04)]) == [NOISE, NOISE]


def test_a_task_must_be_learnable_to_decide_anything():
    majority = drawn(0.5, 1, 1000)
    assert learnable(np.maximum(drawn(0.4, 3, 1000, 5), majority), majority)
    assert not learnable(majority.repeat(3, 0), majority)
    assert not learnable(drawn(0.8, 3, 10, 1), drawn(0.6, 1, 10, 2))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: interval(np.zeros((0, 3))), r"scores of shape \(0, 3\); wanted one row a seed"),
        (lambda: compare([np.zeros((1, 3))], [np.zeros((1, 4))]), "3 and 4 examples; compare methods on the same"),
    ],
)
def test_mistakes_are_said(call, reason):
    with pytest.raises(ValueError, match=reason):
        call()


def test_a_contrast_of_two_differences_is_the_difference_of_the_two():
    rng = np.random.default_rng(3)
    tables = [
        (rng.random((seeds, 50)) < share).astype(float) for seeds, share in ((3, 0.9), (2, 0.5), (3, 0.9), (4, 0.8))
    ]
    weights = (1.0, -1.0, -1.0, 1.0)

    def terms(*chosen):
        return [Term(weight, table, place, "one task") for place, (weight, table) in enumerate(chosen)]

    found = contrast([terms(*zip(weights, tables, strict=True))])
    expected = sum(weight * table.mean() for weight, table in zip(weights, tables, strict=True))
    assert found.interval.mean == pytest.approx(expected) and found.interval.low < expected < found.interval.high
    assert found.p < 0.01
    assert contrast([]) is None
    two = contrast([terms((1.0, tables[0]), (-1.0, tables[1]))])
    assert two == compare([tables[0]], [tables[1]])
    with pytest.raises(ValueError, match="50 and 49 examples; compare methods on the same examples"):
        contrast([terms((1.0, tables[0]), (-1.0, tables[1][:, :49]))])


def models_on_one_task(study, *, same_examples):
    """Two methods on four models and the same examples, of which some are better for the one method, by chance."""
    rng = np.random.default_rng(study)
    luck = rng.choice([-0.5, 0.5], 60)
    parts = []
    for model in range(4):
        chances = np.clip([0.5 + luck, np.full(60, 0.5)], 0, 1)
        tables = [(rng.random((3, 60)) < chance).astype(float) for chance in chances]
        examples = "task" if same_examples else f"task {model}"
        parts.append([Term(1 - 2 * i, table, (model, i), examples) for i, table in enumerate(tables)])
    return contrast(parts, draws=300)


def test_models_on_the_same_examples_are_no_four_times_as_much_evidence():
    shared, apart = (
        np.mean([models_on_one_task(study, same_examples=same).p < 0.05 for study in range(100)])
        for same in (True, False)
    )
    assert shared <= 0.11 < 0.17 < apart


def test_sets_scored_by_the_same_trainings_share_their_seeds():
    first, second = (np.repeat(rates[:, None], 50, 1) for rates in (np.array([0.2, 0.8]), np.array([0.8, 0.2])))
    apart, same = (
        contrast([[Term(1.0, first, one, "a")], [Term(1.0, second, other, "b")]]) for one, other in ((0, 1), (0, 0))
    )
    assert same.interval.high - same.interval.low < 1e-9  # what one set loses the other wins
    assert apart.interval.high - apart.interval.low > 0.3


def test_deviations_differ_where_they_do():
    wide, narrow = np.array([0.3, 0.5, 0.7, 0.9, 0.4, 0.6]), np.array([0.6, 0.61, 0.62, 0.6, 0.61])
    found = deviations([wide], [narrow])
    assert found.interval.mean == pytest.approx(wide.std(ddof=1) - narrow.std(ddof=1)) and found.p < 0.05
    assert found.interval.low > 0
    assert deviations([wide], [wide]).p > 0.5 and deviations([], []) is None
    with pytest.raises(ValueError, match="1 score has no deviation; give two or more"):
        deviations([wide], [narrow[:1]])


def test_a_hundred_scores_do_not_vary_more_than_three_by_chance():
    rng = np.random.default_rng(0)
    kinds = [([rng.normal(size=50) for _ in range(2)], [rng.normal(size=3) for _ in range(2)]) for _ in range(200)]
    found = [deviations(*own, draws=300) for own in kinds]
    assert np.mean([one.p < 0.05 for one in found]) <= 0.09
    assert np.mean([one.interval.low > 0 for one in found]) <= 0.06


def test_three_differences_of_one_sign_are_no_verdict_and_eight_are():
    three = sign_flips([0.3, 0.2, 0.4])
    assert three.p == 0.25 and three.interval.mean == pytest.approx(0.9)
    assert sign_flips([-0.1] * 8).p == 2 / 2**8 and sign_flips([]) is None
    assert sign_flips([0.5, -0.5]).p == 1.0


def test_many_differences_change_their_signs_by_draws():
    rng = np.random.default_rng(0)
    assert sign_flips(list(rng.normal(1, 1, 30)), draws=400).p == pytest.approx(1 / 401)
    ps = np.array([sign_flips(list(rng.normal(size=14)), draws=400).p for _ in range(200)])
    assert 0.02 <= np.mean(ps < 0.05) <= 0.09
