"""One run on 1, 2 and 4 processes, as DDP and sharded (FSDP2): launched.py is what each of them does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from lawa import records
from lawa.checkpoints.find import step_directories, step_directory
from lawa.offline.average import average
from lawa.pretrain.checkpoint import sharded
from lawa.pretrain.checkpoint.position import State
from lawa.settings import merge
from twins import same_bits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized"),
]

HERE = Path(__file__).parent
FSDP2 = {"training": {"sharding": "fsdp2"}}
NO_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
GPT2 = {
    "model": {
        "architecture": "gpt2",
        "overrides": {
            "hidden_size": 16,
            "n_layer": 2,
            "n_head": 2,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    }
}
DROPOUT = {"model": {"overrides": {"hidden_dropout": 0.2, "attention_dropout": 0.2}}}
ACCUMULATED = {"training": {"micro_batch": 1}}
FP16 = {"training": {"precision": "fp16", "loss_scale": 2.0**22, "loss_scale_hysteresis": 1}}
STOP, OVERFLOW = 7, 10  # no multiples of what is saved; a capture


def launch(ranks: int, plan: Path, steps: Sequence[dict[str, Any]]) -> None:
    plan.write_text(json.dumps(steps))
    torchrun = [
        "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), str(HERE / "launched.py"), str(plan)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class Runs:
    """The runs of this file, by "NAME.RANKS"."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self.settings = settings

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def start(self, name: str, *sections: dict[str, Any], **more: Any) -> dict[str, Any]:
        settings = self.settings
        for section in sections:
            settings = {**settings, **section} if section is GPT2 else merge(settings, section)
        return {"run": str(self[name]), "settings": settings, **more}

    def resume(self, name: str, *, copy_of: str | None = None, **more: Any) -> dict[str, Any]:
        if copy_of is not None:
            shutil.copytree(self[copy_of], self[name])
        return {"run": str(self[name]), **more}

    def ended(self, name: str, ranks: int) -> list[dict[str, Any]]:
        """How it ended on each rank, and which updates were skipped there."""
        return [json.loads(Path(f"{self[name]}.{rank}.json").read_text()) for rank in range(ranks)]


@pytest.fixture(scope="module")
def ran(settings, tmp_path_factory):
    """Six launches, each of many runs: what takes time is to import torch in every process."""
    sections = {
        "training": {"batch": 8, "log_every": 1, "eps": 1e-3},  # else Adam makes much of a zero gradient's rounding
        "averaging": {"mode": "replace", "replace_with": "lawa"},
        "checkpoints": {"every": 4},
    }
    runs = Runs(tmp_path_factory.mktemp("ranks"), merge(settings, sections))
    for ranks in (1, 2, 4):
        steps = [
            runs.start(f"ddp.{ranks}"),
            runs.start(f"fsdp2.{ranks}", FSDP2),
            runs.start(f"accumulated-ddp.{ranks}", ACCUMULATED),
            runs.start(f"accumulated-fsdp2.{ranks}", ACCUMULATED, FSDP2),
            runs.start(f"gpt2-fsdp2.{ranks}", GPT2, FSDP2),
        ]
        if ranks == 1:
            steps.append(runs.start("gpt2-ddp.1", GPT2))
        if ranks <= 2:
            steps += [
                runs.start(f"fp16-ddp.{ranks}", FP16, overflow=OVERFLOW),
                runs.start(f"fp16-fsdp2.{ranks}", FP16, FSDP2, overflow=OVERFLOW),
            ]
        if ranks == 2:
            disk = {"averaging": {"placement": "disk"}, "checkpoints": {"every": 2, "keep": 1}}
            steps += [
                runs.start("disk-fsdp2.2", disk, FSDP2),
                runs.start("dropout-ddp.2", DROPOUT),
                runs.start("dropout-fsdp2.2", DROPOUT, FSDP2),
                runs.start("stopped-dropout-ddp.2", DROPOUT, stop=STOP),
                runs.start("stopped-dropout-fsdp2.2", DROPOUT, FSDP2, stop=STOP),
                runs.start("stopped-fp16-fsdp2.2", FP16, FSDP2, stop=STOP),
                runs.start("stopped-disk-fsdp2.2", disk, FSDP2, stop=6),
                runs.start("stopped-fsdp2.2", FSDP2, stop=STOP),
            ]
        launch(ranks, runs["plan.json"], steps)
    again = [f"stopped-{name}.2" for name in ("dropout-ddp", "dropout-fsdp2", "fp16-fsdp2", "disk-fsdp2")]
    for name in (*again, "stopped-fsdp2.2"):
        assert [ended["how"] for ended in runs.ended(name, 2)] == ["stopped"] * 2, "one was told, and all stopped"
    launch(2, runs["plan.json"], [runs.resume(name, overflow=OVERFLOW) for name in again])
    launch(4, runs["plan.json"], [runs.resume("to.4", copy_of="stopped-fsdp2.2")])
    unsharded = {"training": {"sharding": "none"}}
    alone = [
        runs.resume("to-ddp.1", copy_of="stopped-fsdp2.2", changed=unsharded),
        runs.resume("to.1", copy_of="stopped-fsdp2.2"),
    ]
    launch(1, runs["plan.json"], alone)
    return runs


