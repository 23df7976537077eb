"""The axes in words: one sentence or two each, with the numbers that a verdict rests on."""

from __future__ import annotations

from rl.evaluation.thinking import ThinkingAxis
from rl.evaluation.training import TrainAxis
from rl.evaluation.verdicts import MIN_CHECK

UNITS = {"flops": "FLOPs", "tokens": "generated tokens", "steps": "steps", "seconds": "seconds"}
"""Of the training axis, by the names of points.COMPUTE."""


def say_training(axis: TrainAxis) -> str:
    """What the training axis shows, how well its first half foretold the second, and what holds it back."""
    first, last = axis.accuracies[0].value, axis.accuracies[-1].value
    said = [f"{first:.2f} to {last:.2f} over {short(axis.compute[-1])} {UNITS[axis.x]}, {len(axis.points)} points"]
    if axis.slope is not None:
        said.append(f"the last third adds {_gain(axis.slope.gain, axis.slope.ci95)}")
    elif axis.points[0].step != 0:
        said.append("no fit without the base (eval/step-0.json)")
    else:
        said.append(f"too few points for a check ({MIN_CHECK})")
    if axis.inside is not None and axis.band_at_end is not None:
        said.append(
            f"{100 * axis.inside:.0f} % of the second half lies in the band that the first predicts "
            f"(±{axis.band_at_end:.2f} at the end)"
        )
    if axis.bottleneck is not None:
        said.append(f"bottleneck: {axis.bottleneck}")
    return "; ".join(said)


def say_thinking(axis: ThinkingAxis) -> str:
    """How many doublings of the budget count for the last policy, and where it is saturated."""
    name, doublings = axis.thinkers[-1].name, axis.doublings
    if not doublings:
        return f"{name}: no two budgets of which one is twice the other"
    tokens = f"{short(doublings[0].tokens_before)} to {short(doublings[-1].tokens_after)} tokens spent"
    said = f"{name}: {axis.counted} of {len(doublings)} doublings of the budget ({tokens}) add more than their interval"
    if axis.tail is None or axis.saturated_at is None:
        return said
    where, tail = f"{axis.saturated_at:.0f} tokens", f"all larger budgets together add {_gain(*axis.tail)}"
    return f"{said}; saturated at {where}: {tail}" if axis.verdict == "saturated" else f"{said}; past {where} {tail}"


def short(number: float) -> str:
    """Three digits: 174, 1.6e13."""
    return f"{number:.3g}".replace("e+", "e")


def _gain(gain: float, ci95: tuple[float, float]) -> str:
    return f"{gain:+.3f} ({ci95[0]:+.3f} to {ci95[1]:+.3f})"
