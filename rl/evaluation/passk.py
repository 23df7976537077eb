"""pass@k from the distribution of per-problem pass@1, fitted as a Beta (after arXiv 2407.21787, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln

from rl.evaluation.points import Array

BOUNDS = (1e-3, 1e4)
"""Of both parameters: all problems alike, or each certain, would send the likelihood's maximum to infinity or to 0."""


@dataclass(frozen=True)
class BetaRates:
    """A problem's chance p of a correct sample is drawn from Beta(`a`, `b`)."""

    a: float
    b: float

    @property
    def mean(self) -> float:
        """pass@1."""
        return self.a / (self.a + self.b)

    def pass_at(self, k: int) -> float:
        """E[1 - (1 - p)^k] = 1 - B(a, b + k) / B(a, b)."""
        return float(-np.expm1(betaln(self.a, self.b + k) - betaln(self.a, self.b)))


def fit_rates(correct: Array, judged: Array) -> BetaRates | None:
    """The Beta of greatest likelihood for `correct` [P] of `judged` [P] samples; None where no problem has two.

    log L = sum of log B(a + c, b + n - c) - log B(a, b), the beta-binomial's up to a constant. With one sample a
    problem only the mean is known, never the spread.
    """
    correct, judged = correct[judged > 0], judged[judged > 0]
    if not (judged > 1).any():
        return None

    def loss(theta: Array) -> float:
        a, b = np.exp(theta)
        return -float((betaln(a + correct, b + judged - correct) - betaln(a, b)).mean())

    share = (correct.sum() + 1) / (judged.sum() + 2)
    starts = [np.log([share * total, (1 - share) * total]) for total in (0.5, 5.0, 50.0)]
    limits = [tuple(np.log(BOUNDS))] * 2
    found = [minimize(loss, np.clip(start, *limits[0]), method="L-BFGS-B", bounds=limits) for start in starts]
    a, b = np.exp(min(found, key=lambda result: result.fun).x)
    return BetaRates(float(a), float(b))
