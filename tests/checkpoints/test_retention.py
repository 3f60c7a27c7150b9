import os
import shutil

import pytest

from lawa.checkpoints.find import step_directories, step_directory
from lawa.checkpoints.publish import publish, verify, write_manifest
from lawa.checkpoints.retention import keep_latest, thin


@pytest.fixture
def checkpoints(tmp_path):
    for step in (10, 20, 30, 40):
        with publish(step_directory(tmp_path, step)) as partial:
            (partial / "weights").write_text("w")
            (partial / "training").mkdir()
            (partial / "training" / "state").write_text("s")
            write_manifest(partial / "training")
    return tmp_path


def test_the_latest_stay(checkpoints):
    keep_latest(checkpoints, 3)
    keep_latest(checkpoints, 3)
    assert list(step_directories(checkpoints)) == [20, 30, 40]
    keep_latest(checkpoints, 9)
    assert list(step_directories(checkpoints)) == [20, 30, 40]


def test_what_is_needed_stays_however_old(checkpoints):
    keep_latest(checkpoints, 1, needed={10, 35, 40})
    assert list(step_directories(checkpoints)) == [10, 40]
    keep_latest(checkpoints, 1)
    assert list(step_directories(checkpoints)) == [40]


def having(checkpoints):
    return [step for step, path in step_directories(checkpoints).items() if (path / "training" / "state").exists()]


def test_the_latest_folders_stay_and_what_they_lie_in_stays_whole(checkpoints):
    for keep in (9, 4, 3, 3):
        thin(checkpoints, "training", keep=keep)
        assert having(checkpoints) == [10, 20, 30, 40][-keep:]
    thin(checkpoints, "training", keep=1)
    assert having(checkpoints) == [40]
    assert sorted(os.listdir(step_directory(checkpoints, 30))) == ["manifest.json", "weights"]
    for path in step_directories(checkpoints).values():
        verify(path)


def test_only_a_whole_folder_counts_as_kept(checkpoints):
    (step_directory(checkpoints, 40) / "training" / "manifest.json").unlink()  # its writer was killed
    for _ in range(2):
        thin(checkpoints, "training", keep=2)
        assert having(checkpoints) == [20, 30, 40]
    thin(checkpoints, "training", keep=1)
    assert having(checkpoints) == [30, 40]


def test_a_kill_inside_a_removal_leaves_what_the_next_thinning_sweeps(checkpoints):
    remains = step_directory(checkpoints, 20) / ".training.partial"
    (step_directory(checkpoints, 20) / "training").rename(remains)
    (remains / "manifest.json").unlink()
    thin(checkpoints, "training", keep=2)
    assert sorted(os.listdir(step_directory(checkpoints, 20))) == ["manifest.json", "weights"]
    shutil.rmtree(step_directory(checkpoints, 40))  # the two latest of what is there, whatever was there before
    thin(checkpoints, "training", keep=2)
    assert having(checkpoints) == [30]


def test_nothing_to_keep_is_no_error(tmp_path):
    keep_latest(tmp_path / "nowhere", 1)
    thin(tmp_path / "nowhere", "training", keep=1)
    assert os.listdir(tmp_path) == []
