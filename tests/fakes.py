"""Fakes of the seams: a sampler with a script or a toy language model, a scorer, and a word-level tokenizer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewards.errors import BadInput
from rewards.types import Extras, Problem, Score
from rollout.sampling import SamplingParams
from rollout.types import Completion, FinishReason

Script = Callable[[list[int], SamplingParams], Sequence[int]]

WORDS = ["<pad>", "<bos>", "<eos>", "<think>", "</think>", *"+-*()=.!,:?", *map(str, range(50))]


class FakeSampler:
    """A rollout.types.Sampler in memory.

    With a script: `script(prompt_ids, params)` says what comes, cut at stop ids and max_tokens, log-probabilities -0.5.
    Without: a Markov chain whose next-token logits [vocab] are a fixed random row of the last token.
    """

    def __init__(self, script: Script | None = None, *, vocab: int = 16, context: int = 1024, version: int = 0) -> None:
        self.script = script
        self.context = context
        self.version = version
        self.table = np.random.default_rng(0).normal(size=(vocab, vocab)) * 2
        self.requests: list[tuple[list[int], SamplingParams]] = []
        self.closed = False

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        if not prompt_ids:
            raise BadInput("the prompt is empty")
        if len(prompt_ids) + params.max_tokens > self.context:
            raise BadInput(f"{len(prompt_ids)} + {params.max_tokens} tokens do not fit the context of {self.context}")
        assert params.plain, "the fake knows no truncation and no penalties"
        self.requests.append((list(prompt_ids), params))
        await asyncio.sleep(0)
        if self.script is not None:
            ids = list(self.script(list(prompt_ids), params))
            logprobs = [-0.5] * len(ids)
        else:
            ids, logprobs = self._draw(prompt_ids[-1], params)
        return self._completion(ids, logprobs, params)

    async def aclose(self) -> None:
        self.closed = True

    def logprobs(self, last: int, temperature: float) -> np.ndarray:
        """Log-probabilities [vocab] of the token after `last`."""
        logits = self.table[last] / (temperature or 1.0)
        logits -= logits.max()
        return logits - np.log(np.exp(logits).sum())

    def _draw(self, last: int, params: SamplingParams) -> tuple[list[int], list[float]]:
        rng = np.random.default_rng(params.seed)
        ids: list[int] = []
        logprobs: list[float] = []
        for u in rng.random(params.max_tokens):
            distribution = self.logprobs(last, params.temperature)
            cumulative = np.exp(distribution).cumsum()
            drawn = distribution.argmax() if params.temperature == 0 else (cumulative <= u * cumulative[-1]).sum()
            last = int(drawn)
            ids.append(last)
            logprobs.append(float(distribution[last]))
        return ids, logprobs

    def _completion(self, ids: list[int], logprobs: list[float], params: SamplingParams) -> Completion:
        stops = [t for t, token in enumerate(ids) if token in params.stop_ids]
        end = min([params.max_tokens, *(t + 1 for t in stops)])
        assert len(ids) >= end, f"the script ran dry after {len(ids)} of {params.max_tokens} tokens"
        reason: FinishReason = "stop" if stops and stops[0] + 1 == end else "length"
        return Completion(ids[:end], logprobs[:end], reason, self.version)


class FakePool:
    """A scorer in the process: `judge(response, problem)` says whether it is correct. Keeps what it was asked."""

    def __init__(self, judge: Callable[[str, Problem], bool] = lambda response, problem: True) -> None:
        self.judge = judge
        self.asked: list[tuple[str, str, bool]] = []  # (chain id, response, truncated)

    async def score(
        self,
        chain_id: str,
        response: str,
        problem: Problem,
        spec: Any,
        truncated: bool = False,
        extras: Extras | None = None,
    ) -> Score:
        self.asked.append((chain_id, response, truncated))
        await asyncio.sleep(0)
        if truncated:
            return Score(0.0, False, "truncated", id=chain_id)
        correct = self.judge(response, problem)
        return Score(float(correct), correct, "ok" if correct else "wrong", id=chain_id)


def word_tokenizer(words: Sequence[str] = WORDS, *, unk: str | None = None, **special: Any) -> Any:
    """A word-level tokenizer, words divided by blanks; `<think>` and `</think>` are tokens. Ids are positions."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate([*words, *([unk] if unk else [])])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unk) if unk else models.WordLevel(vocab))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    specials = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": unk} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
