"""A measured accuracy, its uncertainty, and gains of it with the verdict on them."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Interval = tuple[float, float]
Verdict = Literal["rising", "saturated", "undecided"]

QUANTILES = (0.025, 0.975)
SMALL_GAIN = 0.05  # an axis is saturated where the interval of what it added last lies below this


class Accuracy(NamedTuple):
    """pass@1 of one evaluation. Where two tell the outcomes of as many problems, these are the same, in one order."""

    value: float
    ci95: Interval
    problems: int
    outcomes: Array | None = None  # [P, 2]: correct and judged samples of each problem; None where not told

    @property
    def variance(self) -> float:
        """Of the measured mean, with a problem's samples as one cluster; never 0."""
        if self.outcomes is None:
            return self._binomial / self.problems
        correct, judged = self.outcomes[self.outcomes[:, 1] > 0].T
        rates = correct / judged
        spread = float(rates.var(ddof=1)) / len(rates) if len(rates) > 1 else 0.0
        return max(spread, self._binomial / (float(judged.sum()) if 0 < self.value < 1 else len(rates)))

    @property
    def size(self) -> float:
        """Problems with one sample each that would measure as exactly."""
        return self._binomial / self.variance

    def to_json(self) -> dict[str, Any]:
        return {"accuracy": self.value, "ci95": self.ci95, "n_problems": self.problems}

    @property
    def _binomial(self) -> float:
        """Variance of one sample; its share is drawn towards 1/2 by two successes in four (Agresti & Coull 1998)."""
        share = (self.value * self.problems + 2) / (self.problems + 4)
        return share * (1 - share)


class Gain(NamedTuple):
    """Accuracy that was added, with its 95 % interval."""

    gain: float
    ci95: Interval

    @property
    def verdict(self) -> Verdict:
        """rising: the interval is above 0. saturated: it is not, and SMALL_GAIN is above it (a fall, too)."""
        if self.ci95[0] > 0:
            return "rising"
        return "saturated" if self.ci95[1] < SMALL_GAIN else "undecided"

    def __str__(self) -> str:
        return f"{self.gain:+.3f} ({self.ci95[0]:+.3f} to {self.ci95[1]:+.3f})"


def means(accuracies: Sequence[Accuracy]) -> tuple[Array, Array]:
    """[n] values and [n] standard deviations."""
    return np.array([a.value for a in accuracies]), np.array([a.variance**0.5 for a in accuracies])


def resample(accuracies: Sequence[Accuracy], draws: int = 1000) -> Array:
    """[draws, n] accuracies as other problems would have given them: independent normals where no outcomes are told.
    Else a bootstrap over problems (Efron & Tibshirani 1993, chapter 8), drawn once for all n points: what makes a
    problem hard moves them together."""
    rng = np.random.default_rng(0)
    told = [a.outcomes for a in accuracies if a.outcomes is not None]
    if len(told) < len(accuracies) or len({len(outcomes) for outcomes in told}) > 1:
        values, spread = means(accuracies)
        return np.clip(rng.normal(values, spread, size=(draws, len(values))), 0, 1)
    correct, judged = np.moveaxis(np.stack(told), 2, 0)  # [n, P] each
    problems = judged.shape[1]
    counts = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws).astype(float)  # [draws, P]
    rates = correct / np.maximum(judged, 1)
    return np.asarray((counts @ rates.T) / np.maximum(counts @ (judged > 0).T, 1))


def interval(draws: Array) -> Interval:
    """The middle 95 % of draws [n]."""
    low, high = np.quantile(draws, QUANTILES)
    return float(low), float(high)


def gain_between(before: Accuracy, after: Accuracy) -> Gain:
    """after - before, paired over problems where outcomes are told."""
    draws = resample([before, after])
    return Gain(after.value - before.value, interval(draws[:, 1] - draws[:, 0]))
