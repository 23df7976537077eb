"""The Chain contract: lengths, counts and versions of tokens."""

from __future__ import annotations

import pytest

from rewards.types import Score
from rollout.types import Chain


def make(**changes: object) -> Chain:
    fields = {
        "id": "1/p/0",
        "problem_id": "p",
        "token_ids": [1, 2, 3, 4, 5, 6],
        "prompt_len": 2,
        "sampled": [False, False, True, False, True, True],
        "sampler_logprobs": [0.0, 0.0, -1.0, 0.0, -2.0, -3.0],
        "versions": [(2, 7), (4, 8)],
        "finish_reason": "stop",
    }
    return Chain(**(fields | changes))  # type: ignore[arg-type]


def test_counts_what_was_sampled_and_inserted() -> None:
    chain = make()
    assert chain.response_ids == [3, 4, 5, 6]
    assert (chain.sampled_count, chain.inserted_count) == (3, 1)


def test_versions_of_tokens_skip_what_was_not_sampled() -> None:
    assert make().token_versions() == [-1, -1, 7, -1, 8, 8]
    assert make(versions=[(2, 7)]).token_versions() == [-1, -1, 7, -1, 7, 7]
    assert make(sampled=[False] * 6, versions=[]).token_versions() == [-1] * 6


@pytest.mark.parametrize(
    "wrong", [{"sampled": [True]}, {"sampler_logprobs": []}, {"prompt_len": 7}, {"prompt_len": -1}]
)
def test_lengths_that_differ_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="chain 1/p/0"):
        make(**wrong)


def test_scoring_leaves_the_rest() -> None:
    score = Score(1.0, True, "ok")
    assert make().with_score(score) == make(score=score)
