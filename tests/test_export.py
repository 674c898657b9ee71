"""A model exported with prompts as vocabulary answers as the engine does: equality 9 of the design.

Plain transformers and CTranslate2 read nothing but the folder. Log-probabilities are of order 1 to 10.
"""

import json
import re
import resource
import shutil

import pytest
import torch
from conftest import FAMILIES, make_model, make_tokenizer, spread, tiny_lm
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from softprompt.answering.engine import Engine
from softprompt.answering.running import generate
from softprompt.models.loading import load
from softprompt.models.text import default_format, encode_all_inputs, encode_examples
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.prompts import export as export_module
from softprompt.prompts.export import MANIFEST, export_vocabulary
from softprompt.tasks import Example

TOLERANCE = 1e-5
NUM_IDS = 340  # of the tiny models, ten more than their tokenizer has
MAX_TOKENS = 6
TEXTS = ["the film is warm", "a dull and lifeless story that never finds its end, like rain in the night", "sea"]
CASES = [*((kind, {}) for kind in FAMILIES), ("llama", {"tie_word_embeddings": True})]


def save_model(folder, kind, *, model=None, tokenizer=None, **changes):
    (model or make_model(kind, **changes)).save_pretrained(folder)
    (tokenizer or make_tokenizer(bos=kind == "llama")).save_pretrained(folder)
    return folder


def make_prompt(lm, length=5, *, seed=1, values=None, **card):
    if values is None:
        values = torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))
    known = {
        "model_name": lm.name,
        "model_fingerprint": lm.fingerprint,
        "is_encoder_decoder": lm.is_encoder_decoder,
        "width": lm.width,
        "text": default_format(lm).to_json(),
    }
    return SoftPrompt(values, Card(**known | card))


def export(base, out, *, dtype="float32", **prompts):
    """Export the model of the folder `base` with prompts, two unless given; the engine's model, and the prompts."""
    lm = load(base, dtype=dtype, device="cpu")
    prompts = prompts or {"film": make_prompt(lm), "rain": make_prompt(lm, 9, seed=2)}
    export_vocabulary(prompts, out, model=base, dtype=dtype)
    return lm, prompts


def opened(folder):
    """The folder as transformers reads it."""
    is_encoder_decoder = json.loads((folder / "config.json").read_text()).get("is_encoder_decoder")
    kind = AutoModelForSeq2SeqLM if is_encoder_decoder else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype="auto").eval(), AutoTokenizer.from_pretrained(folder)


def entry_of(folder, name="film"):
    return json.loads((folder / MANIFEST).read_text())["prompts"][name]


def worn_ids(tokenizer, entry, text):
    """A text that wears a prompt, as one string through the folder's own tokenizer."""
    joined = entry["prefix"] + text + entry["suffix"]
    return tokenizer(joined, add_special_tokens=entry["add_special_tokens"]).input_ids


def rows_of(lm):
    examples = [Example(inputs=text, targets="-", id="", references=()) for text in TEXTS]
    return encode_examples(examples, default_format(lm), lm.tokenizer, with_targets=False)


def engine_answer(engine, row, place):
    """The greedy ids and their log-probability, the end of sequence included."""
    (ids,), (log_prob,) = generate(engine.lm, engine.inputs([row], [place]), max_tokens=MAX_TOKENS)
    return ids, log_prob


def plain_answer(model, ids):
    """The same from transformers' own generate."""
    ids = torch.tensor([ids])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS, pad_token_id=0,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    new = out.sequences[0, -len(out.scores) :].tolist()
    log_prob = sum(float(step[0].float().log_softmax(-1)[id]) for step, id in zip(out.scores, new, strict=True))
    return new[:-1] if new[-1] == 1 else new, log_prob


@torch.no_grad()
def plain_logits(model, ids, written=()):
    """The next logits after ids and what was written already."""
    if model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([[0, *written]])).logits[0, -1]
    return model(input_ids=torch.tensor([[*ids, *written]])).logits[0, -1]


