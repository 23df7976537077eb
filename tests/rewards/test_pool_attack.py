"""The pool under attack: bombs among honest items, programs in it, and limits that a reward sets for itself."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from rewards.pool import RewardPool
from rewards.types import Problem, Score
from tests.rewards.conftest import programs
from tests.rewards.test_pool import PLUGIN, children, problem

MORE = '''
class Patient:
    """Takes longer than the pool gives, and says so."""
    item_limit = 2.0
    def __call__(self, response, problem): time.sleep(float(response)); return True
def needs_an_import(response, problem): return needs_an_import.ready
needs_an_import.ready = False
def import_it(): time.sleep(0.5); needs_an_import.ready = True
needs_an_import.warm_up = import_it
'''
TESTS = [{"input": f"{n}\n", "output": f"{n + 1}\n"} for n in (1, 5)]
ANSWER = "print(int(input()) + 1)"
BOMBS = ("raise", "sleep", "bloat", "die", "deep", "burn")
VERDICTS = {"ok": "ok", "raise": "error"}  # every other bomb is rejected


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pool_plugin.py").write_text(PLUGIN + MORE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(text: str) -> str:
    return f"```python\n{text}\n```"


def coding() -> Problem:
    return Problem("c", "code", "?", None, "k", meta={"tests": TESTS})


async def test_a_reward_may_have_a_limit_of_its_own(here: Path) -> None:
    async with RewardPool(workers=1, time_limit=0.4) as pool:
        assert (await pool.score("x", "0.9", problem(), "pool_plugin:Patient")).correct
        score, seconds = await pool.timed("x", "60", problem(), "pool_plugin:Patient")
        assert (score.status, score.detail) == ("rejected", "twice: no verdict within 2 s")
        assert 4.0 <= seconds < 6.0
        score, seconds = await pool.timed("x", "sleep", problem(), "pool_plugin:bad")
        assert score.detail == "twice: no verdict within 0.4 s"


async def test_what_a_reward_must_import_is_off_every_clock(here: Path) -> None:
    async with RewardPool(workers=2, time_limit=0.4) as pool:
        tries = [("pool_plugin:needs_an_import", "4")] * 20 + [("pool_plugin:bad", "die")] * 4  # these need new workers
        tries = tries[::2] + tries[1::2]
        scores = await asyncio.gather(*(pool.score("x", text, problem(), spec) for spec, text in tries))
        assert Counter(score.status for score in scores) == {"ok": 20, "rejected": 4}


@pytest.mark.usefixtures("nothing_left")
async def test_programs_in_the_pool(here: Path) -> None:
    hostile = {
        "hang": "while True: pass",
        "fork": "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        "memory": "x = bytearray(2**33)",
        "kill": "import os; os.kill(os.getppid(), 9); os.kill(-1, 9); os.kill(os.getpid(), 9)",
        "flood": "while True: print('x' * 10**6)",
    }
    spec = {"use": "code", "args": {"time_limit": 1.5}}
    async with RewardPool(workers=2, time_limit=0.3) as pool:
        start = time.monotonic()
        tries = [(name, program(text)) for name, text in hostile.items()] + [("right", program(ANSWER))] * 6
        scores = await asyncio.gather(*(pool.score(name, text, coding(), spec) for name, text in tries))
        assert [score.status for score in scores] == ["wrong"] * 5 + ["ok"] * 6
        assert time.monotonic() - start < 15


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.01, 0.02, 0.5])
async def test_a_program_ends_when_its_worker_is_killed(here: Path, delay: float) -> None:
    spec = {"use": "code", "args": {"time_limit": 60}}
    async with RewardPool(workers=2) as pool:
        await pool.load(spec)
        text = program("import os, time\nos.fork()\ntime.sleep(1e6)")
        tasks = [asyncio.create_task(pool.score("x", text, coding(), spec)) for _ in range(2)]
        await asyncio.sleep(delay)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.2)
    assert not programs()


@dataclass
class Attack:
    """What became of it: wrong verdicts, the slowest item by kind in seconds, workers that serve and live after."""

    wrong: list[tuple[str, Score]]
    slowest: dict[str, float]
    wall: float
    serving: int
    alive: int


async def attack(items: int, workers: int, time_limit: float) -> Attack:
    """Have `items` responses judged, one in twenty of them a bomb, each kind in turn."""
    names = [BOMBS[i // 20 % len(BOMBS)] if i % 20 == 7 else "ok" for i in range(items)]
    before = children()
    async with RewardPool(workers, time_limit, memory_gb=0.5) as pool:
        await pool.score("x", "ok", problem(), "pool_plugin:bad")
        start = time.monotonic()
        tries = [pool.timed(str(i), name, problem(), "pool_plugin:bad") for i, name in enumerate(names)]
        results = list(zip(names, await asyncio.gather(*tries), strict=True))
        wall = time.monotonic() - start
        later = await asyncio.gather(*(pool.score("x", "fine", problem(), "pool_plugin:pid") for _ in range(200)))
        alive = len(children() - before)
    assert not children() - before
    assert [score.id for _, (score, _) in results] == [str(i) for i in range(items)]
    wrong = [(name, score) for name, (score, _) in results if (score.status, score.value) != expected(name)]
    slowest = {kind: max(seconds for name, (_, seconds) in results if name == kind) for kind in ("ok", *BOMBS)}
    return Attack(wrong, slowest, wall, len({score.value for score in later}), alive)


def expected(name: str) -> tuple[str, float | None]:
    status = VERDICTS.get(name, "rejected")
    return status, {"ok": 1.0, "error": None, "rejected": 0.0}[status]


@pytest.mark.slow
async def test_a_thousand_items_with_bombs_lose_no_worker(here: Path) -> None:
    limit = 0.5
    seen = await attack(1000, 2, limit)
    assert not seen.wrong
    assert (seen.serving, seen.alive) == (2, 3)  # and a spare
    assert max(seen.slowest[bomb] for bomb in BOMBS) < 2 * limit + 1
    assert seen.wall < 120
