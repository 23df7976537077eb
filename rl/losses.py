"""Policy losses per token, and how token losses become one number. T = trained tokens of a micro-batch.

Nothing here divides by a size of the micro-batch: denominators come from outside, taken over the whole minibatch, so
that the way a minibatch is cut into micro-batches can't change the gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rl.kl import k3
from rl.logprobs import upcast

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped here: exp would overflow, and 0 x infinity poisons the gradient of the clipped branch."""


@dataclass(frozen=True)
class LossInputs:
    """What a policy loss may read."""

    policy_logprobs: Tensor  # [T] of the current weights, with gradient
    old_logprobs: Tensor  # [T] of the weights at the start of the batch
    advantages: Tensor  # [T]
    mask: Tensor  # [T] bool, False = not trained
    clip_low: float  # the ratio is clipped below 1 - clip_low
    clip_high: float  # and above 1 + clip_high


@dataclass(frozen=True)
class LossOutputs:
    """A policy loss and what diagnostics need."""

    token_losses: Tensor  # [T], 0 where masked, with gradient
    log_ratio: Tensor  # [T] ln(current / old), 0 where masked, without gradient
    clipped: Tensor  # [T] bool: the clipped branch was taken, so the token has no gradient


def clip_loss(inputs: LossInputs) -> LossOutputs:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) per token; Schulman et al. 2017, "PPO", eq. 7.

    At ratio 1 the gradient is REINFORCE's, -A grad log p.
    """
    log_ratio = masked(upcast(inputs.policy_logprobs) - upcast(inputs.old_logprobs), inputs.mask)
    log_ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    advantages = masked(inputs.advantages.to(ratio.dtype), inputs.mask)
    plain = ratio * advantages
    limited = ratio.clamp(1 - inputs.clip_low, 1 + inputs.clip_high) * advantages
    return LossOutputs(-torch.minimum(plain, limited), log_ratio.detach(), (limited < plain).detach())


def token_weights(mask: Tensor, sequence_ids: Tensor, mode: str) -> Tensor:
    """Each token's share in the aggregate before the denominator, [T]; 0 where masked.

    sequence_mean: 1 / (trained tokens of its sequence), token_mean: 1. Their sum is the denominator's share of these
    tokens: sequences with a trained token, or trained tokens. A sequence must stand in one micro-batch.
    """
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

    `denominator` is the sum of `token_weights` over every micro-batch (and rank) of the minibatch.
    """
    weights = token_weights(mask, sequence_ids, mode).to(token_values.dtype)
    return (masked(token_values, mask) * weights).sum() / denominator


def diagnose(outputs: LossOutputs, mask: Tensor) -> dict[str, Tensor]:
    """Sums over a micro-batch's trained tokens, without gradient: how many, those clipped, and KL(old || current)."""
    approx_kl = k3(torch.zeros_like(outputs.log_ratio), outputs.log_ratio)
    return {"tokens": mask.sum(), "clipped": (outputs.clipped & mask).sum(), "approx_kl": approx_kl.sum()}


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values [T] with exact zeros, and no gradient, where the mask is False: a NaN there stays there."""
    return torch.where(mask, values, torch.zeros_like(values))
