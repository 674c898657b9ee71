"""Which types of models are taken: what they give is what transformers and PEFT give, and the others are refused."""

import copy
import json
import re
import warnings
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from softprompt.answering.engine import Engine
from softprompt.answering.rows import surroundings
from softprompt.answering.running import generate
from softprompt.base.files import write_whole
from softprompt.base.names import first_line
from softprompt.models import T5_TYPES, FrozenLM, probe
from softprompt.models.loading import load, quiet
from softprompt.models.probe import check_type, tiny_model
from softprompt.models.text import Row

TYPES = sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES})
TAKEN = [
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gemma3", "phi", "gpt2", "gpt_neox"),
    *("opt", "smollm3", "granite", "olmo2", "gpt_oss", "t5", "mt5", "umt5"),
]
# Of released models, what their configurations change of their type's.
LLAMA_3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
RELEASED = {
    "Llama 3.2": ("llama", {
        "hidden_size": 2048, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, **LLAMA_3_ROPE},
        "tie_word_embeddings": True, "eos_token_id": [128001, 128008, 128009],
    }),
    "Qwen 2.5": ("qwen2", {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 21}),
    "Gemma 3 4B": ("gemma3", {
        "text_config": {"hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152, "num_hidden_layers": 27, "patch_size": 14, "image_size": 896},
    }),
    "Phi 3.5 mini": ("phi3", {
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
            "short_factor": [1.0 + i / 48 for i in range(48)], "long_factor": [1.0 + i for i in range(48)],
        },
    }),
    "OPT 350M": ("opt", {
        "hidden_size": 1024, "ffn_dim": 4096, "num_attention_heads": 16, "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
    }),
    "Flan-T5 XXL": ("t5", {
        "d_model": 4096, "d_ff": 10240, "num_heads": 64, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }),
    "ByT5": ("t5", {
        "vocab_size": 384, "d_model": 1472, "d_ff": 3584, "num_layers": 12, "num_decoder_layers": 4, "num_heads": 6,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }),
}  # fmt: skip
# What types need that is None by default.
NEEDED = {
    "deepseek_v2": {"num_experts_per_tok": 6},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
}
RESULTS = Path(__file__).parent.parent / "results" / "types.jsonl"
CANDIDATES = [(8, 9, 10, 1), (12, 1)]
TOLERANCE = 1e-3
REFUSED = re.compile(r".*? is of type .*?, which (.*); give a Llama-type, Gemma, Qwen, GPT-2 or T5")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(probe, "_found", {})


def class_of(config):
    """transformers' class for this configuration."""
    kinds = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    return kinds[type(config)]


def tiny_of(config):
    return tiny_model(class_of(config), config)


def default_config(kind):
    fields = {"decoder_start_token_id": 0} if kind in T5_TYPES else NEEDED.get(kind, {})
    return CONFIG_MAPPING[kind](**fields)


