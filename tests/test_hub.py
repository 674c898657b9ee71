"""Prompts on the hub: the commands talk to a stand-in of it on this machine, in a process of their own."""

import json
import os
import subprocess
import sys

import peft
import pytest
import torch
import yaml
from conftest import make_model, make_tokenizer
from hub_stand_in import TOKEN, Hub, Repository
from safetensors.torch import load as read_safetensors
from transformers import AutoModelForCausalLM

from softprompt.cli.options import named_folders
from softprompt.prompts import CARD, CONFIG, README, WEIGHTS, load_prompt

MOODS = (("warm", "glad"), ("dull", "cross"))
RECORDS = [{"text": f"{word} {number}", "mood": mood} for number in range(6) for word, mood in MOODS]
MACHINE = "--device cpu --dtype float32 --threads 1"
TRAIN = (
    "train --model ./llama --data train=moods.jsonl dev=dev.jsonl --inputs 'text: {text}' --targets '{mood}' "
    f"--labels glad,cross --steps 2 --prompt-length 3 --batch-size 2 {MACHINE}"
)
PREDICT = f"predict --input moods.jsonl {MACHINE}"
RETRY = "convert runs/kept --to peft --out hf://me/kept"
STOPPED_RETRY = "convert runs/kept-0/own-seed-1 --to peft --out hf://me/late-own-seed-1"
NO_REPOSITORY = (
    "there is no such repository, or it is not yours to read; check the name, and for one that is private or"
)
NO_PLACE = "hf://me is no place on the hub; give hf://ORG/NAME"
THERE = f"hf://me/moods has {CONFIG}, {WEIGHTS}, {CARD}, {README} already; give another name, or --overwrite, which"
OUT = "hf://me/moods is on the hub, and this is written on this machine; give another place"

