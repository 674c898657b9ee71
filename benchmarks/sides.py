"""The two sides of the speed benchmarks: our training step and PEFT's, each in a process of its own.

A side takes rows that are already ids, so both compute the same examples, and has a process of its own, so
neither gains from the other's settings (we ask glibc to keep freed memory; PEFT's users do not) and the
process's peak memory is that side's. Shapes: b rows, p prompt tokens, d width.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import processes
import torch
from jaxtyping import Float
from torch import Tensor, nn

from softprompt.base.memory import peak_bytes, reset_peak
from softprompt.models.text import Row, micro_batches, pad

# T5 1.1 (paper, section 3; t5/models of google-research/text-to-text-transfer-transformer). Head width 64.
SHAPES = {
    "t5-1.1-small": {"d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "t5-1.1-base": {"d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
}
SMOLLM2 = "smollm2-135m"
# Llama's; of SmolLM2 for counting alone, since its weights are read.
LLAMAS = {
    SMOLLM2: {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49_152,
    },
}  # fmt: skip
DOCUMENTED_BATCH = 8  # rows: batch_size in PEFT's guide and in its prompt tuning notebook
CPU = torch.device("cpu")
IGNORED = -100  # the label that transformers leaves out of the loss


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one process computes, and how."""

    name: str
    """ours, documented, bfloat16 or best."""
    model: str
    source: str
    """Where it comes from: the T5 vocabulary's folder, or the folder of the decoder-only model."""
    prompt_length: int
    dtype: str = "float32"
    device: str = "cpu"
    compiled: bool = False
    """Whether each transformer block is under torch.compile, for any shape."""
    keep_freed_memory: bool = True
    """Ours: whether glibc is asked to keep what is freed, as `softprompt.load` does."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model is one of the T5 shapes."""
        return self.model in SHAPES

    @property
    def pads_to_max_length(self) -> bool:
        """Whether every forward pass has one shape, as in PEFT's guides."""
        return self.name in ("documented", "bfloat16")


class Layout(NamedTuple):
    """How a side cuts a step's rows into forward passes; each side reads its own fields."""

    max_tokens: int
    """Ours: tokens of a micro-batch, padding and prompts in front included."""
    max_length: int
    """PEFT as documented: what every input is padded to."""
    device_batch: int = DOCUMENTED_BATCH
    """PEFT: rows of a forward pass; gradients are accumulated over the passes of a step."""


class Pass(NamedTuple):
    """The shape of one forward and backward pass, for counting operations."""

    rows: int
    tokens: int
    """Tokens of a row in the encoder or the only stack, prompt and padding included."""
    prompt_in_front: int
    """Prompt tokens that a row's tokens attend to but that are not among them (a prompt run once)."""
    targets: int
    """Positions of a row in the decoder; 0 in a decoder-only model."""
    logits: int
    """Positions of the whole pass that are turned into logits."""


class Computes(Protocol):
    """What a worker needs of a side."""

    def step(self, rows: Sequence[Row], dropout: float, layout: Layout) -> None:
        """One optimizer step on these rows."""
        ...

    def loss_and_gradient(self, rows: Sequence[Row], prompt: Tensor, layout: Layout) -> tuple[float, Tensor]:
        """The summed loss over target tokens, and its gradient [p d], without dropout."""
        ...

    def passes(self, rows: Sequence[Row], layout: Layout) -> list[Pass]:
        """The shapes that `step` computes."""
        ...


def t5_tokenizer(folder: str) -> Any:
    """The tokenizer of the real T5 vocabulary; `folder` holds spiece.model."""
    from transformers import T5Tokenizer

    with tempfile.TemporaryDirectory() as alone:  # transformers looks for a folder of the tokenizer's own
        shutil.copy(Path(folder) / "spiece.model", alone)
        return T5Tokenizer.from_pretrained(alone)


