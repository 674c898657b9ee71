"""The prompts an engine serves."""

import threading
import tracemalloc
from dataclasses import replace

import pytest
import torch
from conftest import make_model, make_tokenizer

from softprompt.models import FrozenLM
from softprompt.prompts import Card, SoftPrompt, load_prompt, save_prompt
from softprompt.serving.prompt_table import PromptTable


def make_prompt(lm, seed, length=5, **changes):
    card = Card(
        model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=lm.is_encoder_decoder, width=lm.width
    )
    values = torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed))
    return SoftPrompt(values, replace(card, **changes))


def saved(lm, folder, count, **options):
    folders = [folder / f"prompt{i}" for i in range(count)]
    for i, place in enumerate(folders):
        save_prompt(make_prompt(lm, i, **options), place)
    return folders


def values_bytes(lm, length=5):
    return length * lm.width * 4


def test_a_prompt_is_found_by_its_content(lm, tmp_path):
    (folder,) = saved(lm, tmp_path, 1, task="sea", init={"rows": [{"ids": [1], "pieces": ["a"]}] * 5})
    table = PromptTable(lm, max_bytes=10**9)
    sha256 = table.add(folder)
    assert sha256 == load_prompt(folder).identity and sha256 in table and len(table) == 1
    registered = table.get(sha256)
    assert (registered.length, registered.folder, registered.card.task) == (5, folder, "sea")
    assert registered.card.init == {}
    assert torch.equal(table.values(sha256), load_prompt(folder).values)
    assert table.add(folder) == sha256 and table.hashes() == [sha256]


def test_an_unknown_hash_is_refused(llama):
    table = PromptTable(llama, max_bytes=10**9)
    for ask in (table.get, table.remove, table.values, lambda sha256: table.pin([sha256])):
        with pytest.raises(ValueError, match="no prompt with the content hash 0000 is registered; add its folder"):
            ask("0000")
    assert "0000" not in table


def test_a_prompt_of_another_model_is_refused(llama, t5, tmp_path):
    (folder,) = saved(t5, tmp_path, 1)
    with pytest.raises(ValueError, match="the prompt was trained for tiny-t5"):
        PromptTable(llama, max_bytes=10**9).add(folder)


def test_values_in_memory_are_the_most_recently_used(t5, tmp_path):
    size = values_bytes(t5)
    table = PromptTable(t5, max_bytes=3 * size)
    hashes = [table.add(folder) for folder in saved(t5, tmp_path, 5)]
    assert table.values_bytes == 3 * size and len(table) == 5
    for sha256 in (hashes[2], hashes[0], hashes[2], hashes[4]):
        table.values(sha256)
    assert table.counts.num_loaded == 1  # the first; 2, 3 and 4 were there, and 3 has left for it
    assert table.values_bytes == 3 * size
    table.values(hashes[3])
    assert table.counts.num_loaded == 2
    table.limit(size)
    assert table.values_bytes == size
    table.values(hashes[3])
    assert table.counts.num_loaded == 2


def test_keys_and_values_are_bounded_with_the_prompts_values(llama, tmp_path):
    states, values = 5 * table_token_bytes(llama), values_bytes(llama)
    table = PromptTable(llama, max_bytes=2 * (states + values))
    hashes = [table.add(folder) for folder in saved(llama, tmp_path, 4)]
    table.pin(hashes)
    for sha256 in hashes:
        table.states([sha256])
        assert table.values_bytes + table.states_bytes <= 2 * (states + values)
    table.states(hashes[3:])
    assert (table.counts.num_run, table.counts.num_reused) == (4, 1)
    table.states(hashes[:1])
    assert table.counts.num_run == 5
    made = table.states(hashes)  # more than fit are there while they are needed
    assert table.states_bytes == 4 * states and list(made) != []
    table.limit(0)
    assert table.states_bytes == table.values_bytes == 0


def table_token_bytes(lm):
    layers, key_heads, head_width = 2, 1, 8
    assert (lm.num_layers, lm.config.num_key_value_heads, lm.config.head_dim) == (layers, key_heads, head_width)
    return 2 * layers * key_heads * head_width * 4


