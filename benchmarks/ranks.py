"""What a rank pays for a capture, an average and an EMA when the model is sharded: it falls as its shard does.

    python benchmarks/ranks.py [--quick] [--output FILE]

Four processes (torchrun, gloo, one thread each) hold one model three times: whole, sharded by FSDP2 over two of them
and over all four. The first process, whose shards are the largest, then measures its part of the three in turn,
and the seconds of a round are compared with those of the whole model in the same round. The others wait meanwhile on
a key of the store, which is a read from a socket: four processes at work would share two cores.

The target is the shard's part of the weights, and a tenth of it for what does not depend on size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import QUICK_ROUNDS, ROUNDS, Found, Record, Spread, milliseconds, number, over, run

RANKS = (1, 2, 4)
OVERHEAD = 1.1
QUESTIONS = {
    "capture": "capture into a full window",
    "average": "averaged(): average of the window, into the model and out again",
    "ema": "update of an EMA",
    "copy": "limit: copy of the shards",
}


def measure(quick: bool) -> list[Found]:
    rounds = QUICK_ROUNDS if quick else ROUNDS
    told = launch(rounds, quick=quick)
    name = f"{'a tiny model' if quick else 'GPT-2 small'} ({told['size']})"
    found: list[Found] = []
    for ranks in RANKS[1:]:
        for what in ("held", "swap"):
            whole, own = (told["bytes"][str(count)][what] for count in (1, ranks))
            found.append(
                Record(
                    name=f"ranks/{ranks}/{what}",
                    question=f"{name}: bytes a rank {'holds' if what == 'held' else 'takes to evaluate'}, "
                    f"{ranks} ranks / 1 rank",
                    ratio=Spread.of([own / whole]),
                    target=OVERHEAD / ranks,
                    n=1,
                    parts={f"{ranks} ranks, bytes": Spread.of([own]), "1 rank, bytes": Spread.of([whole])},
                    note=f"{own / 1e6:,.1f} MB / {whole / 1e6:,.1f} MB",
                )
            )
        for what, question in QUESTIONS.items():
            own, whole = told["seconds"][f"{what} {ranks}"], told["seconds"][f"{what} 1"]
            found.append(
                Record(
                    name=f"ranks/{ranks}/{what}",
                    question=f"{name}: {question}, {ranks} ranks / 1 rank",
                    ratio=over(own, whole),
                    target=None if what == "copy" else OVERHEAD / ranks,
                    n=rounds,
                    parts={f"{ranks} ranks": Spread.of(own), "1 rank": Spread.of(whole)},
                    note=f"{milliseconds(Spread.of(own))} / {milliseconds(Spread.of(whole))}, "
                    f"shard {number(told['share'][str(ranks)], '×')} of the weights",
                )
            )
    return found


def launch(rounds: int, *, quick: bool) -> dict[str, Any]:
    """What the first of four processes found."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
                "--nproc-per-node", str(max(RANKS)), str(Path(__file__).with_name("ranks_process.py")),
                str(file), str(rounds), *(["--quick"] if quick else []),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=sys.stderr, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit("a process failed; what it said is above")
        return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    run("ranks", __doc__ or "", measure)
