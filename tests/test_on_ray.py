"""predict and serve on Ray, on this machine: the same answers as without, and what dies costs none."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from test_prediction import WORDS, saved_prompt, written
from test_serve import free_port
from test_server import archive

from softprompt.answering import CHUNK

ROOT = Path(__file__).parent.parent
ASKED = {"model": "a", "input": "a warm film"}


@pytest.fixture
def place(llama, tmp_path, monkeypatch):
    """A working folder with a model, two prompts, and files in `x`."""
    llama.model.save_pretrained(tmp_path / "llama")
    llama.tokenizer.save(tmp_path / "llama")
    for seed, name in enumerate("ab"):
        saved_prompt(tmp_path / name, llama, seed, model_name="llama")
    (tmp_path / "x").mkdir()
    write_rows(tmp_path / "x" / "many.jsonl", CHUNK + 9)
    few = [{"id": n, "text": f"a {word} film", "who": "b"} for n, word in enumerate(WORDS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(few), tmp_path / "x" / "few.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(path, count):
    rows = [{"id": n, "text": f"a {WORDS[n % 10]} film {n}", "who": "ab"[n % 2]} for n in range(count)]
    rows[5] = {"id": 5, "text": "whose?", "who": "c"}
    written(path, rows)


PREDICT = ["predict", "--model", "./llama", "--prompt", "a=a", "b=b", "--prompt-column", "who", "--threads", "1"]
ON_RAY = [*PREDICT, "--input", "x/*", "--output", "out", "--ray", "--workers", "2"]


def check_answers(place, run):
    """That the answers to each file are those of predict, byte for byte."""
    for path in sorted((place / "x").iterdir()):
        assert run(*PREDICT, "--input", path, "--output", "alone.jsonl", "--overwrite")[0] == 0
        assert (place / "out" / f"{path.stem}.jsonl").read_bytes() == Path("alone.jsonl").read_bytes(), path


def test_files_are_answered_by_workers_of_ray_as_by_predict(ray_here, place, run):
    code, out, err = run(*ON_RAY)
    assert (code, out) == (0, ""), err
    assert err.splitlines()[-1] == f"{CHUNK + 18} rows answered, 1 not (their lines hold an error), in out"
    check_answers(place, run)
    code, _, err = run(*ON_RAY, "--resume", "--inputs-column", "text")
    assert (code, err.splitlines()[-1]) == (
        2,
        "softprompt predict: out/few.jsonl was begun with inputs-column None, and now it is text; give the same "
        "settings, or start again with --overwrite",
    )


def test_what_is_wrong_comes_out_of_a_worker_as_it_is():
    pytest.importorskip("ray")
    from softprompt.cluster.pool import _Worker

    def make():
        raise ValueError("no folder ./nowhere")

    def refuse(part):
        raise OSError(2, "No such file or directory", part)

    part = {"part": [pickle.dumps("a")]}
    for worker, error, told in ((_Worker(make), ValueError, "no folder"), (_Worker(lambda: refuse), OSError, "'a'")):
        refusal = pickle.loads(worker(part)["made"][0])
        assert type(refusal.error) in (error, FileNotFoundError) and told in str(refusal.error)
        assert worker({"part": [pickle.dumps(refusal)]})["made"] == [pickle.dumps(refusal)]


@contextmanager
def replicas(place, count=2, **more):
    """Replicas that share a folder, from this process; their address."""
    from softprompt.cli.serve import DEFAULTS, _replica
    from softprompt.cluster.replicas import replicas_by_ray
    from softprompt.serving.http import Shared

    port, folder = free_port(), place / "kept"
    folder.mkdir(exist_ok=True)
    settings = DEFAULTS | {
        "model": str(place / "llama"), "prompts_dir": str(folder), "access": ((), (), ()), "threads": 1,
        "replicas": (count, count), "max_memory": 1 << 26, **more,
    }  # fmt: skip
    named = {name: str(place / name) for name in "ab"}
    with replicas_by_ray(
        partial(_replica, settings, named, Shared((), 60.0)), host="127.0.0.1", port=port, replicas=(count, count),
        threads=1, device="cpu", max_ongoing=64, drain_seconds=5.0,
    ):  # fmt: skip
        yield f"http://127.0.0.1:{port}"


def asked(url, body=None, method=None):
    """An answer, and whose it is."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer), answer.headers["x-replica"]


