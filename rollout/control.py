"""The control plane of a vLLM server: health, pause and resume, weight updates, the version label."""

from pathlib import Path
from typing import Any

import httpx

from rewards.errors import Fault
from rollout.client import ServerDown, open_http, version_number


class ServerControl:
    """One server's control routes, each with `timeout` seconds: ServerDown where it can't be reached, Fault (with the
    answer's body) where it refuses."""

    def __init__(
        self, url: str, key: str, timeout: float = 120, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.url = url.rstrip("/")
        # Calls are far apart and never retried: a kept connection, closed there, would look like a dead server.
        self._http = open_http(key, timeout, transport)

    async def health(self) -> None:
        await self._call("GET", "/health")

    async def init_transfer(self, info: dict[str, Any]) -> None:
        """Hand the back end its start information: {"directory": …} for `ponder_file`, the group for `nccl`."""
        await self._call("POST", "/init_weight_transfer_engine", json={"init_info": info})

    async def world_size(self) -> int:
        """Worker processes of the server, all its parallelism together."""
        return int((await self._call("GET", "/get_world_size")).json()["world_size"])

    async def pause(self, clear_cache: bool = True) -> None:
        """Stop scheduling; requests under way return what they have. `clear_cache` drops the prefix cache."""
        await self._call("POST", "/pause", params={"mode": "abort", "clear_cache": clear_cache})

    async def resume(self) -> None:
        await self._call("POST", "/resume")

    async def start_update(self) -> None:
        await self._call("POST", "/start_weight_update")

    async def update(self, payload: dict[str, Any]) -> None:
        """Load weights: {"path": …} for `ponder_file`, names, dtypes and shapes for `nccl`."""
        await self._call("POST", "/update_weights", json={"update_info": payload})

    async def finish_update(self, version: int) -> None:
        """Close the update and label the weights."""
        await self._call("POST", "/finish_weight_update", json={"weight_version": str(version)})

    async def weight_version(self) -> int:
        """The label of the weights now serving; -1 when nothing has been pushed yet."""
        return version_number((await self._call("GET", "/weight_info")).json()["weight_version"])

    async def adapters(self) -> list[str]:
        """Names of the LoRA adapters that are loaded, the newest last."""
        models = (await self._call("GET", "/v1/models")).json()["data"]
        return [model["id"] for model in models if model.get("parent")]

    async def load_adapter(self, path: Path, version: int, keep: str) -> None:
        """Load peft's files, to be sampled from by their directory's name, and label the weights with the version.
        All that were loaded are unloaded but the one to `keep`."""
        for name in await self.adapters():
            if name != keep:
                await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": name})
        body = {"lora_name": path.name, "lora_path": str(path.resolve()), "load_inplace": False}
        await self._call("POST", "/v1/load_lora_adapter", json=body)
        await self._call("POST", "/update_weight_version", json={"new_version": str(version)})

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, self.url + path, **request)
        except httpx.TransportError as error:
            raise ServerDown(self.url, f"{method} {path}: {str(error) or type(error).__name__}") from error
        if not response.is_success:
            raise Fault(f"server {self.url} answered {response.status_code} to {method} {path}: {response.text}")
        return response