def weights(directory: Path) -> dict[str, Tensor]:
    """By the model's names, of either format."""
    if not (directory / sharded.WEIGHTS).exists():
        return load_file(directory / "model.safetensors")
    exported = directory.with_name(f"{directory.name}.exported")
    if not exported.exists():
        average(directory, output=exported)
    return load_file(exported / "model.safetensors")


def published(run: Path) -> dict[str, dict[str, Tensor]]:
    """{what: weights} of what a run leaves behind: the final model, checkpoints and averages of updates 8 and 12."""
    parents = {name: run / "averages" / name for name in ("lawa", "ema")} | {"checkpoint": run / "checkpoints"}
    found = {f"{name} {t}": step_directory(parent, t) for name, parent in parents.items() for t in (8, 12)}
    return {what: weights(directory) for what, directory in {**found, "final": run / "final"}.items()}


def assert_same_bits(left: Path, right: Path) -> None:
    mine, other = published(left), published(right)
    for what, expected in other.items():
        assert mine[what].keys() == expected.keys()
        for name, tensor in expected.items():
            assert same_bits(mine[what][name], tensor), (what, name)
    assert told(left) == told(right)


def assert_within_rounding(left: Path, right: Path, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    mine, other = published(left), published(right)
    for what, expected in other.items():
        torch.testing.assert_close(mine[what], expected, rtol=rtol, atol=atol, msg=lambda text, what=what: what + text)
    losses, expected = told(left), told(right)
    assert losses.keys() == expected.keys()
    for what, loss in expected.items():
        assert losses[what] == pytest.approx(loss, rel=rtol), what


def told(run: Path) -> dict[tuple[Any, ...], Any]:
    """{(kind, update, what): loss} of metrics.jsonl."""
    found = {}
    for record in records.read(run / "metrics.jsonl"):
        losses = {"train": "loss", "replacement": "loss", "evaluation": "losses"}.get(record["kind"])
        if losses is not None:
            value = record[losses]
            for name, loss in (value if isinstance(value, dict) else {"": value}).items():
                found[record["kind"], record["update"], name] = loss or 0.0  # None: replaced, and not evaluated
    return found


def sequences(ran: Runs, name: str, ranks: int) -> dict[int, np.ndarray]:
    """{update: the global batch}, put together from what the ranks read."""
    read = [np.load(f"{ran[name]}.{rank}.npz") for rank in range(ranks)]
    return {int(t): np.concatenate([one[t] for one in read]) for t in read[0].files}


def assert_same_batches(mine: dict[int, np.ndarray], other: dict[int, np.ndarray], updates: range) -> None:
    assert list(mine) == list(updates)
    for t in updates:
        assert np.array_equal(mine[t], other[t]), t


KINDS = ("ddp", "fsdp2", "accumulated-ddp", "accumulated-fsdp2", "gpt2-fsdp2")


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_processes_reads_the_same_batches_and_agrees_within_rounding(ran, kind, ranks):
    reference = "gpt2-ddp.1" if kind.startswith("gpt2") else "ddp.1"
    assert_same_batches(sequences(ran, f"{kind}.{ranks}", ranks), sequences(ran, reference, 1), range(1, 13))
    assert_within_rounding(ran[f"{kind}.{ranks}"], ran[reference])


def test_that_agreement_can_fail(ran):
    with pytest.raises(AssertionError):
        assert_within_rounding(ran["dropout-ddp.2"], ran["ddp.2"])


def test_ranks_share_a_batch_and_none_reads_it_twice(ran):
    read = [np.load(f"{ran['fsdp2.4']}.{rank}.npz")["5"] for rank in range(4)]
    assert [part.shape for part in read] == [(2, 17)] * 4
    assert len({row.tobytes() for part in read for row in part}) == 8


def test_gpt2s_tied_weights_are_one_tensor_wherever_it_is_sharded(ran):
    for directory in (ran["gpt2-fsdp2.4"] / "final", step_directory(ran["gpt2-fsdp2.4"] / "averages" / "lawa", 12)):
        assert "lm_head.weight" not in weights(directory)
    model = AutoModelForCausalLM.from_pretrained(ran["gpt2-fsdp2.4"] / "final")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", ["fp16-ddp", "fp16-fsdp2"])
def test_an_overflow_is_skipped_by_all_ranks_together_and_its_capture_marked(ran, kind, ranks):
    name = f"{kind}.{ranks}"
    skipped = [ended["skipped"] for ended in ran.ended(name, ranks)]
    assert skipped == [skipped[0]] * ranks
    assert skipped[0][:2] == [1, 2]  # the first scale is far too large
    assert 7 not in skipped[0]
    assert OVERFLOW in skipped[0]
    train = {one["update"]: one for one in records.read(ran[name] / "metrics.jsonl") if one["kind"] == "train"}
    assert train[OVERFLOW]["grad_norm"] is None
    assert train[OVERFLOW]["loss_scale"] == train[OVERFLOW - 1]["loss_scale"] / 2
    state = State.read(step_directory(ran[name] / "checkpoints", 12) / "training")
    assert state.averager is not None
    assert json.loads(state.averager)["skipped"] == [OVERFLOW]
    assert state.windows == {"lawa": [8, OVERFLOW, 12]}


@pytest.mark.parametrize("ranks", [1, 2])
def test_fp16_is_the_same_sharded(ran, ranks):
    assert_within_rounding(ran[f"fp16-fsdp2.{ranks}"], ran[f"fp16-ddp.{ranks}"], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", ["dropout-ddp", "dropout-fsdp2", "fp16-fsdp2", "disk-fsdp2"])
def test_gone_on_with_on_as_many_ranks_a_run_has_the_bits_of_one_never_interrupted(ran, kind):
    """Dropout draws the same again; before the stop of the fp16 run, every update was skipped but one or none."""
    assert_same_bits(ran[f"stopped-{kind}.2"], ran[f"{kind}.2"])


@pytest.mark.parametrize("ranks", [1, 4])
def test_gone_on_with_on_other_ranks_a_run_has_the_same_averages_and_data(ran, ranks):
    """Saved on 2 processes at update STOP, in the middle of a window."""
    run = ran[f"to.{ranks}"]
    rest = range(STOP + 1, 13)
    assert_same_batches(sequences(ran, f"to.{ranks}", ranks), sequences(ran, "fsdp2.2", 2), rest)
    for name in ("lawa", "ema"):
        before = weights(step_directory(ran["stopped-fsdp2.2"] / "averages" / name, STOP))
        with np.load(f"{run}.loaded.{name}.npz") as loaded:
            for key, tensor in before.items():
                own = key if key in loaded else "lm_head.weight"  # transformers' newer name of the head
                assert same_bits(torch.from_numpy(loaded[own]), tensor), (name, key)
    assert_within_rounding(run, ran["fsdp2.2"])
    resumed = json.loads((run / "run.json").read_text())["resumed"]
    assert [(one["update"], one["processes"]) for one in resumed] == [(STOP, ranks)]


def test_windows_on_disk_have_the_bits_of_windows_in_memory(ran):
    left, right = ran["disk-fsdp2.2"], ran["fsdp2.2"]
    assert list(step_directories(left / "checkpoints")) == [6, 8, 10, 12]  # keep=1, and what windows hold at 10 and 12
    assert_same_bits(left, right)


def test_a_sharded_run_is_not_gone_on_with_unsharded(ran):
    (ended,) = ran.ended("to-ddp.1", 1)
    assert ended["how"] == "refused"
    assert "was saved with training.sharding=fsdp2 and cannot be gone on from with none; leave" in ended["sentence"]
    assert list(step_directories(ran["to-ddp.1"] / "checkpoints"))[-1] == STOP


@pytest.mark.parametrize("name", ["fsdp2.4", "ddp.4", "to.4", "to.1", "stopped-disk-fsdp2.2", "stopped-dropout-ddp.2"])
def test_nothing_is_left_over(ran, name):
    assert list(ran[name].rglob("*.partial")) == []
