r"""Train a T5 by span corruption: a new T5 1.1 from scratch, or one that is there. Text is .txt (one document a
line), .jsonl or .parquet (column text), plain, .gz or .xz. Documents are joined, with an end of sequence between
them, and cut to one length, so a text may hold parts of two documents and attention crosses the border, as in T5.
Runs data-parallel under torchrun as it is.

examples:
  softprompt pretrain --size mini --vocabulary runs/vocabulary --corpus corpus --heldout corpus/heldout \
      --steps 10000 --out runs/mini-span
  softprompt pretrain --size mini --vocabulary runs/vocabulary --corpus corpus --steps 10000 \
      --out runs/mini-span --resume
  softprompt pretrain --model google/t5-v1_1-small --corpus corpus --steps 1000 --out runs/small-more
"""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import MISSING, replace
from pathlib import Path
from typing import Any

from softprompt.base.files import CHECKPOINT, held
from softprompt.base.setting import settings_of
from softprompt.base.terminal import Display, counted, say, type_of_products, writing
from softprompt.cli import add_settings, add_shared, flags_of, set_up
from softprompt.cluster import device_of_torchrun, size_of_torchrun, world_of_torchrun
from softprompt.pretraining import PRESETS, PretrainConfig

SETTINGS = {name: setting for name, setting in settings_of(PretrainConfig).items() if name != "objective"}
OBJECTIVE = "span"
MACHINE = {"device": "auto", "dtype": "auto", "compile": True}
CHANGES = {
    "dtype": {
        "help": "of products; weights stay float32",
        "shown": "auto, bfloat16 where it is fast",
        "choices": ("auto", "float32", "bfloat16"),
    },
    "compile": {"default": True},
}
"""What the help of a run's setting says otherwise here."""


def add_training_flags(command: argparse.ArgumentParser, objective: str) -> None:
    """Add the flags of a training on text by this objective."""
    command.add_argument("--corpus", nargs="+", required=True, metavar="PATH", help="files or folders of text")
    command.add_argument(
        "--heldout", nargs="+", metavar="PATH", help="text for the loss only (default: the corpus's last part)"
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder for checkpoint, curve and model")
    command.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        default="fast",
        help="where all other numbers come from: ours for small models and budgets, or T5 1.1's (default: fast)",
    )
    fast, paper = PRESETS["fast"][objective], PRESETS["paper"][objective]
    shown = {}
    for name, setting in SETTINGS.items():
        usual = fast.get(name, setting.default)
        shown[name] = replace(setting, default=usual)
        if paper.get(name, usual) != usual:
            of_paper = f"{paper[name]} with --preset paper"
            shown[name] = replace(shown[name], shown=of_paper if usual is MISSING else f"{usual}; {of_paper}")
    add_settings(command, shown)
    add_shared(command, [*MACHINE, "threads", "log_to"], changes=CHANGES)
    command.set_defaults(**MACHINE)
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    command.add_argument("--overwrite", action="store_true", help="train into a folder that holds a model already")


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt pretrain."""
    command.add_argument("--size", help="a new model: micro, tiny, mini, small … xxl, or a JSON file with a shape")
    command.add_argument("--vocabulary", metavar="DIR", help="a new model's, what softprompt vocabulary wrote")
    command.add_argument("--model", metavar="M", help="or go on from this one: folder or hub id of a T5-shaped model")
    command.add_argument(
        "--tables-from", metavar="M", help="start both vocabulary tables from a wider model's embeddings, by PCA"
    )
    add_training_flags(command, OBJECTIVE)


def run(args: argparse.Namespace) -> int:
    """Make or read the model, and train it."""
    with starting(args, OBJECTIVE):
        from softprompt.models import load, load_tokenizer, shape_of
        from softprompt.pretraining import new_model, read_model

        if args.model is not None:
            if args.size or args.vocabulary or args.tables_from:
                raise ValueError(
                    "--model has a size and a vocabulary of its own; leave out --size, --vocabulary and --tables-from"
                )
            return train_model(args, *read_model(args.model), OBJECTIVE, args.model)
        if not (args.size and args.vocabulary):
            raise ValueError("give --size and --vocabulary for a new model, or --model for one to go on from")
        shape = shape_of(args.size)
        tokenizer = load_tokenizer(args.vocabulary)
        wider = load(args.tables_from, dtype="float32") if args.tables_from else None
        model = new_model(shape, tokenizer, seed=args.seed or 0, tables_from=wider)
        return train_model(args, model, tokenizer, OBJECTIVE, args.vocabulary)


@contextmanager
def starting(args: argparse.Namespace, objective: str) -> Iterator[None]:
    """Hold --out for a training. ValueError where another has it, where the steps are not said, or where earlier
    results would be trained over by accident.
    """
    if args.steps is None and "steps" not in PRESETS[args.preset][objective]:
        raise ValueError("how many steps? give --steps")
    out = Path(args.out)
    writes = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    with held(out) if writes else nullcontext():
        if not (args.resume or args.overwrite):
            if (out / "config.json").exists():
                raise ValueError(f"{out} holds a model already; give another --out, or --overwrite")
            if (out / CHECKPOINT).exists():
                raise ValueError(f"{out} holds an unfinished run; --resume goes on with it, --overwrite starts again")
        set_up(args.threads)
        yield


def train_model(args: argparse.Namespace, model: Any, tokenizer: Any, objective: str, vocabulary: str) -> int:
    """Train the model on the corpus, and print how it ended. vocabulary: what messages call the tokenizer."""
    from softprompt.models import choose_device, choose_dtype
    from softprompt.pretraining import Machine, check_processes, pretrain

    config = PretrainConfig(objective=objective, **{**PRESETS[args.preset][objective], **flags_of(args, SETTINGS)})
    device = choose_device(device_of_torchrun(args.device))
    bfloat16 = "bfloat16" in str(choose_dtype(args.dtype, device))
    check_processes(size_of_torchrun(), config)
    with world_of_torchrun(str(device)) as world:
        stream, heldout = _corpus(args, tokenizer, config)
        if world.is_first:
            weights = f"{model.num_parameters() / 1e6:,.1f} million weights"
            text = f"{len(stream.ids) / 1e6:,.1f} million tokens of {counted(stream.num_documents, 'document')}"
            say(f"{weights}, {text}, {type_of_products(bfloat16, device)}")
        folder = Path(args.out)
        with Display(folder / "logs", args.log_to) as display, writing(folder):
            display.begin(config.steps, config.batch_size)
            try:
                curve = pretrain(
                    model.to(device),
                    tokenizer,
                    stream,
                    heldout,
                    config,
                    folder=folder,
                    name=vocabulary,
                    resume=args.resume,
                    machine=Machine(args.compile, bfloat16, world),
                    watch=display.watch(),
                )
            except KeyboardInterrupt:
                at = f"stopped at step {display.at} of {config.steps}"
                raise KeyboardInterrupt(f"{at}; the same command with --resume goes on from there") from None
    if world.is_first:
        last = curve[-1]
        print(f"{args.out}: {last['tokens'] / 1e6:,.1f} million tokens, held-out loss {last['heldout']:.4f}")
    return 0


def _corpus(args: argparse.Namespace, tokenizer: Any, config: PretrainConfig) -> tuple[Any, Any]:
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
