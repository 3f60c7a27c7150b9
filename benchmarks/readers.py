"""How fast batches in a given order are read, against a plain memory map of as many tokens.

    python benchmarks/readers.py [--quick] [--output FILE]

Every reader gives int64 rows whose ids were compared with the vocabulary. The limit of a batch that lies end to end
is one slice of np.memmap as int64; of sequences from all over, as many slices, stacked; of rows from all over that
have one length, one indexing with their numbers, which takes an eighth of the slices' time. The files are cached. The
target is 0.7 of the limit in tokens a second, so 1.43 times its seconds. Start-up: Pythia's own sizes, in files with
holes, opened and read at batch 100,000; the target is 2 seconds.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import numpy as np

from lawa.data.batches import Batches, open_batches
from lawa.data.sources import MegatronSource
from lawa.data.store import build_or_open
from lawa.data.tokenizer import train
from measure import Found, Record, Spread, interleave, milliseconds, over, run

VOCABULARY = 50304
DOCUMENT = 1300  # tokens of a document of the Pile, about
TARGET_SECONDS = 2.0


@dataclass(frozen=True)
class Size:
    """Sequences of context + 1 tokens, `batch` an update."""

    batch: int
    context: int
    updates: int

    @property
    def row(self) -> int:
        return self.context + 1

    def ids(self) -> np.ndarray:
        """uint16 [updates · batch · (context + 1)]; every id is in a small tokenizer's vocabulary too."""
        return np.random.default_rng(0).integers(1, 257, self.updates * self.batch * self.row).astype("<u2")


def plain(folder: Path, size: Size) -> dict[str, Callable[[int], object]]:
    """The limits: batches that lie end to end, sequences from all over, and rows of one length from all over."""
    file = folder / "plain.bin"
    size.ids().tofile(file)
    ids = np.memmap(file, dtype="<u2", mode="r")
    tokens = size.batch * size.row
    starts = np.random.default_rng(1).integers(0, len(ids) - size.row, (size.updates, size.batch))
    rows = np.asarray(ids).reshape(-1, size.row)
    picked = np.random.default_rng(2).permutation(len(rows)).reshape(size.updates, size.batch)
    return {
        "one slice": lambda t: ids[(t - 1) * tokens : t * tokens].reshape(-1, size.row).astype(np.int64),
        "slices": lambda t: np.stack([ids[i : i + size.row].astype(np.int64) for i in starts[t - 1].tolist()]),
        "a gather": lambda t: rows[picked[t - 1]].astype(np.int64),
    }


def preshuffled(folder: Path, size: Size) -> Batches:
    size.ids().tofile(folder / "document.bin")
    return _preshuffled([folder / "document.bin"], size)


