"""Prompts in other programs' files: T5X arrays, PEFT folders, TGIS folders.

A T5X or TGIS file is the array alone, so the card stays behind: keep the PEFT folder beside it.
"""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from softprompt.base.files import check_file, held, write_whole
from softprompt.base.names import first_line, hub_place, nearest
from softprompt.prompts.card import CONFIG, WEIGHTS, Card
from softprompt.prompts.folder import load_prompt, save_prompt
from softprompt.prompts.hub import check_push
from softprompt.prompts.prompt import SoftPrompt

T5X_NAME = "encoder.prompt.prompt.prompt"  # the authors' code names it so in numpy_checkpoints/checkpoint_N
TGIS_NAMES = {True: "encoder.pt", False: "decoder.pt"}  # by "is an encoder-decoder"; TGIS prompt_cache.py


def read_prompt(
    path: str | Path, kind: str | None = None, *, decoder_only: bool = False, index: int | None = None
) -> SoftPrompt:
    """The prompt in a file or folder of the kind t5x, peft or tgis (if not given, as is seen there), or on the hub.

    From t5x and tgis the card says only width and kind of model. A t5x file does not even say that kind: it is
    taken for an encoder-decoder's, as T5X's own are, unless `decoder_only`. index: which prompt of an array of several
    [k p d], as TensorRT-LLM has them.

    Raises:
        ValueError: nothing there, a kind that cannot be told or is unknown, a file that is not such a prompt,
            `decoder_only` of files that say otherwise, or an `index` that there is not.
    """
    path = hub_place(path) or Path(path)
    _check_there(path)
    kind = kind or detect_kind(path)
    if isinstance(path, str) and kind != "peft":
        raise ValueError(f"{path} is on the hub, where prompts are as PEFT has them; leave --from {kind} out")
    if index is not None and kind != "t5x":
        raise ValueError(f"{path} holds one prompt; leave --index out, which is for a numpy file of several")
    prompt = _read_t5x(Path(path), index) if kind == "t5x" else READERS[_known(kind, READERS)](path)
    if not decoder_only or not prompt.card.is_encoder_decoder:
        return prompt
    if kind != "t5x":
        raise ValueError(f"{path} says that it is an encoder-decoder's prompt; leave --decoder-only out")
    return SoftPrompt(prompt.values, replace(prompt.card, is_encoder_decoder=False))


def write_prompt(prompt: SoftPrompt, path: str | Path, kind: str) -> None:
    """Write the prompt as t5x (an .npy file under exactly that name), peft or tgis (folders).

    Whatever was there stays whole if writing fails.

    Raises:
        ValueError: an unknown kind, or a place that cannot take it.
        OSError: it cannot be written.
    """
    write = WRITERS[_known(kind, WRITERS)]
    if prompt.is_kv and kind != "peft":
        raise ValueError(
            f"this prompt is keys and values of every layer, which {kind} has no place for; keep it as peft"
        )
    write(prompt, Path(path))


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to_kind: str,
    from_kind: str | None = None,
    model_name: str | None = None,
    model_fingerprint: str | None = None,
    decoder_only: bool = False,
    index: int | None = None,
    overwrite: bool = False,
) -> SoftPrompt:
    """Read a prompt of one kind, write it as another, bit for bit; returns it. PEFT's may be on the hub.

    `decoder_only` and `index` are `read_prompt`'s. `model_name` and `model_fingerprint` go into the card of a
    prompt that records none. `overwrite`: replace a prompt at the destination.

    Raises:
        ValueError: what `read_prompt` and `write_prompt` refuse, source and destination the same, a prompt
            at the destination, or one that names another model already.
    """
    _known(to_kind, WRITERS)
    if Path(source).resolve() == Path(destination).resolve():
        raise ValueError(f"{source} is both source and destination; give the converted prompt a place of its own")
    prompt = read_prompt(source, from_kind, decoder_only=decoder_only, index=index)
    given = {"model_name": model_name, "model_fingerprint": model_fingerprint}
    for name, value in given.items():
        recorded = getattr(prompt.card, name)
        if value is not None and recorded not in (None, value):
            raise ValueError(f"{source} was trained for {recorded}, so {name} cannot be {value}; leave it out")
    card = replace(prompt.card, **{name: value for name, value in given.items() if value is not None})
    prompt = SoftPrompt(prompt.values, card)
    if to_kind == "peft" and (on_hub := hub_place(destination)):
        check_push(on_hub, overwrite=overwrite)
        save_prompt(prompt, on_hub)
        return prompt
    place = Path(destination)
    tgis = TGIS_NAMES[prompt.card.is_encoder_decoder]
    taken = {"t5x": [place], "peft": [place / CONFIG, place / WEIGHTS], "tgis": [place / tgis]}[to_kind]
    with held(place, is_file=to_kind == "t5x"):
        if not overwrite and any(file.is_file() for file in taken):
            raise ValueError(f"{place} holds a prompt already; give another --out, or --overwrite")
        write_prompt(prompt, destination, to_kind)
    return prompt


