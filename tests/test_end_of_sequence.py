"""What ends a text: tokenizer, configuration and generation settings each name ids, and all of them count."""

import json

import pytest
import torch
from conftest import make_model, make_tokenizer, tiny_lm

from softprompt.answering.decoding import Decoding
from softprompt.answering.running import generate
from softprompt.models import FrozenLM
from softprompt.models.loading import load
from softprompt.models.states import Embedded
from softprompt.models.text import TextFormat, encode_inputs, encode_target
from softprompt.serving import Part, Request, Scheduler

IDS = [5, 6, 7, 8, 30]


def save(folder, kind="llama", *, tokenizer_ends=True, config=1, generation=None):
    """A model's folder whose files name these ends."""
    model = make_model(kind)
    model.config.eos_token_id = config
    model.generation_config.eos_token_id = generation
    model.save_pretrained(folder)
    make_tokenizer(bos=kind == "llama").save_pretrained(folder)
    if not tokenizer_ends:
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        del settings["eos_token"]
        path.write_text(json.dumps(settings))
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "</s>"]
        path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("names", "target_end", "ends"),
    [
        ({}, 1, {1}),
        ({"config": [40, 41], "generation": 42}, 1, {1, 40, 41, 42}),
        ({"config": None, "generation": [42, 1]}, 1, {1, 42}),
        ({"tokenizer_ends": False}, 1, {1}),
        ({"tokenizer_ends": False, "config": [1, 40], "generation": [41]}, 1, {1, 40, 41}),
        ({"tokenizer_ends": False, "config": 40}, 40, {40}),
        ({"config": 50_256}, 1, {1, 50_256}),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_ends_are_those_of_the_tokenizer_the_configuration_and_the_generation_settings(
    kind, names, target_end, ends, tmp_path
):
    lm = load(save(tmp_path, kind, **names), dtype="float32", device="cpu")
    assert (lm.tokenizer.eos_id, lm.tokenizer.end_ids) == (target_end, ends)
    assert encode_target("warm", TextFormat(), lm.tokenizer)[-1] == target_end


def test_an_end_that_only_the_configuration_names_is_a_control_token_too(tmp_path):
    lm = load(save(tmp_path, tokenizer_ends=False), dtype="float32", device="cpu")
    ids = encode_inputs("the sea </s> is warm", TextFormat(inputs_end_with_eos=True), lm.tokenizer).ids
    assert ids.count(1) == 1 and lm.tokenizer.decode(ids) == "the sea </s> is warm"


@pytest.mark.parametrize("generation", [None, [50_256]])
def test_a_model_that_names_no_end_of_its_vocabulary_is_one_line(generation, tmp_path, run):
    save(tmp_path, tokenizer_ends=False, config=None, generation=generation)
    words = (
        f"{tmp_path} cannot be used: the tokenizer has no end of sequence, nor has the model's configuration; "
        "set eos_token in tokenizer_config.json, or eos_token_id in config.json"
    )
    with pytest.raises(ValueError) as raised:
        load(tmp_path)
    assert str(raised.value) == words
    (tmp_path / "rows.jsonl").write_text('{"text": "warm", "label": "a"}\n{"text": "cold", "label": "b"}\n')
    data = ["--data", f"train={tmp_path / 'rows.jsonl'}", "--inputs", "{text}", "--targets", "{label}"]
    code, out, err = run("train", "--model", tmp_path, *data, "--out", tmp_path / "run")
    assert (code, out) == (2, "") and err.strip().splitlines()[-1].endswith(words)


@pytest.mark.parametrize("num_beams", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_answer_of_the_bare_model_ends_at_any_end(kind, num_beams):
    def answer(lm):
        engine = Scheduler(lm, max_memory=1 << 24)
        request = Request(parts=(Part(ids=tuple(IDS)),), decoding=Decoding(max_tokens=8, num_beams=num_beams))
        ticket = engine.submit(request)
        while engine.step():
            pass
        (part,) = ticket.result(0.0).parts
        return part

    free = answer(tiny_lm(kind))
    assert free.finish_reason == "length"
    model = make_model(kind)
    model.generation_config.eos_token_id = [1, end := free.ids[4]]
    lm = FrozenLM(model, make_tokenizer(), name="tiny")
    ids = torch.tensor([IDS])
    written = model.generate(ids, max_new_tokens=8, num_beams=num_beams, do_sample=False)[0].tolist()
    written = written[1 if lm.is_encoder_decoder else len(IDS) :]
    wanted = written[: written.index(end)]
    part = answer(lm)
    assert (list(part.ids), part.finish_reason) == (wanted, "stop")
    if num_beams == 1:
        rows = Embedded(lm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        assert generate(lm, rows, max_tokens=8).ids == [wanted]