def ids_of(length, seed):
    return torch.randint(14, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def log_prob(logits, target):
    return -float(torch.nn.functional.cross_entropy(logits[-len(target) :].float(), target, reduction="sum"))


@torch.no_grad()
def plain_score(model, prompt, ids, target):
    """log p of a target after prompt and input by transformers' own pass of one row."""
    table, target = model.get_input_embeddings(), torch.tensor(target)
    front = torch.cat([prompt, table(torch.tensor(ids))])
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        logits = model(inputs_embeds=front[None], decoder_input_ids=torch.cat([start, target[:-1]])[None]).logits[0]
    else:
        logits = model(inputs_embeds=torch.cat([front, table(target[:-1])])[None], use_cache=False).logits[0]
    return log_prob(logits, target)


def largest_difference(model):
    """Of a log-probability, between a batch of rows with unlike prompts and lengths and each row alone."""
    lm = FrozenLM(copy.deepcopy(model), make_tokenizer(), name="tiny")
    draw = torch.Generator().manual_seed(3)
    prompts = [torch.randn(length, lm.width, generator=draw) for length in (4, 9)]
    rows = [Row(tuple(ids_of(length, length)), (), False, 0) for length in (3, 17, 8, 11)]
    worn = [0, 1, -1, 1]
    scores = Engine(lm, prompts).label_scores(rows, worn, [CANDIDATES] * len(rows))
    largest = 0.0
    for row, member, found in zip(rows, worn, scores, strict=True):
        prompt = prompts[member] if member >= 0 else prompts[0][:0]
        for target, score in zip(CANDIDATES, found, strict=True):
            largest = max(largest, abs(score - plain_score(model, prompt, row.ids, target)))
    written = generate(lm, Engine(lm, prompts).inputs(rows, worn), max_tokens=6)
    for row, member, ids, score in zip(rows, worn, written.ids, written.log_probs, strict=True):
        prompt = prompts[member] if member >= 0 else prompts[0][:0]
        target = ids if len(ids) == 6 else [*ids, lm.tokenizer.eos_id]
        largest = max(largest, abs(score - plain_score(model, prompt, row.ids, target)))
    return largest


@pytest.mark.parametrize("name", [*TAKEN, *RELEASED])
def test_these_types_give_what_transformers_gives(name, tmp_path):
    kind, fields = RELEASED.get(name, (name, None))
    config = default_config(kind) if fields is None else CONFIG_MAPPING[kind](**fields)
    check_type(class_of(config), config, name, tmp_path)
    with quiet():
        assert largest_difference(tiny_of(config)) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("gpt_neo", "which gives a row other numbers in a padded batch with prompts than alone; give a Llama-type"),
        ("gptj", "which gives a text other numbers token by token than in one pass; give a Llama-type"),
        ("falcon", "which gives a row other numbers in a padded batch with prompts than alone"),
        ("deepseek_v3", "which cannot be run on embeddings with masks and positions (Expected size"),
        ("bloom", "which does not take the positions of its tokens"),
        ("bart", "is of type 'bart', which is an encoder-decoder other than t5, mt5, umt5; give a Llama-type"),
    ],
)
def test_these_are_refused_before_their_weights_are_read(kind, why, tmp_path):
    config = default_config(kind)
    config.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError) as raised:
        load(tmp_path / "model", device="cpu")
    assert str(raised.value).startswith(str(tmp_path / "model")) and why in str(raised.value)


class ReadsIds(LlamaForCausalLM):
    """A type nobody has thought of: its ids say more than their embeddings."""

    def forward(self, input_ids=None, **options):
        output = super().forward(input_ids=input_ids, **options)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None] * output.logits.roll(1, -1) / 50
        return output


class OwnWindow(LlamaForCausalLM):
    """A type nobody has thought of: a window of its own, whatever its configuration says."""

    def __init__(self, config):
        super().__init__(config)
        self.model.layers[1].self_attn.register_forward_pre_hook(self.narrow, with_kwargs=True)

    @staticmethod
    def narrow(module, arguments, options):
        x = options["hidden_states"]
        near = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril().triu(-6)
        mask = options["attention_mask"]
        if mask is None or mask.shape[-1] == x.shape[1]:
            options["attention_mask"] = near[None, None] if mask is None else mask & near
        return arguments, options


@pytest.mark.parametrize(
    ("kind", "why"), [(ReadsIds, "reads the ids of its tokens beside their embeddings"), (OwnWindow, "than alone")]
)
def test_types_nobody_has_thought_of_are_found_out(kind, why):
    plain = make_model("llama")
    FrozenLM(copy.deepcopy(plain), make_tokenizer(), name="tiny")
    with pytest.raises(ValueError, match=f"tiny is of type 'llama', which .*{why}"):
        FrozenLM(kind(plain.config), make_tokenizer(), name="tiny")


