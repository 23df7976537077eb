"""Before and after by difficulty: accuracy with intervals, and the tokens that a problem got."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

from rl.report.figures import AFTER, BEFORE, new_figure, to_svg
from rl.report.record import Comparison, Record
from rollout.types import Group

SIZE = (4.2, 2.6)  # inches
OFFSET = 0.07  # of both sides from the level's place, so that their intervals stand apart

Levels = dict[str, dict[str, Any]]
"""Difficulty -> {pass@1, ci95, n_problems}: `by_difficulty` of a cell."""


@dataclass(frozen=True)
class ByDifficulty:
    """One task's figure and the rows of its table."""

    task: str
    prompt: str
    svg: Markup
    rows: list[tuple[str, dict[str, Any], dict[str, Any], float | None, float | None]]
    """(difficulty, before, after, tokens before, tokens after); tokens are None where no chains were kept."""


def by_difficulty(record: Record, comparison: Comparison) -> list[ByDifficulty]:
    """A figure for each task and prompt whose cells say accuracy by difficulty."""
    groups = [record.chains(label) or [] for label in comparison.labels]
    alone = len({before["task"] for before, _ in comparison.cells}) == 1
    found = []
    for i, (before, after) in enumerate(comparison.cells):
        if levels := [level for level in before["by_difficulty"] if level in after["by_difficulty"]]:
            tokens = [mean_tokens(side, None if alone else before["task"]) for side in groups]
            rows = [
                (d, before["by_difficulty"][d], after["by_difficulty"][d], tokens[0].get(d), tokens[1].get(d))
                for d in levels
            ]
            svg = _draw(f"difficulty{i}", levels, (before["by_difficulty"], after["by_difficulty"]), comparison.names)
            found.append(ByDifficulty(before["task"], before["prompt"], svg, rows))
    return found


def mean_tokens(groups: Sequence[Group], task: str | None) -> dict[str, float]:
    """Mean sampled tokens a chain at each difficulty; of one of several tasks, whose problems' ids begin with it."""
    counts: dict[str, list[int]] = {}
    for group in groups:
        if task is None or group.problem.id.startswith((f"{task}/", f"{task}:")):
            counts.setdefault(f"{group.problem.difficulty:g}", []).extend(c.sampled_count for c in group.chains)
    return {level: sum(values) / len(values) for level, values in counts.items() if values}


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
