"""Advantage estimators: what was rewarded -> an advantage for each chain, [S], or for each trained token, [N].
Chains without a reward are gone before: S = chains, N = their sampled tokens, chain after chain; all in float64."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from rl.losses import masked

MIN_STD = 1e-6  # a group whose rewards spread less is without signal


@dataclass(frozen=True)
class Outcome:
    """What one step's chains came to. A KL penalty in the reward lies on tokens, the reward on a chain's last one."""

    rewards: Tensor  # [S]
    group_ids: Tensor  # [S] int64
    sequence_ids: Tensor  # [N] int64, ascending
    penalties: Tensor  # [N], taken off the reward; zeros unless objective.kl_place is `reward`
    parts: Tensor  # [S, P], the rewards that a composed reward is made of; its own value where it has no parts
    part_weights: Sequence[float] = ()  # of the first parts; the others weigh 1
    values: Tensor | None = None  # [N], the critic's, of the state before each token
    gamma: float = 1.0
    lam: float = 1.0

    def net(self) -> Tensor:
        """Rewards less all penalties of their chain, [S]."""
        return self.rewards.index_add(0, self.sequence_ids, -self.penalties)

    def centre(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values [S] less their group's mean, exactly 0 in groups without spread; the groups' mean, std, size, [S]."""
        groups, group_of = torch.unique(self.group_ids, return_inverse=True)
        zeros = values.new_zeros(len(groups))
        count = zeros.index_add(0, group_of, torch.ones_like(values))
        mean = zeros.index_add(0, group_of, values) / count
        centred = values - mean[group_of]
        std = (zeros.index_add(0, group_of, centred.square()) / (count - 1).clamp(min=1)).sqrt()[group_of]
        return masked(centred, std >= MIN_STD), mean[group_of], std, count[group_of]

    def token_rewards(self) -> Tensor:
        """[N]: minus each token's penalty, plus the chain's reward on its last one; a length cap is an end, too."""
        last = torch.ones_like(self.sequence_ids, dtype=torch.bool)
        last[:-1] = self.sequence_ids[1:] != self.sequence_ids[:-1]
        return last * self.rewards[self.sequence_ids] - self.penalties


Estimator: TypeAlias = Callable[[Outcome], Tensor]


def group_norm(outcome: Outcome, epsilon: float = 1e-4) -> Tensor:
    """(reward - group mean) / (group std + epsilon), ddof 1, [S]; Shao et al. 2024, "DeepSeekMath", section 4.1.2."""
    centred, _, std, _ = outcome.centre(outcome.net())
    return centred / (std + epsilon)


def group_mean(outcome: Outcome) -> Tensor:
    """reward - group mean, [S]; Liu et al. 2025, "Understanding R1-Zero-like training" (Dr. GRPO), section 3.2."""
    return outcome.centre(outcome.net())[0]


def group_mean_batch_std(outcome: Outcome, epsilon: float = 1e-4) -> Tensor:
    """(reward - group mean) / (their std over the batch + epsilon), [S]; Khatri et al. 2025, "ScaleRL", section 4."""
    centred = group_mean(outcome)
    return centred / (deviation(centred) + epsilon)


def leave_one_out(outcome: Outcome) -> Tensor:
    """reward - mean of the group's others, [S]; Ahmadian et al. 2024, "Back to basics" (RLOO), eq. 8."""
    centred, _, _, count = outcome.centre(outcome.net())
    return centred * count / (count - 1).clamp(min=1)


def mean_norm(outcome: Outcome, epsilon: float = 1e-4) -> Tensor:
    """(reward - group mean) / (group mean + epsilon), [S], for rewards >= 0: hard problems weigh 1 / pass rate; 0 where
    the mean is not above epsilon; Tajwar et al. 2026, "Maximum likelihood reinforcement learning" (MaxRL), eq. 10."""
    centred, mean, _, _ = outcome.centre(outcome.net())
    return masked(centred / (mean + epsilon), mean > epsilon)


def parts_norm(outcome: Outcome, epsilon: float = 1e-4) -> Tensor:
    """Weighted sum of the group_norms of each part of a composed reward, over its std in the batch, [S]; Liu et al.
    2026, "GDPO", eq. 4 to 6. A KL penalty in the reward comes off the sum as it is, or its weight would cancel."""
    normed = [centred / (std + epsilon) for centred, _, std, _ in map(outcome.centre, outcome.parts.T)]
    weights = outcome.rewards.new_tensor([*outcome.part_weights, *[1.0] * len(normed)])[: len(normed)]
    summed = weights @ torch.stack(normed) + outcome.centre(outcome.net() - outcome.rewards)[0]
    return summed / (deviation(summed) + epsilon)


def global_norm(outcome: Outcome, epsilon: float = 1e-8) -> Tensor:
    """Rewards still to come at each token, normed over all tokens, [N]; Hu et al. 2025, "REINFORCE++", eq. 8 to 10."""
    return whiten(gae(outcome), epsilon)


def gae(outcome: Outcome) -> Tensor:
    """Generalised advantages, [N]: delta_t = r_t + gamma V_t+1 - V_t, A_t = delta_t + gamma lam A_t+1; Schulman et al.
    2016, eq. 16. t runs over sampled tokens alone: across inserted ones the next value is the next sampled token's.
    Without values they are 0, and A_t is the discounted reward to come."""
    rewards, sequence_ids = outcome.token_rewards(), outcome.sequence_ids
    values = torch.zeros_like(rewards) if outcome.values is None else outcome.values.to(rewards.dtype)
    counts = torch.bincount(sequence_ids, minlength=len(outcome.rewards))
    offset = torch.arange(len(rewards), device=rewards.device) - (counts.cumsum(0) - counts)[sequence_ids]
    width = int(counts.max()) if len(counts) else 0
    padded = rewards.new_zeros(2, len(counts), width + 1)  # the column behind is the end: no value, no advantage
    padded[:, sequence_ids, offset] = torch.stack([rewards, values])
    deltas = padded[0, :, :-1] + outcome.gamma * padded[1, :, 1:] - padded[1, :, :-1]
    for t in reversed(range(width - 1)):
        deltas[:, t] += outcome.gamma * outcome.lam * deltas[:, t + 1]
    return deltas[sequence_ids, offset]


def whiten(values: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Values less their mean, over their std; zeros where they have no spread."""
    return (values - values.mean()) / (deviation(values) + epsilon) * bool(deviation(values) >= MIN_STD)


def deviation(values: Tensor) -> Tensor:
    """Standard deviation, ddof 1; 0 of less than two."""
    return values.std() if len(values) > 1 else values.new_zeros(())


ADVANTAGES: dict[str, Estimator] = {
    "group_norm": group_norm, "group_mean": group_mean, "group_mean_batch_std": group_mean_batch_std,
    "leave_one_out": leave_one_out, "mean_norm": mean_norm, "parts_norm": parts_norm, "global_norm": global_norm,
    "gae": gae,
}  # fmt: skip
