"""Policy losses per token, and how token losses become one number. T = trained tokens of a micro-batch.
Nothing here divides by a size of the micro-batch: weights are taken over the whole minibatch (`token_weights`), so that
the way it is cut into micro-batches, or shared among ranks, can't change the gradient."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from rl.kl import k3
from rl.logprobs import upcast

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped here: exp would overflow, and 0 x infinity poisons the gradient of the clipped branch."""
SAPO_TEMPERATURES = 1.0, 1.05  # of tokens with a positive advantage, and of the others


@dataclass(frozen=True)
class Tokens:
    """What a loss sees of a micro-batch, each [T]; only `current` has a gradient. A chain's tokens are all here."""

    current: Tensor  # logprobs of the weights as they are now
    old: Tensor  # of those at the start of the batch
    sampler: Tensor  # as the server gave them
    advantages: Tensor
    mask: Tensor  # bool, False = not trained
    sequence_ids: Tensor  # int64, which chain

    @cached_property
    def log_ratio(self) -> Tensor:
        """ln(current / old), exactly 0 where masked."""
        return masked(upcast(self.current) - upcast(self.old), self.mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)

    @cached_property
    def pull(self) -> Tensor:
        """The advantages, exactly 0 where masked."""
        return masked(self.advantages.to(self.log_ratio.dtype), self.mask)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """For each token the sum over its chain's trained tokens, [T]."""
        chains, chain_of = torch.unique(self.sequence_ids, return_inverse=True)
        return values.new_zeros(len(chains)).index_add(0, chain_of, masked(values, self.mask))[chain_of]

    def sequence_mean(self, values: Tensor) -> Tensor:
        """For each token the mean over its chain's trained tokens, [T]."""
        return self.sequence_sum(values) / self.sequence_sum(torch.ones_like(values)).clamp(min=1)


LossResult: TypeAlias = tuple[Tensor, Tensor]
"""Losses [T], 0 where masked, the only ones with gradient; bool [T]: the bound was hit, the token has no gradient (with
cispo: its weight was cut)."""
Loss: TypeAlias = Callable[[Tokens, float, float], LossResult]  # (tokens, clip_low, clip_high)


def clip_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A); Schulman et al. 2017, "PPO", eq. 7; separate bounds: Yu et al.
    2025, "DAPO", eq. 10. At ratio 1 its gradient is REINFORCE's, -A grad log p."""
    return _clip(tokens.log_ratio.exp(), tokens.pull, low, high)


def gspo_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """The clip loss with one ratio a chain, exp(its mean log ratio); Zheng et al. 2025, "GSPO", eq. 5 and 7."""
    return _clip(tokens.sequence_mean(tokens.log_ratio).exp(), tokens.pull, low, high)


def cispo_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """-min(ratio, 1 + high) A log p, the weight detached, so that every token keeps a gradient; MiniMax 2025,
    "MiniMax-M1", eq. 4 and 5. `low` is not used: the paper leaves the lower bound open."""
    ratio = tokens.log_ratio.detach().exp()
    losses = -ratio.clamp(max=1 + high) * tokens.pull * masked(upcast(tokens.current), tokens.mask)
    return losses, ratio > 1 + high


def reinforce_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """-A log p, without a ratio; Williams 1992. Both bounds are not used."""
    return -tokens.pull * masked(upcast(tokens.current), tokens.mask), torch.zeros_like(tokens.mask)


def dppo_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """-ratio A to the sampler, without the tokens whose probability is already more than `high` above the sampler's
    (A > 0), or `low` below it (A < 0): binary total variation; Qi et al. 2026, "DPPO", arXiv 2602.04879."""
    moved = (upcast(tokens.current).exp() - upcast(tokens.sampler).exp()).detach()
    beyond = tokens.mask & torch.where(tokens.pull > 0, moved > high, moved < -low)
    log_ratio = masked(upcast(tokens.current) - upcast(tokens.sampler), tokens.mask & ~beyond)
    return masked(-log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * tokens.pull, ~beyond), beyond


def sapo_loss(tokens: Tokens, low: float, high: float) -> LossResult:
    """-4/tau sigmoid(tau (ratio - 1)) A: a soft gate instead of a bound, tau 1 for A > 0, else 1.05; Gao et al. 2025,
    "SAPO", eq. 5 and 6. Both bounds are not used."""
    up, down = SAPO_TEMPERATURES
    tau = torch.where(tokens.pull > 0, up, down).to(tokens.pull.dtype)
    return -torch.sigmoid(tau * (tokens.log_ratio.exp() - 1)) * 4 / tau * tokens.pull, torch.zeros_like(tokens.mask)


def _clip(ratio: Tensor, pull: Tensor, low: float, high: float) -> LossResult:
    plain, limited = ratio * pull, ratio.clamp(1 - low, 1 + high) * pull
    return -torch.minimum(plain, limited), (limited < plain).detach()


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """max((V - R)^2, (V clipped to old +- clip, - R)^2) / 2, [T]; Schulman et al. 2017 and its published code."""
    limited = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (limited - returns).square()) / 2


LOSSES: dict[str, Loss] = {
    "clip": clip_loss, "gspo": gspo_loss, "cispo": cispo_loss, "reinforce": reinforce_loss, "dppo": dppo_loss,
    "sapo": sapo_loss,
}  # fmt: skip
AGGREGATIONS = ("sequence_mean", "token_mean", "sequence_sum", "fixed_length", "prompt_mean")


def token_weights(mode: str, mask: Tensor, sequence_ids: Tensor, group_ids: Tensor, max_tokens: int = 1) -> Tensor:
    """Each token's share in the loss, [N] over the tokens of a whole minibatch; exactly 0 where masked. With S chains
    and G problems that have a trained token: sequence_mean 1 / (S tokens of the chain); token_mean 1 / all tokens;
    sequence_sum 1 / S; fixed_length 1 / (S max_tokens); prompt_mean 1 / (G tokens of the problem)."""
    tokens = mask.to(torch.float64)

    def tally(ids: Tensor) -> tuple[Tensor, Tensor]:  # trained tokens with the same id, and how many ids have any
        _, of = torch.unique(ids, return_inverse=True)
        counts = torch.bincount(of, tokens)
        return counts[of].clamp(min=1), (counts > 0).sum().clamp(min=1)

    if mode not in AGGREGATIONS:
        raise ValueError(f"aggregation mode {mode!r} is none of {', '.join(AGGREGATIONS)}")
    (own, chains), (shared, problems) = tally(sequence_ids), tally(group_ids)
    shares = {
        "sequence_mean": own * chains,
        "token_mean": tokens.sum().clamp(min=1),
        "sequence_sum": chains,
        "fixed_length": chains * max_tokens,
        "prompt_mean": shared * problems,
    }
    return tokens / shares[mode]


def aggregate(token_values: Tensor, weights: Tensor) -> Tensor:
    """Sum of token values [T] by their weights [T], a scalar: this micro-batch's part of the minibatch's loss."""
    return (masked(token_values, weights > 0) * weights.to(token_values.dtype)).sum()


def diagnose(log_ratio: Tensor, clipped: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Sums over a micro-batch's trained tokens, without gradient: how many, those clipped, and KL(old || current)."""
    approx_kl = k3(torch.zeros_like(log_ratio), log_ratio)
    return {"tokens": mask.sum(), "clipped": (clipped & mask).sum(), "approx_kl": approx_kl.sum()}


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values [T] with exact zeros, and no gradient, where the mask is False: a NaN there stays there."""
    return torch.where(mask, values, torch.zeros_like(values))
