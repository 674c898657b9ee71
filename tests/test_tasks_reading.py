"""Reading of official folders, files named by hand, and hub data sets, on files written here."""

import gzip
import json
import logging
import re
from dataclasses import replace

import pytest

from softprompt.tasks import TASKS, Example, get_task, read_examples, read_split


def jsonl(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def text(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))
    return path


def boolq(number, **more):
    return {"question": f"is {number} odd", "passage": f"N -- On {number}.", "idx": number, "label": True} | more


def question(qid, answers=("Ola",)):
    return {"qid": qid, "question": f"Who is {qid}?", "answers": list(answers)}


def mrqa(*qids):
    return {"context": "Ola met Per.", "qas": [question(qid) for qid in qids]}


HEADER = {"header": {"dataset": "X", "split": "dev"}}


@pytest.mark.parametrize("below", ["superglue/BoolQ", "BoolQ", "."])
def test_the_folder_may_be_the_tasks_own_or_above_it(tmp_path, below):
    jsonl(tmp_path / below / "val.jsonl", boolq(1), boolq(2))
    assert [e.id for e in read_examples(get_task("boolq"), "dev", tmp_path)] == ["1", "2"]


def test_parts_of_a_missing_training_file_are_all_read_without_repeats(tmp_path, caplog):
    jsonl(tmp_path / "train_a.jsonl", boolq(1), boolq(2))
    original = {"question": "is 2 odd", "title": "N", "passage": "On 2.", "answer": True}
    text(tmp_path / "train_b.json", json.dumps([original, original | {"question": "is 3 odd"}]))
    reading = read_split(get_task("boolq"), "train", tmp_path)
    assert [e.id for e in reading.examples] == ["train_a:1", "train_a:2", "train_b:2"]
    assert (reading.num_official, reading.num_repeated) == (9427, 1)
    assert reading.share == pytest.approx(3 / 9427)
    with caplog.at_level(logging.WARNING):
        read_examples(get_task("boolq"), "train", tmp_path)
    assert caplog.messages == [
        "superglue/boolq train: 3 of 9,427 official examples from train_a.jsonl, train_b.json; 1 repeated left out"
    ]


def test_the_official_training_file_is_preferred_to_parts(tmp_path):
    jsonl(tmp_path / "train_a.jsonl", boolq(1))
    jsonl(tmp_path / "train.jsonl", boolq(2))
    assert [e.id for e in read_examples(get_task("boolq"), "train", tmp_path)] == ["2"]


def test_files_of_equal_name_keep_their_ids_apart(tmp_path):
    files = [jsonl(tmp_path / name / "x.jsonl", boolq(number)) for number, name in enumerate("ab")]
    ids = [e.id for e in read_examples(get_task("boolq"), "train", {"train": files})]
    assert ids == [f"{files[0]}:0", f"{files[1]}:1"]


def test_qqp_without_column_names_and_with_a_space_for_its_last_tab(tmp_path):
    text(tmp_path / "train_some.tsv", '5\t1\t2\tIs "it?\tIs so? 0\n6\t3\t4\tIs?\tSo?\t1\n')
    text(tmp_path / "sample10k/dev.json", '{"0": {"text_a": "Is?", "text_b": "No?", "label": "0"}}')
    examples = read_examples(get_task("qqp"), "train", tmp_path)
    assert [(e.id, e.inputs, e.targets) for e in examples] == [
        ("dev:1", "question1: Is? question2: No?", "not_duplicate"),
        ("train_some:5", 'question1: Is "it? question2: Is so?', "not_duplicate"),
        ("train_some:6", "question1: Is? question2: So?", "duplicate"),
    ]


