"""The saturating curve: hand-worked values, known parameters found again, bounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from rl.evaluation.fits import EXPONENTS, Fit, fit_curve


def test_values_worked_by_hand() -> None:
    fit = Fit(base=0.2, ceiling=0.8, midpoint=4.0, exponent=2.0)
    # 1 / (1 + (4/2)^2) = 1/5 of 0.6; half at the midpoint; 1 / (1 + (4/8)^2) = 4/5
    assert fit.at(np.array([0.0, 2.0, 4.0, 8.0])) == pytest.approx([0.2, 0.32, 0.5, 0.68])


@pytest.mark.parametrize(
    "truth", [Fit(0.25, 0.85, 4e12, 1.3), Fit(0.05, 0.6, 9e12, 2.2), Fit(0.4, 1.0, 2e12, 0.7), Fit(0.0, 0.3, 5e11, 1.0)]
)
def test_known_parameters_are_found_again(truth: Fit) -> None:
    compute = np.linspace(0, 1.6e13, 17)
    noise = 0.0005 * np.random.default_rng(3).standard_normal(17)
    found = fit_curve(compute, truth.at(compute) + noise, np.full(17, 0.0005), truth.base)
    assert found.ceiling == pytest.approx(truth.ceiling, rel=0.05)
    assert found.midpoint == pytest.approx(truth.midpoint, rel=0.05)
    assert found.exponent == pytest.approx(truth.exponent, rel=0.05)


def test_the_same_as_scipys_curve_fit() -> None:
    rng = np.random.default_rng(0)
    compute, deviation = np.arange(1.0, 13.0), rng.uniform(0.01, 0.05, 12)
    accuracy = Fit(0.3, 0.8, 4.0, 1.5).at(compute) + deviation * rng.standard_normal(12)

    def curve(c: np.ndarray, a: float, m: float, b: float) -> np.ndarray:
        return 0.3 + (a - 0.3) / (1 + (m / c) ** b)

    expected, _ = curve_fit(
        curve, compute, accuracy, p0=(0.9, 3, 1), sigma=deviation, bounds=((0.3, 0.1, 0.5), (1, 120, 4))
    )
    found = fit_curve(compute, accuracy, deviation, 0.3)
    assert (found.ceiling, found.midpoint, found.exponent) == pytest.approx(tuple(expected), rel=1e-3)


def test_an_uncertain_point_weighs_less() -> None:
    compute = np.arange(1.0, 10.0)
    accuracy = Fit(0.2, 0.7, 3.0, 1.5).at(compute)
    accuracy[4] += 0.2
    sure, unsure = np.full(9, 0.01), np.where(np.arange(9) == 4, 10.0, 0.01)
    assert fit_curve(compute, accuracy, unsure, 0.2).ceiling == pytest.approx(0.7, rel=1e-3)
    assert fit_curve(compute, accuracy, sure, 0.2).ceiling != pytest.approx(0.7, rel=1e-2)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_whatever_is_measured_the_curve_keeps_its_bounds(accuracy: list[float], base: float) -> None:
    compute = np.arange(1.0, len(accuracy) + 1)
    fit = fit_curve(compute, np.array(accuracy), np.full(len(accuracy), 0.03), base)
    assert base - 1e-9 <= fit.ceiling <= max(1, base) + 1e-6
    assert EXPONENTS[0] <= fit.exponent <= EXPONENTS[1] + 1e-9
    assert fit.midpoint > 0
    assert (np.diff(fit.at(np.linspace(0, 20, 50))) >= 0).all()


def test_without_compute_there_is_no_curve() -> None:
    with pytest.raises(ValueError, match="compute above 0"):
        fit_curve(np.zeros(2), np.full(2, 0.5), np.full(2, 0.1), 0.5)
