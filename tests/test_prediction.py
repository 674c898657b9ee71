"""Saved prompts put to use: scores equal those of each prompt alone, and answers survive bad rows and kills."""

import gzip
import json
import lzma
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import lossy_lm, make_model, make_tokenizer, tiny_lm

from softprompt.answering.evaluation import ensemble, evaluate
from softprompt.answering.prediction import CHUNK, predict_file, predict_files, predict_records, read_parts
from softprompt.answering.rows import append_rows
from softprompt.answering.saved import open_named, open_prompts, task_of
from softprompt.answering.scores import evaluate_prompts
from softprompt.models.loading import load
from softprompt.models.text import default_format
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.tasks import TASKS, count_items, file_task, get_task, read_items, read_lines, read_records, read_split

SEEN = "<s>text: a warm film\nanswer:"  # by a decoder-only model
WORDS = ["warm", "funny", "dull", "lifeless", "summer", "street", "story", "morning", "family", "sea"]


@pytest.fixture
def dev(tmp_path):
    """Twenty labelled records of our own."""
    records = [
        {"id": f"r{i}", "text": f"a {WORDS[i % 10]} film {i}", "label": "good" if i % 3 else "bad"} for i in range(20)
    ]
    return written(tmp_path / "dev.jsonl", records)


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def saved_prompt(folder, lm, seed=0, *, length=3, **changes):
    """A prompt of random numbers for the model, with a card as training writes it."""
    values = torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))
    form = default_format(lm, max_target_length=8, inputs_template="text: {text}", targets_template="{label}")
    card = {
        "model_name": lm.name,
        "model_fingerprint": lm.fingerprint,
        "is_encoder_decoder": lm.is_encoder_decoder,
        "width": lm.width,
        "task": "own",
        "labels": ("good", "bad"),
        "text": form.to_json(),
        "recipe": {"scoring": "rank", "steps": 40, "selection_score": seed / 10},
        "dev_metrics": {"accuracy": 0.5},
        "selection": "held-out",
        "step": 10 * (seed + 1),
        "seed": seed,
    }
    save_prompt(SoftPrompt(values, Card(**card | changes)), folder)
    return folder


@pytest.fixture
def folders(lm, tmp_path):
    return [saved_prompt(tmp_path / f"p{seed}", lm, seed, length=2 + seed) for seed in range(3)]


def answers(saved, items, **options):
    return list(predict_records(saved, items, **options))


def test_labels_that_are_one_to_the_model_are_refused(tmp_path):
    lm = lossy_lm()
    folder = saved_prompt(tmp_path / "p", lm)
    task = file_task(inputs="text: {text}", targets="{label}", labels=["\u00e1", "a"])
    with pytest.raises(ValueError, match=r"cannot tell the labels '\\xe1' and 'a' apart"):
        open_prompts(folder, model=lm, task=task)


def test_a_task_of_your_own_is_rebuilt_from_the_card(lm, tmp_path):
    task = open_prompts(saved_prompt(tmp_path / "p", lm), model=lm).task
    assert (task.name, task.labels, task.template) == ("own", ("good", "bad"), ("text: {text}", "{label}"))


@pytest.mark.parametrize(
    ("names", "metric"),
    [({"accuracy": 1.0}, "accuracy"), ({"macro_f1": 1.0}, "macro_f1"), ({"pearson": 1.0}, "pearson"), ({}, "accuracy")],
)
def test_the_metric_of_your_own_task_is_the_one_it_was_scored_by(names, metric):
    labels = ("1", "2", "3")
    text = {"inputs_template": "{a}", "targets_template": "{b}"}
    card = Card(
        model_name="m", model_fingerprint=None, is_encoder_decoder=True, width=4, labels=labels, text=text,
        task="own", dev_metrics=names,
    )  # fmt: skip
    task = task_of(card)
    assert task is not None
    examples = task.cast({"a": "x", "b": "2"}, "dev")
    assert list(task.metrics(["2"], examples)) == [metric]


def test_a_prompt_that_records_no_task_has_none():
    card = Card(model_name="m", model_fingerprint=None, is_encoder_decoder=True, width=4)
    assert task_of(card) is None


def test_a_prompt_of_another_version_of_the_task_is_used_with_a_warning():
    card = Card(
        model_name="m", model_fingerprint=None, is_encoder_decoder=True, width=4, task="glue/sst2", task_version="0"
    )
    with pytest.warns(UserWarning, match="trained on version 0 of glue/sst2, and this is version 1: its texts"):
        assert task_of(card).name == "glue/sst2"


def test_a_card_with_other_labels_than_its_task_of_the_catalogue_is_refused():
    card = Card(
        model_name="m", model_fingerprint=None, is_encoder_decoder=True, width=4, task="glue/sst2", labels=("a", "b")
    )
    with pytest.raises(ValueError, match="has the labels 'a', 'b', and glue/sst2 has 'negative', 'positive'; correct"):
        task_of(card)


def test_no_prompt_is_an_error():
    with pytest.raises(ValueError, match="no prompt was given; name at least one folder"):
        open_prompts([])


def test_a_prompt_without_a_model_asks_for_one(lm, tmp_path):
    folder = saved_prompt(tmp_path / "p", lm, model_name=None)
    with pytest.raises(ValueError, match="the prompt does not record its model; give it with --model"):
        open_prompts(folder)


def test_a_model_that_cannot_be_loaded_by_its_name_is_asked_for(lm, tmp_path):
    folder = saved_prompt(tmp_path / "p", lm, model_name="./nowhere")
    with pytest.raises(ValueError, match=r"no folder \./nowhere.*the prompt names that model: if it lies elsewhere"):
        open_prompts(folder)


def test_a_prompt_of_another_model_is_refused_by_its_fingerprint(tmp_path):
    folder = saved_prompt(tmp_path / "p", tiny_lm("llama"))
    with pytest.raises(ValueError, match=r"trained for tiny-llama .* but tiny-t5 .* is loaded"):
        open_prompts(folder, model=tiny_lm("t5"))


def test_a_prompt_whose_own_pass_is_no_number_is_refused(tmp_path):
    lm = tiny_lm("gpt2")
    folder = saved_prompt(tmp_path / "huge", lm)
    huge = load_prompt(folder)
    save_prompt(replace(huge, values=torch.full_like(huge.values, 3e38)), folder)
    reason = "own pass through tiny-gpt2 leaves the range of float32, so that no .*; train the prompt with a lower"
    with pytest.warns(UserWarning, match="another scale"), pytest.raises(ValueError, match=reason):
        open_prompts(folder, model=lm)


def test_prompts_of_different_tasks_are_refused(lm, tmp_path):
    first, second = saved_prompt(tmp_path / "a", lm), saved_prompt(tmp_path / "b", lm, task="other")
    with pytest.raises(ValueError, match=r"a is a prompt for own and .*b for other; use prompts of one task"):
        open_prompts([first, second], model=lm)


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        (
            {"labels": ("good", "poor")},
            r"for the labels 'good', 'bad' and .*b for the labels 'good', 'poor'; use prompts",
        ),
        ({"labels": ()}, r"a is a prompt for the labels 'good', 'bad' and .*b for free text; use prompts of one task"),
        ({"task": None}, r"a is a prompt for own and .*b for no task that it names; use prompts of one task, or name"),
    ],
)
def test_prompts_whose_answers_are_not_of_one_kind_are_refused_by_what_differs(lm, tmp_path, card, reason):
    folders = [saved_prompt(tmp_path / "a", lm), saved_prompt(tmp_path / "b", lm, **card)]
    with pytest.raises(ValueError, match=reason):
        open_prompts(folders, model=lm)


def unlike_prompts(folder, lm, *templates):
    """Prompts of one task, each with a template of its own."""
    folders = []
    for seed, template in enumerate(templates):
        form = default_format(lm, max_target_length=8, inputs_template=template, targets_template="{label}")
        folders.append(saved_prompt(folder / f"u{seed}", lm, seed, text=form.to_json()))
    return folders


