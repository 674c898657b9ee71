"""The HTTP server: OpenAI's endpoints, classification, prompts that come and go, keys and limits."""

import asyncio
import bz2
import gzip
import io
import json
import logging
import lzma
import math
import re
import socket
import tarfile
import threading
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
import torch
import uvicorn
from conftest import lossy_lm, make_tokenizer, tiny_lm
from fastapi.testclient import TestClient

from softprompt.answering import Decoding, Prediction, open_prompts, predict_records
from softprompt.answering.evaluation import vote
from softprompt.base.files import locked, write_whole
from softprompt.base.names import nearest
from softprompt.models import Tokenizer, load_tokenizer
from softprompt.models.text import default_format, encode_examples
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.serving import Part, PartAnswer
from softprompt.serving import Request as Asked
from softprompt.serving.http.access import Access, Key, read_keys
from softprompt.serving.http.app import Server, make_app
from softprompt.serving.http.archive import read_archive
from softprompt.serving.http.asking import Asker
from softprompt.serving.http.listening import Listener
from softprompt.serving.http.logprobs import columns, entries, tokens_of
from softprompt.serving.http.registry import Registry
from softprompt.serving.http.wire import Limits, Wire
from softprompt.serving.scheduler import Scheduler
from softprompt.tasks import TASKS, file_task, get_task

LABELS = ("positive", "negative")
TEXT = "a warm and funny story"
MEMORY = 1 << 26
KEYS = (
    Key(name="reader", sha256=sha256(b"reader-0123456789").hexdigest()),
    Key(
        name="boss",
        sha256=sha256(b"boss-0123456789ab").hexdigest(),
        scopes=frozenset({"use", "administer"}),
    ),
)


def make_prompt(lm, seed=0, length=4, **card):
    given = {
        "model_name": lm.name,
        "model_fingerprint": lm.fingerprint,
        "is_encoder_decoder": lm.is_encoder_decoder,
        "width": lm.width,
        "task": "mine",
        "labels": LABELS,
        "text": default_format(
            lm, max_target_length=6, inputs_template="sentence: {sentence}", targets_template="{label}"
        ).to_json(),
    } | card
    values = torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(values, Card(**given))


def saved(lm, folder, seed=0, **changes):
    save_prompt(make_prompt(lm, seed, **changes), folder)
    return folder


def archive(folder, kind="zip", inside="sst2/"):
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as file:
            for path in folder.iterdir():
                file.write(path, f"{inside}{path.name}")
    else:
        with tarfile.open(fileobj=data, mode=f"w:{kind}") as file:
            file.add(folder, "sst2")
    return data.getvalue()


def make_server(lm, tmp_path, *, access=None, limits=None, num_prompts=2, keep=True, **engine):
    scheduler = Scheduler(lm, **{"max_memory": MEMORY} | engine)
    registry = Registry(scheduler.table, lm.name, tmp_path / "kept" if keep else None)
    for i in range(num_prompts):
        registry.add(f"p{i}", saved(lm, tmp_path / f"p{i}", seed=i, length=3 + i))
    registry.open()
    return Server(scheduler, registry, access or Access(), limits or Limits(timeout=60.0))


@contextmanager
def served(server):
    with TestClient(make_app(server), "http://localhost") as client:
        for _ in range(1000):
            if server.is_ready:
                break
            time.sleep(0.01)
        yield client


@contextmanager
def listening(server):
    """The server on a port of this machine; its address."""
    with listening_app(make_app(server)) as port:
        yield f"http://127.0.0.1:{port}/"


@contextmanager
def listening_app(app, **limits):
    """An application on a port of this machine, as `softprompt serve` listens; the port."""
    web = Listener(uvicorn.Config(app, log_config=None, ws="none", loop="asyncio"), **limits)
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [bound]})
    thread.start()
    while not web.started:
        time.sleep(0.01)
    try:
        yield bound.getsockname()[1]
    finally:
        web.should_exit = True
        thread.join()


@pytest.fixture
def client(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        yield client


def why(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["request_id"] == answer.headers["x-request-id"]
    return error["message"]


def test_a_completion_is_what_predict_writes(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        answer = client.post("/v1/completions", json={"model": "p1", "prompt": TEXT}).json()
    prompts = open_prompts(tmp_path / "p1", model=lm, scoring="generate")
    (alone,) = predict_records(prompts, [(1, TEXT)])
    (choice,) = answer["choices"]
    assert choice["text"].strip() == alone["prediction"]
    assert answer["object"] == "text_completion" and answer["model"] == "p1"
    assert choice["prompt_hash"] == prompts.prompts[0].identity
    assert choice["truncated"] is False
    assert choice["input_tokens"] == answer["usage"]["prompt_tokens"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + answer["usage"]["completion_tokens"]


def test_a_label_is_the_one_that_predict_ranks_first(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        answer = client.post("/v1/classify", json={"model": "p0", "fields": {"sentence": "dull"}}).json()
    prompts = open_prompts(tmp_path / "p0", model=lm, scoring="rank")
    (alone,) = predict_records(prompts, [(1, {"sentence": "dull"})], with_probabilities=True)
    (result,) = answer["results"]
    assert result["label"] == alone["prediction"]
    assert result["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    assert result["log_probs"][result["label"]] == pytest.approx(alone["log_prob"], abs=1e-5)
    assert result["votes"] is None


def test_many_inputs_in_one_request_come_back_in_order(client):
    texts = [f"{'very ' * n}good" for n in (9, 0, 4)]
    many = client.post("/v1/classify", json={"model": "p0", "input": texts}).json()["results"]
    alone = [client.post("/v1/classify", json={"model": "p0", "input": text}).json()["results"][0] for text in texts]
    assert [result["input"] for result in many] == [0, 1, 2]
    for together, single in zip(many, alone, strict=True):
        assert together["probabilities"] == pytest.approx(single["probabilities"], abs=1e-5)
        assert together["input_tokens"] == single["input_tokens"]


def test_a_cut_input_is_said_to_be_cut(lm, tmp_path):
    server = make_server(lm, tmp_path, num_prompts=0)
    templates = {"inputs_template": "sentence: {sentence}", "targets_template": "{label}"}
    form = default_format(lm, max_input_length=16, max_target_length=6, **templates)
    server.registry.add("short", saved(lm, tmp_path / "short", text=form.to_json()))
    with served(server) as client:
        answer = client.post("/v1/classify", json={"model": "short", "input": "word " * 50}).json()
    (result,) = answer["results"]
    assert result["truncated"] is True
    assert result["input_tokens"] == 16


def test_an_ensemble_votes_as_its_prompts_do_one_by_one(client):
    assert client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]}).status_code == 200
    (voted,) = client.post("/v1/classify", json={"model": "both", "input": TEXT}).json()["results"]
    single = [
        client.post("/v1/classify", json={"model": name, "input": TEXT}).json()["results"][0] for name in ("p0", "p1")
    ]
    assert [vote["label"] for vote in voted["votes"]] == [result["label"] for result in single]
    for label in LABELS:
        mean = sum(result["probabilities"][label] for result in single) / 2
        assert voted["probabilities"][label] == pytest.approx(mean, abs=1e-5)
    assert voted["prompt_hash"] is None
    assert [v["prompt_hash"] for v in voted["votes"]] == [result["prompt_hash"] for result in single]


def test_an_ensemble_writes_one_text_and_says_who_wrote_what(client):
    client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]})
    (choice,) = client.post("/v1/completions", json={"model": "both", "prompt": TEXT}).json()["choices"]
    texts = [member["text"] for member in choice["members"]]
    assert choice["text"] in texts and len(texts) == 2


def test_the_bare_model_continues_text_and_scores_labels_given(client, lm):
    answer = client.post("/v1/completions", json={"model": lm.name, "prompt": "the sea", "max_tokens": 3}).json()
    assert answer["choices"][0]["prompt_hash"] is None
    assert answer["usage"]["completion_tokens"] <= 3
    asked = {"model": lm.name, "input": "the sea", "labels": ["warm", "cold"]}
    (result,) = client.post("/v1/classify", json=asked).json()["results"]
    assert set(result["probabilities"]) == {"warm", "cold"}
    reason = why(client.post("/v1/classify", json=asked | {"labels": None}), 400)
    assert reason == "there are no labels to score: this prompt writes free text; give labels, or complete"


def test_a_stream_is_the_same_text_in_pieces(client):
    asked = {"model": "p0", "prompt": TEXT, "max_tokens": 12}
    whole = client.post("/v1/completions", json=asked).json()
    with client.stream(
        "POST", "/v1/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    pieces = [choice["text"] for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole["choices"][0]["text"]
    assert len(pieces) > 2
    assert events[-1]["usage"] == whole["usage"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert events[-2]["choices"][0]["prompt_hash"] == whole["choices"][0]["prompt_hash"]


def test_sampling_with_a_seed_repeats_itself_and_the_seed_is_told(client):
    asked = {"model": "p0", "prompt": TEXT, "max_tokens": 8, "temperature": 1.5, "n": 3, "seed": 7}
    first, second = (client.post("/v1/completions", json=asked).json()["choices"] for _ in range(2))
    assert [choice["text"] for choice in first] == [choice["text"] for choice in second]
    assert [choice["seed"] for choice in first] == [7, 8, 9]
    assert len({choice["text"] for choice in first}) > 1


def test_log_probs_are_those_of_the_tokens_written_and_add_up_to_what_the_label_scores(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        asked = {"model": "p0", "prompt": TEXT, "max_tokens": 5, "logprobs": 3}
        (choice,) = client.post("/v1/completions", json=asked).json()["choices"]
        told = choice["logprobs"]
        scored = client.post(
            "/v1/classify", json={"model": "p0", "input": TEXT, "labels": [choice["text"], "x"]}
        ).json()
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["text_offset"]) == len(told["top_logprobs"])
    if choice["finish_reason"] == "stop":
        assert told["tokens"][-1] == "</s>"
        assert sum(told["token_logprobs"]) == pytest.approx(scored["results"][0]["log_probs"][choice["text"]], abs=1e-4)
    for token, log_prob, top in zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True):
        assert top[token] == log_prob == max(top.values()) and len(top) == 3
    assert "".join(told["tokens"]).removesuffix("</s>").lstrip() == choice["text"]


@pytest.mark.parametrize("prompt", ["sentence: warm é", [40, 41, 300, 4], [[40, 41, 300, 4], [40]]])
def test_an_echo_is_the_input_as_it_stands_with_its_tokens_log_probabilities(llama, tmp_path, prompt):
    asked = {"model": "p1", "prompt": prompt, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    with served(make_server(llama, tmp_path)) as client:
        written = client.post("/v1/completions", json=asked).json()
        only_read = client.post("/v1/completions", json=asked | {"max_tokens": 0}).json()
        silent = client.post("/v1/completions", json=asked | {"echo": False, "max_tokens": 0, "logprobs": None}).json()
        stream = client.post("/v1/completions", json=asked | {"stream": True}).text
    inputs = prompt if isinstance(prompt[0], list) else [prompt]
    for place, item in enumerate(inputs):
        ids = llama.tokenizer.encode(item) if isinstance(item, str) else item
        choice, read = written["choices"][place], only_read["choices"][place]
        told = choice["logprobs"]
        assert choice["input_tokens"] == len(ids) == len(told["tokens"]) - 1 == len(read["logprobs"]["tokens"])
        assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
        assert told["token_logprobs"][:-1] == pytest.approx(read["logprobs"]["token_logprobs"], abs=1e-5)
        for token, log_prob, top in list(
            zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
        )[1:]:
            assert top[token] == log_prob <= max(top.values()) and 1 <= len(top) <= 2
        assert choice["text"].startswith(read["text"])
        assert read["text"] == (item if isinstance(item, str) else llama.tokenizer.text_of(ids))
        assert (read["finish_reason"], silent["choices"][place]["text"]) == ("length", "")
    events = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: {")]
    for place, choice in enumerate(written["choices"]):
        parts = [part for event in events for part in event["choices"] if part["index"] == place]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert parts[-1]["logprobs"]["tokens"] == choice["logprobs"]["tokens"]
    assert only_read["usage"] == {
        "prompt_tokens": written["usage"]["prompt_tokens"], "completion_tokens": 0,
        "total_tokens": written["usage"]["prompt_tokens"],
    }  # fmt: skip


def test_token_ids_get_what_a_text_with_nothing_around_it_gets(lm, tmp_path):
    ids = lm.tokenizer.encode("sentence: a dull film")
    with served(make_server(lm, tmp_path)) as client:
        asked = {"model": "p0", "max_tokens": 4, "logprobs": 0}
        (choice,) = client.post("/v1/completions", json=asked | {"prompt": ids}).json()["choices"]
        reason = why(client.post("/v1/completions", json=asked | {"prompt": [4, 99_999]}), 400)
    assert reason == f"an id is not one of {lm.name}'s 340: 4 to 99999"
    scheduler = Scheduler(lm, max_memory=MEMORY)
    hashed = scheduler.table.add(tmp_path / "p0")
    ticket = scheduler.submit(Asked(parts=(Part(ids=tuple(ids), prompt=hashed),), decoding=Decoding(max_tokens=4)))
    while scheduler.step():
        pass
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(ticket.result(0.0).parts[0].log_probs, abs=1e-5)
    assert choice["input_tokens"] == len(ids)


def test_what_cannot_be_echoed_or_told_is_refused_by_name(lm, tmp_path):
    asked = {"model": "p0", "prompt": "x"}
    cases = [
        ({"echo": True, "prompt": None, "fields": {"sentence": "x"}}, "echo takes an input as it stands; give prompt"),
        ({"echo": True, "model": "both"}, "logprobs and echo are of one prompt's tokens, but an ensemble has several"),
        ({"logprobs": 0, "model": "both"}, "logprobs and echo are of one prompt's tokens, but an ensemble has several"),
        ({"logprobs": 2, "num_beams": 2}, "the most probable tokens are not kept in a beam search; give num_beams 1"),
    ]
    if lm.is_encoder_decoder:
        cases.append(({"echo": True}, f"echo: {lm.name} is an encoder-decoder, which reads an input without"))
    with served(make_server(lm, tmp_path)) as client:
        client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]})
        for change, wanted in cases:
            assert why(client.post("/v1/completions", json=asked | change), 400).startswith(wanted)
        chat = {"model": "p0", "messages": [{"role": "user", "content": TEXT}], "top_logprobs": 2}
        assert why(client.post("/v1/chat/completions", json=chat), 400).startswith("top_logprobs stand beside logprobs")
        assert client.post("/v1/completions", json=asked | {"logprobs": 0, "num_beams": 2}).status_code == 200


