from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lawa.errors import UsageError
from lawa.settings import build, merge, nested, required, setting, walk


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = setting(1e-3, "a rate")
    steps: int | None = setting(None, "a count")
    on: bool = setting(False, "a switch")
    names: list[str] = setting([], "names")
    more: dict[str, Any] = setting({}, "anything")


@dataclass(frozen=True, kw_only=True)
class Outer:
    inner: Inner
    name: str = required("what it is called")


def test_values_are_converted_by_type():
    built = build(
        Outer, {"name": 3, "inner": {"lr": "4e-3", "steps": 2.0, "on": True, "names": "a", "more": {"x": [1]}}}
    )
    assert built == Outer(name="3", inner=Inner(lr=0.004, steps=2, on=True, names=["a"], more={"x": [1]}))
    assert build(Outer, {"name": "x"}).inner == Inner()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "name is not set: what it is called"),
        ({"nam": "x"}, "unknown setting nam; did you mean name"),
        ({"name": "x", "inner": {"lrr": 1}}, r"unknown setting inner\.lrr; did you mean inner\.lr"),
        ({"name": "x", "inner": {"zzz": 1}}, r"unknown setting inner\.zzz; it has lr, steps, on, names, more"),
        ({"name": "x", "inner": {"lr": "fast"}}, r"inner\.lr='fast' must be a number"),
        ({"name": "x", "inner": {"lr": True}}, r"inner\.lr=True must be a number"),
        ({"name": "x", "inner": {"steps": 1.5}}, r"inner\.steps=1\.5 must be a whole number"),
        ({"name": "x", "inner": {"steps": "many"}}, r"inner\.steps='many' must be a whole number"),
        ({"name": "x", "inner": {"on": "yes"}}, r"inner\.on='yes' must be true or false"),
        ({"name": "x", "inner": {"names": 3}}, r"inner\.names=3 must be a list"),
        ({"name": "x", "inner": {"more": 3}}, r"inner\.more=3 must be a mapping"),
        ({"name": "x", "inner": 3}, "inner must be a mapping of settings, not 3"),
        ({"name": ["x"]}, r"name=\['x'\] must be text"),
    ],
)
def test_what_does_not_fit_is_named_by_its_path(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        build(Outer, values)


def test_overlays_go_mapping_by_mapping():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "d": {"e": 1}}) == {
        "a": {"b": 9, "c": 2},
        "d": {"e": 1},
    }
    assert nested("a.b.c", 1) == {"a": {"b": {"c": 1}}}


def test_every_setting_is_listed_with_its_path():
    assert [path for path, _, _ in walk(Outer)] == [
        "inner.lr", "inner.steps", "inner.on", "inner.names", "inner.more", "name",
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Places:
    place: Path
    places: dict[int, Path] | None = None
    parts: list[Path] | None = None
    share: float = 1.0
    flag: bool = False
    count: int = 0
    order: list[int] | None = None
    name: str = ""


def test_paths_and_mappings_by_number():
    values = {"place": "a", "places": {"3": "b", 4: Path("c")}, "parts": ["d"], "share": 2, "flag": True, "order": [1]}
    assert build(Places, {**values, "count": 5, "name": "n"}, "s") == Places(
        place=Path("a"), places={3: Path("b"), 4: Path("c")}, parts=[Path("d")], share=2.0, flag=True, order=[1],
        count=5, name="n",
    )  # fmt: skip
    assert build(Places, {"place": "a", "parts": None}, "s") == Places(place=Path("a"))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"place": 3}, "s.place=3 must be a path"),
        ({"place": None}, "s.place=None must be a path"),
        ({"places": {"x": "b"}}, "s.places.x='x' must be a whole number"),
        ({"places": {1: 2}}, "s.places.1=2 must be a path"),
        ({"places": ["b"]}, r"s.places=\['b'\] must be a mapping"),
        ({"parts": ["a", 1]}, r"s.parts\[1\]=1 must be a path"),
        ({"share": True}, "s.share=True must be a number"),
        ({"flag": 1}, "s.flag=1 must be true or false"),
        ({"count": True}, "s.count=True must be a whole number"),
    ],
)
def test_a_field_without_help_and_other_types_are_named(wrong: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        build(Places, {"place": "a", **wrong}, "s")
