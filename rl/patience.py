"""Two controls on the base: what could be had without RL.

Much of a gain may be patience that any prompt could buy. So the base is also measured with its early closes taken back
(`base-patient`), and by the majority of as many of its chains as cost what one final chain costs (`base-votes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rewards.tasks import source_of
from rewards.tasks.anatomy import read_tries
from rl.build import Setup
from rollout.budget import Budget, extend_thinking
from rollout.collect import Scorer, gather_all, score_chain
from rollout.evaluate import make_cell
from rollout.examine import EVAL_STEP
from rollout.sampling import SamplingParams, request_seed
from rollout.types import Chain, Group, Sampler

VOTES = 4
"""Chains a problem of the base for the majority control."""


async def patient_groups(setup: Setup, groups: Sequence[Group], sampler: Sampler, pool: Scorer) -> list[Group]:
    """The base's chains gone on with: every close is taken back until the chain itself claims a hit.

    Raises what `collect` raises.
    """
    config, template = setup.config, setup.template
    budget = Budget(None, config.budget.answer)

    async def one(group: Group, k: int, chain: Chain) -> Chain:
        seeds = partial(request_seed, config.seed, EVAL_STEP, group.problem.id, k)
        params = SamplingParams(
            config.rollout.max_tokens, template.stop_ids, seed=0, temperature=config.rollout.temperature
        )
        longer = await extend_thinking(sampler, template, chain, params, budget, seeds, claims_a_hit)
        spec = setup.spec_of(group.problem)
        return await score_chain(longer, group.problem, template=template, pool=pool, spec=spec)

    chains = iter(await gather_all(one(g, k, chain) for g in groups for k, chain in enumerate(g.chains)))
    return [Group(g.problem, [next(chains) for _ in g.chains], g.step) for g in groups]


def patient_cells(setup: Setup, groups: Sequence[Group], label: str) -> list[dict[str, Any]]:
    """The cells of `patient_groups`, one for each task of the run."""
    task_of = partial(source_of, setup.task)
    by_task: dict[str, list[Group]] = {}
    for group in groups:
        by_task.setdefault(task_of(group.problem), []).append(group)
    return [
        make_cell(
            some, setup.template.response_text, model=label, task=task, split="test", style="cot", budget=None,
            temperature=setup.config.rollout.temperature, samples=len(some[0].chains),
        )
        for task, some in by_task.items()
    ]  # fmt: skip


def claims_a_hit(thinking: str) -> bool:
    """Whether the last finished attempt is one that the chain takes for a hit."""
    tries = read_tries(thinking)
    return bool(tries) and tries[-1].claimed
