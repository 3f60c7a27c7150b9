"""What every rank does in test_save_average.py: real processes, gloo, FSDP2 and DDP on a CPU mesh.

python -m torch.distributed.run --standalone --nproc-per-node 2 tests/checkpoints/exported.py FOLDER CHECK…
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from launching import run_to_the_end
from lawa import EMA, LawaError, NonFiniteAverage, WeightAverager, Window
from lawa.averaging.layout import full
from lawa.checkpoints import sharded_files
from lawa.checkpoints.publish import verify
from lawa.checkpoints.save_average import save_average

AVERAGES: dict[str, Any] = {"lawa": Window(2, every=1), "ema": EMA(0.5)}
VOCABULARY = 37  # divided by no number of ranks
CONFIGS: dict[str, PreTrainedConfig] = {
    "gpt2": GPT2Config(
        n_embd=8, n_layer=2, n_head=2, n_positions=16, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1
    ),
    "neox": GPTNeoXConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, vocab_size=VOCABULARY
    ),
    "mixtral": MixtralConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=12,
        num_local_experts=2, vocab_size=VOCABULARY,
    ),
}  # fmt: skip


def made(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[kind])


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trained(model: nn.Module) -> WeightAverager:
    averager = WeightAverager(model, mode="evaluate", averages=AVERAGES)
    for t in (1, 2, 3):
        with torch.no_grad():
            for number, (_, parameter) in enumerate(model.named_parameters()):
                parameter.mul_(1 + 0.1 * t).add_(0.01 * number)  # the same on any number of ranks
        averager.update()
    return averager


def averaged(averager: WeightAverager, name: str) -> dict[str, Tensor]:
    with averager.averaged(name) as model:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        return {key: full(tensor).clone() for key, tensor in inner.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left
    )


def loaded(directory: Path) -> dict[str, Tensor]:
    model, told = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(told.values()), told
    return model.state_dict()


# ---- the checks


def from_pretrained_has_the_bits_of_the_average(folder: Path) -> None:
    """Tied (GPT-2), renamed when saved (NeoX), experts in one tensor (Mixtral); in one file and in several."""
    for kind in CONFIGS:
        averager = trained(sharded(made(kind)))
        before = {name: full(tensor).clone() for name, tensor in averager.model.named_parameters()}
        for name, size in (("lawa", 10**9), ("ema", 2000)):
            place = folder / f"{kind} {name}"
            assert save_average(averager, place, name=name, max_shard_size=size) == place
            assert same(loaded(place), averaged(averager, name)), (kind, name)
            files = sorted(path.name for path in place.glob("*.safetensors*"))
            assert (files == ["model.safetensors"]) == (size == 10**9), files
            if size != 10**9:
                assert files[-1] == "model.safetensors.index.json"
                assert files[0] == f"model-00001-of-{len(files) - 1:05d}.safetensors"
            verify(place)
            assert not [entry for entry in place.iterdir() if entry.is_dir()]
        after = {name: full(tensor) for name, tensor in averager.model.named_parameters()}
        assert same(before, after), "its own weights came back"


def it_is_what_save_pretrained_writes(folder: Path) -> None:
    """The same names, shapes and configuration as from one process with the whole model."""
    for kind in ("gpt2", "neox"):
        averager = trained(sharded(made(kind)))
        save_average(averager, folder / f"{kind} of all", name="lawa")
        if dist.get_rank() == 0:
            with trained(made(kind)).averaged("lawa") as model:
                model.save_pretrained(folder / f"{kind} alone")
            of_all, alone = folder / f"{kind} of all", folder / f"{kind} alone"
            assert same(load_file(of_all / "model.safetensors"), load_file(alone / "model.safetensors"))
            for file in ("config.json", "generation_config.json"):
                assert json.loads((of_all / file).read_text()) == json.loads((alone / file).read_text()), file
        dist.barrier()


def rounded_to_bfloat16(folder: Path) -> None:
    averager = trained(sharded(made("neox")))
    save_average(averager, folder / "rounded", name="lawa", dtype="bfloat16")
    want = {name: tensor.bfloat16() for name, tensor in averaged(averager, "lawa").items()}
    assert same(loaded(folder / "rounded"), want)
    assert AutoConfig.from_pretrained(folder / "rounded").dtype == torch.bfloat16
    made_of = json.loads((folder / "rounded/provenance.json").read_text())
    assert (made_of["dtype"], made_of["rounded"], made_of["snapshots"]) == (["bfloat16"], True, [2, 3])


class Odd(nn.Module):
    """No transformers model: tied, with a scalar, an integer buffer and a parameter that is not sharded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        self.whole = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.tensor([5, 6]))


