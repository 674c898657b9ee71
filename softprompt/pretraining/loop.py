"""Training all weights of a T5 on plain text: span corruption from scratch, and LM adaptation.

Every step takes the next texts of the corpus, makes inputs and targets of them, and moves all weights by the mean
gradient of a target token. Nothing is padded: the texts of a micro-batch have one length. Under `torchrun` every
process takes its share of a step's micro-batches and gradients are summed; the result is that of one process but for
rounding. Shapes: b texts, n ids of a text, t input tokens, l target tokens.
"""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from softprompt.base.curve import CURVE, Curve
from softprompt.base.files import CHECKPOINT, held, refusals, whole_files
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE, World
from softprompt.models import Tokenizer, quiet, scales_outputs
from softprompt.pretraining.corpus import TokenStream
from softprompt.pretraining.objectives import draw_split, prefix_lm, span_corruption, span_lengths
from softprompt.pretraining.settings import PretrainConfig
from softprompt.pretraining.vocabulary import check_sentinels
from softprompt.training import rate_multiplier, read_checkpoint, uninterrupted, write_checkpoint

STEPS = "steps"  # the folder of the models that --keep names
LEAST_SCALE = 1e-3  # epsilon2 of Adafactor (Shazeer and Stern 2018): what a weight of zeros counts as
HELDOUT_SEED = 0  # held-out texts are always corrupted alike, so that losses compare


@dataclass(frozen=True)
class Objective:
    """How texts of the corpus become inputs and targets."""

    text_length: int
    make: Callable[[Int[np.ndarray, "b n"], np.random.Generator], tuple[np.ndarray, np.ndarray]]


