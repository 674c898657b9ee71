"""What softprompt 0.1.0 wrote is read as 0.1.0 read it; its checkpoints are refused in one line.

The files are those of tests/fixtures/v0.1.0, whose README.md says how each was made. Only public names are used here:
the command line, `softprompt.*`, and the application that `softprompt serve` hands to uvicorn.
"""

import contextlib
import json
import logging
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import make_llama, make_model, make_t5, make_tokenizer

import softprompt
from softprompt.cli import main

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1.0"
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant:{% endif %}"
LINE = "message: the lamp came late"
T5 = {
    "separator": "", "leading_space": False, "starts_with_bos": False, "inputs_end_with_eos": True, "chat": False,
    "max_input_length": 512, "max_target_length": 7, "truncation_side": "end", "sentinel": "none",
    "inputs_template": None, "targets_template": None,
}  # fmt: skip
LLAMA = T5 | {
    "separator": "\nanswer:", "leading_space": True, "starts_with_bos": True, "inputs_end_with_eos": False,
}  # fmt: skip
MESSAGE = {"inputs_template": "message: {text}", "targets_template": "{mood}"}
MOODS, SENTIMENT = ("glad", "cross"), ("negative", "positive")
PARENT = "5fe8a7ca816a73012e756bc023871adf8c2a97ef491bfeb3887839577384c48b"

