"""The saturating curve, and pass@k of a Beta: values worked by hand, against SciPy, known parameters found again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import curve_fit
from scipy.stats import beta, betabinom

from rl.evaluation.thinking import fit_rates, pass_at
from rl.evaluation.training import EXPONENTS, Fit, fit_curve
from rollout.evaluate import mean_pass_at_k


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


def test_pass_at_k_worked_by_hand() -> None:
    # Beta(1, 1) is uniform: the integral of 1 - (1 - p)^k is 1 - 1 / (k + 1)
    assert [pass_at(k, 1, 1) for k in (1, 3, 9)] == pytest.approx([0.5, 0.75, 0.9])


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.9), (2.0, 5.0), (40.0, 3.0)])
@pytest.mark.parametrize("k", [1, 2, 8, 100])
def test_closed_form_is_the_integral(a: float, b: float, k: int) -> None:
    expected, _ = quad(lambda p: (1 - (1 - p) ** k) * beta.pdf(p, a, b), 0, 1, limit=200)
    assert pass_at(k, a, b) == pytest.approx(expected, rel=1e-6)
    assert pass_at(1, a, b) == pytest.approx(a / (a + b))


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.5), (2.0, 2.0)])
def test_known_rates_are_found_again(a: float, b: float) -> None:
    correct = betabinom.rvs(32, a, b, size=20_000, random_state=1).astype(float)
    found = fit_rates(np.stack([correct, np.full(20_000, 32.0)], axis=1))
    assert found is not None
    assert found == pytest.approx((a, b), rel=0.05)


def test_no_neighbour_is_likelier_by_scipys_betabinom() -> None:
    rng = np.random.default_rng(2)
    judged = rng.integers(1, 9, 300).astype(float)
    correct = rng.binomial(judged.astype(int), rng.beta(0.7, 1.1, 300)).astype(float)
    found = fit_rates(np.stack([correct, judged], axis=1))
    assert found is not None

    def likelihood(a: float, b: float) -> float:
        return float(betabinom.logpmf(correct, judged, a, b).sum())

    best = likelihood(*found)
    for step_a, step_b in ((1.02, 1), (0.98, 1), (1, 1.02), (1, 0.98), (1.02, 1.02), (0.98, 0.98)):
        assert likelihood(found[0] * step_a, found[1] * step_b) < best


def test_derived_agrees_with_the_unbiased_estimate() -> None:
    rng = np.random.default_rng(4)
    correct = rng.binomial(16, rng.beta(0.5, 1.5, 4000)).astype(float)
    found = fit_rates(np.stack([correct, np.full(4000, 16.0)], axis=1))
    assert found is not None
    rows = [[True] * int(c) + [False] * int(16 - c) for c in correct]
    for k in (1, 2, 4, 16):
        assert pass_at(k, *found) == pytest.approx(mean_pass_at_k(rows, k), abs=0.015)


def test_one_sample_a_problem_tells_no_spread() -> None:
    assert fit_rates(np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_wrong_and_all_right_stay_finite(share: float) -> None:
    found = fit_rates(np.array([[4 * share, 4.0]] * 50))
    assert found is not None
    assert pass_at(4, *found) == pytest.approx(share, abs=0.02)
