"""Outputs read back: right ones pass whatever their dtypes; each kind of damage is found and named."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lawa.averaging.coefficients import coefficients
from lawa.errors import LawaError
from lawa.offline import verify as module
from lawa.offline.plan import Mean, Plan
from lawa.offline.policy import Policy
from lawa.offline.verify import verify
from offline import engine
from offline.engine import DTYPES, PATHS, carry_out, draws, planned, write

NAMES = ["float32", "bfloat16", "float16", "float64"]
WINDOW = (0, 1, 2, 3)


def averaged(tmp_path: Path, dtypes: list[torch.dtype], means: list[Mean], **how: Any) -> Plan:
    catalogs = []
    for step, dtype in enumerate(dtypes):
        state = {
            "a": draws((40, 5), dtype, step),
            "b": draws((7,), dtype, 50 + step),
            "e": torch.ones(0),
            "s": draws((), dtype, 80 + step),
        }
        state |= {"n": torch.arange(9) + step, "kept": draws((20,), torch.float16, 90 + step)}
        catalogs.append(write(tmp_path / f"step{step}", state))
    work = planned(catalogs, means, policy=Policy(latest=("kept",)), **how)
    carry_out(work, tmp_path / "out")
    return work


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)


# ---- right ones


@pytest.mark.parametrize("accumulate", ["float32", "float64"])
@pytest.mark.parametrize("out", NAMES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_right_outputs_of_all_dtypes_pass(tmp_path: Path, dtype: torch.dtype, out: str, accumulate: str) -> None:
    """And near to what is allowed: else the bound would be so wide that nothing is ever found."""
    means = [Mean("a", WINDOW, None), Mean("b", WINDOW[1:], coefficients("one_minus_sqrt", 3))]
    work = averaged(tmp_path, [dtype] * 4, means, out_dtype=out, accumulate=accumulate)
    for number, mean in enumerate(means):
        report = verify(work, mean, tmp_path / "out" / f"output{number}", samples=200)
        assert (report.tensors, report.elements >= 240) == (5, True)
        assert report.worst <= 1
        if out in ("bfloat16", "float16") or (dtype, out, accumulate) == (torch.float32, "float32", "float32"):
            assert report.worst > (0.02 if out == "float32" else 0.5)
        assert report.tensor in "abs"
        assert f"{report.elements} elements of 5 tensors" in str(report)


def test_dtypes_that_differ_between_inputs(tmp_path: Path) -> None:
    for number, dtypes in enumerate(([*DTYPES[:3], DTYPES[0]], DTYPES)):
        mean = Mean("a", WINDOW, None)
        work = averaged(tmp_path / str(number), list(dtypes), [mean])
        assert verify(work, mean, tmp_path / str(number) / "out" / "output0").worst <= 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_right_outputs_of_any_values_pass(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Denormals, cancellation, overflow of sums and outputs, inf and nan."""
    tmp_path = tmp_path_factory.mktemp("any")
    k, out = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(NAMES))
    floats = (
        st.floats(width=32)
        | st.floats(-(2.0**-120), 2.0**-120, width=32)
        | st.sampled_from([65519.0, 3.4e38, -3.4e38, 1e-45])
    )
    dtypes = [data.draw(st.sampled_from(DTYPES)) for _ in range(k)]
    catalogs = [
        write(tmp_path / str(step), {"w": torch.tensor(data.draw(st.lists(floats, min_size=9, max_size=9))).to(dtype)})
        for step, dtype in enumerate(dtypes)
    ]
    c = data.draw(st.none() | st.lists(st.floats(-1, 1), min_size=k, max_size=k))
    mean = Mean("", tuple(range(k)), None if c is None else tuple(c))
    work = planned(catalogs, [mean], out_dtype=out, accumulate=data.draw(st.sampled_from(["float32", "float64"])))
    for way in PATHS:
        with engine.path(way):
            carry_out(work, tmp_path / way, allow_non_finite=True)
        verify(work, mean, tmp_path / way / "output0")


@pytest.mark.parametrize(("values", "out"), [((3.4e38, 3.4e38, -3.4e38), "float32"), ((65519.0, 65521.0), "float16")])
def test_sums_and_outputs_may_overflow_and_nothing_else_may(
    tmp_path: Path, values: tuple[float, ...], out: str
) -> None:
    """The exact mean is finite; what is summed, or rounded, is not."""
    catalogs = [write(tmp_path / str(step), {"w": torch.full((3,), value)}) for step, value in enumerate(values)]
    work = planned(catalogs, out_dtype=out)
    (found,) = carry_out(work, tmp_path / "out", allow_non_finite=True)
    assert found["w"].isinf().all()
    verify(work, work.means[0], tmp_path / "out" / "output0")
    wider = planned(catalogs, out_dtype="float64", accumulate="float64")
    with pytest.raises(LawaError, match="was to be float64"):
        verify(wider, wider.means[0], tmp_path / "out" / "output0")
    carry_out(wider, tmp_path / "wider")
    change(tmp_path / "wider" / "output0" / "model.safetensors", w=torch.full((3,), float("inf"), dtype=torch.float64))
    check(wider, tmp_path / "wider" / "output0" / "model.safetensors", "tensor 'w' .* is off by inf times")


# ---- damage


def damaged(tmp_path: Path, *, out: str = "float32", **how: Any) -> tuple[Plan, Path]:
    work = averaged(tmp_path, [torch.float32] * 4, [Mean("", WINDOW, None)], out_dtype=out, **how)
    return work, tmp_path / "out" / "output0" / "model.safetensors"


def change(file: Path, **tensors: torch.Tensor) -> None:
    held = {name: tensor.clone() for name, tensor in load_file(file).items()} | tensors
    save_file(held, file, {"format": "pt"})


