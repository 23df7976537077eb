"""Thinking budgets: a cap on sampled thinking, the forced close, many caps cut from one long chain, extension."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from rewards.errors import BadInput
from rollout.chain import continue_chain, cut
from rollout.prompt import Template
from rollout.sampling import SamplingParams
from rollout.types import Chain, Sampler

Seeds: TypeAlias = Callable[[int], int]  # of a request, by its segment
MAX_RETRIES = 20  # times in a row that a close is taken back without one more thinking token; then it stands


@dataclass(frozen=True)
class Budget:
    """Sampled thinking tokens before the close is forced (None = no cap), and tokens for the answer behind it."""

    think: int | None
    answer: int

    def cap(self, max_tokens: int) -> int | None:
        """Thinking tokens within `max_tokens` for the whole chain: the answer always keeps its room."""
        if self.think is None:
            return None
        if self.answer >= max_tokens:
            raise BadInput(f"budget.answer={self.answer} leaves no room to think in {max_tokens} tokens; lower it")
        return min(self.think, max_tokens - self.answer)


async def sample_with_budget(
    sampler: Sampler, template: Template, chain: Chain, params: SamplingParams, budget: Budget, seeds: Seeds
) -> Chain:
    """Go on from a bare prompt by at most `params.max_tokens` sampled tokens. The first request asks for no more than
    the cap, so that nothing is thrown away; what is not done then takes another."""
    cap = budget.cap(params.max_tokens)
    if cap is None or not template.opened(chain.token_ids):
        return await continue_chain(sampler, chain, (), replace(params, seed=seeds(0)))
    if cap > 0:
        chain = await continue_chain(sampler, chain, (), replace(params, max_tokens=cap, seed=seeds(0)))
    return await finish_thinking(sampler, template, chain, replace(params, seed=seeds(1)), budget.answer)


async def finish_thinking(
    sampler: Sampler, template: Template, chain: Chain, params: SamplingParams, answer: int
) -> Chain:
    """Bring a chain whose thinking is closed, ended or cut at its cap to an answer of at most `answer` tokens."""
    end = template.close_end(chain)
    if end is None:
        if chain.finish_reason != "length":  # it ended, or was interrupted, inside its thinking: nothing to close
            return chain
        chain = await continue_chain(sampler, chain, template.close_ids, replace(params, max_tokens=answer))
        return replace(chain, finish_reason="forced") if chain.finish_reason == "stop" else chain
    used = sum(chain.sampled[end:])
    if used > answer:
        return cut(chain, len(chain.token_ids) - (used - answer), "length")
    if used == answer or chain.finish_reason != "length":
        return chain
    return await continue_chain(sampler, chain, (), replace(params, max_tokens=answer - used))


def cut_chain(chain: Chain, template: Template, think: int) -> Chain | None:
    """The first `think` sampled thinking tokens of a longer chain, for `finish_thinking`; None where it needs no cut.
    Raises ValueError where the chain was interrupted before."""
    end = template.close_end(chain)
    thought = sum(chain.sampled[chain.prompt_len : end])
    if thought <= think and (end is not None or chain.finish_reason == "stop"):
        return None
    if thought < think:
        raise ValueError(f"chain {chain.id} holds {thought} thinking tokens, too few for a cap of {think}")
    return cut(chain, chain.prompt_len + think, "length")


async def extend_thinking(
    sampler: Sampler,
    template: Template,
    chain: Chain,
    params: SamplingParams,
    budget: Budget,
    seeds: Seeds,
    satisfied: Callable[[str], bool],
    wait_ids: Sequence[int] = (),
) -> Chain:
    """Think on where the policy would stop: its close is replaced by `wait_ids` until `satisfied(thinking text)` holds.
    Then the close that was sampled stands; where the budget is used up first, it is forced. `chain` was sampled under
    this budget or none; `seeds(segment)` seeds the requests, from segment 2 on. What was taken back is in no count."""
    cap = budget.cap(params.max_tokens) or params.max_tokens - budget.answer
    chain = cut_chain(chain, template, cap) or chain
    segment, retries = 2, 0
    while (close := template.close_start(chain)) is not None and retries < MAX_RETRIES:
        if satisfied(template.response_text(cut(chain, close, "length"))):
            break
        chain = cut(chain, close, "length")
        if (room := cap - sum(chain.sampled)) <= 0:
            break
        chain = await continue_chain(sampler, chain, wait_ids, replace(params, max_tokens=room, seed=seeds(segment)))
        segment, retries = segment + 1, retries + 1 if template.close_start(chain) == close + len(wait_ids) else 0
    return await finish_thinking(sampler, template, chain, replace(params, seed=seeds(segment)), budget.answer)
