"""TensorBoard, wandb and trackio, told what metrics.jsonl records; accelerate's tracker classes do the talking.

    train        train/loss, train/lr, train/grad_norm, train/tokens, … (every number of the record)
    evaluation   validation/plain, and for each average validation/NAME and validation/NAME_snapshots
    replacement  replacement/applied (1 or 0), replacement/loss, replacement/snapshots
    end          end/seconds/training, …

The step is the update. Their files lie in RUN/tracking/. metrics.jsonl stays the record of the run: a tracker that
fails while training goes on is left out from then on, with a warning.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from lawa import records
from lawa.errors import LawaError, require
from lawa.pretrain.config import Config

FOLDER = "tracking"
WANDB_ID = "wandb.json"


class Trackers:
    """The trackers of one run; on ranks other than the first there are none, and every call does nothing."""

    def __init__(self, trackers: dict[str, GeneralTracker], warn: Callable[[str], None]) -> None:
        self.trackers = trackers
        self.warn = warn
        self.seen: dict[str, int] = {}  # up to which update a tracker that cannot forget was told before a resume

    @classmethod
    def start(
        cls,
        accelerator: Accelerator,
        config: Config,
        run: Path,
        resumed_from: int | None,
        *,
        warn: Callable[[str], None],
    ) -> Self:
        """Start what `config.tracking` names, or go on with it after update `resumed_from`.

        After a resume no point shows twice: TensorBoard forgets what it was told from that update on, and is told
        again what metrics.jsonl holds of it (cut it back before); wandb ignores steps it knows, and of trackio's we
        leave them out. Raises LawaError for a tracker that is not installed or would not start.
        """
        tracking = config.tracking
        trackers = cls({}, warn)
        if not accelerator.is_main_process or not tracking.trackers:
            return trackers
        folder = run / FOLDER
        folder.mkdir(exist_ok=True)
        name = tracking.name or run.resolve().name
        settings = dict(flat(config.to_dict()))
        for kind in tracking.trackers:
            if kind == "trackio":
                os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
            require(kind, extra="trackers")
            tracker = _make(kind, folder, tracking.project, name, resumed_from)
            try:
                with redirect_stdout(sys.stderr):  # stdout is for results
                    tracker.start()
                    _store(tracker, settings, fresh=resumed_from is None)
            except Exception as failed:
                raise LawaError(
                    f"tracking: {kind} would not start ({_first_line(failed)}); mend that, or leave it out of "
                    "tracking.trackers"
                ) from failed
            trackers.trackers[kind] = tracker
        if resumed_from is not None:
            trackers._go_on(run, resumed_from)
        return trackers

    def log(self, kind: str, update: int, fields: Mapping[str, Any]) -> None:
        """Tell every tracker of one record, exactly as metrics.jsonl has it."""
        values = dict(named(kind, fields))
        for name, tracker in list(self.trackers.items()):
            if update > self.seen.get(name, 0):
                self._try(name, tracker.log, values, update)

    def finish(self) -> None:
        """Bring everything to its place; waits for what is still on its way."""
        for name, tracker in list(self.trackers.items()):
            # trackio's own door: accelerate's leaves the run open, and trackio says so on stdout at exit.
            door = require("trackio", extra="trackers") if name == "trackio" else tracker
            self._try(name, door.finish)
        self.trackers.clear()

    def _go_on(self, run: Path, resumed_from: int) -> None:
        for tracker in self.trackers.values():
            if isinstance(tracker, TrackioTracker):
                last = getattr(tracker.tracker, "_next_step", 0) - 1  # trackio tells it nowhere else
                # At resumed_from itself a pending replacement may still be to come.
                self.seen["trackio"] = last if last > resumed_from else 0
            elif isinstance(tracker, TensorBoardTracker):
                for line in records.read(run / "metrics.jsonl"):
                    if line["update"] == resumed_from:
                        tracker.log(dict(named(line["kind"], line)), resumed_from)

    def _try(self, name: str, call: Callable[..., object], *arguments: object) -> None:
        try:
            with redirect_stdout(sys.stderr):
                call(*arguments)
        except Exception as failed:
            del self.trackers[name]
            self.warn(f"{name} failed and is left out from now on ({_first_line(failed)})")


def named(kind: str, fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a record, each under its clear name; text and what is not there (null) are left out."""
    if kind == "evaluation":
        yield from _numbers("validation", fields["losses"])
        yield from _numbers("validation", {f"{name}_snapshots": n for name, n in fields["snapshots"].items()})
    else:
        yield from _numbers(kind, {name: value for name, value in fields.items() if name not in ("kind", "update")})


def flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """{"training.lr": 0.004, …}: what is no number is its text, as trackers take no lists and no null."""
    for name, value in settings.items():
        key = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            yield from flat(value, key)
        else:
            yield key, value if isinstance(value, (str, int, float)) else str(value)


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", int(value) if isinstance(value, bool) else value


def _make(kind: str, folder: Path, project: str, name: str, resumed_from: int | None) -> GeneralTracker:
    if kind == "tensorboard":
        return TensorBoardTracker(name, folder / "tensorboard", purge_step=resumed_from)
    if kind == "wandb":
        return WandBTracker(project, name=name, id=_wandb_id(folder / WANDB_ID), resume="allow", dir=str(folder))
    return TrackioTracker(project, name=name, resume="allow", embed=False)


def _store(tracker: GeneralTracker, settings: dict[str, Any], *, fresh: bool) -> None:
    """The configuration as hyperparameters."""
    if not isinstance(tracker, TensorBoardTracker):
        tracker.store_init_configuration(settings)
    elif fresh:  # in the run's own file: accelerate makes another "run" of them, named by the clock
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(settings, {}):
            tracker.writer._get_file_writer().add_summary(summary)


def _wandb_id(file: Path) -> str:
    """The id under which wandb knows this run: made once, and kept beside its files."""
    if not file.is_file():
        records.write_json(file, {"id": secrets.token_hex(8)})
    return json.loads(file.read_text(encoding="utf-8"))["id"]


def _first_line(failed: Exception) -> str:
    return str(failed).partition("\n")[0] or type(failed).__name__
