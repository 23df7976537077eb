"""The saturating curve of RL's scaling, fitted by bounded least squares.

R(C) = R0 + (A - R0) / (1 + (Cmid / C)^B), ScaleRL (arXiv 2510.13786, equation 1): accuracy R at compute C rises from R0
to the ceiling A; half of the way is gone at Cmid, and B says how abruptly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from rl.evaluation.points import Array

EXPONENTS = (0.5, 4.0)
"""Bounds of B: below, a curve still climbs over a thousandfold compute; above, it is a step between two points."""
MIDPOINTS = (0.1, 10.0)
"""Bounds of Cmid, in units of the smallest and of the largest compute fitted: beyond, points say nothing of it."""
STARTS = ((0.1, 1.0), (0.3, 1.0), (0.3, 2.5), (1.0, 1.0), (1.0, 2.5), (3.0, 1.5))
"""(Cmid as a share of the largest compute, B) from which the search sets out; the best end is kept."""


@dataclass(frozen=True)
class Fit:
    """Parameters of the curve: R0, A, Cmid (in the unit of compute) and B."""

    base: float
    ceiling: float
    midpoint: float
    exponent: float

    def at(self, compute: Array) -> Array:
        """Accuracy [n] at compute [n] >= 0; exactly R0 at 0."""
        return self.base + (self.ceiling - self.base) * progress(compute, self.midpoint, self.exponent)


def progress(compute: Array, midpoint: float, exponent: float) -> Array:
    """1 / (1 + (Cmid / C)^B), written so that C = 0 gives 0."""
    ratio = (compute / midpoint) ** exponent
    return ratio / (1 + ratio)


def fit_curve(compute: Array, accuracy: Array, deviation: Array, base: float, near: Fit | None = None) -> Fit:
    """The curve through (0, `base`) nearest to points [n] with standard deviations [n] (SciPy's trust-region search).

    Bounds: A in [R0, 1], B in EXPONENTS, Cmid as MIDPOINTS says. `near` starts from another fit alone, for resamples.
    Raises ValueError where no point has compute.
    """
    compute, accuracy, deviation = (values[compute > 0] for values in (compute, accuracy, deviation))
    if not len(compute):
        raise ValueError("no point with compute above 0")
    largest = float(compute.max())
    x = compute / largest
    low = np.array([base, np.log(MIDPOINTS[0] * x.min()), np.log(EXPONENTS[0])])
    high = np.array([max(1.0, base + 1e-9), np.log(MIDPOINTS[1]), np.log(EXPONENTS[1])])

    def residuals(theta: Array) -> Array:
        share = progress(x, np.exp(theta[1]), np.exp(theta[2]))
        return (base + (theta[0] - base) * share - accuracy) / deviation

    def jacobian(theta: Array) -> Array:
        share = progress(x, np.exp(theta[1]), np.exp(theta[2]))
        slope = (theta[0] - base) * share * (1 - share) * np.exp(theta[2])
        return np.stack([share, -slope, slope * (np.log(x) - theta[1])], axis=1) / deviation[:, None]

    height = max(float(accuracy.max()), base) - base
    starts = [(base + 1.1 * height, np.log(midpoint), np.log(exponent)) for midpoint, exponent in STARTS]
    if near is not None:
        starts = [(near.ceiling, np.log(near.midpoint / largest), np.log(near.exponent))]
    inside = 1e-6 * (high - low)
    found = [
        least_squares(residuals, np.clip(start, low + inside, high - inside), jacobian, bounds=(low, high))
        for start in starts
    ]
    ceiling, midpoint, exponent = min(found, key=lambda result: result.cost).x
    return Fit(base, float(ceiling), float(np.exp(midpoint)) * largest, float(np.exp(exponent)))
