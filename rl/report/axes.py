"""Both scaling axes as sections of the page: the picture, the verdict in words, or what is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup
from matplotlib.figure import Figure

from rewards.errors import BadInput
from rl.evaluation.axes import read_axes
from rl.evaluation.figures import PAGE, thinking_figure, train_figure
from rl.evaluation.words import say_thinking, say_training
from rl.report.figures import to_svg
from rl.report.record import Record

TRAINING, THINKING = "Accuracy against training compute", "Accuracy against thinking compute"
NO_TRAINING = (
    "This run has fewer than two points on this axis. They are evaluations on val along the way: set eval.every."
)
NO_THINKING = "Thinking was not measured at several budgets. Set eval.budgets, or try ponder eval RUN --budget 0,16,32."


@dataclass(frozen=True)
class AxisSection:
    """One axis as the page shows it; without a picture, `missing` says why."""

    id: str
    title: str
    verdict: str = ""
    words: str = ""
    svg: Markup | None = None
    missing: str = ""


def draw_axes(record: Record) -> list[AxisSection]:
    """The sections of both axes, for a run with the seeds below it."""
    training = AxisSection("training", TRAINING, missing=NO_TRAINING)
    thinking = AxisSection("thinking", THINKING, missing=NO_THINKING)
    try:
        axes = read_axes([record.run.path])
    except BadInput as error:  # nothing in it can be placed on an axis, or not without doubt
        return [replace(section, missing=f"Not drawn. {error}.") for section in (training, thinking)]
    if axes.train is not None:
        svg = _draw(train_figure(axes, PAGE), "training", TRAINING)
        training = AxisSection("training", TRAINING, axes.train.verdict, say_training(axes.train), svg)
    if axes.thinking is not None:
        svg = _draw(thinking_figure(axes, PAGE), "thinking", THINKING)
        thinking = AxisSection("thinking", THINKING, axes.thinking.verdict, say_thinking(axes.thinking), svg)
    return [training, thinking]


def _draw(figure: Figure, name: str, title: str) -> Markup:
    """The figure without its titles, which the page says in its own type."""
    figure.suptitle("")
    for axes in figure.axes:
        axes.set_title("", loc="left")
    return to_svg(figure, name, title)
