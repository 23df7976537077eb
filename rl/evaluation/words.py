"""The axes in words: one sentence or two each, with the numbers that a verdict rests on."""

from __future__ import annotations

from rl.evaluation.thinking import ThinkingAxis
from rl.evaluation.training import MIN_CHECK, TrainAxis

UNITS = {"flops": "FLOPs", "tokens": "generated tokens", "steps": "steps", "seconds": "seconds"}


def say_training(axis: TrainAxis) -> str:
    """What the training axis shows, how well its first half foretold the second, and what holds it back."""
    first, last = axis.accuracies[0].value, axis.accuracies[-1].value
    said = [f"{first:.2f} to {last:.2f} over {axis.compute[-1]:.3g} {UNITS[axis.x]}, {len(axis.points)} points"]
    if axis.slope is not None:
        said.append(f"the last third adds {axis.slope}")
    elif axis.points[0].step != 0:
        said.append("no fit without the base (eval/step-0.json)")
    else:
        said.append(f"too few points for a check ({MIN_CHECK})")
    if axis.inside is not None and axis.band_at_end is not None:
        held = f"{100 * axis.inside:.0f} % of the second half lies in the band that the first predicts"
        said.append(f"{held} (±{axis.band_at_end:.2f} at the end)")
    if axis.bottleneck is not None:
        said.append(f"bottleneck: {axis.bottleneck}")
    return "; ".join(said)


def say_thinking(axis: ThinkingAxis) -> str:
    """How many doublings of the budget count for the last policy, and where it is saturated."""
    name, doublings = axis.thinkers[-1].name, axis.doublings
    if not doublings:
        return f"{name}: no two budgets of which one is twice the other"
    spent = f"{doublings[0].before.tokens:.0f} to {doublings[-1].after.tokens:.0f} tokens spent"
    count = f"{len(axis.counted)} of {len(doublings)} doublings of the budget"
    said = f"{name}: {count} ({spent}) add more than their interval"
    if axis.tail is None:
        return said
    where = "saturated at" if axis.verdict == "saturated" else "past"
    return f"{said}; {where} {axis.saturated_at:.0f} tokens: all larger budgets together add {axis.tail}"
