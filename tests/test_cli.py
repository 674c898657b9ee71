"""The command line as a user meets it: what each command writes, every error line, and how it stops."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch
from conftest import make_llama, make_t5, make_tokenizer

import softprompt
from softprompt.answering.evaluation import SCORINGS
from softprompt.answering.rows import read_rows
from softprompt.base import terminal
from softprompt.base.files import held
from softprompt.base.setting import settings_of
from softprompt.cli import command_line as cli
from softprompt.cli import options
from softprompt.cli import train as train_command
from softprompt.models.loading import dequantised_folder, load
from softprompt.models.text import default_format
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.tasks.own_file import METRICS
from softprompt.training.optimizers import OPTIMIZERS
from softprompt.training.presets import PRESETS
from softprompt.training.run import train
from softprompt.training.settings import RunConfig

ROOT = Path(__file__).parent.parent
ROWS = ROOT / "tests" / "fixtures" / "v0.1.0" / "rows" / "compare.jsonl"
OWN = ["--inputs", "text: {text}", "--targets", "{label}", "--labels", "good,bad"]
SHORT = ["--steps", "6", "--evaluate-every", "3", "--batch-size", "4", "--prompt-length", "4", "--learning-rate", "0.1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny Llama and a tiny T5, as transformers saves them."""
    folder = tmp_path_factory.mktemp("models")
    for kind, model in (("llama", make_llama()), ("t5", make_t5())):
        model.save_pretrained(folder / kind)
        make_tokenizer(bos=kind == "llama").save_pretrained(folder / kind)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models):
    """A working folder with `llama`, `t5`, `train.jsonl` and `dev.jsonl` in it."""
    for kind in ("llama", "t5"):
        (tmp_path / kind).symlink_to(models / kind)
    for split, count in (("train", 40), ("dev", 12)):
        records = [
            {"text": f"a {split} film that is {'warm' if i % 2 else 'dull'} {i}", "label": "good" if i % 2 else "bad"}
            for i in range(count)
        ]
        write(tmp_path / f"{split}.jsonl", records)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def training(*words, model="./llama"):
    return ["train", "--model", model, "--data", "train=train.jsonl", "dev=dev.jsonl", *OWN, *SHORT, *words]


@pytest.fixture
def prompts(here):
    """Three prompts of random numbers for `llama`, as training would save them."""
    lm = load("./llama")
    form = default_format(lm, max_target_length=8, inputs_template="text: {text}", targets_template="{label}")
    for seed in range(3):
        card = Card(
            model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=False, width=lm.width,
            task="own", labels=("good", "bad"), text=form.to_json(), selection="held-out", step=5, seed=seed,
            recipe={"scoring": "rank", "selection_score": seed / 10}, dev_metrics={"accuracy": 0.5},
        )  # fmt: skip
        values = torch.randn(3, lm.width, generator=torch.Generator().manual_seed(seed))
        save_prompt(SoftPrompt(values, card), here / f"p{seed}")
    return ["p0", "p1", "p2"]


