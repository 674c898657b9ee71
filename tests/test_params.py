"""Parameter counts: the paper's table 4 and figure 4 entry by entry, and real modules."""

import json

import pytest
import torch
from conftest import T5, make_llama, make_tokenizer, tiny_lm
from transformers import T5Config, T5ForConditionalGeneration

from softprompt.cli.command_line import main
from softprompt.models.loading import read_architecture
from softprompt.models.shapes import SIZES, Architecture
from softprompt.study.paper import SIZES as PAPER_SIZES
from softprompt.study.params import counts, figure_4, prefix_numbers, t5, table_4
from softprompt.study.weights import make_tuning

TABLE_4 = {  # as it is printed: trained, in all, and their share in percent to five places, some cut and not rounded
    "small": {
        1: (512, 76_961_664, 0.00067),
        5: (2_560, 76_963_712, 0.00333),
        20: (10_420, 76_971_572, 0.01330),
        50: (25_600, 76_986_752, 0.03325),
        100: (51_200, 77_012_352, 0.06648),
        150: (76_800, 77_037_952, 0.09969),
    },
    "base": {
        1: (768, 247_578_624, 0.00031),
        5: (3_840, 247_581_696, 0.00155),
        20: (15_360, 247_593_216, 0.00620),
        50: (38_400, 247_616_256, 0.01551),
        100: (76_800, 247_654_656, 0.03101),
        150: (115_200, 247_693_056, 0.04651),
    },
    "large": {
        1: (1_024, 783_151_104, 0.00013),
        5: (5_120, 783_155_200, 0.00065),
        20: (20_480, 783_170_560, 0.00262),
        50: (51_200, 783_201_280, 0.00654),
        100: (102_400, 783_252_480, 0.01907),
        150: (153_600, 783_303_680, 0.01961),
    },
    "xl": {
        1: (2_048, 2_849_759_232, 0.00007),
        5: (10_240, 2_849_767_424, 0.00036),
        20: (40_960, 2_849_798_144, 0.00143),
        50: (102_400, 2_849_859_584, 0.00359),
        100: (204_800, 2_849_961_984, 0.00718),
        150: (307_200, 2_850_064_384, 0.01078),
    },
    "xxl": {
        1: (4_096, 11_135_336_448, 0.00004),
        5: (20_480, 11_135_352_832, 0.00018),
        20: (81_920, 11_135_414_272, 0.00074),
        50: (204_800, 11_137_380_352, 0.00184),
        100: (409_600, 11_135_741_952, 0.00368),
        150: (614_400, 11_135_946_752, 0.00552),
    },
}


def test_table_4_is_the_papers_entry_by_entry_but_for_its_misprints():
    rows = table_4()
    assert [(row.size, row.length) for row in rows] == [(s, p) for s in PAPER_SIZES for p in (1, 5, 20, 50, 100, 150)]
    for row in rows:
        trainable, total, percent = TABLE_4[row.size][row.length]
        wrong = []
        if trainable != row.trainable:
            wrong.append(f"prints {trainable:,} trainable")
        if total != row.total:
            wrong.append(f"prints {total:,} in all")
        if abs(percent - row.percent) > 1e-5:
            wrong.append(f"prints {percent:.5f} %")
        assert list(row.misprints) == wrong
    assert sum(bool(row.misprints) for row in rows) == 3


def test_figure_4_is_the_papers_but_for_prefix_tuning_on_small():
    for line in figure_4():
        differs = line.size == "small" and line.method.startswith("prefix")
        assert bool(line.reason) == differs
        assert (line.counted == pytest.approx(line.paper, rel=2e-3)) == (not differs)


