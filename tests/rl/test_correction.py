"""Weights for the gap between sampler and learner: each mode by hand, by a slow loop, and on a policy that is known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.correction import CORRECTIONS, correct
from rl.losses import Tokens

# Two chains: log old/sampler of 0, ln 1.5, ln 8 | ln 0.4, -0.005, and a token that the sampler has no logprob of.
GAPS = [0.0, math.log(1.5), math.log(8.0), math.log(0.4), -0.005, math.nan]
CHAINS = [0, 0, 0, 1, 1, 1]
FIRST, SECOND = 1.5 * 8, 0.4 * math.exp(-0.005)  # products
BY_HAND: dict[str, tuple[list[float], int, int]] = {  # weights, how many were cut, how many left out
    "none": ([1.0, 1.0, 1.0, 1.0, 1.0], 0, 0),
    "token": ([1.0, 1.5, 2.0, 0.4, math.exp(-0.005)], 1, 0),
    "token_mask": ([1.0, 1.5, 0.0, 0.0, math.exp(-0.005)], 0, 2),
    "sequence": ([2.0, 2.0, 2.0, SECOND, SECOND], 3, 0),
    "sequence_mask": ([0.0, 0.0, 0.0, 0.0, 0.0], 0, 5),
    "geometric": ([0.0, 0.0, 0.0, 0.0, 0.0], 1, 5),
}


def tokens(gaps: list[float], chains: list[int]) -> Tokens:
    sampler = torch.full((len(gaps),), -2.0, dtype=torch.float64)
    gap = torch.tensor(gaps, dtype=torch.float64)
    old = (sampler + torch.nan_to_num(gap)).requires_grad_()
    sampler = torch.where(torch.isnan(gap), math.nan, sampler)
    return Tokens(old, old, sampler, sampler, torch.isfinite(sampler), torch.tensor(chains))


@pytest.mark.parametrize("mode", CORRECTIONS)
def test_hand_worked(mode: str) -> None:
    weights, truncated, rejected = BY_HAND[mode]
    correction = correct(mode, tokens(GAPS, CHAINS))
    torch.testing.assert_close(correction.weights[:5], torch.tensor(weights, dtype=torch.float64))
    assert not correction.weights.requires_grad
    assert torch.isfinite(correction.weights).all()
    found = {name: float(value) for name, value in correction.metrics.items()}
    want = {"weight": sum(weights), "truncated": truncated, "rejected": rejected}
    assert found == ({} if mode == "none" else pytest.approx(want))


def test_none_is_all_ones_and_every_mode_is_on_policy() -> None:
    for mode in CORRECTIONS:
        assert correct(mode, tokens([0.0] * 4, [0, 0, 1, 1])).weights.tolist() == [1.0] * 4
    assert set(BY_HAND) == set(CORRECTIONS)


def test_the_geometric_mask_is_for_drift_not_for_noise() -> None:
    """Noise around 0 stays, weighed token by token; a steady gap of 0.02 a token leaves out its whole chain alone."""
    noisy, drifted = [0.3, -0.29, 0.01, -0.02], [0.02] * 4
    weights = correct("geometric", tokens(noisy + drifted, [0] * 4 + [1] * 4)).weights
    torch.testing.assert_close(weights[:4], torch.tensor(noisy, dtype=torch.float64).exp())
    assert weights[4:].tolist() == [0.0] * 4


def slow(mode: str, gaps: list[float], chains: list[int]) -> list[float]:
    out = []
    for gap, chain in zip(gaps, chains, strict=True):
        own = [g for g, c in zip(gaps, chains, strict=True) if c == chain]
        token, product, mean = math.exp(gap), math.exp(sum(own)), math.exp(sum(own) / len(own))
        out.append({
            "none": 1.0,
            "token": min(token, 2.0),
            "token_mask": token if 0.5 <= token <= 2 else 0.0,
            "sequence": min(product, 2.0),
            "sequence_mask": product if 0.5 <= product <= 2 else 0.0,
            "geometric": min(token, 2.0) if 0.99 <= mean <= 1.01 else 0.0,
        }[mode])  # fmt: skip
    return out


@pytest.mark.parametrize("mode", CORRECTIONS)
@given(st.lists(st.tuples(st.floats(-1.5, 1.5), st.integers(0, 3)), min_size=1, max_size=10), st.booleans())
def test_equals_a_slow_loop(mode: str, rows: list[tuple[float, int]], small: bool) -> None:
    gaps, chains = [gap / (100 if small else 1) for gap, _ in rows], [chain for _, chain in rows]
    want = torch.tensor(slow(mode, gaps, chains), dtype=torch.float64)
    torch.testing.assert_close(correct(mode, tokens(gaps, chains)).weights, want)


@pytest.mark.parametrize("mode", CORRECTIONS)
def test_missing_and_absurd_logprobs_stay_out_of_the_others(mode: str) -> None:
    """A masked token moves no chain's ratio; a gap of 500 nats gives no infinity."""
    gaps, chains = [0.001, 0.002, -0.001], [0, 0, 1]
    alone = correct(mode, tokens(gaps, chains))
    beside = correct(mode, tokens([*gaps, math.nan, math.nan], [*chains, 0, 1]))
    torch.testing.assert_close(beside.weights[:3], alone.weights)
    assert beside.metrics == alone.metrics
    assert torch.isfinite(correct(mode, tokens([500.0, -500.0], [0, 1])).weights).all()


POLICY, SAMPLER, REWARD = (
    torch.tensor(values, dtype=torch.float64)
    for values in ([0.3, 0.1, 0.2, 0.15, 0.25], [0.25, 0.15, 0.15, 0.2, 0.25], [1.0, 5.0, -2.0, 0.0, 3.0])
)


def drawn(policy: Tensor) -> Tokens:
    """One chain for each of five tokens that the sampler can draw."""
    return Tokens(policy.log(), policy.log(), SAMPLER.log(), REWARD, torch.ones(5, dtype=torch.bool), torch.arange(5))


@pytest.mark.parametrize("mode", ["token", "token_mask", "sequence", "sequence_mask"])
def test_weights_correct_the_expectation(mode: str) -> None:
    """Under the sampler, weight x value averages to the old policy's mean, where no bound is reached."""
    weights = correct(mode, drawn(POLICY)).weights
    torch.testing.assert_close((SAMPLER * weights * REWARD).sum(), (POLICY * REWARD).sum())


def test_a_cap_biases_towards_the_sampler_and_bounds_the_weight() -> None:
    far = torch.tensor([0.02, 0.9, 0.02, 0.02, 0.04], dtype=torch.float64)
    weights = correct("token", drawn(far)).weights
    assert float(weights.max()) == 2.0
    true, plain = (far * REWARD).sum(), (SAMPLER * REWARD).sum()
    assert plain < (SAMPLER * weights * REWARD).sum() < true