def type_in(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@contextmanager
def in_a_process(*words, **options):
    """The command line in a process of its own, stderr and stdout as text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "softprompt", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def done_in_a_process(*words, **options):
    """What a finished process printed: its exit code, stdout and stderr."""
    with in_a_process(*words, **options) as process:
        out, err = process.communicate(timeout=200)
        return process.returncode, out, err


def imported_by(code):
    """Which of the heavy libraries are imported after running the code in a new process."""
    told = "import sys; print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{told}"], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.splitlines()[-1]


def test_importing_the_package_imports_nothing_heavy():
    assert imported_by("import softprompt; assert 'train' in dir(softprompt)") == "[]"


def test_asking_for_help_imports_nothing_heavy():
    assert imported_by("from softprompt import cli; cli.main(['--help']); cli.main(['train', '--help'])") == "[]"


def test_help_comes_at_once():
    started = time.monotonic()
    code, out, _ = done_in_a_process("--help")
    # Wanted is 0.5 s, which benchmarks/startup.py measures; other processes share the processor of a test.
    assert time.monotonic() - started < 1.5
    assert code == 0
    assert "Teach one frozen language model many tasks by prompt tuning" in out


def test_public_names_are_few_sorted_and_all_there():
    names = softprompt.__all__
    assert names == sorted(names) and len(names) < 25
    for name in names:
        assert getattr(softprompt, name).__doc__, name
    assert set(names) <= set(dir(softprompt))


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'softprompt' has no attribute 'trane'"):
        softprompt.trane  # noqa: B018


def test_the_version_is_the_packages(run):
    assert run("--version") == (0, f"softprompt {version('softprompt')}\n", "")


def test_an_unknown_command_offers_the_nearest(run):
    assert run("trian") == (2, "", "softprompt: no command named 'trian'; did you mean 'train'?\n")
    code, _, err = run("zzz")
    assert (code, err) == (
        2,
        "softprompt: no command named 'zzz'; there are "
        "train, eval, predict, serve, convert, compare, experiment, report, rerun, inspect, tasks, params, vocabulary, "
        "pretrain, adapt\n",
    )


def test_no_command_is_one_line(run):
    code, _, err = run()
    assert (code, err) == (2, "softprompt: the following arguments are required: COMMAND; see softprompt --help\n")


def test_an_unknown_flag_offers_the_nearest(run):
    code, _, err = run("train", "--lerning-rate", "3")
    assert code == 2
    assert err == (
        "softprompt train: unknown argument '--lerning-rate'; did you mean '--learning-rate'?; "
        "see softprompt train --help\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--steps", "many"], "argument --steps: wanted a whole number, got 'many'"),
        (["--seeds", "0,x"], "argument --seeds: wanted whole numbers with commas between, got '0,x'"),
        (["--learning-rate", "fast"], "argument --learning-rate: wanted numbers with commas between, got 'fast'"),
        (["--preset", "papr"], "argument --preset: invalid choice: 'papr' (choose from"),
    ],
)
def test_a_flag_of_the_wrong_kind_is_one_line(run, words, line):
    code, _, err = run("train", *words)
    assert code == 2
    assert err.startswith(f"softprompt train: {line}") and err.count("\n") == 1


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_examples(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"softprompt {command}" in out.split("examples:")[1]


def test_the_examples_in_the_help_are_understood(here):
    import shlex

    for module, _ in cli.COMMANDS.values():
        examples = import_module(module).__doc__.split("\nexamples:\n")[1]
        for line in examples.replace("\\\n", "").splitlines():
            words = shlex.split(line.split("|")[-1])
            assert words[0] == "softprompt"
            assert cli._parsed(words[1:]).command == words[1]


def test_every_setting_of_a_run_is_a_flag():
    assert sorted(settings_of(RunConfig)) == sorted(field.name for field in fields(RunConfig))


def test_defaults_in_the_help_are_those_of_the_run(run):
    _, out, _ = run("train", "--help")
    text = " ".join(out.split())
    for field in fields(RunConfig):
        flag = settings_of(RunConfig)[field.name]
        if flag.shown and isinstance(field.default, str):
            assert flag.shown.split(":")[0] == field.default, field.name
        elif flag.shown:
            assert field.default is None and not flag.shown[0].isdigit(), field.name
    for shown in ("result rows, checkpoint and logs (default: runs/prompt)", "trained together (default: 0)",
                  "where all other numbers come from (default: fast)", "checkpoint in --out (default: no)",
                  "where longer ones are cut (default: 512)"):  # fmt: skip
        assert shown in text


def test_choices_in_the_help_are_those_of_the_library():
    choices = {name: setting.choices for name, setting in settings_of(RunConfig).items()}
    assert choices["preset"] == tuple(PRESETS)
    assert choices["metric"] == tuple(METRICS)
    assert choices["optimizer"] == tuple(OPTIMIZERS)
    assert sorted(choices["scoring"]) == sorted(SCORINGS)


def test_loading_a_model_leaves_the_process_as_it_is_and_commands_set_it_up(models, monkeypatch):
    called = []
    for place in ("softprompt.models.loading.keep_freed_memory", "softprompt.models.keep_freed_memory"):
        monkeypatch.setattr(place, lambda: called.append("keep_freed_memory"))
    load(str(models / "llama"))
    assert not called
    options.set_up(None)
    assert len(called) == 1


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (None, None),
        (["folder"], "folder"),
        (["a=x.jsonl,y.csv", "b=z.jsonl"], {"a": ["x.jsonl", "y.csv"], "b": ["z.jsonl"]}),
        (["train.jsonl"], {"test": ["train.jsonl"]}),
    ],
)
def test_data_is_a_folder_or_files_by_split(here, words, wanted):
    assert options.read_data(words, split="test") == wanted


def test_a_dev_file_of_your_own_stands_beside_the_training_file(here):
    assert options.read_data(["train.jsonl"], split="train", dev="a,b") == {"train": ["train.jsonl"], "dev": ["a", "b"]}


def test_training_gives_the_prompt_that_python_gives(run, here):
    code, out, err = run(*training("--out", "ours", "--seeds", "3"))
    assert code == 0, err
    config = RunConfig(
        model="./llama", data={"train": ["train.jsonl"], "dev": ["dev.jsonl"]}, out=here / "theirs",
        inputs="text: {text}", targets="{label}", labels=("good", "bad"), steps=6, evaluate_every=3, batch_size=4,
        prompt_length=(4,), learning_rate=(0.1,), seeds=(3,),
    )  # fmt: skip
    (theirs,) = train(config)
    ours = load_prompt(here / "ours")
    assert ours.sha256 == theirs.prompt.sha256
    rows = out.splitlines()
    assert rows[0].split() == ["prompt", "best", "step", "selection", "score", "dev", "accuracy"]
    assert rows[1].split() == [
        "ours",
        str(theirs.fitted.step),
        f"{theirs.fitted.score:.4f}",
        f"{theirs.dev.metrics['accuracy']:.4f}",
    ]
    assert rows[-1] == "next: softprompt predict --model ./llama --prompt ours"


def test_training_tells_its_steps_scores_and_stages(run, here):
    _, _, err = run(*training("--out", "out"))
    lines = err.splitlines()
    assert re.fullmatch(r"\./llama: 0\.0 million frozen parameters, \w+ on cpu", lines[0])
    pace = r"loss [\d.]+, [\d,.]+ rows/s, [\d,]+ tokens/s, .* left"
    assert any(re.fullmatch(rf"step 1 of 6: {pace}", line) for line in lines), err
    scored = [line for line in lines if re.match(r"step \d: own p4 lr0\.1 seed0: loss [\d.]+, score [\d.]+", line)]
    assert [line.split(":")[0] for line in scored] == ["step 3", "step 6"]
    assert scored[0].endswith(" (best)")
    assert "score own: 12 rows" in lines


def test_the_next_command_after_several_seeds_is_their_ensemble(run, here):
    code, out, _ = run(*training("--out", "out", "--seeds", "0,1"))
    _, scores, _ = out.split("\n\n")  # of the prompts, over their seeds, and what is next
    dev = [100 * row.value for row in read_rows(here / "out" / "results.jsonl")]
    mean = f"{fmean(dev):.1f}"
    assert scores.splitlines()[1].split() == ["own", "2", "accuracy", mean, mean, "±", f"{stdev(dev):.1f}"]
    words = out.splitlines()[-1].removeprefix("next: softprompt ").split()
    assert code == 0 and words[:2] == ["eval", "--ensemble"]
    code, out, err = run(*words)
    assert code == 0, err
    assert [line.split()[0] for line in out.split("\n\n")[0].splitlines()[2:]] == [
        "out/own-seed-0",
        "out/own-seed-1",
        "average",
        "best",
        "chosen",
        "ensemble",
    ]


def test_logs_hold_the_curve(run, here):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, _, err = run(*training("--out", "out"))
    assert code == 0
    logs = EventAccumulator(str(here / "out" / "logs"))
    logs.Reload()
    lines = [json.loads(line) for line in (here / "out" / "curve.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * len({line["name"] for line in lines}) == 24  # the prompt and its three folds
    curve = [line for line in lines if line["name"] == "own p4 lr0.1 seed0"]
    assert [line["step"] for line in curve] == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "score", "learning_rate"):
        wanted = [(line["step"], pytest.approx(line[name])) for line in curve if name in line]
        assert [(event.step, event.value) for event in logs.Scalars(f"{name}/own_p4_lr0.1_seed0")] == wanted
    told = re.findall(r"step (\d): own p4 lr0\.1 seed0: loss [\d.]+, score ([\d.]+)", err)
    scored = [(str(line["step"]), f"{line['score']:.4f}") for line in curve if "score" in line]
    assert scored == told and len(told) == 2


def test_logs_go_nowhere_or_to_trackio_where_that_is_asked_for(run, here, monkeypatch):
    code, _, _ = run(*training("--out", "none", "--log-to", "none"))
    assert code == 0
    assert (here / "none" / "curve.jsonl").exists() and not (here / "none" / "logs").exists()
    monkeypatch.setitem(sys.modules, "trackio", None)  # not installed
    code, out, err = run(*training("--out", "trackio", "--log-to", "trackio"))
    assert (code, out, err) == (
        2, "", "softprompt train: --log-to trackio needs trackio, which is not installed; pip install trackio\n"
    )  # fmt: skip
    assert not (here / "trackio").exists()


class Trackio:
    """A stand-in for the part of trackio's interface that is used."""

    def __init__(self, *, full=False):
        self.full, self.asked, self.logged, self.finished = full, [], [], 0

    def init(self, **asked):
        print("* Trackio project initialized")
        self.asked.append(asked)
        return self

    def log(self, values, step):
        if self.full:
            raise RuntimeError("database or disk is full")
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


def test_trackio_gets_the_curve_and_a_resumed_run_goes_on_there(run, here, monkeypatch):
    trackio = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    code, out, err = run(*training("--out", "out", "--log-to", "trackio"))
    assert code == 0 and "Trackio" not in out and "* Trackio project initialized" in err
    curve = [json.loads(line) for line in (here / "out" / "curve.jsonl").read_text().splitlines()]
    names = ("loss", "score", "learning_rate")
    assert trackio.logged == [
        (line["step"], {f"{name}/{line['name']}": line[name] for name in names if name in line}) for line in curve
    ]
    wanted = {"project": "softprompt", "name": "out", "resume": "never", "embed": False}
    assert (trackio.asked, trackio.finished) == ([wanted], 1)
    with terminal.Display(Path("out/logs"), "trackio") as display:
        display.log({"step": 4, "name": "own", "loss": 1.0})
    assert trackio.asked[1]["resume"] == "allow"


def test_logs_that_cannot_be_written_end_no_training(run, here, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", Trackio(full=True))
    code, _, err = run(*training("--out", "out", "--log-to", "trackio"))
    assert code == 0 and err.count("no more logs to trackio: database or disk is full\n") == 1


def test_a_prompt_is_not_trained_over_by_accident(run, here, prompts):
    before = load_prompt("p0").sha256
    assert run(*training("--out", "p0")) == (
        2,
        "",
        "softprompt train: p0 holds a prompt already; give another --out, or --overwrite\n",
    )
    assert load_prompt("p0").sha256 == before
    assert run(*training("--out", "p0", "--overwrite"))[0] == 0
    assert load_prompt("p0").sha256 != before
    code, _, err = run(*training("--out", "."))
    assert (code, err) == (2, "softprompt train: . holds a prompt already; give another --out, or --overwrite\n")


def test_an_unfinished_run_is_not_started_over_by_accident(run, here):
    (here / "out").mkdir()
    (here / "out" / "checkpoint.safetensors").write_bytes(b"")
    code, _, err = run(*training("--out", "out"))
    assert (code, err) == (
        2,
        "softprompt train: out holds an unfinished run; --resume goes on with it, --overwrite starts again\n",
    )


def test_resuming_where_a_prompt_is_but_no_checkpoint_does_not_train_over_it(run, here, prompts):
    assert run(*training("--out", "p0", "--resume")) == (
        2,
        "",
        "softprompt train: p0 holds a prompt already; give another --out, or --overwrite\n",
    )


def test_prompts_of_the_run_that_is_overwritten_do_not_stay_beside_the_new_ones(run, here, prompts):
    """And nothing else goes: no folder that has more in it, and none that this program would have named otherwise."""
    assert run(*training("--out", "out", "--seeds", "0,1,2"))[0] == 0
    shutil.copytree("p0", "out/other-seed-0")
    (here / "out" / "own-seed-1" / "notes.txt").write_text("mine")
    code, _, err = run(*training("--out", "out", "--seeds", "3,4", "--overwrite"))
    assert code == 0
    assert sorted(path.name for path in (here / "out").glob("*-seed-*")) == [
        "other-seed-0", "own-seed-1", "own-seed-3", "own-seed-4",
    ]  # fmt: skip
    assert [line for line in err.splitlines() if line.startswith("removed")] == [
        "removed out/own-seed-0, a prompt of an earlier run",
        "removed out/own-seed-2, a prompt of an earlier run",
    ]


def test_stopped_before_training_begins_is_told_and_leaves_all_as_it_was(run, here, monkeypatch):
    (here / "out").mkdir()
    (here / "out" / "checkpoint.safetensors").write_bytes(b"of the run before")

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("softprompt.training.run.prepare", stopped)
    code, _, err = run(*training("--out", "out", "--overwrite"))
    assert code == 130
    assert err.splitlines()[-1] == "softprompt train: stopped before training began; out is as it was"
    assert (here / "out" / "checkpoint.safetensors").read_bytes() == b"of the run before"


def test_resuming_nothing_starts_and_says_so(run, here):
    code, _, err = run(*training("--out", "out", "--resume"))
    assert code == 0
    assert "out holds no checkpoint to go on from; starting at step 1" in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "which model? give --model with a hub id, a local folder, a GGUF file, smollm2-135m or bundled"),
        (
            ["--model", "m"],
            "which task? give --task (see `softprompt tasks`), or --inputs and --targets for your files",
        ),
        (["--model", "m", *OWN], "where are your files? give --data train=FILE[,FILE] dev=FILE"),
        (["--model", "m", "--task", "glue/sst3"], "no task named 'glue/sst3'; did you mean 'glue/sst2'?"),
        (
            ["--model", "m", "--task", "rte", "--inputs", "{a}", "--data", "d"],
            "give either task names, or templates for inputs and targets of your own files",
        ),
        (["--model", "m", "--task", "cb", "--data", "d", "--dev", "f"], "--dev goes with --data train=FILE"),
        (["--model", "m", "--task", "cb", "--data", "d", "train=f"], "--data takes one folder, or files by split"),
        (["--model", "./none", "--task", "cb"], "no folder ./none; give a local folder, a GGUF file, a hub id or"),
        (["--model", "m", "--task", "cb", "--threads", "0"], "--threads is 0, but must be 1 or more"),
        (["--model", "m", "--task", "cb", "--minutes", "0"], "minutes is 0.0, but must be above 0"),
    ],
)
def test_what_training_cannot_begin_with_is_one_line(run, here, words, line):
    code, out, err = run("train", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"softprompt train: {line}") and err.count("\n") == 1