# Of each prompt of ours: its model, content hash, rows, first three values, and of its card task, labels, text format,
# selection, seed, dev metrics, how it began, and its scoring; then what it answers LINE, summed log-probability, and
# the probabilities of its labels in order. Model fingerprints are after.
PROMPTS = {
    "llama-chat": (
        "llama-chat", "9e15ed5542a32f3b", 3, [0.00013169943122193217, 0.3273661732673645, -0.379393994808197],
        "own", MOODS, LLAMA | MESSAGE | {"separator": "", "leading_space": False, "chat": True, "max_target_length": 6},
        "cross-validation", 0, {"accuracy": 0.5}, "uniform", "rank", "glad", -33.250813, (0.9999, 0.0001),
    ),
    "llama-from-prompt": (
        "llama", "454550f98d55a397", 4, [-0.1999063491821289, -0.4865669906139374, -0.7599114179611206],
        "glue/sst2", SENTIMENT, LLAMA, "held-out", 0, {"accuracy": 0.5}, "prompt", "rank", "negative", -21.523729,
        (1.0, 0.0),
    ),
    "llama-own-0": (
        "llama", "5c37cc684bb2df48", 3, [-0.2347552478313446, -0.9134748578071594, -0.6083444952964783],
        "own", MOODS, LLAMA | MESSAGE | {"separator": "\n=>"}, "cross-validation", 0, {"f1": 0.0}, "class-labels",
        "rank", "glad", -36.256138, (0.99936, 0.00064),
    ),
    "llama-own-1": (
        "llama", "17b798fb0924ea4c", 3, [-0.23003102838993073, -0.9133948683738708, -0.6317940950393677],
        "own", MOODS, LLAMA | MESSAGE | {"separator": "\n=>"}, "cross-validation", 1, {"f1": 0.0}, "class-labels",
        "rank", "glad", -36.373898, (0.998976, 0.001024),
    ),
    "llama-sst2": (
        "llama", "5fe8a7ca816a7301", 4, [-0.14606644213199615, -0.5405461192131042, -0.7780558466911316],
        "glue/sst2", SENTIMENT, LLAMA, "held-out", 5, {"accuracy": 0.5}, "class-labels", "rank", "negative",
        -21.533274, (1.0, 0.0),
    ),
    "t5-free": (
        "t5", "a654134700c2ed58", 3, [0.9056745171546936, 1.2449294328689575, -1.7418447732925415], "own", (),
        T5 | {
            "max_target_length": 10,
            "inputs_template": "question: where is {thing}",
            "targets_template": "{place}",
        },
        "cross-validation", 0, {"em": 0.0}, "vocab", "generate", "am\ufffdailmailmailm\ufffdor\ufffdailm\ufffd",
        -35.671947, None,
    ),
    "t5-own": (
        "t5", "21c6d7562a4b1831", 4, [0.04884926974773407, -0.9669371843338013, -0.37710198760032654], "own", MOODS,
        T5 | MESSAGE | {"max_input_length": 64, "max_target_length": 6}, "cross-validation", 0, {"accuracy": 0.5},
        "class-labels", "rank", "glad", -31.34667, (0.99651, 0.00349),
    ),
    "t5-sst2": (
        "t5", "a821574d13703864", 4, [0.3686784505844116, -0.6564455628395081, -0.7517650127410889],
        "glue/sst2", SENTIMENT, T5, "held-out", 0, {"accuracy": 0.0}, "class-labels", "generate",
        "am\ufffdailmailmailmailmailm", -24.747105, None,
    ),
    "t5-text": (
        "t5", "e101d93edf31f1a1", 5, [-1.0743464231491089, -0.3646053373813629, -0.34715545177459717],
        "glue/sst2", SENTIMENT, T5, "held-out", 0, {"accuracy": 0.5}, "text", "rank", "negative", -32.333488,
        (0.999995, 0.000005),
    ),
}  # fmt: skip
FINGERPRINTS = {"t5": "69ea6b6ec6c691a0", "llama": "1fb4d57f4486ee28", "llama-chat": "a37c9108"}
LABELLED = [name for name, wanted in PROMPTS.items() if wanted[-1] is not None]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the tiny models that the fixtures were made with, by the same names."""
    folder = tmp_path_factory.mktemp("models")
    small = {"d_model": 4, "d_ff": 8, "d_kv": 2, "num_layers": 1, "num_decoder_layers": 1}
    made = {"t5": make_t5(), "llama": make_llama(), "llama-chat": make_llama(seed=1)}
    for name, model in {**made, "t5-micro": make_model("t5", **small)}.items():
        tokenizer = make_tokenizer(bos="llama" in name)
        if "chat" in name:
            tokenizer.chat_template = CHAT
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models):
    """A working folder with a copy of the fixtures, beside the models they name."""
    shutil.copytree(FIXTURES, tmp_path / "here")
    for model in models.iterdir():
        (tmp_path / "here" / model.name).symlink_to(model)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield tmp_path / "here"
    torch.set_num_threads(threads)


def asked(name, line=LINE, **options):
    """What the prompt answers one line, on the model that it names itself."""
    saved = softprompt.open_prompts(f"prompts/{name}", device="cpu", dtype="float32", **options)
    options = {"with_probabilities": saved.scoring == "rank", "finished": True}  # as the lines of earlier versions were
    (answer,) = softprompt.predict_records(saved, [(1, line)], **options)
    return answer


@contextlib.contextmanager
def served(monkeypatch, *words):
    """A client of the application that `softprompt serve` would run, and what uvicorn would have been told."""
    import uvicorn
    from fastapi.testclient import TestClient

    held = []

    def serving(server, sockets):
        server.started = True
        host, port = sockets[0].getsockname()
        held.append((server.config.app, vars(server.config) | {"host": host, "port": port}))

    monkeypatch.setattr(uvicorn.Server, "run", serving)
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    assert main(["serve", *words]) == 0
    ((app, told),) = held
    with TestClient(app, "http://localhost") as client:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        yield client, told


# Prompts


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_what_it_was(here, name):
    model, sha256, length, first, task, labels, text, selection, seed, dev, began, scoring, *_ = PROMPTS[name]
    prompt = softprompt.load_prompt(f"prompts/{name}")
    assert prompt.sha256[:16] == sha256
    assert tuple(prompt.values.shape) == (length, 16) and prompt.values.dtype == torch.float32
    assert prompt.values[0, :3].tolist() == first
    card = prompt.card
    assert (card.model_name, card.model_fingerprint[:8]) == (f"./{model}", FINGERPRINTS[model][:8])
    assert (card.is_encoder_decoder, card.width) == (model == "t5", 16)
    assert (card.task, card.task_version, tuple(card.labels)) == (task, "1", labels)
    assert dict(card.text) == text
    assert (card.selection, card.seed, card.step, dict(card.dev_metrics)) == (selection, seed, 3, dev)
    assert (card.init["kind"], card.recipe["scoring"], card.recipe["steps"]) == (began, scoring, 6)
    assert card.parent == (PARENT if began == "prompt" else None)
    assert (card.softprompt_version, card.format_version) == ("0.1.0", 1)


@pytest.mark.parametrize("name", PROMPTS)
def test_nothing_of_a_card_is_lost_or_changed(here, name):
    """Every key of softprompt.json is a field, and a card written again is the file, but for what came later."""
    written = json.loads(Path(f"prompts/{name}/softprompt.json").read_text())
    prompt = softprompt.load_prompt(f"prompts/{name}")
    for key, value in written.items():
        found = getattr(prompt.card, key)
        assert (list(found) if key == "labels" else found) == value, key
    softprompt.save_prompt(prompt, "again")
    again = json.loads(Path("again/softprompt.json").read_text())
    assert again | {"format_version": 1} == written | {key: again[key] for key in set(again) - set(written)}
    assert set(again) - set(written) == {"num_layers", "num_heads", "values_sha256"}
    weights = "adapter_model.safetensors"
    assert Path("again", weights).read_bytes() == Path("prompts", name, weights).read_bytes()
    config, before = (json.loads(Path(at, "adapter_config.json").read_text()) for at in ("again", f"prompts/{name}"))
    assert config == before | {"num_layers": 1, "num_attention_heads": 1}  # no count is null any more, for PEFT


def test_each_row_of_a_prompt_says_what_it_was_made_of(here):
    tokens = softprompt.load_prompt("prompts/t5-text").card.init["tokens"]
    assert ["".join(row["pieces"]) for row in tokens] == ["t", "h", "e", " story", " "]
    tokens = softprompt.load_prompt("prompts/t5-own").card.init["tokens"]
    assert [row.get("label") for row in tokens] == ["glad", "cross", None, None]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_answers_as_it_did(here, name):
    answer, log_prob, probabilities = PROMPTS[name][-3:]
    found = asked(name)
    assert found["prediction"] == answer
    assert found["log_prob"] == pytest.approx(log_prob, rel=1e-5)
    assert found["truncated"] is False
    if probabilities:
        labels = PROMPTS[name][5]
        assert found["probabilities"] == pytest.approx(dict(zip(labels, probabilities, strict=True)), abs=1e-5)


def test_a_record_is_cast_with_the_cards_template(here):
    found = asked("t5-own", {"text": "the lamp came late"})
    assert (found["prediction"], found["log_prob"]) == ("glad", pytest.approx(-31.34667, rel=1e-5))
    found = asked("llama-sst2", {"sentence": "the lamp came late"})
    assert (found["prediction"], found["log_prob"]) == ("negative", pytest.approx(-21.057394, rel=1e-5))


def test_a_long_input_is_cut_where_the_card_says(here):
    assert asked("t5-own", "message: " + "the lamp " * 80)["truncated"] is True
    assert asked("t5-sst2", "message: " + "the lamp " * 80)["truncated"] is False


def test_the_models_are_those_that_the_prompts_were_made_for(here):
    for name, digits in FINGERPRINTS.items():
        assert softprompt.load(f"./{name}", dtype="float32").fingerprint.startswith(digits)


@pytest.mark.parametrize(
    ("name", "text", "log_prob"),
    [
        ("llama-peft", "entailm the\ufffd/#v/#v/#v/#v\ufffdv\ufffdJ\ufffd that", -210.767715),
        ("t5-peft", "am\ufffdailmailmailm\ufffdor\ufffdailm\ufffd{", -212.495056),
    ],
)
def test_a_folder_of_peft_without_a_card_still_answers(here, name, text, log_prob):
    with pytest.warns(UserWarning) as told:
        prompt = softprompt.load_prompt(f"prompts/{name}")
        found = asked(name)
    kind = name.removesuffix("-peft")
    said = [str(one.message) for one in told]
    assert any(f"prompts/{name} does not record its text format; ./{kind}'s usual one is taken" in one for one in said)
    assert any("records no model fingerprint, so only its width (16) was checked against" in one for one in said)
    assert any("holds 6 rows, as PEFT gives an encoder-decoder" in one for one in said) == (kind == "t5")
    assert (prompt.length, prompt.card.model_name, prompt.card.model_fingerprint) == (3, f"./{kind}", None)
    assert (prompt.card.task, prompt.card.labels, prompt.card.text) == (None, (), {})
    assert prompt.values[0, :2].tolist() == [-0.07664429396390915, 0.35988152027130127]
    assert found["prediction"].startswith(text)
    assert found["log_prob"] == pytest.approx(log_prob, rel=1e-5)


@pytest.mark.parametrize(("source", "kind"), [("formats/t5-own.npy", "t5x"), ("formats/t5-own-tgis", "tgis")])
def test_files_of_other_programs_hold_the_same_numbers(here, run, source, kind):
    code, out, err = run("convert", source, "--to", "peft", "--model", "./t5", "--out", "back")
    assert (code, err) == (0, "")
    assert out == "back: 4 prompt tokens of width 16 for an encoder-decoder, peft\n"
    assert softprompt.load_prompt("back").sha256 == softprompt.load_prompt("prompts/t5-own").sha256


def test_prompts_of_two_seeds_are_scored_and_vote(here, run):
    words = ["--prompt", "prompts/llama-own-0", "prompts/llama-own-1", "--data", "dev=data/messages-dev.jsonl"]
    code, out, err = run("eval", *words, "--ensemble", "--json", "--dtype", "float32")
    assert code == 0, err
    alone = {"metrics": {"f1": 0.0}, "value": 0.0, "illegal_rate": 0.0}
    found = json.loads(out)
    for part in (*found["prompts"], found["ensemble"]):  # where it is wrong came later
        for key in set(part) - {"prompt", *alone}:
            del part[key]
    assert found == {
        "task": "own", "split": "dev", "scoring": "rank", "num_examples": 6, "num_cut": 0,
        "prompts": [{"prompt": f"prompts/llama-own-{seed}", **alone} for seed in (0, 1)],
        "average": {"f1": 0.0}, "best": "prompts/llama-own-0", "chosen": "prompts/llama-own-0", "ensemble": alone,
    }  # fmt: skip


# Rows

TABLES = {
    "figure-3a": [
        "| llama | 1 | rank | 50.0 ± 0.0 | 50.0 ± 0.0 | 0% | 50.0 |",
        "| llama | 1 | generate | 0.0 ± 0.0 | 0.0 ± 0.0 | 100% | 0.0 |",
        "| llama | 5 | rank | 50.0 ± 0.0 | 50.0 ± 0.0 | 0% | 50.0 |",
        "| llama | 5 | generate | 0.0 ± 0.0 | 0.0 ± 0.0 | 100% | 0.0 |",
    ],
    "table-3": [
        "| llama | five prompts | rank | 50.0 ± 0.0 | 50.0 ± 0.0 | 0% | 50.0 |",
        "| llama | five prompts | generate | 0.0 ± 0.0 | 0.0 ± 0.0 | 100% | 0.0 |",
    ],
    "figure-1": ["| llama | prompt tuning | rank | 50.0 ± 0.0 | 50.0 ± 0.0 | 0% | - |"],
}
COMPARED = [
    "prompt-tuning 50.0 ± 0.0 50.0 ± 0.0 50.0 ± 0.0 48 0.3 KB",
    "model-tuning 50.0 ± 0.0 50.0 ± 0.0 50.0 ± 0.0 23,392 97.0 KB",
    "lora 50.0 ± 0.0 50.0 ± 0.0 50.0 ± 0.0 3,072 15.1 KB",
]


def test_the_page_is_made_of_all_rows(here, run):
    code, out, err = run("report", "rows/compare.jsonl", "rows/experiment.jsonl", "rows/eval.jsonl", "--out", "report")
    assert (code, err) == (0, "")
    assert out == "report/index.html: 39 rows, 6 pictures beside it\n"
    page = Path("report/index.html").read_text()
    for point in ("prompt tuning", "five prompts"):
        assert point in page


def test_rows_of_an_experiment_make_the_table_they_made(here, run):
    for name, wanted in TABLES.items():
        code, out, err = run("experiment", name, "--table", "--rows", "rows/experiment.jsonl")
        assert (code, err) == (0, "")
        assert out.splitlines()[2:] == wanted


def test_an_experiment_goes_on_from_its_rows_and_runs_nothing_twice(here, run):
    words = ["--models", "./llama", "--tasks", "glue/sst2", "--data", "data", "--dtype", "float32", "--threads", "1"]
    words += ["--steps", "4", "--batch-size", "4", "--evaluate-every", "2", "--num-selection", "6", "--device", "cpu"]
    words += ["--points", "1", "5", "--learning-rate", "0.1", "--select", "held-out", "--seeds", "0,1"]
    before = Path("rows/experiment.jsonl").read_bytes()
    code, out, err = run("experiment", "figure-3a", *words, "--out", "study", "--rows", "rows/experiment.jsonl")
    assert code == 0, err
    assert out.splitlines()[2:] == TABLES["figure-3a"]
    assert Path("rows/experiment.jsonl").read_bytes() == before


def test_a_comparison_goes_on_from_its_rows_and_runs_nothing_twice(here, run):
    words = ["--model", "./t5", "--task", "glue/sst2", "--data", "data", "--dtype", "float32", "--threads", "1"]
    words += ["--steps", "4", "--batch-size", "4", "--evaluate-every", "2", "--num-selection", "6", "--device", "cpu"]
    words += ["--seeds", "0,1", "--prompt-length", "3", "--methods", "prompt-tuning,model-tuning,lora"]
    before = Path("rows/compare.jsonl").read_bytes()
    code, out, err = run("compare", *words, "--out", "kept", "--rows", "rows/compare.jsonl")
    assert code == 0, err
    names = ("prompt-tuning", "model-tuning", "lora")
    assert err.splitlines() == [f"{name}: its rows are in rows/compare.jsonl" for name in names]
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "method dev selection selection at 0 s trained stored seconds peak MB rate or text"
    assert [line.rsplit(" ", 5)[0] for line in lines[1:]] == COMPARED  # no seconds, peak memory and rate
    assert Path("rows/compare.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("row", "data", "told", "prompt"),
    [
        (
            "runs/llama-own/results.jsonl:2",
            ["train=data/messages-train.jsonl", "dev=data/messages-dev.jsonl"],
            "own, seed 1, rank: 0.0000 now, 0.0000 in the row",
            "prompts/llama-own-1",
        ),
        (
            "runs/t5-text/results.jsonl:1",
            ["data"],
            "glue/sst2, seed 0, rank: 0.5000 now, 0.5000 in the row",
            "prompts/t5-text",
        ),
    ],
)
def test_what_made_a_row_is_run_again(here, run, row, data, told, prompt):
    code, out, err = run("rerun", row, "--data", *data, "--out", "again", "--threads", "1")
    assert code == 0, err
    assert out == f"{told}\n"
    wanted = softprompt.load_prompt(prompt).values
    torch.testing.assert_close(softprompt.load_prompt("again").values, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("row", "seed"), [("rows/compare.jsonl:5", 0), ("rows/compare.jsonl:8", 0), ("rows/experiment.jsonl:26", 1)]
)
def test_what_made_a_row_of_a_comparison_or_an_experiment_is_run_again(here, run, row, seed):
    """LoRA's, prompt design's with four examples in front, and figure 1's."""
    code, out, err = run("rerun", row, "--data", "data", "--out", "again", "--threads", "1")
    assert (code, out) == (0, f"glue/sst2, seed {seed}, rank: 0.5000 now, 0.5000 in the row\n"), err


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("rows/eval.jsonl:1", "this row is of 'eval', which trains no prompt; give the row of a prompt"),
        ("rows/experiment.jsonl:3", "this row is a vote of several prompts; give the row of a prompt"),
    ],
)
def test_rows_that_no_single_run_made_say_so(here, run, row, why):
    assert run("rerun", row, "--out", "again") == (2, "", f"softprompt rerun: {why}\n")


