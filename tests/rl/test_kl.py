from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.kl import k1, k2, k3


def test_hand_worked() -> None:
    policy, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(policy, ref).item() == pytest.approx(math.log(2))
    assert k2(policy, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(policy, ref).item() == pytest.approx(0.5 - 1 + math.log(2))  # ratio 1/2


def test_expectations_over_a_distribution() -> None:
    """k1 and k3 average to the true KL under the policy; k2 only nearly."""
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    ref = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    true = (policy * (policy / ref).log()).sum()
    for estimator, tolerance in ((k1, 1e-12), (k3, 1e-12), (k2, 0.02)):
        assert abs((policy * estimator(policy.log(), ref.log())).sum() - true) < tolerance


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    x, y = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert k3(x, y) >= 0
    assert k2(x, y) >= 0
    assert k3(x, x) == 0


def test_k3_keeps_small_differences_in_fp32() -> None:
    """exp(x) - x - 1 would be lost in rounding at x = 1e-4; expm1 keeps x^2 / 2."""
    policy = torch.tensor([-1e-4])
    assert k3(policy, torch.zeros(1)).item() == pytest.approx(5e-9, rel=1e-2)


def test_half_precision_is_computed_in_fp32() -> None:
    assert k3(torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.0])).dtype == torch.float32
