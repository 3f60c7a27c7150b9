"""torch DCP directories of the real torch, by one process and by FSDP2's shards on two."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

from checkpoints.formats.made import check_holds, llama, neox, read
from launching import launch
from lawa.checkpoints import describe
from lawa.checkpoints.formats import dcp as dcp_format
from lawa.checkpoints.formats import look
from lawa.errors import LawaError

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SCRIPT = Path(__file__).with_name("written.py")


def save(state, directory):
    dcp.save(state, checkpoint_id=directory, no_dist=True)


def stepped(model):
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(6)[None], labels=torch.arange(6)[None]).loss.backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("place", [".", "weights", "pytorch_model_fsdp_0"])
@pytest.mark.parametrize("wrap", [
    lambda weights, moments: {"model": weights},  # ours, accelerate's
    lambda weights, moments: {"app": {"model": weights, "optim": moments}, "step": 3},  # torch's tutorial
    lambda weights, moments: {"state_dict": weights, "optimizer_0": moments},  # Lightning
    lambda weights, moments: {**weights, "optimizer": moments, "train_state": {"step": torch.tensor(3)}},  # torchtitan
], ids=["model", "app.model", "state_dict", "bare"])  # fmt: skip
def test_the_model_s_tensors_are_found_whatever_is_around_them(tmp_path, wrap, place):
    """Llama's own names begin with "model.", so a prefix says nothing about what was around them."""
    model = llama(tied=True)
    moments = stepped(model)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    assert all(name.startswith("model.") for name in weights)
    save(wrap(weights, moments), tmp_path / "checkpoint" / place)
    found = read(tmp_path / "checkpoint", tmp_path)
    check_holds(found, weights)
    assert (found.format, look(tmp_path / "checkpoint").whole) == ("dcp", False)
    expected = {name: (at.dtype, at.shape) for name, at in found.tensors.items()}
    foreseen = dcp_format.foreseen(tmp_path / "checkpoint")
    assert {name: (at.dtype, at.shape) for name, at in foreseen.tensors.items()} == expected
    told = describe.checkpoint(tmp_path / "checkpoint")
    assert told["parameters"] == sum(tensor.numel() for tensor in weights.values()), "and no moments"
    assert {one["name"]: (one["dtype"], tuple(one["shape"])) for one in told["listing"]} == expected


def test_tensors_are_listed_under_the_names_that_options_take(tmp_path):
    """Those of transformers' files, which GPT-NeoX has not in memory; the configuration beside them tells that."""
    model = neox()
    model.config.save_pretrained(tmp_path / "checkpoint")
    save({"model": model.state_dict()}, tmp_path / "checkpoint" / "weights")
    listed = {one["name"] for one in describe.checkpoint(tmp_path / "checkpoint")["listing"]}
    assert "lm_head.weight" in model.state_dict()
    assert listed == {"embed_out.weight", *model.state_dict()} - {"lm_head.weight"}


def test_dtypes_scalars_and_nothing(tmp_path):
    state = {"a": torch.randn(3).bfloat16(), "b": torch.tensor(2), "c": torch.tensor([True]), "d": torch.randn(2, 0)}
    save({"model": state}, tmp_path / "checkpoint")
    check_holds(read(tmp_path / "checkpoint", tmp_path), state)


@pytest.mark.slow
def test_shards_of_two_fsdp2_ranks_are_put_together(tmp_path):
    launch(SCRIPT, 2, str(tmp_path), "fsdp2")
    assert len(list((tmp_path / "checkpoint").glob("*.distcp"))) == 2
    check_holds(read(tmp_path / "checkpoint", tmp_path), load_file(tmp_path / "expected.safetensors"))


def test_a_checkpoint_without_mappings_as_megatron_writes_it(tmp_path):
    state = {"decoder.weight": torch.randn(2, 3), "optimizer.state.exp_avg.decoder.weight": torch.randn(2, 3)}
    planner = dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    dcp.save(state, checkpoint_id=tmp_path / "checkpoint", planner=planner, no_dist=True)
    change(tmp_path / "checkpoint", lambda metadata: setattr(metadata, "mcore_data", {"decoder.weight": {}}))
    assert not FileSystemReader(tmp_path / "checkpoint").read_metadata().planner_data
    check_holds(read(tmp_path / "checkpoint", tmp_path), {"decoder.weight": state["decoder.weight"]})


def test_which_tensors_are_meant_is_not_guessed(tmp_path):
    save({"model": {"a": torch.ones(1)}, "state": {"model": {"a": torch.ones(1)}}}, tmp_path / "two")
    with pytest.raises(LawaError, match=r"which tensors are the model's\? .* it has model, state\.model$"):
        read(tmp_path / "two", tmp_path)
    save({"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}}, tmp_path / "other")
    with pytest.raises(LawaError, match=r"it has critic, generator$"):
        read(tmp_path / "other", tmp_path)
    save({"ema": {"a": torch.ones(1)}}, tmp_path / "one")
    check_holds(read(tmp_path / "one", tmp_path), {"a": torch.ones(1)})
    save({"optimizer": {"state": {"a": torch.ones(1)}}}, tmp_path / "none")
    with pytest.raises(LawaError, match=r"it has no tensors$"):
        read(tmp_path / "none", tmp_path)


def change(directory, how):
    file = directory / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    how(metadata)
    file.write_bytes(pickle.dumps(metadata))


@pytest.fixture
def one(tmp_path):
    save({"model": {"a": torch.ones(3), "b": torch.ones(2)}, "note": "kept as a pickle"}, tmp_path / "one")
    return tmp_path / "one"


def test_a_missing_file_is_named(one, tmp_path):
    (one / "__0_0.distcp").unlink()
    with pytest.raises(LawaError, match=r"one lacks '__0_0\.distcp', which its metadata lists"):
        read(one, tmp_path)


def test_a_file_cut_off_or_damaged_is_named(one, tmp_path):
    file = one / "__0_0.distcp"
    kept = file.read_bytes()
    file.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(LawaError, match=r"__0_0\.distcp ends before the last of what"):
        read(one, tmp_path)
    file.write_bytes(bytes(len(kept)))
    with pytest.raises(LawaError, match=r"one: torch DCP cannot read 'model\.a' \(.*\); is it complete\?"):
        read(one, tmp_path)


@pytest.mark.parametrize("name", ["../__0_0.distcp", "/etc/passwd"])
def test_no_file_outside_is_read(one, tmp_path, name):
    shutil.copy(one / "__0_0.distcp", tmp_path / "__0_0.distcp")
    change(one, lambda metadata: [setattr(part, "relative_path", name) for part in metadata.storage_data.values()])
    with pytest.raises(LawaError, match="which is not in its directory"):
        read(one, tmp_path)


def test_no_object_beside_the_tensors_is_unpickled(one, tmp_path, monkeypatch):
    load = torch.load

    def careful(*arguments, **how):
        assert how["weights_only"]
        return load(*arguments, **how)

    monkeypatch.setattr(torch, "load", careful)
    check_holds(read(one, tmp_path), {"a": torch.ones(3), "b": torch.ones(2)})
