"""Prompts: their card, their folder, how they begin, and how they are put in front of the input."""

import errno
import hashlib
import json
import os
import re
import resource
import struct
import threading
from dataclasses import replace

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from softprompt.base.files import locked
from softprompt.models import FrozenLM, TextFormat
from softprompt.prompts import (
    Card,
    SoftPrompt,
    check_fits,
    from_uniform,
    initial_prompt,
    load_prompt,
    prepend,
    save_prompt,
    stack,
)
from softprompt.prompts import folder as folder_module
from softprompt.prompts.initial import from_class_labels, from_prompt, from_text, from_vocabulary
from softprompt.tasks import Example, file_task


class Characters:
    """One id a character: 0 to 2 are special, then a to z and space, most frequent first by the alphabet."""

    alphabet = "abcdefghijklmnopqrstuvwxyz "

    def encode(self, text):
        return [3 + self.alphabet.index(character) for character in text]

    def piece(self, id):
        return self.alphabet[id - 3]

    def ordinary_ids(self):
        return list(range(3, 30))


class ManyWords(Characters):
    """A vocabulary of 6,000 ordinary ids, 9,000 down to 3,001: frequency is not the order of the ids."""

    def ordinary_ids(self):
        return list(range(9_000, 3_000, -1))

    def piece(self, id):
        return f"word{id}"


def model(name, fingerprint, width=4, dtype=torch.float32):
    """What a prompt is compared with, and no more of a model."""
    lm = object.__new__(FrozenLM)
    lm.name, lm.fingerprint, lm.width = name, fingerprint, width
    lm._table = torch.nn.Embedding.from_pretrained(torch.ones(3, width, dtype=dtype))
    return lm


def table(rows=30, width=4):
    return torch.arange(rows * width, dtype=torch.float32).reshape(rows, width)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def card(**changes):
    values = {
        "model_name": "tiny/t5",
        "model_fingerprint": "abcd1234" * 8,
        "is_encoder_decoder": True,
        "width": 4,
        "task": "superglue/boolq",
        "task_version": "1",
        "labels": ("False", "True"),
        "text": {"separator": "", "max_input_length": 512, "truncation_side": "end", "inputs_template": None},
        "init": {"kind": "text", "seed": 3, "tokens": [{"ids": [5], "pieces": ["c"]}]},
        "recipe": {"preset": "paper", "learning_rate": 0.3},
        "selection": "held-out",
        "dev_metrics": {"accuracy": 0.75},
        "step": 900,
        "seed": 3,
        "parent": "00ff",
    }
    return Card(**(values | changes))


def prompt(fill=1.0, length=3, **changes):
    return SoftPrompt(torch.full((length, 4), fill), card(**changes))


# The card


def test_a_card_reads_back_from_json_as_it_was():
    ours = card()
    assert Card.from_json(ours.to_json()) == ours
    assert json.loads(ours.to_json())["labels"] == ["False", "True"]


def test_a_card_keeps_text_that_is_not_ascii_readable():
    assert "größer" in card(labels=("größer", "kleiner")).to_json()


