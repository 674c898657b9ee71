"""The example that is the whole method in one loop computes what the product computes."""

import json
from pathlib import Path

import torch
from conftest import tiny_lm

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_plain_loop_has_the_gradient_of_the_product(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import one_prompt

    from softprompt.models.text import default_format, encode_examples
    from softprompt.tasks import file_task
    from softprompt.training.methods import PromptTuning

    lm = tiny_lm("qwen2")  # as SmolLM2's, its tokenizer begins no text with a token of its own
    records = [json.loads(line) for line in one_prompt.DATA.read_text().splitlines()[:6]]
    task = file_task(inputs="message: {message}", targets="{intent}", labels=None)
    form = default_format(lm)
    rows = encode_examples(
        [example for record in records for example in task.cast(record, "train")], form, lm.tokenizer
    )
    examples = [one_prompt.encode(lm.tokenizer, record) for record in records]
    assert [list(row.ids + row.target) for row in rows] == [ids for ids, _ in examples]

    prompt = torch.randn(5, lm.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = one_prompt.loss_of(lm.model, prompt, examples)
    loss.backward()
    (gradient,), (summed,), _ = PromptTuning(lm).gradients([prompt], rows, [0] * len(rows), max_tokens=512)
    assert prompt.grad is not None
    torch.testing.assert_close(torch.tensor(summed), loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prompt.grad, gradient, rtol=1e-4, atol=1e-5)  # float32, other sums: the prompt runs once


def test_the_example_trains_on_any_decoder_only_model(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import one_prompt

    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(one_prompt.DATA.read_text().splitlines()[:8]))
    monkeypatch.setattr(one_prompt, "load", lambda name: tiny_lm("qwen2"))
    monkeypatch.setattr(one_prompt, "DATA", few)  # the rows of every step, so that losses compare
    monkeypatch.setattr(one_prompt, "STEPS", 40)
    one_prompt.main()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 40 and losses[-1] < losses[20] < losses[0] - 1
