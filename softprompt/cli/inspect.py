"""Look at a saved prompt as the paper's section 7 does: the vocabulary's nearest tokens to each row by cosine,
whether the labels it began with persist, which rows share a neighbour, how long rows are and how far they went from
where they began (1 - cosine), and what is wrong with them. With --ablate, also what the score loses without each row.
With --nearest DIR, which of the prompts saved there starts a task best: by the loss on 32 of its training rows.

examples:
  softprompt inspect --prompt runs/sst2
  softprompt inspect --prompt runs/sst2 --nearest 10 --json
  softprompt inspect --prompt runs/sst2 --ablate --data DATA --limit 500
  softprompt inspect --nearest runs --task cb --data DATA
"""

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from softprompt.base.terminal import Display, counted, number, table
from softprompt.cli.options import PROMPT_HELP, add_shared, config_of, flags_of, read_data, say_if_slow, set_up

LIMIT = 200  # ours: examples that an ablation scores, for each row of the prompt
OF_TASK = ("task", "inputs", "targets", "labels")  # what --nearest DIR orders prompts for, with --data


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt inspect."""
    command.add_argument("--prompt", metavar="DIR", help=PROMPT_HELP)
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument(
        "--nearest",
        default="5",
        metavar="N|DIR",
        help="tokens shown of each row (default: 5), or a folder whose prompts are ordered by how they start a task",
    )
    command.add_argument("--ablate", action="store_true", help="also score the prompt without each of its rows")
    add_shared(command, ["data"], title="")
    command.add_argument("--split", metavar="S", help="what --ablate scores (default: dev)")
    command.add_argument("--limit", type=int, metavar="N", help=f"examples --ablate scores (default: {LIMIT})")
    command.add_argument("--json", action="store_true", help="one JSON object")
    add_shared(command, ["threads"], title="")
    add_shared(command, OF_TASK, title="the task of --nearest DIR")


def run(args: argparse.Namespace) -> int:
    """Look at the prompt, score it without each row if asked, and print a page or JSON."""
    set_up(args.threads)
    from softprompt.answering import inspect_prompt, load_for, open_prompts
    from softprompt.prompts import check_fits, load_prompt

    try:
        count = int(args.nearest)
    except ValueError:
        return _order_starts(args)
    for name in ("data", "split", "limit"):
        if getattr(args, name) is not None and not args.ablate:
            more = " (or --nearest DIR)" if name == "data" else ""
            raise ValueError(f"--{name} is for --ablate{more}; add it, or leave --{name} out")
    for name in OF_TASK:
        if getattr(args, name):
            raise ValueError(f"--{name} is for --nearest DIR; give a folder of prompts there, or leave --{name} out")
    if args.prompt is None:
        raise ValueError("which prompt? give --prompt, or --nearest with a folder of prompts")
    prompt = load_prompt(args.prompt)
    say_if_slow(args.model or prompt.card.model_name)
    ablation = None
    if args.ablate:
        saved = open_prompts(args.prompt, model=args.model)
        found = inspect_prompt(prompt, saved.lm, count)
        ablation = _ablated(args, saved)
    else:
        lm = load_for(prompt, args.model)
        check_fits(prompt, lm)
        found = inspect_prompt(prompt, lm, count)
    if args.json:
        labels = [asdict(label) | {"persists": label.persists} for label in found.labels]
        hashes = {"prompt_hash": prompt.identity, "values_hash": prompt.sha256}
        print(json.dumps(asdict(found) | {"labels": labels, "ablation": ablation} | hashes, ensure_ascii=False))
    else:
        print(_page(args.prompt, prompt, found, ablation))
    return 0


def _order_starts(args: argparse.Namespace) -> int:
    """Order the prompts in a folder by how well they start a task, and print a table, or JSON."""
    from softprompt.answering import load_for
    from softprompt.training import nearest_starts, prompts_in

    with Display() as display:
        prompts = prompts_in(Path(args.nearest), display.watch())
        for name in ("prompt", "ablate", "split", "limit"):
            given = getattr(args, name)
            if given is not None and given is not False:
                raise ValueError(f"--nearest {args.nearest} looks at the prompts in that folder; leave --{name} out")
        models = {prompt.card.model_fingerprint: prompt.card.model_name for prompt in prompts.values()}
        if len(models) > 1 and args.model is None:
            names = ", ".join(sorted(str(name) for name in models.values()))
            raise ValueError(f"{args.nearest} holds prompts of several models, {names}; say which with --model")
        first = next(iter(prompts.values()))
        model = args.model or first.card.model_name
        data = read_data(args.data, split="train")
        config = config_of({"model": str(model), "data": data, **flags_of(args, OF_TASK)})
        say_if_slow(model)
        starts = nearest_starts(prompts, config, load_for(first, args.model), display.watch())
    best = next(iter(starts.losses))
    words = ["softprompt", "train", "--model", str(model), "--init", str(best)]
    words += ["--prompt-length", str(prompts[best].length), *(["--method", "kv"] if prompts[best].is_kv else [])]
    for name in ("inputs", "targets"):
        words += [f"--{name}", getattr(args, name)] if getattr(args, name) else []
    for name in ("task", "label"):
        for value in getattr(args, "labels" if name == "label" else name) or ():
            words += [f"--{name}", value]
    words += ["--data", *args.data] if args.data else []
    if args.json:
        print(json.dumps(_starts_json(starts, prompts, words), ensure_ascii=False))
    else:
        print(_starts_text(starts, prompts, words))
    return 0


def _starts_json(starts: Any, prompts: Mapping[Path, Any], words: list[str]) -> dict[str, Any]:
    entries = []
    for path, loss in starts.losses.items():
        prompt = prompts[path]
        about = {"task": prompt.card.task, "length": prompt.length, "method": "kv" if prompt.is_kv else "prompt"}
        entries.append({"prompt": str(path), "loss": loss, **about})
    own = {"init": starts.own[0], "loss": starts.own[1]}
    return {"num_rows": starts.num_rows, "prompts": entries, "own": own, "next": words}


def _starts_text(starts: Any, prompts: Mapping[Path, Any], words: list[str]) -> str:
    rows = [["start", "loss", "of the task", "tokens"]]
    for path, loss in starts.losses.items():
        prompt = prompts[path]
        kind = " of keys and values" if prompt.is_kv else ""
        rows.append([str(path), number(loss), prompt.card.task or "-", f"{prompt.length}{kind}"])
    init, own_loss = starts.own
    rows.append([f"train's own, {init}", number(own_loss), "-", "-"])
    lines = [f"loss on {counted(starts.num_rows, 'training row')}, without training", table(rows)]
    if own_loss <= min(starts.losses.values()):
        lines.append(f"none of these starts better than train's own, {init}")
    return "\n".join([*lines, "", f"next: {shlex.join(words)}"])


def _ablated(args: argparse.Namespace, saved: Any) -> dict[str, Any]:
    from softprompt.answering import ablate
    from softprompt.tasks import read_split

    split, limit = args.split or "dev", LIMIT if args.limit is None else args.limit
    if limit < 1:
        raise ValueError(f"--limit is {limit}, but must be 1 or more")
    examples = read_split(saved.task, split, read_data(args.data, split=split)).examples[:limit]
    with Display() as display:
        whole, without = ablate(saved, examples, watch=display.watch())
    return {"split": split, "num_examples": len(examples), "score": whole, "without": without}


def _page(folder: str, prompt: Any, found: Any, ablation: dict[str, Any] | None) -> str:
    count = counted(prompt.length, "row")
    lines = [
        f"{folder}: {count} of width {prompt.width}, {prompt.card.task or 'no task'}, {prompt.card.model_name}",
        f"prompt_hash {prompt.identity[:12]} (of all that changes answers), values_hash {prompt.sha256[:12]}",
        f"norms are in units of the vocabulary's median, {found.vocabulary_norm:.3g}; "
        f"mean cosine of two rows {found.mean_cosine:.3f}",
        "",
        _rows_table(found, ablation),
    ]
    if ablation:
        lines += ["", f"with all rows {number(ablation['score'])} on {ablation['num_examples']} of {ablation['split']}"]
    if found.labels:
        lines.append("")
    for label in found.labels:
        near = f"near rows {', '.join(map(str, label.near))}" if label.near else "near no row"
        if label.persists is None:
            began = "no row began as it"
        else:
            kept = "persists" if label.persists else "does not persist"
            began = f"began as row {', '.join(map(str, label.started))} and {kept}"
        lines.append(f"label {label.label!r}: {near}; {began}")
    shared = [f"{token!r} ({', '.join(map(str, rows))})" for token, rows in list(found.shared.items())[:10]]
    nearest = f"nearest of several rows: {', '.join(shared)}" if shared else "no two rows have the same nearest token"
    return "\n".join([*lines, "", nearest, *(f"warning: {text}" for text in found.warnings)])


def _rows_table(found: Any, ablation: dict[str, Any] | None) -> str:
    table_rows = [["row", "norm", "drift", *(["without it"] if ablation else []), "began as", "nearest by cosine"]]
    for row, start, drift in zip(found.rows, found.starts, found.drift, strict=True):
        cells = [
            str(row.position),
            f"{row.norm / found.vocabulary_norm:.2f}",
            "-" if drift is None else f"{drift:.3f}",
        ]
        if ablation:
            cells.append(f"{ablation['without'][row.position] - ablation['score']:+.4f}")
        near = "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in zip(row.tokens, row.cosines, strict=True))
        table_rows.append([*cells, repr(start) if start else "-", near])
    return table(table_rows)
