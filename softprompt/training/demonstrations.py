"""Training examples that a prompt starts from, written as the task's text format writes them with their answers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median_low

from softprompt.models import Row
from softprompt.prompts import MAX_LENGTH
from softprompt.tasks import Example

FEWEST, MOST = 4, 16  # ours: two of each label between these, unless it is told how many


def choose_demonstrations(
    examples: Sequence[Example], rows: Sequence[Row], *, shots: int | None, has_labels: bool, seed: int
) -> list[int]:
    """Places of the examples to demonstrate: of every label as many, drawn by seed among those of middling length.

    rows: the examples as ids. shots: how many; None: two of each label, from 4 to 16 in all, as far as they fit into a
    prompt. ValueError where fewer examples there are than shots, or more tokens than a prompt may have.
    """
    of_label: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        of_label.setdefault(example.targets if has_labels else "", []).append(place)
    wanted = shots or min(max(2 * len(of_label), FEWEST), MOST, len(examples))
    if wanted > len(examples):
        raise ValueError(
            f"{wanted} shots were asked for, but there are {len(examples)} training examples; ask for fewer"
        )
    drawn = random.Random(seed)
    queues = []
    for places in of_label.values():
        middle = median_low(rows[place].num_tokens for place in places)
        by_distance = sorted(places, key=lambda place: abs(rows[place].num_tokens - middle))
        middling, rest = by_distance[: -(-len(places) // 2)], by_distance[-(-len(places) // 2) :]
        drawn.shuffle(middling)
        queues.append([*middling, *rest])
    chosen: list[int] = []
    while len(chosen) < wanted:
        turn = [queue.pop(0) for queue in queues if queue]
        drawn.shuffle(turn)
        chosen += turn[: wanted - len(chosen)]
    lengths = [rows[place].num_tokens for place in chosen]
    fitting = next((count for count in range(len(chosen), 0, -1) if sum(lengths[:count]) <= MAX_LENGTH), 0)
    if fitting == 0 or (shots and fitting < shots):
        raise ValueError(
            f"{wanted} demonstrations take {sum(lengths)} tokens, and a prompt has {MAX_LENGTH} at most, into which "
            f"{fitting} of these fit; give --shots {max(fitting, 1)} or a shorter --max-input-length"
        )
    return chosen[:fitting]
