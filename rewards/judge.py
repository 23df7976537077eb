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
    Raises BadInput, and MemoryError and RecursionError, which the pool counts as limits that the text hit."""
    if truncated and not getattr(reward, "scores_truncated", False):
        return Score(0.0, False, "truncated", detail="cut by the length cap")
    more = (replace(extras or Extras(), truncated=truncated),) if getattr(reward, "takes_extras", False) else ()

    async def finish(awaitable: Any) -> Any:
        return await awaitable

    try:
        result = reward(response, problem, *more)
        return to_score(run(finish(result)) if inspect.isawaitable(result) else result)
    except (MemoryError, RecursionError, BadInput):
        raise
    except Exception as error:
        return _failure(f"{type(error).__name__}: {error}")


def to_score(result: Any) -> Score:
    """A reward's result as a Score in plain numbers: None is skipped; what breaks the contract is an error."""
    if result is None:
        return Score(None, False, "skipped")
    if isinstance(result, Score):
        if result.status not in STATUSES:
            return _failure(f"returned a Score with status {result.status!r}; known: {', '.join(STATUSES)}")
        if result.value is None and result.status not in ("error", "skipped"):
            return _failure(f"returned a Score of status {result.status} without a value")
        parts = {str(name): float(part) for name, part in result.parts.items()}
        value = None if result.value is None else float(result.value)
        if not all(map(math.isfinite, [*parts.values(), value or 0.0])):
            return _failure(f"returned a Score with value {value} and parts {parts}")
        detail = one_line(str(result.detail))
        return replace(result, value=value, correct=bool(result.correct), parts=parts, detail=detail)
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


def _failure(reason: str) -> Score:  # of ours: no value, so that it stays out of the advantages
    return Score(None, False, "error", detail=one_line(reason))
