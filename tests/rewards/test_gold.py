from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rewards.gold import ENDLESS, first_problems, in_order, score_gold, skip_bad_rows
from rewards.pool import RewardPool
from rewards.tasks import load_task
from rewards.types import Problem

TRAIN = [{"id": f"r{k}", "prompt": f"{k}+{k}?", "answer": str(2 * k), "split": "train"} for k in range(6)]
FALSE = {"id": "bad", "prompt": "x", "answer": "1", "gold": "\\boxed{2}", "split": "train"}
HELD_OUT = [
    {"id": f"{s}{k}", "prompt": f"{s}{k}", "answer": "1", "split": s} for s in ("val", "test") for k in range(3)
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [*TRAIN, FALSE, *HELD_OUT]))
    return str(path)


def test_results_come_in_order_and_few_are_under_way() -> None:
    active = most = 0

    async def one(k: int) -> int:
        nonlocal active, most
        active += 1
        most = max(most, active)
        await asyncio.sleep(0.001 * (5 - k % 5))
        active -= 1
        return k

    async def run() -> list[int]:
        return [k async for k in in_order((one(k) for k in range(20)), width=4)]

    assert asyncio.run(run()) == list(range(20))
    assert most == 4


def test_the_first_failure_cancels_what_is_under_way_and_begins_nothing_more() -> None:
    ended: list[str] = []

    async def one(k: int) -> int:
        try:
            await asyncio.sleep(0 if k == 0 else 60)
        finally:
            ended.append(f"end {k}")
        raise ValueError("boom")

    def calls() -> Iterator[Any]:
        for k in range(10):
            yield one(k)

    async def run() -> None:
        async for _ in in_order(calls(), width=3):
            pass

    with pytest.raises(ValueError, match="boom"):
        asyncio.run(run())
    assert sorted(ended) == ["end 0", "end 1", "end 2"]


def test_the_first_problems_of_files_and_of_generators(rows: str) -> None:
    task = load_task(rows)
    assert [p.id for p in first_problems(task, 2)][2:] == ["val0", "val1", "test0", "test1"]  # train is shuffled
    assert {p.id for p in first_problems(task)} == {row["id"] for row in [*TRAIN, FALSE, *HELD_OUT]}
    endless = load_task("letters")
    assert [len(list(first_problems(endless, n))) for n in (3, 40, None)] == [3, 40, ENDLESS]


def score(task: Any, **how: Any) -> list[str]:
    async def run() -> list[str]:
        async with RewardPool(1) as pool:
            found = await score_gold(pool, task, first_problems(task), lambda problem: problem.reward, **how)
            return [str(gold) for gold in found if not gold.score.correct]

    return asyncio.run(run())


def test_false_rows_are_named_and_can_be_left_out(rows: str) -> None:
    task = load_task(rows)
    assert score(task) == ["bad: gold '\\\\boxed{2}' is wrong: answered '2'"]

    async def skip(parts: list[Any]) -> list[str]:
        async with RewardPool(1) as pool:
            return [gold.problem.id for gold in await skip_bad_rows(pool, parts, lambda problem: problem.reward)]

    mixture = load_task([{"task": rows}, {"task": "letters"}])
    assert asyncio.run(skip(mixture.parts)) == ["bad"]  # type: ignore[attr-defined]
    assert [getattr(part, "skipped", 0) for part in mixture.parts] == [1, 0]  # type: ignore[attr-defined]
    part = mixture.parts[0]  # type: ignore[attr-defined]
    assert part.size("train") == len(TRAIN)
    assert {part.problem(k, "train").id for k in range(6)} == {row["id"] for row in TRAIN}
    assert score(part) == []


def test_no_gold_answer_is_begun_after_the_time_is_up() -> None:
    asked: list[str] = []

    class Slow:
        async def timed(self, id: str, response: str, problem: Problem, spec: Any) -> tuple[Any, float]:
            asked.append(id)
            await asyncio.sleep(0.02)
            return None, 0.02

    task = load_task("letters")
    problems = [task.problem(k, "train") for k in range(2000)]
    found = asyncio.run(score_gold(Slow(), task, problems, lambda p: None, seconds=0.1))  # type: ignore[arg-type]
    assert 16 <= len(found) == len(asked) < 1000
