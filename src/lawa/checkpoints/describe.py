"""What a checkpoint of any format, a folder of checkpoints or a repo on the hub holds, from headers alone.

No torch but for the formats that only torch can read; nothing is fetched of a repo but its safetensors' headers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lawa.checkpoints import dcp_metadata, formats, hub
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.select import Found, checkpoints_in, has_weights, step_of

_DCP_PLACES = (".", "weights", "pytorch_model_fsdp_0")
_OPTIMIZER = ("optimizer", "optim", "optimizer_states")


def checkpoint(path: Path) -> dict[str, Any]:
    """format, tensors, parameters and dtypes {dtype: elements} of the checkpoint at `path`, a directory or a file.

    The three are None where they are known only once it is loaded whole. Raises LawaError for what is not recognised
    or damaged.
    """
    form = formats.look(path)
    if form.name == "dcp":
        return {"format": form.name, **_counted(_of_dcp(path))}
    if form.whole:
        return {"format": form.name, **_UNKNOWN}
    try:
        catalog = formats.catalog(path, scratch=_refuse)
    except _Spooled:
        return {"format": form.name, **_UNKNOWN}
    return {"format": form.name, **_counted(_of_catalog(catalog))}


def folder(path: Path) -> dict[str, Any] | None:
    """The checkpoints by step in `path`, under "kind": "trajectory", the latest one described; None where there are
    none, or it is a checkpoint itself."""
    found = [] if has_weights(path) else checkpoints_in(path)
    if not found:
        return None
    return {
        "kind": "trajectory",
        "path": str(path),
        "checkpoints": [_listed(one) for one in found],
        "latest": checkpoint(_path(found[-1])),
    }


def repo(given: hub.Repo, *, offline: bool = False) -> dict[str, Any]:
    """A revision on the hub, under "kind": "repo": its commit, what would be fetched, and its tensors where their
    headers can be read; without a revision `main`, and which steps the others are of."""
    listed = [] if given.revision else hub.revisions(given, offline=offline)
    pinned = hub.pin(hub.Repo(given.name, given.revision or "main"), offline=offline)
    headers = hub.headers(pinned)
    if pinned.cached is not None:
        held = checkpoint(pinned.cached)
    elif headers is not None:
        held = {"format": "hf", **_counted(headers)}
    else:
        held = {"format": None, **_UNKNOWN}
    return {
        "kind": "repo",
        "repo": given.name,
        "revision": pinned.repo.revision,
        "commit": pinned.commit,
        "cached": str(pinned.cached) if pinned.cached else None,
        "files": dict(pinned.files),
        "bytes": pinned.nbytes,
        "steps": sorted(step for name in listed if (step := step_of(name)) is not None),
        **held,
    }


_UNKNOWN = {"tensors": None, "parameters": None, "dtypes": None}


def _counted(tensors: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Of (dtype, elements)."""
    listed = list(tensors)
    elements: Counter[str] = Counter()
    for dtype, number in listed:
        elements[dtype] += number
    return {"tensors": len(listed), "parameters": sum(elements.values()), "dtypes": dict(elements)}


def _of_catalog(catalog: Catalog) -> list[tuple[str, int]]:
    """Tied ones once."""
    return [(stored.dtype, stored.numel) for stored in dict.fromkeys(catalog.tensors.values())]


def _of_dcp(path: Path) -> list[tuple[str, int]]:
    place = next(path / name for name in _DCP_PLACES if (path / name / dcp_metadata.METADATA).is_file())
    found = dcp_metadata.read(place)
    return [
        (dtype, _numel(shape)) for name, (dtype, shape) in found.items() if name.partition(".")[0] not in _OPTIMIZER
    ]


def _numel(shape: Iterable[int]) -> int:
    number = 1
    for size in shape:
        number *= size
    return number


def _listed(found: Found) -> dict[str, Any]:
    path = _path(found)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {"step": found.step, "path": str(path), "bytes": sum(file.stat().st_size for file in files)}


def _path(found: Found) -> Path:
    assert found.path is not None  # it lies in a folder
    return found.path


class _Spooled(Exception):
    """Its tensors have no places of their own."""


def _refuse() -> Path:
    raise _Spooled
