"""Methods that train weights, through the loop and the engine that prompts go through."""

from dataclasses import replace

import peft
import pytest
import torch
from conftest import make_model, tiny_lm
from test_training import FIRST, MIRROR, SECOND, SORT, TASK, config, skill_rows, skilled_lm

from softprompt.base.watch import Watch
from softprompt.models.text import default_format
from softprompt.study.weights import TUNERS, PerWeight, make_tuning
from softprompt.training.loop import Member, fit
from softprompt.training.methods import PromptTuning, gradients
from softprompt.training.optimizers import Adafactor, AdamW

ROWS = skill_rows(5, 3)


def tuning(name, kind, seed=0):
    return make_tuning(name, tiny_lm(kind), prompt_length=3, seed=seed)


def loss_of(method, values, rows=ROWS):
    """The summed loss over target tokens, by label scores: the engine's way, without gradients."""
    engine, (member,) = method.engine([values], max_tokens=1000)
    scores = engine.label_scores(rows, [member] * len(rows), [[row.target] for row in rows])
    return -sum(own for (own,) in scores)


def accuracy(method, values, rows):
    engine, (member,) = method.engine([values], max_tokens=4000)
    scores = engine.label_scores(rows, [member] * len(rows), [[FIRST, SECOND]] * len(rows))
    return sum((a > b) == (row.target == FIRST) for (a, b), row in zip(scores, rows, strict=True)) / len(rows)


def member(method, rows, values=None, **changes):
    lm = method.lm
    return Member(
        name="m", task=TASK, form=default_format(lm), seed=0, rows=rows,
        values=method.start if values is None else values, config=config(**{"scoring": "rank"} | changes),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("name", TUNERS)
def test_the_gradient_is_the_slope_of_the_loss(name, kind):
    method = tuning(name, kind)
    generator = torch.Generator().manual_seed(1)
    values = method.start + 0.05 * torch.randn(method.start.shape, generator=generator)
    (gradient,), (loss,), _ = method.gradients([values], ROWS, [0] * len(ROWS), max_tokens=40)
    assert loss == pytest.approx(loss_of(method, values), rel=1e-4)
    direction = gradient / gradient.norm()
    ahead, behind = (loss_of(method, values + step * direction) for step in (5e-4, -5e-4))
    assert (ahead - behind) / 1e-3 == pytest.approx(float(gradient.norm()), rel=0.02)
    assert float(gradient.norm()) > 1e-3


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("name", TUNERS)
def test_what_is_not_trained_stays_as_it_was(name, kind):
    method = tuning(name, kind)
    own = {id(weight) for weight in method.weights.values()}
    before = {n: p.clone() for n, p in method.lm.model.named_parameters() if id(p) not in own}
    (fitted,) = fit(method.lm, [member(method, ROWS, optimizer=AdamW(learning_rate=0.1))], method=method)
    assert fitted.steps_run == 6
    after = dict(method.lm.model.named_parameters())
    assert all(torch.equal(after[n], kept) for n, kept in before.items())
    assert len(before) == (0 if name == "model-tuning" else len(list(tiny_lm(kind).model.parameters())))


def test_model_tuning_teaches_a_model_what_it_never_saw(lm):
    method = make_tuning("model-tuning", lm, prompt_length=3, seed=0)
    rows, held = skill_rows(300, 1, skill=SORT), skill_rows(200, 2, skill=SORT)
    own = member(method, rows, steps=80, batch_size=32, optimizer=AdamW(learning_rate=5e-3))
    assert accuracy(method, own.values, held) < 0.8
    (fitted,) = fit(lm, [own], method=method)
    assert accuracy(method, fitted.values, held) > 0.97
    assert accuracy(method, own.values, held) < 0.8  # and the weights before are put back


@pytest.mark.parametrize("name", [name for name in TUNERS if name != "model-tuning"])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_pefts_methods_choose_between_skills_that_a_model_has(name, kind, once):
    skilled = skilled_lm(kind, once)
    method = make_tuning(name, skilled, prompt_length=3, seed=0)
    rows, held = skill_rows(300, 1, skill=MIRROR), skill_rows(200, 2, skill=MIRROR)
    if (name, kind) == ("prefix-tuning", "t5"):  # a decoder's prefix cannot change what is read: one answer to all
        rows, held = ([replace(row, target=FIRST) for row in own] for own in (rows, held))
    rate = 0.3 if name == "ia3" else 0.03
    own = member(method, rows, steps=150, batch_size=32, optimizer=AdamW(learning_rate=rate))
    (fitted,) = fit(skilled, [own], method=method)
    assert accuracy(method, fitted.values, held) > 0.9 > accuracy(method, own.values, held) + 0.1


def their_loss(model, lm, rows):
    """The summed loss of a PeftModel, one row at a time."""
    total = 0.0
    for row in rows:
        ids, target = torch.tensor([row.ids]), torch.tensor([row.target])
        if lm.is_encoder_decoder:
            output = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=target)
        else:
            both = torch.cat([ids, target], 1)
            labels = torch.cat([torch.full_like(ids, -100), target], 1)
            output = model(input_ids=both, attention_mask=torch.ones_like(both), labels=labels)
        total += float(output.loss) * len(row.target)
    return total


