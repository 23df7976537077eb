"""Problems x samples -> scored groups, in training and evaluation: every chain at once, scored as soon as it is done.
Of several thinking budgets the largest is sampled; smaller ones cut it and answer anew, so that they are paired."""

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, Self, TypeVar

from rewards.errors import BadInput
from rewards.types import Extras, Problem, Score
from rollout.budget import Budgeted, cut_chain
from rollout.chain import bare_chain
from rollout.prompt import Shot, Style, Template
from rollout.sampling import request_seed
from rollout.types import Chain, Group, Sampler

T = TypeVar("T")

EVAL_STEP = 0  # of an evaluation's request seeds, ids and groups: training steps count from 1


class Scorer(Protocol):
    """What judges responses as `rewards.pool.RewardPool` does."""

    async def score(self, *args: Any, **kwargs: Any) -> Score: ...


@dataclass(frozen=True)
class Plan:
    """What the chains of a problem depend on, beside the model, the prompt and the step."""

    samples: int  # chains a problem
    temperature: float
    budgets: tuple[int | None, ...]  # caps on thinking tokens, distinct; None = no cap
    max_tokens: int  # sampled tokens of a chain
    answer: int  # of these, behind a capped thinking; all that a direct prompt gets
    seed: int

    def of(self, style: Style) -> Self:
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
            raise BadInput(f"budgets {list(self.budgets)} cap thinking, and model.think is false: it does not think")


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
    spec_of: Callable[[Problem], Any]  # the reward spec given to the pool
    plan: Plan
    step: int = EVAL_STEP

    async def ask(self, question: Question, on_chain: Callable[[], None] = lambda: None) -> Group:
        """Every chain of one question, scored; `on_chain` is called as each of the k samples is done. Ids are
        "step/problem id/k", in an evaluation "style/problem id/k", with "/budget" below the largest budget: a smaller
        one has a chain of its own only where it changes something. Raises what `collect` raises."""
        with naming(question.problem):
            found = await gather_all(self._at_budgets(question, k, on_chain) for k in range(self.plan.samples))
        return Group(question.problem, [chain for chains in found for chain in chains], self.step)

    async def _at_budgets(self, question: Question, k: int, on_chain: Callable[[], None]) -> list[Chain]:
        problem, plan, template = question.problem, self.plan.of(question.style), self.template
        seeds = partial(request_seed, plan.seed, self.step, problem.id, k)
        score = partial(
            score_chain, problem=problem, template=template, pool=self.pool, spec=self.spec_of(problem), step=self.step
        )
        asked = Budgeted(self.sampler, template, seeds, plan.temperature, plan.max_tokens, plan.answer)
        first, *smaller = plan.descending
        bare = bare_chain(f"{self.step or question.style}/{problem.id}/{k}", problem.id, question.prompt_ids)
        long = await asked.sample(bare, first)

        async def at(think: int | None) -> Chain | None:
            cap = asked.cap(think) or 0
            chain = await asked.finish(cut_chain(long, template, cap) or long, segment=2 + cap)
            return None if chain is long else await score(replace(chain, id=f"{long.id}/{think}"))

        # No verdict is waited for before an answer is asked for: what is batched must not depend on the verifier.
        found = await gather_all([score(long), *(at(think) for think in smaller)])
        on_chain()
        return [chain for chain in found if chain is not None]


async def collect(
    problems: Sequence[Problem], examiner: Examiner, style: Style = "cot", on_chain: Callable[[], None] = lambda: None
) -> list[Group]:
    """Sample and score every chain of each problem; groups and chains in order. Raises BadInput naming the problem
    whose prompt is refused, rollout.client.ServerDown; the rest is cancelled then."""
    return await gather_all(examiner.ask(q, on_chain) for q in make_questions(problems, examiner.template, style))


def make_questions(
    problems: Sequence[Problem],
    template: Template,
    style: Style,
    shots_of: Callable[[Problem], Sequence[Shot]] = lambda problem: (),
) -> list[Question]:
    """Every problem in one prompt style, behind its worked examples. Raises BadInput naming the problem."""
    questions = []
    for problem in problems:
        with naming(problem):
            questions.append(Question(problem, style, template.encode(problem.prompt, style, shots_of(problem))))
    return questions


async def score_chain(
    chain: Chain, problem: Problem, *, template: Template, pool: Scorer, spec: Any, step: int = EVAL_STEP
) -> Chain:
    """The chain with the pool's verdict; cut by the cap, or ended inside its thinking, it counts as truncated."""
    truncated = chain.finish_reason == "length" or template.unclosed(chain)
    thought = sum(chain.sampled[chain.prompt_len : template.close_start(chain)])
    extras = Extras(chain.response_ids, step, thought)
    score = await pool.score(chain.id, template.response_text(chain), problem, spec, truncated, extras)
    return chain.with_score(score)


@contextlib.contextmanager
def naming(problem: Problem) -> Iterator[None]:
    """A BadInput from within comes to name the problem."""
    try:
        yield
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
