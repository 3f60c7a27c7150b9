"""Averages of checkpoints on disk or hub: the door `lawa.average`. No torch but for what a format needs.

inputs → select → hub → formats → policy → plan → job (→ verify, provenance, card) → OUTPUT
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lawa.checkpoints.carry import carry
from lawa.checkpoints.select import Selection, Steps
from lawa.errors import LawaError, UsageError
from lawa.offline import card, provenance, push
from lawa.offline.job import Job, root_of
from lawa.offline.plan import Mean, Plan
from lawa.offline.policy import Policy
from lawa.offline.prepare import Asked, Progress, prepare
from lawa.offline.preview import preview
from lawa.offline.scratch import scratch
from lawa.offline.windows import Families, Windows, families_of
from lawa.parallel import Cluster
from lawa.records import write_json

FORMATS = ("hf", "dcp")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def average(
    inputs: str | Path | Iterable[str | Path],
    *,
    output: str | Path,
    steps: Steps | None = None,
    last: int | None = None,
    before: int | None = None,
    window: int | Sequence[int] | None = None,
    spacing: int = 1,
    rolling: bool = False,
    coefficients: Families = "uniform",
    dtype: str = "float32",
    out_dtype: str | None = None,
    format: str = "hf",
    shard_size: int | str = "5GB",
    ignore: str | Iterable[str] = (),
    latest: str | Iterable[str] = (),
    buffers: str = "drop",
    ties: str = "keep",
    overwrite: bool = False,
    digest: bool = False,
    verify: bool = False,
    threads: int | None = None,
    cluster: str | None = None,
    allow_non_finite: bool = False,
    allow_duplicates: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    push_to_hub: str | None = None,
    private: bool | None = None,
    progress: Progress | None = None,
) -> Any:
    """Average checkpoints tensor by tensor; the memory it takes depends neither on their number nor on their size.

    inputs      checkpoints of any format, folders of them, our runs, ORG/NAME@REVISION on the hub, mixed freely; those
                named one by one in the order given, oldest first, those of folders and repos by step
    output      the new directory; of several averages their parent
    steps, before, last   which checkpoints of a folder or repo are taken: see select.Selection
    window, spacing       the average of the latest k, of every s-th checkpoint; several k give several averages
    rolling     one average for every step at which the window is whole; each input byte is read once
    coefficients          see lawa.averaging.coefficients; several give several averages
    dtype       of the sums: "float32" (the loop's bits) or "float64"
    out_dtype   of averaged tensors; default: as the latest checkpoint has them
    format      of the outputs: "hf", or "dcp" (weights/, as our sharded runs have them)
    shard_size  the most that one file holds: bytes, or "5GB"
    ignore, latest, buffers, ties   see policy.Policy
    overwrite   replace outputs that exist, each once its successor is whole
    digest      SHA-256 digests of the inputs where nobody has told them, and of the outputs
    verify      read each output back and compare sampled blocks with the inputs in float64
    threads     default: the cores that this process may use
    cluster     do the work on the Ray cluster at this address ("auto": the one at hand); it shares the file system
    offline     of the hub, only what is in its cache
    dry_run     write and fetch nothing
    push_to_hub ORG/NAME to upload to; several averages each to a branch of its name; private: a new repo is
    progress    called with (what is done, how much of it, of how much)

    Returns the output's Path; of several averages (rolling, or several windows or coefficients) an iterator of their
    Paths, each as it is published: since all are made in one pass, the first comes when all are computed, and all lie
    on the disk together. Of a dry run a dict of what would be done. Raises UsageError for what cannot be meant,
    LawaError for all else, with no output but those that are whole. A killed one goes on when called again.
    """
    windows = Windows(
        sizes=window if window is None or isinstance(window, Sequence) else (window,),
        spacing=spacing,
        rolling=rolling,
        families=families_of(coefficients),
    )
    asked = Asked(
        inputs=[inputs] if isinstance(inputs, str | Path) else list(inputs),
        output=Path(output),
        selection=Selection(steps=steps, last=last, before=before),
        windows=windows,
        policy=Policy(ignore=_several(ignore), latest=_several(latest), buffers=buffers, ties=ties),
        accumulate=dtype,
        out_dtype=out_dtype,
        shard_bytes=bytes_of(shard_size),
        overwrite=overwrite,
        allow_duplicates=allow_duplicates,
        offline=offline,
    )
    making = Making(
        threads=cores() if threads is None else threads, format=format, digest=digest, verify=verify,
        allow_non_finite=allow_non_finite, push_to_hub=push_to_hub, private=private,
        cluster=cluster_at(cluster),
    )  # fmt: skip
    work = Averaging(asked, making, dry_run=dry_run, progress=progress)
    for warning in work.prepared.warnings:
        warnings.warn(warning, stacklevel=2)
    if dry_run:
        return work.describe()
    paths = (path for _, path in work.run())
    if rolling or len(windows.variants) > 1:
        return paths
    [path] = paths
    return path


@dataclass(frozen=True, kw_only=True)
class Making:
    """How the outputs are made; the words are `average`'s.

    command  what a person types to make them again
    """

    threads: int = 1
    format: str = "hf"
    digest: bool = False
    verify: bool = False
    allow_non_finite: bool = False
    push_to_hub: str | None = None
    private: bool | None = None
    cluster: Cluster | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UsageError(f"format={self.format!r} must be one of {', '.join(FORMATS)}")
        if not isinstance(self.threads, int) or self.threads < 1:
            raise UsageError(f"threads={self.threads!r} must be a whole number, and at least 1")


class Averaging:
    """What was asked for, prepared when this is made; `run` carries it out. `dry_run`: it can only be described."""

    def __init__(
        self, asked: Asked, making: Making, *, dry_run: bool = False, progress: Progress | None = None
    ) -> None:
        self.asked, self.making = asked, making
        self._progress = progress or (lambda what, done, total: None)
        if making.push_to_hub is not None:
            push.check(making.push_to_hub)
        stack = ExitStack()
        self._close = weakref.finalize(self, stack.close)  # of what is prepared and never run, too
        try:
            folders = None if dry_run else stack.enter_context(scratch(asked.output))
            self.prepared = prepare(asked, scratch=folders, progress=self._progress)
        except BaseException:
            self._close()
            raise

    def describe(self) -> dict[str, Any]:
        """What will be done, as plain values."""
        return preview(self.prepared, self.asked, threads=self.making.threads)

    def run(self) -> Iterator[tuple[Mean, Path]]:
        """Each output with its mean, as it is published. What can be checked is checked before this returns."""
        plan, making = self.prepared.plan, self.making
        assert plan is not None  # a dry run is not run
        for equal in self.prepared.equal:
            one, other = (plan.catalogs[index].label for index in equal[:2])
            raise LawaError(
                f"{one} and {other} have the same content; is each what it says? Leave one out, or average both with "
                "--allow-duplicates"
            )
        job = Job(plan, self.asked.output, finish=self._finish, overwrite=self.asked.overwrite)
        _check_room(self.asked.output, plan, len(job.left(making.allow_non_finite)), twice=making.format == "dcp")
        if making.push_to_hub is not None:
            push.reserve(making.push_to_hub, private=making.private)
        return self._outputs(job)

    def _outputs(self, job: Job) -> Iterator[tuple[Mean, Path]]:
        making, done, total = self.making, 0, sum(placed.row.numel for placed in job.plan.tensors)

        def progress(elements: int) -> None:
            nonlocal done
            done += elements
            self._progress("averaging", done, total)

        not_pushed: list[LawaError] = []
        try:
            for mean, path in job.run(
                threads=making.threads,
                digests=making.digest,
                allow_non_finite=making.allow_non_finite,
                progress=progress,
                cluster=making.cluster,
            ):
                if making.push_to_hub is not None:
                    try:
                        self._push(making.push_to_hub, mean, path)
                    except LawaError as failed:  # the others are still to be published
                        not_pushed.append(failed)
                yield mean, path
        finally:
            self._close()
        if not_pushed:
            raise not_pushed[0]

    def _finish(self, mean: Mean, folder: Path) -> None:
        """What an output has beside its weights; they are compared with the inputs, and converted, where asked for."""
        plan, making = self.prepared.plan, self.making
        assert plan is not None
        source = plan.catalogs[mean.inputs[-1]].directory
        made = provenance.describe(plan, mean, self._described, policy=self.asked.policy, command=making.command)
        [dtype, *others] = made["dtype"]
        if source is not None:
            carry(source, folder, dtype=None if others else dtype)
        if making.verify:
            from lawa.offline.verify import verify

            made["verified"] = asdict(verify(plan, mean, folder))
            self._progress("verifying", plan.means.index(mean) + 1, len(plan.means))
        if making.format == "dcp":
            from lawa.offline.to_dcp import to_dcp

            to_dcp(folder, [file.name for file in plan.files], verify=making.verify)
        write_json(folder / provenance.PROVENANCE, made)
        card.write(folder, made, title=self._title(mean))

    @cached_property
    def _described(self) -> list[provenance.Input]:
        """The inputs for provenance, whose digests are read once for all outputs."""
        plan, making = self.prepared.plan, self.making
        assert plan is not None
        return provenance.inputs(
            plan.catalogs, self.prepared.found, digest=making.digest, threads=making.threads,
            done=lambda done, of: self._progress("digests", done, of),
        )  # fmt: skip

    def _title(self, mean: Mean) -> str:
        return f"{self.asked.output.resolve().name} {mean.name}".strip()

    def _push(self, repo: str, mean: Mean, path: Path) -> None:
        branch = mean.name.replace("/", "-") or None
        push.push(path, repo, branch=branch, title=self._title(mean))
        self._progress("uploading", self.prepared.means.index(mean) + 1, len(self.prepared.means))


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cluster_at(address: str | None) -> Cluster | None:
    """The Ray cluster at `address`, or at hand where it is "auto"."""
    return None if address is None else Cluster(None if address == "auto" else address)


def bytes_of(size: int | str) -> int:
    """
    >>> bytes_of("5GB"), bytes_of("1 GiB"), bytes_of(1000)
    (5000000000, 1073741824, 1000)
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(size).strip())
    if parts is None or parts[2].upper() not in _UNITS or not int(float(parts[1]) * _UNITS[parts[2].upper()]):
        raise UsageError(f"shard_size={size!r} is no size; write it as 5GB, 500MB or 1GiB")
    return int(float(parts[1]) * _UNITS[parts[2].upper()])


def _check_room(output: Path, plan: Plan, left: int, *, twice: bool) -> None:
    """Raise where the disk has no room for what is not written yet of `left` outputs; `twice`: one at a time is
    converted."""
    one = plan.bytes_written // len(plan.means)
    needed = (left + (twice and left > 0)) * one
    root = root_of(output)
    begun = sum(file.stat().st_blocks * 512 for file in root.rglob("*") if file.is_file()) if root.is_dir() else 0
    there = next(folder for folder in output.resolve().parents if folder.is_dir())
    free = shutil.disk_usage(there).free
    if needed - begun > free:
        raise LawaError(
            f"{there} has {free / 1e9:.1f} GB of room, and the outputs need {(needed - begun) / 1e9:.1f} GB; choose "
            "another --output, fewer averages or a narrower --out-dtype"
        )
