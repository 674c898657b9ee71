"""A prompt: rows of numbers to put in front of embedded text, or keys and values to put in front of a text's own.

Shapes, in every file: b rows, k prompts, p prompt tokens, t input tokens, l target tokens,
c candidates, d width, v vocabulary. In a mask True means attend.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from softprompt.base.devices import sent
from softprompt.models import FrozenLM, TextFormat
from softprompt.prompts.card import Card

FAR = 1_000  # ours: times the largest embedding. The authors' own SST-2 prompt reaches 748 and answers well


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """One prompt: `values`, kept as a contiguous float32 copy on the CPU, and its card.

    A soft prompt is [p d]. Trained keys and values of every layer of a decoder-only model (`--method kv`) are
    [p 2l h e]: each layer's keys, rotated, and then its values, layer after layer, of h key heads.

    Raises:
        ValueError: no row, a NaN or an infinity among the values, or a card of another width.
    """

    values: Float[Tensor, "p d"] | Float[Tensor, "p layers h e"]
    card: Card

    def __post_init__(self) -> None:
        """Make the values our own and check them."""
        values = self.values.detach().to("cpu", torch.float32, copy=True).contiguous()
        object.__setattr__(self, "values", values)
        if self.length < 1:
            raise ValueError("a prompt needs at least one row, and this one has none")
        if not torch.isfinite(values).all():
            num_bad = int((~torch.isfinite(values)).sum())
            raise ValueError(
                f"{num_bad} of the prompt's {values.numel()} values are NaN or infinite (it diverged, or its "
                "file is damaged); use an earlier step, or train with a lower learning rate"
            )
        if self.card.width != self.width:
            raise ValueError(
                f"the card says width {self.card.width} and the values have width {self.width}; "
                "they do not belong together"
            )

    @property
    def length(self) -> int:
        """Number of rows p: prompt tokens."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Numbers of a row: the width d of the model it belongs to, or of a token's keys and values."""
        return self.values[0].numel()

    @property
    def is_kv(self) -> bool:
        """Whether it is keys and values."""
        return self.values.ndim == 4

    @property
    def sha256(self) -> str:
        """Hash (hex) of the shape and the float32 bytes: the same numbers have the same one."""
        content = self.values.numpy().astype("<f4", copy=False).tobytes()
        return hashlib.sha256(f"{self.length}x{self.width}:".encode() + content).hexdigest()

    @property
    def identity(self) -> str:
        """Hash (hex) of everything that changes an answer: the values, and of the card the text format, labels, task
        and its version, scoring, metric and grouping.

        A field at its default is left out, so that a new one changes no hash.
        """
        card = self.card
        parts: dict[str, Any] = {
            "values": self.sha256,
            "kind": "kv" if self.is_kv else None,
            "task": card.task,
            "task_version": card.task_version,
            "labels": card.labels or None,
            "scoring": card.recipe.get("scoring") or None,
            "metric": card.metric if card.text.get("targets_template") else card.recipe.get("metric"),
            "group_by": card.recipe.get("group_by"),
        }
        if card.text:  # without any, the model's usual one is taken
            usual = TextFormat()
            parts["text"] = {name: value for name, value in card.text.items() if value != getattr(usual, name, None)}
        recorded = {name: value for name, value in parts.items() if value is not None}
        return hashlib.sha256(json.dumps(recorded, sort_keys=True).encode()).hexdigest()


def check_fits(prompt: SoftPrompt, lm: FrozenLM) -> None:
    """Refuse a prompt that was trained for another model, or has numbers that the model's type lacks.

    The fingerprint decides, not the name. A prompt without a recorded fingerprint is checked for its width only, with
    a warning; one that is far from the embeddings' scale has a warning, too.

    Raises:
        ValueError: the prompt belongs to another model, has another width, or is not finite in the model's type.
    """
    card = prompt.card
    theirs = card.model_name or "an unnamed model"
    shape = lm.kv_shape if prompt.is_kv else (lm.width,)
    has_shape = tuple(prompt.values.shape[1:]) == shape
    if not has_shape or card.model_fingerprint not in (None, lm.fingerprint):
        wanted = _described(theirs, card.model_fingerprint, tuple(prompt.values.shape[1:]))
        loaded = _described(lm.name, lm.fingerprint, shape)
        raise ValueError(
            f"the prompt was trained for {wanted}, but {loaded} is loaded; load {theirs}, or train a new prompt "
            f"for {lm.name}"
        )
    if card.model_fingerprint is None:
        checked = "layers and heads were" if prompt.is_kv else f"width ({prompt.width}) was"
        unsaid = "" if card.values_sha256 else ", nor what its numbers were, so damage to them would not be seen"
        warnings.warn(
            f"the prompt (for {theirs}) records no model fingerprint, so only its {checked} checked against "
            f"{lm.name}{unsaid}",
            stacklevel=2,
        )
    largest = prompt.values.abs().max()
    if not largest.to(lm.dtype).isfinite():
        raise ValueError(
            f"the prompt's numbers reach {largest:.3g}, and {lm.name} computes in {_type(lm)}, which ends at "
            f"{torch.finfo(lm.dtype).max:.3g}; {_advice(lm)}"
        )
    if not prompt.is_kv and largest > FAR * lm.largest_embedding:
        warnings.warn(
            f"the prompt's numbers reach {largest:.3g} and the embeddings of {lm.name} {lm.largest_embedding:.3g}: it "
            "may have been made for another scale, and answer badly",
            stacklevel=2,
        )


