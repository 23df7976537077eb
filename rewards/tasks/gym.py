"""Tasks `gym:NAME`: the data sets of reasoning-gym. What the library draws depends on the order of sets and on global
generators, and it prints: so it runs in a process of its own, where both are fixed, and an item is always the same."""

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rewards.errors import BadInput, Fault, nearest, one_line
from rewards.pool import ONE_THREAD
from rewards.puzzle import OFF, Puzzle, installed, make_dataset, rules
from rewards.tasks.base import Generator
from rewards.types import Problem

PREFIX = "gym:"
ASK = "\n\nWrite the final answer, in exactly the form that is asked for, between <answer> and </answer>."
TRIES = 200
CODE = (
    "from rewards import tasks, worker; worker.serve(lambda request: tasks.gym.generate(**request))"  # of the process
)
_lock = threading.Lock()
_running: list[Any] = []  # the process that generates, started when first asked


@dataclass(frozen=True)
class Gym(Generator):
    """One data set of reasoning-gym."""

    base = "gym"
    dataset: str
    config: str  # JSON

    @property
    def reward(self) -> Any:
        return {"use": "gym", "args": {"dataset": self.dataset}}

    def draw(self, rng: random.Random) -> Problem:
        return Problem(**ask(dataset=self.dataset, config=self.config, draw=rng.getrandbits(60)))

    def gold(self, problem: Problem) -> str:
        return f"<answer>{problem.answer or ''}</answer>"  # boxnet and rush_hour have none


def load_gym(spec: str, seed: int, given: Mapping[str, str]) -> Gym:
    """The task of a string `gym:NAME?parameter=value`; values are YAML. Raises BadInput for what the library lacks."""
    name = spec.partition("?")[0].removeprefix(PREFIX)
    if name not in rules():
        hint = nearest(name, rules())
        raise BadInput(f"unknown task {spec!r}; {hint if len(hint) < 80 else 'ponder tasks list names them all'}")
    if not installed():
        raise BadInput(OFF)
    try:
        config = json.dumps({key: yaml.safe_load(text) for key, text in given.items()})
    except yaml.YAMLError:
        raise BadInput(f"task {spec!r}: its values are read as YAML: 3, true, [a, b]") from None
    if given:
        ask(dataset=name, config=config, draw=0)  # refuses what the library refuses
    return Gym(spec, seed, name, config)


def gym_rows() -> list[dict[str, Any]]:
    """Every data set as a row of `ponder tasks list`; none, and a line on stderr, where the library is missing."""
    if not installed():
        print(OFF, file=sys.stderr)
        return []
    about = "a data set of reasoning-gym; its parameters are that library's"
    return [{"name": PREFIX + name, "description": about, "reward": "gym", "parameters": {}} for name in rules()]


def ask(**request: Any) -> dict[str, Any]:
    """What generate() says in the other process. Raises BadInput for what it refuses, Fault where it dies."""
    command = (sys.executable, "-P", "-c", CODE)
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with _lock:
        if not _running or _running[0].poll() is not None:  # it ends with the pipe to it
            _running[:] = [subprocess.Popen(command, env=os.environ | ONE_THREAD | {"PYTHONHASHSEED": "0"}, **pipes)]
        try:
            print(json.dumps(request), file=_running[0].stdin, flush=True)
            reply = json.loads(_running[0].stdout.readline())
        except (OSError, ValueError):
            raise Fault(f"the process that generates gym: problems died at {request}; try again") from None
    if "bad" in reply:
        raise BadInput(reply["bad"])
    return reply


def generate(dataset: str, config: str, draw: int) -> dict[str, Any]:
    """The fields of a draw's problem: the first whose reference answer, if the data set has them, is judged right."""
    source, place = make_dataset(dataset, config), rules()[dataset].reference
    rng, last = random.Random(draw), ""

    def plain(value: Any) -> Any:
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else None
        return items if items is not None else value.tolist() if hasattr(value, "tolist") else str(value)

    for _ in range(TRIES):
        source.seed = source.config.seed = rng.getrandbits(31)
        random.seed(source.seed)  # some draw from the generator that all share
        try:
            entry = source[rng.randrange(source.size)]
            fields = {name: entry[name] for name in ("question", "answer", "metadata")}
            question, answer, metadata = json.loads(json.dumps(fields, default=plain)).values()
        except Exception as error:  # the library gives up on some seeds
            last = f"{type(error).__name__}: {error}"
            continue
        answer = {**metadata, "answer": answer}.get(place)
        answer = answer if answer is None or isinstance(answer, str) else json.dumps(answer)
        meta = {"dataset": dataset, "config": json.loads(config), "metadata": metadata}
        problem = Problem("", PREFIX + dataset, question + ASK, answer, " ".join(question.split()), meta=meta)
        if not place or Puzzle()(f"<answer>{answer}</answer>", problem).correct:
            return vars(problem)
        last = f"its reference answer {answer!r} is not right"
    raise BadInput(one_line(f"task 'gym:{dataset}': no problem in {TRIES} draws; {last}"))