def test_prompts_of_unlike_templates_vote_each_with_its_own_words(lm, tmp_path):
    folders = unlike_prompts(tmp_path, lm, "text: {text}", "{title?} says {text}")
    end = "</s>" if lm.is_encoder_decoder else "\nanswer:"
    asked = [(1, {"title": "sea", "text": "a warm film", "label": "unread"}), (2, "a warm film")]
    options = {"with_probabilities": True, "show_input": True}
    together = answers(open_prompts(folders, model=lm), asked, **options)
    alone = [answers(open_prompts(folder, model=lm), asked, **options) for folder in folders]
    for words, line, singles in zip(("sea says", "says"), together, zip(*alone, strict=True), strict=True):
        read = [text.removeprefix("<s>") for text in line["input_text"]]
        assert read == [f"text: a warm film{end}", f"{words} a warm film{end}"]
        assert line["input_text"] == [single["input_text"] for single in singles]
        mean = sum(single["probabilities"]["good"] for single in singles) / 2
        assert line["probabilities"]["good"] == pytest.approx(mean, abs=1e-5)


def test_a_text_for_prompts_that_together_have_several_fields_is_refused_with_all_of_them(lm, tmp_path):
    saved = open_prompts(unlike_prompts(tmp_path, lm, "{text}", "{title}", "{day?} {text}"), model=lm)
    (line,) = answers(saved, [(1, "warm")])
    assert "own has text and title; give them as a record, " in line["error"]
    assert [task.fields for task in saved.tasks] == [("text", "title", "day?")] * 3
    (line,) = answers(saved, [(1, {"text": "warm"})])
    assert line["error"] == "no column 'title'; the columns are text"


def test_prompts_of_unlike_templates_are_scored_as_each_alone_and_by_their_vote(lm, dev, tmp_path):
    folders = unlike_prompts(tmp_path, lm, "text: {text}", "{id}: {text}")
    scores = evaluate_prompts(open_prompts(folders, model=lm), data={"dev": [dev]}, ensemble=True, limit=9)
    alone = [evaluate_prompts(open_prompts(f, model=lm), data={"dev": [dev]}, limit=9) for f in folders]
    for together, single in zip(scores.evaluations, alone, strict=True):
        for a, b in zip(together.predictions, single.evaluations[0].predictions, strict=True):
            assert a.text == b.text and a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
    voted = ensemble(scores.saved.task, scores.examples, [e.predictions for e in scores.evaluations])
    assert [p.text for p in scores.ensemble.predictions] == [p.text for p in voted]
    shown = {(error["prompt"], error["id"]): error["inputs"] for error in scores.errors()}
    assert {prompt for prompt, _ in shown} == {*map(str, folders), "ensemble"}
    records = dict(read_records(dev))
    for (prompt, line), inputs in shown.items():
        text, id = records[int(line)]["text"], records[int(line)]["id"]
        words = {str(folders[0]): f"text: {text}", str(folders[1]): f"{id}: {text}"}
        assert inputs == words.get(prompt, list(words.values()))


def test_prompts_whose_words_make_other_examples_of_the_files_are_not_scored_together(lm, tmp_path):
    folders = unlike_prompts(tmp_path, lm, "{text}", "{title}: {text}")
    files = [
        written(tmp_path / f"{title}.jsonl", [{"title": title, "text": "warm", "label": "good"}]) for title in "ab"
    ]
    reason = "templates make 1 and 2 examples, which are not the same, so they cannot vote: .*; take one file, or one"
    with pytest.raises(ValueError, match=reason):
        evaluate_prompts(open_prompts(folders, model=lm), data={"dev": files}, ensemble=True)


def test_a_file_of_answers_names_the_templates_of_all_its_prompts(lm, tmp_path):
    saved, output = open_prompts(unlike_prompts(tmp_path, lm, "text: {text}", "{text}"), model=lm), tmp_path / "out"
    predict_file(saved, [b"warm"], output)
    kept = json.loads((tmp_path / "out.settings").read_text())
    assert kept["templates"] == ["text: {text}", "{label}", "{text}", "{label}"]
    assert predict_file(saved, [b"warm"], output, resume=True).num_rows == 1


def test_prompts_trained_with_different_scoring_ask_for_one(lm, tmp_path):
    first, second = saved_prompt(tmp_path / "a", lm), saved_prompt(tmp_path / "b", lm, recipe={"scoring": "generate"})
    with pytest.raises(ValueError, match=r"a was trained with scoring rank and .*b with generate; give --scoring"):
        open_prompts([first, second], model=lm)
    assert open_prompts([first, second], model=lm, scoring="generate").scoring == "generate"
    with pytest.raises(ValueError, match="no scoring named 'guess'"):
        open_prompts([first, second], model=lm, scoring="guess")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_prompts_are_used_on_packed_weights_as_they_were_trained(tmp_path, quantize, recwarn):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    make_model("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "model")
    make_tokenizer(bos=True).save_pretrained(tmp_path / "model")
    machine = {"model": str(tmp_path / "model"), "device": "cpu", "dtype": "float32"}
    packed = load(machine["model"], device="cpu", dtype="float32", quantize=quantize)
    folder = saved_prompt(tmp_path / "p", packed, recipe={"scoring": "rank", "quantize": packed.quantization})
    saved = open_prompts(folder, **machine, quantize=quantize)
    assert saved.lm.quantization == quantize and not recwarn
    (line,) = answers(saved, [(1, {"text": "warm"})], with_probabilities=True)
    again = answers(open_prompts(folder, model=packed), [(1, {"text": "warm"})], with_probabilities=True)
    assert [line] == again
    words = rf"p was trained on {quantize} weights, and \S+model has unpacked ones here, .*give --quantize {quantize}$"
    with pytest.warns(UserWarning, match=words):
        plain = open_prompts(folder, **machine)
    assert answers(plain, [(1, {"text": "warm"})], with_probabilities=True) != again


def test_a_prompt_trained_on_unpacked_weights_says_so_where_they_are_packed(llama, tmp_path, monkeypatch):
    plain = saved_prompt(tmp_path / "plain", llama, recipe={"quantize": None})
    older = saved_prompt(tmp_path / "older", llama, recipe={})
    open_prompts([plain, older], model=llama)
    monkeypatch.setattr(type(llama), "quantization", "4bit")
    with pytest.warns(UserWarning) as told:
        open_prompts([plain, older], model=llama)
    (message,) = (str(warning.message) for warning in told)
    words = (
        "was trained on unpacked weights, and tiny-llama has 4bit ones here, so it may score otherwise; for the same, "
    )
    assert message == f"{plain} {words}leave --quantize out"


def test_a_partial_file_is_not_gone_on_with_on_other_weights(llama, tmp_path, monkeypatch):
    saved, output = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="line 1"):
        predict_file(saved, [b"{"], output, strict=True)
    monkeypatch.setattr(type(llama), "quantization", "8bit")
    with pytest.raises(ValueError, match="was begun with quantize None, and now it is 8bit; give the same settings"):
        predict_file(saved, [b"{"], output, resume=True)


def test_a_prompt_without_a_text_format_gets_the_models_own_with_a_warning(lm, tmp_path):
    folder = saved_prompt(tmp_path / "p", lm, text={}, task=None)
    with pytest.warns(UserWarning, match=r"p does not record its text format; tiny-\w+'s usual one is taken"):
        saved = open_prompts(folder, model=lm)
    assert saved.forms[0].separator == default_format(lm).separator
    with pytest.raises(ValueError, match="the prompt does not record its task; name it with --task"):
        evaluate_prompts(saved, data={"dev": ["x.jsonl"]})