@torch.no_grad()
def check_runs(values: Tensor, lm: FrozenLM) -> None:
    """Refuse the values of a prompt that fits but whose own pass through the model is not finite. Raises ValueError."""
    values = values.to(lm.device)
    if not lm.is_encoder_decoder:
        check_passed(lm.prompt_states([values]).by_layer(), lm)
        return
    x = values[None].to(lm.dtype)
    check_passed([lm.encode(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device))], lm)


def check_passed(states: Sequence[Tensor], lm: FrozenLM) -> None:
    """Raise ValueError unless what a prompt's own pass through the model gave is finite."""
    if not all(bool(state.isfinite().all()) for state in states):
        raise ValueError(
            f"the prompt's own pass through {lm.name} leaves the range of {_type(lm)}, so that no answer with it would "
            f"be a number; {_advice(lm)}"
        )


def _type(lm: FrozenLM) -> str:
    return str(lm.dtype).removeprefix("torch.")


def _advice(lm: FrozenLM) -> str:
    wider = "" if lm.dtype == torch.float32 else "load the model with --dtype float32, or "
    return f"{wider}train the prompt with a lower learning rate"


def _described(name: str, fingerprint: str | None, shape: tuple[int, ...]) -> str:
    known = f"fingerprint {fingerprint[:8]}, " if fingerprint else ""
    return f"{name} ({known}{_shape_in_words(shape)})"


def _shape_in_words(shape: tuple[int, ...]) -> str:
    """Of a row of a prompt."""
    if len(shape) == 1:
        return f"width {shape[0]}"
    return f"keys and values of {shape[0] // 2} layers with {shape[1]} heads of {shape[2]}"


def stack(
    prompts: Sequence[Float[Tensor, "_ d"]],
) -> tuple[Float[Tensor, "k p d"], Int[Tensor, " k"]]:
    """Prompts of different lengths as one array, zeros after the short ones, and their lengths, on the host.

    Gradients flow back to each prompt.
    """
    assert prompts, "stack needs at least one prompt"
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return torch.nn.utils.rnn.pad_sequence(list(prompts), batch_first=True), lengths


def prepend(
    prompts: Float[Tensor, "k p d"],
    lengths: Int[Tensor, " k"],
    member: Int[Tensor, " b"],
    x: Float[Tensor, "b t d"],
    mask: Bool[Tensor, "b t"],
) -> tuple[Float[Tensor, "b total d"], Bool[Tensor, "b total"]]:
    """Each row's own prompt in front of its embedded input (paper, section 2), and the mask of both.

    Row i wears the first `lengths[member[i]]` rows of `prompts[member[i]]`; -1 means no prompt. The
    input's mask is True up to each row's end. Prompt and input are adjacent in every row; padding is
    zeros, all at the right; `total` is the longest row's. The result has x's dtype, and gradients
    flow back to `prompts`, on a CPU always summed in the same order. Prompts and x are on the model's
    device, all else, both masks too, on the host.
    """
    none = lengths.new_zeros(1)  # member -1 finds it at the end
    prompt_lengths = torch.cat([lengths, none])[member]  # [b]
    ends = prompt_lengths + mask.sum(dim=1)
    total = int(ends.max()) if len(ends) else 0
    assert not len(member) or -1 <= int(member.min()) <= int(member.max()) < len(prompts)
    if len(prompts):
        # index_select, because the gradient of plain indexing is summed by several threads in any order.
        worn = prompts.index_select(0, sent(member.clamp(min=0), x.device)).to(x.dtype)
    else:
        worn = x.new_zeros(len(member), 0, x.shape[2])
    p, t = worn.shape[1], x.shape[1]
    position = torch.arange(total)[None]
    seen = position < ends[:, None]
    if bool((prompt_lengths == p).all()):  # the commonest case needs no moving about
        return torch.cat([worn, torch.where(sent(mask, x.device)[:, :, None], x, 0)], dim=1)[:, :total], seen

    unused = (p - prompt_lengths)[:, None]  # prompt rows to leave out in front of the input
    source = torch.where(seen, position + torch.where(position < prompt_lengths[:, None], 0, unused), 0)
    source += torch.arange(len(x))[:, None] * (p + t)
    both = torch.cat([worn, x], dim=1).flatten(0, 1).index_select(0, sent(source.flatten(), x.device))
    return torch.where(sent(seen, x.device)[:, :, None], both.unflatten(0, source.shape), 0), seen
