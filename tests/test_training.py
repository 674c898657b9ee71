"""The training loop: that it learns, stops, resumes and fails as it says."""

import itertools
import json
import os
import random
import re
import resource
import signal
import threading
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from conftest import tiny_lm
from safetensors import safe_open
from safetensors.torch import save_file

from softprompt.answering.engine import Engine
from softprompt.base.curve import CURVE, Curve
from softprompt.base.files import CHECKPOINT, LOCK
from softprompt.base.terminal import Display
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.models.states import Embedded
from softprompt.models.text import Row, collate, default_format, encode_examples
from softprompt.tasks import Example, file_task
from softprompt.training.loop import DIVERGED_STEPS, Member, TrainConfig, fit
from softprompt.training.methods import PromptTuning, gradients
from softprompt.training.optimizers import Adafactor, AdamW

FIRST, SECOND = (11, 1), (12, 1)  # the two labels' ids, end of sequence included
SORT, MIRROR = 50, 51  # the two skills a `skilled` model has, as tokens in front of the input
LABELS = ["sea", "film"]
TASK = file_task(inputs="{text}", targets="{label}", labels=LABELS)


def skill_rows(num_rows, seed, *, skill=None, shuffled=False):
    """An input holds token 40 or 41 among others; SORT answers FIRST or SECOND by it, MIRROR the other way round.

    Without `skill` the skill's token stands in front; with it, nothing in the row says which is meant.
    """
    draw = random.Random(seed)
    rows = []
    for index in range(num_rows):
        kind, named = draw.randrange(2), draw.choice((SORT, MIRROR))
        ids = [draw.randrange(60, 80) for _ in range(draw.randrange(2, 5))]
        ids.insert(draw.randrange(len(ids) + 1), 40 + kind)
        label = draw.randrange(2) if shuffled else kind ^ ((skill or named) == MIRROR)
        rows.append(Row((*((named,) if skill is None else ()), *ids), (FIRST, SECOND)[label], False, index))
    return rows


@pytest.fixture(scope="module", params=["t5", "llama"])
def skilled(request, once):
    return skilled_lm(request.param, once)


def skilled_lm(kind, once):
    """A tiny model that has both skills, and so something for a prompt to ask for: all its weights were trained."""
    return taught(tiny_lm(kind), "rows", lambda step: skill_rows(64, 1000 + step), once)


def taught(lm, name, rows_of_step, once):
    """The model after training all its weights on the rows of 250 steps, frozen again. name: what the rows are."""

    def weights():
        parameters = list(lm.model.requires_grad_(True).parameters())
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        for step in range(250):
            rows = rows_of_step(step)
            batch = collate(rows, [0] * len(rows), 0)
            losses = lm.loss(Embedded(lm.embed(batch.ids), batch.mask), batch.targets, batch.targets_mask)
            loss = losses.sum() / len(rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.1
        return lm.model.state_dict()

    lm.model.load_state_dict(once(f"{lm.name}-taught-{name}", weights))
    return FrozenLM(lm.model, lm.tokenizer._tokenizer, name=lm.name) if not lm.is_encoder_decoder else frozen(lm)


def frozen(lm):
    lm.model.requires_grad_(False)
    for parameter in lm.model.parameters():
        parameter.grad = None
    return lm


def start(lm, seed=0, length=4):
    return torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))


def config(**changes):
    return TrainConfig(**{"steps": 6, "batch_size": 2, "optimizer": AdamW(learning_rate=0.1)} | changes)


def member(lm, name="m", *, rows=None, seed=0, selection=0, folds=(), length=4, **changes):
    """A member; `selection` is how many held-out examples choose its step."""
    texts = ["the sea is warm", "a dull film", "it rained", "a wet street", "the town", "summer"][:selection]
    held = [Example(inputs=t, targets=LABELS[i % 2], id=t, references=(LABELS[i % 2],)) for i, t in enumerate(texts)]
    form = default_format(lm)
    return Member(
        name=name, task=TASK, form=form, config=config(**{"scoring": "rank"} | changes), seed=seed,
        values=start(lm, seed, length), rows=rows or skill_rows(9, seed), selection=held,
        selection_rows=encode_examples(held, form, lm.tokenizer), folds=folds,
    )  # fmt: skip


def mean_loss(lm, prompt, rows):
    return gradients(lm, [prompt], rows, [0] * len(rows), max_tokens=4000)[1][0] / len(rows)


