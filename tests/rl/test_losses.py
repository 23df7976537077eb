"""Losses of tokens: each by hand, against a slow loop, and by what must hold. Their sums: test_aggregate.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.losses import LOSSES, SAPO_TEMPERATURES, Tokens, cispo_loss, diagnose, value_loss

LOW, HIGH = 0.2, 0.28
HALF, FULL = math.log(0.5), math.log(1.0)


def float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens(
    current: list[float], old: list[float], advantages: list[float], chains: list[int] | None = None,
    mask: list[bool] | None = None, sampler: list[float] | None = None,
) -> Tokens:  # fmt: skip
    """Tokens whose `current` is a leaf; the sampler is old unless it is given."""
    size = len(current)
    return Tokens(
        float64(current).requires_grad_(), float64(old), float64(sampler or old), float64(advantages),
        torch.tensor(mask or [True] * size), torch.tensor(chains or [0] * size),
    )  # fmt: skip


def evaluate(name: str, given_: Tokens, low: float = LOW, high: float = HIGH) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their gradient by `current`, and what was bounded."""
    given_ = replace(given_, current=given_.current.detach().requires_grad_())  # ratios are cached with their graph
    losses, bounded = LOSSES[name](given_, low, high)
    (gradient,) = torch.autograd.grad(losses.sum(), given_.current)
    return losses.detach(), gradient, bounded


# Ratios 2, 2, 1/2, 1/2 with advantages +1, -1, +1, -1 under the bounds 0.8 and 1.28; a chain of two each.
CORNERS = tokens([FULL, FULL, HALF, HALF], [HALF, HALF, FULL, FULL], [1.0, -1.0, 1.0, -1.0], [0, 0, 1, 1])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def soft(ratio: float, tau: float) -> float:
    return 4 / tau * sigmoid(tau * (ratio - 1))


def soft_slope(ratio: float, tau: float) -> float:
    return 4 * sigmoid(tau * (ratio - 1)) * (1 - sigmoid(tau * (ratio - 1))) * ratio


BY_HAND: dict[str, tuple[list[float], list[float], list[bool]]] = {
    "clip": ([-1.28, 2.0, -0.5, 0.8], [0.0, 2.0, -0.5, 0.0], [True, False, False, True]),
    # One ratio a chain: its tokens' mean. Each has half of every loss's gradient; here both log ratios are the same.
    "gspo": ([-1.28, 2.0, -0.5, 0.8], [1.0, 1.0, -0.25, -0.25], [True, False, False, True]),
    "cispo": ([0.0, 0.0, 0.5 * math.log(2), -0.5 * math.log(2)], [-1.28, 1.28, -0.5, 0.5], [True, True, False, False]),
    "reinforce": ([0.0, 0.0, math.log(2), -math.log(2)], [-1.0, 1.0, -1.0, 1.0], [False] * 4),
    # Probabilities moved by +0.5, +0.5, -0.5, -0.5: beyond either bound where that is the advantage's way.
    "dppo": ([0.0, 2.0, -0.5, 0.0], [0.0, 2.0, -0.5, 0.0], [True, False, False, True]),
    "sapo": (
        [-soft(2, 1.0), soft(2, 1.05), -soft(0.5, 1.0), soft(0.5, 1.05)],
        [-soft_slope(2, 1.0), soft_slope(2, 1.05), -soft_slope(0.5, 1.0), soft_slope(0.5, 1.05)],
        [False] * 4,
    ),
}


def test_every_loss_is_here() -> None:
    assert set(BY_HAND) == set(SLOW) == set(LOSSES)
    assert SAPO_TEMPERATURES == (1.0, 1.05)


@pytest.mark.parametrize("name", BY_HAND)
def test_hand_worked(name: str) -> None:
    losses, gradient, bounded = evaluate(name, CORNERS)
    want, slope, beyond = BY_HAND[name]
    torch.testing.assert_close(losses, float64(want))
    torch.testing.assert_close(gradient, float64(slope))
    assert bounded.tolist() == beyond


def test_gspo_by_hand_with_unlike_tokens() -> None:
    """Log ratios 0.3 and -0.1, mean 0.1: ratio e^0.1 = 1.105 within its bounds; the gradient is shared evenly."""
    losses, gradient, _ = evaluate("gspo", tokens([-1.0, -1.0], [-1.3, -0.9], [2.0, 2.0]))
    torch.testing.assert_close(losses, float64([-2 * math.exp(0.1)] * 2))
    torch.testing.assert_close(gradient, float64([-2 * math.exp(0.1)] * 2))
    bounded = evaluate("gspo", tokens([-1.0, -1.0], [-1.3, -0.9], [2.0, 2.0]), 3e-4, 4e-4)
    torch.testing.assert_close(bounded[0], float64([-2 * 1.0004] * 2))
    assert (bounded[1].tolist(), bounded[2].tolist()) == ([0.0, 0.0], [True, True])


