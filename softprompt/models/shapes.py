"""T5 1.1 shapes, from those that train on a laptop to the paper's, and how large a model is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from softprompt.base.names import nearest


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a T5 1.1 is built of: gated GELU, untied output layer, no dropout while it is pre-trained."""

    d_model: int
    d_ff: int
    num_heads: int
    d_kv: int = 64
    num_layers: int
    num_decoder_layers: int

    @property
    def num_parameters(self) -> int:
        """Parameters besides the two tables of the vocabulary."""
        inner = self.num_heads * self.d_kv
        attention, feed_forward = 4 * self.d_model * inner, 3 * self.d_model * self.d_ff
        norms = (2 * self.num_layers + 3 * self.num_decoder_layers + 2) * self.d_model
        biases = 2 * 32 * self.num_heads
        encoder = self.num_layers * (attention + feed_forward)
        decoder = self.num_decoder_layers * (2 * attention + feed_forward)
        return encoder + decoder + norms + biases


SIZES = {
    # Ours: about 4 times apart, more encoder than decoder, since answers are short.
    "micro": Shape(d_model=128, d_ff=256, num_heads=2, num_layers=2, num_decoder_layers=1),
    "tiny": Shape(d_model=192, d_ff=512, num_heads=3, num_layers=3, num_decoder_layers=2),
    "mini": Shape(d_model=256, d_ff=1024, num_heads=4, num_layers=6, num_decoder_layers=3),
    # T5 1.1 (released_checkpoints.md of google-research/text-to-text-transfer-transformer).
    "small": Shape(d_model=512, d_ff=1024, num_heads=6, num_layers=8, num_decoder_layers=8),
    "base": Shape(d_model=768, d_ff=2048, num_heads=12, num_layers=12, num_decoder_layers=12),
    "large": Shape(d_model=1024, d_ff=2816, num_heads=16, num_layers=24, num_decoder_layers=24),
    "xl": Shape(d_model=2048, d_ff=5120, num_heads=32, num_layers=24, num_decoder_layers=24),
    "xxl": Shape(d_model=4096, d_ff=10240, num_heads=64, num_layers=24, num_decoder_layers=24),
}


@dataclass(frozen=True)
class Architecture:
    """How large a model is, whatever its kind."""

    name: str
    width: int
    num_layers: int
    """Of encoder and decoder together."""
    num_parameters: int
    """The tables of the vocabulary included."""
    states: tuple[int, int, int] | None = None
    """Layers (of the decoder, in an encoder-decoder), heads of their keys, width of each; None for a shape alone."""

    @classmethod
    def of_shape(cls, name: str, shape: Shape, vocabulary: int) -> Architecture:
        """A T5 1.1's, with two tables of `vocabulary` rows."""
        layers = shape.num_layers + shape.num_decoder_layers
        return cls(name, shape.d_model, layers, shape.num_parameters + 2 * vocabulary * shape.d_model)


def shape_of(size: str) -> Shape:
    """The shape of that name, or of a JSON file with a shape's fields. ValueError for neither."""
    if size in SIZES:
        return SIZES[size]
    path = Path(size)
    if path.suffix != ".json":
        raise ValueError(f"no size named {size!r}{nearest(size, SIZES)}; there are {', '.join(SIZES)}, or a JSON file")
    try:
        return Shape(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ValueError(f"no file {path}; give a JSON file with {', '.join(Shape.__annotations__)}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no shape ({error}); wanted {', '.join(Shape.__annotations__)}") from None