def changed(**changes):
    record = json.loads(card().to_json()) | changes
    return json.dumps({key: value for key, value in record.items() if value != "gone"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (changed(format_version=3, novelty=1), "has format 3 .*reads formats up to 2; upgrade softprompt"),
        (changed(model_nam="x"), "unknown key 'model_nam'; did you mean 'model_name'"),
        (changed(width="gone"), "lacks the key 'width'"),
        (changed(width="wide"), "the card: width is 'wide', but must be a whole number"),
        (changed(width=None), "the card: width is None, but must be a whole number"),
        (changed(is_encoder_decoder=1), "the card: is_encoder_decoder is 1, but must be true or false"),
        (changed(labels=[1, 2]), r"the card: labels\[0\] is 1, but must be text"),
        (changed(labels=["a\ud800"]), r"card holds '\\ud800', half a character"),
        (changed(init=[]), r"the card: init is \[\], but must be names with their values"),
        (changed(text={"separator": 3}), "the card's text format: separator is 3, but must be text"),
        (changed(text={"inputs_template": 3}), "the card's text format: inputs_template is 3, but must be text"),
        (changed(text={"max_input_length": None}), "format: max_input_length is None, but must be a whole number"),
        (changed(text={"max_input_length": 7}), "format: max_input_length is 7, but must be 8 or more"),
        (changed(text={"colour": 3}), "the card's text format has unknown fields colour; update softprompt"),
        ("{", "is not valid JSON"),
        ("[1]", "is a JSON list; wanted an object"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_a_card_that_cannot_be_read_is_one_clear_line(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        Card.from_json(text)
    assert "\n" not in str(caught.value)


# The prompt itself


def test_a_prompt_keeps_a_float32_copy_of_its_values():
    values = torch.ones(2, 4, dtype=torch.float64, requires_grad=True)
    ours = SoftPrompt(values, card())
    with torch.no_grad():
        values += 1
    assert ours.values.dtype == torch.float32
    assert ours.values.tolist() == [[1.0] * 4] * 2
    assert not ours.values.requires_grad
    assert (ours.length, ours.width) == (2, 4)


def test_the_values_are_contiguous_however_they_came():
    assert SoftPrompt(torch.ones(4, 5).T, card()).values.is_contiguous()


def test_the_hash_is_that_of_shape_and_bytes():
    ours = SoftPrompt(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), card())
    # sha256 of b"1x4:" and the sixteen little-endian bytes, by coreutils
    assert ours.sha256 == "fa2070043ff656eda97494fcde787c611a9c27b0c07f13344fc08499bd2e5fc2"
    assert ours.sha256 == SoftPrompt(ours.values.clone(), card(task="other")).sha256
    assert ours.sha256 != SoftPrompt(ours.values.reshape(2, 2), card(width=2)).sha256


OWN = {"inputs_template": "{a}", "targets_template": "{b}"}


def test_a_card_that_names_its_model_at_length_is_saved(tmp_path):
    ours = prompt(model_name="x" * 3_000)  # longer than any file's name
    save_prompt(ours, tmp_path / "p")
    assert load_prompt(tmp_path / "p").identity == ours.identity


def test_an_identity_is_the_hash_of_what_changes_an_answer():
    ours = prompt(labels=("no", "yes"), text={"separator": " ->", "max_input_length": 64}, recipe={"scoring": "rank"})
    text = (
        '{"labels": ["no", "yes"], "scoring": "rank", "task": "superglue/boolq", "task_version": "1", '
        '"text": {"max_input_length": 64, "separator": " ->"}, "values": "' + ours.sha256 + '"}'
    )
    assert ours.identity == hashlib.sha256(text.encode()).hexdigest()
    assert ours.identity == "ac1be75e45d1d2b7b421abce4363cf0938b38a9d06f7d5014a692acecd2559e7"


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "superglue/cb"}, {"task_version": "2"}, {"labels": ("True", "False")}, {"labels": ()}, {"text": {}},
        {"text": {"separator": " "}}, {"recipe": {"scoring": "generate"}}, {"recipe": {"metric": "f1"}},
        {"recipe": {"group_by": "id"}}, {"text": OWN}, {"text": OWN, "dev_metrics": {"f1": 0.5}},
    ],
    ids=str,
)  # fmt: skip
def test_what_changes_an_answer_changes_the_identity(changes):
    text = OWN if "dev_metrics" in changes else card().text
    assert prompt(**changes).identity != prompt(text=text).identity
    assert prompt(2.0, **changes).identity != prompt(**changes).identity
    assert prompt(**changes).sha256 == prompt().sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"dev_metrics": {"accuracy": 0.25, "f1": 0.1}}, {"dev_metrics": {}}, {"recipe": {}}, {"init": {}}, {"step": 1},
        {"seed": 9, "parent": "00", "selection": None, "model_name": "other", "values_sha256": "00"},
        {"text": TextFormat(max_input_length=512).to_json()}, {"recipe": {"metric": None, "scoring": None}},
    ],
    ids=str,
)  # fmt: skip
def test_scores_and_fields_at_their_defaults_change_no_identity(changes):
    assert prompt(**changes).identity == prompt().identity


def test_a_metric_that_is_taken_anyhow_changes_no_identity():
    for labels, metric in ((("a", "b"), "accuracy"), ((), "em")):
        with_it = prompt(text=OWN, labels=labels, recipe={"metric": metric}, dev_metrics={})
        scored = prompt(text=OWN, labels=labels, dev_metrics={metric: 0.5})
        without = prompt(text=OWN, labels=labels, dev_metrics={})
        assert with_it.identity == scored.identity == without.identity
        task = file_task(inputs="{a}", targets="{b}", labels=labels or None)
        example = Example(inputs="", targets="a", id="", references=("a",))
        assert list(task.metrics(["a"], [example])) == [metric]  # what the card leaves out


def test_rows_and_keys_and_values_of_the_same_numbers_are_two_prompts():
    rows, states = prompt(), SoftPrompt(torch.ones(3, 2, 1, 2), card())
    assert rows.sha256 == states.sha256 and rows.identity != states.identity


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    values = torch.ones(3, 4)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="1 of the prompt's 12 values are NaN or infinite"):
        SoftPrompt(values, card())


def test_a_prompt_without_rows_is_refused():
    with pytest.raises(ValueError, match="needs at least one row"):
        SoftPrompt(torch.ones(0, 4), card())


def test_a_card_of_another_width_is_refused():
    with pytest.raises(ValueError, match="card says width 8 and the values have width 4"):
        prompt(width=8)


# Which model it fits


def test_a_prompt_fits_its_model_under_any_name():
    check_fits(prompt(), model("another/name", "abcd1234" * 8, width=4))


def test_a_prompt_for_another_model_is_refused_with_both_names():
    wanted = (
        r"trained for tiny/t5 \(fingerprint abcd1234, width 4\), but other/t5 "
        r"\(fingerprint 99ff99ff, width 4\) is loaded; load tiny/t5, or train a new prompt for other/t5"
    )
    with pytest.raises(ValueError, match=wanted):
        check_fits(prompt(), model("other/t5", "99ff" * 16, width=4))


