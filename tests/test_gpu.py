"""What is told and done where a GPU is asked for: a stand-in says what there is."""

import json
import threading
import time
import urllib.request
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_lm
from test_backbone import ROWS, make_prompt, save_model
from test_serve import free_port
from test_training import interrupted, member
from torch import Tensor
from torch.overrides import TorchFunctionMode

from softprompt.answering.decoding import Decoding
from softprompt.answering.engine import Engine, lacking_memory, most_tokens
from softprompt.answering.running import RunningBatch, Start
from softprompt.base.watch import Watch
from softprompt.cluster import ALONE
from softprompt.models import FrozenLM, loading
from softprompt.models.backbone import PASS_TOKENS, Backbone
from softprompt.models.layers import attending
from softprompt.models.loading import choose_device, choose_dtype, load
from softprompt.pretraining.new_t5 import projected_embeddings
from softprompt.prompts import Card, SoftPrompt
from softprompt.serving import NotServing, Part, Request, Scheduler
from softprompt.serving.scheduler import why_lost
from softprompt.training.loop import _Run, fit
from softprompt.training.methods import PromptTuning, gradients

GB = 10**9


@pytest.fixture
def cards(monkeypatch):
    """A machine with two GPUs, as torch would tell it: what it has may be changed."""
    machine = SimpleNamespace(count=2, bfloat16=True, free=15 * GB, total=16 * GB)
    names = ["NVIDIA L4", "NVIDIA L4"]
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: machine.count)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: machine.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: names[device.index or 0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (machine.free, machine.total))
    return machine


def test_a_gpu_that_is_not_there_is_refused_with_those_that_are(cards, monkeypatch):
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"^device 'cuda:3' is not there; this machine has cuda:0, cuda:1; choose amo"):
        choose_device("cuda:3")
    cards.count = 0
    with pytest.raises(ValueError, match=r"^device 'cuda:3' is not there on this machine; choose cpu or auto$"):
        choose_device("cuda:3")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ValueError, match=r"^device 'cuda' is not there: this PyTorch is built without CUDA; choose"):
        choose_device("cuda")


def test_a_type_that_a_gpu_lacks_is_refused_and_not_chosen(cards):
    place = torch.device("cuda:0")
    assert [choose_dtype(name, place) for name in ("auto", "float16")] == [torch.bfloat16, torch.float16]
    cards.bfloat16 = False
    assert choose_dtype("auto", place) == torch.float32
    with pytest.raises(ValueError, match=r"^NVIDIA L4 does not compute in bfloat16; choose float32, or float16 where"):
        choose_dtype("bfloat16", place)