def test_a_bad_record_is_one_line_with_its_place(run, here):
    with open("train.jsonl", "a") as file:
        file.write('{"text": "fine", "label": "god"}\n')
    code, _, err = run(*training("--out", "out"))
    assert code == 2
    assert err.splitlines()[-1] == (
        "softprompt train: train.jsonl, line 41: unknown label 'god'; the labels are good, bad; did you mean 'good'?"
    )
    assert not (here / "out").exists()


def test_debugging_shows_the_traceback(here, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_DEBUG", "1")
    with pytest.raises(ValueError, match="which model"):
        cli.main(["train"])


def test_a_disk_that_is_full_from_the_start_is_told_before_the_first_step(run, here, monkeypatch):
    import resource

    monkeypatch.setattr(sys, "argv", ["softprompt"])

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        code, _, err = run(*training("--out", "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2
    assert err.splitlines()[-1] == (
        "softprompt train: could not write out/checkpoint.safetensors (File too large); nothing was trained; "
        "free some space, or give another folder"
    )
    assert "step 1" not in err
    assert not (here / "out").exists()


STUDIED = ["--data", "data", "--out", "out", "--rows", "rows.jsonl"]
PRETRAINED = ["--corpus", "corpus.txt", "--steps", "1", "--out", "out"]
WRITERS = {
    "train": training("--out", "out"),
    "predict": ["predict", "--prompt", "p0", "--input", "dev.jsonl", "--output", "out"],
    "eval": ["eval", "--prompt", "p0", "--model", "./llama", "--data", "dev=dev.jsonl", "--errors", "out"],
    "serve": ["serve", "--prompt", "p0", "--port", "0", "--prompts-dir", "out"],
    "convert to peft": ["convert", "p0", "--to", "peft", "--out", "out"],
    "convert to t5x": ["convert", "p0", "--to", "t5x", "--out", "out"],
    "convert to tgis": ["convert", "p0", "--to", "tgis", "--out", "out"],
    "convert to vocabulary": ["convert", "p0", "--to", "vocabulary", "--model", "./llama", "--out", "out"],
    "compare": ["compare", "--model", "./llama", "--task", "glue/sst2", *STUDIED],
    "experiment": ["experiment", "figure-3a", "--models", "./llama", *STUDIED],
    "report": ["report", "rows.jsonl", "--out", "out"],
    "rerun": ["rerun", "rows.jsonl:1", "--out", "out"],
    "vocabulary": ["vocabulary", "--corpus", "corpus.txt", "--out", "out"],
    "pretrain": ["pretrain", "--size", "micro", "--vocabulary", "t5", *PRETRAINED],
    "adapt": ["adapt", "--model", "t5", *PRETRAINED],
}
FILES = {"predict", "eval", "convert to t5x", "convert to vocabulary"}  # the last a folder that must not be there


@pytest.mark.parametrize("name", WRITERS)
def test_where_one_command_writes_a_second_is_told_who_does(name, run, here, prompts):
    (here / "corpus.txt").write_text("the sea is warm\n")
    shutil.copy(ROWS, "rows.jsonl")
    with held(Path("out"), is_file=name in FILES), ThreadPoolExecutor() as pool:
        code, _, err = pool.submit(run, *WRITERS[name]).result()
    assert code == 2
    told = (
        rf"softprompt {WRITERS[name][0]}: out is being written by process {os.getpid()} \(.*\); wait for its end, or gi"
    )
    assert re.match(told, err.splitlines()[-1]), err


@pytest.mark.parametrize("name", sorted(set(WRITERS) - FILES))
def test_a_file_in_the_place_of_a_folder_is_told_and_stays(name, run, here, prompts):
    (here / "corpus.txt").write_text("the sea is warm\n")
    shutil.copy(ROWS, "rows.jsonl")
    (here / "out").write_text("mine")
    code, _, err = run(*WRITERS[name])
    told = "out is a file, and what comes there is a folder; give another name"
    assert (code, err.splitlines()[-1]) == (2, f"softprompt {WRITERS[name][0]}: {told}")
    assert (here / "out").read_text() == "mine"


def test_an_estimate_is_printed_and_nothing_written(run, here):
    code, out, _ = run(*training("--out", "out", "--estimate", "--minutes", "3"))
    assert code == 0
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "frozen model",
        "peak memory",
        "one step",
        "steps",
        "evaluations",
        "dev set",
        "--minutes",
        "total",
    ]
    assert "training ends after 3 min 0 s at the latest" in out
    assert not (here / "out").exists()


def test_an_interrupted_run_goes_on_to_the_same_prompt(run, here, one_thread):
    """Ctrl-C in a real process: code 130, one line, and --resume ends where an uninterrupted run does."""
    words = [*training("--out", "stopped"), "--steps", "200", "--evaluate-every", "100", "--seeds", "0"]
    read = []
    with in_a_process(*words, cwd=here) as process:
        for line in process.stderr:
            read.append(line)
            if line.startswith("step 1 of 200"):
                break
        process.send_signal(signal.SIGINT)
        read += process.communicate(timeout=120)[1].splitlines()
        assert process.returncode == 130, read
    stopped = r"softprompt train: stopped at step (\d+) of 200; the same command with --resume goes on from there"
    assert re.fullmatch(stopped, read[-1]), read
    assert not any("Traceback" in line for line in read)
    assert not (here / "stopped" / "adapter_config.json").exists()
    at = words.index("stopped")
    assert done_in_a_process(*words, "--resume", cwd=here)[0] == 0
    assert run(*words[:at], "whole", *words[at + 1 :])[0] == 0
    assert load_prompt(here / "stopped").sha256 == load_prompt(here / "whole").sha256


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_a_second_time_there_is_no_traceback_and_sigterm_says_how_to_go_on(here, number):
    words = [*training("--out", "stopped"), "--steps", "4000", "--evaluate-every", "4000", "--seeds", "0"]
    with in_a_process(*words, cwd=here) as process:
        for line in process.stderr:
            if line.startswith("step 1 of 4000"):
                break
        process.send_signal(number)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=120)[1].splitlines()
    assert process.returncode in (128 + number, 130), told  # of two that wait at once Python hears SIGINT first
    assert re.search(r"stopped at step \d+ of 4000; the same command with --resume goes on from there$", told[-1]), told


def test_a_second_ctrl_c_ends_what_does_not_end_by_the_first(here):
    script = (
        "import sys, time; from softprompt.cli import command_line\n"
        "def run(args):\n"
        "    try:\n        print('now', flush=True); time.sleep(60)\n"
        "    except KeyboardInterrupt:\n        print('again', flush=True); time.sleep(60)\n"
        "from softprompt.cli import tasks; tasks.run = run; sys.argv = ['softprompt', 'tasks']\n"
        "sys.exit(command_line.main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        for line in ("now\n", "again\n"):
            assert process.stdout.readline() == line
            time.sleep(1.2)  # sooner is the same one, sent twice
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == "\nsoftprompt: stopped at once\n"
    assert process.returncode == 130


def test_a_full_standard_output_is_one_line_and_code_2(here, prompts):
    words = [
        sys.executable,
        "-m",
        "softprompt",
        "predict",
        "--model",
        "./llama",
        "--prompt",
        "p0",
        "--input",
        "dev.jsonl",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=200)
    told = "could not write to standard output, behind 0 whole rows: No space left on device"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"softprompt predict: {told}")


RECIPE = """
model: ./llama
data: {train: train.jsonl, dev: [dev.jsonl]}
inputs: "text: {text}"
targets: "{label}"
labels: [good, bad]
prompt-length: 4
learning_rate: [0.1, 0.2]
steps: 6
chat: false
patience: null
"""


def configured(*words):
    return train_command.run_config(cli._parsed(["train", *words]))


def test_flags_override_the_recipe(here):
    Path("r.yaml").write_text(RECIPE)
    config = configured("--config", "r.yaml", "--steps", "9", "--seeds", "1,2", "--chat")
    assert (config.steps, config.seeds, config.chat) == (9, (1, 2), True)
    assert (config.prompt_length, config.learning_rate, config.labels) == ((4,), (0.1, 0.2), ("good", "bad"))
    assert config.data == {"train": ["train.jsonl"], "dev": ["dev.jsonl"]}


def test_a_dev_file_goes_with_the_training_file_of_a_recipe(run, here):
    Path("r.yaml").write_text(RECIPE)
    assert configured("--config", "r.yaml", "--dev", "d.jsonl").data == {"train": ["train.jsonl"], "dev": ["d.jsonl"]}
    Path("r.yaml").write_text("model: m\ntask: cb\ndata: folder\n")
    _, _, err = run("train", "--config", "r.yaml", "--dev", "d.jsonl")
    assert err.startswith("softprompt train: --dev goes with --data train=FILE; the official files in a folder")


def test_a_recipe_may_name_a_folder_and_several_tasks(here):
    Path("r.yaml").write_text("model: m\ntask: [glue/rte, cb]\ndata: folder\n")
    config = configured("--config", "r.yaml")
    assert (config.task, config.data) == (("glue/rte", "cb"), "folder")


def test_tasks_may_be_repeated_or_stand_between_commas():
    assert configured("--model", "m", "--task", "a,b", "--task", "c").task == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stepz: 3", "r.yaml: no setting named 'stepz'; did you mean 'steps'?"),
        ("steps: many", "r.yaml: steps is 'many': wanted a whole number, got 'many'"),
        ("chat: 3", "r.yaml: chat is 3, but must be true or false"),
        ("preset: papr", "r.yaml: preset is 'papr', but must be one of paper, google-code, fast"),
        ("data: 3", "r.yaml: data is 3, but must be a folder, or files under train, dev and test"),
        (
            "data: {train: 3}",
            "r.yaml: data is {'train': 3}, but must be a folder, or files under train, dev and test",
        ),
        ("out: [a]", "r.yaml: out is ['a']: wanted text, got ['a']"),
        ("just words", "r.yaml holds no settings; write a line for each, such as 'steps: 500'"),
        ("a: [1\nb: 2", "r.yaml, line 2: not YAML (expected ',' or ']', but got ':')"),
    ],
)
def test_a_bad_recipe_is_one_line(run, here, text, line):
    Path("r.yaml").write_text(text)
    assert run("train", "--config", "r.yaml") == (2, "", f"softprompt train: {line}\n")


