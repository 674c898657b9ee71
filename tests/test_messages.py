"""What is said to bad input, literally: tests/messages.json holds each answer with its exit code or status.

    MESSAGES=write python -m pytest tests/test_messages.py

writes the answers anew (and keeps what is marked "bad": a wish of ours that the message, not only its words, be
better: an inner library speaks, a traceback comes, or what is wrong is taken without a word). A change to a message is
then a change to that file, to be read before it is committed. Only public names are used: the command line,
`softprompt.*`, and the application that `softprompt serve` hands to uvicorn. Temporary folders read <tmp>.
"""

import io
import json
import logging
import os
import re
import shlex
import shutil
import stat
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import jaxtyping
import pytest
import torch
from conftest import make_llama, make_t5, make_tokenizer
from safetensors.torch import save_file

import softprompt
from softprompt.cli import main, serve
from softprompt.prompts import load_prompt, save_prompt

MESSAGES = Path(__file__).parent / "messages.json"
PROMPTS = Path(__file__).parent / "fixtures" / "v0.1.0" / "prompts"
WRITES = os.environ.get("MESSAGES") == "write"
QUIET = {"-": None}  # a field that is to be left out

# Each table: a case's name, and what is wrong in it.

OWN = "--data train=own.jsonl --inputs 'text: {text}' --targets '{label}' --labels good,bad"
TINY = "--model ./llama --steps 2 --prompt-length 3 --batch-size 2 --device cpu --dtype float32"
NONE = "train --model ./none --task glue/sst2"  # a model that is not there: said once all settings are read
GOOD = "".join(
    json.dumps({"text": f"{word} {number}", "label": label}) + "\n"
    for number in range(6)
    for word, label in (("warm", "good"), ("dull", "bad"))
)

