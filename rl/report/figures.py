"""Figures that live in the page: matplotlib draws them, the page's style sheet colours them.

A figure is drawn in stand-in colours, which become CSS variables in its SVG, so that it follows light and dark mode;
text stays text in the page's own font.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rewards.errors import BadInput
from rl.evaluation import figures
from rl.evaluation.axes import read_axes
from rl.evaluation.words import say_thinking, say_training

NAMES = ("ink", "muted", "line", "blue", "orange", "violet", "green", "red", "sky", "grey")
COLOURS = {name: f"#0a0b{i:02x}" for i, name in enumerate(NAMES)}
"""Variable of page.css -> its stand-in in a figure."""
VARIABLES = {code: name for name, code in COLOURS.items()} | {
    figures.CURRENT: "ink", figures.BLUE: "blue", figures.ORANGE: "orange", figures.GREEN: "green", figures.RED: "red",
    figures.PURPLE: "violet", figures.SKY: "sky", figures.GREY: "grey",
}  # fmt: skip
"""Colour in a figure -> variable; those of the axes' figures included."""

STYLE: Any = {
    **dict.fromkeys(("axes.facecolor", "figure.facecolor"), "none"),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), COLOURS["line"]),
    **dict.fromkeys(("axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), COLOURS["muted"]),
    **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top", "ytick.left"), False),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "font.size": 9,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ponder",  # the same figure gives the same bytes
}
"""matplotlib.rcParams in which the page's figures are drawn and written."""


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One empty set of axes, in inches; no global state, no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Inline SVG of a figure. `name` makes its ids unique in the page, `label` is what a screen reader says."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
    # matplotlib's own style sheet would hold for the whole page
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    for code, variable in VARIABLES.items():
        text = re.sub(code, f"var(--{variable})", text, flags=re.IGNORECASE)
    return Markup(text)


def draw_levels(before: dict[str, Any], after: dict[str, Any], name: str) -> Markup:
    """pass@1 by difficulty with intervals; both map a level to {pass@1, ci95}."""
    figure, axes = new_figure(4.2, 2.6)
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
    if axes.train is not None:
        svg = _untitled(figures.train_figure(axes, figures.PAGE), "training")
        drawn["training"] = {"verdict": axes.train.verdict, "words": say_training(axes.train), "svg": svg}
    if axes.thinking is not None:
        svg = _untitled(figures.thinking_figure(axes, figures.PAGE), "thinking")
        drawn["thinking"] = {"verdict": axes.thinking.verdict, "words": say_thinking(axes.thinking), "svg": svg}
    return drawn


def _untitled(figure: Figure, name: str) -> Markup:
    """The figure without its titles, which the page says in its own type."""
    figure.suptitle("")
    for axes in figure.axes:
        axes.set_title("", loc="left")
    return to_svg(figure, name, f"Accuracy against {name} compute")