@pytest.mark.parametrize("size", PAPER_SIZES)
def test_a_real_t5_has_as_many_weights(size):
    shape = SIZES[size]
    config = T5Config(
        vocab_size=32_128, d_model=shape.d_model, d_ff=shape.d_ff, num_heads=shape.num_heads, d_kv=shape.d_kv,
        num_layers=shape.num_layers, num_decoder_layers=shape.num_decoder_layers, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    tied = model.lm_head.weight is model.shared.weight
    count = sum(parameter.numel() for parameter in model.parameters())
    assert t5(size).num_parameters == count + tied * model.shared.weight.numel()


def test_a_prompt_of_pefts_has_as_many_numbers():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7, num_transformer_submodules=1)
    model = make_llama()
    wanted = dict(counts(t5("small"), [7]))["prompt tuning"][0] / t5("small").width * model.config.hidden_size
    assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == wanted


@pytest.mark.parametrize(
    ("kind", "layers", "heads", "width"), [("t5", 2, 2, 8), ("llama", 2, 1, 8), ("gpt2", 2, 2, 8), ("gemma3", 2, 1, 8)]
)
def test_prefix_tuning_has_as_many_numbers_as_its_module_and_the_papers_is_called_so(
    tmp_path, kind, layers, heads, width
):
    lm = tiny_lm(kind)
    found = make_tuning("prefix-tuning", lm, prompt_length=5, seed=0)
    assert prefix_numbers(5, layers, heads, width) == len(found.start)
    assert sum(values.numel() for values in found.in_use(found.start).values()) == len(found.start)
    lm.model.save_pretrained(tmp_path)
    assert dict(counts(read_architecture(tmp_path), [5]))["prefix tuning (softprompt compare's)"] == [len(found.start)]
    papers = dict(counts(Architecture(kind, lm.width, layers * (1 + lm.is_encoder_decoder), 0), [5]))
    assert papers["prefix tuning, inference (the paper's count)"] != [len(found.start)]
    assert "prefix tuning, inference" not in papers


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_size_is_read_from_its_configuration(tmp_path, tied):
    config = T5Config(**T5 | {"scale_decoder_outputs": tied})
    config.save_pretrained(tmp_path)
    found = read_architecture(tmp_path)
    model = T5ForConditionalGeneration(T5Config(**T5))
    count = sum(p.numel() for name, p in model.named_parameters() if "lm_head" not in name)
    assert found.num_parameters == count + (not tied) * T5["vocab_size"] * T5["d_model"]
    assert (found.width, found.num_layers) == (T5["d_model"], 4)


def test_a_decoder_only_models_size_is_its_modules(tmp_path):
    model = make_llama()
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert read_architecture(tmp_path).num_parameters == model.num_parameters()


def test_the_command(capsys, tmp_path):
    assert main(["params"]) == 0
    shown = capsys.readouterr().out
    assert "Small  20      10,240   76,971,392      0.01330 %  * prints 10,420 trainable" in shown
    assert "prefix tuning, inference on Small: the paper counts 6 + 6 layers" in shown
    assert main(["params", "--model", "bundled/t5-mini", "--prompt-length", "20,100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["methods"]["prefix tuning, inference (the paper's count)"] == [20 * 256 * 10, 100 * 256 * 10]
    assert found["methods"]["prompt tuning"] == [20 * 256, 100 * 256]
    assert found["num_parameters"] == SIZES["mini"].num_parameters + 2 * 8_192 * 256
    assert main(["params", "--model", "bundled/t5-mini"]) == 0
    assert "What softprompt compare trains is PEFT's:\n2 x p x layers x heads of keys" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--prompt-length", "20"], "--prompt-length goes with --model; without it the lengths are those of the"),
        (["--model", "bundled/t5-mini", "--prompt-length", "0"], "a prompt of 0 tokens cannot be; give lengths of 1"),
        (["--model", "bundled/t5-mimi"], "no model named 'bundled/t5-mimi'; did you mean 'bundled/t5-mini'?"),
    ],
)
def test_mistakes_are_said(capsys, words, reason):
    assert main(["params", *words]) == 2
    assert reason in capsys.readouterr().err
