"""Branch a run at a released checkpoint: its weights, its optimizer state, its next batches, in several arms.

    OUTPUT/branch.json                      the request, and the commits it stands for
    OUTPUT/step00072000/start/              the state of the checkpoint, where its moments are public
                        data/               the batches
                        ARM[-lr2]/          runs of lawa train
                        released/           losses of the run's own next checkpoints, on the same text

Whatever is there already is not done again: the same command goes on where a killed one stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from lawa.checkpoints.find import step_directory
from lawa.checkpoints.publish import is_published
from lawa.data.batches import absolute, open_batches
from lawa.errors import UsageError
from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.pretrain.directory import FINAL, latest
from lawa.pretrain.ranks import Ranks
from lawa.pretrain.text import open_text
from lawa.settings import build, merge, nested
from lawa.trajectories import registry
from lawa.trajectories.arms import Training, find_arms, trainings
from lawa.trajectories.data import settings_for
from lawa.trajectories.fetch import Fetcher
from lawa.trajectories.ranges import Arrived
from lawa.trajectories.released import evaluate_released
from lawa.trajectories.request import alone, begin
from lawa.trajectories.start import OPTIMIZER, has_state, start_of
from lawa.trajectories.trajectory import Trajectory

REQUEST = "branch"
START, DATA, RELEASED = "start", "data", "released"
_REWARMUP = 100  # updates, where moments are fresh: a few times 1/(1 − β2)

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is branched.

    trajectory     a registered name, a YAML file, a run's directory
    steps          the checkpoints S that are branched from
    updates        U, of every arm
    arms           names of arms.ARMS, or YAML files of arms
    lr_scales      factors on the run's own learning rate
    window, every  of the average; every: default the trajectory's interval
    prefill        "released": the window holds the released checkpoints up to and including S from the beginning;
                   "none": it starts empty
    optimizer      "released" (where public, else fresh) or "fresh"
    schedule       another rule of the learning rate, as lawa.pretrain.schedules names them; default: the run's own
    rewarmup       updates over which the rate rises, with fresh moments; default 100, or a tenth of a short branch
    held_out       sequences of the batches after the branch's last one, which arms and checkpoints are evaluated on
    evaluate_every updates between evaluations; default: a tenth of the branch, so that it meets `every`
    validation     a token store with other text to evaluate on
    batches        {KIND: settings} in place of the trajectory's own data (docs/branching.md)
    settings       {"training.micro_batch": 4, …}: settings of lawa train laid over all arms
    """

    trajectory: str
    steps: Sequence[int]
    updates: int
    arms: Sequence[str] = ("plain", "evaluate", "replace")
    lr_scales: Sequence[float] = (1.0,)
    window: int = 10
    every: int | None = None
    prefill: str = "released"
    optimizer: str = "released"
    rewarmup: int | None = None
    schedule: str | None = None
    held_out: int = 64
    evaluate_every: int | None = None
    validation: str | None = None
    batches: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("prefill", ("released", "none")), ("optimizer", ("released", "fresh"))):
            if getattr(self, name) not in choices:
                raise UsageError(f"--{name} {getattr(self, name)!r} must be one of {', '.join(choices)}")
        for name in ("updates", "window", "held_out", "every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be at least 1")
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise UsageError("--step names no checkpoint, or one twice")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One checkpoint that is branched from.

    held      the released updates whose weights the windows hold at the beginning, oldest first; `step` comes last
    native    the update's optimizer state is public
    rewarmup  updates over which the learning rate rises
    """

    step: int
    held: tuple[int, ...]
    native: bool
    rewarmup: int

    @property
    def filled(self) -> bool:
        return bool(self.held)


class Branch:
    """A request, looked through before anything is fetched."""

    def __init__(
        self, request: Request, output: Path, *, offline: bool = False, allow_bad: bool = False,
        allow_duplicates: bool = False, budget: int | None = None, say: Say = lambda sentence: None,
        arrived: Arrived = lambda nbytes: None,
    ) -> None:  # fmt: skip
        """
        budget   bytes of fetched checkpoints on disk at once
        say      told what is done
        arrived  told the bytes of fetched batches, as they come

        Raises UsageError for what cannot be.
        """
        self.request = request
        self.output = output
        self.offline = offline
        self.say, self.arrived = say, arrived
        self.trajectory: Trajectory = registry.find(request.trajectory)
        if request.schedule is not None:
            self.trajectory = self.trajectory.scheduled(request.schedule)
        self.every = request.every or self.trajectory.interval
        self.arms = find_arms(request.arms)
        self._fetching: dict[str, Any] = {
            "offline": offline, "allow_bad": allow_bad, "allow_duplicates": allow_duplicates, "budget": budget,
        }  # fmt: skip
        self._check_known()
        self.points = [self._point(step) for step in sorted(request.steps)]
        for point in self.points:
            self.trainings(point)  # refuses what cannot be

    # ---- what is told before

    def describe(self) -> dict[str, Any]:
        """The plan as plain values; of the hub only sizes are asked."""
        trajectory = self.trajectory
        with Fetcher(trajectory, **self._fetching) as fetcher:
            points = [
                {
                    "step": point.step,
                    "revision": trajectory.revision(point.step),
                    "updates": [point.step + 1, point.step + self.request.updates],
                    "held": [*point.held, point.step] if point.filled else [],
                    "optimizer": "released" if point.native else "fresh",
                    "rewarmup": point.rewarmup,
                    "lr": [trajectory.rate(point.step + 1), trajectory.rate(point.step + self.request.updates)],
                    "checkpoints": [one._asdict() for one in fetcher.plan(self._needed(point))],
                    "tokens": self.request.updates * trajectory.batch * self._context,
                    "trainings": [
                        {"name": one.name, "arms": list(one.arms), "lr_scale": config.training.lr_scale}
                        for one, config in self.trainings(point)
                    ],
                }
                for point in self.points
            ]
        return {
            "trajectory": trajectory.name,
            "repo": trajectory.repo,
            "output": str(self.output),
            "precision": self._precision,
            "points": points,
        }

    # ---- what is done

    def run(self) -> Iterator[list[Path]]:
        """For each checkpoint that is branched from, the run directories of its arms and of the released run, once all
        are done."""
        with alone(self.output):
            begin(self.output, REQUEST, {"trajectory": self.trajectory.name, **asdict(self.request)})
            for point in self.points:
                yield self._branch(point)

    def _branch(self, point: Point) -> list[Path]:
        directory = step_directory(self.output, point.step)
        with Fetcher(self.trajectory, **self._fetching) as fetcher:
            self.say(
                f"{self.trajectory.name}: fetching the checkpoint of update {point.step} and {len(point.held)} before"
            )
            weights = fetcher.fetch([*point.held, point.step])
            released = weights[point.step]
            start = released
            if point.native:
                start = start_of(self.trajectory, point.step, released, directory / START, offline=self.offline)
            self.say(f"{self.trajectory.name}: the batches of updates {point.step + 1} …")
            batches = self._batches(point, directory / DATA)
            trained, config = [], None
            for training, config in self.trainings(point, start=start, weights=weights, batches=batches):
                self.say(f"training {training.name} ({', '.join(training.arms)})")
                _train(config, directory / training.name)
                trained.append(directory / training.name)
            assert config is not None  # there is an arm
            self.say("the run's own next checkpoints")
            with _own_ranks(config) as ranks:
                validation = open_text(config, trained[0], ranks).validation
            evaluate_released(
                self.trajectory, [point.step, *self._next(point)], config, validation, fetcher, directory / RELEASED,
                keep=[*point.held, point.step],
            )  # fmt: skip
        return [*trained, directory / RELEASED]

    def trainings(
        self, point: Point, *, start: Path | None = None, weights: Mapping[int, Path] = MappingProxyType({}),
        batches: Mapping[str, Any] | None = None,
    ) -> list[tuple[Training, Config]]:  # fmt: skip
        """What is trained from one checkpoint, with its settings.

        start    a folder with the weights that training starts from, and optimizer.safetensors where they have one
        weights  {update: folder} of the released checkpoints that the windows hold
        batches  as data.batches takes them; without these three, settings to be looked at
        """
        request, trajectory = self.request, self.trajectory
        last = point.step + request.updates
        folder = str(start or "start")
        tokenizer = start is not None and (start / "tokenizer.json").is_file()
        base: dict[str, Any] = {
            "model": {"weights": folder, "optimizer": f"{folder}/{OPTIMIZER}" if point.native else None},
            "data": {
                "batches": dict(batches or {"run": {}}),
                "context": open_batches(batches).context if batches else self._context,
                "vocab_size": trajectory.vocab_size,
                "store": request.validation,
                "tokenizer": folder if tokenizer and request.validation is None else None,
            },
            "training": {
                **trajectory.training,
                "precision": self._precision,
                "updates": last,
                "horizon": trajectory.horizon,
                "start": point.step,
                "rewarmup": point.rewarmup,
                "log_every": max(1, request.updates // 100),
            },
            "evaluation": {"every": self.evaluate_every, "sequences": request.held_out},
            "checkpoints": {"every": self.every, "keep": 2, "resumable": 1},
            "seed": request.seed,
        }
        averaging: dict[str, Any] = {"every": self.every, "window": request.window}
        if point.held:
            averaging["prefill"] = {str(step): str(weights.get(step, "released")) for step in point.held}
        found = []
        for training in trainings(self.arms, request.lr_scales, averaging):
            values = merge(base, training.overlay)
            values["averaging"] = _at_once(values["averaging"], len(point.held) + 1 if point.held else 0)
            for path, value in request.settings.items():
                values = merge(values, nested(path, value))
            found.append((training, build(Config, values)))
        return found

    # ---- inside

    def _check_known(self) -> None:
        trajectory = self.trajectory
        lacking = [
            name for name in ("total", "batch", "context", "vocab_size", "training") if not getattr(trajectory, name)
        ]
        if lacking:
            raise UsageError(
                f"{trajectory.name} cannot be branched from: its {', '.join(lacking)} are not known; tell them in a "
                "YAML file of your own"
            )
        if "lr" not in trajectory.training:
            raise UsageError(f"{trajectory.name} cannot be branched from: its learning rate is not known")

    def _point(self, step: int) -> Point:
        request, trajectory = self.request, self.trajectory
        trajectory.revision(step)  # says which there are
        if step < 1:
            raise UsageError(f"--step {step} is before the first update; train from scratch with lawa train")
        if step + request.updates > trajectory.total:
            raise UsageError(
                f"{request.updates} updates after {step} go beyond the {trajectory.total} of {trajectory.name}; "
                "ask for fewer --updates"
            )
        first = max(1, step - (request.window - 1) * self.every)
        held: tuple[int, ...] = ()
        if request.prefill == "released" and step % self.every == 0:
            held = tuple(one for one in trajectory.steps if first <= one < step and one % self.every == 0)
        native = request.optimizer == "released" and has_state(trajectory, step, offline=self.offline)
        rewarmup = request.rewarmup
        if rewarmup is None:
            rewarmup = 0 if native else min(_REWARMUP, max(1, request.updates // 10))
        return Point(step=step, held=held, native=native, rewarmup=rewarmup)

    @cached_property
    def evaluate_every(self) -> int:
        """The largest divisor of `every` that looks ten times or more."""
        if self.request.evaluate_every is not None:
            return self.request.evaluate_every
        most = max(1, self.request.updates // 10)
        return max(one for one in range(1, min(most, self.every) + 1) if self.every % one == 0)

    @cached_property
    def _precision(self) -> str:
        """The run's own on a GPU, fp32 on a CPU."""
        return self.trajectory.training.get("precision", "fp32") if torch.cuda.is_available() else "fp32"

    @property
    def _context(self) -> int:
        data = self.trajectory.data or {}
        return data.get("context", self.trajectory.context)

    def _batches(self, point: Point, place: Path) -> Mapping[str, Any]:
        request = self.request
        if request.batches is not None:
            return absolute(request.batches)
        held_out = 0 if request.validation else -(-request.held_out // self.trajectory.batch)
        updates = range(point.step + 1, point.step + request.updates + held_out + 1)
        return settings_for(self.trajectory, updates, place=place, offline=self.offline, arrived=self.arrived)

    def _needed(self, point: Point) -> list[int]:
        return [*point.held, point.step, *self._next(point)]

    def _next(self, point: Point) -> list[int]:
        """The run's own checkpoints at updates at which arms are evaluated, but for known bad ones."""
        last, bad = point.step + self.request.updates, self.trajectory.bad
        return [
            step
            for step in self.trajectory.steps
            if point.step < step <= last and step % self.evaluate_every == 0 and step not in bad
        ]


def _at_once(averaging: Mapping[str, Any], held: int) -> dict[str, Any]:
    """A window that the checkpoints so far do not fill is ready with what they are, and grows; one that starts anew
    after each replacement has that size."""
    window = averaging.get("window")
    if not held or window is None or window <= held or "min_window" in averaging:
        return dict(averaging)
    if averaging.get("after_replace") == "clear":
        return {**averaging, "window": held}
    return {**averaging, "min_window": held}


def _train(config: Config, run: Path) -> None:
    """To the end, from where it is."""
    if is_published(run / FINAL):
        return
    if latest(run) is not None:
        runs.resume(run)
        return
    if run.exists():
        shutil.rmtree(run)  # killed before its first checkpoint
    runs.start(config, run)


@contextmanager
def _own_ranks(config: Config) -> Iterator[Ranks]:
    ranks = Ranks(config.training)
    try:
        yield ranks
    finally:
        ranks.close()
