"""The two axes as pictures. Figures are made without pyplot: no state, no display."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes as Plot
from matplotlib.figure import Figure

from rewards.errors import BadInput
from rl.evaluation.accuracy import Accuracy
from rl.evaluation.axes import Axes
from rl.evaluation.thinking import ThinkingAxis
from rl.evaluation.training import UNITS, TrainAxis

COLOURS = {  # Okabe and Ito's, told apart by colour-blind readers
    "blue": "#0072B2", "orange": "#E69F00", "green": "#009E73", "red": "#D55E00", "violet": "#CC79A7", "sky": "#56B4E9",
    "grey": "#888888",
}  # fmt: skip
BLUE, ORANGE, GREEN, RED, VIOLET, SKY, GREY = COLOURS.values()


def draw_figures(axes: Axes) -> dict[str, Figure]:
    """{train, thinking}: the picture of each axis that was measured, without a title."""
    figures: dict[str, Figure] = {}
    draws: dict[str, Any] = {"train": draw_training, "thinking": draw_thinking}
    for name, draw in draws.items():
        if (axis := getattr(axes, name)) is not None:
            figures[name] = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
            draw(figures[name].add_subplot(ylim=(0, 1)), axis)
    return figures


@mpl.rc_context(mpl.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False))
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