@pytest.mark.parametrize("path", sorted(path.name for path in (FIXTURES / "rows").iterdir()))
def test_a_row_is_written_as_it_was(here, path):
    for line in Path("rows", path).read_text().splitlines():
        assert softprompt.Result(**json.loads(line)).to_json() == line


# Answers of predict


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_finished_output_is_taken_as_it_is(here, run, name):
    prompt, more = {"llama": ("llama-own-0", ["--scores"]), "t5": ("t5-own", [])}[name]
    words = ["--prompt", f"prompts/{prompt}", "--dtype", "float32", "--input", "predictions/asked.jsonl", *more]
    before = Path(f"predictions/{name}.jsonl").read_bytes()
    code, out, err = run("predict", *words, "--output", f"predictions/{name}.jsonl", "--resume")
    assert (code, out) == (0, "")
    counts = "3 rows answered, 1 not (their lines hold an error)"
    assert err.splitlines()[-1] == f"{counts}, in predictions/{name}.jsonl"
    assert Path(f"predictions/{name}.jsonl").read_bytes() == before
    # And it is made again as it was.
    code, _, err = run("predict", *words, "--output", "again.jsonl")
    assert code == 0, err
    assert lines_of("again.jsonl") == about(f"predictions/{name}.jsonl")
    earlier = json.loads(Path(f"predictions/{name}.jsonl.settings").read_text())
    added = {"finished": False, "show-input": False}
    added["prompt hashes"] = [softprompt.load_prompt(f"prompts/{prompt}").identity]
    assert json.loads(Path("again.jsonl.settings").read_text()) == earlier | added


