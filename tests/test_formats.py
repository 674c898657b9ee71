"""Prompts of other programs: the authors' own arrays, PEFT by running PEFT, TGIS files."""

import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    XGLMConfig,
    XGLMForCausalLM,
)

from softprompt.base.files import held
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.prompts.formats import convert, detect_kind, read_prompt, write_prompt


def prompt(length=6, width=32, **changes):
    values = {"model_name": None, "model_fingerprint": None, "is_encoder_decoder": True, "width": width}
    numbers = torch.randn(length, width, generator=torch.Generator().manual_seed(0)) * 50
    return SoftPrompt(numbers, Card(**(values | changes)))


# The authors' released prompts


def released(name):
    folder = os.environ.get("SOFTPROMPT_DATA")
    path = Path(folder).parent / "t5" / f"t5_1_1_lm100k_base_{name}.npy" if folder else None
    if path is None or not path.exists():
        pytest.skip("the authors' prompts are not here: SOFTPROMPT_DATA names no folder beside t5/")
    return path


@pytest.mark.parametrize(("name", "norm", "spread"), [("sst2", 1385, 51.8), ("mrpc", 868, 32.3), ("rte", 903, 34.5)])
def test_the_authors_prompts_are_read(name, norm, spread):
    found = read_prompt(released(name))
    assert found.values.dtype == torch.float32
    assert found.values.shape == (100, 768)
    assert found.values.norm(dim=1).mean() == pytest.approx(norm, abs=0.5)
    assert found.values.std() == pytest.approx(spread, abs=0.05)
    assert np.array_equal(found.values.numpy(), np.load(released(name)))


def test_an_authors_prompt_goes_to_peft_and_tgis_and_back_bit_for_bit(tmp_path):
    source = released("sst2")
    model = {"model_name": "google/t5-base-lm-adapt"}
    first = convert(source, tmp_path / "peft", to_kind="peft", **model)
    assert (
        json.loads((tmp_path / "peft/adapter_config.json").read_text())["base_model_name_or_path"]
        == model["model_name"]
    )
    assert load_prompt(tmp_path / "peft").card == first.card
    convert(tmp_path / "peft", tmp_path / "tgis", to_kind="tgis")
    last = convert(tmp_path / "tgis", tmp_path / "again.npy", to_kind="t5x")
    assert np.array_equal(np.load(tmp_path / "again.npy"), np.load(source))
    assert last.sha256 == first.sha256


# Round trips


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
@pytest.mark.parametrize("path", [["t5x", "tgis", "peft"], ["peft", "t5x", "tgis"], ["tgis", "peft", "t5x", "peft"]])
def test_any_chain_of_formats_is_bit_exact(path, is_encoder_decoder, tmp_path):
    ours = prompt(is_encoder_decoder=is_encoder_decoder)
    place = tmp_path / "0"
    write_prompt(ours, place, path[0])
    for number, kind in enumerate(path[1:], start=1):
        told = not is_encoder_decoder and path[number - 1] == "t5x"
        written = convert(place, tmp_path / str(number), to_kind=kind, decoder_only=told)
        assert written.card.is_encoder_decoder == is_encoder_decoder
        place = tmp_path / str(number)
    found = read_prompt(place)
    assert torch.equal(found.values, ours.values)
    assert found.card.is_encoder_decoder == is_encoder_decoder


def test_a_t5x_file_is_an_encoder_decoders_unless_told(tmp_path):
    write_prompt(prompt(is_encoder_decoder=False), tmp_path / "p.npy", "t5x")
    assert read_prompt(tmp_path / "p.npy").card.is_encoder_decoder
    assert not read_prompt(tmp_path / "p.npy", decoder_only=True).card.is_encoder_decoder


