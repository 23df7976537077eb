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


@pytest.mark.parametrize("bias", [False, True])
def test_chunks_change_neither_values_nor_gradients(bias: bool) -> None:
    generator = torch.Generator().manual_seed(1)

    def run(chunk_elements: int) -> list[torch.Tensor]:
        generator.manual_seed(1)
        hidden, weight, offset = (
            torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
            for shape in ((10, 6), (7, 6), (7,))
        )
        targets = torch.arange(10) % 7
        given = [hidden, weight, *([offset] if bias else [])]
        logprobs, entropy = head_logprobs(hidden, weight, targets, 0.7, offset if bias else None, chunk_elements)
        assert not entropy.requires_grad
        grads = torch.autograd.grad((logprobs * torch.arange(10)).sum(), given)
        logits = hidden @ weight.T + (offset if bias else 0)
        torch.testing.assert_close(logprobs, (logits / 0.7).log_softmax(-1)[torch.arange(10), targets])
        return [logprobs, entropy, *grads]

    for a, b in zip(run(10**6), run(21), strict=True):  # 21 elements: chunks of three rows, the last of one
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)
