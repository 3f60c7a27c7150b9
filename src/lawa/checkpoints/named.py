"""A checkpoint's tensors under the names that transformers writes: as averages have them, and options name them. No
torch."""

from __future__ import annotations

from dataclasses import replace

from lawa.checkpoints.carry import CONFIG
from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.layouts.transformers5 import names_in_files
from lawa.records import read_json


def named(catalog: Catalog) -> Catalog:
    """With those names, so that formats can be mixed and outputs are as transformers writes them."""
    config = catalog.directory / CONFIG if catalog.directory else None
    model = read_json(config).get("model_type") if config and config.is_file() else None
    names = names_in_files(model, catalog.tensors)
    return replace(catalog, tensors={names[name]: stored for name, stored in catalog.tensors.items()})
