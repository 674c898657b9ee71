import json
import lzma

import pytest

from softprompt.tasks import Example, file_task, read_examples


def example(targets, id="0", group=None):
    return Example(inputs="x", targets=targets, id=id, references=(targets,), group=group)


def test_templates_put_columns_into_text():
    task = file_task(inputs="ask {{now}}: {question} ({topic})", targets=" {label} ", labels=["yes", "no"])
    (made,) = task.cast({"question": "Wet?", "topic": 3, "label": "no"}, "train")
    assert made == Example(inputs="ask {now}: Wet? (3)", targets="no", id="", references=("no",))
    assert task.initial_texts == task.labels == ("yes", "no")
    assert task.template == ("ask {{now}}: {question} ({topic})", " {label} ")


def test_a_test_record_may_lack_its_targets():
    task = file_task(inputs="{text}", targets="{label}", labels=["a"])
    assert task.cast({"text": "x"}, "test")[0].targets == "<unk>"
    assert task.cast({"text": "x", "label": ""}, "test")[0].references == ()
    with pytest.raises(ValueError, match="no column 'label'; the columns are text"):
        task.cast({"text": "x"}, "train")


def test_more_than_32_labels_are_fine():
    labels = [f"intent_{number}" for number in range(77)]
    task = file_task(inputs="{text}", targets="{label}", labels=labels)
    assert task.cast({"text": "x", "label": "intent_76"}, "dev")[0].targets == "intent_76"
    assert task.metrics(["intent_76", "intent_7"], [example("intent_76")] * 2) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match=r"unknown label 'intent_77'; .*intent_7 and 69 more; did you mean"):
        task.cast({"text": "x", "label": "intent_77"}, "dev")


def test_group_by_scores_groups_and_keeps_them_together():
    task = file_task(inputs="{text}", targets="{label}", labels=["a", "b"], metric="em", group_by="page")
    (made,) = task.cast({"text": "x", "label": "a", "page": 4}, "dev")
    assert (made.group, made.source) == ("4", "4")
    (new,) = task.cast({"text": "x"}, "test")
    assert new.group is None, "what is only answered needs no group"
    for nothing in (None, ""):
        assert task.cast({"text": "x", "label": "a", "page": nothing}, "dev")[0].group is None
    with pytest.raises(ValueError, match="no column 'page'; the columns are text, label"):
        task.cast({"text": "x", "label": "a"}, "test")
    rows = [example("a", "0", "1"), example("b", "1", "1"), example("a", "2", "2")]
    assert task.metrics(["a", "a", "a"], rows) == {"em": 0.5}


@pytest.mark.parametrize(
    ("metric", "labels", "scores"),
    [
        ("accuracy", None, {"accuracy": 0.5}),
        ("em", None, {"em": 1.0}),
        ("f1", None, {"f1": 1.0}),
        ("rouge", None, {"rouge1": 1.0, "rouge2": 1.0, "rougeLsum": 1.0}),
        ("accuracy", ["red fox", "hen run"], {"accuracy": 0.5}),
        ("f1", ["red fox", "hen run"], {"f1": 2 / 3}),
        ("f1", ["red fox", "hen run", "owl"], {"macro_f1": 1 / 3}),
        (None, None, {"em": 1.0}),
        (None, ["red fox", "hen run"], {"accuracy": 0.5}),
    ],
)
def test_each_metric_and_the_default_ones(metric, labels, scores):
    task = file_task(inputs="{x}", targets="{y}", labels=labels, metric=metric)
    got = task.metrics(["Red fox", " hen run"], [example("red fox"), example("hen run", "1")])
    assert got == {name: pytest.approx(value) for name, value in scores.items()}


@pytest.mark.parametrize("text", ["A", "the", "+", "a + b"])
def test_an_answer_that_squad_leaves_nothing_of_is_right_and_legal(text):
    for metric in ("em", "f1"):
        task = file_task(inputs="{x}", targets="{y}", metric=metric)
        assert task.metrics([f" {text}", "-"], [example(text), example(text, "1")]) == {metric: 0.5}
        assert task.answer(text, example(text)) is not None and task.answer(" ", example(text)) is None


def test_pearson_reads_numbers():
    task = file_task(inputs="{x}", targets="{y}", metric="pearson")
    rows = [example("1"), example("2", "1"), example("3", "2")]
    assert task.metrics(["10", "20", "30"], rows) == {"pearson": pytest.approx(1.0)}


def test_without_labels_only_nothing_is_illegal():
    task = file_task(inputs="{x}", targets="{y}")
    assert [task.answer(text, example("y")) for text in ("text", " ")] == ["text", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inputs": "text"}, "the inputs template 'text' names no column; write one as {column}"),
        ({"targets": "{}"}, "the targets template '{}' names no column"),
        ({"inputs": "{text"}, "the inputs template '{text' has unmatched braces"),
        ({"inputs": "{text!r}"}, "the inputs template '{text!r}' may hold only {column} in its braces"),
        ({"inputs": "{text:>9}"}, "the inputs template '{text:>9}' may hold only {column}"),
        ({"metric": "acuracy"}, r"no metric named 'acuracy'; there are .*; did you mean 'accuracy'\?"),
        ({"labels": ["a", "a"]}, r"labels must be one or more, all different and not empty, not \['a', 'a'\]"),
        ({"labels": []}, r"labels must be one or more, all different and not empty, not \[\]"),
    ],
)
def test_options_that_cannot_be_meant_are_errors(options, message):
    import re

    pattern = message if "\\" in message else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        file_task(**{"inputs": "{text}", "targets": "{label}", **options})


def test_records_that_do_not_fit_are_told_with_file_and_line(tmp_path):
    task = file_task(inputs="question: {question}", targets="{label}", labels=["yes", "no"])
    path = tmp_path / "train.jsonl"

    def reading(*records):
        path.write_text("\n".join(json.dumps(record) for record in records))
        return read_examples(task, "train", {"train": path})

    good = {"question": "Wet?", "label": "no"}
    assert [e.id for e in reading(good, good)] == ["1", "2"]
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: no column 'question'; the columns are query, label"):
        reading(good, {"query": "Wet?", "label": "no"})
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: unknown label 'No'; the labels are yes, no"):
        reading({"question": "Wet?", "label": "No"})
    with pytest.raises(ValueError, match=r"train.jsonl, line 1: the input is empty: no text in question"):
        reading({"question": " ", "label": "no"})
    with pytest.raises(ValueError, match=r"train.jsonl, line 2: the target is empty: no text in label"):
        reading(good, {"question": "Wet?", "label": None})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_own_files_may_be_tables(tmp_path, suffix):
    path = tmp_path / f"dev{suffix}"
    if suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": ["a"], "label": ["b"]}), path)
    else:
        path.write_text("text,label\na,b\n".replace(",", "\t" if suffix == ".tsv" else ","))
    task = file_task(inputs="{text}", targets="{label}")
    (made,) = read_examples(task, "dev", tmp_path)
    assert (made.inputs, made.targets) == ("a", "b")


def test_own_files_in_a_folder_may_be_compressed(tmp_path):
    (tmp_path / "dev.csv.xz").write_bytes(lzma.compress(b"text,label\na,b\n"))
    (made,) = read_examples(file_task(inputs="{text}", targets="{label}"), "dev", tmp_path)
    assert (made.inputs, made.targets) == ("a", "b")


def test_own_tasks_are_not_on_the_hub():
    with pytest.raises(ValueError, match="the task 'mine' is not on the hub; name its files"):
        read_examples(file_task(inputs="{x}", targets="{y}", name="mine"), "train")
