"""A folder's face: the names that others may use, each imported when it is first asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def face(folder: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], list[str]]:
    """What a folder's `__init__` needs as `__getattr__` and `__all__`. names: for each of its modules, those it offers.

    So that importing a folder costs nothing, and a name only what it needs itself.
    """
    module_of = {name: module for module, offered in names.items() for name in offered}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {folder!r} has no attribute {name!r}")
        value = getattr(import_module(f"{folder}.{module_of[name]}"), name)
        setattr(sys.modules[folder], name, value)
        return value

    return get, sorted(module_of)
