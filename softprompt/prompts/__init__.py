"""The soft prompt, [p, d]: its first values, its folder on disk with the card, other programs' formats, and export.

A prompt is an array on the scale of the embedded input; `prepend` puts it there.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.prompts.export import export_vocabulary
    from softprompt.prompts.formats import convert, detect_kind, read_prompt
    from softprompt.prompts.prompt import (
        CARD,
        CONFIG,
        README,
        WEIGHTS,
        Card,
        SoftPrompt,
        check_fits,
        from_uniform,
        initial_prompt,
        load_prompt,
        prepend,
        save_prompt,
        stack,
    )

__getattr__, __all__ = face(
    __name__,
    {
        "export": ("export_vocabulary",),
        "formats": ("convert", "detect_kind", "read_prompt"),
        "prompt": (
            "CARD",
            "CONFIG",
            "Card",
            "README",
            "SoftPrompt",
            "WEIGHTS",
            "check_fits",
            "from_uniform",
            "initial_prompt",
            "load_prompt",
            "prepend",
            "save_prompt",
            "stack",
        ),
    },
)