COMMANDS = {
    "no command": "",
    "unknown command": "trian",
    "unknown command, nothing near": "zzz",
    "unknown flag": "train --lerning-rate 3",
    "unknown flag, nothing near": "train --zzz",
    "unknown flag of the program": "--zzz",
    "a flag cut short": "train --step 3",
    "a flag without its value": "train --steps",
    "a word too many": "train --steps 3 more",
    "a value for a switch": "train --resume=yes",
    # train
    "train": "train",
    "train, no task": "train --model ./llama",
    "train, no files": "train --model ./llama --inputs '{a}' --targets '{b}'",
    "train, task and templates": f"train --model ./llama --task glue/sst2 {OWN}",
    "train, inputs alone": "train --model ./llama --inputs '{a}' --data train=own.jsonl",
    "train, labels for a task": "train --model ./llama --task glue/sst2 --labels a,b",
    "train, metric for a task": "train --model ./llama --task glue/sst2 --metric f1",
    "train, group for a task": "train --model ./llama --task glue/sst2 --group-by a",
    "--steps many": "train --steps many",
    "--steps 1.5": "train --steps 1.5",
    "--steps 0": f"train {TINY} {OWN} --steps 0",
    "--steps -1": f"train {TINY} {OWN} --steps -1",
    "--seeds 0,x": "train --seeds 0,x",
    "--seeds nothing": "train --seeds ''",
    "--seeds twice": f"{NONE} --seeds 1,1",
    "--seeds below 0": f"{NONE} --seeds=-1",
    "--seeds too large": f"{NONE} --seeds 9223372036854775808",
    "--learning-rate fast": "train --learning-rate fast",
    "--learning-rate 0": f"train {TINY} {OWN} --learning-rate 0",
    "--learning-rate nan": f"train {TINY} {OWN} --learning-rate nan",
    "--learning-rate inf": f"train {TINY} {OWN} --learning-rate inf",
    "--prompt-length x": "train --prompt-length x",
    "--prompt-length 0": f"train {TINY} {OWN} --prompt-length 0",
    "--prompt-length 501": f"train {TINY} {OWN} --prompt-length 501",
    "--prompt-length beyond the model": f"train {TINY} {OWN} --prompt-length 250",
    "--batch-size x": "train --batch-size x",
    "--batch-size 0": f"train {TINY} {OWN} --batch-size 0",
    "--minutes soon": "train --minutes soon",
    "--minutes 0": f"{NONE} --minutes 0",
    "--minutes nan": f"{NONE} --minutes nan",
    "--dtype float16": f"{NONE} --dtype float16",
    "--dropout much": "train --dropout much",
    "--dropout 1": f"train {TINY} {OWN} --dropout 1",
    "--max-train 0": f"{NONE} --max-train 0",
    "--max-train all": "train --max-train all",
    "--max-dev 0": f"{NONE} --max-dev 0",
    "--max-dev x": "train --max-dev x",
    "--budget lots": "train --budget lots",
    "--budget 9": f"train --model ./llama {OWN} --budget 9 --device cpu --dtype float32",
    "--budget and --prompt-length": f"{NONE} --budget 9K --prompt-length 4",
    "--patience -1": f"train {TINY} {OWN} --patience -1",
    "--patience x": "train --patience x",
    "--evaluate-every 0": f"train {TINY} {OWN} --evaluate-every 0",
    "--evaluate-every x": "train --evaluate-every x",
    "--num-selection 0": f"train {TINY} {OWN} --num-selection 0",
    "--num-selection x": "train --num-selection x",
    "--max-input-length 4": f"train {TINY} {OWN} --max-input-length 4",
    "--max-input-length x": "train --max-input-length x",
    "--preset papr": "train --preset papr",
    "--optimizer sgd": "train --optimizer sgd",
    "--select dve": "train --select dve",
    "--select dev without one": f"train {TINY} {OWN} --select dev",
    "--scoring rnak": "train --scoring rnak",
    "--scoring rank for free text": f"train {TINY} --data train=own.jsonl --inputs '{{text}}' --targets '{{label}}' "
    "--scoring rank",
    "--metric acc": "train --metric acc",
    "--sentinel first": "train --sentinel first",
    "--sentinel without one": f"train {TINY} {OWN} --sentinel targets",
    "--chat without a template": f"train {TINY} {OWN} --chat",
    "--init nowhere": f"train {TINY} {OWN} --init clas-labels",
    "--init far": f"train {TINY} {OWN} --init zzz",
    "--init without words": f"train {TINY} {OWN} --init text:",
    "--init of another length": f"train {TINY} {OWN} --init mood --prompt-length 4",
    "--init of another model": f"train {TINY} {OWN} --init other",
    "--init that is no prompt": f"train {TINY} {OWN} --init llama",
    "--init class labels of free text": f"train {TINY} --data train=own.jsonl --inputs '{{text}}' "
    "--targets '{label}' --init class-labels",
    "--dtype float8": "train --dtype float8",
    "--quantize 3bit": "train --quantize 3bit",
    "--device gpu": f"train {TINY} {OWN} --device gpu",
    "--threads x": "train --threads x",
    "--log-to wandb": "train --log-to wandb",
    "--threads 0": f"train {TINY} {OWN} --threads 0",
    "--task nothing": f"train {TINY} --task ''",
    "--task near one": f"train {TINY} --task glue/sst3",
    "--task far": f"train {TINY} --task zzz",
    "--task of two suites": f"train {TINY} --task rte",
    "--task twice": f"train {TINY} --task glue/sst2,SST-2",
    "--data two folders": "train --model ./llama --task glue/sst2 --data a b",
    "--data folder and file": "train --model ./llama --task glue/sst2 --data a train=b",
    "--data split near one": f"train {TINY} --task glue/sst2 --data tran=own.jsonl",
    "--data other name of a split": f"train {TINY} --task glue/sst2 --data validation=own.jsonl",
    "--data no training file": f"train {TINY} --task glue/sst2 --data dev=own.jsonl",
    "--data nowhere": f"train {TINY} --task glue/sst2 --data nowhere",
    "--data file nowhere": f"train {TINY} --task glue/sst2 --data train=onw.jsonl",
    "--data folder without the task": f"train {TINY} --task glue/sst2 --data llama",
    "--data unknown format": f"train {TINY} --task glue/sst2 --data train=odd.doc",
    "--data empty": f"train {TINY} --task glue/sst2 --data train=empty.jsonl",
    "--dev with a folder": "train --model ./llama --task glue/sst2 --data llama --dev own.jsonl",
    "--config nowhere": "train --config none.yaml",
    "--out with a prompt": f"train {TINY} {OWN} --out mood",
    "--out is a file": f"train {TINY} {OWN} --out own.jsonl",
    "--model nowhere": f"train --model ./none {OWN}",
    "--model empty folder": f"train --model ./empty {OWN}",
    "--model no gguf": f"train --model none.gguf {OWN}",
    "--model damaged gguf": f"train --model damaged.gguf {OWN}",
    "--model bundled": f"train --model bundled/t5-mni {OWN}",
    "--model near one": f"train --model smolm2-135m {OWN}",
    "--model not in the cache": f"train --model nobody/nothing {OWN}",
    # eval, predict, inspect
    "eval": "eval",
    "eval, no prompt there": "eval --prompt none",
    "eval, no prompt in the folder": "eval --prompt llama",
    "eval, ensemble of one": "eval --prompt mood --model ./llama --ensemble --data dev=own.jsonl",
    "eval, prompts of two tasks": "eval --prompt mood film --model ./llama",
    "eval, prompts of two models": "eval --prompt mood other --model ./llama --inputs {a} --targets {b}",
    "eval, another model": "eval --prompt mood --model ./t5",
    "eval, split": "eval --prompt mood --model ./llama --data dve=own.jsonl --split dve",
    "eval, --limit 0": "eval --prompt mood --model ./llama --data dev=moods.jsonl --limit 0",
    "eval, --limit x": "eval --prompt mood --limit x",
    "eval, --scoring x": "eval --prompt mood --scoring x",
    "eval, without labels": "eval --prompt mood --model ./llama --split test --data test=texts.jsonl",
    "eval, no file of the split": "eval --prompt mood --model ./llama --data train=own.jsonl",
    "eval, columns of another file": "eval --prompt mood --model ./llama --data dev=own.jsonl",
    "eval, no hub": "eval --prompt mood --model ./llama",
    "eval, no task": "eval --prompt bare --model ./llama --data dev=own.jsonl",
    "eval, task and templates": "eval --prompt mood --model ./llama --task sst2 --inputs {a} --targets {b}",
    "eval, inputs alone": "eval --prompt mood --model ./llama --inputs {a}",
    "eval, --rows of something else": "eval --prompt mood --model ./llama --data dev=moods.jsonl --rows own.jsonl",
    "predict, no input there": "predict --prompt mood --model ./llama --input none.txt",
    "predict, --resume to stdout": "predict --prompt mood --resume",
    "predict, output there": "predict --prompt mood --model ./llama --input texts.jsonl --output own.jsonl",
    "predict, part there": "predict --prompt mood --model ./llama --input texts.jsonl --output part.jsonl",
    "predict, resume without settings": "predict --prompt mood --model ./llama --input texts.jsonl --output part.jsonl "
    "--resume",
    "predict, scores of generated text": "predict --prompt mood --model ./llama --input texts.jsonl --scores "
    "--scoring generate",
    "predict, strict": "predict --prompt mood --model ./llama --input own.jsonl --strict --inputs-column words",
    "predict, damaged gzip": "predict --prompt mood --model ./llama --input damaged.jsonl.gz",
    "predict, damaged parquet": "predict --prompt mood --model ./llama --input damaged.parquet",
    "predict, damaged json": "predict --prompt mood --model ./llama --input damaged.json",
    "inspect, two prompts": "inspect --prompt a b",
    "inspect, data without ablate": "inspect --prompt mood --data own.jsonl",
    "inspect, limit without ablate": "inspect --prompt mood --limit 3",
    "inspect, split without ablate": "inspect --prompt mood --split dev",
    "inspect, --limit 0": "inspect --prompt mood --model ./llama --ablate --limit 0",
    "inspect, --nearest 0": "inspect --prompt mood --model ./llama --nearest 0",
    "inspect, --nearest x": "inspect --prompt mood --nearest x",
    "inspect, --nearest of several models": "inspect --nearest . --task cb",
    "inspect, --nearest beside --prompt": "inspect --prompt mood --nearest mood",
    "inspect, task without --nearest DIR": "inspect --prompt mood --task cb",
    "inspect, no prompt": "inspect",
    "inspect, another model": "inspect --prompt mood --model ./t5",
    # serve
    "serve": "serve",
    "serve, --port x": "serve --port x",
    "serve, --port 70000": "serve --port 70000",
    "serve, --max-memory 4Q": "serve --max-memory 4Q",
    "serve, --max-memory 0": "serve --max-memory 0",
    "serve, --max-body x": "serve --max-body x",
    "serve, --max-waiting 0": "serve --max-waiting 0",
    "serve, --timeout 0": "serve --timeout 0",
    "serve, --drain x": "serve --drain x",
    "serve, open to all": "serve --model ./llama --host 0.0.0.0",
    "serve, two of one name": "serve --prompt mood mood",
    "serve, no prompt": "serve --prompt a=none",
    "serve, a bad name": "serve --model ./llama --prompt 'a b=mood'",
    "serve, another model's": "serve --model ./llama --prompt a=other",
    "serve, no keys": "serve --model ./llama --api-key-file none.yaml",
    "serve, no settings": "serve --config none.yaml",
    "serve, little memory": "serve --model ./llama --prompt a=mood --max-memory 10",
    # convert
    "convert": "convert",
    "convert, --to x": "convert mood --to x --out y",
    "convert, --from x": "convert mood --from x --to peft --out y",
    "convert, nowhere": "convert none --to tgis --out y",
    "convert, no prompt": "convert empty --to tgis --out y",
    "convert, no numpy": "convert own.jsonl --to peft --out y",
    "convert, two": "convert mood film --to peft --out y",
    "convert, onto itself": "convert mood --to peft --out mood",
    "convert, onto a prompt": "convert film --to peft --out mood",
    "convert, t5x to a folder": "convert mood --to t5x --out empty",
    "convert, tgis to a file": "convert mood --to tgis --out own.jsonl",
    "convert, --dtype of a prompt": "convert mood --to tgis --dtype float16 --out y",
    "convert, another model": "convert mood --to peft --model ./t5 --out y",
    "convert, decoder-only": "convert other --to peft --decoder-only --out y",
    "convert, damaged npy": "convert damaged.npy --to peft --out y",
    "convert, --index of one": "convert mood --to t5x --index 1 --out y",
    "convert, vocabulary over": "convert mood --to vocabulary --overwrite --out y",
    "convert, vocabulary onto a folder": "convert mood --to vocabulary --model ./llama --out llama",
    "convert, vocabulary of one name": "convert mood a/../mood --to vocabulary --out y",
    "convert, vocabulary of two models": "convert mood other --to vocabulary --model ./llama --out y",
    "convert, gguf over": "convert mood --to gguf --overwrite --out y",
    "convert, gguf of a folder": "convert mood --to gguf --model ./llama --out y",
    "convert, gguf of a T5's prompt": "convert other --to gguf --model damaged.gguf --out y",
    "convert, gguf of a damaged file": "convert mood --to gguf --model damaged.gguf --out y",
    # compare, experiment, report, rerun
    "compare": "compare",
    "compare, method near one": "compare --model ./llama --task sst2 --methods lorra",
    "compare, no method": "compare --model ./llama --task sst2 --methods ,",
    "compare, two tasks": "compare --model ./llama --task cb,wic",
    "compare, no task": "compare --model ./llama",
    "compare, --seeds x": "compare --model ./llama --task sst2 --seeds x",
    "compare, --select cross-validation": "compare --model ./llama --task sst2 --select cross-validation",
    "experiment, near one": "experiment figure-3x --models ./llama --quick --out o",
    "experiment, far": "experiment zzz --models ./llama --quick --out o",
    "experiment, no models": "experiment figure-3a",
    "experiment, --seeds x": "experiment figure-3a --models ./llama --seeds x",
    "experiment, point": "experiment figure-3b --models ./llama --points unifrom --quick --out o",
    "experiment, task": "experiment figure-3b --models ./llama --tasks sst3 --quick --out o",
    "experiment, no folder of a point": "experiment figure-3c --models ./llama --quick --out o",
    "experiment, --minutes x": "experiment figure-3b --minutes x",
    "report": "report",
    "report, no rows": "report none.jsonl --out r",
    "rerun": "rerun",
    "rerun, no line": "rerun rows.jsonl --out r",
    "rerun, no number": "rerun rows.jsonl:x --out r",
    "rerun, no file": "rerun none.jsonl:1 --out r",
    "rerun, no such line": "rerun rows.jsonl:9 --out r",
    "rerun, line 0": "rerun rows.jsonl:0 --out r",
    "rerun, onto a prompt": "rerun rows.jsonl:1 --out mood",
    # tasks, params
    "tasks, near one": "tasks superglue/bolq",
    "tasks, far": "tasks zzz",
    "tasks, of two suites": "tasks rte",
    "tasks, split": "tasks boolq --split dve --data train=own.jsonl",
    "tasks, other name of a split": "tasks boolq --split validation --data train=own.jsonl",
    "tasks, no such split": "tasks superglue/axb --split train --data empty",
    "tasks, no files of ones own": "tasks --inputs {a} --targets {b} --data empty",
    "tasks, own files from the hub": "tasks --inputs {a} --targets {b}",
    "tasks, --limit x": "tasks boolq --limit x",
    "tasks, task and templates": "tasks boolq --inputs {a} --targets {b}",
    "params, --prompt-length alone": "params --prompt-length 3",
    "params, --prompt-length x": "params --model ./llama --prompt-length x",
    "params, no model": "params --model ./none",
    # vocabulary, pretrain, adapt
    "vocabulary": "vocabulary",
    "vocabulary, --size x": "vocabulary --corpus corpus.txt --out v --size x",
    "vocabulary, too small": "vocabulary --corpus corpus.txt --out v --size 10",
    "vocabulary, more than the text has": "vocabulary --corpus corpus.txt --out v --size 5000",
    "vocabulary, no corpus": "vocabulary --corpus none --out v",
    "vocabulary, corpus of no text": "vocabulary --corpus odd.doc --out v",
    "vocabulary, there already": "vocabulary --corpus corpus.txt --out llama",
    "pretrain": "pretrain",
    "pretrain, no steps": "pretrain --corpus corpus.txt --out m",
    "pretrain, no size": "pretrain --corpus corpus.txt --out m --steps 3",
    "pretrain, size near one": "pretrain --size smal --vocabulary llama --corpus corpus.txt --out m --steps 3",
    "pretrain, no shape file": "pretrain --size none.json --vocabulary llama --corpus corpus.txt --out m --steps 3",
    "pretrain, bad shape": "pretrain --size shape.json --vocabulary llama --corpus corpus.txt --out m --steps 3",
    "pretrain, no vocabulary": "pretrain --size micro --vocabulary none --corpus corpus.txt --out m --steps 3",
    "pretrain, model and size": "pretrain --model ./t5 --size micro --corpus corpus.txt --out m --steps 3",
    "pretrain, there already": "pretrain --model ./t5 --corpus corpus.txt --out llama --steps 3",
    "pretrain, no sentinels": "pretrain --model ./t5 --corpus corpus.txt --out m --steps 3 "
    "--warmup-steps 1 --no-compile",
    "adapt, no model": "adapt --model ./none --corpus corpus.txt --out m --steps 3",
    "adapt, a llama": "adapt --model ./llama --corpus corpus.txt --out m --steps 3",
    "adapt, --steps 0": "adapt --model ./t5 --corpus corpus.txt --out m --steps 0",
    "adapt, --steps x": "adapt --steps x",
    "adapt, --keep beyond": "adapt --model ./t5 --corpus corpus.txt --out m --steps 3 --keep 4 --warmup-steps 1",
    "adapt, --keep x": "adapt --keep 1,x",
    "adapt, --micro-batch-size": "adapt --model ./t5 --corpus corpus.txt --out m --steps 30 --batch-size 5 "
    "--micro-batch-size 2",
    "adapt, --learning-rate 0": "adapt --model ./t5 --corpus corpus.txt --out m --steps 30 --learning-rate 0",
    "adapt, --schedule x": "adapt --schedule x",
    "adapt, warm-up longer": "adapt --model ./t5 --corpus corpus.txt --out m --steps 3 --schedule cosine",
    "adapt, --dtype float16": "adapt --dtype float16",
    "adapt, no corpus": "adapt --model ./t5 --corpus none --out m --steps 30 --no-compile",
    "adapt, little held-out text": "adapt --model ./t5 --corpus corpus.txt --heldout corpus.txt --out m --steps 30 "
    "--no-compile",
    "adapt, little text": "adapt --model ./t5 --corpus corpus.txt --out m --steps 30 --no-compile",
    "adapt, corpus without text": "adapt --model ./t5 --corpus rows.jsonl --out m --steps 30 --no-compile",
}

