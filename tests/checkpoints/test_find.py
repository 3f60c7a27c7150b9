from lawa.checkpoints.find import step_directories, step_directory
from lawa.checkpoints.publish import publish


def test_only_published_checkpoints_are_found_in_the_order_of_updates(tmp_path):
    for step in (1000, 20, 300):
        with publish(step_directory(tmp_path, step)) as partial:
            (partial / "weights").write_text("w")
    step_directory(tmp_path, 4000).mkdir()  # no manifest: never finished
    (tmp_path / "notes").mkdir()
    assert list(step_directories(tmp_path)) == [20, 300, 1000]
    assert step_directories(tmp_path)[20].name == "step00000020"
    assert step_directories(tmp_path / "nowhere") == {}
