"""The two axes as pictures, without pyplot: no state, no display. Figures that live in the page: drawn in stand-in
colours, which become CSS variables in the SVG, so that they follow light and dark mode; text stays text in the page's
own font. And numbers as a reader wants them."""

import io
import math
import re
from collections.abc import Sequence
from functools import reduce
from itertools import cycle
from operator import truediv
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml
from markupsafe import Markup, escape
from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from rewards.errors import BadInput
from rl.evaluation.accuracy import Accuracy
from rl.evaluation.axes import Axes, read_axes
from rl.evaluation.thinking import ThinkingAxis
from rl.evaluation.training import UNITS, TrainAxis
from rl.metrics import Row

COLOURS = {  # Okabe and Ito's, told apart by colour-blind readers; and what stands for the other variables of page.css
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "violet": "#CC79A7", "sky": "#56B4E9",
    "grey": "#888888", "ink": "#0a0b00", "muted": "#0a0b01", "line": "#0a0b02",
}  # fmt: skip
BLUE, ORANGE, GREEN, RED, VIOLET, SKY, GREY, *_ = COLOURS.values()
PAPER, STYLE = (
    mpl.rc_params_from_file(Path(__file__).with_name(f"{name}.mplstyle"), use_default_template=False)
    for name in ("paper", "page")
)

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NONE, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"
THIN = "\u202f"  # between a number and its unit: a line never breaks there


def draw_figures(axes: Axes) -> dict[str, Figure]:
    """{train, thinking}: the picture of each axis that was measured, without a title."""
    figures: dict[str, Figure] = {}
    draws: dict[str, Any] = {"train": draw_training, "thinking": draw_thinking}
    for name, axis in axes._asdict().items():
        if axis is not None:
            figures[name] = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
            draws[name](figures[name].add_subplot(ylim=(0, 1)), axis)
    return figures


@mpl.rc_context(PAPER)
def save_figures(axes: Axes, folder: Path) -> list[Path]:
    """Write scaling-AXIS.png and .svg of each axis and return their paths. Raises BadInput where that can't be."""
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in draw_figures(axes).items():
            axis, against = getattr(axes, name), {"train": "training compute"}.get(name, name)
            title = f"Accuracy against {against}: {axis.verdict}"
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
            figure.axes[0].set_title(fill(axis.words, 115), loc="left", x=-0.07, fontsize=8, pad=8)
            for kind in ("png", "svg"):
                paths.append(folder / f"scaling-{name}.{kind}")
                figure.savefig(paths[-1])
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise BadInput(f"can't write {error.filename}: {error.strerror}; choose another --out") from None
    return paths


def draw_training(plot: Plot, axis: TrainAxis) -> None:
    """Accuracy against training compute, the curve of the first half and what it foretold."""
    if axis.prediction is not None:  # solid over the points fitted, dashed with a band beyond
        fit, seam, end = axis.prediction.fit, float(axis.compute[axis.split - 1]), float(axis.compute[-1])
        known, ahead = np.linspace(0, seam, 100), np.linspace(seam, end, 60)
        plot.plot(known, fit.at(known), color=BLUE, lw=1.6, label="fit")
        if axis.inside is not None:
            size = float(np.median([accuracy.size for accuracy in axis.accuracies]))
            low, high = axis.prediction.band(ahead, np.full(len(ahead), size))
            plot.plot(ahead, fit.at(ahead), color=BLUE, lw=1.6, ls="--")
            plot.fill_between(ahead, low, high, color=BLUE, alpha=0.15, lw=0, label="predicted from it, 95 %")
    for part, inside, label in ((slice(axis.split), BLUE, "measured"), (slice(axis.split, None), "none", "held out")):
        if axis.accuracies[part]:
            _draw_points(plot, axis.compute[part], axis.accuracies[part], color=BLUE, mfc=inside, label=label)
    for seed, color in zip(axis.seeds, cycle((ORANGE, GREEN, VIOLET, SKY)), strict=False):
        values = [accuracy.value for accuracy in seed.accuracies]
        plot.plot(seed.compute, values, "o-", color=color, ms=3, lw=0.8, alpha=0.8, label=seed.name)
    plot.set(xlabel=f"training compute ({UNITS[axis.x]})", xlim=(-0.02 * float(axis.compute[-1]), None))
    plot.set_ylabel(f"pass@1 on {axis.accuracies[0].problems} validation problems")
    plot.legend(loc="lower right")


