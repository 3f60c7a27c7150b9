"""A written Hugging Face directory's weights as torch DCP instead, as our sharded runs have them."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

WEIGHTS = "weights"


def to_dcp(directory: Path, files: Sequence[str]) -> None:
    """Replace the safetensors `files` of `directory`, and their index, by DCP's in weights/ (under "model").

    One process, which maps the files and holds one copy of the weights at most. Where it was killed it can be called
    again: the files go when weights/ is whole.
    """
    whole, partial = directory / WEIGHTS, directory / f".{WEIGHTS}.partial"
    if not whole.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        tensors = {name: tensor for file in files for name, tensor in load_file(directory / file).items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            dcp.save({"model": tensors}, checkpoint_id=partial, no_dist=True)
        partial.rename(whole)
    for file in (*files, "model.safetensors.index.json"):
        (directory / file).unlink(missing_ok=True)
