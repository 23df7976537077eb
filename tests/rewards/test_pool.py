from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from rewards.errors import BadInput, Fault
from rewards.pool import RewardPool, Worker, finishes
from rewards.types import Extras, Problem

PLUGIN = '''
import os, signal, subprocess, sys, time
def bad(response, problem):
    if "raise" in response: raise ValueError("boom")
    if "sleep" in response: time.sleep(1e6)
    if "burn" in response: 9**9**9**9
    if "nan" in response: return float("nan")
    if "die" in response: os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in response: sys.exit(3)
    if "bloat" in response: return float(len(bytearray(3 * 2**30)))
    if "deep" in response: return bad(response, problem)
    if "child" in response:
        print("pid", subprocess.Popen(["sleep", "1000"]).pid, file=open("child.pid", "w"), flush=True)
        time.sleep(1e6)
    print("noise on stdout"); os.write(1, b"more noise\\n")
    return 1.0
async def async_sleep(response, problem):
    import asyncio
    await asyncio.sleep(1e6 if response == "sleep" else 0)
    return True
def first_call_is_slow(response, problem, seen=[]):
    if not seen: time.sleep(1.0)
    seen.append(1)
    return True
def hangs_on_its_own_answer(response, problem):
    if response == "\\\\boxed{4}": time.sleep(1e6)
    return True
def pid(response, problem):
    if "hit" in response: raise MemoryError
    return float(os.getpid())
def once(response, problem):
    """Hits a limit only in a worker that has seen another response."""
    seen = globals().setdefault("seen", [])
    seen.append(response)
    if "moody" in response and "other" in seen: raise MemoryError
    return True
def step(completions, completion_ids, trainer_state, **columns):
    return [completion_ids[0][0] + trainer_state.global_step]
def leave_a_child(response, problem):
    if response == "leave":
        child = subprocess.Popen(["sleep", "20"], start_new_session=True)
        print(child.pid, file=open("left.pid", "w"), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return True
def shout(response, problem):
    print("last words", file=sys.stderr, flush=True)
'''


def problem(spec: str | None = None) -> Problem:
    return Problem("p", "t", "2+2?", "4", "k", reward=spec)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "pool_plugin.py").write_text(PLUGIN)
    (tmp_path / "rewards.py").write_text("raise SystemExit('the user file shadows the package')")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def pool(here: Path) -> AsyncIterator[RewardPool]:
    before = children()
    async with RewardPool(workers=2, time_limit=0.5, memory_gb=0.5) as pool:
        yield pool
    assert not children() - before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children() if "rewards.worker" in " ".join(child.cmdline())}


async def test_order_and_identity_hold_for_many_items(pool: RewardPool) -> None:
    await pool.load("exact_match")
    scores = await asyncio.gather(
        *(pool.score(f"c{i}", "4" if i % 3 else "5", problem("exact_match")) for i in range(300))
    )
    assert [score.id for score in scores] == [f"c{i}" for i in range(300)]
    assert [score.correct for score in scores] == [bool(i % 3) for i in range(300)]


async def test_each_misdeed_has_its_status_and_the_rest_is_scored(pool: RewardPool) -> None:
    spec = "pool_plugin:bad"
    names = ["raise", "sleep", "nan", "die", "exit", "bloat", "deep", *["ok"] * 20]
    scores = await asyncio.gather(*(pool.score(name, name, problem(), spec) for name in names))
    assert [score.id for score in scores] == names
    by_name = dict(zip(names, scores, strict=True))
    assert (by_name["raise"].status, by_name["raise"].value) == ("error", None)
    assert by_name["raise"].detail == "ValueError: boom"
    assert (by_name["nan"].status, by_name["nan"].value) == ("error", None)
    for name, reason in {
        "sleep": "no verdict within 0.5 s",
        "die": "signal 9",
        "exit": "exit code 3",
        "bloat": "more than 0.5 GiB",
        "deep": "recursion",
    }.items():
        score = by_name[name]
        assert (score.status, score.value, score.correct) == ("rejected", 0.0, False), name
        assert score.detail.startswith("twice: ")
        assert reason in score.detail
    assert Counter(score.status for score in scores[7:]) == {"ok": 20}


