"""GPT-NeoX layer files, made of transformers' GPTNeoX as GPT-NeoX splits it, come back as that model."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from checkpoints.formats.made import bits, check_holds, neox, read, state_of, value
from lawa.checkpoints.formats import look
from lawa.checkpoints.layouts.neox import place_of
from lawa.errors import LawaError

ROWS = ("word_embeddings.weight", "final_linear.weight", "query_key_value.weight", "query_key_value.bias",
        "dense_h_to_4h.weight", "dense_h_to_4h.bias")  # fmt: skip
COLUMNS = ("attention.dense.weight", "dense_4h_to_h.weight")
SUMMED = ("attention.dense.bias", "dense_4h_to_h.bias")


def layers_of(state, blocks=2):
    """{layer: {GPT-NeoX's name: tensor}} of transformers' state dict."""
    layers = {
        0: {"word_embeddings.weight": state["gpt_neox.embed_in.weight"]},
        blocks + 3: {f"norm.{kind}": state[f"gpt_neox.final_layer_norm.{kind}"] for kind in ("weight", "bias")},
        blocks + 4: {"final_linear.weight": state["embed_out.weight"]},
    }
    for block in range(blocks):
        start = f"gpt_neox.layers.{block}."
        own = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
        layers[block + 2] = {**own, "attention.rotary_emb.inv_freq": torch.rand(2)}
    return layers


def part(name, tensor, rank, ranks):
    """What a model-parallel rank has: heads go to ranks whole, as query_key_value holds one after the other."""
    if name.endswith(ROWS):
        return tensor.chunk(ranks)[rank].clone()
    if name.endswith(COLUMNS):
        return tensor.chunk(ranks, dim=1)[rank].clone()
    if name.endswith(SUMMED):
        return tensor * (rank + 1) / (ranks * (ranks + 1) / 2)
    return tensor


def write(directory, state, ranks, **how):
    """What is written as layer files; and what is to come back."""
    directory.mkdir()
    expected = dict(state)
    for layer, tensors in layers_of(state).items():
        for rank in range(ranks):
            own = {name: part(name, tensor, rank, ranks) for name, tensor in tensors.items()}
            torch.save(own, directory / f"layer_{layer:02}-model_{rank:02}-model_states.pt", **how)
        for name, tensor in tensors.items():
            whole, _ = place_of(layer, name)
            if name.endswith(SUMMED):
                expected[whole] = sum(part(name, tensor, rank, ranks) for rank in range(ranks))
            if name.endswith("inv_freq"):
                expected[whole] = tensor
    torch.save({"module": None}, directory / "mp_rank_00_model_states.pt")
    return expected


@pytest.fixture
def state():
    return state_of(neox().half())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_are_merged_and_names_are_transformers_own(tmp_path, state, ranks):
    expected = write(tmp_path / "global_step10", state, ranks)
    found = read(tmp_path / "global_step10", tmp_path)
    check_holds(found, expected)
    assert (found.format, look(tmp_path / "global_step10").whole) == ("neox", False)
    in_place = all(stored.file.parent == tmp_path / "global_step10" for stored in found.tensors.values())
    assert in_place == (ranks == 1)
    for name, tensor in state.items():  # sums of halves may round; all else is what the model had
        assert torch.equal(bits(expected[name]), bits(tensor)) or name.endswith(SUMMED), name


def test_the_merged_model_computes_what_the_split_one_was(tmp_path):
    """Through transformers: the same logits, so heads and halves are in their places."""
    model = neox().eval()
    write(tmp_path / "layers", state_of(model), 2)
    found = read(tmp_path / "layers", tmp_path)
    (tmp_path / "merged").mkdir()
    model.config.save_pretrained(tmp_path / "merged")
    weights = {name: value(stored) for name, stored in found.tensors.items() if "inv_freq" not in name}
    save_file(weights, tmp_path / "merged/model.safetensors", metadata={"format": "pt"})
    other, told = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(told.values()), told
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(other(tokens).logits, model(tokens).logits)


def test_norms_that_ranks_hold_apart_are_averaged(tmp_path, state):
    write(tmp_path / "layers", state, 2)
    file = tmp_path / "layers/layer_05-model_01-model_states.pt"
    torch.save({name: tensor + 1 for name, tensor in torch.load(file).items()}, file)
    expected = state["gpt_neox.final_layer_norm.weight"]
    found = read(tmp_path / "layers", tmp_path).tensors["gpt_neox.final_layer_norm.weight"]
    assert torch.equal(value(found), (expected + (expected + 1)) / 2)


def test_tied_embeddings_have_no_last_layer(tmp_path, state):
    expected = write(tmp_path / "layers", state, 1)
    (tmp_path / "layers/layer_06-model_00-model_states.pt").unlink()
    del expected["embed_out.weight"]
    check_holds(read(tmp_path / "layers", tmp_path), expected)


@pytest.mark.parametrize("ranks", [1, 2])
def test_files_older_than_torch_1_6(tmp_path, state, ranks):
    expected = write(tmp_path / "layers", state, ranks, _use_new_zipfile_serialization=False)
    check_holds(read(tmp_path / "layers", tmp_path), expected)


@pytest.mark.parametrize(("layer", "rank"), [(0, 0), (2, 0), (3, 1), (5, 1), (3, None), (2, None), (0, None)])
def test_a_missing_file_is_named(tmp_path, state, layer, rank):
    write(tmp_path / "layers", state, 2)
    for gone in (0, 1) if rank is None else (rank,):
        (tmp_path / f"layers/layer_{layer:02}-model_{gone:02}-model_states.pt").unlink()
    with pytest.raises(LawaError, match=rf"lacks layer_{layer:02}-model_{rank or 0:02}-model_states\.pt; fetch"):
        read(tmp_path / "layers", tmp_path)


def test_a_number_that_no_model_has_as_layers_takes_no_time(tmp_path, state):
    write(tmp_path / "layers", state, 1)
    norm = tmp_path / "layers/layer_05-model_00-model_states.pt"
    norm.rename(norm.with_name("layer_9999999999999-model_00-model_states.pt"))
    with pytest.raises(LawaError, match=r"lacks layer_04-model_00-model_states\.pt"):
        read(tmp_path / "layers", tmp_path)


def test_the_last_norm_must_be_there(tmp_path, state):
    write(tmp_path / "layers", state, 1)
    (tmp_path / "layers/layer_05-model_00-model_states.pt").unlink()
    with pytest.raises(LawaError, match=r"lacks the layer file of the last norm"):
        read(tmp_path / "layers", tmp_path)


def test_other_models_and_misfits_are_refused(tmp_path, state):
    write(tmp_path / "layers", state, 2)
    layers = tmp_path / "layers"
    second = layers / "layer_02-model_01-model_states.pt"
    good = torch.load(second)
    torch.save({name: tensor for name, tensor in good.items() if "dense_h" not in name}, second)
    with pytest.raises(LawaError, match=r"layer_02-model_01-model_states.pt lacks 'mlp.dense_h_to_4h.weight', which"):
        read(layers, tmp_path)
    torch.save({name: tensor[:3] if tensor.dim() == 2 else tensor for name, tensor in good.items()}, second)
    with pytest.raises(LawaError, match=r"the ranks' parts of 'attention.dense.weight' do not fit together"):
        read(layers, tmp_path)
    torch.save({**good, "mlp.w1.weight": torch.ones(2)}, layers / "layer_02-model_00-model_states.pt")
    with pytest.raises(LawaError, match=r"layer 2 has 'mlp.w1.weight', which transformers' GPTNeoX does not have"):
        read(layers, tmp_path)
    torch.save({**good, "norm.bias": torch.ones(2)}, layers / "layer_02-model_00-model_states.pt")
    with pytest.raises(LawaError, match=r"layers 2 and 5 both have 'norm.bias'"):
        read(layers, tmp_path)
