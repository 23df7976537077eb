"""Both axes of a run: read, fitted, judged, said in words and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rewards.errors import BadInput
from rl.evaluation.accuracy import Accuracy, interval
from rl.evaluation.sources import read_sources
from rl.evaluation.thinking import Cell, Thinker, ThinkingAxis, measure_thinking
from rl.evaluation.training import TrainAxis, measure_training
from rl.evaluation.words import say_thinking, say_training


@dataclass(frozen=True)
class Axes:
    """What was measured; None = nothing to place on that axis."""

    train: TrainAxis | None
    thinking: ThinkingAxis | None


def read_axes(paths: Sequence[Path], x: str = "flops") -> Axes:
    """Read runs and evaluation files and measure both axes; `x` is a key of training.COMPUTE.

    The first run with two points or more is the training axis, the other runs are its seeds. Raises BadInput.
    """
    runs, policies = read_sources(paths)
    train = [measure_training(run, x) for run in runs if len(run.points) > 1]
    thinkers = [policy for policy in policies if policy.caps]
    several = any(len(thinker.caps) > 1 or thinker.samples for thinker in thinkers)
    if not train and not several:
        named = " ".join(map(str, paths))
        raise BadInput(f"{named}: one point makes no axis; set eval.every or eval.budgets in the run")
    thinking = measure_thinking(thinkers) if several else None
    return Axes(replace(train[0], seeds=tuple(train[1:])) if train else None, thinking)


def summarise(axes: Axes) -> list[str]:
    """A few lines for a person."""
    train, thinking = axes.train, axes.thinking
    lines = [f"training axis: {train.verdict}. {say_training(train)}"] if train else []
    lines += [f"  {seed.name}: {seed.verdict}. {say_training(seed)}" for seed in train.seeds] if train else []
    return lines + ([f"thinking axis: {thinking.verdict}. {say_thinking(thinking)}"] if thinking else [])


def verdicts(axes: Axes) -> dict[str, str]:
    """The two verdicts for summary.json; an axis without points is undecided."""
    measured: dict[str, TrainAxis | ThinkingAxis | None] = {"train_axis": axes.train, "thinking_axis": axes.thinking}
    return {name: axis.verdict if axis else "undecided" for name, axis in measured.items()}


def to_json(axes: Axes) -> dict[str, Any]:
    """{train_axis, thinking_axis}, each null where nothing was measured."""
    return {
        "train_axis": _train_json(axes.train) if axes.train else None,
        "thinking_axis": _thinking_json(axes.thinking) if axes.thinking else None,
    }


def _train_json(axis: TrainAxis) -> dict[str, Any]:
    fit = None
    if axis.prediction is not None:
        ceilings = np.array([draw.ceiling for draw in axis.prediction.draws])
        fit = {"points": axis.split, **asdict(axis.prediction.fit), "ceiling_ci95": interval(ceilings)}
    return {
        "run": axis.name,
        "x": axis.x,
        "points": [{"step": point.step, **point.compute, **_accuracy(point.accuracy)} for point in axis.points],
        "fit": fit,
        "inside": axis.inside,
        "band_at_end": axis.band_at_end,
        "slope_last_third": asdict(axis.slope) if axis.slope else None,
        "verdict": axis.verdict,
        "bottleneck": axis.bottleneck,
        "words": say_training(axis),
        "seeds": [_train_json(seed) for seed in axis.seeds],
    }


def _thinking_json(axis: ThinkingAxis) -> dict[str, Any]:
    return {
        "points": [_cell(thinker, cell) for thinker in axis.thinkers for cell in thinker.caps],
        "direct": [_cell(thinker, thinker.direct) for thinker in axis.thinkers if thinker.direct],
        "samples": [{"policy": thinker.name, **asdict(p)} for thinker in axis.thinkers for p in thinker.samples],
        "policy": axis.thinkers[-1].name,
        "doublings": len(axis.counted),
        "doubling_list": [
            {"caps": [d.before.budget, d.after.budget], "tokens": [d.before.tokens, d.after.tokens], **asdict(d.added)}
            for d in axis.doublings
        ],
        "tail": asdict(axis.tail) if axis.tail else None,
        "saturated_at": axis.saturated_at,
        "verdict": axis.verdict,
        "words": say_thinking(axis),
    }


def _cell(thinker: Thinker, cell: Cell) -> dict[str, Any]:
    figures = {"policy": thinker.name, "prompt": cell.prompt, "budget": cell.budget, "tokens": cell.tokens}
    return figures | _accuracy(cell.accuracy)


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    return {"accuracy": accuracy.value, "ci95": accuracy.ci95, "n_problems": accuracy.problems}
