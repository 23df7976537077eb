"""Reward functions written for TRL's GRPOTrainer, called as TRL calls them, one completion at a time."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
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


@dataclass
class _Log:
    """Takes what log_metric and log_extra are told: metrics become parts, columns the detail."""

    parts: dict[str, float] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)

    def metric(self, name: str, value: float) -> None:
        self.parts[name] = float(value)

    def extra(self, column: str, values: list[Any]) -> None:
        self.columns[column] = values[0] if len(values) == 1 else values


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
        self.name = name
        self.scores_truncated = bool(getattr(function, "scores_truncated", False))
        self._function = function
        self._parameters = inspect.signature(function).parameters
        self._takes_any = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())

    def __call__(self, response: str, problem: Problem) -> Any:
        """The verdict without extras."""
        return self.call(response, problem, Extras())

    def call(self, response: str, problem: Problem, extras: Extras) -> Any:
        """The verdict on one completion, or an awaitable of it. Raises BadInput where completion_ids are missing."""
        log = _Log()
        arguments = self._arguments(response, problem, extras, log)
        result = self._function(**arguments)
        return self._later(result, log) if inspect.isawaitable(result) else _unwrap(result, log)

    def _arguments(self, response: str, problem: Problem, extras: Extras, log: _Log) -> dict[str, Any]:
        chat = isinstance(problem.prompt, list)
        columns = {"answer": problem.answer, **problem.meta}
        arguments = {name: [value] for name, value in columns.items()} | {
            "prompts": [problem.prompt],
            "completions": [[{"role": "assistant", "content": response}] if chat else response],
            "completion_ids": self._ids(problem, extras),
            "trainer_state": SimpleNamespace(global_step=extras.step),
            "log_extra": log.extra,
            "log_metric": log.metric,
        }
        if self._takes_any:
            return arguments
        return {name: value for name, value in arguments.items() if name in self._parameters}

    def _ids(self, problem: Problem, extras: Extras) -> list[list[int]] | None:
        ids = extras.completion_ids if extras.completion_ids is not None else problem.meta.get("completion_ids")
        if ids is not None:
            return [ids]
        parameter = self._parameters.get("completion_ids")
        if parameter is not None and parameter.default is parameter.empty:
            raise BadInput(f"reward {self.name} needs completion_ids: add the field to problem {problem.id!r}")
        return None

    async def _later(self, result: Awaitable[Any], log: _Log) -> Score:
        return _unwrap(await result, log)


def _unwrap(results: Any, log: _Log) -> Score:
    """The only element of a TRL-style result, with what was logged."""
    values = list(results)
    if len(values) != 1:
        raise ValueError(f"returned {len(values)} rewards for 1 completion")
    score = to_score(values[0])
    detail = score.detail or "; ".join(f"{column}: {value}" for column, value in log.columns.items())
    return replace(score, parts=score.parts | log.parts, detail=detail)
