"""Nothing is lost: every command on a disk that is full at each of its writes, and kills of what runs long.

Each trial is a child of one loaded process (campaigns/loaded.py), whose calls to the file system a preloaded library
counts, refuses or dies at (campaigns/disk.c). `make slow` takes every moment and writes results/campaigns.jsonl; the
short form takes the first, the last and every tenth. Without a compiler files have a largest size instead.
"""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import SEED, make_llama, make_t5, make_tokenizer
from texts import documents

from softprompt.base.curve import CURVE
from softprompt.models.loading import load
from softprompt.models.text import default_format
from softprompt.prompts import CARD, CONFIG, README, WEIGHTS, Card, SoftPrompt, load_prompt, save_prompt
from softprompt.prompts.folder import JOURNAL

ROOT = Path(__file__).parent.parent
CAMPAIGNS = Path(__file__).parent / "campaigns"
SIZES = (0, 200, 1_000, 5_000)  # bytes that files may get, where there is no compiler
EVERY = 10  # moments apart in the short form
PROMPT = (CARD, CONFIG, README, WEIGHTS)
ROWS = "rows.jsonl"  # of a study, which gets a method's or a point's as soon as there are any

OWN = "--inputs 'text: {text}' --targets {label} --labels good,bad --dtype float32 --device cpu"
FEW = "--batch-size 4 --prompt-length 2 --learning-rate 0.1 --evaluate-every 2 --num-selection 8 --steps 2"
TRAIN = f"train --data train=train.jsonl dev=dev.jsonl {OWN} {FEW}"
COMPARE = f"compare --model ./llama --data train=train.jsonl dev=dev.jsonl {OWN} {FEW} --seeds 0 --rows {ROWS}"
TEXT = "--corpus corpus.txt --batch-size 4 --micro-batch-size 4 --input-length 32 --num-heldout 8 --warmup-steps 1"
PRETRAIN = f"pretrain --size shape.json --vocabulary words {TEXT} --evaluate-every 2 --no-compile --dtype float32"
SHAPE = {"d_model": 32, "d_ff": 64, "num_heads": 2, "d_kv": 16, "num_layers": 1, "num_decoder_layers": 1}


@dataclass(frozen=True)
class Case:
    """A command that writes."""

    words: str
    out: str
    """What it writes, by the name that a message must have."""
    before: tuple[str, ...] = ()
    """Commands that ran there earlier."""
    again: str | None = ""
    """What is behind the words for the end to be as if nothing had happened; None: there is no second time."""
    asked: tuple[tuple[str, str, str], ...] = ()
    stdout: str = ""
    """The file that standard output goes to."""


