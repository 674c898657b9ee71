"""Look at a saved prompt as the paper's section 7 does: the vocabulary's nearest tokens to each row by cosine,
whether the labels it began with persist, which rows share a neighbour, how long rows are and how far they went from
where they began (1 - cosine), and what is wrong with them. With --ablate, also what the score loses without each row.

examples:
  softprompt inspect --prompt runs/sst2
  softprompt inspect --prompt runs/sst2 --nearest 10 --json
  softprompt inspect --prompt runs/sst2 --ablate --data DATA --limit 500
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

from softprompt.base.terminal import Display, counted, number, table
from softprompt.cli.options import PROMPT_HELP, add_shared, read_data, say_if_slow, set_up

LIMIT = 200  # ours: examples that an ablation scores, for each row of the prompt


def add_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags of softprompt inspect."""
    command.add_argument("--prompt", required=True, metavar="DIR", help=PROMPT_HELP)
    command.add_argument("--model", metavar="M", help="the frozen model (default: the one the prompt names)")
    command.add_argument("--nearest", type=int, default=5, metavar="N", help="tokens shown of each row (default: 5)")
    command.add_argument("--ablate", action="store_true", help="also score the prompt without each of its rows")
    add_shared(command, ["data"], title="")
    command.add_argument("--split", metavar="S", help="what --ablate scores (default: dev)")
    command.add_argument("--limit", type=int, metavar="N", help=f"examples --ablate scores (default: {LIMIT})")
    command.add_argument("--json", action="store_true", help="one JSON object")
    add_shared(command, ["threads"], title="")


def run(args: argparse.Namespace) -> int:
    """Look at the prompt, score it without each row if asked, and print a page or JSON."""
    set_up(args.threads)
    from softprompt.answering import inspect_prompt, load_for, open_prompts
    from softprompt.prompts import check_fits, load_prompt

    for name in ("data", "split", "limit"):
        if getattr(args, name) is not None and not args.ablate:
            raise ValueError(f"--{name} is for --ablate; add it, or leave --{name} out")
    prompt = load_prompt(args.prompt)
    say_if_slow(args.model or prompt.card.model_name)
    ablation = None
    if args.ablate:
        saved = open_prompts(args.prompt, model=args.model)
        found = inspect_prompt(prompt, saved.lm, args.nearest)
        ablation = _ablated(args, saved)
    else:
        lm = load_for(prompt, args.model)
        check_fits(prompt, lm)
        found = inspect_prompt(prompt, lm, args.nearest)
    if args.json:
        labels = [asdict(label) | {"persists": label.persists} for label in found.labels]
        hashes = {"prompt_hash": prompt.identity, "values_hash": prompt.sha256}
        print(json.dumps(asdict(found) | {"labels": labels, "ablation": ablation} | hashes, ensure_ascii=False))
    else:
        print(_page(args.prompt, prompt, found, ablation))
    return 0


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
