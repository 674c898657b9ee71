"""What a run decides by itself: its data, settings, lengths, what it keeps and what it refuses, on tiny models."""

import json
import random
import re
import subprocess
import sys
import warnings
from collections import Counter
from dataclasses import asdict, replace
from itertools import chain, groupby, product
from operator import itemgetter
from pathlib import Path
from statistics import fmean

import pytest
import torch
from conftest import lossy_lm, make_model, make_tokenizer, tiny_lm
from test_training import spoil, taught
from tokenizers import normalizers

from softprompt.answering import evaluate_prompts, evaluation, open_prompts
from softprompt.answering.engine import Engine
from softprompt.answering.evaluation import evaluate
from softprompt.answering.rows import read_rows
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.models.text import default_format, encode_examples, encode_target
from softprompt.tasks import Example, get_task, mixed, mixture
from softprompt.training import budget, estimate, plan, run
from softprompt.training import loop as training
from softprompt.training.loop import Fitted, fit
from softprompt.training.optimizers import Adafactor, AdamW
from softprompt.training.plan import TaskData, check_plans, plan_prompts, prepare, tasks_of
from softprompt.training.presets import PRESETS
from softprompt.training.run import train, train_together
from softprompt.training.settings import RunConfig

CHAT = "{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}assistant:"
LABELS = ("good", "bad")


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def films(split, count, labels=LABELS):
    return [{"text": f"{split} film {i} is warm", "label": labels[i % len(labels)]} for i in range(count)]


def own(folder, records=None, **changes):
    """A run on files of one's own, 30 training and 6 dev examples unless given by split."""
    records = {"train": films("train", 30), "dev": films("dev", 6)} | (records or {})
    files = {split: [write(folder / f"{split}.jsonl", lines)] for split, lines in records.items() if lines}
    own = {"inputs": "text: {text}", "targets": "{label}", "labels": LABELS, "out": folder / "out"}
    few = {"steps": 2, "evaluate_every": 2, "num_selection": 5, "batch_size": 4, "prompt_length": (4,)}
    return RunConfig(**{"model": "tiny", "data": files, **own, **few, **changes})


def data_of(config, lm):
    return prepare(config, tasks_of(config)[0], lm)


def chatty():
    """A tiny Llama with a chat template."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = CHAT
    return FrozenLM(make_model("llama"), tokenizer, name="tiny-chat")


def skill_records(count, seed, skill=None):
    """'sort' answers good to a warm film and bad to a dull one, 'mirror' the other way round.

    Without `skill` its name stands in front; with it, nothing in the text says which is meant.
    """
    draw = random.Random(seed)
    records = []
    for _ in range(count):
        kind, named = draw.randrange(2), draw.choice(("sort", "mirror"))
        words = draw.choices(("film", "sea", "story", "the", "a", "that", "is"), k=draw.randrange(3, 6))
        words.insert(draw.randrange(len(words) + 1), ("warm", "dull")[kind])
        label = LABELS[kind ^ ((skill or named) == "mirror")]
        records.append({"text": " ".join(words if skill else [named, *words]), "label": label})
    return records


@pytest.fixture(scope="module", params=["t5", "llama"])
def skilled(request, once):
    """A tiny model with both skills, learned from texts as a run puts them to it."""
    lm = tiny_lm(request.param)
    form = default_format(lm)

    def rows_of_step(step):
        examples = [example(**record) for record in skill_records(64, 1000 + step)]
        return encode_examples(examples, form, lm.tokenizer)

    return taught(lm, "texts", rows_of_step, once)


def example(text, label):
    return Example(inputs=f"text: {text}", targets=label, id=text, references=(label,))


@pytest.mark.parametrize("scoring", ["rank", "generate"])
def test_a_run_teaches_a_model_what_its_start_does_not_ask_for(skilled, tmp_path, scoring):
    """With each family's own optimizer and rate in the fast preset."""
    counts = {"train": 520, "dev": 100}
    records = {name: skill_records(count, seed, "mirror") for seed, (name, count) in enumerate(counts.items(), 1)}
    few = {"prompt_length": (8,), "steps": 80, "batch_size": 32, "evaluate_every": 20, "num_selection": 50}
    config = own(tmp_path, records, scoring=scoring, **few)
    data = data_of(config, skilled)
    start = plan_prompts(config, data, skilled)[0].values
    (before,) = evaluate(skilled, [start], data.task, data.dev, data.form, scoring=scoring)
    (made,) = train(config, lm=skilled)
    assert before.headline < 0.7 and made.dev.headline > 0.95
    assert made.fitted.score > 0.95 and made.dev.illegal_rate == 0
    (saved,) = evaluate_prompts(open_prompts(made.folder, model=skilled), data=config.data).evaluations
    assert saved.headline == made.dev.headline


@pytest.mark.filterwarnings("ignore:40 labels for 4 prompt rows")
def test_more_than_32_labels_are_trained_and_ranked(lm, tmp_path):
    labels = tuple(f"kind {i}" for i in range(40))
    records = {"train": films("train", 80, labels), "dev": films("dev", 40, labels)}
    config = own(tmp_path, records, labels=labels, select="held-out", scoring="rank")
    data = data_of(config, lm)
    with pytest.warns(UserWarning, match="40 labels for 4 prompt rows: the last 36 were skipped"):
        (plan,) = plan_prompts(config, data, lm)
    space = " " if data.form.leading_space else ""
    starts = [lm.embeddings[lm.tokenizer.encode(space + label)].mean(0) for label in labels[:4]]
    assert torch.allclose(plan.values, torch.stack(starts))
    (made,) = train(config, lm=lm)
    assert made.fitted.steps_run == 2 and not torch.allclose(made.prompt.values, plan.values)
    first = made.dev.predictions[0]
    assert tuple(first.scores) == labels and first.text == max(labels, key=first.scores.get)
    rows = encode_examples(data.dev[:1] * 40, data.form, lm.tokenizer)
    alone = [[encode_target(label, data.form, lm.tokenizer)] for label in labels]
    scores = Engine(lm, [made.prompt.values]).label_scores(rows, [0] * 40, alone)
    assert list(first.scores.values()) == pytest.approx([score for (score,) in scores], abs=1e-4)


