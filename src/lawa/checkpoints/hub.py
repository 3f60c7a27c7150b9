"""Checkpoints on the Hugging Face hub: found, pinned to a commit, fetched into huggingface_hub's cache. No torch.

A revision may move; the commit it had when it was looked up is what is fetched, and what provenance tells. Only
weights, configuration and tokenizer are fetched, of the weights safetensors where both kinds are there. What is in the
cache is used without the hub (HF_HUB_OFFLINE=1, or where the hub cannot be reached).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from lawa.checkpoints.carry import is_beside
from lawa.checkpoints.catalog import WEIGHTS
from lawa.errors import LawaError, require

# The first kind of which a repo has files is fetched.
_WEIGHTS = (
    (*WEIGHTS[:2], "model-*.safetensors"),
    (*WEIGHTS[2:], "pytorch_model-*.bin"),
    ("layer_*-model_*-model_states.pt",),  # GPT-NeoX
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KINDS = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}  # of safetensors' names of dtypes
_AT_ONCE = 4  # revisions; huggingface_hub fetches the files of each side by side, too
_EXTRA = "hub"


@dataclass(frozen=True)
class Repo:
    """A model on the hub: ORG/NAME, and a branch, tag or commit of it."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True)
class Pinned:
    """
    files   {name: bytes} of what is fetched; empty where only the cache could be asked
    digests {name: SHA-256} of those that the hub keeps by it
    cached  the folder in the cache, once everything is there
    """

    repo: Repo
    commit: str
    files: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    cached: Path | None = None

    @property
    def label(self) -> str:
        """ORG/NAME@REVISION (COMMIT)."""
        named = self.repo.revision == self.commit
        return str(self.repo) if named else f"{self.repo} ({self.commit[:12]})"

    @property
    def nbytes(self) -> int:
        return sum(self.files.values())


def parse(text: str) -> Repo | None:
    """ORG/NAME or ORG/NAME@REVISION; None for what can only be a path."""
    name, at, revision = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not revision):
        return None
    return Repo(name, revision or None)


def revisions(repo: Repo, *, offline: bool = False) -> list[str]:
    """Its branches and tags; those in the cache where the hub is not asked, or not there."""
    client = _client()
    if not _offline(offline):
        try:
            with _sentences(repo):
                refs = client.HfApi().list_repo_refs(repo.name)
                return [ref.name for ref in [*refs.branches, *refs.tags]]
        except _Unreachable as away:
            if not _cached_revisions(repo):
                raise LawaError(
                    f"{_no_path(repo)}; on the hub: {away}, and no revision of {repo.name} is in its cache"
                ) from None
    return _cached_revisions(repo)


def pin(repo: Repo, *, offline: bool = False) -> Pinned:
    """The commit that the revision of `repo` is now, and what is to be fetched of it.

    Raises LawaError where there is no such repo or revision, for a gated one, for one without weights, and where
    neither the hub nor the cache has it.
    """
    client = _client()
    if _offline(offline):
        return _in_cache(repo, "the hub is not asked (HF_HUB_OFFLINE, --offline)")
    try:
        with _sentences(repo):
            info = client.HfApi().model_info(repo.name, revision=repo.revision, files_metadata=True)
    except _Unreachable as away:
        return _in_cache(repo, str(away))
    siblings = {one.rfilename: one for one in info.siblings or ()}
    files = _needed(repo, siblings)
    digests = {name: siblings[name].lfs.sha256 for name in files if siblings[name].lfs}
    pinned = Pinned(repo, info.sha, {name: siblings[name].size or 0 for name in files}, digests)
    folder = _folder(repo) / "snapshots" / info.sha
    whole = all((folder / name).is_file() for name in files)
    return Pinned(repo, info.sha, pinned.files, digests, folder) if whole else pinned


def pin_all(repos: Sequence[Repo], *, offline: bool = False) -> list[Pinned]:
    """Several side by side, in the order given."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(lambda repo: pin(repo, offline=offline), repos))


def headers(pinned: Pinned) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """{name: (dtype as torch calls it, shape)} of every tensor, from safetensors files' headers; None without any."""
    if not any(name.endswith(".safetensors") for name in pinned.files):
        return None
    try:
        with _sentences(pinned.repo):
            found = _client().HfApi().get_safetensors_metadata(pinned.repo.name, revision=pinned.commit)
    except _Unreachable as away:
        raise LawaError(f"{away}; try again") from None
    tensors = [one for file in found.files_metadata.values() for one in file.tensors.items()]
    return {name: (_torch_name(one.dtype), tuple(one.shape)) for name, one in tensors}


def fetch_all(pinned: Sequence[Pinned], *, done: Callable[[Pinned], None] = lambda one: None) -> list[Path]:
    """Their folders in the cache, in the order given, each with all of its files; what was begun goes on.

    done  called as each is there
    """
    missing = [one for one in pinned if one.cached is None]
    _check_room(missing)

    def fetched(one: Pinned) -> Path:
        path = one.cached or _fetch(one)
        done(one)
        return path

    with _no_bars(), ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(fetched, pinned))


