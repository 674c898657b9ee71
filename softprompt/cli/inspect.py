"""softprompt inspect"""

from __future__ import annotations

import argparse
from typing import Any

from softprompt.base.command import Command
from softprompt.base.terminal import Display, counted, number, table
from softprompt.cli.options import add_flags, read_data, say_if_slow, set_threads

LIMIT = 200  # ours: examples that an ablation scores, for each row of the prompt


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", required=True, metavar="DIR", help="a folder that train wrote")
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument("--nearest", type=int, default=5, metavar="N", help="tokens shown of each row (default: 5)")
    command.add_argument("--ablate", action="store_true", help="also score the prompt without each of its rows")
    add_flags(command, ["data"], title="")
    command.add_argument("--split", metavar="S", help="what --ablate scores (default: dev)")
    command.add_argument("--limit", type=int, metavar="N", help=f"examples --ablate scores (default: {LIMIT})")
    command.add_argument("--json", action="store_true", help="one JSON object")
    add_flags(command, ["threads"], title="")


def _inspect(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    set_threads(args.threads)
    from softprompt.answering import inspect_prompt
    from softprompt.prompts import load_prompt

    for name in ("data", "split", "limit"):
        if getattr(args, name) is not None and not args.ablate:
            raise ValueError(f"--{name} is for --ablate; add it, or leave --{name} out")
    prompt = load_prompt(args.prompt)
    say_if_slow(args.model or prompt.card.model_name)
    saved, lm = _model(args, prompt)
    found = inspect_prompt(prompt, lm, args.nearest)
    ablation = _ablated(args, saved) if args.ablate else None
    if args.json:
        labels = [asdict(label) | {"persists": label.persists} for label in found.labels]
        print(json.dumps(asdict(found) | {"labels": labels, "ablation": ablation}, ensure_ascii=False))
        return 0
    print(_page(args.prompt, prompt, found, ablation))
    return 0


def _model(args: argparse.Namespace, prompt: Any) -> tuple[Any, Any]:
    """The saved prompt where it is to be scored, and the model it belongs to."""
    from softprompt.answering import load_for, open_prompts
    from softprompt.prompts import check_fits

    if args.ablate:
        saved = open_prompts(args.prompt, model=args.model)
        return saved, saved.lm
    lm = load_for(prompt, args.model)
    check_fits(prompt, model_name=lm.name, fingerprint=lm.fingerprint, width=lm.width)
    return None, lm


def _ablated(args: argparse.Namespace, saved: Any) -> dict[str, Any]:
    from softprompt.answering import ablate
    from softprompt.tasks import read_split

    split, limit = args.split or "dev", LIMIT if args.limit is None else args.limit
    if limit < 1:
        raise ValueError(f"--limit is {limit}, but must be 1 or more")
    examples = read_split(saved.task, split, read_data(args.data, split=split)).examples[:limit]
    display = Display()
    try:
        whole, without = ablate(saved, examples, watch=display.watch())
    finally:
        display.close()
    return {"split": split, "num_examples": len(examples), "score": whole, "without": without}


def _page(folder: str, prompt: Any, found: Any, ablation: dict[str, Any] | None) -> str:
    count = counted(prompt.length, "row")
    head = f"{folder}: {count} of width {prompt.width}, {prompt.card.task or 'no task'}, {prompt.card.model_name}"
    norm = f"norms are in units of the vocabulary's median, {found.vocabulary_norm:.3g}"
    between = f"mean cosine of two rows {found.mean_cosine:.3f}"
    parts = [head, f"{norm}; {between}", "", _rows(found, ablation)]
    if ablation:
        parts += ["", f"with all rows {number(ablation['score'])} on {ablation['num_examples']} of {ablation['split']}"]
    if found.labels:
        parts += ["", *map(_label, found.labels)]
    parts += ["", _shared(found)]
    parts += [f"warning: {text}" for text in found.warnings]
    return "\n".join(parts)


def _rows(found: Any, ablation: dict[str, Any] | None) -> str:
    lines = [["row", "norm", "drift", *(["without it"] if ablation else []), "began as", "nearest by cosine"]]
    for row, start, drift in zip(found.rows, found.starts, found.drift, strict=True):
        near = "  ".join(f"{token!r} {cosine:.2f}" for token, cosine in zip(row.tokens, row.cosines, strict=True))
        without = [f"{ablation['without'][row.position] - ablation['score']:+.4f}"] if ablation else []
        shown = "-" if drift is None else f"{drift:.3f}"
        cells = [str(row.position), f"{row.norm / found.vocabulary_norm:.2f}", shown, *without]
        lines.append([*cells, repr(start) if start else "-", near])
    return table(lines)


def _label(label: Any) -> str:
    near = f"near rows {', '.join(map(str, label.near))}" if label.near else "near no row"
    if label.persists is None:
        return f"label {label.label!r}: {near}; no row began as it"
    kept = "persists" if label.persists else "does not persist"
    return f"label {label.label!r}: {near}; began as row {', '.join(map(str, label.started))} and {kept}"


def _shared(found: Any) -> str:
    if not found.shared:
        return "no two rows have the same nearest token"
    shown = [f"{token!r} ({', '.join(map(str, places))})" for token, places in list(found.shared.items())[:10]]
    return f"nearest of several rows: {', '.join(shown)}"


COMMAND = Command(
    add_flags=_add_inspect,
    run=_inspect,
    text=(
        "Look at a saved prompt as the paper's section 7 does: the vocabulary's nearest tokens to each row by cosine, "
        "whether the labels it began with persist, which rows share a neighbour, how long rows are and how far they "
        "went from where they began (1 - cosine), and what is wrong with them. With --ablate, also what the score "
        "loses without each row."
    ),
    examples=(
        "softprompt inspect --prompt runs/sst2",
        "softprompt inspect --prompt runs/sst2 --nearest 10 --json",
        "softprompt inspect --prompt runs/sst2 --ablate --data DATA --limit 500",
    ),
)
