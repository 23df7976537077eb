"""How token losses become one number: each mode by hand, by a slow loop, and what is in no denominator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rl.losses import AGGREGATIONS, aggregate, diagnose, masked, token_weights

MASK = torch.tensor([True, True, False, True, True, True])
SEQUENCES = torch.tensor([0, 0, 0, 1, 1, 1])
GROUPS = torch.tensor([0, 0, 0, 0, 0, 0])
VALUES = torch.tensor([1.0, 3.0, 100.0, 2.0, 4.0, 9.0])


@pytest.mark.parametrize(
    ("mode", "want"),
    [("sequence_mean", 3.5), ("token_mean", 3.8), ("sequence_sum", 9.5), ("fixed_length", 0.95), ("prompt_mean", 3.8)],
)
def test_by_hand(mode: str, want: float) -> None:
    """Sequence means 2 and 5, sums 4 and 15; the token mean is 19 / 5; a cap of 10 tokens; one problem."""
    weights = token_weights(mode, MASK, SEQUENCES, GROUPS, max_tokens=10)
    assert aggregate(VALUES, weights).item() == pytest.approx(want)
    assert weights[2] == 0.0


def test_problems_weigh_the_same_in_prompt_mean() -> None:
    """The first problem has the chain of two tokens, the second that of three: (4 / 2 + 15 / 3) / 2."""
    weights = token_weights("prompt_mean", MASK, SEQUENCES, SEQUENCES + 5)
    assert aggregate(VALUES, weights).item() == pytest.approx(3.5)


def slow(mode: str, rows: list[tuple[float, int, bool]], cap: int) -> float:
    """`rows` are (value, chain, trained); chain // 2 is its problem."""
    chains: dict[int, list[float]] = {}
    for value, chain, trained in rows:
        if trained:
            chains.setdefault(chain, []).append(value)
    problems: dict[int, list[float]] = {}
    for chain, values in chains.items():
        problems.setdefault(chain // 2, []).extend(values)
    every = [value for values in chains.values() for value in values]
    if not every:
        return 0.0
    return {
        "sequence_mean": sum(sum(v) / len(v) for v in chains.values()) / len(chains),
        "token_mean": sum(every) / len(every),
        "sequence_sum": sum(every) / len(chains),
        "fixed_length": sum(every) / len(chains) / cap,
        "prompt_mean": sum(sum(v) / len(v) for v in problems.values()) / len(problems),
    }[mode]


ROWS = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=16)


def weights_of(mode: str, rows: list[tuple[float, int, bool]], cap: int) -> Tensor:
    chains, mask = torch.tensor([chain for _, chain, _ in rows]), torch.tensor([trained for *_, trained in rows])
    return token_weights(mode, mask, chains, chains // 2, cap)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@given(ROWS, st.integers(1, 50))
def test_equals_a_slow_loop(mode: str, rows: list[tuple[float, int, bool]], cap: int) -> None:
    values = torch.tensor([value for value, *_ in rows], dtype=torch.float64)
    got = aggregate(values, weights_of(mode, rows, cap))
    assert got.item() == pytest.approx(slow(mode, rows, cap), abs=1e-9)


@pytest.mark.parametrize("mode", AGGREGATIONS)
@given(ROWS, st.integers(0, 16))
def test_parts_add_up_wherever_they_are_cut(mode: str, rows: list[tuple[float, int, bool]], cut: int) -> None:
    """Weights are the minibatch's, so a micro-batch's part needs nothing from the others."""
    values = torch.tensor([value for value, *_ in rows], dtype=torch.float64)
    weights = weights_of(mode, rows, 7)
    parts = aggregate(values[:cut], weights[:cut]) + aggregate(values[cut:], weights[cut:])
    torch.testing.assert_close(parts, aggregate(values, weights))


@pytest.mark.parametrize("mode", AGGREGATIONS)
@given(ROWS)
def test_inserted_tokens_are_in_no_denominator(mode: str, rows: list[tuple[float, int, bool]]) -> None:
    """Without the untrained rows (a forced close, a tool's answer) the others weigh exactly the same."""
    trained = [row for row in rows if row[2]]
    if trained:
        mask = torch.tensor([row[2] for row in rows])
        torch.testing.assert_close(weights_of(mode, rows, 9)[mask], weights_of(mode, trained, 9))
        assert weights_of(mode, rows, 9)[~mask].tolist() == [0.0] * (len(rows) - len(trained))
    else:
        assert weights_of(mode, rows, 9).tolist() == [0.0] * len(rows)


@pytest.mark.parametrize("mode", ["sequence_mean", "token_mean", "prompt_mean"])
@given(ROWS)
def test_means_of_a_constant_are_the_constant(mode: str, rows: list[tuple[float, int, bool]]) -> None:
    assert float(weights_of(mode, rows, 9).sum()) == pytest.approx(float(any(row[2] for row in rows)))


def test_a_sequence_without_trained_tokens_counts_nowhere() -> None:
    mask, ids = torch.tensor([True, False, False]), torch.tensor([4, 4, 7])
    for mode in AGGREGATIONS:
        assert token_weights(mode, mask, ids, ids).tolist() == [1.0, 0.0, 0.0]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="sum_of_all"):
        token_weights("sum_of_all", MASK, SEQUENCES, GROUPS)


def test_a_nan_that_weighs_nothing_stays_out_of_value_and_gradient() -> None:
    values = torch.tensor([1.0, math.nan, math.inf], requires_grad=True)
    total = aggregate(values, torch.tensor([0.5, 0.0, 0.0], dtype=torch.float64))
    total.backward()
    assert total.item() == 0.5
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.0, 0.0]
    assert masked(values, torch.tensor([True, False, False])).tolist() == [1.0, 0.0, 0.0]


def test_diagnostics_add_across_micro_batches() -> None:
    log_ratio, clipped = torch.tensor([0.0, math.log(2), -1.0, 0.0]), torch.tensor([False, True, False, True])
    mask = torch.tensor([True, True, True, False])

    whole = diagnose(log_ratio, clipped, mask)
    first, second = (diagnose(log_ratio[s], clipped[s], mask[s]) for s in (slice(0, 2), slice(2, 4)))
    for seen in (whole, {name: first[name] + second[name] for name in first}):
        assert (int(seen["tokens"]), int(seen["clipped"])) == (3, 1)
        assert float(seen["approx_kl"]) == pytest.approx((1 - math.log(2)) + math.exp(-1.0))  # r - 1 - ln r
