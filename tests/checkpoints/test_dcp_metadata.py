"""DCP's metadata is a pickle: what it says is read, and nothing that it names is run."""

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from lawa.checkpoints.dcp_metadata import METADATA, check, read
from lawa.errors import LawaError
from lawa.pretrain.checkpoint import sharded
from lawa.pretrain.directory import WEIGHTS

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class Hostile:
    def __init__(self, done: Path):
        self.done = done

    def __reduce__(self):
        return os.mkdir, (str(self.done),)


def test_names_dtypes_and_shapes_are_those_that_torch_wrote(tmp_path):
    tensors = {"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros((), dtype=torch.int64)}
    dcp.save({"model": tensors}, checkpoint_id=tmp_path, no_dist=True)
    expected = {
        f"model.{name}": (str(one.dtype).removeprefix("torch."), tuple(one.shape)) for name, one in tensors.items()
    }
    assert read(tmp_path) == expected


def test_nothing_that_a_foreign_file_names_is_run(tmp_path):
    """As torch would: its reader unpickles whatever is there."""
    place, done = tmp_path / "checkpoint" / WEIGHTS, tmp_path / "done"
    place.mkdir(parents=True)
    (place / METADATA).write_bytes(pickle.dumps(Hostile(done)))
    with pytest.raises(LawaError, match=r"names posix\.mkdir, which torch DCP does not write there"):
        read(place)
    saved = sharded.SavedWeights(tmp_path)
    saved.directory = lambda step: tmp_path / "checkpoint"  # type: ignore[method-assign]
    with pytest.raises(LawaError, match="loading it could run anything"):
        saved.read(1, {"a": torch.zeros(2)})
    assert not done.exists()
    with pytest.raises(AttributeError):
        dcp.FileSystemReader(place).read_metadata().state_dict_metadata  # noqa: B018
    assert done.exists(), "the fault this test is about"


def test_values_that_are_no_tensors_are_refused(tmp_path):
    """DCP unpickles those, too, wherever a tensor of that name is asked for."""
    dcp.save({"model": {"a": torch.ones(3), "b": [1, 2]}}, checkpoint_id=tmp_path, no_dist=True)
    with pytest.raises(LawaError, match=r"lists 'model\.b.*', which is no tensor"):
        check(tmp_path)
    assert read(tmp_path) == {"model.a": ("float32", (3,))}


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps([1, 2])])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / METADATA).write_bytes(content)
    with pytest.raises(LawaError, match=r"\.metadata is no metadata of torch DCP .*; it is damaged"):
        read(tmp_path)
    (tmp_path / METADATA).unlink()
    with pytest.raises(LawaError, match=r"\.metadata cannot be read"):
        read(tmp_path)
