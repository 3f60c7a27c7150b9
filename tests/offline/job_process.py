"""A job in a process of its own that can be killed: python job_process.py OUTPUT {single|several|overwrite} INPUT…

Without torch, so that it starts at once. It says when the work begins.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats.safetensors import read_header
from lawa.offline import plan
from lawa.offline.job import Job
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match


def planned(kind: str, inputs: list[Path]) -> Plan:
    catalogs = [
        Catalog(label=one.name, directory=one, format="hf", tensors=read_header(one / "model.safetensors").tensors)
        for one in inputs
    ]
    means = [Mean("", (0, 1, 2), None)]
    if kind == "several":
        means = [Mean("a", (0, 1), None), Mean("b", (1, 2), None), Mean("c", (0, 1, 2), (0.5, 0.25, 0.25))]
    return make_plan(catalogs, match(catalogs, Policy()), means, shard_bytes=6000)


def finish(mean: Mean, folder: Path) -> None:
    time.sleep(0.01)
    (folder / "config.json").write_text(f"{mean}")


def main() -> None:
    plan.ITEM = 40
    job = Job(
        planned(sys.argv[2], [Path(one) for one in sys.argv[3:]]),
        Path(sys.argv[1]),
        finish=finish,
        overwrite=sys.argv[2] == "overwrite",
    )
    print("begun", flush=True)
    for _, target in job.run(threads=2, sync=False, progress=lambda elements: time.sleep(0.001)):
        print(target, flush=True)


if __name__ == "__main__":
    main()
