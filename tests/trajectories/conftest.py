"""A small run of the driver."""

import io

import pytest
from rich.console import Console

from lawa.pretrain import run as runs
from lawa.pretrain.config import Config
from lawa.settings import build


@pytest.fixture(scope="session")
def own_run(settings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("own") / "run"
    runs.start(build(Config, settings), directory, console=Console(file=io.StringIO()))
    return directory
