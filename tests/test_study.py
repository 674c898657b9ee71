"""Runs that train together, and the paper's experiments over them: nothing run twice, nothing lost."""

import errno
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer, tiny_lm

from softprompt.answering.rows import Result, append_rows, read_rows
from softprompt.base.watch import Watch
from softprompt.cli.command_line import main
from softprompt.prompts import load_prompt
from softprompt.study.comparison import settings_of_row
from softprompt.study.experiments import EXPERIMENTS
from softprompt.study.rows import VOTE, newest, table
from softprompt.study.runs import (
    _by_model,
    _others_of,
    config_of_row,
    missing,
    plan_experiment,
    rerun,
    run_experiment,
)
from softprompt.tasks import TASKS as TASKS_BY_NAME
from softprompt.tasks import get_task
from softprompt.training.run import load_model, train, train_together
from softprompt.training.settings import RunConfig

TASKS = ("superglue/rte", "glue/sst2")


@pytest.fixture
def data(tmp_path):
    """600 training and 12 dev examples of two tasks, official format."""
    rte, sst2 = tmp_path / "data" / "superglue" / "RTE", tmp_path / "data" / "glue" / "SST-2"
    rte.mkdir(parents=True)
    sst2.mkdir(parents=True)
    for name, first, count in (("train", 0, 600), ("val", 1000, 12)):
        records = [
            {"idx": n, "premise": f"day {n} was warm", "hypothesis": f"it was {word} on day {n}", "label": label}
            for n in range(first, first + count)
            for word, label in [("warm", "entailment") if n % 2 else ("dull", "not_entailment")]
        ]
        (rte / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        lines = [f"a {'warm' if n % 2 else 'dull'} film about day {n}\t{n % 2}" for n in range(first, first + count)]
        (sst2 / f"{'dev' if name == 'val' else name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return tmp_path / "data"


@pytest.fixture
def base(data, tmp_path):
    return RunConfig(
        model="tiny",
        task=TASKS,
        data=data,
        out=tmp_path / "runs",
        prompt_length=(3,),
        learning_rate=(0.1,),
        steps=4,
        batch_size=4,
        evaluate_every=2,
        num_selection=8,
        seeds=(0, 1),
        scoring="rank",
    )


def test_runs_together_end_where_each_ends_alone(lm, base, tmp_path):
    configs = [
        replace(base, out=tmp_path / "long", prompt_length=(5,)),
        replace(base, out=tmp_path / "uniform", init="uniform", task=TASKS[:1]),
    ]
    together = train_together(configs, folder=tmp_path / "shared", lm=lm)
    for config, found in zip(configs, together, strict=True):
        alone = train(replace(config, out=tmp_path / "alone" / config.out.name), lm=lm)
        assert [one.folder.name for one in found] == [one.folder.name for one in alone]
        for ours, theirs in zip(found, alone, strict=True):
            assert ours.prompt.length == theirs.prompt.length and ours.prompt.card.init == theirs.prompt.card.init
            assert torch.allclose(ours.prompt.values, theirs.prompt.values, atol=1e-3 * 0.1)
            assert ours.fitted.step == theirs.fitted.step
        rows = read_rows(config.out / "results.jsonl")
        assert {(row.task, row.seed) for row in rows} == {(task, seed) for task in config.task for seed in (0, 1)}


def test_dropout_masks_are_those_of_the_run_alone(t5, base, tmp_path):
    configs = [
        replace(base, out=tmp_path / name, init=name, dropout=0.1, task=TASKS[1:], seeds=(0,), optimizer="adafactor")
        for name in ("uniform", "vocab")
    ]
    together = train_together(configs, folder=tmp_path / "shared", lm=t5)
    for config, (ours,) in zip(configs, together, strict=True):
        (alone,) = train(replace(config, out=tmp_path / "alone" / config.out.name), lm=t5)
        assert torch.allclose(ours.prompt.values, alone.prompt.values, atol=1e-3 * 0.1)


def test_folds_serve_their_own_run(llama, base, tmp_path):
    configs = [
        replace(base, out=tmp_path / name, init=name, select="cross-validation", seeds=(0,), task=TASKS[1:])
        for name in ("uniform", "vocab")
    ]
    together = train_together(configs, folder=tmp_path / "shared", lm=llama)
    for config, (ours,) in zip(configs, together, strict=True):
        (alone,) = train(replace(config, out=tmp_path / "alone" / config.out.name), lm=llama)
        assert ours.fitted.score == pytest.approx(alone.fitted.score)


def test_runs_together_have_the_labels_and_the_metric_of_their_own(llama, base, tmp_path):
    for split in ("train", "dev"):
        lines = [json.dumps({"text": f"{split} day {n}", "label": "ab"[n % 2]}) for n in range(12)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    data = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "dev")}
    own = replace(base, task=(), data=data, inputs="{text}", targets="{label}", seeds=(0,), select="held-out")
    configs = [
        replace(own, out=tmp_path / "two", labels=("a", "b")),
        replace(own, out=tmp_path / "three", labels=("a", "b", "c"), metric="f1"),
    ]
    with pytest.warns(UserWarning, match="no training example has the label 'c'"):
        found = train_together(configs, folder=tmp_path / "shared", lm=llama)
    assert [list(one.dev.metrics) for (one,) in found] == [["accuracy"], ["macro_f1"]]
    assert [one.prompt.card.labels for (one,) in found] == [("a", "b"), ("a", "b", "c")]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "other"}, "share their model, but .*a has 'tiny' and .*b has 'other'"),
        ({"minutes": 3.0}, "share their minutes"),
        ({"out": "a"}, "two runs write to a; give each a folder of its own name"),
    ],
)
def test_runs_that_cannot_go_together_are_refused(llama, base, tmp_path, changes, reason):
    if "out" in changes:
        changes = {"out": tmp_path / changes["out"]}
    first = replace(base, out=tmp_path / "a")
    with pytest.raises(ValueError, match=reason):
        train_together([first, replace(first, **{"out": tmp_path / "b"} | changes)], folder=tmp_path, lm=llama)
    with pytest.raises(ValueError, match="no run was given"):
        train_together([], folder=tmp_path, lm=llama)


