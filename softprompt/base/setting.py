"""One declaration of a setting: what it is and what it may be stands once, at the field of a dataclass.

    steps: int | None = setting("optimizer steps", shown="the preset's", at_least=1)

From it come the dataclass's check, the flag with its help, and how an entry of a YAML file is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from softprompt.base.names import nearest


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a setting is, and what it may be."""

    help: str
    kind: Callable[[str], Any] = str
    """bool, int, float, str or Path; or a function of text that raises ValueError."""
    form: str = ""
    """What such a function takes, in words."""
    is_list: bool = False
    """Several values, with commas between."""
    default: Any = None
    shown: str = ""
    """The default as the help has it, where that is not its own text."""
    choices: tuple[str, ...] = ()
    at_least: int | None = None
    above: int | None = None
    metavar: str = ""
    title: str = ""
    """What the help calls the group of settings that it belongs to."""

    @property
    def wanted(self) -> str:
        """What may be given, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "true or false"
        form = {int: "whole number", float: "number"}.get(self.kind, self.form or "text")
        if self.is_list:
            return f"{form}s with commas between"
        return f"a {form}" if self.kind in (int, float) else form

    def read(self, value: Any) -> Any:
        """The setting's value, of a word on the command line or of an entry in a YAML file.

        ValueError says what was wanted, and what came.
        """
        with suppress(ValueError):
            words = value if self.is_list and isinstance(value, list) else [value]
            if any(isinstance(word, list | dict) for word in words):
                raise ValueError
            if self.is_list:
                words = value if isinstance(value, list) else str(value).split(",")
                return tuple(self.kind(str(word).strip()) for word in words)
            if self.kind is bool and isinstance(value, bool):
                return value
            if self.choices and value in self.choices:
                return value
            if self.kind is not bool and not self.choices:
                return self.kind(str(value))
        raise ValueError(f"wanted {self.wanted}, got {value!r}")


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def size(text: str) -> int:
    """'80KB' or '4G' in bytes. ValueError for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)(?:iB|B)?", text.strip())
    if not found or (count := int(float(found[1]) * UNITS[found[2]])) < 1:
        raise ValueError
    return count


def setting(help: str, default: Any = None, **declared: Any) -> Any:
    """A dataclass's field that is a setting of the field's type. declared: what `Setting` has besides."""
    return field(default=default, metadata={"setting": Setting(help=help, default=default, **declared)})


@cache
def settings_of(config: type) -> dict[str, Setting]:
    """The settings of a dataclass by name, in its order; one without a title has that of the one before."""
    settings: dict[str, Setting] = {}
    hints, title = get_type_hints(config), ""
    for entry in fields(config):
        if declared := entry.metadata.get("setting"):
            title = declared.title or title
            kind, is_list = _kind_of(hints[entry.name])
            kind = kind if declared.kind is str else declared.kind
            settings[entry.name] = replace(declared, kind=kind, is_list=is_list, title=title)
    return settings


def _kind_of(hint: Any) -> tuple[Any, bool]:
    """A field's type without None and tuple, and whether it is a tuple."""
    given = [part for part in get_args(hint) if part is not NoneType] if isinstance(hint, UnionType) else [hint]
    is_list = get_origin(given[0]) is tuple
    return (get_args(given[0])[0] if is_list else given[0]), is_list


def check(config: Any) -> None:
    """ValueError for a value of a dataclass that its setting does not allow; None is none."""
    for name, setting in settings_of(type(config)).items():
        value: Any = getattr(config, name)
        if value is None:
            continue
        if setting.is_list and not isinstance(value, tuple):
            wanted = tuple(value) if isinstance(value, list) else (value,)
            raise ValueError(f"{name} is {value!r}, but must be a tuple; give {wanted!r}")
        values: tuple[Any, ...] = value if setting.is_list else (value,)
        for one in values:
            if setting.choices and one not in setting.choices:
                near, known = nearest(str(one), setting.choices), ", ".join(setting.choices)
                raise ValueError(f"no {name} is named {one!r}{near}; there are {known}")
            if setting.kind in (int, float) and not isinstance(one, int | float):
                raise ValueError(f"{name} is {one!r}, but must be a {'whole ' if setting.kind is int else ''}number")
            if setting.at_least is not None and one < setting.at_least:
                raise ValueError(f"{name} is {one}, but must be {setting.at_least} or more")
            if setting.above is not None and not one > setting.above:
                raise ValueError(f"{name} is {one}, but must be above {setting.above}")
