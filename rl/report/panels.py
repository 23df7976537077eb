"""What a run's metrics look like over its steps: a grid of small panels, all of one kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from rewards.types import STATUSES
from rl.metrics import Row
from rl.report.figures import LIGHT, SERIES, new_figure, to_svg
from rl.report.numbers import number

MOST_POINTS = 400
"""Steps beyond this number are averaged in runs of equal length: a page can't show more, and would grow with them."""


@dataclass(frozen=True)
class Panel:
    """One plot over the steps. A panel none of whose metrics was logged is not drawn."""

    title: str
    series: Mapping[str, str]  # metric -> its name in the legend
    note: str = ""  # what to look for
    stacked: bool = False
    log: bool = False
    colours: Sequence[str] = SERIES  # of the palette


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
    Panel("Throughput", {"rate/rollout": "rollout", "rate/learn": "learning"}, "tokens a second"),
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
    """A panel with its figure, as the page shows it."""

    title: str
    note: str
    legend: list[tuple[str, str]]  # (colour of the palette, name)
    change: str  # first and last value of the first metric
    svg: Markup


def draw_panels(panels: Sequence[Panel], rows: Sequence[Row], bound: float | None = None) -> list[Drawn]:
    """Each panel that has something to show. `bound` is drawn into the panel of the mismatch KL."""
    rows = thin([_with_rates(row) for row in rows])
    return [_draw(panel, shown, rows, bound) for panel in panels if (shown := _shown(panel, rows))]


def silent_panels(panels: Sequence[Panel], rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Titles of the panels that `draw_panels` leaves out: (never logged, zero in every step)."""
    rows = [_with_rates(row) for row in rows]
    left_out = [panel for panel in panels if not _shown(panel, rows)]
    zero = [panel.title for panel in left_out if any(row.get(key) == 0 for row in rows for key in panel.series)]
    return [panel.title for panel in left_out if panel.title not in zero], zero


def thin(rows: Sequence[Row], most: int = MOST_POINTS) -> list[Row]:
    """At most `most` rows: means over runs of equal length, at the run's last step. NaN and null do not count."""
    size = math.ceil(len(rows) / most)
    if size <= 1:
        return list(rows)
    pieces = [rows[i : i + size] for i in range(0, len(rows), size)]
    return [{key: _mean(piece, key) for key in piece[-1]} | {"step": piece[-1]["step"]} for piece in pieces]


def step_axis(axes: Axes) -> None:
    """Few whole numbers below; no label, since every panel has the same axis."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.02)


def _draw(panel: Panel, shown: Mapping[str, str], rows: Sequence[Row], bound: float | None) -> Drawn:
    figure, axes = new_figure()
    steps = [row["step"] for row in rows]
    colours = [panel.colours[list(panel.series).index(key)] for key in shown]
    values = {key: [_finite(row.get(key)) for row in rows] for key in shown}
    if panel.stacked:
        axes.stackplot(steps, *([0.0 if math.isnan(v) else v for v in column] for column in values.values()),
                       colors=[LIGHT[c] for c in colours], alpha=0.85, linewidth=0)  # fmt: skip
    for colour, column in zip(colours, [] if panel.stacked else values.values(), strict=False):
        axes.plot(steps, column, color=LIGHT[colour], marker="o" if len(steps) < 30 else None, markersize=2.6)
    legend = list(zip(colours, shown.values(), strict=True))
    if bound is not None and "mismatch_kl/fresh" in shown:
        axes.axhline(bound, color=LIGHT["red"], linewidth=1, linestyle=(0, (4, 3)))
        legend.append(("red", f"bound {number(bound)}"))
    _scale(axes, log=panel.log and all(any(v > 0 for v in column) for column in values.values()))
    step_axis(axes)
    first = [value for value in values[next(iter(shown))] if not math.isnan(value)]
    change = f"{number(first[0])} → {number(first[-1])}"
    label = f"{panel.title} over {len(rows)} steps: {change}"
    return Drawn(panel.title, panel.note, legend, change, to_svg(figure, _slug(panel.title), label))


def _scale(axes: Axes, log: bool) -> None:
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _with_rates(row: Row) -> Row:
    """A row with tokens a second of both halves of a step."""
    pairs = {"rate/rollout": ("tokens/generated", "time/rollout"), "rate/learn": ("tokens/trained", "time/learn")}
    return row | {name: row[a] / row[b] for name, (a, b) in pairs.items() if row.get(a) and row.get(b)}


def _shown(panel: Panel, rows: Sequence[Row]) -> dict[str, str]:
    """The panel's metrics that are not always zero or missing; one that equals an earlier one is not drawn over it."""
    columns: dict[str, list[float]] = {}
    for key in panel.series:
        column = [_finite(row.get(key)) for row in rows]
        numbers = [value for value in column if not math.isnan(value)]
        if any(numbers) and (panel.stacked or column not in columns.values()):
            columns[key] = column
    return {key: panel.series[key] for key in columns}


def _mean(rows: Sequence[Row], key: str) -> float:
    values = [value for value in (_finite(row.get(key)) for row in rows) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")
