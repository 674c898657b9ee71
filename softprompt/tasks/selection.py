"""Which examples may be trained on, and which choose the step and the settings: held-out parts and leaks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from softprompt.base.names import normal
from softprompt.tasks.task import Example, Task

Sides = tuple[list[Example], list[Example]]


def hold_out(examples: Sequence[Example], task: Task, *, fraction: float = 0.1, seed: int) -> Sides:
    """(examples to train on, examples held out), each in the order given; the seed alone decides.

    Labels keep their shares, and examples of one source (where there is none, of inputs equal as in
    `without_overlap`) stay on one side. Of a task whose sources nest (SST-2: phrases of sentences), sentences that
    are part of no other are drawn; they are the held-out part, and every phrase of theirs leaves the training part.

    Raises ValueError for a fraction outside 0 to 1, or if a side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, but must be between 0 and 1")
    groups = _groups(examples, task)
    wanted = _shares(Counter(_stratum(examples[i], task) for group in groups for i in group), fraction)
    taken: Counter[str] = Counter()
    held: list[int] = []
    for group in _shuffled(groups, seed):
        added = Counter(_stratum(examples[i], task) for i in group)
        gain = sum(abs(wanted[s] - taken[s]) - abs(wanted[s] - taken[s] - n) for s, n in added.items())
        if gain > 0:
            taken += added
            held += group
    if not held:
        held = min(_shuffled(groups, seed), key=len, default=[])
    return _sides(examples, task, held)


def in_whole_groups(examples: Sequence[Example], count: int) -> int:
    """How many of the first examples to take for at most `count`, so that none that are scored together are parted; the
    first group is taken whole. Examples of a group stand side by side.
    """
    if count >= len(examples):
        return len(examples)
    group = examples[count].group
    if group is None or examples[count - 1].group != group:
        return count
    start = next(place for place, example in enumerate(examples) if example.group == group)
    return start or next((n for n in range(count, len(examples)) if examples[n].group != group), len(examples))


def folds(examples: Sequence[Example], task: Task, *, num_folds: int = 5, seed: int) -> list[Sides]:
    """`num_folds` pairs (train on, held out) whose held-out parts are disjoint and together everything.

    Stratified and grouped as in `hold_out`; for sets under 500 examples. Raises ValueError for fewer than two
    folds, or fewer sources than folds.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds is {num_folds}, but must be 2 or more")
    groups = sorted(_shuffled(_groups(examples, task), seed), key=len, reverse=True)
    if len(groups) < num_folds:
        raise ValueError(f"{len(examples)} examples of {len(groups)} sources cannot make {num_folds} folds")
    members: list[list[int]] = [[] for _ in range(num_folds)]
    filled: list[Counter[str]] = [Counter() for _ in range(num_folds)]
    for group in groups:
        added = Counter(_stratum(examples[i], task) for i in group)

        def load(fold: int, added: Counter[str] = added) -> tuple[int, int]:
            return sum(filled[fold][stratum] * n for stratum, n in added.items()), len(members[fold])

        fold = min(range(num_folds), key=load)
        members[fold] += group
        filled[fold] += added
    return [_sides(examples, task, held) for held in members]


def without_overlap(examples: Sequence[Example], others: Iterable[Example]) -> tuple[list[Example], int]:
    """(the examples whose inputs are not among the others', how many were dropped).

    Inputs are equal here if they are after folding case, spaces and punctuation.
    """
    known = {folded(example.inputs) for example in others}
    kept = [example for example in examples if folded(example.inputs) not in known]
    return kept, len(examples) - len(kept)


def folded(text: str) -> str:
    """The text's letters and digits, in one case, those that look the same the same; the text itself if it has none."""
    return "".join(filter(str.isalnum, normal(text).casefold())) or text.strip()


def _stratum(example: Example, task: Task) -> str:
    return example.targets if task.labels else ""


def _shuffled(groups: Sequence[list[int]], seed: int) -> list[list[int]]:
    return [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]


def _shares(counts: Counter[str], fraction: float) -> dict[str, int]:
    """Whole numbers near fraction x count that sum to the whole's share: largest remainders, at least one."""
    exact = {stratum: count * fraction for stratum, count in counts.items()}
    shares = {stratum: int(value) for stratum, value in exact.items()}
    missing = max(round(sum(exact.values())), 1) - sum(shares.values())
    by_remainder = sorted(exact, key=lambda stratum: (shares[stratum] - exact[stratum], stratum))
    for stratum in by_remainder[:missing]:
        shares[stratum] += 1
    return shares


def _groups(examples: Sequence[Example], task: Task) -> list[list[int]]:
    """Places of the examples that may be held out, those of one source together."""
    groups: dict[str, list[int]] = defaultdict(list)
    if task.nested_sources:
        sources = _padded_sources(examples)
        whole = _whole_sentences(sources)
        for place, source in enumerate(sources):
            if source in whole:
                groups[source].append(place)
    elif task.joined_sources:
        for place, root in enumerate(_joined(examples)):
            groups[root].append(place)
    else:
        for place, example in enumerate(examples):
            groups[folded(example.inputs) if example.source is None else example.source].append(place)
    return list(groups.values())


def _joined(examples: Sequence[Example]) -> list[str]:
    """For each example one line that stands for all that are linked to its own, by examples that share them.

    Lines are equal as inputs are in `without_overlap`.
    """
    above: dict[str, str] = {}

    def root(line: str) -> str:
        while (parent := above.setdefault(line, line)) != line:
            above[line] = above[parent]
            line = parent
        return line

    lines = [[folded(line) for line in (example.source or example.inputs).split("\n")] for example in examples]
    for first, *others in lines:
        for other in others:
            above[root(other)] = root(first)
    return [root(first) for first, *_ in lines]


def _sides(examples: Sequence[Example], task: Task, held: Sequence[int]) -> Sides:
    out = set(held)
    train = [example for place, example in enumerate(examples) if place not in out]
    if task.nested_sources:
        runs = _token_runs(_padded_sources([examples[i] for i in out]))
        train = [e for e, source in zip(train, _padded_sources(train), strict=True) if source not in runs]
    if not out or not train:
        raise ValueError(f"{len(examples)} examples of one source cannot be split into two parts")
    return train, [examples[i] for i in sorted(out)]


def _padded_sources(examples: Sequence[Example]) -> list[str]:
    """Each source with a space before and after each token, so that a run of tokens is a substring."""
    return [f" {' '.join((example.source or example.inputs).split())} " for example in examples]


def _whole_sentences(phrases: Iterable[str]) -> set[str]:
    """The phrases that are no run of tokens of another.

    Each is looked for only in the sentences that share its rarest token, the longer ones first: every phrase
    that is part of another is part of one that is part of none.
    """
    distinct = {phrase: phrase.split() for phrase in phrases}
    commonness = Counter(token for tokens in distinct.values() for token in set(tokens))
    holders: dict[str, list[str]] = defaultdict(list)
    whole: set[str] = set()
    for phrase, tokens in sorted(distinct.items(), key=lambda item: len(item[1]), reverse=True):
        rarest = min(tokens, key=commonness.__getitem__)
        if any(phrase in sentence for sentence in holders[rarest]):
            continue
        whole.add(phrase)
        for token in set(tokens):
            holders[token].append(phrase)
    return whole


def _token_runs(sentences: Iterable[str]) -> set[str]:
    runs = set()
    for sentence in sentences:
        tokens = sentence.split()
        for start in range(len(tokens)):
            for end in range(start + 1, len(tokens) + 1):
                runs.add(f" {' '.join(tokens[start:end])} ")
    return runs
