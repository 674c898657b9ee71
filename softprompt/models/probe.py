"""Whether a type of model can do what softprompt asks of it, found out on a tiny random copy of its configuration.

Models differ in code that no field of a configuration tells of: some have windows or masks of their own, some read ids
beside embeddings, some hand nothing on to their attention. So the copy, with one layer of each kind and small windows,
is run as softprompt runs a model, and must give what transformers gives for each row alone. What was found is kept in
the cache, by everything it depends on.

Shapes: t tokens of x, l tokens of a target, d width, v vocabulary.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.base.files import write_whole
from softprompt.base.names import first_line
from softprompt.models.backbone import NO_PROMPT, Backbone, reason_against, refusal
from softprompt.models.states import Embedded, RowStates
from softprompt.models.steps import begin_rows, step_rows
from softprompt.models.tokenizer import of_backend

TOLERANCE = 1e-3  # ours: of a log-probability; float32 rounds these models by 1e-5, and what is wrong is off by 1e-2
MOST_PARAMETERS = 100_000_000  # ours: of a copy that is not narrowed, built in a few seconds
WINDOW = 5  # less than a prompt and an input of the probe
PROMPT_LENGTHS = (3, 7)
INPUTS = ((130, 1), (4, NO_PROMPT), (9, 0))
"""Length of each row, and the prompt it wears."""
TARGET = (8, 9, 10, 11)
SHORT_TARGET = (12, 13)
NUM_IDS = 96
HEAD_WIDTH = 16

# The largest number that a copy has for a field whose name matches; the first that does counts. Ours.
SMALL = [
    (r"vocab", NUM_IDS),
    (r"(key_value|kv)_heads|query_groups", 2),
    (r"heads?$", 4),
    (r"head_dim|d_kv|kv_channels|d_head|dim_head|head_size|rotary_dim|query_pre_attn|lora_rank", HEAD_WIDTH),
    (r"window_layers|chunk_size_feed_forward|window_pattern", 2),
    (r"window|chunk", WINDOW),
    (r"position|n_ctx|seq_len|context_length", 256),
    (r"n_group|topk_group|expert_group", 1),
    (r"per_tok|top_?k|moe_k", 2),
    (r"experts$", 4),
    (r"dense_replace|dense_layers|kv_shared_layers", 1),
    (r"interval|period|every_n", 2),
    (r"", 64),
]
TABLE_OF_POSITIONS = re.compile(r"(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_sequence_length)$")
LAYERS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers|num_(en|de)coder_layers|(en|de)coder_layers)$")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
NOT_OF_THE_TYPE = ("quantization_config", "dtype", "architectures", "transformers_version", "_name_or_path")

_found: dict[str, str] = {}
"""What this process found: the reason against a configuration by its digest, empty where there is none."""


def check_type(kind: Any, config: Any, name: str, cache: Path) -> None:
    """Raise ValueError, with the reason, if softprompt would get wrong numbers from a model of this class of
    transformers and this configuration.

    cache: the folder that keeps what was found; one that cannot be written is done without.
    """
    attention = config._attn_implementation or ("sdpa" if kind._supports_sdpa else "eager")
    known = [kind.__module__, kind.__qualname__, attention, _shrunk(config.to_dict()), _versions()]
    digest = hashlib.blake2b(json.dumps(known, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    path = cache / "types" / f"{config.model_type}-{digest}.txt"
    is_lasting = kind.__module__.startswith("transformers.")  # another's code may change under its name
    if digest not in _found and is_lasting:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            _found[digest] = path.read_text(encoding="utf-8").strip()
    if digest not in _found:
        _found[digest] = reason_against(config) or _fault_of_copy(kind, config, name)
        if is_lasting:
            with contextlib.suppress(OSError):  # found again next time
                write_whole(path, _found[digest] + "\n")
    if _found[digest]:
        raise refusal(name, config, _found[digest])


@functools.cache
def _versions() -> list[str]:
    """Whose code an answer depends on: the libraries' versions, and a digest of ours."""
    ours = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return [version("transformers"), version("torch"), hashlib.blake2b(b"".join(ours)).hexdigest()]