def test_an_experiment_makes_a_row_for_each_point_task_seed_scoring_and_vote(llama, base, tmp_path):
    told = []
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study"}
    from softprompt.base.watch import Watch

    assert run_experiment("figure-3b", ["tiny"], base, **options, load=lambda _: llama) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    wanted = {
        (point, task, seed, scoring)
        for point in ("uniform", "vocab", "class-labels")
        for task in TASKS
        for seed in (0, 1, VOTE)
        for scoring in ("rank", "generate")
    }
    assert {(row.config["point"], row.task, row.seed, row.scoring) for row in rows} == wanted
    assert len(rows) == len(wanted)
    for row in rows:
        assert row.value == pytest.approx(row.notes["right"].count("1") / 12)
        assert row.experiment == "figure-3b" and row.config["frozen"] == "tiny"
        assert ("neighbourhood" in row.notes) == (row.seed != VOTE)
    # Once more: nothing runs, nothing is added.
    watch = Watch(message=told.append)
    assert run_experiment("figure-3b", ["tiny"], base, **options, watch=watch, load=lambda _: 1 / 0) == []
    assert len(read_rows(tmp_path / "rows.jsonl")) == len(rows)
    assert told[0] == f"figure-3b uniform: its rows are in {tmp_path / 'rows.jsonl'}"
    shown = table(rows)
    assert "| tiny | uniform | rank |" in shown and len(shown.splitlines()) == 2 + 3 * 2


def test_a_run_that_fails_is_named_and_the_others_go_on(llama, base, tmp_path):
    def load(config):
        if config.model == "gone":
            raise ValueError("no folder gone; give a local folder")
        return llama

    failures = run_experiment(
        "table-3", ["gone", "tiny"], base, rows=tmp_path / "rows.jsonl", out=tmp_path / "study", load=load
    )
    assert failures == ["gone: no folder gone; give a local folder"]
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row.config["asked"] for row in rows} == {"tiny"}
    assert {row.seed for row in rows} == {0, 1, 2, 3, 4, VOTE}


def family(folder):
    """Folders as pretrain and adapt leave them, with a tiny T5 in each."""
    for inside in ("span", "lm/steps/2", "lm/steps/10", "lm"):
        place = folder / inside
        make_model("t5").save_pretrained(place)
        make_tokenizer().save_pretrained(place)
    return folder


def test_points_inside_a_family_are_found_in_the_order_of_their_steps_and_shared(base, tmp_path):
    place = family(tmp_path / "family")
    for other in ("0", ".10.77"):  # the model before, kept too; and what a kill left
        shutil.copytree(place / "lm" / "steps" / "2", place / "lm" / "steps" / other)
    planned = plan_experiment("figure-3d", [str(place)], base, tmp_path)
    assert [(one.point.name, Path(one.config.model).name) for one in planned] == [
        ("0", "span"),
        ("2", "2"),
        ("10", "10"),
    ]
    # The controls are ours, and a family without them has the paper's three points.
    three = plan_experiment("figure-3c", [str(place)], base, tmp_path)
    assert [one.point.name for one in three] == ["span", "span+sentinel", "lm"]
    (place / "lm" / "config.json").unlink()
    with pytest.raises(ValueError, match="holds no model lm, which the point 'lm' needs"):
        plan_experiment("figure-3c", [str(place)], base, tmp_path)


