"""The equalities that define the product, on tiny real models (6 is in test_optimizers.py).

Padding and grouping change the order of float sums; equal means within 1e-5 in float32, of numbers of order 1 to 10.
"""

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import ENCODER_DECODERS, FAMILIES, make_model, make_tokenizer, tiny_lm
from torch import nn

from softprompt.answering.engine import Engine
from softprompt.answering.evaluation import ensemble, predict
from softprompt.answering.running import RunningBatch, Start, generate
from softprompt.base.watch import Watch
from softprompt.models import NO_PROMPT, FrozenLM
from softprompt.models.layers import use_written_out_attention, written_out_attention
from softprompt.models.states import Embedded
from softprompt.models.t5 import CrossAttention, drawn
from softprompt.models.text import Row, collate, default_format, encode_examples, shared_start
from softprompt.prompts import Card, SoftPrompt, prepend, save_prompt
from softprompt.prompts.initial import from_text
from softprompt.tasks import Example, file_task
from softprompt.training.loop import Member, TrainConfig, fit
from softprompt.training.methods import gradients
from softprompt.training.optimizers import Adafactor, AdamW

TOLERANCE = 1e-5
KINDS = ["t5", "llama"]
MODELING = [f"transformers.models.{kind}.modeling_{kind}" for kind in KINDS]
DECODERS = [kind for kind in FAMILIES if kind not in ENCODER_DECODERS]
# With the input's 3 to 19 tokens these reach past a window of 6 from the first token that has one.
PROMPT_LENGTHS = (5, 9, 1)
MEMBER = [0, 1, 2, NO_PROMPT, 0, NO_PROMPT, 2, 1]


def draw(seed):
    return torch.Generator().manual_seed(seed)


def ids_of(length, generator):
    return tuple(torch.randint(4, 330, (length,), generator=generator).tolist())


def make_rows(lengths=(3, 19, 8, 5, 8, 12, 4, 7), seed=0):
    generator = draw(seed)
    return [Row(ids_of(n, generator), (*ids_of(1 + n % 3, generator), 1), False, i) for i, n in enumerate(lengths)]


def make_prompts(lm, lengths=PROMPT_LENGTHS, seed=1):
    generator = draw(seed)
    return [torch.randn(n, lm.width, generator=generator) for n in lengths]


def make_candidates(rows, seed=2):
    generator = draw(seed)
    return [[(*ids_of(1 + (i + j) % 3, generator), 1) for j in range(2 + i % 3)] for i in range(len(rows))]


def flat(nested):
    return torch.tensor([value for row in nested for value in row])


def apart(tensors, others):
    return max(float((a - b).abs().max()) for a, b in zip(tensors, others, strict=True))


def in_bfloat16(kind):
    return FrozenLM(make_model(kind).bfloat16(), make_tokenizer(bos=kind == "llama"), name=f"tiny-{kind}")


def lone_engine(lm, prompts, member, run_once):
    return Engine(lm, [] if member == NO_PROMPT else [prompts[member]], run_once=run_once)


def alone(lm, prompts, rows, candidates, run_once):
    """Each row's label scores and greedy answer, by itself."""
    scores, answers = [], []
    for row, member, choices in zip(rows, MEMBER, candidates, strict=True):
        engine = lone_engine(lm, prompts, member, run_once)
        worn = [min(member, 0)]
        scores += engine.label_scores([row], worn, [choices])
        answers += written_ids(engine, [row], worn)
    return scores, answers


def written_ids(engine, rows, member):
    """The tokens of each row's greedy answer."""
    return generate(engine.lm, engine.inputs(rows, member), max_tokens=6).ids


# Equality 1: a mixed batch gives each row what it gets alone


