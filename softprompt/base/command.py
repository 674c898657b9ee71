"""A command's shape: its flags, what it runs, and what --help says of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the command line."""

    add_flags: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    """Does the work and prints; its exit code."""
    text: str
    """What --help says."""
    examples: tuple[str, ...]
