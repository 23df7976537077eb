"""Server and learner agree on the log-probabilities of decoded tokens, before and after a push; and each fault is seen.

The server is vLLM, the learner a plain forward of transformers, both in float32.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from rl import kl
from rl.sync import FilePush, ModuleSource
from rollout.client import ServerControl, VllmClient
from rollout.sampling import SamplingParams
from rollout.server.argv import server_argv
from rollout.server.hardware import probe
from rollout.server.process import ServerProcess
from tests.conftest import VllmServer, vllm_spec
from tests.models import tiny_model

MEAN_BOUND, K3_BOUND = 1e-5, 1e-6
SEEN = 1e-2  # a fault moves the mean |difference| by more than this, a thousand times the bound
SHORT = [5, 6, 7]
LONG = [7 * i % 250 for i in range(300)]  # long enough to fill prefix-cache blocks
LoadFormat = Literal["auto", "dummy"]
STALE_HEAD = Path(__file__).parents[1] / "faults" / "stale_head"


class Wire:
    """A server with its client, its push, and the learner's model of the same weights."""

    def __init__(self, url: str, key: str, sync_dir: Path, model_path: Path) -> None:
        self.client = VllmClient([url], key, context=1024, timeout=120)
        self.control = ServerControl(url, key)
        self.sync_dir = sync_dir
        self.model: nn.Module = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32).eval()
        self.version = 0

    async def push(self, control: ServerControl | None = None) -> None:
        self.version += 1
        await FilePush([control or self.control], self.sync_dir).push(ModuleSource(self.model), self.version)

    async def drift(self, prompt: Sequence[int], temperature: float, chains: int = 4) -> tuple[float, float]:
        """(mean |difference|, k3) over the decoded tokens of a few chains."""
        requests = [SamplingParams(48, stop_ids=(258,), seed=seed, temperature=temperature) for seed in range(chains)]
        answers = await asyncio.gather(*(self.client.sample(prompt, params) for params in requests))
        assert {answer.version for answer in answers} <= {self.version, -1}
        learner = torch.cat([self._logprobs(prompt, answer.token_ids, temperature) for answer in answers]).double()
        sampler = torch.tensor([logprob for answer in answers for logprob in answer.logprobs]).double()
        assert len(sampler) > 40
        # k3 with the sampler's policy as the one that drew the tokens: KL(sampler || learner)
        return (learner - sampler).abs().mean().item(), kl.k3(sampler, learner).mean().item()

    @torch.no_grad()
    def _logprobs(self, prompt: Sequence[int], response: list[int], temperature: float) -> torch.Tensor:
        logits = self.model(torch.tensor([[*prompt, *response]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / temperature).log_softmax(-1)
        return logprobs.gather(-1, torch.tensor(response)[:, None])[:, 0]

    @torch.no_grad()
    def perturb(self, seed: int) -> None:
        """Change every parameter by a few percent; biases that are zero, too."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.mul_(1 + 0.05 * noise).add_(0.01 * noise)

    @torch.no_grad()
    def sharpen(self) -> None:
        """Scale the matrices up: fresh weights are nearly uniform, which would hide most faults."""
        for parameter in self.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)

    async def aclose(self) -> None:
        await self.client.aclose()
        await self.control.aclose()


async def assert_agrees(wire: Wire) -> None:
    for temperature in (0.7, 1.0):
        for prompt in (SHORT, LONG):
            mean_abs, k3 = await wire.drift(prompt, temperature)
            assert mean_abs <= MEAN_BOUND, (temperature, len(prompt))
            assert k3 <= K3_BOUND, (temperature, len(prompt))


@pytest.fixture
async def wire(vllm_server: VllmServer) -> AsyncIterator[Wire]:
    """The session's server; its first weights are pushed back at the end."""
    wire = Wire(vllm_server.url, vllm_server.key, vllm_server.sync_dir, vllm_server.model_path)
    original = {name: tensor.clone() for name, tensor in wire.model.state_dict().items()}
    wire.version = max(0, await wire.control.weight_version())
    yield wire
    wire.model.load_state_dict(original)
    await wire.push()
    await wire.aclose()


@pytest.mark.vllm
async def test_server_and_learner_agree_after_each_push(wire: Wire) -> None:
    await assert_agrees(wire)
    wire.sharpen()
    for seed in range(2):  # the second one meets LONG in the prefix cache
        wire.perturb(seed)
        await wire.push()
        await assert_agrees(wire)


@pytest.mark.vllm
async def test_a_change_that_is_not_pushed_is_seen(wire: Wire) -> None:
    wire.sharpen()
    await wire.push()
    wire.perturb(0)
    for prompt in (SHORT, LONG):
        mean_abs, k3 = await wire.drift(prompt, 1.0)
        assert mean_abs > SEEN
        assert k3 > 10 * K3_BOUND


class KeepsCache(ServerControl):
    """Plants the fault: pauses without dropping the prefix cache."""

    async def pause(self, clear_cache: bool = True) -> None:
        await super().pause(clear_cache=False)


@pytest.mark.vllm
async def test_a_stale_prefix_cache_is_seen_by_a_long_prompt_only(wire: Wire, vllm_server: VllmServer) -> None:
    wire.sharpen()
    await wire.push()
    await wire.drift(LONG, 1.0)  # fills the cache
    wire.perturb(0)
    careless = KeepsCache(vllm_server.url, vllm_server.key)
    await wire.push(careless)
    await careless.aclose()
    assert (await wire.drift(SHORT, 1.0))[0] <= MEAN_BOUND
    mean_abs, k3 = await wire.drift(LONG, 1.0)
    assert mean_abs > SEEN
    assert k3 > 10 * K3_BOUND
    await wire.control.pause()
    await wire.control.resume()
    assert (await wire.drift(LONG, 1.0))[0] <= MEAN_BOUND


@asynccontextmanager
async def own_wire(
    tmp_path: Path, model: Path, load_format: LoadFormat, raw_logprobs: bool = False
) -> AsyncIterator[Wire]:
    """A server of one's own, stopped at the end."""
    sync_dir = tmp_path / "sync"
    spec = replace(vllm_spec(model, sync_dir), load_format=load_format)
    words = server_argv(spec, probe())[0]
    if raw_logprobs:
        words[words.index("processed_logprobs")] = "raw_logprobs"
    process = await ServerProcess.start(
        spec, log=tmp_path / "server.log", key="key", hardware=probe(), owned_dirs=[sync_dir], timeout=300,
        argv=[sys.executable, *words],
    )  # fmt: skip
    wire = Wire(process.url, "key", sync_dir, model)
    try:
        yield wire
    finally:
        await wire.aclose()
        await process.stop()


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "tied"), [("llama", False), ("qwen2", True), ("qwen2", False), ("qwen3", True)])
async def test_other_shapes_agree_from_the_first_push_on(tmp_path: Path, arch: str, tied: bool) -> None:
    model = tiny_model(tmp_path / "model", arch=arch, tied=tied)
    async with own_wire(tmp_path, model, "dummy") as wire:  # as after a restart: no weights but those pushed
        wire.sharpen()
        for seed in range(2):
            wire.perturb(seed)
            await wire.push()
            await assert_agrees(wire)


@pytest.mark.slow
async def test_a_one_sided_temperature_and_a_stale_head_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(STALE_HEAD))
    model = tiny_model(tmp_path / "model", initializer_range=0.1)
    async with own_wire(tmp_path, model, "auto", raw_logprobs=True) as wire:
        assert (await wire.drift(SHORT, 1.0))[0] <= MEAN_BOUND
        assert (await wire.drift(SHORT, 0.7))[0] > SEEN  # the temperature
        wire.perturb(0)
        await wire.push()
        mean_abs, k3 = await wire.drift(SHORT, 1.0)
        assert mean_abs > SEEN  # the head
        assert k3 > 10 * K3_BOUND
