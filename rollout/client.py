"""Sampling over HTTP: ids in, ids and log-probabilities out, through vLLM's token route.

One client, its sockets and everything that calls it belong to one event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rewards.errors import BadInput, Fault
from rollout.sampling import SamplingParams
from rollout.types import Completion, FinishReason

logger = logging.getLogger(__name__)

ROUTE = "/inference/v1/generate"  # unlike /v1/completions it labels the tokens with the version of the weights
CLAMPED = -9999.0  # what vLLM answers for a log-probability that is -inf or NaN


class ServerDown(Exception):
    """A server did not answer within the retries or the deadline; `url` names it."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"server {url} is down: {reason}")
        self.url = url


class _Unavailable(Exception):
    """One try failed in a way that another may mend: a transport error or a 5xx."""


@dataclass
class _Server:
    url: str
    outstanding: int = 0  # tokens asked for and not yet answered: prompt + max_tokens of each open request


@dataclass
class _Tries:
    """Where the tries of one request went wrong."""

    failures: dict[str, int] = field(default_factory=dict)  # url -> failed tries
    last: str = ""
    reason: str = "no answer before the deadline"


class VllmClient:
    """A rollout.types.Sampler over one or more vLLM servers.

    `context` is the servers' --max-model-len in tokens, `timeout` one request's deadline in seconds over all its
    tries. At most `max_connections` requests are under way; the others wait here, without a socket.
    """

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
        self.context = context
        self.timeout = timeout
        self.retries = retries
        self._servers = [_Server(url.rstrip("/")) for url in urls]
        self._slots = asyncio.Semaphore(max_connections)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout,
            # vLLM closes an idle connection after 5 s: let go of it before, or requests are sent into closed ones.
            limits=httpx.Limits(
                max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=2
            ),
            transport=transport,
            trust_env=False,  # a proxy setting must not take loopback traffic, or the key, elsewhere
        )

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Sample one completion.

        Raises BadInput for an empty prompt, one that does not fit the context, or a request that the server refuses
        (4xx, its answer shown); ServerDown when retries or the deadline are used up. A log-probability that is not a
        finite number comes back as nan.
        """
        check_fits(len(prompt_ids), params.max_tokens, self.context)
        body = request_body(prompt_ids, params)
        cost = len(prompt_ids) + params.max_tokens
        async with self._slots:
            answer = await self._with_retries(body, cost)
        return parse_completion(answer, self.version)

    async def aclose(self) -> None:
        """Close the sockets."""
        await self._http.aclose()

    async def _with_retries(self, body: dict[str, Any], cost: int) -> dict[str, Any]:
        tries = _Tries()
        try:
            async with asyncio.timeout(self.timeout):
                async for attempt in AsyncRetrying(
                    retry=retry_if_exception_type(_Unavailable),
                    wait=wait_random_exponential(multiplier=0.2, max=5),
                    stop=stop_after_attempt(1 + self.retries),
                    before_sleep=_log_retry,
                    reraise=True,
                ):
                    with attempt:
                        return await self._try(body, cost, tries)
        except (_Unavailable, TimeoutError):
            raise ServerDown(tries.last, tries.reason) from None
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _try(self, body: dict[str, Any], cost: int, tries: _Tries) -> dict[str, Any]:
        server = min(self._servers, key=lambda s: (tries.failures.get(s.url, 0), s.outstanding))
        tries.last = server.url
        server.outstanding += cost
        try:
            response = await self._http.post(server.url + ROUTE, json=body)
            if response.status_code >= 500:
                raise _Unavailable(f"{response.status_code} {response.text}")
        except (httpx.TransportError, _Unavailable) as error:
            tries.failures[server.url] = tries.failures.get(server.url, 0) + 1
            tries.reason = f"{error}" or type(error).__name__
            raise _Unavailable(f"{server.url}: {tries.reason}") from error
        finally:
            server.outstanding -= cost
        if response.status_code != 200:
            raise BadInput(f"server {server.url} refused the request: {response.status_code} {response.text}")
        return response.json()


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
    return {
        "token_ids": list(prompt_ids),
        "sampling_params": {
            "n": 1,
            "max_tokens": params.max_tokens,
            "min_tokens": 0,
            "stop_token_ids": list(params.stop_ids),
            "ignore_eos": True,
            "seed": params.seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "min_p": params.min_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "repetition_penalty": params.repetition_penalty,
            "logprobs": 0,  # of the sampled token alone
            "detokenize": False,
        },
    }


def parse_completion(answer: dict[str, Any], version: int) -> Completion:
    """A Completion from the token route's answer; `version` stands in where the server has no number for its weights.

    Raises Fault where ids and log-probabilities do not pair up, or the finish reason is unknown.
    """
    choice = answer["choices"][0]
    ids: list[int] = choice["token_ids"] or []
    entries = (choice["logprobs"] or {}).get("content") or []
    if ids != [entry["token_id"] for entry in entries]:
        raise Fault(f"the server answered {len(ids)} tokens with log-probabilities of {len(entries)} others")
    return Completion(
        token_ids=ids,
        logprobs=[_logprob(entry["logprob"]) for entry in entries],
        finish_reason=_finish_reason(choice["finish_reason"]),
        version=_version(choice.get("weight_versions"), version),
    )


def _logprob(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) or value <= CLAMPED else value


def _finish_reason(reason: str) -> FinishReason:
    if reason not in ("stop", "length", "abort"):
        raise Fault(f"the server ended a completion with finish_reason={reason!r}")
    return cast(FinishReason, reason)


def _version(spans: list[dict[str, Any]] | None, default: int) -> int:
    """The oldest version in the completion: a push aborts what is under way, so there is one span."""
    label = str(spans[0]["version"]) if spans else ""
    return int(label) if label.isdecimal() else default


def _log_retry(state: RetryCallState) -> None:
    assert state.outcome is not None
    assert state.next_action is not None
    logger.debug("%s; again in %.1f s", state.outcome.exception(), state.next_action.sleep)
