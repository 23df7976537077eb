"""Accuracies and gains: spread against closed forms, pairs, how often an interval holds the truth, verdicts."""

from __future__ import annotations

import numpy as np
import pytest

from rl.evaluation.accuracy import SMALL_GAIN, Accuracy, Gain, gain_between, interval, resample
from tests.rl.evaluation.synthetic import accuracy, outcomes


def test_the_bootstraps_spread_is_the_standard_error() -> None:
    one = accuracy([[1, 1]] * 60 + [[0, 1]] * 40)
    draws = resample([one], draws=20_000)[:, 0]
    assert draws.mean() == pytest.approx(0.6, abs=0.002)
    assert draws.std() == pytest.approx((0.6 * 0.4 / 100) ** 0.5, rel=0.03)


def test_problems_are_drawn_once_for_all_points() -> None:
    pairs = outcomes(0.5, 200, 4, seed=1)
    draws = resample([accuracy(pairs), accuracy(pairs)])
    assert (draws[:, 0] == draws[:, 1]).all()
    apart = resample([accuracy(None, 0.5, 200), accuracy(None, 0.5, 200)])
    assert np.corrcoef(apart.T)[0, 1] == pytest.approx(0, abs=0.1)


def test_a_problem_without_judged_samples_counts_nowhere() -> None:
    outcomes = np.array([[2.0, 2.0], [0.0, 2.0], [0.0, 0.0]] * 20)
    draws = resample([Accuracy(0.5, (0.4, 0.6), 40, outcomes)], draws=4000)[:, 0]
    assert draws.mean() == pytest.approx(0.5, abs=0.02)


def test_pairs_narrow_a_gain() -> None:
    before, after = outcomes(0.5, 300, 8, seed=1), outcomes(0.55, 300, 8, seed=2)
    low, high = gain_between(accuracy(before), accuracy(after)).ci95
    shuffled = [after[i] for i in np.random.default_rng(0).permutation(300)]
    low_apart, high_apart = gain_between(accuracy(before), accuracy(shuffled)).ci95
    assert high - low < 0.7 * (high_apart - low_apart)


@pytest.mark.parametrize("told", [True, False])
def test_the_interval_of_a_gain_holds_the_truth_about_95_times_in_100(told: bool) -> None:
    rng = np.random.default_rng(7)
    held, repeats = 0, 300
    for _ in range(repeats):
        hard = rng.random(150)
        before, after = (rng.random(150) < share for share in (0.6 * hard, 0.6 * hard + 0.1))  # the true gain is 0.1
        if told:
            a, b = (accuracy([[int(c), 1] for c in row]) for row in (before, after))
        else:
            a, b = (accuracy(None, float(row.mean()), 150) for row in (before, after))
        low, high = gain_between(a, b).ci95
        held += low <= 0.1 <= high
    assert 0.92 <= held / repeats <= 0.985


def test_variance_is_never_zero_and_knows_clusters() -> None:
    assert accuracy([[1, 1]] * 50).variance > 0
    alike = accuracy([[8, 8]] * 30 + [[0, 8]] * 30)  # eight samples that say the same are worth one
    assert alike.size == pytest.approx(60, rel=0.05)
    apart = accuracy([[4, 8]] * 60)
    assert apart.size == pytest.approx(480, rel=0.05)
    never = accuracy([[0, 8]] * 60)  # no interval has a width at 0 or 1: that of as many problems is kept
    assert never.size == pytest.approx(60)


def test_the_middle_95_percent() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))


@pytest.mark.parametrize(
    ("ci95", "verdict"),
    [
        ((0.001, 0.3), "rising"),
        ((-0.02, 0.03), "saturated"),
        ((-0.2, -0.01), "saturated"),  # it falls
        ((-0.02, 0.2), "undecided"),
        ((0.0, SMALL_GAIN), "undecided"),
        ((0.01, 0.03), "rising"),  # slowly
    ],
)
def test_verdicts(ci95: tuple[float, float], verdict: str) -> None:
    assert Gain(0.02, ci95).verdict == verdict


def test_a_gain_in_words() -> None:
    assert str(Gain(0.1, (-0.02, 0.2215))) == "+0.100 (-0.020 to +0.222)"
