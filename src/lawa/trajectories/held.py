"""What was fetched into huggingface_hub's cache of one repo, its bytes, and what goes when it is evicted. No torch.

A file of a snapshot is a link to a blob, which may serve several snapshots. Evicting removes the links that were made
here, and then those of their blobs that no snapshot links to any more; so what was in the cache before stays.

With a disk budget, what was fetched is written down beside the snapshots before it comes, in a file that its process
holds locked. What a process left that has ended, or was killed, belongs to the next one: it counts, and goes first.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from lawa.checkpoints.hub_cache import Pinned, nbytes_of
from lawa.checkpoints.hub_client import Repo

_LEDGER = "lawa-*.jsonl"
_PARTIAL = "*.lawa.incomplete"


class Held:
    """
    repo  whose cache it is
    kept  whether it is written down, and what others left is taken over
    """

    def __init__(self, repo: Repo, *, kept: bool) -> None:
        self._folder = repo.folder
        self._names: dict[str, set[str]] = {}  # {commit: files that were not there before}
        self._lock = threading.RLock()
        self._ledger: int | None = None
        self.left: list[str] = []  # commits that others left, oldest first
        if kept:
            (self._folder / "snapshots").mkdir(parents=True, exist_ok=True)
            self._take_over()

    def expect(self, pinned: Pinned) -> None:
        """It is fetched next: what of it is missing now will be ours."""
        with self._lock:
            self._names.setdefault(pinned.commit, set()).update(missing := pinned.missing())
            if pinned.commit in self.left:
                self.left.remove(pinned.commit)
            self._write_down(pinned.commit, missing)

    def sizes(self) -> dict[str, int]:
        """{blob: bytes} of what was fetched and is there, shared ones once; not those that other snapshots had."""
        with self._lock:
            snapshots = self._folder / "snapshots"
            ours = {snapshots / commit / name for commit, names in self._names.items() for name in names}
            others = {_blob(file) for file in self._every() if file not in ours}
            blobs = {_blob(file) for file in ours if file.exists()} - others
            return {blob.name if blob.is_relative_to(self._folder / "blobs") else str(blob): size
                    for blob in blobs if (size := nbytes_of(blob)) is not None}  # fmt: skip

    def evict(self, commit: str, *, every: bool = False) -> None:
        """Remove what was fetched of a commit; with `every`, what was in the cache before, too."""
        with self._lock:
            folder = self._folder / "snapshots" / commit
            ours = {folder / name for name in self._names.pop(commit, set())}
            going = {file for file in folder.rglob("*") if _is_file(file) and (every or file in ours)}
            blobs = {_blob(file) for file in going}
            for file in going:
                file.unlink(missing_ok=True)
            for empty in sorted((one for one in folder.rglob("*") if one.is_dir()), reverse=True):
                _remove_empty(empty)
            if _remove_empty(folder):
                self._forget(commit)
            for blob in blobs - {_blob(file) for file in self._every()}:
                blob.unlink(missing_ok=True)
            if commit in self.left:
                self.left.remove(commit)
            self._write_down(commit, None)

    def partials(self, but: Collection[str] = ()) -> dict[Path, int]:
        """{file: its bytes on disk} of downloads that broke off and nobody goes on with; `but` those of these blobs."""
        found = {}
        for file in (self._folder / "blobs").glob(_PARTIAL):
            digest = file.name.partition(".")[0]
            lock = self._folder.parent / ".locks" / self._folder.name / f"{digest}.lock"
            if digest not in but and not _is_locked(lock):
                found[file] = file.stat().st_blocks * 512
        return found

    def close(self) -> None:
        """What is held is left to the next."""
        if self._ledger is not None:
            os.close(self._ledger)
            self._ledger = None

    def _take_over(self) -> None:
        for file in sorted(self._folder.glob(_LEDGER), key=lambda one: one.stat().st_mtime_ns):
            descriptor = os.open(file, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for commit, names in _read(file).items():
                    self._names.setdefault(commit, set()).update(names)
                    self.left.append(commit)
                file.unlink(missing_ok=True)
            except BlockingIOError:
                pass  # of one that works
            finally:
                os.close(descriptor)
        own = self._folder / _LEDGER.replace("*", uuid.uuid4().hex[:12])
        new = own.with_suffix(".tmp")  # nobody else's, until it is locked
        self._ledger = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        fcntl.flock(self._ledger, fcntl.LOCK_EX)
        new.rename(own)
        for commit in self.left:
            self._write_down(commit, self._names[commit])

    def _write_down(self, commit: str, names: Iterable[str] | None) -> None:
        """`names` more of a commit, or, with None, that it went."""
        if self._ledger is not None:
            os.write(self._ledger, json.dumps([commit, names and sorted(names)]).encode() + b"\n")

    def _every(self) -> Iterator[Path]:
        """The files of every snapshot; of one that somebody else removes meanwhile, what is left."""
        for folder, _, names in os.walk(self._folder / "snapshots"):
            yield from (Path(folder, name) for name in names)

    def _forget(self, commit: str) -> None:
        """Names of revisions that would lead to it."""
        for ref in (self._folder / "refs").rglob("*"):
            if ref.is_file() and ref.read_text().strip() == commit:
                ref.unlink()


def _blob(file: Path) -> Path:
    """What a snapshot's file links to, one step; itself where it is no link."""
    return Path(os.path.normpath(file.parent / file.readlink())) if file.is_symlink() else file


def _is_file(file: Path) -> bool:
    return file.is_symlink() or file.is_file()


def _remove_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def _is_locked(lock: Path) -> bool:
    if not lock.is_file():
        return False
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _read(ledger: Path) -> dict[str, set[str]]:
    """{commit: names} of what was there at its end; without a last line that was cut off."""
    found: dict[str, set[str]] = {}
    for line in ledger.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            commit, names = json.loads(line)
            found[commit] = set() if names is None else found.get(commit, set()) | set(names)
    return {commit: names for commit, names in found.items() if names}
