"""Answers of a model that wears prompts: the engine, the running batch and decoding, scoring and its result rows,
files of records, and what a prompt looks like.

Training and serving both answer with it.
"""

from typing import TYPE_CHECKING

from softprompt.base.faces import face

if TYPE_CHECKING:
    from softprompt.answering.answer_file import Written, to_line
    from softprompt.answering.confusion import Confusion, added, by_label, commonest
    from softprompt.answering.decoding import (
        MAX_BEAMS,
        MAX_STOPS,
        Beams,
        Decoding,
        Draw,
        TextStream,
        Writer,
        alternatives,
        choose,
        uniforms,
    )
    from softprompt.answering.engine import (
        MAX_TOKENS,
        Engine,
        Prediction,
        is_out_of_memory,
        lacking_memory,
        mean_probabilities,
        most_tokens,
    )
    from softprompt.answering.evaluation import (
        Evaluation,
        best,
        can_rank,
        candidates_of,
        check_can_rank,
        check_scoring,
        ensemble,
        evaluate,
        judge,
        predict,
        right_answers,
        vote,
    )
    from softprompt.answering.inspection import NUM_NEAREST, ablate, inspect_prompt, nearest_tokens, neighbourhood
    from softprompt.answering.invariance import batch_invariant_rows
    from softprompt.answering.prediction import CHUNK, predict_file, predict_files, predict_records, read_parts
    from softprompt.answering.rows import (
        Result,
        append_rows,
        device_name,
        model_of_row,
        read_rows,
        surroundings,
        versions,
        write_rows,
    )
    from softprompt.answering.running import Projection, RunningBatch, Slot, Start, embedded
    from softprompt.answering.saved import (
        form_of,
        load_for,
        open_named,
        open_prompts,
        shared_scoring,
        shared_tasks,
        tell_quantization,
    )
    from softprompt.answering.scores import evaluate_prompts

__getattr__, __all__ = face(__name__)
