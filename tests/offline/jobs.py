"""Jobs over three small checkpoints, what is left of them, and how to interrupt one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lawa.checkpoints import publish
from lawa.offline.job import Job
from lawa.offline.plan import Mean, Plan
from offline import engine
from offline.engine import draws, loaded, planned, same, twin, write

SEVERAL = [Mean("a", (0, 1), None), Mean("b", (1, 2), None), Mean("c", (0, 1, 2), (0.5, 0.25, 0.25))]
Files = dict[str, tuple[bytes, int]]


def states(seed: int = 0) -> list[dict[str, Tensor]]:
    return [{"w": draws((95,), torch.bfloat16, seed + step), "n": torch.arange(7) + step} for step in range(3)]


def inputs(tmp_path: Path, told: list[dict[str, Tensor]] | None = None, **how: Any) -> Plan:
    """A plan over three inputs; they are written where they are not there yet."""
    for step, state in enumerate(told or states()):
        if told is not None or not (tmp_path / f"step{step}").exists():
            shutil.rmtree(tmp_path / f"step{step}", ignore_errors=True)
            write(tmp_path / f"step{step}", state)
    return planned([engine.read(tmp_path / f"step{step}") for step in range(3)], how.pop("means", None), **how)


def finish(mean: Mean, folder: Path) -> None:
    (folder / "config.json").write_text(mean.name)


def job(tmp_path: Path, work: Plan | None = None, **how: Any) -> Job:
    return Job(work or inputs(tmp_path), tmp_path / "out", finish=how.pop("finish", finish), **how)


def done(one: Job, **how: Any) -> list[tuple[str, Path]]:
    return [(mean.name, target) for mean, target in one.run(threads=2, **how)]


def check(output: Path, told: list[dict[str, Tensor]], mean: Mean) -> None:
    publish.verify(output)
    found = loaded(output)
    assert same(found["w"], twin([told[index]["w"] for index in mean.inputs], mean.coefficients, torch.bfloat16))
    assert torch.equal(found["n"], told[mean.inputs[-1]]["n"])
    assert (output / "config.json").read_text() == mean.name


def leftovers(tmp_path: Path) -> list[str]:
    """What is there beside the inputs."""
    return sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("step"))


def held(folder: Path) -> Files:
    return {str(file.relative_to(folder)): (file.read_bytes(), file.stat().st_mtime_ns)
            for file in folder.rglob("*") if file.is_file()}  # fmt: skip


def stop_after(count: int) -> Callable[[int], None]:
    """A progress that interrupts the job after so many items as Ctrl-C would: what was done stays."""
    calls: list[int] = []

    def progress(elements: int) -> None:
        calls.append(elements)
        if len(calls) == 1 + count:  # it is told what was done before, first
            raise KeyboardInterrupt

    return progress


def interrupted(tmp_path: Path, work: Plan, items: int, **how: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(job(tmp_path, work).run(threads=1, progress=stop_after(items), **how))


def elements_done(one: Job, **how: Any) -> int:
    counted: list[int] = []
    done(one, progress=counted.append, **how)
    return sum(counted[1:])