def test_chat_tells_log_probs_in_openais_form(llama, tmp_path):
    import openai

    asked = {"model": "p0", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 4}
    with served(make_server(llama, tmp_path)) as client:
        theirs = openai.OpenAI(api_key="none", base_url="http://localhost/v1", http_client=client)
        (said,) = theirs.chat.completions.create(**asked, logprobs=True, top_logprobs=2).choices
        (plain,) = theirs.chat.completions.create(**asked, logprobs=False).choices
        chunks = list(theirs.chat.completions.create(**asked, logprobs=True, top_logprobs=2, stream=True))
    assert plain.logprobs is None
    content = said.logprobs.content
    written = b"".join(bytes(token.bytes or ()) for token in content)
    assert written.decode(errors="ignore").lstrip() == said.message.content
    for token in content:
        assert token.top_logprobs[0].logprob == token.logprob and len(token.top_logprobs) == 2
    last = chunks[-1].choices[0].logprobs.content
    assert [token.token for token in last] == [token.token for token in content]


EMOJI = "naïve 😀👍🏽 日本 é fin"


@pytest.mark.parametrize("kind", ["bytes", "letters for bytes", "pieces and bytes"])
def test_offsets_are_characters_of_the_text_and_halves_are_bytes(kind):
    from transformers import ByT5Tokenizer

    tokenizer = {
        "bytes": lambda: Tokenizer(ByT5Tokenizer()),
        "letters for bytes": lambda: Tokenizer(make_tokenizer()),
        "pieces and bytes": lambda: load_tokenizer("softprompt/bundled/t5-mini"),
    }[kind]()
    ids = tokenizer.encode(EMOJI)
    text = tokenizer.decode(ids)
    part = PartAnswer(
        prediction=Prediction(text, 0.0), text=text, ids=tuple(ids), log_probs=(*[-1.0] * len(ids), -math.inf),
        finish_reason="stop", prompt=None, end=tokenizer.eos_id,
    )  # fmt: skip
    tokens = tokens_of(part, tokenizer)
    told = columns(tokens, text, tokenizer)
    assert b"".join(token.text for token in tokens).decode().lstrip() == text == EMOJI
    assert told["tokens"][-1] == "</s>" and told["token_logprobs"][-1] == -9999.0
    assert told["text_offset"][-1] == len(text)
    halves = 0
    for name, begin, end in zip(told["tokens"][:-1], told["text_offset"][:-1], told["text_offset"][1:], strict=True):
        assert 0 <= begin <= end <= len(text)
        halves += name.startswith("bytes:\\x")
        assert name.startswith("bytes:") or name.lstrip() == text[begin:end].lstrip()
    assert halves >= 8
    said = entries(tokens, 1, tokenizer)["content"]
    assert bytes(byte for entry in said for byte in entry["bytes"] or ()).decode().lstrip() == text
    assert said[-1]["bytes"] is None
    cut = columns(tokens, text[:7], tokenizer)
    assert max(cut["text_offset"]) == 7


def test_tokens_that_read_alike_have_an_entry_each():
    tokenizer = load_tokenizer("softprompt/bundled/t5-mini")
    letter, byte = tokenizer.id_of("A"), tokenizer.id_of("<0x41>")
    assert tokenizer.name(letter) == tokenizer.name(byte) == "A"
    for own, other in ((letter, byte), (byte, letter)):
        part = PartAnswer(
            prediction=Prediction("A", 0.0), text="A", ids=(own,), log_probs=(-1.5,), finish_reason="length",
            prompt=None, alternatives=({other: -0.5, own: -1.5},),
        )  # fmt: skip
        (top,) = columns(tokens_of(part, tokenizer), "A", tokenizer)["top_logprobs"]
        assert top == {f"token_id:{other}": -0.5, "A": -1.5}


def test_the_tokenizer_can_be_asked_as_lm_evals_client_asks(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        info = client.get("/tokenizer_info").json()
        assert (info["eos_token"], info["pad_token"], info["bos_token"]) == ("</s>", "<pad>", "<s>")
        assert info["chat_template"] is None and info["tokenizer_class"]
        asked = {"prompt": "warm é</s>", "add_special_tokens": False}
        told = client.post("/tokenize", json=asked).json()
        assert told == {
            "count": len(told["tokens"]), "max_model_len": lm.max_length or 4096, "token_strs": None,
            "tokens": lm.tokenizer.encode("warm é</s>"),
        }  # fmt: skip
        assert told["tokens"][-1] == lm.tokenizer.eos_id
        assert client.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "warm é</s>"}
        added = client.post("/tokenize", json={"prompt": "warm", "return_token_strs": True, "model": "p0"}).json()
        assert (added["token_strs"][0] == "<s>") == (lm.tokenizer.bos_id is not None)
        assert why(client.post("/detokenize", json={"tokens": [99_999]}), 400) == (
            f"tokens: 99999 is no id; {lm.name} has {lm.tokenizer.size}, from 0 on"
        )


def test_chat_takes_one_message_as_a_prompts_input(client):
    asked = {"model": "p0", "messages": [{"role": "user", "content": TEXT}]}
    said = client.post("/v1/chat/completions", json=asked).json()
    text = client.post("/v1/completions", json={"model": "p0", "prompt": TEXT}).json()["choices"][0]["text"]
    assert said["object"] == "chat.completion"
    assert said["choices"][0]["message"] == {"role": "assistant", "content": text}
    two = [*asked["messages"], {"role": "assistant", "content": "hm"}]
    reason = why(client.post("/v1/chat/completions", json=asked | {"messages": two}), 400)
    assert reason == "2 messages, but a prompt takes one, of role user: its input, as in training"


def test_a_text_fills_the_template_wherever_it_is_sent_unless_it_is_finished(client, lm):
    end = "</s>" if lm.is_encoder_decoder else "\nanswer:"

    def seen(**more):
        asked = {"model": "p0", "show_input": True, **more}
        chat = client.post("/v1/chat/completions", json=asked | {"messages": [{"role": "user", "content": TEXT}]})
        (result,) = client.post("/v1/classify", json=asked | {"input": TEXT}).json()["results"]
        streamed = client.post("/v1/completions", json=asked | {"prompt": TEXT, "stream": True}).text.split("data: ")
        completed = client.post("/v1/completions", json=asked | {"prompt": [TEXT, TEXT]}).json()["choices"]
        ends = [chat.json()["choices"][0], result, json.loads(streamed[-2])["choices"][0], *completed]
        return {each["input_text"].removeprefix("<s>") for each in ends}

    assert seen() == {f"sentence: {TEXT}{end}"}
    assert seen(finished=True) == {f"{TEXT}{end}"}
    record = {"model": "p0", "fields": {"sentence": TEXT}}
    (result,) = client.post("/v1/classify", json=record | {"show_input": True}).json()["results"]
    (text,) = client.post("/v1/classify", json={"model": "p0", "input": TEXT}).json()["results"]
    assert result["input_text"].removeprefix("<s>") == f"sentence: {TEXT}{end}"
    assert (result["probabilities"], text["input_text"]) == (pytest.approx(text["probabilities"]), None)
    (bare,) = client.post("/v1/completions", json={"model": lm.name, "prompt": TEXT, "show_input": True}).json()[
        "choices"
    ]
    assert bare["input_text"].removeprefix("<s>") == f"{TEXT}{'</s>' if lm.is_encoder_decoder else ''}"


def test_a_text_for_a_prompt_of_several_fields_is_refused_with_their_names(llama, tmp_path):
    server = make_server(llama, tmp_path, num_prompts=0)
    templates = {"inputs_template": "{subject}: {body}", "targets_template": "{label}"}
    form = default_format(llama, max_target_length=6, **templates)
    server.registry.add("mail", saved(llama, tmp_path / "mail", text=form.to_json()))
    with served(server) as client:
        for path, body in (
            ("classify", {"input": TEXT}),
            ("completions", {"prompt": TEXT}),
            ("chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
        ):
            assert why(client.post(f"/v1/{path}", json={"model": "mail", **body}), 400) == (
                "a plain text fills a task's only field, and mine has subject and body; give them as a record, "
                '{"subject": "...", "body": "..."}, or ask for a finished input (--finished, "finished": true)'
            )
            assert client.post(f"/v1/{path}", json={"model": "mail", "finished": True, **body}).status_code == 200
        record = {"subject": "a sea", "body": "that is warm"}
        asked = {"model": "mail", "fields": record, "show_input": True}
        (result,) = client.post("/v1/classify", json=asked).json()["results"]
        assert result["input_text"] == "<s>a sea: that is warm\nanswer:"


def test_chat_with_the_bare_model_needs_its_template(client, lm):
    asked = {"model": lm.name, "messages": [{"role": "user", "content": "hello"}]}
    reason = why(client.post("/v1/chat/completions", json=asked), 400)
    assert reason == f"{lm.name} has no chat template; ask for a completion instead"
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    lm.tokenizer._tokenizer.chat_template = template
    lm.tokenizer.has_chat_template = True
    turns = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "and?"}]},
    ]
    answer = client.post("/v1/chat/completions", json={"model": lm.name, "messages": turns, "max_tokens": 2}).json()
    wanted = lm.tokenizer.encode("[user] hello\n[assistant] yes\n[user] and?\n[assistant]")
    assert answer["usage"]["prompt_tokens"] == len(wanted) + lm.is_encoder_decoder


