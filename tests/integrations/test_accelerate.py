"""AcceleratedAverager in loops that Accelerate prepared; the whole contract runs over them in tests/contracts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration
from torch import Tensor, nn
from torch.utils.data import DataLoader

from launching import launch
from lawa import EMA, LawaError, Window
from lawa.integrations.accelerate import AcceleratedAverager

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Accelerate's states are the process's."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def data(n: int) -> list[Tensor]:
    return list(torch.randn(n, 4, generator=torch.Generator().manual_seed(1)))


class Job:
    """A model in training on batches of two."""

    def __init__(self, *, accelerator: dict[str, Any] | None = None, scaler: Any = None, **settings: Any) -> None:
        self.accelerator = Accelerator(cpu=True, **(accelerator or {}))
        self.accelerator.scaler = scaler
        torch.manual_seed(0)
        self.plain = nn.Linear(4, 4)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.plain, torch.optim.AdamW(self.plain.parameters(), lr=0.1), DataLoader(data(10), batch_size=2)
        )
        self.averager = AcceleratedAverager(self.accelerator, self.model, self.optimizer, **settings)

    def epoch(self, *, overflows: tuple[int, ...] = ()) -> list[tuple[int, Tensor]]:
        """(t, weights) after every batch."""
        after = []
        for number, batch in enumerate(self.loader, start=1):
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch).square().mean()
                self.accelerator.backward(loss * float("inf") if number in overflows else loss)
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.averager.update()
            after.append((self.averager.step, self.weight()))
        return after

    def weight(self) -> Tensor:
        return self.plain.weight.detach().clone()

    def average(self, name: str | None = None) -> Tensor:
        with self.averager.averaged(name):
            return self.weight()


def test_update_in_every_batch_counts_where_the_optimizer_stepped() -> None:
    job = Job(accelerator={"gradient_accumulation_steps": 2}, mode="evaluate", every=1, window=3)
    before = job.weight()
    after = job.epoch()
    assert [t for t, _ in after] == [0, 1, 1, 2, 3], "5 batches, of which the last one steps too"
    assert torch.equal(after[0][1], before)
    total = torch.zeros_like(before)
    for number in (1, 3, 4):
        total = total + after[number][1]
    assert torch.equal(job.average(), total * torch.tensor(1 / 3))


@pytest.mark.parametrize("window", [1, 2])
def test_a_replacement_waits_for_the_step_that_ends_the_accumulation(window: int) -> None:
    job = Job(accelerator={"gradient_accumulation_steps": 2}, mode="replace", every=1, window=window)
    assert [t for t, _ in job.epoch()] == [0, 1, 1, 2, 3]
    assert job.averager.last_replacement == 3


def test_a_step_that_the_loss_scaler_skipped_counts_and_is_marked() -> None:
    job = Job(scaler=torch.amp.GradScaler("cpu", init_scale=8.0), mode="evaluate", every=1, window=5)
    after = job.epoch(overflows=(3,))
    assert torch.equal(after[2][1], after[1][1])
    assert not torch.equal(after[3][1], after[2][1])
    assert job.averager.steps() == [1, 2, 3, 4, 5]
    assert job.averager.skipped() == [3]


def test_the_optimizers_are_the_ones_that_step() -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    own = [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in model]
    model, *prepared = accelerator.prepare(model, *own)
    averager = AcceleratedAverager(accelerator, model, prepared, mode="replace", every=1, window=1, moments="reset")
    assert averager.optimizers == own
    model(torch.ones(1, 2)).sum().backward()
    for optimizer in prepared:
        optimizer.step()
    assert own[0].state[model[0].weight]["momentum_buffer"].any()
    assert averager.update()
    assert not own[0].state[model[0].weight]["momentum_buffer"].any()


AVERAGES = {"lawa": Window(3, every=1), "ema": EMA(0.5)}


def test_save_state_and_load_state_carry_it(tmp_path: Path) -> None:
    job = Job(mode="evaluate", averages=AVERAGES)
    job.epoch()
    job.accelerator.save_state(str(tmp_path / "state"))
    assert not list((tmp_path / "state").glob("custom_checkpoint*")), "nothing of it is a pickle that may run code"
    want = {name: job.average(name) for name in AVERAGES}
    other = Job(mode="evaluate", averages=AVERAGES)
    other.accelerator.load_state(str(tmp_path / "state"))
    assert other.averager.step == 5
    assert {name: other.average(name).tolist() for name in AVERAGES} == {
        name: one.tolist() for name, one in want.items()
    }
    job.epoch()
    other.epoch()
    assert other.averager.steps("lawa") == [8, 9, 10]
    assert all(torch.equal(job.average(name), other.average(name)) for name in AVERAGES)


def test_a_state_that_the_limit_deletes_takes_nothing_from_the_next(tmp_path: Path) -> None:
    naming = ProjectConfiguration(project_dir=str(tmp_path), automatic_checkpoint_naming=True, total_limit=1)
    job = Job(accelerator={"project_config": naming}, mode="evaluate", every=2, window=3)
    for _ in range(2):
        job.epoch()
        job.accelerator.save_state()
        naming.iteration += 1
    (left,) = (tmp_path / "checkpoints").iterdir()
    assert job.averager.steps() == [6, 8, 10]
    other = Job(mode="evaluate", every=2, window=3)
    other.accelerator.load_state(str(left))
    assert other.averager.steps() == [6, 8, 10]
    assert torch.equal(other.average(), job.average())


def test_a_state_from_before_it_was_there_is_loaded_with_a_word_and_the_averages_start_anew(tmp_path: Path) -> None:
    job = Job(mode="evaluate", every=1, window=2)
    job.epoch()
    job.accelerator.save_state(str(tmp_path))
    shutil.rmtree(tmp_path / "lawa")
    with pytest.warns(
        UserWarning, match=r"has no state of the averager \(lawa/\): its averages start anew at update 0"
    ):
        job.accelerator.load_state(str(tmp_path))
    assert (job.averager.step, job.averager.steps()) == (0, [])
    job.averager.update(step=3)
    assert job.averager.steps() == [3]


def test_an_accelerator_has_one_of_them_until_it_is_closed(tmp_path: Path) -> None:
    job = Job(mode="evaluate", every=1, window=2)
    first = job.averager

    def another() -> AcceleratedAverager:
        return AcceleratedAverager(job.accelerator, job.model, job.optimizer, mode="evaluate", every=1, window=2)

    with pytest.raises(LawaError, match=r"the accelerator has an averager already, .* close\(\) the first, or"):
        another()
    first.close()
    second = another()
    first.close()
    with pytest.raises(LawaError, match="has an averager already"):
        another()
    second.update()
    job.accelerator.save_state(str(tmp_path))
    assert json.loads((tmp_path / "lawa/averager.json").read_text())["step"] == 1


def test_closed_it_leaves_the_accelerator(tmp_path: Path) -> None:
    job = Job(mode="evaluate", every=1, window=2)
    job.averager.close()
    job.accelerator.save_state(str(tmp_path))
    assert not (tmp_path / "lawa").exists()
    job.accelerator.load_state(str(tmp_path))


def test_attached_it_needs_no_update() -> None:
    job = Job(
        accelerator={"gradient_accumulation_steps": 2}, scaler=torch.amp.GradScaler("cpu", init_scale=8.0),
        mode="evaluate", every=1, window=3,
    )  # fmt: skip
    update, job.averager.update = job.averager.update, lambda: False  # type: ignore[method-assign, assignment]
    job.averager.attach(scaler=job.accelerator.scaler)
    assert [t for t, _ in job.epoch(overflows=(4,))] == [0, 1, 1, 2, 3]
    assert job.averager.skipped() == [2]
    with pytest.raises(LawaError, match="the averager is attached, and counts"):
        update()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it imports its compiler
def test_a_model_that_accelerate_compiles_is_averaged_under_its_own_names() -> None:
    job = Job(accelerator={"dynamo_backend": "eager"}, mode="replace", every=1, window=2)
    after = job.epoch()
    assert sorted(job.averager.state_dict()["snapshots"]["00000005"]) == ["bias", "weight"]
    assert torch.equal(job.average(), job.average())
    x = torch.ones(1, 4)
    assert torch.equal(job.model(x), job.plain(x))
    assert job.averager.last_replacement == 5
    assert not torch.equal(after[-1][1], after[0][1])


def test_without_accelerate_the_way_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "lawa.integrations.accelerate")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(LawaError, match=r"pip install 'latest-weight-averaging\[accelerate\]'"):
        import lawa.integrations.accelerate  # noqa: F401


def losses(said: str) -> list[float]:
    (line,) = [line for line in said.splitlines() if line.startswith("update ")]
    return [float(word.rstrip(",")) for word in line.split() if "." in word]


@pytest.mark.slow
def test_the_example_shows_the_average_at_work(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/accelerate_loop.py")],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plain, averaged = losses(done.stdout)
    assert averaged < plain - 0.02


@pytest.mark.slow
def test_the_example_on_two_processes() -> None:
    plain, averaged = losses(launch(ROOT / "examples/accelerate_loop.py", 2))
    assert averaged < plain - 0.02