def test_the_same_name_with_another_fingerprint_is_refused():
    with pytest.raises(ValueError, match="fingerprint 99ff99ff"):
        check_fits(prompt(), model("tiny/t5", "99ff" * 16, width=4))


def test_a_prompt_without_a_fingerprint_is_checked_for_width_with_a_warning():
    bare = prompt(model_fingerprint=None, model_name=None)
    with pytest.warns(UserWarning, match=r"an unnamed model.*only its width \(4\) was checked against other/t5"):
        check_fits(bare, model("other/t5", "99ff" * 16, width=4))
    with pytest.raises(ValueError, match=r"trained for an unnamed model \(width 4\), but other/t5 .*width 8"):
        check_fits(bare, model("other/t5", "99ff" * 16, width=8))


@pytest.mark.parametrize(
    ("dtype", "largest", "reason"),
    [
        (
            torch.float16,
            7e4,
            "reach 7e+04, and tiny/t5 computes in float16, which ends at 6.55e+04; load the model with",
        ),
        (torch.bfloat16, 3.4e38, "reach 3.4e+38, and tiny/t5 computes in bfloat16, which ends at 3.39e+38; load the"),
    ],
)
def test_a_prompt_that_is_not_finite_in_the_models_type_is_refused(dtype, largest, reason):
    values = table(3)
    values[1, 2] = -largest
    own = replace(prompt(), values=values)
    with pytest.raises(ValueError, match=f"the prompt's numbers {re.escape(reason)}"):
        check_fits(own, model("tiny/t5", "abcd1234" * 8, dtype=dtype))
    with pytest.warns(UserWarning, match="scale"):  # float32 has them
        check_fits(own, model("tiny/t5", "abcd1234" * 8))


def test_a_prompt_far_from_the_embeddings_scale_is_taken_with_a_warning():
    lm = model("tiny/t5", "abcd1234" * 8)
    lm._table.weight[1] = -2
    assert lm.largest_embedding == 2
    values = torch.full((3, 4), 748.0)  # what the authors' own SST-2 prompt reaches
    check_fits(replace(prompt(), values=values), lm)
    with pytest.warns(
        UserWarning, match=r"numbers reach 2.24e\+03 and the embeddings of tiny/t5 2: it may have been made"
    ):
        check_fits(replace(prompt(), values=3 * values), lm)


# The folder


def test_a_saved_prompt_reads_back_bit_for_bit_with_its_card(tmp_path):
    ours = SoftPrompt(torch.randn(7, 4, generator=seeded()) * 1e3, card())
    save_prompt(ours, tmp_path / "deep" / "down")
    again = load_prompt(tmp_path / "deep" / "down")
    assert torch.equal(again.values, ours.values)
    assert again.card == ours.card
    assert again.sha256 == ours.sha256


def test_the_folder_is_a_peft_adapter_folder(tmp_path):
    save_prompt(prompt(), tmp_path)
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json", "softprompt.json", "README.md"}
    assert {k: v.tolist() for k, v in load_file(tmp_path / "adapter_model.safetensors").items()} == {
        "prompt_embeddings": [[1.0] * 4] * 3
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["num_transformer_submodules"] == 1
    assert (config["task_type"], config["num_virtual_tokens"], config["token_dim"]) == ("SEQ_2_SEQ_LM", 3, 4)
    assert config["base_model_name_or_path"] == "tiny/t5"


def test_the_readme_is_a_model_card_the_hub_understands(tmp_path):
    save_prompt(prompt(text={"separator": "\nanswer:"}), tmp_path / "boolq")
    text = (tmp_path / "boolq" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "base_model": "tiny/t5",
        "base_model_relation": "adapter",
        "tags": ["softprompt", "prompt-tuning", "superglue/boolq"],
        "metrics": ["accuracy"],
    }
    assert "| metric | dev |" in text and "| accuracy | 0.75 |" in text
    assert "What chose its step and setting: held-out." in text
    assert 'PeftModel.from_pretrained(model, "boolq")' in text
    assert "AutoModelForSeq2SeqLM" in text
    assert "softprompt predict --model tiny/t5 --prompt boolq" in text


def test_the_readme_of_a_local_model_names_no_base_model_for_the_hub(tmp_path):
    save_prompt(prompt(model_name="/some/folder", is_encoder_decoder=False), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])
    assert "model = ...  # /some/folder as a model of transformers (AutoModelForCausalLM)" in text


