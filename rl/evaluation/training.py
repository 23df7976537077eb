"""The training axis: accuracy against training compute, fitted on its first half and checked on its second."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from rewards.types import STATUSES
from rl.evaluation.accuracy import QUANTILES, Accuracy, Array, Gain, Verdict, interval, means, resample
from rl.evaluation.thinking import Thinker
from rl.metrics import Row
from rl.metrics import means as means_of
from rl.views import words

COMPUTE = {  # what the axis may count, and the metrics of a step that add up to it
    "flops": ("total/flops/train", "total/flops/rollout"),
    "tokens": ("total/tokens/generated",),
    "steps": ("step",),
    "seconds": ("total/time/step",),
}
UNITS = {"flops": "FLOPs", "tokens": "generated tokens", "steps": "steps", "seconds": "seconds"}
EXPONENTS = (0.5, 4.0)  # bounds of B: below, it climbs over a thousandfold compute; above, it is a step
MIDPOINTS = (0.1, 10.0)  # bounds of Cmid, in units of the smallest and of the largest compute that was fitted
STARTS = ((0.1, 1.0), (0.3, 1.0), (0.3, 2.5), (1.0, 1.0), (1.0, 2.5), (3.0, 1.5))  # (Cmid / largest compute, B)
FIT_DRAWS = 400  # resamples that are fitted; a fit takes milliseconds
MIN_FIT = 4  # points, the base among them, below which nothing is fitted: the curve has three free parameters
MIN_CHECK = 8  # points below which there is no check and no verdict: half of them must still carry a fit


class TrainPoint(NamedTuple):
    """A checkpoint on val."""

    step: int
    compute: dict[str, float]  # cumulative, by the names of COMPUTE
    accuracy: Accuracy


class Run(NamedTuple):
    """What a run directory tells of its training."""

    name: str
    points: list[TrainPoint]
    rows: Sequence[Row] = ()  # metrics.jsonl
    config: Mapping[str, Any] = {}  # config.yaml as it stands
    thinkers: Sequence[Thinker] = ()  # base, checkpoints and final policy, those that were measured on test


class Fit(NamedTuple):
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
    """The curve through (0, `base`) nearest to points [n] with standard deviations [n]; one must have compute. Bounds:
    A in [R0, 1], B in EXPONENTS, Cmid as MIDPOINTS says. `near` starts from another fit alone, for resamples."""
    compute, accuracy, deviation = (values[compute > 0] for values in (compute, accuracy, deviation))
    largest = float(compute.max())
    x = compute / largest
    low = np.array([base, np.log(MIDPOINTS[0] * x.min()), np.log(EXPONENTS[0])])
    high = np.array([max(1.0, base + 1e-9), np.log(MIDPOINTS[1]), np.log(EXPONENTS[1])])

    def curve(theta: Array) -> Fit:
        return Fit(base, *theta[:1].tolist(), *np.exp(theta[1:]).tolist())

    top = base + 1.1 * max(float(accuracy.max()) - base, 0.0)
    starts = [(top, np.log(midpoint), np.log(exponent)) for midpoint, exponent in STARTS]
    if near is not None:
        starts = [(near.ceiling, np.log(near.midpoint / largest), np.log(near.exponent))]
    inside = 1e-6 * (high - low)
    found = [
        least_squares(lambda theta: (curve(theta).at(x) - accuracy) / deviation, start, bounds=(low, high))
        for start in np.clip(starts, low + inside, high - inside)
    ]
    best = curve(min(found, key=lambda result: result.cost).x)
    return best._replace(midpoint=best.midpoint * largest)


class Prediction(NamedTuple):
    """A fit with its uncertainty: what newly measured points would show."""

    fit: Fit
    draws: tuple[Fit, ...]  # fits of resampled points
    scatter: float  # standard deviation of points around the fit in units of their own, at least 1

    def band(self, compute: Array, sizes: Array) -> tuple[Array, Array]:
        """The 95 % interval [n], [n] of points measured at `compute` [n] on `sizes` [n] problems.
        Curves of the resamples, plus a measurement's noise: sqrt(p (1 - p) / size), widened by `scatter`."""
        curves = np.clip([draw.at(compute) for draw in self.draws], 0, 1)  # [draws, n]
        noise = np.random.default_rng(1).standard_normal((len(curves), 1))  # one for all n: each is judged alone
        measured = curves + noise * self.scatter * np.sqrt(curves * (1 - curves) / sizes)
        low, high = np.quantile(np.clip(measured, 0, 1), QUANTILES, axis=0)
        return low, high


class TrainAxis(NamedTuple):
    """One run's training axis, by compute; what there are too few points for is None."""

    name: str
    x: str  # a key of COMPUTE
    points: list[TrainPoint]
    compute: Array  # [n]
    accuracies: list[Accuracy]  # n
    split: int  # points fitted: half of them, all where there are too few for a check
    prediction: Prediction | None  # from these
    inside: float | None  # share of the other points in its band
    band_at_end: float | None  # its half width at the last point
    slope: Gain | None  # of the last third
    verdict: Verdict
    bottleneck: str | None  # None while rising
    seeds: "tuple[TrainAxis, ...]" = ()  # the runs beside this one

    @property
    def words(self) -> str:
        return words("training_axis", self, UNITS[self.x], MIN_CHECK)

    def to_json(self) -> dict[str, Any]:
        told = ("x", "inside", "band_at_end", "verdict", "bottleneck", "words")
        found: dict[str, Any] = {"run": self.name} | {name: getattr(self, name) for name in told} | {"fit": None}
        if self.prediction is not None:
            ceilings = interval(np.array([draw.ceiling for draw in self.prediction.draws]))
            found["fit"] = {"points": self.split, **self.prediction.fit._asdict(), "ceiling_ci95": ceilings}
        points = [{"step": point.step, **point.compute, **point.accuracy.to_json()} for point in self.points]
        found |= {"points": points, "slope_last_third": self.slope and self.slope._asdict()}
        return found | {"seeds": [seed.to_json() for seed in self.seeds]}


