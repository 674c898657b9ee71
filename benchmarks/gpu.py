"""What training and serving cost on a GPU, beside PEFT on the same one.

    python benchmarks/gpu.py --t5 DIR                 # every part, the most valuable first, 8 minutes each at most
    python benchmarks/gpu.py training xxl --t5 DIR    # these
    python benchmarks/gpu.py --tiny --device cpu      # tiny shapes, seconds: does it run?

Nothing is downloaded: models are real shapes with random weights, made on the GPU, texts are this project's documents,
and DIR holds T5's spiece.model (without it a vocabulary is made of the texts). A row is appended to results/gpu.jsonl
(`--results`) as soon as it is known, with the card, versions, commit, all samples, and where a product is timed the
share of the rate that a large square product of the type reached in the same process. What is promised, and was never
measured on a GPU: 3 times PEFT as documented and never slower than PEFT at its best, half of the peak from base on,
XXL's step on one card of 80 GB, 10 times PEFT that switches adapters and 3 times PEFT grouped by prompt, 256 prompts at
0.95 of the speed of one.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import serving_sides
import torch
from sides import (
    LLAMAS,
    SHAPES,
    Layout,
    Ours,
    Peft,
    Side,
    count_flops,
    matmul_peak,
    own_tokenizer,
    t5_tokenizer,
    wait_for,
)
from torch import Tensor

from softprompt.answering import Engine, most_tokens, surroundings
from softprompt.base.files import append_whole
from softprompt.base.memory import peak_bytes, reset_peak
from softprompt.models import FrozenLM, Row, choose_device, default_format
from softprompt.models.tokenizer import Tokenizer
from softprompt.tasks import file_task
from softprompt.training import AdamW, Member, TrainConfig, fit

ROOT = Path(__file__).parent.parent
MINUTES = 8.0  # of a part
PROMPT_LENGTH = 100
BATCH_SIZE = 32
ROUNDS = 5  # timed after two that warm up and compile
LENGTHS = {"short": (8, 64), "long": (200, 512)}  # tokens of inputs, as SST-2's and BoolQ's or MultiRC's
PAPERS = 512  # tokens of the paper's inputs at most, all of them so long here
NEEDED = {"documented": 3.0, "best": 1.0, "switching": 10.0, "grouped": 3.0, "mixed": 0.95}
NEEDED_SHARE = 0.5  # of the matmul peak, from base on
CARD_BYTES = 80e9  # that XXL's step is to fit

LARGER = {
    "t5-1.1-large": {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "t5-1.1-xl": {"d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
    "t5-1.1-xxl": {"d_model": 4096, "d_ff": 10240, "num_heads": 64, "num_layers": 24},
    "tiny": {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_layers": 2},
}
LLAMA = "llama-1b"  # Llama 3.2's of that size
OWN_LLAMAS = {
    LLAMA: {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128_256,
    },
    "tiny-llama": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 8_192,
    },
}  # fmt: skip
SHAPES.update(LARGER)
LLAMAS.update(OWN_LLAMAS)


@dataclass
class Bench:
    """What the parts share."""

    device: str
    is_tiny: bool
    tokenizer: Any
    results: Path
    command: str
    minutes: float
    peaks: dict[str, float] = field(default_factory=dict)
    """GFLOP/s by type."""
    until: float = 0.0
    """When the part must have ended."""

    @property
    def models(self) -> list[str]:
        """Those that are timed."""
        return ["tiny", "tiny-llama"] if self.is_tiny else [
            "t5-1.1-base", LLAMA, "t5-1.1-small", "t5-1.1-large", "t5-1.1-xl"
        ]  # fmt: skip

    @property
    def dtype(self) -> str:
        """What is fast here."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def side(self, model: str, name: str = "ours", **changes: Any) -> Side:
        """A side of the benchmark of training."""
        named = {"source": "", "dtype": self.dtype, "device": self.device} | changes
        return Side(name=name, model=model, prompt_length=5 if self.is_tiny else PROMPT_LENGTH, **named)

    def ours(self, model: str, **changes: Any) -> Ours:
        """Our side."""
        return Ours(self.side(model, **changes), self.tokenizer)

    def row(self, part: str, **found: Any) -> None:
        """Print a row and append it."""
        place = torch.device(self.device)
        where = surroundings(place, getattr(torch, found.pop("dtype", self.dtype)))
        if place.type == "cuda":
            where["versions"] |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            where["memory_gb"] = round(torch.cuda.get_device_properties(place).total_memory / 1e9, 1)
        where["versions"]["peft"] = metadata.version("peft")
        shown = {name: value for name, value in found.items() if name not in ("samples", "ratios")}
        print(part, json.dumps(shown), flush=True)
        about = {"experiment": "gpu", "part": part, "command": self.command, "is_tiny": self.is_tiny}
        append_whole(self.results, json.dumps(about | found | where) + "\n")

    def time_is_up(self) -> bool:
        """Whether the part's minutes are over; then what is left of it is named."""
        return time.monotonic() > self.until

    def free(self) -> None:
        """Give back what nothing holds any more."""
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
        reset_peak(torch.device(self.device))

    def text(self) -> Iterator[str]:
        """Paragraphs of this project's documents, again and again."""
        files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        paragraphs = [text for file in files for text in file.read_text().split("\n\n") if len(text) > 200]
        return itertools.cycle(paragraphs)

    def rows(self, kind: str, count: int = BATCH_SIZE) -> list[Row]:
        """Rows of a kind of LENGTHS, or of the paper's, cut from the documents."""
        tokenizer, lengths = Tokenizer(self.tokenizer), random.Random(0)
        ids: list[int] = []
        texts, rows = self.text(), []
        for index in range(count):
            length = PAPERS if kind == "paper" else lengths.randint(*LENGTHS[kind])
            length = min(length, 40) if self.is_tiny else length
            while len(ids) < length:
                ids += tokenizer.encode_all([next(texts)])[0]
            target = tokenizer.encode_all([("yes", "no")[index % 2]])[0][:3]
            rows.append(Row((*ids[: length - 1], tokenizer.eos_id), (*target, tokenizer.eos_id), False, index))
            ids = ids[length:]
        return rows


