"""One loop that trains k prompts at once over one frozen model.

Every member has its own task, data order, batch, prompt, optimizer state, best step and early stop; a member that
stops leaves the batch. Only the prompts' gradients exist. Shapes: k prompts, p prompt tokens, d width, b rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from softprompt.backbone import FrozenLM
from softprompt.data import Row, TextFormat, collate, micro_batches, order_of_step
from softprompt.evaluation import judge, predict
from softprompt.inference import MAX_TOKENS, Engine
from softprompt.optimizers import Adafactor, AdamW
from softprompt.prompt import prepend, stack
from softprompt.tasks import Example, Task

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a prompt is trained."""

    preset: str = "custom"
    """The preset these numbers came from."""
    steps: int = 30_000
    """Optimizer steps (paper, section 3)."""
    batch_size: int = 32
    """Examples a step, for each member (paper, section 3)."""
    optimizer: Adafactor | AdamW = field(default_factory=Adafactor)
    """The optimizer and its learning rate."""
    dropout: float = 0.0
    """Dropout in the frozen model, shared over positions; encoder-decoders only."""
    z_loss: float = 0.0
    """Weight of log² Z in the loss (1e-4 in the authors' t5_1_1_prompt.gin)."""
    evaluate_every: int = 1_000
    """Steps between scores on the selection rows (prompt_finetune.gin)."""
    patience: int | None = None
    """Scores without a better one before a member stops; None: never."""
    num_selection: int = 500
    """Selection rows scored, at most."""
    scoring: str = "generate"
    """How selection rows are answered: generate or rank."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "num_selection"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and below 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, but must be 1 or more")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One prompt to train."""

    name: str
    task: Task
    form: TextFormat
    config: TrainConfig
    seed: int
    """Draws the data order and the dropout masks."""
    prompt: Float[Tensor, "p d"]
    """Where it starts."""
    rows: list[Row]
    """What it trains on."""
    selection: list[Example] = field(default_factory=list)
    """What chooses its best step."""
    selection_rows: list[Row] = field(default_factory=list)
    folds: tuple[int, ...] = ()
    """Members of the same run whose mean score chooses its best step (cross-validation)."""


@dataclass
class Fitted:
    """A member after training."""

    prompt: Float[Tensor, "p d"]
    """The prompt of the best step."""
    step: int = 0
    """The best step, counted from 1; 0 is the start."""
    score: float | None = None
    """Its score on the selection rows."""
    steps_run: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """One entry an evaluation: step, loss (mean over its examples since the last), score, seconds."""
    stopped: str | None = None
    """Why the member left before the end."""


@dataclass
class _State:
    """What a run carries from step to step, and through a checkpoint."""

    prompts: list[Tensor]
    optimizer: list[dict[str, Tensor]]
    fitted: list[Fitted]
    alive: list[bool]
    since_best: list[int]
    loss_sums: list[float]
    loss_counts: list[int]
    step: int = 0
    seconds: float = 0.0
    max_tokens: int = 0


