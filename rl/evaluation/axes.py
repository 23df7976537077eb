"""Both axes of a run: read, fitted, judged, said in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import BadInput
from rl.evaluation.intervals import interval
from rl.evaluation.points import COMPUTE, Cell, Policy, RunPoints
from rl.evaluation.sources import read_sources
from rl.evaluation.thinking import Thinker, ThinkingAxis, measure_thinking
from rl.evaluation.training import Prediction, TrainAxis, measure_training
from rl.evaluation.words import say_thinking, say_training


@dataclass(frozen=True)
class Axes:
    """What was measured; None = nothing to place on that axis."""

    train: TrainAxis | None
    thinking: ThinkingAxis | None


def read_axes(paths: Sequence[Path], x: str = "flops") -> Axes:
    """Read runs and evaluation files and measure both axes; `x` is a key of points.COMPUTE.

    The first run with two points or more is the training axis, the other runs are its seeds. The first run with
    thinking gives the policies; those of evaluation files are drawn beside them. Raises BadInput.
    """
    if x not in COMPUTE:
        raise BadInput(f"--x {x!r} is none of {', '.join(COMPUTE)}")
    runs = read_sources(paths)
    curves = [run for run in runs if len(run.train) > 1]
    seeds = tuple(measure_training(run, x) for run in curves[1:])
    policies = _policies(runs)
    axes = Axes(
        measure_training(curves[0], x, seeds) if curves else None,
        measure_thinking(policies) if policies else None,
    )
    if axes.train is None and axes.thinking is None:
        raise BadInput(
            f"{' '.join(map(str, paths))}: one point makes no axis; set eval.every or eval.budgets in the run"
        )
    return axes


def summarise(axes: Axes) -> list[str]:
    """A few lines for a person."""
    train, thinking = axes.train, axes.thinking
    lines = [f"training axis: {train.verdict}. {say_training(train)}"] if train else []
    lines += [f"  {seed.name}: {seed.verdict}. {say_training(seed)}" for seed in train.seeds] if train else []
    return lines + ([f"thinking axis: {thinking.verdict}. {say_thinking(thinking)}"] if thinking else [])


def verdicts(axes: Axes) -> dict[str, str]:
    """The two verdicts for summary.json; an axis without points is undecided."""
    return {
        "train_axis": axes.train.verdict if axes.train else "undecided",
        "thinking_axis": axes.thinking.verdict if axes.thinking else "undecided",
    }


def as_json(axes: Axes) -> dict[str, Any]:
    """{train_axis, thinking_axis}, each null where nothing was measured."""
    return {
        "train_axis": _train_json(axes.train) if axes.train else None,
        "thinking_axis": _thinking_json(axes.thinking) if axes.thinking else None,
    }


def _policies(runs: Sequence[RunPoints]) -> list[Policy]:
    """Evaluation files' policies, then those of the first run that has any; one point alone is no axis."""
    given = [policy for run in runs if not run.rows for policy in run.policies]
    trained: tuple[Policy, ...] = next((run.policies for run in runs if run.rows and run.policies), ())
    policies = [policy for policy in (*given, *trained) if policy.chains]
    enough = any(len(policy.cells) > 1 or len(policy.longest.pass_at) > 1 for policy in policies)
    return policies if enough else []


def _train_json(axis: TrainAxis) -> dict[str, Any]:
    points = [
        {
            "step": point.step,
            **point.compute,
            "accuracy": point.accuracy.value,
            "ci95": point.accuracy.ci95,
            "n_problems": point.accuracy.problems,
        }
        for point in axis.points
    ]
    slope = axis.slope
    return {
        "run": axis.name,
        "x": axis.x,
        "points": points,
        "fit": {"first_half": _fit_json(axis.half, axis.split), "all": _fit_json(axis.whole, len(points))},
        "inside": axis.inside,
        "band_at_end": axis.band_at_end,
        "slope_last_third": {
            "points": slope.points,
            "gain": slope.gain,
            "ci95": slope.ci95,
            "per_doubling": slope.per_doubling,
            "per_doubling_ci95": slope.per_doubling_ci95,
        }
        if slope
        else None,
        "verdict": axis.verdict,
        "bottleneck": axis.bottleneck,
        "signals": axis.signals,
        "words": say_training(axis),
        "seeds": [_train_json(seed) for seed in axis.seeds],
    }


def _fit_json(prediction: Prediction | None, points: int) -> dict[str, Any] | None:
    """The curve's parameters under the names of the formula."""
    if prediction is None:
        return None
    fit = prediction.fit
    return {
        "points": points,
        "R0": fit.base,
        "A": fit.ceiling,
        "A_ci95": interval(np.array([draw.ceiling for draw in prediction.draws])),
        "Cmid": fit.midpoint,
        "B": fit.exponent,
        "scatter": prediction.scatter,
    }


def _thinking_json(axis: ThinkingAxis) -> dict[str, Any]:
    return {
        "points": [_cell_json(thinker, cell) for thinker in axis.thinkers for cell in thinker.caps],
        "samples": [
            {"policy": t.name, "k": p.k, "tokens": p.tokens, "derived": p.derived, "pass@k": p.unbiased,
             "majority@k": p.majority}
            for t in axis.thinkers
            for p in t.samples
        ],
        "frontier": [asdict(point) for point in axis.frontier],
        "direct": [
            {**_cell_json(t, t.direct), "chain_gain": t.direct_gain[0], "chain_gain_ci95": t.direct_gain[1]}
            for t in axis.thinkers
            if t.direct and t.direct_gain
        ],
        "policy": axis.thinkers[-1].name,
        "doublings": axis.counted,
        "doubling_list": [
            {"from": d.before, "to": d.after, "tokens_from": d.tokens_before, "tokens_to": d.tokens_after,
             "gain": d.gain, "ci95": d.ci95, "counts": d.counts}
            for d in axis.doublings
        ],
        "tail": {"gain": axis.tail[0], "ci95": axis.tail[1]} if axis.tail else None,
        "saturated_at": axis.saturated_at,
        "verdict": axis.verdict,
        "words": say_thinking(axis),
    }  # fmt: skip


def _cell_json(thinker: Thinker, cell: Cell) -> dict[str, Any]:
    return {
        "policy": thinker.name,
        "prompt": cell.prompt,
        "budget": cell.budget,
        "tokens": cell.tokens,
        "accuracy": cell.accuracy.value,
        "ci95": cell.accuracy.ci95,
        "n_problems": cell.accuracy.problems,
    }
