"""The sampler without a server: draws by hand, processed distributions, batches that leave no trace in results."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from rewards.errors import Fault
from rollout.sampling import SamplingParams
from rollout.transformers_sampler import TransformersSampler, _Row, processed_logprobs, sample_rows
from rollout.types import Completion
from tests.models import tiny_model

PROMPTS = [[257, *range(97, 97 + n)] for n in (1, 9, 4, 30, 2)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring at this size, and very much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load_model(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture
def sampler(tiny_llama: Path) -> TransformersSampler:
    return TransformersSampler(load_model(tiny_llama), context=128, pad_id=256)


def params(max_tokens: int = 12, seed: int = 0, stop_ids: tuple[int, ...] = (), **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens, stop_ids, seed, **options)


async def sample_all(sampler: TransformersSampler, settings: list[SamplingParams]) -> list[Completion]:
    requests = [sampler.sample(prompt, p) for prompt, p in zip(PROMPTS, settings, strict=False)]
    return await asyncio.gather(*requests)


def record_batches(sampler: TransformersSampler) -> list[int]:
    """The number of rows of each forward pass from now on."""
    sizes: list[int] = []
    forward = sampler._model.forward

    def recording(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    sampler._model.forward = recording
    return sizes


def a_row(uniforms: list[float] | None = None, made: list[int] | None = None, **options: Any) -> _Row:
    loop = asyncio.new_event_loop()
    row = _Row([1, 2], params(**options), loop.create_future(), uniforms or [0.5] * 12, made or [])
    loop.close()
    return row


class TestDraws:
    LOGITS = torch.tensor([0.1, 0.2, 0.0, 0.7]).log()  # probabilities; the third token has none

    @pytest.mark.parametrize(
        ("u", "token"), [(0.0, 0), (0.0999, 0), (0.1001, 1), (0.2999, 1), (0.3001, 3), (1 - 2**-53, 3)]
    )
    def test_inverse_cdf_by_hand(self, u: float, token: int) -> None:
        row = a_row([u])
        assert sample_rows(self.LOGITS[None], [row]).tolist() == [token]
        assert row.token_ids == [token]
        assert row.logprobs == [pytest.approx(float(self.LOGITS[token]), abs=1e-6)]

    def test_rows_use_their_own_draws_one_a_token(self) -> None:
        rows = [a_row([0.05, 0.5]), a_row([0.2, 0.05])]
        logits = self.LOGITS.repeat(2, 1)
        sample_rows(logits.clone(), rows)
        sample_rows(logits.clone(), rows)
        assert [row.token_ids for row in rows] == [[0, 3], [1, 0]]

    def test_greedy_beside_sampling(self) -> None:
        rows = [a_row([0.05], temperature=0.0), a_row([0.05])]
        assert sample_rows(self.LOGITS.repeat(2, 1), rows).tolist() == [3, 0]
        assert rows[0].logprobs == [pytest.approx(np.log(0.7), abs=1e-6)]  # at temperature 1, as vLLM's

    def test_a_finished_row_takes_nothing(self) -> None:
        row = a_row([0.9, 0.1], max_tokens=1)
        sample_rows(self.LOGITS[None], [row])
        sample_rows(self.LOGITS[None], [row])
        assert (row.token_ids, row.finish_reason) == ([3], "length")

    def test_nan_is_a_fault(self) -> None:
        with pytest.raises(Fault, match="NaN or infinite logits"):
            sample_rows(torch.tensor([[0.0, float("nan")]]), [a_row()])


def reference(logits: np.ndarray, row: _Row) -> np.ndarray:
    """vLLM's order of steps in a slow loop over the vocabulary: penalties, temperature, min_p, top_k, top_p."""
    p, out = row.params, logits.astype(np.float64).copy()
    for v in range(len(out)):
        if v in row.prompt + row.token_ids:
            out[v] = out[v] / p.repetition_penalty if out[v] > 0 else out[v] * p.repetition_penalty
        out[v] -= p.frequency_penalty * row.token_ids.count(v) + p.presence_penalty * (v in row.token_ids)
    out /= p.temperature
    probs = np.exp(out - out.max()) / np.exp(out - out.max()).sum()
    out[probs < p.min_p * probs.max()] = -np.inf
    order = np.argsort(-out)
    if p.top_k:
        out[order[p.top_k :]] = -np.inf
    probs = np.exp(out - out.max()) / np.exp(out - out.max()).sum()
    before = 0.0
    for v in order:
        if before >= p.top_p:
            out[v] = -np.inf
        before += probs[v]
    return out - np.log(np.exp(out - out.max()).sum()) - out.max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 3},
        {"top_p": 0.6, "temperature": 1.3},
        {"min_p": 0.2},
        {"presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"repetition_penalty": 1.4},
        {
            "temperature": 0.8,
            "min_p": 0.01,
            "top_k": 9,
            "top_p": 0.8,
            "frequency_penalty": 0.4,
            "repetition_penalty": 1.2,
        },
    ],
)
def test_distributions_equal_a_slow_reference(options: dict[str, Any]) -> None:
    rows = [a_row(made=[3, 3, 7], **options), a_row(made=[5])]
    logits = torch.randn(2, 20, generator=torch.Generator().manual_seed(0)) * 2
    found = processed_logprobs(logits.clone(), rows).numpy()
    for b, row in enumerate(rows):
        np.testing.assert_allclose(found[b], reference(logits[b].numpy(), row), atol=2e-6)


