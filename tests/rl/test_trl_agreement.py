"""The same tensors through TRL's own loss and through ours: equal losses and equal gradients.

`GRPOTrainer._compute_loss` runs on a stand-in that has only what it reads; the logprobs are given, [B, T] with padding
on its side and [N] without on ours.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.config import ObjectiveConfig
from rl.kl import k3
from rl.losses import LOSSES, Tokens, aggregate, token_weights
from rl.presets import resolve_objective

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's of the vLLM version
LENGTHS = [5, 2, 7, 1, 4, 3]
MASK = torch.tensor([[t < length for t in range(max(LENGTHS))] for length in LENGTHS])
CAP = 9  # fixed_length divides by it
CHAINS = torch.arange(len(LENGTHS))[:, None].expand_as(MASK)[MASK]


@pytest.fixture(scope="module")
def compute_loss() -> Any:
    from trl import GRPOTrainer  # heavy: it imports vLLM

    return GRPOTrainer._compute_loss


def logprobs(seed: int, spread: float = 0.0, around: Tensor | None = None) -> Tensor:
    """[B, T] float64; garbage in the padding, which a loss must not see."""
    generator = torch.Generator().manual_seed(seed)
    values = -torch.rand(MASK.shape, generator=generator, dtype=torch.float64) * 3
    if around is not None:
        values = around.detach() + torch.randn(MASK.shape, generator=generator, dtype=torch.float64) * spread
    return torch.where(MASK, values, values.new_tensor(-7.0))


CURRENT, ADVANTAGES = logprobs(0), torch.tensor([1.3, -0.8, 0.4, -1.1, 0.0, 0.9], dtype=torch.float64)
OLD, REF = logprobs(1, 0.4, CURRENT), logprobs(2, 0.5, CURRENT)


def trl_loss(
    compute_loss: Any, kind: str, level: str, low: float, high: float, beta: float, old: Tensor, kl_ratio: bool = False
) -> Any:
    """Loss and gradient [B, T] by TRL."""
    current = CURRENT.clone().requires_grad_()
    accelerator = SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x)
    args = SimpleNamespace(
        delta=None, use_bias_correction_kl=kl_ratio, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05,
        steps_per_generation=1,
    )  # fmt: skip
    trainer = SimpleNamespace(
        args=args, accelerator=accelerator, model=SimpleNamespace(training=True), loss_type=kind, beta=beta,
        importance_sampling_level=level, epsilon_low=low, epsilon_high=high, max_completion_length=CAP,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, aux_loss_enabled=False, use_vllm=False,
        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (current, torch.zeros_like(current), None),
    )  # fmt: skip
    ids = MASK.long()
    inputs = {"prompt_ids": ids[:, :1], "prompt_mask": ids[:, :1], "completion_ids": ids, "completion_mask": ids,
              "advantages": ADVANTAGES, "old_per_token_logps": old, "ref_per_token_logps": REF,
              "num_items_in_batch": MASK.sum()}  # fmt: skip
    loss = compute_loss(trainer, None, inputs)
    loss.backward()
    return loss.detach(), current.grad


def our_loss(algorithm: str, beta: float, old: Tensor, **overrides: Any) -> Any:
    """Loss and gradient [B, T], as the learner puts them together."""
    wanted = resolve_objective(algorithm, ObjectiveConfig(kl_weight=beta, **overrides))
    current = CURRENT.clone().requires_grad_()
    rows, start, advantages = current[MASK], old[MASK], ADVANTAGES[CHAINS]
    tokens = Tokens(rows, start, start, advantages, torch.ones_like(CHAINS, dtype=torch.bool), CHAINS)
    weights = token_weights(wanted.aggregation, tokens.mask, CHAINS, CHAINS // 2, CAP)
    losses, _ = LOSSES[wanted.loss](tokens, wanted.clip_low, wanted.clip_high)
    loss = aggregate(losses, weights)
    loss = loss + beta * aggregate(k3(rows, REF[MASK]) * tokens.log_ratio.detach().exp(), weights)
    loss.backward()
    return loss.detach(), current.grad


CASES = [
    ("grpo", "grpo", "token", 0.2, 0.2),
    ("dr_grpo", "dr_grpo", "token", 0.2, 0.2),
    ("dapo", "dapo", "token", 0.2, 0.28),
    ("cispo", "cispo", "token", 0.2, 5.0),  # TRL's bound is the weight itself, ours is above 1
    ("gspo", "grpo", "sequence", 3e-4, 4e-4),
    ("sapo", "sapo", "token", 0.2, 0.2),
]


def assert_agree(got: Any, want: Any) -> None:
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert want[1].abs().max() > 1e-3
    assert got[1][~MASK].abs().max() == 0.0


@pytest.mark.parametrize("old", [CURRENT, OLD], ids=["on policy", "off policy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_agrees_with_trl(compute_loss: Any, case: tuple[str, str, str, float, float], old: Tensor) -> None:
    algorithm, kind, level, low, high = case
    assert_agree(our_loss(algorithm, 0.0, old), trl_loss(compute_loss, kind, level, low, high, 0.0, old))


def test_agrees_with_trl_on_a_kl_term(compute_loss: Any) -> None:
    """Gradients on policy. Off policy TRL's ratio on the KL has a gradient, ours is detached: there only the values."""
    grpo = CASES[0][1:]
    assert_agree(our_loss("grpo", 0.07, CURRENT), trl_loss(compute_loss, *grpo, 0.07, CURRENT))
    got, want = our_loss("grpo", 0.07, OLD)[0], trl_loss(compute_loss, *grpo, 0.07, OLD, kl_ratio=True)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("high", [0.5, 5.0])
def test_the_bound_of_cispo_is_one_plus_clip_high(compute_loss: Any, high: float) -> None:
    old = logprobs(3, 2.0, CURRENT)  # far enough for weights to be cut at both bounds
    assert (CURRENT - old)[MASK].exp().max() > 5
    want = trl_loss(compute_loss, "cispo", "token", 0.2, 1 + high, 0.0, old)
    assert_agree(our_loss("cispo", 0.0, old, clip_high=high), want)


def test_a_clip_in_use_is_seen(compute_loss: Any) -> None:
    """The off-policy tensors do reach each bound; other bounds give other numbers."""
    ratio = (CURRENT - OLD)[MASK].exp()
    assert (ratio > 1.28).any()
    assert (ratio < 0.8).any()
    want, _ = trl_loss(compute_loss, "grpo", "token", 0.2, 0.2, 0.0, OLD)
    got, _ = our_loss("grpo", 0.0, OLD, clip_high=0.28)
    assert abs(float(got - want)) > 1e-4
