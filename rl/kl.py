"""Estimators of KL(policy || reference) per token of the policy; Schulman, "Approximating KL divergence" (2020):
k1 unbiased, k2 low variance and biased, k3 unbiased and never negative."""

import torch
from torch import Tensor

from rl.logprobs import upcast


def k1(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ln(policy / ref), [T] from two [T]."""
    return upcast(policy_logprobs) - upcast(ref_logprobs)


def k2(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ln(policy / ref)^2 / 2, [T] from two [T]."""
    return k1(policy_logprobs, ref_logprobs).square() / 2


def k3(policy_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """ref/policy - 1 - ln(ref/policy), [T] from two [T]; expm1 keeps it exact where the two nearly agree."""
    log_ratio = k1(ref_logprobs, policy_logprobs)
    return torch.expm1(log_ratio) - log_ratio
