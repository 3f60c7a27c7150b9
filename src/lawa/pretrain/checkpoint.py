"""A run's checkpoints: a Hugging Face directory with everything needed to go on beside it.

    RUN/checkpoints/step00001000/            model.safetensors, config.json, tokenizer files, manifest.json
                                 training/   state.pt (optimizer, averager, RNG, size of the records), manifest.json
    RUN/averages/NAME/step00001000/          the average's weights, the same way, and provenance.json

Only the latest checkpoint keeps its training/: it is thinned away from the one before when a new one is whole.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lawa.checkpoints.find import step_directories, step_directory
from lawa.checkpoints.publish import publish, remove, verify, write_manifest
from lawa.checkpoints.retention import keep_latest, thin
from lawa.pretrain.directory import CHECKPOINTS, FINAL, TRAINING
from lawa.pretrain.setup import Setup
from lawa.records import Records, write_json
from lawa.records import provenance as general_provenance


@dataclass(kw_only=True)
class Position:
    """Where a run stands.

    update   the last one done
    losses   the validation losses at that update by name, in nats, if it was evaluated
    seconds  spent so far, by what they were spent on
    """

    update: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("training", "averaging", "evaluation", "checkpoints"), 0.0)
    )


def save(run: Path, setup: Setup, records: Records, position: Position) -> Path:
    """Publish the checkpoint of θ_t, then let go of what no longer is needed."""
    checkpoints, update = run / CHECKPOINTS, position.update
    directory = step_directory(checkpoints, update)
    with publish(directory) as partial:
        _write_model(partial, setup)
        (partial / TRAINING).mkdir()
        torch.save(_state(setup, records, position), partial / TRAINING / "state.pt")
        write_manifest(partial / TRAINING)
    retain(run, setup)
    return directory


def save_average(run: Path, setup: Setup, name: str, position: Position) -> Path:
    """Publish the model as it is now, which has the weights of the average `name`, with where they come from."""
    averager = setup.averager
    assert averager is not None
    averages, update = run / "averages" / name, position.update
    directory = step_directory(averages, update)
    with publish(directory) as partial:
        _write_model(partial, setup)
        made = {
            "average": name,
            "kind": str(averager.averages[name]),
            "update": update,
            "snapshots": averager.steps(name) or averager.count(name),
            "accumulate": setup.config.averaging.accumulate,
            "validation_loss": position.losses.get(name),
            **provenance(),
        }
        write_json(partial / "provenance.json", made)
    return directory


def retain(run: Path, setup: Setup) -> None:
    """Let go of what the configuration does not keep. Applied again on resume, for a kill may fall inside it."""
    wanted = setup.config.checkpoints
    thin(run / CHECKPOINTS, TRAINING)
    if wanted.keep is not None:
        keep_latest(run / CHECKPOINTS, wanted.keep)
    if wanted.save_averages == "last":
        for averages in (run / "averages").glob("*"):
            keep_latest(averages, 1)


def save_final(run: Path, setup: Setup) -> Path:
    """Publish what training delivers: the weights after its last update and any replacement due at it."""
    with publish(run / FINAL) as partial:
        _write_model(partial, setup)
    return run / FINAL


def load(run: Path, directory: Path, setup: Setup, records: Records) -> Position:
    """Bring the run to where it was when `directory` was saved; damaged files are refused before anything changes."""
    verify(directory)
    verify(directory / TRAINING)
    state = torch.load(directory / TRAINING / "state.pt", map_location="cpu", weights_only=True)
    # Through transformers, which may store a tensor under another name than the model gives it.
    saved = type(setup.model).from_pretrained(directory, dtype=torch.float32)
    setup.model.load_state_dict(saved.state_dict())
    setup.optimizer.load_state_dict(state["optimizer"])
    if setup.averager is not None:
        setup.averager.load_state_dict(state["averager"])
    torch.set_rng_state(state["rng"])
    if setup.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], setup.device)
    records.cut_back(state["records"])
    position = Position(**state["position"])
    # What was published after the checkpoint will be published again.
    for average in (run / "averages").glob("*"):
        for update, path in step_directories(average).items():
            if update > position.update:
                remove(path)
    retain(run, setup)
    return position


def provenance() -> dict[str, Any]:
    return general_provenance(("transformers", "tokenizers"))


def _state(setup: Setup, records: Records, position: Position) -> dict[str, Any]:
    return {
        "position": asdict(position),
        "optimizer": setup.optimizer.state_dict(),
        "averager": setup.averager.state_dict() if setup.averager is not None else None,
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(setup.device) if setup.device.type == "cuda" else None,
        "records": records.size(),
    }


def _write_model(directory: Path, setup: Setup) -> None:
    setup.model.save_pretrained(directory)
    for file in setup.store.tokenizer_path.iterdir():
        shutil.copy(file, directory / file.name)