def test_figure_1_runs_each_method_with_its_own_trials(base, tmp_path):
    place = family(tmp_path / "family")
    models, options = [str(place / "lm")], {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study"}
    small = replace(base, task=TASKS[1:], seeds=(0,))
    planned = plan_experiment("figure-1", [*models, "tiny"], small, tmp_path)
    assert [(one.point.name, Path(one.config.model).name) for one in planned] == [
        ("prompt tuning", "lm"), ("model tuning", "lm"), ("model tuning from span", "span"),
        ("model tuning (multi-task)", "lm"), ("prompt design", "lm"),
        ("prompt tuning", "tiny"), ("model tuning", "tiny"), ("model tuning (multi-task)", "tiny"),
        ("prompt design", "tiny"),
    ]  # fmt: skip
    shots = [f"prompt design, {n} shots" for n in ("0", "4", "16", "full")]
    assert run_experiment("figure-1", models, small, **options, points=["prompt design"]) == []
    assert [row.config["point"] for row in read_rows(tmp_path / "rows.jsonl")] == shots
    options["model_rates"] = (0.01,)
    assert run_experiment("figure-1", models, small, **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    rows = rows[len(shots) :] + rows[: len(shots)]
    assert [row.config["point"] for row in rows if row.seed == 0] == [
        "prompt tuning", "model tuning", "model tuning (multi-task)", "model tuning from span", *shots,
    ]  # fmt: skip
    assert all(row.config["tried"] and row.config["asked"] == models[0] for row in rows)
    assert run_experiment("figure-1", models, small, **options) == []
    assert len(read_rows(tmp_path / "rows.jsonl")) == len(rows)
    for number in (0, 1, 2, 4):
        again = tmp_path / "again" / str(number)
        assert rerun(rows[number], data=base.data, out=again) == rows[number].metrics


def test_the_papers_presets_try_the_papers_rates_alone(base, tmp_path):
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out"}
    options["points"] = ["prompt tuning", "model tuning", "model tuning (multi-task)"]
    place = str(family(tmp_path / "family") / "lm")
    paper = replace(base, task=TASKS[1:], seeds=(0,), preset="paper", learning_rate=None)
    assert run_experiment("figure-1", [place], paper, **options) == []
    rates = {row.config["point"]: row.config["tried"] for row in read_rows(tmp_path / "rows.jsonl")}
    assert {point: [one["learning_rate"] for one in tried] for point, tried in rates.items()} == {
        "prompt tuning": [0.3], "model tuning": [0.001], "model tuning (multi-task)": [0.001],
    }  # fmt: skip
    planned = plan_experiment("figure-1", [place], paper, tmp_path)
    assert [one.num_runs for one in planned[:2]] == [1, 1.5]


def test_a_rate_of_prompts_is_not_model_tunings(base, tmp_path):
    def rates(**more):
        planned = plan_experiment("figure-1", ["tiny"], replace(base, learning_rate=(0.3,)), tmp_path, **more)
        return [one.config.learning_rate for one in planned]

    assert rates() == [(0.3,), None, None, (0.3,)]  # the last is of prompt design, which has none
    assert rates(model_rates=(1e-3,)) == [(0.3,), (1e-3,), (1e-3,), (0.3,)]


def test_the_model_before_adaptation_may_have_a_name_of_its_own(base, tmp_path):
    sizes = ("small", "base")
    asked = [f"google/t5-{size}-lm-adapt" for size in sizes]
    before = {f"google/t5-{size}-lm-adapt": f"google/t5-v1_1-{size}" for size in sizes}
    planned = plan_experiment("figure-1", asked, base, tmp_path, before=before)
    from_span = [one for one in planned if one.point.name == "model tuning from span"]
    assert [(one.asked, one.config.model) for one in from_span] == list(before.items())
    with pytest.raises(ValueError, match="no point of figure-3a that is asked for trains the model before LM adaptat"):
        plan_experiment("figure-3a", asked, base, tmp_path, before=before)
    with pytest.raises(ValueError, match="no point of figure-1 that is asked for"):
        plan_experiment("figure-1", asked, base, tmp_path, ["prompt tuning"], before=before)


def test_rows_of_another_mixture_or_other_draws_do_not_stand_for_this_one(base, tmp_path):
    place, options = str(family(tmp_path / "family") / "lm"), {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out"}
    both = replace(base, seeds=(0,))
    options |= {"points": ["model tuning (multi-task)"], "model_rates": (0.01,)}
    assert run_experiment("figure-1", [place], both, **options) == []
    assert not missing("figure-1", [place], both, **options)
    alone = replace(both, task=TASKS[1:])
    assert len(missing("figure-1", [place], alone, **options)) == 1
    assert run_experiment("figure-1", [place], alone, **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row.config["task"] for row in rows] == [[*TASKS], [*TASKS], [*TASKS[1:]]]
    assert len(newest(rows)) == 2, "one mixture to a table, the last"
    del options["model_rates"]
    options["points"] = ["prompt design"]
    assert run_experiment("figure-1", [place], alone, **options) == []
    assert len(missing("figure-1", [place], replace(alone, seeds=(0, 1)), **options)) == 1


def test_minutes_are_shared_and_rows_they_cut_short_do_not_stand_for_a_longer_run(llama, base, tmp_path):
    planned = plan_experiment("figure-1", ["tiny"], replace(base, minutes=14.0), tmp_path)
    (group,) = _by_model(planned, load_model)
    # Prompt tuning and model tuning of two tasks each, multi-task tuning once; prompt design trains nothing.
    assert {one.config.minutes for one in group} == {14.0 / 5}
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "points": ["5"], "load": lambda _: llama}
    base = replace(base, minutes=60.0)
    assert run_experiment("figure-3a", ["tiny"], base, **options) == []
    assert not missing("figure-3a", ["tiny"], replace(base, minutes=None), **options), "it came to its end"
    cut = [replace(row, steps_run=2) for row in read_rows(tmp_path / "rows.jsonl")]
    (tmp_path / "rows.jsonl").unlink()
    append_rows(tmp_path / "rows.jsonl", cut)
    assert [len(missing("figure-3a", ["tiny"], replace(base, minutes=m), **options)) for m in (60.0, 90.0, None)] == [
        0, 1, 1,
    ]  # fmt: skip


def test_a_set_whose_file_comes_later_is_scored_then(base, tmp_path):
    data = squad_and_bioasq(tmp_path / "questions")
    (data / "mrqa" / "BioASQ").rename(tmp_path / "away")
    base = replace(base, data=data, scoring="generate", seeds=(0,), max_dev=8, learning_rate=(0.1,))
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "points": ["prompt tuning"]}
    place = str(family(tmp_path / "family") / "lm")
    assert run_experiment("table-1", [place], base, **options) == []
    assert not missing("table-1", [place], base, **options)
    (tmp_path / "away").rename(data / "mrqa" / "BioASQ")
    assert len(missing("table-1", [place], base, **options)) == 1
    assert run_experiment("table-1", [place], base, **options) == []
    assert {row.task for row in read_rows(tmp_path / "rows.jsonl")} == {"mrqa/squad", "mrqa/bioasq"}
    assert not missing("table-1", [place], base, **options)


def test_further_seeds_take_the_rate_that_was_chosen_and_nothing_is_made_twice(base, tmp_path):
    place, options = str(family(tmp_path / "family") / "lm"), {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "out"}
    options["points"] = ["prompt tuning"]
    small = replace(base, task=TASKS[1:], seeds=(0,), learning_rate=(0.01, 0.1))
    assert run_experiment("figure-1", [place], small, **options) == []
    (first,) = read_rows(tmp_path / "rows.jsonl")
    more = replace(small, seeds=(0, 1))
    assert len(missing("figure-1", [place], more, **options)) == 1
    assert run_experiment("figure-1", [place], more, **options) == []
    again, second = read_rows(tmp_path / "rows.jsonl")
    assert again == first and second.seed == 1
    for name in ("learning_rate", "tried", "settings"):
        assert second.config[name] == first.config[name]
    assert len(first.config["tried"]) == 2 and not missing("figure-1", [place], more, **options)


def test_a_model_trained_anew_in_its_place_has_no_rows_yet(base, tmp_path):
    place, rows = family(tmp_path / "family") / "lm", tmp_path / "rows.jsonl"
    options = {"rows": rows, "out": tmp_path / "out", "points": ["vocab"]}
    small = replace(base, task=TASKS[1:], seeds=(0,))
    assert run_experiment("figure-3b", [str(place)], small, **options) == []
    first = read_rows(rows)
    assert not missing("figure-3b", [str(place)], small, **options)
    make_model("t5", seed=1).save_pretrained(place)
    assert len(missing("figure-3b", [str(place)], small, **options)) == 1
    assert run_experiment("figure-3b", [str(place)], small, **options) == []
    found = read_rows(rows)
    assert found[: len(first)] == first and len(found) == 2 * len(first)
    assert len({row.config["fingerprint"] for row in found}) == 2
    assert newest(found) == found[len(first) :] and not missing("figure-3b", [str(place)], small, **options)


def test_a_point_that_cannot_start_is_named_and_the_others_train(base, tmp_path):
    lm = tiny_lm("gpt2", n_positions=128)
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "load": lambda _: lm}
    small, told = replace(base, task=TASKS[1:], seeds=(0,)), []
    points = {"points": ["20", "150", "5"], "watch": Watch(message=told.append)}
    (failure,) = run_experiment("figure-3a", ["tiny"], small, **options, **points)
    assert failure.startswith("tiny, 150: ") and "prompt 150 + input" in failure
    assert "tiny, 150 cannot start; the others do" in told
    assert {row.config["point"] for row in read_rows(tmp_path / "rows.jsonl")} == {"20", "5"}


