"""Which tensors are averaged: names, ties, frozen ones, buffers, dtypes, devices, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

import lawa
import twins
from averaging import toys
from lawa.averaging.layout import Layout, named, read, write
from lawa.averaging.matching import canonical, canonical_names, check_same
from lawa.averaging.parameters import ModelTensors
from lawa.errors import LawaError


def captured(model: nn.Module, **settings: Any) -> dict[str, torch.Tensor]:
    """{name: tensor} of one snapshot."""
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=1, **settings)
    averager.update()
    return averager.state_dict()["snapshots"]["00000001"]


# ---- names


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("weight", "weight"),
        ("module.weight", "weight"),
        ("module.module.weight", "weight"),
        ("_orig_mod.weight", "weight"),
        ("module._orig_mod.gpt_neox.embed_in.weight", "gpt_neox.embed_in.weight"),
        ("_orig_mod.module.h.0.weight", "h.0.weight"),
        ("h.0._checkpoint_wrapped_module.weight", "h.0.weight"),
        ("h.0._orig_mod._checkpoint_wrapped_module.mlp.weight", "h.0.mlp.weight"),
        ("layers.module.weight", "layers.module.weight"),
        ("my_module.weight", "my_module.weight"),
        ("modules.weight", "modules.weight"),
        ("h._orig_model.weight", "h._orig_model.weight"),
        ("module", "module"),
    ],
)
def test_prefixes_of_wrappers_are_stripped_and_nothing_else(given: str, own: str) -> None:
    assert canonical(given) == own
    assert canonical(own) == own


def test_two_names_that_become_one_are_an_error() -> None:
    with pytest.raises(LawaError, match=r"a\.pt: 'w' and 'module\.w' both mean 'w'"):
        canonical_names(["w", "module.w"], where="a.pt")
    model = nn.Module()
    model.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    model.add_module("module", nn.Linear(1, 1, bias=False))
    with pytest.raises(LawaError, match=r"Module: 'weight' and 'module\.weight' both mean 'weight'"):
        ModelTensors(model)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"b": torch.zeros(2)}, "step 7: tensor 'a' is missing"),
        ({"a": torch.zeros(3), "b": torch.zeros(2)}, r"step 7: tensor 'a' has shape \(3,\) where the model has \(2,\)"),
        ({"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1)}, "step 7: tensor 'c' is not in the model"),
    ],
    ids=["missing", "reshaped", "extra"],
)
def test_what_does_not_match_is_named(given: dict[str, torch.Tensor], sentence: str) -> None:
    with pytest.raises(LawaError, match=sentence):
        check_same({"a": torch.zeros(2), "b": torch.zeros(2)}, given, where="step 7")


class Wrapper(nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPED = {
    "plain": lambda model: model,
    "DDP's module.": Wrapper,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "DDP of torch.compile": lambda model: Wrapper(torch.compile(model, backend="eager")),
    "torch.compile of DDP": lambda model: torch.compile(Wrapper(model), backend="eager"),
    "activation checkpointing around it": checkpoint_wrapper,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_neither_freeze_nor_lose_an_average(wrap: Any) -> None:
    """A wrapper's prefix must not keep a name from matching: there the average stays at its first value."""
    model = toys.Tied()
    wrapped = wrap(model)
    averager = lawa.WeightAverager(wrapped, mode="evaluate", every=1, window=3)
    copies = []
    for t in range(1, 4):
        toys.wander(model, t)
        copies.append(toys.weights(model))
        averager.update()
    assert set(averager.state_dict()["snapshots"]["00000003"]) == {"embed.weight", "inner.weight", "inner.bias"}
    with averager.averaged() as seen:
        assert seen is wrapped
        assert toys.same_weights(toys.weights(model), toys.mean_of(copies, model))
    assert toys.same_weights(toys.weights(model), copies[-1])