def _fetch(pinned: Pinned) -> Path:
    """By the revision's name, which the cache then knows; by the commit itself where it has moved meanwhile."""
    client, repo = _client(), pinned.repo
    names = [escape(name) for name in pinned.files]
    try:
        with _sentences(repo):
            path = Path(client.snapshot_download(repo.name, revision=repo.revision, allow_patterns=names))
            if path.name != pinned.commit:
                path = Path(client.snapshot_download(repo.name, revision=pinned.commit, allow_patterns=names))
    except _Unreachable as away:
        raise LawaError(f"{away}; what was fetched of {repo} is kept: try again") from None
    if lacking := next((name for name in pinned.files if not (path / name).is_file()), None):
        raise LawaError(f"{repo}: {lacking} was not fetched; try again")
    return path


def _needed(repo: Repo, names: Mapping[str, Any]) -> list[str]:
    """What is fetched of a repo with these files."""
    for kind in _WEIGHTS:
        if weights := [name for name in names if any(fnmatchcase(name, pattern) for pattern in kind)]:
            return sorted({*weights, *(name for name in names if "/" not in name and is_beside(name))})
    held = ", ".join(sorted(names)[:5]) or "nothing"
    raise LawaError(
        f"{repo} has no weights that are known here (model.safetensors, pytorch_model.bin, GPT-NeoX layer files); it "
        f"holds {held}"
    )


def _in_cache(repo: Repo, why: str) -> Pinned:
    client = _client()
    try:
        found = client.snapshot_download(repo.name, revision=repo.revision, allow_patterns=[], local_files_only=True)
    except client.errors.LocalEntryNotFoundError:
        raise LawaError(
            f"{_no_path(repo)}; on the hub: {why}, and {repo} is not in its cache ({client.constants.HF_HUB_CACHE})"
        ) from None
    return Pinned(repo, Path(found).name, cached=Path(found))


def _cached_revisions(repo: Repo) -> list[str]:
    refs = _folder(repo) / "refs"
    return sorted(str(file.relative_to(refs)) for file in refs.rglob("*") if file.is_file())


def _folder(repo: Repo) -> Path:
    client = _client()
    return Path(client.constants.HF_HUB_CACHE) / client.file_download.repo_folder_name(
        repo_id=repo.name, repo_type="model"
    )


def _check_room(missing: Sequence[Pinned]) -> None:
    """Raise before anything is fetched that the cache has no room for."""
    place = Path(_client().constants.HF_HUB_CACHE) if missing else Path()
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir())
    needed, free = sum(one.nbytes for one in missing), shutil.disk_usage(there).free
    if needed > free:
        raise LawaError(
            f"{place} has {free / 1e9:.1f} GB of room, and {len(missing)} revisions need {needed / 1e9:.1f} GB; "
            "name another cache (HF_HUB_CACHE)"
        )


class _Unreachable(Exception):
    """The hub, and why in words."""


@contextmanager
def _sentences(repo: Repo) -> Iterator[None]:
    """Errors of huggingface_hub as sentences, _Unreachable where it did not answer."""
    client = _client()
    errors, endpoint = client.errors, client.constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        raise LawaError(
            f"{repo.name} is gated: accept its conditions at {endpoint}/{repo.name}, then log in (hf auth login)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise LawaError(
            f"{_no_path(repo)}, nor a model at {endpoint} that you may see; look at its name, or log in for a private "
            "one (hf auth login)"
        ) from None
    except errors.RevisionNotFoundError:
        raise LawaError(
            f"{repo.name} has no revision {repo.revision!r}; its branches and tags are at {endpoint}/{repo.name}"
        ) from None
    except errors.LocalEntryNotFoundError as away:
        raise _Unreachable(f"{endpoint} cannot be reached ({_first_line(away.__cause__ or away)})") from None
    except errors.HfHubHTTPError as refused:
        if refused.response is not None and refused.response.status_code >= 500:
            raise _Unreachable(f"{endpoint} does not answer as it should ({_first_line(refused)})") from None
        raise LawaError(f"{endpoint} refused {repo} ({_first_line(refused)})") from None
    except errors.HFValidationError as wrong:
        raise LawaError(f"{repo} is no name of a repo ({_first_line(wrong)})") from None
    except Exception as failed:
        if isinstance(failed, ConnectionError) or type(failed).__module__.startswith(("httpx", "httpcore")):
            raise _Unreachable(f"{endpoint} cannot be reached ({_first_line(failed)})") from None
        raise


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without huggingface_hub's own bars: `done` says how far it is."""
    bars = _client().utils
    shown = not bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()


def _torch_name(dtype: str) -> str:
    """
    >>> _torch_name("BF16"), _torch_name("U8"), _torch_name("BOOL")
    ('bfloat16', 'uint8', 'bool')
    """
    kind, number = re.sub(r"\d.*", "", dtype), re.sub(r"^\D+", "", dtype)
    return _KINDS.get(kind, kind.lower()) + number.lower()


def _offline(asked: bool) -> bool:
    return asked or bool(_client().constants.HF_HUB_OFFLINE)


def _no_path(repo: Repo) -> str:
    """What a mistyped path is told first: it reads like a repo where it has one slash."""
    return f"there is no path {repo.name}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def check_client(repo: Repo) -> None:
    """LawaError where huggingface_hub is not installed."""
    try:
        _client()
    except LawaError as missing:
        raise LawaError(f"{_no_path(repo)}; for a repo of that name on the hub, {missing}") from None


def _client() -> Any:
    """huggingface_hub, or how to install it."""
    client = require("huggingface_hub", extra=_EXTRA)
    for module in ("constants", "errors", "file_download", "utils"):
        require(f"huggingface_hub.{module}", extra=_EXTRA)
    return client
