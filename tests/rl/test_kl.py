"""KL estimators against the exact KL of a policy over five tokens: values, gradients, on and off policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.kl import ESTIMATORS, k1, k2, k3


def test_hand_worked() -> None:
    policy, ref = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert k1(policy, ref).item() == pytest.approx(math.log(2))
    assert k2(policy, ref).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(policy, ref).item() == pytest.approx(0.5 - 1 + math.log(2))  # ref / policy = 1/2


SLOW: dict[str, Callable[[float, float], float]] = {
    "k1": lambda p, r: p - r,
    "k2": lambda p, r: (p - r) ** 2 / 2,
    "k3": lambda p, r: math.exp(r - p) - 1 - (r - p),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@given(st.lists(st.tuples(st.floats(-6, 0), st.floats(-6, 0)), min_size=1, max_size=6))
def test_equals_a_slow_loop(name: str, rows: list[tuple[float, float]]) -> None:
    policy, ref = (torch.tensor(list(column), dtype=torch.float64) for column in zip(*rows, strict=True))
    want = torch.tensor([SLOW[name](*row) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(ESTIMATORS[name](policy, ref), want)


# --- a policy over five tokens

LOGITS = torch.tensor([0.9, -0.3, 0.1, 1.4, -1.2], dtype=torch.float64)
REF = torch.tensor([0.2, 0.5, -0.7, 1.0, 0.1], dtype=torch.float64).log_softmax(-1)
BEHIND = torch.tensor([0.5, 0.1, 0.4, 0.9, -0.8], dtype=torch.float64).log_softmax(-1)  # the policy that sampled


def exact(direction: str, logits: Tensor) -> Tensor:
    policy = logits.log_softmax(-1)
    return ((policy.exp() * (policy - REF)) if direction == "reverse" else (REF.exp() * (REF - policy))).sum()


def gradient(value: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    (found,) = torch.autograd.grad(value(logits), logits)
    return found


def expected(name: str, logits: Tensor, sampler: Tensor | None = None) -> Tensor:
    """Mean over the tokens that `sampler` (null = the policy itself) draws, as a learner sees them: what drew has no
    gradient, and off policy each token has the detached ratio."""
    policy = logits.log_softmax(-1)
    drew = policy.detach() if sampler is None else sampler
    ratio = (policy.detach() - drew).exp()
    return (drew.exp() * ratio * ESTIMATORS[name](policy, REF)).sum()


@pytest.mark.parametrize("sampler", [None, BEHIND], ids=["on policy", "off policy"])
def test_as_values_k1_and_k3_are_unbiased(sampler: Tensor | None) -> None:
    true = exact("reverse", LOGITS)
    for name in ("k1", "k3"):
        torch.testing.assert_close(expected(name, LOGITS, sampler), true)
    assert abs(expected("k2", LOGITS, sampler) - true) > 1e-3  # close, and biased
    assert abs(expected("k2", LOGITS, sampler) / true - 1) < 0.3


@pytest.mark.parametrize("sampler", [None, BEHIND], ids=["on policy", "off policy"])
def test_as_losses_their_gradients_are_of_other_things(sampler: Tensor | None) -> None:
    """k1: nothing (so it is refused there); k2: the reverse KL, policy || ref; k3: the forward KL, ref || policy."""
    k1s, k2s, k3s = (gradient(partial(expected, name, sampler=sampler)) for name in ("k1", "k2", "k3"))
    assert k1s.abs().max() < 1e-12
    reverse, forward = gradient(partial(exact, "reverse")), gradient(partial(exact, "forward"))
    torch.testing.assert_close(k2s, reverse)
    torch.testing.assert_close(k3s, forward)
    assert (reverse - forward).abs().max() > 0.05


def test_off_policy_without_the_ratio_it_would_be_wrong() -> None:
    def bare(logits: Tensor) -> Tensor:
        return (BEHIND.exp() * k3(logits.log_softmax(-1), REF)).sum()

    assert (gradient(bare) - gradient(partial(exact, "forward"))).abs().max() > 0.01


def test_with_a_gradient_through_the_ratio_it_would_be_another_kl() -> None:
    """Why it is detached: else k3's is the reverse KL's gradient, and k1's is no longer zero."""

    def live(logits: Tensor) -> Tensor:
        policy = logits.log_softmax(-1)
        return (BEHIND.exp() * (policy - BEHIND).exp() * k3(policy, REF)).sum()

    torch.testing.assert_close(gradient(live), gradient(partial(exact, "reverse")))


def test_in_the_reward_k1_detached_is_the_reverse_kl() -> None:
    """REINFORCE on a reward of -k1 (detached) climbs down the reverse KL: the place for k1."""

    def surrogate(logits: Tensor) -> Tensor:
        policy = logits.log_softmax(-1)
        return (policy.detach().exp() * k1(policy, REF).detach() * policy).sum()

    torch.testing.assert_close(gradient(surrogate), gradient(partial(exact, "reverse")))


# --- numbers


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k2_and_k3_are_never_negative(a: float, b: float) -> None:
    x, y = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert k3(x, y) >= 0
    assert k2(x, y) >= 0
    assert k3(x, x) == k2(x, x) == k1(x, x) == 0


def test_k3_keeps_small_differences_in_fp32() -> None:
    """exp(x) - x - 1 would be lost in rounding at x = 1e-4; expm1 keeps x^2 / 2."""
    policy = torch.tensor([-1e-4])
    assert k3(policy, torch.zeros(1)).item() == pytest.approx(5e-9, rel=1e-2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_half_precision_is_computed_in_fp32(name: str) -> None:
    assert ESTIMATORS[name](torch.tensor([-1.0], dtype=torch.bfloat16), torch.tensor([-1.0])).dtype == torch.float32
