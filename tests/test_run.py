"""What a run decides by itself: its data, settings, lengths, what it keeps and what it refuses, on tiny models."""

import json

import pytest
from conftest import make_model, make_tokenizer

from softprompt.backbone import FrozenLM
from softprompt.data import encode_target
from softprompt.prediction import open_prompts
from softprompt.run import RunConfig, prepare, tasks_of, train

CHAT = "{% for message in messages %}user: {{ message['content'] }}\n{% endfor %}assistant:"
LABELS = ("good", "bad")


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def films(split, count, labels=LABELS):
    return [{"text": f"{split} film {i} is warm", "label": labels[i % len(labels)]} for i in range(count)]


def own(folder, records=None, **changes):
    """A run on files of one's own, 30 training and 6 dev examples unless given by split."""
    records = {"train": films("train", 30), "dev": films("dev", 6)} | (records or {})
    files = {split: [write(folder / f"{split}.jsonl", lines)] for split, lines in records.items()}
    own = {"inputs": "text: {text}", "targets": "{label}", "labels": LABELS, "out": folder / "out"}
    few = {"steps": 2, "evaluate_every": 2, "num_selection": 5, "batch_size": 4, "prompt_length": (4,)}
    return RunConfig(**{"model": "tiny", "data": files, **own, **few, **changes})


def split_of(config, lm):
    return prepare(config, tasks_of(config)[0], lm)


def chatty():
    """A tiny Llama with a chat template."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = CHAT
    return FrozenLM(make_model("llama"), tokenizer, name="tiny-chat")


# Lengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [True, False])
def test_the_longest_label_is_written_whole_in_the_format_it_is_trained_in(tmp_path, chat):
    """Without a leading space this label has more ids than with one."""
    lm, long = chatty(), "story film warm sea film sea"
    records = {split: films(split, count, ("sea", long)) for split, count in (("train", 30), ("dev", 6))}
    config = own(tmp_path, records, labels=("sea", long), chat=chat)
    form = split_of(config, lm).form
    whole = [*lm.tokenizer.encode(("" if chat else " ") + long), lm.tokenizer.eos_id]
    assert encode_target(long, form, lm.tokenizer) == whole
    assert form.max_target_length == len(whole) == (9 if chat else 7)
    (made,) = train(config, lm=lm)
    assert open_prompts(made.folder, model=lm).forms == [form]
