"""Files at an address of their own, through a server that fails in the ways of servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub_server import Fault, serving
from lawa.checkpoints import hub_parts
from lawa.errors import LawaError
from lawa.trajectories.elsewhere import fetch

FILES = {"model.pt": bytes(range(256)) * 40, "train.pt": b"x"}
NAMES = tuple(FILES)
GET = r"GET .*model\.pt"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub_parts, "PART", 1000)
    with serving({"org/states": {"step6": FILES}}, tmp_path / "cache", monkeypatch) as hub:
        yield hub


def address(hub) -> str:
    return f"{hub.endpoint}/org/states/resolve/step6"


def whole(place: Path) -> bool:
    return {file.name: file.read_bytes() for file in place.iterdir()} == FILES


def test_files_come_whole_and_once(server, tmp_path: Path) -> None:
    assert whole(fetch(address(server), NAMES, tmp_path / "native"))
    asked = len(server.requests)
    assert whole(fetch(address(server), NAMES, tmp_path / "native"))
    assert whole(fetch(address(server), NAMES, tmp_path / "native", offline=True))
    assert len(server.requests) == asked
    with pytest.raises(LawaError, match=r"model.pt was not fetched yet, and the network is not used"):
        fetch(address(server), NAMES, tmp_path / "other", offline=True)


@pytest.mark.parametrize("fault", [Fault(GET, times=2, status=503), Fault(GET, times=2, cut=300)])
def test_what_passes_is_tried_again(server, tmp_path: Path, fault: Fault) -> None:
    server.faults.append(fault)
    assert whole(fetch(address(server), NAMES, tmp_path / "native"))
    assert len(server.slept) == 2


def test_what_has_come_is_not_asked_for_again(server, tmp_path: Path) -> None:
    server.faults.append(Fault(GET, skip=6, times=99, status=503))
    with pytest.raises(LawaError, match=r"model.pt is not sent .*503.*; what has come is kept: try again, or bring"):
        fetch(address(server), NAMES, tmp_path / "native")
    assert not (tmp_path / "native" / "model.pt").exists()
    server.faults.clear()
    came = {asked for name, asked in server.ranges if name == "model.pt"}
    server.ranges.clear()
    assert whole(fetch(address(server), NAMES, tmp_path / "native"))
    again = {asked for name, asked in server.ranges if name == "model.pt"}
    assert came
    assert not came & again


def test_what_is_not_there_is_a_sentence(server, tmp_path: Path) -> None:
    with pytest.raises(LawaError, match=r"optim.pt is refused \(HTTP Error 404.*\); see whether it is still there"):
        fetch(address(server), ["optim.pt"], tmp_path / "native")
    with pytest.raises(LawaError, match=r"cannot be reached .*; what has come is kept"):
        fetch("http://127.0.0.1:9/states", ["optim.pt"], tmp_path / "native")
