"""Convert a prompt between T5X (.npy), PEFT (a folder, this program's own form) and TGIS (a folder), bit for bit.
Only PEFT's form keeps the card with task, labels and text format. Or write the whole model, with one or more prompts
as extra tokens of its vocabulary: a folder for any engine that loads transformers' (--to vocabulary), or, of a model
that is a GGUF file, a folder with a GGUF file for llama.cpp (--to gguf).

examples:
  softprompt convert prompt.npy --from t5x --to peft --model google/t5-base-lm-adapt --out prompts/sst2
  softprompt convert runs/sst2 --to tgis --out tgis/sst2
  softprompt convert runs/sst2 questions=runs/boolq --to vocabulary --out smollm2-with-prompts
  softprompt convert runs/sst2 questions=runs/boolq --to gguf --out smollm2-for-llama.cpp
"""

import argparse

from softprompt.base.terminal import counted, one_line, say, writing
from softprompt.cli.options import named_folders, say_if_slow

WITH_MODEL = ("vocabulary", "gguf")  # what --to writes a model with the prompts in it


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt convert."""
    kinds = ("t5x", "peft", "tgis")
    types = ("auto", "float32", "bfloat16", "float16")
    command.add_argument(
        "source", nargs="+", metavar="[NAME=]SRC", help="a prompt's file or folder, or hf://ORG/NAME@revision"
    )
    command.add_argument("--from", dest="from_kind", choices=kinds, help="default: seen from the files")
    command.add_argument("--to", dest="to_kind", choices=(*kinds, *WITH_MODEL), required=True)
    command.add_argument(
        "--out", required=True, metavar="DST", help="a file for t5x, else a folder; for peft also hf://ORG/NAME"
    )
    command.add_argument("--model", metavar="M", help="the prompt's model, where the source does not record it")
    command.add_argument(
        "--decoder-only", action="store_true",
        help="a T5X file is a decoder-only model's (default: as --model is; without it, an encoder-decoder's)",
    )  # fmt: skip
    command.add_argument("--index", type=int, metavar="N", help="which prompt of a numpy file of several, from 0")
    command.add_argument("--overwrite", action="store_true", help="replace a prompt that is at --out already")
    command.add_argument(
        "--dtype",
        choices=types,
        default="auto",
        help="of a model with prompts as vocabulary, or in GGUF of its embedding table alone (default: its own)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert one prompt, or put several into a model's vocabulary."""
    if args.to_kind in WITH_MODEL:
        return _with_model(args)
    if len(args.source) > 1:
        raise ValueError(
            f"{len(args.source)} prompts for --to {args.to_kind}, which takes one; --to vocabulary or gguf takes more"
        )
    if args.dtype != "auto":
        raise ValueError("--dtype is for --to vocabulary and gguf; a prompt alone is float32 always")
    from softprompt.prompts import convert

    (source,) = args.source
    decoder_only = _is_decoder_only(args, source)
    kinds = {"to_kind": args.to_kind, "from_kind": args.from_kind, "decoder_only": decoder_only, "index": args.index}
    with writing(args.out):
        prompt = convert(source, args.out, model_name=args.model, overwrite=args.overwrite, **kinds)
    wearer = "an encoder-decoder" if prompt.card.is_encoder_decoder else "a decoder-only model"
    tokens = counted(prompt.length, "prompt token")
    print(f"{args.out}: {tokens} of width {prompt.width} for {wearer}, {args.to_kind}")
    return 0


def _is_decoder_only(args: argparse.Namespace, source: str) -> bool:
    """Whether the source is to be read as a decoder-only model's: by the flag, or a T5X file by its model."""
    from softprompt.prompts import detect_kind

    if args.decoder_only or args.model is None or (args.from_kind or detect_kind(source)) != "t5x":
        return args.decoder_only
    from softprompt.models import is_encoder_decoder

    try:
        return not is_encoder_decoder(args.model)
    except ValueError as error:
        say(f"note: {one_line(error)}; {source} is taken for an encoder-decoder's prompt: if it is not, --decoder-only")
        return False


def _with_model(args: argparse.Namespace) -> int:
    if args.overwrite:
        raise ValueError(f"--overwrite is for a prompt alone; --to {args.to_kind} needs a new folder")
    from softprompt.prompts import export_gguf, export_vocabulary, read_prompt

    prompts = {
        name: read_prompt(path, args.from_kind, decoder_only=_is_decoder_only(args, path), index=args.index)
        for name, path in named_folders(args.source).items()
    }
    say_if_slow(args.model or next(iter(prompts.values())).card.model_name)
    with writing(args.out):
        export = export_gguf if args.to_kind == "gguf" else export_vocabulary
        export(prompts, args.out, model=args.model, dtype=args.dtype)
    tokens = counted(sum(prompt.length for prompt in prompts.values()), "new token")
    text = f"the model with {counted(len(prompts), 'prompt')} as {tokens}"
    print(f"{args.out}: {text}; its README.md says how a text wears them")
    return 0
