"""The bounded queue between rollout and learner; its capacity is the staleness that is allowed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class RolloutQueue(Generic[T]):
    """`get(step)` answers what `produce(step)` makes. With capacity 0 nothing is produced ahead: the loop is
    synchronous. With capacity k the k steps that follow the one asked for, up to `last_step`, are in flight as tasks; a
    batch is then at most k updates old."""

    def __init__(self, capacity: int, produce: Callable[[int], Awaitable[T]], last_step: int | None = None) -> None:
        if capacity < 0:
            raise ValueError(f"capacity {capacity} is negative")
        self._capacity, self._produce, self._last_step = capacity, produce, last_step
        self._tasks: dict[int, asyncio.Future[T]] = {}

    async def get(self, step: int) -> T:
        """The batch of a step; the producer's exception where it failed. A cancelled get cancels that step alone."""
        for ahead in range(step, step + self._capacity + 1):
            wanted = ahead == step or self._last_step is None or ahead <= self._last_step
            if wanted and ahead not in self._tasks:
                self._tasks[ahead] = asyncio.ensure_future(self._produce(ahead))
        return await self._tasks.pop(step)

    async def aclose(self) -> None:
        """Cancel what is in flight and wait until it has ended."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
