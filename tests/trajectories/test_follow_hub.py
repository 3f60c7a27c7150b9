"""Along a Pythia-shaped repo on a hub: fetched once, evicted, within its budget, gone on with; on several workers."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hub_server import Fault, serving
from lawa.checkpoints import hub
from lawa.checkpoints.hub_cache import is_weights
from lawa.errors import LawaError, UsageError
from lawa.records import read
from lawa.trajectories import follow, follow_walk
from lawa.trajectories.fetch import Fetcher
from lawa.trajectories.follow import Following, Request
from lawa.trajectories.follow_text import Evaluation
from lawa.trajectories.registry import find
from trajectories import following
from trajectories.following import REPO, STEPS

SIZE = 89_000  # bytes of a checkpoint, more or less


@pytest.fixture
def served(tmp_path, monkeypatch):
    with serving({REPO: following.repo()}, tmp_path / "cache", monkeypatch) as hub_:
        following.described(tmp_path / "tiny.yaml")
        following.text(tmp_path / "text.txt")
        yield hub_


def request(place, **changes):
    evaluation = Evaluation(text=str(place / "text.txt"), context=64, batch=4)
    values = {"trajectory": [str(place / "tiny.yaml")], "steps": "1000:6000:1000", "windows": (3,), **changes}
    return Request(**{"evaluation": evaluation, **values})


def losses(output):
    lines = [line for line in read(output / "metrics.jsonl") if line["kind"] == "evaluation"]
    return {(line["update"], name): loss for line in lines for name, loss in line["losses"].items()}


def on_disk(place):
    """Bytes of blobs in the cache."""
    return sum(file.stat().st_size for file in (place / "cache").glob("models--*/blobs/*"))


def bins(served):
    return served.fetched().count("pytorch_model.bin")


@pytest.fixture
def straight(tmp_path_factory):
    """The same weights, followed from a folder."""
    place = tmp_path_factory.mktemp("straight")
    evaluation = Evaluation(text=str(following.text(place / "text.txt")), context=64, batch=4)
    run = following.folder(place / "run")
    Following(Request(trajectory=[str(run)], steps=None, windows=(3,), evaluation=evaluation), place / "out").run()
    return losses(place / "out")


def test_fetched_once_evicted_and_the_same_numbers_as_from_a_folder(served, straight, tmp_path):
    made = Following(request(tmp_path), tmp_path / "out")
    assert bins(served) == 0  # a plan fetches nothing
    made.run()
    assert losses(tmp_path / "out") == straight
    assert bins(served) == 6
    assert on_disk(tmp_path) == 0
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["tokens_per_update"] == 256
    assert run["model"]["architecture"] == "gpt_neox"
    contents = json.loads((tmp_path / "out" / "follow.json").read_text())["contents"]
    assert contents == {str(step): served.commit(REPO, f"step{step}") for step in STEPS}
    assert {line["tokens"] for line in read(tmp_path / "out" / "metrics.jsonl")} == {256 * step for step in STEPS}


@pytest.mark.parametrize(("host_bytes", "ahead"), [(10**9, 2), (10**9, 1), (10**9, 0), (0, 0), (0, 2)])
def test_never_more_on_disk_than_told(served, straight, tmp_path, monkeypatch, host_bytes, ahead):
    whole = Following(request(tmp_path, host_bytes=host_bytes), tmp_path / "plan")
    budget = whole.plans[0].disk - (2 - ahead) * max(whole.source.nbytes.values())
    whole.close()
    made = Following(request(tmp_path, host_bytes=host_bytes, disk_bytes=budget), tmp_path / "out")
    assert made.plans[0].ahead == ahead
    most, fetch_all = [0], hub.fetch_all

    def watched(*given, **more):
        found = fetch_all(*given, **more)
        most[0] = max(most[0], on_disk(tmp_path))
        return found

    monkeypatch.setattr(hub, "fetch_all", watched)
    made.run()
    assert SIZE < most[0] <= made.plans[0].disk <= budget
    assert losses(tmp_path / "out") == straight
    assert on_disk(tmp_path) == 0
    assert bins(served) == 6


def test_a_budget_that_can_never_do_is_refused_with_the_one_that_does(served, tmp_path):
    with pytest.raises(
        LawaError, match=r"--disk-budget 1000 .* too small: (\d+) bytes .* give --disk-budget \1"
    ) as told:
        Following(request(tmp_path, disk_bytes=1000, host_bytes=0), tmp_path / "out")
    smallest = int(str(told.value).partition("give --disk-budget ")[2].split(",")[0])
    assert bins(served) == 0
    Following(request(tmp_path, disk_bytes=smallest, host_bytes=0), tmp_path / "out").run()
    assert bins(served) == 6


def test_what_fails_behind_is_told_and_the_next_fetches_what_is_left(served, straight, tmp_path):
    served.faults.append(
        Fault(f"GET /{REPO}/resolve/{served.commit(REPO, 'step5000')}/pytorch_model.bin", 999, status=404)
    )
    with pytest.raises(LawaError, match=REPO):
        Following(request(tmp_path), tmp_path / "out").run()
    assert len(losses(tmp_path / "out")) == 6  # up to step 4000
    served.faults.clear()
    served.requests.clear()
    Following(request(tmp_path), tmp_path / "out").run()
    assert losses(tmp_path / "out") == straight
    assert bins(served) <= 4  # 3000 and 4000 again, 5000 and 6000
    assert on_disk(tmp_path) == 0


def test_what_a_killed_one_has_fetched_and_nobody_needs_is_removed(served, tmp_path):
    Following(request(tmp_path), tmp_path / "out").run()
    with Fetcher(find(tmp_path / "tiny.yaml"), budget=10**9) as fetcher:
        fetcher.fetch([6000])
    assert on_disk(tmp_path) > SIZE
    Following(request(tmp_path), tmp_path / "out").run()
    assert on_disk(tmp_path) == 0


def test_a_revision_that_moved_is_another_request(served, tmp_path):
    Following(request(tmp_path), tmp_path / "out").run()
    served.move(REPO, "step2000", {**following.repo([7000])["step7000"]})
    with pytest.raises(UsageError, match="another follow: its contents 2000 is"):
        Following(request(tmp_path), tmp_path / "out").run()


def test_steps_that_are_not_there_duplicates_and_known_bad_ones_are_refused_by_name(served, tmp_path):
    with pytest.raises(LawaError, match="tiny has no checkpoint of step 7000"):
        Following(request(tmp_path, steps="1000:7000:1000"), tmp_path / "out")
    with (tmp_path / "tiny.yaml").open("a") as file:
        file.write("bad: {3000: an example}\n")
    with pytest.raises(LawaError, match=r"step3000 is known to be wrong \(an example\)"):
        Following(request(tmp_path), tmp_path / "out")
    served.move(REPO, "step2000", served.repos[REPO]["step1000"])
    with pytest.raises(LawaError, match=r"step1000.*step2000|step2000.*step1000"):
        Following(request(tmp_path, allow_bad=True), tmp_path / "out")
    Following(request(tmp_path, allow_bad=True, allow_duplicates=True), tmp_path / "out").run()
    assert on_disk(tmp_path) == 0


def test_offline_from_the_cache(served, straight, tmp_path):
    paths = hub.fetch_all(hub.pin_all([hub.Repo(REPO, f"step{step}") for step in STEPS]))
    served.refused[REPO] = (500, "Down")
    Following(request(tmp_path, offline=True), tmp_path / "out").run()
    assert losses(tmp_path / "out") == straight
    assert all((path / "pytorch_model.bin").is_file() for path in paths)  # what was there before stays


def test_two_trajectories_are_refused(tmp_path):
    following.folder(tmp_path / "run", [1000, 2000])
    with pytest.raises(UsageError, match="pythia-70m is no checkpoint on this machine"):
        follow.open_source(request(tmp_path, trajectory=[str(tmp_path / "run"), "pythia-70m"]), None, None)  # type: ignore


# ---- several workers


class Nearby:
    """A cluster in this process, whose batches go through pickle; the batch that is `lost` breaks off in its middle."""

    lost: int | None = None

    def __init__(self, address=None):
        self.address = address

    def run(self, work, shared, batches):
        for batch in reversed(batches):
            given = pickle.loads(pickle.dumps((shared, batch)))
            with pytest.MonkeyPatch.context() as patched:
                if batch[0] == self.lost:
                    patched.setattr(follow_walk, "average", breaks(follow_walk.average, after=1))
                yield work(*given)


def breaks(average, after):
    times = []

    def breaking(*given, **more):
        times.append(1)
        if len(times) > after:
            raise LawaError("the worker is lost")
        return average(*given, **more)

    return breaking


def test_groups_on_workers_give_the_same_records(served, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "Cluster", Nearby)
    made = Following(request(tmp_path, workers=2), tmp_path / "out")
    assert [[stage.step for stage in plan.stages] for plan in made.plans] == [STEPS[:3], STEPS[1:]]
    told = []
    made.run(told.append)
    assert losses(tmp_path / "out") == straight
    assert len(told) == 10
    assert bins(served) == 8  # the overlap of two is fetched again
    assert on_disk(tmp_path) == 0
    assert not (tmp_path / "out" / "groups").exists()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"]["architecture"] == "gpt_neox"


def test_what_a_lost_worker_has_recorded_stays(served, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "Cluster", Nearby)
    monkeypatch.setattr(Nearby, "lost", 1)
    with pytest.raises(LawaError, match="the worker is lost"):
        Following(request(tmp_path, workers=2), tmp_path / "out").run()
    assert set(losses(tmp_path / "out")) == {(4000, "plain"), (4000, "window3"), (5000, "plain")}
    monkeypatch.setattr(Nearby, "lost", None)
    Following(request(tmp_path, workers=2), tmp_path / "out").run()
    assert losses(tmp_path / "out") == straight
    assert on_disk(tmp_path) == 0


def test_what_another_worker_has_evicted_is_fetched_again(served, straight, tmp_path, monkeypatch):
    made = Following(request(tmp_path), tmp_path / "out")
    fetch, gone = made.source.fetch, []

    def fetched(self, step):
        path = fetch(step)
        if step == 3000 and not gone:
            gone.append(step)
            for file in path.iterdir():
                if is_weights(file.name):  # other snapshots share the blobs of the rest, so nobody removes those
                    file.resolve().unlink()
                file.unlink()
        return path

    monkeypatch.setattr(type(made.source), "fetch", fetched)
    made.run()
    assert gone == [3000]
    assert losses(tmp_path / "out") == straight


@pytest.mark.slow
def test_on_a_ray_cluster(straight, tmp_path):
    ray = pytest.importorskip("ray")
    following.folder(tmp_path / "run")
    following.text(tmp_path / "text.txt")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        try:
            wanted = request(tmp_path, trajectory=[str(tmp_path / "run")], workers=2)
            Following(wanted, tmp_path / "out").run()
        finally:
            ray.shutdown()
    assert losses(tmp_path / "out") == straight


@pytest.mark.slow
def test_killed_while_it_fetches_it_goes_on_and_leaves_nothing_behind(served, straight, tmp_path):
    command = [
        sys.executable, str(Path(following.__file__)), str(tmp_path / "tiny.yaml"), "--steps", "1000:6000:1000",
        "--window", "3", "--text", str(tmp_path / "text.txt"), "--context", "64", "--output", str(tmp_path / "out"),
    ]  # fmt: skip
    environment = {
        **os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_ENDPOINT": served.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    recorded = losses(tmp_path / "out")
    assert recorded
    served.requests.clear()
    Following(request(tmp_path), tmp_path / "out").run()
    assert losses(tmp_path / "out") == straight
    assert bins(served) <= 6
    assert on_disk(tmp_path) == 0
