"""The training axis: accuracy against training compute, fitted on its first half and checked on its second."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rl.evaluation.fits import Fit, fit_curve
from rl.evaluation.intervals import QUANTILES, interval, means, resample
from rl.evaluation.points import Accuracy, Array, RunPoints, TrainPoint
from rl.evaluation.verdicts import MIN_CHECK, MIN_FIT, Verdict, decide, name_bottleneck, read_signals

FIT_DRAWS = 400
"""Resamples that are fitted; a fit takes milliseconds."""


@dataclass(frozen=True)
class Prediction:
    """A fit with its uncertainty: what newly measured points would show."""

    fit: Fit
    draws: tuple[Fit, ...]  # fits of resampled points
    scatter: float  # standard deviation of points around the fit in units of their own, at least 1

    def band(self, compute: Array, sizes: Array) -> tuple[Array, Array]:
        """The 95 % interval [n], [n] of points measured at `compute` [n] on `sizes` [n] problems.

        Curves of the resamples, plus a measurement's noise: sqrt(p (1 - p) / size), widened by `scatter`.
        """
        curves = np.clip([draw.at(compute) for draw in self.draws], 0, 1)  # [draws, n]
        noise = np.random.default_rng(1).standard_normal((len(curves), 1))  # one for all n: each is judged alone
        measured = curves + noise * self.scatter * np.sqrt(curves * (1 - curves) / sizes)
        low, high = np.quantile(np.clip(measured, 0, 1), QUANTILES, axis=0)
        return low, high


@dataclass(frozen=True)
class Slope:
    """How accuracy moved over the last third of the points: a weighted straight line in log2 of compute."""

    points: int
    gain: float  # of accuracy, from its first to its last point
    ci95: tuple[float, float]
    per_doubling: float
    per_doubling_ci95: tuple[float, float]


@dataclass(frozen=True)
class TrainAxis:
    """One run's training axis; `seeds` are those of the runs beside it."""

    name: str
    x: str  # a key of points.COMPUTE
    points: tuple[TrainPoint, ...]  # by compute
    half: Prediction | None  # from the first `split` points
    whole: Prediction | None  # from all
    split: int
    inside: float | None  # share of the other points in the band of `half`
    band_at_end: float | None  # its half width at the last point
    slope: Slope | None
    verdict: Verdict
    signals: dict[str, float | None]
    bottleneck: str | None  # None while rising
    seeds: tuple[TrainAxis, ...] = ()

    @property
    def compute(self) -> Array:
        """[n]"""
        return np.array([point.compute[self.x] for point in self.points])

    @property
    def accuracies(self) -> list[Accuracy]:
        """n of them."""
        return [point.accuracy for point in self.points]

    @property
    def sizes(self) -> Array:
        """[n] problems that would measure as exactly with one sample each."""
        return np.array([accuracy.size for accuracy in self.accuracies])


def measure_training(run: RunPoints, x: str, seeds: tuple[TrainAxis, ...] = ()) -> TrainAxis:
    """Fit, check and judge one run's points. What there are too few points for is None, and the verdict undecided."""
    points = tuple(sorted(run.train, key=lambda point: (point.compute[x], point.step)))
    compute = np.array([point.compute[x] for point in points])
    accuracies = [point.accuracy for point in points]
    anchored = len(points) >= MIN_FIT and points[0].step == 0 and compute[1] > 0
    checked = anchored and len(points) >= MIN_CHECK
    split = (len(points) + 1) // 2
    half = predict(compute[:split], accuracies[:split]) if checked else None
    whole = predict(compute, accuracies) if anchored else None
    inside = band_at_end = None
    if half is not None:
        values, sizes = np.array([a.value for a in accuracies]), np.array([a.size for a in accuracies])
        low, high = half.band(compute, sizes)
        inside = float(np.mean((low <= values)[split:] & (values <= high)[split:]))
        band_at_end = float(high[-1] - low[-1]) / 2
    slope = measure_slope(compute, accuracies) if checked else None
    verdict = decide(slope.ci95) if slope is not None else "undecided"
    signals = read_signals(run.rows, run.config)
    bottleneck = None if verdict == "rising" else name_bottleneck(signals)
    return TrainAxis(
        run.name, x, points, half, whole, split, inside, band_at_end, slope, verdict, signals, bottleneck, seeds
    )


def predict(compute: Array, accuracies: list[Accuracy]) -> Prediction:
    """Fit points [n] from the base (compute 0, first) on, and fit their resamples; R0 is the measured base."""
    values, spread = means(accuracies)
    fit = fit_curve(compute, values, spread, values[0])
    scatter = excess_scatter(((values - fit.at(compute)) / spread)[1:], parameters=3)
    resampled = _scattered(resample(accuracies, FIT_DRAWS), spread, scatter)
    draws = tuple(fit_curve(compute, row, spread, float(row[0]), near=fit) for row in resampled)
    return Prediction(fit, draws, scatter)


def measure_slope(compute: Array, accuracies: list[Accuracy]) -> Slope:
    """Of the last third of points [n], at least three."""
    third = max(3, round(len(accuracies) / 3))
    last, x = accuracies[-third:], np.log2(compute[-third:])
    values, spread = means(last)
    weights = spread**-2 / (spread**-2).sum()
    centred = x - weights @ x
    direction = weights * centred / (weights @ centred**2)  # direction @ values: the weighted least-squares slope
    slope = float(direction @ values)
    scatter = excess_scatter((values - weights @ values - slope * centred) / spread, parameters=2)
    draws = _scattered(resample(last), spread, scatter) @ direction
    width = float(x[-1] - x[0])
    return Slope(third, slope * width, interval(draws * width), slope, interval(draws))


def excess_scatter(residuals: Array, parameters: int) -> float:
    """Root of chi2 / (n - parameters) of residuals [n] in standard deviations, at least 1 (Birge 1932).

    Above 1 where points differ by more than their problems explain: checkpoints differ, too.
    """
    return max(1.0, float(residuals @ residuals) / max(1, len(residuals) - parameters)) ** 0.5


def _scattered(resampled: Array, spread: Array, scatter: float) -> Array:
    """Resamples [draws, n] with the scatter that resampling problems can't give, as normal noise."""
    noise = np.random.default_rng(2).standard_normal(resampled.shape)
    return np.asarray(np.clip(resampled + noise * spread * (scatter**2 - 1) ** 0.5, 0, 1))
