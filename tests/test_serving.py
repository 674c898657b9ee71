"""The serving engine: what a request gets is what it gets alone, whatever else is going on."""

import contextlib
import functools
import math
import random
import sys
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ENCODER_DECODERS, make_model, make_tokenizer, tiny_lm

from softprompt.answering import batch_invariant_rows, invariance, running
from softprompt.answering.decoding import Decoding
from softprompt.answering.engine import Engine, Prediction
from softprompt.answering.evaluation import vote
from softprompt.answering.running import generate
from softprompt.models import FrozenLM
from softprompt.models.text import Row
from softprompt.prompts import Card, SoftPrompt, save_prompt
from softprompt.serving import (
    Answer,
    Cancelled,
    DeadlineExceeded,
    NotServing,
    Part,
    Piece,
    QueueFull,
    Request,
    Scheduler,
    admission,
    scheduler,
)
from softprompt.serving.admission import MAX_OVERTAKEN
from softprompt.tasks import Example, file_task

TOLERANCE = 1e-5
KINDS = ["t5", "llama"]
ALL_KINDS = [*KINDS, "umt5", "gpt2", "gemma2", "gemma3", "mistral", "qwen2-sliding"]
LENGTHS = (5, 9, 1, 30)
MEMORY = 1 << 24


def make_prompt(lm, seed, length=5):
    card = Card(
        model_name=lm.name, model_fingerprint=lm.fingerprint, is_encoder_decoder=lm.is_encoder_decoder, width=lm.width
    )
    return SoftPrompt(torch.randn(length, lm.width, generator=torch.Generator().manual_seed(seed)), card)


def make_prompts(lm, lengths=LENGTHS):
    """Soft prompts, and for a decoder-only model the last one run through it, as keys and values."""
    prompts = [make_prompt(lm, seed, length) for seed, length in enumerate(lengths)]
    if not lm.is_encoder_decoder:
        values = lm.prompt_states([prompts[-1].values]).to_values()
        prompts[-1] = SoftPrompt(values, replace(prompts[-1].card, width=values[0].numel()))
    return prompts


def make_engine(lm, prompts=(), **options):
    engine = Scheduler(lm, **{"max_memory": MEMORY} | options)
    for prompt in prompts:
        engine.table.add(prompt)
    return engine


def ids_of(length, seed=0):
    rng = random.Random(f"{length} {seed}")
    return tuple(rng.randrange(4, 330) for _ in range(length))


def ask(ids, prompt=None, *, timeout=None, **decoding):
    identity = None if prompt is None else prompt.identity
    return Request(parts=(Part(ids=ids, prompt=identity),), decoding=Decoding(**decoding), timeout=timeout)


def ask_labels(ids, prompt=None, labels=("sea", "film", "a warm story")):
    identity = None if prompt is None else prompt.identity
    candidates = tuple((*ids_of(1 + i % 3, seed=i), 1) for i in range(len(labels)))
    return Request(parts=(Part(ids=ids, prompt=identity, candidates=candidates),), labels=labels)


def finish(engine, limit=1_000):
    """Step until nothing is left; how many steps it took."""
    for taken in range(limit):
        if not engine.step():
            return taken
    raise AssertionError("the engine does not come to an end")


def alone(lm, prompts, request, **options):
    """What a request gets from an engine that has nothing else to do."""
    engine = make_engine(lm, prompts, **options)
    ticket = engine.submit(request)
    finish(engine)
    return ticket.result(0.0)


def assert_same(answer, wanted):
    """Equal tokens, text and labels, and log-probabilities within 1e-5."""
    assert len(answer.parts) == len(wanted.parts) and answer.seed == wanted.seed
    for one, other in zip(answer.parts, wanted.parts, strict=True):
        assert (one.ids, one.text, one.finish_reason, one.prompt) == (
            other.ids, other.text, other.finish_reason, other.prompt,
        )  # fmt: skip
        assert one.log_probs == pytest.approx(other.log_probs, abs=TOLERANCE)
        assert_same_prediction(one.prediction, other.prediction)
    assert_same_prediction(answer.prediction, wanted.prediction)


def assert_same_prediction(one, other):
    assert one.text == other.text and one.log_prob == pytest.approx(other.log_prob, abs=10 * TOLERANCE)
    assert (one.scores is None) == (other.scores is None)
    if one.scores is not None:
        assert one.scores == pytest.approx(other.scores, abs=TOLERANCE)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_greedy_answers_are_the_models_own_whatever_they_are_batched_with(kind):
    lm = tiny_lm(kind)
    prompts, rng = make_prompts(lm), random.Random(0)
    engine = make_engine(lm, prompts, max_prefill_tokens=80)
    asked, most = [], 0
    for i in range(20):
        ids, worn = ids_of(rng.choice([2, 3, 7, 19, 40]), i), rng.choice([None, *prompts])
        length = rng.choice([1, 8, 40, 40])
        asked.append((ids, worn, length, engine.submit(ask(ids, worn, max_tokens=length))))
        for _ in range(rng.choice([0, 0, 1, 2])):
            engine.step()
            most = max(most, engine.stats().num_rows)
    finish(engine)
    assert most > 4
    for ids, worn, length, ticket in asked:
        lone = Engine(lm, [] if worn is None else [worn.values])
        wanted = generate(lm, lone.inputs([Row(ids, (), False, 0)], [-1 if worn is None else 0]), max_tokens=length)
        (part,) = ticket.result(0.0).parts
        assert list(part.ids) == wanted.ids[0]
        assert sum(part.log_probs) == pytest.approx(wanted.log_probs[0], abs=10 * TOLERANCE)
        assert part.text == lm.tokenizer.decode(part.ids)
        assert part.finish_reason == ("stop" if len(part.log_probs) > len(part.ids) else "length")
        assert part.num_input_tokens == len(ids)


@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind not in ENCODER_DECODERS])
def test_the_inputs_own_tokens_are_scored_as_transformers_scores_them_whatever_they_are_batched_with(kind):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm)
    engine = make_engine(lm, prompts)
    asked = []
    for number, length in enumerate((12, 1, 90, 2, 7)):
        prompt = [None, *prompts][number % 3]
        part = Part(ids=ids_of(length), prompt=None if prompt is None else prompt.identity)
        decoding = Decoding(max_tokens=number % 3)
        asked.append((prompt, engine.submit(Request(parts=(part,), decoding=decoding, num_alternatives=3, echo=True))))
        engine.submit(ask(ids_of(length + 3), prompts[0], max_tokens=4))
    finish(engine)
    for prompt, ticket in asked:
        (part,), ids = ticket.result(0.0).parts, ticket.request.parts[0].ids
        values = torch.zeros(0, lm.width) if prompt is None else prompt.values
        written = lm.embed(torch.tensor([[*ids, *part.ids]]))[0]
        with torch.no_grad():
            logits = lm.model(inputs_embeds=torch.cat([values, written])[None]).logits[0, len(values) :]
        wanted = logits.log_softmax(-1)
        assert len(part.read) == len(ids) - 1
        assert len(part.alternatives) == len(part.log_probs) <= ticket.request.decoding.max_tokens
        chosen = [*part.ids, *([] if part.end is None else [part.end])]
        for place, told in enumerate([*part.read, *part.alternatives]):
            token = [*ids[1:], *chosen][place]
            assert list(told)[:3] == wanted[place].topk(3).indices.tolist()
            assert set(told) == {*list(told)[:3], token}
            assert told == pytest.approx({id: float(wanted[place, id]) for id in told}, abs=TOLERANCE)
        assert [told[token] for told, token in zip(part.alternatives, chosen, strict=True)] == list(part.log_probs)


