"""The push over NCCL: learner (rank 0) and the servers' workers in one group, into which rank 0 broadcasts.
HTTP and NCCL must be under way together, else both sides wait: calls are awaited here, NCCL is on a daemon thread."""

import asyncio
import itertools
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from rewards.errors import Fault
from rl.memory import NCCL_CHUNK
from rl.sync import Push, WeightSource, checked, start

T = TypeVar("T")


class Communicator(Protocol):
    """Rank 0's end of the group: what is used of vLLM's PyNcclCommunicator."""

    disabled: bool  # destroyed, or without its library: broadcasts do nothing

    def broadcast(self, tensor: Tensor, src: int, stream: Any) -> None: ...  # contiguous, on the current device
    def destroy(self) -> None: ...  # ends a broadcast that is under way, too


def join_group(listener: socket.socket, world: int, timeout: float) -> Communicator:
    """Be rank 0 of a group whose other ranks come to `listener`. Names and order are those of vllm 0.32.0,
    distributed/weight_transfer/nccl_common.py: stateless_init_process_group."""
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.distributed.utils import StatelessProcessGroup
    from vllm.utils.nccl import unpinned_nccl_env

    (host, port), seconds = listener.getsockname(), int(timeout)
    store = StatelessProcessGroup.create(host, port, 0, world, store_timeout=seconds, listen_socket=listener)
    with unpinned_nccl_env():
        return PyNcclCommunicator(store, torch.cuda.current_device())  # type: ignore[no-any-return,unused-ignore]


@dataclass
class NcclPush(Push):
    """Push into one NCCL group, made at the first push and again after a failure or a server's restart. Fault also
    where NCCL fails, or hangs beyond `timeout`, the servers' own deadline."""

    address: str  # of this machine, for the servers
    timeout: float  # seconds
    join: Callable[[socket.socket, int, float], Communicator] = join_group
    group: Communicator | None = None
    pushed: int = -1  # version

    async def prepare(self, source: WeightSource) -> None:
        """Join, unless joined. A server's workers come after its predecessor's; `packed` is told here, never later."""
        if self.group and set(await self.each(lambda c: c.weight_version())) == {self.pushed}:
            return
        self.close()
        *first, world = itertools.accumulate(await self.each(lambda c: c.world_size()), initial=1)
        listener = socket.create_server((self.address, 0))  # a new port, held from here on
        info = {"master_address": self.address, "master_port": listener.getsockname()[1], "world_size": world}
        info |= {"packed": True, "packed_buffer_size_bytes": NCCL_CHUNK, "packed_num_buffers": 2}
        calls = [c.init_transfer(info | {"rank_offset": rank}) for c, rank in zip(self.controls, first, strict=True)]
        self.group = await self._both(calls, partial(self.join, listener, world, self.timeout))

    async def transfer(self, source: WeightSource, version: int) -> None:
        assert self.group is not None
        names, dtypes, shapes = zip(*source.manifest(), strict=True)
        payload = {"names": names, "dtype_names": dtypes, "shapes": shapes}
        await self.each(start)
        calls = [c.update(payload) for c in self.controls]
        await self._both(calls, partial(send, source, self.group), self.timeout)
        await self.each(lambda c: c.finish_update(version))
        self.pushed = version

    def close(self) -> None:
        if self.group:
            self.group.destroy()
        self.group = None

    async def _both(self, calls: Iterable[Awaitable[None]], work: Callable[[], T], patience: float = 0) -> T:
        """Have `work` done on a daemon thread, for NCCL knows no timeout, while the servers answer. Where either fails
        the group is left, and the thread has `patience` seconds to end: it may be in a collective with other ranks."""
        result: Future[T] = Future()
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def run() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)  # a new thread's is 0
                result.set_result(work())
            except BaseException as error:
                nccls = isinstance(error, RuntimeError)  # or the store's, or CUDA's
                result.set_exception(Fault(f"the push over NCCL failed: {error}") if nccls else error)

        threading.Thread(target=run, name="nccl", daemon=True).start()
        thread = asyncio.wrap_future(result)
        thread.add_done_callback(lambda done: done.exception())  # heard, also when nobody waits any more
        tasks: list[asyncio.Future[Any]] = [*map(asyncio.ensure_future, calls), thread]
        _, late = await asyncio.wait(tasks, timeout=1.1 * self.timeout, return_when=asyncio.FIRST_EXCEPTION)
        errors = [error for task in tasks if task not in late and (error := task.exception())]
        if not late and not errors:
            return thread.result()
        self.close()
        for task in tasks[:-1]:
            task.cancel()
        await asyncio.wait([thread], timeout=patience)
        if errors and (thread.done() or not patience):
            raise errors[0]  # a server's before the thread's
        raise Fault(f"NCCL hangs after {self.timeout:g} s (sync.timeout); compare NCCL_* on both sides, restart both")


def send(source: WeightSource, group: Communicator) -> None:
    """Broadcast all tensors as packed_tensor.py (packed_nccl_broadcast_consumer) wants them: bytes end to end, a chunk
    ends with the tensor that takes it beyond NCCL_CHUNK. All on the default stream, on which gathers can't deadlock."""
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None  # vLLM's default is a new one
    chunk: list[Tensor] = []
    for tensor in checked(source):
        chunk.append(tensor.reshape(-1).view(torch.uint8))
        if sum(map(len, chunk)) > NCCL_CHUNK:
            group.broadcast(torch.cat(chunk), 0, stream)
            chunk.clear()
    if chunk:
        group.broadcast(torch.cat(chunk), 0, stream)
    if stream is not None:
        stream.synchronize()
    if group.disabled:
        raise Fault("the learner's NCCL group was left in a push, or has no library")
