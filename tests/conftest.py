"""Tiny real models, built in milliseconds: nothing is downloaded and nothing is mocked."""

import gc
import json
import os
import signal
import time
import warnings
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# A shell starts a job in the background with Ctrl-C ignored, and so are the processes that tests send one to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Every jaxtyping annotation is checked at run time in tests: a prompt of width 17 for a model of
# width 16 fails at the call.
# `tasks` has no tensors, and checking every record of a real data set would take minutes.
TENSOR_ROOMS = ["models", "prompts", "answering", "training", "serving", "pretraining", "study"]
WITHOUT = {
    "serving.http",
    "pretraining.commands",
    "study.commands",
}  # no tensors; FastAPI reads their annotations itself
PACKAGE = Path(__file__).parent.parent / "softprompt"
CAMPAIGNS = PACKAGE.parent / "results" / "campaigns.jsonl"
SEED = 20  # of the campaigns


def tensor_modules():
    """Every module whose annotations are checked."""
    for room in TENSOR_ROOMS:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            if path.name != "__init__.py" and not any(name.startswith(f"{folder}.") for folder in WITHOUT):
                yield f"softprompt.{name}"


install_import_hook(list(tensor_modules()), "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish(session):
    """What all tests import stays: to look through its million objects takes long, and each run measured does so."""
    gc.freeze()


TEXT = """sentence: the film is a warm and funny story about a family that moves to the sea
sentence: a dull and lifeless film that never finds its story positive negative
hypothesis: it rained in the night premise: the street was wet in the morning entailment not_entailment
question: is the sea warm passage: the sea near the town is warm in the summer True False choice1 choice2"""


def make_tokenizer(*, bos: bool = False):
    """A byte-level BPE tokenizer of about 330 ids, with the special tokens of T5."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<unk>", "<s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=specials,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXT.splitlines() * 4, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )


T5 = {
    "vocab_size": 340, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
}  # fmt: skip
LLAMA = {
    "vocab_size": 340, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3,
}  # fmt: skip
GPT2 = {
    "vocab_size": 340, "n_embd": 16, "n_inner": 32, "n_layer": 2, "n_head": 2, "n_positions": 256, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 3,
}  # fmt: skip
SLIDING = ["sliding_attention", "full_attention"]

# Kind: its configuration's class in transformers, and the fields.
FAMILIES = {
    "t5": ("T5Config", T5),
    "t5-1.0": ("T5Config", T5 | {"feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "mt5": ("MT5Config", T5),
    "umt5": ("UMT5Config", T5),
    "llama": ("LlamaConfig", LLAMA),
    "gpt2": ("GPT2Config", GPT2),
    "gemma": ("GemmaConfig", LLAMA | {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        LLAMA | {"head_dim": 8, "sliding_window": 6, "layer_types": SLIDING, "query_pre_attn_scalar": 8},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        LLAMA | {"head_dim": 8, "sliding_window": 6, "layer_types": SLIDING, "query_pre_attn_scalar": 8},
    ),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen2-sliding": (
        "Qwen2Config",
        LLAMA | {"use_sliding_window": True, "sliding_window": 6, "layer_types": SLIDING},
    ),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 8}),
    "mistral": ("MistralConfig", LLAMA | {"head_dim": 8, "sliding_window": 6}),
}
ENCODER_DECODERS = ("t5", "t5-1.0", "mt5", "umt5")


def make_model(kind: str, *, seed: int = 0, **changes):
    """A tiny model of two layers from its configuration, with weights from `spread`."""
    import transformers

    name, fields = FAMILIES[kind]
    config = getattr(transformers, name)(**fields | changes)
    auto = transformers.AutoModelForSeq2SeqLM if kind in ENCODER_DECODERS else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    if kind in ("t5", "mt5"):  # transformers 5 ties what it is told not to; a checkpoint with both unties it again
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
    return spread(model, seed)


def write_gguf(path, model=None, *, table="F32"):
    """A Llama, the tiny one unless given, as a GGUF file in float32, but for the type of its two tables."""
    import gguf

    model, tokenizer = model or make_model("llama"), make_tokenizer(bos=True)
    config, vocabulary = model.config, tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    for add, id in [(writer.add_bos_token_id, 3), (writer.add_eos_token_id, 1), (writer.add_pad_token_id, 0)]:
        add(id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array, kind = tensor.numpy(), gguf.GGMLQuantizationType.F32
        for ending, count in heads.items():
            if name.endswith(ending):  # GGUF keeps the halves of a rotated head side by side
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            kind = gguf.GGMLQuantizationType[table]
            array = q6_k(array) if table == "Q6_K" else gguf.quantize(array, kind)
        writer.add_tensor(
            names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(array), raw_dtype=kind
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def q6_k(array):
    """A table of the same shape in Q6_K, which gguf cannot make of numbers: 210 bytes for 256, the last two a scale."""
    draw = np.random.default_rng(array.size)
    blocks = draw.integers(0, 256, (len(array), array.shape[1] // 256, 210), dtype=np.uint8)
    blocks[..., 208:] = np.full((1,), 5e-4, np.float16).view(np.uint8)
    return blocks.reshape(len(array), -1)


def make_t5(width: int = 16, seed: int = 0):
    """A T5 1.1: gated, with an output layer of its own."""
    return make_model("t5", d_model=width, seed=seed)


def make_llama(width: int = 16, seed: int = 0):
    """A Llama with grouped-query attention."""
    return make_model("llama", hidden_size=width, seed=seed)


def spread(model, seed: int = 0):
    """Every matrix times an input of unit variance gives an output of about unit variance.

    So attention attends to some tokens more than to others (a wrong mask changes the numbers) and gradients are
    of the order of 1, where float32 rounds by 1e-7.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                continue
            is_table = any(word in name for word in ("shared", "embed_tokens", "wte", "wpe", "relative_attention_bias"))
            deviation = 1.0 if is_table else parameter.shape[-1] ** -0.5
            if name.endswith("Attention.q.weight"):
                deviation *= 8**-0.5  # T5 does not scale its attention scores
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return model.eval()


def tiny_lm(kind: str, **changes):
    """A tiny FrozenLM of a kind in FAMILIES."""
    from softprompt.models import FrozenLM

    return FrozenLM(make_model(kind, **changes), make_tokenizer(bos=kind == "llama"), name=f"tiny-{kind}")


def lossy_lm(*steps):
    """A tiny Llama whose tokenizer normalises text by these steps; by default it drops accents."""
    from tokenizers import normalizers

    from softprompt.models import FrozenLM

    tokenizer = make_tokenizer(bos=True)
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        list(steps) or [normalizers.NFD(), normalizers.StripAccents()]
    )
    return FrozenLM(make_model("llama"), tokenizer, name="tiny-lossy")


