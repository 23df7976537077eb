"""Advantages: each by hand, against a slow loop, and by what must hold; those of a group. Tokens': test_returns.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.advantages import (
    ADVANTAGES,
    Outcome,
    group_mean,
    group_mean_batch_std,
    group_norm,
    leave_one_out,
    mean_norm,
    parts_norm,
)


def outcome(
    rewards: list[float],
    groups: list[int],
    parts: list[list[float]] | None = None,
    part_weights: list[float] | None = None,
    penalties: list[float] | None = None,
) -> Outcome:
    """Chains of one token each."""
    values = float64(rewards)
    columns = values[:, None] if parts is None else torch.tensor(parts, dtype=torch.float64)
    taken = torch.zeros_like(values) if penalties is None else float64(penalties)
    return Outcome(values, torch.tensor(groups), torch.arange(len(rewards)), taken, columns, part_weights or ())


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


REWARDS, GROUPS = [1.0, 0.0, 0.0, 1.0, 5.0, 7.0], [3, 3, 3, 3, 9, 9]
# Group 3: mean 0.5, variance 4 * 0.25 / 3, std 0.57735; group 9: mean 6, std sqrt(2).
# All centred values are +-0.5 (four) and +-1 (two): mean 0, variance (4 * 0.25 + 2) / 5, std sqrt(0.6).
BY_HAND: dict[str, list[float]] = {
    "group_norm": [x / (math.sqrt(1 / 3) + 1e-4) for x in (0.5, -0.5, -0.5, 0.5)]
    + [x / (math.sqrt(2) + 1e-4) for x in (-1, 1)],
    "group_mean": [0.5, -0.5, -0.5, 0.5, -1.0, 1.0],
    "group_mean_batch_std": [x / (math.sqrt(0.6) + 1e-4) for x in (0.5, -0.5, -0.5, 0.5, -1.0, 1.0)],
    "leave_one_out": [1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3, -2.0, 2.0],  # reward - mean of the others
    "mean_norm": [0.5 / 0.5001, -0.5 / 0.5001, -0.5 / 0.5001, 0.5 / 0.5001, -1 / 6.0001, 1 / 6.0001],
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_worked(name: str) -> None:
    torch.testing.assert_close(ADVANTAGES[name](outcome(REWARDS, GROUPS)), float64(BY_HAND[name]))


def test_parts_by_hand() -> None:
    """Two parts of one group of two: right (1, 0) and short (0, 1), then the second twice as heavy."""
    one = 0.5 / (math.sqrt(0.5) + 1e-4)  # a part's norm: std of (0, 1) is sqrt(1/2)
    assert parts_norm(outcome([1.0, 1.0], [0, 0], [[1.0, 0.0], [0.0, 1.0]])).tolist() == [0.0, 0.0]
    summed = one * (1 - 2)  # of the first chain
    want = summed / (math.sqrt(2) * one + 1e-4)
    got = parts_norm(outcome([1.0, 2.0], [0, 0], [[1.0, 0.0], [0.0, 1.0]], part_weights=[1.0, 2.0]))
    torch.testing.assert_close(got, float64([want, -want]))


# --- slow loops


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0.0


def per_group(
    rewards: list[float], groups: list[int], formula: Callable[[float, list[float], int], float]
) -> list[float]:
    """The formula of (reward, its group's rewards, its place among them); 0 in a group without spread."""
    out = []
    for i, group in enumerate(groups):
        members = [j for j, g in enumerate(groups) if g == group]
        of_group = [rewards[j] for j in members]
        out.append(0.0 if std(of_group) < 1e-6 else formula(rewards[i], of_group, members.index(i)))
    return out


def slow_batch_std(rewards: list[float], groups: list[int]) -> list[float]:
    centred = per_group(rewards, groups, lambda r, of, _: r - mean(of))
    return [c / (std(centred) + 1e-4) for c in centred]


SLOW: dict[str, Callable[[list[float], list[int]], list[float]]] = {
    "group_norm": lambda r, g: per_group(r, g, lambda x, of, _: (x - mean(of)) / (std(of) + 1e-4)),
    "group_mean": lambda r, g: per_group(r, g, lambda x, of, _: x - mean(of)),
    "group_mean_batch_std": slow_batch_std,
    "leave_one_out": lambda r, g: per_group(r, g, lambda x, of, at: x - mean(of[:at] + of[at + 1 :])),
    "mean_norm": lambda r, g: per_group(
        r, g, lambda x, of, _: (x - mean(of)) / (mean(of) + 1e-4) if mean(of) > 1e-4 else 0.0
    ),
}
BATCHES = st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 3.0]), st.integers(0, 3)), min_size=1, max_size=20)


