from __future__ import annotations

import math

import torch

from rl.correction import correct
from rl.losses import Tokens

OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
SAMPLER = torch.tensor([-1.0, -1.0 - math.log(1.5), -9.0, math.nan])


def tokens(old: torch.Tensor, sampler: torch.Tensor) -> Tokens:
    return Tokens(old, old, sampler, old, torch.isfinite(sampler), torch.zeros(len(old), dtype=torch.long))


def test_none_is_all_ones() -> None:
    correction = correct("none", tokens(OLD, SAMPLER))
    assert (correction.weights.tolist(), correction.metrics) == ([1.0] * 4, {})


def test_token_weights_are_ratios_capped_and_detached() -> None:
    correction = correct("token", tokens(OLD, SAMPLER))
    torch.testing.assert_close(correction.weights[:3], torch.tensor([1.0, 1.5, 2.0]))
    assert not correction.weights.requires_grad
    assert {k: float(v) for k, v in correction.metrics.items()} == {"rejected": 0, "truncated": 1, "weight": 4.5}


def test_weights_correct_the_expectation() -> None:
    """Under the sampler, weight x value averages to the old policy's mean wherever the cap is not reached."""
    sampler, old = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.3, 0.7]).double()
    weights = correct("token", tokens(old.log(), sampler.log())).weights
    torch.testing.assert_close((sampler * weights * torch.tensor([1.0, 5.0])).sum(), torch.tensor(0.3 + 3.5).double())
