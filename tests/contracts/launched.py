"""What every rank does in test_ranks.py: pytest, over the whole contract, in a group of gloo processes.

    LAWA_CONTRACT=FSDP2 torchrun --nproc-per-node 2 tests/contracts/launched.py FOLDER

The ranks run the same tests in the same order. One that fails on a rank leaves the others waiting until gloo gives up.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
from torch import distributed

from launching import run_to_the_end


def main() -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    own = Path(sys.argv[1]) / f"rank{distributed.get_rank()}"
    contract = Path(__file__).with_name("test_contract.py")
    code = pytest.main([str(contract), "-x", "-p", "no:cacheprovider", f"--basetemp={own}", *sys.argv[2:]])
    assert code == 0, f"rank {distributed.get_rank()}: pytest says {code!r}"


run_to_the_end(main)
