"""A run's checkpoints from inside: copied while training waits, written while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lawa.background import Writer
from lawa.checkpoints.carry import PROVENANCE
from lawa.checkpoints.find import step_directory
from lawa.checkpoints.publish import begin, complete, link, listed, publish, write_manifest
from lawa.checkpoints.save_average import without_weights, write_config
from lawa.pretrain.checkpoint import sharded, whole
from lawa.pretrain.checkpoint.position import Position, State
from lawa.pretrain.checkpoint.retain import retain
from lawa.pretrain.checkpoint.staging import Stage, Staged, Tensors, optimizer_state, room_for_optimizer
from lawa.pretrain.directory import CHECKPOINTS, FINAL, TRAINING, latest
from lawa.pretrain.setup import Setup
from lawa.records import Records, write_json
from lawa.records import provenance as general_provenance


class Checkpoints:
    """What the loop saves with. Every rank has one and calls it; which of them write depends on the format."""

    def __init__(self, run: Path, setup: Setup, records: Records) -> None:
        self.run = run
        self.setup = setup
        self.records = records
        self._ranks = setup.ranks
        self._writes = setup.ranks.main or setup.ranks.sharded
        self._stage = Stage()
        self._writer = Writer()
        self._averages: dict[str, tuple[Tensors, dict[str, Any]]] = {}  # weights and provenance of the next checkpoint

    def save_average(self, name: str, position: Position) -> None:
        """Take the model's weights as they are now for the average `name`, published with the next checkpoint."""
        averager = self.setup.averager
        assert averager is not None
        if not self._writes:
            return
        self._writer.wait()  # the host memory is its own until then
        made = {
            **averager.told(name),
            "validation_loss": position.losses.get(name),
            **provenance(),
        }
        weights = self._stage.copy(f"average {name}", self._weights())
        self._stage.settle()
        self._averages[name] = weights, made

    def save(self, position: Position) -> None:
        """Take the state as it is now, and write it behind training."""
        if not self._writes:
            return
        self._writer.wait()
        setup, averager = self.setup, self.setup.averager
        on_disk = self._snapshots_on_disk()
        if self._ranks.sharded:  # one view of a shared disk: all ranks must write the same snapshots
            on_disk = self._ranks.first(on_disk)
        averaging: dict[str, Any] = {"meta": None, "snapshots": {}, "running": {}}
        if averager is not None:
            averaging = averager.state_dict(without=on_disk)
        staged = Staged(
            model=self._stage.copy("model", self._weights()),
            averages={name: weights for name, (weights, _) in self._averages.items()},
            # A loss scaler may have skipped every update so far: then the moments are the zeros they start from.
            optimizer=self._stage.copy(
                "optimizer",
                optimizer_state(setup.model, setup.optimizer) or room_for_optimizer(setup.model, setup.optimizer),
            ),
            running={
                name: self._stage.copy(f"running {name}", tensors) for name, tensors in averaging["running"].items()
            },
        )
        for place, (step, tensors) in enumerate(averaging["snapshots"].items()):
            staged.snapshots[int(step)] = self._stage.copy(f"snapshot {place}", tensors)
        self._stage.settle()
        state = State(
            position=asdict(position),
            format="dcp" if self._ranks.sharded else "hf",
            world=self._ranks.world,
            records=self.records.size() if self._ranks.main else 0,
            averager=averaging["meta"],
            scaler=setup.scaler.state_dict() if setup.scaler is not None else None,
        )
        made = {name: provenance for name, (_, provenance) in self._averages.items()}
        self._averages = {}
        held = {step for steps in state.windows.values() for step in steps}
        linked = {step: path for step, path in on_disk.items() if step in held}
        self._writer.start(lambda: self._write(staged, state, made, linked))

    def check(self) -> None:
        """Raise if the writing behind training has failed."""
        self._writer.check()

    def wait(self) -> None:
        """Until everything that was saved is on disk."""
        self._writer.wait()

    def abandon(self) -> None:
        """Let what is being written come to its end, when training has failed already."""
        if not self._ranks.sharded:  # which would need the other processes
            self._writer.end()

    def save_final(self) -> Path:
        """Publish what training delivers: the weights after its last update and any replacement due at it."""
        model = self.setup.model
        if self._ranks.sharded:
            weights = sharded.gather(model, main=self._ranks.main)
            model = without_weights(model)
        else:
            weights = model.state_dict()
        if self._ranks.main:
            with publish(self.run / FINAL) as partial:
                whole.write_weights(partial, model, weights)
                self._copy_tokenizer(partial)
        self._ranks.wait()
        return self.run / FINAL

    def _weights(self) -> Tensors:
        model = self.setup.model
        return sharded.weights_of(model) if self._ranks.sharded else model.state_dict()

    # ---- behind training

    def _write(self, staged: Staged, state: State, made: dict[str, Any], linked: dict[int, Path]) -> None:
        update = state.position["update"]
        if self._ranks.main:
            self.records.to_disk()  # as far as the checkpoint remembers, and maybe farther
        for name, weights in staged.averages.items():

            def average(partial: Path, name: str = name, weights: Tensors = weights) -> None:
                self._write_model(partial, weights)
                if self._ranks.main:
                    write_json(partial / PROVENANCE, made[name])

            self._publish(step_directory(self.run / "averages" / name, update), average)

        def checkpoint(partial: Path) -> None:
            self._write_model(partial, staged.model)
            self._write_training(partial / TRAINING, staged, state, linked)

        self._publish(step_directory(self.run / CHECKPOINTS, update), checkpoint)
        if self._ranks.main:
            retain(self.run, self.setup.config)

    def _publish(self, directory: Path, write: Callable[[Path], None]) -> None:
        """One directory by all that write: the main process begins and completes it."""
        if not self._ranks.sharded:
            with publish(directory) as partial:
                write(partial)
            return
        partial = self._ranks.while_writing(begin(directory) if self._ranks.main else None)
        write(partial)
        self._ranks.while_writing(None)
        if self._ranks.main:
            complete(partial, directory)
        self._ranks.while_writing(None)

    def _write_model(self, partial: Path, weights: Tensors) -> None:
        if self._ranks.sharded:
            sharded.write_weights(partial, weights, self._ranks.writing)
            if not self._ranks.main:
                return
            model = self.setup.model
            write_config(partial, model, without_weights(model), torch.float32)
        else:
            whole.write_weights(partial, self.setup.model, weights)
        self._copy_tokenizer(partial)

    def _write_training(self, training: Path, staged: Staged, state: State, linked: dict[int, Path]) -> None:
        if self._ranks.main:
            (training / "snapshots").mkdir(parents=True)
            for source in linked.values():
                link(source, training / "snapshots" / source.name)
            state.write(training)
        if self._ranks.sharded:
            self._ranks.while_writing(None)
            sharded.write_training(training, staged, self._ranks.writing)
            self._ranks.while_writing(None)
        else:
            whole.write_training(training, staged)
        if self._ranks.main:
            write_manifest(training, known=_known(linked))

    def _copy_tokenizer(self, directory: Path) -> None:
        self.setup.text.tokenizer(directory)

    def _snapshots_on_disk(self) -> dict[int, Path]:
        """{update: file or folder} in the latest checkpoint: a snapshot never changes, so none is written twice."""
        found = latest(self.run)
        if found is None:
            return {}
        return {int(entry.name.partition(".")[0]): entry for entry in (found[1] / TRAINING / "snapshots").iterdir()}


def provenance() -> dict[str, Any]:
    return general_provenance(("transformers", "tokenizers", "accelerate"))


def _known(linked: dict[int, Path]) -> dict[str, dict[str, Any]]:
    """The manifest's entries of what was linked, from the manifest of the checkpoint that it comes from."""
    if not linked:
        return {}
    entries = listed(next(iter(linked.values())).parents[1])
    names = {f"snapshots/{source.name}" for source in linked.values()}
    return {file: entry for file, entry in entries.items() if "/".join(file.split("/")[:2]) in names}
