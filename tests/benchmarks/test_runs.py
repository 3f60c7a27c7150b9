"""The benchmarks of whole runs measure what they say: the checkpoint's own tensors, and a store of that length."""

import importlib

import pytest
import torch
from safetensors import safe_open

from lawa.data.sources import NAMELESS, TextSource
from lawa.data.store import build, open_store
from lawa.pretrain.directory import TRAINING, latest


@pytest.fixture
def load(benchmark_modules):
    return importlib.import_module


def nbytes(file):
    with safe_open(file, framework="pt") as tensors:
        return sum(tensors.get_tensor(name).nbytes for name in tensors.keys())  # noqa: SIM118  (no mapping)


def test_the_limit_of_a_checkpoint_copies_what_the_checkpoint_adds_to_the_disk(load, tmp_path):
    checkpoint = load("checkpoint")
    with checkpoint.steady(checkpoint._config(tmp_path, checkpoint.TINY, "none"), tmp_path / "run") as run:
        written = run.save()
        update, directory = latest(tmp_path / "run")
        assert update == run.loop.position.update == checkpoint.WINDOW + 1
        snapshots = sorted((directory / TRAINING / "snapshots").iterdir())
        assert [int(file.stem) for file in snapshots] == list(range(2, checkpoint.WINDOW + 2))
        assert [file.stat().st_nlink for file in snapshots] == [2] * (checkpoint.WINDOW - 1) + [1]
        new = [
            directory / "model.safetensors",
            directory / TRAINING / "optimizer.safetensors",
            snapshots[-1],
        ]
        assert sum(tensor.nbytes for tensor in run.state) == sum(map(nbytes, new))
        assert 0 < run.stalls[-1] < written
        run.copy()
        assert all(map(torch.equal, run._copies, run.state))


def test_a_checkpoint_that_is_not_whole_is_found(load, tmp_path):
    checkpoint = load("checkpoint")
    with checkpoint.steady(checkpoint._config(tmp_path, checkpoint.TINY, "none"), tmp_path / "run") as run:
        assert checkpoint._whole(run.loop) == ""
        run._capture()
        assert checkpoint._whole(run.loop) == "there is none of update 11"
        run.save()
        with (latest(tmp_path / "run")[1] / TRAINING / "optimizer.safetensors").open("ab") as file:
            file.write(b"!")
        assert "optimizer.safetensors" in checkpoint._whole(run.loop)


def test_a_store_is_lengthened_by_a_hole(load, tmp_path):
    start, texts = load("start"), load("texts")
    source = {NAMELESS: TextSource(paths=[str(texts.small_corpus(tmp_path))])}
    few = build(tmp_path / "few", sources=source, validation_fraction=0.1, tokenizer=None, vocab_size=300)
    start.lengthened(few.path, tmp_path / "many", start.TOKENS)
    many = open_store(tmp_path / "many")
    ids, first = many.train[NAMELESS], few.train[NAMELESS]
    assert len(ids) == many.train_tokens == start.TOKENS
    assert (ids[: len(first)] == first).all()
    assert not ids[len(first) : 2 * len(first)].any()
    assert not ids[-1000:].any()
    assert (tmp_path / "many" / "train" / f"{NAMELESS}.bin").stat().st_blocks * 512 < 1e6
    assert open_store(few.path).train_tokens == few.train_tokens == len(first)
