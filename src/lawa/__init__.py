"""Latest weight averaging (LAWA) for language-model pre-training.

The doors. Each is imported when it is first used, so that `import lawa` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lawa.version import __version__

if TYPE_CHECKING:
    from lawa.averaging.averager import WeightAverager, estimate
    from lawa.averaging.averages import EMA, RunningMean, Window
    from lawa.cadence import Cadence
    from lawa.checkpoints.averager_state import AveragerState
    from lawa.checkpoints.save_average import save_average
    from lawa.errors import LawaError, NonFiniteAverage
    from lawa.offline.average import average

_DOORS = {
    "WeightAverager": "lawa.averaging.averager",
    "estimate": "lawa.averaging.averager",
    "Window": "lawa.averaging.averages",
    "EMA": "lawa.averaging.averages",
    "RunningMean": "lawa.averaging.averages",
    "average": "lawa.offline.average",
    "Cadence": "lawa.cadence",
    "AveragerState": "lawa.checkpoints.averager_state",
    "save_average": "lawa.checkpoints.save_average",
    "LawaError": "lawa.errors",
    "NonFiniteAverage": "lawa.errors",
}

__all__ = [
    "EMA",
    "AveragerState",
    "Cadence",
    "LawaError",
    "NonFiniteAverage",
    "RunningMean",
    "WeightAverager",
    "Window",
    "__version__",
    "average",
    "estimate",
    "save_average",
]


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'lawa' has no attribute {name!r}")
    return getattr(import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
