"""One call of a reward on one response. Runs inside a worker: what it raises is a limit that the text hit."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from rewards.errors import BadInput
from rewards.trl_style import Extras, TrlReward
from rewards.types import Problem, Score
from rewards.verdict import failure, to_score


def judge(
    reward: Callable[..., Any],
    response: str,
    problem: Problem,
    truncated: bool = False,
    extras: Extras | None = None,
    run: Callable[[Coroutine[Any, Any, Any]], Any] = asyncio.run,
) -> Score:
    """The verdict of a sync or async reward (which `run` runs); an exception inside it becomes status `error`.

    Raises MemoryError and RecursionError, which the pool counts as limits hit by the text, and BadInput.
    """
    if truncated and not getattr(reward, "scores_truncated", False):
        return Score(0.0, False, "truncated", detail="cut by the length cap")
    more = (extras,) if isinstance(reward, TrlReward) else ()
    try:
        result = reward(response, problem, *more)
        return to_score(run(_finish(result)) if inspect.isawaitable(result) else result)
    except (MemoryError, RecursionError, BadInput):
        raise
    except Exception as error:
        return failure(f"{type(error).__name__}: {error}")


async def _finish(awaitable: Any) -> Any:
    return await awaitable
