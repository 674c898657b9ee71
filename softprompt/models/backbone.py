"""The frozen model: a Hugging Face model behind `embed`, `loss` and `score` on embeddings.

Shapes: b rows, k prompts, p prompt tokens, t input tokens, c candidates, l tokens of a target, n tokens
of all candidates of a row, q queries, s keys, d width, v vocabulary. True in a mask = attend.

A prompt enters in one of two ways. As embeddings in front of the input (`softprompt.prompts.prepend`), which
any model takes; or, in a decoder-only model, as the keys and values of a prompt that was run once
(`Backbone.run_prompts`), which is exact because nothing in front of a prompt can change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from softprompt.base.devices import sent
from softprompt.models.layers import (
    attending,
    checkpointed,
    compiled,
    use_row_attention,
    use_written_out_attention,
)
from softprompt.models.states import Embedded, Layout, PromptStates
from softprompt.models.t5 import T5Layers
from softprompt.models.tokenizer import Tokenizer

LOGIT_ROWS = 256  # ours: positions whose logits stand in memory together in scoring; 50 MB of a vocabulary of 49,152
NO_PROMPT = -1

# What a pass costs besides its tokens, in tokens, on a processor. Ours: 30 to 150 give the same speed within 2 % on T5
# small and SmolLM2 (docs/log.md, 2026-11-23).
PASS_TOKENS = 64
# What a GPU waits for: the host tells it a block's some hundred kernels, forward and backward, in 6 microseconds each.
# Ours, reckoned and not measured, as is the rate of products by the bytes of a number, for each multiprocessor.
BLOCK_S = 0.6e-3
MULTIPROCESSOR_FLOPS = {2: 2e12, 4: 0.2e12}
# Numbers of a token that a block keeps for the backward pass, for each that its products give. Measured on a processor
# in blocks of width 256: 2.2 of T5 in float32 and 2.7 in bfloat16, 1.5 and 1.7 of Llama.
KEPT = 3.0

# transformers' model types whose encoder and decoder attend by relative position only, so that the candidates
# of a row may stand side by side in one decoder pass.
T5_TYPES = ("t5", "mt5", "umt5")

# What makes two checkpoints of one embedding table different models (configuration keys of transformers).
ARCHITECTURE = [
    "model_type",
    "vocab_size",
    "d_model",
    "hidden_size",
    "n_embd",
    "d_ff",
    "intermediate_size",
    "n_inner",
    "d_kv",
    "head_dim",
    "num_layers",
    "num_decoder_layers",
    "num_hidden_layers",
    "n_layer",
    "num_heads",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "feed_forward_proj",
    "hidden_act",
    "hidden_activation",
    "activation_function",
    "tie_word_embeddings",
    "sliding_window",
    "layer_types",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
]


class Backbone:
    """A model of transformers behind embeddings: a FrozenLM whose type nobody has tried out yet.

    Raises ValueError for a model of a type that is not taken, for one whose texts have no end, and for a T5 that is
    another FrozenLM's.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, embedding_digest: bytes | None = None):
        self.config = model.config.get_text_config()
        self.is_encoder_decoder: bool = bool(model.config.is_encoder_decoder)
        if reason := reason_against(model.config, model):
            raise refusal(name, model.config, reason)
        self.model = model.eval().requires_grad_(False)
        try:
            self.tokenizer = Tokenizer(tokenizer, _ends(model))
        except ValueError as error:
            raise ValueError(f"{name} cannot be used: {error}") from None
        self.name = name
        self._table = model.get_input_embeddings()
        self.width: int = self._table.weight.shape[1]
        self.max_length: int | None = None
        """Tokens of prompt, input and answer together at most; None: no limit."""
        self._t5: T5Layers | None = None
        self._key_shapes: tuple[tuple[int, int], ...] | None = None
        if self.is_encoder_decoder:
            self._t5 = T5Layers(model, name)
            self._key_shapes = ((self.config.num_heads, self.config.d_kv),) * (2 * len(model.decoder.block))
        else:
            limits = ("max_position_embeddings", "n_positions")
            self.max_length = next((limit for key in limits if (limit := getattr(self.config, key, None))), None)
            rope = getattr(self.config, "rope_parameters", None) or {}
            if rope.get("rope_type") == "longrope":  # longer rows would change the rotations of all in their batch
                self.max_length = rope.get("original_max_position_embeddings") or self.max_length
            use_row_attention(self.blocks())
        digest = embedding_digest or digest_of_table(self._table.weight)
        self.fingerprint = _fingerprint(model.config, digest, self.tokenizer)
        self.is_checkpointed = False
        self.is_compiled = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in. Prompts are always float32."""
        return self._table.weight.dtype

    @property
    def length_step(self) -> int:
        """What the tokens that attention reads are a multiple of. A GPU's copies a mask or a bias of other widths, once
        a layer, and keeps each (mem_eff_alignment in PyTorch's attention.cpp): for T5 XXL 37 GB of 32 rows of 612.
        """
        return 8 if self.device.type == "cuda" else 1

    @property
    def adds_masks(self) -> bool:
        """Whether masks are added to scores: by eager attention; and a GPU's would make each layer's own of True and
        False.
        """
        return self.config._attn_implementation == "eager" or (
            self.device.type == "cuda" and not self.is_encoder_decoder
        )

    @cached_property
    def pass_tokens(self) -> int:
        """What a pass costs besides its tokens, in tokens: on a GPU what it could compute while it is told what to."""
        if self.device.type != "cuda":
            return PASS_TOKENS
        card = torch.cuda.get_device_properties(self.device)
        rate = card.multi_processor_count * MULTIPROCESSOR_FLOPS[self.dtype.itemsize]
        weights = sum(weight.numel() for block in self._reading_blocks() for weight in block.parameters())
        return max(PASS_TOKENS, int(len(self.blocks()) * BLOCK_S * rate / (4 * weights)))

    @property
    def kept_bytes(self) -> int:
        """Bytes that training keeps of a token until the backward pass, by reckoning."""
        if self.is_checkpointed:
            return len(self._reading_blocks()) * self.width * self.dtype.itemsize
        modules = [module for block in self._reading_blocks() for module in block.modules()]
        made = sum(getattr(module, "out_features", 0) or getattr(module, "nf", 0) for module in modules)
        return int(KEPT * made * self.dtype.itemsize)

    def _reading_blocks(self) -> list[Any]:
        """The blocks that read inputs: of the encoder, in an encoder-decoder."""
        return self.blocks()[: self.num_layers]

    @property
    def quantization(self) -> str | None:
        """How the frozen weights are packed: 8bit, 4bit, or None."""
        packed = getattr(self.model.config, "quantization_config", None)
        return None if packed is None else "8bit" if packed.load_in_8bit else "4bit"

    @property
    def num_layers(self) -> int:
        """Blocks of the model (of the encoder, in an encoder-decoder)."""
        return self.config.num_hidden_layers

    @property
    def num_heads(self) -> int:
        """Attention heads of a block."""
        return self.config.num_attention_heads

    @property
    def key_heads(self) -> tuple[int, int]:
        """Heads of the keys and values of a block, and the width of each (of the decoder, in an encoder-decoder)."""
        return self.layout().shapes[0]

    @property
    def kv_shape(self) -> tuple[int, int, int]:
        """Of a token's keys and values as a prompt has them: keys and values of all layers (2 a layer), heads of each,
        width of a head. ValueError for a model whose prompts cannot be keys and values.
        """
        if self.is_encoder_decoder:
            raise ValueError(
                f"{self.name} is an encoder-decoder; keys and values as a prompt are for decoder-only models"
            )
        shapes = self.layout().shapes
        if len(set(shapes)) > 1:
            raise ValueError(
                f"the layers of {self.name} differ in heads or their width, so one prompt cannot hold them"
            )
        return len(shapes), *shapes[0]

    @property
    def window(self) -> int | None:
        """Positions that layers with a sliding window read, a token's own included; None where no layer has one."""
        if not getattr(self.config, "use_sliding_window", True):
            return None
        kinds = set(getattr(self.config, "layer_types", None) or [])
        return None if kinds == {"full_attention"} else getattr(self.config, "sliding_window", None)

    @property
    def num_parameters(self) -> int:
        """Frozen parameters, shared ones counted once."""
        return self.model.num_parameters()  # counts the weights of packed bytes, unlike numel

    @property
    def num_ids(self) -> int:
        """Rows of the embedding table: ids from 0 up to here can be read."""
        return self._table.weight.shape[0]

    @property
    def embeddings(self) -> Float[Tensor, "v d"]:
        """The rows that ids become, one for each id of the tokenizer (scaled, where the model scales them)."""
        size = min(self.tokenizer.size, self.num_ids)
        return self.embed(torch.arange(size, device=self.device)[None])[0]

    @cached_property
    def largest_embedding(self) -> float:
        """The largest number of an embedded token, whatever its sign."""
        least, most = self._table.weight.aminmax(dim=1)
        return float(self.embed(torch.maximum(-least, most).argmax()[None, None]).abs().max())

    def blocks(self) -> list[Any]:
        """The transformer blocks, in order; an encoder's before its decoder's."""
        if self.is_encoder_decoder:
            return [*self.model.encoder.block, *self.model.decoder.block]
        return _blocks_of(self.model.get_decoder(), self.config)

    def compile(self) -> None:
        """Compile each block; costs seconds to minutes once, pays over hundreds of steps."""
        if self.is_compiled:
            return
        # All blocks share one code object, whose graphs differ by kind of block, gradient, cache and dropout.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 64)
        # T5's encoder alone: its decoder's masks may be left to the attention. In float32 PyTorch's is as fast.
        readers = self.model.encoder.config if self.is_encoder_decoder else self.config
        if (self.device.type, self.dtype, readers._attn_implementation) == ("cpu", torch.bfloat16, "sdpa"):
            readers._attn_implementation = use_written_out_attention()
        for number, block in enumerate(self.blocks()):
            block.forward = compiled(block.forward, number)
        self.is_compiled = True

    def checkpoint_activations(self) -> None:
        """Keep only the states between blocks while training; the rest is computed again going backward."""
        if not self.is_checkpointed:
            for block in self.blocks():
                block.forward = checkpointed(block.forward)
            self.is_checkpointed = True

    def dropout(self, rate: float, seeds: Sequence[int], width: int, targets: int) -> AbstractContextManager[None]:
        """Dropout as T5X has it, for one micro-batch of an encoder-decoder; the same seeds give the same masks.

        seeds: one per row; width, targets: positions of the encoder, prompts included, and of the decoder. A row's
        masks depend on its seed only, never on what it is batched with, nor on the device.
        """
        if rate == 0:
            return contextlib.nullcontext()
        if self._t5 is None:
            raise ValueError(f"dropout is for encoder-decoders; {self.name} is decoder-only: set dropout to 0")
        return self._t5.dropout(rate, seeds, width + -width % self.length_step, targets)

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The embedded ids, as the model's first block would get them."""
        return self._table(sent(ids, self.device))

    def run_prompts(self, prompts: Float[Tensor, "k p d"], lengths: Int[Tensor, " k"]) -> PromptStates:
        """Every prompt through a decoder-only model once: its keys and values in every layer."""
        if self.is_encoder_decoder:
            raise ValueError(f"{self.name} reads prompt and input together; prompts cannot be run ahead of inputs")
        from transformers import DynamicCache

        cache = DynamicCache()
        self._read(Embedded(prompts, torch.arange(prompts.shape[1]) < lengths[:, None]), cache)
        layers: list[Any] = cache.layers
        return PromptStates([layer.keys for layer in layers], [layer.values for layer in layers], lengths)

    def prompt_states(self, prompts: Sequence[Float[Tensor, "_ d"] | Float[Tensor, "_ layers h e"]]) -> PromptStates:
        """Keys and values of prompts of either kind, in a decoder-only model: soft prompts [p d] are run through it
        once, together; keys and values [p 2l h e] are taken as they are. Gradients flow back to each.
        """
        soft = [prompt for prompt in prompts if prompt.ndim == 2]
        run = None
        if soft:
            lengths = torch.tensor([len(prompt) for prompt in soft])
            run = self.run_prompts(torch.nn.utils.rnn.pad_sequence(soft, batch_first=True), lengths)
            if len(soft) == len(prompts):
                return run
        singles: list[PromptStates | None] = []
        next_run = 0
        for prompt in prompts:
            if prompt.ndim == 2:
                assert run is not None
                singles.append(run.prompt(next_run))
                next_run += 1
            else:
                singles.append(PromptStates.of_values(prompt))
        states, _ = PromptStates.of_rows(singles)
        assert states is not None, "no prompts"
        return states

    def loss(
        self,
        rows: Embedded,
        targets: Int[Tensor, "b l"],
        targets_mask: Bool[Tensor, "b l"],
        *,
        z_loss: float = 0.0,
    ) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each target token, teacher-forced, in float32; 0 where masked.

        `z_loss` adds that times log² Z for each token (1e-4 in T5X's t5_1_1_prompt.gin).
        """
        hidden = self._predicting(rows, targets[:, None], targets_mask[:, None])
        log_probs, log_z = self._chosen(hidden, targets[targets_mask])
        nll = z_loss * log_z.square() - log_probs if z_loss else -log_probs
        return _spread(nll, targets_mask)

    def score(
        self, rows: Embedded, candidates: Int[Tensor, "b c l"], candidates_mask: Bool[Tensor, "b c l"]
    ) -> Float[Tensor, "b c"]:
        """Rank classification: log p(candidate | row), summed over its tokens, for each candidate of each row.

        Each row is read once for all its candidates.
        """
        hidden = self._predicting(rows, candidates, candidates_mask)
        ids = candidates[candidates_mask]
        parts = zip(hidden.split(LOGIT_ROWS), ids.split(LOGIT_ROWS), strict=True)
        chosen = torch.cat([self._chosen(*part)[0] for part in parts])
        return _spread(chosen, candidates_mask).sum(-1)

    def encode(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The encoder's last states."""
        return self._encoded(x, mask)[0][:, : x.shape[1]]

    def over_encoded(self, mask: Bool[Tensor, "b t"]) -> Tensor | None:
        """The mask [b 1 1 t] of what attends to an encoder's tokens, as T5 takes it; None where nothing is padding, and
        [1 1 1 t] where all rows have the same.

        transformers would ask the device whether anything is.
        """
        if bool(mask.all()):
            return None
        return self.as_read((mask[:1] if bool((mask == mask[:1]).all()) else mask)[:, None, None])

    def _encoded(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's last states and their mask, at a width that is a multiple of `length_step`."""
        if beyond := -x.shape[1] % self.length_step:
            x, mask = nn.functional.pad(x, (0, 0, 0, beyond)), nn.functional.pad(mask, (0, beyond))
        with attending(x.device):
            return self.model.encoder(inputs_embeds=x, attention_mask=self.over_encoded(mask)).last_hidden_state, mask

    def last_states(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The last hidden state of each token of the input (the encoder's, if there is one)."""
        return self.encode(x, mask) if self.is_encoder_decoder else self._read(Embedded(x, mask))

    @torch.no_grad()
    def layout(self) -> Layout:
        """What a token of a row takes in the cache (of the decoder, in an encoder-decoder)."""
        if self._key_shapes is None:
            one = torch.ones(1, dtype=torch.long)
            states = self.run_prompts(torch.zeros(1, 1, self.width, device=self.device), one)
            self._key_shapes = tuple((layer.shape[1], layer.shape[3]) for layer in states.by_layer())
        encoder_width = self.width if self.is_encoder_decoder else 0
        return Layout(self._key_shapes, encoder_width, self.dtype, self.device)

    def logits(self, hidden: Float[Tensor, "n d"]) -> Float[Tensor, "n v"]:
        """Float32 logits, with the scalings that models apply around their output layer."""
        if scales_outputs(self.model.config):
            hidden = hidden * self.width**-0.5
        logits = self.model.get_output_embeddings()(hidden).float()
        logits = logits * getattr(self.config, "logit_scale", 1.0) / getattr(self.config, "logits_scaling", 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(
        self, x: Float[Tensor, "b q d"], masks: Any, positions: Int[Tensor, "b q"], cache: Any = None, **options: Any
    ) -> Float[Tensor, "b q d"]:
        """Last hidden states of a decoder-only model. masks: as `allowed` or `by_kind` make them."""
        with attending(x.device):
            return self.model.get_decoder()(
                inputs_embeds=x.to(self.dtype),
                attention_mask=masks,
                position_ids=sent(positions, x.device),
                past_key_values=cache,
                use_cache=cache is not None,
                **options,
            ).last_hidden_state

    def allowed(
        self,
        structure: Bool[Tensor, "q s"],
        real: Bool[Tensor, "b s"],
        queries_at: Int[Tensor, "b q"],
        keys_at: Int[Tensor, "b s"],
    ) -> dict[str, Tensor] | Tensor:
        """The attention mask [b 1 q s], one for each kind of layer where the model has several.

        structure: who may see whom; real: keys that are no padding. Every query sees itself, also a padding one, so
        that no row of scores is empty.
        """
        q, s = structure.shape
        real = sent(real, structure.device)
        itself = torch.eye(s, dtype=torch.bool, device=structure.device)[s - q :]
        full = near = ((structure & real[:, None]) | itself)[:, None]
        if self.window is not None:
            queries_at, keys_at = sent(queries_at, structure.device), sent(keys_at, structure.device)
            near = full & ((queries_at[:, :, None] - keys_at[:, None] < self.window) | itself)[:, None]
        return self.by_kind(self.as_read(full), self.as_read(near))

    def by_kind(self, full: Tensor, near: Tensor) -> dict[str, Tensor] | Tensor:
        """transformers 5: a model whose layers differ in kind takes one mask for each kind, any other just one."""
        kinds = getattr(self.config, "layer_types", None) or []
        return {"full_attention": full, "sliding_attention": near} if "sliding_attention" in kinds else near

    def as_read(self, allowed: Bool[Tensor, "b 1 q s"]) -> Tensor:
        """A mask as the model's attention takes it."""
        allowed = sent(allowed, self.device)
        if not self.adds_masks:
            return allowed
        return torch.zeros_like(allowed, dtype=self.dtype).masked_fill_(~allowed, torch.finfo(self.dtype).min)

    def _predicting(self, rows: Embedded, candidates: Tensor, candidates_mask: Tensor) -> Tensor:
        """The states [n d] that predict the n candidate tokens which are not masked."""
        if self.is_encoder_decoder:
            hidden = self._after_encoder(rows, candidates)
        else:
            hidden = self._after_text(rows, candidates, candidates_mask)
        return hidden.flatten(0, -2).index_select(0, _places(candidates_mask, hidden.device))

    def _chosen(self, hidden: Float[Tensor, "n d"], ids: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        """log p of these tokens and log Z, [n] each."""
        logits = self.logits(hidden)
        log_z = logits.logsumexp(-1)
        return logits.gather(-1, sent(ids, logits.device)[:, None])[:, 0] - log_z, log_z

    def _after_encoder(self, rows: Embedded, candidates: Tensor) -> Tensor:
        """Decoder states [b c l d] that predict each candidate's tokens; each row is encoded once.

        The candidates of a row stand side by side in one decoder sequence, each attending to itself only: T5's
        positions are relative, so each sees what it would see alone. Behind a prefix each has a row of its own, at its
        distance from the prefix.
        """
        b, c, length = candidates.shape
        encoded, mask = self._encoded(rows.x, rows.mask)
        start = torch.full((b, c, 1), self.config.decoder_start_token_id, device=candidates.device)
        ids = torch.cat([start, candidates[..., :-1]], -1)  # [b c l]
        if rows.states is None or rows.member is None:
            ids, cache = ids.flatten(1), None  # [b c*l]
            causal = torch.ones(length, length, dtype=torch.bool, device=encoded.device).tril()
            allowed = self.as_read(torch.block_diag(*[causal] * c).expand(b, 1, c * length, c * length))
        else:
            from transformers import DynamicCache, EncoderDecoderCache

            ids, allowed = ids.flatten(0, 1), None  # [b*c l]
            encoded, mask = encoded.repeat_interleave(c, 0), mask.repeat_interleave(c, 0)
            own = rows.states.fill(DynamicCache(), rows.member.repeat_interleave(c), self.dtype)
            cache = EncoderDecoderCache(own, DynamicCache())
        with attending(encoded.device):
            hidden = self.model.decoder(
                inputs_embeds=self.embed(ids),
                attention_mask=allowed,
                encoder_hidden_states=encoded,
                encoder_attention_mask=self.over_encoded(mask),
                past_key_values=cache,
                use_cache=cache is not None,
            ).last_hidden_state
        return hidden.reshape(b, c, length, -1)

    def _after_text(self, rows: Embedded, candidates: Tensor, candidates_mask: Tensor) -> Tensor:
        """States [b c l d] that predict each candidate's tokens in a decoder-only model; each row is read once.

        A row is its input, then all its candidates side by side, each at the positions it would have alone and
        attending to prompt, input and itself. A candidate's last token predicts nothing and is not fed.
        """
        x, mask = rows.x, rows.mask
        b, c, length = candidates.shape
        fed = candidates[..., :-1].flatten(1)  # [b n]
        t, n = x.shape[1], fed.shape[1]
        steps = torch.arange(length - 1).repeat(c)  # [n]
        positions = torch.cat([_positions(mask), mask.sum(1, keepdim=True) + steps], 1)
        real = torch.cat([mask, candidates_mask[..., :-1].flatten(1)], 1)
        structure = torch.ones(t + n, t + n, dtype=torch.bool, device=x.device).tril()
        if n:
            causal = structure[: length - 1, : length - 1]
            structure[t:, t:] = torch.block_diag(*[causal] * c)
        both = Embedded(torch.cat([x, self.embed(fed)], 1), real, rows.states, rows.member)
        hidden = self._read(both, positions=positions, structure=structure)
        last = sent(t - 1 - mask.flip(1).int().argmax(1), x.device)  # [b], wherever padding is
        first = hidden[torch.arange(b, device=x.device), last][:, None, None].expand(b, c, 1, self.width)
        return torch.cat([first, hidden[:, t:].unflatten(1, (c, length - 1))], 2) if n else first

    def _read(
        self, rows: Embedded, cache: Any = None, *, positions: Tensor | None = None, structure: Tensor | None = None
    ) -> Tensor:
        """Hidden states [b t d] of a decoder-only model's rows, behind their prompts' keys and values if there are any.

        positions [b t] and structure [t t], who may see whom: unless given, those of a text.
        """
        from transformers import DynamicCache

        x, real = rows.x, rows.mask
        positions = _positions(real) if positions is None else positions
        if structure is None:
            structure = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        num_tokens, in_front = x.shape[1], 0 if rows.states is None else rows.states.keys[0].shape[2]
        if cache is None and (beyond := -(in_front + num_tokens) % self.length_step):
            x, structure = nn.functional.pad(x, (0, 0, 0, beyond)), nn.functional.pad(structure, (0, beyond, 0, beyond))
            real, positions = nn.functional.pad(real, (0, beyond)), nn.functional.pad(positions, (0, beyond))
        keys_at = positions
        if rows.states is not None and rows.member is not None:
            lengths = rows.states.row_lengths(rows.member)[:, None]
            columns = torch.arange(in_front).expand(len(x), -1)
            positions = positions + lengths
            keys_at = torch.cat([columns, positions], 1)
            real = torch.cat([columns < lengths, real], 1)
            structure = torch.cat([structure.new_ones(len(structure), columns.shape[1]), structure], 1)
            cache = rows.states.fill(DynamicCache(), rows.member, x.dtype)
        masks = self.allowed(structure, real, positions, keys_at)
        return self.forward(x, masks, positions, cache)[:, :num_tokens]


def _positions(mask: Tensor) -> Tensor:
    """Positions counted from the mask [b t]; padding repeats the last one."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _places(mask: Bool[Tensor, "*b l"], device: torch.device) -> Int[Tensor, " n"]:
    """Where a mask is True, counted through."""
    return sent(mask.flatten().nonzero()[:, 0], device)


def _spread(values: Float[Tensor, " n"], mask: Bool[Tensor, "*b l"]) -> Float[Tensor, "*b l"]:
    """The values in the places where the mask is True, 0 in the others."""
    return values.new_zeros(mask.numel()).index_copy(0, _places(mask, values.device), values).view(mask.shape)


def scales_outputs(config: Any) -> bool:
    """Whether the decoder's states are scaled before the output layer: T5 1.0, not T5 1.1 and mT5."""
    if config.model_type == "umt5":
        return bool(config.tie_word_embeddings)  # its modeling file has kept the older rule
    return bool(getattr(config, "scale_decoder_outputs", False))


def _ends(model: Any) -> list[int]:
    """The ids that end a text by the model's configurations, each of which may have none, one, or a list."""
    ends: list[int] = []
    for config in (model.config, model.config.get_text_config(), getattr(model, "generation_config", None)):
        named = getattr(config, "eos_token_id", None)
        ends += named if isinstance(named, list) else [] if named is None else [named]
    return ends


def reason_against(config: Any, model: Any = None) -> str:
    """Why no model of this configuration can be taken, or not this one, as the end of a sentence; empty for none.

    A decoder-only model must be told which tokens attend to which, and at what positions.
    """
    if config.is_encoder_decoder:
        return "" if config.model_type in T5_TYPES else f"is an encoder-decoder other than {', '.join(T5_TYPES)}"
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"has layers of {', '.join(sorted(kinds))}"
    body = None if model is None else model.get_decoder()
    is_blind = body is not None and "position_ids" not in inspect.signature(body.forward).parameters
    if is_blind or getattr(text, "alibi", False):
        return "does not take the positions of its tokens"
    if body is not None and not _blocks_of(body, text):
        return "does not keep its blocks in one list"
    return ""


def refusal(name: str, config: Any, reason: str) -> ValueError:
    """The error for a model of a type that cannot be taken."""
    return ValueError(
        f"{name} is of type {config.model_type!r}, which {reason}; give a Llama-type, Gemma, Qwen, GPT-2 or T5"
    )


def _blocks_of(body: Any, config: Any) -> list[Any]:
    """The blocks of a decoder-only model's body; none if it keeps them elsewhere."""
    lists = [child for child in body.children() if isinstance(child, torch.nn.ModuleList)]
    return next((list(blocks) for blocks in lists if len(blocks) == config.num_hidden_layers), [])


def digest_of_table(table: Float[Tensor, "v d"]) -> bytes:
    """sha256 of the embedding table rounded to bfloat16, whatever type it was loaded in."""
    rounded = table.detach().to("cpu", torch.bfloat16).contiguous()
    return hashlib.sha256(rounded.view(torch.uint8).numpy().data).digest()


def _fingerprint(config: Any, table_digest: bytes, tokenizer: Tokenizer) -> str:
    """sha256 of the architecture's fields, the embedding table and the tokenizer."""
    fields = config.get_text_config().to_dict()
    shape = {key: fields[key] for key in ARCHITECTURE if key in fields}
    shape["rope_theta"] = (fields.get("rope_parameters") or {}).get("rope_theta")
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode())
    digest.update(table_digest)
    digest.update(tokenizer.digest())
    return digest.hexdigest()
