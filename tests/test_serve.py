"""`softprompt serve` as a process of its own: what it prints, whom it lets in, and how it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient
from test_server import TEXT, saved

from softprompt.base.files import held
from softprompt.cli.command_line import main
from softprompt.serving.http import Server, make_app


@pytest.fixture
def model(llama, tmp_path):
    llama.model.save_pretrained(tmp_path / "model")
    llama.tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def asked(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_it_serves_says_so_and_finishes_its_requests_when_told_to_stop(model, tmp_path):
    from softprompt import load

    saved(load(str(model)), tmp_path / "mine")
    port = free_port()
    command = [sys.executable, "-m", "softprompt", "serve", "--model", str(model), "--prompt", f"sst2={tmp_path}/mine"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--prompts-dir", str(tmp_path / "kept"), "--threads", "1"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                if asked(f"{url}/readyz") == {"status": "ready"}:
                    break
            except OSError:
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.1)
        answer = asked(f"{url}/v1/classify", {"model": "sst2", "input": TEXT})
        assert answer["results"][0]["label"] in ("positive", "negative")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert "model (" in said and "with 1 prompt" in said
    assert f"{url} (this machine only: no --api-key-file was given); Ctrl-C stops" in said
    assert '"path": "/v1/classify", "status": 200' in said


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "nothing to serve; give --model, or --prompt NAME=DIR"),
        (["--host", "0.0.0.0", "--model", "x"], "--host 0.0.0.0 is open to other machines; give --api-key-file"),
        (["--prompt", "a=x", "a=y"], "two prompts are named 'a': x and y"),
        (["--model", "x", "--port", "70000"], "wanted a port from 0 to 65535"),
        (["--model", "x", "--max-memory", "lots"], "wanted bytes such as 4G or 500M, got 'lots'"),
        (["--model", "x", "--timeout", "-1"], "wanted a number above 0, got '-1'"),
        (["--model", "x", "--api-key-file", "none.yaml"], "cannot read the key file none.yaml"),
        (["--model", "x", "--allowed-host", "a:1"], "allowed_host is 'a:1', but must be a name without a port"),
        (["--model", "x", "--cors-origin", "a.example"], "cors_origin is 'a.example', but must be an origin such as"),
        (["--model", "x", "--compile", "--batch-invariant"], "--batch-invariant could not promise the same"),
        (["--config", "none.yaml"], "cannot read the settings none.yaml: No such file or directory"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(words, reason, capsys):
    assert main(["serve", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert reason in said and "\n" not in said


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("max-wating: 1", "no setting 'max-wating'; did you mean 'max_waiting'?"),
        ("port: many", "port: wanted a port from 0 to 65535"),
        ("prompt: [a]", "prompt: wanted names and folders"),
        ("compile: sometimes", "compile: wanted true or false, got 'sometimes'"),
        ("- 1", "holds no entries"),
    ],
)
def test_a_bad_configuration_file_is_named(tmp_path, content, reason, capsys):
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    assert main(["serve", "--config", str(path)]) == 2
    assert reason in capsys.readouterr().err


def test_other_names_and_pages_are_let_in_by_flag_and_by_file(model, tmp_path, monkeypatch):
    import uvicorn
    from fastapi.testclient import TestClient

    apps = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda server, sockets: apps.append(server.config.app))
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    settings = tmp_path / "serve.yaml"
    settings.write_text("allowed-host: [box, box.lan]\ncors-origin: https://app.example\n")
    words = ["serve", "--model", str(model), "--port", "0", "--threads", str(torch.get_num_threads())]
    for more in (
        ["--config", str(settings)],
        ["--allowed-host", "box,box.lan", "--cors-origin", "https://app.example"],
    ):
        main([*words, *more])
        for host, origin, status in (
            ("box", None, 200), ("box.lan:8000", "http://box:8000", 200), ("localhost", "https://app.example", 200),
            ("other", None, 403), ("box", "https://other.example", 403),
        ):  # fmt: skip
            headers = {"host": host} | ({"origin": origin} if origin else {})
            answer = TestClient(apps[-1]).get("/health", headers=headers)
            assert answer.status_code == status, (host, origin)
    assert len(apps) == 2


def test_a_prompt_of_another_model_stops_the_start(model, tmp_path, capsys, t5):
    saved(t5, tmp_path / "other")
    assert main(["serve", "--model", str(model), "--prompt", f"a={tmp_path}/other"]) == 2
    assert "a: the prompt was trained for tiny-t5" in capsys.readouterr().err.replace("softprompt serve: ", "")


def test_the_engines_model_is_packed_if_asked(tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    from softprompt import load
    from softprompt.cli.serve import DEFAULTS, _engine

    lm = load("bundled/t5-mini", device="cpu")
    saved(lm, tmp_path / "a", recipe={"quantize": "8bit"})
    settings = DEFAULTS | {"model": "bundled/t5-mini", "device": "cpu"}
    assert _engine(settings | {"quantize": "8bit"}, {"a": str(tmp_path / "a")})[0].lm.quantization == "8bit"
    with pytest.warns(UserWarning, match="a was trained on 8bit weights, and bundled/t5-mini has unpacked ones here"):
        _engine(settings, {"a": str(tmp_path / "a")})


# torch.compile imports torch.jit, which Python 3.11 and torch 2.13 call old
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_engines_model_is_compiled_and_its_batches_are_invariant_only_if_asked():
    from softprompt.cli.serve import DEFAULTS, _engine

    for asked in ("compile", "batch_invariant", None):
        engine, registry = _engine(DEFAULTS | {"model": "bundled/t5-mini", "dtype": "float32", asked: True}, {})
        assert engine.lm.is_compiled == (asked == "compile")
        with TestClient(make_app(Server(engine, registry)), "http://localhost") as client:
            told = client.get("/v1/models").json()
        assert (told["dtype"], told["batch_invariant"]) == ("float32", asked == "batch_invariant")


def test_the_port_and_the_folder_are_had_before_the_model_is_loaded(model, tmp_path, capsys, monkeypatch):
    def loaded(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("softprompt.cli.serve._engine", loaded)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(model), "--port", str(port)]) == 2
    told = f"softprompt serve: cannot listen on 127.0.0.1, port {port} (Address already in use); give another --port"
    assert capsys.readouterr().err.startswith(told)
    with ThreadPoolExecutor() as pool, held(tmp_path / "kept"):
        words = ["serve", "--model", str(model), "--port", "0", "--prompts-dir", str(tmp_path / "kept")]
        assert pool.submit(main, words).result() == 2
    assert f"{tmp_path}/kept is being written by process {os.getpid()} (" in capsys.readouterr().err
