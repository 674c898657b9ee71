"""A GGUF model exported with prompts as vocabulary: transformers answers from the file as the engine does."""

import json
import resource

import gguf
import numpy as np
import pytest
import torch
from conftest import make_model, write_gguf
from test_export import (
    NUM_IDS,
    TEXTS,
    engine_answer,
    entry_of,
    make_prompt,
    plain_answer,
    plain_logits,
    plain_score,
    rows_of,
    save_model,
    winning_prompt,
    worn_ids,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from softprompt.answering.engine import Engine
from softprompt.models import FrozenLM, load
from softprompt.prompts.export import MANIFEST
from softprompt.prompts.gguf_file import FILE, export_gguf

# The type of a model's table, that which its prompts get, and how far a number may be off by its rounding: a share of
# itself, or in Q8_0 of the largest in its block.
KINDS = {"F32": ("F32", 0.0), "F16": ("F16", 2**-11), "BF16": ("BF16", 2**-8), "Q8_0": ("Q8_0", 0.0045)}
KINDS |= {"Q4_0": ("F16", 2**-11), "Q6_K": ("F16", 2**-11)}


def opened(folder, name=FILE):
    """The file as transformers reads it."""
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=name)


def exported(tmp_path, kind="F32", *, tied=False, prompts=None, **options):
    """The engine's model of a GGUF file, and the prompts, after they went into the file."""
    model = make_model("llama", hidden_size=256 if kind == "Q6_K" else 32, tie_word_embeddings=tied)
    base = write_gguf(tmp_path / "base.gguf", model, table=kind)
    lm = FrozenLM(*opened(tmp_path, "base.gguf"), name=str(base))
    prompts = prompts(lm) if prompts else {"film": make_prompt(lm), "rain": make_prompt(lm, 9, seed=2)}
    export_gguf(prompts, tmp_path / "out", model=base, **options)
    return lm, prompts


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def numbers(tensor):
    return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_answers_from_the_file_as_the_engine_does(kind, tied, tmp_path):
    lm, prompts = exported(tmp_path, kind, tied=tied)
    table = tensors_of(tmp_path / "out" / FILE)["token_embd.weight"]
    wanted, off = KINDS[kind]
    assert table.tensor_type.name == wanted
    rounded = numbers(table)[NUM_IDS:]
    exact = torch.cat([prompt.values for prompt in prompts.values()])
    size = exact.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True).expand(-1, -1, 32).flatten(1)
    assert ((rounded - exact).abs() <= off * (size if kind == "Q8_0" else exact.abs())).all()
    model, tokenizer = opened(tmp_path / "out")
    assert len(tokenizer) == NUM_IDS + 14
    engine = Engine(lm, list(rounded.split([5, 9])))
    tolerance = 1e-4 if wanted == kind else 0.02  # a table that became float16 is rounded, too
    for place, name in enumerate(prompts):
        entry = entry_of(tmp_path / "out", name)
        for text, row in zip(TEXTS, rows_of(lm), strict=True):
            ids = worn_ids(tokenizer, entry, text)
            assert ids == [*entry["prompt_ids"], *row.ids]
            assert plain_answer(model, ids)[0] == engine_answer(engine, row, place)[0]
            ((score,),) = engine.label_scores([row], [place], [[(20, 21, 1)]])
            assert plain_score(model, ids, (20, 21, 1)) == pytest.approx(score, abs=tolerance)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_had_stays_as_it_is_to_the_bit(kind, tied, tmp_path):
    exported(tmp_path, kind, tied=tied)
    before, after = tensors_of(tmp_path / "base.gguf"), tensors_of(tmp_path / "out" / FILE)
    assert set(after) == {*before, "output.weight"}
    for name, tensor in before.items():
        rows = after[name].data[: len(tensor.data)]
        if after[name].tensor_type == tensor.tensor_type:
            assert np.array_equal(rows, tensor.data)
        else:  # gguf does not quantise to it, or it would hold a prompt badly
            assert (name, after[name].tensor_type.name) in {("token_embd.weight", "F16"), ("output.weight", "F16")}
            assert np.array_equal(rows, numbers(tensor).half().numpy())
    source = before.get("output.weight", before["token_embd.weight"])
    head = after["output.weight"]
    assert head.tensor_type.name == ("F16" if kind == "Q6_K" else kind)
    assert np.array_equal(numbers(head)[:NUM_IDS].half(), numbers(source).half())
    spread = numbers(source).abs().amax()
    assert (numbers(head)[NUM_IDS:] - numbers(source).mean(0)).abs().max() < 0.05 * spread
    fields = [gguf.GGUFReader(path).fields for path in (tmp_path / "base.gguf", tmp_path / "out" / FILE)]
    old, new = ({name: field.contents() for name, field in its.items()} for its in fields)
    changed = {name for name in new if new[name] != old.get(name)}
    assert changed == {
        "GGUF.tensor_count", "GGUF.kv_count", "llama.vocab_size", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type",
        "softprompt.prompts",
    } - ({"GGUF.tensor_count"} if not tied else set())  # fmt: skip
    assert set(old) <= set(new)
    assert new["tokenizer.ggml.tokens"][NUM_IDS - 1 : NUM_IDS + 2] == ["<|unused:339|>", "<film:0>", "<film:1>"]
    assert json.loads(new["softprompt.prompts"]) == json.loads((tmp_path / "out" / MANIFEST).read_text())


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_prompt_that_would_win_every_step_of_a_tied_output_layer_is_never_written(kind, tmp_path):
    lm, prompts = exported(tmp_path, kind, tied=True, prompts=lambda lm: {"film": winning_prompt(lm)})
    model, tokenizer = opened(tmp_path / "out")
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = worn_ids(tokenizer, entry_of(tmp_path / "out"), text)
        assert plain_answer(model, ids)[0] == engine_answer(engine, row, 0)[0]
        assert int(plain_logits(model, ids).argmax()) < NUM_IDS


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16"), ("float16", "F16")])
def test_a_type_that_is_asked_for_is_that_of_the_embeddings_alone(dtype, kind, tmp_path):
    exported(tmp_path, "Q8_0", dtype=dtype)
    after = tensors_of(tmp_path / "out" / FILE)
    assert [after[name].tensor_type.name for name in ("token_embd.weight", "output.weight")] == [kind, "Q8_0"]


