"""Before training: lengths are those of the ids, and an estimate is made of real steps and writes nothing."""

import json
import os

import pytest

from softprompt.base.watch import Watch
from softprompt.models.text import default_format, encode_inputs
from softprompt.study.transfer import seconds_with
from softprompt.tasks import UNLABELLED, Example
from softprompt.training.estimation import estimate, token_lengths
from softprompt.training.settings import RunConfig


def example(inputs, targets="good"):
    return Example(inputs=inputs, targets=targets, id="1", references=(targets,))


def config(tmp_path, **changes):
    for split, count in (("train", 30), ("dev", 6)):
        records = [{"text": f"{split} film {i} is warm", "label": "good" if i % 2 else "bad"} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))
    files = {split: [str(tmp_path / f"{split}.jsonl")] for split in ("train", "dev")}
    own = {"inputs": "text: {text}", "targets": "{label}", "labels": ("good", "bad"), "out": tmp_path / "out"}
    few = {"steps": 100, "evaluate_every": 30, "num_selection": 5, "batch_size": 4, "prompt_length": (4,)}
    return RunConfig(**{"model": "tiny", "data": files, **own, **few, **changes})


def test_lengths_are_those_of_the_ids(lm):
    texts = ["warm", "a warm film", "a warm film and a dull story", "sea " * 40]
    found = token_lengths([example(text) for text in texts], lm, max_input_length=20)
    form = default_format(lm, max_input_length=10_000)
    counted = [len(encode_inputs(text, form, lm.tokenizer).ids) for text in texts]
    assert (found.inputs.min, found.inputs.max) == (counted[0], counted[3])
    assert found.inputs.median == counted[1], "half of the inputs are at most so long"
    assert found.inputs.p95 == counted[3]
    assert found.num_cut == sum(count > 20 for count in counted) > 0


def test_what_the_limit_cuts_is_what_encoding_cuts(lm):
    texts = [f"film {'warm ' * n}" for n in range(1, 30)]
    found = token_lengths([example(text) for text in texts], lm, max_input_length=24)
    form = default_format(lm, max_input_length=24)
    assert found.num_cut == sum(encode_inputs(text, form, lm.tokenizer).was_cut for text in texts)


def test_a_preview_shows_what_is_lost(lm):
    examples = [example("sea " * 40 + "is it warm?")]
    assert token_lengths(examples, lm, max_input_length=30).lost["1"].endswith("sea is it warm?")
    assert token_lengths(examples, lm, max_input_length=30, truncate="start").lost["1"].startswith("sea sea")
    assert "warm" not in token_lengths(examples, lm, max_input_length=30, truncate="start").lost["1"]
    assert token_lengths(examples, lm).lost == {}


def test_unlabelled_examples_have_no_target_lengths(lm):
    assert token_lengths([example("warm", UNLABELLED)], lm).targets is None


def test_nothing_to_measure_is_an_error(lm):
    with pytest.raises(ValueError, match="there are no examples to measure"):
        token_lengths([], lm)


def test_an_estimate_counts_what_the_run_would_do(lm, tmp_path):
    cost = estimate(config(tmp_path, seeds=(0, 1)), lm=lm)
    assert cost.num_prompts == 5, "two seeds, and the three folds of a small file"
    assert (cost.num_steps, cost.num_rows, cost.num_evaluations) == (100, 20, 4)
    assert cost.num_scored == 15, "five rows of each of the three folds"
    assert cost.model_bytes == 4 * lm.num_parameters
    assert cost.peak_bytes > 50e6, "no Python process with PyTorch is smaller"
    assert cost.step_s > 0 and cost.evaluation_s > 0 and cost.dev_s > 0
    whole = 100 * cost.step_s + 4 * cost.evaluation_s
    assert cost.training_s == pytest.approx(whole)
    assert cost.total_s == pytest.approx(whole + cost.dev_s)
    # Two other tasks: scored with the dev set at every evaluation, and at the end.
    assert seconds_with(cost, 0) == cost.total_s
    assert seconds_with(cost, 2) == pytest.approx(whole + 4 * 3 * cost.evaluation_s + 3 * cost.dev_s)
    assert "out" not in os.listdir(tmp_path)


def test_an_estimate_tells_of_its_rows(lm, tmp_path):
    phases, done = [], []
    watch = Watch(phase=lambda name, total: phases.append((name, total)) or done.append)
    estimate(config(tmp_path, seeds=(0, 1)), lm=lm, watch=watch)
    steps, warming, scored = 3 * 20, 3, 3 * 5  # only the three folds have selection rows
    assert phases == [("estimate", steps + warming + scored)]
    assert sum(done) == steps + warming + scored


def test_minutes_bound_the_estimate(llama, tmp_path):
    cost = estimate(config(tmp_path, steps=10_000_000, minutes=2.0), lm=llama)
    assert cost.training_s == 120
