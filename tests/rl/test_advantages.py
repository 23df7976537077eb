from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.advantages import Outcome, group_norm


def outcome(rewards: list[float], groups: list[int]) -> Outcome:
    """Chains of one token each, without penalties."""
    values = torch.tensor(rewards, dtype=torch.float64)
    ids = torch.arange(len(rewards))
    return Outcome(values, torch.tensor(groups), ids, torch.zeros_like(values), values[:, None])


def test_hand_worked() -> None:
    rewards, groups = [1.0, 0.0, 0.0, 1.0, 5.0, 7.0], [3, 3, 3, 3, 9, 9]
    # group 3: mean 0.5, variance 4 * 0.25 / 3, std 0.57735; group 9: mean 6, std sqrt(2)
    first, second = 0.5 / (math.sqrt(1 / 3) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    expected = torch.tensor([first, -first, -first, first, -second, second], dtype=torch.float64)
    torch.testing.assert_close(group_norm(outcome(rewards, groups)), expected)


def slow_group_norm(rewards: list[float], groups: list[int]) -> list[float]:
    out = []
    for reward, group in zip(rewards, groups, strict=True):
        members = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mean = math.fsum(members) / len(members)
        std = math.sqrt(math.fsum((r - mean) ** 2 for r in members) / (len(members) - 1)) if len(members) > 1 else 0.0
        out.append(0.0 if std < 1e-6 else (reward - mean) / (std + 1e-4))
    return out


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, -3.0]), st.integers(0, 3)), min_size=1, max_size=20))
def test_equals_a_slow_loop_and_centres_each_group(pairs: list[tuple[float, int]]) -> None:
    rewards, groups = [r for r, _ in pairs], [g for _, g in pairs]
    got = group_norm(outcome(rewards, groups))
    torch.testing.assert_close(got, torch.tensor(slow_group_norm(rewards, groups), dtype=torch.float64))
    for group in set(groups):
        assert abs(got[torch.tensor(groups) == group].sum()) < 1e-9


@pytest.mark.parametrize("values", [[0.1 + 0.2, 0.3, 0.3], [12345.678] * 7, [1.0, 1.0], [0.7]])
def test_equal_rewards_give_exactly_zero(values: list[float]) -> None:
    assert group_norm(outcome(values, [0] * len(values))).tolist() == [0.0] * len(values)
