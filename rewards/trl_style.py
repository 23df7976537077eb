"""Reward functions written for TRL's GRPOTrainer, called as TRL calls them, one completion at a time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from rewards.errors import BadInput
from rewards.types import Problem, Score
from rewards.verdict import to_score

MARKS = frozenset({"prompts", "completions", "completion_ids"})
"""Parameter names that tell a TRL-style function from one of ours."""


@dataclass(frozen=True)
class Extras:
    """What a TRL-style reward may ask for besides text and columns."""

    completion_ids: list[int] | None = None
    step: int = 0


def is_trl_style(function: Callable[..., Any]) -> bool:
    """Whether a parameter is named as only TRL names them."""
    try:
        return not MARKS.isdisjoint(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a built-in without a signature
        return False


class TrlReward:
    """A TRL-style function: strings where the prompt is text, message lists where it is chat.

    Columns are the problem's `answer` and `meta`; a function without `**kwargs` gets only what it names.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.scores_truncated = bool(getattr(function, "scores_truncated", False))
        self._function, self._name = function, name
        self._parameters = inspect.signature(function).parameters

    def __call__(self, response: str, problem: Problem, extras: Extras | None = None) -> Any:
        """The verdict on one completion, or an awaitable of it. Raises BadInput where completion_ids are missing."""
        log = _Log()
        chat = isinstance(problem.prompt, list)
        columns = {"answer": problem.answer, **problem.meta}
        arguments = {name: [value] for name, value in columns.items()} | {
            "prompts": [problem.prompt],
            "completions": [[{"role": "assistant", "content": response}] if chat else response],
            "completion_ids": self._ids(problem, extras),
            "trainer_state": SimpleNamespace(global_step=extras.step if extras else 0),
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }
        if all(p.kind is not p.VAR_KEYWORD for p in self._parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in self._parameters}
        result = self._function(**arguments)
        return log.verdict_later(result) if inspect.isawaitable(result) else log.verdict(result)

    def _ids(self, problem: Problem, extras: Extras | None) -> list[list[int]] | None:
        given = extras.completion_ids if extras else None
        ids = given if given is not None else problem.meta.get("completion_ids")
        needed = self._parameters.get("completion_ids")
        if ids is None and needed is not None and needed.default is needed.empty:
            raise BadInput(f"reward {self._name} needs completion_ids: add the field to problem {problem.id!r}")
        return None if ids is None else [ids]


class _Log:
    """Takes what log_metric and log_extra are told: metrics become parts, columns the detail."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.columns: dict[str, Any] = {}

    def log_metric(self, name: str, value: float) -> None:
        self.parts[name] = float(value)

    def log_extra(self, column: str, values: list[Any]) -> None:
        self.columns[column] = values[0] if len(values) == 1 else values

    def verdict(self, results: Any) -> Score:
        """The only element of a TRL-style result, with what was logged."""
        values = list(results)
        if len(values) != 1:
            raise ValueError(f"returned {len(values)} rewards for 1 completion")
        score = to_score(values[0])
        detail = score.detail or "; ".join(f"{column}: {value}" for column, value in self.columns.items())
        return replace(score, parts=score.parts | self.parts, detail=detail)

    async def verdict_later(self, results: Awaitable[Any]) -> Score:
        return self.verdict(await results)