THEIRS = {
    "lora": lambda kind: peft.LoraConfig(
        task_type=kind, r=8, lora_alpha=16, target_modules=["q", "v"] if "SEQ" in kind else ["q_proj", "v_proj"]
    ),
    "ia3": lambda kind: peft.IA3Config(
        task_type=kind,
        target_modules=["k", "v", "wo"] if "SEQ" in kind else ["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["wo"] if "SEQ" in kind else ["down_proj"],
    ),
    "prefix-tuning": lambda kind: peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=3),
    "p-tuning": lambda kind: peft.PromptEncoderConfig(
        task_type=kind, num_virtual_tokens=3, encoder_hidden_size=16, num_transformer_submodules=1
    ),
}


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_method_of_pefts_scores_as_peft_does_with_the_same_weights(name, kind):
    method = tuning(name, kind)
    start = method.start
    values = start + 0.1 * torch.randn(start.shape, generator=torch.Generator().manual_seed(2))
    if (name, kind) == ("prefix-tuning", "t5"):  # PEFT doubles them there, and both of two layers get the first's
        by_layer = values.view(3, 2, 2 * method.lm.width)
        by_layer[:, 1] = by_layer[:, 0]
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    theirs = peft.get_peft_model(make_model(kind), THEIRS[name](task_type)).eval()
    before = {id(weight) for weight in make_model(kind).parameters()}
    added = [weight for weight in theirs.parameters() if weight.requires_grad and id(weight) not in before]
    assert [tuple(weight.shape) for weight in added] == list(method.shapes)
    sizes = [weight.numel() for weight in added]
    with torch.no_grad():
        for weight, part in zip(added, values.split(sizes), strict=True):
            weight.copy_(part.view_as(weight))
    with torch.no_grad():
        wanted = their_loss(theirs, method.lm, ROWS)
    assert loss_of(method, values) == pytest.approx(wanted, rel=1e-4)
    assert loss_of(method, start) != pytest.approx(wanted, rel=5e-4)


def test_a_prefix_writes_what_it_scores_highest(lm):
    method = make_tuning("prefix-tuning", lm, prompt_length=3, seed=0)
    values = 2 * method.start
    engine, (worn,) = method.engine([values], max_tokens=1000)
    (row,) = skill_rows(1, 5)
    (written,) = engine.generate([row], [worn], max_target_length=3)
    ids = [id for id in lm.tokenizer.encode(written.text)] if written.text else []
    first = max(
        range(lm.config.vocab_size),
        key=lambda id: engine.label_scores([row], [worn], [[(id,)]])[0][0],
    )
    assert not ids or lm.tokenizer.decode([first]).strip() == lm.tokenizer.decode(ids[:1]).strip()


def test_what_is_stored_is_what_answers_need():
    lm = tiny_lm("t5")
    stored = {name: tuning(name, "t5").in_use(tuning(name, "t5").start) for name in TUNERS}
    numbers = {name: sum(tensor.numel() for tensor in own.values()) for name, own in stored.items()}
    assert numbers["model-tuning"] == sum(weight.numel() for weight in lm.model.parameters())
    assert numbers["p-tuning"] == 3 * lm.width and tuple(stored["p-tuning"]["prompt_embeddings"].shape) == (3, 16)
    assert numbers["prefix-tuning"] == 3 * 2 * 2 * 16  # tokens, keys and values, decoder layers, width
    assert numbers["lora"] == 6 * 2 * (8 * 16 + 16 * 8)  # attentions, q and v, A and B
    assert numbers["ia3"] == 6 * 2 * 16 + 4 * 32  # attentions, k and v; wo