LONG = "sea " * 240  # with a prompt of 4 rows, the template and an answer, more than the 256 tokens of these models


@pytest.mark.parametrize(
    ("where", "select"),
    [("dev", "held-out"), ("dev", "dev"), ("train", "held-out"), ("train", "cross-validation")],
)
@pytest.mark.parametrize("scoring", ["rank", "generate"])
def test_a_row_that_the_model_cannot_take_is_refused_before_training(tmp_path, where, select, scoring):
    lm = tiny_lm("gpt2")
    records = {"train": films("train", 30), "dev": films("dev", 6)}
    records[where][-1]["text"] = LONG
    config = own(tmp_path, records, select=select, scoring=scoring)
    with pytest.raises(ValueError, match=r"prompt 4 \+ input and target \d+ tokens, but tiny-gpt2 takes 256; use a"):
        train(config, lm=lm)
    assert not config.out.exists()


def test_room_for_a_written_answer_and_for_the_longest_prompt_is_asked_for_before_training(tmp_path):
    """The targets are shorter than what may be written; and of two prompt lengths, the first alone would fit."""
    lm, labels = tiny_lm("gpt2"), ("sea", "a warm and funny story of the sea")
    records = {"dev": films("dev", 1, labels), "train": films("train", 30, labels)}
    config = own(tmp_path, records, labels=labels, init="uniform")
    data = data_of(config, lm)
    taken = len(encode_examples(data.dev, data.form, lm.tokenizer)[0].ids) + data.form.max_target_length
    longest = 256 - taken
    check_plans(plan_prompts(replace(config, prompt_length=(4, longest)), data, lm), lm)
    with pytest.raises(ValueError, match=rf"prompt {longest + 1} \+ input and target {taken} tokens"):
        check_plans(plan_prompts(replace(config, prompt_length=(4, longest + 1)), data, lm), lm)


@pytest.mark.parametrize("chat", [True, False])
def test_the_longest_label_is_written_whole_in_the_format_it_is_trained_in(tmp_path, chat):
    """Without a leading space this label has more ids than with one."""
    lm, long = chatty(), "story film warm sea film sea"
    records = {split: films(split, count, ("sea", long)) for split, count in (("train", 30), ("dev", 6))}
    config = own(tmp_path, records, labels=("sea", long), chat=chat)
    form = data_of(config, lm).form
    whole = [*lm.tokenizer.encode(("" if chat else " ") + long), lm.tokenizer.eos_id]
    assert encode_target(long, form, lm.tokenizer) == whole
    assert form.max_target_length == len(whole) == (9 if chat else 7)
    (made,) = train(config, lm=lm)
    assert open_prompts(made.folder, model=lm).forms == [form]


def test_a_long_target_is_trained_whole(tmp_path, llama):
    long = " ".join(["sea"] * 181)
    assert len(llama.tokenizer.encode(" " + long)) == 181
    config = own(tmp_path, {"train": [{"text": "a", "label": long}, {"text": "b", "label": "sea"}]}, labels=None)
    data = data_of(replace(config, select="dev"), llama)
    assert data.form.max_target_length == 182 and data.notes["targets_cut"] == 0
    assert len(encode_target(long, data.form, llama.tokenizer)) == 182


def test_targets_longer_than_any_answer_are_cut_counted_and_warned_of(tmp_path, t5, monkeypatch):
    assert plan.MOST_TARGET_TOKENS == 512
    monkeypatch.setattr(plan, "MOST_TARGET_TOKENS", 12)
    labels = [" ".join(["sea"] * 20), "sea", "warm"]
    records = [{"text": f"film {i}", "label": labels[i % 3]} for i in range(30)]
    config = own(tmp_path, {"train": records}, labels=None, steps=1, scoring="generate")
    with pytest.warns(UserWarning, match=r"10 of 30 training targets of own are longer than 12 tokens and are cut"):
        train(config, lm=t5)
    (row,) = read_rows(config.out / "results.jsonl")
    assert row.notes["targets_cut"] == 10


def test_cut_inputs_are_counted_and_told(tmp_path, llama):
    records = films("train", 30)
    records[3]["text"] = records[9]["text"] = "sea " * 60
    told, config = [], own(tmp_path, {"train": records, "dev": []}, max_input_length=50)
    train(config, lm=llama, watch=Watch(message=told.append))
    cut = (
        "own: 2 of 30 training inputs are cut to 50 tokens; --max-input-length takes more of them; of the first is lost"
    )
    (line,) = [line for line in told if line.startswith(cut)]
    assert re.search(r"at the end \(--truncate\): sea( sea)+$", line)
    told.clear()
    train(replace(config, max_input_length=200), lm=llama, watch=Watch(message=told.append), overwrite=True)
    assert not [line for line in told if "cut" in line]