def lines_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def about(path):
    """The lines of a file of answers, to be compared to 1e-5."""
    lines = lines_of(path)
    for line in lines:
        for name in {"log_prob", "probabilities"} & set(line):
            line[name] = pytest.approx(line[name], rel=1e-5, abs=1e-5)
    return lines


def test_a_torn_output_is_gone_on_with(here, run):
    words = ["--prompt", "prompts/llama-own-0", "--dtype", "float32", "--input", "predictions/asked.jsonl", "--scores"]
    code, out, err = run("predict", *words, "--output", "predictions/half.jsonl", "--resume")
    assert (code, out) == (0, ""), err
    assert not Path("predictions/half.jsonl.partial").exists()
    assert lines_of("predictions/half.jsonl") == about("predictions/llama.jsonl")


def test_an_output_of_another_prompt_is_not_gone_on_with(here, run):
    words = ["--prompt", "prompts/llama-own-1", "--dtype", "float32", "--input", "predictions/asked.jsonl", "--scores"]
    code, _, err = run("predict", *words, "--output", "predictions/half.jsonl", "--resume")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "softprompt predict: predictions/half.jsonl.partial was begun with prompts ['5c37cc684bb2"
    )


# Checkpoints


@pytest.mark.parametrize("name", ["training", "pretraining"])
def test_an_unfinished_run_of_an_earlier_version_is_refused_in_one_line(here, run, name):
    place = Path("checkpoints", name)
    words = [*json.loads(Path(f"checkpoints/{name}.json").read_text()), "--out", place, "--resume"]
    before = (place / "checkpoint.safetensors").read_bytes()
    code, out, err = run(*words)
    line = (
        f"checkpoints/{name}/checkpoint.safetensors is a checkpoint of softprompt 0.1.0, from which later versions do "
        "not go on; end that run with softprompt 0.1.0, or remove it to start again"
    )
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].endswith(line)
    assert (place / "checkpoint.safetensors").read_bytes() == before


