import pytest

from lawa.report.text import cut, lines, number, short, signed, whole


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (number(1.23456), "1.2346"),
        (number(None), "–"),
        (number(float("nan")), "nan"),
        (signed(0.05), "+0.0500"),
        (signed(-0.05, 2), "−0.05"),
        (signed(-0.00001), "0.0000"),
        (signed(None), "–"),
        (whole(1200.4), "1200"),
        (whole(-312), "−312"),
        (whole(143000), "143\u2009000"),
        (short(999), "999"),
        (short(1_320_000), "1.32M"),
        (short(6.9e9), "6.9B"),
        (cut("lawa", 4), "lawa"),
        (cut("a long run · lawa-5", 12), "a long…awa-5"),
        (lines([["arm", "loss"], ["a", "10.25"]]), "arm   loss\na    10.25"),
    ],
)
def test_how_things_are_written(made, text):
    assert made == text
