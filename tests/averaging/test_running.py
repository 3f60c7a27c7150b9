"""EMA and running mean over a model's live tensors, whole and in stretches."""

import copy
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import nn

import twins
from lawa import WeightAverager
from lawa.averaging import kernels
from lawa.averaging.averages import EMA, RunningMean
from lawa.averaging.layout import Layout
from lawa.averaging.mean import block_size
from lawa.averaging.parameters import ModelTensors
from lawa.averaging.running import Running
from lawa.errors import LawaError


@pytest.fixture(params=["compiled", "torch"])
def compiled(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Each test by the compiled loop, and by torch operations."""
    if request.param == "compiled":
        if kernels._library is None:
            pytest.skip("no C compiler here")
        yield True
        return
    with mock.patch.object(kernels, "_library", None):
        yield False


class Odd(nn.Module):
    """Parameters of every awkward kind: a scalar, empty, larger than a block, not contiguous, of two dtypes."""

    def __init__(self, *, contiguous: bool = False) -> None:
        super().__init__()
        for i, shape in enumerate([(3,), (25,), (4, 5), (2, 3), (), (0,), (10,), (11,)]):
            self.register_parameter(f"p{i}", nn.Parameter(torch.randn(shape)))
        self.transposed = nn.Parameter(torch.randn(7, 5).t().contiguous() if contiguous else torch.randn(7, 5).t())
        self.narrow = nn.Parameter(torch.randn(33).bfloat16())


@pytest.mark.parametrize("block", [1, 7, 10, 64, 1 << 21])
@pytest.mark.parametrize("average", [EMA(0.9), RunningMean()], ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.usefixtures("compiled")
def test_every_element_is_read_once_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch, block: int, average: EMA | RunningMean, contiguous: bool
) -> None:
    monkeypatch.setitem(block_size.__globals__["_BLOCK"], "cpu", block)
    torch.manual_seed(0)
    model = Odd(contiguous=contiguous)
    running = Running(average, Layout(ModelTensors(model).trained))
    readings: dict[str, list] = {name: [] for name, _ in model.named_parameters()}
    for t in range(1, 6):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter += torch.randn(parameter.shape).to(parameter)
                readings[name].append(twins.array(parameter.detach().float()))
        running.capture(t)
    for group, flat in running.parts():
        for entry, view in zip(group.entries, group.views(flat), strict=True):
            rows = readings[entry.name]
            want = twins.ema(rows, 0.9) if isinstance(average, EMA) else twins.uniform(rows)
            assert twins.same_bits(view, want), entry.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("contiguous", [True, False])
def test_the_compiled_loop_serves_contiguous_fp32_and_bf16(
    compiled: bool, dtype: torch.dtype, contiguous: bool
) -> None:
    """Otherwise the tests here would pass without it."""
    model = Odd(contiguous=contiguous).to(dtype)
    running = Running(EMA(0.9), Layout(ModelTensors(model).trained))
    running.capture(1)
    running.capture(2)
    serves = compiled and contiguous and dtype in (torch.float32, torch.bfloat16)
    assert running._work
    assert all(isinstance(work, kernels.Table) == serves for work in running._work)


@pytest.mark.usefixtures("compiled")
def test_a_weight_that_moved_in_memory_is_followed() -> None:
    model = nn.Linear(3, 2)
    running = Running(RunningMean(), Layout(ModelTensors(model).trained))
    nn.init.constant_(model.weight, 1.0)
    running.capture(1)
    model.weight.data = torch.full((2, 3), 4.0)
    running.capture(2)
    group, mean = running.parts()[0]
    assert torch.equal(group.views(mean)[0], torch.full((2, 3), 2.5))


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (6,)])
@pytest.mark.usefixtures("compiled")
def test_a_weight_that_has_another_shape_now_is_an_error_that_names_it(shape: tuple[int, ...]) -> None:
    model = nn.Linear(3, 2)
    running = Running(EMA(0.9), Layout(ModelTensors(model).trained))
    running.capture(1)
    model.weight.data = torch.zeros(shape)
    with pytest.raises(LawaError, match=r"parameter 'weight' has the shape \(.*\), and had \(2, 3\)"):
        running.capture(2)


@pytest.mark.usefixtures("compiled")
def test_a_fresh_state_is_read_into_where_it_lies_now() -> None:
    model = nn.Linear(3, 2)
    running = Running(RunningMean(), Layout(ModelTensors(model).trained))
    running.capture(1)
    running.release()
    nn.init.constant_(model.weight, 2.0)
    running.capture(2)
    group, mean = running.parts()[0]
    assert torch.equal(group.views(mean)[0], torch.full((2, 3), 2.0))


@pytest.mark.parametrize("average", [EMA(0.5), RunningMean()], ids=str)
@pytest.mark.usefixtures("compiled")
def test_a_nan_that_is_gone_from_every_weight_is_gone_from_the_check(
    monkeypatch: pytest.MonkeyPatch, average: EMA | RunningMean
) -> None:
    """A blow-up, then a rollback. Nothing of it may stay in the padding between two tensors, which is checked too."""
    monkeypatch.setitem(block_size.__globals__["_BLOCK"], "cpu", 32)
    model = nn.Module()
    for i, size in enumerate((3, 3, 30)):  # the first two share a stretch, and its gap is the third one's scratch
        model.register_parameter(f"p{i}", nn.Parameter(torch.ones(size)))
    averager = WeightAverager(model, mode="evaluate", averages={"a": average})
    averager.update()
    saved = copy.deepcopy(averager.state_dict())
    for value in (float("nan"), 1.0):
        with torch.no_grad():
            model.p2.fill_(value)
        averager.update()
    assert not averager.is_finite()
    averager.load_state_dict(saved)
    assert averager.is_finite()
    averager.update()
    averager.update()
    assert averager.is_finite()
