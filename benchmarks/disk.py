"""Averages of checkpoints on disk: against the disk's own speed, against other averagers, and in memory.

    python benchmarks/disk.py [--quick] [--output FILE] [--folder DIR] [--mergekit VENV] [--large]

Checkpoints of random values are written to --folder (default: a temporary one; up to 15 GB, --large a third more than
the machine's memory) and removed; all are read once before anything is timed, so that the system has them cached. The
limit is `cat` of all inputs and `cp` of one. The engine is timed within its process, from the first open to the rename;
`lawa average`, mergekit (0.1.5, in an environment of its own: --mergekit) and the loading of whole checkpoints one by
one are whole processes. Every output is removed before the next is written, which is not timed. Peak memory is VmHWM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from disk_contenders import WEIGHTS, Contender, Taken, engine, limit, mergekit, one_by_one, removed, whole_process
from disk_data import HUGE, LARGE, MEDIUM, SMALL, TINY, Case, make
from lawa.checkpoints.catalog import Stored
from lawa.checkpoints.formats.safetensors import read_header
from measure import QUICK_ROUNDS, Check, Found, Record, Spread, alternate, describe, finish, number, over

ROUNDS = 7
TARGET, ROLLING_TARGET = 1.3, 1.4  # × the limit
WINDOW = 5
MEMORY = 500e6  # bytes
FASTER = {"whole": 1.5, "mergekit": 3.0}
FASTER_LARGE = {"whole": 3.0, "mergekit": 5.0}  # where the start of a process no longer counts

# Cases that share their checkpoints follow one another.
CASES = [
    Case(MEDIUM, 20), Case(MEDIUM, 10), Case(MEDIUM, 5), Case(MEDIUM, 10, "float32"), Case(SMALL, 10), Case(LARGE, 10),
]  # fmt: skip
ROLLING = Case(SMALL, 20)

OTHERS = {
    "process": "`lawa average`",
    "whole": "whole checkpoints loaded one by one, fp32 sums",
    "mergekit": "mergekit's linear merge",
}


def measure(folder: Path, *, quick: bool, environment: Path | None, large: bool) -> list[Found]:
    cases = [Case(TINY, 3), Case(TINY, 3, "float32")] if quick else CASES
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: list[Found] = []
    for case in cases:
        found += in_its_folder(
            folder, case, lambda inputs, out, case=case: one_case(case, inputs, out, rounds, environment=environment)
        )
    rolling_case = Case(TINY, 7) if quick else ROLLING
    found += in_its_folder(
        folder, rolling_case, lambda inputs, out: rolling(rolling_case, inputs, out, rounds), outputs_of=40
    )
    shutil.rmtree(folder / "inputs", ignore_errors=True)
    if large:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        case = Case(HUGE, max(11, round(1.33 * memory / Case(HUGE, 1).nbytes)))
        found += in_its_folder(
            folder, case, lambda inputs, out: one_case(case, inputs, out, 1, environment=environment, cached=False)
        )
    return found


def in_its_folder(
    folder: Path, case: Case, run: Callable[[list[Path], Path], list[Found]], *, outputs_of: int = 4
) -> list[Found]:
    """Its checkpoints, those of the case before where they are the same, and a folder for outputs; if there is room."""
    place = folder / "inputs" / f"{case.size.parameters}-{case.dtype}"
    for other in place.parent.glob("*"):
        if other != place:
            shutil.rmtree(other)
    there = sum(file.stat().st_size for file in place.glob("*/*"))
    needed, free = 1.1 * (case.nbytes - there) + outputs_of * case.one, shutil.disk_usage(folder).free
    if needed > free:
        room = f"{needed / 1e9:.0f} GB in {folder}, which has {free / 1e9:.0f} GB"
        print(f"disk: {case.title} needs {room}: left out", file=sys.stderr)
        return []
    outputs = folder / "outputs"
    outputs.mkdir(exist_ok=True)
    try:
        return run(make(place, case), outputs)
    finally:
        shutil.rmtree(outputs)


# ---- one average


def one_case(
    case: Case, inputs: Sequence[Path], out: Path, rounds: int, *, environment: Path | None = None, cached: bool = True
) -> list[Found]:
    contenders: dict[str, Contender] = {
        "limit": removed(limit(inputs, out / "limit"), out / "limit"),
        "engine": engine(inputs, out / "engine"),
        "limit, fsync": removed(limit(inputs, out / "limit-fsync", sync=True), out / "limit-fsync"),
        "engine, fsync": removed(engine(inputs, out / "engine-fsync", sync=True), out / "engine-fsync"),
        "process": removed(whole_process(inputs, out / "process"), out / "process"),
        "whole": one_by_one(inputs, out / "whole"),
    }
    if environment:
        other = out / "mergekit"
        contenders["mergekit"] = removed(mergekit(inputs, other, environment=environment, dtype=case.dtype), other)
    if cached:
        contenders["limit"]()
    took = alternate(contenders, rounds=rounds, warmup=1 if cached else 0)
    faster = FASTER if cached else FASTER_LARGE
    return [
        *(against_limit(case, took, suffix) for suffix in ("", ", fsync")),
        *(against(case, took, other, faster[other]) for other in ("whole", "mergekit") if other in took),
        *(memory(case, name, took[name]) for name in ("engine", *OTHERS) if name in took),
        same(case, out / "engine" / WEIGHTS, out / "whole" / WEIGHTS),
    ]


def against_limit(case: Case, took: Mapping[str, list[Taken]], suffix: str) -> Record:
    ours, least = seconds(took[f"engine{suffix}"]), seconds(took[f"limit{suffix}"])
    synced = " and fsync" if suffix else ""
    return Record(
        name=f"disk/{case.name}/engine{suffix.replace(', ', '-')}",
        question=f"{case.title}: the engine{suffix} / `cat` of all inputs, `cp` of one{synced}",
        ratio=over(ours.values, least.values),
        target=TARGET,
        n=len(ours.values),
        parts={f"engine{suffix}": ours, f"limit{suffix}": least},
        note=f"{shown(ours)} / {shown(least)}",
    )


def against(case: Case, took: Mapping[str, list[Taken]], other: str, times: float) -> Record:
    ours, theirs = seconds(took["process"]), seconds(took[other])
    return Record(
        name=f"disk/{case.name}/{other}",
        question=f"{case.title}: {OTHERS['process']} / {OTHERS[other]}, whole processes",
        ratio=over(ours.values, theirs.values),
        target=1 / times,
        n=len(ours.values),
        parts={"process": ours, other: theirs},
        note=f"{shown(ours)} / {shown(theirs)}",
    )


def memory(case: Case, name: str, took: Sequence[Taken]) -> Record:
    """Of ours against what is promised; of others as a finding."""
    peak = Spread.of([one.peak for one in took])
    ours = name in ("engine", "process")
    who = {"engine": "the engine"} | OTHERS
    return Record(
        name=f"disk/{case.name}/memory/{name}",
        question=f"{case.title}: peak memory of {who[name]} / {MEMORY / 1e9} GB",
        ratio=Spread.of([value / MEMORY for value in peak.values]),
        target=1.0 if ours else None,
        n=len(peak.values),
        parts={f"{name}, bytes": peak},
        note=f"{peak.median / 1e9:.2f} GB",
    )


def same(case: Case, ours: Path, literal: Path) -> Check:
    """Both sum in fp32, oldest first, and scale once."""
    made, meant = read_header(ours).tensors, read_header(literal).tensors
    different = [name for name in meant if not np.array_equal(_bytes(made[name]), _bytes(meant[name]))]
    return Check(
        name=f"disk/{case.name}/same",
        claim=f"{case.title}: the engine's bits are those of whole tensors summed in fp32",
        held=not different,
        detail=", ".join(different[:3]),
    )


def _bytes(stored: Stored) -> np.ndarray:
    return np.memmap(stored.file, np.uint8, mode="r", offset=stored.offset, shape=(stored.nbytes,))


# ---- every window


def rolling(case: Case, inputs: Sequence[Path], out: Path, rounds: int) -> list[Found]:
    copies = case.count - WINDOW + 1
    windows = engine(inputs, out / "engine", window=WINDOW)
    took = alternate(
        {
            "limit": removed(limit(inputs, out / "limit", copies=copies), out / "limit"),
            "engine": removed(windows, out / "engine"),
        },
        rounds=rounds,
        warmup=1,
    )
    windows()
    ours, least = seconds(took["engine"]), seconds(took["limit"])
    published = sorted(path.name for path in (out / "engine").iterdir())
    return [
        Record(
            name=f"disk/{case.name}/rolling",
            question=f"{case.title}: the engine, every window of {WINDOW} / read all once, write {copies} once",
            ratio=over(ours.values, least.values),
            target=ROLLING_TARGET,
            n=rounds,
            parts={"engine": ours, "limit": least},
            note=f"{shown(ours)} / {shown(least)}",
        ),
        replace(memory(case, "engine", took["engine"]), name=f"disk/{case.name}/rolling/memory"),
        Check(
            name=f"disk/{case.name}/windows",
            claim=f"{case.title}: every window of {WINDOW} was published",
            held=published == [one.name for one in inputs[WINDOW - 1 :]],
            detail=f"{len(published)} of {copies}",
        ),
    ]


def seconds(took: Sequence[Taken]) -> Spread:
    return Spread.of([one.seconds for one in took])


def shown(spread: Spread) -> str:
    return f"{number(spread.median, '×')} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write everything as JSON")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where checkpoints are written (default: temporary)")
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="an environment with mergekit 0.1.5")
    parser.add_argument("--large", action="store_true", help="and a job larger than the machine's memory")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads in whole processes")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The numbers mean nothing")
    given = parser.parse_args()
    if given.threads:
        os.environ["OMP_NUM_THREADS"] = str(given.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        found = measure(Path(folder), quick=given.quick, environment=given.mergekit, large=given.large)
    if given.quick:
        found = [replace(one, target=None) if isinstance(one, Record) else one for one in found]
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    spent = round(time.perf_counter() - began, 1)
    finish(describe("disk", found, quick=given.quick, threads=threads, seconds=spent), given.output)


if __name__ == "__main__":
    main()
