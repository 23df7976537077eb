"""Start a chain, continue a chain: the one mechanism behind budgets, extensions, partial rollouts and tool turns.
Whatever intervenes appends ids and samples on from the whole list; nothing is ever re-tokenised."""

from collections.abc import Sequence
from dataclasses import replace

from rollout.sampling import SamplingParams
from rollout.types import Chain, Completion, FinishReason, Sampler


def bare_chain(chain_id: str, problem_id: str, prompt_ids: Sequence[int]) -> Chain:
    """A chain of nothing but its prompt: what `continue_chain` starts from."""
    count = len(prompt_ids)
    return Chain(chain_id, problem_id, list(prompt_ids), count, [False] * count, [0.0] * count, [], "length")


async def continue_chain(sampler: Sampler, chain: Chain, append_ids: Sequence[int], params: SamplingParams) -> Chain:
    """Append ids (not trained) and sample up to `params.max_tokens` more from the whole list."""
    return merge(chain, append_ids, await sampler.sample([*chain.token_ids, *append_ids], params))


def merge(chain: Chain, append_ids: Sequence[int], completion: Completion) -> Chain:
    """`chain` + inserted ids + a completion sampled after them; the score is dropped, which judged another text."""
    versions, gap, made = list(chain.versions), len(append_ids), completion.token_ids
    if made and (not versions or versions[-1][1] != completion.version):
        versions.append((len(chain.token_ids) + gap, completion.version))
    ids = [*chain.token_ids, *append_ids, *made]
    sampled = [*chain.sampled, *[False] * gap, *[True] * len(made)]
    logprobs = [*chain.sampler_logprobs, *[0.0] * gap, *completion.logprobs]
    reason = completion.finish_reason
    return Chain(chain.id, chain.problem_id, ids, chain.prompt_len, sampled, logprobs, versions, reason)


def cut(chain: Chain, length: int, finish_reason: FinishReason) -> Chain:
    """The chain's first `length` tokens, prompt included."""
    if not chain.prompt_len <= length <= len(chain.token_ids):
        raise ValueError(f"chain {chain.id}: cannot cut {len(chain.token_ids)} tokens to {length}")
    lists = {name: getattr(chain, name)[:length] for name in ("token_ids", "sampled", "sampler_logprobs")}
    versions = [(start, version) for start, version in chain.versions if start < length]
    return replace(chain, **lists, versions=versions, finish_reason=finish_reason, score=None)
