"""A pinned revision into huggingface_hub's cache. No torch.

Files that the hub keeps by their SHA-256 come into the cache when they have it, and never before; so what is there
under its digest need not be read again. Of other files, which are small, the size is looked at. The cache is laid out
as huggingface_hub's documentation has it, and its locks are used.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from lawa.checkpoints import hub_parts
from lawa.checkpoints.hub_cache import Pinned, is_weights, nbytes_of
from lawa.checkpoints.hub_client import Unreachable, client, first_line, patiently, sentences
from lawa.checkpoints.hub_parts import WrongBytes
from lawa.checkpoints.publish import sha256
from lawa.errors import LawaError


def fetch(pinned: Pinned, arrived: Callable[[int], None]) -> Path:
    """Weights last, so that a snapshot with all of them is whole; then the revision's name, which the cache knows."""
    try:
        for name in sorted(pinned.files, key=lambda name: (is_weights(name), name)):
            if name in pinned.digests:
                _fetch_blob(pinned, name, arrived)
            else:
                arrived(pinned.files[name])
            patiently(lambda name=name: _link(pinned, name))
    except Unreachable as away:
        raise LawaError(f"{away}; what was fetched of {pinned.repo} is kept: try again") from None
    except OSError as failed:
        raise LawaError(f"{pinned.repo} cannot be brought to {pinned.repo.folder} ({first_line(failed)})") from None
    _remember(pinned)
    return pinned.folder


def _fetch_blob(pinned: Pinned, name: str, arrived: Callable[[int], None]) -> None:
    """A file that the hub keeps by its SHA-256 into the cache, once it has that."""
    repo, size, digest = pinned.repo, pinned.files[name], pinned.digests[name]
    blob = repo.folder / "blobs" / digest
    lock = repo.folder.parent / ".locks" / repo.folder.name / f"{digest}.lock"  # huggingface_hub's own for this file
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with client().utils.WeakFileLock(lock):
        if nbytes_of(blob) == size:
            return arrived(size)
        partial = blob.with_name(f"{digest}.lawa.incomplete")  # which huggingface_hub counts and prunes as its own
        for last in (False, True):
            came: list[int] = []

            def count(nbytes: int, came: list[int] = came) -> None:
                came.append(nbytes)
                arrived(nbytes)

            try:
                _fill(pinned, name, partial, count)
                found = sha256(partial)
                if found != digest:
                    raise WrongBytes(f"{pinned.label}: {name} came with SHA-256 {found[:12]}…, not {digest[:12]}…")
                return hub_parts.publish(partial, blob)
            except WrongBytes as wrong:
                hub_parts.remove(partial)
                if last:
                    raise LawaError(
                        f"{wrong}, twice; the file is damaged on its way or on the hub: try again later, or tell "
                        f"those who keep {repo.page}"
                    ) from None
                arrived(-sum(came))
    return None


def _fill(pinned: Pinned, name: str, partial: Path, arrived: Callable[[int], None]) -> None:
    size = pinned.files[name]
    hub_parts.fill(
        partial,
        hub_parts.parts([(name, 0, size)]),
        request={"sha256": pinned.digests[name], "bytes": size},
        read=lambda part: hub_parts.read(pinned.repo, pinned.commit, part, size),
        arrived=arrived,
    )


def _link(pinned: Pinned, name: str) -> None:
    """A file into the snapshot, fetched where it is none of the large ones; anew, once, if it has another size."""
    place = pinned.folder / name
    for again in (False, True):
        if again and place.is_symlink():
            (place.parent / place.readlink()).unlink(missing_ok=True)
        if again:
            place.unlink(missing_ok=True)
        with sentences(pinned.repo):
            client().hf_hub_download(pinned.repo.name, name, repo_type=pinned.repo.type, revision=pinned.commit)
        if nbytes_of(place) == pinned.files[name]:
            return
    raise LawaError(
        f"{pinned.label}: {name} comes with {nbytes_of(place)} bytes, where the hub tells of {pinned.files[name]}; try "
        "again later"
    )


def _remember(pinned: Pinned) -> None:
    """The commit under its revision's name, as huggingface_hub keeps it: found there when the hub is not asked."""
    revision = pinned.repo.revision or "main"
    if revision == pinned.commit:
        return
    ref = pinned.repo.folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    partial = ref.with_name(f"{ref.name}.{uuid.uuid4().hex[:8]}.tmp")
    partial.write_text(pinned.commit)
    partial.replace(ref)