@pytest.mark.parametrize("run_once", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_a_mixed_batch_gets_what_it_gets_alone(kind, run_once):
    lm = tiny_lm(kind)
    prompts, rows = make_prompts(lm), make_rows()
    candidates = make_candidates(rows)
    engine = Engine(lm, prompts, max_tokens=10_000, run_once=run_once)
    mixed = engine.label_scores(rows, MEMBER, candidates)
    lone, lone_written = alone(lm, prompts, rows, candidates, run_once)
    assert [len(scores) for scores in mixed] == [len(choices) for choices in candidates]
    assert apart([flat(mixed)], [flat(lone)]) < TOLERANCE
    assert written_ids(engine, rows, MEMBER) == lone_written


@pytest.mark.parametrize("run_once", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_another_prompt_or_none_or_another_input_changes_a_rows_scores(kind, run_once):
    lm = tiny_lm(kind)
    rows = make_rows()
    candidates = make_candidates(rows)
    engine = Engine(lm, make_prompts(lm), run_once=run_once)
    scores = {m: engine.label_scores(rows, [m] * len(rows), candidates) for m in (0, 1, 2, NO_PROMPT)}
    shifted = engine.label_scores([*rows[1:], rows[0]], [0] * len(rows), candidates)
    for others in [scores[1], scores[2], scores[NO_PROMPT], shifted]:
        for row, other in zip(scores[0], others, strict=True):
            assert apart([torch.tensor(row)], [torch.tensor(other)]) > 1000 * TOLERANCE
    assert len(set(map(tuple, written_ids(engine, rows, MEMBER)))) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_a_mixed_batch_differs_by_rounding_only(kind):
    lm = in_bfloat16(kind)
    prompts, rows = make_prompts(lm), make_rows()
    candidates = make_candidates(rows)
    engine = Engine(lm, prompts, max_tokens=10_000)
    mixed = engine.label_scores(rows, MEMBER, candidates)
    written = written_ids(engine, rows, MEMBER)
    lone, lone_written = alone(lm, prompts, rows, candidates, True)
    exact, _ = alone(tiny_lm(kind), prompts, rows, candidates, True)
    difference = apart([flat(mixed)], [flat(lone)])
    assert difference <= 2 * apart([flat(lone)], [flat(exact)])  # no more than bfloat16 itself costs
    for row, scores in zip(mixed, lone, strict=True):
        best, second = sorted(scores, reverse=True)[:2]
        assert row.index(max(row)) == scores.index(best) or best - second <= difference
    for i, (own, other) in enumerate(zip(written, lone_written, strict=True)):
        if own != other:
            assert gap_where_they_part(lm, prompts, rows[i], MEMBER[i], own, other) <= difference


def gap_where_they_part(lm, prompts, row, member, own, other):
    """How far apart the lone run's two best tokens are where two answers first differ."""
    engine = lone_engine(lm, prompts, member, True)
    answers = [(*own, 1), (*other, 1)]
    same = next(n for n, (a, b) in enumerate(zip(*answers, strict=False)) if a != b)
    ((one, two),) = engine.label_scores([row], [min(member, 0)], [[ids[: same + 1] for ids in answers]])
    return abs(one - two)


@pytest.mark.parametrize("kind", [*DECODERS, "t5", "mt5"])
def test_it_never_matters_on_which_side_a_row_is_padded(kind):
    lm = tiny_lm(kind)
    generator = draw(5)
    lengths = torch.tensor([4, 11, 8])
    x = torch.zeros(3, 11, lm.width)
    left, mask, left_mask = x.clone(), torch.zeros(3, 11, dtype=torch.bool), torch.zeros(3, 11, dtype=torch.bool)
    for i, n in enumerate(lengths.tolist()):
        row = torch.randn(n, lm.width, generator=generator)
        x[i, :n], mask[i, :n], left[i, 11 - n :], left_mask[i, 11 - n :] = row, True, row, True
    candidates = torch.randint(4, 330, (3, 2, 3), generator=generator)
    every = torch.ones_like(candidates, dtype=torch.bool)
    at_left, at_right = Embedded(left, left_mask), Embedded(x, mask)
    right_scores = lm.score(at_right, candidates, every)
    assert apart([lm.score(at_left, candidates, every)], [right_scores]) < TOLERANCE
    assert generate(lm, at_left, max_tokens=5).ids == generate(lm, at_right, max_tokens=5).ids
    prompts, worn = torch.randn(2, 4, lm.width, generator=generator), torch.tensor([1, -1, 0])
    joined, seen = prepend(prompts, torch.tensor([4, 2]), worn, x, mask)
    moves = (~seen).sum(1).tolist()
    moved, moved_seen = (
        torch.stack([row.roll(n, 0) for row, n in zip(rows, moves, strict=True)]) for rows in (joined, seen)
    )
    sides = [(joined, seen), (moved, moved_seen)]
    scores = [lm.score(Embedded(*side), candidates, every) for side in sides]
    assert apart([scores[0]], [scores[1]]) < TOLERANCE < apart([scores[0]], [right_scores])


@pytest.mark.parametrize("kind", DECODERS)
def test_a_prompt_run_once_has_the_loss_and_gradient_of_one_in_front_of_every_row(kind):
    lm = tiny_lm(kind)
    prompts, rows = make_prompts(lm), make_rows()
    worn = [0, 1, 2, 0, 1, 2, 0, 1]
    once, once_losses, fewer = gradients(lm, prompts, rows, worn, max_tokens=70)
    each, losses, tokens = gradients(lm, prompts, rows, worn, max_tokens=70, run_once=False)
    assert once_losses == pytest.approx(losses, abs=TOLERANCE * 10)  # sums of 20 tokens and more
    assert apart(once, each) < TOLERANCE
    assert min(float(g.abs().mean()) for g in once) > 100 * TOLERANCE
    assert fewer < tokens


@pytest.mark.parametrize("kind", DECODERS)
def test_ids_that_all_rows_of_a_prompt_begin_with_run_with_it_and_change_nothing(kind):
    """As a template's first words are: some of each prompt's own, and of one prompt none; one input is nothing else."""
    lm = tiny_lm(kind)
    prompts, worn = make_prompts(lm), [0, 1, 2, 0, 1, 2, 0, 1]
    heads = [ids_of(4, draw(5)), (), ids_of(2, draw(6))]
    rows = [replace(row, ids=heads[m] + row.ids) for row, m in zip(make_rows(), worn, strict=True)]
    rows[3] = replace(rows[3], ids=heads[0])
    assert [len(shared_start([r for r, m in zip(rows, worn, strict=True) if m == i])) for i in range(3)] == [3, 0, 2]
    once, once_losses, fewer = gradients(lm, prompts, rows, worn, max_tokens=70)
    each, losses, tokens = gradients(lm, prompts, rows, worn, max_tokens=70, run_once=False)
    assert once_losses == pytest.approx(losses, abs=TOLERANCE * 10)
    assert apart(once, each) < TOLERANCE
    assert min(float(g.abs().mean()) for g in once) > 100 * TOLERANCE
    assert fewer < tokens


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "qwen2-sliding", "mistral"])
def test_a_window_hides_a_prompt_that_lies_behind_it(kind):
    """With one layer, what is 6 tokens back is out of sight; another layer would see it through its neighbours."""
    changes = {} if kind == "mistral" else {"layer_types": ["sliding_attention"]}
    lm = tiny_lm(kind, num_hidden_layers=1, **changes)
    rows = [Row(ids_of(12, draw(0)), (7, 1), False, 0), Row(ids_of(2, draw(0)), (7, 1), False, 1)]
    one, other = make_prompts(lm, (4, 4))
    for run_once in (True, False):
        scores = Engine(lm, [one, other], run_once=run_once).label_scores(
            rows * 2, [0, 0, 1, 1], [[(7, 1), (9, 8, 1)]] * 4
        )
        assert scores[0] == pytest.approx(scores[2], abs=TOLERANCE)
        assert scores[1] != pytest.approx(scores[3], abs=0.01)


