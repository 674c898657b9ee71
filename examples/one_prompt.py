"""The whole of prompt tuning in one plain loop: load, embed, prepend, loss, backward, step.

    python examples/one_prompt.py        # a prompt for eight kinds of customer messages, on SmolLM2-135M

Nothing here is softprompt's but `load` and the data. What the product adds (many prompts at once, each run once a step,
selection, checkpoints) computes the same gradient: tests/test_one_prompt.py compares them.

Shapes: b rows, p prompt tokens, t tokens of the longest row, d width, v vocabulary.
"""

import json
import random
from pathlib import Path

import torch
from torch.nn import functional as F

from softprompt import load

DATA = Path(__file__).parent / "customer_messages" / "train.jsonl"
PROMPT_LENGTH, BATCH_SIZE, STEPS, RATE = 20, 8, 100, 0.03


def encode(tokenizer, row):
    """The ids of one example, and where its answer begins: input, separator, answer, end of sequence."""
    ids = tokenizer.encode("message: " + row["message"]) + tokenizer.encode("\nanswer:")
    answer = [*tokenizer.encode(" " + row["intent"]), tokenizer.eos_id]
    return ids + answer, len(ids)


def loss_of(model, prompt, rows):
    """The summed loss over the tokens of the rows' answers. prompt: [p d]; rows: ids and where the answer begins."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])  # [b t], padded at the right
    real = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])  # [b t]
    wanted = torch.tensor([[begins <= i < len(ids) for i in range(longest)] for ids, begins in rows])  # [b t]

    x = model.get_input_embeddings()(ids)  # [b t d]
    x = torch.cat([prompt.expand(len(rows), -1, -1), x], dim=1)  # [b p+t d]
    mask = torch.cat([torch.ones(len(rows), len(prompt), dtype=torch.long), real], dim=1)  # [b p+t]
    logits = model(inputs_embeds=x, attention_mask=mask).logits  # [b p+t v]

    before = logits[:, len(prompt) - 1 : -1].float()  # [b t v]: what the position before each token says of it
    return F.cross_entropy(before[wanted], ids[wanted], reduction="sum")


def main():
    """Train one prompt and show the loss."""
    lm = load("smollm2-135m")
    records = [json.loads(line) for line in DATA.read_text().splitlines()]
    examples = [encode(lm.tokenizer, record) for record in records]
    random.seed(0)

    # The prompt starts as the embeddings of the labels' words, over and over (paper, section 3.2).
    labels = sorted({record["intent"] for record in records})
    words = [id for label in labels for id in lm.tokenizer.encode(" " + label)]
    start = torch.tensor([words[i % len(words)] for i in range(PROMPT_LENGTH)])
    prompt = lm.model.get_input_embeddings()(start).float().detach().requires_grad_()  # [p d], all that is trained
    optimizer = torch.optim.AdamW([prompt], lr=RATE, weight_decay=0.0)

    for step in range(1, STEPS + 1):
        loss = loss_of(lm.model, prompt.to(lm.dtype), random.sample(examples, BATCH_SIZE))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(f"step {step}: loss {loss.item() / BATCH_SIZE:.3f}")


if __name__ == "__main__":
    main()