def test_seeds_of_prompts_that_train_together_are_made_again_and_counted_once(llama, base, tmp_path):
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "load": lambda _: llama}
    small = replace(base, task=TASKS[1:])
    for seeds in ((0, 1), (0, 1, 2)):
        assert run_experiment("figure-3b", ["tiny"], replace(small, seeds=seeds), points=["vocab"], **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    kept = [row for row in newest(rows) if row.scoring == "rank"]
    assert sorted(row.seed for row in kept) == [VOTE, 0, 1, 2] and len(rows) == 2 * (3 + 4)
    votes = [row for row in rows if (row.scoring, row.seed) == ("rank", VOTE)]
    assert [row for row in kept if row.seed == VOTE] == votes[1:]
    assert table(rows) == table(newest(rows))


def test_a_task_without_a_dev_file_is_named_before_anything_trains_and_the_others_go_on(llama, base, tmp_path):
    (base.data / "superglue" / "RTE" / "val.jsonl").unlink()
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "load": lambda _: llama}
    failures = run_experiment("figure-3b", ["tiny"], replace(base, seeds=(0,)), points=["vocab"], **options)
    assert failures == [f"tiny, superglue/rte: no dev file in {base.data}, and a point needs one to be scored"]
    assert {row.task for row in read_rows(tmp_path / "rows.jsonl")} == {"glue/sst2"}


