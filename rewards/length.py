"""Rewards for the length of the thinking, in sampled tokens. A length is never correct: compose it with a verifier."""

from collections.abc import Callable

from rewards.errors import BadInput
from rewards.types import Extras, Problem, Score

UNCOUNTED = Score(None, False, "skipped", detail="no one counted: give the row 'thinking_tokens'")  # a gold answer's


def _measures(reward: Callable[..., Score]) -> Callable[..., Score]:
    reward.takes_extras = reward.scores_truncated = True  # type: ignore[attr-defined]  # a cut chain has a length, too
    return reward


@_measures
def length(response: str, problem: Problem, extras: Extras | None = None) -> Score:
    """1 at `target_tokens` of the problem's meta, falling to 0 by the distance from it relative to it."""
    target = problem.meta.get("target_tokens")
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < float("inf"):
        raise BadInput(f"problem {problem.id!r}: 'target_tokens' {target!r} is no positive number; length reads it")
    count = thinking_tokens(problem, extras)
    return UNCOUNTED if count is None else Score(max(0.0, 1 - abs(count - target) / target), False, "ok")


def overlong(max_tokens: int, cache: int) -> Callable[..., Score]:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13): 0 up to max_tokens - cache, then down to -1."""
    if type(max_tokens) is not int or type(cache) is not int or not 0 <= cache <= max_tokens:
        raise BadInput("overlong takes {max_tokens: 4096, cache: 512}: whole numbers, 0 <= cache <= max_tokens")

    @_measures
    def punish(response: str, problem: Problem, extras: Extras | None = None) -> Score:
        count = thinking_tokens(problem, extras)
        beyond = (count or 0) - (max_tokens - cache)
        value = 0.0 if beyond <= 0 else -1.0 if beyond >= cache else -beyond / cache
        return UNCOUNTED if count is None else Score(value, False, "ok")

    return punish


def thinking_tokens(problem: Problem, extras: Extras | None) -> int | None:
    """How many were sampled: as the rollout counted, else as meta says, else None. Raises BadInput for no number."""
    counted = extras.thinking_tokens if extras else None
    count = problem.meta.get("thinking_tokens") if counted is None else counted
    if count is not None and (type(count) is not int or count < 0):
        raise BadInput(f"problem {problem.id!r}: 'thinking_tokens' {count!r} is no count of tokens")
    return count
