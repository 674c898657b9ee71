"""A point of a figure, or a column of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Point:
    """One thing that is measured."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of RunConfig."""
    inside: str = ""
    """The frozen model's folder inside the one asked about; '' for that one itself. A * takes each folder there is."""