def test_each_prompt_has_the_keys_and_values_it_has_alone(llama):
    prompts = [make_prompt(llama, i, length) for i, length in enumerate((5, 9, 1))]
    table = PromptTable(llama, max_bytes=10**9)
    hashes = [table.add(prompt) for prompt in prompts]
    table.pin(hashes)
    together = table.states(hashes)
    for sha256, prompt in zip(hashes, prompts, strict=True):
        lone = llama.run_prompts(prompt.values[None], torch.tensor([prompt.length]))
        ours, theirs = ([*states.keys, *states.values] for states in (together[sha256], lone))
        for own, wanted in zip(ours, theirs, strict=True):
            assert own.shape == wanted.shape and torch.allclose(own, wanted, atol=1e-5)


def test_a_removed_prompt_stays_for_those_who_wear_it(llama, tmp_path):
    folder, other = saved(llama, tmp_path, 2)
    prompt = load_prompt(folder)
    table = PromptTable(llama, max_bytes=10**9)
    sha256 = table.add(folder)
    table.pin([sha256, sha256])
    table.limit(0)  # nothing of it is in memory
    table.limit(10**9)
    table.remove(sha256)
    save_prompt(load_prompt(other), folder)
    assert sha256 not in table and len(table) == 0
    with pytest.raises(ValueError, match="no prompt with the content hash"):
        table.pin([sha256])
    assert torch.equal(table.values(sha256), prompt.values)
    assert table.fixed_bytes() == values_bytes(llama)
    table.unpin([sha256])
    assert torch.equal(table.values(sha256), prompt.values)
    table.unpin([sha256])
    assert table.fixed_bytes() == table.values_bytes == table.states_bytes == 0


def test_a_removed_prompt_may_be_added_again(llama, tmp_path):
    (folder,) = saved(llama, tmp_path, 1)
    table = PromptTable(llama, max_bytes=10**9)
    sha256 = table.add(folder)
    table.pin([sha256])
    table.remove(sha256)
    assert table.add(folder) == sha256 and sha256 in table
    assert table.fixed_bytes() == 0
    table.unpin([sha256])
    assert sha256 in table


def test_prompts_that_differ_in_their_cards_share_numbers_keys_and_values(llama, tmp_path):
    size = values_bytes(llama)
    prompts = [make_prompt(llama, 1, labels=labels) for labels in (("sea", "film"), ("film", "sea"))]
    for prompt in prompts:
        save_prompt(prompt, tmp_path / prompt.identity)
    table = PromptTable(llama, max_bytes=10**9)
    one, other = [table.add(tmp_path / prompt.identity) for prompt in prompts]
    assert [table.get(identity).card.labels for identity in (one, other)] == [("sea", "film"), ("film", "sea")]
    assert one != other and table.get(one).values_sha256 == table.get(other).values_sha256
    assert table.values_bytes == size and table.values(one) is table.values(other)
    table.pin([one, other])
    states = table.states([one, other])
    assert states[one] is states[other] and table.counts.num_run == 1
    table.remove(one)  # it is worn still
    assert table.fixed_bytes() == table.values_bytes == size
    table.unpin([one])
    assert table.states_bytes == 5 * table_token_bytes(llama) and table.states([other])[other] is states[other]
    assert torch.equal(table.values(other), prompts[1].values) and table.fixed_bytes() == 0
    table.unpin([other])
    table.remove(other)
    assert table.values_bytes == table.states_bytes == len(table) == 0


def test_numbers_kept_in_memory_are_kept_once(llama):
    size = values_bytes(llama)
    table = PromptTable(llama, max_bytes=size)
    one, other = [table.add(make_prompt(llama, 1, labels=labels)) for labels in (("sea",), ("film",))]
    assert table.fixed_bytes() == size
    table.remove(one)
    assert table.fixed_bytes() == size and torch.equal(table.values(other), make_prompt(llama, 1).values)
    table.remove(other)
    assert table.fixed_bytes() == 0


