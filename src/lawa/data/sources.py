"""What a source of tokens is: text files, a `datasets` dataset, or Megatron's token files. Descriptions only, no torch.

A store is asked for as a mapping: name → source. The names are those of files in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lawa.errors import UsageError

NAMELESS = "text"  # what the one source is called that was given as a list of paths

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class TextSource:
    """Text files (one is one document), JSONL files (a line is one), and folders with *.txt, *.jsonl and *.jsonl.gz.

    text    the field of a JSONL line that holds its text
    weight  the source's share of the sequences, relative to the others'
    """

    paths: list[str]
    text: str = "text"
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """A dataset that the `datasets` package can load; a row is one document.

    dataset    a name on the hub, a folder of data files, or one that `save_to_disk` wrote
    config     which of its configurations
    split      which of its splits
    text       the column that holds the text
    revision   a branch, tag or commit of the hub; what it is then is looked up once and written down
    streaming  read row by row as the rows arrive, instead of downloading all first
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    text: str = "text"
    revision: str | None = None
    streaming: bool = True
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class MegatronSource:
    """Token files PREFIX.bin and PREFIX.idx, read where they are; data.tokenizer says what their ids mean."""

    megatron: str
    weight: float = 1.0


Source = TextSource | DatasetSource | MegatronSource
KINDS: dict[str, type[Source]] = {"paths": TextSource, "dataset": DatasetSource, "megatron": MegatronSource}


def check(sources: Mapping[str, Source], path: str) -> None:
    """Raise UsageError for what is wrong with a source by itself; `path` names them all in errors."""
    if not sources:
        raise UsageError(f"{path} is empty; name text files or folders, or sources")
    for name, source in sources.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"{path}: {name!r} cannot name a source; use letters, digits, '.', '_' and '-'")
        if not 0 < source.weight < float("inf"):
            raise UsageError(f"{path}.{name}.weight={source.weight} must be a finite number above 0")
        if isinstance(source, TextSource) and not source.paths:
            raise UsageError(f"{path}.{name}.paths is empty; name text files or folders")


def absolute(source: Source) -> dict[str, object]:
    """The fields of a source that are set, with absolute paths: what `data.train` may hold under its name."""
    fields = {key: value for key, value in vars(source).items() if value is not None}
    if isinstance(source, TextSource):
        fields["paths"] = [str(Path(path).absolute()) for path in source.paths]
    elif isinstance(source, MegatronSource):
        fields["megatron"] = str(Path(source.megatron).absolute())
    elif Path(source.dataset).exists():  # and not a name on the hub
        fields["dataset"] = str(Path(source.dataset).absolute())
    return fields
