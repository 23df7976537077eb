"""Advantage estimators: (rewards [N], group_ids [N]) -> advantages [N], one number for each chain.

Samples without a reward were removed before. Statistics are taken in float64, so that a group of equal rewards has no
spread whatever their size; the answer has the rewards' dtype.
"""

import torch
from torch import Tensor

MIN_STD = 1e-6
"""A group whose rewards spread less than this is without signal: its advantages are exactly zero."""


def group_norm(rewards: Tensor, group_ids: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(reward - group mean) / (group std + epsilon), [N]; Shao et al. 2024, "DeepSeekMath", eq. 3 with ddof 1.

    Exactly zero where a group has no spread (std below MIN_STD), and in a group of one, which has no baseline.
    """
    centred, std = _group_spread(rewards.double(), group_ids)
    scaled = centred / (std + epsilon)
    return torch.where(std < MIN_STD, torch.zeros_like(scaled), scaled).to(rewards.dtype)


def _group_spread(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's distance from its group's mean and its group's standard deviation (ddof 1), both [N]."""
    groups, group_of = torch.unique(group_ids, return_inverse=True)
    zeros = rewards.new_zeros(len(groups))
    count = zeros.index_add(0, group_of, torch.ones_like(rewards))
    mean = zeros.index_add(0, group_of, rewards) / count
    centred = rewards - mean[group_of]
    variance = zeros.index_add(0, group_of, centred.square()) / (count - 1).clamp(min=1)
    return centred, variance.sqrt()[group_of]
