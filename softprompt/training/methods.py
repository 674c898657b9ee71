"""What is trained, and how it enters the frozen model.

`PromptTuning` trains prompts in front of the input, many at once. `WeightTuning` trains weights, one member at a time:
all of the model's (model tuning), or those that the peft library puts into it (LoRA, IA3) or in front of it (P-tuning,
prefix tuning). Its weights lie end to end in one flat tensor, so that the loop, the best step and the checkpoint are
those of a prompt. Only this file imports peft.

Shapes: k members, p prompt tokens, d width, b rows, n numbers trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softprompt.answering import Engine
from softprompt.base.names import nearest
from softprompt.models import NO_PROMPT, Embedded, FrozenLM, PromptStates, Row, collate, micro_batches, shared_start
from softprompt.prompts import prepend, stack
from softprompt.training.optimizers import Adafactor, AdamW, Optimizer, PerWeight

Gradients = tuple[list[Tensor], list[float], int]
"""The gradient of each member's values, its summed loss over target tokens, and the tokens computed."""
PREFIX_TUNING = "prefix-tuning"


class PromptTuning:
    """Soft prompts in front of the input: values are [p d], any number of members."""

    name = "prompt-tuning"
    noun = "prompt"
    """What messages call the values that are trained."""
    is_alone = False
    """Whether it takes one member at a time, because its values are in the model."""

    def __init__(self, lm: FrozenLM):
        self.lm = lm

    def gradients(
        self, values: Sequence[Tensor], rows: Sequence[Row], member: Sequence[int], **options: Any
    ) -> Gradients:
        """Those of one step's rows, as `softprompt.training.methods.gradients`; `member` says whose each row is."""
        return gradients(self.lm, values, rows, member, **options)

    def engine(self, values: Sequence[Tensor], *, max_tokens: int | None = None) -> tuple[Engine, list[int]]:
        """What answers with these values, and the prompt that each member's rows wear there."""
        return Engine(self.lm, values, max_tokens=max_tokens), list(range(len(values)))


