"""Text with a record's values in it: "question: {question}", "{data.text}", "{messages[0][content]}", "{input?}"."""

import re
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, TypeGuard

from softprompt.tasks.task import column, text_of

_PATH = re.compile(r"([^.\[\]]+)((?:\.[^.\[\]]+|\[[^\[\]]+\])+)")
_STEP = re.compile(r"[^.\[\]]+")


class Template:
    """Text with columns' names in braces: one with ? behind it may be missing or empty, one with dots or brackets is
    a part of a column that holds objects or lists.

    A column that holds the turns of a chat gives in the inputs all of them but the assistant's last, in the targets
    that one.
    """

    def __init__(self, text: str, role: str) -> None:
        """role: inputs or targets. Raises ValueError, with it in it, for a template without columns or of another
        form.
        """
        try:
            pieces = list(Formatter().parse(text))
        except ValueError as error:
            raise ValueError(f"the {role} template '{text}' has unmatched braces (double one to mean it)") from error
        if any(format_spec or conversion for _, _, format_spec, conversion in pieces):
            raise ValueError(f"the {role} template '{text}' may hold only {{column}} in its braces")
        self.pieces = [(literal, name) for literal, name, _, _ in pieces]
        self.role = role
        self.columns: dict[str, bool] = {}
        """Those named, and whether each must be there."""
        for _, name in self.pieces:
            if name is not None:
                self.columns[name.removesuffix("?")] = not name.endswith("?")
        if not any(self.columns) or "" in self.columns:
            raise ValueError(f"the {role} template '{text}' names no column; write one as {{column}}")

    def fill(self, record: Mapping[str, Any]) -> str:
        """The text with the record's values, and no spaces at its ends where one was left out.

        Raises ValueError if a column is missing that must be there, or all are empty.
        """
        texts = self.texts(record)
        if not any(text.strip() for text in texts.values()):
            raise ValueError(f"the {self.role.removesuffix('s')} is empty: no text in {', '.join(texts)}")
        filled = ""
        for literal, name in self.pieces:
            filled += literal + ("" if name is None else texts[name.removesuffix("?")])
        is_whole = all(texts[name] or is_needed for name, is_needed in self.columns.items())
        return filled if is_whole else filled.strip()

    def texts(self, record: Mapping[str, Any]) -> dict[str, str]:
        """Each column's text. Raises ValueError if one is missing that must be there, or is no text."""
        texts = {}
        for name, is_needed in self.columns.items():
            try:
                value = value_of(record, name)
            except ValueError:
                if is_needed:
                    raise
                value = record.get(f"{name}?")  # a question mark may be the column's own
            if _are_turns(value):
                value = asked_of(value) if self.role == "inputs" else answer_of(value)
            texts[name] = "" if value is None else text_of(value, name)
        return texts


def value_of(record: Mapping[str, Any], name: str) -> Any:
    """A column's value, or that of a part of one; None where what it is a part of is None. ValueError if it is not
    there.
    """
    path = _PATH.fullmatch(name)
    if path is None or name in record:
        return column(record, name)
    seen, steps = path[1], _STEP.findall(path[2])
    value = column(record, seen)
    for step in steps:
        if value is None:
            return None
        if isinstance(value, Mapping):
            try:
                value = column(value, step)
            except ValueError as error:
                raise ValueError(f"in column '{seen}': {error}") from error
        elif isinstance(value, list) and re.fullmatch(r"-?\d{1,9}", step):
            if not -len(value) <= int(step) < len(value):
                raise ValueError(f"column '{seen}' is a list of {len(value)}, so there is no '{name}'")
            value = value[int(step)]
        else:
            raise ValueError(f"column '{seen}' is no list and no object, so there is no '{name}'")
        seen = f"{seen}[{step}]"
    return value


def _are_turns(value: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether a value is the turns of a chat."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and "content" in turn for turn in value)


def asked_of(turns: Sequence[Mapping[str, Any]]) -> str:
    """What the assistant's last turn answers: what stands before it, with each turn's role unless it is one of the
    user's alone.
    """
    before = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    texts = [(turn["role"], text_of(turn["content"], "content")) for turn in before]
    if [role for role, _ in texts] == ["user"]:
        return texts[0][1]
    return "\n".join(f"{role}: {text}" for role, text in texts)


def answer_of(turns: Sequence[Mapping[str, Any]]) -> str | None:
    """The assistant's last turn; None where the chat does not end with one."""
    return text_of(turns[-1]["content"], "content") if turns[-1]["role"] == "assistant" else None
