"""The push of LoRA adapters alone: the contract with the server, what is left behind, and parity on a real one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from rewards.errors import BadInput, Fault
from rl.backend import RemoteBackend
from rl.config import LoraConfig
from rl.memory import served_rank
from rl.model import add_adapter, load_policy
from rl.sync import AdapterPush, FilePush, ModuleSource
from rollout.client import ServerControl, VllmClient
from rollout.sampling import SamplingParams
from rollout.server.hardware import Gpu, Hardware, probe
from rollout.server.process import ServerProcess
from tests.conftest import vllm_spec
from tests.models import tiny_model
from tests.rl.test_lora import LORA, adapted, trained
from tests.rl.test_parity import LONG, SEEN, SHORT, Wire


class Server(ServerControl):
    """As much of vLLM as a push of adapters asks for; `refuses` is a path that answers 404."""

    def __init__(self, log: list[str], refuses: str = "", name: str = "s") -> None:
        super().__init__(f"http://{name}", "key")
        self.log, self.refuses, self.label = log, refuses, -1
        self.loaded: dict[str, dict[str, torch.Tensor]] = {}
        self.weights: dict[str, torch.Tensor] = {}

    async def _call(self, method: str, path: str, **request: Any) -> Any:
        body = request.get("json", {})
        self.log.append(" ".join([path.removeprefix("/v1"), *([body["lora_name"]] if "lora_name" in body else [])]))
        if path == self.refuses:
            raise Fault(f"server {self.url} answered 404 to {method} {path}: Not Found")
        if path == "/update_weights":
            self.weights = load_file(body["update_info"]["path"])
        if path == "/finish_weight_update":
            self.label = int(body["weight_version"])
        if path == "/update_weight_version":
            self.label = int(body["new_version"])
        if path == "/v1/load_lora_adapter":
            assert body["lora_name"] not in self.loaded  # else vLLM's prefix cache would serve the old one's keys
            assert body["load_inplace"] is False
            directory = Path(body["lora_path"])
            assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == "LORA"
            self.loaded[body["lora_name"]] = load_file(directory / "adapter_model.safetensors")
        if path == "/v1/unload_lora_adapter":
            del self.loaded[body["lora_name"]]
        models = [{"id": "policy", "parent": None}, *({"id": name, "parent": "policy"} for name in self.loaded)]
        answer = {"data": models, "weight_version": str(self.label)}
        return SimpleNamespace(json=lambda: answer)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def source(model_path: Path) -> ModuleSource:
    return ModuleSource(adapted(model_path, noise=0.1))


@pytest.fixture
def log() -> list[str]:
    return []


def adapter_push(directory: Path, *controls: ServerControl) -> AdapterPush:
    return AdapterPush(controls, FilePush(controls, directory), directory)


BASE = ["/init_weight_transfer_engine", "/pause", "/start_weight_update", "/update_weights", "/finish_weight_update",
        "/weight_info", "/resume"]  # fmt: skip


async def test_the_base_goes_once_and_then_each_version_under_a_new_name_and_path(
    tmp_path: Path, source: ModuleSource, log: list[str]
) -> None:
    server = Server(log)
    pusher, names = adapter_push(tmp_path, server), []
    for version in (0, 1, 2, 3):
        await pusher.push(source, version)
        names.append(pusher.adapter)
    assert [name.rpartition("-")[2] for name in names] == ["v0", "v1", "v2", "v3"]
    a, b, c, d = names
    ask, load, end = "/models", "/load_lora_adapter", ["/update_weight_version", "/weight_info", "/resume"]
    assert log == [
        *[ask, *BASE, "/pause", ask, f"{load} {a}", *end],
        *[ask, "/pause", ask, f"{load} {b}", *end],
        *[ask, "/pause", ask, f"/unload_lora_adapter {a}", f"{load} {c}", *end],
        *[ask, "/pause", ask, f"/unload_lora_adapter {b}", f"{load} {d}", *end],
    ]
    assert list(server.loaded) == [c, d]
    assert server.label == 3
    # unloaded with v2, a's directory stayed until the push after it; b's is still there
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([b, c, d])


async def test_the_base_is_sent_without_its_adapters_and_these_in_fp32(
    tmp_path: Path, model_path: Path, log: list[str]
) -> None:
    model, plain = adapted(model_path, dtype="bfloat16", noise=0.1), load_policy(model_path, "bfloat16", 0)[0]
    server = Server(log)
    pusher = adapter_push(tmp_path, server)
    await pusher.push(ModuleSource(model, "bfloat16"), 5)
    base = dict(plain.named_parameters())
    assert server.weights.keys() == base.keys()
    assert all(torch.equal(tensor, base[key]) for key, tensor in server.weights.items())
    got = server.loaded[pusher.adapter]
    own = {f"base_model.model.{key.replace('.default', '')}": p for key, p in trained(model).items()}
    assert got.keys() == own.keys()
    assert all(torch.equal(got[key], p) for key, p in own.items())


async def test_a_changed_base_and_a_server_that_forgot_are_sent_the_base_again(
    tmp_path: Path, source: ModuleSource, log: list[str]
) -> None:
    server = Server(log)
    pusher = adapter_push(tmp_path, server)

    async def sends_base(version: int) -> bool:
        log.clear()
        await pusher.push(source, version)
        return "/update_weights" in log

    assert await sends_base(0)
    assert not await sends_base(1)
    with torch.no_grad():  # as the selftest does, which proves that it is noticed
        source.module.get_parameter("model.embed_tokens.weight").mul_(2)
    assert await sends_base(2)
    assert not await sends_base(3)
    server.loaded.clear()  # started again
    assert await sends_base(4)


async def test_a_server_that_takes_no_adapters_gets_them_merged_and_that_is_said(
    tmp_path: Path, source: ModuleSource, log: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(log, refuses="/v1/load_lora_adapter")
    backend: Any = object.__new__(RemoteBackend)
    backend.controls, backend.pusher, backend.sampler = [server], adapter_push(tmp_path, server), SimpleNamespace()
    for version in (0, 1):
        await backend.push(source, version)
        assert (backend.sampler.version, backend.sampler.model) == (version, "")
        assert all(torch.equal(server.weights[name], tensor) for name, tensor in source.tensors())
        assert server.label == version
    assert log.count("/resume") == log.count("/pause") == 4  # base, adapter, and twice merged
    assert capsys.readouterr().err.splitlines() == [
        "ponder: server http://s answered 404 to POST /v1/load_lora_adapter: Not Found; "
        "so adapters are merged into what is pushed"
    ]


async def test_the_back_end_samples_from_the_adapter_that_it_pushed(
    tmp_path: Path, source: ModuleSource, log: list[str]
) -> None:
    server = Server(log)
    backend: Any = object.__new__(RemoteBackend)
    backend.controls, backend.pusher, backend.sampler = [server], adapter_push(tmp_path, server), SimpleNamespace()
    await backend.push(source, 3)
    assert [backend.sampler.model] == list(server.loaded)
    server.refuses = "/v1/load_lora_adapter"  # whose first it took: nothing is merged behind anyone's back
    with pytest.raises(Fault, match="404"):
        await backend.push(source, 4)


async def test_a_later_refusal_is_a_fault_and_the_servers_go_on(
    tmp_path: Path, source: ModuleSource, log: list[str]
) -> None:
    good, bad = Server(log, name="good"), Server(log, name="bad")
    pusher = adapter_push(tmp_path, good, bad)
    await pusher.push(source, 0)
    first = pusher.adapter
    bad.refuses = "/v1/load_lora_adapter"
    with pytest.raises(Fault, match="http://bad answered 404"):
        await pusher.push(source, 1)
    assert log[-2:] == ["/resume", "/resume"]
    assert pusher.adapter == first
    bad.refuses = ""
    await pusher.push(source, 2)  # and what it left half done goes
    assert set(bad.loaded) == {first, pusher.adapter} == set(good.loaded)


async def test_what_a_killed_learner_left_is_unloaded_and_removed(
    tmp_path: Path, source: ModuleSource, log: list[str]
) -> None:
    server = Server(log)
    (tmp_path / "ponder-dead-v7").mkdir()
    (tmp_path / "ponder-dead-v8.draft").mkdir()
    (tmp_path / "ponder-0123456789ab").mkdir()  # another run's whole directory
    server.loaded["ponder-dead-v7"] = {}
    living, pusher = adapter_push(tmp_path, Server([])), adapter_push(tmp_path, server)
    await living.push(source, 1)
    await pusher.push(source, 0)
    assert list(server.loaded) == [pusher.adapter]
    assert {path.name for path in tmp_path.iterdir()} == {"ponder-0123456789ab", pusher.adapter, living.adapter}


async def test_a_directory_that_cannot_be_written_is_bad_input(
    tmp_path: Path, source: ModuleSource, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    pusher = adapter_push(tmp_path, Server(log))
    await pusher.push(source, 0)
    monkeypatch.setattr("rl.sync.write_adapter", full)
    with pytest.raises(BadInput, match="No space left on device; choose another"):
        await pusher.push(source, 1)


async def test_the_client_names_the_adapter_only_where_there_is_one() -> None:
    asked: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        entry = {"token_id": 3, "logprob": -1.0}
        choice = {"token_ids": [3], "logprobs": {"content": [entry]}, "finish_reason": "length"}
        return httpx.Response(200, json={"choices": [choice]})

    client = VllmClient(["http://s"], "key", context=8, transport=httpx.MockTransport(answer))
    await client.sample([1], SamplingParams(1, (), 0))
    client.model = "ponder-1-v2"
    await client.sample([1], SamplingParams(1, (), 0))
    await client.aclose()
    assert [body.get("model", "none") for body in asked] == ["none", "ponder-1-v2"]


@pytest.mark.parametrize(
    ("rank", "push", "gpu", "served"),
    [(4, "auto", True, 8), (16, "auto", True, 16), (33, "adapter", False, 64), (300, "adapter", False, 320),
     (4, "auto", False, 0), (4, "merged", True, 0), (512, "auto", True, 512), (513, "adapter", True, 0)],
)  # fmt: skip
def test_ranks_are_rounded_up_to_those_that_vllm_knows(rank: int, push: Any, gpu: bool, served: int) -> None:
    hardware = Hardware(2, 24.0, (Gpu("one", 80.0),) if gpu else ())
    assert served_rank(LoraConfig(rank=rank, push=push), hardware) == served
    assert served_rank(None, hardware) == 0


class AdapterWire(Wire):
    """As Wire, with adapters that are pushed alone."""

    def __init__(self, url: str, sync_dir: Path, model_path: Path) -> None:
        super().__init__(url, "key", sync_dir, model_path)
        self.model, _ = load_policy(model_path, "float32", 0, attention="sdpa")
        add_adapter(self.model, LoraConfig(**LORA | {"targets": "all-linear"}), 0, "the-base")
        self.pusher = adapter_push(sync_dir, self.control)

    async def push(self, control: ServerControl | None = None) -> None:
        self.version += 1
        await self.pusher.push(ModuleSource(self.model), self.version)
        self.client.model = self.pusher.adapter

    async def agrees(self) -> None:
        for prompt, temperature in ((SHORT, 0.7), (LONG, 1.0), (LONG, 1.0)):
            mean, k3 = await self.drift(prompt, temperature)
            assert mean <= 2e-5  # 1e-6 without adapters: vLLM adds their products in another order
            assert k3 <= 1e-6


@pytest.mark.vllm
@pytest.mark.timeout(900)  # it starts a server of its own
def test_vllm_agrees_after_each_push_of_an_adapter_alone(tmp_path: Path, model_path: Path) -> None:
    asyncio.run(_serve_adapters(tmp_path, model_path))


async def _serve_adapters(tmp_path: Path, model_path: Path) -> None:
    sync_dir = tmp_path / "sync"
    spec = replace(vllm_spec(model_path, sync_dir), load_format="dummy", lora_rank=8)  # the base comes with a push
    process = await ServerProcess.start(
        spec, log=tmp_path / "server.log", key="key", hardware=probe(), owned_dirs=[sync_dir], timeout=300
    )
    wire = AdapterWire(process.url, sync_dir, model_path)
    try:
        await wire.push()
        await wire.agrees()
        for seed in range(2):  # LONG is in the prefix cache from the first on
            for p in trained(wire.model).values():
                p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
            assert (await wire.drift(SHORT, 1.0))[0] > SEEN / 10  # not pushed yet
            await wire.push()
            await wire.agrees()
            assert await wire.control.weight_version() == wire.version
        assert len(await wire.control.adapters()) == 2
        with torch.no_grad():
            wire.model.get_parameter("model.norm.weight").mul_(1.5)
        assert (await wire.drift(SHORT, 1.0))[0] > SEEN / 10
        await wire.push()  # of the base, too
        await wire.agrees()
        keyless = httpx.post(f"{process.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/x"})
        assert keyless.status_code == 401
        with pytest.raises(Fault, match="no-such-place"):
            await wire.control.load_adapter(Path("/no-such-place"), 9, keep=wire.pusher.adapter)
        await wire.control.health()  # a refusal is not its end
    finally:
        await wire.aclose()
        await process.stop()
