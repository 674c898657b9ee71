"""Prompts that are keys and values of every layer: equal to transformers' and PEFT's, beside soft prompts, on disk."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import make_model, make_tokenizer, tiny_lm

from softprompt.answering import Engine, inspect_prompt, open_prompts
from softprompt.models import FrozenLM, Row
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.prompts.formats import write_prompt
from softprompt.serving import PromptTable
from softprompt.training import RunConfig, gradients, train

KINDS = ["llama", "gpt2", "gemma3"]
ROWS = [Row((4, 5, 6, 7), (9, 1), False, 0), Row((4, 8), (10, 11, 1), False, 1), Row((12, 8, 9), (10, 1), False, 2)]
CANDIDATES = [[(9, 1), (10, 11, 1)]] * 3


def soft(lm, length, seed):
    return torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))


def keys_and_values(lm, length=3, seed=0):
    return torch.randn(length, *lm.kv_shape, generator=torch.Generator().manual_seed(seed))


def card(lm, prompt):
    return Card(
        model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=False, width=prompt[0].numel()
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_run_through_the_model_answers_as_keys_and_values_as_it_did_before(kind):
    lm = tiny_lm(kind)
    prompt = soft(lm, 5, 1)
    made = lm.prompt_states([prompt]).to_values()
    assert made.shape == (5, *lm.kv_shape)
    wanted = Engine(lm, [prompt]).label_scores(ROWS, [0, 0, 0], CANDIDATES)
    found = Engine(lm, [made]).label_scores(ROWS, [0, 0, 0], CANDIDATES)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_those_of_transformers_with_a_cache(kind):
    from transformers import DynamicCache

    lm, values = tiny_lm(kind), keys_and_values(tiny_lm(kind))
    (found,), (loss,), _ = gradients(lm, [values], ROWS[:1], [0], max_tokens=100)
    model, leaf = make_model(kind), values.clone().requires_grad_()
    cache = DynamicCache()
    for layer in range(len(leaf[0]) // 2):
        keys, rows = (leaf[:, 2 * layer + part].transpose(0, 1)[None] for part in (0, 1))
        cache.update(keys, rows, layer)
    ids = torch.tensor([[*ROWS[0].ids, *ROWS[0].target]])
    at = torch.arange(3, 3 + ids.shape[1])[None]
    logits = model(ids, past_key_values=cache, position_ids=at, attention_mask=torch.ones(1, 3 + ids.shape[1])).logits
    start = len(ROWS[0].ids) - 1
    wanted = -logits[0, start:-1].log_softmax(-1).gather(-1, ids[0, start + 1 :, None]).sum()
    wanted.backward()
    torch.testing.assert_close(torch.tensor(loss), wanted.detach())
    torch.testing.assert_close(found, leaf.grad)


def test_beside_soft_prompts_each_has_the_gradient_that_it_has_alone(llama):
    prompts = [soft(llama, 3, 1), keys_and_values(llama, 4), soft(llama, 6, 2), keys_and_values(llama, 2, 5)]
    rows, member = [*ROWS, *ROWS], [0, 1, 2, 3, 1, 0]
    together, losses, _ = gradients(llama, prompts, rows, member, max_tokens=1000)
    for place, prompt in enumerate(prompts):
        own = [row for row, m in zip(rows, member, strict=True) if m == place]
        (alone,), (loss,), _ = gradients(llama, [prompt], own, [0] * len(own), max_tokens=1000)
        torch.testing.assert_close(together[place], alone)
        assert losses[place] == pytest.approx(loss, rel=1e-5)


def test_answers_in_a_mixed_batch_are_those_alone(llama):
    prompts = [soft(llama, 3, 1), keys_and_values(llama, 4), keys_and_values(llama, 2, 5)]
    mixed = Engine(llama, prompts)
    scores = mixed.label_scores(ROWS, [2, 1, 0], CANDIDATES)
    texts = mixed.generate(ROWS, [2, 1, 0], max_target_length=6)
    for place, member in enumerate([2, 1, 0]):
        alone = Engine(llama, [prompts[member]])
        (wanted,) = alone.label_scores(ROWS[place : place + 1], [0], CANDIDATES[:1])
        assert scores[place] == pytest.approx(wanted, rel=1e-5)
        (text,) = alone.generate(ROWS[place : place + 1], [0], max_target_length=6)
        assert texts[place].text == text.text


def test_a_folder_gives_back_the_same_numbers(llama, tmp_path):
    values = keys_and_values(llama)
    save_prompt(SoftPrompt(values, card(llama, values)), tmp_path / "kv")
    loaded = load_prompt(tmp_path / "kv")
    assert torch.equal(loaded.values, values) and loaded.is_kv
    assert "Trained keys and values of 3 tokens, in each of 2 layers," in (tmp_path / "kv" / "README.md").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_the_folder_as_it_is_and_has_the_same_loss(kind, tmp_path):
    peft = pytest.importorskip("peft")
    lm = tiny_lm(kind)
    values = 0.1 * keys_and_values(lm)
    save_prompt(SoftPrompt(values, card(lm, values)), tmp_path)
    model = peft.PeftModel.from_pretrained(make_model(kind), tmp_path).eval()
    ids = torch.tensor([[*ROWS[0].ids, *ROWS[0].target]])
    labels = ids.clone()
    labels[:, : len(ROWS[0].ids)] = -100
    theirs = model(ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    _, (loss,), _ = gradients(lm, [values], ROWS[:1], [0], max_tokens=100)
    assert loss / len(ROWS[0].target) == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_that_peft_saved_is_read_with_its_projection_folded_in(projection, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=projection, encoder_hidden_size=8
    )
    model = peft.get_peft_model(make_model("llama"), config).eval()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[4, 5, 6, 7, 9, 1]])
    theirs = model(ids, attention_mask=torch.ones_like(ids), labels=ids).loss
    lm = tiny_lm("llama")
    values = load_prompt(tmp_path).values
    _, (loss,), _ = gradients(lm, [values], [Row((4,), (5, 6, 7, 9, 1), False, 0)], [0], max_tokens=100)
    assert loss / 5 == pytest.approx(theirs.item(), rel=1e-5)


def own_task(folder, **changes):
    """A run of keys and values on a file of one's own."""
    records = [f'{{"text": "film {i} was {word}", "label": "{word}"}}' for i, word in enumerate(["good", "bad"] * 40)]
    (folder / "films.jsonl").write_text("\n".join(records))
    named = {
        "model": "tiny",
        "data": {"train": [str(folder / "films.jsonl")]},
        "inputs": "text: {text}",
        "targets": "{label}",
        "labels": ("good", "bad"),
        "out": folder / "out",
        "method": "kv",
        "prompt_length": (3,),
        "steps": 4,
        "batch_size": 4,
        "evaluate_every": 2,
    }
    return RunConfig(**named | changes)