def across_files(folder: Path, size: Size) -> Batches:
    """Every batch lies in two files, and one of its sequences too."""
    content = size.ids().tobytes()
    step = size.batch * size.row * 2
    ends = [0, *range(step // 2 + 1000, len(content), step), len(content)]
    files = []
    for i, (begin, end) in enumerate(pairwise(ends)):
        files.append(folder / f"document-{i:05}.bin")
        files[-1].write_bytes(content[begin:end])
    return _preshuffled(files, size)


def documents(folder: Path, size: Size) -> Batches:
    """Documents of random lengths in random order, with GPT-NeoX's maps."""
    random = np.random.default_rng(0)
    ids = size.ids()
    lengths = random.exponential(DOCUMENT, 4 * len(ids) // DOCUMENT).astype(np.int64) + 1
    ends = np.cumsum(lengths)
    lengths, ends = lengths[ends <= len(ids)], ends[ends <= len(ids)]
    ids[: ends[-1]].tofile(folder / "pile.bin")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, len(lengths), 1)
    index = (lengths.astype("<i4"), ((ends - lengths) * 2).astype("<i8"), np.zeros(1, dtype="<i8"))
    (folder / "pile.idx").write_bytes(header + b"".join(part.tobytes() for part in index))
    order = random.permutation(len(lengths)).astype(np.int32)
    shuffled_ends = np.cumsum(lengths[order])
    samples = (int(ends[-1]) - 1) // size.context
    starts = np.arange(samples + 1) * size.context
    document = np.searchsorted(shuffled_ends, starts, side="right")
    where = np.stack([document, starts - (shuffled_ends - lengths[order])[document]], axis=1)
    maps = {"doc_idx": order, "sample_idx": where.astype(np.int32), "shuffle_idx": random.permutation(samples)}
    for name, array in maps.items():
        np.save(folder / f"{name}.npy", array)
    settings = {name: folder / f"{name}.npy" for name in maps}
    return open_batches({"documents": {"tokens": folder / "pile", **settings, **_common(size)}})


def own_run(folder: Path, size: Size) -> Batches:
    """A token store of Megatron's files, in the driver's order."""
    ids = size.ids()
    ids.tofile(folder / "text.bin")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, 2, 3)
    half = len(ids) // 2
    parts = struct.pack("<2i5q", half, len(ids) - half, 0, 2 * half, 0, 1, 2)
    (folder / "text.idx").write_bytes(header + parts)
    train(["ab ab"], 257).save_pretrained(folder / "tokenizer")
    source = {"text": MegatronSource(megatron=str(folder / "text"))}
    build_or_open(folder / "store", sources=source, validation_fraction=0.5, tokenizer=folder / "tokenizer")
    return open_batches({"run": {"store": folder / "store", "seed": 0, **_common(size)}})


def chunks(folder: Path, size: Size) -> Batches:
    """A chunk of LLM360's, converted, in Amber's order."""
    file = folder / "train_000.jsonl"
    rows = size.ids().reshape(-1, size.row).tolist()
    file.write_text("".join(json.dumps({"token_ids": row, "source": "c4"}) + "\n" for row in rows))
    settings = {"files": {0: file}, "examples": len(rows), "seed": 11111}
    return open_batches({"chunks": {**settings, **_common(size)}})


def indices(folder: Path, size: Size) -> Batches:
    """OLMo's token files, in a list's order."""
    rows = size.ids().reshape(-1, size.row)
    files = [folder / f"part-{i}-00000.npy" for i in range(8)]
    for file, part in zip(files, np.array_split(rows, len(files)), strict=True):
        part.tofile(file)
    np.random.default_rng(0).permutation(len(rows)).astype("<u4").tofile(folder / "global_indices.npy")
    settings = {"global_indices": folder / "global_indices.npy", "files": files}
    return open_batches({"indices": {**settings, **_common(size)}})


ACROSS = "preshuffled-across-files"  # read by the way: no run has many such batches
READERS: dict[str, tuple[str, str, Callable[[Path, Size], Batches]]] = {  # name → what it is, its limit, its maker
    "preshuffled": ("preshuffled", "one slice", preshuffled),
    ACROSS: ("preshuffled, in two files (one batch in 7,000)", "one slice", across_files),
    "documents": ("documents, by GPT-NeoX's maps", "slices", documents),
    "run": ("a run of one's own", "slices", own_run),
    "chunks": ("LLM360's chunks, permuted", "a gather", chunks),
    "indices": ("OLMo's files, by global indices", "a gather", indices),
}


def measure(quick: bool) -> list[Found]:
    size = Size(batch=8, context=64, updates=4) if quick else Size(batch=1024, context=2048, updates=24)
    rounds = 3 if quick else 25
    with tempfile.TemporaryDirectory() as folder:
        contenders = {name: _cycle(read, size.updates) for name, read in plain(Path(folder), size).items()}
        for name, (_, _, make) in READERS.items():
            place = Path(folder) / name
            place.mkdir()
            found = make(place, size)
            contenders[name] = _cycle(found.rows, min(found.updates[-1], size.updates))
        seconds = interleave(contenders, rounds=rounds)
        tokens = size.batch * size.context
        return [
            *(_record(name, seconds, tokens, rounds) for name in READERS),
            _start(Path(folder), size, quick),
        ]


def _record(name: str, seconds: dict[str, list[float]], tokens: int, rounds: int) -> Record:
    what, limit, _ = READERS[name]
    spread = Spread.of(seconds[name])
    return Record(
        name=f"readers/{name}",
        question=f"a batch of {what} / a plain memory map, {limit}",
        ratio=over(seconds[name], seconds[limit]),
        target=None if name == ACROSS else 1 / 0.7,
        n=rounds,
        parts={name: spread, limit: Spread.of(seconds[limit])},
        note=f"{tokens / spread.median / 1e6:.0f} M tokens/s",
    )


def _start(folder: Path, size: Size, quick: bool) -> Record:
    """Opening what has 146,432,000 sequences and reading batch 100,000, against a plain map of the one file."""
    n, row, part = 143_000 * 1024, 4098, 30_000_000_000
    files = [folder / f"document-{i:05}-of-00020.bin" for i in range(21)]
    for file in files:
        with file.open("wb") as made:
            made.truncate(min(part, n * row - int(file.name[9:14]) * part))
    index = folder / "document.idx"
    with index.open("wb") as made:
        made.write(struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, n, 1))
        made.truncate(34 + 12 * n + 8)
        for i in np.linspace(0, n - 1, num=64, dtype=np.int64).tolist():  # what the reader looks at
            made.seek(34 + 4 * i)
            made.write(struct.pack("<i", 2049))
            made.seek(34 + 4 * n + 8 * i)
            made.write(struct.pack("<q", i * row))
    given = {"files": files, "index": index, "batch": 1024, "context": 2048, "vocab_size": VOCABULARY}
    begin, tokens = 100_000 * 1024 * row, 1024 * 2049

    def mapped() -> object:
        number, offset = divmod(begin, part)
        ids = np.memmap(files[number], dtype="<u2", mode="r")
        return ids[offset // 2 : offset // 2 + tokens].reshape(-1, 2049).astype(np.int64)

    def opened() -> object:
        found = open_batches({"preshuffled": given})
        assert len(found.digest) == 64
        return found.rows(100_001)

    rounds = 3 if quick else 9
    seconds = interleave({"opened": opened, "mapped": mapped}, rounds=rounds, least=0.0)
    limit, spread = Spread.of(seconds["mapped"]), Spread.of(seconds["opened"])
    return Record(
        name="readers/start",
        question="opening Pythia's 21 files with their index and digest, and batch 100,000 / a plain memory map's",
        ratio=over(seconds["opened"], seconds["mapped"]),
        target=TARGET_SECONDS / limit.median,
        n=rounds,
        parts={"opened": spread, "mapped": limit},
        note=f"{milliseconds(spread)}, target {TARGET_SECONDS:.0f} s",
    )


def _preshuffled(files: list[Path], size: Size) -> Batches:
    return open_batches({"preshuffled": {"files": files, **_common(size)}})


def _common(size: Size) -> dict[str, int]:
    return {"batch": size.batch, "context": size.context, "vocab_size": VOCABULARY}


def _cycle(read: Callable[[int], object], updates: int) -> Callable[[], object]:
    """Reads another batch every time."""
    numbers = count()
    return lambda: read(next(numbers) % updates + 1)


if __name__ == "__main__":
    run("readers", __doc__ or "", measure)