def test_a_prompt_that_says_its_kind_is_not_read_as_another(tmp_path):
    save_prompt(prompt(), tmp_path / "ours")
    refused(
        tmp_path / "ours",
        "ours says that it is an encoder-decoder's prompt; leave --decoder-only out",
        decoder_only=True,
    )
    save_prompt(prompt(is_encoder_decoder=False), tmp_path / "other")
    assert not read_prompt(tmp_path / "other", decoder_only=True).card.is_encoder_decoder


def test_t5x_is_numpys_own_file_under_exactly_the_name_given(tmp_path):
    ours = prompt()
    for name in ("prompt.npy", "encoder.prompt.prompt.prompt"):
        write_prompt(ours, tmp_path / "new" / name, "t5x")
        saved = np.load(tmp_path / "new" / name, allow_pickle=False)
        assert (saved.dtype, saved.shape) == (np.dtype("<f4"), (6, 32))
        assert np.array_equal(saved, ours.values.numpy())
    assert {file.name for file in (tmp_path / "new").iterdir()} == {"prompt.npy", "encoder.prompt.prompt.prompt"}


def test_a_table_of_prompts_in_half_precision_is_read(tmp_path):
    both = np.stack([prompt().values.numpy(), -prompt().values.numpy()]).astype(np.float16)
    np.save(tmp_path / "one.npy", both[:1])
    assert np.array_equal(read_prompt(tmp_path / "one.npy").values, both[0])
    assert np.array_equal(read_prompt(tmp_path / "one.npy", index=0).values, both[0])
    np.save(tmp_path / "two.npy", both)
    assert np.array_equal(read_prompt(tmp_path / "two.npy", index=1).values, both[1])
    refused(tmp_path / "two.npy", "two.npy holds 2 prompts of 6 tokens; say which: --index 0 to 1")
    refused(tmp_path / "two.npy", "two.npy has no prompt 2; --index counts from 0 and ends at 1", index=2)
    refused(tmp_path / "two.npy", "two.npy has no prompt -1; --index", index=-1)
    refused(tmp_path / "one.npy", "one.npy has no prompt 1; --index counts from 0 and ends at 0", index=1)
    save_prompt(prompt(), tmp_path / "ours")
    refused(tmp_path / "ours", "ours holds one prompt; leave --index out", index=0)


def test_a_t5x_checkpoint_folder_is_read(tmp_path):
    folder = tmp_path / "numpy_checkpoints" / "checkpoint_1150000"
    write_prompt(prompt(), folder / "encoder.prompt.prompt.prompt", "t5x")
    assert detect_kind(folder) == "t5x"
    assert torch.equal(read_prompt(folder).values, prompt().values)


def test_a_t5x_array_in_fortran_order_is_read(tmp_path):
    np.save(tmp_path / "p.npy", np.asfortranarray(prompt().values.numpy()))
    assert torch.equal(read_prompt(tmp_path / "p.npy").values, prompt().values)


@pytest.mark.parametrize(("is_encoder_decoder", "name"), [(True, "encoder.pt"), (False, "decoder.pt")])
def test_tgis_is_a_bare_tensor_where_tgis_looks_for_it(is_encoder_decoder, name, tmp_path):
    ours = prompt(is_encoder_decoder=is_encoder_decoder)
    write_prompt(ours, tmp_path, "tgis")
    assert [file.name for file in tmp_path.iterdir()] == [name]
    saved = torch.load(tmp_path / name, weights_only=True)
    assert type(saved) is torch.Tensor
    assert torch.equal(saved, ours.values)
    assert read_prompt(tmp_path).card.is_encoder_decoder == is_encoder_decoder


def test_only_the_encoders_half_of_a_tgis_prompt_is_read_and_it_says_so(tmp_path):
    torch.save(torch.full((2, 3), 1.0, dtype=torch.float16), tmp_path / "encoder.pt")
    torch.save(torch.full((2, 3), 2.0), tmp_path / "decoder.pt")
    with pytest.warns(UserWarning, match=r"a prompt for the decoder too; only encoder.pt was read"):
        assert read_prompt(tmp_path).values.tolist() == [[1.0] * 3] * 2


