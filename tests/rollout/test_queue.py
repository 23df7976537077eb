"""The bounded queue: what is in flight when, and where failures come out."""

from __future__ import annotations

import asyncio

import pytest

from rollout.queue import RolloutQueue


class Producer:
    """Makes "batch N" when its gate opens; keeps what was started, cancelled and how many ran at once."""

    def __init__(self, *, gated: bool = False, failing: int | None = None) -> None:
        self.started: list[int] = []
        self.cancelled: list[int] = []
        self.gate = asyncio.Event()
        self.failing = failing
        if not gated:
            self.gate.set()

    async def __call__(self, step: int) -> str:
        self.started.append(step)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(step)
            raise
        if step == self.failing:
            raise RuntimeError(f"step {step} failed")
        return f"batch {step}"


async def test_capacity_0_makes_nothing_ahead() -> None:
    producer = Producer()
    queue = RolloutQueue(0, producer)
    for step in (1, 2):
        assert await queue.get(step) == f"batch {step}"
        await asyncio.sleep(0)
        assert producer.started == list(range(1, step + 1))


async def test_capacity_k_keeps_k_following_steps_in_flight_up_to_the_last() -> None:
    producer = Producer()
    queue = RolloutQueue(2, producer, last_step=4)
    assert await queue.get(1) == "batch 1"
    await asyncio.sleep(0)
    assert producer.started == [1, 2, 3]
    assert [await queue.get(step) for step in (2, 3, 4)] == ["batch 2", "batch 3", "batch 4"]
    assert producer.started == [1, 2, 3, 4]


async def test_a_failure_surfaces_at_its_own_step() -> None:
    queue = RolloutQueue(1, Producer(failing=2))
    assert await queue.get(1) == "batch 1"
    with pytest.raises(RuntimeError, match="step 2 failed"):
        await queue.get(2)
    assert await queue.get(3) == "batch 3"
    await queue.aclose()


async def test_close_cancels_and_waits() -> None:
    producer = Producer(gated=True)
    queue = RolloutQueue(1, producer)
    waiting = asyncio.create_task(queue.get(1))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert producer.cancelled == [1]
    await queue.aclose()
    assert producer.cancelled == [1, 2]
    await queue.aclose()


def test_negative_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity -1"):
        RolloutQueue(-1, Producer())
