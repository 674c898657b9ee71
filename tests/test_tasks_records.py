import gzip
import json
import lzma
import subprocess
import sys

import pytest

from softprompt.tasks import read_items, read_records
from softprompt.tasks.records import place


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_jsonl_gives_each_object_with_its_line(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": "\u2028 stays"}\n')
    assert list(read_records(path)) == [(1, {"x": 1}), (3, {"x": "\u2028 stays"})]


def test_a_character_escaped_in_two_halves_is_one(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"x": "\\ud83d\\ude00 \\\\ud83d"}\n')
    assert list(read_records(path)) == [(1, {"x": "\U0001f600 \\ud83d"})]


def test_gzip_and_byte_order_mark_are_seen_through(tmp_path):
    path = tmp_path / "a.tsv.gz"
    path.write_bytes(gzip.compress("\ufeffx\ty\r\n1\t2\r\n".encode()))
    assert list(read_records(path)) == [(2, {"x": "1", "y": "2"})]


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ('[{"x": 1}, {"x": 2}]', [(1, {"x": 1}), (2, {"x": 2})]),
        ('{"version": "1", "data": [{"x": 1}]}', [(1, {"x": 1})]),
        ('{"0": {"x": 1}, "1": {"x": 2}}', [(1, {"x": 1}), (2, {"x": 2})]),
        ('{"x": 1}', [(1, {"x": 1})]),
        ('{"x": 1}\n{"x": 2}\n', [(1, {"x": 1}), (2, {"x": 2})]),
    ],
)
def test_json_may_be_a_list_a_document_a_mapping_one_object_or_lines(tmp_path, text, records):
    assert list(read_records(write(tmp_path / "a.json", text))) == records


def test_csv_is_quoted_and_tsv_is_not(tmp_path):
    quoted = write(tmp_path / "a.csv", 'x,y\n"one, two","a\nb"\n3,4\n')
    assert list(read_records(quoted)) == [(3, {"x": "one, two", "y": "a\nb"}), (4, {"x": "3", "y": "4"})]
    bare = write(tmp_path / "a.tsv", 'x\ty\n"one\ttwo"\n')
    assert list(read_records(bare)) == [(2, {"x": '"one', "y": 'two"'})]


def test_parquet_gives_records_counted_from_one(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ["one", "two"], "y": [[1], [2, 3]]}), path, row_group_size=1)
    assert list(read_records(path)) == [(1, {"x": "one", "y": [1]}), (2, {"x": "two", "y": [2, 3]})]


