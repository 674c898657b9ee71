"""The frozen model: a Hugging Face model behind `embed`, `loss`, `score` and `generate` on embeddings.

Shapes: b rows, k prompts, p prompt tokens, t input tokens, c candidates, l tokens of a target, n tokens
of all candidates of a row, d width, v vocabulary. True in a mask = attend.

A prompt enters in one of two ways. As embeddings in front of the input (`softprompt.prompts.prepend`), which
any model takes; or, in a decoder-only model, as the keys and values of a prompt that was run once
(`FrozenLM.run_prompts`), which is exact because nothing in front of a prompt can change it.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from softprompt.models.layers import (
    CrossAttention,
    DroppedValues,
    SharedDropout,
    StackDropout,
    UMT5CrossAttention,
    checkpointed,
    compiled,
    plain_attention,
    use_row_attention,
    use_written_out_attention,
    with_bias_of_first,
)
from softprompt.models.states import Embedded, Layout, PromptStates, RowGroups, RowStates
from softprompt.models.tokenizer import Tokenizer

NO_PROMPT = -1

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


class Generated(NamedTuple):
    """What `generate` returns for each row."""

    ids: list[list[int]]
    """New tokens, without the end of sequence."""
    log_probs: list[float]
    """Sum of log p over the tokens chosen, the end of sequence included where it came."""


class FrozenLM:
    """A language model whose weights never change, used through embeddings.

    Made by `softprompt.load`; `FrozenLM(model, tokenizer, name=...)` wraps a model that is in memory.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, embedding_digest: bytes | None = None):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = Tokenizer(tokenizer)
        self.name = name
        self.config = model.config.get_text_config()
        self.is_encoder_decoder: bool = bool(model.config.is_encoder_decoder)
        if self.is_encoder_decoder and model.config.model_type not in T5_TYPES:
            raise ValueError(
                f"{name} is an encoder-decoder of type {model.config.model_type!r}; "
                f"softprompt takes the types {', '.join(T5_TYPES)} and decoder-only models"
            )
        if not self.is_encoder_decoder:
            _check_decoder_only(model, self.config, name)
        self._table = model.get_input_embeddings()
        self.width: int = self._table.weight.shape[1]
        self.max_length: int | None = self._position_limit()
        digest = embedding_digest or digest_of_table(self._table.weight)
        self.fingerprint = _fingerprint(model.config, digest, self.tokenizer)
        self._dropouts: list[SharedDropout] = []
        self._attentions: list[nn.Module] = []
        self._scales_outputs = scales_outputs(model.config)
        self.is_checkpointed = False
        self.is_compiled = False
        if self.is_encoder_decoder:
            self._share_dropout()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._table.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The type the model computes in. Prompts are always float32."""
        return self._table.weight.dtype

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

    def blocks(self) -> list[Any]:
        """The transformer blocks, in order; an encoder's before its decoder's."""
        if self.is_encoder_decoder:
            return [*self.model.encoder.block, *self.model.decoder.block]
        body = self.model.base_model
        return list(body.layers if hasattr(body, "layers") else body.h)

    def compile(self) -> None:
        """Compile each block; costs seconds to minutes once, pays over hundreds of steps."""
        if not self.is_compiled:
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

    def embed(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The embedded ids, as the model's first block would get them."""
        return self._table(ids)

    def run_prompts(self, prompts: Float[Tensor, "k p d"], lengths: Int[Tensor, " k"]) -> PromptStates:
        """Every prompt through a decoder-only model once: its keys and values in every layer."""
        if self.is_encoder_decoder:
            raise ValueError(f"{self.name} reads prompt and input together; prompts cannot be run ahead of inputs")
        from transformers import DynamicCache

        columns = torch.arange(prompts.shape[1], device=prompts.device)
        real = columns[None] < lengths[:, None]  # [k p]
        cache = DynamicCache()
        self._decoder_only(prompts, self._causal(columns.expand(real.shape), real), columns.expand(real.shape), cache)
        layers: list[Any] = cache.layers
        return PromptStates([layer.keys for layer in layers], [layer.values for layer in layers], lengths)

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
        log_probs, log_z = self._log_probs(rows, targets[:, None], targets_mask[:, None])
        nll = -log_probs[:, 0]
        return nll + z_loss * log_z[:, 0].square() if z_loss else nll

    def score(
        self, rows: Embedded, candidates: Int[Tensor, "b c l"], candidates_mask: Bool[Tensor, "b c l"]
    ) -> Float[Tensor, "b c"]:
        """Rank classification: log p(candidate | row), summed over its tokens, for each candidate of each row.

        Each row is read once for all its candidates.
        """
        return self._log_probs(rows, candidates, candidates_mask)[0].sum(-1)

    @torch.no_grad()
    def generate(self, rows: Embedded, *, max_tokens: int) -> Generated:
        """Greedy decoding, to the end of sequence or `max_tokens` new tokens."""
        step = self._decoder_steps(rows) if self.is_encoder_decoder else self._text_steps(rows)
        tokens: Tensor | None = None
        done = torch.zeros(len(rows.x), dtype=torch.bool, device=rows.x.device)
        total = torch.zeros(len(rows.x), device=rows.x.device)
        ids: list[list[int]] = [[] for _ in range(len(rows.x))]
        for _ in range(max_tokens):
            log_probs = step(tokens).log_softmax(-1)  # [b v]
            best, chosen = log_probs.max(-1)
            total += torch.where(done, 0.0, best)
            done = done | (chosen == self.tokenizer.eos_id)
            for row in (~done).nonzero()[:, 0].tolist():
                ids[row].append(int(chosen[row]))
            if done.all():
                break
            tokens = chosen
        return Generated(ids, total.tolist())

    def last_states(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The last hidden state of each token of the input (the encoder's, if there is one)."""
        if self.is_encoder_decoder:
            return self.encode(x, mask)
        positions = _positions(mask)
        return self._decoder_only(x, self._causal(positions, mask), positions)

    @torch.no_grad()
    def layout(self) -> Layout:
        """What a token of a row takes in the cache (of the decoder, in an encoder-decoder)."""
        if self.is_encoder_decoder:
            shapes = [(self.config.num_heads, self.config.d_kv)] * (2 * len(self.model.decoder.block))
            return Layout(tuple(shapes), self.width, self.dtype, self.device)
        one = torch.ones(1, dtype=torch.long, device=self.device)
        states = self.run_prompts(torch.zeros(1, 1, self.width, device=self.device), one)
        pairs = zip(states.keys, states.values, strict=True)
        return Layout(tuple((s.shape[1], s.shape[3]) for pair in pairs for s in pair), 0, self.dtype, self.device)

    def encode(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        """The encoder's last states."""
        return self.model.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state

    def read(self, x: Float[Tensor, "b q d"], rows: RowStates) -> Float[Tensor, "b v"]:
        """The next logits after inputs that are padded at the left, whose rows have begun (decoder-only).

        Moves the rows' end behind the inputs.
        """
        q, first, until = x.shape[1], rows.first, rows.end + x.shape[1]
        starts = torch.tensor(rows.starts, device=x.device)[:, None]
        keys_at = torch.arange(first, until, device=x.device) - starts
        queries_at = keys_at[:, -q:].clamp(min=0)
        structure = torch.ones(q, until - first, dtype=torch.bool, device=x.device).tril(until - first - q)
        allowed = self._allowed(structure, rows.real(first, until), queries_at, keys_at)
        hidden = self._decoder_only(x, allowed, queries_at, rows)
        rows.end = until
        return self._logits(hidden[:, -1])

    def decode(self, tokens: Int[Tensor, " b"], groups: Sequence[RowStates]) -> Float[Tensor, "b v"]:
        """The next logits after one more token of every row, in the order of the groups. Moves the groups' ends."""
        x = self.embed(tokens[:, None])
        if self.is_encoder_decoder:
            parts = zip(x.split([group.num_rows for group in groups]), groups, strict=True)
            hidden = torch.cat([self._decoder_step(part, group) for part, group in parts])
        else:
            hidden = self._text_step(x, groups)
        for group in groups:
            group.end += 1
        return self._logits(hidden[:, -1])

    def _decoder_step(self, x: Tensor, rows: RowStates) -> Tensor:
        encoded, mask = rows.all_encoded()
        return self.model.decoder(
            inputs_embeds=x,
            attention_mask=self._as_the_model_reads(rows.real(rows.first, rows.end + 1)[:, None, None]),
            encoder_hidden_states=encoded,
            encoder_attention_mask=mask,
            past_key_values=rows,
            use_cache=True,
        ).last_hidden_state

    def _text_step(self, x: Tensor, groups: Sequence[RowStates]) -> Tensor:
        implementation = self.config._attn_implementation
        rows = RowGroups(groups, implementation, self.window, self._as_the_model_reads)
        at = torch.tensor([[group.end - start] for group in groups for start in group.starts], device=x.device)
        self.config._attn_implementation = use_row_attention()
        try:
            return self._decoder_only(x, self._by_kind(rows.full, rows.near), at, rows, rows=rows)
        finally:
            self.config._attn_implementation = implementation

    @contextlib.contextmanager
    def dropout(self, rate: float, seeds: Sequence[int], lengths: Sequence[int], targets: int) -> Iterator[None]:
        """Dropout as T5X has it, for one micro-batch of an encoder-decoder; the same seeds give the same masks.

        seeds: one per row; lengths: encoder tokens of each row, prompt included; targets: decoder positions.
        A row's masks depend on its seed and its own lengths only, never on what it is batched with.
        """
        if rate == 0:
            yield
            return
        if not self.is_encoder_decoder:
            raise ValueError(f"dropout is for encoder-decoders; {self.name} is decoder-only: set dropout to 0")
        self._draw_masks(rate, seeds, lengths, targets)
        try:
            yield
        finally:
            for module in [*self._dropouts, *self._attentions]:
                module.mask = None
            for stack in (self.model.encoder, self.model.decoder):
                stack.dropout.turn = 0  # an error may have come between the two

    def _share_dropout(self) -> None:
        """Put `SharedDropout` where the model has dropout, and an attention mask on the values.

        T5X shares an attention mask over queries (t5x/examples/t5/layers.py, dot_product_attention: dropout_shape
        with a 1 for the query axis), so dropping a weight for all queries is dropping its value: fused attention
        runs with dropout 0.
        """
        for module in list(self.model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Dropout):
                    once, again = SharedDropout(), SharedDropout()
                    is_stack = hasattr(module, "final_layer_norm")
                    setattr(module, name, StackDropout(once, again) if is_stack else once)
                    self._dropouts += [once, again] if is_stack else [once]
            if hasattr(module, "v") and hasattr(module, "n_heads"):
                module.v = DroppedValues(module.v, module.n_heads)
                self._attentions.append(module.v)
        kind = UMT5CrossAttention if self.config.model_type == "umt5" else CrossAttention
        for block in self.model.decoder.block:
            block.layer[1].EncDecAttention = kind(block.layer[1].EncDecAttention)
        if kind is CrossAttention:  # every layer of umT5 has a position bias of its own
            for block in self.model.encoder.block:
                block.forward = with_bias_of_first(block.forward)
        self._stack_sizes = self._describe_dropouts()

    def _describe_dropouts(self) -> list[int]:
        """Width of each dropout's mask, in the order of `_dropouts`."""
        widths = {id(module): self.width for module in self._dropouts}
        for block in self.blocks():
            dense = block.layer[-1].DenseReluDense
            widths[id(dense.dropout)] = self.config.d_ff
        return [widths[id(module)] for module in self._dropouts]

    def _draw_masks(self, rate: float, seeds: Sequence[int], lengths: Sequence[int], targets: int) -> None:
        heads, keep = self.config.num_heads, 1 - rate
        widest = max(lengths)
        cross = [plain_attention(b.layer[1].EncDecAttention).v for b in self.model.decoder.block]
        own = [b.layer[0].SelfAttention.v for b in self.model.decoder.block]
        encoder = [b.layer[0].SelfAttention.v for b in self.model.encoder.block]
        over_inputs, over_targets = [*encoder, *cross], own
        total = sum(self._stack_sizes)
        shared = torch.zeros(len(seeds), total)
        inputs = torch.zeros(len(seeds), len(over_inputs), widest, heads)
        outputs = torch.zeros(len(seeds), len(over_targets), targets, heads)
        for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
            generator = torch.Generator().manual_seed(seed)
            shared[row] = torch.rand(total, generator=generator)
            # Targets first: a row's masks must not depend on how far its inputs were padded.
            drawn = torch.rand(targets, len(over_targets), heads, generator=_child(seed, 1))
            outputs[row] = drawn.transpose(0, 1)
            drawn = torch.rand(length, len(over_inputs), heads, generator=_child(seed, 2))
            inputs[row, :, :length] = drawn.transpose(0, 1)

        def scaled(uniform: Tensor) -> Tensor:
            return ((uniform < keep).float() / keep).to(self.device)

        for module, mask in zip(self._dropouts, scaled(shared).split(self._stack_sizes, 1), strict=True):
            module.mask = mask[:, None]
        for module, mask in zip(over_inputs, scaled(inputs).unbind(1), strict=True):
            module.mask = mask
        for module, mask in zip(over_targets, scaled(outputs).unbind(1), strict=True):
            module.mask = mask

    def _position_limit(self) -> int | None:
        if self.is_encoder_decoder:
            return None
        return getattr(self.config, "max_position_embeddings", None) or getattr(self.config, "n_positions", None)

    def _log_probs(self, rows: Embedded, candidates: Tensor, candidates_mask: Tensor) -> tuple[Tensor, Tensor]:
        """log p and log Z of every candidate token [b c l]; both 0 where masked."""
        if self.is_encoder_decoder:
            hidden = self._after_encoder(rows, candidates)
        else:
            hidden = self._after_text(rows, candidates, candidates_mask)
        logits = self._logits(hidden[candidates_mask])  # [valid v]
        log_z = logits.logsumexp(-1)
        chosen = logits.gather(-1, candidates[candidates_mask][:, None])[:, 0] - log_z
        zeros = torch.zeros(candidates.shape, dtype=chosen.dtype, device=chosen.device)
        return zeros.masked_scatter(candidates_mask, chosen), zeros.masked_scatter(candidates_mask, log_z)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits, with the scalings that models apply around their output layer."""
        if self._scales_outputs:
            hidden = hidden * self.width**-0.5
        logits = self.model.get_output_embeddings()(hidden).float()
        logits = logits * getattr(self.config, "logit_scale", 1.0) / getattr(self.config, "logits_scaling", 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _after_encoder(self, rows: Embedded, candidates: Tensor) -> Tensor:
        """Decoder states [b c l d] that predict each candidate's tokens; each row is encoded once.

        The candidates of a row stand side by side in one decoder sequence, each attending to itself only: T5's
        positions are relative, so each sees what it would see alone.
        """
        b, c, length = candidates.shape
        encoded = self.encode(rows.x, rows.mask)
        if rows.states is not None:
            return self._after_prefix(encoded, rows, candidates)
        start = torch.full((b, c, 1), self.config.decoder_start_token_id, device=candidates.device)
        ids = torch.cat([start, candidates[..., :-1]], -1).flatten(1)  # [b c*l]
        causal = torch.ones(length, length, dtype=torch.bool, device=encoded.device).tril()
        allowed = torch.block_diag(*[causal] * c).expand(b, 1, c * length, c * length)
        hidden = self.model.decoder(
            inputs_embeds=self.embed(ids),
            attention_mask=allowed,
            encoder_hidden_states=encoded,
            encoder_attention_mask=rows.mask,
            use_cache=False,
        ).last_hidden_state
        return hidden.unflatten(1, (c, length))

    def _after_prefix(self, encoded: Tensor, rows: Embedded, candidates: Tensor) -> Tensor:
        """The same behind the decoder's prefix, each candidate in a row of its own at its distance from the prefix."""
        b, c, length = candidates.shape
        start = torch.full((b * c, 1), self.config.decoder_start_token_id, device=candidates.device)
        hidden = self.model.decoder(
            inputs_embeds=self.embed(torch.cat([start, candidates.flatten(0, 1)[:, :-1]], 1)),
            encoder_hidden_states=encoded.repeat_interleave(c, 0),
            encoder_attention_mask=rows.mask.repeat_interleave(c, 0),
            past_key_values=self._decoder_cache(rows, c),
            use_cache=True,
        ).last_hidden_state
        return hidden.view(b, c, length, -1)

    def _decoder_cache(self, rows: Embedded, copies: int) -> Any:
        """What the decoder begins each of `copies` of a row with: nothing, or its prefix."""
        from transformers import DynamicCache, EncoderDecoderCache

        own = DynamicCache()
        if rows.states is not None and rows.member is not None:
            self._cache_of_rows(rows.states, rows.member.repeat_interleave(copies), self.dtype, own)
        return EncoderDecoderCache(own, DynamicCache())

    def _after_text(self, rows: Embedded, candidates: Tensor, candidates_mask: Tensor) -> Tensor:
        """States [b c l d] that predict each candidate's tokens in a decoder-only model; each row is read once.

        A row is its input, then all its candidates side by side, each at the positions it would have alone and
        attending to prompt, input and itself. A candidate's last token predicts nothing and is not fed.
        """
        x, mask = rows.x, rows.mask
        b, c, length = candidates.shape
        fed = candidates[..., :-1].flatten(1)  # [b n]
        n = fed.shape[1]
        own = torch.ones(length - 1, length - 1, dtype=torch.bool, device=x.device).tril()
        among = torch.block_diag(*[own] * c) if n else own.new_zeros(0, 0)
        steps = torch.arange(length - 1, device=x.device).repeat(c)  # [n]
        positions = torch.cat([_positions(mask), mask.sum(1, keepdim=True) + steps], 1)
        real = torch.cat([mask, candidates_mask[..., :-1].flatten(1)], 1)
        total = x.shape[1] + n
        structure = torch.ones(total, total, dtype=torch.bool, device=x.device).tril()
        structure[x.shape[1] :, x.shape[1] :] = among
        both = Embedded(torch.cat([x, self.embed(fed)], 1), real, rows.states, rows.member)
        hidden = self._run_rows(both, positions, structure)
        last = hidden[torch.arange(b, device=x.device), _last(mask)]  # [b d]
        first = last[:, None, None].expand(b, c, 1, self.width)
        return torch.cat([first, hidden[:, x.shape[1] :].unflatten(1, (c, length - 1))], 2) if n else first

    def _run_rows(self, rows: Embedded, positions: Tensor, structure: Tensor, cache: Any = None) -> Tensor:
        """Hidden states of rows, behind their prompts' keys and values if there are any."""
        x, real, states, member = rows.x, rows.mask, rows.states, rows.member
        if states is None or member is None:
            return self._decoder_only(x, self._allowed(structure, real, positions, positions), positions, cache)
        prompt_lengths = states.row_lengths(member)
        positions = positions + prompt_lengths[:, None]
        columns = torch.arange(states.keys[0].shape[2], device=x.device).expand(len(member), -1)
        real = torch.cat([columns < prompt_lengths[:, None], real], 1)
        structure = torch.cat([structure.new_ones(len(structure), columns.shape[1]), structure], 1)
        keys_at = torch.cat([columns, positions], 1)
        allowed = self._allowed(structure, real, positions, keys_at)
        return self._decoder_only(x, allowed, positions, self._cache_of_rows(states, member, x.dtype, cache))

    def _causal(self, positions: Tensor, real: Tensor) -> dict[str, Tensor] | Tensor:
        structure = torch.ones(real.shape[1], real.shape[1], dtype=torch.bool, device=real.device).tril()
        return self._allowed(structure, real, positions, positions)

    def _allowed(self, structure: Tensor, real: Tensor, queries_at: Tensor, keys_at: Tensor) -> Any:
        """The attention mask [b 1 q s], one for each kind of layer where the model has several.

        structure [q s]: who may see whom; real [b s]: keys that are no padding. Every query sees itself, also a
        padding one, so that no row of scores is empty.
        """
        q, s = structure.shape
        itself = torch.eye(s, dtype=torch.bool, device=structure.device)[s - q :]
        full = near = ((structure & real[:, None]) | itself)[:, None]
        if self.window is not None:
            near = full & ((queries_at[:, :, None] - keys_at[:, None] < self.window) | itself)[:, None]
        return self._by_kind(self._as_the_model_reads(full), self._as_the_model_reads(near))

    def _by_kind(self, full: Tensor, near: Tensor) -> dict[str, Tensor] | Tensor:
        """transformers 5: a model whose layers differ in kind takes one mask for each kind, any other just one."""
        kinds = getattr(self.config, "layer_types", None) or []
        return {"full_attention": full, "sliding_attention": near} if "sliding_attention" in kinds else near

    def _as_the_model_reads(self, allowed: Tensor) -> Tensor:
        """Eager attention adds its mask to the scores, where fused attention takes True and False."""
        if self.config._attn_implementation != "eager":
            return allowed
        return torch.zeros_like(allowed, dtype=self.dtype).masked_fill_(~allowed, torch.finfo(self.dtype).min)

    def _decoder_only(self, x: Tensor, allowed: Any, positions: Tensor, cache: Any = None, **options: Any) -> Tensor:
        """Last hidden states [b q d]."""
        output = self.model.base_model(
            inputs_embeds=x.to(self.dtype),
            attention_mask=allowed,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **options,
        )
        return output.last_hidden_state

    def _cache_of_rows(self, states: PromptStates, member: Tensor, dtype: torch.dtype, cache: Any) -> Any:
        """The prompts' keys and values, laid out for the rows that read them."""
        from transformers import DynamicCache

        cache = DynamicCache() if cache is None else cache
        index = member.clamp(min=0)
        are_rows = len(states.lengths) == len(member) and torch.equal(index, torch.arange(len(index)).to(index))

        def rows(layer: Tensor) -> Tensor:
            if are_rows:
                return layer.to(dtype)
            if len(layer) == 1:
                return layer.to(dtype).expand(len(index), -1, -1, -1)
            # index_select: its gradient is summed in one order, that of plain indexing in any.
            return layer.to(dtype).index_select(0, index)

        for i, (keys, values) in enumerate(zip(states.keys, states.values, strict=True)):
            cache.update(rows(keys), rows(values), i)
        return cache

    def _decoder_steps(self, rows: Embedded) -> Any:
        """A function from the last tokens [b] (None at first) to the next logits [b v]: encoder-decoder."""
        x, mask = rows.x, rows.mask
        encoded = self.encode(x, mask)
        cache = self._decoder_cache(rows, 1)
        first = torch.full((len(x),), self.config.decoder_start_token_id, device=x.device)

        def step(tokens: Tensor | None) -> Tensor:
            ids = (first if tokens is None else tokens)[:, None]
            hidden = self.model.decoder(
                inputs_embeds=self.embed(ids),
                encoder_hidden_states=encoded,
                encoder_attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
            return self._logits(hidden[:, -1])

        return step

    def _text_steps(self, entering: Embedded) -> Any:
        """The same for a decoder-only model. New tokens stand behind the padding, at the positions after the input."""
        from transformers import DynamicCache

        x, mask, states, member = entering.x, entering.mask, entering.states, entering.member
        cache = DynamicCache()
        square = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        hidden = self._run_rows(entering, _positions(mask), square, cache)
        rows = torch.arange(len(x), device=x.device)
        last = self._logits(hidden[rows, _last(mask)])
        skipped = torch.zeros_like(mask[:, 0], dtype=torch.long)
        real, keys_at = mask, _positions(mask)
        if states is not None and member is not None:
            skipped = states.row_lengths(member)
            columns = torch.arange(states.keys[0].shape[2], device=x.device).expand(len(x), -1)
            real = torch.cat([columns < skipped[:, None], mask], 1)
            keys_at = torch.cat([columns, keys_at + skipped[:, None]], 1)
        at = (skipped + mask.sum(1))[:, None]  # the next token's position [b 1]

        def step(tokens: Tensor | None) -> Tensor:
            nonlocal real, keys_at, at
            if tokens is None:
                return last
            real = torch.cat([real, torch.ones_like(at, dtype=torch.bool)], 1)
            keys_at = torch.cat([keys_at, at], 1)
            structure = torch.ones(1, real.shape[1], dtype=torch.bool, device=real.device)
            allowed = self._allowed(structure, real, at, keys_at)
            hidden = self._decoder_only(self.embed(tokens[:, None]), allowed, at, cache)
            at = at + 1
            return self._logits(hidden[:, -1])

        return step


def _child(seed: int, stream: int) -> torch.Generator:
    """A generator for one of a row's independent streams."""
    digest = hashlib.sha256(f"{seed} {stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _positions(mask: Tensor) -> Tensor:
    """Positions counted from the mask [b t]; padding repeats the last one."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def _last(mask: Tensor) -> Tensor:
    """The place of each row's last token [b], wherever its padding is."""
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)


def scales_outputs(config: Any) -> bool:
    """Whether the decoder's states are scaled before the output layer: T5 1.0, not T5 1.1 and mT5."""
    if config.model_type == "umt5":
        return bool(config.tie_word_embeddings)  # its modeling file has kept the older rule
    return bool(getattr(config, "scale_decoder_outputs", False))


def _check_decoder_only(model: Any, config: Any, name: str) -> None:
    """Raise ValueError for a model that cannot be told which tokens attend to which, and at what positions."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    body = model.base_model
    takes = inspect.signature(body.forward).parameters
    if kinds:
        why = f"has layers of {', '.join(sorted(kinds))}"
    elif "position_ids" not in takes or getattr(config, "alibi", False):
        why = "does not take the positions of its tokens"
    elif not (hasattr(body, "layers") or hasattr(body, "h")):
        why = "does not keep its blocks where Llama or GPT-2 has them"
    else:
        return
    raise ValueError(f"{name} is of type {config.model_type!r}, which {why}; give a Llama-type, Gemma, Qwen or GPT-2")


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
