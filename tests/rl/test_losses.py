from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.losses import Tokens, aggregate, clip_loss, diagnose, token_weights


def clip(
    policy: torch.Tensor, old: list[float], advantages: list[float], mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    starts, pulls = (torch.tensor(values, dtype=policy.dtype) for values in (old, advantages))
    mask = torch.tensor([True] * len(old)) if mask is None else mask
    tokens = Tokens(policy, starts, starts, pulls, mask, torch.zeros(len(old), dtype=torch.long))
    losses, clipped = clip_loss(tokens, 0.2, 0.28)
    return losses, tokens.log_ratio.detach(), clipped


def leaf(values: list[float], dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


def test_hand_worked() -> None:
    """Ratios 2, 2, 1/2, 1/2 with advantages +1, -1, +1, -1 under clips 0.2 and 0.28."""
    half, full = math.log(0.5), math.log(1.0)
    policy = leaf([full, full, half, half])
    losses, _, clipped = clip(policy, [half, half, full, full], [1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(losses, torch.tensor([-1.28, 2.0, -0.5, 0.8], dtype=torch.float64))
    assert clipped.tolist() == [True, False, False, True]
    losses.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([0.0, 2.0, -0.5, 0.0], dtype=torch.float64))


def slow_clip_loss(policy: float, old: float, advantage: float) -> float:
    ratio = math.exp(policy - old)
    return -min(ratio * advantage, min(max(ratio, 0.8), 1.28) * advantage)


@given(st.lists(st.tuples(st.floats(-4, 0), st.floats(-4, 0), st.floats(-2, 2)), min_size=1, max_size=8))
def test_equals_a_slow_loop(rows: list[tuple[float, float, float]]) -> None:
    policy, old, advantages = (list(column) for column in zip(*rows, strict=True))
    got, *_ = clip(leaf(policy), old, advantages)
    want = torch.tensor([slow_clip_loss(*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(got.detach(), want)


def test_ratio_one_is_reinforce() -> None:
    policy = leaf([-1.0, -2.0, -3.0])
    clip(policy, [-1.0, -2.0, -3.0], [0.7, -0.3, 0.0])[0].sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([-0.7, 0.3, 0.0], dtype=torch.float64))


def test_masked_nan_stays_out_of_loss_and_gradient() -> None:
    policy = leaf([-1.0, math.nan, -1.0])
    mask = torch.tensor([True, False, False])
    losses, log_ratio, clipped = clip(policy, [-1.0, -1.0, math.nan], [1.0, math.inf, math.nan], mask)
    aggregate(losses, mask.double()).backward()
    assert losses.tolist() == [-1.0, 0.0, 0.0]
    assert policy.grad is not None
    assert policy.grad.tolist() == [-1.0, 0.0, 0.0]
    assert float(diagnose(log_ratio, clipped, mask)["approx_kl"]) == 0.0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_absurd_ratio_stays_finite(advantage: float) -> None:
    policy = leaf([0.0, -500.0], torch.float32)
    losses, *_ = clip(policy, [-500.0, 0.0], [advantage, advantage])
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert policy.grad is not None
    assert torch.isfinite(policy.grad).all()


MASK = torch.tensor([True, True, False, True, True, True])
SEQUENCES = torch.tensor([0, 0, 0, 1, 1, 1])
VALUES = torch.tensor([1.0, 3.0, 100.0, 2.0, 4.0, 9.0])


GROUPS = torch.tensor([0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("mode", "want"),
    [("sequence_mean", 3.5), ("token_mean", 3.8), ("sequence_sum", 9.5), ("fixed_length", 0.95), ("prompt_mean", 3.8)],
)
def test_aggregate_by_hand(mode: str, want: float) -> None:
    """Sequence means 2 and 5, sums 4 and 15; the token mean is 19 / 5; a cap of 10 tokens."""
    weights = token_weights(mode, MASK, SEQUENCES, GROUPS, max_tokens=10)
    assert aggregate(VALUES, weights).item() == pytest.approx(want)
    assert weights[2] == 0.0


def test_a_sequence_without_trained_tokens_counts_nowhere() -> None:
    mask, ids = torch.tensor([True, False, False]), torch.tensor([4, 4, 7])
    assert token_weights("sequence_mean", mask, ids, ids).tolist() == [1.0, 0.0, 0.0]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="sum_of_all"):
        token_weights("sum_of_all", MASK, SEQUENCES, GROUPS)


def test_diagnostics_add_across_micro_batches() -> None:
    log_ratio, clipped = torch.tensor([0.0, math.log(2), -1.0, 0.0]), torch.tensor([False, True, False, True])
    mask = torch.tensor([True, True, True, False])

    whole = diagnose(log_ratio, clipped, mask)
    first, second = (diagnose(log_ratio[s], clipped[s], mask[s]) for s in (slice(0, 2), slice(2, 4)))
    for seen in (whole, {name: first[name] + second[name] for name in first}):
        assert (int(seen["tokens"]), int(seen["clipped"])) == (3, 1)
        assert float(seen["approx_kl"]) == pytest.approx((1 - math.log(2)) + math.exp(-1.0))  # r - 1 - ln r