# Equality 2: k prompts together end where each ends alone


@pytest.mark.parametrize(("kind", "dropout"), [("llama", 0.0), ("t5", 0.0), ("t5", 0.3), ("umt5", 0.3)])
def test_prompts_together_get_the_gradients_each_gets_alone(kind, dropout):
    lm = tiny_lm(kind)
    prompts, rows = make_prompts(lm), make_rows()
    worn, seeds = [0, 1, 2, 0, 1, 2, 0, 1], list(range(100, 108))
    together, losses, _ = gradients(lm, prompts, rows, worn, max_tokens=60, dropout=dropout, seeds=seeds, z_loss=1e-4)
    for k, prompt in enumerate(prompts):
        own = [i for i, m in enumerate(worn) if m == k]
        ((lone,), (loss,), _) = gradients(
            lm, [prompt], [rows[i] for i in own], [0] * len(own), max_tokens=1000, dropout=dropout,
            seeds=[seeds[i] for i in own], z_loss=1e-4,
        )  # fmt: skip
        assert apart([together[k]], [lone]) < TOLERANCE
        assert loss == pytest.approx(losses[k], abs=TOLERANCE * 10)
        assert float(lone.abs().mean()) > 0.01


def make_members(lm, *, optimizer, dropout=0.0, steps=(30, 30, 30), seeds=(0, 1, 2)):
    """Three members that differ in task, seed, prompt length and batch."""
    form = default_format(lm)
    prompts = make_prompts(lm)
    members = []
    for k, (prompt, num_steps, seed) in enumerate(zip(prompts, steps, seeds, strict=True)):
        config = TrainConfig(
            steps=num_steps, batch_size=3 + k, optimizer=optimizer, dropout=dropout, evaluate_every=num_steps
        )
        task = file_task(inputs="{text}", targets="{label}", labels=["yes", "no"], name=f"task{k}")
        rows = make_rows((3, 19, 8, 5, 8, 12, 4, 7, 6, 9), seed=10 + k)
        members.append(Member(name=f"m{k}", task=task, form=form, config=config, seed=seed, values=prompt, rows=rows))
    return members


