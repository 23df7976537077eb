"""Figures that live in the page: matplotlib draws them, the page's style sheet colours them.

A colour of the palette becomes a CSS variable in the SVG, so that a figure follows light and dark mode; text stays
text in the page's own font.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from cycler import cycler
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.evaluation.figures import BLUE, CURRENT, GREEN, ORANGE, PURPLE, RED, SKY

LIGHT = {
    "paper": "#fdfcf9", "raised": "#f5f3ed", "ink": "#1f2429", "muted": "#5c646d", "line": "#dedad0",
    "blue": "#0b6a84", "orange": "#b4500b", "violet": "#6b46a8", "green": "#4d7222", "red": "#a92f55",
    "sky": "#4a9dc0", "grey": "#8a8f96",
}  # fmt: skip
DARK = {
    "paper": "#14181c", "raised": "#1c2126", "ink": "#e8e6e1", "muted": "#a0a8b1", "line": "#343b43",
    "blue": "#58c4dc", "orange": "#f2a15f", "violet": "#b9a0ee", "green": "#a5ca6f", "red": "#f08aa8",
    "sky": "#3f8aa3", "grey": "#858c95",
}  # fmt: skip
FOREIGN = {
    "#000000": "ink", "#ffffff": "paper", CURRENT: "ink", BLUE: "blue", ORANGE: "orange", GREEN: "green", RED: "red",
    PURPLE: "violet", SKY: "sky", "#888888": "grey",
}  # fmt: skip
VARIABLES = {code: name for name, code in LIGHT.items()} | {code.lower(): name for code, name in FOREIGN.items()}
"""Colour in a figure -> variable of the style sheet; those of the axes' figures included."""
SERIES = ("blue", "orange", "violet", "green", "red")
BEFORE, AFTER = LIGHT["orange"], LIGHT["blue"]
PANEL = (3.7, 1.9)  # inches

NOISE = r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->"
"""Parts of matplotlib's SVG that a page does not need; its style would hold for the whole page."""

STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT["line"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": LIGHT["muted"],
    "axes.prop_cycle": cycler(color=[LIGHT[name] for name in SERIES]),
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "ponder",  # the same figure gives the same bytes
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.color": LIGHT["line"],
    "ytick.labelcolor": LIGHT["muted"],
    "ytick.left": False,
}


def styled() -> AbstractContextManager[None]:
    """Within it, matplotlib draws as this page wants it."""
    return matplotlib.rc_context(STYLE)


def new_figure(size: tuple[float, float] = PANEL) -> tuple[Figure, Axes]:
    """One empty set of axes of `size` inches; no global state, no window."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.add_subplot()


def to_svg(figure: Figure, name: str, label: str) -> Markup:
    """Inline SVG of a figure. `name` makes its ids unique in the page, `label` is what a screen reader says."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", text, flags=re.DOTALL
    )
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"#[0-9a-fA-F]{6}\b", _variable, text)
    text = re.sub(r"\n\s*", "\n", text)
    view_box = re.search(r'viewBox="[^"]*"', text)
    head = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view_box[0]} role="img" aria-label="{escape(label)}">'  # type: ignore[index]
    return Markup(head + text[text.index(">") + 1 :])


def css_variables() -> Markup:
    """The palette as CSS: light, and dark where the reader's system asks for it."""
    light, dark = (";".join(f"--{name}:{code}" for name, code in p.items()) for p in (LIGHT, DARK))
    return Markup(f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}")


def _variable(match: re.Match[str]) -> str:
    name = VARIABLES.get(match[0].lower())
    return match[0] if name is None else f"var(--{name})"