ADAPT = f"adapt --model span {TEXT} --evaluate-every 2 --no-compile --dtype float32"
EXPERIMENT = (
    f"experiment figure-3a --models ./llama --tasks glue/sst2 --data data --dtype float32 "
    f"--device cpu {FEW.replace('--prompt-length 2 ', '')}"
)
COMMANDS = {
    "train": Case(f"{TRAIN} --model ./llama --out run --log-to none", "run", again="--resume"),
    "train over another": Case(
        f"{TRAIN} --model ./t5 --out run --overwrite", "run", (f"{TRAIN} --model ./t5 --out run --seeds 1,2",)
    ),
    "predict": Case("predict --prompt p0 --input dev.jsonl --output answers", "answers", again="--resume"),
    "predict over another": Case(
        "predict --prompt p0 --input dev.jsonl --output answers --scores --overwrite", "answers",
        ("predict --prompt p1 --input dev.jsonl --output answers",),
    ),
    "predict > file": Case(
        "predict --prompt p0 --input dev.jsonl", "standard output", again=None, stdout="answers"
    ),
    "eval": Case(
        "eval --prompt p0 p1 --data dev=dev.jsonl --errors wrong --rows wrong.rows", "wrong",
        ("eval --prompt p1 --data dev=dev.jsonl --errors wrong --rows wrong.rows",),
    ),
    "convert to peft": Case(
        "convert p0 --to peft --out made --overwrite", "made", ("convert p1 --to peft --out made",)
    ),
    "convert to t5x": Case("convert p0 --to t5x --out made --overwrite", "made", ("convert p1 --to t5x --out made",)),
    "convert to tgis": Case(
        "convert p0 --to tgis --out made --overwrite", "made", ("convert p1 --to tgis --out made",)
    ),
    "convert to vocabulary": Case("convert p0 --to vocabulary --model ./llama --out made", "made"),
    "compare": Case(f"{COMPARE} --out made --methods prompt-tuning,lora", "", again=""),
    "experiment": Case(f"{EXPERIMENT} --points 1 5 --seeds 0,1 --out made --rows {ROWS}", "", again=""),
    "report": Case(
        "report two.rows --out page", "page",
        (
            "eval --prompt p0 --data dev=dev.jsonl --rows one.rows", "report one.rows --out page",
            "eval --prompt p1 --data dev=dev.jsonl --rows two.rows",
        ),
    ),
    "rerun": Case(
        "rerun run/results.jsonl:1 --data train=train.jsonl dev=dev.jsonl --out made", "made",
        (f"{TRAIN} --model ./llama --out run",), again=None,
    ),
    "vocabulary": Case("vocabulary --corpus corpus.txt --size 410 --out made --threads 1", "made"),
    "pretrain": Case(f"{PRETRAIN} --steps 2 --keep 0,1 --out made --log-to none", "made", again="--resume"),
    "adapt over another": Case(
        f"{ADAPT} --steps 2 --out made --overwrite", "made",
        (f"{PRETRAIN} --steps 2 --out span", f"{ADAPT} --steps 4 --keep 3 --out made"),
    ),
}  # fmt: skip
SERVED = Case(
    "serve --model ./llama --prompts-dir kept --port 0", "kept",
    asked=(
        ("PUT", "/v1/prompts/a", "p0.tar"), ("PUT", "/v1/prompts/a", "p1.tar"), ("PUT", "/v1/prompts/b", "p0.tar"),
        ("PUT", "/v1/aliases/c", '{"targets": {"a": 100.0}}'), ("DELETE", "/v1/prompts/b", ""),
        ("GET", "/v1/prompts", ""),
    ),
)  # fmt: skip
SHORT = ("predict", "predict > file", "eval", "convert to peft")  # the quick ones
KILLED = {
    "prompts of a decoder": f"{TRAIN} --model ./llama --seeds 0,1 --out run --steps 16 --resume",
    "prompts of a T5": f"{TRAIN} --model ./t5 --preset google-code --out run --steps 16 --resume",
    "keys and values": f"{TRAIN} --model ./llama --method kv --out run --steps 16 --resume",
    "weights of a decoder": f"{COMPARE} --out run --steps 6 --methods model-tuning,lora",
    "weights of a T5": f"{PRETRAIN} --steps 16 --keep 0,11 --out run --resume",
}


