"""The batches of a run's updates on this machine: fetched as far as they are needed, in the run's own order. No torch.

preshuffled   the bytes of the updates that are asked for, out of all files, in one file
chunks        the chunks that hold them, whole
documents     everything: a sample may be anywhere in the text
run, local    nothing: it is there
indices       nothing: OLMo's token files and order are on no hub; they are named by hand (--batches)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lawa.data.batches import Batches, absolute, open_batches
from lawa.errors import LawaError
from lawa.trajectories.ranges import Arrived, fetch_files, fetch_ranges
from lawa.trajectories.trajectory import Trajectory

PLACE = "lawa-batches"  # in the working folder, where no other is named


def batches_for(
    trajectory: Trajectory, updates: range, *, place: Path | None = None, offline: bool = False,
    arrived: Arrived = lambda nbytes: None,
) -> Batches:  # fmt: skip
    """The batches of these updates, opened; settings_for() says what is fetched, and where."""
    return open_batches(settings_for(trajectory, updates, place=place, offline=offline, arrived=arrived))


def settings_for(
    trajectory: Trajectory, updates: range, *, place: Path | None = None, offline: bool = False,
    arrived: Arrived = lambda nbytes: None,
) -> dict[str, Any]:  # fmt: skip
    """{KIND: settings} as data.batches takes them, of files on this machine; what lacks is fetched.

    updates  those whose batches are wanted, ascending
    place    the folder for what is cut out of larger files; default: PLACE
    offline  nothing is asked of the hub

    Raises LawaError where the data is not known, not on the hub, or ends before.
    """
    if trajectory.data is None or "kind" not in trajectory.data:
        raise LawaError(
            f"the data of {trajectory.name} is not known; name it yourself (--batches), or choose another trajectory"
        )
    if not updates or updates[0] < 1:
        raise LawaError(f"updates {updates} are none; the first update of a run is 1")
    told = dict(trajectory.data)
    kind = told.pop("kind")
    if "repo" not in told:
        if kind == "indices" and "global_indices" not in told:
            raise LawaError(
                f"the order of {trajectory.name} is on no hub; fetch its token files and global_indices "
                "(docs/branching.md), and name them with --batches"
            )
        return absolute({kind: told})
    fetch = _FETCH.get(kind)
    if fetch is None:
        raise LawaError(f"batches of kind {kind!r} are not fetched; name local ones with --batches")
    own = {
        "batch": trajectory.batch,
        "context": told.pop("context", trajectory.context),
        "vocab_size": trajectory.vocab_size,
    }
    at = {"revision": told.pop("revision", None), "offline": offline, "arrived": arrived}
    return absolute({kind: {**own, **fetch(told, own, updates, place or Path(PLACE), at)}})


def _preshuffled(
    told: dict[str, Any], own: Mapping[str, Any], updates: range, place: Path, at: Mapping[str, Any]
) -> dict[str, Any]:
    dtype = told.get("dtype", "uint16")
    row = (own["context"] + 1) * np.dtype(dtype).itemsize
    first, last = (updates[0] - 1) * own["batch"], updates[-1] * own["batch"]
    into = place / f"sequences-{first}-{last}.bin"
    fetch_ranges(told["repo"], told["files"], first * row, last * row, into, **at)
    return {"files": [str(into)], "dtype": dtype, "first": first}


def _chunks(
    told: dict[str, Any], own: Mapping[str, Any], updates: range, place: Path, at: Mapping[str, Any]
) -> dict[str, Any]:
    from lawa.data.chunks import chunks_of, k2_order

    repo, names, order = told.pop("repo"), told.pop("files"), told.pop("order", None)
    if order == "k2":
        order = k2_order()
    rules = {name: told[name] for name in ("examples", "drop_tail") if name in told}
    numbers = chunks_of(updates, batch=own["batch"], order=order, **rules)
    if beyond := [number for number in numbers if number >= len(names)]:
        raise LawaError(f"{repo} has {len(names)} chunks, and chunk {beyond[0]} was asked for; ask for fewer updates")
    paths = fetch_files(repo, [names[number] for number in numbers], **at)
    files = {str(number): str(paths[names[number]]) for number in numbers}
    return {**told, "files": files, "cache": str(place), **({"order": order} if order else {})}


def _documents(
    told: dict[str, Any], own: Mapping[str, Any], updates: range, place: Path, at: Mapping[str, Any]
) -> dict[str, Any]:
    text = told["tokens"]
    maps = {name: told[name] for name in ("doc_idx", "sample_idx", "shuffle_idx")}
    found = {name: _only(fetch_files(told["repo"], [pattern], **at)) for name, pattern in maps.items()}
    files = fetch_files(text["repo"], [*text["files"], text["index"]], **at)
    return {
        **{name: str(path) for name, path in found.items()},
        "files": [str(files[name]) for name in text["files"]],
        "index": str(files[text["index"]]),
    }


def _only(found: Mapping[str, Path]) -> Path:
    if len(found) != 1:
        raise LawaError(f"{', '.join(found)}: one file was meant; name it whole in a YAML file of your own")
    return next(iter(found.values()))


_Fetch = Callable[[dict[str, Any], Mapping[str, Any], range, Path, Mapping[str, Any]], dict[str, Any]]
_FETCH: dict[str, _Fetch] = {"preshuffled": _preshuffled, "chunks": _chunks, "documents": _documents}
