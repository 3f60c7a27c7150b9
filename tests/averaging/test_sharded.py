"""FSDP2 in real processes: what each rank checks is in sharded.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from averaging import sharded

HERE = Path(__file__).parent


def launch(ranks: int, folder: Path, *checks: str) -> None:
    path = os.pathsep.join([str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", str(ranks), str(HERE / "sharded.py"), str(folder), *checks,
        ],
        env={**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(ranks):
        for check in checks:
            assert f"rank {rank}: {check}\n" in done.stdout, "every check ran on every rank"


def test_two_ranks(tmp_path: Path) -> None:
    """torch's AveragedModel fails here at once: "FSDP does not support deepcopy"."""
    launch(2, tmp_path, *sharded.CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_other_numbers_of_ranks(ranks: int, tmp_path: Path) -> None:
    """1 has nothing to share, 3 divides nothing evenly, and with 4 some ranks hold empty shards."""
    need_two = {"the_counter_counts", "one_bad_rank_and_all_skip"} if ranks == 1 else set()
    launch(ranks, tmp_path, *(name for name in sharded.CHECKS if name not in need_two))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_saved_on_two_ranks_it_goes_on_on_one_and_on_three(tmp_path: Path) -> None:
    """In the middle of a window, with a replacement pending; one is a process without a process group, too."""
    launch(2, tmp_path, "save_for_others")
    for ranks in (1, 3):
        launch(ranks, tmp_path, "load_from_others")
    model, averager = sharded.load(sharded.Model(), tmp_path / "checkpoint", no_dist=True)
    sharded.compare(sharded.ends(model, averager), tmp_path)


@pytest.mark.slow
def test_a_check_that_fails_fails_the_launch(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No such file or directory"):
        launch(2, tmp_path, "load_from_others")