def test_truncation_at_the_start_keeps_the_question_at_the_end_here_and_in_use(tmp_path, llama):
    def asked(word, number=0):
        return {"text": f"{number} {'sea ' * 60}is it {word}?"}

    records = [asked(word, i) | {"label": word} for i, word in enumerate(("warm", "dull") * 16)]
    changes = {"max_input_length": 50, "labels": ("warm", "dull"), "truncate": "start"}
    told, config = [], own(tmp_path, {"train": records[2:], "dev": records[:2]}, **changes)
    train(config, lm=llama, watch=Watch(message=told.append))
    assert any("at the start (--truncate): text: 2 sea" in line for line in told)
    saved = open_prompts(config.out, model=llama)
    assert saved.forms[0].truncation_side == "start"
    (rows,) = saved.encode([saved.task.cast(asked("warm"), "asked")])
    assert llama.tokenizer.decode(rows[0].ids).endswith(" sea is it warm?\nanswer:") and rows[0].was_cut


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            ("good",),
            "all 30 training examples have the target 'good', and so will every answer; give examples of others",
        ),
        (
            ("good", "bad", "so-so", "odd"),
            "no training example has the label 'so-so', 'odd'; give some, or leave it out",
        ),
    ],
)
def test_a_file_of_one_class_and_a_label_without_an_example_are_told(tmp_path, llama, labels, words):
    records = films("train", 30, labels[:2])
    with pytest.warns(UserWarning, match=f"^{words}$"):
        data_of(own(tmp_path, {"train": records, "dev": []}, labels=labels), llama)


def test_what_stands_in_dev_or_test_is_not_trained_on_and_is_counted_and_told(tmp_path, llama):
    train_records, dev = films("train", 30), films("dev", 6)
    train_records[2]["text"] = "Dev film 0, is WARM!"
    train_records[5]["text"], train_records[6]["text"] = "test film 1 is warm.", "Test film 3 is warm"
    test = [{"text": f"test film {i} is warm"} for i in range(4)]  # without labels, as official test files are
    told, config = [], own(tmp_path, {"train": train_records, "dev": dev, "test": test}, max_dev=2)
    train(config, lm=llama, watch=Watch(message=told.append))
    counts = "27 training examples, 3 folds, 2 dev, 1 left out that stand in dev, 2 left out that stand in test"
    assert f"own: {counts}" in told
    (row,) = read_rows(config.out / "results.jsonl")
    assert (row.notes["overlap_with_dev"], row.notes["overlap_with_test"], row.notes["train_used"]) == (1, 2, 27)
    assert row.notes["scored_cut"] == 0 and row.notes["overlap"] == "left out"
    data = data_of(config, llama)
    assert {"3", "6", "7"}.isdisjoint(example.id for example in data.train)
    kept = "30 training examples, 3 folds, 2 dev, 1 kept that stand in dev, 2 kept that stand in test"
    for number, changes in enumerate(({"keep_overlap": True}, {"preset": "paper"}, {"preset": "google-code"})):
        out = tmp_path / "kept" / str(number)
        told.clear()
        train(replace(config, out=out, **changes), lm=llama, watch=Watch(message=told.append))
        (row,) = read_rows(out / "results.jsonl")
        assert f"own: {kept}" in told and row.notes["overlap"] == "kept" and row.notes["train_used"] == 30
    data = data_of(replace(config, preset="paper", keep_overlap=False), llama)
    assert len(data.train) == 27 and data.notes["overlap"] == "left out"


def wsc_records(split, count):
    """For each text the right referent of its pronoun, and a wrong one."""
    records = []
    for n in range(count):
        text = f"the cat saw the dog {split} {n} and it ran"
        for label, referent, place in ((True, "the cat", 0), (False, "the dog", 3)):
            spans = {"span1_text": referent, "span1_index": place, "span2_text": "it", "span2_index": 8}
            records.append({"idx": len(records), "text": text, "target": spans, "label": label})
    return records


@pytest.mark.parametrize(("select", "held"), [("held-out", "8 held out with 4"), ("auto", "3 folds with 40")])
def test_wscs_step_is_chosen_by_the_wrong_referents_too(tmp_path, llama, select, held):
    (tmp_path / "WSC").mkdir()
    for file, count in (("train", 40), ("val", 5)):
        write(tmp_path / "WSC" / f"{file}.jsonl", wsc_records(file, count))
    told, config = [], replace(own(tmp_path), task=("superglue/wsc",), inputs=None, targets=None, labels=None)
    config = replace(config, data=tmp_path, select=select)
    data = data_of(config, llama)
    for kept, chosen_by in data.folds or [(data.train, data.selection)]:
        assert {example.references for example in [*data.train, *kept]} == {("True",)}
        assert {example.references for example in chosen_by} == {("True",), ("False",)}
        assert {example.source for example in kept}.isdisjoint(example.source for example in chosen_by)
    train(config, lm=llama, watch=Watch(message=told.append))
    count = len(data.train)
    assert f"superglue/wsc: {count} training examples, {held} rows that the task does not train on, 10 dev" in told
    by_dev = data_of(replace(config, select="dev"), llama)
    assert len(by_dev.train) == 40 and len(by_dev.selection) == 10
    few = data_of(replace(config, select="held-out", max_train=20), llama)
    assert sum(example.references == ("True",) for example in [*few.train, *few.selection]) == 20


def test_a_task_without_a_test_file_loses_nothing_to_it(tmp_path, llama):
    data = data_of(own(tmp_path), llama)
    assert (data.notes["overlap_with_test"], len(data.train)) == (0, 30)


@pytest.mark.parametrize(("task", "dev", "test"), [("glue/sst2", 5, 10), ("glue/mrpc", 0, 6)])
def test_official_training_files_lose_what_stands_in_their_dev_and_test_files(data_folder, llama, task, dev, test):
    data = data_of(RunConfig(model="tiny", task=(task,), data=data_folder), llama)
    assert (data.notes["overlap_with_dev"], data.notes["overlap_with_test"]) == (dev, test)


