"""What following a run takes, told before anything is done."""

import itertools

import pytest

from lawa.errors import LawaError, UsageError
from lawa.trajectories.follow_plan import (
    PLAIN,
    all_series,
    due_evaluations,
    groups,
    interval_of,
    make_plan,
)

STEPS = list(range(1000, 21000, 1000))


def due(steps=STEPS, sizes=(5,), spacings=(1,), interval=1000):
    return due_evaluations(steps, all_series(sizes, spacings), interval)


def plan(evaluations, size=10, steps=STEPS, **budgets):
    return make_plan(evaluations, dict.fromkeys(steps, size), fetched=steps, **{"host_bytes": 10**9, **budgets})


def walked(made, evaluations, nbytes, fetched):
    """Carry a plan out literally: (snapshots, bytes in memory, bytes on disk) at their most, and what was evaluated."""
    held, mapped, done, most = {}, set(), [], [0, 0, 0]
    disk, coming = {}, list(made.stages)
    for at, stage in enumerate(made.stages):
        for one in coming[at : at + made.ahead + 1]:
            disk.setdefault(one.step, nbytes[one.step] if one.step in fetched else 0)
        most[2] = max(most[2], sum(disk.values()))
        held[stage.step] = 0 if stage.mapped else nbytes[stage.step]
        mapped |= {stage.step} if stage.mapped else set()
        if not stage.mapped:
            disk[stage.step] = 0  # evicted
        most[0], most[1] = max(most[0], len(held)), max(most[1], sum(held.values()))
        for name in stage.due:
            assert set(evaluations[stage.step, name]) <= held.keys()
            done.append((stage.step, name))
        for one in stage.dropped:
            del held[one]
            disk[one] = 0
    assert not held
    assert not any(disk.values())
    return tuple(most), done


def test_a_window_of_5_with_spacing_3_spans_13_checkpoints():
    assert [one.span for one in all_series((5, 10), (1, 3))] == [5, 10, 13, 28]
    made = plan(due(spacings=(3,)))
    assert made.held == 13
    assert made.host == 130
    assert made.evaluations == 20 + 8


def test_what_a_window_covers():
    evaluations = due(spacings=(1, 3))
    assert evaluations[13000, "window5-spacing3"] == (1000, 4000, 7000, 10000, 13000)
    assert evaluations[5000, "window5"] == (1000, 2000, 3000, 4000, 5000)
    assert (4000, "window5") not in evaluations
    assert (12000, "window5-spacing3") not in evaluations
    assert evaluations[1000, PLAIN] == (1000,)
    assert list(evaluations) == sorted(evaluations, key=lambda one: one[0])


def test_over_uneven_steps_windows_keep_to_the_grid():
    steps = [0, 1, 2, 4, 512, *range(1000, 7000, 1000)]
    assert interval_of(steps) == 1000
    evaluations = due(steps, sizes=(3,))
    assert evaluations[2000, "window3"] == (0, 1000, 2000)
    assert [step for step, name in evaluations if name == "window3"] == [2000, 3000, 4000, 5000, 6000]
    assert plan(evaluations, steps=steps).held == 3  # 1, 2, 4 and 512 go at once, 0 waits for 2000
    assert interval_of([10, 20, 40, 60, 70]) == 10  # as often as 20, and the smaller


def test_names_tell_what_an_average_is():
    names = [one.name for one in all_series((4,), (1, 2), ("uniform", "linear", {"ema": 0.9}, [0.1, 0.2, 0.3, 0.4]))]
    assert names[:4] == ["window4", "window4-linear", "window4-ema0.9", "window4-explicit"]
    assert names[4:] == [f"window4-spacing2{end}" for end in ("", "-linear", "-ema0.9", "-explicit")]
    assert [one.name for one in all_series((2,), (1,), ([0.5, 0.5], [0.4, 0.6]))] == [
        "window2-explicit",
        "window2-explicit-2",
    ]
    [uniform, linear] = all_series((2,), (1,), ("uniform", "linear"))
    assert uniform.coefficients is None
    assert linear.coefficients == pytest.approx((1 / 3, 2 / 3))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: all_series((0,)), "window="),
        (lambda: all_series((5, 5)), "window=5 was given twice"),
        (lambda: all_series((5,), (0,)), "spacing=0"),
        (lambda: all_series((5,), (2, 2)), "spacing=2 was given twice"),
        (lambda: all_series((5,), (1,), ([0.5, 0.5],)), "2 coefficients were given for 5 snapshots"),
        (lambda: all_series((5,), (1,), ("quadratic",)), "'quadratic' is unknown"),
        (lambda: interval_of([1000]), "there is one step"),
        (lambda: due(STEPS[:12], spacings=(3,)), "window5-spacing3 spans 13 steps, 3000 updates apart"),
    ],
)
def test_what_cannot_be_had_is_a_mistake_in_use(call, sentence):
    with pytest.raises(UsageError, match=sentence):
        call()


