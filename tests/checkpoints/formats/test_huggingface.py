"""Hugging Face directories: what from_pretrained would take, in place, whatever the shards."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from checkpoints.formats.made import MODELS, bits, check_holds, llama, neox, read, save_bin, state_of, value
from lawa.checkpoints.formats import look
from lawa.errors import LawaError

INDEX, BIN_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"


@pytest.mark.parametrize("size", [10**9, 2000, 5000])
@pytest.mark.parametrize("kind", MODELS)
def test_safetensors_whatever_the_shards(tmp_path, kind, size):
    MODELS[kind]().save_pretrained(tmp_path / "model", max_shard_size=size)
    assert (tmp_path / "model" / INDEX).is_file() == (size < 10**9)
    expected = {}
    for file in (tmp_path / "model").glob("*.safetensors"):
        expected |= load_file(file)
    found = read(tmp_path / "model", tmp_path)
    check_holds(found, expected)
    assert (found.format, found.directory, found.label) == ("hf", tmp_path / "model", str(tmp_path / "model"))
    assert found.metadata == {"format": "pt"}
    assert not look(tmp_path / "model").whole
    assert not list(tmp_path.glob("scratch*")), "everything has a place of its own"


@pytest.mark.parametrize("size", [10**9, 2000])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_bin_whatever_the_shards_with_ties_under_each_name(tmp_path, kind, size, zipped):
    model = MODELS[kind]()
    state = save_bin(tmp_path / "model", model, size, _use_new_zipfile_serialization=zipped)
    files = list((tmp_path / "model").glob("*.bin"))
    assert (len(files) > 1) == (size == 2000)
    found = read(tmp_path / "model", tmp_path)
    check_holds(found, state)
    tied = kind.startswith("tied")
    assert len(set(found.tensors.values())) == len(state) - tied
    assert found.nbytes == sum(parameter.nbytes for parameter in model.parameters())
    assert look(tmp_path / "model").whole != zipped
    assert bool(list(tmp_path.glob("scratch*"))) != zipped
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert all(torch.equal(bits(tensor), bits(state[name])) for name, tensor in state_of(loaded).items()), (
        "and transformers reads the same"
    )


def test_the_hub_s_old_half_precision_checkpoints_with_their_buffers(tmp_path):
    """Pythia's: fp16, and three buffers a layer that are no weights; they are listed, with their dtypes."""
    model = neox().half()
    state = state_of(model)
    for layer in range(2):
        own = f"gpt_neox.layers.{layer}.attention."
        state[own + "bias"] = torch.tril(torch.ones(1, 1, 16, 16, dtype=torch.uint8))
        state[own + "masked_bias"] = torch.tensor(-1e9).half()
        state[own + "rotary_emb.inv_freq"] = torch.rand(2).half()
    (tmp_path / "model").mkdir()
    torch.save(state, tmp_path / "model/pytorch_model.bin")
    check_holds(read(tmp_path / "model", tmp_path), state)


def test_weights_are_found_in_transformers_order(tmp_path):
    save_bin(tmp_path / "model", llama(), 2000)
    save_bin(tmp_path / "model", neox(seed=3))
    check_holds(read(tmp_path / "model", tmp_path), state_of(neox(seed=3)))
    neox(seed=4).save_pretrained(tmp_path / "model", max_shard_size=2000)
    check_holds(read(tmp_path / "model", tmp_path), state_of(neox(seed=4)))
    save_file({"a": torch.ones(1)}, tmp_path / "model/model.safetensors")
    check_holds(read(tmp_path / "model", tmp_path), {"a": torch.ones(1)})


def test_prefixes_of_wrappers_are_left_away(tmp_path):
    (tmp_path / "model").mkdir()
    state = {"module._orig_mod.a.weight": torch.ones(2), "b._checkpoint_wrapped_module.c": torch.zeros(1)}
    save_file(state, tmp_path / "model/model.safetensors")
    assert set(read(tmp_path / "model", tmp_path).tensors) == {"a.weight", "b.c"}
    save_file({"module.a": torch.ones(2), "a": torch.ones(2)}, tmp_path / "model/model.safetensors")
    with pytest.raises(LawaError, match=r"model: 'a' and 'module\.a' both mean 'a'"):
        read(tmp_path / "model", tmp_path)