# What the process does, in turn: a command (or a line of Python, with ! in front) and what it is refused with.
SESSION = {
    # a cache that cannot be written; first, as other libraries' logs would take what the hub's library says besides
    "!cache, constants.HF_HUB_CACHE = constants.HF_HUB_CACHE, 'moods.jsonl'": "",
    f"{PREDICT} --prompt hf://me/lora@main": "cannot read hf://me/lora@main: [Errno 20] Not a directory: ",
    "!constants.HF_HUB_CACHE = cache": "",
    f"{TRAIN} --out runs/moods --push me/moods": "",
    f"{PREDICT} --prompt hf://me/moods": "",
    f"{PREDICT} --prompt runs/moods": "",
    f"eval --prompt hf://me/moods@main runs/moods --data moods.jsonl --json {MACHINE}": "",
    "inspect --prompt hf://me/moods --nearest 1": "",
    "convert hf://me/moods --to t5x --out moods.npy": "",
    "!serve('--prompt', 'hf://me/moods', 'mine=hf://me/moods@main', '--port', '0', '--device', 'cpu')": "",
    f"{TRAIN} --out runs/more --seeds 0,1 --init hf://me/moods --push hf://me/more": "",
    f"{TRAIN} --out runs/kv --method kv --push me/kv": "",
    f"{PREDICT} --prompt hf://me/kv": "",
    f"{PREDICT} --prompt runs/kv": "",
    # wrong names, and what is there already
    f"{PREDICT} --prompt hf://me": NO_PLACE,
    f"{PREDICT} --prompt hf://me/none": f"cannot read hf://me/none: {NO_REPOSITORY}",
    f"{PREDICT} --prompt hf://me/moods@v9": "cannot read hf://me/moods@v9: the repository has no such revision; give a",
    f"{PREDICT} --prompt hf://me/model": f"hf://me/model holds no {CONFIG}, so it is not a prompt",
    f"{PREDICT} --prompt hf://me/pickle": f"hf://me/pickle holds no {WEIGHTS}, and a pickle (adapter_model.bin) is not",
    f"{PREDICT} --prompt hf://me/lora": "hf://me/lora holds a PEFT adapter of type LORA, which is no prompt",
    "convert hf://me/moods --from tgis --to t5x --out x.npy": "on the hub, where prompts are as PEFT has them; leave",
    "convert runs/moods --to peft --out hf://me/moods": THERE,
    "convert runs/moods --to peft --out hf://me/moods --overwrite": "",
    "convert runs/moods --to peft --out hf://me/moods@main": "names a revision, and a push makes a new one; give hf",
    "convert runs/moods --to peft --out hf://you/moods": "cannot push to hf://you/moods: the hub answered 403 (You",
    "convert runs/moods --to t5x --out hf://me/moods": OUT,
    f"{TRAIN} --out hf://me/moods": OUT,
    f"{PREDICT} --prompt runs/moods --output hf://me/moods": OUT,
    f"{TRAIN} --out runs/x --push me": NO_PLACE,
    f"{TRAIN} --out runs/x --push me/moods": THERE,
    f"{TRAIN} --out runs/x --seeds 0,1 --push me/more": "hf://me/more-own-seed-0 has",
    # a push that fails after training, and again as the message says
    "!hub('/refuse/commit')": "",
    f"{TRAIN} --out runs/kept --push me/kept": "cannot push to hf://me/kept: the hub answered 503 (out of order)",
    "!hub('/refuse/nothing')": "",
    RETRY: "",
    # Ctrl-C during the second of two pushes, and again as the message says
    "!stop_at('me/late-own-seed-1')": "",
    f"{TRAIN} --out runs/kept-0 --seeds 0,1 --push me/late": "stopped; nothing of runs/kept-0 is lost, and this pushes "
    f"it again: softprompt {STOPPED_RETRY}",
    "!stop_at(None)": "",
    STOPPED_RETRY: "",
    # tokens
    "!os.environ.update(HF_TOKEN='hf_wrong')": "",
    f"{PREDICT} --prompt hf://me/more-own-seed-0@main": "401 (Invalid credentials in Authorization header); check",
    f"{TRAIN} --out runs/y --push me/y": "cannot push to hf://me/y: the hub answered 401 (Invalid credentials in",
    "!os.environ.pop('HF_TOKEN')": "",
    f"{PREDICT} --prompt hf://me/secret": f"cannot read hf://me/secret: {NO_REPOSITORY}",
    f"{TRAIN} --out runs/x --push me/x": "cannot push to hf://me/x: there is no token for the hub; set HF_TOKEN, or",
    # offline, then without a hub
    "!os.environ.update(HF_TOKEN='hf_right')": "",
    "!constants.HF_HUB_OFFLINE = True": "",
    f"{PREDICT} --prompt hf://me/moods --show-input": "",
    f"{PREDICT} --prompt hf://me/kept": "cannot read hf://me/kept: it is not in the cache, and HF_HUB_OFFLINE is set",
    f"{TRAIN} --out runs/x --push me/z": "cannot push to hf://me/z: HF_HUB_OFFLINE is set; unset it",
    "!constants.HF_HUB_OFFLINE = False": "",
    "!constants.ENDPOINT = 'http://127.0.0.1:1'": "",
    f"{PREDICT} --prompt hf://me/moods --scores": "",
    f"{PREDICT} --prompt hf://me/kept@main": "hf://me/kept@main: it is not in the cache, and the hub does not answer (",
    f"{TRAIN} --out runs/x --push me/gone": "cannot push to hf://me/gone: the hub does not answer (",
}
DRIVER = """
import contextlib, io, json, os, shlex, sys, urllib.request
import uvicorn
from fastapi.testclient import TestClient
from huggingface_hub import HfApi, constants
from softprompt.cli import main

def hub(path):
    urllib.request.urlopen(constants.ENDPOINT + path)

def listed(server, sockets):
    with TestClient(server.config.app, base_url="http://127.0.0.1") as client:
        print([model["id"] for model in client.get("/v1/models").json()["data"]])
        asked = {"model": "mine", "input": "warm 7"}
        print(client.post("/v1/classify", json=asked).status_code)
    server.started = True

commit = HfApi.create_commit

def stop_at(name):
    def create_commit(api, repository, *rest, **options):
        if repository == name:
            raise KeyboardInterrupt
        return commit(api, repository, *rest, **options)
    HfApi.create_commit = create_commit

def serve(*words):
    uvicorn.Server.run = listed
    assert main(["serve", *words]) == 0

done = []
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = exec(line[1:]) or 0 if line[0] == "!" else main(shlex.split(line))
    done.append([line, [code, out.getvalue(), err.getvalue()]])
print(json.dumps(dict(done)))
"""