@pytest.mark.parametrize(
    ("changes", "count"),
    [({"labels": None}, 1), ({"labels": ("one", "①", "a\u0301"), "scoring": "generate"}, 1), ({"scoring": "rank"}, 0)],
)
def test_targets_that_the_tokenizer_does_not_give_back_are_told_before_training(tmp_path, changes, count):
    """Those that are ranked need not come back, and what comes back looking the same is right."""
    labels = ("one", "①", "a\u0301")
    config = own(tmp_path, {"train": films("train", 30, labels), "dev": []}, **{"labels": labels, **changes})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data_of(config, lossy_lm())
        data_of(config, lossy_lm(normalizers.NFKC()))
        data_of(config, tiny_lm("llama"))
    assert [str(warning.message) for warning in caught] == [
        f"{count} of 3 different training targets of own do not come back from the tokenizer of tiny-lossy: "
        r"'a\u0301' comes back as 'a', which is never right; write them otherwise"
    ] * (count > 0)


LONG = "sea " * 600


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (("\u00e1", "one", "a"), r"cannot tell the labels '\\xe1' and 'a' apart: it reads both as 'a'; write one of"),
        ((f"{LONG}a", f"{LONG}b"), "cannot tell the labels 'sea sea .*' and 'sea sea .*' apart: it reads both as 'sea"),
    ],
)
@pytest.mark.parametrize("scoring", ["rank", "generate"])
def test_labels_that_are_one_to_the_model_are_refused_before_training(tmp_path, labels, words, scoring):
    config = own(tmp_path, {"train": films("train", 30, labels), "dev": []}, labels=labels, scoring=scoring)
    with pytest.raises(ValueError, match=words):
        data_of(config, lossy_lm())


def test_a_long_label_that_begins_another_is_none_of_it(tmp_path, llama):
    labels = ("not good at all", "not good")
    data = data_of(own(tmp_path, {"train": films("train", 30, labels), "dev": []}, labels=labels), llama)
    assert data.task.labels == labels


@pytest.mark.parametrize("select", ["held-out", "cross-validation", "dev"])
def test_the_rows_that_are_scored_first_have_every_label_whatever_the_order_of_the_file(tmp_path, llama, select):
    records = {
        name: sorted(films(name, count), key=itemgetter("label")) for name, count in (("train", 600), ("dev", 90))
    }
    data = data_of(own(tmp_path, records, select=select), llama)
    parts = [held for _, held in data.folds] or [data.selection]
    for part in parts:
        labels = Counter(example.targets for example in part[:30])
        assert len(labels) == 2 and min(labels.values()) >= 8
    assert [len(part) for part in parts] == {"held-out": [60], "cross-validation": [200] * 3, "dev": [90]}[select]
    assert [example.id for example in data.dev] == [str(n) for n in range(1, 91)], "dev is scored in its own order"


@pytest.mark.parametrize("select", ["held-out", "cross-validation", "dev"])
def test_selection_rows_that_are_scored_together_stand_side_by_side(tmp_path, llama, select):
    records = {
        name: [line | {"question": f"{name} {i // 5}"} for i, line in enumerate(films(name, count))]
        for name, count in (("train", 600), ("dev", 90))
    }
    config = own(tmp_path, records, select=select, group_by="question", metric="em")
    data = data_of(config, llama)
    for part in [held for _, held in data.folds] or [data.selection]:
        runs = [group for group, _ in groupby(part, key=lambda example: example.group)]
        assert len(runs) == len(set(runs)) == len(part) / 5


@pytest.mark.parametrize(("count", "selected_on"), [(499, "cross-validation"), (500, "held-out")])
def test_a_set_under_500_examples_gets_folds_and_a_larger_one_a_held_out_part(tmp_path, llama, count, selected_on):
    config = own(tmp_path, {"train": films("train", count)})
    data = data_of(config, llama)
    assert data.selected_on == selected_on
    assert (len(data.folds), len(data.selection), len(data.train)) == ((0, 50, 450) if count == 500 else (3, 0, 499))
    assert data_of(replace(config, max_train=400), llama).selected_on == "cross-validation"


def test_dev_chooses_where_it_is_asked_to_and_the_row_says_so(tmp_path, llama):
    config = own(tmp_path, {"dev": films("dev", 12)}, select="dev", num_selection=None, steps=6, learning_rate=(0.1,))
    (made,) = train(config, lm=llama)
    (row,) = read_rows(config.out / "results.jsonl")
    assert row.selection == made.prompt.card.selection == "dev"
    assert row.config["train"]["num_selection"] == 12, "all of it"
    assert made.fitted.score == row.value, "the same rows, so the same score"
    with pytest.raises(ValueError, match="--select dev, but own has no dev file; give dev=FILE or use held-out"):
        train(own(tmp_path, {"dev": []}, select="dev", out=tmp_path / "other"), lm=llama)


def test_a_mixture_that_its_dev_rows_choose_is_scored_on_all_of_them(tmp_path, llama):
    """As methods are compared on several tasks: the dev rows stand in `selection`, and `dev` is empty."""
    task = get_task("boolq")
    rows = [mixed(task, Example(inputs="text", targets="True", id=str(i), references=("True",))) for i in range(3)]
    data = TaskData(mixture([task]), default_format(llama), rows, rows, [], [], "dev")
    (plan,) = plan_prompts(own(tmp_path, init="vocab", num_selection=None, preset="paper"), data, llama)
    assert plan.train.num_selection == 3


