"""vLLM over HTTP. Sampling: ids in, ids and log-probabilities out, through its token route; and the control plane:
health, pause and resume, weight updates, the version label."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import tenacity

from rewards.errors import BadInput, Fault
from rollout.sampling import SamplingParams
from rollout.types import Completion

ROUTE = "/inference/v1/generate"  # unlike /v1/completions it labels the tokens with the version of the weights


class ServerDown(Exception):
    """A server did not answer within the retries or the deadline; `url` names it."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"server {url} is down: {reason}")
        self.url = url


class VllmClient:
    """A rollout.types.Sampler over one or more vLLM servers; it and all that call it belong to one event loop.
    `context` is the servers' --max-model-len, `timeout` in seconds covers all tries of a request. At most
    `max_connections` requests are under way; the others wait here, without a socket."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str,
        *,
        context: int,
        timeout: float = 600,
        max_connections: int = 256,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not urls:
            raise BadInput("the sampling client needs at least one server url")
        self.version = -1
        self.model = ""  # the adapter to sample from, if not the model itself
        self.context, self.timeout, self.retries = context, timeout, retries
        self._urls = [url.rstrip("/") for url in urls]
        self._outstanding: Counter[str] = Counter()  # url -> prompt + max_tokens of each request under way
        self._slots = asyncio.Semaphore(max_connections)
        self._http = open_http(key, timeout, transport, max_connections, max_connections)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """As the Protocol says. Raises BadInput also where the server refuses (4xx); nan = not a finite number."""
        check_fits(len(prompt_ids), params.max_tokens, self.context)
        body = request_body(prompt_ids, params) | ({"model": self.model} if self.model else {})
        cost = len(prompt_ids) + params.max_tokens
        tried: list[str] = []  # the url of each try
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(ServerDown),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=5),
            stop=tenacity.stop_after_attempt(1 + self.retries),
            reraise=True,
        )
        async with self._slots:
            try:
                async with asyncio.timeout(self.timeout):
                    answer: dict[str, Any] = await retrying(self._post, body, cost, tried)
            except TimeoutError:
                raise ServerDown(tried[-1], f"no answer within {self.timeout:g} s") from None
        return parse_completion(answer, self.version)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _post(self, body: dict[str, Any], cost: int, tried: list[str]) -> dict[str, Any]:
        """One try; ServerDown where another may mend it: a transport error or a 5xx."""
        url = min(self._urls, key=lambda u: (tried.count(u), self._outstanding[u]))
        tried.append(url)
        self._outstanding[url] += cost
        try:
            response = await self._http.post(url + ROUTE, json=body)
        except httpx.TransportError as error:
            raise ServerDown(url, str(error) or type(error).__name__) from error
        finally:
            self._outstanding[url] -= cost
        if response.status_code >= 500:
            raise ServerDown(url, f"{response.status_code} {response.text}")
        if response.status_code != 200:
            raise BadInput(f"server {url} refused the request: {response.status_code} {response.text}")
        return response.json()


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


def open_http(
    key: str, timeout: float, transport: httpx.AsyncBaseTransport | None, most: int | None = None, kept: int = 0
) -> httpx.AsyncClient:
    """A client that shows its key and passes any proxy by: no setting may take loopback traffic, or the key, elsewhere.
    At most `most` connections are open (None = no cap), and `kept` of them idle."""
    headers = {"Authorization": f"Bearer {key}"}
    # vLLM closes an idle connection after 5 s: let go of it before, or requests are sent into closed ones.
    limits = httpx.Limits(max_connections=most, max_keepalive_connections=kept, keepalive_expiry=2)
    return httpx.AsyncClient(headers=headers, timeout=timeout, transport=transport, limits=limits, trust_env=False)


def check_fits(prompt_tokens: int, max_tokens: int, context: int) -> None:
    """BadInput unless a prompt has tokens and fits the context with its completion."""
    if prompt_tokens == 0:
        raise BadInput("the prompt is empty: it needs at least one token")
    if prompt_tokens + max_tokens > context:
        raise BadInput(
            f"a prompt of {prompt_tokens} tokens and {max_tokens} new ones do not fit the context of {context}; "
            "shorten it, or lower rollout.max_tokens"
        )


def request_body(prompt_ids: Sequence[int], params: SamplingParams) -> dict[str, Any]:
    """The token route's JSON: every field explicit, and nothing but `stop_ids` ends a chain (ignore_eos)."""
    sampling = dict(vars(params))  # the fields have vLLM's names, but for one
    sampling["stop_token_ids"] = list(sampling.pop("stop_ids"))
    # logprobs: 0 = of the sampled token alone
    fixed = {"n": 1, "min_tokens": 0, "ignore_eos": True, "logprobs": 0, "detokenize": False}
    return {"token_ids": list(prompt_ids), "sampling_params": sampling | fixed}


def parse_completion(answer: dict[str, Any], version: int) -> Completion:
    """A Completion from the token route's answer; `version` stands in where the server has no number for its weights.
    Raises Fault where ids and log-probabilities do not pair up, or the finish reason is unknown."""
    choice = answer["choices"][0]
    ids, reason = choice["token_ids"] or [], choice["finish_reason"]
    entries = (choice["logprobs"] or {}).get("content") or []
    if ids != [entry["token_id"] for entry in entries]:
        raise Fault(f"the server answered {len(ids)} tokens with log-probabilities of {len(entries)} others")
    if reason not in ("stop", "length", "abort"):
        raise Fault(f"the server ended a completion with finish_reason={reason!r}")
    spans = choice.get("weight_versions")  # one: a push aborts what is under way
    made_by = version_number(spans[0]["version"], version) if spans else version
    values = [math.nan if entry["logprob"] is None else entry["logprob"] for entry in entries]
    # -9999 is what vLLM answers for a log-probability that is -inf or NaN
    return Completion(ids, [x if -9999 < x < math.inf else math.nan for x in values], reason, made_by)


def version_number(label: Any, default: int = -1) -> int:
    """The number in a server's label of its weights, `default` where no push has set one."""
    return int(label) if str(label).isdecimal() else default
