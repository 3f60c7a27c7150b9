"""Every number in a document comes from a record, and every configuration in the tree can be read."""

import subprocess
import sys
from pathlib import Path

import pytest

from lawa.pretrain.config import load, read_yaml

ROOT = Path(__file__).resolve().parent.parent


def test_the_documents_say_what_the_records_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "document.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configurations_and_their_arms_are_possible(file):
    load(file)
    for arm in read_yaml(file).get("arms", {}):
        assert load(file, arm=arm).averaging.mode == "replace"
