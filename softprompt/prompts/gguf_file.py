"""A model that came as a GGUF file with prompts as extra tokens: a GGUF file again, for llama.cpp.

Its metadata and tensors are copied as they are, and rows are added to two tables, so that no map of architectures is
needed. What the rows are, and why the output layer has weights of its own, is that of `export`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softprompt.base.files import held, whole_folder
from softprompt.models import resolve
from softprompt.prompts.export import (
    NEVER,
    Wearing,
    add_tokens,
    checked_source,
    embedding_rows,
    read_base,
    write_papers,
)
from softprompt.prompts.prompt import SoftPrompt

FILE = "model.gguf"
TYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
EXACT = ("F32", "BF16", "F16", "Q8_0")  # ours: what holds a prompt well enough; others would change its answers


def export_gguf(
    prompts: Mapping[str, SoftPrompt], folder: str | Path, *, model: str | Path | None = None, dtype: str = "auto"
) -> dict[str, Wearing]:
    """Write a GGUF model with prompts as extra tokens; returns how to wear each prompt, by name.

    prompts: by the name in their tokens, `<NAME:0>`, `<NAME:1>`, … model: the GGUF file, or smollm2-135m; None: the one
    that a card names. dtype: of the embedding table, float32, bfloat16 or float16; auto: the file's own, or float16 in
    place of one that holds a prompt badly. The folder gets `FILE`, the manifest and a README, or is not made at all.

    Raises:
        ValueError: no prompts, a prompt of another model or kind, a name that will not do, numbers that the type
            cannot hold, a model that is no GGUF file, or a folder that holds something already.
        OSError: it cannot be written (one line that says why).
    """
    import gguf

    folder = Path(folder)
    source = checked_source(prompts, model, folder, dtype)
    for name, prompt in prompts.items():
        if prompt.card.is_encoder_decoder:
            raise ValueError(
                f"{name}: the prompt is for an encoder-decoder, which GGUF files are not; give --to vocabulary"
            )
    path = Path(resolve(str(source))[0])
    if path.suffix != ".gguf":
        raise ValueError(
            f"{source} is no GGUF file; --to vocabulary writes a folder, from which llama.cpp's convert_hf_to_gguf.py "
            "makes one"
        )
    base = read_base(source)
    file: Any = gguf.GGUFReader(path)
    tensors = {tensor.name: tensor for tensor in file.tensors}
    table = tensors["token_embd.weight"]
    output = tensors.get("output.weight", table)  # tied: a copy, as the prompts' rows must not be read as outputs
    kind = table.tensor_type.name if table.tensor_type.name in EXACT else "F16"
    kind = TYPES.get(dtype, kind)
    worn, manifest = add_tokens(base, prompts, kind)
    rows = embedding_rows(base, prompts, torch.float32).numpy()
    if kind == "F16" and abs(rows).max() > np.finfo(np.float16).max:
        raise ValueError("the prompts have numbers too large for float16; give --dtype float32 or bfloat16")
    first = base.table[:8].float().numpy()
    known = gguf.dequantize(table.data[: len(first)], table.tensor_type)
    if len(table.data) != base.num_ids or not np.allclose(known, first, rtol=2**-7):  # bfloat16's, in which it is read
        raise ValueError(
            f"{base.lm.name} has another table of tokens in its file than in use; serve it with softprompt"
        )

    writer: Any = gguf.GGUFWriter(None, file.fields["general.architecture"].contents())
    writer.data_alignment = file.alignment
    num_ids = base.num_ids + len(rows)
    _copy_metadata(file, writer, base.tokenizer.convert_ids_to_tokens(range(num_ids)))
    writer.add_string("softprompt.prompts", json.dumps(manifest))
    means = gguf.dequantize(output.data, output.tensor_type).mean(0, dtype=np.float64).astype(np.float32)
    written = {name: (tensor.data, tensor.tensor_type) for name, tensor in tensors.items()}
    written["token_embd.weight"] = _grown(table, rows, kind)
    written["output.weight"] = _grown(output, np.tile(means, (len(rows), 1)), output.tensor_type.name)
    if bias := tensors.get("output.bias"):
        written["output.bias"] = _grown(bias, np.full(len(rows), NEVER, np.float32), bias.tensor_type.name)
    for name, (data, its_type) in written.items():
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, its_type)
    with held(folder, is_file=True), whole_folder(folder) as staging:
        with closing(writer):
            writer.write_header_to_file(staging / FILE)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            (stream,) = writer.fout
            writer.write_padding(stream, stream.tell())
            for data, _ in written.values():
                stream.write(np.ascontiguousarray(data).data)
                writer.write_padding(stream, data.nbytes)
        about = {"library": "gguf", "file": FILE, "name": folder.resolve().name, "type": kind}
        write_papers(staging, manifest, IN_LLAMA_CPP, NOTES, **about)
    return worn


def _copy_metadata(file: Any, writer: Any, tokens: list[str]) -> None:
    """Everything that the file says of the model, and of the vocabulary with the new tokens."""
    import gguf

    known = len(file.fields["tokenizer.ggml.tokens"].data)
    for name, field in file.fields.items():
        kind, value = field.types[0], field.contents()
        if name.startswith("GGUF.") or name == "general.architecture" or value == []:
            continue
        if name == "tokenizer.ggml.tokens":
            value += tokens[known:]
        elif name == "tokenizer.ggml.token_type":
            value += [gguf.TokenType.CONTROL] * (len(tokens) - known)
        elif name == "tokenizer.ggml.scores":
            value += [0.0] * (len(tokens) - known)
        elif name.endswith(".vocab_size"):
            value = len(tokens)
        writer.add_key_value(name, value, kind, field.types[-1] if len(field.types) > 1 else None)


def _grown(tensor: Any, rows: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """A table with more rows, in the type `kind`, and that type; in float16 where gguf does not quantise to it.

    What is there stays as it is to the bit where the type does.
    """
    import gguf

    wanted = gguf.GGMLQuantizationType[kind]
    try:
        added = gguf.quantize(rows, wanted)
    except NotImplementedError:
        wanted = gguf.GGMLQuantizationType.F16
        added = gguf.quantize(rows, wanted)
    data = tensor.data
    if tensor.tensor_type != wanted:
        data = gguf.quantize(gguf.dequantize(data, tensor.tensor_type), wanted)
    return np.concatenate([data, added]), wanted


IN_LLAMA_CPP = """\
With llama.cpp:

```
llama-server -m {file}
curl http://127.0.0.1:8080/completion -d \\
    '{{"prompt": [IDS, "a warm and funny film", IDS], "temperature": 0, "n_predict": 16}}'
```

where the first IDS are the entry's `prompt_ids` and `ids_before`, and the last its `ids_after`; or in Python:

```python
import json

from llama_cpp import Llama

prompt = json.load(open("{manifest}"))["prompts"][{prompt}]
model = Llama("{file}", verbose=False)
text = model.tokenize(b"a warm and funny film", add_bos=False)
ids = prompt["prompt_ids"] + prompt["ids_before"] + text + prompt["ids_after"]
print(model.create_completion(ids, max_tokens=16, temperature=0)["choices"][0]["text"])
```
"""

NOTES = """\
an engine that samples at
a high temperature should be told the ids with the request (`logit_bias`).

The model's own weights are those of its GGUF file. The prompts were trained in float32 and are {type} here."""