# Settings written by hand


def config_of(monkeypatch, *words):
    """The configuration that `softprompt train` makes of its words; it stops there."""
    seen, make = [], softprompt.RunConfig.__init__

    def stopping(self, *given, **named):
        make(self, *given, **named)
        seen.append(self)
        raise ValueError("that is all")

    with monkeypatch.context() as patch:
        patch.setattr(softprompt.RunConfig, "__init__", stopping)
        assert main(["train", *words]) == 2
    (config,) = seen
    return config


def test_a_recipe_with_every_setting_of_tasks_of_the_catalogue(here, monkeypatch):
    assert config_of(monkeypatch, "--config", "recipes/catalogue.yaml") == softprompt.RunConfig(
        model="bundled/t5-mini",
        task=("superglue/cb", "WiC"),
        data="official/files",
        out=Path("runs/all"),
        prompt_length=(20, 100),
        init="text:good or bad",
        seeds=(0, 1, 2),
        preset="paper",
        steps=500,
        minutes=20.0,
        batch_size=32,
        optimizer="adamw",
        learning_rate=(0.3, 0.01, 1.0),
        dropout=0.1,
        max_train=1000,
        max_dev=200,
        resume=True,
        select="held-out",
        scoring="rank",
        evaluate_every=50,
        num_selection=64,
        patience=3,
        max_input_length=256,
        sentinel="targets",
        chat=False,
        device="cpu",
        dtype="float32",
        quantize="8bit",
        checkpoint_activations=True,
        compile=True,
    )