def test_qqp_with_column_names_and_with_a_broken_row(tmp_path):
    names = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    text(tmp_path / "dev.tsv", names + "5\t1\t2\tIs?\tSo?\t1\n")
    assert [e.targets for e in read_examples(get_task("qqp"), "dev", tmp_path)] == ["duplicate"]
    text(tmp_path / "train.tsv", names + "5\t1\t2\tIs it so?\n")
    with pytest.raises(ValueError, match=r"train.tsv, line 2: 4 fields, but there are 6 columns"):
        read_examples(get_task("qqp"), "train", tmp_path)


def test_mrpc_begins_with_a_byte_order_mark_and_is_not_quoted(tmp_path):
    text(tmp_path / "dev.tsv", '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t" A .\tB . "\n')
    (example,) = read_examples(get_task("mrpc"), "dev", tmp_path)
    assert (example.inputs, example.id) == ('sentence1: " A . sentence2: B . "', "2")


def test_sst2_lines_may_end_in_cr_lf(tmp_path):
    path = text(tmp_path / "test-labeled.tsv", "sentence\tlabel\r\na dull film .\t0\r\n")
    (example,) = read_examples(get_task("sst2"), "test", {"test": path})
    assert (example.inputs, example.targets) == ("sentence: a dull film .", "negative")


def test_cola_training_files_have_no_column_names(tmp_path):
    text(tmp_path / "train.tsv", "x1\t1\t\tIda sleeps.\nx1\t0\t*\tIda sleep.\n")
    examples = read_examples(get_task("cola"), "train", tmp_path)
    assert [(e.id, e.targets) for e in examples] == [("1", "acceptable"), ("2", "unacceptable")]
    text(tmp_path / "test.tsv", "index\tsentence\n0\tIda slept.\n")
    (example,) = read_examples(get_task("cola"), "test", tmp_path)
    assert (example.id, example.inputs, example.targets) == ("0", "sentence: Ida slept.", "<unk>")


def test_stsb_is_read_by_its_own_columns(tmp_path):
    names = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
    row = '7\tmain-news\theadlines\t2016\t1030\tnone\tnone\tA hen said "tuk.\tA cock sat.'
    text(tmp_path / "STS-B" / "dev.tsv", f"{names}\tscore\n{row}\t2.350\n")
    text(tmp_path / "STS-B" / "test.tsv", f"{names}\n{row}\n")
    (example,) = read_examples(get_task("stsb"), "dev", tmp_path)
    inputs = 'sentence1: A hen said "tuk. sentence2: A cock sat.'
    assert example == Example(inputs=inputs, targets="2.4", id="7", references=("2.4",))
    (example,) = read_examples(get_task("stsb"), "test", tmp_path)
    assert (example.inputs, example.targets, example.references) == (inputs, "<unk>", ())


def test_qnli_is_read_by_its_own_columns(tmp_path):
    rows = '0\tWho sat?\tA cock sat on "the roof.\tentailment\n1\tWhy?\tA hen.\tnot_entailment\n'
    text(tmp_path / "QNLI" / "dev.tsv", f"index\tquestion\tsentence\tlabel\n{rows}")
    text(tmp_path / "QNLI" / "test.tsv", "index\tquestion\tsentence\n4\tWho sat?\tA hen.\n")
    first, second = read_examples(get_task("qnli"), "dev", tmp_path)
    assert (first.inputs, first.targets) == ('question: Who sat? sentence: A cock sat on "the roof.', "entailment")
    assert (second.inputs, second.targets, second.id) == ("question: Why? sentence: A hen.", "not_entailment", "1")
    (example,) = read_examples(get_task("qnli"), "test", tmp_path)
    assert (example.inputs, example.targets, example.id) == ("question: Who sat? sentence: A hen.", "<unk>", "4")