def tiny_model(kind: Any, config: Any, *, is_narrow: bool = True) -> Any:
    """A model of this class with one layer of each of the configuration's kinds, small windows and, if narrow, small
    widths. Its random weights make attention and outputs far from even.

    Every matrix times an input of unit variance gives an output of about unit variance. The process's own random
    numbers stay as they are.
    """
    small = type(config).from_dict(_shrunk(config.to_dict(), is_narrow))
    small._attn_implementation = config._attn_implementation
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in kind._from_config(small).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"a copy with one layer of each kind has {count:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = kind._from_config(small, dtype=torch.float32).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim < 2:
            parameter += 0.1 * noise
        else:
            parameter.copy_(noise if id(parameter) in tables else noise * parameter.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def fault_of(model: Any) -> str:
    """What softprompt would get wrong with this model of transformers, as the end of a sentence; empty for nothing."""
    if reason := reason_against(model.config, model):
        return reason
    lm = Backbone(copy.deepcopy(model), _tokenizer(), name="tiny")
    draw = torch.Generator().manual_seed(2)
    prompts = torch.randn(len(PROMPT_LENGTHS), max(PROMPT_LENGTHS), lm.width, generator=draw)
    table = model.get_input_embeddings()
    ids = [torch.randint(14, min(NUM_IDS, lm.num_ids), (length,), generator=draw) for length, _ in INPUTS]
    inputs = [table(row) for row in ids]

    by_ids = _logits(model, TARGET, input_ids=ids[0][None])
    if not _equal(by_ids, _logits(model, TARGET, inputs_embeds=inputs[0][None])):
        return "reads the ids of its tokens beside their embeddings"

    whole, scores, expected = [], [], []
    for x, (_, member) in zip(inputs, INPUTS, strict=True):
        front = x[:0] if member == NO_PROMPT else prompts[member, : PROMPT_LENGTHS[member]]
        whole.append(torch.cat([front, x]))
        logits = [_logits(model, target, inputs_embeds=whole[-1][None]) for target in (TARGET, SHORT_TARGET)]
        expected.append(logits[0])
        scores.append([-nn.functional.cross_entropy(logits[0], torch.tensor(TARGET), reduction="sum")])
        scores[-1].append(-nn.functional.cross_entropy(logits[1], torch.tensor(SHORT_TARGET), reduction="sum"))

    rows = _mixed(lm, whole if lm.is_encoder_decoder else inputs, prompts)
    candidates = torch.tensor([TARGET, (*SHORT_TARGET, 0, 0)]).expand(len(INPUTS), -1, -1)
    real = torch.tensor([[True] * 4, [True, True, False, False]]).expand_as(candidates)
    if not _equal(lm.score(rows, candidates, real), torch.tensor(scores)):
        return "gives a row other numbers in a padded batch with prompts than alone"
    if not _equal(_written(lm, rows, [len(x) for x in whole]), torch.stack(expected)):
        return "gives a text other numbers token by token than in one pass"
    return ""


def _fault_of_copy(kind: Any, config: Any, name: str) -> str:
    """As `fault_of`, of a copy as narrow as it can be built. ValueError where there is none, or it cannot be run."""
    try:
        model = tiny_model(kind, config)
        model(**_arguments(model, TARGET, input_ids=torch.tensor([TARGET])))
    except Exception as error:
        try:
            model = tiny_model(kind, config, is_narrow=False)
        except Exception:
            raise refusal(name, config, f"cannot be tried out on a tiny copy ({first_line(error)})") from None
    try:
        return fault_of(model)
    except Exception as error:
        reason = f"cannot be run on embeddings with masks and positions ({first_line(error)})"
        raise refusal(name, config, reason) from None


def _shrunk(values: dict[str, Any], is_narrow: bool = True) -> dict[str, Any]:
    """A configuration's fields for a tiny copy."""
    depth = next((value for key, value in values.items() if LAYERS.match(key) and isinstance(value, int)), 0)
    by_layer = {key: value for key, value in values.items() if isinstance(value, list) and len(value) == depth > 1}
    kinds: dict[str, int] = {}
    for place in range(depth):
        kinds.setdefault(repr([value[place] for value in by_layer.values()]), place)
    kept = sorted(kinds.values())
    kept += list(range(len(kept), min(depth, 2)))
    heads = next((values[key] for key in HEADS if values.get(key)), None)
    shrunk = {}
    for key, value in values.items():
        if key in NOT_OF_THE_TYPE:
            continue
        if is_narrow and key in ("short_factor", "long_factor"):  # longrope's, one for each two dimensions it rotates
            value = value[: int(HEAD_WIDTH / 2 * values.get("partial_rotary_factor", 1))]
        elif key in by_layer:
            value = [value[place] for place in kept]
        elif key.endswith("per_layer_config") and value:
            of_layer = {int(place): fields for place, fields in value.items()}
            value = {new: _shrunk(of_layer[old], is_narrow) for new, old in enumerate(kept) if old in of_layer}
        shrunk[key] = len(kept) if LAYERS.match(key) and value else _small(key, value, heads, is_narrow)
    return shrunk


def _small(key: str, value: Any, heads: int | None, is_narrow: bool) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, is_narrow) if all(isinstance(name, str) for name in value) else value
    if key.endswith(("token_id", "token_index")):
        return None if value is None else 1
    if isinstance(value, list):
        return [_small(key, one, heads, is_narrow) for one in value]
    if type(value) is not int:
        return value
    limit = next(limit for pattern, limit in SMALL if re.search(pattern, key))
    if TABLE_OF_POSITIONS.match(key) and 0 < value < limit:
        return limit  # a model for short texts is tried with the longest row all the same
    if limit == 2 and "heads" in key and value == heads:
        limit = 4  # as many for keys as for queries
    return min(value, limit) if is_narrow or limit == WINDOW or "vocab" in key else value


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
    return of_backend(backend, pad="<pad>", eos="</s>", unknown="<unk>")


