"""Averaging on disk as a job that can be killed: begun, gone on with, published.

    .OUTPUT.averaging/job.json  journal  NAME/…     →     OUTPUT  (one average), or OUTPUT/NAME (several)
                      replaced/…                    ←     what was there before, until its successor is

The journal has the items whose bytes are written. A killed job goes on after them where its plan is the same and the
machine was not started anew since (what was written then may have been lost); otherwise it begins anew. One that
failed leaves nothing. Whatever was replaced and has no successor in its place is put back first.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lawa.checkpoints.catalog import INDEX
from lawa.checkpoints.publish import complete, is_published
from lawa.checkpoints.sources import check_unchanged
from lawa.errors import LawaError
from lawa.offline import cluster as on_cluster
from lawa.offline.execute import lay_out, run
from lawa.offline.plan import Mean, Plan, index_json
from lawa.parallel import Cluster, ClusterError
from lawa.records import write_json

JOB, JOURNAL, REPLACED = "job.json", "journal", "replaced"
_ALONE = "average"  # the folder of an output without a name


def root_of(output: Path) -> Path:
    """Where a job works; its name is its own, so that nobody who publishes beside it sweeps it away."""
    output = output.resolve() if output.name in ("", "..") else output  # the folder that one is in
    return output.with_name(f".{output.name}.averaging")


class Job:
    """One plan on its way to `output`.

    overwrite  outputs that exist are replaced, each when its successor is whole
    finish     writes what an output has beside its weights: called with the mean and its unpublished directory
    """

    def __init__(
        self, plan: Plan, output: Path, *, finish: Callable[[Mean, Path], None], overwrite: bool = False
    ) -> None:
        self.plan = plan
        self.output = output.resolve() if output.is_symlink() else output  # renames stay on its file system
        self.finish = finish
        self.root = root_of(self.output)
        self.overwrite = overwrite
        self._check_place(ours=self._begun(False) or self._begun(True))

    def target(self, mean: Mean) -> Path:
        return self.output / mean.name if mean.name else self.output

    def left(self, allow_non_finite: bool) -> list[Mean]:
        """The outputs that this job, where it was begun before, has not published yet."""
        ours = self._begun(allow_non_finite)
        return [mean for mean in self.plan.means if not (ours and self._published(mean))]

    def run(
        self, *, threads: int, sync: bool = True, digests: bool = False, allow_non_finite: bool = False,
        progress: Callable[[int], None] = lambda elements: None, cluster: Cluster | None = None,
    ) -> Generator[tuple[Mean, Path], None, None]:  # fmt: skip
        """Do what is left, and publish; each output with its mean, as it is published.

        sync      bring every file to disk before it is published
        digests   list SHA-256 digests in the manifests, too
        progress  called with the elements, of one input, that were done before, and then with those of each item
        cluster   does the items, and not threads of this process
        """
        with self._alone():
            ours = self._begun(allow_non_finite)
            self._restore()
            self._check_place(ours=ours)
            try:
                if not ours:
                    self._begin(allow_non_finite)
                with self._left(progress) as (left, note):
                    folders = [self.root / (mean.name or _ALONE) for mean in self.plan.means]
                    if cluster is None:
                        run(self.plan, folders, left, threads=threads, done=note, allow_non_finite=allow_non_finite)
                    else:
                        on_cluster.run(
                            self.plan, folders, left, cluster=cluster, done=note, sync=sync,
                            allow_non_finite=allow_non_finite,
                        )  # fmt: skip
                for one in self.plan.catalogs:
                    check_unchanged(one)
                for mean in self.plan.means:
                    yield mean, self._publish(mean, sync=sync, digests=digests)
            except ClusterError:
                raise
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"what is done is kept in {self.root}, and the same command goes on") from None
            except (LawaError, OSError) as failed:
                self._restore()
                shutil.rmtree(self.root, ignore_errors=True)  # it would fail again; what is killed goes on
                if isinstance(failed, LawaError):
                    raise
                where = failed.filename or self.output
                raise LawaError(
                    f"{where} cannot be written ({failed.strerror}); make room there, or choose another output"
                ) from None
            self._restore()
            shutil.rmtree(self.root)

    def _check_place(self, *, ours: bool) -> None:
        """Raise for what is at an output's place and must stay; outputs of `ours`, killed before its end, are ours."""
        if self.output.exists() and not self.output.is_dir():
            raise LawaError(f"{self.output} is a file, and the average is a directory; choose another output")
        for mean in self.plan.means:
            target = self.target(mean)
            if target.exists() and not self.overwrite and not (ours and self._published(mean)):
                raise LawaError(f"{target} exists already; choose another output, or replace it with --overwrite")

    def _begun(self, allow_non_finite: bool) -> bool:
        """Whether this very job was begun here and can be gone on with."""
        try:
            found: dict[str, Any] = json.loads((self.root / JOB).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return found == self._told(allow_non_finite) and all(map(self._is_there, self.plan.means))

    def _is_there(self, mean: Mean) -> bool:
        """Published, or laid out with all its files: what finishes an output may have turned them into others."""
        if self._published(mean):
            return is_published(self.target(mean))
        return all((self.root / (mean.name or _ALONE) / file.name).is_file() for file in self.plan.files)

    def _told(self, allow_non_finite: bool) -> dict[str, Any]:
        """What a job must have been told to be the same; items that were done are not looked through again."""
        return {"plan": self.plan.digest, "machine": _since_start(), "allow_non_finite": allow_non_finite}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else works here meanwhile."""
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(exist_ok=True)
            descriptor = os.open(self.root, os.O_RDONLY)
        except OSError as failed:
            raise LawaError(
                f"{self.root} cannot be made ({failed.strerror}); choose an output in a folder that can be written"
            ) from None
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                alone = os.path.samestat(os.fstat(descriptor), self.root.stat())  # not one that its job has removed
            except (BlockingIOError, FileNotFoundError):
                alone = False
            if not alone:
                raise LawaError(f"another process is writing {self.output}; wait for it, or choose another")
            try:
                yield
            finally:
                with suppress(OSError):  # there is something to go on with
                    self.root.rmdir()
        finally:
            os.close(descriptor)

    def _begin(self, allow_non_finite: bool) -> None:
        """Lay out every output, in place of whatever another job has left."""
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for mean in self.plan.means:
            folder = self.root / (mean.name or _ALONE)
            folder.mkdir(parents=True)
            lay_out(self.plan, folder)
        write_json(self.root / JOB, self._told(allow_non_finite))  # last: what is begun is laid out

    @contextmanager
    def _left(self, progress: Callable[[int], None]) -> Iterator[tuple[list[int], Callable[[int], None]]]:
        """The items that the journal does not have, and what notes there that one is done."""
        done, items = _items(self.root / JOURNAL), self.plan.items
        progress(sum(item.stop - item.start for index, item in enumerate(items) if index in done))
        with (self.root / JOURNAL).open("a", encoding="ascii") as journal:

            def note(index: int) -> None:
                journal.write(f"{index}\n")
                journal.flush()
                progress(items[index].stop - items[index].start)

            yield [index for index in range(len(items)) if index not in done], note

    def _published(self, mean: Mean) -> bool:
        return not (self.root / (mean.name or _ALONE)).is_dir()

    def _publish(self, mean: Mean, *, sync: bool, digests: bool) -> Path:
        target = self.target(mean)
        if self._published(mean):
            shutil.rmtree(self.root / REPLACED, ignore_errors=True)
            return target
        folder = self.root / (mean.name or _ALONE)
        index = index_json(self.plan)
        if index is not None:
            (folder / INDEX).write_text(index, encoding="utf-8")
        self.finish(mean, folder)
        self._check_place(ours=True)  # nothing has come there meanwhile
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = None
        if self.overwrite and target.exists():
            aside = self.root / REPLACED / quote(target.relative_to(self.output.parent).as_posix(), safe="")
            aside.parent.mkdir(exist_ok=True)
        complete(folder, target, sync=sync, digests=digests, aside=aside)
        if aside is not None:
            shutil.rmtree(aside.parent, ignore_errors=True)
        return target

    def _restore(self) -> None:
        """Put back what was moved aside and has no successor in its place: of any job that was killed here."""
        for aside in (self.root / REPLACED).glob("*"):
            target = self.output.parent / unquote(aside.name)
            if target.exists():
                continue
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                aside.rename(target)
            except OSError as failed:
                raise LawaError(
                    f"what was at {target} is at {aside}, and cannot be put back ({failed.strerror}); move it there"
                ) from None


def _items(journal: Path) -> set[int]:
    """The whole lines of the journal. The last one, which a kill may have cut, is removed: others will follow it."""
    if not journal.exists():
        return set()
    whole, _, _ = journal.read_bytes().rpartition(b"\n")
    os.truncate(journal, len(whole) + 1 if whole else 0)
    return {int(line) for line in whole.split()}


def _since_start() -> str:
    """What changes when this machine is started anew: then what was not brought to disk may be lost."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
