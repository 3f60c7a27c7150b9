"""The loss scale is DeepSpeed's at every update, and a skipped update leaves no trace."""

import copy
import json
import math
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lawa.errors import LawaError, UsageError
from lawa.pretrain.scaler import LossScaler
from lawa.pretrain.sections.training import TrainingConfig

CPU = torch.device("cpu")


class Literal:
    """DeepSpeed's DynamicLossScaler.update_scale, branch by branch, with consecutive_hysteresis off."""

    def __init__(self, init_scale, scale_window, min_scale, delayed_shift):
        self.cur_scale = init_scale
        self.cur_iter = 0
        self.last_overflow_iter = -1
        self.scale_window = scale_window
        self.min_scale = min_scale
        self.delayed_shift = delayed_shift
        self.cur_hysteresis = delayed_shift

    def update_scale(self, overflow):
        if overflow:
            if self.delayed_shift == 1 or self.cur_hysteresis == 1:
                if self.cur_scale == self.min_scale:
                    raise LawaError("already at minimum")
                self.cur_scale = max(self.cur_scale / 2.0, self.min_scale)
            else:
                self.cur_hysteresis -= 1
            self.last_overflow_iter = self.cur_iter
        else:
            stable_interval = (self.cur_iter - self.last_overflow_iter) - 1
            if stable_interval > 0 and stable_interval % self.scale_window == 0:
                self.cur_hysteresis = self.delayed_shift
                self.cur_scale *= 2.0
        self.cur_iter += 1


def one_weight():
    parameter = nn.Parameter(torch.ones(1))
    return parameter, torch.optim.SGD([parameter], lr=0.5)


def update(scaler, parameter, optimizer, *, overflow):
    """One update with gradient 1, or with one that overflows."""
    optimizer.zero_grad()
    scaler.scale(parameter.sum() * (math.inf if overflow else 1.0)).backward()
    scaler.unscale(optimizer)
    return scaler.step(optimizer)


@settings(deadline=None)  # the first example starts autograd
@given(
    overflows=st.lists(st.booleans(), max_size=40),
    window=st.integers(1, 5),
    hysteresis=st.integers(1, 4),
    least=st.sampled_from([0.25, 1.0, 3.0]),
    power=st.integers(2, 6),
    interrupted=st.integers(0, 40),
)
def test_the_scale_is_deepspeeds(overflows, window, hysteresis, least, power, interrupted):
    """Also where the run goes on in a fresh process from a state written as JSON."""
    rule = {"initial": 2.0**power, "window": window, "hysteresis": hysteresis, "least": least}
    scaler, twin = LossScaler(CPU, **rule), Literal(2.0**power, window, least, hysteresis)
    parameter, optimizer = one_weight()
    for t, overflow in enumerate(overflows):
        if t == interrupted:
            state = json.loads(json.dumps(scaler.state_dict()))
            scaler = LossScaler(CPU, **rule)
            scaler.load_state_dict(state)
        assert scaler.scale(torch.ones(())).item() == twin.cur_scale
        try:
            twin.update_scale(overflow)
        except LawaError:
            with pytest.raises(LawaError, match="not finite in fp16 even at the smallest loss scale"):
                update(scaler, parameter, optimizer, overflow=overflow)
            return
        assert update(scaler, parameter, optimizer, overflow=overflow) is not overflow
        assert scaler.scale_now == twin.cur_scale
        if not overflow:
            assert parameter.grad.item() == 1.0  # unscaled by the scale it was scaled with


def test_by_hand():
    """Window 3: one overflow is borne, the next halves; the finite update after three doubles, and one is borne again.

    So it begins with a doubling at the fourth update, and every overflow counts anew.
    """
    scaler = LossScaler(CPU, initial=16, window=3, hysteresis=2)
    parameter, optimizer = one_weight()
    scales = []
    for overflow in map(int, "0000110001000011"):
        update(scaler, parameter, optimizer, overflow=bool(overflow))
        scales.append(scaler.scale_now)
    assert scales == [16, 16, 16, 32, 32, 16, 16, 16, 16, 8, 8, 8, 8, 16, 16, 8]


