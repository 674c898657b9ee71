"""What is read from disk or wire: strict types, and one line for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Len
from pydantic import AfterValidator, BaseModel

from softprompt.base.checked import checked


def _even(value: int) -> int:
    if value % 2:
        raise ValueError(f"{value} is odd; give an even number")
    return value


@dataclass(frozen=True, kw_only=True)
class Shelf:
    place: str
    books: int


@dataclass(frozen=True, kw_only=True)
class Library:
    name: str | None
    num_rooms: int
    rate: Annotated[float, Gt(0)] | None = None
    floors: Annotated[int, Ge(1)] = 1
    seats: Annotated[int, AfterValidator(_even)] = 2
    topics: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    order: Literal["title", "author"] = "title"
    is_open: bool = True
    notes: dict[str, Any] = field(default_factory=dict)
    shelves: Annotated[list[Shelf], Len(0)] = field(default_factory=list)
    at: int | str | None = None
    owners: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["town"])

    def __post_init__(self) -> None:
        if self.num_rooms == 13:
            raise ValueError("13 rooms bring bad luck; build one more")


def library(**changes: Any) -> dict[str, Any]:
    record = {"name": "B", "num_rooms": 3} | changes
    return {name: value for name, value in record.items() if value != "gone"}


def test_what_is_as_declared_comes_back_as_its_type():
    given = library(
        rate=2, topics=["a", "b"], scopes=["x"], notes={"n": [1, None]}, shelves=[{"place": "p", "books": 1}]
    )
    found = checked(Library, given, "lib.yaml")
    assert found == Library(
        name="B",
        num_rooms=3,
        rate=2.0,
        topics=("a", "b"),
        scopes=frozenset({"x"}),
        notes={"n": [1, None]},
        shelves=[Shelf(place="p", books=1)],
    )
    assert checked(list[int], [1, 2], "numbers") == [1, 2]
    assert checked(dict[str, Shelf], {"a": {"place": "p", "books": 1}}, "shelves")["a"].books == 1


def test_what_yaml_has_and_json_has_not_is_text_or_a_number():
    assert checked(Library, library(name=date(2026, 11, 27)), "lib.yaml").name == "2026-11-27"
    assert checked(dict[str, int], {1: 2}, "lib.yaml") == {"1": 2}
    assert checked(Library, library(rate=float("inf")), "lib.yaml").rate == float("inf")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (library(num_rooms="abc"), "lib.yaml: num_rooms is 'abc', but must be a whole number"),
        (library(num_rooms="3"), "lib.yaml: num_rooms is '3', but must be a whole number"),
        (library(num_rooms=3.0), "lib.yaml: num_rooms is 3.0, but must be a whole number"),
        (library(num_rooms=True), "lib.yaml: num_rooms is True, but must be a whole number"),
        (library(num_rooms=None), "lib.yaml: num_rooms is None, but must be a whole number"),
        (library(rate="x"), "lib.yaml: rate is 'x', but must be a number"),
        (library(rate=0), "lib.yaml: rate is 0, but must be above 0"),
        (library(floors=0), "lib.yaml: floors is 0, but must be 1 or more"),
        (library(name=3), "lib.yaml: name is 3, but must be text"),
        (library(is_open=1), "lib.yaml: is_open is 1, but must be true or false"),
        (library(topics="a"), "lib.yaml: topics is 'a', but must be a list"),
        (library(topics=["a", 1]), "lib.yaml: topics[1] is 1, but must be text"),
        (library(order="size"), "lib.yaml: order is 'size', but must be 'title' or 'author'"),
        (library(notes=[]), "lib.yaml: notes is [], but must be names with their values"),
        (library(owners=[]), "lib.yaml: owners is [], but must be a list of 1 or more"),
        (library(at=1.5), "lib.yaml: at is 1.5, but must be a whole number or text"),
        (
            library(shelves=[{"place": "p", "books": "x"}]),
            "lib.yaml: shelves[0].books is 'x', but must be a whole number",
        ),
        (library(shelves=[3]), "lib.yaml: shelves[0] is 3, but must be names with their values"),
        (library(num_rooms="gone"), "lib.yaml lacks the field 'num_rooms'"),
        (library(shelves=[{"place": "p"}]), "lib.yaml lacks the field 'shelves[0].books'"),
        (library(num_romes=3), "lib.yaml has the unknown field 'num_romes'; did you mean 'num_rooms'?"),
        (
            library(num_rooms="gone", num_romes=3),
            "lib.yaml has the unknown field 'num_romes'; did you mean 'num_rooms'?",
        ),
        (library(zzz=3), "lib.yaml has the unknown field 'zzz'"),
        (
            library(shelves=[{"place": "p", "books": 1, "book": 2}]),
            "lib.yaml has the unknown field 'shelves[0].book'; did you mean 'books'?",
        ),
        (library(num_rooms=13), "lib.yaml: 13 rooms bring bad luck; build one more"),
        (library(seats=3), "lib.yaml: seats: 3 is odd; give an even number"),
        ([1], "lib.yaml is [1], but must be names with their values"),
        (None, "lib.yaml is None, but must be names with their values"),
    ],
)
def test_whatever_is_wrong_is_one_line(data, line):
    with pytest.raises(ValueError) as caught:
        checked(Library, data, "lib.yaml")
    assert str(caught.value) == line


def test_half_a_character_and_endless_nesting_are_one_line():
    with pytest.raises(
        ValueError, match=r"^lib.yaml holds '\\ud800', half a character, behind '.*topics.*a'; write whole"
    ):
        checked(Library, library(topics=["a\ud800"]), "lib.yaml")
    deep: Any = []
    deep.append(deep)
    with pytest.raises(ValueError, match=r"^lib.yaml is nested too deeply, or in itself$"):
        checked(Library, library(notes={"n": deep}), "lib.yaml")
    for depth in (500, 100_000):
        deep = 1
        for _ in range(depth):
            deep = [deep]
        with pytest.raises(ValueError, match=r"^lib.yaml is nested too deeply"):
            checked(Library, library(notes={"n": deep}), "lib.yaml")


def test_a_long_value_is_shown_in_part():
    with pytest.raises(ValueError) as caught:
        checked(Library, library(num_rooms="x" * 500), "lib.yaml")
    assert len(str(caught.value)) < 150


def test_models_of_pydantic_are_taken_too_and_names_may_be_called_otherwise():
    class Note(BaseModel):
        text: str

    assert checked(Note, {"text": "a"}, "note").text == "a"
    with pytest.raises(ValueError, match=r"^note has the unknown key 'txt'; did you mean 'text'\?$"):
        checked(Note, {"txt": "a"}, "note", noun="key")


def test_help_waits_for_no_validation():
    code = "import sys; from softprompt.cli import main; main(['--help']); assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
