"""One loop that trains k prompts at once over one frozen model, or the weights of another method.

Every member has its own task, data order, batch, values, optimizer state, best step and early stop; a member that
stops leaves the batch. Only the gradients of what is trained exist. Of several processes each computes the gradients of
its share of every member's rows; their sum is the same everywhere, and so is all that follows from it. Shapes: k
members, p prompt tokens, d width, b rows, n numbers that a method of `softprompt.training.methods` trains.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.answering import is_out_of_memory, judge, lacking_memory, most_tokens, predict
from softprompt.base.curve import CURVE, Curve
from softprompt.base.files import CHECKPOINT, held, refusals
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE, World
from softprompt.models import FrozenLM, Row, TextFormat
from softprompt.tasks import Example, Task, in_whole_groups
from softprompt.training.checkpoint import read_checkpoint, uninterrupted, write_checkpoint
from softprompt.training.methods import Gradients, Method, PromptTuning
from softprompt.training.optimizers import Adafactor, Optimizer
from softprompt.training.order import order_of_step

# Ours: a member has diverged when this many steps in a row have a loss above this many times both its first step's
# and that of guessing each token from the whole vocabulary. One bad step is no reason, nor is a bad start.
DIVERGED_STEPS = 20
DIVERGED_TIMES = 2.0

FIXED_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch.use_deterministic_algorithms asks for

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
    values: Float[Tensor, "p d"] | Float[Tensor, "p layers h e"] | Float[Tensor, " n"]
    """Where it starts: a prompt of either kind, or the weights of another method."""
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

    @cached_property
    def num_scored(self) -> int:
        """How many of its selection rows are scored: none that belong together are parted."""
        return in_whole_groups(self.selection, self.config.num_selection)

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self.run}: {self.name}" if self.run else self.name


@dataclass
class Fitted:
    """A member after training."""

    values: Float[Tensor, "p d"] | Float[Tensor, "p layers h e"] | Float[Tensor, " n"]
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
    """A member, and what it carries from step to step: the counters through a checkpoint, too."""

    number: int
    """Its place among the members."""
    member: Member
    values: Tensor
    optimizer: dict[str, Tensor]
    fitted: Fitted
    alive: bool = True
    since_best: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    first_loss: float | None = None
    """Mean loss of an example in the first step."""
    loss: float | None = None
    """Mean loss of an example in the last step."""
    bad_steps: int = 0
    """Steps in a row with the loss of a diverged prompt."""
    shuffles: dict[int, np.ndarray] = field(default_factory=dict)
    """The order of its rows in the epochs of this step."""


COUNTERS = ("alive", "since_best", "loss_sum", "loss_count", "first_loss", "loss", "bad_steps")


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
    watch: Watch | None = None,
    observe: Observer | None = None,
    checkpoint_every_s: float = 60.0,
    deterministic: bool = False,
    world: World = ALONE,
) -> list[Fitted]:
    """Train all members together and return each at its best step.

    method: what is trained over `lm` (prompts, unless given); one that changes the model takes one member. folder:
    where checkpoint and curve are kept (None: nowhere). minutes: bound on training and selection together, counted
    across resumes. watch: told of steps and evaluations, of scoring, of a member that stops and a checkpoint that
    cannot be written. observe(member, its values) at each of its evaluations: what it returns goes into the member's
    history. deterministic: the same bits each time on a GPU, too, somewhat slower; a checkpoint of another device or
    version is then refused. world: the processes that train together, each of which calls this with the same members
    and gets the same result; the first one keeps the checkpoint, tells, and has the clock. Raises ValueError for a
    model in float16, a checkpoint that is damaged or of another run, or a folder that another process trains into,
    OSError for one that cannot be written from the start, KeyboardInterrupt after writing a checkpoint.
    """
    if not world.is_first:
        folder = watch = None
    run = _Run(method or PromptTuning(lm), members, max_tokens, watch or Watch(), world)
    with held(folder) if folder else nullcontext(), _same_bits() if deterministic else nullcontext():
        checkpoint = folder / CHECKPOINT if folder else None
        run.begin(checkpoint if resume else None, is_exact=deterministic)
        if checkpoint:  # over an earlier run's, and so that a full disk is told now
            with refusals(checkpoint, "nothing was trained; free some space, or give another folder"):
                run.save(checkpoint)
        curve = Curve(folder / CURVE if folder else None, run.step, run.watch)
        written = clock()
        started = written - run.seconds
        try:
            while True:
                run.seconds = world.decided(lambda: clock() - started)
                left = math.inf if minutes is None else minutes * 60 - run.seconds - run.evaluation_seconds
                due = run.due(at_the_end=left <= 0)
                if due:
                    run.evaluate(due, observe)
                    run.evaluation_seconds = world.decided(lambda: clock() - started) - run.seconds
                    run.seconds += run.evaluation_seconds
                curve.add(run.step, run.entries())
                if due or clock() - written > checkpoint_every_s:
                    run.write(checkpoint)
                    written = clock()
                if left <= 0 or not any(state.alive for state in run.states):
                    curve.end()
                    for state in run.states:
                        state.fitted.values = state.fitted.values.cpu()
                    return [state.fitted for state in run.states]
                loss, tokens = run.train_step()
                run.watch.step(run.step, loss, tokens)
        except KeyboardInterrupt:
            run.seconds = clock() - started
            run.write(checkpoint)
            raise


@contextmanager
def _same_bits() -> Iterator[None]:
    """Let PyTorch compute what it can in a fixed order, and refuse the rest; afterwards as before.

    A GPU's products need a workspace of fixed size besides, which must be named before the first of them.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault(*FIXED_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


