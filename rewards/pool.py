"""Worker processes that score responses under hard limits of time and memory.
An item that makes a verifier hang, bloat or die is tried once more, alone in a fresh worker that was kept warm for it;
when that one is hit too, it is `rejected` and the pool goes on. What comes back is JSON, never a pickle."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Self

from rewards.answer import as_text
from rewards.errors import BadInput, Fault, one_line
from rewards.types import Extras, Problem, Score

ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
CLOSED = "the reward pool is closed"
WARM_UP_LIMIT = 10.0  # seconds that the first call of a reward in a worker may take, off every item's clock


class Worker:
    """One process and its two pipes; it answers one message at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.ready: set[str] = set()  # keys of the rewards that are loaded and warm
        self._process, self._killed, self._stderr = process, False, b""
        self._drain = asyncio.create_task(self._keep_last_words())

    @classmethod
    async def start(cls, memory_gb: float) -> Self:
        """Start the process, in a group of its own so that its children end with it."""
        command = (sys.executable, "-P", "-m", "rewards.worker", str(os.getpid()), str(memory_gb))
        pipe, environment = asyncio.subprocess.PIPE, os.environ | ONE_THREAD
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, limit=2**24, env=environment, start_new_session=True
            )
            return cls(process)
        except OSError as error:
            raise Fault(f"no reward worker starts ({error}); free memory or lower rewards.workers") from None

    @property
    def alive(self) -> bool:
        """False from the moment it is killed: the exit code comes later."""
        return not self._killed and self._process.returncode is None

    @property
    def last_words(self) -> str:
        """The last line that it wrote to stderr."""
        return one_line(self._stderr.decode(errors="replace").strip().rpartition("\n")[2])

    async def ask(self, message: dict[str, Any], limit: float) -> dict[str, Any]:
        """The reply within `limit` seconds, or {limit: reason}: it is dead, as when cancelled. Raises its BadInput."""
        reply: dict[str, Any] = {"limit": "interrupted"}
        start, talk = time.perf_counter(), asyncio.create_task(self._talk(json.dumps(message).encode() + b"\n"))
        try:
            reply = talk.result() if await finishes(talk, limit) else {"limit": f"no verdict within {limit:g} s"}
        finally:
            if "limit" in reply:
                self.kill()
                talk.cancel()
        if "bad" in reply:
            raise BadInput(reply["bad"])
        return reply | {"seconds": time.perf_counter() - start}

    async def _talk(self, line: bytes) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: PT018
        try:
            stdin.write(line)
            await stdin.drain()
            return json.loads(await stdout.readline())
        except (OSError, ValueError):  # a closed pipe, an empty or an overlong line
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), 0.5)
            self.kill()
            code = await self._process.wait()
            return {"limit": f"its worker died ({f'signal {-code}' if code < 0 else f'exit code {code}'})"}

    def kill(self) -> None:
        """Kill the process and whatever it started."""
        if self.alive:
            self._killed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill the process and wait until it is gone."""
        self.kill()
        await self._process.wait()
        self._drain.cancel()
        await asyncio.gather(self._drain, return_exceptions=True)

    async def _keep_last_words(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(2**16):
            self._stderr = (self._stderr + chunk)[-2000:]


async def finishes(task: asyncio.Task[Any], limit: float) -> bool:
    """Whether the task ends within `limit` seconds of a loop that runs.
    The clock goes in ticks, and something that blocks the loop counts as one: a busy trainer makes no item late."""
    for _ in range(10):
        if (await asyncio.wait({task}, timeout=limit / 10))[0]:
            return True
    return False


Slot = asyncio.Task[Worker]  # a place for a worker, which may still be starting


class RewardPool(contextlib.AbstractAsyncContextManager["RewardPool"]):
    """Scores responses in `workers` processes; spares are kept warm beside them, one for every four.
    time_limit: seconds an item may take, unless its reward says so itself (`item_limit`). memory_gb: address space a
    worker may add to what the loaded rewards take. load_limit: seconds a reward may take to load."""

    def __init__(
        self, workers: int = 2, time_limit: float = 1.0, memory_gb: float = 1.0, load_limit: float = 60.0
    ) -> None:
        self._workers, self._memory_gb = workers, memory_gb
        self._time_limit, self._load_limit = time_limit, load_limit
        self._specs: dict[str, Any] = {}  # every reward that has loaded once, by its key
        self._limits: dict[str, float] = {}  # key -> seconds that an item of a loaded reward may take
        self._warm_ups: dict[str, dict[str, Any]] = {}  # key -> message that calls it after loading, empty = don't
        self._slots, self._endings = set[Slot](), set[asyncio.Task[None]]()
        self._idle, self._spares = asyncio.Queue[Slot](), asyncio.Queue[Slot]()
        self._closed = False

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def load(self, spec: Any) -> None:
        """Prove in a worker that a reward can be loaded. Raises BadInput with the cause in one line."""
        async with self._worker(self._idle, spec):
            pass

    async def score(self, *item: Any, **more: Any) -> Score:
        """As `timed`, the verdict alone."""
        return (await self.timed(*item, **more))[0]

    async def timed(
        self,
        chain_id: str,
        response: str,
        problem: Problem,
        spec: Any = None,
        truncated: bool = False,
        extras: Extras | None = None,
    ) -> tuple[Score, float]:
        """The verdict on a response, with the chain's id, and the seconds that workers spent on it.
        Without a spec, the problem's own reward judges. Limits and failures are statuses. Raises BadInput where
        the reward does not load or lacks an input, Fault where no worker starts."""
        spec = problem.reward if spec is None else spec
        if spec is None:
            raise BadInput(f"problem {problem.id!r} has no reward; name one in `reward:`")
        item = {"op": "score", "spec": spec, "response": response, "problem": vars(problem)}
        gold = {"op": "warm", "response": f"\\boxed{{{as_text(problem.answer)}}}"}
        self._warm_ups.setdefault(key := json.dumps(spec, sort_keys=True), item | gold)
        item |= {"truncated": truncated, "extras": vars(extras or Extras())}
        seconds = 0.0
        for queue in (self._idle, self._spares):  # the second try is alone, where no other response was seen
            async with self._worker(queue, spec) as worker:
                reply = await worker.ask(item, self._limits.get(key, self._time_limit))
            seconds += reply["seconds"]
            if "limit" not in reply:
                return replace(Score(**reply["score"]), id=chain_id), seconds
        return Score(0.0, False, "rejected", id=chain_id, detail=f"twice: {reply['limit']}"), seconds

    async def aclose(self) -> None:
        """End every worker and wait until they are gone."""
        self._closed = True
        for slot in list(self._slots):
            self._drop(slot)
        await asyncio.gather(*self._endings)

    @contextlib.asynccontextmanager
    async def _worker(self, queue: asyncio.Queue[Slot], spec: Any) -> AsyncIterator[Worker]:
        """A worker with the reward ready: an idle one, or a spare, which serves once while its successor warms up."""
        if not self._slots:  # the first use, or the pool is closed
            for places, count in ((self._idle, self._workers), (self._spares, max(1, self._workers // 4))):
                for _ in range(count):
                    places.put_nowait(self._launch())
        slot = await queue.get()
        if self._closed:
            queue.put_nowait(slot)  # for whoever else still waits
            raise Fault(CLOSED)
        slot = self._revive(slot)
        following = slot if queue is self._idle else self._launch()
        try:
            worker = await asyncio.shield(slot)
            await self._prepare(worker, spec)
            yield worker
        finally:
            if following is not slot:
                self._drop(slot)
            queue.put_nowait(following if self._closed else self._revive(following))

    def _revive(self, slot: Slot) -> Slot:
        """The slot, or a new one, which warms up before the next item comes, where its worker is dead."""
        if not slot.done() or (not slot.cancelled() and slot.exception() is None and slot.result().alive):
            return slot
        self._drop(slot)
        return self._launch()

    def _launch(self) -> Slot:
        if self._closed:
            raise Fault(CLOSED)
        slot = asyncio.create_task(self._fresh())
        self._slots.add(slot)
        return slot

    def _drop(self, slot: Slot) -> None:
        """End a slot's worker, started or not, in the background."""

        async def end() -> None:
            slot.cancel()  # no effect on one that has started
            (worker,) = await asyncio.gather(slot, return_exceptions=True)
            if isinstance(worker, Worker):
                await worker.close()

        self._slots.discard(slot)
        self._endings.add(ending := asyncio.create_task(end()))
        ending.add_done_callback(self._endings.discard)

    async def _fresh(self) -> Worker:
        """A new worker with every known reward loaded."""
        worker = await Worker.start(self._memory_gb)
        try:
            for spec in list(self._specs.values()):
                await self._prepare(worker, spec)
        except BaseException:
            await worker.close()
            raise
        return worker

    async def _prepare(self, worker: Worker, spec: Any) -> None:
        """Load a reward and call it once on its problem's own answer, off every item's clock."""
        key = json.dumps(spec, sort_keys=True)
        if key in worker.ready or not worker.alive:
            return
        reply = await worker.ask({"op": "load", "spec": spec}, self._load_limit)
        if "limit" in reply:
            raise BadInput(f"reward {spec!r} does not load: {reply['limit']} {worker.last_words}".rstrip())
        self._specs[key], self._limits[key] = spec, reply["item_limit"] or self._time_limit
        if warm_up := self._warm_ups.get(key):
            reply = await worker.ask(warm_up, min(WARM_UP_LIMIT, self._load_limit))
            if "limit" in reply:
                self._warm_ups[key] = {}  # one that hangs or dies even there is only loaded from now on
        if key in self._warm_ups:
            worker.ready.add(key)