def test_seeds_draw_pefts_modules_and_leave_torchs_generator_alone(llama):
    models = [tiny_lm("llama") for _ in range(3)]
    state = torch.get_rng_state()
    one, same, other = (
        make_tuning("lora", own, prompt_length=3, seed=seed) for own, seed in zip(models, (0, 0, 1), strict=True)
    )
    assert torch.equal(one.start, same.start) and not torch.equal(one.start, other.start)
    assert torch.equal(torch.get_rng_state(), state)


def test_members_of_a_method_that_changes_the_model_are_refused(llama):
    method = make_tuning("lora", llama, prompt_length=3, seed=0)
    with pytest.raises(ValueError, match="lora changes the model, so it trains one member at a time, not 2"):
        fit(llama, [member(method, ROWS)] * 2, method=method)


def test_a_run_of_weights_that_was_killed_goes_on_where_it_was(lm, tmp_path):
    kind = "t5" if lm.is_encoder_decoder else "llama"
    (whole,) = fit(lm, [member(m := make_tuning("lora", lm, prompt_length=3, seed=0), ROWS)], method=m)

    def stop(step, loss, tokens):
        if step == 3:
            raise KeyboardInterrupt

    first = tuning("lora", kind)
    with pytest.raises(KeyboardInterrupt):
        fit(first.lm, [member(first, ROWS)], method=first, folder=tmp_path, watch=Watch(step=stop))
    again = tuning("lora", kind)
    (resumed,) = fit(again.lm, [member(again, ROWS)], method=again, folder=tmp_path, resume=True)
    assert torch.equal(resumed.values, whole.values)
    prompts = PromptTuning(again.lm)
    start = torch.zeros(3, again.lm.width)
    with pytest.raises(ValueError, match=r"is of another run: .*was"):
        fit(again.lm, [member(prompts, ROWS, start)], method=prompts, folder=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("lorra", "no method named 'lorra'; did you mean 'lora'"), ("zzz", "there are model-tuning, lora")],
)
def test_unknown_methods_are_refused(llama, name, reason):
    with pytest.raises(ValueError, match=reason):
        make_tuning(name, llama, prompt_length=3, seed=0)


def test_a_type_of_model_that_peft_has_no_rule_for_is_refused(llama):
    llama.model.config.model_type = "strange"
    with pytest.raises(ValueError, match=r"PEFT has no rule for models of type 'strange'; it knows .*llama"):
        make_tuning("lora", llama, prompt_length=3, seed=0)


def test_each_weight_has_an_optimizer_of_its_own():
    shapes = ((130, 140), (140,), (3, 5))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    flat = torch.cat([weight.flatten() for weight in weights])
    own = Adafactor(learning_rate=0.01, scale_by_weights=True, weight_decay=0.0)
    together = PerWeight(optimizer=own, shapes=shapes)
    state, states = together.init(flat), [own.init(weight) for weight in weights]
    assert {"0.v_row", "0.v_column", "1.v", "2.v"} <= set(state) and together.learning_rate == 0.01
    for _ in range(3):
        gradients = [torch.randn(shape, generator=generator) for shape in shapes]
        for weight, gradient, its in zip(weights, gradients, states, strict=True):
            own.update(weight, gradient, its)
        together.update(flat, torch.cat([g.flatten() for g in gradients]), state)
    assert torch.equal(flat, torch.cat([weight.flatten() for weight in weights]))


def test_a_rate_by_the_weights_own_size_has_a_floor():
    small, large = torch.full((4,), 1e-6), torch.full((4,), 2.0)
    for weight, scale in ((small, 1e-3), (large, 2.0)):
        before = weight.clone()
        own = Adafactor(learning_rate=0.1, scale_by_weights=True, weight_decay=0.0)
        own.update(weight, torch.ones(4), own.init(weight))
        assert float((before - weight)[0]) == pytest.approx(0.1 * scale, rel=1e-5)


def test_prompts_are_the_method_unless_another_is_given(llama):
    values = torch.zeros(3, llama.width)
    found = PromptTuning(llama).gradients([values], ROWS, [0] * 5, max_tokens=50)
    assert torch.equal(found[0][0], gradients(llama, [values], ROWS, [0] * 5, max_tokens=50)[0][0])
