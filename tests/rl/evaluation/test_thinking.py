"""Doublings, saturation and samples on policies made by hand."""

from __future__ import annotations

import pytest

from rl.evaluation.accuracy import Accuracy
from rl.evaluation.thinking import Cell, Thinker, measure_thinking
from rollout.evaluate import pass_at_k
from tests.rl.evaluation.synthetic import accuracy

PROBLEMS = 400


def solved(count: int, samples: int = 1) -> Accuracy:
    """The first `count` of 400 problems solved in every sample: gains are nested, so pairs are exact."""
    return accuracy([[samples, samples]] * count + [[0, samples]] * (PROBLEMS - count))


def policy(counts: dict[int | None, int], name: str = "final", **more: Cell) -> Thinker:
    cells = [Cell("cot", cap, 10.0 + (cap or 0) / 2, solved(count), {}, {}) for cap, count in counts.items()]
    return Thinker(name, (*cells, *more.values()))


def test_a_doubling_is_a_pair_of_caps_and_from_0_there_is_none() -> None:
    ((cap, twice, added),) = measure_thinking(
        [policy({0: 40, 16: 80, 32: 120, 96: 160, 128: 200, None: 300})]
    ).doublings
    assert (cap.budget, twice.budget) == (16, 32)
    assert added.gain == pytest.approx(0.1)
    # 40 of 400 problems gained: the standard error is sqrt(0.1 * 0.9 / 400) = 0.015
    assert added.ci95 == pytest.approx((0.1 - 1.96 * 0.015, 0.1 + 1.96 * 0.015), abs=0.004)


def test_rising_while_the_last_doubling_counts() -> None:
    axis = measure_thinking([policy({16: 40, 32: 80, 64: 130, 128: 200})])
    assert (len(axis.counted), axis.verdict, axis.saturated_at) == (3, "rising", None)
    assert "3 of 3 doublings" in axis.words


def test_saturated_after_the_last_that_counts() -> None:
    axis = measure_thinking([policy({16: 40, 32: 80, 64: 130, 128: 131, 256: 132})])
    assert (len(axis.counted), axis.verdict, axis.saturated_at) == (2, "saturated", 42.0)
    assert "saturated at 42 tokens" in axis.words


def test_undecided_where_more_remains_possible() -> None:
    cells = [
        Cell("cot", cap, float(cap), Accuracy(value, (0, 1), 60), {}, {}) for cap, value in ((16, 0.5), (32, 0.55))
    ]
    axis = measure_thinking([Thinker("final", tuple(cells))])
    assert (len(axis.counted), axis.verdict, axis.saturated_at) == (0, "undecided", 16.0)
    assert "past 16 tokens" in axis.words


def test_small_gains_that_count_only_together_are_undecided() -> None:
    axis = measure_thinking([policy({16: 100, 32: 102, 64: 104, 128: 106, 256: 108})])
    assert axis.counted == []
    assert axis.tail is not None
    assert axis.tail.ci95[0] > 0
    assert axis.verdict == "undecided"


def test_no_doubling_no_verdict() -> None:
    axis = measure_thinking([policy({None: 100})])
    assert (len(axis.counted), axis.verdict, axis.saturated_at) == (0, "undecided", None)
    assert "no two budgets" in axis.words


def test_the_verdict_is_the_last_policys() -> None:
    base, final = policy({16: 40, 32: 100}, "base"), policy({16: 100, 32: 100}, "final")
    assert measure_thinking([base, final]).verdict == "saturated"
    assert measure_thinking([final, base]).verdict == "rising"


def test_answers_at_once_are_beside_the_chain() -> None:
    direct = Cell("direct", None, 5.0, solved(40), {}, {})
    (thinker,) = measure_thinking([policy({16: 40, None: 120}, direct=direct)]).thinkers
    assert thinker.direct is direct
    assert [cell.budget for cell in thinker.caps] == [16, None]


def test_samples_cost_k_times_the_tokens_and_are_derived_beyond_those_taken() -> None:
    pairs = [[c, 4] for c in (0, 1, 2, 3, 4) for _ in range(60)]
    unbiased = {k: sum(pass_at_k(4, c, k) for c, _ in pairs) / len(pairs) for k in (1, 2, 4)}
    cell = Cell("cot", None, 100.0, accuracy(pairs), unbiased, {1: 0.5, 4: 0.6})
    (thinker,) = measure_thinking([Thinker("final", (cell,))]).thinkers
    assert [point["k"] for point in thinker.samples] == [1, 2, 4, 8, 16]
    assert [point["tokens"] for point in thinker.samples] == [100, 200, 400, 800, 1600]
    # counts spread evenly over 0 … 4 are those of Beta(1, 1), whose pass@k is 1 - 1 / (k + 1)
    assert [point["derived"] for point in thinker.samples] == pytest.approx(
        [1 / 2, 2 / 3, 4 / 5, 8 / 9, 16 / 17], rel=1e-3
    )
    assert [point["unbiased"] for point in thinker.samples[:3]] == pytest.approx([1 / 2, 2 / 3, 4 / 5])
    assert [point["unbiased"] for point in thinker.samples[3:]] == [None, None]
    assert [point["majority"] for point in thinker.samples] == [0.5, None, 0.6, None, None]


def test_one_sample_a_problem_has_no_curve_in_k() -> None:
    (thinker,) = measure_thinking([policy({16: 40, None: 120})]).thinkers
    assert thinker.samples == []
