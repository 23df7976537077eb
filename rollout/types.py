"""The rollout's data contracts: what a sampler answers, and the Chain that everything downstream reads. T = tokens of
one chain, prompt included. Ids go in and come out as ids: text is never re-tokenised."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, TypeAlias

from rewards.types import Problem, Score
from rollout.sampling import SamplingParams

FinishReason: TypeAlias = Literal["stop", "length", "forced", "abort", "error"]
"""stop: a stop id was sampled. length: a token cap cut the chain. forced: a budget closed the thinking and a stop id
ended the answer after it (cut there too, it is `length`). abort: interrupted by us. error: the sampler failed."""


@dataclass(frozen=True)
class Completion:
    """One sampler call's answer. N = tokens sampled, the stop id included (it is trained, also when pad == eos)."""

    token_ids: list[int]  # [N], e.g. [17, 4, 2]
    logprobs: list[float]  # [N], ln p of each sampled token at the request's temperature
    finish_reason: FinishReason
    version: int  # of the weights that made these tokens


@dataclass(frozen=True)
class Chain:
    """The only sample type: one prompt with everything sampled or inserted after it."""

    id: str  # "step/problem id/k"; in an evaluation "prompt style/problem id/k", and "/budget" below the largest
    problem_id: str
    token_ids: list[int]  # [T], prompt first
    prompt_len: int
    sampled: list[bool]  # [T], False for the prompt and whatever was inserted (forced close, "wait", tool output)
    sampler_logprobs: list[float]  # [T], 0.0 where not sampled
    versions: list[tuple[int, int]]  # (first token index, weight version), ascending
    finish_reason: FinishReason
    score: Score | None = None

    def __post_init__(self) -> None:
        lengths = [len(self.token_ids), len(self.sampled), len(self.sampler_logprobs)]
        if len(set(lengths)) != 1 or not 0 <= self.prompt_len <= lengths[0]:
            raise ValueError(f"chain {self.id}: lists of {lengths} tokens and a prompt of {self.prompt_len} do not fit")

    @property
    def response_ids(self) -> list[int]:
        """Everything after the prompt, [T - prompt_len]."""
        return self.token_ids[self.prompt_len :]

    @property
    def sampled_count(self) -> int:
        """Tokens that the policy chose: what is trained."""
        return sum(self.sampled)

    @property
    def inserted_count(self) -> int:
        """Tokens after the prompt that the policy did not choose; above 0 where a budget closed the thinking."""
        return len(self.token_ids) - self.prompt_len - self.sampled_count

    def token_versions(self) -> list[int]:
        """The version of each token, [T]; -1 where nothing was sampled."""
        out = [-1] * len(self.token_ids)
        for start, version in self.versions:  # each holds up to the next
            out[start:] = [version] * (len(out) - start)
        return [version if sampled else -1 for version, sampled in zip(out, self.sampled, strict=True)]

    def with_score(self, score: Score) -> Self:
        return replace(self, score=score)


@dataclass(frozen=True)
class Group:
    """All chains of one problem in one step: what a group baseline is taken over."""

    problem: Problem
    chains: list[Chain]  # [group_size]
    step: int = 0

    @property
    def judged(self) -> list[tuple[Chain, Score]]:
        """The samples that neither errored nor were skipped, with their verdicts."""
        return [(chain, chain.score) for chain in self.chains if chain.score is not None and chain.score.counts]


class Sampler(Protocol):
    """Whatever continues a list of ids: the vLLM client, transformers, or a fake. One contract test for all."""

    version: int  # label of the weights now serving, -1 before the first push

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Raises BadInput where the prompt is empty or beyond the context, ServerDown (rollout.client) for good."""

    async def aclose(self) -> None: ...
