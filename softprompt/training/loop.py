"""One loop that trains k prompts at once over one frozen model, or the weights of another method.

Every member has its own task, data order, batch, values, optimizer state, best step and early stop; a member that
stops leaves the batch. Only the gradients of what is trained exist. Shapes: k members, p prompt tokens, d width, b
rows, n numbers that a method of `softprompt.training.methods` trains.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.answering import MAX_TOKENS, OUT_OF_MEMORY, is_out_of_memory, judge, predict
from softprompt.base.files import CHECKPOINT, write_tensors
from softprompt.base.watch import Progress
from softprompt.models import FrozenLM, Row, TextFormat
from softprompt.tasks import Example, Task
from softprompt.training.methods import Method, PromptTuning
from softprompt.training.optimizers import Adafactor, Optimizer
from softprompt.training.order import order_of_step

# Ours: a member has diverged when this many steps in a row have a loss above this many times both its first step's
# and that of guessing each token from the whole vocabulary. One bad step is no reason, nor is a bad start.
DIVERGED_STEPS = 20
DIVERGED_TIMES = 2.0

Observer = Callable[[int, Tensor], dict[str, Any]]
"""observe(member, its values), at an evaluation: what is written into its history, and into the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a member is trained."""

    preset: str = "custom"
    """The preset these numbers came from."""
    steps: int = 30_000
    """Optimizer steps (paper, section 3)."""
    batch_size: int = 32
    """Examples a step, for each member (paper, section 3)."""
    optimizer: Optimizer = field(default_factory=Adafactor)
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
    """One prompt to train, or what another method trains."""

    name: str
    """With the seed, draws the dropout masks: the same alone as beside other members."""
    task: Task
    form: TextFormat
    config: TrainConfig
    seed: int
    """Draws the data order and the dropout masks."""
    values: Float[Tensor, "p d"] | Float[Tensor, " n"]
    """Where it starts: a prompt, or the weights of another method."""
    rows: list[Row]
    """What it trains on."""
    selection: list[Example] = field(default_factory=list)
    """What chooses its best step."""
    selection_rows: list[Row] = field(default_factory=list)
    folds: tuple[int, ...] = ()
    """Members of the same run whose mean score chooses its best step (cross-validation). They have its steps and
    evaluate_every, and leave with the last member they serve; one that fails counts 0 from there on."""
    run: str = ""
    """Which of the runs that train together it belongs to, for messages."""
    judging: dict[str, Any] = field(default_factory=dict)
    """How it is scored where its task does not say: the metric and group_by of a task of one's own, and what an
    observer scores. For a checkpoint to be of the same run."""

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.run}: {self.name}" if self.run else self.name


@dataclass
class Fitted:
    """A member after training."""

    values: Float[Tensor, "p d"] | Float[Tensor, " n"]
    """The values of the best step."""
    step: int = 0
    """The best step, counted from 1; 0 is the start."""
    score: float | None = None
    """Its score on the selection rows."""
    steps_run: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an evaluation: step, loss (mean over its examples since the last), score, seconds, and what the
    observer found."""
    stopped: str | None = None
    """Why the member left before the end."""


@dataclass
class _State:
    """What a run carries from step to step, and through a checkpoint."""

    values: list[Tensor]
    optimizer: list[dict[str, Tensor]]
    fitted: list[Fitted]
    alive: list[bool]
    since_best: list[int]
    loss_sums: list[float]
    loss_counts: list[int]
    first_losses: list[float | None]
    """Mean loss of an example in the first step."""
    bad_steps: list[int]
    """Steps in a row with the loss of a diverged prompt."""
    step: int = 0
    scored_at: int = 0
    """The step of the last evaluation."""
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    """What the last evaluation took."""
    max_tokens: int = 0


_PLAIN = [f.name for f in fields(_State) if f.name not in ("values", "optimizer", "fitted")]