async def test_a_hang_costs_two_limits_even_where_it_holds_the_interpreter(pool: RewardPool) -> None:
    await pool.score("warm", "ok", problem(), "pool_plugin.py:bad")
    for name in ("sleep", "burn"):
        start = time.monotonic()
        score, seconds = await pool.timed("x", name, problem(), "pool_plugin.py:bad")
        assert score.status == "rejected"
        assert 1.0 <= seconds <= 3.0
        assert time.monotonic() - start < 6.0


async def test_async_rewards_are_under_the_same_clock(pool: RewardPool) -> None:
    scores = [await pool.score("x", text, problem(), "pool_plugin:async_sleep") for text in ("4", "sleep", "4")]
    assert [score.status for score in scores] == ["ok", "rejected", "ok"]


async def test_the_second_try_is_alone_in_a_fresh_worker(pool: RewardPool) -> None:
    spec = "pool_plugin:once"
    await asyncio.gather(*(pool.score("a", "other", problem(), spec) for _ in range(8)))
    assert (await pool.score("b", "moody", problem(), spec)).correct


async def test_loading_and_the_first_call_are_off_the_clock(pool: RewardPool) -> None:
    score, seconds = await pool.timed("x", "4", problem(), "pool_plugin:first_call_is_slow")
    assert score.correct
    assert seconds < 1.0


async def test_truncation_extras_and_missing_rewards(pool: RewardPool) -> None:
    assert (await pool.score("x", "4", problem("exact_match"), truncated=True)).status == "truncated"
    assert (await pool.score("x", "a", problem("letters"), truncated=True)).status == "ok"
    assert (await pool.score("x", "4", problem(), "pool_plugin:step", extras=Extras([3], 4))).value == 7.0
    with pytest.raises(BadInput, match="completion_ids"):
        await pool.score("x", "4", problem(), "pool_plugin:step")
    with pytest.raises(BadInput, match="no reward"):
        await pool.score("x", "4", problem())


async def test_what_does_not_load_is_bad_input(pool: RewardPool, here: Path) -> None:
    (here / "dies.py").write_text("import os, sys; print('so long', file=sys.stderr, flush=True); os._exit(7)")
    for spec, words in {
        "nope": "unknown reward",
        "none.py:f": "no file",
        "dies.py:f": "exit code 7",
    }.items():
        with pytest.raises(BadInput) as error:
            await pool.load(spec)
        assert words in str(error.value)
    await pool.load("exact_match")
    assert (await pool.score("x", "4", problem("exact_match"))).correct


async def test_a_load_that_hangs_is_ended(here: Path) -> None:
    (here / "hangs.py").write_text("import time; time.sleep(1e6)")
    async with RewardPool(workers=1, load_limit=0.5) as pool:
        with pytest.raises(BadInput, match=r"hangs\.py:f.*0\.5 s"):
            await pool.load("hangs.py:f")


async def test_a_reward_that_hangs_on_its_own_answer_is_only_loaded(
    pool: RewardPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewards.pool.WARM_UP_LIMIT", 0.5)
    scores = [await pool.score("x", "7", problem(), "pool_plugin:hangs_on_its_own_answer") for _ in range(3)]
    assert [score.correct for score in scores] == [True, True, True]


async def test_a_megabyte_goes_through(pool: RewardPool) -> None:
    text = "\N{SNOWMAN}\0\ud800" * 300_000 + "\n4"
    assert (await pool.score("x", text, problem("exact_match"))).correct


async def test_cancelling_leaks_no_busy_worker(pool: RewardPool) -> None:
    spec = "pool_plugin:bad"
    await pool.score("x", "ok", problem(), spec)
    tasks = [asyncio.create_task(pool.score("x", "sleep", problem(), spec)) for _ in range(6)]
    await asyncio.sleep(0.2)
    for task in tasks:
        task.cancel()
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*tasks, return_exceptions=True))
    scores = await asyncio.gather(*(pool.score("x", "ok", problem(), spec) for _ in range(10)))
    assert all(score.correct for score in scores)