@pytest.mark.parametrize(
    ("dtype", "quantize", "free", "words"),
    [
        ("float32", None, 45_000, "--dtype bfloat16 takes 0.0 GB, --quantize 8bit takes 0.0 GB, --quantize 4bit t"),
        ("float32", None, 20_000, "--quantize 8bit takes 0.0 GB, --quantize 4bit takes 0.0 GB$"),
        ("bfloat16", None, 12_000, "--quantize 4bit takes 0.0 GB$"),
        ("bfloat16", "4bit", 5_000, "give a smaller model, a larger GPU, or --device cpu$"),
    ],
)
def test_a_card_too_small_for_the_weights_is_told_before_they_are_read_with_what_fits(
    cards, tmp_path, monkeypatch, dtype, quantize, free, words
):
    """The tiny Llama has 15,568 numbers, which is 0.0 GB in any type."""
    folder, cards.free = save_model(tmp_path), free
    monkeypatch.setattr("softprompt.models.loading._read_model", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(ValueError, match=rf"takes 0\.0 GB, and NVIDIA L4 has 0.0 GB free of 16.0; .*{words}"):
        load(folder, device="cuda:0", dtype=dtype, quantize=quantize)


def test_memory_that_lacks_for_one_row_is_told_with_what_is_not_in_use_yet(cards, llama, monkeypatch):
    every = "a shorter --max-input-length, fewer prompts at once, --checkpoint-activations in training"
    assert str(lacking_memory(llama)) == (
        f"out of memory even with one row at a time; use {every}, --quantize 8bit or 4bit, or a smaller model"
    )
    llama.checkpoint_activations()
    monkeypatch.setattr(Backbone, "device", torch.device("cuda:0"))
    monkeypatch.setattr(Backbone, "quantization", "4bit")
    assert str(lacking_memory(llama)) == (
        "out of memory even with one row at a time (0.0 GB of the GPU's 16.0 are the model's); use a shorter "
        "--max-input-length, fewer prompts at once, or a smaller model"
    )


class Assertion(RuntimeError):
    """What torch raises of a device whose own code found something wrong, from then on at every call."""

    def __init__(self):
        super().__init__("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported elsewhere")


@pytest.fixture
def breaks(monkeypatch):
    """A device on which an assertion fails at the first pass after it is set."""
    broken = threading.Event()
    plain = FrozenLM.forward

    def forward(self, *args, **options):
        if broken.is_set():
            raise Assertion
        return plain(self, *args, **options)

    monkeypatch.setattr(FrozenLM, "forward", forward)
    monkeypatch.setattr(
        "softprompt.serving.scheduler.why_lost", lambda device: "cuda:0 computes nothing" if broken.is_set() else None
    )
    return broken


def test_an_engine_whose_device_is_lost_ends_all_its_requests_and_takes_no_more(llama, breaks):
    engine = Scheduler(llama)
    told = threading.Event()
    engine.when_lost = told.set
    engine.start()
    ask = Request(parts=(Part(ids=(4, 5, 6)),))
    engine.submit(ask).result()
    breaks.set()
    tickets = engine.submit_all([(ask, None)] * 3)
    for ticket in tickets:
        with pytest.raises((Assertion, NotServing)):
            ticket.result()
    assert told.wait(10) and engine.lost == "cuda:0 computes nothing"
    with pytest.raises(NotServing):
        engine.submit(ask)
    assert engine.drain(10.0)


def test_a_request_that_fails_by_itself_leaves_the_engine_at_work(llama, monkeypatch):
    engine = Scheduler(llama)
    engine.start()
    ask, plain = Request(parts=(Part(ids=(4, 5, 6)),)), FrozenLM.forward
    monkeypatch.setattr(FrozenLM, "forward", lambda *_, **__: (_ for _ in ()).throw(Assertion()))
    with pytest.raises(Assertion):
        engine.submit(ask).result()
    monkeypatch.setattr(FrozenLM, "forward", plain)
    assert engine.submit(ask).result().prediction and engine.lost is None
    assert engine.drain(10.0)


def test_a_device_is_lost_if_it_computes_nothing_and_not_for_want_of_memory(monkeypatch):
    place, errors = torch.device("cuda:1"), []

    def ones(*_, **__):
        raise errors[-1]

    assert why_lost(torch.device("cpu")) is None
    monkeypatch.setattr(torch, "ones", ones)
    errors.append(torch.OutOfMemoryError("CUDA out of memory"))
    assert why_lost(place) is None
    errors.append(Assertion())
    assert why_lost(place) == (
        "cuda:1 computes nothing any more in this process (CUDA error: device-side assert triggered); start it again, "
        "with CUDA_LAUNCH_BLOCKING=1 to learn where it failed"
    )


def test_a_server_whose_device_is_lost_ends_by_itself_with_one_line(tmp_path, run, breaks):
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def ask():
        for _ in range(4_000):
            try:
                with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                    break
            except OSError:
                time.sleep(0.05)
        breaks.set()
        body = json.dumps({"model": "llama", "prompt": "the sea"}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        try:
            urllib.request.urlopen(request, timeout=20)
        except OSError as error:
            codes.append(getattr(error, "code", error))

    codes = []
    client = threading.Thread(target=ask)
    client.start()
    code, _, said = run("serve", "--model", save_model(tmp_path / "llama"), "--port", port, "--device", "cpu")
    client.join()
    assert (code, codes) == (1, [500])
    assert said.splitlines()[-1] == "softprompt serve: cuda:0 computes nothing"


class Waits(TorchFunctionMode):
    """What the host would wait for a GPU with, which the device `meta` stands for: numbers asked of its tensors (they
    are all 1), and copies to it from memory that is not pinned. Indices from masks, which wait too, meta refuses.
    """

    ASKS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        own = args[0] if args and isinstance(args[0], Tensor) else None
        if name in self.ASKS and own is not None and own.is_meta:
            self.seen.append(name)
            return func(torch.ones(own.shape, dtype=own.dtype), *args[1:], **kwargs)
        found = func(*args, **kwargs)
        is_copied = name in ("tensor", "as_tensor", "to") and not (own is not None and own.is_meta)
        if is_copied and isinstance(found, Tensor) and found.is_meta and found.numel() and "non_blocking" not in kwargs:
            self.seen.append(name)
        return found


def on_meta(kind):
    lm = tiny_lm(kind)
    lm.model.to("meta")
    return lm


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_training_step_waits_for_its_device_three_times_however_many_prompts_and_passes_it_has(kind):
    lm = tiny_lm(kind)
    dropout = 0.1 if lm.is_encoder_decoder else 0.0
    members = [member(lm, f"m{seed}", seed=seed, length=3 + seed, batch_size=6, dropout=dropout) for seed in range(3)]
    lm.model.to("meta")
    run = _Run(PromptTuning(lm), members, 30, Watch(), ALONE)
    run.begin(None, is_exact=False)
    passes, plain = [], FrozenLM.loss
    with pytest.MonkeyPatch.context() as patch, Waits() as waits:
        patch.setattr(FrozenLM, "loss", lambda *a, **o: passes.append(1) or plain(*a, **o))
        run.train_step()
    assert len(passes) > 3
    assert waits.seen == ["tolist"] * 3  # the losses, whether gradients are finite, whether what they moved is


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_step_of_running_rows_waits_for_nothing(kind):
    lm = on_meta(kind)
    batch = RunningBatch(lm, lm.layout())
    with Waits() as waits:
        for ids in ((4, 5, 6), (7,)):
            batch.read([Start(ids=ids, max_tokens=3)], 1 << 20)
        batch.decode()
    assert waits.seen == []


@pytest.mark.parametrize("kind", ["t5", "umt5", "llama", "gemma3"])
def test_lengths_that_suit_a_gpu_change_nothing_but_rounding(kind, monkeypatch):
    lm = tiny_lm(kind)
    prompts, worn, choices = [make_prompt(lm), make_prompt(lm, 7)], [1, 0], [[(9, 1), (20, 1)]] * 2
    rate, seeds = (0.1, [3, 4]) if lm.is_encoder_decoder else (0.0, None)
    keys, plain = [], torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, **options):
        if query.shape[2] > (8 if lm.is_encoder_decoder else 1) and (
            lm.is_encoder_decoder or query.shape[2] < key.shape[2]
        ):  # of rows
            keys.append(key.shape[2])
        return plain(query, key, value, **options)

    def found():
        scores = torch.tensor(Engine(lm, prompts).label_scores(ROWS, worn, choices))
        return [scores, *gradients(lm, prompts, ROWS, worn, max_tokens=100, dropout=rate, seeds=seeds)[0]]

    expected = found()
    monkeypatch.setattr(Backbone, "length_step", 8)
    monkeypatch.setattr(Backbone, "adds_masks", not lm.is_encoder_decoder)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    assert all(float((a - b).abs().max()) < 1e-5 for a, b in zip(expected, found(), strict=True))
    assert keys and all(length % 8 == 0 for length in keys)


def test_on_a_gpu_passes_run_without_cudnns_attention_and_nothing_else_does():
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attending(torch.device("cuda:1")):
        enabled = [torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()]
        assert enabled == [True, True] and not torch.backends.cuda.cudnn_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()
    with attending(torch.device("cpu")):
        assert torch.backends.cuda.cudnn_sdp_enabled()


def test_a_model_in_float16_is_read_once_and_its_table_beside_in_the_checkpoints_own_type(tmp_path, monkeypatch):
    folder, read, plain = save_model(tmp_path), [], loading._read_model
    monkeypatch.setattr(loading, "_read_model", lambda *given: read.append(given[2]) or plain(*given))
    half = load(folder, dtype="float16", device="cpu")
    assert read == [{"dtype": torch.float16}]
    assert half.fingerprint == load(folder, dtype="float32", device="cpu").fingerprint
    moved = half.model.get_input_embeddings().weight + 1
    table = loading._unrounded(folder, "moved", moved)  # which no file has
    assert torch.equal(table, plain(folder, "tiny", {"dtype": "auto"})[0].get_input_embeddings().weight)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_weights_that_go_straight_to_their_device_are_those_that_went_by_the_host(kind, tmp_path):
    folder = save_model(tmp_path, kind)
    plain, straight = (
        loading._read_model(folder, "tiny", {"dtype": torch.bfloat16, **way})[0].state_dict()
        for way in ({}, {"device_map": {"": torch.device("cpu")}})
    )
    assert plain.keys() == straight.keys() and all(torch.equal(plain[name], straight[name]) for name in plain)


@pytest.mark.parametrize(("free", "tokens"), [(80 * GB, 1 << 18), (10 * GB, 1 << 18), (10**8, 1 << 14), (1000, 512)])
def test_the_first_micro_batch_on_a_gpu_is_what_its_free_memory_holds(llama, cards, monkeypatch, free, tokens):
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * 10**5)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * 10**5)
    cards.free = free
    assert most_tokens(llama) == 2_048
    monkeypatch.setattr(Backbone, "device", torch.device("cuda:0"))
    assert most_tokens(llama) == tokens