def test_a_prompt_is_not_put_beside_another_half_that_tgis_would_use(tmp_path):
    write_prompt(prompt(is_encoder_decoder=False), tmp_path, "tgis")
    with pytest.raises(ValueError, match=r"decoder.pt is there already and TGIS would use both"):
        write_prompt(prompt(), tmp_path, "tgis")


def test_a_length_tgis_refuses_is_written_with_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="only an even number of rows for an encoder-decoder; this prompt has 5"):
        write_prompt(prompt(length=5), tmp_path, "tgis")


# What convert says


def test_convert_keeps_the_card_of_a_prompt_that_has_one(tmp_path):
    save_prompt(prompt(model_name="tiny/t5", model_fingerprint="ab", task="glue/rte"), tmp_path / "a")
    convert(tmp_path / "a", tmp_path / "b", to_kind="peft")
    assert load_prompt(tmp_path / "b").card == load_prompt(tmp_path / "a").card


def test_convert_records_the_model_it_is_told(tmp_path):
    write_prompt(prompt(), tmp_path / "p.npy", "t5x")
    found = convert(tmp_path / "p.npy", tmp_path / "b", to_kind="peft", model_name="x/y", model_fingerprint="12")
    assert (found.card.model_name, found.card.model_fingerprint) == ("x/y", "12")
    assert load_prompt(tmp_path / "b").card == found.card


def test_convert_does_not_rename_the_model_of_a_prompt(tmp_path):
    save_prompt(prompt(model_name="tiny/t5"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"was trained for tiny/t5, so model_name cannot be other/t5"):
        convert(tmp_path / "a", tmp_path / "b", to_kind="peft", model_name="other/t5")


def test_convert_does_not_write_over_its_source(tmp_path):
    save_prompt(prompt(), tmp_path)
    with pytest.raises(ValueError, match="is both source and destination"):
        convert(tmp_path, tmp_path, to_kind="peft")


@pytest.mark.parametrize("kind", ["t5x", "peft", "tgis"])
def test_convert_replaces_a_prompt_only_if_told_to(kind, tmp_path):
    save_prompt(prompt(), tmp_path / "a")
    earlier = SoftPrompt(prompt().values + 1, prompt().card)
    write_prompt(earlier, tmp_path / "b", kind)
    with pytest.raises(ValueError, match="b holds a prompt already; give another --out, or --overwrite"):
        convert(tmp_path / "a", tmp_path / "b", to_kind=kind)
    assert read_prompt(tmp_path / "b").sha256 == earlier.sha256
    convert(tmp_path / "a", tmp_path / "b", to_kind=kind, overwrite=True)
    assert read_prompt(tmp_path / "b").sha256 == prompt().sha256


@pytest.mark.parametrize("named", [{"to_kind": "pefd"}, {"to_kind": "t5x", "from_kind": "pefd"}])
def test_an_unknown_format_offers_the_nearest(named, tmp_path):
    save_prompt(prompt(), tmp_path / "a")
    wanted = "no prompt format is named 'pefd'; did you mean 'peft'.*there are t5x, peft, tgis"
    with pytest.raises(ValueError, match=wanted):
        convert(tmp_path / "a", tmp_path / "b", **named)


# Places and files that are not what they should be


def refused(path, words, kind=None, **named):
    with pytest.raises(ValueError, match=words) as caught:
        read_prompt(path, kind, **named)
    assert "\n" not in str(caught.value)


def test_a_path_that_holds_no_prompt_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "there is no file or folder .*nowhere")
    refused(tmp_path, r"holds no prompt: wanted adapter_config.json \(peft\), encoder.pt or decoder.pt \(tgis\)")
    refused(tmp_path, "holds neither encoder.pt nor decoder.pt", "tgis")
    (tmp_path / "x.txt").write_text("words")
    refused(tmp_path / "x.txt", "x.txt is not a numpy file")
    refused(tmp_path / "x.txt", "x.txt is not a whole numpy file", "t5x")
    for kind in ("t5x", "peft", "tgis"):
        refused(tmp_path / "gone.npy", "there is no file or folder .*gone.npy", kind)