def test_dppo_compares_probabilities_not_ratios_and_with_the_sampler() -> None:
    """A rare token whose ratio is 5 moved by 0.04 only: it stays. From 0.6 to 0.9 is beyond; old is unused."""
    given_ = tokens([math.log(0.05), math.log(0.9)], [-9.0, -9.0], [1.0, 1.0], sampler=[math.log(0.01), math.log(0.6)])
    losses, gradient, bounded = evaluate("dppo", given_, 0.15, 0.15)
    torch.testing.assert_close(losses, float64([-5.0, 0.0]))
    torch.testing.assert_close(gradient, float64([-5.0, 0.0]))
    assert bounded.tolist() == [False, True]
    assert evaluate("dppo", given_, 0.15, 0.31)[2].tolist() == [False, False]
    back = replace(given_, advantages=-given_.advantages)  # pulled back towards the sampler: never masked
    assert evaluate("dppo", back, 0.15, 0.15)[2].tolist() == [False, False]


# --- slow loops: (current, old, advantage, mean log ratio of the chain) -> loss


def slow_clip(ratio: float, advantage: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)


def slow_dppo(current: float, old: float, advantage: float) -> float:
    moved = math.exp(current) - math.exp(old)
    return (
        0.0
        if (advantage > 0 and moved > HIGH) or (advantage <= 0 and moved < -LOW)
        else -math.exp(current - old) * advantage
    )


