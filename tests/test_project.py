"""What holds for the project as a whole: imports go one way, heavy libraries stand in one file, docs are true."""

import argparse
import ast
import json
import re
import shlex
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "softprompt"
# A folder imports those before it; folders of one line never import one another.
FLOORS = [
    {"base"},
    {"cluster"},
    {"tasks"},
    {"models"},
    {"prompts"},
    {"answering"},
    {"training", "serving"},
    {"serving.http", "pretraining"},
    {"study"},
    {"cli"},
    {"pretraining.commands", "study.commands"},
]
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS) for folder in sorted(folders)}
BESIDE_THE_PRODUCT = {"pretraining", "study"}
LONGEST_PATH = 9
MOST_FLOORS_IN_A_FOLDER = 6
ONLY_IN = {
    "transformers": {"models", "pretraining.new_t5"},
    "sklearn": set(),
    "peft": {"study.weights"},
    "huggingface_hub": {"prompts.hub"},
    "matplotlib": {"study.pictures"},
    "ray": {"cluster"},
    "datasets": {"tasks"},
    "argparse": {"cli", "pretraining.commands", "study.commands"},
    "fastapi": {"serving.http"},
    "starlette": {"serving.http", "cluster.replicas"},
    "pydantic": {"base.checked", "serving.http"},
    "prometheus_client": {"serving.http"},
    "uvicorn": {"cli.serve", "serving.http.listening"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def folder_of(module: str) -> str:
    """The folder a module lies in, without the package's own name; '' for those in none."""
    return ".".join(MODULES[module].relative_to(PACKAGE).parts[:-1])


def imported(path: Path) -> set[str]:
    """Every module and name in an import statement of the file, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def own_imports(module: str) -> set[str]:
    """The modules and faces of ours that a module imports."""
    names = imported(MODULES[module])
    below = {name for name in names if name in MODULES and name not in (module, "softprompt")}
    return {name for name in below if not any(other.startswith(f"{name}.") for other in below)}


def longest_path(below: dict[str, set[str]]) -> list[str]:
    """The longest way down, which a cycle would make endless."""
    known: dict[str, list[str]] = {}

    def way(place: str, above: tuple[str, ...] = ()) -> list[str]:
        assert place not in above, f"a cycle: {' -> '.join([*above, place])}"
        if place not in known:
            ways = [way(other, (*above, place)) for other in below.get(place, ())]
            known[place] = [place, *max(ways, key=len, default=[])]
        return known[place]

    return max((way(place) for place in below), key=len)


HOUSED = [module for module in MODULES if folder_of(module)]


@pytest.mark.parametrize("module", HOUSED)
def test_a_folder_imports_those_below_it_and_by_their_faces(module):
    own = folder_of(module)
    for other in own_imports(module):
        folder = folder_of(other)
        if folder == own:
            continue
        assert FLOOR_OF[folder] < FLOOR_OF[own], f"{module} imports {other}, which is not below it"
        is_beside = own.split(".")[0] in BESIDE_THE_PRODUCT
        assert is_beside or folder.split(".")[0] not in BESIDE_THE_PRODUCT, f"{module} is the product, {other} is not"
        is_own = own.startswith(f"{folder}.") or folder.startswith(f"{own}.")
        is_face = MODULES[other].name == "__init__.py" or folder == "base" or is_own
        assert is_face, f"{module} reaches into {other}; import what {folder} offers"


def test_folders_have_no_cycle_and_no_long_path():
    below: dict[str, set[str]] = {}
    for module in HOUSED:
        others = {folder_of(other) for other in own_imports(module)}
        below.setdefault(folder_of(module), set()).update(others - {folder_of(module)})
    assert set(below) == set(FLOOR_OF)
    path = longest_path(below)
    assert len(path) <= LONGEST_PATH, path


@pytest.mark.parametrize("folder", FLOOR_OF)
def test_modules_of_a_folder_have_no_cycle_and_do_not_stack_high(folder):
    inside = {module for module in HOUSED if folder_of(module) == folder and MODULES[module].name != "__init__.py"}
    path = longest_path({module: own_imports(module) & inside for module in inside})
    assert len(path) <= MOST_FLOORS_IN_A_FOLDER, path


@pytest.mark.parametrize("module", HOUSED)
def test_heavy_libraries_stand_in_their_one_place(module):
    tops = {name.split(".")[0] for name in imported(MODULES[module])}
    own = module.removeprefix("softprompt.")
    for library, places in ONLY_IN.items():
        allowed = any(own == place or own.startswith(f"{place}.") for place in places)
        assert library not in tops or allowed, f"{module} imports {library}"


def test_tasks_know_no_torch():
    for path in (PACKAGE / "tasks").glob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imported(path)}, path.name


@pytest.mark.parametrize("folder", FLOOR_OF)
def test_no_name_of_a_face_is_that_of_a_module(folder):
    names = getattr(import_module(f"softprompt.{folder}"), "__all__", [])
    assert not {f"softprompt.{folder}.{name}" for name in names} & set(MODULES)


def test_the_table_of_rooms_in_the_design_is_that_of_the_folders():
    rows = re.findall(r"^\| `(\w+)/` \|", (ROOT / "docs" / "design.md").read_text(), re.M)
    assert set(rows) == {folder.split(".")[0] for folder in FLOOR_OF}


def test_every_folder_says_what_it_is_for():
    for folder in FLOOR_OF:
        path = PACKAGE.joinpath(*folder.split("."), "__init__.py")
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


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


def test_the_tests_that_a_promise_names_are_there():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    written = set()
    for path in (ROOT / "tests").glob("*.py"):
        written |= set(re.findall(r"def (test_\w+)", path.read_text()))
    assert len(named) > 20 and named <= written, named - written


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_kubernetes_manifest_runs_a_command_that_there_is_on_the_ray_that_is_tested():
    text = (ROOT / "docs" / "cluster.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    manifest = yaml.safe_load(text)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    program, *words = shlex.split(manifest["spec"]["entrypoint"])
    assert program == "softprompt"
    parser = argparse.ArgumentParser()
    command = import_module(f"softprompt.cli.{words[0]}")
    command.add_flags(parser)
    assert parser.parse_args(words[1:]).address == "auto"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = set()
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        images.add(container["image"])
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images == {f"registry.example/softprompt:{version}"}
    assert groups[1]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
