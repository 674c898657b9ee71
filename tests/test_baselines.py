import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_llama, make_tokenizer, tiny_lm

from softprompt.answering.engine import Prediction
from softprompt.answering.rows import Result, append_rows
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.models.text import encode_inputs
from softprompt.study.comparison import with_dev
from softprompt.study.prompt_design import listed
from softprompt.tasks import get_task, read_split, without_overlap
from softprompt.training.plan import prepare
from softprompt.training.settings import RunConfig

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
baselines = importlib.import_module("baselines")
study = importlib.import_module("smollm2_study")
sst2 = importlib.import_module("sst2")

CHAT = "{% for m in messages %}<s>user {{ m['content'] }}</s>{% endfor %}<s>assistant "
PLACES = ["sea", "town", "street", "harbour", "garden", "market", "river", "station", "bridge", "tower"]
MONTHS = ["January", "February", "March", "April", "May", "June"]


def chat_lm():
    """A tiny Llama whose tokenizer has a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    return FrozenLM(make_llama(), tokenizer, name="tiny-llama")


def rte_records(months, wrong_in_three=1):
    """`wrong_in_three` of three hypotheses have the word 'never' and do not follow."""
    records = []
    for number, (place, month) in enumerate((p, m) for m in months for p in PLACES):
        wrong = number % 3 < wrong_in_three
        records.append(
            {
                "premise": f"In {month} the {place} was full of people.",
                "hypothesis": f"The {place} was {'never' if wrong else 'once'} full in {month}.",
                "label": "not_entailment" if wrong else "entailment",
                "idx": number,
            }
        )
    return records


@pytest.fixture
def rte(tmp_path):
    """A folder with 60 training and 20 dev examples of RTE, official format."""
    folder = tmp_path / "data" / "superglue" / "RTE"
    folder.mkdir(parents=True)
    for name, months in (("train", MONTHS), ("val", ["July", "August"])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rte_records(months)))
    return tmp_path / "data"


def write_sst2(data):
    """48 training sentences, 8 dev, 8 test, and the test with labels; every sentence ends like no other."""
    folder = data / "glue" / "SST-2"
    folder.mkdir(parents=True)

    def lines(first, count):
        words = [f"a {'warm' if n % 2 else 'dull'} film about day {first + n}" for n in range(count)]
        return [f"{text}\t{n % 2}" for n, text in enumerate(words)]

    (folder / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines(0, 48)]) + "\n")
    (folder / "dev.tsv").write_text("\n".join(["sentence\tlabel", *lines(100, 8)]) + "\n")
    (folder / "test-labeled.tsv").write_bytes("\r\n".join(["sentence\tlabel", *lines(200, 8), ""]).encode())
    unlabelled = [f"{n}\t{line.split(chr(9))[0]}" for n, line in enumerate(lines(200, 8))]
    (folder / "test.tsv").write_text("\n".join(["index\tsentence", *unlabelled]) + "\n")


@pytest.fixture
def sst2_data(tmp_path):
    write_sst2(tmp_path / "data")
    return tmp_path / "data"


def rte_data(lm, data):
    config = RunConfig(model="tiny", task=("superglue/rte",), data=data)
    return prepare(config, get_task("superglue/rte"), lm)


# Baselines


def test_the_majority_class_is_that_of_the_training_rows_even_where_dev_has_another(llama, rte):
    data = rte_data(llama, rte)
    wrong = [example for example in data.dev if example.targets == "not_entailment"][:3]
    right = [example for example in data.dev if example.targets == "entailment"][:1]
    answered = baselines.majority(replace(data, dev=wrong + right))
    assert {p.text for p in answered.evaluation.predictions} == {"entailment"}
    assert answered.evaluation.metrics == {"accuracy": 0.25}
    assert answered.notes == {"label": "entailment", "share_of_train": 40 / 60}


def test_words_that_decide_the_label_are_learned_and_the_penalty_is_the_best_of_four_on_the_folds(llama, rte):
    data = rte_data(llama, rte)
    answered = baselines.tfidf(data)
    assert answered.evaluation.metrics == {"accuracy": 1.0}
    assert answered.selection == "cross-validation"
    scores = answered.notes["selection_scores"]
    assert list(scores) == ["0.1", "1", "10", "100"]
    assert scores[f"{answered.notes['C']:g}"] == max(scores.values())
    assert scores["0.1"] < 0.9 < scores["100"]


def test_the_penalty_is_chosen_without_a_look_at_dev(llama, rte):
    data = rte_data(llama, rte)
    wrong = {"entailment": "not_entailment", "not_entailment": "entailment"}
    turned = [replace(e, targets=wrong[e.targets], references=(wrong[e.targets],)) for e in data.dev]
    answered = baselines.tfidf(replace(data, dev=turned))
    assert answered.evaluation.metrics == {"accuracy": 0.0}
    assert answered.notes == baselines.tfidf(data).notes


def test_a_mean_state_in_a_batch_is_that_of_the_input_alone(lm, rte):
    data = rte_data(lm, rte)
    texts = ["the sea", "the town is warm in the summer and wet in the night", "a film"]
    examples = [replace(data.dev[0], inputs=text) for text in texts]
    together = baselines.mean_states(lm, examples, data.form)
    for text, state in zip(texts, together, strict=True):
        ids = torch.tensor([encode_inputs(text, data.form, lm.tokenizer).ids])
        alone = lm.last_states(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool)).mean(1)
        np.testing.assert_allclose(state, alone[0].detach().numpy(), atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_a_probe_on_the_frozen_states_learns_more_than_the_majority_class(llama, rte):
    data = rte_data(llama, rte)
    answered = baselines.probe(llama, data, max_train=4_000, watch=Watch())
    assert answered.evaluation.metrics["accuracy"] > baselines.majority(data).evaluation.metrics["accuracy"]
    assert answered.notes["probe_train"] == answered.notes["probe_train_of"] == 60


def test_a_probe_of_many_rows_takes_a_fixed_part_and_says_so(llama, rte):
    data = rte_data(llama, rte)
    first, second = (baselines.probe(llama, data, max_train=30, watch=Watch()) for _ in range(2))
    assert (first.notes["probe_train"], first.notes["probe_train_of"]) == (30, 60)
    assert first.notes == second.notes


def test_the_bare_model_is_asked_in_six_wordings_and_the_best_on_selection_rows_answers_dev(rte):
    lm = chat_lm()
    data = rte_data(lm, rte)
    answered = baselines.zero_shot(lm, data, num_selection=12, watch=Watch())
    tried = answered.notes["tried"]
    assert list(tried) == ["separator", "options", "question", "instruction", "label", "chat"]
    assert answered.notes["num_selection"] == 12
    assert tried[answered.notes["chosen"]]["sum"] == max(t["sum"] for t in tried.values())
    assert tried["options"]["text"] == "{inputs}\nOptions: {labels}\nThe right option is"
    wording = next(w for w in baselines.WORDINGS if w.name == answered.notes["chosen"])
    again, _ = baselines.ask(lm, data, data.dev, wording, Watch())
    assert answered.evaluation.predictions == again.predictions


def test_a_model_without_a_chat_template_is_asked_in_five_wordings(llama, rte):
    answered = baselines.zero_shot(llama, rte_data(llama, rte), num_selection=4, watch=Watch())
    assert list(answered.notes["tried"]) == ["separator", "options", "question", "instruction", "label"]


@pytest.mark.parametrize("name", ["separator", "options", "instruction", "chat"])
def test_a_wordings_scores_are_the_summed_log_probabilities_after_its_text(name, rte):
    lm = chat_lm()
    data = rte_data(lm, rte)
    example = replace(data.dev[0], inputs="the sea is warm")
    texts = {
        "separator": ["the sea is warm", "\nanswer:"],
        "options": ["the sea is warm", "\nOptions: entailment or not_entailment\nThe right option is"],
        "instruction": [
            "Choose the answer that fits the text: entailment or not_entailment.\n\nText: the sea is warm",
            "\n\nChosen answer:",
        ],
        "chat": [
            "<s>user ",
            "Answer with one of these: entailment or not_entailment.\n\nthe sea is warm",
            "</s><s>assistant ",
        ],
    }
    wording = next(w for w in baselines.WORDINGS if w.name == name)
    evaluation, _ = baselines.ask(lm, data, [example], wording, Watch())
    before = [id for text in texts[name] for id in lm.tokenizer.encode(text)]
    space = "" if name == "chat" else " "
    for label, score in evaluation.predictions[0].scores.items():
        target = [*lm.tokenizer.encode(space + label), lm.tokenizer.eos_id]
        with torch.no_grad():
            log_probs = lm.model(torch.tensor([before + target])).logits[0].log_softmax(-1)
        slow = sum(log_probs[len(before) - 1 + i, id] for i, id in enumerate(target))
        assert score == pytest.approx(float(slow), abs=1e-4)


def test_the_mean_per_token_can_choose_the_longer_label_that_the_sum_does_not():
    predictions = [Prediction("no", -4.0, {"no": -4.0, "not at all": -6.0})]
    chosen = baselines.by_mean_per_token(predictions, {"no": 2, "not at all": 4})
    assert chosen == [Prediction("not at all", -1.5, {"no": -2.0, "not at all": -1.5})]


def test_labels_are_listed_as_people_do():
    assert listed(["a", "b", "c"]) == "a, b or c"
    assert listed(["a"]) == "a"


def test_each_method_makes_one_row_and_a_second_call_makes_none(rte, tmp_path):
    rows = tmp_path / "results" / "baselines.jsonl"
    lm = chat_lm()
    made = baselines.measure("superglue/rte", lm, rte, rows)
    assert [row.config["method"] for row in made] == ["majority", "tfidf", "probe", "zero-shot"]
    assert baselines.read_rows(rows) == made
    assert [row.selection for row in made] == ["none", "cross-validation", "cross-validation", "held-out"]
    assert [row.model for row in made] == ["none", "none", "tiny-llama", "tiny-llama"]
    for row in made:
        assert (row.experiment, row.task, row.split, row.scoring) == ("baselines", "superglue/rte", "dev", "rank")
        assert (row.num_examples, row.seed, row.illegal_rate) == (20, 0, 0.0)
        assert row.notes["right"].count("1") / 20 == row.metrics["accuracy"]
        assert row.notes["train_used"] == 60
    told = []
    assert baselines.measure("superglue/rte", lm, rte, rows, watch=Watch(message=told.append)) == []
    assert told == [f"superglue/rte: all rows are in {rows}"]
    assert len(rows.read_text().splitlines()) == 4


def test_a_trial_with_a_limit_says_so_and_does_not_stand_for_the_real_row(llama, rte, tmp_path):
    rows = tmp_path / "rows.jsonl"
    trial = baselines.measure("superglue/rte", llama, rte, rows, methods=("majority",), limit=6)
    real = baselines.measure("superglue/rte", llama, rte, rows, methods=("majority",))
    assert [(row.config["limit"], row.num_examples) for row in trial + real] == [(6, 6), (None, 20)]


def test_a_task_without_a_dev_set_has_the_one_that_compare_makes(llama, rte, tmp_path):
    (rte / "superglue" / "RTE" / "val.jsonl").unlink()
    for bound in (None, 3):
        (made,) = baselines.measure(
            "superglue/rte", llama, rte, tmp_path / "rows.jsonl", methods=("majority",), max_dev=bound
        )
        config = RunConfig(model="tiny", task=("superglue/rte",), data=rte, select="held-out", max_dev=bound)
        dev = with_dev(prepare(config, get_task("superglue/rte"), llama), bound).dev
        assert made.num_examples == len(dev) == (bound or 5)
        answer = made.notes["label"]
        assert made.notes["right"] == "".join(str(int(example.targets == answer)) for example in dev)


def test_free_text_tasks_have_no_baselines(llama, tmp_path):
    with pytest.raises(ValueError, match="mrqa/squad has free-text targets; the baselines are for tasks with labels"):
        baselines.measure("mrqa/squad", llama, tmp_path, tmp_path / "rows.jsonl")


def test_a_missing_data_folder_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("SOFTPROMPT_DATA", raising=False)
    with pytest.raises(ValueError, match="no folder of official files; give --data DIR or set SOFTPROMPT_DATA"):
        baselines.data_folder(None)
    assert baselines.data_folder(tmp_path) == tmp_path
    with pytest.raises(SystemExit, match="no folder of official files"):
        baselines.main(["--task", "superglue/rte", "--data", str(tmp_path / "none")])


def test_the_model_is_named_as_it_is():
    assert baselines.model_of_row("smollm2-135m") == "SmolLM2-135M-Instruct, Q4_1 dequantised"
    assert baselines.model_of_row("gpt2") == "gpt2"


# sentence_polarity without SST-2


def test_polarity_loses_the_sentences_of_every_split_of_sst2_and_keeps_its_own_split(sst2_data, tmp_path):
    data, out = sst2_data, tmp_path / "filtered"
    folder = data / "classification" / "sentence_polarity"
    folder.mkdir(parents=True)
    own = [f"a café scene that lasts {n} minutes" for n in range(60)]
    leaks = ["A dull film, about day 0!", "a dull film about day 100", "a dull film about day 206 ."]
    (folder / "rt-polarity.neg").write_text("\n".join(own[:30] + leaks) + "\n", encoding="latin-1")
    (folder / "rt-polarity.pos").write_text("\n".join(own[30:]) + "\n", encoding="latin-1")
    task = get_task("classification/sentence_polarity")
    before = {split: read_split(task, split, data).examples for split in ("train", "dev")}

    source, notes = baselines.data_of(task, data, out)

    assert source == out
    assert sum(notes["overlap_with_sst2"].values()) == 3
    for split in ("train", "dev"):
        after = [(e.inputs, e.targets) for e in read_split(task, split, out).examples]
        leaked = {f"sentence: {text}" for text in leaks}
        assert after == [(e.inputs, e.targets) for e in before[split] if e.inputs not in leaked]
    assert baselines.data_of(get_task("glue/sst2"), data, out) == (data, {})


# The study


def tiny_config(**changes):
    own = {"model": "tiny-llama", "task": ("superglue/rte",), "prompt_length": (2,), "steps": 2, "batch_size": 4}
    return RunConfig(**{**own, "evaluate_every": 1, "num_selection": 8, "seeds": (0, 1, 2), **changes})


def test_the_study_appends_a_row_a_seed_and_skips_tasks_whose_rows_are_there(llama, rte, tmp_path):
    rows, runs = tmp_path / "tasks.jsonl", tmp_path / "runs"
    places = {"data": rte, "rows": rows, "runs": runs}
    made = study.study(["superglue/rte"], tiny_config(), llama, **places)
    assert [row.seed for row in made] == [0, 1, 2]
    assert baselines.read_rows(rows) == made
    for row in made:
        assert (row.experiment, row.model, row.split) == ("smollm2_tasks", "tiny-llama", "dev")
        assert row.notes["right"].count("1") / 20 == row.metrics["accuracy"]
        assert [entry["step"] for entry in row.notes["history"]] == [1, 2]
        assert [(t["prompt_length"], t["seed"], t["chosen"]) for t in row.notes["tried"]] == [
            (2, 0, True),
            (2, 1, True),
            (2, 2, True),
        ]
        assert (Path(row.notes["prompt"]) / "adapter_model.safetensors").is_file()
    told = []
    again = study.study(["superglue/rte"], tiny_config(), llama, watch=Watch(message=told.append), **places)
    assert again == made
    assert told == [f"superglue/rte: all rows are in {rows}"]
    others = study.study(["superglue/rte"], tiny_config(batch_size=5), llama, **places)
    assert [row.config["settings"]["batch_size"] for row in others] == [5, 5, 5]
    assert len(baselines.read_rows(rows)) == 6


def test_an_interrupted_task_ends_as_if_it_had_not_been(llama, rte, tmp_path):
    def run(runs, watch=None, **changes):
        config = tiny_config(steps=4, **changes)
        places = {"data": rte, "rows": tmp_path / f"{runs}.jsonl", "runs": tmp_path / runs}
        return study.study(["superglue/rte"], config, llama, watch=watch, **places)

    def interrupt(step, loss, tokens):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", Watch(step=interrupt))
    assert not (tmp_path / "broken.jsonl").exists()
    steps = []
    resumed = run("broken", Watch(step=lambda step, loss, tokens: steps.append(step)), resume=True)
    assert steps[0] > 1
    for row, whole in zip(resumed, run("whole"), strict=True):
        assert (row.metrics, row.step, row.notes["right"]) == (whole.metrics, whole.step, whole.notes["right"])


def row(task, right, *, method=None, seed=0, seconds=0.0):
    """A row of one of the two files, invented."""
    config = {"method": method, "limit": None}
    if method is None:
        optimizer = {"learning_rate": 0.01}
        config = {"settings": {"minutes": 10}, "prompt_length": 20, "train": {"optimizer": optimizer}}
    value = right.count("1") / len(right)
    return Result(
        experiment="baselines" if method else "smollm2_tasks",
        config=config,
        model="a model",
        task=task,
        split="dev",
        selection="held-out",
        scoring="rank",
        metrics={"accuracy": value},
        value=value,
        illegal_rate=0.0,
        num_examples=len(right),
        step=1,
        steps_run=1,
        seconds=seconds,
        seed=seed,
        notes={"right": right},
    )


def test_the_table_puts_mean_and_deviation_beside_the_baselines_and_names_what_was_not_learned(tmp_path):
    rows, beside = tmp_path / "tasks.jsonl", tmp_path / "baselines.jsonl"
    half = "10" * 50
    append_rows(rows, [row("superglue/rte", "1" * n + "0" * (100 - n), seed=n, seconds=120.0) for n in (88, 90, 92)])
    append_rows(rows, [row("superglue/wic", "01" * 50, seed=n, seconds=60.0) for n in (0, 1, 2)])
    append_rows(beside, [row(task, half, method="majority") for task in ("superglue/rte", "superglue/wic")])
    append_rows(beside, [row("superglue/rte", "1" * 60 + "0" * 40, method="tfidf")])
    lines = study.table(rows, beside).splitlines()
    assert lines[4] == (
        "| superglue/rte | 100 | 50.0 | 60.0 | - | - | 90.0 ± 2.0 | 3 | p20 lr 0.01 | 2.0 | yes, +40.0 ± 5.9 |"
    )
    assert lines[5] == (
        "| superglue/wic | 100 | 50.0 | - | - | - | 50.0 ± 0.0 | 3 | p20 lr 0.01 | 1.0 | no, +0.0 ± 10.1 |"
    )
    assert lines[-1] == "Not learned this way, as far as these rows show: superglue/wic."


def test_a_difference_is_paired_over_examples_and_joined_with_the_spread_of_seeds():
    assert study.paired_difference(["1101", "1101"], "1001") == (0.25, 0.25)
    difference, error = study.paired_difference(["11", "00"], "10")
    assert difference == 0.0
    assert error == pytest.approx((0.5 / 2 + 0.5 / 2) ** 0.5)
    with pytest.raises(ValueError, match="the rows were scored on different dev sets; make the baselines again"):
        study.paired_difference(["11"], "101")


def test_a_table_needs_rows_and_says_when_there_is_nothing_to_compare_with(tmp_path):
    rows = tmp_path / "tasks.jsonl"
    with pytest.raises(ValueError, match=r"no rows of smollm2_tasks in .*tasks.jsonl; run the study first"):
        study.table(rows, tmp_path / "none.jsonl")
    append_rows(rows, [row("superglue/rte", "10")])
    made = study.table(rows, tmp_path / "none.jsonl").splitlines()
    assert made[-1] == "There are no rows of the majority class to compare with."


def test_the_studys_command_reads_its_settings_and_prints_the_table(tmp_path, capsys):
    rows = tmp_path / "tasks.jsonl"
    append_rows(rows, [row("superglue/rte", "10")])
    study.main(["--table", "--rows", str(rows), "--baselines", str(tmp_path / "none.jsonl")])
    made = study.table(rows, tmp_path / "none.jsonl")
    assert capsys.readouterr().out == made + "\n" and "| superglue/rte | 2 |" in made
    parser = study.argparse.ArgumentParser()
    study.add_settings(parser, minutes=10)
    config = study.config_of(parser.parse_args(["--prompt-length", "5", "20", "--seeds", "3", "--minutes", "40"]))
    assert (config.prompt_length, config.seeds, config.minutes, config.learning_rate) == ((5, 20), (3,), 40.0, None)
    assert (config.model, config.preset, config.scoring) == ("smollm2-135m", "fast", "rank")


# SST-2


@pytest.mark.parametrize("together", [False, True])
def test_sst2_scores_dev_and_test_for_each_seed_and_for_the_vote_once(together, llama, sst2_data, tmp_path):
    rows, runs = tmp_path / "sst2.jsonl", tmp_path / "runs"
    places = {"data": sst2_data, "rows": rows, "together": together, "runs": runs}
    made = sst2.measure(tiny_config(), llama, **places)
    kinds = [(row.split, row.seed, row.num_examples) for row in made]
    assert kinds == [("dev", s, 8) for s in range(3)] + [("test", s, 8) for s in range(3)] + [
        ("dev", -1, 8),
        ("test", -1, 8),
    ]
    for each, vote in ((made[:3], made[6]), (made[3:6], made[7])):
        assert vote.config["prompts"] == [row.notes["prompt"] for row in made[:3]]
        values = [row.value for row in each]
        assert vote.notes["summary"]["average"] == pytest.approx(sum(values) / 3)
        assert vote.notes["summary"]["best"] == max(values)
        assert vote.notes["summary"]["best_by_selection"] in values
        columns = zip(*(row.notes["right"] for row in each), strict=True)
        assert vote.notes["right"] == "".join("1" if c.count("1") >= 2 else "0" for c in columns)
        assert vote.value == vote.notes["right"].count("1") / 8
    assert all("history" in row.notes for row in made[:3])
    assert len({row.notes["prompt"] for row in made[:3]}) == 3
    assert sst2.measure(tiny_config(), llama, **places) == made
    assert len(baselines.read_rows(rows)) == 8


def test_seeds_that_are_added_later_do_not_repeat_rows(llama, sst2_data, tmp_path):
    rows, runs = tmp_path / "sst2.jsonl", tmp_path / "runs"
    places = {"data": sst2_data, "rows": rows, "runs": runs}
    sst2.measure(tiny_config(seeds=(0,)), llama, **places)
    assert [(r.split, r.seed) for r in baselines.read_rows(rows)] == [("dev", 0), ("test", 0)]
    sst2.measure(tiny_config(seeds=(0, 1)), llama, **places)
    kinds = [(r.split, r.seed) for r in baselines.read_rows(rows)]
    assert kinds == [("dev", 0), ("test", 0), ("dev", 1), ("test", 1), ("dev", -1), ("test", -1)]


def test_a_deleted_prompt_and_a_missing_test_file_are_one_line_each(llama, sst2_data, tmp_path):
    with pytest.raises(ValueError, match=r"no file .*predictions.dev.json; take this prompt's rows out"):
        study.kept_predictions(tmp_path)
    (sst2_data / "glue" / "SST-2" / "test-labeled.tsv").unlink()
    with pytest.raises(ValueError, match=r"no file .*test-labeled.tsv; it holds SST-2's test sentences with labels"):
        sst2.test_file(sst2_data)


def test_the_bars_show_steps_and_scores_of_a_run_that_was_resumed(capsys):
    watch = baselines.bars(minutes=5)
    watch.message("hello")
    progress = watch.phase("score", 2)
    progress(2)
    watch.begin(10, 96)
    watch.step(4, 0.5, 100)
    watch.score(4, "seed0", 0.5, 0.75)
    watch.step(10, 0.4, 100)
    shown = capsys.readouterr()
    assert "hello" in shown.out
    assert "step 4 seed0: loss 0.500, selection 0.750" in shown.out
    assert "10/10" in shown.err
    assert "min left" in shown.err


def test_an_encoder_decoder_is_asked_too(rte):
    lm = tiny_lm("t5")
    answered = baselines.zero_shot(lm, rte_data(lm, rte), num_selection=4, watch=Watch())
    assert answered.evaluation.illegal_rate == 0.0
    assert len(answered.evaluation.predictions) == 20
    assert set(answered.evaluation.predictions[0].scores) == {"entailment", "not_entailment"}


def test_of_the_real_sentence_polarity_no_sentence_of_sst2_is_left(data_folder, tmp_path):
    task = get_task("classification/sentence_polarity")
    folder, notes = baselines.data_of(task, data_folder, tmp_path)
    sst2_examples = [
        e for split in ("train", "dev", "test") for e in read_split(get_task("glue/sst2"), split, data_folder).examples
    ]
    for split in ("train", "dev"):
        kept = read_split(task, split, folder).examples
        assert without_overlap(kept, sst2_examples) == (kept, 0)
        assert len(kept) + notes["overlap_with_sst2"][split] == len(read_split(task, split, data_folder).examples)
    assert sum(notes["overlap_with_sst2"].values()) == 7862
