"""What goes wrong on the way: a clear sentence, or tried again; and a second try goes on where the first stopped."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from hub_server import Fault, Hub, serving
from lawa.checkpoints import hub_client, hub_parts
from lawa.errors import LawaError
from lawa.trajectories.fetch import Fetcher
from lawa.trajectories.ranges import fetch_ranges
from trajectories import replicas
from trajectories.hubs import DATA, PYTHIA, blobs_of, cache_of, pythia_like

PART = 1 << 14
WEIGHTS = replicas.pythia()["step1000"]["pytorch_model.bin"]
TOKENS = bytes(range(256)) * 400
GET = r"GET .*/resolve/.*/pytorch_model\.bin"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(hub_parts, "PART", PART)
    repos = {PYTHIA: dict(replicas.pythia()), f"datasets/{DATA}": {"main": {"a.bin": TOKENS}}}
    with serving(repos, tmp_path / "cache", monkeypatch) as served:
        yield served


def fetched() -> bytes:
    [path] = Fetcher(pythia_like()).fetch([1000]).values()
    return (path / "pytorch_model.bin").read_bytes()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_tried_again(there: Hub, status: int) -> None:
    there.faults += [Fault(GET, times=3, status=status), Fault("GET /api/.*/revision", times=2, status=status)]
    assert fetched() == WEIGHTS
    assert len(there.slept) == 5
    assert all(0.5 <= pause <= 4 for pause in there.slept)


def test_the_hub_says_how_long_to_wait(there: Hub) -> None:
    there.faults += [
        Fault(GET, status=429, headers={"Retry-After": "7"}),
        Fault(GET, status=429, headers={"RateLimit": '"api";r=0;t=55'}),
        Fault(
            GET, status=503, headers={"RateLimit": '"api";r=12;t=55', "Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}
        ),
    ]
    assert fetched() == WEIGHTS
    assert sorted(there.slept)[1:] == [7, 56]
    assert min(there.slept) <= 1


def test_waits_double_up_to_a_minute_and_end(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client.random, "uniform", lambda low, high: high)
    there.faults.append(Fault("GET /api/.*/refs", times=99, status=500))
    with pytest.raises(LawaError, match=r"does not answer as it should \(.*500"):
        fetched()
    assert there.slept == [1, 2, 4, 8, 16, 32, 60, 60]


def test_a_hub_that_asks_for_too_long_is_not_waited_for(there: Hub) -> None:
    there.faults.append(Fault(GET, times=99, status=429, headers={"Retry-After": "500"}))
    with pytest.raises(
        LawaError, match=r"429.*; it asks for 500 s more; what was fetched of .*step1000 is kept: try again"
    ):
        fetched()
    assert there.slept.count(500) <= len(hub_parts.parts([("", 0, len(WEIGHTS))]))


def test_what_does_not_pass_is_not_tried_again(there: Hub) -> None:
    there.faults.append(Fault(GET, times=99, status=404))
    with pytest.raises(LawaError, match=r"refused org/pythia-tiny@step1000 \(.*404"):
        fetched()
    assert there.slept == []


def test_a_missing_shard_is_named(there: Hub) -> None:
    there.faults.append(
        Fault(r"GET .*00002-of-00002\.bin", times=99, status=404, headers={"X-Error-Code": "EntryNotFound"})
    )
    with pytest.raises(LawaError, match=r"org/pythia-tiny@step2000.*Entry Not Found|404"):
        Fetcher(pythia_like()).fetch([2000])
    assert not (cache_of(PYTHIA) / "refs" / "step2000").exists()


def test_transfers_that_break_off_go_on_where_they_did(there: Hub) -> None:
    there.faults.append(Fault(GET, times=6, cut=5000))
    assert fetched() == WEIGHTS
    ends = {int(str(one).rpartition("-")[2]) for name, one in there.ranges if name == "pytorch_model.bin"}
    assert len(ends) == len(hub_parts.parts([("", 0, len(WEIGHTS))]))
    starts = [int(str(one)[6:].partition("-")[0]) for name, one in there.ranges if name == "pytorch_model.bin"]
    assert len(starts) == len(set(starts)) == len(ends) + 6
    assert sum(start % PART for start in starts) > 0


def test_a_slow_hub_is_waited_for_and_a_hanging_one_asked_again(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client.client().constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    there.faults += [Fault(GET, pause=0.05), Fault(GET, pause=30)]
    assert fetched() == WEIGHTS
    assert len(there.slept) == 1


def test_a_wrong_digest_is_fetched_anew_once(there: Hub) -> None:
    there.faults.append(Fault(GET, change=lambda content: bytes(len(content))))
    assert fetched() == WEIGHTS
    parts = len(hub_parts.parts([("", 0, len(WEIGHTS))]))
    assert len([name for name, _ in there.ranges if name == "pytorch_model.bin"]) == 2 * parts


def test_a_digest_that_stays_wrong_never_comes_into_the_cache(there: Hub) -> None:
    there.faults.append(Fault(GET, times=99, change=lambda content: content[:-1] + b"x"))
    with pytest.raises(
        LawaError, match=r"step1000 \(.*\): pytorch_model\.bin came with SHA-256 .*, not .*, twice; the"
    ):
        fetched()
    assert not list((cache_of(PYTHIA) / "blobs").glob("*incomplete*"))
    assert not any((cache_of(PYTHIA)).rglob("pytorch_model.bin"))
    there.faults.clear()
    assert fetched() == WEIGHTS


@pytest.mark.parametrize("change", [lambda content: content + b"more", lambda content: content[:20_000]])
def test_a_wrong_size_is_a_sentence(there: Hub, change: object) -> None:
    there.faults.append(Fault(GET, times=99, change=change))  # type: ignore[arg-type]
    with pytest.raises(LawaError, match=rf"pytorch_model\.bin .*{len(WEIGHTS)}.*, twice"):
        fetched()
    there.faults[:] = [Fault(r"GET .*a\.bin", times=99, change=change)]  # type: ignore[arg-type]
    with pytest.raises(LawaError, match=rf"a\.bin .*, where the hub tells of {len(TOKENS)}"):
        fetch_ranges(DATA, ["a.bin"], 0, len(TOKENS), cache_of(DATA).parent / "tokens")


def test_a_damaged_blob_of_another_size_is_fetched_again(there: Hub) -> None:
    fetched()
    blob = max((cache_of(PYTHIA) / "blobs").iterdir(), key=lambda one: one.stat().st_size)
    blob.write_bytes(b"cut off")
    config = cache_of(PYTHIA) / "snapshots" / there.commit(PYTHIA, "step1000") / "config.json"
    config.resolve().write_bytes(b"{")
    assert fetched() == WEIGHTS
    assert config.read_bytes() == replicas.pythia()["step1000"]["config.json"]


def test_a_full_disk_is_a_sentence_and_a_second_try_goes_on(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    written, real = [], os.pwrite

    def full(descriptor: int, block: object, at: int) -> int:
        if len(written) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(at)
        return real(descriptor, block, at)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(
            LawaError, match=r"blobs has no room \(No space left on device\) .*; what was fetched is kept"
        ):
            fetched()
    assert_goes_on(there)


def assert_goes_on(there: Hub) -> None:
    """A second try asks for no part that is on disk."""
    [journal] = (cache_of(PYTHIA) / "blobs").glob("*.journal")
    done = {int(number) for number in journal.read_text().splitlines()[1:]}
    assert done
    there.ranges.clear()
    assert fetched() == WEIGHTS
    parts = hub_parts.parts([("", 0, len(WEIGHTS))])
    again = {int(str(one)[6:].partition("-")[0]) for name, one in there.ranges if name == "pytorch_model.bin"}
    assert again == {part.start for number, part in enumerate(parts) if number not in done}
    assert not list((cache_of(PYTHIA) / "blobs").glob("*.lawa.*"))


@contextmanager
def no_file_above(nbytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_the_system_does_not_allow_is_a_sentence(there: Hub, tmp_path: Path) -> None:
    with no_file_above(50_000), pytest.raises(LawaError, match=r"has no room \(File too large\) for a file of"):
        fetch_ranges(DATA, ["a.bin"], 0, len(TOKENS), tmp_path / "tokens")
    assert fetch_ranges(DATA, ["a.bin"], 0, len(TOKENS), tmp_path / "tokens").read_bytes() == TOKENS


def files_of(folder: Path, pattern: str) -> list[Path]:
    """Below a folder in which others make and remove some."""
    return [Path(at, name) for at, _, names in os.walk(folder) for name in names if fnmatchcase(name, pattern)]


def killed_in_the_middle(code: str, hub: Hub, tmp_path: Path, journals: str) -> Path:
    """Run `code` until two parts are on disk; SIGKILL it; the journal."""
    begin = f"from lawa.checkpoints import hub_parts; hub_parts.PART = {PART}\n"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    process = subprocess.Popen([sys.executable, "-c", begin + code], env=environment)
    try:
        until = time.monotonic() + 60
        while not (found := [file for file in files_of(tmp_path, journals) if file.read_text().count("\n") >= 3]):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return found[0]


def test_a_kill_in_a_checkpoint_costs_the_parts_on_their_way(there: Hub, tmp_path: Path) -> None:
    there.faults.append(Fault(GET, skip=3, times=99, pause=60))
    code = (
        "from trajectories.hubs import pythia_like\n"
        "from lawa.trajectories.fetch import Fetcher\n"
        "Fetcher(pythia_like(), budget=10**9).fetch([1000])\n"
    )
    killed_in_the_middle(code, there, tmp_path, "*.lawa.incomplete.journal")
    there.faults.clear()
    assert_goes_on(there)
    with Fetcher(pythia_like(), budget=10**9) as fetcher:  # what the killed one had written down is its own
        fetcher.fetch([1000])
        fetcher.evict(1000)
    assert blobs_of(PYTHIA) == {}


def test_a_kill_in_a_stretch_costs_the_parts_on_their_way(there: Hub, tmp_path: Path) -> None:
    there.faults.append(Fault(r"GET .*a\.bin", skip=3, times=99, pause=60))
    into = tmp_path / "tokens"
    code = (
        "from pathlib import Path\n"
        "from lawa.trajectories.ranges import fetch_ranges\n"
        f"fetch_ranges({DATA!r}, ['a.bin'], 7, {len(TOKENS)}, Path({str(into)!r}))\n"
    )
    journal = killed_in_the_middle(code, there, tmp_path, "*.partial.journal")
    done = journal.read_text().count("\n") - 1
    there.faults.clear()
    there.ranges.clear()
    assert fetch_ranges(DATA, ["a.bin"], 7, len(TOKENS), into).read_bytes() == TOKENS[7:]
    assert len(there.ranges) == len(hub_parts.parts([("", 7, len(TOKENS))])) - done