RECIPES = {
    "empty": "",
    "a list": "- steps: 3",
    "a word": "steps",
    "not YAML": "steps: [1",
    "a tab": "steps:\t1\n\tseeds: 2",
    "not text": b"model: \xff",
    "unknown setting": "lerning-rate: 0.1",
    "unknown setting, nothing near": "zzz: 1",
    "a number as setting": "1: 2",
    **{
        f"{name}: {value}": f"{name}: {value}"
        for name, values in {
            "model": ["3", "[a]", "{a: b}", "true"],
            "task": ["3", "[3]", "{a: b}", "true", "glue/sst3"],
            "out": ["3", "[a]", "{a: b}", "true"],
            "prompt-length": ["x", "[1, x]", "{a: b}", "true", "1.5", "[1.5]", "[]"],
            "init": ["3", "[vocab]", "true"],
            "seeds": ["x", "[x]", "{a: b}", "true", "[true]", "1.5", "[]", "[[1]]"],
            "inputs": ["3", "[a]", "{a}"],
            "labels": ["3", "[1, 2]", "{a: b}"],
            "metric": ["acc", "3", "[f1]"],
            "group-by": ["3", "[a]"],
            "preset": ["papr", "3", "[fast]"],
            "steps": ["x", "[3]", "{a: b}", "true", "1.5", "1e3", "-1"],
            "minutes": ["soon", "[1]", "true", "0"],
            "batch-size": ["x", "[3]", "true"],
            "optimizer": ["sgd", "3", "[adamw]"],
            "learning-rate": ["x", "[x]", "{a: b}", "true", "[true]"],
            "dropout": ["x", "[0.1]", "true"],
            "max-train": ["x", "0", "true"],
            "max-dev": ["x", "0"],
            "resume": ["3", "'yes'", "[true]"],
            "select": ["dve", "3"],
            "scoring": ["rnak", "3", "[rank]"],
            "evaluate-every": ["x", "1.5"],
            "num-selection": ["x", "[1]"],
            "patience": ["x", "true"],
            "max-input-length": ["x", "[1]"],
            "separator": ["3", "[a]"],
            "sentinel": ["first", "3"],
            "chat": ["3", "'yes'", "maybe"],
            "device": ["3", "[cpu]"],
            "dtype": ["float8", "32", "[float32]"],
            "quantize": ["8", "3bit", "true"],
            "checkpoint-activations": ["1", "x"],
            "compile": ["1", "x"],
            "data": ["3", "[a]", "true", "{train: 3}", "{tran: a}", "{train: [3]}", "{train: {a: b}}", "{}", "none"],
        }.items()
        for value in values
    },
}

KEYS = {
    "empty": "",
    "an object": "name: a",
    "a list of words": "- a",
    "not YAML": "- name: [",
    "no name": "- key: 0123456789abcdef",
    "no key": "- name: a",
    "key and hash": "- name: a\n  key: 0123456789abcdef\n  sha256: 0123456789abcdef",
    "a short key": "- name: a\n  key: short",
    "a number as key": "- name: a\n  key: 12345678901234567890",
    "a number as name": "- name: 3\n  key: 0123456789abcdef",
    "a hash that is none": "- name: a\n  sha256: 0123456789abcdefgh",
    "unknown entry": "- name: a\n  key: 0123456789abcdef\n  scope: [use]",
    "unknown scope": "- name: a\n  key: 0123456789abcdef\n  scopes: [admin]",
    "scopes as a word": "- name: a\n  key: 0123456789abcdef\n  scopes: use",
    "no scopes": "- name: a\n  key: 0123456789abcdef\n  scopes: []",
    "scopes of lists": "- name: a\n  key: 0123456789abcdef\n  scopes: [[use]]",
    "requests as a word": "- name: a\n  key: 0123456789abcdef\n  requests_per_minute: many",
    "no requests": "- name: a\n  key: 0123456789abcdef\n  requests_per_minute: 0",
    "requests true": "- name: a\n  key: 0123456789abcdef\n  requests_per_minute: true",
    "requests nan": "- name: a\n  key: 0123456789abcdef\n  requests_per_minute: .nan",
    "tokens as a list": "- name: a\n  key: 0123456789abcdef\n  tokens_per_minute: [1]",
    "one name twice": "- name: a\n  key: 0123456789abcdef\n- name: a\n  key: 1123456789abcdef",
    "one key twice": "- name: a\n  key: 0123456789abcdef\n- name: b\n  key: 0123456789abcdef",
}

SERVE = {
    "empty": "",
    "a list": "- port: 1",
    "not YAML": "port: [",
    "unknown setting": "max-wating: 1",
    "unknown setting, nothing near": "zzz: 1",
    **{
        f"{name}: {value}": f"{name}: {value}"
        for name, values in {
            "model": ["3", "[a]"],
            "prompt": ["a", "[a]", "{a: 3}", "{a: none}"],
            "prompts_dir": ["[a]"],
            "api_key_file": ["3"],
            "host": ["3", "0.0.0.0"],
            "port": ["many", "70000", "-1", "1.5", "[1]", "true"],
            "max_memory": ["much", "0", "[1]", "1.5"],
            "max_body": ["x"],
            "max_upload": ["x"],
            "max_waiting": ["0", "x", "true"],
            "timeout": ["0", "soon", ".inf"],
            "drain": ["-1"],
            "device": ["gpu"],
            "dtype": ["float8"],
            "quantize": ["3bit", "null"],
            "threads": ["0", "x", "null"],
            "compile": ["sometimes", "1"],
        }.items()
        for value in values
    },
}

REGISTRY = {
    "not JSON": "{",
    "a list": "[]",
    "no format": '{"versions": {}, "ensembles": {}, "aliases": {}}',
    "a newer format": '{"format": 3, "versions": {}, "ensembles": {}, "aliases": {}}',
    "no aliases": '{"format": 1, "versions": {}, "ensembles": {}}',
    "versions as a list": '{"format": 1, "versions": ["a"], "ensembles": {}, "aliases": {}}',
    "hashes as a number": '{"format": 1, "versions": {"a": 3}, "ensembles": {}, "aliases": {}}',
    "a hash that is gone": '{"format": 1, "versions": {"a": ["00"]}, "ensembles": {}, "aliases": {}}',
    "members as a number": '{"format": 1, "versions": {}, "ensembles": {"a": 3}, "aliases": {}}',
    "targets as a list": '{"format": 1, "versions": {}, "ensembles": {}, "aliases": {"a": ["b"]}}',
    "unknown entry": '{"format": 1, "versions": {}, "ensembles": {}, "aliases": {}, "more": {}}',
}

ROW = {
    "experiment": "train", "config": {"model": "./llama", "task": ["glue/sst2"], "train": {"optimizer": {}}},
    "model": "./llama", "task": "glue/sst2", "split": "dev", "selection": "held-out", "scoring": "rank",
    "metrics": {"accuracy": 0.5}, "value": 0.5, "illegal_rate": 0.0, "num_examples": 8, "step": 2, "steps_run": 4,
    "seconds": 1.0, "seed": 0,
}  # fmt: skip
ROWS = {
    "not JSON": "{",
    "a list": "[1]",
    "an empty line": "\n",
    "a torn line": json.dumps(ROW) + "\n" + json.dumps(ROW)[:40],
    "not text": b"\xff\n",
    "no fields": "{}",
    "a field is missing": json.dumps({name: value for name, value in ROW.items() if name != "seed"}),
    "unknown field": json.dumps(ROW | {"sede": 1}),
    "two unknown and two missing": json.dumps(
        {name: value for name, value in ROW.items() if name not in ("seed", "step")} | {"b": 1, "a": 2}
    ),
    "config as a list": json.dumps(ROW | {"config": []}),
    "config without a task": json.dumps(ROW | {"task": None, "config": {"model": "./llama", "train": {}}}),
    "config of another kind": json.dumps(ROW | {"config": ROW["config"] | {"prompt_length": "x"}}),
    "seed as text": json.dumps(ROW | {"seed": "x", "config": ROW["config"] | {"prompt_length": 3}}),
    "metrics as a number": json.dumps(ROW | {"metrics": 3}),
    "value as text": json.dumps(ROW | {"experiment": "figure-3a", "value": "x"}),
}

