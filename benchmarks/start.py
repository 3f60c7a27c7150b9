"""How soon a run on ten billion tokens makes its first update, imports left out.

    python benchmarks/start.py [--quick] [--output FILE]

The store is built by the data room of a few made-up documents; then a hole in the file of training tokens makes it
10^10 tokens long: 20 GB by its size, nearly nothing on the disk, and read like any other. In turns, whole processes:
`lawa train` on it until its first update is in metrics.jsonl, the same on the store as it was built, and one until
it has made the driver's imports. None is waited for after that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lawa.checkpoints.publish import MANIFEST, listed, write_manifest
from lawa.data.sources import NAMELESS, TextSource
from lawa.data.store import build, open_store
from lawa.records import read
from measure import Check, Found, Record, Spread, alternate, number, over, run
from texts import small_corpus

TARGET_SECONDS = 5.0
TOKENS = 10_000_000_000
PATIENCE = 300.0  # seconds after which a run that has made no update is given up
IMPORTS = """
import accelerate, lawa.pretrain.run
import transformers.models.gpt_neox.modeling_gpt_neox
print("imported", flush=True)
"""
SETTINGS = """
model: {preset: pythia-14m}
data: {context: 128}
training: {updates: 1000, batch: 8, lr: 1.0e-3, log_every: 1, device: cpu}
averaging: {window: 10, every: 20}
evaluation: {every: 1000}
checkpoints: {every: 1000}
"""


def measure(quick: bool) -> list[Found]:
    rounds = 2 if quick else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = {NAMELESS: TextSource(paths=[str(small_corpus(folder))])}
        few = build(
            folder / "few", sources=source, validation=None, validation_fraction=0.1, tokenizer=None, vocab_size=300
        )
        many = folder / "many"
        lengthened(few.path, many, TOKENS)
        (folder / "config.yaml").write_text(SETTINGS, encoding="utf-8")
        seconds = alternate(
            {"imports": _imports, "few": _first_update(folder, few.path), "many": _first_update(folder, many)},
            rounds=rounds,
            warmup=1,
        )
        tokens = open_store(many).train_tokens
        on_disk = sum(file.stat().st_blocks * 512 for file in many.rglob("*"))
    process, imports, short = (Spread.of(seconds[what]) for what in ("many", "imports", "few"))
    beyond = [whole - imported for whole, imported in zip(seconds["many"], seconds["imports"], strict=True)]
    own = Spread.of([max(0.0, one) for one in beyond])
    return [
        Record(
            name="start/first-update",
            question=f"first update of `lawa train` on {TOKENS // 10**9} billion tokens, imports left out / "
            f"{TARGET_SECONDS:.0f} s",
            ratio=over(own.values, [TARGET_SECONDS] * rounds),
            target=1.0,
            n=rounds,
            parts={"beyond imports": own, "process": process, "imports": imports},
            note=f"{number(own.median, '×')} s of a process of {number(process.median, '×')} s",
        ),
        Record(
            name="start/tokens",
            question=f"the whole process, {TOKENS // 10**9} billion tokens / {few.train_tokens:,} tokens",
            ratio=over(process.values, short.values),
            target=None,
            n=rounds,
            parts={"many": process, "few": short},
            note=f"{number(process.median, '×')} and {number(short.median, '×')} s",
        ),
        Check(
            name="start/store",
            claim=f"the store opens with {TOKENS:,} training tokens and takes less than 100 MB of disk",
            held=tokens == TOKENS and on_disk < 100e6,
            detail=f"{tokens:,} tokens, {on_disk / 1e6:.1f} MB",
        ),
    ]


def lengthened(store: Path, target: Path, tokens: int) -> None:
    """Copy a store of one source and give it `tokens` training tokens: those it had, then a hole, which reads as id 0.

    Its digest and its documents stay those of the text that it was built of.
    """
    shutil.copytree(store, target)
    ids = f"train/{NAMELESS}.bin"
    described = target / "store.json"
    info = json.loads(described.read_text(encoding="utf-8"))
    train = info["splits"]["train"]
    width = (target / ids).stat().st_size // train["tokens"]  # bytes a token
    os.truncate(target / ids, tokens * width)
    train["tokens"] = train["sources"][NAMELESS]["tokens"] = tokens
    described.write_text(json.dumps(info), encoding="utf-8")
    known = {ids: {**listed(target)[ids], "bytes": tokens * width}}  # so that the hole is not read for a digest
    (target / MANIFEST).unlink()
    write_manifest(target, known=known)


def _imports() -> float:
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", IMPORTS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imported\n"
        return time.perf_counter() - began


def _first_update(folder: Path, store: Path) -> Callable[[], float]:
    """Starts a run on `store` and gives the seconds to its first update; the run is killed then."""
    run = folder / f"run on {store.name}"
    records = run / "metrics.jsonl"
    command = [sys.executable, "-m", "lawa", "train", str(folder / "config.yaml"), "--output", str(run)]

    def seconds() -> float:
        said = folder / "said"
        with said.open("w") as output:
            began = time.perf_counter()
            process = subprocess.Popen([*command, "--data.store", str(store)], stdout=output, stderr=output)
            try:
                while not (records.exists() and any(record["kind"] == "train" for record in read(records))):
                    if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                        raise RuntimeError(f"lawa train made no update: {said.read_text()}")
                    time.sleep(0.002)
                return time.perf_counter() - began
            finally:
                process.kill()
                process.wait()
                shutil.rmtree(run, ignore_errors=True)

    return seconds


if __name__ == "__main__":
    run("start", __doc__ or "", measure)
