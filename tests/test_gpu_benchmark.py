"""benchmarks/gpu.py in small, on the processor: every part runs, and its rows say what they should."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for name in ("gpu", "sides", "serving_sides"):  # its tiny shapes are no others'
        sys.modules.pop(name, None)


def test_every_part_runs_in_small_and_its_rows_have_card_share_and_ratio(gpu, tmp_path, capsys):
    results = tmp_path / "gpu.jsonl"
    gpu.main(["--tiny", "--device", "cpu", "--results", str(results)])
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert {row["part"] for row in rows} == set(gpu.PARTS)
    assert all(row["is_tiny"] and row["device"] and row["versions"]["torch"] and row["command"] for row in rows)
    by_part = {name: [row for row in rows if row["part"] == name] for name in gpu.PARTS}
    exact = [row for row in by_part["equality"] if row["dtype"] == "float32"]
    assert all(row["gradient"] == 0 and row["same_answers"] == 1 and row["reached"] for row in exact)
    assert all(row["gradient"] < 0.2 for row in by_part["equality"])
    assert all(row["same"] for row in by_part["bits"])  # on a processor by default too
    sides = {(row["model"], row["side"], row["dropout"]) for row in by_part["training"]}
    assert {("tiny", "ours", 0.1), ("tiny", "best", 0.0), ("tiny-llama", "documented", 0.0)} <= sides
    for row in by_part["training"]:
        assert row["share_of_matmul_peak"] > 0 and row["seconds"] > 0
        assert (row["side"] == "ours") != ("ratio" in row)
    assert {row["checkpointed"] for row in by_part["xxl"]} == {False, True}
    assert {row["side"] for row in by_part["serving"]} == {"ours", "switching", "grouped"}
    assert str(tmp_path) in rows[0]["command"] and "peak" in capsys.readouterr().out


def test_without_a_gpu_only_the_tiny_run_is_taken_and_unknown_parts_are_named(gpu, capsys):
    for words, said in ((["--device", "cpu"], "there is no GPU here; --tiny"), (["pek"], "no part named 'pek'; there")):
        with pytest.raises(SystemExit):
            gpu.main(words)
        assert said in capsys.readouterr().err