def plain_score(model, ids, label):
    """log p of a label among the ids that the model had."""
    steps = [plain_logits(model, ids, label[:n])[:NUM_IDS].float().log_softmax(-1) for n in range(len(label))]
    return float(sum(step[id] for step, id in zip(steps, label, strict=True)))


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_plain_transformers_answers_from_the_folder_as_the_engine_does(kind, changes, tmp_path):
    lm, prompts = export(save_model(tmp_path / "base", kind, **changes), tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out")
    engine = Engine(lm, [prompt.values for prompt in prompts.values()])
    labels = [(9, 1), (20, 21, 1)]
    different = set()
    for place, name in enumerate(prompts):
        entry = entry_of(tmp_path / "out", name)
        for text, row in zip(TEXTS, rows_of(lm), strict=True):
            ids = worn_ids(tokenizer, entry, text)
            written, log_prob = engine_answer(engine, row, place)
            found, total = plain_answer(model, ids)
            assert found == written
            assert total == pytest.approx(log_prob, abs=TOLERANCE)
            (scores,) = engine.label_scores([row], [place], [labels])
            assert [plain_score(model, ids, label) for label in labels] == pytest.approx(scores, abs=TOLERANCE)
            different.add(round(scores[0], 3))
    assert len(different) > 3


@pytest.mark.parametrize("kind", ["t5", "t5-1.0", "llama", "gemma", "gpt2"])
def test_in_bfloat16_the_folder_differs_from_the_engine_by_rounding_only(kind, tmp_path):
    base = save_model(tmp_path / "base", kind)
    lm, prompts = export(base, tmp_path / "out", dtype="bfloat16")
    model, tokenizer = opened(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    values = [prompt.values for prompt in prompts.values()]
    rounded, exact = Engine(lm, values), Engine(load(base, dtype="float32", device="cpu"), values)
    off, cost = [], []
    for place, name in enumerate(prompts):
        for text, row in zip(TEXTS, rows_of(lm), strict=True):
            label = (20, 21, 1)
            ((ours,),), ((best,),) = (engine.label_scores([row], [place], [[label]]) for engine in (rounded, exact))
            theirs = plain_score(model, worn_ids(tokenizer, entry_of(tmp_path / "out", name), text), label)
            off.append(abs(theirs - ours))
            cost.append(abs(ours - best))
    assert max(cost) > 0  # bfloat16 rounds; where the processor multiplies in it, both may round alike
    assert max(off) <= 2 * max(cost)  # no more than bfloat16 itself costs


@pytest.mark.parametrize(("kind", "changes"), CASES)
def test_the_models_own_weights_stay_as_they_are_to_the_bit(kind, changes, tmp_path):
    base = save_model(tmp_path / "base", kind, **changes)
    _, prompts = export(base, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    num_new = sum(prompt.length for prompt in prompts.values())
    assert set(after) == {*before, "lm_head.weight"}
    for name, tensor in before.items():
        assert torch.equal(after[name][: len(tensor)], tensor)
        assert len(after[name]) == (NUM_IDS + num_new if len(tensor) == NUM_IDS else len(tensor))
    assert load(tmp_path / "out", dtype="float32", device="cpu").tokenizer.size == NUM_IDS + num_new


def test_without_a_type_the_checkpoints_own_is_kept(tmp_path):
    base = save_model(tmp_path / "base", "llama", model=make_model("llama").bfloat16())
    export_vocabulary({"a": make_prompt(load(base))}, tmp_path / "out", model=base)
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_the_cases_have_tied_and_untied_output_layers():
    def is_tied(kind, changes):
        model = make_model(kind, **changes)
        return model.get_input_embeddings().weight is model.get_output_embeddings().weight

    tied = [kind for kind, changes in CASES if is_tied(kind, changes)]
    assert tied == ["t5-1.0", "umt5", "gpt2", "gemma", "gemma2", "gemma3", "llama"]


# It has no soft caps and no layers that differ in their window, so Gemma 2 and 3 and Qwen 2's window are left out.
# The second number bounds how far its log-probabilities are from transformers': its T5's are off by 0.002 on the
# bare model too.
ELSEWHERE = {"t5": 0.01, "t5-1.0": 0.01, "mt5": 0.01, "llama": 1e-5, "gpt2": 1e-5, "gemma": 1e-5, "qwen3": 1e-5}


def converted(folder, place, *, is_scaled):
    """The folder in CTranslate2's own form, and what runs it."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the other engine is CTranslate2; pip install ctranslate2")
    from ctranslate2.converters import TransformersConverter

    class Converter(TransformersConverter):
        def load_model(self, *args, **options):
            model = super().load_model(*args, **options)
            if not is_scaled:  # CTranslate2 4.8 takes every T5 that transformers 5 loads for one with scaled outputs
                model.config.tie_word_embeddings = False
            return model

    Converter(str(folder)).convert(str(place))
    is_encoder_decoder = json.loads((folder / "config.json").read_text()).get("is_encoder_decoder")
    kind = ctranslate2.Translator if is_encoder_decoder else ctranslate2.Generator
    return kind(str(place), device="cpu", intra_threads=1)


def answer_elsewhere(engine, tokenizer, ids, **options):
    """CTranslate2's greedy answer as ids, and its log-probability."""
    options |= {"beam_size": 1, "length_penalty": 0, "return_scores": True}
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if hasattr(engine, "translate_batch"):
        (result,) = engine.translate_batch([tokens], max_decoding_length=MAX_TOKENS, **options)
        return tokenizer.convert_tokens_to_ids(result.hypotheses[0]), result.scores[0]
    (result,) = engine.generate_batch([tokens], max_length=MAX_TOKENS, include_prompt_in_result=False, **options)
    return result.sequences_ids[0], result.scores[0]


@pytest.mark.parametrize("kind", [*ELSEWHERE])
def test_ctranslate2_answers_from_the_folder_as_the_engine_does(kind, tmp_path):
    lm, prompts = export(save_model(tmp_path / "base", kind), tmp_path / "out")
    other = converted(tmp_path / "out", tmp_path / "other", is_scaled=False)
    _, tokenizer = opened(tmp_path / "out")
    barred = [[token] for token in tokenizer.convert_ids_to_tokens(range(NUM_IDS, len(tokenizer)))]
    engine = Engine(lm, [prompt.values for prompt in prompts.values()])
    for place, name in enumerate(prompts):
        for text, row in zip(TEXTS, rows_of(lm), strict=True):
            ids = worn_ids(tokenizer, entry_of(tmp_path / "out", name), text)
            written, log_prob = engine_answer(engine, row, place)
            assert answer_elsewhere(other, tokenizer, ids)[0] == written
            found, total = answer_elsewhere(other, tokenizer, ids, suppress_sequences=barred)
            assert found == written
            assert total == pytest.approx(log_prob, abs=ELSEWHERE[kind])


def test_ctranslate2_as_it_comes_writes_a_t5s_answers_too(tmp_path):
    lm, prompts = export(save_model(tmp_path / "base", "t5"), tmp_path / "out")
    other = converted(tmp_path / "out", tmp_path / "other", is_scaled=True)
    _, tokenizer = opened(tmp_path / "out")
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = worn_ids(tokenizer, entry_of(tmp_path / "out"), text)
        assert answer_elsewhere(other, tokenizer, ids)[0] == engine_answer(engine, row, 0)[0]


@pytest.mark.parametrize(("kind", "changes"), [("gpt2", {}), ("llama", {"tie_word_embeddings": True})])
def test_ctranslate2_does_not_write_a_prompt_that_would_win_every_step(kind, changes, tmp_path):
    base = save_model(tmp_path / "base", kind, **changes)
    lm = load(base, dtype="float32", device="cpu")
    prompts = {"film": winning_prompt(lm)}
    export(base, tmp_path / "out", **prompts)
    other = converted(tmp_path / "out", tmp_path / "other", is_scaled=False)
    _, tokenizer = opened(tmp_path / "out")
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = worn_ids(tokenizer, entry_of(tmp_path / "out"), text)
        assert answer_elsewhere(other, tokenizer, ids)[0] == engine_answer(engine, row, 0)[0]


def unprotected(base, prompts):
    """The model as one would extend it by hand: the output layer tied to a table with the prompts in it."""
    model, _ = opened(base)
    values = torch.cat([prompt.values for prompt in prompts.values()])
    model.resize_token_embeddings(NUM_IDS + len(values), mean_resizing=False)
    embedding = model.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[NUM_IDS:] = values / getattr(embedding, "embed_scale", 1.0)
    return model


def winning_prompt(lm):
    """Large rows, and their opposites: whatever the state, one of a pair has a logit far above all others."""
    half = torch.randn(4, lm.width, generator=torch.Generator().manual_seed(3)) * 50
    return make_prompt(lm, values=torch.cat([half, -half]))


@pytest.mark.parametrize(
    ("kind", "changes"), [("t5-1.0", {}), ("gpt2", {}), ("gemma", {}), ("llama", {"tie_word_embeddings": True})]
)
def test_a_prompt_that_would_win_every_step_of_a_tied_output_layer_is_never_written(kind, changes, tmp_path):
    base = save_model(tmp_path / "base", kind, **changes)
    lm = load(base, dtype="float32", device="cpu")
    prompts = {"film": winning_prompt(lm)}
    export(base, tmp_path / "out", **prompts)
    model, tokenizer = opened(tmp_path / "out")
    model.generation_config.suppress_tokens = None
    rival = unprotected(base, prompts)
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = worn_ids(tokenizer, entry_of(tmp_path / "out"), text)
        assert max(plain_answer(rival, ids)[0]) >= NUM_IDS
        assert plain_answer(model, ids)[0] == engine_answer(engine, row, 0)[0]


def test_where_all_logits_are_below_zero_the_new_ids_are_not_written_either(tmp_path):
    made = make_model("gpt2", tie_word_embeddings=False)
    made.transformer.ln_f.bias.data.fill_(1.0)
    made.lm_head.weight.data -= 3.0
    base = save_model(tmp_path / "base", "gpt2", model=made)
    lm, prompts = export(base, tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out")
    model.generation_config.suppress_tokens = None
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = worn_ids(tokenizer, entry_of(tmp_path / "out"), text)
        assert plain_logits(model, ids).max() < 0  # so rows of zeros would be written
        assert plain_answer(model, ids)[0] == engine_answer(engine, row, 0)[0]


@pytest.mark.parametrize("kind", ["t5", "t5-1.0", "llama", "gpt2", "gemma"])
def test_a_new_id_has_the_mean_of_all_logits(kind, tmp_path):
    export(save_model(tmp_path / "base", kind), tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out")
    for text in TEXTS:
        logits = plain_logits(model, worn_ids(tokenizer, entry_of(tmp_path / "out"), text))
        assert logits[NUM_IDS:] == pytest.approx(float(logits[:NUM_IDS].mean()), abs=TOLERANCE)
        assert int(logits.argmax()) < NUM_IDS


def test_sampling_writes_no_new_id_even_at_a_high_temperature(tmp_path):
    export(save_model(tmp_path / "base", "llama"), tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out")
    ids = torch.tensor([worn_ids(tokenizer, entry_of(tmp_path / "out"), TEXTS[0])] * 64)
    torch.manual_seed(0)
    options = {"attention_mask": torch.ones_like(ids), "do_sample": True, "temperature": 100.0, "top_k": 0}
    assert model.generate(ids, **options, max_new_tokens=20)[:, ids.shape[1] :].max() < NUM_IDS
    model.generation_config.suppress_tokens = None
    assert model.generate(ids, **options, max_new_tokens=20)[:, ids.shape[1] :].max() >= NUM_IDS


def test_what_the_model_itself_suppresses_is_kept(tmp_path):
    made = make_model("llama")
    made.generation_config.suppress_tokens = [7]
    export(save_model(tmp_path / "base", "llama", model=made), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["suppress_tokens"] == [7, *range(340, 354)]


def test_an_output_layer_with_a_bias_rules_the_new_ids_out_by_itself(tmp_path):
    from transformers import PhiConfig, PhiForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = spread(PhiForCausalLM(PhiConfig(vocab_size=NUM_IDS, **sizes, eos_token_id=1, bos_token_id=3)))
    lm, prompts = export(save_model(tmp_path / "base", "phi", model=made), tmp_path / "out")
    model, tokenizer = opened(tmp_path / "out")
    engine = Engine(lm, [prompts["film"].values])
    (row, *_) = rows_of(lm)
    logits = plain_logits(model, worn_ids(tokenizer, entry_of(tmp_path / "out"), TEXTS[0]))
    ((score,),) = engine.label_scores([row], [0], [[(20,)]])
    assert float(logits.log_softmax(-1)[20]) == pytest.approx(score, abs=TOLERANCE)
    assert logits[NUM_IDS:].exp().sum() == 0


@pytest.mark.parametrize(
    ("kind", "between", "suffix", "before", "after"),
    [
        ("llama", "<s>", "\nanswer:", [3], "\nanswer:"),
        ("gpt2", "", "\nanswer:", [], "\nanswer:"),
        ("t5", "", "</s>", [], "</s>"),
    ],
)
def test_begin_and_end_of_sequence_stand_where_the_engine_has_them(kind, between, suffix, before, after, tmp_path):
    lm, _ = export(save_model(tmp_path / "base", kind), tmp_path / "out", a=make_prompt(tiny_lm(kind), 3))
    entry = entry_of(tmp_path / "out", "a")
    assert entry["prefix"] == "<a:0><a:1><a:2>" + between
    assert entry["suffix"] == suffix
    assert entry["add_special_tokens"] is (kind == "gpt2")
    assert entry["prompt_ids"] == [340, 341, 342]
    assert (entry["ids_before"], entry["ids_after"]) == (before, lm.tokenizer.encode(after))


def test_a_chat_template_stands_around_the_text(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<s>{{ m['content'] }} story\n{% endfor %}film:"
    base = save_model(tmp_path / "base", "qwen2", tokenizer=tokenizer)
    lm = load(base, dtype="float32", device="cpu")
    form = default_format(lm, chat=True, separator="", leading_space=False)
    export(base, tmp_path / "out", a=make_prompt(lm, 2, text=form.to_json()))
    entry = entry_of(tmp_path / "out", "a")
    assert (entry["prefix"], entry["suffix"]) == ("<a:0><a:1><s>", " story\nfilm:")
    _, tokenizer = opened(tmp_path / "out")
    for text, encoded in zip(TEXTS, encode_all_inputs(TEXTS, form, lm.tokenizer), strict=True):
        assert worn_ids(tokenizer, entry, text) == [340, 341, *encoded.ids]


def metaspace_tokenizer(scheme):
    """A tokenizer that writes a space in front of a text (`first`: but not behind an added token)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    specials = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([*TEXTS, *export_module.PROBES], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )  # fmt: skip


@pytest.mark.parametrize(("scheme", "space"), [("always", ""), ("first", " ")])
def test_a_space_stands_behind_the_tokens_where_the_tokenizer_needs_one(scheme, space, tmp_path):
    base = save_model(tmp_path / "base", "t5", tokenizer=metaspace_tokenizer(scheme))
    lm = load(base, dtype="float32", device="cpu")
    export(base, tmp_path / "out", a=make_prompt(lm, 2))
    entry = entry_of(tmp_path / "out", "a")
    assert (entry["prefix"], entry["suffix"], entry["add_special_tokens"]) == (f"<a:0><a:1>{space}", "", True)
    _, tokenizer = opened(tmp_path / "out")
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        assert worn_ids(tokenizer, entry, text) == [340, 341, *row.ids]


def test_where_no_string_gives_the_ids_there_are_only_ids(tmp_path):
    base = save_model(tmp_path / "base", "gpt2", tokenizer=metaspace_tokenizer("first"))
    lm, prompts = export(base, tmp_path / "out")
    entry = entry_of(tmp_path / "out")
    assert entry["prefix"] is None and entry["suffix"] is None
    model, _ = opened(tmp_path / "out")
    engine = Engine(lm, [prompts["film"].values])
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        ids = [*entry["prompt_ids"], *entry["ids_before"], *lm.tokenizer.encode(text), *entry["ids_after"]]
        assert plain_answer(model, ids)[0] == engine_answer(engine, row, 0)[0]
    assert "| film |  | `<film:0>` to `<film:4>` | only as ids |  |" in (tmp_path / "out" / "README.md").read_text()


def test_a_real_t5_vocabulary_adds_its_end_by_itself(data_folder, tmp_path):
    from transformers import T5Tokenizer

    source = data_folder.parent / "t5" / "spiece.model"
    if not source.is_file():
        pytest.skip("no T5 vocabulary beside SOFTPROMPT_DATA")
    (tmp_path / "vocabulary").mkdir()
    shutil.copy(source, tmp_path / "vocabulary")
    own = T5Tokenizer.from_pretrained(tmp_path / "vocabulary")
    base = save_model(tmp_path / "base", "t5", tokenizer=own, vocab_size=32128)
    lm = load(base, dtype="float32", device="cpu")
    export(base, tmp_path / "out", a=make_prompt(lm, 2))
    entry = entry_of(tmp_path / "out", "a")
    assert (entry["prefix"], entry["suffix"], entry["add_special_tokens"]) == ("<a:0><a:1>", "", True)
    _, tokenizer = opened(tmp_path / "out")
    assert tokenizer.convert_ids_to_tokens([32099, 32100, 32127, 32128]) == [
        "<extra_id_0>", "<|unused:32100|>", "<|unused:32127|>", "<a:0>",
    ]  # fmt: skip
    for text, row in zip(TEXTS, rows_of(lm), strict=True):
        assert worn_ids(tokenizer, entry, text) == [32128, 32129, *row.ids]


def test_the_manifest_says_what_a_server_must_know(tmp_path):
    base = save_model(tmp_path / "base", "t5")
    lm = load(base, dtype="float32", device="cpu")
    prompt = make_prompt(lm, 2, task="glue/rte", labels=("entailment", "not_entailment"))
    worn = export_vocabulary({"rte": prompt}, tmp_path / "out", model=base)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest == {
        "format_version": 1,
        "model": str(base),
        "model_fingerprint": lm.fingerprint,
        "dtype": "float32",
        "never_written": {"first": 340, "last": 341},
        "prompts": {
            "rte": {
                "prompt_ids": [340, 341],
                "ids_before": [],
                "ids_after": [1],
                "prefix": "<rte:0><rte:1>",
                "suffix": "</s>",
                "add_special_tokens": False,
                "task": "glue/rte",
                "labels": ["entailment", "not_entailment"],
                "text": prompt.card.text,
                "sha256": prompt.sha256,
            }
        },
    }
    assert worn["rte"].prefix == "<rte:0><rte:1>"


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_the_code_in_the_readme_answers_as_the_engine_does(kind, tmp_path, monkeypatch, capsys):
    lm, prompts = export(save_model(tmp_path / "base", kind), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n") and "ids 340 to 353" in text
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})
    example = Example(inputs="a warm and funny film", targets="-", id="", references=())
    (row,) = encode_examples([example], default_format(lm), lm.tokenizer, with_targets=False)
    (answer,) = Engine(lm, [prompts["film"].values]).generate([row], [0], max_target_length=16)
    assert capsys.readouterr().out.strip() == answer.text


def refused(words, prompts, out, **options):
    with pytest.raises(ValueError, match=words) as caught:
        export_vocabulary(prompts, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_names_that_cannot_be_tokens_are_refused(tmp_path):
    prompt = make_prompt(tiny_lm("llama"))
    refused("no prompt was given; name at least one", {}, tmp_path / "out")
    for name in ("", "a b", "a>", "<a", "_a", "é"):
        words = f"'{name}' cannot be the name of tokens; give one of letters, digits, '.', '_' and '-': NAME=DIR"
        refused(re.escape(words), {name: prompt}, tmp_path / "out")


def test_an_unknown_type_offers_the_nearest(tmp_path):
    words = "no dtype named 'float23'; did you mean 'float32'.; there are auto, float32, bfloat16, float16"
    refused(words, {"a": make_prompt(tiny_lm("llama"))}, tmp_path / "out", dtype="float23")


def test_a_prompt_of_another_model_is_refused_by_name(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    lm = load(base, dtype="float32", device="cpu")
    fits, other = make_prompt(lm), make_prompt(lm, model_name="other", model_fingerprint="ab" * 32)
    words = r"b: the prompt was trained for other \(fingerprint abababab, width 16\), but \S+base \(finger"
    refused(words, {"a": fits, "b": other}, tmp_path / "out", model=base)


@pytest.mark.filterwarnings("ignore:the prompt .* records no model fingerprint")
def test_a_bare_prompt_for_the_other_kind_of_model_is_refused(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    bare = make_prompt(tiny_lm("t5"), model_name=None, model_fingerprint=None)
    refused("the prompts do not record their model; give it with --model", {"a": bare}, tmp_path / "out")
    words = r"a: the prompt is for an encoder-decoder, and \S+base is a decoder-only model; give its own model"
    refused(words, {"a": bare}, tmp_path / "out", model=base)


def test_a_prompt_without_a_text_format_takes_the_models_usual_one(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    bare = make_prompt(load(base, dtype="float32", device="cpu"), 2, text={})
    with pytest.warns(UserWarning, match=r"^a does not record its text format; \S+base's usual one is taken$"):
        export_vocabulary({"a": bare}, tmp_path / "out", model=base)
    assert entry_of(tmp_path / "out", "a")["suffix"] == "\nanswer:"


def test_a_text_format_of_a_newer_version_is_refused(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    newer = make_prompt(load(base, dtype="float32", device="cpu"), text={"tone": "kind"})
    refused("a: the card's text format has unknown fields tone", {"a": newer}, tmp_path / "out", model=base)


def test_tokens_that_are_there_already_are_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<film:3>"])
    base = save_model(tmp_path / "base", "gpt2", tokenizer=tokenizer)
    prompts = {"film": make_prompt(load(base, dtype="float32", device="cpu"))}
    words = r"\S+base has a token <film:3> already; name the prompt film otherwise: NAME=DIR"
    refused(words, prompts, tmp_path / "out", model=base)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<more:{i}>" for i in range(20)])
    base = save_model(tmp_path / "base", "gpt2", tokenizer=tokenizer)
    prompts = {"film": make_prompt(load(base, dtype="float32", device="cpu"))}
    words = r"\S+base embeds 340 ids, but its tokenizer gives a new token the id 350; give a model and a tokenizer that"
    refused(words, prompts, tmp_path / "out", model=base)


def test_numbers_that_a_type_cannot_hold_are_refused(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    lm = load(base, dtype="float32", device="cpu")
    prompts = {"a": make_prompt(lm, values=torch.full((2, 16), 7e4))}
    words = "a: the prompt has numbers too large for float16; give --dtype float32 or bfloat16"
    with pytest.warns(UserWarning, match="made for another scale"):
        refused(words, prompts, tmp_path / "out", model=base, dtype="float16")


def test_an_embedding_that_no_row_can_stand_for_is_refused(tmp_path, monkeypatch):
    class Doubled(torch.nn.Embedding):
        def forward(self, ids):
            return 2 * super().forward(ids)

    model, tokenizer = make_model("llama"), make_tokenizer(bos=True)
    model.set_input_embeddings(Doubled(NUM_IDS, 16, _weight=model.get_input_embeddings().weight.data))
    monkeypatch.setattr(export_module, "read_checkpoint", lambda source: (model, tokenizer, "doubled"))
    prompts = {"a": make_prompt(tiny_lm("llama"))}
    refused("doubled embeds its tokens in a way that no new row can stand for", prompts, tmp_path / "out", model="x")


def test_quantised_weights_are_refused(tmp_path):
    pytest.importorskip("bitsandbytes", reason="quantisation needs bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128}
    base = save_model(tmp_path / "base", "llama", **wide)
    packed = load(base, dtype="float32", device="cpu", quantize="4bit")
    packed.model.save_pretrained(tmp_path / "packed")
    make_tokenizer(bos=True).save_pretrained(tmp_path / "packed")
    words = r"the weights of \S+packed are quantised; export from the model as it was before"
    refused(words, {"a": make_prompt(packed)}, tmp_path / "out", model=tmp_path / "packed")


def test_a_folder_that_holds_something_is_not_written_over(tmp_path):
    prompts = {"a": make_prompt(tiny_lm("llama"))}
    (tmp_path / "mine").write_text("mine")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="is there already; a model with prompts needs a new folder"):
            export_vocabulary(prompts, place)
    assert (tmp_path / "mine").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    export(save_model(tmp_path / "base", "llama"), tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).is_file()


@pytest.mark.parametrize(("length", "size"), [(4, 20_000), (300, 60_000)])
def test_a_full_disk_is_one_line_and_leaves_nothing(length, size, tmp_path):
    base = save_model(tmp_path / "base", "llama")
    prompts = {
        "a": make_prompt(load(base, dtype="float32", device="cpu"), length)
    }  # of 300 the tokenizer is the larger
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(OSError, match=r"^could not write \S+out \(File too large\); nothing was kept there$"):
            export_vocabulary(prompts, tmp_path / "out", model=base, dtype="bfloat16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {place.name for place in tmp_path.iterdir()} == {"base", ".out.lock"}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A working folder with the model `base` and the prompts `film` and `more/film`."""
    monkeypatch.chdir(tmp_path)
    lm = load(save_model(tmp_path / "base", "llama"), dtype="float32", device="cpu")
    save_prompt(make_prompt(lm, 3), tmp_path / "film")
    save_prompt(make_prompt(lm, 4, seed=2), tmp_path / "more" / "film")


def test_the_command_exports_several_prompts_by_name(saved, run, tmp_path):
    words = ["convert", "film", "rain=more/film", "--to", "vocabulary", "--out", "out", "--dtype", "bfloat16"]
    assert run(*words) == (
        0, "out: the model with 2 prompts as 7 new tokens; its README.md says how a text wears them\n", "",
    )  # fmt: skip
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert list(manifest["prompts"]) == ["film", "rain"] and manifest["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["film", "more/film"], "two prompts are named 'film': film and more/film; name one otherwise: NAME=more/film"),
        (
            ["a=film", "a=more/film"],
            "two prompts are named 'a': film and more/film; name one otherwise: NAME=more/film",
        ),
        (["fim"], "there is no file or folder fim"),
        (["film", "--model", "base2/x/y"], "no folder base2/x/y; give a local folder, a GGUF file, a hub id or"),
        (["film", "--out", "film"], "film is there already; a model with prompts needs a new folder"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(words, said, saved, run):
    code, out, err = run("convert", "--to", "vocabulary", "--out", "out", *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"softprompt convert: {said}") and err.count("\n") == 1


def test_only_a_vocabulary_takes_several_prompts_or_a_type(saved, run):
    assert run("convert", "film", "more/film", "--to", "peft", "--out", "out")[2] == (
        "softprompt convert: 2 prompts for --to peft, which takes one; --to vocabulary or gguf takes more\n"
    )
    assert run("convert", "film", "--to", "peft", "--out", "out", "--dtype", "float32")[2] == (
        "softprompt convert: --dtype is for --to vocabulary and gguf; a prompt alone is float32 always\n"
    )