@pytest.fixture(params=["safetensors", "bin"])
def sharded(request, tmp_path):
    """A directory of shards and its index."""
    directory = tmp_path / "model"
    if request.param == "bin":
        save_bin(directory, llama(), 2000)
        return directory, directory / BIN_INDEX
    llama().save_pretrained(directory, max_shard_size=2000)
    return directory, directory / INDEX


def change(index, **entries):
    listed = json.loads(index.read_text())
    listed["weight_map"] |= entries
    index.write_text(json.dumps(listed))
    return listed["weight_map"]


def test_a_missing_shard_is_named(sharded, tmp_path):
    directory, index = sharded
    shard = change(index)["lm_head.weight"]
    (directory / shard).unlink()
    with pytest.raises(LawaError, match=rf"model lacks '{shard}', which {index.name} lists; fetch it"):
        read(directory, tmp_path)


def test_the_hub_s_cache_links_to_files_that_lie_elsewhere(sharded, tmp_path):
    directory, index = sharded
    expected = {name: value(stored) for name, stored in read(directory, tmp_path).tensors.items()}
    shard = change(index)["lm_head.weight"]
    (directory / shard).rename(tmp_path / "blob")
    (directory / shard).symlink_to("../blob")
    check_holds(read(directory, tmp_path), expected)


@pytest.mark.parametrize("name", ["../{}", "/etc/{}", "deep/../../{}"])
def test_no_file_outside_is_read(sharded, tmp_path, name):
    directory, index = sharded
    shard = change(index)["lm_head.weight"]
    (directory / shard).rename(tmp_path / shard)
    change(index, **{"lm_head.weight": name.format(shard)})
    with pytest.raises(LawaError, match="which is not in its directory"):
        read(directory, tmp_path)


def test_a_tensor_that_its_file_lacks_is_named(sharded, tmp_path):
    directory, index = sharded
    shard = change(index)["lm_head.weight"]
    change(index, **{"model.extra.weight": shard})
    with pytest.raises(LawaError, match=rf"{shard} lacks 'model.extra.weight', which {index.name} places there"):
        read(directory, tmp_path)
    listed = change(index, **{"model.extra.weight": shard})
    other = next(file for file in listed.values() if file != shard)
    change(index, **{"model.extra.weight": shard, "lm_head.weight": other})
    with pytest.raises(LawaError, match=rf"{other} lacks 'lm_head.weight'"):
        read(directory, tmp_path)


def test_what_the_index_does_not_list_is_there_too_and_never_guessed(tmp_path):
    """from_pretrained takes every tensor of the files; of one in two files the index says which."""
    directory = tmp_path / "model"
    directory.mkdir()
    save_file({"a": torch.ones(2), "both": torch.ones(1)}, directory / "1.safetensors")
    save_file({"b": torch.ones(3), "both": torch.zeros(1)}, directory / "2.safetensors")
    index = directory / INDEX
    listed = {"a": "1.safetensors", "both": "2.safetensors", "b": "2.safetensors"}
    index.write_text(json.dumps({"weight_map": listed}))
    check_holds(read(directory, tmp_path), {"a": torch.ones(2), "both": torch.zeros(1), "b": torch.ones(3)})
    del listed["both"]
    index.write_text(json.dumps({"weight_map": listed}))
    with pytest.raises(LawaError, match="does not list 'both', which several of its files hold"):
        read(directory, tmp_path)
    save_file({"a": torch.ones(2), "more": torch.ones(1)}, directory / "1.safetensors")
    assert set(read(directory, tmp_path).tensors) == {"a", "more", "b", "both"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "\x00", "[" * 100_000],
)
def test_a_damaged_index_is_named(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(LawaError, match=r"index\.json is no index of shards .*; it is damaged"):
        look(tmp_path)


def test_a_file_cut_off_is_named(sharded, tmp_path):
    directory, index = sharded
    shard = directory / change(index)["lm_head.weight"]
    for size in (shard.stat().st_size - 1, 200, 3, 0):
        with shard.open("r+b") as opened:
            opened.truncate(size)
        with pytest.raises(LawaError, match=rf"{shard.name}.*(cut off|damaged)"):
            read(directory, tmp_path)
