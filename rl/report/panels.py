"""What a run's metrics look like over its steps: a grid of small panels, all of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from rewards.types import STATUSES
from rl.metrics import Row
from rl.report.figures import COLOURS, new_figure, to_svg
from rl.report.numbers import number

MOST_POINTS = 400
"""Steps beyond this number are averaged in runs of equal length: a page can't show more, and would grow with them."""


@dataclass(frozen=True)
class Panel:
    """One plot over the steps; it is not drawn where all of its metrics are zero or were not logged."""

    title: str
    series: Mapping[str, str]  # metric, or "metric per metric" -> its name in the legend
    note: str = ""  # what to look for
    stacked: bool = False
    log: bool = False
    colours: Sequence[str] = ("blue", "orange", "violet")  # variables of page.css


PANELS = (
    Panel("Reward", {"reward/mean": "mean", "accuracy/pass@1": "correct"}, "of the chains that the step trains on"),
    Panel("Length", {"tokens/mean": "mean", "tokens/max": "longest"}, "tokens a chain"),
    Panel("Entropy", {"entropy": "entropy"}, "nats a token; a fall to zero ends exploration"),
    Panel("Status", {f"samples/{status}": status for status in STATUSES}, "chains of a step, by verdict", stacked=True,
          colours=("blue", "orange", "violet", "grey", "red", "ink", "line")),
    Panel("Groups without variance", {"groups/no_variance": "all alike"}, "all right or all wrong: no signal"),
    Panel("Mismatch KL", {"mismatch_kl/fresh": "server against learner"}, "nats, on fresh tokens before any update",
          log=True),
    Panel("Approximate KL", {"approx_kl": "old to current policy"}, "nats a token, within a step"),
    Panel("KL to the reference", {"kl/ref": "k3"}, "nats a token"),
    Panel("Clipped tokens", {"clip_fraction": "clipped"}, "share whose ratio left the clip range"),
    Panel("Gradient norm", {"grad_norm": "before clipping"}),
    Panel("Learning rate", {"learning_rate": "learning rate"}),
    Panel("Staleness", {"staleness": "versions behind"}, "how old the weights were that sampled a chain"),
    Panel("Throughput", {"tokens/generated per time/rollout": "rollout", "tokens/trained per time/learn": "learning"},
          "tokens a second"),
    Panel("Time a step", {"time/rollout": "rollout", "time/learn": "learning", "time/sync": "weight push"}, "seconds",
          stacked=True),
    Panel("Padding waste", {"padding_waste": "padding"}, "share of computed tokens that are padding"),
    Panel("Utilisation", {"mfu": "MFU"}, "share of the peak arithmetic that learning reaches"),
    Panel("Memory", {"memory/learner": "learner", "memory/server": "server", "memory/peak": "peak"}, "GiB"),
)  # fmt: skip

BEHAVIOUR = (
    Panel("Direct answers", {"chain/direct": "direct"}, "share of chains without any thinking"),
    Panel("Attempts", {"chain/attempts": "attempts"}, "tried in a chain, on average"),
    Panel("Backtracks", {"chain/backtracks": "backtracks"}, "attempts given up for another, in a chain"),
    Panel("Repeated attempts", {"chain/repeated": "repeated"}, "share of attempts that were made before"),
    Panel("Slips", {"chain/slips": "slips"}, "share of results that are wrong"),
)


@dataclass(frozen=True)
class Drawn:
    """A panel with its figure."""

    panel: Panel
    legend: list[tuple[str, str]]  # (variable of page.css, name)
    change: str  # first and last value of the first metric
    svg: Markup


def draw_panels(panels: Sequence[Panel], rows: Sequence[Row], bound: float | None = None) -> list[Drawn]:
    """Each panel that has something to show. `bound` is drawn into the panel of the mismatch KL."""
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


def _draw(panel: Panel, steps: Any, shown: Mapping[str, Any], bound: float | None) -> Drawn:
    figure, axes = new_figure(3.7, 1.9)
    names = [(c, name) for c, (key, name) in zip(panel.colours, panel.series.items(), strict=False) if key in shown]
    if panel.stacked:
        axes.stackplot(steps, *map(np.nan_to_num, shown.values()), colors=[COLOURS[c] for c, _ in names], alpha=0.85,
                       linewidth=0)  # fmt: skip
    else:
        for i, ((colour, _), values) in enumerate(zip(names, shown.values(), strict=True)):
            marker = "o" if len(steps) < 30 else None
            # later lines are thinner: equal ones both show
            axes.plot(steps, values, color=COLOURS[colour], marker=marker, markersize=2.6, linewidth=max(1, 2 - i))
    if bound is not None:
        axes.axhline(bound, color=COLOURS["red"], linewidth=1, linestyle=(0, (4, 3)))
        names.append(("red", f"bound {number(bound)}"))
    _scale(axes, panel.log)
    first = next(iter(shown.values()))
    ends = first[~np.isnan(first)][[0, -1]]
    change = f"{number(ends[0])} → {number(ends[1])}"
    return Drawn(
        panel, names, change, to_svg(figure, panel.title.lower().replace(" ", "-"), f"{panel.title}: {change}")
    )


def _scale(axes: Axes, log: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))  # no label: every panel has the same axis
    axes.margins(x=0.02)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