def fit(
    lm: FrozenLM,
    members: Sequence[Member],
    *,
    method: Method | None = None,
    folder: Path | None = None,
    resume: bool = False,
    minutes: float | None = None,
    max_tokens: int | None = None,
    clock: Callable[[], float] = time.monotonic,
    on_step: Callable[[int, float, int], None] | None = None,
    on_score: Callable[[int, int, float, float | None], None] | None = None,
    on_message: Callable[[str], None] = lambda message: None,
    on_phase: Callable[[str, int], Progress] | None = None,
    observe: Observer | None = None,
    checkpoint_every_s: float = 60.0,
) -> list[Fitted]:
    """Train all members together and return each at its best step.

    method: what is trained over `lm` (prompts, unless given); one that changes the model takes one member.
    folder: where the checkpoint is kept (None: nowhere). minutes: bound on training and selection together,
    counted across resumes. on_step(step, mean loss, tokens) after each step; on_score(step, member, loss, score)
    after each evaluation; on_message for a member that stops or a checkpoint that cannot be written; on_phase(name,
    rows) when scoring begins gives what is told of finished rows. observe(member, its values) at each of its
    evaluations: what it returns goes into the member's history. Raises ValueError for a checkpoint that is damaged or
    of another run, KeyboardInterrupt after writing one.
    """
    run = _Run(method or PromptTuning(lm), members, max_tokens, on_message)
    keeper = _Keeper(folder / CHECKPOINT if folder else None, run, clock, checkpoint_every_s)
    if resume and keeper.is_there():
        state = keeper.read()
    else:
        keeper.forget()
        state = run.start()
    started = clock() - state.seconds
    try:
        while True:
            state.seconds = clock() - started
            left = math.inf if minutes is None else minutes * 60 - state.seconds - state.evaluation_seconds
            due = run.due(state, at_the_end=left <= 0)
            if due:
                run.evaluate(state, due, on_score, on_phase, observe)
                state.evaluation_seconds = clock() - started - state.seconds
                state.seconds = clock() - started
            keeper.write(state, now=bool(due))
            if left <= 0 or not any(state.alive):
                return state.fitted
            loss, tokens = run.step(state)
            if on_step:
                on_step(state.step, loss, tokens)
    except KeyboardInterrupt:
        state.seconds = clock() - started
        keeper.write(state, now=True)
        raise


