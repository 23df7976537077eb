"""Tasks `gym:NAME`: the puzzles of reasoning-gym, each data set a task, its parameters those of the library.

They are generated in a process of their own: what the library draws depends in places on the order of sets and on
global generators, and it prints. There both are fixed, so that an item is the same in every run.
"""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewards.errors import BadInput, Fault, nearest
from rewards.pool import ONE_THREAD
from rewards.puzzle import OFF, installed, rules
from rewards.tasks.base import Generator
from rewards.types import Problem

PREFIX = "gym:"
ASK = "\n\nWrite the final answer, in exactly the form that is asked for, between <answer> and </answer>."
_lock = threading.Lock()
_running: list[subprocess.Popen[bytes]] = []  # the process that generates, started when first asked


@dataclass(frozen=True)
class Gym(Generator):
    """One data set of reasoning-gym."""

    base = "gym"
    dataset: str
    config: str  # JSON

    @property
    def reward(self) -> Any:  # type: ignore[override]
        return {"use": "gym", "args": {"dataset": self.dataset}}

    def draw(self, rng: random.Random) -> Problem:
        config = json.loads(self.config)
        entry = ask(dataset=self.dataset, config=config, draw=rng.getrandbits(60))
        return Problem(
            id="",
            task=PREFIX + self.dataset,
            prompt=entry["question"] + ASK,
            answer=entry["answer"],
            key=" ".join(entry["question"].split()),
            meta={"dataset": self.dataset, "config": config, "metadata": entry["metadata"]},
        )

    def gold(self, problem: Problem) -> str:
        return f"<answer>{problem.answer or ''}</answer>"  # boxnet and rush_hour have none


def load_gym(spec: str, seed: int, given: Mapping[str, str]) -> Gym:
    """The task of a string `gym:NAME?parameter=value`; values are YAML. Raises BadInput for what the library lacks."""
    import yaml

    name = spec.partition("?")[0].removeprefix(PREFIX)
    if name not in rules():
        hint = nearest(name, rules())
        raise BadInput(f"unknown task {spec!r}; {hint if len(hint) < 80 else 'ponder tasks list names them all'}")
    if not installed():
        raise BadInput(OFF)
    try:
        config = {key: yaml.safe_load(text) for key, text in given.items()}
    except yaml.YAMLError:
        raise BadInput(f"task {spec!r}: its values are read as YAML: 3, true, [a, b]") from None
    if config:
        ask(dataset=name, config=config, draw=0)  # refuses what the library refuses
    return Gym(spec, seed, name, json.dumps(config))


def gym_rows() -> list[dict[str, Any]]:
    """Every data set as a row of `ponder tasks list`; none, and a line on stderr, where the library is missing."""
    if not installed():
        print(OFF, file=sys.stderr)
        return []
    about = "a data set of reasoning-gym; its parameters are that library's"
    return [{"name": PREFIX + name, "description": about, "reward": "gym", "parameters": {}} for name in rules()]


def ask(**request: Any) -> dict[str, Any]:
    """The generating process's reply. Raises BadInput for what it refuses, Fault where it dies."""
    command = (sys.executable, "-P", "-m", "rewards.tasks.gym_server")
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with _lock:
        if not _running or _running[0].poll() is not None:  # it ends with the pipe to it
            _running[:] = [subprocess.Popen(command, env=os.environ | ONE_THREAD | {"PYTHONHASHSEED": "0"}, **pipes)]
        stdin, stdout = _running[0].stdin, _running[0].stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        try:
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
            reply = json.loads(stdout.readline())
        except (OSError, ValueError):
            raise Fault(f"the process that generates gym: problems died at {request}; try again") from None
    if "bad" in reply:
        raise BadInput(reply["bad"])
    return reply
