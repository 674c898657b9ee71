"""Names that people type: the nearest of those there are, and what an error says first."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(wanted: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name nearest to the one wanted, or nothing."""
    found = get_close_matches(wanted, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def first_line(error: Exception) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
