"""Gold answers must be correct: checked before a run, and by `ponder tasks check`, in the pool that scores chains."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from rewards.pool import RewardPool
from rewards.tasks import Task
from rewards.tasks.base import SPLITS
from rewards.tasks.rows import Rows
from rewards.types import Problem, Score

T = TypeVar("T")
SpecOf = Callable[[Problem], Any]
VERIFIERS = ("choice", "code", "countdown", "exact_match", "math", "numeric")  # of ours: they must accept gold answers
ENDLESS = 16  # problems of a generator whose gold answers are scored where no count is given


class Gold(NamedTuple):
    """A problem, the response that must be correct, and the verdict on it."""

    problem: Problem
    response: str
    score: Score
    seconds: float  # that workers spent

    def __str__(self) -> str:
        score = self.score
        return f"{self.problem.id}: gold {self.response[:80]!r} is {score.status}: {score.detail or 'no reason'}"


async def in_order(calls: Iterable[Coroutine[Any, Any, T]], width: int = 16) -> AsyncIterator[T]:
    """Results in order, at most `width` under way; the first failure cancels and awaits the others."""
    pending: deque[asyncio.Task[T]] = deque()
    try:
        for call in calls:
            pending.append(asyncio.create_task(call))
            if len(pending) == width:
                yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def first_problems(task: Task, count: int | None = None) -> Iterator[Problem]:
    """The first `count` problems of every split (None: all); where they never end, of train alone (None: ENDLESS)."""
    endless = task.size("train") is None
    for split in SPLITS[:1] if endless else SPLITS:
        size = (count or ENDLESS) if endless else (task.size(split) or 0)
        yield from (task.problem(index, split) for index in range(size)[:count])


async def score_gold(
    pool: RewardPool, task: Task, problems: Iterable[Problem], spec_of: SpecOf, seconds: float = float("inf")
) -> list[Gold]:
    """The verdict on each problem's gold answer; after so many `seconds` no further one is begun."""
    end = time.monotonic() + seconds

    async def one(problem: Problem) -> Gold:
        response = task.gold(problem)
        return Gold(problem, response, *await pool.timed(problem.id, response, problem, spec_of(problem)))

    return [gold async for gold in in_order(one(p) for p in problems if time.monotonic() < end)]


async def skip_bad_rows(pool: RewardPool, parts: Iterable[Task], spec_of: SpecOf) -> list[Gold]:
    """Check every row of the files among `parts`; those whose gold answer is not correct leave them, and come back."""
    bad: list[Gold] = []
    for part in parts:
        if isinstance(part, Rows):
            found = [g for g in await score_gold(pool, part, first_problems(part), spec_of) if not g.score.correct]
            part.skip([gold.problem.id for gold in found])
            bad += found
    return bad
