"""What a stranger may send: JSON, bytes, prompt folders and archives with something in them changed, by a seed."""

import copy
import io
import json
import math
import os
import re
import shutil
import tarfile
import zipfile

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors

from softprompt.prompts import CARD, CONFIG, README, WEIGHTS
from softprompt.prompts.folder import JOURNAL, KEY

HALF = "\ud800"  # of a character
NUMBERS = (0, 1, -1, 2, 7, 0.5, -0.0, 1e308, float("nan"), float("inf"), 2**31, 2**63, -(2**63), 2**64, 10**30, 10**400)
TEXTS = (
    "", " ", "\n", "a", "A", "\0", "\x1b[2J", HALF, "é", "e\u0301", "\u202e", "😀", "a b", "{", "}", "{}", "{0}", "{x}",
    "{x.y}", "{x!r:>9}", "%s", "../../x", "/etc/passwd", "</s>", "<pad>", "<extra_id_0>", "1", "rank", "generate",
    "glue/sst2", "accuracy", "x" * 1_000, "word " * 5_000,
)  # fmt: skip
DEEP = json.loads("[" * 60 + "]" * 60)
SCRAPS = (None, True, False, *NUMBERS, *TEXTS, [], {}, [None], [[]], [""], ["a", "a"], {"": ""}, {"a": {"a": 1}}, DEEP)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn)
MEMBERS = ("../x", "/x", "C:x", "a\\b", "x" * 300, "é", ".", "a/../b", WEIGHTS.upper(), "model.bin", f"deep/er/{CARD}")


def mutated(value, draw):
    """A copy of a JSON value, in which something is of another type, missing, too much, huge, or slightly other."""
    holder = [copy.deepcopy(value)]
    container, key = draw.choice(list(_places(holder)))
    inside, change = container[key], draw.choice(("replace", "drop", "add", "bend", "bend"))
    if change == "replace":
        container[key] = copy.deepcopy(draw.choice(SCRAPS))
    elif change == "drop" and container is not holder:
        del container[key]
    elif change == "add" and isinstance(inside, dict):
        names = [*inside, "x", "", HALF, "metric", "labels", "stream"]
        inside[draw.choice(names)] = copy.deepcopy(draw.choice(SCRAPS))
    elif change == "add" and isinstance(inside, list):
        inside.insert(draw.randint(0, len(inside)), copy.deepcopy(draw.choice(SCRAPS)))
    else:
        container[key] = _bent(inside, draw)
    return holder[0]


def _places(value):
    """Every list and object in a value, itself too, with each of its keys."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _bent(value, draw):
    match value:
        case bool():
            return not value
        case int() | float():
            as_float = float(value) if abs(value) < 10**300 else math.inf  # 10 ** 400 is among the scraps
            return draw.choice((-value, value * 10**12, value + 1, as_float, str(value), [value]))
        case str():
            text = draw.choice(TEXTS)
            cut = draw.randint(0, len(value))
            return draw.choice((value + text, text + value, value[:cut], value[:cut] + text + value[cut:], [value]))
        case list():
            return draw.choice((value * 2, value[::-1], value[:1], value[:9] * 99, dict.fromkeys(map(str, value), 1)))
        case dict():
            return draw.choice((list(value), [value], {f"{name} ": each for name, each in value.items()}))
    return draw.choice(SCRAPS)


def damaged(data, draw):
    """Bytes with some of them other, missing or too many."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = draw.randint(0, min(len(data), draw.choice((16, 400, len(data)))))  # where formats keep what they mean
        change = draw.choice(("flip", "set", "cut", "drop", "repeat", "insert"))
        if change == "flip" and at < len(data):
            data[at] ^= 1 << draw.randint(0, 7)
        elif change == "set":
            data[at : at + 8] = draw.choice((b"\0" * 8, b"\xff" * 8, b"9" * 8, draw.randbytes(8)))
        elif change == "cut":
            del data[at + 1 :]
        elif change == "drop":
            del data[at : at + draw.randint(1, 30)]
        elif change == "repeat":
            data[at:at] = data[at : at + draw.choice((1, 8, 200))] * draw.choice((1, 2, 50))
        else:
            data[at:at] = draw.choice((b"\0", b"[" * 2_000, b"9" * 5_000, b'"', b"\xed\xa0\x80", b"\r\n\r\n", b"NaN"))
    return bytes(data)


def mutate_folder(folder, draw):
    """Change one or two things in a prompt's folder; what was changed, in a word each."""
    changes = draw.choices((_card, _card, _config, _bytes, _tensor, _tensor, _kind, _name), k=draw.choice((1, 1, 2)))
    for change in changes:
        change(folder, draw)
    return " ".join(change.__name__.strip("_") for change in changes)


def _json(path, draw):
    if not path.is_file():
        return
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    for _ in range(draw.choice((1, 1, 2))):
        value = mutated(value, draw)
    text = json.dumps(value)
    if draw.random() < 0.05:
        text = re.sub(r"\d", "9" * 5_000, text, count=1)
    path.write_text(text)


def _card(folder, draw):
    """In the text format, the labels and the recipe as often as in all the rest."""
    path = folder / CARD
    if not path.is_file() or draw.random() < 0.5:
        _json(path, draw)
        return
    try:
        card = json.loads(path.read_bytes())
        name = draw.choice(("text", "labels", "recipe", "task", "dev_metrics"))
        card[name] = mutated(card[name], draw)
    except (ValueError, RecursionError, LookupError, TypeError):
        return
    path.write_text(json.dumps(card))