async def test_draws_follow_the_model_s_distribution(sampler: TransformersSampler) -> None:
    settings = [params(1, seed=seed, temperature=0.05) for seed in range(400)]
    found = [
        (await future).token_ids[0] for future in [asyncio.ensure_future(sampler.sample([97], p)) for p in settings]
    ]
    with torch.inference_mode():
        probs = (sampler._model(torch.tensor([[97]])).logits[0, -1] / 0.05).softmax(-1).double().numpy()
    top = np.argsort(-probs)[:6]
    counts = [found.count(v) for v in top]
    expected = [400 * probs[v] for v in top]
    rest = 400 - sum(counts), 400 - sum(expected)
    assert min(expected) > 2
    assert stats.chisquare([*counts, rest[0]], [*expected, rest[1]]).pvalue > 1e-3


async def test_a_repeated_batch_is_the_same_to_the_bit(sampler: TransformersSampler) -> None:
    settings = [params(seed=seed) for seed in range(5)]
    assert await sample_all(sampler, settings) == await sample_all(sampler, settings)


async def test_rows_that_finish_leave_no_trace_in_the_others(sampler: TransformersSampler) -> None:
    """Mixed lengths, padding, stops and compaction: each row is what it is alone."""
    settings = [params(n, seed=n, temperature=1.5) for n in (2, 40, 7, 25, 12)]
    together = await sample_all(sampler, settings)
    for prompt, p, mixed in zip(PROMPTS, settings, together, strict=True):
        alone = await sampler.sample(prompt, p)
        assert alone.token_ids == mixed.token_ids
        assert len(mixed.token_ids) == p.max_tokens
        np.testing.assert_allclose(alone.logprobs, mixed.logprobs, atol=1e-5)


async def test_chunks_larger_than_max_batch(tiny_llama: Path, sampler: TransformersSampler) -> None:
    small = TransformersSampler(load_model(tiny_llama), context=128, pad_id=256, max_batch=2)
    settings = [params(6, seed=seed) for seed in range(5)]
    chunked, whole = await sample_all(small, settings), await sample_all(sampler, settings)
    assert [c.token_ids for c in chunked] == [c.token_ids for c in whole]


async def test_requests_of_one_moment_share_their_batch_and_finished_rows_leave(sampler: TransformersSampler) -> None:
    sizes = record_batches(sampler)
    await sample_all(sampler, [params(n) for n in (1, 1, 3, 4, 9)])
    assert sizes == [5, 3, 3, 2, 1, 1, 1, 1, 1]


class TestLoad:
    @pytest.mark.parametrize("tied", [True, False])
    async def test_new_weights_are_the_other_model_s(self, tmp_path: Path, tied: bool) -> None:
        old, new = (load_model(tiny_model(tmp_path / str(s), tied=tied, seed=s)) for s in (0, 1))
        expected = await TransformersSampler(new, context=64, pad_id=0).sample([97, 98], params(8))
        sampler = TransformersSampler(old, context=64, pad_id=0)
        assert (await sampler.sample([97, 98], params(8))).token_ids != expected.token_ids
        sampler.load(new.named_parameters(), 3)  # leaves the tied head out: it is the embedding
        found = await sampler.sample([97, 98], params(8))
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)
        assert (sampler.version, found.version) == (3, 3)

    def test_what_does_not_fit_is_a_fault(self, sampler: TransformersSampler) -> None:
        with pytest.raises(Fault, match=r"weight nope \(2,\) does not fit"):
            sampler.load([("nope", torch.zeros(2))], 1)
        with pytest.raises(Fault, match=r"model.norm.weight \(2,\)"):
            sampler.load([("model.norm.weight", torch.zeros(2))], 1)
        with pytest.raises(Fault, match=r"the push left out model\.embed_tokens\.weight"):
            sampler.load([("model.norm.weight", torch.ones(128))], 1)
        assert sampler.version == -1

    async def test_a_push_into_running_requests_is_a_fault(self, sampler: TransformersSampler) -> None:
        task = asyncio.create_task(sampler.sample([97], params()))
        await asyncio.sleep(0)
        with pytest.raises(Fault, match="while chains were being sampled"):
            sampler.load([], 1)
        await task


class TestFailures:
    async def test_broken_weights_fail_every_request_and_not_the_next(self, sampler: TransformersSampler) -> None:
        norm = sampler._model.model.norm.weight
        good = norm.clone()
        norm.fill_(float("nan"))
        results = await asyncio.gather(
            *(sampler.sample([97], params(seed=s)) for s in range(3)), return_exceptions=True
        )
        assert [type(r) for r in results] == [Fault] * 3
        norm.copy_(good)
        assert len((await sampler.sample([97], params())).token_ids) == 12

    async def test_cancelled_requests_leave_the_batch(self, sampler: TransformersSampler) -> None:
        steps = record_batches(sampler)
        tasks = [asyncio.create_task(sampler.sample([97], params(120, seed=s))) for s in range(3)]
        while not steps:
            await asyncio.sleep(0.001)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len((await sampler.sample([98], params(2))).token_ids) == 2
        assert len(steps) < 100

    @pytest.mark.parametrize("seconds", [0, 0.01])
    async def test_closing_cancels_what_is_under_way(self, sampler: TransformersSampler, seconds: float) -> None:
        task = asyncio.create_task(sampler.sample([97], params(100)))
        await asyncio.sleep(seconds)
        await sampler.aclose()
        with pytest.raises(asyncio.CancelledError):
            await task