def killed(url):
    """End the replica that answers next, as a machine that is gone would; whose process it was."""
    import ray

    (name,) = {asked(f"{url}/healthz")[1]}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if name in actor["name"]:
            ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]))
            return name
    raise AssertionError(f"no replica {name}")


def test_replicas_know_what_one_is_told_and_a_killed_one_loses_no_request(ray_here, place):
    with replicas(place) as url:
        seen = {asked(f"{url}/v1/classify", ASKED)[1] for _ in range(30)}
        assert len(seen) == 2
        new = archive(saved_prompt(place / "new", tiny(), 7))
        version = asked(f"{url}/v1/prompts/fresh", new, "PUT")[0]["versions"][-1]["prompt_hash"]
        answers = [asked(f"{url}/v1/classify", ASKED | {"model": "fresh"}) for _ in range(20)]
        assert {whose for _, whose in answers} == seen
        assert {answer["results"][0]["prompt_hash"] for answer, _ in answers} == {version}
        with pytest.raises(urllib.error.HTTPError) as refused:
            asked(f"{url}/v1/classify", ASKED | {"model": "none"})
        error = json.load(refused.value)["error"]
        assert refused.value.code == 404 and error["request_id"] == refused.value.headers["x-request-id"]
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(asked, f"{url}/v1/completions", {"model": "a", "prompt": "a film"}) for _ in range(40)]
            gone = killed(url)
            texts = {call.result()[0]["choices"][0]["text"] for call in calls}
        assert len(texts) == 1 and gone in seen


def tiny():
    from conftest import tiny_lm

    return tiny_lm("llama")


def test_an_application_that_cannot_be_built_is_one_line(ray_here, place):
    with pytest.raises(ValueError, match=r"^no folder \./nowhere"), replicas(place, 1, model="./nowhere"):
        pass


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["serve", "--model", "x", "--replicas", "2"], "--replicas is for replicas in a Ray cluster; give --ray, too"),
        (["serve", "--model", "x", "--ray", "--replicas", "3-2"], "wanted a number of 1 or more, or two such as 1-4"),
        (["predict", "--prompt", "p", "--workers", "2"], "--workers is for workers of Ray; give --ray, too, or leave"),
        (
            ["predict", "--prompt", "p", "--ray"],
            "--ray answers files into a folder; give --input 'FILES*' and --output",
        ),
        (
            ["predict", "--prompt", "p", "--ray", "--input", "none/*", "--output", "out"],
            "no file matches 'none/*'; give a file, or a pattern in quotes, such as 'x/*.parquet'",
        ),
        (
            ["predict", "--prompt", "p", "--ray", "--input", __file__, "--output", "out", "--workers", "0"],
            "--workers is 0, but must be 1 or more",
        ),
    ],
)
def test_mistakes_are_one_line(run, words, reason):
    code, _, err = run(*words)
    assert code == 2 and reason in err and len(err.strip().splitlines()) == 1, err