def accuracy(lm, prompt, rows):
    scores = Engine(lm, [prompt], max_tokens=4000).label_scores(rows, [0] * len(rows), [[FIRST, SECOND]] * len(rows))
    right = [(one > other) == (row.target == FIRST) for (one, other), row in zip(scores, rows, strict=True)]
    return sum(right) / len(right)


def test_members_learn_each_its_own_skill_and_nothing_from_shuffled_labels(skilled):
    sets = {
        "sort": skill_rows(300, 1, skill=SORT),
        "mirror": skill_rows(300, 1, skill=MIRROR),
        "shuffled": skill_rows(300, 1, skill=SORT, shuffled=True),
    }
    members = [
        member(skilled, name, rows=rows, steps=60, batch_size=32, evaluate_every=20, length=3 + i)
        for i, (name, rows) in enumerate(sets.items())
    ]
    sort, mirror, shuffled = (result.values for result in fit(skilled, members, max_tokens=4000))
    held = {SORT: skill_rows(200, 2, skill=SORT), MIRROR: skill_rows(200, 2, skill=MIRROR)}
    for prompt, own, other in [(sort, SORT, MIRROR), (mirror, MIRROR, SORT)]:
        assert accuracy(skilled, prompt, held[own]) > 0.97
        assert accuracy(skilled, prompt, held[other]) < 0.03
        assert mean_loss(skilled, prompt, held[own]) < 0.1
    assert mean_loss(skilled, shuffled, held[SORT]) > 0.5
    starts = [mean_loss(skilled, m.values, rows) for m, rows in zip(members[:2], held.values(), strict=True)]
    assert max(starts) > 0.5


def test_adafactor_with_the_papers_settings_learns_too(skilled):
    rows, held = skill_rows(300, 1, skill=MIRROR), skill_rows(200, 2, skill=MIRROR)
    (result,) = fit(skilled, [member(skilled, rows=rows, steps=60, batch_size=32, optimizer=Adafactor())])
    assert accuracy(skilled, result.values, held) > 0.97
    assert result.history[-1]["loss"] < 1.0 and result.history[-1]["step"] == 60


def test_members_with_different_steps_and_evaluations_keep_their_own_pace(llama):
    told = []
    members = [
        member(llama, "short", steps=4, evaluate_every=2, selection=4),
        member(llama, "long", steps=9, evaluate_every=4, selection=4, seed=1),
        member(llama, "blind", steps=7, evaluate_every=5, seed=2),
    ]
    names = [own.name for own in members]
    fitted = fit(
        llama,
        members,
        watch=Watch(score=lambda step, name, loss, score: told.append((step, names.index(name), score is None))),
    )
    assert [(step, i) for step, i, _ in told] == [(2, 0), (4, 0), (4, 1), (5, 2), (7, 2), (8, 1), (9, 1)]
    assert [unscored for _, i, unscored in told] == [i == 2 for _, i, _ in told]
    assert [f.steps_run for f in fitted] == [4, 9, 7]
    assert [[entry["step"] for entry in f.history] for f in fitted] == [[2, 4], [4, 8, 9], [5, 7]]
    assert fitted[2].step == 7 and fitted[2].score is None


def test_the_best_step_is_kept_and_ties_go_to_the_first(llama):
    (fitted,) = fit(llama, [member(llama, steps=12, evaluate_every=1, selection=6)])
    scores = [entry["score"] for entry in fitted.history]
    assert fitted.score == max(scores)
    assert fitted.step == scores.index(max(scores)) + 1
    (again,) = fit(llama, [member(llama, steps=fitted.step, evaluate_every=1, selection=6)])
    assert torch.equal(again.values, fitted.values)


def test_a_member_out_of_patience_leaves_the_batch(llama):
    members = [
        member(llama, "patient", steps=12, evaluate_every=2, selection=4),
        member(llama, "hasty", steps=12, evaluate_every=2, patience=2, selection=4,
               optimizer=AdamW(learning_rate=1e-6), seed=1),
    ]  # fmt: skip
    tokens, told = [], []
    watch = Watch(step=lambda step, loss, computed: tokens.append(computed), message=told.append)
    patient, hasty = fit(llama, members, watch=watch)
    assert hasty.stopped == "no better score in 2 evaluations"
    assert (hasty.steps_run, hasty.step) == (6, 2)
    words = "no better score in 2 evaluations than that of step 2, which is kept; --patience 0 goes on"
    assert told == [f"hasty stopped at step 6: {words}"]
    assert patient.stopped is None and patient.steps_run == 12
    assert max(tokens[6:]) < min(tokens[:6])


