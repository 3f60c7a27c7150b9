"""provenance.json: what an average on disk was made of, exactly enough to make it again and to see that it is the same.

    average  kind  update  snapshots  accumulate  dtype  rounded     as every average of ours says
    inputs          oldest first: label, coefficient, step, repo, revision, commit, format, dtype, files
    policy  latest  dropped  tied                                   what became of tensors that are not averaged
    command  versions  commit  machine

The SHA-256 of an input's file is told where somebody knows it (`known_by`): the manifest of its directory, or the hub,
whose cache names files by it. Others are read once more only if that is asked for. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lawa.checkpoints.carry import PROVENANCE
from lawa.checkpoints.catalog import ITEMSIZE, Catalog
from lawa.checkpoints.publish import is_published, listed, sha256
from lawa.checkpoints.select import Found
from lawa.errors import LawaError
from lawa.offline.plan import Mean, Placed, Plan
from lawa.offline.policy import Policy
from lawa.records import provenance

Input = dict[str, Any]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_IN_CACHE = re.compile(r"/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(/|$)")


def inputs(
    catalogs: Sequence[Catalog],
    found: Sequence[Found] | None = None,
    *,
    digest: bool = False,
    threads: int = 1,
    done: Callable[[int, int], None] = lambda done, of: None,
) -> list[Input]:
    """What the inputs are, in their order; once for all averages that are made of them.

    found   the same ones as they were selected, which know their steps
    digest  read every file once more whose SHA-256 nobody has told, `threads` at a time
    done    called with how many files were read, and of how many
    """
    described = [_input(one, found[index] if found else None) for index, one in enumerate(catalogs)]
    if digest:
        unknown = [(path, file) for one, paths in described for path, file in zip(paths, one["files"], strict=True)]
        unknown = [(path, file) for path, file in unknown if "sha256" not in file]
        with ThreadPoolExecutor(threads) as pool:
            for number, computed in enumerate(pool.map(sha256, [path for path, _ in unknown])):
                unknown[number][1].update(sha256=computed, known_by="reading it")
                done(number + 1, len(unknown))
    return [one for one, _ in described]


def describe(
    plan: Plan,
    mean: Mean,
    described: Sequence[Input] | None = None,
    *,
    policy: Policy | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """The content of provenance.json for the output of `mean`.

    described  what `inputs` gave; default: without steps and without digests that have to be read
    command    what a person types to make it again
    """
    described = described or inputs(plan.catalogs)
    k = len(mean.inputs)
    weights = mean.coefficients or (1 / k,) * k
    chosen = [
        {"label": described[index]["label"], "coefficient": weight, **described[index]}
        for index, weight in zip(mean.inputs, weights, strict=True)
    ]
    steps = [one["step"] for one in chosen]
    averaged = [placed for placed in plan.tensors if placed.row.averaged]
    return {
        "average": mean.name or None,
        "kind": f"{k} checkpoints on disk, {'uniform' if mean.coefficients is None else 'weighted'}",
        "update": steps[-1],
        "snapshots": k if None in steps else steps,
        "accumulate": plan.accumulate,
        "dtype": sorted({placed.dtype for placed in averaged}),
        "rounded": any(_is_rounded(placed, mean, plan.accumulate) for placed in averaged),
        "inputs": chosen,
        "policy": asdict(policy) if policy else None,
        "latest": [placed.row.name for placed in plan.tensors if not placed.row.averaged],
        "dropped": plan.matched.dropped,
        "tied": plan.matched.tied,
        "command": command,
        **provenance(),
    }


def _is_rounded(placed: Placed, mean: Mean, accumulate: str) -> bool:
    """Whether the tensor is written in a dtype that does not hold its sum, or what some input has."""
    dtypes = {stored.dtype for index in mean.inputs if (stored := placed.row.stored[index])}
    if len(mean.inputs) > 1:  # the average of one is that one
        dtypes.add(accumulate)
    return any(dtype != placed.dtype and ITEMSIZE[dtype] >= ITEMSIZE[placed.dtype] for dtype in dtypes)


def _input(catalog: Catalog, found: Found | None) -> tuple[Input, list[Path]]:
    """What it is, and the paths of the files that it lists."""
    path = found.path if found else None
    files = list(catalog.sources) or catalog.files
    directory = path if path and path.is_dir() else files[0].parent
    told = _manifest(directory)
    described = {
        "label": catalog.label,
        "step": found.step if found else None,
        **_on_hub(files[0], found),
        "format": catalog.format,
        "dtype": sorted({stored.dtype for stored in catalog.tensors.values()}),
        "files": [_file(file, file.relative_to(directory).as_posix(), told) for file in files],
        **_made_of(directory),
    }
    return described, files


def _made_of(directory: Path) -> Mapping[str, Any]:
    """What an input that is an average itself says of itself."""
    try:
        told = json.loads((directory / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {"made_of": told} if isinstance(told, dict) else {}


def _file(file: Path, name: str, manifest: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    nbytes = file.stat().st_size
    described = {"name": name, "bytes": nbytes}
    told = manifest.get(name, {})
    if file.is_symlink() and _SHA256.fullmatch(blob := file.readlink().name):
        return {**described, "sha256": blob, "known_by": "hub"}
    if told.get("bytes") == nbytes and "sha256" in told:
        return {**described, "sha256": told["sha256"], "known_by": "manifest"}
    return described


def _manifest(directory: Path) -> Mapping[str, Mapping[str, Any]]:
    """Ours; other programs have files of that name, too."""
    try:
        return listed(directory) if is_published(directory) else {}
    except LawaError:
        return {}


def _on_hub(file: Path, found: Found | None) -> Mapping[str, str]:
    """Repo, revision and commit, as what was asked for and the hub's cache tell."""
    known: dict[str, str] = {}
    if found and found.repo:
        known = {"repo": found.repo.name} | ({"revision": found.repo.revision} if found.repo.revision else {})
    if cached := _IN_CACHE.search(file.absolute().as_posix()):
        known = {"repo": cached["repo"].replace("--", "/"), **known, "commit": cached["commit"]}
    return known