def test_models_beside_the_one_asked_about_are_named_as_it_was(tmp_path, monkeypatch):
    family(tmp_path / "family")
    monkeypatch.chdir(tmp_path)
    base = RunConfig(model="-", task=TASKS[1:])
    planned = plan_experiment("figure-1", ["family/lm"], base, tmp_path)
    assert [one.config.model for one in planned][1:3] == ["family/lm", "family/span"]
    planned = plan_experiment("figure-3d", ["family"], base, tmp_path)
    assert [one.config.model for one in planned] == ["family/span", "family/lm/steps/2", "family/lm/steps/10"]


def test_table_1_and_2_score_other_tasks_and_name_what_is_missing(tmp_path):
    base = RunConfig(model="tiny", task=("glue/sst2",))
    for name, ways in (("table-1", 2), ("table-2", 4)):
        planned = plan_experiment(name, ["tiny"], base, tmp_path)
        assert len(planned) == ways and all(one.point.method and one.point.also for one in planned)
        for one in planned:
            assert one.config.task != base.task
            for other, labels in one.point.also.items():
                here, there = get_task(one.config.task[0]).labels, get_task(other).labels
                assert (set(labels), set(labels.values())) == ((set(here), set(there)) if here else (set(), set()))


def squad_and_bioasq(folder):
    """600 training and 12 dev questions of SQuAD, and 12 of BioASQ, official format."""
    for name, split, count in (("SQuAD", "train", 600), ("SQuAD", "dev", 12), ("BioASQ", "dev", 12)):
        (folder / "mrqa" / name).mkdir(parents=True, exist_ok=True)
        records = [
            {
                "context": f"{name} {split} day {n} was {word}.",
                "qas": [{"qid": f"{name}{split}{n}", "question": f"what was day {n}?", "answers": [word]}],
            }
            for n in range(count)
            for word in [("warm", "dull")[n % 2]]
        ]
        lines = [json.dumps({"header": {}}), *map(json.dumps, records)]
        (folder / "mrqa" / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    with (folder / "mrqa" / "SQuAD" / "train.jsonl").open("a") as file:  # one of BioASQ's that leaked
        file.write(json.dumps(records[0] | {"context": records[0]["context"].upper()}) + "\n")
    return folder


def test_table_1_runs_on_the_sets_there_are_with_scores_along_training(base, tmp_path):
    data = squad_and_bioasq(tmp_path / "questions")
    base = replace(base, data=data, scoring="generate", seeds=(0,), max_dev=8)
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "model_rates": (0.01,)}
    place = str(family(tmp_path / "family") / "lm")
    assert run_experiment("table-1", [place], base, **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [(row.config["point"], row.task) for row in rows] == [
        (point, task) for point in ("prompt tuning", "model tuning") for task in ("mrqa/squad", "mrqa/bioasq")
    ]
    for row in rows:
        assert row.num_examples == 8 and [entry["step"] for entry in row.notes["along"]] == [2, 4]
        # Class labels, the preset's start, are not to be had.
        assert row.config["init"] is None and set(row.metrics) == {"em", "f1"}
        assert row.notes["overlap_with"] == {"mrqa/bioasq": 1}
        assert "mrqa/textbookqa has no" not in str(row.notes["not_run"])
        assert "no dev file of mrqa/textbookqa" in row.notes["not_run"]["mrqa/textbookqa"]
    for number in (0, 1):  # in domain, and away from home
        again = tmp_path / "again" / str(number)
        assert rerun(rows[number], data=data, out=again) == rows[number].metrics
        stored = [Path(folder) / "prompt-tuning-seed-0.safetensors" for folder in (again, rows[number].config["out"])]
        assert stored[0].read_bytes() == stored[1].read_bytes(), "trained without the rows that were left out then"
    assert config_of_row(rows[1], data=data, out=tmp_path).task == ("mrqa/squad",)
    questions = data / "mrqa" / "SQuAD" / "train.jsonl"
    questions.write_text(questions.read_text().replace("what was day 3?", "how was day 3?"))
    for row in rows:
        with pytest.raises(ValueError, match=r"had other examples of mrqa/squad than there are now .examples is"):
            rerun(row, data=data, out=tmp_path / "other")


def test_table_1_trains_on_squad_1_1_where_there_is_one_and_chooses_by_its_f1(base, tmp_path, monkeypatch):
    data, task = squad_and_bioasq(tmp_path / "questions"), get_task("squad/v1.1")
    (data / "squad").mkdir()
    for split in ("train", "dev"):
        lines = (data / "mrqa" / "SQuAD" / f"{split}.jsonl").read_text().splitlines()[1:]
        paragraphs = []
        for number, record in enumerate(map(json.loads, lines)):
            answers = [{"text": answer, "answer_start": 0} for answer in record["qas"][0]["answers"]]
            asked = {"id": f"{split}{number}", "question": record["qas"][0]["question"], "answers": answers}
            paragraphs.append({"context": record["context"], "qas": [asked]})
        article = {"title": "Days", "paragraphs": paragraphs}
        (data / "squad" / f"{split}-v1.1.json").write_text(json.dumps({"version": "1.1", "data": [article]}))
    fixed = replace(task, metrics=lambda answers, examples: {"em": 0.25, "f1": 0.75})
    monkeypatch.setitem(TASKS_BY_NAME, task.name, fixed)  # what a tiny model writes has neither
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "points": ["prompt tuning"]}
    place = str(family(tmp_path / "family") / "lm")
    paper = replace(base, data=data, scoring="generate", seeds=(0,), select="dev", num_selection=None)
    assert run_experiment("table-1", [place], paper, **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    assert [row.task for row in rows] == ["squad/v1.1", "mrqa/bioasq"]
    assert rows[0].selection == "dev" and rows[0].notes["selection_score"] == 0.75
    assert (rows[0].num_examples, rows[0].notes["train_used"]) == (12, 600), "without BioASQ's that leaked"
    asked_of_hub = plan_experiment("table-1", [place], replace(base, data=None), tmp_path)
    assert {one.config.task for one in asked_of_hub} == {("squad/v1.1",)}


def test_a_row_of_a_preset_that_kept_no_overlap_yet_keeps_none_when_it_is_run_again(base, tmp_path):
    (now,) = plan_experiment("table-3", ["tiny"], replace(base, preset="paper"), tmp_path)
    assert now.settings["keep_overlap"] is True
    older = {name: value for name, value in now.settings.items() if name != "keep_overlap"}
    config = {"train": {"optimizer": {"learning_rate": 0.3}}, "prompt_length": 100, "preset": "paper"}
    row = made_up("table-3", "glue/sst2", config | {"model": "tiny", "settings": older})
    assert config_of_row(row, data=base.data, out=tmp_path).keep_overlap is False
    row = replace(row, config=row.config | {"keep_overlap": None})
    assert config_of_row(row, data=base.data, out=tmp_path).keep_overlap is None
    assert config_of_row(row, data=base.data, out=tmp_path).patience == 0, "it was trained to its last step"
    assert settings_of_row(row) != now.settings, "rows that kept none do not stand for rows that do"


def test_labels_of_the_other_task_are_those_of_the_experiment():
    notes = {"trained_on": "glue/qqp", "point": "prompt tuning, glue/qqp"}
    labels = {"duplicate": "equivalent", "not_duplicate": "not_equivalent"}
    assert _others_of(made_up("table-2", "glue/mrpc", notes)) == {"glue/mrpc": labels}
    assert _others_of(made_up("table-2", "glue/qqp", notes | {"also": ["glue/mrpc"]})) == {"glue/mrpc": labels}
    assert _others_of(made_up("compare", "glue/qqp", notes)) == {}


def made_up(experiment, task, config):
    """A row that nothing made."""
    return Result(
        experiment=experiment, config=config, model="tiny", task=task, split="dev", selection="held-out",
        scoring="rank", metrics={}, value=0.5, illegal_rate=0.0, num_examples=1, step=1, steps_run=1, seconds=1.0,
        seed=0, notes={"line": "here\u2028there"},
    )  # fmt: skip


def test_rows_are_added_beside_others_and_all_of_them_or_none(tmp_path, monkeypatch):
    path, row = tmp_path / "deep" / "rows.jsonl", made_up("figure-3a", "glue/sst2", {"point": "1"})
    row = replace(row, notes={"right": "1" * 9_000})  # more than one page of the disk, so that half of it can be seen
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: append_rows(path, [replace(row, seed=seed)] * 2), range(20)))
    assert sorted(one.seed for one in read_rows(path)) == sorted([*range(20)] * 2)
    before = path.read_bytes()
    write = io.FileIO.write

    class Full(io.FileIO):
        room = 30

        def write(self, data):
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken, self.room = data[: self.room], 0
            return write(self, taken)

    opens = type(path).open
    monkeypatch.setattr(
        type(path),
        "open",
        lambda self, mode="r", *of, **more: Full(self, "a+") if mode == "a+b" else opens(self, mode, *of, **more),
    )
    with pytest.raises(OSError, match="No space left on device"):
        append_rows(path, [row])
    assert path.read_bytes() == before


