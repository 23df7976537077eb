"""The key at the door: vLLM's own --api-key leaves /update_weights, /pause, /collective_rpc and others open.

vLLM imports the class by name (`--middleware`) and puts it outermost, so that nothing answers before it.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

KEY_VARIABLE = "PONDER_API_KEY"

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_REFUSAL = b'{"error": "missing or wrong key: send Authorization: Bearer <PONDER_API_KEY>"}'


class RequireKey:
    """ASGI middleware: every path but /health wants `Authorization: Bearer <key>`; websockets are refused.

    Without a key in the environment everything but /health is refused.
    """

    def __init__(self, app: App) -> None:
        self.app = app
        key = os.environ.get(KEY_VARIABLE, "")
        self._expected = f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and scope["path"] != "/health" and not self._holds_key(scope):
            await _refuse(send)
        else:
            await self.app(scope, receive, send)

    def _holds_key(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        # Exactly one header, compared in constant time: the answer's timing must not tell the key's letters.
        return self._expected is not None and len(given) == 1 and hmac.compare_digest(given[0], self._expected)


async def _refuse(send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_REFUSAL)).encode())]
    headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": 401, "headers": headers})
    await send({"type": "http.response.body", "body": _REFUSAL})