def test_a_recipe_that_is_not_there_is_one_line(run, here):
    assert (
        run("train", "--config", "r.yaml")[2]
        == "softprompt train: cannot read the recipe r.yaml: No such file or directory\n"
    )


def test_a_table_of_prompts_average_best_chosen_and_ensemble(run, prompts):
    code, out, err = run("eval", "--model", "./llama", "--prompt", *prompts, "--ensemble", "--data", "dev=dev.jsonl")
    assert code == 0, err
    scores, *wrong = out.split("\n\n")
    assert [part.split()[0] for part in wrong] == [*prompts, "ensemble"]
    head, columns, *rows = scores.splitlines()
    assert head == "own dev: 12 examples from dev.jsonl; 12 examples scored, labels ranked"
    assert columns.split() == ["prompt", "accuracy", "illegal"]
    values = [float(row.split()[-2]) for row in rows]
    assert [row.split()[0] for row in rows] == [*prompts, "average", "best", "chosen", "ensemble"]
    assert values[3] == pytest.approx(sum(values[:3]) / 3, abs=1e-4)
    assert values[4] == max(values[:3])
    assert rows[5].startswith("chosen by selection: p2 ") and values[5] == values[2]


def test_eval_tells_where_it_is_wrong(run, prompts):
    words = ["--model", "./llama", "--prompt", "p0", "--data", "dev=dev.jsonl", "--errors", "wrong.jsonl"]
    code, out, err = run("eval", *words)
    assert code == 0, err
    told = json.loads(run("eval", *words, "--json")[1])["prompts"][0]
    confusion = told["confusion"]
    assert list(confusion) == ["good", "bad"] and sum(sum(row.values()) for row in confusion.values()) == 12
    hits = sum(confusion[label].get(label, 0) for label in confusion)
    assert told["metrics"]["accuracy"] == pytest.approx(hits / 12)
    for label in confusion:
        score = told["labels"][label]
        assert score["count"] == 6 and score["recall"] == pytest.approx(confusion[label].get(label, 0) / 6)
    wrong = [json.loads(line) for line in Path("wrong.jsonl").read_text().splitlines()]
    assert len(wrong) == 12 - hits and set(wrong[0]) == {"prompt", "id", "inputs", "targets", "prediction", "log_prob"}
    assert all(row["prediction"] != row["targets"] and row["prompt"] == "p0" for row in wrong)
    taken = max((n, a, b) for a, row in confusion.items() for b, n in row.items() if a != b)
    assert f"most often wrong: {taken[1]} as {taken[2]} ({taken[0]})" in out


