"""Tables in README and docs, made from the committed rows; nothing there is typed by hand.

    python benchmarks/tables.py            # rewrites README.md and docs/*.md between their markers

A marker is `<!-- table: NAME -->`, and the table ends at `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bundled import table as bundled_table
from family import current, heldout_by_tokens
from family import table as family_table
from smollm2_study import table as tasks_table
from train_speed import RIVALS

from softprompt.answering.rows import read_rows
from softprompt.base.files import write_whole
from softprompt.models import SIZES
from softprompt.study import paper
from softprompt.study.claims import MAJORITY, as_table, decide
from softprompt.study.params import t5
from softprompt.study.rows import newest, short_name
from softprompt.study.rows import table as study_table
from softprompt.study.significance import NOT_SEEN, SEEN, UNTESTABLE

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def render(text: str, results: Path) -> str:
    """The document with every marked table made anew from the rows in `results`."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]](results).rstrip()}\n{match[3]}"

    return MARKED.sub(fill, text)


# SmolLM2-135M: a row of a prompt is as wide as its embeddings; keys and values of a position are those of 30 layers, 3
# key heads of 64.
NUMBERS_A_ROW = {None: 576, "kv": 2 * 30 * 3 * 64}
DEMO = {None: "a prompt that starts as four of the messages with their answers", "kv": "keys and values in every layer"}


def demo(results: Path) -> str:
    """What the demo's prompts learn, and how long it took when it was last recorded (`demo.py --record`)."""
    by_method: dict[str | None, list[dict[str, Any]]] = {}
    for row in read(results / "demo.jsonl"):
        by_method.setdefault(row["config"]["method"], []).append(row)
    if not by_method:
        return nothing_yet("softprompt train, as docs/benchmarks.md has it")
    lines = ["| what is trained | numbers | bytes | right of 120 new messages, three seeds |", "|---|--:|--:|--:|"]
    for method, rows in by_method.items():
        numbers = [NUMBERS_A_ROW[method] * row["config"]["prompt_length"] for row in rows]
        scores = [100 * row["value"] for row in rows]
        sizes = dict.fromkeys(f"{one:,}" for one in (min(numbers), max(numbers)))
        size, num_bytes = " to ".join(sizes), f"{4 * max(numbers):,}"
        lines.append(f"| {DEMO[method]} | {size} | {num_bytes} | {fmean(scores):.1f} ± {stdev(scores):.1f} % |")
    record = results / "demo.txt"
    if record.exists():
        seconds = re.search(r"took (\d+) s after installation", record.read_text())
        if seconds is None:
            raise ValueError(f"{record} does not end with what the demo took")
        lines += [
            "",
            f"[What it prints](results/demo.txt); both trainings took {int(seconds[1]) / 60:.0f} minutes on two cores.",
        ]
    return "\n".join(lines)


def highlights(results: Path) -> str:
    """The README's three lines of results."""
    dev = [row for row in read(results / "sst2.jsonl") if row["split"] == "dev" and row["seed"] >= 0]
    steps = {(row["model"], row["task"], row["rival"]): row for row in read(results / "train_speed.jsonl")}
    served = {(row["model"], row["rival"], row["num_prompts"]): row for row in read(results / "serve_throughput.jsonl")}
    if not (dev and steps and served):
        return nothing_yet("benchmarks/sst2.py, train_speed.py and serve.py")
    scores = [100 * row["value"] for row in dev]
    minutes = fmean(row["seconds"] for row in dev) / 60
    step = steps["smollm2-135m", "glue/sst2", "peft documented"]
    best = steps["smollm2-135m", "glue/sst2", "peft best"]
    switching = served["smollm2-135m", "switching", 64]
    grouped = served["smollm2-135m", "grouped", 64]
    return "\n".join(
        [
            f"- SST-2 with SmolLM2-135M: {fmean(scores):.1f} ± {stdev(scores):.1f} % of dev, {len(dev)} seeds, "
            f"{minutes:.0f} minutes each on two cores.",
            f"- A training step of it: {step['ratio']:.1f} times as fast as PEFT as documented, "
            f"{best['ratio']:.1f} times PEFT at its best.",
            f"- Serving it with 64 prompts: {switching['ratio']:.1f} times the requests of PEFT that switches "
            f"adapters, {grouped['ratio']:.1f} times those of PEFT in batches of one prompt "
            f"({switching['rival_dtype']}).",
        ]
    )


