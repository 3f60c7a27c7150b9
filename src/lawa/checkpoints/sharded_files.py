"""safetensors files of a model that no process has whole.

Each rank writes its shards with torch DCP; then each rank puts some of the files together, tensor by tensor. So a
rank needs memory for its part of one file, and for the largest tensor twice: never for the model.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import Tensor, distributed

from lawa.averaging.layout import local
from lawa.checkpoints.catalog import INDEX
from lawa.checkpoints.together import from_first, on_all, rank
from lawa.errors import LawaError

Names = list[str]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a rank has only a part of it."""
    return not all(placement.is_replicate() for placement in getattr(tensor, "placements", ()))


def write(directory: Path, tensors: Mapping[str, Tensor], max_bytes: int) -> None:
    """Write `tensors` into `directory`: model.safetensors, or several files of `max_bytes` and their index.

    Where one is sharded all ranks call, and `directory` exists. Raises what fails on any rank on all of them.
    """
    by_all = {name: tensor for name, tensor in tensors.items() if _dcp_writes(tensor)}
    if not any(map(is_sharded, by_all.values())):
        by_all = {}
    by_first = {name: tensor for name, tensor in tensors.items() if name not in by_all}
    files = [*_split(by_all, max_bytes), *_split(by_first, max_bytes)]
    named = {_file_name(number, len(files)): names for number, names in enumerate(files, start=1)}

    def finish() -> None:
        for file, names in named.items():
            if names[0] in by_first:
                whole = {name: local(tensors[name]).cpu().contiguous() for name in names}
                save_file(whole, directory / file, metadata={"format": "pt"})
        if len(named) > 1:
            _write_index(directory, named, tensors)

    if by_all:
        _write_shards(directory, {file: names for file, names in named.items() if names[0] in by_all}, by_all)
        from_first(finish)
    else:
        finish()


def _dcp_writes(tensor: Tensor) -> bool:
    """torch 2.13 puts together no integers, and zeros for a scalar; these are small, and whole on every rank."""
    return is_sharded(tensor) or (tensor.ndim > 0 and tensor.is_floating_point())


def _write_shards(directory: Path, files: Mapping[str, Names], tensors: Mapping[str, Tensor]) -> None:
    consolidate = _consolidation()
    shards, parts = directory / "shards", directory / f"consolidated-{rank()}"
    number = {name: at for at, names in enumerate(files.values(), start=1) for name in names}
    writer = dcp.HuggingFaceStorageWriter(str(shards), fqn_to_index_mapping=number, save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)

    def put_together() -> None:
        parts.mkdir()
        for file, names in list(files.items())[rank() :: distributed.get_world_size()]:
            consolidate(str(shards), str(parts), dict.fromkeys(names, 1))
            (parts / "model-00001-of-00001.safetensors").rename(directory / file)
        shutil.rmtree(parts)

    on_all(put_together)
    from_first(lambda: shutil.rmtree(shards))


def _consolidation() -> Callable[[str, str, dict[str, int]], None]:
    try:
        from torch.distributed.checkpoint._consolidate_hf_safetensors import consolidate_safetensors_files
    except ImportError:
        raise LawaError("exporting a sharded model needs torch 2.8 or later; install it") from None
    return consolidate_safetensors_files


def _split(tensors: Mapping[str, Tensor], max_bytes: int) -> list[Names]:
    """Names in the model's order, in files of at most `max_bytes`; a larger tensor has one of its own."""
    files: list[Names] = []
    room = 0
    for name, tensor in tensors.items():
        size = _nbytes(tensor)
        if not files or size > room:
            files.append([])
            room = max_bytes
        files[-1].append(name)
        room -= size
    return files


def _file_name(number: int, of: int) -> str:
    return "model.safetensors" if of == 1 else f"model-{number:05d}-of-{of:05d}.safetensors"


def _write_index(directory: Path, files: Mapping[str, Iterable[str]], tensors: Mapping[str, Tensor]) -> None:
    index: dict[str, Any] = {
        "metadata": {"total_size": sum(map(_nbytes, tensors.values()))},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _nbytes(tensor: Tensor) -> int:
    """Of all of it, on all ranks together."""
    return math.prod(tensor.shape) * tensor.dtype.itemsize