def test_rows_that_new_ones_cannot_be_added_to_are_refused_before_training(tmp_path, llama):
    config, steps = own(tmp_path), []
    config.out.mkdir()
    (config.out / "results.jsonl").write_text('{"accuracy": 0.9}\n')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 1"):
        train(config, lm=llama, watch=Watch(step=lambda *told: steps.append(told)))
    assert not steps and {path.name for path in config.out.iterdir()} == {"results.jsonl", ".softprompt.lock"}


def test_rows_say_what_chose(tmp_path, llama):
    for select in ("held-out", "cross-validation"):
        config = own(tmp_path, select=select, out=tmp_path / select)
        (made,) = train(config, lm=llama)
        (row,) = read_rows(config.out / "results.jsonl")
        assert row.selection == made.prompt.card.selection == select


def test_the_dev_set_is_scored_once_with_the_chosen_prompts_only(tmp_path, llama, monkeypatch):
    calls = []

    def spied(plain):
        def predict(engine, task, examples, *rest, **options):
            calls.append(Counter(example.inputs for example in examples))
            return plain(engine, task, examples, *rest, **options)

        return predict

    monkeypatch.setattr(evaluation, "predict", spied(evaluation.predict))
    monkeypatch.setattr(training, "predict", spied(training.predict))
    config = own(tmp_path, select="held-out", seeds=(0, 1), learning_rate=(0.1, 0.2), steps=4)
    train(config, lm=llama)
    on_dev = [call for call in calls if any("dev film" in text for text in call)]
    assert on_dev == [{f"text: dev film {i} is warm": 2 for i in range(6)}], "two seeds of one of two rates"
    assert len(calls) == 3, "two evaluations along the way"


def test_training_examples_may_be_bounded_by_a_seeded_shuffle(tmp_path, llama):
    config = own(tmp_path, {"train": sorted(films("train", 600), key=itemgetter("label"))}, select="dev")
    few, more = (data_of(replace(config, max_train=count), llama).train for count in (10, 20))
    assert [example.id for example in more[:10]] == [example.id for example in few]
    assert len(more) == 20 and len({example.targets for example in few}) == 2


ADAFACTOR = {  # t5_1_1_prompt.gin; the names are ours
    "learning_rate": 0.3,
    "decay_rate": 0.8,
    "weight_decay": 1e-5,
    "clip": 1.0,
    "epsilon": 1e-30,
    "step_offset": 0,
    "min_dim_size_to_factor": 128,
    "scale_by_weights": False,
    "min_scale": 1e-3,
    "schedule": "constant",
    "warmup_steps": 0,
}


def test_the_papers_preset_is_the_papers():
    """Paper, section 3; dropout, z-loss and evaluations from the authors' gin files."""
    paper = PRESETS["paper"]
    assert (paper.prompt_length, paper.init, paper.uniform_low) == (100, "class-labels", -0.5)
    assert asdict(paper.train) == {
        "preset": "paper",
        "steps": 30_000,
        "batch_size": 32,
        "optimizer": ADAFACTOR,
        "dropout": 0.1,
        "z_loss": 1e-4,
        "evaluate_every": 1_000,
        "patience": None,
        "num_selection": 500,
        "scoring": "generate",
    }


def test_google_codes_preset_is_what_the_released_code_does():
    """prompt_finetune.gin, finetune.gin, prompts.py: batch, steps, the checkpoint's steps, and U[0, 0.5) to start."""
    paper, google = PRESETS["paper"], PRESETS["google-code"]
    assert (google.prompt_length, google.init, google.uniform_low) == (100, "uniform", 0.0)
    changed = {"preset": "google-code", "steps": 50_000, "batch_size": 128}
    assert asdict(google.train) == asdict(paper.train) | changed | {"optimizer": ADAFACTOR | {"step_offset": 1_100_000}}


def test_the_setting_with_the_best_mean_over_its_seeds_is_chosen_and_every_one_is_written_down(skilled, tmp_path):
    lengths, rates, seeds = (3, 8), (0.001, 0.1), (0, 1)
    few = {"steps": 30, "batch_size": 16, "evaluate_every": 10, "num_selection": 12, "select": "held-out"}
    tried = {"prompt_length": lengths, "learning_rate": rates, "seeds": seeds}
    config = own(tmp_path, {"train": skill_records(200, 1, "mirror")}, **few, **tried)
    made = train(config, lm=skilled)
    lines = settings_of(config.out)
    assert [(line["prompt_length"], line["learning_rate"], line["seed"]) for line in lines] == list(
        product(lengths, rates, seeds)
    )
    scores = {}
    for line in lines:
        scores.setdefault((line["prompt_length"], line["learning_rate"]), []).append(line["score"])
        assert (line["task"], line["selection"], line["steps_run"], line["stopped"]) == ("own", "held-out", 30, None)
        assert [entry["step"] for entry in line["history"]] == [10, 20, 30]
        assert line["score"] == max(entry["score"] for entry in line["history"])
    best = max(scores, key=lambda setting: fmean(scores[setting]))
    assert fmean(scores[best]) > min(map(fmean, scores.values()))
    assert [line["chosen"] for line in lines] == [setting == best for setting in scores for _ in seeds]
    assert [(one.prompt.length, one.prompt.card.recipe["optimizer"]["learning_rate"]) for one in made] == [best] * 2
    assert [row.config["prompt_length"] for row in read_rows(config.out / "results.jsonl")] == [best[0]] * 2


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(0.5, 0.7), (0.9, 0.4), (0.6, 0.61)], 1),  # the mean, not the best seed's alone, nor the steadiest
        ([(0.5, 0.7), (0.6, 0.6)], 0),  # of equals the first
        ([(0.9, None), (0.2, 0.1)], 1),  # a lost seed comes after all others
        ([(None, None), (0.2, None)], 1),
        ([(-0.5, -0.2), (-0.1, None)], 0),
    ],
)
def test_a_setting_is_chosen_by_its_mean_score(tmp_path, llama, scores, chosen):
    config = own(tmp_path, seeds=(0, 1), learning_rate=tuple(0.1 * (i + 1) for i in range(len(scores))))
    plans = plan_prompts(config, data_of(config, llama), llama)
    fitted = [Fitted(plan.values, score=score) for plan, score in zip(plans, chain(*scores), strict=True)]
    assert run._choose(list(zip(plans, fitted, strict=True))) == (4, config.learning_rate[chosen])


