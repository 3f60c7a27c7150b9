"""What every rank does in test_zero.py: real DeepSpeed engines on gloo processes.

    python -m torch.distributed.run --standalone --nproc-per-node 2 tests/averaging/zero_checks.py FOLDER CHECK…

A check that fails raises on its rank, and the launch fails. The twin trains the same model in another engine, and reads
and writes the masters through DeepSpeed's own safe_get_full_fp32_param and safe_set_full_fp32_param.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

import twins
from averaging.sharded import Model, NoCollectives, no_collectives
from contracts.adapters.deepspeed import assembled, deepspeed, engine_of, whole
from contracts.contract import Weights, same
from launching import run_to_the_end
from lawa import EMA, RunningMean, WeightAverager, Window
from lawa.errors import LawaError

LAST = 6
LAYOUTS: dict[str, dict[str, Any]] = {  # whose masters DeepSpeed itself does not give by name
    "ZeRO-2, round robin": {"stage": 2, "zero": {"round_robin_gradients": True}},
    "ZeRO-1, aligned": {"stage": 1, "zero": {"parameter_alignment": True}},
}
BF16 = {"bf16": {"enabled": True}}
WAYS: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2": {"stage": 2},
    "ZeRO-3": {"stage": 3, "zero": {"stage3_param_persistence_threshold": 5, "stage3_prefetch_bucket_size": 60}},
    "ZeRO-3 in sub-groups": {"stage": 3, "zero": {"sub_group_size": 20, "stage3_param_persistence_threshold": 0}},
    "bf16 ZeRO-1": {"stage": 1, **BF16},
    "bf16 ZeRO-1, fp32 gradients": {"stage": 1, **BF16, "data_types": {"grad_accum_dtype": "fp32"}},
    "bf16 ZeRO-2": {"stage": 2, **BF16},
    "bf16 ZeRO-3": {"stage": 3, **BF16, "zero": {"stage3_param_persistence_threshold": 5}},
    "offloaded ZeRO-2": {"stage": 2, **BF16, "zero": {"offload_optimizer": {"device": "cpu"}}},
    "offloaded ZeRO-3": {
        "stage": 3, **BF16, "zero": {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}},
    },
    "bf16 without ZeRO": {"stage": 0, **BF16},
}  # fmt: skip


def engine(way: str, **more: Any) -> Any:
    settings = {**WAYS, **LAYOUTS}[way] | more
    return engine_of(Model(), settings.pop("stage"), **settings)


def step(engine: Any, t: int) -> None:
    """Each rank has tokens of its own."""
    tokens = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(100 * dist.get_rank() + t))
    logits = engine(tokens[:, :-1]).float()
    engine.backward(nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
    engine.step()


def tensors_of(averager: WeightAverager) -> Any:
    return averager._tensors


def named(engine: Any) -> dict[str, Any]:
    return {name: one for name, one in engine.module.named_parameters() if one.requires_grad}


def masters(engine: Any) -> Weights:
    """The whole fp32 masters of what is trained, as DeepSpeed gives them (collective)."""
    zero, get = engine.optimizer, cast(Any, deepspeed.utils.safe_get_full_fp32_param)
    if hasattr(zero, "fp32_groups"):
        of = dict(zip(map(id, zero.fp16_groups[0]), zero.fp32_groups[0], strict=True))
        return {name: twins.array(of[id(one)]) for name, one in named(engine).items()}
    return {name: twins.array(get(one)).reshape(shape_of(one)) for name, one in named(engine).items()}


def shape_of(parameter: Any) -> Any:
    return getattr(parameter, "ds_shape", parameter.shape)


def set_masters(engine: Any, values: Weights) -> None:
    """Masters, and the parameters as what they round to; without our code and without the optimizer's step."""
    zero, rank = engine.optimizer, dist.get_rank()
    own = zero.fp32_groups[0] if hasattr(zero, "fp32_groups") else []
    of = dict(zip(map(id, zero.fp16_groups[0] if own else []), own, strict=True))
    for name, one in named(engine).items():
        value = torch.from_numpy(values[name])
        if hasattr(one, "ds_id"):  # safe_set_full_fp32_param fails where the ranks' shares are uneven
            share = one.ds_tensor.numel()
            padded = nn.functional.pad(value.flatten(), (0, dist.get_world_size() * share - value.numel()))
            deepspeed.utils.safe_set_local_fp32_param(one, padded[rank * share :][:share])
        elif own:
            of[id(one)].data.copy_(value)
        else:
            deepspeed.utils.safe_set_full_fp32_param(one, value)
        with deepspeed.zero.GatheredParameters([one], modifier_rank=0), torch.no_grad():
            if one.numel():
                one.copy_(value)


def rounded(values: Weights, like: Weights, dtype: torch.dtype) -> Weights:
    """What the model has when its masters are `values`; frozen ones as in `like`."""
    return {name: twins.rounded(values[name], dtype) if name in values else like[name] for name in like}


def mean(held: list[Weights]) -> Weights:
    return {name: twins.uniform([one[name] for one in held]) for name in held[0]}


# ---- the checks