def own_tokenizer(texts: Sequence[str]) -> Any:
    """A tokenizer of 8,000 ids made from these texts, for where T5's vocabulary is not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<pad>", "</s>"]
    made.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=8_000, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>")


def hf_model(side: Side) -> Any:
    """The Hugging Face model; a shape gets the same random weights in every process, made where they are to be."""
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    dtype = getattr(torch, side.dtype)
    if side.model == SMOLLM2:
        return AutoModelForCausalLM.from_pretrained(side.source, dtype=dtype)
    torch.manual_seed(0)
    if side.model in LLAMAS:
        config = LlamaConfig(**LLAMAS[side.model], tie_word_embeddings=True, pad_token_id=0, eos_token_id=1)
        with torch.device(side.device):
            return LlamaForCausalLM._from_config(config, dtype=dtype)
    config = T5Config(
        **SHAPES[side.model],
        d_kv=64,
        vocab_size=32_128,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    if side.device != "cpu":
        with torch.device(side.device):
            return T5ForConditionalGeneration._from_config(config, dtype=dtype)
    return T5ForConditionalGeneration(config).to(dtype)


class Ours:
    """`softprompt.training.methods.gradients` and an optimizer update. tokenizer: unless it is the source's."""

    def __init__(self, side: Side, tokenizer: Any = None):
        from softprompt.models import FrozenLM, keep_freed_memory
        from softprompt.training.optimizers import AdamW

        if side.keep_freed_memory:
            keep_freed_memory()
        if tokenizer is None and side.is_encoder_decoder:
            tokenizer = t5_tokenizer(side.source)
        elif tokenizer is None:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(side.source)
        self.lm = FrozenLM(hf_model(side), tokenizer, name=side.model)
        if side.compiled:
            self.lm.compile()
        self.prompt = self.lm.embeddings[: side.prompt_length].float().clone()
        self.optimizer = AdamW(learning_rate=1e-3)
        self.state = self.optimizer.init(self.prompt)

    def step(self, rows: Sequence[Row], dropout: float, layout: Layout) -> None:
        """One optimizer step on these rows."""
        seeds = [row.index for row in rows] if dropout else None
        gradient, _ = self._gradient(rows, self.prompt, layout.max_tokens, dropout, seeds)
        self.optimizer.update(self.prompt, gradient, self.state)

    def loss_and_gradient(self, rows: Sequence[Row], prompt: Tensor, layout: Layout) -> tuple[float, Tensor]:
        """The summed loss over target tokens, and its gradient [p d], without dropout."""
        gradient, loss = self._gradient(rows, prompt, layout.max_tokens, 0.0, None)
        return loss, gradient

    def passes(self, rows: Sequence[Row], layout: Layout) -> list[Pass]:
        """The shapes that `step` computes."""
        p = len(self.prompt)
        t5 = self.lm.is_encoder_decoder
        passes = [] if t5 else [Pass(1, p, 0, 0, 0)]
        lengths, price = [row.num_tokens for row in rows], self.lm.pass_tokens
        for places in micro_batches(lengths, layout.max_tokens, extra=p if t5 else 0, pass_tokens=price):
            taken = [rows[i] for i in places]
            inputs, targets = max(len(r.ids) for r in taken), max(len(r.target) for r in taken)
            logits = sum(len(r.target) for r in taken)
            in_stack, in_front = (p + inputs, 0) if t5 else (inputs + targets - 1, p)
            passes.append(Pass(len(taken), in_stack, in_front, targets if t5 else 0, logits))
        return passes

    def _gradient(
        self, rows: Sequence[Row], prompt: Tensor, max_tokens: int, dropout: float, seeds: list[int] | None
    ) -> tuple[Tensor, float]:
        from softprompt.training.methods import gradients

        worn = [0] * len(rows)
        found, sums, _ = gradients(self.lm, [prompt], rows, worn, max_tokens=max_tokens, dropout=dropout, seeds=seeds)
        return found[0], sums[0]