SLOW: dict[str, Callable[[float, float, float, float], float]] = {
    "clip": lambda c, o, a, m: slow_clip(math.exp(c - o), a),
    "gspo": lambda c, o, a, m: slow_clip(math.exp(m), a),
    "cispo": lambda c, o, a, m: -min(math.exp(c - o), 1 + HIGH) * a * c,
    "reinforce": lambda c, o, a, m: -a * c,
    "dppo": lambda c, o, a, m: slow_dppo(c, o, a),
    "sapo": lambda c, o, a, m: -a * soft(math.exp(c - o), 1.0 if a > 0 else 1.05),
}
ROWS = st.lists(
    st.tuples(st.floats(-4, 0), st.floats(-4, 0), st.floats(-2, 2), st.integers(0, 2), st.booleans()),
    min_size=1, max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("name", SLOW)
@given(ROWS)
def test_equals_a_slow_loop(name: str, rows: list[tuple[float, float, float, int, bool]]) -> None:
    current, old, advantages, chains, mask = (list(column) for column in zip(*rows, strict=True))
    want = []
    for c, o, a, chain, trained in rows:
        own = [row[0] - row[1] for row in rows if row[3] == chain and row[4]]
        want.append(SLOW[name](c, o, a, sum(own) / len(own)) if trained else 0.0)
    losses, _ = LOSSES[name](tokens(current, old, advantages, chains, mask), LOW, HIGH)
    torch.testing.assert_close(losses.detach(), float64(want))


# --- what must hold


@pytest.mark.parametrize("name", LOSSES)
@given(st.lists(st.tuples(st.floats(-4, 0), st.floats(-2, 2)), min_size=1, max_size=6))
def test_ratio_one_is_reinforce(name: str, rows: list[tuple[float, float]]) -> None:
    """On policy the gradient is -A grad log p, whatever the loss; one chain a token (GSPO shares within a chain)."""
    current, advantages = [c for c, _ in rows], [a for _, a in rows]
    _, gradient, bounded = evaluate(name, tokens(current, current, advantages, list(range(len(rows)))))
    torch.testing.assert_close(gradient, float64([-a for a in advantages]))
    assert not bounded.any()


def test_ratio_one_is_reinforce_for_a_chain_of_gspo() -> None:
    _, gradient, _ = evaluate("gspo", tokens([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], [0.7, 0.7, -0.3], [0, 0, 1]))
    torch.testing.assert_close(gradient, float64([-0.7, -0.7, 0.3]))


@pytest.mark.parametrize("name", LOSSES)
def test_no_advantage_no_loss(name: str) -> None:
    losses, gradient, _ = evaluate(name, replace(CORNERS, advantages=torch.zeros(4, dtype=torch.float64)))
    assert losses.abs().tolist() == gradient.abs().tolist() == [0.0] * 4


@pytest.mark.parametrize("name", LOSSES)
@given(st.permutations(range(4)))
def test_order_does_not_matter(name: str, order: list[int]) -> None:
    turned = Tokens(*(getattr(CORNERS, field)[torch.tensor(order)] for field in vars(replace(CORNERS))))
    torch.testing.assert_close(
        LOSSES[name](turned, LOW, HIGH)[0], LOSSES[name](CORNERS, LOW, HIGH)[0][torch.tensor(order)]
    )


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_is_as_if_it_were_not_there(name: str) -> None:
    """NaN and infinity in every field of a masked token, the chain's ratio included, leave loss and gradient alone."""
    nan, inf = math.nan, math.inf
    clean = tokens([-1.0, -2.0, -1.5], [-1.2, -1.9, -1.1], [1.0, 1.0, -0.5], [0, 0, 1])
    holes = tokens(
        [-1.0, nan, -2.0, -inf, -1.5], [-1.2, inf, -1.9, nan, -1.1], [1.0, nan, 1.0, inf, -0.5], [0, 0, 0, 1, 1],
        [True, False, True, False, True], sampler=[-1.2, nan, -1.9, -inf, -1.1],
    )  # fmt: skip
    seen = torch.tensor([0, 2, 4])
    for got, want in zip(evaluate(name, holes), evaluate(name, clean), strict=True):
        torch.testing.assert_close(got[seen], want)
        assert got[[1, 3]].abs().tolist() == [0, 0] if got.dtype != torch.bool else not got[[1, 3]].any()
    _, bounded = LOSSES[name](holes, LOW, HIGH)
    figures = diagnose(holes.log_ratio.detach(), bounded, holes.mask)
    assert int(figures["tokens"]) == 3
    assert math.isfinite(float(figures["approx_kl"]))
    assert holes.sequence_sum(torch.ones(5)).tolist() == [2.0, 2.0, 2.0, 1.0, 1.0]  # lengths without what is masked


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_absurd_ratio_stays_finite(name: str, advantage: float) -> None:
    current = torch.tensor([0.0, -500.0], requires_grad=True)
    old = torch.tensor([-500.0, 0.0])
    given_ = Tokens(current, old, old, torch.full((2,), advantage), torch.ones(2, dtype=torch.bool), torch.arange(2))
    losses, _ = LOSSES[name](given_, LOW, HIGH)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert current.grad is not None
    assert torch.isfinite(current.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_computed_in_fp32(name: str) -> None:
    current = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    old = current.detach()
    given_ = Tokens(current, old, old, torch.tensor([1.0, -1.0]), torch.ones(2, dtype=torch.bool), torch.arange(2))
    assert LOSSES[name](given_, LOW, HIGH)[0].dtype == torch.float32


@given(ROWS)
def test_cispo_keeps_a_gradient_on_every_token_and_detaches_its_weight(
    rows: list[tuple[float, float, float, int, bool]],
) -> None:
    """The gradient is weight x -A, with no part through the weight, cut or not; `low` is not read."""
    current, old, advantages = ([row[i] for row in rows] for i in range(3))
    given_ = tokens(current, old, advantages)
    _, gradient, cut = evaluate("cispo", given_)
    weights = [min(math.exp(c - o), 1 + HIGH) for c, o in zip(current, old, strict=True)]
    torch.testing.assert_close(gradient, float64([-w * a for w, a in zip(weights, advantages, strict=True)]))
    assert cut.tolist() == [math.exp(c - o) > 1 + HIGH for c, o in zip(current, old, strict=True)]
    torch.testing.assert_close(cispo_loss(given_, 0.01, HIGH)[0], cispo_loss(given_, 0.99, HIGH)[0])


@given(st.floats(0.05, 4), st.floats(0.05, 2))
def test_sapo_pulls_less_the_further_it_is_and_less_for_bad_tokens(ratio: float, size: float) -> None:
    """The gradient's weight is 4 s (1 - s) ratio: never above the plain ratio, and tau orders the signs."""
    at = [math.log(ratio) - 5], [-5.0]
    (up,), (down,) = (evaluate("sapo", tokens(*at, [a]))[1].tolist() for a in (size, -size))
    assert 0 < -up <= ratio * size * (1 + 1e-9)
    assert 0 < down <= -up * (1 + 1e-9)


def test_detached_flags() -> None:
    for loss in LOSSES.values():
        assert not loss(CORNERS, LOW, HIGH)[1].requires_grad


# --- the value loss


def test_value_loss_by_hand() -> None:
    """Return 1 from an old value 0 with clip 0.2: at 0.5 the clipped 0.2 is the worse, at 1.5 the new one would be
    better clipped; back towards the old value nothing is limited."""
    values = float64([0.5, 0.1, -0.5]).requires_grad_()
    losses = value_loss(values, float64([0.0, 0.0, 0.0]), float64([1.0, 1.0, 1.0]), 0.2)
    torch.testing.assert_close(losses, float64([0.8**2 / 2, 0.9**2 / 2, 1.5**2 / 2]))
    losses.sum().backward()
    torch.testing.assert_close(values.grad, float64([0.0, -0.9, -1.5]))  # clipped: no gradient; else V - R


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), min_size=1, max_size=6), st.floats(0.05, 1))
def test_value_loss_equals_a_slow_loop(rows: list[tuple[float, float, float]], clip: float) -> None:
    want = [max((v - r) ** 2, (o + min(max(v - o, -clip), clip) - r) ** 2) / 2 for v, o, r in rows]
    values, old, returns = (float64(list(column)) for column in zip(*rows, strict=True))
    got = value_loss(values, old, returns, clip)
    torch.testing.assert_close(got, float64(want))
    assert (got >= float64([(v - r) ** 2 / 2 for v, _, r in rows]) - 1e-12).all()  # never less than without the clip
