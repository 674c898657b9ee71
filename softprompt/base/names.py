"""Names that people type: the one that is meant, the nearest of those there are, and what an error says first."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

LONGEST, MOST = 100, 1_000  # ours: characters of a name that others are compared with, and how many are


def normal(text: str) -> str:
    """The form in which texts that look the same are the same: NFKC, without spaces at the ends.

    'é' is one letter however it was typed, a full-width digit a digit, a no-break space a space.
    """
    return text.strip() if text.isascii() else unicodedata.normalize("NFKC", text).strip()


def known_as(wanted: str, known: Collection[str]) -> str | None:
    """The known name that is the one wanted, or else the only one that looks the same; None where there is none."""
    if wanted in known:
        return wanted
    alike = [name for name in known if normal(name) == normal(wanted)]
    return alike[0] if len(alike) == 1 else None


def nearest(wanted: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the known name nearest to the one wanted, or nothing.

    Letters of an alphabet that the other has none of may look like its own, so they are shown as escapes.
    """
    found = get_close_matches(wanted, list(islice(known, MOST)), n=1) if len(wanted) <= LONGEST else []
    if not found:
        return ""
    shown, own = _without_look_alikes(found[0], wanted), _without_look_alikes(wanted, found[0])
    return f"; did you mean '{shown}'?" + (f" yours is '{own}'" if own != wanted else "")


def _without_look_alikes(text: str, other: str) -> str:
    def kinds(characters: str) -> set[str]:
        """The first words of their names: LATIN, CYRILLIC, COMBINING, ZERO (WIDTH SPACE)."""
        return {unicodedata.name(character, "?").split()[0] for character in characters}

    shown = ""
    for character in text:
        is_strange = not character.isascii() and not kinds(character) <= kinds(other)
        shown += ascii(character)[1:-1] if is_strange else character
    return shown


def hub_place(place: str | Path) -> str | None:
    """A place on the hub, hf://…, as it was given, though a Path makes one slash of two; None for any other place."""
    text = str(place)
    return f"hf://{text[4:].lstrip('/')}" if text.startswith("hf:/") else None


def first_line(error: BaseException) -> str:
    """What an error says first, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
