"""Problem sources by name: `load_task` takes the strings that `task:` and `--task` take."""

from __future__ import annotations

from typing import Any

from rewards.errors import BadInput
from rewards.tasks.arithmetic import Arithmetic
from rewards.tasks.base import Generator, Task, build, nearest, parameters
from rewards.tasks.countdown import Countdown
from rewards.tasks.dataset import PREFIX, DataSet
from rewards.tasks.jsonl import Jsonl
from rewards.tasks.letters import Letters
from rewards.tasks.mixture import Mixture
from rewards.types import Problem

GENERATORS: dict[str, type[Generator]] = {kind.base: kind for kind in (Arithmetic, Countdown, Letters)}


def load_task(spec: str | list[dict[str, Any]], seed: int = 0) -> Task:
    """A task from `NAME`, `NAME?numbers=3&style=plain`, `path.jsonl`, `datasets:PATH` or a mixture [{task, weight}, …].

    Raises BadInput in one line for an unknown task or parameter, and for a file that is missing or broken.
    """
    if isinstance(spec, list):
        return _mixture(spec, seed)
    name, question, query = spec.partition("?")
    if name.startswith(PREFIX):
        return DataSet(spec, seed, _query(spec, query) if question else {})
    if name.endswith(".jsonl"):
        if question:
            raise BadInput(f"task {spec!r}: a JSONL file takes no parameters; drop {'?' + query!r}")
        return Jsonl(name, seed)
    if name not in GENERATORS:
        hint = nearest(name, list(GENERATORS))
        raise BadInput(f"unknown task {name!r}; {hint} (or data of your own: path.jsonl, datasets:PATH)")
    return build(GENERATORS[name], spec, seed, _query(spec, query) if question else {})


def is_task(text: str) -> bool:
    """Whether a text names a task, whatever its parameters, or data, wherever it lies."""
    name = text.partition("?")[0]
    return name in GENERATORS or name.endswith(".jsonl") or name.startswith(PREFIX)


def source_of(task: Task, problem: Problem) -> str:
    """The task string that a problem of `task` came from: its part's where the task is a mixture."""
    return task.part(problem).name if isinstance(task, Mixture) else task.name


def list_tasks() -> list[dict[str, Any]]:
    """Every built-in task: name, description, reward and parameters with default and meaning."""
    return [
        {
            "name": name,
            "description": (kind.__doc__ or "").strip(),
            "reward": kind.reward,
            "parameters": {f.name: {"default": str(f.default), "help": f.metadata["help"]} for f in parameters(kind)},
        }
        for name, kind in GENERATORS.items()
    ]


def _query(spec: str, query: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in query.split("&")]
    for key, sign, value in pairs:
        if not (key and sign and value):
            raise BadInput(f"task {spec!r}: write parameters as NAME?key=value&key=value")
    given = {key: value for key, _, value in pairs}
    if len(given) < len(pairs):
        raise BadInput(f"task {spec!r} sets a parameter twice; keep one")
    return given


def _mixture(entries: list[dict[str, Any]], seed: int) -> Mixture:
    if not entries:
        raise BadInput("task: an empty mixture; write [{task: NAME, weight: 1}, …]")
    parts = [_part(entry, seed) for entry in entries]
    names = [task.name for task, _ in parts]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"task: the mixture names {name!r} twice; add the weights up")
    return Mixture(parts, seed)


def _part(entry: Any, seed: int) -> tuple[Task, float]:
    known = ["task", "weight"]
    if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
        raise BadInput(f"task: mixture entry {entry!r} is not of the form {{task: NAME, weight: 1}}")
    for key in entry:
        if key not in known:
            raise BadInput(f"task: unknown key {key!r} in the mixture; {nearest(key, known)}")
    weight = entry.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
        raise BadInput(f"task: weight {weight!r} of {entry['task']!r} is not a positive number")
    return load_task(entry["task"], seed), float(weight)
