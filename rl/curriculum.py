"""Which training problems come next: in the task's order, without those that the policy has learnt to solve."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from rewards.errors import Fault
from rewards.tasks import Task
from rewards.types import Problem
from rollout.types import Group

MAX_SKIPPED = 1000  # retired problems in a row after which there is taken to be no other


@dataclass(frozen=True)
class Curriculum:
    """A position in the task's training problems. Saved in each checkpoint: a resumed run asks what would have come."""

    position: int = 0  # problems drawn or skipped so far
    retired: tuple[str, ...] = ()  # keys, in the order in which they were solved

    def draw(self, task: Task, count: int) -> tuple[list[Problem], Self]:
        """The next `count` problems, and where that leads. Raises Fault where all are retired."""
        problems: list[Problem] = []
        retired, position, skipped = set(self.retired), self.position, 0
        while len(problems) < count:
            problem = task.problem(position, "train")
            position, skipped = position + 1, skipped + 1 if problem.key in retired else 0
            if not skipped:
                problems.append(problem)
            elif skipped == MAX_SKIPPED:
                raise Fault(f"the policy solves all problems of {task.name}: take harder ones, or no retire_above")
        return problems, replace(self, position=position)

    def retire(self, groups: Sequence[Group], above: float | None) -> Self:
        """Without the problems whose share of correct chains is `above` or more; null = all stay."""
        rates = {g.problem.key: [c.score.correct for c in g.chains if c.score and c.score.counts] for g in groups}
        solved = [key for key, right in rates.items() if above and right and sum(right) >= above * len(right)]
        return replace(self, retired=tuple(dict.fromkeys((*self.retired, *solved))))

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `dump` gave."""
        found = json.loads(text)
        return cls(found["position"], tuple(found["retired"]))
