"""Advantage estimators: (rewards [N], group_ids [N]) -> advantages [N], one number for each chain that has a reward."""

import torch
from torch import Tensor

MIN_STD = 1e-6  # a group whose rewards spread less is without signal


def group_norm(rewards: Tensor, group_ids: Tensor, epsilon: float = 1e-4) -> Tensor:
    """(reward - group mean) / (group std + epsilon), [N]; Shao et al. 2024, "DeepSeekMath", eq. 3 with ddof 1.
    Exactly zero where a group has no spread (std below MIN_STD), and in a group of one, which has no baseline."""
    values = rewards.double()  # in float64 a group of equal rewards has no spread, whatever their size
    groups, group_of = torch.unique(group_ids, return_inverse=True)
    zeros = values.new_zeros(len(groups))
    count = zeros.index_add(0, group_of, torch.ones_like(values))
    mean = zeros.index_add(0, group_of, values) / count
    centred = values - mean[group_of]
    variance = zeros.index_add(0, group_of, centred.square()) / (count - 1).clamp(min=1)
    std = variance.sqrt()[group_of]
    scaled = centred / (std + epsilon)
    return torch.where(std < MIN_STD, torch.zeros_like(scaled), scaled).to(rewards.dtype)
