"""Several processes that train together: they end where one does, all of them, and only the first one writes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from softprompt.cluster import ALONE, World, device_of_torchrun
from softprompt.training.loop import fit

ROOT = Path(__file__).parent.parent
MESSAGES = ROOT / "examples" / "customer_messages"


def under_torchrun(size, *words, folder=None):
    """The output of so many processes of one thread; one's own failure ends the others."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", size, *words]
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=250, env=environment, cwd=folder
    )


IN_EACH = """
import sys
from pathlib import Path
import torch
from conftest import tiny_lm
from test_cluster import everything
from softprompt.cluster import world_of_torchrun
with world_of_torchrun("cpu") as world:
    everything(world, Path(sys.argv[1]))
assert not torch.distributed.is_initialized()
defaults = sys.modules["torch.distributed.nn.functional"].all_reduce.__defaults__
assert not any(isinstance(default, torch.distributed.ProcessGroup) for default in defaults), defaults
"""


def test_three_processes_say_the_same_train_to_one_result_and_go_on_from_the_firsts_checkpoint(tmp_path):
    (tmp_path / "script.py").write_text(IN_EACH)
    done = under_torchrun(3, tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "script.py"]


def everything(world, place):
    """What every process of the test above does, each of them with assertions of its own."""
    from test_training import config, member

    assert world.size == 3 and world.is_first == (world.rank == 0)
    assert world.gathered(world.rank) == [0, 1, 2] and world.decided(lambda: ("who", world.rank)) == ("who", 0)
    assert world.merged([item * 10 for item in world.share(range(7))]) == [item * 10 for item in range(7)]
    # In float32 the order counts: 1e8 + 1 - 1e8 is 0, and 1e8 - 1e8 + 1 is 1.
    for summands, wanted in (((1e8, 1, -1e8), 0), ((1e8, -1e8, 1), 1)):
        assert world.total(torch.tensor([float(summands[world.rank])])).tolist() == [wanted]
    for kind in ("llama", "t5"):
        trained_together(world, place, kind, member, config)


def trained_together(world, place, kind, member, config):
    from conftest import tiny_lm

    lm = tiny_lm(kind)
    dropout = 0.1 if kind == "t5" else 0.0
    members = [
        member(lm, "a", selection=6, steps=5, batch_size=4, evaluate_every=1, dropout=dropout),
        member(lm, "b", selection=6, seed=1, length=2, steps=4, batch_size=7, evaluate_every=1, dropout=dropout),
    ]
    folder, told = place / str(world.rank) / kind, []
    method = lacking_memory(lm, world.rank == 1)
    found = fit(lm, members, method=method, folder=folder, world=world, clock=Clock(world.rank), watch=telling(told))
    assert folder.exists() == world.is_first
    assert [line for line in told if "out of memory" in line] == (
        ["out of memory at step 1; micro-batches now 1024 tokens"] if world.is_first else []
    )
    everyones = world.gathered([each.values.tolist() for each in found])
    assert everyones[0] == everyones[1] == everyones[2]
    for one, other in zip(found, fit(lm, members), strict=True) if world.is_first else ():
        torch.testing.assert_close(one.values, other.values, rtol=1e-3, atol=1e-4)
        assert [entry["score"] for entry in one.history] == [entry["score"] for entry in other.history]
        assert [entry["loss"] for entry in one.history] == pytest.approx([entry["loss"] for entry in other.history])
    if kind == "t5":
        return

    # The same number of processes gives the same bits, also where the run was stopped: by the first one's clock.
    options = {"folder": folder, "world": world, "max_tokens": 1024}
    stopped = fit(lm, members, **options, minutes=1.0, clock=Clock(world.rank))
    steps = world.gathered(stopped[0].steps_run)
    assert 0 < steps[0] < 5 and len(set(steps)) == 1
    resumed = fit(lm, members, **options, resume=True)
    assert [each.values.tolist() for each in resumed] == everyones[0]
    if world.is_first:
        with pytest.raises(ValueError, match=r"is of another run: processes was 3, and is 1"):
            fit(lm, members, folder=folder, resume=True)


class Clock:
    """Ten seconds a look for the first process, and another time altogether for the others."""

    def __init__(self, rank):
        self.now, self.rank = 0.0, rank

    def __call__(self):
        self.now += 10.0 if self.rank == 0 else 1_000.0
        return self.now


def telling(told):
    from softprompt.base.watch import Watch

    return Watch(message=told.append)


def lacking_memory(lm, lacks):
    """Prompt tuning, in a process that has not enough memory at its first step if it `lacks` it."""
    from softprompt.training.methods import PromptTuning

    method = PromptTuning(lm)
    gradients, calls = method.gradients, []

    def once(*args, **options):
        calls.append(options["max_tokens"])
        if lacks and len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")
        return gradients(*args, **options)

    method.gradients = once
    return method


