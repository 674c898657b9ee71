"""Nothing is wrong and no one is in: mutated prompts, fuzzed requests and load, with each answer looked at.

`make slow` takes many and writes results/campaigns.jsonl; the short forms take a few of the same.
"""

import http.client
import json
import math
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from campaigns.asked import Asked, fuzzed, send, well_formed
from campaigns.mutations import mutate_folder, packed
from conftest import ENCODER_DECODERS, SEED, make_model, make_tokenizer
from test_campaigns import Loaded
from test_server import TEXT, archive, listening, make_prompt, make_server, served

from softprompt.models.loading import load
from softprompt.prompts import CARD, STAGING, SoftPrompt, save_prompt
from softprompt.serving import PromptTable
from softprompt.serving.http.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore")  # a prompt's that is far from the embeddings' scale, and such
LISTS = ("/v1/prompts", "/v1/models")
KINDS = ("llama", "t5")
DOCUMENTED = (503, 504, 507)
NOT_FINITE = "no finite numbers|own pass through"  # seen when it is first asked
JSON = {"Content-Type": "application/json"}
CLOSE = 1e-5  # of a log-probability in float32
FRESH = 100  # prompts of a campaign that a fresh process answers with
MOST_TOKENS = 64  # a card may ask for a million


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        make_model(kind).save_pretrained(folder / kind)
        make_tokenizer(bos=kind not in ENCODER_DECODERS).save_pretrained(folder / kind)
    return folder


def make_keys(lm, seed=0, scale=1.0, **card):
    """A prompt of keys and values."""
    prompt = make_prompt(lm, **card)
    layers, heads, width = lm.kv_shape
    values = torch.randn(3, layers, heads, width, generator=torch.Generator().manual_seed(seed)) * scale
    return SoftPrompt(values, replace(prompt.card, width=layers * heads * width))


def prompts_of(lm, folder):
    """Folders of prompts, whole and of every kind."""
    text = make_prompt(lm).card.text
    free = make_prompt(lm, 3, labels=(), recipe={"scoring": "generate", "metric": "em"})
    several = text | {"inputs_template": "premise: {premise} hypothesis: {hypothesis}"}
    made = {
        "labels": make_prompt(lm, 2, dev_metrics={"accuracy": 90.0}, step=7, recipe={"scoring": "rank"}),
        "free": free,
        "fields": make_prompt(lm, 4, length=2, text=several, recipe={"scoring": "rank", "group_by": "premise"}),
        "task": make_prompt(
            lm, 5, task="glue/sst2", text=text | dict.fromkeys(("inputs_template", "targets_template"))
        ),
        "bare": make_prompt(lm, 6),
    }
    if not lm.is_encoder_decoder:
        made["keys"] = make_keys(lm, 7)
    for name, prompt in made.items():
        save_prompt(prompt, folder / name)
    (folder / "bare" / CARD).unlink()
    return [folder / name for name in made]


# Mutated prompts


def test_mutations_are_of_every_kind(models, tmp_path):
    lm, draw, kinds = load(models / "llama", dtype="float32"), random.Random(SEED), set()
    seeds = prompts_of(lm, tmp_path / "seeds")
    for number in range(60):
        place = tmp_path / str(number)
        shutil.copytree(draw.choice(seeds), place)
        kinds |= set(mutate_folder(place, draw).split())
    assert kinds == {"card", "config", "bytes", "tensor", "kind", "name"}