def test_openais_client_works_unchanged(lm, tmp_path):
    import openai

    with served(make_server(lm, tmp_path)) as client:
        theirs = openai.OpenAI(api_key="none", base_url="http://localhost/v1", http_client=client)
        assert [model.id for model in theirs.models.list()] == [lm.name, "p0", "p1"]
        assert theirs.models.retrieve("p0").kind == "prompt"
        done = theirs.completions.create(model="p0", prompt=[TEXT, "dull"], max_tokens=4)
        assert [choice.index for choice in done.choices] == [0, 1]
        assert done.choices[0].input_tokens > 0
        stream = theirs.completions.create(model="p0", prompt=TEXT, max_tokens=4, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == done.choices[0].text
        said = theirs.chat.completions.create(
            model="p0", messages=[{"role": "user", "content": TEXT}], max_completion_tokens=4
        )
        assert said.choices[0].message.content == done.choices[0].text
        chunks = theirs.chat.completions.create(
            model="p0", messages=[{"role": "user", "content": TEXT}], max_tokens=4, stream=True
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == done.choices[0].text
        with pytest.raises(openai.NotFoundError, match="did you mean 'p0'"):
            theirs.completions.create(model="p00", prompt=TEXT)


RECORDS = {
    "superglue/boolq": {"question": "is the sea warm", "passage": "The sea is warm.", "idx": 3},
    "superglue/rte": {"premise": "It rained.", "hypothesis": "The street was wet.", "idx": 1},
    "superglue/cb": {"premise": "It rained.", "hypothesis": "The street was wet.", "idx": 1},
    "superglue/copa": {"premise": "It rained.", "choice1": "wet", "choice2": "dry", "question": "effect", "idx": 0},
    "superglue/wic": {"word": "sea", "sentence1": "the sea", "sentence2": "a sea of people", "idx": 0,
                      "start1": 4, "end1": 7, "start2": 2, "end2": 5},
    "glue/sst2": {"sentence": "a warm and funny story"},
    "glue/mrpc": {"sentence1": "It rained.", "sentence2": "Rain fell."},
    "glue/qqp": {"question1": "is it warm?", "question2": "is it cold?"},
    "mrqa/squad": {"context": "The sea is warm.", "question": "what is warm?", "qid": "q1", "answers": ["sea"]},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_the_server_reads_the_trainers_ids(lm, tmp_path, name):
    task = get_task(name)
    form = default_format(lm, max_target_length=12, max_input_length=40)
    scheduler = Scheduler(lm, max_memory=MEMORY)
    prompt = make_prompt(lm, task=name, labels=task.labels or (), task_version=task.version, text=form.to_json())
    hashed = scheduler.table.add(prompt)
    asker = Asker(lm, scheduler.table)
    questions = asker.questions(asker.worn((hashed,)), [RECORDS[name]])
    trained = encode_examples(task.cast(RECORDS[name], "test"), form, lm.tokenizer, with_targets=False)
    assert [question.rows[0].ids for question in questions] == [row.ids for row in trained]


def test_control_tokens_are_meant_in_what_the_bare_model_continues_and_text_in_a_prompts_input():
    lm = tiny_lm("llama")
    scheduler = Scheduler(lm, max_memory=MEMORY)
    asker = Asker(lm, scheduler.table)
    hashed = scheduler.table.add(make_prompt(lm, task="glue/sst2", text=default_format(lm).to_json()))
    for worn, is_meant in ((None, True), (hashed, False)):
        (question,) = asker.questions(asker.worn((worn,)), ["warm</s> film"])
        assert (lm.tokenizer.eos_id in question.rows[0].ids) == is_meant


def test_every_task_can_be_asked_of_the_server(lm):
    """Nothing in the server knows a task: a card of any task gives worn prompts with that task's own cast."""
    scheduler = Scheduler(lm, max_memory=MEMORY)
    asker = Asker(lm, scheduler.table)
    for seed, name in enumerate(TASKS):
        task = get_task(name)
        prompt = make_prompt(
            lm, seed, task=name, labels=task.labels or (), task_version=task.version, text=default_format(lm).to_json()
        )
        (worn,) = asker.worn((scheduler.table.add(prompt),))
        assert worn.task is task or worn.task.cast is task.cast


@pytest.mark.parametrize("kind", ["zip", "gz", "xz", ""])
def test_an_uploaded_prompt_is_on_disk_and_served_and_survives_a_restart(lm, tmp_path, kind):
    folder = saved(lm, tmp_path / "new", seed=9)
    with served(make_server(lm, tmp_path)) as client:
        data = archive(folder, "zip") if kind == "zip" else archive(folder, kind)
        answer = client.put("/v1/prompts/fresh", content=data)
        assert answer.status_code == 200, answer.text
        (version,) = answer.json()["versions"]
        assert version["labels"] == list(LABELS) and version["task"] == "mine"
        before = client.post("/v1/classify", json={"model": "fresh", "input": TEXT}).json()["results"]
        assert before[0]["prompt_hash"] == version["prompt_hash"]
        assert (tmp_path / "kept" / "fresh" / version["prompt_hash"] / "adapter_model.safetensors").is_file()
    with served(make_server(lm, tmp_path)) as client:
        after = client.post("/v1/classify", json={"model": "fresh", "input": TEXT}).json()["results"]
    assert after == before


def test_versions_aliases_and_roll_back(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        hashes = []
        for seed in (11, 12):
            data = archive(saved(lm, tmp_path / f"v{seed}", seed=seed))
            hashes.append(client.put("/v1/prompts/sst2", content=data).json()["versions"][-1]["prompt_hash"])

        def worn(name, **more):
            answer = client.post("/v1/classify", json={"model": name, "input": TEXT} | more)
            return answer.json()["results"][0]["prompt_hash"]

        assert worn("sst2") == hashes[1]
        assert worn(f"sst2@{hashes[0][:8]}") == hashes[0]
        for new in (f"sst2@{hashes[0][:12]}", "sst2"):
            assert client.put("/v1/aliases/prod", json={"targets": {new: 100.0}}).status_code == 200
            assert worn("prod") == hashes[0 if "@" in new else 1]
        split = {f"sst2@{hash[:12]}": 50.0 for hash in hashes}
        client.put("/v1/aliases/prod", json={"targets": split})
        seen = [worn("prod", user=f"user {i}") for i in range(40)]
        assert 8 < seen.count(hashes[0]) < 32
        assert seen == [worn("prod", user=f"user {i}") for i in range(40)]
        reason = why(client.delete(f"/v1/prompts/sst2@{hashes[0][:12]}"), 409)
        assert reason == f"prod still leads to sst2@{hashes[0][:12]}; change or delete prod first"
        assert client.delete("/v1/prompts/prod").json() == {"name": "prod", "prompt_hashes": []}
        assert client.delete(f"/v1/prompts/sst2@{hashes[0][:12]}").json()["prompt_hashes"] == [hashes[0]]
        assert not (tmp_path / "kept" / "sst2" / hashes[0]).exists()
        assert worn("sst2") == hashes[1]
        client.delete("/v1/prompts/sst2")
        assert why(client.post("/v1/classify", json={"model": "sst2", "input": TEXT}), 404).startswith(
            "no prompt named 'sst2'"
        )
        assert not (tmp_path / "kept" / "sst2").exists()


def test_ensembles_and_aliases_survive_a_restart(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]})
        client.put("/v1/aliases/prod", json={"targets": {"both": 100.0}})
        before = client.get("/v1/prompts").json()
    with served(make_server(lm, tmp_path)) as client:
        assert client.get("/v1/prompts").json() == before
        assert (
            len(client.post("/v1/classify", json={"model": "prod", "input": TEXT}).json()["results"][0]["votes"]) == 2
        )


def test_a_prompt_of_another_model_is_refused_and_nothing_changes(lm, tmp_path):
    other = tiny_lm("gpt2", n_embd=32)
    data = archive(saved(other, tmp_path / "other"))
    with served(make_server(lm, tmp_path)) as client:
        before = client.get("/v1/prompts").json()
        reason = why(client.put("/v1/prompts/p9", content=data), 400)
        assert reason.startswith("the prompt was trained for tiny-gpt2")
        assert lm.name in reason
        assert client.get("/v1/prompts").json() == before
        assert not (tmp_path / "kept" / "p9").exists()


OTHER_CARDS = {  # what is changed in a card, and the reason it is refused for
    "two labels alike": ({"labels": ["b", "b"]}, "must be one or more, all different and not empty, not ['b', 'b']"),
    "labels that look alike": ({"labels": ["1", "\uff11"]}, "look the same"),
    "half a character": ({"labels": ["\ud800", "b"]}, "half a character"),
    "length as text": ({"text": {"max_input_length": "abc"}}, "max_input_length is 'abc', but must be a whole number"),
    "length as null": ({"text": {"max_input_length": None}}, "max_input_length is None, but must be a whole number"),
    "no length": ({"text": {"max_target_length": 0}}, "max_target_length is 0, but must be 1 or more"),
    "no room": ({"text": {"separator": "a b c d e", "max_input_length": 8}}, "leaves no room for the input; make"),
    "more than the model": ({"text": {"max_target_length": 10_000}}, "tiny-llama takes 256"),
    "template as number": ({"text": {"inputs_template": 3}}, "inputs_template is 3, but must be text"),
    "template of nothing": ({"text": {"inputs_template": "{}"}}, "names no column"),
    "separator as number": ({"text": {"separator": 3}}, "separator is 3, but must be text"),
    "separator as list": ({"text": {"separator": ["a"]}}, "separator is ['a'], but must be text"),
    "metric as list": ({"recipe": {"metric": ["em"]}}, "recipe.metric is ['em'], but must be text"),
    "unknown metric": ({"recipe": {"metric": "acc"}}, "no metric named 'acc'"),
    "group as number": ({"recipe": {"group_by": 3}}, "recipe.group_by is 3, but must be text"),
    "unknown scoring": ({"recipe": {"scoring": "best"}}, "no scoring named 'best'; choose generate or rank"),
    "metrics as text": ({"dev_metrics": {"accuracy": "high"}}, "accuracy is 'high', but must be a number"),
    "metrics of nan": ({"dev_metrics": {"accuracy": math.nan}}, "accuracy is nan, but must be a number that"),
    "much around an input": ({"text": {"inputs_template": "a" * 20_001 + "{sentence}"}}, "has 20,011 char"),
    "much of one input": ({"text": {"inputs_template": "{sentence}" * 17}}, "has 17 places, but may have 16"),
    "a long separator": ({"text": {"separator": "a" * 20_001}}, "separator has 20,001 characters, but may have 20,000"),
    "many labels": ({"labels": [f"n{n}" for n in range(4_097)]}, "the card has 4,097 labels, but may have 4,096"),
    "unknown task": ({"task": "glue/sst3", "text": {"inputs_template": None}}, "no task named 'glue/sst3'"),
}  # fmt: skip


def with_card(folder, changes):
    """The folder with something else in its card, as somebody may write it by hand."""
    path = folder / "softprompt.json"
    card = json.loads(path.read_text())
    for name, value in changes.items():
        card[name] = card[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(card))
    return folder


def test_an_upload_that_cannot_be_answered_with_is_refused_before_anything_is_kept(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "mine", seed=21)))
        before = client.get("/v1/prompts").json()
        kept = sorted((tmp_path / "kept").rglob("*"))
        for number, (what, (changes, reason)) in enumerate(OTHER_CARDS.items()):
            folder = with_card(saved(llama, tmp_path / f"bad{number}", seed=40 + number), changes)
            for name in ("mine", "fresh"):
                assert reason in why(client.put(f"/v1/prompts/{name}", content=archive(folder)), 400), what
        folder = saved(llama, tmp_path / "half")
        (folder / "softprompt.json").unlink()
        config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": "\ud800"}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        reason = why(client.put("/v1/prompts/half", content=archive(folder)), 400)
        assert reason.startswith("adapter_config.json holds '\\ud800', half a character, behind")
        assert client.get("/v1/prompts").json() == before
        assert sorted((tmp_path / "kept").rglob("*")) == kept
        assert client.post("/v1/classify", json={"model": "mine", "input": TEXT}).status_code == 200


def test_a_model_without_a_limit_reads_and_writes_within_ours(t5, tmp_path):
    with served(make_server(t5, tmp_path)) as client:
        folder = with_card(saved(t5, tmp_path / "writes"), {"text": {"max_target_length": 5_000}})
        reason = why(client.put("/v1/prompts/writes", content=archive(folder)), 400)
        assert reason == "the card's max_target_length is 5000, but tiny-t5 writes 4096 at most"
        folder = with_card(saved(t5, tmp_path / "reads"), {"text": {"max_input_length": 10**9}})
        assert client.put("/v1/prompts/reads", content=archive(folder)).status_code == 200
        reason = why(client.post("/v1/classify", json={"model": "reads", "input": "sea " * 30_000}), 400)
        assert re.fullmatch("the input has [0-9,]+ tokens, but 4,096 are read; give a shorter one", reason)


