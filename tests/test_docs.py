"""What documents say of numbers, settings and configurations is true."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lawa.pretrain.config import Config, load, read_yaml
from lawa.pretrain.reference import sections
from lawa.settings import walk

ROOT = Path(__file__).resolve().parent.parent


def test_the_documents_say_what_the_records_say():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "document.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_that_test_can_fail(tmp_path):
    spec = importlib.util.spec_from_file_location("document", ROOT / "tools" / "document.py")
    document = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(document)
    page = tmp_path / "configuration.md"
    page.write_text((ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), encoding="utf-8")
    blocks = {"settings": document.settings()}
    assert document.fill(page, blocks, check=True)
    assert not document.fill(page, {"settings": blocks["settings"].replace("peak", "final")}, check=True)


def test_every_setting_is_in_the_reference_with_its_default_and_choices():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for path, _, _ in walk(Config):
        assert page.count(f"| `{path}` |") == 1
    assert "| `averaging.mode` | `none`, `evaluate`, `replace` | `evaluate` |" in page
    assert "| `averaging.strict` | true or false | `false` |" in page
    assert "| `training.updates` | whole number | **required** |" in page
    assert "| `tracking.trackers` | list of text: `tensorboard`, `wandb`, `trackio` |  |" in page


def test_sections_say_what_they_are_for():
    purposes = {section.name: section.purpose for section in sections(Config)}
    assert purposes["data"] == "The text, its tokenizer, and the sequences made of it."
    assert list(purposes)[-1] == ""
    assert all(purpose.endswith(".") for purpose in purposes.values())


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_configurations_and_their_arms_are_possible(file):
    load(file)
    for arm in read_yaml(file).get("arms", {}):
        assert load(file, arm=arm).averaging.mode in ("evaluate", "replace")