def timed(bench: Bench, step: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """Seconds of each call, after two that are not counted."""
    samples, warming = [], 1 if bench.is_tiny else 2
    for _ in range(warming + (1 if bench.is_tiny else rounds)):
        wait_for(bench.device)
        started = time.perf_counter()
        step()
        wait_for(bench.device)
        samples.append(time.perf_counter() - started)
    return samples[warming:]


def peak(bench: Bench) -> None:
    """The rates of a large square product by type, and of a copy: the ceilings of every share below."""
    size = 128 if bench.is_tiny else 8192
    for name in dict.fromkeys(("bfloat16", "float32", bench.dtype)):
        bench.peaks[name] = matmul_peak(getattr(torch, name), size, 0.05 if bench.is_tiny else 2.0, bench.device)
    there = torch.empty(1 << (16 if bench.is_tiny else 31), dtype=torch.uint8, device=bench.device)
    seconds = statistics.median(timed(bench, there.clone))
    tflops = {name: round(rate / 1e3, 2) for name, rate in bench.peaks.items()}
    bench.row("peak", size=size, tflops=tflops, copy_gb_s=round(2 * there.numel() / seconds / 1e9, 1))


def equality(bench: Bench) -> None:
    """Gradients and answers: of the processor in float32, and here in float32 and bfloat16, compiled and not."""
    ways: list[dict[str, Any]] = [{"dtype": "float32"}, {"dtype": "bfloat16"}, {"dtype": bench.dtype, "compiled": True}]
    for model in ("tiny", "tiny-llama") if bench.is_tiny else ("t5-1.1-small", LLAMA):
        rows, layout = bench.rows("short", 8), Layout(600, 0)  # several passes
        reference = _answers(bench.ours(model, dtype="float32", device="cpu"), rows, layout)
        for way in ways[: 2 if bench.is_tiny else 3]:
            bench.free()
            found = _answers(bench.ours(model, **way), rows, layout)
            loss, gradient, scores, written = (
                _apart(a, b) if isinstance(a, Tensor) else sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
                for a, b in zip(found, reference, strict=True)
            )
            tolerance = 1e-3 if way["dtype"] == "float32" else 0.1  # of the largest number; ours
            reached = max(loss, gradient) < tolerance
            bench.row(
                "equality", model=model, loss=loss, gradient=gradient, scores=scores, same_answers=written,
                needed=tolerance, reached=reached, **{"compiled": False} | way,
            )  # fmt: skip


def _answers(ours: Ours, rows: Sequence[Row], layout: Layout) -> tuple[Any, ...]:
    """The loss and gradient of a prompt, label scores, and the ids that are written."""
    prompt = ours.lm.embeddings[100 : 100 + len(ours.prompt)].float()
    loss, gradient = ours.loss_and_gradient(rows, prompt, layout)
    engine, worn = Engine(ours.lm, [prompt], max_tokens=layout.max_tokens), [0] * len(rows)
    scores = engine.label_scores(rows, worn, [[row.target, (5, 1)] for row in rows])
    written = [answer.text for answer in engine.generate(rows, worn, max_target_length=4)]
    return torch.tensor(loss), gradient.float().cpu(), torch.tensor(scores), written


def _apart(found: Tensor, reference: Tensor) -> float:
    """The largest difference, of the largest number."""
    return float(((found - reference).abs().max() / reference.abs().max()).item())


def bits(bench: Bench) -> None:
    """Whether two trainings with one seed end alike, by default and with deterministic algorithms."""
    for model in bench.models[:2]:
        ours = bench.ours(model)
        for deterministic in (False, True):
            ends = [_trained(bench, ours.lm, deterministic) for _ in range(2)]
            largest = float((ends[0] - ends[1]).abs().max())
            same = torch.equal(*ends)
            reached = {"needed": True, "reached": same} if deterministic else {}
            bench.row("bits", model=model, deterministic=deterministic, same=same, apart=largest, **reached)
        del ours
        bench.free()


def _trained(bench: Bench, lm: FrozenLM, deterministic: bool) -> Tensor:
    rows = bench.rows("short", 4 * BATCH_SIZE)
    config = TrainConfig(steps=2 if bench.is_tiny else 10, optimizer=AdamW(learning_rate=0.1), batch_size=BATCH_SIZE)
    start = lm.embeddings[: 5 if bench.is_tiny else PROMPT_LENGTH].float()
    task = file_task(inputs="{text}", targets="{label}", labels=["yes", "no"])
    member = Member(name="m", task=task, form=default_format(lm), config=config, seed=0, values=start, rows=rows)
    return fit(lm, [member], deterministic=deterministic)[0].values


def training(bench: Bench) -> None:
    """A training step beside PEFT's, as documented and at its best, without dropout and with T5's."""
    for model in bench.models:
        rates = [0.0, 0.1] if model in SHAPES else [0.0]
        for kind in ("short",) if bench.is_tiny else ("short", "long"):
            rows = bench.rows(kind)
            width = max(row.num_tokens for row in rows)
            measured: dict[tuple[str, float], dict[str, Any]] = {}
            for name, changes in _sides(bench):
                if bench.time_is_up():
                    print(f"training: no time left for {model}, {kind}, {name}", flush=True)
                    continue
                bench.free()
                side = bench.side(model, name.split(",")[0], **changes)
                computes: Any = Ours(side, bench.tokenizer) if name.startswith("ours") else Peft(side)
                most = most_tokens(computes.lm) if name.startswith("ours") else 0
                layout = Layout(most, 1 << (width - 1).bit_length(), 8 if name == "documented" else BATCH_SIZE)
                for rate in rates:
                    if name == "documented" and rate != rates[-1]:  # T5's own dropout is on as documented
                        continue
                    measured[name, rate] = _step(bench, computes, rows, rate, layout)
                del computes
            for (name, rate), theirs in measured.items():
                own = measured.get(("ours", rate))
                compared = {}
                if own and not name.startswith("ours"):
                    ratio = theirs["seconds"] / own["seconds"]
                    compared = {"ratio": round(ratio, 2), "needed": NEEDED[name], "reached": ratio >= NEEDED[name]}
                elif name == "ours" and model not in ("t5-1.1-small", "tiny", "tiny-llama"):
                    share = theirs["share_of_matmul_peak"] or 0.0
                    compared = {"needed": NEEDED_SHARE, "reached": share >= NEEDED_SHARE}
                bench.row("training", model=model, inputs=kind, side=name, dropout=rate, **theirs, **compared)


def _sides(bench: Bench) -> list[tuple[str, dict[str, Any]]]:
    sides: list[tuple[str, dict[str, Any]]] = [
        ("ours", {}),
        ("documented", {"dtype": "float32"}),
        ("best", {"compiled": not bench.is_tiny}),
    ]
    return sides if bench.is_tiny else [*sides, ("ours, compiled", {"compiled": True})]


def _step(bench: Bench, computes: Any, rows: Sequence[Row], rate: float, layout: Layout) -> dict[str, Any]:
    """The seconds of a step, its share of the peak, and the memory it takes."""
    place = torch.device(bench.device)
    try:
        reset_peak(place)
        samples = timed(bench, lambda: computes.step(rows, rate, layout))
    except torch.OutOfMemoryError:
        return {"seconds": float("inf"), "samples": [], "share_of_matmul_peak": None, "told": "out of memory"}
    seconds, side = statistics.median(samples), computes.side if isinstance(computes, Peft) else None
    passes, dtype = computes.passes(rows, layout), side.dtype if side else bench.dtype
    flops = count_flops(side or bench.side(computes.lm.name), passes)
    share = flops / seconds / 1e9 / bench.peaks[dtype] if bench.peaks else None
    return {
        "seconds": round(seconds, 5),
        "samples": [round(sample, 5) for sample in samples],
        "passes": len(passes),
        "tflops": round(flops / seconds / 1e12, 2),
        "share_of_matmul_peak": None if share is None else round(share, 3),
        "busy": _busy(bench, lambda: computes.step(rows, rate, layout), seconds),
        "peak_memory_mb": round(peak_bytes(place) / 2**20),
        "dtype": dtype,
    }


def _busy(bench: Bench, step: Callable[[], object], seconds: float) -> float | None:
    """The share of a step's time in which the GPU computes."""
    if bench.device == "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        wait_for(bench.device)
    return round(sum(event.self_device_time_total for event in seen.key_averages()) / 1e6 / seconds, 3)


def xxl(bench: Bench) -> None:
    """A step of T5 XXL as in the paper: 32 rows of 512 tokens behind 100; memory and time, activations kept or not."""
    rows = bench.rows("paper")
    ours = bench.ours("tiny" if bench.is_tiny else "t5-1.1-xxl")
    for is_checkpointed in (False, True):
        if bench.time_is_up():
            return
        if is_checkpointed:
            ours.lm.checkpoint_activations()
        bench.free()
        layout = Layout(most_tokens(ours.lm), 0)
        for rate in (0.1,) if bench.is_tiny else (0.0, 0.1):
            found = _step(bench, ours, rows, rate, layout)
            taken = found.get("peak_memory_mb", float("inf")) * 2**20
            bench.row(
                "xxl", model=ours.lm.name, dropout=rate, checkpointed=is_checkpointed, max_tokens=layout.max_tokens,
                needed=CARD_BYTES / 1e9, reached=taken <= CARD_BYTES, **found,
            )  # fmt: skip


def serving(bench: Bench) -> None:
    """Requests a second with 1, 64 and 256 prompts, beside PEFT that switches adapters and PEFT grouped by prompt."""
    for model in ("tiny", "tiny-llama") if bench.is_tiny else ("t5-1.1-base", LLAMA):
        if bench.time_is_up():
            print(f"serving: no time left for {model}", flush=True)
            return
        bench.free()
        counts = (1, 3) if bench.is_tiny else (1, 64, 256)
        pool = [row.ids for row in bench.rows("short", 64)]
        with tempfile.TemporaryDirectory() as folder:
            shared: dict[str, Any] = {
                "model": model, "source": "", "max_tokens": 8, "dtype": bench.dtype, "device": bench.device,
                "compiled": False,
            }  # fmt: skip
            length = 5 if bench.is_tiny else PROMPT_LENGTH
            lm = serving_sides.frozen(serving_sides.Side(name="ours", prompts=(), **shared), bench.tokenizer)
            folders = serving_sides.make_prompts(lm, Path(folder), counts[-1], length)
            del lm
            rates: dict[int, float] = {}
            for count in counts:
                bench.free()
                ours = serving_sides.Ours(
                    serving_sides.Side(name="ours", prompts=folders[:count], **shared), bench.tokenizer
                )
                rates[count] = _requests(bench, ours, pool, count, 8 if bench.is_tiny else 512)
                ours.engine.drain(10.0)
                ratio = rates[count] / rates[counts[0]]
                mixed = {"ratio": round(ratio, 3), "needed": NEEDED["mixed"], "reached": ratio >= NEEDED["mixed"]}
                bench.row("serving", model=model, side="ours", prompts=count, requests_s=rates[count], **mixed)
                del ours
            for name, number in (("switching", 64), ("grouped", 256)):
                if bench.time_is_up():
                    print(f"serving: no time left for {model}, {name}", flush=True)
                    continue
                bench.free()
                count = counts[1]
                theirs = serving_sides.Peft(serving_sides.Side(name=name, prompts=folders[:count], **shared))
                rate = _requests(bench, theirs, pool, count, 4 if bench.is_tiny else number)
                ratio = rates[count] / rate
                bench.row(
                    "serving", model=model, side=name, prompts=count, requests_s=rate, ratio=round(ratio, 2),
                    needed=NEEDED[name], reached=ratio >= NEEDED[name],
                )  # fmt: skip
                del theirs


def _requests(bench: Bench, computes: Any, pool: Sequence[tuple[int, ...]], prompts: int, count: int) -> float:
    asks = serving_sides.draw(pool, prompts, count, seed=0)
    seconds = timed(bench, lambda: computes.answer(asks), rounds=2)
    return round(count / statistics.median(seconds), 2)


PARTS = {"peak": peak, "equality": equality, "bits": bits, "training": training, "xxl": xxl, "serving": serving}


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts, each for its minutes at most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all, in this order)")
    parser.add_argument("--t5", type=Path, help="folder of T5's spiece.model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes and one round, to see that it runs")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of a part at most")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "gpu.jsonl")
    options = parser.parse_args(words)
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"no part named {unknown[0]!r}; there are {', '.join(PARTS)}")
    device = str(choose_device(options.device))
    if device == "cpu" and not options.tiny:
        parser.error("there is no GPU here; --tiny tries everything on the processor")
    command = shlex.join(["python", "benchmarks/gpu.py", *(sys.argv[1:] if words is None else words)])
    bench = Bench(device, options.tiny, None, options.results, command, options.minutes)
    bench.tokenizer = (
        t5_tokenizer(str(options.t5)) if options.t5 else own_tokenizer(list(itertools.islice(bench.text(), 200)))
    )
    names = options.parts or list(PARTS)
    for name in ["peak", *(name for name in names if name != "peak")]:  # shares are of the peak
        bench.until = time.monotonic() + 60 * options.minutes
        PARTS[name](bench)
        bench.free()


if __name__ == "__main__":
    main()