def sst2(results: Path) -> str:
    """Dev and test accuracy by seed, and of the vote."""
    rows = read(results / "sst2.jsonl")
    if not rows:
        return nothing_yet("benchmarks/sst2.py")
    lines = ["| split | prompts | accuracy | minutes of training | steps |", "|---|---|--:|--:|--:|"]
    for split in ("dev", "test"):
        single = [row for row in rows if row["split"] == split and row["seed"] >= 0]
        lines += [_sst2_line(split, f"seed {row['seed']}", row) for row in single]
        if len(single) > 1:
            values = [row["value"] for row in single]
            lines.append(f"| {split} | mean ± deviation | {fmean(values):.3f} ± {stdev(values):.3f} | | |")
        votes = [row for row in rows if row["split"] == split and row["seed"] < 0]
        lines += [_sst2_line(split, f"vote of {len(row['config']['prompts'])}", row) for row in votes]
    return "\n".join([*lines, "", f"{rows[0]['model']}; {where(rows)}."])


def _sst2_line(split: str, prompts: str, row: dict[str, Any]) -> str:
    steps = row["steps_run"] or ""
    return f"| {split} | {prompts} | {row['value']:.3f} | {row['seconds'] / 60:.1f} | {steps} |"


def tasks(results: Path) -> str:
    """Tasks beside their baselines."""
    if not read(results / "smollm2_tasks.jsonl"):
        return nothing_yet("benchmarks/smollm2_study.py")
    return tasks_table(results / "smollm2_tasks.jsonl", results / "baselines.jsonl")


