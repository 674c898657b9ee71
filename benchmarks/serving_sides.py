"""The sides of serve.py: our engine, and PEFT as its users run it, each in a process of its own.

Both load the same prompt folders and answer the same requests, greedily, with at most the same number of new tokens.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import processes
import torch
from sides import SHAPES, SMOLLM2, hf_model, t5_tokenizer
from sides import Side as ModelSide

from softprompt.answering import Decoding
from softprompt.models.loading import keep_freed_memory
from softprompt.models.text import encode_inputs
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.serving import Part, Request, Scheduler
from softprompt.tasks import get_task, read_examples

MAX_BATCH = 16  # rows of the rival that groups its queue by prompt
PROMPT_LENGTH = 100
MAX_TOKENS = 8  # new ones of an answer
T5 = "t5-1.1-small"
TASKS = ("glue/sst2", "glue/mrpc", "superglue/rte", "superglue/wic")


class Ask(NamedTuple):
    """One request."""

    prompt: int
    """Which prompt it wears."""
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One process, and how it answers."""

    name: str
    """ours; switching: PEFT, `set_adapter` then `generate` for each request; grouped: PEFT, the queue grouped by
    prompt, in batches of up to 16."""
    model: str
    """A shape of sides.py, or a model's name."""
    source: str
    """The T5 vocabulary's folder, or the model's."""
    prompts: tuple[str, ...]
    """Folders."""
    max_tokens: int
    dtype: str = "float32"
    device: str = "cpu"
    compiled: bool = True


class Ours:
    """The engine, in a thread of its own, as `softprompt serve --compile` runs it."""

    def __init__(self, side: Side, tokenizer: Any = None):
        keep_freed_memory()
        lm = frozen(side, tokenizer)
        if side.compiled:
            lm.compile()
        self.engine = Scheduler(lm, max_rows=128)
        self.hashes = [self.engine.table.add(folder) for folder in side.prompts]
        self.decoding = Decoding(max_tokens=side.max_tokens)
        self.engine.start()

    def answer(self, asks: Sequence[Ask]) -> list[list[int]]:
        """The new ids of each."""
        parts = [Part(ids=ask.ids, prompt=self.hashes[ask.prompt]) for ask in asks]
        requests = [Request(parts=(part,), decoding=self.decoding) for part in parts]
        tickets = [self.engine.submit(request) for request in requests]
        return [list(ticket.result().parts[0].ids) for ticket in tickets]


