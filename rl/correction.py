"""Weights for the gap between the policy that sampled a token and the learner's copy of it (old / sampler).
Truncated weights cap what a token may count, masks leave tokens or whole chains out where the two disagree."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rl.losses import MAX_LOG_RATIO, Tokens, masked


@dataclass(frozen=True)
class Rule:
    """How a ratio becomes a weight."""

    level: Literal["token", "sequence", "mean"]  # ratio of a token, of its chain (product), or its geometric mean
    low: float = 0.0  # below it the weight is 0
    high: float = float("inf")  # above it the weight is 0
    cap: float = float("inf")  # above it the weight is this


@dataclass(frozen=True)
class Correction:
    weights: Tensor  # [T], without gradient; all ones when off
    metrics: dict[str, Tensor]  # sums over trained tokens


CORRECTIONS: dict[str, tuple[Rule, ...]] = {
    "none": (),
    "token": (Rule("token", cap=2.0),),  # truncated importance sampling, Yao et al. 2025
    "token_mask": (Rule("token", low=0.5, high=2.0),),  # Zheng et al. 2025, "IcePop"
    "sequence": (Rule("sequence", cap=2.0),),
    "sequence_mask": (Rule("sequence", low=0.5, high=2.0),),  # Liu et al. 2025, "When speed kills stability"
    "geometric": (
        Rule("mean", low=0.99, high=1.01),
        Rule("token", cap=2.0),
    ),
}
"""Rules of each mode; a geometric mean only masks. `geometric` is recommended where dtypes or kernels differ."""


def correct(mode: str, tokens: Tokens) -> Correction:
    """The weights of a mode, [T]; a chain's tokens must all be there. Metrics: the sum of the weights, tokens that were
    cut to the cap (`truncated`) and those left out (`rejected`)."""
    gap = masked((tokens.old - tokens.sampler).detach(), tokens.mask)
    weights, truncated, rejected = torch.ones_like(gap), torch.zeros_like(tokens.mask), torch.zeros_like(tokens.mask)
    for rule in CORRECTIONS[mode]:
        sums = {"sequence": tokens.sequence_sum, "mean": tokens.sequence_mean}
        log_ratio = sums[rule.level](gap) if rule.level in sums else gap
        ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        rejected = rejected | (tokens.mask & ((ratio < rule.low) | (ratio > rule.high)))
        truncated = truncated | (tokens.mask & (ratio > rule.cap))
        weights = weights * (1.0 if rule.level == "mean" else ratio.clamp(max=rule.cap))
    weights = weights.masked_fill(rejected, 0.0)
    found = {"weight": masked(weights, tokens.mask), "truncated": truncated, "rejected": rejected}
    return Correction(weights, {name: values.sum() for name, values in found.items()} if CORRECTIONS[mode] else {})
