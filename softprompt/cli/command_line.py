"""The command line: which command was asked for, and one line for whatever is wrong with it.

Nothing heavy is imported before a command is chosen, so that `--help` comes at once.
"""

import argparse
import atexit
import contextlib
import gc
import io
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

from softprompt.base.names import nearest
from softprompt.base.terminal import one_line, say, writing
from softprompt.cli.commands import COMMANDS

SIGNALLED = 128  # the shells' exit code for a signal is this and its number
BROKEN_PIPE = 141  # so it is where a reader has gone, as `head` does: SIGPIPE
AT_ONCE_S = 1.0  # ours: a second Ctrl-C sooner is the first one, sent by terminal and torchrun both
BAD_INPUT = 2  # argparse's exit code for what the user must mend


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, 2 for bad input, 130 after Ctrl-C, 143 where the system ended it (SIGTERM).

    arguments: of the process, unless given; then signals are the caller's business.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    stopped: list[int] = [] if arguments is not None else _stop_on_signals()
    atexit.register(gc.freeze)  # Python's end would look for cycles among a million objects that are to go anyway
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() not in ("utf-8", "utf8"):
        sys.stdout.reconfigure(encoding="utf-8")  # where the system writes to pipes in an alphabet of its own
    with _notes_for_warnings():
        name = "softprompt"
        try:
            args = _parsed(words)
            name = f"softprompt {args.command}"
            code = args.run(args)
            with writing("standard output"):
                sys.stdout.flush()
            return code
        except SystemExit as end:  # argparse ends so after --help and after its own messages
            return int(end.code or 0)
        except KeyboardInterrupt as stop:
            say(f"{name}: {str(stop) or 'stopped'}")
            return SIGNALLED + (stopped or [signal.SIGINT])[0]
        except BrokenPipeError:
            _leave_stdout()
            return BROKEN_PIPE
        except (ValueError, OSError) as error:
            if os.environ.get("SOFTPROMPT_DEBUG"):
                raise
            say(f"{name}: {one_line(error)}")
            try:
                sys.stdout.flush()
            except OSError:
                _leave_stdout()
            return BAD_INPUT


def _stop_on_signals() -> list[int]:
    """Let SIGTERM stop this process as Ctrl-C does, and a second Ctrl-C end it at once. The list gets the first signal.

    What is ignored, as Ctrl-C is in a shell's background jobs, stays ignored.
    """
    stopped: list[int] = []
    since = time.monotonic()

    def stop(number: int, _: Any) -> None:
        nonlocal since
        if not stopped:
            stopped.append(number)
            since = time.monotonic()
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - since > AT_ONCE_S:
            os.write(2, b"\nsoftprompt: stopped at once\n")
            os._exit(SIGNALLED + number)

    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == usual:
            signal.signal(number, stop)
    return stopped


def _leave_stdout() -> None:
    """Let nothing be written to standard output any more, by Python's end least of all."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _notes_for_warnings() -> Iterator[None]:
    """What the library warns about as one line each; other libraries' warnings are not the user's business."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"note: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", category=UserWarning, module="softprompt|__main__")
        warnings.showwarning = show
        yield


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong, not the whole usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore
        """Refuse the first unknown word, with the nearest flag."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = nearest(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unknown argument {unknown[0]!r}{near}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Print the message with where to read on, and exit."""
        self.exit(BAD_INPUT, f"{self.prog}: {message}; see {self.prog} --help\n")


class _Formatter(argparse.HelpFormatter):
    """The description filled to the terminal's width, the examples as they stand."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The command's own flags are added, and its file imported, only where it is the one that was asked for."""
    parser = _Parser(
        prog="softprompt",
        description="Teach one frozen language model many tasks by prompt tuning (Lester et al., 2021).",
        epilog="softprompt COMMAND --help shows a command's flags and examples.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    if words[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"softprompt {version('softprompt')}")
        parser.exit()
    asked = next((word for word in words if not word.startswith("-")), None)
    if asked not in COMMANDS and words[:1] == [asked]:
        hint = nearest(words[0], COMMANDS) or f"; there are {', '.join(COMMANDS)}"
        parser.exit(BAD_INPUT, f"softprompt: no command named {words[0]!r}{hint}\n")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, summary) in COMMANDS.items():
        if name != asked:
            commands.add_parser(name, help=summary)
            continue
        command = import_module(module)
        text, _, examples = (command.__doc__ or "").partition("\n\nexamples:")
        flags = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=f"examples:{examples.rstrip()}",
            formatter_class=_Formatter,
            allow_abbrev=False,
        )
        command.add_flags(flags)
        flags.set_defaults(run=command.run)
    return parser.parse_args(words)
