"""torch DCP directories: our sharded runs, FSDP2 scripts, torchtitan, Megatron's torch_dist. No torch unless needed.

Read tensor by tensor through DCP's own reader, after the pickle of its metadata was looked through (dcp_metadata).
Objects beside the tensors would be unpickled, so nobody asks for them; the optimizer's tensors are left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lawa.averaging.matching import canonical_names
from lawa.checkpoints import dcp_metadata
from lawa.checkpoints.carry import home_of
from lawa.checkpoints.catalog import ITEMSIZE, Catalog, Stored
from lawa.checkpoints.formats.form import Format, Scratch, Tensors
from lawa.checkpoints.publish import refuse_outside
from lawa.errors import LawaError

_PLACES = (".", "weights", "pytorch_model_fsdp_0")  # in our runs' checkpoints; in accelerate's
_MODEL = ("model", "state_dict", "module", "model_state_dict")
_NO_WEIGHTS = {"optimizer", "optim", "optimizers", "optimizer_states"}

Way = tuple[str, ...]  # the keys to a tensor in what was saved


def find(directory: Path) -> Format | None:
    place = _place(directory)
    return Format("dcp", False, partial(_read, place)) if place else None


def foreseen(directory: Path, *, label: str | None = None) -> Catalog:
    """What reading the checkpoint in `directory` will give, told by its metadata; at places that hold nothing yet."""
    place = _place(directory)
    assert place is not None  # it was found
    held = dcp_metadata.read(place)
    names = _weights(place, held, dcp_metadata.ways(place))
    own = canonical_names(names.values(), where=str(directory))
    tensors: dict[str, Stored] = {}
    offset = 0
    for stored, name in names.items():
        tensors[own[name]] = Stored(place / dcp_metadata.METADATA, offset, *held[stored])
        offset += tensors[own[name]].nbytes
    return Catalog(label=label or str(directory), directory=home_of(directory), format="dcp", tensors=tensors)


def _read(directory: Path, scratch: Scratch) -> Tensors:
    from torch.distributed.checkpoint import FileSystemReader

    from lawa.checkpoints.formats.spool import spool

    held = dcp_metadata.read(directory)
    metadata = FileSystemReader(directory).read_metadata()
    _check_files(directory, metadata)
    names = _weights(directory, held, metadata.planner_data or {})
    wanted = {stored: held[stored] for stored in names}
    nbytes = sum(math.prod(shape) * ITEMSIZE[dtype] for dtype, shape in wanted.values())
    tensors = ((names[stored], tensor) for stored, tensor in _tensors(directory, metadata, wanted))
    return Tensors(spool(directory, tensors, nbytes, scratch))


def _place(directory: Path) -> Path | None:
    return next((directory / name for name in _PLACES if (directory / name / dcp_metadata.METADATA).is_file()), None)


def _tensors(directory: Path, metadata: Any, wanted: dcp_metadata.Tensors) -> Iterator[tuple[str, Any]]:
    import torch
    from torch.distributed import checkpoint

    class Reader(checkpoint.FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            return metadata

    for stored, (dtype, shape) in wanted.items():
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
                checkpoint.load({stored: tensor}, storage_reader=Reader(directory), no_dist=True)
        except (Exception, checkpoint.CheckpointException) as bad:  # whatever DCP meets in a damaged file
            said = str(bad).strip().split("\n")[-1][:200]
            raise LawaError(f"{directory}: torch DCP cannot read {stored!r} ({said}); is it complete?") from None
        yield stored, tensor


def _check_files(directory: Path, metadata: Any) -> None:
    """Raise for a file that the metadata names and that is missing, cut off or outside of `directory`."""
    sizes: dict[str, int] = {}
    for part in (metadata.storage_data or {}).values():
        file = directory / part.relative_path
        if part.relative_path not in sizes:
            refuse_outside(part.relative_path, directory / dcp_metadata.METADATA)
            if not file.is_file():
                raise LawaError(f"{directory} lacks {part.relative_path!r}, which its metadata lists; fetch it again")
            sizes[part.relative_path] = file.stat().st_size
        if part.offset + part.length > sizes[part.relative_path]:
            raise LawaError(
                f"{file} ends before the last of what its metadata places in it; it was cut off: fetch it again"
            )


def _weights(directory: Path, held: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, str]:
    """{name in the checkpoint: the tensor's own name} of the model's tensors.

    DCP writes down where in the saved dictionary each tensor was, so that ("model", "norm.weight") of {"model": …} and
    ("model.norm.weight",) of a bare state dict are told apart.
    """
    groups: dict[Way, dict[str, str]] = {}
    for name in held:
        path = tuple(map(str, paths.get(name, (name,))))
        if not _NO_WEIGHTS.intersection(part for step in path for part in step.split(".")):
            under, own = _split(path)
            groups.setdefault(under, {})[name] = own
    models = [under for under in groups if under and under[-1] in _MODEL]
    if len(models) == 1:
        return groups[models[0]]
    if not models and (() in groups or len(groups) == 1):
        return groups.get((), {}) or next(iter(groups.values()))
    under = ", ".join(sorted(".".join(one) or "(bare)" for one in groups)) or "no tensors"
    raise LawaError(f"{directory}: which tensors are the model's? Under 'model' or bare was expected; it has {under}")


def _split(path: Way) -> tuple[Way, str]:
    """(the way to the state dict, the tensor's name in it)."""
    for at in range(1, min(3, len(path))):
        if path[at - 1] in _MODEL:
            return path[:at], ".".join(path[at:])
    return path[:-1], path[-1]
