"""What the commands say and draw: lines, tables, and a run's progress."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from softprompt.base.files import write_all
from softprompt.base.watch import Watch

LOG_TO = ("tensorboard", "trackio", "none")
LOGGED = ("loss", "score", "heldout", "learning_rate")  # of a curve's entries, to those
LINE_EVERY_S = 30.0  # ours: how often training reports where no bar can be drawn


def one_line(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


@contextlib.contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """An error of the operating system says what could not be written, if it does not already."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"could not write to {error.filename or place}: {error.strerror}") from error


def say(text: str) -> None:
    """A line on stderr, above any bar that is being drawn."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


def keep_threads(began: int) -> None:
    """Go on with as many processor threads as a resumed run began with, and say so."""
    import torch

    say(
        f"going on with as many threads as this run began with, {began} and not {torch.get_num_threads()}, so that "
        "sums round alike; remove its checkpoint to start again with another number"
    )
    torch.set_num_threads(began)


class Display:
    """A run's progress: bars where stderr is a terminal, lines where it is not, and logs for another program.

    logs: the folder of TensorBoard's; its parent names the run to trackio. log_to: one of `LOG_TO`; None: TensorBoard.
    Raises ValueError for trackio where it is not installed.
    """

    def __init__(self, logs: Path | None = None, log_to: str | None = None):
        self.log_to = log_to or "tensorboard"
        kind = {"tensorboard": _TensorBoard, "trackio": _Trackio}.get(self.log_to)
        self.logs = kind(logs) if kind and logs else None
        self.bars: list[Any] = []
        self.at = self.steps = self.rows = self.begun_at = 0
        self.rows_s = self.tokens_s = 0.0
        self.best: dict[str, float] = {}
        self.started = self.mark = self.told = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End bars and logs."""
        for bar in self.bars:
            bar.close()
        with self._logging() as logs:
            if logs is not None:
                logs.close()

    def watch(self) -> Watch:
        """What a run is given to tell this display how it goes."""
        return Watch(
            message=say,
            phase=self.phase,
            step=self.step,
            score=self.score,
            log=self.log,
            threads=keep_threads,
            begin=self.begin,
        )

    def begin(self, steps: int, rows: int) -> None:
        """Training begins: so many steps of so many rows."""
        from tqdm import tqdm

        for bar in self.bars:  # of the run before
            bar.close()
        self.steps, self.rows, self.at, self.best = steps, rows, 0, {}
        self.bar = tqdm(total=steps, desc="train", unit="step", disable=None, dynamic_ncols=True)
        self.bars = [self.bar]
        self.started = self.mark = self.told = time.monotonic()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """A step is done."""
        now = time.monotonic()
        took = max(now - self.mark, 1e-9)
        is_first = self.at == 0
        if is_first:  # of a run that goes on, a later one than 1
            self.begun_at = self.bar.initial = self.bar.n = step - 1
            self.rows_s, self.tokens_s = self.rows / took, tokens / took
        self.rows_s += 0.1 * (self.rows / took - self.rows_s)  # ours: speeds shown are means of about ten steps
        self.tokens_s += 0.1 * (tokens / took - self.tokens_s)
        self.at, self.mark = step, now
        score = f", score {max(self.best.values()):.4f}" if self.best else ""
        text = f"loss {loss:.3f}{score}, {self.rows_s:.1f} rows/s, {self.tokens_s:,.0f} tokens/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        if self.bar.disable and (is_first or now - self.told >= LINE_EVERY_S):
            self.told = now
            left = (now - self.started) / (step - self.begun_at) * (self.steps - step)  # at the pace so far
            say(f"step {step} of {self.steps}: {text}, {duration(left)} left")

    def score(self, step: int, name: str, loss: float, score: float | None) -> None:
        """A prompt was scored on its selection rows; `loss` is the mean since the last time."""
        text = f"step {step}: {name}: loss {loss:.4f}"
        if score is not None:
            text += f", score {score:.4f}"
            if score > self.best.get(name, -math.inf):
                self.best[name] = score
                text += " (best)"
        say(text)
        self.mark = time.monotonic()

    def log(self, entry: Mapping[str, Any]) -> None:
        """A line of the run's curve."""
        if "heldout" in entry:  # an evaluation of a pre-training
            say(f"step {entry['step']}: loss {entry['loss']:.4f}, held-out {entry['heldout']:.4f}")
            self.mark = time.monotonic()
        of = f"/{entry['name']}" if "name" in entry else ""
        with self._logging() as logs:
            if logs is not None:
                logs.write(entry["step"], {f"{key}{of}": entry[key] for key in LOGGED if key in entry})

    @contextlib.contextmanager
    def _logging(self) -> Iterator[Any]:
        """The logs, if there are any left: a full disk, or whatever trackio raises, ends them and no training."""
        try:
            yield self.logs
        except Exception as error:
            say(f"no more logs to {self.log_to}: {one_line(error)}")
            self.logs = None

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of scoring begins; what it is called with is finished rows."""
        from tqdm import tqdm

        bar = tqdm(total=total, desc=name, unit="row", disable=None, dynamic_ncols=True, leave=False)
        if bar.disable:
            say(f"{name}: {total:,} rows")
        self.bars.append(bar)

        def done(rows: int) -> None:
            bar.update(rows)
            if not bar.disable and bar.n >= total:
                bar.close()

        return done


class _TensorBoard:
    """Its event file. Its own writer works in a thread, where a full disk cannot be caught."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars by tag. What earlier runs logged from the first step written here on is hidden."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        proto: Any = import_module("tensorboard.compat.proto.event_pb2")
        summary: Any = import_module("tensorboard.compat.proto.summary_pb2")
        now = time.time()

        def add(**fields: Any) -> None:
            record = BytesIO()
            RecordWriter(record).write(proto.Event(wall_time=now, **fields).SerializeToString())
            write_all(self.file, record.getvalue())

        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}", "wb", buffering=0)  # noqa: SIM115
            add(file_version="brain.Event:2")
            add(step=step, session_log=proto.SessionLog(status=proto.SessionLog.START))
        scalars = [
            summary.Summary.Value(tag=tag.replace(" ", "_"), simple_value=value) for tag, value in values.items()
        ]
        add(step=step, summary=summary.Summary(value=scalars))

    def close(self) -> None:
        """End the file."""
        if self.file is not None:
            self.file.close()


