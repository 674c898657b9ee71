"""Every command of docs/reproduce.md, run as it stands but for its sizes, on tiny models in place of the published."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import make_model
from texts import documents

from softprompt.answering.rows import read_rows
from softprompt.cli.command_line import main
from softprompt.pretraining.vocabulary import train_vocabulary
from softprompt.study.experiments import EXPERIMENTS

ROOT = Path(__file__).parent.parent
WIDTH = 16  # of the tiny T5
SHORT = (
    "--steps 2 --batch-size 2 --evaluate-every 1 --num-selection 4 --max-train 40 --max-dev 4 --max-input-length 99 "
    "--learning-rate 0.3 --seeds 0 --data DATA"
)
SMALLER = {
    "convert": "",
    "eval": "--limit 8 --data DATA",
    "train": SHORT,
    "experiment": SHORT,
    "adapt": "--batch-size 2 --micro-batch-size 2 --input-length 32 --num-heldout 2 --no-compile",
    "report": "",
}
SUBSTITUTES = {
    r"google/t5-\S+-lm-adapt": "tiny",
    "--steps 100000 --keep 10000,50000,100000": "--steps 4 --keep 1,2,4",
    "--out runs/S": "--out runs/small",
    r"superglue/boolq,\S+": "superglue/boolq,superglue/record,superglue/wsc",  # labels, candidates, free text
}


def commands():
    text = (ROOT / "docs" / "reproduce.md").read_text()
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("softprompt ")]


def smaller(line, data):
    for pattern, text in SUBSTITUTES.items():
        line = re.sub(pattern, text, line)
    words = shlex.split(line)[1:]
    return [str(data) if word == "DATA" else word for word in [*words, *SMALLER[words[0]].split()]]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the published files' tiny counterparts: a T5, prompts for it, a span-corruption T5, a corpus."""
    tokenizer = train_vocabulary(documents(300), size=410, threads=1)  # with sentinels
    for place in ("tiny", "runs/large/span"):
        make_model("t5", vocab_size=512).save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    values = np.random.default_rng(0).standard_normal((100, WIDTH)).astype(np.float32)
    for task in ("sst2", "mrpc", "rte"):
        np.save(tmp_path / f"t5_1_1_lm100k_base_{task}.npy", values)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text("\n".join(documents(200)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:.*labels for .* prompt rows")  # figure 3a's prompt of one token
def test_every_command_to_reproduce_the_paper_runs(here, data_folder, capsys):
    lines = commands()
    assert {shlex.split(line)[1] for line in lines} == set(SMALLER)
    assert {shlex.split(line)[2] for line in lines if " experiment " in line} == set(EXPERIMENTS)
    for line in lines:
        code = main(smaller(line, data_folder))
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
    rows = read_rows(here / "results" / "study.jsonl")
    assert {row.experiment for row in rows} == set(EXPERIMENTS)
    assert (here / "report" / "index.html").is_file()
