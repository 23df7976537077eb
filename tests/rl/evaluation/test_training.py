"""The training axis on runs whose curve is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rl.evaluation import training
from rl.evaluation.accuracy import Accuracy, Array
from rl.evaluation.training import Fit, Run, TrainPoint, measure_slope, measure_training, name_bottleneck, predict
from tests.rl.evaluation.synthetic import CURVE, accuracy, outcomes

STEPS = tuple(range(0, 170, 10))


def run_on(
    curve: Callable[[Array], Array], steps: Sequence[int] = STEPS, told: bool = True, seed: int = 0, samples: int = 2
) -> Run:
    """1e11 FLOPs a step, 256 problems."""
    points = []
    for step in steps:
        mean = float(curve(np.array([step * 1e11]))[0])
        measured = accuracy(outcomes(mean, 256, samples, seed * 1000 + step, seed))
        measured = measured if told else Accuracy(measured.value, measured.ci95, 256)
        compute = {"flops": step * 1e11, "tokens": step * 4e4, "steps": float(step), "seconds": step * 20.0}
        points.append(TrainPoint(step, compute, measured))
    return Run("synthetic", points)


@pytest.mark.parametrize("told", [True, False])
def test_the_first_half_foretells_the_second(told: bool) -> None:
    axis = measure_training(run_on(CURVE.at, told=told), "flops")
    assert axis.split == 9
    assert axis.inside is not None
    assert axis.band_at_end is not None
    assert axis.inside >= 0.8
    assert axis.band_at_end < 0.15
    assert "band that the first predicts" in axis.words


def test_the_band_holds_new_points_about_95_times_in_100() -> None:
    """Over 25 runs, each with other problems and samples."""
    held = []
    for seed in range(25):
        points = run_on(CURVE.at, STEPS[::2], seed=seed, samples=1).points
        compute, measured = np.array([p.compute["flops"] for p in points]), [p.accuracy for p in points]
        low, high = predict(compute[:5], measured[:5]).band(compute[5:], np.full(4, 256.0))
        values = np.array([accuracy.value for accuracy in measured[5:]])
        held.append(np.mean((low <= values) & (values <= high)))
    assert 0.9 <= np.mean(held) <= 0.995


def test_a_second_half_off_the_curve_falls_outside() -> None:
    axis = measure_training(run_on(lambda c: np.where(c > 8e12, 0.15, CURVE.at(c)), STEPS), "flops")
    assert axis.inside is not None
    assert axis.inside < 0.2
    assert axis.verdict != "rising"


def test_rising() -> None:
    axis = measure_training(run_on(lambda c: 0.1 + 0.7 * c / 1.6e13), "flops")
    assert axis.slope is not None
    assert axis.slope.ci95[0] > 0
    assert (axis.verdict, axis.bottleneck) == ("rising", None)


def test_saturated_names_a_bottleneck() -> None:
    axis = measure_training(run_on(lambda c: 0.2 + 0.6 * np.minimum(1, c / 3e12), samples=8), "flops")
    assert (axis.verdict, axis.bottleneck) == ("saturated", "none seen")
    assert axis.prediction is not None
    assert axis.prediction.fit.ceiling == pytest.approx(0.8, abs=0.03)


def test_slope_worked_by_hand() -> None:
    line = [accuracy(None, 0.5 + 0.05 * i, 10**6) for i in range(9)]
    slope = measure_slope(2.0 ** np.arange(9), line)
    assert slope.gain == pytest.approx(0.1, rel=1e-3)  # two doublings
    assert slope.gain == pytest.approx(np.mean(slope.ci95), abs=1e-3)


def test_an_uncertain_point_bends_the_slope_less() -> None:
    points = [accuracy(None, value, size) for value, size in ((0.5, 10**6), (0.5, 10**6), (0.8, 10))]
    assert measure_slope(2.0 ** np.arange(3), points).gain < 0.01


def test_scatter_worked_by_hand() -> None:
    def scatter(*residuals: float, parameters: int) -> float:
        points = [accuracy(None, 0.5, 256)] * len(residuals)
        return training.resample_scattered(points, np.array(residuals), parameters)[0]

    assert scatter(2.0, -2.0, 1.0, 0.0, 0.0, parameters=2) == pytest.approx(3**0.5)  # 4 + 4 + 1 = 9 over 5 - 2
    assert scatter(0.1, 0.2, parameters=3) == 1.0


@pytest.mark.parametrize(
    ("count", "fitted", "checked"),
    [(2, False, False), (3, False, False), (4, True, False), (7, True, False), (8, True, True)],
)
def test_too_few_points_say_less(count: int, fitted: bool, checked: bool) -> None:
    axis = measure_training(run_on(CURVE.at, STEPS[:count]), "flops")
    assert (axis.prediction is not None) == fitted
    assert (axis.slope is not None, axis.inside is not None, axis.split < count) == (checked,) * 3
    if not checked:
        assert axis.verdict == "undecided"
        assert "too few points" in axis.words


def test_without_the_base_there_is_no_fit() -> None:
    axis = measure_training(run_on(CURVE.at, STEPS[1:]), "flops")
    assert (axis.prediction, axis.verdict) == (None, "undecided")
    assert "step-0" in axis.words


def test_points_are_ordered_by_compute() -> None:
    run = run_on(CURVE.at, STEPS[::-1])
    assert [point.step for point in measure_training(run, "steps").points] == list(STEPS)


def test_checkpoints_that_jump_widen_the_band() -> None:
    compute = np.arange(12.0)
    jump = 0.08 * np.array([0, 1, -1] * 4)
    values = np.clip(Fit(0.2, 0.8, 3.0, 1.5).at(compute) + jump, 0, 1)
    calm = predict(compute, [accuracy(None, float(v), 256) for v in values - jump])
    wild = predict(compute, [accuracy(None, float(v), 256) for v in values])
    assert calm.scatter == 1.0
    assert wild.scatter > 1.5

    def width(prediction: training.Prediction) -> float:
        low, high = prediction.band(np.array([11.0]), np.array([256.0]))
        return float(high[0] - low[0])

    assert width(wild) > 1.5 * width(calm)


def test_a_measurements_noise_worked_by_hand() -> None:
    fit = Fit(0.5, 0.5, 1.0, 1.0)  # flat, and no resample differs: sqrt(0.5 * 0.5 / 100) = 0.05, twice as much scatter
    low, high = training.Prediction(fit, (fit,) * 4000, 2.0).band(np.array([3.0]), np.array([100.0]))
    assert (low[0], high[0]) == pytest.approx((0.5 - 1.96 * 0.1, 0.5 + 1.96 * 0.1), abs=0.01)


def test_points_off_their_line_widen_the_slopes_interval() -> None:
    def width(jump: float) -> float:
        points = [accuracy(None, 0.5 + jump * (-1) ** i, 2000) for i in range(15)]
        low, high = measure_slope(np.arange(1.0, 16.0), points).ci95
        return high - low

    assert width(0.05) > 3 * width(0.0)


def test_the_same_points_give_the_same_figures() -> None:
    first, second = (measure_training(run_on(CURVE.at, STEPS[:9]), "flops") for _ in range(2))
    assert first.band_at_end == second.band_at_end
    assert first.slope == second.slope


def row(**figures: Any) -> dict[str, Any]:
    return {"samples/ok": 6, "samples/wrong": 2, "samples/truncated": 2, "groups/no_variance": 3, **figures}


def test_the_bottleneck_is_named_from_means_over_the_last_third() -> None:
    early = row(entropy=0.8, **{"mismatch_kl/fresh": 1.0, "samples/truncated": 0, "chain/repeated": 0.9})
    late = row(entropy=0.2, **{"mismatch_kl/fresh": 2e-6, "chain/repeated": 0.1})
    config = {"rollout": {"problems": 4}, "model": {"dtype": "float32"}}
    assert name_bottleneck([early, early, early, early, late, late], config) == (
        "chains cut at the token limit 20 %; mismatch of server and learner, in its bound 200 %; "
        "groups whose chains all score alike 75 %; entropy lost since the start 75 %"
    )


def test_the_bound_of_the_mismatch_is_the_runs() -> None:
    rows = [{"mismatch_kl/fresh": 2e-3}]
    assert "in its bound 200 %" in name_bottleneck(rows, {"model": {"dtype": "bfloat16"}})
    assert name_bottleneck(rows, {"sync": {"bound": 1e-2}}) == "none seen"


def test_what_was_not_logged_is_no_bottleneck() -> None:
    assert name_bottleneck([], {}) == "none seen"
    assert name_bottleneck([{"step": 1, "chain/repeated": None, "entropy": None}], {}) == "none seen"
    assert name_bottleneck([{"chain/repeated": 0.19}], {}) == "none seen"
    assert name_bottleneck([{"chain/repeated": 0.2}], {}) == "attempts that repeat an earlier one 20 %"
