"""Resamples of measured accuracies, and the intervals they give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rl.evaluation.points import Accuracy, Array

DRAWS = 1000
QUANTILES = (0.025, 0.975)


def paired(accuracies: Sequence[Accuracy]) -> bool:
    """Whether all tell the outcomes of the same problems."""
    lengths = {None if one.judged is None else len(one.judged) for one in accuracies}
    return len(lengths) == 1 and None not in lengths


def means(accuracies: Sequence[Accuracy]) -> tuple[Array, Array]:
    """[n] values and [n] standard deviations."""
    return np.array([a.value for a in accuracies]), np.array([a.variance**0.5 for a in accuracies])


def resample(accuracies: Sequence[Accuracy], draws: int = DRAWS, seed: int = 0) -> Array:
    """[draws, n] accuracies as other problems would have given them.

    A bootstrap over problems, drawn once for all n points, so that what makes a problem hard moves them together
    (Efron & Tibshirani 1993, chapter 8). Without outcomes: independent normals with the points' own variances.
    """
    rng = np.random.default_rng(seed)
    if not paired(accuracies):
        values, spread = means(accuracies)
        return np.clip(rng.normal(values, spread, size=(draws, len(values))), 0, 1)
    correct = np.stack([a.correct for a in accuracies if a.correct is not None])  # [n, P]
    judged = np.stack([a.judged for a in accuracies if a.judged is not None])
    problems = judged.shape[1]
    counts = rng.multinomial(problems, np.full(problems, 1 / problems), size=draws).astype(float)  # [draws, P]
    rates = np.divide(correct, judged, out=np.zeros_like(correct), where=judged > 0)
    return np.asarray((counts @ rates.T) / np.maximum(counts @ (judged > 0).T, 1))


def interval(draws: Array) -> tuple[float, float]:
    """The middle 95 % of draws [n]."""
    low, high = np.quantile(draws, QUANTILES)
    return float(low), float(high)


def gain_between(before: Accuracy, after: Accuracy) -> tuple[float, tuple[float, float]]:
    """after - before, with its 95 % interval (paired over problems where outcomes are told)."""
    draws = resample([before, after])
    return after.value - before.value, interval(draws[:, 1] - draws[:, 0])
