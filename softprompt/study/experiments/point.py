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
    is_optional: bool = False
    """Whether a model without that folder goes without the point."""
    also: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Other tasks to score on, each with what the labels are called there; with a method."""
    method: str | None = None
    """A method of `softprompt compare`, with its own trials; None: prompts, all points and seeds together."""
