"""Checkpoints on the Hugging Face hub: found, pinned to a commit, fetched into huggingface_hub's cache. No torch.

A revision may move; the commit it had when it was looked up is what is fetched, and what provenance tells. Only
weights, configuration and tokenizer are fetched, of the weights safetensors where both kinds are there; of a data set,
the files that are named. What is in the cache is used without the hub (HF_HUB_OFFLINE=1, or where the hub cannot be
reached).

hub_client.py talks to the hub, hub_parts.py fetches bytes, hub_fetch.py a revision; hub_cache.py has what is there.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lawa.checkpoints.hub_cache import Pinned, cached_revisions, commit_of, in_cache, named_by, needed
from lawa.checkpoints.hub_client import (
    Patience,
    Repo,
    Unreachable,
    check_client,
    client,
    is_offline,
    no_bars,
    no_path,
    parse,
    patiently,
    sentences,
)
from lawa.checkpoints.hub_fetch import fetch
from lawa.errors import LawaError

__all__ = ["Pinned", "Repo", "check_client", "fetch_all", "headers", "parse", "pin", "pin_all", "revisions"]

_KINDS = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}  # of safetensors' names of dtypes
_AT_ONCE = 4  # revisions; the parts of each come side by side, too
_TIMEOUT = 30  # seconds until the hub answers what is there


def revisions(repo: Repo, *, offline: bool = False) -> list[str]:
    """Its branches and tags; those in the cache where the hub is not asked, or not there."""

    def asked() -> list[str]:
        with sentences(repo):
            refs = client().HfApi().list_repo_refs(repo.name, repo_type=repo.type)
            return [ref.name for ref in [*refs.branches, *refs.tags]]

    if not is_offline(offline):
        try:
            return asked() if cached_revisions(repo) else patiently(asked)
        except Unreachable as away:
            if not cached_revisions(repo):
                raise LawaError(
                    f"{no_path(repo)}; on the hub: {away}, and no revision of {repo.name} is in its cache"
                ) from None
    return cached_revisions(repo)


def pin(repo: Repo, *, only: Sequence[str] | None = None, offline: bool = False) -> Pinned:
    """The commit that the revision of `repo` is now, and what is to be fetched of it.

    only  names or patterns of the files, instead of a model's; each has to be there

    Raises LawaError where there is no such repo or revision, for a gated one, for one without weights or without a
    file that is named, and where neither the hub nor the cache has it.
    """
    client()
    if is_offline(offline):
        return in_cache(repo, only, "the hub is not asked (HF_HUB_OFFLINE, --offline)")
    patience = Patience()
    while True:
        try:
            with sentences(repo):
                info = (
                    client()
                    .HfApi()
                    .repo_info(
                        repo.name, revision=repo.revision, repo_type=repo.type, files_metadata=True, timeout=_TIMEOUT
                    )
                )
            break
        except Unreachable as away:
            if commit_of(repo) is not None:
                return in_cache(repo, only, str(away))
            try:
                patience.wait(away)
            except Unreachable as last:
                return in_cache(repo, only, str(last))
    siblings = {one.rfilename: one for one in info.siblings or ()}
    files = needed(repo, siblings) if only is None else named_by(repo, siblings, only)
    digests = {name: siblings[name].lfs.sha256 for name in files if siblings[name].lfs}
    pinned = Pinned(repo, info.sha, {name: siblings[name].size or 0 for name in files}, digests)
    return pinned if pinned.missing() else replace(pinned, cached=pinned.folder)


def pin_all(repos: Sequence[Repo], *, offline: bool = False) -> list[Pinned]:
    """Several side by side, in the order given."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda repo: pin(repo, offline=offline), repos))


def headers(pinned: Pinned) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """{name: (dtype as torch calls it, shape)} of every tensor, from safetensors files' headers; None without any."""
    if not any(name.endswith(".safetensors") for name in pinned.files):
        return None
    try:
        with sentences(pinned.repo):
            found = client().HfApi().get_safetensors_metadata(pinned.repo.name, revision=pinned.commit)
    except Unreachable as away:
        raise LawaError(f"{away}; try again") from None
    tensors = [one for file in found.files_metadata.values() for one in file.tensors.items()]
    return {name: (_torch_name(one.dtype), tuple(one.shape)) for name, one in tensors}


def fetch_all(
    pinned: Sequence[Pinned],
    *,
    done: Callable[[Pinned], None] = lambda one: None,
    arrived: Callable[[int], None] = lambda nbytes: None,
) -> list[Path]:
    """Their folders in the cache, in the order given, each with all of its files; what was begun goes on.

    done     called as each is there
    arrived  called with bytes as they come, or are there already, from several threads
    """
    _check_room([one for one in pinned if one.cached is None])

    def fetched(one: Pinned) -> Path:
        path = one.cached or fetch(one, arrived)
        done(one)
        return path

    with no_bars(), ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(fetched, pinned))


def _check_room(missing: Sequence[Pinned]) -> None:
    """Raise before anything is fetched that the cache has no room for."""
    place = Path(client().constants.HF_HUB_CACHE) if missing else Path()
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
    needed, free = sum(one.nbytes for one in missing), shutil.disk_usage(there).free
    if needed > free:
        raise LawaError(
            f"{place} has {free / 1e9:.1f} GB of room, and {len(missing)} revisions need {needed / 1e9:.1f} GB; "
            "name another cache (HF_HUB_CACHE)"
        )


def _torch_name(dtype: str) -> str:
    """
    >>> _torch_name("BF16"), _torch_name("U8"), _torch_name("BOOL")
    ('bfloat16', 'uint8', 'bool')
    """
    kind, number = re.sub(r"\d.*", "", dtype), re.sub(r"^\D+", "", dtype)
    return _KINDS.get(kind, kind.lower()) + number.lower()
