"""The command line: flags to a call, its progress to the terminal, its result to a table.

Nothing heavy is imported before a command is chosen, so that `--help` comes at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130  # the shells' exit code for Ctrl-C: 128 + SIGINT
BROKEN_PIPE = 141  # and for a reader that has gone, as `head` does: 128 + SIGPIPE
BAD_INPUT = 2  # argparse's exit code for what the user must mend
LINE_EVERY_S = 30.0  # ours: how often training reports where no bar can be drawn
PROMPT_FILE = "adapter_config.json"  # in every folder that holds a prompt
CHECKPOINT = "checkpoint.safetensors"
METRICS = ("accuracy", "f1", "em", "rouge", "pearson")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, 2 for bad input, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with _notes_for_warnings():
        name = "softprompt"
        try:
            args = _parsed(words)
            name = f"softprompt {args.command}"
            code = args.run(args)
            sys.stdout.flush()
            return code
        except SystemExit as end:  # argparse ends so after --help and after its own messages
            return int(end.code or 0)
        except KeyboardInterrupt as stop:
            _say(f"{name}: {str(stop) or 'stopped'}")
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (ValueError, OSError) as error:
            if os.environ.get("SOFTPROMPT_DEBUG"):
                raise
            _say(f"{name}: {_one_line(error)}")
            return BAD_INPUT


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


@contextlib.contextmanager
def _notes_for_warnings() -> Iterator[None]:
    """What the library warns about as one line each; other libraries' warnings are not the user's business."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _say(f"note: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="softprompt|__main__")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _writing(place: str | Path) -> Iterator[None]:
    """An error of the operating system says what could not be written, if it does not already."""
    try:
        yield
    except OSError as error:
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        raise OSError(f"could not write to {error.filename or place}: {error.strerror}") from error


def _say(text: str) -> None:
    """A line on stderr, above any bar that is being drawn."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text, file=sys.stderr)
    else:
        print(text, file=sys.stderr)


# Parsing --------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message with where to read on, and exit."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        near = get_close_matches(words[0], commands, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(commands)}"
        parser.exit(BAD_INPUT, f"softprompt: no command named {words[0]!r}; {hint}\n")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        command = commands[args.command]
        near = get_close_matches(unknown[0].split("=")[0], command._option_string_actions, n=1)
        command.error(f"unknown argument {unknown[0]!r}" + (f" (did you mean {near[0]}?)" if near else ""))
    return args


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="softprompt",
        description="Teach one frozen language model many tasks by prompt tuning (Lester et al., 2021).",
        epilog="softprompt COMMAND --help shows a command's flags and examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    under = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands: dict[str, _Parser] = {}
    for name, (add_flags, run, summary, text, examples) in COMMANDS.items():
        command = under.add_parser(
            name,
            help=summary,
            description=text,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        add_flags(command)
        command.set_defaults(run=run)
        commands[name] = command
    return parser, commands


class _Formatter(argparse.HelpFormatter):
    """The description filled to the terminal's width, the examples as they stand."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print it and stop."""
        from importlib.metadata import version

        print(f"softprompt {version('softprompt')}")
        parser.exit()


@dataclass(frozen=True)
class _Flag:
    """A field of RunConfig as a flag."""

    kind: type
    help: str
    default: str = ""
    choices: tuple[str, ...] = ()
    is_list: bool = False
    metavar: str | None = None

    def parse(self, text: str) -> Any:
        """The flag's value, of a word on the command line."""
        words = [word.strip() for word in text.split(",")] if self.is_list else [text]
        try:
            values = tuple(self.kind(word) for word in words)
        except ValueError:
            what = {int: "whole number", float: "number"}[self.kind]
            raise argparse.ArgumentTypeError(
                f"wanted {f'{what}s with commas between' if self.is_list else f'a {what}'}, got {text!r}"
            ) from None
        return values if self.is_list else values[0]

    def of_recipe(self, name: str, value: Any) -> Any:
        """The flag's value, of a recipe's entry. ValueError if it is of another kind."""
        if self.kind is bool:
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, but must be true or false")
            return value
        try:
            parsed = (
                tuple(map(self.kind, value)) if isinstance(value, list) and self.is_list else self.parse(str(value))
            )
        except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
            raise ValueError(f"{name} is {value!r}: {error}") from None
        if self.choices and parsed not in self.choices:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(self.choices)}")
        return parsed

    def add(self, group: Any, name: str) -> None:
        """Add the flag to a parser's group. Without it on the command line, its name is not set."""
        text = self.help + (f" (default: {self.default})" if self.default else "")
        flag, chosen = f"--{name.replace('_', '-')}", {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if self.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **chosen)
        elif name == "task":
            group.add_argument(flag, action="extend", type=_names, metavar="T", **chosen)
        elif self.choices:
            group.add_argument(flag, choices=self.choices, **chosen)
        else:
            usual = {int: "N", float: "X", str: "TEXT", Path: "PATH"}[self.kind]
            metavar = self.metavar or (f"{usual},…" if self.is_list else usual)
            group.add_argument(flag, type=self.parse, metavar=metavar, **chosen)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


