"""What rows say of the paper's claims."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softprompt.answering.rows import Result
from softprompt.study import params
from softprompt.study.claims import CLAIMS, as_table, decide
from softprompt.study.rows import VOTE

NUM = 400
SIZES = {"runs/f/micro/lm": 2_700_000, "runs/f/mini/lm": 14_400_000}


def right(share, seed):
    """NUM answers, that share of them right; the same ones for the same seed."""
    draw = np.random.default_rng(seed + 10).random(NUM)
    return "".join("1" if value < share else "0" for value in draw)


def row(experiment, point, share, seed=0, asked="runs/f/micro/lm", task="glue/sst2", scoring="rank", notes=(), **more):
    config = {"point": point, "asked": asked, "frozen": asked, "num_parameters": SIZES[asked], **more}
    score = {"step": 1, "score": share, "loss": 1.0, "seconds": 1.0}
    return Result(
        experiment=experiment, config=config, model="m", task=task, split="dev", selection="held-out", scoring=scoring,
        metrics={"accuracy": share}, value=share, illegal_rate=0.0, num_examples=NUM, step=1, steps_run=1, seconds=1.0,
        seed=seed, notes={"right": right(share, seed), "history": [score], "selection_score": share, **dict(notes)},
    )  # fmt: skip


def words(rows, majority=()):
    return {verdict.claim.number: verdict.word for verdict in decide(rows, majority)}


def figure_1(*, gap_small=0.3, gap_large=0.05, design=0.55):
    rows = []
    for asked, gap in zip(SIZES, (gap_small, gap_large), strict=True):
        about = {"asked": asked, "trained_on": "glue/sst2"}
        for seed in range(3):
            rows.append(row("figure-1", "prompt tuning", 0.9 - gap, seed, method="prompt-tuning", **about))
            rows.append(row("figure-1", "model tuning", 0.9, seed, method="model-tuning", **about))
        for shots in (0, 4):
            tried = [{"design": f"w{n}", "score": 0.4 + 0.05 * n} for n in range(6)]
            point = f"prompt design, {shots} shots"
            more = {"method": "prompt-design", "shots": shots, "tried": tried, **about}
            rows.append(row("figure-1", point, design + shots / 100, **more))
    return rows


def test_the_claims_are_those_of_the_document_and_in_its_words():
    text = (Path(__file__).parent.parent / "docs" / "findings.md").read_text()
    listed = {int(number): claim for number, claim in re.findall(r"^\| (\d+) \| (.*?) (?:\(.*?\) )?\|", text, re.M)}
    for claim in CLAIMS:
        assert listed[claim.number].startswith(claim.text), claim.number
    assert set(listed) - {claim.number for claim in CLAIMS} == {20}  # measured by benchmarks


def test_parameters_are_counted_not_tested(monkeypatch):
    assert words([])[12] == "seen"
    assert next(cells for cells in as_table(decide([])) if cells[0] == "12")[2:6] == ["counted", "-", "-", "seen"]
    monkeypatch.setitem(params.METHODS, "WARP", lambda architecture, length: architecture.width)
    assert words([])[12] == "not seen"


def test_a_gap_that_shrinks_is_seen_and_one_that_grows_is_not():
    assert words(figure_1())[1] == "seen"
    assert words(figure_1(gap_small=0.05, gap_large=0.3))[1] == "not seen"
    assert words(figure_1(gap_small=0.1, gap_large=0.1))[1] == "within noise"
    assert words([r for r in figure_1() if r.config["asked"] == "runs/f/micro/lm"])[1] == "not testable here"


def test_prompts_are_compared_with_the_text_that_selection_rows_choose():
    found = decide(figure_1(design=0.5))
    (beats,) = (verdict for verdict in found if verdict.claim.number == 2)
    assert beats.word == "seen" and beats.tasks == ("glue/sst2",)
    best = np.mean([right(0.54, 0).count("1") / NUM])
    prompts = np.mean([right(share, s).count("1") / NUM for share in (0.6, 0.85) for s in range(3)])
    assert beats.difference.interval.mean == pytest.approx(prompts - best)
    assert words(figure_1(design=0.9))[2] == "not seen"


def test_wordings_vary_more_than_seeds_do():
    found = {verdict.claim.number: verdict for verdict in decide(figure_1())}
    deviation = np.std([0.4 + 0.05 * n for n in range(6)] * 2, ddof=1)
    assert found[3].word == "seen" and found[3].difference.interval.mean == pytest.approx(deviation)


def test_lengths_by_size():
    shares = {
        "runs/f/micro/lm": {"1": 0.5, "20": 0.8, "100": 0.81},
        "runs/f/mini/lm": {"1": 0.8, "20": 0.82, "100": 0.82},
    }
    rows = [
        row("figure-3a", point, share, seed, asked, scoring=scoring)
        for asked, own in shares.items()
        for point, share in own.items()
        for seed in range(5)
        for scoring in ("rank", "generate")
    ]
    found = words(rows)
    assert [found[number] for number in (4, 5, 6)] == ["seen"] * 3
    assert words([r for r in rows if r.scoring == "generate"])[4] == "not testable here"


def test_objectives_and_adaptation_are_compared_by_generation_on_models_of_their_own():
    rows = [
        row("figure-3c", point, share, seed, scoring="generate", frozen=f"runs/f/micro/{point}")
        for point, share in (("lm", 0.7), ("span", 0.1), ("span+sentinel", 0.3))
        for seed in range(3)
    ] + [
        row("figure-3d", point, share, seed, scoring="generate", frozen=f"runs/f/micro/steps/{point}")
        for point, share in (("0", 0.1), ("50", 0.4), ("500", 0.7))
        for seed in range(3)
    ]
    found = words(rows)
    assert [found[number] for number in (9, 10, 11)] == ["seen"] * 3


def test_span_corruption_that_goes_on_must_not_gain_as_much_as_adaptation():
    steps = [
        row("figure-3d", point, share, seed, scoring="generate", frozen=f"runs/f/micro/steps/{point}")
        for point, share in (("0", 0.1), ("50", 0.4), ("500", 0.7))
        for seed in range(3)
    ]

    def control(share):
        points = (("span", 0.1), ("span+", share))
        return [row("figure-3c", point, own, seed, scoring="generate") for point, own in points for seed in range(3)]

    assert words(steps + control(0.15))[11] == "seen"
    assert words(steps + control(0.4))[11] == words(steps + control(0.8))[11] == "within noise"


def test_votes_and_transfer():
    rows = [row("table-3", "five prompts", 0.7, seed) for seed in range(5)] + [
        row("table-3", "five prompts", 0.85, VOTE)
    ]
    for method, share in (("prompt-tuning", 0.7), ("model-tuning", 0.5)):
        for task, value in (("glue/qqp", 0.9), ("glue/mrpc", share)):
            more = {"task": task, "method": method, "trained_on": "glue/qqp"}
            rows += [row("table-2", f"{method}, glue/qqp", value, seed, **more) for seed in range(3)]
    found = words(rows)
    assert [found[number] for number in (15, 16, 17)] == ["seen"] * 3


def test_where_several_tie_for_the_best_it_is_their_mean_whatever_the_order_of_rows():
    shares = {0: 0.6, 1: 0.7, 2: 0.8}
    rows = [row("table-3", "five prompts", share, seed) for seed, share in shares.items()]
    for one, score in zip(rows, (0.5, 0.9, 0.9), strict=True):
        one.notes["history"] = [{"step": 1, "score": score, "loss": 1.0, "seconds": 1.0}]
    rows.append(row("table-3", "five prompts", 0.85, VOTE))
    designs = [one for one in figure_1() if one.config["method"] != "model-tuning"]
    for one in designs:
        one.notes["selection_score"] = 0.7
    found = {verdict.claim.number: verdict.difference for verdict in decide(rows + designs)}
    means = {(share, seed): right(share, seed).count("1") / NUM for share, seed in ((0.85, VOTE), (0.7, 1), (0.8, 2))}
    assert found[17].interval.mean == pytest.approx(means[0.85, VOTE] - (means[0.7, 1] + means[0.8, 2]) / 2)
    prompts = np.mean([right(share, seed).count("1") / NUM for share in (0.6, 0.85) for seed in range(3)])
    texts = np.mean([right(share, 0).count("1") / NUM for share in (0.55, 0.59)])
    assert found[2].interval.mean == pytest.approx(prompts - texts)
    assert decide(rows + designs) == decide((rows + designs)[::-1])
    assert decide(rows + figure_1()) == decide((rows + figure_1())[::-1])


def carried_over(prompt, model, *, steps=(10, 20)):
    """Rows of table 1: for each method and set its share at each step, in domain first."""
    rows = []
    for method, shares in (("prompt-tuning", prompt), ("model-tuning", model)):
        for task, own in shares.items():
            more = {"task": f"mrqa/{task}", "method": method, "trained_on": "mrqa/squad"}
            for seed in range(3):
                along = [
                    {"step": step, "scores": [float(c) for c in right(share, seed)]}
                    for step, share in zip(steps, own, strict=True)
                ]
                rows.append(row("table-1", method, own[-1], seed, notes={"along": along}, **more))
    return rows


def test_other_domains_are_compared_where_both_are_as_good_in_domain():
    # Model tuning is far ahead in domain at the end; at its first step it is as good as prompts are at their last.
    prompt = {"squad": (0.3, 0.5), "race": (0.3, 0.5), "drop": (0.1, 0.4)}
    rows = carried_over(prompt, {"squad": (0.5, 0.9), "race": (0.4, 0.8), "drop": (0.1, 0.7)})
    found = {verdict.claim.number: verdict for verdict in decide(rows)}
    share = {value: np.mean([right(value, seed).count("1") for seed in range(3)]) / NUM for value in (0.1, 0.4, 0.5)}
    race, drop = share[0.5] - share[0.4], share[0.4] - share[0.1]
    assert found[13].word == found[14].word == "seen"
    assert found[13].difference.interval.mean == pytest.approx((race + drop) / 2)
    assert found[14].difference.interval.mean == pytest.approx(drop - race)
    assert found[13].tasks == ("mrqa/squad",)
    worse = carried_over(prompt, {"squad": (0.5, 0.9), "race": (0.9, 0.9), "drop": (0.6, 0.7)})
    assert words(worse)[13] == "not seen"
    assert words([r for r in rows if r.task != "mrqa/race"])[14] == "not testable here"
    assert words([r for r in rows if r.task == "mrqa/squad"])[13] == "not testable here"


def test_neighbours_are_compared_prompt_by_prompt():
    def near(seed, point, **numbers):
        return row("figure-3b", point, 0.7, seed, notes={"neighbourhood": numbers})

    def sampled(seeds):
        return [near(s, "vocab", cosine=0.3 + s / 100, cosine_of_random=0.1, labels_near_sampled=0.1) for s in seeds]

    found = words(sampled(range(8)))
    assert (found[18], found[19]) == ("seen", "not testable here")
    rows = sampled(range(3)) + [
        near(s, "class-labels", cosine=0.2, cosine_of_random=0.1, labels_near_labels=1.0, labels_near_sampled=0.0)
        for s in range(3)
    ]
    found = {verdict.claim.number: verdict for verdict in decide(rows)}
    assert found[18].difference.interval.mean == pytest.approx((0.21 + 0.1) / 2)
    # Three seeds, whatever their number of starts, can show no more.
    assert [(found[n].difference.p, found[n].word) for n in (18, 19)] == [(0.25, "within noise")] * 2
    assert as_table(decide(rows))[19][2:6] == ["+100.0", "-", "0.250", "within noise"]


def test_a_task_that_model_tuning_does_not_learn_tests_nothing():
    dull = [row("baselines", "majority", 0.89)]
    assert words(figure_1(), dull)[1] == "not testable here"
    assert words(figure_1(), [row("baselines", "majority", 0.5)])[1] == "seen"
    shorter = [replace(one, notes=one.notes | {"right": one.notes["right"][:-1]}) for one in dull]
    assert words(figure_1(), shorter)[1] == "seen", "a row of other examples has nothing to say"
    assert words(figure_1(), dull + shorter)[1] == "not testable here", "and takes nothing from the one that has"


def test_such_a_task_is_not_pooled_with_those_that_test_something():
    def lengths(task, asked, longer):
        return [
            row("figure-3a", point, share, seed, asked, task=task)
            for point, share in (("1", 0.5), ("20", longer))
            for seed in range(3)
        ]

    dull = [replace(one, task="glue/mrpc") for one in figure_1()]
    dull = [replace(one, config=one.config | {"trained_on": "glue/mrpc"}) for one in dull]
    small = [one for one in dull if one.config["asked"] == "runs/f/micro/lm"]
    majority = [row("baselines", "majority", 0.89, task="glue/mrpc")]
    rows = lengths("glue/sst2", "runs/f/micro/lm", 0.5) + lengths("glue/mrpc", "runs/f/micro/lm", 0.9)
    assert {v.claim.number: v.tasks for v in decide(rows + dull)}[4] == ("glue/mrpc", "glue/sst2")
    for tuned in (dull, small):  # a model without model tuning is taken for like those that have it
        found = {verdict.claim.number: verdict for verdict in decide(rows + tuned, majority)}[4]
        assert (found.word, found.tasks) == ("within noise", ("glue/sst2",))
    larger = lengths("glue/mrpc", "runs/f/mini/lm", 0.9)
    assert words(larger + small, majority)[4] == "not testable here"
    # The folder of its checkpoints is the same model.
    objectives = [
        row("figure-3c", point, share, seed, task="glue/mrpc", scoring="generate", frozen=f"runs/f/micro/{point}")
        for point, share in (("lm", 0.7), ("span", 0.1))
        for seed in range(3)
    ]
    objectives = [replace(one, config=one.config | {"asked": "runs/f/micro"}) for one in objectives]
    assert words(objectives)[9] == "seen" and words(objectives + small, majority)[9] == "not testable here"


def cut(one, num=200):
    """A row as --max-dev writes it."""
    return replace(one, notes=one.notes | {"right": one.notes["right"][:num]})


def test_what_was_scored_on_other_examples_is_not_compared():
    rows = figure_1()
    # One point, or one size: no pair, no test; and claims that need neither are decided as without it.
    tuned = [cut(one) if one.config["method"] == "model-tuning" else one for one in rows]
    assert words(tuned)[1] == "not testable here" and words(tuned)[2] == words(rows)[2]
    small = [cut(one) if one.config["asked"] == "runs/f/micro/lm" else one for one in rows]
    assert words(small)[1] == "not testable here" and words(small)[2] == words(rows)[2]
    # Half of a point's seeds.
    seeds = [cut(one) if one.seed == 0 and one.config["method"] == "prompt-tuning" else one for one in rows]
    assert words(seeds)[1] == "not testable here" and words(seeds)[3] == words(rows)[3]
    prompt = {"squad": (0.3, 0.5), "race": (0.3, 0.5), "drop": (0.1, 0.4)}
    along = carried_over(prompt, prompt)
    for one in along:
        if one.config["method"] == "model-tuning" and one.task == "mrqa/race":
            one.notes["along"] = [{**at, "scores": at["scores"][:50]} for at in one.notes["along"]]
    assert {v.claim.number: v.difference for v in decide(along)}[13].interval.mean == pytest.approx(0)


def test_each_run_says_for_itself_whether_a_task_is_learnt():
    majority = [row("baselines", "majority", 0.89)]
    copies = [replace(one, experiment="table-2") for one in figure_1() if one.config["method"] == "model-tuning"]
    assert words(figure_1() + copies, majority)[1] == "not testable here"
    short = [cut(one) for one in copies]  # no majority row of as many: it has nothing to say
    assert words(figure_1() + short, majority)[1] == "not testable here"
    assert words(figure_1() + short, [row("baselines", "majority", 0.5)])[1] == "seen"
    # Seeds that vary too much to say, once as well as in two experiments.
    shares = {0: 0.5, 1: 0.6, 2: 0.7}
    tuned = [replace(one, notes=one.notes | {"right": right(shares[one.seed], 0)}) for one in copies]
    other = [one for one in figure_1() if one.config["method"] != "model-tuning"]
    both = other + [replace(one, experiment="figure-1") for one in tuned] + tuned
    assert words(both, [row("baselines", "majority", 0.5)])[1] == "not testable here"


def test_a_run_without_a_selection_score_is_left_out():
    def lost(one):
        return replace(one, notes=one.notes | {"selection_score": None, "history": []})

    rows = figure_1()
    text = [lost(one) if one.config.get("shots") == 4 else one for one in rows]
    beats = {verdict.claim.number: verdict.difference for verdict in decide(text)}[2]
    prompts = np.mean([right(share, seed).count("1") / NUM for share in (0.6, 0.85) for seed in range(3)])
    assert beats.interval.mean == pytest.approx(prompts - right(0.55, 0).count("1") / NUM)
    prompt = [lost(one) if one.seed == 2 and one.config["method"] == "prompt-tuning" else one for one in rows]
    assert words(prompt)[3] == words(rows)[3]
    nothing = [lost(one) for one in rows]
    assert (words(nothing)[2], words(nothing)[3]) == ("not testable here", "not testable here")
    votes = [row("table-3", "five prompts", 0.7, seed) for seed in (*range(5), VOTE)]
    assert words([lost(one) for one in votes])[17] == "not testable here"


def test_the_three_smallest_sets_decide_nothing_alone():
    def lengths(*tasks):
        points = (("1", 0.5), ("20", 0.9))
        return [row("figure-3a", p, share, s, task=task) for p, share in points for s in range(3) for task in tasks]

    assert words(lengths("superglue/cb", "superglue/copa"))[4] == "not testable here"
    found = {verdict.claim.number: verdict for verdict in decide(lengths("superglue/cb", "superglue/rte"))}
    assert (found[4].word, found[4].tasks) == ("seen", ("superglue/cb", "superglue/rte"))


def test_rows_made_again_count_once_and_those_of_other_settings_not_at_all():
    def lengths(share, **more):
        points = (("1", 0.5), ("20", share))
        return [row("figure-3a", point, own, seed, **more) for point, own in points for seed in range(3)]

    def difference(rows):
        return {verdict.claim.number: verdict for verdict in decide(rows)}[4].difference

    new = lengths(0.9, settings={"steps": 100})
    quick = [replace(r, notes=r.notes | {"right": r.notes["right"][:10]}) for r in lengths(0.1, settings={"steps": 3})]
    assert difference(quick + lengths(0.1, settings={"steps": 100}) + new) == difference(new)
    other = [replace(r, config=r.config | {"fingerprint": "of a model before"}) for r in lengths(0.1)]
    assert difference(other + new) == difference(new)


def test_the_table_has_a_line_for_each_claim():
    lines = as_table(decide(figure_1()))
    assert lines[1][4] == "<0.001", "the smallest that so many draws can give is no zero"
    assert len(lines) == 1 + len(CLAIMS)
    assert lines[1][0] == "1" and lines[1][2].startswith("+") and lines[1][-2:] == ["seen", "sst2"]
    assert lines[4][2:] == ["-", "-", "-", "not testable here", "-"]
