"""Figures that live in the page: matplotlib draws them, the page's style sheet colours them.

A figure is drawn in stand-in colours, which become CSS variables in its SVG, so that it follows light and dark mode;
text stays text in the page's own font.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rewards.errors import BadInput
from rl.evaluation import figures
from rl.evaluation.axes import read_axes

COLOURS = figures.COLOURS | {"ink": "#0a0b00", "muted": "#0a0b01", "line": "#0a0b02"}
"""Variable of page.css -> what stands for it in a figure (and in page.mplstyle)."""

STYLE = mpl.rc_params_from_file(Path(__file__).with_name("page.mplstyle"), use_default_template=False)


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
    for variable, code in COLOURS.items():
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
    for key, figure in figures.draw_figures(axes).items():
        axis, name = getattr(axes, key), {"train": "training"}.get(key, key)
        figure.suptitle("")  # the page says both titles in its own type
        figure.axes[0].set_title("", loc="left")
        svg = to_svg(figure, name, f"Accuracy against {name} compute")
        drawn[name] = {"verdict": axis.verdict, "words": axis.words, "svg": svg}
    return drawn