def test_activation_checkpointing_inside_a_model() -> None:
    model = nn.Sequential(checkpoint_wrapper(nn.Linear(2, 2)), nn.Linear(2, 2))
    assert set(captured(model)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_compiled_models_run_with_the_average_and_with_their_own_again() -> None:
    model = toys.linear((1.0, 1.0, 1.0))
    compiled = torch.compile(model, backend="eager")
    ones = torch.ones(1, 3)
    averager = lawa.WeightAverager(compiled, mode="evaluate", every=1, window=2)
    averager.update()
    toys.fill(model, 3.0)
    averager.update()
    assert compiled(ones).item() == 9
    with averager.averaged():
        assert compiled(ones).item() == 6
    assert compiled(ones).item() == 9


def test_a_name_without_a_dot_and_a_parameter_of_the_root() -> None:
    model = nn.Module()
    model.register_parameter("w", nn.Parameter(torch.ones(2)))
    assert torch.equal(captured(model)["w"], torch.ones(2))


# ---- ties


def ema_after_two(model: nn.Module, parameter: nn.Parameter) -> float:
    """EMA 0.5 of 1, then 3, whose exact value is 2; 2.5 where it is updated twice."""
    averager = lawa.WeightAverager(model, mode="evaluate", averages={"ema": lawa.EMA(0.5)})
    with torch.no_grad():
        parameter.fill_(1.0)
        averager.update()
        parameter.fill_(3.0)
        averager.update()
    with averager.averaged():
        return parameter.flatten()[0].item()


def test_tied_weights_are_read_once() -> None:
    """timm's ModelEmaV3, open_lm and the epfl schedules update tied weights twice; OLMo-core's merge aliases them."""
    model = toys.Tied()
    assert ema_after_two(model, model.embed.weight) == 2.0
    assert model.head.weight is model.embed.weight, "still tied"
    assert set(captured(model)) == {"embed.weight", "inner.weight", "inner.bias"}


class OneStorage(nn.Module):
    """Two Parameter objects over one memory."""

    def __init__(self, *, first_frozen: bool = False) -> None:
        super().__init__()
        values = torch.zeros(4, 3)
        self.head = nn.Parameter(values, requires_grad=not first_frozen)
        self.embed = nn.Parameter(values)
        self.free = nn.Parameter(torch.zeros(1))


def test_two_parameters_on_one_storage_are_one_entry() -> None:
    model = OneStorage()
    tensors = ModelTensors(model)
    assert [entry.name for entry in tensors.trained] == ["head", "free"]
    assert tensors.tied == {"embed": "head"}
    assert ema_after_two(model, model.embed) == 2.0
    assert model.head.data_ptr() == model.embed.data_ptr()


def test_a_frozen_name_of_a_trained_storage_does_not_freeze_its_average() -> None:
    model = OneStorage(first_frozen=True)
    tensors = ModelTensors(model)
    assert {entry.name for entry in tensors.trained} == {"embed", "free"}
    assert tensors.tied == {"head": "embed"}
    assert not tensors.frozen
    assert ema_after_two(model, model.embed) == 2.0


def test_a_replacement_keeps_ties() -> None:
    model = toys.Tied()
    averager = lawa.WeightAverager(model, mode="replace", every=1, window=2)
    toys.wander(model, 1)
    averager.update()
    toys.wander(model, 2)
    assert averager.update()
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, model.embed.weight)


def test_overlapping_but_different_views_are_entries_of_their_own() -> None:
    """A weight and its transpose over one memory have different elements at the same place."""
    model = nn.Module()
    values = torch.arange(4.0).view(2, 2)
    model.register_parameter("w", nn.Parameter(values))
    model.register_parameter("wt", nn.Parameter(values.t()))
    snapshot = captured(model)
    assert torch.equal(snapshot["w"], values)
    assert torch.equal(snapshot["wt"], values.t())


# ---- frozen, buffers