def test_json_and_rows_say_the_same_as_the_table(run, prompts):
    words = ["--model", "./llama", "--prompt", *prompts, "--data", "dev=dev.jsonl", "--limit", "5"]
    code, out, _ = run("eval", *words, "--json", "--rows", "rows.jsonl", "--ensemble")
    told = json.loads(out)
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert code == 0
    assert [entry["prompt"] for entry in told["prompts"]] == prompts
    assert [entry["metrics"] for entry in told["prompts"]] == [row["metrics"] for row in rows[:3]]
    assert told["ensemble"]["value"] == rows[3]["value"]
    assert rows[3]["config"]["prompt_hashes"] == [load_prompt(prompt).identity for prompt in prompts]
    assert rows[3]["config"]["values_hashes"] == [load_prompt(prompt).sha256 for prompt in prompts]
    assert (told["num_examples"], told["chosen"]) == (5, "p2")


def test_rows_that_cannot_be_written_are_one_line(run, prompts):
    words = ["--model", "./llama", "--prompt", "p0", "--data", "dev=dev.jsonl", "--rows", "dev.jsonl/rows.jsonl"]
    code, out, err = run("eval", *words)
    assert (code, out.splitlines()[0].split(":")[0]) == (2, "own dev")
    assert err.splitlines()[-1].startswith("softprompt eval: could not write to dev.jsonl")


