"""What of a repo is in huggingface_hub's cache, and what of one is needed. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from lawa.checkpoints.carry import is_beside
from lawa.checkpoints.catalog import WEIGHTS
from lawa.checkpoints.hub_client import Repo, client, no_path
from lawa.errors import LawaError

# The first kind of which a repo has files is fetched.
_WEIGHTS = (
    (*WEIGHTS[:2], "model-*.safetensors"),
    (*WEIGHTS[2:], "pytorch_model-*.bin"),
    ("layer_*-model_*-model_states.pt",),  # GPT-NeoX
)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Pinned:
    """
    files   {name: bytes} of what is fetched; of what is in the cache, where only that could be asked
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

    @property
    def folder(self) -> Path:
        """Where its files are once they are fetched."""
        return self.repo.folder / "snapshots" / self.commit

    def blob(self, name: str) -> Path | None:
        """Where the cache keeps a file by its digest, there or not; None for one without."""
        return self.repo.folder / "blobs" / self.digests[name] if name in self.digests else None

    def missing(self) -> list[str]:
        """Names of what the snapshot lacks, or has with another size."""
        return [name for name, nbytes in self.files.items() if nbytes_of(self.folder / name) != nbytes]


def is_weights(name: str) -> bool:
    """Whether a file has weights, and is no index of them."""
    return not name.endswith(".json") and any(fnmatchcase(name, one) for kind in _WEIGHTS for one in kind)


def named_by(repo: Repo, names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that any of the patterns names, sorted; LawaError for a pattern that names none."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            held = ", ".join(sorted(names)[:5]) or "nothing"
            raise LawaError(f"{repo} has no file {pattern}; it holds {held}")
    return sorted(name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns))


def needed(repo: Repo, names: Iterable[str]) -> list[str]:
    """What is fetched of a model's repo with these files."""
    for kind in _WEIGHTS:
        if weights := [name for name in names if any(fnmatchcase(name, pattern) for pattern in kind)]:
            return sorted({*weights, *(name for name in names if "/" not in name and is_beside(name))})
    held = ", ".join(sorted(names)[:5]) or "nothing"
    raise LawaError(
        f"{repo} has no weights that are known here (model.safetensors, pytorch_model.bin, GPT-NeoX layer files); it "
        f"holds {held}"
    )


def in_cache(repo: Repo, only: Sequence[str] | None, why: str) -> Pinned:
    """What the cache has of it, which has to be whole."""
    commit = commit_of(repo)
    if commit is None:
        raise LawaError(
            f"{no_path(repo)}; on the hub: {why}, and {repo} is not in its cache ({client().constants.HF_HUB_CACHE})"
        )
    folder = repo.folder / "snapshots" / commit
    held = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}

    def lacks(what: str) -> LawaError:
        return LawaError(f"{repo} is not whole in the cache ({folder} has no {what}), and {why}; fetch it first")

    if only is None and not any(is_weights(name) for name in held):
        raise lacks("weights")
    if missing := [one for one in only or () if not any(fnmatchcase(name, one) for name in held)]:
        raise lacks(missing[0])
    names = needed(repo, held) if only is None else named_by(repo, held, only)
    for index in (name for name in names if name.endswith(".index.json")):
        if missing := sorted(_shards(held[index]) - set(held)):
            raise lacks(missing[0])
    links = {name: held[name].readlink().name for name in names if held[name].is_symlink()}
    digests = {name: blob for name, blob in links.items() if _SHA256.fullmatch(blob)}
    return Pinned(repo, commit, {name: held[name].stat().st_size for name in names}, digests, folder)


def commit_of(repo: Repo) -> str | None:
    """Of the revision in the cache, if a snapshot of it is there."""
    revision = repo.revision or "main"
    ref = repo.folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    return commit if (repo.folder / "snapshots" / commit).is_dir() else None


def _shards(index: Path) -> set[str]:
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return set()  # whoever reads it says what is wrong


def cached_revisions(repo: Repo) -> list[str]:
    refs = repo.folder / "refs"
    return sorted(
        str(file.relative_to(refs)) for file in refs.rglob("*") if file.is_file() and not file.name.endswith(".tmp")
    )


def nbytes_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None