def draw_thinking(plot: Plot, axis: ThinkingAxis) -> None:
    """Accuracy against tokens spent a problem, by cap and by samples, for every policy, and the best of all."""
    final, room = axis.thinkers[-1], 0.0
    for rank, thinker in enumerate(axis.thinkers, 1):  # the first grey and the last blue, paler the earlier
        color, width = (BLUE, 1.8) if thinker is final else (GREY if rank == 1 else SKY, 1.2)
        tokens, accuracies = [cell.tokens for cell in thinker.caps], [cell.accuracy for cell in thinker.caps]
        alpha = 0.5 + 0.5 * rank / len(axis.thinkers)
        _draw_points(plot, tokens, accuracies, "o-", color=color, alpha=alpha, lw=width, label=thinker.name)
        if thinker.direct is not None:
            at = (thinker.direct.tokens, thinker.direct.accuracy.value)
            plot.plot(*at, "D", color=color, ms=6, mfc="none", label=f"{thinker.name}, answers at once")
    for cell in final.caps:  # each cap beside its point, unless it would lie on the one before
        if cell.budget is not None and cell.tokens >= room:
            at, room = (cell.tokens, cell.accuracy.value), cell.tokens * 1.1
            plot.annotate(str(cell.budget), at, xytext=(-5, 5), textcoords="offset points", ha="right", fontsize=7)
    kinds = {"derived": ("-", ORANGE, "pass@k, derived"), "unbiased": ("^", ORANGE, "pass@k, unbiased"),
             "majority": ("s-", GREEN, "majority@k")}  # fmt: skip
    for kind, (fmt, color, label) in kinds.items():
        known = [(point["tokens"], point[kind]) for point in final.samples if point[kind] is not None]
        if known:
            plot.plot(*zip(*known, strict=True), fmt, color=color, ms=4, lw=1.2, label=f"{final.name}, {label}")
    shown = axis.to_json()
    bought = [(row["tokens"], row["accuracy"]) for row in shown["points"] + shown["direct"]]
    measured = [(row["tokens"], row[kind]) for row in shown["samples"] for kind in ("unbiased", "majority")]
    spent, accuracy = np.array(sorted(bought + [pair for pair in measured if pair[1] is not None])).T
    frontier = np.maximum.accumulate(accuracy)
    plot.step(spent, frontier, where="post", color=GREY, lw=0.9, ls=":", label="frontier of all", zorder=1)
    if axis.verdict == "saturated" and axis.saturated_at is not None:
        plot.axvline(axis.saturated_at, color=GREY, lw=0.8, ls="--", zorder=0, label="saturated")
    plot.set_xscale("log", base=2)
    plot.xaxis.set_major_formatter("{x:g}")
    plot.set_xlabel("tokens spent on a problem (mean; small figures are thinking caps)")
    plot.set_ylabel(f"accuracy on {final.caps[0].accuracy.problems} problems")
    plot.legend(loc="upper left")


def _draw_points(plot: Plot, x: Any, accuracies: Sequence[Accuracy], fmt: str = "o", **style: Any) -> None:
    values, (low, high) = np.array([a.value for a in accuracies]), np.array([a.ci95 for a in accuracies]).T
    plot.errorbar(x, values, yerr=[values - low, high - values], fmt=fmt, ms=4, elinewidth=0.8, capsize=2, **style)


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Inline SVG of a figure. `name` makes its ids unique in the page, `label` is what a screen reader says."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    # matplotlib's own style sheet would hold for the whole page
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for variable, code in COLOURS.items():
        text = re.sub(code, f"var(--{variable})", text, flags=re.IGNORECASE)
    return Markup(text)


