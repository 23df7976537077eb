"""continue_chain: the one mechanism. Prefixes stay, masks and versions follow what was sampled."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.errors import BadInput
from rewards.types import Score
from rollout.chain import bare_chain, continue_chain, cut, merge
from rollout.sampling import SamplingParams
from rollout.types import Completion
from tests.fakes import FakeSampler

PARAMS = SamplingParams(max_tokens=3, stop_ids=(2,), seed=5)
IDS = st.lists(st.integers(3, 15), max_size=5)


async def test_start_and_forced_close_by_hand() -> None:
    sampler = FakeSampler(lambda ids, params: [7, 8, 9] if len(ids) == 2 else [5, 2], version=4)
    chain = await continue_chain(sampler, bare_chain("1/p/0", "p", [1, 6]), (), PARAMS)
    assert chain.token_ids == [1, 6, 7, 8, 9]
    assert (chain.finish_reason, chain.versions, chain.prompt_len) == ("length", [(2, 4)], 2)

    sampler.version = 5
    longer = await continue_chain(sampler, chain.with_score(Score(0.0, False, "wrong")), [10, 11], PARAMS)
    assert longer.token_ids == [1, 6, 7, 8, 9, 10, 11, 5, 2]
    assert longer.sampled == [False, False, True, True, True, False, False, True, True]
    assert longer.sampler_logprobs == [0.0, 0.0, -0.5, -0.5, -0.5, 0.0, 0.0, -0.5, -0.5]
    assert longer.versions == [(2, 4), (7, 5)]
    assert (longer.finish_reason, longer.score) == ("stop", None)
    assert sampler.requests[1][0] == [1, 6, 7, 8, 9, 10, 11]  # the whole list goes back


async def test_an_unchanged_version_has_one_entry() -> None:
    sampler = FakeSampler(lambda ids, params: [7, 8, 9], version=4)
    chain = await continue_chain(sampler, bare_chain("c", "p", [1]), (), PARAMS)
    assert (await continue_chain(sampler, chain, [], PARAMS)).versions == [(1, 4)]


async def test_empty_prompts_are_refused_by_the_sampler() -> None:
    with pytest.raises(BadInput, match="empty"):
        await continue_chain(FakeSampler(), bare_chain("c", "p", []), (), PARAMS)


@given(
    prompt=st.lists(st.integers(3, 15), min_size=1, max_size=5),
    segments=st.lists(st.tuples(IDS, IDS, st.integers(0, 2)), max_size=5),
)
def test_invariants_over_any_history(prompt: list[int], segments: list[tuple[list[int], list[int], int]]) -> None:
    chain = bare_chain("c", "p", prompt)
    made_by = [-1] * len(prompt)
    for inserted, sampled, version in segments:
        before = chain
        chain = merge(chain, inserted, Completion(sampled, [-1.0] * len(sampled), "length", version))
        made_by += [-1] * len(inserted) + [version] * len(sampled)
        assert chain.token_ids[: len(before.token_ids)] == before.token_ids
        assert chain.sampled[: len(before.sampled)] == before.sampled
    assert chain.prompt_len == len(prompt)
    assert chain.token_versions() == made_by
    assert [v >= 0 for v in made_by] == chain.sampled
    assert all((lp == 0) != s for lp, s in zip(chain.sampler_logprobs, chain.sampled, strict=True))
    starts = [start for start, _ in chain.versions]
    assert starts == sorted(set(starts))
    assert all(a[1] != b[1] for a, b in zip(chain.versions, chain.versions[1:], strict=False))


@given(length=st.integers(0, 20), seed=st.integers(0, 99))
def test_cut_keeps_a_prefix(length: int, seed: int) -> None:
    params = SamplingParams(max_tokens=4, stop_ids=(), seed=seed)
    sampler = FakeSampler(version=1)

    async def build():
        chain = await continue_chain(sampler, bare_chain("c", "p", [1, 2, 3]), (), params)
        sampler.version = 2
        return await continue_chain(sampler, chain, [4], params)

    chain = asyncio.run(build())
    if not 3 <= length <= 12:
        with pytest.raises(ValueError, match="cannot cut 12 tokens"):
            cut(chain, length, "length")
        return
    piece = cut(chain, length, "length")
    assert piece.token_ids == chain.token_ids[:length]
    assert piece.token_versions() == chain.token_versions()[:length]
    assert piece.finish_reason == "length"
