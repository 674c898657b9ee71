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


def cast(inputs, record, targets="{label}", split="train", **options):
    return file_task(inputs=inputs, targets=targets, **options).cast(record, split)[0]


@pytest.mark.parametrize(
    ("inputs", "record", "text"),
    [
        ("{instruction} {input?}", {"instruction": "Say yes", "input": "now"}, "Say yes now"),
        ("{instruction} {input?}", {"instruction": "Say yes"}, "Say yes"),
        ("{instruction} {input?}", {"instruction": "Say yes", "input": None}, "Say yes"),
        ("{context?}\n{instruction}", {"instruction": "Say yes", "context": ""}, "Say yes"),
        ("{data.text}", {"data": {"text": "warm"}}, "warm"),
        ("{data.text}", {"data.text": "of that very name", "data": {"text": "warm"}}, "of that very name"),
        ("{data.text?} {id}", {"id": 3}, "3"),
        ("{data.text} {id}", {"data": None, "id": 3}, " 3"),
        ("{messages[0][content]}", {"messages": [{"role": "user", "content": "hi"}]}, "hi"),
        ("{words[-1]}", {"words": ["a", "b"]}, "b"),
        ("{is it wet?}", {"is it wet?": "no"}, "no"),
    ],
)
def test_columns_may_be_missing_or_nested(inputs, record, text):
    assert cast(inputs, record | {"label": "a"}).inputs == text


@pytest.mark.parametrize(
    ("inputs", "record", "words"),
    [
        ("{data.txt}", {"data": {"text": "warm"}}, r"in column 'data': no column 'txt'; the columns are text$"),
        ("{words[2]}", {"words": ["a", "b"]}, r"column 'words' is a list of 2, so there is no 'words\[2\]'"),
        ("{text.en}", {"text": "warm"}, "column 'text' is no list and no object, so there is no 'text.en'"),
        ("{data}", {"data": {"text": "warm"}}, "column 'data' holds no text but dict"),
        ("{input?}", {"text": "warm"}, "the input is empty: no text in input"),
    ],
)
def test_what_is_not_in_a_nested_record_is_told(inputs, record, words):
    with pytest.raises(ValueError, match=words):
        cast(inputs, record | {"label": "a"})


USER, ANSWER = {"role": "user", "content": "Wet?"}, {"role": "assistant", "content": "no"}


@pytest.mark.parametrize(
    ("turns", "inputs", "targets"),
    [
        ([USER, ANSWER], "Wet?", "no"),
        ([USER], "Wet?", "<unk>"),
        ([{"role": "system", "content": "Be short."}, USER, ANSWER], "system: Be short.\nuser: Wet?", "no"),
        ([USER, ANSWER, USER, ANSWER], "user: Wet?\nassistant: no\nuser: Wet?", "no"),
    ],
)
def test_a_chat_is_asked_what_stands_before_its_last_answer(turns, inputs, targets):
    for split in ("test", "asked"):
        made = cast("{messages}", {"messages": turns}, "{messages}", split)
        assert (made.inputs, made.targets) == (inputs, targets if split == "test" else "<unk>")


def test_a_chat_without_an_answer_cannot_be_trained_on():
    with pytest.raises(ValueError, match="the target is empty: no text in messages"):
        cast("{messages}", {"messages": [USER]}, "{messages}")


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_what_looks_the_same_is_the_same():
    task = file_task(inputs="{text}", targets="{the label}", labels=[COMPOSED, "1"])
    (made,) = task.cast({"text\u00a0": "x", "the\u00a0label": DECOMPOSED}, "train")
    assert (made.inputs, made.targets, made.references) == ("x", COMPOSED, (COMPOSED,))
    assert task.cast({" text": "x", "the label": "\uff11"}, "train")[0].targets == "1"
    assert task.answer(f"{DECOMPOSED} ", made) == COMPOSED
    for metric in ("em", "f1", "accuracy"):
        free = file_task(inputs="{text}", targets="{label}", metric=metric)
        (row,) = free.cast({"text": "x", "label": DECOMPOSED}, "dev")
        assert row.targets == DECOMPOSED, "what is trained on is what was written"
        assert free.metrics([COMPOSED], [row]) == {metric: 1.0}
    with pytest.raises(ValueError, match=r"the labels 'caf\\xe9' and 'cafe\\u0301' look the same"):
        file_task(inputs="{text}", targets="{label}", labels=[COMPOSED, DECOMPOSED])


def test_what_looks_the_same_and_differs_is_shown_in_escapes():
    task = file_task(inputs="{text}", targets="{label}", labels=["cafe", "bar"])
    with pytest.raises(ValueError, match=r"did you mean 'cafe'\? yours is '\\u0441afe'"):  # a Cyrillic letter
        task.cast({"text": "x", "label": "\u0441afe"}, "train")
    with pytest.raises(ValueError, match=r"did you mean 'te\\u200bxt'\?$"):  # a space of no width
        task.cast({"te\u200bxt": "x", "label": "cafe"}, "train")
    with pytest.raises(ValueError, match=r"did you mean 'cafe'\?$"):  # that can be seen
        task.cast({"text": "x", "label": COMPOSED}, "train")


def test_of_two_columns_that_look_the_same_the_very_one_is_read():
    record = {"text": "x", "text ": "y", "label": "a"}
    assert cast("{text}", record).inputs == "x"
    with pytest.raises(ValueError, match="no column ' text'"):
        cast("{ text}", record)
