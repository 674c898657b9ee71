"""A vocabulary learned from text: T5's ids, nothing unknown, and what is refused."""

import pytest
from texts import documents
from transformers import AutoTokenizer

from softprompt.models.tokenizer import Tokenizer, load_tokenizer
from softprompt.pretraining.vocabulary import check_sentinels, train_vocabulary

SIZE = 410


@pytest.fixture(scope="module")
def made():
    return train_vocabulary(documents(300), size=SIZE, threads=1)


def test_ids_are_those_of_t5(made):
    assert len(made) == SIZE
    assert (made.pad_token_id, made.eos_token_id, made.unk_token_id) == (0, 1, 2)
    assert made.convert_tokens_to_ids("<0x00>") == 3
    assert made.convert_tokens_to_ids("<extra_id_0>") == SIZE - 1
    assert made.convert_tokens_to_ids("<extra_id_99>") == SIZE - 100
    assert check_sentinels(Tokenizer(made), "this") == SIZE - 1
    assert made("the sea").input_ids[-1] == 1


def test_text_is_shorter_in_pieces_and_anything_can_be_spelled(made):
    tokenizer = Tokenizer(made)
    assert len(tokenizer.encode("The quiet garden.")) < len("The quiet garden.")
    for text in ["The old sea.", "naïve café 東京", "x=1; {y} <b>"]:
        ids = tokenizer.encode(text)
        assert 2 not in ids
        assert tokenizer.decode(ids) == text


def test_ordinary_ids_leave_bytes_and_sentinels_out(made):
    tokenizer = Tokenizer(made)
    ordinary = tokenizer.ordinary_ids()
    assert min(ordinary) >= 3 + 256
    assert max(ordinary) < SIZE - 100
    assert "he" in [tokenizer.piece(id).strip() for id in ordinary[:5]]


def test_it_is_the_same_from_disk(made, tmp_path):
    Tokenizer(made).save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("The warm story: <extra_id_3>").input_ids == made("The warm story: <extra_id_3>").input_ids
    assert load_tokenizer(tmp_path).digest() == Tokenizer(made).digest()


def test_sentinels_stay_in_what_is_decoded_and_other_specials_do_not(made):
    tokenizer = Tokenizer(made)
    ids = [SIZE - 1, *tokenizer.encode("warm"), 1, 0]
    assert tokenizer.decode(ids).replace(" ", "") == "<extra_id_0>warm"


def test_the_same_seed_gives_the_same_vocabulary():
    text = documents(100)
    first, again, other = (
        Tokenizer(train_vocabulary(text, size=390, max_megabytes=0.004, seed=seed, threads=1)).digest()
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_what_no_vocabulary_can_be_made_of():
    with pytest.raises(ValueError, match="a vocabulary of 300 has no room for pieces beside 100 sentinels and 256"):
        train_vocabulary(documents(5), size=300)
    with pytest.raises(ValueError, match="the corpus is empty: there is no text to learn a vocabulary from"):
        train_vocabulary([], size=8_192)
    with pytest.raises(ValueError, match=r"no vocabulary of 8192 can be learned from this text: .*[Vv]ocabulary size"):
        train_vocabulary(documents(5), size=8_192)


def test_a_vocabulary_without_sentinels_is_named(tiny_tokenizer):
    with pytest.raises(ValueError, match="the vocabulary of mine has no sentinels <extra_id_0> to <extra_id_99>"):
        check_sentinels(tiny_tokenizer, "mine")


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*nowhere; give a folder that softprompt vocabulary wrote"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="cannot load a tokenizer from"):
        load_tokenizer(tmp_path)


@pytest.fixture
def tiny_tokenizer():
    from conftest import make_tokenizer

    return Tokenizer(make_tokenizer())
