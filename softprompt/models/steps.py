"""Token after token: rows begin, each step gives every row its next logits, and keys and values are kept between.

Shapes: b rows, p prompt tokens, t tokens of x, q new tokens of each row, s columns read, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from softprompt.base.devices import sent
from softprompt.models.backbone import Backbone
from softprompt.models.layers import attending
from softprompt.models.states import Embedded, Layout, RowGroups, RowStates


def begin_rows(
    lm: Backbone, layout: Layout, rows: Embedded, lengths: Sequence[int], *, capacity: int, room: int
) -> tuple[RowStates, Float[Tensor, "b q d"] | None]:
    """Read rows in one pass: their keys and values, and the last hidden states of their inputs, which end together.

    lengths: tokens of prompt and input of each row. capacity: rows to have room for. room: columns to have room for
    after the input. An encoder-decoder gives no states: its first step reads the token that its decoder starts with.
    """
    fronts = [0] * len(lengths)
    if rows.states is not None and rows.member is not None:
        fronts = rows.states.row_lengths(rows.member).tolist()
    if lm.is_encoder_decoder:
        x, mask = _flush(rows, lengths, at_end=False)
        states = RowStates(layout, capacity, max(fronts) + room, encoder_columns=x.shape[1])
        states.encoded[: len(x)] = lm.encode(x, mask)
        states.encoded_lengths = list(lengths)
        states.starts, states.end = [0] * len(x), max(fronts)
        for row, prompt in _prompts(rows):
            for place, state in enumerate(states.states):
                state[row, :, : states.end] = prompt[place]
        return states, None

    inputs = [length - front for length, front in zip(lengths, fronts, strict=True)]
    x, _ = _flush(rows, inputs, at_end=True)
    q, s = x.shape[1], max(lengths)
    states = RowStates(layout, capacity, s + room)
    states.starts, states.end = [s - length for length in lengths], s - q
    states.encoded_lengths = [0] * len(x)
    states.prompts = _prompts(rows)
    keys_at = torch.arange(s) - torch.tensor(states.starts)[:, None]
    queries_at = keys_at[:, s - q :].clamp(min=0)
    structure = torch.ones(q, s, dtype=torch.bool, device=x.device).tril(s - q)
    hidden = lm.forward(x, lm.allowed(structure, states.real(0, s), queries_at, keys_at), queries_at, states)
    states.prompts, states.end = [], s
    return states, hidden


def step_rows(
    lm: Backbone, tokens: Int[Tensor, " b"], groups: Sequence[RowStates], *, num_rows: int = 0
) -> Float[Tensor, "b v"]:
    """The next logits after one more token of every row, in the order of the groups; an encoder-decoder has one group.

    num_rows: a decoder-only model's pass has at least so many rows; those that nobody has are thrown away.
    Moves the groups' ends, if nothing fails: then the same step may be taken again.
    """
    x = lm.embed(tokens[:, None])
    if lm.is_encoder_decoder:
        (rows,) = groups
        encoded, mask = rows.all_encoded()
        with attending(x.device):
            hidden = lm.model.decoder(
                inputs_embeds=x,
                attention_mask=lm.as_read(rows.real(rows.first, rows.end + 1)[:, None, None]),
                encoder_hidden_states=encoded,
                encoder_attention_mask=lm.over_encoded(mask),
                past_key_values=rows,
                use_cache=True,
            ).last_hidden_state
    else:
        together = RowGroups(groups, lm.window, lm.as_read)
        at = torch.tensor([[group.end - start] for group in groups for start in group.starts])
        padding = (0, 0, 0, max(num_rows - len(tokens), 0))
        at, x = nn.functional.pad(at, padding), nn.functional.pad(x, (0, 0, *padding))
        hidden = lm.forward(x, lm.by_kind(together.full, together.near), at, together, rows=together)
    logits = lm.logits(hidden[:, -1])[: len(tokens)]
    for group in groups:
        group.end += 1
    return logits


def _flush(rows: Embedded, lengths: Sequence[int], *, at_end: bool) -> tuple[Tensor, Tensor]:
    """The embedded input with padding, zeros, on one side only, as wide as the longest row, and its mask."""
    device, width = rows.x.device, max(lengths)
    if not at_end and rows.x.shape[1] == width and bool(rows.mask[:, 0].all()):
        return rows.x, rows.mask
    before = torch.tensor([width - length if at_end else 0 for length in lengths])[:, None]  # [b 1]
    column = torch.arange(width) - before
    source = (column + rows.mask.int().argmax(1)[:, None]).clamp(0, rows.x.shape[1] - 1)
    mask = (column >= 0) & (column < torch.tensor(lengths)[:, None])
    x = rows.x.gather(1, sent(source, device)[:, :, None].expand(-1, -1, rows.x.shape[2]))
    return torch.where(sent(mask, device)[:, :, None], x, 0), mask


def _prompts(rows: Embedded) -> list[tuple[int, list[Tensor]]]:
    """Each row that wears a prompt's keys and values, and these [h p e], as `Layout.shapes` has them."""
    if rows.states is None or rows.member is None:
        return []
    lengths, layers = rows.states.lengths.tolist(), rows.states.by_layer()
    worn = {m: [layer[m, :, : lengths[m]] for layer in layers] for m in set(rows.member.tolist()) if m >= 0}
    return [(row, worn[m]) for row, m in enumerate(rows.member.tolist()) if m >= 0]