def test_wnli_is_read_by_its_own_columns(tmp_path):
    names = "index\tsentence1\tsentence2"
    text(
        tmp_path / "WNLI" / "train.tsv", f"{names}\tlabel\n0\tTor saw Per.\tPer saw.\t0\n1\tTor saw Per.\tTor saw.\t1\n"
    )
    text(tmp_path / "WNLI" / "test.tsv", f"{names}\n3\tTor saw Per.\tTor saw.\n")
    first, second = read_examples(get_task("wnli"), "train", tmp_path)
    assert (first.inputs, first.targets) == ("sentence1: Tor saw Per. sentence2: Per saw.", "not_entailment")
    assert (second.targets, second.id, second.source) == ("entailment", "1", "Tor saw Per.")
    (example,) = read_examples(get_task("wnli"), "test", tmp_path)
    assert (example.inputs, example.targets) == ("sentence1: Tor saw Per. sentence2: Tor saw.", "<unk>")


def test_mnli_has_two_dev_files_and_one_training_file(tmp_path):
    for number, name in enumerate(("train", "dev_matched", "dev_mismatched")):
        row = f"{number}\tIt rained.\tIt was wet {number}.\tneutral\n"
        text(tmp_path / "MNLI" / f"{name}.tsv", "index\tsentence1\tsentence2\tgold_label\n" + row)
    ids = {
        (name, split): read_examples(get_task(name), split, tmp_path)[0].id
        for name in ("mnli", "mnli_mismatched")
        for split in ("train", "dev")
    }
    assert list(ids.values()) == ["0", "1", "0", "2"]


def test_the_diagnostic_sets_are_test_splits(tmp_path):
    record = {"sentence1": "It rained.", "sentence2": "Wet.", "label": "entailment", "idx": 0}
    jsonl(tmp_path / "AX-b" / "AX-b.jsonl", record)
    assert read_examples(get_task("axb"), "test", tmp_path)[0].targets == "entailment"
    with pytest.raises(ValueError, match="superglue/axb has no dev split; it has test"):
        read_examples(get_task("axb"), "dev", tmp_path)


def test_axg_is_read_by_its_own_columns(tmp_path):
    record = {"idx": 5, "pair_id": "73", "premise": "The smith met the baker.", "hypothesis": "She baked."}
    labels = ("not_entailment", "entailment")
    records = [record | {"label": label, "idx": 5 + i} for i, label in enumerate(labels)]
    jsonl(tmp_path / "superglue" / "AX-g" / "AX-g.jsonl", *records)
    first, second = read_examples(get_task("axg"), "test", tmp_path)
    assert first.inputs == "hypothesis: She baked. premise: The smith met the baker."
    assert (first.targets, first.id, first.references) == ("not_entailment", "5", ("not_entailment",))
    assert (second.targets, second.id) == ("entailment", "6")


MRQA_CONTEXTS = {
    "textbookqa": ("TextbookQA", "Hens lay eggs.\nThey scratch.\n\n", "Hens lay eggs . They scratch ."),
    "newsqa": ("NewsQA", "OSLO (TUK) -- Hens lay.\n\n\n\nA cock said.", "OSLO ( TUK ) - - Hens lay . A cock said ."),
    "triviaqa": (
        "TriviaQA-web",
        "[DOC] [TLE] Hens - Farm.com [PAR] Hens lay.",
        "[ DOC ] [ TLE ] Hens - Farm . com [ PAR ] Hens lay .",
    ),
    "searchqa": (
        "SearchQA",
        "[DOC] [TLE] Hen : J! Farm [PAR] lays eggs ... [DOC] [TLE] Cock [PAR] crows",
        "[ DOC ] [ TLE ] Hen : J ! Farm [ PAR ] lays eggs . . . [ DOC ] [ TLE ] Cock [ PAR ] crows",
    ),
    "hotpotqa": (
        "HotpotQA",
        "[PAR] [TLE] Hen (bird) [SEP] Hens lay. [PAR] [TLE] Tor [SEP] Tor has hens.",
        "[ PAR ] [ TLE ] Hen ( bird ) [ SEP ] Hens lay . [ PAR ] [ TLE ] Tor [ SEP ] Tor has hens .",
    ),
    "natural_questions": (
        "NaturalQuestionsShort",
        "<Table> <Tr> <Th> Hen </Th> </Tr> </Table>",
        "< Table > < Tr > < Th > Hen < / Th > < / Tr > < / Table >",
    ),
}


