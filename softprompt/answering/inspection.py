"""What a trained prompt looks like (paper, section 7): the vocabulary's nearest tokens to each of its rows, whether
labels persist, which rows share their neighbours, norms, drift from the start, and what each row is worth.

Everything goes by cosine: trained rows are several times longer than embeddings, so distances say nothing.
Shapes: p prompt tokens, v vocabulary, d width, n vectors of that width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.answering.evaluation import evaluate
from softprompt.answering.saved import SavedPrompts
from softprompt.base.watch import Watch
from softprompt.models import FrozenLM
from softprompt.prompts import Card, SoftPrompt, from_uniform
from softprompt.tasks import Example

NUM_NEAREST = 5  # paper, section 7: the top 5
# When a row is worth a word of warning. All ours.
UNMOVED = 1e-6  # 1 - cosine with its start
TWINS = 0.999  # cosine of two rows
TOO_LONG = 100.0  # times the vocabulary's median norm; the authors' three released prompts reach about 5


@dataclass(frozen=True)
class Neighbours:
    """The tokens nearest to one row of a prompt."""

    position: int
    """The row, from 0."""
    norm: float
    tokens: tuple[str, ...]
    """Nearest first."""
    ids: tuple[int, ...]
    cosines: tuple[float, ...]


def nearest_tokens(values: Float[Tensor, "p d"], lm: FrozenLM, count: int = NUM_NEAREST) -> list[Neighbours]:
    """The ordinary tokens of the vocabulary nearest to each row by cosine; trained rows' norms make distances useless.

    ValueError for a prompt of another width, or a count below 1.
    """
    if values.shape[1] != lm.width:
        raise ValueError(f"the prompt has width {values.shape[1]}, and {lm.name} has {lm.width}; take its own model")
    if count < 1:
        raise ValueError(f"count is {count}, but must be 1 or more")
    ids = torch.tensor(lm.tokenizer.ordinary_ids())
    table = lm.embeddings.detach()[ids.to(lm.device)].to("cpu", torch.float32)
    cosines = torch.nn.functional.normalize(values, dim=1) @ torch.nn.functional.normalize(table, dim=1).T
    best = cosines.topk(min(count, len(ids)), dim=1)
    rows = []
    for position, norm in enumerate(values.norm(dim=1).tolist()):
        near = tuple(ids[best.indices[position]].tolist())
        pieces = tuple(lm.tokenizer.piece(id) for id in near)
        rows.append(Neighbours(position, norm, pieces, near, tuple(best.values[position].tolist())))
    return rows


@dataclass(frozen=True)
class Label:
    """Where a label of the task is found in a prompt."""

    label: str
    started: tuple[int, ...]
    """The rows that began as it."""
    near: tuple[int, ...]
    """The rows that have one of its pieces among their nearest tokens."""

    @property
    def persists(self) -> bool | None:
        """Whether a row that began as the label still is near it; None if none began so."""
        return bool(set(self.started) & set(self.near)) if self.started else None


@dataclass(frozen=True)
class Inspection:
    """What a prompt looks like."""

    rows: tuple[Neighbours, ...]
    starts: tuple[str, ...]
    """What each row began as: a label, a piece, or nothing that is a text."""
    drift: tuple[float | None, ...]
    """1 - cosine of each row with its start; None where the start is not known."""
    vocabulary_norm: float
    """The median norm of the vocabulary's ordinary tokens."""
    labels: tuple[Label, ...]
    shared: dict[str, tuple[int, ...]]
    """Tokens that are the nearest of several rows, and these."""
    mean_cosine: float
    """Of two different rows; 1 for a prompt of one row."""
    warnings: tuple[str, ...]


def inspect_prompt(prompt: SoftPrompt, lm: FrozenLM, count: int = NUM_NEAREST) -> Inspection:
    """Look at a prompt. count: nearest tokens of each row. ValueError for keys and values, and as
    `nearest_tokens` has it.
    """
    if prompt.is_kv:
        raise ValueError("the prompt is keys and values, which are near no token; inspect takes soft prompts")
    rows = tuple(nearest_tokens(prompt.values, lm, count))
    table = lm.embeddings.detach()[torch.tensor(lm.tokenizer.ordinary_ids(), device=lm.device)].float()
    vocabulary_norm = float(table.norm(dim=1).median())
    start = starting_values(prompt.card, lm, prompt.length)
    drift: tuple[float | None, ...] = (None,) * prompt.length
    if start is not None:
        drift = tuple((1 - torch.nn.functional.cosine_similarity(prompt.values, start, dim=1)).tolist())
    cosines = _cosines(prompt.values)
    nearest_of: dict[str, list[int]] = {}
    for row in rows:
        nearest_of.setdefault(row.tokens[0], []).append(row.position)
    several = {token: tuple(places) for token, places in nearest_of.items() if len(places) > 1}
    entries = _entries(prompt.card, prompt.length)
    return Inspection(
        rows=rows,
        starts=tuple(entry.get("label") or "".join(entry.get("pieces", ())) for entry in entries),
        drift=drift,
        vocabulary_norm=vocabulary_norm,
        labels=_labels(prompt.card, rows, lm),
        shared=dict(sorted(several.items(), key=lambda item: -len(item[1]))),
        mean_cosine=_mean_of_two(cosines),
        warnings=tuple(_warnings(prompt.values, drift, cosines, vocabulary_norm)),
    )