class Mutants:
    """A server beside whose prompts mutated ones are put, one after the other, and what came of it."""

    def __init__(self, kind, models, folder, caplog):
        self.folder, self.draw, self.caplog = folder, random.Random(f"{SEED} {kind}"), caplog
        self.lm = load(models / kind, dtype="float32")
        self.server = make_server(self.lm, folder)
        self.seeds = prompts_of(self.lm, folder / "seeds")
        self.outcomes, self.wrong = Counter(), []
        self.accepted = []
        """Folder, record and answer of those that a fresh process is to be asked."""

    def run(self, count):
        with served(self.server) as self.client:
            self.listed, self.answered = self.lists(), self.answers()
            for number in range(count):
                place = self.folder / "mutants" / "m"
                shutil.copytree(self.draw.choice(self.seeds), place, symlinks=True)
                what = mutate_folder(place, self.draw)
                route = self.draw.choice(("file", "upload"))
                try:
                    self.one(number, place, route)
                except Exception as error:  # all of them are told together
                    self.wrong.append(f"{number}, {what}, by {route}: {type(error).__name__}: {str(error)[:1500]}")
                    self.client.delete("/v1/prompts/m")
                    if len(self.wrong) > 30:
                        break
                shutil.rmtree(self.folder / "mutants")
        tracebacks = [record.getMessage() for record in self.caplog.records if record.exc_info]
        assert not self.wrong and not tracebacks, "\n\n".join([*self.wrong, *tracebacks[:3]])

    def lists(self):
        """What is listed."""
        lists = []
        for path in LISTS:
            listed = self.client.get(path)
            assert listed.status_code == 200, (path, listed.text)
            lists.append(listed.json())
        return lists

    def answers(self):
        """What the others answer."""
        answers = {}
        for name in ("p0", "p1"):
            told = self.client.post("/v1/classify", json={"model": name, "input": TEXT}).json()
            for label, log_prob in told["results"][0]["log_probs"].items():
                answers[name, label] = log_prob
        return answers

    def one(self, number, place, route):
        reason = self.put(place, route)
        if reason is None:
            self.answer(place, route)
            assert self.client.delete("/v1/prompts/m").status_code == 200
        else:
            assert reason and STAGING not in reason and "\n" not in reason, reason
            assert route == "file" or len(reason) < 1_100, reason
        self.outcomes[f"{'refused' if reason else 'accepted'} by {route}"] += 1
        assert self.lists() == self.listed
        if reason is None or number % 5 == 0:
            assert self.answers() == pytest.approx(self.answered, abs=CLOSE)

    def put(self, place, route):
        """Put a mutant there as `m`; why not, if so."""
        if route == "upload":
            told = self.client.put("/v1/prompts/m", content=packed(place, self.draw))
            if told.status_code == 200:
                return None
            assert 400 <= told.status_code < 500, told.text
            return told.json()["error"]["message"]
        # What a server that starts takes is what this one takes.
        started = Registry(PromptTable(self.lm, max_bytes=1 << 26), self.lm.name, place.parent)
        started.open()
        try:
            self.server.registry.add("m", place)
        except ValueError as error:
            assert "m" not in started.now, error
            return str(error)
        assert "m" in started.now
        return None

    def answer(self, place, route):
        """Ask the prompt that was taken, as its card says; a sample of them is kept for a fresh process."""
        (version,) = next(one for one in self.lists()[0]["prompts"] if one["name"] == "m")["versions"]
        kept = self.folder / "kept" / "m" / version["prompt_hash"] if route == "upload" else place
        longest = self.server.asker.describe(
            self.server.engine.table.get(version["prompt_hash"])
        ).form.max_target_length
        record = dict.fromkeys((field.rstrip("?") for field in version["fields"]), TEXT)
        asked = {"model": "m", "fields": record, "timeout": 20.0}
        is_ranked = version["scoring"] == "rank" and version["labels"]
        if not is_ranked:
            asked["max_tokens"] = min(longest, MOST_TOKENS)
        told = self.client.post(f"/v1/{'classify' if is_ranked else 'completions'}", json=asked)
        if told.status_code == 400 and re.search(NOT_FINITE, told.text):
            self.outcomes["refused when asked"] += 1
            return
        assert told.status_code == 200, (version, told.text)
        (answer,) = told.json()["results" if is_ranked else "choices"]
        assert answer["prompt_hash"] == version["prompt_hash"]
        if is_ranked:
            assert set(answer["probabilities"]) == set(version["labels"])
            assert all(map(math.isfinite, answer["log_probs"].values()))
        if longest <= MOST_TOKENS and len(self.accepted) < FRESH and self.draw.random() < 0.3:
            again = self.folder / "accepted" / str(len(self.accepted))
            shutil.copytree(kept, again, ignore=_special)
            self.accepted.append((again, record, answer))

    def ask_fresh(self, models, kind, loaded, most):
        """The same of `predict` in a process that has seen none of them."""
        for place, record, answer in self.accepted[:most]:
            (place / "in.jsonl").write_text(json.dumps(record) + "\n")
            words = (
                f"predict --model {models / kind} --prompt {place} --input in.jsonl --output out.jsonl --dtype float32"
            )
            loaded.done(place, words)
            told = json.loads((place / "out.jsonl").read_text())
            assert told.get("prediction", told).strip() == answer.get("label", answer.get("text", "")).strip(), place
            if answer.get("log_probs"):
                assert told["log_prob"] == pytest.approx(answer["log_probs"][answer["label"]], abs=CLOSE)
        return min(most, len(self.accepted))


