"""Windows over checkpoints: a snapshot is in memory until it is known to be on disk, and then only there."""

import pytest
import torch

from averaging import toys
from lawa import EMA, WeightAverager, Window
from lawa.averaging.layout import named
from lawa.checkpoints.disk_store import DiskStore, Reference
from lawa.errors import LawaError


class Disk:
    """Checkpoints as a mapping. `save` copies the weights, as the driver does after each capture."""

    def __init__(self):
        self.files = {}
        self.reads = []

    def save(self, model, step):
        self.files[step] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def has(self, step):
        return step in self.files

    def read(self, step, into):
        self.reads.append(step)
        for name, tensor in into.items():
            tensor.copy_(self.files[step][name])


def averagers(**settings):
    """The same averager twice on one model: over a disk, and with its snapshots in memory."""
    model, disk = toys.Tied(), Disk()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    made = [
        WeightAverager(model, optimizer, placement=placement, **settings)
        for placement in (lambda layout: DiskStore(layout, disk), "device")
    ]
    return model, disk, *made


def in_memory(averager):
    return sorted(averager._store._fresh)


@pytest.mark.parametrize("late", [0, 1, 2], ids="written {} captures late".format)
@pytest.mark.parametrize(
    "averages",
    [
        {"lawa": Window(3, every=2)},
        {"one": Window(1, every=3), "long": Window(4, every=1, coefficients="linear"), "ema": EMA(0.8)},
    ],
    ids=["one", "many"],
)
def test_the_bits_are_those_of_memory_however_late_a_checkpoint_is(averages, late):
    model, disk, on_disk, device = averagers(mode="evaluate", averages=averages)
    waiting = []
    for t in range(1, 13):
        toys.wander(model, t)
        on_disk.capture(t)
        device.capture(t)
        waiting.append((t, {name: p.detach().clone() for name, p in model.named_parameters()}))
        if len(waiting) > late:
            step, weights = waiting.pop(0)
            disk.files[step] = weights
        for name in averages:
            assert on_disk.steps(name) == device.steps(name)
            if device.count(name):
                assert toys.same_weights(toys.seen_by(on_disk, name), toys.seen_by(device, name)), (t, name)
    assert disk.reads


def test_a_snapshot_leaves_memory_at_the_next_capture_after_its_checkpoint_is_whole():
    model, disk, averager, _ = averagers(mode="evaluate", every=1, window=3)
    averager.capture(1)
    averager.capture(2)
    assert in_memory(averager) == [1, 2], "neither has a checkpoint yet"
    disk.save(model, 1)
    toys.seen_by(averager)
    assert in_memory(averager) == [1, 2]
    assert disk.reads == [], "what is in memory is not read"
    averager.capture(3)
    assert in_memory(averager) == [2, 3]
    toys.seen_by(averager)
    assert disk.reads == [1]


def test_what_a_window_lets_go_before_it_was_written_is_let_go():
    _, disk, averager, _ = averagers(mode="evaluate", every=1, window=2)
    for t in range(1, 6):
        averager.capture(t)
        assert in_memory(averager) == list(range(max(1, t - 1), t + 1))
    assert disk.reads == []


def test_in_a_steady_state_one_snapshots_memory_serves_them_all():
    model, disk, averager, _ = averagers(mode="evaluate", every=1, window=3)
    for t in range(1, 4):
        averager.capture(t)
        disk.save(model, t)
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        for t in range(4, 9):
            averager.capture(t)
            disk.files[t] = disk.files[t - 1]
    assert memory.new == 0
    assert in_memory(averager) == [8]


def test_snapshots_are_read_one_at_a_time_into_one_groups_memory():
    """Whatever the window: an average, a backup, and one snapshot's group (the frozen scale is in none)."""
    model, disk, averager, _ = averagers(mode="evaluate", every=1, window=6)
    for t in range(1, 8):
        averager.capture(t)
        disk.save(model, t)
    memory = toys.Memory()
    memory.ignore(*model.parameters())
    with memory:
        toys.seen_by(averager)
    cost = averager.cost()
    assert cost.swap == 3 * cost.snapshot
    assert cost.swap <= memory.peak <= cost.swap + 2 * cost.snapshot, "a block of scratch and the test's own copies"
    assert disk.reads == [2, 3, 4, 5, 6]  # and 7 is in memory


def test_groups_of_other_dtypes_are_read_by_themselves():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, dtype=torch.bfloat16), torch.nn.Linear(2, 1))
    disk = Disk()
    stores = [
        WeightAverager(model, mode="evaluate", every=1, window=3, placement=placement)
        for placement in (lambda layout: DiskStore(layout, disk), "device")
    ]
    for t in range(1, 5):
        toys.wander(model, t)
        for averager in stores:
            averager.capture(t)
        disk.save(model, t)
    assert toys.same_weights(*map(toys.seen_by, stores))
    assert disk.reads == [2, 3, 2, 3]


def test_replacement_and_clear_over_a_disk():
    settings = {"mode": "replace", "every": 1, "window": 2, "after_replace": "clear", "strength": 0.5}
    ends = []
    for over_disk in (True, False):
        model, disk = toys.Tied(), Disk()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        placement = (lambda layout, disk=disk: DiskStore(layout, disk)) if over_disk else "device"
        averager = WeightAverager(model, optimizer, placement=placement, **settings)
        for t in range(1, 8):
            toys.train_step(model, optimizer, t)
            averager.capture(t)
            disk.save(model, t)  # θ_t, with the replacement pending
            averager.replace_if_due()
        ends.append(toys.weights(model))
    assert toys.same_weights(*ends)


def test_going_on_needs_every_checkpoint_that_a_window_holds():
    model, disk, averager, device = averagers(mode="evaluate", every=1, window=3)
    for t in range(1, 6):
        toys.wander(model, t)
        averager.capture(t)
        device.capture(t)
        disk.save(model, t)
    state = averager.state_dict()
    fresh = WeightAverager(model, mode="evaluate", every=1, window=3, placement=lambda layout: DiskStore(layout, disk))
    fresh.load_state_dict(state)
    assert fresh.steps() == [3, 4, 5]
    assert toys.same_weights(toys.seen_by(fresh), toys.seen_by(device))
    assert disk.reads == [3, 4, 5], "a fresh process has nothing in memory"
    del disk.files[4]
    with pytest.raises(LawaError, match="holds the snapshot of update 4, but the run has no whole checkpoint of it"):
        fresh.load_state_dict(state)
    assert fresh.steps() == [3, 4, 5], "and nothing has changed"


def test_moments_are_refused():
    model = toys.Tied()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(LawaError, match="checkpoints keep Adam's moments only while training can go on from them"):
        WeightAverager(
            model, optimizer, mode="replace", every=1, window=2, moments="average",
            placement=lambda layout: DiskStore(layout, Disk()),
        )  # fmt: skip


def test_a_reference_holds_no_memory_and_the_store_reads_on_the_host():
    model, _, averager, _ = averagers(mode="evaluate", every=1, window=3)
    averager.capture(1)
    store = averager._store
    assert isinstance(store, DiskStore)
    (held,) = averager._collection.windows.snapshots()
    assert isinstance(held.snapshot, Reference)
    assert (list(held.snapshot), held.snapshot.step) == ([], 1)
    assert {store.device(group).type for group in store.layout} == {"cpu"}
    (flat,) = store.flats(0, [held.snapshot])
    assert toys.twins.same_bits(named([(store.layout[0], flat)])["embed.weight"], model.embed.weight)
