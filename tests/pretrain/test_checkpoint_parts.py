"""The parts of a checkpoint's writing by themselves: copies in host memory, the thread, weights read back."""

import itertools
import threading

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lawa.averaging.layout import Layout, named
from lawa.averaging.parameters import ModelTensors
from lawa.background import Writer
from lawa.checkpoints.find import step_directory
from lawa.checkpoints.publish import publish
from lawa.errors import LawaError
from lawa.pretrain.checkpoint import whole
from lawa.pretrain.checkpoint.staging import Stage
from pretrain.test_run import assert_same

SMALL = {
    "gpt_neox": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "llama": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
              "num_key_value_heads": 1},
    "gpt2": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
}  # fmt: skip


# ---- copies in host memory


def test_a_staged_copy_is_a_copy_in_memory_that_is_used_again():
    model, stage = nn.Linear(3, 2), Stage()
    first = stage.copy("model", model.state_dict())
    stage.settle()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.weight.add_(1)
    assert_same(first, before)
    again = stage.copy("model", model.state_dict())
    assert_same(again, model.state_dict())
    assert [tensor.data_ptr() for tensor in again.values()] == [tensor.data_ptr() for tensor in first.values()]
    other = stage.copy("average", before)
    assert_same(again, model.state_dict())
    assert_same(other, before)
    assert not any(tensor.requires_grad for tensor in again.values())


def test_a_staged_copy_of_another_shape_or_dtype_has_memory_of_its_own():
    stage = Stage()
    first = stage.copy("snapshot 0", {"a": torch.ones(2)})["a"]
    second = stage.copy("snapshot 0", {"a": torch.full((2, 3), 2.0), "empty": torch.ones(0), "step": torch.tensor(4.0)})
    third = stage.copy("snapshot 0", {"a": torch.full((2, 3), 3.0, dtype=torch.bfloat16)})["a"]
    assert torch.equal(first, torch.ones(2))
    assert torch.equal(second["a"], torch.full((2, 3), 2.0))
    assert second["empty"].shape == (0,)
    assert second["step"].item() == 4
    assert third.dtype == torch.bfloat16
    assert torch.equal(third, torch.full((2, 3), 3.0, dtype=torch.bfloat16))


def test_tied_weights_are_staged_once_and_stay_tied():
    tied = nn.ModuleDict({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2)})
    tied["b"].weight = tied["a"].weight
    staged = Stage().copy("model", tied.state_dict())
    assert staged["a.weight"] is staged["b.weight"]
    assert staged["a.bias"].data_ptr() != staged["b.bias"].data_ptr()
    assert_same(staged, dict(tied.state_dict()))


# ---- the thread


def test_a_failure_is_raised_once_where_training_asks_next():
    def fail():
        raise OSError("the disk is full")

    writer = Writer()
    writer.check()
    writer.start(fail)
    writer.end()
    with pytest.raises(OSError, match="the disk is full"):
        writer.check()
    writer.check()
    writer.wait()
    for ask in (writer.wait, lambda: writer.start(lambda: None)):
        writer.start(fail)
        with pytest.raises(OSError, match="the disk is full"):
            ask()
    done = []
    writer.start(lambda: done.append(1))
    writer.wait()
    assert done == [1]


def test_one_piece_of_work_at_a_time_and_training_goes_on_meanwhile():
    writer, go, done = Writer(), threading.Event(), []

    def first():
        assert go.wait(10)
        done.append(1)

    writer.start(first)
    writer.check()
    assert done == []
    threading.Timer(0.05, go.set).start()
    writer.start(lambda: done.append(2))  # waits for the first
    assert done[0] == 1
    writer.wait()
    assert done == [1, 2]


# ---- reading weights back for a window


def entries(model):
    """What a window asks for: the averager's names, in flat tensors that hold nothing yet."""
    layout = Layout(ModelTensors(model).trained)
    return named([(group, group.allocate().fill_(float("nan"))) for group in layout])


@pytest.mark.parametrize("size", ["50GB", "10KB"], ids=["one file", "many files"])
@pytest.mark.parametrize("architecture", SMALL)
def test_saved_weights_are_read_as_transformers_saved_them(tmp_path, architecture, size):
    """GPT-NeoX's head is renamed in the file; GPT-2's is tied, and stored once."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(architecture, vocab_size=70, **SMALL[architecture]), dtype=torch.float32
    )
    parameters = dict(model.named_parameters())
    saved = whole.SavedWeights(tmp_path, model)
    assert not saved.has(7)
    with publish(step_directory(tmp_path, 7)) as partial:
        model.save_pretrained(partial, max_shard_size=size)
    assert saved.has(7)
    assert (len(list(step_directory(tmp_path, 7).glob("*.safetensors"))) > 1) == (size == "10KB")
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    into = entries(model)
    saved.read(7, into)
    assert_same(into, before)
    part = dict(itertools.islice(entries(model).items(), 2))
    saved.read(7, part)
    assert_same(part, {name: before[name] for name in part})


def test_a_model_that_is_stored_in_other_shapes_is_refused(tmp_path):
    config = AutoConfig.for_model("mixtral", vocab_size=70, num_local_experts=2, **SMALL["llama"])
    with pytest.raises(LawaError, match=r"placement=disk: MixtralForCausalLM stores '.*experts.*' in another shape"):
        whole.SavedWeights(tmp_path, AutoModelForCausalLM.from_config(config))