def test_frozen_parameters_are_referenced_and_never_copied() -> None:
    model = toys.Tied()
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=2)
    averager.update()
    averager.update()
    assert "scale" not in averager.state_dict()["snapshots"]["00000001"]
    with torch.no_grad():
        model.scale.fill_(7.0)
    with averager.averaged():
        assert model.scale[0].item() == 7.0


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(LawaError, match="Linear has no parameter that requires gradients"):
        lawa.WeightAverager(model, mode="evaluate", every=1)
    with pytest.raises(LawaError, match="ReLU has no parameter"):
        lawa.WeightAverager(nn.ReLU(), mode="evaluate", every=1)


def test_freezing_or_unfreezing_afterwards_is_refused_by_name() -> None:
    model = toys.Tied()
    averager = lawa.WeightAverager(model, mode="evaluate", every=2, window=1)
    model.inner.weight.requires_grad_(False)
    averager.update()  # nothing is due
    with pytest.raises(LawaError, match=r"'inner\.weight' was frozen after the averager was made"):
        averager.update()
    model.inner.weight.requires_grad_(True)
    model.scale.requires_grad_(True)
    with pytest.raises(LawaError, match="'scale' was unfrozen after the averager was made"):
        averager.update()


def test_evaluating_a_model_whose_gradients_are_off_is_fine() -> None:
    model = toys.linear()
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=1)
    averager.update()
    model.requires_grad_(False)
    with averager.averaged():
        assert model.weight[0, 0].item() == 1.0


@pytest.mark.parametrize("where", ["capture", "averaged", "replace_if_due"])
def test_an_exchanged_parameter_is_an_error_and_not_an_average_that_never_moves(where: str) -> None:
    model = toys.linear()
    averager = lawa.WeightAverager(model, mode="replace", every=1, window=1)
    averager.capture()
    if where == "capture":
        averager.replace_if_due()
    model.load_state_dict({"weight": torch.ones(1, 3)}, assign=True)
    call = averager.averaged().__enter__ if where == "averaged" else getattr(averager, where)
    with pytest.raises(LawaError, match=r"'weight' was exchanged for another one .*assign=True"):
        call()
    assert torch.equal(model.weight, torch.ones(1, 3))


def test_an_untied_weight_is_an_error() -> None:
    model = toys.Tied()
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=1)
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with pytest.raises(LawaError, match=r"'head\.weight' was exchanged"):
        averager.update()


def batch_norm() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([True, False]))
    model.register_buffer("short", torch.zeros(3, dtype=torch.bfloat16))
    model.register_buffer("nothing", None)
    model.register_buffer("loose", torch.zeros(1), persistent=False)
    return model


def set_buffers(model: nn.Module, t: int) -> None:
    with torch.no_grad():
        model[1].running_mean.fill_(float(t))
        model[1].num_batches_tracked.fill_(t)
        model.mask.fill_(t % 2 == 1)
        model.short.fill_(t)
        model.loose = torch.full((1,), float(t))  # by assignment, as modules may


@pytest.mark.parametrize(("buffers", "mean"), [("latest", 4.0), ("average", 2.5)])
def test_buffers(buffers: str, mean: float) -> None:
    """torch's AveragedModel(use_buffers=True) and Kaddour's lawa.py crash on bool and integer buffers."""
    model = batch_norm()
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=4, buffers=buffers)
    for t in range(1, 5):
        set_buffers(model, t)
        averager.update()
    with averager.averaged():
        assert model[1].running_mean.tolist() == [mean, mean]
        assert model.short.tolist() == [mean] * 3
        assert model.loose.tolist() == [mean]
        assert model[1].num_batches_tracked.item() == 4
        assert model.mask.tolist() == [False, False], "the latest, which an average of four would not give"
        assert model[1].num_batches_tracked.dtype == torch.int64
    assert model[1].running_mean.tolist() == [4.0, 4.0]
    assert model.loose.tolist() == [4.0]