class Peft:
    """A training step written as PEFT's guides write it."""

    def __init__(self, side: Side):
        from peft import PromptTuningConfig, TaskType, get_peft_model

        self.side = side
        self.is_best = not side.pads_to_max_length
        kind = TaskType.SEQ_2_SEQ_LM if side.is_encoder_decoder else TaskType.CAUSAL_LM
        once = {"num_transformer_submodules": 1} if self.is_best else {}  # by default PEFT trains two prompts on T5
        base = hf_model(side)
        self.pad_id = next(i for i in (base.config.pad_token_id, base.config.eos_token_id) if i is not None)
        config = PromptTuningConfig(task_type=kind, num_virtual_tokens=side.prompt_length, **once)
        self.model = get_peft_model(base, config)
        self.table = self.model.prompt_encoder["default"].embedding.weight
        if side.compiled:
            for block in _blocks(base):
                block.compile(dynamic=True)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def step(self, rows: Sequence[Row], dropout: float, layout: Layout) -> None:
        """One optimizer step on these rows."""
        self._set_dropout(dropout)
        batches = self._batches(rows, layout)
        for batch in batches:
            loss = self.model(**self._sent(batch)).loss / len(batches)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss_and_gradient(self, rows: Sequence[Row], prompt: Tensor, layout: Layout) -> tuple[float, Tensor]:
        """PEFT averages the loss over target tokens, so loss and gradient are multiplied by their number.

        A decoder-only model reads one row at a time: PEFT puts padding between prompt and text and counts it as
        positions, which makes a padded row another function than the row alone.
        """
        self._set_dropout(0.0)
        with torch.no_grad():
            before = self.table.clone()
            self.table[: len(prompt)] = prompt
        groups = [rows] if self.side.is_encoder_decoder else [[row] for row in rows]
        total = 0.0
        for group in groups:
            batch = self._padded(group, None)
            loss = self.model(**self._sent(batch)).loss * int((batch["labels"] != IGNORED).sum())
            loss.backward()
            total += loss.item()
        assert self.table.grad is not None
        gradient = self.table.grad[: len(prompt)].clone()
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.table.copy_(before)
        return total, gradient

    def passes(self, rows: Sequence[Row], layout: Layout) -> list[Pass]:
        """The shapes that `step` computes."""
        t5, p = self.side.is_encoder_decoder, self.side.prompt_length
        passes = []
        for batch in self._batches(rows, layout):
            b, t = batch["input_ids"].shape
            targets = batch["labels"].shape[1] if t5 else 0
            passes.append(Pass(b, p + t, 0, targets, b * (targets or p + t)))
        return passes

    def _sent(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.side.device) for name, tensor in batch.items()}

    def _batches(self, rows: Sequence[Row], layout: Layout) -> list[dict[str, Tensor]]:
        """What its DataLoader yields for one step."""
        from torch.utils.data import DataLoader

        size = layout.device_batch
        if self.is_best:
            grouped: Any = sorted(rows, key=lambda row: -row.num_tokens)
            return list(DataLoader(grouped, batch_size=size, collate_fn=lambda group: self._padded(group, None)))
        whole = self._padded(rows, layout.max_length)
        records: Any = [{name: values[i] for name, values in whole.items()} for i in range(len(rows))]
        return list(DataLoader(records, batch_size=size))

    def _padded(self, rows: Sequence[Row], max_length: int | None) -> dict[str, Tensor]:
        """Rows as the guides lay them out; padded to max_length, or to the longest."""
        if self.side.is_encoder_decoder:
            ids, mask = pad([row.ids for row in rows], self.pad_id)
            labels, _ = pad([row.target for row in rows], IGNORED)
            beyond = 0 if max_length is None else max_length - ids.shape[1]
            ids = nn.functional.pad(ids, (0, beyond), value=self.pad_id)
            return {"input_ids": ids, "attention_mask": nn.functional.pad(mask.long(), (0, beyond)), "labels": labels}
        width = max_length or max(row.num_tokens for row in rows)
        ids, mask, labels = [], [], []
        for row in rows:
            left = width - row.num_tokens
            ids.append([self.pad_id] * left + [*row.ids, *row.target])
            mask.append([0] * left + [1] * row.num_tokens)
            labels.append([IGNORED] * (left + len(row.ids)) + [*row.target])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }

    def _set_dropout(self, rate: float) -> None:
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
            elif isinstance(getattr(module, "dropout", None), float):  # the rate of an attention
                module.dropout = rate


def _blocks(model: Any) -> list[nn.Module]:
    if model.config.is_encoder_decoder:
        return [*model.encoder.block, *model.decoder.block]
    return list(model.base_model.layers)


