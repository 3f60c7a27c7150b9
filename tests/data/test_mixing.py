"""Several sources by weight: exact shares in every block, every source's epochs whole, any update entered at once."""

import tracemalloc
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa.data import order as module
from lawa.data.order import BLOCK, Order, batch, quotas, validation_sequences
from lawa.data.permutation import derive, permute
from lawa.errors import LawaError

mixtures = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10)), min_size=2, max_size=4)


def mixed(sources: list[tuple[int, float]], *, batch: int = 8, seed: int = 0) -> Order:
    """Sources of so many sequences of 3 predictions, and their weights."""
    names = [f"s{number}" for number in range(len(sources))]
    return Order(
        tokens={name: 3 * n + 1 for name, (n, _) in zip(names, sources, strict=True)},
        weights={name: weight for name, (_, weight) in zip(names, sources, strict=True)},
        context=3,
        batch=batch,
        seed=seed,
    )


def literal_twin(order: Order, position: int) -> tuple[int, int]:
    """The docstring's sentences, one position at a time."""

    def place(at: int, n: int, seed: int, epoch: int) -> int:
        return int(permute(np.array([at]), n, seed, np.array([epoch], dtype=np.uint64))[0])

    block, offset = divmod(position, module.BLOCK)
    rank = place(offset, module.BLOCK, derive(order.seed, 0), block)
    low = 0
    for source, (name, quota) in enumerate(order.quotas.items()):
        if rank < low + quota:
            n = order.sequences[name]
            epoch, at = divmod(block * quota + rank - low, n)
            return source, place(at, n, derive(order.seed, source + 1), epoch)
        low += quota
    raise AssertionError


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), total=st.integers(1, 1 << 20))
@settings(deadline=None)
def test_quotas_sum_up_and_are_within_one_of_their_shares(weights: list[float], total: int):
    shared = quotas(dict(zip("abcdef", weights, strict=False)), total)
    assert sum(shared.values()) == total
    for weight, quota in zip(weights, shared.values(), strict=True):
        assert abs(quota - Fraction(total) * Fraction(weight) / sum(map(Fraction, weights))) < 1


def test_the_largest_remainders_are_rounded_up_and_the_first_of_equals():
    assert quotas({"a": 1, "b": 1, "c": 1}, 8) == {"a": 3, "b": 3, "c": 2}
    assert quotas({"a": 5.2, "b": 2.3, "c": 2.5}, 10) == {"a": 5, "b": 2, "c": 3}


@given(sources=mixtures, seed=st.integers(0, 2**64 - 1), block=st.integers(0, 5))
@settings(deadline=None, max_examples=20)
def test_every_block_has_exactly_the_quotas(sources: list[tuple[int, float]], seed: int, block: int):
    order = mixed(sources, batch=BLOCK, seed=seed)
    source, _ = order.indices(block + 1)
    assert np.bincount(source, minlength=len(sources)).tolist() == list(order.quotas.values())


