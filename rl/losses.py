"""Policy losses per token, and how token losses become one number. T = trained tokens of a micro-batch.
Nothing here divides by a size of the micro-batch: denominators come from outside, taken over the whole minibatch, so
that the way a minibatch is cut into micro-batches can't change the gradient."""

import torch
from torch import Tensor

from rl.kl import k3
from rl.logprobs import upcast

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped here: exp would overflow, and 0 x infinity poisons the gradient of the clipped branch."""


def clip_loss(
    current: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) per token; Schulman et al. 2017, "PPO", eq. 7.
    From logprobs [T] of the current weights and of those at the start of the batch, A [T], mask [T] bool (False = not
    trained): losses [T], the only ones with gradient (at ratio 1 it is REINFORCE's, -A grad log p); ln(current / old)
    [T], both 0 where masked; and bool [T]: the clipped branch was taken, so the token has no gradient."""
    log_ratio = masked(upcast(current) - upcast(old), mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = masked(advantages.to(ratio.dtype), mask)
    plain, limited = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(plain, limited), log_ratio.detach(), (limited < plain).detach()


def token_weights(mask: Tensor, sequence_ids: Tensor, mode: str) -> Tensor:
    """Each token's share in the aggregate before the denominator, [T]; 0 where masked.
    sequence_mean: 1 / (trained tokens of its sequence), token_mean: 1. Their sum is the denominator's share of these
    tokens: sequences with a trained token, or trained tokens. A sequence must stand in one micro-batch."""
    if mode not in ("sequence_mean", "token_mean"):
        raise ValueError(f"aggregation mode {mode!r} is neither sequence_mean nor token_mean")
    ones = mask.to(torch.float64)
    if mode == "token_mean":
        return ones
    sequences, sequence_of = torch.unique(sequence_ids, return_inverse=True)
    counts = ones.new_zeros(len(sequences)).index_add(0, sequence_of, ones)
    return ones / counts.clamp(min=1)[sequence_of]


def aggregate(token_values: Tensor, mask: Tensor, sequence_ids: Tensor, mode: str, denominator: float) -> Tensor:
    """Sum of the weighted token values [T] over `denominator`, a scalar: this micro-batch's part of the loss.
    `denominator` is the sum of `token_weights` over every micro-batch (and rank) of the minibatch."""
    weights = token_weights(mask, sequence_ids, mode).to(token_values.dtype)
    return (masked(token_values, mask) * weights).sum() / denominator


def diagnose(log_ratio: Tensor, clipped: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over a micro-batch's trained tokens, without gradient: how many, those clipped, and KL(old || current)."""
    approx_kl = k3(torch.zeros_like(log_ratio), log_ratio)
    return {"tokens": mask.sum(), "clipped": (clipped & mask).sum(), "approx_kl": approx_kl.sum()}


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values [T] with exact zeros, and no gradient, where the mask is False: a NaN there stays there."""
    return torch.where(mask, values, torch.zeros_like(values))
