"""How numbers are written."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.report.build import PAGES
from rl.report.figures import NONE, SUPERSCRIPTS, THIN, number, si

WRITTEN: Any = PAGES.get_template("numbers.j2").module
UP = str.maketrans({chr(new): chr(old) for old, new in SUPERSCRIPTS.items()})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, NONE),
        (math.nan, NONE),
        (0, "0"),
        (256, "256"),
        (12_345.6, "12,346"),
        (0.125, "0.125"),
        (0.2, "0.2"),
        (62.04, "62"),
        (-3.14159, "\u22123.14"),
        (4.13e-14, "4.1 \u00d7 10⁻¹⁴"),
        (1e-6, "1 \u00d7 10⁻⁶"),
        (7_300_000, "7.3 \u00d7 10⁶"),
    ],
)
def test_numbers_are_short(value: Any, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e12, 1e12))
def test_a_written_number_is_the_number(value: float) -> None:
    text = number(value).replace(",", "").replace("\u2212", "-").replace(" \u00d7 10", "e").translate(UP)
    assert float(text) == pytest.approx(value, rel=0.051)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 F"), (999, "999 F"), (466e9, "466 GF"), (2.03e4, "20.3 kF"), (1e12, "1 TF"), (3e30, "3 QF")],
)
def test_quantities_take_a_prefix(value: float, text: str) -> None:
    assert si(value, "F").replace(THIN, " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 min 0 s"), (59.6, "1 min 0 s"), (76.5, "1 min 16 s"), (7_260, "2 h 1 min")]
)
def test_time_takes_two_units(seconds: float, text: str) -> None:
    assert WRITTEN.duration(seconds).replace(THIN, " ") == text


def test_shares_and_gains() -> None:
    assert [WRITTEN.share(x).replace(THIN, " ") for x in (0, 0.0325, 1, None)] == ["0 %", "3.25 %", "100 %", NONE]
    assert (WRITTEN.points(0.5547), WRITTEN.points(-0.031)) == ("+55.5", "\u22123.1")
