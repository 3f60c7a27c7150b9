import json
import subprocess

import pytest

from lawa.errors import LawaError
from lawa.records import Records, _commit, provenance, read, write_json


def test_records_come_back_in_order(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    records.append("train", 1, loss=2.5)
    records.append("evaluation", 2, losses={"plain": 2.25})
    assert list(read(records.path)) == [
        {"kind": "train", "update": 1, "loss": 2.5},
        {"kind": "evaluation", "update": 2, "losses": {"plain": 2.25}},
    ]


def test_cut_back_drops_what_came_after(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    assert records.size() == 0
    records.append("train", 1)
    size = records.size()
    assert size == len(records.path.read_bytes())
    records.append("train", 2)
    with records.path.open("a") as file:
        file.write('{"kind": "tr')  # a kill in the middle of a line
    records.cut_back(size)
    assert [record["update"] for record in read(records.path)] == [1]
    records.cut_back(10_000)
    assert records.size() == size


def test_an_unfinished_last_line_is_left_out_and_any_other_bad_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "update": 1}\n{"kind": "tra')
    assert len(list(read(path))) == 1
    path.write_text('{"kind": "train"}\n{"kind": "train", "update": 2}\n')
    with pytest.raises(LawaError, match=r"metrics\.jsonl, line 1"):
        list(read(path))


def test_write_json_replaces_whole_files(tmp_path):
    write_json(tmp_path / "run.json", {"name": "a"})
    write_json(tmp_path / "run.json", {"name": "θ"})
    assert json.loads((tmp_path / "run.json").read_text(encoding="utf-8")) == {"name": "θ"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_provenance_names_versions_and_machine():
    made = provenance(("torch", "no-such-package"))
    assert made["versions"]["torch"].count(".") >= 2
    assert made["versions"]["no-such-package"] == "not installed"
    assert made["machine"]["cores"] >= 1


def test_the_commit_is_that_of_a_repository_which_tracks_the_file(tmp_path):
    """A package installed below somebody's own repository does not have that one's commit."""

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    for name in ("ours.py", "installed.py"):
        (tmp_path / name).touch()
    git("init")
    git("add", "ours.py")
    git("commit", "-m", "first")
    commit = _commit(tmp_path / "ours.py")
    assert commit is not None
    assert len(commit) == 40
    assert _commit(tmp_path / "installed.py") is None
    (tmp_path / "ours.py").write_text("changed")
    assert _commit(tmp_path / "ours.py") == commit  # asked once a process