def test_rows_of_another_experiment_are_copied_and_not_made_again(base, tmp_path, monkeypatch):
    place, options = family(tmp_path / "family"), {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study"}
    objectives, steps = EXPERIMENTS["figure-3c"], EXPERIMENTS["figure-3d"]
    monkeypatch.setitem(EXPERIMENTS, "figure-3c", replace(objectives, points=objectives.points[2:3]))  # span alone
    small = replace(base, task=TASKS[:1], seeds=(0,))
    assert run_experiment("figure-3c", [str(place)], small, **options) == []
    count = len(read_rows(tmp_path / "rows.jsonl"))
    monkeypatch.setitem(EXPERIMENTS, "figure-3d", replace(steps, points=steps.points[:1]))
    assert run_experiment("figure-3d", [str(place)], small, **options) == []
    rows = read_rows(tmp_path / "rows.jsonl")
    assert len(rows) == 2 * count
    assert {(row.experiment, row.config["point"]) for row in rows} == {("figure-3c", "span"), ("figure-3d", "0")}


def test_a_row_is_run_again_from_what_it_says(llama, base, tmp_path):
    small = replace(base, task=TASKS[1:])
    assert run_experiment(
        "figure-3b", ["tiny"], small, rows=tmp_path / "rows.jsonl", out=tmp_path / "study", load=lambda _: llama
    ) == []  # fmt: skip
    rows = read_rows(tmp_path / "rows.jsonl")
    for number, row in enumerate(rows):
        if row.seed == VOTE:
            with pytest.raises(ValueError, match="this row is a vote of several prompts"):
                config_of_row(row, data=base.data, out=tmp_path)
            continue
        found = rerun(row, data=base.data, out=tmp_path / "again" / str(number), lm=llama)
        assert found == row.metrics
    changed = replace(rows[0], config=rows[0].config | {"fingerprint": "0" * 8})
    with pytest.raises(
        ValueError, match=r"is not the model that the row was made with: its fingerprint is .*, and the row"
    ):
        rerun(changed, data=base.data, out=tmp_path / "other", lm=llama)


def test_a_row_of_other_examples_is_not_run_again(llama, base, tmp_path):
    options = {"rows": tmp_path / "rows.jsonl", "out": tmp_path / "study", "points": ["vocab"], "load": lambda _: llama}
    assert run_experiment("figure-3b", ["tiny"], replace(base, task=TASKS[1:], seeds=(0,)), **options) == []
    row = read_rows(tmp_path / "rows.jsonl")[0]
    older = replace(row, notes={name: value for name, value in row.notes.items() if name != "examples"})
    file = base.data / "glue" / "SST-2" / "train.tsv"
    text = file.read_text()
    for changed, cases in (
        (text.replace("day 3\t1", "day 3\t0"), [(row, r"examples is [0-9a-f]{8}, and in the row [0-9a-f]{8}")]),
        (text + "one more\t1\n", [(row, "examples is"), (older, "train_used is 541, and in the row 540")]),
    ):
        assert changed != text
        file.write_text(changed)
        for one, reason in cases:
            with pytest.raises(ValueError, match=f"had other examples of glue/sst2 than there are now .{reason}"):
                rerun(one, data=base.data, out=tmp_path / "again", lm=llama)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("method", [None, "prompt", "kv"])
def test_a_row_of_train_is_run_again_as_it_was_trained_in_folds_too(llama, base, tmp_path, method):
    config = replace(base, task=TASKS[1:], seeds=(0,), max_train=40, method=method, out=tmp_path / "run")
    (first,) = train(config, lm=llama)
    (row,) = read_rows(tmp_path / "run" / "results.jsonl")
    assert row.selection == "cross-validation"
    assert rerun(row, data=base.data, out=tmp_path / "again", lm=llama) == row.metrics
    assert load_prompt(tmp_path / "again").sha256 == first.prompt.sha256


def test_the_rerun_command(data, tmp_path, capsys):
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    shared = ["--data", str(data), "--out", str(tmp_path / "out")]
    words = [
        "--models",
        str(tmp_path / "model"),
        "--tasks",
        "glue/sst2",
        "--seeds",
        "0",
        "--quick",
        "--scoring",
        "rank",
    ]
    rows = str(tmp_path / "rows.jsonl")
    assert main(["experiment", "figure-3b", *words, *shared, "--rows", rows]) == 0
    capsys.readouterr()
    again = ["--data", str(data), "--out", str(tmp_path / "again")]
    assert main(["rerun", f"{rows}:1", *again]) == 0
    value = f"{read_rows(Path(rows))[0].value:.4f}"
    assert capsys.readouterr().out == f"glue/sst2, seed 0, rank: {value} now, {value} in the row\n"
    for row, out, reason in (
        (f"{rows}:1", "again", "holds a prompt already; give another --out"),
        (f"{rows}:99", "new", "has 6 rows, and no line 99"),
        (rows, "new", "names no row; give a file and a line, such as results/study.jsonl:12"),
        ("none.jsonl:1", "new", "no file none.jsonl"),
    ):
        assert main(["rerun", row, "--data", str(data), "--out", str(tmp_path / out)]) == 2
        assert reason in capsys.readouterr().err


def test_the_command_runs_on_a_folder_and_lists_what_there_is(data, tmp_path, capsys):
    lm = tiny_lm("t5")
    lm.model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    words = ["experiment", "figure-3b", "--models", str(tmp_path / "model"), "--tasks", "glue/sst2", "--seeds", "0,1"]
    words += ["--data", str(data), "--quick", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert (tmp_path / "out" / "quick.jsonl").is_file()  # not among the rows that are kept
    shown = capsys.readouterr().out
    assert "| class-labels | generate |" in shown
    assert main([*words, "--points", "uniform"]) == 0  # its rows are there
    assert capsys.readouterr().out == shown
    assert main([*words, "--table"]) == 0
    assert capsys.readouterr().out == shown
    assert main(["experiment"]) == 0
    assert "figure-3a   Prompt length (figure 3a)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["figure-3f", "--models", "x"], "no experiment named 'figure-3f'; did you mean 'figure-3d'?"),
        (["figure-3a"], "which frozen models? give --models M"),
        (["figure-3a", "--models", "x", "--seeds", "a"], "--seeds is 'a'; give whole numbers with commas between"),
        (
            ["figure-1", "--models", "x", "--points", "prompt-design"],
            "figure-1 has no point 'prompt-design'; did you mean 'prompt design'?; it has 'prompt tuning', 'model",
        ),
        (
            ["figure-1", "--models", "x", "y", "--span-model", "z"],
            "--span-model names 1 for 2 models; give one for each",
        ),
        (["table-3", "--models", "x", "--span-model", "z"], "no point of table-3 that is asked for trains the model b"),
        (
            ["figure-3a", "--models", "x", "--model-learning-rate", "1"],
            "trains the model's weights; leave --model-lear",
        ),
        (["figure-3c", "--models", "x"], "x holds no model span, which the point 'span' needs"),
        (["figure-3a", "--models", "x", "--tasks", "glue/sst3"], "no task named 'glue/sst3'; did you mean 'glue/sst2'"),
    ],
)
def test_mistakes_are_said(capsys, tmp_path, words, reason):
    code = main(["experiment", *words, "--rows", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path)])
    assert code == 2
    assert reason in capsys.readouterr().err


