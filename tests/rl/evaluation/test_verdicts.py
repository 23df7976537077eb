"""Verdicts and bottlenecks on figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rl.evaluation.verdicts import SIGNALS, SMALL_GAIN, decide, name_bottleneck, read_signals


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.001, 0.3), "rising"),
        ((-0.02, 0.03), "saturated"),
        ((-0.2, -0.01), "saturated"),  # it falls
        ((-0.02, 0.2), "undecided"),
        ((0.0, SMALL_GAIN), "undecided"),
        ((0.01, 0.03), "rising"),  # slowly
    ],
)
def test_decide(interval: tuple[float, float], verdict: str) -> None:
    assert decide(interval) == verdict


def row(**figures: Any) -> dict[str, Any]:
    return {"samples/ok": 6, "samples/wrong": 2, "samples/truncated": 2, "groups/no_variance": 3, **figures}


def test_signals_are_means_over_the_last_third() -> None:
    early = row(entropy=0.8, **{"mismatch_kl/fresh": 1.0, "samples/truncated": 0, "chain/repeated": 0.9})
    late = row(entropy=0.2, **{"mismatch_kl/fresh": 2e-6, "chain/repeated": 0.1})
    config = {"rollout": {"problems": 4}, "model": {"dtype": "float32"}}
    signals = read_signals([early, early, early, early, late, late], config)
    assert signals == pytest.approx(
        {"truncated": 0.2, "no_variance": 0.75, "entropy_loss": 0.75, "mismatch": 2.0, "repeated": 0.1}
    )
    assert name_bottleneck(signals) == (
        "chains cut at the token limit 20 %; mismatch of server and learner over its bound 2.0; "
        "groups whose chains all score alike 75 %; entropy lost since the start 75 %"
    )


def test_the_bound_of_the_mismatch_is_the_runs() -> None:
    rows = [row(**{"mismatch_kl/fresh": 2e-3})]
    assert read_signals(rows, {"model": {"dtype": "bfloat16"}})["mismatch"] == pytest.approx(2.0)
    assert read_signals(rows, {"sync": {"bound": 1e-2}})["mismatch"] == pytest.approx(0.2)


def test_what_was_not_logged_is_no_bottleneck() -> None:
    signals = read_signals([], {})
    assert set(signals) == set(SIGNALS)
    assert all(value is None for value in signals.values())
    assert name_bottleneck(signals) == "none seen"
    assert name_bottleneck({"truncated": 0.05, "repeated": None}) == "none seen"
    nulls = read_signals([{"step": 1, "chain/repeated": None, "entropy": None}], {})
    assert nulls["repeated"] is None
    assert nulls["entropy_loss"] is None