def neighbourhood(prompt: SoftPrompt, lm: FrozenLM) -> dict[str, float]:
    """Section 7 in numbers, as rows keep them: how near the five nearest tokens of a row are to each other, and to
    what share of rows a label is near.

    cosine: of two of a row's nearest tokens, the mean over rows; cosine_of_random: the same for as many random
    directions. labels_near_labels: the share of rows that began as a label which have it among their nearest tokens;
    labels_near_sampled: the share of rows that began as sampled vocabulary which have any label there. Only where there
    are such rows.
    """
    rows = nearest_tokens(prompt.values, lm)
    chooser = torch.Generator().manual_seed(prompt.card.seed or 0)
    random = nearest_tokens(torch.randn(prompt.values.shape, generator=chooser), lm)
    found = {"cosine": _closeness(rows, lm), "cosine_of_random": _closeness(random, lm)}
    started, persistent, near = set(), set(), set()
    for label in _labels(prompt.card, rows, lm):
        started.update(label.started)
        near.update(label.near)
        persistent.update(set(label.started) & set(label.near))
    entries = _entries(prompt.card, prompt.length)
    sampled = {place for place, entry in enumerate(entries) if entry.get("ids")} - started
    if started:
        found["labels_near_labels"] = len(persistent) / len(started)
    if sampled:
        found["labels_near_sampled"] = len(sampled & near) / len(sampled)
    return found


def _closeness(rows: Sequence[Neighbours], lm: FrozenLM) -> float:
    """The mean cosine of two of a row's nearest tokens, over rows."""
    table = lm.embeddings.detach()
    nearest = [table[torch.tensor(row.ids, device=table.device)].float() for row in rows]
    return sum(_mean_of_two(_cosines(tokens)) for tokens in nearest) / len(rows)


def _cosines(vectors: Float[Tensor, "n d"]) -> Float[Tensor, "n n"]:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def _mean_of_two(cosines: Float[Tensor, "n n"]) -> float:
    """The mean cosine of two different vectors; 1 for one alone."""
    between = cosines[~torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)]
    return float(between.mean()) if len(between) else 1.0


def starting_values(card: Card, lm: FrozenLM, length: int) -> Float[Tensor, "p d"] | None:
    """What a prompt began as, made again from its card; None for what the card does not say (another prompt)."""
    if card.init.get("kind") == "uniform":
        chooser = torch.Generator().manual_seed(card.init["seed"])
        return from_uniform(lm.embeddings, length, low=card.init["low"], generator=chooser)[0]
    entries = _entries(card, length)
    if not all(entry.get("ids") for entry in entries):
        return None
    table = lm.embeddings.detach()
    means = [table[torch.tensor(entry["ids"], device=table.device)].float().mean(0) for entry in entries]
    return torch.stack(means).cpu()


def _entries(card: Card, length: int) -> list[dict[str, Any]]:
    """What the card says of each row's start."""
    entries = card.init.get("tokens") or []
    return [dict(entry) for entry in entries] if len(entries) == length else [{}] * length


def _labels(card: Card, rows: Sequence[Neighbours], lm: FrozenLM) -> tuple[Label, ...]:
    """Where each of the card's labels is found in its prompt."""
    found = []
    entries = _entries(card, len(rows))
    for label in card.labels:
        pieces = {id for text in (label, f" {label}") for id in lm.tokenizer.encode(text)}
        started = (place for place, entry in enumerate(entries) if entry.get("label", "").strip() == label.strip())
        near = (row.position for row in rows if pieces & set(row.ids))
        found.append(Label(label, tuple(started), tuple(near)))
    return tuple(found)


def _warnings(values: Tensor, drift: Sequence[float | None], cosines: Tensor, vocabulary_norm: float) -> list[str]:
    norms = values.norm(dim=1)
    long = norms > TOO_LONG * vocabulary_norm
    wrong = {
        "hold numbers that are not finite; train again with a lower rate": ~values.isfinite().all(1),
        "are all zeros": norms == 0,
        f"are over {TOO_LONG:g} times as long as a token; the learning rate is too high": long,
        "have not moved from where they began": torch.tensor([d is not None and abs(d) < UNMOVED for d in drift]),
    }
    lines = []
    for text, which in wrong.items():
        rows = which.nonzero().flatten().tolist()
        if rows:
            more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
            lines.append(f"rows {', '.join(map(str, rows[:10]))}{more} {text}")
    twins = (cosines > TWINS).triu(diagonal=1).nonzero().tolist()
    if twins:
        lines.append("rows " + ", ".join(f"{a} and {b}" for a, b in twins[:5]) + " are nearly the same")
    return lines


def ablate(
    saved: SavedPrompts, examples: Sequence[Example], *, watch: Watch | None = None
) -> tuple[float, list[float]]:
    """The score of a saved prompt, and its score without each of its rows: all of them in mixed batches of one pass.

    Scores are the mean of the task's metrics, 0..1. ValueError for more than one prompt.
    """
    if len(saved.prompts) != 1:
        raise ValueError(f"{len(saved.prompts)} prompts, but ablation looks at one at a time")
    values = saved.prompts[0].values
    shorter = [torch.cat([values[:place], values[place + 1 :]]) for place in range(len(values))]

    def scores(prompts: list[Tensor]) -> list[float]:
        form, scoring = saved.forms[0], saved.scoring
        found = evaluate(saved.lm, prompts, saved.task, examples, form, scoring=scoring, watch=watch)
        return [evaluation.headline for evaluation in found]

    if len(values) == 1:  # without its only row there is no prompt
        return scores([values])[0], scores([])
    whole, *without = scores([values, *shorter])
    return whole, without