CARDS = {
    **{
        f"{name} is {json.dumps(value)}": {name: value}
        for name, values in {
            "model_name": [3, ["a"]],
            "model_fingerprint": [3, "0123", ""],
            "is_encoder_decoder": ["yes", 1, None],
            "width": ["16", 16.0, True, None, 17],
            "task": [3, ["a"], "glue/sst3"],
            "task_version": [1],
            "labels": ["glad", [1], None, {"a": 1}, [], ["glad", "glad"]],
            "text": [None, "x", []],
            "init": [None, []],
            "recipe": ["fast", None],
            "selection": [3],
            "dev_metrics": [0.5, []],
            "step": ["3", 3.5],
            "seed": ["0", None],
            "parent": [3],
            "softprompt_version": [1, None],
            "format_version": ["1", None, 3, 0, 1.0],
        }.items()
        for value in values
    },
    **{f"no {name}": {name: QUIET} for name in ("model_name", "model_fingerprint", "is_encoder_decoder", "width")},
    "unknown key": {"fingerprint": "a"},
    "unknown key, nothing near": {"zzz": 1},
    "no format version": {"format_version": QUIET},
    "recipe without scoring": {"recipe": {}},
    "recipe with an unknown scoring": {"recipe": {"scoring": "rnak"}},
    "recipe with scoring 3": {"recipe": {"scoring": 3}},
    "recipe with an unknown metric": {"recipe": {"metric": "acc"}},
    "recipe of 8 bit": {"recipe": {"scoring": "rank", "quantize": "8bit"}},
    "another version of the task": {
        "task_version": "0",
        "task": "glue/sst2",
        "labels": ["negative", "positive"],
        "text": {},
    },
    "other labels than the task's": {"task": "glue/sst2", "text": {}},
}
CARD_FILES = {
    "not JSON": "{",
    "a list": "[]",
    "empty": "",
    "not text": b"\xff",
    "a number": "3",
    "nested too deep": "[" * 100_000,
}
TEXTS = {
    **{
        f"{name} is {json.dumps(value)}": {name: value}
        for name, values in {
            "separator": [3, None],
            "leading_space": ["yes", 1, None],
            "starts_with_bos": ["no"],
            "inputs_end_with_eos": ["no"],
            "chat": [True, "yes"],
            "max_input_length": [4, 9, "512", None, 512.5, True],
            "max_target_length": [0, -1, "8", None, 8.5],
            "truncation_side": ["left", None],
            "sentinel": ["first", "targets", None, True],
            "inputs_template": ["no column", "{a", 3, "{}", "{a!r}"],
            "targets_template": ["no column", 3, None],
        }.items()
        for value in values
    },
    "unknown field": {"seperator": "x"},
    "two unknown fields": {"zzz": 1, "aaa": 2},
}
CONFIGS = {  # adapter_config.json
    "not JSON": "{",
    "a list": "[]",
    "no type": {"peft_type": QUIET},
    "another type": {"peft_type": "LORA"},
    "no layers": {"num_layers": 0},
    "heads as text": {"num_attention_heads": "3"},
    "another task type": {"task_type": "SEQ_CLS"},
    "tokens as text": {"num_virtual_tokens": "3"},
    "no tokens": {"num_virtual_tokens": 0},
    "more tokens": {"num_virtual_tokens": 4},
    "tokens true": {"num_virtual_tokens": True},
    "name as a number": {"base_model_name_or_path": 3},
}
WEIGHTS = {
    "no file": None,
    "no safetensors": b"x" * 20,
    "an empty file": b"",
    "another key": {"prompt": torch.zeros(3, 16)},
    "two tensors": {"prompt_embeddings": torch.zeros(3, 16), "more": torch.zeros(1)},
    "one dimension": {"prompt_embeddings": torch.zeros(48)},
    "no row": {"prompt_embeddings": torch.zeros(0, 16)},
    "whole numbers": {"prompt_embeddings": torch.zeros(3, 16, dtype=torch.int32)},
    "double precision": {"prompt_embeddings": torch.zeros(3, 16, dtype=torch.float64)},
    "not finite": {"prompt_embeddings": torch.full((3, 16), float("nan"))},
    "another width": {"prompt_embeddings": torch.zeros(3, 8)},
    "two rows fewer": {"prompt_embeddings": torch.zeros(1, 16)},
}

LINES = {  # one line of predict's input, for a prompt with the template 'message: {text}' and labels glad, cross
    "not JSON": b"{text",
    "not text": b"\xff\xfe",
    "half a character": b'{"text": "\\ud800"}',
    "an empty line": b"",
    "spaces": b"   ",
    "no columns": b"{}",
    "no such column": b'{"txt": "a"}',
    "nothing in it": b'{"text": ""}',
    "null": b'{"text": null}',
    "a list": b'{"text": ["a"]}',
    "an object": b'{"text": {"a": 1}}',
    "a long number": b'{"text": ' + b"9" * 5_000 + b"}",
    "nested too deep": b'{"text": ' + b"[" * 100_000,
    "too long for the model": b"message: " + b"far " * 300,
}
ITEMS = {  # a file of predict's input, by its name
    "csv without a quote's end": ("a.csv", b'text\n"warm\nfar\n'),
    "csv with more fields": ("a.csv", b"text\nwarm,far\n"),
    "csv with fewer fields": ("a.csv", b"text,more\nwarm\n"),
    "csv that is not text": ("a.csv", b"text\n\xff\n"),
    "tsv with more fields": ("a.tsv", b"text\nwarm\tfar\n"),
    "empty csv": ("a.csv", b""),
    "jsonl of a list": ("a.jsonl", b"[1]\n"),
    "jsonl of a number": ("a.jsonl", b"3\n"),
    "json of words": ("a.json", b'["a", 3]'),
}

TEMPLATES = {
    "no column": ("text", "{label}", ""),
    "an empty name": ("{}", "{label}", ""),
    "a brace too few": ("{text", "{label}", ""),
    "a brace too many": ("text}", "{label}", ""),
    "a conversion": ("{text!r}", "{label}", ""),
    "a format": ("{text:>3}", "{label}", ""),
    "targets without a column": ("{text}", "good", ""),
    "empty": ("", "{label}", ""),
    "column that is not there": ("{txt}", "{label}", ""),
    "target that is not there": ("{text}", "{lable}", ""),
    "labels twice": ("{text}", "{label}", "--labels good,good"),
    "an empty label": ("{text}", "{label}", "--labels good,"),
    "no labels": ("{text}", "{label}", "--labels ''"),
    "another label": ("{text}", "{label}", "--labels good,bat"),
    "many other labels": ("{text}", "{label}", "--labels a,b,c,d,e,f,g,h,i,j"),
    "no group": ("{text}", "{label}", "--group-by town"),
}