@pytest.mark.parametrize("host_bytes", [10**9, 130, 60, 45, 9, 0])
@pytest.mark.parametrize("spacings", [(1,), (3,), (1, 3)])
def test_a_plan_is_what_carrying_it_out_takes(host_bytes, spacings):
    evaluations = due(spacings=spacings)
    nbytes = {step: 8 + step // 1000 % 3 for step in STEPS}
    made = make_plan(evaluations, nbytes, host_bytes=host_bytes, fetched=STEPS)
    most, done = walked(made, evaluations, nbytes, STEPS)
    assert (made.held, made.host, made.disk) == most
    assert made.host <= host_bytes
    assert done == list(evaluations)
    assert [stage.step for stage in made.stages] == STEPS  # each is loaded once
    assert made.loaded == sum(nbytes.values())


def test_the_disk_budget_decides_how_far_ahead_is_fetched():
    evaluations = due()
    assert [plan(evaluations, disk_bytes=budget).ahead for budget in (None, 30, 29, 20, 19, 10)] == [2, 2, 1, 1, 0, 0]
    with pytest.raises(LawaError, match=r"--disk-budget 9 \(9 B\) is too small: 10 bytes .* give --disk-budget 10, or"):
        plan(evaluations, disk_bytes=9)


def test_the_smallest_budgets_that_are_named_do():
    evaluations = due(spacings=(3,))
    with pytest.raises(LawaError, match="give --disk-budget 100, or --host-bytes 130 to hold") as told:
        plan(evaluations, host_bytes=45, disk_bytes=99)  # 13 snapshots, of which four are in memory
    assert "smaller windows" in str(told.value)
    assert plan(evaluations, host_bytes=45, disk_bytes=100).ahead == 0
    assert plan(evaluations, host_bytes=130, disk_bytes=10).disk == 10
    with pytest.raises(LawaError, match="too small"):
        plan(evaluations, host_bytes=129, disk_bytes=10)


def test_checkpoints_that_are_on_disk_anyway_take_no_budget():
    evaluations = due(spacings=(3,))
    made = make_plan(evaluations, dict.fromkeys(STEPS, 10), host_bytes=0, disk_bytes=1, fetched=())
    assert (made.disk, made.ahead) == (0, 2)


def test_what_is_done_already_is_not_planned_and_only_what_the_rest_needs_is_loaded():
    evaluations = {one: inputs for one, inputs in due(sizes=(3,)).items() if one[0] >= 18000}
    made = plan(evaluations)
    assert [(stage.step, stage.due) for stage in made.stages] == [
        (16000, ()),
        (17000, ()),
        *((step, (PLAIN, "window3")) for step in (18000, 19000, 20000)),
    ]
    made = plan({(20000, "window3"): (18000, 19000, 20000)})
    assert [stage.step for stage in made.stages] == [18000, 19000, 20000]
    assert plan({}).stages == ()


def test_groups_are_independent_neighbours_and_together_everything():
    evaluations = due(sizes=(5,))
    parts = groups(evaluations, 3)
    assert [len({step for step, _ in part}) for part in parts] == [6, 7, 7]
    assert list(itertools.chain.from_iterable(parts)) == list(evaluations)
    loaded = [[stage.step for stage in plan(part).stages] for part in parts]
    assert loaded[1][:5] == [3000, 4000, 5000, 6000, 7000]  # its overlap is read again
    assert sum(map(len, loaded)) == 20 + 2 * 4
    assert len(groups(evaluations, 100)) == 20
    assert groups({}, 4) == []
