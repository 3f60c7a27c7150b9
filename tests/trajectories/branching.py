"""A run of the driver in each public family's shape, released in that family's formats on a hub of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import Olmo2Config

from data.chunk_files import write_chunk
from data.given_files import cut, sequences
from hub_server import Files
from lawa.checkpoints.find import step_directories
from pretrain.driving import train
from trajectories.native import write_amber, write_neox, write_olmo, write_pythia

BATCH, CONTEXT, VOCABULARY, UPDATES, EVERY = 4, 16, 256, 12, 2
RULE = {"lr": 1e-2, "min_lr": 1e-3, "schedule": "neox-1.0-cosine", "warmup": 1, "weight_decay": 0.1}
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ROWS = (UPDATES + 2) * BATCH


@dataclass(frozen=True, kw_only=True)
class Family:
    """
    run    the straight run
    repos  of the hub, as hub_server.serving takes them
    told   the trajectory, as its YAML file has it
    """

    run: Path
    repos: dict[str, dict[str, Files]]
    told: dict[str, Any] = field(default_factory=dict)

    def yaml(self, folder: Path, **changes: Any) -> str:
        file = folder / "tiny.yaml"
        file.write_text(yaml.safe_dump({**self.told, **changes}))
        return str(file)

    def checkpoint(self, step: int) -> Path:
        return step_directories(self.run / "checkpoints")[step]


def straight(run: Path, architecture: str, batches: Mapping[str, Any], **training: Any) -> Path:
    overrides = {**SHAPE, **({"num_key_value_heads": 2} if architecture != "gpt_neox" else {})}
    model: dict[str, Any] = {"architecture": architecture, "overrides": overrides}
    if architecture == "olmo2":
        shape = Olmo2Config(**overrides, vocab_size=VOCABULARY, max_position_embeddings=CONTEXT, pad_token_id=1)
        shape.save_pretrained(run.with_name("shape"))
        model = {"config": str(run.with_name("shape"))}
    train(
        {
            "model": model,
            "data": {"batches": batches, "context": CONTEXT, "vocab_size": VOCABULARY},
            "training": {"updates": UPDATES, "batch": BATCH, "log_every": 1, **RULE, **training},
            "evaluation": {"every": EVERY, "sequences": 6},
            "checkpoints": {"every": EVERY, "resumable": UPDATES},
            "averaging": {"mode": "none"},
        },
        run,
    )
    return run


def pythia(folder: Path, *, dtype: torch.dtype = torch.float32, **native: Any) -> Family:
    """GPT-NeoX: .bin with buffers, layer files with ZeRO-1, a preshuffled set in three files of unequal sizes."""
    shards = cut(folder, sequences(ROWS, CONTEXT, below=VOCABULARY).tobytes(), (1000, 700))
    batches = {"preshuffled": {"files": [str(one) for one in shards], "batch": BATCH, "context": CONTEXT}}
    run = straight(folder / "run", "gpt_neox", batches)
    repos = {
        "org/tiny": _released(run, folder, lambda at, into: write_pythia(at, into, dtype=dtype)),
        "org/neox-tiny": _released(run, folder, lambda at, into: write_neox(at, into, **native)),
        "datasets/org/pile-tiny": {"main": {one.name: one.read_bytes() for one in shards}},
    }
    data = {"kind": "preshuffled", "repo": "org/pile-tiny", "files": [one.name for one in shards], "dtype": "uint16"}
    return Family(run=run, repos=repos, told=_told(data, optimizer={"repo": "org/neox-tiny", "format": "neox"}))


def amber(folder: Path) -> Family:
    """Llama: fp32 .bin, no optimizer; chunks of 5 updates and a tail, permuted as by processes that began anew."""
    rows, lines = sequences(60, CONTEXT, below=VOCABULARY), 5 * BATCH + 3
    chunks = {number: np.roll(rows, number, axis=0)[:lines] for number in range(3)}
    files = {str(number): str(write_chunk(folder / f"train_{number:03}.jsonl", ids)) for number, ids in chunks.items()}
    rule = {"examples": lines, "drop_tail": True, "seed": 11111}
    batches = {"chunks": {"files": files, "batch": BATCH, "context": CONTEXT, "vocab_size": VOCABULARY, **rule}}
    run = straight(folder / "run", "llama", batches, decays="all")
    repos = {
        "org/tiny": _released(run, folder, write_amber),
        "datasets/org/chunks-tiny": {
            "main": {f"train/{Path(file).name}": Path(file).read_bytes() for file in files.values()}
        },
    }
    data = {"kind": "chunks", "repo": "org/chunks-tiny", "files": {"pattern": "train/train_{:03}.jsonl", "count": 3}}
    return Family(run=run, repos=repos, told=_told({**data, **rule}, training={"decays": "all"}))


def olmo(folder: Path, endpoint: str) -> Family:
    """Olmo2: safetensors as lawa train writes them, OLMo's native files at an address, an order of instances."""
    width = CONTEXT + 1
    text = sequences(ROWS, CONTEXT, below=VOCABULARY, dtype="uint32")
    places = [folder / "part-0.npy", folder / "part-1.npy"]
    text[:20].tofile(places[0])
    np.append(text[20:].reshape(-1), np.zeros(width // 2, dtype="uint32")).tofile(places[1])
    order = np.random.default_rng(3).permutation(ROWS).astype("<u4")
    order.tofile(folder / "global_indices.npy")
    batches = {
        "indices": {
            "global_indices": str(folder / "global_indices.npy"), "files": [str(one) for one in places],
            "batch": BATCH, "context": CONTEXT, "dtype": "uint32",
        }
    }  # fmt: skip
    run = straight(folder / "run", "olmo2", batches, decays="no_embeddings")
    repos = {
        "org/tiny": {
            f"step{step}": {
                one.name: one.read_bytes() for one in at.iterdir() if one.suffix in (".safetensors", ".json")
            }
            for step, at in step_directories(run / "checkpoints").items()
        },
        "org/olmo-tiny": _released(run, folder, write_olmo),
    }
    told = _told(
        {"kind": "indices", **batches["indices"]},
        optimizer={"url": f"{endpoint}/org/olmo-tiny/resolve/step{{step}}", "format": "olmo"},
        training={"decays": "no_embeddings"},
    )
    return Family(run=run, repos=repos, told=told)


def _told(data: Mapping[str, Any], *, training: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "tiny", "repo": "org/tiny", "revisions": "step{step}", "interval": EVERY, "total": UPDATES,
        "batch": BATCH, "context": CONTEXT, "vocab_size": VOCABULARY, "training": {**RULE, **(training or {})},
        "data": dict(data), **more,
    }  # fmt: skip


def _released(run: Path, folder: Path, write: Callable[[Path, Path], None]) -> dict[str, Files]:
    """{stepN: files} of every checkpoint, in a public format."""
    repo: dict[str, Files] = {}
    for step, at in step_directories(run / "checkpoints").items():
        into = folder / "released" / f"{len(list(folder.glob('released/*')))}"
        write(at, into)
        repo[f"step{step}"] = {one.name: one.read_bytes() for one in into.iterdir()}
    return repo


def lines(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {one["update"]: one for one in found if one["kind"] == kind}