def test_how_long_it_will_take_is_said_before_anything_runs(data, tmp_path, capsys):
    place = tmp_path / "model"
    make_model("t5").save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    words = [
        "experiment", "figure-3b", "--tasks", "glue/sst2", "--seeds", "0", "--scoring", "rank", "--data", str(data),
        "--steps", "3", "--batch-size", "4", "--evaluate-every", "3", "--num-selection", "8", "--prompt-length", "3",
        "--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl"), "--threads", "1",
    ]  # fmt: skip
    capsys.readouterr()
    assert main([*words, "--models", str(place)]) == 0
    said = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    first = said.index(f"{place}: a few steps, to see how long it will take")
    assert re.fullmatch(r"estimate: \d+ rows", said[first + 1])
    assert re.fullmatch(r"3 points without rows: about [\d.]+ (s|min.*), scoring included", said[first + 2])
    assert main([*words, "--models", str(place), str(tmp_path / "gone")]) == 1
    said = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert any(line.startswith("no estimate: ") for line in said)
    assert any("its rows are in" in line for line in said)


def test_a_model_is_loaded_once_to_say_how_long_all_its_points_take(data, tmp_path, capsys, monkeypatch):
    place = tmp_path / "model"
    make_model("t5").save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    loaded = []
    monkeypatch.setattr(
        "softprompt.training.load_model", lambda config: loaded.append(config.model) or load_model(config)
    )
    monkeypatch.setattr("softprompt.study.run_experiment", lambda *given, **more: [])
    words = [
        "experiment", "figure-3a", "--points", "1", "5", "--tasks", "glue/sst2", "--seeds", "0", "--data", str(data),
        "--steps", "3", "--batch-size", "4", "--evaluate-every", "3", "--num-selection", "8", "--models", str(place),
        "--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl"), "--threads", "1",
    ]  # fmt: skip
    assert main(words) == 0
    assert capsys.readouterr().err.count("estimate: ") == 2, "one for each length"
    assert loaded == [str(place)]


