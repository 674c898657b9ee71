"""Adafactor against numbers from its published formula in float64, AdamW against PyTorch's."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from softprompt.training.optimizers import Adafactor, AdamW, kind_of, rate_multiplier


def published_adafactor(prompt, gradients, *, factored, offset=0, rate=0.3, decay=1e-5):
    """Prompts after each step, in float64: Shazeer and Stern 2018, algorithms 2 and 4, with T5X's
    decoupled weight decay, clipping threshold 1, no momentum and no relative step size.
    """
    x = prompt.astype(np.float64)
    v = r = c = 0.0
    history = []
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.astype(np.float64)
        beta2 = 1.0 - (t + offset) ** -0.8
        squared = g**2 + 1e-30
        if factored:
            r = beta2 * r + (1.0 - beta2) * squared.sum(axis=1)
            c = beta2 * c + (1.0 - beta2) * squared.sum(axis=0)
            second_moment = np.outer(r, c) / r.sum()
        else:
            v = beta2 * v + (1.0 - beta2) * squared
            second_moment = v
        u = g / np.sqrt(second_moment)
        u = u / max(1.0, np.sqrt(np.mean(u**2)) / 1.0)
        x = (1.0 - decay) * x - rate * u
        history.append(x)
    return history


def gradients(shape, steps=30, scale=1.0):
    """Gradients whose rows and columns differ a hundredfold in size and whose signs change."""
    rng = np.random.default_rng(7)
    sizes = np.logspace(-1, 1, shape[0])[:, None] * np.logspace(-1, 1, shape[1])[None, :]
    return [(scale * sizes * rng.normal(size=shape)).astype(np.float32) for _ in range(steps)]


@pytest.mark.parametrize("offset", [0, 1_100_000])
@pytest.mark.parametrize(
    ("shape", "factored"),
    [((100, 160), False), ((127, 160), False), ((128, 160), True), ((150, 128), True), ((1, 300), False)],
)
def test_adafactor_equals_the_published_formula(shape, factored, offset):
    start = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    given = gradients(shape)
    wanted = published_adafactor(start, given, factored=factored, offset=offset)
    prompt, settings = torch.tensor(start), Adafactor(step_offset=offset)
    state = settings.init(prompt)
    assert ("v_row" in state) == factored
    for gradient, x in zip(given, wanted, strict=True):
        settings.update(prompt, torch.tensor(gradient), state)
        np.testing.assert_allclose(prompt.numpy(), x, rtol=1e-5, atol=3e-5)
    assert abs(wanted[-1] - start).max() > 0.5  # it moved, ten thousand times the tolerance


def test_the_first_step_of_adafactor_is_the_rate_along_the_sign():
    prompt = torch.tensor([[1.0, -2.0]])
    settings = Adafactor(weight_decay=0.0)
    settings.update(prompt, torch.tensor([[5.0, -0.01]]), settings.init(prompt))
    torch.testing.assert_close(prompt, torch.tensor([[0.7, -1.7]]))


def test_weight_decay_is_not_times_the_rate():
    prompt = torch.tensor([[10.0, 10.0]])
    settings = Adafactor(learning_rate=0.5, weight_decay=0.1)
    settings.update(prompt, torch.zeros(1, 2), settings.init(prompt))
    assert prompt.tolist() == [[9.0, 9.0]]


def test_with_the_offset_every_step_moves_by_the_rate():
    prompt, settings = torch.zeros(10, 16), Adafactor(step_offset=1_100_000, weight_decay=0.0)
    state = settings.init(prompt)
    for gradient in gradients((10, 16), 5):
        before = prompt.clone()
        settings.update(prompt, torch.tensor(gradient), state)
        assert (prompt - before).square().mean().sqrt() == pytest.approx(0.3, rel=1e-4)


def test_the_clip_is_over_the_whole_prompt():
    prompt, settings = torch.zeros(2, 2), Adafactor(learning_rate=1.0, weight_decay=0.0, clip=0.5)
    settings.update(prompt, torch.tensor([[1.0, 1.0], [0.0, 0.0]]), settings.init(prompt))
    # the unclipped update is [[1, 1], [0, 0]], whose root mean square is 0.7071
    torch.testing.assert_close(prompt, torch.tensor([[-0.70711, -0.70711], [0.0, 0.0]]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adamw_equals_pytorchs(weight_decay, clip_norm):
    start = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    settings = AdamW(learning_rate=0.01, weight_decay=weight_decay, clip_norm=clip_norm)
    state = settings.init(ours)
    rival = torch.optim.AdamW([theirs], lr=0.01, weight_decay=weight_decay)
    for gradient in gradients((6, 8)):
        settings.update(ours, torch.tensor(gradient), state)
        theirs.grad = torch.tensor(gradient)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([theirs], clip_norm)
        rival.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)
    assert (ours - start).abs().max() > 0.05


def test_adamw_leaves_a_gradient_below_the_bound_and_the_callers_tensor_alone():
    gradient = torch.tensor([[3.0, 4.0]])
    moments = []
    for bound in (None, 5.0, 2.5):
        settings = AdamW(learning_rate=0.1, clip_norm=bound)
        prompt = torch.zeros(1, 2)
        state = settings.init(prompt)
        settings.update(prompt, gradient, state)
        moments.append(state["first"])
    assert gradient.tolist() == [[3.0, 4.0]]
    assert torch.equal(moments[0], moments[1])
    torch.testing.assert_close(moments[2], torch.tensor([[0.15, 0.2]]))


def test_a_gradient_of_zeros_is_no_trouble():
    for settings in (Adafactor(), AdamW(learning_rate=0.1, clip_norm=1.0)):
        prompt = torch.zeros(3, 4)
        settings.update(prompt, torch.zeros(3, 4), settings.init(prompt))
        assert prompt.tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize(
    "settings",
    [
        Adafactor(schedule="cosine", warmup_steps=3),
        Adafactor(min_dim_size_to_factor=4),
        AdamW(learning_rate=0.1, weight_decay=0.01, clip_norm=1.0, schedule="linear"),
    ],
)
def test_a_state_saved_and_read_goes_on_bit_for_bit(settings):
    given = [torch.tensor(gradient) for gradient in gradients((5, 8), 12)]
    whole = torch.ones(5, 8)
    state = settings.init(whole)
    for step, gradient in enumerate(given):
        if step == 5:
            saved = save({"prompt": whole, **state})
        settings.update(whole, gradient, state, total_steps=12)
    again = load(saved)
    resumed = again.pop("prompt")
    for gradient in given[5:]:
        settings.update(resumed, gradient, again, total_steps=12)
    assert torch.equal(resumed, whole)
    assert int(again["step"]) == 12
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_an_update_changes_a_leaf_and_one_members_rows_in_place():
    prompts = torch.ones(2, 3, 4, requires_grad=True)
    settings = Adafactor()
    own = prompts.detach()[1, :2]  # a member with a shorter prompt
    settings.update(own, torch.ones(2, 4), settings.init(own))
    torch.testing.assert_close(prompts.detach()[1, :2], torch.full((2, 4), 0.69999))
    assert prompts[0].eq(1).all()
    assert prompts[1, 2].eq(1).all()
    leaf = torch.ones(3, 4, requires_grad=True)
    settings.update(leaf, torch.ones(3, 4), settings.init(leaf))
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert leaf.max() < 0.71


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 4, [0.25, 0.5, 0.75, 1, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("linear", 2, [0.5, 1, 1, 0.5, 0, 0]),
        ("cosine", 0, [1, 0.8535533906, 0.5, 0.1464466094, 0, 0]),
        ("cosine", 2, [0.5, 1, 1, 0.5, 0, 0]),
        ("rsqrt", 0, [1, 0.7071067812, 0.5773502692, 0.5, 0.4472135955, 0.4082482905]),
        ("rsqrt", 2, [0.5, 1, 0.8164965809, 0.7071067812, 0.6324555320, 0.5773502692]),
    ],
)
def test_schedules_multiply_the_rate(schedule, warmup, wanted):
    found = [rate_multiplier(schedule, step, warmup, 4) for step in range(6)]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize("settings", [Adafactor(schedule="linear"), AdamW(learning_rate=0.3, schedule="linear")])
def test_the_schedule_is_followed_from_the_states_step(settings):
    prompt = torch.zeros(1, 2)
    state = settings.init(prompt)
    moves = []
    for _ in range(5):
        before = prompt.clone()
        settings.update(prompt, torch.ones(1, 2), state, total_steps=4)
        moves.append(float((before - prompt)[0, 0]))
    assert moves == pytest.approx([0.3, 0.225, 0.15, 0.075, 0.0], abs=1e-4)


@pytest.mark.parametrize("total", [None, 3, 2])
def test_a_schedule_that_ends_needs_steps_beyond_its_warmup(total):
    wanted = rf"a cosine schedule needs more steps in all \({total}\) than for its warm-up \(3\)"
    with pytest.raises(ValueError, match=wanted):
        rate_multiplier("cosine", 3, 3, total)


def test_an_unknown_optimizer_names_the_nearest():
    assert (kind_of("adafactor"), kind_of("adamw")) == (Adafactor, AdamW)
    with pytest.raises(ValueError, match="no optimizer is named 'adafactr'; did you mean 'adafactor'"):
        kind_of("adafactr")


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        (
            "adafactor",
            {"schedule": "cosin"},
            "no schedule is named 'cosin'; did you mean 'cosine'.*there are constant",
        ),
        ("adafactor", {"learning_rate": -0.3}, "learning_rate is -0.3; wanted a number above 0"),
        ("adafactor", {"learning_rate": float("nan")}, "learning_rate is nan; wanted a number above 0"),
        ("adamw", {"learning_rate": 0.0}, "learning_rate is 0.0; wanted a number above 0"),
        ("adafactor", {"warmup_steps": -1}, "warmup_steps is -1; wanted 0 or more"),
        ("adafactor", {"weight_decay": -1e-5}, "weight_decay is -1e-05; wanted 0 or more"),
        ("adafactor", {"step_offset": -1}, "step_offset is -1; wanted 0 or more"),
        ("adafactor", {"decay_rate": 0.0}, "decay_rate is 0.0; wanted a number above 0"),
        ("adafactor", {"clip": 0.0}, "clip is 0.0; wanted a number above 0"),
        ("adafactor", {"epsilon": 0.0}, "epsilon is 0.0; wanted a number above 0"),
        ("adamw", {"learning_rate": 0.1, "epsilon": -1.0}, "epsilon is -1.0; wanted a number above 0"),
        ("adamw", {"learning_rate": 0.1, "weight_decay": -1.0}, "weight_decay is -1.0; wanted 0 or more"),
        ("adamw", {"learning_rate": 0.1, "clip_norm": 0.0}, "clip_norm is 0.0; wanted a number above 0"),
        ("adamw", {"learning_rate": 0.1, "betas": (0.9, 1.0)}, r"betas are \(0.9, 1.0\); wanted two numbers"),
    ],
)
def test_settings_that_cannot_work_are_refused(name, settings, words):
    with pytest.raises(ValueError, match=words):
        kind_of(name)(**settings)