def test_members_of_different_dropout_train_as_each_does_alone(t5):
    members = [
        member(t5, f"d{rate}", dropout=rate, z_loss=z, seed=3) for rate, z in [(0.0, 0.0), (0.2, 0.0), (0.0, 0.5)]
    ]
    together = fit(t5, members)
    for own, result in zip(members, together, strict=True):
        assert float((fit(t5, [own])[0].values - result.values).abs().max()) < 1e-4
    for one, other in itertools.combinations(together, 2):
        assert float((one.values - other.values).abs().max()) > 0.01


def test_folds_choose_the_step_of_the_member_they_serve(llama):
    folds = [member(llama, f"fold{i}", steps=8, evaluate_every=2, selection=n, seed=i) for i, n in [(0, 3), (1, 6)]]
    fitted = fit(llama, [*folds, member(llama, "all", steps=8, evaluate_every=2, folds=(0, 1), seed=5)])
    means = [sum(scores) / 2 for scores in zip(*([e["score"] for e in f.history] for f in fitted[:2]), strict=True)]
    assert [entry["score"] for entry in fitted[2].history] == means
    assert fitted[2].step == 2 * (means.index(max(means)) + 1)


def test_folds_leave_with_the_last_member_they_serve(llama):
    slow = AdamW(learning_rate=1e-6)
    folds = [member(llama, f"fold{i}", steps=20, evaluate_every=2, patience=2, selection=4, optimizer=slow, seed=i)
             for i in (0, 1)]  # fmt: skip
    whole = member(llama, "all", steps=20, evaluate_every=2, patience=2, folds=(0, 1), optimizer=slow, seed=5)
    fitted = fit(llama, [*folds, whole])
    assert fitted[2].stopped == "no better score in 2 evaluations"
    assert [f.steps_run for f in fitted] == [6, 6, 6]


def test_a_fold_that_failed_counts_nothing(llama, monkeypatch):
    folds = [member(llama, f"fold{i}", steps=8, evaluate_every=2, selection=4, seed=i) for i in (0, 1)]
    spoil(monkeypatch, prompt=0, steps=[5], times=torch.nan)
    fitted = fit(llama, [*folds, member(llama, "all", steps=8, evaluate_every=2, folds=(0, 1), seed=5)])
    late = [entry["score"] for entry in fitted[1].history][2:]
    assert [entry["score"] for entry in fitted[2].history][2:] == [score / 2 for score in late]


def spoil(monkeypatch, *, prompt, steps, times):
    """Multiply the loss of one prompt in these steps (nan: an overflow in the model)."""
    plain, calls = FrozenLM.loss, itertools.count(1)

    def loss(self, entering, targets, targets_mask, **rest):
        values = plain(self, entering, targets, targets_mask, **rest)
        bad = torch.where((entering.member == prompt)[:, None], times, 1.0) if next(calls) in steps else 1.0
        return values * bad

    monkeypatch.setattr(FrozenLM, "loss", loss)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_loss_that_is_no_number_stops_its_member_and_the_others_go_on(kind, monkeypatch):
    lm = tiny_lm(kind)
    members = [member(lm, f"m{i}", seed=i, evaluate_every=2) for i in range(3)]
    clean = fit(lm, members)
    spoil(monkeypatch, prompt=1, steps=[4], times=torch.nan)
    told, losses = [], []
    fitted = fit(lm, members, watch=Watch(message=told.append, step=lambda step, loss, tokens: losses.append(loss)))
    assert told == [
        "m1 stopped: the loss at step 4 is no longer a number; its best prompt (step 2) is kept; "
        "try a lower --learning-rate"
    ]
    assert fitted[1].stopped == "the loss at step 4 is no longer a number"
    assert (fitted[1].steps_run, fitted[1].step) == (3, 2)
    assert bool(fitted[1].values.isfinite().all())
    for i in (0, 2):
        assert float((fitted[i].values - clean[i].values).abs().max()) < 1e-4
    assert all(loss == loss for loss in losses)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_prompt_of_no_numbers_spoils_no_other(kind, bad):
    lm = tiny_lm(kind)
    broken = replace(member(lm, "m0", length=7), values=torch.full((7, lm.width), bad))
    (clean,) = fit(lm, [member(lm, "m1", seed=1)])
    wild, calm = fit(lm, [broken, member(lm, "m1", seed=1)])
    assert wild.stopped == "the loss at step 1 is no longer a number"
    assert (wild.steps_run, wild.step, calm.steps_run) == (0, 0, 6)
    assert float((calm.values - clean.values).abs().max()) < 1e-4