class Peft:
    """`set_adapter`, then `generate`, as PEFT's guides have it."""

    def __init__(self, side: Side):
        from peft import PeftModel

        self.side = side
        base, self.eos, self.pad = peft_base(side)
        self.is_encoder_decoder = base.config.is_encoder_decoder
        first, *others = side.prompts
        self.model: Any = PeftModel.from_pretrained(base, first, adapter_name="0")
        for i, folder in enumerate(others, 1):
            self.model.load_adapter(folder, adapter_name=str(i))
        self.model.to(getattr(torch, side.dtype)).eval()

    def answer(self, asks: Sequence[Ask]) -> list[list[int]]:
        """The new ids of each."""
        found: dict[int, list[int]] = {}
        for places in self._batches(asks):
            self.model.set_adapter(str(asks[places[0]].prompt))
            found |= dict(zip(places, self._generate([asks[i].ids for i in places]), strict=True))
        return [found[i] for i in range(len(asks))]

    def _batches(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        if self.side.name == "switching":
            yield from ([i] for i in range(len(asks)))
            return
        for prompt in sorted({ask.prompt for ask in asks}):
            # Rows of like length together, so that the least is padded.
            own = sorted((i for i, ask in enumerate(asks) if ask.prompt == prompt), key=lambda i: len(asks[i].ids))
            yield from (own[first : first + MAX_BATCH] for first in range(0, len(own), MAX_BATCH))

    @torch.no_grad()
    def _generate(self, rows: Sequence[tuple[int, ...]]) -> list[list[int]]:
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, own in enumerate(rows):
            at = slice(0, len(own)) if self.is_encoder_decoder else slice(width - len(own), width)
            ids[row, at], mask[row, at] = torch.tensor(own), 1
        ids, mask = ids.to(self.side.device), mask.to(self.side.device)
        given = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": self.side.max_tokens, "do_sample": False}
        made = self.model.generate(**given, pad_token_id=self.pad, eos_token_id=self.eos)
        made = made[:, 1:] if self.is_encoder_decoder else made[:, width:]
        return [_until(row, self.eos) for row in made.tolist()]


def _until(ids: list[int], eos: int) -> list[int]:
    return ids[: ids.index(eos)] if eos in ids else ids


def frozen(side: Side, tokenizer: Any = None) -> Any:
    """The model for our engine. tokenizer: unless it is the source's."""
    from softprompt.models import FrozenLM
    from softprompt.models.loading import load

    if tokenizer is None and side.model not in SHAPES:
        return load(side.source, dtype=side.dtype)
    return FrozenLM(hf_model(_model_side(side)), tokenizer or t5_tokenizer(side.source), name=side.model)


def peft_base(side: Side) -> tuple[Any, int, int]:
    """The model for PEFT, its end of sequence and its padding."""
    if side.model != SMOLLM2:  # a shape, of any kind
        return hf_model(_model_side(side)), 1, 0
    from softprompt.models.loading import read_checkpoint

    model, tokenizer, _ = read_checkpoint(side.source)
    return model.to(getattr(torch, side.dtype)), tokenizer.eos_token_id, tokenizer.pad_token_id


def _model_side(side: Side) -> ModelSide:
    named = {"model": side.model, "source": side.source, "dtype": side.dtype, "device": side.device}
    return ModelSide(name="ours", prompt_length=0, **named)


def make_prompts(lm: Any, folder: Path, count: int, length: int, seed: int = 0) -> tuple[str, ...]:
    """Prompts of rows drawn from the model's frequent tokens, saved as folders."""
    table, chooser = lm.embeddings.float(), torch.Generator().manual_seed(seed)
    folders = []
    for i in range(count):
        rows = table[torch.randperm(min(5_000, len(table)), generator=chooser)[:length]]
        card = Card(
            model_name=lm.name,
            model_fingerprint=lm.fingerprint,
            is_encoder_decoder=lm.is_encoder_decoder,
            width=lm.width,
        )
        save_prompt(SoftPrompt(rows.clone(), card), folder / f"{i:04}")
        folders.append(str(folder / f"{i:04}"))
    return tuple(folders)


def pool_of(data: Path, form: Any, tokenizer: Any, per_task: int = 200) -> list[tuple[int, ...]]:
    """Inputs of several tasks as ids."""
    pool = []
    for name in TASKS:
        task = get_task(name)
        examples = read_examples(task, "dev", data)[:per_task]
        pool += [tuple(encode_inputs(example.inputs, form, tokenizer).ids) for example in examples]
    return pool


def draw(pool: Sequence[tuple[int, ...]], num_prompts: int, count: int, seed: int) -> list[Ask]:
    """Requests, uniformly over prompts and inputs."""
    chooser = random.Random(seed)
    return [Ask(chooser.randrange(num_prompts), chooser.choice(pool)) for _ in range(count)]


class Worker(processes.Worker):
    """A side in a process of its own."""

    def __init__(self, side: Side, threads: int):
        super().__init__(_serve, side, threads)
        self.wait_until_ready()

    def answer(self, asks: Sequence[Ask]) -> tuple[float, list[list[int]]]:
        """Seconds, and the new ids of each request."""
        return self.ask("answer", list(asks))


def _serve(side: Side) -> processes.Respond:
    computes = Ours(side) if side.name == "ours" else Peft(side)

    def respond(what: str, asks: Sequence[Ask]) -> tuple[float, list[list[int]]]:
        assert what == "answer"
        started = time.perf_counter()
        answers = computes.answer(asks)
        return time.perf_counter() - started, answers

    return respond