@pytest.mark.parametrize("kind", KINDS)
def test_no_tokens_may_be_asked_for(kind):
    lm = tiny_lm(kind)
    engine = make_engine(lm, make_prompts(lm))
    tickets = [engine.submit(ask(ids_of(9), make_prompts(lm)[0], max_tokens=count)) for count in (0, 5, 0)]
    finish(engine)
    for ticket in (tickets[0], tickets[2]):
        (part,) = ticket.result(0.0).parts
        assert (part.ids, part.log_probs, part.text, part.finish_reason) == ((), (), "", "length")
    assert_same(tickets[1].result(0.0), alone(lm, make_prompts(lm), tickets[1].request))
    assert engine.stats().num_rows == 0


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_label_scores_are_those_of_the_engine_for_files(kind):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm)
    engine = make_engine(lm, prompts)
    worn = [None, *prompts, prompts[1], None]
    asked = [ask_labels(ids_of(3 + 4 * i), prompt, ("sea", "film", "c")[: 2 + i % 2]) for i, prompt in enumerate(worn)]
    tickets = [engine.submit(request) for request in asked]
    finish(engine)
    for request, prompt, ticket in zip(asked, worn, tickets, strict=True):
        (part,) = request.parts
        lone = Engine(lm, [] if prompt is None else [prompt.values])
        row, member = Row(part.ids, (), False, 0), -1 if prompt is None else 0
        (wanted,) = lone.label_scores([row], [member], [part.candidates])
        scores = ticket.result(0.0).prediction.scores
        assert list(scores) == list(request.labels)
        assert list(scores.values()) == pytest.approx(wanted, abs=TOLERANCE)
        assert ticket.result(0.0).prediction.text == request.labels[wanted.index(max(wanted))]


@torch.no_grad()
def slow_beams(lm, prompt, ids, num_beams, max_tokens):
    """Beam search that computes every beam anew, by transformers' forward on embeddings."""
    front = lm.embed(torch.tensor([ids]))
    if prompt is not None:
        front = torch.cat([prompt.values[None], front], 1)

    def log_probs(written):
        if lm.is_encoder_decoder:
            start = torch.tensor([[lm.config.decoder_start_token_id, *written]])
            return lm.model(inputs_embeds=front, decoder_input_ids=start).logits[0, -1].log_softmax(-1)
        x = torch.cat([front, lm.embed(torch.tensor([written]))], 1) if written else front
        return lm.model(inputs_embeds=x).logits[0, -1].log_softmax(-1)

    living, pool = [([], 0.0)], []
    for length in range(1, max_tokens + 1):
        grown = []
        for written, total in living:
            best = log_probs(written).topk(2 * num_beams)
            pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
            grown += [([*written, token], total + value) for value, token in pairs]
        grown = sorted(grown, key=lambda beam: -beam[1])[: 2 * num_beams]
        over = [length == max_tokens or written[-1] == 1 for written, _ in grown]
        pool += [(total / length, w) for (w, total), is_over in zip(grown[:num_beams], over, strict=False) if is_over]
        pool = sorted(pool, reverse=True)[:num_beams]
        living = [beam for beam, is_over in zip(grown, over, strict=True) if not is_over][:num_beams]
        if not living or (len(pool) == num_beams and living[0][1] / length <= pool[-1][0]):
            break
    return [id for id in pool[0][1] if id != 1]


@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2", "gemma3"])
def test_beams_among_other_rows_equal_a_slow_search(kind):
    lm = tiny_lm(kind)
    prompts = [prompt for prompt in make_prompts(lm) if not prompt.is_kv]  # a slow search has embeddings only
    engine = make_engine(lm, prompts)
    asked = []
    for i, worn in enumerate([None, *prompts]):
        ids = ids_of(4 + 3 * i)
        asked.append((ids, worn, 2 + i % 3, engine.submit(ask(ids, worn, max_tokens=6, num_beams=2 + i % 3))))
        engine.submit(ask(ids, worn, max_tokens=3 + i))
        engine.step()
    finish(engine)
    for ids, worn, num_beams, ticket in asked:
        (part,) = ticket.result(0.0).parts
        assert list(part.ids) == slow_beams(lm, worn, ids, num_beams, 6)


def random_request(rng, prompts, number):
    ids, worn = ids_of(rng.choice([1, 2, 5, 17, 33]), number), rng.choice([None, *prompts])
    kind = rng.choice(["greedy", "sampled", "nucleus", "beams", "labels", "ensemble", "stop"])
    length = rng.choice([1, 2, 5, 12, 40])
    if kind == "labels":
        return ask_labels(ids, worn, tuple(f"label{i}" for i in range(rng.choice([1, 2, 5]))))
    settings = {
        "sampled": {"temperature": 1.0, "seed": number},
        "nucleus": {"temperature": 0.8, "top_p": 0.7, "seed": number},
        "beams": {"num_beams": rng.choice([2, 4]), "max_tokens": min(length, 12)},
        "stop": {"stop": ("e", " t")},
    }.get(kind, {})
    request = ask(ids, worn, **{"max_tokens": length} | settings)
    if kind != "ensemble":
        return request
    parts = tuple(Part(ids=ids, prompt=prompt.identity) for prompt in prompts[:3])
    return replace(request, parts=parts, decoding=Decoding(max_tokens=min(length, 5)))