def _special(folder, names):
    """What is no file and no folder, such as a pipe, which nobody reads in a prompt that was taken."""
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    running = Loaded(tmp_path_factory.mktemp("loaded"))
    yield running
    running.process.communicate(timeout=20)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mutated_prompt_is_refused_or_answers_and_touches_no_other(kind, models, loaded, tmp_path, caplog):
    mutants = Mutants(kind, models, tmp_path, caplog)
    mutants.run(20)
    assert mutants.ask_fresh(models, kind, loaded, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_mutated_prompts(kind, models, loaded, tmp_path, caplog, add, size):
    mutants = Mutants(kind, models, tmp_path, caplog)
    mutants.run(prompts := round(5_000 * size))
    fresh = mutants.ask_fresh(models, kind, loaded, FRESH)
    add("mutated prompts", kind, prompts=prompts, outcomes=mutants.outcomes, fresh=fresh, wrong=0)


# Fuzzed requests


def hostile_prompts(lm, folder):
    """Folders of prompts that are taken and mean no good; their names."""
    text = make_prompt(lm).card.text
    made = {
        "far": replace(make_prompt(lm), values=torch.full((4, lm.width), 1e30)),
        "many": make_prompt(lm, labels=tuple(f"label {n}" for n in range(300))),
        "long": make_prompt(lm, labels=("a " * 60, "b")),
        "wide": make_prompt(lm, text=text | {"inputs_template": "word " * 30 + "{sentence}"}),
        "odd": make_prompt(lm, labels=("\0", "😀\u202e"), text=text | {"inputs_template": "{sentence}\0" * 3}),
        "free": make_prompt(lm, 3, labels=(), recipe={"scoring": "generate"}),
        "keys": make_keys(lm, 7),
        "loud": make_keys(lm, 8, 1e18),
    }
    for name, prompt in made.items():
        save_prompt(prompt, folder / name)
    return tuple(made)


def archives_of(lm, folder, count):
    """Archives of whole prompts and of mutated ones."""
    draw, seeds = random.Random(SEED), prompts_of(lm, folder / "seeds")
    whole, bad = [archive(place) for place in seeds], []
    for number in range(count):
        place = folder / str(number)
        shutil.copytree(draw.choice(seeds), place, symlinks=True)
        mutate_folder(place, draw)
        bad.append(packed(place, draw))
    return whole, bad


class Bystander(threading.Thread):
    """Asks the same small thing again and again, and compares."""

    def __init__(self, port, wanted=None):
        super().__init__()
        self.port, self.stop = port, threading.Event()
        self.wanted = wanted or self.ask()
        self.seconds, self.wrong = [], []

    def ask(self):
        answer = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        answer.request("POST", "/v1/classify", json.dumps({"model": "bystander", "input": TEXT}), JSON)
        told = answer.getresponse()
        content = told.read()
        answer.close()
        assert told.status == 200, content
        return json.loads(content)["results"][0]

    def run(self):
        while not self.stop.is_set():
            began = time.monotonic()
            try:
                answer = self.ask()
                for label, log_prob in answer["log_probs"].items():
                    assert abs(log_prob - self.wanted["log_probs"][label]) < CLOSE, answer
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
            self.seconds.append(time.monotonic() - began)
            time.sleep(0.01)


def p99(seconds):
    return sorted(seconds)[int(0.99 * len(seconds))]


def ask_beside(port, asked, statuses, wanted=None):
    """Send these from six threads beside a bystander, which is returned with what was answered as it must not be."""
    wrong = []

    def ask(one):
        try:
            status, content = send(port, one)
        except Exception as error:
            wrong.append(f"{one.raw()[:600]}: {type(error).__name__}: {error}")
            return
        statuses[str(status)] += 1
        is_fault = status is not None and status >= 500 and status not in DOCUMENTED
        if is_fault or status == 507 or b'"server_error"' in content or (not one.change and status in (None, 400)):
            wrong.append(f"{one.change} {one.raw()[:600]}: {status} {content[:600]}")

    bystander = Bystander(port, wanted)
    bystander.start()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(ask, asked))
    bystander.stop.set()
    bystander.join()
    return bystander, wrong + bystander.wrong


