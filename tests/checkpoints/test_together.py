"""What one process says to the others must be sayable."""

from __future__ import annotations

import pickle

from lawa import LawaError
from lawa.checkpoints.together import attempt, from_first, on_all, rank, ranks


class Unsayable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("no copy can be made of it")


def test_what_cannot_be_pickled_becomes_a_sentence() -> None:
    def fails() -> None:
        raise Unsayable(1, 2)

    _, failed = attempt(fails)
    assert isinstance(failed, LawaError)
    assert str(pickle.loads(pickle.dumps(failed))) == "Unsayable: no copy can be made of it"


def test_what_can_be_is_kept() -> None:
    error = KeyError("lost")

    def fails() -> None:
        raise error

    assert attempt(fails) == (None, error)


def test_alone_there_is_nobody_to_agree_with() -> None:
    assert (from_first(lambda: 3), on_all(lambda: 4), rank(), ranks()) == (3, [4], 0, 1)
