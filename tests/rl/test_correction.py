from __future__ import annotations

import math

import torch

from rl.correction import no_correction, token_correction, usable

OLD = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
SAMPLER = torch.tensor([-1.0, -1.0 - math.log(1.5), -9.0, math.nan])


def test_none_is_all_ones() -> None:
    weights, metrics = no_correction(OLD, SAMPLER)
    assert (weights.tolist(), metrics) == ([1.0] * 4, {})
    assert usable(SAMPLER, "none").all()


def test_token_weights_are_ratios_capped_and_detached() -> None:
    weights, metrics = token_correction(OLD, SAMPLER, maximum=2.0)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.5, 2.0, 0.0]))
    assert not weights.requires_grad
    assert {name: float(value) for name, value in metrics.items()} == {"missing": 1, "truncated": 1, "weight": 4.5}


def test_a_token_without_sampler_logprob_is_not_trained() -> None:
    assert usable(SAMPLER, "token").tolist() == [True, True, True, False]
    weights, _ = token_correction(OLD, torch.full((4,), -math.inf))
    assert weights.tolist() == [0.0] * 4


def test_weights_correct_the_expectation() -> None:
    """Under the sampler, weight x value averages to the old policy's mean wherever the cap is not reached."""
    sampler, old = torch.tensor([0.5, 0.5]).double(), torch.tensor([0.3, 0.7]).double()
    weights, _ = token_correction(old.log(), sampler.log())
    torch.testing.assert_close((sampler * weights * torch.tensor([1.0, 5.0])).sum(), torch.tensor(0.3 + 3.5).double())
