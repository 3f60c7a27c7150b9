"""data.train and data.validation: paths, or sources by name; what is wrong is named by its path."""

from pathlib import Path
from typing import Any

import pytest

from lawa.data.sources import DatasetSource, MegatronSource, TextSource
from lawa.errors import UsageError
from lawa.pretrain.sections.data import DataConfig
from lawa.settings import build


def data(**values: Any) -> DataConfig:
    return build(DataConfig, values, "data")


def test_paths_are_one_nameless_source():
    assert data(train="a.txt").sources == {"text": TextSource(paths=["a.txt"])}
    given = data(train=["a", "b"], validation=["c"])
    assert given.sources == {"text": TextSource(paths=["a", "b"])}
    assert given.validation_sources == {"text": TextSource(paths=["c"])}
    assert given.weights == {"train": {"text": 1.0}, "validation": {"text": 1.0}}
    assert data(train="a.txt").validation_sources is None


def test_sources_by_name():
    given = data(
        train={
            "web": {"dataset": "some/corpus", "config": "en", "revision": "v1", "streaming": False, "weight": "3"},
            "books": {"paths": "books", "text": "body"},
            "pile": {"megatron": "data/pile", "weight": 0.5},
        },
        validation={"held": {"paths": ["held.jsonl"]}},
        tokenizer="gpt2",
    )
    assert given.sources == {
        "web": DatasetSource(dataset="some/corpus", config="en", revision="v1", streaming=False, weight=3.0),
        "books": TextSource(paths=["books"], text="body"),
        "pile": MegatronSource(megatron="data/pile", weight=0.5),
    }
    assert given.weights == {"train": {"web": 3.0, "books": 1.0, "pile": 0.5}, "validation": {"held": 1.0}}


def test_held_out_text_has_the_weights_of_its_sources():
    given = data(train={"a": {"paths": "a", "weight": 2}, "b": {"paths": "b"}})
    assert given.weights["validation"] == given.weights["train"] == {"a": 2.0, "b": 1.0}


def test_a_store_alone_is_enough():
    given = data(store="store")
    assert (given.sources, given.weights, given.validation_sources) == ({}, {}, None)
    assert given.absolute().train is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "data.train is not set; name text files, folders or sources, or a data.store"),
        ({"store": "s", "validation": ["v"]}, "data.validation needs data.train"),
        ({"train": []}, "data.train is empty; name text files or folders, or sources"),
        ({"train": {}}, "data.train is empty"),
        ({"train": "a", "validation": []}, "data.validation is empty"),
        (
            {"train": {"a": {"path": "x"}}},
            "data.train.a must have exactly one of paths, dataset, megatron; it has path",
        ),
        ({"train": {"a": {"paths": "x", "dataset": "y"}}}, "data.train.a must have exactly one of"),
        ({"train": {"a": {"paths": "x", "wieght": 2}}}, "unknown setting data.train.a.wieght; did you mean .*weight"),
        ({"train": {"a": {"megatron": "x", "text": "y"}}}, "unknown setting data.train.a.text"),
        ({"train": {"a": "x.txt"}}, "data.train.a must be a mapping with one of paths, dataset, megatron, not 'x.txt'"),
        ({"train": {"a": {"paths": []}}}, "data.train.a.paths is empty"),
        ({"train": {"a": {"paths": "x", "weight": 0}}}, "data.train.a.weight=0.0 must be a finite number above 0"),
        ({"train": {"a": {"paths": "x", "weight": "nan"}}}, "data.train.a.weight=nan must be a finite number"),
        ({"train": {"a": {"paths": "x", "weight": "inf"}}}, "data.train.a.weight=inf must be a finite number"),
        ({"train": {"a/b": {"paths": "x"}}}, "data.train: 'a/b' cannot name a source; use letters"),
        ({"train": {"../a": {"paths": "x"}}}, "cannot name a source"),
        ({"train": {"a": {"dataset": "x", "streaming": "yes"}}}, "data.train.a.streaming='yes' must be true or false"),
        ({"train": {"a": {"megatron": "x"}}}, "Megatron's token files need data.tokenizer"),
        ({"train": "a", "workers": 0}, "data.workers=0 must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], sentence: str):
    with pytest.raises(UsageError, match=sentence):
        data(**values)


def test_paths_become_absolute_and_names_on_the_hub_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    given = data(
        train={
            "a": {"paths": ["x", "y"], "weight": 2},
            "b": {"dataset": "some/corpus"},
            "c": {"dataset": "local"},
            "d": {"megatron": "pile"},
        },
        validation=["v"],
        tokenizer="gpt2",
    )
    there = given.absolute()
    assert there.sources == {
        "a": TextSource(paths=[f"{tmp_path}/x", f"{tmp_path}/y"], weight=2.0),
        "b": DatasetSource(dataset="some/corpus"),
        "c": DatasetSource(dataset=f"{tmp_path}/local"),
        "d": MegatronSource(megatron=f"{tmp_path}/pile"),
    }
    assert there.validation == [f"{tmp_path}/v"]
    assert build(DataConfig, vars(there), "data") == there