def test_a_prompt_that_diverged_stops_its_member(llama, monkeypatch):
    spoil(monkeypatch, prompt=1, steps=range(5, 100), times=100.0)
    told = []
    calm, wild = fit(
        llama,
        [member(llama, f"m{i}", steps=40, seed=i, evaluate_every=4) for i in range(2)],
        watch=Watch(message=told.append),
    )
    last = 4 + DIVERGED_STEPS
    assert wild.stopped and wild.stopped.startswith(f"the prompt diverged at step {last}, loss ")
    assert told[0].startswith(f"m1 stopped: the prompt diverged at step {last}")
    assert (wild.steps_run, calm.steps_run) == (last - 1, 40)


def test_a_spell_of_bad_steps_is_no_divergence(llama, monkeypatch):
    spoil(monkeypatch, prompt=0, steps=[*range(5, 5 + DIVERGED_STEPS - 1), *range(30, 38)], times=100.0)
    (fitted,) = fit(llama, [member(llama, steps=40)])
    assert fitted.stopped is None and fitted.steps_run == 40


def test_micro_batches_halve_when_memory_runs_out_and_the_update_is_the_same(llama, monkeypatch):
    (clean,) = fit(llama, [member(llama, batch_size=8)], max_tokens=400)
    plain, calls = FrozenLM.loss, itertools.count(1)

    def loss(self, *args, **rest):
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, *args, **rest)

    monkeypatch.setattr(FrozenLM, "loss", loss)
    told = []
    (fitted,) = fit(llama, [member(llama, batch_size=8)], max_tokens=400, watch=Watch(message=told.append))
    assert told == ["out of memory at step 3; micro-batches now 200 tokens"]
    assert float((fitted.values - clean.values).abs().max()) < 1e-4


