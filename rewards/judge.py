"""One call of a reward on one response, inside a worker, and what its result means: a Score with its status."""

import asyncio
import inspect
import math
import numbers
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from rewards.errors import BadInput, one_line
from rewards.types import STATUSES, Extras, Problem, Score


def judge(
    reward: Callable[..., Any],
    response: str,
    problem: Problem,
    truncated: bool = False,
    extras: Extras | None = None,
    run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run,
) -> Score:
    """The verdict of a sync or async reward (which `run` runs); an exception inside it becomes status `error`.

    Raises BadInput, and MemoryError and RecursionError, which the pool counts as limits that the text hit.
    """
    if truncated and not getattr(reward, "scores_truncated", False):
        return Score(0.0, False, "truncated", detail="cut by the length cap")
    more = (replace(extras or Extras(), truncated=truncated),) if getattr(reward, "takes_extras", False) else ()
    try:
        result = reward(response, problem, *more)
        return to_score(run(_finish(result)) if inspect.isawaitable(result) else result)
    except (MemoryError, RecursionError, BadInput):
        raise
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")


async def _finish(awaitable: Any) -> Any:
    return await awaitable


def to_score(result: Any) -> Score:
    """A reward's result as a Score: None is skipped; NaN, infinities and non-numbers are errors."""
    if isinstance(result, Score):
        return _checked(result)
    if result is None:
        return Score(None, False, "skipped")
    if hasattr(result, "item"):  # a scalar of numpy or torch
        result = result.item()
    if callable(result):
        return _failure("returned a function: it makes rewards; write {use: …, args: {…}}")
    if not isinstance(result, numbers.Real):
        return _failure(f"returned {type(result).__name__}, not a number, bool, Score or None")
    value = float(result)
    if not math.isfinite(value):
        return _failure(f"returned {value}")
    return Score(value, value >= 1, "ok" if value >= 1 else "wrong")


def _checked(score: Score) -> Score:
    """A Score made by a reward, in plain numbers, or status error where it breaks the contract."""
    if score.status not in STATUSES:
        return _failure(f"returned a Score with status {score.status!r}; known: {', '.join(STATUSES)}")
    if score.value is None and score.status not in ("error", "skipped"):
        return _failure(f"returned a Score of status {score.status} without a value")
    parts = {str(name): float(part) for name, part in score.parts.items()}
    value = None if score.value is None else float(score.value)
    if not all(map(math.isfinite, [*parts.values(), value or 0.0])):
        return _failure(f"returned a Score with value {value} and parts {parts}")
    return replace(score, value=value, correct=bool(score.correct), parts=parts, detail=one_line(str(score.detail)))


def _failure(reason: str) -> Score:
    """A failure of ours: no value, so that it stays out of the advantages."""
    return Score(None, False, "error", detail=one_line(reason))
