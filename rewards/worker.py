"""A reward worker: one JSON message a line in on stdin, one reply out. Started by rewards.pool, never by hand.
What it runs may print, hang or die: so the reply pipe is moved away from fd 1, prints go to stderr, and the process
ends with its parent: by signal on Linux, by the end of stdin everywhere."""

import asyncio
import contextlib
import ctypes
import json
import os
import queue
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from rewards.errors import BadInput
from rewards.registry import judge, load_reward
from rewards.types import Extras, Problem


class Server:
    """Answers the pool's messages; knows nothing of pipes and processes."""

    def __init__(self, memory_gb: float) -> None:
        self._memory_gb = memory_gb
        self._load = cache(lambda key: load_reward(json.loads(key)))  # each reward once
        self._runner = asyncio.Runner()  # one loop for every async reward, so that sessions and locks live on

    def handle(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply: {item_limit}, {score}, {limit: reason} for a limit that was hit. Raises BadInput.
        op `score` judges an item under the memory limit; `load` and `warm` (an item whose verdict is thrown away, so
        that the reward's lazy imports are done) run without it, and set it anew."""
        op = message["op"]
        try:
            if op != "score":
                limit_memory(None)
            reward = self._load(json.dumps(message["spec"], sort_keys=True))
            if op == "score":
                problem, extras = Problem(**message["problem"]), Extras(**message.get("extras", {}))
                item = message["response"], problem, message.get("truncated", False), extras
                return {"score": asdict(judge(reward, *item, self._runner.run))}
            if op == "warm":
                with contextlib.suppress(BadInput):
                    self.handle(message | {"op": "score"})
            else:
                getattr(reward, "warm_up", bool)()  # imports that its problem's own answer may not need
            return {"item_limit": getattr(reward, "item_limit", None)}
        except MemoryError:
            return {"limit": f"more than {self._memory_gb:g} GiB of memory"}
        except RecursionError:
            return {"limit": "recursion depth"}
        finally:
            if op != "score":
                limit_memory(self._memory_gb)


def limit_memory(gb: float | None) -> None:
    """Let the address space grow by `gb` GiB from here on (soft limit); None lifts it. Linux only."""
    if sys.platform == "linux":
        soft = hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if gb is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            soft = pages * resource.getpagesize() + int(gb * 2**30)
            soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies, however it dies, also while a reward holds the interpreter (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected business, not a file
    if os.getppid() != parent:  # it died before the signal was asked for
        os._exit(0)


def take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The pool's two pipes, out of reach of whatever reads stdin or prints."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return requests, replies


def pump(requests: BinaryIO, lines: queue.SimpleQueue[bytes], end: Callable[[int], Any] = os._exit) -> None:
    """Pass request lines on; the end of the pipe ends the process even while a reward hangs."""
    for line in requests:
        lines.put(line)
    end(0)


def serve(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answer one JSON message a line until the pipe ends; what BadInput says comes back as {bad: line}."""
    requests, replies = take_pipes()
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=pump, args=(requests, lines), daemon=True).start()
    while True:
        try:
            reply = handle(json.loads(lines.get()))
        except BadInput as error:
            reply = {"bad": str(error)}
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()


if __name__ == "__main__":  # arguments: the parent's pid, the memory limit in GiB
    die_with_parent(int(sys.argv[1]))
    sys.path.append(os.getcwd())  # last: plugins there are found, and shadow nothing
    serve(Server(float(sys.argv[2])).handle)
