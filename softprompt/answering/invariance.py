"""How many rows a decoding step may have at once without any of them seeing how many others there are."""

from __future__ import annotations

import torch

from softprompt.answering.running import RunningBatch, Start, embedded
from softprompt.models import FrozenLM

# Ours: rows of a pass, the first that passes. Empty ones cost their share, and more rows at once cost less each.
ROWS_AT_ONCE = (16, 8, 4, 2)
LENGTHS = range(3, 3 + max(ROWS_AT_ONCE))  # ours: tokens of the inputs tried, each of another length


@torch.no_grad()
def batch_invariant_rows(lm: FrozenLM) -> int:
    """Rows that a decoding step has, always, so that a row gets the same bits in any place beside any others.

    Tried out: that many rows take a step together, in each order that is the last one shifted by a place, and then each
    without the others; every row's logits must be the same bits throughout. What libraries do to a row of a product
    may depend on how many rows it has, on the row's place and on the processor, but not on what the other rows are.
    1, where no other number passes, and for an encoder-decoder, whose answers are stepped one by one.
    """
    if lm.is_encoder_decoder:
        return 1
    layout = lm.layout()
    size = min(lm.tokenizer.size, lm.num_ids)
    generator = torch.Generator().manual_seed(0)
    starts = []
    for length in LENGTHS:
        ids = torch.randint(size, (length,), generator=generator).tolist()
        starts.append(Start(ids=tuple(ids), max_tokens=2))
    for num_rows in ROWS_AT_ONCE:
        batch = RunningBatch(lm, layout, rows_at_once=num_rows)
        slots = []
        for start in starts[:num_rows]:
            slots += batch.begin(embedded(lm, [start]), [start])[0]
        for slot in slots:
            slot.token = int(torch.randint(size, (1,), generator=generator))
        if _is_invariant(batch):
            return num_rows
    return 1


def _is_invariant(batch: RunningBatch) -> bool:
    """Whether the rows' next logits depend on neither place nor neighbours; each is a group."""
    rows = list(batch.groups)
    wanted = batch.decode()
    for turn in range(len(rows)):
        for group in rows:
            group.states.end -= 1
        batch.groups = rows[turn:] + rows[:turn]
        if not torch.equal(batch.decode(), wanted.roll(-turn, 0)):
            return False
    for row, group in enumerate(rows):
        group.states.end -= 1
        batch.groups = [group]
        if not torch.equal(batch.decode(), wanted[row : row + 1]):
            return False
    return True
