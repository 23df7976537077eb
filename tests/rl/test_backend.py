"""Back ends: what is refused before a run begins, and when a refusal means that a server is dead."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rewards.errors import BadInput, Fault
from rl import backend
from rl.backend import RemoteBackend, VllmBackend
from rl.config import LoraConfig, SyncConfig
from rl.nccl import NcclPush, join_group
from rl.sync import AdapterPush, FilePush
from rollout.client import ServerDown
from rollout.server.hardware import Hardware
from tests.rl.wire import Group


class Control:
    """A server's control routes that fail as told."""

    url = "http://server"

    def __init__(self, health: Exception | None = None, label: Exception | None = None) -> None:
        self._health, self._label = health, label

    async def health(self) -> None:
        if self._health is not None:
            raise self._health

    async def weight_version(self) -> int:
        if self._label is not None:
            raise self._label
        return 0


class Refuses:
    """A pusher whose server refuses."""

    async def push(self, source: Any, version: int) -> Any:
        raise Fault("server answered 500 to POST /pause")


@pytest.mark.parametrize(
    ("health", "raised"),
    [
        (None, Fault),  # it is well, and meant what it said
        (Fault("server answered 503 to GET /health"), ServerDown),
        (ServerDown("http://server", "gone"), ServerDown),
    ],
)
async def test_a_refusal_by_a_server_without_an_engine_is_its_end(health: Exception | None, raised: type) -> None:
    remote: Any = object.__new__(RemoteBackend)
    remote.controls, remote.pusher = [Control(), Control(health)], Refuses()
    with pytest.raises(raised, match="500" if not isinstance(health, ServerDown) else "gone"):
        await remote.push(source=None, version=1)


def setup(lora: LoraConfig | None = None, **sync: Any) -> Any:
    rollout = SimpleNamespace(request_timeout=1.0)
    model, hardware = SimpleNamespace(lora=lora), Hardware(2, 24.0)
    train = SimpleNamespace(sharding="none")
    config = SimpleNamespace(sync=SyncConfig(**sync), rollout=rollout, model=model, train=train)
    return SimpleNamespace(config=config, context=64, hardware=hardware)


def test_the_configuration_chooses_the_push(tmp_path: Path) -> None:
    made = object.__new__(RemoteBackend)
    made.connect(setup(), ["http://a", "http://b"], "key", tmp_path)
    assert made.pusher == FilePush(made.controls, tmp_path)
    made.connect(setup(backend="nccl", address="10.0.0.1", timeout=7), ["http://a", "http://b"], "key", tmp_path)
    assert made.pusher == NcclPush(made.controls, "10.0.0.1", 7.0, join_group)
    assert [control._http.timeout.read for control in made.controls] == [7.0, 7.0]


@pytest.mark.parametrize("sync", ["file", "nccl"])
def test_adapters_alone_go_beside_either_push_of_the_base(tmp_path: Path, sync: str) -> None:
    made = object.__new__(RemoteBackend)
    made.connect(setup(backend=sync), ["http://a"], "key", tmp_path)
    plain = type(made.pusher)
    made.connect(setup(LoraConfig(push="adapter"), backend=sync), ["http://a"], "key", tmp_path)
    assert isinstance(made.pusher, AdapterPush)
    assert (type(made.pusher.whole), made.pusher.directory) == (plain, tmp_path)
    for push in ("auto", "merged"):  # there is no GPU
        made.connect(setup(LoraConfig(push=push), backend=sync), ["http://a"], "key", tmp_path)
        assert type(made.pusher) is plain


async def test_the_end_of_a_back_end_leaves_the_group(tmp_path: Path) -> None:
    made = object.__new__(RemoteBackend)
    made.connect(setup(backend="nccl"), ["http://a"], "key", tmp_path)
    group = Group(None)  # type: ignore[arg-type]
    made.pusher.group = group  # type: ignore[attr-defined]
    await made.aclose()
    assert group.disabled


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (Control(health=ServerDown("http://server", "refused")), "ponder serve"),
        (Control(label=Fault("server answered 401 to GET /weight_info")), "401.*PONDER_API_KEY"),
    ],
)
async def test_a_server_elsewhere_must_answer_and_take_the_key(control: Control, words: str) -> None:
    remote = object.__new__(RemoteBackend)
    remote.controls = [control]  # type: ignore[list-item]
    with pytest.raises(BadInput, match=words):
        await remote.check()


def local(port: int) -> VllmBackend:
    made = object.__new__(VllmBackend)
    made.config = SimpleNamespace(server=SimpleNamespace(port=port))  # type: ignore[assignment]
    return made


async def test_a_port_that_a_killed_run_still_holds_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        timer = threading.Timer(0.5, taken.close)
        timer.start()
        await local(port).check()
        timer.join()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(backend, "PORT_PATIENCE", 0.1)
        with pytest.raises(BadInput, match=r"server\.port"):
            await local(taken.getsockname()[1]).check()