def objective_of(config: PretrainConfig, tokenizer: Tokenizer, name: str) -> Objective:
    """The objective of a run. ValueError for a vocabulary without sentinels, where they are needed."""
    eos, length = tokenizer.eos_id, config.input_length
    shortest = 1 if config.target_length is None else length - config.target_length

    def continued(texts: Int[np.ndarray, "b n"], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return prefix_lm(texts[:, :length], draw_split(length, rng, shortest), eos)

    if config.objective == "prefix-lm":
        return Objective(length, continued)
    first = check_sentinels(tokenizer, name)
    lengths = span_lengths(length, noise_density=config.noise_density, mean_span_length=config.mean_span_length)

    def corrupted(texts: Int[np.ndarray, "b n"], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        if config.prefix_share and rng.random() < config.prefix_share:
            return continued(texts, rng)
        return span_corruption(texts, lengths, first, eos, rng)

    return Objective(lengths.text, corrupted)


@dataclass(frozen=True)
class Machine:
    """What a run computes with; a checkpoint is resumed with the same."""

    compile: bool = False
    bfloat16: bool = False
    """Products in bfloat16; weights, gradients and the optimizer stay float32."""
    world: World = ALONE
    """The processes that train together."""


def check_processes(size: int, config: PretrainConfig) -> None:
    """ValueError for more processes than a step has micro-batches."""
    batches = config.batch_size // config.micro_batch_size
    if size > batches:
        raise ValueError(
            f"{size} processes, but a step has {batches} micro-batches (batch_size {config.batch_size}, "
            f"micro_batch_size {config.micro_batch_size}); start at most {batches}, or give a smaller "
            "--micro-batch-size"
        )


@dataclass
class _State:
    """What a run carries from step to step, besides weights and optimizer."""

    step: int = 0
    tokens: int = 0
    """Input and target tokens so far."""
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_steps: int = 0
    curve: list[dict[str, int | float]] = field(default_factory=list)


def pretrain(
    model: Any,
    tokenizer: Tokenizer,
    stream: TokenStream,
    heldout: TokenStream,
    config: PretrainConfig,
    *,
    folder: Path,
    name: str,
    resume: bool = False,
    machine: Machine | None = None,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
    checkpoint_every_s: float = 300.0,
) -> list[dict[str, int | float]]:
    """Train all weights of `model` in place, and return the curve: step, tokens, loss, heldout, seconds.

    folder: gets the checkpoint with the curve, the models of `config.keep`, and at last the model, in bfloat16. A run
    that goes on from no checkpoint removes an earlier run's checkpoint and kept models; its model stays to the end.
    name: what messages call the model. Raises ValueError for a corpus too short, a checkpoint of another run, a folder
    that another process trains into, or a loss or gradient that is not finite (the last good checkpoint stays). OSError
    where the first checkpoint cannot be written, or, at the end, where a model could not, KeyboardInterrupt after
    writing a checkpoint.
    """
    run = Pretraining(model, tokenizer, stream, heldout, config, folder, name, machine or Machine(), watch or Watch())
    with held(folder) if run.machine.world.is_first else nullcontext():
        run.begin(resume)
        started = clock() - run.state.seconds
        written = clock()
        try:
            run.evaluate_if_due()  # as a Ctrl-C may have kept one from being made
            run.keep()
            while run.state.step < config.steps:
                run.train_step()
                run.state.seconds = clock() - started
                run.evaluate_if_due()
                run.state.seconds = clock() - started
                run.keep()
                if clock() - written > checkpoint_every_s:
                    run.write()
                    written = clock()
        except KeyboardInterrupt:
            run.write()
            raise
        run.write()
        run.finish()
    return run.state.curve


@dataclass(eq=False)
class Pretraining:
    """One run: its weights, its optimizer, its state, and its files."""

    model: Any
    tokenizer: Tokenizer
    stream: TokenStream
    heldout: TokenStream
    config: PretrainConfig
    folder: Path
    name: str
    """What messages call the model."""
    machine: Machine
    watch: Watch

    def __post_init__(self) -> None:
        model, config = self.model, self.config
        model.float().eval().requires_grad_(True)  # eval: T5 1.1 was pre-trained without dropout
        self.objective = objective_of(config, self.tokenizer, self.name)
        self.heldout_texts = _fixed_texts(self.heldout, self.objective.text_length, config)
        self.stream.texts([0], self.objective.text_length, config.seed)  # refuses a corpus that is too short
        self.text = {"corpus": _digest(self.stream.ids), "heldout": _digest(self.heldout_texts)}
        self.parameters = list(dict.fromkeys(model.parameters()))
        rate, decay = config.learning_rate, config.weight_decay
        # PyTorch's Adafactor has T5's scaling by a weight's root mean square, and never more than 1/sqrt(step) of it.
        kind = torch.optim.Adafactor if config.optimizer == "adafactor" else ScaledAdamW
        self.optimizer: Any = kind(self.parameters, lr=rate, weight_decay=decay)
        self.scale = model.config.d_model**-0.5 if scales_outputs(model.config) else 1.0
        self.device = self.parameters[0].device
        self.state = _State()
        self.unkept: OSError | None = None
        self.checkpoint = self.folder / CHECKPOINT
        if self.machine.compile:
            for block in [*model.encoder.block, *model.decoder.block]:
                splits = config.objective == "prefix-lm" or config.prefix_share > 0
                block.forward = torch.compile(block.forward, dynamic=splits)
        self.token_losses = torch.compile(_token_losses, dynamic=None) if self.machine.compile else _token_losses

    def train_step(self) -> None:
        """One optimizer step on the next texts. ValueError, before it, for a loss or a gradient that is not finite."""
        config, state = self.config, self.state
        batches = list(self.batches(state.step))
        num_targets = sum(targets.size for _, targets in batches)
        total = torch.zeros((), device=self.device)
        for inputs, targets in self.machine.world.share(batches):
            nll, log_z = self.losses(inputs, targets)
            loss = (nll.sum() + config.z_loss * log_z.square().sum()) / num_targets
            loss.backward()
            total += nll.detach().sum() / num_targets
        if self.machine.world.size > 1:
            self._sum_over_processes(total)
        self._check_finite("loss", total)
        self._check_finite("gradient", torch.nn.utils.clip_grad_norm_(self.parameters, config.clip_norm))
        rate = config.learning_rate * rate_multiplier(config.schedule, state.step, config.warmup_steps, config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        tokens = sum(inputs.size + targets.size for inputs, targets in batches)
        with uninterrupted():
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
            state.step += 1
            state.tokens += tokens
            state.loss_sum += float(total)
            state.loss_steps += 1
        if self.machine.world.is_first:
            self.watch.step(state.step, float(total), tokens)

    def batches(self, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets of each micro-batch of a step, the same whoever computes them."""
        size, together = self.config.batch_size, self.config.micro_batch_size
        for first in range(step * size, (step + 1) * size, together):
            texts = self.stream.texts(range(first, first + together), self.objective.text_length, self.config.seed)
            yield self.objective.make(texts, np.random.default_rng([self.config.seed, first]))

    def losses(self, inputs: np.ndarray, targets: np.ndarray) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood and log Z of each target token [b*l], float32."""
        ids, wanted = torch.from_numpy(inputs).to(self.device), torch.from_numpy(targets).to(self.device)
        start = torch.full_like(wanted[:, :1], self.model.config.decoder_start_token_id)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.machine.bfloat16):
            encoded = self.model.encoder(input_ids=ids).last_hidden_state
            hidden = self.model.decoder(
                input_ids=torch.cat([start, wanted[:, :-1]], 1), encoder_hidden_states=encoded, use_cache=False
            ).last_hidden_state
            return self.token_losses(hidden.flatten(0, 1) * self.scale, self.model.lm_head.weight, wanted.flatten())

    def _sum_over_processes(self, total: Tensor) -> None:
        """Gradients and the loss."""
        gradients = [parameter.grad for parameter in self.parameters]
        flat = self.machine.world.total(torch.cat([gradient.flatten() for gradient in gradients] + [total[None]]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, flat[:-1].split(sizes), strict=True):
            gradient.copy_(part.view_as(gradient))
        total.copy_(flat[-1])

    def _check_finite(self, what: str, value: Tensor) -> None:
        if not math.isfinite(float(value)):
            raise ValueError(
                f"the {what} at step {self.state.step + 1} is not finite; the last checkpoint stays in {self.folder}; "
                "try a lower --learning-rate"
            )

    def evaluate_if_due(self) -> None:
        """Make the evaluation of this step, if it has one and it has not been made, and tell of it."""
        step, curve = self.state.step, self.state.curve
        is_time = step > 0 and (step % self.config.evaluate_every == 0 or step == self.config.steps)
        if is_time and (not curve or curve[-1]["step"] < step):
            self.evaluate()
        if self.machine.world.is_first and curve:
            self.curve.add(int(curve[-1]["step"]), curve[-1:])

    @torch.no_grad()
    def evaluate(self) -> None:
        """Held-out loss per target token, into the curve."""
        total, count = 0.0, 0
        for first in range(0, len(self.heldout_texts), self.config.micro_batch_size):
            texts = self.heldout_texts[first : first + self.config.micro_batch_size]
            nll, _ = self.losses(*self.objective.make(texts, np.random.default_rng([HELDOUT_SEED, first])))
            total, count = total + float(nll.cpu().double().sum()), count + len(nll)
        state = self.state
        loss = state.loss_sum / max(state.loss_steps, 1)
        entry = {"step": state.step, "tokens": state.tokens, "loss": loss, "heldout": total / count}
        state.curve.append({**entry, "seconds": round(state.seconds, 1)})
        state.loss_sum, state.loss_steps = 0.0, 0

    def begin(self, resume: bool) -> None:
        """Go on from the checkpoint, if that is wanted and there is one; or start, and remove an earlier run's models.

        OSError, in one line, where the first checkpoint cannot be written.
        """
        if resume and self.checkpoint.is_file():
            self.read()
        steps = self.machine.world.gathered(self.state.step)
        if len(set(steps)) > 1:
            raise ValueError(
                f"the processes would go on from steps {', '.join(map(str, steps))}, but {self.checkpoint} must be "
                "the same for all; copy the newest to every machine, or share the folder"
            )
        if not self.machine.world.is_first:
            return
        with refusals(self.checkpoint, "nothing was trained; free some space, or give another folder"):
            self.save()
        if self.state.step == 0:  # after it: beside an earlier run's checkpoint they would be missed after a kill
            for folder in (self.folder / STEPS).glob("*"):
                if folder.name.isdigit():
                    shutil.rmtree(folder)
        self.curve = Curve(self.folder / CURVE, self.state.step, self.watch)

    def keep(self) -> None:
        """Save the model if this step's is to be kept, and is not whole already. A full disk is told as in `write`."""
        if not self.machine.world.is_first or self.state.step not in self.config.keep:
            return
        folder = self.folder / STEPS / str(self.state.step)
        if (folder / "config.json").is_file():
            return
        try:
            save_model(self.model, self.tokenizer, folder, "the rest of the run is kept")
        except OSError as error:
            self.watch.message(f"no model of step {self.state.step}: {error}")
            self.unkept = error

    def finish(self) -> None:
        """The trained model, beside the checkpoint. OSError, in one line, if it or one to be kept cannot be written."""
        if not self.machine.world.is_first:
            return
        self.curve.end()
        left = "with room there, --resume goes on from the last checkpoint"
        save_model(self.model, self.tokenizer, self.folder, left)
        if self.unkept:
            raise self.unkept

    def write(self) -> None:
        """Write the checkpoint. A disk that is full is told, and training goes on."""
        if not self.machine.world.is_first:
            return
        try:
            self.save()
        except OSError as error:
            why = error.strerror or str(error)
            self.watch.message(
                f"no checkpoint at step {self.state.step}: {self.checkpoint} cannot be written ({why}); the last stays"
            )

    def save(self) -> None:
        """Write the checkpoint. Raises OSError where it cannot be written."""
        tensors = {f"weight.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value) for key, value in state.items()}
        write_checkpoint(self.checkpoint, self.identity, asdict(self.state), tensors, self.device)

    @torch.no_grad()
    def read(self) -> None:
        """Go on from the checkpoint. ValueError for one that is damaged or of another run."""
        saved, tensors = read_checkpoint(
            self.checkpoint,
            self.identity,
            device=self.device,
            of="pre-training",
            watch=self.watch,
        )
        self.state = _State(**saved)
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, number, *key = name.split(".", 2)
            if kind == "weight":
                self.parameters[int(number)].copy_(tensor)
            else:
                states.setdefault(int(number), {})[key[0]] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        shapes = [list(parameter.shape) for parameter in self.parameters]
        return {
            **{name: value for name, value in asdict(self.config).items() if name != "keep"},
            "weights": f"{len(shapes)} of {sum(math.prod(shape) for shape in shapes):,} numbers",
            "vocabulary": self.tokenizer.digest().hex()[:16],
            **self.text,
            "compiled": self.machine.compile,
            "bfloat16": self.machine.bfloat16,
            "processes": self.machine.world.size,  # sums of gradients are rounded otherwise
        }


def _token_losses(hidden: Tensor, weight: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight).float()
    log_z = logits.logsumexp(-1)
    return log_z - logits.gather(-1, wanted[:, None])[:, 0], log_z


def _fixed_texts(heldout: TokenStream, length: int, config: PretrainConfig) -> Int[np.ndarray, "b n"]:
    """The held-out texts: evenly spread over the files, in whole micro-batches, always the same."""
    count = min(config.num_heldout, len(heldout.ids) // length)
    count -= count % config.micro_batch_size
    if not count:
        raise ValueError(
            f"the held-out text has {len(heldout.ids):,} tokens, too few for {config.micro_batch_size} texts of "
            f"{length}; give more"
        )
    step = len(heldout.ids) // count
    return np.stack([heldout.ids[i * step : i * step + length].astype(np.int64) for i in range(count)])


def _digest(ids: Shaped[np.ndarray, "*n"]) -> str:
    """What a checkpoint remembers of ids: a tenth of a second for 73 million."""
    return f"{ids.size:,} tokens, sha256 {hashlib.sha256(ids.data).hexdigest()[:16]}"


class ScaledAdamW(torch.optim.AdamW):
    """AdamW whose rate is a share of each weight's root mean square, as Adafactor's is in T5 (nanoT5's AdamWScale).

    T5's query weights start at (d * d_kv)^-0.5, a hundredth of its embeddings: a rate that moves the embeddings
    overwrites the queries within a few steps, and the decoder never learns to read its encoder (docs/log.md,
    2026-11-25). `lr` is set anew before every step, as `train_step` does.
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float, weight_decay: float):
        # The second beta is that of most small language models: 0.999 forgets too slowly for a few thousand steps.
        groups = [{"params": [parameter]} for parameter in parameters]
        super().__init__(groups, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One update."""
        weights = [group["params"][0] for group in self.param_groups]
        norms = torch.stack([weight.norm() for weight in weights]).tolist()
        for group, weight, norm in zip(self.param_groups, weights, norms, strict=True):
            group["lr"] *= max(norm / math.sqrt(weight.numel()), LEAST_SCALE)
        super().step(closure)


def save_model(model: Any, tokenizer: Tokenizer, folder: Path, left: str = "the model is not there") -> None:
    """Write model (in bfloat16) and tokenizer as one folder that transformers loads, each file whole or not at all.

    Raises OSError, in one line that ends with what is left, where they cannot be written.
    """
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    # transformers 5 writes True for every T5; what reads the folder takes the output layer from it.
    rounded.config.tie_word_embeddings = model.lm_head.weight is model.shared.weight
    with refusals(folder, left), whole_files(folder, last="config.json") as staging, quiet():
        rounded.save_pretrained(staging)
        tokenizer.save(staging)
