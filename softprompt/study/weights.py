"""Methods that train weights, one member at a time, beside prompt tuning.

`WeightTuning` trains all of the model's weights (model tuning), or those that the peft library puts into it (LoRA, IA3)
or in front of it (P-tuning, prefix tuning). They lie end to end in one flat tensor, so that the loop, the best step and
the checkpoint are those of a prompt. Only this file imports peft.

Shapes: p prompt tokens, d width, n numbers trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from softprompt.answering import Engine
from softprompt.base.names import nearest
from softprompt.models import NO_PROMPT, FrozenLM, PromptStates, Row
from softprompt.training import Adafactor, AdamW, Gradients, Method, Optimizer, gradients, gradients_of_rows

PREFIX_TUNING = "prefix-tuning"


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
        **options: Any,
    ) -> Gradients:
        """The gradient of the one member's values."""
        (flat,) = values
        self.put(flat)
        found = torch.zeros_like(flat)
        if self.prompt is not None:
            prompt = self.prompt()
            (gradient,), sums, computed = gradients(self.lm, [prompt], rows, member, **options)
            prompt.backward(gradient.to(prompt.dtype))
            self._collect(found)
            return [found], sums, computed
        states = self.states() if self.states else None
        leaves = states.leaves() if states else None
        sums, computed = gradients_of_rows(
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
            states = self.states()
            keys = {f"layers.{i}.keys": layer.contiguous() for i, layer in enumerate(states.keys)}
            return keys | {f"layers.{i}.values": layer.contiguous() for i, layer in enumerate(states.values)}
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def _collect(self, found: Float[Tensor, " n"]) -> None:
        """Add the weights' gradients to `found`, and forget them."""
        sizes = [weight.numel() for weight in self.weights.values()]
        for weight, part in zip(self.weights.values(), found.split(sizes), strict=True):
            if weight.grad is not None:
                part += weight.grad.flatten()
                weight.grad = None


@dataclass(frozen=True, kw_only=True)
class PerWeight:
    """The same optimizer for each of many weights that lie end to end in one flat tensor [n], as if each were alone."""

    optimizer: Adafactor | AdamW
    shapes: tuple[tuple[int, ...], ...]
    """Of the weights, in their order."""

    @property
    def learning_rate(self) -> float:
        """That of every weight."""
        return self.optimizer.learning_rate

    def rate(self, step: int, total_steps: int | None) -> float:
        """That of every weight at a step, from 0."""
        return self.optimizer.rate(step, total_steps)

    def init(self, values: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """The states before the first step, each weight's with its number in front of the names."""
        states = enumerate(self.optimizer.init(weight) for weight in self._weights(values))
        return {f"{i}.{name}": tensor for i, state in states for name, tensor in state.items()}

    def update(
        self,
        values: Float[Tensor, " n"],
        gradient: Float[Tensor, " n"],
        state: dict[str, Tensor],
        *,
        total_steps: int | None = None,
    ) -> None:
        """One step of every weight, in place."""
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            number, own = name.split(".", 1)
            states.setdefault(int(number), {})[own] = tensor
        for i, (weight, own) in enumerate(zip(self._weights(values), self._weights(gradient), strict=True)):
            self.optimizer.update(weight, own, states[i], total_steps=total_steps)

    def _weights(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class Tuning(Method, Protocol):
    """What a method has besides training as prompts do, so that it can be compared with them."""

    lm: FrozenLM

    @property
    def start(self) -> Tensor:
        """The values before the first step."""
        ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the weights that lie end to end in the values."""
        ...

    def in_use(self, values: Tensor) -> dict[str, Tensor]:
        """What must be stored to answer with these values."""
        ...


@dataclass(frozen=True)
class Tuner:
    """A method that trains weights: how it is made, and what it is trained with."""

    make: Callable[[FrozenLM, int], Tuning]
    """make(model, prompt length): puts its modules into the model. They start from torch's own generator."""
    rates: tuple[float, ...]
    """Learning rates to try, about the one its authors or PEFT's examples use."""
    rates_of_t5: tuple[float, ...] | None = None
    """Those for Adafactor, where an encoder-decoder has it instead of AdamW."""

    def optimizer(self, method: Tuning, rate: float) -> Optimizer:
        """AdamW over all of the weights; for model tuning of an encoder-decoder Adafactor with T5's own settings."""
        if self.rates_of_t5 and method.lm.is_encoder_decoder:
            own = Adafactor(learning_rate=rate, weight_decay=0.0, scale_by_weights=True)
            return PerWeight(optimizer=own, shapes=method.shapes)
        return AdamW(learning_rate=rate, schedule="linear", warmup_steps=10)


def _lora(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    peft = _peft()
    targets = _targets(peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING, lm)
    return _injected("lora", lm, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))  # PEFT's r; alpha = 2 r


def _ia3(lm: FrozenLM, prompt_length: int) -> WeightTuning:
    peft = _peft()
    targets = _targets(peft.utils.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING, lm)
    feedforward = _targets(peft.utils.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING, lm)
    return _injected("ia3", lm, peft.IA3Config(target_modules=targets, feedforward_modules=feedforward))


def _targets(mapping: Mapping[str, Sequence[str]], lm: FrozenLM) -> list[str]:
    """The modules that PEFT changes in this type of model, by the names they have behind a FrozenLM."""
    kind = lm.model.config.model_type
    if kind not in mapping:
        raise ValueError(f"PEFT has no rule for models of type {kind!r}; it knows {', '.join(sorted(mapping))}")
    return ["v.projection" if lm.is_encoder_decoder and name == "v" else name for name in mapping[kind]]


def _injected(name: str, lm: FrozenLM, config: Any) -> WeightTuning:
    """Weights that PEFT puts into the model's own modules."""
    before = {id(weight) for weight in lm.model.parameters()}
    _peft().inject_adapter_in_model(config, lm.model)
    lm.model.requires_grad_(False)
    added = {name: weight for name, weight in lm.model.named_parameters() if id(weight) not in before}
    for weight in added.values():
        weight.data = weight.data.float()
    return WeightTuning(name, lm, added)


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

    def states() -> PromptStates:
        # Laid out as PeftModel.get_prompt cuts them.
        return PromptStates.of_values(encoder(tokens).view(prompt_length, 2 * layers, heads, width))

    return WeightTuning(PREFIX_TUNING, lm, dict(encoder.named_parameters()), states=states)


TUNERS = {
    # Paper, section 3.1: T5's rate 0.001, and three around it; for others those of common fine-tuning.
    "model-tuning": Tuner(
        lambda lm, _: WeightTuning("model-tuning", lm, dict(lm.model.named_parameters())),
        (5e-6, 2e-5, 5e-5, 2e-4),
        (3e-4, 1e-3, 3e-3, 1e-2),
    ),
    "lora": Tuner(_lora, (3e-4, 1e-3, 3e-3, 1e-2)),
    "ia3": Tuner(_ia3, (3e-3, 1e-2, 3e-2, 1e-1)),
    PREFIX_TUNING: Tuner(_prefix_tuning, (1e-3, 3e-3, 1e-2, 3e-2)),
    "p-tuning": Tuner(_p_tuning, (3e-4, 1e-3, 3e-3, 1e-2)),
}


def make_tuning(name: str, lm: FrozenLM, *, prompt_length: int, seed: int) -> Tuning:
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
