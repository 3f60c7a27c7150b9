"""The whole method in a training loop.

Latest weight averaging (arXiv 2306.03241): every N updates the model's weights are captured; the average
of the last k captures is evaluated (mode "evaluate"), or becomes the model's weights and training goes on
from it (mode "replace").

    averager = WeightAverager(model, optimizer, mode="replace", every=1000, window=10)
    for batch in loader:
        loss_of(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
        averager.update()
    with averager.averaged():
        evaluate(model)
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lawa.averaging import state
from lawa.averaging.attachment import Attachment
from lawa.averaging.averages import Average, Window, named_averages, snapshots_needed
from lawa.averaging.binding import bind
from lawa.averaging.collection import Collection
from lawa.averaging.cost import Cost, cost_of
from lawa.averaging.finite import finite_everywhere, first_non_finite
from lawa.averaging.layout import Layout, Part, read, toward, write
from lawa.averaging.placement import Placement, make_store
from lawa.averaging.replacement import Replacement, make_replacement
from lawa.averaging.window import Held
from lawa.cadence import whole
from lawa.errors import LawaError, NonFiniteAverage

log = logging.getLogger("lawa")

MODES = ("evaluate", "replace")


class WeightAverager:
    """Averages of a model's latest weights, evaluated or put in their place.

    The short form is one window named "lawa":

        WeightAverager(model, optimizer, mode="replace", every=1000, window=10)

    The long form names as many averages as wanted, each with its own cadence:

        WeightAverager(model, mode="evaluate",
                       averages={"lawa": Window(10, every=1000), "ema": EMA(0.999), "swa": RunningMean(start=5000)})

    model          any nn.Module; FSDP2 modules after fully_shard. Parameters that require gradients are averaged,
                   by name, in the dtype they are kept in; tied weights once; a DTensor's own shard only
    optimizer      one, or several; needed for moments "reset" and "average", for host placement to overlap with
                   training, and for DeepSpeed's masters
    mode           "evaluate" or "replace"; it has no default
    every, window  the short form: updates between captures, and how many snapshots the window holds
    start, stop, coefficients, min_window
                   the short form's other settings, as in Window
    averages       the long form: {name: Window | EMA | RunningMean}
    replace_with   the average that replaces; default: the only one
    after_replace  "slide" (default): the window keeps its snapshots; "clear": it starts anew
    replace_every, replace_until
                   updates between replacements (default: every capture), and the last update for one
    strength       α in (0, 1]: θ ← θ + α(average − θ); 1 (default) is the method as described
    moments        Adam's on a replacement: "keep" (default), "reset", "average"; see lawa.averaging.optimizer_state
    placement      of snapshots: "device", "host" (pinned memory, copied while training goes on), "disk" (files in
                   `folder`), or what makes a SnapshotStore of the layout (as the driver's windows over its checkpoints)
    host_bytes, folder
                   the most that placement "host" may take on this rank, and the folder for the snapshots beyond it
    replicas       "whole" (default): every rank of DDP keeps whole snapshots; "split": its 1/W of each, which are put
                   together for a look and a replacement (then `averaged` is collective, too)
    buffers        "latest" (default) or "average": float buffers; others always keep their latest value
    accumulate     torch.float32 (default) or torch.float64, the dtype of the sum
    strict         raise on a non-finite average instead of skipping the replacement

    With torch.distributed initialized, `update`, `replace_if_due` and `is_finite` are collective: every rank has an
    averager and calls them (one scalar is reduced where a replacement is due; captures reduce nothing).

    Raises LawaError for settings that contradict each other, and warns about one that has no effect.
    """

    _real = True  # and not made to be estimated: there must be room

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        mode: str,
        every: int | None = None,
        window: int | None = None,
        start: int | None = None,
        stop: int | None = None,
        coefficients: Any = None,
        min_window: int | None = None,
        averages: Mapping[str, Average] | None = None,
        replace_with: str | None = None,
        after_replace: str | None = None,
        replace_every: int | None = None,
        replace_until: int | None = None,
        strength: float | None = None,
        moments: str | None = None,
        placement: Placement = "device",
        host_bytes: int | None = None,
        folder: str | os.PathLike[str] | None = None,
        replicas: str = "whole",
        buffers: str = "latest",
        accumulate: torch.dtype = torch.float32,
        strict: bool = False,
    ) -> None:
        if mode not in MODES:
            raise LawaError(f"mode={mode!r} must be 'evaluate' or 'replace'")
        if accumulate not in (torch.float32, torch.float64):
            raise LawaError(f"accumulate={accumulate} must be torch.float32 or torch.float64")
        short = {
            "every": every, "size": window, "start": start, "stop": stop,
            "coefficients": coefficients, "min_window": min_window,
        }  # fmt: skip
        replacing = {
            "replace_with": replace_with, "after_replace": after_replace, "replace_every": replace_every,
            "replace_until": replace_until, "strength": strength, "moments": moments,
        }  # fmt: skip
        if not isinstance(model, nn.Module):
            raise LawaError(f"the model is a {type(model).__name__}; the first argument is a torch.nn.Module")
        self.model = model
        self.optimizers = _several(optimizer)
        self.mode = mode
        self.averages = named_averages(averages, {key: value for key, value in short.items() if value is not None})
        self.accumulate = accumulate
        self.strict = strict
        self.replacement: Replacement | None = None
        if mode == "replace":
            self.replacement = make_replacement(self.averages, **replacing)
            policy = self.replacement.moments
            if policy != "keep" and not self.optimizers:
                raise LawaError(f"moments={policy!r} needs the optimizer; pass it as the second argument")
        else:
            for setting, value in replacing.items():
                if value is not None:
                    warnings.warn(f"{setting}={value!r} has no effect with mode='evaluate'", stacklevel=2)

        self._tensors = bind(model, self.optimizers, buffers=buffers, replicas=replicas)
        averaged_moments = self.replacement is not None and self.replacement.moments == "average"
        layout = Layout(
            self._tensors.trained + (self._tensors.moments() if averaged_moments else []), form=self._tensors.form
        )
        overlap = self._tensors.stepped_by_optimizers()
        windows = [average for average in self.averages.values() if isinstance(average, Window)]
        self._store = make_store(
            placement, layout, snapshots=snapshots_needed(windows), overlap=overlap,
            folder=folder, host_bytes=host_bytes, checked=self._real,
        )  # fmt: skip
        self._collection = Collection(self.averages, layout, self._store)
        self._position = state.Position()
        self._swapped: tuple[str, list[Part]] | None = None  # the average that the model has now
        self._attachment: Attachment | None = None
        self._said = False  # that captures are missed
        self._protections: list[RemovableHandle] = []
        if placement in ("host", "disk") and overlap:
            self._protections = [
                one.register_step_pre_hook(lambda *_: self._store.protect()) for one in self.optimizers
            ]

    # ---- the loop's side

    def update(self, step: int | None = None, *, skipped: bool = False) -> bool:
        """Call once after each optimizer step: captures what is due, and replaces if that is due; whether it replaced.

        step     the trainer's own update number; default: one more than the last
        skipped  the loss scaler skipped this update: it counts, and its capture is marked
        """
        if self._attached():
            raise LawaError("the averager is attached, and counts the steps by itself; do not call update()")
        return self._update(step, skipped=skipped)

    def attach(
        self,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Attachment:
        """Update by itself when the optimizer has stepped (several: when each has); the handle's remove() ends that.

        scaler  pass the loss scaler, if there is one: only it knows of steps that were skipped, which count
        """
        optimizers = _several(optimizer) or self.optimizers
        if not optimizers:
            raise LawaError("attach() needs the optimizer; pass it here or to WeightAverager")
        if any(not hasattr(one, "register_step_post_hook") for one in optimizers):
            raise LawaError(
                "DeepSpeed's optimizer has no hooks; use lawa.integrations.deepspeed.attach(engine, averager)"
            )
        self.attached_to(None)  # refused before any hook is made
        handle = Attachment(optimizers, scaler, self._after_steps)
        self.attached_to(handle)
        return handle

    def attached_to(self, handle: Attachment | None) -> None:
        """What counts the updates from now on, in the place of update(); the handle's remove() ends that."""
        if self._attached():
            raise LawaError("the averager is attached already; remove() the first handle before attaching again")
        self._attachment = handle

    def capture(self, step: int | None = None, *, skipped: bool = False) -> bool:
        """The first half of an update: capture θ_t for every average that is due; whether any was.

        A replacement that falls due becomes pending; `replace_if_due` carries it out.
        """
        if self._swapped is not None:
            raise LawaError(
                f"an update inside averaged({self._swapped[0]!r}) would capture the average; leave it first"
            )
        t = self.step + 1 if step is None else whole(step, "step", at_least=1)
        if t <= self.step:
            raise LawaError(
                f"update {t} comes after update {self.step}; steps only grow. "
                "On resume, load the averager's state of the same checkpoint"
            )
        if self.replacement_pending:
            raise LawaError(
                f"the replacement due at update {self._position.pending} was never carried out; "
                "call replace_if_due() before the next update"
            )
        due = self._collection.due(t)
        self._say_what_is_missed(t)
        if due:
            self._tensors.reshard()
            self._tensors.check_bound()
            self._tensors.check_trained()
            self._collection.capture(t, skipped=skipped)
        self._position = replace(self._position, step=t)
        rule = self.replacement
        if rule is not None and rule.cadence.due(t, held=self.count(rule.name), last=self.last_replacement):
            self._position = replace(self._position, pending=t)
        return due

    def prefill(self, step: int) -> None:
        """Capture what the model holds now as θ_step, for the windows that are due at `step`, before any update.

        For the checkpoints that a run has behind it where another goes on from one of them, oldest first. EMA and
        running mean do not read them, and no replacement falls due.
        """
        t = whole(step, "step", at_least=1)
        before = max((held.step for held in self.snapshots()), default=0)
        if self.step or t <= before:
            after = f"update {self.step} was counted" if self.step else f"that of update {before}"
            raise LawaError(f"the checkpoint of update {t} comes after {after}; windows are filled first, oldest first")
        self._tensors.reshard()
        self._tensors.check_bound()
        self._collection.windows.capture(t, skipped=False)

    def replace_if_due(self) -> bool:
        """The second half: the model's weights become the average if a replacement is pending; whether they did.

        Trainers that evaluate and save after their step hook call it when the next update begins, and at the end.
        """
        t = self._position.pending
        if t is None:
            return False
        if self._swapped is not None:
            raise LawaError(f"a replacement inside averaged({self._swapped[0]!r}) would be undone; leave it first")
        rule = self.replacement
        assert rule is not None  # nothing else makes one pending
        self._tensors.reshard()
        self._tensors.check_bound()
        parts = self._average(rule.name, moments=rule.moments == "average")
        finite = finite_everywhere(parts)
        if finite:
            self._replace(parts, rule)
        # What raised above (memory, an unknown optimizer) left the weights alone and the replacement pending.
        self._position = replace(self._position, pending=None, last_replacement=t)
        if not finite:
            held = f"{rule.name!r} of {self.count(rule.name)} snapshots"
            message = f"update {t}: the average {held} is not finite (first in {first_non_finite(parts)!r})"
            if not isinstance(self.averages[rule.name], Window):
                message += "; it stays so until restart()"
            if self.strict:
                raise NonFiniteAverage(f"{message}; the weights were left as they are")
            log.warning("%s; replacement skipped", message)
            return False
        if rule.cadence.clear:
            self._collection.clear(rule.name)
        return True

    @property
    def step(self) -> int:
        """The last update seen."""
        return self._position.step

    @property
    def last_replacement(self) -> int | None:
        """The update of the last replacement, skipped ones included."""
        return self._position.last_replacement

    @property
    def replacement_pending(self) -> bool:
        """Whether a replacement fell due at the last capture and was not carried out yet."""
        return self._position.pending is not None

    # ---- looking at an average

    @contextmanager
    def averaged(self, name: str | None = None) -> Iterator[nn.Module]:
        """Within the block the model has the average's weights; its own always come back, also after an exception.

        Costs a backup and the average: two copies of the weights beside the snapshots, for as long as it lasts.
        A window that is not full gives the average of what it holds (with coefficients given one by one: an error).
        """
        name = self._resolve(name)
        if self._swapped is not None:
            raise LawaError(f"averaged({name!r}) inside averaged({self._swapped[0]!r}); leave the first one before")
        self._tensors.reshard()
        self._tensors.check_bound()
        average = self._average(name)
        backup = [(group, group.allocate()) for group, _ in average]
        read(backup)
        self._swapped = name, average
        try:
            self._write(average)
            yield self.model
        finally:
            self._write(backup)
            self._swapped = None

    @property
    def swapped(self) -> str | None:
        """The average that the model has now, within `averaged()`."""
        return None if self._swapped is None else self._swapped[0]

    def count(self, name: str | None = None) -> int:
        """Snapshots a window holds, or readings a running average has had."""
        return self._collection.count(self._resolve(name))

    def ready(self, name: str | None = None) -> bool:
        """Whether the average has what it needs: a window its min_window snapshots, a running average one reading."""
        name = self._resolve(name)
        return self.count(name) >= self.averages[name].needed

    def steps(self, name: str | None = None) -> list[int]:
        """The updates whose snapshots a window holds, oldest first; a running average holds none."""
        return self._collection.steps(self._resolve(name))

    def skipped(self, name: str | None = None) -> list[int]:
        """Those of `steps` that were captured as skipped: the loss scaler left the weights as they were."""
        return self._collection.skipped(self._resolve(name))

    def told(self, name: str) -> dict[str, Any]:
        """What a record says of the average as it is now, as plain values."""
        return {
            "average": name,
            "kind": str(self.averages[name]),
            "update": self.step,
            "snapshots": self.steps(name) or self.count(name),
            "accumulate": str(self.accumulate).removeprefix("torch."),
        }

    def snapshots(self) -> list[Held]:
        """Every snapshot that some window holds, oldest first; each is one object for as long as it is held."""
        return self._collection.windows.snapshots()

    def is_finite(self, name: str | None = None) -> bool:
        """Whether the average is finite on every rank (one scalar all-reduce); check it before publishing one.

        Within `averaged(name)` it is not made again.
        """
        name = self._resolve(name)
        if self._swapped is not None and self._swapped[0] == name:
            return finite_everywhere(self._swapped[1])
        return finite_everywhere(self._average(name))

    def cost(self) -> Cost:
        """Bytes this rank needs, computed from the settings; nothing is allocated."""
        return cost_of(self._collection, self.replacement)

    # ---- state (torch DCP's Stateful)

    def state_dict(self, *, without: Container[int] = ()) -> dict[str, Any]:
        """Everything a fresh process needs to go on in the middle of a window.

        Tensors are views, not copies: save them (or copy them) before the next update.

        without  updates whose snapshots are left out, because they are kept elsewhere: they never change
        """
        return state.state_dict(self._collection, self._position, without=without)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state saved by `state_dict`; its averages, names and shapes must be this averager's."""
        replaces = self.replacement is not None
        self._position = state.load_state_dict(self._collection, state_dict, replaces=replaces)

    def prepare_to_load(self, checkpoint: Any, *, key: str = "averager") -> None:
        """Before dcp.load in a fresh process: make room for the snapshots that `checkpoint` holds under `key`.

        checkpoint  a DCP directory or storage reader; DCP loads in place, so there must be a place
        """
        state.prepare_to_load(self._collection, checkpoint, key)

    def make_room(self, meta: str) -> None:
        """The same for a state whose tensors are kept elsewhere, piece by piece, and whose `meta` is at hand."""
        replaces = self.replacement is not None
        state.make_room(self._collection, *state.room_of(self._collection, meta, replaces=replaces))

    def restart(self, step: int = 0) -> None:
        """Every average starts anew, and nothing is pending: after a rollback to update `step`, or a loss spike."""
        if self._swapped is not None:
            raise LawaError(f"a restart inside averaged({self._swapped[0]!r}); leave it first")
        for name in self.averages:
            self._collection.clear(name)
        self._position = state.Position(step=whole(step, "step", at_least=0))

    def close(self) -> None:
        """Take the averager's hooks off the optimizer, so that it and its snapshots can be freed."""
        if self._attachment is not None:
            self._attachment.remove()
        while self._protections:
            self._protections.pop().remove()

    def __reduce__(self) -> Any:
        raise LawaError(
            "a WeightAverager is bound to its model and cannot be copied or pickled; save its state_dict(), and make "
            "another averager for another model"
        )

    # ---- inside

    def _attached(self) -> bool:
        return self._attachment is not None and self._attachment.attached

    def _after_steps(self, skipped: Callable[[], bool]) -> None:
        due = self._collection.due(self.step + 1)
        self._update(None, skipped=due and skipped())

    def _update(self, step: int | None, *, skipped: bool = False) -> bool:
        self.capture(step, skipped=skipped)
        return self.replace_if_due()

    def _say_what_is_missed(self, t: int) -> None:
        """Once: the numbers told step over an update at which a capture was due."""
        if t == self.step + 1 or self.step == 0 or self._said:
            return
        for name, average in self.averages.items():
            missed = average.cadence.after(self.step)
            if missed is not None and missed < t:
                warnings.warn(
                    f"average {name!r} was due at update {missed}, and update {t} follows {self.step}: what is told in "
                    f"such steps is captured only where it meets a multiple of every={average.every}",
                    stacklevel=4,
                )
                self._said = True

    def _resolve(self, name: str | None) -> str:
        if name is None and len(self.averages) == 1:
            return next(iter(self.averages))
        if name is None or name not in self.averages:
            known = ", ".join(self.averages)
            raise LawaError(
                f"there are several averages; name one of {known}"
                if name is None
                else f"average {name!r} is unknown; name one of {known}"
            )
        return name

    def _average(self, name: str, *, moments: bool = False) -> list[Part]:
        if self.count(name) == 0:
            following = self.averages[name].cadence.after(self.step)
            when = "it captures no more" if following is None else f"its next capture is at update {following}"
            raise LawaError(f"average {name!r} holds nothing: {when}")
        return self._collection.average(name, dtype=self.accumulate, moments=moments)

    def _replace(self, parts: list[Part], rule: Replacement) -> None:
        if rule.strength != 1:
            parts = toward(parts, rule.strength)
        if rule.moments == "reset":  # before the weights: it may refuse the optimizer
            self._tensors.reset_moments()
        self._write(parts)

    def _write(self, parts: list[Part]) -> None:
        self._tensors.reshard()
        self._store.protect()
        write(parts)
        self._tensors.written()


def _several(optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None) -> list[torch.optim.Optimizer]:
    if optimizer is None:
        return []
    several = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    for one in several:
        if not hasattr(one, "param_groups"):
            raise LawaError(f"the optimizer is a {type(one).__name__}; it must be a torch optimizer, or a list of them")
    return several


class _Estimated(WeightAverager):
    _real = False


def estimate(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
    **settings: Any,
) -> Cost:
    """Bytes a rank that WeightAverager(model, optimizer, **settings) will need, whether there is room for them or not.

    A model on "meta" serves; it counts as one on a GPU, whose host memory is pinned.
    """
    averager = _Estimated(model, optimizer, **settings)
    averager.close()
    return averager.cost()