OF_PRESET = "the preset's"
TRAIN_FLAGS: dict[str, dict[str, _Flag]] = {
    "what to train": {
        "model": _Flag(str, "hub id, local folder, GGUF file, or smollm2-135m", metavar="M"),
        "task": _Flag(str, "a task of `softprompt tasks`; repeat it, or put commas, to train several", is_list=True),
        "out": _Flag(Path, "folder for prompts, result rows, checkpoint and logs", "runs/prompt", metavar="DIR"),
        "prompt_length": _Flag(int, "prompt tokens; of several the selection chooses", OF_PRESET, is_list=True),
        "init": _Flag(str, "class-labels, vocab, uniform, text:WORDS, or the folder of a prompt", OF_PRESET),
        "seeds": _Flag(int, "one prompt for each seed, all trained together", "0", is_list=True),
    },
    "your own files": {
        "inputs": _Flag(str, "template of the input, such as 'question: {question}'"),
        "targets": _Flag(str, "template of the answer, such as '{label}'"),
        "labels": _Flag(str, "the legal answers, if they are a fixed set", is_list=True, metavar="A,B,…"),
        "metric": _Flag(str, "how answers are scored", "accuracy with labels, em without", METRICS),
        "group_by": _Flag(str, "column whose rows stay on one side of the held-out split", metavar="COLUMN"),
    },
    "how to train": {
        "preset": _Flag(str, "where all other numbers come from", "fast", ("paper", "google-code", "fast")),
        "steps": _Flag(int, "optimizer steps", OF_PRESET),
        "minutes": _Flag(float, "stop training, selection included, after this time"),
        "batch_size": _Flag(int, "examples a step, for each prompt", OF_PRESET),
        "optimizer": _Flag(str, "the paper's Adafactor, or AdamW", OF_PRESET, ("adafactor", "adamw")),
        "learning_rate": _Flag(float, "of several the selection chooses", OF_PRESET, is_list=True),
        "dropout": _Flag(float, "dropout in the frozen model, encoder-decoders only", OF_PRESET),
        "max_train": _Flag(int, "use only so many training examples, drawn by seed", "all"),
        "resume": _Flag(bool, "go on from the checkpoint in --out", "no"),
    },
    "what is kept": {
        "select": _Flag(
            str,
            "what chooses step and setting: held-out training rows, their cross-validation, or the dev set",
            "auto: cross-validation under 500 examples, else held-out",
            ("auto", "held-out", "cross-validation", "dev"),
        ),
        "scoring": _Flag(
            str, "write the answer, or rank the labels", f"{OF_PRESET}; generate for free text", ("generate", "rank")
        ),
        "evaluate_every": _Flag(int, "steps between scores", OF_PRESET),
        "num_selection": _Flag(int, "selection rows scored each time, at most", OF_PRESET),
        "patience": _Flag(int, "stop a prompt after so many scores without a better one", "never"),
    },
    "text": {
        "max_input_length": _Flag(int, "tokens of an input, where longer ones are cut", "512"),
        "separator": _Flag(str, "text between input and answer, decoder-only models", r"a new line and 'answer:'"),
        "chat": _Flag(bool, "set inputs into the model's chat template", "no"),
    },
    "machine": {
        "device": _Flag(str, "auto, cpu, cuda, cuda:N or mps", "auto", metavar="D"),
        "dtype": _Flag(
            str, "of the frozen model", "auto: bfloat16 where it is fast", ("auto", "float32", "bfloat16", "float16")
        ),
        "quantize": _Flag(str, "keep the frozen weights in 8 or 4 bits", "no", ("8bit", "4bit")),
        "checkpoint_activations": _Flag(bool, "less memory, more time", "no"),
        "compile": _Flag(bool, "slower to start, faster over hundreds of steps", "no"),
    },
}
"""Every field of RunConfig but `data`, which is read by `_data`."""


def _data(words: Sequence[str] | None, *, split: str, dev: str | None = None) -> Any:
    """What `--data` says: None, a folder, or files by split. A lone file is taken for `split`."""
    named: dict[str, list[str]] = {}
    bare = [word for word in words or () if "=" not in word or Path(word).exists()]
    for word in words or ():
        if word not in bare:
            name, files = word.split("=", 1)
            named.setdefault(name, []).extend(_names(files))
    if bare and (named or len(bare) > 1):
        raise ValueError("--data takes one folder, or files by split: --data train=FILE[,FILE] dev=FILE")
    if bare and not Path(bare[0]).is_file():
        if dev is not None:
            raise ValueError("--dev goes with --data train=FILE; the official files in a folder have their own dev set")
        return bare[0]
    if bare:
        named[split] = bare
    if dev is not None:
        named["dev"] = _names(dev)
    return named or None