@pytest.mark.parametrize("name", ["smollm2-135m", "bundled/t5-mini", "gemma.gguf", "models/here"])
def test_a_name_that_the_hub_does_not_know_is_not_given_as_one_of_its_own(tmp_path, monkeypatch, name):
    (tmp_path / "models" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    save_prompt(prompt(model_name=name), tmp_path / "p")
    text = (tmp_path / "p" / "README.md").read_text()
    assert "base_model" not in text and f"model = ...  # {name} as a model" in text


def test_the_readme_of_a_prompt_without_a_model_says_nothing_about_loading(tmp_path):
    save_prompt(prompt(model_name=None, model_fingerprint=None, dev_metrics={}, task=None, text={}), tmp_path)
    assert "from_pretrained" not in (tmp_path / "README.md").read_text()
    assert load_prompt(tmp_path).card.model_name is None


def test_saving_over_a_prompt_replaces_it_and_leaves_other_files_alone(tmp_path):
    save_prompt(prompt(1.0), tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state").write_text("mine too")
    save_prompt(prompt(2.0, length=5, step=1000), tmp_path)
    assert load_prompt(tmp_path).values.tolist() == [[2.0] * 4] * 5
    assert load_prompt(tmp_path).card.step == 1000
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "checkpoint" / "state").read_text() == "mine too"
    assert len(list(tmp_path.iterdir())) == 6


def test_a_prompt_is_not_saved_over_a_file(tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ValueError, match="is a file; a prompt is saved as a folder"):
        save_prompt(prompt(), tmp_path / "taken")


def in_child(work):
    """Run `work` in a process of its own; returns its exit code."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(call, work):
    """Run `work`, but end the process before its `call`-th system call that changes the disk."""
    left = [call]

    def dying(original):
        def one(*arguments, **named):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
            return original(*arguments, **named)

        return one

    for name in ("rename", "replace", "rmdir", "unlink", "mkdir", "fsync"):
        setattr(folder_module.os, name, dying(getattr(os, name)))
    work()


def test_killed_at_any_moment_a_save_leaves_the_old_prompt_or_the_new_one_whole(tmp_path):
    old, new = prompt(1.0, step=1), prompt(2.0, length=5, step=2)
    seen = []
    for call in range(1, 40):
        folder = tmp_path / str(call)
        save_prompt(old, folder)
        code = in_child(lambda at=call, to=folder: killed_at(at, lambda: save_prompt(new, to)))
        if code == 0:
            break
        assert code == 9
        found = load_prompt(folder)
        assert (found.values[0, 0].item(), found.length, found.card.step) in {(1.0, 3, 1), (2.0, 5, 2)}
        seen.append(found.card.step)
        save_prompt(new, folder)  # and the next save clears away what was left
        assert load_prompt(folder).length == 5
        assert len(list(folder.iterdir())) == 4
    assert code == 0
    assert seen == sorted(seen)
    assert set(seen) == {1, 2}


def test_killed_while_saving_a_first_prompt_there_is_none_or_all_of_it(tmp_path):
    for call in range(1, 40):
        folder = tmp_path / str(call)
        code = in_child(lambda at=call, to=folder: killed_at(at, lambda: save_prompt(prompt(), to)))
        try:
            assert load_prompt(folder).length == 3
        except ValueError as error:
            assert code == 9
            assert "no prompt folder" in str(error) or "holds no adapter_config.json" in str(error)
        if code == 0:
            break
    assert code == 0


def test_a_full_disk_while_saving_is_one_line_and_leaves_the_old_prompt(tmp_path):
    save_prompt(prompt(1.0), tmp_path)

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
        try:
            save_prompt(prompt(2.0), tmp_path)
        except OSError as error:
            assert f"could not save the prompt to {tmp_path} (File too large)" in str(error)
            assert "\n" not in str(error)
            os._exit(7)

    assert in_child(fill) == 7
    assert load_prompt(tmp_path).values[0, 0] == 1.0
    assert len(list(tmp_path.iterdir())) == 4


def test_a_disk_without_space_is_named_in_the_message(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(folder_module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*is whole; free some space"):
        save_prompt(prompt(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# Folders that are not what they should be


@pytest.fixture
def folder(tmp_path):
    save_prompt(prompt(), tmp_path)
    return tmp_path


def refused(folder, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_prompt(folder)
    assert "\n" not in str(caught.value)


def set_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_card(folder, **changes):
    path = folder / "softprompt.json"
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in card.items() if value != "gone"}))


def test_a_missing_folder_is_refused(tmp_path):
    refused(tmp_path / "nowhere", "there is no prompt folder .*nowhere")


def test_a_folder_without_a_prompt_is_refused(tmp_path):
    refused(tmp_path, "holds no adapter_config.json, so it is not a prompt folder")


def test_missing_weights_are_refused(folder):
    (folder / "adapter_model.safetensors").unlink()
    refused(folder, "holds no adapter_model.safetensors")


def test_a_pickle_is_refused_with_the_reason(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(folder, "adapter_model.bin is a pickle, which can run any code when it is read")


def test_another_kind_of_adapter_is_refused(folder):
    set_config(folder, peft_type="LORA")
    refused(folder, "holds a PEFT adapter of type LORA, which is no prompt; wanted one of PROMPT_TUNING, P_TUNING")


def test_another_kind_of_task_is_refused(folder):
    set_config(folder, task_type="SEQ_CLS")
    refused(folder, "PEFT task type SEQ_CLS; wanted SEQ_2_SEQ_LM or CAUSAL_LM")


@pytest.mark.parametrize("length", [0, -3, "3", 2.0, True])
def test_a_lying_length_is_refused(folder, length):
    set_config(folder, num_virtual_tokens=length)
    refused(folder, "says num_virtual_tokens is .*; wanted a whole number from 1")


def test_rows_that_do_not_match_the_configuration_are_refused(folder):
    set_config(folder, num_virtual_tokens=2)
    refused(folder, "holds 3 rows and its adapter_config.json says 2")


def test_a_configuration_that_is_not_json_is_refused(folder):
    (folder / "adapter_config.json").write_text("{'peft_type'")
    refused(folder, "adapter_config.json is not valid JSON")


def test_a_configuration_that_is_not_text_is_refused(folder):
    (folder / "adapter_config.json").write_bytes(b"{\xff")
    refused(folder, "is not UTF-8 text .*at byte 1")


def test_a_bad_card_is_refused_with_the_folder(folder):
    (folder / "softprompt.json").write_text(changed(model_nam="x"))
    refused(folder, f"{folder}: the card has the unknown key 'model_nam'")


def weights_of(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, end, dtype="F32"):
    return {"prompt_embeddings": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a whole safetensors file"),
        (b"\x01\x02", "not a whole safetensors file"),
        (struct.pack("<Q", 2**63) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 200_000_000) + b"{}", "not a whole safetensors file"),
        (weights_of(b"{not json"), "not a whole safetensors file"),
        (weights_of(entry([3, 4], 48), b"\0" * 47), "not a whole safetensors file"),
        (weights_of(entry([3, 400], 48), b"\0" * 48), "not a whole safetensors file"),
        (weights_of(entry([2**40, 2**40], 48), b"\0" * 48), "not a whole safetensors file"),
        (weights_of(entry([3, 4], 2**50), b"\0" * 48), "not a whole safetensors file"),
        (weights_of(entry([12], 48), b"\0" * 48), r"holds an array of shape \[12\]; wanted"),
        (weights_of(entry([0, 4], 0)), r"holds an array of shape \[0, 4\]; wanted"),
        (weights_of(entry([3, 2], 48, "F64"), b"\0" * 48), "holds numbers of type F64; wanted F32"),
        (weights_of(entry([3, 4], 48, "I32"), b"\0" * 48), "holds numbers of type I32; wanted F32"),
        (
            weights_of({"lora_A": entry([3, 4], 48)["prompt_embeddings"]}, b"\0" * 48),
            r"holds the tensors \['lora_A'\]",
        ),
        (weights_of(entry([3, 4], 48), b"\xff" * 48), "12 of the prompt's 12 values are NaN"),
        (weights_of(entry([3, 8], 96), b"\0" * 96), "card says width 4 and the values have width 8"),
    ],
)
def test_a_damaged_or_hostile_weights_file_is_one_clear_line(folder, content, words):
    (folder / "adapter_model.safetensors").write_bytes(content)
    refused(folder, words)


def test_a_weights_file_cut_anywhere_is_refused(folder):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        refused(folder, "not a whole safetensors file")


def test_numbers_that_are_not_those_of_the_card_are_refused_whichever_byte_was_changed(folder):
    path = folder / "adapter_model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(folder, r"(numbers are not those that were saved with softprompt\.json \(sha256 \w{12}, wanted \w{12}\)"
                r"|are NaN or infinite)")  # fmt: skip
    path.write_bytes(content)
    assert load_prompt(folder).card == prompt().card
    set_card(folder, values_sha256="gone", format_version=1)  # of a softprompt before 0.3.0
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert load_prompt(folder).card.format_version == 1


def test_a_prompt_that_is_saved_between_two_files_is_read_once_more(folder, monkeypatch):
    read, saved = folder_module._read_weights, []

    def late(place):
        values = read(place)
        if not saved:
            saved.append(save_prompt(prompt(2.0), place))
        return values

    monkeypatch.setattr(folder_module, "_read_weights", late)
    assert load_prompt(folder).values[0, 0] == 2.0


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "softprompt.json"])
def test_a_pipe_a_device_or_a_folder_in_the_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink()
    for make in (os.mkfifo, os.mkdir):
        make(folder / name)
        refused(folder, rf"{name} is a folder, a pipe or a device; give a file, or copy the folder it lies in again")
        (os.unlink if make is os.mkfifo else os.rmdir)(folder / name)
    (folder / name).symlink_to("/dev/zero")
    refused(folder, rf"{name} is a folder, a pipe or a device")


def test_saving_waits_for_another_that_saves_there(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    with locked(descriptor):
        thread = threading.Thread(target=lambda: save_prompt(prompt(2.0), folder))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and load_prompt(folder).values[0, 0] == 1.0
    thread.join()
    os.close(descriptor)
    assert load_prompt(folder).values[0, 0] == 2.0


def test_half_precision_values_become_float32(folder):
    (folder / "softprompt.json").unlink()
    save_file(
        {"prompt_embeddings": torch.full((3, 4), 1.5, dtype=torch.bfloat16)},
        folder / "adapter_model.safetensors",
    )
    assert load_prompt(folder).values.tolist() == [[1.5] * 4] * 3


def test_the_dead_half_of_a_peft_prompt_is_dropped_with_a_warning(folder):
    (folder / "softprompt.json").unlink()
    rows = torch.arange(24.0).reshape(6, 4)
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="holds 6 rows.*only the first 3 are ever used.*second half was dropped"):
        assert torch.equal(load_prompt(folder).values, rows[:3])


def test_a_folder_without_our_card_gets_one_from_pefts_configuration(folder):
    (folder / "softprompt.json").unlink()
    set_config(folder, task_type="CAUSAL_LM", base_model_name_or_path="their/model")
    found = load_prompt(folder).card
    assert (found.model_name, found.model_fingerprint, found.is_encoder_decoder, found.width) == (
        "their/model",
        None,
        False,
        4,
    )


# How a prompt begins


def test_sampled_vocabulary_is_distinct_ordinary_rows():
    values, drawn = from_vocabulary(table(), Characters(), 27, generator=seeded())
    ids = [row["ids"][0] for row in drawn]
    assert sorted(ids) == list(range(3, 30))
    assert torch.equal(values, table()[ids])
    assert [row["pieces"] for row in drawn] == [[Characters().piece(id)] for id in ids]


def test_sampled_vocabulary_comes_from_the_5000_most_frequent():
    ids = set()
    for seed in range(20):
        _, drawn = from_vocabulary(table(9_001, 1), ManyWords(), 500, generator=seeded(seed))
        ids |= {row["ids"][0] for row in drawn}
    assert min(ids) > 4_000
    assert max(ids) <= 9_000
    assert len(ids) > 4_000


def test_the_same_seed_draws_the_same_prompt_and_another_seed_another():
    first, again, other = (from_vocabulary(table(), Characters(), 9, generator=seeded(s))[0] for s in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_prompt_longer_than_the_vocabulary_is_drawn_with_replacement_and_says_so():
    with pytest.warns(UserWarning, match="the prompt has 40 rows and the vocabulary 27 ids .*with replacement"):
        values, drawn = from_vocabulary(table(), Characters(), 40, generator=seeded())
    ids = [row["ids"][0] for row in drawn]
    assert torch.equal(values, table()[ids])
    assert len(set(ids)) > 10


def test_a_table_in_bfloat16_gives_a_float32_prompt():
    values, _ = from_vocabulary(table().bfloat16(), Characters(), 4, generator=seeded())
    assert values.dtype == torch.float32


def test_a_vocabulary_without_ordinary_ids_is_refused():
    class NoWords(Characters):
        def ordinary_ids(self):
            return []

    with pytest.raises(ValueError, match="no ids of ordinary text to draw from; start from uniform"):
        from_vocabulary(table(), NoWords(), 4, generator=seeded())


def test_class_labels_are_means_of_their_pieces_in_order_and_the_rest_is_sampled():
    values, drawn = from_class_labels(table(), Characters(), 5, labels=["ac", "b"], generator=seeded())
    sampled, sampled_from = from_vocabulary(table(), Characters(), 5, generator=seeded())
    assert values[0].tolist() == [16.0, 17.0, 18.0, 19.0]  # the mean of rows 3 and 5
    assert values[1].tolist() == [16.0, 17.0, 18.0, 19.0]  # row 4
    assert torch.equal(values[2:], sampled[2:])
    assert drawn[:2] == [
        {"label": "ac", "ids": [3, 5], "pieces": ["a", "c"]},
        {"label": "b", "ids": [4], "pieces": ["b"]},
    ]
    assert drawn[2:] == sampled_from[2:]


def test_labels_beyond_the_prompt_are_skipped_with_a_warning():
    with pytest.warns(UserWarning, match="3 labels for 2 prompt rows: the last 1 were skipped"):
        values, _ = from_class_labels(table(), Characters(), 2, labels=["a", "b", "c"], generator=seeded())
    assert torch.equal(values, table()[3:5])


def test_class_labels_without_labels_are_refused():
    with pytest.raises(ValueError, match="no labels to start from; start from vocab instead"):
        from_class_labels(table(), Characters(), 2, labels=[], generator=seeded())
    with pytest.raises(ValueError, match="the label '' has no tokens"):
        from_class_labels(table(), Characters(), 2, labels=["a", ""], generator=seeded())


@pytest.mark.parametrize(("low", "mean"), [(-0.5, 0.0), (0.0, 0.25)])
def test_uniform_fills_its_range(low, mean):
    values, drawn = from_uniform(table(width=400), 100, generator=seeded(), low=low)
    assert drawn == []
    assert low <= values.min() < low + 0.001
    assert 0.499 < values.max() < 0.5
    assert values.mean() == pytest.approx(mean, abs=0.01)  # 40,000 numbers: standard error 0.0015


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match=r"uniform from 0.5 to 0.5 is empty"):
        from_uniform(table(), 2, generator=seeded(), low=0.5)


def test_a_text_gives_one_row_a_token_and_the_rest_is_sampled():
    values, drawn = from_text(table(), Characters(), 4, text="cab", generator=seeded())
    sampled, _ = from_vocabulary(table(), Characters(), 4, generator=seeded())
    assert torch.equal(values[:3], table()[[5, 3, 4]])
    assert torch.equal(values[3], sampled[3])
    assert [row["pieces"] for row in drawn[:3]] == [["c"], ["a"], ["b"]]
    assert len(drawn) == 4


def test_a_text_longer_than_the_prompt_is_cut_with_a_warning():
    with pytest.warns(UserWarning, match="text has 3 tokens and the prompt 2: its end was cut"):
        values, drawn = from_text(table(), Characters(), 2, text="cab", generator=seeded())
    assert torch.equal(values, table()[[5, 3]])
    assert len(drawn) == 2


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="the text '' has no tokens to start from"):
        from_text(table(), Characters(), 2, text="", generator=seeded())


def test_a_prompt_starts_another_of_the_same_shape():
    source = prompt(2.0)
    values, drawn = from_prompt(table(), 3, source=source)
    values += 1  # a copy: the source stays
    assert source.values.max() == 2.0
    assert drawn == []


@pytest.mark.parametrize(("length", "width"), [(4, 4), (3, 5)])
def test_a_prompt_of_another_shape_starts_nothing(length, width):
    wanted = f"has 3 tokens of width 4; wanted {length} of width {width}: set the length to 3"
    with pytest.raises(ValueError, match=wanted):
        from_prompt(table(width=width), length, source=prompt())


@pytest.mark.parametrize("length", [0, -1, 501])
@pytest.mark.parametrize("init", ["vocab", "uniform", "class-labels", "text:a"])
def test_a_length_outside_1_to_500_is_refused(init, length):
    with pytest.raises(ValueError, match=f"a prompt length of {length} was asked for; wanted 1 to 500"):
        begin(init, length)


def begin(init, length=3, **named):
    options = {"labels": ["a", "b"], "generator": seeded(11)} | named
    return initial_prompt(init, embeddings=table(), tokenizer=Characters(), length=length, **options)


def test_every_way_to_begin_has_a_name_and_an_entry_for_the_card():
    vocab = from_vocabulary(table(), Characters(), 3, generator=seeded(11))
    values, entry = begin("vocab")
    assert torch.equal(values, vocab[0])
    assert entry == {"kind": "vocab", "seed": 11, "tokens": vocab[1]}

    values, entry = begin("class-labels")
    assert torch.equal(values[:2], table()[3:5])
    assert [row.get("label") for row in entry["tokens"]] == ["a", "b", None]

    values, entry = begin("uniform", low=0.0)
    assert values.min() >= 0
    assert entry == {"kind": "uniform", "seed": 11, "low": 0.0, "tokens": []}

    values, entry = begin("text:c a")
    assert torch.equal(values, table()[[5, 29, 3]])
    assert (entry["kind"], entry["text"], len(entry["tokens"])) == ("text", "c a", 3)


def test_a_prompt_folder_is_a_way_to_begin_and_its_hash_becomes_the_parent(folder):
    values, entry = begin(str(folder), lm=model("tiny/t5", "abcd1234" * 8))
    assert values.tolist() == [[1.0] * 4] * 3
    assert entry == {"kind": "prompt", "seed": 11, "parent": prompt().sha256, "tokens": []}


def test_a_prompt_of_another_model_is_no_way_to_begin(folder):
    with pytest.raises(ValueError, match=r"trained for tiny/t5 .* but other/t5"):
        begin(str(folder), lm=model("other/t5", "99ff" * 16))


@pytest.mark.parametrize(
    ("init", "words"),
    [
        ("vocap", "'vocap', and no prompt folder is; did you mean 'vocab'"),
        ("class_labels", "did you mean 'class-labels'"),
        ("x" * 5_000, "there are class-labels, vocab, uniform, text:WORDS, or a prompt folder"),
    ],
)
def test_an_unknown_way_to_begin_offers_the_nearest(init, words):
    with pytest.raises(ValueError, match=words):
        begin(init)


# In front of the input


def row_by_row(prompts, lengths, member, x, mask):
    """The same by a loop over rows."""
    rows = []
    for i, which in enumerate(member.tolist()):
        own = prompts[which, : lengths[which]].to(x.dtype) if which >= 0 else x[i, :0]
        rows.append(torch.cat([own, x[i, : int(mask[i].sum())]]))
    total = max(map(len, rows), default=0)
    out, seen = (
        torch.zeros(len(rows), total, x.shape[2], dtype=x.dtype),
        torch.zeros(len(rows), total, dtype=torch.bool),
    )
    for i, row in enumerate(rows):
        out[i, : len(row)], seen[i, : len(row)] = row, True
    return out, seen


@st.composite
def batches(draw):
    b, k, p, t, d = (draw(st.integers(low, high)) for low, high in ((1, 5), (0, 4), (1, 4), (1, 6), (1, 3)))
    generator = seeded(draw(st.integers(0, 1_000)))
    lengths = torch.tensor(draw(st.lists(st.integers(1, p), min_size=k, max_size=k)), dtype=torch.int64)
    member = torch.tensor(draw(st.lists(st.integers(-1, k - 1), min_size=b, max_size=b)))
    ends = torch.tensor(draw(st.lists(st.integers(0, t), min_size=b, max_size=b)))
    prompts, x = torch.randn(k, p, d, generator=generator), torch.randn(b, t, d, generator=generator)
    return prompts, lengths, member, x, torch.arange(t) < ends[:, None]


@settings(max_examples=200, deadline=None)
@given(batches())
def test_prepend_and_its_gradient_equal_the_loop_over_rows(batch):
    leaves = [(batch[0].clone().requires_grad_(), batch[3].clone().requires_grad_()) for _ in range(2)]
    results = []
    for (prompts, x), form in zip(leaves, (prepend, row_by_row), strict=True):
        results.append(form(prompts, batch[1], batch[2], x, batch[4]))
    (ours, seen), (wanted, wanted_seen) = results
    assert torch.equal(ours, wanted)
    assert torch.equal(seen, wanted_seen)
    weights = torch.arange(ours.numel(), dtype=torch.float32).reshape(ours.shape)  # whole numbers: sums are exact
    for out in (ours, wanted):
        if out.requires_grad:
            (out * weights).sum().backward()
    for mine, other in zip(*leaves, strict=True):
        none = torch.zeros_like(mine)
        assert torch.equal(none if mine.grad is None else mine.grad, none if other.grad is None else other.grad)


def test_prompt_and_input_are_adjacent_and_padding_is_outside():
    prompts = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]])
    x = torch.tensor([[[10.0], [99.0]], [[20.0], [21.0]], [[30.0], [31.0]]])
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    arguments = (prompts, torch.tensor([2, 1]), torch.tensor([0, 1, -1]), x, mask)
    right, seen = prepend(*arguments)
    assert right[:, :, 0].tolist() == [[1, 2, 10], [3, 20, 21], [30, 31, 0]]
    assert seen.tolist() == [[True] * 3, [True] * 3, [True, True, False]]


def test_the_width_is_that_of_the_longest_row():
    prompts, mask = torch.ones(1, 2, 1), torch.tensor([[True, True, False, False]])
    for lengths in ([2], [1]):
        x, seen = prepend(prompts, torch.tensor(lengths), torch.tensor([0]), torch.ones(1, 4, 1), mask)
        assert x.shape == (1, lengths[0] + 2, 1)
        assert seen.all()


def test_without_prompts_the_input_stays_as_it_was():
    x, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    none = (torch.zeros(0, 5, 4), torch.zeros(0, dtype=torch.int64), torch.tensor([-1, -1]))
    again, seen = prepend(*none, x, mask)
    assert torch.equal(again, x)
    assert torch.equal(seen, mask)


def test_the_result_has_the_inputs_dtype():
    x = torch.ones(1, 2, 3, dtype=torch.bfloat16)
    out, _ = prepend(torch.ones(1, 2, 3), torch.tensor([2]), torch.tensor([0]), x, torch.ones(1, 2, dtype=torch.bool))
    assert out.dtype == torch.bfloat16


def test_a_diverged_prompt_does_not_touch_the_rows_that_do_not_wear_it():
    prompts = torch.tensor([[[float("nan")]], [[2.0]]], requires_grad=True)
    x, mask = torch.ones(2, 1, 1), torch.ones(2, 1, dtype=torch.bool)
    out, _ = prepend(prompts, torch.tensor([1, 1]), torch.tensor([-1, 1]), x, mask)
    assert out[:, :, 0].tolist() == [[1.0, 0.0], [2.0, 1.0]]
    out.square().sum().backward()
    assert prompts.grad.flatten().tolist() == [0.0, 4.0]


def test_the_gradient_is_the_same_bit_for_bit_each_time():
    generator = seeded()
    prompts = torch.randn(3, 20, 64, generator=generator, requires_grad=True)
    x, weights = torch.randn(32, 5, 64, generator=generator), torch.randn(32, 25, 64, generator=generator)
    member = torch.randint(3, (32,), generator=generator)
    gradients = []
    for _ in range(5):
        out, _ = prepend(prompts, torch.tensor([20] * 3), member, x, torch.ones(32, 5, dtype=torch.bool))
        gradients.append(torch.autograd.grad((out * weights).sum(), prompts)[0])
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_a_member_that_does_not_exist_is_our_own_mistake():
    x, mask = torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)
    for which in (2, -2):
        with pytest.raises((AssertionError, IndexError)):
            prepend(torch.ones(2, 1, 1), torch.tensor([1, 1]), torch.tensor([which]), x, mask)


def test_stack_pads_short_prompts_with_zeros_and_passes_gradients():
    short, long = torch.ones(1, 2, requires_grad=True), torch.full((3, 2), 2.0, requires_grad=True)
    stacked, lengths = stack([short, long])
    assert stacked.tolist() == [[[1, 1], [0, 0], [0, 0]], [[2, 2], [2, 2], [2, 2]]]
    assert lengths.tolist() == [1, 3]
    (stacked * 3).sum().backward()
    assert short.grad.tolist() == [[3, 3]]
    assert long.grad.shape == (3, 2)