def test_a_card_of_a_newer_text_format_is_refused_with_its_folder(lm, tmp_path):
    folder = saved_prompt(tmp_path / "p", lm, text={"smell": "sweet"}, task="glue/sst2")
    with pytest.raises(ValueError, match=r"p: the card's text format has unknown fields smell"):
        open_prompts(folder, model=lm)


def test_a_longer_label_of_another_task_finds_room(lm, tmp_path):
    folder = saved_prompt(tmp_path / "p", lm)
    long = "a label of a good many tokens, more than eight in any case"
    task = file_task(inputs="{text}", targets="{label}", labels=("good", long))
    saved = open_prompts(folder, model=lm, task=task)
    assert saved.forms[0].max_target_length == len(lm.tokenizer.encode(" " + long)) + 1


@pytest.mark.parametrize("scoring", ["rank", "generate"])
def test_scores_of_one_pass_are_those_of_each_prompt_alone(lm, folders, dev, scoring):
    saved = open_prompts(folders, model=lm, scoring=scoring)
    scores = evaluate_prompts(saved, data={"dev": [dev]}, ensemble=True)
    examples = read_split(saved.task, "dev", {"dev": [dev]}).examples
    alone = [
        evaluate(lm, [prompt.values], saved.task, examples, saved.forms[0], scoring=scoring)[0]
        for prompt in saved.prompts
    ]
    assert [e.metrics for e in scores.evaluations] == [e.metrics for e in alone]
    for together, single in zip(scores.evaluations, alone, strict=True):
        assert [p.text for p in together.predictions] == [p.text for p in single.predictions]
        for a, b in zip(together.predictions, single.predictions, strict=True):
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)
    voted = ensemble(saved.task, examples, [e.predictions for e in alone])
    assert [p.text for p in scores.ensemble.predictions] == [p.text for p in voted]


def test_prompts_with_different_text_formats_each_keep_their_own(lm, tmp_path, dev):
    form = default_format(lm, max_target_length=8, inputs_template="text: {text}", targets_template="{label}")
    short = {**form.to_json(), "max_input_length": 16}
    folders = [saved_prompt(tmp_path / "a", lm), saved_prompt(tmp_path / "b", lm, 1, text=short)]
    both = evaluate_prompts(open_prompts(folders, model=lm), data={"dev": [dev]})
    second = evaluate_prompts(open_prompts(folders[1], model=lm), data={"dev": [dev]})
    assert both.num_cut == second.num_cut > 0
    for a, b in zip(both.evaluations[1].predictions, second.evaluations[0].predictions, strict=True):
        assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_average_best_and_chosen_are_taken_from_the_prompts(lm, folders, dev):
    scores = evaluate_prompts(open_prompts(folders, model=lm), data={"dev": [dev]})
    values = [e.metrics["accuracy"] for e in scores.evaluations]
    assert scores.average["accuracy"] == pytest.approx(sum(values) / 3)
    assert values[scores.best] == max(values)
    assert scores.chosen == 2, "the cards' selection scores are 0, 0.1 and 0.2"


def test_no_prompt_is_chosen_where_a_card_lacks_its_selection_score(lm, folders, tmp_path, dev):
    bare = saved_prompt(tmp_path / "bare", lm, recipe={"scoring": "rank"})
    assert evaluate_prompts(open_prompts([*folders, bare], model=lm), data={"dev": [dev]}).chosen is None


def test_rows_name_every_prompt_and_the_ensemble(lm, folders, dev, tmp_path):
    scores = evaluate_prompts(open_prompts(folders, model=lm), data={"dev": [dev]}, ensemble=True, limit=7)
    append_rows(tmp_path / "rows.jsonl", scores.rows())
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["experiment"] for row in rows] == ["eval", "eval", "eval", "ensemble"]
    assert [row["step"] for row in rows] == [10, 20, 30, 10]
    assert {row["num_examples"] for row in rows} == {7}
    assert rows[3]["config"]["prompts"] == [str(folder) for folder in folders]
    assert rows[1]["value"] == scores.evaluations[1].headline


def test_an_ensemble_of_one_is_refused(lm, folders, dev):
    with pytest.raises(ValueError, match="an ensemble needs at least two prompts"):
        evaluate_prompts(open_prompts(folders[0], model=lm), data={"dev": [dev]}, ensemble=True)


def test_a_limit_below_one_is_refused(lm, folders, dev):
    with pytest.raises(ValueError, match="limit is 0, but must be 1 or more"):
        evaluate_prompts(open_prompts(folders[0], model=lm), data={"dev": [dev]}, limit=0)


def test_examples_without_labels_cannot_be_scored(lm, folders, tmp_path):
    test = written(tmp_path / "test.jsonl", [{"text": "warm"}])
    with pytest.raises(ValueError, match="example '1' of own test has no label, so nothing can be scored"):
        evaluate_prompts(open_prompts(folders[0], model=lm), data={"test": [test]}, split="test")