def test_written_answers_report_their_illegal_rate(run, prompts):
    words = ["--model", "./llama", "--prompt", "p0", "--data", "dev=dev.jsonl", "--scoring", "generate"]
    code, out, _ = run("eval", *words)
    assert code == 0
    assert "answers generated" in out.splitlines()[0]
    assert float(out.splitlines()[2].split()[-1]) == 1.0, "a random prompt writes no label"


def test_a_prompt_of_another_model_is_one_line(run, prompts):
    code, out, err = run("eval", "--model", "./t5", "--prompt", "p0", "--data", "dev=dev.jsonl")
    assert (code, out) == (2, "")
    assert re.fullmatch(
        r"softprompt eval: the prompt was trained for \./llama \(.*\), but \./t5 \(.*\) is loaded; load \./llama, "
        r"or train a new prompt for \./t5\n",
        err,
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--prompt", "nowhere"], "there is no prompt folder nowhere; give one that `softprompt train` wrote, or hf:"),
        (["--prompt", "p0", "--inputs", "{a}"], "your own files need both --inputs and --targets, and no task name"),
        (
            ["--prompt", "p0", "--model", "./llama", "--data", "dev=dev.jsonl", "--split", "validation"],
            "no split named 'validation'; there are train, dev, test; did you mean 'dev'?",
        ),
        (["--prompt", "p0", "--model", "./llama", "--data", "dev=none.jsonl"], "no file none.jsonl"),
    ],
)
def test_what_cannot_be_scored_is_one_line(run, prompts, words, line):
    code, out, err = run("eval", *words)
    assert (code, out) == (2, "")
    assert line in err and err.count("\n") == 1


def test_a_prompt_trained_on_packed_weights_is_used_on_them_if_asked(run, here):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    make_llama(64).save_pretrained(here / "wide")
    make_tokenizer(bos=True).save_pretrained(here / "wide")
    code, _, err = run(*training("--out", "out", "--quantize", "4bit", model="./wide"))
    assert code == 0, err
    assert load_prompt("out").card.recipe["quantize"] == "4bit"
    words = ["eval", "--prompt", "out", "--data", "dev=dev.jsonl"]
    assert "trained on" not in run(*words, "--quantize", "4bit", "--rows", "rows.jsonl")[2]
    assert json.loads((here / "rows.jsonl").read_text())["config"]["quantize"] == "4bit"
    _, _, err = done_in_a_process(*words, cwd=here)
    note = "note: out was trained on 4bit weights, and ./wide has unpacked ones here, so it may score otherwise; "
    assert f"{note}for the same, give --quantize 4bit\n" in err


def test_a_warning_is_a_note_of_one_line(run, prompts, here):
    assert run("convert", "p0", "--to", "tgis", "--out", "tgis")[0] == 0
    assert run("convert", "tgis", "--to", "peft", "--out", "bare")[0] == 0
    words = ["eval", "--model", "./llama", "--prompt", "bare", "--data", "dev=dev.jsonl", *OWN]
    code, _, err = done_in_a_process(*words, cwd=here)
    assert code == 0
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert notes == [
        "note: the prompt (for an unnamed model) records no model fingerprint, so only its width (16) was checked "
        "against ./llama",
        "note: bare does not record its text format; ./llama's usual one is taken",
    ]
    assert "Warning" not in err and ".py" not in err


def test_a_model_that_is_dequantised_first_says_so(here, monkeypatch, capsys):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(here / "cache"))
    (here / "small.gguf").write_bytes(b"GGUF")
    options.say_if_slow("small.gguf")
    line = f"dequantising small.gguf for the first time; about half a minute, then it is kept in {here / 'cache'}\n"
    assert capsys.readouterr().err == line
    folder = dequantised_folder(Path("small.gguf"))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for source in ("small.gguf", "none.gguf", "./llama", None, "smollm2-135m"):
        options.say_if_slow(source)
    assert capsys.readouterr().err == ""
    (here / "small.gguf").write_bytes(b"GGUG")
    options.say_if_slow("small.gguf")
    assert capsys.readouterr().err == line


def test_lines_and_records_come_out_in_order(run, prompts, monkeypatch):
    type_in(monkeypatch, 'a warm film\n{"text": "a dull film", "id": 7}\n\n{"txt": 1}\n')
    code, out, err = run("predict", "--model", "./llama", "--prompt", *prompts, "--scores")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [list(line) for line in lines] == [
        ["inputs", "prediction", "log_prob", "truncated", "probabilities"],
        ["text", "id", "prediction", "log_prob", "truncated", "probabilities"],
        ["error", "line"],
        ["txt", "error", "line"],
    ]
    assert lines[0]["prediction"] in ("good", "bad")
    assert err.splitlines()[-1] == "2 rows answered, 2 not (their lines hold an error)"


def test_the_input_is_shown_and_is_finished_only_if_that_is_said(run, prompts, monkeypatch):
    seen = []
    for words in ([], ["--finished"]):
        type_in(monkeypatch, "a warm film\n")
        code, out, err = run("predict", "--model", "./llama", "--prompt", "p0", "--show-input", *words)
        assert code == 0, err
        seen.append(json.loads(out)["input_text"])
    assert seen == ["<s>text: a warm film\nanswer:", "<s>a warm film\nanswer:"]