def test_a_name_of_megabytes_is_refused_in_a_short_message(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        for body in ({"x" * 1_000_000: 1}, {"fields": {f"sentense {number}": "" for number in range(10_000)}}):
            assert len(why(client.post("/v1/classify", json={"model": "p0"} | body), 400)) < 1_100
    assert nearest("x" * 101, ["x" * 101]) == "" and nearest("x", [*"ab" * 500, "x"]) == ""  # which takes long


def test_an_upload_whose_own_pass_is_no_number_is_refused_before_anything_is_kept(tmp_path):
    lm = tiny_lm("gpt2")
    prompt = make_prompt(lm)
    save_prompt(replace(prompt, values=torch.full_like(prompt.values, 3e38)), tmp_path / "huge")
    server = make_server(lm, tmp_path)
    with pytest.warns(UserWarning, match="made for another scale"), served(server) as client:
        before = client.get("/v1/prompts").json()
        reason = why(client.put("/v1/prompts/p0", content=archive(tmp_path / "huge")), 400)
        assert reason.startswith("the prompt's own pass through tiny-gpt2 leaves the range of float32")
        assert client.get("/v1/prompts").json() == before


@pytest.mark.parametrize(
    "what", ["two labels alike", "no room", "unknown scoring", "metrics of nan", "half a character"]
)
def test_a_prompt_in_the_folder_that_cannot_be_answered_with_is_left_out_and_no_list_fails(llama, tmp_path, what):
    changes, reason = OTHER_CARDS[what]
    with_card(saved(llama, tmp_path / "kept" / "bad"), changes)
    with pytest.warns(UserWarning, match=r"bad in .* is not served: bad: ") as told:
        server = make_server(llama, tmp_path)
    assert reason in str(told[0].message)
    with served(server) as client:
        assert [one["name"] for one in client.get("/v1/prompts").json()["prompts"]] == ["p0", "p1"]


def hostile(members, *, link=None):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("adapter_model.safetensors")
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    return data.getvalue()


def zipped(*, flags=0, method=0):
    """A zip of one file whose headers say these of it: 1 is encrypted, 9 is what Windows packs large files with."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("README.md", "hello")
    content, central = bytearray(data.getvalue()), data.getvalue().index(b"PK\x01\x02")
    for start in (6, central + 8):
        content[start : start + 4] = flags.to_bytes(2, "little") + method.to_bytes(2, "little")
    return bytes(content)


LYING = (1 << 60).to_bytes(8, "little") + b'{"prompt_embeddings": {}}'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nonsense", "not a whole zip or tar archive; send a prompt's folder as one"),
        (b"nonsense" * 99, "not a whole zip or tar archive; send a prompt's folder as one"),
        (b"PK\x03\x04broken", "not a whole zip or tar archive; send a prompt's folder as one"),
        (hostile({"README.md": b"hello"})[:600], "not a whole zip or tar archive; send a prompt's folder as one"),
        (zipped(flags=1), "the zip wants a password; send one without"),
        (zipped(method=9), "the zip is packed in a way that is not read here; send a plain one, or a tar"),
        (hostile({"../../etc/adapter_config.json": b"{}"}), "a path out of its folder"),
        (hostile({"/etc/adapter_config.json": b"{}"}), "a path out of its folder"),
        (hostile({"x/adapter_model.bin": b"pickle"}), "pickles can run any code"),
        (hostile({}, link="/etc/passwd"), "which is a link or a device"),
        (hostile({"README.md": b"hello"}), "the archive holds no adapter_model.safetensors"),
        (hostile({"a/README.md": b"1", "b/README.md": b"2"}), "holds README.md twice"),
        (hostile({f"{i}.txt": b"" for i in range(200)}), "more than 100 files"),
        (
            hostile({"adapter_model.safetensors": LYING, "adapter_config.json": b"{}"}),
            "names no peft_type, so it is not an adapter of PEFT",
        ),
    ],
)
def test_a_hostile_archive_is_refused_in_words(llama, tmp_path, data, reason):
    with served(make_server(llama, tmp_path)) as client:
        said = why(client.put("/v1/prompts/evil", content=data), 400)
        assert reason in said and "Error" not in said
        assert "evil" not in client.get("/v1/prompts").text
        assert client.post("/v1/classify", json={"model": "p0", "input": TEXT}).status_code == 200


def test_a_safetensors_file_that_lies_about_its_header_is_refused(llama, tmp_path):
    folder = saved(llama, tmp_path / "liar")
    (folder / "adapter_model.safetensors").write_bytes(LYING)
    with served(make_server(llama, tmp_path)) as client:
        reason = why(client.put("/v1/prompts/evil", content=archive(folder)), 400)
    assert reason.startswith("adapter_model.safetensors is not a whole safetensors file")
    assert "/" not in reason.split("(")[0]


def test_an_archive_that_unpacks_to_too_much_is_refused(llama, tmp_path):
    folder = saved(llama, tmp_path / "big")
    (folder / "README.md").write_bytes(b"0" * 2_000_000)
    with served(make_server(llama, tmp_path, limits=Limits(max_upload=100_000))) as client:
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
            for path in folder.iterdir():
                file.write(path, path.name)
        reason = why(client.put("/v1/prompts/big", content=data.getvalue()), 400)
        assert reason == "the archive unpacks to more than 100,000 bytes, which is all that is allowed"
        assert why(client.put("/v1/prompts/big", content=b"0" * 100_001), 413).startswith("the body is longer than")


def packed_tar(*members):
    """A tar of headers, each a name, a type, the size it says and what follows."""
    data = b""
    for name, kind, size, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, size
        data += info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return data


MUCH = 1 << 25
UNPACKED = "the archive unpacks to more than 1,000,000 bytes, which is all that is allowed"
NO_ARCHIVE = "not a whole zip or tar archive; send a prompt's folder as one"
BOMBS = {
    "a name of 32 MiB": (lambda: gzip.compress(packed_tar(("x", b"L", MUCH, bytes(MUCH)))), UNPACKED),
    "a file that is passed over": (lambda: bz2.compress(packed_tar(("x", b"0", MUCH, bytes(MUCH)))), UNPACKED),
    "folders without end": (lambda: gzip.compress(packed_tar(("x", b"5", 0, b"")) * 80_000), UNPACKED),
    "many folders": (lambda: packed_tar(("x", b"5", 0, b"")) * 1_000, "the archive holds more than 100 files"),
    "a size below nothing": (lambda: packed_tar(("x", b"0", -512, b"")), NO_ARCHIVE),
    "a long name's size below nothing": (lambda: packed_tar(("x", b"L", -512, b"")), NO_ARCHIVE),
    "digits without end": (lambda: packed_tar(("x", b"x", 400_000, b"1" * 400_000)), NO_ARCHIVE),
    "a map of holes that ends": (
        lambda: packed_tar(("x", b"x", 44, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"), ("x", b"0", 2, b"9\n")),
        "the archive holds no adapter_model.safetensors",
    ),
    "a damaged xz": (lambda: lzma.compress(bytes(1_000))[:60] + b"\xff" * 60, NO_ARCHIVE),
    "a zip of many names": (
        lambda: b"PK\x03\x04" + b"PK\x01\x02" * 1_000_000, "the archive holds more than 100 files"
    ),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("what", BOMBS)
def test_an_archive_takes_no_more_time_and_room_than_its_files_may(what):
    make, reason = BOMBS[what]
    data = make()
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        read_archive(data, max_bytes=1_000_000)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16_000_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED])
def test_a_zip_that_is_damaged_anywhere_is_refused_or_whole(llama, tmp_path, method):
    folder, data = saved(llama, tmp_path / "p"), io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
    for place in range(0, len(data.getvalue()), 7):
        damaged = bytearray(data.getvalue())
        damaged[place] ^= 0xFF
        try:
            assert torch.equal(read_archive(bytes(damaged), max_bytes=1_000_000).values, make_prompt(llama).values)
        except ValueError as error:
            assert re.match("not a whole|the zip|the archive|adapter_|a prompt", str(error)), error


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("kind", ["", "gz", "bz2", "xz"])
def test_a_tar_of_any_form_is_read_whatever_its_paths_are(llama, tmp_path, form, kind):
    folder, data = saved(llama, tmp_path / "p"), io.BytesIO()
    with tarfile.open(fileobj=data, mode=f"w:{kind}", format=form) as file:
        file.add(folder, "é" * (5 if form == tarfile.USTAR_FORMAT else 120))
    assert torch.equal(read_archive(data.getvalue(), max_bytes=1_000_000).values, make_prompt(llama).values)


def test_a_full_disk_is_said_and_the_old_version_stays(llama, tmp_path, monkeypatch):
    with served(make_server(llama, tmp_path)) as client:
        first = archive(saved(llama, tmp_path / "a", seed=21))
        client.put("/v1/prompts/mine", content=first)
        before = client.get("/v1/prompts").json()

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("softprompt.serving.http.registry.write_whole", full)
        answer = client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "b", seed=22)))
        assert why(answer, 507) == "could not be kept: No space left on device"
        assert client.get("/v1/prompts").json() == before
        assert client.post("/v1/classify", json={"model": "mine", "input": TEXT}).status_code == 200


def test_a_full_disk_changes_no_name(llama, tmp_path, monkeypatch):
    with served(make_server(llama, tmp_path)) as client:
        client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]})
        client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "a", seed=21)))
        before = client.get("/v1/prompts").json()

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("softprompt.serving.http.registry.write_whole", full)
        for answer in (
            client.put("/v1/ensembles/other", json={"members": ["p1", "p0"]}),
            client.put("/v1/ensembles/both", json={"members": ["p1", "p0"]}),
            client.put("/v1/aliases/live", json={"targets": {"p0": 100}}),
            client.delete("/v1/prompts/both"),
        ):
            assert why(answer, 507) == "could not be kept: No space left on device"
            assert client.get("/v1/prompts").json() == before
        assert client.post("/v1/classify", json={"model": "mine", "input": TEXT}).status_code == 200


@pytest.mark.parametrize("is_room", [True, False])
def test_what_is_deleted_from_a_full_disk_makes_room(llama, tmp_path, monkeypatch, caplog, is_room):
    place = tmp_path / "kept" / "mine"
    with served(make_server(llama, tmp_path)) as client:
        client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "a", seed=21)))

        def full(path, content):
            if place.exists() or not is_room:
                raise OSError(28, "No space left on device")
            write_whole(path, content)

        monkeypatch.setattr("softprompt.serving.http.registry.write_whole", full)
        assert why(client.put("/v1/aliases/live", json={"targets": {"p0": 100}}), 507).startswith("could not be kept")
        told = [record for record in caplog.records if record.levelname == "ERROR"]
        assert told and not any(record.exc_info for record in told)  # a line, no traceback
        assert client.delete("/v1/prompts/mine").status_code == 200
        assert not place.exists()
    monkeypatch.undo()
    if is_room:
        server = make_server(llama, tmp_path)
    else:  # the registry could not be written: the prompt is gone with its folder
        with pytest.warns(UserWarning, match="mine@.* is not served: mine: there is no prompt folder"):
            server = make_server(llama, tmp_path)
    assert server.registry.names() == [llama.name, "p0", "p1"]


def test_aliases_ensembles_and_prompts_by_hand_are_deleted_on_a_full_disk(llama, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    saved(llama, kept / "hand", seed=5)
    make_server(llama, tmp_path).registry.set_alias("old", {"hand": 100.0})
    ballast = kept / ".registry.json.ballast"
    ballast.unlink()  # as earlier versions left the folder; it is there again once a server has begun
    with served(make_server(llama, tmp_path)) as client:
        client.put("/v1/ensembles/both", json={"members": ["p0", "p1"]})
        client.put("/v1/aliases/live", json={"targets": {"both": 100}})
        room = 0

        def full(path, content):
            """A disk without room, but for what was given up on it."""
            nonlocal room
            taken = sum(file.stat().st_size for file in (ballast, kept / "registry.json") if file.exists())
            if len(content) > room - taken:
                raise OSError(28, "No space left on device")
            write_whole(path, content)

        room = sum(file.stat().st_size for file in (ballast, kept / "registry.json"))
        monkeypatch.setattr("softprompt.serving.http.registry.write_whole", full)
        before = client.get("/v1/prompts").json()
        assert why(client.put("/v1/aliases/more", json={"targets": {"p0": 100}}), 507).startswith("could not be kept")
        assert client.get("/v1/prompts").json() == before and ballast.exists()
        for name in ("live", "both", "old", "hand"):
            assert client.delete(f"/v1/prompts/{name}").status_code == 200
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="hand in .* is not served: hand: it was deleted here"):
        server = make_server(llama, tmp_path)
    assert server.registry.names() == [llama.name, "p0", "p1"] and ballast.exists()


def test_an_upload_that_fails_leaves_no_folder(llama, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with served(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "a", seed=21))
        for step in ("prompts.folder.os.rename", "serving.http.registry.write_whole"):
            monkeypatch.setattr(f"softprompt.{step}", full)
            assert client.put("/v1/prompts/mine", content=data).status_code == 507
            monkeypatch.undo()
            assert not (tmp_path / "kept" / "mine").exists()
        assert client.put("/v1/prompts/mine", content=data).status_code == 200


def test_what_killed_writers_left_is_removed_at_start_and_whole_uploads_are_told(llama, tmp_path):
    kept, ghost = tmp_path / "kept", make_prompt(llama, 9)
    for left in (f"half/{'a' * 64}/.softprompt-saving-x", "hand/.softprompt-saving-y", ".softprompt-saving-z"):
        (kept / left).mkdir(parents=True)
        (kept / left / "softprompt.json").write_text("{")
    (kept / ".registry.json.123").write_text("{")
    save_prompt(ghost, kept / "ghost" / ghost.sha256)
    with pytest.warns(UserWarning, match=f"ghost/{ghost.sha256} is an upload that no name has: it did not come to its"):
        server = make_server(llama, tmp_path)
    left = {path.name for path in kept.iterdir()}
    assert left == {".registry.json.ballast", ".softprompt.lock", "ghost", "hand"}
    assert list((kept / "hand").iterdir()) == [] and "ghost" not in server.registry.names()


def test_an_archive_is_unpacked_in_the_folder_where_a_killed_server_finds_it_again(llama, tmp_path, monkeypatch):
    places = []

    def seen(place):
        places.append(Path(place))
        return load_prompt(place)

    monkeypatch.setattr("softprompt.serving.http.archive.load_prompt", seen)
    with served(make_server(llama, tmp_path)) as client:
        assert client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "a"))).status_code == 200
    (place,) = places
    assert place.parent == tmp_path / "kept" and place.name.startswith(".softprompt-saving-") and not place.exists()


def test_a_prompt_in_the_folder_that_cannot_be_read_is_left_out(llama, tmp_path, monkeypatch):
    saved(llama, tmp_path / "kept" / "locked", seed=5)
    saved(llama, tmp_path / "kept" / "mine", seed=6)
    stat = Path.stat

    def refused(place, **options):
        if place.parent.name == "locked":
            raise PermissionError(13, "Permission denied", str(place))
        return stat(place, **options)

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.warns(UserWarning, match=r"locked in .* is not served: .*Permission denied"):
        server = make_server(llama, tmp_path, num_prompts=0)
    assert server.registry.names() == [llama.name, "mine"]


def test_a_prompt_whose_own_pass_is_no_number_keeps_no_server_from_being_ready(tmp_path, caplog):
    lm = tiny_lm("gpt2")
    prompt = make_prompt(lm)
    save_prompt(replace(prompt, values=torch.full_like(prompt.values, 3e38)), tmp_path / "kept" / "huge")
    with pytest.warns(UserWarning, match="made for another scale"):
        server = make_server(lm, tmp_path)
    with served(server) as client:
        assert client.get("/readyz").status_code == 200
        assert "the warm-up with a prompt failed: prompt " in caplog.text
        assert client.post("/v1/classify", json={"model": "p0", "input": TEXT}).status_code == 200
        reason = why(client.post("/v1/classify", json={"model": "huge", "input": TEXT}), 400)
        assert "is not served: the prompt's own pass through tiny-gpt2 leaves the range" in reason


def test_nothing_is_cleaned_where_another_server_is_at_work(llama, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / ".registry.json.123").write_text("{")
    told = pytest.raises(ValueError, match="kept is being written by another process; wait for its end")
    with open(tmp_path / "kept" / ".softprompt.lock", "w") as other, locked(other), told:
        make_server(llama, tmp_path)
    assert (tmp_path / "kept" / ".registry.json.123").exists()


def test_an_upload_that_is_deleted_meanwhile_is_answered_by_what_it_was(llama, tmp_path, monkeypatch):
    server = make_server(llama, tmp_path)
    with served(server) as client:
        client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "a", seed=21)))
        upload, new = server.registry.upload, make_prompt(llama, 22)

        def deleted_meanwhile(name, prompt):
            versions = upload(name, prompt)
            server.registry.remove(f"{name}@{new.identity}")
            return versions

        monkeypatch.setattr(server.registry, "upload", deleted_meanwhile)
        answer = client.put("/v1/prompts/mine", content=archive(saved(llama, tmp_path / "b", seed=22)))
        assert answer.json()["versions"][-1]["prompt_hash"] == new.identity
        assert len(client.get("/v1/prompts").json()["prompts"][-1]["versions"]) == 1


def test_an_upload_to_a_slow_disk_holds_nobody_up(llama, tmp_path, monkeypatch):
    begun, may_write = threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert may_write.wait(20)
        return save_prompt(*arguments)

    with served(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "new", seed=9))
        monkeypatch.setattr("softprompt.serving.http.registry.save_prompt", slow)
        answers = []
        upload = threading.Thread(target=lambda: answers.append(client.put("/v1/prompts/fresh", content=data)))
        upload.start()
        assert begun.wait(20)
        asked = {"model": "p0", "input": TEXT}
        calls = [
            partial(client.post, "/v1/classify", json=asked),
            partial(client.get, "/healthz"),
            partial(client.get, "/v1/prompts"),
        ]
        others = [threading.Thread(target=lambda call=call: answers.append(call())) for call in calls]
        for thread in others:
            thread.start()
        for thread in others:
            thread.join(10)
        num_answers = len(answers)
        may_write.set()
        for thread in (upload, *others):
            thread.join(20)
    assert num_answers == 3
    assert [answer.status_code for answer in answers] == [200] * 4


def test_names_with_a_slash_are_found(llama, tmp_path):
    server = make_server(llama, tmp_path, num_prompts=0)
    server.registry = Registry(server.engine.table, "bundled/t5-mini")
    with served(server) as client:
        (listed,) = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/bundled/t5-mini").json() == listed
        assert "no prompt named 'bundled/t5-max'" in why(client.get("/v1/models/bundled/t5-max"), 404)
        assert "/v1/models/{name}" in client.get("/openapi.json").json()["paths"]


def test_a_list_is_of_one_moment(llama, tmp_path, monkeypatch):
    """Whatever is deleted while it is made."""
    server = make_server(llama, tmp_path)
    server.registry.set_ensemble("both", ["p0", "p1"])
    describe = server.asker.describe

    def deleted_meanwhile(prompt):
        if "both" in server.registry.names():
            for name in ("both", "p0", "p1"):
                server.registry.remove(name)
        return describe(prompt)

    monkeypatch.setattr(server.asker, "describe", deleted_meanwhile)
    with served_raw(server) as client:
        answer = client.get("/v1/prompts")
        assert answer.status_code == 200
        assert [prompt["name"] for prompt in answer.json()["prompts"]] == ["p0", "p1"]
        assert client.get("/v1/prompts").json()["prompts"] == []


def test_lists_are_whole_while_prompts_come_and_go(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "v", seed=31))
        stop, statuses = threading.Event(), []

        def swap():
            for _ in range(30):
                statuses.append(client.put("/v1/prompts/hot", content=data).status_code)
                statuses.append(client.delete("/v1/prompts/hot").status_code)
            stop.set()

        swapper = threading.Thread(target=swap)
        swapper.start()
        while not stop.is_set():
            answers = [client.get("/v1/prompts"), client.get("/v1/models")]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert {model["kind"] for model in answers[1].json()["data"]} == {"base", "prompt"}
        swapper.join()
    assert statuses == [200] * 60


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "registry.json is not a registry of softprompt serve (Expecting"),
        ('{"format": 3, "versions": {}, "ensembles": {}, "aliases": {}}', "its content: format is 3, but must be 1 or"),
        ('{"format": 1, "versions": {}, "ensembles": {}}', "its content lacks the field 'aliases'"),
        (
            '{"format": 1, "versions": {"a": "b"}, "ensembles": {}, "aliases": {}}',
            "its content: versions.a is 'b', but must be a",
        ),
    ],
)
def test_a_registry_that_is_not_ours_is_named(llama, tmp_path, content, reason):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "registry.json").write_text(content)
    with pytest.raises(ValueError, match="move it away") as caught:
        make_server(llama, tmp_path, num_prompts=0)
    assert reason in str(caught.value)


def test_a_registry_of_the_first_version_is_read(llama, tmp_path):
    one, two = first_registry(llama, tmp_path)
    registry = make_server(llama, tmp_path, num_prompts=0).registry
    assert registry.names() == [llama.name, "p1", "p2", "both", "live"]
    assert registry.now.resolve("live", 0.5).prompts == (one.identity, two.identity)
    assert registry.now.resolve("live", 0.7).prompts == (one.identity,)
    registry.set_alias("live", {"both": 60.0, "p1": 40.0})
    assert json.loads((tmp_path / "kept" / "registry.json").read_text()) == {
        "format": 2,
        "versions": {"p1": [one.identity], "p2": [two.identity]},
        "ensembles": {"both": ["p1", f"p2@{two.identity[:12]}"]},
        "aliases": {"live": {"both": 60.0, "p1": 40}},
        "deleted": {},
        "values": {prompt.identity: prompt.sha256 for prompt in (one, two)},
        "meant": {"p1": {one.sha256: one.identity}, "p2": {two.sha256: two.identity}},
    }
    again = make_server(llama, tmp_path, num_prompts=0).registry
    assert again.now == registry.now
    again.remove("live")
    again.remove("both")
    again.remove("p2")
    assert not (tmp_path / "kept" / "p2").exists()


def first_registry(lm, tmp_path):
    """A folder as the first version left it; its prompts p1 and p2."""
    prompts = [make_prompt(lm, seed) for seed in (1, 2)]
    for name, prompt in zip(("p1", "p2"), prompts, strict=True):
        save_prompt(prompt, tmp_path / "kept" / name / prompt.sha256)
    state = {
        "format": 1, "versions": {"p1": [prompts[0].sha256], "p2": [prompts[1].sha256]},
        "ensembles": {"both": ["p1", f"p2@{prompts[1].sha256[:12]}"]}, "aliases": {"live": {"both": 60.0, "p1": 40}},
    }  # fmt: skip
    (tmp_path / "kept" / "registry.json").write_text(json.dumps(state, indent=1) + "\n")
    return prompts


def test_an_old_hash_means_what_it_meant_whatever_is_uploaded_since(llama, tmp_path):
    old, _ = first_registry(llama, tmp_path)
    other = archive(saved(llama, tmp_path / "other", seed=1, labels=LABELS[::-1]))

    def worn(client, digits):
        return client.post("/v1/classify", json={"model": f"p1@{digits}", "input": TEXT})

    with served(make_server(llama, tmp_path, num_prompts=0)) as client:
        assert client.put("/v1/prompts/p1", content=other).status_code == 200
        first, second = client.get("/v1/prompts").json()["prompts"][0]["versions"]
        assert first["prompt_hash"] == old.identity != second["prompt_hash"]
        assert first["values_hash"] == second["values_hash"] == old.sha256
        targets = {f"p1@{old.sha256[:12]}": 50, f"p1@{old.identity[:8]}": 50}
        answer = client.put("/v1/aliases/pinned", json={"targets": targets})
        assert answer.json()["targets"] == {f"p1@{old.identity[:12]}": 50, f"p1@{old.identity[:8]}": 50}
        client.delete("/v1/prompts/pinned")
    for _ in range(2):  # by the names as they were read, and as they were written since
        with served(make_server(llama, tmp_path, num_prompts=0)) as client:
            for digits in (old.sha256, old.sha256[:8], old.identity[:8]):
                assert worn(client, digits).json()["results"][0]["prompt_hash"] == old.identity
    with served(make_server(llama, tmp_path, num_prompts=0)) as client:
        for owner in ("live", "both"):
            client.delete(f"/v1/prompts/{owner}")
        assert client.delete(f"/v1/prompts/p1@{old.sha256[:12]}").json()["prompt_hashes"] == [old.identity]
        reason = why(worn(client, old.sha256[:12]), 404)
        assert reason == f"p1 has no version {old.sha256[:12]}; it has {second['prompt_hash'][:12]}"


def test_a_hash_of_numbers_that_two_versions_have_is_a_conflict(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        hashes = []
        for labels in (LABELS, LABELS[::-1]):
            data = archive(saved(llama, tmp_path / labels[0], seed=7, labels=labels))
            version = client.put("/v1/prompts/mine", content=data).json()["versions"][-1]
            hashes.append(version["prompt_hash"])
            values = version["values_hash"][:12]
            asked = client.post("/v1/classify", json={"model": f"mine@{values}", "input": TEXT})
            if len(hashes) == 1:
                assert asked.json()["results"][0]["prompt_hash"] == hashes[0]
        reason = f"mine@{values} may be 2 versions, {hashes[0][:12]}, {hashes[1][:12]}; give more digits of one of them"
        for answer in (
            asked,
            client.get(f"/v1/models/mine@{values}"),
            client.get(f"/v1/prompts/mine@{values}/nearest"),
            client.delete(f"/v1/prompts/mine@{values}"),
            client.put("/v1/aliases/live", json={"targets": {f"mine@{values}": 100}}),
            client.put("/v1/ensembles/both", json={"members": [f"mine@{values}", "p0"]}),
        ):
            assert why(answer, 409) == reason
        assert len(client.get("/v1/prompts").json()["prompts"][-1]["versions"]) == 2


def test_the_same_numbers_with_other_labels_change_no_other_names_answers(lm, tmp_path):
    """Under another name, or as another version of one; in memory they share what their numbers make."""
    server = make_server(lm, tmp_path)

    def answers(client, *names):
        told = [client.post("/v1/classify", json={"model": name, "input": TEXT}).json()["results"] for name in names]
        return [(result["prompt_hash"], result["probabilities"]) for (result,) in told]

    with served(server) as client:
        folder = saved(lm, tmp_path / "a", seed=21)
        first = client.put("/v1/prompts/first", content=archive(folder)).json()["versions"][0]["prompt_hash"]
        before = answers(client, "first")
        num_bytes = server.engine.stats().values_bytes
        saved(lm, folder, seed=21, labels=("sea", "film"))
        for name in ("second", "first"):
            client.put(f"/v1/prompts/{name}", content=archive(folder))
        assert server.engine.stats().values_bytes == num_bytes
        assert answers(client, f"first@{first[:12]}") == before
        (new,) = answers(client, "second")
        assert answers(client, "first") == [new] and list(new[1]) == ["sea", "film"] and new[0] != first
        scored = {"accuracy": 0.75}
        saved(lm, folder, seed=21, labels=("sea", "film"), dev_metrics=scored)
        versions = client.put("/v1/prompts/first", content=archive(folder)).json()["versions"]
        assert [version["prompt_hash"] for version in versions] == [first, new[0]]  # another score is no other prompt
        assert versions[-1]["dev_metrics"] == scored
        client.delete(f"/v1/prompts/first@{new[0][:12]}")
        assert answers(client, "second", "first") == [new, *before]
    with served(make_server(lm, tmp_path)) as client:
        assert answers(client, "second", "first") == [new, *before]


def test_a_folder_that_holds_another_prompt_than_was_uploaded_is_left_out(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "a", seed=21))
        (version,) = client.put("/v1/prompts/mine", content=data).json()["versions"]
    saved(llama, tmp_path / "kept" / "mine" / version["prompt_hash"], seed=22)
    with pytest.warns(UserWarning, match="not served: mine: its folder holds another prompt than was uploaded; upload"):
        assert "mine" not in make_server(llama, tmp_path).registry.names()


def test_a_prompt_put_there_by_hand_stays_deleted_until_it_is_uploaded(llama, tmp_path):
    def listed(client):
        return {one["name"]: len(one["versions"]) for one in client.get("/v1/prompts").json()["prompts"]}

    place = saved(llama, tmp_path / "kept" / "hand", seed=5)
    data = archive(place)
    with served(make_server(llama, tmp_path)) as client:
        assert listed(client) == {"p0": 1, "p1": 1, "hand": 1}
        assert client.delete("/v1/prompts/hand").status_code == 200
    reason = r"hand in .* is not served: hand: it was deleted here; upload it to have it back, or remove its folder"
    with pytest.warns(UserWarning, match=reason):
        server = make_server(llama, tmp_path)
    with served(server) as client:
        assert listed(client) == {"p0": 1, "p1": 1}
        other = archive(saved(llama, tmp_path / "other", seed=6))
        assert client.put("/v1/prompts/hand", content=other).status_code == 200
    with pytest.warns(UserWarning, match=reason):  # another content under its name does not bring it back
        server = make_server(llama, tmp_path)
    with served(server) as client:
        assert listed(client)["hand"] == 1
        assert client.put("/v1/prompts/hand", content=data).status_code == 200
    with served(make_server(llama, tmp_path)) as client:
        assert listed(client)["hand"] == 2
        assert (
            client.delete("/v1/prompts/hand").status_code == 200
        )  # its folder is there once more, beside the upload's
    with pytest.warns(UserWarning, match=reason):
        server = make_server(llama, tmp_path)
    assert "hand" not in server.registry.names()
    saved(llama, place, seed=7)  # what is put there now is another prompt
    assert "hand" in make_server(llama, tmp_path).registry.names()


def test_names_of_the_servers_own_files_are_refused(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "a"))
        for name in ("registry.json", "Registry.JSON"):
            reason = why(client.put(f"/v1/prompts/{name}", content=data), 400)
            assert reason == f"'{name}' is a file of the server's own; choose another name"
        assert client.put("/v1/prompts/.softprompt.lock", content=data).status_code == 400
        assert why(client.put("/v1/aliases/registry.json", json={"targets": {"p0": 100}}), 400).endswith("another name")
    (tmp_path / "kept" / "registry.json").mkdir()
    with pytest.raises(
        ValueError, match=r"registry.json is not a registry of softprompt serve \(.* is a folder, .*move it"
    ):
        make_server(llama, tmp_path)


def test_an_ensemble_has_no_member_twice(llama, tmp_path):
    with served(make_server(llama, tmp_path)) as client:
        worn = client.get("/v1/prompts").json()["prompts"][0]["versions"][0]["prompt_hash"]
        for other in ("p0", f"p0@{worn[:12]}"):
            reason = why(client.put("/v1/ensembles/both", json={"members": ["p0", "p1", other]}), 400)
            assert reason == f"p0 and {other} are one prompt, and each votes once"
        assert client.get("/v1/prompts").json()["ensembles"] == []


def test_without_a_folder_nothing_can_be_uploaded(llama, tmp_path):
    data = archive(saved(llama, tmp_path / "a"))
    with served(make_server(llama, tmp_path, keep=False)) as client:
        reason = why(client.put("/v1/prompts/mine", content=data), 409)
    assert reason == "this server keeps no prompts; start it with --prompts-dir DIR to upload some"


def test_replacing_a_prompt_under_load_never_mixes_versions(lm, tmp_path):
    """Every answer is one of the two versions' own, by its hash and its numbers."""
    with served(make_server(lm, tmp_path)) as client:
        data = [archive(saved(lm, tmp_path / f"v{seed}", seed=seed)) for seed in (31, 32)]
        wanted = {}
        for content in data:
            client.put("/v1/prompts/hot", content=content)
            (result,) = client.post("/v1/classify", json={"model": "hot", "input": TEXT}).json()["results"]
            wanted[result["prompt_hash"]] = result["probabilities"]
        assert len(wanted) == 2
        stop = threading.Event()

        def swap():
            for i in range(60):
                assert client.put("/v1/prompts/hot", content=data[i % 2]).status_code == 200
            stop.set()

        swapper = threading.Thread(target=swap)
        swapper.start()
        seen = set()
        while not stop.is_set():
            (result,) = client.post("/v1/classify", json={"model": "hot", "input": TEXT}).json()["results"]
            seen.add(result["prompt_hash"])
            assert result["probabilities"] == pytest.approx(wanted[result["prompt_hash"]], abs=1e-5)
        swapper.join()
        assert seen == set(wanted)


def test_nearest_tokens_of_a_prompt_made_of_tokens_are_those(lm, tmp_path):
    server = make_server(lm, tmp_path)
    ids = lm.tokenizer.ordinary_ids()[5:9]
    prompt = make_prompt(lm)
    server.engine.table.add(SoftPrompt(lm.embeddings.detach()[ids].float(), prompt.card))
    save_prompt(SoftPrompt(lm.embeddings.detach()[ids].float(), prompt.card), tmp_path / "words")
    server.registry.add("words", tmp_path / "words")
    with served(server) as client:
        rows = client.get("/v1/prompts/words/nearest?count=2").json()["rows"]
        assert [row["tokens"][0] for row in rows] == [lm.tokenizer.piece(id) for id in ids]
        assert all(row["cosines"][0] == pytest.approx(1.0, abs=1e-5) for row in rows)
        assert "is not one prompt" in why(client.get(f"/v1/prompts/{lm.name}/nearest"), 400)


def bearer(word):
    return {"authorization": f"Bearer {word}"}


def test_keys_open_what_their_scopes_say(llama, tmp_path):
    with served(make_server(llama, tmp_path, access=Access(KEYS))) as client:
        asked = {"model": "p0", "input": TEXT}
        assert why(client.post("/v1/classify", json=asked), 401).startswith("no API key; send the header")
        assert (
            why(client.post("/v1/classify", json=asked, headers=bearer("wrong-0123456789")), 401) == "unknown API key"
        )
        reader = bearer("reader-0123456789")
        assert client.post("/v1/classify", json=asked, headers=reader).status_code == 200
        assert why(client.delete("/v1/prompts/p0", headers=reader), 403) == "the key reader may use, not administer"
        assert client.delete("/v1/prompts/p0", headers=bearer("boss-0123456789ab")).status_code == 200
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 401


def test_every_endpoint_but_the_machines_own_wants_a_key(llama, tmp_path):
    with served_raw(make_server(llama, tmp_path, access=Access(KEYS))) as client:
        open_to_all = []
        for path, operations in client.get("/openapi.json").json()["paths"].items():
            for method in operations:
                if client.request(method, path.format(name="p0")).status_code != 401:
                    open_to_all.append(path)
    assert open_to_all == ["/healthz", "/readyz"]


def test_the_pages_load_nothing_from_elsewhere_and_are_in_no_frame(llama, tmp_path):
    with served_raw(make_server(llama, tmp_path)) as client:
        for path in ("/", "/docs", "/playground/playground.js"):
            policy = client.get(path).headers["content-security-policy"].split("; ")
            assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy


EVIL = "https://attacker.example"


def test_without_keys_it_is_called_by_this_machines_names(llama, tmp_path):
    with served_raw(make_server(llama, tmp_path, access=Access(allowed_hosts=("Box",)))) as client:
        for host in ("localhost", "LocalHost:81", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "box"):
            for more in ({}, {"origin": f"http://{host.lower()}"}, {"origin": f"https://{host.lower()}"}):
                assert client.get("/v1/prompts", headers={"host": host} | more).status_code == 200


def test_without_keys_no_web_page_can_change_a_prompt_by_a_name_that_leads_here(llama, tmp_path):
    """DNS rebinding: attacker.example is this machine's address for a moment, and the browser's one origin."""
    with served_raw(make_server(llama, tmp_path)) as client:
        data = archive(saved(llama, tmp_path / "new", seed=9))
        for host in (
            "attacker.example", "attacker.example:8000", "localhost.attacker.example", "127.0.0.1.attacker.example",
            "10.0.0.7", "user@localhost", "localhost:80@x", "localhost:", "[::1", "", "localhost, x", "0.0.0.0", "[::]",
        ):  # fmt: skip
            for ask in (
                partial(client.delete, "/v1/prompts/p0"),
                partial(client.put, "/v1/prompts/mine", content=data),
                partial(client.put, "/v1/aliases/mine", json={"targets": {"p0": 100}}),
                partial(client.post, "/v1/classify", json={"model": "p0", "input": TEXT}),
                partial(client.get, "/v1/prompts"),
                partial(client.get, "/"),
            ):
                assert why(ask(headers={"host": host}), 403) == (
                    f"this server has no keys and is not called {host!r}; ask localhost, or start it with "
                    "--allowed-host NAME or with --api-key-file"
                )
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [llama.name, "p0", "p1"]


@pytest.mark.parametrize(
    "origin",
    [EVIL, "null", "http://localhost.attacker.example", "file://localhost", "http://localhost/", "localhost", ""],
)
def test_without_keys_nothing_is_taken_from_pages_of_others(llama, tmp_path, origin):
    with served_raw(make_server(llama, tmp_path)) as client:
        from_there = {"origin": origin}
        asked = {"access-control-request-method": "DELETE"}
        for answer in (
            client.delete("/v1/prompts/p0", headers=from_there),
            client.options("/v1/prompts/p0", headers=from_there | asked),
            client.post("/v1/classify", content=b"{}", headers=from_there | {"content-type": "text/plain"}),
        ):
            assert why(answer, 403) == (
                f"this server has no keys and takes nothing from pages of {origin!r}; start it with "
                "--cors-origin ORIGIN, or with --api-key-file"
            )
        assert client.get("/v1/models/p0").status_code == 200


def test_with_keys_it_is_called_by_any_name_and_pages_are_not_told_that_they_may_read(llama, tmp_path):
    with served_raw(make_server(llama, tmp_path, access=Access(KEYS))) as client:
        headers = bearer("reader-0123456789") | {"host": "llm.example", "origin": EVIL}
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("keys", [(), KEYS])
def test_a_page_of_a_cors_origin_may_ask_and_read_the_refusals_too(llama, tmp_path, keys):
    app = "https://app.example.com:8443"
    with served_raw(make_server(llama, tmp_path, access=Access(keys, cors_origins=(app,)))) as client:
        asked = {"origin": app, "access-control-request-method": "PUT", "access-control-request-headers": "x-a, x-b"}
        allowed = client.options("/v1/aliases/live", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == app
        assert allowed.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
        assert allowed.headers["access-control-allow-headers"] == "x-a, x-b"
        headers = {"origin": app} | (bearer("boss-0123456789ab") if keys else {})
        answer = client.put("/v1/aliases/live", json={"targets": {"p0": 100}}, headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == app
        refused = client.get("/v1/models/none", headers=headers)
        assert why(refused, 404) and refused.headers["access-control-allow-origin"] == app
        assert "x-request-id" in refused.headers["access-control-expose-headers"]
        other = client.options("/v1/aliases/live", headers=asked | {"origin": EVIL})
        assert other.status_code in (400, 403) and "access-control-allow-origin" not in other.headers
        if not keys:
            assert client.get("/healthz", headers={"origin": app, "host": "attacker.example"}).status_code == 403


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"allowed_hosts": ("box:80",)}, "allowed_host is 'box:80', but must be a name without a port, such as"),
        ({"allowed_hosts": ("*",)}, "allowed_host is '*', but must be a name"),
        ({"cors_origins": ("*",)}, r"cors_origin is '*', but must be an origin such as https://app.example.com"),
        ({"cors_origins": ("https://a.example/",)}, "cors_origin is 'https://a.example/', but must be an origin"),
        ({"allowed_hosts": ("box",), "keys": KEYS}, "allowed_host is for a server without keys; leave it out"),
    ],
)
def test_what_is_no_name_or_origin_is_refused(given, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        Access(**given)


def test_a_keys_minute_is_used_up_and_fills_again(llama, tmp_path):
    now = 0.0
    access = Access((replace(KEYS[0], requests_per_minute=2),), clock=lambda: now)
    with served(make_server(llama, tmp_path, access=access)) as client:
        ask = partial(client.get, "/v1/models", headers=bearer("reader-0123456789"))
        assert [ask().status_code for _ in range(3)] == [200, 200, 429]
        assert ask().headers["retry-after"] == "30"
        assert why(ask(), 429) == "the key reader has used its requests of this minute; try later"
        now = 31.0
        assert ask().status_code == 200


def test_tokens_are_charged_after_the_answer(llama, tmp_path):
    access = Access((replace(KEYS[0], tokens_per_minute=5),), clock=lambda: 0.0)
    with served(make_server(llama, tmp_path, access=access)) as client:
        ask = partial(
            client.post, "/v1/classify", json={"model": "p0", "input": TEXT}, headers=bearer("reader-0123456789")
        )
        assert ask().status_code == 200
        assert why(ask(), 429) == "the key reader has used its tokens of this minute; try later"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("just text", "holds no list of keys"),
        ("[", "line 1: not YAML"),
        ("- name: a\n  key: short", "a key is text of 16 characters or more"),
        ("- name: a\n  key: 0123456789abcdef\n  scope: [use]", "unknown entry 'scope'; did you mean 'scopes'?"),
        ("- name: a\n  key: 0123456789abcdef\n  scopes: [root]", "give a list of use and administer"),
        (
            "- name: a\n  key: 0123456789abcdef\n  requests_per_minute: -1",
            "requests_per_minute is -1, but must be 1 or more",
        ),
        ("- name: a\n  key: 0123456789abcdef\n- name: a\n  key: 0123456789abcdeg", "two keys of one name"),
    ],
)
def test_a_bad_key_file_is_named_with_what_is_wrong(tmp_path, content, reason):
    path = tmp_path / "keys.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"keys\.yaml") as caught:
        read_keys(path)
    assert reason in str(caught.value)