def test_a_text_its_record_and_its_finished_input_get_the_same_answer(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    line, record = answers(saved, [(1, "a warm film"), (2, {"text": "a warm film", "id": 7})], show_input=True)
    (finished,) = answers(saved, [(1, "text: a warm film")], finished=True, show_input=True)
    assert (line["inputs"], finished["inputs"]) == ("a warm film", "text: a warm film")
    assert (record["text"], record["id"]) == ("a warm film", 7)
    for answer in (line, record, finished):
        assert answer["input_text"] == ("text: a warm film</s>" if lm.is_encoder_decoder else SEEN)
        assert answer["prediction"] == record["prediction"] in ("good", "bad")
        assert answer["log_prob"] == pytest.approx(record["log_prob"], abs=1e-4)
        assert answer["truncated"] is False


@pytest.mark.parametrize(
    ("name", "fields", "record"),
    [
        ("own", "subject and body", '{"subject": "...", "body": "..."}'),
        ("glue/mrpc", "sentence1 and sentence2", '{"sentence1": "...", "sentence2": "..."}'),
        (
            "superglue/wic",
            "sentence1 and sentence2 and word",
            '{"sentence1": "...", "sentence2": "...", "word": "..."}',
        ),
    ],
)
def test_a_text_for_several_fields_is_refused_with_their_names(llama, tmp_path, name, fields, record):
    templates = (
        {"inputs_template": "{subject}: {body} {subject}", "targets_template": "{label}"} if name == "own" else {}
    )
    form = default_format(llama, max_target_length=8, **templates)
    labels = ("good", "bad") if name == "own" else get_task(name).labels
    saved = open_prompts(
        saved_prompt(tmp_path / "p", llama, task=name, labels=labels, text=form.to_json()), model=llama
    )
    line, finished = *answers(saved, [(1, "warm")]), *answers(saved, [(1, "warm")], finished=True)
    assert line["error"] == (
        f"a plain text fills a task's only field, and {name} has {fields}; give them as a record, {record}, or ask for "
        'a finished input (--finished, "finished": true)'
    )
    assert finished["prediction"] in labels


def test_a_text_is_cast_by_a_benchmark_that_has_one_text(lm, tmp_path):
    form = default_format(lm, max_target_length=8)
    for name, wanted in (("glue/sst2", "sentence: warm"), ("classification/sentence_polarity", "sentence: warm")):
        folder = saved_prompt(tmp_path / wanted, lm, task=name, labels=("negative", "positive"), text=form.to_json())
        (line,) = answers(open_prompts(folder, model=lm), [(1, "warm")], show_input=True)
        assert wanted in line["input_text"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_asks_for_just_the_fields_it_needs(name):
    task = get_task(name)
    record = {field: f"a {field}" for field in task.fields}
    record |= {"text": "it is warm", "span2_text": "it", "span2_index": "0"} if name == "superglue/wsc" else {}
    assert len(task.cast(record, "test")) == 1
    for field in task.fields:
        with pytest.raises(ValueError, match=f"no column '{field}'"):
            task.cast({other: value for other, value in record.items() if other != field}, "test")


def test_a_prompt_from_elsewhere_takes_a_text_as_its_input(llama, tmp_path):
    folder = saved_prompt(tmp_path / "p", llama)
    (folder / "softprompt.json").unlink()
    with pytest.warns(UserWarning, match="records no model fingerprint|does not record its text format"):
        saved = open_prompts(folder, model=llama, scoring="generate")
    (line,) = answers(saved, [(1, "a warm film")], show_input=True)
    assert line["input_text"] == "<s>a warm film\nanswer:"


def test_the_input_shown_is_what_was_left_of_it_and_of_each_text_format(llama, tmp_path):
    form = default_format(llama, max_target_length=8, max_input_length=24)
    short = saved_prompt(
        tmp_path / "short", llama, text=form.to_json(), task="glue/sst2", labels=("negative", "positive")
    )
    long = saved_prompt(
        tmp_path / "long",
        llama,
        text=replace(form, separator=" =>").to_json(),
        task="glue/sst2",
        labels=("negative", "positive"),
    )
    (line,) = answers(open_prompts([short, long], model=llama), [(1, "warm sea " * 9)], show_input=True)
    assert line["truncated"] is True
    assert [text.startswith("<s>sentence: warm sea") for text in line["input_text"]] == [True, True]
    assert [text[-8:] for text in line["input_text"]] == ["\nanswer:", line["input_text"][1][-8:]]
    assert line["input_text"][1].endswith(" =>")


def test_a_column_of_the_shown_inputs_name_is_kept_as_it_is_unless_the_input_is_shown(llama, tmp_path):
    saved = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama)
    source, output = written(tmp_path / "in.jsonl", [{"text": "warm", "input_text": "mine"}]), tmp_path / "out.jsonl"
    assert answers(saved, read_items(source))[0]["input_text"] == "mine"
    with pytest.warns(UserWarning, match="'input_text' is kept as 'input_input_text'"):
        predict_file(saved, source, output, show_input=True)
    (line,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert (line["input_input_text"], line["input_text"]) == ("mine", SEEN.replace("a warm film", "warm"))
    assert predict_file(saved, source, output, show_input=True, resume=True).num_rows == 1
    with pytest.raises(ValueError, match="was begun with show-input True, and now it is False"):
        predict_file(saved, source, output, resume=True)


def test_a_file_of_lines_is_of_texts_and_finished_only_if_asked_for(llama, tmp_path):
    saved, source = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama), tmp_path / "in.txt"
    source.write_text('a warm film\n{"text": "a warm film"}\n')
    found = {}
    for finished in (False, True):
        output = tmp_path / f"{finished}.jsonl"
        predict_file(saved, source, output, finished=finished, show_input=True)
        found[finished] = [json.loads(line)["input_text"] for line in output.read_text().splitlines()]
    assert found[False] == [SEEN, SEEN]
    assert found[True] == [SEEN.replace("text: ", ""), '<s>{"text": "a warm film"}\nanswer:']
    with pytest.raises(ValueError, match=r"in\.csv holds records; name the column of their finished inputs with"):
        list(read_items(written(tmp_path / "in.csv", []), finished=True))


def test_probabilities_are_the_labels_shares(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    (line,) = answers(saved, [(1, {"text": "warm"})], with_probabilities=True)
    assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert max(line["probabilities"], key=line["probabilities"].get) == line["prediction"]


def test_probabilities_of_several_prompts_are_their_mean(lm, folders):
    item = [(1, {"text": "warm"})]
    alone = [answers(open_prompts(f, model=lm), item, with_probabilities=True)[0]["probabilities"] for f in folders]
    (line,) = answers(open_prompts(folders, model=lm), item, with_probabilities=True)
    for label in ("good", "bad"):
        assert line["probabilities"][label] == pytest.approx(math.fsum(p[label] for p in alone) / 3, abs=1e-4)


def test_probabilities_of_written_answers_are_refused(lm, folders):
    saved = open_prompts(folders[0], model=lm, scoring="generate")
    with pytest.raises(ValueError, match="probabilities come from label scoring; use --scoring rank"):
        answers(saved, [(1, "a")], with_probabilities=True)


def test_chunks_do_not_change_answers_or_their_order(lm, folders):
    saved = open_prompts(folders, model=lm)
    items = [(i, {"text": f"{word} film", "n": i}) for i, word in enumerate(WORDS, 1)]
    whole, chunked = answers(saved, items), answers(saved, items, chunk=3)
    assert [line["n"] for line in chunked] == list(range(1, 11))
    assert [line["prediction"] for line in chunked] == [line["prediction"] for line in whole]


def test_the_answer_column_is_never_read(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    line, strange = answers(saved, [(1, {"text": "warm"}), (2, {"text": "warm", "label": "no such label"})])
    assert strange["label"] == "no such label"
    assert strange["prediction"] == line["prediction"]


def test_a_column_of_finished_inputs_needs_no_template(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    column, line = answers(saved, [(1, {"said": "text: warm"})], inputs_column="said") + answers(saved, [(1, "warm")])
    assert (column["said"], column["prediction"]) == ("text: warm", line["prediction"])


def test_a_bad_row_is_one_error_line_among_the_answers(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    items = [(1, "a"), (2, ValueError("not JSON (x)")), (3, ""), (4, {"txt": "a"}), (5, {"text": "b"})]
    lines = answers(saved, items)
    assert [line.get("error") for line in lines] == [
        None,
        "not JSON (x)",
        "the input is empty: no text in text",
        "no column 'text'; the columns are txt",
        None,
    ]
    assert [line.get("line") for line in lines] == [None, 2, 3, 4, None]
    assert lines[3]["txt"] == "a"


def test_the_records_own_columns_are_kept_beside_the_answers(lm, folders):
    saved = open_prompts(folders[0], model=lm)
    record = {"text": "warm", "prediction": "mine", "input_prediction": "older", "error": 7}
    with pytest.warns(UserWarning) as told:
        line, bad = answers(saved, [(1, record), (2, {"line": 40, "error": 7})])
    messages = [str(warning.message) for warning in told]
    assert "the input's column 'error' is kept as 'input_error': the answer has one of its own" in messages
    assert line["prediction"] in ("good", "bad") and line["input_input_prediction"] == "mine"
    assert (line["input_prediction"], line["input_error"], "error" in line) == ("older", 7, False)
    assert bad == {
        "input_line": 40,
        "input_error": 7,
        "error": "no column 'text'; the columns are line, error",
        "line": 2,
    }


def test_a_record_that_speaks_of_an_error_is_no_error(lm, folders, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    source = written(tmp_path / "in.jsonl", [{"text": "warm", "error": "none", "line": 3}, {"txt": "dull"}])
    with pytest.warns(UserWarning) as told:
        counted = predict_file(saved, source, output)
    assert len(told) == 2
    assert (counted.num_rows, counted.num_errors) == (2, 1)
    assert predict_file(saved, source, output, resume=True) == counted


def test_strict_gives_the_answers_before_the_bad_row_and_stops(lm, folders):
    found = predict_records(open_prompts(folders[0], model=lm), [(1, "a"), (2, {})], strict=True)
    assert next(found)["inputs"] == "a"
    with pytest.raises(ValueError, match="line 2: no column 'text'; the columns are none"):
        next(found)


def test_a_record_of_several_examples_gets_a_list(lm, tmp_path):
    form = default_format(lm, max_target_length=8)
    folder = saved_prompt(tmp_path / "p", lm, task="superglue/multirc", labels=("False", "True"), text=form.to_json())
    passage = {
        "text": "The sea is warm in the summer.",
        "questions": [
            {"question": "Is it?", "idx": 0, "answers": [{"text": "yes", "idx": 0}, {"text": "no", "idx": 1}]}
        ],
    }
    (line,) = answers(open_prompts(folder, model=lm), [(1, {"idx": 5, "passage": passage})])
    assert line["idx"] == 5
    assert [answer["id"] for answer in line["predictions"]] == ["5-0-0", "5-0-1"]
    assert {answer["prediction"] for answer in line["predictions"]} <= {"False", "True"}


def test_a_record_of_the_wrong_shape_is_an_error_line(lm, tmp_path):
    form = default_format(lm, max_target_length=8)
    folder = saved_prompt(tmp_path / "p", lm, task="superglue/multirc", labels=("False", "True"), text=form.to_json())
    (line,) = answers(open_prompts(folder, model=lm), [(1, {"passage": {"text": "a", "questions": 3}})])
    assert line["error"].startswith("not a record of superglue/multirc (TypeError: ")
    folder = saved_prompt(tmp_path / "q", lm, task="glue/stsb", labels=(), text=form.to_json())
    record = {"sentence1": "a", "sentence2": "b", "score": math.inf}
    (line,) = answers(open_prompts(folder, model=lm, scoring="generate"), [(1, record)])
    assert line["error"].startswith("not a record of glue/stsb (OverflowError: ")


def test_a_record_without_anything_to_answer_is_an_error_line(lm, tmp_path):
    form = default_format(lm, max_target_length=8)
    folder = saved_prompt(tmp_path / "p", lm, task="superglue/multirc", labels=("False", "True"), text=form.to_json())
    record = {"idx": 0, "passage": {"text": "a", "questions": []}}
    option = {"question": "Is it?", "answer": "yes", "paragraph": "The sea is warm."}
    nothing, line = answers(open_prompts(folder, model=lm), [(1, record), (2, option)])
    assert nothing["error"] == "the record has nothing in it to answer for superglue/multirc; leave it out"
    assert line["prediction"] in ("False", "True")


def test_free_text_without_labels_cannot_be_ranked(lm, tmp_path):
    form = default_format(lm, max_target_length=8)
    folder = saved_prompt(tmp_path / "p", lm, task="mrqa/squad", labels=(), text=form.to_json())
    (line,) = answers(open_prompts(folder, model=lm), [(1, {"question": "a", "context": "b"})])
    assert line["error"] == "mrqa/squad has no labels to rank for this input; use --scoring generate"


def test_an_input_the_model_cannot_take_is_an_error_line(tmp_path):
    lm = tiny_lm("gpt2")
    form = default_format(lm, max_target_length=8, max_input_length=512)
    folder = saved_prompt(tmp_path / "p", lm, text=form.to_json(), task="glue/sst2", labels=("negative", "positive"))
    long, short = answers(open_prompts(folder, model=lm), [(1, "warm sea " * 200), (2, "warm sea")])
    assert "but tiny-gpt2 takes 256" in long["error"]
    assert short["prediction"] in ("negative", "positive")


def test_a_long_input_is_cut_and_says_so(lm, tmp_path):
    form = default_format(lm, max_target_length=8, max_input_length=24)
    folder = saved_prompt(tmp_path / "p", lm, text=form.to_json(), task="glue/sst2", labels=("negative", "positive"))
    lines = answers(open_prompts(folder, model=lm), [(1, "warm sea " * 30), (2, "sea")])
    assert [line["truncated"] for line in lines] == [True, False]


def test_lines_are_records_in_braces_and_else_text():
    lines = ["﻿first\n".encode(), b'{"a": 1}\r\n', b" plain \n", b'{"a": \n', b"\xff\n", b"[1]\n"]
    found = [(number, str(item) if isinstance(item, ValueError) else item) for number, item in read_lines(lines)]
    assert found == [
        (1, "first"),
        (2, {"a": 1}),
        (3, " plain "),
        (4, "not JSON (Expecting value, column 7)"),
        (5, "not UTF-8 text (byte 0xff)"),
        (6, "[1]"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "warm", "emoji": "\\ud83d"}', r"'\ud83d' is half of a character, which is no text; take it out, or"),
        ('{"text": ' + "[" * 200_000, "not JSON (brackets too deep in one another)"),
        ('{"text": ' + "9" * 5000 + "}", "not JSON (a number of too many digits)"),
        ('{"text": NaN}', "column 'text' holds a number that is not finite (NaN, Infinity, 1e999), which JSON has not"),
        ('{"text": "warm", "price": -Infinity}', "column 'price' holds a number that is not finite"),
        ('{"text": "warm", "prices": [1, {"high": 1e999}]}', "column 'prices' holds a number that is not finite"),
        ("", "the line is blank"),
        (" \t", "the line is blank"),
    ],
)
def test_json_that_no_answer_could_hold_is_an_error_line(llama, tmp_path, line, message):
    saved, output = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama), tmp_path / "out.jsonl"
    lines = [b'{"text": "warm"}', line.encode(), b'{"text": "dull"}']
    assert predict_file(saved, lines, output).num_errors == 1
    written = output.read_text()
    answer = json.loads(written.splitlines()[1])
    assert answer["error"].startswith(message) and answer["line"] == 2
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))  # one rule, whatever the file is called
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    for name in ("in.jsonl", "in.txt"):
        predict_file(saved, tmp_path / name, tmp_path / "again.jsonl", overwrite=True)
        assert (tmp_path / "again.jsonl").read_text() == written


def test_a_number_that_is_not_finite_in_parquet_is_an_error_line(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1.5, math.nan]}), tmp_path / "a.parquet")
    first, second = read_items(tmp_path / "a.parquet")
    assert first == (1, {"text": "a", "n": 1.5})
    assert str(second[1]).startswith("column 'n' holds a number that is not finite")


