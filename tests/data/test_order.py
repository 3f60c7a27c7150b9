"""The order of sequences: a permutation an epoch, entered anywhere, frozen for ever."""

import tracemalloc
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lawa.data.order import Order, batch, validation_sequences
from lawa.data.permutation import permute
from lawa.errors import LawaError

WORD = 1 << 64
words = st.integers(0, WORD - 1)
powers = st.builds(lambda power, by: max(1, 2**power + by), st.integers(0, 12), st.sampled_from([-1, 0, 1]))
squares = st.builds(lambda root, by: max(1, root**2 + by), st.integers(1, 60), st.sampled_from([-1, 0, 1]))


def one(*, tokens: int, **changed: int) -> Order:
    """The order of one source."""
    return Order(tokens={"text": tokens}, **changed)


def permutation(n: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    keys = np.full(n, epoch, dtype=np.uint64)
    return permute(np.arange(n), n, seed, keys).tolist()


def literal_twin(position: int, n: int, seed: int, epoch: int) -> int:
    """The docstring's formula on Python's integers, one position at a time."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
        return x ^ (x >> 31)

    a = 1
    while a * a < n:
        a += 1
    b = 1
    while a * b < n:
        b += 1
    key = mix((mix(seed) + epoch) % WORD)
    value = position
    while True:
        left, right = value % a, value // a
        for turn in range(1, 13):
            f = (key + turn * 0x9E3779B97F4A7C15) % WORD
            if turn % 2:
                left = (left + mix((f + right) % WORD)) % a
            else:
                right = (right + mix((f + left) % WORD)) % b
        value = left + a * right
        if value < n:
            return value


@given(n=st.one_of(st.integers(1, 3000), powers, squares), seed=words, epoch=words)
@settings(deadline=None, max_examples=300)
def test_every_epoch_is_a_permutation(n: int, seed: int, epoch: int):
    assert sorted(permutation(n, seed=seed, epoch=epoch)) == list(range(n))


@given(n=st.integers(1, 2000), seed=words, epoch=words, data=st.data())
@settings(deadline=None)
def test_the_arrays_equal_the_literal_twin(n: int, seed: int, epoch: int, data: st.DataObject):
    position = data.draw(st.integers(0, n - 1))
    assert permutation(n, seed=seed, epoch=epoch)[position] == literal_twin(position, n, seed, epoch)


def test_the_values_are_frozen():
    """A change here changes which text every run reads, and makes resumed runs read some of it twice."""
    assert permutation(10) == GOLDEN_TEN
    order = one(tokens=1001, context=10, batch=8, seed=1234)
    assert order.indices(1)[1].tolist() == GOLDEN_FIRST
    assert order.indices(13)[1].tolist() == GOLDEN_STRADDLING  # positions 96 … 103 of epochs of 100
    far = one(tokens=10**10 * 2048 + 1, context=2048, batch=4, seed=WORD - 1)
    assert far.indices(10**12)[1].tolist() == GOLDEN_FAR
    places = [divmod(place, 10**10) for place in range((10**12 - 1) * 4, 10**12 * 4)]
    assert [literal_twin(position, 10**10, WORD - 1, epoch) for epoch, position in places] == GOLDEN_FAR


def test_epochs_and_seeds_give_unlike_permutations():
    """Two random permutations agree in one place on average, whatever n."""
    n = 500
    epochs = [permutation(n, epoch=epoch) for epoch in range(100)]
    seeds = [permutation(n, seed=seed) for seed in range(100)]
    for family in (epochs, seeds):
        agreements = [
            sum(x == y for x, y in zip(one, two, strict=True)) for i, one in enumerate(family) for two in family[:i]
        ]
        assert max(agreements) < 10
        assert 0.9 < np.mean(agreements) < 1.1


def test_permutations_of_five_are_uniform():
    """χ² over all 120 of them: 119 ± 15.4 when they are."""
    epochs = 24_000
    positions, keys = np.tile(np.arange(5), epochs), np.repeat(np.arange(epochs, dtype=np.uint64), 5)
    drawn = permute(positions, 5, 7, keys).reshape(epochs, 5)
    counts = np.unique(drawn @ 10 ** np.arange(5), return_counts=True)[1]
    assert len(counts) == factorial(5)
    expected = epochs / factorial(5)
    assert abs(np.sum((counts - expected) ** 2 / expected) - 119) < 4 * 15.4


@pytest.mark.parametrize("n", [97, 128, 1000])
def test_every_position_goes_everywhere_and_neighbours_part(n: int):
    epochs = 200 * n
    keys = np.arange(epochs, dtype=np.uint64)
    first, second = (permute(np.full(epochs, place), n, 3, keys) for place in (0, 1))
    for drawn, cells in ((first, n), ((second - first) % n - 1, n - 1)):
        counts = np.bincount(drawn, minlength=cells)
        assert len(counts) == cells
        chi_squared = np.sum((counts - epochs / cells) ** 2 / (epochs / cells))
        assert abs(chi_squared - (cells - 1)) < 4 * (2 * (cells - 1)) ** 0.5


@given(n=st.integers(1, 60), context=st.integers(1, 5), size=st.integers(1, 150), seed=words, update=st.integers(1, 50))
@settings(deadline=None)
def test_the_stream_does_not_depend_on_where_it_is_entered_or_cut(
    n: int, context: int, size: int, seed: int, update: int
):
    tokens = n * context + 1
    order = one(tokens=tokens, context=context, batch=size, seed=seed)
    assert order.sequences == {"text": n}
    single = one(tokens=tokens, context=context, batch=1, seed=seed)
    stream = [single.indices(t)[1].item() for t in range((update - 1) * size + 1, update * size + 1)]
    assert order.indices(update)[1].tolist() == stream
    assert order.indices(update)[1].dtype == np.int64


@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 4), (7, 3), (7, 20), (12, 4), (100, 64)])
def test_each_epoch_reads_every_sequence_once_even_when_batches_straddle(n: int, size: int):
    order = one(tokens=n * 3 + 1, context=3, batch=size, seed=5)
    stream = np.concatenate([order.indices(update)[1] for update in range(1, n * 4 + 1)])
    epochs = stream[: len(stream) // n * n].reshape(-1, n)
    assert len(epochs) >= 4 * size
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))


def test_any_update_of_a_huge_corpus_is_entered_in_constant_memory():
    order = one(tokens=10**10 * 2048 + 1, context=2048, batch=1024, seed=0)
    order.indices(1)  # NumPy's own first-use allocations are not ours
    tracemalloc.start()
    indices = order.indices(10**9)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(np.unique(indices)) == 1024
    assert indices.min() >= 0
    assert 9 * 10**9 < indices.max() < 10**10
    assert not np.array_equal(indices, order.indices(10**9 + 1)[1])
    last = one(tokens=2**63, context=2, batch=3, seed=0)  # a·b must stay within 64 bits
    assert (last.indices(2**80)[1] < last.sequences["text"]).all()


def test_a_batch_holds_context_and_the_next_token():
    tokens = np.arange(1000, 1032, dtype=np.uint16)
    order = one(tokens=32, context=5, batch=4, seed=0)
    drawn = batch({"text": tokens}, order, 1)
    assert drawn.dtype == np.int64
    assert type(drawn) is np.ndarray
    assert drawn.tolist() == [[1000 + 5 * i + j for j in range(6)] for i in order.indices(1)[1]]


def test_an_epoch_predicts_every_token_once():
    """But for the first token, which nothing precedes, and a tail shorter than a context."""
    order = one(tokens=104, context=10, batch=10, seed=0)
    targets = batch({"text": np.arange(104, dtype=np.uint32)}, order, 3)[:, 1:]
    assert sorted(targets.ravel()) == list(range(1, 101))


def test_an_order_of_other_tokens_is_our_mistake():
    with pytest.raises(AssertionError, match=r"an order over .* 32. tokens was given .* 31"):
        batch({"text": np.zeros(31, dtype=np.uint16)}, one(tokens=32, context=5, batch=4, seed=0), 1)


def test_validation_sequences_are_spread_over_the_whole_text():
    tokens = {"text": np.arange(105, dtype=np.uint16)}  # ten sequences of ten predictions, and a rest
    assert validation_sequences(tokens, 10, 4)[:, 0].tolist() == [0, 20, 50, 70]
    assert validation_sequences(tokens, 10, 1).tolist() == [list(range(11))]
    every = validation_sequences(tokens, 10)
    assert every.dtype == np.int64
    assert every[:, 1:].ravel().tolist() == list(range(1, 101))
    assert np.array_equal(validation_sequences(tokens, 10, 10**6), every)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"tokens": 10}, r"10 tokens of source 'text' are too few for one sequence of 11 \(context 10 .*use more text"),
        ({"context": 0}, "context is 0; a sequence predicts at least one token"),
        ({"batch": 0}, "batch is 0; an update needs at least one sequence"),
        ({"seed": -1}, "seed is -1; it must be at least 0 and below 2"),
        ({"seed": WORD}, f"seed is {WORD}; it must be at least 0 and below 2"),
    ],
)
def test_an_order_that_cannot_be_is_refused(wrong: dict[str, int], sentence: str):
    right = {"tokens": 11, "context": 10, "batch": 1, "seed": 0}
    assert one(**right).indices(5)[1].tolist() == [0]
    with pytest.raises(LawaError, match=sentence):
        one(**{**right, **wrong})


def test_the_other_errors():
    with pytest.raises(LawaError, match="update is 0; the first update is 1"):
        one(tokens=11, context=10, batch=1, seed=0).indices(0)
    with pytest.raises(LawaError, match="the limit of validation sequences is 0; at least one is needed"):
        validation_sequences({"text": np.zeros(20, dtype=np.uint16)}, 4, 0)
    with pytest.raises(LawaError, match="3 tokens of source 'text' are too few for one sequence of 5"):
        validation_sequences({"text": np.zeros(3, dtype=np.uint16)}, 4)


GOLDEN_TEN = [6, 3, 8, 7, 4, 5, 1, 9, 2, 0]
GOLDEN_FIRST = [44, 20, 33, 31, 76, 81, 23, 50]
GOLDEN_STRADDLING = [2, 6, 29, 75, 34, 87, 31, 20]
GOLDEN_FAR = [2337004774, 8373520489, 7692568508, 1342777114]
