"""DeepSpeed's ZeRO in real processes: what each rank checks is in zero_checks.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from launching import launch

pytest.importorskip("deepspeed", reason="pip install 'latest-weight-averaging[deepspeed]'")

SCRIPT = Path(__file__).with_name("zero_checks.py")
CHECKS = (
    "the_counter_counts",
    "padding_and_frozen_parameters_are_left_out",
    "a_rank_with_nothing_but_padding_takes_part",
    "one_bad_rank_and_all_skip",
    "wrapped_as_accelerate_wraps_it",
    "what_is_unsupported_is_refused",
)
OF_A_WAY = (
    "fragments_are_named_after_their_parameters",
    "replacements_are_the_twins",
    "looking_changes_nothing_and_needs_no_gather",
    "moments_follow_their_policy",
)
WAYS = (
    "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3 in sub-groups", "bf16 ZeRO-1", "bf16 ZeRO-1, fp32 gradients", "bf16 ZeRO-2",
    "bf16 ZeRO-3", "offloaded ZeRO-2", "offloaded ZeRO-3", "bf16 without ZeRO",
)  # fmt: skip
LAYOUTS = ("ZeRO-2, round robin", "ZeRO-1, aligned")


def check(ranks: int, folder: Path, *names: str) -> None:
    said = launch(SCRIPT, ranks, str(folder), *names)
    for rank in range(ranks):
        for name in names:
            assert f"rank {rank}: {name}\n" in said, "every check ran on every rank"


@pytest.mark.slow
def test_two_ranks(tmp_path: Path) -> None:
    names = [f"{name}:{way}" for way in WAYS for name in OF_A_WAY]
    names += [f"fragments_are_named_after_their_parameters:{way}" for way in LAYOUTS]
    check(2, tmp_path, *CHECKS, *names)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.exhaustive
def test_other_numbers_of_ranks(ranks: int, tmp_path: Path) -> None:
    """One has no padding and nobody to gather from; three share unevenly."""
    check(ranks, tmp_path, *(f"{name}:{way}" for way in ("bf16 ZeRO-2", "ZeRO-3") for name in OF_A_WAY))


@pytest.mark.slow
def test_a_check_that_fails_fails_the_launch(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="KeyError: 'no such way'"):
        check(2, tmp_path, "replacements_are_the_twins:no such way")