def _arguments(model: Any, target: tuple[int, ...], **inputs: Tensor) -> dict[str, Any]:
    """What transformers' own pass takes for one row's input and target."""
    if model.config.is_encoder_decoder:
        return inputs | {"decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])}
    after = torch.tensor([target[:-1]])
    if "input_ids" in inputs:
        return {"input_ids": torch.cat([inputs["input_ids"], after], 1), "use_cache": False}
    embedded = model.get_input_embeddings()(after)
    return {"inputs_embeds": torch.cat([inputs["inputs_embeds"], embedded], 1), "use_cache": False}


def _logits(model: Any, target: tuple[int, ...], **inputs: Tensor) -> Tensor:
    """Logits [l v] of transformers' own pass that predict the target's tokens."""
    return model(**_arguments(model, target, **inputs)).logits[0, -len(target) :].float()


def _equal(found: Tensor, wanted: Tensor) -> bool:
    """Whether two scores, or two rows of logits, are the same but for rounding."""
    if wanted.shape[-1] >= NUM_IDS // 2:
        found, wanted = found.log_softmax(-1), wanted.log_softmax(-1)
    return bool(torch.isfinite(wanted).all()) and torch.allclose(found, wanted, rtol=1e-4, atol=TOLERANCE)


def _mixed(lm: Backbone, inputs: list[Tensor], prompts: Tensor) -> Embedded:
    """The rows [t d] in one batch, padded at the left and at the right in turn, each with its prompt."""
    width = max(len(x) for x in inputs)
    x, mask = torch.zeros(len(inputs), width, lm.width), torch.zeros(len(inputs), width, dtype=torch.bool)
    for row, own in enumerate(inputs):
        start = width - len(own) if row % 2 else 0
        x[row, start : start + len(own)], mask[row, start : start + len(own)] = own, True
    if lm.is_encoder_decoder:
        return Embedded(x, mask)
    states = lm.run_prompts(prompts, torch.tensor(PROMPT_LENGTHS))
    return Embedded(x, mask, states, torch.tensor([member for _, member in INPUTS]))


def _written(lm: Backbone, rows: Embedded, lengths: list[int]) -> Tensor:
    """Logits [b l v] of the target's tokens, one step after another, in as many groups of rows as the model takes."""
    layout, num_rows = lm.layout(), len(lengths)
    groups: list[RowStates] = []
    first = []
    for places in [range(num_rows)] if lm.is_encoder_decoder else [range(2), range(2, num_rows)]:
        part = slice(places.start, places.stop)
        member = None if rows.member is None else rows.member[part]
        own = Embedded(rows.x[part], rows.mask[part], rows.states, member)
        states, hidden = begin_rows(lm, layout, own, lengths[part], capacity=len(places), room=len(TARGET))
        groups.append(states)
        if hidden is not None:
            first.append(lm.logits(hidden[:, -1]))
    if lm.is_encoder_decoder:
        first.append(step_rows(lm, torch.tensor([lm.config.decoder_start_token_id] * num_rows), groups))
    steps = [torch.cat(first)]
    for token in TARGET[:-1]:
        steps.append(step_rows(lm, torch.tensor([token] * num_rows), groups))
    return torch.stack(steps, 1)