@pytest.mark.parametrize("kind", ["t5", "umt5", "llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_token_keeps_for_the_backward_pass_is_near_what_is_reckoned(kind, dtype):
    """Wide enough for what a layer keeps once, whatever the tokens, to be little of it."""
    lm = tiny_lm(kind)
    lm.model.to(dtype)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in lm.model.parameters()}
    x = torch.randn(4, 16, lm.width, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        lm.last_states(x, torch.ones(4, 16, dtype=torch.bool))
    measured = sum(size for storage, size in kept.items() if storage not in weights) / 64
    assert 0.4 * measured < lm.kept_bytes < 2.5 * measured


def test_a_pass_is_priced_by_the_device_and_the_models_size(llama, monkeypatch):
    assert llama.pass_tokens == PASS_TOKENS
    small, half, wide = tiny_lm("llama"), tiny_lm("llama"), tiny_lm("llama", intermediate_size=64)
    card = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(Backbone, "device", torch.device("cuda:0"))
    assert small.pass_tokens > wide.pass_tokens > 1000 * PASS_TOKENS
    card.multi_processor_count = 66
    assert half.pass_tokens == small.pass_tokens // 2


# What follows needs a real one, and runs on the processor too, with the same code: `pytest -m gpu` runs it on the GPU.


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    return torch.device(request.param)


def moved(kind, place, dtype=None):
    lm = tiny_lm(kind)
    lm.model.to(place, dtype)
    return lm


def near(found, expected, tolerance=1e-3):
    return all(
        float((a.cpu().float() - b.float()).abs().max()) < tolerance for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_mixed_batch_equals_the_processors(kind, place):
    here, there = tiny_lm(kind), moved(kind, place)
    prompts, worn = [make_prompt(here), make_prompt(here, 7)], [1, -1 if kind == "llama" else 0]
    choices = [[(9, 1), (20, 1)]] * 2
    expected, found = (torch.tensor(Engine(lm, prompts).label_scores(ROWS, worn, choices)) for lm in (here, there))
    assert near([found], [expected])
    texts = [
        [answer.text for answer in Engine(lm, prompts).generate(ROWS, worn, max_target_length=5)]
        for lm in (here, there)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_training_step_has_the_processors_gradient(kind, place, dtype, tolerance):
    """With dropout, whose masks are the same bits everywhere."""
    here, there = tiny_lm(kind), moved(kind, place, dtype)
    prompts = [make_prompt(here), make_prompt(here, 7)]
    rate, seeds = (0.1, [3, 4]) if kind == "t5" else (0.0, None)
    expected, found = (
        gradients(lm, prompts, ROWS, [0, 1], max_tokens=100, dropout=rate, seeds=seeds)[0] for lm in (here, there)
    )
    scale = max(float(one.abs().max()) for one in expected)
    assert near(found, expected, tolerance * max(scale, 1.0))


def test_dropout_masks_are_the_processors_bits(place):
    masks = []
    for lm in (tiny_lm("t5"), moved("t5", place)):
        with lm.dropout(0.1, [3, 4], 8, 4):
            masks.append([module.mask.cpu() for module in [*lm._t5.dropouts, *lm._t5.attentions]])
    assert all(torch.equal(*pair) for pair in zip(*masks, strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, while it imports its compiler
@pytest.mark.parametrize("place", [pytest.param("cuda", marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_compiled_blocks_compute_the_same_on_a_gpu(kind, place):
    """On a processor other tests see to it."""
    here, there = tiny_lm(kind), moved(kind, place)
    there.compile()
    prompts, choices = [make_prompt(here)], [[(9, 1), (20, 1)]] * 2
    expected, found = (torch.tensor(Engine(lm, prompts).label_scores(ROWS, [0, 0], choices)) for lm in (here, there))
    assert near([found], [expected])


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_training_ends_where_the_processors_does_and_resumed_with_the_same_bits(kind, place, tmp_path):
    lm = moved(kind, place)
    own = member(lm, selection=4, evaluate_every=2, dropout=0.1 if kind == "t5" else 0.0)
    (expected,) = fit(tiny_lm(kind), [own])
    whole, again = (fit(lm, [own], deterministic=True)[0] for _ in range(2))
    assert near([whole.values], [expected.values], 0.05)
    interrupted(lm, own, tmp_path, at=3, deterministic=True)
    (resumed,) = fit(lm, [own], folder=tmp_path, resume=True, deterministic=True)
    assert torch.equal(whole.values, again.values) and torch.equal(whole.values, resumed.values)
    assert whole.values.device.type == "cpu" and resumed.score == whole.score


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_served_answers_greedy_and_of_beams_and_scores_are_the_processors(kind, place):
    """Prompts and no prompt in one batch."""
    told = []
    for lm in (tiny_lm(kind), moved(kind, place)):
        engine = Scheduler(lm)
        card = {"model_name": lm.name, "model_fingerprint": lm.fingerprint, "is_encoder_decoder": lm.is_encoder_decoder}
        prompts = [SoftPrompt(make_prompt(lm, length), Card(width=lm.width, **card)) for length in (4, 7)]
        worn = [*map(engine.table.add, prompts), None]
        parts = [Part(ids=(4, 5, 6 + i), prompt=prompt) for i, prompt in enumerate(worn)]
        asked = [Request(parts=(part,), decoding=Decoding(max_tokens=5, num_beams=n)) for part in parts for n in (1, 3)]
        labels = {"labels": ("a", "b"), "decoding": Decoding(max_tokens=1)}
        asked.append(Request(parts=(replace(parts[0], candidates=((9, 1), (20, 1))),), **labels))
        tickets = [engine.submit(request) for request in asked]
        while engine.step():
            pass
        answers = [ticket.result() for ticket in tickets]
        told.append(([answer.parts[0].ids for answer in answers], [answer.prediction.log_prob for answer in answers]))
    assert told[0][0] == told[1][0]
    assert near([torch.tensor(told[1][1])], [torch.tensor(told[0][1])])


def test_tables_of_a_wider_model_are_those_of_the_processor(place):
    here, there = tiny_lm("t5"), moved("t5", place)
    (ids, rows), (same, found) = (projected_embeddings(lm, here.tokenizer, 8, seed=0) for lm in (here, there))
    assert torch.equal(ids, same) and near([found], [rows])


@pytest.mark.gpu
def test_a_gpu_is_taken_by_itself_and_computes_in_bfloat16_where_it_can(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    lm = load(save_model(tmp_path))
    assert lm.device.type == "cuda"
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    assert lm.dtype == (torch.bfloat16 if native else torch.float32)
    with pytest.raises(ValueError, match="device 'cuda:99' is not there; this machine has cuda:0"):
        choose_device("cuda:99")
