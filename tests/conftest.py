"""Tiny real models, built in milliseconds: nothing is downloaded and nothing is mocked."""

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Every jaxtyping annotation is checked at run time in tests: a prompt of width 17 for a model of
# width 16 fails at the call.
# `tasks` has no tensors, and checking every record of a real data set would take minutes.
TENSOR_MODULES = "backbone data prompt formats optimizers inference evaluation training run prediction".split()
install_import_hook([f"softprompt.{name}" for name in TENSOR_MODULES], "beartype.beartype")

os.environ.setdefault("HF_HUB_OFFLINE", "1")

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


def make_t5(width: int = 16, seed: int = 0):
    """A T5 1.1 of two layers, untied, with weights large enough that inputs matter."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=340, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )  # fmt: skip
    return spread(T5ForConditionalGeneration(config))


def make_llama(width: int = 16, seed: int = 0):
    """A Llama of two layers with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=340, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, bos_token_id=3,
    )  # fmt: skip
    return spread(LlamaForCausalLM(config))


def spread(model):
    """Weights of deviation 0.3: attention that attends, so that a wrong mask changes the numbers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def tiny_lm(kind: str, **changes):
    """A tiny FrozenLM: `t5` or `llama`."""
    from softprompt.backbone import FrozenLM

    model = make_t5(**changes) if kind == "t5" else make_llama(**changes)
    return FrozenLM(model, make_tokenizer(bos=kind == "llama"), name=f"tiny-{kind}")


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
def data_folder():
    """The folder of real task data; tests that need it skip without."""
    folder = os.environ.get("SOFTPROMPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SOFTPROMPT_DATA names no folder of task data")
    return Path(folder)
