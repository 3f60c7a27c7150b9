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


def test_only_the_latest_whole_folder_stays(checkpoints):
    (step_directory(checkpoints, 40) / "training" / "manifest.json").unlink()  # its writer was killed
    thin(checkpoints, "training")
    thin(checkpoints, "training")
    having = [step for step, path in step_directories(checkpoints).items() if (path / "training" / "state").exists()]
    assert having == [30, 40]
    (step_directory(checkpoints, 20) / ".training.partial").mkdir()  # a kill while it was being removed
    thin(checkpoints, "training")
    assert sorted(os.listdir(step_directory(checkpoints, 20))) == ["manifest.json", "weights"]
    shutil.rmtree(step_directory(checkpoints, 40))
    for path in step_directories(checkpoints).values():
        verify(path)
