"""Rewards made of rewards: a weighted sum, and a gate. `correct` and the status are the primary verifier's."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rewards.errors import BadInput, nearest
from rewards.registry import judge, load_reward
from rewards.types import Extras, Problem, Score


class Composite:
    """Judges a response by every part, and combines their values.
    A part in error makes the whole an error, one that is rejected makes it rejected; one that is skipped is left out,
    and skips the whole where it is the primary. What the length cap cut goes to the parts that judge such a thing."""

    takes_extras = True

    def __init__(self, parts: dict[str, Any], primary: str, combine: Callable[..., float], partial: bool) -> None:
        self._parts = {name: load_reward(spec) for name, spec in parts.items()}
        self._primary, self._combine, self._partial = primary, combine, partial
        self.scores_truncated = any(getattr(part, "scores_truncated", False) for part in self._parts.values())
        self.item_limit = sum(getattr(part, "item_limit", None) or 0.0 for part in self._parts.values()) or None
        self._runner = asyncio.Runner()  # one loop for every async part, so that sessions and locks live on

    def warm_up(self) -> None:
        for part in self._parts.values():
            getattr(part, "warm_up", bool)()

    def __call__(self, response: str, problem: Problem, extras: Extras | None = None) -> Score:
        """The verdict. Raises what `judge` raises."""
        more = ((extras or Extras()).truncated, extras, self._runner.run)
        scores = {name: judge(part, response, problem, *more) for name, part in self._parts.items()}
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        inner = {f"{name}/{key}": part for name, score in scores.items() for key, part in score.parts.items()}
        primary, parts = scores[self._primary], values | inner
        for status in ("error", "rejected"):
            for name, score in scores.items():
                if score.status == status:
                    value = 0.0 if status == "rejected" else None
                    return Score(value, False, score.status, parts, detail=f"{name}: {score.detail}")
        if primary.value is None:
            return replace(primary, parts=parts)
        if not (self._partial or primary.correct):
            values[self._primary] = min(0.0, primary.value)
        return replace(primary, value=self._combine(values), parts=parts)


def weighted(parts: dict[str, Any], primary: str | None = None, partial: bool = False) -> Composite:
    """The sum of weight x value over `parts`, {name: {reward, weight}}; the first is `primary` unless another is named.
    Without `partial` a primary that is not correct adds nothing above 0. Raises BadInput for parts that make no sense.
    """
    if not isinstance(parts, dict):
        raise BadInput("weighted takes {parts: {name: {reward: …, weight: 1}}}")
    pairs = {name: _pair(**part) for name, part in parts.items()}
    primary = next(iter(pairs), "") if primary is None else primary
    if primary not in pairs or not all(math.isfinite(weight) for _, weight in pairs.values()):
        raise BadInput(f"weighted: primary {primary!r}, weights not finite? {nearest(str(primary), pairs)}")
    rewards = {name: reward for name, (reward, _) in pairs.items()}
    return Composite(rewards, primary, lambda found: sum(pairs[name][1] * v for name, v in found.items()), partial)


def gate(gate: Any, reward: Any, at_least: float = 1.0, partial: bool = False) -> Composite:
    """The value of `reward` where `gate` reaches `at_least`, else 0 or what is below it; parts `gate` and `reward`."""

    def combine(found: dict[str, float]) -> float:
        return found["reward"] if found.get("gate", -math.inf) >= at_least else min(0.0, found["reward"])

    return Composite({"gate": gate, "reward": reward}, "reward", combine, partial)


def _pair(reward: Any, weight: float = 1.0) -> tuple[Any, float]:
    return reward, float(weight)
