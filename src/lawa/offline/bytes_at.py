"""Bytes at an offset, all of them: the system may read and write in pieces. No torch."""

from __future__ import annotations

import os

TRUNCATED = -1  # beside the system's error numbers
CUT_OFF = "it ends before its tensors do; it was cut off, or changed while it was read"


def read_all(fd: int, nbytes: int, at: int) -> bytearray:
    """Raises OSError, with the number TRUNCATED where the file ends before."""
    piece = bytearray(nbytes)
    left = memoryview(piece)
    while left:
        done = os.preadv(fd, [left], at)
        if not done:
            raise OSError(TRUNCATED, CUT_OFF)
        left, at = left[done:], at + done
    return piece


def write_all(fd: int, piece: bytearray | memoryview, at: int) -> None:
    left = memoryview(piece)
    while left:
        done = os.pwrite(fd, left, at)
        left, at = left[done:], at + done