@given(sources=mixtures, size=st.integers(20, 150), seed=st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=25)
def test_every_epoch_of_every_source_is_a_permutation(sources: list[tuple[int, float]], size: int, seed: int):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 64)
        sources = [(tokens, max(weight, 0.1 * max(w for _, w in sources))) for tokens, weight in sources]
        order = mixed(sources, batch=size, seed=seed)
        read = [order.indices(update) for update in range(1, -(-64 * 12 // size) + 1)]
    source, index = (np.concatenate(part)[: 64 * 12] for part in zip(*read, strict=True))
    for number, (n, quota) in enumerate(zip(order.sequences.values(), order.quotas.values(), strict=True)):
        mine = index[source == number]
        assert len(mine) == 12 * quota
        # Within a block the source's own positions come in any order: what whole blocks read is what counts.
        whole, rest = divmod(12 * quota, n)
        counts = Counter(mine.tolist())
        assert all(counts[i] in (whole, whole + 1) for i in range(n))
        assert sum(counts[i] == whole + 1 for i in range(n)) == rest


@given(sources=mixtures, seed=st.integers(0, 2**64 - 1), update=st.integers(1, 10**12))
@settings(deadline=None, max_examples=60)
def test_the_arrays_equal_the_literal_twin(sources: list[tuple[int, float]], seed: int, update: int):
    order = mixed(sources, batch=5, seed=seed)
    there = list(zip(*(part.tolist() for part in order.indices(update)), strict=True))
    assert there == [literal_twin(order, (update - 1) * 5 + row) for row in range(5)]


@given(sources=mixtures, first=st.integers(0, 8), last=st.integers(0, 8), update=st.integers(1, 10**6))
@settings(deadline=None, max_examples=60)
def test_the_rows_of_ranks_make_the_whole_batch(sources: list[tuple[int, float]], first: int, last: int, update: int):
    order = mixed(sources)
    draw = np.random.default_rng(0)
    ids = {name: draw.integers(0, 60_000, tokens).astype(np.uint16) for name, tokens in order.tokens.items()}
    whole = batch(ids, order, update)
    assert whole.shape == (8, 4)
    parts = [batch(ids, order, update, slice(*part)) for part in ((0, first), (first, max(first, last)))]
    assert np.concatenate([*parts, batch(ids, order, update, slice(max(first, last), 8))]).tolist() == whole.tolist()
    assert batch(ids, order, update, slice(1, None, 2)).tolist() == whole[1::2].tolist()
    single = Order(tokens={"s0": order.tokens["s0"]}, context=3, batch=8, seed=0)
    alone = {"s0": ids["s0"]}
    assert batch(alone, single, update, slice(3, 5)).tolist() == batch(alone, single, update)[3:5].tolist()


def test_a_sequence_is_read_from_its_own_source():
    order = mixed([(7, 2.0), (5, 1.0)], batch=300)
    ids = {name: (1000 * (number + 1) + np.arange(order.tokens[name])) for number, name in enumerate(order.tokens)}
    source, index = order.indices(3)
    expected = [[1000 * (s + 1) + 3 * i + j for j in range(4)] for s, i in zip(source, index, strict=True)]
    assert batch(ids, order, 3).tolist() == expected
    assert set(source.tolist()) == {0, 1}


def test_the_values_are_frozen():
    """A change here changes which text every mixed run reads."""
    order = Order(tokens={"a": 1001, "b": 501}, weights={"a": 0.7, "b": 0.3}, context=10, batch=8, seed=1234)
    assert order.quotas == {"a": 45_875, "b": 19_661}
    assert [part.tolist() for part in order.indices(1)] == GOLDEN_FIRST
    assert [part.tolist() for part in order.indices(10**9)] == GOLDEN_FAR


def test_seeds_and_sources_are_unlike():
    keys = [derive(seed, stream) for seed in range(200) for stream in range(5)]
    assert len(set(keys)) == len(keys)
    order = mixed([(500, 1.0), (500, 1.0)], batch=BLOCK)
    source, index = order.indices(1)
    agree = np.mean(index[source == 0][:500] == index[source == 1][:500])
    assert agree < 0.05


def test_any_update_is_entered_in_constant_memory():
    order = Order(tokens={"a": 10**13, "b": 10**12}, weights={"a": 3, "b": 1}, context=2048, batch=1024, seed=0)
    order.indices(1)
    tracemalloc.start()
    source, index = order.indices(10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(np.unique(index)) > 1000
    assert 650 < (source == 0).sum() < 890


def test_epochs_are_told_before_the_run():
    order = mixed([(16, 3.0), (64, 1.0)], batch=64)
    assert order.epochs(1024) == {"s0": 3 * 2**14 / 16, "s1": 2**14 / 64}
    assert Order(tokens={"text": 49}, context=3, batch=8, seed=0).epochs(4) == {"text": 2.0}


def test_validation_sequences_are_shared_out_by_weight():
    ids = {"a": np.arange(101), "b": 1000 + np.arange(31)}  # ten and three sequences of ten predictions
    assert validation_sequences(ids, 10, 4, {"a": 1, "b": 1})[:, 0].tolist() == [0, 50, 1000, 1010]
    assert validation_sequences(ids, 10, 4, {"a": 3, "b": 1})[:, 0].tolist() == [0, 30, 60, 1000]
    assert validation_sequences(ids, 10, 8, {"a": 1, "b": 3})[:, 0].tolist() == [0, 50, 1000, 1010, 1020]
    assert validation_sequences(ids, 10, 3, {"a": 9, "b": 1})[:, 0].tolist() == [0, 30, 60]
    assert len(validation_sequences(ids, 10, None, {"a": 1, "b": 9})) == 13


@pytest.mark.parametrize(
    ("weight", "sentence"),
    [
        (0.0, "source 's1' has weight 0.0; a weight is a finite number above 0"),
        (-1.0, "source 's1' has weight -1.0; a weight"),
        (float("nan"), "source 's1' has weight nan; a weight"),
        (float("inf"), "source 's1' has weight inf; a weight"),
        (1e-6, "source 's1' has weight 1e-06 and would not be read once in 65,536 sequences; raise its weight"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight: float, sentence: str):
    with pytest.raises(LawaError, match=sentence):
        mixed([(5, 1.0), (5, weight)])


def test_a_source_that_is_too_short_is_named():
    with pytest.raises(LawaError, match="3 tokens of source 'b' are too few for one sequence of 4"):
        Order(tokens={"a": 40, "b": 3}, weights={"a": 1, "b": 1}, context=3, batch=1, seed=0)


GOLDEN_FIRST = [[0, 0, 0, 0, 0, 0, 0, 1], [4, 79, 52, 5, 73, 34, 14, 44]]
GOLDEN_FAR = [[0, 0, 0, 0, 0, 0, 1, 1], [72, 96, 84, 45, 3, 92, 21, 38]]
