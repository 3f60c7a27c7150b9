"""What averaging costs on one CUDA GPU, and whether it is exact there.

    python benchmarks/gpu.py [--output DIR] [--only stall,tokens]
    python benchmarks/gpu.py --device cpu     the same code on tiny sizes, without streams: does it run?

Writes DIR/gpu.json and DIR/gpu.md after every section, and exits with 1 if a check does not hold:

    stall    how long a capture holds up the compute stream, with snapshots on the device and on the host
    memory   device bytes beyond those of training
    tearing  a host snapshot is whole although the next step follows at once; and the test of it can fail
    tokens   time a training update of GPT-2 small, bf16 autocast, with averages of several kinds and without
    average  the average of ten snapshots against memory bandwidth, by block size
    bits     the same snapshots have the same average on CPU and GPU

Meant to take some five minutes and 20 GB of GPU memory on an H100. Sections are independent (--only).
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import average
import gpu_exact
from gpu_device import DRY, FULL, Device, Sizes
from gpu_stall import WINDOW, filled, stall
from lawa import EMA, WeightAverager
from lawa.averaging.cost import readable
from lawa.records import write_json
from measure import (
    ROOT,
    Check,
    Found,
    Record,
    Spread,
    alternate,
    describe,
    finish,
    machine,
    over,
    table,
)

# ---- memory


def memory(device: Device, sizes: Sizes) -> list[Found]:
    """Bytes of a full window, and the peak while an average is in place."""
    found: list[Found] = []
    for placement in ("device", "host"):
        found += _memory(device, sizes, placement)
        device.clear()
    return found


def _memory(device: Device, sizes: Sizes, placement: str) -> list[Found]:
    model = sizes.model().to(device.torch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before, pinned_before = device.allocated(), device.pinned()
    averager = filled(model, optimizer, placement=placement, every=1, window=WINDOW)
    extra, pinned, cost = device.allocated() - before, device.pinned(), averager.cost()
    with device.peak() as most, averager.averaged():
        pass
    found: list[Found] = []
    if device.cuda and placement == "device":
        found.append(_bytes("gpu/memory/device", f"a full window of {WINDOW} on the device", extra, cost.device))
    elif device.cuda:
        claim = f"snapshots on the host: a full window of {WINDOW} takes no device memory"
        found.append(Check(name="gpu/memory/none", claim=claim, held=extra == 0, detail=readable(extra)))
        if pinned is not None and pinned_before is not None:
            question = f"a full window of {WINDOW} on the host, pinned"  # torch rounds up to powers of two
            found.append(_bytes("gpu/memory/host", question, pinned - pinned_before, cost.host))
    question = f"snapshots on the {placement}: peak while an average is in place, on the device"
    return [*found, _bytes(f"gpu/memory/swap/{placement}", question, most[0] if device.cuda else cost.swap, cost.swap)]


def _bytes(name: str, question: str, measured: int, estimated: int) -> Record:
    return Record(
        name=name,
        question=f"{question}: bytes / what lawa.estimate says",
        ratio=Spread.of([measured / estimated]),
        target=1.1,
        n=1,
        parts={"measured, bytes": Spread.of([measured]), "estimated, bytes": Spread.of([estimated])},
        note=f"{readable(measured)} / {readable(estimated)}",
    )


# ---- tokens


def tokens(device: Device, sizes: Sizes) -> list[Found]:
    """Time a training update, with each kind of averaging and with none: one model, by turns."""
    model = sizes.model().to(device.torch).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    vocabulary = model.config.vocab_size
    data = torch.randint(vocabulary, (8, sizes.batch, sizes.context + 1), device=device.torch)

    def update(number: int) -> None:
        batch = data[number % len(data)]
        with torch.autocast(device.torch.type, torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
            loss = cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def turn(updates: int, averager: WeightAverager | None) -> Callable[[], float]:
        def updating() -> float:
            def train() -> None:
                for number in range(updates):
                    update(number)
                    if averager is not None:
                        averager.update()

            return device.seconds(train) / updates

        return updating

    contenders = {"none": turn(sizes.short, None)}
    asked: dict[str, tuple[str, float | None]] = {}
    for every, updates, target in ((100, sizes.long, 1.01), (10, sizes.short, None)):
        for placement in ("device", "host"):
            averager = filled(model, optimizer, placement=placement, every=every, window=WINDOW)
            contenders[f"{placement}-{every}"] = turn(updates, averager)
            asked[f"{placement}-{every}"] = (f"a window every {every} updates, snapshots on the {placement}", target)
    contenders["ema-1"] = turn(sizes.short, filled(model, optimizer, averages={"ema": EMA(0.999)}))
    asked["ema-1"] = ("an EMA every update", None)
    update(0)
    seconds = alternate(contenders, rounds=sizes.rounds, warmup=1)
    count = sizes.batch * sizes.context
    bare = Spread.of(seconds["none"])
    shape = f"{sizes.name}, bf16 autocast, {sizes.batch} × {sizes.context} tokens"
    return [
        Record(
            name=f"gpu/tokens/{name}",
            question=f"{shape}: an update with {what} / without averaging",
            ratio=over(seconds[name], seconds["none"]),
            target=target,
            n=sizes.rounds,
            parts={name: Spread.of(seconds[name]), "none": bare},
            note=f"{count / Spread.of(seconds[name]).median:,.0f} and {count / bare.median:,.0f} tokens/s",
        )
        for name, (what, target) in asked.items()
    ]


# ---- all of it


def sections(device: Device, sizes: Sizes) -> dict[str, Callable[[], list[Found]]]:
    def averages() -> list[Found]:
        found: list[Found] = []
        for dtype in (torch.float32, torch.bfloat16):
            found += average.arithmetic(
                "gpu/average", sizes.elements, dtype, rounds=sizes.rounds, device=device.torch, sizes=sizes.blocks,
                synchronize=device.synchronize,
            )  # fmt: skip
            device.clear()
        return found

    return {
        "stall": lambda: stall(device, sizes),
        "memory": lambda: memory(device, sizes),
        "tearing": lambda: gpu_exact.tearing(device, elements=sizes.checked),
        "bits": lambda: gpu_exact.bits(device, elements=min(sizes.checked, 1 << 20) + 3),
        "tokens": lambda: tokens(device, sizes),
        "average": averages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, metavar="DIR", default=ROOT / "benchmarks" / "results")
    parser.add_argument(
        "--only", metavar="SECTION,…", help="some sections: stall, memory, tearing, bits, tokens, average"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run on tiny sizes")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py needs a CUDA GPU, and torch sees none here; --device cpu is a dry run of it.")
    device = Device(given.device)
    sizes = FULL if device.cuda else DRY
    chosen = sections(device, sizes)
    if given.only:
        unknown = [name for name in given.only.split(",") if name not in chosen]
        if unknown:
            parser.error(f"--only {','.join(unknown)}: no such section; there are {', '.join(chosen)}")
        chosen = {name: chosen[name] for name in given.only.split(",")}
    given.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    found: list[Found] = []
    described: dict[str, Any] = {}
    for name, section in chosen.items():
        began = time.perf_counter()
        try:
            found += section()
        except Exception as error:  # the other sections are worth having
            traceback.print_exc()
            detail = f"{type(error).__name__}: {error}".splitlines()[0]
            found.append(Check(name=f"gpu/{name}", claim=f"the section {name} runs", held=False, detail=detail))
        device.clear()
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if not device.cuda:
            found = [replace(one, target=None) if isinstance(one, Record) else one for one in found]
        about = {"device": device.name, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}
        described = describe("gpu", found, quick=not device.cuda, **about)
        write_json(given.output / "gpu.json", described)
        (given.output / "gpu.md").write_text(f"{table(found)}\n\n{machine(described)}\n", encoding="utf-8")
    finish(described, given.output / "gpu.json")


if __name__ == "__main__":
    main()
