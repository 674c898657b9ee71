"""Training all weights: it learns, resumes bit for bit, shares work between processes, and fails in one line."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_llama, make_tokenizer, tiny_lm
from safetensors.torch import load_file, save_file
from texts import documents

import softprompt
from softprompt.base.files import LOCK
from softprompt.base.watch import Watch
from softprompt.cluster import World
from softprompt.models.shapes import SIZES, Shape, shape_of
from softprompt.models.tokenizer import Tokenizer, load_tokenizer
from softprompt.pretraining.corpus import TokenStream
from softprompt.pretraining.loop import (
    CHECKPOINT,
    CURVE,
    Machine,
    PretrainConfig,
    Pretraining,
    pretrain,
    save_model,
)
from softprompt.pretraining.new_t5 import new_model, projected_embeddings, read_model
from softprompt.pretraining.vocabulary import check_sentinels, train_vocabulary

TINY = Shape(d_model=32, d_ff=64, num_heads=2, d_kv=16, num_layers=2, num_decoder_layers=1)
SPAN = PretrainConfig(
    steps=6,
    batch_size=8,
    micro_batch_size=4,
    input_length=32,
    learning_rate=1e-2,
    schedule="constant",
    warmup_steps=2,
    evaluate_every=3,
    num_heldout=8,
)
LM = replace(SPAN, objective="prefix-lm")
MIXED = replace(SPAN, prefix_share=0.5, target_length=6)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    train_vocabulary(documents(300), size=410, threads=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return load_tokenizer(vocabulary)


def stream_of(tokenizer, texts):
    ids = [id for text in texts for id in (*tokenizer.encode(text), tokenizer.eos_id)]
    return TokenStream(np.array(ids, dtype=np.uint16), len(texts))


@pytest.fixture(scope="module")
def text(tokenizer):
    return stream_of(tokenizer, documents(300)), stream_of(tokenizer, documents(30, seed=1))


def trained(tokenizer, text, config, folder, **options):
    model = new_model(TINY, tokenizer, seed=0)
    curve = pretrain(model, tokenizer, *text, config, folder=folder, name="tiny", **options)
    return model, curve


def stopped(tokenizer, text, folder, *, step=3):
    """A run that Ctrl-C ended at this step, and its checkpoint's bytes."""

    def stop(at, loss, tokens):
        if at == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tokenizer, text, SPAN, folder, watch=Watch(step=stop))
    return (folder / CHECKPOINT).read_bytes()


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def without_seconds(curve):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in curve]


