"""What a prompt's card says beside its numbers, and what an adapter folder's JSON files hold."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any

from softprompt.base.checked import as_json, checked
from softprompt.models import TextFormat

WEIGHTS, CONFIG, CARD, README = (  # a prompt's files
    "adapter_model.safetensors",
    "adapter_config.json",
    "softprompt.json",
    "README.md",
)
OptionalText: Any = str | None
FORMAT_VERSION = 2  # of softprompt.json; raised when a reader of the old one would go wrong


def _installed_version() -> str:
    try:
        return metadata.version("softprompt")
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything beside the numbers that makes a prompt usable for ever.

    `model_fingerprint` is None for a prompt that came from elsewhere without a card: then only its
    width can be checked. `num_layers` and `num_heads` are the model's, for PEFT. `text` is the text
    format (template, separator, leading space, end of sequence, lengths, truncation); `init` says
    how the prompt began (kind, seed, and for every row the tokens it was made of); `recipe` is the
    preset and its numbers; `parent` the sha256 of the values it started from. `values_sha256` is
    that of the prompt as it was saved; None for one that was not, or before 0.3.0. What of it changes
    answers belongs to `SoftPrompt.identity`.
    """

    model_name: str | None
    model_fingerprint: str | None
    is_encoder_decoder: bool
    width: int
    num_layers: int | None = None
    num_heads: int | None = None
    task: str | None = None
    task_version: str | None = None
    labels: tuple[str, ...] = ()
    text: dict[str, Any] = field(default_factory=dict)
    init: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    selection: str | None = None
    dev_metrics: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    seed: int | None = None
    parent: str | None = None
    values_sha256: str | None = field(default=None, compare=False)
    softprompt_version: str = field(default_factory=_installed_version)
    format_version: int = FORMAT_VERSION

    @property
    def metric(self) -> str | None:
        """What a task of one's own file is scored by; None for what `file_task` takes by itself."""
        scored = next(iter(self.dev_metrics), None)
        metric = self.recipe.get("metric") or {"macro_f1": "f1", "rouge1": "rouge"}.get(str(scored), scored)
        return None if metric == ("accuracy" if self.labels else "em") else metric

    def to_json(self) -> str:
        """The card as JSON text that `from_json` reads back to an equal card."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Card:
        """The card that `to_json` wrote.

        Raises:
            ValueError: not JSON, a newer format, a key this version does not know, a missing key,
                or a value of the wrong type, in the text format too.
        """
        record = parse_object(text, "a prompt's card")
        version = record.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ValueError(
                f"the card has format {version} (softprompt {record.get('softprompt_version')}) and this "
                f"softprompt reads formats up to {FORMAT_VERSION}; upgrade softprompt"
            )
        card = checked(Card, record, "the card", noun="key")
        TextFormat.from_json(card.text)
        for name in ("metric", "group_by", "scoring", "quantize"):  # what is read from it in use
            checked(OptionalText, card.recipe.get(name), f"the card: recipe.{name}")
        return card


def parse_object(text: str, what: str) -> dict[str, Any]:
    """The object that a JSON text holds. ValueError, naming it as `what`, for any other, and for half a character."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of too many digits
        raise ValueError(f"{what} is not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{what} is a JSON {type(record).__name__}; wanted an object")
    as_json(record, what)
    return record