def test_a_recipe_for_files_of_ones_own(here, monkeypatch):
    wanted = {
        "model": "./llama",
        "task": (),
        "data": {"train": ["data/messages-train.jsonl"], "dev": ["data/messages-dev.jsonl", "more.csv"]},
        "inputs": "message: {text}",
        "targets": "{mood}",
        "labels": ("glad", "cross"),
        "metric": "f1",
        "group_by": "town",
        "prompt_length": (5,),
        "separator": "\n=>",
        "chat": True,
        "minutes": 2.5,
        "learning_rate": (0.03,),
        "steps": 300,
    }
    found = config_of(monkeypatch, "--config", "recipes/own.yaml")
    assert found == softprompt.RunConfig(**wanted)
    assert (found.init, found.out, found.preset, found.seeds) == (None, Path("runs/prompt"), "fast", (0,))
    flags = ["--steps", "9", "--no-chat", "--labels", "a,b", "--dev", "x.csv,y.csv", "--learning-rate", "1,2"]
    data = {"train": ["data/messages-train.jsonl"], "dev": ["x.csv", "y.csv"]}
    changed = {"steps": 9, "chat": False, "labels": ("a", "b"), "data": data, "learning_rate": (1.0, 2.0)}
    assert config_of(monkeypatch, "--config", "recipes/own.yaml", *flags) == softprompt.RunConfig(**wanted | changed)