def any_module_gets_safetensors(folder: Path) -> None:
    model = Odd()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)), ignored_params={
        model.whole.weight, model.whole.bias, model.scale,
    })  # fmt: skip
    averager = trained(model)
    save_average(averager, folder / "odd", name="ema", max_shard_size=50)
    found: dict[str, Tensor] = {}
    for file in (folder / "odd").glob("*.safetensors"):
        found |= load_file(file)
    want = averaged(averager, "ema")
    assert torch.equal(want.pop("head.weight"), want["embed.weight"])
    assert same(found, want)
    assert json.loads((folder / "odd" / sharded_files.INDEX).read_text())["weight_map"].keys() == want.keys()
    assert not (folder / "odd/config.json").exists()


def under_ddp_the_first_rank_writes(folder: Path) -> None:
    averager = trained(nn.parallel.DistributedDataParallel(made("gpt2")))
    save_average(averager, folder / "ddp", name="lawa")
    assert same(loaded(folder / "ddp"), averaged(averager, "lawa"))


def what_fails_on_one_rank_fails_on_all(folder: Path) -> None:
    model = sharded(made("gpt2"))
    averager = trained(model)
    for bad in {0, dist.get_world_size() - 1}:
        original = sharded_files.shutil.rmtree
        if dist.get_rank() == bad:
            sharded_files.shutil.rmtree = lambda *_: (_ for _ in ()).throw(OSError("no space left"))
        with pytest.raises(OSError, match="no space left"):
            sharded_files.write(made_once(folder / f"full {bad}"), dict(model.named_parameters()), 10**9)
        sharded_files.shutil.rmtree = original
    (folder / "taken").mkdir(exist_ok=True)
    dist.barrier()
    with pytest.raises(LawaError, match="exists already"):
        save_average(averager, folder / "taken", name="lawa")
    if dist.get_rank() == 0:
        with torch.no_grad():
            model.transformer.wte.weight.to_local()[0, 0] = float("nan")
    averager.update()
    with pytest.raises(NonFiniteAverage, match="'lawa' is not finite"):
        save_average(averager, folder / "nan", name="lawa")
    dist.barrier()
    assert not (folder / "nan").exists()
    assert not list(folder.glob(".*partial"))


def made_once(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    dist.barrier()
    return directory


def no_rank_has_the_whole_model(folder: Path) -> None:
    """Peak memory while writing, against a model of 96 MB; and that this would be seen."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(96)))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    for layer in model:
        fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    weights = dict(model.named_parameters())
    sharded_files.write(made_once(folder / "warm"), {"0.weight": weights["0.weight"]}, 2**22)
    grown = growth(lambda: sharded_files.write(made_once(folder / "large"), weights, 2**22))
    assert grown < whole / 6, (grown, whole)
    assert growth(lambda: [full(weight) for weight in weights.values()]) > whole / 2
    assert sum(file.stat().st_size for file in (folder / "large").glob("*.safetensors")) > whole


def growth(work: Callable[[], Any]) -> int:
    """By how many bytes resident memory grows at its peak while `work` runs (with MALLOC_MMAP_THRESHOLD_ set low)."""
    peak = before = resident()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.001):
            peak = max(peak, resident())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        kept = work()
        peak = max(peak, resident())
        del kept
    finally:
        over.set()
        watching.join()
    return peak - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


CHECKS = {
    check.__name__: check
    for check in (
        from_pretrained_has_the_bits_of_the_average,
        it_is_what_save_pretrained_writes,
        rounded_to_bfloat16,
        any_module_gets_safetensors,
        under_ddp_the_first_rank_writes,
        what_fails_on_one_rank_fails_on_all,
    )
}
ALONE = {"no_rank_has_the_whole_model": no_rank_has_the_whole_model}


def main() -> None:
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in names:
        check = {**CHECKS, **ALONE}[name]
        check(*[Path(folder)] * len(inspect.signature(check).parameters))
        os.write(sys.stdout.fileno(), f"rank {dist.get_rank()}: {name}\n".encode())
    dist.barrier()


if __name__ == "__main__":
    run_to_the_end(main)