def fragments_are_named_after_their_parameters(way: str) -> None:
    run = engine(way)
    averager = WeightAverager(run, mode="evaluate", every=1, window=1)
    step(run, 1)
    now = whole(run)
    own = {entry.name: entry.current() for entry in tensors_of(averager).trained}
    seen = {name: flat.reshape(now[name].shape) for name, flat in assembled(own).items()}
    assert same(rounded(seen, now, next(iter(named(run).values())).dtype), now)
    assert set(seen) == set(named(run))


def replacements_are_the_twins(way: str) -> None:
    """In fp32 on the masters, by every rank, at updates 4 and 6; the next steps start from them."""
    run, twin = engine(way), engine(way)
    averager = WeightAverager(run, mode="replace", every=2, window=2)
    dtype = next(iter(named(run).values())).dtype
    held: list[Weights] = []
    for t in range(1, LAST + 1):
        step(run, t)
        step(twin, t)
        averager.update(run.global_steps)
        if t % 2 == 0:
            held.append(masters(twin))
            if len(held) >= 2:
                set_masters(twin, mean(held[-2:]))
        assert same(masters(run), masters(twin)), (way, t)
        assert same(whole(run), rounded(masters(twin), whole(run), dtype)), (way, t)
        assert same(whole(run), whole(twin)), (way, t)
    assert averager.last_replacement == LAST
    assert run.module.head.weight is run.module.embed.weight


def looking_changes_nothing_and_needs_no_gather(way: str) -> None:
    """Captures and averages without a collective; a parameter that is gathered at the moment is let go first."""
    run = engine(way)
    kinds = {"w": Window(3, every=1), "e": EMA(0.7), "m": RunningMean(start=2)}
    averager = WeightAverager(run, mode="evaluate", averages=kinds)
    held: list[Weights] = []
    for t in range(1, LAST):
        step(run, t)
        with no_collectives():
            averager.update()
            averager._average("w")
        held.append(masters(run))
    dtype = next(iter(named(run).values())).dtype
    want = {
        "w": mean(held[-3:]),
        "e": {name: twins.ema([one[name] for one in held], 0.7) for name in held[0]},
        "m": mean(held[1:]),
    }
    before = whole(run)
    tokens = torch.zeros(2, 5, dtype=torch.long)
    for name, average in want.items():
        with torch.no_grad():
            own = run(tokens)  # leaves gathered parameters behind
        if run.zero_optimization_partition_weights():
            list(named(run).values())[1].all_gather()
        with averager.averaged(name):
            assert all(one.numel() for one in getattr(run.optimizer, "persistent_parameters", [])), "they stay gathered"
            assert same(masters(run), average), (way, name)
            assert same(whole(run), rounded(average, before, dtype)), (way, name)
            with torch.no_grad():
                assert not torch.equal(run(tokens), own)
        with torch.no_grad():
            assert torch.equal(run(tokens), own), (way, name)
        assert same(whole(run), before)
        assert same(masters(run), held[-1])


def the_counter_counts() -> None:
    run = engine("ZeRO-3")
    step(run, 1)
    averager = WeightAverager(run, mode="evaluate", every=1, window=1)
    averager.update()
    with NoCollectives() as counter, averager.averaged():
        pass
    assert any("allgather" in name for name in counter.seen), counter.seen


def moments_follow_their_policy(way: str) -> None:
    def state(one: Any, moment: str) -> np.ndarray:
        if hasattr(run.optimizer, "fp32_groups"):  # DeepSpeed does not give it
            index = next(i for i, other in enumerate(run.optimizer.fp16_groups[0]) if other is one)
            return twins.array(run.optimizer.optimizer.state[run.optimizer.fp32_groups[0][index]][moment]).ravel()
        return twins.array(cast(Any, deepspeed.utils.safe_get_full_optimizer_state(one, moment))).ravel()

    for policy in ("keep", "reset", "average"):
        run = engine(way)
        averager = WeightAverager(run, run.optimizer, mode="replace", every=1, window=2, moments=policy)
        seen = []
        for t in (1, 2):
            step(run, t)
            seen.append({(moment, name): state(one, moment)
                         for moment in ("exp_avg", "exp_avg_sq") for name, one in named(run).items()})  # fmt: skip
            counted = steps_of(run)
            averager.update()
        for (moment, name), latest in seen[1].items():
            own = state(named(run)[name], moment)
            want = {"keep": latest, "reset": np.zeros_like(latest),
                    "average": twins.uniform([one[moment, name] for one in seen])}[policy]  # fmt: skip
            assert twins.same_bits(own, want), (way, policy, moment, name)
        assert steps_of(run) == ({0} if policy == "reset" else counted), (way, policy)
        if policy == "average":
            names = set(assembled(averager.state_dict()["snapshots"]["00000002"]))
            assert names == set(named(run)) | {f"{moment}.{name}" for moment, name in seen[0]}


def steps_of(engine: Any) -> set[int]:
    return {int(one["step"]) for one in engine.optimizer.optimizer.state.values() if one}