@pytest.mark.parametrize("average", [lawa.EMA(0.5), lawa.RunningMean()], ids=str)
def test_running_averages_take_buffers_along(average: Any) -> None:
    model = batch_norm()
    averager = lawa.WeightAverager(model, mode="evaluate", averages={"a": average}, buffers="average")
    for t in (1, 3):
        set_buffers(model, t)
        averager.update()
    with averager.averaged():
        assert model[1].running_mean.tolist() == [2.0, 2.0]
        assert model.short.tolist() == [2.0] * 3
        assert model[1].num_batches_tracked.item() == 3


def test_an_unknown_policy_for_buffers_is_refused() -> None:
    with pytest.raises(LawaError, match="buffers='mean' must be 'latest' or 'average'"):
        lawa.WeightAverager(nn.Linear(1, 1), mode="evaluate", buffers="mean")


# ---- dtypes, shapes, strides, devices


def test_every_dtype_is_kept_and_averaged_in_fp32_or_better() -> None:
    model = nn.Module()
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    for dtype in dtypes:
        model.register_parameter(f"w_{str(dtype)[6:]}", nn.Parameter(torch.zeros(50, dtype=dtype)))
    averager = lawa.WeightAverager(model, mode="replace", every=1, window=7)
    copies = []
    for t in range(1, 8):
        toys.wander(model, t)
        copies.append(toys.weights(model))
        averager.update()
    for dtype in dtypes:
        name = f"w_{str(dtype)[6:]}"
        wide = np.float64 if dtype == torch.float64 else np.float32
        want = twins.rounded(twins.uniform([copy[name] for copy in copies], wide), dtype)
        assert model.get_parameter(name).dtype == dtype
        assert twins.same_bits(model.get_parameter(name), want), name


def test_empty_and_scalar_tensors() -> None:
    model = nn.Module()
    model.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    model.register_parameter("also_empty", nn.Parameter(torch.empty(0)))
    model.register_parameter("scalar", nn.Parameter(torch.tensor(1.0)))
    averager = lawa.WeightAverager(
        model,
        mode="evaluate",
        averages={"w": lawa.Window(2, every=1), "ema": lawa.EMA(0.5), "mean": lawa.RunningMean()},
    )
    averager.update()
    toys.fill(model, 3.0)
    averager.update()
    snapshot = averager.state_dict()["snapshots"]["00000001"]
    assert {name: tuple(tensor.shape) for name, tensor in snapshot.items()} == {
        "empty": (0, 3), "also_empty": (0,), "scalar": (),
    }  # fmt: skip
    for name in ("w", "ema", "mean"):
        with averager.averaged(name):
            assert model.scalar.item() == 2.0


def test_a_model_of_empty_tensors_only() -> None:
    model = nn.Module()
    model.register_parameter("empty", nn.Parameter(torch.empty(0, 3)))
    averager = lawa.WeightAverager(model, mode="replace", every=1, window=2)
    averager.update()
    assert averager.update()


@pytest.mark.parametrize("average", [lawa.Window(3, every=1), lawa.EMA(0.75), lawa.RunningMean()], ids=str)
def test_parameters_that_are_not_contiguous(average: Any) -> None:
    base = torch.zeros(6, 8)
    model = nn.Module()
    model.register_parameter("transposed", nn.Parameter(base[:, :4].t()))
    model.register_parameter("strided", nn.Parameter(base[:, 4::2]))
    model.register_parameter("conv", nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)))
    strides = {name: parameter.stride() for name, parameter in model.named_parameters()}
    averager = lawa.WeightAverager(model, mode="evaluate", averages={"a": average})
    copies = []
    for t in range(1, 4):
        toys.wander(model, t)
        copies.append(toys.weights(model))
        averager.update()
    for name, parameter in model.named_parameters():
        rows = [copy[name] for copy in copies]
        want = twins.ema(rows, 0.75) if isinstance(average, lawa.EMA) else twins.uniform(rows)
        with averager.averaged():
            assert twins.same_bits(parameter, want), name
            assert parameter.stride() == strides[name]
        assert twins.same_bits(parameter, rows[-1])
    assert torch.equal(base[:, 5::2], torch.zeros(6, 2)), "elements between the strides belong to somebody else"