def test_keys_are_kept_as_hashes(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("- name: a\n  key: 0123456789abcdef\n  scopes: [use, administer]\n  tokens_per_minute: 100\n")
    (key,) = read_keys(path)
    assert "0123456789abcdef" not in repr(key)
    assert Access((key,)).key_of("Bearer 0123456789abcdef", "administer") is key


NEUTRAL = {
    "response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "parallel_tool_calls": True,
    "store": False, "metadata": {"run": "7"}, "reasoning_effort": "low", "service_tier": "auto", "modalities": ["text"],
    "n": None, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "temperature": None, "top_p": None,
    "seed": None, "stop": None, "audio": None, "prediction": None, "prompt_cache_key": "x", "safety_identifier": "y",
    "verbosity": "medium",
}  # fmt: skip


def test_what_clients_send_without_wishing_anything_changes_nothing(llama, tmp_path):
    turn = {"role": "user", "content": TEXT, "tool_calls": [], "refusal": None, "name": "ann"}
    with served(make_server(llama, tmp_path)) as client:
        plain = client.post("/v1/completions", json={"model": "p0", "prompt": TEXT}).json()
        more = {"best_of": 1, "suffix": None, "echo": False, "logprobs": None, "max_tokens": None}
        same = client.post("/v1/completions", json={"model": "p0", "prompt": TEXT} | NEUTRAL | more).json()
        said = client.post("/v1/chat/completions", json={"model": "p0", "messages": [turn]} | NEUTRAL).json()
    assert same["choices"] == plain["choices"]
    assert said["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


@pytest.mark.parametrize(
    ("field", "value", "shown", "taken"),
    [
        ("response_format", {"type": "json_object"}, '{"type": "json_object"}', '{"type": "text"}'),
        ("tools", [{"type": "function"}], '[{"type": "function"}]', "[]"),
        ("store", True, "true", "false"),
        ("presence_penalty", 0.5, "0.5", "0"),
        ("logit_bias", {"50": -100}, '{"50": -100}', "{}"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_its_own_name(llama, tmp_path, field, value, shown, taken):
    with served(make_server(llama, tmp_path)) as client:
        for path, more in (
            ("completions", {"prompt": TEXT}),
            ("chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
        ):
            answer = client.post(f"/v1/{path}", json={"model": "p0", field: value} | more)
            reason = f"{field} is {shown}, which this server cannot do; leave it out, or give {taken}"
            assert why(answer, 400) == reason
            assert answer.json()["error"]["param"] == field


def test_the_developers_turn_is_the_systems(llama, tmp_path):
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"
    llama.tokenizer._tokenizer.chat_template = template
    llama.tokenizer.has_chat_template = True
    with served(make_server(llama, tmp_path)) as client:
        asked = {"model": llama.name, "max_tokens": 3, "temperature": 0}
        first, second = (
            client.post(
                "/v1/chat/completions",
                json=asked | {"messages": [{"role": role, "content": "be brief"}, {"role": "user", "content": "hi"}]},
            ).json()
            for role in ("system", "developer")
        )
    assert first["choices"] == second["choices"]


def test_json_that_is_not_said_to_be_json_is_told_so(client):
    answer = client.post(
        "/v1/completions", content=b'{"model": "p0", "prompt": "x"}', headers={"content-type": "text/plain"}
    )
    assert why(answer, 400) == "the body is not said to be JSON; send it with Content-Type: application/json"


def test_head_is_get_without_its_body(client):
    for path in ("/", "/healthz", "/v1/models", "/metrics", "/openapi.json", "/v1/models/none"):
        got, head = client.get(path), client.head(path)
        assert head.status_code == got.status_code and head.content == b"" and got.content
        if path != "/metrics":
            assert head.headers["content-length"] == got.headers["content-length"]
    assert client.head("/v1/classify").status_code == 405


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("completions", {"prompt": "x"}, 400, "model: field required"),
        ("completions", {"model": "p0"}, 400, "give either prompt (a text) or fields"),
        ("completions", {"model": "p0", "prompt": "x", "fields": {}}, 400, "give either prompt"),
        ("completions", {"model": "p0", "prompt": 5}, 400, "prompt is 5, but must be text or a list"),
        (
            "completions",
            {"model": "p0", "prompt": "x", "max_tokens": "5"},
            400,
            'max_tokens is "5", but must be a whole number',
        ),
        (
            "completions",
            {"model": "p0", "prompt": "x", "max_tokens": -1},
            400,
            "max_tokens is -1, but must be 0 or more",
        ),
        ("completions", {"model": "p0", "prompt": "x", "max_token": 1}, 400, "did you mean 'max_tokens'?"),
        ("completions", {"model": "p0", "prompt": "x", "top_p": 0}, 400, "top_p is 0, but must be above 0"),
        ("completions", {"model": "p0", "prompt": "x", "n": 2}, 400, "n is 2 with temperature 0"),
        ("completions", {"model": "p0", "prompt": "x", "num_beams": 2, "temperature": 1}, 400, "give one of the two"),
        ("completions", {"model": "p0", "prompt": "x", "presence_penalty": 1}, 400, "presence_penalty"),
        ("completions", {"model": "p0", "prompt": " "}, 400, "the input is empty: no text in sentence"),
        ("completions", {"model": "p0", "prompt": " ", "finished": True}, 400, "an input is empty"),
        ("completions", {"model": "p0", "fields": {"sentence": "x"}, "finished": True}, 400, "finished is said of a"),
        ("completions", {"model": "p0", "prompt": ["x", " "]}, 400, "input 1: the input is empty"),
        ("completions", {"model": "p0", "prompt": ["x"] * 300}, 400, "300 inputs, but a request takes 256"),
        ("completions", {"model": "nope", "prompt": "x"}, 404, "no prompt named 'nope'"),
        ("completions", {"model": "p0@zz", "prompt": "x"}, 400, "'zz' is no version"),
        ("completions", {"model": "p0@00000000", "prompt": "x"}, 404, "p0 has no version 00000000; it has "),
        ("classify", {"model": "p0", "fields": {"text": "x"}}, 400, "no column 'sentence'"),
        ("classify", {"model": "p0", "fields": {"sentence": None}}, 400, "the input is empty: no text in sentence"),
        ("classify", {"model": "p0", "input": "x", "labels": ["a", "a"]}, 400, "labels repeat"),
        ("chat/completions", {"model": "p0", "messages": []}, 400, "messages"),
    ],
)
def test_bad_requests_get_a_reason(llama, tmp_path, path, body, status, reason):
    with served(make_server(llama, tmp_path)) as client:
        assert reason in why(client.post(f"/v1/{path}", json=body), status)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "the body is not JSON"),
        (b'{"model": "\xff"}', "the body"),
        (b"", "the body is empty"),
        (b'{"model": "p0", "input": "\\ud800"}', "input"),
        (
            b'{"model": "p0", "fields": {"sentence": NaN}}',
            "column 'sentence' holds a number that is not finite (NaN, Inf",
        ),
        (b'{"model": "p0", "fields": {"sentence": "x", "n": [1e999]}}', "column 'n' holds a number that is not finite"),
        (b'{"model": "p0", "fields": {"sentence": "\\ud800"}}', "input 0 holds half a character; send whole ones"),
        (b'{"model": "p0", "input": "x", "timeout": NaN}', "timeout"),
        (b'{"model": "p0", "input": "x", "\\ud800": 1}', "unknown field"),
        (b"[" * 100_000, "body"),
    ],
)
def test_bytes_that_are_no_request_get_a_reason(llama, tmp_path, content, reason):
    with served(make_server(llama, tmp_path)) as client:
        answer = client.post("/v1/classify", content=content, headers={"content-type": "application/json"})
        assert reason in why(answer, 400)


def raw_ask(app, method, path, receive, headers=()):
    """What an ASGI application answers: the status, the headers and the body's JSON."""
    sent = []
    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"", "raw_path": b"", "http_version": "1.1",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers], "scheme": "http",
        "root_path": "",
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"] or "null")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/completions"), ("POST", "/v1/classify"), ("POST", "/tokenize"), ("PUT", "/v1/prompts/x"),
     ("PUT", "/v1/aliases/x")],
)  # fmt: skip
def test_the_key_and_its_rate_are_looked_at_before_the_body(llama, tmp_path, method, path):
    async def receive():
        raise AssertionError("the body was read")

    access = Access((replace(KEYS[1], requests_per_minute=1),), clock=lambda: 0.0)
    app = make_app(make_server(llama, tmp_path, access=access))
    assert raw_ask(app, method, path, receive)[0] == 401
    access.admit(access.keys[0])
    status, _, answer = raw_ask(app, method, path, receive, [(b"authorization", b"Bearer boss-0123456789ab")])
    assert (status, answer["error"]["message"]) == (429, "the key boss has used its requests of this minute; try later")


