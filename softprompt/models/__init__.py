"""The frozen model: where it comes from, its tokenizer, text to ids and batches, and `FrozenLM`, which embeds,
runs, scores and decodes.

T5's changed layers and the keys and values of prompts and rows are here too. Nothing here knows how a prompt is
trained.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.models.backbone import NO_PROMPT, T5_TYPES, scales_outputs
    from softprompt.models.loading import (
        SMOLLM2,
        FrozenLM,
        cache_folder,
        choose_device,
        choose_dtype,
        dequantised_folder,
        is_encoder_decoder,
        is_hub_id,
        keep_freed_memory,
        load,
        quiet,
        read_architecture,
        read_checkpoint,
        resolve,
        write_checkpoint,
    )
    from softprompt.models.shapes import SIZES, Architecture, Shape, shape_of
    from softprompt.models.states import Embedded, Layout, PromptStates, RowStates
    from softprompt.models.steps import begin_rows, step_rows
    from softprompt.models.text import (
        SEPARATOR,
        Row,
        TextFormat,
        check_labels,
        check_length,
        collate,
        default_format,
        encode_all_inputs,
        encode_examples,
        encode_inputs,
        encode_target,
        lost_part,
        micro_batches,
        pad,
        pad_candidates,
        read_text,
        room_for,
        shared_start,
        target_lengths,
    )
    from softprompt.models.tokenizer import Rendered, Tokenizer, load_tokenizer, of_backend

__getattr__, __all__ = face(__name__)
