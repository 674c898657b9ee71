"""A folder's face: the names that others may use, each imported when it is first asked for."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def face(folder: str) -> tuple[Callable[[str], Any], list[str]]:
    """What a folder's `__init__` needs as `__getattr__` and `__all__`: the names that it imports under TYPE_CHECKING.

    So that importing a folder costs nothing, a name only what it needs itself, and each name stands once.
    """
    source = Path(str(sys.modules[folder].__file__)).read_text(encoding="utf-8")
    module_of: dict[str, str] = {}
    for block in ast.parse(source).body:
        for line in block.body if isinstance(block, ast.If) else ():
            assert isinstance(line, ast.ImportFrom) and line.module, "a face imports names"
            module_of |= dict.fromkeys((alias.name for alias in line.names), line.module)

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {folder!r} has no attribute {name!r}")
        value = getattr(import_module(module_of[name]), name)
        setattr(sys.modules[folder], name, value)
        return value

    return get, sorted(module_of)
