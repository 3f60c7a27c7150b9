"""What following a run will do, as plain values and as lines for people. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from lawa.averaging.cost import readable
from lawa.trajectories.follow import Following, half_of_memory
from lawa.trajectories.follow_plan import PLAIN, make_plan


def preview(following: Following) -> dict[str, Any]:
    """Checkpoints with their bytes, what is held at once, peaks against budgets, evaluations left."""
    request, source, plans = following.request, following.source, following.plans
    times = Counter(name for _, name in following.due)
    first = {name: min(step for step, own in following.due if own == name) for name in times}
    left = {one for group in following.groups for one in group}
    together = make_plan({one: following.due[one] for one in left}, source.nbytes, host_bytes=0)
    needed = sorted({stage.step for plan in plans for stage in plan.stages})
    return {
        "trajectory": {"name": source.name, "where": source.where, "interval": following.interval},
        "steps": following.steps,
        "averages": [
            {
                "name": one.name, "spans": one.span, "first": first[one.name], "evaluations": times[one.name],
                "coefficients": one.coefficients,
            }
            for one in following.series
        ],
        "checkpoints": [
            {"step": step, "bytes": source.nbytes[step], "content": source.contents[step]} for step in needed
        ],
        "fetched": bool(source.fetched),
        "loaded_bytes": sum(plan.loaded for plan in plans),
        "again_bytes": sum(plan.loaded for plan in plans) - together.loaded,
        "held": max((plan.held for plan in plans), default=0),
        "mapped": sum(stage.mapped for plan in plans for stage in plan.stages),
        "host_bytes": max((plan.host for plan in plans), default=0),
        "host_budget": half_of_memory() if request.host_bytes is None else request.host_bytes,
        "disk_bytes": max((plan.disk for plan in plans), default=0),
        "disk_budget": request.disk_bytes,
        "fetched_ahead": min((plan.ahead for plan in plans), default=0),
        "evaluations": {"plain": times[PLAIN], "averages": times.total() - times[PLAIN], "left": len(left)},
        "workers": len(plans) if request.workers > 1 else 1,
        "output": str(following.output),
    }  # fmt: skip


def preview_lines(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The same as (what, text)."""
    run, steps, checkpoints = told["trajectory"], told["steps"], told["checkpoints"]
    each = " a worker" if told["workers"] > 1 else ""
    yield "trajectory", f"{run['name']} ({run['where']})"
    yield "steps", f"{len(steps):,}, {steps[0]} to {steps[-1]}; windows every {run['interval']} updates"
    for one in told["averages"]:
        yield "average", f"{one['name']}: {one['evaluations']:,}, from step {one['first']} on; spans {one['spans']}"
    evaluations = told["evaluations"]
    done = evaluations["plain"] + evaluations["averages"] - evaluations["left"]
    yield (
        "evaluations",
        f"{evaluations['plain']:,} plain, {evaluations['averages']:,} of averages"
        + (f"; {done:,} are done already" if done else ""),
    )
    if not checkpoints:
        return
    sizes = sorted({one["bytes"] for one in checkpoints})
    span = readable(sizes[0]) if len(sizes) == 1 else f"{readable(sizes[0])} to {readable(sizes[-1])}"
    yield (
        "checkpoints",
        f"{len(checkpoints):,} of {span}: {readable(told['loaded_bytes'])} are "
        f"{'fetched and ' if told['fetched'] else ''}read",
    )
    if told["workers"] > 1:
        yield "workers", f"{told['workers']}; {readable(told['again_bytes'])} of that again, where their steps overlap"
    mapped = f"; {told['mapped']:,} snapshots are read from their files" if told["mapped"] else ""
    yield (
        "memory",
        f"at most {told['held']} snapshots at once, {readable(told['host_bytes'])} of them in memory{each} of "
        f"{readable(told['host_budget'])}{mapped}; beside them one model and one average",
    )
    if told["fetched"]:
        budget = f" of {readable(told['disk_budget'])}" if told["disk_budget"] is not None else ""
        yield "disk", f"at most {readable(told['disk_bytes'])}{each}{budget}, {told['fetched_ahead']} fetched ahead"


def results_lines(found: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """What came out, a line for each average."""
    for name in dict.fromkeys(one["average"] for one in found):
        own = [one for one in found if one["average"] == name]
        gains = [(one["gain"], one["step"]) for one in own if one["gain"] is not None]
        leads = [one["ahead"] for one in own if one["ahead"] is not None]
        beyond = len(own) - len(leads)
        largest = f"largest gain {max(gains)[0]:+.4f} at {max(gains)[1]}, mean" if gains else "no finite gain"
        mean = f" {sum(gain for gain, _ in gains) / len(gains):+.4f}" if gains else ""
        ahead = f"median {median(leads):+,.0f} updates ahead" if leads else "never reached by the run"
        more = f", {beyond} of {len(own)} beyond the steps" if beyond and leads else ""
        yield name, f"{largest}{mean}; {ahead}{more}"
