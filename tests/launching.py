"""The end of a script that torchrun starts."""

import os
import sys
import traceback
from collections.abc import Callable


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