def test_the_file_is_a_model_for_softprompt_too_and_its_papers_say_how_it_is_worn(tmp_path):
    _, prompts = exported(tmp_path)
    lm = load(tmp_path / "out" / FILE, dtype="float32")
    assert lm.tokenizer.size == NUM_IDS + 14
    values = prompts["film"].values.bfloat16().float()
    assert torch.equal(lm.embeddings[NUM_IDS : NUM_IDS + 5], values)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: gguf" in text and "llama-server -m model.gguf" in text and "{" + "file}" not in text
    assert 'json.load(open("softprompt_prompts.json"))["prompts"]["film"]' in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", FILE, MANIFEST]


def test_what_cannot_go_into_a_gguf_file_is_one_clear_line(tmp_path):
    base = write_gguf(tmp_path / "base.gguf")
    lm = load(base, dtype="float32")
    folder = save_model(tmp_path / "folder", "llama")
    kv = make_prompt(lm, values=torch.zeros(3, 4, 1, 8), width=32)
    other = make_prompt(lm, model_fingerprint="0" * 64)
    cases = [
        ({"a": make_prompt(lm)}, folder, r"^\S+folder is no GGUF file; --to vocabulary writes a folder, .* makes one$"),
        ({"a": make_prompt(lm)}, tmp_path / "none.gguf", r"^no file \S+none\.gguf; give a GGUF file that exists$"),
        ({"a": other}, base, r"^a: .*fingerprint.*$"),
        ({"a": kv}, base, r"^a: it is keys and values of every layer, which no token of a vocabulary can stand for$"),
        (
            {"a": make_prompt(lm, is_encoder_decoder=True)}, base,
            r"^a: the prompt is for an encoder-decoder, which GGUF files are not; give --to vocabulary$",
        ),
        ({}, base, r"^no prompt was given; name at least one$"),
    ]  # fmt: skip
    for prompts, model, words in cases:
        with pytest.raises(ValueError, match=words):
            export_gguf(prompts, tmp_path / "out", model=model)
    large = {"a": make_prompt(lm, values=torch.full((2, 16), 7e4))}
    words = r"^the prompts have numbers too large for float16; give --dtype float32 or bfloat16$"
    with pytest.warns(UserWarning, match="the prompt's numbers reach 7e"), pytest.raises(ValueError, match=words):
        export_gguf(large, tmp_path / "out", model=base, dtype="float16")
    (tmp_path / "damaged.gguf").write_bytes(base.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"^cannot load a model from '\S+damaged(\.gguf)?': .+$"):
        export_gguf({"a": make_prompt(lm)}, tmp_path / "out", model=tmp_path / "damaged.gguf")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    base = write_gguf(tmp_path / "base.gguf")
    prompts = {"a": make_prompt(load(base, dtype="float32"))}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=r"^could not write \S+out \(.+\); nothing was kept there$"):
            export_gguf(prompts, tmp_path / "out", model=base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "out").exists()