def _add_data(group: Any) -> None:
    group.add_argument(
        "--data",
        nargs="+",
        metavar="DIR|SPLIT=FILE",
        help="folder of the official files, or train=FILE[,FILE] dev=FILE test=FILE (default: the hub)",
    )


def _add_own_task(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("your own files")
    for name, flag in TRAIN_FLAGS["your own files"].items():
        flag.add(group, name)


def _add_prompt(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", nargs="+", required=True, metavar="DIR", help="folders that train wrote")
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument("--task", metavar="T", help="a task of `softprompt tasks` (default: the prompt's own)")
    command.add_argument("--scoring", choices=("generate", "rank"), help="default: the one of the prompt's training")
    _add_own_task(command)
    group = command.add_argument_group("machine")
    for name in ("device", "dtype"):
        TRAIN_FLAGS["machine"][name].add(group, name)
    _add_threads(group)


def _add_threads(group: Any) -> None:
    group.add_argument("--threads", type=int, metavar="N", help="processor threads (default: one for each core)")


def _own_task(args: argparse.Namespace) -> Any:
    """The task of the templates on the command line, or the name given with --task, or None."""
    given = {name: getattr(args, name) for name in TRAIN_FLAGS["your own files"] if hasattr(args, name)}
    if not given:
        return args.task
    from softprompt.tasks import file_task

    if args.task is not None or not {"inputs", "targets"} <= set(given):
        raise ValueError("your own files need both --inputs and --targets, and no task name")
    return file_task(**given)


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        import torch

        if args.threads < 1:
            raise ValueError(f"--threads is {args.threads}, but must be 1 or more")
        torch.set_num_threads(args.threads)


def _say_if_slow(source: str | None) -> None:
    """A GGUF file is dequantised when it is first read; that takes half a minute and deserves a word."""
    from softprompt.backbone import SMOLLM2, cache_folder

    if source != SMOLLM2 and not (str(source).endswith(".gguf") and Path(str(source)).is_file()):
        return
    stem = "SmolLM2-135M-Instruct" if source == SMOLLM2 else Path(str(source)).stem
    if not any((cache_folder() / "models").glob(f"{stem}*/config.json")):
        _say(f"dequantising {source} for the first time; about half a minute, then it is kept in {cache_folder()}")


# train ----------------------------------------------------------------------------------------------------------


def _add_train(command: argparse.ArgumentParser) -> None:
    for title, flags in TRAIN_FLAGS.items():
        group = command.add_argument_group(title)
        for name, flag in flags.items():
            flag.add(group, name)
            if name == "task":
                _add_data(group)
                group.add_argument("--dev", metavar="FILE[,FILE]", help="dev set of your own, with --data train=FILE")
        if title == "machine":
            _add_threads(group)
    command.add_argument("--config", metavar="FILE", help="recipe in YAML, a line for each flag; flags override it")
    command.add_argument("--estimate", action="store_true", help="print memory and time first, and stop")
    command.add_argument("--overwrite", action="store_true", help="train into a folder that holds a prompt already")


def _train(args: argparse.Namespace) -> int:
    config = _run_config(args)
    if not args.estimate:
        _check_out(config, args.overwrite)
    if config.resume and not (config.out / CHECKPOINT).exists():
        _say(f"{config.out} holds no checkpoint to go on from; starting at step 1")
    _set_threads(args)
    from softprompt.run import Watch, load_model, tasks_of, train

    tasks_of(config)
    _say_if_slow(config.model)
    lm = load_model(config)
    _say(f"{lm.name}: {lm.num_parameters / 1e6:,.1f} million frozen parameters, {_type_of(lm)}")
    if args.estimate:
        from softprompt.preview import estimate

        print(_estimate_table(estimate(config, lm=lm), lm))
        return 0
    display = _Display(config.out / "logs")
    watch = Watch(
        message=_say, phase=display.phase, step=display.step, score=display.score, begin=display.begin
    )  # fmt: skip
    try:
        with _writing(config.out):
            delivered = train(config, lm=lm, watch=watch)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stopped(display, config)) from None
    finally:
        display.close()
    print(_train_table(delivered, config))
    return 0


def _run_config(args: argparse.Namespace) -> Any:
    """The recipe, and over it the flags."""
    from softprompt.run import RunConfig

    settings = _recipe(Path(args.config)) if args.config else {}
    for flags in TRAIN_FLAGS.values():
        settings |= {name: getattr(args, name) for name in flags if hasattr(args, name)}
    if args.data or args.dev:
        settings["data"] = _data(args.data, split="train", dev=args.dev)
    if "model" not in settings:
        raise ValueError("which model? give --model with a hub id, a local folder, a GGUF file, or smollm2-135m")
    if not settings.get("task") and not settings.get("inputs"):
        raise ValueError("which task? give --task (see `softprompt tasks`), or --inputs and --targets for your files")
    if settings.get("inputs") and settings.get("data") is None:
        raise ValueError("where are your files? give --data train=FILE[,FILE] dev=FILE")
    settings["task"] = tuple(settings.get("task", ()))
    return RunConfig(**settings)


def _recipe(path: Path) -> dict[str, Any]:
    """The settings of a YAML file, named as the flags are, with - or _."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{line}: not YAML ({error.problem})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings; write a line for each, such as 'steps: 500'")
    known = {name: flag for flags in TRAIN_FLAGS.values() for name, flag in flags.items()}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name != "data" and name not in known:
            near = get_close_matches(name, [*known, "data"], n=1)
            raise ValueError(f"{path}: no setting named {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if value is None:
            continue
        try:
            settings[name] = _recipe_data(value) if name == "data" else known[name].of_recipe(str(key), value)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return settings


def _recipe_data(value: Any) -> Any:
    if isinstance(value, str):
        return _data([value], split="train")
    if isinstance(value, dict):
        return {name: [files] if isinstance(files, str) else list(files) for name, files in value.items()}
    raise ValueError(f"data is {value!r}, but must be a folder, or files under train, dev and test")


def _check_out(config: Any, overwrite: bool) -> None:
    """Earlier results are not trained over by accident."""
    if config.resume or overwrite:
        return
    if any(config.out.glob(f"*/{PROMPT_FILE}")) or (config.out / PROMPT_FILE).exists():
        raise ValueError(f"{config.out} holds a prompt already; give another --out, or --overwrite")
    if (config.out / CHECKPOINT).exists():
        raise ValueError(f"{config.out} holds an unfinished run; --resume goes on with it, --overwrite starts again")


def _stopped(display: _Display, config: Any) -> str:
    if not (config.out / CHECKPOINT).exists():
        return "stopped before the first checkpoint; nothing was kept"
    done = f"stopped at step {display.at} of {display.steps}"
    return f"{done}; the same command with --resume goes on from there"


class _Display:
    """A run's progress: bars where stderr is a terminal, lines where it is not, and TensorBoard's logs."""

    def __init__(self, logs: Path):
        self.logs: _Logs | None = _Logs(logs)
        self.bar: Any = None
        self.phases: list[Any] = []
        self.at = self.steps = self.rows = self.begun_at = 0
        self.best: dict[str, float] = {}
        self.started = self.mark = self.told = time.monotonic()
        self.speeds = (0.0, 0.0)

    def begin(self, steps: int, rows: int) -> None:
        """Training begins: so many steps of so many rows."""
        from tqdm import tqdm

        self.steps, self.rows = steps, rows
        self.bar = tqdm(total=steps, desc="train", unit="step", disable=None, dynamic_ncols=True)
        self.started = self.mark = self.told = time.monotonic()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """A step is done."""
        now = time.monotonic()
        took = max(now - self.mark, 1e-9)
        first = self.speeds == (0.0, 0.0)
        new = 1.0 if first else 0.1  # ours: speeds shown are means of about ten steps
        rows, tokens_s = self.speeds
        self.speeds = (rows + new * (self.rows / took - rows), tokens_s + new * (tokens / took - tokens_s))
        if first and step > 1:  # resumed
            self.begun_at = self.bar.initial = self.bar.n = step - 1
        self.at, self.mark = step, now
        self.bar.set_postfix_str(self._now(loss), refresh=False)
        self.bar.update()
        if self.bar.disable and (first or now - self.told >= LINE_EVERY_S):
            self.told = now
            _say(f"step {step} of {self.steps}: {self._now(loss)}, {self._left(step, now)} left")

    def score(self, step: int, name: str, loss: float, score: float | None) -> None:
        """A prompt was scored on its selection rows; `loss` is the mean since the last time."""
        self._log(step, {f"loss/{name}": loss} | ({} if score is None else {f"score/{name}": score}))
        shown = "" if score is None else f", score {score:.4f}"
        best = self.best.get(name)
        mark = ""
        if score is not None and (best is None or score > best):
            self.best[name], mark = score, " (best)"
        _say(f"step {step}: {name}: loss {loss:.4f}{shown}{mark}")
        self.mark = time.monotonic()

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """A stage of scoring begins; what it is called with is finished rows."""
        from tqdm import tqdm

        bar = tqdm(total=total, desc=name, unit="row", disable=None, dynamic_ncols=True, leave=False)
        if bar.disable:
            _say(f"{name}: {total:,} rows")
        self.phases.append(bar)

        def done(rows: int) -> None:
            bar.update(rows)
            if not bar.disable and bar.n >= total:
                bar.close()

        return done

    def close(self) -> None:
        """End bars and logs."""
        for bar in [*self.phases, self.bar]:
            if bar is not None:
                bar.close()
        if self.logs is not None:
            self.logs.close()

    def _now(self, loss: float) -> str:
        rows, tokens = self.speeds
        score = f", score {max(self.best.values()):.4f}" if self.best else ""
        return f"loss {loss:.3f}{score}, {rows:.1f} rows/s, {tokens:,.0f} tokens/s"

    def _left(self, step: int, now: float) -> str:
        """Time left at the pace so far, the scorings included."""
        done = step - self.begun_at
        return _duration((now - self.started) / done * (self.steps - step))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        if self.logs is None:
            return
        try:
            self.logs.write(step, values)
        except OSError as error:
            _say(f"no more TensorBoard logs: {_one_line(error)}")
            self.logs = None


class _Logs:
    """TensorBoard's event file. Its own writer works in a thread, where a full disk cannot be caught."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file: Any = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars by tag. What earlier runs logged from the first step written here on is hidden."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        proto: Any = import_module("tensorboard.compat.proto.event_pb2")
        summary: Any = import_module("tensorboard.compat.proto.summary_pb2")
        now = time.time()
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = open(self.folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}", "wb", buffering=0)  # noqa: SIM115
            begin = proto.Event(wall_time=now, step=step, session_log=proto.SessionLog(status=proto.SessionLog.START))
            for event in (proto.Event(wall_time=now, file_version="brain.Event:2"), begin):
                RecordWriter(self.file).write(event.SerializeToString())
        scalars = [
            summary.Summary.Value(tag=tag.replace(" ", "_"), simple_value=value) for tag, value in values.items()
        ]
        event = proto.Event(wall_time=now, step=step, summary=summary.Summary(value=scalars))
        RecordWriter(self.file).write(event.SerializeToString())

    def close(self) -> None:
        """Close the file, if one was begun."""
        if self.file is not None:
            self.file.close()


def _train_table(delivered: Sequence[Any], config: Any) -> str:
    names = list(dict.fromkeys(name for one in delivered if one.dev for name in one.dev.metrics))
    rows = [["prompt", "best step", "selection score", *(f"dev {name}" for name in names)]]
    for one in delivered:
        metrics = one.dev.metrics if one.dev else {}
        rows.append(
            [
                str(one.folder),
                str(one.fitted.step),
                _number(one.fitted.score),
                *(_number(metrics.get(n)) for n in names),
            ]
        )
    folders = [shlex.quote(str(one.folder)) for one in delivered]
    model = f" --model {shlex.quote(config.model)}" if Path(config.model).exists() else ""
    tasks = {one.prompt.card.task for one in delivered}
    if len(folders) > 1 and len(tasks) == 1:
        text = _data_words(config.data)
        command = f"softprompt eval --ensemble{model}{text} --prompt {' '.join(folders)}"
    else:
        command = f"softprompt predict{model} --prompt {folders[0]}"
    return f"{_table(rows)}\n\nnext: {command}"


def _data_words(data: Any) -> str:
    """`data` as it is written after --data."""
    if data is None:
        return ""
    if isinstance(data, Mapping):
        named = [f"{split}={','.join(map(str, files))}" for split, files in data.items()]
        return f" --data {shlex.join(named)}"
    return f" --data {shlex.quote(str(data))}"


def _estimate_table(cost: Any, lm: Any) -> str:
    rows = [
        ["frozen model", f"{cost.model_bytes / 1e6:,.0f} MB, {_type_of(lm)}"],
        ["peak memory", f"{cost.peak_bytes / 1e6:,.0f} MB"],
        ["one step", f"{cost.step_s:.2f} s: {cost.num_rows} rows of {_counted(cost.num_prompts, 'prompt')}"],
        ["steps", f"{cost.num_steps:,}: {_duration(cost.num_steps * cost.step_s)}"],
        [
            "evaluations",
            f"{cost.num_evaluations:,} of {cost.num_scored:,} rows, {_duration(cost.evaluation_s)} each: "
            f"{_duration(cost.num_evaluations * cost.evaluation_s)}",
        ],
        ["dev set", f"once: {_duration(cost.dev_s)}"],
        ["total", f"about {_duration(cost.total_s)}"],
    ]
    if cost.minutes is not None:
        rows.insert(-1, ["--minutes", f"training ends after {_duration(cost.minutes * 60)} at the latest"])
    return _table(rows)


def _type_of(lm: Any) -> str:
    return f"{str(lm.dtype).removeprefix('torch.')} on {lm.device}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


# eval -----------------------------------------------------------------------------------------------------------


def _add_eval(command: argparse.ArgumentParser) -> None:
    _add_prompt(command)
    _add_data(command)
    command.add_argument("--split", default="dev", metavar="S", help="train, dev or test (default: dev)")
    command.add_argument("--ensemble", action="store_true", help="the prompts' vote too, in the same pass")
    command.add_argument("--limit", type=int, metavar="N", help="score only the first N examples (default: all)")
    command.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    command.add_argument("--rows", metavar="FILE", help="append result rows to this JSONL file")


def _opened(args: argparse.Namespace, scoring: str | None) -> Any:
    """The saved prompts that the flags name, on their model."""
    _set_threads(args)
    from softprompt.prediction import open_prompts
    from softprompt.prompt import load_prompt

    task = _own_task(args)
    _say_if_slow(args.model or load_prompt(args.prompt[0]).card.model_name)
    machine = {name: getattr(args, name) for name in ("device", "dtype") if hasattr(args, name)}
    return open_prompts(args.prompt, model=args.model, task=task, scoring=scoring, **machine)


def _eval(args: argparse.Namespace) -> int:
    data = _data(args.data, split=args.split)
    saved = _opened(args, args.scoring)
    from softprompt.evaluation import append_rows
    from softprompt.prediction import evaluate_prompts
    from softprompt.run import Watch

    display = _Display(Path())
    try:
        scores = evaluate_prompts(
            saved,
            data=data,
            split=args.split,
            ensemble=args.ensemble,
            limit=args.limit,
            watch=Watch(message=_say, phase=display.phase),
        )
    finally:
        display.close()
    print(json.dumps(_eval_json(scores), ensure_ascii=False) if args.json else _eval_table(scores))
    if args.rows:
        with _writing(args.rows):
            append_rows(Path(args.rows), scores.rows())
    return 0


def _eval_json(scores: Any) -> dict[str, Any]:
    def entry(evaluation: Any) -> dict[str, Any]:
        return {"metrics": evaluation.metrics, "value": evaluation.headline, "illegal_rate": evaluation.illegal_rate}

    folders = [str(folder) for folder in scores.saved.folders]
    return {
        "task": scores.saved.task.name,
        "split": scores.split,
        "scoring": scores.saved.scoring,
        "num_examples": len(scores.examples),
        "num_cut": scores.num_cut,
        "prompts": [{"prompt": f, **entry(e)} for f, e in zip(folders, scores.evaluations, strict=True)],
        "average": scores.average,
        "best": folders[scores.best],
        "chosen": None if scores.chosen is None else folders[scores.chosen],
        "ensemble": None if scores.ensemble is None else entry(scores.ensemble),
    }


def _eval_table(scores: Any) -> str:
    names = list(scores.evaluations[0].metrics)

    def cells(title: str, metrics: Mapping[str, float], illegal_rate: float | None) -> list[str]:
        mean = [_number(sum(metrics.values()) / len(metrics))] if len(names) > 1 else []
        return [title, *(_number(metrics[name]) for name in names), *mean, _number(illegal_rate)]

    def of(place: int, title: str) -> list[str]:
        evaluation = scores.evaluations[place]
        return cells(title, evaluation.metrics, evaluation.illegal_rate)

    folders = scores.saved.folders
    rows = [["prompt", *names, *(["mean"] if len(names) > 1 else []), "illegal"]]
    rows += [of(place, str(folder)) for place, folder in enumerate(folders)]
    if len(folders) > 1:
        rates = [evaluation.illegal_rate for evaluation in scores.evaluations]
        rows.append(cells("average", scores.average, sum(rates) / len(rates)))
        rows.append(of(scores.best, f"best on {scores.split}: {folders[scores.best]}"))
        if scores.chosen is not None:
            rows.append(of(scores.chosen, f"chosen by selection: {folders[scores.chosen]}"))
    if scores.ensemble is not None:
        rows.append(cells("ensemble", scores.ensemble.metrics, scores.ensemble.illegal_rate))
    how = {"rank": "labels ranked", "generate": "answers generated"}[scores.saved.scoring]
    scored = f"{_counted(len(scores.examples), 'example')} scored"
    cut = f", {scores.num_cut:,} inputs cut" if scores.num_cut else ""
    return f"{scores.saved.task.name} {scores.split}: {scores.note}; {scored}, {how}{cut}\n{_table(rows)}"


# predict --------------------------------------------------------------------------------------------------------


def _add_predict(command: argparse.ArgumentParser) -> None:
    _add_prompt(command)
    command.add_argument("--input", metavar="F", help=".jsonl, .csv, .tsv, .parquet, or lines (default: stdin)")
    command.add_argument("--output", metavar="F", help="JSONL file to write (default: stdout)")
    command.add_argument("--inputs-column", metavar="C", help="column of finished inputs; the task casts no record")
    command.add_argument("--scores", action="store_true", help="add every label's probability; ranks the labels")
    command.add_argument("--strict", action="store_true", help="stop at the first bad row")
    command.add_argument("--resume", action="store_true", help="go on where an earlier run stopped, with --output")
    command.add_argument("--overwrite", action="store_true", help="replace an --output that is there already")


def _predict(args: argparse.Namespace) -> int:
    if args.resume and not args.output:
        raise ValueError("--resume goes on with a file, so it needs --output")
    if args.input and not Path(args.input).is_file():
        raise ValueError(f"no file {args.input}; name a file of records or of lines, or leave --input for stdin")
    saved = _opened(args, args.scoring or ("rank" if args.scores else None))
    options = {"with_probabilities": args.scores, "inputs_column": args.inputs_column, "strict": args.strict}
    with contextlib.closing(_predict_bar(args)) as bar:
        written = (_predict_to_file if args.output else _predict_to_stdout)(saved, args, options, bar)
    answered = _counted(written.num_rows - written.num_errors, "row")
    where = f", in {args.output}" if args.output else ""
    errors = f", {written.num_errors:,} not (their lines hold an error)" if written.num_errors else ""
    _say(f"{answered} answered{errors}{where}")
    return 0


def _predict_bar(args: argparse.Namespace) -> Any:
    from tqdm import tqdm

    from softprompt.prediction import count_items

    total = count_items(args.input) if args.input else None
    quiet = None if args.output and args.input else True
    return tqdm(total=total, desc="predict", unit="row", disable=quiet, dynamic_ncols=True)


def _predict_to_file(saved: Any, args: argparse.Namespace, options: dict[str, Any], bar: Any) -> Any:
    from softprompt.prediction import predict_file

    try:
        return predict_file(
            saved,
            args.input or sys.stdin.buffer,
            args.output,
            **options,
            resume=args.resume,
            overwrite=args.overwrite,
            progress=bar.update,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; the same command with --resume goes on with {args.output}") from None


def _predict_to_stdout(saved: Any, args: argparse.Namespace, options: dict[str, Any], bar: Any) -> Any:
    from softprompt.prediction import CHUNK, Written, predict_records, read_items, read_lines, to_line

    items = read_items(args.input) if args.input else read_lines(sys.stdin.buffer)
    chunk = 1 if not args.input and sys.stdin.isatty() else CHUNK  # a person at the keyboard wants each answer at once
    written = Written()
    for answer in predict_records(saved, items, chunk=chunk, **options):
        sys.stdout.write(to_line(answer))
        sys.stdout.flush()
        written.num_rows += 1
        written.num_errors += "error" in answer
    return written


# convert, tasks -------------------------------------------------------------------------------------------------


def _add_convert(command: argparse.ArgumentParser) -> None:
    kinds = ("t5x", "peft", "tgis")
    command.add_argument("source", metavar="SRC", help="file or folder of the prompt")
    command.add_argument("--from", dest="from_kind", choices=kinds, help="default: seen from the files")
    command.add_argument("--to", dest="to_kind", choices=kinds, required=True)
    command.add_argument("--out", required=True, metavar="DST", help="a file for t5x, else a folder")
    command.add_argument("--model", metavar="NAME", help="the prompt's model, where the source does not record it")


def _convert(args: argparse.Namespace) -> int:
    from softprompt.formats import convert

    with _writing(args.out):
        prompt = convert(args.source, args.out, to_kind=args.to_kind, from_kind=args.from_kind, model_name=args.model)
    print(f"{args.out}: {_counted(prompt.length, 'prompt token')} of width {prompt.width}, {args.to_kind}")
    return 0


def _add_tasks(command: argparse.ArgumentParser) -> None:
    command.add_argument("task", nargs="?", metavar="T", help="a task to look into (default: list them all)")
    _add_data(command)
    command.add_argument("--split", default="train", metavar="S", help="train, dev or test (default: train)")
    command.add_argument("--limit", type=int, default=3, metavar="N", help="examples shown (default: 3)")
    command.add_argument("--model", metavar="M", help="also measure lengths in this model's tokens")
    TRAIN_FLAGS["text"]["max_input_length"].add(command, "max_input_length")
    _add_own_task(command)


def _tasks(args: argparse.Namespace) -> int:
    task = _own_task(args)
    if task is None:
        print(_task_list())
        return 0
    from softprompt.tasks import get_task, read_split

    task = get_task(task) if isinstance(task, str) else task
    reading = read_split(task, args.split, _data(args.data, split=args.split))
    print(_task_head(task, args.split, reading))
    for example in reading.examples[: max(args.limit, 0)]:
        print(f"\nid:      {example.id}\ninputs:  {example.inputs}\ntargets: {example.targets}")
        if example.choices:
            print(f"choices: {', '.join(example.choices)}")
    if args.model:
        print(f"\n{_length_table(args, reading.examples)}")
    return 0


def _task_list() -> str:
    from softprompt.tasks import TASKS

    rows = [["task", "labels", "metrics"]]
    for name, task in TASKS.items():
        labels = ", ".join(task.labels) if task.labels else "free text"
        rows.append(
            [name, labels if len(labels) <= 48 else f"{len(task.labels or ())} labels", ", ".join(_metrics_of(task))]
        )
    return f"{_table(rows)}\n\nsoftprompt tasks T --data DIR shows a task's examples as the model will read them"


def _metrics_of(task: Any) -> list[str]:
    """The names of a task's metrics, seen from scoring one right answer."""
    from softprompt.tasks import Example

    answer = task.labels[0] if task.labels else "0"
    example = Example(inputs="-", targets=answer, id="0", references=(answer,))
    return list(task.metrics([answer], [example]))


def _task_head(task: Any, split: str, reading: Any) -> str:
    from collections import Counter

    share = f" ({reading.share:.1%} of them)" if reading.share not in (None, 1) else ""
    lines = [f"{task.name} {split}: {reading.note}{share}", f"metrics: {', '.join(_metrics_of(task))}"]
    if task.labels:
        counts = Counter(example.targets for example in reading.examples)
        lines.append("labels: " + ", ".join(f"{label} ({counts[label]:,})" for label in task.labels))
    return "\n".join(lines)


def _length_table(args: argparse.Namespace, examples: Sequence[Any]) -> str:
    from softprompt.backbone import load
    from softprompt.preview import token_lengths

    _say_if_slow(args.model)
    lm = load(args.model)
    limit = getattr(args, "max_input_length", 512)
    found = token_lengths(examples, lm, max_input_length=limit)
    rows = [["tokens", "min", "median", "95 %", "max"]]
    for name, lengths in (("inputs", found.inputs), ("targets", found.targets)):
        if lengths is not None:
            rows.append([name, *(f"{n:,}" for n in (lengths.min, lengths.median, lengths.p95, lengths.max))])
    cut = f"{found.num_cut:,} of {_counted(len(examples), 'input')} longer than {limit:,} tokens, and so cut"
    return f"{_table(rows)}\n{cut}"


COMMANDS: dict[str, tuple[Callable[..., None], Callable[..., int], str, str, tuple[str, ...]]] = {
    "train": (
        _add_train,
        _train,
        "train prompts on a task",
        "Train soft prompts for a frozen model. Part of the training file is held out and chooses the best step (and "
        "the setting, where several are given); the official dev set is scored once, at the end. Several seeds, tasks "
        "and settings train together over one copy of the model.",
        (
            "softprompt train --model smollm2-135m --task glue/sst2 --data DATA --out runs/sst2 --minutes 20",
            "softprompt train --model google/t5-base-lm-adapt --task superglue/boolq --preset paper --out runs/boolq",
            "softprompt train --model smollm2-135m --task cb,wic --data DATA --seeds 0,1,2 --out runs/two",
            "softprompt train --model smollm2-135m --data train=a.jsonl dev=b.jsonl --inputs 'message: {text}' \\",
            "    --targets '{label}' --labels question,complaint --out runs/mine",
            "softprompt train --config recipe.yaml --estimate",
        ),
    ),
    "eval": (
        _add_eval,
        _eval,
        "score prompts on a split",
        "Score saved prompts, each alone and, with --ensemble, by their vote, all in one pass over the frozen model. "
        "The model is checked by its fingerprint, not by its name.",
        (
            "softprompt eval --prompt runs/sst2 --data DATA",
            "softprompt eval --prompt runs/sst2/* --ensemble --data DATA --rows results.jsonl",
            "softprompt eval --prompt runs/rte --task superglue/axg --split test --data DATA",
        ),
    ),
    "predict": (
        _add_predict,
        _predict,
        "answer lines or records",
        "Answer inputs with a saved prompt, or by the vote of several. A line in braces is a JSON record, cast by the "
        "prompt's task; any other line is a finished input. One JSON line comes out for each, in order, with the "
        "record's own columns; a row that cannot be answered gets a line with its error.",
        (
            "echo 'sentence: a warm and funny film' | softprompt predict --prompt runs/sst2 --scores",
            "softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl",
            "softprompt predict --prompt runs/mine --input messages.csv --output answers.jsonl --resume",
        ),
    ),
    "convert": (
        _add_convert,
        _convert,
        "read and write other programs' prompts",
        "Convert a prompt between T5X (.npy), PEFT (a folder, this program's own form) and TGIS (a folder), bit for "
        "bit. Only PEFT's form keeps the card with task, labels and text format.",
        (
            "softprompt convert prompt.npy --from t5x --to peft --model google/t5-base-lm-adapt --out prompts/sst2",
            "softprompt convert runs/sst2 --to tgis --out tgis/sst2",
        ),
    ),
    "tasks": (
        _add_tasks,
        _tasks,
        "list tasks, or show one's examples",
        "List the tasks there are; or show a task's examples as the model will read them, how many of the official "
        "examples were found and, with --model, their lengths in tokens and how many the length limit cuts.",
        (
            "softprompt tasks",
            "softprompt tasks superglue/boolq --data DATA --model smollm2-135m",
            "softprompt tasks --inputs '{question}' --targets '{answer}' --data train=mine.csv",
        ),
    ),
}


if __name__ == "__main__":
    sys.exit(main())