@pytest.mark.parametrize(("kind", "dropout"), [("t5", 0.0), ("t5", 0.1), ("llama", 0.0)])
@pytest.mark.parametrize("optimizer", [Adafactor(learning_rate=0.03), AdamW(learning_rate=0.01)])
def test_prompts_trained_together_end_where_each_ends_alone(kind, dropout, optimizer):
    lm = tiny_lm(kind)
    members = make_members(lm, optimizer=optimizer, dropout=dropout, steps=(30, 20, 30))
    together = fit(lm, members, max_tokens=120)
    for member, result in zip(members, together, strict=True):
        (lone,) = fit(lm, [member], max_tokens=1000)
        assert apart([result.values], [lone.values]) < 1e-3 * optimizer.learning_rate
        assert apart([result.values], [member.values]) > optimizer.learning_rate
        assert result.step == lone.step == member.config.steps


@pytest.mark.parametrize("kind", KINDS)
def test_in_bfloat16_training_together_spreads_less_than_the_seeds(kind):
    lm = in_bfloat16(kind)
    members = make_members(lm, optimizer=Adafactor(learning_rate=0.03))
    together = fit(lm, members, max_tokens=120)
    lone = [fit(lm, [member])[0] for member in members]
    other_seeds = [fit(lm, [replace(member, seed=member.seed + 10)])[0] for member in members]
    for one, own, other in zip(together, lone, other_seeds, strict=True):
        spread = (one.values - own.values).square().mean().sqrt()
        assert spread < (own.values - other.values).square().mean().sqrt()