def test_answers_are_utf8_whatever_the_system_writes_to_pipes(prompts, monkeypatch):
    write(Path("in.jsonl"), [{"text": "海 é"}, {"text": "warm"}])
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["predict", "--model", "./llama", "--prompt", "p0", "--input", "in.jsonl"]) == 0
    lines = out.buffer.getvalue().decode().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["海 é", "warm"]


def test_a_file_is_answered_into_a_file(run, prompts):
    words = ["predict", "--model", "./llama", "--prompt", "p0", "--input", "dev.jsonl", "--output", "out.jsonl"]
    code, out, err = run(*words)
    assert (code, out) == (0, "")
    assert err.splitlines()[-1] == "12 rows answered, in out.jsonl"
    lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [
        json.loads(line)["text"] for line in Path("dev.jsonl").read_text().splitlines()
    ]
    code, _, err = run(*words)
    assert code == 2
    assert err.splitlines()[-1] == (
        "softprompt predict: out.jsonl is there already; --overwrite replaces it, or give another name"
    )
    assert run(*words, "--overwrite")[0] == 0
    assert run(*words, "--resume")[2].splitlines()[-1] == "12 rows answered, in out.jsonl"


def test_a_strict_file_stops_at_its_bad_row_and_goes_on_when_it_is_mended(run, prompts):
    good = Path("dev.jsonl").read_text()
    Path("in.jsonl").write_text(good.replace('{"text": "a dev film that is warm 5"', "{", 1))
    words = ["predict", "--model", "./llama", "--prompt", "p0", "--input", "in.jsonl", "--output", "out.jsonl"]
    code, _, err = run(*words, "--strict")
    assert code == 2
    assert "softprompt predict: line 6: not JSON" in err.splitlines()[-1]
    assert len(Path("out.jsonl.partial").read_text().splitlines()) == 5
    Path("in.jsonl").write_text(good)
    code, _, err = run(*words, "--strict", "--resume")
    assert code == 0
    assert len(Path("out.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--resume"], "--resume goes on with a file, so it needs --output"),
        (["--input", "none.csv"], "no file none.csv; name a file of records or of lines, or leave --input for stdin"),
        (
            ["--model", "./llama", "--input", "dev.jsonl", "--finished"],
            "dev.jsonl holds records; name the column of their finished inputs with --inputs-column",
        ),
        (
            ["--model", "./llama", "--scoring", "generate", "--scores"],
            "probabilities come from label scoring; use --scoring rank, or leave --scores out",
        ),
    ],
)
def test_what_cannot_be_predicted_is_one_line(run, prompts, monkeypatch, words, line):
    type_in(monkeypatch, "a\n")
    assert run("predict", "--prompt", "p0", *words) == (2, "", f"softprompt predict: {line}\n")


def test_interrupted_answers_go_on_where_they_stopped(run, prompts, here, monkeypatch):
    words = ["predict", "--model", "./llama", "--prompt", "p0", "--output", "out.jsonl"]
    with in_a_process(*words, cwd=here, stdin=subprocess.PIPE) as process:
        while not (here / "out.jsonl.partial").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().splitlines()
        assert process.wait(timeout=60) == 130
    assert told[-1] == "softprompt predict: stopped; the same command with --resume goes on with out.jsonl"
    type_in(monkeypatch, "text: a\ntext: b\n")
    assert run(*words, "--resume")[0] == 0
    assert len((here / "out.jsonl").read_text().splitlines()) == 2


def test_a_reader_that_goes_away_ends_the_answers_quietly(prompts, here):
    words = ["predict", "--model", "./llama", "--prompt", "p0", "--input", "train.jsonl"]
    with in_a_process(*words, cwd=here) as process:
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(timeout=120) == 141
        assert "Traceback" not in told


def test_a_prompt_goes_round_through_all_forms(run, prompts):
    assert run("convert", "p1", "--from", "peft", "--to", "t5x", "--out", "a.npy") == (
        0,
        "a.npy: 3 prompt tokens of width 16 for a decoder-only model, t5x\n",
        "",
    )
    assert run("convert", "a.npy", "--to", "peft", "--out", "b", "--model", "llama")[0] == 0
    assert load_prompt("b").sha256 == load_prompt("p1").sha256
    assert load_prompt("b").card.model_name == "llama"
    assert not load_prompt("b").card.is_encoder_decoder
    code, _, err = run("convert", "none", "--to", "peft", "--out", "c")
    assert (code, err) == (2, "softprompt convert: there is no file or folder none\n")


def test_a_prompt_is_converted_over_another_only_with_overwrite(run, prompts):
    words = ["convert", "p1", "--to", "peft", "--out", "p0"]
    assert run(*words)[2] == "softprompt convert: p0 holds a prompt already; give another --out, or --overwrite\n"
    assert run(*words, "--overwrite")[0] == 0
    assert load_prompt("p0").sha256 == load_prompt("p1").sha256
    assert run("convert", "p1", "--to", "vocabulary", "--out", "v", "--overwrite")[2] == (
        "softprompt convert: --overwrite is for a prompt alone; --to vocabulary needs a new folder\n"
    )


def test_a_t5x_files_kind_of_model_is_the_models_or_the_flags(run, prompts, here):
    run("convert", "p1", "--to", "t5x", "--out", "a.npy")
    to_tgis = ["convert", "a.npy", "--to", "tgis", "--out"]
    assert run(*to_tgis, "plain")[0] == run(*to_tgis, "told", "--decoder-only")[0] == 0
    assert run(*to_tgis, "model", "--model", "t5")[0] == run(*to_tgis, "llamas", "--model", "./llama")[0] == 0
    files = {
        folder: [file.name for file in (here / folder).glob("[!.]*")] for folder in ("plain", "told", "model", "llamas")
    }
    assert files == {
        "plain": ["encoder.pt"], "told": ["decoder.pt"], "model": ["encoder.pt"], "llamas": ["decoder.pt"],
    }  # fmt: skip
    code, out, err = run("convert", "a.npy", "--to", "peft", "--out", "b", "--model", "some/where")
    assert (code, out) == (0, "b: 3 prompt tokens of width 16 for an encoder-decoder, peft\n")
    assert err.startswith("note: cannot load a model from 'some/where'") and err.count("\n") == 1
    assert err.endswith("; a.npy is taken for an encoder-decoder's prompt: if it is not, --decoder-only\n")
    assert load_prompt("b").card.model_name == "some/where"