FAST = AdamW(learning_rate=0.03, schedule="linear", warmup_steps=10)


@pytest.mark.parametrize(
    ("kind", "preset", "asked", "wanted"),
    [
        ("llama", "fast", None, FAST),
        ("llama", "fast", "adamw", FAST),
        ("llama", "fast", "adafactor", Adafactor(learning_rate=0.3)),
        ("t5", "fast", None, Adafactor(learning_rate=0.3)),
        ("t5", "fast", "adafactor", Adafactor(learning_rate=0.3)),
        ("t5", "fast", "adamw", FAST),
        ("t5", "paper", "adafactor", Adafactor(learning_rate=0.3)),
        ("t5", "paper", "adamw", FAST),
        ("t5", "google-code", "adafactor", Adafactor(learning_rate=0.3, step_offset=1_100_000)),
        ("t5", "google-code", "adamw", FAST),
    ],
)
def test_an_optimizer_asked_for_keeps_its_presets_other_settings(tmp_path, kind, preset, asked, wanted):
    lm, config = tiny_lm(kind), own(tmp_path, preset=preset, optimizer=asked)
    (plan,) = plan_prompts(config, data_of(config, lm), lm)
    assert plan.train.optimizer == wanted
    (slower,) = plan_prompts(replace(config, learning_rate=(0.01,)), data_of(config, lm), lm)
    assert slower.train.optimizer == replace(wanted, learning_rate=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": LABELS}, "labels is for files of your own, but the task is glue/sst2; leave labels out"),
        ({"metric": "f1"}, "metric is for files of your own, but the task is glue/sst2; leave metric out"),
        ({"group_by": "id"}, "group_by is for files of your own, but the task is glue/sst2; leave group_by out"),
        ({"budget": 9, "prompt_length": (4,)}, "budget chooses the length; leave prompt_length out"),
        ({"budget": 9, "init": "special"}, "starts from special has a length of its own; leave budget out"),
        ({"seeds": (0, -1)}, "seed is -1, but must be 0 or more and below 2 to the 63rd"),
        ({"seeds": (2**63,)}, f"seed is {2**63}, but must be 0 or more and below 2 to the 63rd"),
    ],
)
def test_a_configuration_that_cannot_mean_what_it_says_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(**{"model": "tiny", "task": ("glue/sst2",), **changes})