def count_flops(side: Side, passes: Sequence[Pass]) -> float:
    """Floating-point operations of matrix products in one step, from shapes.

    A product of an [m k] and a [k n] matrix is 2mkn. Weights are frozen, so going backward costs each weight's
    product once more (the gradient of its input) and each of attention's two products twice more:

        blocks     4 * tokens * weights that multiply a token
        attention  12 * queries * keys * width of all heads      (4 forward, 8 backward)
        logits     4 * positions * width * vocabulary

    What is recomputed (fused attention going backward) is not counted.
    """
    return float(sum(_t5_flops(side, p) if side.is_encoder_decoder else _llama_flops(side, p) for p in passes))


def _t5_flops(side: Side, step: Pass) -> int:
    shape = SHAPES[side.model]
    d, inner, layers = shape["d_model"], 64 * shape["num_heads"], shape["num_layers"]
    encoder, decoder = step.rows * step.tokens, step.rows * step.targets
    encoder_block = 4 * encoder * (4 * d * inner + 3 * d * shape["d_ff"]) + 12 * encoder * step.tokens * inner
    own = 4 * decoder * (6 * d * inner + 3 * d * shape["d_ff"]) + 12 * decoder * step.targets * inner
    across = 4 * encoder * 2 * d * inner + 12 * decoder * step.tokens * inner
    return layers * (encoder_block + own + across) + 4 * step.logits * d * 32_128


def _llama_flops(side: Side, step: Pass) -> int:
    shape = LLAMAS[side.model]
    d, ff, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    kv = d * shape["num_key_value_heads"] // shape["num_attention_heads"]
    tokens = step.rows * step.tokens
    block = 4 * tokens * (2 * d * d + 2 * d * kv + 3 * d * ff)
    attention = 12 * tokens * (step.tokens + step.prompt_in_front) * d
    return layers * (block + attention) + 4 * step.logits * d * shape["vocab_size"]


def wait_for(device: str) -> None:
    """Return when a GPU has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def matmul_peak(dtype: torch.dtype, size: int, seconds: float = 1.0, device: str = "cpu") -> float:
    """GFLOP/s of square matrix products of this size: the best of a second's worth of trials."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, until = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        ended = time.perf_counter()
        best = min(best, ended - started)
        if ended > until:
            return 2 * size**3 / best / 1e9


class Worker(processes.Worker):
    """One side in a process of its own."""

    def __init__(self, side: Side, threads: int):
        super().__init__(_serve, side, threads)

    def time(self, rows: Sequence[Row], dropout: float, layout: Layout) -> float:
        """Seconds of one step."""
        return self.ask("time", rows, dropout, layout)

    def loss_and_gradient(self, rows: Sequence[Row], prompt: Tensor, layout: Layout) -> tuple[float, Tensor]:
        """As the side's own."""
        loss, gradient = self.ask("loss_and_gradient", rows, prompt.numpy(), layout)
        return loss, torch.from_numpy(gradient)

    def first_vectors(self) -> Float[Tensor, "p d"]:
        """A prompt to compare gradients on: the table's first rows."""
        return torch.from_numpy(self.ask("first_vectors"))

    def passes(self, rows: Sequence[Row], layout: Layout) -> list[Pass]:
        """As the side's own."""
        return self.ask("passes", rows, layout)

    def reset_peak(self) -> None:
        """Begin counting peak memory anew (Linux; elsewhere the peak is the process's)."""
        self.ask("reset_peak")

    def peak_mb(self) -> float:
        """Peak resident memory since `reset_peak`, the model's and the libraries' included."""
        return self.ask("peak_mb")


def _serve(side: Side) -> processes.Respond:
    computes: Computes = Ours(side) if side.name == "ours" else Peft(side)
    return partial(_respond, computes)


def _respond(computes: Any, what: str, *given: Any) -> Any:
    if what == "time":
        gc.collect()
        started = time.perf_counter()
        computes.step(*given)
        return time.perf_counter() - started
    if what == "loss_and_gradient":
        rows, prompt, layout = given
        loss, gradient = computes.loss_and_gradient(rows, torch.from_numpy(prompt), layout)
        return loss, gradient.detach().float().numpy()
    if what == "first_vectors":
        return computes.prompt.numpy()
    if what == "passes":
        return computes.passes(*given)
    return reset_peak(CPU) if what == "reset_peak" else peak_bytes(CPU) / 2**20
