"""From a reward spec to a callable. Runs inside a worker, so that no plugin is ever imported by the trainer.

Forms: `name`, `module:function`, `path/file.py:function`, `{use: one of these, args: {…}}` for a factory.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from rewards.errors import BadInput, nearest, one_line
from rewards.judge import to_score
from rewards.types import Extras, Problem, Score

GROUP = "ponder.rewards"
TRL_NAMES = frozenset({"prompts", "completions", "completion_ids"})  # parameters that none of our own rewards has
COLUMNS = ("id", "task", "difficulty", "subtask", "answer")  # of a problem, passed to TRL-style functions beside meta
BUILT_IN = {
    "choice": "rewards.choice:choice",
    "citation": "rewards.format:citation",
    "code": "rewards.code:Code",
    "countdown": "rewards.countdown:countdown",
    "crossword": "rewards.constraint:crossword",
    "exact_match": "rewards.equality:exact_match",
    "format": "rewards.format:format",
    "gate": "rewards.compose:gate",
    "gym": "rewards.puzzle:Puzzle",
    "length": "rewards.length:length",
    "letters": "rewards.tasks.letters:letters",
    "math": "rewards.math:math",
    "numeric": "rewards.numeric:numeric",
    "overlong": "rewards.length:overlong",
    "poem": "rewards.constraint:poem",
    "weighted": "rewards.compose:weighted",
}


def load_reward(spec: Any) -> Callable[..., Any]:
    """The reward that a spec names, ready for `judge`. Raises BadInput with the cause in one line."""
    try:
        function = _build(spec) if isinstance(spec, dict) else _resolve(spec)
        function = function() if inspect.isclass(function) else function  # a factory, named without arguments
    except BadInput:
        raise
    except Exception as error:  # whatever a plugin's code makes it raise
        raise BadInput(one_line(f"reward {spec!r} does not load: {type(error).__name__}: {error}")) from None
    if not callable(function):
        raise BadInput(f"reward {spec!r} is a {type(function).__name__}, not a function")
    if is_trl_style(function):
        return TrlReward(function, str(spec))
    try:
        inspect.signature(function).bind("response", "problem")
    except ValueError:  # a built-in without a signature
        pass
    except TypeError:
        raise BadInput(f"reward {spec!r} must take (response, problem), or TRL's (completions, **columns)") from None
    return function


def is_trl_style(function: Callable[..., Any]) -> bool:
    """Whether a parameter is named as only TRL names them."""
    try:
        return not TRL_NAMES.isdisjoint(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a built-in without a signature
        return False


def list_rewards() -> list[dict[str, str]]:
    """Every reward with a name, and its source; plugins are listed without being imported."""
    sources = {name: f"built in ({target})" for name, target in BUILT_IN.items()}
    for name, point in sorted(_plugins().items()):
        package = f"{point.dist.name} {point.dist.version}" if point.dist else "an entry point"
        sources.setdefault(name, f"{package} ({point.value})")
    return [{"name": name, "source": source} for name, source in sources.items()]


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _build(spec: dict[str, Any]) -> Any:
    if not {"use"} <= set(spec) <= {"use", "args"}:
        raise BadInput(f"reward {spec!r}: a factory is written {{use: module:function, args: {{…}}}}")
    return _resolve(spec["use"])(**spec.get("args") or {})


def _resolve(spec: Any) -> Any:
    if not isinstance(spec, str):
        raise BadInput(f"reward {spec!r} is neither a name nor {{use: …, args: {{…}}}}")
    if ":" not in spec:
        return _named(spec)
    place, _, attribute = spec.rpartition(":")
    module = _from_file(Path(place), spec) if place.endswith(".py") else _from_module(place, spec)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise BadInput(f"reward {spec!r}: {_lacks(module, place, attribute)}") from None


def _named(name: str) -> Any:
    if name in BUILT_IN:
        return _resolve(BUILT_IN[name])
    plugins = _plugins()
    if name in plugins:
        return plugins[name].load()
    hint = nearest(name, sorted({*BUILT_IN, *plugins}))
    raise BadInput(f"unknown reward {name!r}; {hint} (or your own: module:function, path/file.py:function)")


def _from_module(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):  # something that the module imports
            raise
        own = f"{name.replace('.', '/')}.py:{spec.rpartition(':')[2]}"
        raise BadInput(f"reward {spec!r}: no module {name!r} on PYTHONPATH; a file is named {own!r}") from None


def _from_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise BadInput(f"reward {spec!r}: no file {str(path)!r} below {Path.cwd()}")
    module_spec = importlib.util.spec_from_file_location(f"ponder_plugin_{path.stem}", path)
    assert module_spec is not None  # the suffix is .py, so there is a loader
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # dataclasses and pickle look the module up by name
    sys.path.append(str(path.resolve().parent))  # last: its neighbours can be imported, nothing is shadowed
    module_spec.loader.exec_module(module)
    return module


def _lacks(module: ModuleType, place: str, attribute: str) -> str:
    """Why the attribute is not there, with the file that may have been meant or the nearest name."""
    file = Path(f"{place}.py")
    if file.is_file() and str(file.resolve()) != module.__file__:
        return f"no function {attribute!r} in module {place} ({module.__file__}); your file is {file}:{attribute}"
    own = sorted(n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__)
    return f"no function {attribute!r} in {place}; {nearest(attribute, own)}"


class TrlReward:
    """A function written for TRL's GRPOTrainer, called as TRL calls it, one completion at a time.

    It gets strings where the prompt is text, message lists where it is chat. Columns are COLUMNS and the problem's
    `meta`; without `**kwargs` it gets only what it names. One that asks for token ids measures lengths: as in TRL it
    sees chains that the length cap cut, too.
    """

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
        chat = isinstance(problem.prompt, list)
        columns = {name: getattr(problem, name) for name in COLUMNS} | problem.meta
        arguments = {name: [value] for name, value in columns.items()} | {
            "prompts": [problem.prompt],
            "completions": [[{"role": "assistant", "content": response}] if chat else response],
            "completion_ids": self._ids(problem, extras),
            "trainer_state": SimpleNamespace(global_step=extras.step if extras else 0),
            "log_metric": lambda name, value: parts.update({name: float(value)}),
            "log_extra": lambda column, values: extra.update({column: values[0] if len(values) == 1 else values}),
        }
        if all(p.kind is not p.VAR_KEYWORD for p in self._parameters.values()):
            arguments = {name: value for name, value in arguments.items() if name in self._parameters}
        result = self._function(**arguments)
        return _later(result, parts, extra) if inspect.isawaitable(result) else _unwrap(result, parts, extra)

    def _ids(self, problem: Problem, extras: Extras | None) -> list[list[int]] | None:
        given = extras.completion_ids if extras else None
        ids = given if given is not None else problem.meta.get("completion_ids")
        if ids is None and self._needs_ids:
            raise BadInput(f"reward {self._name} needs completion_ids: add the field to problem {problem.id!r}")
        return None if ids is None else [ids]


def _unwrap(results: Any, parts: dict[str, float], extra: dict[str, Any]) -> Score:
    """The only element of a TRL-style result; logged metrics become parts, logged columns the detail."""
    values = list(results)
    if len(values) != 1:
        raise ValueError(f"returned {len(values)} rewards for 1 completion")
    score = to_score(values[0])
    detail = score.detail or "; ".join(f"{column}: {value}" for column, value in extra.items())
    return replace(score, parts=score.parts | parts, detail=detail)


async def _later(results: Awaitable[Any], parts: dict[str, float], extra: dict[str, Any]) -> Score:
    return _unwrap(await results, parts, extra)
