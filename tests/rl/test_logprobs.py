from __future__ import annotations

import math

import pytest
import torch

from rl.logprobs import head_logprobs, token_logprobs


def test_hand_worked() -> None:
    """Logits ln 1 and ln 3: probabilities 1/4 and 3/4; at temperature 1/2 they are 1/10 and 9/10."""
    logits = torch.tensor([[0.0, math.log(3)]] * 2)
    logprobs, entropy = token_logprobs(logits, torch.tensor([0, 1]), 1.0)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(0.25), math.log(0.75)]))
    want = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy, torch.full((2,), want))
    logprobs, _ = token_logprobs(logits, torch.tensor([0, 1]), 0.5)
    torch.testing.assert_close(logprobs, torch.tensor([math.log(0.1), math.log(0.9)]))


def test_probabilities_of_all_targets_sum_to_one() -> None:
    logits = torch.randn(1, 17, generator=torch.Generator().manual_seed(0)).double()
    logprobs, entropy = token_logprobs(logits.expand(17, -1), torch.arange(17), 0.7)
    assert float(logprobs.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    assert 0 < float(entropy[0]) < math.log(17)


def test_forbidden_tokens_leave_the_entropy_finite() -> None:
    logprobs, entropy = token_logprobs(torch.tensor([[0.0, -math.inf, 0.0]]), torch.tensor([0]), 1.0)
    assert float(logprobs) == pytest.approx(-math.log(2))
    assert float(entropy) == pytest.approx(math.log(2))


def test_half_precision_logits_are_computed_in_fp32() -> None:
    logits = torch.tensor([[10.0, 10.125]], dtype=torch.bfloat16)
    logprobs, _ = token_logprobs(logits, torch.tensor([0]), 1.0)
    assert logprobs.dtype == torch.float32
    assert float(logprobs) == pytest.approx(-math.log(1 + math.exp(0.125)), rel=1e-6)


def random_head(rows: int = 10) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [rows, 6], weight [7, 6], bias [7] in float64 with gradients, and targets [rows]."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((rows, 6), (7, 6), (7,))
    )
    return hidden, weight, bias, torch.arange(rows) % 7


CUTS = {"one piece": (10**6, 10**6), "chunks, kept": (21, 10**6), "chunks, made again": (21, 0), "row by row": (1, 0)}
"""chunk_elements and kept_elements for a vocabulary of 7: 21 elements are three rows, the last chunk has one."""


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_head_equals_the_plain_computation_however_it_is_cut(cut: str, with_bias: bool) -> None:
    hidden, weight, bias, targets = random_head()
    given = [hidden, weight, *([bias] if with_bias else [])]
    plain = token_logprobs(hidden @ weight.T + (bias if with_bias else 0), targets, 0.7)
    mine = head_logprobs(hidden, weight, targets, 0.7, bias if with_bias else None, *CUTS[cut])
    assert not mine[1].requires_grad
    gradients = [torch.autograd.grad((x[0] * torch.arange(10)).sum(), given) for x in (plain, mine)]
    for want, got in zip((*plain, *gradients[0]), (*mine, *gradients[1]), strict=True):
        torch.testing.assert_close(got, want, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("cut", CUTS)
def test_head_gradients_are_those_of_finite_differences(cut: str) -> None:
    hidden, weight, bias, targets = random_head(rows=4)

    def logprobs(*given: torch.Tensor) -> torch.Tensor:
        return head_logprobs(given[0], given[1], targets, 0.7, given[2], *CUTS[cut])[0]

    assert torch.autograd.gradcheck(logprobs, (hidden, weight, bias))


def test_head_with_logits_far_apart_stays_finite() -> None:
    """Without taking the largest logit off first, exp(1000) would be infinite."""
    hidden = torch.tensor([[1000.0], [-1000.0]]).requires_grad_()
    weight = torch.tensor([[1.0], [0.0]]).requires_grad_()
    for kept in (0, 100):
        logprobs, entropy = head_logprobs(hidden, weight, torch.tensor([0, 0]), 1.0, None, 2, kept)
        assert logprobs.tolist() == [0.0, -1000.0]
        assert entropy.tolist() == [0.0, 0.0]
        gradient, _ = torch.autograd.grad(logprobs.sum(), (hidden, weight))
        assert gradient.flatten().tolist() == [0.0, 1.0]


def test_a_frozen_head_gets_no_gradient_and_none_is_computed_without_need() -> None:
    hidden, weight, _, targets = random_head()
    logprobs, _ = head_logprobs(hidden, weight.detach(), targets, 0.7)
    logprobs.sum().backward()
    plain, _ = token_logprobs(hidden @ weight.detach().T, targets, 0.7)
    torch.testing.assert_close(hidden.grad, torch.autograd.grad(plain.sum(), hidden)[0])
    with torch.no_grad():
        assert head_logprobs(hidden, weight, targets, 0.7)[0].grad_fn is None


@pytest.mark.parametrize(("kept_elements", "holds_all"), [(0, False), (10**6, True)])
def test_what_waits_for_the_backward_pass(kept_elements: int, holds_all: bool) -> None:
    """Above its bound no tensor of [rows, vocabulary] is kept from the forward pass."""
    hidden, weight, _, targets = random_head(rows=50)
    saved: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        head_logprobs(hidden, weight, targets, 0.7, None, 21, kept_elements)
    assert (max(saved) >= 50 * 7) == holds_all
    assert max(saved) <= (50 * 7 if holds_all else 50 * 6)


def test_no_rows_give_no_logprobs_and_a_zero_gradient() -> None:
    hidden, weight, _, targets = random_head(rows=0)
    logprobs, entropy = head_logprobs(hidden, weight, targets, 1.0)
    assert len(logprobs) == len(entropy) == 0
    logprobs.sum().backward()
    assert weight.grad is not None
    assert not weight.grad.any()


def test_half_precision_head_rounds_the_weight_and_multiplies_in_fp32() -> None:
    hidden, weight, _, targets = (x.detach().to(torch.float32) for x in random_head())
    rounded = weight.bfloat16()
    mine, _ = head_logprobs(hidden.bfloat16(), weight, targets.long(), 1.0)
    plain, _ = token_logprobs(hidden.bfloat16().float() @ rounded.float().T, targets.long(), 1.0)
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-6)
