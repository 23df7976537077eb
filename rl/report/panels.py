"""What a run's metrics look like over its steps: a grid of small panels, all of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from rl.metrics import Row
from rl.report.figures import COLOURS, new_figure, to_svg
from rl.report.numbers import number

MOST_POINTS = 400
"""Steps beyond this number are averaged in runs of equal length: a page can't show more, and would grow with them."""


@dataclass(frozen=True)
class Panel:
    """One plot over the steps, as panels.yaml describes it."""

    title: str
    series: dict[str, str]
    note: str = ""
    stacked: bool = False
    log: bool = False
    colours: Sequence[str] = ("blue", "orange", "violet")


PANELS, BEHAVIOUR = (
    [Panel(**panel) for panel in panels]
    for panels in yaml.safe_load(Path(__file__).with_name("panels.yaml").read_text()).values()
)


def draw_panels(panels: Sequence[Panel], rows: Sequence[Row], bound: float | None = None) -> list[dict[str, Any]]:
    """Each panel that has something to show: {title, note, legend: (variable of page.css, name), change, svg}.

    `bound` is drawn into the panel of the mismatch KL; `change` is first and last value of the first metric.
    """
    drawn = []
    for panel in panels:
        columns = {key: column(rows, key) for key in panel.series}
        shown = {key: values for key, values in columns.items() if np.nan_to_num(values).any()}
        if shown:
            drawn.append(_draw(panel, column(rows, "step"), shown, bound if "mismatch_kl/fresh" in shown else None))
    return drawn


def column(rows: Sequence[Row], key: str, most: int = MOST_POINTS) -> NDArray[np.float64]:
    """A metric over the steps, [at most `most`], NaN where there is none; "a per b" divides one by another."""
    over, _, under = key.partition(" per ")
    values = np.array([row.get(over) for row in rows], dtype=float)
    starts = np.arange(0, len(values), math.ceil(len(values) / most) or 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if under:
            values /= np.array([row.get(under) for row in rows], dtype=float)
        known = np.isfinite(values)
        return np.add.reduceat(np.where(known, values, 0.0), starts) / np.add.reduceat(known.astype(float), starts)


def _draw(panel: Panel, steps: Any, shown: Mapping[str, Any], bound: float | None) -> dict[str, Any]:
    figure, axes = new_figure(3.7, 1.9)
    legend = [(c, name) for c, (key, name) in zip(panel.colours, panel.series.items(), strict=False) if key in shown]
    colours = [COLOURS[colour] for colour, _ in legend]
    if panel.stacked:
        axes.stackplot(steps, *map(np.nan_to_num, shown.values()), colors=colours, alpha=0.85, linewidth=0)
    else:
        marker = "o" if len(steps) < 30 else None
        for i, (colour, values) in enumerate(zip(colours, shown.values(), strict=True)):
            # later lines are thinner: equal ones both show
            axes.plot(steps, values, color=colour, marker=marker, markersize=2.6, linewidth=max(1, 2 - i))
    if bound is not None:
        axes.axhline(bound, color=COLOURS["red"], linewidth=1, linestyle=(0, (4, 3)))
        legend.append(("red", f"bound {number(bound)}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # no label: every panel has the same axis
    axes.margins(x=0.02)
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    first = next(iter(shown.values()))
    change = " → ".join(number(value) for value in first[~np.isnan(first)][[0, -1]])
    svg = to_svg(figure, panel.title.lower().replace(" ", "-"), f"{panel.title}: {change}")
    return {"title": panel.title, "note": panel.note, "legend": legend, "change": change, "svg": svg}
