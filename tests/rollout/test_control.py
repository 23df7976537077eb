"""The control plane: the routes it calls, what it makes of refusals, and the plug-in's guard on paths."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from rewards.errors import Fault
from rollout.client import ServerControl, ServerDown, VllmClient
from rollout.sampling import SamplingParams
from tests.conftest import VllmServer

Call = Callable[[ServerControl], Awaitable[object]]

CALLS: list[tuple[Call, str, object]] = [
    (lambda c: c.health(), "GET /health", None),
    (lambda c: c.init_transfer({"directory": "/d"}), "POST /init_weight_transfer_engine",
     {"init_info": {"directory": "/d"}}),
    (lambda c: c.pause(), "POST /pause?mode=abort&clear_cache=true", None),
    (lambda c: c.pause(clear_cache=False), "POST /pause?mode=abort&clear_cache=false", None),
    (lambda c: c.resume(), "POST /resume", None),
    (lambda c: c.start_update(), "POST /start_weight_update", None),
    (lambda c: c.update({"path": "/f"}), "POST /update_weights", {"update_info": {"path": "/f"}}),
    (lambda c: c.finish_update(4), "POST /finish_weight_update", {"weight_version": "4"}),
]  # fmt: skip


@pytest.mark.parametrize(("call", "route", "body"), CALLS, ids=[route for _, route, _ in CALLS])
async def test_routes(call: Call, route: str, body: object) -> None:
    seen: list[httpx.Request] = []

    def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    await call(ServerControl("http://s/", "key", transport=httpx.MockTransport(serve)))
    (request,) = seen
    assert f"{request.method} {request.url.raw_path.decode()}" == route
    assert (json.loads(request.content) if request.content else None) == body
    assert request.headers["Authorization"] == "Bearer key"


async def test_a_server_tells_how_many_workers_it_has() -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        assert (request.method, str(request.url)) == ("GET", "http://s/get_world_size")
        assert request.headers["Authorization"] == "Bearer key"
        return httpx.Response(200, json={"world_size": 4})

    assert await ServerControl("http://s", "key", transport=httpx.MockTransport(serve)).world_size() == 4


@pytest.mark.parametrize(("label", "version"), [("7", 7), ("default", -1)])
async def test_a_label_that_no_push_has_set_is_minus_one(label: str, version: int) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"weight_version": label}))
    assert await ServerControl("http://s", "key", transport=transport).weight_version() == version


async def test_a_refusal_shows_the_body_and_a_dead_server_its_url() -> None:
    refuse = httpx.MockTransport(lambda _: httpx.Response(500, text="no such engine"))
    with pytest.raises(Fault, match="http://s answered 500 to POST /resume: no such engine"):
        await ServerControl("http://s", "key", transport=refuse).resume()

    def drop(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("too slow")

    with pytest.raises(ServerDown, match=r"http://s .*too slow"):
        await ServerControl("http://s", "key", transport=httpx.MockTransport(drop)).resume()


@pytest.fixture
async def control(vllm_server: VllmServer) -> AsyncIterator[ServerControl]:
    control = ServerControl(vllm_server.url, vllm_server.key)
    yield control
    await control.aclose()


@pytest.mark.vllm
async def test_the_server_answers(control: ServerControl) -> None:
    await control.health()
    await control.pause()
    await control.resume()
    assert await control.weight_version() >= -1


@pytest.mark.vllm
@pytest.mark.parametrize("trick", ["outside", "symlink", "missing", "pickle", "cut"])
async def test_a_file_that_must_not_be_read_changes_nothing(
    vllm_server: VllmServer, control: ServerControl, tmp_path: Path, trick: str
) -> None:
    outside, inside = tmp_path / "w.safetensors", vllm_server.sync_dir / "trick.safetensors"
    outside.write_bytes((vllm_server.model_path / "model.safetensors").read_bytes())
    path, reason = {
        "outside": (outside, "does not lie inside"),
        "symlink": (inside, "does not lie inside"),
        "missing": (inside, "No such file"),
        "pickle": (inside.with_suffix(".pt"), "not a .safetensors file"),
        "cut": (inside, "header"),
    }[trick]
    if trick == "symlink":
        inside.symlink_to(outside)
    if trick in ("pickle", "cut"):
        path.write_bytes(outside.read_bytes()[:20_000])
    sampler = VllmClient([vllm_server.url], vllm_server.key, context=1024, timeout=120)
    greedy = SamplingParams(max_tokens=8, stop_ids=(), seed=0, temperature=0.0)
    before = await sampler.sample([1, 2, 3], greedy)
    try:
        await control.start_update()
        with pytest.raises(Fault, match=reason):
            await control.update({"path": str(path)})
    finally:
        path.unlink(missing_ok=True)
    assert await sampler.sample([1, 2, 3], greedy) == before
    await sampler.aclose()


@pytest.mark.vllm
async def test_a_directory_that_the_server_can_not_see_is_told_at_once(control: ServerControl, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="does not lie inside"):
        await control.init_transfer({"directory": str(tmp_path)})
