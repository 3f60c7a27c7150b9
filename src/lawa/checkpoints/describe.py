"""What a checkpoint of any format, a folder of checkpoints or a repo on the hub holds, from headers alone.

No torch but for the formats that only torch can read; nothing is fetched of a repo but its safetensors' headers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from lawa.checkpoints import formats, hub
from lawa.checkpoints.catalog import Catalog, Stored
from lawa.checkpoints.named import named
from lawa.checkpoints.select import Found, checkpoints_in, has_weights, is_one, step_of
from lawa.checkpoints.sources import nbytes_of


def checkpoint(path: Path) -> dict[str, Any]:
    """Of the checkpoint at `path`, a directory or a file: its format, how many tensors and parameters it has, dtypes
    {dtype: elements}, and the listing of its tensors: name (as options and averages have it), dtype, shape.

    All but the format are None where they are known only once it is loaded whole. Raises LawaError for what is not
    recognised or damaged, and for a DCP directory of which it cannot be told what the model's tensors are.
    """
    form = formats.look(path)
    catalog = formats.foreseen(path)
    return {"format": form.name, **(_of_catalog(named(catalog)) if catalog else _UNKNOWN)}


def folder(path: Path) -> dict[str, Any] | None:
    """The checkpoints by step in `path`, under "kind": "trajectory", the latest one described; None where there are
    none, or it is a checkpoint itself."""
    found = [] if has_weights(path) else checkpoints_in(path)
    if not found or is_one(path, found):
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
    hub.check_client(given)
    listed = [] if given.revision else hub.revisions(given, offline=offline)
    pinned = hub.pin(hub.Repo(given.name, given.revision or "main"), offline=offline)
    if pinned.cached is not None:
        held = checkpoint(pinned.cached)
    elif (headers := hub.headers(pinned)) is not None:
        held = {"format": "hf", **_told(headers)}
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


_UNKNOWN = {"tensors": None, "parameters": None, "dtypes": None, "listing": None}


def _told(tensors: Mapping[str, tuple[str, tuple[int, ...]]], tied: Container[str] = ()) -> dict[str, Any]:
    """Of {name: (dtype, shape)}; names of other tensors (`tied`) are listed, and not counted."""
    elements: Counter[str] = Counter()
    own = [name for name in tensors if name not in tied]
    for dtype, shape in (tensors[name] for name in own):
        elements[dtype] += math.prod(shape)
    return {
        "tensors": len(own),
        "parameters": sum(elements.values()),
        "dtypes": dict(elements),
        "listing": [{"name": name, "dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in tensors.items()],
    }


def _of_catalog(catalog: Catalog) -> dict[str, Any]:
    first: dict[Stored, str] = {}
    tied = {name for name, stored in catalog.tensors.items() if first.setdefault(stored, name) != name}
    return _told({name: (stored.dtype, stored.shape) for name, stored in catalog.tensors.items()}, tied)


def _listed(found: Found) -> dict[str, Any]:
    path = _path(found)
    return {"step": found.step, "path": str(path), "bytes": nbytes_of(path)}


def _path(found: Found) -> Path:
    assert found.path is not None  # it lies in a folder
    return found.path
