"""From a reward spec to a callable. Runs inside a worker, so that no plugin is ever imported by the trainer.

Forms: `name`, `module:function`, `path/file.py:function`, `{use: one of these, args: {…}}` for a factory.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.errors import BadInput, nearest, one_line
from rewards.trl_style import TrlReward, is_trl_style

GROUP = "ponder.rewards"
BUILT_IN = {
    "countdown": "rewards.countdown:countdown",
    "exact_match": "rewards.equality:exact_match",
    "letters": "rewards.letters:letters",
}


def load_reward(spec: Any) -> Callable[..., Any]:
    """The reward that a spec names, ready for `judge`. Raises BadInput with the cause in one line."""
    try:
        function = _build(spec) if isinstance(spec, dict) else _resolve(spec)
    except BadInput:
        raise
    except Exception as error:  # whatever a plugin's code makes it raise
        raise BadInput(one_line(f"reward {spec!r} does not load: {type(error).__name__}: {error}")) from None
    if not callable(function):
        raise BadInput(f"reward {spec!r} is a {type(function).__name__}, not a function")
    if is_trl_style(function):
        return TrlReward(function, str(spec))
    _check_signature(function, spec)
    return function


def list_rewards() -> list[dict[str, str]]:
    """Every reward with a name, and its source; plugins are listed without being imported."""
    built_in = [{"name": name, "source": f"built in ({target})"} for name, target in BUILT_IN.items()]
    return built_in + [{"name": name, "source": _origin(point)} for name, point in sorted(_plugins().items())]


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _origin(point: EntryPoint) -> str:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "an entry point"
    return f"{package} ({point.value})"


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
    """Why the attribute is not there, with the nearest name or the file that may have been meant."""
    own = [(n, f) for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    names = sorted(name for name, _ in own if not name.startswith("_"))
    near = difflib.get_close_matches(attribute, names, n=1)
    if near:
        return f"no function {attribute!r} in {place}; did you mean {near[0]!r}?"
    file = Path(f"{place}.py")
    if file.is_file() and str(file.resolve()) != module.__file__:
        return f"no function {attribute!r} in module {place} ({module.__file__}); your file is {file}:{attribute}"
    return f"no function {attribute!r} in {place}, which has {', '.join(names) or 'none'}"


def _check_signature(function: Callable[..., Any], spec: Any) -> None:
    try:
        inspect.signature(function).bind("response", "problem")
    except TypeError:
        raise BadInput(f"reward {spec!r} must take (response, problem), or TRL's (completions, **columns)") from None
    except ValueError:  # a built-in without a signature
        return