def test_one_value_or_a_list_where_a_tuple_is_wanted_is_told_so():
    """In a process of its own, without the checks of types that tests run under."""
    code = """
from softprompt.training import RunConfig
for changes in ({"task": "glue/sst2"}, {"prompt_length": 4}, {"seeds": [0, 1]}):
    try:
        RunConfig(**{"model": "tiny", "task": ("glue/sst2",), **changes})
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "task is 'glue/sst2', but must be a tuple; give ('glue/sst2',)",
        "prompt_length is 4, but must be a tuple; give (4,)",
        "seeds is [0, 1], but must be a tuple; give (0, 1)",
    ]


def test_a_task_named_twice_is_refused():
    with pytest.raises(ValueError, match="the task glue/sst2 is named twice; name it once"):
        tasks_of(RunConfig(model="tiny", task=("glue/sst2", "sst2")))


def test_an_optimizer_one_letter_off_is_refused_before_training(tmp_path, llama):
    with pytest.raises(ValueError, match="no optimizer is named 'adamv'; did you mean 'adamw'"):
        train(own(tmp_path, optimizer="adamv"), lm=llama)


def test_free_text_cannot_be_ranked_and_is_told_so_before_training(tmp_path, llama):
    config = own(tmp_path, labels=None, scoring="rank")
    with pytest.raises(ValueError, match="own has free-text targets, nothing to rank; use --scoring generate"):
        train(config, lm=llama)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("tasks", "scoring"), [(("wsc",), "generate"), (("boolq",), "rank"), (("boolq", "wsc"), "generate")]
)
def test_a_mixture_is_ranked_only_if_all_of_its_rows_can_be(tmp_path, llama, tasks, scoring):
    known = [get_task(name) for name in tasks]
    rows = [mixed(task, Example(inputs="text", targets="True", id="1", references=("True",))) for task in known]
    data = TaskData(mixture(known), default_format(llama), rows, [], [], [], "held-out")
    (plan,) = plan_prompts(own(tmp_path, init="vocab"), data, llama)
    assert plan.train.scoring == scoring
    if scoring == "generate":
        with pytest.raises(ValueError, match="has free-text targets, nothing to rank; use --scoring generate"):
            plan_prompts(own(tmp_path, init="vocab", scoring="rank"), data, llama)


def test_the_demo_scores_the_prompt_that_training_starts_from(tmp_path, llama, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    import demo

    scored, started = [], []
    monkeypatch.setattr(
        demo, "evaluate", lambda lm, prompts, *rest: scored.extend(prompts) or evaluate(lm, prompts, *rest)
    )
    monkeypatch.setattr(run, "fit", lambda lm, members, **rest: started.extend(members) or fit(lm, members, **rest))
    config = own(tmp_path, select="held-out")
    before = demo.score_untrained(config, llama)
    train(config, lm=llama)
    assert torch.equal(scored[0], started[0].values) and 0 <= before <= 1
    # Class labels, with the space they have as targets.
    assert torch.allclose(scored[0][1], llama.embeddings[llama.tokenizer.encode(" bad")].mean(0))


def test_the_demo_written_to_a_file_is_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "examples"))
    import demo

    monkeypatch.setattr(demo, "load_model", lambda config: tiny_lm("llama", max_position_embeddings=1024))
    monkeypatch.setattr("sys.argv", ["demo.py", "--minutes", "0.02", "--out", str(tmp_path / "demo")])
    demo.main()
    told, drawn = capsys.readouterr()
    *_, filled, finished, _ = told.splitlines()
    assert filled.endswith(r"%  '<s>message: why did you take 14.99 twice this month??\nanswer:'")
    assert finished.endswith(r"%  '<s>why did you take 14.99 twice this month??\nanswer:'")
    assert "\r" not in told + drawn
    assert "prompt: dev accuracy before training " in told
    assert "step 1 of 150: loss " in drawn and "step 1 of 200: loss " in drawn
    (summary,) = (line.split() for line in told.splitlines() if line.startswith("kv "))
    assert summary[-1] == str(tmp_path / "demo" / "kv")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "f1"}, r"judging\.metric was None, and is 'f1'"),
        ({"separator": " so:"}, r"text\.separator was '\\nanswer:', and is ' so:'"),
    ],
)
def test_a_run_does_not_go_on_from_one_that_was_scored_or_read_otherwise(tmp_path, llama, changes, words):
    config = own(tmp_path, select="dev")
    train(config, lm=llama)
    with pytest.raises(ValueError, match=f"is of another run: .*{words}; give the same settings"):
        train(replace(config, resume=True, **changes), lm=llama)


def test_a_second_run_into_the_same_folder_replaces_neither_a_prompt_nor_a_checkpoint_unless_told_to(tmp_path, llama):
    config, steps = own(tmp_path, select="held-out"), []

    def stop(step, loss, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, lm=llama, watch=Watch(step=stop))
    kept = (config.out / "checkpoint.safetensors").read_bytes()
    with pytest.raises(ValueError, match="out holds an unfinished run; --resume goes on with it, --overwrite starts"):
        train(config, lm=llama)
    assert (config.out / "checkpoint.safetensors").read_bytes() == kept
    train(replace(config, resume=True), lm=llama, watch=Watch(step=lambda step, loss, tokens: steps.append(step)))
    assert steps == [2]
    before = (config.out / "adapter_model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="out holds a prompt already; give another --out, or --overwrite"):
        train(replace(config, seeds=(1,)), lm=llama)
    assert (config.out / "adapter_model.safetensors").read_bytes() == before
    train(replace(config, seeds=(1,)), lm=llama, overwrite=True)
    assert (config.out / "adapter_model.safetensors").read_bytes() != before


def settings_of(folder):
    return [json.loads(line) for line in (folder / "own.settings.jsonl").read_text().splitlines()]


def test_a_run_whose_every_prompt_stops_at_once_saves_none_and_is_an_error(tmp_path, llama, monkeypatch):
    spoil(monkeypatch, prompt=0, steps=[1], times=torch.nan)
    config, told = own(tmp_path, select="held-out"), []
    with pytest.raises(
        ValueError, match=r"^no prompt is left to save: 1 of 1 stopped before a first score \(the loss at"
    ):
        train(config, lm=llama, watch=Watch(message=told.append))
    assert told[-1] == (
        "own p4 lr0.03 seed0 stopped: the loss at step 1 is no longer a number; it had no score yet; "
        "try a lower --learning-rate"
    )
    left = {path.name for path in config.out.iterdir()}
    assert left == {"own.settings.jsonl", "checkpoint.safetensors", "curve.jsonl", ".softprompt.lock"}
    assert [line["stopped"] for line in settings_of(config.out)] == ["the loss at step 1 is no longer a number"]


def test_a_seed_that_stops_at_once_is_left_out_and_the_others_are_kept(tmp_path, llama, monkeypatch):
    spoil(monkeypatch, prompt=1, steps=[1], times=torch.nan)
    config = own(tmp_path, select="held-out", seeds=(0, 1, 2))
    assert [one.prompt.card.seed for one in train(config, lm=llama)] == [0, 2]
    assert [row.seed for row in read_rows(config.out / "results.jsonl")] == [0, 2]
    assert sorted(path.name for path in config.out.iterdir() if path.is_dir()) == ["own-seed-0", "own-seed-2"]


def test_a_setting_that_lost_a_seed_is_not_chosen_where_another_lost_none(tmp_path, llama, monkeypatch):
    spoil(monkeypatch, prompt=0, steps=[1], times=torch.nan)  # the first rate's first seed
    config = own(tmp_path, select="held-out", seeds=(0, 1), learning_rate=(0.01, 0.02))
    assert [one.prompt.card.recipe["optimizer"]["learning_rate"] for one in train(config, lm=llama)] == [0.02, 0.02]


def test_runs_together_go_on_where_one_stops_at_once(tmp_path, llama, monkeypatch):
    spoil(monkeypatch, prompt=0, steps=[1], times=torch.nan)
    config = own(tmp_path, select="held-out")
    configs = [replace(config, out=tmp_path / name) for name in ("lost", "kept")]
    lost, (kept,) = train_together(configs, folder=tmp_path / "both", lm=llama)
    assert lost == [] and kept.folder == tmp_path / "kept" and kept.fitted.step == 2


@pytest.mark.parametrize("count", [15, 45])
def test_demonstrations_and_rows_like_them_are_not_trained_on_and_the_count_is_told(llama, tmp_path, count):
    twice = [*films("train", count), *films("train", count)]
    config = own(tmp_path, {"train": twice}, init="demonstrations", shots=2, prompt_length=None, seeds=(0, 1))
    data, told, messages = data_of(config, llama), [], []
    for one in plan_prompts(config, data, llama):
        rows, kept = data.encoded(llama)[0], one.rows(llama)
        shown = {rows[place].ids for place in one.demonstrated}
        assert len(shown) == 2 and not shown & {row.ids for row in kept}
        assert len(kept) == 2 * count - 4, "each stands there twice"
        told.append(f"{one.name}: starts from 2 of {2 * count} training examples and is trained on {len(kept)}")
    train(config, lm=llama, watch=Watch(message=messages.append))
    assert [text for text in messages if "starts from" in text] == told
    assert [row.notes["demonstrated"] for row in read_rows(config.out / "results.jsonl")] == [2, 2]


def test_a_prompt_that_starts_from_every_row_is_trained_on_them_all_the_same(llama, tmp_path):
    all_of_them = {"init": "demonstrations", "shots": 6, "prompt_length": None, "select": "dev"}
    config = own(tmp_path, {"train": films("train", 6)}, **all_of_them)
    (plan,) = plan_prompts(config, data_of(config, llama), llama)
    assert len(plan.demonstrated) == len(plan.rows(llama)) == 6


@pytest.mark.parametrize("method", [None, "kv"])
def test_a_budget_is_filled_by_the_longest_prompt_and_never_passed(llama, tmp_path, method):
    config, told = own(tmp_path, budget=4_000, prompt_length=None, method=method), []
    (made,) = train(config, lm=llama, watch=Watch(message=told.append))
    stored = (made.folder / "adapter_model.safetensors").stat().st_size
    a_token = 4 * made.prompt.width
    assert stored <= 4_000 < stored + a_token + budget.HEAD - 100, "and the file's head is over 100 bytes"
    assert made.prompt.is_kv == (method == "kv")
    kind = " of keys and values" if method else ""
    size = f"{made.prompt.length} tokens{kind} in at most {budget.HEAD + made.prompt.length * a_token:,}"
    assert told[0] == (
        f"a budget of 4,000 bytes: {size}, the longest that fits, since no row of a sweep has chosen a length yet"
    )
    (row,) = read_rows(config.out / "results.jsonl")
    assert (row.config["prompt_length"], row.config["budget"]) == (made.prompt.length, None), "as it can be run again"


def test_a_budget_for_no_token_is_refused_with_the_least_and_the_least_is_enough(llama, tmp_path):
    least = budget.HEAD + 4 * llama.width
    config = own(tmp_path, budget=least - 1, prompt_length=None, init="vocab")
    words = f"a budget of {least - 1} bytes is too small, since one token of {llama.name} takes {least}; give --budget"
    for refused in (train, estimate):
        with pytest.raises(ValueError, match=f"^{words} {least} or more$"):
            refused(config, lm=llama)
    (made,) = train(replace(config, budget=least), lm=llama)
    assert made.prompt.length == 1


def test_a_budget_takes_what_the_table_has_for_its_size(llama, monkeypatch):
    choices = (
        budget.Choice(from_bytes=0, method="prompt", length=3, row="small"),
        budget.Choice(from_bytes=3_000, method="kv", row="large"),
    )
    monkeypatch.setattr(budget, "CHOICES", choices)
    told = []
    for size, wanted in ((2_999, ("prompt", (3,))), (3_000, ("kv", None)), (10**9, ("kv", (500,)))):
        config = RunConfig(model="tiny", task=("glue/sst2",), budget=size)
        chosen = budget.within_budget(config, llama, Watch(message=told.append))
        assert chosen.method == wanted[0] and wanted[1] in (chosen.prompt_length, None)
    assert told[0].endswith(", as the row small has it") and told[1].endswith(", as the row large has it")
    monkeypatch.setattr(budget, "CHOICES", choices[:1])
    given = RunConfig(model="tiny", task=("glue/sst2",), budget=10**9, method="kv")
    assert budget.within_budget(given, llama, Watch()).method == "kv"


@pytest.mark.parametrize(
    ("changes", "steps_run"), [({}, 6), ({"patience": 0}, 8), ({"patience": 2}, 3), ({"steps": 6}, 6)]
)
def test_the_fast_preset_ends_a_run_in_which_nothing_better_comes_and_says_so(llama, tmp_path, changes, steps_run):
    told = []
    few = {"steps": 8, "evaluate_every": 1, "learning_rate": (1e-12,), "select": "held-out"}
    (made,) = train(own(tmp_path, **few | changes), lm=llama, watch=Watch(message=told.append))
    assert (made.fitted.steps_run, made.fitted.step) == (steps_run, 1)
    patience = changes.get("patience", 5)
    words = f"no better score in {patience} evaluations than that of step 1, which is kept; --patience 0 goes on"
    is_early = steps_run < 8 and "steps" not in changes
    name = f"own p4 lr1e-12 seed0 stopped at step {steps_run}: {words}"
    assert [text for text in told if "stopped" in text] == ([name] if is_early else [])
    assert (made.fitted.stopped is not None) == is_early