@pytest.fixture(scope="module")
def hub():
    hub = Hub()
    adapter = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    for name, files in {
        "model": {"config.json": b"{}"},
        "pickle": {CONFIG: b"{}", "adapter_model.bin": b"x"},
        "lora": {CONFIG: json.dumps(adapter).encode(), WEIGHTS: b"x"},
    }.items():
        hub.repositories[f"me/{name}"] = Repository(files)
    hub.repositories["me/secret"] = Repository({}, is_private=True)
    return hub


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder that the process runs in."""
    here = tmp_path_factory.mktemp("session")
    make_model("llama").save_pretrained(here / "llama")
    make_tokenizer(bos=True).save_pretrained(here / "llama")
    for name, start in (("moods.jsonl", ""), ("dev.jsonl", "so ")):
        lines = [json.dumps(record | {"text": start + record["text"]}) for record in RECORDS]
        (here / name).write_text("\n".join(lines))
    return here


@pytest.fixture(scope="module")
def did(hub, here):
    """What each line of SESSION did: its exit code, what it printed, what it said."""
    own = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(list(SESSION)), cwd=here, env=os.environ | own,
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


@pytest.mark.parametrize("line", SESSION)
def test_what_is_asked_of_the_hub_is_done_or_refused_in_one_line(did, line):
    code, out, err = did[line]
    if not SESSION[line]:
        assert code == 0, err
        return
    said = [told for told in err.splitlines() if not told.startswith("note:")]
    assert code == (130 if SESSION[line].startswith("stopped") else 2) and SESSION[line] in said[-1]
    if "runs/kept" not in line:  # which trains before it is refused
        assert (out, len(said)) == ("", 1)


def test_train_pushes_what_it_saved_to_private_repositories(did, hub, here):
    said = did[f"{TRAIN} --out runs/moods --push me/moods"][2].splitlines()
    assert (
        said[-2]
        == "note: hf://me/moods names its model by a place on this machine, ./llama; elsewhere it needs --model"
    )
    assert said[-1] == "runs/moods is at hf://me/moods"
    first, pushed, again = hub.repositories["me/moods"].commits.values()
    assert set(first) == {".gitattributes"} and pushed == again
    for name in (WEIGHTS, CONFIG, CARD):
        assert pushed[name] == (here / "runs/moods" / name).read_bytes()
    made = {name for name, repository in hub.repositories.items() if repository.is_private}
    several = {f"me/{name}-own-seed-{seed}" for name in ("more", "late") for seed in (0, 1)}
    assert made == {"me/secret", "me/moods", "me/kv", "me/kept", *several}


def test_the_card_has_what_the_hub_renders(did, hub):
    text = hub.repositories["me/moods"].files()[README].decode()
    assert yaml.safe_load(text.split("---\n")[1]) == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["softprompt", "prompt-tuning", "own"],
        "metrics": ["accuracy"],
    }
    assert "\n# moods\n" in text and "--prompt hf://me/moods\n" in text
    assert 'PeftModel.from_pretrained(model, "me/moods")' in text


def test_a_place_on_the_hub_is_taken_wherever_a_folder_is(did, here):
    answers = did[f"{PREDICT} --prompt runs/moods"][1]
    assert len(answers.splitlines()) == len(RECORDS)
    assert did[f"{PREDICT} --prompt hf://me/moods"][1] == answers
    assert did[f"{PREDICT} --prompt hf://me/kv"][1] == did[f"{PREDICT} --prompt runs/kv"][1]
    there, ours = json.loads(did[next(line for line in SESSION if line.startswith("eval"))][1])["prompts"]
    assert (there.pop("prompt"), ours.pop("prompt")) == ("hf://me/moods@main", "runs/moods")
    assert there == ours
    assert did["inspect --prompt hf://me/moods --nearest 1"][1].startswith("hf://me/moods: 3 rows of width 16, own")
    served = did[next(line for line in SESSION if line.startswith("!serve"))][1]
    assert served == "['llama', 'moods', 'mine']\n200\n"
    card = load_prompt(here / "runs/more/own-seed-0").card
    assert card.init["parent"] == load_prompt(here / "runs/moods").sha256


def test_peft_loads_what_was_pushed(did, hub, here, tmp_path):
    files = hub.repositories["me/moods"].files()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(here / "llama"), tmp_path)
    assert torch.equal(theirs.get_prompt(batch_size=1)[0], read_safetensors(files[WEIGHTS])["prompt_embeddings"])


def test_only_what_a_prompt_needs_is_fetched(did, hub):
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {WEIGHTS, CONFIG, CARD}


def test_a_push_that_cannot_succeed_is_refused_before_training(did, here):
    assert not list(here.glob("runs/[xy]"))


def test_a_push_that_fails_loses_nothing_and_says_how_to_push_again(did, hub, here):
    _, out, err = did[f"{TRAIN} --out runs/kept --push me/kept"]
    assert "next: softprompt predict" in out
    assert err.splitlines()[-1].endswith(
        f"; nothing of runs/kept is lost, and this pushes it again: softprompt {RETRY}"
    )
    assert (here / "runs/kept/results.jsonl").exists()
    assert hub.repositories["me/kept"].files()[WEIGHTS] == (here / "runs/kept" / WEIGHTS).read_bytes()


def test_a_place_without_a_name_is_named_after_its_repository():
    places = ["hf://me/moods@v1", "other=hf://me/moods@refs/pr/1"]
    assert named_folders(places) == {"moods": "hf://me/moods@v1", "other": "hf://me/moods@refs/pr/1"}
