"""Collecting: order, ids, seeds, truncation, and clean ends when something fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from rewards.errors import BadInput
from rewards.types import Problem
from rollout.client import ServerDown
from rollout.collect import Examiner, Plan, collect
from rollout.prompt import Template
from rollout.sampling import SamplingParams, request_seed
from rollout.types import Completion
from tests.fakes import FakePool, FakeSampler, word_tokenizer

EOS, OPEN, CLOSE = 2, 3, 4
TEMPLATE = Template(word_tokenizer(), think=True, stop_ids=(EOS,))
PROBLEMS = [Problem(f"p{i}", "toy", f"{i} + {i}", i, f"k{i}") for i in range(3)]


def thinker(ids: list[int], params: SamplingParams) -> list[int]:
    return [30, CLOSE, 31 + params.seed % 5, EOS]


async def run(sampler: Any, pool: FakePool | None = None, **options: Any) -> Any:
    told = {name: options.pop(name) for name in ("style", "on_chain") if name in options}
    problems = options.pop("problems", PROBLEMS)
    plan = replace(Plan(4, 1.0, (None,), max_tokens=20, answer=4, seed=3), **options)
    examiner = Examiner(sampler, TEMPLATE, pool or FakePool(), lambda p: f"spec of {p.id}", plan, step=7)
    return await collect(problems, examiner, **told)


async def test_groups_come_in_order_with_ids_seeds_and_scores() -> None:
    sampler, pool = FakeSampler(thinker), FakePool()
    done: list[int] = []
    groups = await run(sampler, pool, temperature=0.7, on_chain=lambda: done.append(1))
    assert [g.problem for g in groups] == PROBLEMS
    assert [g.step for g in groups] == [7, 7, 7]
    ids = [f"7/p{i}/{k}" for i in range(3) for k in range(4)]
    assert [c.id for g in groups for c in g.chains] == ids
    assert sorted(asked for asked, _, _ in pool.asked) == sorted(ids)
    assert len(done) == len(ids)
    assert all(c.score.id == c.id and c.score.status == "ok" for g in groups for c in g.chains)
    assert [p.seed for _, p in sampler.requests] == [request_seed(3, 7, f"p{i}", k) for i in range(3) for k in range(4)]
    assert {(p.max_tokens, p.temperature, p.stop_ids, p.plain) for _, p in sampler.requests} == {
        (20, 0.7, (EOS,), True)
    }


async def test_the_verifier_reads_text_and_gets_the_row_s_spec() -> None:
    specs = []

    class Pool(FakePool):
        async def score(self, chain_id, response, problem, spec, truncated=False, extras=None):
            specs.append((response, problem.id, spec, truncated, extras.completion_ids, extras.step))
            return await super().score(chain_id, response, problem, spec, truncated)

    sampler = FakeSampler(lambda ids, params: [30, CLOSE, 31, EOS])
    await run(sampler, Pool(), samples=1)
    text = TEMPLATE.tokenizer.decode([OPEN, 30, CLOSE, 31])
    assert sorted(specs) == [(text, f"p{i}", f"spec of p{i}", False, [30, CLOSE, 31, EOS], 7) for i in range(3)]


@pytest.mark.parametrize(
    ("response", "max_tokens"),
    [([30, CLOSE, 31, 31, 31], 4), ([30, 30, 30, 30], 4), ([30, EOS], 4)],
    ids=["answer cut", "thinking cut", "ended while thinking"],
)
async def test_what_has_no_whole_answer_is_truncated(response: list[int], max_tokens: int) -> None:
    groups = await run(FakeSampler(lambda ids, params: response), max_tokens=max_tokens)
    assert {c.score.status for g in groups for c in g.chains} == {"truncated"}


async def test_a_budget_closes_by_force_with_seeds_of_their_own() -> None:
    sampler = FakeSampler(lambda ids, params: [31, EOS] if CLOSE in ids else [30] * 20)
    groups = await run(sampler, budgets=(5,), samples=2)
    assert {c.finish_reason for g in groups for c in g.chains} == {"forced"}
    assert {c.score.status for g in groups for c in g.chains} == {"ok"}
    seeds = {request_seed(3, 7, f"p{i}", k, s) for i in range(3) for k in range(2) for s in range(2)}
    assert {p.seed for _, p in sampler.requests} == seeds


async def test_direct_prompts() -> None:
    sampler = FakeSampler(lambda ids, params: [31, EOS])
    await run(sampler, style="direct")
    assert all(ids[-2:] == [OPEN, CLOSE] for ids, _ in sampler.requests)


async def test_an_unreadable_prompt_is_named_before_anything_is_sampled() -> None:
    sampler = FakeSampler(thinker)
    with pytest.raises(BadInput, match=r"^problem odd: .*lacks.*777"):
        await run(sampler, problems=[*PROBLEMS, Problem("odd", "toy", "777", 0, "k")])
    assert sampler.requests == []


async def test_a_prompt_beyond_the_context_is_named() -> None:
    long = Problem("long", "toy", "1 + " * 20, 0, "k")
    with pytest.raises(BadInput, match=r"^problem long: 42 \+ 20 tokens do not fit the context of 60$"):
        await run(FakeSampler(thinker, context=60), problems=[PROBLEMS[0], long])


class Dying(FakeSampler):
    """Answers nothing but the second problem's requests, and those by failing."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = 0

    async def sample(self, prompt_ids, params) -> Completion:
        if prompt_ids[1] == PROBLEM_1:
            await asyncio.sleep(0.01)
            raise ServerDown("http://x", "gone")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("slept through")


PROBLEM_1 = TEMPLATE.encode("1 + 1")[1]


async def test_a_dead_server_cancels_the_rest_first() -> None:
    sampler = Dying()
    before = len(asyncio.all_tasks())
    with pytest.raises(ServerDown, match="gone"):
        await run(sampler)
    assert sampler.cancelled == 8
    assert len(asyncio.all_tasks()) == before


async def test_cancelling_from_outside_leaves_nothing() -> None:
    sampler = Dying()
    before = len(asyncio.all_tasks())
    task = asyncio.create_task(run(sampler, problems=[PROBLEMS[0]]))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sampler.cancelled == 4
    assert len(asyncio.all_tasks()) == before


async def test_no_problems_are_no_groups() -> None:
    assert await run(FakeSampler(thinker), problems=[]) == []


@pytest.mark.parametrize(
    ("tokens", "options", "thought"),
    [
        ([30, 31, CLOSE, 32, EOS], {}, 2),  # neither the close nor the answer
        ([CLOSE, 32, EOS], {}, 0),
        ([30] * 30, {}, 20),  # cut inside its thinking
        ([30] * 30, {"budgets": (5,)}, 5),  # the close was forced: inserted tokens don't count
    ],
)
async def test_rewards_are_told_the_sampled_thinking_tokens(tokens: list[int], options: Any, thought: int) -> None:
    told = []

    class Pool(FakePool):
        async def score(self, chain_id, response, problem, spec, truncated=False, extras=None):
            told.append(extras.thinking_tokens)
            return await super().score(chain_id, response, problem, spec, truncated)

    sampler = FakeSampler(lambda ids, params: [32, EOS] if CLOSE in ids else tokens[: params.max_tokens])
    await run(sampler, Pool(), problems=PROBLEMS[:1], **options)
    assert told == [thought] * 4