@pytest.mark.parametrize("name", MRQA_CONTEXTS)
def test_the_sets_of_mrqa_are_read_as_they_are_released(tmp_path, name):
    folder, context, padded = MRQA_CONTEXTS[name]
    answers = [{"text": "Hen", "char_spans": [[0, 2], [9, 11]], "token_spans": [[0, 0], [2, 2]]}]
    asked = {
        "qid": "5c1f",
        "question": "What lays eggs?",
        "question_tokens": [["What", 0]],
        "detected_answers": answers,
    }
    record = {
        "id": "",
        "context": context,
        "context_tokens": [["Hen", 0]],
        "qas": [asked | {"answers": ["Hen", "hens"]}],
    }
    wanted = Example(
        inputs=f"question: What lays eggs ? context: {padded}",
        targets="Hen", id="5c1f", references=("Hen", "hens"), source=context,
    )  # fmt: skip
    task, place = get_task(name), tmp_path / "mrqa" / folder
    lines = jsonl(tmp_path / "lines.jsonl", {"header": {"dataset": folder, "split": "dev"}}, record).read_bytes()
    place.mkdir(parents=True)
    (place / "dev.jsonl.gz").write_bytes(gzip.compress(lines))
    reading = read_split(task, "dev", tmp_path)
    assert (reading.examples, reading.num_official) == ([wanted], task.counts["dev"])
    assert task.metrics(["the hens"], reading.examples) == {"em": 1.0, "f1": 1.0}
    if name == "textbookqa":
        with pytest.raises(ValueError, match="mrqa/textbookqa has no train split; it has dev"):
            read_examples(task, "train", tmp_path)
        return
    (place / "train.jsonl.gz").write_bytes(gzip.compress(lines.replace(b"5c1f", b"5c20")))
    assert [example.id for example in read_examples(task, "train", tmp_path)] == ["5c20"]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_sentence_polarity_is_split_by_its_sentences_in_either_encoding(tmp_path, encoding):
    negative = [f"dull plot {number} ." for number in range(150)]
    positive = ["a fine caf\xe9 film .", "A fine caf\xe9 film ."] + [f"bright role {n} ." for n in range(150)]
    text(tmp_path / "rt-polarity.neg", "\n".join([*negative, negative[0]]) + "\n", encoding)
    text(tmp_path / "rt-polarity.pos", "\n".join(positive) + "\n", encoding)
    task = get_task("sentence_polarity")
    train, dev = (read_split(task, split, tmp_path) for split in ("train", "dev"))
    both = [*train.examples, *dev.examples]
    assert len(both) == 302
    assert train.num_repeated + dev.num_repeated == 1
    assert 10 < len(dev.examples) < 60
    assert {e.inputs for e in train.examples}.isdisjoint(e.inputs for e in dev.examples)
    cafe = [e for e in both if "caf\xe9" in e.inputs]
    assert {e.id.split("-")[0] for e in cafe} == {"pos"}
    assert len({e in dev.examples for e in cafe}) == 1


def test_sentence_polarity_needs_both_files(tmp_path):
    text(tmp_path / "rt-polarity.neg", "dull .\n")
    with pytest.raises(ValueError, match=r"no file .*rt-polarity.pos; sentence_polarity is two files"):
        read_examples(get_task("sentence_polarity"), "train", tmp_path)


def test_subjectivity_is_split_as_sentence_polarity_is(tmp_path):
    folder = tmp_path / "classification" / "subjectivity"
    text(folder / "subj.objective", "".join(f"a boy moves to town {number} .\n" for number in range(60)))
    text(folder / "subj.subjective", "".join(f"a fine caf\xe9 film {number} .\n" for number in range(60)), "latin-1")
    task = get_task("subjectivity")
    train, dev = (read_examples(task, split, tmp_path) for split in ("train", "dev"))
    assert len(train) + len(dev) == 120
    assert 0 < len(dev) < 30
    assert {e.inputs for e in train}.isdisjoint(e.inputs for e in dev)
    assert {e.targets for e in dev if "film" in e.inputs} == {"subjective"}


