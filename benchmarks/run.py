"""Run every benchmark that needs no GPU, each in a process of its own (make bench).

    python benchmarks/run.py [--quick] [--only capture,average] [--mergekit VENV] [--output FILE]

Prints one table and writes everything to benchmarks/results/cpu.json. --quick says whether they run: on tiny
sizes, with numbers that mean nothing, and written nowhere unless --output names a file.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lawa.records import write_json
from measure import ROOT, Found, machine, read_found, table

HERE = Path(__file__).resolve().parent
BENCHMARKS = ("startup", "capture", "average", "peers", "ranks", "share", "checkpoint", "start", "readers", "disk")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: benchmarks/results/cpu.json")
    parser.add_argument("--only", metavar="NAME,…", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: its own choice)")
    parser.add_argument("--mergekit", metavar="VENV", help="an environment with mergekit, for disk")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? The numbers mean nothing")
    given = parser.parse_args()
    names = given.only.split(",") if given.only else list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"--only {','.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    output = given.output
    if output is None and not given.quick and not given.only:
        output = ROOT / "benchmarks" / "results" / "cpu.json"

    options = ["--quick"] if given.quick else []
    options += ["--threads", str(given.threads)] if given.threads else []
    results: list[dict[str, Any]] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(f"{name} …", file=sys.stderr, flush=True)
            result = Path(folder) / f"{name}.json"
            command = [sys.executable, str(HERE / f"{name}.py"), "--output", str(result), *options]
            command += ["--mergekit", given.mergekit] if given.mergekit and name == "disk" else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                failed.append(name)
            if result.is_file():
                results.append(json.loads(result.read_text(encoding="utf-8")))
                print(f"{name}: {results[-1]['seconds']:.0f} s", file=sys.stderr)
    if results:
        found: list[Found] = [one for result in results for one in read_found(result)]
        print(f"{table(found)}\n\n{machine(results[-1])}")
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {"benchmarks": results})
        print(f"\nwritten: {output}", file=sys.stderr)
    for name in failed:
        print(f"benchmarks/{name}.py failed; what it said is above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