@pytest.fixture(params=["t5", "llama"])
def lm(request):
    """A tiny encoder-decoder and a tiny decoder-only model, in turn."""
    return tiny_lm(request.param)


@pytest.fixture
def llama():
    return tiny_lm("llama")


@pytest.fixture
def t5():
    return tiny_lm("t5")


@pytest.fixture
def run(capsys):
    """Run a command: its exit code, stdout and stderr."""

    def call(*words):
        from softprompt.cli.command_line import main

        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Tensors that are made once for all tests, whichever worker of xdist asks first: `once(name, make)` gives them."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which all workers share

    def made(name, make):
        path = folder / f"{name}.pt"
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                torch.save(make(), path)
        return torch.load(path)

    return made


@pytest.fixture(scope="session")
def ray_here():
    """Ray with two processors, started once for all tests, without what its dashboard is made of."""
    from softprompt.cluster import ray_cluster

    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # Ray's, about itself
        patch.setattr("ray._private.utils.get_dashboard_dependency_error", lambda: ImportError("not wanted"))
        with ray_cluster(None, processors=2):
            yield


@pytest.fixture
def one_thread():
    """As many as a process of its own has here, so that sums round alike."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data_folder():
    """The folder of real task data; tests that need it skip without."""
    folder = os.environ.get("SOFTPROMPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SOFTPROMPT_DATA names no folder of task data")
    return Path(folder)


@pytest.fixture
def add():
    """Write a campaign's row to the committed ones, in the place of the one before."""
    from softprompt.answering.rows import surroundings
    from softprompt.base.files import locked

    started = time.monotonic()

    def add(campaign, what, **found):
        about = {"experiment": "campaigns", "campaign": campaign, "what": what, **found, "seed": SEED}
        seconds = round(time.monotonic() - started, 1)
        where = surroundings(torch.device("cpu"), torch.float32)
        row = about | {"seconds": seconds} | where | {"command": "make slow"}
        with CAMPAIGNS.open("r+", encoding="utf-8") as file, locked(file):  # another campaign may end meanwhile
            by_name = {(each["campaign"], each["what"]): each for each in [*map(json.loads, file), row]}
            file.seek(0)
            file.truncate()
            file.writelines(json.dumps(by_name[name]) + "\n" for name in sorted(by_name))

    return add


@pytest.fixture
def size():
    """The share of a campaign's whole size that is run; its row says the true number."""
    return float(os.environ.get("CAMPAIGN_SIZE", "1"))