def test_a_request_counts_once_whatever_its_body_is(llama, tmp_path):
    access = Access((replace(KEYS[0], requests_per_minute=4),), clock=lambda: 0.0)
    with served(make_server(llama, tmp_path, access=access)) as client:
        ask = partial(client.post, "/v1/classify", headers=bearer("reader-0123456789"))
        good = {"model": "p0", "input": TEXT}
        answers = [ask(json=good), ask(content=b"{"), ask(json={}), ask(json=good), ask(json=good)]
    assert [answer.status_code for answer in answers] == [200, 400, 400, 200, 429]


@pytest.mark.parametrize(
    ("path", "field", "value", "reason"),
    [
        ("completions", "prompt", b"[" + b"null," * 700_000 + b"null]", "prompt[0] is null, but must be text"),
        ("completions", "fields", b"[" + b"0.5," * 900_000 + b"0.5]", "fields[0] is 0.5, but must be"),
        ("classify", "input", b"[" + b"[]," * 1_000_000 + b"[]]", "the body has 1,000,003 brackets, but may"),
        ("classify", "fields", b'{"sentence": ' + b"[" * 100 + b"]" * 100 + b"}", "the body is nested too deeply; 100"),
        ("classify", "input", b"[" * 50_000 + b"]" * 50_000, "the body is nested too deeply; 100 lists and objects"),
        ("classify", "labels", b"[" + b"1," * 900_000 + b"1]", "labels is [1, 1, 1"),
    ],
)  # fmt: skip
def test_a_body_is_read_within_bounds(llama, tmp_path, path, field, value, reason):
    with served_raw(make_server(llama, tmp_path)) as client:
        content = b'{"model": "p0", "%s": %s}' % (field.encode(), value)
        began = time.process_time()
        answer = client.post(f"/v1/{path}", content=content, headers={"content-type": "application/json"})
        assert reason in why(answer, 400)
        assert time.process_time() - began < 2.0  # a million errors, one an item, took 30


