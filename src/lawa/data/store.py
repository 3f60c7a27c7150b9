"""The token store: sources as token ids on disk, built once, opened in constant time.

STORE/train/NAME.bin              little-endian uint16 (vocabularies up to 65,536) or uint32;
      validation/NAME.bin         after every document one end-of-text token
STORE/SPLIT/NAME.documents.bin    int64: where each document begins, in tokens, and where the last one ends
STORE/files/SPLIT.NAME.jsonl      a line a file that data.SPLIT's source NAME was read from: name, bytes, mtime_ns,
                                  sha256, and its documents by split
STORE/tokenizer/                  what the ids mean; transformers' AutoTokenizer reads it
STORE/store.json                  what `TokenStore.info` holds
STORE/manifest.json               written last: a directory without it does not exist

Megatron's token files stay where they are; the store refers to them.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from lawa.checkpoints.publish import verify
from lawa.data.building import FORMAT, Progress, write
from lawa.data.files import StrPath
from lawa.data.megatron import Megatron, open_megatron
from lawa.data.request import SPLITS, Text, look
from lawa.errors import LawaError


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStore:
    """An open token store; the arrays are read-only memory maps.

    train, validation  source → token ids [tokens]: uint16 or uint32, of Megatron's files their own dtype
    info               format, vocab_size, end_of_text, digest; `splits` (per split documents, bytes of text, tokens,
                       and the same of each of its `sources`, with dtype, weight and sha256), `tokenizer` and `sources`
                       (where they came from), `versions`, and `request`
    """

    path: Path
    train: dict[str, NDArray[np.integer]]
    validation: dict[str, NDArray[np.integer]]
    info: dict[str, Any]

    @property
    def train_tokens(self) -> int:
        """Training tokens of all sources."""
        return self.info["splits"]["train"]["tokens"]

    @property
    def validation_tokens(self) -> int:
        """Held-out tokens of all sources."""
        return self.info["splits"]["validation"]["tokens"]

    @property
    def weights(self) -> dict[str, dict[str, float]]:
        """Split → source → the weight that it was built with."""
        return {
            split: {name: source["weight"] for name, source in self.info["splits"][split]["sources"].items()}
            for split in SPLITS
        }

    @property
    def vocab_size(self) -> int:
        """Rows an embedding needs: the tokenizer's largest id + 1; less than was asked for if text was short."""
        return self.info["vocab_size"]

    @property
    def end_of_text(self) -> int:
        """The id that follows every document."""
        return self.info["end_of_text"]

    @property
    def tokenizer_path(self) -> Path:
        """A folder for transformers' AutoTokenizer."""
        return self.path / "tokenizer"

    @property
    def digest(self) -> str:
        """SHA-256 over dtypes and tokens: stores with the same digest hold the same ids in sources in the same order.

        Of Megatron's files it covers the index, and the tokens by a sample of up to 32 MiB.
        """
        return self.info["digest"]

    def documents(self, split: str, name: str) -> NDArray[np.int64]:
        """Where each document of a source begins in its array, and where the last one ends: int64 [documents + 1]."""
        source = self.info["splits"][split]["sources"][name]
        if "megatron" in source:
            offsets, (first, end) = open_megatron(source["megatron"]).offsets(), source["span"]
            return offsets[(offsets >= first) & (offsets <= end)] - first
        return np.memmap(self.path / split / f"{name}.documents.bin", dtype="<i8", mode="r")

    def files(self, part: str) -> Iterator[dict[str, Any]]:
        """What is known of each file that a source ("train.NAME", "validation.NAME") was read from."""
        listing = self.path / "files" / f"{part}.jsonl"
        with listing.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


def open_store(path: StrPath) -> TokenStore:
    """Open the store at `path`. The sizes of its files are checked; their digests, which take a full read, are not.

    Raises LawaError when there is none, when it is damaged or of another format, and when Megatron's files are no
    longer those that it was built with.
    """
    path = Path(path)
    if not path.is_dir():
        raise LawaError(f"there is no token store at {path}; build one from text, or correct data.store")
    described = path / "store.json"
    if not described.is_file():  # asked first: nobody shall be told to remove a directory of another kind
        raise LawaError(f"{path} is no token store (it has no {described.name}); choose another data.store")
    try:
        verify(path, digests=False)
    except LawaError as damaged:
        raise LawaError(f"the token store {path} is damaged ({damaged}); remove it and build it again") from damaged
    info = json.loads(described.read_text(encoding="utf-8"))
    if info["format"] != FORMAT:
        raise LawaError(
            f"{path} is a token store of format {info['format']}, and this version reads format {FORMAT}; "
            "choose another data.store, or remove it and build it again"
        )
    ids = {
        split: {name: _ids(path, split, name, source) for name, source in info["splits"][split]["sources"].items()}
        for split in SPLITS
    }
    return TokenStore(path=path, train=ids["train"], validation=ids["validation"], info=info)


def build(
    path: StrPath, *, workers: int | None = None, progress: Progress | None = None, **text: Unpack[Text]
) -> TokenStore:
    """Tokenize a text (`request.Text` lists the keywords) into a new store, which appears whole or not at all.

    Documents are read in order and encoded on `workers` threads (default: one a core), with the same bytes for any
    number; memory does not grow with the corpus. `progress` is called as text is done. Raises LawaError where the
    text, the tokenizer or the place will not do.
    """
    path = Path(path)
    write(path, look(**text), workers, progress)
    return open_store(path)


def build_or_open(
    path: StrPath, *, workers: int | None = None, progress: Progress | None = None, **text: Unpack[Text]
) -> TokenStore:
    """The store at `path`, built first if there is none, opened if it was built from this very request.

    Files whose size and time of change are as they were when it was built are not read again; others are, to compare
    them. Of a dataset its description is compared. Of several processes that ask at once, one builds and the others
    wait. Raises LawaError naming what differs when the store was built from another text or settings.
    """
    path = Path(path)
    request = look(**text)
    if not path.exists():
        with _alone(path):
            if not path.exists():
                write(path, request, workers, progress)
                return open_store(path)
    store = open_store(path)
    if differences := request.differences(store.info["request"], store.files):
        raise LawaError(
            f"{path} was built from another request ({'; '.join(differences)}); "
            "choose another data.store, or remove it to have it built again"
        )
    return store


def _ids(path: Path, split: str, name: str, source: dict[str, Any]) -> NDArray[np.integer]:
    if "megatron" not in source:
        return np.memmap(path / split / f"{name}.bin", dtype=source["dtype"], mode="r")
    given = open_megatron(source["megatron"])
    _refuse_altered(path, given, source)
    first, end = source["span"]
    return given.ids[first:end]


def _refuse_altered(path: Path, given: Megatron, source: dict[str, Any]) -> None:
    """Raise LawaError unless Megatron's files are those of the store; they are read only if they were touched."""
    there, digests = source["files"], None
    for file in given.files:
        suffix = file.path.suffix
        known = there[suffix]
        if (file.bytes, file.mtime_ns) != (known["bytes"], known["mtime_ns"]):
            digests = digests or given.digests()
            if file.bytes != known["bytes"] or digests[suffix] != known["sha256"]:
                raise LawaError(
                    f"{file.path} is not the file that the token store {path} was built with; put it back, or remove "
                    "the store and build it again"
                )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock on building `path`; a process that is killed gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
