"""The command line: one file a verb. Parsing only; a verb's body is imported when it runs.

Results go to stdout, everything else to stderr. Exit 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from lawa.cli import average, branch, evaluate, follow, inspect, report, train
from lawa.errors import LawaError, UsageError
from lawa.version import __version__

VERBS = {
    "train": train,
    "average": average,
    "branch": branch,
    "evaluate": evaluate,
    "follow": follow,
    "inspect": inspect,
    "report": report,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    parser = argparse.ArgumentParser(
        prog="lawa", description="Latest weight averaging (LAWA) for language-model pre-training.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"lawa {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.SUMMARY,
            description=verb.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        sub.add_argument("--traceback", action="store_true", help="show where an error came from")
    given = parser.parse_args(arguments)
    try:
        code = VERBS[given.verb].run(given)
        sys.stdout.flush()
        return code
    except LawaError as error:
        if given.traceback:
            raise
        print(f"lawa {given.verb}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as interrupted:
        print("; ".join([f"lawa {given.verb}: interrupted", *map(str, interrupted.args)]), file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has gone, as in `lawa report … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        sentence = _outside(error)
        if given.traceback or sentence is None:
            raise
        print(f"lawa {given.verb}: {sentence}", file=sys.stderr)
        return 1


def _outside(error: Exception) -> str | None:
    """A sentence for what is neither the user's mistake nor ours: the disk, permissions, memory. Else None."""
    kind, first = type(error).__name__, str(error).partition("\n")[0]
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or first}; mend that and try again"
    # Named and not caught by class: torch and safetensors are not imported for their errors.
    if kind == "SafetensorError" or (kind == "RuntimeError" and "inline_container" in first):  # torch.save's file
        return f"writing or reading weights failed ({first}); see whether the disk is full"
    if kind in ("OutOfMemoryError", "MemoryError") or "DefaultCPUAllocator: can't allocate" in first:
        return f"out of memory ({first}); use a smaller training.micro_batch, or averaging.placement=host on a GPU"
    return None
