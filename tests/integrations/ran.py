"""Runs an example on the ranks that torchrun started: runs it to its end, and leaves as launching.py does."""

import runpy
import sys

from launching import run_to_the_end

if __name__ == "__main__":
    run_to_the_end(lambda: runpy.run_path(sys.argv[1], run_name="__main__"))  # type: ignore[arg-type, return-value]