def test_complex_parameters_are_refused_and_frozen_ones_are_not_our_business() -> None:
    model = nn.Linear(2, 2)
    model.register_parameter("phase", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))
    with pytest.raises(LawaError, match="parameter 'phase' is complex"):
        ModelTensors(model)
    model.phase.requires_grad_(False)
    assert set(ModelTensors(model).frozen) == {"phase"}


def test_groups_are_one_per_device_and_dtype() -> None:
    """Two devices, the second one simulated: groups keep to one device each, and a layout holds no data."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, dtype=torch.bfloat16))
    layout = Layout(ModelTensors(model).trained)
    found = [(group.device.type, group.dtype, [entry.name for entry in group.entries]) for group in layout]
    assert found == [
        ("cpu", torch.float32, ["0.weight", "0.bias"]),
        ("meta", torch.float32, ["1.weight", "1.bias"]),
        ("cpu", torch.bfloat16, ["2.weight", "2.bias"]),
    ]
    cost = lawa.estimate(model, mode="evaluate", every=1, window=3)
    assert cost.device == 3 * layout[1].nbytes
    assert cost.host == 3 * (layout[0].nbytes + layout[2].nbytes)


def test_entries_start_on_cache_lines_and_cover_their_shapes() -> None:
    model = toys.Tied()
    layout = Layout(ModelTensors(model).trained)
    (group,) = layout
    flat = group.allocate()
    read([(group, flat)])
    assert all(offset * flat.itemsize % 64 == 0 for offset in group.offsets)
    assert layout.nbytes == flat.nbytes
    for name, view in named([(group, flat)]).items():
        parameter = model.get_parameter(name)
        assert torch.equal(view, parameter)
        assert view.untyped_storage().data_ptr() == flat.data_ptr(), "a view"
    inside = torch.zeros_like(flat, dtype=torch.bool)
    for view in group.views(inside):
        view.fill_(True)
    assert torch.equal(flat[~inside], torch.zeros(int((~inside).sum()))), "gaps are finite"
    flat.fill_(2.0)
    write([(group, flat)])
    assert torch.equal(model.inner.weight, torch.full((4, 4), 2.0))
    assert torch.equal(model.scale, torch.ones(4)), "frozen"


def test_a_snapshot_owns_its_memory() -> None:
    """Kaddour's lawa.py keeps `.detach().cpu()`, which on a CPU is the live weight: the mean of 1..4 is then 4.0."""
    model = toys.linear()
    averager = lawa.WeightAverager(model, mode="evaluate", every=1, window=4)
    for t in range(1, 5):
        toys.fill(model, float(t))
        averager.update()
    toys.fill(model, 99.0)
    assert toys.seen_by(averager)["weight"].tolist() == [[2.5, 2.5, 2.5]]


def test_data_assigned_between_captures_is_followed() -> None:
    """`p.data = …`, as optimizers with flat buffers and `model.to` do, moves the parameter to other memory."""
    model = toys.linear((0.0, 0.0))
    averages = {"w": lawa.Window(3, every=1), "ema": lawa.EMA(0.5), "mean": lawa.RunningMean()}
    averager = lawa.WeightAverager(model, mode="evaluate", averages=averages)
    for value in (2.0, 4.0, 12.0):
        model.weight.data = torch.full((1, 2), value)
        averager.update()
    model.weight.data = torch.full((1, 2), -1.0)
    expected = {"w": 6.0, "ema": 7.5, "mean": 6.0}
    for name, value in expected.items():
        with averager.averaged(name):
            assert model(torch.ones(1, 2)).item() == 2 * value
    assert model.weight.tolist() == [[-1.0, -1.0]]