def tiny():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


@pytest.mark.parametrize("fused", [False, True])
def test_training_in_float16_skips_halves_and_goes_on(fused):
    model = tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = LossScaler(CPU, initial=2.0**40, window=100, hysteresis=1)
    data, targets = torch.randn(64, 8), torch.randint(4, (64,))
    skipped, losses = [], []
    for _ in range(60):
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
        with torch.autocast("cpu", torch.float16):
            outputs = model(data)
        loss = nn.functional.cross_entropy(outputs.float(), targets)
        scaler.scale(loss).backward()
        scaler.unscale(optimizer)
        scale = scaler.scale_now
        if scaler.step(optimizer):
            losses.append(loss.item())
        else:
            skipped.append(scale)
            after = (model.state_dict(), optimizer.state_dict()["state"])
            assert all(torch.equal(before[0][name], tensor) for name, tensor in after[0].items())
            assert str(before[1]) == str(after[1])
        optimizer.zero_grad()
    assert 5 <= len(skipped) <= 40
    assert skipped == [2.0**40 / 2**i for i in range(len(skipped))]
    assert scaler.scale_now == 2.0**40 / 2 ** len(skipped)
    assert all(state["step"] == len(losses) for state in optimizer.state.values())
    assert losses[-1] < 0.8 * losses[0]


def test_scaling_changes_nothing_where_nothing_under_or_overflows():
    """Powers of two leave no trace: in fp32 the bits are those of training without a scaler."""
    plain, scaled = tiny(), tiny()
    data, targets = torch.randn(16, 8), torch.randint(4, (16,))
    scaler = LossScaler(CPU, initial=2.0**12, window=2)
    for model, by in ((plain, None), (scaled, scaler)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        for _ in range(6):
            loss = nn.functional.cross_entropy(model(data), targets)
            (by.scale(loss) if by else loss).backward()
            if by:
                by.unscale(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            assert by.step(optimizer) if by else optimizer.step() is None
            optimizer.zero_grad()
    assert scaler.scale_now == 2.0**14
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), scaled.parameters(), strict=True))


def test_accumulated_gradients_are_unscaled_once():
    scaler = LossScaler(CPU, initial=8)
    parameter, optimizer = one_weight()
    for _ in range(4):
        scaler.scale(parameter.sum() / 4).backward()
    scaler.unscale(optimizer)
    assert parameter.grad.item() == 1.0
    with suppress(RuntimeError):
        scaler.unscale(optimizer)
        pytest.fail("a second unscale() must be refused")
    assert scaler.step(optimizer)
    assert parameter.item() == 0.5


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"loss_scale": 0.5}, r"training\.loss_scale=0\.5 must be at least training\.loss_scale_min=1, and finite"),
        ({"loss_scale": math.inf}, r"training\.loss_scale=inf must be at least"),
        ({"loss_scale_min": 0}, r"training\.loss_scale_min=0 must be above 0"),
        ({"loss_scale_window": 0}, r"training\.loss_scale_window=0 must be at least 1"),
        ({"loss_scale_hysteresis": 0}, r"training\.loss_scale_hysteresis=0 must be at least 1"),
    ],
)
def test_impossible_settings(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        TrainingConfig(updates=10, batch=1, lr=1.0, precision="fp16", **values)


def test_settings_of_the_scale_have_no_effect_without_fp16():
    scaling = {"loss_scale": 2.0, "loss_scale_window": 5}
    assert TrainingConfig(updates=10, batch=1, lr=1.0, precision="fp16", **scaling).without_effect() == []
    assert TrainingConfig(updates=10, batch=1, lr=1.0, precision="bf16", **scaling).without_effect() == [
        "training.loss_scale=2.0 has no effect with training.precision='bf16'",
        "training.loss_scale_window=5 has no effect with training.precision='bf16'",
    ]
