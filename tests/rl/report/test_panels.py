"""Panels over the steps: what is drawn, what is left out, what is averaged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import rl.report
from rl.report.figures import COLOURS, PANELS, STYLE, Panel, column, draw_panels

LINE = Panel("Line", {"a": "one", "b": "two"})
STACK = Panel("Stack", {"a": "one", "b": "two"}, stacked=True)


def rows(**columns: Any) -> list[dict[str, Any]]:
    """Steps from 1 on, a list of values for each metric."""
    count = len(next(iter(columns.values())))
    return [{"step": i + 1, **{name: column[i] for name, column in columns.items()}} for i in range(count)]


def test_a_panel_shows_first_and_last_value_around_what_is_missing() -> None:
    (drawn,) = draw_panels((LINE,), rows(a=[None, 0.25, 0.5, None]))
    assert drawn["change"] == "0.25 → 0.5"
    assert drawn["legend"] == [("blue", "one")]


def test_what_is_zero_or_missing_is_not_drawn() -> None:
    zero, absent = Panel("Zero", {"z": "z"}), Panel("Absent", {"q": "q"})
    drawn = draw_panels((LINE, zero, absent), rows(a=[1, 2], z=[0, 0]))
    assert [one["title"] for one in drawn] == ["Line"]
    assert drawn[0]["legend"] == [("blue", "one")]
    assert draw_panels((LINE,), []) == []


def test_the_mismatch_panel_has_its_bound() -> None:
    data = rows(**{"mismatch_kl/fresh": [1e-13, 2e-13]})
    bounded, free = (draw_panels(PANELS, data, bound)[0] for bound in (1e-6, None))
    assert ("red", "bound 1 \u00d7 10⁻⁶") in bounded["legend"]
    assert "var(--red)" in bounded["svg"]
    assert "var(--red)" not in free["svg"]


def test_throughput_is_tokens_over_time() -> None:
    data = rows(**{"tokens/generated": [300], "time/rollout": [1.5], "tokens/trained": [300], "time/learn": [0.5]})
    drawn = {one["title"]: one for one in draw_panels(PANELS, data)}["Throughput"]
    assert drawn["change"] == "200 → 200"
    assert [name for _, name in drawn["legend"]] == ["rollout", "learning"]


def test_long_runs_are_averaged() -> None:
    data = rows(a=[1, 2, 3, 4, None], b=[0, 0, 0, 6, 8])
    np.testing.assert_equal(column(data, "a", most=5), [1, 2, 3, 4, np.nan])
    np.testing.assert_equal(column(data, "a", most=2), [2, 4])
    np.testing.assert_equal(column(data, "b", most=2), [0, 7])
    np.testing.assert_equal(column(data, "step", most=2), [2, 4.5])
    np.testing.assert_equal(column(data, "a per b"), [np.nan, np.nan, np.nan, 4 / 6, np.nan])
    np.testing.assert_equal(column(data, "absent", most=2), [np.nan, np.nan])


def test_a_long_run_makes_no_large_page() -> None:
    data = rows(**{f"samples/{name}": [i % 9 + 1 for i in range(20_000)] for name in ("ok", "wrong", "truncated")})
    assert sum(len(drawn["svg"]) for drawn in draw_panels(PANELS, data)) < 200_000


def test_a_figure_has_no_colour_of_its_own_and_no_shared_ids() -> None:
    with mpl.rc_context(STYLE):
        drawn = draw_panels((LINE, STACK), rows(a=[1, 2], b=[2, 1]))
    assert not [code for one in drawn for code in re.findall(r"#[0-9a-fA-F]{6}\b", one["svg"])]
    assert set(COLOURS) <= palettes()[0].keys() == palettes()[1].keys()
    ids = [set(re.findall(r'\bid="([^"]+)"', one["svg"])) for one in drawn]
    assert ids[0]
    assert not ids[0] & ids[1]
    for one, own in zip(drawn, ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', one["svg"])) <= own


def test_the_same_rows_give_the_same_figure() -> None:
    with mpl.rc_context(STYLE):
        first, again = (draw_panels((LINE, STACK), rows(a=[1, 2], b=[2, 1])) for _ in range(2))
    assert first == again


def palettes() -> list[dict[str, str]]:
    """The colours of page.css by name: light, dark."""
    text = (Path(rl.report.__path__[0]) / "page.css").read_text()
    return [dict(re.findall(r"--(\w+): (#\w{6});", block)) for block in re.findall(r":root {(.*?)}", text, re.DOTALL)]


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_colours_stand_out(palette: dict[str, str]) -> None:
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for parts of figures."""
    least = {"ink": 7, "muted": 4.5, "blue": 4.5, "orange": 4.5, "green": 4.5, "red": 3, "violet": 3}
    for name, needed in least.items():
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
