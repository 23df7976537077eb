"""Figures -> words: rising, saturated or undecided, and what holds a run back. Every threshold is here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from rewards.types import STATUSES
from rl.metrics import Row

Verdict = Literal["rising", "saturated", "undecided"]

MIN_FIT = 4
"""Points, the base among them, below which nothing is fitted: the curve has three free parameters."""
MIN_CHECK = 8
"""Points below which there is no check and no verdict: half of them must still carry a fit."""
SMALL_GAIN = 0.05
"""Accuracy. An axis is saturated where the interval of what it added last lies below this."""

SIGNALS = {
    "truncated": (0.10, "chains cut at the token limit"),
    "no_variance": (0.50, "groups whose chains all score alike"),
    "entropy_loss": (0.75, "entropy lost since the start"),
    "mismatch": (1.0, "mismatch of server and learner over its bound"),
    "repeated": (0.20, "attempts that repeat an earlier one"),
}
"""What may hold training back: the value from which it is named, and its words."""


def decide(interval: tuple[float, float]) -> Verdict:
    """From the 95 % interval of what the end of an axis added.

    rising: above 0. saturated: it holds 0 (or is below: accuracy falls) and SMALL_GAIN is above it. Else undecided.
    """
    low, high = interval
    if low > 0:
        return "rising"
    return "saturated" if high < SMALL_GAIN else "undecided"


def read_signals(rows: Sequence[Row], config: dict[str, Any]) -> dict[str, float | None]:
    """The values that SIGNALS judges, means over the last third of a run's steps; None where not logged.

    truncated, no_variance and repeated are shares (of chains, of groups, of attempts); entropy_loss = 1 - entropy over
    that of the first third; mismatch = fresh mismatch KL over its bound (`sync.bound`, else that of the dtype).
    """
    third = max(1, len(rows) // 3)
    first, last = rows[:third], rows[-third:] if rows else []
    chains = sum(row.get(f"samples/{status}") or 0 for row in last for status in STATUSES)
    groups = (config.get("rollout") or {}).get("problems", 0) * len(last)
    before, now = _mean(first, "entropy"), _mean(last, "entropy")
    mismatch = _mean(last, "mismatch_kl/fresh")
    silent = _mean(last, "groups/no_variance")
    return {
        "truncated": sum(row.get("samples/truncated") or 0 for row in last) / chains if chains else None,
        "no_variance": silent * len(last) / groups if groups and silent is not None else None,
        "entropy_loss": 1 - now / before if before and now is not None else None,
        "mismatch": mismatch / _mismatch_bound(config) if mismatch is not None else None,
        "repeated": _mean(last, "chain/repeated"),
    }


def name_bottleneck(signals: dict[str, float | None]) -> str:
    """The signals at or past their thresholds in words, the farthest past first; `none seen` where there is none."""
    past = {name: value / SIGNALS[name][0] for name, value in signals.items() if value is not None}
    named = sorted((name for name in past if past[name] >= 1), key=lambda name: -past[name])
    return "; ".join(_words(name, signals[name] or 0.0) for name in named) or "none seen"


def _words(name: str, value: float) -> str:
    amount = f"{value:.1f}" if name == "mismatch" else f"{100 * value:.0f} %"
    return f"{SIGNALS[name][1]} {amount}"


def _mismatch_bound(config: dict[str, Any]) -> float:
    bound = (config.get("sync") or {}).get("bound")
    low = (config.get("model") or {}).get("dtype") == "bfloat16"
    return float(bound or (1e-3 if low else 1e-6))


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None and math.isfinite(row[key])]
    return sum(values) / len(values) if values else None
