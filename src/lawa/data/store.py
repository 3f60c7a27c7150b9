"""The token store: a corpus as token ids on disk, built once, opened in constant time.

STORE/train.bin  validation.bin   little-endian uint16 (vocabularies up to 65,536) or uint32;
                                  after every document one end-of-text token
STORE/tokenizer/                  what the ids mean; transformers' AutoTokenizer reads it
STORE/documents.jsonl             a line a document: split, name, bytes and sha256 of its text,
                                  offset and tokens (the end of text included) in its split's file
STORE/store.json                  what `TokenStore.info` holds
STORE/manifest.json               written last: a directory without it does not exist
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from lawa.checkpoints.publish import publish, sha256, verify
from lawa.data.corpus import Document, StrPath
from lawa.data.request import Request, Text, read
from lawa.data.tokenizer import encode, load, train, vocabulary_size
from lawa.errors import LawaError, require

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1

Progress = Callable[[int, int], None]  # (bytes of text done, bytes of text in all)


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenStore:
    """An open token store; the arrays are read-only memory maps.

    train, validation  token ids, uint16 or uint32 [tokens]
    info               format, dtype, vocab_size, end_of_text, digest; `splits` (per split documents, bytes of
                       text, tokens, sha256 of its file), `tokenizer` (where it came from) and `request`
    """

    path: Path
    train: NDArray[np.unsignedinteger]
    validation: NDArray[np.unsignedinteger]
    info: dict[str, Any]

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
        """SHA-256 over dtype and token files: stores with the same digest hold the same ids."""
        return self.info["digest"]

    def documents(self) -> Iterator[dict[str, Any]]:
        """The lines of documents.jsonl: training, then validation, each in the order of its token file."""
        with (self.path / "documents.jsonl").open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def open_store(path: StrPath) -> TokenStore:
    """Open the store at `path`. The sizes of its files are checked; their digests, which take a full read, are not.

    Raises LawaError when there is none, and when it is damaged or of another format.
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
    ids = {split: np.memmap(path / f"{split}.bin", dtype=info["dtype"], mode="r") for split in info["splits"]}
    return TokenStore(path=path, train=ids["train"], validation=ids["validation"], info=info)


def build(path: StrPath, *, progress: Progress | None = None, **text: Unpack[Text]) -> TokenStore:
    """Tokenize a text (`request.Text` lists the keywords) into a new store, which appears whole or not at all.

    Documents are read and encoded one at a time, so memory grows with the largest of them and not with the
    corpus; `progress` is called after each. Raises LawaError where the text, the tokenizer or the place will not
    do.
    """
    return _write(Path(path), read(**text), progress)


def build_or_open(path: StrPath, *, progress: Progress | None = None, **text: Unpack[Text]) -> TokenStore:
    """The store at `path`, built first if there is none, opened if it was built from this very request.

    The text is read through in either case, to compare it. Of several processes that ask at once, one builds and
    the others wait. Raises LawaError naming what differs when the store was built from another text or settings.
    """
    path = Path(path)
    request = read(**text)
    if not path.exists():
        with _alone(path):
            if not path.exists():
                return _write(path, request, progress)
    store = open_store(path)
    if differences := request.differences(store.info["request"], store.documents):
        raise LawaError(
            f"{path} was built from another request ({'; '.join(differences)}); "
            "choose another data.store, or remove it to have it built again"
        )
    return store


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock on building `path`; a process that is killed gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, request: Request, progress: Progress | None) -> TokenStore:
    with publish(path) as partial:
        tokenizer, provenance = _tokenizer(request)
        tokenizer.save_pretrained(partial / "tokenizer")
        vocab_size = vocabulary_size(tokenizer)
        dtype = "<u2" if vocab_size <= 1 << 16 else "<u4"
        done, total = 0, sum(document.bytes for side in request.documents.values() for document in side)
        splits = {}
        with (partial / "documents.jsonl").open("w", encoding="utf-8") as listing:
            for split, documents in request.documents.items():
                file = partial / f"{split}.bin"
                with file.open("wb") as ids:
                    for line in _encode(documents, tokenizer, dtype, ids):
                        listing.write(json.dumps({"split": split, **line}) + "\n")
                        done += line["bytes"]
                        if progress:
                            progress(done, total)
                splits[split] = {
                    "documents": len(documents),
                    "bytes": sum(document.bytes for document in documents),
                    "tokens": file.stat().st_size // np.dtype(dtype).itemsize,
                    "sha256": sha256(file),
                }
        files = " ".join([dtype, *(split["sha256"] for split in splits.values())])
        info = {
            "format": FORMAT,
            "dtype": dtype,
            "vocab_size": vocab_size,
            "end_of_text": tokenizer.eos_token_id,
            "digest": hashlib.sha256(files.encode()).hexdigest(),
            "splits": splits,
            "tokenizer": provenance,
            "request": request.record,
        }
        (partial / "store.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return open_store(path)


def _tokenizer(request: Request) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """The request's tokenizer and where it came from. It is trained on training documents and no others."""
    versions = {name: require(name, extra="train").__version__ for name in ("tokenizers", "transformers")}
    if request.tokenizer is not None:
        return load(request.tokenizer), {"given": str(request.tokenizer), "versions": versions}
    assert request.vocab_size is not None
    texts = (document.text() for document in request.documents["train"])
    return train(texts, request.vocab_size), {"trained": request.vocab_size, "versions": versions}


def _encode(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, dtype: str, out: IO[bytes]
) -> Iterator[dict[str, Any]]:
    """Write the ids of `documents` to `out`, and yield the line that describes each when it is written."""
    offset = 0
    for document in documents:
        ids = np.array([*encode(tokenizer, document.text()), tokenizer.eos_token_id], dtype=dtype)
        out.write(ids.tobytes())
        yield {
            "name": document.name,
            "bytes": document.bytes,
            "sha256": document.sha256,
            "offset": offset,
            "tokens": len(ids),
        }
        offset += len(ids)