def test_a_recipe_with_lists_as_on_the_command_line(here, monkeypatch):
    assert config_of(monkeypatch, "--config", "recipes/commas.yaml") == softprompt.RunConfig(
        model="smollm2-135m",
        task=("glue/sst2", "boolq"),
        seeds=(0, 1, 2),
        prompt_length=(5, 20),
        learning_rate=(0.1, 0.3),
        data={"train": ["data/messages-train.jsonl"]},
        preset="google-code",
    )


def bearer(secret):
    return {"authorization": f"Bearer {secret}"}


def test_a_servers_settings_and_keys(here, monkeypatch, capsys):
    with served(monkeypatch, "--config", "serve.yaml") as (client, told):
        said = capsys.readouterr().err
        assert (told["host"], told["port"], told["timeout_graceful_shutdown"]) == ("0.0.0.0", 8123, 3)
        assert torch.get_num_threads() == 1
        assert "llama (float32 on cpu) with 5 prompts, 0.1 GiB for them" in said
        assert "http://0.0.0.0:8123 (with API keys); Ctrl-C stops" in said
        keys = ("reader-0123456789", "boss-0123456789ab", "slow-0123456789abc", "porter-0123456789")
        reader, boss, slow, porter = map(bearer, keys)
        names = [one["id"] for one in client.get("/v1/models", headers=reader).json()["data"]]
        assert names == ["llama", "chosen", "mood.2", "by-hand", "mood", "tone", "both", "live"]
        for headers, status in ((reader, 200), (boss, 200), (slow, 200), (porter, 403), (bearer("x" * 16), 401)):
            assert client.get("/v1/prompts", headers=headers).status_code == status
        assert client.get("/v1/prompts", headers=slow).status_code == 200
        answer = client.get("/v1/prompts", headers=slow)
        assert answer.status_code == 429
        assert answer.json()["error"]["message"] == "the key slow has used its requests of this minute; try later"
        for headers, status in ((reader, 403), (boss, 404), (porter, 404)):
            assert client.delete("/v1/prompts/nothing", headers=headers).status_code == status
        long = client.post("/v1/classify", json={"model": "chosen", "input": "x" * (1 << 20)}, headers=reader)
        assert (long.status_code, long.json()["error"]["message"].split(",")[0]) == (413, "the body is longer than 1")
        archive = client.put("/v1/prompts/big", content=b"0" * ((2 << 20) + 1), headers=boss)
        assert archive.json()["error"]["message"].startswith("the body is longer than 2,097,152 bytes")
        many = client.post("/v1/classify", json={"model": "chosen", "input": ["x"] * 8}, headers=reader)
        assert many.json()["error"]["message"] == "8 parts at once, but the queue takes 7; give fewer"
        answer = client.post("/v1/classify", json={"model": "chosen", "input": LINE, "finished": True}, headers=boss)
        assert answer.json()["results"][0]["log_probs"]["negative"] == pytest.approx(-21.533274, rel=1e-5)


