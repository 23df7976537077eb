"""A loss and an advantage of one's own. A micro-batch's tokens come packed: every tensor is [T], one entry a token."""

from torch import Tensor

from rl.advantages import Outcome
from rl.losses import Tokens


def loss(tokens: Tokens, clip_low: float, clip_high: float) -> Tensor:
    """-ratio A, and a spring to the old policy instead of a bound; `log_ratio` and `pull` are 0 where masked."""
    return tokens.log_ratio.square() / (2 * clip_high) - tokens.log_ratio.exp() * tokens.pull


def advantage(outcome: Outcome) -> Tensor:
    """The reward less the batch's mean, [S]; one number a token, [N], would do as well."""
    return outcome.net() - outcome.net().mean()
