"""What tests of fetching share: trajectories over the replicas, and faults by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants

from lawa.trajectories.naming import Naming
from lawa.trajectories.trajectory import Trajectory

PYTHIA, AMBER, DATA = "org/pythia-tiny", "org/amber-tiny", "org/pile-tiny"


def pythia_like(*steps: int, **settings: Any) -> Trajectory:
    """Of replicas.pythia(): step0 and step1 are told to be the same."""
    told = {"same": (("step0", "step1"), ("main", "step3000")), "main": 3000, **settings}
    naming = Naming(pattern="step{step}", interval=1000)
    return Trajectory(
        name="pythia-tiny", family="pythia", repo=PYTHIA, naming=naming, interval=1000,
        steps=steps or (0, 1, 2, 1000, 2000, 3000), total=6000, **told,
    )  # fmt: skip


def amber_like(**settings: Any) -> Trajectory:
    """Of replicas.amber(): main is the last."""
    naming = Naming(pattern="ckpt_{number:03}", interval=762, numbered_from=0, named={5 * 762: "main"})
    return Trajectory(
        name="amber-tiny", family="amber", repo=AMBER, naming=naming, interval=762,
        steps=[762 * one for one in range(1, 6)], total=5 * 762, **settings,
    )  # fmt: skip


def cache_of(repo: str, kind: str = "models") -> Path:
    return Path(constants.HF_HUB_CACHE) / f"{kind}--{repo.replace('/', '--')}"


def blobs_of(repo: str) -> dict[str, int]:
    """{name: bytes} of every blob."""
    return {file.name: file.stat().st_size for file in (cache_of(repo) / "blobs").iterdir()}
