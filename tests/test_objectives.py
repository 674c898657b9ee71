"""Span corruption and prefix LM: nothing lost, nothing invented, lengths exact, the paper's own example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softprompt.pretraining.objectives import (
    NUM_SENTINELS,
    corrupt_spans,
    draw_split,
    noise_mask,
    prefix_lm,
    span_corruption,
    span_lengths,
)

SENTINEL = 32_099  # <extra_id_0> of T5's vocabulary
EOS = 1


def restore_spans(inputs, targets, first_sentinel):
    """The text that `corrupt_spans` was given."""
    is_sentinel = range(first_sentinel - NUM_SENTINELS + 1, first_sentinel + 1)
    spans = {}
    for id in targets:
        if id in is_sentinel:
            current = spans.setdefault(id, [])
        else:
            current.append(id)
    return [word for id in inputs for word in (spans[id] if id in is_sentinel else [id])]


def test_the_papers_example():
    words = ["Thank", "you", "for", "inviting", "me", "to", "your", "party", "last", "week"]
    ids = {word: id for id, word in enumerate(words, start=10)}
    masked = {"for", "inviting", "last"}
    inputs, targets = corrupt_spans([ids[w] for w in words], [w in masked for w in words], SENTINEL)
    names = {id: word for word, id in ids.items()} | {SENTINEL: "<X>", SENTINEL - 1: "<Y>", SENTINEL - 2: "<Z>"}
    assert " ".join(names[id] for id in inputs) == "Thank you <X> me to your party <Y> week"
    assert " ".join(names[id] for id in targets) == "<X> for inviting <Y> last <Z>"


@pytest.mark.parametrize(
    ("inputs", "text", "targets", "spans"), [(512, 568, 114, 28), (256, 284, 58, 14), (128, 141, 29, 7), (8, 7, 3, 1)]
)
def test_lengths_of_span_corruption(inputs, text, targets, spans):
    lengths = span_lengths(inputs)
    assert (lengths.text, lengths.targets, lengths.spans) == (text, targets, spans)
    assert lengths.inputs <= inputs


@given(inputs=st.integers(8, 390), seed=st.integers(0, 2**32), density=st.sampled_from([0.15, 0.3, 0.5]))
def test_nothing_is_lost_or_invented_and_lengths_are_exact(inputs, seed, density):
    lengths = span_lengths(inputs, noise_density=density, mean_span_length=3.0)
    rng = np.random.default_rng(seed)
    text = rng.integers(3, 30_000, size=lengths.text)
    mask = noise_mask(lengths, rng)
    assert mask.sum() == lengths.noise
    assert not mask[0]
    assert mask[-1]
    assert (np.diff(mask.astype(int)) == 1).sum() == lengths.spans
    made = corrupt_spans(text, mask, SENTINEL)
    assert len(made.inputs) + 1 == lengths.inputs
    assert len(made.targets) + 1 == lengths.targets
    assert restore_spans(*made, SENTINEL) == text.tolist()
    assert [id for id in made.targets if id > 30_000] == list(range(SENTINEL, SENTINEL - lengths.spans, -1))


@given(mask=st.lists(st.booleans(), min_size=1, max_size=60))
def test_any_mask_can_be_undone(mask):
    text = list(range(100, 100 + len(mask)))
    made = corrupt_spans(text, mask, SENTINEL)
    assert restore_spans(*made, SENTINEL) == text
    kept = [id for id, is_noise in zip(text, mask, strict=True) if not is_noise]
    assert [id for id in made.inputs if id < 1_000] == kept
    if any(mask):
        assert made.targets[0] == SENTINEL


def test_spans_are_three_tokens_on_average_and_differ_between_rows():
    lengths = span_lengths(512)
    assert lengths.noise / lengths.spans == pytest.approx(3.0, abs=0.1)
    rng = np.random.default_rng(0)
    masks = np.stack([noise_mask(lengths, rng) for _ in range(200)])
    assert len({mask.tobytes() for mask in masks}) == 200
    inside = masks[:, 20:-20].mean(0)  # the first token is never masked and the last always is
    assert 0.05 < inside.min() < inside.max() < 0.27


def test_a_batch_of_span_corruption():
    lengths = span_lengths(64)
    texts = np.random.default_rng(1).integers(3, 1_000, size=(5, lengths.text))
    inputs, targets = span_corruption(texts, lengths, SENTINEL, EOS, np.random.default_rng(2))
    assert inputs.shape == (5, lengths.inputs)
    assert targets.shape == (5, lengths.targets)
    assert (inputs[:, -1] == EOS).all()
    assert (targets[:, -1] == EOS).all()
    for row in range(5):
        assert restore_spans(inputs[row, :-1].tolist(), targets[row, :-1].tolist(), SENTINEL) == texts[row].tolist()


@given(length=st.integers(2, 80), seed=st.integers(0, 2**32))
def test_prefix_and_rest_are_the_text(length, seed):
    rng = np.random.default_rng(seed)
    texts = rng.integers(3, 1_000, size=(3, length))
    split = draw_split(length, rng)
    assert 1 <= split < length
    inputs, targets = prefix_lm(texts, split, EOS)
    assert (inputs[:, -1] == EOS).all()
    assert (targets[:, -1] == EOS).all()
    assert (np.concatenate([inputs[:, :-1], targets[:, :-1]], 1) == texts).all()


def test_splits_are_uniform():
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_split(11, rng) for _ in range(10_000)], minlength=11)
    assert counts[0] == 0
    assert counts[1:].min() > 850
    assert counts[1:].max() < 1_150


def test_lengths_that_cannot_be():
    with pytest.raises(ValueError, match="wanted a density between 0 and 1 and spans of 1 token or more"):
        span_lengths(512, noise_density=1.0)
    with pytest.raises(ValueError, match="inputs of 2 tokens are too short for spans; give more"):
        span_lengths(2)
    with pytest.raises(ValueError, match=f"but there are {NUM_SENTINELS}; give fewer tokens or longer spans"):
        span_lengths(4_096)