def test_places_are_lines_or_records():
    assert place("a.jsonl.gz", 3) == "a.jsonl.gz, line 3"
    assert place("a.parquet", 3) == "a.parquet, record 3"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"x": 1}\n{"x": }\n', r"a.jsonl, line 2: not JSON \(Expecting value, column 7\)"),
        ("a.jsonl", '{"x": 1}\n[2]\n', r"a.jsonl, line 2: wanted an object, got \[2\]"),
        ("a.json", '[{"x": 1},\n{"x": 2]', r"a.json, line 2: not JSON \(Expecting ',' delimiter"),
        ("a.json", "[1]", "a.json, record 1: wanted an object, got 1"),
        ("a.csv", "x,y\n1,2\n1\n", "a.csv, line 3: 1 fields, but there are 2 columns"),
        ("a.csv", 'x,y\n1,"2\n', r"a.csv, line 2: not CSV \(unexpected end of data\)"),
        ("a.tsv", "x\ty\n1\t2\t3\n", "a.tsv, line 2: 3 fields, but there are 2 columns"),
        ("a.jsonl", "", "a.jsonl is empty: it holds no records"),
        ("a.json", " ", "a.json is empty: it holds no records"),
        ("a.csv", "x,y\n", "a.csv is empty: it holds no records"),
        ("a.doc", "x", r"a.doc is of no known format; known are .jsonl, .json, .csv, .tsv, .parquet"),
        (
            "a.jsonl",
            '{"x": 1}\n{"x": "a \\ud83d"}\n',
            r"a.jsonl, line 2: '\\ud83d' is half of a character, which is no",
        ),
        ("a.json", '[{"x": {"y": ["\\udc00"]}}]', r"a.json, record 1: '\\udc00' is half of a character"),
        ("a.jsonl", '{"x": 1}\n' + "[" * 200_000, r"a.jsonl, line 2: not JSON \(brackets too deep in one another\)"),
        ("a.json", "[" * 200_000, r"a.json: not JSON \(brackets too deep in one another\)"),
        (
            "a.jsonl",
            '{"x": 1}\n{"x": ' + "9" * 5000 + "}",
            r"a.jsonl, line 2: not JSON \(a number of too many digits\)",
        ),
        ("a.json", "[" + "9" * 5000 + "]", r"a.json: not JSON \(a number of too many digits\)"),
        ("a.parquet", "no", r"a.parquet is not a Parquet file \("),
        ("a.jsonl.gz", "plain", r"a.jsonl.gz is not a whole gzip file \(Not a gzipped file"),
    ],
)
def test_malformed_files_are_told_with_their_line(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        list(read_records(write(tmp_path / name, text)))


def test_text_that_is_not_utf8_is_told(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"x": "é"}', encoding="latin-1")
    with pytest.raises(ValueError, match=r"a.jsonl, line 1: not UTF-8 text \(byte 0xe9\)"):
        list(read_records(path))


def test_a_document_that_is_not_utf8_is_told(tmp_path):
    path = write(tmp_path / "a.json", '[{"x": "é"}]', encoding="latin-1")
    with pytest.raises(ValueError, match=r"a.json is not UTF-8 text \(byte 0xe9\)"):
        list(read_records(path))


def test_a_cut_gzip_file_is_told(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"x": list(range(999))}).encode())[:-20])
    with pytest.raises(ValueError, match=r"a.jsonl.gz is not a whole gzip file"):
        list(read_records(path))


def test_a_file_can_be_compressed_with_xz(tmp_path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(b'{"x": 1}\n{"x": 2}\n'))
    assert list(read_records(path)) == [(1, {"x": 1}), (2, {"x": 2})]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"a.jsonl.xz is not a whole xz file"):
        list(read_records(path))


def test_a_missing_file_is_told_at_once_with_the_nearest_name(tmp_path):
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(ValueError, match=r"no file .*trian.jsonl; did you mean 'train.jsonl'\?"):
        read_records(tmp_path / "trian.jsonl")
    with pytest.raises(ValueError, match=r"no file .*nowhere/a.jsonl$"):
        read_records(tmp_path / "nowhere" / "a.jsonl")


def test_importing_the_tasks_imports_no_heavy_library():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "sklearn", "scipy", "rouge_score")
    code = f"import sys, softprompt.tasks; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.csv", "text;label", "has semicolons between its columns, but should have commas"),
        ("a.csv", "text\tlabel", "has tabs between its columns, but should have commas"),
        ("a.tsv", "text,label", "has commas between its columns, but should have tabs"),
    ],
)
def test_another_separator_is_told_at_the_column_names(tmp_path, name, head, words):
    path = tmp_path / name
    path.write_text(f"{head}\nrow, number 1;yes\n")
    with pytest.raises(ValueError, match=f"{name} {words}"):
        list(read_records(path))


def test_a_folder_of_texts_gets_the_line_that_makes_a_file_of_it(tmp_path):
    for label, text in (("good", "a warm film"), ("bad", "a dull one")):
        (tmp_path / "films" / label).mkdir(parents=True)
        (tmp_path / "films" / label / "1.txt").write_text(text)
    with pytest.raises(ValueError, match="films is a folder of texts; make one file of them") as told:
        read_records(tmp_path / "films")
    command = str(told.value).split("labels: ")[1]
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    records = [record for _, record in read_records(tmp_path / "films.jsonl")]
    assert records == [{"text": "a dull one", "label": "bad"}, {"text": "a warm film", "label": "good"}]


def test_a_spreadsheet_gets_the_line_that_makes_a_file_of_it(tmp_path):
    path = tmp_path / "films.xlsx"
    path.write_bytes(b"PK")
    for reader in (read_records, lambda path: list(read_items(path))):
        with pytest.raises(ValueError, match=r"films.xlsx is a spreadsheet; save it as CSV .*films.csv', index=False"):
            reader(path)
