"""The two curves that are fitted: accuracy over compute, and pass@k over k."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import least_squares, minimize
from scipy.special import betaln

from rl.evaluation.accuracy import Array

EXPONENTS = (0.5, 4.0)  # bounds of B: below, it climbs over a thousandfold compute; above, it is a step
MIDPOINTS = (0.1, 10.0)  # bounds of Cmid, in units of the smallest and of the largest compute that was fitted
STARTS = ((0.1, 1.0), (0.3, 1.0), (0.3, 2.5), (1.0, 1.0), (1.0, 2.5), (3.0, 1.5))  # (Cmid / largest compute, B)
RATES = (np.log(1e-3), np.log(1e4))  # bounds of log a and log b, for problems all alike or all certain


@dataclass(frozen=True)
class Fit:
    """R(C) = R0 + (A - R0) / (1 + (Cmid / C)^B), ScaleRL (arXiv 2510.13786, equation 1): accuracy R at compute C."""

    base: float  # R0
    ceiling: float  # A
    midpoint: float  # Cmid, in the unit of compute: half of the way is gone
    exponent: float  # B: how abruptly

    def at(self, compute: Array) -> Array:
        """Accuracy [n] at compute [n] >= 0; exactly R0 at 0."""
        ratio = (compute / self.midpoint) ** self.exponent
        return self.base + (self.ceiling - self.base) * ratio / (1 + ratio)


def fit_curve(compute: Array, accuracy: Array, deviation: Array, base: float, near: Fit | None = None) -> Fit:
    """The curve through (0, `base`) nearest to points [n] with standard deviations [n]; one must have compute.

    Bounds: A in [R0, 1], B in EXPONENTS, Cmid as MIDPOINTS says. `near` starts from another fit alone, for resamples.
    """
    compute, accuracy, deviation = (values[compute > 0] for values in (compute, accuracy, deviation))
    largest = float(compute.max())
    x = compute / largest
    low = np.array([base, np.log(MIDPOINTS[0] * x.min()), np.log(EXPONENTS[0])])
    high = np.array([max(1.0, base + 1e-9), np.log(MIDPOINTS[1]), np.log(EXPONENTS[1])])

    def curve(theta: Array) -> Fit:
        return Fit(base, float(theta[0]), float(np.exp(theta[1])), float(np.exp(theta[2])))

    def residuals(theta: Array) -> Array:
        return (curve(theta).at(x) - accuracy) / deviation

    top = base + 1.1 * max(float(accuracy.max()) - base, 0.0)
    starts = [(top, np.log(midpoint), np.log(exponent)) for midpoint, exponent in STARTS]
    if near is not None:
        starts = [(near.ceiling, np.log(near.midpoint / largest), np.log(near.exponent))]
    inside = 1e-6 * (high - low)
    clipped = np.clip(starts, low + inside, high - inside)
    found = [least_squares(residuals, start, bounds=(low, high)) for start in clipped]
    best = curve(min(found, key=lambda result: result.cost).x)
    return replace(best, midpoint=best.midpoint * largest)


def fit_rates(outcomes: Array) -> tuple[float, float] | None:
    """(a, b) of the Beta that problems' own pass@1 come from, most likely for outcomes [P, 2] (correct, judged).

    log L = sum of log B(a + c, b + n - c) - log B(a, b), the beta-binomial's up to a constant (arXiv 2407.21787).
    With one sample a problem only the mean is known, never the spread: None.
    """
    correct, judged = outcomes[outcomes[:, 1] > 0].T
    if not (judged > 1).any():
        return None

    def loss(theta: Array) -> float:
        a, b = np.exp(theta)
        return -float((betaln(a + correct, b + judged - correct) - betaln(a, b)).mean())

    share = (correct.sum() + 1) / (judged.sum() + 2)
    starts = [np.log([share * total, (1 - share) * total]) for total in (0.5, 5.0, 50.0)]
    found = [minimize(loss, np.clip(start, *RATES), method="L-BFGS-B", bounds=[RATES] * 2) for start in starts]
    a, b = np.exp(min(found, key=lambda result: result.fun).x)
    return float(a), float(b)


def pass_at(k: int, a: float, b: float) -> float:
    """E[1 - (1 - p)^k] = 1 - B(a, b + k) / B(a, b) for p from Beta(a, b)."""
    return float(-np.expm1(betaln(a, b + k) - betaln(a, b)))
