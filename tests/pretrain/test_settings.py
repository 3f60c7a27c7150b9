from dataclasses import dataclass
from typing import Any

import pytest

from lawa.errors import UsageError
from lawa.pretrain.settings import build, merge, nested, required, setting, walk


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