def test_ag_news_is_read_without_a_line_of_names_and_scores_its_test_file(tmp_path):
    text(tmp_path / "train_10k.tsv", 'Wall St. "rises"\tBusiness\nA new chip\tSci/Tech\n')
    text(tmp_path / "test.tsv", "Cup final\tSports\n")
    task = get_task("ag_news")
    train, dev = (read_examples(task, split, tmp_path) for split in ("train", "dev"))
    assert [(e.inputs, e.targets) for e in train] == [
        ('text: Wall St. "rises"', "Business"), ("text: A new chip", "Sci/Tech")
    ]  # fmt: skip
    assert [e.targets for e in dev] == ["Sports"]
    on_the_hub = [{"text": "Cup final", "label": number} for number in range(4)]
    assert [task.cast(row, "train")[0].targets for row in on_the_hub] == ["World", "Sports", "Business", "Sci/Tech"]


def test_few_shot_files_are_joined_by_question(tmp_path):
    jsonl(tmp_path / "train_fewshot" / "seed-1.jsonl", HEADER, mrqa("a", "b"))
    jsonl(tmp_path / "train_fewshot" / "seed-2.jsonl", HEADER, mrqa("b", "c"))
    reading = read_split(get_task("squad"), "train", tmp_path)
    assert [e.id for e in reading.examples] == ["a", "b", "c"]
    assert reading.num_repeated == 1


def test_sets_without_training_data_have_no_train_split(tmp_path):
    article = {"data": [{"paragraphs": [{"context": "Ola met Per.", "qas": [question("a") | {"id": "a"}]}]}]}
    text(tmp_path / "robustqa_train.json", json.dumps(article))
    with pytest.raises(ValueError, match="mrqa/race has no train split; it has dev"):
        read_examples(get_task("race"), "train", tmp_path)
    assert [e.id for e in read_examples(get_task("race"), "dev", tmp_path)] == ["a"]


def test_training_on_questions_that_are_scored_is_refused(tmp_path):
    part = jsonl(tmp_path / "robustqa_train.json", mrqa("a", "b"))
    other = jsonl(tmp_path / "robustqa_val.json", mrqa("c"))
    dev = jsonl(tmp_path / "dev.jsonl", HEADER, mrqa("a", "b", "c"))
    message = "2 of 2 questions of robustqa_train.json are also in dev.jsonl, which is scored"
    with pytest.raises(ValueError, match=message):
        read_examples(get_task("duorc"), "train", {"train": part, "dev": dev})
    with pytest.raises(ValueError, match=message):
        read_examples(get_task("duorc"), "train", {"train": part})
    assert len(read_examples(get_task("duorc"), "train", {"train": part, "dev": other})) == 2


def test_training_on_a_part_of_a_dev_set_that_is_only_there_in_parts_is_refused(tmp_path):
    part = jsonl(tmp_path / "robustqa_train.json", mrqa("a"))
    jsonl(tmp_path / "robustqa_val.json", mrqa("b"))
    with pytest.raises(ValueError, match=r"1 of 1 questions of robustqa_train.json are also in robustqa_train.json, "):
        read_examples(get_task("race"), "train", {"train": part})


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", "no split named 'validation'; there are train, dev, test; did you mean 'dev'?"),
        ("trian", "no split named 'trian'; there are train, dev, test; did you mean 'train'?"),
    ],
)
def test_wrong_split_names_offer_the_nearest(tmp_path, split, message):
    with pytest.raises(ValueError) as error:
        read_examples(get_task("boolq"), split, tmp_path)
    assert str(error.value) == message
    with pytest.raises(ValueError, match=f"no split named '{split}'"):
        read_examples(get_task("boolq"), "dev", {split: "x.jsonl"})


