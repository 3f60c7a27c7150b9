"""How long the command line takes to answer, in whole processes, against an empty Python.

    python benchmarks/startup.py [--quick] [--output FILE]

The target is 0.3 seconds for `import lawa` and for every --help, which means: no torch. It is shown as a
ratio to `python -c pass` in the same run.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from lawa.cli import VERBS
from measure import Found, Record, Spread, interleave, milliseconds, over, run

TARGET_SECONDS = 0.3


def measure(quick: bool) -> list[Found]:
    script = Path(sysconfig.get_path("scripts")) / "lawa"
    lawa = [str(script)] if script.is_file() else [sys.executable, "-m", "lawa"]
    commands = {
        "import lawa": [sys.executable, "-c", "import lawa"],
        "lawa --help": [*lawa, "--help"],
        **{f"lawa {verb} --help": [*lawa, verb, "--help"] for verb in VERBS},
    }
    rounds = 2 if quick else 15
    empty = "python -c pass"
    contenders = {empty: _process([sys.executable, "-c", "pass"])}
    contenders |= {name: _process(command) for name, command in commands.items()}
    seconds = interleave(contenders, rounds=rounds, warmup=1 if quick else 2, least=0.0)
    limit = Spread.of(seconds[empty])
    return [
        Record(
            name=f"startup/{name.replace(' ', '-')}",
            question=f"`{name}` / `{empty}`",
            ratio=over(seconds[name], seconds[empty]),
            target=TARGET_SECONDS / limit.median,
            n=rounds,
            parts={name: Spread.of(seconds[name]), empty: limit},
            note=f"{milliseconds(Spread.of(seconds[name]))}, target {TARGET_SECONDS * 1e3:.0f} ms",
        )
        for name in commands
    ]


def _process(command: list[str]) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    run("startup", __doc__ or "", measure)
