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
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lawa.checkpoints.catalog import ITEMSIZE, Catalog
from lawa.checkpoints.publish import is_published, listed, sha256
from lawa.checkpoints.select import Found
from lawa.errors import LawaError
from lawa.offline.plan import Mean, Plan
from lawa.offline.policy import Policy
from lawa.records import provenance

PROVENANCE = "provenance.json"
Input = dict[str, Any]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_IN_CACHE = re.compile(r"/models--(?P<repo>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})(/|$)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".distcp", ".metadata")


def inputs(
    catalogs: Sequence[Catalog], found: Sequence[Found] | None = None, *, digest: bool = False, threads: int = 1
) -> list[Input]:
    """What the inputs are, in their order; once for all averages that are made of them.

    found   the same ones as they were selected, which know their steps, and their files where those were put together
    digest  read every file once more whose SHA-256 nobody has told, `threads` at a time
    """
    described = [_input(one, found[index] if found else None) for index, one in enumerate(catalogs)]
    if digest:
        unknown = [(path, file) for one, paths in described for path, file in zip(paths, one["files"], strict=True)]
        unknown = [(path, file) for path, file in unknown if "sha256" not in file]
        with ThreadPoolExecutor(threads) as pool:
            digests = list(pool.map(sha256, [path for path, _ in unknown]))
        for (_, file), computed in zip(unknown, digests, strict=True):
            file |= {"sha256": computed, "known_by": "reading it"}
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
        "rounded": any(_is_narrower(placed.dtype, [placed.row.stored[i] for i in mean.inputs]) for placed in averaged),
        "inputs": chosen,
        "policy": asdict(policy) if policy else None,
        "latest": [placed.row.name for placed in plan.tensors if not placed.row.averaged],
        "dropped": plan.matched.dropped,
        "tied": plan.matched.tied,
        "command": command,
        **provenance(),
    }


def _is_narrower(dtype: str, stored: Sequence[Any]) -> bool:
    """Whether some input has the tensor in a dtype that `dtype` does not hold."""
    return any(one.dtype != dtype and (ITEMSIZE[one.dtype] >= ITEMSIZE[dtype]) for one in stored)


def _input(catalog: Catalog, found: Found | None) -> tuple[Input, list[Path]]:
    """What it is, and the paths of the files that it lists."""
    path = found.path if found else None
    files = _files(catalog, path)
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


def _files(catalog: Catalog, path: Path | None) -> list[Path]:
    """Those that its tensors lie in; of an input that was put together elsewhere, those that it was put together of."""
    if path is not None and path.is_file():
        return [path]
    if path is None or all(file.is_relative_to(path) for file in catalog.files):
        return catalog.files
    return sorted(_below(path)) or catalog.files


def _below(directory: Path) -> Iterator[Path]:
    for entry in directory.iterdir():
        if entry.is_dir():
            if not is_published(entry):  # one by itself: what a run needs to go on, and no weights
                yield from _below(entry)
        elif entry.name.endswith(_WEIGHTS):
            yield entry


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
