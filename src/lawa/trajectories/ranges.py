"""Bytes of data sets on the hub: a stretch of files one behind the other, and whole files. No torch.

Pythia's preshuffled Pile is 21 files of 30 GB; 2000 updates of it are 8 GB, which may lie in two of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from lawa.checkpoints import hub, hub_parts
from lawa.checkpoints.hub_cache import Pinned
from lawa.checkpoints.hub_client import Repo, Unreachable
from lawa.checkpoints.hub_parts import Part
from lawa.checkpoints.publish import sha256
from lawa.errors import LawaError
from lawa.records import read_json, write_json

_BLOCK = 1 << 20  # bytes

Arrived = Callable[[int], None]  # bytes, as they come


def fetch_ranges(
    repo: str,
    files: Sequence[str],
    start: int,
    stop: int,
    into: Path,
    *,
    repo_type: str = "dataset",
    revision: str | None = None,
    offline: bool = False,
    arrived: Arrived = lambda nbytes: None,
) -> Path:
    """Write bytes start … stop of the repo's `files`, one behind the other, to the file `into`.

    files    names in their order; of those that are whole in huggingface_hub's cache, the bytes come from there
    arrived  called with bytes as they come, from several threads

    The revision is pinned to the commit that it has when the first byte is asked for; a call that goes on where
    another was stopped, or killed, keeps to it. Beside `into` lies INTO.json with what was asked for, the commit, the
    files' sizes and the SHA-256 of what was written: the same request is recognised by it and asks the hub nothing,
    another one is refused.

    Raises LawaError where the files end before `stop`, for a disk without room, before anything is fetched, and for a
    hub that cannot be reached, or sends files of other sizes than it tells of: what was fetched stays for the next
    call.
    """
    if not 0 <= start < stop:
        raise LawaError(f"bytes {start} … {stop} of {repo} are none; ask for a stretch that has some")
    asked = {"repo": repo, "type": repo_type, "revision": revision, "files": list(files), "start": start, "stop": stop}
    if _is_there(into, asked):
        arrived(stop - start)
        return into
    partial = into.with_name(f".{into.name}.partial")
    into.parent.mkdir(parents=True, exist_ok=True)
    before = hub_parts.told(partial) or {}
    if {key: before.get(key) for key in asked} == asked:
        known = Repo(repo, before["commit"], repo_type)
        pinned = Pinned(known, before["commit"], before["sizes"])
    else:
        pinned = hub.pin(Repo(repo, revision, repo_type), only=files, offline=offline)
    request = {**asked, "commit": pinned.commit, "sizes": {name: pinned.files[name] for name in files}}
    wanted = hub_parts.parts(_spans(pinned, files, start, stop))
    _check_room(into, wanted, hub_parts.written(partial, request, stop - start))
    try:
        hub_parts.fill(
            partial, wanted, request=request, read=lambda part: _read(pinned, part, offline=offline), arrived=arrived
        )
    except Unreachable as away:
        raise LawaError(f"{away}; what was fetched of {repo} is kept: try again") from None
    write_json(_manifest(into), {**request, "sha256": sha256(partial)})
    hub_parts.publish(partial, into)
    return into


def fetch_files(
    repo: str,
    names: Sequence[str],
    *,
    repo_type: str = "dataset",
    revision: str | None = None,
    offline: bool = False,
    arrived: Arrived = lambda nbytes: None,
) -> dict[str, Path]:
    """{name: its path in huggingface_hub's cache} of whole files; `names` may be patterns, each of which has to name
    some. Pinned, verified and gone on with as checkpoints are."""
    pinned = hub.pin(Repo(repo, revision, repo_type), only=names, offline=offline)
    [folder] = hub.fetch_all([pinned], arrived=arrived)
    return {name: folder / name for name in pinned.files}


def _is_there(into: Path, asked: Mapping[str, Any]) -> bool:
    """Whether `into` is what is asked for; LawaError where it is something else."""
    if not into.exists():
        return False
    known = read_json(_manifest(into)) if _manifest(into).is_file() else {}
    if {key: known.get(key) for key in asked} == asked and into.stat().st_size == asked["stop"] - asked["start"]:
        return True
    held = f"bytes {known['start']} … {known['stop']} of {known['repo']}" if "start" in known else "nothing known here"
    raise LawaError(f"{into} exists already and holds {held}; remove it, or choose another place")


def _spans(pinned: Pinned, files: Sequence[str], start: int, stop: int) -> list[tuple[str, int, int]]:
    """(file, from, to) of the bytes start … stop of all files together."""
    ends = list(accumulate(pinned.files[name] for name in files))
    if not ends or stop > ends[-1]:
        raise LawaError(
            f"{pinned.repo}: its {len(files)} files have {ends[-1] if ends else 0} bytes together, and byte {stop} was "
            "asked for; name all of them, or ask for fewer"
        )
    begins = [0, *ends[:-1]]
    return [
        (name, max(start, first) - first, min(stop, end) - first)
        for name, first, end in zip(files, begins, ends, strict=True)
        if max(start, first) < min(stop, end)
    ]


def _read(pinned: Pinned, part: Part, *, offline: bool) -> Iterator[bytes]:
    """From the cache where the whole file is there, else from the hub."""
    size, cached = pinned.files[part.name], pinned.folder / part.name
    if cached.is_file() and cached.stat().st_size == size:
        return _read_file(cached, part)
    if hub.is_offline(offline):
        raise LawaError(f"{pinned.repo}: {part.name} is not in the cache, and the hub is not asked")
    return hub_parts.read(pinned.repo, pinned.commit, part, size)


def _read_file(file: Path, part: Part) -> Iterator[bytes]:
    with file.open("rb") as opened:
        opened.seek(part.start)
        for at in range(part.start, part.stop, _BLOCK):
            yield opened.read(min(_BLOCK, part.stop - at))


def _check_room(into: Path, wanted: Sequence[Part], there: set[int]) -> None:
    needed = sum(part.stop - part.start for number, part in enumerate(wanted) if number not in there)
    free = shutil.disk_usage(into.parent).free
    if needed > free:
        raise LawaError(
            f"{into.parent} has {free / 1e9:.1f} GB of room, and {into.name} needs {needed / 1e9:.1f} GB; choose "
            "another place"
        )


def _manifest(into: Path) -> Path:
    return into.with_name(f"{into.name}.json")