def test_a_large_body_is_read_off_the_event_loop(llama, tmp_path, monkeypatch):
    begun, may_read, loads = threading.Event(), threading.Event(), json.loads

    def slow(data):
        begun.set()
        assert may_read.wait(20)
        return loads(data)

    with served_raw(make_server(llama, tmp_path)) as client:
        monkeypatch.setattr("softprompt.serving.http.reading.json.loads", slow)
        answers = []
        asked = {"model": "p0", "input": ["x" * 70_000, ""]}
        asker = threading.Thread(target=lambda: answers.append(client.post("/v1/classify", json=asked)))
        asker.start()
        assert begun.wait(20)
        began = time.monotonic()
        assert client.get("/healthz", headers={"x-request-id": "meanwhile"}).status_code == 200
        took = time.monotonic() - began
        may_read.set()
        asker.join()
    assert took < 5.0 and why(answers[0], 400).startswith("input 1: the input is empty")


def test_a_long_body_is_refused_before_it_is_read(llama, tmp_path):
    with served(make_server(llama, tmp_path, limits=Limits(max_body=1_000))) as client:
        answer = client.post("/v1/classify", json={"model": "p0", "input": "x" * 2_000})
        assert why(answer, 413) == "the body is longer than 1,000 bytes, which is all that is allowed"

        def pieces():
            for _ in range(5):
                yield b" " * 500

        assert client.post("/v1/classify", content=pieces()).status_code == 413


