"""The arms of a branch, and the fewest trainings that show them all. No torch.

An arm is a named overlay of the settings. What does not replace the weights trains alike whatever is averaged, so such
arms are one training, whose plain weights and averages are all evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lawa.errors import UsageError
from lawa.pretrain.config import read_yaml
from lawa.settings import merge

Overlay = Mapping[str, Any]

ARMS: dict[str, Overlay] = {
    "plain": {"averaging": {"mode": "none"}},
    "evaluate": {"averaging": {"mode": "evaluate"}},
    "replace": {"averaging": {"mode": "replace", "after_replace": "slide"}},
    "clear": {"averaging": {"mode": "replace", "after_replace": "clear"}},
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One run: the arms that it shows, and its settings laid over the branch's."""

    name: str
    arms: tuple[str, ...]
    overlay: Overlay


def find_arms(asked: Sequence[str]) -> dict[str, Overlay]:
    """The arms of these names; a name that ends in .yaml is a file that maps names of its own to settings."""
    arms: dict[str, Overlay] = {}
    for name in asked:
        if name.endswith((".yaml", ".yml")):
            found: Mapping[str, Any] = {one: overlay or {} for one, overlay in read_yaml(Path(name)).items()}
        elif name in ARMS:
            found = {name: ARMS[name]}
        else:
            raise UsageError(f"--arms: {name!r} is none of {', '.join(ARMS)}, and no .yaml file of arms")
        for one, overlay in found.items():
            if one in arms:
                raise UsageError(f"--arms: {one!r} is named twice; name each arm once")
            if not isinstance(overlay, Mapping) or "/" in one or one.startswith("."):
                raise UsageError(f"--arms: {one!r} must be a name with a mapping of settings (averaging: …)")
            arms[one] = overlay
    if not arms:
        raise UsageError(f"--arms names no arm; name some of {', '.join(ARMS)}, or a .yaml file of arms")
    return arms


def trainings(arms: Mapping[str, Overlay], lr_scales: Sequence[float], averaging: Overlay) -> list[Training]:
    """What is trained, for each factor on the learning rate.

    averaging  the settings of the one window, for arms that name no averages of their own
    """
    for scale in lr_scales:
        if not 0 < scale < float("inf"):
            raise UsageError(f"--lr-scale {scale:g} must be above 0, and finite")
    if len(set(lr_scales)) < len(lr_scales):
        raise UsageError("--lr-scale names a factor twice; name each once")
    alone: list[Training] = []
    together: list[tuple[Overlay, list[str]]] = []  # settings but for averaging → the arms
    for name, overlay in arms.items():
        own = overlay.get("averaging", {})
        rest = {section: values for section, values in overlay.items() if section != "averaging"}
        if own.get("mode") == "replace":
            base = _kept(averaging) if "averages" in own else averaging
            alone.append(Training(name=name, arms=(name,), overlay={**rest, "averaging": merge(base, own)}))
            continue
        group = next((names for settings, names in together if settings == rest), None)
        if group is None:
            together.append((rest, [name]))
        else:
            group.append(name)
    shared = [_together(names, rest, {name: arms[name] for name in names}, averaging) for rest, names in together]
    return [_scaled(one, scale) for scale in lr_scales for one in (*shared, *alone)]


def _together(names: Sequence[str], rest: Overlay, arms: Mapping[str, Overlay], averaging: Overlay) -> Training:
    """One training for these arms: the averages of all, under the arms' names where several have some."""
    own = {
        name: overlay.get("averaging", {})
        for name, overlay in arms.items()
        if overlay.get("averaging", {}).get("mode", "none") == "evaluate"
    }
    if not own:
        return Training(name=names[0], arms=tuple(names), overlay={**rest, "averaging": {"mode": "none"}})
    name = next((name for name in names if name not in own), names[0])
    if len(own) == 1:
        (only,) = own.values()
        base = _kept(averaging) if "averages" in only else averaging
        return Training(name=name, arms=tuple(names), overlay={**rest, "averaging": merge(base, only)})
    averages: dict[str, Any] = {}
    for arm, settings in own.items():
        for label, spec in _averages(settings, averaging).items():
            averages[arm if label == "lawa" else f"{arm}-{label}"] = spec
    overlay = {"mode": "evaluate", "averages": averages}
    return Training(name=name, arms=tuple(names), overlay={**rest, "averaging": merge(_kept(averaging), overlay)})


_OF_WINDOW = ("every", "window", "start", "stop", "coefficients", "min_window")


def _kept(averaging: Overlay) -> dict[str, Any]:
    """What is not of the one window: where snapshots lie, what they are filled with."""
    return {name: value for name, value in averaging.items() if name not in _OF_WINDOW}


def _averages(settings: Overlay, averaging: Overlay) -> dict[str, Any]:
    if "averages" in settings:
        return dict(settings["averages"])
    return {"lawa": {name: value for name, value in merge(averaging, settings).items() if name in _OF_WINDOW}}


def _scaled(training: Training, scale: float) -> Training:
    name = training.name if scale == 1 else f"{training.name}-lr{scale:g}"
    overlay = merge(training.overlay, {"training": {"lr_scale": scale}})
    return Training(name=name, arms=training.arms, overlay=overlay)
