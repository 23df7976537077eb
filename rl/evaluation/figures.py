"""The two axes as pictures. Figures are made without pyplot: no state, no display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import cycle
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from rl.evaluation.axes import Axes
from rl.evaluation.points import Accuracy, Array
from rl.evaluation.thinking import Thinker, ThinkingAxis
from rl.evaluation.training import TrainAxis
from rl.evaluation.words import say_thinking, say_training

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
GREY = "#888888"
"""Okabe and Ito's colours, told apart by colour-blind readers."""
X_LABELS = {
    "flops": "training compute, learner and rollout (FLOPs)",
    "tokens": "tokens generated in training",
    "steps": "training steps",
    "seconds": "time in training steps (seconds)",
}
CURRENT = "#010203"
"""Stands for the page's text colour until `svg` replaces it."""


@dataclass(frozen=True)
class Theme:
    """Colours of what isn't data."""

    ink: str
    background: str


PAPER = Theme("#333333", "white")
PAGE = Theme(CURRENT, "none")
"""Takes the colours of the page that embeds it, dark or light; for `svg`."""


def train_figure(axes: Axes, theme: Theme = PAPER) -> Figure:
    """Accuracy against training compute, the curve of the first half and what it foretold. Needs `axes.train`."""
    axis = axes.train
    if axis is None:
        raise ValueError("no training axis was measured")
    title = f"Accuracy against training compute: {axis.verdict}"
    with _figure(theme, title, say_training(axis), legend="lower right") as (figure, plot):
        _draw_fit(plot, axis)
        _draw_points(plot, axis)
        for seed, color in zip(axis.seeds, cycle((ORANGE, GREEN, PURPLE, SKY)), strict=False):
            values = [accuracy.value for accuracy in seed.accuracies]
            plot.plot(seed.compute, values, "o-", color=color, ms=3, lw=0.8, alpha=0.8, label=seed.name)
        plot.set_xlabel(X_LABELS[axis.x])
        plot.set_ylabel(f"pass@1 on {axis.accuracies[0].problems} validation problems")
        plot.set_xlim(left=-0.02 * float(axis.compute[-1]))
    return figure


def thinking_figure(axes: Axes, theme: Theme = PAPER) -> Figure:
    """Accuracy against tokens spent a problem, by cap and by samples, for every policy. Needs `axes.thinking`."""
    axis = axes.thinking
    if axis is None:
        raise ValueError("no thinking axis was measured")
    title = f"Accuracy against thinking: {axis.verdict}"
    with _figure(theme, title, say_thinking(axis), legend="upper left") as (figure, plot):
        _draw_thinkers(plot, axis)
        _draw_samples(plot, axis.thinkers[-1])
        tokens, accuracy = zip(*((point.tokens, point.accuracy) for point in axis.frontier), strict=True)
        plot.step(tokens, accuracy, where="post", color=GREY, lw=0.9, ls=":", label="frontier of all", zorder=1)
        if axis.verdict == "saturated" and axis.saturated_at is not None:
            plot.axvline(axis.saturated_at, color=GREY, lw=0.8, ls="--", zorder=0, label="saturated")
        plot.set_xscale("log", base=2)
        plot.xaxis.set_major_formatter("{x:g}")
        plot.set_xlabel("tokens spent on a problem (mean; small figures are thinking caps)")
        plot.set_ylabel(f"accuracy on {axis.thinkers[-1].caps[0].accuracy.problems} problems")
    return figure


def svg(figure: Figure) -> str:
    """The figure as an <svg> element; the same figure gives the same text."""
    with mpl.rc_context({"svg.hashsalt": "ponder", "svg.fonttype": "none"}):  # text stays text, in the page's font
        out = StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue().replace(CURRENT, "currentColor")
    return text[text.index("<svg") :]


@contextmanager
def _figure(
    theme: Theme, title: str, subtitle: str, legend: Literal["lower right", "upper left"]
) -> Iterator[tuple[Figure, Plot]]:
    """A figure with one plot, dressed and titled; its legend is drawn when the block ends."""
    style: Any = {  # matplotlib's type for it names each of 300 keys
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), theme.ink),
        **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), theme.background),
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": GREY, "grid.alpha": 0.25, "grid.linewidth": 0.6, "font.size": 9, "legend.fontsize": 8,
        "legend.frameon": False, "axes.formatter.use_mathtext": True,
    }  # fmt: skip
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
        plot = figure.add_subplot()
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        plot.set_title(fill(subtitle, 115), loc="left", x=-0.07, fontsize=8, pad=8)
        yield figure, plot
        plot.set_ylim(0, 1)
        entries = sorted(zip(*plot.get_legend_handles_labels(), strict=True), key=lambda entry: not _measured(entry[0]))
        handles, labels = zip(*entries, strict=True)
        plot.legend(handles, labels, loc=legend)