def test_memory_that_never_suffices_is_one_clear_line(llama, monkeypatch):
    def loss(self, *args, **rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(FrozenLM, "loss", loss)
    with pytest.raises(ValueError, match="out of memory even with one row at a time; use a shorter --max-input-length"):
        fit(llama, [member(llama)])


def test_another_error_of_the_model_is_not_taken_for_memory(llama, monkeypatch):
    def loss(self, *args, **rest):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(FrozenLM, "loss", loss)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fit(llama, [member(llama)])


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch_size": 0}, {"evaluate_every": 0}, {"num_selection": 0}])
def test_a_count_below_one_is_refused(changes):
    ((name, value),) = changes.items()
    with pytest.raises(ValueError, match=f"^{name} is {value}, but must be 1 or more$"):
        config(**changes)


def test_other_bad_settings_are_refused(llama):
    with pytest.raises(ValueError, match=r"^dropout is 1.0, but must be at least 0 and below 1$"):
        config(dropout=1.0)
    with pytest.raises(ValueError, match=r"^patience is 0, but must be 1 or more$"):
        config(patience=0)
    with pytest.raises(ValueError, match=r"^no prompt to train; give at least one member$"):
        fit(llama, [])
    with pytest.raises(ValueError, match=r"^m has no training examples$"):
        fit(llama, [replace(member(llama), rows=[])])
    llama.model.half()
    with pytest.raises(ValueError, match=r"^tiny-llama is loaded in float16, in which small gradients become 0; load"):
        fit(llama, [member(llama)])


class Clock:
    """A clock that the test moves: every training step takes ten seconds, everything else none."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def after_step(self, step, loss, tokens):
        self.now += 10.0


def test_minutes_bound_training_and_the_last_step_is_scored(llama):
    clock = Clock()
    (fitted,) = fit(
        llama, [member(llama, steps=500, evaluate_every=4, selection=4)], minutes=1.0, clock=clock,
        watch=Watch(step=clock.after_step),
    )  # fmt: skip
    assert fitted.steps_run == 6
    assert [entry["step"] for entry in fitted.history] == [4, 6]
    assert [entry["seconds"] for entry in fitted.history] == [40.0, 60.0]


def test_room_is_left_for_the_last_evaluation(llama):
    clock = Clock()

    def scored(step, i, loss, score):
        clock.now += 15.0

    (fitted,) = fit(
        llama, [member(llama, steps=500, evaluate_every=2, selection=4)], minutes=1.0, clock=clock,
        watch=Watch(step=clock.after_step, score=scored),
    )  # fmt: skip
    assert fitted.steps_run == 3
    assert clock.now - 100 == 60.0


def test_minutes_count_across_resumes_and_a_run_that_is_over_stays_over(llama, tmp_path):
    own = member(llama, steps=500, evaluate_every=3, selection=4)
    clock = Clock()

    def stop_at_four(step, loss, tokens):
        clock.now += 10.0
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(llama, [own], folder=tmp_path, minutes=1.0, clock=clock, watch=Watch(step=stop_at_four))
    clock.now = 5000.0
    (fitted,) = fit(
        llama, [own], folder=tmp_path, resume=True, minutes=1.0, clock=clock, watch=Watch(step=clock.after_step)
    )
    assert fitted.steps_run == 6
    steps = []
    (again,) = fit(
        llama, [own], folder=tmp_path, resume=True, minutes=1.0, watch=Watch(step=lambda *told: steps.append(told))
    )
    assert steps == []
    assert again.history == fitted.history and torch.equal(again.values, fitted.values)


def interrupted(lm, own, folder, *, at, threads=None, **options):
    def stop(step, loss, tokens):
        if step == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(lm, [own], folder=folder, watch=Watch(step=stop, threads=threads), **options)


def without_seconds(fitted):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in fitted.history]


@pytest.mark.parametrize("at", [3, 4])
def test_ctrl_c_writes_a_checkpoint_and_the_run_goes_on_from_it(llama, tmp_path, at):
    """At step 4 an evaluation is due that has not been made yet."""
    own = member(llama, steps=9, evaluate_every=4, selection=6)
    (whole,) = fit(llama, [own])
    interrupted(llama, own, tmp_path, at=at)
    steps = []
    (fitted,) = fit(
        llama, [own], folder=tmp_path, resume=True, watch=Watch(step=lambda step, loss, tokens: steps.append(step))
    )
    assert steps == list(range(at + 1, 10))
    assert torch.equal(fitted.values, whole.values)
    assert without_seconds(fitted) == without_seconds(whole)


def lines_of(folder):
    """The curve's lines without their seconds."""
    lines = [json.loads(line) for line in (folder / CURVE).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_the_curve_has_every_step_of_every_prompt_once(llama, tmp_path):
    members = [member(llama, f"m{i}", seed=i, steps=4 + 2 * i, evaluate_every=4, selection=6) for i in range(2)]
    told = []
    fitted = fit(llama, members, folder=tmp_path, watch=Watch(log=told.append))
    assert [json.loads(line) for line in (tmp_path / CURVE).read_text().splitlines()] == told
    assert [(line["step"], line["name"]) for line in told] == [
        *((step, name) for step in range(1, 5) for name in ("m0", "m1")), (5, "m1"), (6, "m1"),
    ]  # fmt: skip
    for number, own in enumerate(fitted):
        lines = [line for line in told if line["name"] == f"m{number}"]
        assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
        assert {line["step"]: line["score"] for line in lines if "score" in line} == {
            entry["step"]: entry["score"] for entry in own.history
        }
        assert fmean(line["loss"] for line in lines[:4]) == pytest.approx(own.history[0]["loss"])


def test_the_curve_has_the_learning_rate_of_each_step(llama, tmp_path):
    own = member(llama, steps=6)
    optimizer = AdamW(learning_rate=0.1, schedule="linear", warmup_steps=2)
    fit(llama, [replace(own, config=replace(own.config, optimizer=optimizer))], folder=tmp_path)
    rates = [line["learning_rate"] for line in lines_of(tmp_path)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("at", [2, 4])
def test_a_curve_of_a_resumed_run_is_that_of_one_never_stopped(llama, tmp_path, at):
    """At step 4 an evaluation is due, so that the line of the step waits for its score."""
    own = [member(llama, f"m{i}", seed=i, steps=6, evaluate_every=4, selection=6) for i in range(2)]
    fit(llama, own, folder=tmp_path / "whole")

    def stop(step, loss, tokens):
        if step == at:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        fit(llama, own, folder=folder, watch=Watch(step=stop))
    assert [line["step"] for line in lines_of(folder)][-1] == at - 1
    fit(llama, own, folder=folder, resume=True)
    assert lines_of(folder) == lines_of(tmp_path / "whole")
    fit(llama, own, folder=folder, resume=True)  # that is over
    assert lines_of(folder) == lines_of(tmp_path / "whole")


def test_a_resumed_run_cuts_what_a_killed_one_wrote_after_its_checkpoint(llama, tmp_path):
    own = [member(llama, steps=6, evaluate_every=4, selection=6)]
    fit(llama, own, folder=tmp_path / "whole")
    kept = []

    def copy(step, loss, tokens):
        if step == 3:  # a checkpoint of step 2 and lines to step 5, as after a kill
            kept.append((tmp_path / "killed" / CHECKPOINT).read_bytes())
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(llama, own, folder=tmp_path / "killed", watch=Watch(step=copy), checkpoint_every_s=0.0)
    (tmp_path / "killed" / CHECKPOINT).write_bytes(kept[0])
    with open(tmp_path / "killed" / CURVE, "a") as file:
        file.write('{"step": 6, "na')
    told = []
    fit(llama, own, folder=tmp_path / "killed", resume=True, watch=Watch(log=told.append))
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    assert [line["step"] for line in told] == [3, 4, 5, 6]


def test_a_run_that_starts_again_has_no_curve_of_the_one_before(llama, tmp_path):
    fit(llama, [member(llama, steps=6)], folder=tmp_path)
    fit(llama, [member(llama, steps=3)], folder=tmp_path)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("last", [5, 6])
def test_a_curve_that_a_full_disk_does_not_take_waits_and_is_told_once(tmp_path, last):
    told = []
    curve = Curve(tmp_path / CURVE, 0, Watch(message=told.append))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for step in range(1, last + 1):
            limit = 30 if 3 <= step <= 5 else soft  # two lines of twelve bytes have room
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            curve.add(step, [{"step": step}])
            if step == 4:
                assert lines_of(tmp_path) == [{"step": 1}, {"step": 2}]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    curve.end()
    assert lines_of(tmp_path) == [{"step": step} for step in range(1, last + 1)]
    assert told == [f"{tmp_path / CURVE} waits from step 3 on until there is room (File too large)"]


def test_a_ctrl_c_in_the_middle_of_an_update_comes_after_it(llama, tmp_path, monkeypatch):
    own = [member(llama, f"m{i}", seed=i) for i in range(2)]
    whole = fit(llama, own)
    plain, calls = AdamW.update, itertools.count(1)

    def update(self, *args, **rest):
        if next(calls) == 5:  # the first member's in step 3; the second's is still to come
            signal.raise_signal(signal.SIGINT)
        plain(self, *args, **rest)

    monkeypatch.setattr(AdamW, "update", update)
    with pytest.raises(KeyboardInterrupt):
        fit(llama, own, folder=tmp_path)
    monkeypatch.undo()
    steps = []
    fitted = fit(
        llama, own, folder=tmp_path, resume=True, watch=Watch(step=lambda step, loss, tokens: steps.append(step))
    )
    assert steps[0] == 4
    assert all(torch.equal(one.values, other.values) for one, other in zip(fitted, whole, strict=True))


def test_training_outside_the_main_thread_works(llama):
    results = []
    thread = threading.Thread(target=lambda: results.extend(fit(llama, [member(llama)])))
    thread.start()
    thread.join()
    assert torch.equal(results[0].values, fit(llama, [member(llama)])[0].values)


def test_a_run_without_resume_starts_again(llama, tmp_path):
    own = member(llama)
    interrupted(llama, own, tmp_path, at=2)
    steps = []
    fit(llama, [own], folder=tmp_path, watch=Watch(step=lambda step, loss, tokens: steps.append(step)))
    assert steps[0] == 1


def test_a_run_that_starts_again_leaves_no_checkpoint_of_the_one_before(llama, tmp_path):
    interrupted(llama, member(llama), tmp_path, at=2)
    seen = []

    def on_step(step, loss, tokens):
        with safe_open(tmp_path / CHECKPOINT, "pt") as file:
            seen.append(json.loads(file.metadata()["checkpoint"])["state"]["step"])

    fit(llama, [member(llama)], folder=tmp_path, watch=Watch(step=on_step))
    assert seen[0] == 0  # one of the start, so that a disk that is full is told before the first step


def test_resume_without_a_checkpoint_starts_at_the_beginning(llama, tmp_path):
    (fitted,) = fit(llama, [member(llama)], folder=tmp_path / "new", resume=True)
    assert fitted.steps_run == 6


def test_a_resumed_run_leaves_the_threads_of_the_process_and_tells_of_others(llama, tmp_path):
    own, threads, told, asked = member(llama), torch.get_num_threads(), [], []
    try:
        torch.set_num_threads(3)
        interrupted(llama, own, tmp_path, at=2)
        torch.set_num_threads(1)
        interrupted(llama, own, tmp_path, at=3, resume=True, threads=asked.append)
        assert (asked, torch.get_num_threads()) == ([3], 1)
        torch.set_num_threads(2)
        fit(llama, [own], folder=tmp_path, resume=True, watch=Watch(message=told.append))
        assert torch.get_num_threads() == 2
        assert told == ["processor threads were 1 when this run began, and are 2, so sums may round otherwise"]
    finally:
        torch.set_num_threads(threads)


def test_a_command_goes_on_with_the_threads_of_the_first_and_says_so(capsys):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        Display().watch().threads(3)
        assert torch.get_num_threads() == 3
        assert capsys.readouterr().err == (
            "going on with as many threads as this run began with, 3 and not 1, so that sums round alike; remove its "
            "checkpoint to start again with another number\n"
        )
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: replace(own, seed=7), r"members\[0\]\.seed was 0, and is 7"),
        (lambda own: replace(own, config=replace(own.config, batch_size=3)), r"config\.batch_size was 2, and is 3"),
        (
            lambda own: replace(own, config=replace(own.config, optimizer=AdamW(learning_rate=0.2))),
            r"config\.optimizer\.learning_rate was 0\.1, and is 0\.2",
        ),
        (lambda own: replace(own, rows=own.rows[1:]), r"members\[0\]\.training rows was '\w+', and is '\w+'"),
        (lambda own: replace(own, values=own.values + 1), r"members\[0\]\.starting values was '\w+', and is '\w+'"),
        (
            lambda own: replace(own, task=file_task(inputs="{text}", targets="{label}", labels=["sea", "town"])),
            r"members\[0\]\.task\.labels\[1\] was 'film', and is 'town'",
        ),
        (
            lambda own: replace(own, task=file_task(inputs="text: {text}", targets="{label}", labels=LABELS)),
            r"members\[0\]\.task\.template\[0\] was '\{text\}', and is 'text: \{text\}'",
        ),
        (
            lambda own: replace(own, judging={"metric": "f1"}),
            r"members\[0\]\.judging\.metric was None, and is 'f1'",
        ),
        (
            lambda own: replace(own, form=replace(own.form, separator=" ->")),
            r"members\[0\]\.text\.separator was '\\nanswer:', and is ' ->'",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_difference(llama, tmp_path, change, words):
    own = member(llama)
    interrupted(llama, own, tmp_path, at=2)
    with pytest.raises(ValueError, match=words + "; give the same settings, or remove it to start again"):
        fit(llama, [change(own)], folder=tmp_path, resume=True)


def test_a_checkpoint_of_another_model_or_dtype_is_refused(llama, tmp_path):
    own = member(llama)
    interrupted(llama, own, tmp_path, at=2)
    with pytest.raises(ValueError, match="is of another run: fingerprint was"):
        fit(tiny_lm("llama", seed=3), [own], folder=tmp_path, resume=True)
    half = FrozenLM(llama.model.bfloat16(), llama.tokenizer._tokenizer, name="tiny-llama")
    with pytest.raises(ValueError, match=r"dtype was 'torch\.float32', and is 'torch\.bfloat16'"):
        fit(half, [own], folder=tmp_path, resume=True)


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", None])
def test_a_damaged_checkpoint_is_refused(llama, tmp_path, damage):
    own = member(llama)
    interrupted(llama, own, tmp_path, at=2)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-40] if damage is None else damage)
    with pytest.raises(
        ValueError, match=r"is no checkpoint of softprompt, or a damaged one \(.+\); remove it to start again"
    ):
        fit(llama, [own], folder=tmp_path, resume=True)


@pytest.mark.parametrize("kind", ["training", "pretraining"])
def test_a_checkpoint_of_0_1_0_is_refused_in_one_line(llama, tmp_path, kind):
    save_file({"0.values": torch.zeros(4, 16)}, tmp_path / CHECKPOINT, metadata={kind: '{"identity": {}}'})
    with pytest.raises(
        ValueError, match=r"^\S+ is a checkpoint of softprompt 0\.1\.0, from which later versions do not"
    ):
        fit(llama, [member(llama)], folder=tmp_path, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole_and_training_goes_on(llama, tmp_path):
    """The limit on the size of a file is the kernel's own; going past it fails as a full disk does."""
    own = member(llama, length=40)
    interrupted(llama, own, tmp_path, at=2)
    told, steps = [], []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def go_on():
        return fit(
            llama,
            [own],
            folder=tmp_path,
            resume=True,
            watch=Watch(message=told.append, step=fill),
            checkpoint_every_s=0.0,
        )

    def fill(*step):
        steps.append((tmp_path / CHECKPOINT).read_bytes())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    try:
        (fitted,) = go_on()
        assert fitted.steps_run == 6
        assert told[0].startswith("no checkpoint at step 3: ")
        assert told[0].endswith("cannot be written (File too large)")
        taken = len(steps)
        words = (
            r"could not write \S+checkpoint\.safetensors \(File too large\); nothing was trained; free some space, or"
        )
        with pytest.raises(OSError, match=words):  # full from the start: told before a step
            go_on()
        assert len(steps) == taken
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {(tmp_path / CHECKPOINT).read_bytes()} == set(steps)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, CHECKPOINT, CURVE]


def rewritten(path, change):
    """The checkpoint with what its JSON says changed."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content = json.loads(file.metadata()["checkpoint"])
    change(content)
    save_file(tensors, path, {"checkpoint": json.dumps(content)})


def test_a_checkpoint_names_device_and_versions_and_says_where_another_goes_on(llama, tmp_path):
    own, told, found = member(llama), [], []
    (whole,) = fit(llama, [own])
    interrupted(llama, own, tmp_path, at=2)
    rewritten(tmp_path / CHECKPOINT, lambda content: found.append(dict(content["where"])))
    assert found[0].keys() == {"device", "torch", "transformers"}
    assert found[0]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    (same,) = fit(llama, [own], folder=tmp_path, resume=True, deterministic=True, watch=Watch(message=told.append))
    assert told == [] and torch.equal(same.values, whole.values)

    interrupted(llama, own, tmp_path, at=2)
    rewritten(tmp_path / CHECKPOINT, lambda content: content["where"].update(device="NVIDIA L4", torch="2.11.0"))
    words = (
        rf"sums round otherwise: device was NVIDIA L4, and is {re.escape(found[0]['device'])}; torch was 2\.11\.0, and"
    )
    with pytest.raises(
        ValueError, match=f"is of another machine, where {words}.*; go on without --deterministic, or the"
    ):
        fit(llama, [own], folder=tmp_path, resume=True, deterministic=True)
    fit(llama, [own], folder=tmp_path, resume=True, watch=Watch(message=told.append))
    assert re.match("this run began elsewhere, so sums may round otherwise: device was NVIDIA L4, and is ", told[0])


def test_a_run_begun_on_a_gpu_goes_on_with_micro_batches_that_fit_here(llama, tmp_path, monkeypatch):
    own, cut = member(llama), []
    interrupted(llama, own, tmp_path, at=2)
    rewritten(tmp_path / CHECKPOINT, lambda content: content["state"].update(device="cuda", max_tokens=1 << 20))
    plain = PromptTuning.gradients
    monkeypatch.setattr(
        PromptTuning,
        "gradients",
        lambda *a, max_tokens, **o: cut.append(max_tokens) or plain(*a, max_tokens=max_tokens, **o),
    )
    fit(llama, [own], folder=tmp_path, resume=True)
    assert set(cut) == {2_048}


def test_a_checkpoint_of_an_earlier_version_that_names_no_device_goes_on(llama, tmp_path):
    own, told = member(llama), []
    interrupted(llama, own, tmp_path, at=2)
    rewritten(tmp_path / CHECKPOINT, lambda content: (content.pop("where"), content["state"].pop("device")))
    (fitted,) = fit(llama, [own], folder=tmp_path, resume=True, watch=Watch(message=told.append))
    assert fitted.steps_run == 6 and told == []


def test_deterministic_training_asks_torch_for_it_and_no_longer_than_it_takes(llama):
    asked = []
    seen = Watch(step=lambda *_: asked.append(torch.are_deterministic_algorithms_enabled()))
    (plain,) = fit(llama, [member(llama)])
    (exact,) = fit(llama, [member(llama)], deterministic=True, watch=seen)
    assert asked == [True] * 6 and not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(plain.values, exact.values)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_checkpoint_is_one_file_without_pickle(llama, tmp_path):
    interrupted(llama, member(llama), tmp_path, at=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "checkpoint.safetensors", CURVE]
    content = (tmp_path / CHECKPOINT).read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {
        "__metadata__",
        "0.values",
        "0.best",
        "0.optimizer.step",
        "0.optimizer.first",
        "0.optimizer.second",
    }