def check(work: Plan, file: Path, match: str, samples: int = 200) -> None:
    with pytest.raises(LawaError, match=match):
        verify(work, work.means[0], file.parent, samples=samples)


@pytest.mark.parametrize(("out", "ulps"), [("float32", 100), ("bfloat16", 1), ("float16", 1)])
@pytest.mark.parametrize("element", [0, 15, 16, 199])
def test_a_few_last_bits_are_found(tmp_path: Path, out: str, ulps: int, element: int) -> None:
    work, file = damaged(tmp_path, out=out)
    a = load_file(file)["a"].clone().reshape(-1)
    exact = (
        torch.stack([load_file(tmp_path / f"step{step}/model.safetensors")["a"] for step in WINDOW]).double().mean(0)
    )
    away = float("inf") if a[element].double() >= exact.reshape(-1)[element] else -float("inf")
    for _ in range(ulps):
        a[element] = step_to(a[element], away)
    change(file, a=a.reshape(40, 5))
    check(work, file, rf"tensor 'a' of .*output0 is off by .* at element {element}; do not use it: average again")


def step_to(value: torch.Tensor, away: float) -> torch.Tensor:
    """The next value of its dtype in that direction."""
    bits = value.view({2: torch.int16, 4: torch.int32}[value.itemsize])
    return (bits + (1 if (value > 0) == (away > 0) else -1)).view(value.dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e30])
def test_values_that_do_not_belong_there_are_found(tmp_path: Path, value: float) -> None:
    work, file = damaged(tmp_path)
    b = load_file(file)["b"].clone()
    b[6] = value
    change(file, b=b)
    check(work, file, r"tensor 'b' .* is off by .*, at element 6")


def test_the_first_tensor_that_is_off_is_named(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    held = load_file(file)
    change(file, a=held["a"] + 1, b=held["b"] + 1, s=held["s"] + 1)
    first = next(placed.row.name for placed in work.tensors if placed.row.name in "abs")
    check(work, file, rf"tensor '{first}' ")


def test_two_tensors_or_elements_exchanged_are_found(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    change(file, a=load_file(file)["a"].flip(0).contiguous())
    check(work, file, "tensor 'a'")


@pytest.mark.parametrize("means", [[Mean("", WINDOW[1:], None)], [Mean("", WINDOW, (0.25, 0.25, 0.26, 0.24))]])
def test_another_average_is_found(tmp_path: Path, means: list[Mean]) -> None:
    work, file = damaged(tmp_path)
    with pytest.raises(LawaError, match="is off by"):
        verify(work, means[0], file.parent)


@pytest.mark.parametrize("name", ["n", "kept"])
def test_kept_tensors_are_those_of_the_latest_to_the_byte(tmp_path: Path, name: str) -> None:
    work, file = damaged(tmp_path)
    verify(work, work.means[0], file.parent)
    change(file, **{name: load_file(tmp_path / "step2" / "model.safetensors")[name]})
    check(work, file, rf"tensor '{name}' of .* has other bytes than in step3, at element 0")


def test_a_tensor_that_is_missing_or_of_another_kind_is_found(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    whole = load_file(file)
    for wrong, match in (
        ({name: tensor for name, tensor in whole.items() if name != "b"}, r"model.safetensors lacks the tensor 'b'"),
        ({**whole, "b": whole["b"].double()}, r"'b' of .* is float64 \(7,\), and was to be float32 \(7,\)"),
        ({**whole, "a": whole["a"].reshape(5, 40)}, r"'a' of .* is float32 \(5, 40\), and was to be float32 \(40, 5\)"),
    ):
        save_file(wrong, file)
        check(work, file, match)


def test_a_file_that_is_missing_or_cut_off_is_found(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    os.truncate(file, file.stat().st_size - 1)
    check(work, file, "model.safetensors has .* cut off")
    file.unlink()
    check(work, file, r"model.safetensors cannot be read \(No such file")


def test_a_header_that_lies_about_offsets_is_found(tmp_path: Path) -> None:
    """Two tensors of one size under each other's names: the file is whole, and its values are others'."""
    catalogs = [
        write(tmp_path / str(step), {name: draws((16,), torch.float32, step + ord(name)) for name in "xy"})
        for step in range(2)
    ]
    work = planned(catalogs)
    carry_out(work, tmp_path / "out")
    file = tmp_path / "out" / "output0" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    length = struct.unpack("<Q", raw[:8])[0]
    header = bytes(raw[8 : 8 + length]).replace(b'"x"', b'"?"').replace(b'"y"', b'"x"').replace(b'"?"', b'"y"')
    file.write_bytes(raw[:8] + header + raw[8 + length :])
    check(work, file, "tensor '[xy]'")


# ---- samples


def test_every_tensor_has_a_sample_and_larger_ones_more(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    assert verify(work, work.means[0], file.parent, samples=5).tensors == 5
    report = verify(work, work.means[0], file.parent, samples=8)
    assert report.tensors == 5
    assert 16 + 7 + 1 + 9 + 16 <= report.elements <= 8 * 16


def test_of_more_tensors_than_samples_some_are_drawn_and_the_seed_says_which(tmp_path: Path) -> None:
    work, file = damaged(tmp_path)
    change(file, s=load_file(file)["s"] + 1)
    found = []
    for seed in range(12):
        try:
            assert verify(work, work.means[0], file.parent, samples=2, seed=seed).tensors == 2
            found.append(False)
        except LawaError:
            found.append(True)
    assert set(found) == {True, False}
    assert verify(work, work.means[0], file.parent, samples=0).tensors == 0
