"""Opening batches by kind and settings; those of a run of one's own."""

from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.given_files import Replica, sequences
from lawa.data.batches import KINDS, Batches, absolute, open_batches
from lawa.data.order import Order, batch
from lawa.data.sources import TextSource
from lawa.data.store import TokenStore, build_or_open
from lawa.errors import LawaError, UsageError


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> TokenStore:
    rest = [str(folder / "hostile.txt"), str(folder / "sonnet.txt")]
    sources = {"act": TextSource(paths=[str(folder / "act1")], weight=3), "rest": TextSource(paths=rest)}
    return build_or_open(tmp_path / "store", sources=sources, validation_fraction=0.3, vocab_size=300)


def test_the_kinds(tmp_path: Path, store: TokenStore):
    file = tmp_path / "ids"
    file.write_bytes(sequences(4, 8).tobytes())
    (tmp_path / "maps").mkdir()
    replica = Replica(tmp_path / "maps", [100], context=8)
    common = {"batch": 2, "context": 8}
    given = {
        "preshuffled": {"files": [str(file)], **common},
        "documents": {"tokens": str(replica.prefix), **common, **replica.settings},
        "run": {"store": str(store.path), "seed": 3, **common},
    }
    for kind, settings in given.items():
        found = open_batches({kind: settings})
        assert isinstance(found, Batches)
        assert (found.batch, found.context) == (2, 8)
        assert found.rows(1).shape == (2, 9)
        assert found.rows(1, slice(1, 2)).tolist() == found.rows(1)[1:].tolist()
        assert found.describe()["kind"] == kind
        assert len(found.digest) == 64
    assert set(given) < set(KINDS)


def test_every_kind_has_a_reader_and_settings():
    for module, reader, settings in KINDS.values():
        found = import_module(module)
        assert is_dataclass(getattr(found, settings))
        assert all(hasattr(getattr(found, reader), name) for name in ("rows", "describe", "digest"))


@pytest.mark.parametrize("weights", [None, {"rest": 1.0, "act": 0.5}])
def test_a_run_of_ones_own_is_read_as_the_driver_reads_it(store: TokenStore, weights: dict[str, float] | None):
    settings = {"store": store.path, "batch": 6, "context": 16, "seed": 7, "weights": weights}
    found = open_batches({"run": settings})
    order = Order.over(store.train, weights or store.weights["train"], context=16, batch=6, seed=7)
    for t in (1, 2, 10**9):
        assert t in found.updates
        assert np.array_equal(found.rows(t), batch(store.train, order, t))
        assert np.array_equal(found.rows(t, slice(2, 5)), batch(store.train, order, t, slice(2, 5)))
    with pytest.raises(LawaError, match="update is 0; the first update is 1"):
        found.rows(0)
    described = found.describe()
    assert described["store_digest"] == store.digest
    assert described["weights"] == (weights or {"act": 3, "rest": 1})
    other = open_batches({"run": {**settings, "seed": 8}})
    assert other.digest != found.digest
    assert not np.array_equal(other.rows(1), found.rows(1))
    assert open_batches({"run": {**settings, "vocab_size": 10**6}}).digest == found.digest
    with pytest.raises(LawaError, match=r"the batch of update 1 holds the id .* and the vocabulary ends at 1; correct"):
        open_batches({"run": {**settings, "vocab_size": 2}}).rows(1)


def test_a_run_that_cannot_be(store: TokenStore, tmp_path: Path):
    settings = {"store": store.path, "batch": 6, "context": 16, "seed": 7}
    with pytest.raises(
        LawaError, match=r"run.weights and the sources of .*store differ by rest, two; give weights to act"
    ):
        open_batches({"run": {**settings, "weights": {"act": 1, "two": 1}}})
    with pytest.raises(LawaError, match="there is no token store at"):
        open_batches({"run": {**settings, "store": tmp_path / "nothing"}})
    with pytest.raises(UsageError, match=r"batches.run.seed=-1 must be a whole number of at least 0"):
        open_batches({"run": {**settings, "seed": -1}})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "batches are given as one of preshuffled, documents, run, chunks, indices with its settings, not as {}"),
        ({"shuffled": {}}, "not as {'shuffled': {}}"),
        ({"run": {}, "chunks": {}}, "not as {'run': {}, 'chunks': {}}"),
        ("run", "not as 'run'"),
        ({"run": 3}, "batches.run must be a mapping of settings, not 3"),
        ({"run": {"stores": "x"}}, "unknown setting batches.run.stores; did you mean batches.run.store"),
        (
            {"run": {"xyz": 1}},
            "unknown setting batches.run.xyz; it has store, batch, context, seed, weights, vocab_size",
        ),
        ({"run": {"store": "x", "batch": 1, "context": 1}}, "batches.run.seed is not set"),
        ({"run": {"store": 3}}, "batches.run.store=3 must be a path"),
    ],
)
def test_what_is_no_kind_and_no_setting(values: Any, sentence: str):
    with pytest.raises(UsageError, match=sentence):
        open_batches(values)


def test_paths_are_made_absolute_and_nothing_else_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    given = {"files": ["a", "/b"], "batch": 2, "context": 3, "index": "c"}
    assert absolute({"preshuffled": given}) == {
        "preshuffled": {"files": [str(tmp_path / "a"), "/b"], "batch": 2, "context": 3, "index": str(tmp_path / "c")}
    }