class _Run:
    """All members' states, and what they have in common."""

    def __init__(self, method: Method, members: Sequence[Member], max_tokens: int | None, watch: Watch, world: World):
        if not members:
            raise ValueError(f"no {method.noun} to train; give at least one member")
        if method.is_alone and len(members) > 1:
            raise ValueError(f"{method.name} changes the model, so it trains one member at a time, not {len(members)}")
        for member in members:
            if not member.rows:
                raise ValueError(f"{member.title} has no training examples")
            if member.config.batch_size < world.size:
                raise ValueError(
                    f"{world.size} processes, but a step of {member.title} has {member.config.batch_size} examples; "
                    f"start at most {member.config.batch_size}, or give a larger --batch-size"
                )
        self.method, self.members, self.watch, self.world = method, list(members), watch, world
        self.lm = method.lm
        if self.lm.dtype == torch.float16:
            raise ValueError(
                f"{self.lm.name} is loaded in float16, in which small gradients become 0; load it in bfloat16 or "
                "float32 to train"
            )
        tokens = [sum(len(row.target) for row in member.rows) / len(member.rows) for member in members]
        self.guessing = [math.log(self.lm.config.vocab_size) * count for count in tokens]  # loss of an example
        self.states: list[_State] = []
        self.step = 0
        self.scored_at = 0  # the step of the last evaluation
        self.seconds = 0.0
        self.evaluation_seconds = 0.0  # what the last evaluation took
        self.max_tokens = max_tokens or most_tokens(self.lm)
        self.served: dict[int, list[int]] = {}  # by fold, the members whose step it chooses
        for i, member in enumerate(members):
            for fold in member.folds:
                own, its = member.config, members[fold].config
                is_in_step = (own.steps, own.evaluate_every) == (its.steps, its.evaluate_every)
                assert is_in_step, "folds go at the pace of the member they serve"
                self.served.setdefault(fold, []).append(i)

    def begin(self, checkpoint: Path | None, *, is_exact: bool) -> None:
        """Begin at the first step, or go on from the checkpoint that the first process finds.

        ValueError as `read_checkpoint` has it.
        """

        def found() -> tuple[dict[str, Any], dict[str, Tensor]] | None:
            if checkpoint is None or not checkpoint.exists():
                return None
            device = self.lm.device
            return read_checkpoint(checkpoint, self.identity, device=device, is_exact=is_exact, watch=self.watch)

        if saved := self.world.decided(found):
            self._go_on(*saved)
            return
        for i, member in enumerate(self.members):
            values = member.values.detach().to(self.lm.device, torch.float32, copy=True)
            optimizer = member.config.optimizer.init(values)
            self.states.append(_State(i, member, values, optimizer, Fitted(values.clone())))

    def _go_on(self, saved: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        # Steps are counted on the host.
        tensors = {name: t if t.dtype == torch.int64 else t.to(self.lm.device) for name, t in tensors.items()}
        for i, (member, counters) in enumerate(zip(self.members, saved.pop("members"), strict=True)):
            start = f"{i}.optimizer."
            optimizer = {name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}
            fitted = Fitted(tensors[f"{i}.best"], **counters.pop("fitted"))
            self.states.append(_State(i, member, tensors[f"{i}.values"], optimizer, fitted, **counters))
        if saved.pop("device", self.lm.device.type) != self.lm.device.type:
            del saved["max_tokens"]  # what fits another device's memory
        for name, value in saved.items():
            setattr(self, name, value)

    def write(self, path: Path | None) -> None:
        """Write a checkpoint, if there is a place for it. A disk that is full is told and training goes on."""
        if path is None:
            return
        try:
            self.save(path)
        except OSError as error:
            why = error.strerror or str(error)
            self.watch.message(f"no checkpoint at step {self.step}: {path} cannot be written ({why})")

    def save(self, path: Path) -> None:
        """Write a checkpoint. Raises OSError where it cannot be written."""
        tensors, members = {}, []
        for i, state in enumerate(self.states):
            tensors |= {f"{i}.values": state.values, f"{i}.best": state.fitted.values}
            tensors |= {f"{i}.optimizer.{name}": tensor for name, tensor in state.optimizer.items()}
            fitted = {name: value for name, value in vars(state.fitted).items() if name != "values"}
            members.append({"fitted": fitted, **{name: getattr(state, name) for name in COUNTERS}})
        of_run = ("step", "scored_at", "seconds", "evaluation_seconds", "max_tokens")
        saved = {"members": members, **{name: getattr(self, name) for name in of_run}}
        saved["device"] = self.lm.device.type
        write_checkpoint(path, self.identity, saved, tensors, self.lm.device)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must share with the run that goes on from it."""
        distinct = {id(rows): rows for m in self.members for rows in (m.rows, m.selection_rows)}
        digests = {place: _digest(rows) for place, rows in distinct.items()}
        members = []
        for member in self.members:
            start = member.values.detach().float().cpu().numpy().tobytes()
            of_member = {
                "name": member.name,
                "task": {name: getattr(member.task, name) for name in ("name", "version", "labels", "template")},
                "judging": member.judging,
                "text": member.form.to_json(),
                "seed": member.seed,
                "config": asdict(member.config),
                "starting values": hashlib.sha256(start).hexdigest(),
                "training rows": digests[id(member.rows)],
                "selection rows": digests[id(member.selection_rows)],
                "folds": list(member.folds),
            }
            members.append(of_member)
        return {
            "method": self.method.name,
            "fingerprint": self.lm.fingerprint,
            "dtype": str(self.lm.dtype),
            "quantization": self.lm.quantization,
            "compiled": self.lm.is_compiled,
            "activation checkpoints": self.lm.is_checkpointed,
            "processes": self.world.size,  # sums of gradients are rounded otherwise
            # Up to 0.3.0 masks were other ones, and not named.
            "dropout masks": "SplitMix64" if any(member.config.dropout for member in self.members) else None,
            "members": members,
        }

    def train_step(self) -> tuple[float, int]:
        """One optimizer step of every member still alive; the mean loss of an example, and tokens computed."""
        alive = [state for state in self.states if state.alive]
        groups: dict[tuple[float, float], list[_State]] = {}
        for state in alive:  # members with the same dropout and z-loss share micro-batches
            config = state.member.config
            groups.setdefault((config.dropout, config.z_loss), []).append(state)
        results: list[tuple[_State, Tensor, float]] = []
        computed = 0
        for group in groups.values():
            gradients, losses, tokens = self._gradients_that_fit(group)
            results += zip(group, gradients, losses, strict=True)
            computed += tokens
        with uninterrupted():
            self._update(results)
            self.step += 1
            for state in alive:
                if state.alive:
                    state.fitted.steps_run = self.step
                    state.alive = self.step < state.member.config.steps
            self._release_folds()
        means = [loss / state.member.config.batch_size for state, _, loss in results if math.isfinite(loss)]
        return sum(means) / len(means) if means else math.nan, computed

    def _gradients_that_fit(self, group: Sequence[_State]) -> tuple[list[Tensor], list[float], int]:
        """The group's gradients, in micro-batches half the size whenever memory runs out."""
        rows, worn, seeds = [], [], []
        for place, state in enumerate(group):
            member = state.member
            size = member.config.batch_size
            order = order_of_step(len(member.rows), size, self.step, member.seed, shuffles=state.shuffles)
            of_step = [member.rows[taken] for taken in order]
            if self.world.size > 1:  # longest first, so that all have as much to do
                of_step = self.world.share(sorted(of_step, key=lambda row: -row.num_tokens))
            for row in of_step:
                rows.append(row)
                worn.append(place)
                # A row's dropout masks are the same whatever it trains beside.
                digest = hashlib.sha256(f"{member.seed} {member.name} {self.step} {row.index}".encode()).digest()
                seeds.append(int.from_bytes(digest[:8], "big") >> 1)
        config = group[0].member.config
        while True:
            found = None
            try:
                found = self.method.gradients(
                    [state.values for state in group],
                    rows,
                    worn,
                    max_tokens=self.max_tokens,
                    dropout=config.dropout,
                    seeds=seeds,
                    z_loss=config.z_loss,
                )
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if found := self._total(group, found):
                return found
            if self.max_tokens <= 64:
                raise lacking_memory(self.lm)
            self.max_tokens //= 2
            self.watch.message(f"out of memory at step {self.step + 1}; micro-batches now {self.max_tokens} tokens")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _total(self, group: Sequence[_State], found: Gradients | None) -> Gradients | None:
        """The sums of what the processes found; None where one of them lacked memory, as all then do."""
        if self.world.size == 1:
            return found
        values = [state.values for state in group]
        gradients, losses, computed = found or (values, [0.0] * len(group), 0)
        parts = [torch.tensor([float(found is None), computed, *losses]), *gradients]
        total = self.world.total(torch.cat([part.flatten().to(self.lm.device) for part in parts]))
        told, *summed = total.split([part.numel() for part in parts])
        lacking, computed, *losses = told.tolist()
        if lacking:
            return None
        return [part.view_as(value) for part, value in zip(summed, values, strict=True)], losses, int(computed)

    def _update(self, results: Sequence[tuple[_State, Tensor, float]]) -> None:
        """Move the members' values by their gradients and losses, or stop those that cannot be moved or have diverged.

        All are moved before a device is asked how it went.
        """
        noun, at = self.method.noun, f"step {self.step + 1}"
        moved = []
        are_finite = _are_finite([gradient for _, gradient, _ in results])
        for (state, gradient, loss), is_finite in zip(results, are_finite, strict=True):
            if not math.isfinite(loss) or not is_finite:
                what = "gradient" if math.isfinite(loss) else "loss"
                self._stop(state, f"the {what} at {at} is no longer a number")
                continue
            config = state.member.config
            config.optimizer.update(state.values, gradient, state.optimizer, total_steps=config.steps)
            moved.append((state, loss))
        for (state, loss), is_finite in zip(moved, _are_finite([state.values for state, _ in moved]), strict=True):
            if is_finite:
                self._note(state, loss)
            else:
                self._stop(state, f"the {noun} of {at} cannot be held in float32")

    def _note(self, state: _State, loss: float) -> None:
        """Count a member's step, and stop it if it has diverged."""
        config = state.member.config
        state.loss_sum += loss
        state.loss_count += config.batch_size
        state.loss = mean = loss / config.batch_size
        if state.first_loss is None:
            state.first_loss = mean
        limit = DIVERGED_TIMES * max(state.first_loss, self.guessing[state.number])
        state.bad_steps = state.bad_steps + 1 if mean > limit else 0
        if state.bad_steps >= DIVERGED_STEPS:
            self._stop(state, f"the {self.method.noun} diverged at step {self.step + 1}, loss {mean:.3g}")

    def _stop(self, state: _State, why: str) -> None:
        state.alive = False
        state.fitted.stopped = why
        best = state.fitted.step
        kept = f"its best {self.method.noun} (step {best}) is kept" if best else "it had no score yet"
        self.watch.message(f"{state.member.title} stopped: {why}; {kept}; try a lower --learning-rate")

    def _release_folds(self) -> None:
        """Stop the folds that serve no member any more."""
        for fold, served in self.served.items():
            self.states[fold].alive &= any(self.states[i].alive for i in served)

    def due(self, *, at_the_end: bool) -> list[_State]:
        """The members to evaluate now: those at a multiple of their evaluate_every, their last step, or the run's."""
        due = []
        for state in self.states:
            config = state.member.config
            is_time = at_the_end or self.step % config.evaluate_every == 0 or self.step == config.steps
            if is_time and state.fitted.steps_run == self.step != self.scored_at:
                due.append(state)
        return due

    def evaluate(
        self,
        due: Sequence[_State],
        observe: Observer | None,
    ) -> None:
        """Score members, keep their best values, stop those out of patience."""
        scores = self._scores([state for state in due if state.member.selection])
        observed = {state.number: observe(state.number, state.values) for state in due} if observe else {}
        losses = {state.number: state.loss_sum / max(state.loss_count, 1) for state in due}
        for state in due:
            if folds := state.member.folds:
                scores[state.number] = sum(scores.get(fold, 0.0) for fold in folds) / len(folds)
        with uninterrupted():
            for state in due:
                i = state.number
                entry = {"step": self.step, "loss": losses[i], "seconds": round(self.seconds, 2)}
                if i in scores:
                    entry["score"] = scores[i]
                state.fitted.history.append(entry | observed.get(i, {}))
                state.loss_sum, state.loss_count = 0.0, 0
                self._keep_best(state, scores.get(i))
            self._release_folds()
            self.scored_at = self.step
        for state in due:
            self.watch.score(self.step, state.member.title, losses[state.number], scores.get(state.number))
            if why := state.fitted.stopped:  # out of patience
                self.watch.message(
                    f"{state.member.title} stopped at step {self.step}: {why} than that of step {state.fitted.step}, "
                    "which is kept; --patience 0 goes on"
                )

    def entries(self) -> list[dict[str, Any]]:
        """The curve's lines of the last step: one for each member that took it."""
        entries = []
        for state in self.states:
            config, history = state.member.config, state.fitted.history
            if state.fitted.steps_run != self.step or state.loss is None:
                continue
            entry = {
                "step": self.step,
                "name": state.member.title,
                "loss": state.loss,
                "learning_rate": config.optimizer.rate(self.step - 1, config.steps),
                "seconds": round(self.seconds, 2),
            }
            if history and history[-1]["step"] == self.step and "score" in history[-1]:
                entry["score"] = history[-1]["score"]
            entries.append(entry)
        return entries

    def _scores(self, scored: Sequence[_State]) -> dict[int, float]:
        """The selection score of each, by number; members of one task share their batches."""
        if not scored:
            return {}
        engine, prompts = self.method.engine([state.values for state in scored], max_tokens=self.max_tokens)
        groups: dict[tuple[int, TextFormat, str], list[tuple[_State, int]]] = {}
        for state, prompt in zip(scored, prompts, strict=True):
            member = state.member
            groups.setdefault((id(member.task), member.form, member.config.scoring), []).append((state, prompt))
        scores = {}
        for (_, form, scoring), group in groups.items():
            examples: list[Example] = []
            rows: list[Row] = []
            worn: list[int] = []
            for state, prompt in group:
                count = state.member.num_scored
                examples += state.member.selection[:count]
                rows += state.member.selection_rows[:count]
                worn += [prompt] * (len(rows) - len(worn))
            task = group[0][0].member.task
            told = self.watch.phase(f"score {task.name}, selection", len(rows) // self.world.size)
            answers = predict(
                engine, task, examples, rows, worn, form, scoring=scoring, progress=told, world=self.world
            )
            first = 0
            for state, _ in group:
                own = state.member.selection[: state.member.num_scored]
                found = judge(task, own, answers[first : first + len(own)])
                scores[state.number] = found.metrics[task.chosen_by] if task.chosen_by else found.headline
                first += len(own)
        return scores

    def _keep_best(self, state: _State, score: float | None) -> None:
        fitted, patience = state.fitted, state.member.config.patience
        if score is None or fitted.score is None or score > fitted.score:
            fitted.values, fitted.step, fitted.score = state.values.clone(), self.step, score
            state.since_best = 0
            return
        state.since_best += 1
        if patience and state.alive and state.since_best >= patience and state.number not in self.served:
            state.alive = False
            fitted.stopped = f"no better score in {patience} evaluations"


def _are_finite(tensors: Sequence[Tensor]) -> list[bool]:
    """Whether each has finite numbers only; a device is asked once for all."""
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).tolist() if tensors else []


def _digest(rows: Sequence[Row]) -> str:
    parts = [part for row in rows for part in (row.ids, row.target)]
    ids = np.fromiter(itertools.chain(map(len, parts), *parts), np.int32)
    return hashlib.sha256(ids.tobytes()).hexdigest()