def test_what_was_found_is_kept_by_type_versions_and_attention(tmp_path, monkeypatch):
    config = default_config("gptj")
    with pytest.raises(ValueError, match="token by token"):
        check_type(class_of(config), config, "tiny", tmp_path)
    (kept,) = (tmp_path / "types").glob("gptj-*.txt")
    assert kept.read_text() == "gives a text other numbers token by token than in one pass\n"
    monkeypatch.setattr(probe, "_found", {})
    monkeypatch.setattr(probe, "_fault_of_copy", lambda *_: "is tried out again")
    with pytest.raises(ValueError, match="token by token"):
        check_type(class_of(config), config, "tiny", tmp_path)
    config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="is tried out again"):
        check_type(class_of(config), config, "tiny", tmp_path)


def test_trying_a_type_out_leaves_random_numbers_as_they_are(tmp_path):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    config = default_config("llama")
    check_type(class_of(config), config, "tiny", tmp_path / "no" / "such")
    assert torch.equal(torch.rand(3), wanted)


def peft_difference(model):
    """As `largest_difference`, of one row with a prompt, from PEFT's."""
    from peft import PromptTuningConfig, get_peft_model

    prompt = torch.randn(4, model.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(3))
    kind = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    sizes = {"num_layers": 1, "num_attention_heads": 1, "token_dim": prompt.shape[1], "num_transformer_submodules": 1}
    wrapped = get_peft_model(copy.deepcopy(model), PromptTuningConfig(task_type=kind, num_virtual_tokens=4, **sizes))
    wrapped.eval().prompt_encoder["default"].embedding.weight.data = prompt
    ids, target = torch.tensor([ids_of(11, 1)]), torch.tensor(CANDIDATES[0])
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            start = torch.tensor([model.config.decoder_start_token_id])
            options = {"decoder_input_ids": torch.cat([start, target[:-1]])[None]}
            logits = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), **options).logits[0]
        else:
            whole = torch.cat([ids, target[None, :-1]], 1)
            logits = wrapped(input_ids=whole, attention_mask=torch.ones_like(whole)).logits[0]
    lm = FrozenLM(copy.deepcopy(model), make_tokenizer(), name="tiny")
    row = Row(tuple(ids[0].tolist()), (), False, 0)
    ((score,),) = Engine(lm, [prompt]).label_scores([row], [0], [[CANDIDATES[0]]])
    return abs(score - log_prob(logits, target))


def outcome(kind, folder):
    """A type's row: exact, refused with the reason, not built, or wrong."""
    try:
        config = default_config(kind)
        model_class = class_of(config)
    except Exception as error:
        return {"outcome": "not built", "reason": first_line(error)[:200]}
    try:
        check_type(model_class, config, kind, folder)
    except ValueError as error:
        return {"outcome": "refused", "reason": REFUSED.fullmatch(str(error))[1]}
    model = tiny_of(config)
    found = {"largest": largest_difference(model)}
    try:
        found["peft"] = peft_difference(model)
    except Exception as error:
        found["without_peft"] = first_line(error)[:200]
    is_exact = max(found["largest"], found.get("peft", 0.0)) < TOLERANCE
    return {"outcome": "exact" if is_exact else "wrong", **found}


@pytest.fixture(scope="module")
def table():
    """The committed rows by type, written again at the end."""
    rows = {row["type"]: row for row in map(json.loads, RESULTS.read_text().splitlines())} if RESULTS.exists() else {}
    yield rows
    write_whole(RESULTS, "".join(json.dumps(rows[kind]) + "\n" for kind in sorted(rows)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_transformers_is_exact_or_refused(kind, table, tmp_path):
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        row = outcome(kind, tmp_path)
    where = surroundings(torch.device("cpu"), torch.float32)
    table[kind] = {"experiment": "types", "type": kind, **row, **where, "command": "make slow"}
    assert row["outcome"] != "wrong", row
    assert kind not in TAKEN or row["outcome"] == "exact", row


def test_a_model_for_short_texts_is_tried_with_rows_longer_than_its_own(tmp_path):
    model = make_model("gpt2", n_positions=64)
    assert model.config.n_positions == 64
    check_type(type(model), model.config, "short", tmp_path)
