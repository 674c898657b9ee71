"""Methods side by side: rows, trials, what is stored, and prompt design in words."""

from dataclasses import replace

import pytest
import torch
from conftest import make_llama, make_model, make_tokenizer, tiny_lm
from safetensors.torch import load_file

from softprompt.answering.engine import Engine, Prediction
from softprompt.answering.evaluation import right_answers
from softprompt.answering.rows import read_rows
from softprompt.base.watch import Watch
from softprompt.cli.command_line import main
from softprompt.models import FrozenLM
from softprompt.models.text import default_format
from softprompt.study import comparison
from softprompt.study.comparison import compare, equal_seconds, rows_of, run_method, score_within, title_of
from softprompt.study.prompt_design import (
    WORDINGS,
    Design,
    ask,
    calibrated,
    designs,
    examples_in_front,
    how_scored,
    num_rows,
)
from softprompt.study.transfer import example_scores
from softprompt.study.weights import TUNERS, Tuner
from softprompt.tasks import Example, get_task, read_split
from softprompt.training import gradients
from softprompt.training.loop import fit
from softprompt.training.settings import RunConfig

KINDS = ["t5", "llama"]
TASK = "glue/sst2"


@pytest.fixture
def data(tmp_path):
    """600 training and 12 dev examples of SST-2, official format."""
    folder = tmp_path / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    for name, first, count in (("train", 0, 600), ("dev", 1000, 12)):
        lines = [f"a {'warm' if n % 2 else 'dull'} film about day {n}\t{n % 2}" for n in range(first, first + count)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return tmp_path / "data"


@pytest.fixture
def base(data, tmp_path):
    return RunConfig(
        model="tiny", task=(TASK,), data=data, out=tmp_path / "runs", prompt_length=(3,), steps=4, batch_size=4,
        evaluate_every=2, num_selection=8, seeds=(0, 1), scoring="rank",
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_makes_a_row_a_seed_and_none_runs_twice(kind, base, tmp_path):
    rows, told = tmp_path / "rows.jsonl", []
    assert compare(base, comparison.METHODS, rows=rows, load=lambda _: tiny_lm(kind)) == []
    found = read_rows(rows)
    for name in comparison.METHODS:
        own = rows_of(rows, base, name)
        trained = name != "prompt-design"
        assert [row.seed for row in own] == ([0, 1] if trained else [0, 0, 0, 0]), name
        for row in own:
            assert row.value == pytest.approx(row.notes["right"].count("1") / 12)
            assert (row.task, row.model, row.selection, row.steps_run) == (
                TASK, f"tiny-{kind}", "held-out", 4 if trained else 0,
            )  # fmt: skip
            if trained:
                assert len(row.config["tried"]) == 4 and row.config["trained_parameters"] > 0
                best = max(row.config["tried"], key=lambda one: one["score"])
                assert row.config["learning_rate"] == best["learning_rate"]
                assert row.config["train"]["optimizer"]["learning_rate"] == best["learning_rate"]
            else:
                asked, fit = row.config["shots"], row.config["shots_that_fit"]
                assert 0 <= fit <= (asked if asked >= 0 else 600)
    assert len(found) == 2 * (len(comparison.METHODS) - 1) + 4
    (folder,) = base.out.iterdir()  # one for each model, task and settings
    assert (folder / "lora-seed-0.safetensors").is_file() and not list((folder / "trials").glob("*"))
    compare(base, comparison.METHODS, rows=rows, watch=Watch(message=told.append), load=lambda _: 1 / 0)
    assert read_rows(rows) == found and told[0] == f"prompt-tuning: its rows are in {rows}"
    # Other settings are other rows.
    assert rows_of(rows, replace(base, steps=6), "lora") == []


def test_methods_are_compared_at_one_prompt_length(base, tmp_path):
    failures = compare(
        replace(base, prompt_length=(3, 5)), ["lora"], rows=tmp_path / "rows.jsonl", load=lambda _: tiny_lm("llama")
    )
    assert failures == ["lora: methods are compared at one prompt length, not at 3, 5; give one"]


def test_a_prompt_of_the_comparison_is_that_of_a_run_alone(llama, base, tmp_path):
    from softprompt.training.run import train

    config = replace(base, learning_rate=(0.03,), seeds=(0,), select="held-out")
    (row,) = run_method(config, "prompt-tuning", load=lambda _: llama)
    (alone,) = train(replace(config, out=tmp_path / "alone"), lm=llama)
    stored = load_file(base.out / "prompt-tuning-seed-0.safetensors")["prompt_embeddings"]
    assert torch.allclose(stored, alone.prompt.values, atol=1e-3 * 0.03)
    assert row.value == alone.dev.headline and row.step == alone.fitted.step


class OneVector:
    """A toy method: one vector, worn at every place of the prompt. A new method is one file like this."""

    name, noun, is_alone = "one-vector", "vector", True

    def __init__(self, lm, prompt_length):
        self.lm, self.length = lm, prompt_length
        self.start = lm.embeddings[5].float().clone()
        self.shapes = (tuple(self.start.shape),)

    def worn(self, values):
        return values[0].expand(self.length, -1).contiguous()

    def gradients(self, values, rows, member, **options):
        (gradient,), sums, computed = gradients(self.lm, [self.worn(values)], rows, member, **options)
        return [gradient.sum(0)], sums, computed

    def engine(self, values, *, max_tokens=None):
        return Engine(self.lm, [self.worn(values)], max_tokens=max_tokens), [0]

    def in_use(self, values):
        return {"vector": values}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_method_is_one_file_and_a_line_in_the_table(kind, base, tmp_path, monkeypatch):
    monkeypatch.setitem(TUNERS, "one-vector", Tuner(OneVector, (0.01, 0.03, 0.1, 0.3)))
    rows = tmp_path / "rows.jsonl"
    assert compare(base, ["one-vector"], rows=rows, load=lambda _: tiny_lm(kind)) == []
    found = read_rows(rows)
    assert [(row.config["method"], row.seed, row.config["trained_parameters"]) for row in found] == [
        ("one-vector", 0, 16), ("one-vector", 1, 16),
    ]  # fmt: skip
    (folder,) = base.out.iterdir()
    assert list(load_file(folder / "one-vector-seed-0.safetensors")) == ["vector"]
    assert any(values.abs().sum() for values in load_file(folder / "one-vector-seed-0.safetensors").values())


def test_a_method_that_fails_leaves_the_others_to_go_on(base, tmp_path):
    calls = []

    def load(config):
        calls.append(config)
        if len(calls) == 1:
            raise RuntimeError("the disk\nis gone")
        return tiny_lm("llama")

    rows = tmp_path / "rows.jsonl"
    failures = compare(base, ["lora", "prompt-tuning"], rows=rows, load=load)
    assert failures == ["lora: the disk is gone"]
    assert {row.config["method"] for row in read_rows(rows)} == {"prompt-tuning"}


def test_free_text_is_right_as_the_metric_has_it_and_scored_by_its_words():
    task = get_task("mrqa/squad")
    examples = [Example(inputs="q", targets="The Sea", id=str(n), references=("The Sea", "Sea")) for n in range(3)]
    answers = [Prediction(text, 0.0) for text in ("sea .", "the warm sea", "the town")]
    assert right_answers(task, examples, answers) == "100"
    assert example_scores(task, examples, answers) == pytest.approx([1.0, 2 / 3, 0.0])
    wsc = get_task("superglue/wsc")
    examples = [Example(inputs="q", targets="the cat", id=r, references=(r,)) for r in ("True", "False")]
    assert right_answers(wsc, examples, [Prediction("the cat", 0.0)] * 2) == "10"
    assert example_scores(wsc, examples, [Prediction("the cat", 0.0)] * 2) == [1.0, 0.0]


def test_as_many_dev_examples_as_asked_for(llama, base, data):
    config = replace(base, max_dev=5, learning_rate=(0.03,), seeds=(0,))
    (row,) = run_method(config, "prompt-tuning", load=lambda _: llama)
    assert row.num_examples == 5 and row.config["settings"]["max_dev"] == 5
    with pytest.raises(ValueError, match="max_dev is 0, but must be above 0"):
        replace(base, max_dev=0)


def test_one_models_weights_are_in_memory_at_a_time(base, tmp_path):
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = []

    def load(config):
        gc.collect()
        most.append(len(alive))
        lm = tiny_lm("llama")
        alive.add(lm)
        return lm

    rows = run_method(base, "model-tuning", load=load)
    assert [row.seed for row in rows] == [0, 1]
    assert len(most) == 1 + 4 + 1 + 2 and max(most) == 0


def test_an_interrupted_comparison_goes_on_inside_a_trial(base, tmp_path):
    rows = tmp_path / "rows.jsonl"

    def stop(step, loss, tokens):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(base, ["ia3"], rows=rows, watch=Watch(step=stop), load=lambda _: tiny_lm("llama"))
    assert len(list(base.out.glob("*/trials/ia3/*/checkpoint.safetensors"))) == 1
    steps = []
    watch = Watch(step=lambda step, loss, tokens: steps.append(step))
    assert compare(base, ["ia3"], rows=rows, watch=watch, load=lambda _: tiny_lm("llama")) == []
    assert steps[:2] == [4, 1] and len(steps) == 1 + 4 * 4


def qqp_and_mrpc(folder):
    """90 pairs of QQP's official training file, each question in two of them, and 12 dev pairs of MRPC."""
    qqp, mrpc = folder / "glue" / "QQP", folder / "glue" / "MRPC"
    qqp.mkdir(parents=True)
    mrpc.mkdir(parents=True)
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    lines = [f"{n}\t0\t0\twhy {n // 2}\t{('why', 'who')[n % 2]} {n // 2 + n % 2}\t{n % 2}" for n in range(90)]
    (qqp / "train.tsv").write_text("\n".join([head, *lines]) + "\n")
    lines = [f"{n % 2}\t{n}\t{n}\tthe sea {n} .\tthe town {n} ." for n in range(12)]
    (mrpc / "dev.tsv").write_text("\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *lines]) + "\n")
    return folder


def test_a_dev_set_of_training_rows_is_bounded_too(llama, base, tmp_path):
    config = replace(base, task=("glue/qqp",), data=qqp_and_mrpc(tmp_path / "pairs"), max_dev=3, seeds=(0,))
    (row,) = run_method(replace(config, learning_rate=(0.03,)), "prompt-tuning", load=lambda _: llama)
    assert row.num_examples == 3 and row.notes["dev"] == "3 rows of the training file"


def test_another_task_is_scored_in_the_trained_ones_labels(llama, base, tmp_path):
    told = []
    also = {"glue/mrpc": {"duplicate": "equivalent", "not_duplicate": "not_equivalent"}, "glue/rte": {}}
    config = replace(base, task=("glue/qqp",), data=qqp_and_mrpc(tmp_path / "pairs"), learning_rate=(0.03,))
    watch = Watch(message=told.append)
    rows = run_method(config, "prompt-tuning", also=also, watch=watch, load=lambda _: llama)
    assert [(row.task, row.split, row.seed) for row in rows] == [
        (task, "dev", seed) for seed in (0, 1) for task in ("glue/qqp", "glue/mrpc")
    ]
    assert all(row.config["trained_on"] == "glue/qqp" and row.config["also"] == list(also) for row in rows)
    own, other = rows[:2]
    assert own.num_examples == 8 and own.notes["dev"] == "8 rows of the training file"
    assert other.num_examples == 12 and other.illegal_rate == 0
    assert other.metrics["accuracy"] == pytest.approx(other.notes["right"].count("1") / 12)
    # Both were looked at along the way, and the prompt that was kept answered then as it does at the end.
    for row in rows:
        assert [entry["step"] for entry in row.notes["along"]] == [2, 4] and "others" not in row.notes["history"][0]
        kept = next(entry["scores"] for entry in row.notes["along"] if entry["step"] == row.step)
        right = row.notes["right"]  # eight of them were looked at, spread over the set
        assert kept == [float(right[i * len(right) // 8]) for i in range(8)]
    assert "no dev file of glue/rte" in other.notes["not_run"]["glue/rte"]
    assert any(line.startswith("glue/rte is not run: no dev file of glue/rte") for line in told)


@pytest.mark.parametrize("kind", KINDS)
def test_multi_task_tuning_has_a_row_for_each_task_and_names_in_front(kind, base, tmp_path, monkeypatch):
    data = qqp_and_mrpc(base.data)
    with (data / "glue" / "SST-2" / "train.tsv").open("a") as file:
        file.write("A dull film about day 1000!\t0\n")  # stands in dev
    config = replace(base, task=("glue/sst2", "glue/qqp"), data=data, learning_rate=(1e-3,), steps=6)
    seen = []

    def noted(lm, members, **options):
        seen.extend(members)
        return fit(lm, members, **options)

    monkeypatch.setattr(comparison, "fit", noted)
    rows = comparison.run_multi_task(config, load=lambda _: tiny_lm(kind))
    assert [(row.task, row.seed, row.config["method"]) for row in rows] == [
        (task, seed, "multi-task-model-tuning") for seed in (0, 1) for task in config.task
    ]
    assert [row.num_examples for row in rows[:2]] == [12, 8]
    assert {(row.notes["overlap"], row.notes["overlap_with_dev"]) for row in rows} == {("left out", 1)}
    lm, trained = tiny_lm(kind), seen[0]
    starts = {lm.tokenizer.decode(list(row.ids))[:4] for row in trained.rows}
    assert starts == {"sst2", "qqp "} and len(trained.rows) > 600
    kinds = [example.id.split()[0] for example in trained.selection]
    assert kinds[:4] == ["glue/sst2", "glue/qqp", "glue/sst2", "glue/qqp"]
    assert all(row.value == pytest.approx(sum(row.metrics.values()) / len(row.metrics)) for row in rows)


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        (["lorra"], "no method named 'lorra'; did you mean 'lora'"),
        ([], "no method was given; there are prompt-tuning, model-tuning"),
    ],
)
def test_unknown_methods_are_refused_before_anything_runs(base, tmp_path, methods, reason):
    with pytest.raises(ValueError, match=reason):
        compare(base, methods, rows=tmp_path / "rows.jsonl", load=lambda _: 1 / 0)


def test_cross_validation_is_refused(llama, base):
    with pytest.raises(ValueError, match="cannot be compared by cross-validation; give --select held-out or dev"):
        run_method(replace(base, select="cross-validation"), "lora", load=lambda _: llama)


def test_the_command_prints_a_line_for_each_method(base, data, tmp_path, capsys):
    place = tmp_path / "model"
    make_model("t5").save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    words = [
        "compare", "--model", str(place), "--task", TASK, "--data", str(data), "--seeds", "0,1", "--prompt-length", "3",
        "--steps", "4", "--batch-size", "4", "--evaluate-every", "2", "--num-selection", "8", "--scoring", "rank",
        "--out", str(tmp_path / "out"), "--rows", str(tmp_path / "rows.jsonl"), "--threads", "1",
    ]  # fmt: skip
    assert main([*words, "--methods", "prompt-tuning,ia3,prompt-design"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "method", "prompt-tuning", "ia3", *(f"prompt-design, {n} shots" for n in ("0", "4", "16", "full")),
    ]  # fmt: skip
    assert "±" in lines[1] and "KB" in lines[1]
    assert main([*words, "--methods", "promt-tuning"]) == 2
    assert "did you mean 'prompt-tuning'" in capsys.readouterr().err
    assert main([*words, "--task", "glue/mrpc"]) == 2
    assert "methods are compared on one task at a time, not on glue/sst2, glue/mrpc" in capsys.readouterr().err


def test_every_method_that_trains_tries_as_many_rates():
    tried = [*comparison.PROMPT_RATES.values()]
    for tuner in TUNERS.values():
        tried += [tuner.rates, *([tuner.rates_of_t5] if tuner.rates_of_t5 else [])]
    assert {len(set(rates)) for rates in tried} == {comparison.NUM_RATES}


def test_equal_seconds_are_those_of_the_fastest_method(llama, base, tmp_path):
    (row, _) = run_method(replace(base, learning_rate=(0.03,)), "prompt-tuning", load=lambda _: llama)
    history = [{"step": n, "seconds": float(n), "score": score, "loss": 1.0} for n, score in ((2, 0.5), (4, 0.75))]
    slow = replace(row, seconds=4.0, notes=row.notes | {"history": history})
    fast = replace(row, seconds=2.5, config=row.config | {"method": "lora"})
    assert equal_seconds([slow, fast]) == 2.5 and equal_seconds([]) is None
    assert [score_within(slow, seconds) for seconds in (1.0, 2.5, 4.0)] == [None, 0.5, 0.75]
    assert title_of(fast) == "lora"


def test_rates_for_prompts_are_those_of_their_optimizer(lm, base):
    for preset, optimizer, middle in (("fast", "adamw", 0.03), ("paper", None, 0.3), ("fast", "adafactor", 0.3)):
        config = replace(base, preset=preset, optimizer=optimizer, num_selection=8)
        entry = comparison._entry(config, "prompt-tuning", {}, None, Watch(), lambda _: lm)
        assert middle in entry.rates and len(entry.rates) == comparison.NUM_RATES
        alone = comparison._entry(config, "prompt-tuning", {}, None, Watch(), lambda _: lm, as_paper=True)
        assert alone.rates == (middle,) or preset == "fast"
    tuned = comparison._entry(base, "model-tuning", {}, None, Watch(), lambda _: lm, as_paper=True).rates
    assert tuned == ((0.001,) if lm.is_encoder_decoder else TUNERS["model-tuning"].rates)


def test_a_seed_that_diverged_has_no_row_and_a_method_that_did_at_every_rate_fails(base, tmp_path, monkeypatch):
    told, train = [], comparison._Entry.train

    def lost(entry, rate, seed):
        trial = train(entry, rate, seed)
        if (rate, seed) in {(1.0, 0), (0.1, 1)}:
            trial = replace(trial, fitted=replace(trial.fitted, score=None, stopped="the loss at step 1 is no number"))
        return trial

    monkeypatch.setattr(comparison._Entry, "train", lost)
    options = {"watch": Watch(message=told.append), "load": lambda _: tiny_lm("llama")}
    rows = run_method(replace(base, learning_rate=(0.1, 1.0)), "model-tuning", **options)
    assert [row.seed for row in rows] == [0] and rows[0].config["learning_rate"] == 0.1
    assert told[-1] == "model-tuning, seed 1 has no row: the loss at step 1 is no number"
    with pytest.raises(ValueError, match="model-tuning stopped before its first score at every rate: the loss at step"):
        run_method(replace(base, learning_rate=(1.0,)), "model-tuning", **options)


def test_minutes_are_shared_by_a_methods_trials(base, monkeypatch):
    bounds = []
    monkeypatch.setattr(comparison, "fit", lambda *_, minutes, **__: bounds.append(minutes) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_method(replace(base, minutes=6.0, seeds=(0, 1, 2)), "prompt-tuning", load=lambda _: tiny_lm("llama"))
    assert bounds == [1.0], "four rates on the first seed, and two more seeds"


def test_inputs_that_were_cut_where_they_were_scored_are_counted(base):
    whole, cut = (
        run_method(replace(base, learning_rate=(0.1,), seeds=(0,), max_input_length=length), "lora",
                   load=lambda _: tiny_lm("llama"))[0]
        for length in (512, 12)
    )  # fmt: skip
    assert whole.notes["scored_cut"] == 0 and cut.notes["scored_cut"] == 12


def test_peft_s_variant_of_prefix_tuning_is_named_so(base):
    for kind, title in (("t5", "prefix-tuning (PEFT's variant)"), ("llama", "prefix-tuning")):
        config = replace(base, learning_rate=(0.01,), seeds=(0,), out=base.out / kind)
        (row,) = run_method(config, "prefix-tuning", load=lambda _, kind=kind: tiny_lm(kind))
        assert title_of(row) == title


def sst2(data):
    task = get_task(TASK)
    return task, read_split(task, "train", data).examples, read_split(task, "dev", data).examples


@pytest.mark.parametrize("kind", KINDS)
def test_examples_in_front_score_as_their_text_does(kind, data):
    lm = tiny_lm(kind)
    task, train, dev = sst2(data)
    form = default_format(lm, starts_with_bos=False)
    wording = next(w for w in WORDINGS if w.name == "label")
    (found,) = ask(lm, task, [Design(wording, 2, 7, False)], train, dev[:1], form, context_length=200)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(7)).tolist()
    space = "" if lm.is_encoder_decoder else " "
    encode = lm.tokenizer.encode
    ids = []
    for example in (train[i] for i in order[:2]):
        texts = ("Text: " + example.inputs, "\nLabel:", space + example.targets, "\n\n")
        ids += [id for text in texts for id in encode(text)]
    ids += [*encode("Text: " + dev[0].inputs), *encode("\nLabel:")]
    for label, score in found.predictions[0].scores.items():
        target = [*encode(space + label), lm.tokenizer.eos_id]
        with torch.no_grad():
            if lm.is_encoder_decoder:
                given = torch.tensor([[*ids, lm.tokenizer.eos_id]])
                mask = torch.ones_like(given)
                logits = lm.model(input_ids=given, attention_mask=mask, labels=torch.tensor([target])).logits[0]
            else:
                logits = lm.model(torch.tensor([ids + target])).logits[0, len(ids) - 1 :]
        log_probs = logits.log_softmax(-1)
        assert score == pytest.approx(float(sum(log_probs[i, id] for i, id in enumerate(target))), abs=1e-4)


def test_calibration_takes_off_what_the_model_says_to_nothing(llama, data):
    task, train, dev = sst2(data)
    wording = WORDINGS[0]
    plain, taken = ask(
        llama, task, [Design(wording, 0, 0, False), Design(wording, 0, 0, True)], train, dev, default_format(llama),
        context_length=50,
    )  # fmt: skip
    shifts = [
        {text: one.scores[text] - other.scores[text] for text in one.scores}
        for one, other in zip(plain.predictions, taken.predictions, strict=True)
    ]
    assert all(shift == pytest.approx(shifts[0]) for shift in shifts)
    assert sum(2.718281828459045**value for value in shifts[0].values()) == pytest.approx(1, abs=1e-6)
    biased = [Prediction("no", -1.0, {"no": -1.0, "yes": -2.0})]
    assert calibrated(biased, {"no": -0.1, "yes": -2.3})[0].text == "yes"


def test_as_many_examples_as_fit_stand_in_front(llama, data):
    task, train, _ = sst2(data)
    form = default_format(llama)
    lengths = {}
    for shots in (0, 1, 2, -1):
        ids, taken = examples_in_front(llama, task, train, form, WORDINGS[0], shots, 0, context_length=150)
        lengths[shots] = len(ids)
        assert taken == shots if shots >= 0 else taken > 2
    assert 0 == lengths[0] < lengths[1] < lengths[2] < lengths[-1] <= 150
    assert lengths[-1] + 2 * lengths[1] > 150
    assert examples_in_front(llama, task, train, form, WORDINGS[0], 4, 0, context_length=3) == ([], 0)


def test_every_wording_shot_and_draw_is_tried_with_and_without_calibration(llama):
    task = get_task(TASK)
    found = designs(llama, task, shots=(0, 4), draws=(0, 1, 2))
    assert len(found) == 2 * 5 * (1 + 3) and len({design.name for design in found}) == len(found)
    assert num_rows(found, 10) == 5 * 4 * 13
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }}{% endfor %} assistant "
    talks = FrozenLM(make_llama(), tokenizer, name="talks")
    assert [d.shots for d in designs(talks, task, shots=(0, 4)) if d.wording.chat] == [0, 0]


def test_free_text_is_written_and_an_examples_own_candidates_are_ranked(llama):
    """Asked in wordings that name no labels, and never calibrated: there are none to calibrate."""
    task = get_task("mrqa/squad")
    examples = [
        Example(inputs=f"question: who context: {who}", targets=who, id=who, references=(who,)) for who in ("she", "he")
    ]
    for choices, scoring in ((None, "generate"), (("she", "he"), "rank")):
        asked = [replace(example, choices=choices) for example in examples]
        assert how_scored(task, asked) == scoring
        tried = designs(llama, task, shots=(0, 1), draws=(0,))
        assert len(tried) == 5 * 2 and not any(d.calibrated or "{labels}" in str(d.wording) for d in tried)
        found = ask(llama, task, tried, asked, asked, default_format(llama), context_length=50)
        assert num_rows(tried, len(asked)) == sum(len(one.predictions) for one in found)
        ranked = [prediction.scores is not None for one in found for prediction in one.predictions]
        assert ranked == [scoring == "rank"] * len(ranked)
