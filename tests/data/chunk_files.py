"""Small replicas of LLM360's chunks and of OLMo's token files, and readers of them that follow the runs' own code."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def rows_of(seed: int, lines: int, width: int, vocab: int) -> np.ndarray:
    """Random ids [lines, width], small ones as often as large ones."""
    rng = np.random.default_rng(seed)
    digits = rng.integers(1, len(str(vocab)) + 1, (lines, width))
    return rng.integers(0, 10**digits) % vocab


def write_chunk(path: Path, ids: np.ndarray) -> Path:
    """As LLM360/amber-data-prep writes it: one object a line, by json.dumps."""
    with path.open("w") as out:
        for number, row in enumerate(ids.tolist()):
            out.write(json.dumps({"token_ids": row, "source": ("arxiv", "c4", "book [2]")[number % 3]}) + "\n")
    return path


def chunk_settings(folder: Path, ids: Mapping[int, np.ndarray], **settings: Any) -> dict[str, Any]:
    """Write chunks to train_NNN.jsonl; what a user writes to read them."""
    files = {str(number): str(write_chunk(folder / f"train_{number:03}.jsonl", rows)) for number, rows in ids.items()}
    some = next(iter(ids.values()))
    return {"files": files, "context": some.shape[1] - 1, "examples": len(some), **settings}


# ---- LLM360/amber-train at 64bc595


def amber_examples(filename: Path, n_examples: int, micro: int, rank: int, world: int) -> list[dict[str, Any]]:
    """main_utils.py, load_jsonl_examples with shuffle."""
    idxes = np.random.permutation(n_examples)
    n_examples = n_examples // micro * micro
    idxes = idxes[rank:n_examples:world]
    examples: dict[int, Any] = dict.fromkeys(idxes)
    with filename.open() as lines:
        for idx, line in enumerate(lines):
            if idx in examples:
                examples[idx] = json.loads(line)
    return [examples[idx] for idx in idxes]


def amber_run(
    file: Callable[[int], Path], n_examples: int, *, start: int, chunks: int, device: int, world: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """main.py: inputs and labels of every update of a process that starts at a chunk, in the order of its examples."""
    np.random.seed(11111 + start)
    updates = []
    for chunk in range(start, chunks):
        state, ranks = np.random.get_state(), []
        for rank in range(world):  # every rank seeds and draws the same
            np.random.set_state(state)
            ranks.append(amber_examples(file(chunk), n_examples, device * world, rank, world))
        for i in range(0, len(ranks[0]), device):
            whole = [ranks[rank][i + j] for j in range(device) for rank in range(world)]
            tokens = torch.tensor([example["token_ids"] for example in whole])
            updates.append((tokens[:, :-1], tokens[:, 1:]))
    return updates


# ---- LLM360/k2-train at 869fbb9


def k2_run(files: list[Path], *, consumed: int, batch: int, micro: int, ranks: int) -> Iterator[list[list[int]]]:
    """main.py and megatron/data/data_samplers.py: token ids of each update after `consumed` samples."""
    lines = [line for file in files for line in file.read_text().splitlines()]
    held: list[list[int]] = [[] for _ in range(ranks)]
    gathered: list[int] = []
    update: list[int] = []
    for idx in range(consumed, len(lines)):
        gathered.append(idx)
        if len(gathered) == micro * ranks:
            for rank in range(ranks):
                held[rank] = gathered[rank * micro : (rank + 1) * micro]
            update += [one for rank in held for one in rank]
            gathered = []
        if len(update) == batch:
            yield [json.loads(lines[one])["token_ids"] for one in update]
            update = []


# ---- allenai/OLMo at 59a53e3


def olmo_files(folder: Path, tokens: list[np.ndarray], dtype: str) -> list[Path]:
    """Token files as np.memmap leaves them: numbers and nothing else."""
    files = [folder / f"part-{number}-00000.npy" for number in range(len(tokens))]
    for file, ids in zip(files, tokens, strict=True):
        ids.astype(dtype).tofile(file)
    return files


def olmo_indices(file: Path, instances: int, *, seed: int, epoch: int, world: int, drop_last: bool = True) -> Path:
    """olmo/data/iterable_dataset.py, _build_and_save_global_indices."""
    if drop_last and instances % world != 0:
        num_samples = math.ceil((instances - world) / world)
    else:
        num_samples = math.ceil(instances / world)
    total_size = num_samples * world
    indices = np.arange(instances, dtype=np.uint32)
    np.random.Generator(np.random.PCG64(seed=seed + epoch)).shuffle(indices)
    indices = indices[:total_size] if drop_last else np.concatenate([indices, indices[: total_size - instances]])
    saved = np.memmap(file, dtype=np.uint32, mode="w+", shape=(len(indices),))
    saved[:] = indices
    saved.flush()
    return file


def olmo_instance(files: list[Path], index: int, chunk_size: int, dtype: str) -> torch.Tensor:
    """olmo/data/memmap_dataset.py, __getitem__."""
    size = np.dtype(dtype).itemsize * chunk_size
    start = 0
    for file in files:
        end = start + file.stat().st_size // size
        if start <= index < end:
            with file.open("rb") as opened:
                opened.seek((index - start) * size)
                return torch.tensor(np.frombuffer(opened.read(size), dtype=dtype).astype(np.int_), dtype=torch.long)
        start = end
    raise IndexError(index)


def olmo_rank(indices: np.ndarray, start: int, rank: int, world: int, device: int) -> list[np.ndarray]:
    """olmo/data/iterable_dataset.py, __iter__, with a DataLoader of `device` instances: a rank's batches."""
    mine = indices[start:][rank::world]
    return [mine[i : i + device] for i in range(0, len(mine) - device + 1, device)]