def fit(
    lm: FrozenLM,
    members: Sequence[Member],
    *,
    folder: Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    max_tokens: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_step: Callable[[int, float, int], None] | None = None,
    on_score: Callable[[int, int, float, float | None], None] | None = None,
    on_message: Callable[[str], None] = lambda message: None,
    checkpoint_every_s: float = 60.0,
) -> list[Fitted]:
    """Train all members together and return each at its best step.

    folder: where the checkpoint is kept (None: nowhere). minutes: bound on training and selection together,
    counted across resumes. on_step(step, mean loss, tokens) after each step; on_score(step, member, loss, score)
    after each evaluation; on_message for a member that stops. Raises ValueError for a checkpoint of another run,
    KeyboardInterrupt after writing one.
    """
    run = _Run(lm, members, max_tokens, on_message)
    path = folder / CHECKPOINT if folder else None
    state = run.start()
    if resume and path and path.exists():
        state = _read_checkpoint(path, run)
        torch.set_num_threads(run.threads)
    started, before, saved_at = clock(), state.seconds, clock()
    last_evaluation_s = 0.0
    try:
        while any(state.alive) and state.step < run.num_steps:
            loss, tokens = run.step(state)
            state.seconds = before + clock() - started
            out_of_time = minutes is not None and state.seconds + last_evaluation_s >= minutes * 60
            if on_step:
                on_step(state.step, loss, tokens)
            if run.is_due(state) or out_of_time:
                evaluation_started = clock()
                run.evaluate(state, on_score)
                last_evaluation_s = clock() - evaluation_started
                state.seconds = before + clock() - started
            if path and (run.was_scored(state) or clock() - saved_at > checkpoint_every_s):
                _write_checkpoint(path, run, state)
                saved_at = clock()
            if out_of_time:
                break
    except KeyboardInterrupt:
        if path:
            _write_checkpoint(path, run, state)
        raise
    return state.fitted


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
) -> tuple[list[Tensor], list[float], int]:
    """The gradient of each prompt, each member's summed loss over target tokens, and the tokens computed.

    The rows of all members are sorted by length and cut into micro-batches; the sums are those of the whole batch.
    In a decoder-only model each prompt runs once, and its rows read its keys and values; `run_once=False` puts
    the prompts in front of every row instead, which is the same but for rounding.
    """
    values, lengths = stack([prompt.detach() for prompt in prompts])
    values = values.to(lm.device).requires_grad_()
    lengths = lengths.to(lm.device)
    once = run_once and not lm.is_encoder_decoder and not dropout and not lm.is_checkpointed
    states = lm.run_prompts(values, lengths) if once else None
    leaves = states.leaves() if states else None
    in_front = 0 if once else int(lengths.max())
    sums = torch.zeros(len(prompts), device=lm.device)
    computed = int(lengths.sum()) if once else 0
    for places in micro_batches([row.num_tokens for row in rows], max_tokens, extra=in_front):
        batch = collate([rows[i] for i in places], [member[i] for i in places], lm.tokenizer.pad_id, lm.device)
        x, mask = lm.embed(batch.ids), batch.mask
        if not once:
            x, mask = prepend(values, lengths, batch.member, x, mask)
        own = [len(rows[i].ids) + int(lengths[member[i]]) for i in places]
        drawn = [seeds[i] for i in places] if seeds else []
        with lm.dropout(dropout, drawn, own, batch.targets.shape[1]) if dropout else contextlib.nullcontext():
            loss = lm.loss(
                x, mask, batch.targets, batch.targets_mask, states=leaves, member=batch.member, z_loss=z_loss
            )
            by_row = loss.sum(-1)
            by_row.sum().backward()
        sums.index_add_(0, batch.member, by_row.detach())
        computed += x.shape[0] * (x.shape[1] + batch.targets.shape[1])
    if states and leaves:
        states.backward(leaves)
    assert values.grad is not None
    grads = [values.grad[i, : len(prompt)].clone() for i, prompt in enumerate(prompts)]
    return grads, sums.tolist(), computed