class Loaded:
    """campaigns/loaded.py, running."""

    def __init__(self, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOFTPROMPT_CACHE": str(folder / "cache")}
        environment["PYTHONPATH"] = str(ROOT)
        self.counts = self._compiled(folder / "disk.so")
        if self.counts:
            environment |= {"LD_PRELOAD": str(folder / "disk.so"), "DISK_LIBRARY": str(folder / "disk.so")}
        self.process = subprocess.Popen(
            [sys.executable, str(CAMPAIGNS / "loaded.py")],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _compiled(self, library):
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            return False
        source = str(CAMPAIGNS / "disk.c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), source, "-ldl"], check=True)
        return True

    def run(self, folder, words, **request):
        """What a child told that ran these words in that folder."""
        request = {"folder": str(folder), "words": shlex.split(words), **request}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def done(self, folder, words, **request):
        """The same of a command that must come to its end."""
        answer = self.run(folder, words, **request)
        assert answer["code"] == 0, answer
        return answer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    running = Loaded(tmp_path_factory.mktemp("loaded"))
    yield running
    running.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def base(tmp_path_factory, loaded):
    """A working folder with models, texts and prompts, of which each trial has a copy."""
    folder = tmp_path_factory.mktemp("base")
    models = tmp_path_factory.mktemp("models")
    for kind, model in (("llama", make_llama()), ("t5", make_t5())):
        model.save_pretrained(models / kind)
        make_tokenizer(bos=kind == "llama").save_pretrained(models / kind)
        (folder / kind).symlink_to(models / kind)
    for split, count in (("train", 40), ("dev", 12)):
        records = []
        for number in range(count):
            word, label = ("warm", "good") if number % 2 else ("dull", "bad")
            records.append({"text": f"a {split} film that is {word} {number}", "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for seed in range(2):
        save_random(folder / f"p{seed}", load(folder / "llama", dtype="float32"), "./llama", seed)
        with tarfile.open(folder / f"p{seed}.tar", "w") as archive:
            archive.add(folder / f"p{seed}", "p")
    sst2 = folder / "data" / "glue" / "SST-2"
    sst2.mkdir(parents=True)
    for name, count in (("train", 600), ("dev", 12)):
        lines = [f"a {'warm' if n % 2 else 'dull'} film of {name} {n}\t{n % 2}" for n in range(count)]
        (sst2 / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    (folder / "corpus.txt").write_text("\n".join(documents(200)))
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    loaded.done(folder, "vocabulary --corpus corpus.txt --size 410 --out words --threads 1")
    return folder


def save_random(folder, lm, name, seed):
    form = default_format(lm, max_target_length=8, inputs_template="text: {text}", targets_template="{label}")
    card = Card(
        model_name=name, model_fingerprint=lm.fingerprint, is_encoder_decoder=lm.is_encoder_decoder, width=lm.width,
        task="own", labels=("good", "bad"), text=form.to_json(), recipe={"scoring": "rank"},
    )  # fmt: skip
    save_prompt(SoftPrompt(torch.randn(3, lm.width, generator=torch.Generator().manual_seed(seed)), card), folder)


def content(folder, known=()):
    """Every file there by its path, without what is a clock's or a machine's; without logs, locks and `known`. Of a
    prompt's folder its values, too, which must be those that its card says. A study's rows come in any order.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name not in known and path.name != JOURNAL and ((path / CONFIG).exists() or (path / JOURNAL).exists()):
            files[f"{name}, values"] = load_prompt(path).sha256
        if path.is_symlink() or path.is_dir() or name in known or "/logs/" in name or path.name.endswith(".lock"):
            continue
        written = path.read_bytes()
        if path.suffix in (".jsonl", ".rows", ".json"):
            written = re.sub(rb'"(seconds|evaluation_s|peak_bytes|resume|dirty)": [^,}]+', rb'"\1": 0', written)
        files[name] = b"".join(sorted(written.splitlines(True))) if path.name == ROWS else written
    return files


def is_on_the_way(name):
    """Whether a file is there only for a run to be gone on with."""
    return name.endswith(("checkpoint.safetensors", ".partial", ".partial.settings")) or "/trials/" in name


def whole(files, but=()):
    """Those that stay, but for some folders."""
    return {
        name: written for name, written in files.items() if not (is_on_the_way(name) or name.startswith(tuple(but)))
    }


def leftovers(files):
    """Temporary files and folders that nobody will look at again."""
    return [name for name in files if re.search(r"(^|/)\.[^/]+\.\d+(/|$)|\.softprompt-saving|(^|/)\.tmp", name)]


class Trials:
    """Copies of a folder, in which a case runs to its end or not."""

    def __init__(self, loaded, base, case, folder):
        self.loaded, self.case, self.folder, self.count = loaded, case, folder, 0
        self.start = folder / "start"
        folder.mkdir(exist_ok=True)
        shutil.copytree(base, self.start, symlinks=True)
        for words in case.before:
            loaded.done(self.start, words)
        self.known = {str(path.relative_to(base)) for path in base.rglob("*")}
        self.before = content(self.start, self.known)
        ended = self.copy()
        self.run(ended)  # so that the loaded process has what this command imports
        shutil.rmtree(ended)
        ended = self.copy()
        self.answer = self.run(ended)
        assert self.answer["code"] == 0, self.answer
        self.end = whole(content(ended, self.known))

    def copy(self):
        self.count += 1
        copied = self.folder / str(self.count)
        shutil.copytree(self.start, copied, symlinks=True)
        return copied

    def run(self, folder, **request):
        asked = list(map(list, self.case.asked))
        return self.loaded.run(folder, self.case.words, asked=asked, stdout=self.case.stdout, **request)

    def ends_alike(self, folder, unkept=()):
        """What came later, where there is a second time: the end is that of a run that nothing happened to.

        unkept: folders that a full disk did not take, which cannot be made later.
        """
        if self.case.again is not None:
            answer = self.loaded.run(folder, f"{self.case.words} {self.case.again}")
            assert answer["code"] == 0, answer
            files = content(folder, self.known)
            assert not leftovers(files)
            assert whole(files, unkept) == whole(self.end, unkept)
        shutil.rmtree(folder)


def check_full(trials, answer, folder, reason):
    """What is there after a command met a full disk, and what it said."""
    case, files = trials.case, content(folder, trials.known)
    told = answer["err"].splitlines()
    assert answer["code"] in (0, 1, 2) and "Traceback" not in answer["err"], answer
    assert not leftovers(files), answer
    for name, written in whole(files).items():
        if Path(name).name in (*PROMPT, CURVE) or JOURNAL in name:
            continue  # a prompt's values count, as its card is written once more with the dev scores; a curve grows
        if name == case.stdout:
            assert trials.end[name].startswith(written) and written[-1:] in (b"", b"\n"), (name, answer)
            continue
        if name == ROWS:
            assert set(written.splitlines(True)) <= set(trials.end[name].splitlines(True)), (name, answer)
            continue
        assert written in (trials.before.get(name), trials.end.get(name)), (name, answer)
    for name in whole(trials.before).keys() & trials.end.keys():
        assert name in files, (name, answer)
    if answer["code"] == 0:
        assert whole(files) == trials.end, answer
    else:
        assert re.search(rf"{case.out}.*\(?{reason}", told[-1]), answer
    is_tried = answer["code"] != 0 and answer.get("calls", 0) % 3 == 0  # with nothing to go on with, a third is enough
    if case.again or is_tried:
        unkept = re.findall(r"no model of step (\d+)", answer["err"])
        trials.ends_alike(folder, [f"made/steps/{step}/" for step in unkept])


def full_moments(trials, every):
    """The requests that fill the disk: at the first moment, at the last, and every so many between."""
    if not trials.loaded.counts:
        return [{"limit": size} for size in SIZES]
    last = trials.answer["calls"]
    chosen = sorted({1, last, *range(every, last, every)}) if every > 1 else range(1, last + 1)
    return [{"mode": ("full", "full once")[at % 2], "at": at} for at in chosen]


def fill(loaded, base, case, folder, every=1):
    """Fill the disk at those moments; how often the command ended with which code."""
    trials = Trials(loaded, base, case, folder)
    codes, wrong = Counter(), []
    for request in full_moments(trials, every):
        place = trials.copy()
        answer = trials.run(place, **request)
        if answer["code"] == 0 and not answer.get("failed", "not known"):
            shutil.rmtree(place)  # it did not come to that moment, as a later run may have fewer
            continue
        codes[str(answer["code"])] += 1
        try:
            check_full(trials, answer, place, "No space left on device" if loaded.counts else "File too large")
        except AssertionError as error:  # all of them are told together
            wrong.append(f"{request}: {str(error)[:2000]}")
    assert codes and not wrong, "\n\n".join(wrong)
    return codes


def test_a_disk_that_is_full_at_some_moment_is_told_and_nothing_is_lost(loaded, base, tmp_path):
    for name in SHORT:
        assert fill(loaded, base, COMMANDS[name], tmp_path / name, every=EVERY)["2"]


def kills(loaded, base, words, folder, number, each=1):
    """So many kills of a command, each run killed so often and then ended, as if it never was; how many runs.

    Half of them come at a call to the file system, where they can, the others at any time.
    """
    trials, draw = Trials(loaded, base, Case(words, ""), folder), random.Random(SEED)
    killed = runs = 0
    while killed < number:
        place = trials.copy()
        for _ in range(each):
            moment = {"kill_after_s": draw.uniform(0, trials.answer["seconds"])}
            if loaded.counts and draw.random() < 0.5:
                moment = {"mode": draw.choice(["kill before", "kill after"])}
                moment["at"] = draw.randint(1, trials.answer["calls"])
            answer = trials.run(place, **moment)
            assert answer["code"] in (None, 0) and "Traceback" not in answer["err"], answer
            killed += answer["code"] is None  # the others had come to their end before
        trials.ends_alike(place)
        runs += 1
    return runs


@pytest.fixture(scope="module")
def mini(base):
    """Answers by bundled/t5-mini, with a prompt and texts that are made for it."""
    save_random(base / "mini", load("bundled/t5-mini", dtype="float32"), "bundled/t5-mini", 0)
    lines = [f"the {word} film number {n}" for n in range(40) for word in ("warm", "dull")]
    (base / "texts.txt").write_text("\n".join(lines) + "\n")
    return "predict --prompt mini --input texts.txt --output answers --scoring generate --dtype float32 --resume"


def test_what_was_killed_goes_on_to_the_same_end(loaded, base, mini, tmp_path):
    assert kills(loaded, base, KILLED["prompts of a T5"], tmp_path / "train", 2)
    assert kills(loaded, base, mini, tmp_path / "predict", 2, each=2)


# The whole campaigns


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full_at_any_write_of_a_command(name, loaded, base, tmp_path, add):
    codes = fill(loaded, base, COMMANDS[name], tmp_path)
    add("disk full", name, moments=codes.total(), codes=codes, lost=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_disk_that_is_full_at_any_write_of_the_server(loaded, base, tmp_path, add):
    trials, statuses = Trials(loaded, base, SERVED, tmp_path), Counter()
    assert [status for status, _ in trials.answer["answers"]] == [200] * len(SERVED.asked), trials.answer
    for request in full_moments(trials, 1):
        place = trials.copy()
        answer = trials.run(place, **request)
        assert "Traceback" not in answer["err"], answer
        if answer["code"] == 2:  # it did not start
            assert re.search("could not write .*kept", answer["err"].splitlines()[-1]), answer
            statuses["not started"] += 1
            continue
        assert answer["code"] == 0, answer
        for status, told in answer["answers"]:
            assert status == 200 or (status in (404, 507) and told["error"]["message"]), answer
            statuses[str(status)] += 1
        restarted = loaded.done(place, SERVED.words, asked=[["GET", "/v1/prompts", ""]])
        assert restarted["answers"][0] == answer["answers"][-1], (answer, restarted)
        assert not leftovers(content(place, trials.known)), answer
        shutil.rmtree(place)
    add("disk full", "serve", moments=trials.answer.get("calls"), codes=statuses, lost=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", KILLED)
def test_twenty_kills_of_a_training_end_in_the_same_bits(name, loaded, base, tmp_path, add):
    add("kills", name, kills=20, runs=kills(loaded, base, KILLED[name], tmp_path, 20), other_ends=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fifty_kills_of_predict_end_in_the_same_lines(loaded, base, mini, tmp_path, add):
    add("kills", "predict", kills=50, runs=kills(loaded, base, mini, tmp_path, 50, each=2), other_ends=0)