# ---- refused and warned about


def test_fsdp1_is_refused_with_the_way_out() -> None:
    class FullyShardedDataParallel(nn.Module):  # what the real one is called, without a process group
        def __init__(self) -> None:
            super().__init__()
            self._fsdp_wrapped_module = nn.Linear(1, 1)

    with pytest.raises(LawaError, match=r"module 'model' is FSDP1.*use FSDP2 \(fully_shard\)"):
        lawa.WeightAverager(FullyShardedDataParallel(), mode="evaluate", every=1)
    with pytest.raises(LawaError, match="module '1' is FSDP1"):
        lawa.WeightAverager(nn.Sequential(nn.Linear(1, 1), FullyShardedDataParallel()), mode="evaluate", every=1)


def test_a_model_of_deepspeeds_is_refused_without_its_engine() -> None:
    model = nn.Linear(2, 2)
    model.bias.ds_id = 1
    with pytest.raises(LawaError, match=r"parameter 'bias' is DeepSpeed's.*pass the engine"):
        lawa.WeightAverager(model, mode="evaluate", every=1)


def test_lora_is_averaged_with_a_warning() -> None:
    model = nn.Module()
    model.register_parameter("base", nn.Parameter(torch.zeros(2, 2), requires_grad=False))
    model.register_parameter("lora_A", nn.Parameter(torch.ones(1, 2)))
    model.register_parameter("lora_B", nn.Parameter(torch.ones(2, 1)))
    with pytest.warns(UserWarning, match="the average of A and the average of B is not the average of BA"):
        tensors = ModelTensors(model)
    assert [entry.name for entry in tensors.trained] == ["lora_A", "lora_B"]
    model.lora_A.requires_grad_(False)
    model.lora_B.requires_grad_(False)
    model.base.requires_grad_(True)
    ModelTensors(model)  # frozen LoRA matrices are not averaged: no warning


# ---- real models


def neox() -> nn.Module:
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=16,
        )
    )  # fmt: skip


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, bos_token_id=0, eos_token_id=0, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    )


@pytest.mark.parametrize(("build", "ties"), [(neox, {}), (gpt2, {"lm_head.weight": "transformer.wte.weight"})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_real_models_are_averaged_whole_and_once(build: Any, ties: dict[str, str], dtype: torch.dtype) -> None:
    """mergekit 0.1.5 refuses a GPTNeoX made by transformers 5 ("masked_bias required but not present")."""
    torch.manual_seed(0)
    model = build().to(dtype).eval()  # GPT-2 has dropout
    averager = lawa.WeightAverager(model, mode="replace", every=1, window=3, buffers="average")
    assert ModelTensors(model).tied == ties
    copies, tokens = [], torch.arange(8).view(1, 8)
    for t in range(1, 4):
        toys.wander(model, t)
        copies.append(toys.weights(model))
        replaced = averager.update()
    assert replaced
    assert set(averager.state_dict()["snapshots"]["00000001"]) >= set(copies[0])
    assert toys.same_weights(toys.weights(model), toys.mean_of(copies, model))
    twin = build().to(dtype).eval()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, twin(tokens).logits)
    if ties:
        assert model.lm_head.weight is model.transformer.wte.weight


def test_a_model_on_meta_is_enough_for_an_estimate() -> None:
    with torch.device("meta"):
        big = GPTNeoXForCausalLM(GPTNeoXConfig(hidden_size=1024, num_hidden_layers=4, num_attention_heads=8))
    parameters = sum(parameter.numel() for parameter in big.parameters())
    cost = lawa.estimate(big, mode="evaluate", every=1000, window=5)
    assert cost.snapshots == 5
    assert cost.device == pytest.approx(5 * 4 * parameters, rel=1e-3)
    assert cost.host == 0