@pytest.mark.parametrize("name", SLOW)
@given(BATCHES)
def test_equals_a_slow_loop(name: str, pairs: list[tuple[float, int]]) -> None:
    rewards, groups = [r for r, _ in pairs], [g for _, g in pairs]
    torch.testing.assert_close(ADVANTAGES[name](outcome(rewards, groups)), float64(SLOW[name](rewards, groups)))


PART = st.sampled_from([0.0, 0.5, 1.0, -2.0])


@given(st.lists(st.tuples(PART, PART, st.integers(0, 2)), min_size=2, max_size=12), st.floats(0.25, 4))
def test_parts_equal_a_slow_loop(rows: list[tuple[float, float, int]], weight: float) -> None:
    groups, parts = [g for *_, g in rows], [[a, b] for a, b, _ in rows]
    got = parts_norm(outcome([0.0] * len(rows), groups, parts, part_weights=[weight]))  # the second weighs 1
    normed = [SLOW["group_norm"]([row[p] for row in parts], groups) for p in (0, 1)]
    summed = [weight * a + b for a, b in zip(*normed, strict=True)]
    torch.testing.assert_close(got, float64([s / (std(summed) + 1e-4) for s in summed]))


# --- what must hold

GROUPED = [*SLOW, "parts_norm"]


@pytest.mark.parametrize("name", GROUPED)
@given(BATCHES)
def test_centred_in_each_group(name: str, pairs: list[tuple[float, int]]) -> None:
    groups = torch.tensor([g for _, g in pairs])
    got = ADVANTAGES[name](outcome([r for r, _ in pairs], groups.tolist()))
    for group in set(groups.tolist()):
        assert abs(got[groups == group].sum()) < 1e-9


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("values", [[0.1 + 0.2, 0.3, 0.3], [12345.678] * 7, [1.0, 1.0], [0.7], [-0.1 - 0.2, -0.3]])
def test_equal_rewards_give_exactly_zero(name: str, values: list[float]) -> None:
    """Alone, and beside a group that has spread, whose values must not seep in by rounding."""
    count = len(values)
    assert ADVANTAGES[name](outcome(values, [0] * count)).tolist() == [0.0] * count
    beside = ADVANTAGES[name](outcome([*values, 0.1, 0.7, 0.9], [0] * count + [1, 1, 1]))
    assert beside[:count].tolist() == [0.0] * count
    assert beside[count:].abs().min() > 0.0


@pytest.mark.parametrize("name", GROUPED)
@given(st.permutations(range(6)))
def test_order_does_not_matter(name: str, order: list[int]) -> None:
    straight = ADVANTAGES[name](outcome(REWARDS, GROUPS))
    turned = ADVANTAGES[name](outcome([REWARDS[i] for i in order], [GROUPS[i] for i in order]))
    torch.testing.assert_close(turned, straight[torch.tensor(order)])


SHIFT_FREE = ["group_norm", "group_mean", "group_mean_batch_std", "leave_one_out", "parts_norm"]


@pytest.mark.parametrize("name", SHIFT_FREE)
@given(BATCHES, st.floats(-5, 5))
def test_a_shift_of_all_rewards_changes_nothing(name: str, pairs: list[tuple[float, int]], shift: float) -> None:
    rewards, groups = [r for r, _ in pairs], [g for _, g in pairs]
    moved = ADVANTAGES[name](outcome([r + shift for r in rewards], groups))
    torch.testing.assert_close(moved, ADVANTAGES[name](outcome(rewards, groups)), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("name", "power"),
    [("group_norm", 0), ("group_mean_batch_std", 0), ("parts_norm", 0), ("mean_norm", 0), ("group_mean", 1),
     ("leave_one_out", 1)],
)  # fmt: skip
@given(st.floats(10, 1000))
def test_what_a_scale_of_all_rewards_does(name: str, power: int, scale: float) -> None:
    """What is normed is free of it but for epsilon; what is only centred follows."""
    got = ADVANTAGES[name](outcome([r * scale for r in REWARDS], GROUPS))
    torch.testing.assert_close(got, ADVANTAGES[name](outcome(REWARDS, GROUPS)) * scale**power, atol=0, rtol=1e-3)


