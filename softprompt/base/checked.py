"""What was read from disk or wire, checked against its declaration, with one line for whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from softprompt.base.names import nearest

T = TypeVar("T")

# What a value must be, by the kind of pydantic's error; the others are said in pydantic's own words.
WANTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "names with their values",
    "dataclass_type": "names with their values",
    "model_type": "names with their values",
    "model_attributes_type": "names with their values",
    "greater_than_equal": "{ge} or more",
    "greater_than": "above {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "below {lt}",
    "literal_error": "{expected}",
    "string_too_long": "text of {max_length} characters or fewer",
    "string_unicode": "text of whole characters",
    "string_too_short": "text of {min_length} characters or more",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length} or fewer",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "string_pattern_mismatch": "text that matches {pattern}",
    "finite_number": "a number that is finite",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
MAX_SHOWN = 80  # ours: characters of a wrong value in a message


def checked(kind: Callable[..., T], data: Any, where: str, *, noun: str = "field") -> T:
    """`data`, as JSON or YAML has it, as the dataclass, model or other type that declares it.

    Types are strict, as in JSON: "3" is no number, 1 is not true, but a list may become a tuple or a set, and a whole
    number a float. Constraints stand in the declaration: `Annotated[int, Ge(8)]`. A ValueError that its
    `__post_init__` or a validator of a field raises is passed on in its own words, without the value.

    Raises:
        ValueError: in one line that begins with `where` (the file, or what it is): an unknown name, with the nearest
            there is, a missing one, or a value with what it must be. noun: what messages call a name.
    """
    text = as_json(data, where)
    adapter = _adapter(kind)
    try:
        return adapter.validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        wrong: list[Any] = list(error.errors(include_url=False))
    if wrong[0]["type"] == "json_invalid":
        raise ValueError(f"{where} is nested too deeply ({wrong[0]['ctx']['error']})")
    # An unknown name first: it is often what is missing under another.
    first = next((one for one in wrong if one["type"] in UNKNOWN), wrong[0])
    path = path_of(first["loc"], data)
    if first["type"] in UNKNOWN:
        schema = adapter.json_schema()
        parts = [schema, *schema.get("$defs", {}).values()]
        known = [name for part in parts for name in part.get("properties", {})]
        raise ValueError(f"{where} has the unknown {noun} {path!r}{nearest(str(first['loc'][-1]), known)}")
    if first["type"] in MISSING:
        raise ValueError(f"{where} lacks the {noun} {_joined(first['loc'])!r}")
    if first["type"] == "value_error":
        raise ValueError(f"{where}: {path}{': ' if path else ''}{first['ctx']['error']}")
    subject = f"{where}: {path}" if path else where
    raise ValueError(f"{subject} is {repr(first['input'])[:MAX_SHOWN]}, but must be {wanted_at(path, wrong, data)}")


def as_json(data: Any, where: str) -> bytes:
    """The data as JSON. ValueError that begins with `where` for half a character, and for what is nested too deeply."""
    try:
        return json.dumps(data, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        before, half = error.object[max(0, error.start - 30) : error.start], error.object[error.start]
        raise ValueError(f"{where} holds {half!r}, half a character, behind {before!r}; write whole ones") from None
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{where} is nested too deeply, or in itself") from error


def wanted_at(path: str, wrong: Sequence[Any], data: Any) -> str:
    """What the value there must be, by all of pydantic's errors: each type of a union has one of its own."""
    return " or ".join(dict.fromkeys(_wanted(one) for one in wrong if path_of(one["loc"], data) == path))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _wanted(error: Any) -> str:
    limits = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in error.get("ctx", {}).items()}
    words = WANTED.get(error["type"])
    return words.format(**limits) if words else error["msg"].removeprefix("Input should be ")


def path_of(steps: Sequence[str | int], data: Any) -> str:
    """Where an error lies in the data; among the steps is the name of a type where the type is a union."""
    there = []
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            continue
        there.append(step)
    return _joined(there)


def _joined(steps: Sequence[str | int]) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
