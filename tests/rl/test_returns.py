"""Advantages of tokens: GAE, packed against padded, whitening, and the global norm of REINFORCE++."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.advantages import ADVANTAGES, Outcome, gae, global_norm, whiten


def outcome(
    rewards: list[float], lengths: list[int], values: list[float] | None = None, penalties: list[float] | None = None,
    gamma: float = 1.0, lam: float = 1.0,
) -> Outcome:  # fmt: skip
    def float64(numbers: list[float]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float64)

    total = float64(rewards)
    ids = torch.repeat_interleave(torch.tensor(lengths, dtype=torch.long))
    return Outcome(
        total, torch.arange(len(rewards)), ids, float64(penalties or [0.0] * len(ids)), total[:, None],
        values=None if values is None else float64(values), gamma=gamma, lam=lam,
    )  # fmt: skip


def test_gae_by_hand() -> None:
    """Rewards 1 and 0 at the ends of two tokens and one; gamma 0.5, lambda 0.5.

    delta_1 = 0 + 0.5 * 0.4 - 0.6 = -0.4; delta_2 = 1 - 0.4 = 0.6, nothing after the end; A_1 = -0.4 + 0.25 * 0.6."""
    got = gae(outcome([1.0, 0.0], [2, 1], [0.6, 0.4, 0.3], gamma=0.5, lam=0.5))
    torch.testing.assert_close(got, torch.tensor([-0.25, 0.6, -0.3], dtype=torch.float64))


def test_penalties_lie_on_their_tokens() -> None:
    """Without a critic at gamma 1 the advantage is the reward less the penalties from here on; REINFORCE++ eq. 8."""
    got = gae(outcome([1.0, 2.0], [3, 1], penalties=[0.1, 0.2, 0.3, 0.5]))
    torch.testing.assert_close(got, torch.tensor([0.4, 0.5, 0.7, 1.5], dtype=torch.float64))


def test_global_norm_by_hand() -> None:
    """Returns of the tokens 1, 1, 0: mean 2/3, std sqrt(1/3). A longer chain counts by its tokens."""
    got = global_norm(outcome([1.0, 0.0], [2, 1]))
    third = 1 / 3 / (math.sqrt(1 / 3) + 1e-8)
    torch.testing.assert_close(got, torch.tensor([third, third, -2 * third], dtype=torch.float64))


def test_whiten_by_hand() -> None:
    torch.testing.assert_close(whiten(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))
    for alike in ([0.1 + 0.2, 0.3, 0.3], [5.0], [0.0, 0.0]):
        assert whiten(torch.tensor(alike, dtype=torch.float64)).tolist() == [0.0] * len(alike)


@given(st.lists(st.floats(-100, 100), min_size=3, max_size=30))
def test_whitened_has_mean_0_and_std_1(numbers: list[float]) -> None:
    values = torch.tensor(numbers, dtype=torch.float64)
    got = whiten(values)
    if float(values.std()) > 1e-3:
        assert float(got.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(got.std()) == pytest.approx(1.0, abs=1e-4)
        torch.testing.assert_close(whiten(values * 3 + 7), got, atol=1e-4, rtol=1e-4)


CHAINS = st.lists(
    st.tuples(st.floats(-2, 2), st.lists(st.tuples(st.floats(-2, 2), st.floats(0, 1)), min_size=1, max_size=6)),
    min_size=1, max_size=5,
)  # fmt: skip


def slow_gae(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Eq. 16 itself: the sum over l of (gamma lam)^l delta_t+l, chain by chain; behind the end the value is 0."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * later - v for r, v, later in zip(rewards, values, after, strict=True)]
    return [math.fsum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


@given(CHAINS, st.floats(0.1, 1), st.floats(0, 1))
def test_gae_equals_a_slow_loop(
    chains: list[tuple[float, list[tuple[float, float]]]], gamma: float, lam: float
) -> None:
    want: list[float] = []
    for reward, tokens in chains:
        received = [-p for _, p in tokens]
        received[-1] += reward
        want += slow_gae(received, [v for v, _ in tokens], gamma, lam)
    given_ = outcome(
        [r for r, _ in chains], [len(tokens) for _, tokens in chains], [v for _, tokens in chains for v, _ in tokens],
        [p for _, tokens in chains for _, p in tokens], gamma, lam,
    )  # fmt: skip
    torch.testing.assert_close(gae(given_), torch.tensor(want, dtype=torch.float64), atol=1e-9, rtol=0)


def padded_gae(rewards: Tensor, values: Tensor, sampled: Tensor, gamma: float, lam: float) -> Tensor:
    """As trainers with padding do it, [B, T] with holes: a masked position hands on what it was given."""
    out, ahead, following = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        here = sampled[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        out[:, t] = torch.where(here, delta + gamma * lam * ahead, 0.0)
        ahead, following = torch.where(here, out[:, t], ahead), torch.where(here, values[:, t], following)
    return out


@given(st.integers(0, 10_000), st.floats(0.1, 1), st.floats(0, 1))
def test_packed_and_padded_agree_across_inserted_tokens(seed: int, gamma: float, lam: float) -> None:
    """Holes in the middle (a forced close, a tool's answer) and padding behind: deltas are on sampled tokens alone."""
    generator = torch.Generator().manual_seed(seed)
    sampled = torch.rand(4, 9, generator=generator) < 0.6
    sampled[:, 2] = True  # each chain has a sampled token
    values = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    reward = torch.randn(4, generator=generator, dtype=torch.float64)
    last = torch.stack([row.nonzero().max() for row in sampled])
    rewards = torch.zeros(4, 9, dtype=torch.float64).index_put((torch.arange(4), last), reward)
    want = padded_gae(rewards, torch.where(sampled, values, 1e9), sampled, gamma, lam)
    ids = torch.arange(4)[:, None].expand(4, 9)[sampled]
    packed = Outcome(
        reward, torch.arange(4), ids, torch.zeros(len(ids), dtype=torch.float64), reward[:, None],
        values=values[sampled], gamma=gamma, lam=lam,
    )  # fmt: skip
    torch.testing.assert_close(gae(packed), want[sampled], atol=1e-9, rtol=0)


def test_the_end_is_an_end_also_at_the_length_cap() -> None:
    """No bootstrap: whatever the critic thinks of the last state, the last token's delta is reward - value."""
    for value in (0.0, 0.7, -3.0):
        assert float(gae(outcome([1.0], [1], [value]))[-1]) == pytest.approx(1.0 - value)
        assert float(gae(outcome([0.0, 1.0], [2, 1], [0.2, value, 0.0]))[1]) == pytest.approx(-value)


def test_lambda_1_is_the_return_less_the_value_and_lambda_0_one_step() -> None:
    values = [0.5, 0.1, 0.9]
    whole = gae(outcome([2.0], [3], values))
    torch.testing.assert_close(whole, 2.0 - torch.tensor(values, dtype=torch.float64))
    one = gae(outcome([2.0], [3], values, lam=0.0))
    torch.testing.assert_close(one, torch.tensor([0.1 - 0.5, 0.9 - 0.1, 2.0 - 0.9], dtype=torch.float64))


def test_a_perfect_critic_leaves_nothing() -> None:
    assert gae(outcome([1.0, 0.0], [2, 2], [1.0, 1.0, 0.0, 0.0])).tolist() == [0.0] * 4


def test_global_norm_needs_no_group_and_equal_rewards_give_zero() -> None:
    rewards = [0.1 + 0.2, 0.3, 0.3]
    assert global_norm(outcome(rewards, [2, 1, 4])).tolist() == [0.0] * 7
    assert global_norm(outcome([1.0], [3])).tolist() == [0.0] * 3
    one = outcome([1.0, 0.0, 0.5], [2, 1, 4])
    torch.testing.assert_close(global_norm(one), global_norm(replace(one, group_ids=torch.tensor([7, 7, 7]))))
    moved = replace(one, rewards=one.rewards * 5 - 3)
    torch.testing.assert_close(global_norm(moved), global_norm(one))


def test_nothing_is_nothing() -> None:
    for estimator in ADVANTAGES.values():
        assert estimator(outcome([], [])).tolist() == []
