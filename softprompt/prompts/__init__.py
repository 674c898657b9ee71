"""The soft prompt, [p, d]: its first values, its folder with the card, the hub, other programs' formats, export.

A prompt is an array on the scale of the embedded input; `prepend` puts it there.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.prompts.card import CARD, CONFIG, README, WEIGHTS, Card
    from softprompt.prompts.export import export_vocabulary
    from softprompt.prompts.folder import STAGING, load_prompt, save_prompt
    from softprompt.prompts.formats import convert, detect_kind, read_prompt
    from softprompt.prompts.gguf_file import export_gguf
    from softprompt.prompts.hub import check_push, local_folder
    from softprompt.prompts.initial import MAX_LENGTH, from_ids, from_uniform, initial_prompt
    from softprompt.prompts.prompt import SoftPrompt, check_fits, check_passed, check_runs, prepend, stack

__getattr__, __all__ = face(__name__)
