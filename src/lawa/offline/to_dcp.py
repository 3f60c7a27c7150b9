"""A written Hugging Face directory's weights as torch DCP instead, as our sharded runs have them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import Tensor

from lawa.checkpoints.catalog import INDEX
from lawa.errors import LawaError
from lawa.offline.card import DCP


def to_dcp(directory: Path, files: Sequence[str], *, verify: bool = False) -> None:
    """Replace the safetensors `files` of `directory`, and their index, by DCP's in weights/ (under "model").

    verify  read it back and compare it with them, byte by byte

    One process, which maps the files and holds one copy of the weights at most. Where it was killed it can be called
    again: the files go when weights/ is whole. Raises LawaError for what DCP cannot write or reads back otherwise.
    """
    whole, partial = directory / DCP, directory / f".{DCP}.partial"
    if not whole.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        with _sentences(f"the weights cannot be written as torch DCP in {directory}", "make room there"):
            dcp.save({"model": dict(_tensors(directory, files))}, checkpoint_id=partial, no_dist=True)
        partial.rename(whole)
    if verify:
        for name, tensor in _tensors(directory, files):
            _check(whole, name, tensor)
    for file in (*files, INDEX):
        (directory / file).unlink(missing_ok=True)


def _tensors(directory: Path, files: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        if (directory / file).is_file():  # a killed conversion has removed the others, which were converted
            yield from load_file(directory / file).items()


def _check(weights: Path, name: str, tensor: Tensor) -> None:
    read = torch.empty_like(tensor)
    with _sentences(f"tensor {name!r} of {weights} cannot be read back", "average again"):
        dcp.load({"model": {name: read}}, checkpoint_id=weights, no_dist=True)
    if not torch.equal(_bytes(read), _bytes(tensor)):
        raise LawaError(f"tensor {name!r} of {weights} has other bytes than were written; do not use it: average again")


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


@contextmanager
def _sentences(what: str, way_out: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            yield
    except (Exception, dcp.CheckpointException) as failed:  # whatever DCP meets
        said = str(failed).strip().split("\n")[-1][:200]
        raise LawaError(f"{what} ({said}); {way_out}, or choose another --output") from None