def draw_levels(before: dict[str, Any], after: dict[str, Any], name: str) -> Markup:
    """pass@1 by difficulty with intervals; both map a level to {pass@1, ci95}."""
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(before))
    for side, colour, shift in ((before, "orange", -0.07), (after, "blue", 0.07)):  # intervals stand apart
        rates = np.array([side[level]["pass@1"] for level in before])
        ends = np.array([side[level]["ci95"] for level in before])
        axes.errorbar(places + shift, rates, np.abs(ends.T - rates), fmt="o-", color=COLOURS[colour], ms=5, lw=1,
                      elinewidth=2.2)  # fmt: skip
    axes.set(xlim=(-0.5, len(before) - 0.5), ylim=(0, 1), xlabel="difficulty", ylabel="pass@1")
    axes.set_xticks(places, list(before))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return to_svg(figure, name, "pass@1 by difficulty, before and after")


def draw_axes(run_dir: Path) -> dict[str, Any]:
    """{training, thinking}: {verdict, words, svg} of each axis that was measured; {problem} where the run has none."""
    try:
        axes = read_axes([run_dir])
    except BadInput as error:  # nothing in it can be placed on an axis, or not without doubt
        return {"problem": str(error)}
    drawn = {}
    for key, figure in draw_figures(axes).items():
        axis, name = getattr(axes, key), {"train": "training"}.get(key, key)
        svg = to_svg(figure, name, f"Accuracy against {name} compute")
        drawn[name] = {"verdict": axis.verdict, "words": axis.words, "svg": svg}
    return drawn


class Panel(NamedTuple):
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
    `bound` is drawn into the panel of the mismatch KL; `change` is first and last value of the first metric."""
    drawn = []
    for panel in panels:
        columns = {key: column(rows, key) for key in panel.series}
        shown = {key: values for key, values in columns.items() if np.nan_to_num(values).any()}
        if not shown:
            continue
        figure = Figure(figsize=(3.7, 1.9), layout="constrained")
        axes, steps, first = figure.add_subplot(), column(rows, "step"), next(iter(shown.values()))
        known = zip(panel.colours, panel.series.items(), strict=False)
        legend = [(colour, name) for colour, (key, name) in known if key in shown]
        colours = [COLOURS[colour] for colour, _ in legend]
        if panel.stacked:
            axes.stackplot(steps, *map(np.nan_to_num, shown.values()), colors=colours, alpha=0.85, linewidth=0)
        else:
            marker = "o" if len(steps) < 30 else None
            for i, (colour, values) in enumerate(zip(colours, shown.values(), strict=True)):
                # later lines are thinner: equal ones both show
                axes.plot(steps, values, color=colour, marker=marker, markersize=2.6, linewidth=max(1, 2 - i))
        if bound is not None and "mismatch_kl/fresh" in shown:
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
        change = " → ".join(number(value) for value in first[~np.isnan(first)][[0, -1]])
        svg = to_svg(figure, panel.title.lower().replace(" ", "-"), f"{panel.title}: {change}")
        drawn.append({"title": panel.title, "note": panel.note, "legend": legend, "change": change, "svg": svg})
    return drawn


def column(rows: Sequence[Row], key: str, most: int = 400) -> NDArray[np.float64]:
    """A metric over the steps, [at most `most`], NaN where there is none; "a per b" divides one by another."""
    parts = [np.array([row.get(name) for row in rows], dtype=float) for name in key.split(" per ")]
    values = reduce(truediv, map(np.ma.masked_invalid, parts))  # masked: not logged, or divided by zero
    size = math.ceil(len(values) / most) or 1  # means of runs: a page can't show more
    padded = np.ma.append(values, np.ma.masked_all(-len(values) % size))
    return padded.reshape(-1, size).mean(axis=1).filled(np.nan)


def number(value: Any) -> str:
    """At most three significant digits (1,234, 12.3, 0.0123), powers of ten where they are shorter, a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    text, power = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}", ""
    if value and not 1e-4 <= abs(value) < 1e6:
        text, _, exponent = f"{value:.1e}".partition("e")
        text, power = text.removesuffix(".0"), f" {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return text.replace("-", MINUS) + power


def si(value: float, unit: str = "") -> str:
    """A quantity with the prefix that leaves one to three digits before the point: 466 GFLOP, 20.3 k."""
    return EngFormatter(unit, sep=THIN, useMathText=False)(float(f"{value:.3g}"))