def test_missing_files_and_folders_are_told(tmp_path):
    task = get_task("boolq")
    with pytest.raises(ValueError, match=r"no dev file of superglue/boolq in .*; looked for val.jsonl, dev.jsonl"):
        read_examples(task, "dev", tmp_path)
    with pytest.raises(ValueError, match=r"nowhere is no folder; give the folder that holds superglue/BoolQ"):
        read_examples(task, "dev", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no files were given for the dev split; there are files for train"):
        read_examples(task, "dev", {"train": "x.jsonl"})
    with pytest.raises(ValueError, match=r"no file .*x.jsonl"):
        read_examples(task, "train", {"train": tmp_path / "x.jsonl"})


def test_records_that_do_not_fit_are_told_with_file_and_line(tmp_path):
    bad = jsonl(tmp_path / "val.jsonl", boolq(1), {"passage": "x", "label": True})
    with pytest.raises(ValueError, match=r"val.jsonl, line 2: no column 'question'; the columns are passage, label"):
        read_examples(get_task("boolq"), "dev", {"dev": bad})
    bad = jsonl(tmp_path / "multirc.jsonl", {"idx": 0, "passage": {"text": "x", "questions": [{}]}})
    with pytest.raises(ValueError, match=r"multirc.jsonl, line 1: no column 'answers'; the columns are none"):
        read_examples(get_task("multirc"), "dev", {"dev": bad})
    bad = jsonl(tmp_path / "record.jsonl", {"idx": 0, "passage": {"text": "x"}, "qas": []})
    with pytest.raises(ValueError, match=r"record.jsonl, line 1: not a record of superglue/record \(KeyError"):
        read_examples(get_task("record"), "dev", {"dev": bad})
    question = {"qid": "q", "question": "Who?", "detected_answers": [{"char_spans": []}]}
    bad = jsonl(tmp_path / "squad.jsonl", {"context": "Ola sold fish.", "qas": [question]})
    with pytest.raises(ValueError, match=r"squad.jsonl, line 1: not a record of mrqa/squad \(IndexError"):
        read_examples(get_task("mrqa/squad"), "dev", {"dev": bad})
    bad = text(tmp_path / "stsb.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1e999}')
    with pytest.raises(ValueError, match=r"stsb.jsonl, line 1: not a record of glue/stsb \(OverflowError"):
        read_examples(get_task("stsb"), "dev", {"dev": bad})


def test_repeated_ids_and_files_without_examples_are_errors(tmp_path):
    twice = jsonl(tmp_path / "twice.jsonl", boolq(1), boolq(1, question="is it"))
    with pytest.raises(ValueError, match=r"the id '1' stands twice in .*twice.jsonl"):
        read_examples(get_task("boolq"), "dev", {"dev": twice})
    header = jsonl(tmp_path / "header.jsonl", HEADER)
    with pytest.raises(ValueError, match=r"no dev examples of mrqa/squad in .*header.jsonl"):
        read_examples(get_task("squad"), "dev", {"dev": header})


def hub_folder(path, config, **splits):
    """A local folder in the layout of a hub data set of Parquet files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path / config).mkdir(parents=True)
    lines = ["---", "configs:", f"- config_name: {config}", "  data_files:"]
    for split, rows in splits.items():
        pq.write_table(pa.Table.from_pylist(rows), path / config / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (path / "README.md").write_text("\n".join([*lines, "---", ""]))
    return str(path)


def on_hub(name, folder):
    task = get_task(name)
    return replace(task, hub=replace(task.hub, id=folder))


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def test_the_hub_is_read_through_datasets(tmp_path):
    rows = [{"question": "is 1 odd", "passage": "N -- On 1.", "idx": 1, "label": 1}]
    folder = hub_folder(tmp_path / "hub", "boolq", train=rows, validation=rows, test=[rows[0] | {"label": -1}])
    task = on_hub("boolq", folder)
    assert read_examples(task, "dev") == [
        Example(
            inputs="passage: N -- On 1. question: is 1 odd",
            targets="True",
            id="1",
            references=("True",),
            source="N -- On 1.",
        )
    ]
    assert read_examples(task, "test")[0].targets == "<unk>"
    assert read_split(task, "train").files == (f"{folder} boolq train",)


def test_the_hubs_nested_columns_are_read(tmp_path):
    row = {"paragraph": "Ola met Per.", "question": "Who?", "answer": "Per", "label": 1}
    rows = [row | {"idx": {"paragraph": 0, "question": 1, "answer": 2}}]
    task = on_hub("multirc", hub_folder(tmp_path / "hub", "multirc", validation=rows))
    assert [(e.id, e.targets) for e in read_examples(task, "dev")] == [("0-1-2", "True")]


def test_the_hubs_mrqa_is_cut_to_the_tasks_subset(tmp_path):
    rows = [{"subset": name, "context": "Ola met Per.", **question(name)} for name in ("DROP", "RACE")]
    task = on_hub("race", hub_folder(tmp_path / "hub", "plain_text", test=rows))
    assert [e.id for e in read_examples(task, "dev")] == ["RACE"]
    with pytest.raises(ValueError, match="mrqa/race has no train split; it has dev"):
        read_examples(task, "train")


def test_the_hubs_split_of_sentence_polarity_is_replaced_by_ours(tmp_path):
    rows = [{"text": f"a fine film {number} .", "label": 1} for number in range(60)]
    folder = hub_folder(tmp_path / "hub", "default", train=rows[:40], validation=rows[40:50], test=rows[50:])
    task = on_hub("sentence_polarity", folder)
    train, dev = (read_examples(task, split) for split in ("train", "dev"))
    assert len(train) + len(dev) == 60
    assert 0 < len(dev) < 20
    (tmp_path / "rt-polarity.pos").write_text("".join(row["text"] + "\n" for row in reversed(rows)))
    (tmp_path / "rt-polarity.neg").write_text("dull .\n")
    from_files = read_examples(task, "dev", tmp_path)
    assert {e.inputs for e in dev} == {e.inputs for e in from_files if e.targets == "positive"}


def test_a_hub_that_cannot_be_read_is_one_line(tmp_path):
    task = on_hub("boolq", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"cannot read .*nowhere boolq validation from the hub \(.*; or give a folder"):
        read_examples(task, "dev")


@pytest.mark.parametrize(
    "error", [RuntimeError("Dataset scripts are no longer supported, but found x.py"), KeyError("x")]
)
def test_whatever_the_hub_raises_is_one_line(monkeypatch, error):
    import datasets

    def refuse(*arguments, **named):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    words = re.escape(
        f"cannot read aps/super_glue boolq validation from the hub ({error}); or give a folder of its files"
    )
    with pytest.raises(ValueError, match=words):
        read_examples(get_task("boolq"), "dev")


def test_task_names_are_found_without_suite_capitals_and_dashes():
    assert get_task("superglue/boolq") is get_task("BoolQ") is TASKS["superglue/boolq"]
    assert get_task("sst-2") is get_task("glue/SST-2") is TASKS["glue/sst2"]
    assert get_task("natural-questions") is TASKS["mrqa/natural_questions"]
    assert all(task.name == name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("superglue/boolk", "no task named 'superglue/boolk'; did you mean 'superglue/boolq'?"),
        ("boolk", "no task named 'boolk'; did you mean 'boolq'?"),
        ("zzzzzz", "no task named 'zzzzzz'"),
        ("rte", "several tasks are named 'rte': superglue/rte and glue/rte; give the full name"),
    ],
)
def test_unknown_task_names_offer_the_nearest(name, message):
    with pytest.raises(ValueError) as error:
        get_task(name)
    assert str(error.value) == message
