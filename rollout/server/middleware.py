"""The key at the door: vLLM's own --api-key leaves /update_weights, /pause, /collective_rpc and others open.
vLLM imports the class by name (`--middleware`) and puts it outermost, so that nothing answers before it."""

import hmac
import os
from typing import Any

KEY_VARIABLE = "PONDER_API_KEY"


class RequireKey:
    """ASGI middleware: all but /health wants `Authorization: Bearer <key>`, which nobody has where no key is set."""

    def __init__(self, app: Any) -> None:
        self.app = app
        key = os.environ.get(KEY_VARIABLE, "")
        self._expected = f"Bearer {key}".encode() if key else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import JSONResponse  # comes with vLLM, which the learner may lack

        given = [value for name, value in scope.get("headers", ()) if name == b"authorization"]
        # Exactly one header, compared in constant time: the answer's timing must not tell the key's letters.
        holds_key = self._expected is not None and len(given) == 1 and hmac.compare_digest(given[0], self._expected)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http" and scope["path"] != "/health" and not holds_key:
            error = {"error": f"missing or wrong key: send Authorization: Bearer <{KEY_VARIABLE}>"}
            await JSONResponse(error, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
        else:
            await self.app(scope, receive, send)