def test_blank_lines_and_unused_numbers_of_examples_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "b", "price": NaN}\n\n{"text": NaN, "label": "b"}\n')
    task = file_task(inputs="{text}", targets="{label}")
    first, second = read_records(tmp_path / "a.jsonl")
    assert task.cast(first[1], "train")[0].inputs == "a" and second[0] == 3
    with pytest.raises(ValueError, match="column 'text' holds no text but nan"):
        task.cast(second[1], "train")


@pytest.mark.parametrize("scoring", ["rank", "generate"])
def test_an_answer_that_is_no_number_is_an_error_line(lm, tmp_path, scoring):
    saved = open_prompts(saved_prompt(tmp_path / "p", lm), model=lm, scoring=scoring)
    tokens = set(lm.tokenizer.encode("text: a sea")) - set(lm.tokenizer.encode("text: a warm film"))
    lm._table.weight[list(tokens)] = math.inf  # an input with one of these is no number
    items = [(1, {"text": "a warm film"}), (2, {"text": "a sea", "n": 7}), (3, {"text": "a warm film"})]
    first, second, third = answers(saved, items)
    reason = "the model gives no finite numbers for this input; load it with --dtype float32, or use another prompt"
    assert second == {"text": "a sea", "n": 7, "error": reason, "line": 2}
    assert first == third and math.isfinite(first["log_prob"])
    found = predict_records(saved, items, strict=True)
    assert next(found) == first
    with pytest.raises(ValueError, match=r"^line 2: the model gives no finite numbers"):
        next(found)


def test_a_file_of_records_is_read_by_its_name(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"warm, dry",1\nshort\ndull,2\n')
    (tmp_path / "a.tsv").write_text('text\tn\n"warm\t1\n')
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "a.json").write_text('[{"text": "warm"}]')
    (tmp_path / "a.jsonl").write_text('{"text": "warm"}\n\nplain\n[1]\n')

    def read(name):
        return [(number, str(item) if isinstance(item, ValueError) else item) for number, item in read_items(name)]

    assert read(tmp_path / "a.csv") == [
        (2, {"text": "warm, dry", "n": "1"}),
        (3, "1 fields, but there are 2 columns"),
        (4, {"text": "dull", "n": "2"}),
    ]
    assert read(tmp_path / "a.tsv") == [(2, {"text": '"warm', "n": "1"})]
    assert read(tmp_path / "a.txt") == [(1, "one"), (2, "two")]
    assert read(tmp_path / "a.json") == [(1, {"text": "warm"})]
    assert [item for _, item in read(tmp_path / "a.jsonl")] == [
        {"text": "warm"},
        "the line is blank",
        "not JSON (Expecting value, column 1)",
        "wanted an object, got [1]",
    ]


