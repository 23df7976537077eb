"""pass@k of a Beta: closed form against integration, likelihood against SciPy's beta-binomial."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, betabinom

from rl.evaluation.passk import BetaRates, fit_rates
from rollout.evaluate import mean_pass_at_k


def test_worked_by_hand() -> None:
    # Beta(1, 1) is uniform: the integral of 1 - (1 - p)^k is 1 - 1 / (k + 1)
    assert [BetaRates(1, 1).pass_at(k) for k in (1, 3, 9)] == pytest.approx([0.5, 0.75, 0.9])


@pytest.mark.parametrize(("a", "b"), [(0.3, 0.9), (2.0, 5.0), (40.0, 3.0)])
@pytest.mark.parametrize("k", [1, 2, 8, 100])
def test_closed_form_is_the_integral(a: float, b: float, k: int) -> None:
    expected, _ = quad(lambda p: (1 - (1 - p) ** k) * beta.pdf(p, a, b), 0, 1, limit=200)
    assert BetaRates(a, b).pass_at(k) == pytest.approx(expected, rel=1e-6)
    assert BetaRates(a, b).pass_at(1) == pytest.approx(BetaRates(a, b).mean)


@pytest.mark.parametrize(("a", "b"), [(0.5, 1.5), (2.0, 2.0)])
def test_known_parameters_are_found_again(a: float, b: float) -> None:
    correct = betabinom.rvs(32, a, b, size=20_000, random_state=1).astype(float)
    found = fit_rates(correct, np.full(20_000, 32.0))
    assert found is not None
    assert (found.a, found.b) == pytest.approx((a, b), rel=0.05)


def test_no_neighbour_is_likelier_by_scipys_betabinom() -> None:
    rng = np.random.default_rng(2)
    judged = rng.integers(1, 9, 300).astype(float)
    correct = rng.binomial(judged.astype(int), rng.beta(0.7, 1.1, 300)).astype(float)
    found = fit_rates(correct, judged)
    assert found is not None

    def likelihood(a: float, b: float) -> float:
        return float(betabinom.logpmf(correct, judged, a, b).sum())

    best = likelihood(found.a, found.b)
    for step_a, step_b in ((1.02, 1), (0.98, 1), (1, 1.02), (1, 0.98), (1.02, 1.02), (0.98, 0.98)):
        assert likelihood(found.a * step_a, found.b * step_b) < best


def test_derived_agrees_with_the_unbiased_estimate() -> None:
    rng = np.random.default_rng(4)
    correct = rng.binomial(16, rng.beta(0.5, 1.5, 4000)).astype(float)
    found = fit_rates(correct, np.full(4000, 16.0))
    assert found is not None
    rows = [[True] * int(c) + [False] * int(16 - c) for c in correct]
    for k in (1, 2, 4, 16):
        assert found.pass_at(k) == pytest.approx(mean_pass_at_k(rows, k), abs=0.015)


def test_one_sample_a_problem_tells_no_spread() -> None:
    assert fit_rates(np.array([1.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0])) is None


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_wrong_and_all_right_stay_finite(share: float) -> None:
    found = fit_rates(np.full(50, 4 * share), np.full(50, 4.0))
    assert found is not None
    assert found.pass_at(4) == pytest.approx(share, abs=0.02)
