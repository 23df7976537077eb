from __future__ import annotations

import io
import os
import queue
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rewards import worker
from rewards.errors import BadInput
from rewards.worker import Server

PROBLEM: dict[str, Any] = {"id": "p", "task": "t", "prompt": "2+2?", "answer": "4", "key": "k"}
PLUGIN = """
calls = []
def bomb(response, problem):
    calls.append(response)
    if response == "memory": raise MemoryError
    if response == "depth": return bomb(response, problem)
    return len(calls)
async def later(response, problem):
    import asyncio
    return float(id(asyncio.get_running_loop()))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    (tmp_path / "p.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker, "limit_memory", lambda gb: None)  # never limit the test process itself
    return Server(memory_gb=1)


def score(server: Server, response: str, spec: Any = "exact_match") -> dict[str, Any]:
    return server.handle({"op": "score", "spec": spec, "response": response, "problem": PROBLEM})


def test_scores_come_back_as_plain_data(server: Server) -> None:
    assert score(server, "4")["score"] == {
        "value": 1.0, "correct": True, "status": "ok", "parts": {}, "id": "", "detail": "",
    }  # fmt: skip


def test_bad_input_is_a_line(server: Server) -> None:
    with pytest.raises(BadInput, match="did you mean"):
        server.handle({"op": "load", "spec": "exact_mtach"})


def test_limits_are_named(server: Server) -> None:
    assert score(server, "memory", "p.py:bomb") == {"limit": "more than 1 GiB of memory"}
    assert score(server, "depth", "p.py:bomb") == {"limit": "recursion depth"}


def test_a_reward_is_loaded_once_and_warmed_up(server: Server) -> None:
    assert server.handle({"op": "load", "spec": "p.py:bomb"}) == {"item_limit": None}
    item = {"spec": "p.py:bomb", "response": "memory", "problem": PROBLEM}
    assert server.handle({"op": "warm", **item}) == {"item_limit": None}
    assert score(server, "x", "p.py:bomb")["score"]["value"] == 2.0  # the warm-up's failure is nobody's, but it counted


def test_async_rewards_share_a_loop(server: Server) -> None:
    first, second = (score(server, "x", "p.py:later")["score"]["value"] for _ in range(2))
    assert first == second


def test_the_end_of_the_pipe_ends_the_process() -> None:
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    ends: list[int] = []
    worker.pump(io.BytesIO(b"1\n2\n"), lines, ends.append)
    assert [lines.get(), lines.get(), ends] == [b"1\n", b"2\n", [0]]


def run(code: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_the_memory_limit_counts_from_what_is_in_use() -> None:
    code = (
        "from rewards.worker import limit_memory\n"
        "limit_memory(0.2)\n"
        "try: bytearray(300 * 2**20); print('grew')\n"
        "except MemoryError: print('held')\n"
        "bytearray(50 * 2**20); limit_memory(None); bytearray(300 * 2**20); print('lifted')"
    )
    assert run(code).stdout.split() == ["held", "lifted"]


def test_an_orphan_ends_at_once() -> None:
    code = "from rewards.worker import die_with_parent; die_with_parent(1 if __import__('os').getppid() != 1 else 2)"
    assert run(f"{code}; print('alive')").stdout == ""
    assert run(f"from rewards.worker import die_with_parent; die_with_parent({os.getpid()}); print('alive')").stdout


def test_prints_and_reads_of_a_plugin_stay_off_the_pipes() -> None:
    code = (
        "from rewards.worker import take_pipes\n"
        "requests, replies = take_pipes()\n"
        "print('noise', flush=True)\n"
        "import sys; assert sys.stdin.read() == ''\n"
        "replies.write(requests.read()); replies.flush()"
    )
    done = run(code, stdin="hello")
    assert (done.stdout, done.stderr) == ("hello", "noise\n")
