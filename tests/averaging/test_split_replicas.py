"""DDP ranks that share their snapshots, in real processes: what each rank checks is in split_replicas.py."""

from __future__ import annotations

from pathlib import Path

import pytest

import launching
from averaging import split_replicas

HERE = Path(__file__).parent


def launch(ranks: int, folder: Path, *checks: str) -> None:
    said = launching.launch(HERE / "split_replicas.py", ranks, str(folder), *checks)
    for rank in range(ranks):
        for check in checks:
            assert f"rank {rank}: {check}\n" in said, "every check ran on every rank"


def test_two_ranks(tmp_path: Path) -> None:
    launch(2, tmp_path, *split_replicas.CHECKS)


@pytest.mark.slow
def test_three_ranks(tmp_path: Path) -> None:
    """3 divides nothing evenly."""
    launch(3, tmp_path, *split_replicas.CHECKS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2), (2, 1)])
def test_it_goes_on_on_another_number_of_ranks(before: int, after: int, tmp_path: Path) -> None:
    launch(before, tmp_path, "save")
    launch(after, tmp_path, "load")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_and_without_a_process_group(tmp_path: Path) -> None:
    launch(2, tmp_path, "save")
    split_replicas.load(tmp_path)


def test_a_state_of_whole_snapshots_is_not_mistaken() -> None:
    model, whole = split_replicas.start(split=False)
    split_replicas.train(model, whole, 1, 2)
    _, split = split_replicas.start()
    with pytest.raises(ValueError, match="the saved state's tensors are whole, this averager's split; make it as it"):
        split.load_state_dict(whole.state_dict())
