"""What more processes of Ray answer on one machine: replicas of a server, and workers of predict.

    SOFTPROMPT_DATA=... python benchmarks/answers_on_ray.py serve      # about 12 minutes on 2 cores
    SOFTPROMPT_DATA=... python benchmarks/answers_on_ray.py predict    # about 15 minutes on 2 cores

`--quick` takes a minute or two of each, to see that it runs, and keeps no rows. Rows: results/cluster.jsonl.

serve: requests a second of `softprompt serve --ray` with two replicas of one thread and with one, and of a server
without Ray with one thread and with two, in alternation: sentences of SST-2, each with one of 16 prompts of 100 tokens,
16 tokens written, 32 requests in flight from clients on this machine. predict: rows a second of the whole command, two
labels ranked for eight files of sentences, with two workers of one thread and with one, and without Ray. A ratio, two
beside one, is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
from sides import SMOLLM2
from startup import ROOT, timed
from train_speed import append

from softprompt.answering import surroundings
from softprompt.models import FrozenLM, default_format, load
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.prompts.initial import from_vocabulary
from softprompt.tasks import read_records

NUM_PROMPTS = 16
LENGTH = 100
IN_FLIGHT = 32


def write_prompts(lm: FrozenLM, folder: Path, count: int) -> dict[str, str]:
    """Prompts of random vocabulary that rank SST-2's labels and write text, by name."""
    text = default_format(lm, max_target_length=16, inputs_template="sentence: {sentence}", targets_template="{label}")
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        values, _ = from_vocabulary(lm.embeddings, lm.tokenizer, LENGTH, generator=generator)
        card = Card(
            model_name=lm.name,
            model_fingerprint=lm.fingerprint,
            is_encoder_decoder=lm.is_encoder_decoder,
            width=lm.width,
            task="own",
            labels=("negative", "positive"),
            text=text.to_json(),
            recipe={"scoring": "rank"},
        )
        save_prompt(SoftPrompt(values, card), folder / f"p{seed}")
    return {f"p{seed}": str(folder / f"p{seed}") for seed in range(count)}


def sentences(data: str, count: int) -> list[str]:
    """The first sentences of SST-2's training file."""
    found = []
    for _, record in read_records(Path(data) / "glue" / "SST-2" / "train.tsv"):
        found.append(record["sentence"])
        if len(found) == count:
            break
    return found


@contextmanager
def serving(words: Sequence[str], folder: Path) -> Iterator[str]:
    """A server in a process of its own, ready; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "softprompt", "serve", *words, "--port", str(port)]
    with open(folder / "server.log", "w") as log:
        process = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)})
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=10).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text()) from None
                time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def requests_a_second(url: str, texts: Sequence[str], names: Sequence[str], seconds: float) -> float:
    """What `IN_FLIGHT` clients get, after a third of the time that is not counted."""
    began = time.monotonic() + seconds / 3
    end, counts = began + seconds, [0] * IN_FLIGHT

    def ask(client: int) -> None:
        draw = random.Random(client)
        while time.monotonic() < end:
            body = {"model": draw.choice(names), "prompt": draw.choice(texts), "max_tokens": 16}
            request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
            request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=120) as answer:
                answer.read()
            counts[client] += began <= time.monotonic() < end

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(IN_FLIGHT)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return sum(counts) / seconds


def serve(lm: FrozenLM, folder: Path, data: str, is_quick: bool) -> dict[str, list[float]]:
    """Requests a second of each way, once a round: sentences, each with one of `NUM_PROMPTS`, 16 tokens written,
    `IN_FLIGHT` at once from clients on this machine.
    """
    prompts, texts = write_prompts(lm, folder, NUM_PROMPTS), sentences(data, 500)
    named = ["--model", lm.name, "--prompt", *(f"{name}={place}" for name, place in prompts.items())]
    ways = {
        "one": ["--ray", "--replicas", "1", "--threads", "1"],
        "two": ["--ray", "--replicas", "2", "--threads", "1"],
        "without Ray, one thread": ["--threads", "1"],
        "without Ray, two threads": ["--threads", "2"],
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 if is_quick else 3):
        for way, words in ways.items():
            with serving([*named, *words], folder) as url:
                found[way].append(requests_a_second(url, texts, list(prompts), 6 if is_quick else 30))
    return found


def predict(lm: FrozenLM, folder: Path, data: str, is_quick: bool) -> dict[str, list[float]]:
    """Rows a second of each way, the whole command, once a round: labels ranked for eight files of sentences."""
    (prompt,) = write_prompts(lm, folder, 1).values()
    rows = 64 if is_quick else 768
    texts = sentences(data, 8 * rows)
    for number in range(8):
        part = [json.dumps({"sentence": text}) + "\n" for text in texts[number * rows : (number + 1) * rows]]
        (folder / f"part-{number}.jsonl").write_text("".join(part))
    (folder / "all.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    words = ["predict", "--prompt", prompt, "--model", lm.name, "--overwrite"]
    on_ray = [
        *words,
        "--ray",
        "--threads",
        "1",
        "--input",
        str(folder / "part-*.jsonl"),
        "--output",
        str(folder / "out"),
    ]
    alone = [*words, "--input", str(folder / "all.jsonl"), "--output", str(folder / "all-answers.jsonl")]
    ways = {
        "one": [*on_ray, "--workers", "1"],
        "two": [*on_ray, "--workers", "2"],
        "without Ray, one thread": [*alone, "--threads", "1"],
        "without Ray, two threads": [*alone, "--threads", "2"],
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 if is_quick else 3):
        for way, command in ways.items():
            found[way].append(8 * rows / timed(command))
    return found


WAYS = {"serve": (serve, 1.4), "predict": (predict, None)}  # and times one's speed, of two: the project's own bar


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print, and append the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=WAYS)
    parser.add_argument("--quick", action="store_true", help="once, and little; no rows")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--results", type=Path, default=Path("results/cluster.jsonl"))
    options = parser.parse_args(words)
    (run, needed), lm = WAYS[options.measure], load(options.model)
    with tempfile.TemporaryDirectory() as folder:
        found = run(lm, Path(folder), os.environ["SOFTPROMPT_DATA"], options.quick)
    ratios = [two / one for one, two in zip(found["one"], found["two"], strict=True)]
    row = {
        "experiment": "cluster",
        "measure": options.measure,
        "model": lm.name,
        "ratio": round(median(ratios), 4),
        "samples": [round(ratio, 3) for ratio in ratios],
        "per_second": {way: [round(sample, 3) for sample in samples] for way, samples in found.items()},
        "needed": needed,
        "reached": needed is None or median(ratios) >= needed,
        **surroundings(lm.device, lm.dtype),
        "command": shlex.join(["python", "benchmarks/answers_on_ray.py", *(sys.argv[1:] if words is None else words)]),
    }
    print(json.dumps(row, indent=1))
    if not options.quick:
        append(options.results, [row])


if __name__ == "__main__":
    main()