DATA = {  # task: what is wrong with a training file, the file's name and its content
    "superglue/boolq": {
        "no passage": ("a.jsonl", {"question": "is it", "label": True}),
        "no question": ("a.jsonl", {"passage": "it is", "label": True}),
        "no label": ("a.jsonl", {"passage": "it is", "question": "is it"}),
        "label as text": ("a.jsonl", {"passage": "it is", "question": "is it", "label": "yes"}),
        "label as text, near": ("a.jsonl", {"passage": "it is", "question": "is it", "label": "Fale"}),
        "label 2": ("a.jsonl", {"passage": "it is", "question": "is it", "label": 2}),
        "label -1": ("a.jsonl", {"passage": "it is", "question": "is it", "label": -1}),
        "label null": ("a.jsonl", {"passage": "it is", "question": "is it", "label": None}),
        "passage as a list": ("a.jsonl", {"passage": ["it is"], "question": "is it", "label": True}),
        "passage null": ("a.jsonl", {"passage": None, "question": "is it", "label": True}),
        "nothing in it": ("a.jsonl", {"passage": " ", "question": "", "label": True}),
        "id twice": ("a.jsonl", [{"passage": "a", "question": "b", "label": True, "idx": 1}] * 2),
        "a list": ("a.jsonl", "[1]"),
        "not JSON": ("a.jsonl", "{'a': 1}"),
        "not text": ("a.jsonl", b'{"passage": "\xff"}'),
        "half a character": ("a.jsonl", '{"passage": "\\ud800"}'),
        "another format": ("a.doc", "x"),
        "damaged gzip": ("a.jsonl.gz", b"x"),
        "damaged xz": ("a.jsonl.xz", b"x"),
        "damaged parquet": ("a.parquet", b"x"),
        "damaged json": ("a.json", "[{"),
        "json of numbers": ("a.json", "[1, 2]"),
        "original without an answer": ("a.jsonl", {"title": "t", "passage": "it is", "question": "is it"}),
    },
    "superglue/cb": {
        "no premise": ("a.jsonl", {"hypothesis": "a", "label": "neutral"}),
        "unknown label": ("a.jsonl", {"hypothesis": "a", "premise": "b", "label": "entailed"}),
        "label true": ("a.jsonl", {"hypothesis": "a", "premise": "b", "label": True}),
        "label 1.5": ("a.jsonl", {"hypothesis": "a", "premise": "b", "label": 1.5}),
    },
    "superglue/copa": {
        "no choice": ("a.jsonl", {"choice1": "a", "premise": "b", "question": "cause", "label": 0}),
        "label 2": ("a.jsonl", {"choice1": "a", "choice2": "c", "premise": "b", "question": "cause", "label": 2}),
    },
    "superglue/multirc": {
        "no questions": ("a.jsonl", {"idx": 0, "passage": {"text": "a"}}),
        "passage as text": ("a.jsonl", {"idx": 0, "passage": "a"}),
        "passage as a list": ("a.jsonl", {"idx": 0, "passage": ["a"]}),
        "no text": ("a.jsonl", {"idx": 0, "passage": {"questions": [
            {"idx": 0, "question": "b", "answers": [{"idx": 0, "text": "c", "label": 1}]}]}}),
        "no answers": ("a.jsonl", {"idx": 0, "passage": {"text": "a", "questions": [{"idx": 0, "question": "b"}]}}),
        "answers as a number": ("a.jsonl", {"idx": 0, "passage": {"text": "a", "questions": [
            {"idx": 0, "question": "b", "answers": 3}]}}),
        "no idx of a question": ("a.jsonl", {"idx": 0, "passage": {"text": "a", "questions": [
            {"question": "b", "answers": [{"idx": 0, "text": "c", "label": 1}]}]}}),
        "no label": ("a.jsonl", {"idx": 0, "passage": {"text": "a", "questions": [
            {"idx": 0, "question": "b", "answers": [{"idx": 0, "text": "c"}]}]}}),
        "label 2": ("a.jsonl", {"idx": 0, "passage": {"text": "a", "questions": [
            {"idx": 0, "question": "b", "answers": [{"idx": 0, "text": "c", "label": 2}]}]}}),
        "flat, no answer": ("a.jsonl", {"paragraph": "a", "question": "b", "idx": {}, "label": 1}),
        "flat, idx as a number": ("a.jsonl", {"paragraph": "a", "question": "b", "answer": "c", "idx": 3, "label": 1}),
        "flat, half an idx": (
            "a.jsonl", {"paragraph": "a", "question": "b", "answer": "c", "idx": {"paragraph": 1}, "label": 1}
        ),
    },
    "superglue/record": {
        "no queries": ("a.jsonl", {"passage": {"text": "a", "entities": []}}),
        "passage as text": ("a.jsonl", {"passage": "a", "qas": []}),
        "no passage": ("a.jsonl", {"qas": []}),
        "no entities": ("a.jsonl", {"passage": {"text": "a"}, "qas": []}),
        "a span as text": ("a.jsonl", {"passage": {"text": "a", "entities": ["b"]}, "qas": []}),
        "no query": ("a.jsonl", {"idx": 0, "passage": {"text": "Ann", "entities": [{"start": 0, "end": 2}]},
                                 "qas": [{"idx": 0, "answers": [{"text": "Ann"}]}]}),
        "no answers": ("a.jsonl", {"idx": 0, "passage": {"text": "Ann", "entities": [{"start": 0, "end": 2}]},
                                   "qas": [{"idx": 0, "query": "@placeholder"}]}),
        "an answer as text": ("a.jsonl", {"idx": 0, "passage": {"text": "Ann", "entities": [{"start": 0, "end": 2}]},
                                          "qas": [{"idx": 0, "query": "@placeholder", "answers": ["Ann"]}]}),
        "no idx": ("a.jsonl", {"passage": {"text": "Ann", "entities": [{"start": 0, "end": 2}]},
                               "qas": [{"query": "@placeholder", "answers": [{"text": "Ann"}]}]}),
        "flat, entities null": ("a.jsonl", {"passage": "a", "query": "b", "entities": None, "answers": ["c"],
                                            "idx": {"passage": 0, "query": 0}}),
    },
    "superglue/wic": {
        "no word": ("a.jsonl", {"sentence1": "a", "sentence2": "b", "label": True}),
        "label as text": ("a.jsonl", {"sentence1": "a", "sentence2": "b", "word": "c", "label": "T"}),
    },
    "superglue/wsc": {
        "no text": ("a.jsonl", {"label": True, "target": {}}),
        "no spans": ("a.jsonl", {"text": "Ann said she", "label": True}),
        "no label": ("a.jsonl", {"text": "Ann said she", "target": {}}),
        "another word there": ("a.jsonl", {"text": "Ann said she", "label": True, "target": {
            "span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 1}}),
        "beyond the text": ("a.jsonl", {"text": "Ann said she", "label": True, "target": {
            "span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": 9}}),
        "an index as text": ("a.jsonl", {"text": "Ann said she", "label": True, "target": {
            "span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": "x"}}),
        "an index null": ("a.jsonl", {"text": "Ann said she", "label": True, "target": {
            "span1_text": "Ann", "span1_index": 0, "span2_text": "she", "span2_index": None}}),
        "an empty referent": ("a.jsonl", {"text": "Ann said she", "label": True, "target": {
            "span1_text": "", "span1_index": 0, "span2_text": "she", "span2_index": 2}}),
        "target as a list": ("a.jsonl", {"text": "Ann said she", "label": True, "target": []}),
        "an empty text": ("a.jsonl", {"text": " ", "label": True, "target": {}}),
        "only wrong ones": ("a.jsonl", {"text": "Ann said she", "label": False, "target": {}}),
    },
    "glue/sst2": {
        "no header": ("a.tsv", "warm\t1\ndull\t0\n"),
        "another header": ("a.tsv", "text\tlabel\nwarm\t1\n"),
        "only a header": ("a.tsv", "sentence\tlabel\n"),
        "a field too many": ("a.tsv", "sentence\tlabel\nwarm\t1\tmore\n"),
        "a field too few": ("a.tsv", "sentence\tlabel\nwarm\n"),
        "unknown label": ("a.tsv", "sentence\tlabel\nwarm\tgood\n"),
        "label 2": ("a.tsv", "sentence\tlabel\nwarm\t2\n"),
        "no label": ("a.tsv", "sentence\tlabel\nwarm\t\n"),
        "an empty sentence": ("a.tsv", "sentence\tlabel\n \t1\n"),
        "empty": ("a.tsv", ""),
        "not text": ("a.tsv", b"sentence\tlabel\n\xff\t1\n"),
        "a quote that never ends": ("a.csv", 'sentence,label\n"warm,1\n'),
    },
    "glue/qqp": {"a field too few": ("a.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\n")},
    "glue/cola": {"a field too few": ("a.tsv", "gj04\t1\n"), "label 2": ("a.tsv", "gj04\t2\t\tit is\n")},
    "glue/stsb": {
        "score 6": ("a.tsv", "sentence1\tsentence2\tscore\na\tb\t6\n"),
        "score as text": ("a.tsv", "sentence1\tsentence2\tscore\na\tb\tx\n"),
        "score null": ("a.jsonl", {"sentence1": "a", "sentence2": "b", "score": None}),
        "no score": ("a.jsonl", {"sentence1": "a", "sentence2": "b"}),
    },
    "glue/mnli": {"no gold label": ("a.tsv", "sentence1\tsentence2\tgold_label\na\tb\t-\n")},
    "mrqa/squad": {
        "no context": ("a.jsonl", {"qas": [{"qid": "1", "question": "what", "answers": ["a"]}]}),
        "context as a list": ("a.jsonl", {"context": ["a"], "qas": [{"qid": "1", "question": "b", "answers": ["a"]}]}),
        "no question": ("a.jsonl", {"context": "a b", "qas": [{"qid": "1", "answers": ["a"]}]}),
        "no answers": ("a.jsonl", {"context": "a b", "qas": [{"qid": "1", "question": "what"}]}),
        "an empty list of answers": ("a.jsonl", {"context": "a b", "qas": [
            {"qid": "1", "question": "what", "answers": []}]}),
        "an empty answer": ("a.jsonl", {"context": "a b", "qas": [{"qid": "1", "question": "what", "answers": [""]}]}),
        "answers as a number": ("a.jsonl", {"context": "a b", "qas": [{"qid": "1", "question": "what", "answers": 3}]}),
        "an answer as a number": ("a.jsonl", {"context": "a b", "qas": [
            {"qid": "1", "question": "what", "answers": [3]}]}),
        "an empty question": ("a.jsonl", {"context": "a b", "qas": [{"qid": "1", "question": " ", "answers": ["a"]}]}),
        "queries as text": ("a.jsonl", {"context": "a b", "qas": "x"}),
        "id twice": ("a.jsonl", [{"context": "a b", "qas": [{"qid": "1", "question": "c", "answers": ["a"]}]}] * 2),
        "paragraphs as a number": ("a.json", '{"data": [{"paragraphs": 3}]}'),
        "only a header": ("a.jsonl", {"header": {}}),
        "spans as a number": ("a.jsonl", {"context": "a b", "qas": [
            {"qid": "1", "question": "what", "detected_answers": [{"char_spans": 3}]}]}),
    },
    "classification/sentence_polarity": {"one of two files": ("rt-polarity.neg", "dull\n")},
}  # fmt: skip

# HTTP: the endpoint's good body, and wrong values of its fields.
BODIES = {
    "completions": ({"model": "mood", "prompt": "message: warm"}, {
        "model": [3, None, "", "x" * 201, "moo", "zzz", "mood@zz", "mood@00000000", ["mood"]],
        "prompt": [3, None, {}, [], [3], True, " ", ["a", " "], [["a"]], ["x"] * 257],
        "fields": [{"text": "a"}],
        "max_tokens": ["5", 0, -1, 1.5, True, 100_001, None, [1], 300],
        "temperature": ["1", -1, 101, True, None, "warm"],
        "top_p": [0, 1.5, "1", None],
        "seed": [-1, 1.5, "1", 2**63],
        "stop": [3, "", [], ["a"] * 99, [3], [""]],
        "n": [0, 17, "2", 2, 1.5],
        "num_beams": [0, 999, "2"],
        "length_penalty": [99, "x"],
        "stream": ["yes", 1],
        "stream_options": [3, {"include": True}, {"include_usage": "x"}],
        "presence_penalty": [1, "x"],
        "frequency_penalty": [0.5],
        "logit_bias": [{"3": 1}, 3],
        "logprobs": [1, True, "0"],
        "echo": [True],
        "best_of": [2],
        "suffix": ["x"],
        "user": [3, "x" * 501],
        "timeout": [0, -1, "5", "soon"],
        "max_token": [3],
        "zzz": [1],
    }),
    "chat/completions": ({"model": "mood", "messages": [{"role": "user", "content": "message: warm"}]}, {
        "model": [3, "moo", "llama"],
        "messages": [
            None, [], "hello", {}, [3], [{}], [{"role": "user"}], [{"content": "a"}],
            [{"role": "tool", "content": "a"}], [{"role": "user", "content": 3}], [{"role": "user", "content": []}],
            [{"role": "user", "content": [{"type": "image_url", "text": "a"}]}],
            [{"role": "user", "content": [{"type": "text"}]}], [{"role": "user", "content": "a", "x": 1}],
            [{"role": "system", "content": "a"}], [{"role": "user", "content": "a"}] * 2,
            [{"role": "user", "content": " "}],
        ],
        "max_tokens": ["5", 0],
        "max_completion_tokens": ["5", 0, 100_001],
        "temperature": ["x"],
        "n": [2],
        "tools": [[]],
        "prompt": ["a"],
    }),
    "classify": ({"model": "mood", "input": "message: warm"}, {
        "model": [3, None, "", "moo", "odd", "live@00000000"],
        "input": [3, None, {}, [], [3], " ", ["x"] * 257, "far " * 300],
        "fields": [{"text": "a"}, 3],
        "labels": [[], ["a"], "a", [3], ["a", "a"], ["a", ""], [" ", "a"]],
        "user": [3],
        "timeout": [0, "x"],
        "label": [["a"]],
        "stream": [True],
    }),
}  # fmt: skip
FIELDS = {  # of a record, in place of the input
    "no such column": {"txt": "a"},
    "null": {"text": None},
    "a list": {"text": ["a"]},
    "nothing": {},
    "an empty text": {"text": ""},
}
PUTS = {
    "ensembles/new": [
        {}, [], 3, {"members": "mood"}, {"members": []}, {"members": ["mood"]}, {"members": ["mood", 3]},
        {"members": ["mood", "moo"]}, {"members": ["mood"] * 33}, {"members": ["mood", "both"]},
        {"members": ["mood", "film"], "more": 1}, {"members": ["mood", "mood@zz"]}, {"membres": ["mood", "film"]},
    ],
    "ensembles/mood": [{"members": ["mood", "film"]}],
    "ensembles/a b": [{"members": ["mood", "film"]}],
    "aliases/new": [
        {}, 3, {"targets": {}}, {"targets": ["mood"]}, {"targets": {"mood": "100"}}, {"targets": {"mood": 0}},
        {"targets": {"mood": -1}}, {"targets": {"mood": 101}}, {"targets": {"mood": 50}}, {"targets": {"moo": 100}},
        {"targets": {"mood": 50, "live": 50}}, {"targets": {"mood@00000000": 100}}, {"target": {"mood": 100}},
        {"targets": {"mood": None}},
    ],
    "aliases/both": [{"targets": {"mood": 100}}],
    "aliases/-x": [{"targets": {"mood": 100}}],
}  # fmt: skip
REQUESTS = {
    "GET /v1/models/moo": None,
    "GET /v1/models/zzz": None,
    "GET /v1/models/mood@zz": None,
    "GET /v1/nothing": None,
    "GET /v1/classify": None,
    "DELETE /v1/models/mood": None,
    "DELETE /v1/prompts/moo": None,
    "DELETE /v1/prompts/mood": None,
    "DELETE /v1/prompts/mood@zz": None,
    "DELETE /v1/prompts/mood@00000000": None,
    "DELETE /v1/prompts/llama": None,
    "GET /v1/prompts/moo/nearest": None,
    "GET /v1/prompts/llama/nearest": None,
    "GET /v1/prompts/both/nearest": None,
    "GET /v1/prompts/mood/nearest?count=0": None,
    "GET /v1/prompts/mood/nearest?count=51": None,
    "GET /v1/prompts/mood/nearest?count=x": None,
    "GET /playground/none.js": None,
    "POST /v1/classify": b"",
    "POST /v1/classify {": b"{",
    "POST /v1/classify list": b"[]",
    "POST /v1/classify number": b"3",
    "POST /v1/classify not text": b'{"model": "\xff"}',
    "POST /v1/classify nested too deep": b"[" * 100_000,
    "POST /v1/classify half a character": b'{"model": "mood", "input": "\\ud800"}',
    "POST /v1/classify half a character in a record": b'{"model": "mood", "fields": {"text": "\\ud800"}}',
    "POST /v1/classify nan": b'{"model": "mood", "input": "x", "timeout": NaN}',
    "POST /v1/completions infinite": b'{"model": "mood", "prompt": "x", "temperature": Infinity}',
    "POST /v1/classify too long": b"x" * (4 << 20) + b"x",
    "PUT /v1/ensembles/new": b"",
    "PUT /v1/prompts/new empty": b"",
    "PUT /v1/prompts/new no archive": b"x" * 600,
    "PUT /v1/prompts/new a damaged zip": b"PK\x03\x04" + b"x" * 600,
    "PUT /v1/prompts/a%20b": b"x",
    "PUT /v1/prompts/both": "mood",
    "PUT /v1/prompts/new another model's": "other",
}
ARCHIVES = {  # files of an uploaded zip
    "no weights": {"adapter_config.json": "{}"},
    "a pickle": {"adapter_model.bin": "x"},
    "out of the folder": {"../adapter_model.safetensors": "x"},
    "absolute": {"/adapter_model.safetensors": "x"},
    "twice": {"a/adapter_model.safetensors": "x", "b/adapter_model.safetensors": "x"},
    "no config": {"adapter_model.safetensors": "x"},
    "damaged weights": {"adapter_model.safetensors": "x", "adapter_config.json": "mood"},
    "a bad card": {
        "adapter_model.safetensors": "mood", "adapter_config.json": "mood",
        "softprompt.json": '{"model_name": 3}',
    },
    "many files": {str(number): "x" for number in range(101)},
}  # fmt: skip
GUARDED = {  # a server with keys: method, path and the secret that is sent
    "no key": ("GET /v1/models", None),
    "another scheme": ("GET /v1/models", "Basic reader-0123456789"),
    "an empty key": ("GET /v1/models", "Bearer "),
    "an unknown key": ("GET /v1/models", "Bearer nobody-0123456789"),
    "not its scope": ("DELETE /v1/prompts/mood", "Bearer reader-0123456789"),
    "the other scope": ("GET /v1/models", "Bearer porter-0123456789"),
    "no key for metrics": ("GET /metrics", None),
}


def _card(**fields):
    return softprompt.Card(
        **{"model_name": "m", "model_fingerprint": None, "is_encoder_decoder": False, "width": 4, **fields}
    )


def _config(**fields):
    return softprompt.RunConfig(**{"model": "m", "task": ("glue/sst2",), **fields})


PYTHON = {  # public functions; `lm` is the tiny llama
    "import a name that is none": lambda lm: softprompt.trane,
    "RunConfig()": lambda lm: softprompt.RunConfig(),
    "RunConfig(step=3)": lambda lm: _config(step=3),
    "RunConfig(task='a')": lambda lm: _config(task="a"),
    "RunConfig(task=['a'])": lambda lm: _config(task=["a"]),
    "RunConfig(task=())": lambda lm: _config(task=()),
    "RunConfig(labels='ab')": lambda lm: _config(task=(), inputs="{a}", targets="{b}", labels="ab"),
    "RunConfig(prompt_length=3)": lambda lm: _config(prompt_length=3),
    "RunConfig(learning_rate=0.3)": lambda lm: _config(learning_rate=0.3),
    "RunConfig(seeds=0)": lambda lm: _config(seeds=0),
    "RunConfig(seeds=())": lambda lm: _config(seeds=()),
    "RunConfig(seeds=('a',))": lambda lm: _config(seeds=("a",)),
    "RunConfig(preset='papr')": lambda lm: _config(preset="papr"),
    "RunConfig(preset=3)": lambda lm: _config(preset=3),
    "RunConfig(select='dve')": lambda lm: _config(select="dve"),
    "RunConfig(scoring='rnak')": lambda lm: _config(scoring="rnak"),
    "RunConfig(metric='f1')": lambda lm: _config(metric="f1"),
    "RunConfig(inputs without targets)": lambda lm: _config(task=(), inputs="{a}"),
    "RunConfig(minutes=0)": lambda lm: _config(minutes=0),
    "RunConfig(minutes='1')": lambda lm: _config(minutes="1"),
    "RunConfig(max_train=0)": lambda lm: _config(max_train=0),
    "Card()": lambda lm: softprompt.Card(),
    "Card.from_json('{}')": lambda lm: softprompt.Card.from_json("{}"),
    "TextFormat(max_input_length=4)": lambda lm: softprompt.TextFormat(max_input_length=4),
    "TextFormat(sentinel='first')": lambda lm: softprompt.TextFormat(sentinel="first"),
    "TextFormat(truncation_side='left')": lambda lm: softprompt.TextFormat(truncation_side="left"),
    "TextFormat.from_json(unknown)": lambda lm: softprompt.TextFormat.from_json({"b": 1, "a": 2}),
    "SoftPrompt of no row": lambda lm: softprompt.SoftPrompt(torch.zeros(0, 4), _card()),
    "SoftPrompt of another width": lambda lm: softprompt.SoftPrompt(torch.zeros(2, 8), _card()),
    "SoftPrompt of nan": lambda lm: softprompt.SoftPrompt(torch.full((2, 4), float("nan")), _card()),
    "save_prompt to a file": lambda lm: softprompt.save_prompt(
        softprompt.SoftPrompt(torch.zeros(2, 4), _card()), "own.jsonl"
    ),
    "load_prompt nowhere": lambda lm: softprompt.load_prompt("none"),
    "load_prompt of a file": lambda lm: softprompt.load_prompt("own.jsonl"),
    "load nowhere": lambda lm: softprompt.load("./none"),
    "load, dtype": lambda lm: softprompt.load("./llama", dtype="float8"),
    "load, device": lambda lm: softprompt.load("./llama", device="gpu"),
    "load, quantize": lambda lm: softprompt.load("./llama", quantize="3bit"),
    "get_task": lambda lm: softprompt.get_task("glue/sst3"),
    "file_task, metric": lambda lm: softprompt.file_task(inputs="{a}", targets="{b}", metric="acc"),
    "file_task, labels": lambda lm: softprompt.file_task(inputs="{a}", targets="{b}", labels=()),
    "open_prompts of none": lambda lm: softprompt.open_prompts([]),
    "open_prompts, scoring": lambda lm: softprompt.open_prompts("mood", model=lm, scoring="rnak"),
    "open_prompts, task": lambda lm: softprompt.open_prompts("mood", model=lm, task="sst3"),
    "open_prompts, another model": lambda lm: softprompt.open_prompts("other", model=lm),
    "predict_records, probabilities": lambda lm: list(
        softprompt.predict_records(
            softprompt.open_prompts("mood", model=lm, scoring="generate"), [], with_probabilities=True
        )
    ),
    "predict_records, column": lambda lm: list(
        softprompt.predict_records(
            softprompt.open_prompts("mood", model=lm), [(7, {"text": "a"})], inputs_column="txt", strict=True
        )
    ),
    "predict_file, no file": lambda lm: softprompt.predict_file(
        softprompt.open_prompts("mood", model=lm), "none.txt", "out.jsonl"
    ),
    "evaluate_prompts, ensemble": lambda lm: softprompt.evaluate_prompts(
        softprompt.open_prompts("mood", model=lm), data={"dev": ["moods.jsonl"]}, ensemble=True
    ),
    "evaluate_prompts, split": lambda lm: softprompt.evaluate_prompts(
        softprompt.open_prompts("mood", model=lm), data={"dev": ["moods.jsonl"]}, split="dve"
    ),
    "evaluate, scoring": lambda lm: softprompt.evaluate(
        lm, [], softprompt.get_task("glue/sst2"), [], softprompt.TextFormat(), scoring="rnak"
    ),
    "convert, kind": lambda lm: softprompt.convert("mood", "out", to_kind="petf"),
    "convert, fingerprint": lambda lm: softprompt.convert("mood", "out", to_kind="peft", model_fingerprint="00"),
    "token_lengths of nothing": lambda lm: softprompt.token_lengths([], lm),
    "train, no data": lambda lm: softprompt.train(_config(data="nowhere"), lm=lm),
    "train, no task": lambda lm: softprompt.train(_config(task=("glue/sst3",)), lm=lm),
    "train, steps 0": lambda lm: softprompt.train(_config(data="data", steps=0, prompt_length=(3,)), lm=lm),
}


def _cases():
    """Every case: its name, which of the functions below it is for, and what that is given."""
    tables = {
        "command": COMMANDS, "recipe": RECIPES, "keys": KEYS, "serve.yaml": SERVE, "registry": REGISTRY, "rows": ROWS,
        "card": CARDS | {f"file: {name}": content for name, content in CARD_FILES.items()},
        "text format": TEXTS, "adapter config": CONFIGS, "weights": WEIGHTS, "line": LINES, "items": ITEMS,
        "template": TEMPLATES, "python": PYTHON, "guarded": GUARDED,
        "data": {f"{task}: {name}": (task, *file) for task, files in DATA.items() for name, file in files.items()},
    }  # fmt: skip
    http = {}
    for endpoint, (body, fields) in BODIES.items():
        for name, values in fields.items():
            for value in values:
                shown = json.dumps(value)
                shown = shown if len(shown) < 60 else f"{shown[:50]}… ({len(shown)})"
                http[f"POST /v1/{endpoint} {name}: {shown}"] = (f"POST /v1/{endpoint}", body | {name: value})
        for name in body:
            http[f"POST /v1/{endpoint} no {name}"] = (
                f"POST /v1/{endpoint}", {key: value for key, value in body.items() if key != name},
            )  # fmt: skip
    for name, record in FIELDS.items():
        http[f"POST /v1/classify fields: {name}"] = ("POST /v1/classify", {"model": "mood", "fields": record})
    for place, bodies in PUTS.items():
        for body in bodies:
            shown = json.dumps(body)
            shown = shown if len(shown) < 60 else f"{shown[:50]}… ({len(shown)})"
            http[f"PUT /v1/{place} {shown}"] = (f"PUT /v1/{place}", body)
    for name, content in REQUESTS.items():
        http[name] = (" ".join(name.split(" ")[:2]), content)
    for name, files in ARCHIVES.items():
        http[f"PUT /v1/prompts/new, archive with {name}"] = ("PUT /v1/prompts/new", _zip(files))
    tables["http"] = http
    return {f"{kind} · {name}": (kind, given) for kind, table in tables.items() for name, given in table.items()}


def _zip(files):
    """The files as a zip archive. A content of 'mood' stands for that file of the prompt of this name."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            own = PROMPTS / "llama-own-0" / Path(name).name
            archive.writestr(name, own.read_bytes() if content == "mood" else content)
    return data.getvalue()


CASES = _cases()
KNOWN = json.loads(MESSAGES.read_text(encoding="utf-8")) if MESSAGES.exists() else {}


# What the cases are given to


class Place:
    """A working folder that every case finds as it was, and what is slow to make."""

    def __init__(self, folder):
        self.folder, self.made = folder, folder / "made"
        self.made.mkdir()
        for name, model in (("llama", make_llama()), ("t5", make_t5())):
            model.save_pretrained(self.made / name)
            make_tokenizer(bos=name == "llama").save_pretrained(self.made / name)
        for name, kept in (
            ("mood", "llama-own-0"),
            ("film", "llama-sst2"),
            ("other", "t5-own"),
            ("bare", "llama-own-0"),
        ):
            shutil.copytree(PROMPTS / kept, self.made / name)
        change_json(self.made / "bare" / "softprompt.json", {"task": None, "text": {}, "labels": []})
        content = {
            "own.jsonl": GOOD, "moods.jsonl": '{"text": "warm", "mood": "glad"}\n{"text": "dull", "mood": "cross"}\n',
            "texts.jsonl": '{"text": "warm"}\n', "part.jsonl.partial": "", "empty.jsonl": "", "odd.doc": "x",
            "damaged.gguf": "x", "damaged.jsonl.gz": "x", "damaged.parquet": "x", "damaged.json": "[{",
            "damaged.npy": b"\x93NUMPY", "shape.json": '{"d_model": 4}', "corpus.txt": "the sea is warm\n" * 20,
            "rows.jsonl": json.dumps(ROW) + "\n",
        }  # fmt: skip
        for name, written in content.items():
            write(self.made / name, written)
        (self.made / "empty").mkdir()
        sst2 = "sentence\tlabel\n" + "".join(f"a film {number}\t{number % 2}\n" for number in range(20))
        write(self.made / "data" / "glue" / "SST-2" / "train.tsv", sst2)
        self.here, self.lm, self.saved, self.clients = folder / "here", None, None, {}
        self.here.mkdir()
        for path in self.made.iterdir():
            if path.name in ("llama", "t5"):
                (self.here / path.name).symlink_to(path)
            elif path.is_dir():
                shutil.copytree(path, self.here / path.name)
            else:
                shutil.copy(path, self.here / path.name)
        self.fresh = self.state()

    def anew(self):
        """Make the working folder what it was at first."""
        os.chdir(self.here)
        now = self.state()
        for path in sorted(set(now) - set(self.fresh)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)  # or it went with its folder
        for path in [path for path, about in self.fresh.items() if now.get(path) != about]:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.made / path.relative_to(self.here), path)
            self.fresh[path] = _about(path)

    def state(self):
        """Every file and folder in the working folder, a file with its time and size."""
        found, left = {}, [self.here]
        while left:
            for entry in os.scandir(left.pop()):
                path = Path(entry.path)
                found[path] = _about(path)
                if found[path] is None:
                    left.append(path)
        return found

    def plain(self, text):
        """A message without what is this machine's or this Python's."""
        for path in (self.here, self.folder):
            for form in (str(path.resolve()), str(path)):
                text = text.replace(f"{form}/", "<tmp>/").replace(form, "<tmp>")
        text = re.sub(r"/tmp/softprompt-\w+", "<tmp>", text)
        return re.sub(r"\(choose from ([^)]*)\)", lambda found: found[0].replace("'", ""), text)


def _about(path):
    """A file's time and size; None for a folder."""
    about = os.lstat(path)
    return None if stat.S_ISDIR(about.st_mode) else (about.st_mtime_ns, about.st_size)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def change_json(path, changes):
    record = json.loads(path.read_text()) | changes
    write(path, json.dumps({name: value for name, value in record.items() if value is not QUIET}))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    before = os.getcwd()
    checks = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)  # conftest.py's types are not what a user's input meets
    place = Place(tmp_path_factory.mktemp("messages"))
    place.anew()
    place.lm = softprompt.load("./llama", dtype="float32", device="cpu")
    place.saved = softprompt.open_prompts("mood", model=place.lm)
    yield place
    for client in place.clients.values():
        client.__exit__(None, None, None)
    jaxtyping.config.update("jaxtyping_disable", checks)
    os.chdir(before)


@pytest.fixture
def said(place, monkeypatch, capsys):
    """Run a case: what comes back."""
    import uvicorn

    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    bind = serve._bound
    monkeypatch.setattr(serve, "_bound", lambda host, port: bind(host, 0))  # two runs of the tests share no port

    def serving(server, sockets):
        server.started = True
        place.clients["new"] = server.config.app

    monkeypatch.setattr(uvicorn.Server, "run", serving)
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(place.folder / "cache"))
    monkeypatch.delenv("SOFTPROMPT_DEBUG", raising=False)
    threads = torch.get_num_threads()

    def run(*words):
        place.clients.pop("new", None)
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except Exception as error:
            return {"code": "traceback", "message": f"{type(error).__name__}: {error}"}
        err = capsys.readouterr().err
        if code == 0:
            notes = [line for line in err.splitlines() if line.startswith("note: ")]
            return {"code": 0, "message": "\n".join(["served" if "new" in place.clients else "taken", *notes])}
        return {"code": code, "message": err.strip()}

    yield run
    torch.set_num_threads(threads)


def ask(case, place, run):
    kind, given = CASES[case]
    if kind not in ("http", "guarded"):
        place.anew()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if kind in ("http", "guarded") else "default")
        found = ASKED[kind](given, place, run)
    return found | {"message": place.plain(str(found["message"]))}


