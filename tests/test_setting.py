"""One declaration of a setting: what is read by it, what it refuses, and what the dataclass refuses."""

import os
import subprocess
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path

import pytest

from softprompt.base.setting import check, setting, settings_of, size


@dataclass(frozen=True, kw_only=True)
class Walk:
    """A walk."""

    steps: int = setting("how many", MISSING, title="how far", at_least=1)
    pace: float | None = setting("steps a second", above=0)
    stops: tuple[int, ...] | None = setting("where")
    way: str = setting("which", "path", title="where to", choices=("path", "road"))
    back: bool = setting("and back", False)
    to: Path = setting("where to", Path("home"))
    bag: int | None = setting("how large", kind=size, form="bytes such as 80KB")
    note: str = ""

    def __post_init__(self):
        check(self)


SETTINGS = settings_of(Walk)


def test_kinds_are_the_fields_types_and_titles_last():
    kinds = {name: (one.kind, one.is_list, one.title) for name, one in SETTINGS.items()}
    assert kinds == {
        "steps": (int, False, "how far"),
        "pace": (float, False, "how far"),
        "stops": (int, True, "how far"),
        "way": (str, False, "where to"),
        "back": (bool, False, "where to"),
        "to": (Path, False, "where to"),
        "bag": (size, False, "where to"),
    }


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("steps", "3", 3),
        ("steps", 3, 3),
        ("pace", "1e-3", 0.001),
        ("pace", 2, 2.0),
        ("stops", "1, 2", (1, 2)),
        ("stops", [1, 2], (1, 2)),
        ("stops", 4, (4,)),
        ("way", "road", "road"),
        ("back", True, True),
        ("to", "there", Path("there")),
        ("bag", "80KB", 81_920),
        ("bag", "1.5M", 1_572_864),
        ("bag", 500, 500),
    ],
)
def test_a_word_and_an_entry_of_a_file_are_read_alike(name, given, value):
    assert SETTINGS[name].read(given) == value


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("steps", "many", "wanted a whole number, got 'many'"),
        ("steps", 1.5, "wanted a whole number, got 1.5"),
        ("steps", True, "wanted a whole number, got True"),
        ("pace", "fast", "wanted a number, got 'fast'"),
        ("stops", "1,x", "wanted whole numbers with commas between, got '1,x'"),
        ("stops", [1, 1.5], r"wanted whole numbers with commas between, got \[1, 1.5\]"),
        ("stops", {"a": 1}, "wanted whole numbers with commas between, got {'a': 1}"),
        ("to", ["there"], r"wanted text, got \['there'\]"),
        ("way", ["path"], r"wanted one of path, road, got \['path'\]"),
        ("way", "rode", "wanted one of path, road, got 'rode'"),
        ("back", "yes", "wanted true or false, got 'yes'"),
        ("back", 1, "wanted true or false, got 1"),
        ("bag", "large", "wanted bytes such as 80KB, got 'large'"),
        ("bag", "0", "wanted bytes such as 80KB, got '0'"),
    ],
)
def test_what_is_of_another_kind_says_what_was_wanted_and_what_came(name, given, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        SETTINGS[name].read(given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0, but must be 1 or more"),
        ({"pace": 0.0}, "pace is 0.0, but must be above 0"),
        ({"pace": float("nan")}, "pace is nan, but must be above 0"),
        ({"stops": [1]}, r"stops is \[1\], but must be a tuple; give \(1,\)"),
        ({"stops": 1}, r"stops is 1, but must be a tuple; give \(1,\)"),
        ({"way": "rode"}, "no way is named 'rode'; did you mean 'road'\\?; there are path, road"),
    ],
)
def test_the_dataclass_refuses_what_the_setting_does_not_allow(changes, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        Walk(**{"steps": 1, **changes})


def test_a_setting_without_a_default_must_be_given():
    with pytest.raises(TypeError, match="steps"):
        Walk()


def test_numbers_of_another_kind_are_told_so_where_nothing_else_checks_types():
    """In a process of its own, without the checks of types that tests run under."""
    code = """
from softprompt.training import RunConfig
for changes in ({"seeds": ("a",)}, {"minutes": "1"}, {"preset": 3}):
    try:
        RunConfig(model="m", task=("cb",), **changes)
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == [
        "seeds is 'a', but must be a whole number",
        "minutes is '1', but must be a number",
        "no preset is named 3; there are paper, google-code, fast",
    ]
