"""Estimators of KL(policy || reference) per token that the policy sampled; Schulman, "Approximating KL divergence"
(2020). As values k1 and k3 are unbiased, k2 is biased; as losses they differ: the expected gradient of k1 is zero, k2's
is that of the reverse KL(policy || reference), k3's that of the forward KL(reference || policy)."""

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


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