class _Trackio:
    """A run of trackio's project softprompt, named as the folder; a resumed run goes on in it, some steps once more."""

    def __init__(self, folder: Path):
        try:
            self.trackio: Any = import_module("trackio")
        except ImportError:
            raise ValueError("--log-to trackio needs trackio, which is not installed; pip install trackio") from None
        self.name = str(folder.parent)
        self.run: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars by name."""
        if self.run is None:
            with contextlib.redirect_stdout(sys.stderr):  # it greets
                self.run = self.trackio.init(
                    project="softprompt", name=self.name, resume="never" if step == 1 else "allow", embed=False
                )
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is written."""
        if self.run is not None:
            with contextlib.redirect_stdout(sys.stderr):
                self.run.finish()


def type_of(lm: Any) -> str:
    """The type a model computes in, and where."""
    return f"{str(lm.dtype).removeprefix('torch.')} on {lm.device}"


def type_of_products(bfloat16: bool, device: Any) -> str:
    """The type that weights in training are multiplied in, and where."""
    return f"{'bfloat16 products of float32 weights' if bfloat16 else 'float32'} on {device}"


def counted(count: int, what: str) -> str:
    """'1 row', '2 rows'."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def number(value: float | None) -> str:
    """A score with four places; - where there is none."""
    return "-" if value is None else f"{value:.4f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, in columns."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
