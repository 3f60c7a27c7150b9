"""Rows of a dataset of the `datasets` package: from the hub, from data files, or from a folder that it saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lawa.data.corpus import Document, checked
from lawa.data.files import File, find
from lawa.data.sources import DatasetSource
from lawa.errors import LawaError, require

_SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves, of one split and of several


class Dataset:
    """The rows of one split; nothing is loaded before they are asked for."""

    def __init__(self, source: DatasetSource) -> None:
        self.source = source
        self.folder = Path(source.dataset) if Path(source.dataset).exists() else None
        self.files: list[File] = find([self.folder], ("",)) if self.folder else []
        self.record: dict[str, Any] = {
            "dataset": self.folder.name if self.folder else source.dataset,
            **{name: getattr(source, name) for name in ("config", "split", "text", "revision")},
        }

    @property
    def bytes(self) -> None:
        return None

    @property
    def provenance(self) -> dict[str, Any]:
        place = {"path": str(self.folder)} if self.folder else {"commit": self.commit}
        return {"dataset": self.source.dataset, **place, "datasets": require("datasets", extra="datasets").__version__}

    def read_through(self) -> None:
        self.files = [dataclasses.replace(file, sha256=file.digest()) for file in self.files]

    def documents(self) -> Iterator[Document]:
        source = self.source
        with self._named():
            for number, row in enumerate(self._load()):
                where = f"dataset {source.dataset}, row {number}"
                if text := checked(row.get(source.text), source.text, where):
                    yield Document(text=text, where=where, consumed=len(text.encode()), row=True)

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision means now; offline what was given, or None."""
        hub = require("huggingface_hub", extra="datasets")
        try:
            return hub.HfApi().dataset_info(self.source.dataset, revision=self.source.revision, timeout=30).sha
        except Exception:  # no network, or no such dataset: loading it will say which
            return self.source.revision

    def _load(self) -> Iterable[dict[str, Any]]:
        datasets = require("datasets", extra="datasets")
        source = self.source
        if self.folder and any((self.folder / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(str(self.folder))
            return loaded[source.split] if isinstance(loaded, dict) else loaded
        revision = None if self.folder else self.commit
        return datasets.load_dataset(
            source.dataset, source.config, split=source.split, revision=revision, streaming=source.streaming
        )

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the dataset in whatever its loading raises: the library has no error of its own for most."""
        try:
            yield
        except (LawaError, MemoryError):
            raise
        except Exception as failed:
            reason = str(failed).partition("\n")[0].rstrip(".") or type(failed).__name__
            raise LawaError(
                f"dataset {self.source.dataset}, split {self.source.split!r}, cannot be read ({reason}); correct its "
                "name, config, split or revision, or fetch it where there is a network"
            ) from failed