def measure_training(run: Run, x: str = "flops") -> TrainAxis:
    """Fit, check and judge a run's points; `x` is a key of COMPUTE."""
    points = sorted(run.points, key=lambda point: (point.compute[x], point.step))
    compute = np.array([point.compute[x] for point in points])
    accuracies = [point.accuracy for point in points]
    fitted = len(points) >= MIN_FIT and points[0].step == 0 and compute[1] > 0
    checked = fitted and len(points) >= MIN_CHECK
    split = (len(points) + 1) // 2 if checked else len(points)
    prediction = predict(compute[:split], accuracies[:split]) if fitted else None
    inside = band_at_end = slope = None
    if prediction is not None and checked:
        values = np.array([accuracy.value for accuracy in accuracies])
        low, high = prediction.band(compute, np.array([accuracy.size for accuracy in accuracies]))
        inside = float(np.mean((low <= values)[split:] & (values <= high)[split:]))
        band_at_end = float(high[-1] - low[-1]) / 2
        slope = measure_slope(compute, accuracies)
    verdict = slope.verdict if slope else "undecided"
    bottleneck = None if verdict == "rising" else name_bottleneck(run.rows, run.config)
    found = (prediction, inside, band_at_end, slope, verdict, bottleneck)
    return TrainAxis(run.name, x, points, compute, accuracies, split, *found)


def predict(compute: Array, accuracies: list[Accuracy]) -> Prediction:
    """Fit points [n] from the base (compute 0, first) on, and fit their resamples; R0 is the measured base."""
    values, spread = means(accuracies)
    fit = fit_curve(compute, values, spread, values[0])
    residuals = ((values - fit.at(compute)) / spread)[1:]
    scatter, resampled = resample_scattered(accuracies, residuals, parameters=3, draws=FIT_DRAWS)
    draws = tuple(fit_curve(compute, row, spread, float(row[0]), near=fit) for row in resampled)
    return Prediction(fit, draws, scatter)


def measure_slope(compute: Array, accuracies: list[Accuracy]) -> Gain:
    """What a weighted straight line in log2 of compute gains over the last third of points [n], at least three."""
    third = max(3, round(len(accuracies) / 3))
    last, x = accuracies[-third:], np.log2(compute[-third:])
    values, spread = means(last)
    slope, level = np.polyfit(x, values, 1, w=1 / spread)
    _, resampled = resample_scattered(last, (values - level - slope * x) / spread, parameters=2)
    slopes = np.polyfit(x, resampled.T, 1, w=1 / spread)[0]  # [draws]
    return Gain(float(slope * (x[-1] - x[0])), interval(slopes * (x[-1] - x[0])))


def resample_scattered(
    accuracies: list[Accuracy], residuals: Array, parameters: int, draws: int = 1000
) -> tuple[float, Array]:
    """The points' scatter, and resamples [draws, n] with what of it resampling problems can't give, as normal noise.
    Scatter: root of chi2 / (n - parameters) of residuals [n] in standard deviations, at least 1 (Birge 1932). Above 1
    where points differ by more than their problems explain: checkpoints differ, too."""
    scatter = max(1.0, float(residuals @ residuals) / max(1, len(residuals) - parameters)) ** 0.5
    resampled, (_, spread) = resample(accuracies, draws), means(accuracies)
    noise = np.random.default_rng(2).standard_normal(resampled.shape)
    return scatter, np.asarray(np.clip(resampled + noise * spread * (scatter**2 - 1) ** 0.5, 0, 1))


def name_bottleneck(rows: Sequence[Row], config: Mapping[str, Any]) -> str:
    """What may hold training back in the last third of steps, farthest past its threshold first, or `none seen`."""
    third = max(1, len(rows) // 3)
    logged = [{key: value for key, value in row.items() if isinstance(value, int | float)} for row in rows]
    # NaN, which reaches no threshold, where nothing was logged
    first, last = (defaultdict(lambda: math.nan, means_of(part)) for part in (logged[:third], logged[-third:]))
    chains = sum(last.get(f"samples/{status}", 0) for status in STATUSES)
    problems = config.get("rollout", {}).get("problems")
    low_precision = config.get("model", {}).get("dtype") == "bfloat16"
    bound = config.get("sync", {}).get("bound") or (1e-3 if low_precision else 1e-6)
    signals = [  # value, the threshold from which it is named, words
        (last["samples/truncated"] / (chains or math.nan), 0.10, "chains cut at the token limit"),
        (last["groups/no_variance"] / (problems or math.nan), 0.50, "groups whose chains all score alike"),
        (1 - last["entropy"] / (first["entropy"] or math.nan), 0.75, "entropy lost since the start"),
        (last["mismatch_kl/fresh"] / bound, 1.0, "mismatch of server and learner, in its bound"),
        (last["chain/repeated"], 0.20, "attempts that repeat an earlier one"),
    ]
    named = [(value / least, f"{words} {100 * value:.0f} %") for value, least, words in signals if value >= least]
    return "; ".join(words for _, words in sorted(named, key=lambda pair: -pair[0])) or "none seen"
