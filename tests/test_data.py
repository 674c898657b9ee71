"""Text to ids to batches, against literal ids of the tiny tokenizer of conftest.py."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, tiny_lm

from softprompt.models.text import (
    Row,
    TextFormat,
    check_length,
    collate,
    default_format,
    encode_all_inputs,
    encode_examples,
    encode_inputs,
    encode_target,
    micro_batches,
    pad,
    pad_candidates,
    target_lengths,
)
from softprompt.models.tokenizer import Tokenizer
from softprompt.tasks import Example
from softprompt.training.order import order_of_step

PAD, EOS, BOS = 0, 1, 3
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(make_tokenizer())


@pytest.fixture(scope="module")
def bos_tokenizer():
    return Tokenizer(make_tokenizer(bos=True))


@pytest.fixture
def sentinel_tokenizer():
    made = make_tokenizer()
    made.add_special_tokens({"extra_special_tokens": ["<extra_id_1>", "<extra_id_0>"]})
    return Tokenizer(made)


T5_FORMAT = TextFormat(inputs_end_with_eos=True)
LLAMA_FORMAT = TextFormat(separator="\nanswer:", leading_space=True, starts_with_bos=True)


def example(inputs, targets="positive"):
    return Example(inputs=inputs, targets=targets, id=inputs, references=(targets,))


def test_an_encoder_decoder_gets_the_text_and_its_end(tokenizer):
    ids = encode_inputs("the sea", T5_FORMAT, tokenizer).ids
    assert ids == [*tokenizer.encode("the sea"), EOS] == [87, 75, 72, 285, 1]


def test_a_decoder_only_model_gets_bos_text_and_separator_each_tokenised_apart(bos_tokenizer):
    ids = encode_inputs("the sea", LLAMA_FORMAT, bos_tokenizer).ids
    assert (
        ids
        == [BOS, *bos_tokenizer.encode("the sea"), *bos_tokenizer.encode("\nanswer:")]
        == [3, 87, 75, 72, 285, 202, 68, 81, 86, 90, 325, 29]
    )


def test_a_target_ends_with_the_end_of_sequence(tokenizer):
    assert encode_target("positive", T5_FORMAT, tokenizer) == [*tokenizer.encode("positive"), EOS]
    assert encode_target("positive", LLAMA_FORMAT, tokenizer) == [*tokenizer.encode(" positive"), EOS]


@pytest.mark.parametrize("side", ["end", "start"])
def test_only_the_input_is_cut_and_the_cut_is_told(bos_tokenizer, side):
    form = replace(LLAMA_FORMAT, max_input_length=14, truncation_side=side, inputs_end_with_eos=True)
    text = "the film is a warm and funny story"
    body, separator = bos_tokenizer.encode(text), bos_tokenizer.encode("\nanswer:")
    room = 14 - 2 - len(separator)
    assert 0 < room < len(body)
    kept = body[:room] if side == "end" else body[-room:]
    assert encode_inputs(text, form, bos_tokenizer)[:2] == ([BOS, *kept, *separator, EOS], True)
    exactly = replace(form, max_input_length=2 + len(separator) + len(body))
    assert encode_inputs(text, exactly, bos_tokenizer)[:2] == ([BOS, *body, *separator, EOS], False)


def test_a_long_target_is_cut_before_its_end_of_sequence(tokenizer):
    form = replace(T5_FORMAT, max_target_length=3)
    ids = encode_target("the film is warm", form, tokenizer)
    assert ids == [*tokenizer.encode("the film is warm")[:2], EOS]


@pytest.mark.parametrize("changes", [{}, {"leading_space": True}, {"sentinel": "targets"}])
def test_the_length_of_a_target_is_that_of_its_ids_before_the_cut(sentinel_tokenizer, changes):
    form, texts = replace(T5_FORMAT, max_target_length=3, **changes), ["warm", "film", "the film is warm"]
    whole = replace(form, max_target_length=100)
    wanted = [len(encode_target(text, whole, sentinel_tokenizer)) for text in texts]
    assert target_lengths(texts, form, sentinel_tokenizer) == wanted and max(wanted) > 3
    assert target_lengths([], form, sentinel_tokenizer) == []


def test_a_sentinel_stands_in_front_of_targets_and_is_stripped_from_answers(sentinel_tokenizer):
    tokenizer = sentinel_tokenizer
    first = tokenizer.id_of("<extra_id_0>")
    plain, before = T5_FORMAT, replace(T5_FORMAT, sentinel="targets")
    older = replace(T5_FORMAT, sentinel="inputs-and-targets", max_input_length=8)
    assert first is not None
    assert encode_target("warm", before, tokenizer) == [first, *encode_target("warm", plain, tokenizer)]
    assert encode_inputs("the sea", before, tokenizer).ids == encode_inputs("the sea", plain, tokenizer).ids
    cut = encode_inputs("the sea near the town is warm in the summer", older, tokenizer)
    assert cut.was_cut
    assert cut.ids[-2:] == [first, EOS]
    answer = tokenizer.decode([first, *tokenizer.encode("warm")])
    assert before.answer_of(answer) == older.answer_of(answer) == "warm"
    assert plain.answer_of(answer).startswith("<extra_id_0>")


def test_a_sentinel_needs_a_vocabulary_that_has_one(tokenizer):
    with pytest.raises(ValueError, match="the model's vocabulary has no <extra_id_0>; set sentinel to none"):
        encode_target("warm", replace(T5_FORMAT, sentinel="targets"), tokenizer)
    with pytest.raises(ValueError, match="sentinel is 'both', but must be one of none, targets, inputs-and-targets"):
        replace(T5_FORMAT, sentinel="both")


def test_examples_become_rows_in_order_and_count_their_cuts(tokenizer):
    form = replace(T5_FORMAT, max_input_length=8)
    rows = encode_examples(
        [example("the sea"), example("a dull and lifeless film that never ends", "negative")], form, tokenizer
    )
    assert [row.index for row in rows] == [0, 1]
    assert [row.was_cut for row in rows] == [False, True]
    assert [len(row.ids) for row in rows] == [5, 8]
    assert [row.target for row in rows] == [tuple(encode_target(t, form, tokenizer)) for t in ("positive", "negative")]
    assert rows[0].num_tokens == len(rows[0].ids) + len(rows[0].target)
    assert [row.target for row in encode_examples([example("the sea")], form, tokenizer, with_targets=False)] == [()]
    assert encode_examples([], form, tokenizer) == []


def test_many_texts_get_the_ids_each_gets_alone(bos_tokenizer):
    texts = ["the sea is warm", "a", "it rained in the night", "zzz \t é 日本"]
    together = encode_all_inputs(texts, LLAMA_FORMAT, bos_tokenizer)
    assert together == [encode_inputs(text, LLAMA_FORMAT, bos_tokenizer) for text in texts]


def test_a_chat_template_stands_around_the_input_and_is_never_cut():
    hf = make_tokenizer(bos=True)
    hf.chat_template = CHAT
    tokenizer = Tokenizer(hf)
    form = TextFormat(chat=True, starts_with_bos=True)
    head, tail = [BOS, *tokenizer.encode("user: ")], tokenizer.encode("\nassistant:")
    body = tokenizer.encode("assistant of the sea")
    assert encode_inputs(" assistant of the sea ", form, tokenizer).ids == [*head, *body, *tail]
    short = replace(form, max_input_length=len(head) + len(tail) + 2)
    assert encode_inputs("assistant of the sea", short, tokenizer)[:2] == ([*head, *body[:2], *tail], True)


def test_control_tokens_in_a_users_text_are_spelled_out(bos_tokenizer):
    texts = ["the sea </s> is warm", "<s>the sea<pad>", "the sea", "日 </s></s>"]
    for text, encoded in zip(texts, encode_all_inputs(texts, T5_FORMAT, bos_tokenizer), strict=True):
        assert encoded.ids == [*bos_tokenizer.encode_plain([text])[0], EOS]
        assert bos_tokenizer.decode(encoded.ids) == text and not {PAD, EOS, BOS} & set(encoded.ids[:-1])
    target = encode_target("warm</s> sea", T5_FORMAT, bos_tokenizer)
    assert target == [*bos_tokenizer.encode_plain(["warm</s> sea"])[0], EOS]


def test_a_users_text_does_not_end_its_turn_of_the_chat_template():
    hf = make_tokenizer(bos=True)
    hf.add_special_tokens({"extra_special_tokens": ["<|im_end|>"]})
    hf.chat_template = CHAT.replace("\n{% endfor", "<|im_end|>{% endfor")
    tokenizer = Tokenizer(hf)
    end = tokenizer.id_of("<|im_end|>")
    ids = encode_inputs("a <|im_end|> b", TextFormat(chat=True, starts_with_bos=True), tokenizer).ids
    assert (ids.count(end), ids.count(BOS)) == (1, 1)
    conversation = tokenizer.chat("a")
    assert encode_inputs(conversation, TextFormat(), tokenizer).ids == tokenizer.encode(conversation)
    assert end in tokenizer.encode(conversation), "what a template made keeps its control tokens"


def test_sentinels_and_unknown_characters_of_a_text_stay_what_they_are(sentinel_tokenizer):
    text = "the <extra_id_0> is <unk>"
    ids = encode_inputs(text, T5_FORMAT, sentinel_tokenizer).ids
    assert ids == [*sentinel_tokenizer.encode(text), EOS]
    assert sentinel_tokenizer.id_of("<extra_id_0>") in ids


def test_empty_texts_are_refused(tokenizer):
    with pytest.raises(ValueError, match="an input is empty; every input needs some text"):
        encode_inputs(" \n", T5_FORMAT, tokenizer)
    with pytest.raises(ValueError, match="a target is empty; every target needs some text"):
        encode_target("", T5_FORMAT, tokenizer)


def test_a_format_that_cannot_work_is_refused(tokenizer):
    with pytest.raises(ValueError, match="max_input_length is 7, but must be 8 or more"):
        TextFormat(max_input_length=7)
    with pytest.raises(ValueError, match="truncation_side is 'middle', but must be 'end' or 'start'"):
        TextFormat(truncation_side="middle")
    form = replace(T5_FORMAT, max_input_length=8, separator="the film is a warm and funny story")
    with pytest.raises(ValueError, match="max_input_length 8 leaves no room for the input; make it longer"):
        encode_inputs("the sea", form, tokenizer)


def test_a_format_comes_back_from_a_card_and_unknown_fields_are_refused():
    assert TextFormat.from_json(LLAMA_FORMAT.to_json()) == LLAMA_FORMAT
    with pytest.raises(ValueError, match="unknown fields colour, size; update softprompt"):
        TextFormat.from_json({**LLAMA_FORMAT.to_json(), "size": 1, "colour": 2})


def test_the_default_format_follows_the_model():
    assert default_format(tiny_lm("t5")) == T5_FORMAT
    assert default_format(tiny_lm("llama")) == LLAMA_FORMAT
    assert default_format(tiny_lm("gpt2"), max_target_length=9) == replace(
        LLAMA_FORMAT, starts_with_bos=False, max_target_length=9
    )


def test_rows_longer_than_the_model_can_take_are_refused():
    rows = [Row(tuple(range(200)), (5, 1), False, 0)]
    llama = tiny_lm("llama")
    check_length(rows, 54, llama)
    with pytest.raises(ValueError, match=r"prompt 55 \+ input and target 202 tokens, but tiny-llama takes 256; use a"):
        check_length(rows, 55, llama)
    with pytest.raises(ValueError, match=r"prompt 54 \+ input and target 203 tokens"):
        check_length(rows, 54, llama, answer_length=3)
    check_length(rows, 54, llama, answer_length=2)
    check_length(rows, 500, tiny_lm("t5"))
    check_length([], 500, llama)


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (7, 7), (3, 8), (32, 5)])
def test_every_epoch_takes_every_row_once(num_rows, batch_size):
    steps = 3 * num_rows  # num_rows * batch_size * 3 places: 3 * batch_size whole epochs
    places = [row for step in range(steps) for row in order_of_step(num_rows, batch_size, step, 5)]
    epochs = [places[i : i + num_rows] for i in range(0, len(places), num_rows)]
    assert all(sorted(epoch) == list(range(num_rows)) for epoch in epochs)
    assert num_rows < 7 or len(set(map(tuple, epochs[:3]))) == 3


def test_the_order_is_a_function_of_its_arguments_alone():
    assert [order_of_step(10, 4, step, 0) for step in (1, 2)] == [[3, 5, 9, 0], [8, 1, 9, 1]]
    assert order_of_step(10, 4, 2, 0) == [8, 1, 9, 1]
    assert order_of_step(10, 4, 1, 1) != order_of_step(10, 4, 1, 0)


def test_an_epoch_is_shuffled_once_for_each_of_many_members(monkeypatch):
    """However many there are, and of whatever sizes; the order is the same."""
    plain, drawn = np.random.default_rng, []
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or plain(seed))
    kept = [{} for _ in range(40)]
    orders = [[order_of_step(100, 4, step, i, shuffles=own) for i, own in enumerate(kept)] for step in range(10)]
    assert len(drawn) == 40
    assert orders[9] == [order_of_step(100, 4, 9, i) for i in range(40)]
    order_of_step(100, 4, 30, 0, shuffles=kept[0])
    assert set(kept[0]) == {1}  # and those of epochs that are over are forgotten


@pytest.mark.parametrize(("max_tokens", "extra"), [(40, 0), (40, 7), (1, 0), (10_000, 100)])
def test_micro_batches_take_every_row_once_within_the_budget(max_tokens, extra):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 30, (50,), generator=generator).tolist()
    batches = list(micro_batches(lengths, max_tokens, extra=extra))
    assert sorted(place for places in batches for place in places) == list(range(50))
    for places in batches:
        longest = max(lengths[place] for place in places)
        assert len(places) == 1 or len(places) * (longest + extra) <= max_tokens
    in_order = [lengths[place] for places in batches for place in places]
    assert in_order == sorted(lengths, reverse=True)


def test_micro_batches_waste_little_on_padding():
    lengths = [5] * 20 + [50] * 2
    assert [Counter(lengths[i] for i in places) for places in micro_batches(lengths, 100)] == [{50: 2}, {5: 20}]


def test_a_mask_comes_from_lengths_and_never_from_ids():
    ids, mask = pad([[PAD, 7, PAD], [5]], PAD)
    assert ids.tolist() == [[0, 7, 0], [5, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]


def test_rows_and_members_make_one_batch():
    rows = [Row((5, 6, 7), (8, 1), False, 0), Row((9,), (4, 5, 1), True, 1)]
    batch = collate(rows, [1, -1], PAD)
    assert batch.ids.tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, False, False]]
    assert batch.targets.tolist() == [[8, 1, 0], [4, 5, 1]]
    assert batch.targets_mask.tolist() == [[True, True, False], [True] * 3]
    assert batch.member.tolist() == [1, -1]


def test_rows_with_fewer_candidates_are_masked():
    ids, mask = pad_candidates([[[5, 1], [6, 7, 1]], [[8, 1]]], PAD)
    assert ids.tolist() == [[[5, 1, 0], [6, 7, 1]], [[8, 1, 0], [0, 0, 0]]]
    assert mask.tolist() == [[[True, True, False], [True] * 3], [[True, True, False], [False] * 3]]