def gradients(
    lm: FrozenLM,
    prompts: Sequence[Float[Tensor, "_ d"]],
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
    keys and values. `run_once=False` puts the prompts in front of every row, which is the same but for rounding.
    """
    values, lengths = stack([prompt.detach() for prompt in prompts])
    values = values.to(lm.device).requires_grad_()
    lengths = lengths.to(lm.device)
    states = None
    if run_once and not lm.is_encoder_decoder and not dropout and not lm.is_checkpointed:
        states, rows = _run_shared(lm, values, lengths, rows, member)
    leaves = states.leaves() if states else None
    sums, computed = _backward(
        lm,
        rows,
        member,
        num_members=len(prompts),
        front=None if states else (values, lengths),
        states=leaves,
        max_tokens=max_tokens,
        dropout=dropout,
        seeds=seeds,
        z_loss=z_loss,
    )
    if states and leaves:
        states.backward(leaves)
        computed += int(states.lengths.sum())
    assert values.grad is not None
    return [values.grad[i, : len(prompt)].clone() for i, prompt in enumerate(prompts)], sums, computed


def _backward(
    lm: FrozenLM,
    rows: Sequence[Row],
    member: Sequence[int],
    *,
    num_members: int,
    front: tuple[Float[Tensor, "k p d"], Tensor] | None,
    states: PromptStates | None,
    max_tokens: int,
    dropout: float,
    seeds: Sequence[int] | None,
    z_loss: float,
    after: Callable[[], None] = lambda: None,
) -> tuple[list[float], int]:
    """Send back the loss of every micro-batch; each member's summed loss, and the tokens computed.

    front: prompts and their lengths, to stand in front of the rows. after: called when a micro-batch has gone back.
    """
    lengths = front[1].tolist() if front else [0] * num_members
    sums = torch.zeros(num_members, device=lm.device)
    computed = 0
    for places in micro_batches([row.num_tokens for row in rows], max_tokens, extra=max(lengths)):
        batch = collate([rows[i] for i in places], [member[i] for i in places], lm.tokenizer.pad_id, lm.device)
        x, mask = lm.embed(batch.ids), batch.mask
        if front:
            x, mask = prepend(*front, batch.member, x, mask)
        own = [lengths[member[i]] + len(rows[i].ids) for i in places]
        drawn = [seeds[i] for i in places] if seeds else []
        with lm.dropout(dropout, drawn, own, batch.targets.shape[1]):
            entering = Embedded(x, mask, states, batch.member)
            loss = lm.loss(entering, batch.targets, batch.targets_mask, z_loss=z_loss)
            by_row = loss.sum(-1)
            by_row.sum().backward()
        after()
        sums.index_add_(0, batch.member, by_row.detach())
        computed += x.shape[0] * (x.shape[1] + batch.targets.shape[1])
    return sums.tolist(), computed


def _run_shared(
    lm: FrozenLM, values: Tensor, lengths: Tensor, rows: Sequence[Row], member: Sequence[int]
) -> tuple[PromptStates, list[Row]]:
    """The states of each prompt and of the ids that its rows share at their start, and the rows without those."""
    starts = [shared_start([r for r, m in zip(rows, member, strict=True) if m == i]) for i in range(len(values))]
    worn = [
        torch.cat([values[i, : int(lengths[i])], lm.embed(torch.tensor([start], device=lm.device).long())[0].float()])
        for i, start in enumerate(starts)
    ]
    shorter = [replace(row, ids=row.ids[len(starts[m]) :]) for row, m in zip(rows, member, strict=True)]
    return lm.run_prompts(*stack(worn)), shorter


class WeightTuning:
    """Weights of the model, or of modules put into it or in front of it: values are one flat float32 [n], one member.

    The model computes in its own type; the values are float32, and gradients are summed in float32 over micro-batches.
    prompt: makes the prompt [p d] that enters, from the weights (P-tuning). states: makes keys and values of every
    layer (prefix tuning); in an encoder-decoder they stand in front of the decoder's.
    """

    noun = "weights"
    is_alone = True

    def __init__(
        self,
        name: str,
        lm: FrozenLM,
        weights: Mapping[str, nn.Parameter],
        *,
        prompt: Callable[[], Float[Tensor, "p d"]] | None = None,
        states: Callable[[], PromptStates] | None = None,
    ):
        self.name, self.lm, self.prompt, self.states = name, lm, prompt, states
        self.weights = dict(weights)
        for weight in self.weights.values():
            weight.requires_grad_(True)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the weights, in the order in which they lie in the values."""
        return tuple(tuple(weight.shape) for weight in self.weights.values())

    @property
    def start(self) -> Float[Tensor, " n"]:
        """The weights as they are now."""
        return torch.cat([weight.detach().float().flatten() for weight in self.weights.values()])

    @torch.no_grad()
    def put(self, values: Float[Tensor, " n"]) -> None:
        """Make the weights these, rounded to the type each is kept in."""
        sizes = [weight.numel() for weight in self.weights.values()]
        for weight, part in zip(self.weights.values(), values.split(sizes), strict=True):
            weight.copy_(part.view_as(weight))
            weight.grad = None

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
        """The gradient of the one member's values."""
        (flat,) = values
        self.put(flat)
        found = torch.zeros_like(flat)
        options: dict[str, Any] = {"max_tokens": max_tokens, "dropout": dropout, "seeds": seeds, "z_loss": z_loss}
        if self.prompt is not None:
            prompt = self.prompt()
            (gradient,), sums, computed = gradients(self.lm, [prompt], rows, member, **options)
            prompt.backward(gradient.to(prompt.dtype))
            self._collect(found)
            return [found], sums, computed
        states = self.states() if self.states else None
        leaves = states.leaves() if states else None
        sums, computed = _backward(
            self.lm,
            rows,
            member,
            num_members=1,
            front=None,
            states=leaves,
            after=lambda: self._collect(found),
            **options,
        )
        if states and leaves:
            states.backward(leaves)
            self._collect(found)
        return [found], sums, computed

    @torch.no_grad()
    def engine(self, values: Sequence[Tensor], *, max_tokens: int | None = None) -> tuple[Engine, list[int]]:
        """The model with the weights put into it, and the prompt (or NO_PROMPT) that rows wear there."""
        (flat,) = values
        self.put(flat)
        if self.prompt is not None:
            return Engine(self.lm, [self.prompt()], max_tokens=max_tokens), [0]
        states = self.states() if self.states else None
        if states is None:
            return Engine(self.lm, [], max_tokens=max_tokens), [NO_PROMPT]
        return Engine(self.lm, [], states=states, max_tokens=max_tokens), [0]

    @torch.no_grad()
    def in_use(self, values: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """What must be stored to answer with these values: the prompt or the states rather than what makes them."""
        self.put(values)
        if self.prompt is not None:
            return {"prompt_embeddings": self.prompt().contiguous()}
        if self.states is not None:
            made = self.states()
            return {f"layers.{i}.{kind}": layer.contiguous() for kind in ("keys", "values") for i, layer in
                    enumerate(getattr(made, kind))}  # fmt: skip
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def _collect(self, found: Float[Tensor, " n"]) -> None:
        """Add the weights' gradients to `found`, and forget them."""
        sizes = [weight.numel() for weight in self.weights.values()]
        for weight, part in zip(self.weights.values(), found.split(sizes), strict=True):
            if weight.grad is not None:
                part += weight.grad.flatten().to(part.device)  # values read from a checkpoint are on the processor
                weight.grad = None


Method = PromptTuning | WeightTuning


@dataclass(frozen=True)
class Tuner:
    """A method that trains weights: how it is made, and what it is trained with."""

    make: Callable[[FrozenLM, int], WeightTuning]
    """make(model, prompt length): puts its modules into the model. They start from torch's own generator."""
    rates: tuple[float, ...]
    """Learning rates to try, about the one its authors or PEFT's examples use."""
    rates_of_t5: tuple[float, ...] | None = None
    """Those for Adafactor, where an encoder-decoder has it instead of AdamW."""

    def optimizer(self, method: WeightTuning, rate: float) -> Optimizer:
        """AdamW over all of the weights; for model tuning of an encoder-decoder Adafactor with T5's own settings."""
        if self.rates_of_t5 and method.lm.is_encoder_decoder:
            own = Adafactor(learning_rate=rate, weight_decay=0.0, scale_by_weights=True)
            return PerWeight(optimizer=own, shapes=method.shapes)
        return AdamW(learning_rate=rate, schedule="linear", warmup_steps=10)


def _model_tuning(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    return WeightTuning("model-tuning", lm, dict(lm.model.named_parameters()))


def _lora(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    peft = _peft()
    targets = _targets(peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, lm)
    return _injected("lora", lm, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))  # PEFT's r; alpha = 2 r


def _ia3(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    peft = _peft()
    targets = _targets(peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, lm)
    feedforward = _targets(peft.utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, lm)
    return _injected("ia3", lm, peft.IA3Config(target_modules=targets, feedforward_modules=feedforward))


def _injected(name: str, lm: FrozenLM, config: Any) -> WeightTuning:
    """Weights that PEFT puts into the model's own modules."""
    before = {id(weight) for weight in lm.model.parameters()}
    _peft().inject_adapter_in_model(config, lm.model)
    lm.model.requires_grad_(False)
    added = {name: weight for name, weight in lm.model.named_parameters() if id(weight) not in before}
    for weight in added.values():
        weight.data = weight.data.float()
    return WeightTuning(name, lm, added)


def _targets(mapping: Mapping[str, Sequence[str]], lm: FrozenLM) -> list[str]:
    """The modules that PEFT changes in this type of model, by the names they have behind a FrozenLM."""
    kind = lm.model.config.model_type
    if kind not in mapping:
        raise ValueError(f"PEFT has no rule for models of type {kind!r}; it knows {', '.join(sorted(mapping))}")
    return ["v.projection" if lm.is_encoder_decoder and name == "v" else name for name in mapping[kind]]


def _p_tuning(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    peft = _peft()
    encoder = peft.PromptEncoder(
        peft.PromptEncoderConfig(
            num_virtual_tokens=prompt_length,
            token_dim=lm.width,
            encoder_hidden_size=lm.width,
            num_transformer_submodules=1,
        )
    ).to(lm.device)
    tokens = torch.arange(prompt_length, device=lm.device)
    return WeightTuning("p-tuning", lm, dict(encoder.named_parameters()), prompt=lambda: encoder(tokens))


def _prefix_tuning(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    """PEFT's prefixes, without its projection; in a T5 its variant, which prefixes the decoder only."""
    peft = _peft()
    heads, width = lm.key_heads
    layers = len(lm.model.decoder.block) if lm.is_encoder_decoder else lm.num_layers
    encoder = peft.PrefixEncoder(
        peft.PrefixTuningConfig(
            num_virtual_tokens=prompt_length,
            token_dim=heads * width,
            num_layers=layers,
            num_attention_heads=heads,
            num_transformer_submodules=1,
        )
    ).to(lm.device)
    tokens = torch.arange(prompt_length, device=lm.device)
    lengths = torch.tensor([prompt_length], device=lm.device)

    def states() -> PromptStates:
        made = encoder(tokens).view(1, prompt_length, 2 * layers, heads, width)
        pairs = made.permute(2, 0, 3, 1, 4).split(2)  # one [2 1 h p e] a layer, as PeftModel.get_prompt cuts them
        return PromptStates([keys for keys, _ in pairs], [values for _, values in pairs], lengths)

    return WeightTuning(PREFIX_TUNING, lm, dict(encoder.named_parameters()), states=states)


TUNERS = {
    # Paper, section 3.1: T5's rate 0.001, and three around it; for others those of common fine-tuning.
    "model-tuning": Tuner(_model_tuning, (5e-6, 2e-5, 5e-5, 2e-4), (3e-4, 1e-3, 3e-3, 1e-2)),
    "lora": Tuner(_lora, (3e-4, 1e-3, 3e-3, 1e-2)),
    "ia3": Tuner(_ia3, (3e-3, 1e-2, 3e-2, 1e-1)),
    PREFIX_TUNING: Tuner(_prefix_tuning, (1e-3, 3e-3, 1e-2, 3e-2)),
    "p-tuning": Tuner(_p_tuning, (3e-4, 1e-3, 3e-3, 1e-2)),
}


def make_tuning(name: str, lm: FrozenLM, *, prompt_length: int, seed: int) -> WeightTuning:
    """The method of that name on a model that nothing else uses, its own modules drawn with `seed`.

    ValueError for a name that there is not (the nearest is offered), a quantised model, or a missing peft library.
    """
    if name not in TUNERS:
        raise ValueError(f"no method named {name!r}{nearest(name, TUNERS)}; there are {', '.join(TUNERS)}")
    if lm.quantization:
        raise ValueError(f"{name} trains weights, but {lm.name} is packed in {lm.quantization}; leave --quantize out")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TUNERS[name].make(lm, prompt_length)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ValueError(
            "this method is the peft library's, which is missing; pip install 'softprompt[peft]'"
        ) from None
    return peft
