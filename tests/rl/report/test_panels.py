"""Panels over the steps: what is drawn, what is left out, what is averaged."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from rl.report.figures import DARK, LIGHT, styled
from rl.report.panels import PANELS, Panel, draw_panels, silent_panels, thin

LINE = Panel("Line", {"a": "one", "b": "two"})
STACK = Panel("Stack", {"a": "one", "b": "two"}, stacked=True)


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Steps from 1 on, a list of values for each metric."""
    count = len(next(iter(columns.values())))
    return [{"step": i + 1, **{name: column[i] for name, column in columns.items()}} for i in range(count)]


def test_a_panel_shows_first_and_last_value_around_what_is_missing() -> None:
    (drawn,) = draw_panels((LINE,), rows(a=[None, 0.25, 0.5, None]))
    assert drawn.change == "0.25 → 0.5"
    assert drawn.legend == [("blue", "one")]


def test_equal_series_are_drawn_once_as_lines_and_both_in_a_stack() -> None:
    same = rows(a=[1, 2], b=[1, 2])
    assert [len(draw_panels((panel,), same)[0].legend) for panel in (LINE, STACK)] == [1, 2]


def test_what_is_zero_or_missing_is_named_and_not_drawn() -> None:
    zero, absent = Panel("Zero", {"z": "z"}), Panel("Absent", {"q": "q"})
    data = rows(a=[1, 2], z=[0, 0])
    assert [drawn.title for drawn in draw_panels((LINE, zero, absent), data)] == ["Line"]
    assert silent_panels((LINE, zero, absent), data) == (["Absent"], ["Zero"])


def test_the_mismatch_panel_has_its_bound() -> None:
    data = rows(**{"mismatch_kl/fresh": [1e-13, 2e-13]})
    bounded, free = (draw_panels(PANELS, data, bound)[0] for bound in (1e-6, None))
    assert ("red", "bound 1 \u00d7 10⁻⁶") in bounded.legend
    assert "var(--red)" in bounded.svg
    assert "var(--red)" not in free.svg


def test_throughput_is_tokens_over_time() -> None:
    data = rows(**{"tokens/generated": [300], "time/rollout": [1.5], "tokens/trained": [300], "time/learn": [0.5]})
    drawn = {one.title: one for one in draw_panels(PANELS, data)}["Throughput"]
    assert drawn.change == "200 → 200"
    assert [name for _, name in drawn.legend] == ["rollout", "learning"]


def test_long_runs_are_averaged() -> None:
    data = rows(a=[1, 2, 3, 4, None], b=[0, 0, 0, 6, 8])
    assert thin(data, most=5) == data
    short = thin(data, most=2)
    assert [row["step"] for row in short] == [3, 5]
    assert [row["a"] for row in short] == [2, 4]
    assert [row["b"] for row in short] == [0, 7]
    assert math.isnan(thin(rows(a=[None, None]), most=1)[0]["a"])


def test_a_long_run_makes_no_large_page() -> None:
    data = rows(**{f"samples/{name}": [i % 9 + 1 for i in range(20_000)] for name in ("ok", "wrong", "truncated")})
    assert sum(len(drawn.svg) for drawn in draw_panels(PANELS, data)) < 200_000


def test_a_figure_has_no_colour_of_its_own_and_no_shared_ids() -> None:
    with styled():
        drawn = draw_panels((LINE, STACK), rows(a=[1, 2], b=[2, 1]))
    assert not [code for one in drawn for code in re.findall(r"#[0-9a-fA-F]{6}\b", one.svg)]
    ids = [set(re.findall(r'\bid="([^"]+)"', one.svg)) for one in drawn]
    assert ids[0]
    assert not ids[0] & ids[1]
    for one, own in zip(drawn, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', one.svg)) <= own


def test_the_same_rows_give_the_same_figure() -> None:
    with styled():
        first, again = (draw_panels((LINE, STACK), rows(a=[1, 2], b=[2, 1])) for _ in range(2))
    assert first == again


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_text_colours_stand_out(palette: dict[str, str]) -> None:
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for parts of figures."""
    for name, needed in {
        "ink": 7,
        "muted": 4.5,
        "blue": 4.5,
        "orange": 4.5,
        "green": 4.5,
        "red": 3,
        "violet": 3,
    }.items():
        for ground in ("paper", "raised"):
            assert contrast(palette[name], palette[ground]) >= needed, (name, ground)


def contrast(a: str, b: str) -> float:
    """WCAG 2.1's ratio of relative luminances."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(code: str) -> float:
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
