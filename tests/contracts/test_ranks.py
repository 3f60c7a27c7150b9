"""The contract over the ways in which several processes train: real ones, by torchrun."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.adapters import LAUNCHED

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("way", LAUNCHED)
def test_two_ranks(way: str, tmp_path: Path) -> None:
    path = os.pathsep.join([str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", "2", str(HERE / "launched.py"), str(tmp_path),
        ],
        env={
            **os.environ, "PYTHONPATH": path, "LAWA_CONTRACT": way, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1",
        },
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.findall(r"(\d+) passed", done.stdout)
    assert len(counts) == 2, "both ranks came to the end"
    assert counts[0] == counts[1]
    assert int(counts[0]) > 20
