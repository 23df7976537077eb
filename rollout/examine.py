"""Asking a model questions: every problem k times, in one prompt style, at every thinking budget; scored.

The thinking is sampled once, at the largest budget; smaller budgets cut it and sample the answers anew, so that the
cells of one evaluation are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from rewards.errors import BadInput
from rewards.types import Problem
from rollout.budget import Budget, cut_chain, finish_thinking, sample_with_budget
from rollout.collect import Scorer, encode_prompts, gather_all, name_problem, score_chain
from rollout.prompt import Shot, Style, Template
from rollout.sampling import SamplingParams, request_seed
from rollout.types import Chain, Group, Sampler

EVAL_STEP = 0  # of request seeds and groups: training steps count from 1


@dataclass(frozen=True)
class Plan:
    """How every problem of an evaluation is asked: what its chains depend on, beside the model and the prompt."""

    samples: int  # chains a problem
    temperature: float
    budgets: tuple[int | None, ...]  # caps on thinking tokens, distinct; None = no cap
    max_tokens: int  # sampled tokens of a chain
    answer: int  # of these, behind a capped thinking; all that a direct prompt gets
    seed: int

    def of(self, style: Style) -> Plan:
        """The plan for one prompt style: a direct prompt has no thinking to cap."""
        if style != "direct":
            return self
        return replace(self, budgets=(None,), max_tokens=min(self.max_tokens, self.answer))

    @property
    def descending(self) -> list[int | None]:
        """The budgets, the largest first (None above all)."""
        return sorted(self.budgets, key=lambda b: math.inf if b is None else b, reverse=True)

    def check(self, template: Template) -> None:
        """Raise BadInput where thinking is capped that the model does not do."""
        if not template.think and any(b is not None for b in self.budgets):
            raise BadInput(
                f"budgets {list(self.budgets)} cap thinking, and this model does not think; set model.think: true"
            )


@dataclass(frozen=True)
class Question:
    """A problem in one prompt style."""

    problem: Problem
    style: Style
    prompt_ids: list[int]


@dataclass(frozen=True)
class Examiner:
    """Asks a model questions and has its answers judged."""

    sampler: Sampler
    template: Template
    pool: Scorer
    spec_of: Callable[[Problem], Any]
    plan: Plan

    async def ask(self, question: Question, on_chain: Callable[[], None] = lambda: None) -> Group:
        """Every chain of one question, scored. Ids are "style/problem id/k", with "/budget" below the largest budget.

        The thinking is sampled once, at the largest budget. A smaller one has a chain of its own only where it changes
        something (`at_budget` tells). `on_chain` is called as each of the k is done. Raises what `collect` raises.
        """

        async def one(k: int) -> list[Chain]:
            chains = await name_problem(question.problem, self._at_budgets(question, k))
            on_chain()
            return chains

        found = await gather_all(one(k) for k in range(self.plan.samples))
        return Group(question.problem, [chain for chains in found for chain in chains], EVAL_STEP)

    async def _at_budgets(self, question: Question, k: int) -> list[Chain]:
        problem, plan, template = question.problem, self.plan.of(question.style), self.template
        seeds = partial(request_seed, plan.seed, EVAL_STEP, problem.id, k)
        score = partial(score_chain, problem=problem, template=template, pool=self.pool, spec=self.spec_of(problem))
        chain_id = f"{question.style}/{problem.id}/{k}"
        params = SamplingParams(plan.max_tokens, template.stop_ids, seed=0, temperature=plan.temperature)
        first, *smaller = plan.descending
        long = await sample_with_budget(
            self.sampler, template, chain_id, problem.id, question.prompt_ids, params, Budget(first, plan.answer), seeds
        )

        async def at(think: int | None) -> Chain | None:
            cap = Budget(think, plan.answer).cap(plan.max_tokens) or 0
            piece = cut_chain(long, template, cap) or long
            chain = await finish_thinking(
                self.sampler, template, piece, replace(params, seed=seeds(2 + cap)), plan.answer
            )
            return None if chain is long else await score(replace(chain, id=f"{chain_id}/{think}"))

        # No verdict is waited for before an answer is asked for: what is batched must not depend on the verifier.
        found = await gather_all([score(long), *(at(think) for think in smaller)])
        return [chain for chain in found if chain is not None]


def make_questions(
    problems: Sequence[Problem],
    template: Template,
    style: Style,
    shots_of: Callable[[Problem], Sequence[Shot]] = lambda problem: (),
) -> list[Question]:
    """Every problem in one prompt style, before anything is sampled. Raises BadInput naming the problem.

    `shots_of(problem)` are the worked examples of a few-shot prompt.
    """
    prompts = encode_prompts(problems, template, style, shots_of)
    return [Question(problem, style, ids) for problem, ids in zip(problems, prompts, strict=True)]


def style_of(group: Group) -> str:
    """The prompt style in which a group's question was asked."""
    return group.chains[0].id.partition("/")[0]


def at_budget(group: Group, budget: int | None) -> Group:
    """A question's chains under one budget, by k: its own, else the longest, which the cap left as it was."""
    start = len(f"{style_of(group)}/{group.problem.id}/")
    places = [(chain.id[start:].partition("/"), chain) for chain in group.chains]
    longest = {k: chain for (k, _, cap), chain in places if not cap}
    own = {k: chain for (k, _, cap), chain in places if cap == str(budget)}
    return replace(group, chains=[own.get(k, chain) for k, chain in longest.items()])