def test_help_imports_no_ray():
    told = "import sys; from softprompt.cli import main; main(sys.argv[1:]); sys.exit('ray' in sys.modules)"
    for name in ("predict", "serve"):
        done = subprocess.run([sys.executable, "-c", told, name, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "--ray" in done.stdout, done.stderr


@contextmanager
def in_a_process(place, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "softprompt", *map(str, words)]
    with subprocess.Popen(command, env=environment, cwd=place, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_driver_of_predict_goes_on(place, run, number):
    write_rows(place / "x" / "much.jsonl", 30 * CHUNK)
    with in_a_process(place, *ON_RAY) as process:
        while not any(path.stat().st_size for path in (place / "out").glob("much.jsonl.partial")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(number)
        told = process.communicate(timeout=120)[1]
    if number == signal.SIGTERM:
        assert told.splitlines()[-1] == "softprompt predict: stopped; the same command with --resume goes on with out"
        assert process.returncode == 128 + number
    before = {path.name: path.read_bytes() for path in (place / "out").glob("*.jsonl")}
    begun = (place / "out" / "much.jsonl.partial").read_bytes()
    assert "many.jsonl" in before and begun
    with in_a_process(place, *ON_RAY, "--resume") as process:
        told = process.communicate(timeout=240)[1]
    assert process.returncode == 0, told
    for name, content in before.items():
        assert (place / "out" / name).read_bytes() == content
    assert (place / "out" / "much.jsonl").read_bytes().startswith(begun.rpartition(b"\n")[0])
    check_answers(place, run)


@pytest.mark.slow
def test_a_killed_worker_of_predict_costs_no_row(ray_here, place, run):
    import psutil

    write_rows(place / "x" / "much.jsonl", 30 * CHUNK)
    killed = []

    def kill():
        while not any(path.stat().st_size for path in (place / "out").glob("much.jsonl.partial")):
            time.sleep(0.02)
        for process in psutil.process_iter(["cmdline"]):
            if "MapWorker" in " ".join(process.info["cmdline"] or ())[:200]:
                process.kill()
                killed.append(process.pid)
                return

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    code, _, err = run(*ON_RAY)
    killer.join(1)
    assert code == 0 and killed, err
    check_answers(place, run)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["inputs", "outputs"])
def test_storage_that_goes_in_the_middle_of_predict_is_one_line_and_it_goes_on(ray_here, place, run, what):
    write_rows(place / "x" / "much.jsonl", 30 * CHUNK)
    folder, away = place / ("x" if what == "inputs" else "out"), place / "away"

    def remove():
        while not any(path.stat().st_size for path in (place / "out").glob("many.jsonl*")):
            time.sleep(0.01)
        os.rename(folder, away)

    thread = threading.Thread(target=remove, daemon=True)
    thread.start()
    code, _, err = run(*ON_RAY)
    thread.join(1)
    assert code in ((0, 2) if what == "inputs" else (2,)), err  # what is open is read to its end
    assert "Traceback" not in err.splitlines()[-1]
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    os.rename(away, folder)
    assert run(*ON_RAY, "--resume")[0] == 0
    check_answers(place, run)


@pytest.mark.slow
def test_replicas_killed_under_load_lose_no_request(ray_here, place):
    with replicas(place) as url:
        wanted = asked(f"{url}/v1/classify", ASKED)[0]["results"][0]
        stop, answers = threading.Event(), []

        def ask():
            while not stop.is_set():
                answer, whose = asked(f"{url}/v1/classify", ASKED)
                answers.append((answer["results"][0], whose))

        with ThreadPoolExecutor(6) as pool:
            asking = [pool.submit(ask) for _ in range(6)]
            gone = []
            for _ in range(4):
                time.sleep(8)
                gone.append(killed(url))
            time.sleep(8)
            stop.set()
            for call in asking:
                call.result()
    assert len(set(gone)) == 4 and len({whose for _, whose in answers}) >= 5
    for answer, _ in answers:
        assert answer["label"] == wanted["label"]
        assert answer["probabilities"] == pytest.approx(wanted["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_the_command_serves_by_replicas_until_it_is_told_to_stop(place):
    port, words = free_port(), ["serve", "--model", "./llama", "--prompt", "a=a", "b=b", "--prompts-dir", "kept"]
    with in_a_process(place, *words, "--ray", "--replicas", "2", "--port", port) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(900):
            try:
                if asked(f"{url}/readyz")[0] == {"status": "ready"}:
                    break
            except OSError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
        assert asked(f"{url}/v1/classify", ASKED)[0]["results"][0]["label"] in ("good", "bad")
        with in_a_process(place, *words, "--port", "0") as second:
            told = second.communicate(timeout=120)[1]
        assert second.returncode == 2 and "kept is being written by process" in told
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=120)[1]
    assert process.returncode == 128 + signal.SIGTERM, told
    assert f"{url} (this machine only: no --api-key-file was given); Ctrl-C stops" in told
    assert not (place / "kept" / "registry.json").exists() or os.listdir(place / "kept")