class _Run:
    """What does not change during a run."""

    def __init__(
        self, method: Method, members: Sequence[Member], max_tokens: int | None, on_message: Callable[[str], None]
    ):
        if not members:
            raise ValueError(f"no {method.noun} to train; give at least one member")
        if method.is_alone and len(members) > 1:
            raise ValueError(f"{method.name} changes the model, so it trains one member at a time, not {len(members)}")
        for member in members:
            if not member.rows:
                raise ValueError(f"{member.title} has no training examples")
        self.method, self.members, self.on_message = method, list(members), on_message
        self.lm = lm = method.lm
        self.max_tokens = max_tokens or MAX_TOKENS[lm.device.type]
        self.threads = torch.get_num_threads()
        self.served = {f: [i for i, m in enumerate(members) if f in m.folds] for m in members for f in m.folds}
        lengths = [sum(len(row.target) for row in member.rows) / len(member.rows) for member in members]
        self.guessing = [math.log(lm.config.vocab_size) * length for length in lengths]
        for fold, served in self.served.items():
            for i in served:
                assert _pace(members[fold]) == _pace(members[i]), "folds go at the pace of the member they serve"

    def start(self) -> _State:
        values = [member.values.detach().clone().float() for member in self.members]
        return _State(
            values=values,
            optimizer=[m.config.optimizer.init(own) for m, own in zip(self.members, values, strict=True)],
            fitted=[Fitted(own.clone()) for own in values],
            alive=[True] * len(values),
            since_best=[0] * len(values),
            loss_sums=[0.0] * len(values),
            loss_counts=[0] * len(values),
            first_losses=[None] * len(values),
            bad_steps=[0] * len(values),
            max_tokens=self.max_tokens,
        )

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        distinct = {id(rows): rows for m in self.members for rows in (m.rows, m.selection_rows)}
        digests = {place: _digest(rows) for place, rows in distinct.items()}

        def of(member: Member) -> dict[str, Any]:
            return {
                "name": member.name,
                "task": {name: getattr(member.task, name) for name in ("name", "version", "labels", "template")},
                "judging": member.judging,
                "text": member.form.to_json(),
                "seed": member.seed,
                "config": asdict(member.config),
                "starting values": hashlib.sha256(member.values.detach().float().cpu().numpy().tobytes()).hexdigest(),
                "training rows": digests[id(member.rows)],
                "selection rows": digests[id(member.selection_rows)],
                "folds": list(member.folds),
            }

        return {
            "method": self.method.name,
            "fingerprint": self.lm.fingerprint,
            "dtype": str(self.lm.dtype),
            "quantization": self.lm.quantization,
            "compiled": self.lm.is_compiled,
            "activation checkpoints": self.lm.is_checkpointed,
            "members": [of(member) for member in self.members],
        }

    def step(self, state: _State) -> tuple[float, int]:
        """One optimizer step of every member still alive; the mean loss of an example, and tokens computed."""
        active = [i for i, alive in enumerate(state.alive) if alive]
        computed = 0
        results: dict[int, tuple[Tensor, float]] = {}
        for group in self._groups(active):
            grads, sums, tokens = self._gradients_that_fit(state, group)
            results |= {i: (grad, loss) for i, grad, loss in zip(group, grads, sums, strict=True)}
            computed += tokens
        with uninterrupted():
            for i, (grad, loss) in results.items():
                self._update(state, i, grad, loss)
            state.step += 1
            for i in active:
                if state.alive[i]:
                    state.fitted[i].steps_run = state.step
                    state.alive[i] = state.step < self.members[i].config.steps
            self._release_folds(state)
        losses = [loss / self.members[i].config.batch_size for i, (_, loss) in results.items() if math.isfinite(loss)]
        return sum(losses) / len(losses) if losses else math.nan, computed

    def _groups(self, active: Sequence[int]) -> list[list[int]]:
        """Members that can share micro-batches: those with the same dropout and z-loss."""
        groups: dict[tuple[float, float], list[int]] = {}
        for i in active:
            config = self.members[i].config
            groups.setdefault((config.dropout, config.z_loss), []).append(i)
        return list(groups.values())

    def _release_folds(self, state: _State) -> None:
        """Stop the folds that serve no member any more."""
        for fold, served in self.served.items():
            state.alive[fold] &= any(state.alive[i] for i in served)

    def _batch(self, group: Sequence[int], step: int) -> tuple[list[Row], list[int], list[int]]:
        rows, worn, seeds = [], [], []
        for place, i in enumerate(group):
            member = self.members[i]
            for taken in order_of_step(len(member.rows), member.config.batch_size, step, member.seed):
                row = member.rows[taken]
                rows.append(row)
                worn.append(place)
                seeds.append(_mask_seed(member.seed, member.name, step, row.index))
        return rows, worn, seeds

    def _gradients_that_fit(self, state: _State, group: Sequence[int]) -> tuple[list[Tensor], list[float], int]:
        """The group's gradients, in micro-batches half the size whenever memory runs out."""
        rows, worn, seeds = self._batch(group, state.step)
        config = self.members[group[0]].config
        while True:
            try:
                return self.method.gradients(
                    [state.values[i] for i in group],
                    rows,
                    worn,
                    max_tokens=state.max_tokens,
                    dropout=config.dropout,
                    seeds=seeds,
                    z_loss=config.z_loss,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if state.max_tokens <= 64:
                raise ValueError(OUT_OF_MEMORY)
            state.max_tokens //= 2
            self.on_message(f"out of memory at step {state.step + 1}; micro-batches now {state.max_tokens} tokens")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _update(self, state: _State, i: int, grad: Tensor, loss: float) -> None:
        member = self.members[i]
        if not math.isfinite(loss) or not bool(grad.isfinite().all()):
            what = "gradient" if math.isfinite(loss) else "loss"
            self._stop(state, i, f"the {what} at step {state.step + 1} is no longer a number")
            return
        config = member.config
        config.optimizer.update(
            state.values[i], grad.to(state.values[i].device), state.optimizer[i], total_steps=config.steps
        )
        if not bool(state.values[i].isfinite().all()):
            self._stop(state, i, f"the {self.method.noun} of step {state.step + 1} cannot be held in float32")
            return
        state.loss_sums[i] += loss
        state.loss_counts[i] += config.batch_size
        if self._has_diverged(state, i, loss / config.batch_size):
            mean = loss / config.batch_size
            self._stop(state, i, f"the {self.method.noun} diverged at step {state.step + 1}, loss {mean:.3g}")

    def _has_diverged(self, state: _State, i: int, loss: float) -> bool:
        first = state.first_losses[i]
        if first is None:
            first = state.first_losses[i] = loss
        limit = DIVERGED_TIMES * max(first, self.guessing[i])
        state.bad_steps[i] = state.bad_steps[i] + 1 if loss > limit else 0
        return state.bad_steps[i] >= DIVERGED_STEPS

    def _stop(self, state: _State, i: int, why: str) -> None:
        state.alive[i] = False
        state.fitted[i].stopped = why
        best = state.fitted[i].step
        kept = f"its best {self.method.noun} (step {best}) is kept" if best else "it had no score yet"
        self.on_message(f"{self.members[i].title} stopped: {why}; {kept}; try a lower --learning-rate")

    def due(self, state: _State, *, at_the_end: bool) -> list[int]:
        """The members to evaluate now: those at a multiple of their evaluate_every, their last step, or the run's."""
        if state.scored_at == state.step:
            return []
        current = [i for i in range(len(self.members)) if state.fitted[i].steps_run == state.step]
        paces = {i: _pace(self.members[i]) for i in current}
        return [i for i in current if at_the_end or state.step % paces[i][1] == 0 or state.step == paces[i][0]]

    def evaluate(
        self,
        state: _State,
        due: Sequence[int],
        on_score: Callable[[int, int, float, float | None], None] | None,
        on_phase: Callable[[str, int], Progress] | None,
        observe: Observer | None,
    ) -> None:
        """Score members, keep their best prompts, stop those out of patience."""
        scores = self._scores(state, due, on_phase)
        observed = {i: observe(i, state.values[i]) for i in due} if observe else {}
        losses = {i: state.loss_sums[i] / max(state.loss_counts[i], 1) for i in due}
        for i in due:
            if self.members[i].folds:
                scores[i] = sum(scores.get(f, 0.0) for f in self.members[i].folds) / len(self.members[i].folds)
        with uninterrupted():
            for i in due:
                entry = {"step": state.step, "loss": losses[i], "seconds": round(state.seconds, 2)}
                entry |= {"score": scores[i]} if i in scores else {}
                entry |= observed.get(i, {})
                state.fitted[i].history.append(entry)
                state.loss_sums[i], state.loss_counts[i] = 0.0, 0
                self._keep_best(state, i, scores.get(i))
            self._release_folds(state)
            state.scored_at = state.step
        for i in due:
            if on_score:
                on_score(state.step, i, losses[i], scores.get(i))

    def _scores(
        self, state: _State, current: Sequence[int], on_phase: Callable[[str, int], Progress] | None
    ) -> dict[int, float]:
        """The selection score of each member that has selection rows; members of one task share their batches."""
        scored = [i for i in current if self.members[i].selection]
        if not scored:
            return {}
        engine, prompts = self.method.engine([state.values[i] for i in scored], max_tokens=state.max_tokens)
        groups: dict[tuple[int, TextFormat, str], list[int]] = {}
        for place, i in enumerate(scored):
            member = self.members[i]
            groups.setdefault((id(member.task), member.form, member.config.scoring), []).append(place)
        scores = {}
        for places in groups.values():
            first = self.members[scored[places[0]]]
            pairs = [(p, e, r) for p in places for e, r in self._selected(self.members[scored[p]])]
            worn, examples, rows = zip(*pairs, strict=True)
            told = on_phase(f"score {first.task.name}, selection", len(rows)) if on_phase else None
            scoring = first.config.scoring
            of_rows = [prompts[place] for place in worn]
            answers = predict(engine, first.task, examples, rows, of_rows, first.form, scoring=scoring, progress=told)
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
            fitted.values, fitted.step, fitted.score = state.values[i].clone(), state.step, score
            state.since_best[i] = 0
            return
        state.since_best[i] += 1
        if config.patience and state.since_best[i] >= config.patience and i not in self.served:
            state.alive[i] = False
            fitted.stopped = f"no better score in {config.patience} evaluations"


class _Keeper:
    """Writes a run's checkpoint and reads it back; does nothing without a path.

    The whole state is one file, so that there is no moment between two files.
    """

    def __init__(self, path: Path | None, run: _Run, clock: Callable[[], float], every_s: float):
        self.path, self.run, self.clock, self.every_s = path, run, clock, every_s
        self.written_at = clock()

    def is_there(self) -> bool:
        return self.path is not None and self.path.exists()

    def forget(self) -> None:
        """Remove the checkpoint of an earlier run, so that no one goes on from it for this one."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def write(self, state: _State, *, now: bool) -> None:
        """Write a checkpoint now, or if the last is old. A disk that is full is told and training goes on."""
        if self.path is None or not (now or self.clock() - self.written_at > self.every_s):
            return
        try:
            write_tensors(self.path, _tensors(state), {"training": json.dumps(self._plain(state))})
        except OSError as error:
            why = error.strerror or str(error)
            self.run.on_message(f"no checkpoint at step {state.step}: {self.path} cannot be written ({why})")
        self.written_at = self.clock()

    def read(self) -> _State:
        """The state to go on from. ValueError for a file that is damaged or of another run."""
        assert self.path is not None
        try:
            with safe_open(self.path, "pt") as file:
                plain = json.loads(file.metadata()["training"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            saved = plain["identity"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.path} is no checkpoint of softprompt, or a damaged one ({error}); start again without --resume"
            ) from None
        _check_identity(self.path, saved, json.loads(json.dumps(self.run.identity)))
        threads = plain["threads"]
        if threads != self.run.threads:
            self.run.on_message(threads_kept(threads, self.run.threads))
        self.run.threads = threads
        torch.set_num_threads(threads)
        return _restored(plain, tensors)

    def _plain(self, state: _State) -> dict[str, Any]:
        fitted = [{f.name: getattr(kept, f.name) for f in fields(kept) if f.name != "values"} for kept in state.fitted]
        rest = {name: getattr(state, name) for name in _PLAIN}
        return {"identity": self.run.identity, "threads": self.run.threads, "fitted": fitted, **rest}


def threads_kept(began: int, now: int) -> str:
    """What is told where a run goes on with other processor threads than it is given."""
    return (
        f"going on with as many threads as this run began with, {began} and not {now}, so that sums round alike; "
        "start again without --resume for another number"
    )


def _tensors(state: _State) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for i, fitted in enumerate(state.fitted):
        tensors[f"{i}.values"], tensors[f"{i}.best"] = state.values[i], fitted.values
        tensors |= {f"{i}.optimizer.{name}": value for name, value in state.optimizer[i].items()}
    places: set[int] = set()
    for name, tensor in tensors.items():  # safetensors takes none that share memory, as a best one may with the last
        place = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if place in places else tensor.contiguous()
        places.add(place)
    return tensors


def _restored(plain: dict[str, Any], tensors: dict[str, Tensor]) -> _State:
    def optimizer(i: int) -> dict[str, Tensor]:
        start = f"{i}.optimizer."
        return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}

    members = range(len(plain["fitted"]))
    return _State(
        values=[tensors[f"{i}.values"] for i in members],
        optimizer=[optimizer(i) for i in members],
        fitted=[Fitted(**kept, values=tensors[f"{i}.best"]) for i, kept in enumerate(plain["fitted"])],
        **{name: plain[name] for name in _PLAIN},
    )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold a Ctrl-C back until the block is done, so that no state is left half changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
    if held:
        signal.raise_signal(signal.SIGINT)


def _check_identity(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """ValueError that names the first thing in which a checkpoint and a run differ."""
    for name, was, now in _differences(saved, wanted, ""):
        raise ValueError(
            f"{path} is of another run: {name} was {was!r}, and is {now!r}; give the same settings, or start again "
            "without --resume"
        )


def _differences(saved: Any, wanted: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for key in wanted | saved:  # in the order of the identity: causes before what follows from them
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


def _pace(member: Member) -> tuple[int, int]:
    return member.config.steps, member.config.evaluate_every


def _digest(rows: Sequence[Row]) -> str:
    parts = [part for row in rows for part in (row.ids, row.target)]
    ids = np.fromiter(itertools.chain(map(len, parts), *parts), np.int32)
    return hashlib.sha256(ids.tobytes()).hexdigest()
