"""Scripts that torchrun starts: how, and how they end."""

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

TESTS = Path(__file__).parent


def launch(script: Path, ranks: int, *arguments: str, timeout: int = 120, **environment: str) -> str:
    """Run `script` on that many gloo processes of this machine; what they print. A failure of one is a failure."""
    path = os.pathsep.join([str(TESTS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    own = {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
            "--nproc-per-node", str(ranks), str(script), *arguments,
        ],
        env={**os.environ, **own, **environment},
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def run_to_the_end(main: Callable[[], None]) -> None:
    """Run `main` and leave with its exit code, without what Python does at its end.

    Gloo's threads may hold tensors while Python ends, and then abort it (pytorch#179291).
    """
    try:
        main()
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