def test_less_memory_is_had_with_checkpointed_activations_and_quantised_weights(base, tmp_path, capsys):
    make_model("t5", d_model=64, d_kv=32, d_ff=64).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    words = [
        "experiment", "figure-1", "--models", str(tmp_path / "model"), "--points", "prompt tuning", "model tuning",
        "--tasks", "glue/sst2", "--data", str(base.data), "--seeds", "0", "--quick", "--preset", "paper",
        "--prompt-length", "3", "--scoring", "rank", "--dropout", "0", "--steps", "3", "--device", "cpu",
        "--dtype", "float32",
    ]  # fmt: skip
    found = {}
    for name, more in (("plain", []), ("less", ["--checkpoint-activations"]), ("packed", ["--quantize", "8bit"])):
        rows = tmp_path / f"{name}.jsonl"
        code = main([*words, *more, "--rows", str(rows), "--out", str(tmp_path / name)])
        assert code == (name == "packed")
        found[name] = read_rows(rows)
    said = "model-tuning trains weights, but" in (err := capsys.readouterr().err) and "leave --quantize out" in err
    assert said and [row.config["point"] for row in found["packed"]] == ["prompt tuning"]
    for plain, less in zip(found["plain"], found["less"], strict=True):
        assert less.config["checkpoint_activations"] and not plain.config["checkpoint_activations"]
        losses = [[entry["loss"] for entry in row.notes["history"]] for row in (plain, less)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_how_many_trainings_a_point_takes(tmp_path):
    base = RunConfig(model="tiny", task=TASKS, seeds=(0, 1, 2))
    runs = {one.point.name: one.num_runs for one in plan_experiment("figure-1", ["tiny"], base, tmp_path)}
    assert runs == {
        "prompt tuning": 2 * (4 + 2), "model tuning": 1.5 * 2 * (4 + 2), "model tuning (multi-task)": 1.5 * (4 + 2),
        "prompt design": 2 * 2,
    }  # fmt: skip
    assert {one.num_runs for one in plan_experiment("figure-3b", ["tiny"], base, tmp_path)} == {6}
