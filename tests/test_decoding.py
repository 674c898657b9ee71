"""How tokens are chosen and become text."""

import pytest
import torch
from conftest import make_tokenizer, tiny_lm

from softprompt.answering.decoding import (
    MAX_BEAMS,
    NUCLEUS,
    Beams,
    Decoding,
    Draw,
    TextStream,
    Writer,
    choose,
    sample,
    uniforms,
)
from softprompt.answering.running import generate
from softprompt.models.states import Embedded
from softprompt.models.tokenizer import Tokenizer


def draw(seed):
    return torch.Generator().manual_seed(seed)


def metaspace_tokenizer():
    """A tokenizer that marks words as SentencePiece does, with single bytes for what it lacks."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁", "▁the", "▁sea", "s", "▁warm", "▁is", ".", "▁a", "e", "t"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] + [(word, -2.0) for word in words]
    backend = Backend(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def byt5_tokenizer():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


TOKENIZERS = {"bytes in pieces": make_tokenizer, "words and bytes": metaspace_tokenizer, "bytes": byt5_tokenizer}
TEXTS = ["the sea is warm", "sea 海は暖かい, naïve", "🌊", "a b", "  two  spaces ", "\n\n"]


@pytest.fixture(params=TOKENIZERS, ids=lambda name: name.replace(" ", "-"))
def tokenizer(request):
    return Tokenizer(TOKENIZERS[request.param]())


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_joined_are_the_text_and_hold_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    pieces = [stream.push(id) for id in ids]
    assert "".join([*pieces, stream.end()]) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", ["bytes in pieces", "bytes"])
def test_the_pieces_of_any_tokens_joined_are_the_text_of_all(name, seed):
    tokenizer = Tokenizer(TOKENIZERS[name]())
    ids = torch.randint(3, min(tokenizer.size, 300), (30,), generator=draw(seed)).tolist()
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.end()]) == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(20))
def test_the_pieces_of_any_text_joined_are_the_text(tokenizer, seed):
    characters = "ab tse.\n" + "éñ海🌊"
    places = torch.randint(0, len(characters), (30,), generator=draw(seed)).tolist()
    ids = tokenizer.encode("".join(characters[place] for place in places))
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.end()]) == tokenizer.decode(ids)


def test_text_comes_as_soon_as_its_characters_are_whole():
    tokenizer = Tokenizer(byt5_tokenizer())
    stream = TextStream(tokenizer)
    assert [stream.push(id) for id in tokenizer.encode("aé海")] == ["a", "", "é", "", "", "海"]


@pytest.mark.parametrize("stop", [("is",), ("ea i",), ("warm", "sea"), ("zzz",), ("t",), ("the sea is warm!",)])
def test_text_ends_before_the_first_stop_string_wherever_tokens_part(tokenizer, stop):
    text = "the sea is warm"
    stream = TextStream(tokenizer, stop)
    pieces = []
    for id in tokenizer.encode(text):
        pieces.append(stream.push(id))
        if stream.is_stopped:
            break
    cut = min((text.find(s) for s in stop if s in text), default=len(text))
    assert "".join([*pieces, stream.end()]) == text[:cut]
    assert stream.is_stopped == any(s in text for s in stop)


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_known():
    tokenizer = Tokenizer(byt5_tokenizer())
    stream = TextStream(tokenizer, ["ab", "bcd"])
    assert [stream.push(id) for id in tokenizer.encode("xabc")][:3] == ["x", "", ""]
    assert stream.is_stopped and stream.end() == ""
    stream = TextStream(tokenizer, ["bcd"])
    assert [stream.push(id) for id in tokenizer.encode("abbcx")] == ["a", "", "b", "", "bcx"]
    stream = TextStream(tokenizer, ["bcd"])
    assert [stream.push(id) for id in tokenizer.encode("abc")] == ["a", "", ""]
    assert stream.end() == "bc" and not stream.is_stopped


def test_a_writer_says_why_it_ended():
    tokenizer = Tokenizer(make_tokenizer())
    sea, warm = tokenizer.encode(" sea"), tokenizer.encode(" warm")
    ended = Writer(tokenizer, Decoding(max_tokens=9), None)
    assert [ended.take(id, -1.0) for id in [*sea, tokenizer.eos_id]] == [""] * len(sea) + [" sea"]
    assert (ended.finish_reason, ended.ids, len(ended.log_probs)) == ("stop", sea, len(sea) + 1)
    cut = Writer(tokenizer, Decoding(max_tokens=len(sea)), TextStream(tokenizer))
    assert "".join(cut.take(id, -1.0) for id in sea) == " sea" and cut.finish_reason == "length"
    stopped = Writer(tokenizer, Decoding(max_tokens=9, stop=("w",)), TextStream(tokenizer, ["w"]))
    for id in [*sea, *warm]:
        stopped.take(id, -1.0)
        if stopped.finish_reason:
            break
    assert (stopped.text, stopped.finish_reason) == (" sea ", "stop")


def test_the_most_probable_token_is_taken_where_there_is_no_draw():
    logits = torch.randn(3, 50, generator=draw(0))
    tokens, log_probs = choose(logits, [None, Draw(1.0, 1.0, 0.999), None])
    best = logits.log_softmax(-1).max(-1)
    assert tokens[0] == best.indices[0] and tokens[2] == best.indices[2] and tokens[1] != best.indices[1]
    assert torch.allclose(log_probs[[0, 2]], best.values[[0, 2]], atol=1e-6)
    assert float(log_probs[1]) == pytest.approx(float(logits[1].log_softmax(-1)[tokens[1]]), abs=1e-6)


def shares_of(logits, temperature, top_p, count=20_000):
    """How often each token is taken when the uniform numbers lie evenly."""
    even = [(i + 0.5) / count for i in range(count)]
    taken = sample(logits.expand(count, -1), [temperature] * count, [top_p] * count, even)
    return taken.bincount(minlength=logits.shape[1]).double() / count


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_their_probability_says(temperature):
    logits = torch.randn(1, 40, generator=draw(1)) * 2
    wanted = (logits[0].double() / temperature).softmax(-1)
    assert float((shares_of(logits, temperature, 1.0) - wanted).abs().max()) <= 1.01 / 20_000


def test_a_nucleus_is_the_fewest_tokens_that_have_the_mass():
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    assert shares_of(logits, 1.0, 0.8).tolist() == pytest.approx([0.0, 0.625, 0.0, 0.375], abs=1e-4)
    assert shares_of(logits, 1.0, 0.81).tolist() == pytest.approx([0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95], abs=1e-4)
    assert shares_of(logits, 1.0, 0.01).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_a_nucleus_may_be_wider_than_what_is_sorted_at_first():
    logits = torch.zeros(1, 4 * NUCLEUS)
    logits[0, :3] = 1.0
    assert int((shares_of(logits, 1.0, 0.9) > 0).sum()) == pytest.approx(0.9 * 4 * NUCLEUS, rel=0.01)


def test_rows_with_and_without_a_nucleus_are_drawn_as_if_alone():
    logits = torch.randn(4, 600, generator=draw(2)) * 3
    rows = [(0.7, 1.0, 0.3), (1.0, 0.5, 0.9), (1.5, 0.95, 0.01), (1.0, 1.0, 0.999)]
    together = sample(logits, *map(list, zip(*rows, strict=True))).tolist()
    lone = [int(sample(logits[i : i + 1], [t], [p], [u])) for i, (t, p, u) in enumerate(rows)]
    assert together == lone


@pytest.mark.parametrize("temperature", [1e-300, 1e-308, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_temperature_of_nearly_nothing_takes_the_most_probable_token(temperature, top_p):
    logits = torch.randn(5, 600, generator=draw(3)) * 30
    taken = sample(logits, [temperature] * 5, [top_p] * 5, [0.1, 0.3, 0.5, 0.7, 0.999])
    assert torch.equal(taken, logits.argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_an_impossible_token_is_never_drawn(uniform):
    logits = torch.tensor([[-float("inf"), 1.0, 0.5, -float("inf")]])
    assert sample(logits, [1.0], [1.0], [uniform]).item() == (1 if uniform == 0 else 2)
    assert sample(logits, [1.0], [0.999], [uniform]).item() == (1 if uniform == 0 else 2)


def test_uniform_numbers_are_those_of_seed_and_part():
    assert uniforms(3, 0, 4) == uniforms(3, 0, 4) != uniforms(3, 1, 4)
    assert uniforms(3, 0, 2) == uniforms(3, 0, 4)[:2] != uniforms(4, 0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": -1}, "max_tokens is -1, but must be 0 or more"),
        ({"temperature": -0.5}, "temperature is -0.5, but must be 0 or more"),
        ({"temperature": float("nan")}, "temperature is nan, but must be 0 or more"),
        ({"top_p": 0.0}, "top_p is 0.0, but must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5, but must be above 0 and at most 1"),
        ({"seed": -1}, r"seed is -1, but must be from 0 to 2\*\*64 - 1"),
        ({"num_beams": MAX_BEAMS + 1}, "num_beams is 33, but must be from 1 to 32"),
        ({"length_penalty": float("inf")}, "length_penalty is inf, but must be a number"),
        ({"stop": ("a", "")}, "stop is an empty string, but must be text"),
        ({"stop": ("a",) * 17}, "stop is 17 strings, but must be at most 16"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams 2 with temperature 1.0; give one of the two"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)


@torch.no_grad()
def next_log_probs(lm, inputs, beams):
    """log p of the token after each beam, everything computed anew by transformers."""
    if lm.is_encoder_decoder:
        start = [lm.config.decoder_start_token_id]
        ids = torch.tensor([[*start, *beam] for beam in beams])
        logits = lm.model(input_ids=torch.tensor([inputs] * len(beams)), decoder_input_ids=ids).logits
    else:
        logits = lm.model(input_ids=torch.tensor([[*inputs, *beam] for beam in beams])).logits
    return logits[:, -1].log_softmax(-1)


def search(lm, inputs, decoding):
    """Our beam search over `next_log_probs`."""
    beams = Beams(decoding, lm.tokenizer.end_ids)
    written = [[]]
    while parents := beams.advance(next_log_probs(lm, inputs, written)):
        written = [[*written[parent], token] for parent, token in zip(parents, beams.tokens, strict=True)]
    return beams.best


@pytest.mark.parametrize("ends", [1, [1, 40, 41]])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_beams_are_those_of_transformers(kind, num_beams, length_penalty, ends):
    lm = tiny_lm(kind, eos_token_id=ends)
    assert lm.tokenizer.end_ids == {1, *(ends if isinstance(ends, list) else [])}
    with torch.no_grad():  # so that answers of several lengths compete
        lm.model.get_output_embeddings().weight[lm.tokenizer.eos_id] *= 2
    for seed in range(4):
        inputs = torch.randint(4, 330, (6,), generator=draw(seed)).tolist()
        ours = search(lm, inputs, Decoding(max_tokens=7, num_beams=num_beams, length_penalty=length_penalty))
        options = {"max_new_tokens": 7, "num_beams": num_beams, "length_penalty": length_penalty, "do_sample": False}
        ids = torch.tensor([inputs])
        theirs = lm.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
        new = theirs[1:] if lm.is_encoder_decoder else theirs[len(inputs) :]
        assert ours.ids == [id for id in new if id != lm.config.pad_token_id]
        summed = sum(float(row[id]) for row, id in zip(rows_of(lm, inputs, ours.ids), ours.ids, strict=True))
        assert sum(ours.log_probs) == pytest.approx(summed, abs=1e-5)


def rows_of(lm, inputs, ids):
    return [next_log_probs(lm, inputs, [ids[:n]])[0] for n in range(len(ids))]


def test_one_beam_is_greedy():
    lm = tiny_lm("llama")
    inputs = torch.randint(4, 330, (6,), generator=draw(0)).tolist()
    x = lm.embed(torch.tensor([inputs]))
    greedy = generate(lm, Embedded(x, torch.ones(1, 6, dtype=torch.bool)), max_tokens=6).ids[0]
    best = search(lm, inputs, Decoding(max_tokens=6, num_beams=1))
    assert [id for id in best.ids if id != lm.tokenizer.eos_id] == greedy
