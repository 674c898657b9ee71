"""softprompt vocabulary, pretrain and adapt, as a user meets them."""

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from texts import documents

import softprompt
from softprompt.base.terminal import Display
from softprompt.cli.command_line import main
from softprompt.pretraining import PRESETS

ROOT = Path(__file__).parent.parent
SHAPE = {"d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16, "num_layers": 1, "num_decoder_layers": 1}
SHORT = ["--steps", 6, "--batch-size", 4, "--micro-batch-size", 4, "--input-length", 32, "--evaluate-every", 3]
SHORT += ["--num-heldout", 8, "--warmup-steps", 2, "--no-compile", "--dtype", "float32"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a corpus, a held-out file and a small shape in it."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("\n".join(documents(200)))
    (tmp_path / "heldout.txt").write_text("\n".join(documents(20, seed=1)))
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder of what softprompt vocabulary learns of the corpus."""
    folder = tmp_path_factory.mktemp("learned")
    (folder / "a.txt").write_text("\n".join(documents(200)))
    words = ["vocabulary", "--corpus", folder / "a.txt", "--size", 410, "--out", folder / "vocabulary", "--threads", 1]
    assert main([str(word) for word in words]) == 0
    return folder / "vocabulary"


@pytest.fixture
def vocabulary(here, learned):
    shutil.copytree(learned, "vocabulary")
    return "vocabulary"


PRETRAIN = ["pretrain", "--size", "shape.json", "--vocabulary", "vocabulary", "--corpus", "corpus", *SHORT]


def test_from_text_to_an_adapted_model(here, run, vocabulary):
    code, out, err = run(*PRETRAIN, "--heldout", "heldout.txt", "--out", "span", "--keep", "0,3")
    assert code == 0, err
    assert out.startswith("span: 0.0 million tokens, held-out loss ")
    assert " million weights, 0.0 million tokens of 200 documents, float32 on cpu" in err
    assert "step 3: loss " in err and ", held-out " in err
    assert sorted(path.name for path in Path("span/steps").iterdir()) == ["0", "3"]
    code, out, err = run("adapt", "--model", "span", "--corpus", "corpus", *SHORT, "--out", "lm")
    assert code == 0, err
    lm = softprompt.load("lm")
    assert lm.is_encoder_decoder
    assert lm.tokenizer.size == 410
    assert list(Path("lm/logs").glob("events.out.tfevents.*"))


@pytest.mark.parametrize(("command", "steps", "rate"), [("pretrain", 1_000_000, 0.01), ("adapt", 100_000, 0.001)])
def test_the_papers_preset_is_t5s_own_training(here, run, vocabulary, command, steps, rate):
    assert run(*PRETRAIN, "--out", "span")[0] == 0
    small = ["--steps", 2, "--batch-size", 2, "--micro-batch-size", 2, "--num-heldout", 2, "--no-compile"]
    code, _, err = run(command, "--model", "span", "--corpus", "corpus", "--preset", "paper", *small, "--out", "own")
    assert code == 0, err
    with safe_open("own/checkpoint.safetensors", "pt") as file:
        made_with = json.loads(file.metadata()["checkpoint"])["identity"]
    wanted = {"input_length": 512, "optimizer": "adafactor", "clip_norm": math.inf, "learning_rate": rate}
    wanted |= {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "z_loss": 1e-4}
    assert {name: made_with[name] for name in wanted} == wanted
    _, out, _ = run(command, "--help")
    words = " ".join(out.split())
    assert f"optimizer steps; must be given (default: {steps} with --preset paper)" in words
    assert "texts a step (default: 64; 2048 with --preset paper)" in words  # of 512: 2^20 tokens


@pytest.mark.parametrize(("step", "rate"), [(100, 0.01), (10_000, 0.01), (40_000, 0.005)])
def test_the_papers_rate_falls_with_the_root_of_the_step_as_t5s_does(step, rate):
    weight = torch.nn.Parameter(torch.full((4, 4), 2.0))
    optimizer = torch.optim.Adafactor([weight], lr=PRESETS["paper"]["span"]["learning_rate"])
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    optimizer.state[weight]["step"].fill_(step - 1)
    before = weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - rate))


def test_span_corruption_goes_on_from_a_model_that_is_there(here, run, vocabulary):
    assert run(*PRETRAIN, "--out", "span")[0] == 0
    code, _, err = run("pretrain", "--model", "span", "--corpus", "corpus", *SHORT, "--out", "more")
    assert code == 0, err
    before, after = softprompt.load("span", dtype="float32"), softprompt.load("more", dtype="float32")
    moved = (after.model.shared.weight - before.model.shared.weight).abs().max()
    assert 0 < moved < before.model.shared.weight.abs().max() / 2  # trained on, not anew
    for words, reason in (
        (("--model", "span", "--size", "mini"), "--model has a size and a vocabulary of its own; leave out --size"),
        (("--size", "mini"), "give --size and --vocabulary for a new model, or --model for one to go on from"),
    ):
        code, _, err = run("pretrain", *words, "--corpus", "corpus", *SHORT, "--out", "other")
        assert code == 2 and reason in err


def test_two_processes_of_torchrun_end_where_one_does(here, run, vocabulary):
    words = [*PRETRAIN, "--heldout", "heldout.txt", "--micro-batch-size", 2]
    assert run(*words, "--out", "one")[0] == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "softprompt"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [str(word) for word in (*command, *words, "--out", "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("two: ") and done.stdout.count("held-out loss") == 1  # one process speaks
    one, two = (load_file(Path(name) / "checkpoint.safetensors") for name in ("one", "two"))
    assert set(one) == set(two)
    for name in one:  # AdamW moves a weight whose gradient is next to nothing by a share of its rounding
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    curves = [
        [json.loads(line) for line in Path(name, "curve.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    assert len(curves[0]) == 2
    for mine, theirs in zip(*curves, strict=True):
        assert theirs["tokens"] == mine["tokens"]
        assert theirs["heldout"] == pytest.approx(mine["heldout"], rel=1e-4)
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)


def test_more_processes_than_micro_batches_are_refused_before_anything_starts(here, run, vocabulary, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    code, out, err = run(*PRETRAIN, "--out", "span", "--batch-size", 64, "--micro-batch-size", 8)
    assert (code, out) == (2, "")
    assert err == (
        "softprompt pretrain: 16 processes, but a step has 8 micro-batches (batch_size 64, micro_batch_size 8); start "
        "at most 8, or give a smaller --micro-batch-size\n"
    )
    assert not Path("span").exists() and not Path("cache/tokens").exists()


def test_the_vocabulary_says_what_it_learned(here, run):
    code, out, _ = run("vocabulary", "--corpus", "corpus", "--size", 410, "--out", "v", "--threads", 1)
    assert code == 0
    assert out.startswith("v: 410 ids; the commonest pieces are ")
    code, _, err = run("vocabulary", "--corpus", "corpus", "--out", "v")
    assert (code, err) == (2, "softprompt vocabulary: v holds a vocabulary already; give another --out\n")


def test_ctrl_c_is_said_and_resume_goes_on(here, run, vocabulary):
    words = [*PRETRAIN, "--out", "span", "--steps", 100_000]
    command = [sys.executable, "-m", "softprompt", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith("step 3:"):
                time.sleep(0.2)
                process.send_signal(signal.SIGINT)
                break
        err = process.stderr.read()
        assert process.wait(60) == 130
    assert "softprompt pretrain: stopped at step " in err
    assert "of 100000; the same command with --resume goes on from there" in err
    code, _, err = run(*PRETRAIN, "--out", "span")
    assert code == 2
    assert "span holds an unfinished run; --resume goes on with it, --overwrite starts again" in err
    code, _, err = run(*PRETRAIN, "--out", "span", "--resume")
    assert code == 2
    assert "is of another run: steps was 100000, and is 6; give the same settings" in err
    code, _, err = run(*PRETRAIN, "--out", "span", "--overwrite")
    assert code == 0, err
    code, _, err = run(*PRETRAIN, "--out", "span")
    assert (code, err) == (2, "softprompt pretrain: span holds a model already; give another --out, or --overwrite\n")


def test_a_full_disk_is_one_line_and_resume_goes_on(here, run, vocabulary, monkeypatch):
    assert run(*PRETRAIN, "--out", "other")[0] == 0  # so that the corpus is in the cache
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for command in (PRETRAIN, ["adapt", "--model", "other", "--corpus", "corpus", *SHORT]):
        with monkeypatch.context() as patch:
            patch.setattr(Display, "log", lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1])))
            try:
                code, out, err = run(*command, "--out", command[0])
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert (code, out) == (2, "")
        last = "could not write {0} (File too large); with room there, --resume goes on from the last checkpoint"
        assert err.splitlines()[-2:] == [
            f"no checkpoint at step 6: {command[0]}/checkpoint.safetensors cannot be written (File too large); "
            "the last stays",
            f"softprompt {command[0]}: {last.format(command[0])}",
        ]
        assert run(*command, "--out", command[0], "--resume")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corpus", "nowhere"], "no file or folder nowhere; name the text to train on"),
        (["--corpus", "blank.txt"], "the corpus is empty: blank.txt and the others hold no text"),
        (["--corpus", "latin.txt"], "latin.txt is not UTF-8 text (byte 0xe9)"),
        (["--size", "minni"], "no size named 'minni'; did you mean 'mini'?"),
        (["--vocabulary", "./nowhere"], "no folder ./nowhere; give a folder that softprompt vocabulary wrote"),
        (["--keep", "7"], "keep names step 7, but the run has steps 0 to 6"),
        (["--heldout", "short.txt"], "the held-out text has "),
    ],
)
def test_mistakes_are_one_line(here, run, vocabulary, words, message):
    Path("blank.txt").write_text("\n")
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    Path("short.txt").write_text("The sea.\n")
    code, out, err = run(*PRETRAIN, "--out", "span", *words)
    assert (code, out) == (2, "")
    assert f"softprompt pretrain: {message}" in err
    assert not Path("span/config.json").exists()


def test_steps_are_asked_for(here, run, vocabulary):
    code, _, err = run("pretrain", "--size", "micro", "--vocabulary", "vocabulary", "--corpus", "corpus", "--out", "o")
    assert (code, err) == (2, "softprompt pretrain: how many steps? give --steps\n")
