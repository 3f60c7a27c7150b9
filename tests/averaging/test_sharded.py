"""Sharded models in real processes: what each rank checks is in sharded.py, evaluated.py and meshes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from averaging import evaluated, meshes, sharded
from launching import launch

HERE = Path(__file__).parent

EXHAUSTIVE = pytest.mark.exhaustive


def run(script: str, ranks: int, folder: Path, *checks: str, layout: str = "") -> None:
    said = launch(HERE / script, ranks, str(folder), *checks, timeout=240, LAYOUT=layout)
    for rank in range(ranks):
        for check in checks:
            assert f"rank {rank}: {check}\n" in said, "every check ran on every rank"


def test_two_ranks(tmp_path: Path) -> None:
    """torch's AveragedModel fails here at once: "FSDP does not support deepcopy"."""
    run("sharded.py", 2, tmp_path, *sharded.CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3, 4])
@EXHAUSTIVE
def test_other_numbers_of_ranks(ranks: int, tmp_path: Path) -> None:
    """1 has nothing to share, 3 divides nothing evenly, and with 4 some ranks hold empty shards."""
    need_two = {"the_counter_counts", "one_bad_rank_and_all_skip"} if ranks == 1 else set()
    run("sharded.py", ranks, tmp_path, *(name for name in sharded.CHECKS if name not in need_two))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=EXHAUSTIVE)])
def test_evaluated_under_every_setting_of_fsdp2(ranks: int, tmp_path: Path) -> None:
    """With 4, reshard_after_forward=2 as well."""
    run("evaluated.py", ranks, tmp_path, *evaluated.CHECKS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "ranks"), [("tp", 2), pytest.param("tp", 3, marks=EXHAUSTIVE), ("fsdp2 x tp", 4), ("hsdp", 4)]
)
def test_meshes(layout: str, ranks: int, tmp_path: Path) -> None:
    run("meshes.py", ranks, tmp_path, *meshes.CHECKS, layout=layout)


@pytest.mark.slow
def test_uneven_and_empty_shards_of_tensor_parallel(tmp_path: Path) -> None:
    checks = ("averages_are_those_of_the_whole_model_without_a_collective", "exported_as_one_model")
    run("meshes.py", 3, tmp_path, *checks, layout="uneven tp")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
@pytest.mark.parametrize(("saved", "resumed"), [(2, 1), (1, 2), (2, 3), pytest.param(3, 4, marks=EXHAUSTIVE)])
def test_saved_on_some_ranks_it_goes_on_on_others(saved: int, resumed: int, tmp_path: Path) -> None:
    """With one window full and one half full, and a replacement pending; in fresh processes."""
    run("sharded.py", saved, tmp_path, "save_for_others")
    run("sharded.py", resumed, tmp_path, "load_from_others")
    if resumed == 1:  # a process without a process group, too
        model, averager = sharded.load(sharded.Model(), tmp_path / "checkpoint", no_dist=True)
        sharded.compare(sharded.ends(model, averager), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        (("fsdp2", 2), ("tp", 3)),
        pytest.param(("tp", 2), ("fsdp2 x tp", 4), marks=EXHAUSTIVE),
        pytest.param(("fsdp2 x tp", 4), ("hsdp", 4), marks=EXHAUSTIVE),
        pytest.param(("hsdp", 4), ("fsdp2", 3), marks=EXHAUSTIVE),
        (("uneven tp", 3), ("uneven tp", 2)),
    ],
    ids=str,
)
def test_saved_under_one_sharding_it_goes_on_under_another(
    saved: tuple[str, int], resumed: tuple[str, int], tmp_path: Path
) -> None:
    run("meshes.py", saved[1], tmp_path, "save_for_others", layout=saved[0])
    run("meshes.py", resumed[1], tmp_path, "load_from_others", layout=resumed[0])


@pytest.mark.slow
def test_a_check_that_fails_fails_the_launch(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="No such file or directory"):
        run("sharded.py", 2, tmp_path, "load_from_others")