def raised(function):
    """What a function's error says, with its kind; or its warnings, where it raises none."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = function()
        except (ValueError, OSError) as error:
            return {"code": "ValueError" if isinstance(error, ValueError) else "OSError", "message": error}
        except Exception as error:
            return {"code": "traceback", "message": f"{type(error).__name__}: {error}"}
    notes = "".join(f"\nnote: {one.message}" for one in told if issubclass(one.category, UserWarning))
    return {"code": 0, "message": f"taken{'' if found is None else f': {found}'}{notes}"}


def _recipe(content, place, run):
    if isinstance(content, str) and content and content.split(":")[0] in ("model", "task", "inputs"):
        rest = {"model": "task: glue/sst2", "task": "model: ./none", "inputs": "model: ./none\ntargets: '{b}'\ndata: x"}
        content = f"{rest[content.split(':')[0]]}\n{content}"
    elif isinstance(content, str) and re.match(r"(labels|metric|group-by):", content):
        content = f"model: ./none\ninputs: '{{a}}'\ntargets: '{{b}}'\ndata: x\n{content}"
    elif isinstance(content, str) and re.match(r"[a-z-]+: ", content) and content != "steps: [1":
        content = f"model: ./none\ntask: glue/sst2\n{content}"
    write(place.here / "recipe.yaml", content)
    return run("train", "--config", "recipe.yaml")


def _keys(content, place, run):
    write(place.here / "keys.yaml", content)
    return run("serve", "--model", "./llama", "--api-key-file", "keys.yaml")


def _serve(content, place, run):
    write(place.here / "serve.yaml", content)
    return run("serve", "--config", "serve.yaml", *(() if content.startswith("model:") else ("--model", "./llama")))


def _registry(content, place, run):
    write(place.here / "kept" / "registry.json", content)
    found = run("serve", "--model", "./llama", "--prompts-dir", "kept", "--dtype", "float32")
    return found


def _rows(content, place, run):
    write(place.here / "bad.jsonl", content)
    found = run("rerun", "bad.jsonl:1", "--out", "again", "--data", "data")
    page = run("report", "bad.jsonl", "--out", "page")
    return found | {"message": f"{found['message']}\n{page['message']}"}


def _used(place):
    """What a prompt that was changed says when it is opened and asked."""

    def use():
        saved = softprompt.open_prompts("mood", model=place.lm)
        (answer,) = softprompt.predict_records(saved, [(1, "message: warm")])
        return answer.get("error", "and answers")

    return raised(use)


def _card_case(given, place, run):
    path = place.here / "mood" / "softprompt.json"
    if isinstance(given, dict):
        change_json(path, given)
    else:
        write(path, given)
    return _used(place)


def _text(given, place, run):
    path = place.here / "mood" / "softprompt.json"
    text = json.loads(path.read_text())["text"]
    change_json(path, {"text": text | given})
    return _used(place)


def _adapter(given, place, run):
    path = place.here / "mood" / "adapter_config.json"
    if isinstance(given, dict):
        change_json(path, given)
    else:
        write(path, given)
    return _used(place)


def _weights(given, place, run):
    path = place.here / "mood" / "adapter_model.safetensors"
    path.unlink()
    if isinstance(given, bytes):
        write(path, given)
    elif given is not None:
        save_file(given, path)
    return _used(place)


def _line(given, place, run):
    write(place.here / "lines.txt", given + b"\n")
    return _items(("lines.txt", given + b"\n"), place, run)


def _items(given, place, run):
    name, content = given
    write(place.here / name, content)

    def answers():
        softprompt.predict_file(place.saved, name, "out.jsonl")
        lines = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        return "; ".join(line.get("error", "an answer") for line in lines)

    found = raised(answers)
    return found | {"message": str(found["message"]).removeprefix("taken: ")}


def _template(given, place, run):
    inputs, targets, more = given
    return run(
        "tasks", "--inputs", inputs, "--targets", targets, "--data", "train=own.jsonl", "--limit", "0",
        *shlex.split(more),
    )  # fmt: skip


def _data(given, place, run):
    task, name, content = given
    if isinstance(content, dict | list):
        records = content if isinstance(content, list) else [content]
        content = "".join(json.dumps(record) + "\n" for record in records)
    write(place.here / name, content)
    return run("tasks", task, "--data", f"train={name}", "--limit", "0")


def _client(place, run, *words):
    """The server that these words start, with prompts, an ensemble of two tasks and an alias."""
    from fastapi.testclient import TestClient

    if words not in place.clients:
        place.anew()
        write(place.here / "keys.yaml", "\n".join(
            f"- {{name: {name}, key: {name}-0123456789, scopes: [{scope}]}}"
            for name, scope in (("reader", "use"), ("porter", "administer"))
        ))  # fmt: skip
        for name in ("mood", "film"):
            shutil.copytree(place.here / name, place.folder / "serving" / name, dirs_exist_ok=True)
        other = load_prompt(place.here / "mood")  # of the same task, for an ensemble
        save_prompt(replace(other, values=2 * other.values), place.folder / "serving" / "q7")
        kept = {"format": 1, "versions": {}, "ensembles": {"odd": ["mood", "film"]}, "aliases": {}}  # as 0.2.0 let be
        write(place.folder / "serving" / "kept" / "registry.json", json.dumps(kept))
        served = [f"{name}={place.folder}/serving/{name}" for name in ("mood", "film", "q7")]
        more = ("--prompts-dir", place.folder / "serving" / "kept", "--dtype", "float32", "--device", "cpu")
        assert run("serve", "--model", "./llama", *more, *words, "--prompt", *served)["message"] == "served"
        client = TestClient(place.clients.pop("new"), "http://localhost")
        place.clients[words] = client.__enter__()
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)
        if not words:
            sent = (("ensembles/both", {"members": ["mood", "q7"]}),
                    ("aliases/live", {"targets": {"both": 100}}))  # fmt: skip
            for path, body in sent:
                assert client.put(f"/v1/{path}", json=body).status_code == 200
    return place.clients[words]


def _told(answer):
    body = answer.json()
    if "error" not in body:
        return {"code": answer.status_code, "message": "taken"}
    return {"code": answer.status_code, "message": body["error"]["message"]}


def _http(given, place, run):
    client = _client(place, run)
    request, body = given
    method, path = request.split(" ", 1)
    if isinstance(body, str):  # a prompt to upload
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            for file in (place.made / body).iterdir():
                archive.write(file, file.name)
        body = data.getvalue()
    sent = {} if body is None else {"content": body} if isinstance(body, bytes) else {"json": body}
    if isinstance(body, bytes) and method == "POST":
        sent["headers"] = {"content-type": "application/json"}
    return _told(client.request(method, path, **sent))


def _guarded(given, place, run):
    client = _client(place, run, "--api-key-file", "keys.yaml")
    request, header = given
    method, path = request.split(" ", 1)
    return _told(client.request(method, path, headers={"authorization": header} if header else {}))


ASKED = {
    "command": lambda given, place, run: run(*shlex.split(given)),
    "recipe": _recipe,
    "keys": _keys,
    "serve.yaml": _serve,
    "registry": _registry,
    "rows": _rows,
    "card": _card_case,
    "text format": _text,
    "adapter config": _adapter,
    "weights": _weights,
    "line": _line,
    "items": _items,
    "template": _template,
    "python": lambda given, place, run: raised(lambda: given(place.lm)),
    "data": _data,
    "http": _http,
    "guarded": _guarded,
}


@pytest.mark.parametrize("kind", ASKED)
def test_bad_input_is_answered_in_these_words(kind, place, said):
    changed = []
    for case in CASES:
        if CASES[case][0] != kind:
            continue
        found, wanted = ask(case, place, said), KNOWN.get(case, {})
        if WRITES:
            KNOWN[case] = found | ({"bad": True} if wanted.get("bad") else {})
        elif (found["code"], found["message"]) != (wanted.get("code"), wanted.get("message")):
            was = f"{wanted.get('code')}: {wanted.get('message')}"
            changed.append(f"{case}\n  was {was}\n  now {found['code']}: {found['message']}")
    if WRITES:
        kept = {case: KNOWN[case] for case in CASES if case in KNOWN}
        MESSAGES.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert not changed, f"{len(changed)} answers changed:\n" + "\n".join(changed)


def test_every_message_has_a_case_and_every_case_a_message():
    assert list(json.loads(MESSAGES.read_text(encoding="utf-8"))) == list(CASES)
    assert len(CASES) > 900