def test_leave_one_out_is_the_group_mean_stretched() -> None:
    """RLOO = G / (G - 1) times Dr. GRPO."""
    given_ = outcome([1.0, 0.0, 0.0, 0.5], [0] * 4)
    torch.testing.assert_close(leave_one_out(given_), group_mean(given_) * 4 / 3)


def test_the_batch_decides_the_scale_not_the_group() -> None:
    """An easy group (one miss of 8) and an even one: group_norm gives the miss more than batch std does."""
    given_ = outcome([1.0] * 7 + [0.0] + [1.0, 0.0] * 4, [0] * 8 + [1] * 8)
    by_group, by_batch = group_norm(given_), group_mean_batch_std(given_)
    assert by_group[7] < by_batch[7] < 0
    torch.testing.assert_close(by_batch, group_mean(given_) / (float(group_mean(given_).std()) + 1e-4))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 4, 6])
def test_maxrl_climbs_a_truncated_log_likelihood(p: float, size: int) -> None:
    """The expected gradient over all groups of G Bernoulli chains is that of sum_k<G -(1 - p)^k / k, which nears ln p.

    d ln p(chain) / dp is 1/p for a right one, -1/(1 - p) for a wrong one; groups that fail are dropped, so one order
    less than G (the paper's theorem keeps them and reaches G)."""
    total = 0.0
    for group in product([0.0, 1.0], repeat=size):
        chance = math.prod(p if right else 1 - p for right in group)
        advantages = mean_norm(outcome(list(group), [0] * size), epsilon=1e-12)
        score = float64([1 / p if right else -1 / (1 - p) for right in group])
        total += chance * float((advantages * score).mean())
    assert total == pytest.approx(sum((1 - p) ** k for k in range(size - 1)), rel=1e-6)


def test_maxrl_is_silent_where_the_mean_says_nothing() -> None:
    """Rewards below 0 (a punished overlong chain) would divide by next to nothing, or turn the sign."""
    for values in ([0.0, -0.5], [0.5, -0.5], [0.1, 0.2, -0.3]):
        assert mean_norm(outcome(values, [0] * len(values))).tolist() == [0.0] * len(values)


def test_gdpo_keeps_apart_what_a_sum_makes_alike() -> None:
    """(1, 0), (0, 1) and (0, 0): with GRPO the first two are equal whatever the parts' own spreads are."""
    parts = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    summed = group_norm(outcome([sum(row) for row in parts], [0] * 4))
    assert summed[0] == summed[1]
    own = parts_norm(outcome([sum(row) for row in parts], [0] * 4, parts))
    assert own[0] > own[1] + 0.1  # only one of four has the first part: it is worth more


def test_weights_of_parts_do_not_cancel() -> None:
    parts = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    light, heavy = (parts_norm(outcome([0.0] * 4, [0] * 4, parts, part_weights=[w, 1.0])) for w in (0.1, 10.0))
    assert light[0] < light[1]
    assert heavy[0] > heavy[1]


def test_a_penalty_comes_off_the_reward_and_off_the_parts() -> None:
    """A KL of 0.5 on the first chain's token: as if its reward were less; for parts_norm with its own size."""
    for name in SLOW:
        got = ADVANTAGES[name](outcome([1.0, 0.0, 1.0], [0] * 3, penalties=[0.5, 0.0, 0.0]))
        torch.testing.assert_close(got, ADVANTAGES[name](outcome([0.5, 0.0, 1.0], [0] * 3)))
    sizes = []
    for size in (1e-3, 1e-1):
        got = parts_norm(outcome([1.0, 0.0, 1.0], [0] * 3, penalties=[size, 0.0, 0.0]))
        sizes.append(float(got[2] - got[0]))
    assert 0 < sizes[0] < sizes[1] / 20  # the weight of the KL counts


def test_a_group_of_one_is_zero() -> None:
    for name in GROUPED:
        assert ADVANTAGES[name](outcome([1.0, 3.0], [0, 1])).tolist() == [0.0, 0.0]