def test_a_folder_that_holds_another_prompt_by_now_is_named(llama, tmp_path):
    folder, other = saved(llama, tmp_path, 2)
    table = PromptTable(llama, max_bytes=0)
    sha256 = table.add(folder)
    save_prompt(load_prompt(other), folder)
    with pytest.raises(ValueError, match=r"prompt0 holds another prompt than when it was registered .* of its own"):
        table.values(sha256)


def test_a_prompt_from_memory_stays_there(llama):
    size = values_bytes(llama)
    table = PromptTable(llama, max_bytes=2 * size)
    hashes = [table.add(make_prompt(llama, i)) for i in range(2)]
    assert table.add(make_prompt(llama, 1)) == hashes[1]
    table.limit(0)
    assert table.values_bytes == table.fixed_bytes() == 2 * size
    with pytest.raises(ValueError, match=r"no room to keep this prompt in memory .* save it and add its folder"):
        table.add(make_prompt(llama, 2))
    table.remove(hashes[0])
    assert table.fixed_bytes() == size
    table.add(make_prompt(llama, 2))


def test_a_registered_prompt_takes_little_more_than_its_own_bytes(tmp_path):
    lm = FrozenLM(make_model("t5", d_model=512), make_tokenizer(), name="wide")
    rows = [{"ids": [i, i + 1], "pieces": [f" piece{i}", "s"]} for i in range(100)]
    folders = saved(
        lm, tmp_path, 60, length=100, init={"kind": "class-labels", "rows": rows},
        recipe={f"setting{i}": i for i in range(20)}, text={"separator": "", "max_input_length": 512},
    )  # fmt: skip
    table = PromptTable(lm, max_bytes=10**9)
    for folder in folders[:10]:
        table.add(folder)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for folder in folders[10:]:
        table.add(folder)
    beside = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert table.values_bytes == 60 * values_bytes(lm, 100)
    assert beside < 0.05 * 50 * values_bytes(lm, 100)


def test_a_slow_disk_keeps_nobody_from_pinning(llama, tmp_path, monkeypatch):
    folders = saved(llama, tmp_path, 2)
    table = PromptTable(llama, max_bytes=10**9)
    hashes = [table.add(folder) for folder in folders]
    table.pin(hashes)
    table.limit(0)  # nothing is in memory
    table.limit(10**9)
    begun, may_read = threading.Barrier(4), threading.Event()

    def slow(folder):
        begun.wait(10)
        assert may_read.wait(10)
        return load_prompt(folder)

    monkeypatch.setattr("softprompt.serving.prompt_table.load_prompt", slow)
    calls = [lambda: table.values(hashes[0]), lambda: table.states(hashes[:1]), lambda: table.remove(hashes[1])]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    begun.wait(10)
    others = threading.Thread(target=lambda: (table.pin(hashes[:1]), table.unpin(hashes[:1]), table.get(hashes[0])))
    others.start()
    others.join(5)
    is_held_up = others.is_alive()
    may_read.set()
    for thread in (*threads, others):
        thread.join(10)
    assert not is_held_up
    assert table.fixed_bytes() == values_bytes(llama)  # of the one removed, which is pinned


def test_a_prompt_removed_while_its_folder_is_read_is_still_there(llama, tmp_path, monkeypatch):
    (folder,) = saved(llama, tmp_path, 1)
    prompt = load_prompt(folder)
    table = PromptTable(llama, max_bytes=10**9)
    sha256 = table.add(folder)
    table.pin([sha256])
    table.limit(0)
    table.limit(10**9)
    is_first = [True]

    def removed_meanwhile(place):
        if is_first.pop() if is_first else False:
            table.remove(sha256)
            folder.rename(tmp_path / "gone")
        return load_prompt(place)

    monkeypatch.setattr("softprompt.serving.prompt_table.load_prompt", removed_meanwhile)
    assert torch.equal(table.values(sha256), prompt.values)