async def test_children_of_a_killed_worker_end_with_it(pool: RewardPool, here: Path) -> None:
    assert (await pool.score("x", "child", problem(), "pool_plugin:bad")).status == "rejected"
    pid = int((here / "child.pid").read_text().split()[1])
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the child of a killed worker lives on")


async def test_a_process_that_escaped_holds_nothing_up(pool: RewardPool, here: Path) -> None:
    start = time.monotonic()
    assert (await pool.score("x", "leave", problem(), "pool_plugin:leave_a_child")).status == "rejected"
    await pool.aclose()
    assert time.monotonic() - start < 10
    os.kill(int((here / "left.pid").read_text()), signal.SIGKILL)
    await asyncio.sleep(0.1)  # its end closes the last pipe


async def test_a_worker_that_died_while_idle_is_replaced(pool: RewardPool) -> None:
    spec = "pool_plugin:pid"
    first = (await pool.score("x", "4", problem(), spec)).value
    assert first is not None
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.3)
    scores = [await pool.score("x", "4", problem(), spec) for _ in range(4)]
    assert all(score.status == "ok" and score.value != first for score in scores)


async def test_bombs_among_many_items_lose_no_worker(pool: RewardPool) -> None:
    spec = "pool_plugin:pid"
    names = ["hit" if i % 20 == 0 else "fine" for i in range(120)]
    scores = await asyncio.gather(*(pool.score(str(i), name, problem(), spec) for i, name in enumerate(names)))
    assert [score.status for score in scores] == ["rejected" if name == "hit" else "ok" for name in names]
    later = await asyncio.gather(*(pool.score("x", "fine", problem(), spec) for _ in range(50)))
    assert len({score.value for score in later}) == 2


async def test_a_closed_pool_says_so_to_all_who_wait(here: Path) -> None:
    pool = RewardPool(workers=1, time_limit=30)
    await pool.score("x", "ok", problem(), "pool_plugin:bad")
    waiting = [asyncio.create_task(pool.score("x", "sleep", problem(), "pool_plugin:bad")) for _ in range(4)]
    await asyncio.sleep(0.1)
    await pool.aclose()
    for _ in range(2):
        with pytest.raises(Fault, match="closed"):
            await pool.load("letters")
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert all(isinstance(result, Fault) for result in results)
    assert not children()


async def test_a_stall_of_the_loop_makes_no_item_late() -> None:
    task = asyncio.create_task(asyncio.sleep(0.3))
    await asyncio.sleep(0)
    stall = asyncio.create_task(asyncio.sleep(0.05))
    stall.add_done_callback(lambda _: time.sleep(1.0))
    assert await finishes(task, 0.6)
    assert not await finishes(asyncio.create_task(asyncio.sleep(5)), 0.1)


async def test_last_words_are_kept(here: Path) -> None:
    worker = await Worker.start(0.5)
    load = {"op": "load", "spec": "pool_plugin:shout"}
    item = {"op": "score", "spec": "pool_plugin:shout", "response": "", "problem": vars(problem())}
    for message in (load, item):
        await worker.ask(message, 10)
    await asyncio.sleep(0.1)
    assert worker.last_words == "last words"
    await worker.close()
    assert not worker.alive


ORPHANS = """
import asyncio, os, signal, sys
from rewards.pool import RewardPool
from rewards.types import Problem
async def main():
    pool = RewardPool(workers=2, time_limit=600)
    problem = Problem("p", "t", "?", "4", "k")
    await pool.score("x", "ok", problem, "pool_plugin.py:bad")
    hang = asyncio.gather(*(pool.score("x", name, problem, "pool_plugin.py:bad") for name in ("sleep", "burn")))
    await asyncio.sleep(0.5)
    import psutil
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_workers_die_with_a_parent_that_was_killed(here: Path) -> None:
    done = subprocess.run([sys.executable, "-P", "-c", ORPHANS], capture_output=True, text=True, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 3, done.stderr
    deadline = time.monotonic() + 10
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.1)