def test_dropout_masks_are_shared_over_positions_and_drawn_by_row(t5):
    seen = []
    dropouts = t5._t5.dropouts
    modules = [*dropouts, *t5._t5.attentions]
    with t5.dropout(0.25, [5, 6, 5], 9, 3):
        seen = [module.mask.clone() for module in modules]
    assert all(module.mask is None for module in modules)
    shared = torch.cat([mask.flatten(1) for mask in seen[: len(dropouts)]], 1)
    assert all(mask.shape[1] == 1 for mask in seen[: len(dropouts)])
    assert torch.equal(shared[0], shared[2]) and not torch.equal(shared[0], shared[1])
    assert set(shared.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert float((shared == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    before, after = t5.model.encoder.dropout.turns
    assert dropouts.index(before) != dropouts.index(after)
    assert not torch.equal(seen[dropouts.index(before)], seen[dropouts.index(after)])


def test_dropout_masks_do_not_depend_on_what_a_row_is_batched_with(t5):
    modules = [*t5._t5.dropouts, *t5._t5.attentions]
    with t5.dropout(0.25, [5], 4, 2):
        lone = [module.mask for module in modules]
    with t5.dropout(0.25, [8, 5], 11, 17):
        for module, mask in zip(modules, lone, strict=True):
            assert torch.equal(module.mask[1:, : mask.shape[1]], mask)


def test_the_numbers_of_masks_are_splitmix64s():
    """With seed 0 those that its authors' C code gives (its first three outputs)."""
    numbers = drawn(torch.tensor([0]), 0, 12).contiguous().view(torch.int64)[0].tolist()
    assert [number % (1 << 64) for number in numbers] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    seeds = torch.tensor([7, (1 << 63) - 1])
    assert torch.equal(drawn(seeds, 1, 7), drawn(seeds, 1, 400)[:, :7])
    assert torch.equal(drawn(seeds[1:], 2, 9), drawn(seeds, 2, 9)[1:])


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_masks_are_independent_draws_at_their_rate(rate, t5):
    """As T5X's of jax.random.bernoulli: the right share, no more alike between rows, features, positions, heads and
    layers than chance has it, and 1 on average. Bounds are five standard errors.
    """
    seeds = [int.from_bytes(hashlib.sha256(f"{n}".encode()).digest()[:8], "big") >> 1 for n in range(400)]
    with t5.dropout(rate, seeds, 30, 20):
        shared = torch.cat([module.mask[:, 0] for module in t5._t5.dropouts], 1)
        inputs = torch.stack([module.mask for module in t5._t5._over_inputs], 1).flatten(1)
        targets = torch.stack([module.mask for module in t5._t5._over_targets], 1).flatten(1)
    for masks in (shared, inputs, targets):
        count = masks.numel()
        dropped = (masks == 0).double()
        assert abs(float(dropped.mean()) - rate) < 5 * (rate * (1 - rate) / count) ** 0.5
        assert abs(float(masks.double().mean()) - 1) < 5 * (rate / (1 - rate) / count) ** 0.5
        scores = (dropped - rate) / (rate * (1 - rate)) ** 0.5
        for moved in (scores.roll(1, 0), scores.roll(1, 1), scores.roll(4, 1), scores.roll(2, 1)):
            assert abs(float((scores * moved).mean())) < 5 / count**0.5
    across = shared[:, :40].double() - 1, inputs[:, :40].double() - 1  # streams
    assert abs(float((across[0] * across[1]).mean())) < 5 * (rate / (1 - rate)) / 16_000**0.5


def test_an_error_while_masks_are_drawn_leaves_none_on_the_model(t5, monkeypatch):
    def refuse(module, name, value):
        if isinstance(value, torch.Tensor):
            raise torch.OutOfMemoryError("out of memory")
        nn.Module.__setattr__(module, name, value)

    monkeypatch.setattr(type(t5._t5.attentions[0]), "__setattr__", refuse, raising=False)
    with pytest.raises(torch.OutOfMemoryError), t5.dropout(0.25, [5], 4, 2):
        pass
    assert all(module.mask is None for module in [*t5._t5.dropouts, *t5._t5.attentions])


def test_dropout_changes_the_loss_and_is_gone_afterwards(t5):
    rows = make_rows()[:2]
    prompts = make_prompts(t5)[:1]
    sums = [
        gradients(t5, prompts, rows, [0, 0], max_tokens=100, dropout=rate, seeds=seeds)[1][0]
        for rate, seeds in [(0.0, None), (0.1, [1, 2]), (0.1, [3, 4]), (0.0, None)]
    ]
    assert sums[0] == sums[3] and len(set(sums)) == 3


def test_a_decoder_only_model_refuses_dropout(llama):
    with pytest.raises(
        ValueError, match="dropout is for encoder-decoders; tiny-llama is decoder-only: set dropout to 0"
    ):
        gradients(llama, make_prompts(llama)[:1], make_rows()[:1], [0], max_tokens=100, dropout=0.1, seeds=[1])


# Equality 3: training changes the prompts and nothing else


def bytes_of(lm):
    digest = hashlib.sha256()
    for name, tensor in [*lm.model.named_parameters(), *lm.model.named_buffers()]:
        digest.update(name.encode() + tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("kind", "dropout"), [("t5", 0.1), ("llama", 0.0)])
def test_training_changes_the_prompts_and_nothing_else(kind, dropout):
    lm = tiny_lm(kind)
    before, members = bytes_of(lm), make_members(lm, optimizer=AdamW(learning_rate=0.1), dropout=dropout)
    starts = [member.values.clone() for member in members]
    fitted = fit(lm, members)
    assert bytes_of(lm) == before
    assert all(p.grad is None and not p.requires_grad for p in lm.model.parameters())
    assert [torch.equal(m.values, start) for m, start in zip(members, starts, strict=True)] == [True] * 3
    assert all(apart([f.values], [start]) > 0.1 for f, start in zip(fitted, starts, strict=True))


# Equality 4: a prompt from a text scores as its ids in front of the input's


@pytest.mark.parametrize("run_once", [True, False])
@pytest.mark.parametrize("kind", [*FAMILIES])
def test_a_prompt_from_a_text_scores_as_its_ids_in_front_of_the_inputs(kind, run_once):
    lm = tiny_lm(kind)
    text = "the film is a warm story"
    ids = lm.tokenizer.encode(text)
    values, _ = from_text(lm.embeddings, lm.tokenizer, len(ids), text=text, generator=draw(0))
    rows = make_rows()
    candidates = make_candidates(rows)
    worn = Engine(lm, [values], run_once=run_once).label_scores(rows, [0] * len(rows), candidates)
    longer = [replace(row, ids=(*ids, *row.ids)) for row in rows]
    bare = Engine(lm, []).label_scores(longer, [NO_PROMPT] * len(rows), candidates)
    without = Engine(lm, []).label_scores(rows, [NO_PROMPT] * len(rows), candidates)
    assert apart([flat(worn)], [flat(bare)]) < TOLERANCE
    assert apart([flat(worn)], [flat(without)]) > 0.1


# Equality 5: PEFT, from the folder we save


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_our_folder_and_gives_our_log_probs_and_tokens(kind, tmp_path):
    from peft import PeftModel

    lm = tiny_lm(kind)
    values, rows = make_prompts(lm)[1], make_rows()
    card = Card(
        model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=lm.is_encoder_decoder, width=lm.width
    )
    save_prompt(SoftPrompt(values, card), tmp_path)
    model = PeftModel.from_pretrained(make_model(kind), tmp_path).eval()
    engine = Engine(lm, [values])
    for row in rows:
        ((ours,),) = engine.label_scores([row], [0], [[row.target]])
        assert ours == pytest.approx(float(peft_log_probs(model, row, lm.is_encoder_decoder).sum()), abs=TOLERANCE)
        (ids,) = written_ids(engine, [row], [0])
        assert [*ids, 1][:6] == peft_tokens(model, row)


def peft_log_probs(model, row, is_encoder_decoder):
    """What PEFT's forward gives each token of the target."""
    target = torch.tensor(row.target)
    with torch.no_grad():
        if is_encoder_decoder:
            logits = model(input_ids=torch.tensor([row.ids]), labels=target[None]).logits[0]
        else:
            logits = model(input_ids=torch.tensor([[*row.ids, *row.target]])).logits[0, -len(target) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def peft_tokens(model, row):
    """The new tokens of PEFT's greedy decoding."""
    ids = torch.tensor([row.ids])
    written = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    tokens = written[0].tolist()
    return tokens[1:] if model.config.is_encoder_decoder else tokens[len(row.ids) :]


# Equality 7: killed and resumed equals never killed, bit for bit


def members_that_choose(lm, *, steps=16):
    """Two members with selection rows, so that the best step is carried over too."""
    form = default_format(lm)
    task = file_task(inputs="{text}", targets="{label}", labels=["sea", "film"])
    texts = ["the sea is warm", "a dull film", "it rained in the night", "the street was wet", "the story finds a town"]
    selection = [Example(inputs=t, targets="sea", id=t, references=("sea",)) for t in texts]
    rate = {"t5": 0.1}.get(lm.name.removeprefix("tiny-"), 0.0)
    optimizers = [Adafactor(learning_rate=0.1), AdamW(learning_rate=0.05, schedule="linear", warmup_steps=3)]
    return [
        Member(
            name=f"m{k}", task=task, form=form, seed=k, values=make_prompts(lm)[k],
            rows=make_rows((3, 19, 8, 5, 8, 12, 4, 7, 6, 9), seed=10 + k),
            config=TrainConfig(
                steps=steps - 3 * k, batch_size=3 + k, optimizer=optimizers[k], dropout=rate, evaluate_every=4,
                scoring="rank",
            ),
            selection=selection, selection_rows=encode_examples(selection, form, lm.tokenizer),
        )
        for k in range(2)
    ]  # fmt: skip


def train_in_a_process(make, folder, moment, number, pipe):
    """Train; when the moment has come say so and (but for `step`) wait there for the end; else send the prompts."""
    torch.set_num_threads(1)
    lm, members = make()
    calls = {"step": 0, "fsync": 0, "replace": 0, "replaced": 0}

    def reached(name):
        calls[name] += 1
        if (name, calls[name]) == (moment, number):
            pipe.send("now")
            time.sleep(0 if name == "step" else 600)

    fsync, replace_file = os.fsync, os.replace
    os.fsync = lambda file: (reached("fsync"), fsync(file))
    os.replace = lambda old, new: (reached("replace"), replace_file(old, new), reached("replaced"))
    fitted = fit(
        lm, members, folder=folder, resume=True, checkpoint_every_s=0.0,
        watch=Watch(step=lambda step, loss, tokens: reached("step")),
    )  # fmt: skip
    pipe.send([(result.steps_run, result.values.tolist()) for result in fitted])


def in_a_process(make, folder, moment="never", number=0):
    """Start a run, or go on with one; kill it with SIGKILL at the moment, or return what it ends with."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.auto", "softprompt.training.loop", *MODELING])
    here, there = context.Pipe()
    process = context.Process(target=train_in_a_process, args=(make, folder, moment, number, there))
    process.start()
    assert here.poll(250)
    told = here.recv()
    if moment != "never":
        assert told == "now"
        process.kill()
    process.join(20)
    assert process.exitcode == (0 if moment == "never" else -signal.SIGKILL)
    return told


def choosing(kind):
    lm = tiny_lm(kind)
    return lm, members_that_choose(lm)


def compiled():
    lm = tiny_lm("llama", num_hidden_layers=1)  # each layer is compiled, which takes seconds
    lm.compile()
    return lm, make_members(lm, optimizer=AdamW(learning_rate=0.05), steps=(8, 8, 6))


def without_seconds(fitted):
    history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in fitted.history]
    return fitted.step, fitted.score, fitted.steps_run, fitted.stopped, history


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_and_resumed_equals_never_killed(kind, tmp_path, one_thread):
    lm = tiny_lm(kind)
    never = fit(lm, members_that_choose(lm))
    for moment, number in [("step", 3), ("fsync", 3), ("replace", 4), ("replaced", 2), ("step", 1)]:
        in_a_process(partial(choosing, kind), tmp_path, moment, number)
    steps = []
    resumed = fit(
        lm,
        members_that_choose(lm),
        folder=tmp_path,
        resume=True,
        watch=Watch(step=lambda step, loss, tokens: steps.append(step)),
    )
    assert 1 < steps[0] < 14 and steps[-1] == 16  # each start writes a checkpoint first
    for one, other in zip(never, resumed, strict=True):
        assert torch.equal(one.values, other.values)
        assert without_seconds(one) == without_seconds(other)
    assert [len(fitted.history) for fitted in resumed] == [4, 4]


def test_killed_and_resumed_equals_never_killed_with_compiled_blocks_too(tmp_path):
    in_a_process(compiled, tmp_path / "killed", "step", 4)
    resumed = in_a_process(compiled, tmp_path / "killed")
    assert resumed == in_a_process(compiled, tmp_path / "never")
    assert [steps for steps, _ in resumed] == [8, 8, 6]


# Equality 8: an ensemble in one pass equals the vote of separate passes


@pytest.mark.parametrize("scoring", ["rank", "generate"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_in_one_pass_equals_the_vote_of_separate_passes(kind, scoring):
    lm = tiny_lm(kind)
    labels = list("abcdefgh")
    task = file_task(inputs="{text}", targets="{label}", labels=labels if scoring == "rank" else None)
    texts = ["the sea is warm", "a dull film", "it rained", "a street in the night was wet", "the story finds the town"]
    examples = [Example(inputs=t, targets="positive", id=t, references=("positive",)) for t in texts]
    form = replace(default_format(lm), max_target_length=4)
    rows = encode_examples(examples, form, lm.tokenizer)
    prompts = make_prompts(lm, (5, 9, 1, 4, 7))
    many = [(m, e, r) for e, r in zip(examples, rows, strict=True) for m in range(5)]
    member, crowd, crowd_rows = zip(*many, strict=True)
    together = predict(Engine(lm, prompts), task, crowd, crowd_rows, list(member), form, scoring=scoring)
    separate = [predict(Engine(lm, [p]), task, examples, rows, [0] * 5, form, scoring=scoring) for p in prompts]
    in_one = ensemble(task, examples, [together[m::5] for m in range(5)])
    voted = ensemble(task, examples, separate)
    assert [v.text for v in in_one] == [v.text for v in voted]
    assert [v.log_prob for v in in_one] == pytest.approx([v.log_prob for v in voted], abs=TOLERANCE)
    assert len({p.text for answers in separate for p in answers}) > 1


# Equality 10: label scores equal the token log-probabilities summed the slow way


@pytest.mark.parametrize("kind", [*FAMILIES])
def test_label_scores_equal_token_log_probs_summed_the_slow_way(kind):
    lm = tiny_lm(kind)
    rows = make_rows()
    candidates = make_candidates(rows)
    text = lm.tokenizer.encode("warm sea")
    prompt = lm.embed(torch.tensor([text]))[0].detach()
    fast = Engine(lm, [prompt]).label_scores(rows, [0] * len(rows), candidates)
    slow = [
        [slow_score(lm, [*text, *row.ids], ids) for ids in choices]
        for row, choices in zip(rows, candidates, strict=True)
    ]
    assert apart([flat(fast)], [flat(slow)]) < TOLERANCE


@torch.no_grad()
def slow_score(lm, inputs, candidate):
    """transformers' own forward on ids, one candidate at a time."""
    target = torch.tensor(candidate)
    if lm.is_encoder_decoder:
        logits = lm.model(input_ids=torch.tensor([inputs]), labels=target[None]).logits[0]
    else:
        logits = lm.model(input_ids=torch.tensor([[*inputs, *candidate]])).logits[0, len(inputs) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, target[:, None]).sum())


@pytest.mark.parametrize("kind", [*FAMILIES])
def test_greedy_tokens_are_those_of_transformers_own_generation(kind):
    lm = tiny_lm(kind)
    for row in make_rows()[:4]:
        batch = collate([row], [NO_PROMPT], 0)
        ours = generate(lm, Embedded(lm.embed(batch.ids), batch.mask), max_tokens=8)
        theirs = lm.model.generate(batch.ids, attention_mask=batch.mask.long(), max_new_tokens=8, do_sample=False)
        new = theirs[0, 1:] if lm.is_encoder_decoder else theirs[0, batch.ids.shape[1] :]
        new = new.tolist()
        assert ours.ids[0] == (new[: new.index(1)] if 1 in new else new)


@pytest.mark.parametrize("kind", ["t5", "umt5", "gemma2"])
def test_eager_attention_scores_and_learns_as_pytorchs_does(kind):
    eager, fused = tiny_lm(kind), tiny_lm(kind)
    eager.model.set_attn_implementation("eager")
    rows = make_rows()
    candidates, worn = make_candidates(rows), [max(member, 0) for member in MEMBER]
    found, wanted = (flat(Engine(lm, make_prompts(lm)).label_scores(rows, MEMBER, candidates)) for lm in (eager, fused))
    assert apart([found], [wanted]) < TOLERANCE * float(wanted.abs().max())
    found, wanted = (gradients(lm, make_prompts(lm), rows, worn, max_tokens=100)[0] for lm in (eager, fused))
    assert apart(found, wanted) < 10 * TOLERANCE * float(torch.cat(wanted).abs().max())


@torch.no_grad()
def test_a_batch_that_no_row_joins_keeps_what_t5_reads_of_its_inputs_and_gives_the_same(t5, monkeypatch):
    rows = [Row((*range(9, 9 + length), 1), (), False, 0) for length in (12, 3, 7, 1)]
    entering = Engine(t5, []).inputs(rows, [NO_PROMPT] * len(rows))
    starts = [Start(ids=(), prompt_length=len(row.ids), max_tokens=40) for row in rows]

    def logits(is_closed):
        batch, found = RunningBatch(t5, t5.layout()), []
        slots, _ = batch.begin(entering, starts)
        batch.groups[0].states.is_closed = is_closed
        for step in range(40):  # more than a buffer has room for
            found.append(batch.decode())
            if step in (1, 35):
                batch.drop(slots[0 if step == 1 else 2])  # the longest row first
            for place, slot in enumerate(batch.slots):
                slot.token = 5 + step + place
        return found

    assert apart(logits(True), logits(False)) < TOLERANCE
    monkeypatch.setattr(CrossAttention, "_folded", lambda *given: pytest.fail("the inputs were read anew"))
    assert len(generate(t5, entering, max_tokens=6).ids) == len(rows)


@torch.no_grad()
def test_t5s_encoder_gives_padded_rows_what_transformers_gives_them(t5):
    x = torch.randn(3, 9, t5.width, generator=draw(0))
    mask = torch.arange(9) < torch.tensor([[9], [5], [1]])
    for real in (mask, mask.flip(1), torch.ones_like(mask)):
        wanted = make_model("t5").encoder(inputs_embeds=x, attention_mask=real).last_hidden_state
        assert apart([t5.encode(x, real)[real]], [wanted[real]]) < TOLERANCE


def test_the_layers_of_t5s_encoder_share_one_bias_with_the_mask_in_it():
    lm = FrozenLM(make_model("t5", num_layers=3), make_tokenizer(), name="tiny-t5")
    got = []
    for block in lm.model.encoder.block:
        attention = block.layer[0].SelfAttention
        attention.register_forward_pre_hook(lambda _, args, kwargs: got.append(kwargs), with_kwargs=True)
    lm.encode(torch.zeros(2, 4, lm.width), torch.arange(4) < torch.tensor([[4], [2]]))
    first, second, third = got
    assert first["mask"] is not None and first["position_bias"] is None
    assert second["mask"] is third["mask"] is None and second["position_bias"] is third["position_bias"]
    assert second["position_bias"].shape == (2, lm.num_heads, 4, 4) and second["position_bias"].is_contiguous()


# torch 2.13's own compiler imports what torch 2.13 has deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_compiled_blocks_attend_with_in_bfloat16_is_no_further_from_float32(kind):
    def gradient_of(lm):
        return torch.cat(gradients(lm, make_prompts(lm), make_rows()[:6], [0, 1, 2, 0, 1, 2], max_tokens=70)[0])

    def readers(lm):
        return lm.model.encoder.config if lm.is_encoder_decoder else lm.config

    wanted, fused = gradient_of(tiny_lm(kind)), gradient_of(in_bfloat16(kind))
    lm, precise = in_bfloat16(kind), tiny_lm(kind)
    for one in (lm, precise):
        one.compile()  # compiles nothing before it is called
    assert readers(precise)._attn_implementation == "sdpa"
    written_out = in_bfloat16(kind)
    readers(written_out)._attn_implementation = readers(lm)._attn_implementation
    assert readers(written_out)._attn_implementation == use_written_out_attention()
    found = gradient_of(written_out)
    assert not torch.equal(found, fused)
    assert float((found - wanted).norm()) < 1.5 * float((fused - wanted).norm()) < 0.2 * float(wanted.norm())


@pytest.mark.parametrize("mask", [None, "bool", "added"])
def test_written_out_attention_is_pytorchs(mask):
    def random(*shape):
        return torch.randn(*shape, generator=generator, requires_grad=True)

    generator = draw(0)
    query, key, value = random(2, 4, 5, 8), random(2, 2, 7, 8), random(2, 2, 7, 8)
    bias, gradient = random(1, 4, 5, 7), torch.randn(2, 4, 5, 8, generator=generator)
    allowed = torch.rand(2, 1, 5, 7, generator=generator) > 0.3
    allowed[..., 0] = True
    added = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    given = {None: None, "bool": allowed, "added": added}[mask]
    options = {"attn_mask": bias if mask is None else bias + added, "enable_gqa": True}
    for scale in (None, 1.0):
        ours, _ = written_out_attention(None, query, key, value, given, scaling=scale, position_bias=bias)
        theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale, **options)
        assert apart([ours.transpose(1, 2).detach()], [theirs.detach()]) < TOLERANCE
        parts = [query, key, value, bias]
        pairs = (torch.autograd.grad(out, parts, gradient) for out in (ours.transpose(1, 2), theirs))
        assert apart(*pairs) < TOLERANCE
