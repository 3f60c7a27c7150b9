"""DeepSpeed's own checkpoints of two ranks: the fp32 masters, and no pickle that runs anything."""

import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.formats.made import check_holds, read
from launching import launch
from lawa.checkpoints.formats import look
from lawa.errors import LawaError

os.environ.setdefault("DS_ACCELERATOR", "cpu")
SCRIPT = Path(__file__).with_name("written.py")


@pytest.fixture(scope="module", autouse=True)
def imported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, which DeepSpeed's imports meet
        import deepspeed.utils.zero_to_fp32  # noqa: F401


@pytest.fixture(
    scope="module", params=[pytest.param("zero0", marks=pytest.mark.exhaustive), "zero1", "zero2", "zero3", "half0"]
)
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    launch(SCRIPT, 2, str(folder), request.param, DS_ACCELERATOR="cpu")
    return folder, int(request.param[-1])


@pytest.mark.slow
@pytest.mark.parametrize("place", ["checkpoint", "checkpoint/global_step2"])
def test_the_masters_come_back(written, tmp_path, place, capsys):
    folder, stage = written
    expected = load_file(folder / "expected.safetensors")
    found = read(folder / place, tmp_path)
    check_holds(found, expected)
    assert (found.format, look(folder / place).whole) == ("deepspeed", stage > 0)
    assert found.tensors["gpt.lm_head.weight"] == found.tensors["gpt.transformer.wte.weight"]
    assert capsys.readouterr().out == ""
    if "half" in folder.name or stage == 1:
        assert found.tensors["frozen"].dtype == "bfloat16", "which has no master"
    if stage:
        weights = [tensor for name, tensor in expected.items() if "ln" in name]
        assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in weights), "not the bf16 weights"


class Hostile:
    def __init__(self, done):
        self.done = done

    def __reduce__(self):
        return os.mkdir, (str(self.done),)


@pytest.mark.slow
def test_what_is_missing_or_hostile_is_refused(written, tmp_path):
    folder, stage = written
    if not stage:
        pytest.skip("one file")
    own = tmp_path / "own"
    shutil.copytree(folder / "checkpoint/global_step2", own)
    second = next(own.glob("*zero_pp_rank_1_mp_rank_00_optim_states.pt"))
    kept = second.read_bytes()
    second.unlink()
    with pytest.raises(LawaError, match=r"own: DeepSpeed's zero_to_fp32 cannot read it \(Expected 2 of"):
        read(own, tmp_path)
    second.write_bytes(kept[:-1000])
    with pytest.raises(LawaError, match=r"own: DeepSpeed's zero_to_fp32 cannot read it"):
        read(own, tmp_path)
    second.write_bytes(kept)
    model = next(own.glob("*_model_states.pt"))
    good = torch.load(model, weights_only=False)
    torch.save({**good, "more": Hostile(tmp_path / "done")}, model)
    with pytest.raises(LawaError, match=r"own holds \S*mkdir, which only a pickle that may run anything"):
        read(own, tmp_path)
    assert not (tmp_path / "done").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_is_not_read_is_said_by_looking(tmp_path, monkeypatch):
    (tmp_path / "latest").write_text("global_step2\n")
    with pytest.raises(LawaError, match="lacks 'global_step2', which its file latest names"):
        look(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(LawaError, match=r"lists '\.\./elsewhere', which is not in its directory"):
        look(tmp_path)
    (tmp_path / "latest").write_text("global_step2")
    inner = tmp_path / "global_step2"
    inner.mkdir()
    (inner / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    assert look(tmp_path).name == "deepspeed"
    (inner / "zero_pp_rank_0_mp_rank_01_optim_states.pt").touch()
    with pytest.raises(LawaError, match="is of several model-parallel ranks"):
        look(tmp_path)


def test_a_missing_deepspeed_is_named_with_what_installs_it(tmp_path, monkeypatch):
    import sys

    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    for name in [name for name in sys.modules if name.split(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(LawaError, match=r"deepspeed.* is not installed; .*pip install .*\[deepspeed\]"):
        read(tmp_path, tmp_path)
