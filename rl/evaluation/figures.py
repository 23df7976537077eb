"""The two axes as pictures. Figures are made without pyplot: no state, no display."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure

from rl.evaluation.accuracy import Accuracy
from rl.evaluation.axes import Axes
from rl.evaluation.thinking import Thinker
from rl.evaluation.training import TrainAxis
from rl.evaluation.words import UNITS, say_thinking, say_training

# Okabe and Ito's colours, told apart by colour-blind readers
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#888888"
CURRENT = "#010203"  # stands for the text colour of the page

INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
GROUND = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
PAPER: Any = {
    **dict.fromkeys(INK, "#333333"), **dict.fromkeys(GROUND, "white"), "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": GREY, "grid.alpha": 0.25,
    "grid.linewidth": 0.6, "font.size": 9, "legend.fontsize": 8, "legend.frameon": False,
    "axes.formatter.use_mathtext": True,
}  # fmt: skip
PAGE = {**PAPER, **dict.fromkeys(INK, CURRENT), **dict.fromkeys(GROUND, "none")}  # takes the page's colours


def train_figure(axes: Axes, style: Any = PAPER) -> Figure:
    """Accuracy against training compute, the curve of the first half and what it foretold. Needs `axes.train`."""
    axis = axes.train
    assert axis is not None
    with mpl.rc_context(style):
        figure, plot = _new_figure(f"Accuracy against training compute: {axis.verdict}", say_training(axis))
        _draw_fit(plot, axis)
        split = axis.split
        _draw_points(plot, axis.compute[:split], axis.accuracies[:split], color=BLUE, label="measured")
        if split < len(axis.points):
            _draw_points(plot, axis.compute[split:], axis.accuracies[split:], color=BLUE, mfc="none", label="held out")
        for seed, color in zip(axis.seeds, cycle((ORANGE, GREEN, PURPLE, SKY)), strict=False):
            values = [accuracy.value for accuracy in seed.accuracies]
            plot.plot(seed.compute, values, "o-", color=color, ms=3, lw=0.8, alpha=0.8, label=seed.name)
        plot.set_xlabel(f"training compute ({UNITS[axis.x]})")
        plot.set_ylabel(f"pass@1 on {axis.accuracies[0].problems} validation problems")
        plot.set_xlim(left=-0.02 * float(axis.compute[-1]))
        plot.legend(loc="lower right")
    return figure


def thinking_figure(axes: Axes, style: Any = PAPER) -> Figure:
    """Accuracy against tokens spent a problem, by cap and by samples, for every policy. Needs `axes.thinking`."""
    axis = axes.thinking
    assert axis is not None
    with mpl.rc_context(style):
        figure, plot = _new_figure(f"Accuracy against thinking: {axis.verdict}", say_thinking(axis))
        _draw_thinkers(plot, axis.thinkers)
        _draw_samples(plot, axis.thinkers[-1])
        _draw_frontier(plot, axis.thinkers)
        if axis.verdict == "saturated" and axis.saturated_at is not None:
            plot.axvline(axis.saturated_at, color=GREY, lw=0.8, ls="--", zorder=0, label="saturated")
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter("{x:g}")
        plot.set_xlabel("tokens spent on a problem (mean; small figures are thinking caps)")
        plot.set_ylabel(f"accuracy on {axis.thinkers[-1].caps[0].accuracy.problems} problems")
        plot.legend(loc="upper left")
    return figure


def _new_figure(title: str, subtitle: str) -> tuple[Figure, Plot]:
    """A titled figure and its one plot."""
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    plot = figure.add_subplot(ylim=(0, 1))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    plot.set_title(fill(subtitle, 115), loc="left", x=-0.07, fontsize=8, pad=8)
    return figure, plot


def _draw_points(plot: Plot, x: Any, accuracies: Sequence[Accuracy], fmt: str = "o", **style: Any) -> None:
    """At `x` [n], with their intervals."""
    values, (low, high) = np.array([a.value for a in accuracies]), np.array([a.ci95 for a in accuracies]).T
    plot.errorbar(x, values, yerr=[values - low, high - values], fmt=fmt, ms=4, elinewidth=0.8, capsize=2, **style)


def _draw_fit(plot: Plot, axis: TrainAxis) -> None:
    """Solid over the points fitted, dashed with a band beyond."""
    if axis.prediction is None:
        return
    fit, seam, end = axis.prediction.fit, float(axis.compute[axis.split - 1]), float(axis.compute[-1])
    known, ahead = np.linspace(0, seam, 100), np.linspace(seam, end, 60)
    plot.plot(known, fit.at(known), color=BLUE, lw=1.6, label="fit")
    if axis.inside is not None:
        size = float(np.median([accuracy.size for accuracy in axis.accuracies]))
        low, high = axis.prediction.band(ahead, np.full(len(ahead), size))
        plot.plot(ahead, fit.at(ahead), color=BLUE, lw=1.6, ls="--")
        plot.fill_between(ahead, low, high, color=BLUE, alpha=0.15, lw=0, label="predicted from it, 95 %")


def _draw_thinkers(plot: Plot, thinkers: Sequence[Thinker]) -> None:
    """A line over the caps of each policy, the first grey and the last blue; a diamond where it answers at once."""
    for rank, thinker in enumerate(thinkers, 1):
        color, width = (BLUE, 1.8) if rank == len(thinkers) else (GREY if rank == 1 else SKY, 1.2)
        tokens, accuracies = [cell.tokens for cell in thinker.caps], [cell.accuracy for cell in thinker.caps]
        alpha = 0.5 + 0.5 * rank / len(thinkers)  # tells checkpoints apart
        _draw_points(plot, tokens, accuracies, "o-", color=color, alpha=alpha, lw=width, label=thinker.name)
        if thinker.direct is not None:
            at = (thinker.direct.tokens, thinker.direct.accuracy.value)
            plot.plot(*at, "D", color=color, ms=6, mfc="none", label=f"{thinker.name}, answers at once")
    room = 0.0
    for cell in thinkers[-1].caps:  # each cap beside its point, unless it would lie on the one before
        if cell.budget is not None and cell.tokens >= room:
            at, room = (cell.tokens, cell.accuracy.value), cell.tokens * 1.1
            plot.annotate(str(cell.budget), at, xytext=(-5, 5), textcoords="offset points", ha="right", fontsize=7)


def _draw_samples(plot: Plot, thinker: Thinker) -> None:
    """pass@k as derived (line) and unbiased (marks), and majority@k."""
    kinds = {"derived": ("-", ORANGE, "pass@k, derived"), "unbiased": ("^", ORANGE, "pass@k, unbiased"),
             "majority": ("s-", GREEN, "majority@k")}  # fmt: skip
    for kind, (fmt, color, label) in kinds.items():
        known = [(point.tokens, getattr(point, kind)) for point in thinker.samples if getattr(point, kind) is not None]
        if known:
            plot.plot(*zip(*known, strict=True), fmt, color=color, ms=4, lw=1.2, label=f"{thinker.name}, {label}")


def _draw_frontier(plot: Plot, thinkers: Sequence[Thinker]) -> None:
    """The best that so many tokens bought, of all that was measured."""
    cells = [cell for thinker in thinkers for cell in (*thinker.caps, thinker.direct) if cell is not None]
    found = [(cell.tokens, cell.accuracy.value) for cell in cells]
    for point in (point for thinker in thinkers for point in thinker.samples):
        found += [(point.tokens, value) for value in (point.unbiased, point.majority) if value is not None]
    tokens, accuracy = np.array(sorted(found)).T
    best = np.maximum.accumulate(accuracy)
    plot.step(tokens, best, where="post", color=GREY, lw=0.9, ls=":", label="frontier of all", zorder=1)