def fuzz(port, names, archives, count, block):
    """Fuzzed requests in blocks, and as many well-formed ones before each fifth, for the bystander's sake."""
    whole, bad = archives
    draw, statuses, wrong = random.Random(SEED), Counter(), []
    seconds = {"well-formed": [], "fuzzed": []}
    wanted = Bystander(port).wanted
    for number in range(math.ceil(count / block)):
        for kind in ("well-formed", "fuzzed") if number % 5 == 0 else ("fuzzed",):
            asked = []
            for _ in range(block):
                is_fuzzed = kind == "fuzzed"
                asked.append(fuzzed(draw, names, whole, bad) if is_fuzzed else well_formed(draw, ("p0", "p1"), whole))
            bystander, faults = ask_beside(port, asked, statuses if kind == "fuzzed" else Counter(), wanted)
            seconds[kind] += bystander.seconds
            wrong += faults
        if len(wrong) > 30:
            break
    assert not wrong, f"{len(wrong)}: " + "\n\n".join(wrong[:30])
    assert statuses["200"] and statuses["400"] and statuses["404"]
    return statuses, {kind: round(1000 * p99(each), 1) for kind, each in seconds.items()}


def test_fuzzed_requests_break_nothing(models, tmp_path, caplog):
    lm = load(models / "llama", dtype="float32")
    server = make_server(lm, tmp_path)
    names = ("p0", "p1", lm.name, *hostile_prompts(lm, tmp_path / "hostile"))
    for name in names[3:]:
        server.registry.add(name, tmp_path / "hostile" / name)
    save_prompt(make_prompt(lm, 9), tmp_path / "bystander")
    server.registry.add("bystander", tmp_path / "bystander")
    with listening(server) as address:
        fuzz(int(address.split(":")[2].strip("/")), names, archives_of(lm, tmp_path / "archives", 20), 200, 100)
    assert not [record for record in caplog.records if record.exc_info]


class Serve:
    """`softprompt serve` in a process of its own, with its log in a file."""

    def __init__(self, models, folder, *words):
        self.lm, self.log = load(models / "llama", dtype="float32"), folder / "log"
        for number in range(2):
            save_prompt(make_prompt(self.lm, number), folder / "named" / f"p{number}")
        save_prompt(make_prompt(self.lm, 9), folder / "named" / "bystander")
        self.hostile = hostile_prompts(self.lm, folder / "kept")
        named = [f"{name}={folder / 'named' / name}" for name in ("p0", "p1", "bystander")]
        command = [sys.executable, "-m", "softprompt", "serve", "--model", str(models / "llama"), "--prompt", *named]
        command += [
            "--prompts-dir",
            str(folder / "kept"),
            "--port",
            "0",
            "--dtype",
            "float32",
            "--device",
            "cpu",
            *words,
        ]
        self.process = subprocess.Popen(command, stderr=self.log.open("w"), stdout=subprocess.DEVNULL)

    def wait(self):
        """Until it answers."""
        self.port = self._port()
        while not self._is_ready():
            time.sleep(0.1)

    def _is_ready(self):
        try:
            return send(self.port, Asked("GET", "/readyz"))[0] == 200
        except ConnectionRefusedError:
            return False

    def _port(self):
        for _ in range(1200):
            if found := re.search(r"http://127\.0\.0\.1:(\d+) ", self.log.read_text()):
                return int(found[1])
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def end(self):
        """Stop it; what its log has of tracebacks."""
        self.process.terminate()
        self.process.wait(60)
        return [line for line in self.log.read_text().splitlines() if "Traceback" in line or "not served" in line]