def test_a_place_that_cannot_take_a_prompt_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a folder; t5x is one file"):
        write_prompt(prompt(), tmp_path, "t5x")
    with pytest.raises(ValueError, match="is a file; tgis is a folder"):
        write_prompt(prompt(), tmp_path / "file", "tgis")
    with pytest.raises(ValueError, match="is a file; a prompt is saved as a folder"):
        write_prompt(prompt(), tmp_path / "file", "peft")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 3)), r"holds float64 of shape \(2, 3\); wanted float32 or float16"),
        (np.ones((2, 3), np.int32), "holds int32 of shape"),
        (np.ones(6, np.float32), r"holds float32 of shape \(6,\); wanted float32 or float16 \[prompt tokens, width\]"),
        (np.ones((1, 1, 2, 3), np.float32), r"holds float32 of shape \(1, 1, 2, 3\)"),
        (np.ones((0, 3), np.float32), r"holds float32 of shape \(0, 3\)"),
        (np.full((2, 3), np.nan, np.float32), "p.npy: 6 of the prompt's 6 values are NaN"),
    ],
)
def test_an_array_that_is_no_prompt_is_refused(array, words, tmp_path):
    np.save(tmp_path / "p.npy", array)
    refused(tmp_path / "p.npy", words)


def test_a_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "p.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    refused(tmp_path / "p.npy", "holds object of shape")


def test_an_array_file_cut_short_or_lying_is_refused(tmp_path):
    path = tmp_path / "p.npy"
    write_prompt(prompt(), path, "t5x")
    whole = path.read_bytes()
    for end in (6, 9, 40, len(whole) - 4):
        path.write_bytes(whole[:end])
        refused(path, "is not a whole numpy file|is cut short or damaged")
    path.write_bytes(whole + b"more")
    refused(path, "its header says .*, and 772 bytes follow")
    path.write_bytes(whole.replace(b"(6, 32), }     ", b"(6000000, 3200)"))
    refused(path, "is not a whole numpy file|is cut short or damaged")
    path.write_bytes(whole.replace(b"(6, 32), }       ", b"(6000000, 3200),}"))
    refused(path, r"its header says \(6000000, 3200\), and 768 bytes follow")
    path.write_bytes(whole.replace(b"(6, 32), }  ", b"(-6, -32), }"))
    refused(path, r"holds float32 of shape \(-6, -32\)")
    path.write_bytes(whole[:6] + b"\x03" + whole[7:])
    refused(path, r"is not a whole numpy file \(numpy format \(3, 0\)\)")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"prompt_embeddings": torch.ones(2, 3)}, "holds dict; wanted one tensor"),
        (torch.ones(6), r"holds a tensor of shape \[6\]; wanted one tensor"),
        (torch.ones(2, 3, dtype=torch.int64), r"holds torch.int64; wanted float32"),
        (torch.full((2, 3), float("inf")), r"encoder.pt: 6 of the prompt's 6 values are NaN or infinite"),
        (Path("x"), "is not a tensor that torch can load safely"),
    ],
)
def test_a_tgis_file_that_is_no_prompt_is_refused(content, words, tmp_path):
    torch.save(content, tmp_path / "encoder.pt")
    refused(tmp_path, words)


def test_a_tgis_file_cut_short_is_refused(tmp_path):
    write_prompt(prompt(), tmp_path, "tgis")
    path = tmp_path / "encoder.pt"
    whole = path.read_bytes()
    for end in (0, 10, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:end])
        refused(tmp_path, "is not a tensor that torch can load safely")