def answered_under_arrivals(lm, rng, tmp_path, **options):
    """Requests and their tickets after arrivals, cancellations and replacements, and every prompt there was."""
    prompts = make_prompts(lm)
    options |= {"max_memory": 600_000, "max_prefill_tokens": rng.choice([16, 60, 1_000]), "max_rows": 24}
    engine = make_engine(lm, **options)
    for prompt in prompts:
        save_prompt(prompt, tmp_path / prompt.identity)
        engine.table.add(tmp_path / prompt.identity)
    everything, asked, cancelled = list(prompts), [], []
    for number in range(40):
        request = random_request(rng, prompts, number)
        ticket = engine.submit(request, stream=rng.random() < 0.5)
        (cancelled if rng.random() < 0.15 else asked).append((request, ticket))
        if rng.random() < 0.15:  # the name's prompt is another from now on; those who wear the old one keep it
            place = rng.randrange(len(prompts))
            old, prompts[place] = prompts[place], make_prompt(lm, 100 + number, rng.choice([2, 6, 12]))
            everything.append(prompts[place])
            save_prompt(prompts[place], tmp_path / prompts[place].identity)
            engine.table.add(tmp_path / prompts[place].identity)
            engine.table.remove(old.identity)
            for file in (tmp_path / old.identity).iterdir():
                file.unlink()
        for _ in range(rng.choice([0, 0, 0, 1, 3])):
            engine.step()
            stats = engine.stats()
            assert stats.cache_bytes + stats.values_bytes + stats.states_bytes <= 600_000
            if cancelled and rng.random() < 0.5:
                rng.choice(cancelled)[1].cancel()
    for _, ticket in cancelled:
        ticket.cancel()
    finish(engine)
    stats = engine.stats()
    assert (stats.num_waiting, stats.num_running, stats.num_rows, stats.cache_bytes) == (0, 0, 0, 0)
    assert stats.num_answers + stats.num_cancelled == 40 and stats.num_errors == 0
    assert len(engine.table) == len(prompts) and engine.table.fixed_bytes() == 0
    for request, ticket in cancelled:
        with contextlib.suppress(Cancelled):
            ticket.result(0.0)
            asked.append((request, ticket))
    return asked, everything


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["t5", "llama", "gemma2", "gpt2", "qwen2-sliding"])
def test_answers_are_those_got_alone_under_arrivals_cancellations_and_replacements(kind, seed, tmp_path):
    lm = tiny_lm(kind)
    asked, prompts = answered_under_arrivals(lm, random.Random(f"{kind} {seed}"), tmp_path)
    for request, ticket in asked:
        assert_same(ticket.result(0.0), alone(lm, prompts, request))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("t5", torch.bfloat16), ("llama", torch.float32), ("gemma2", torch.bfloat16), ("qwen2-sliding", torch.float32)],
)
def test_a_batch_invariant_engine_gives_the_bits_got_alone(kind, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(
        scheduler, "batch_invariant_rows", functools.cache(batch_invariant_rows)
    )  # one model, one probe
    lm = tiny_lm(kind)
    lm.model.to(dtype)
    asked, prompts = answered_under_arrivals(lm, random.Random(kind), tmp_path, is_batch_invariant=True)
    for request, ticket in asked:
        answer, wanted = ticket.result(0.0), alone(lm, prompts, request, is_batch_invariant=True)
        assert (answer.prediction, answer.parts) == (wanted.prediction, wanted.parts)


def test_rows_at_once_are_as_many_as_get_the_same_bits_in_every_place(llama, t5, monkeypatch):
    assert batch_invariant_rows(llama) == 16 and batch_invariant_rows(t5) == 1
    step = running.step_rows

    def unlike(lm, tokens, groups, *, num_rows):
        return step(lm, tokens, groups, num_rows=num_rows) + (1e-7 if num_rows > 4 and len(tokens) > 3 else 0)

    monkeypatch.setattr(running, "step_rows", unlike)
    assert batch_invariant_rows(llama) == 4
    monkeypatch.setattr(running, "step_rows", lambda *given, num_rows: step(*given) * len(given[1]))
    assert batch_invariant_rows(llama) == 1


def test_a_step_of_several_passes_that_fails_is_taken_again_from_the_same_states(llama, monkeypatch):
    monkeypatch.setattr(invariance, "ROWS_AT_ONCE", (2,))
    requests = [ask(ids_of(length), max_tokens=6) for length in range(4, 9)]
    wanted = [alone(llama, [], request, is_batch_invariant=True) for request in requests]
    engine = make_engine(llama, is_batch_invariant=True)
    tickets = [engine.submit(request) for request in requests]
    for _ in range(2):
        engine.step()
    output, calls = llama.model.get_output_embeddings(), []

    def the_second_too_large(module, given):
        calls.append(len(given[0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    hook = output.register_forward_pre_hook(the_second_too_large)
    finish(engine)
    hook.remove()
    assert len(calls) > 4 and set(calls) == {2}
    for ticket, answer in zip(tickets, wanted, strict=True):
        assert ticket.result(0.0).parts == answer.parts


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_keeps_the_prompt_it_began_with(kind, tmp_path):
    lm = tiny_lm(kind)
    old, new = make_prompts(lm, (5, 5))
    engine = make_engine(lm, [old])
    running, waiting = engine.submit(ask(ids_of(4), old, max_tokens=9)), None
    engine.step()
    waiting = engine.submit(ask(ids_of(4), old, max_tokens=9))
    engine.table.add(new)
    engine.table.remove(old.identity)
    engine.step()
    after = engine.submit(ask(ids_of(4), new, max_tokens=9))
    with pytest.raises(ValueError, match="no prompt with the content hash"):
        engine.submit(ask(ids_of(4), old))
    finish(engine)
    wanted = alone(lm, [old], ask(ids_of(4), old, max_tokens=9))
    assert_same(running.result(0.0), wanted)
    assert_same(waiting.result(0.0), wanted)
    assert after.result(0.0).parts[0].log_probs != pytest.approx(wanted.parts[0].log_probs, abs=1e-2)
    assert engine.table.hashes() == [new.identity]


@pytest.mark.parametrize("kind", KINDS)
def test_draws_depend_on_the_seed_and_nothing_else(kind):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm)
    settings = {"max_tokens": 12, "temperature": 1.2, "top_p": 0.9}
    lone = alone(lm, prompts, ask(ids_of(5), prompts[0], seed=7, **settings))
    engine = make_engine(lm, prompts)
    crowd = [engine.submit(ask(ids_of(3 + i), prompts[i % 4], seed=i, **settings)) for i in range(6)]
    again = engine.submit(ask(ids_of(5), prompts[0], seed=7, **settings))
    other = engine.submit(ask(ids_of(5), prompts[0], seed=8, **settings))
    unseeded = [engine.submit(ask(ids_of(5), prompts[0], **settings)) for _ in range(3)]
    finish(engine)
    assert all(ticket.is_done for ticket in crowd)
    assert_same(again.result(0.0), lone)
    assert other.result(0.0).parts[0].ids != lone.parts[0].ids
    drawn = [ticket.result(0.0) for ticket in unseeded]
    assert len({answer.seed for answer in drawn}) == 3 and len({answer.parts[0].ids for answer in drawn}) == 3
    named = alone(lm, prompts, ask(ids_of(5), prompts[0], seed=drawn[0].seed, **settings))
    assert named.parts[0].ids == drawn[0].parts[0].ids


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_come_token_by_token_and_join_to_the_text(kind):
    lm = tiny_lm(kind)
    engine = make_engine(lm)
    events = []
    ticket = engine.submit(ask(ids_of(6), max_tokens=20, temperature=1.5, seed=3), events.append, stream=True)
    counts = []
    while engine.step():
        counts.append(len(events))
    *pieces, answer = events
    assert isinstance(answer, Answer) and answer is ticket.result(0.0)
    assert all(isinstance(piece, Piece) and piece.part == 0 and piece.text for piece in pieces)
    assert "".join(piece.text for piece in pieces) == answer.parts[0].text
    assert len(pieces) > 4 and len(set(counts)) > 4


def test_pieces_can_be_iterated(llama):
    engine = make_engine(llama)
    ticket = engine.submit(ask(ids_of(6), max_tokens=9), stream=True)
    with pytest.raises(TimeoutError, match=r"no text for 0.01 seconds"):
        next(ticket.pieces(0.01))
    finish(engine)
    assert "".join(piece.text for piece in ticket.pieces(1.0)) == ticket.result(0.0).parts[0].text
    lost = engine.submit(ask(ids_of(6), max_tokens=9), stream=True)
    lost.cancel()
    engine.step()
    with pytest.raises(Cancelled):
        list(lost.pieces(1.0))


@pytest.mark.parametrize("num_beams", [1, 3])
def test_an_answer_ends_before_a_stop_string(llama, num_beams):
    free = alone(llama, [], ask(ids_of(6), max_tokens=30, num_beams=num_beams))
    text = free.parts[0].text
    for stop in (text[3:5], text[-2:], text[1:7]):
        answer = alone(llama, [], ask(ids_of(6), max_tokens=30, num_beams=num_beams, stop=(stop, "never this")))
        assert answer.parts[0].text == text[: text.index(stop)]
        assert answer.parts[0].finish_reason == "stop"
        assert len(answer.parts[0].ids) <= len(free.parts[0].ids)


def test_a_stopped_answer_leaves_the_batch_at_once(llama):
    text = alone(llama, [], ask(ids_of(6), max_tokens=30)).parts[0].text
    engine = make_engine(llama)
    engine.submit(ask(ids_of(6), max_tokens=30, stop=(text[:2],)))
    assert finish(engine) < 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancelled_request_stops_at_the_next_token(kind):
    lm = tiny_lm(kind)
    engine = make_engine(lm)
    going, other = (engine.submit(ask(ids_of(6, seed), max_tokens=40)) for seed in (0, 1))
    engine.step()
    assert engine.stats().num_rows == 2
    tokens = engine.stats().num_output_tokens
    going.cancel()
    engine.step()
    assert engine.stats().num_rows == 1 and engine.stats().num_output_tokens == tokens + 1
    with pytest.raises(Cancelled, match="the request was cancelled"):
        going.result(0.0)
    finish(engine)
    assert_same(other.result(0.0), alone(lm, [], ask(ids_of(6, 1), max_tokens=40)))
    assert engine.stats().num_cancelled == 1


def test_a_listener_that_fails_has_its_request_cancelled(llama):
    def gone(event):
        raise ConnectionError("nobody there")

    engine = make_engine(llama)
    lost = engine.submit(ask(ids_of(6), max_tokens=40), gone, stream=True)
    kept = engine.submit(ask(ids_of(6), max_tokens=5))
    engine.step()
    assert finish(engine) < 8 and kept.result(0.0).parts[0].ids
    with pytest.raises(Cancelled):
        lost.result(0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_answer_does_not_hold_up_a_short_one(kind):
    engine = make_engine(tiny_lm(kind))
    long = engine.submit(ask(ids_of(6), max_tokens=60))
    for _ in range(3):
        engine.step()
    short = engine.submit(ask(ids_of(6, 1), max_tokens=2))
    engine.step()
    engine.step()
    assert short.is_done and not long.is_done


@pytest.mark.parametrize("kind", KINDS)
def test_many_labels_are_scored_in_turns_that_others_share_and_that_end_with_who_asked(kind):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm)
    engine, now, metered = make_engine(lm, prompts, clock=lambda: now), 0.0, []
    many = ask_labels(ids_of(5), prompts[0], labels=tuple(f"label {i}" for i in range(600)))
    ticket = engine.submit(replace(many, meter=lambda read, written: metered.append(read)))
    cancelled, late = engine.submit(many), engine.submit(replace(many, timeout=5.0))
    engine.step()
    small = engine.submit(ask_labels(ids_of(7), prompts[1]))
    engine.step()
    assert small.is_done and not ticket.is_done and len(metered) > 0
    cancelled.cancel()
    now = 6.0
    engine.step()
    for ended, error in ((cancelled, Cancelled), (late, DeadlineExceeded)):
        with pytest.raises(error):
            ended.result(0.0)
    finish(engine)
    row = Row(ids_of(5), (), False, 0)
    (wanted,) = Engine(lm, [prompts[0].values]).label_scores([row], [0], [many.parts[0].candidates])
    assert list(ticket.result(0.0).prediction.scores.values()) == pytest.approx(wanted, abs=TOLERANCE)
    assert len(metered) > 3 and sum(metered) == 5 + sum(map(len, many.parts[0].candidates))
    assert engine.stats().num_waiting == 0 and not engine.queue.in_flight


def test_no_more_input_tokens_are_read_in_a_turn_than_may_be(llama):
    engine = make_engine(llama, max_prefill_tokens=20)
    rows = []

    def come(count, turns):
        for i in range(count):
            engine.submit(ask(ids_of(10, i), max_tokens=50))
        for _ in range(turns):
            engine.step()
            rows.append(engine.stats().num_rows)

    come(2, 1)  # nobody writes: two of 10 tokens are within the limit
    come(2, 1)  # as many wait as write
    come(3, 2)  # fewer wait than write: two, then the last
    come(14, 1)  # twice as many wait as write: four
    assert rows == [2, 4, 6, 7, 11]
    engine.submit(ask(ids_of(100), max_tokens=50))
    for _ in range(10):
        engine.step()
    assert engine.stats().num_rows == 22  # one input longer than the limit is read alone
    finish(engine)


def test_there_are_never_more_rows_than_may_be(t5):
    engine = make_engine(t5, max_rows=4)
    tickets = [engine.submit(ask(ids_of(5, i), max_tokens=6, num_beams=1 + i % 3)) for i in range(9)]
    while engine.step():
        assert engine.stats().num_rows <= 4
    assert all(ticket.is_done for ticket in tickets)


def test_a_prompt_is_run_once_for_all_who_wear_it(llama):
    (prompt,) = make_prompts(llama, (9,))
    engine = make_engine(llama, [prompt])
    for i in range(5):
        engine.submit(ask(ids_of(4, i), prompt, max_tokens=2))
        finish(engine)
    engine.submit(ask_labels(ids_of(4), prompt))
    finish(engine)
    stats = engine.stats()
    assert (stats.num_prompts_run, stats.num_states_reused) == (1, 5)
    assert stats.states_bytes == 9 * engine.table.layout.token_bytes
    assert stats.num_input_tokens == 33  # the labels too


def test_a_request_that_memory_lacks_for_is_overtaken_for_a_while(llama):
    small = ask(ids_of(4), max_tokens=4)
    big = ask(ids_of(100), max_tokens=50)
    engine = make_engine(llama, max_memory=36_000)
    runs = [engine.submit(ask(ids_of(4, i), max_tokens=30)) for i in range(2)]
    engine.step()
    waits = engine.submit(big)
    passed = [engine.submit(small) for _ in range(3)]
    engine.step()
    assert engine.stats().num_waiting == 1 and engine.stats().num_rows == 5
    finish(engine)
    assert_same(waits.result(0.0), alone(llama, [], big))
    assert all(ticket.is_done for ticket in [*runs, *passed])


def test_steps_in_which_nobody_goes_first_are_no_overtakings(llama):
    engine = make_engine(llama, max_memory=36_000)
    engine.submit(ask(ids_of(4), max_tokens=120))
    engine.step()
    engine.submit(ask(ids_of(100), max_tokens=50))
    for _ in range(80):
        engine.step()
    assert (engine.stats().num_rows, engine.stats().num_waiting) == (1, 1)
    engine.submit(ask(ids_of(4), max_tokens=4))
    engine.step()
    assert (engine.stats().num_rows, engine.stats().num_waiting) == (2, 1)


def test_no_more_than_so_many_parts_overtake_one(llama):
    engine = make_engine(llama, max_memory=36_000)
    engine.submit(ask(ids_of(4), max_tokens=120))
    engine.step()
    big = engine.submit(ask(ids_of(100), max_tokens=50))
    small = [engine.submit(ask(ids_of(4, i), max_tokens=1)) for i in range(MAX_OVERTAKEN + 6)]
    for _ in range(80):
        engine.step()
    assert engine.stats().num_rows == 1 and not big.is_done
    assert [ticket.is_done for ticket in small] == [True] * MAX_OVERTAKEN + [False] * 6
    finish(engine)
    assert big.is_done and all(ticket.is_done for ticket in small)


def num_calls(function):
    """How many calls of functions, and steps of generators, a call makes."""
    count = 0

    def profile(*_):
        nonlocal count
        count += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("is_admitted", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_admission_looks_at_each_waiting_part_a_few_times(kind, is_admitted, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from admission import engine_with, prompts_for

    lm = tiny_lm(kind)
    prompts = prompts_for(lm, 20)
    few, many = (engine_with(lm, prompts, count, is_admitted=is_admitted) for count in (100, 800))
    calls = [num_calls(engine._admit) for engine in (few, many)]
    assert engine_waits(few) == (0 if is_admitted else 100) and engine_waits(many) == (0 if is_admitted else 800)
    assert calls[1] < 8.5 * calls[0]


def engine_waits(engine):
    return engine.stats().num_waiting


@pytest.mark.parametrize("memory", [1 << 24, 1 << 34])
def test_random_numbers_are_drawn_as_tokens_come_not_ahead(t5, memory, monkeypatch):
    monkeypatch.setattr(admission, "MAX_NEW", 100_000)
    engine = make_engine(t5, max_memory=memory)
    asked = [(ask(ids_of(4), max_tokens=100_000, temperature=1.0, seed=1), None)] * 64
    tracemalloc.start()
    try:
        if memory == 1 << 24:
            with pytest.raises(ValueError, match="this request alone takes"):
                engine.submit_all(asked)
        else:
            assert len(engine.submit_all(asked)) == 64
        assert tracemalloc.get_traced_memory()[1] < 1 << 20  # one part's numbers alone would be 3 MiB
    finally:
        tracemalloc.stop()


def test_too_many_parts_are_refused_before_any_is_looked_at(llama):
    engine = make_engine(llama, max_waiting=8)
    with pytest.raises(ValueError, match="9 parts at once, but the queue takes 8"):
        engine.submit_all([(ask(()), None)] * 9)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_metered_as_they_are_read_and_written(kind):
    lm = tiny_lm(kind)
    engine = make_engine(lm)
    seen = []
    metered = replace(ask(ids_of(6), max_tokens=40), meter=lambda *tokens: seen.append(tokens))
    going = engine.submit(metered)
    scored = engine.submit(replace(ask_labels(ids_of(5)), meter=lambda *tokens: seen.append(tokens)))
    for _ in range(5):
        engine.step()
    assert scored.is_done
    going.cancel()
    finish(engine)
    with pytest.raises(Cancelled):
        going.result(0.0)
    stats = engine.stats()
    assert sum(read for read, _ in seen) == stats.num_input_tokens == 20  # the labels too
    assert sum(written for _, written in seen) == stats.num_output_tokens >= 5


def test_what_is_allocated_is_what_is_in_flight(llama):
    engine = make_engine(llama)
    engine.submit(ask(ids_of(10), max_tokens=3))
    assert engine.stats().cache_bytes == 0
    engine.step()
    one = engine.stats().cache_bytes
    assert one == sum(s.numel() * 4 for group in engine.stepper.batch.groups for s in group.states.states) > 0
    for i in range(40):
        engine.submit(ask(ids_of(10, i), max_tokens=3))
    engine.step()
    assert engine.stats().cache_bytes > 3 * one
    finish(engine)
    assert engine.stats().cache_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_within_the_limit_whatever_shares_a_buffer(kind, tmp_path):
    lm = tiny_lm(kind)
    prompts = [make_prompt(lm, seed, 12) for seed in range(60)]
    for prompt in prompts:
        save_prompt(prompt, tmp_path / prompt.identity)
    for limit in (60_000, 200_000):
        engine, rng, held = make_engine(lm, max_memory=limit), random.Random(1), []
        for prompt in prompts:
            engine.table.add(tmp_path / prompt.identity)
        for burst in range(40):  # rows of other lengths join a group, whose every row is then as wide as the widest
            for number in range(rng.choice([2, 6, 12])):
                ids = ids_of(rng.choice([3, 20, 40, 60, 90]), 100 * burst + number)
                engine.submit(ask(ids, rng.choice(prompts), max_tokens=rng.choice([2, 8, 20])))
            for _ in range(rng.choice([1, 4, 30])):
                engine.step()
                stats = engine.stats()
                held.append(stats.cache_bytes + stats.values_bytes + stats.states_bytes)
        assert limit / 4 < max(held) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_within_the_limit_with_more_prompts_than_fit(kind, tmp_path):
    lm = tiny_lm(kind)
    limit = 60_000
    engine = make_engine(lm, max_memory=limit)
    prompts = [make_prompt(lm, seed, 12) for seed in range(40)]
    for prompt in prompts:
        save_prompt(prompt, tmp_path / prompt.identity)
        engine.table.add(tmp_path / prompt.identity)
    asked = [ask(ids_of(3 + i % 9, i), prompts[7 * i % 40], max_tokens=2 + i % 5) for i in range(80)]
    tickets = [engine.submit(request) for request in asked]
    while engine.step():
        stats = engine.stats()
        assert stats.cache_bytes + stats.values_bytes + stats.states_bytes <= limit
    assert engine.stats().num_prompts_loaded > 0
    for request, ticket in list(zip(asked, tickets, strict=True))[::5]:
        assert_same(ticket.result(0.0), alone(lm, prompts, request))


@pytest.mark.parametrize("scoring", ["rank", "generate"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_is_the_vote_of_separate_requests(kind, scoring):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm, (5, 9, 1, 4, 7))
    labels = tuple("abcdef")
    task = file_task(inputs="{text}", targets="{label}", labels=labels if scoring == "rank" else None)
    example = Example(inputs="x", targets="a", id="0", references=("a",))
    rule = partial(vote, task, example)
    engine = make_engine(lm, prompts)
    texts = set()
    for i in range(4):
        one = ask_labels(ids_of(4 + i), None, labels) if scoring == "rank" else ask(ids_of(4 + i), max_tokens=3)
        parts = tuple(replace(one.parts[0], prompt=prompt.identity) for prompt in prompts)
        together = engine.submit(replace(one, parts=parts, vote=rule))
        separate = [engine.submit(replace(one, parts=(part,))) for part in parts]
        finish(engine)
        votes = [ticket.result(0.0).prediction for ticket in separate]
        answer = together.result(0.0)
        assert_same_prediction(answer.prediction, rule(votes))
        assert [part.prompt for part in answer.parts] == [prompt.identity for prompt in prompts]
        for part, own in zip(answer.parts, votes, strict=True):
            assert_same_prediction(part.prediction, own)
        texts |= {prediction.text for prediction in votes}
    assert len(texts) > 1


def test_without_a_rule_the_majority_wins_and_ties_go_to_the_more_probable(llama):
    prompts = make_prompts(llama, (5, 9, 1))
    engine = make_engine(llama, prompts)
    said = iter(["yes ", " no", "yes", "left", "right", "left?"])
    parts = tuple(
        Part(ids=ids_of(4), prompt=prompt.identity, answer_of=lambda text: next(said).strip()) for prompt in prompts
    )
    answers = []
    for _ in range(2):
        ticket = engine.submit(Request(parts=parts, decoding=Decoding(max_tokens=1)))
        finish(engine)
        answers.append(ticket.result(0.0))
    assert answers[0].prediction.text == "yes"
    assert answers[1].prediction.log_prob == max(part.prediction.log_prob for part in answers[1].parts)


def test_the_members_of_a_sampled_ensemble_draw_apart(llama):
    engine = make_engine(llama)
    parts = (Part(ids=ids_of(4)),) * 3
    ticket = engine.submit(Request(parts=parts, decoding=Decoding(max_tokens=9, temperature=1.5, seed=1)))
    finish(engine)
    assert len({part.ids for part in ticket.result(0.0).parts}) == 3


def test_a_model_without_a_limit_has_one_for_what_it_writes(t5):
    engine = make_engine(t5)
    with pytest.raises(ValueError, match="max_tokens is 100000, but tiny-t5 writes 4096 at most; give a smaller max_t"):
        engine.submit(ask(ids_of(5), max_tokens=100_000))


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (lambda lm: Request(parts=()), "a request has no parts"),
        (lambda lm: ask(()), "an input is empty; every input needs some tokens"),
        (lambda lm: ask((5, 340)), "an id is not one of tiny-llama's 340: 5 to 340"),
        (lambda lm: ask((-1, 5)), "an id is not one of tiny-llama's 340: -1 to 5"),
        (lambda lm: ask(ids_of(5), timeout=0.0), "timeout is 0.0, but must be above 0 seconds"),
        (lambda lm: ask(ids_of(200), max_tokens=60), r"prompt 0 \+ input 200 \+ answer 60 tokens, .* takes 256"),
        (lambda lm: replace(ask_labels(ids_of(5)), labels=("a", "a", "b")), "labels repeat; give different ones"),
        (lambda lm: replace(ask_labels(ids_of(5)), labels=("a",)), "1 labels, but ids of 3 candidates"),
        (lambda lm: Request(parts=(Part(ids=(5,), candidates=((),)),), labels=("a",)), "a candidate is empty"),
        (
            lambda lm: Request(parts=(Part(ids=(5,), candidates=((5,) * 600,)),), labels=("a",)),
            "a label has 600 tokens",
        ),
        (
            lambda lm: ask_labels(ids_of(5), labels=tuple(map(str, range(5_000)))),
            "5,000 labels, but a request may have",
        ),
        (lambda lm: ask(ids_of(5), make_prompt(lm, 9)), "no prompt with the content hash"),
        (lambda lm: ask(ids_of(5), num_beams=20), "20 beams, but the batch has 16 rows; give fewer"),
        (lambda lm: replace(ask(ids_of(5)), parts=(Part(ids=(5,)),) * 9), "9 parts at once, .* takes 8"),
        (lambda lm: ask(ids_of(150), max_tokens=90, num_beams=16), "alone takes .* bytes of cache, more than max_mem"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused_at_once(llama, request_of, message):
    (prompt,) = make_prompts(llama, (5,))
    engine = make_engine(llama, [prompt], max_memory=500_000, max_rows=16, max_waiting=8)
    with pytest.raises(ValueError, match=message):
        engine.submit(request_of(llama))
    assert engine.stats().num_waiting == 0 and not engine.step()
    engine.table.remove(prompt.identity)
    assert engine.table.values_bytes == 0  # no pin is left


def test_the_queue_has_an_end(llama):
    engine = make_engine(llama, max_waiting=3)
    tickets = [engine.submit(ask(ids_of(4, i), max_tokens=2)) for i in range(3)]
    with pytest.raises(QueueFull, match="the queue is full") as caught:
        engine.submit(ask(ids_of(4), max_tokens=2))
    assert caught.value.retry_after >= 1.0
    engine.step()
    tickets.append(engine.submit(ask(ids_of(4), max_tokens=2)))
    finish(engine)
    assert all(ticket.is_done for ticket in tickets)


def test_requests_put_in_together_all_wait_or_none_does(llama):
    (prompt,) = make_prompts(llama, (5,))
    engine = make_engine(llama, [prompt], max_waiting=3)
    asked = [(ask(ids_of(4, i), prompt, max_tokens=2), None) for i in range(2)]
    tickets = engine.submit_all(asked)
    with pytest.raises(QueueFull, match=r"the queue is full \(2 of 3\)"):
        engine.submit_all(asked)
    assert engine.stats().num_waiting == 2
    tickets[0].cancel()  # what nobody waits for takes no room, before the next step too
    tickets += engine.submit_all(asked)
    finish(engine)
    assert all(ticket.is_done for ticket in tickets)
    with pytest.raises(Cancelled):
        tickets[0].result()
    assert len({tuple(ticket.result().parts[0].ids) for ticket in tickets[1::2]}) == 1
    engine.table.remove(prompt.identity)
    assert engine.table.values_bytes == 0


def test_a_deadline_ends_waiting_and_running_requests(llama):
    now = [100.0]
    engine = make_engine(llama, clock=lambda: now[0], max_rows=1)
    running = engine.submit(ask(ids_of(4), max_tokens=50, timeout=5.0))
    waiting = engine.submit(ask(ids_of(4), max_tokens=50, timeout=5.0))
    patient = engine.submit(ask(ids_of(4), max_tokens=5, timeout=60.0))
    for _ in range(4):
        engine.step()
        now[0] += 1.0
    assert not running.is_done
    now[0] += 1.0
    engine.step()
    with pytest.raises(DeadlineExceeded, match=r"no answer within 5.0 seconds"):
        waiting.result(0.0)
    (part,) = running.result(0.0).parts
    whole = alone(llama, (), replace(running.request, timeout=None)).parts[0]
    assert part.finish_reason == "length" and 0 < len(part.ids) < len(whole.ids)
    assert part.ids == whole.ids[: len(part.ids)] and part.text == llama.tokenizer.decode(part.ids)
    finish(engine)
    answer = patient.result(0.0)
    assert (answer.waited, answer.seconds) == (5.0, 5.0)
    assert engine.stats().num_deadlines == 2


def failing(function, is_bad, message):
    """The function, raising where `is_bad` says so."""

    def call(*given, **options):
        if is_bad(*given):
            raise RuntimeError(message)
        return function(*given, **options)

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_while_reading_ends_the_request_it_belongs_to(kind, monkeypatch):
    lm = tiny_lm(kind)
    monkeypatch.setattr(lm, "embed", failing(lm.embed, lambda ids: bool((ids == 333).any()), "bad input"))
    engine = make_engine(lm)
    good = [engine.submit(ask(ids_of(4, i), max_tokens=5)) for i in range(3)]
    bad = engine.submit(ask((7, 333), max_tokens=5))
    scored = engine.submit(ask_labels(ids_of(4)))
    finish(engine)
    with pytest.raises(RuntimeError, match="bad input"):
        bad.result(0.0)
    for i, ticket in enumerate(good):
        assert_same(ticket.result(0.0), alone(lm, [], ask(ids_of(4, i), max_tokens=5)))
    assert_same(scored.result(0.0), alone(lm, [], ask_labels(ids_of(4))))
    assert engine.stats().num_errors == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_a_step_ends_the_request_it_belongs_to(kind, monkeypatch):
    lm = tiny_lm(kind)
    wanted = [alone(lm, [], ask(ids_of(4, i), max_tokens=9)) for i in range(6)]
    seen = [{id for i, answer in enumerate(wanted) if i != own for id in answer.parts[0].ids} for own in range(6)]
    victim, token = next(
        (i, id) for i, answer in enumerate(wanted) for id in answer.parts[0].ids[1:6] if id not in seen[i]
    )
    monkeypatch.setattr(
        running,
        "step_rows",
        failing(running.step_rows, lambda lm, tokens, groups: bool((tokens == token).any()), "bad step"),
    )
    engine = make_engine(lm)
    tickets = [engine.submit(ask(ids_of(4, i), max_tokens=9)) for i in range(6)]
    finish(engine)
    for i, ticket in enumerate(tickets):
        if i == victim:
            with pytest.raises(RuntimeError, match="bad step"):
                ticket.result(0.0)
        else:
            assert_same(ticket.result(0.0), wanted[i])
    assert engine.stats().cache_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["step_rows", "choose"])
def test_an_error_in_a_step_leaves_the_beams_beside_it_alone(kind, place, monkeypatch):
    lm = tiny_lm(kind)
    asked = [ask(ids_of(4, i), max_tokens=6, num_beams=3) for i in range(2)]
    asked += [ask(ids_of(4, 2), max_tokens=6), ask(ids_of(9, 3), max_tokens=6, num_beams=2)]
    wanted = [alone(lm, [], request) for request in asked]
    engine = make_engine(lm)
    first = engine.submit(asked[0])
    engine.step()
    tickets = [first, *(engine.submit(request) for request in asked[1:])]
    for _ in range(2):
        engine.step()
    module = running if place == "step_rows" else sys.modules["softprompt.serving.stepping"]
    real, calls = getattr(module, place), []

    def fails_once(*given, **options):
        calls.append(given)
        if len(calls) == 1:
            raise RuntimeError("bad step")
        return real(*given, **options)

    monkeypatch.setattr(module, place, fails_once)
    finish(engine)
    assert len(calls) > 4
    for ticket, answer in zip(tickets, wanted, strict=True):
        assert_same(ticket.result(0.0), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_runs_out_of_memory_at_its_logits_is_taken_again_from_the_same_states(kind):
    lm = tiny_lm(kind)
    wanted = alone(lm, [], ask(ids_of(4), max_tokens=6))
    engine = make_engine(lm)
    ticket = engine.submit(ask(ids_of(4), max_tokens=6))
    for _ in range(2):
        engine.step()
    output, calls = lm.model.get_output_embeddings(), []

    def once_too_large(module, given):
        calls.append(len(given[0]))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("out of memory")

    output.register_forward_pre_hook(once_too_large)
    finish(engine)
    assert len(calls) > 2
    assert_same(ticket.result(0.0), wanted)


def test_a_step_leaves_the_models_configuration_alone_for_passes_of_other_threads():
    lm = tiny_lm("llama")
    engine, row = make_engine(lm), Row(ids_of(5), (), False, 0)
    (wanted,) = Engine(lm, []).label_scores([row], [-1], [[(7, 1), (9, 1)]])
    ticket = engine.submit(ask(ids_of(4), max_tokens=3))
    engine.step()
    block, met = lm.blocks()[0], []

    def evaluate_meanwhile(module, given):
        handle.remove()
        (scores,) = Engine(lm, []).label_scores([row], [-1], [[(7, 1), (9, 1)]])
        met.append((lm.config._attn_implementation, scores == pytest.approx(wanted, abs=TOLERANCE)))

    handle = block.register_forward_pre_hook(evaluate_meanwhile)
    finish(engine)
    assert met == [("sdpa", True)]
    assert_same(ticket.result(0.0), alone(lm, [], ask(ids_of(4), max_tokens=3)))


def spoil(engine, ticket):
    """Let what the batch keeps of a request's rows be no numbers from here on, as after an overflow in the model."""
    for slot, job in engine.stepper.running.items():
        states = slot.group.states
        if job.ticket is ticket:
            for state in states.states:
                state[slot.row, :, states.starts[slot.row] : states.end] = math.nan
            states.encoded[slot.row] = math.nan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", [0, 3, 8])
def test_a_row_that_becomes_no_number_ends_alone_in_the_middle_of_a_batch(kind, victim):
    """What it leaves in the batch's buffers is not met by those beside it, nor by those who come to stand there."""
    lm = tiny_lm(kind)
    prompts = make_prompts(lm, (5, 9, 1, 6))  # the last one of the decoder-only model's is keys and values
    asked = []
    for number in range(8):
        length = 34 if number == victim else 25 + number % 3
        asked.append(ask(ids_of(length, number), prompts[-1 - number % 4], max_tokens=12))
    length = 34 if victim == 8 else 24  # who moves to the victim's place is shorter
    asked.append(ask(ids_of(length, 8), prompts[2], max_tokens=12, num_beams=3))
    later = [ask(ids_of(24 + number, 20 + number), prompts[number % 4], max_tokens=9) for number in range(6)]
    later += [ask_labels(ids_of(25, 30), prompts[2]), ask(ids_of(26, 31), max_tokens=9)]
    engine = make_engine(lm, prompts)
    tickets = [engine.submit(request) for request in asked]
    for _ in range(3):
        engine.step()
    spoil(engine, tickets[victim])
    engine.step()
    assert tickets[victim].is_done and engine.stats().num_rows > 4
    tickets += [engine.submit(request) for request in later]
    finish(engine)
    with pytest.raises(ValueError, match="no finite numbers for this input with prompt"):
        tickets[victim].result(0.0)
    for place, ticket in enumerate(tickets):
        if place != victim:
            assert_same(ticket.result(0.0), alone(lm, prompts, ticket.request))
    assert engine.stats().num_errors == 1 and engine.stats().num_rows == 0


def overflowing(kind):
    """A model in float16, and a prompt that float16 holds and whose own pass does not stay in it."""
    model = make_model(kind).half()
    body = model.encoder.final_layer_norm if kind == "t5" else model.model.layers[-1].input_layernorm
    body.weight.data[0] = 3e4  # of a row of one large number the norm is 4, of others about 1
    lm = FrozenLM(model, make_tokenizer(bos=kind == "llama"), name=f"tiny-{kind}")
    good = make_prompt(lm, 0)
    values = torch.zeros_like(good.values)
    values[:, 0] = 100
    return lm, good, replace(good, values=values)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_whose_own_pass_is_no_number_is_refused_at_its_first_use_and_then_at_once(kind):
    lm, good, bad = overflowing(kind)
    engine = make_engine(lm, [good, bad])
    asked = [ask(ids_of(4), good, max_tokens=5), ask_labels(ids_of(4), good)]
    asked += [ask(ids_of(4), bad, max_tokens=5), ask_labels(ids_of(4), bad), ask(ids_of(4), bad, num_beams=2)]
    wanted = [alone(lm, [good], request) for request in asked[:2]]
    tickets = [engine.submit(request) for request in asked]
    finish(engine)
    reason = f"prompt {bad.identity[:12]} is not served: the prompt's own pass through tiny-{kind} leaves the range of "
    for ticket, answer in zip(tickets, wanted, strict=False):
        assert_same(ticket.result(0.0), answer)
    for ticket in tickets[2:]:
        with pytest.raises(ValueError, match=reason):
            ticket.result(0.0)
    with pytest.raises(ValueError, match=reason + "float16, so that no answer with it would be a number; load the mod"):
        engine.submit(asked[2])
    assert_same(alone(lm, [good], asked[0]), wanted[0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_no_number_is_an_error_however_it_is_chosen(kind):
    lm = tiny_lm(kind)
    lm._table.weight[333] = math.inf
    engine, ids = make_engine(lm), (5, 333, 7)
    tickets = [engine.submit(ask(ids, max_tokens=5, **how)) for how in ({}, {"num_beams": 2}, {"temperature": 1.0})]
    tickets.append(engine.submit(ask_labels(ids)))
    finish(engine)
    for ticket in tickets:
        with pytest.raises(ValueError, match="no finite numbers for this input with no prompt"):
            ticket.result(0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_whose_folder_has_gone_ends_its_own_requests_only(kind, tmp_path):
    lm = tiny_lm(kind)
    good, lost = make_prompts(lm, (5, 6))
    engine = make_engine(lm, [good])
    save_prompt(lost, tmp_path / "lost")
    engine.table.add(tmp_path / "lost")
    engine.table.limit(0)
    tickets = [engine.submit(ask(ids_of(4), prompt, max_tokens=5)) for prompt in (good, lost)]
    (tmp_path / "lost").rename(tmp_path / "moved")
    finish(engine)
    assert_same(tickets[0].result(0.0), alone(lm, [good], ask(ids_of(4), good, max_tokens=5)))
    with pytest.raises(ValueError, match="there is no prompt folder"):
        tickets[1].result(0.0)


def test_a_rule_or_an_answer_that_fails_ends_its_own_request_only(llama):
    def wrong(*_):
        raise KeyError("no such label")

    engine = make_engine(llama)
    part = Part(ids=ids_of(4))
    bad = [
        engine.submit(Request(parts=(part, part), vote=wrong, decoding=Decoding(max_tokens=3))),
        engine.submit(Request(parts=(replace(part, answer_of=wrong),), decoding=Decoding(max_tokens=3))),
    ]
    good = engine.submit(ask(ids_of(4), max_tokens=3))
    finish(engine)
    assert good.result(0.0).parts[0].ids
    for ticket in bad:
        with pytest.raises(KeyError, match="no such label"):
            ticket.result(0.0)
    assert engine.stats().num_rows == 0


def test_an_ensemble_ends_with_the_first_of_its_parts_that_fails():
    lm, good, bad = overflowing("llama")
    engine = make_engine(lm, [good, bad])
    parts = tuple(Part(ids=ids_of(4), prompt=prompt.identity) for prompt in (good, bad, good))
    ticket = engine.submit(Request(parts=parts, decoding=Decoding(max_tokens=40)))
    assert finish(engine) <= 2
    with pytest.raises(ValueError, match="leaves the range of float16"):
        ticket.result(0.0)
    assert engine.stats().num_rows == 0 and engine.stats().num_errors == 1


def test_prompts_held_in_memory_may_leave_no_room(llama):
    engine = make_engine(llama, max_memory=60_000)
    ticket = engine.submit(ask(ids_of(60), max_tokens=50))
    for seed in range(12):
        engine.table.add(make_prompt(llama, seed, 60))
    finish(engine)
    with pytest.raises(ValueError, match="max_memory has no room for it beside 46,080 bytes of prompts"):
        ticket.result(0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_what_they_would_get_alone(kind):
    lm = tiny_lm(kind)
    prompts = make_prompts(lm)
    requests = [random_request(random.Random(i), prompts, i) for i in range(24)]
    engine = make_engine(lm, prompts)
    engine.start()
    answers = {}

    def work(mine):
        for i in mine:
            answers[i] = engine.submit(requests[i]).result(60.0)

    threads = [threading.Thread(target=work, args=(range(first, 24, 4),)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert engine.drain(10.0)
    for i, request in enumerate(requests):
        wanted = alone(lm, prompts, request)
        assert_same(answers[i], replace(wanted, seed=answers[i].seed))


def test_draining_finishes_what_there_is_and_takes_no_more(llama):
    engine = make_engine(llama)
    engine.start()
    tickets = [engine.submit(ask(ids_of(4, i), max_tokens=20)) for i in range(5)]
    assert engine.drain(60.0)
    assert all(ticket.result(0.0).parts[0].log_probs for ticket in tickets)
    with pytest.raises(NotServing, match="the engine is being stopped and takes no more requests"):
        engine.submit(ask(ids_of(4)))


def test_draining_has_an_end(llama):
    now = [0.0]

    def clock():
        now[0] += 0.25
        return now[0]

    engine = make_engine(llama, clock=clock)
    tickets = [engine.submit(ask(ids_of(4, i), max_tokens=200)) for i in range(2)]
    assert not engine.drain(5.0)
    for ticket in tickets:
        with pytest.raises(NotServing, match="the engine was stopped before this request was done"):
            ticket.result(0.0)
    assert engine.stats().num_rows == 0 and engine.stats().cache_bytes == 0


def test_an_error_that_belongs_to_no_request_ends_those_there_are_and_the_engine_goes_on(llama, monkeypatch):
    engine = make_engine(llama)
    with monkeypatch.context() as patch:
        patch.setattr(engine.stepper.batch, "decode", lambda: 1 / 0)
        patch.setattr(engine.stepper.batch, "isolate", lambda answers: 1 / 0)
        ticket = engine.submit(ask(ids_of(4), max_tokens=9))
        engine.start()
        with pytest.raises(ZeroDivisionError):
            ticket.result(30.0)
    after = engine.submit(ask(ids_of(4), max_tokens=9))
    assert_same(after.result(30.0), alone(llama, [], ask(ids_of(4), max_tokens=9)))
    assert engine.drain(10.0)


def test_a_result_that_is_not_there_yet_is_waited_for_no_longer_than_told(llama):
    ticket = make_engine(llama).submit(ask(ids_of(4)))
    with pytest.raises(TimeoutError, match=r"no answer after 0.01 seconds; it is still being worked on"):
        ticket.result(0.01)


def test_half_of_the_free_memory_is_taken_unless_told(llama):
    engine = Scheduler(llama)
    assert 1 << 20 < engine.max_memory < 1 << 50
    assert engine.stats().max_memory == engine.max_memory


def test_probabilities_of_labels_add_up(t5):
    answer = alone(t5, [], ask_labels(ids_of(6)))
    assert isinstance(answer.prediction, Prediction)
    assert math.fsum(answer.prediction.probabilities().values()) == pytest.approx(1.0)
    assert answer.parts[0].finish_reason == "stop" and answer.parts[0].ids == ()
