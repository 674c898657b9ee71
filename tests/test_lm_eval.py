"""lm-eval's `local-completions`, unchanged, against the server: it gets the model's log-probabilities, summed."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from test_server import listening, make_server

WORDS = [("a warm and funny story", "positive"), ("a dull film", "negative"), ("the sea in the morning", "positive")]
SHARED = {"dataset_path": "json", "test_split": "test", "doc_to_text": "sentence: {{text}}\nanswer:"}
TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_choice": ["positive", "negative"], "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    },
    "likely": {
        "output_type": "loglikelihood", "doc_to_target": " {{label}} é", "metric_list": [{"metric": "perplexity"}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_target": "{{label}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 5, "do_sample": False, "temperature": 0},
    },
}  # fmt: skip


@pytest.fixture
def samples(llama, tmp_path):
    """What lm-eval wrote of each task's documents, asked of p1 over a server with keys for nobody."""
    rows = [json.dumps({"text": text, "label": label}) for text, label in WORDS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    for name, task in TASKS.items():
        data = {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | SHARED | data | task))
    server = make_server(llama, tmp_path)
    with listening(server) as address:
        model = f"model=p1,base_url={address}v1/completions,max_length=200,max_retries=1"
        words = ["--model", "local-completions", "--model_args", model, "--batch_size", "2", "--tasks", ",".join(TASKS)]
        words += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
        ended = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "lm_eval", "run", *words],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=250,
        )
    assert ended.returncode == 0, ended.stderr[-3_000:]
    found = {}
    for name in TASKS:
        (path,) = (tmp_path / "out").rglob(f"samples_{name}_*.jsonl")
        found[name] = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: sample["doc_id"])
    return server, found


@torch.no_grad()
def log_probs_after(lm, prompt, ids):
    """log p of every next token, all computed anew by transformers: [prompt | ids]."""
    rows = torch.cat([prompt, lm.embed(torch.tensor([ids]))[0]])
    return lm.model(inputs_embeds=rows[None]).logits[0, len(prompt) :].log_softmax(-1)


def test_its_numbers_are_the_models_own_through_a_prompt(llama, samples):
    server, found = samples
    with server.registry.hold("p1", 0.0) as held:
        prompt = server.engine.table.values(held.prompts[0])
    encode, decode = llama.tokenizer.encode, llama.tokenizer.decode
    for number, (text, label) in enumerate(WORDS):
        context = f"sentence: {text}\nanswer:"
        asked = [
            (found["choose"][number]["resps"][place][0], f" {word}")
            for place, word in enumerate(TASKS["choose"]["doc_to_choice"])
        ]
        asked.append((found["likely"][number]["resps"][0][0], f" {label} é"))
        for (log_prob, is_greedy), answer in asked:
            ids, first = encode(context + answer), len(encode(context))
            told = log_probs_after(llama, prompt, ids)
            wanted = [(place - 1, ids[place]) for place in range(first, len(ids))]
            assert float(log_prob) == pytest.approx(sum(float(told[at]) for at in wanted), abs=1e-4)
            assert str(is_greedy) == str(all(int(told[place].argmax()) == id for place, id in wanted))
        ids = encode(context)
        for _ in range(5):
            ids.append(int(log_probs_after(llama, prompt, ids)[-1].argmax()))
            if ids[-1] == llama.tokenizer.eos_id:
                break
        (written,) = found["write"][number]["resps"][0]
        assert written == decode(ids[len(encode(context)) :]).lstrip()
