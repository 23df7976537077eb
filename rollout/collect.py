"""Problems x group_size -> scored groups: every chain at once, each scored as soon as it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from rewards.errors import BadInput
from rewards.types import Extras, Problem, Score
from rollout.budget import Budget, sample_with_budget
from rollout.prompt import Shot, Style, Template
from rollout.sampling import SamplingParams, request_seed
from rollout.types import Chain, Group, Sampler

T = TypeVar("T")


class Scorer(Protocol):
    """What judges responses: rewards.pool.RewardPool, or a fake."""

    async def score(
        self,
        chain_id: str,
        response: str,
        problem: Problem,
        spec: Any,
        truncated: bool = False,
        extras: Extras | None = None,
    ) -> Score: ...


async def collect(
    problems: Sequence[Problem],
    *,
    sampler: Sampler,
    template: Template,
    pool: Scorer,
    spec_of: Callable[[Problem], Any],
    group_size: int,
    max_tokens: int,
    run_seed: int,
    step: int,
    temperature: float = 1.0,
    budget: Budget | None = None,
    style: Style = "cot",
    on_chain: Callable[[Chain], None] | None = None,
) -> list[Group]:
    """Sample and score `group_size` chains of each problem; groups and chains in order, ids "step/problem id/k".

    `spec_of(problem)` is the reward spec given to the pool, `on_chain` sees each scored chain as it is done.
    Raises BadInput naming the problem whose prompt is refused, rollout.client.ServerDown; the rest is cancelled then.
    """
    prompts = encode_prompts(problems, template, style)

    async def one(problem: Problem, prompt_ids: list[int], k: int) -> Chain:
        with_problem = partial(request_seed, run_seed, step, problem.id, k)
        params = SamplingParams(
            max_tokens=max_tokens, stop_ids=template.stop_ids, seed=with_problem(0), temperature=temperature
        )
        chain_id = f"{step}/{problem.id}/{k}"
        chain = await name_problem(
            problem,
            sample_with_budget(sampler, template, chain_id, problem.id, prompt_ids, params, budget, with_problem),
        )
        chain = await score_chain(chain, problem, template=template, pool=pool, spec=spec_of(problem), step=step)
        if on_chain is not None:
            on_chain(chain)
        return chain

    chains = await gather_all(
        one(problem, ids, k) for problem, ids in zip(problems, prompts, strict=True) for k in range(group_size)
    )
    return [
        Group(problem, chains[i * group_size : (i + 1) * group_size], step=step) for i, problem in enumerate(problems)
    ]


def encode_prompts(
    problems: Sequence[Problem],
    template: Template,
    style: Style,
    shots_of: Callable[[Problem], Sequence[Shot]] = lambda problem: (),
) -> list[list[int]]:
    """The prompt ids of every problem, before anything is sampled. Raises BadInput naming the problem.

    `shots_of(problem)` are the worked examples of a few-shot prompt.
    """
    out = []
    for problem in problems:
        try:
            out.append(template.encode(problem.prompt, style, shots_of(problem)))
        except BadInput as error:
            raise BadInput(f"problem {problem.id}: {error}") from None
    return out


async def score_chain(
    chain: Chain, problem: Problem, *, template: Template, pool: Scorer, spec: Any, step: int = 0
) -> Chain:
    """The chain with the pool's verdict; cut by the cap, or ended inside its thinking, it counts as truncated."""
    truncated = chain.finish_reason == "length" or template.unclosed(chain)
    extras = Extras(chain.response_ids, step)
    score = await pool.score(chain.id, template.response_text(chain), problem, spec, truncated, extras)
    return chain.with_score(score)


async def name_problem(problem: Problem, sampling: Coroutine[Any, Any, T]) -> T:
    """Await a request; a BadInput of the sampler's (a prompt beyond the context) comes to name the problem."""
    try:
        return await sampling
    except BadInput as error:
        raise BadInput(f"problem {problem.id}: {error}") from None


async def gather_all(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results in order; the first failure, or a cancellation from outside, cancels and awaits all others first."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
