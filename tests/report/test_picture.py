import math
import random
import struct
import zlib
from itertools import pairwise

import pytest

from lawa.report.arms import find
from lawa.report.look import BASELINE, COLOURS, Stroke, gain_range, loss_range, strokes, training_range
from lawa.report.picture import alternative, picture, spread
from lawa.report.runs import load_runs
from report.synthetic import evaluation, plain, replacing, run_json, write


def findings_of(tmp_path, lines, name="base", **changes):
    return find(load_runs([write(tmp_path / "run", run_json(name, **changes), lines)]))


def chunks(png: bytes) -> dict[bytes, bytes]:
    """The PNG's chunks, each checked against its checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    found, place = {}, 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, body = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", png[place + 8 + length : place + 12 + length])
        assert zlib.crc32(kind + body) == checksum
        found[kind] = found.get(kind, b"") + body
        place += 12 + length
    return found


def test_the_picture_is_a_png_of_readme_width_that_says_what_it_shows(tmp_path):
    findings = find(load_runs([plain(tmp_path / "a"), replacing(tmp_path / "b", "replace", slide=False)]))
    found = chunks(picture(findings))
    assert struct.unpack(">II", found[b"IHDR"][:8]) == (1600, 720)
    assert len(zlib.decompress(found[b"IDAT"])) > 720
    text = b"".join(found[kind] for kind in (b"tEXt", b"iTXt") if kind in found)
    assert b"validation loss of plain, lawa-5, ema, replace" in text
    assert alternative(findings).startswith("Two panels")


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [evaluation(20, plain=5.0)],
        [evaluation(20, plain=math.nan, ema=math.inf)],
        [evaluation(20, plain=3.0, ema=3.0), evaluation(40, plain=3.0, ema=3.0)],
        [evaluation(20, plain=3.0, ema=3.0), evaluation(40, plain=1e30, ema=math.nan)],
        [evaluation(t, **{f"average-{i:02d}": 3 + i / t for i in range(40)}, plain=3.0) for t in (20, 40)],
    ],
    ids=["nothing", "one point", "not finite", "flat", "huge", "forty arms"],
)
def test_any_records_give_a_picture(tmp_path, lines):
    chunks(picture(findings_of(tmp_path, lines)))


@pytest.mark.parametrize("name", ["$x^{$", "名前 🎉", "<b>&amp;", "a" * 300, "two\nlines", "\\frac"])
def test_any_name_can_be_drawn(tmp_path, name):
    lines = [evaluation(20, plain=3.0, **{name: 2.5}), evaluation(40, plain=2.0, **{name: 1.5})]
    model = {"architecture": name, "parameters": 1}
    chunks(picture(findings_of(tmp_path, lines, name, model=model)))


def test_labels_keep_their_distance_and_their_order():
    assert spread([], 0.1) == []
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]
    assert spread([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert spread([0.52, 0.5], 0.1) == pytest.approx([0.56, 0.46])
    assert spread([0.0, 0.0, 1.0], 0.1) == pytest.approx([0.0, 0.1, 1.0])
    assert spread([1.0, 0.99, 0.98], 0.1) == pytest.approx([1.0, 0.9, 0.8])
    # Two blocks that grow into each other become one: around the mean 0.475 of all four.
    assert spread([0.40, 0.41, 0.54, 0.55], 0.1) == pytest.approx([0.325, 0.425, 0.525, 0.625])


def test_many_labels_still_fit():
    dice = random.Random(0)
    for count in range(1, 30):
        gap = min(0.075, 1 / count)
        places = spread([dice.random() for _ in range(count)], gap)
        assert min(places) >= 0
        assert max(places) <= 1
        assert all(b - a > gap - 1e-9 for a, b in pairwise(sorted(places)))


def test_colours_come_round_with_another_dash(tmp_path):
    arms = findings_of(tmp_path, [evaluation(20, plain=1.0, **{str(i): 1.0 for i in range(8)})]).arms
    assert strokes(arms)[0] == Stroke(BASELINE, "solid")
    assert strokes(arms)[1] == Stroke(COLOURS[0], "solid")
    assert strokes(arms)[7] == Stroke(COLOURS[0], "dash")
    assert len(set(strokes(arms))) == len(arms)


def test_the_initial_fall_and_an_arm_that_diverged_are_out_of_view(tmp_path):
    # The fifth of training ends at update 200: the losses from there on are 4, 3, 2 and 3, 2.5, 1.5.
    lines = [
        evaluation(100, plain=10.0),
        evaluation(200, plain=4.0, a=3.0, worse=90.0),
        evaluation(500, plain=3.0, a=2.5, worse=95.0),
        evaluation(1000, plain=2.0, a=1.5, worse=99.0),
    ]
    arms = findings_of(tmp_path, lines).arms
    assert loss_range(arms) == pytest.approx((1.5 - 0.15, 4.0 + 0.15))  # padded by 0.06 of 2.5
    # Gains of a: 1, 0.5, 0.5; those of the arm that diverged are cut at minus eight.
    assert gain_range(arms) == pytest.approx((-8 - 0.54, 1 + 0.54))


def test_an_arm_that_is_merely_worse_stays_in_view(tmp_path):
    lines = [evaluation(t, plain=loss, worse=loss + 3) for t, loss in ((100, 9.0), (200, 4.0), (1000, 2.0))]
    low, high = loss_range(findings_of(tmp_path, lines).arms)
    assert low < 2.0
    assert high > 5.0


def test_ranges_without_losses():
    assert loss_range([]) == (0.0, 1.0)
    assert training_range([]) == (0.0, 1.0)
    assert gain_range([]) == (-1.0, 1.0)
