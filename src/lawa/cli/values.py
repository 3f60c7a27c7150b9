"""What options are given as: names and numbers with commas between them, sizes in bytes. No torch."""

from __future__ import annotations

import argparse

from lawa.errors import UsageError


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number; write 5, or 3,5,10") from None


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write 2, or 1,2,4") from None


def nbytes(option: str, text: str | None) -> int | None:
    """Of a size as 50GB; None where none was given."""
    from lawa.offline.average import bytes_of

    try:
        return None if text is None else bytes_of(text)
    except UsageError:
        raise UsageError(f"{option} {text} is no size; write it as 50GB, 500MB or 1GiB") from None
