"""Bytes of data sets on the hub: stretches, whole files, beginnings; recognised, gone on with, and from the cache."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from hub_server import Fault, Hub, serving
from lawa.checkpoints import hub_client, hub_parts
from lawa.errors import LawaError
from lawa.records import read_json
from lawa.trajectories import ranges
from lawa.trajectories.ranges import fetch_files, fetch_ranges
from trajectories.hubs import DATA

FILES = [f"document-0000{one}-of-00002.bin" for one in range(3)]
SIZES = [70_001, 33_000, 50_123]


def shards() -> dict[str, bytes]:
    draw = random.Random(0)
    return {name: draw.randbytes(size) for name, size in zip(FILES, SIZES, strict=True)}


WHOLE = b"".join(shards().values())


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_parts, "PART", 1 << 14)
    files = {**shards(), "document.idx": bytes(range(100)), "README.md": b"# it"}
    with serving({f"datasets/{DATA}": {"main": files}}, tmp_path / "cache", monkeypatch) as served:
        yield served


@pytest.mark.parametrize(
    ("start", "stop"),
    [(0, len(WHOLE)), (0, 1), (69_990, 70_010), (60_000, 110_000), (70_001, 103_001), (120_000, 153_124)],
)
def test_a_stretch_is_the_bytes_of_the_files_one_behind_the_other(
    there: Hub, tmp_path: Path, start: int, stop: int
) -> None:
    arrived = []
    into = fetch_ranges(DATA, FILES, start, stop, tmp_path / "a" / "tokens.bin", arrived=arrived.append)
    assert into.read_bytes() == WHOLE[start:stop]
    assert sum(arrived) == stop - start == sum(last - first + 1 for first, last in asked(there))
    told = read_json(into.with_name("tokens.bin.json"))
    assert told["sha256"] == hashlib.sha256(WHOLE[start:stop]).hexdigest()
    assert told["commit"] == there.commit(f"datasets/{DATA}", "main")
    assert [told[key] for key in ("repo", "files", "start", "stop")] == [DATA, FILES, start, stop]
    assert sorted(file.name for file in into.parent.iterdir()) == ["tokens.bin", "tokens.bin.json"]


def asked(hub: Hub) -> list[tuple[int, int]]:
    """(first, last) bytes of every body."""
    return [tuple(map(int, str(one).removeprefix("bytes=").split("-"))) for _, one in hub.ranges]  # type: ignore[misc]


def test_the_same_request_is_recognised_and_another_is_refused(there: Hub, tmp_path: Path) -> None:
    into = tmp_path / "tokens.bin"
    fetch_ranges(DATA, FILES, 10, 90_000, into)
    there.requests.clear()
    there.move(f"datasets/{DATA}", "main", {"README.md": b"gone"})
    assert fetch_ranges(DATA, FILES, 10, 90_000, into) == into
    assert there.requests == []
    for files, start, stop, revision in [
        (FILES, 11, 90_000, None),
        (FILES[:2], 10, 90_000, None),
        (FILES, 10, 90_000, "x"),
    ]:
        with pytest.raises(LawaError, match=r"tokens\.bin exists already and holds bytes 10 … 90000 of org/pile-tiny"):
            fetch_ranges(DATA, files, start, stop, into, revision=revision)
    into.write_bytes(b"cut")
    with pytest.raises(LawaError, match=r"exists already and holds"):
        fetch_ranges(DATA, FILES, 10, 90_000, into)
    into.with_name("tokens.bin.json").unlink()
    with pytest.raises(LawaError, match=r"exists already and holds nothing known here"):
        fetch_ranges(DATA, FILES, 10, 90_000, into)


def test_what_was_stopped_goes_on_with_the_commit_it_began_with(there: Hub, tmp_path: Path) -> None:
    into = tmp_path / "tokens.bin"
    there.faults.append(Fault("GET .*00002-of", times=99, status=403))
    with pytest.raises(LawaError, match=r"refused org/pile-tiny"):
        fetch_ranges(DATA, FILES, 0, len(WHOLE), into)
    assert not into.exists()
    done = len(hub_parts.journal_of(tmp_path / ".tokens.bin.partial").read_text().splitlines()) - 1
    assert done >= 1
    there.faults.clear()
    there.ranges.clear()
    first = there.commit(f"datasets/{DATA}", "main")
    there.move(f"datasets/{DATA}", "main", {name: bytes(len(content)) for name, content in shards().items()})
    fetch_ranges(DATA, FILES, 0, len(WHOLE), into)
    assert into.read_bytes() == WHOLE
    assert (
        len(there.ranges)
        == len(hub_parts.parts([(name, 0, size) for name, size in zip(FILES, SIZES, strict=True)])) - done
    )
    assert read_json(tmp_path / "tokens.bin.json")["commit"] == first


def test_another_request_never_goes_on_with_what_was_begun(there: Hub, tmp_path: Path) -> None:
    there.faults.append(Fault("GET .*00001-of", times=99, status=403))
    with pytest.raises(LawaError, match="refused"):
        fetch_ranges(DATA, FILES, 0, 100_000, tmp_path / "tokens.bin")
    there.faults.clear()
    there.move(f"datasets/{DATA}", "main", {name: content[::-1] for name, content in shards().items()})
    fetch_ranges(DATA, FILES, 0, 100_001, tmp_path / "tokens.bin")
    assert (tmp_path / "tokens.bin").read_bytes() == b"".join(one[::-1] for one in shards().values())[:100_001]


def test_whole_files_in_the_cache_are_read_from_there(there: Hub, tmp_path: Path) -> None:
    found = fetch_files(DATA, [FILES[0], "*.idx"])
    assert found[FILES[0]].read_bytes() == WHOLE[: SIZES[0]]
    assert set(found) == {FILES[0], "document.idx"}
    there.ranges.clear()
    fetch_ranges(DATA, FILES, 60_000, 75_000, tmp_path / "both.bin")
    assert (tmp_path / "both.bin").read_bytes() == WHOLE[60_000:75_000]
    assert {name for name, _ in there.ranges} == {FILES[1]}
    fetch_files(DATA, FILES)
    there.requests.clear()
    fetch_ranges(DATA, FILES, 60_000, 153_000, tmp_path / "all.bin", offline=True)
    assert (tmp_path / "all.bin").read_bytes() == WHOLE[60_000:153_000]
    assert fetch_files(DATA, FILES, offline=True)[FILES[0]] == found[FILES[0]]
    assert there.requests == []
    with pytest.raises(LawaError, match=r"not whole in the cache \(.* has no other\.bin\)"):
        fetch_files(DATA, ["other.bin"], offline=True)


def test_what_cannot_be_is_said_before_anything_is_fetched(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "tokens.bin"
    with pytest.raises(LawaError, match=r"its 3 files have 153124 bytes together, and byte 153125 was asked for"):
        fetch_ranges(DATA, FILES, 0, len(WHOLE) + 1, into)
    with pytest.raises(LawaError, match=r"bytes 5 … 5 of org/pile-tiny are none"):
        fetch_ranges(DATA, FILES, 5, 5, into)
    with pytest.raises(LawaError, match=r"org/pile-tiny has no file document-00009.*; it holds README\.md"):
        fetch_ranges(DATA, ["document-00009-of-00009.bin"], 0, 5, into)
    with pytest.raises(LawaError, match=r"nor a dataset at http.* that you may see"):
        fetch_ranges("org/nowhere", FILES, 0, 5, into)
    monkeypatch.setattr(ranges.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 99}))
    with pytest.raises(LawaError, match=r"has 0\.0 GB of room, and tokens\.bin needs"):
        fetch_ranges(DATA, FILES, 0, 100, into)
    assert there.ranges == []
    assert not into.exists()


def test_a_private_data_set_is_read_with_the_persons_own_token(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.private[f"datasets/{DATA}"] = "hf_mine"
    with pytest.raises(LawaError, match=r"log in for a private one"):
        fetch_ranges(DATA, FILES, 0, 5, tmp_path / "tokens.bin")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert fetch_ranges(DATA, FILES, 0, 5, tmp_path / "tokens.bin").read_bytes() == WHOLE[:5]


def test_a_model_repo_has_stretches_too(there: Hub, tmp_path: Path) -> None:
    there.repos["org/model"] = {"main": {"optim.pt": bytes(range(200))}}
    into = fetch_ranges("org/model", ["optim.pt"], 100, 105, tmp_path / "x", repo_type="model", revision="main")
    assert into.read_bytes() == bytes(range(100, 105))
    assert hub_client.Repo("org/model").page == f"{there.endpoint}/org/model"
