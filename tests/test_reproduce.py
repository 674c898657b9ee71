"""Every command of docs/reproduce.md, run as it stands but for its sizes, on tiny models in place of the published, and
what it prints.
"""

import re
import shlex
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from benchmarks_in_small import NUM, write_all
from conftest import make_model
from texts import documents

from softprompt.answering.rows import read_rows
from softprompt.cli.command_line import main
from softprompt.pretraining.vocabulary import train_vocabulary
from softprompt.study.experiments import EXPERIMENTS
from softprompt.study.paper import RELEASED, TABLE_3

ROOT = Path(__file__).parent.parent
WIDTH = 16  # of the tiny T5
ALL_TASKS = [f"superglue/{name}" for name in TABLE_3]
SHORT = "--steps 2 --batch-size 2 --evaluate-every 1 --num-selection 4 --max-input-length 99 --data DATA"
SMALLER = {
    "convert": "",
    "eval": "--data DATA",
    "train": f"{SHORT} --seeds 0,1",
    "experiment": f"{SHORT} --seeds 0",
    "adapt": "--batch-size 2 --micro-batch-size 2 --input-length 32 --num-heldout 2 --no-compile",
    "report": "",
}
SUBSTITUTES = {
    r"google/t5-\S+-lm-adapt": "tiny",
    r"google/t5-v1_1-\S+": "runs/large/span",
    "--steps 100000 --keep 10000,50000,100000": "--steps 4 --keep 1,2,4",
    "runs/S": "runs/small",
    r"--tasks superglue/boolq,\S+": "--tasks superglue/cb,superglue/wsc",  # ranked and written, and written alone
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
    """A folder with the published files' tiny counterparts: a T5, prompts for it, a span-corruption T5, text, tasks."""
    tokenizer = train_vocabulary(documents(300), size=410, threads=1)  # with sentinels
    for place in ("tiny", "runs/large/span"):
        make_model("t5", vocab_size=512).save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    values = np.random.default_rng(0).standard_normal((100, WIDTH)).astype(np.float32)
    for task in ("sst2", "mrpc", "rte"):
        np.save(tmp_path / f"{task}.npy", values)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "text.txt").write_text("\n".join(documents(200)))
    write_all(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(words, out):
    (folder,) = words[words.index("--out") + 1 :]
    assert out == f"{folder}: 100 prompt tokens of width {WIDTH} for an encoder-decoder, peft\n"


def evaluated(words, out):
    folder, task = (words[words.index(flag) + 1] for flag in ("--prompt", "--task"))
    head, names, scores, *_ = out.splitlines()
    assert head.startswith(f"{task} dev: ") and head.endswith(f"{NUM['dev']} examples scored, answers generated")
    metrics = [name for name in names.split() if name not in ("prompt", "mean", "illegal")]
    assert metrics == list(RELEASED[task]), "in the order of the table of what is expected"
    place, *values, illegal = scores.split()
    assert place == folder and len(values) == len(metrics) + (len(metrics) > 1)
    assert all(0 <= float(value) <= 1 for value in (*values, illegal))


def trained(words, out):
    """Each task's scores, and SuperGLUE's: the mean over the eight tasks, and its deviation over the seeds."""
    rows = read_rows(Path("runs/small/results.jsonl"))
    assert {row.task for row in rows} == set(ALL_TASKS) and len(rows) == 2 * len(ALL_TASKS)
    _, table, following = out.split("\n\n")
    lines = {line.split()[0]: line.split() for line in table.splitlines()}
    assert list(lines) == ["task", *ALL_TASKS, "SuperGLUE"]
    for task in ALL_TASKS:
        value = 100 * fmean(row.value for row in rows if row.task == task)
        assert lines[task][1] == "2" and lines[task][-3] == f"{value:.1f}"
    means = [100 * fmean(row.value for row in rows if row.seed == seed) for seed in (0, 1)]
    assert lines["SuperGLUE"][-3:] == [f"{fmean(means):.1f}", "\u00b1", f"{stdev(means):.1f}"]
    assert fmean(means) > 0 and following.startswith("next: softprompt predict --model tiny --prompt runs/small/")


def ran(words, out):
    """Every point's scores are those of the rows, and its mean is that of its tasks."""
    name = words[1]
    rows = [row for row in read_rows(Path("results/study.jsonl")) if row.experiment == name]
    head, _, *body = [line.strip("| ").split(" | ") for line in out.splitlines()]
    tasks = head[3:-3]
    assert body and set(tasks) == {row.task for row in rows}
    for _, point, scoring, *cells, mean, _, _ in body:
        for task, cell in zip(tasks, cells, strict=True):
            own = [row for row in rows if (row.config["point"], row.task) == (point, task) and row.seed >= 0]
            as_here = [row for row in own if row.scoring == scoring.split(" ")[0]] or own
            assert cell.split(" ")[0] == f"{100 * fmean(row.value for row in as_here):.1f}"
        means = [float(cell.split(" ")[0]) for cell in cells]
        assert float(mean.split(" ")[0]) == pytest.approx(fmean(means), abs=0.11)


def adapted(words, out):
    assert re.fullmatch(r"runs/large/lm: 0\.0 million tokens, held-out loss [\d.]+\n", out)
    assert sorted(int(folder.name) for folder in Path("runs/large/lm/steps").iterdir()) == [1, 2, 4]


def reported(words, out):
    place, of_run = Path(words[words.index("--out") + 1]), words[1].endswith(".jsonl")
    rows = read_rows(Path(words[1] if of_run else "results/study.jsonl"))
    pictures = len(list(place.glob("*.png")))
    assert out == f"{place}/index.html: {len(rows)} rows, {pictures} picture{'' if pictures == 1 else 's'} beside it\n"
    text = (place / "index.html").read_text()
    assert ("<td>the paper, XXL</td><td>SuperGLUE</td>" if of_run else "<td>SuperGLUE</td><td>90.5</td>") in text


PRINTED = {
    "convert": converted, "eval": evaluated, "train": trained, "experiment": ran, "adapt": adapted, "report": reported,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*labels for .* prompt rows")  # figure 3a's prompt of one token
def test_every_command_to_reproduce_the_paper_runs_and_prints_what_it_found(here, capsys):
    lines = commands()
    assert {shlex.split(line)[1] for line in lines} == set(SMALLER)
    assert {shlex.split(line)[2] for line in lines if " experiment " in line} == set(EXPERIMENTS)
    for line in lines:
        words = smaller(line, here / "data")
        capsys.readouterr()
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, f"{line}\n{err}"
        PRINTED[words[0]](words, out)
    rows = read_rows(here / "results" / "study.jsonl")
    assert {row.experiment for row in rows} == set(EXPERIMENTS)
    assert {row.notes.get("overlap") for row in rows if row.seed >= 0} == {"kept"}
    rates = {row.config["point"]: row.config["tried"] for row in rows if row.experiment == "figure-1"}
    assert [len(rates[point]) for point in ("prompt tuning", "model tuning", "model tuning from span")] == [1, 1, 1]
    from_span = {row.config["frozen"] for row in rows if row.config["point"] == "model tuning from span"}
    assert from_span == {"runs/large/span"}
