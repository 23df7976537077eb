"""The key at the door: who gets in, who does not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from rollout.server.middleware import RequireKey

KEY = "sesame"


async def _inner(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


@pytest.fixture
def key_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PONDER_API_KEY", KEY)


async def _get(path: str, headers: list[tuple[str, str]], method: str = "GET") -> httpx.Response:
    transport = httpx.ASGITransport(app=RequireKey(_inner))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        return await client.request(method, path, headers=headers)


@pytest.mark.usefixtures("key_in_environment")
@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/update_weights", "/health/", "/healthy", "//health", "/x/../pause"]
)
async def test_every_path_but_health_wants_the_key(path: str) -> None:
    refused = await _get(path, [])
    assert refused.status_code == 401
    assert "Authorization: Bearer" in refused.json()["error"]
    assert (await _get(path, [("Authorization", f"Bearer {KEY}")])).text == "inside"


@pytest.mark.usefixtures("key_in_environment")
@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", KEY)],
        [("Authorization", f"Basic {KEY}")],
        [("Authorization", "Bearer ")],
        [("Authorization", f"Bearer {KEY[:-1]}")],
        [("Authorization", f"Bearer {KEY}x")],
        [("Authorization", "Bearer wrong"), ("Authorization", f"Bearer {KEY}")],
        [("X-Api-Key", KEY)],
    ],
)
async def test_a_wrong_key_is_refused(headers: list[tuple[str, str]]) -> None:
    assert (await _get("/pause", headers, "POST")).status_code == 401


@pytest.mark.usefixtures("key_in_environment")
async def test_health_is_open_and_preflight_is_not() -> None:
    assert (await _get("/health", [])).text == "inside"
    assert (await _get("/update_weights", [], "OPTIONS")).status_code == 401


async def test_without_a_key_nothing_but_health_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PONDER_API_KEY", raising=False)
    assert (await _get("/v1/models", [("Authorization", "Bearer ")])).status_code == 401
    assert (await _get("/health", [])).status_code == 200


@pytest.mark.usefixtures("key_in_environment")
async def test_websockets_are_refused() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    await RequireKey(_inner)({"type": "websocket", "path": "/health", "headers": headers}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_lifespan_events_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await RequireKey(app)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
