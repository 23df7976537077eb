"""What a reward's result means: bool, float, Score or None as a Score with its status."""

from __future__ import annotations

import math
import numbers
from dataclasses import replace
from typing import Any

from rewards.errors import one_line
from rewards.types import STATUSES, Score


def to_score(result: Any) -> Score:
    """A reward's result as a Score: None is skipped; NaN, infinities and non-numbers are errors."""
    if isinstance(result, Score):
        return _checked(result)
    if result is None:
        return Score(None, False, "skipped")
    if hasattr(result, "item"):  # a scalar of numpy or torch
        result = result.item()
    if not isinstance(result, numbers.Real):
        return failure(f"returned {type(result).__name__}, not a number, bool, Score or None")
    value = float(result)
    if not math.isfinite(value):
        return failure(f"returned {value}")
    return Score(value, value >= 1, "ok" if value >= 1 else "wrong")


def failure(reason: str) -> Score:
    """A failure of ours: no value, so that it stays out of the advantages."""
    return Score(None, False, "error", detail=one_line(reason))


def _checked(score: Score) -> Score:
    """A Score made by a reward, in plain numbers, or status error where it breaks the contract."""
    if score.status not in STATUSES:
        return failure(f"returned a Score with status {score.status!r}; known: {', '.join(STATUSES)}")
    if score.value is None and score.status not in ("error", "skipped"):
        return failure(f"returned a Score of status {score.status} without a value")
    parts = {str(name): float(part) for name, part in score.parts.items()}
    value = None if score.value is None else float(score.value)
    if not all(map(math.isfinite, [*parts.values(), value or 0.0])):
        return failure(f"returned a Score with value {value} and parts {parts}")
    return replace(score, value=value, correct=bool(score.correct), parts=parts, detail=one_line(str(score.detail)))