def test_flags_of_a_server_override_its_file(here, monkeypatch, capsys):
    words = ["--config", "serve.yaml", "--port", "81", "--host", "127.0.0.1", "--prompt", "only=prompts/llama-own-0"]
    with served(monkeypatch, *words) as (client, told):
        assert (told["host"], told["port"]) == ("127.0.0.1", 81)
        names = [one["id"] for one in client.get("/v1/models", headers=bearer("reader-0123456789")).json()["data"]]
        assert names == ["llama", "only", "by-hand", "mood", "tone", "both", "live"]


# A server's folder


def test_a_servers_folder_is_served_as_it_was_left(here, monkeypatch, capsys):
    before = {path: path.read_bytes() for path in Path("served").rglob("*") if path.is_file()}
    prompts = [softprompt.load_prompt(f"prompts/{name}") for name in ("llama-own-0", "llama-own-1", "llama-sst2")]
    first, second, by_hand = (prompt.identity for prompt in prompts)
    values = [{"values_hash": prompt.sha256} for prompt in prompts]
    moods = {"length": 3, "task": "own", "labels": ["glad", "cross"], "dev_metrics": {"f1": 0.0}, "scoring": "rank"}
    moods["fields"] = ["text"]
    sst2 = {"length": 4, "task": "glue/sst2", "labels": ["negative", "positive"], "dev_metrics": {"accuracy": 0.5}}
    sst2["fields"] = ["sentence"]
    words = ["--model", "./llama", "--prompts-dir", "served", "--dtype", "float32"]
    with served(monkeypatch, *words) as (client, _):
        assert client.get("/v1/prompts").json() == {
            "base": "llama",
            "prompts": [
                {"name": "by-hand", "versions": [{"prompt_hash": by_hand, "scoring": "rank", **values[2], **sst2}]},
                {
                    "name": "mood",
                    "versions": [
                        {"prompt_hash": first, **values[0], **moods},
                        {"prompt_hash": second, **values[1], **moods},
                    ],
                },
                {"name": "tone", "versions": [{"prompt_hash": first, **values[0], **moods}]},
            ],
            "ensembles": [{"name": "both", "members": ["tone", "mood"], "fields": ["text"]}],
            "aliases": [{"name": "live", "targets": {f"mood@{first[:12]}": 75.0, "both": 25.0}}],
        }
        kinds = {one["id"]: one["kind"] for one in client.get("/v1/models").json()["data"]}
        assert kinds == {
            "llama": "base", "by-hand": "prompt", "mood": "prompt", "tone": "prompt", "both": "ensemble",
            "live": "alias",
        }  # fmt: skip
        for name, prompts in (("mood", [second]), ("mood@5c37cc68", [first]), ("both", [first, second])):
            (result,) = client.post("/v1/classify", json={"model": name, "input": LINE, "finished": True}).json()[
                "results"
            ]
            shares = [{first: 0.00064, second: 0.001024}[prompt] for prompt in prompts]
            assert result["label"] == "glad"
            assert result["probabilities"]["cross"] == pytest.approx(sum(shares) / len(shares), abs=1e-5)
            votes = [vote["prompt_hash"] for vote in result["votes"] or [result]]
            assert votes == prompts
        users = {  # 75 of 100 go to the older version; which, the user's name says
            user: client.post(
                "/v1/classify", json={"model": "live", "input": LINE, "finished": True, "user": user}
            ).json()
            for user in ("ann", "bob", "gus", "hal")
        }
        split = {user: answer["results"][0]["votes"] is None for user, answer in users.items()}
        assert split == {"ann": True, "bob": True, "gus": False, "hal": False}
    for beside in (".softprompt.lock", ".registry.json.ballast"):
        Path(f"served/{beside}").unlink()
    assert {path: path.read_bytes() for path in Path("served").rglob("*") if path.is_file()} == before
