"""Several tasks at once, by weight."""

import random
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

from rewards.errors import BadInput
from rewards.tasks.base import Task
from rewards.types import Problem, Split

CYCLE = 1000  # problems in which every task has its exact share, and at least one


class Mixture(Task):
    """Each cycle of CYCLE problems holds exact shares in a seeded order; ids begin with the name of their task.
    A task without problems in a split takes no part there."""

    reward = None

    def __init__(self, parts: list[tuple[Task, float]], seed: int = 0) -> None:
        self.name = " + ".join(task.name for task, _ in parts)
        self.seed = seed
        self._parts = parts
        self.parts = [task for task, _ in parts]
        self._turns = lru_cache(maxsize=8)(self._shuffled)

    @property
    def rewards(self) -> list[Any]:
        return [spec for task, _ in self._parts for spec in task.rewards]

    def problem(self, index: int, split: Split) -> Problem:
        """Problem `index` of the mixture: the next one of the task whose turn it is."""
        task, inner = self._locate(index, split)
        return qualified(task, task.problem(inner, split))

    def size(self, split: Split) -> int | None:
        """Problems until the first finite task runs out (train rows wrap around: their sum, or None)."""
        sizes = {task.name: task.size(split) for task, _ in self._parts}
        finite = {name: size for name, size in sizes.items() if size}
        if not finite or split == "train":
            return None if None in sizes.values() else sum(finite.values())
        turns = ((index, *self._locate(index, split)) for index in count())
        return next(index for index, task, inner in turns if inner == finite.get(task.name))

    def gold(self, problem: Problem) -> str:
        return self.part(problem).gold(problem)

    def part(self, problem: Problem) -> Task:
        """The task that a problem of the mixture came from."""
        for task, _ in sorted(self._parts, key=lambda part: -len(part[0].name)):
            if problem.id.startswith((f"{task.name}/", f"{task.name}:")):
                return task
        raise KeyError(f"problem {problem.id!r} is of none of {self.name}")

    def _locate(self, index: int, split: Split) -> tuple[Task, int]:
        cycle, place = divmod(index, CYCLE)
        return self._turns(cycle, split)[place]

    def _shuffled(self, cycle: int, split: Split) -> list[tuple[Task, int]]:
        """The tasks of one cycle with the index that each turn has inside its task."""
        parts = [(task, weight) for task, weight in self._parts if task.size(split) != 0]
        if not parts:
            raise BadInput(f'{self.name}: no {split} problems; add "split": "{split}" to some rows')
        whole = shares([weight for _, weight in parts])
        turns = [k for k, share in enumerate(whole) for _ in range(share)]
        random.Random(f"{self.seed}|{self.name}|{cycle}|{split}").shuffle(turns)
        upcoming = [count(cycle * share) for share in whole]
        return [(parts[k][0], next(upcoming[k])) for k in turns]


def qualified(task: Task, problem: Problem) -> Problem:
    """A problem whose id begins with the name of its task, so that ids stay apart where tasks come together."""
    return problem if problem.id.startswith(f"{task.name}/") else replace(problem, id=f"{task.name}:{problem.id}")


def shares(weights: list[float]) -> list[int]:
    """CYCLE divided by weight, largest remainders first, at least 1 each."""
    exact = [weight / sum(weights) * CYCLE for weight in weights]
    whole = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda k: int(exact[k]) - exact[k])
    for k in by_remainder[: max(0, CYCLE - sum(whole))]:
        whole[k] += 1
    whole[whole.index(max(whole))] -= max(0, sum(whole) - CYCLE)
    return whole
