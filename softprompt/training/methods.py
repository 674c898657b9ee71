"""What is trained, and how it enters the frozen model.

A `Method` is all that the loop knows; `PromptTuning` is the one for prompts in front of the input, many at once. What
another trains lies in one tensor a member, too, so that loop, best step and checkpoint are those of a prompt.

Shapes: k members, p prompt tokens, d width, b rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.answering import Engine
from softprompt.base.devices import sent
from softprompt.models import Embedded, FrozenLM, PromptStates, Row, collate, micro_batches, shared_start
from softprompt.prompts import prepend, stack

Gradients = tuple[list[Tensor], list[float], int]
"""The gradient of each member's values, its summed loss over target tokens, and the tokens computed."""


@runtime_checkable
class Method(Protocol):
    """What trains values over a model: their gradients, and the engine that answers with them."""

    lm: FrozenLM
    name: str
    noun: str
    """What messages call the values that are trained."""
    is_alone: bool
    """Whether it takes one member at a time, because its values are in the model."""

    def gradients(
        self,
        values: Sequence[Tensor],
        rows: Sequence[Row],
        member: Sequence[int],
        *,
        max_tokens: int,
        dropout: float = 0.0,
        seeds: Sequence[int] | None = None,
        z_loss: float = 0.0,
    ) -> Gradients:
        """Those of one step's rows, as the function `gradients`; `member` says whose each row is."""
        ...

    def engine(self, values: Sequence[Tensor], *, max_tokens: int | None = None) -> tuple[Engine, list[int]]:
        """What answers with these values, and the prompt (or NO_PROMPT) that each member's rows wear there."""
        ...


class PromptTuning:
    """Prompts in front of the input, any number of members: values are soft prompts [p d], or keys and values
    [p 2l h e] for a decoder-only model.
    """

    name = "prompt-tuning"
    noun = "prompt"
    is_alone = False

    def __init__(self, lm: FrozenLM):
        self.lm = lm

    def gradients(
        self, values: Sequence[Tensor], rows: Sequence[Row], member: Sequence[int], **options: Any
    ) -> Gradients:
        """As `Method` has it."""
        return gradients(self.lm, values, rows, member, **options)

    def engine(self, values: Sequence[Tensor], *, max_tokens: int | None = None) -> tuple[Engine, list[int]]:
        """As `Method` has it."""
        return Engine(self.lm, values, max_tokens=max_tokens), list(range(len(values)))


def gradients(
    lm: FrozenLM,
    prompts: Sequence[Tensor],
    rows: Sequence[Row],
    member: Sequence[int],
    *,
    max_tokens: int,
    dropout: float = 0.0,
    seeds: Sequence[int] | None = None,
    z_loss: float = 0.0,
    run_once: bool = True,
) -> Gradients:
    """The gradient of each prompt, each member's summed loss over target tokens, and the tokens computed.

    The rows of all members are sorted by length and cut into micro-batches; the sums are those of the whole batch.
    In a decoder-only model each prompt runs once, and with it the ids that all its rows begin with; the rows read
    keys and values. `run_once=False` puts the prompts in front of every row, which is the same but for rounding; not so
    with prompts that are keys and values, which have none to put there.
    """
    values = [prompt.detach().to(lm.device) for prompt in prompts]
    states = leaves = front = None
    if run_once and not lm.is_encoder_decoder and not dropout and not lm.is_checkpointed:
        values = [value.clone().requires_grad_() for value in values]
        states, rows = _run_shared(lm, values, rows, member)
        leaves = states.leaves()
    else:
        stacked, lengths = stack(values)
        front = stacked.requires_grad_(), lengths
    sums, computed = gradients_of_rows(
        lm,
        rows,
        member,
        num_members=len(prompts),
        front=front,
        states=leaves,
        max_tokens=max_tokens,
        dropout=dropout,
        seeds=seeds,
        z_loss=z_loss,
    )
    if states and leaves:
        states.backward(leaves)
        computed += int(states.lengths.sum())
    found = []
    for place, value in enumerate(values):
        grad = value.grad if front is None else front[0].grad
        assert grad is not None
        found.append(grad if front is None else grad[place, : len(value)].clone())
    return found, sums, computed


def gradients_of_rows(
    lm: FrozenLM,
    rows: Sequence[Row],
    member: Sequence[int],
    *,
    num_members: int,
    front: tuple[Float[Tensor, "k p d"], Tensor] | None,
    states: PromptStates | None,
    max_tokens: int,
    dropout: float = 0.0,
    seeds: Sequence[int] | None = None,
    z_loss: float = 0.0,
    after: Callable[[], None] = lambda: None,
) -> tuple[list[float], int]:
    """Send back the loss of every micro-batch; each member's summed loss, and the tokens computed.

    front: prompts and their lengths, to stand in front of the rows. after: called when a micro-batch has gone back.
    """
    lengths = front[1].tolist() if front else [0] * num_members
    sums = torch.zeros(num_members, device=lm.device)
    computed = 0
    num_tokens = [row.num_tokens for row in rows]
    for places in micro_batches(num_tokens, max_tokens, extra=max(lengths), pass_tokens=lm.pass_tokens):
        batch = collate([rows[i] for i in places], [member[i] for i in places], lm.tokenizer.pad_id)
        x, mask = lm.embed(batch.ids), batch.mask
        if front:
            x, mask = prepend(*front, batch.member, x, mask)
        drawn = [seeds[i] for i in places] if seeds else []
        with lm.dropout(dropout, drawn, x.shape[1], batch.targets.shape[1]):
            entering = Embedded(x, mask, states, batch.member)
            loss = lm.loss(entering, batch.targets, batch.targets_mask, z_loss=z_loss)
            by_row = loss.sum(-1)
            by_row.sum().backward()
        after()
        sums.index_add_(0, sent(batch.member, sums.device), by_row.detach())
        computed += x.shape[0] * (x.shape[1] + batch.targets.shape[1])
    return sums.tolist(), computed


def _run_shared(
    lm: FrozenLM, values: Sequence[Tensor], rows: Sequence[Row], member: Sequence[int]
) -> tuple[PromptStates, list[Row]]:
    """The states of each prompt and, behind a soft prompt, of the ids that its rows share at their start; and the rows
    without those.
    """
    starts: list[tuple[int, ...]] = []
    worn = []
    for i, prompt in enumerate(values):
        starts.append(())
        if prompt.ndim == 2:
            starts[i] = shared_start([row for row, m in zip(rows, member, strict=True) if m == i])
            start = lm.embed(torch.tensor([starts[i]]).long())[0].float()
            prompt = torch.cat([prompt, start])
        worn.append(prompt)
    shorter = [replace(row, ids=row.ids[len(starts[m]) :]) for row, m in zip(rows, member, strict=True)]
    return lm.prompt_states(worn), shorter
