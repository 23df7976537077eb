"""Both ends of a push in memory: weights, servers that record their calls, and a group that blocks as NCCL does."""

from __future__ import annotations

import asyncio
import math
import queue
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import torch
from safetensors.torch import load_file
from torch import Tensor

from rewards.errors import Fault
from rl.sync import Manifest
from rollout.client import ServerControl


class Source:
    """A WeightSource over a plain dict. `passes` counts how often it was iterated to its end."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.weights = tensors
        self.passes = 0
        self.threads: set[str] = set()

    def manifest(self) -> Manifest:
        return [(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in self.weights.items()]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for item in self.weights.items():
            self.threads.add(threading.current_thread().name)
            yield item
        self.passes += 1


SOURCE = Source({"b.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(3)})


class World:
    """The NCCL group of some fake servers; `join` is rank 0's way in, a group of its own each time."""

    def __init__(self, servers: list[Control]) -> None:
        self.servers = servers
        self.joined: list[tuple[int, int]] = []  # (port, world size) of each time that rank 0 came
        self.threads: list[threading.Thread] = []  # that rank 0 came or sent on
        self.chunks: list[int] = []  # bytes of each broadcast
        self.groups: list[Group] = []
        self.meeting = threading.Barrier(1 + len(servers))
        for server in servers:
            server.world = self

    def join(self, listener: socket.socket, world: int, timeout: float) -> Group:
        self.threads.append(threading.current_thread())
        self.joined.append((listener.getsockname()[1], world))
        with listener:
            self.meeting.wait(timeout)
        self.groups.append(Group(self))
        return self.groups[-1]


class Group:
    """A rl.nccl.Communicator. A broadcast returns when every server has it in hand, or when the group is destroyed;
    with `deaf` not even then."""

    deaf = False

    def __init__(self, world: World) -> None:
        self.world, self.disabled, self.released = world, False, threading.Event()

    def broadcast(self, tensor: Tensor, src: int, stream: Any) -> None:
        assert (src, stream, tensor.dtype, tensor.is_contiguous()) == (0, None, torch.uint8, True)
        self.world.threads.append(threading.current_thread())
        self.world.chunks.append(len(tensor))
        for server in self.world.servers:
            while not server.receiving.wait(0.01):
                if self.disabled and (not self.deaf or self.released.is_set()):
                    return
            server.inbox.put(tensor.clone())

    def destroy(self) -> None:
        self.disabled = True


class Control(ServerControl):
    """A server and its control in one: records calls; `fails` maps a call's name to what it raises, for an update over
    NCCL after its first chunk. `workers` is its world size."""

    world: World
    label_offset = 0

    def __init__(
        self, log: list[str], name: str = "s", fails: dict[str, Exception] | None = None, workers: int = 1
    ) -> None:
        super().__init__(f"http://{name}", "key")
        self.log, self.name, self.fails, self.workers = log, name, fails or {}, workers
        self.label = -1
        self.updating = False
        self.received: dict[str, Tensor] = {}
        self.told: dict[str, Any] = {}  # the newest init's
        self.updates: list[dict[str, Any]] = []
        self.receiving, self.inbox = threading.Event(), queue.Queue[Tensor]()

    async def _call(self, method: str, path: str, **request: Any) -> Any:
        assert threading.current_thread() is threading.main_thread()
        self.log.append(f"{self.name} {path}")
        body = request.get("json") or {}
        nccl = path == "/update_weights" and "names" in body["update_info"]
        if path in self.fails and not nccl:
            raise self.fails[path]
        if path == "/get_world_size":
            return httpx.Response(200, json={"world_size": self.workers})
        if path == "/init_weight_transfer_engine" and "rank_offset" in body["init_info"]:
            self.told = body["init_info"]
            await asyncio.to_thread(self.world.meeting.wait, 5)
        if path == "/start_weight_update":
            if self.updating:
                raise Fault("a weight update is already active")
            self.updating = True
        if nccl:
            await self._receive(body["update_info"])
        elif path == "/update_weights":
            if not (file := body["update_info"]["path"]):
                self.updating = False  # as vLLM does after every update that fails
                raise Fault("no such file")
            self.received = load_file(file)
        if path == "/finish_weight_update":
            self.label, self.updating = int(body["weight_version"]), False
        return httpx.Response(200)

    async def _receive(self, info: dict[str, Any]) -> None:
        """The workers' part: chunks are cut where the sizes in `info` say, not where they arrive."""
        self.updates.append(info)
        whole, at = b"", 0
        sizes = [
            math.prod(shape) * getattr(torch, dtype).itemsize
            for shape, dtype in zip(info["shapes"], info["dtype_names"], strict=True)
        ]
        self.receiving.set()
        try:
            while len(whole) < sum(sizes):
                chunk = await asyncio.to_thread(self.inbox.get, timeout=5)
                if "/update_weights" in self.fails:
                    raise self.fails["/update_weights"]
                expected = 0
                while expected <= self.told["packed_buffer_size_bytes"] and at < len(sizes):
                    expected, at = expected + sizes[at], at + 1
                assert len(chunk) == expected
                whole += chunk.numpy().tobytes()
        finally:
            self.receiving.clear()
            self.updating = False if "/update_weights" in self.fails else self.updating
        for name, dtype, shape, size in zip(info["names"], info["dtype_names"], info["shapes"], sizes, strict=True):
            part, whole = whole[:size], whole[size:]
            self.received[name] = torch.frombuffer(bytearray(part), dtype=getattr(torch, dtype)).reshape(shape)

    async def weight_version(self) -> int:
        self.log.append(f"{self.name} label")
        return self.label + self.label_offset
