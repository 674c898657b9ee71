"""What holds for the project as a whole: imports go one way, heavy libraries stand in one file, docs are true."""

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from conftest import TENSOR_MODULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "softprompt"
LAYERS = ["files", "tasks", *TENSOR_MODULES, "server", "preview", "commands", "cli", "__init__", "__main__"]
ONLY_IN = {
    "transformers": {"tokenizer", "layers", "backbone", "shapes", "loading"},
    "sklearn": set(),
    "peft": {"methods"},
    "matplotlib": {"report"},
    "datasets": {"tasks"},
    "argparse": {"commands", "cli"},
    "fastapi": {"server"},
    "starlette": {"server"},
    "pydantic": {"server"},
    "prometheus_client": {"server"},
    "uvicorn": {"commands"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module named in an import statement of the file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_layers(path: Path) -> set[str]:
    parts = [name.split(".") for name in imported(path) if name.startswith("softprompt.")]
    return {part[1] for part in parts if part[1] in LAYERS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_up_the_list(path):
    for other in own_layers(path):
        assert LAYERS.index(other) <= LAYERS.index(layer(path)), f"{path.name} imports {other}, which is below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stand_in_their_one_file(path):
    tops = {name.split(".")[0] for name in imported(path)}
    for library, files in ONLY_IN.items():
        assert library not in tops or layer(path) in files, f"{path.name} imports {library}"


def test_tasks_know_no_torch():
    for path in (PACKAGE / "tasks").glob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imported(path)}, path.name


def test_the_list_of_files_in_the_design_is_that_of_the_imports():
    rows = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", (ROOT / "docs" / "design.md").read_text(), re.M)
    assert [name for name in rows if name != "playground"] == [name for name in LAYERS if not name.startswith("__")]


def test_every_layer_is_a_file():
    there = {layer(path) for path in FILES}
    assert there == set(LAYERS)


def test_the_version_is_one_number_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == version


def test_result_rows_are_whole():
    rows = [line for path in (ROOT / "results").glob("*.jsonl") for line in path.read_text().splitlines()]
    for line in rows:
        assert isinstance(json.loads(line), dict)


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_tables_in_documents_are_those_of_the_rows(document, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from tables import render

    text = (ROOT / document).read_text()
    assert render(text, ROOT / "results") == text, f"{document} is behind the rows; run python benchmarks/tables.py"


def test_the_table_of_starts_says_what_was_missed(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from tables import TABLES

    assert TABLES["startup"](tmp_path) == "No rows yet: `python benchmarks/startup.py` makes them."
    row = {"measure": "help", "model": "m", "seconds": 0.2, "samples": [0.1, 0.2, 0.3], "needed": 0.5, "reached": True}
    slow = row | {"measure": "predict", "seconds": 6.0, "samples": [6.0, 5.0, 7.0], "needed": 5.0, "reached": False}
    where = {"device": "D (2 threads)", "dtype": "float32", "versions": {"torch": "2"}, "commit": "c"}
    rows = [row | where | {"seconds": 9.0}, row | where, slow | where]
    (tmp_path / "startup.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    assert TABLES["startup"](tmp_path).splitlines()[2:] == [
        "| `softprompt --help` |  | 0.20 | 0.30 | 0.5 |",
        "| `softprompt predict` on one line | m | 6.00 | 7.00 | 5 (missed) |",
        "",
        "3 runs each, files in memory; D (2 threads), float32, torch 2, commit c.",
    ]


def test_a_start_is_timed_from_outside_and_a_failed_one_is_none(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from startup import measure, timed

    row = measure("help", ["--help"], "", 2)
    assert (row["experiment"], row["needed"], len(row["samples"])) == ("startup", 0.5, 2)
    assert row["reached"] == (row["seconds"] <= 0.5)
    with pytest.raises(RuntimeError, match="softprompt trian failed: softprompt: no command named 'trian'"):
        timed(["trian"])


@pytest.mark.parametrize("document", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda p: p.name)
def test_links_to_files_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_code_in_the_readme_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(block, {})
