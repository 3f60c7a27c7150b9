"""Who averages checkpoints on disk: each in a process of its own, with its seconds and its peak of memory.

python benchmarks/disk_contenders.py engine|whole OUTPUT OPTIONS INPUT…    (one of them; what disk.py starts)
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve()
LAWA = [sys.executable, "-m", "lawa", "average"]
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Taken:
    """seconds, and peak: the most bytes that were resident (files that are mapped into memory count)."""

    seconds: float
    peak: int


Contender = Callable[[], Taken]


def limit(inputs: Sequence[Path], output: Path, *, copies: int = 1, sync: bool = False) -> Contender:
    """Every byte read once, by `cat`, and an output's bytes written `copies` times."""
    files = shlex.join(str(one / WEIGHTS) for one in inputs)
    copied = [str(output / f"{number}.safetensors") for number in range(copies)]
    write = [f"cp --reflink=never {shlex.quote(str(inputs[0] / WEIGHTS))} {shlex.quote(one)}" for one in copied]
    steps = [f"cat {files} > /dev/null", *write, *([f"sync {shlex.join(copied)}"] if sync else [])]

    def run() -> Taken:
        output.mkdir()
        return process(["sh", "-ec", "\n".join(steps)])

    return _into(output, run)


def engine(inputs: Sequence[Path], output: Path, *, window: int | None = None, sync: bool = False) -> Contender:
    """Catalogs → match → plan → job, from the first open to the last rename; the process around it is not counted.

    window  every window of so many, each an output of its own; None: one average
    """
    command = _command("engine", inputs, output, window=window, sync=sync)

    def run() -> Taken:
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return Taken(**json.loads(done.stdout))

    return _into(output, run)


def whole_process(inputs: Sequence[Path], output: Path, *options: str) -> Contender:
    """`lawa average INPUT… --output OUTPUT`."""
    return _into(output, lambda: process([*LAWA, *map(str, inputs), "--output", str(output), *options]))


def one_by_one(inputs: Sequence[Path], output: Path) -> Contender:
    """Whole checkpoints loaded one by one, summed in fp32; a whole process."""
    return _into(output, lambda: process(_command("whole", inputs, output)))


def mergekit(inputs: Sequence[Path], output: Path, *, environment: Path, dtype: str) -> Contender:
    """mergekit's linear merge as its users run it: float32 sums asked for, out in `dtype`; a whole process."""
    models = [{"model": str(one), "parameters": {"weight": 1.0}} for one in inputs]
    recipe = {"merge_method": "linear", "models": models, "dtype": "float32", "out_dtype": dtype}
    config = output.with_suffix(".yaml")
    command = [str(environment / "bin" / "mergekit-yaml"), str(config), str(output), "--no-copy-tokenizer"]

    def run() -> Taken:
        config.write_text(json.dumps(recipe), encoding="utf-8")  # which is YAML, too
        return process(command)

    return _into(output, run)


def process(command: Sequence[str]) -> Taken:
    """Run it; RuntimeError with what it said where it fails."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as started:
        peak = _watch(started.pid)
        seconds = time.perf_counter() - began
        said = started.stderr.read() if started.stderr else ""
    if started.returncode:
        raise RuntimeError(f"{shlex.join(command)[:300]} … failed:\n{said[-2000:]}")
    return Taken(seconds, peak)


def _watch(pid: int) -> int:
    """Wait for the end of a process; its VmHWM in bytes, as last seen. (ru_maxrss begins with its parent's.)"""
    ended = os.pidfd_open(pid)
    peak = 0
    try:
        while True:
            peak = max(peak, _peak(f"/proc/{pid}/status"))
            if select.select([ended], [], [], 0.01)[0]:
                return peak
    finally:
        os.close(ended)


def _peak(status: str) -> int:
    try:
        lines = Path(status).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _into(output: Path, run: Contender) -> Contender:
    """What the round before has left is removed first and the disk brought to rest; that is not timed."""

    def cleared() -> Taken:
        shutil.rmtree(output, ignore_errors=True)
        os.sync()  # else it pays for what others have written
        return run()

    return cleared


def removed(contender: Contender, output: Path) -> Contender:
    """As `contender`, and its output does not stay."""

    def run() -> Taken:
        try:
            return contender()
        finally:
            shutil.rmtree(output)

    return run


def _command(what: str, inputs: Sequence[Path], output: Path, **options: object) -> list[str]:
    return [sys.executable, str(HERE), what, str(output), json.dumps(options), *map(str, inputs)]


# ---- in the process


def run_engine(inputs: Sequence[Path], output: Path, *, window: int | None, sync: bool) -> None:
    from lawa.checkpoints.formats import catalog
    from lawa.offline.job import Job
    from lawa.offline.plan import Mean, make_plan
    from lawa.offline.policy import Policy, match

    def scratch() -> Path:
        raise AssertionError("safetensors are read in place")

    began = time.perf_counter()
    catalogs = [catalog(one, scratch=scratch) for one in inputs]
    k = window or len(inputs)
    ends = range(k, len(inputs) + 1)
    means = [Mean(inputs[end - 1].name if window else "", tuple(range(end - k, end)), None) for end in ends]
    plan = make_plan(catalogs, match(catalogs, Policy()), means)
    for _ in Job(plan, output, finish=lambda mean, folder: None).run(threads=len(os.sched_getaffinity(0)), sync=sync):
        pass
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": _peak("/proc/self/status")}))


def run_whole(inputs: Sequence[Path], output: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    sums: dict[str, torch.Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for one in inputs:
        for name, tensor in load_file(one / WEIGHTS).items():
            dtypes[name] = tensor.dtype
            sums[name] = sums[name].add_(tensor) if name in sums else tensor.float()
    scale = torch.tensor(1 / len(inputs), dtype=torch.float32)
    output.mkdir()
    means = {name: (total * scale).to(dtypes[name]) for name, total in sums.items()}
    save_file(means, output / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    what, output, options, *inputs = sys.argv[1:]
    run = {"engine": run_engine, "whole": run_whole}[what]
    run([Path(one) for one in inputs], Path(output), **json.loads(options))