def _config(folder, draw):
    _json(folder / CONFIG, draw)


def _bytes(folder, draw):
    path = folder / draw.choice((WEIGHTS, WEIGHTS, CARD, CONFIG, README))
    if path.is_file():
        path.write_bytes(damaged(path.read_bytes(), draw))


def _tensor(folder, draw):
    """Other shapes, types, values and names; half of the time with a card that knows of no hash."""
    path = folder / WEIGHTS
    if not path.is_file():  # but a pipe, say, on which a reader waits
        return
    try:
        values = from_safetensors(path.read_bytes())[KEY].float()
    except Exception:  # it was damaged before, in whatever way
        return
    if values.dim() != 2:
        return
    name, change = KEY, draw.choice(("shape", "type", "values", "values", "values", "name"))
    if change == "shape":
        shapes = (
            values.T.contiguous(), values[:1], values[:0], values.flatten(), values[None], torch.cat([values, values]),
            torch.cat([values, values], 1), values[:, :1].contiguous(), values.repeat(80, 1), torch.tensor(1.0),
        )  # fmt: skip
        values = draw.choice(shapes)
    elif change == "type":
        values = values.to(draw.choice(DTYPES))
    elif change == "values":
        number = draw.choice((float("nan"), float("inf"), 3.4e38, -3.4e38, 1e30, 1e19, 1e4, 0.0, 1e-45))
        if draw.random() < 0.5:
            values = torch.full_like(values, number)
        else:
            values.view(-1)[draw.randrange(values.numel())] = number
    else:
        name = draw.choice(("", "x", KEY.upper(), HALF.encode("utf-8", "replace").decode()))
    tensors = {name: values} if draw.random() < 0.9 else {name: values, f"{name}.2": values.clone()}
    path.write_bytes(to_safetensors(tensors, metadata={"format": draw.choice(("pt", "np", ""))}))
    if draw.random() < 0.5 and (folder / CARD).is_file():
        text = (folder / CARD).read_bytes()
        (folder / CARD).write_bytes(re.sub(rb'"values_sha256": "[0-9a-f]*"', b'"values_sha256": null', text))


def _kind(folder, draw):
    """A file becomes a link, a pipe, a folder or nothing."""
    path = folder / draw.choice((WEIGHTS, CARD, CONFIG, README, JOURNAL))
    kept = path.read_bytes() if path.is_file() else b"{}"
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        return
    match draw.choice(("gone", "empty", "folder", "pipe", "device", "loop", "dangling", "link", "journal")):
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "dangling":
            path.symlink_to("nowhere")
        case "link":
            beside = folder.with_name(f"{folder.name} beside")
            beside.write_bytes(kept)
            path.symlink_to(beside)
        case "journal":  # a save that was killed in the middle
            path.write_bytes(kept)
            if not os.path.lexists(folder / JOURNAL):
                (folder / JOURNAL).mkdir()
                (folder / JOURNAL / draw.choice((WEIGHTS, CARD, CONFIG))).write_bytes(kept)


def _name(folder, draw):
    """A file goes by another name, or one comes to lie beside."""
    path = folder / draw.choice((WEIGHTS, CARD, CONFIG, README))
    if path.is_file():
        other = folder / draw.choice((path.name.upper(), f"{path.name}.gz", "adapter_model.bin", "é", "x" * 200))
        draw.choice((shutil.copy, os.replace))(path, other)


def packed(folder, draw):
    """The folder as an archive of some kind, in which something may be wrong."""
    inside, strange = draw.choice(("", "p/", "a/b/")), draw.random() < 0.3
    data = (_zip if draw.random() < 0.5 else _tar)(folder, inside, draw, strange=strange)
    return damaged(data, draw) if draw.random() < 0.25 else data


def _zip(folder, inside, draw, *, strange):
    data = io.BytesIO()
    kinds = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(data, "w", draw.choice(kinds)) as file:
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file():  # a link, with what it leads to
                info = zipfile.ZipInfo(inside + path.name)
                info.external_attr = draw.choice((0o120777, 0o010666, 0o040755)) << 16
                file.writestr(info, "nowhere")
            else:
                file.write(path, inside + path.name)
        if strange:
            for number in range(draw.choice((1, 1, 120))):
                file.writestr(zipfile.ZipInfo(draw.choice(MEMBERS) + (f"{number}" if number else "")), b"x" * 10)
    return data.getvalue()


def _tar(folder, inside, draw, *, strange):
    data = io.BytesIO()
    form = draw.choice((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=data, mode=f"w:{draw.choice(('', 'gz', 'bz2', 'xz'))}", format=form) as file:
        for path in sorted(folder.iterdir()):
            file.add(path, inside + path.name)
        if strange:
            info = tarfile.TarInfo(draw.choice(MEMBERS)[:90])
            info.type = draw.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"S", b"9"))
            info.linkname, info.size = WEIGHTS, draw.choice((0, 10, 1 << 40 if form == tarfile.GNU_FORMAT else 10))
            file.addfile(info, io.BytesIO(b"x" * 512) if info.size in (0, 10) else None)
    return data.getvalue()
