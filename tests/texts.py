"""Invented text for tests of pre-training: sentences of a small grammar, so that there is something to learn."""

import numpy as np

NOUNS = ["sea", "town", "film", "story", "winter", "garden", "letter", "river", "doctor", "market", "engine", "song"]
VERBS = ["follows", "remembers", "paints", "answers", "crosses", "measures", "carries", "forgets"]
KINDS = ["old", "warm", "quiet", "narrow", "bright", "careful", "heavy", "strange"]


def documents(count, *, seed=0, sentences=6):
    """Documents of invented sentences."""
    rng = np.random.default_rng(seed)

    def sentence():
        a, b = rng.choice(NOUNS, 2, replace=False)
        kind, other = rng.choice(KINDS, 2, replace=False)
        return f"The {kind} {a} {rng.choice(VERBS)} the {other} {b}."

    return [" ".join(sentence() for _ in range(sentences)) for _ in range(count)]
