"""Both axes of a run: read, fitted, judged, said in words and as JSON."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rewards.errors import BadInput
from rl.evaluation.sources import read_sources
from rl.evaluation.thinking import ThinkingAxis, measure_thinking
from rl.evaluation.training import TrainAxis, measure_training


class Axes(NamedTuple):
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
        raise BadInput(
            f"{' '.join(map(str, paths))}: one point makes no axis; set eval.every or eval.budgets in the run"
        )
    first = replace(train[0], seeds=tuple(train[1:])) if train else None
    return Axes(first, measure_thinking(thinkers) if several else None)


def summarise(axes: Axes) -> list[str]:
    """A few lines for a person."""
    seeds = [(f"  {seed.name}", seed) for seed in axes.train.seeds] if axes.train else []
    shown = [("training axis", axes.train), *seeds, ("thinking axis", axes.thinking)]
    return [f"{name}: {axis.verdict}. {axis.words}" for name, axis in shown if axis]


def verdicts(axes: Axes) -> dict[str, str]:
    """The two verdicts for summary.json; an axis without points is undecided."""
    return {f"{name}_axis": axis.verdict if axis else "undecided" for name, axis in axes._asdict().items()}


def to_json(axes: Axes) -> dict[str, Any]:
    """{train_axis, thinking_axis}, each null where nothing was measured."""
    return {f"{name}_axis": axis and axis.to_json() for name, axis in axes._asdict().items()}