def train_speed(results: Path) -> str:
    """A training step of PEFT's over ours, for each set and rival; the newest row of each."""
    newest = {
        (row["model"], row["task"], row["rival"], row["dropout"]): row for row in read(results / "train_speed.jsonl")
    }
    if not newest:
        return nothing_yet("benchmarks/train_speed.py")
    lines = [
        "| model, ours | set | rival | dropout of both | rival s | ours s | ratio | wanted | share of peak of each |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    models = list(dict.fromkeys(row["model"] for row in newest.values()))
    rows = sorted(
        newest.values(),
        key=lambda row: (models.index(row["model"]), row["task"], RIVALS.index(row["rival"].removeprefix("peft "))),
    )
    for row in rows:
        wanted = "" if row["needed"] is None else f"{row['needed']:g}{'' if row['reached'] else ' (missed)'}"
        shares = f"{row['theirs']['share_of_matmul_peak']:.0%}, {row['ours']['share_of_matmul_peak']:.0%}"
        seconds = f"{row['theirs']['seconds']:.2f} | {row['ours']['seconds']:.2f}"
        lines.append(
            f"| {row['model']}, {row['dtype']} | {row['task']} | {row['rival']}, {row['theirs']['padding']} "
            f"| {row['dropout']} "
            f"| {seconds} | {row['ratio']:.2f} | {wanted} | {shares} |"
        )
    last = rows[-1]
    note = f"Batch {last['batch_size']}, prompt length {last['prompt_length']}; medians"
    return "\n".join([*lines, "", f"{note}; {where(rows)}, PEFT {last['peft']}."])


def members(results: Path) -> str:
    """Members together against one after another; the newest row of each."""
    names = ("model", "members", "prompt_length", "batch_size")
    newest = {tuple(row[name] for name in names): row for row in read(results / "members.jsonl")}
    if not newest:
        return nothing_yet("benchmarks/members.py")
    lines = [
        "| model | prompts | length | batch of each | in turn / together, time | MB in turn | MB together |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['model'].split(',')[0]} | {row['members']} | {row['prompt_length']} | {row['batch_size']} "
        f"| {row['ratio']:.2f} "
        f"| {row['one_after_another_peak_mb']:,} | {row['together_peak_mb']:,} |"
        for row in newest.values()
    ]
    return "\n".join([*lines, "", f"SST-2; {where(newest.values())}."])


def family(results: Path) -> str:
    """What pre-training the small T5s took and bought."""
    rows = current(read(results / "t5_family.jsonl"))
    return f"{family_table(rows)}\n\n{where(rows)}." if rows else nothing_yet("benchmarks/family.py")


def family_curves(results: Path) -> str:
    """Held-out loss against tokens read, by size."""
    rows = current(read(results / "t5_family.jsonl"))
    return heldout_by_tokens(rows) if rows else nothing_yet("benchmarks/family.py")


def bundled(results: Path) -> str:
    """Prompts on the model that ships, beside words alone and the untrained shape."""
    rows = read_rows(results / "t5_mini_tasks.jsonl")
    return bundled_table(rows, read_rows(results / "baselines.jsonl")) if rows else nothing_yet("benchmarks/bundled.py")


def study(results: Path, name: str) -> str:
    """What an experiment of the paper found here."""
    rows = [row for row in read_rows(results / "study.jsonl") if row.experiment == name]
    return study_table(rows) if rows else f"No rows yet: `softprompt experiment {name}` makes them."


def section_7(results: Path) -> str:
    """What lies near the prompts of figure 3b, means over seeds and tasks."""
    rows = [row for row in read_rows(results / "study.jsonl") if "neighbourhood" in row.notes]
    rows = [row for row in newest(rows) if row.experiment == "figure-3b" and row.scoring == "rank"]
    names = ("cosine", "cosine_of_random", "labels_near_labels", "labels_near_sampled")
    lines = [
        "| frozen model | start | cosine of two of a row's five nearest tokens | of a random direction's "
        "| label rows near their label | sampled rows near a label |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for asked, point in dict.fromkeys((row.config["asked"], row.config["point"]) for row in rows):
        own = [r.notes["neighbourhood"] for r in rows if (r.config["asked"], r.config["point"]) == (asked, point)]
        found = [[one[name] for one in own if name in one] for name in names]
        forms = ("{:.2f}", "{:.2f}", "{:.0%}", "{:.0%}")
        cells = [form.format(fmean(one)) if one else "-" for form, one in zip(forms, found, strict=True)]
        lines.append(f"| {short_name(asked)} | {point} | {' | '.join(cells)} |")
    return "\n".join(lines) if rows else "No rows yet: `softprompt experiment figure-3b` makes them."


def claims(results: Path) -> str:
    """What the rows say of the paper's claims."""
    rows = read_rows(results / "study.jsonl")
    majority = [row for row in read_rows(results / "baselines.jsonl") if row.config["method"] == MAJORITY]
    lines = [*as_table(decide(rows, majority)), serving_claim(results)]
    head, *body = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([head, "|--:|---|--:|--:|--:|---|---|", *body])


def serving_claim(results: Path) -> list[str]:
    """Claim 20's line: each measurement of `serve.py mixed` reaches what it should, and so do registered prompts."""
    mixed = {(row["model"], row["measure"]): row for row in read(results / "serve_mixed.jsonl")}
    held = [row for row in read(results / "serve_memory.jsonl") if row["measure"] == "registered"]
    reached = [
        row["ratio"] >= row["wanted"] if measure == "prompts" else row["ratio"] <= row["wanted"]
        for (_, measure), row in mixed.items()
    ] + [row["overhead"] <= row["wanted"] for row in {row["model"]: row for row in held}.values()]
    word = UNTESTABLE if not (mixed and held) else SEEN if all(reached) else NOT_SEEN
    return ["20", "One model serves every task, and an ensemble costs a batch", "measured", "-", "-", word, "-"]


def pretrain_speed(results: Path) -> str:
    """Pre-training beside the plain loop; the newest row of each size."""
    newest = {row["size"]: row for row in read(results / "pretrain_speed.jsonl")}
    if not newest:
        return nothing_yet("benchmarks/pretrain_speed.py")
    lines = ["| size | side | tokens/s | ratio | wanted | share of peak |", "|---|---|--:|--:|--:|--:|"]
    for size, row in newest.items():
        for side, rate in row["tokens_per_s"].items():
            line = f"| {size} | {side} | {rate:,.0f} | "
            if ratio := row["ratio"].get(side):
                missed = "" if ratio >= row["needed"] else " (missed)"
                line += f"{ratio:.2f} | {row['needed']:g}{missed} | {row['share_of_peak'][side]:.0%} |"
            lines.append(line if ratio else line + "1 | - | - |")
    last = [*newest.values()][-1]
    return "\n".join([*lines, "", f"Batch {last['batch_size']}; medians; {where(newest.values())}."])


def continuation(results: Path) -> str:
    """How well the small T5s continue held-out text."""
    rows = list({row["model"]: row for row in read(results / "continuation.jsonl")}.values())  # the newest of each
    if not rows:
        return nothing_yet("benchmarks/continuation.py")
    lines = ["| model | nats a token | perplexity |", "|---|--:|--:|"]
    lines += [
        f"| {row['model'].removeprefix('runs/family/')} | {row['nats_per_token']:.3f} | {row['perplexity']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def serve_throughput(results: Path) -> str:
    """Requests a second beside PEFT's; the newest row of each rival."""
    rows = read(results / "serve_throughput.jsonl")
    newest = {(row["model"], row["rival"], row["rival_dtype"], row["num_prompts"]): row for row in rows}
    if not newest:
        return nothing_yet("benchmarks/serve.py throughput")
    lines = [
        "| model | PEFT | prompts | ours, a second | PEFT's | ratio | wanted | tokens in, out | equal answers |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in newest.values():
        wanted = row["wanted"] or ""
        missed = " (missed)" if wanted and row["ratio"] < wanted else ""
        rates = f"{row['ours_per_second']} | {row['theirs_per_second']}"
        lines.append(
            f"| {row['model']}, {row['threads']} threads | {row['rival']}, {row['rival_dtype']} "
            f"| {row['num_prompts']} | {rates} "
            f"| {row['ratio']:.2f} | {wanted}{missed} "
            f"| {row['mean_input_tokens']}, {row['mean_output_tokens']} | {row['equal_answers']:.1%} |"
        )
    last = [*newest.values()][-1]
    return "\n".join([*lines, "", f"Prompts of {last['prompt_length']} tokens; medians; {where(newest.values())}."])


MEASURES = {
    "prompts": "256 prompts in flight, share of one prompt's throughput",
    "generate": "an ensemble of five, times the seconds of one prompt, writing 8 tokens",
    "score": "the same, scoring two labels",
}


def serve_mixed(results: Path) -> str:
    """What different prompts in one batch cost, and an ensemble of five."""
    rows = read(results / "serve_mixed.jsonl")
    if not rows:
        return nothing_yet("benchmarks/serve.py mixed")
    lines = ["| model | measured | ratio | wanted | answers those of each alone |", "|---|---|--:|--:|---|"]
    for row in {(row["model"], row["measure"]): row for row in rows}.values():
        wanted = f"at {'least' if row['measure'] == 'prompts' else 'most'} {row['wanted']}"
        equal = "yes" if row["equal"] else "NO"
        lines.append(f"| {row['model']} | {MEASURES[row['measure']]} | {row['ratio']:.2f} | {wanted} | {equal} |")
    return "\n".join([*lines, "", f"Prompts of {rows[-1]['prompt_length']} tokens; medians of 5; {where(rows)}."])


def serve_invariant(results: Path) -> str:
    """What equal bits cost."""
    rows = read(results / "serve_invariant.jsonl")
    if not rows:
        return nothing_yet("benchmarks/serve.py invariant")
    lines = ["| model | measured | times the seconds | wanted | answers of other bits than alone | without it |"]
    lines.append("|---|---|--:|--:|--:|--:|")
    for row in {(row["model"], row["measure"]): row for row in rows}.values():
        unlike = f"{row['num_unlike']} of {row['num_requests']} | {row['num_unlike_without']}"
        lines.append(f"| {row['model']} | {row['measure']} | {row['ratio']:.2f} | {row['wanted']:g} | {unlike} |")
    return "\n".join([*lines, "", f"Prompts of {rows[-1]['prompt_length']} tokens; medians of 5; {where(rows)}."])


def serve_load(results: Path) -> str:
    """Requests that arrive at 70 % of capacity while prompts are replaced."""
    rows = read(results / "serve_load.jsonl")
    if not rows:
        return nothing_yet("benchmarks/serve.py load")
    lines = [
        "| model | requests | arriving, of capacity, a second | prompts replaced | errors | wrong | p50 | p90 | p99 |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in {row["model"]: row for row in rows}.values():
        rates = f"{row['arrivals_per_second']} of {row['capacity_per_second']}"
        times = " | ".join(f"{row[name]:.2f} s" for name in ("p50", "p90", "p99"))
        counts = f"{row['num_replaced']} | {row['num_errors']} | {row['num_wrong']}"
        lines.append(f"| {row['model']} | {row['num_requests']} | {rates} | {counts} | {times} |")
    last = rows[-1]
    about = f"Five minutes; {last['mean_input_tokens']} tokens in, up to {last['mean_max_tokens']} out on average"
    return "\n".join([*lines, "", f"{about}; {where([last])}."])


def serve_memory(results: Path) -> str:
    """What registered prompts take, and throughput inside and beyond the memory limit."""
    rows = read(results / "serve_memory.jsonl")
    if not rows:
        return nothing_yet("benchmarks/serve.py memory")
    newest = {(row["model"], row["measure"]): row for row in rows}
    lines = [
        "| model | 1,000 prompts add | limit | prompts: inside, twice | requests a second: inside, twice | highest |",
        "|---|---|--:|---|---|--:|",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        added, limit = newest[model, "registered"], newest[model, "limit"]
        own = f"{added['prompt_bytes'] / 2**20:.0f} MiB and {added['overhead']:.1%}"
        rates = f"{limit['inside_per_second']}, {limit['twice_per_second']}"
        sizes = [f"{limit[name] / 2**20:.0f} MiB" for name in ("max_memory", "highest_bytes")]
        counts = f"{limit['num_inside']}, {limit['num_twice']}"
        lines.append(f"| {model} | {own} | {sizes[0]} | {counts} | {rates} | {sizes[1]} |")
    return "\n".join([*lines, "", f"{where(newest.values())}."])


STARTS = {"help": "`softprompt --help`", "predict": "`softprompt predict` on one line"}


def startup(results: Path) -> str:
    """Seconds until a command has ended; the newest row of each."""
    newest = {(row["measure"], row["model"]): row for row in read(results / "startup.jsonl")}
    if not newest:
        return nothing_yet("benchmarks/startup.py")
    lines = ["| command | model | median s | slowest s | wanted |", "|---|---|--:|--:|--:|"]
    for (measure, model), row in newest.items():
        wanted = f"{row['needed']:g}{'' if row['reached'] else ' (missed)'}"
        shown = "" if measure == "help" else model
        lines.append(f"| {STARTS[measure]} | {shown} | {row['seconds']:.2f} | {max(row['samples']):.2f} | {wanted} |")
    last = [*newest.values()][-1]
    return "\n".join([*lines, "", f"{len(last['samples'])} runs each, files in memory; {where(newest.values())}."])


def types(results: Path) -> str:
    """Which types of models are taken, and why others are not."""
    rows = read(results / "types.jsonl")
    if not rows:
        return "No rows yet: `make slow` makes them."
    taken = [row for row in rows if row["outcome"] == "exact"]
    off = max(max(row["largest"], row.get("peft", 0.0)) for row in taken)
    beside_peft = sum("peft" in row for row in taken)
    lines = [
        f"Taken, {beside_peft} of {len(taken)} beside PEFT too, no log-probability off by more than {off:.0e}: "
        f"{', '.join(row['type'] for row in taken)}.",
        "",
        "| not taken, as a model that | types |",
        "|---|---|",
    ]
    types_by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row["outcome"] != "exact":
            reason = row["reason"].partition(" (")[0] if row["outcome"] == "refused" else f"is {row['outcome']}"
            types_by_reason.setdefault(reason, []).append(row["type"])
    for reason, names in sorted(types_by_reason.items(), key=lambda pair: -len(pair[1])):
        lines.append(f"| {reason} | {', '.join(names)} |")
    return "\n".join([*lines, "", f"{where(rows)}, transformers {rows[-1]['versions']['transformers']}."])


def released(results: Path) -> str:
    """What the authors' released prompts are to score."""
    lines = ["| task | expected on dev |", "|---|---|"]
    for task, metrics in paper.RELEASED.items():
        lines.append(f"| {task} | {', '.join(f'{name} {value}' for name, value in metrics.items())} |")
    return "\n".join(lines)


# Mean tokens of a training input of each SuperGLUE task by T5's vocabulary, cut at 512, and its rows in dev.
SUPERGLUE_TOKENS = {
    "boolq": (161, 3_270), "cb": (94, 56), "copa": (36, 100), "multirc": (382, 4_848), "record": (322, 10_000),
    "rte": (82, 277), "wic": (29, 638), "wsc": (33, 104),
}  # fmt: skip
H100_FLOPS, SHARE_USED = 989e12, 0.4  # dense bfloat16, its data sheet; and a guess at what of it is used


def paper_costs(results: Path) -> str:
    """What figure 1 takes in memory and time by size, from shapes alone."""
    trained = sum(tokens + 100 for tokens, _ in SUPERGLUE_TOKENS.values()) * 30_000 * 32 * 3
    scored = sum((tokens + 100) * rows for tokens, rows in SUPERGLUE_TOKENS.values()) * 30 * 3
    columns = []
    for size in paper.SIZES:
        shape, num_parameters = SIZES[size], t5(size).num_parameters
        # An input passes the encoder only. Frozen weights take two products a step, and trained ones three.
        encoder = shape.num_layers * (4 * shape.num_heads * shape.d_kv + 3 * shape.d_ff) * shape.d_model
        hours = [2 * encoder * (products * trained + scored) / (H100_FLOPS * SHARE_USED) / 3600 for products in (2, 3)]
        columns.append(
            [
                f"{num_parameters / 1e6:,.0f}",
                f"{2 * num_parameters / 1e9:.1f}",
                f"{28 * num_parameters / 1e9:.1f}",
                *(f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in hours),
            ]
        )
    heads = ("million parameters", "prompts: GB of weights, bfloat16", "model tuning: GB", "prompts: hours",
             "model tuning: hours")  # fmt: skip
    lines = [f"| | {' | '.join(paper.NAMES.values())} |", f"|---|{'--:|' * len(columns)}"]
    lines += [
        f"| {head} | {' | '.join(cells)} |" for head, cells in zip(heads, zip(*columns, strict=True), strict=True)
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"Hours at {SHARE_USED:.0%} of an H100's {H100_FLOPS / 1e12:.0f} TFLOP/s; small models use less of it and "
            "take longer than this.",
        ]
    )


def paper_figure_1(results: Path) -> str:
    """The paper's prompt tuning by size."""
    points = paper.FIGURE_1["prompt tuning"]
    lines = [f"| | {' | '.join(paper.NAMES.values())} |", f"|---|{'--:|' * len(points)}"]
    return "\n".join([*lines, f"| SuperGLUE dev | {' | '.join(map(str, points.values()))} |"])


def paper_ensembles(results: Path) -> str:
    """The paper's table 3."""
    lines = ["| XXL | average | best | ensemble |", "|---|--:|--:|--:|"]
    for task, columns in paper.TABLE_3.items():
        cells = (" / ".join(f"{value:.1f}" for value in values) for values in columns)
        lines.append(f"| {task} | {' | '.join(cells)} |")
    return "\n".join([*lines, f"| SuperGLUE | {' | '.join(map(str, paper.TABLE_3_SUPERGLUE))} |"])


def paper_transfer(results: Path) -> str:
    """The paper's tables 1 and 2."""
    lines = ["| trained on | scored on | metric | prompt tuning | model tuning |", "|---|---|---|--:|--:|"]
    for row in (*paper.TABLE_1, *paper.TABLE_2):
        metric = row.metric.replace("f1", "F1")
        lines.append(f"| {row.source} | {row.task} | {metric} | {row.prompt_tuning} | {row.model_tuning} |")
    return "\n".join(lines)


def admission(results: Path) -> str:
    """What deciding who may run costs by how many wait; the newest row of each."""
    rows = read(results / "admission.jsonl")
    if not rows:
        return nothing_yet("benchmarks/admission.py")
    lines = ["| model | waiting parts are | waiting | ms a turn | µs a part |", "|---|---|--:|--:|--:|"]
    for row in {(row["model"], row["is_admitted"], row["num_waiting"]): row for row in rows}.values():
        what = "let in" if row["is_admitted"] else "passed over"
        turn = f"{1e3 * row['seconds']:.1f} | {row['microseconds_per_part']:.1f}"
        lines.append(f"| {row['model']} | {what} | {row['num_waiting']:,} | {turn} |")
    return "\n".join([*lines, "", f"Processor time, medians; {where(rows)}."])


def nothing_yet(command: str) -> str:
    """What stands where no row has been committed."""
    return f"No rows yet: `python {command}` makes them."


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def where(rows: Iterable[dict[str, Any]]) -> str:
    """Machine, type and versions of the last row, and the commits of all."""
    *_, last = rows
    commits = dict.fromkeys(row["commit"] for row in rows)
    made = f"commit{'' if len(commits) == 1 else 's'} {', '.join(commits)}"
    return f"{last['device']}, {last['dtype']}, torch {last['versions']['torch']}, {made}"


TABLES: dict[str, Callable[[Path], str]] = {
    "demo": demo,
    "highlights": highlights,
    "sst2": sst2,
    "tasks": tasks,
    "train_speed": train_speed,
    "members": members,
    "startup": startup,
    "types": types,
    "family": family,
    "family_curves": family_curves,
    "bundled": bundled,
    "claims": claims,
    "figure_1": partial(study, name="figure-1"),
    "figure_3a": partial(study, name="figure-3a"),
    "figure_3b": partial(study, name="figure-3b"),
    "section_7": section_7,
    "table_1": partial(study, name="table-1"),
    "table_2": partial(study, name="table-2"),
    "table_3": partial(study, name="table-3"),
    "figure_3c": partial(study, name="figure-3c"),
    "figure_3d": partial(study, name="figure-3d"),
    "pretrain_speed": pretrain_speed,
    "serve_throughput": serve_throughput,
    "serve_mixed": serve_mixed,
    "serve_invariant": serve_invariant,
    "serve_load": serve_load,
    "serve_memory": serve_memory,
    "admission": admission,
    "released": released,
    "paper_costs": paper_costs,
    "paper_figure_1": paper_figure_1,
    "paper_transfer": paper_transfer,
    "paper_ensembles": paper_ensembles,
    "continuation": continuation,
}


def main() -> None:
    """Rewrite every document that has markers."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = path.read_text()
        after = render(before, ROOT / "results")
        if after != before:
            write_whole(path, after)
            print(f"{path.name} rewritten")


if __name__ == "__main__":
    main()