@pytest.mark.parametrize("kind", ["t5x", "tgis"])
def test_a_failed_write_leaves_the_old_file(kind, tmp_path, monkeypatch):
    path = tmp_path / "p.npy" if kind == "t5x" else tmp_path
    write_prompt(prompt(), path, kind)

    def full(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_prompt(prompt(length=2), path, kind)
    assert read_prompt(path).length == 6
    assert len(list(tmp_path.iterdir())) == 1


# PEFT, by running PEFT


def tiny_t5():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


def tiny_llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval()


MODELS = {True: tiny_t5, False: tiny_llama}


def quietly(work, *arguments, **named):
    """PEFT and transformers warn of their own future; that is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work(*arguments, **named)


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_peft_loads_our_folder_and_sees_exactly_our_rows(is_encoder_decoder, tmp_path):
    ours = prompt(is_encoder_decoder=is_encoder_decoder, model_name="tiny")
    save_prompt(ours, tmp_path)
    model = MODELS[is_encoder_decoder]()
    ids = torch.tensor([[5, 6, 7, 8]])
    decoder_ids = {"decoder_input_ids": torch.tensor([[0, 9, 10]])} if is_encoder_decoder else {}
    x = torch.cat([ours.values[None], model.get_input_embeddings()(ids)], dim=1)
    wanted = model(inputs_embeds=x, **decoder_ids).logits
    theirs = quietly(peft.PeftModel.from_pretrained, model, tmp_path)
    assert torch.equal(theirs.get_prompt(batch_size=1)[0], ours.values)
    assert theirs.prompt_encoder["default"].embedding.weight.shape == (6, 32)  # no dead half
    found = quietly(theirs, input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    bare = model(input_ids=ids, **decoder_ids).logits[:, -1]
    assert (wanted[:, -1] - bare).abs().max() > 1e-3  # the prompt does something


@pytest.mark.parametrize(
    ("is_encoder_decoder", "num_submodules"), [(True, None), (True, 1), (True, 2), (False, None), (False, 1)]
)
def test_we_load_what_peft_saved(is_encoder_decoder, num_submodules, tmp_path):
    task_type = "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM"
    config = peft.PromptTuningConfig(
        task_type=task_type, num_virtual_tokens=5, num_transformer_submodules=num_submodules
    )
    theirs = quietly(peft.get_peft_model, MODELS[is_encoder_decoder](), config)
    quietly(theirs.save_pretrained, tmp_path)
    rows = theirs.prompt_encoder["default"].embedding.weight.detach()
    if len(rows) == 10:
        with pytest.warns(UserWarning, match="second half was dropped"):
            found = read_prompt(tmp_path)
    else:
        found = read_prompt(tmp_path)
    assert torch.equal(found.values, rows[:5])
    assert found.card.is_encoder_decoder == is_encoder_decoder
    assert found.card.model_fingerprint is None


def test_our_configuration_has_exactly_the_keys_peft_writes(tmp_path):
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=6)
    quietly(quietly(peft.get_peft_model, tiny_t5(), config).save_pretrained, tmp_path / "theirs")
    save_prompt(prompt(num_layers=2, num_heads=4), tmp_path / "ours")
    ours, theirs = (json.loads((tmp_path / who / "adapter_config.json").read_text()) for who in ("ours", "theirs"))
    assert list(ours) == list(theirs)
    differing = {key for key in ours if ours[key] != theirs[key]}
    assert differing == {"num_transformer_submodules"}


def models_that_name_their_heads_otherwise():
    """Types whose layers or heads PEFT does not find in the configuration."""
    shared = {"vocab_size": 64, "d_model": 32}
    torch.manual_seed(0)
    yield MptForCausalLM(MptConfig(**shared, n_heads=4, n_layers=2, max_seq_len=64))
    yield XGLMForCausalLM(XGLMConfig(**shared, attention_heads=4, num_layers=2, ffn_dim=64))


def test_peft_loads_our_folder_where_it_cannot_count_a_models_heads_itself(tmp_path):
    ours = prompt(is_encoder_decoder=False, model_name="tiny")
    save_prompt(ours, tmp_path)
    for model in models_that_name_their_heads_otherwise():
        with pytest.raises(ValueError, match="Please specify `num_attention_heads`"):
            config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
            quietly(peft.get_peft_model, model.eval(), config)
        theirs = quietly(peft.PeftModel.from_pretrained, model, tmp_path)
        assert torch.equal(theirs.get_prompt(batch_size=1)[0], ours.values)
        ids = torch.tensor([[5, 6, 7, 8]])
        wanted = model(inputs_embeds=torch.cat([ours.values[None], model.get_input_embeddings()(ids)], dim=1)).logits
        found = quietly(theirs, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_layers_and_heads_that_peft_wrote_are_kept(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    quietly(quietly(peft.get_peft_model, tiny_llama(), config).save_pretrained, tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", to_kind="peft")
    written = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert (written["num_layers"], written["num_attention_heads"], written["token_dim"]) == (2, 4, 32)


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_a_p_tuning_adapter_is_read_and_answers_as_in_peft(encoder, is_encoder_decoder, tmp_path):
    task_type = "SEQ_2_SEQ_LM" if is_encoder_decoder else "CAUSAL_LM"
    config = peft.PromptEncoderConfig(
        task_type=task_type, num_virtual_tokens=5, encoder_hidden_size=16, encoder_reparameterization_type=encoder
    )
    model = MODELS[is_encoder_decoder]()
    theirs = quietly(peft.get_peft_model, model, config).eval()
    quietly(theirs.save_pretrained, tmp_path)
    if is_encoder_decoder:
        with pytest.warns(UserWarning, match="second half was dropped"):
            found = read_prompt(tmp_path)
    else:
        found = read_prompt(tmp_path)
    assert found.values.shape == (5, 32)
    ids = torch.tensor([[5, 6, 7, 8]])
    decoder_ids = {"decoder_input_ids": torch.tensor([[0, 9, 10]])} if is_encoder_decoder else {}
    wanted = quietly(theirs, input_ids=ids, attention_mask=torch.ones_like(ids), **decoder_ids).logits
    x = torch.cat([found.values[None], model.get_input_embeddings()(ids)], dim=1)
    torch.testing.assert_close(model(inputs_embeds=x, **decoder_ids).logits, wanted, rtol=1e-5, atol=1e-5)


def test_another_kind_of_peft_adapter_is_refused(tmp_path):
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q"])
    quietly(quietly(peft.get_peft_model, tiny_t5(), config).save_pretrained, tmp_path)
    refused(tmp_path, "holds a PEFT adapter of type LORA, which is no prompt; wanted one of PROMPT_TUNING, P_TUNING")
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    quietly(quietly(peft.get_peft_model, tiny_t5(), config).save_pretrained, tmp_path)
    refused(
        tmp_path, r"holds keys and values for an encoder-decoder \(PREFIX_TUNING\); only decoder-only models take them"
    )
    (tmp_path / "adapter_config.json").write_text('{"config": {"architecture": "lora"}}')  # of another library
    refused(tmp_path, "adapter_config.json names no peft_type, so it is not an adapter of PEFT's")


def test_a_pipe_or_a_device_is_no_prompt_and_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "encoder.prompt.prompt.prompt")
    for place in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "folder"):
        for kind in (None, "t5x"):
            with pytest.raises(ValueError, match=r" is a folder, a pipe or a device; give a file"):
                read_prompt(place, kind)


def test_two_cannot_convert_into_one_place(tmp_path):
    save_prompt(prompt(), tmp_path / "a")
    for kind, place in (("t5x", tmp_path / "b.npy"), ("peft", tmp_path / "b")):
        with held(place, is_file=kind == "t5x"), ThreadPoolExecutor() as pool:
            told = pool.submit(convert, tmp_path / "a", place, to_kind=kind).exception()
        assert f"{place} is being written by process {os.getpid()} (" in str(told)
        assert not place.exists()
