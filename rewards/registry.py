"""From a reward spec to a callable, and what its result means: a Score. Runs in workers: no trainer imports a plugin.
Forms: `name`, `module:function`, `path/file.py:function`, `{use: one of these, args: {…}}` for a factory."""

import asyncio
import importlib
import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rewards import table
from rewards.errors import BadInput, nearest, one_line
from rewards.types import STATUSES, Extras, Problem, Score

GROUP = "ponder.rewards"
TRL_NAMES = frozenset({"prompts", "completions", "completion_ids"})  # parameters that none of our own rewards has
COLUMNS = ("id", "task", "difficulty", "subtask", "answer")  # of a problem, passed to TRL-style functions beside meta
BUILT_IN: dict[str, str] = table("names")


def load_reward(spec: Any) -> Callable[..., Any]:
    """The reward that a spec names, ready for `judge`. Raises BadInput with the cause in one line."""
    try:
        if isinstance(spec, dict):
            if not {"use"} <= set(spec) <= {"use", "args"}:
                raise BadInput(f"reward {spec!r}: a factory is written {{use: module:function, args: {{…}}}}")
            function = _resolve(spec["use"])(**spec.get("args") or {})
        else:
            function = _resolve(spec)
        function = function() if inspect.isclass(function) else function  # a factory, named without arguments
    except BadInput:
        raise
    except Exception as error:  # whatever a plugin's code makes it raise
        raise BadInput(one_line(f"reward {spec!r} does not load: {type(error).__name__}: {error}")) from None
    if not callable(function):
        raise BadInput(f"reward {spec!r} is a {type(function).__name__}, not a function")
    try:
        signature = inspect.signature(function)
        if not TRL_NAMES.isdisjoint(signature.parameters):
            return TrlReward(function, str(spec))
        signature.bind("response", "problem")
    except ValueError:  # a built-in without a signature
        pass
    except TypeError:
        raise BadInput(f"reward {spec!r} must take (response, problem), or TRL's (completions, **columns)") from None
    return function


def list_rewards() -> list[dict[str, str]]:
    """Every reward with a name, and its source; plugins are listed without being imported."""
    sources = {name: f"built in ({target})" for name, target in BUILT_IN.items()}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an entry point"
        sources.setdefault(point.name, f"{package} ({point.value})")
    return [{"name": name, "source": source} for name, source in sources.items()]


def _resolve(spec: Any) -> Any:
    if not isinstance(spec, str):
        raise BadInput(f"reward {spec!r} is neither a name nor {{use: …, args: {{…}}}}")
    if ":" not in spec and spec not in BUILT_IN:
        plugins = {point.name: point for point in entry_points(group=GROUP)}
        if spec in plugins:
            return plugins[spec].load()
        hint = nearest(spec, sorted({*BUILT_IN, *plugins}))
        raise BadInput(f"unknown reward {spec!r}; {hint} (or your own: module:function, path/file.py:function)")
    return import_function(BUILT_IN.get(spec, spec), f"reward {spec!r}")


def import_function(path: str, what: str) -> Any:
    """What `module:function` or `path/file.py:function` names. Raises BadInput, beginning with `what`, where it is not
    there, and whatever the module raises."""
    place, _, attribute = path.rpartition(":")
    if place.endswith(".py"):
        file = Path(place)
        if not file.is_file():
            raise BadInput(f"{what}: no file {place!r} below {Path.cwd()}")
        found: Any = importlib.util.spec_from_file_location(f"ponder_plugin_{file.stem}", file)
        module = importlib.util.module_from_spec(found)
        sys.modules[found.name] = module  # dataclasses and pickle look the module up by name
        sys.path.append(str(file.resolve().parent))  # last: its neighbours can be imported, nothing is shadowed
        found.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if not f"{place}.".startswith(f"{error.name}."):  # something that the module imports
                raise
            own = f"{place.replace('.', '/')}.py:{attribute}"
            raise BadInput(f"{what}: no module {place!r} on PYTHONPATH; a file is named {own!r}") from None
    if hasattr(module, attribute):
        return getattr(module, attribute)
    file = Path(f"{place}.py")
    if file.is_file() and str(file.resolve()) != module.__file__:  # it may have been meant
        lack = f"no function {attribute!r} in module {place} ({module.__file__}); your file is {file}:{attribute}"
    else:
        known = sorted(n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__)
        lack = f"no function {attribute!r} in {place}; {nearest(attribute, known)}"
    raise BadInput(f"{what}: {lack}")


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


class TrlReward:
    """A function written for TRL's GRPOTrainer, called as TRL calls it, one completion at a time.
    It gets strings where the prompt is text, message lists where it is chat; columns are COLUMNS and `meta`, without
    `**kwargs` only those it names. One that asks for token ids measures lengths: as in TRL it sees cut chains, too."""

    takes_extras = True

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self._function, self._name = function, name
        self._parameters = inspect.signature(function).parameters
        ids = self._parameters.get("completion_ids")
        self._needs_ids = ids is not None and ids.default is ids.empty
        self.scores_truncated = bool(getattr(function, "scores_truncated", self._needs_ids))

    def __call__(self, response: str, problem: Problem, extras: Extras | None = None) -> Any:
        """The verdict on one completion, or an awaitable of it. Raises BadInput where completion_ids are missing."""
        parts: dict[str, float] = {}
        extra: dict[str, Any] = {}
        columns = {name: getattr(problem, name) for name in COLUMNS} | problem.meta
        ids = extras.completion_ids if extras else None
        ids = columns.get("completion_ids") if ids is None else ids
        if ids is None and self._needs_ids:
            raise BadInput(f"reward {self._name} needs completion_ids: add the field to problem {problem.id!r}")
        completion = response if isinstance(problem.prompt, str) else [{"role": "assistant", "content": response}]
        arguments = {name: [value] for name, value in columns.items()} | {
            "prompts": [problem.prompt],
            "completions": [completion],
            "completion_ids": None if ids is None else [ids],
            "trainer_state": SimpleNamespace(global_step=extras.step if extras else 0),
            "log_metric": lambda name, value: parts.update({name: float(value)}),
            "log_extra": lambda column, values: extra.update({column: values[0] if len(values) == 1 else values}),
        }
        if all(p.kind is not p.VAR_KEYWORD for p in self._parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in self._parameters}

        def finish(results: Any) -> Score:  # logged metrics become parts, logged columns the detail
            values = list(results)
            if len(values) != 1:
                raise ValueError(f"returned {len(values)} rewards for 1 completion")
            score = to_score(values[0])
            detail = score.detail or "; ".join(f"{column}: {value}" for column, value in extra.items())
            return replace(score, parts=score.parts | parts, detail=detail)

        async def later(results: Awaitable[Any]) -> Score:
            return finish(await results)

        result = self._function(**arguments)
        return later(result) if inspect.isawaitable(result) else finish(result)