def test_a_t5x_file_becomes_vocabulary_of_the_model_it_is_for(run, prompts):
    run("convert", "p1", "--to", "t5x", "--out", "a.npy")
    code, out, err = run("convert", "p1=a.npy", "--to", "vocabulary", "--out", "model", "--model", "./llama")
    assert code == 0, err
    assert out.startswith("model: the model with 1 prompt as 3 new tokens")


def test_the_list_of_tasks_has_labels_and_metrics(run):
    code, out, _ = run("tasks")
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert code == 0
    assert lines["glue/mrpc"] == ["not_equivalent,", "equivalent", "f1,", "accuracy"]
    assert lines["mrqa/squad"] == ["free", "text", "em,", "f1"]
    assert lines["glue/stsb"] == ["26", "labels", "pearson,", "spearman"]


def test_a_task_shows_its_examples_as_the_model_reads_them(run, here):
    folder = here / "data" / "glue" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("sentence\tlabel\na warm story\t1\ndull\t0\na warm family by the sea\t1\n")
    words = ["tasks", "sst2", "--data", "data", "--limit", "1", "--model", "./llama", "--max-input-length", "16"]
    code, out, err = run(*words)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[:6] == [
        "glue/sst2 train: 3 of 67,349 official examples from train.tsv (0.0% of them)",
        "metrics: accuracy",
        "labels: negative (1), positive (2)",
        "",
        "id:      2",
        "inputs:  sentence: a warm story",
    ]
    assert "targets: positive" in lines
    (table,) = [place for place, line in enumerate(lines) if line.startswith("tokens")]
    assert re.fullmatch(r"inputs  +\d+  +\d+  +\d+  +\d+", lines[table + 1])
    cut = r"(\d) of 3 inputs longer than 16 tokens, and so cut at the end \(--truncate\); lost are, of the first:"
    assert (told := re.fullmatch(cut, lines[table + 3]))
    assert len(lines[table + 4 :]) == int(told[1]) and all(re.match(r"  [234]: .", line) for line in lines[table + 4 :])


def test_files_of_your_own_are_shown_too(run, here):
    code, out, _ = run("tasks", *OWN, "--data", "train.jsonl", "--limit", "0")
    assert code == 0
    assert out.splitlines() == [
        "own train: 40 examples from train.jsonl",
        "metrics: accuracy",
        "labels: good (20), bad (20)",
    ]


def test_a_task_one_letter_off_is_one_line(run):
    assert run("tasks", "boolk")[2] == "softprompt tasks: no task named 'boolk'; did you mean 'boolq'?\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.26, "0.3 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3_700, "1 h 1 min")]
)
def test_durations_are_for_people(seconds, text):
    assert terminal.duration(seconds) == text


ROOT = Path(train_command.__file__).parent.parent.parent
COMMAND_LINES = [
    (path.name, line)
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for block in re.findall(r"```\n(.*?)```", path.read_text(), re.S)
    for line in block.splitlines()
    if line.startswith("softprompt ")
]


@pytest.mark.parametrize(("document", "line"), COMMAND_LINES)
def test_every_command_of_the_documents_can_be_read(document, line):
    from softprompt.cli.command_line import _parsed

    assert callable(_parsed(shlex.split(line, comments=True)[1:]).run)


def test_the_three_commands_of_readme_for_a_task_of_your_own_do_what_they_say(run, here, monkeypatch):
    lines = [shlex.split(line)[1:] for name, line in COMMAND_LINES if name == "README.md" and " runs/reviews" in line]
    words = [["./llama" if word == "smollm2-135m" else word for word in line] for line in lines]
    readme = (ROOT / "README.md").read_text()
    line = r"^echo '(.*)' \| softprompt (predict --prompt runs/reviews --scores --show-input)$"
    (asked,) = re.findall(line, readme, re.M)
    for name, count in (("reviews", 40), ("more", 8)):
        rows = [
            f"a film that is {'warm' if i % 2 else 'dull'} {i},{'positive' if i % 2 else 'negative'}"
            for i in range(count)
        ]
        (here / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    train, evaluate = words
    assert run(*train, *SHORT)[0] == 0
    code, out, err = run(*evaluate)
    assert code == 0 and "accuracy" in out, err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked[0].encode() + b"\n")))
    code, out, err = run(*asked[1].split())
    assert code == 0 and set(json.loads(out)["probabilities"]) == {"positive", "negative"}, err


def test_labels_with_commas_are_given_one_at_a_time(run, here):
    records = [{"text": f"row {i}", "label": ("New York, NY", "Boston, MA")[i % 2]} for i in range(12)]
    write(here / "towns.jsonl", records)
    own = ["--data", "train=towns.jsonl", "--inputs", "msg: {text}", "--targets", "{label}"]
    code, out, err = run("tasks", *own, "--label", "New York, NY", "--label", "Boston, MA")
    assert code == 0 and "labels: New York, NY (6), Boston, MA (6)" in out, err
    both = [*own, "--labels", "a,b", "--label", "c"]
    assert "argument --label: not allowed with argument --labels" in run("tasks", *both)[2]
    few = ["--model", "./llama", "--steps", "2", "--batch-size", "2", "--prompt-length", "2", "--out", "towns"]
    code, out, err = run("train", *own, *few, "--label", "New York, NY", "--label", "Boston, MA")
    assert code == 0, err
    assert json.loads(Path("towns/softprompt.json").read_text())["labels"] == ["New York, NY", "Boston, MA"]


def test_a_file_of_chats_needs_no_template(run, here):
    turns = [{"role": "user", "content": "Wet?"}, {"role": "assistant", "content": "no"}]
    others = [[{"role": "user", "content": f"Wet {i}?"}, turns[1]] for i in range(12)]
    write(here / "chats.jsonl", [{"messages": chat} for chat in (turns, *others)])
    code, out, err = run("tasks", "--data", "train=chats.jsonl")
    assert code == 0 and "inputs:  Wet?\ntargets: no" in out, err
    few = ["--steps", "2", "--batch-size", "2", "--prompt-length", "2", "--out", "chats"]
    code, out, err = run("train", "--model", "./llama", "--data", "train=chats.jsonl", *few)
    assert code == 0, err
    write(here / "asked.jsonl", [{"messages": turns[:1]}])
    code, out, err = run("predict", "--prompt", "chats", "--input", "asked.jsonl")
    assert code == 0 and "prediction" in json.loads(out), err
    code, out, err = run("train", "--model", "./llama", "--data", "train=train.jsonl", *few)
    assert code == 2 and "which task? give --task" in err
