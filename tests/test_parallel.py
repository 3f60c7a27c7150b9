"""The same items on a Ray cluster: equal bits, lost workers, sentences. Skipped in part where ray is not installed."""

import os
import signal
import sys
from pathlib import Path

import pytest

from lawa.checkpoints.catalog import Catalog
from lawa.checkpoints.formats.safetensors import header_bytes, read_header
from lawa.errors import LawaError, NonFiniteAverage
from lawa.offline import cluster
from lawa.offline.job import Job
from lawa.offline.plan import Mean, Plan, make_plan
from lawa.offline.policy import Policy, match
from lawa.parallel import Cluster, ClusterError

SHAPES = {"a": (37, 11), "b": (5000,), "c": (1,)}


def planned(folder: Path, monkeypatch: pytest.MonkeyPatch, *, bad: bool = False) -> Plan:
    """Three checkpoints in bf16, cut into items of 512 elements; `bad`: the second has a nan in "b"."""
    import numpy as np

    monkeypatch.setattr("lawa.offline.plan.ITEM", 512)
    random = np.random.default_rng(0)
    catalogs = []
    for number in range(3):
        file = folder / f"in{number}" / "model.safetensors"
        file.parent.mkdir()
        begin, _ = header_bytes([(name, "bfloat16", shape) for name, shape in SHAPES.items()], {})
        arrays = [random.integers(0, 1 << 16, shape, np.uint16) & 0xBFFF for shape in SHAPES.values()]
        if bad and number == 1:
            arrays[1][4321] = 0x7FC0
        file.write_bytes(begin + b"".join(array.tobytes() for array in arrays))
        catalogs.append(Catalog(label=f"in{number}", directory=None, format="hf", tensors=read_header(file).tensors))
    means = [Mean("two", (0, 1), None), Mean("all", (0, 1, 2), (0.5, 0.25, 0.25))]
    return make_plan(catalogs, match(catalogs, Policy()), means)


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def job(plan: Plan, output: Path) -> Job:
    return Job(plan, output, finish=lambda mean, folder: None)


@pytest.fixture(scope="module")
def ray():
    module = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        module.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield module
        module.shutdown()


# ---- without ray


def test_without_ray_the_extra_is_named_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LawaError, match=r"ray is not installed.*latest-weight-averaging\[ray\]"):
        Cluster()


class Nearby:
    """A cluster in this process; the batch that is `lost` never comes back."""

    def __init__(self, lost: int | None = None) -> None:
        self.lost = lost
        self.batches: list[list[int]] = []

    def run(self, work, shared, batches):
        for number, batch in reversed(list(enumerate(batches))):
            if number == self.lost:
                raise ClusterError("a batch lost its worker")
            self.batches.append(batch)
            yield work(shared, batch)


def test_batches_are_every_item_once_and_no_more_than_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = planned(Path(), monkeypatch)
    [*job(plan, Path("local")).run(threads=1)]
    for batches, largest in ((64, 16), (4, 16), (2, 3)):
        monkeypatch.setattr(cluster, "_BATCHES", batches)
        monkeypatch.setattr(cluster, "_LARGEST", largest)
        near = Nearby()
        output = Path(f"over{batches}-{largest}")
        [*job(plan, output).run(threads=1, cluster=near)]
        assert outputs(output) == outputs(Path("local"))
        assert sorted(index for batch in near.batches for index in batch) == list(range(len(plan.items)))
        assert max(map(len, near.batches)) == max(1, min(largest, len(plan.items) // batches))


def test_what_was_done_before_the_cluster_failed_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, monkeypatch)
    [*job(plan, tmp_path / "local").run(threads=1)]
    with pytest.raises(ClusterError):
        [*job(plan, tmp_path / "over").run(threads=1, cluster=Nearby(lost=5))]
    assert not (tmp_path / "over").exists()
    near = Nearby()
    [*job(plan, tmp_path / "over").run(threads=1, cluster=near)]
    assert sorted(index for batch in near.batches for index in batch) == list(range(6))
    assert outputs(tmp_path / "over") == outputs(tmp_path / "local")


def test_bytes_are_on_disk_when_a_batch_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, monkeypatch)
    synced: list[Path] = []
    monkeypatch.setattr(cluster, "_to_disk", synced.append)
    [*job(plan, tmp_path / "no").run(threads=1, cluster=Nearby(), sync=False)]
    assert not synced
    [*job(plan, tmp_path / "yes").run(threads=1, cluster=Nearby(), sync=True)]
    assert {file.parent.name for file in synced} == {"two", "all"}
    assert len(synced) == 2 * len(plan.items)


@pytest.mark.parametrize("gone", ["in1", "."])
def test_a_machine_that_does_not_see_the_files_is_named(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine without the file system: the path is there for the driver alone."""
    plan = planned(tmp_path, monkeypatch)
    folders = [tmp_path / "out" / mean.name for mean in plan.means]
    work = cluster._Work(plan, folders, tmp_path, False, False)
    for folder in folders:
        folder.mkdir(parents=True)
    cluster._check_shared(work)
    (tmp_path / gone / "model.safetensors" if gone != "." else folders[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(LawaError, match=r"does not see .*must share the file system"):
        cluster._check_shared(work)


# ---- with ray


def test_a_cluster_gives_the_bits_of_threads(ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = planned(Path(), monkeypatch)
    told: list[int] = []
    [*job(plan, Path("local")).run(threads=2)]
    [*job(plan, Path("over")).run(threads=1, cluster=Cluster(), progress=told.append)]
    assert outputs(Path("over")) == outputs(Path("local"))
    assert sum(told) == sum(placed.row.numel for placed in plan.tensors)
    assert not [*tmp_path.glob(".over*")]


def test_an_error_of_the_work_is_the_error_that_threads_raise(
    ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, monkeypatch, bad=True)
    said = []
    for where in (None, Cluster()):
        with pytest.raises(NonFiniteAverage) as failed:
            [*job(plan, tmp_path / "out").run(threads=1, cluster=where)]
        said.append(str(failed.value))
    assert said[0] == said[1]
    assert "'b' of in1" in said[0]
    assert not [*tmp_path.glob("*out*")]


def dies_once(folder: Path, number: int) -> int:
    try:
        (folder / str(number)).touch(exist_ok=False)
    except FileExistsError:
        return number
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def dies(folder: Path, number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@pytest.mark.slow
def test_a_lost_worker_is_replaced(ray, tmp_path: Path) -> None:
    assert sorted(Cluster().run(dies_once, tmp_path, [1, 2, 3])) == [1, 2, 3]


@pytest.mark.slow
def test_a_batch_that_loses_every_worker_is_given_up(ray, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"lost its worker 4 times.*goes on where it was"):
        [*Cluster().run(dies, tmp_path, [1])]


def test_no_cluster_at_the_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("it would ask for minutes"))
    for address, environment in (("127.0.0.1:1", ""), (None, "127.0.0.1:1")):
        monkeypatch.setenv("RAY_ADDRESS", environment)
        with pytest.raises(ClusterError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*ray status"):
            [*Cluster(address).run(dies, Path(), [1])]
