"""Steps of a trajectory whose weights are equal, and should not be. No torch before files are compared.

They are real: 76 branches of EleutherAI/pythia-2.8b hold the weights of `main` (EleutherAI/pythia, issue 205), two of
pythia-12b one shard of it (issue 206). An average would count one checkpoint twice and not say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lawa.checkpoints import formats
from lawa.errors import LawaError
from lawa.offline import duplicates
from lawa.trajectories.trajectory import Trajectory

Contents = Mapping[int, Mapping[str, str]]  # {step: {file with weights: SHA-256}}
_SHOWN = 6


def refuse_equal_files(trajectory: Trajectory, contents: Contents, revisions: Mapping[int, str]) -> None:
    """Raise LawaError where two steps share a file with weights, and are not told to be the same."""
    having: dict[str, dict[int, str]] = {}
    for step, files in contents.items():
        for name, digest in files.items():
            having.setdefault(digest, {})[step] = name
    shared = {digest: steps for digest, steps in having.items() if not _may_be(trajectory, steps, revisions)}
    if not shared:
        return
    digest, steps = max(shared.items(), key=lambda one: len(one[1]))
    whole = len({frozenset(contents[step].values()) for step in steps}) == 1
    what = "have the same weights" if whole else f"have the same {next(iter(steps.values()))}"
    raise LawaError(_sentence(trajectory, sorted(steps), revisions, f"{what} (SHA-256 {digest[:12]}…)"))


def refuse_equal_tensors(trajectory: Trajectory, paths: Mapping[int, Path], revisions: Mapping[int, str]) -> None:
    """The same for what is on this machine in files of other formats or other shards: by the tensors in them.

    Compared are those whose format is read in place. Two dtypes of one model are different bytes, and pass.
    """
    known = {step: found for step, path in paths.items() if (found := formats.foreseen(path)) is not None}
    steps = sorted(known)
    for group in duplicates.find([known[step] for step in steps]):
        equal = [steps[one] for one in group]
        if not _may_be(trajectory, equal, revisions):
            raise LawaError(_sentence(trajectory, equal, revisions, "have the same tensors, in other files"))


def _may_be(trajectory: Trajectory, steps: Sequence[int] | Mapping[int, str], revisions: Mapping[int, str]) -> bool:
    names = {revisions[step] for step in steps}
    return len(names) == 1 or any(names <= set(group) for group in trajectory.same)


def _sentence(trajectory: Trajectory, steps: Sequence[int], revisions: Mapping[int, str], what: str) -> str:
    names = [revisions[step] for step in steps]
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], f"{len(names) - _SHOWN + 1} more"]
    why = next((f"; known: {trajectory.bad[step]}" for step in steps if step in trajectory.bad), "")
    return (
        f"{trajectory.name}: {', '.join(shown[:-1])} and {shown[-1]} {what}{why}; choose other steps, or "
        "--allow-duplicates"
    )