def test_parquet_is_read_and_counted(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": ["warm", "dull"]}), tmp_path / "a.parquet")
    assert list(read_items(tmp_path / "a.parquet")) == [(1, {"text": "warm"}), (2, {"text": "dull"})]
    assert count_items(tmp_path / "a.parquet") == 2


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compressed_files_are_read_by_the_name_inside(tmp_path, compress):
    end = ".gz" if compress is gzip.compress else ".xz"
    for name, text in {"a.csv": "text,n\nwarm,1\n", "a.b.TXT": "text\tn\n", "a.jsonl": '{"text": "warm"}\n'}.items():
        (tmp_path / f"{name}{end}").write_bytes(compress(text.encode()))
    assert list(read_items(tmp_path / f"a.csv{end}")) == [(2, {"text": "warm", "n": "1"})]
    assert list(read_items(tmp_path / f"a.b.TXT{end}")) == [(1, "text\tn")]
    assert list(read_items(tmp_path / f"a.jsonl{end}")) == [(1, {"text": "warm"})]
    assert count_items(tmp_path / f"a.csv{end}") is None


def test_items_are_counted_without_reading_them(tmp_path):
    (tmp_path / "a.csv").write_text("text\na\nb\n")
    (tmp_path / "a.txt").write_text("a\nb\n")
    (tmp_path / "a.json").write_text("[]")
    assert [count_items(tmp_path / name) for name in ("a.csv", "a.txt", "a.json")] == [2, 2, None]


def test_a_missing_file_and_broken_column_names_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.csv; name a file of records or of lines"):
        list(read_items(tmp_path / "none.csv"))
    (tmp_path / "a.csv").write_text('"text"s\nwarm\n')
    with pytest.raises(ValueError, match=r"a\.csv, line 1: not CSV \(',' expected after '\"'\)"):
        list(read_items(tmp_path / "a.csv"))


BAD_ROWS = {
    "a.csv": {
        b'"a"b': "not CSV (',' expected after '\"')",
        b'"never closed': "not CSV (unexpected end of data)",
        b"caf\xe9": "not UTF-8 text (byte 0xe9)",
        b'"caf\xe9\nsea"': "not UTF-8 text (byte 0xe9)",
    },
    "a.tsv": {b"caf\xe9": "not UTF-8 text (byte 0xe9)", b"a\tb": "2 fields, but there are 1 columns"},
    "a.jsonl": {
        b'{"text": "caf\xe9"}': "not UTF-8 text (byte 0xe9)",
        b'{"text": ' + b"9" * 5000 + b"}": "not JSON (a number of too many digits)",
    },
    "a.txt": {b"caf\xe9": "not UTF-8 text (byte 0xe9)"},
    "a.json": {b"3": "wanted an object, got 3", b'{"text": "\\ud83d"}': "'\\ud83d' is half of a character"},
}


@pytest.mark.parametrize(("name", "bad"), [(name, bad) for name, rows in BAD_ROWS.items() for bad in rows])
def test_a_bad_row_of_a_file_is_one_error_among_the_rows(tmp_path, name, bad):
    record = b'{"text": "%s"}' if "json" in name else b"%s"
    rows = [record % b"warm", bad, record % b"dull", record % b"sea"]
    if name == "a.json":
        (tmp_path / name).write_bytes(b"[" + b",".join(rows) + b"]")
    else:
        header = [b"text"] if name in ("a.csv", "a.tsv") else []
        (tmp_path / name).write_bytes(b"\n".join([*header, *rows]) + b"\n")
    items = [item for _, item in read_items(tmp_path / name)]
    (error,) = (item for item in items if isinstance(item, ValueError))
    assert str(error).startswith(BAD_ROWS[name][bad]) and items.index(error) == 1
    texts = [item["text"] if isinstance(item, dict) else item for item in items if item is not error]
    assert texts == ["warm", "dull", "sea"]


def test_a_quote_that_is_never_closed_is_an_error_on_its_own_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\nwarm,1\n"dull,2\nsea,3\n"a ""fine"" day\nby the sea",4\n"sand,5\nsun,6\n')
    found = [
        (number, str(item) if isinstance(item, ValueError) else item) for number, item in read_items(tmp_path / "a.csv")
    ]
    assert found == [
        (2, {"text": "warm", "n": "1"}),
        (3, "not CSV (',' expected after '\"')"),
        (4, {"text": "sea", "n": "3"}),
        (6, {"text": 'a "fine" day\nby the sea', "n": "4"}),
        (7, "not CSV (unexpected end of data)"),
        (8, {"text": "sun", "n": "6"}),
    ]


def test_long_fields_and_lone_returns_are_text_like_any_other(tmp_path):
    long = "warm " * 40_000
    (tmp_path / "a.csv").write_text(f"text\n{long}\ndull\n")
    assert [item["text"] for _, item in read_items(tmp_path / "a.csv")] == [long, "dull"]
    (tmp_path / "a.tsv").write_bytes(b"text\twhere\r\nwarm\rdry\tsea\r\n")
    assert [item for _, item in read_items(tmp_path / "a.tsv")] == [{"text": "warm\rdry", "where": "sea"}]


def test_rows_around_a_bad_one_are_answered_and_resuming_goes_past_it(lm, folders, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    (tmp_path / "a.csv").write_bytes(b'text\nwarm\n"a"b\nc\xe9\ndull\n')
    with pytest.raises(ValueError, match=r"line 3: not CSV \(',' expected after"):
        predict_file(saved, tmp_path / "a.csv", output, strict=True)
    written = predict_file(saved, tmp_path / "a.csv", output, resume=True)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert (written.num_rows, written.num_errors) == (4, 2)
    assert [line.get("text") for line in lines] == ["warm", None, None, "dull"]
    assert [line.get("line") for line in lines] == [None, 3, 4, None]


def test_a_file_is_answered_line_by_line_and_whole(lm, folders, dev, tmp_path):
    seen = []
    written = predict_file(open_prompts(folders, model=lm), dev, tmp_path / "out.jsonl", progress=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (written.num_rows, written.num_errors, sum(seen)) == (20, 0, 20)
    assert [line["id"] for line in lines] == [f"r{i}" for i in range(20)]
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.settings"]


@pytest.mark.parametrize("torn", [b"", b'{"id": "r8", "te'])
def test_a_resumed_file_is_the_file_of_one_run(lm, folders, dev, tmp_path, torn):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    predict_file(saved, dev, output)
    whole = parsed(output)
    output.unlink()
    bad = dev.read_text().splitlines()
    broken = written_lines(tmp_path / "broken.jsonl", [*bad[:8], "{", *bad[9:]])
    with pytest.raises(ValueError, match="line 9: not JSON"):
        predict_file(saved, broken, output, strict=True)
    partial = tmp_path / "out.jsonl.partial"
    assert [json.loads(line) for line in partial.read_text().splitlines()] == whole[:8]
    assert not output.exists()
    with open(partial, "ab") as file:
        file.write(torn)
    broken.write_text(dev.read_text())
    seen = []
    written = predict_file(saved, broken, output, strict=True, resume=True, progress=seen.append)
    assert [json.loads(line) for line in output.read_text().splitlines()] == whole
    assert (written.num_rows, seen[0], sum(seen)) == (20, 8, 20)


@pytest.mark.parametrize("num_rows", [1, 7, 19])
def test_a_chunk_that_was_begun_is_answered_in_the_batches_it_was_in(lm, folders, dev, tmp_path, num_rows, monkeypatch):
    monkeypatch.setattr("softprompt.answering.prediction.CHUNK", 6)
    saved = open_prompts(folders[0], model=lm)
    predict_file(saved, dev, tmp_path / "whole.jsonl")
    seen, asked = [], []

    def stop(rows):
        seen.append(rows)
        if len(seen) == num_rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_file(saved, dev, tmp_path / "out.jsonl", progress=stop)
    answers = saved.answers

    def counted(self, examples, *rows, **settings):
        asked.append(len(examples))
        return answers(examples, *rows, **settings)

    monkeypatch.setattr(type(saved), "answers", counted)
    assert predict_file(saved, dev, tmp_path / "out.jsonl", resume=True).num_rows == 20
    assert sum(asked) == 20 - (num_rows - num_rows % 6)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def parsed(path):
    """The answers in a file; their log-probabilities are those of other batches, so only nearly equal."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{**line, "log_prob": pytest.approx(line["log_prob"], abs=1e-4)} for line in lines]


def written_lines(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_resuming_a_finished_file_changes_nothing(lm, folders, dev, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    predict_file(saved, dev, output)
    before = output.read_bytes()
    assert predict_file(saved, dev, output, resume=True).num_rows == 20
    assert output.read_bytes() == before


def test_a_file_that_is_there_is_not_replaced_by_accident(lm, folders, dev, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.jsonl is there already; --overwrite replaces it"):
        predict_file(saved, dev, output)
    assert output.read_text() == "mine"
    assert predict_file(saved, dev, output, overwrite=True).num_rows == 20
    (tmp_path / "out.jsonl.partial").write_text("")
    with pytest.raises(ValueError, match=r"out\.jsonl\.partial holds part of an earlier run; --resume goes on"):
        predict_file(saved, dev, output)


def test_another_prompt_does_not_go_on_with_a_partial_file(lm, folders, dev, tmp_path):
    output = tmp_path / "out.jsonl"
    broken = written_lines(tmp_path / "broken.jsonl", ["{"])
    with pytest.raises(ValueError, match="line 1"):
        predict_file(open_prompts(folders[0], model=lm), broken, output, strict=True)
    with pytest.raises(ValueError, match=r"was begun with prompts \[.*\], and now it is \[.*give the same settings"):
        predict_file(open_prompts(folders[1], model=lm), broken, output, resume=True)
    (tmp_path / "out.jsonl.partial.settings").unlink()
    with pytest.raises(ValueError, match=r"has no out\.jsonl\.partial\.settings beside it"):
        predict_file(open_prompts(folders[0], model=lm), broken, output, resume=True)


def test_other_templates_or_labels_do_not_go_on_with_a_partial_file(lm, tmp_path):
    folder, output = saved_prompt(tmp_path / "p", lm), tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="line 1"):
        predict_file(open_prompts(folder, model=lm), [b"{"], output, strict=True)
    for labels, inputs, name in [(["good", "bad"], "{text}", "templates"), (["bad", "good"], "text: {text}", "labels")]:
        task = file_task(inputs=inputs, targets="{label}", labels=labels)
        with pytest.raises(ValueError, match=rf"was begun with {name} \[.*\], and now it is \[.*same settings"):
            predict_file(open_prompts(folder, model=lm, task=task), [b"{"], output, resume=True)


def test_the_same_numbers_with_another_text_format_do_not_go_on_with_a_partial_file(lm, tmp_path):
    output = tmp_path / "out.jsonl"
    with pytest.raises(ValueError, match="line 1"):
        predict_file(open_prompts(saved_prompt(tmp_path / "p", lm), model=lm), [b"{"], output, strict=True)
    card = load_prompt(tmp_path / "p").card
    saved_prompt(tmp_path / "p", lm, text={**card.text, "max_input_length": 64})
    with pytest.raises(ValueError, match=r"was begun with prompt hashes \[.*\], and now it is \["):
        predict_file(open_prompts(tmp_path / "p", model=lm), [b"{"], output, resume=True)


ROWS = [{"text": "warm"}, {"text": "dull", "error": 1}, {"text": "sea", "n": 0.1}]


@pytest.mark.filterwarnings("ignore:the input's column 'error'")
@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"text": "cold"}, *ROWS[1:]], 1),
        ([ROWS[0], {"text": "dull", "error": 2}, ROWS[2]], 2),
        ([*ROWS[:2], {"text": "sea"}], 3),
        (ROWS[:2], 3),
    ],
)
def test_answers_to_another_input_are_not_gone_on_with(lm, folders, tmp_path, rows, line):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    source = written(tmp_path / "in.jsonl", ROWS)
    predict_file(saved, source, output)
    before = output.read_bytes()
    written(source, rows)
    message = rf"line {line} of .*{{}} does not answer that row of the input; give the input that it was made of"
    with pytest.raises(ValueError, match=message.format(r"out\.jsonl")):
        predict_file(saved, source, output, resume=True)
    assert output.read_bytes() == before
    for name in ("out.jsonl", "out.jsonl.settings"):
        (tmp_path / name).rename(tmp_path / name.replace("jsonl", "jsonl.partial", 1))
    with pytest.raises(ValueError, match=message.format(r"out\.jsonl\.partial")):
        predict_file(saved, source, output, resume=True)


def test_a_finished_file_of_another_prompt_or_of_fewer_rows_is_not_taken_for_the_answer(lm, folders, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    lines = [b"text: warm\n", b"text: sea\n"]
    predict_file(saved, lines, output)
    assert predict_file(saved, iter(lines), output, resume=True).num_rows == 2
    with pytest.raises(ValueError, match=r"out\.jsonl was begun with prompts \[.*\], and now it is \[.*--overwrite"):
        predict_file(open_prompts(folders[1], model=lm), lines, output, resume=True)
    with pytest.raises(ValueError, match=r"out\.jsonl answers 2 rows and the input has more; start again with --over"):
        predict_file(saved, [*lines, b"text: dull\n"], output, resume=True)


def test_a_file_that_predict_did_not_write_is_left_as_it_is(lm, folders, dev, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "single.json"
    output.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match=r"single\.json has no single\.json\.settings beside it.*use --overwrite"):
        predict_file(saved, dev, output, resume=True)
    assert output.read_text() == '{"mine": 1}'
    predict_file(saved, dev, output, overwrite=True)
    output.write_text("mine")
    with pytest.raises(ValueError, match=r"line 1 of .*single\.json does not answer that row of the input"):
        predict_file(saved, dev, output, resume=True)
    assert output.read_text() == "mine"


def test_a_full_disk_says_what_was_written_and_keeps_it(llama, tmp_path):
    import resource

    saved = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama)
    lines = [f"film {i}\n".encode() for i in range(40)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        words = (
            r"could not write .*out\.jsonl\.partial \(File too large\); \d+ whole rows are in out\.jsonl\.partial; free"
        )
        with pytest.raises(OSError, match=words):
            predict_file(saved, lines, tmp_path / "out.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert predict_file(saved, lines, tmp_path / "out.jsonl", resume=True).num_rows == 40
    kept = [json.loads(line)["inputs"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert kept == [f"film {i}" for i in range(40)]


def test_two_cannot_write_one_file_of_answers(llama, tmp_path):
    saved = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama)
    second = []

    def lines():
        yield b"a film\n"
        with ThreadPoolExecutor() as pool, pytest.raises(ValueError, match=r"out\.jsonl is being written by process "):
            pool.submit(predict_file, saved, [b"b\n"], tmp_path / "out.jsonl", resume=True).result()
        second.append("refused")
        yield b"another\n"

    assert predict_file(saved, lines(), tmp_path / "out.jsonl").num_rows == 2
    assert second == ["refused"]
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_killed_at_any_moment_a_file_is_gone_on_with_to_its_end(lm, folders, tmp_path, monkeypatch):
    saved = open_prompts(folders[0], model=lm)
    source = written(tmp_path / "in.jsonl", [{"text": "a warm film"}, {"text": "a dull film"}])
    whole = tmp_path / "whole.jsonl"
    predict_file(saved, source, whole)

    class Killed(BaseException):
        pass

    for call in range(1, 40):
        left = [call]

        def dying(original, left=left):
            def counted(*arguments, **named):
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed
                return original(*arguments, **named)

            return counted

        output = tmp_path / f"{call}.jsonl"
        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                predict_file(saved, source, output)
            except Killed:
                pass
            else:
                break
        if not output.exists() and not output.with_name(f"{output.name}.partial").exists():
            continue
        assert predict_file(saved, source, output, resume=True).num_rows == 2
        assert output.read_bytes() == whole.read_bytes()
        assert {path.name for path in tmp_path.glob(f"{call}.jsonl*")} == {f"{call}.jsonl", f"{call}.jsonl.settings"}
        with pytest.raises(ValueError, match="scores False, and now it is True"):
            predict_file(saved, source, output, with_probabilities=True, resume=True)
    assert call > 3


def test_settings_that_are_torn_are_one_line(lm, folders, dev, tmp_path):
    saved, output = open_prompts(folders[0], model=lm), tmp_path / "out.jsonl"
    predict_file(saved, dev, output)
    (tmp_path / "out.jsonl.settings").write_text('{"prompts": [')
    with pytest.raises(ValueError, match=r"out\.jsonl\.settings: not JSON .*; start again with --overwrite$"):
        predict_file(saved, dev, output, resume=True)


def test_each_record_is_answered_by_the_prompt_that_it_names(lm, tmp_path):
    say = default_format(lm, max_target_length=5, inputs_template="say: {text}", targets_template="{label}")
    other = {"labels": ("yes", "no", "perhaps"), "text": say.to_json(), "task": "another"}
    folders = {
        "a": saved_prompt(tmp_path / "a", lm, 1),
        "b": saved_prompt(tmp_path / "b", lm, 2, length=5, **other),
        "free": saved_prompt(tmp_path / "c", lm, 3, recipe={"scoring": "generate"}),
        "short": saved_prompt(tmp_path / "d", lm, 4, recipe={"scoring": "generate"}, text=say.to_json()),
    }
    records = [
        {"id": n, "text": f"a {WORDS[n % 10]} film", "who": name} for n in range(8) for name in [*folders, "c", None]
    ]
    records[5] = {"id": 5, "text": "warm"}
    saved = open_named(folders, "who", model=lm)
    lines = answers(saved, [*enumerate(records, 1), (49, "a text"), (50, ValueError("torn"))])
    assert [line.get("id") for line in lines] == [record["id"] for record in records] + [None, None]
    for name, folder in folders.items():
        mine = [(number, record) for number, record in enumerate(records, 1) if record.get("who") == name]
        for line, alone in zip(
            [line for line in lines if line.get("who") == name],
            answers(open_prompts(folder, model=lm), mine),
            strict=True,
        ):
            assert line.pop("log_prob") == pytest.approx(alone.pop("log_prob"), abs=1e-4)
            assert line == alone
    errors = [line["error"] for line in lines if "error" in line]
    assert errors[0] == "no prompt is named 'c'; there are a, b, free, short" or errors[0].startswith(
        "no prompt is nam"
    )
    assert errors[1] == "there is no column 'who' to name a prompt; give a record that has it"
    assert errors[-2:] == ["there is no column 'who' to name a prompt; give a record that has it", "torn"]


def test_a_file_of_named_prompts_is_gone_on_with_only_by_the_same_names(llama, tmp_path):
    folders = {name: saved_prompt(tmp_path / name, llama, seed) for seed, name in enumerate("ab")}
    source = written(tmp_path / "in.jsonl", [{"text": "warm", "who": name} for name in "abba"])
    predict_file(open_named(folders, "who", model=llama), source, tmp_path / "out.jsonl")
    swapped = open_named({"a": folders["b"], "b": folders["a"]}, "who", model=llama)
    with pytest.raises(ValueError, match=r"out.jsonl was begun with prompts by name"):
        predict_file(swapped, source, tmp_path / "out.jsonl", resume=True)


class Elsewhere:
    """Answers parts of files as workers elsewhere would; gone after so many."""

    def __init__(self, saved, parts=1_000):
        self.saved, self.left, self.asked = saved, parts, []

    def __call__(self, sources):
        for path, begin in sources:
            for part in read_parts(path, begin):
                if not self.left:
                    raise KeyboardInterrupt
                self.left -= 1
                self.asked += [(path.name, number) for number, _ in part]
                yield list(predict_records(self.saved, part))


def test_files_answered_elsewhere_are_those_of_predict_and_go_on_after_a_kill(llama, tmp_path):
    saved = open_prompts(saved_prompt(tmp_path / "p", llama), model=llama)
    (tmp_path / "x" / "deep").mkdir(parents=True)
    counts = {"x/a.jsonl": 2 * CHUNK + 20, "x/deep/b.jsonl": 3, "x/none.jsonl": 0, "x/z.jsonl": CHUNK}
    for name, count in counts.items():
        written(tmp_path / name, [{"text": f"{name} {n}", "id": n} if n != 7 else {} for n in range(count)])
    paths, folder = [tmp_path / name for name in counts], tmp_path / "out"
    settings = {"prompts": [saved.prompts[0].sha256]}
    with pytest.raises(KeyboardInterrupt):
        predict_files(paths, folder, Elsewhere(saved, 2), settings)
    with pytest.raises(ValueError, match=r"a.jsonl.partial holds part of an earlier run; --resume goes on from it"):
        predict_files(paths, folder, Elsewhere(saved), settings)
    with open(folder / "a.jsonl.partial", "ab") as file:
        file.write(b'{"text": "torn')
    again, told = Elsewhere(saved), []
    done = predict_files(paths, folder, again, settings, resume=True, progress=told.append)
    assert (done.num_rows, done.num_errors, sum(told)) == (sum(counts.values()), 2, sum(counts.values()))
    assert len(again.asked) == len(set(again.asked)) == done.num_rows - 2 * CHUNK
    for name, path in zip(counts, paths, strict=True):
        alone = tmp_path / "alone.jsonl"
        predict_file(saved, path, alone, overwrite=True)
        assert (folder / name.removeprefix("x/")).read_bytes() == alone.read_bytes()
    assert predict_files(paths, folder, Elsewhere(saved, 0), settings, resume=True) == done
    written(tmp_path / "x/deep/b.jsonl", [{"text": "another"}])
    with pytest.raises(ValueError, match=r"line 1 of .*b.jsonl does not answer that row of the input"):
        predict_files(paths, folder, Elsewhere(saved), settings, resume=True)
    with pytest.raises(ValueError, match=r"was begun with prompts \['.*'\], and now it is \['other'\]"):
        predict_files(paths, folder, Elsewhere(saved), {"prompts": ["other"]}, resume=True)


def test_no_two_files_are_answered_into_one_nor_into_an_input(llama, tmp_path):
    for name in ("a.csv", "a.jsonl"):
        (tmp_path / name).write_text("text\n")
    paths = [tmp_path / "a.csv", tmp_path / "a.jsonl"]
    with pytest.raises(ValueError, match=r"the answers to .*a.csv and .*a.jsonl would both be .*out/a.jsonl; name one"):
        predict_files(paths, tmp_path / "out", Elsewhere(None), {})
    with pytest.raises(
        ValueError, match=r"the answers to .*a.jsonl would be .*a.jsonl, which is an input; give another"
    ):
        predict_files(paths[1:], tmp_path, Elsewhere(None), {}, overwrite=True)