def padding_and_frozen_parameters_are_left_out() -> None:
    for way in ("ZeRO-2", "ZeRO-3"):
        run = engine(way)
        averager = WeightAverager(run, mode="evaluate", every=1, window=1)
        step(run, 1)
        own = tensors_of(averager).trained
        trained = sum(getattr(one, "ds_numel", one.numel()) for one in named(run).values())
        counted = torch.tensor(sum(entry.numel for entry in own))
        dist.all_reduce(counted)
        assert counted == trained
        assert not any("scale" in entry.name for entry in own)
        flats = tensors_of(averager)._masters
        inside = [flat.detach().clone() for flat in flats]
        for flat in flats:
            flat.detach().fill_(float("nan"))
        for fragment in tensors_of(averager).fragments.values():
            index = next(i for i, flat in enumerate(flats) if flat is fragment.master)
            fragment.of(fragment.master).copy_(fragment.of(inside[index]))
        padded = torch.tensor(sum(int(flat.isnan().sum()) for flat in flats))
        dist.all_reduce(padded)
        assert padded > 0, "the test has padding"
        averager.update()
        assert averager.is_finite()


def a_rank_with_nothing_but_padding_takes_part() -> None:
    model = nn.Linear(1, 1, bias=False)
    for stage in (2, 3):
        run = engine_of(model, stage)
        averager = WeightAverager(run, mode="replace", every=1, window=1)
        run.backward(run(torch.ones(1, 1)).sum())
        run.step()
        assert averager.update()
        (entry,) = tensors_of(averager).trained
        assert entry.name == f"weight[0:{1 - dist.get_rank()}]"
        model = nn.Linear(1, 1, bias=False)


def one_bad_rank_and_all_skip() -> None:
    run = engine("ZeRO-2")
    averager = WeightAverager(run, mode="replace", every=1, window=2)
    step(run, 1)
    averager.update()
    step(run, 2)
    if dist.get_rank() == 1:
        tensors_of(averager).trained[-1].current()[0] = float("inf")
    assert not averager.update()
    assert averager.last_replacement == 2


def wrapped_as_accelerate_wraps_it() -> None:
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedOptimizerWrapper

    Accelerator(cpu=True)  # its wrapper asks for one
    run = engine("ZeRO-3")
    averager = WeightAverager(run.module, DeepSpeedOptimizerWrapper(run.optimizer), mode="evaluate", every=1, window=1)
    step(run, 1)
    averager.update()
    assert set(assembled(averager.state_dict()["snapshots"]["00000001"])) == set(named(run))


def what_is_unsupported_is_refused() -> None:
    def refused(model: Any, match: str, **settings: Any) -> None:
        with pytest.raises(LawaError, match=match):
            WeightAverager(model, mode="evaluate", every=1, window=1, **settings)

    for way in ("ZeRO-2", "ZeRO-3"):
        run = engine(way)
        refused(run.module, "parameter '.*' is DeepSpeed's.*pass the engine")
        refused(run, "replicas='split' has no use with DeepSpeed", replicas="split")
        averager = WeightAverager(run, mode="evaluate", every=1, window=1)
        run.optimizer.offloaded_states.add("a kind of state")
        with pytest.raises(LawaError, match=r"call engine\.reload_states\(\) before"):
            averager.update()
        run.optimizer.offloaded_states.clear()
        for attribute, match in (
            ("swap_optimizer", "on NVMe"),
            ("params_in_nvme_and_cpu", "NVMe"),
            ("zenflow", "behind"),
        ):
            was = getattr(run.optimizer, attribute, False)
            setattr(run.optimizer, attribute, True)
            refused(run, match)
            setattr(run.optimizer, attribute, was)
    own = dist.new_group([0]), dist.new_group([1])
    run.optimizer.sub_group_process_groups = [own[dist.get_rank()]]
    refused(run, "partitions among 1 of 2 ranks")
    model = Model()
    run = engine_of(model, 2, torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(LawaError, match="moments='average' needs Adam's exp_avg and exp_avg_sq, which SGD does not"):
        WeightAverager(run, run.optimizer, mode="replace", every=1, window=1, moments="average")


CHECKS: dict[str, Any] = {
    check.__name__: check
    for check in (
        the_counter_counts,
        padding_and_frozen_parameters_are_left_out,
        a_rank_with_nothing_but_padding_takes_part,
        one_bad_rank_and_all_skip,
        wrapped_as_accelerate_wraps_it,
        what_is_unsupported_is_refused,
    )
}
OF_A_WAY: dict[str, Any] = {
    check.__name__: check
    for check in (
        fragments_are_named_after_their_parameters,
        replacements_are_the_twins,
        looking_changes_nothing_and_needs_no_gather,
        moments_follow_their_policy,
    )
}


def main() -> None:
    folder, *names = sys.argv[1:]
    dist.init_process_group("gloo")
    for name in names:
        check, _, way = name.partition(":")
        if way:
            OF_A_WAY[check](way)
        else:
            own = CHECKS[check]
            own(*[Path(folder)] * len(inspect.signature(own).parameters))
        os.write(sys.stdout.fileno(), f"rank {dist.get_rank()}: {name}\n".encode())  # whole, between other ranks'
    dist.barrier()


if __name__ == "__main__":
    run_to_the_end(main)
