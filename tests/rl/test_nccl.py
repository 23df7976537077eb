"""The push over NCCL, against servers and a group in memory that meet as the real ones do: both at once."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest
import torch

from rewards.errors import Fault
from rl import nccl
from rl.nccl import NcclPush, send
from rl.sync import Manifest, ModuleSource
from rollout.client import ServerControl, ServerDown
from tests.rl.wire import SOURCE, Control, Group, Source, World


def made(*controls: Control, timeout: float = 5.0) -> tuple[NcclPush, World]:
    world = World(list(controls))
    return NcclPush(controls, "127.0.0.1", timeout, world.join), world


async def test_two_servers_get_their_ranks_and_a_group_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = Control([], "a", workers=2), Control([], "b", workers=1)
    push, world = made(a, b)
    for version in (1, 2):
        await push.push(SOURCE, version)
    ((port, size),) = world.joined
    same = {"master_address": "127.0.0.1", "master_port": port, "world_size": 4}
    same |= {"packed": True, "packed_buffer_size_bytes": 2**28, "packed_num_buffers": 2}
    assert size == 4
    assert [a.told, b.told] == [same | {"rank_offset": 1}, same | {"rank_offset": 3}]
    assert [control.log.count(f"{control.name} /init_weight_transfer_engine") for control in (a, b)] == [1, 1]


async def test_nccl_is_on_daemon_threads_with_their_device_set_and_http_on_the_main_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    devices: list[tuple[str, int]] = []

    class Stream:
        def synchronize(self) -> None:
            devices.append((threading.current_thread().name, -1))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_device", lambda i: devices.append((threading.current_thread().name, i)))
    monkeypatch.setattr(
        Group, "broadcast", lambda self, tensor, src, stream, it=Group.broadcast: it(self, tensor, src, None)
    )
    source, (push, world) = Source(SOURCE.weights), made(Control([]))
    await push.push(source, 1)  # Control asserts that its calls come from the main thread
    assert devices == [("nccl", 3), ("nccl", 3), ("nccl", -1)]  # to join; to send, and when all has left
    assert [(thread.name, thread.daemon) for thread in world.threads] == [("nccl", True)] * 2
    assert source.threads == {"nccl"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
async def test_what_arrives_is_the_model_cast_in_its_order(
    monkeypatch: pytest.MonkeyPatch, dtype: str, tied: bool
) -> None:
    monkeypatch.setattr(nccl, "NCCL_CHUNK", 1500)
    model = small(tied)
    control = Control([])
    push, world = made(control)
    await push.push(ModuleSource(model, dtype), 1)
    (update,) = control.updates
    named = dict(model.named_parameters())
    assert ("lm_head.weight" in named) is not tied
    assert set(update) == {"names", "dtype_names", "shapes"}
    assert list(update["names"]) == list(named)
    assert set(update["dtype_names"]) == {dtype}
    assert [tuple(shape) for shape in update["shapes"]] == [tuple(p.shape) for p in named.values()]
    assert list(control.received) == list(named)
    for name, parameter in named.items():
        assert torch.equal(control.received[name], parameter.detach().to(getattr(torch, dtype))), name
    largest = max(p.numel() for p in named.values()) * getattr(torch, dtype).itemsize
    assert len(world.chunks) > 3
    assert all(1500 < size <= 1500 + largest for size in world.chunks[:-1])


def small(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)  # fmt: skip
    return LlamaForCausalLM(config)


async def test_the_key_goes_with_every_call_and_the_version_with_the_last() -> None:
    fake = Control([])
    world, bodies = World([fake]), {}

    async def serve(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer secret"
        path, body = request.url.path, json.loads(request.content or b"null")
        bodies[f"{request.method} {path}"] = body
        if path == "/weight_info":
            return httpx.Response(200, json={"weight_version": str(fake.label)})
        answer: httpx.Response = await fake._call(request.method, path, json=body)
        return answer

    control = ServerControl("http://s", "secret", transport=httpx.MockTransport(serve))
    await NcclPush([control], "127.0.0.1", 5.0, world.join).push(SOURCE, 7)
    assert list(bodies) == [
        "GET /get_world_size", "POST /init_weight_transfer_engine", "POST /pause", "POST /start_weight_update",
        "POST /update_weights", "POST /finish_weight_update", "GET /weight_info", "POST /resume",
    ]  # fmt: skip
    shapes = {"names": ["b.weight", "a.bias"], "dtype_names": ["float32"] * 2, "shapes": [[2, 3], [3]]}
    assert bodies["POST /update_weights"] == {"update_info": shapes}
    assert bodies["POST /finish_weight_update"] == {"weight_version": "7"}


async def test_a_server_that_dies_in_the_update_is_down_at_once_and_the_group_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nccl, "NCCL_CHUNK", 8)  # the second chunk meets nobody
    good, bad = Control([], "good"), Control([], "bad", {"/update_weights": ServerDown("http://bad", "reset")})
    source, (push, world) = Source(SOURCE.weights), made(good, bad, timeout=60.0)
    began = time.monotonic()
    with pytest.raises(ServerDown, match="http://bad is down: reset"):
        await push.push(source, 1)
    assert time.monotonic() - began < 10
    assert world.groups[0].disabled
    assert push.group is None
    assert [control.log[-1] for control in (good, bad)] == ["good /resume", "bad /resume"]


async def test_after_a_failure_or_an_unnoticed_restart_the_group_is_made_anew_on_a_new_port() -> None:
    control = Control([], fails={"/update_weights": ServerDown("http://s", "gone")})
    push, world = made(control)
    with pytest.raises(ServerDown):
        await push.push(SOURCE, 1)
    control.fails.clear()
    await push.push(SOURCE, 1)
    control.label = -1  # a fresh server, between two pushes
    await push.push(SOURCE, 2)
    assert control.label == 2
    assert [group.disabled for group in world.groups] == [True, True, False]
    assert len({port for port, _ in world.joined}) == 3
    assert control.told["master_port"] == world.joined[-1][0]


class Silent(Control):
    """Takes an update and never answers."""

    async def _receive(self, info: dict[str, Any]) -> None:
        await asyncio.sleep(60)


@pytest.mark.parametrize("deaf", [False, True], ids=["wakes", "hangs for ever"])
async def test_a_communicator_that_hangs_is_a_fault_within_the_deadline(
    monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    monkeypatch.setattr(Group, "deaf", deaf)
    control = Silent([])
    push, world = made(control, timeout=0.5)
    began = time.monotonic()
    with pytest.raises(Fault, match=r"NCCL hangs after 0.5 s \(sync.timeout\)"):
        await push.push(SOURCE, 1)
    assert time.monotonic() - began < 5
    assert control.log[-1] == "s /resume"
    world.groups[0].released.set()


async def test_a_server_that_hangs_in_the_update_is_down_within_the_deadline() -> None:
    """Over real HTTP, whose timeout is the one that ends it; the group wakes when it is left."""
    asked: list[str] = []
    over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head.split()[1].partition("?")[0])
        if asked[-1] == "/update_weights":
            await over.wait()
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"world_size": 1}')
        await writer.drain()
        writer.close()

    class Meets(World):
        def join(self, listener: socket.socket, world: int, timeout: float) -> Group:
            listener.close()
            self.servers = [Silent([])]  # that never takes a chunk
            return Group(self)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        control = ServerControl(url, "key", timeout=0.7)
        push = NcclPush([control], "127.0.0.1", 0.7, Meets([]).join)
        began = time.monotonic()
        with pytest.raises(ServerDown, match="POST /update_weights: ReadTimeout"):
            await push.push(SOURCE, 1)
        assert time.monotonic() - began < 5
        over.set()
        await control.aclose()
    assert asked[-2:] == ["/update_weights", "/resume"]


async def test_servers_that_answer_do_not_hide_a_communicator_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answers(Control):
        async def _receive(self, info: dict[str, Any]) -> None:
            pass

    push, _ = made(Answers([]), timeout=0.5)
    with pytest.raises(Fault, match="NCCL hangs"):
        await push.push(SOURCE, 1)


async def test_a_server_that_refuses_the_init_is_heard_at_once_though_nobody_joins() -> None:
    control = Control([], fails={"/init_weight_transfer_engine": Fault("s answered 500: no such back end")})
    push, world = made(control, timeout=3.0)
    began = time.monotonic()
    with pytest.raises(Fault, match="no such back end"):
        await push.push(SOURCE, 1)
    assert time.monotonic() - began < 2
    assert control.log == ["s /get_world_size", "s /init_weight_transfer_engine"]
    world.meeting.abort()


async def test_what_nccl_raises_is_a_fault_and_ends_the_wait_for_the_servers() -> None:
    push, _ = made(control := Silent([]), timeout=60.0)
    await push.prepare(SOURCE)

    class Broken(Group):
        def broadcast(self, *_: Any) -> None:
            raise RuntimeError("NCCL error: unhandled system error")

    push.group, push.pushed = Broken(control.world), -1
    with pytest.raises(Fault, match="push over NCCL failed: NCCL error: unhandled system error"):
        await push.push(SOURCE, 1)
    assert control.log[-1] == "s /resume"


async def test_a_stream_that_differs_from_its_manifest_is_a_fault_before_it_is_sent() -> None:
    class Lies(Source):
        def manifest(self) -> Manifest:
            return [("b.weight", "bfloat16", (2, 3)), ("a.bias", "float32", (3,))]

    push, world = made(Control([]), timeout=60.0)
    with pytest.raises(Fault, match=r"manifest says b\.weight bfloat16"):
        await push.push(Lies(SOURCE.weights), 1)
    assert world.chunks == []


@pytest.mark.slow
def test_vllms_own_worker_unpacks_what_is_sent_and_takes_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its consumer and its field names, on a CPU: CUDA's streams are replaced, NCCL is a queue."""
    import contextlib

    from vllm.distributed.weight_transfer import packed_tensor
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferUpdateInfo

    stream = type("Stream", (), {"synchronize": lambda self: None})
    monkeypatch.setattr(nccl, "NCCL_CHUNK", 1500)
    monkeypatch.setattr(packed_tensor, "_get_streams", lambda *_: (stream(), stream()))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    sent: list[torch.Tensor] = []

    class Queue:
        disabled = False

        def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
            sent.append(tensor) if stream_of_sender else tensor.copy_(sent.pop(0))

        def destroy(self) -> None:
            pass

    source = ModuleSource(small(tied=False), "bfloat16")
    got: dict[str, torch.Tensor] = {}
    stream_of_sender = True
    send(source, Queue())
    assert len(sent) > 2
    stream_of_sender = False
    info = NCCLWeightTransferUpdateInfo(*(list(part) for part in zip(*source.manifest(), strict=True)))
    packed_tensor.packed_nccl_broadcast_consumer(
        iterator=iter(
            (name, (shape, getattr(torch, dtype)))
            for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True)
        ),
        group=Queue(), src=0, post_unpack_func=got.update, buffer_size_bytes=1500, num_buffers=2, device="cpu",
    )  # fmt: skip
    assert sent == []
    assert all(torch.equal(got[name], tensor) for name, tensor in source.tensors())
    told = Control([])
    asyncio.run(made(told)[0].prepare(SOURCE))
    assert NCCLWeightTransferInitInfo(**told.told).packed


@pytest.mark.slow
def test_rank_0_really_opens_the_store_that_vllms_workers_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of `join_group` but NCCL itself: a worker's StatelessProcessGroup meets ours and gets an object."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.utils import StatelessProcessGroup

    wanted = set(inspect.signature(pynccl.PyNcclCommunicator.__init__).parameters)
    assert {"group", "device"} <= wanted
    assert {"tensor", "src", "stream"} <= set(inspect.signature(pynccl.PyNcclCommunicator.broadcast).parameters)

    class Comm:
        def __init__(self, group: Any, device: int) -> None:
            assert device == 2
            self.group = group  # whose store ends with it
            self.shared = group.broadcast_obj("id" if group.rank == 0 else None, src=0)

    monkeypatch.setattr(pynccl, "PyNcclCommunicator", Comm)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    listener, heard = socket.create_server(("127.0.0.1", 0)), []
    port = listener.getsockname()[1]

    def work() -> None:
        heard.append(Comm(StatelessProcessGroup.create("127.0.0.1", port, 1, 2, store_timeout=20), 2).shared)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    group = nccl.join_group(listener, 2, 20.0)
    worker.join(20)
    assert isinstance(group, Comm)
    assert heard == ["id"]