def _measured(handle: object) -> bool:
    """Points with intervals come first in a legend."""
    return isinstance(handle, ErrorbarContainer)


def _draw_points(plot: Plot, axis: TrainAxis) -> None:
    """Filled up to the split, hollow beyond, with intervals."""
    shown = [(slice(None), BLUE, "measured")]
    if axis.half is not None:
        shown = [(slice(axis.split), BLUE, "first half"), (slice(axis.split, None), "none", "second half, held out")]
    for part, face, label in shown:
        accuracies = axis.accuracies[part]
        plot.errorbar(
            axis.compute[part], [a.value for a in accuracies], yerr=_errors(accuracies), fmt="o", color=BLUE, mfc=face,
            ms=5, lw=1, capsize=2, label=label, zorder=3,
        )  # fmt: skip


def _draw_fit(plot: Plot, axis: TrainAxis) -> None:
    """Solid over the points fitted, dashed with a band beyond; the fit of all points besides."""
    end = float(axis.compute[-1])
    if axis.half is not None:
        seam = float(axis.compute[axis.split - 1])
        known, ahead = np.linspace(0, seam, 100), np.linspace(seam, end, 60)
        plot.plot(known, axis.half.fit.at(known), color=BLUE, lw=1.6, label="fit of the first half")
        plot.plot(ahead, axis.half.fit.at(ahead), color=BLUE, lw=1.6, ls="--")
        low, high = axis.half.band(ahead, np.full(len(ahead), float(np.median(axis.sizes))))
        plot.fill_between(ahead, low, high, color=BLUE, alpha=0.15, lw=0, label="predicted from it, 95 %")
    if axis.whole is not None:
        grid = np.linspace(0, end, 160)
        fit = axis.whole.fit
        plot.plot(grid, fit.at(grid), color=RED, lw=1, label=f"fit of all points, ceiling {fit.ceiling:.2f}")


def _draw_thinkers(plot: Plot, axis: ThinkingAxis) -> None:
    """A line over the caps of each policy: the first grey, the last blue, checkpoints between in growing blue."""
    for rank, thinker in enumerate(axis.thinkers):
        last = rank == len(axis.thinkers) - 1
        color = BLUE if last else GREY if rank == 0 else SKY
        accuracies = [cell.accuracy for cell in thinker.caps]
        plot.errorbar(
            [cell.tokens for cell in thinker.caps], [a.value for a in accuracies], yerr=_errors(accuracies), fmt="o-",
            color=color, alpha=1 if color != SKY else 0.3 + 0.7 * rank / len(axis.thinkers), ms=4 if last else 3,
            lw=1.8 if last else 1.2, elinewidth=0.8, capsize=2 if last else 0, label=f"{thinker.name}, by cap",
            zorder=4 if last else 2,
        )  # fmt: skip
        if thinker.direct is not None:
            at = (thinker.direct.tokens, thinker.direct.accuracy.value)
            plot.plot(*at, "D", color=color, ms=6, mfc="none", label=f"{thinker.name}, answers at once")
    _name_caps(plot, axis.thinkers[-1])


def _name_caps(plot: Plot, thinker: Thinker) -> None:
    """Each cap beside its point, unless the name would lie on the one before."""
    room = 0.0
    for cell in thinker.caps:
        if cell.budget is not None and cell.tokens >= room:
            at, room = (cell.tokens, cell.accuracy.value), cell.tokens * 1.1
            plot.annotate(str(cell.budget), at, xytext=(-5, 5), textcoords="offset points", ha="right", fontsize=7)


def _draw_samples(plot: Plot, thinker: Thinker) -> None:
    """pass@k as derived (line) and unbiased (marks), and majority@k."""
    rows = {
        "pass@k, derived": ("-", ORANGE, [(p.tokens, p.derived) for p in thinker.samples]),
        "pass@k, unbiased": ("^", ORANGE, [(p.tokens, p.unbiased) for p in thinker.samples]),
        "majority@k": ("s-", GREEN, [(p.tokens, p.majority) for p in thinker.samples]),
    }
    for label, (style, color, pairs) in rows.items():
        known = [(tokens, value) for tokens, value in pairs if value is not None]
        if known:
            plot.plot(*zip(*known, strict=True), style, color=color, ms=4, lw=1.2, label=f"{thinker.name}, {label}")


def _errors(accuracies: Sequence[Accuracy]) -> Array:
    """[2, n] distances down and up to the interval's ends."""
    return np.array([[a.value - a.ci95[0] for a in accuracies], [a.ci95[1] - a.value for a in accuracies]])