def test_a_body_that_is_found_too_long_behind_an_answer_breaks_nothing_off(llama, tmp_path):
    """As the pages' files are sent while somebody listens whether the client leaves."""
    parts = [{"type": "http.request", "body": b" " * 600, "more_body": True}] * 3 + [{"type": "http.disconnect"}]
    sent, taken = [], []

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    async def page(scope, receive, send):
        taken.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while taken[-1]["type"] != "http.disconnect":
            taken.append(await receive())
        await send({"type": "http.response.body", "body": b"whole"})

    server = make_server(llama, tmp_path)
    wire = Wire(page, server.access, Limits(max_body=1_000), server.telemetry, None)
    asyncio.run(
        wire(
            {
                "type": "http",
                "method": "GET",
                "path": "/",
                "headers": [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")],
            },
            receive,
            send,
        )
    )
    assert [message.get("status", message.get("body")) for message in sent] == [200, b"whole"]


def test_a_prompt_that_is_removed_while_a_request_is_made_answers_it(llama, tmp_path, monkeypatch):
    server = make_server(llama, tmp_path)
    worn = server.asker.worn

    def removed_meanwhile(prompts, **settings):
        try:
            return worn(prompts, **settings)
        finally:
            server.registry.remove("p0")

    with served(server) as client:
        wanted = client.post("/v1/classify", json={"model": "p0", "input": TEXT}).json()["results"]
        monkeypatch.setattr(server.asker, "worn", removed_meanwhile)
        assert client.post("/v1/classify", json={"model": "p0", "input": TEXT}).json()["results"] == wanted
        assert why(client.post("/v1/classify", json={"model": "p0", "input": TEXT}), 404)


def test_a_full_queue_says_when_to_come_back(llama, tmp_path):
    server = make_server(llama, tmp_path, max_waiting=2)
    with served(server) as client:
        answer = client.post("/v1/classify", json={"model": "p0", "input": ["x", "y", "z"]})
        assert why(answer, 400) == "3 parts at once, but the queue takes 2; give fewer"
        server.engine.queue.seconds_per_part = 2.0
        with server.engine._stepping:  # the engine stands still meanwhile
            results = []
            threads = [
                threading.Thread(
                    target=lambda: results.append(client.post("/v1/classify", json={"model": "p0", "input": TEXT}))
                )
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 20
            while len(results) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        for thread in threads:
            thread.join()
    full = [result for result in results if result.status_code == 429]
    assert len(full) == 2
    assert "the queue is full" in why(full[0], 429)
    assert int(full[0].headers["retry-after"]) >= 1
    assert sum(result.status_code == 200 for result in results) == 2


def test_a_deadline_is_kept(llama, tmp_path):
    server = make_server(llama, tmp_path)
    with served(server) as client:
        with server.engine._stepping:
            worker = []
            thread = threading.Thread(
                target=lambda: worker.append(
                    client.post("/v1/completions", json={"model": "p0", "prompt": TEXT, "timeout": 0.05})
                )
            )
            thread.start()
            time.sleep(0.3)
        thread.join()
    assert why(worker[0], 504) == "no answer within 0.05 seconds"


def hang_up(server, asked, is_enough, headers=()):
    """Ask for a completion and leave when it is enough; the status that the log gets."""
    app, sent = make_app(server), []
    told = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "raw_path": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json"), *headers], "http_version": "1.1",
        "scheme": "http", "root_path": "",
    }  # fmt: skip

    async def receive():
        if told:
            return told.pop()
        while not is_enough():
            await asyncio.sleep(0.001)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"]


def test_a_client_that_goes_stops_the_work(llama, tmp_path):
    server = make_server(llama, tmp_path)
    server.engine.start()
    try:
        asked = {"model": "p0", "prompt": TEXT, "max_tokens": 200}
        assert hang_up(server, asked, lambda: server.engine.stats().num_rows) == 499
        for _ in range(500):
            if server.engine.stats().num_cancelled:  # counted once its rows are gone
                break
            time.sleep(0.01)
        stats = server.engine.stats()
        assert stats.num_rows == 0 and stats.num_cancelled == 1 and stats.num_output_tokens < 200
    finally:
        server.engine.drain()


def test_a_keys_tokens_count_though_its_client_hangs_up(llama, tmp_path):
    access = Access((replace(KEYS[0], tokens_per_minute=50),), clock=lambda: 0.0)
    server = make_server(llama, tmp_path, access=access)
    server.engine.start()
    try:
        statuses, header = [], (b"authorization", b"Bearer reader-0123456789")
        for number in range(8):
            asked = {"model": "p0", "prompt": f"{TEXT} {number}", "max_tokens": 200}
            enough = server.engine.stats().num_output_tokens + 12
            statuses.append(
                hang_up(server, asked, lambda n=enough: server.engine.stats().num_output_tokens >= n, [header])
            )
        assert server.engine.drain()
        stats = server.engine.stats()
    finally:
        server.engine.drain()
    assert statuses[0] == 499 and statuses[-1] == 429
    assert stats.num_input_tokens + stats.num_output_tokens < 50 + 100


def test_an_error_of_ours_is_a_500_in_json_without_its_text(llama, tmp_path, monkeypatch, caplog):
    server = make_server(llama, tmp_path)
    monkeypatch.setattr(server.asker, "questions", lambda *_, **__: {}["secret"])
    with served_raw(server) as client:
        answer = client.post("/v1/classify", json={"model": "p0", "input": TEXT})
        assert why(answer, 500) == "something went wrong here; the log says what"
    assert "secret" in caplog.text


@contextmanager
def served_raw(server):
    server.warm_up = lambda: setattr(server, "is_ready", True)
    with TestClient(make_app(server), "http://localhost", raise_server_exceptions=False) as client:
        yield client


def test_one_bad_request_does_not_touch_another(lm, tmp_path):
    with served(make_server(lm, tmp_path)) as client:
        wanted = client.post("/v1/classify", json={"model": "p0", "input": TEXT}).json()["results"]
        bad = [
            {"model": "p0", "input": "x" * 1_000_000},
            {"model": "nope", "input": "x"},
            {"model": "p0", "fields": {"no": 1}},
            {"model": "p0", "input": []},
        ]
        results = []
        threads = [threading.Thread(target=client.post, args=("/v1/classify",), kwargs={"json": b}) for b in bad * 3]
        threads += [
            threading.Thread(
                target=lambda: results.append(
                    client.post("/v1/classify", json={"model": "p0", "input": TEXT}).json()["results"]
                )
            )
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 6
    for result in results:
        assert result[0]["probabilities"] == pytest.approx(wanted[0]["probabilities"], abs=1e-5)


def test_it_is_ready_when_it_is_warm_and_not_before(llama, tmp_path):
    server = make_server(llama, tmp_path)
    release, warm = threading.Event(), server.warm_up

    def slowly():
        release.wait()
        warm()

    server.warm_up = slowly
    with TestClient(make_app(server), "http://localhost") as client:
        assert client.get("/healthz").json() == client.get("/health").json() == {"status": "ok"}
        assert why(client.get("/readyz"), 503) == "warming up, or being stopped"
        release.set()
        for _ in range(1000):
            if client.get("/readyz").status_code == 200:
                break
            time.sleep(0.01)
        assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count_requests_and_tokens_by_prompt(client):
    client.post("/v1/classify", json={"model": "p0", "input": TEXT})
    client.post("/v1/classify", json={"model": "nope", "input": TEXT})
    text = client.get("/metrics").text
    assert 'softprompt_requests_total{endpoint="/v1/classify",prompt="p0",status="200"} 1.0' in text
    assert 'softprompt_requests_total{endpoint="/v1/classify",prompt="",status="404"} 1.0' in text
    assert 'softprompt_request_seconds_count{endpoint="/v1/classify",prompt="p0"} 1.0' in text
    assert "softprompt_batch_rows 0.0" in text and "process_resident_memory_bytes" in text
    assert 'softprompt_input_tokens_total{prompt="p0"}' in text


def test_request_ids_are_in_answers_errors_and_logs(client, caplog):
    caplog.set_level(logging.INFO, "softprompt.access")
    answer = client.get("/v1/models/nope", headers={"x-request-id": "mine-7"})
    assert answer.headers["x-request-id"] == answer.json()["error"]["request_id"] == "mine-7"
    assert json.loads(caplog.records[-1].message)["request_id"] == "mine-7"
    assert client.get("/healthz", headers={"x-request-id": "<evil>"}).headers["x-request-id"].startswith("req-")


def test_the_prompts_in_the_folder_are_served_and_bad_ones_are_named(llama, tmp_path):
    saved(llama, tmp_path / "kept" / "mine", seed=5)
    saved(tiny_lm("gpt2", n_embd=32), tmp_path / "kept" / "alien")
    with pytest.warns(UserWarning, match=r"alien in .* is not served: alien: the prompt was trained for tiny-gpt2"):
        server = make_server(llama, tmp_path, num_prompts=0)
    assert server.registry.names() == [llama.name, "mine"]


def test_the_vote_is_the_evaluations(llama, tmp_path):
    """The request carries `evaluation.vote` of the card's own task, not a copy of it."""
    server = make_server(llama, tmp_path)
    hashes = [versions[-1].identity for versions in server.registry.versions().values()]
    worn = server.asker.worn(hashes)
    (question,) = server.asker.questions(worn, [TEXT])
    request = server.asker.classification(question, None)
    assert request.vote.func is vote
    assert request.vote.args[0].labels == LABELS


def test_prompts_of_two_tasks_do_not_vote(llama, tmp_path):
    server = make_server(llama, tmp_path)
    other = saved(llama, tmp_path / "other", seed=8, task="theirs")
    server.registry.add("other", other)
    with served(server) as client:
        reason = why(client.put("/v1/ensembles/odd", json={"members": ["p0", "other"]}), 400)
        assert reason == "p0 is a prompt for mine and other for theirs; use prompts of one task"
        assert client.get("/v1/prompts").json()["ensembles"] == []
        client.put("/v1/prompts/turned", content=archive(saved(llama, tmp_path / "was", seed=9)))
        assert client.put("/v1/ensembles/odd", json={"members": ["p0", "turned"]}).status_code == 200
        client.put("/v1/prompts/turned", content=archive(other))
        reason = why(client.post("/v1/classify", json={"model": "odd", "input": TEXT}), 400)
    assert "is a prompt for mine" in reason and "for theirs" in reason


def test_prompts_of_unlike_templates_vote_each_with_its_own_words(lm, tmp_path):
    server = make_server(lm, tmp_path)
    form = default_format(
        lm, max_target_length=6, inputs_template="{style?} {sentence}. {ends}", targets_template="{label}"
    )
    server.registry.add("long", saved(lm, tmp_path / "long", seed=5, text=form.to_json()))
    record, end = {"sentence": TEXT, "ends": "truly"}, "</s>" if lm.is_encoder_decoder else "\nanswer:"
    with served(server) as client:
        ensemble = {"name": "all", "members": ["p0", "long", "p1"], "fields": ["sentence", "style?", "ends"]}
        assert client.put("/v1/ensembles/all", json={"members": ensemble["members"]}).json() == ensemble
        assert client.get("/v1/prompts").json()["ensembles"] == [ensemble]
        asked = {"fields": record, "show_input": True}
        (voted,) = client.post("/v1/classify", json={"model": "all", **asked}).json()["results"]
        read = [text.removeprefix("<s>") for text in voted["input_text"]]
        assert read == [f"sentence: {TEXT}{end}", f"{TEXT}. truly{end}"]
        for vote_, name in zip(voted["votes"], ensemble["members"], strict=True):
            (alone,) = client.post("/v1/classify", json={"model": name, **asked}).json()["results"]
            assert vote_["prompt_hash"] == alone["prompt_hash"]
            assert vote_["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
        (choice,) = client.post("/v1/completions", json={"model": "all", **asked}).json()["choices"]
        assert choice["input_text"] == voted["input_text"] and len(choice["members"]) == 3
        reason = why(client.post("/v1/classify", json={"model": "all", "input": TEXT}), 400)
        assert 'mine has sentence and ends; give them as a record, {"sentence": "...", "ends": "..."}' in reason
        left = {"name": "left", "members": ["p0", "gone"], "fields": []}
        server.registry.now = replace(server.registry.now, ensembles={"left": left["members"]})
        assert client.get("/v1/prompts").json()["ensembles"] == [left]


def test_labels_given_that_are_one_to_the_model_are_refused(tmp_path):
    server = make_server(lossy_lm(), tmp_path)
    with served(server) as client:
        for model in ("p0", "tiny-lossy"):
            asked = {"model": model, "input": TEXT, "labels": ["\u00e1", "a"]}
            reason = why(client.post("/v1/classify", json=asked), 400)
            assert reason.startswith(r"the model cannot tell the labels '\xe1' and 'a' apart: it reads both as 'a'")


def test_labels_given_are_read_to_their_ends(client):
    asked = {
        "model": "p0",
        "input": TEXT,
        "labels": [f"a warm and funny story of the {end}" for end in ("sea", "town")],
    }
    (result,) = client.post("/v1/classify", json=asked).json()["results"]
    assert len(set(result["log_probs"].values())) == 2


def test_labels_given_replace_the_prompts_own(client):
    asked = {"model": "p0", "input": TEXT, "labels": ["yes", "no", "maybe"]}
    (result,) = client.post("/v1/classify", json=asked).json()["results"]
    assert set(result["probabilities"]) == {"yes", "no", "maybe"}
    assert sum(result["probabilities"].values()) == pytest.approx(1.0)
    assert file_task(inputs="{a}", targets="{b}", labels=("yes", "no")).labels == ("yes", "no")