def test_a_run_trains_keys_and_values_that_start_from_labels_and_answer_from_their_folder(llama, tmp_path):
    (trained,) = train(own_task(tmp_path), lm=llama)
    assert trained.prompt.is_kv and trained.prompt.values.shape == (3, *llama.kv_shape)
    loaded = load_prompt(trained.folder)
    assert torch.equal(loaded.values, trained.prompt.values)
    assert loaded.card.recipe["method"] == "kv" and loaded.card.recipe["optimizer"]["learning_rate"] == 0.01
    assert not torch.equal(loaded.values, llama.prompt_states([torch.zeros(3, llama.width)]).to_values())


def test_a_second_run_goes_on_from_the_keys_and_values_of_the_first(llama, tmp_path):
    (first,) = train(own_task(tmp_path), lm=llama)
    (second,) = train(own_task(tmp_path, init=str(first.folder), out=tmp_path / "second"), lm=llama)
    assert second.prompt.card.parent == first.prompt.sha256
    with pytest.raises(ValueError, match="holds keys and values; go on from it with --method kv"):
        train(own_task(tmp_path, init=str(first.folder), method="prompt", out=tmp_path / "third"), lm=llama)


def test_keys_and_values_start_from_a_trained_prompt(llama, tmp_path):
    (first,) = train(own_task(tmp_path, method="prompt"), lm=llama)
    (second,) = train(own_task(tmp_path, init=str(first.folder), out=tmp_path / "second", steps=1), lm=llama)
    assert second.prompt.is_kv and second.prompt.card.parent == first.prompt.sha256


def test_an_encoder_decoder_refuses_keys_and_values_by_name(t5, tmp_path):
    with pytest.raises(ValueError, match="tiny-t5 is an encoder-decoder; keys and values as a prompt are for decoder"):
        train(own_task(tmp_path), lm=t5)


def test_checkpointed_activations_are_refused_with_the_reason(llama, tmp_path):
    llama.checkpoint_activations()
    with pytest.raises(ValueError, match="reads keys and values from a cache, which checkpointed activations cannot"):
        train(own_task(tmp_path), lm=llama)


def test_what_has_no_place_for_keys_and_values_says_so(llama, tmp_path):
    values = keys_and_values(llama)
    prompt = SoftPrompt(values, card(llama, values))
    for kind in ("t5x", "tgis"):
        with pytest.raises(ValueError, match=f"keys and values of every layer, which {kind} has no place for"):
            write_prompt(prompt, tmp_path / kind, kind)
    with pytest.raises(ValueError, match="which are near no token; inspect takes soft prompts"):
        inspect_prompt(prompt, llama)


def test_keys_and_values_must_be_finite_in_the_models_type(tmp_path):
    lm = FrozenLM(make_model("llama").half(), make_tokenizer(bos=True), name="tiny-llama")
    values = keys_and_values(lm)
    values[1, 2, 0, 3] = 7e4
    save_prompt(SoftPrompt(values, card(lm, values)), tmp_path)
    for use in (PromptTable(lm, max_bytes=10**9).add, partial(open_prompts, model=lm)):
        with pytest.raises(
            ValueError, match=r"numbers reach 7e\+04, and tiny-llama computes in float16, which ends at"
        ):
            use(tmp_path)


def test_keys_and_values_of_another_number_of_layers_are_refused(llama, tmp_path):
    values = torch.zeros(3, 8, 1, 8)
    named = replace(card(llama, values), model_fingerprint=None)
    save_prompt(SoftPrompt(values, named), tmp_path / "kv")
    with pytest.raises(
        ValueError, match=r"keys and values of 4 layers with 1 heads of 8.* keys and values of 2 layers"
    ):
        open_prompts(tmp_path / "kv", model=llama, task="glue/sst2", scoring="rank")
