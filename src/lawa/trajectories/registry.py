"""Which training runs are known, and the trajectory that a name, a YAML file or a run's directory means. No torch.

pythia-160m   EleutherAI/pythia-160m   amber   olmo-2-1b     registered: registered/*.yaml
mine.yaml                                                    told by its fields (lawa.trajectories.description)
runs/a                                                       a run of lawa train
"""

from __future__ import annotations

import difflib
from pathlib import Path

from lawa.errors import UsageError
from lawa.pretrain.config import read_yaml
from lawa.pretrain.directory import CONFIG
from lawa.trajectories.description import trajectory
from lawa.trajectories.families import registered
from lawa.trajectories.own import of_run
from lawa.trajectories.trajectory import Trajectory

__all__ = ["Trajectory", "find", "names"]


def names() -> list[str]:
    """Of the registered ones, family by family."""
    return list(registered())


def find(name_or_path: str | Path) -> Trajectory:
    """That of a run or a YAML file where there is such a path; else a registered one, by its name or its repo.

    Raises UsageError for what is none of them, and naming the field of a YAML file that is wrong.
    """
    given, path = str(name_or_path), Path(name_or_path)
    if (path / CONFIG).is_file():
        return of_run(path)
    if path.is_file():
        return of_file(path)
    if found := known(given):
        return found
    if path.is_dir():
        raise UsageError(f"{path} is no run of lawa train (it has no {CONFIG}); name a run, or a YAML file")
    near = nearest(given)
    hint = f"did you mean {near}?" if near else "give a run, a YAML file, or a name that lawa inspect lists"
    raise UsageError(f"no trajectory is called {given}; {hint}")


def known(name: str) -> Trajectory | None:
    """The registered one with this name or repo. UsageError for a repo of several, none of which is named so."""
    every, wanted = registered(), name.lower()
    if wanted in every:
        return every[wanted]
    found = [one for one in every.values() if wanted in (one.repo.lower(), one.repo.lower().rpartition("/")[2])]
    if len(found) < 2:
        return found[0] if found else None
    if same := every.get(wanted.rpartition("/")[2]):
        return same
    raise UsageError(f"{name} holds several trajectories; name one of {', '.join(one.name for one in found)}")


def nearest(name: str) -> str | None:
    """The registered name that is most like `name`, if any is."""
    near = difflib.get_close_matches(name.lower().rpartition("/")[2], names(), n=1, cutoff=0.7)
    return near[0] if near else None


def of_file(path: Path) -> Trajectory:
    """A trajectory that a user tells; its name is the file's, where it has none."""
    try:
        return trajectory({"name": path.stem, **read_yaml(path)})
    except UsageError as wrong:
        raise UsageError(f"{path}: {wrong}") from None
