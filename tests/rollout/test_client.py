"""The sampling client against fake servers (retries, deadlines, sockets, balance) and against the real one."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest

from rewards.errors import BadInput, Fault
from rollout.client import ROUTE, ServerDown, VllmClient, check_fits, parse_completion, request_body
from rollout.sampling import SamplingParams
from tests.conftest import VllmServer

PARAMS = SamplingParams(max_tokens=4, stop_ids=(2,), seed=7)
Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def answer(ids: list[int] | None = None, version: str = "3", reason: str = "stop") -> dict[str, Any]:
    """What the token route answers, as far as the client reads it."""
    ids = [5, 2] if ids is None else ids
    content = [{"token_id": i, "logprob": -0.5, "top_logprobs": []} for i in ids]
    spans = [{"version": version, "start": 0, "end": len(ids)}]
    choice = {"token_ids": ids, "logprobs": {"content": content}, "finish_reason": reason, "weight_versions": spans}
    return {"choices": [choice]}


def client(handler: Handler, urls: tuple[str, ...] = ("http://a",), **options: Any) -> VllmClient:
    return VllmClient(urls, "key", context=100, transport=httpx.MockTransport(handler), **options)


async def test_every_field_is_explicit_and_the_key_travels() -> None:
    seen: list[httpx.Request] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=answer())

    params = SamplingParams(
        max_tokens=9, stop_ids=(2, 8), seed=1, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1,
        presence_penalty=0.2, frequency_penalty=0.3, repetition_penalty=1.1,
    )  # fmt: skip
    completion = await client(serve).sample([1, 4], params)
    assert completion == parse_completion(answer(), -1)
    assert (completion.token_ids, completion.logprobs, completion.version) == ([5, 2], [-0.5, -0.5], 3)
    assert (seen[0].url, seen[0].headers["Authorization"]) == ("http://a" + ROUTE, "Bearer key")
    assert json.loads(seen[0].content) == {
        "token_ids": [1, 4],
        "sampling_params": {
            "n": 1, "max_tokens": 9, "min_tokens": 0, "stop_token_ids": [2, 8], "ignore_eos": True, "seed": 1,
            "temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "presence_penalty": 0.2,
            "frequency_penalty": 0.3, "repetition_penalty": 1.1, "logprobs": 0, "detokenize": False,
        },
    }  # fmt: skip


@pytest.mark.parametrize("failure", [503, 500, httpx.ConnectError("refused"), httpx.RemoteProtocolError("dropped")])
async def test_what_may_mend_is_tried_again(failure: int | Exception) -> None:
    calls = 0

    async def serve(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        if calls > 2:
            return httpx.Response(200, json=answer())
        if isinstance(failure, Exception):
            raise failure
        return httpx.Response(failure, text="busy")

    assert (await client(serve).sample([1], PARAMS)).token_ids == [5, 2]
    assert calls == 3


async def test_used_up_retries_name_the_server_and_its_last_words() -> None:
    calls = 0

    async def serve(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(500, text="engine dead")

    with pytest.raises(ServerDown, match=r"http://a.*500 engine dead") as caught:
        await client(serve, retries=2).sample([1], PARAMS)
    assert (caught.value.url, calls) == ("http://a", 3)


async def test_a_refusal_is_shown_whole_and_not_repeated() -> None:
    calls = 0

    async def serve(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(400, text='{"error": "token id 999 is out of vocabulary"}')

    with pytest.raises(BadInput, match=re.escape('400 {"error": "token id 999 is out of vocabulary"}')):
        await client(serve).sample([999], PARAMS)
    assert calls == 1


@pytest.mark.parametrize("slow", ["one try", "many tries"])
async def test_the_deadline_covers_all_tries(slow: str) -> None:
    async def serve(request: httpx.Request) -> httpx.Response:
        if slow == "one try":
            await asyncio.sleep(30)
        return httpx.Response(503)

    begin = time.monotonic()
    with pytest.raises(ServerDown, match="http://a"):
        await client(serve, timeout=0.3, retries=10**6).sample([1], PARAMS)
    assert 0.2 < time.monotonic() - begin < 3


async def test_requests_go_where_fewest_tokens_are_outstanding() -> None:
    gate = asyncio.Event()
    served: Counter[str] = Counter()

    async def serve(request: httpx.Request) -> httpx.Response:
        served[request.url.host] += 1
        await gate.wait()
        return httpx.Response(200, json=answer())

    sampler = client(serve, ("http://a", "http://b"))
    long = asyncio.create_task(sampler.sample([1] * 46, PARAMS))  # 46 + 4 = 50 tokens on a
    await asyncio.sleep(0.01)
    short = [asyncio.create_task(sampler.sample([1] * 6, PARAMS)) for _ in range(5)]  # 10 tokens each, all on b
    await asyncio.sleep(0.01)
    assert served == {"a": 1, "b": 5}
    gate.set()
    await asyncio.gather(long, *short)


async def test_a_request_leaves_a_server_that_failed_it() -> None:
    hosts: list[str] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(503) if request.url.host == "a" else httpx.Response(200, json=answer())

    await client(serve, ("http://a", "http://b"), retries=1).sample([1], PARAMS)
    assert hosts == ["a", "b"]


class SocketServer:
    """A real HTTP server that counts connections, and drops the first `drops` of them without an answer."""

    def __init__(self, drops: int = 0) -> None:
        self.open = self.peak = self.answered = 0
        self.drops = drops
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SocketServer]:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            yield self

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.peak = max(self.peak, self.open)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                if self.drops:
                    self.drops -= 1
                    return
                await asyncio.sleep(0.001)
                body = json.dumps(answer()).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                await writer.drain()
                self.answered += 1
        except asyncio.IncompleteReadError:  # the client has closed the connection
            pass
        finally:
            self.open -= 1
            writer.close()


async def test_a_thousand_requests_open_few_sockets_and_survive_dropped_ones() -> None:
    async with SocketServer(drops=3).running() as server:
        sampler = VllmClient([server.url], "key", context=100, max_connections=8)
        completions = await asyncio.gather(*(sampler.sample([1], PARAMS) for _ in range(1000)))
        await sampler.aclose()
    assert len(completions) == server.answered == 1000
    assert server.peak <= 8


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    check_fits(96, 4, 100)
    with pytest.raises(BadInput, match=r"97 tokens and 4 new ones .* context of 100"):
        check_fits(97, 4, 100)
    with pytest.raises(BadInput, match="empty"):
        check_fits(0, 4, 100)


@pytest.mark.parametrize("value", [None, -9999.0, float("nan")])
def test_a_logprob_that_is_no_number_becomes_nan(value: float | None) -> None:
    broken = answer()
    broken["choices"][0]["logprobs"]["content"][1]["logprob"] = value
    first, second = parse_completion(broken, 0).logprobs
    assert first == -0.5
    assert math.isnan(second)


@pytest.mark.parametrize(("spans", "version"), [(None, 6), ([], 6), ([{"version": "default"}], 6)])
def test_weights_without_a_number_take_the_clients(spans: list[Any] | None, version: int) -> None:
    unlabelled = answer()
    unlabelled["choices"][0]["weight_versions"] = spans
    assert parse_completion(unlabelled, 6).version == version


def test_an_answer_that_does_not_add_up_is_a_fault() -> None:
    torn = answer()
    torn["choices"][0]["token_ids"] = [5, 4]
    with pytest.raises(Fault, match="2 tokens"):
        parse_completion(torn, 0)
    with pytest.raises(Fault, match="finish_reason='repetition'"):
        parse_completion(answer(reason="repetition"), 0)


def test_an_aborted_request_may_be_empty() -> None:
    assert parse_completion(answer([], reason="abort"), 0).finish_reason == "abort"


def test_no_server_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one"):
        VllmClient([], "key", context=100)


@pytest.fixture
async def real(vllm_server: VllmServer) -> AsyncIterator[VllmClient]:
    sampler = VllmClient([vllm_server.url], vllm_server.key, context=1024, timeout=120)
    yield sampler
    await sampler.aclose()


@pytest.mark.vllm
async def test_only_the_stop_ids_end_a_chain_and_the_one_hit_is_kept(real: VllmClient) -> None:
    eos = 258  # of the tiny model
    free = await real.sample([5, 6, 7], SamplingParams(max_tokens=1000, stop_ids=(), seed=1))
    assert (free.finish_reason, len(free.token_ids), len(free.logprobs)) == ("length", 1000, 1000)
    assert eos in free.token_ids[:-1], "choose a seed that samples the eos before the end"
    for stop_ids in ((eos,), (free.token_ids[9],), (free.token_ids[20], free.token_ids[12])):
        stopped = await real.sample([5, 6, 7], SamplingParams(max_tokens=1000, stop_ids=stop_ids, seed=1))
        end = min(free.token_ids.index(stop) for stop in stop_ids) + 1
        assert (stopped.finish_reason, stopped.token_ids) == ("stop", free.token_ids[:end])
        assert stopped.logprobs == pytest.approx(free.logprobs[:end], abs=1e-5)


@pytest.mark.vllm
async def test_temperature_zero_is_greedy_whatever_the_seed(real: VllmClient) -> None:
    params = SamplingParams(max_tokens=16, stop_ids=(), seed=1, temperature=0.0)
    first, second = await asyncio.gather(*(real.sample([9, 8], replace(params, seed=seed)) for seed in (1, 2)))
    assert first.token_ids == second.token_ids


@pytest.mark.vllm
async def test_the_server_refuses_a_token_outside_the_vocabulary(real: VllmClient) -> None:
    with pytest.raises(BadInput, match="400"):
        await real.sample([10**6], PARAMS)


def test_greedy_travels_as_temperature_zero() -> None:
    assert request_body([1], replace(PARAMS, temperature=0.0))["sampling_params"]["temperature"] == 0.0