@pytest.fixture
def serve(models, tmp_path):
    running = []

    def start(*words):
        folder = tmp_path / str(len(running))
        folder.mkdir()
        running.append(Serve(models, folder, *words))
        running[-1].wait()
        return running[-1]

    yield start
    for each in running:
        each.process.kill()
        each.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_hundred_thousand_fuzzed_requests(serve, tmp_path, add, size):
    server, count = serve("--max-memory", "256M", "--timeout", "20"), round(100_000 * size)
    names = ("p0", "p1", "llama", *server.hostile)
    archives = archives_of(server.lm, tmp_path / "archives", 300)
    statuses, milliseconds = fuzz(server.port, names, archives, count, min(count, 1_000))
    assert not server.end()
    assert milliseconds["fuzzed"] <= 3 * milliseconds["well-formed"], milliseconds
    add(
        "fuzzed requests", "serve", requests=statuses.total(), statuses=statuses, bystander_p99_ms=milliseconds, wrong=0
    )


# Load


class Load:
    """Clients at a rate, while prompts come, change and go. Each answer is that of its prompt, asked alone before."""

    def __init__(self, server, folder, *, is_exact):
        self.server, self.is_exact = server, is_exact
        self.uploads = []
        for seed in range(4):
            save_prompt(make_prompt(server.lm, 20 + seed), folder / f"v{seed}")
            self.uploads.append(archive(folder / f"v{seed}"))
        self.bad = archives_of(server.lm, folder / "archives", 20)[1]
        self.known, self.seconds, self.memory, self.wrong = {}, [], [], []
        self.done = Counter()

    def post(self, path, body, method="POST"):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return send(self.server.port, Asked(method, path, content))

    def questions(self, name):
        """What is asked of a prompt: labels, and text, of several texts each."""
        for number in range(6):
            text = f"{TEXT} number {number} " * (1 + number % 3)
            yield "/v1/classify", {"model": name, "input": text}
            yield "/v1/completions", {"model": name, "prompt": text, "max_tokens": 12, "logprobs": 0}

    def numbers(self, path, content):
        """Of an answer, its prompt, its text and its log-probabilities."""
        told = json.loads(content)
        if path == "/v1/classify":
            (answer,) = told["results"]
            return answer["prompt_hash"], answer["label"], list(answer["log_probs"].values())
        (answer,) = told["choices"]
        return answer["prompt_hash"], answer["text"], answer["logprobs"]["token_logprobs"]

    def learn(self, name):
        """Ask everything alone."""
        for path, body in self.questions(name):
            status, content = self.post(path, body)
            assert status == 200, content
            prompt, text, log_probs = self.numbers(path, content)
            self.known[prompt, path, body.get("input", body.get("prompt"))] = text, log_probs

    def ask(self, path, body, due=None):
        """Ask, compare, and note how long after it was due the answer was there."""
        due = due or time.monotonic()
        try:
            status, content = self.post(path, body)
            self.done[str(status)] += 1
            if status == 404:  # of a name that comes and goes
                assert body["model"] in ("hot", "alias"), content
                return
            assert status == 200, content
            prompt, text, log_probs = self.numbers(path, content)
            wanted_text, wanted = self.known[prompt, path, body.get("input", body.get("prompt"))]
            if self.is_exact:
                assert (text, log_probs) == (wanted_text, wanted), (body, text, wanted_text)
            else:
                assert text == wanted_text and log_probs == pytest.approx(wanted, abs=CLOSE), (body, text, wanted_text)
        except Exception as error:
            self.wrong.append(f"{path} {str(body)[:300]}: {type(error).__name__}: {str(error)[:600]}")
        self.seconds.append(time.monotonic() - due)

    def capacity(self, seconds):
        """Requests in a second that eight clients get answered, one after the other."""
        until, asked, draw = time.monotonic() + seconds, Counter(), random.Random(SEED)
        questions = [each for name in ("p0", "p1", "bystander") for each in self.questions(name)]

        def ask(_):
            while time.monotonic() < until:
                self.ask(*draw.choice(questions))
                asked["all"] += 1

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
        return asked["all"] / seconds

    def disturb(self, stop):
        """Uploads, replacements, deletes, aliases, hang-ups and bad prompts, one after the other."""
        draw = random.Random(SEED + 1)
        while not stop.is_set():
            what = draw.choice(("upload", "upload", "delete", "alias", "hang up", "hang up", "bad", "hostile"))
            try:
                if what == "upload":
                    status, content = self.post("/v1/prompts/hot", draw.choice(self.uploads), "PUT")
                elif what == "delete":
                    status, content = self.post("/v1/prompts/hot", b"", "DELETE")
                elif what == "alias":
                    target = draw.choice(("hot", "p0", "p1"))
                    status, content = self.post("/v1/aliases/alias", {"targets": {target: 100.0}}, "PUT")
                elif what == "bad":
                    status, content = self.post("/v1/prompts/mutant", draw.choice(self.bad), "PUT")
                elif what == "hostile":
                    asked = {"model": draw.choice(self.server.hostile), "prompt": TEXT, "max_tokens": 30}
                    status, content = self.post("/v1/completions", asked)
                else:
                    body = json.dumps({"model": "p0", "prompt": TEXT, "max_tokens": 100, "stream": True}).encode()
                    raw = Asked("POST", "/v1/completions", body).raw()
                    send(self.server.port, Asked("POST", "", sent=raw, change="leave"))
                    status, content = 499, b""
                assert status < 500, content
                self.done[f"{what} {status}"] += 1
            except Exception as error:
                self.wrong.append(f"{what}: {type(error).__name__}: {str(error)[:600]}")
            stop.wait(draw.uniform(0, 0.6))

    def run(self, seconds):
        """The load; requests in a second at 70 % of what can be had."""
        for name in ("p0", "p1", "bystander"):
            self.learn(name)
        for content in self.uploads:
            assert self.post("/v1/prompts/hot", content, "PUT")[0] == 200
            self.learn("hot")
        rate = 0.7 * self.capacity(min(10.0, seconds / 4))
        stop, draw = threading.Event(), random.Random(SEED + 2)
        disturber = threading.Thread(target=self.disturb, args=(stop,))
        disturber.start()
        resident = psutil.Process(self.server.process.pid).memory_info
        began = due = time.monotonic()
        questions = [each for name in ("p0", "p1", "bystander", "hot", "alias") for each in self.questions(name)]
        with ThreadPoolExecutor(64) as threads:
            while due < began + seconds:
                time.sleep(max(0.0, due - time.monotonic()))
                threads.submit(self.ask, *draw.choice(questions), due)
                if not self.memory or due - self.memory[-1][0] >= 1:
                    self.memory.append((due, resident().rss))
                due += draw.expovariate(rate)
        stop.set()
        disturber.join()
        assert not self.wrong, f"{len(self.wrong)}: " + "\n".join(self.wrong[:10])
        return rate

    def growth(self):
        """By what share the most resident memory of the last three fifths is above that of the two before."""
        started, ended = self.memory[0][0], self.memory[-1][0]
        settled = started + 0.4 * (ended - started)
        before = max(resident for at, resident in self.memory if at <= settled)
        return max(resident for at, resident in self.memory if at > settled) / before - 1


def test_load_is_answered_as_if_alone(serve, tmp_path):
    server = serve("--batch-invariant")
    load = Load(server, tmp_path, is_exact=True)
    load.run(2.0)
    assert load.done["200"] > 8 and not server.end()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("words", [(), ("--batch-invariant",)], ids=["float32", "batch-invariant"])
def test_twelve_minutes_and_a_half_of_load(words, serve, tmp_path, add, size):
    """Memory must be flat after the first five."""
    server, seconds = serve("--max-memory", "256M", *words), 750.0 * size
    load = Load(server, tmp_path, is_exact=bool(words))
    rate, growth = load.run(seconds), load.growth()
    assert not server.end()
    assert size < 1 or growth < 0.03, growth
    add(
        "load", " ".join(["serve", *words]), load_s=seconds, requests_per_s=round(rate, 1), done=load.done,
        p99_ms=round(1000 * p99(load.seconds), 1), growth=round(growth, 4), wrong=0,
    )  # fmt: skip
