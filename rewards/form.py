"""Rewards for the form of a response: a thinking block before an answer, and its length in sampled tokens.
No form is ever correct: compose it with a verifier."""

from collections.abc import Callable

from rewards.answer import CLOSE, OPEN
from rewards.errors import BadInput
from rewards.types import Extras, Problem, Score


def format(response: str, problem: Problem) -> Score:
    """Whether one `<think>…</think>` opens the response and something follows it. Never correct: that says no form."""
    thinking, _, answer = response.strip().partition(CLOSE)
    good = thinking.startswith(OPEN) and response.count(OPEN) == 1 == response.count(CLOSE) and bool(answer)
    return Score(float(good), False, "ok" if good else "wrong", detail="" if good else "not <think>…</think> answer")


def _counted(value: Callable[[int, Problem], float]) -> Callable[..., Score]:
    """A reward from the value of a number of thinking tokens: the rollout's count, else `thinking_tokens` in meta.
    Where no one counted, as for gold answers, it is skipped. Raises BadInput for a count that is none."""

    def reward(response: str, problem: Problem, extras: Extras | None = None) -> Score:
        told = extras.thinking_tokens if extras else None
        count = problem.meta.get("thinking_tokens") if told is None else told
        if count is None:
            return Score(None, False, "skipped", detail="no one counted: give the row 'thinking_tokens'")
        if type(count) is not int or count < 0:
            raise BadInput(f"problem {problem.id!r}: 'thinking_tokens' {count!r} is no count of tokens")
        return Score(value(count, problem), False, "ok")

    reward.takes_extras = reward.scores_truncated = True  # type: ignore[attr-defined]  # a cut chain has a length, too
    return reward


@_counted
def length(count: int, problem: Problem) -> float:
    """1 at `target_tokens` of the problem's meta, falling to 0 by the distance from it relative to it."""
    target = problem.meta.get("target_tokens")
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < float("inf"):
        raise BadInput(f"problem {problem.id!r}: 'target_tokens' {target!r} is no positive number; length reads it")
    return max(0.0, 1 - abs(count - target) / target)


def overlong(max_tokens: int, cache: int) -> Callable[..., Score]:
    """The reward of `soft_overlong` alone; raises BadInput for numbers that make no sense."""
    if type(max_tokens) is not int or type(cache) is not int or not 0 <= cache <= max_tokens:
        raise BadInput("overlong takes {max_tokens: 4096, cache: 512}: whole numbers, 0 <= cache <= max_tokens")
    return _counted(lambda count, _: soft_overlong(count, max_tokens, cache))


def soft_overlong(count: int, max_tokens: int, cache: int) -> float:
    """Soft overlong punishment (DAPO, arXiv 2503.14476, equation 13): 0 up to max_tokens - cache, then down to -1."""
    return -min(1.0, max(0, count - max_tokens + cache) / max(cache, 1)) + 0.0
