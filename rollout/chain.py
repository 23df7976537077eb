"""Start a chain, continue a chain: the one mechanism behind budgets, extensions, partial rollouts and tool turns.

Whatever intervenes appends ids and samples on from the whole list; nothing is ever re-tokenised.
"""

from collections.abc import Sequence
from dataclasses import replace

from rollout.sampling import SamplingParams
from rollout.types import Chain, Completion, FinishReason, Sampler


def bare_chain(chain_id: str, problem_id: str, prompt_ids: Sequence[int]) -> Chain:
    """A chain of nothing but its prompt: what `continue_chain` starts from."""
    count = len(prompt_ids)
    return Chain(
        id=chain_id,
        problem_id=problem_id,
        token_ids=list(prompt_ids),
        prompt_len=count,
        sampled=[False] * count,
        sampler_logprobs=[0.0] * count,
        versions=[],
        finish_reason="length",
    )


async def continue_chain(sampler: Sampler, chain: Chain, append_ids: Sequence[int], params: SamplingParams) -> Chain:
    """Append ids (not trained) and sample up to `params.max_tokens` more from the whole list."""
    return merge(chain, append_ids, await sampler.sample([*chain.token_ids, *append_ids], params))


def merge(chain: Chain, append_ids: Sequence[int], completion: Completion) -> Chain:
    """`chain` + inserted ids + a completion sampled after them; the score is dropped, which judged another text."""
    start = len(chain.token_ids) + len(append_ids)
    versions = list(chain.versions)
    if completion.token_ids and (not versions or versions[-1][1] != completion.version):
        versions.append((start, completion.version))
    return replace(
        chain,
        token_ids=[*chain.token_ids, *append_ids, *completion.token_ids],
        sampled=[*chain.sampled, *[False] * len(append_ids), *[True] * len(completion.token_ids)],
        sampler_logprobs=[*chain.sampler_logprobs, *[0.0] * len(append_ids), *completion.logprobs],
        versions=versions,
        finish_reason=completion.finish_reason,
        score=None,
    )


def cut(chain: Chain, length: int, finish_reason: FinishReason) -> Chain:
    """The chain's first `length` tokens, prompt included."""
    if not chain.prompt_len <= length <= len(chain.token_ids):
        raise ValueError(f"chain {chain.id}: cannot cut {len(chain.token_ids)} tokens to {length}")
    return replace(
        chain,
        token_ids=chain.token_ids[:length],
        sampled=chain.sampled[:length],
        sampler_logprobs=chain.sampler_logprobs[:length],
        versions=[(start, version) for start, version in chain.versions if start < length],
        finish_reason=finish_reason,
        score=None,
    )
