"""Weights for the gap between the policy that sampled a token and the learner's copy of it (old / sampler)."""

from typing import TypeAlias

import torch
from torch import Tensor

Correction: TypeAlias = tuple[Tensor, dict[str, Tensor]]
"""Weights [T], without gradient, 0 = the token is dropped; and what to log: sums over tokens, each a scalar."""


def usable(sampler_logprobs: Tensor, mode: str) -> Tensor:
    """Which tokens can be trained under a mode, [T] bool: `token` needs a finite sampler logprob, `none` nothing."""
    return torch.isfinite(sampler_logprobs) if mode == "token" else torch.ones_like(sampler_logprobs, dtype=torch.bool)


def no_correction(old_logprobs: Tensor, sampler_logprobs: Tensor, maximum: float = 2.0) -> Correction:
    """Mode `none`: all ones, [T]."""
    return torch.ones_like(old_logprobs), {}


def token_correction(old_logprobs: Tensor, sampler_logprobs: Tensor, maximum: float = 2.0) -> Correction:
    """Mode `token`: min(old / sampler, maximum), [T]; truncated importance sampling, Yao et al. 2025.
    A token without a finite sampler logprob gets weight 0 and is counted as `missing`."""
    known = usable(sampler_logprobs, "token")
    ratio = (old_logprobs - sampler_logprobs).detach().exp()
    weights = ratio.clamp(max=maximum).where(known, 0.0)
    truncated = known & (ratio > maximum)
    return weights, {"missing": (~known).sum(), "truncated": truncated.sum(), "weight": weights.sum()}