class _Run:
    """What does not change during a run."""

    def __init__(
        self, lm: FrozenLM, members: Sequence[Member], max_tokens: int | None, on_message: Callable[[str], None]
    ):
        if not members:
            raise ValueError("no prompt to train; give at least one member")
        for member in members:
            if not member.rows:
                raise ValueError(f"{member.name} has no training examples")
        self.lm, self.members, self.on_message = lm, list(members), on_message
        self.num_steps = max(member.config.steps for member in members)
        self.max_tokens = max_tokens or MAX_TOKENS[lm.device.type]
        self.threads = torch.get_num_threads()
        self.serves_folds = {f for member in members for f in member.folds}
        self._scored_at = -1

    def start(self) -> _State:
        prompts = [member.prompt.detach().clone().float() for member in self.members]
        return _State(
            prompts=prompts,
            optimizer=[m.config.optimizer.init(p) for m, p in zip(self.members, prompts, strict=True)],
            fitted=[Fitted(prompt.clone()) for prompt in prompts],
            alive=[True] * len(prompts),
            since_best=[0] * len(prompts),
            loss_sums=[0.0] * len(prompts),
            loss_counts=[0] * len(prompts),
            max_tokens=self.max_tokens,
        )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""

        def of(member: Member) -> dict[str, Any]:
            rows = json.dumps([row.ids + row.target for row in member.rows])
            return {
                "name": member.name,
                "task": member.task.name,
                "seed": member.seed,
                "config": asdict(member.config),
                "start": hashlib.sha256(member.prompt.detach().float().numpy().tobytes()).hexdigest(),
                "rows": hashlib.sha256(rows.encode()).hexdigest(),
            }

        return {
            "fingerprint": self.lm.fingerprint,
            "dtype": str(self.lm.dtype),
            "compiled": self.lm.is_compiled,
            "members": [of(member) for member in self.members],
        }

    # One step ---------------------------------------------------------------------------------------------

    def step(self, state: _State) -> tuple[float, int]:
        """One optimizer step of every member still alive; the mean loss of an example, and tokens computed."""
        active = [i for i, alive in enumerate(state.alive) if alive]
        rows, member, seeds = self._batch(active, state.step)
        config = self.members[active[0]].config
        prompts = [state.prompts[i] for i in active]
        grads, sums, tokens = self._gradients_that_fit(state, prompts, rows, member, seeds, config)
        for place, i in enumerate(active):
            self._update(state, i, grads[place], sums[place])
        state.step += 1
        for i in active:
            if state.alive[i]:
                state.fitted[i].steps_run = state.step
                if state.step >= self.members[i].config.steps:
                    state.alive[i] = state.step < self.num_steps and i in self.serves_folds
        return sum(sums) / len(rows), tokens

    def _batch(self, active: Sequence[int], step: int) -> tuple[list[Row], list[int], list[int]]:
        rows, worn, seeds = [], [], []
        for place, i in enumerate(active):
            member = self.members[i]
            for taken in order_of_step(len(member.rows), member.config.batch_size, step, member.seed):
                row = member.rows[taken]
                rows.append(row)
                worn.append(place)
                if member.config.dropout:
                    seeds.append(_mask_seed(member.seed, member.name, step, row.index))
        return rows, worn, seeds

    def _gradients_that_fit(
        self,
        state: _State,
        prompts: Sequence[Tensor],
        rows: Sequence[Row],
        member: Sequence[int],
        seeds: Sequence[int],
        config: TrainConfig,
    ) -> tuple[list[Tensor], list[float], int]:
        """The gradients, in micro-batches half the size whenever memory runs out."""
        while True:
            try:
                return gradients(
                    self.lm,
                    prompts,
                    rows,
                    member,
                    max_tokens=state.max_tokens,
                    dropout=config.dropout,
                    seeds=seeds or None,
                    z_loss=config.z_loss,
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
            if state.max_tokens <= 64:
                raise ValueError(
                    "out of memory even with one row at a time; use --checkpoint-activations, a shorter "
                    "--max-input-length, fewer seeds at once or a smaller model"
                )
            state.max_tokens //= 2
            self.on_message(f"out of memory at step {state.step + 1}; micro-batches now {state.max_tokens} tokens")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _update(self, state: _State, i: int, grad: Tensor, loss: float) -> None:
        member = self.members[i]
        if not math.isfinite(loss) or not bool(grad.isfinite().all()):
            self._stop(state, i, f"loss {loss} at step {state.step + 1} is no longer a number")
            return
        config = member.config
        config.optimizer.update(
            state.prompts[i], grad.to(state.prompts[i].device), state.optimizer[i], total_steps=config.steps
        )
        if not bool(state.prompts[i].isfinite().all()):
            self._stop(state, i, f"the prompt at step {state.step + 1} is no longer finite")
            return
        state.loss_sums[i] += loss
        state.loss_counts[i] += config.batch_size

    def _stop(self, state: _State, i: int, why: str) -> None:
        state.alive[i] = False
        state.fitted[i].stopped = why
        kept = f"its best prompt (step {state.fitted[i].step}) is kept"
        self.on_message(f"{self.members[i].name} stopped: {why}; {kept}; try a lower --learning-rate")

    # Selection --------------------------------------------------------------------------------------------

    def is_due(self, state: _State) -> bool:
        return state.step >= self.num_steps or any(
            state.step % self.members[i].config.evaluate_every == 0 or state.step >= self.members[i].config.steps
            for i in range(len(self.members))
            if state.fitted[i].steps_run == state.step
        )

    def was_scored(self, state: _State) -> bool:
        return self._scored_at == state.step

    def evaluate(self, state: _State, on_score: Callable[[int, int, float, float | None], None] | None) -> None:
        """Score every member that took the last step, keep the best prompts, stop those out of patience."""
        self._scored_at = state.step
        current = [i for i in range(len(self.members)) if state.fitted[i].steps_run == state.step]
        scores = self._scores(state, current)
        for i in current:
            member, fitted = self.members[i], state.fitted[i]
            score = scores.get(i)
            if member.folds:
                of_folds = [scores[f] for f in member.folds if f in scores]
                score = sum(of_folds) / len(of_folds) if of_folds else None
            loss = state.loss_sums[i] / max(state.loss_counts[i], 1)
            entry = {"step": state.step, "loss": loss, "seconds": round(state.seconds, 2)}
            fitted.history.append(entry if score is None else {**entry, "score": score})
            state.loss_sums[i], state.loss_counts[i] = 0.0, 0
            self._keep_best(state, i, score)
            if on_score:
                on_score(state.step, i, loss, score)

    def _scores(self, state: _State, current: Sequence[int]) -> dict[int, float]:
        """The selection score of each member that has selection rows; members of one task share their batches."""
        scored = [i for i in current if self.members[i].selection]
        if not scored:
            return {}
        engine = Engine(self.lm, [state.prompts[i] for i in scored])
        groups: dict[tuple[str, str, str], list[int]] = {}
        for place, i in enumerate(scored):
            member = self.members[i]
            key = (member.task.name, repr(member.form), member.config.scoring)
            groups.setdefault(key, []).append(place)
        scores = {}
        for places in groups.values():
            first = self.members[scored[places[0]]]
            pairs = [(p, e, r) for p in places for e, r in self._selected(self.members[scored[p]])]
            worn, examples, rows = zip(*pairs, strict=True)
            answers = predict(engine, first.task, examples, rows, worn, first.form, scoring=first.config.scoring)
            for p in places:
                own = [(e, a) for w, e, a in zip(worn, examples, answers, strict=True) if w == p]
                judged = judge(first.task, [e for e, _ in own], [a for _, a in own])
                scores[scored[p]] = judged.headline
        return scores

    def _selected(self, member: Member) -> list[tuple[Example, Row]]:
        pairs = list(zip(member.selection, member.selection_rows, strict=True))
        return pairs[: member.config.num_selection]

    def _keep_best(self, state: _State, i: int, score: float | None) -> None:
        fitted, config = state.fitted[i], self.members[i].config
        if score is None or fitted.score is None or score > fitted.score:
            fitted.prompt, fitted.step, fitted.score = state.prompts[i].clone(), state.step, score
            state.since_best[i] = 0
            return
        state.since_best[i] += 1
        if config.patience and state.since_best[i] >= config.patience and i not in self.serves_folds:
            state.alive[i] = False
            fitted.stopped = f"no better score in {config.patience} evaluations"


# Checkpoints ----------------------------------------------------------------------------------------------------


def _write_checkpoint(path: Path, run: _Run, state: _State) -> None:
    """The whole state as one file, so that there is no moment between two files."""
    tensors: dict[str, Tensor] = {}
    for i, fitted in enumerate(state.fitted):
        tensors[f"{i}.prompt"] = state.prompts[i].contiguous()
        tensors[f"{i}.best"] = fitted.prompt.contiguous()
        for name, value in state.optimizer[i].items():
            tensors[f"{i}.optimizer.{name}"] = value.contiguous()
    plain = {
        "identity": run.identity(),
        "threads": run.threads,
        "step": state.step,
        "seconds": state.seconds,
        "max_tokens": state.max_tokens,
        "alive": state.alive,
        "since_best": state.since_best,
        "loss_sums": state.loss_sums,
        "loss_counts": state.loss_counts,
        "fitted": [{**vars(replace(fitted, prompt=torch.empty(0))), "prompt": None} for fitted in state.fitted],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, temporary, metadata={"training": json.dumps(plain)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_checkpoint(path: Path, run: _Run) -> _State:
    try:
        with safe_open(path, "pt") as file:
            plain = json.loads(file.metadata()["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no checkpoint of softprompt ({error}); start again without --resume") from None
    _check_identity(path, plain["identity"], json.loads(json.dumps(run.identity())))
    run.threads = plain["threads"]
    state = run.start()
    for i, kept in enumerate(plain["fitted"]):
        state.prompts[i] = tensors[f"{i}.prompt"]
        state.optimizer[i] = {
            name.split(".", 2)[2]: value for name, value in tensors.items() if name.startswith(f"{i}.optimizer.")
        }
        state.fitted[i] = Fitted(**{**kept, "prompt": tensors[f"{i}.best"]})
    for name in ("step", "seconds", "max_tokens", "alive", "since_best", "loss_sums", "loss_counts"):
        setattr(state, name, plain[name])
    return state


def _check_identity(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError that names the first thing in which a checkpoint and a run differ."""
    for name, was, now in _differences(saved, wanted, ""):
        raise ValueError(
            f"{path} is of another run: {name} was {was}, and is {now}; give the same settings, or start again "
            "without --resume"
        )


def _differences(saved: Any, wanted: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in sorted(set(saved) | set(wanted)):
            yield from _differences(saved.get(key), wanted.get(key), f"{name}.{key}".lstrip("."))
    elif isinstance(saved, list) and isinstance(wanted, list) and len(saved) == len(wanted):
        for place, (was, now) in enumerate(zip(saved, wanted, strict=True)):
            yield from _differences(was, now, f"{name}[{place}]")
    elif saved != wanted:
        yield name, saved, wanted


def _mask_seed(seed: int, name: str, step: int, index: int) -> int:
    """The seed of a row's dropout masks: the same whatever it trains beside."""
    digest = hashlib.sha256(f"{seed} {name} {step} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
