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
class Budgeted:
    """Samples a chain under a budget `think`: sampled thinking tokens before the close is forced, None = no cap."""

    sampler: Sampler
    template: Template
    seeds: Seeds
    temperature: float
    max_tokens: int  # sampled tokens of the whole chain
    answer: int  # of these, behind a capped thinking

    def cap(self, think: int | None) -> int | None:
        """Thinking tokens within `max_tokens`: the answer always keeps its room."""
        if think is None:
            return None
        if self.answer >= self.max_tokens:
            raise BadInput(f"budget.answer={self.answer} leaves no room to think in {self.max_tokens} tokens; lower it")
        return min(think, self.max_tokens - self.answer)

    async def sample(self, chain: Chain, think: int | None) -> Chain:
        """Go on from a bare prompt. The first request asks for no more than the cap, so that nothing is thrown away;
        what is not done then takes another."""
        cap = self.cap(think)
        if cap is None or not self.template.opened(chain.token_ids):
            return await self._continue(chain, (), 0, self.max_tokens)
        if cap > 0:
            chain = await self._continue(chain, (), 0, cap)
        return await self.finish(chain, 1)

    async def finish(self, chain: Chain, segment: int) -> Chain:
        """Bring a chain whose thinking is closed, ended or cut at its cap to an answer of at most `answer` tokens."""
        end = self.template.close_end(chain)
        if end is None:
            if chain.finish_reason != "length":  # it ended, or was interrupted, inside its thinking: nothing to close
                return chain
            chain = await self._continue(chain, self.template.close_ids, segment, self.answer)
            return replace(chain, finish_reason="forced") if chain.finish_reason == "stop" else chain
        left = self.answer - sum(chain.sampled[end:])
        if left < 0:
            return cut(chain, len(chain.token_ids) + left, "length")
        if left == 0 or chain.finish_reason != "length":
            return chain
        return await self._continue(chain, (), segment, left)

    async def extend(
        self, chain: Chain, think: int | None, satisfied: Callable[[str], bool], wait_ids: Sequence[int] = ()
    ) -> Chain:
        """Think on where the policy would stop: its close is replaced by `wait_ids` until `satisfied(thinking text)`.
        Then the close that was sampled stands; where the budget is used up first, it is forced. `chain` was sampled
        under this budget or none; requests are segments from 2 on. What was taken back is in no count."""
        cap = self.cap(think) or self.max_tokens - self.answer
        chain = cut_chain(chain, self.template, cap) or chain
        segment, retries = 2, 0
        while (close := self.template.close_start(chain)) is not None and retries < MAX_RETRIES:
            if satisfied(self.template.response_text(cut(chain, close, "length"))):
                break
            chain = cut(chain, close, "length")
            if (room := cap - sum(chain.sampled)) <= 0:
                break
            chain = await self._continue(chain, wait_ids, segment, room)
            same = self.template.close_start(chain) == close + len(wait_ids)
            segment, retries = segment + 1, retries + 1 if same else 0
        return await self.finish(chain, segment)

    async def _continue(self, chain: Chain, append_ids: Sequence[int], segment: int, max_tokens: int) -> Chain:
        params = SamplingParams(max_tokens, self.template.stop_ids, self.seeds(segment), self.temperature)
        return await continue_chain(self.sampler, chain, append_ids, params)


def cut_chain(chain: Chain, template: Template, think: int) -> Chain | None:
    """The first `think` sampled thinking tokens of a longer chain, for `Budgeted.finish`; None where it needs no cut.
    Raises ValueError where the chain was interrupted before."""
    end = template.close_end(chain)
    thought = sum(chain.sampled[chain.prompt_len : end])
    if thought <= think and (end is not None or chain.finish_reason == "stop"):
        return None
    if thought < think:
        raise ValueError(f"chain {chain.id} holds {thought} thinking tokens, too few for a cap of {think}")
    return cut(chain, chain.prompt_len + think, "length")
