"""Accuracy before and after by difficulty, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from rl.report.figures import AFTER, BEFORE, new_figure, to_svg
from rl.report.record import Comparison

SIZE = (4.2, 2.6)  # inches
OFFSET = 0.07  # of both sides from the level's place, so that their intervals stand apart

Levels = dict[str, dict[str, Any]]
"""Difficulty -> {pass@1, ci95, n_problems}: `by_difficulty` of a cell."""


@dataclass(frozen=True)
class ByDifficulty:
    """One task's figure and the rows of its table: (difficulty, before, after)."""

    task: str
    prompt: str
    svg: Markup
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]]


def by_difficulty(comparison: Comparison) -> list[ByDifficulty]:
    """A figure for each task and prompt whose cells say accuracy by difficulty."""
    found = []
    for i, (before, after) in enumerate(comparison.cells):
        sides: tuple[Levels, Levels] = before.get("by_difficulty", {}), after.get("by_difficulty", {})
        if levels := [level for level in sides[0] if level in sides[1]]:
            svg = _draw(f"difficulty{i}", levels, sides, comparison.names)
            rows = [(level, sides[0][level], sides[1][level]) for level in levels]
            found.append(ByDifficulty(before["task"], before["prompt"], svg, rows))
    return found


def _draw(name: str, levels: list[str], sides: tuple[Levels, Levels], names: tuple[str, str]) -> Markup:
    figure, axes = new_figure(SIZE)
    for side, colour, shift in zip(sides, (BEFORE, AFTER), (-OFFSET, OFFSET), strict=True):
        rates = [side[level]["pass@1"] for level in levels]
        reach = [[abs(side[level]["ci95"][end] - side[level]["pass@1"]) for level in levels] for end in (0, 1)]
        places = [i + shift for i in range(len(levels))]
        axes.errorbar(places, rates, reach, fmt="o-", color=colour, markersize=5, linewidth=1, elinewidth=2.2)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.5, len(levels) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(range(len(levels))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: levels[round(value)]))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("difficulty")
    axes.set_ylabel("pass@1")
    return to_svg(figure, name, f"pass@1 by difficulty, {names[0]} and {names[1]}")
