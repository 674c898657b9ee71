"""softprompt pretrain, softprompt adapt"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from softprompt.base.command import Command
from softprompt.base.files import CHECKPOINT
from softprompt.base.terminal import Display, counted, say, type_of_products, writing
from softprompt.cli import Flag, add_threads, set_threads

FLAGS: dict[str, Flag] = {
    "steps": Flag(int, "optimizer steps; must be given"),
    "batch_size": Flag(int, "texts a step", "64"),
    "micro_batch_size": Flag(int, "texts computed together", "8"),
    "input_length": Flag(int, "tokens of an input (pretrain), of a whole text (adapt)", "256"),
    "optimizer": Flag(str, "both with T5's scaling", "adamw", ("adamw", "adafactor")),
    "learning_rate": Flag(float, "after the warm-up, a share of each weight's size"),
    "schedule": Flag(str, "how the rate goes on", choices=("constant", "linear", "cosine", "rsqrt")),
    "warmup_steps": Flag(int, "steps in which the rate rises"),
    "clip_norm": Flag(float, "bound on the gradient's norm", "1"),
    "weight_decay": Flag(float, "of AdamW", "0"),
    "seed": Flag(int, "draws weights, order and spans", "0"),
    "evaluate_every": Flag(int, "steps between held-out losses", "250"),
    "num_heldout": Flag(int, "held-out texts scored each time", "256"),
    "keep": Flag(int, "steps whose models are kept, 0 for the start", "none but the last", is_list=True),
}
"""The fields of PretrainConfig but objective and z_loss."""

PRETRAIN = {"objective": "span", "learning_rate": 2e-2, "schedule": "cosine", "warmup_steps": 200}
# Constant, so that models kept at different steps compare.
ADAPT = {"objective": "prefix-lm", "learning_rate": 5e-3, "schedule": "constant", "warmup_steps": 20}


def _add_common(command: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    command.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="files or folders of text")
    command.add_argument(
        "--heldout", nargs="+", metavar="PATH", help="text for the loss only (default: the corpus's last part)"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder for checkpoint, curve and model")
    group = command.add_argument_group("how to train")
    for name, flag in FLAGS.items():
        default = str(defaults[name]) if name in defaults else flag.default
        Flag(flag.kind, flag.help, default, flag.choices, flag.is_list).add(group, name)
    group = command.add_argument_group("machine")
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N or mps (default: auto)")
    group.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="of products; weights stay float32 (default: auto, bfloat16 where it is fast)",
    )
    group.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="(default: yes)")
    add_threads(group)
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    command.add_argument("--overwrite", action="store_true", help="train into a folder that holds a model already")


def _add_pretrain(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", help="a new model: micro, tiny, mini, small … xxl, or a JSON file with a shape")
    command.add_argument("--vocabulary", metavar="DIR", help="a new model's, what softprompt vocabulary wrote")
    command.add_argument("--model", metavar="M", help="or go on from this one: folder or hub id of a T5-shaped model")
    command.add_argument(
        "--tables-from", metavar="M", help="start both vocabulary tables from a wider model's embeddings, by PCA"
    )
    _add_common(command, PRETRAIN)


def _add_adapt(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, metavar="M", help="folder or hub id of a T5-shaped model")
    _add_common(command, ADAPT)


def _pretrain(args: argparse.Namespace) -> int:
    _check(args)
    set_threads(args)
    from softprompt.models import load, load_tokenizer, shape_of
    from softprompt.pretraining import new_model, read_model

    if args.model is not None:
        if args.size or args.vocabulary or args.tables_from:
            raise ValueError(
                "--model has a size and a vocabulary of its own; leave out --size, --vocabulary and --tables-from"
            )
        return _run(args, *read_model(args.model), PRETRAIN, args.model)
    if not (args.size and args.vocabulary):
        raise ValueError("give --size and --vocabulary for a new model, or --model for one to go on from")
    shape = shape_of(args.size)
    tokenizer = load_tokenizer(args.vocabulary)
    wider = load(args.tables_from, dtype="float32") if args.tables_from else None
    model = new_model(shape, tokenizer, seed=getattr(args, "seed", 0), tables_from=wider)
    return _run(args, model, tokenizer, PRETRAIN, args.vocabulary)


def _adapt(args: argparse.Namespace) -> int:
    _check(args)
    set_threads(args)
    from softprompt.pretraining import read_model

    return _run(args, *read_model(args.model), ADAPT, args.model)


def _run(args: argparse.Namespace, model: Any, tokenizer: Any, defaults: dict[str, Any], name: str) -> int:
    from softprompt.models import choose_device, choose_dtype, keep_freed_memory
    from softprompt.pretraining import PretrainConfig, device_of_torchrun, machine_of_torchrun

    given = {field: getattr(args, field) for field in FLAGS if hasattr(args, field)}
    config = PretrainConfig(**(defaults | given))
    device = choose_device(device_of_torchrun(args.device))
    bfloat16 = "bfloat16" in str(choose_dtype(args.dtype, device))
    keep_freed_memory()
    with machine_of_torchrun(config, device, compile=args.compile, bfloat16=bfloat16) as machine:
        stream, heldout = _corpus(args, tokenizer, config)
        if machine.writes:
            weights = f"{model.num_parameters() / 1e6:,.1f} million weights"
            text = f"{len(stream.ids) / 1e6:,.1f} million tokens of {counted(stream.num_documents, 'document')}"
            say(f"{weights}, {text}, {type_of_products(bfloat16, device)}")
        curve = _train(args, model.to(device), tokenizer, stream, heldout, config, machine, name)
    if machine.writes:
        last = curve[-1]
        print(f"{args.out}: {last['tokens'] / 1e6:,.1f} million tokens, held-out loss {last['heldout']:.4f}")
    return 0


def _train(
    args: argparse.Namespace,
    model: Any,
    tokenizer: Any,
    stream: Any,
    heldout: Any,
    config: Any,
    machine: Any,
    name: str,
) -> list[dict[str, Any]]:
    from softprompt.pretraining import Hooks, pretrain

    folder = Path(args.out)
    display = Display(folder / "logs")
    display.begin(config.steps, config.batch_size)
    options = {
        "folder": folder,
        "name": name,
        "resume": args.resume,
        "machine": machine,
        "hooks": Hooks(step=display.step, score=display.losses, message=say),
    }
    try:
        with writing(args.out):
            return pretrain(model, tokenizer, stream, heldout, config, **options)
    except KeyboardInterrupt:
        at = f"stopped at step {display.at} of {config.steps}"
        raise KeyboardInterrupt(f"{at}; the same command with --resume goes on from there") from None
    finally:
        display.close()


def _corpus(args: argparse.Namespace, tokenizer: Any, config: Any) -> Any:
    """The text to train on and the text for the loss, as ids."""
    from tqdm import tqdm

    from softprompt.pretraining import corpus_files, tokenized

    def read(places: list[str]) -> Any:
        with tqdm(desc="tokenise", unit="B", unit_scale=True, disable=None, leave=False) as bar:
            return tokenized(corpus_files(places), tokenizer, progress=bar.update)

    stream = read(args.corpus)
    if args.heldout:
        return stream, read(args.heldout)
    return stream.split(2 * config.input_length * config.num_heldout)


def _check(args: argparse.Namespace) -> None:
    """The steps are said, and earlier results are not trained over by accident."""
    if not hasattr(args, "steps"):
        raise ValueError("how many steps? give --steps")
    out = Path(args.out)
    if args.resume or args.overwrite:
        return
    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already; give another --out, or --overwrite")
    if (out / CHECKPOINT).exists():
        raise ValueError(f"{out} holds an unfinished run; --resume goes on with it, --overwrite starts again")


COMMAND = Command(
    add_flags=_add_pretrain,
    run=_pretrain,
    text=(
        "Train a T5 by span corruption: a new T5 1.1 from scratch, or one that is there. Text is .txt (one document a "
        "line), .jsonl or .parquet (column text), plain, .gz or .xz. Documents are joined, with an end of sequence "
        "between them, and cut to one length, so a text may hold parts of two documents and attention crosses the "
        "border, as in T5. Runs data-parallel under torchrun as it is."
    ),
    examples=(
        "softprompt pretrain --size mini --vocabulary runs/vocabulary --corpus corpus --heldout corpus/heldout \\",
        "    --steps 10000 --out runs/mini-span",
        "softprompt pretrain --size mini --vocabulary runs/vocabulary --corpus corpus --steps 10000 \\",
        "    --out runs/mini-span --resume",
        "softprompt pretrain --model google/t5-v1_1-small --corpus corpus --steps 1000 --out runs/small-more",
    ),
)

ADAPT_COMMAND = Command(
    add_flags=_add_adapt,
    run=_adapt,
    text=(
        "Train a T5-shaped model on as a prefix language model, the paper's LM adaptation: a text is cut at a random "
        "place, its first part is the input and its rest the target. Models can be kept on the way, for an ablation "
        "of the steps. Takes text and runs under torchrun as softprompt pretrain does."
    ),
    examples=(
        "softprompt adapt --model runs/mini-span --corpus corpus --steps 1000 --keep 0,100,500 --out runs/mini-lm",
        "softprompt adapt --model google/t5-v1_1-small --corpus corpus --steps 100000 --out runs/small-lm",
    ),
)
