"""The n-gram baseline against probabilities worked out the slow way, and as a distribution."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def ngrams(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from ngrams import NGrams

    return NGrams


def slow(text, vocabulary, order):
    """log-probabilities by dictionaries: interpolated modified Kneser-Ney."""
    grams = {n: Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for n in range(1, order + 2)}
    counts = {order: grams[order]}
    for n in range(1, order):
        counts[n] = Counter(gram[1:] for gram in grams[n + 1])
    discounts = {}
    for n in counts:
        of = Counter(min(c, 5) for c in counts[n].values())
        if min(of[k] for k in (1, 2, 3, 4)) == 0:
            discounts[n] = [0, 0.5, 0.5, 0.5]
        else:
            y = of[1] / (of[1] + 2 * of[2])
            discounts[n] = [0, *(max(k - (k + 1) * y * of[k + 1] / of[k], 0) for k in (1, 2, 3))]

    def p(word, context):
        n = len(context) + 1
        lower = p(word, context[1:]) if n > 1 else 1 / vocabulary
        after = {gram[-1]: c for gram, c in counts[n].items() if gram[:-1] == context}
        total = sum(after.values())
        if not total:
            return lower
        taken = {w: discounts[n][min(c, 3)] for w, c in after.items()}
        direct = (after[word] - taken[word]) / total if word in after else 0.0
        return direct + sum(taken.values()) / total * lower

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_log_probabilities_are_those_of_the_slow_way(ngrams, order):
    rng = np.random.default_rng(0)
    text = rng.choice(7, size=400, p=[0.4, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02])
    new = rng.integers(0, 8, size=40)
    p = slow(text.tolist(), 8, order)
    words = new.tolist()
    wanted = [np.log(p(words[i], tuple(words[max(0, i - order + 1) : i]))) for i in range(order, 40)]
    found = ngrams(text, 8, order).log_probs(new)[order:]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_next_ids_probabilities_sum_to_one(ngrams):
    text = np.random.default_rng(1).integers(0, 6, size=300)
    model = ngrams(text, 6, 3)
    for context in ([2, 3], [5, 5], [0, 1]):
        total = sum(np.exp(model.log_probs(np.array([*context, word]))[-1]) for word in range(6))
        assert total == pytest.approx(1.0)


def test_it_learns_what_follows_what(ngrams):
    text = np.tile(np.arange(10), 200)
    found = ngrams(text, 10, 5).log_probs(np.tile(np.arange(10), 2))
    assert found[5:].mean() > -0.05


def test_a_text_too_short_is_refused(ngrams):
    with pytest.raises(ValueError, match="a text of 3 ids is too short for 5-grams"):
        ngrams(np.arange(3), 10)