def detect_kind(path: str | Path) -> str:
    """t5x, peft or tgis, from the names of the files there (a file that begins as numpy's do is t5x); on the hub peft.

    Raises:
        ValueError: nothing there, or none of them.
    """
    if hub_place(path):
        return "peft"
    path = Path(path)
    _check_there(path)
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if names & {CONFIG, WEIGHTS, "adapter_model.bin"}:
            return "peft"
        if names & set(TGIS_NAMES.values()):
            return "tgis"
        if T5X_NAME in names:
            return "t5x"
        raise ValueError(
            f"{path} holds no prompt: wanted {CONFIG} (peft), encoder.pt or decoder.pt (tgis) or {T5X_NAME} (t5x)"
        )
    check_file(path)
    with open(path, "rb") as file:
        if file.read(6) == b"\x93NUMPY":
            return "t5x"
    raise ValueError(f"{path} is not a numpy file; give a .npy file (t5x) or a folder (peft, tgis)")


def _check_there(path: str | Path) -> None:
    if isinstance(path, Path) and not path.exists():
        raise ValueError(f"there is no file or folder {path}")


def _read_t5x(path: Path, index: int | None = None) -> SoftPrompt:
    """An array as numpy saves it, named *.npy or as T5X names it, or the folder that holds it: [p d] or [k p d]."""
    if path.is_dir():
        path = path / T5X_NAME
    check_file(path)
    # Before numpy allocates what a header asks for: is it a table of floats that fills the file?
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"numpy format {version}")
            first = version == (1, 0)
            read_header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
            shape, _, dtype = read_header(file)
            num_bytes = os.fstat(file.fileno()).st_size - file.tell()
    except Exception as error:  # numpy lets its tokenizer's and parser's errors through
        raise ValueError(f"{path} is not a whole numpy file ({error})") from error
    if dtype.kind != "f" or dtype.itemsize not in (2, 4) or len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"{path} holds {dtype} of shape {shape}; wanted float32 or float16 [prompt tokens, width]")
    if num_bytes != dtype.itemsize * math.prod(shape):
        raise ValueError(f"{path} is cut short or damaged: its header says {shape}, and {num_bytes} bytes follow")
    count = shape[0] if len(shape) == 3 else 1
    if index is None and count > 1:
        raise ValueError(f"{path} holds {count} prompts of {shape[1]} tokens; say which: --index 0 to {count - 1}")
    if index is not None and not 0 <= index < count:
        raise ValueError(f"{path} has no prompt {index}; --index counts from 0 and ends at {count - 1}")
    array = np.load(path, allow_pickle=False).reshape(count, *shape[-2:])[index or 0]
    values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return _bare_prompt(values, path, is_encoder_decoder=True)


def _write_t5x(prompt: SoftPrompt, path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; t5x is one file, so give a name such as prompt.npy")
    buffer = BytesIO()
    np.save(buffer, prompt.values.numpy(), allow_pickle=False)
    write_whole(path, buffer.getvalue())


def _read_tgis(path: Path) -> SoftPrompt:
    """encoder.pt of an encoder-decoder, or decoder.pt of a decoder-only model."""
    files = {kind: path / name for kind, name in TGIS_NAMES.items() if (path / name).is_file()}
    if not files:
        raise ValueError(f"{path} holds neither encoder.pt nor decoder.pt, so it is not a TGIS prompt")
    if len(files) == 2:
        warnings.warn(f"{path} holds a prompt for the decoder too; only encoder.pt was read", stacklevel=4)
    is_encoder_decoder = True in files
    path = files[is_encoder_decoder]
    try:  # a bare tensor as torch.save writes it; weights_only lets nothing else be unpickled
        values = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load has no one exception for a bad file
        raise ValueError(f"{path} is not a tensor that torch can load safely ({first_line(error)})") from error
    if not isinstance(values, Tensor) or values.ndim != 2 or 0 in values.shape:
        what = f"a tensor of shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{path} holds {what}; wanted one tensor [prompt tokens, width]")
    if values.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"{path} holds {values.dtype}; wanted float32, bfloat16 or float16")
    return _bare_prompt(values.float(), path, is_encoder_decoder=is_encoder_decoder)


def _write_tgis(prompt: SoftPrompt, path: Path) -> None:
    is_encoder_decoder = prompt.card.is_encoder_decoder
    other = path / TGIS_NAMES[not is_encoder_decoder]
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file; tgis is a folder, so give another name")
    if other.exists():
        raise ValueError(f"{other} is there already and TGIS would use both; choose another folder")
    if is_encoder_decoder and prompt.length % 2:
        warnings.warn(
            f"TGIS takes only an even number of rows for an encoder-decoder; this prompt has {prompt.length}",
            stacklevel=3,
        )
    buffer = BytesIO()
    torch.save(prompt.values, buffer)
    write_whole(path / TGIS_NAMES[is_encoder_decoder], buffer.getvalue())


def _bare_prompt(values: Float[Tensor, "p d"], path: Path, *, is_encoder_decoder: bool) -> SoftPrompt:
    card = Card(
        model_name=None,
        model_fingerprint=None,
        is_encoder_decoder=is_encoder_decoder,
        width=values.shape[1],
    )
    try:
        return SoftPrompt(values, card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _known(kind: str, kinds: dict[str, Callable]) -> str:
    if kind not in kinds:
        raise ValueError(f"no prompt format is named {kind!r}{nearest(kind, kinds)}; there are {', '.join(kinds)}")
    return kind


READERS: dict[str, Callable[..., SoftPrompt]] = {"t5x": _read_t5x, "peft": load_prompt, "tgis": _read_tgis}
WRITERS: dict[str, Callable[[SoftPrompt, Path], None]] = {"t5x": _write_t5x, "peft": save_prompt, "tgis": _write_tgis}