@pytest.mark.parametrize("config", [SPAN, LM], ids=["span", "prefix-lm"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_heldout_loss_falls_far_below_guessing(tokenizer, text, config, optimizer, tmp_path):
    rate = {"adamw": 1e-2, "adafactor": 0.05}[optimizer]
    config = replace(config, steps=80, learning_rate=rate, optimizer=optimizer, evaluate_every=80)
    _, (last,) = trained(tokenizer, text, config, tmp_path)
    words = text[0].ids[text[0].ids > 258]
    shares = np.bincount(words) / len(words)
    by_frequency = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert last["heldout"] < by_frequency - 0.5 < np.log(tokenizer.size)


def test_tokens_and_loss_are_counted(tokenizer, text, tmp_path):
    told = []
    watch = Watch(step=lambda *values: told.append(values))
    _, curve = trained(tokenizer, text, SPAN, tmp_path, watch=watch)
    inputs, targets = 32, 8  # 33 tokens of text: 5 masked in 2 spans
    assert [entry["step"] for entry in curve] == [3, 6]
    assert curve[-1]["tokens"] == 6 * 8 * (inputs + targets)
    assert [step for step, _, _ in told] == [1, 2, 3, 4, 5, 6]
    assert curve[0]["loss"] == pytest.approx(sum(loss for _, loss, _ in told[:3]) / 3)
    assert [json.loads(line) for line in (tmp_path / CURVE).read_text().splitlines()] == curve


def test_the_loss_is_that_of_transformers(tokenizer, text, tmp_path):
    config = replace(SPAN, steps=1, micro_batch_size=8, evaluate_every=1)
    told = []
    trained(tokenizer, text, config, tmp_path, watch=Watch(step=lambda *values: told.append(values)))
    from softprompt.pretraining.loop import objective_of

    objective = objective_of(config, tokenizer, "tiny")
    batch = text[0].texts(range(8), objective.text_length, 0)
    inputs, targets = objective.make(batch, np.random.default_rng([0, 0]))
    model = new_model(TINY, tokenizer, seed=0).eval()
    with torch.no_grad():
        loss = model(input_ids=torch.from_numpy(inputs), labels=torch.from_numpy(targets)).loss
    assert told[0][1] == pytest.approx(float(loss), rel=1e-5)


def test_micro_batches_do_not_change_the_step(tokenizer, text, tmp_path):
    first, _ = trained(tokenizer, text, replace(SPAN, steps=1, micro_batch_size=8), tmp_path / "a")
    config = replace(SPAN, steps=1, micro_batch_size=8, batch_size=8)
    again, _ = trained(tokenizer, text, config, tmp_path / "b")
    assert same(weights(first), weights(again))


def micro_batches(tokenizer, text, config, *, steps=40):
    """(whether it is a prefix LM's, inputs, targets) of each micro-batch."""
    model = new_model(TINY, tokenizer, seed=0)
    run = Pretraining(model, tokenizer, *text, config, Path(), "tiny", Machine(), Watch())
    first_sentinel = check_sentinels(tokenizer, "tiny")
    batches = [batch for step in range(steps) for batch in run.batches(step)]
    return [(not (targets == first_sentinel).any(), inputs, targets) for inputs, targets in batches]


def test_a_share_of_the_micro_batches_is_a_prefix_lm_s(tokenizer, text):
    batches = micro_batches(tokenizer, text, replace(SPAN, prefix_share=0.25))
    assert 0.15 < np.mean([is_prefix for is_prefix, _, _ in batches]) < 0.35
    length = SPAN.input_length
    for _, inputs, targets in (batch for batch in batches if batch[0]):
        assert inputs.shape[1] + targets.shape[1] == length + 2  # each with its end
        read = np.concatenate([inputs[:, :-1], targets[:, :-1]], 1)
        assert all(row.tobytes() in text[0].ids.astype(np.int64).tobytes() for row in read)
    again = micro_batches(tokenizer, text, replace(SPAN, prefix_share=0.25))
    assert [targets.tolist() for _, _, targets in again] == [targets.tolist() for _, _, targets in batches]
    assert not any(is_prefix for is_prefix, _, _ in micro_batches(tokenizer, text, SPAN))
    assert all(is_prefix for is_prefix, _, _ in micro_batches(tokenizer, text, replace(SPAN, prefix_share=1.0)))


def test_a_prefix_lm_s_targets_can_be_short(tokenizer, text):
    lengths = {targets.shape[1] - 1 for _, _, targets in micro_batches(tokenizer, text, replace(LM, target_length=3))}
    assert lengths == {1, 2, 3}


def test_models_are_kept_on_the_way_and_load_as_frozen_models(tokenizer, text, tmp_path):
    model, _ = trained(tokenizer, text, replace(SPAN, keep=(0, 4)), tmp_path)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["0", "4"]
    start = softprompt.load(tmp_path / "steps" / "0", dtype="float32")
    end = softprompt.load(tmp_path, dtype="float32")
    fresh = new_model(TINY, tokenizer, seed=0)
    assert torch.equal(start.model.shared.weight, fresh.shared.weight.bfloat16().float())
    assert torch.equal(end.model.lm_head.weight, model.lm_head.weight.bfloat16().float())
    assert not torch.equal(end.model.lm_head.weight, end.model.shared.weight)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert end.tokenizer.encode("the sea") == tokenizer.encode("the sea")
    assert [path.name for path in tmp_path.glob(".*")] == [LOCK]


def test_kept_models_of_an_earlier_run_go_when_a_run_starts_anew(tokenizer, text, tmp_path, monkeypatch):
    config = replace(SPAN, keep=(0,))
    earlier, notes = new_model(TINY, tokenizer, seed=1), tmp_path / "steps" / "notes"
    pretrain(earlier, tokenizer, *text, replace(SPAN, keep=(0, 4)), folder=tmp_path, name="tiny")
    notes.mkdir()

    remove = shutil.rmtree

    def kill(folder, **options):
        if folder.parent.name == "steps":
            raise RuntimeError("killed")
        remove(folder, **options)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(shutil, "rmtree", kill)  # the new run's first checkpoint is there, and the earlier one's models
        trained(tokenizer, text, config, tmp_path)
    trained(tokenizer, text, config, tmp_path, resume=True)
    assert sorted(path.name for path in (tmp_path / "steps").iterdir()) == ["0", "notes"]
    start = new_model(TINY, tokenizer, seed=0).shared.weight.detach().bfloat16().float()
    assert torch.equal(softprompt.load(tmp_path / "steps" / "0", dtype="float32").model.shared.weight, start)
    stopped(tokenizer, text, tmp_path, step=1)  # of a run that keeps nothing
    assert [path.name for path in (tmp_path / "steps").iterdir()] == ["notes"]


def test_two_cannot_train_into_one_folder(tokenizer, text, tmp_path):
    second = []

    def also(step, loss, tokens):
        if step == 1:
            with ThreadPoolExecutor() as pool, pytest.raises(ValueError, match="is being written by process"):
                pool.submit(trained, tokenizer, text, SPAN, tmp_path).result()
            second.append("refused")

    trained(tokenizer, text, SPAN, tmp_path, watch=Watch(step=also))
    assert second == ["refused"]


def test_what_a_kill_left_half_written_is_made_whole_or_removed(tokenizer, text, tmp_path):
    config = replace(SPAN, keep=(0, 3))
    trained(tokenizer, text, config, tmp_path / "whole")
    stopped(tokenizer, text, tmp_path / "killed", step=3)
    half = tmp_path / "killed" / "steps" / "3"
    for folder in (half / ".saving.77", tmp_path / "killed" / ".saving.79"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (half / "model.safetensors").write_text("old")
    (tmp_path / "killed" / f".{CHECKPOINT}.80").write_text("half")
    trained(tokenizer, text, config, tmp_path / "killed", resume=True)
    assert [path.name for path in (tmp_path / "killed").rglob(".*")] == [LOCK]
    ours, wanted = (load_file(tmp_path / name / "steps" / "3" / "model.safetensors") for name in ("killed", "whole"))
    assert same(ours, wanted)
    assert (half / "config.json").is_file()


def test_a_run_writes_into_the_folder_it_stands_in(tokenizer, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trained(tokenizer, text, SPAN, Path("."))
    assert softprompt.load(tmp_path).is_encoder_decoder


def test_a_model_from_a_folder_is_adapted(tokenizer, text, tmp_path):
    trained(tokenizer, text, SPAN, tmp_path / "span")
    model, own = read_model(tmp_path / "span")
    assert model.lm_head.weight.dtype == torch.float32
    before = weights(model)
    curve = pretrain(model, own, *text, LM, folder=tmp_path / "lm", name="tiny")
    assert not same(before, weights(model))
    assert np.isfinite(curve[-1]["heldout"])


def train_in_a_process(folder, vocabulary, kill, config, compiled):
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(vocabulary)
    text = stream_of(tokenizer, documents(300)), stream_of(tokenizer, documents(30, seed=1))

    def stop(step, loss, tokens):
        if step == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    options = {"resume": True, "machine": Machine(compile=compiled), "checkpoint_every_s": 0.0}
    trained(tokenizer, text, replace(config, steps=8), folder, watch=Watch(step=stop), **options)


def run_in_a_process(*arguments, kill=0):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.t5.modeling_t5", "softprompt.pretraining.loop"])
    folder, vocabulary, *others = arguments
    process = context.Process(target=train_in_a_process, args=(folder, vocabulary, kill, *others))
    process.start()
    process.join(250)
    assert process.exitcode == (-signal.SIGKILL if kill else 0)


SLOWLY = [pytest.param(config, (2, 5), False, marks=pytest.mark.slow) for config in (SPAN, LM)]


@pytest.mark.parametrize(("config", "kills", "compiled"), [(MIXED, (2, 5), False), (SPAN, (5,), True), *SLOWLY])
def test_killed_and_resumed_is_never_killed_bit_for_bit(vocabulary, tmp_path, config, kills, compiled):
    run_in_a_process(tmp_path / "whole", vocabulary, config, compiled)
    for kill in kills:
        run_in_a_process(tmp_path / "killed", vocabulary, config, compiled, kill=kill)
    assert not (tmp_path / "killed" / "config.json").exists()
    run_in_a_process(tmp_path / "killed", vocabulary, config, compiled)
    ours, wanted = (load_file(tmp_path / name / CHECKPOINT) for name in ("killed", "whole"))
    assert set(ours) == set(wanted)
    assert same(ours, wanted)
    curves = [
        without_seconds(map(json.loads, (tmp_path / name / CURVE).read_text().splitlines()))
        for name in ("killed", "whole")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 3


def test_ctrl_c_writes_a_checkpoint_to_go_on_from(tokenizer, text, tmp_path):
    def stop(step, loss, tokens):
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tokenizer, text, SPAN, tmp_path / "stopped", watch=Watch(step=stop))
    model, curve = trained(tokenizer, text, SPAN, tmp_path / "stopped", resume=True)
    whole, wanted = trained(tokenizer, text, SPAN, tmp_path / "whole")
    assert same(weights(model), weights(whole))
    assert without_seconds(curve) == without_seconds(wanted)


def test_an_evaluation_that_a_ctrl_c_kept_from_being_made_is_made_on_resume(tokenizer, text, tmp_path):
    stopped(tokenizer, text, tmp_path / "stopped", step=3)
    trained(tokenizer, text, SPAN, tmp_path / "stopped", resume=True)
    trained(tokenizer, text, SPAN, tmp_path / "whole")
    ours, wanted = (
        without_seconds(map(json.loads, (tmp_path / name / CURVE).read_text().splitlines()))
        for name in ("stopped", "whole")
    )
    assert ours == wanted and [line["step"] for line in ours] == [3, 6]


class Unlike(World):
    """Two processes, each with a checkpoint of its own: the first is at step 6, and the other at its beginning."""

    def gathered(self, value):
        return [6, 0] if value or self.rank else [0, 0]

    def total(self, tensor):
        return tensor


def test_processes_that_would_go_on_from_different_steps_are_refused(tokenizer, text, tmp_path):
    for rank in range(2):
        folder, machine = tmp_path / str(rank), Machine(world=Unlike(rank, 2))
        if rank == 0:
            trained(tokenizer, text, SPAN, folder, machine=machine)
        with pytest.raises(ValueError) as refused:
            trained(tokenizer, text, SPAN, folder, machine=machine, resume=True)
        assert str(refused.value) == (
            f"the processes would go on from steps 6, 0, but {folder / CHECKPOINT} must be the same for all; copy the "
            "newest to every machine, or share the folder"
        )


@contextmanager
def full_disk():
    """No file takes more than a thousand bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_the_last_checkpoint_and_training_goes_on(tokenizer, text, tmp_path):
    before = stopped(tokenizer, text, tmp_path, step=2)
    config, told = replace(SPAN, keep=(4,)), []
    words = r"^could not write \S+ \(File too large\); with room there, --resume goes on from the last checkpoint$"
    with ExitStack() as stack, pytest.raises(OSError, match=words):

        def fill(step, loss, tokens):
            if step == 3:
                stack.enter_context(full_disk())

        watch = Watch(message=told.append, step=fill)
        trained(tokenizer, text, config, tmp_path, resume=True, watch=watch, checkpoint_every_s=0.0)
    refused = f"no checkpoint at step 3: {tmp_path}/{CHECKPOINT} cannot be written (File too large); the last stays"
    assert told[0] == refused
    refused = f"could not write {tmp_path}/steps/4 (File too large); the rest of the run is kept"
    assert told[1] == f"no model of step 4: {refused}"
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert [path.name for path in tmp_path.rglob(".*")] == [LOCK]
    _, curve = trained(tokenizer, text, config, tmp_path, resume=True)
    assert curve[-1]["step"] == 6
    assert softprompt.load(tmp_path / "steps" / "4").is_encoder_decoder


def test_a_model_that_was_not_kept_is_told_at_the_end_where_all_else_is_there(tokenizer, text, tmp_path):
    words = r"^could not write \S+/steps/4 \(File too large\); the rest of the run is kept$"
    with ExitStack() as stack, pytest.raises(OSError, match=words):

        def fill(step, loss, tokens):
            if step == 4:
                stack.enter_context(full_disk())
            if step == 5:
                stack.close()

        trained(tokenizer, text, replace(SPAN, keep=(4, 5)), tmp_path, watch=Watch(step=fill))
    for folder in (tmp_path, tmp_path / "steps" / "5"):
        assert softprompt.load(folder).is_encoder_decoder
    assert not (tmp_path / "steps" / "4" / "config.json").exists()


def test_a_disk_that_is_full_from_the_start_is_told_before_the_first_step(tokenizer, text, tmp_path):
    trained(tokenizer, text, replace(SPAN, keep=(0, 4)), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    steps = []
    words = (
        rf"could not write \S+/{CHECKPOINT} \(File too large\); nothing was trained; free some space, or give another"
    )
    with full_disk(), pytest.raises(OSError, match=words):
        watch = Watch(step=lambda step, loss, tokens: steps.append(step))
        trained(tokenizer, text, SPAN, tmp_path, watch=watch)
    assert steps == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_resumed_run_leaves_the_number_of_threads_and_tells_of_another(tokenizer, text, tmp_path):
    threads, told = torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        stopped(tokenizer, text, tmp_path, step=2)
        torch.set_num_threads(1)
        trained(tokenizer, text, SPAN, tmp_path, resume=True, watch=Watch(message=told.append))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert told == ["processor threads were 3 when this run began, and are 1, so sums may round otherwise"]


def test_a_model_on_a_full_disk_is_one_line(tokenizer, tmp_path):
    words = r"^could not write \S+model \(File too large\); the model is not there$"
    with full_disk(), pytest.raises(OSError, match=words):
        save_model(new_model(TINY, tokenizer, seed=0), tokenizer, tmp_path / "model")


def test_a_loss_that_is_not_finite_ends_the_run_and_the_checkpoint_stays(tokenizer, text, tmp_path):
    before = stopped(tokenizer, text, tmp_path)
    model = new_model(TINY, tokenizer, seed=0)

    def spoil(step, loss, tokens):
        if step == 4:
            model.shared.weight.data.fill_(torch.inf)

    words = r"the loss at step 5 is not finite; the last checkpoint stays in .*; try a lower --learning-rate"
    with pytest.raises(ValueError, match=words):
        pretrain(model, tokenizer, *text, SPAN, folder=tmp_path, name="tiny", resume=True, watch=Watch(step=spoil))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_gradient_that_is_not_finite_moves_no_weight_and_the_checkpoint_stays(tokenizer, text, optimizer, tmp_path):
    model = new_model(TINY, tokenizer, seed=0)
    kept = {}

    def keep(step, loss, tokens):
        if step == 4:
            model.shared.weight.register_hook(lambda gradient: gradient * torch.inf)
        kept[step] = weights(model)

    config = replace(SPAN, optimizer=optimizer)
    options = {"watch": Watch(step=keep), "checkpoint_every_s": -1.0}
    with pytest.raises(ValueError, match=r"the gradient at step 5 is not finite; the last checkpoint stays in .*lower"):
        pretrain(model, tokenizer, *text, config, folder=tmp_path, name="tiny", **options)
    assert same(weights(model), kept[4])
    saved = load_file(tmp_path / CHECKPOINT)
    assert all(torch.equal(saved[f"weight.{i}"], weight) for i, weight in enumerate(model.parameters()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.02}, "is of another run: learning_rate was 0.01, and is 0.02; give the same settings"),
        ({"shape": replace(TINY, d_ff=96)}, "is of another run: weights was .* numbers', and is"),
        (
            {"machine": Machine(world=World(0, 2))},
            "is of another run: processes was 1, and is 2; give the same settings",
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tokenizer, text, tmp_path, change, words):
    trained(tokenizer, text, SPAN, tmp_path)
    model = new_model(change.get("shape", TINY), tokenizer, seed=0)
    options = {"machine": change.get("machine"), "folder": tmp_path, "name": "tiny", "resume": True}
    settings = {name: value for name, value in change.items() if name not in ("shape", "machine")}
    with pytest.raises(ValueError, match=words):
        pretrain(model, tokenizer, *text, replace(SPAN, **settings), **options)


@pytest.mark.parametrize(("which", "name"), [(0, "corpus"), (1, "heldout")])
def test_a_checkpoint_of_other_text_of_the_same_length_is_refused(tokenizer, text, tmp_path, which, name):
    trained(tokenizer, text, SPAN, tmp_path)
    other = list(text)
    other[which] = replace(text[which], ids=text[which].ids[::-1].copy())
    size = r"[\d,]+ tokens, sha256 \w{16}"
    with pytest.raises(ValueError, match=f"is of another run: {name} was '{size}', and is '{size}'; give the same"):
        trained(tokenizer, tuple(other), SPAN, tmp_path, resume=True)


def test_a_checkpoint_of_0_1_0_is_refused_in_one_line(tokenizer, text, tmp_path):
    save_file({"weight.0": torch.zeros(2)}, tmp_path / CHECKPOINT, metadata={"pretraining": '{"identity": {}}'})
    with pytest.raises(
        ValueError, match=r"^\S+ is a checkpoint of softprompt 0\.1\.0, from which later versions do not"
    ):
        trained(tokenizer, text, SPAN, tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(tokenizer, text, tmp_path):
    trained(tokenizer, text, SPAN, tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is no checkpoint of pre-training, or a damaged one"):
        trained(tokenizer, text, SPAN, tmp_path, resume=True)


def test_text_that_is_too_short_is_refused(tokenizer, text, tmp_path):
    short = TokenStream(text[0].ids[:20], 1)
    with pytest.raises(ValueError, match="the held-out text has 20 tokens, too few for 4 texts of"):
        trained(tokenizer, (text[0], short), SPAN, tmp_path)
    with pytest.raises(ValueError, match="the corpus has 20 tokens, too few for one text of"):
        trained(tokenizer, (short, text[1]), SPAN, tmp_path)


def test_span_corruption_needs_sentinels(text, tmp_path):
    bare = Tokenizer(make_tokenizer())
    with pytest.raises(ValueError, match="the vocabulary of tiny has no sentinels"):
        trained(bare, text, SPAN, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, "steps is 0, but must be 1 or more"),
        ({"objective": "spam"}, "no objective is named 'spam'; did you mean 'span'"),
        ({"optimizer": "adam"}, "no optimizer is named 'adam'; did you mean 'adamw'"),
        ({"schedule": "cosinus"}, "no schedule is named 'cosinus'; did you mean 'cosine'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, but must be above 0"),
        ({"prefix_share": 1.5}, "prefix_share is 1.5, but must be from 0 to 1"),
        ({"target_length": 32}, "target_length is 32, but must be from 1 to below input_length 32"),
        ({"micro_batch_size": 3}, "batch_size 8 is no multiple of micro_batch_size 3; make it one"),
        ({"keep": (0, 7)}, "keep names step 7, but the run has steps 0 to 6"),
    ],
)
def test_settings_that_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        replace(SPAN, **change)


@pytest.mark.parametrize("size", ["micro", "tiny", "mini"])
def test_the_family_is_about_four_times_apart(size, tokenizer):
    shape = SIZES[size]
    model = new_model(shape, tokenizer, seed=0)
    tables = 2 * tokenizer.size * shape.d_model
    assert model.num_parameters() - tables == shape.num_parameters
    wanted = {"micro": 0.6e6, "tiny": 2.5e6, "mini": 10e6}[size]
    assert shape.num_parameters == pytest.approx(wanted, rel=0.1)


def test_layers_of_a_new_model_add_little_together_however_deep(tokenizer):
    def growth(num_layers):
        shape = replace(TINY, num_layers=num_layers)
        stack = new_model(shape, tokenizer, seed=0).eval().encoder
        given = torch.randn(4, 20, shape.d_model, generator=torch.Generator().manual_seed(0))
        found = []
        stack.final_layer_norm.register_forward_pre_hook(lambda module, args: found.append(args[0]))
        with torch.no_grad():
            stack(inputs_embeds=given)
        return float((found[0] - given).square().mean().sqrt())

    assert growth(12) == pytest.approx(growth(2), rel=0.25)  # without the start 2.5 times as much
    states = new_model(replace(TINY, num_layers=12), tokenizer, seed=0).state_dict()
    last = [value.std() for name, value in states.items() if name.startswith("encoder") and name.endswith("o.weight")]
    assert len(last) == 24 and max(last) < 24**-0.5


def test_a_shape_can_come_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"d_model": 8, "d_ff": 16, "num_heads": 1, "num_layers": 1, "num_decoder_layers": 1}))
    assert shape_of(str(path)).d_model == 8
    with pytest.raises(ValueError, match="no size named 'minni'; did you mean 'mini'"):
        shape_of("minni")
    path.write_text('{"width": 8}')
    with pytest.raises(ValueError, match=r"mine.json is no shape"):
        shape_of(str(path))
    with pytest.raises(ValueError, match=r"no file .*other.json; give a JSON file with d_model"):
        shape_of(str(tmp_path / "other.json"))


def test_a_model_of_another_kind_is_not_adapted(tmp_path):
    make_llama().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"cannot train the model .*: it is of type 'llama', and wanted is one of t5"):
        read_model(tmp_path)


def test_tables_can_start_from_a_wider_models(tokenizer):
    wider = tiny_lm("llama", hidden_size=40, num_attention_heads=4)
    ids, rows = projected_embeddings(wider, tokenizer, 39, seed=0)
    assert rows.std().item() == pytest.approx(1)
    assert set(ids.tolist()) <= set(tokenizer.ordinary_ids())
    # All but the least of 40 components is kept, so distances between pieces are the wider model's but for one scale.
    pieces = [wider.tokenizer.encode(tokenizer.piece(id)) for id in ids.tolist()]
    own = torch.stack([wider.embeddings[cut].float().mean(0) for cut in pieces])
    assert torch.corrcoef(torch.stack([torch.pdist(rows), torch.pdist(own)]))[0, 1] > 0.99

    plain, model = (new_model(TINY, tokenizer, seed=0, tables_from=lm) for lm in (None, wider))
    ids, rows = projected_embeddings(wider, tokenizer, TINY.d_model, seed=0)
    assert torch.equal(model.shared.weight[ids], rows)
    assert torch.equal(model.lm_head.weight[ids], rows * TINY.d_model**-0.5)
    others = sorted(set(range(tokenizer.size)) - set(ids.tolist()))
    assert torch.equal(model.shared.weight[others], plain.shared.weight[others])
    assert torch.equal(
        model.encoder.block[0].layer[0].SelfAttention.q.weight, plain.encoder.block[0].layer[0].SelfAttention.q.weight
    )


def test_tables_need_a_wider_model(tokenizer):
    with pytest.raises(ValueError, match="has width 16, but tables of width 32 need a wider model"):
        new_model(TINY, tokenizer, seed=0, tables_from=tiny_lm("llama"))
