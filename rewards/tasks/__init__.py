"""Problem sources by name: `load_task` takes the strings that `task:` and `--task` take."""

from typing import Any

from rewards.errors import BadInput, nearest
from rewards.tasks.base import Generator, Mixture, Task, build, check_names, parameters
from rewards.tasks.chemistry import Chemistry
from rewards.tasks.citation import Citation
from rewards.tasks.constraint import Crossword, Poem
from rewards.tasks.countdown import Countdown
from rewards.tasks.gym import PREFIX as GYM
from rewards.tasks.gym import gym_rows, load_gym
from rewards.tasks.rows import PREFIX, read_dataset, read_jsonl
from rewards.tasks.simple import Arithmetic, Decimals, Letters
from rewards.types import Problem

GENERATORS: dict[str, type[Generator]] = {
    kind.base: kind for kind in (Arithmetic, Chemistry, Citation, Countdown, Crossword, Decimals, Letters, Poem)
}


def load_task(spec: str | list[dict[str, Any]], seed: int = 0) -> Task:
    """A task from `NAME`, `NAME?numbers=3&style=plain`, `path.jsonl`, `datasets:PATH` or a mixture [{task, weight}, …].
    Raises BadInput in one line for an unknown task or parameter, and for a file that is missing or broken."""
    if isinstance(spec, list):
        return _mixture(spec, seed)
    name, question, query = spec.partition("?")
    pairs = [pair.partition("=") for pair in query.split("&")] if question else []
    given = {key: value for key, _, value in pairs}
    if not all(key and value for key, _, value in pairs):
        raise BadInput(f"task {spec!r}: write parameters as NAME?key=value&key=value")
    if len(given) < len(pairs):
        raise BadInput(f"task {spec!r} sets a parameter twice; keep one")
    if name.startswith(PREFIX):
        return read_dataset(spec, seed, given)
    if name.startswith(GYM):
        return load_gym(spec, seed, given)
    if name.endswith(".jsonl"):
        if question:
            raise BadInput(f"task {spec!r}: a JSONL file takes no parameters; drop {'?' + query!r}")
        return read_jsonl(name, seed)
    if name not in GENERATORS:
        own = "(or data of your own: path.jsonl, datasets:PATH)"
        raise BadInput(f"unknown task {name!r}; {nearest(name, GENERATORS)} {own}")
    return build(GENERATORS[name], spec, seed, given)


def is_task(text: str) -> bool:
    """Whether a text names a task, whatever its parameters, or data, wherever it lies."""
    name = text.partition("?")[0]
    return name in GENERATORS or name.endswith(".jsonl") or name.startswith((PREFIX, GYM))


def source_of(task: Task, problem: Problem) -> str:
    """The task string that a problem of `task` came from: its part's where the task is a mixture."""
    return task.part(problem).name if isinstance(task, Mixture) else task.name


def list_tasks() -> list[dict[str, Any]]:
    """Every built-in task: name, description, reward and parameters with default and meaning."""
    rows = []
    for name, kind in GENERATORS.items():
        given = {}
        for f in parameters(kind).values():
            default = "-".join(map(str, f.default)) if isinstance(f.default, tuple) else str(f.default)
            given[f.name] = {"default": default, "help": f.metadata["help"]}
        about = (kind.__doc__ or "").strip()
        rows.append({"name": name, "description": about, "reward": kind.reward, "parameters": given})
    return rows + gym_rows()


def _mixture(entries: list[dict[str, Any]], seed: int) -> Mixture:
    parts: dict[str, tuple[Task, float]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
            raise BadInput(f"task: mixture entry {entry!r} is not of the form {{task: NAME, weight: 1}}")
        check_names(f"task: mixture entry {entry!r}", entry, ("task", "weight"))
        name, weight = entry["task"], entry.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise BadInput(f"task: weight {weight!r} of {name!r} is not a positive number")
        if name in parts:
            raise BadInput(f"task: the mixture names {name!r} twice; add the weights up")
        parts[name] = load_task(name, seed), float(weight)
    if not parts:
        raise BadInput("task: an empty mixture; write [{task: NAME, weight: 1}, …]")
    return Mixture(list(parts.values()), seed)