def test_train_under_torchrun_ends_where_one_process_does_and_says_it_once(run, llama, tmp_path):
    llama.model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save(tmp_path / "model")
    words = ["train", "--model", tmp_path / "model", "--dtype", "float32", "--inputs", "message: {message}"]
    words += ["--targets", "{intent}", "--data", f"train={MESSAGES / 'train.jsonl'}", f"dev={MESSAGES / 'dev.jsonl'}"]
    words += ["--steps", 4, "--evaluate-every", 2, "--batch-size", 4, "--max-dev", 20, "--seeds", "0,1"]
    words += ["--labels", "billing,cancel,delivery,login,praise,refund,sales question,technical"]
    words += ["--prompt-length", 4, "--max-input-length", 120, "--max-train", 60, "--select", "held-out"]
    code, _, err = run(*words, "--out", tmp_path / "one")
    assert code == 0, err
    done = under_torchrun(2, "-m", "softprompt", *words, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: softprompt") == 1 and done.stderr.count("score own: 20 rows") == 1
    rows = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "results.jsonl").read_text().splitlines()
        rows.append([json.loads(line) for line in lines])
    assert [row["value"] for row in rows[0]] == [row["value"] for row in rows[1]] and len(rows[0]) == 2
    for seed in range(2):
        one, two = (next((tmp_path / name).glob(f"*-seed-{seed}")) for name in ("one", "two"))
        one, two = (load_file(folder / "adapter_model.safetensors")["prompt_embeddings"] for folder in (one, two))
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


EXPERIMENT = """
import sys
from pathlib import Path
from test_cluster import experimented
from softprompt.cluster import world_of_torchrun
with world_of_torchrun("cpu") as world:
    experimented(world, Path(sys.argv[1]))
"""


def test_an_experiment_of_two_processes_has_the_rows_of_one(t5, tmp_path):
    t5.model.save_pretrained(tmp_path / "model")
    t5.tokenizer.save(tmp_path / "model")
    (tmp_path / "data" / "SST-2").mkdir(parents=True)
    for name, count in (("train", 60), ("dev", 9)):
        lines = [f"a {'warm' if n % 2 else 'dull'} film about {name} {n}\t{n % 2}" for n in range(count)]
        (tmp_path / "data" / "SST-2" / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    (tmp_path / "script.py").write_text(EXPERIMENT)
    done = under_torchrun(2, tmp_path / "script.py", tmp_path)
    assert done.returncode == 0, done.stderr


def experimented(world, place):
    """Two experiments by all processes, and once more by the first one alone: other files, the same rows."""
    from softprompt.answering import read_rows
    from softprompt.study import run_experiment
    from softprompt.training import RunConfig

    base = RunConfig(
        model="-", task=("glue/sst2",), data=place / "data", out=place / "runs", prompt_length=(3,), steps=4,
        learning_rate=(0.1,), batch_size=4, evaluate_every=2, num_selection=8, seeds=(0, 1), scoring="rank",
        resume=True,
    )  # fmt: skip
    for name, points, rates in (("figure-1", (), (0.01,)), ("figure-3b", ("vocab", "uniform"), None)):
        found = []
        for who, each in (("all", world), ("one", ALONE)):
            if who == "one" and not world.is_first:
                continue
            options = {
                "rows": place / f"{who}.jsonl",
                "out": place / who,
                "points": points,
                "model_rates": rates,
            }
            for _ in range(2):  # the second time all rows are there
                assert run_experiment(name, [str(place / "model")], base, **options, world=each) == []
            found.append([row for row in read_rows(place / f"{who}.jsonl") if row.experiment == name])
        for one, other in zip(*found, strict=True) if world.is_first else ():
            names = [(row.config["point"], row.seed, row.scoring, row.num_examples) for row in (one, other)]
            assert names[0] == names[1]
            # AdamW moves a weight whose gradient is next to nothing by a share of its rounding: a near tie may fall. Of
            # prompt design, which the first process asks alone, this random model likes all wordings alike.
            if "shots" not in one.config["point"]:
                assert one.value == pytest.approx(other.value, abs=0.25), names[0]
            assert one.config.get("stored_bytes") == other.config.get("stored_bytes")


def test_more_processes_than_examples_of_a_step_are_refused(llama):
    from test_training import member

    reason = "3 processes, but a step of m has 2 examples; start at most 2, or give a larger --batch-size"
    with pytest.raises(ValueError, match=reason):
        fit(llama, [member(llama)], world=World(0, 3))


def test_a_world_of_one_says_nothing_to_anyone():
    assert World() == ALONE and ALONE.is_first
    assert ALONE.share("abc") == ALONE.merged(list("abc")) == list("abc")
    assert ALONE.gathered(1) == [1] and ALONE.decided(lambda: 2) == 2
    assert ALONE.total(torch.ones(2)).tolist() == [1, 1]
    assert not torch.distributed.is_initialized()


def test_a_process_of_torchrun_takes_its_own_gpu(monkeypatch):
    assert device_of_torchrun("auto") == "auto"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of_torchrun("cuda") == "cuda:1"
    assert [device_of_torchrun(name) for name in ("cpu", "cuda:0", "mps")] == ["cpu", "cuda:0", "mps"]
    for there, wanted in ((False, "auto"), (True, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert device_of_torchrun("auto") == wanted
