"""The axes in words: one sentence or two each, with the numbers that a verdict rests on."""

from __future__ import annotations

from rl.evaluation.thinking import ThinkingAxis
from rl.evaluation.training import TrainAxis
from rl.evaluation.verdicts import MIN_CHECK, SMALL_GAIN

UNITS = {"flops": "FLOPs", "tokens": "generated tokens", "steps": "steps", "seconds": "seconds"}
"""Of the training axis, by the names of points.COMPUTE."""


def say_training(axis: TrainAxis) -> str:
    """What the training axis shows, how well its first half foretold the second, and what holds it back."""
    first, last = axis.accuracies[0].value, axis.accuracies[-1].value
    said = [f"{first:.2f} → {last:.2f} over {axis.compute[-1]:.3g} {UNITS[axis.x]} ({len(axis.points)} points)"]
    if axis.slope is not None:
        low, high = axis.slope.ci95
        said.append(f"last third {axis.slope.gain:+.3f} ({low:+.3f} to {high:+.3f})")
    elif axis.points[0].step != 0:
        said.append("no base: eval/step-0.json is missing")
    else:
        said.append(f"fewer than {MIN_CHECK} points can't be checked")
    if axis.inside is not None and axis.band_at_end is not None:
        said.append(
            f"{axis.inside:.0%} of the second half inside the first half's band (±{axis.band_at_end:.3f} at the end)"
        )
    if axis.bottleneck is not None:
        said.append(f"bottleneck: {axis.bottleneck}")
    return "; ".join(said)


def say_thinking(axis: ThinkingAxis) -> str:
    """How many doublings of the budget count for the last policy, and where it is saturated."""
    last = axis.thinkers[-1]
    if not axis.doublings:
        return f"{last.name} was not measured at two budgets of which one is twice the other"
    said = [f"{axis.counted} of {len(axis.doublings)} doublings of {last.name}'s budget add more than their interval"]
    if axis.tail is not None and axis.saturated_at is not None:
        gain, (low, high) = axis.tail
        where = f"at {axis.saturated_at:.0f} tokens" if axis.verdict == "saturated" else "or not is open"
        open_end = "" if axis.verdict == "saturated" else f", not below {SMALL_GAIN}"
        said.append(f"saturated {where}: all larger budgets add {gain:+.3f} ({low:+.3f} to {high:+.3f}{open_end})")
    return "; ".join(said)
